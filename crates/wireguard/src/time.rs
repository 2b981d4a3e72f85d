//! The protocol's two clocks, both read by the caller.
//!
//! [`Instant`] is for timers and ages: time since boot, suspend included (`CLOCK_BOOTTIME`), so
//! that keys grow old while a machine sleeps. [`Tai64n`] is the wall time that an initiation
//! carries against replay; [`Tai64nClock`] makes sure that it never goes backwards.

use std::fmt;
use std::num::NonZero;
use std::ops::Add;
use std::time::Duration;

use warren_config::WallTime;

/// A point in time, in nanoseconds since boot.
///
/// All arithmetic saturates: a clock that jumps, either way, never causes a panic. Never 0, so that an
/// `Option` of it, of which a peer has a dozen, is no larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(NonZero<u64>);

const _: () = assert!(size_of::<Option<Instant>>() == size_of::<Instant>());

/// A TAI64N timestamp, as initiations carry it. Orders as time does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tai64n([u8; Tai64n::LEN]);

/// Issues the timestamps of initiations, strictly increasing whatever wall time does.
///
/// The responder keeps the greatest timestamp that it has seen and refuses what is not greater,
/// so a clock that was set back, or a restart while it was, would lock a node out. Hence the
/// *ceiling*: a timestamp that the caller has put on disk before any timestamp beyond the one on
/// disk is issued. A clock that resumes from a ceiling issues greater timestamps only.
#[derive(Debug)]
pub struct Tai64nClock {
    last: Tai64n,
    /// Nothing greater may be issued; `None` where the caller cannot keep one.
    ceiling: Option<Tai64n>,
}

/// The next timestamp is beyond the ceiling: write this one to disk, call
/// [`Tai64nClock::ceiling_written`], and ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CeilingReached(pub Tai64n);

/// How far ahead of wall time a ceiling is set, and so how often one is written.
const CEILING_AHEAD: Duration = Duration::from_secs(600);
/// How far ahead of the last timestamp it is at least. Small, since a node that restarts in a loop
/// moves ahead of wall time by this much each time.
const CEILING_AHEAD_OF_LAST: Duration = Duration::from_secs(1);
/// The label of 1970-01-01 00:00:10 TAI.
const TAI64_EPOCH: u64 = (1 << 62) + 10;
const NANOS_PER_SEC: u64 = 1_000_000_000;
/// What a timestamp tells of the local clock is rounded to 2^24 ns, 17 ms, as in the kernel.
const WHITENING: u64 = 1 << 24;

impl Instant {
    /// The point in time `nanos` nanoseconds after boot. The boot itself is taken for a nanosecond later.
    pub const fn from_nanos(nanos: u64) -> Self {
        match NonZero::new(nanos) {
            Some(nanos) => Self(nanos),
            None => Self(NonZero::<u64>::MIN),
        }
    }

    /// Nanoseconds since boot, at least 1.
    pub const fn as_nanos(self) -> u64 {
        self.0.get()
    }

    /// The time from `earlier` to this, zero if `earlier` is in fact later.
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.as_nanos().saturating_sub(earlier.as_nanos()))
    }

    /// The later point in time, or the end of all.
    pub const fn saturating_add(self, duration: Duration) -> Self {
        let nanos = duration.as_nanos();
        if nanos > u64::MAX as u128 {
            return Self(NonZero::<u64>::MAX);
        }
        Self(self.0.saturating_add(nanos as u64))
    }
}

/// Saturates, as everything here.
impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        self.saturating_add(duration)
    }
}

impl Tai64n {
    /// Length on the wire in bytes.
    pub const LEN: usize = 12;
    /// Before every timestamp that is ever issued.
    pub const ZERO: Self = Self([0; Self::LEN]);

    /// As it is on the wire. Any bytes are a timestamp; all that the protocol does is compare.
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// As it is on the wire.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Wall time, rounded down so that it does not tell the local clock too exactly.
    fn whitened(wall: WallTime) -> Self {
        let nanos = u64::from(wall.0.subsec_nanos()) & !(WHITENING - 1);
        Self::new(TAI64_EPOCH.saturating_add(wall.0.as_secs()), nanos)
    }

    fn new(seconds: u64, nanos: u64) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&(nanos as u32).to_be_bytes());
        Self(bytes)
    }

    fn after(self, duration: Duration) -> Self {
        let (seconds, nanos) = self.0.split_at(8);
        let seconds = u64::from_be_bytes(seconds.try_into().expect("8 bytes"));
        let nanos = u32::from_be_bytes(nanos.try_into().expect("4 bytes"));
        let nanos = u64::from(nanos) + u64::from(duration.subsec_nanos());
        let seconds = seconds.saturating_add(duration.as_secs() + nanos / NANOS_PER_SEC);
        Self::new(seconds, nanos % NANOS_PER_SEC)
    }
}

impl fmt::Debug for Tai64n {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tai64n(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

impl Tai64nClock {
    /// A clock that knows nothing of earlier runs and is not asked to remember this one.
    ///
    /// If wall time goes backwards across a restart, peers refuse this node until it has caught up.
    pub const fn without_ceiling() -> Self {
        Self {
            last: Tai64n::ZERO,
            ceiling: None,
        }
    }

    /// A clock that continues above what earlier runs may have issued. `ceiling` is the last that
    /// was written, or [`Tai64n::ZERO`] on the first run.
    pub const fn resume(ceiling: Tai64n) -> Self {
        Self {
            last: ceiling,
            ceiling: Some(ceiling),
        }
    }

    /// The last timestamp that was issued, from which another process may resume.
    pub const fn last(&self) -> Tai64n {
        self.last
    }

    /// A timestamp greater than every one before, wall time where that is greater.
    pub fn stamp(&mut self, wall: WallTime) -> Result<Tai64n, CeilingReached> {
        let stamp = Tai64n::whitened(wall).max(self.last.after(Duration::from_nanos(1)));
        if let Some(ceiling) = self.ceiling
            && stamp > ceiling
        {
            let ahead = Tai64n::whitened(wall).after(CEILING_AHEAD);
            return Err(CeilingReached(
                ahead.max(stamp.after(CEILING_AHEAD_OF_LAST)),
            ));
        }
        self.last = stamp;
        Ok(stamp)
    }

    /// The ceiling that [`CeilingReached`] asked for is on disk.
    pub fn ceiling_written(&mut self, ceiling: Tai64n) {
        self.ceiling = self.ceiling.max(Some(ceiling));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(millis: u64) -> WallTime {
        WallTime(Duration::from_millis(millis))
    }

    #[test]
    fn a_timestamp_is_tai64n() {
        // 2001-09-09 01:46:40 UTC, with the ten seconds that WireGuard's implementations add.
        let mut clock = Tai64nClock::without_ceiling();
        let stamp = clock.stamp(wall(1_000_000_000_500)).expect("no ceiling");
        assert_eq!(
            stamp.as_bytes()[..8],
            0x4000_0000_3b9a_ca0a_u64.to_be_bytes()
        );
        let nanos = u32::from_be_bytes(stamp.as_bytes()[8..].try_into().expect("4 bytes"));
        assert!((483_222_785..=500_000_000).contains(&nanos), "{nanos}");
        assert_eq!(nanos % (1 << 24), 0);
    }

    #[test]
    fn tai64n_never_goes_backwards_when_the_clock_does() {
        let mut clock = Tai64nClock::without_ceiling();
        let mut last = Tai64n::ZERO;
        for now in [5_000, 5_000, 5_001, 4_000, 0, 6_000, 5_999] {
            let stamp = clock.stamp(wall(now)).expect("no ceiling");
            assert!(stamp > last, "at {now}");
            last = stamp;
        }
    }

    #[test]
    fn tai64n_never_goes_backwards_across_restarts() {
        let mut on_disk = Tai64n::ZERO;
        let mut last = Tai64n::ZERO;
        let mut writes = 0;
        // Wall time is set back by an hour before the third run.
        for start in [7_200_000, 7_201_000, 3_600_000, 3_700_000, 7_300_000] {
            let mut clock = Tai64nClock::resume(on_disk);
            for i in 0..100 {
                let now = wall(start + i * 100);
                let stamp = clock.stamp(now).or_else(|CeilingReached(ceiling)| {
                    on_disk = ceiling;
                    writes += 1;
                    clock.ceiling_written(ceiling);
                    clock.stamp(now)
                });
                let stamp = stamp.expect("the ceiling was just raised");
                assert!(stamp > last);
                assert!(stamp <= on_disk, "the ceiling is written ahead");
                last = stamp;
            }
        }
        assert!(writes <= 5, "{writes} writes for 5 runs");
    }

    #[test]
    fn time_at_its_ends_saturates() {
        let end = Instant::from_nanos(u64::MAX);
        assert_eq!(end + Duration::MAX, end);
        let boot = Instant::from_nanos(0);
        assert_eq!(boot.saturating_duration_since(end), Duration::ZERO);
        assert_eq!(boot, Instant::from_nanos(1));
        let far = WallTime(Duration::MAX);
        let mut clock = Tai64nClock::without_ceiling();
        assert!(clock.stamp(far).is_ok() && clock.stamp(far).is_ok());
    }
}
