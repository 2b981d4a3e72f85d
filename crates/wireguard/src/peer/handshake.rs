//! A peer's part in handshakes: what is decided under its lock, around the curve work that is not.

use std::sync::Arc;

use warren_config::{PresharedKey, PublicKey};
use zeroize::Zeroize;

use super::keypairs::Keypair;
use super::{Endpoint, Peer};
use crate::cookie::Cookie;
use crate::crypto::Secret;
use crate::identity::{Identity, StaticShared};
use crate::messages::{CookieReply, INITIATION_LEN, Macs, RESPONSE_LEN, Response};
use crate::noise::{self, AuthenticInitiation, HandshakeError, InFlight, InitiationParts};
use crate::session::Session;
use crate::time::{Instant, Tai64n};
use crate::timers::Timer;
use crate::{INITIATION_INTERVAL, REKEY_TIMEOUT};

/// Leave to send one initiation.
#[derive(Debug)]
pub struct InitiationTicket {
    peer: PublicKey,
    endpoint: Endpoint,
    timestamp: Tai64n,
    cookie: Option<Cookie>,
}

/// An initiation that awaits the response which just arrived.
#[derive(Debug)]
pub struct ResponseOpener {
    in_flight: Arc<InFlight>,
    preshared: Option<PresharedKey>,
}

/// Leave to answer one initiation.
#[derive(Debug)]
pub struct ResponseTicket {
    endpoint: Endpoint,
    preshared: Option<PresharedKey>,
    cookie: Option<Cookie>,
}

/// Why an authentic initiation is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its timestamp is not greater than the last one's.
    #[error("the initiation was seen before, or is older than one that was")]
    Replay,
    /// The last one was answered less than 20 ms ago.
    #[error("initiations come too fast")]
    Flood,
    /// The peer is stopped.
    #[error("the peer is stopped")]
    Stopped,
}

/// A result of curve work came too late: what it was for has been replaced or given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the handshake was replaced meanwhile")]
pub struct Stale;

/// A cookie reply that does not answer the last message to this peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cookie reply is not authentic")]
pub struct CookieRefused;

impl InitiationTicket {
    /// Where the initiation goes.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// Makes the initiation: two curve operations, to be done with no lock held.
    ///
    /// `index` is one that the caller owns, `ephemeral` fresh random bytes, `shared` the secret of
    /// `identity` and this peer. The index is the peer's from [`Peer::initiation_created`] on; the
    /// caller keeps it if this fails.
    pub fn create(
        &self,
        identity: &Arc<Identity>,
        shared: &StaticShared,
        index: u32,
        mut ephemeral: [u8; 32],
    ) -> Result<(InFlight, [u8; INITIATION_LEN]), HandshakeError> {
        let secret = Secret::copy_of(&ephemeral);
        ephemeral.zeroize();
        noise::create_initiation(&InitiationParts {
            identity,
            peer: &self.peer,
            shared,
            index,
            ephemeral: secret,
            timestamp: &self.timestamp,
            cookie: self.cookie.as_ref(),
        })
    }
}

impl ResponseOpener {
    /// Takes the response: two curve operations, to be done with no lock held.
    pub fn consume_response(&self, response: Response<'_>) -> Result<Session, HandshakeError> {
        self.in_flight
            .consume_response(self.preshared.as_ref(), response)
    }
}

impl ResponseTicket {
    /// Where the response goes: to where the initiation came from.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// Makes the response: three curve operations, to be done with no lock held.
    ///
    /// `index` is one that the caller owns, `ephemeral` fresh random bytes. The index is the
    /// peer's from [`Peer::response_created`] on; the caller keeps it if this fails.
    pub fn respond(
        &self,
        initiation: AuthenticInitiation,
        index: u32,
        ephemeral: [u8; 32],
    ) -> Result<(Session, [u8; RESPONSE_LEN]), HandshakeError> {
        initiation.respond(
            index,
            ephemeral,
            self.preshared.as_ref(),
            self.cookie.as_ref(),
        )
    }
}

/// Handshakes. Each goes in three steps: a ticket is taken under the peer's lock, the curve work
/// is done without it, and the result is brought in under it again.
impl Peer {
    /// Begins an initiation, if one may be sent now: at most one in `REKEY_TIMEOUT`, and only to a
    /// known endpoint. Answers to [`super::Action::Initiate`].
    ///
    /// `timestamp` must be greater than that of every earlier initiation, see
    /// [`crate::time::Tai64nClock`].
    pub fn begin_initiation(
        &mut self,
        timestamp: Tai64n,
        now: Instant,
    ) -> Option<InitiationTicket> {
        self.pending.initiate = false;
        if !self.running || self.initiation_due(now).is_some() {
            return None;
        }
        let endpoint = self.endpoints.current()?;
        self.last_handshake_sent = Some(now);
        Some(InitiationTicket {
            peer: self.public_key,
            endpoint,
            timestamp,
            cookie: self.cookies.cookie(now).cloned(),
        })
    }

    /// The initiation exists, and is sent right after this call.
    pub fn initiation_created(&mut self, in_flight: InFlight, now: Instant) {
        if !self.running {
            self.pending.retired.push(in_flight.index());
            return;
        }
        self.cookies.message_sent(*in_flight.mac1());
        self.forget_in_flight();
        self.in_flight = Some(Arc::new(in_flight));
        self.timers.initiated(now);
        self.timers.anything_sent(now);
    }

    /// The initiation that a response with this receiver index answers.
    pub fn in_flight(&self, index: u32) -> Option<ResponseOpener> {
        let in_flight = self
            .in_flight
            .as_ref()
            .filter(|in_flight| in_flight.index() == index)?;
        Some(ResponseOpener {
            in_flight: Arc::clone(in_flight),
            preshared: self.preshared_key.clone(),
        })
    }

    /// The initiation was answered. The session is usable at once; the index of the initiation is
    /// now the session's.
    ///
    /// [`super::Peer::poll`] then sends what is staged, or a keepalive: the responder sends nothing
    /// until it has received something with the new keys.
    pub fn response_received(
        &mut self,
        session: Session,
        from: Endpoint,
        now: Instant,
    ) -> Result<Arc<Session>, Stale> {
        let index = session.local_index();
        self.in_flight
            .take_if(|in_flight| in_flight.index() == index)
            .ok_or(Stale)?;
        let session = self.install(session, now);
        self.endpoints.heard_from(from);
        self.timers.anything_received(now);
        self.complete(now);
        self.pending.keepalive = true;
        Ok(session)
    }

    /// An authentic initiation arrived. Unless it is refused it is to be answered.
    ///
    /// Both sides may have sent an initiation at once. Both are answered, but the side with the
    /// lesser public key gives up its own, so that both sides settle on the same session.
    pub fn initiation_received(
        &mut self,
        initiation: &AuthenticInitiation,
        from: Endpoint,
        now: Instant,
    ) -> Result<ResponseTicket, Refused> {
        if !self.running {
            return Err(Refused::Stopped);
        }
        if *initiation.timestamp() <= self.greatest_timestamp {
            return Err(Refused::Replay);
        }
        let too_soon = |last| now.saturating_duration_since(last) < INITIATION_INTERVAL;
        if self.last_initiation_answered.is_some_and(too_soon) {
            return Err(Refused::Flood);
        }
        self.greatest_timestamp = *initiation.timestamp();
        self.last_initiation_answered = Some(now);
        if let Some(in_flight) = &self.in_flight
            && in_flight.identity().public() < &self.public_key
        {
            self.forget_in_flight();
        }
        self.endpoints.heard_from(from);
        self.timers.anything_received(now);
        Ok(ResponseTicket {
            endpoint: from,
            preshared: self.preshared_key.clone(),
            cookie: self.cookies.cookie(now).cloned(),
        })
    }

    /// The response exists, and is sent right after this call. Nothing is sent with the session
    /// until the initiator has confirmed it.
    pub fn response_created(
        &mut self,
        session: Session,
        response: &[u8; RESPONSE_LEN],
        now: Instant,
    ) -> Result<Arc<Session>, Stale> {
        if !self.running {
            self.pending.retired.push(session.local_index());
            return Err(Stale);
        }
        if let Some(macs) = Macs::of(response) {
            self.cookies.message_sent(*macs.mac1);
        }
        self.last_handshake_sent = Some(now);
        let session = self.install(session, now);
        self.timers.anything_sent(now);
        Ok(session)
    }

    /// A cookie reply for this peer's index arrived: the next message to it carries the cookie.
    ///
    /// Neither endpoint nor timers change: the reply proves nothing about where the peer is. Opens
    /// 16 bytes, cheap enough to be done under the lock.
    pub fn cookie_reply_received(
        &mut self,
        reply: CookieReply<'_>,
        now: Instant,
    ) -> Result<(), CookieRefused> {
        self.cookies
            .reply_received(&self.public_key, reply, now)
            .map_err(|crate::crypto::Forged| CookieRefused)
    }

    /// Asks for an initiation. Whatever asks, there is one in `REKEY_TIMEOUT` at most; a request
    /// that comes too soon is served as soon as the next may be sent.
    pub(super) fn initiate(&mut self, now: Instant) {
        if !self.running || self.endpoints.current().is_none() {
            return;
        }
        self.timers.initiation_wanted(now);
        self.initiate_if_due(now);
    }

    /// As [`Self::initiate`], within the same series of attempts. One that was asked for and could
    /// not be made is not asked for again with every packet.
    pub(super) fn initiate_if_due(&mut self, now: Instant) {
        if self.timers.is_armed(Timer::Deferred) {
            return;
        }
        match self.initiation_due(now) {
            None => self.pending.initiate = true,
            Some(due) => self.timers.deferred(due),
        }
    }

    pub(super) fn forget_in_flight(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            self.pending.retired.push(in_flight.index());
        }
    }

    /// Both sides have the session and know it.
    pub(super) fn complete(&mut self, now: Instant) {
        self.timers.handshake_complete();
        self.last_handshake = Some(now);
        self.last_minute_initiation = false;
        self.pending.initiate = false;
    }

    /// When the next initiation may be sent, if that is not now.
    fn initiation_due(&self, now: Instant) -> Option<Instant> {
        let due = self.last_handshake_sent? + REKEY_TIMEOUT;
        (now < due).then_some(due)
    }

    fn install(&mut self, session: Session, now: Instant) -> Arc<Session> {
        let session = Arc::new(session);
        let keypair = Keypair::new(Arc::clone(&session), now);
        self.keypairs.insert(keypair, &mut self.pending.retired);
        self.timers.session_derived(now);
        session
    }
}
