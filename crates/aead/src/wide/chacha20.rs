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
    /// Records from here on have no text: the last may be empty, or all are.
    end: usize,
    /// Blocks of every text but the last, and of the last.
    full: u32,
    last: u32,
    /// What the next lane makes.
    record: usize,
    block: u32,
}

/// The blocks of one pass. Lanes from `used` on make what nobody needs.
#[derive(Default)]
pub(crate) struct Pass {
    pub(crate) used: usize,
    pub(crate) record: [usize; WIDEST],
    pub(crate) block: [u32; WIDEST],
    /// The words of the record's counter.
    low: [u32; WIDEST],
    high: [u32; WIDEST],
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

    /// Puts the next `lanes` blocks into a pass. It uses no lane when everything has been made.
    #[inline(always)]
    pub(crate) fn next(&mut self, lanes: usize, pass: &mut Pass) {
        pass.used = 0;
        for lane in 0..lanes {
            if self.record >= self.end && self.block > 0 {
                break;
            }
            let counter = self.counters[self.record];
            pass.record[lane] = self.record;
            pass.block[lane] = self.block;
            pass.low[lane] = counter as u32;
            pass.high[lane] = (counter >> 32) as u32;
            pass.used = lane + 1;
            self.step();
        }
    }

    #[inline(always)]
    fn step(&mut self) {
        let is_last = self.record + 1 == self.counters.len();
        let blocks = if is_last { self.last } else { self.full };
        match self.block {
            0 if is_last => (self.record, self.block) = (0, 1),
            0 => self.record += 1,
            block if block < blocks => self.block += 1,
            _ => (self.record, self.block) = (self.record + 1, 1),
        }
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
