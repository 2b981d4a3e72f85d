//! Looking up addresses, by the size of the table.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::IpNet;
use warren_benches::tables::{Random, filled, v4, v6, within};

/// Addresses that are looked up in turn: more than any cache holds, and a few.
const RANDOM: usize = 1 << 21;
const HOT: usize = 1 << 10;
/// Packets that a worker looks up at once.
const BATCH: usize = 64;

fn lookups(criterion: &mut Criterion) {
    for (family, prefix) in [("v4", v4 as fn(&mut Random) -> IpNet), ("v6", v6)] {
        let mut group = criterion.benchmark_group(format!("lookup_{family}"));
        for count in [1, 10, 1000, 1_000_000] {
            let mut random = Random::new();
            let prefixes: Vec<_> = (0..count).map(|_| prefix(&mut random)).collect();
            let mut table = filled(&prefixes);
            table.come_to_rest();
            let addresses: Vec<_> = (0..RANDOM)
                .map(|_| within(prefixes[random.below(count)], &mut random))
                .collect();
            for (pattern, addresses) in [("random", &addresses[..]), ("hot", &addresses[..HOT])] {
                let mut at = 0;
                group.bench_function(BenchmarkId::new(pattern, count), |bencher| {
                    bencher.iter(|| {
                        at = (at + 1) % addresses.len();
                        table.lookup(black_box(addresses[at]))
                    });
                });
            }
            let (mut batches, mut found) = (addresses.chunks_exact(BATCH).cycle(), Vec::new());
            group.throughput(Throughput::Elements(BATCH as u64));
            group.bench_function(BenchmarkId::new("random_batch", count), |bencher| {
                bencher.iter(|| {
                    let batch = batches.next().expect("there is no end");
                    table.lookup_all(black_box(batch), &mut found);
                    black_box(&found);
                });
            });
        }
        group.finish();
    }
}

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    group.sample_size(10);
    for count in [1000, 100_000] {
        let mut random = Random::new();
        let prefixes: Vec<_> = (0..count).map(|_| v4(&mut random)).collect();
        let table = filled(&prefixes);
        group.bench_function(BenchmarkId::new("insert_all", count), |bencher| {
            bencher.iter(|| filled(black_box(&prefixes)));
        });
        group.bench_function(BenchmarkId::new("clone", count), |bencher| {
            bencher.iter(|| table.clone());
        });
        group.bench_function(BenchmarkId::new("remove_all", count), |bencher| {
            bencher.iter_batched(
                || table.clone(),
                |mut table| table.remove_all(7),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, changes);
criterion_main!(benches);
