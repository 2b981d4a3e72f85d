//! Whether a queue stands before a reader, and when a sender is to be told.
//!
//! What has come and was not read waits in the socket's buffer, megabytes of it, and nothing passes it
//! there: it is sealed. A TCP flow whose window is larger than what its way takes leaves the rest there.
//! It does not stand still: it comes as one lump in each round trip, read after read is full, and then
//! none is, so that CoDel (RFC 8289), which looks for the least wait of a tenth of a second, sees no
//! queue. All other flows wait behind each lump.
//!
//! So what counts is how much comes in reads that leave more behind. After [`LUMP_BYTES`] of it one packet
//! tells its sender, by a mark or by its loss, and no other within [`PAUSE`], in which the sender answers.

use std::time::Duration;

use warren_udp::Family;
use warren_wireguard::time::Instant;

/// What may come in reads that leave more behind before anybody is told: three reads of eight large
/// messages, a millisecond and a half of the fastest core that was measured. A reader that waits four
/// milliseconds for its core finds as much at 3 Gb/s.
const LUMP_BYTES: usize = 1_500_000;

/// A read that brings less does not count, even if it leaves more behind: its messages are short, and so
/// is what waits.
const LARGE_READ: usize = 256 << 10;

/// Nobody tells in a read that brings less, which is one large message: a lump may have ended with the read before, and
/// this may be others' altogether.
const TELLING_READ: usize = 60_000;

/// For how long no other is told, by this reader. A flow within a building has answered by then. One
/// through the world has not, but takes losses within one round trip for one (RFC 6675), as it does marks
/// (RFC 3168); DCTCP and L4S count each.
const PAUSE: Duration = Duration::from_millis(10);

/// What a reader of two sockets has found in them.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Since the socket was last empty.
    found: [usize; 2],
    /// Whether one of those that were left is to tell its sender, until one has.
    tells: [bool; 2],
    /// Until then nobody is told.
    pause: Instant,
}

impl Standing {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            found: [0; 2],
            tells: [false; 2],
            pause: now,
        }
    }

    /// The socket is empty.
    pub(crate) fn emptied(&mut self, family: Family) {
        self.found[family as usize] = 0;
        self.tells[family as usize] = false;
    }

    /// How much the next read has to bring for one of its packets to tell its sender, if any is to.
    pub(crate) fn tells(&self, family: Family) -> Option<usize> {
        self.tells[family as usize].then_some(TELLING_READ)
    }

    /// One of the packets of a read told its sender.
    pub(crate) fn told(&mut self, family: Family, now: Instant) {
        self.found[family as usize] = 0;
        self.tells[family as usize] = false;
        self.pause = now + PAUSE;
    }

    /// A read brought `bytes` of peers and left more behind.
    pub(crate) fn left_more(&mut self, family: Family, bytes: usize, now: Instant) {
        let found = &mut self.found[family as usize];
        if bytes < LARGE_READ {
            *found = 0;
            return;
        }
        *found = found.saturating_add(bytes);
        if *found > LUMP_BYTES && now >= self.pause {
            self.tells[family as usize] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight messages of as many records as one send takes.
    const READ: usize = 8 * 45 * 1452;

    /// Whether the read after this one tells.
    fn read(standing: &mut Standing, bytes: usize, micros: u64) -> bool {
        standing.left_more(Family::V4, bytes, at(micros));
        let tells = standing.tells(Family::V4).is_some();
        if tells {
            standing.told(Family::V4, at(micros));
        }
        tells
    }

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 + micros * 1000)
    }

    #[test]
    fn nobody_is_told_of_what_two_reads_bring() {
        let mut standing = Standing::new(at(0));
        for round in 0..1000 {
            assert!(!read(&mut standing, READ, round * 3000));
            assert!(!read(&mut standing, READ, round * 3000 + 500));
            standing.emptied(Family::V4);
        }
    }

    #[test]
    fn one_is_told_of_a_lump_whatever_the_other_socket_has() {
        let mut standing = Standing::new(at(0));
        let mut told = Vec::new();
        for number in 0..8 {
            told.push(read(&mut standing, READ, number * 500));
            standing.emptied(Family::V6);
            assert_eq!(standing.tells(Family::V6), None);
        }
        assert_eq!(
            told,
            [false, false, true, false, false, false, false, false]
        );
    }

    #[test]
    fn the_next_one_is_told_when_the_first_had_time_to_answer() {
        let mut standing = Standing::new(at(0));
        let told: Vec<_> = (0..200)
            .map(|number| number * 500)
            .filter(|&micros| read(&mut standing, READ, micros))
            .collect();
        assert_eq!(told[0], 1000);
        assert!(told.len() > 5);
        for pair in told.windows(2) {
            assert!(pair[1] - pair[0] >= PAUSE.as_micros() as u64, "{told:?}");
        }
    }

    #[test]
    fn who_has_been_read_meanwhile_is_not_told() {
        let mut standing = Standing::new(at(0));
        for micros in [0, 500, 1000] {
            standing.left_more(Family::V4, READ, at(micros));
        }
        assert!(standing.tells(Family::V4).is_some());
        standing.emptied(Family::V4);
        assert_eq!(standing.tells(Family::V4), None);
    }

    #[test]
    fn where_nobody_could_be_told_the_next_one_is() {
        let mut standing = Standing::new(at(0));
        for micros in [0, 500, 1000, 1500, 2000] {
            standing.left_more(Family::V4, READ, at(micros));
            assert_eq!(standing.tells(Family::V4).is_some(), micros >= 1000);
        }
        standing.told(Family::V4, at(2500));
        assert!(!read(&mut standing, READ, 12_000));
    }

    #[test]
    fn a_core_that_is_busy_with_short_messages_has_no_queue() {
        let mut standing = Standing::new(at(0));
        for number in 0..10_000 {
            assert!(!read(&mut standing, 8 * 1452, number * 10));
        }
    }
}
