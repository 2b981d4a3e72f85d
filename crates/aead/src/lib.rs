//! ChaCha20-Poly1305 (RFC 8439) for runs of WireGuard records, in place.
//!
//! A *run* is what one segmented read or send holds: records of one size, back to back, each of
//! them some clear bytes (the message header), the text, and the tag. A whole run is one call, so
//! that a cipher which works on many packets at once has many packets to work on.
//!
//! What does the work is decided once, when a [`Key`] is made ([`Implementation`]). The library goes
//! through a run record by record: `library.rs` is AWS-LC, `portable.rs` is pure Rust for targets on
//! which that does not build. Where the processor has the vectors for it, `wide.rs` works on many
//! records at once, and the library does what is too little for that. All compute the same.
//!
//! This crate knows neither replay windows nor sessions: that a counter is used once per key is the
//! caller's promise. It allocates nothing after `Key::new` and never fails on well-formed input.

mod choice;
mod implementation;
#[cfg(not(any(target_family = "wasm", warren_null_cipher)))]
mod library;
#[cfg(warren_null_cipher)]
mod null;
#[cfg(any(all(target_family = "wasm", not(warren_null_cipher)), test))]
mod portable;
#[cfg(target_arch = "x86_64")]
mod simd;
#[cfg(any(target_arch = "x86_64", test))]
mod wide;

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

pub use choice::{Choice, Unusable, choose};
pub use implementation::Implementation;
#[cfg(not(any(target_family = "wasm", warren_null_cipher)))]
use library::Cipher;
#[cfg(warren_null_cipher)]
use null::Cipher;
#[cfg(all(target_family = "wasm", not(warren_null_cipher)))]
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
    implementation: Implementation,
}

/// A record that was not sealed with this key and counter, or not in this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

impl Key {
    /// Makes the key ready for use, by [`Implementation::current`]. This is the only call that
    /// allocates.
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self::with(bytes, Implementation::current())
    }

    /// Makes the key ready for use by the given implementation.
    pub fn with(mut bytes: [u8; KEY_LEN], implementation: Implementation) -> Self {
        let boxed = Box::new(Zeroizing::new(bytes));
        bytes.zeroize();
        Self {
            cipher: Cipher::new(&boxed),
            bytes: boxed,
            implementation,
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
        assert_eq!(
            with_room(run.len(), stride, prefix),
            records,
            "a record has room for its tag",
        );
        assert!(
            first_counter.checked_add(records as u64).is_some(),
            "counters are exhausted",
        );
        let done = (self.implementation).seal(&self.bytes, first_counter, run, stride, prefix);
        let left = (first_counter..).zip(run.chunks_mut(stride)).skip(done);
        for (counter, record) in left {
            let (text, tag) = text_and_tag(record, prefix);
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
        opened.resize(counters.len(), Err(Forged));
        let records = with_room(run.len(), stride, prefix).min(counters.len());
        let (counters, opened) = (&counters[..records], &mut opened[..records]);
        let end = run.len().min(records * stride);
        let run = &mut run[..end];
        let done = (self.implementation).open(&self.bytes, counters, run, stride, prefix, opened);
        let left = counters.iter().zip(run.chunks_mut(stride.max(1)));
        for ((&counter, record), opened) in left.zip(opened).skip(done) {
            let (text, tag) = text_and_tag(record, prefix);
            *opened = self.cipher.open(nonce(counter), text, tag);
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// How many records at the front of a run of `len` bytes have room for their clear bytes and a tag.
fn with_room(len: usize, stride: usize, prefix: usize) -> usize {
    let least = prefix.saturating_add(TAG_LEN);
    if stride < least {
        return 0;
    }
    len / stride + usize::from(len % stride >= least)
}

/// The two parts of a record behind its clear bytes.
fn text_and_tag(record: &mut [u8], prefix: usize) -> (&mut [u8], &mut [u8; TAG_LEN]) {
    record[prefix..]
        .split_last_chunk_mut()
        .expect("a record has room for its tag")
}

/// WireGuard's nonce: four zero bytes, then the counter in little endian (the paper's 5.4.6).
fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests;
