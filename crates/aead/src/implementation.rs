//! Which code seals and opens runs: the library record by record, or lanes in groups of records.

#[cfg(target_arch = "x86_64")]
use std::hint;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;
use std::sync::OnceLock;
#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use crate::wide::{Run, TEXT_MAX, chacha20::WIDEST, lanes::Processor};
use crate::{Forged, KEY_LEN, Key, TAG_LEN, Unusable};

/// The code behind a [`Key`]. All give the same results.
///
/// Apart from the library each is only there where the processor has its instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Implementation {
    code: Code,
    /// The longest text for which it is used; the library does those that are longer.
    longest: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Library,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// What every key of a program is made by, and what was left out since it computes something else.
#[derive(Debug)]
struct Decision {
    implementation: Implementation,
    distrusted: Vec<Unusable>,
}

/// Decided once in a program.
static DECISION: OnceLock<Decision> = OnceLock::new();

impl Implementation {
    /// The library alone: AWS-LC, or pure Rust where that does not build.
    pub const LIBRARY: Self = Self {
        code: Code::Library,
        longest: usize::MAX,
    };

    /// What [`Key::new`] uses: the first of [`Implementation::all`] that has just agreed with the library
    /// and was faster, for texts with which it was, unless [`choose`](crate::choose) was called.
    ///
    /// The first call takes the time to find out, half a millisecond for each that is tried.
    pub fn current() -> Self {
        if cfg!(warren_null_cipher) {
            return Self::LIBRARY;
        }
        let decide =
            || Decision::among(Self::lanes(), Self::agrees_with_library, Self::where_faster);
        DECISION.get_or_init(decide).implementation
    }

    /// Has every key made by this one, whatever is faster.
    ///
    /// # Panics
    ///
    /// If it was decided otherwise before.
    pub(crate) fn decide(self) {
        self.decide_in(&DECISION);
    }

    fn decide_in(self, decision: &OnceLock<Decision>) {
        let current = decision.get_or_init(|| Decision {
            implementation: self,
            distrusted: Vec::new(),
        });
        assert_eq!(current.implementation, self, "there is a choice already");
    }

    /// Those that [`Implementation::current`] tried and left out since they did not agree with the library, which
    /// somebody should hear of. None before it was asked, and none where the choice was an
    /// operator's.
    pub fn distrusted() -> &'static [Unusable] {
        let decision = DECISION.get();
        decision.map_or(&[], |decision| &decision.distrusted)
    }

    /// All that this processor has: first what should be the fastest, the library last.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::lanes().chain([Self::LIBRARY])
    }

    /// The one of this [`Implementation::name`], which is then used for texts of every length, even
    /// where the library is faster.
    ///
    /// # Errors
    ///
    /// If this processor has none of that name, or it does not agree with the library.
    pub fn named(name: &'static str) -> Result<Self, Unusable> {
        Self::named_among(Self::all(), name, Self::agrees_with_library)
    }

    fn named_among(
        mut all: impl Iterator<Item = Self>,
        name: &'static str,
        agrees: impl Fn(Self) -> bool,
    ) -> Result<Self, Unusable> {
        let found = all.find(|implementation| implementation.name() == name);
        let named = Self {
            longest: usize::MAX,
            ..found.ok_or(Unusable::Lacking(name))?
        };
        match agrees(named) {
            true => Ok(named),
            false => Err(Unusable::Disagrees(name)),
        }
    }

    fn lanes() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let lanes = [
            Avx512::detect().map(|avx512| (Code::Avx512(avx512), usize::MAX)),
            Avx2::detect().map(|avx2| (Code::Avx2(avx2), AVX2_LONGEST)),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let lanes: [Option<(Code, usize)>; 0] = [];
        // Without a cipher there is nothing that they could agree with.
        let lanes = (lanes.into_iter().flatten()).filter(|_| !cfg!(warren_null_cipher));
        lanes.map(|(code, longest)| Self { code, longest })
    }

    /// How it is called in a status or a log.
    pub fn name(self) -> &'static str {
        match self.code {
            Code::Library if cfg!(warren_null_cipher) => "none at all",
            Code::Library => "library",
            #[cfg(target_arch = "x86_64")]
            Code::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Code::Avx512(_) => "avx512",
        }
    }

    /// The length in bytes of the longest text for which it is used, since the library is faster with
    /// those that are longer; `None` where it is used for all.
    pub fn longest(self) -> Option<usize> {
        (self.longest != usize::MAX).then_some(self.longest)
    }
}

impl Decision {
    /// For the first of these lanes that agree with the library and are faster, for texts with which
    /// they are, and for the library where there are none.
    fn among(
        lanes: impl Iterator<Item = Implementation>,
        agrees: impl Fn(Implementation) -> bool,
        where_faster: impl Fn(Implementation) -> Option<Implementation>,
    ) -> Self {
        let mut distrusted = Vec::new();
        let chosen = lanes
            .filter(|&lanes| {
                let agrees = agrees(lanes);
                if !agrees {
                    distrusted.push(Unusable::Disagrees(lanes.name()));
                }
                agrees
            })
            .find_map(where_faster);
        Self {
            implementation: chosen.unwrap_or(Implementation::LIBRARY),
            distrusted,
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
            match self.code {
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
            match self.code {
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
        let (fewest, most) = match self.code {
            Code::Library => return None,
            Code::Avx2(_) => (avx2_fewest(text_len), Avx2::BLOCKS),
            // Where it is the faster, it is from 4 on: a constant, since no process measures fewer than
            // `RECORDS`. Zen 4 takes 0.75 of the library's time to seal 4 texts of
            // 64 bytes, 0.8 for 4 of 512 or 1424, and 0.33, 0.51 and 0.52 for 16 of each; a prototype on Ice
            // Lake was much the same.
            Code::Avx512(_) => (4, Avx512::BLOCKS),
        };
        (records >= fewest && text_len <= self.longest.min(TEXT_MAX)).then(|| records.min(most))
    }
}

/// The longest text for which AVX2 may be faster than the library: it saves what a record costs
/// whatever its length, but loses a little on each byte, as the library's assembly does Poly1305 beside
/// ChaCha20 at once. On Zen 3, beside a busy second thread of the core, it takes 0.6 of the time to seal 8 texts
/// of 64 bytes, 0.65 for 96, 0.9 for 512, and no less for 1024. With 64 texts it takes a tenth less of
/// the library's time, to open a tenth more.
#[cfg(target_arch = "x86_64")]
const AVX2_LONGEST: usize = 768;

/// From how many records on AVX2 is faster, a constant as for AVX-512: on Zen 3 it takes 0.8 of the time for 4 texts
/// of 64 bytes, but 1 for 4 of 96.
#[cfg(target_arch = "x86_64")]
fn avx2_fewest(text_len: usize) -> usize {
    if text_len <= 64 { 4 } else { 8 }
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

/// Whether lanes are faster than the library is measured on the processor at hand.
#[cfg(target_arch = "x86_64")]
impl Implementation {
    /// It for the texts with which it is faster than the library, if there are any.
    fn where_faster(self) -> Option<Self> {
        self.where_faster_by(|text_len| self.tries(text_len))
    }

    /// As [`Implementation::where_faster`], by the given tries with texts of a length: those of
    /// [`CLASSES`], up to the first with which it is no faster.
    fn where_faster_by(self, tries: impl Fn(usize) -> Vec<Try>) -> Option<Self> {
        let won = CLASSES
            .into_iter()
            .take_while(|&(text_len, _)| text_len <= self.longest && is_faster(&tries(text_len)));
        let (_, longest) = won.last()?;
        Some(Self {
            longest: longest.min(self.longest),
            ..self
        })
    }

    /// Seals and opens runs by turns with the library.
    fn tries(self, text_len: usize) -> Vec<Try> {
        let stride = PREFIX + text_len + TAG_LEN;
        let counters: [u64; RECORDS] = std::array::from_fn(|i| i as u64);
        let mut run = vec![0; RECORDS * stride];
        let mut opened = Vec::with_capacity(RECORDS);
        let [ours, library] = [self, Self::LIBRARY].map(|by| Key::with([0x5a; KEY_LEN], by));
        let mut took = |key: &Key| Took {
            seal: time(|| key.seal_run(0, hint::black_box(&mut run), stride, PREFIX)),
            open: time(|| key.open_run(&counters, &mut run, stride, PREFIX, &mut opened)),
        };
        (0..TRIES)
            .map(|_| Try {
                ours: took(&ours),
                library: took(&library),
            })
            .collect()
    }
}

/// What is measured: a length of texts, and the longest for which it speaks.
#[cfg(target_arch = "x86_64")]
const CLASSES: [(usize, usize); 3] = [(96, 256), (512, AVX2_LONGEST), (1424, usize::MAX)];

/// Records in each run that is measured. From how few on lanes are used is not: [`Implementation::group`] has
/// that from Zen 3 and Zen 4, and on other processors a few records may be slower than by the library.
#[cfg(target_arch = "x86_64")]
const RECORDS: usize = 16;

/// Clear bytes in front of each of their texts, as in a data message.
#[cfg(target_arch = "x86_64")]
const PREFIX: usize = 16;

/// How often each run is sealed and opened: so that some are left alone by whatever else runs.
#[cfg(target_arch = "x86_64")]
const TRIES: usize = 8;

/// How long one run took.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
struct Took {
    seal: Duration,
    open: Duration,
}

/// One run by both.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
struct Try {
    ours: Took,
    library: Took,
}

/// Whether the library takes longer, to seal and to open, each by the shortest of its times: a
/// processor that was taken away in between only ever adds to them.
#[cfg(target_arch = "x86_64")]
fn is_faster(tries: &[Try]) -> bool {
    let least = |time: fn(&Try) -> Duration| tries.iter().map(time).min();
    least(|tried| tried.ours.seal) < least(|tried| tried.library.seal)
        && least(|tried| tried.ours.open) < least(|tried| tried.library.open)
}

#[cfg(target_arch = "x86_64")]
#[expect(
    clippy::disallowed_methods,
    reason = "what is faster is asked of the clock, once in a program"
)]
fn time(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Elsewhere there is nothing to be faster.
#[cfg(not(target_arch = "x86_64"))]
impl Implementation {
    fn where_faster(self) -> Option<Self> {
        None
    }
}

/// Wipes what lanes that were put aside have left on the stack, keys among it, as the library does.
/// It is called from where the lanes were, and covers all that they take: frames of 5568 bytes with AVX2 and of
/// 9344 with AVX-512 in a release build, 5888 and 9856 with the profile `fast`, and 48 bytes pushed before. No test
/// notices when that is not so any more, as one is built otherwise: there AVX-512 takes 12800, and would
/// leave something. The frames are the sums of what these lines take off the stack pointer:
/// `objdump -dC target/release/warren-wg | grep -E '>:$|sub .*,%rsp' | grep -A 3 warren_aead::simd`
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// What is taken for lanes, whichever this processor has.
    const LANES: Implementation = Implementation::LIBRARY;

    #[test]
    fn what_is_not_faster_than_the_library_is_not_chosen() {
        // Beside 100 ns of the library to seal and to open.
        for (seal, open, faster) in [
            (99, 99, true),
            (100, 100, false),
            (101, 101, false),
            (50, 100, false),
            (101, 50, false),
        ] {
            assert_eq!(is_faster(&[tried(seal, open)]), faster, "{seal}, {open}");
            let chosen = LANES.where_faster_by(|_| vec![tried(seal, open)]);
            assert_eq!(chosen, faster.then_some(LANES), "{seal}, {open}");
        }
        assert!(!is_faster(&[]));
    }

    #[test]
    fn a_processor_that_was_taken_away_does_not_decide() {
        let stolen = 10_000_000;
        let (mut lost, mut won) = (tried(80, 80), tried(120, 120));
        lost.ours.seal = Duration::from_nanos(stolen);
        won.library.open = Duration::from_nanos(stolen);
        assert!(is_faster(&[lost, tried(80, 80)]));
        assert!(is_faster(&[tried(80, 80), lost]));
        assert!(!is_faster(&[won, tried(120, 120)]));
        assert!(!is_faster(&[tried(120, 120), won]));
    }

    #[test]
    fn lanes_are_used_up_to_the_length_at_which_they_lose() {
        let faster_up_to = |lanes: Implementation, longest: usize| {
            let tries = |text_len| match text_len <= longest {
                true => vec![tried(80, 80)],
                false => vec![tried(80, 120)],
            };
            lanes.where_faster_by(tries).map(|chosen| chosen.longest)
        };
        let short = with_longest(AVX2_LONGEST);
        assert_eq!(faster_up_to(LANES, 1500), Some(usize::MAX));
        assert_eq!(faster_up_to(short, 1500), Some(768));
        for lanes in [LANES, short] {
            assert_eq!(faster_up_to(lanes, 600), Some(768));
            assert_eq!(faster_up_to(lanes, 100), Some(256));
            assert_eq!(faster_up_to(lanes, 50), None);
        }
    }

    #[test]
    fn how_far_lanes_are_used_is_told_where_they_are_not_for_all() {
        assert_eq!(LANES.longest(), None);
        let short = LANES.where_faster_by(|text_len| vec![tried(text_len as u64, 99)]);
        assert_eq!(short.map(Implementation::longest), Some(Some(256)));
    }

    #[test]
    fn texts_that_are_too_long_for_lanes_are_left_to_the_library() {
        for lanes in Implementation::lanes() {
            let lanes = Implementation {
                longest: 100,
                ..lanes
            };
            for (text_len, done) in [(100, 16), (101, 0), (200, 0)] {
                let stride = PREFIX + text_len + TAG_LEN;
                let plain = vec![7; 16 * stride];
                let counters: Vec<u64> = (0..16).collect();
                let key = [0x5a; KEY_LEN];
                let mut run = plain.clone();
                let sealed = lanes.seal(&key, 0, &mut run, stride, PREFIX);
                assert_eq!(sealed, done, "{} of {text_len}", lanes.name());
                assert_eq!(run == plain, done == 0, "{} of {text_len}", lanes.name());

                let mut opened = [Err(Forged); 16];
                let tried = lanes.open(&key, &counters, &mut run, stride, PREFIX, &mut opened);
                assert_eq!(tried, done, "{} of {text_len}", lanes.name());
                let verdict = if done > 0 { Ok(()) } else { Err(Forged) };
                assert_eq!(opened, [verdict; 16], "{} of {text_len}", lanes.name());
            }
        }
    }

    #[test]
    #[cfg(not(warren_null_cipher))]
    fn whatever_the_processor_has_can_be_named() {
        for implementation in Implementation::all() {
            let named = Implementation::named(implementation.name());
            assert_eq!(named.map(|named| named.code), Ok(implementation.code));
            assert_eq!(named.map(Implementation::longest), Ok(None));
        }
        for name in ["auto", "sse2"] {
            assert_eq!(Implementation::named(name), Err(Unusable::Lacking(name)));
        }
        let avx512 = Implementation::named("avx512");
        assert_eq!(avx512.is_ok(), Avx512::detect().is_some());
    }

    #[test]
    fn what_is_missing_and_what_computes_something_else_are_told_apart() {
        let name = LANES.name();
        let named = |all: &[Implementation], agrees| {
            Implementation::named_among(all.iter().copied(), name, |_| agrees)
        };
        assert_eq!(named(&[], true), Err(Unusable::Lacking(name)));
        assert_eq!(named(&[LANES], false), Err(Unusable::Disagrees(name)));
        assert_eq!(named(&[LANES], true), Ok(LANES));
    }

    #[test]
    fn lanes_that_compute_something_else_are_left_out_and_told_of() {
        let short = with_longest(64);
        let among = |agrees: fn(Implementation) -> bool, faster: fn(Implementation) -> bool| {
            let where_faster = |lanes| faster(lanes).then_some(lanes);
            let decision = Decision::among([LANES, short].into_iter(), agrees, where_faster);
            (decision.implementation, decision.distrusted)
        };
        let wrong = Unusable::Disagrees(LANES.name());
        let is_short = |lanes| lanes == with_longest(64);
        assert_eq!(among(|_| true, |_| true), (LANES, vec![]));
        assert_eq!(among(|_| true, is_short), (short, vec![]));
        assert_eq!(among(is_short, |_| true), (short, vec![wrong]));
        let library = Implementation::LIBRARY;
        assert_eq!(among(|_| false, |_| true), (library, vec![wrong; 2]));
        assert_eq!(among(|_| true, |_| false), (library, vec![]));
    }

    #[test]
    fn what_was_decided_may_be_decided_again() {
        let decision = OnceLock::new();
        for _ in 0..2 {
            LANES.decide_in(&decision);
            let decided = decision.get().map(|decision| decision.implementation);
            assert_eq!(decided, Some(LANES));
        }
    }

    #[test]
    #[should_panic(expected = "there is a choice already")]
    fn what_was_decided_is_not_decided_otherwise() {
        let decision = OnceLock::new();
        LANES.decide_in(&decision);
        with_longest(64).decide_in(&decision);
    }

    fn with_longest(longest: usize) -> Implementation {
        Implementation { longest, ..LANES }
    }

    fn tried(seal: u64, open: u64) -> Try {
        let took = |seal, open| Took {
            seal: Duration::from_nanos(seal),
            open: Duration::from_nanos(open),
        };
        Try {
            ours: took(seal, open),
            library: took(100, 100),
        }
    }
}
