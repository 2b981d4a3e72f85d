//! Sending and receiving over loopback, with and without segmentation, and one at a time.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warren_packet::{Ecn, RecvBatch, Transmit};
use warren_udp::{Options, Pair, SendReport, Socket};

const STRIDE: usize = 1452;
const COUNT: usize = 45;

fn round_trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("loopback");
    group.throughput(Throughput::Bytes((STRIDE * COUNT) as u64));
    for (name, offload) in [("segmented", true), ("sendmmsg", false)] {
        let options = Options {
            segmentation: offload,
            receive_offload: offload,
            v6: false,
            ..Options::default()
        };
        let (from, to) = (open(&options), open(&options));
        group.bench_function(name, |bencher| {
            let arena = vec![0; STRIDE * COUNT];
            let mut batch = RecvBatch::new(8);
            let mut report = SendReport::default();
            bencher.iter(|| {
                let mut transmits = [run(&to)];
                from.send(Duration::ZERO, &arena, &mut transmits, &mut report);
                let mut received = 0;
                while received < COUNT {
                    batch.clear();
                    to.recv(&mut batch).expect("reception never ends");
                    let all = batch.datagrams.iter();
                    received += all.map(|message| message.datagrams().len()).sum::<usize>();
                }
            });
        });
    }
    group.finish();

    let options = Options {
        v6: false,
        ..Options::default()
    };
    let (from, to) = (open(&options), open(&options));
    criterion.bench_function("loopback_single", |bencher| {
        let mut batch = RecvBatch::new(8);
        let mut report = SendReport::default();
        bencher.iter(|| {
            let mut transmits = [Transmit {
                range: 0..64,
                stride: 64,
                ..run(&to)
            }];
            from.send(Duration::ZERO, &[0; 64], &mut transmits, &mut report);
            batch.clear();
            while to.recv(&mut batch).expect("reception never ends") == 0 {}
        });
    });
}

fn open(options: &Options) -> Socket {
    let mut pairs = Pair::bind(options).expect("a port");
    pairs.remove(0).v4.expect("this host has IPv4")
}

fn run(to: &Socket) -> Transmit {
    Transmit {
        range: 0..STRIDE * COUNT,
        stride: STRIDE,
        remote: (Ipv4Addr::LOCALHOST, to.port()).into(),
        source: None,
        ecn: Ecn::NotEct,
        tos: 0,
        tag: 0,
    }
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
