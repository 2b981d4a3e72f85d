//! Looking up addresses, by the size of the table.
//!
//! The prefixes are those of the table in which structures were compared: IPv4 60 % /32, 25 % /24,
//! 15 % /16 to /31; IPv6 within fd00::/8 60 % /128, 30 % /64, 10 % /48 to /127. Every address is in
//! a prefix of the table.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_wireguard::AllowedIps;

/// Addresses that are looked up in turn: more than any cache holds, and a few.
const RANDOM: usize = 1 << 21;
const HOT: usize = 1 << 10;

fn lookups(criterion: &mut Criterion) {
    for (family, prefix) in [("v4", v4 as fn(&mut Random) -> IpNet), ("v6", v6)] {
        let mut group = criterion.benchmark_group(format!("lookup_{family}"));
        for count in [1, 10, 1000, 1_000_000] {
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
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
        }
        group.finish();
    }
}

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    group.sample_size(10);
    for count in [1000, 100_000] {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
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

/// A table of prefixes that belong to ten peers.
fn filled(prefixes: &[IpNet]) -> AllowedIps<u32> {
    let mut table = AllowedIps::new();
    for (prefix, peer) in prefixes.iter().zip((0..10).cycle()) {
        table.insert(*prefix, peer);
    }
    table
}

fn v4(random: &mut Random) -> IpNet {
    let len = match random.below(100) {
        0..60 => 32,
        60..85 => 24,
        _ => 16 + random.below(16) as u8,
    };
    let ip = Ipv4Addr::from_bits(random.next() as u32);
    Ipv4Net::new(ip, len)
        .expect("a length within the width")
        .trunc()
        .into()
}

fn v6(random: &mut Random) -> IpNet {
    let len = match random.below(100) {
        0..60 => 128,
        60..90 => 64,
        _ => 48 + random.below(80) as u8,
    };
    let ip = Ipv6Addr::from_bits(0xfd << 120 | random.wide() >> 8);
    Ipv6Net::new(ip, len)
        .expect("a length within the width")
        .trunc()
        .into()
}

/// An address that the prefix holds.
fn within(prefix: IpNet, random: &mut Random) -> IpAddr {
    match prefix {
        IpNet::V4(net) => {
            let host = random.next() as u32 & net.hostmask().to_bits();
            Ipv4Addr::from_bits(net.addr().to_bits() | host).into()
        }
        IpNet::V6(net) => {
            let host = random.wide() & net.hostmask().to_bits();
            Ipv6Addr::from_bits(net.addr().to_bits() | host).into()
        }
    }
}

/// The same numbers every time (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}

criterion_group!(benches, lookups, changes);
criterion_main!(benches);
