//! What was read from a TUN queue and waits to be sealed: sparse flows do not wait behind others.
//!
//! A TUN takes packets from their sockets the moment that they enter its queue, so nothing tells a
//! sender that they have not left yet, and a bulk stream's whole window stands there. A [`Backlog`]
//! is read ahead into, which costs little beside sealing, so that the window stands here instead,
//! where a packet of another flow can pass it as it does in RFC 8290.
//!
//! 1. [`Backlog::spare`] lends a batch to read into, [`Backlog::commit`] looks at what was read.
//! 2. A packet goes first if its flow has little in this read and nothing that waits. So a flow
//!    stays in order: what waits is never passed by its own flow.
//! 3. [`Backlog::next`] shows what is to leave now, [`Backlog::sent`] forgets it.
//!
//! Flows that are not sparse keep the order in which they were read, and the kernel's queue bounds
//! the share of each. The backlog has a bound, too: what finds no room stays in that queue, which
//! drops what finds none there.

use std::collections::VecDeque;

use crate::batch::ReadBatch;
use crate::ip::{self, Fragment, TCP, UDP};
use crate::vnet;

/// How much a flow may have in one read and be sparse, in bytes: two packets of the usual size.
const SPARSE_BYTES: usize = 3000;

/// Flows are told apart by as many hashes. Those that share one are one flow here.
const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 10;

/// See the module.
#[derive(Debug)]
pub struct Backlog {
    /// Packets of sparse flows, copied.
    first: ReadBatch,
    waiting: VecDeque<Waiting>,
    /// Empty ones, the last used last so that it is still in the cache.
    idle: Vec<Waiting>,
    flows: Box<[Flow; BUCKETS]>,
}

/// A batch, and whose each of its packets is.
#[derive(Debug)]
struct Waiting {
    batch: ReadBatch,
    owners: Vec<Owner>,
}

/// What there is of the flows of one hash.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    /// Packets that wait.
    waiting: u32,
    /// Bytes in the read that is being looked at.
    fresh: usize,
}

/// Whose a packet is.
#[derive(Debug, Clone, Copy)]
struct Owner {
    /// By addresses, protocol and ports.
    flow: u16,
    /// By addresses and protocol: where fragments count, which have no ports.
    pair: u16,
    /// Whether it keeps its place although its flow may be sparse.
    stays: bool,
}

impl Backlog {
    /// An empty one, for at most `batches` of about `bytes` and at most `packets` each.
    pub fn new(batches: usize, bytes: usize, packets: usize) -> Self {
        let empty = || Waiting {
            batch: ReadBatch::new(bytes, packets),
            owners: Vec::with_capacity(packets),
        };
        Self {
            first: ReadBatch::new(bytes, packets),
            waiting: VecDeque::with_capacity(batches),
            idle: (0..batches).map(|_| empty()).collect(),
            flows: Box::new([Flow::default(); BUCKETS]),
        }
    }

    /// Whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.next().is_none()
    }

    /// Where more is read to, behind what may be there already. `None` if there is no room.
    ///
    /// [`Self::commit`] is to be called each time, even if nothing was read.
    pub fn spare(&mut self) -> Option<&mut ReadBatch> {
        if self.is_last_full() {
            self.waiting.push_back(self.idle.pop()?);
        }
        self.waiting.back_mut().map(|last| &mut last.batch)
    }

    /// Whether there is no room to read more.
    pub fn is_full(&self) -> bool {
        self.idle.is_empty() && self.is_last_full()
    }

    fn is_last_full(&self) -> bool {
        (self.waiting.back()).is_none_or(|last| last.batch.is_full())
    }

    /// Looks at what was read into what [`Self::spare`] lent: sparse flows pass.
    pub fn commit(&mut self) {
        let Some(mut last) = self.waiting.pop_back() else {
            return;
        };
        let Waiting { batch, owners } = &mut last;
        let known = owners.len();
        for packet in &batch.packets()[known..] {
            let owner = Owner::of(&batch.arena()[packet.range.clone()]);
            self.flows[usize::from(owner.flow)].fresh += packet.range.len();
            owners.push(owner);
        }
        // Where all are sparse nobody waits for long, and together they are sealed faster.
        let mut passing = known > 0
            || !self.waiting.is_empty()
            || owners.iter().any(|owner| !owner.may_pass(&self.flows));
        let mut at = known;
        while let Some(&owner) = owners.get(at) {
            passing &= self.first.spare().is_some();
            if passing && owner.may_pass(&self.flows) {
                self.flows[usize::from(owner.flow)].fresh -= batch.packets()[at].range.len();
                copy(batch, at, &mut self.first);
                batch.remove(at);
                owners.remove(at);
            } else {
                self.flows[usize::from(owner.flow)].waiting += 1;
                at += 1;
            }
        }
        for owner in &owners[known..] {
            self.flows[usize::from(owner.flow)].fresh = 0;
        }
        if owners.is_empty() {
            batch.clear();
            self.idle.push(last);
        } else {
            self.waiting.push_back(last);
        }
    }

    /// What leaves now.
    pub fn next(&self) -> Option<&ReadBatch> {
        if !self.first.packets().is_empty() {
            return Some(&self.first);
        }
        self.waiting.front().map(|waiting| &waiting.batch)
    }

    /// What [`Self::next`] showed has left.
    pub fn sent(&mut self) {
        if !self.first.packets().is_empty() {
            return self.first.clear();
        }
        if let Some(mut sent) = self.waiting.pop_front() {
            for owner in sent.owners.drain(..) {
                self.flows[usize::from(owner.flow)].waiting -= 1;
            }
            sent.batch.clear();
            self.idle.push(sent);
        }
    }
}

impl Owner {
    fn of(packet: &[u8]) -> Self {
        let Ok(packet) = ip::Packet::parse(packet) else {
            // It will be dropped; where it stands until then does not matter.
            return Self {
                flow: 0,
                pair: 0,
                stays: true,
            };
        };
        let transport = packet.transport();
        let mut hash = transport.map_or(0, |transport| u64::from(transport.protocol));
        for word in packet.addresses().chunks(8) {
            hash = mix(hash, word);
        }
        let pair = bucket(hash);
        let whole = transport.filter(|transport| transport.fragment == Fragment::No);
        let ports = whole
            .filter(|transport| matches!(transport.protocol, TCP | UDP))
            .and_then(|transport| packet.bytes().get(transport.offset..transport.offset + 4));
        Self {
            flow: ports.map_or(pair, |ports| bucket(mix(hash, ports))),
            pair,
            stays: whole.is_none(),
        }
    }

    /// Whether the packet may leave before all that waits.
    fn may_pass(self, flows: &[Flow; BUCKETS]) -> bool {
        let own = flows[usize::from(self.flow)];
        // A fragment that waits may be of any flow between the two.
        let fragments = flows[usize::from(self.pair)].waiting;
        !self.stays && own.waiting == 0 && own.fresh <= SPARSE_BYTES && fragments == 0
    }
}

/// Copies a packet into a batch that has room.
fn copy(from: &ReadBatch, at: usize, to: &mut ReadBatch) {
    if let (Some((header, packet)), Some(spare)) = (from.get(at), to.spare()) {
        spare[..vnet::LEN].copy_from_slice(&header.encode());
        spare[vnet::LEN..][..packet.len()].copy_from_slice(packet);
        to.commit(packet.len());
    }
}

/// One step of a multiplicative hash over at most eight bytes; its high bits are the good ones.
fn mix(hash: u64, bytes: &[u8]) -> u64 {
    let number = (bytes.iter()).fold(0, |number, &byte| number << 8 | u64::from(byte));
    (hash.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn bucket(hash: u64) -> u16 {
    (hash >> (u64::BITS - BUCKET_BITS)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Flow as Packet;

    #[test]
    fn a_packet_of_another_flow_passes_a_bulk_stream() {
        let mut backlog = Backlog::new(4, 0, 64);
        for number in 0..3 {
            read(&mut backlog, &[bulk(number)]);
        }
        read(&mut backlog, &[ping(7)]);
        assert_eq!(drained(&mut backlog), [vec![7], vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn so_it_does_within_one_read() {
        let mut backlog = Backlog::new(4, 1 << 18, 64);
        read(&mut backlog, &[bulk(0), bulk(1), ping(7), bulk(2)]);
        assert_eq!(drained(&mut backlog), [vec![7], vec![0, 1, 2]]);
    }

    #[test]
    fn a_flow_does_not_pass_itself() {
        let mut backlog = Backlog::new(4, 1 << 18, 64);
        let last = Packet::tcp4().packet(&[2]);
        read(&mut backlog, &[bulk(0), bulk(1)]);
        read(&mut backlog, &[last]);
        assert_eq!(drained(&mut backlog), [vec![0, 1, 2]]);
    }

    #[test]
    fn nothing_passes_a_fragment_between_the_same_two() {
        let mut backlog = Backlog::new(4, 1 << 18, 64);
        let mut fragment = Packet::udp4().packet(&[5]);
        fragment[6] = 0x20;
        read(
            &mut backlog,
            &[bulk(0), fragment, Packet::udp4().packet(&[6]), ping(7)],
        );
        assert_eq!(drained(&mut backlog), [vec![7], vec![0, 5, 6]]);
    }

    #[test]
    fn datagrams_that_come_together_leave_together() {
        let flood: Vec<_> = (0..64).map(|n| Packet::udp4().packet(&[n; 64])).collect();
        let mut backlog = Backlog::new(4, 1 << 18, 64);
        read(&mut backlog, &flood);
        assert_eq!(drained(&mut backlog), [(0..64).collect::<Vec<_>>()]);
        // Sparse flows among themselves do, too.
        read(
            &mut backlog,
            &[
                ping(1),
                Packet::udp4().packet(&[2]),
                Packet::udp6().packet(&[3]),
            ],
        );
        assert_eq!(drained(&mut backlog), [vec![1, 2, 3]]);
    }

    #[test]
    fn what_finds_no_room_is_not_read() {
        let mut backlog = Backlog::new(2, 0, 64);
        for number in 0..2 {
            read(&mut backlog, &[bulk(number)]);
        }
        assert!(backlog.is_full());
        assert!(backlog.spare().is_none());
        backlog.sent();
        assert!(!backlog.is_full());
        assert!(backlog.spare().is_some());
        backlog.commit();
        assert_eq!(drained(&mut backlog), [vec![1]]);
    }

    proptest! {
        #[test]
        fn each_flow_leaves_whole_and_in_order(
            turns in vec((vec((0..6_u8, 0..3_usize, any::<bool>()), 0..12), 0..3_usize), 1..40),
        ) {
            let mut backlog = Backlog::new(3, 3 << 16, 8);
            let (mut numbers, mut left) = ([0_u8; 6], [0_u8; 6]);
            for (packets, sends) in turns {
                let mut together = 0;
                for (flow, size, fragment) in packets {
                    let mut model = [Packet::tcp4(), Packet::udp4(), Packet::tcp6(), Packet::udp6()]
                        [usize::from(flow % 4)].clone();
                    // The fifth and the sixth differ from the first two by a port alone.
                    model.ports.0 += u16::from(flow / 4);
                    let mut payload = vec![flow; [8, 1400, 40_000][size]];
                    payload[1] = numbers[usize::from(flow)];
                    let mut packet = model.packet(&payload);
                    if fragment && !model.v6 {
                        packet[6] = 0x20;
                    }
                    let Some(batch) = backlog.spare() else { break };
                    numbers[usize::from(flow)] = payload[1].wrapping_add(1);
                    put(batch, &packet);
                    together += 1;
                    // Now and then several packets are one read.
                    if size > 0 || together > 3 || backlog.is_last_full() {
                        backlog.commit();
                        together = 0;
                    }
                }
                backlog.commit();
                for _ in 0..sends {
                    prop_assert!(take(&mut backlog, &mut left));
                }
            }
            while !backlog.is_empty() {
                prop_assert!(take(&mut backlog, &mut left));
            }
            prop_assert_eq!(numbers, left);
            prop_assert!(backlog.flows.iter().all(|flow| flow.waiting == 0 && flow.fresh == 0));
            prop_assert_eq!(backlog.idle.len(), 3);
        }
    }

    /// Whether each flow's next packets are what leaves, by the flow and number in each payload.
    fn take(backlog: &mut Backlog, left: &mut [u8; 6]) -> bool {
        let mut in_order = true;
        if let Some(batch) = backlog.next() {
            for packet in batch.packets() {
                let bytes = &batch.arena()[packet.range.clone()];
                let headers = match (bytes[0] >> 4, ip::Packet::parse(bytes).expect("IP")) {
                    (4, packet) if bytes[9] == TCP => packet.header_len() + 20,
                    (_, packet) if bytes[0] >> 4 == 6 && bytes[6] == TCP => {
                        packet.header_len() + 20
                    }
                    (_, packet) => packet.header_len() + 8,
                };
                let (flow, number) = (bytes[headers], bytes[headers + 1]);
                in_order &= left[usize::from(flow)] == number;
                left[usize::from(flow)] = number.wrapping_add(1);
            }
        }
        backlog.sent();
        in_order
    }

    /// The last byte of each packet, batch by batch.
    fn drained(backlog: &mut Backlog) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(batch) = backlog.next() {
            let last = |packet: &crate::ReadPacket| batch.arena()[packet.range.end - 1];
            all.push(batch.packets().iter().map(last).collect());
            backlog.sent();
        }
        all
    }

    fn read(backlog: &mut Backlog, packets: &[Vec<u8>]) {
        for packet in packets {
            put(backlog.spare().expect("there is room"), packet);
        }
        backlog.commit();
    }

    fn put(batch: &mut ReadBatch, packet: &[u8]) {
        let spare = batch.spare().expect("there is room");
        spare[vnet::LEN..][..packet.len()].copy_from_slice(packet);
        batch.commit(packet.len());
    }

    fn bulk(number: u8) -> Vec<u8> {
        Packet::tcp4().packet(&vec![number; 50_000])
    }

    /// Another protocol between the same two.
    fn ping(number: u8) -> Vec<u8> {
        let mut packet = Packet::udp4().packet(&[number; 56]);
        packet[9] = 1;
        packet
    }
}
