//! Two nodes and a virtual clock.
//!
//! Nothing happens between nodes but what a test lets happen: [`Pair::settle`] delivers what is on
//! the wire, [`Pair::advance`] moves time from deadline to deadline, [`Pair::wire`] is what was
//! sent and may be dropped, kept or changed. Index tables are kept as exactly as an engine would,
//! and checked on every step.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_config::{PrivateKey, PublicKey, WallTime};
use warren_wireguard::messages::{self, DATA_HEADER, Handshake, Message, TAG};
use warren_wireguard::time::{Instant, Tai64nClock};
use warren_wireguard::{
    Accepted, Action, Endpoint, Identity, Peer, PeerState, Permit, Record, Reservation, Session,
    StaticShared, Verdict, open_initiation,
};

pub(crate) const ALICE: SocketAddr = addr(1);
pub(crate) const BOB: SocketAddr = addr(2);

pub(crate) const fn addr(host: u8) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr};
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), 51820)
}

pub(crate) fn private_key(name: u8) -> PrivateKey {
    PrivateKey::from_bytes(std::array::from_fn(|i| {
        name.wrapping_mul(31).wrapping_add(i as u8 * 7)
    }))
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Something on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    Response,
    CookieReply,
    Keepalive,
    Data,
}

impl Datagram {
    pub(crate) fn kind(&self) -> Kind {
        match messages::parse(&self.bytes).expect("nodes send messages only") {
            Message::Handshake(Handshake::Initiation(_)) => Kind::Initiation,
            Message::Handshake(Handshake::Response(_)) => Kind::Response,
            Message::Handshake(Handshake::CookieReply(_)) => Kind::CookieReply,
            Message::Data { sealed, .. } if sealed.len() == TAG => Kind::Keepalive,
            Message::Data { .. } => Kind::Data,
        }
    }
}

/// Who owns a receiver index.
#[derive(Debug)]
enum Owner {
    Handshake,
    Session(Arc<Session>),
}

/// One node with one peer, as an engine would drive it.
pub(crate) struct Node {
    pub(crate) identity: Arc<Identity>,
    pub(crate) addr: SocketAddr,
    pub(crate) peer: Peer,
    shared: StaticShared,
    indices: BTreeMap<u32, Owner>,
    clock: Tai64nClock,
    random: Random,
    /// Packets that came out of the tunnel.
    pub(crate) delivered: Vec<Vec<u8>>,
    /// Staged packets that were given up.
    pub(crate) purged: u32,
    /// Verdicts other than "accepted", and messages that were refused.
    pub(crate) refused: Vec<String>,
    /// What the last batch meant.
    pub(crate) last_accepted: Accepted,
    outbox: Vec<Datagram>,
}

/// Splitmix64: enough to be different each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.next() as u8);
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill(&mut bytes);
        bytes
    }
}

impl Node {
    pub(crate) fn new(name: u8, addr: SocketAddr, peer: &PublicKey) -> Self {
        let identity = Arc::new(Identity::new(private_key(name)));
        Self {
            addr,
            peer: Peer::new(*peer, u64::from(name)),
            shared: identity.shared_with(peer).expect("a good key"),
            identity,
            indices: BTreeMap::new(),
            clock: Tai64nClock::without_ceiling(),
            random: Random(u64::from(name)),
            delivered: Vec::new(),
            purged: 0,
            refused: Vec::new(),
            last_accepted: Accepted::default(),
            outbox: Vec::new(),
        }
    }

    /// Receiver indices in use.
    pub(crate) fn indices(&self) -> usize {
        self.indices.len()
    }

    /// Sends a packet, or stages it. Answers how many staged ones were dropped for it.
    pub(crate) fn send(&mut self, packet: &[u8], now: Instant) -> u32 {
        match self.peer.reserve(1, now) {
            Reservation::Ready(permit) => {
                self.seal(&permit, &[packet.into()]);
                0
            }
            Reservation::Stage => self.peer.stage(packet.into(), 1),
            Reservation::NoEndpoint => {
                self.refused.push("no endpoint".into());
                0
            }
        }
    }

    /// Does everything that the peer asks for.
    pub(crate) fn poll(&mut self, now: Instant) {
        while self.peer.attention() {
            let Some(action) = self.peer.poll(now) else {
                break;
            };
            match action {
                Action::RetireIndex(index) => {
                    self.indices
                        .remove(&index)
                        .expect("an index is retired once");
                }
                Action::StagedPurged(packets) => self.purged += packets,
                Action::SendKeepalive(permit) => self.seal(&permit, &[[].into()]),
                Action::Flush => {
                    while let Some((permit, packets)) = self.peer.take_staged(now) {
                        self.seal(&permit, &packets);
                    }
                }
                Action::Initiate => self.initiate(now),
            }
        }
        assert_eq!(
            self.peer.poll(now).map(|action| format!("{action:?}")),
            None
        );
    }

    /// What was sent and is not on a wire yet.
    pub(crate) fn sent_all(&mut self) -> Vec<Datagram> {
        std::mem::take(&mut self.outbox)
    }

    pub(crate) fn sent_last(&mut self) -> Datagram {
        self.sent_all().pop().expect("something was sent")
    }

    /// Another process takes over: its state machine and index table come from plain data.
    pub(crate) fn take_over(&mut self, state: &PeerState) {
        self.peer = Peer::restore(state, 99);
        self.indices = self
            .peer
            .sessions()
            .map(|session| (session.local_index(), Owner::Session(Arc::clone(session))))
            .collect();
    }

    fn initiate(&mut self, now: Instant) {
        let timestamp = self.clock.stamp(wall(now)).expect("no ceiling");
        let Some(ticket) = self.peer.begin_initiation(timestamp, now) else {
            return;
        };
        let index = self.allocate();
        let ephemeral = self.random.bytes();
        let (in_flight, message) = ticket
            .create(&self.identity, &self.shared, index, ephemeral)
            .expect("good keys");
        self.peer.initiation_created(in_flight, now);
        self.put(ticket.endpoint().addr, message.to_vec());
    }

    /// Takes one datagram, whoever it is from.
    pub(crate) fn receive(&mut self, datagram: &Datagram, now: Instant) {
        let from = Endpoint::from(datagram.from);
        match messages::parse(&datagram.bytes) {
            Err(malformed) => self.refused.push(malformed.to_string()),
            Ok(Message::Data {
                receiver, counter, ..
            }) => {
                self.receive_data(receiver, counter, datagram, from, now);
            }
            Ok(Message::Handshake(message)) => {
                if self.identity.verify(message).is_none() {
                    self.refused.push("mac1".into());
                } else if let Err(error) = self.receive_handshake(message, from, now) {
                    self.refused.push(error);
                }
            }
        }
        self.poll(now);
    }

    fn receive_handshake(
        &mut self,
        message: Handshake<'_>,
        from: Endpoint,
        now: Instant,
    ) -> Result<(), String> {
        match message {
            Handshake::Initiation(message) => {
                let pending = open_initiation(&self.identity, message).map_err(text)?;
                if pending.static_key() != self.peer.public_key() {
                    return Err("unknown peer".into());
                }
                let initiation = pending.authenticate(&self.shared).map_err(text)?;
                let ticket = self
                    .peer
                    .initiation_received(&initiation, from, now)
                    .map_err(text)?;
                let (index, ephemeral) = (self.allocate(), self.random.bytes());
                let (session, response) =
                    ticket.respond(initiation, index, ephemeral).map_err(text)?;
                let session = self
                    .peer
                    .response_created(session, &response, now)
                    .map_err(text)?;
                self.indices.insert(index, Owner::Session(session));
                self.put(ticket.endpoint().addr, response.to_vec());
            }
            Handshake::Response(message) => {
                let opener = self
                    .peer
                    .in_flight(message.receiver())
                    .ok_or("not in flight")?;
                let session = opener.consume_response(message).map_err(text)?;
                let session = self
                    .peer
                    .response_received(session, from, now)
                    .map_err(text)?;
                self.indices
                    .insert(session.local_index(), Owner::Session(session));
            }
            Handshake::CookieReply(message) => {
                self.indices
                    .get(&message.receiver())
                    .ok_or("unknown receiver")?;
                self.peer
                    .cookie_reply_received(message, now)
                    .map_err(text)?;
            }
        }
        Ok(())
    }

    fn receive_data(
        &mut self,
        receiver: u32,
        counter: u64,
        datagram: &Datagram,
        from: Endpoint,
        now: Instant,
    ) {
        let Some(Owner::Session(session)) = self.indices.get(&receiver) else {
            self.refused.push("unknown receiver".into());
            return;
        };
        let mut bytes = datagram.bytes.clone();
        let (stride, mut opened) = (bytes.len(), Vec::new());
        session
            .opening()
            .open_run(&[counter], &mut bytes, stride, DATA_HEADER, &mut opened);
        if opened != [Ok(())] {
            self.refused.push("forged".into());
            return;
        }
        let plaintext = &bytes[DATA_HEADER..bytes.len() - TAG];
        let mut records = [Record::new(counter, plaintext.len())];
        let session = Arc::clone(session);
        self.last_accepted = self.peer.accept(&session, from, &mut records, now);
        match records[0].verdict {
            Verdict::Accepted if plaintext.is_empty() => {}
            Verdict::Accepted => self.delivered.push(plaintext.to_vec()),
            verdict => self.refused.push(format!("{verdict:?}")),
        }
    }

    fn seal(&mut self, permit: &Permit, packets: &[Box<[u8]>]) {
        for (counter, packet) in (permit.first_counter..).zip(packets) {
            let mut bytes = vec![0; DATA_HEADER + packet.len() + TAG];
            messages::write_data_header(&mut bytes, permit.session.remote_index(), counter);
            bytes[DATA_HEADER..][..packet.len()].copy_from_slice(packet);
            let stride = bytes.len();
            permit
                .session
                .sealing()
                .seal_run(counter, &mut bytes, stride, DATA_HEADER);
            self.put(permit.endpoint.addr, bytes);
        }
    }

    fn allocate(&mut self) -> u32 {
        let index = self.random.next() as u32;
        assert!(
            self.indices.insert(index, Owner::Handshake).is_none(),
            "drawn twice"
        );
        index
    }

    fn put(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        self.outbox.push(Datagram {
            from: self.addr,
            to,
            bytes,
        });
    }
}

/// Makes the first mac right again, as anybody can who knows the public key of the receiver.
pub(crate) fn remac(message: &mut [u8], to: &PublicKey) {
    use blake2::digest::consts::U16;
    use blake2::digest::{FixedOutput, KeyInit, Update};
    use blake2::{Blake2s256, Blake2sMac, Digest};
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(to.as_bytes())
        .finalize();
    let (covered, macs) = message.split_at_mut(message.len() - 32);
    let mac = Blake2sMac::<U16>::new_from_slice(&key)
        .expect("32 bytes")
        .chain(&*covered);
    macs[..16].copy_from_slice(&mac.finalize_fixed());
}

fn text<E: std::error::Error>(error: E) -> String {
    error.to_string()
}

/// Wall time follows time since boot, from some day on.
pub(crate) fn wall(now: Instant) -> WallTime {
    WallTime(secs(1_700_000_000) + Duration::from_nanos(now.as_nanos()))
}

/// Alice, who calls, and Bob, who knows where Alice is only from being called.
pub(crate) struct Pair {
    pub(crate) alice: Node,
    pub(crate) bob: Node,
    pub(crate) now: Instant,
    /// What was sent and has not arrived.
    pub(crate) wire: VecDeque<Datagram>,
    /// Everything that was ever sent, and when.
    pub(crate) log: Vec<(Instant, Datagram)>,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let [alice, bob] = [1, 2].map(|name| private_key(name).public());
        let mut pair = Self {
            alice: Node::new(1, ALICE, &bob),
            bob: Node::new(2, BOB, &alice),
            now: Instant::from_nanos(1_000_000_000_000),
            wire: VecDeque::new(),
            log: Vec::new(),
        };
        pair.alice.peer.set_endpoints(vec![BOB]);
        pair
    }

    /// A pair that has shaken hands, with Alice as the initiator.
    pub(crate) fn connected() -> Self {
        let mut pair = Self::new();
        pair.alice_sends(b"hello");
        pair.settle();
        assert_eq!(pair.bob.delivered, [b"hello"]);
        pair.bob.delivered.clear();
        pair
    }

    pub(crate) fn alice_sends(&mut self, packet: &[u8]) {
        self.alice.send(packet, self.now);
        self.alice.poll(self.now);
        self.collect();
    }

    pub(crate) fn bob_sends(&mut self, packet: &[u8]) {
        self.bob.send(packet, self.now);
        self.bob.poll(self.now);
        self.collect();
    }

    /// Delivers what is on the wire, and what that causes, until nothing is.
    pub(crate) fn settle(&mut self) {
        self.poll();
        while let Some(datagram) = self.wire.pop_front() {
            self.deliver(&datagram);
        }
    }

    /// Delivers one datagram. What is sent to nobody is lost.
    pub(crate) fn deliver(&mut self, datagram: &Datagram) {
        for node in [&mut self.alice, &mut self.bob] {
            if node.addr == datagram.to {
                node.receive(datagram, self.now);
            }
        }
        self.collect();
    }

    /// Lets both nodes do what they have to, without delivering.
    pub(crate) fn poll(&mut self) {
        self.alice.poll(self.now);
        self.bob.poll(self.now);
        self.collect();
    }

    /// Moves time on, from deadline to deadline, delivering everything.
    pub(crate) fn advance(&mut self, duration: Duration) {
        self.advance_with(duration, Self::settle);
    }

    /// Moves time on while the wire is cut: what is sent is lost.
    pub(crate) fn advance_cut(&mut self, duration: Duration) {
        self.advance_with(duration, |pair| {
            pair.poll();
            pair.wire.clear();
        });
    }

    fn advance_with(&mut self, duration: Duration, mut step: impl FnMut(&mut Self)) {
        let end = self.now + duration;
        step(self);
        while let Some(deadline) = self.next_deadline().filter(|deadline| *deadline <= end) {
            assert!(deadline > self.now, "a deadline is never in the past");
            self.now = deadline;
            self.tick();
            step(self);
        }
        self.now = end;
    }

    /// Jumps: nobody looked at a clock meanwhile.
    pub(crate) fn sleep(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.tick();
    }

    fn tick(&mut self) {
        for node in [&mut self.alice, &mut self.bob] {
            node.peer.handle_timeout(self.now);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        [&self.alice, &self.bob]
            .into_iter()
            .filter_map(|node| node.peer.next_deadline())
            .min()
    }

    fn collect(&mut self) {
        for node in [&mut self.alice, &mut self.bob] {
            for datagram in node.outbox.drain(..) {
                self.log.push((self.now, datagram.clone()));
                self.wire.push_back(datagram);
            }
        }
    }

    /// When messages of a kind were sent by `from`, in seconds from `since` on.
    pub(crate) fn sent(&self, from: SocketAddr, kind: Kind, since: Instant) -> Vec<f64> {
        self.log
            .iter()
            .filter(|(at, datagram)| {
                *at >= since && datagram.from == from && datagram.kind() == kind
            })
            .map(|(at, _)| at.saturating_duration_since(since).as_secs_f64())
            .collect()
    }
}
