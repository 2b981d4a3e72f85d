//! Handshakes: what each part of one costs, how many a node answers, and how fast it sheds what was
//! forged.
//!
//! `handshake/*` are the curve operations of one core, without tables and queues; `answer` is all
//! that a node does for an initiation, from its datagram to the response, and `forged` all that it
//! does for one whose first mac is wrong. An element is a handshake or a message.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use warren_benches::ends::{End, ends};
use warren_benches::nodes::{ADDRESSES, Node};
use warren_config::{PeerChange, PrivateKey};
use warren_packet::Ecn;
use warren_packet::batch::{Datagram, RecvBatch};
use warren_wireguard::messages::INITIATION_LEN;

/// Initiations in one batch.
const BATCH: u8 = 200;

fn parts(criterion: &mut Criterion) {
    let (mut caller, mut called) = ends();
    let mut group = criterion.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    group.bench_function("initiation", |bencher| {
        let ticket = caller.ticket();
        bencher.iter(|| caller.create(&ticket));
    });
    group.bench_function("response", |bencher| {
        bencher.iter_batched(
            || {
                let initiation = caller.initiation();
                (initiation, caller.now())
            },
            |(initiation, now)| called.answer(&initiation, now),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("end", |bencher| {
        let initiation = caller.initiation();
        let (_, response) = called.answer(&initiation, caller.now());
        bencher.iter(|| caller.take(&response));
    });
    group.bench_function("whole", |bencher| {
        bencher.iter(|| {
            let initiation = caller.initiation();
            let (_, response) = called.answer(&initiation, caller.now());
            caller.take(&response)
        });
    });
    group.bench_function("first secret with a peer", |bencher| {
        bencher.iter(|| caller.shared_anew());
    });
    group.finish();
}

/// What a node in memory does with messages, from its socket to its socket.
fn node(criterion: &mut Criterion) {
    let private = PrivateKey::from_bytes([2; 32]);
    let mut node = Node::new(1, &private);
    let keys: Vec<PrivateKey> = (0..BATCH)
        .map(|seed| {
            // None is the node's own.
            let mut bytes = [9; 32];
            bytes[1] = seed;
            PrivateKey::from_bytes(bytes)
        })
        .collect();
    node.add_peers(
        keys.iter()
            .map(|key| PeerChange::new(key.public()))
            .collect(),
    );
    let mut callers: Vec<End> = keys
        .iter()
        .map(|key| End::new(key, private.public(), ADDRESSES[1]))
        .collect();
    let mut group = criterion.benchmark_group("node");
    group.throughput(Throughput::Elements(u64::from(BATCH)));
    group.bench_function("answer", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let mut batch = RecvBatch::new(1);
                for caller in &mut callers {
                    push(&mut batch, &caller.initiation());
                }
                took += time(|| {
                    node.receive_at(&mut batch, callers[0].now());
                    node.tick_at(callers[0].now());
                });
                assert_eq!(node.wire.received.datagrams.len(), usize::from(BATCH));
                node.wire.clear();
            }
            took
        });
    });
    group.bench_function("forged", |bencher| {
        let mut batch = RecvBatch::new(1);
        for caller in &mut callers {
            let mut initiation = caller.initiation();
            initiation[INITIATION_LEN - 32] ^= 1;
            push(&mut batch, &initiation);
        }
        bencher.iter(|| node.receive(&mut batch));
        assert!(
            node.wire.received.datagrams.is_empty(),
            "nothing is answered"
        );
    });
    group.finish();
}

/// Puts a message into a batch, as a datagram of its own from one site with many peers.
fn push(batch: &mut RecvBatch, message: &[u8]) {
    let start = batch.datagrams.last().map_or(0, |last| last.range.end);
    let range = start..start + message.len();
    batch.arena[range.clone()].copy_from_slice(message);
    let remote: SocketAddr = ADDRESSES[0].parse().expect("an address");
    batch.datagrams.push(Datagram {
        stride: range.len(),
        range,
        remote,
        source: None,
        ecn: Ecn::NotEct,
    });
}

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn time(work: impl FnOnce()) -> Duration {
    let begun = std::time::Instant::now();
    work();
    begun.elapsed()
}

criterion_group!(benches, parts, node);
criterion_main!(benches);
