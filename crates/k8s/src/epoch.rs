//! The number that tells one start of the daemon from the next.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Between two epochs that are published.
pub(crate) const PAUSE: Duration = Duration::from_secs(10);

/// The number of a start. Kept on disk from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Epoch {
    /// Greater than that of every start before. Seconds since 1970, where the clock is not behind.
    pub number: i64,
    /// When one was published last, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<i64>,
}

impl Epoch {
    /// The epoch of a start at `now`, in seconds since 1970, after that of the start before, and how
    /// long to hold it back: a daemon that is started in a loop writes one in ten seconds, not more,
    /// and all other nodes read each.
    pub fn next(last: Option<Self>, now: i64) -> (Self, Duration) {
        let last = last.unwrap_or_default();
        let number = now.max(last.number.saturating_add(1));
        let since = last
            .published
            .map_or(i64::MAX, |then| now.saturating_sub(then));
        // A clock that was set back says nothing of how long it was.
        let held = if since < 0 { 0 } else { since };
        let hold = PAUSE.saturating_sub(Duration::from_secs(held.unsigned_abs()));
        let published = last.published;
        (Self { number, published }, hold)
    }

    /// The same once it was published, at `now`.
    pub fn published_at(self, now: i64) -> Self {
        let published = Some(now);
        Self { published, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_greater_epoch_whatever_the_clock_says() {
        let mut last = None;
        for now in [1000, 1000, 500, 2000, 0, i64::MIN] {
            let (epoch, _) = Epoch::next(last, now);
            assert!(
                last.is_none_or(|last: Epoch| epoch.number > last.number),
                "{epoch:?}"
            );
            last = Some(epoch);
        }
        // A disk that was lost does not take it back while the clock is right.
        assert!(Epoch::next(None, 3000).0.number > Epoch::next(None, 2000).0.number);
    }

    #[test]
    fn at_most_one_epoch_is_published_in_ten_seconds() {
        let hold = |then: i64, now: i64| {
            let last = Epoch::next(None, then).0.published_at(then);
            Epoch::next(Some(last), now).1.as_secs()
        };
        assert_eq!(hold(1000, 1000), 10);
        assert_eq!(hold(1000, 1003), 7);
        assert_eq!(hold(1000, 1010), 0);
        // Not for years, where the clock was set back.
        assert_eq!(hold(1000, 10), 10);
        assert_eq!(Epoch::next(None, 1000).1.as_secs(), 0);
    }
}
