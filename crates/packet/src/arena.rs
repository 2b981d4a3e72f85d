//! Memory that the kernel copies packets into and out of.

use std::ops::{Deref, DerefMut};

/// Where in a page an [`Arena`] begins: on a cache line, and far from where pages of sockets begin.
///
/// Linux copies from and to programs by `rep movsb`, which on AMD's Zen 3 is slow when the destination lies 1 to 31 bytes
/// higher in its page than the source in its own (docs/performance.md, "the cipher left out"). Large allocations of
/// glibc begin 16 bytes behind a page, and what comes from a socket mostly at one.
const BEGIN: usize = 1024;
const PAGE: usize = 4096;

/// Bytes of a fixed number, which begin a quarter into a page.
#[derive(Debug)]
pub struct Arena {
    bytes: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Arena {
    /// `len` zeros. They cost no memory before they are written.
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + PAGE];
        let address = bytes.as_ptr().addr();
        Self {
            begin: BEGIN.wrapping_sub(address) % PAGE,
            bytes,
            len,
        }
    }
}

impl Deref for Arena {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.begin..self.begin + self.len]
    }
}

impl DerefMut for Arena {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_begins_far_from_where_others_begin() {
        for len in [0, 1, 100, 5000, 1 << 20] {
            let mut arena = Arena::new(len);
            assert_eq!(arena.len(), len);
            assert_eq!(arena.as_ptr().addr() % PAGE, BEGIN);
            arena.fill(7);
            assert!(arena.iter().all(|&byte| byte == 7));
        }
    }
}
