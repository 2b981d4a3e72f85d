//! A peer that has the keys and keeps none of the rules: it seals what it likes.

use std::net::SocketAddr;
use std::sync::Arc;

use warren_config::{PrivateKey, PublicKey};
use warren_wireguard::messages::{self, DATA_HEADER, Handshake, Message, TAG};
use warren_wireguard::time::{Instant, Tai64nClock};
use warren_wireguard::{Endpoint, Identity, Peer, Session, StaticShared, open_initiation};

use crate::node::wall;
use crate::random::Random;

/// Somebody who is a peer of the node under test.
#[derive(Debug)]
pub struct Insider {
    /// Where it is.
    pub address: SocketAddr,
    identity: Arc<Identity>,
    shared: StaticShared,
    peer: Peer,
    /// Every session that it ever had; the last is the one that it seals with.
    sessions: Vec<Arc<Session>>,
    clock: Tai64nClock,
    random: Random,
    /// The next counter.
    pub counter: u64,
}

impl Insider {
    /// Somebody who knows the node with the key `of`.
    pub fn new(address: SocketAddr, of: &PublicKey, mut random: Random) -> Self {
        let identity = Arc::new(Identity::new(PrivateKey::from_bytes(random.key())));
        let shared = identity.shared_with(of).expect("an ordinary key");
        let mut peer = Peer::new(*of, random.next());
        // Where the node is does not matter: the test carries the messages.
        peer.set_endpoints(vec![address]);
        Self {
            address,
            identity,
            shared,
            peer,
            sessions: Vec::new(),
            clock: Tai64nClock::without_ceiling(),
            random,
            counter: 0,
        }
    }

    /// Its public key.
    pub fn public(&self) -> PublicKey {
        *self.identity.public()
    }

    /// A valid initiation, however soon after the last.
    pub fn initiation(&mut self, now: Instant) -> Vec<u8> {
        // Whoever keeps no rules forgets when it last sent one.
        self.peer.expire_sessions();
        let timestamp = self.clock.stamp(wall(now)).expect("there is no ceiling");
        let ticket = self
            .peer
            .begin_initiation(timestamp, now)
            .expect("nothing was sent before");
        let index = self.random.next() as u32;
        let (in_flight, bytes) = ticket
            .create(&self.identity, &self.shared, index, self.random.key())
            .expect("ordinary keys");
        self.peer.initiation_created(in_flight, now);
        bytes.to_vec()
    }

    /// Takes the response to the last initiation.
    pub fn response(&mut self, bytes: &[u8], now: Instant) {
        let Ok(Message::Handshake(Handshake::Response(response))) = messages::parse(bytes) else {
            panic!("it is no response");
        };
        let session = self
            .peer
            .in_flight(response.receiver())
            .expect("an answer to the last initiation")
            .consume_response(response)
            .expect("it is authentic");
        let from = Endpoint::from(self.address);
        let session = self
            .peer
            .response_received(session, from, now)
            .expect("it comes once");
        self.sessions.push(session);
        self.counter = 0;
    }

    /// The response to an initiation, however soon after the last, and whoever called.
    pub fn answer(&mut self, bytes: &[u8], now: Instant) -> Vec<u8> {
        let Ok(Message::Handshake(Handshake::Initiation(initiation))) = messages::parse(bytes)
        else {
            panic!("it is no initiation");
        };
        let initiation = open_initiation(&self.identity, initiation)
            .and_then(|pending| pending.authenticate(&self.shared))
            .expect("it is authentic");
        let from = Endpoint::from(self.address);
        let ticket = self
            .peer
            .initiation_received(&initiation, from, now)
            .expect("it comes once");
        let index = self.random.next() as u32;
        let (session, response) = ticket
            .respond(initiation, index, self.random.key())
            .expect("ordinary keys");
        let session = self
            .peer
            .response_created(session, &response, now)
            .expect("nothing came between");
        self.sessions.push(session);
        self.counter = 0;
        response.to_vec()
    }

    /// Seals anything, with the next counter.
    pub fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let session = self.sessions.last().expect("a session");
        let mut record = vec![0; DATA_HEADER + plaintext.len() + TAG];
        record[DATA_HEADER..][..plaintext.len()].copy_from_slice(plaintext);
        messages::write_data_header(&mut record, session.remote_index(), self.counter);
        let len = record.len();
        session
            .sealing()
            .seal_run(self.counter, &mut record, len, DATA_HEADER);
        self.counter += 1;
        record
    }

    /// Opens a data message of any of its sessions.
    pub fn open(&self, datagram: &[u8]) -> Vec<u8> {
        let Ok(Message::Data {
            receiver, counter, ..
        }) = messages::parse(datagram)
        else {
            panic!("it is no data message");
        };
        let session = self
            .sessions
            .iter()
            .find(|session| session.local_index() == receiver)
            .expect("a session of its own");
        let mut record = datagram.to_vec();
        let mut opened = Vec::new();
        let len = record.len();
        session
            .opening()
            .open_run(&[counter], &mut record, len, DATA_HEADER, &mut opened);
        assert_eq!(opened, [Ok(())]);
        record[DATA_HEADER..len - TAG].to_vec()
    }
}
