//! ChaCha20 (RFC 8439, section 2.3) with a block in each lane, whichever record it is for.

use std::array;

use super::lanes::{Processor, Words};
use crate::KEY_LEN;

/// Length of a block in bytes.
pub(crate) const BLOCK_LEN: usize = 64;

/// The most blocks that any processor makes in one pass.
pub(crate) const WIDEST: usize = 16;

/// "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

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
    /// Blocks of every text but the last, and of the last.
    full: u32,
    last: u32,
    /// What the next lane makes.
    record: usize,
    block: u32,
}

/// The blocks of one pass. Lanes without a part make what nobody needs.
#[derive(Default)]
pub(crate) struct Pass {
    parts: [Part; WIDEST],
    used: usize,
    block: [u32; WIDEST],
    /// The words of the record's counter.
    low: [u32; WIDEST],
    high: [u32; WIDEST],
}

/// Blocks of one record, in lanes beside each other.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part {
    pub(crate) record: usize,
    pub(crate) block: u32,
    pub(crate) lane: usize,
    pub(crate) lanes: usize,
}

impl Pass {
    #[inline(always)]
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts[..self.used]
    }
}

impl<'a> Schedule<'a> {
    #[inline(always)]
    pub(crate) fn new(counters: &'a [u64], full: u32, last: u32) -> Self {
        Self {
            counters,
            full,
            last,
            record: 0,
            block: 0,
        }
    }

    /// Puts the next `lanes` blocks into a pass. It has no parts when everything has been made.
    #[inline(always)]
    pub(crate) fn next(&mut self, lanes: usize, pass: &mut Pass) {
        pass.used = 0;
        let mut lane = 0;
        while lane < lanes && self.record < self.counters.len() {
            let part = Part {
                record: self.record,
                block: self.block,
                lane,
                lanes: self.take(lanes - lane),
            };
            if part.lanes == 0 {
                // The text is empty.
                continue;
            }
            let counter = self.counters[part.record];
            for (block, lane) in (part.block..).zip(lane..lane + part.lanes) {
                pass.block[lane] = block;
                pass.low[lane] = counter as u32;
                pass.high[lane] = (counter >> 32) as u32;
            }
            lane += part.lanes;
            pass.parts[pass.used] = part;
            pass.used += 1;
        }
    }

    /// Goes on by the blocks of one record, and answers how many these are: at most as many as
    /// there are lanes.
    #[inline(always)]
    fn take(&mut self, lanes: usize) -> usize {
        let last = self.counters.len() - 1;
        if self.block == 0 {
            (self.record, self.block) = match self.record {
                record if record < last => (record + 1, 0),
                _ => (0, 1),
            };
            return 1;
        }
        let blocks = if self.record < last {
            self.full
        } else {
            self.last
        };
        let left = (blocks + 1 - self.block) as usize;
        if left > lanes {
            self.block += lanes as u32;
            return lanes;
        }
        (self.record, self.block) = (self.record + 1, 1);
        left
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
        Self {
            key: array::from_fn(|i| processor.word(u32::from_le_bytes(words[i]))),
            nonce: processor.word(u32::from_le_bytes(nonce)),
        }
    }
}

/// One block in every lane (section 2.3.1), as words.
#[inline(always)]
pub(crate) fn blocks<P: Processor>(
    processor: P,
    shared: &Shared<P::Words>,
    pass: &Pass,
) -> [P::Words; 16] {
    let [c0, c1, c2, c3] = CONSTANTS.map(|word| processor.word(word));
    let [k0, k1, k2, k3, k4, k5, k6, k7] = shared.key;
    let block = processor.words(&pass.block);
    let n0 = shared.nonce;
    let n1 = processor.words(&pass.low);
    let n2 = processor.words(&pass.high);
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
