//! ChaCha20-Poly1305 (RFC 8439) for runs of WireGuard records, in place.
//!
//! A *run* is what one segmented read or send holds: records of one size, back to back, each of
//! them some clear bytes (the message header), the text, and the tag. A whole run is one call, so
//! that a cipher which works on many packets at once has many packets to work on.
//!
//! Which cipher does the work is decided once, when a [`Key`] is made: `library.rs` is AWS-LC,
//! `portable.rs` is pure Rust for targets on which that does not build. Both compute the same.
//!
//! This crate knows neither replay windows nor sessions: that a counter is used once per key is the
//! caller's promise. It allocates nothing after `Key::new` and never fails on well-formed input.

#[cfg(not(target_family = "wasm"))]
mod library;
#[cfg(any(target_family = "wasm", test))]
mod portable;

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

#[cfg(not(target_family = "wasm"))]
use library::Cipher;
#[cfg(target_family = "wasm")]
use portable::Cipher;

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;

/// Length of the tag at the end of each record in bytes.
pub const TAG_LEN: usize = 16;

/// Length of a nonce in bytes.
const NONCE_LEN: usize = 12;

/// A key with which one side of a session seals, or opens what the other sealed.
///
/// Both copies of the key, ours for [`Key::bytes`] and the cipher's, live on the heap and are wiped
/// when the key is dropped; moving a `Key` leaves nothing behind.
pub struct Key {
    bytes: Box<Zeroizing<[u8; KEY_LEN]>>,
    cipher: Cipher,
}

/// A record that was not sealed with this key and counter, or not in this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

impl Key {
    /// Makes the key ready for use. This is the only call that allocates.
    pub fn new(mut bytes: [u8; KEY_LEN]) -> Self {
        let boxed = Box::new(Zeroizing::new(bytes));
        bytes.zeroize();
        Self {
            cipher: Cipher::new(&boxed),
            bytes: boxed,
        }
    }

    /// The key's bytes, for handing a session to another process.
    pub fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.bytes
    }

    /// Seals every record of `run`, in place.
    ///
    /// Records are `stride` bytes long, the last may be shorter. Each is `prefix` clear bytes, the
    /// text, and [`TAG_LEN`] bytes in which the tag is put. Record `i` is sealed with counter
    /// `first_counter + i` and no additional data; the clear bytes are not authenticated.
    ///
    /// # Panics
    ///
    /// If `stride` is zero, a record has no room for prefix and tag, or a counter would pass
    /// `u64::MAX`. All are bugs of the caller, and the last would use a nonce twice.
    pub fn seal_run(&self, first_counter: u64, run: &mut [u8], stride: usize, prefix: usize) {
        let records = run.len().div_ceil(stride);
        assert!(
            first_counter.checked_add(records as u64).is_some(),
            "counters are exhausted",
        );
        for (counter, record) in (first_counter..).zip(run.chunks_mut(stride)) {
            let (text, tag) = text_and_tag(record, prefix).expect("a record has room for its tag");
            *tag = self.cipher.seal(nonce(counter), text);
        }
    }

    /// Opens every record of `run`, in place, and replaces the content of `opened` by one verdict
    /// for each counter.
    ///
    /// The form is that of [`Key::seal_run`], with record `i` under `counters[i]`. Nothing about it
    /// is taken for granted, since run and stride come from the network: a record that is too short
    /// or not there is forged, and the others are opened all the same. What a forged record holds
    /// afterwards is undefined.
    pub fn open_run(
        &self,
        counters: &[u64],
        run: &mut [u8],
        stride: usize,
        prefix: usize,
        opened: &mut Vec<Result<(), Forged>>,
    ) {
        opened.clear();
        let mut records = run.chunks_mut(stride.max(1));
        opened.extend(counters.iter().map(|&counter| {
            let record = records.next().ok_or(Forged)?;
            let (text, tag) = text_and_tag(record, prefix).ok_or(Forged)?;
            self.cipher.open(nonce(counter), text, tag)
        }));
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// The two parts of a record behind its clear bytes.
fn text_and_tag(record: &mut [u8], prefix: usize) -> Option<(&mut [u8], &mut [u8; TAG_LEN])> {
    record.get_mut(prefix..)?.split_last_chunk_mut()
}

/// WireGuard's nonce: four zero bytes, then the counter in little endian (the paper's 5.4.6).
fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests;
