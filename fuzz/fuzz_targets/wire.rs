//! Two engines, and between them a wire that does whatever it likes: it loses, repeats, reorders,
//! cuts, changes and makes up datagrams, lets them come from elsewhere and lets time pass; meanwhile
//! both are reconfigured. What comes out was sent by the other end, unchanged, and comes out once.
//!
//! The input is a program: four bytes make one step.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warren_config::{
    AllowedIpChange, DeviceChange, PeerChange, PresharedKey, PrivateKey, WallTime,
};
use warren_engine::{Control, Edges, Entropy, Inbound, Outbound, Router, Timestamps};
use warren_packet::checksum::{Sum, pseudo};
use warren_packet::coalesce::Merge;
use warren_packet::segment::Segments;
use warren_packet::vnet::{self, Header};
use warren_packet::{Datagram, Ecn, ReadBatch, RecvBatch, SendBatch, ip};
use warren_wireguard::time::Instant;

const MTU: u32 = 1420;

fuzz_target!(|program: &[u8]| {
    let mut wire = Wire::new();
    for step in program.as_chunks::<4>().0.iter().take(256) {
        wire.step(*step);
        wire.settle();
    }
});

struct Wire {
    ends: [End; 2],
    now: Duration,
    /// What was sent so far, with the address from which it came: kept, so that anything can be
    /// delivered at any time, and again.
    datagrams: Vec<(usize, Vec<u8>)>,
    /// How often each inner packet was sent less how often it came out, by the end that sent it.
    under_way: BTreeMap<(usize, Vec<u8>), i32>,
    /// The headers of each inner packet, by the end that sent it.
    begun: BTreeSet<(usize, Vec<u8>)>,
    number: u32,
}

/// One engine with what its threads would keep.
struct End {
    router: Router,
    control: Control,
    inbound: Inbound,
    outbound: Outbound,
    read: ReadBatch,
    received: RecvBatch,
    out: SendBatch,
    edges: Caught,
}

/// What an engine let out on either side.
#[derive(Default)]
struct Caught {
    transmitted: Vec<Vec<u8>>,
    delivered: Vec<Vec<u8>>,
}

impl Edges for Caught {
    fn transmit(&mut self, batch: &mut SendBatch) {
        for transmit in &batch.transmits {
            for range in transmit.datagrams() {
                self.transmitted.push(batch.arena[range].to_vec());
            }
        }
        batch.clear();
    }

    fn deliver(&mut self, header: &Header, arena: &[u8], pieces: &[Range<usize>]) {
        let whole: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| &arena[piece.clone()])
            .copied()
            .collect();
        let segments = Segments::new(*header, &whole).expect("what is delivered can be cut");
        for index in 0..segments.count() {
            let mut out = vec![0; segments.len(index)];
            segments.copy_into(index, &mut out);
            self.delivered.push(out);
        }
    }
}

/// The same bytes in every run.
struct Counted(u64);

impl Entropy for Counted {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 56) as u8;
        }
    }
}

impl Wire {
    fn new() -> Self {
        let mut wire = Self {
            ends: [0, 1].map(|end| {
                let router = Router::new(MTU, Box::new(|| {}), Box::new(Counted(end as u64)));
                End {
                    router,
                    control: Control::new(Timestamps::forgetful()),
                    inbound: Inbound::new(Merge {
                        tcp: true,
                        udp: true,
                    }),
                    outbound: Outbound::new(),
                    read: ReadBatch::new(1 << 17, 64),
                    received: RecvBatch::new(1),
                    out: SendBatch::new(1 << 17, 64),
                    edges: Caught::default(),
                }
            }),
            // Far enough from zero for a clock that goes backwards.
            now: Duration::from_secs(1000),
            datagrams: Vec::new(),
            under_way: BTreeMap::new(),
            begun: BTreeSet::new(),
            number: 0,
        };
        for end in [0, 1] {
            wire.configure(end, None);
        }
        wire
    }

    fn step(&mut self, [what, first, second, third]: [u8; 4]) {
        let end = usize::from(what & 1);
        let any = usize::from(u16::from_le_bytes([first, second]));
        // Programs speak of the newest datagrams, which is where sessions are.
        let chosen = self
            .datagrams
            .len()
            .checked_sub(1 + any % self.datagrams.len().max(1));
        match what >> 1 & 15 {
            0..=2 => self.send(end, first, second, third),
            3..=6 => {
                if let Some(chosen) = chosen {
                    let (from, bytes) = self.datagrams[chosen].clone();
                    self.arrive(1 - from, &bytes, third);
                }
            }
            7 => {
                for (from, bytes) in self
                    .datagrams
                    .split_off(self.datagrams.len().saturating_sub(8))
                {
                    self.arrive(1 - from, &bytes, 0);
                }
            }
            8 => {
                if let Some(chosen) = chosen {
                    let (from, mut bytes) = self.datagrams[chosen].clone();
                    let at = usize::from(third) % bytes.len().max(1);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (what >> 5);
                    }
                    self.arrive(1 - from, &bytes, 0);
                }
            }
            9 => {
                if let Some(chosen) = chosen {
                    let (from, bytes) = self.datagrams[chosen].clone();
                    self.arrive(1 - from, &bytes[..bytes.len().min(usize::from(third))], 0);
                }
            }
            10 => {
                // Its own datagrams thrown back.
                if let Some(chosen) = chosen {
                    let (from, bytes) = self.datagrams[chosen].clone();
                    self.arrive(from, &bytes, third);
                }
            }
            11 => self.arrive(end, &[third & 7, 0, 0, 0].repeat(any % 64), second),
            12 => self.now += Duration::from_millis(any as u64),
            13 => self.now += Duration::from_secs(u64::from(first)),
            14 => {
                self.now = self
                    .now
                    .saturating_sub(Duration::from_millis(u64::from(first)))
            }
            _ => self.configure(end, Some((first, second))),
        }
    }

    /// What is due is done, and everything that came out is looked at.
    fn settle(&mut self) {
        let (now, wall) = (self.instant(), WallTime(self.now));
        for (number, end) in self.ends.iter_mut().enumerate() {
            // The bound is not ours to find: a router that always has more to do hangs, and that
            // is what the fuzzer's timeout is for.
            while end.router.tick(&mut end.control, now, wall, &mut end.edges) {}
            if let Some(deadline) = end.control.next_deadline() {
                assert!(deadline > now, "a deadline in the past after a tick");
            }
            for datagram in end.edges.transmitted.drain(..) {
                if self.datagrams.len() < 4096 {
                    self.datagrams.push((number, datagram));
                }
            }
            for packet in end.edges.delivered.drain(..) {
                // Whoever sends to nobody is told so, by a quote of what it sent.
                if packet[9] == 1 {
                    let quote = (number, packet[28..56].to_vec());
                    assert!(
                        self.begun.contains(&quote),
                        "unreachable is what nobody sent"
                    );
                    continue;
                }
                let under_way = self.under_way.entry((1 - number, packet)).or_default();
                *under_way -= 1;
                assert!(
                    *under_way >= 0,
                    "what was never sent came out, or came out twice"
                );
            }
        }
    }

    /// A packet for the mesh, from this end's address or from another.
    fn send(&mut self, end: usize, length: u8, quirk: u8, flow: u8) {
        self.number += 1;
        let source = if quirk & 0x0f == 0 {
            inner(2)
        } else {
            inner(end)
        };
        let target = if quirk & 0xf0 == 0 {
            inner(2)
        } else {
            inner(1 - end)
        };
        let packet = udp(
            source,
            target,
            u16::from(flow & 3),
            self.number,
            usize::from(length) * 5,
        );
        self.begun.insert((end, packet[..28].to_vec()));
        let now = self.instant();
        let this = &mut self.ends[end];
        this.read.clear();
        let spare = this.read.spare().expect("an empty batch has room");
        spare[vnet::LEN..vnet::LEN + packet.len()].copy_from_slice(&packet);
        this.read.commit(packet.len());
        this.router.outbound(
            &mut this.outbound,
            &this.read,
            &mut this.out,
            now,
            &mut this.edges,
        );
        // A packet with a source that is not this end's must not come out at the other.
        if source == inner(end) && target == inner(1 - end) {
            *self.under_way.entry((end, packet)).or_default() += 1;
        }
    }

    fn arrive(&mut self, at: usize, bytes: &[u8], from: u8) {
        let now = self.instant();
        let end = &mut self.ends[at];
        end.received.clear();
        end.received.arena[..bytes.len()].copy_from_slice(bytes);
        end.received.datagrams.push(Datagram {
            range: 0..bytes.len(),
            stride: bytes.len(),
            remote: outer(1 - at, from & 3),
            source: None,
            ecn: Ecn::from_tos(from >> 6),
        });
        end.router.inbound(
            &mut end.inbound,
            &mut end.received,
            &mut end.out,
            now,
            &mut end.edges,
        );
    }

    fn configure(&mut self, end: usize, how: Option<(u8, u8)>) {
        let mut peer = PeerChange::new(private(1 - end).public());
        let mut change = DeviceChange::default();
        match how {
            None => {
                change.private_key = Some(Some(private(end)));
                peer.endpoints = Some(vec![outer(1 - end, 0), outer(1 - end, 1)]);
                peer.allowed_ips = vec![AllowedIpChange::Add(IpAddr::from(inner(1 - end)).into())];
            }
            Some((0..=31, value)) => peer.persistent_keepalive = Some(u16::from(value)),
            Some((32..=63, value)) => {
                peer.preshared_key = Some(PresharedKey::from_bytes([value & 1; 32]))
            }
            Some((64..=95, value)) => peer.endpoints = Some(vec![outer(1 - end, value)]),
            Some((96..=127, _)) => {
                peer.replace_allowed_ips = true;
                peer.allowed_ips = vec![AllowedIpChange::Add(IpAddr::from(inner(1 - end)).into())];
            }
            Some((128..=143, _)) => peer.remove = true,
            Some((144..=150, _)) => self.ends[end].router.stop(),
            Some((151..=157, _)) => self.ends[end].router.start(),
            Some((158..=160, _)) => change.private_key = Some(None),
            Some(_) => return self.configure(end, None),
        }
        change.peers.push(peer);
        self.ends[end].router.apply(&change, self.instant());
    }

    fn instant(&self) -> Instant {
        Instant::from_nanos(self.now.as_nanos() as u64)
    }
}

fn private(end: usize) -> PrivateKey {
    PrivateKey::from_bytes([end as u8 + 1; 32])
}

fn inner(end: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, end as u8 + 1)
}

fn outer(end: usize, which: u8) -> SocketAddr {
    (
        Ipv4Addr::new(192, 0, 2, end as u8 + 1),
        51820 + u16::from(which),
    )
        .into()
}

/// A whole UDP packet with a number of its own in it.
fn udp(source: Ipv4Addr, target: Ipv4Addr, flow: u16, number: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((32 + length) as u16).to_be_bytes());
    packet.extend((number as u16).to_be_bytes());
    packet.extend([0x40, 0, 64, ip::UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    let sum = Sum::of(&packet).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut datagram = Vec::new();
    for word in [4000 + flow, 53, 12 + length as u16, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(number.to_be_bytes());
    datagram.resize(12 + length, 0x5a);
    let sum = pseudo(&packet[12..20], ip::UDP)
        .word(datagram.len() as u16)
        .bytes(&datagram);
    datagram[6..8].copy_from_slice(&sum.udp_checksum().to_be_bytes());
    packet.extend(datagram);
    packet
}
