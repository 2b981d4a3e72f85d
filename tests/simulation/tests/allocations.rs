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
use warren_tests_simulation::node::{Batches, MERGE};
use warren_tests_simulation::sys::{Counting, allocations};
use warren_tests_simulation::{Mesh, Node, packet};

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

/// Which session a datagram is of is a worker's own knowledge, of more than the few that talk at once in
/// the test above.
#[test]
fn a_hundred_peers_that_take_turns_take_their_own_locks_alone() {
    const PEERS: u16 = 100;
    // A session's replay window grows with its 64th, 128th and 256th packet: none between these rounds.
    const WARM: u64 = 140;
    const ROUNDS: u64 = 240;
    let mut mesh = Mesh::of_strangers(PEERS + 1, 1);
    let hub = mesh.nodes[0].as_peer();
    let spokes: Vec<_> = (mesh.nodes[1..].iter().map(Node::as_peer)).collect();
    mesh.set_peers(0, spokes);
    for at in 1..=usize::from(PEERS) {
        mesh.set_peers(at, [hub.clone()]);
        mesh.send(0, at, 0, 1, 64);
        mesh.send(0, at, 1, 1, 64);
    }
    mesh.run_for(Duration::from_secs(1));
    mesh.assert_all_delivered(0);

    let read = |from: usize, to: usize, batch: &mut Batches| {
        let (header, bytes) = packet::build(mesh.flow(from, to, 0), 0, 1, 40);
        batch.push_read(header, &bytes);
    };
    let [mut away, mut home] = [(); 2].map(|()| Batches::new());
    (1..=usize::from(PEERS)).for_each(|at| read(0, at, &mut away));
    let (mut outbound, mut inbound) = (Outbound::new(), Inbound::new(MERGE));
    let mut spoke = Outbound::new();
    let mut cable = Cable {
        from: mesh.nodes[0].address,
        recv: RecvBatch::new(16),
        delivered: 0,
    };
    let now = mesh.now();
    let mut spent = [(0, 0); 2];
    for round in 0..ROUNDS {
        let count = |spent: &mut (u64, u64), before: (u64, u64)| {
            if round >= WARM {
                spent.0 += allocations() - before.0;
                spent.1 += locks_taken() - before.1;
            }
        };
        let before = (allocations(), locks_taken());
        let router = &mesh.nodes[0].router;
        router.outbound(&mut outbound, &away.read, &mut away.send, now, &mut cable);
        count(&mut spent[0], before);
        assert_eq!(cable.recv.datagrams.len(), usize::from(PEERS));
        // What the hub sends ends here: it would only come to those who count nothing.
        cable.recv.clear();

        for (at, node) in mesh.nodes.iter().enumerate().skip(1) {
            home.read.clear();
            read(at, 0, &mut home);
            cable.from = node.address;
            let router = &node.router;
            router.outbound(&mut spoke, &home.read, &mut home.send, now, &mut cable);
        }
        std::mem::swap(&mut cable.recv, &mut home.recv);
        let before = (allocations(), locks_taken());
        router.inbound(
            &mut inbound,
            &mut home.recv,
            &mut home.send,
            now,
            &mut cable,
        );
        count(&mut spent[1], before);
        home.recv.clear();
        std::mem::swap(&mut cable.recv, &mut home.recv);
    }
    let packets = ROUNDS * u64::from(PEERS);
    assert_eq!(cable.delivered, packets);
    let own = (ROUNDS - WARM) * u64::from(PEERS);
    assert_eq!(spent, [(0, own); 2], "allocations and locks, out and in");
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
