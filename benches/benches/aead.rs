//! Sealing and opening runs of records, by the size of a packet and how many are in a run.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_aead::{Key, TAG_LEN};

/// Clear bytes of a WireGuard data message.
const PREFIX: usize = 16;

fn runs(criterion: &mut Criterion) {
    let key = Key::new([7; 32]);
    for (direction, open) in [("seal", false), ("open", true)] {
        let mut group = criterion.benchmark_group(direction);
        for (len, count) in [(64, 1), (64, 64), (1424, 1), (1424, 5), (1424, 45)] {
            let stride = PREFIX + len + TAG_LEN;
            let mut run = vec![0; count * stride];
            key.seal_run(0, &mut run, stride, PREFIX);
            let sealed = run.clone();
            let counters: Vec<u64> = (0..count as u64).collect();
            let mut opened = Vec::with_capacity(count);
            group.throughput(Throughput::Bytes((count * len) as u64));
            group.bench_function(BenchmarkId::new(len.to_string(), count), |bencher| {
                bencher.iter(|| {
                    if open {
                        // The copy is part of the time: about 0.02 ns per byte.
                        run.copy_from_slice(&sealed);
                        key.open_run(&counters, &mut run, stride, PREFIX, &mut opened);
                    } else {
                        key.seal_run(0, black_box(&mut run), stride, PREFIX);
                    }
                });
                assert!(opened.iter().all(Result::is_ok));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, runs);
criterion_main!(benches);
