//! A peer as plain data, so that another process can carry on where this one stops.
//!
//! Points in time are of the clock that counts from boot, which both processes share. Left out on
//! purpose: an initiation in flight, which is sent again when its response is late, and staged
//! packets, which the old process sends or gives up.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use warren_config::{PresharedKey, PublicKey};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::keypairs::Keypair;
use super::{Endpoint, Peer};
use crate::cookie::{Cookie, Jar, Received};
use crate::crypto::Secret;
use crate::replay::Window;
use crate::session::Session;
use crate::time::{Instant, Tai64n};

/// How many counters [`Peer::restore`] leaves out, for what the old process may still have sent
/// after the export. Two processes never seal with the same counter, or all secrecy is lost.
pub const RESTORE_COUNTER_JUMP: u64 = 1 << 24;

/// All of a peer that outlives a process. Its secrets are wiped on drop and absent from `Debug`.
#[derive(Debug)]
pub struct PeerState {
    /// Who the peer is.
    pub public_key: PublicKey,
    /// What the next handshake mixes in.
    pub preshared_key: Option<PresharedKey>,
    /// Interval of the persistent keepalive in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The configured endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// Where the peer was last heard from.
    pub learnt_endpoint: Option<Endpoint>,
    /// The session before the current one.
    pub previous: Option<SessionState>,
    /// The session that is sent with.
    pub current: Option<SessionState>,
    /// The session that the peer has not confirmed yet.
    pub next: Option<SessionState>,
    /// The peer's cookie, and when it came.
    pub cookie: Option<CookieState>,
    /// The deadlines, and when the attempts to reach the peer began.
    pub timers: TimersState,
    /// Greatest timestamp of an initiation that was accepted.
    pub greatest_timestamp: Tai64n,
    /// When an initiation was last answered.
    pub last_initiation_answered: Option<Instant>,
    /// When a message of a handshake was last sent.
    pub last_handshake_sent: Option<Instant>,
    /// When a handshake was last completed.
    pub last_handshake: Option<Instant>,
    /// The current session's renewal in the last of its time was asked for.
    pub last_minute_initiation: bool,
}

/// A session with its counters and its replay window.
pub struct SessionState {
    /// The index by which the peer addresses it.
    pub local_index: u32,
    /// The index by which this side addresses it.
    pub remote_index: u32,
    /// Whether this side sent the initiation.
    pub initiator: bool,
    /// Seals what is sent.
    pub sealing_key: Box<[u8; 32]>,
    /// Opens what is received.
    pub opening_key: Box<[u8; 32]>,
    /// When it was derived.
    pub derived: Instant,
    /// The counter that is used next.
    pub sending_counter: u64,
    /// Nothing is sent with it any more.
    pub sending_ended: bool,
    /// One more than the greatest counter received.
    pub window_next: u64,
    /// The replay window's words.
    pub window: Vec<u64>,
}

/// A cookie and when it came.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct CookieState {
    /// The cookie.
    pub cookie: [u8; 16],
    /// When it came, in nanoseconds since boot.
    pub received_nanos: u64,
}

/// A peer's timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimersState {
    /// Deadlines: late response, passive keepalive, nothing heard, end of keys, persistent
    /// keepalive, deferred initiation.
    pub deadlines: [Option<Instant>; 6],
    /// When the attempts to reach the peer began.
    pub attempting_since: Option<Instant>,
    /// When the first initiation since the last handshake was sent.
    pub unanswered_since: Option<Instant>,
}

/// Handing over.
impl Peer {
    /// All that another process needs. This side must not send anything more afterwards.
    pub fn export(&self) -> PeerState {
        let session = |keypair: &Option<Box<Keypair>>| keypair.as_deref().map(SessionState::of);
        PeerState {
            public_key: self.public_key,
            preshared_key: self.preshared_key.clone(),
            persistent_keepalive: self.timers.persistent_keepalive(),
            endpoints: self.endpoints.candidates().to_vec(),
            learnt_endpoint: self.endpoints.learnt(),
            previous: session(&self.keypairs.previous),
            current: session(&self.keypairs.current),
            next: session(&self.keypairs.next),
            cookie: self.cookies.received().map(|received| CookieState {
                cookie: *received.cookie.bytes(),
                received_nanos: received.at.as_nanos(),
            }),
            timers: self.timers.export(),
            greatest_timestamp: self.greatest_timestamp,
            last_initiation_answered: self.last_initiation_answered,
            last_handshake_sent: self.last_handshake_sent,
            last_handshake: self.last_handshake,
            last_minute_initiation: self.last_minute_initiation,
        }
    }

    /// A peer that carries on. The caller enters the [`Self::sessions`] into its index table.
    ///
    /// Sending counters jump by [`RESTORE_COUNTER_JUMP`].
    pub fn restore(state: &PeerState, seed: u64) -> Self {
        let mut peer = Self::new(state.public_key, seed);
        let keypair = |session: &Option<SessionState>| session.as_ref().map(SessionState::keypair);
        peer.preshared_key = state.preshared_key.clone();
        peer.keypairs.previous = keypair(&state.previous);
        peer.keypairs.current = keypair(&state.current);
        peer.keypairs.next = keypair(&state.next);
        peer.endpoints.set(state.endpoints.clone());
        if let Some(learnt) = state.learnt_endpoint {
            peer.endpoints.heard_from(learnt);
        }
        peer.cookies = Jar::restore(state.cookie.as_ref().map(|state| Received {
            cookie: Cookie::from_bytes(state.cookie),
            at: Instant::from_nanos(state.received_nanos),
        }));
        peer.timers
            .restore(&state.timers, state.persistent_keepalive);
        peer.greatest_timestamp = state.greatest_timestamp;
        peer.last_initiation_answered = state.last_initiation_answered;
        peer.last_handshake_sent = state.last_handshake_sent;
        peer.last_handshake = state.last_handshake;
        peer.last_minute_initiation = state.last_minute_initiation;
        peer
    }
}

impl SessionState {
    fn of(keypair: &Keypair) -> Self {
        let session = &keypair.session;
        let (window_next, window) = keypair.window.export();
        Self {
            local_index: session.local_index(),
            remote_index: session.remote_index(),
            initiator: session.is_initiator(),
            sealing_key: Box::new(*session.sealing().bytes()),
            opening_key: Box::new(*session.opening().bytes()),
            derived: keypair.derived,
            sending_counter: keypair.sending_counter,
            sending_ended: keypair.sending_ended,
            window_next,
            window: window.to_vec(),
        }
    }

    fn keypair(&self) -> Box<Keypair> {
        let sealing = Secret::copy_of(&self.sealing_key);
        let opening = Secret::copy_of(&self.opening_key);
        let session = Session::from_keys(
            self.local_index,
            self.remote_index,
            self.initiator,
            &sealing,
            &opening,
        );
        Box::new(Keypair {
            session: Arc::new(session),
            derived: self.derived,
            sending_counter: self.sending_counter.saturating_add(RESTORE_COUNTER_JUMP),
            sending_ended: self.sending_ended,
            window: Window::restore(self.window_next, &self.window),
        })
    }
}

impl Drop for SessionState {
    fn drop(&mut self) {
        self.sealing_key.zeroize();
        self.opening_key.zeroize();
    }
}

impl ZeroizeOnDrop for SessionState {}

impl fmt::Debug for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionState")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("initiator", &self.initiator)
            .field("derived", &self.derived)
            .field("sending_counter", &self.sending_counter)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CookieState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieState(secret)")
    }
}
