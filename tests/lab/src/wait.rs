//! Waiting without sleeping for longer than it takes.

use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until it is so, and says how long that took. Panics when it takes longer than `at_most`.
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "a test measures how long something takes"
)]
pub fn patiently(what: &str, at_most: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    let (_keep, never) = mpsc::channel::<()>();
    while !is_so() {
        assert!(start.elapsed() < at_most, "not within {at_most:?}: {what}");
        let _ = never.recv_timeout(PAUSE);
    }
    start.elapsed()
}
