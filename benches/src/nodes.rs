//! Routers in memory, and what one sends put where another receives it.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use warren_config::{AllowedIpChange, DeviceChange, PeerChange, PrivateKey, PublicKey, WallTime};
use warren_engine::{Control, Edges, Entropy, Inbound, Outbound, Router, Timestamps};
use warren_packet::batch::{Datagram, ReadBatch, RecvBatch, SendBatch};
use warren_packet::coalesce::Merge;
use warren_packet::{Ecn, vnet};
use warren_wireguard::time::Instant;

use crate::packets::MTU;

/// Where the nodes are.
pub const ADDRESSES: [&str; 2] = ["192.0.2.1:51820", "192.0.2.2:51820"];
/// When a bench begins; its clock stands still unless it says otherwise.
pub const NOW: Instant = Instant::from_nanos(1_000_000_000_000);
/// The wall time then.
pub const WALL: WallTime = WallTime(Duration::from_secs(1_700_000_000));
/// The prefix of a node's peer, in both families.
const PREFIXES: [[&str; 2]; 2] = [
    ["10.0.0.1/32", "fd00::1/128"],
    ["10.0.0.2/32", "fd00::2/128"],
];

/// Two nodes with a session that both have used, after this batch went from the first to the
/// second.
pub fn pair(first: &ReadBatch) -> (Node, Node) {
    let keys = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]));
    let mut left = Node::new(0, &keys[0]);
    let mut right = Node::new(1, &keys[1]);
    left.add_peer(keys[1].public(), 1);
    right.add_peer(keys[0].public(), 0);
    // The packets are staged, and follow the handshake.
    left.send(first);
    for _ in 0..4 {
        left.tick();
        right.receive(&mut left.wire.received);
        left.wire.clear();
        right.tick();
        left.receive(&mut right.wire.received);
        right.wire.clear();
    }
    assert!(right.wire.delivered > 0, "the session works");
    (left, right)
}

/// A router, and what its workers and its control thread keep.
#[derive(Debug)]
pub struct Node {
    /// The router.
    pub router: Router,
    /// What it sent last.
    pub wire: Wire,
    control: Control,
    outbound: Outbound,
    inbound: Inbound,
    out: SendBatch,
}

impl Node {
    /// The node at [`ADDRESSES`]`[place]`, without a peer.
    pub fn new(place: usize, private: &PrivateKey) -> Self {
        let seed = Box::new(Sequence(place as u64 + 1));
        let router = Router::new(MTU as u32, Box::new(|| {}), seed);
        let change = DeviceChange {
            private_key: Some(Some(private.clone())),
            ..DeviceChange::default()
        };
        router.apply(&change, NOW);
        Self {
            router,
            control: Control::new(Timestamps::forgetful()),
            outbound: Outbound::new(),
            inbound: Inbound::new(Merge {
                tcp: true,
                udp: true,
            }),
            out: SendBatch::new(5 * 65536, 64),
            wire: Wire {
                received: RecvBatch::new(8),
                delivered: 0,
                // What this node sends comes, at the other one, from where that one expects it.
                remote: address(place),
                used: 0,
            },
        }
    }

    /// Adds the peer at a place, with its prefixes.
    fn add_peer(&self, key: PublicKey, place: usize) {
        let mut change = PeerChange::new(key);
        change.endpoints = Some(vec![address(place)]);
        change.allowed_ips = PREFIXES[place]
            .map(|prefix| AllowedIpChange::Add(prefix.parse().expect("a prefix")))
            .to_vec();
        self.add_peers(vec![change]);
    }

    /// Adds peers.
    pub fn add_peers(&self, peers: Vec<PeerChange>) {
        let change = DeviceChange {
            peers,
            ..DeviceChange::default()
        };
        self.router.apply(&change, NOW);
    }

    /// Takes what its TUN delivered.
    pub fn send(&mut self, batch: &ReadBatch) {
        self.wire.clear();
        self.router.outbound(
            &mut self.outbound,
            batch,
            &mut self.out,
            NOW,
            &mut self.wire,
        );
    }

    /// As [`Self::send`], to nowhere: what it costs to send is the kernel's.
    pub fn send_nowhere(&mut self, batch: &ReadBatch) {
        let nowhere = &mut Nowhere;
        self.router
            .outbound(&mut self.outbound, batch, &mut self.out, NOW, nowhere);
    }

    /// Takes what its socket delivered.
    pub fn receive(&mut self, received: &mut RecvBatch) {
        self.receive_at(received, NOW);
    }

    /// As [`Self::receive`], at another time.
    pub fn receive_at(&mut self, received: &mut RecvBatch, now: Instant) {
        self.router.inbound(
            &mut self.inbound,
            received,
            &mut self.out,
            now,
            &mut self.wire,
        );
    }

    /// Does all that its control thread would.
    pub fn tick(&mut self) {
        self.tick_at(NOW);
    }

    /// As [`Self::tick`], at another time.
    pub fn tick_at(&mut self, now: Instant) {
        while self
            .router
            .tick(&mut self.control, now, WALL, &mut self.wire)
        {}
    }
}

/// Keeps what one router sent, as the other one receives it.
#[derive(Debug)]
pub struct Wire {
    /// For the other one.
    pub received: RecvBatch,
    /// Bytes of packets that came out of the tunnel.
    pub delivered: usize,
    remote: SocketAddr,
    used: usize,
}

impl Wire {
    /// Forgets what was sent.
    pub fn clear(&mut self) {
        self.received.clear();
        self.used = 0;
    }
}

impl Edges for Wire {
    fn transmit(&mut self, batch: &mut SendBatch) {
        for transmit in batch.transmits.drain(..) {
            let range = self.used..self.used + transmit.range.len();
            self.used = range.end;
            self.received.arena[range.clone()].copy_from_slice(&batch.arena[transmit.range]);
            self.received.datagrams.push(Datagram {
                range,
                stride: transmit.stride,
                remote: self.remote,
                source: None,
                ecn: Ecn::NotEct,
            });
        }
    }

    fn deliver(&mut self, _: &vnet::Header, _: &[u8], pieces: &[Range<usize>]) {
        self.delivered += pieces.iter().map(Range::len).sum::<usize>();
    }
}

/// Takes everything, keeps nothing.
struct Nowhere;

impl Edges for Nowhere {
    fn transmit(&mut self, batch: &mut SendBatch) {
        batch.clear();
    }

    fn deliver(&mut self, _: &vnet::Header, _: &[u8], _: &[Range<usize>]) {}
}

/// Numbers that are good enough for keys that protect nothing.
#[derive(Debug)]
struct Sequence(u64);

impl Entropy for Sequence {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

fn address(place: usize) -> SocketAddr {
    ADDRESSES[place].parse().expect("an address")
}
