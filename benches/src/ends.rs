//! The two ends of a handshake, without tables and queues.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_config::{PrivateKey, PublicKey, WallTime};
use warren_packet::Ecn;
use warren_packet::batch::{Datagram, RecvBatch};
use warren_wireguard::messages::{self, Handshake, INITIATION_LEN, Message, RESPONSE_LEN};
use warren_wireguard::time::{Instant, Tai64nClock};
use warren_wireguard::{
    Identity, InFlight, InitiationTicket, Peer, Session, StaticShared, open_initiation,
};

use crate::nodes::{ADDRESSES, NOW, WALL};

/// Between two initiations: long enough for both ends to take the second.
const PAUSE: Duration = Duration::from_secs(6);

/// Who calls, and who is called.
pub fn ends() -> (End, End) {
    let keys = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]));
    (
        End::new(&keys[0], keys[1].public(), ADDRESSES[1]),
        End::new(&keys[1], keys[0].public(), ADDRESSES[0]),
    )
}

/// As [`ends`], after a handshake: each with its session.
pub fn sessions() -> ([End; 2], [Arc<Session>; 2]) {
    let (mut caller, mut called) = ends();
    let initiation = caller.initiation();
    let now = caller.now();
    let (session, response) = called.answer(&initiation, now);
    let at = |place: usize| ADDRESSES[place].parse::<SocketAddr>().expect("an address");
    let of_called = called.peer.response_created(session, &response, now);
    let of_caller = caller.take(&response);
    let of_caller = caller.peer.response_received(of_caller, at(1).into(), now);
    let sessions = [of_caller, of_called].map(|session| session.expect("nothing came between"));
    ([caller, called], sessions)
}

/// Callers of one node by the public key of each.
pub fn callers(count: usize, of: PublicKey) -> (Vec<PublicKey>, Vec<End>) {
    (0..count as u32)
        .map(|number| {
            // None is the key of a node.
            let mut bytes = [9; 32];
            bytes[1..5].copy_from_slice(&number.to_le_bytes());
            let key = PrivateKey::from_bytes(bytes);
            (key.public(), End::new(&key, of, ADDRESSES[1]))
        })
        .unzip()
}

/// An initiation of each whose first mac is wrong.
pub fn forgeries(callers: &mut [End]) -> RecvBatch {
    let mut batch = RecvBatch::new(1);
    for caller in callers {
        let mut initiation = caller.initiation();
        initiation[INITIATION_LEN - 32] ^= 1;
        push(&mut batch, &initiation);
    }
    batch
}

/// Puts a message into a batch, as a datagram of its own from one site with many peers.
pub fn push(batch: &mut RecvBatch, message: &[u8]) {
    push_from(ADDRESSES[0].parse().expect("an address"), batch, message);
}

/// As [`push`], from elsewhere.
pub fn push_from(remote: SocketAddr, batch: &mut RecvBatch, message: &[u8]) {
    let start = batch.datagrams.last().map_or(0, |last| last.range.end);
    let range = start..start + message.len();
    batch.arena[range.clone()].copy_from_slice(message);
    batch.datagrams.push(Datagram {
        stride: range.len(),
        range,
        remote,
        source: None,
        ecn: Ecn::NotEct,
    });
}

/// One end of a handshake, which knows the other.
#[derive(Debug)]
pub struct End {
    identity: Arc<Identity>,
    shared: StaticShared,
    /// The other, as seen from here.
    pub peer: Peer,
    clock: Tai64nClock,
    /// Moved on with each initiation, so that the next is allowed.
    now: Instant,
    wall: WallTime,
}

impl End {
    /// One that is `private` and knows `of`, which is at an address.
    pub fn new(private: &PrivateKey, of: PublicKey, at: &str) -> Self {
        let identity = Arc::new(Identity::new(private.clone()));
        let mut peer = Peer::new(of, 1);
        peer.set_endpoints(vec![at.parse().expect("an address")]);
        Self {
            shared: identity.shared_with(&of).expect("an ordinary key"),
            identity,
            peer,
            clock: Tai64nClock::without_ceiling(),
            now: NOW,
            wall: WALL,
        }
    }

    /// The time of the last initiation.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The secret with the other end, which is otherwise computed once.
    pub fn shared_anew(&self) -> StaticShared {
        let shared = self.identity.shared_with(self.peer.public_key());
        shared.expect("an ordinary key")
    }

    /// Leave for the next initiation.
    pub fn ticket(&mut self) -> InitiationTicket {
        self.now = self.now + PAUSE;
        self.wall = WallTime(self.wall.0 + PAUSE);
        let timestamp = self.clock.stamp(self.wall).expect("there is no ceiling");
        let ticket = self.peer.begin_initiation(timestamp, self.now);
        ticket.expect("the last was long ago")
    }

    /// The initiation for which leave was given.
    pub fn create(&self, ticket: &InitiationTicket) -> (InFlight, [u8; INITIATION_LEN]) {
        let created = ticket.create(&self.identity, &self.shared, 1, [5; 32]);
        created.expect("ordinary keys")
    }

    /// The next initiation.
    pub fn initiation(&mut self) -> [u8; INITIATION_LEN] {
        let ticket = self.ticket();
        let (in_flight, bytes) = self.create(&ticket);
        self.peer.initiation_created(in_flight, self.now);
        bytes
    }

    /// Answers an initiation.
    pub fn answer(&mut self, initiation: &[u8], now: Instant) -> (Session, [u8; RESPONSE_LEN]) {
        let Ok(Message::Handshake(message @ Handshake::Initiation(parsed))) =
            messages::parse(initiation)
        else {
            panic!("it is an initiation");
        };
        assert!(self.identity.verify(message).is_some(), "the first mac");
        let pending = open_initiation(&self.identity, parsed).expect("it is for this end");
        let authentic = pending.authenticate(&self.shared).expect("it is authentic");
        let from = ADDRESSES[0].parse::<SocketAddr>().expect("an address");
        let ticket = self
            .peer
            .initiation_received(&authentic, from.into(), now)
            .expect("it is new");
        ticket
            .respond(authentic, 2, [6; 32])
            .expect("ordinary keys")
    }

    /// Takes the response to the last initiation.
    pub fn take(&self, response: &[u8]) -> Session {
        self.accept(response).expect("it is authentic")
    }

    /// As [`Self::take`], of something that need not be that response.
    pub fn accept(&self, response: &[u8]) -> Option<Session> {
        let Ok(Message::Handshake(message @ Handshake::Response(parsed))) =
            messages::parse(response)
        else {
            return None;
        };
        self.identity.verify(message)?;
        let opener = self.peer.in_flight(parsed.receiver())?;
        opener.consume_response(parsed).ok()
    }
}
