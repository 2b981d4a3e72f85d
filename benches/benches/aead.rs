//! Sealing and opening runs of records, by the size of a packet and how many are in a run, by each
//! implementation that the processor has. Those of one shape are measured one after the other, so
//! that a slow minute meets them all.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_aead::{Implementation, Key, TAG_LEN};

/// Clear bytes of a WireGuard data message.
const PREFIX: usize = 16;

/// Length of a text: an empty packet of UDP, 64 bytes in one, a third of a full one, a full one.
const LENS: [usize; 4] = [64, 96, 512, 1424];

/// Records in a run: up to what one segmented send takes of them, 45 of the longest.
const COUNTS: [usize; 7] = [1, 2, 4, 8, 16, 45, 64];

fn runs(criterion: &mut Criterion) {
    for (direction, open) in [("seal", false), ("open", true)] {
        let mut group = criterion.benchmark_group(direction);
        for (len, count) in LENS
            .into_iter()
            .flat_map(|len| COUNTS.map(|count| (len, count)))
        {
            for implementation in Implementation::all() {
                let key = Key::with([7; 32], implementation);
                let stride = PREFIX + len + TAG_LEN;
                let mut run = vec![0; count * stride];
                key.seal_run(0, &mut run, stride, PREFIX);
                let sealed = run.clone();
                let counters: Vec<u64> = (0..count as u64).collect();
                let mut opened = Vec::with_capacity(count);
                group.throughput(Throughput::Bytes((count * len) as u64));
                let id = BenchmarkId::new(format!("{len}/{count}"), implementation.name());
                group.bench_function(id, |bencher| {
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
        }
        group.finish();
    }
}

criterion_group!(benches, runs);
criterion_main!(benches);
