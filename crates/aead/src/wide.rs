//! ChaCha20-Poly1305 of many records at once, for whatever vectors the processor has.
//!
//! The records of a run are worked on in groups of as many as there are lanes. The way of a group:
//!
//! 1. ChaCha20 takes its blocks across the borders of records: first block 0 of each record, whose
//!    first half is the record's one-time key for Poly1305, then the blocks that encrypt the texts,
//!    record after record. Each pass makes one block in every lane (`chacha20.rs`).
//! 2. The one-time keys lie lane by lane in the first pass already. Poly1305 goes through the
//!    ciphertexts with one record in each lane, so that no lane waits for another (`poly1305.rs`). Where the
//!    arithmetic gains by it, four pieces at once are multiplied by powers of the key, from texts of
//!    `POWERS_FROM` pieces on.
//! 3. When sealing, 2 follows 1 and yields the tags. When opening, 2 comes before all but the first
//!    pass of 1, and only texts whose tags are right are decrypted at all.
//!
//! Nothing here branches on, or indexes by, a key, a text or a computed tag; only whether a record
//! is genuine decides what is done with it. All of it is safe code over the traits of `lanes.rs`;
//! `simd.rs` has the processor's lanes.

pub(crate) mod chacha20;
pub(crate) mod lanes;
pub(crate) mod poly1305;

use subtle::ConstantTimeEq;

use crate::{Forged, KEY_LEN, TAG_LEN};
use chacha20::{BLOCK_LEN, Keystream, Pass, Schedule, Shared, WIDEST};
use lanes::{Limbs, Processor, WIDEST_LIMBS, Words};
use poly1305::{Mac, PIECE_LEN};

/// At most this many bytes of text are in a record that comes here: the limit of a datagram. It
/// keeps block numbers far from the end of ChaCha20's 32-bit counter.
pub(crate) const TEXT_MAX: usize = 1 << 16;

/// From how many pieces on powers of the keys are worth their computation.
const POWERS_FROM: usize = 16;

/// Records of one size back to back, the last of which may be shorter. Each has room for its clear
/// bytes, which are `prefix`, and its tag.
pub(crate) struct Run<'a> {
    bytes: &'a mut [u8],
    stride: usize,
    prefix: usize,
    /// Number of the last record.
    last: usize,
    /// Length of its text.
    last_len: usize,
    /// Length of every other text, which is no less; its own if there is no other.
    len: usize,
}

impl<'a> Run<'a> {
    /// One or more `records`, which are all that `bytes` has.
    pub(crate) fn new(bytes: &'a mut [u8], stride: usize, prefix: usize, records: usize) -> Self {
        debug_assert_eq!(records, bytes.len().div_ceil(stride));
        let last = records - 1;
        let text_len = |record: &[u8]| record.len() - prefix - TAG_LEN;
        Self {
            last,
            last_len: text_len(&bytes[last * stride..]),
            len: text_len(&bytes[..stride.min(bytes.len())]),
            bytes,
            stride,
            prefix,
        }
    }

    #[inline(always)]
    fn records(&self) -> usize {
        self.last + 1
    }

    /// Length of the text of `record`.
    #[inline(always)]
    fn text_len(&self, record: usize) -> usize {
        if record == self.last {
            self.last_len
        } else {
            self.len
        }
    }

    #[inline(always)]
    fn text(&self, record: usize) -> &[u8] {
        let start = record * self.stride + self.prefix;
        &self.bytes[start..start + self.text_len(record)]
    }

    #[inline(always)]
    fn text_mut(&mut self, record: usize) -> &mut [u8] {
        let start = record * self.stride + self.prefix;
        let len = self.text_len(record);
        &mut self.bytes[start..start + len]
    }

    #[inline(always)]
    fn tag(&mut self, record: usize) -> &mut [u8; TAG_LEN] {
        let start = record * self.stride + self.prefix + self.text_len(record);
        self.bytes[start..]
            .first_chunk_mut()
            .expect("a record has room for its tag")
    }
}

/// Seals every record of a group: record `i` with counter `counters[i]`.
///
/// There are as many counters as records, and no more than the processor has blocks in a pass.
#[inline(always)]
pub(crate) fn seal<P: Processor>(
    processor: P,
    key: &[u8; KEY_LEN],
    counters: &[u64],
    mut run: Run<'_>,
) {
    let all = [true; WIDEST];
    let mut encryption = Encryption::new(processor, key, counters, &run);
    let one_time_keys = encryption.begin();
    encryption.finish(&mut run, &all);
    let tags = authenticate(processor, &one_time_keys, &run);
    for (record, [low, high]) in (0..run.records()).zip(tags) {
        let tag = u128::from(low) | u128::from(high) << 64;
        *run.tag(record) = tag.to_le_bytes();
    }
}

/// Opens every genuine record of a group, in the form of [`seal`], and puts a verdict for each into
/// `verdicts`. The text of a forged one stays as it was.
#[inline(always)]
pub(crate) fn open<P: Processor>(
    processor: P,
    key: &[u8; KEY_LEN],
    counters: &[u64],
    mut run: Run<'_>,
    verdicts: &mut [Result<(), Forged>],
) {
    let mut encryption = Encryption::new(processor, key, counters, &run);
    let one_time_keys = encryption.begin();
    let tags = authenticate(processor, &one_time_keys, &run);
    let mut genuine = [false; WIDEST];
    for (record, [low, high]) in (0..run.records()).zip(tags) {
        let tag = u128::from_le_bytes(*run.tag(record));
        let equal = low.ct_eq(&(tag as u64)) & high.ct_eq(&((tag >> 64) as u64));
        genuine[record] = equal.into();
        verdicts[record] = if genuine[record] { Ok(()) } else { Err(Forged) };
    }
    encryption.finish(&mut run, &genuine);
}

/// ChaCha20 over a group.
struct Encryption<'a, P: Processor> {
    processor: P,
    shared: Shared<P::Words>,
    schedule: Schedule<'a>,
    /// The last pass, and what it has made.
    pass: Pass<P::Words>,
    keystream: Keystream,
}

impl<'a, P: Processor> Encryption<'a, P> {
    #[inline(always)]
    fn new(processor: P, key: &[u8; KEY_LEN], counters: &'a [u64], run: &Run<'_>) -> Self {
        debug_assert_eq!(counters.len(), run.records());
        let blocks = |text_len: usize| text_len.div_ceil(BLOCK_LEN) as u32;
        Self {
            processor,
            // WireGuard's nonces begin with four zero bytes, then comes the counter (the paper's 5.4.6).
            shared: Shared::new(processor, key, [0; 4]),
            schedule: Schedule::new(counters, blocks(run.len), blocks(run.last_len)),
            pass: Pass::new(processor),
            keystream: Keystream([[0; BLOCK_LEN]; WIDEST]),
        }
    }

    /// Makes the first pass, and answers the one-time keys in it, one in each lane.
    #[inline(always)]
    fn begin(&mut self) -> [P::Words; 8] {
        self.schedule.next(self.processor, &mut self.pass);
        *self.make().first_chunk().expect("8 of 16 words")
    }

    /// Encrypts, or decrypts, the texts of the records that are `wanted`. Once, behind [`Self::begin`]; by
    /// reference, since to move it is to copy more than a keystream.
    #[inline(always)]
    fn finish(&mut self, run: &mut Run<'_>, wanted: &[bool; WIDEST]) {
        loop {
            self.apply(run, wanted);
            self.schedule.next(self.processor, &mut self.pass);
            if self.pass.used == 0 {
                break;
            }
            self.make();
        }
    }

    /// Makes what is scheduled.
    #[inline(always)]
    fn make(&mut self) -> [P::Words; 16] {
        let words = chacha20::blocks(self.processor, &self.shared, &self.pass);
        P::Words::interleave(&words, &mut self.keystream);
        words
    }

    /// Puts the last pass over the texts.
    #[inline(always)]
    fn apply(&self, run: &mut Run<'_>, wanted: &[bool; WIDEST]) {
        for span in self.pass.spans() {
            if wanted[span.record] {
                let keystream = &self.keystream.0[span.lane..span.lane + span.blocks];
                xor(&mut run.text_mut(span.record)[span.start..], keystream);
            }
        }
    }
}

/// Puts blocks over a text, or over as much of it as they cover. At most the last block is longer than
/// what it covers.
#[inline(always)]
fn xor(text: &mut [u8], keystream: &[[u8; BLOCK_LEN]]) {
    let (blocks, text) = text.as_chunks_mut();
    let whole = blocks.len();
    for (block, key) in blocks.iter_mut().zip(keystream) {
        xor_chunk(block, key);
    }
    let Some(keystream) = keystream.get(whole) else {
        return;
    };
    // Texts are padded, so what is there of a block is mostly these.
    let (pieces, text) = text.as_chunks_mut::<PIECE_LEN>();
    let (keys, _) = keystream.as_chunks::<PIECE_LEN>();
    let left = &keystream[pieces.len() * PIECE_LEN..];
    for (piece, key) in pieces.iter_mut().zip(keys) {
        xor_chunk(piece, key);
    }
    for (byte, key) in text.iter_mut().zip(left) {
        *byte ^= key;
    }
}

/// Reads both before it writes, so that the compiler need not think that one is part of the other.
#[inline(always)]
fn xor_chunk<const LEN: usize>(text: &mut [u8; LEN], key: &[u8; LEN]) {
    let mut sum = *text;
    for (byte, key) in sum.iter_mut().zip(key) {
        *byte ^= key;
    }
    *text = sum;
}

/// The tags of a group's ciphertexts, each as its low and its high half.
#[inline(always)]
fn authenticate<P: Processor>(
    processor: P,
    one_time_keys: &[P::Words; 8],
    run: &Run<'_>,
) -> [[u64; 2]; WIDEST] {
    let [first, second] = macs(processor, one_time_keys);
    if run.records() > P::BLOCKS / 2 {
        tags(processor, [first, second], run)
    } else {
        tags(processor, [first], run)
    }
}

/// Words of 32 bits in one vector are numbers of 64 bits in two.
#[inline(always)]
fn macs<P: Processor>(processor: P, one_time_keys: &[P::Words; 8]) -> [P::Mac; 2] {
    let [r0, r1, r2, r3, s0, s1, s2, s3] = *one_time_keys;
    let [r_low, r_high] = [join(r0, r1), join(r2, r3)];
    let [s_low, s_high] = [join(s0, s1), join(s2, s3)];
    [
        P::Mac::new(processor, [r_low[0], r_high[0]], [s_low[0], s_high[0]]),
        P::Mac::new(processor, [r_low[1], r_high[1]], [s_low[1], s_high[1]]),
    ]
}

#[inline(always)]
fn join<W: Words>(low: W, high: W) -> [W::Limbs; 2] {
    let [low, high] = [low.widen(), high.widen()];
    [low[0] | high[0].shl::<32>(), low[1] | high[1].shl::<32>()]
}

/// The tags of as many records as `macs` have lanes.
///
/// All texts but the last have one length. A last one that is shorter starts `late`, so that all end
/// together.
#[inline(always)]
fn tags<P: Processor, const N: usize>(
    processor: P,
    mut macs: [P::Mac; N],
    run: &Run<'_>,
) -> [[u64; 2]; WIDEST] {
    let lanes = P::BLOCKS / 2;
    let (last, len, last_len) = (run.last, run.len, run.last_len);
    let pieces = len.div_ceil(PIECE_LEN);
    let late = pieces - last_len.div_ceil(PIECE_LEN);

    // Where every text has a piece, and has it in full.
    let whole = late..(len / PIECE_LEN).min(late + last_len / PIECE_LEN);
    let mut texts: [&[[u8; PIECE_LEN]]; WIDEST] = [&[]; WIDEST];
    if !whole.is_empty() {
        for (lane, text) in texts.iter_mut().enumerate() {
            // A lane without a record repeats the first, and nobody asks for its tag.
            let record = if lane <= last { lane } else { 0 };
            let start = if record == last { 0 } else { late };
            *text = &run.text(record).as_chunks().0[start..start + whole.len()];
        }
    }
    let one = processor.limb(1);
    let mut powers = [const { None }; N];
    if whole.len() >= POWERS_FROM {
        for (mac, powers) in macs.iter().zip(&mut powers) {
            *powers = Some(mac.powers());
        }
    }
    let mut at = 0;
    while at < pieces {
        if !whole.contains(&at) {
            for (half, mac) in macs.iter_mut().enumerate() {
                let (pieces, tops) = padded(run, half * lanes, at, late);
                let piece = processor.gather(|lane| &pieces[lane]);
                mac.absorb(piece, processor.limbs(&tops));
            }
            at += 1;
        } else if whole.end - at >= 4 {
            absorb_four(processor, &mut macs, &powers, &texts, at - whole.start);
            at += 4;
        } else if whole.end - at >= 2 {
            absorb::<P, N, 2>(processor, &mut macs, &texts, at - whole.start);
            at += 2;
        } else {
            absorb::<P, N, 1>(processor, &mut macs, &texts, at - whole.start);
            at += 1;
        }
    }

    // No additional data, and the length of the text (section 2.8).
    let mut tags = [[0; 2]; WIDEST];
    for (half, mac) in macs.iter_mut().enumerate() {
        let first = half * lanes;
        let mut lens = [len as u64; WIDEST_LIMBS];
        if (first..first + lanes).contains(&last) {
            lens[last - first] = last_len as u64;
        }
        mac.absorb([processor.limb(0), processor.limbs(&lens)], one);
        let [low, high] = mac.finish();
        let (low, high) = (low.to_array(), high.to_array());
        for lane in 0..lanes {
            tags[first + lane] = [low[lane], high[lane]];
        }
    }
    tags
}

/// Absorbs four pieces of each text, which are there in full.
#[inline(always)]
fn absorb_four<P: Processor, const N: usize>(
    processor: P,
    macs: &mut [P::Mac; N],
    powers: &[Option<<P::Mac as Mac<P>>::Powers>; N],
    texts: &[&[[u8; PIECE_LEN]]; WIDEST],
    at: usize,
) {
    let lanes = P::BLOCKS / 2;
    for ((mac, powers), texts) in macs.iter_mut().zip(powers).zip(texts.chunks(lanes)) {
        let texts = in_full::<4>(texts, at);
        let mut pieces = [[processor.limb(0); 2]; 4];
        for (i, piece) in pieces.iter_mut().enumerate() {
            *piece = processor.gather(|lane| &texts[lane][i]);
        }
        // A copy, since what is behind a reference would not stay in registers.
        let mut sum = *mac;
        match powers {
            Some(powers) => sum.absorb_four(powers, pieces),
            None => {
                for piece in pieces {
                    sum.absorb(piece, processor.limb(1));
                }
            }
        }
        *mac = sum;
    }
}

/// Absorbs `STEP` pieces of each text, which are there in full.
#[inline(always)]
fn absorb<P: Processor, const N: usize, const STEP: usize>(
    processor: P,
    macs: &mut [P::Mac; N],
    texts: &[&[[u8; PIECE_LEN]]; WIDEST],
    at: usize,
) {
    let lanes = P::BLOCKS / 2;
    for (mac, texts) in macs.iter_mut().zip(texts.chunks(lanes)) {
        let texts = in_full::<STEP>(texts, at);
        // As above.
        let mut sum = *mac;
        #[allow(
            clippy::needless_range_loop,
            reason = "it is the second index, not the first"
        )]
        for i in 0..STEP {
            let piece = processor.gather(|lane| &texts[lane][i]);
            sum.absorb(piece, processor.limb(1));
        }
        *mac = sum;
    }
}

/// `STEP` pieces of each text, which are there.
#[inline(always)]
fn in_full<'a, const STEP: usize>(
    texts: &[&'a [[u8; PIECE_LEN]]],
    at: usize,
) -> [&'a [[u8; PIECE_LEN]; STEP]; WIDEST_LIMBS] {
    let mut pieces = [&[[0; PIECE_LEN]; STEP]; WIDEST_LIMBS];
    for (pieces, text) in pieces.iter_mut().zip(texts) {
        *pieces = text[at..].first_chunk().expect("as many pieces are there");
    }
    pieces
}

/// The pieces number `at` of the records from `first` on, filled up with zeros, and 1 for each that
/// is there.
fn padded(
    run: &Run<'_>,
    first: usize,
    at: usize,
    late: usize,
) -> ([[u8; PIECE_LEN]; WIDEST_LIMBS], [u64; WIDEST_LIMBS]) {
    let last = run.last;
    let mut pieces = [[0; PIECE_LEN]; WIDEST_LIMBS];
    let mut there = [0; WIDEST_LIMBS];
    for lane in 0..WIDEST_LIMBS.min(run.records().saturating_sub(first)) {
        let record = first + lane;
        let start = if record == last { late } else { 0 };
        if let Some(at) = at.checked_sub(start) {
            let text = &run.text(record)[at * PIECE_LEN..];
            let len = text.len().min(PIECE_LEN);
            pieces[lane][..len].copy_from_slice(&text[..len]);
            there[lane] = 1;
        }
    }
    (pieces, there)
}
