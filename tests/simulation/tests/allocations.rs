//! Nothing is allocated for a packet, once the first have made room, and a batch takes one lock.
//!
//! The clock is not counted: a router has none, and is given the time with each batch.
#![cfg(debug_assertions)] // A router counts its locks in such builds alone.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use warren_engine::{Edges, Inbound, Outbound, locks_taken};
use warren_packet::backlog::Backlog;
use warren_packet::batch::{Datagram, ReadBatch, RecvBatch, SendBatch};
use warren_packet::{Ecn, vnet};
use warren_tests_simulation::node::MERGE;
use warren_tests_simulation::sys::{Counting, allocations};
use warren_tests_simulation::{Mesh, packet};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes what one node sends to where the other receives it, without a buffer of its own.
struct Cable {
    from: SocketAddr,
    recv: RecvBatch,
    delivered: u64,
}

impl Edges for Cable {
    fn transmit(&mut self, batch: &mut SendBatch) {
        for transmit in batch.transmits.drain(..) {
            let start = self.recv.datagrams.last().map_or(0, |last| last.range.end);
            let range = start..start + transmit.range.len();
            self.recv.arena[range.clone()].copy_from_slice(&batch.arena[transmit.range]);
            self.recv.datagrams.push(Datagram {
                range,
                stride: transmit.stride,
                remote: self.from,
                source: None,
                ecn: Ecn::NotEct,
            });
        }
    }

    fn deliver(&mut self, _: &vnet::Header, _: &[u8], pieces: &[Range<usize>]) {
        self.delivered += pieces.len() as u64;
    }
}

/// What one node's workers keep.
struct Worker {
    outbound: Outbound,
    inbound: Inbound,
    read: ReadBatch,
    send: SendBatch,
    cable: Cable,
}

#[test]
fn nothing_is_allocated_and_no_more_than_a_batchs_lock_is_taken_for_a_packet() {
    const ROUNDS: u64 = 2000;
    // A session's replay window grows to its size with the first 8192 packets.
    const WARM: u64 = 200;
    let mut mesh = Mesh::new(2, 1);
    mesh.send(0, 1, 0, 1, 64);
    mesh.run_for(Duration::from_secs(1));
    mesh.assert_all_delivered(0);

    let mut packets = 0;
    let mut workers = [0, 1].map(|from| {
        // Small packets of several flows, and large ones to be cut.
        let mut read = ReadBatch::new(1 << 20, 256);
        for number in 0..8 {
            for (count, payload) in [(1, 40), (1, 1300), (8, 1200)] {
                let flow = mesh.flow(from, 1 - from, number);
                let (header, bytes) = packet::build(flow, packets, count, payload);
                let spare = read.spare().expect("room");
                spare[..vnet::LEN].copy_from_slice(&header.encode());
                spare[vnet::LEN..][..bytes.len()].copy_from_slice(&bytes);
                read.commit(bytes.len());
                packets += count as u64;
            }
        }
        Worker {
            outbound: Outbound::new(),
            inbound: Inbound::new(MERGE),
            read,
            send: SendBatch::new(1 << 20, 64),
            cable: Cable {
                from: mesh.nodes[from].address,
                recv: RecvBatch::new(16),
                delivered: 0,
            },
        }
    });
    let now = mesh.now();
    assert!(allocations() > 0, "the allocator counts");
    let mut before = (0, 0);
    let mut spare = RecvBatch::new(0);
    for round in 0..ROUNDS {
        if round == WARM {
            before = (allocations(), locks_taken());
        }
        for at in [0, 1] {
            let Worker {
                outbound,
                inbound,
                read,
                send,
                cable,
            } = &mut workers[at];
            let [sender, receiver] = [at, 1 - at].map(|at| &mesh.nodes[at].router);
            sender.outbound(outbound, read, send, now, cable);
            std::mem::swap(&mut cable.recv, &mut spare);
            receiver.inbound(inbound, &mut spare, send, now, cable);
            spare.clear();
            std::mem::swap(&mut cable.recv, &mut spare);
        }
    }
    let allocated = allocations() - before.0;
    let locked = locks_taken() - before.1;
    let delivered: u64 = workers.iter().map(|worker| worker.cable.delivered).sum();
    assert_eq!(delivered, ROUNDS * packets);
    assert_eq!(allocated, 0);
    // Both directions of both nodes take the peer's once, and the second's way in sends nothing.
    let batches = 4 * (ROUNDS - WARM);
    assert!((1..=batches).contains(&locked), "{locked} in {batches}");
}

#[test]
fn nothing_is_allocated_for_a_packet_that_waits_or_passes() {
    let mesh = Mesh::new(2, 1);
    let bulk = packet::build(mesh.flow(0, 1, 0), 0, 8, 1200);
    let small = packet::build(mesh.flow(0, 1, 1), 0, 1, 40);
    let mut backlog = Backlog::new(4, 1 << 17, 64);
    let (mut before, mut passed) = (0, 0);
    for round in 0..500 {
        if round == 50 {
            before = allocations();
        }
        for (header, bytes) in [&bulk, &small, &bulk] {
            let batch = backlog.spare().expect("what waits leaves");
            let spare = batch.spare().expect("room");
            spare[..vnet::LEN].copy_from_slice(&header.encode());
            spare[vnet::LEN..][..bytes.len()].copy_from_slice(bytes);
            batch.commit(bytes.len());
            backlog.commit();
        }
        let first = backlog.next().expect("a packet");
        passed += first.packets().len();
        while !backlog.is_empty() {
            backlog.sent();
        }
    }
    assert_eq!(passed, 500, "the small one passes");
    assert_eq!(allocations() - before, 0);
}
