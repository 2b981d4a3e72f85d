//! The door for handshake messages, and what is done with those that it lets in.
//!
//! At the door, on a worker ([`Router::knock`]): first authenticator, the gate (limit of the
//! source, cookie under load), then one bounded queue. Part of the queue is kept for messages from
//! endpoints that are known, so that strangers cannot shut out peers. A peer that a flood in its
//! name shuts out is called back.
//!
//! Behind it, on the control thread ([`Router::serve`]): all curve operations. A peer's lock is
//! held before and after them, never during.

use std::array;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use warren_packet::batch::{Ecn, SendBatch, Transmit};
use warren_wireguard::messages::{
    self, COOKIE_REPLY_LEN, CookieReply, Handshake, INITIATION_LEN, Initiation, Message, Response,
};
use warren_wireguard::time::{Instant, Tai64n};
use warren_wireguard::{
    AT_ONCE, Addressed, Admission, Endpoint, Gate, Identity, Knock, open_initiation,
};

use super::{Edges, Router, source_of};
use crate::drops::Reason;
use crate::limits::{HANDSHAKE_QUEUE, HANDSHAKE_QUEUE_KNOWN};
use crate::peer::PeerHandle;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::tables::Tables;

/// TOS of initiations and responses: AF41, as in the kernel's driver, without a mark of congestion.
const HANDSHAKE_TOS: u8 = 0x88;
/// TOS of cookie replies, as the kernel's driver sends them
/// (`wg_socket_send_buffer_as_reply_to_skb`).
pub(super) const COOKIE_REPLY_TOS: u8 = 0;

/// The gate and the queue behind it.
#[derive(Debug)]
pub(super) struct Door {
    gate: Mutex<Gate>,
    queue: Mutex<VecDeque<Visitor>>,
    /// Length of the queue, to be read without its lock.
    queued: AtomicUsize,
}

/// A handshake message that was let in.
#[derive(Debug)]
pub(super) struct Visitor {
    identity: Arc<Identity>,
    from: Endpoint,
    len: usize,
    bytes: [u8; INITIATION_LEN],
}

impl Door {
    pub(super) fn new() -> Self {
        Self {
            gate: Mutex::new(Gate::new()),
            queue: Mutex::new(VecDeque::new()),
            queued: AtomicUsize::new(0),
        }
    }

    /// Messages that wait.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// The message that has waited longest.
    pub(super) fn next(&self) -> Option<Visitor> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let visitor = queue.pop_front();
        self.queued.store(queue.len(), Ordering::Relaxed);
        if queue.is_empty() {
            // A flood's room is given back when it is over.
            queue.shrink_to(HANDSHAKE_QUEUE / 64);
        }
        visitor
    }

    fn enter(&self, visitor: Visitor, known: bool) -> Result<(), Reason> {
        let places = if known {
            HANDSHAKE_QUEUE
        } else {
            HANDSHAKE_QUEUE - HANDSHAKE_QUEUE_KNOWN
        };
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= places {
            return Err(Reason::InHandshakeQueueFull);
        }
        queue.push_back(visitor);
        self.queued.store(queue.len(), Ordering::Relaxed);
        Ok(())
    }
}

impl Router {
    /// Judges handshake messages, which are where `visits` says, at the door. `each` is told of every one the cookie
    /// reply to send, if one is due.
    pub(super) fn knock_all(
        &self,
        tables: &Tables,
        arena: &[u8],
        visits: &[(Range<usize>, Endpoint)],
        now: Instant,
        mut each: impl FnMut(&Endpoint, Result<Option<[u8; COOKIE_REPLY_LEN]>, Reason>),
    ) {
        for visits in visits.chunks(AT_ONCE) {
            let mut unclaimed = array::from_fn(|at| {
                let (range, _) = visits.get(at)?;
                match messages::parse(&arena[range.clone()]) {
                    Ok(Message::Handshake(message)) => Some(message),
                    _ => None,
                }
            });
            let mut claimed = [None; AT_ONCE];
            for identity in &tables.identities {
                let addressed = identity.verify_all(&unclaimed).into_iter();
                for (at, addressed) in addressed.enumerate().filter_map(|(at, it)| Some((at, it?)))
                {
                    claimed[at] = Some((identity, addressed));
                    unclaimed[at] = None;
                }
                if unclaimed.iter().all(Option::is_none) {
                    break;
                }
            }
            for ((_, from), claimed) in visits.iter().zip(claimed) {
                let knocked = match claimed {
                    Some((identity, addressed)) => {
                        self.knock(tables, identity, addressed, *from, now)
                    }
                    None => Err(Reason::InBadMac1),
                };
                each(from, knocked);
            }
        }
    }

    /// Judges a message that is for `identity`. Answers the cookie reply to send, if one is due.
    fn knock(
        &self,
        tables: &Tables,
        identity: &Arc<Identity>,
        addressed: Addressed<'_>,
        from: Endpoint,
        now: Instant,
    ) -> Result<Option<[u8; COOKIE_REPLY_LEN]>, Reason> {
        let message = addressed.message();
        // An answer to nothing leads to nothing, whoever sends it.
        let answers = match message {
            Handshake::Initiation(_) => None,
            Handshake::Response(response) => {
                Some(self.indices.awaits_response(response.receiver()))
            }
            // To an initiation, or to a response: then the index is a session's.
            Handshake::CookieReply(reply) => Some(self.indices.peer(reply.receiver()).is_some()),
        };
        if answers == Some(false) {
            return Err(Reason::InUnknownReceiver);
        }
        let known = answers.is_some() || self.known.contains(&from.addr);
        let knock = Knock {
            message: addressed,
            from: from.addr,
            known,
            queued: self.door.queued(),
        };
        let admission = self
            .door
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(&knock, now, &mut |bytes| self.fill_random(bytes));
        match admission {
            Admission::Pass => {}
            Admission::DemandCookie(ticket) => {
                let mut nonce = [0; 24];
                self.fill_random(&mut nonce);
                return Ok(Some(ticket.seal(identity, &nonce)));
            }
            Admission::CallBack => {
                self.call_back(tables, from.addr, now);
                return Err(Reason::InSourceLimited);
            }
            Admission::Limited => return Err(Reason::InSourceLimited),
        }
        let mut bytes = [0; INITIATION_LEN];
        let len = message.bytes().len();
        bytes[..len].copy_from_slice(message.bytes());
        self.door.enter(
            Visitor {
                identity: Arc::clone(identity),
                from,
                len,
                bytes,
            },
            known,
        )?;
        self.agenda.wake();
        Ok(None)
    }

    /// Asks control for an initiation to whoever is at an endpoint in whose name somebody floods.
    fn call_back(&self, tables: &Tables, addr: SocketAddr, now: Instant) {
        for id in self.known.peers_at(&addr) {
            if let Some(peer) = tables.peer(id) {
                peer.lock(&self.agenda).rekey(now);
            }
        }
    }

    /// Serves one message that was let in.
    pub(super) fn serve(
        &self,
        visitor: &Visitor,
        out: &mut SendBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) {
        let Ok(Message::Handshake(message)) = messages::parse(&visitor.bytes[..visitor.len]) else {
            return;
        };
        let served = match message {
            Handshake::Initiation(message) => {
                self.serve_initiation(visitor, message, out, now, edges)
            }
            Handshake::Response(message) => self.serve_response(visitor, message, now),
            Handshake::CookieReply(message) => self.serve_cookie_reply(message, now),
        };
        match served {
            Ok(peer) => {
                peer.rx_bytes
                    .fetch_add(visitor.len as u64, Ordering::Relaxed);
                peer.rx_packets.fetch_add(1, Ordering::Relaxed);
            }
            Err(Refusal) => self.drops.count(Reason::InHandshakeRefused, 1),
        }
    }

    fn serve_initiation(
        &self,
        visitor: &Visitor,
        message: Initiation<'_>,
        out: &mut SendBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) -> Result<Arc<PeerHandle>, Refusal> {
        let pending = open_initiation(&visitor.identity, message)?;
        let peer = self.peer_named(pending.static_key()).ok_or(Refusal)?;
        let initiation = pending.authenticate(&peer.shared_with(&visitor.identity)?)?;
        let ticket = {
            let mut state = peer.lock(&self.agenda);
            let ticket = state.initiation_received(&initiation, visitor.from, now)?;
            // Under the lock, since a peer that is being removed is forgotten after it was stopped.
            self.known.learn(peer.id(), visitor.from.addr);
            ticket
        };

        let index = self.indices.allocate(&peer, || self.draw());
        let Ok((session, response)) = ticket.respond(initiation, index, self.ephemeral()) else {
            self.indices.retire(index, &peer);
            return Err(Refusal);
        };
        {
            let mut state = peer.lock(&self.agenda);
            if !self.is_still(&visitor.identity) {
                drop(state);
                self.indices.retire(index, &peer);
                return Err(Refusal);
            }
            let session = state.response_created(session, &response, now)?;
            self.indices.promote(session, &peer);
        }
        put(
            &response,
            HANDSHAKE_TOS,
            &ticket.endpoint(),
            peer.id().0,
            out,
            edges,
        );
        Ok(peer)
    }

    fn serve_response(
        &self,
        visitor: &Visitor,
        message: Response<'_>,
        now: Instant,
    ) -> Result<Arc<PeerHandle>, Refusal> {
        let index = message.receiver();
        let peer = self.indices.peer(index).ok_or(Refusal)?;
        let opener = peer.lock(&self.agenda).in_flight(index).ok_or(Refusal)?;
        let session = opener.consume_response(message)?;
        let mut state = peer.lock(&self.agenda);
        if !self.is_still(&visitor.identity) {
            return Err(Refusal);
        }
        let session = state.response_received(session, visitor.from, now)?;
        self.indices.promote(session, &peer);
        self.known.learn(peer.id(), visitor.from.addr);
        drop(state);
        Ok(peer)
    }

    fn serve_cookie_reply(
        &self,
        message: CookieReply<'_>,
        now: Instant,
    ) -> Result<Arc<PeerHandle>, Refusal> {
        let peer = self.indices.peer(message.receiver()).ok_or(Refusal)?;
        peer.lock(&self.agenda)
            .cookie_reply_received(message, now)?;
        Ok(peer)
    }

    /// Sends an initiation, if the peer may be sent one now.
    pub(super) fn initiate(
        &self,
        peer: &Arc<PeerHandle>,
        timestamp: Tai64n,
        out: &mut SendBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) {
        let tables = self.tables.load();
        let Some(identity) = tables.identities.first() else {
            return;
        };
        // With a public key of low order there is no talking; the peer stays without a session.
        let Ok(shared) = peer.shared_with(identity) else {
            return;
        };
        let Some(ticket) = peer
            .lock_quietly(&self.agenda)
            .begin_initiation(timestamp, now)
        else {
            return;
        };
        let index = self.indices.allocate(peer, || self.draw());
        let Ok((in_flight, initiation)) = ticket.create(identity, &shared, index, self.ephemeral())
        else {
            self.indices.retire(index, peer);
            return;
        };
        {
            let mut state = peer.lock_quietly(&self.agenda);
            if !self.is_still(identity) {
                // Nobody would take the response for ours: begin anew as who this device is now.
                state.expire_sessions();
                state.rekey(now);
                drop(state);
                self.indices.retire(index, peer);
                return;
            }
            state.initiation_created(in_flight, now);
        }
        put(
            &initiation,
            HANDSHAKE_TOS,
            &ticket.endpoint(),
            peer.id().0,
            out,
            edges,
        );
    }

    /// Whether this device is who it was when a message came, or was begun. To be asked with the peer locked: a
    /// change of identity ends every session after it took effect, so none slips in behind it.
    fn is_still(&self, identity: &Arc<Identity>) -> bool {
        let tables = self.tables.load();
        tables
            .identities
            .iter()
            .any(|known| Arc::ptr_eq(known, identity))
    }

    fn draw(&self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_random(&mut bytes);
        u32::from_ne_bytes(bytes)
    }

    fn ephemeral(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill_random(&mut bytes);
        bytes
    }
}

/// Puts a handshake message into the batch, transmitting what is there if it is full.
pub(super) fn put(
    message: &[u8],
    tos: u8,
    to: &Endpoint,
    tag: u32,
    out: &mut SendBatch,
    edges: &mut dyn Edges,
) {
    if out.used() + message.len() > out.arena.len() {
        edges.transmit(out);
    }
    let range = out.used()..out.used() + message.len();
    out.arena[range.clone()].copy_from_slice(message);
    out.transmits.push(Transmit {
        range,
        stride: message.len(),
        remote: to.addr,
        source: source_of(to),
        ecn: Ecn::NotEct,
        tos,
        tag,
    });
}

/// A handshake message led nowhere. Which of the reasons it was is nobody's business but the
/// sender's, who is not told.
struct Refusal;

impl<E: std::error::Error> From<E> for Refusal {
    fn from(_: E) -> Self {
        Self
    }
}
