//! Nodes, the network between them, and the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_config::{DeviceChange, PeerChange, PublicKey};
use warren_wireguard::time::Instant;

use crate::node::{Batches, Done, Node};
use crate::packet::{self, Flow};
use crate::random::Random;
use crate::wire::{Conditions, Flight, Wire};

/// A mesh, its clock and its network.
#[derive(Debug)]
pub struct Mesh {
    /// The nodes; a test may do to them what it likes.
    pub nodes: Vec<Node>,
    /// The network.
    pub wire: Wire,
    /// Chance for the test itself.
    pub random: Random,
    /// Packets that were delivered so far.
    pub delivered: u64,
    /// Packets other than the simulation's own that nodes handed to their hosts: ICMP errors.
    pub foreign: Vec<(usize, Vec<u8>)>,
    now: Instant,
    ledger: Vec<Sent>,
    /// Every key that a node ever had.
    keys: BTreeMap<PublicKey, usize>,
    /// The last packet of each flow that was delivered, if the network keeps the order.
    last: BTreeMap<(usize, Flow), u64>,
    batches: Batches,
}

/// A packet that a host has sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    from: usize,
    /// Whose the destination was when it was sent.
    to: Option<usize>,
    flow: Flow,
    at: Instant,
    delivered: bool,
}

impl Mesh {
    /// So many nodes, all peers of each other, on a clean network.
    pub fn new(nodes: u16, seed: u64) -> Self {
        let mut mesh = Self::of_strangers(nodes, seed);
        for of in 0..mesh.nodes.len() {
            let peers: Vec<PeerChange> = mesh
                .nodes
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != of)
                .map(|(_, node)| node.as_peer())
                .collect();
            mesh.set_peers(of, peers);
        }
        mesh
    }

    /// So many nodes that do not know each other.
    pub fn of_strangers(nodes: u16, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let nodes: Vec<Node> = (0..nodes)
            .map(|number| Node::new(number, random.fork()))
            .collect();
        Self {
            keys: (0..)
                .zip(&nodes)
                .map(|(at, node)| (node.public(), at))
                .collect(),
            nodes,
            wire: Wire::new(random.fork()),
            random,
            delivered: 0,
            foreign: Vec::new(),
            now: Instant::from_nanos(1_000_000_000),
            ledger: Vec::new(),
            last: BTreeMap::new(),
            batches: Batches::new(),
        }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The network is another from now on.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.wire.conditions = conditions;
        self.last.clear();
    }

    /// Changes peers of a node.
    pub fn set_peers(&mut self, of: usize, peers: impl IntoIterator<Item = PeerChange>) {
        let change = DeviceChange {
            peers: peers.into_iter().collect(),
            ..DeviceChange::default()
        };
        self.apply(of, &change);
    }

    /// Changes a node.
    pub fn apply(&mut self, of: usize, change: &DeviceChange) {
        self.nodes[of].apply(change, self.now);
        self.keys.insert(self.nodes[of].public(), of);
        self.tick(of);
    }

    /// Restarts a node.
    pub fn restart(&mut self, of: usize) {
        self.nodes[of].restart(self.now);
        self.tick(of);
    }

    /// Moves a node to another address. Datagrams to the old one are lost from now on.
    pub fn relocate(&mut self, of: usize, address: SocketAddr) {
        self.nodes[of].address = address;
    }

    /// A flow between hosts behind two nodes.
    pub fn flow(&self, from: usize, to: usize, number: u16) -> Flow {
        let v6 = number % 2 == 1;
        Flow {
            source: self.nodes[from].host(v6),
            destination: self.nodes[to].host(v6),
            number,
        }
    }

    /// A host behind `from` sends packets of a flow to a host behind `to`.
    pub fn send(&mut self, from: usize, to: usize, number: u16, count: usize, payload: usize) {
        self.send_flow(from, self.flow(from, to, number), count, payload);
    }

    /// As [`Self::send`], to and from any address.
    pub fn send_flow(&mut self, from: usize, flow: Flow, count: usize, payload: usize) {
        let to = self.owner(from, flow.destination);
        let first = self.ledger.len() as u64;
        let sent = Sent {
            from,
            to,
            flow,
            at: self.now,
            delivered: false,
        };
        self.ledger.extend(std::iter::repeat_n(sent, count));
        let (header, bytes) = packet::build(flow, first, count, payload);
        self.batches.push_read(header, &bytes);
        let done = self.nodes[from].outbound(&mut self.batches, self.now);
        self.carry_out(from, done);
        self.tick(from);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let deadlines = self
                .nodes
                .iter()
                .filter_map(|node| node.control.next_deadline());
            let next = deadlines.chain(self.wire.next_arrival()).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            assert!(next >= self.now, "time does not go backwards");
            self.now = next;
            self.receive();
            for at in 0..self.nodes.len() {
                self.tick(at);
            }
        }
    }

    /// How many packets were sent so far: the number of the next.
    pub fn mark(&self) -> usize {
        self.ledger.len()
    }

    /// Packets behind a mark that were sent to somebody and did not arrive, by when they were sent.
    pub fn missing(&self, since: usize) -> Vec<Instant> {
        self.ledger[since..]
            .iter()
            .filter(|sent| sent.to.is_some() && !sent.delivered)
            .map(|sent| sent.at)
            .collect()
    }

    /// Every packet behind a mark has arrived.
    ///
    /// # Panics
    ///
    /// If one has not.
    pub fn assert_all_delivered(&self, since: usize) {
        let missing: Vec<_> = self.ledger[since..]
            .iter()
            .filter(|sent| !sent.delivered)
            .take(5)
            .collect();
        assert!(missing.is_empty(), "lost, among others: {missing:#?}");
    }

    /// No node waits for anything.
    ///
    /// # Panics
    ///
    /// If one does.
    pub fn assert_idle(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.control.next_deadline(), None, "node {at}");
        }
    }

    /// Initiations that were sent so far, by all.
    pub fn initiations(&self) -> u64 {
        self.wire.initiations.values().sum()
    }

    /// What the network has for this address arrives, in batches.
    fn receive(&mut self) {
        let mut at_node: BTreeMap<usize, Vec<Flight>> = BTreeMap::new();
        while let Some(flight) = self.wire.arrived(self.now) {
            let at = self.nodes.iter().position(|node| node.address == flight.to);
            if let Some(at) = at {
                at_node.entry(at).or_default().push(flight);
            }
        }
        for (at, flights) in at_node {
            let local = self.nodes[at].local();
            for flight in &flights {
                if !self.batches.push_received(flight, local) {
                    let done = self.nodes[at].inbound(&mut self.batches, self.now);
                    self.carry_out(at, done);
                    assert!(self.batches.push_received(flight, local));
                }
            }
            let done = self.nodes[at].inbound(&mut self.batches, self.now);
            self.carry_out(at, done);
        }
    }

    fn tick(&mut self, at: usize) {
        if self.nodes[at].is_due(self.now) {
            let done = self.nodes[at].tick(self.now);
            self.carry_out(at, done);
        }
    }

    fn carry_out(&mut self, at: usize, done: Done) {
        let from = self.nodes[at].address;
        for (transmit, bytes) in done.datagrams() {
            assert!(!packet::is_visible_in(bytes), "plaintext on the wire");
            if transmit.source.is_some_and(|source| source.ip != from.ip()) {
                // What a kernel refuses, and a worker then reports.
                self.nodes[at].router.source_gone(transmit.tag);
            }
            let flight = Flight {
                from,
                to: transmit.remote,
                ecn: transmit.ecn,
                bytes: bytes.to_vec(),
            };
            self.wire.send(&flight, self.now);
        }
        for packet in done.delivered {
            self.deliver(at, packet);
        }
    }

    fn deliver(&mut self, at: usize, bytes: Vec<u8>) {
        let Some((flow, number)) = packet::read(&bytes) else {
            self.foreign.push((at, bytes));
            return;
        };
        let owner = self.owner(at, flow.source);
        let sent = usize::try_from(number)
            .ok()
            .and_then(|number| self.ledger.get_mut(number))
            .expect("a packet that was sent");
        assert_eq!(sent.flow, flow, "packet {number}");
        assert_eq!(
            Some(sent.from),
            owner,
            "packet {number} came from whom its source belongs to"
        );
        assert_eq!(
            sent.to,
            Some(at),
            "packet {number} came to whom it was sent"
        );
        assert!(
            !std::mem::replace(&mut sent.delivered, true),
            "packet {number} was delivered twice"
        );
        self.delivered += 1;
        if self.wire.conditions.keep_order() {
            let last = self.last.insert((at, flow), number);
            assert!(
                last.is_none_or(|last| last < number),
                "packet {number} came after {last:?}"
            );
        }
    }

    /// Whose an address is, as a node is configured: the longest match, found the slow way.
    fn owner(&self, of: usize, address: IpAddr) -> Option<usize> {
        let peers = &self.nodes[of].config.peers;
        let matches: BTreeSet<(u8, usize)> = peers
            .iter()
            .flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |prefix| (key, prefix)))
            .filter(|(_, prefix)| prefix.contains(&address))
            .map(|(key, prefix)| (prefix.prefix_len(), self.keys[key]))
            .collect();
        matches.last().map(|(_, owner)| *owner)
    }
}
