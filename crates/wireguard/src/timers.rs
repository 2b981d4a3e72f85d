//! The timers of a peer, and the one place that decides what arms and disarms them.
//!
//! The rest of the protocol reports facts, in the words of the kernel's `timers.c`; what follows
//! from a timer that expired is in `peer.rs`. All deadlines are exact, and an idle peer has none.
//!
//! Left out on purpose is the kernel's `timer_need_another_keepalive`: whatever is sent, a
//! keepalive included, answers all data that was received before.

use std::time::Duration;

use crate::peer::TimersState;
use crate::time::Instant;
use crate::{
    KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER,
};

/// What a peer may be waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The response to an initiation is late.
    Retransmit,
    /// Data was received, and nothing has been sent since.
    PassiveKeepalive,
    /// Data was sent, and nothing has been received since.
    NewHandshake,
    /// The keys are of no more use.
    ZeroKeys,
    /// The interval of the persistent keepalive has passed in silence.
    PersistentKeepalive,
    /// An initiation was asked for too soon after the last, and is due now.
    Deferred,
}

impl Timer {
    pub(crate) const ALL: [Self; 6] = [
        Self::Retransmit,
        Self::PassiveKeepalive,
        Self::NewHandshake,
        Self::ZeroKeys,
        Self::PersistentKeepalive,
        Self::Deferred,
    ];
}

/// A table of deadlines, and what decides over them.
#[derive(Debug)]
pub(crate) struct Timers {
    deadlines: [Option<Instant>; Timer::ALL.len()],
    /// When the attempts of which the pending one is the latest began.
    attempting_since: Option<Instant>,
    /// When the first initiation since the last handshake was sent. Giving up does not end it.
    unanswered_since: Option<Instant>,
    /// Interval of the persistent keepalive in seconds; 0 is off.
    persistent_keepalive: u16,
    jitter: Jitter,
}

impl Timers {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            deadlines: [None; Timer::ALL.len()],
            attempting_since: None,
            unanswered_since: None,
            persistent_keepalive: 0,
            jitter: Jitter(seed),
        }
    }

    /// The earliest deadline.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.iter().flatten().min().copied()
    }

    /// Disarms and answers the timer that expired first, if one has.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Timer> {
        let (_, timer) = Timer::ALL
            .into_iter()
            .filter_map(|timer| Some((self.deadline(timer)?, timer)))
            .filter(|(deadline, _)| *deadline <= now)
            .min_by_key(|(deadline, _)| *deadline)?;
        self.disarm(timer);
        Some(timer)
    }

    pub(crate) fn deadline(&self, timer: Timer) -> Option<Instant> {
        self.deadlines[timer as usize]
    }

    #[inline]
    pub(crate) fn is_armed(&self, timer: Timer) -> bool {
        self.deadlines[timer as usize].is_some()
    }

    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered_since
    }

    pub(crate) fn persistent_keepalive(&self) -> u16 {
        self.persistent_keepalive
    }

    /// Whether it is time to give up: `REKEY_ATTEMPT_TIME` after the series of attempts began.
    pub(crate) fn attempts_exhausted(&self, now: Instant) -> bool {
        self.attempting_since
            .is_some_and(|since| now.saturating_duration_since(since) >= REKEY_ATTEMPT_TIME)
    }

    // Facts. `_sent` and `_received` are about authenticated messages only.

    /// A packet, not a keepalive, was sent.
    #[inline]
    pub(crate) fn data_sent(&mut self, now: Instant) {
        if !self.is_armed(Timer::NewHandshake) {
            let jitter = self.jitter.draw();
            self.arm(
                Timer::NewHandshake,
                now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + jitter,
            );
        }
    }

    /// A packet, not a keepalive, was received.
    #[inline]
    pub(crate) fn data_received(&mut self, now: Instant) {
        if !self.is_armed(Timer::PassiveKeepalive) {
            self.arm(Timer::PassiveKeepalive, now + KEEPALIVE_TIMEOUT);
        }
    }

    /// Any message was sent: packet, keepalive or handshake.
    #[inline]
    pub(crate) fn anything_sent(&mut self, now: Instant) {
        self.disarm(Timer::PassiveKeepalive);
        self.traversed(now);
    }

    /// Any message was received: packet, keepalive or handshake.
    #[inline]
    pub(crate) fn anything_received(&mut self, now: Instant) {
        self.disarm(Timer::NewHandshake);
        self.traversed(now);
    }

    /// Something other than a late response asks for an initiation: the series of attempts, and
    /// the time after which they end, begins anew.
    #[inline]
    pub(crate) fn initiation_wanted(&mut self, now: Instant) {
        self.attempting_since = Some(now);
    }

    /// An initiation was sent.
    pub(crate) fn initiated(&mut self, now: Instant) {
        self.attempting_since.get_or_insert(now);
        self.unanswered_since.get_or_insert(now);
        let jitter = self.jitter.draw();
        self.arm(Timer::Retransmit, now + REKEY_TIMEOUT + jitter);
        self.disarm(Timer::Deferred);
    }

    /// An initiation was asked for so soon that it has to wait until `due`. The late response of
    /// one that is under way would bring about the same.
    pub(crate) fn deferred(&mut self, due: Instant) {
        if !self.is_armed(Timer::Retransmit) && !self.is_armed(Timer::Deferred) {
            let jitter = self.jitter.draw();
            self.arm(Timer::Deferred, due + jitter);
        }
    }

    /// New keys exist: the old ones' end, and theirs, is far away again.
    pub(crate) fn session_derived(&mut self, now: Instant) {
        self.arm(Timer::ZeroKeys, now + 3 * REJECT_AFTER_TIME);
    }

    /// The caller was asked for an initiation. If it cannot make one it is asked again.
    pub(crate) fn initiation_asked_for(&mut self, now: Instant) {
        self.deferred(now + REKEY_TIMEOUT);
    }

    /// What kept initiations from being sent is no more.
    pub(crate) fn initiation_may_be_sent(&mut self) {
        self.disarm(Timer::Deferred);
    }

    /// The interval of the persistent keepalive has passed. Whether or not one can be sent, the
    /// next is due an interval later.
    pub(crate) fn persistent_keepalive_due(&mut self, now: Instant) {
        self.traversed(now);
    }

    /// Both sides have the new keys and know it.
    pub(crate) fn handshake_complete(&mut self) {
        self.disarm(Timer::Retransmit);
        self.disarm(Timer::Deferred);
        self.attempting_since = None;
        self.unanswered_since = None;
    }

    /// The attempts to reach the peer have ended without success.
    pub(crate) fn gave_up(&mut self, now: Instant) {
        self.attempting_since = None;
        self.disarm(Timer::PassiveKeepalive);
        // For what is left of a partial exchange.
        if !self.is_armed(Timer::ZeroKeys) {
            self.arm(Timer::ZeroKeys, now + 3 * REJECT_AFTER_TIME);
        }
    }

    /// The interval is another from now on.
    pub(crate) fn set_persistent_keepalive(&mut self, seconds: u16, now: Instant, running: bool) {
        self.persistent_keepalive = seconds;
        self.disarm(Timer::PersistentKeepalive);
        if running {
            self.traversed(now);
        }
    }

    /// Everything that was waited for is off.
    pub(crate) fn stop(&mut self) {
        self.deadlines = [None; Timer::ALL.len()];
        self.attempting_since = None;
        self.unanswered_since = None;
    }

    pub(crate) fn export(&self) -> TimersState {
        TimersState {
            deadlines: self.deadlines,
            attempting_since: self.attempting_since,
            unanswered_since: self.unanswered_since,
        }
    }

    pub(crate) fn restore(&mut self, state: &TimersState, persistent_keepalive: u16) {
        self.deadlines = state.deadlines;
        self.attempting_since = state.attempting_since;
        self.unanswered_since = state.unanswered_since;
        self.persistent_keepalive = persistent_keepalive;
    }

    /// Any authenticated message went either way.
    #[inline]
    fn traversed(&mut self, now: Instant) {
        if self.persistent_keepalive != 0 {
            let interval = Duration::from_secs(self.persistent_keepalive.into());
            self.arm(Timer::PersistentKeepalive, now + interval);
        }
    }

    #[inline]
    fn arm(&mut self, timer: Timer, deadline: Instant) {
        self.deadlines[timer as usize] = Some(deadline);
    }

    #[inline]
    fn disarm(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = None;
    }
}

/// Spreads what would otherwise happen at once on both sides, or at many peers. It hides nothing,
/// so a small generator (splitmix64) from a seed of the caller's will do.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    fn draw(&mut self) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        Duration::from_nanos(z % REKEY_TIMEOUT_JITTER.as_nanos() as u64)
    }
}
