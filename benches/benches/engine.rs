//! The whole path of packets through two engines in memory: everything but the kernel.
//!
//! `out` is what a worker does between its TUN read and its UDP send, `in` what it does between its
//! UDP receive and its TUN write; `bulk` is one large TCP packet, `small` are 64 UDP packets of 64
//! bytes, each its own write. `stages` of this package tells what they spend it on.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_benches::nodes::{Node, pair};
use warren_benches::packets::{BULK_BYTES, bulk, datagrams};
use warren_packet::batch::ReadBatch;

fn engine(criterion: &mut Criterion) {
    for (name, batch, unit) in [
        ("bulk", bulk(), Throughput::Bytes(BULK_BYTES as u64)),
        ("small", datagrams(64, 92), Throughput::Elements(64)),
    ] {
        let (mut left, mut right) = pair(&batch);
        let mut group = criterion.benchmark_group(format!("engine/{name}"));
        group.throughput(unit);
        group.bench_function("out", |bencher| bencher.iter(|| left.send_nowhere(&batch)));
        group.bench_function("in", |bencher| {
            bencher.iter_custom(|rounds| inward(&mut left, &mut right, &batch, rounds));
        });
        group.finish();
        let drops = right.router.drops();
        assert!(drops.is_empty(), "{drops:?}");
    }
}

/// Packets that are read one by one: sealing by their size, and by how many a batch has.
fn runs(criterion: &mut Criterion) {
    for len in [92, 576, 1420] {
        for count in [1, 8, 64] {
            let batch = datagrams(count, len);
            let (mut left, mut right) = pair(&batch);
            let mut group = criterion.benchmark_group("engine/packets");
            group.throughput(Throughput::Elements(u64::from(count)));
            group.bench_function(BenchmarkId::new(format!("out/{len}"), count), |bencher| {
                bencher.iter(|| left.send_nowhere(&batch));
            });
            group.bench_function(BenchmarkId::new(format!("in/{len}"), count), |bencher| {
                bencher.iter_custom(|rounds| inward(&mut left, &mut right, &batch, rounds));
            });
            group.finish();
            let drops = right.router.drops();
            assert!(drops.is_empty(), "{drops:?}");
        }
    }
}

/// The time of the way in alone: a record opens once, so that each is sealed first.
#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn inward(left: &mut Node, right: &mut Node, batch: &ReadBatch, rounds: u64) -> Duration {
    let mut took = Duration::ZERO;
    for _ in 0..rounds {
        left.send(batch);
        let begun = Instant::now();
        right.receive(&mut left.wire.received);
        took += begun.elapsed();
    }
    took
}

criterion_group!(benches, engine, runs);
criterion_main!(benches);
