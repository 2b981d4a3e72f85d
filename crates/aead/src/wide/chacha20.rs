//! ChaCha20 (RFC 8439, section 2.3) with a block in each lane, whichever record it is for.

use super::lanes::{Processor, Words};
use crate::KEY_LEN;

/// Length of a block in bytes.
pub(crate) const BLOCK_LEN: usize = 64;

/// The most blocks that any processor makes in one pass.
pub(crate) const WIDEST: usize = 16;

/// "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The number of each lane.
const ORDINALS: [u32; WIDEST] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The blocks that one pass has made.
#[repr(align(64))]
pub(crate) struct Keystream(pub(crate) [[u8; BLOCK_LEN]; WIDEST]);

/// Which blocks of which records are made, pass by pass.
///
/// Block 0 of every record comes before all others, since it holds the one-time key; then come the
/// blocks of the first text, of the second, and so on.
pub(crate) struct Schedule<'a> {
    /// One for each record.
    counters: &'a [u64],
    /// Records from here on have no text: the last may be empty, or all are.
    end: usize,
    /// Blocks of every text but the last, and of the last.
    full: u32,
    last: u32,
    /// What the next lane makes; before the first pass it is block 0.
    record: usize,
    block: u32,
}

/// The blocks of one pass. Lanes from `used` on make what nobody needs.
pub(crate) struct Pass<W> {
    pub(crate) used: usize,
    spans: [Span; WIDEST],
    /// How many of these there are.
    texts: usize,
    block: W,
    /// The words of the record's counter.
    low: W,
    high: W,
}

/// Blocks of one text side by side.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Span {
    pub(crate) record: usize,
    /// Where they are in the text, in bytes.
    pub(crate) start: usize,
    /// The lane that makes the first of them.
    pub(crate) lane: usize,
    pub(crate) blocks: usize,
}

impl<W: Words> Pass<W> {
    /// One without a block.
    #[inline(always)]
    pub(crate) fn new<P: Processor<Words = W>>(processor: P) -> Self {
        Self {
            used: 0,
            spans: [Span::default(); WIDEST],
            texts: 0,
            block: processor.word(0),
            low: processor.word(0),
            high: processor.word(0),
        }
    }

    /// The blocks of texts that it makes.
    #[inline(always)]
    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans[..self.texts]
    }
}

impl<'a> Schedule<'a> {
    #[inline(always)]
    pub(crate) fn new(counters: &'a [u64], full: u32, last: u32) -> Self {
        debug_assert!(last <= full);
        let all_but_last = if full == 0 { 0 } else { counters.len() - 1 };
        Self {
            counters,
            end: all_but_last + usize::from(last > 0),
            full,
            last,
            record: 0,
            block: 0,
        }
    }

    /// Puts the next blocks into a pass, as many as there are lanes, which are no fewer than the records. It
    /// uses no lane when everything has been made.
    #[inline(always)]
    pub(crate) fn next<P: Processor>(&mut self, processor: P, pass: &mut Pass<P::Words>) {
        let mut lane = 0;
        if self.block == 0 {
            let mut words = [[0; WIDEST]; 2];
            let [low, high] = &mut words;
            for ((&counter, low), high) in self.counters.iter().zip(low).zip(high) {
                *low = counter as u32;
                *high = (counter >> 32) as u32;
            }
            pass.block = processor.word(0);
            pass.low = processor.words(&words[0]);
            pass.high = processor.words(&words[1]);
            lane = self.counters.len();
            self.block = 1;
        }
        pass.texts = 0;
        let ordinals = processor.words(&ORDINALS);
        while lane < P::BLOCKS && self.record < self.end {
            let is_last = self.record + 1 == self.counters.len();
            let left = if is_last { self.last } else { self.full } - (self.block - 1);
            let blocks = (left as usize).min(P::BLOCKS - lane);
            let counter = self.counters[self.record];
            // The lane with number `lane` has this block, the one behind it the next one.
            let first = processor.word(self.block.wrapping_sub(lane as u32));
            pass.block = pass.block.splice(lane, ordinals + first);
            pass.low = pass.low.splice(lane, processor.word(counter as u32));
            let high = processor.word((counter >> 32) as u32);
            pass.high = pass.high.splice(lane, high);
            pass.spans[pass.texts] = Span {
                record: self.record,
                start: (self.block as usize - 1) * BLOCK_LEN,
                lane,
                blocks,
            };
            pass.texts += 1;
            lane += blocks;
            if blocks < left as usize {
                self.block += blocks as u32;
            } else {
                (self.record, self.block) = (self.record + 1, 1);
            }
        }
        pass.used = lane;
    }
}

/// What is the same in all lanes: the key, and the first word of the nonce.
#[derive(Clone, Copy)]
pub(crate) struct Shared<W> {
    key: [W; 8],
    nonce: W,
}

impl<W: Words> Shared<W> {
    #[inline(always)]
    pub(crate) fn new<P: Processor<Words = W>>(
        processor: P,
        key: &[u8; KEY_LEN],
        nonce: [u8; 4],
    ) -> Self {
        let (words, _) = key.as_chunks();
        // Not by a closure, which is not always inlined into what has the instructions.
        let mut key = [processor.word(0); 8];
        for (lanes, word) in key.iter_mut().zip(words) {
            *lanes = processor.word(u32::from_le_bytes(*word));
        }
        Self {
            key,
            nonce: processor.word(u32::from_le_bytes(nonce)),
        }
    }
}

/// One block in every lane (section 2.3.1), as words.
#[inline(always)]
pub(crate) fn blocks<P: Processor>(
    processor: P,
    shared: &Shared<P::Words>,
    pass: &Pass<P::Words>,
) -> [P::Words; 16] {
    let [c0, c1, c2, c3] = CONSTANTS;
    let [c0, c1, c2, c3] = [
        processor.word(c0),
        processor.word(c1),
        processor.word(c2),
        processor.word(c3),
    ];
    let [k0, k1, k2, k3, k4, k5, k6, k7] = shared.key;
    let block = pass.block;
    let n0 = shared.nonce;
    let n1 = pass.low;
    let n2 = pass.high;
    let start = [
        c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, block, n0, n1, n2,
    ];
    let mut state = start;
    for _ in 0..10 {
        quarter_round(&mut state, [0, 4, 8, 12]);
        quarter_round(&mut state, [1, 5, 9, 13]);
        quarter_round(&mut state, [2, 6, 10, 14]);
        quarter_round(&mut state, [3, 7, 11, 15]);
        quarter_round(&mut state, [0, 5, 10, 15]);
        quarter_round(&mut state, [1, 6, 11, 12]);
        quarter_round(&mut state, [2, 7, 8, 13]);
        quarter_round(&mut state, [3, 4, 9, 14]);
    }
    for (word, start) in state.iter_mut().zip(start) {
        *word = *word + start;
    }
    state
}

/// Section 2.1.
#[inline(always)]
fn quarter_round<W: Words>(state: &mut [W; 16], [a, b, c, d]: [usize; 4]) {
    state[a] = state[a] + state[b];
    state[d] = (state[d] ^ state[a]).rotate_left::<16>();
    state[c] = state[c] + state[d];
    state[b] = (state[b] ^ state[c]).rotate_left::<12>();
    state[a] = state[a] + state[b];
    state[d] = (state[d] ^ state[a]).rotate_left::<8>();
    state[c] = state[c] + state[d];
    state[b] = (state[b] ^ state[c]).rotate_left::<7>();
}
