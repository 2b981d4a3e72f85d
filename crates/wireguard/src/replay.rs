//! The replay window: which counters of a session have been seen (RFC 6479, the kernel's
//! `counter_validate`).
//!
//! A ring of words, one bit for each counter. Advancing clears whole words, so the window is one
//! word shorter than the ring. The ring starts empty and grows with the counters until it has its
//! full size, since most sessions of a large mesh carry a handful of keepalives and end.

use crate::REJECT_AFTER_MESSAGES;

const BITS_PER_WORD: u64 = u64::BITS as u64;
/// Words of the full ring: a power of two, so that places are found by masking.
const WORDS: usize = 128;
/// How far behind the greatest counter one may arrive and still be new.
pub const WINDOW: u64 = (WORDS as u64 - 1) * BITS_PER_WORD;

/// The counters seen of one session. Only authenticated ones are ever shown to it.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// One more than the greatest counter seen; 0 for none.
    next: u64,
    /// Counter `c` is bit `c % 64` of word `c / 64 % len`.
    ring: Vec<u64>,
}

impl Window {
    /// Nothing seen yet.
    pub const fn new() -> Self {
        Self {
            next: 0,
            ring: Vec::new(),
        }
    }

    /// Marks a counter as seen. `false` if it was before, or is too old to tell, or is beyond what
    /// a session may use.
    pub fn accept(&mut self, counter: u64) -> bool {
        if counter >= REJECT_AFTER_MESSAGES
            || counter.saturating_add(WINDOW) < self.next.saturating_sub(1)
        {
            return false;
        }
        self.advance(counter);
        let place = self.place(counter / BITS_PER_WORD);
        let bit = 1 << (counter % BITS_PER_WORD);
        let seen = self.ring[place] & bit != 0;
        self.ring[place] |= bit;
        !seen
    }

    /// One more than the greatest counter seen, and the ring, for [`Self::restore`].
    pub fn export(&self) -> (u64, &[u64]) {
        (self.next, &self.ring)
    }

    /// What [`Self::export`] gave. A ring of a length that it never has counts as "all seen".
    pub fn restore(next: u64, ring: &[u64]) -> Self {
        let grown = usize::try_from(next.div_ceil(BITS_PER_WORD))
            .unwrap_or(WORDS)
            .min(WORDS);
        let fits = ring.len() <= WORDS
            && ring.len() >= grown
            && (ring.is_empty() || ring.len().is_power_of_two());
        let ring = if fits {
            ring.to_vec()
        } else {
            vec![u64::MAX; WORDS]
        };
        Self { next, ring }
    }

    /// Makes the window reach up to `counter`.
    fn advance(&mut self, counter: u64) {
        if counter < self.next {
            return;
        }
        let word = counter / BITS_PER_WORD;
        self.grow(word);
        // The words from behind the last greatest counter's to the new one's hold old counters.
        let last = self.next.saturating_sub(1) / BITS_PER_WORD;
        for stale in last + 1..=word.min(last + self.ring.len() as u64) {
            let place = self.place(stale);
            self.ring[place] = 0;
        }
        self.next = counter + 1;
    }

    /// Until the ring is full, word `i` is at place `i`: growing moves nothing.
    fn grow(&mut self, word: u64) {
        if self.ring.len() == WORDS {
            return;
        }
        let needed = usize::try_from(word).map_or(WORDS, |word| word.saturating_add(1).min(WORDS));
        if needed > self.ring.len() {
            self.ring.resize(needed.next_power_of_two(), 0);
        }
    }

    fn place(&self, word: u64) -> usize {
        word as usize & (self.ring.len() - 1)
    }
}
