//! Which code seals and opens runs: the library record by record, or lanes in groups of records.

#[cfg(target_arch = "x86_64")]
use std::hint;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use crate::wide::{Run, TEXT_MAX, chacha20::WIDEST, lanes::Processor};
use crate::{Forged, KEY_LEN, Key, TAG_LEN};

/// The code behind a [`Key`]. All give the same results.
///
/// Apart from the library each is only there where the processor has its instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Implementation(Code);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Library,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

static LIBRARY_ONLY: AtomicBool = AtomicBool::new(false);

/// From now on every new key is the library's, whatever the processor has. For the start of a
/// program, before it has keys.
pub fn use_library_only() {
    LIBRARY_ONLY.store(true, Ordering::Relaxed);
}

impl Implementation {
    /// The library alone: AWS-LC, or pure Rust where that does not build.
    pub const LIBRARY: Self = Self(Code::Library);

    /// What [`Key::new`] uses: the fastest that this processor has and that has
    /// just agreed with the library, unless [`use_library_only`] was called.
    pub fn current() -> Self {
        static FASTEST: OnceLock<Implementation> = OnceLock::new();
        if cfg!(warren_null_cipher) || LIBRARY_ONLY.load(Ordering::Relaxed) {
            return Self::LIBRARY;
        }
        *FASTEST.get_or_init(|| {
            Self::all()
                .find(|implementation| implementation.agrees_with_library())
                .expect("the library agrees with itself")
        })
    }

    /// All that this processor has, the fastest first and the library last.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = [
            Avx512::detect().map(Code::Avx512),
            Avx2::detect().map(Code::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let wide: [Option<Code>; 0] = [];
        wide.into_iter().flatten().chain([Code::Library]).map(Self)
    }

    /// How it is called in a status or a log.
    pub fn name(self) -> &'static str {
        match self.0 {
            Code::Library if cfg!(warren_null_cipher) => "none at all",
            Code::Library => "library",
            #[cfg(target_arch = "x86_64")]
            Code::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Code::Avx512(_) => "avx512",
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Implementation {
    /// Seals records from the front of a run, and answers how many: the others are left to the
    /// library, which is faster with few.
    pub(crate) fn seal(
        self,
        key: &[u8; KEY_LEN],
        first_counter: u64,
        run: &mut [u8],
        stride: usize,
        prefix: usize,
    ) -> usize {
        let records = run.len().div_ceil(stride);
        let mut done = 0;
        let text_len = stride.saturating_sub(prefix).saturating_sub(TAG_LEN);
        while let Some(group) = self.group(records - done, text_len) {
            let first = first_counter + done as u64;
            let counters: [u64; WIDEST] = std::array::from_fn(|i| first.wrapping_add(i as u64));
            let counters = &counters[..group];
            let run = records_of(run, stride, done..done + group);
            let run = Run::new(run, stride, prefix, group);
            match self.0 {
                Code::Library => break,
                Code::Avx2(processor) => processor.seal(key, counters, run),
                Code::Avx512(processor) => processor.seal(key, counters, run),
            }
            done += group;
        }
        if done > 0 {
            wipe_stack();
        }
        done
    }

    /// Opens records from the front of a run, and answers how many, as [`Implementation::seal`].
    pub(crate) fn open(
        self,
        key: &[u8; KEY_LEN],
        counters: &[u64],
        run: &mut [u8],
        stride: usize,
        prefix: usize,
        opened: &mut [Result<(), Forged>],
    ) -> usize {
        let mut done = 0;
        let text_len = stride.saturating_sub(prefix).saturating_sub(TAG_LEN);
        while let Some(group) = self.group(counters.len() - done, text_len) {
            let records = done..done + group;
            let run = records_of(run, stride, records.clone());
            let run = Run::new(run, stride, prefix, group);
            let counters = &counters[records.clone()];
            let opened = &mut opened[records];
            match self.0 {
                Code::Library => break,
                Code::Avx2(processor) => processor.open(key, counters, run, opened),
                Code::Avx512(processor) => processor.open(key, counters, run, opened),
            }
            done += group;
        }
        if done > 0 {
            wipe_stack();
        }
        done
    }

    /// How many of the next `records` are worked on together, if that is faster than the library.
    fn group(self, records: usize, text_len: usize) -> Option<usize> {
        let (fewest, most) = match self.0 {
            Code::Library => return None,
            Code::Avx2(_) => (avx2_fewest(text_len)?, Avx2::BLOCKS),
            // From 4 on it is the faster at any length. Zen 4 takes 0.75 of the library's time to seal 4 texts of
            // 64 bytes, 0.8 for 4 of 512 or 1424, and 0.33, 0.51 and 0.52 for 16 of each; a prototype on Ice
            // Lake was much the same.
            Code::Avx512(_) => (4, Avx512::BLOCKS),
        };
        (records >= fewest && text_len <= TEXT_MAX).then(|| records.min(most))
    }
}

/// From how many records on AVX2 is faster than the library, which saves what a record costs
/// whatever its length, but loses a little on each byte: the library's assembly does Poly1305 beside
/// ChaCha20 at once. On Zen 3, beside a busy second thread of the core, it takes 0.6 of the time to seal 8 texts
/// of 64 bytes, 0.65 for 96, 0.9 for 512, and no less for 1024; 0.8 for 4 texts of 64 bytes, but 1 for 4 of 96. With
/// 64 texts it takes a tenth less of the library's time, to open a tenth more.
#[cfg(target_arch = "x86_64")]
fn avx2_fewest(text_len: usize) -> Option<usize> {
    match text_len {
        0..=64 => Some(4),
        65..=768 => Some(8),
        _ => None,
    }
}

/// Elsewhere there is nothing but the library.
#[cfg(not(target_arch = "x86_64"))]
impl Implementation {
    pub(crate) fn seal(self, _: &[u8; KEY_LEN], _: u64, _: &mut [u8], _: usize, _: usize) -> usize {
        0
    }

    pub(crate) fn open(
        self,
        _: &[u8; KEY_LEN],
        _: &[u64],
        _: &mut [u8],
        _: usize,
        _: usize,
        _: &mut [Result<(), Forged>],
    ) -> usize {
        0
    }
}

impl Implementation {
    /// Whether it seals and opens a few runs as the library does: what every program that uses it
    /// asks before, in about as long as one full datagram takes.
    fn agrees_with_library(self) -> bool {
        let bytes = std::array::from_fn(|i| i as u8 ^ 0xa5);
        let ours = Key::with(bytes, self);
        let library = Key::with(bytes, Self::LIBRARY);
        // Groups that are full and not; texts of every number of pieces that Poly1305 takes at once, with
        // and without a last block that is not whole; a last record that is shorter; and texts that are
        // long enough for powers of the keys (`POWERS_FROM`), in one and in two vectors of them.
        let runs = [
            (8, 112, 112),
            (21, 64, 1),
            (8, 203, 130),
            (8, 300, 300),
            (16, 336, 300),
        ];
        runs.iter()
            .all(|&(records, text_len, last_len): &(usize, usize, usize)| {
                let stride = text_len + TAG_LEN;
                let len = (records - 1) * stride + last_len + TAG_LEN;
                let plain: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
                let counters: Vec<u64> = (u64::from(u32::MAX) - 3..).take(records).collect();
                let mut sealed = plain.clone();
                ours.seal_run(counters[0], &mut sealed, stride, 0);
                let mut expected = plain.clone();
                library.seal_run(counters[0], &mut expected, stride, 0);
                if sealed != expected {
                    return false;
                }
                // One tag is wrong.
                sealed[stride - 1] ^= 1;
                let mut opened = Vec::new();
                ours.open_run(&counters, &mut sealed, stride, 0, &mut opened);
                let genuine = sealed[stride..]
                    .chunks(stride)
                    .zip(plain[stride..].chunks(stride));
                opened[0].is_err()
                    && opened[1..].iter().all(Result::is_ok)
                    && genuine.into_iter().all(|(sealed, plain)| {
                        let text = plain.len() - TAG_LEN;
                        sealed[..text] == plain[..text]
                    })
            })
    }
}

/// Wipes what lanes that were put aside have left on the stack, keys among it, as the library does.
/// It is called from where the lanes were, and covers all that they take: frames of 5.4 KiB with AVX2 and of
/// 9.2 KiB with AVX-512, by what a release build takes off the stack pointer.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn wipe_stack() {
    let mut left = [0_u8; 12 << 10];
    hint::black_box(&mut left);
}

/// The bytes of some records of a run.
#[cfg(target_arch = "x86_64")]
fn records_of(run: &mut [u8], stride: usize, records: Range<usize>) -> &mut [u8] {
    let end = run.len().min(records.end * stride);
    &mut run[records.start * stride..end]
}
