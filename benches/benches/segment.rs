//! Cutting what a TUN delivers as one packet, joining what came out of the tunnel, and the checksum
//! that both are made of.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::hint::black_box;
use std::ops::Range;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_benches::packets::{Kind, MTU};
use warren_packet::checksum::Sum;
use warren_packet::coalesce::{Coalescer, Merge};
use warren_packet::segment::Segments;

/// Bytes of payload of a packet to be cut: near to the most that IP allows.
const LARGE: usize = 64_000;

/// 64 KiB of TCP or UDP into packets that fill the MTU, checksums included; of a lone packet only
/// the checksum is finished.
fn cut(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    for kind in Kind::ALL {
        let size = MTU - kind.headers();
        for count in [1, LARGE / size] {
            let (header, packet) = kind.packet(0, count, size);
            let mut out = vec![0; MTU];
            group.throughput(Throughput::Bytes(packet.len() as u64));
            group.bench_function(BenchmarkId::new(kind.name(), count), |bencher| {
                bencher.iter(|| {
                    let segments = Segments::new(header, black_box(&packet)).expect("well-formed");
                    for index in 0..segments.count() {
                        segments.copy_into(index, black_box(&mut out[..segments.len(index)]));
                    }
                    segments.count()
                });
            });
        }
    }
    group.finish();
}

/// The same packets back into one, and packets of which no two belong together.
fn join(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coalesce");
    for kind in Kind::ALL {
        let size = MTU - kind.headers();
        let count = LARGE / size;
        for (in_order, name) in [(true, "joined"), (false, "apart")] {
            let (mut arena, packets) = segments(kind, count, size, in_order);
            let bytes: usize = packets.iter().map(Range::len).sum();
            let mut coalescer = Coalescer::new(Merge {
                tcp: true,
                udp: true,
            });
            group.throughput(Throughput::Bytes(bytes as u64));
            let before = arena.clone();
            group.bench_function(BenchmarkId::new(kind.name(), name), |bencher| {
                bencher.iter(|| {
                    for packet in &packets {
                        coalescer.push(black_box(&arena), packet.clone());
                    }
                    coalescer.finish(&mut arena);
                    let writes = coalescer.writes().len();
                    assert_eq!(writes, if in_order { 1 } else { count });
                    coalescer.clear();
                    // The header of what was joined is that of the whole now.
                    let first = packets[0].start..packets[0].start + kind.headers();
                    arena[first.clone()].copy_from_slice(&before[first]);
                });
            });
        }
    }
    group.finish();
}

fn sum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in [20, 64, MTU, LARGE] {
        let bytes = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter(|| Sum::of(black_box(&bytes)));
        });
    }
    group.finish();
}

/// Packets of one flow, in order, or each of another flow.
fn segments(kind: Kind, count: usize, size: usize, in_order: bool) -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut arena, mut packets) = (Vec::new(), Vec::new());
    for number in 0..count as u16 {
        let (header, mut packet) = kind.packet(number, 1, size);
        if !in_order {
            // A port of its own for each.
            let port = kind.transport()..kind.transport() + 2;
            packet[port].copy_from_slice(&number.to_be_bytes());
        }
        let whole = Segments::new(header, &packet).expect("well-formed");
        let range = arena.len()..arena.len() + packet.len();
        arena.resize(range.end, 0);
        whole.copy_into(0, &mut arena[range.clone()]);
        packets.push(range);
    }
    (arena, packets)
}

criterion_group!(benches, cut, join, sum);
criterion_main!(benches);
