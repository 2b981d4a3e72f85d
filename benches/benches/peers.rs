//! What a packet costs where many peers take turns: 1, 100 and 10,000 of them.
//!
//! A batch is of 64 packets of 92 bytes, each to or from another peer than the one before, if there is
//! another. `out` is what a worker does between its TUN read and its UDP send, `in` what it does between
//! its UDP receive and its TUN write. An element is a packet.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_benches::ends::{End, callers, push_from};
use warren_benches::nodes::{NOW, Node};
use warren_benches::packets::{batch_for, datagram, read};
use warren_config::{AllowedIpChange, PeerChange, PrivateKey};
use warren_packet::batch::{ReadBatch, RecvBatch};
use warren_packet::vnet;
use warren_wireguard::Session;
use warren_wireguard::messages::{self, DATA_HEADER, TAG};
use warren_wireguard::time::Instant;

const BATCH: usize = 64;
const LEN: usize = 92;
/// The hub's address within the tunnel.
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Of everybody.
const PORT: u16 = 51820;

fn turns(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("peers");
    group.throughput(Throughput::Elements(BATCH as u64));
    for count in [1, 100, 10_000] {
        // Made when one of the two is chosen.
        let mut hub = None;
        let mut hub_of = || Hub::new(count);
        group.bench_function(BenchmarkId::new("out", count), |bencher| {
            let hub = hub.get_or_insert_with(&mut hub_of);
            bencher.iter_custom(|rounds| (0..rounds).map(|_| hub.outward()).sum());
        });
        group.bench_function(BenchmarkId::new("in", count), |bencher| {
            let hub = hub.get_or_insert_with(&mut hub_of);
            bencher.iter_custom(|rounds| (0..rounds).map(|_| hub.inward()).sum());
            assert!(
                hub.node.wire.delivered > 0,
                "packets came out of the tunnel"
            );
        });
        if let Some(hub) = hub {
            let drops = hub.node.router.drops();
            assert!(drops.is_empty(), "{drops:?}");
        }
    }
    group.finish();
}

/// A node with many peers.
struct Hub {
    node: Node,
    spokes: Vec<Spoke>,
    /// Whose turn it is.
    next: usize,
    /// What its queue and its socket deliver, filled anew for each batch as these do.
    read: ReadBatch,
    received: RecvBatch,
}

impl Hub {
    fn new(count: usize) -> Self {
        let private = PrivateKey::from_bytes([1; 32]);
        let mut node = Node::new(0, &private);
        Self {
            spokes: spokes(&mut node, &private, count),
            node,
            next: 0,
            read: batch_for(BATCH, BATCH * LEN),
            received: RecvBatch::new(1),
        }
    }

    fn turn(&mut self) -> usize {
        self.next = (self.next + 1) % self.spokes.len();
        self.next
    }

    fn outward(&mut self) -> Duration {
        self.read.clear();
        for _ in 0..BATCH {
            let number = self.turn();
            read(&mut self.read, &vnet::Header::NONE, &self.spokes[number].to);
        }
        time(|| self.node.send_nowhere(&self.read))
    }

    fn inward(&mut self) -> Duration {
        self.received.clear();
        for _ in 0..BATCH {
            let number = self.turn();
            let spoke = &mut self.spokes[number];
            push_from(spoke.outside, &mut self.received, &spoke.seal());
        }
        time(|| self.node.receive(&mut self.received))
    }
}

/// A peer of the hub, with its session.
struct Spoke {
    /// Where it is.
    outside: SocketAddr,
    session: Arc<Session>,
    counter: u64,
    /// A packet to it.
    to: Vec<u8>,
    /// A packet from it.
    from: Vec<u8>,
}

impl Spoke {
    fn seal(&mut self) -> Vec<u8> {
        let mut record = vec![0; DATA_HEADER + LEN + TAG];
        record[DATA_HEADER..][..LEN].copy_from_slice(&self.from);
        messages::write_data_header(&mut record, self.session.remote_index(), self.counter);
        let len = record.len();
        (self.session.sealing()).seal_run(self.counter, &mut record, len, DATA_HEADER);
        self.counter += 1;
        record
    }
}

/// Gives the hub so many peers, and has it shake hands with each.
fn spokes(hub: &mut Node, private: &PrivateKey, count: usize) -> Vec<Spoke> {
    let (keys, ends) = callers(count, private.public());
    // Each is in a network of its own, as handshakes from one network are limited in their rate.
    let places = || {
        (0..count as u32).map(|number| {
            let inside = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number);
            let outside = Ipv4Addr::new(100, 64, 0, 1).to_bits() + (number << 8);
            (inside, SocketAddr::from((outside.to_be_bytes(), PORT)))
        })
    };
    let peers = keys
        .into_iter()
        .zip(places())
        .map(|(key, (inside, outside))| {
            let mut change = PeerChange::new(key);
            change.endpoints = Some(vec![outside]);
            change.allowed_ips = vec![AllowedIpChange::Add(ipnet::Ipv4Net::from(inside).into())];
            change
        });
    hub.add_peers(peers.collect());
    (ends.into_iter().zip(places()).zip(0..))
        .map(|((end, (inside, outside)), number)| {
            // The table of sources is limited, too.
            let now = NOW + Duration::from_millis(number);
            spoke(hub, end, inside, outside, now)
        })
        .collect()
}

/// Shakes hands, by the hub's initiation.
fn spoke(
    hub: &mut Node,
    mut end: End,
    inside: Ipv4Addr,
    outside: SocketAddr,
    now: Instant,
) -> Spoke {
    let to = datagram(INSIDE, inside, LEN);
    let mut first = batch_for(1, LEN);
    read(&mut first, &vnet::Header::NONE, &to);
    hub.send(&first);
    hub.tick_at(now);
    let initiation = &hub.wire.received.datagrams[0];
    let initiation = hub.wire.received.arena[initiation.range.clone()].to_vec();
    let (session, response) = end.answer(&initiation, now);
    let session = end.peer.response_created(session, &response, now);
    let mut batch = RecvBatch::new(1);
    push_from(outside, &mut batch, &response);
    hub.receive_at(&mut batch, now);
    hub.tick_at(now);
    hub.wire.clear();
    Spoke {
        outside,
        session: session.expect("nothing came between"),
        counter: 0,
        to,
        from: datagram(inside, INSIDE, LEN),
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn time(work: impl FnOnce()) -> Duration {
    let begun = std::time::Instant::now();
    work();
    begun.elapsed()
}

criterion_group!(benches, turns);
criterion_main!(benches);
