//! Whether a queue stands before a reader, and when a sender is to be told.
//!
//! What has come and was not read waits in the socket's buffer, megabytes of it, and nothing passes it there: it is
//! sealed. A TCP flow whose window is larger than what its way takes leaves the rest there. It does not stand still:
//! it comes as one lump in each round trip, read after read is full, and then none is, so that CoDel
//! (RFC 8289), which looks for the least wait of a tenth of a second, sees no queue. All other flows wait behind each lump.
//!
//! So what counts is how much is read before the socket is empty. More than [`LUMP_BYTES`] and one packet tells
//! its sender, by a mark or by its loss, and no other within [`PAUSE`], in which the sender answers.

use std::time::Duration;

use warren_wireguard::time::Instant;

/// What one may find in a socket without that anybody is told: three reads of as many segments as they take, and a
/// millisecond and a half of the fastest core that was measured. A reader that waits four milliseconds for its core finds as much at 3 Gb/s.
const LUMP_BYTES: usize = 1_500_000;

/// For how long nobody else is told. A flow in a data centre has answered by then; one through the world has not, but
/// takes all that it is told within one round trip for one.
const PAUSE: Duration = Duration::from_millis(10);

/// What a reader has found since its socket was empty.
#[derive(Debug)]
pub(crate) struct Standing {
    found: usize,
    /// Until then nobody is told.
    pause: Instant,
}

impl Standing {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            found: 0,
            pause: now,
        }
    }

    /// After a read of `bytes`, which left the socket empty or not: whether one of its packets is to tell its sender.
    pub(crate) fn is_told(&mut self, bytes: usize, left_empty: bool, now: Instant) -> bool {
        if left_empty {
            self.found = 0;
            return false;
        }
        self.found = self.found.saturating_add(bytes);
        let told = self.found > LUMP_BYTES && now >= self.pause;
        if told {
            self.found = 0;
            self.pause = now + PAUSE;
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 8 * 45 * 1452;

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 + micros * 1000)
    }

    #[test]
    fn nobody_is_told_of_what_is_read_at_once() {
        let mut standing = Standing::new(at(0));
        for round in 0..1000 {
            assert!(!standing.is_told(READ, false, at(round * 3000)));
            assert!(!standing.is_told(READ, false, at(round * 3000 + 500)));
            assert!(!standing.is_told(READ, true, at(round * 3000 + 1000)));
        }
    }

    #[test]
    fn one_is_told_of_a_lump() {
        let mut standing = Standing::new(at(0));
        let told: Vec<_> = (0..8)
            .map(|read| standing.is_told(READ, read == 7, at(read * 500)))
            .collect();
        assert_eq!(
            told,
            [false, false, true, false, false, false, false, false]
        );
    }

    #[test]
    fn the_next_one_is_told_when_the_first_had_time_to_answer() {
        let mut standing = Standing::new(at(0));
        let told: Vec<_> = (0..200)
            .map(|read| read * 500)
            .filter(|&micros| standing.is_told(READ, false, at(micros)))
            .collect();
        assert_eq!(told[0], 1000);
        assert!(told.len() > 5);
        for pair in told.windows(2) {
            assert!(pair[1] - pair[0] >= PAUSE.as_micros() as u64, "{told:?}");
        }
    }
}
