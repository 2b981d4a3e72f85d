//! The only place that asks the system for the time.

use rustix::time::{ClockId, clock_gettime};
use warren_config::WallTime;
use warren_wireguard::time::Instant;

/// Time since boot. Includes suspend, so that keys age while a machine sleeps.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    Instant::from_nanos(nanos(time.tv_sec, time.tv_nsec))
}

/// Wall time, for the timestamps in initiations and for people.
pub(crate) fn wall() -> WallTime {
    let time = clock_gettime(ClockId::Realtime);
    WallTime(std::time::Duration::from_nanos(nanos(
        time.tv_sec,
        time.tv_nsec,
    )))
}

fn nanos(seconds: i64, nanos: i64) -> u64 {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    let nanos = u64::try_from(nanos).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
