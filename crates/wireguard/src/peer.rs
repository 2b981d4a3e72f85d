//! One peer: its sessions, handshakes, staged packets, endpoint and timers, without any I/O.

mod endpoints;
mod export;
mod handshake;
mod keypairs;
mod staged;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use warren_config::{PresharedKey, PublicKey};

pub use endpoints::Endpoint;
pub use export::{CookieState, PeerState, RESTORE_COUNTER_JUMP, SessionState, TimersState};
pub use handshake::{
    CookieRefused, InitiationTicket, Refused, ResponseOpener, ResponseTicket, Stale,
};

use crate::cookie::Jar;
use crate::noise::InFlight;
use crate::session::Session;
use crate::time::{Instant, Tai64n};
use crate::timers::{Timer, Timers};
use crate::{
    KEEPALIVE_TIMEOUT, MAX_FLUSH_ROUNDS, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME,
    REKEY_AFTER_TIME, REKEY_TIMEOUT,
};
use endpoints::Endpoints;
use keypairs::{Keypair, Keypairs};
use staged::Staged;

/// The state of one peer.
///
/// It does no I/O and reads no clock: whoever drives it says what happened and when, and does what
/// it answers. It holds no lock either; where threads share a peer the caller has one lock around
/// it, takes it once per batch, and does all cryptography on packets and all curve work outside.
/// There are five kinds of method:
///
/// - *Getters* have no effect.
/// - *Commands* change what the peer should be: `set_*`, [`rekey`](Self::rekey),
///   [`start`](Self::start), [`stop`](Self::stop).
/// - *The data path*: [`reserve`](Self::reserve), or [`stage`](Self::stage) where that answers so;
///   [`accept`](Self::accept) for what was received and opened.
/// - *Facts about handshakes*: `*_received`, `*_created`, and the tickets that lead to them, in
///   `peer/handshake.rs`.
/// - *Polls*: [`poll`](Self::poll), [`handle_timeout`](Self::handle_timeout),
///   [`next_deadline`](Self::next_deadline).
///
/// # Duties of the caller
///
/// After any call with `&mut self`, while still under the lock, look at
/// [`attention`](Self::attention): if it is set, call [`poll`](Self::poll) soon, until it answers
/// `None`, and do what each [`Action`] says. Then look at [`next_deadline`](Self::next_deadline)
/// and call [`handle_timeout`](Self::handle_timeout) no earlier than it says. A late call is never
/// wrong: everything is judged by the time that it is given.
///
/// The receiver indices of a device are the caller's. One handed to the peer, with
/// [`initiation_created`](Self::initiation_created) or [`response_created`](Self::response_created),
/// belongs to it until [`Action::RetireIndex`] gives it back, exactly once.
///
/// `now` is time since boot, suspend included, the same clock in every call.
pub struct Peer {
    public_key: PublicKey,
    preshared_key: Option<PresharedKey>,
    running: bool,
    keypairs: Keypairs,
    in_flight: Option<Arc<InFlight>>,
    cookies: Jar,
    endpoints: Endpoints,
    staged: Staged,
    /// Somebody is sending what was staged; everything newer waits behind it. Counts down.
    flush_rounds: u8,
    timers: Timers,
    /// Greatest timestamp of an initiation that was accepted.
    greatest_timestamp: Tai64n,
    last_initiation_answered: Option<Instant>,
    /// When an initiation or response was last sent.
    last_handshake_sent: Option<Instant>,
    last_handshake: Option<Instant>,
    /// The initiation that a session is due to in the last of its time was asked for.
    last_minute_initiation: bool,
    pending: Pending,
}

/// What [`Peer::poll`] has still to answer.
#[derive(Debug, Default)]
struct Pending {
    retired: Vec<u32>,
    purged: u32,
    initiate: bool,
    keepalive: bool,
}

/// Leave to seal a number of packets with consecutive counters, and where they go.
#[derive(Debug, Clone)]
pub struct Permit {
    /// What to seal with.
    pub session: Arc<Session>,
    /// The counter of the first packet.
    pub first_counter: u64,
    /// Where to send to.
    pub endpoint: Endpoint,
}

/// The answer to [`Peer::reserve`].
#[derive(Debug)]
pub enum Reservation {
    /// Seal and send.
    Ready(Permit),
    /// There is no session, or older packets wait for one: [`Peer::stage`] these as well.
    Stage,
    /// Nobody knows where the peer is. Drop the packets.
    NoEndpoint,
}

/// One data message that was opened, and what [`Peer::accept`] makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The counter with which it was sealed.
    pub counter: u64,
    /// Length of the plaintext in bytes; 0 for a keepalive.
    pub len: usize,
    /// Set by [`Peer::accept`].
    pub verdict: Verdict,
}

/// What becomes of an authentic data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// New: hand it on.
    Accepted,
    /// Seen before, or too old to tell.
    Replayed,
    /// The session is too old, used up, or replaced.
    Expired,
}

/// What [`Peer::accept`] learnt from a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Accepted {
    /// The batch confirmed a session that this side had answered to. It is now in use.
    pub confirmed: bool,
    /// The peer is at another address than before.
    pub moved: bool,
}

/// What a peer asks of its caller.
#[derive(Debug)]
pub enum Action {
    /// Nothing is received at this index any more: forget it.
    RetireIndex(u32),
    /// So many packets were staged in vain.
    StagedPurged(u32),
    /// Call [`Peer::take_staged`] and send what it gives, again and again until it gives nothing.
    Flush,
    /// Call [`Peer::begin_initiation`] and send what comes of it.
    Initiate,
    /// Seal and send an empty packet.
    SendKeepalive(Permit),
}

impl Record {
    /// A record that nobody has judged yet.
    pub const fn new(counter: u64, len: usize) -> Self {
        Self {
            counter,
            len,
            verdict: Verdict::Expired,
        }
    }
}

/// Getters.
impl Peer {
    /// A running peer that knows nothing but whose key is whose.
    ///
    /// `seed` spreads its timers; it must differ between peers and nodes, but need not be secret.
    pub fn new(public_key: PublicKey, seed: u64) -> Self {
        Self {
            public_key,
            preshared_key: None,
            running: true,
            keypairs: Keypairs::default(),
            in_flight: None,
            cookies: Jar::default(),
            endpoints: Endpoints::default(),
            staged: Staged::default(),
            flush_rounds: 0,
            timers: Timers::new(seed),
            greatest_timestamp: Tai64n::ZERO,
            last_initiation_answered: None,
            last_handshake_sent: None,
            last_handshake: None,
            last_minute_initiation: false,
            pending: Pending::default(),
        }
    }

    /// Who the peer is.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// What the next handshake mixes in.
    pub fn preshared_key(&self) -> Option<&PresharedKey> {
        self.preshared_key.as_ref()
    }

    /// Interval of the persistent keepalive in seconds; 0 is off.
    pub fn persistent_keepalive(&self) -> u16 {
        self.timers.persistent_keepalive()
    }

    /// The configured endpoints, in the order in which they are tried.
    pub fn endpoints(&self) -> &[SocketAddr] {
        self.endpoints.candidates()
    }

    /// Where the next message goes.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoints.current()
    }

    /// When the last handshake was completed, on both sides.
    pub fn last_handshake(&self) -> Option<Instant> {
        self.last_handshake
    }

    /// When the first of the initiations was sent that no handshake has followed yet, whether or not
    /// they go on. `None` when the last one was answered, or none was ever sent.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.timers.unanswered_since()
    }

    /// Bytes that are staged.
    pub fn staged_bytes(&self) -> usize {
        self.staged.bytes()
    }

    /// The sessions with which something may be received: previous, current, next.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.keypairs.iter().map(|keypair| &keypair.session)
    }

    /// Whether packets could be sent now, without a handshake first.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.keypairs
            .current
            .as_ref()
            .is_some_and(|current| !current.sending_ended && !current.is_expired(now))
    }
}

/// Commands.
impl Peer {
    /// Takes effect at the next handshake; sessions stay.
    pub fn set_preshared_key(&mut self, key: Option<PresharedKey>) {
        self.preshared_key = key;
    }

    /// Replaces the endpoint candidates; sessions stay. The first is used from now on, unless the
    /// peer was last heard from one of them. With none, where it was last heard from stays.
    pub fn set_endpoints(&mut self, candidates: Vec<SocketAddr>) {
        let unreachable = self.endpoints.current().is_none();
        self.endpoints.set(candidates);
        if unreachable && self.timers.persistent_keepalive() != 0 {
            self.pending.keepalive = self.running;
        }
    }

    /// Changes the interval, in seconds; 0 is off. Switching it on sends a keepalive at once.
    pub fn set_persistent_keepalive(&mut self, seconds: u16, now: Instant) {
        let switched_on = self.timers.persistent_keepalive() == 0 && seconds != 0;
        self.timers
            .set_persistent_keepalive(seconds, now, self.running);
        if switched_on && self.running {
            self.pending.keepalive = true;
        }
    }

    /// The local address that packets were sent from is gone: let the system choose.
    pub fn forget_source(&mut self) {
        self.endpoints.forget_source();
    }

    /// Asks for new keys now, or as soon as an initiation may be sent again.
    pub fn rekey(&mut self, now: Instant) {
        self.initiate(now);
    }

    /// This node is somebody else from now on: nothing more is sent with what the old identity
    /// agreed on, and the next packet asks for a handshake at once. What is under way to us may
    /// still arrive.
    pub fn expire_sessions(&mut self) {
        self.forget_in_flight();
        self.last_handshake_sent = None;
        self.timers.initiation_may_be_sent();
        self.keypairs.end_sending();
        self.pending.keepalive |= self.running && self.timers.persistent_keepalive() != 0;
    }

    /// The device goes down, or the peer is removed: ends all sessions and forgets what is staged.
    pub fn stop(&mut self) {
        self.running = false;
        self.purge_staged();
        self.timers.stop();
        self.forget_in_flight();
        self.keypairs.clear(&mut self.pending.retired);
        self.last_handshake_sent = None;
        self.last_minute_initiation = false;
        self.flush_rounds = 0;
        self.pending.initiate = false;
        self.pending.keepalive = false;
    }

    /// The device comes up. A new peer is up from the beginning.
    pub fn start(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            self.pending.keepalive = self.timers.persistent_keepalive() != 0;
        }
    }
}

/// The data path.
impl Peer {
    /// Asks to send `packets` packets, none of them empty. Counts as having sent them.
    #[inline]
    pub fn reserve(&mut self, packets: u32, now: Instant) -> Reservation {
        if self.endpoints.current().is_none() {
            return Reservation::NoEndpoint;
        }
        if self.flush_rounds > 0 {
            return Reservation::Stage;
        }
        if self.staged.is_empty() {
            if let Some(permit) = self.permit(packets, now) {
                self.timers.data_sent(now);
                return Reservation::Ready(permit);
            }
        } else if self.is_ready(now) {
            return Reservation::Stage;
        }
        self.initiate(now);
        Reservation::Stage
    }

    /// Keeps a packet, which will become `packets` records, until there is a session. Answers how
    /// many older ones were dropped for it.
    pub fn stage(&mut self, packet: Box<[u8]>, packets: u32) -> u32 {
        if !self.running {
            return packets;
        }
        self.staged.push(packet, packets)
    }

    /// Takes all that is staged, oldest first, with leave to send it. Answers to [`Action::Flush`]:
    /// call it again after having sent, until it gives nothing. Until then [`Self::reserve`] keeps
    /// newer packets waiting, so that none overtakes an older one.
    ///
    /// A sender that stages faster than that, many times in a row, stops being held up; then order
    /// gives way to progress.
    pub fn take_staged(&mut self, now: Instant) -> Option<(Permit, Vec<Box<[u8]>>)> {
        if self.staged.is_empty() {
            self.flush_rounds = 0;
            return None;
        }
        let Some(permit) = self.permit(self.staged.packets(), now) else {
            self.flush_rounds = 0;
            self.initiate(now);
            return None;
        };
        self.flush_rounds = match self.flush_rounds {
            0 => MAX_FLUSH_ROUNDS,
            rounds => rounds - 1,
        };
        self.timers.data_sent(now);
        Some((permit, self.staged.take()))
    }

    /// Judges messages of one session that were opened, in the order of their arrival, and follows
    /// the peer to where they came from.
    pub fn accept(
        &mut self,
        session: &Session,
        from: Endpoint,
        records: &mut [Record],
        now: Instant,
    ) -> Accepted {
        let (mut accepted, mut data) = (false, false);
        if let Some(keypair) = self.keypairs.find(session) {
            let expired = keypair.is_expired(now);
            for record in records {
                record.verdict = if expired || record.counter >= REJECT_AFTER_MESSAGES {
                    Verdict::Expired
                } else if keypair.window.accept(record.counter) {
                    accepted = true;
                    data |= record.len > 0;
                    Verdict::Accepted
                } else {
                    Verdict::Replayed
                };
            }
        } else {
            records
                .iter_mut()
                .for_each(|record| record.verdict = Verdict::Expired);
        }
        if !accepted {
            return Accepted::default();
        }
        let confirmed = self
            .keypairs
            .received_with(session, &mut self.pending.retired);
        if confirmed {
            self.complete(now);
        }
        let moved = self.endpoints.heard_from(from);
        self.timers.anything_received(now);
        if data {
            self.timers.data_received(now);
        }
        self.renew_after_receiving(now);
        Accepted { confirmed, moved }
    }
}

/// Polls.
impl Peer {
    /// Whether [`Self::poll`] has something to say.
    #[inline]
    pub fn attention(&self) -> bool {
        let pending = &self.pending;
        pending.initiate
            || pending.keepalive
            || pending.purged > 0
            || !pending.retired.is_empty()
            || self.flush_is_due()
    }

    /// What is to be done next; `None` when there is nothing.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        if let Some(index) = self.pending.retired.pop() {
            if self.pending.retired.is_empty() {
                self.pending.retired = Vec::new();
            }
            return Some(Action::RetireIndex(index));
        }
        if self.pending.purged > 0 {
            return Some(Action::StagedPurged(std::mem::take(
                &mut self.pending.purged,
            )));
        }
        if self.flush_is_due() {
            // What is staged says more than a keepalive.
            self.pending.keepalive = false;
            if self.is_ready(now) {
                self.flush_rounds = MAX_FLUSH_ROUNDS;
                return Some(Action::Flush);
            }
            self.end_sending_with_current();
            self.initiate(now);
        }
        if std::mem::take(&mut self.pending.keepalive) {
            match self.permit(1, now) {
                Some(permit) => return Some(Action::SendKeepalive(permit)),
                None => self.initiate(now),
            }
        }
        if std::mem::take(&mut self.pending.initiate) {
            self.timers.initiation_asked_for(now);
            return Some(Action::Initiate);
        }
        None
    }

    /// When [`Self::handle_timeout`] is due. `None` while nothing is waited for, as with a peer
    /// that has been idle for long.
    #[inline]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// Does what is due, however late. Afterwards every deadline is later than `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Each expires once at most, also at the end of time, where deadlines do not advance.
        for _ in Timer::ALL {
            let Some(timer) = self.timers.expire(now) else {
                return;
            };
            match timer {
                Timer::Retransmit | Timer::Deferred if self.timers.attempts_exhausted(now) => {
                    self.timers.gave_up(now);
                    self.purge_staged();
                    self.endpoints.unanswered();
                }
                Timer::Retransmit => {
                    self.endpoints.unanswered();
                    self.initiate_if_due(now);
                }
                Timer::NewHandshake => {
                    self.endpoints.forget_source();
                    self.initiate(now);
                }
                Timer::Deferred => self.initiate_if_due(now),
                Timer::PassiveKeepalive => self.pending.keepalive = true,
                Timer::PersistentKeepalive if self.endpoints.current().is_some() => {
                    self.pending.keepalive = true;
                    self.timers.persistent_keepalive_due(now);
                }
                // Takes up again when there is somewhere to send to.
                Timer::PersistentKeepalive => {}
                Timer::ZeroKeys => {
                    self.forget_in_flight();
                    self.keypairs.clear(&mut self.pending.retired);
                }
            }
        }
    }
}

impl Peer {
    /// Counters of the current session, and where to. Counts as having sent something.
    #[inline]
    fn permit(&mut self, packets: u32, now: Instant) -> Option<Permit> {
        let endpoint = self.endpoints.current()?;
        let current = self.keypairs.current.as_mut()?;
        let first_counter = current.take_counters(packets, now)?;
        let session = Arc::clone(&current.session);
        let renew =
            current.is_used_up() || session.is_initiator() && current.age(now) >= REKEY_AFTER_TIME;
        self.timers.anything_sent(now);
        if renew {
            self.initiate(now);
        }
        Some(Permit {
            session,
            first_counter,
            endpoint,
        })
    }

    /// An initiator that only receives asks for new keys, once, early enough to be answered before
    /// the old ones end.
    fn renew_after_receiving(&mut self, now: Instant) {
        let due = |current: &Keypair| {
            !current.sending_ended
                && current.session.is_initiator()
                && current.age(now) >= REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
        };
        if !self.last_minute_initiation && self.keypairs.current.as_deref().is_some_and(due) {
            self.last_minute_initiation = true;
            self.initiate(now);
        }
    }

    fn flush_is_due(&self) -> bool {
        self.flush_rounds == 0
            && !self.staged.is_empty()
            && self
                .keypairs
                .current
                .as_ref()
                .is_some_and(|current| !current.sending_ended)
    }

    fn end_sending_with_current(&mut self) {
        if let Some(current) = &mut self.keypairs.current {
            current.sending_ended = true;
        }
    }

    fn purge_staged(&mut self) {
        self.pending.purged = self.pending.purged.saturating_add(self.staged.packets());
        self.staged.take();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("public_key", &self.public_key)
            .field("endpoint", &self.endpoints.current())
            .field("running", &self.running)
            .field("last_handshake", &self.last_handshake)
            .field("staged_bytes", &self.staged.bytes())
            .finish_non_exhaustive()
    }
}
