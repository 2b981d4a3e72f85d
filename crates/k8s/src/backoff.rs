//! When to ask again.

use std::time::Duration;

use tokio::time;

/// Before the first repetition.
const FIRST: Duration = Duration::from_millis(250);

/// Between repetitions at most.
const LAST: Duration = Duration::from_secs(30);

/// A server, or a proxy before it, that asks for more is asked again all the same.
const ASKED_MAX: Duration = Duration::from_secs(300);

/// Waits that double from one failure to the next.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Something worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure: at least as long as the server asked for, within bounds.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let wait = LAST.min(FIRST * 2_u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        // Whoever was refused together comes back one by one.
        asked.unwrap_or_default().min(ASKED_MAX) + jittered(wait)
    }

    /// Waits that long.
    pub(crate) async fn wait(&mut self, asked: Option<Duration>) {
        time::sleep(self.next(asked)).await;
    }
}

/// A duration less up to a third of it, by chance.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration - spread(duration / 3)
}

/// A duration between none and this one, by chance.
pub(crate) fn spread(duration: Duration) -> Duration {
    // Without randomness all wait as long, and nothing worse follows.
    let random = getrandom::u32().unwrap_or(0);
    duration.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over_once_something_worked() {
        let mut backoff = Backoff::default();
        let within = |wait: Duration, most: Duration| wait <= most && wait >= most * 2 / 3;
        for doubled in 0..7 {
            let wait = backoff.next(None);
            assert!(
                within(wait, FIRST * 2_u32.pow(doubled)),
                "{doubled}: {wait:?}"
            );
        }
        for _ in 0..100 {
            assert!(within(backoff.next(None), LAST));
        }
        backoff.reset();
        assert!(within(backoff.next(None), FIRST));
    }

    #[test]
    fn nobody_comes_back_before_the_time_that_the_server_asked_for() {
        let asked = Duration::from_secs(7);
        assert!(Backoff::default().next(Some(asked)) > asked);
    }

    #[test]
    fn who_failed_together_comes_back_one_by_one() {
        let waits = (0..50).map(|_| jittered(LAST));
        assert!(waits.collect::<std::collections::BTreeSet<_>>().len() > 40);
    }
}
