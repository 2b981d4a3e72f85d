//! The clock of this command, which is its own outermost loop.

use std::time::{Duration, Instant, SystemTime};

use rustix::event::{Timespec, poll};

/// What time it is.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the outermost loop of the command"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Seconds since the Unix epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the outermost loop of the command"
)]
pub(crate) fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Lets time go by; a signal may end it early.
pub(crate) fn pause(duration: Duration) {
    let timeout = Timespec::try_from(duration).ok();
    let _interrupted = poll(&mut [], timeout.as_ref());
}
