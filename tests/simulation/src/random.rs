//! Chance from a seed.

use std::ops::Range;
use std::time::Duration;

use warren_engine::Entropy;

/// Splitmix64: enough to be different each time, and the same each time for one seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another sequence, which does not move with this one.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// 64 bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "a sequence that does not end is no iterator here"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of the range.
    pub fn below(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// A place in something of this length.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(0..len as u64) as usize
    }

    /// A time span of the range.
    pub fn duration(&mut self, range: &Range<Duration>) -> Duration {
        if range.is_empty() {
            return range.start;
        }
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        Duration::from_nanos(self.below(nanos(range.start)..nanos(range.end)))
    }

    /// True so many times in a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        self.below(0..1000) < chance
    }

    /// A key.
    pub fn key(&mut self) -> [u8; 32] {
        let mut key = [0; 32];
        self.fill(&mut key);
        key
    }
}

impl Entropy for Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
