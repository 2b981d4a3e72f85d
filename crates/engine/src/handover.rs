//! Which thread of a worker has the way out.
//!
//! The thread that has the way in has the way out, too, while there is little to do: an echo that
//! wakes one thread is back sooner than one that wakes two. Of much it gives the other the way out, and gets it back
//! when there is little again in both directions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use warren_wireguard::time::Instant;

use crate::poll::Wake;

/// So much within [`MUCH_WITHIN`] is work for two threads: some 500 Mbit/s, or 64,000 small packets a second.
const MUCH: usize = 65536;
const MUCH_WITHIN: Duration = Duration::from_millis(1);
/// So much of it on the way in alone keeps the way out with its own thread, so that what is about as much as
/// [`MUCH`] does not go to and fro.
const STILL_MUCH: usize = MUCH / 2;
/// Less than [`MUCH`] within so long is work for one.
const LITTLE_WITHIN: Duration = Duration::from_millis(10);
/// What a packet of no bytes counts for.
const PACKET_LOAD: usize = 1024;

/// What the two threads of a worker share: the way out (`T`) on its way from one to the other, and when there last was
/// much on the way in alone, in nanoseconds since boot.
#[derive(Debug)]
pub(crate) struct Desk<T> {
    way_out: Mutex<Option<T>>,
    busy_at: AtomicU64,
}

impl<T> Default for Desk<T> {
    fn default() -> Self {
        Self {
            way_out: Mutex::default(),
            busy_at: AtomicU64::new(0),
        }
    }
}

/// One thread's side of it.
#[derive(Debug)]
pub(crate) struct Handover<T> {
    other: Arc<Wake>,
    desk: Arc<Desk<T>>,
    has_way_in: bool,
    pace: Pace,
    is_sparse: bool,
}

impl<T> Handover<T> {
    pub(crate) fn new(
        other: Arc<Wake>,
        desk: Arc<Desk<T>>,
        has_way_in: bool,
        now: Instant,
    ) -> Self {
        let pace = Pace::new(now);
        Self {
            other,
            desk,
            has_way_in,
            pace,
            is_sparse: false,
        }
    }

    /// Whether there was little to do when the thread without the way in last looked.
    pub(crate) fn is_sparse(&self) -> bool {
        self.is_sparse
    }

    /// So many packets of so many bytes together were moved.
    pub(crate) fn count(&mut self, packets: usize, bytes: usize) {
        self.pace.count(packets, bytes);
    }

    /// Whether it is time that the other thread has the way out, if this one has it.
    pub(crate) fn is_due(&mut self, has_way_out: bool, now: Instant) -> bool {
        match self.has_way_in {
            true if has_way_out => self.pace.is_much(MUCH, now),
            true => {
                if self.pace.is_much(STILL_MUCH, now) {
                    self.desk.busy_at.store(now.as_nanos(), Ordering::Relaxed);
                }
                false
            }
            false => {
                let is_little = self.pace.is_little(now);
                self.is_sparse = is_little.unwrap_or(self.is_sparse);
                is_little == Some(true) && self.is_way_in_idle(now)
            }
        }
    }

    /// Few answers go out while much comes in, and to take turns at them would cost more than they do.
    fn is_way_in_idle(&self, now: Instant) -> bool {
        let busy_at = Instant::from_nanos(self.desk.busy_at.load(Ordering::Relaxed));
        now.saturating_duration_since(busy_at) >= LITTLE_WITHIN
    }

    /// The other thread has the way out from now on.
    pub(crate) fn give(&mut self, way_out: T) {
        self.is_sparse = false;
        *(self.desk.way_out.lock()).unwrap_or_else(PoisonError::into_inner) = Some(way_out);
        self.other.wake();
    }

    /// The way out, if the other thread has given it.
    pub(crate) fn take(&mut self, now: Instant) -> Option<T> {
        let way_out = (self.desk.way_out.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        self.pace = Pace::new(now);
        self.is_sparse = false;
        Some(way_out)
    }
}

/// How much a thread has to do, in the time since `since`.
#[derive(Debug)]
struct Pace {
    since: Instant,
    load: usize,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            load: 0,
        }
    }

    fn count(&mut self, packets: usize, bytes: usize) {
        self.load += packets * PACKET_LOAD + bytes;
    }

    fn is_much(&mut self, much: usize, now: Instant) -> bool {
        let is_much = self.load >= much;
        if is_much || now.saturating_duration_since(self.since) >= MUCH_WITHIN {
            *self = Self::new(now);
        }
        is_much
    }

    /// `None` while it is too early to say.
    fn is_little(&mut self, now: Instant) -> Option<bool> {
        if now.saturating_duration_since(self.since) < LITTLE_WITHIN {
            return None;
        }
        let is_little = self.load < MUCH;
        *self = Self::new(now);
        Some(is_little)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both sides, and a clock in milliseconds.
    fn sides() -> (Handover<()>, Handover<()>) {
        let desk = Arc::new(Desk::default());
        let mut sides = [true, false].map(|has_way_in| {
            let wake = Arc::new(Wake::new().expect("an eventfd"));
            Handover::new(wake, Arc::clone(&desk), has_way_in, at(0))
        });
        let [inward, outward] = &mut sides;
        outward.give(());
        assert_eq!(inward.take(at(0)), Some(()));
        assert_eq!(inward.take(at(0)), None, "it is had once");
        let [inward, outward] = sides;
        (inward, outward)
    }

    fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 + milliseconds * 1_000_000)
    }

    #[test]
    fn much_in_a_millisecond_is_work_for_two() {
        let (mut inward, mut outward) = sides();
        inward.count(1, 65000);
        assert!(inward.is_due(true, at(0)), "of bytes");
        inward.give(());
        assert_eq!(outward.take(at(0)), Some(()));
        let (mut inward, _) = sides();
        inward.count(64, 0);
        assert!(inward.is_due(true, at(0)), "of packets");
        let (mut inward, _) = sides();
        for millisecond in 1..100 {
            inward.count(20, 20_000);
            assert!(
                !inward.is_due(true, at(millisecond)),
                "as much in a longer time"
            );
        }
    }

    #[test]
    fn little_in_both_directions_is_work_for_one() {
        let (mut inward, mut outward) = sides();
        outward.count(10, 600);
        assert!(!outward.is_due(true, at(9)), "too early to say");
        assert!(outward.is_due(true, at(10)));
        for ten in 2..9 {
            inward.count(10, 30_000);
            assert!(!inward.is_due(false, at(10 * ten - 1)), "it has none");
            outward.count(10, 600);
            assert!(
                !outward.is_due(true, at(10 * ten)),
                "acknowledgements of much"
            );
            assert!(outward.is_sparse());
        }
        outward.count(100, 6000);
        assert!(!outward.is_due(true, at(90)), "much of its own");
        assert!(!outward.is_sparse());
        outward.count(10, 600);
        assert!(outward.is_due(true, at(100)));
        outward.give(());
        assert!(!outward.is_sparse(), "it has nothing");
    }
}
