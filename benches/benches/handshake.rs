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

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use warren_benches::ends::{callers, ends, forgeries, push};
use warren_benches::nodes::Node;
use warren_config::{PeerChange, PrivateKey};
use warren_packet::batch::RecvBatch;

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
    let (keys, mut callers) = callers(usize::from(BATCH), private.public());
    node.add_peers(keys.into_iter().map(PeerChange::new).collect());
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
        let mut batch = forgeries(&mut callers);
        bencher.iter(|| node.receive(&mut batch));
        assert!(
            node.wire.received.datagrams.is_empty(),
            "nothing is answered"
        );
    });
    group.finish();
}

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn time(work: impl FnOnce()) -> Duration {
    let begun = std::time::Instant::now();
    work();
    begun.elapsed()
}

criterion_group!(benches, parts, node);
criterion_main!(benches);
