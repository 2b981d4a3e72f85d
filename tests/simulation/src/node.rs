//! One node: a router, and what the engine would have around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_config::{
    AllowedIpChange, DeviceChange, DeviceConfig, PeerChange, PrivateKey, PublicKey, WallTime,
};
use warren_engine::{Control, Edges, Inbound, Outbound, Reason, Router, Timestamps};
use warren_packet::batch::{Datagram, ReadBatch, RecvBatch, SendBatch, Source, Transmit};
use warren_packet::coalesce::Merge;
use warren_packet::{Ecn, vnet};
use warren_wireguard::time::Instant;

use crate::packet;
use crate::random::Random;
use crate::wire::Flight;

/// MTU of every node's interface.
pub const MTU: u32 = 1420;
/// Wall time at the beginning of everything.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);
/// Turns of control after which it is taken to go in circles.
const MAX_TURNS: usize = 10_000;

/// A node of the mesh.
pub struct Node {
    /// What is tested.
    pub router: Router,
    /// The deadlines.
    pub control: Control,
    /// Where the node is.
    pub address: SocketAddr,
    /// Who it is.
    pub key: PrivateKey,
    /// What its device should be, by the model.
    pub config: DeviceConfig,
    /// The prefixes of its own.
    pub prefixes: Vec<IpNet>,
    outbound: Outbound,
    inbound: Inbound,
    woken: Arc<AtomicBool>,
    random: Random,
}

/// What a node has done in one call.
#[derive(Debug, Default)]
pub struct Done {
    /// What it sent: where to, from which address, and as what.
    pub sent: Vec<(Transmit, Vec<u8>)>,
    /// The packets that it delivered, cut.
    pub delivered: Vec<Vec<u8>>,
}

/// The buffers for one call; nodes share them, since nothing stays in them.
#[derive(Debug)]
pub struct Batches {
    /// What a TUN delivers.
    pub read: ReadBatch,
    /// What a socket delivers.
    pub recv: RecvBatch,
    /// What goes to a socket.
    pub send: SendBatch,
}

impl Batches {
    /// Empty ones.
    pub fn new() -> Self {
        Self {
            read: ReadBatch::new(1 << 20, 256),
            recv: RecvBatch::new(8),
            send: SendBatch::new(1 << 18, 64),
        }
    }

    /// Puts a packet among those that were read. There must be room.
    pub fn push_read(&mut self, header: vnet::Header, packet: &[u8]) {
        let spare = self.read.spare().expect("room for a packet");
        spare[..vnet::LEN].copy_from_slice(&header.encode());
        spare[vnet::LEN..][..packet.len()].copy_from_slice(packet);
        self.read.commit(packet.len());
    }

    /// Puts a datagram among those that were received, joined with the one before where a kernel
    /// would. Answers whether there was room.
    pub fn push_received(&mut self, flight: &Flight, at: Source) -> bool {
        let RecvBatch {
            arena, datagrams, ..
        } = &mut self.recv;
        let start = datagrams.last().map_or(0, |last| last.range.end);
        let range = start..start + flight.bytes.len();
        if range.end > arena.len() {
            return false;
        }
        arena[range.clone()].copy_from_slice(&flight.bytes);
        if let Some(last) = datagrams.last_mut()
            && last.remote == flight.from
            && last.ecn == flight.ecn
            && last.stride >= range.len()
            && !range.is_empty()
            && last.range.len().is_multiple_of(last.stride)
            && last.range.len() / last.stride < 64
        {
            last.range.end = range.end;
            return true;
        }
        datagrams.push(Datagram {
            stride: range.len(),
            range,
            remote: flight.from,
            source: Some(at),
            ecn: flight.ecn,
        });
        true
    }
}

impl Default for Batches {
    fn default() -> Self {
        Self::new()
    }
}

impl Edges for Done {
    fn transmit(&mut self, batch: &mut SendBatch) {
        for transmit in batch.transmits.drain(..) {
            let bytes = batch.arena[transmit.range.clone()].to_vec();
            self.sent.push((transmit, bytes));
        }
    }

    fn deliver(&mut self, header: &vnet::Header, arena: &[u8], pieces: &[Range<usize>]) {
        let whole: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| &arena[piece.clone()])
            .copied()
            .collect();
        self.delivered.extend(packet::cut(*header, &whole));
    }
}

impl Done {
    /// Each datagram that was sent.
    pub fn datagrams(&self) -> impl Iterator<Item = (&Transmit, &[u8])> {
        self.sent.iter().flat_map(|(transmit, bytes)| {
            transmit.datagrams().map(move |range| {
                let start = range.start - transmit.range.start;
                (transmit, &bytes[start..start + range.len()])
            })
        })
    }
}

impl Node {
    /// The node of a number, with a key and prefixes of its own, and no peers.
    pub fn new(number: u16, mut random: Random) -> Self {
        let key = PrivateKey::from_bytes(random.key());
        let [high, low] = number.to_be_bytes();
        let v4 = Ipv4Net::new(Ipv4Addr::new(10, high, low, 0), 24).expect("a length of IPv4");
        let v6 = Ipv6Net::new(Ipv6Addr::new(0xfd00, number, 0, 0, 0, 0, 0, 0), 64)
            .expect("a length of IPv6");
        let address = Ipv4Addr::new(192, 0, high, low);
        let mut node = Self {
            router: router(&mut random, &Arc::default()),
            control: Control::new(Timestamps::forgetful()),
            address: SocketAddr::new(address.into(), 51820),
            config: DeviceConfig::default(),
            key: key.clone(),
            prefixes: vec![v4.into(), v6.into()],
            outbound: Outbound::new(),
            inbound: Inbound::new(MERGE),
            woken: Arc::default(),
            random,
        };
        node.begin(Instant::from_nanos(0), key);
        node
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// A host behind the node: its first IPv4 address, or its first IPv6 address.
    pub fn host(&self, v6: bool) -> IpAddr {
        match (self.prefixes[0], self.prefixes[1]) {
            (_, IpNet::V6(net)) if v6 => (u128::from(net.network()) + 1).to_be_bytes().into(),
            (IpNet::V4(net), _) => (u32::from(net.network()) + 1).to_be_bytes().into(),
            _ => unreachable!("one of each"),
        }
    }

    /// What another node says to make this one its peer.
    pub fn as_peer(&self) -> PeerChange {
        PeerChange {
            endpoints: Some(vec![self.address]),
            replace_allowed_ips: true,
            allowed_ips: self
                .prefixes
                .iter()
                .map(|prefix| AllowedIpChange::Add(*prefix))
                .collect(),
            ..PeerChange::new(self.public())
        }
    }

    /// Loses everything but what is on disk: the key and what the device should be.
    pub fn restart(&mut self, now: Instant) {
        let config = std::mem::take(&mut self.config);
        self.woken = Arc::default();
        self.router = router(&mut self.random, &self.woken);
        self.control = Control::new(Timestamps::forgetful());
        self.outbound = Outbound::new();
        self.inbound = Inbound::new(MERGE);
        let peers = config.peers.iter().map(|(key, peer)| PeerChange {
            preshared_key: Some(peer.preshared_key.clone()),
            endpoints: Some(peer.endpoints.clone()),
            persistent_keepalive: Some(peer.persistent_keepalive),
            allowed_ips: peer
                .allowed_ips
                .iter()
                .map(|prefix| AllowedIpChange::Add(*prefix))
                .collect(),
            ..PeerChange::new(*key)
        });
        let change = DeviceChange {
            private_key: Some(config.private_key.clone()),
            peers: peers.collect(),
            ..DeviceChange::default()
        };
        self.apply(&change, now);
        assert_eq!(self.config, config);
    }

    /// Applies a change, and holds the device against the model.
    pub fn apply(&mut self, change: &DeviceChange, now: Instant) {
        self.config.apply(change);
        if let Some(Some(key)) = &change.private_key {
            self.key = key.clone();
        }
        self.router.apply(change, now);
        let status = self.router.status(now, wall(now));
        assert_eq!(status.config(), self.config, "the device and its model");
    }

    /// Applies changes of peers.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = PeerChange>, now: Instant) {
        let change = DeviceChange {
            peers: peers.into_iter().collect(),
            ..DeviceChange::default()
        };
        self.apply(&change, now);
    }

    /// Takes what was put into `batches.read`.
    pub fn outbound(&mut self, batches: &mut Batches, now: Instant) -> Done {
        let mut done = Done::default();
        self.router.outbound(
            &mut self.outbound,
            &batches.read,
            &mut batches.send,
            now,
            &mut done,
        );
        batches.read.clear();
        done
    }

    /// Has one packet of the next batch from the socket tell its sender that too much waits, if that batch brings
    /// `least` bytes.
    pub fn tell(&mut self, least: usize) {
        self.inbound.tell(Some(least));
    }

    /// Whether one of the last batch did.
    pub fn told(&self) -> bool {
        self.inbound.told()
    }

    /// Takes what was put into `batches.recv`.
    pub fn inbound(&mut self, batches: &mut Batches, now: Instant) -> Done {
        let mut done = Done::default();
        self.router.inbound(
            &mut self.inbound,
            &mut batches.recv,
            &mut batches.send,
            now,
            &mut done,
        );
        batches.recv.clear();
        done
    }

    /// Whether control has something to do.
    pub fn is_due(&self, now: Instant) -> bool {
        self.woken.load(Ordering::Relaxed)
            || self
                .control
                .next_deadline()
                .is_some_and(|deadline| deadline <= now)
    }

    /// Does what is due.
    ///
    /// # Panics
    ///
    /// If that takes no end, or leaves a deadline that is not in the future.
    pub fn tick(&mut self, now: Instant) -> Done {
        let mut done = Done::default();
        let mut more = false;
        for _ in 0..MAX_TURNS {
            if !more && !self.is_due(now) {
                if let Some(deadline) = self.control.next_deadline() {
                    assert!(deadline > now, "{deadline:?} is not after {now:?}");
                }
                return done;
            }
            self.woken.store(false, Ordering::Relaxed);
            more = self
                .router
                .tick(&mut self.control, now, wall(now), &mut done);
        }
        panic!("control goes in circles");
    }

    /// How many packets ended for this reason.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.router
            .drops()
            .iter()
            .find(|(of, _)| *of == reason)
            .map_or(0, |(_, count)| *count)
    }

    /// The local address that datagrams come to and leave from.
    pub fn local(&self) -> Source {
        Source {
            ip: self.address.ip(),
            interface: 1,
        }
    }

    fn begin(&mut self, now: Instant, key: PrivateKey) {
        self.woken = Arc::default();
        self.router = router(&mut self.random, &self.woken);
        let change = DeviceChange {
            private_key: Some(Some(key)),
            ..DeviceChange::default()
        };
        self.apply(&change, now);
    }
}

/// Everything is joined that can be.
pub const MERGE: Merge = Merge {
    tcp: true,
    udp: true,
};

/// The wall time that belongs to a time since boot.
pub fn wall(now: Instant) -> WallTime {
    WallTime(EPOCH + Duration::from_nanos(now.as_nanos()))
}

/// A datagram as it would arrive from here.
pub fn flight(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Flight {
    Flight {
        from,
        to,
        ecn: Ecn::NotEct,
        bytes: bytes.to_vec(),
    }
}

fn router(random: &mut Random, woken: &Arc<AtomicBool>) -> Router {
    let woken = Arc::clone(woken);
    Router::new(
        MTU,
        Box::new(move || woken.store(true, Ordering::Relaxed)),
        Box::new(random.fork()),
    )
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("address", &self.address)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
