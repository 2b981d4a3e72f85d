//! Where the time of a packet goes between the kernel's calls: a table for each load and direction.
//!
//! The whole is what a router in memory takes for a batch. Each stage is the same work on the same
//! batch by itself, so that caches are a little kinder to it; what is left is what ties the stages
//! together: grouping by peer, the index, locks, counters, and the batch that is sent or written.
//! Times are medians.
//!
//!     cargo bench -p warren-benches --bench stages

use std::cell::RefCell;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use warren_benches::ends::{End, sessions};
use warren_benches::nodes::{ADDRESSES, pair};
use warren_benches::packets::{MTU, bulk, datagrams};
use warren_packet::batch::ReadBatch;
use warren_packet::coalesce::{Coalescer, Merge};
use warren_packet::segment::Segments;
use warren_packet::{Ecn, ecn, ip};
use warren_wireguard::messages::{self, DATA_HEADER, TAG, padded_len, write_data_header};
use warren_wireguard::time::Instant as Now;
use warren_wireguard::{AllowedIps, Endpoint, Record, Reservation, Session};

/// How many times each is measured, and how long one measurement takes at least.
const SAMPLES: usize = 60;
const SAMPLE: Duration = Duration::from_millis(2);

fn main() {
    for (name, batch) in [
        ("one packet of TCP, cut into 45 of 1420 bytes", bulk()),
        ("64 packets of UDP of 1400 bytes", datagrams(64, 1400)),
        ("64 packets of UDP of 92 bytes", datagrams(64, 92)),
    ] {
        let load = Load::new(batch);
        let mut text = String::new();
        load.out(&mut text, name);
        load.inward(&mut text, name);
        // `cargo bench` passes what is written on.
        eprint!("{text}");
    }
}

/// A batch, and the records that it becomes.
struct Load {
    batch: ReadBatch,
    /// Bytes of each record and of all, sealed; every record is equally long but the last.
    stride: usize,
    packets: Vec<Range<usize>>,
    plain: Vec<u8>,
}

impl Load {
    fn new(batch: ReadBatch) -> Self {
        let (mut plain, mut packets, mut stride) = (Vec::new(), Vec::new(), 0);
        for segments in segments(&batch) {
            for index in 0..segments.count() {
                let len = segments.len(index);
                let size = DATA_HEADER + padded_len(len, MTU) + TAG;
                stride = stride.max(size);
                let start = plain.len();
                plain.resize(start + size, 0);
                let packet = start + DATA_HEADER..start + DATA_HEADER + len;
                segments.copy_into(index, &mut plain[packet.clone()]);
                packets.push(packet);
            }
        }
        Self {
            batch,
            stride,
            packets,
            plain,
        }
    }

    fn count(&self) -> u32 {
        self.packets.len() as u32
    }

    /// The way out.
    fn out(&self, text: &mut String, name: &str) {
        let (mut node, _) = pair(&self.batch);
        let whole = steady(|| node.send_nowhere(&self.batch));

        let ([mut caller, _], [session, _]) = sessions();
        let table = table();
        let batch = &self.batch;
        let bytes = |range: &Range<usize>| &batch.arena()[range.clone()];
        let parse = steady(|| {
            for packet in batch.packets() {
                let bytes = bytes(&packet.range);
                let _ = black_box(ip::destination(bytes));
                let _ = black_box(Segments::new(packet.header, bytes));
            }
        });
        let destinations: Vec<IpAddr> = batch
            .packets()
            .iter()
            .map(|packet| ip::destination(bytes(&packet.range)).expect("well-formed"))
            .collect();
        let lookup = steady(|| look_up(&table, &destinations));
        let now = caller.now();
        let reserve = steady(|| {
            let reserved = caller.peer.reserve(self.count(), now);
            assert!(matches!(reserved, Reservation::Ready(_)));
        });
        let cut: Vec<Segments<'_>> = segments(batch).collect();
        let mut arena = self.plain.clone();
        let segment = steady(|| {
            let mut records = arena.chunks_mut(self.stride);
            for segments in &cut {
                for index in 0..segments.count() {
                    let record = records.next().expect("as many as before");
                    let len = segments.len(index);
                    segments.copy_into(index, &mut record[DATA_HEADER..][..len]);
                    write_data_header(record, 1, 1);
                }
            }
        });
        let mut counter = 0;
        let seal = steady(|| {
            let sealing = session.sealing();
            sealing.seal_run(counter, &mut arena, self.stride, DATA_HEADER);
            counter += u64::from(self.count());
        });
        let stages = [
            ("read headers", parse),
            ("look up the peer", lookup),
            ("reserve counters", reserve),
            ("cut, with checksums", segment),
            ("seal", seal),
        ];
        self.table(text, &format!("out: {name}"), whole, &stages);
    }

    /// The way in.
    fn inward(&self, text: &mut String, name: &str) {
        let (mut left, mut right) = pair(&self.batch);
        let whole = {
            let (left, right) = (&RefCell::new(&mut left), &mut right);
            prepared(
                || left.borrow_mut().send(&self.batch),
                || right.receive(&mut left.borrow_mut().wire.received),
            )
        };

        let ([caller, mut called], [of_caller, of_called]) = sessions();
        let table = table();
        let sealed = self.sealed(&of_caller, &of_called);
        let parse = steady(|| {
            for record in sealed.chunks(self.stride) {
                let _ = black_box(messages::parse(record));
            }
        });
        let counters: Vec<u64> = (0..u64::from(self.count())).collect();
        let arena = RefCell::new(sealed.clone());
        let mut opened = Vec::new();
        let open = prepared(
            || arena.borrow_mut().copy_from_slice(&sealed),
            || {
                let (arena, opening) = (&mut arena.borrow_mut(), of_called.opening());
                opening.open_run(&counters, arena, self.stride, DATA_HEADER, &mut opened);
            },
        );
        assert!(opened.iter().all(Result::is_ok));
        let accept = accept(&mut called, &of_called, self.count(), caller.now());
        let mut arena = self.plain.clone();
        let check = steady(|| {
            for packet in &self.packets {
                let bytes = &mut arena[packet.clone()];
                let parsed = ip::Packet::parse(bytes).expect("well-formed");
                black_box(table.lookup(parsed.source()));
                let _ = black_box(ecn::apply(bytes, Ecn::NotEct));
            }
        });
        let mut coalescer = Coalescer::new(Merge {
            tcp: true,
            udp: true,
        });
        let arena = RefCell::new(self.plain.clone());
        let coalesce = prepared(
            || {
                // What was joined has the header of the whole now.
                let first = self.packets[0].start..self.packets[0].start + 40;
                arena.borrow_mut()[first.clone()].copy_from_slice(&self.plain[first]);
            },
            || {
                let arena = &mut arena.borrow_mut()[..];
                for packet in &self.packets {
                    coalescer.push(arena, packet.clone());
                }
                coalescer.finish(arena);
                black_box(coalescer.writes().len());
                coalescer.clear();
            },
        );
        let stages = [
            ("read headers", parse),
            ("open", open),
            ("replay window and timers", accept),
            ("check the source", check),
            ("join, with checksums", coalesce),
        ];
        self.table(text, &format!("in: {name}"), whole, &stages);
    }

    fn sealed(&self, of_caller: &Session, of_called: &Session) -> Vec<u8> {
        let mut sealed = self.plain.clone();
        for (record, counter) in sealed.chunks_mut(self.stride).zip(0..) {
            write_data_header(record, of_called.local_index(), counter);
        }
        let sealing = of_caller.sealing();
        sealing.seal_run(0, &mut sealed, self.stride, DATA_HEADER);
        sealed
    }

    fn table(&self, text: &mut String, name: &str, whole: f64, stages: &[(&str, f64)]) {
        let count = f64::from(self.count());
        let _ = writeln!(text, "\n{name}\n");
        let _ = writeln!(text, "| stage | ns a batch | ns a packet | share |");
        let _ = writeln!(text, "|---|---|---|---|");
        let rest = whole - stages.iter().map(|(_, took)| took).sum::<f64>();
        let lines = stages.iter().copied();
        for (stage, took) in lines.chain([("the rest", rest), ("the whole", whole)]) {
            let (each, share) = (took / count, took / whole * 100.0);
            let _ = writeln!(text, "| {stage} | {took:.0} | {each:.1} | {share:.0} % |");
        }
    }
}

fn accept(called: &mut End, session: &Session, count: u32, now: Now) -> f64 {
    let remote: SocketAddr = ADDRESSES[0].parse().expect("an address");
    let mut counter = 0;
    let mut records = Vec::new();
    steady(|| {
        records.clear();
        records.extend((counter..counter + u64::from(count)).map(|at| Record::new(at, 1400)));
        counter += u64::from(count);
        let from = Endpoint::from(remote);
        let _ = black_box(called.peer.accept(session, from, &mut records, now));
    })
}

/// As a node with one peer has it.
fn table() -> AllowedIps<u32> {
    let mut table = AllowedIps::new();
    for (prefix, peer) in [("10.0.0.1/32", 1), ("10.0.0.2/32", 2)] {
        table.insert(prefix.parse().expect("a prefix"), peer);
    }
    table
}

fn look_up(table: &AllowedIps<u32>, addresses: &[IpAddr]) {
    for &address in addresses {
        black_box(table.lookup(black_box(address)));
    }
}

fn segments(batch: &ReadBatch) -> impl Iterator<Item = Segments<'_>> {
    batch.packets().iter().map(|packet| {
        let bytes = &batch.arena()[packet.range.clone()];
        Segments::new(packet.header, bytes).expect("well-formed")
    })
}

/// Nanoseconds of `work`, which can be done again and again.
fn steady(mut work: impl FnMut()) -> f64 {
    let mut rounds = 1;
    median(|| {
        loop {
            let took = time(|| (0..rounds).for_each(|_| work()));
            if took >= SAMPLE {
                return took.as_nanos() as f64 / f64::from(rounds);
            }
            rounds *= 2;
        }
    })
}

/// Nanoseconds of `work` that has to be prepared for each time, out of the time.
fn prepared(mut prepare: impl FnMut(), mut work: impl FnMut()) -> f64 {
    // What reading the clock adds.
    let clock = median(|| time(|| {}).as_nanos() as f64);
    median(|| {
        let (mut took, mut rounds) = (Duration::ZERO, 0);
        while took < SAMPLE {
            prepare();
            took += time(&mut work);
            rounds += 1;
        }
        took.as_nanos() as f64 / f64::from(rounds) - clock
    })
}

fn median(mut sample: impl FnMut() -> f64) -> f64 {
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn time(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}
