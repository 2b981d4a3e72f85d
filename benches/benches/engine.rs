//! The whole path of packets through two engines in memory: everything but the kernel.
//!
//! `out` is what a worker does between its TUN read and its UDP send, `in` what it does between its
//! UDP receive and its TUN write; `bulk` is one large TCP packet, `small` are 64 UDP packets of 64
//! bytes, each its own write.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warren_config::{AllowedIpChange, DeviceChange, PeerChange, PrivateKey, PublicKey, WallTime};
use warren_engine::{Control, Edges, Entropy, Inbound, Outbound, Router, Timestamps};
use warren_packet::batch::{Datagram, ReadBatch, RecvBatch, SendBatch};
use warren_packet::coalesce::Merge;
use warren_packet::{Ecn, vnet};
use warren_wireguard::time::Instant;

const MTU: u32 = 1420;
/// Payload of a TCP segment that fills the MTU, without options.
const MSS: usize = MTU as usize - 40;
/// Segments of the large packet: as many as one send takes.
const SEGMENTS: usize = 45;

/// Numbers that are good enough for keys that protect nothing.
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

/// Keeps what one router sent, as the other one receives it.
struct Wire {
    received: RecvBatch,
    remote: SocketAddr,
    used: usize,
    delivered: usize,
}

impl Wire {
    fn new(remote: SocketAddr) -> Self {
        Self {
            received: RecvBatch::new(8),
            remote,
            used: 0,
            delivered: 0,
        }
    }

    fn clear(&mut self) {
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

struct Node {
    router: Router,
    control: Control,
    outbound: Outbound,
    inbound: Inbound,
    out: SendBatch,
    wire: Wire,
}

impl Node {
    fn new(
        seed: u64,
        private: PrivateKey,
        peer: PublicKey,
        endpoint: SocketAddr,
        peer_ip: &str,
    ) -> Self {
        let router = Router::new(MTU, Box::new(|| {}), Box::new(Sequence(seed)));
        let mut change = PeerChange::new(peer);
        change.endpoints = Some(vec![endpoint]);
        change.allowed_ips = vec![AllowedIpChange::Add(peer_ip.parse().expect("a prefix"))];
        let change = DeviceChange {
            private_key: Some(Some(private)),
            peers: vec![change],
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
            // What this node sends comes, at the other one, from where that one expects it.
            wire: Wire::new(
                if seed == 1 {
                    ADDRESSES[0]
                } else {
                    ADDRESSES[1]
                }
                .parse()
                .expect("an address"),
            ),
        }
    }

    fn send(&mut self, batch: &ReadBatch) {
        self.wire.clear();
        self.router.outbound(
            &mut self.outbound,
            batch,
            &mut self.out,
            NOW,
            &mut self.wire,
        );
    }

    fn receive(&mut self, received: &mut RecvBatch) {
        self.router.inbound(
            &mut self.inbound,
            received,
            &mut self.out,
            NOW,
            &mut self.wire,
        );
    }

    fn tick(&mut self) {
        while self
            .router
            .tick(&mut self.control, NOW, WALL, &mut self.wire)
        {}
    }
}

const ADDRESSES: [&str; 2] = ["192.0.2.1:51820", "192.0.2.2:51820"];
const NOW: Instant = Instant::from_nanos(1_000_000_000_000);
const WALL: WallTime = WallTime(Duration::from_secs(1_700_000_000));

/// Two nodes with a session that both have used.
fn pair(first: &ReadBatch) -> (Node, Node) {
    let keys = [
        PrivateKey::from_bytes([1; 32]),
        PrivateKey::from_bytes([2; 32]),
    ];
    let [a, b] = ADDRESSES.map(|addr| addr.parse().expect("an address"));
    let mut left = Node::new(1, keys[0].clone(), keys[1].public(), b, "10.0.0.2/32");
    let mut right = Node::new(2, keys[1].clone(), keys[0].public(), a, "10.0.0.1/32");
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

fn ipv4(protocol: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(len).expect("an IP packet").to_be_bytes());
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet
}

fn read(batch: &mut ReadBatch, header: vnet::Header, packet: &[u8]) {
    let spare = batch.spare().expect("room for the packet");
    spare[..vnet::LEN].copy_from_slice(&header.encode());
    spare[vnet::LEN..][..packet.len()].copy_from_slice(packet);
    batch.commit(packet.len());
}

fn bulk() -> (ReadBatch, usize) {
    let mut packet = ipv4(6, 40 + SEGMENTS * MSS);
    packet[32] = 5 << 4;
    packet[33] = 0x10;
    let header = vnet::Header {
        flags: vnet::NEEDS_CSUM,
        gso_type: vnet::GSO_TCPV4,
        hdr_len: 40,
        gso_size: u16::try_from(MSS).expect("a segment"),
        csum_start: 20,
        csum_offset: 16,
    };
    let mut batch = ReadBatch::new(65536, 64);
    read(&mut batch, header, &packet);
    (batch, SEGMENTS * MSS)
}

fn small() -> (ReadBatch, usize) {
    let mut batch = ReadBatch::new(4 * 65536, 64);
    let mut packet = ipv4(17, 28 + 64);
    packet[24..26].copy_from_slice(&72_u16.to_be_bytes());
    let header = vnet::Header {
        flags: vnet::NEEDS_CSUM,
        csum_start: 20,
        csum_offset: 6,
        ..vnet::Header::NONE
    };
    for id in 0..64_u16 {
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        read(&mut batch, header, &packet);
    }
    (batch, 64)
}

fn engine(criterion: &mut Criterion) {
    for (name, (batch, size), unit) in [
        ("bulk", bulk(), Throughput::Bytes as fn(u64) -> Throughput),
        ("small", small(), Throughput::Elements),
    ] {
        let (mut left, mut right) = pair(&batch);
        let mut group = criterion.benchmark_group(format!("engine/{name}"));
        group.throughput(unit(size as u64));
        group.bench_function("out", |bencher| bencher.iter(|| left.send(&batch)));
        // A record opens once, so each is sealed first; the difference to `out` is the way in.
        group.bench_function("out and in", |bencher| {
            bencher.iter(|| {
                left.send(&batch);
                right.receive(&mut left.wire.received);
            });
        });
        group.finish();
        let drops = right.router.drops();
        assert!(drops.is_empty(), "{drops:?}");
    }
}

criterion_group!(benches, engine);
criterion_main!(benches);
