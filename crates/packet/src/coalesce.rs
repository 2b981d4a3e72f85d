//! Joining what came as many packets into few large ones, for one TUN write each.
//!
//! 1. [`Coalescer::push`] takes packets in the order in which they came. A packet joins the open
//!    run of its flow, or it begins a new run, which closes the one before.
//! 2. [`Coalescer::finish`] rewrites the headers of the runs that hold more than one packet.
//! 3. [`Coalescer::writes`] yields the runs, in the order of their first packets.
//!
//! Order within a flow is kept by construction: a flow has at most one open run, and it is the
//! flow's last one. Fragments, other protocols and whatever else shows no ports close every run
//! between their two addresses, since they may belong to any of them.
//!
//! The kernel takes the content of a joined packet for verified, so the checksums that a packet has are
//! verified before it joins: what a peer sent broken must not come out repaired. A packet that
//! stays alone is written as it is, and the kernel verifies it as ever.
//!
//! What was joined is cut again to the very same bytes, be it by the kernel or by
//! [`crate::segment`]. Hence packets join only if equal in addresses, ports, TOS with ECN, TTL,
//! DF, flow label, and in TCP's acknowledgement, window, flags but PSH and FIN, and options; with
//! consecutive ids and sequence; of the first one's size, where a shorter one, PSH or FIN ends
//! the run. Left out on purpose: IPv4 options and IPv6 extension headers (the kernel's own GRO
//! declines most of them), SYN, RST, URG, CWR, UDP without checksum over IPv6.
//!
//! UDP without checksum over IPv4, which is most of VXLAN, is the one exception to the very same bytes: a
//! TUN takes large UDP packets only with a checksum to be finished, so it comes out with the right one
//! where it was joined. The kernel's own GRO declines it.

use std::ops::Range;

use crate::batch::MAX_PACKET;
use crate::checksum::{self, Sum, pseudo};
use crate::ip::{TCP, UDP, V4_HEADER, V6_HEADER, Version, be16, be32, put16};
use crate::vnet::{self, Header};

/// Flows that are open at a time. When one more begins, the one unused for longest is closed.
pub const OPEN_FLOWS: usize = 16;
/// Packets that join into one, at most: what the kernel's own UDP GRO joins.
pub const MAX_JOINED: usize = 64;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

const NO_LINK: u32 = u32::MAX;

/// What may be joined: what the TUN was granted to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// TCP over either family.
    pub tcp: bool,
    /// UDP over either family.
    pub udp: bool,
}

/// One write to a TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write<'a> {
    /// What the TUN is told.
    pub header: Header,
    /// What the packet consists of, in order; the first piece begins with all headers.
    pub pieces: &'a [Range<usize>],
}

impl Write<'_> {
    /// How many packets were joined.
    pub fn packets(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of the packet.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(ExactSizeIterator::len).sum()
    }
}

/// Joins packets of a batch. Reused: it allocates only while batches grow.
#[derive(Debug)]
pub struct Coalescer {
    merge: Merge,
    /// Every write, in the order of first packets.
    runs: Vec<Run>,
    /// Payloads behind the first packets, chained by run.
    links: Vec<Link>,
    /// The runs that may still grow, the last used first; one for each flow at most.
    open: Vec<Open>,
    /// The pieces of all runs, run by run. Filled by `finish`.
    pieces: Vec<Range<usize>>,
}

#[derive(Debug)]
struct Run {
    first: Range<usize>,
    /// What the headers of the first packet say; `None` for what never joins.
    shape: Option<Shape>,
    /// The checksums of the first packet are right.
    verified: bool,
    packets: usize,
    /// Bytes of payload in all.
    payload: usize,
    /// PSH and FIN of the last packet.
    last_flags: u8,
    first_link: u32,
    last_link: u32,
    header: Header,
    pieces: Range<usize>,
}

#[derive(Debug)]
struct Link {
    payload: Range<usize>,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    tag: u64,
    run: u32,
}

/// Where a packet's parts are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    version: Version,
    protocol: u8,
    transport: usize,
    payload: usize,
    len: usize,
}

/// A packet's flow, and whether the packet can join others of it.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    shape: Shape,
    tag: u64,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Joins and may be joined.
    Any,
    /// May be the last of a run only.
    Last,
    /// Stays alone.
    Alone,
}

impl Coalescer {
    /// A coalescer that joins only what `merge` allows.
    pub fn new(merge: Merge) -> Self {
        Self {
            merge,
            runs: Vec::new(),
            links: Vec::new(),
            open: Vec::with_capacity(OPEN_FLOWS),
            pieces: Vec::new(),
        }
    }

    /// Forget everything and begin anew.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.links.clear();
        self.open.clear();
        self.pieces.clear();
    }

    /// Take the next packet, which lies at `packet` in `arena` and was trimmed to its IP length.
    ///
    /// # Panics
    ///
    /// If the range is not within the arena.
    pub fn push(&mut self, arena: &[u8], packet: Range<usize>) {
        let bytes = &arena[packet.clone()];
        if !self.merge.tcp && !self.merge.udp {
            self.begin(packet, None);
            return;
        }
        let Some(candidate) = Candidate::of(bytes) else {
            self.close_between(arena, bytes);
            self.begin(packet, None);
            return;
        };
        let allowed = match candidate.shape.protocol {
            TCP => self.merge.tcp,
            _ => self.merge.udp,
        };
        if !allowed {
            // Then no run of this protocol is open either.
            self.begin(packet, None);
            return;
        }
        if let Some(slot) = self.find(arena, bytes, &candidate) {
            if self.join(arena, slot, packet.clone(), &candidate) {
                return;
            }
            self.open.remove(slot);
        }
        let run = self.begin(packet, Some(candidate.shape));
        if candidate.role == Role::Any {
            self.open.truncate(OPEN_FLOWS - 1);
            let tag = candidate.tag;
            self.open.insert(0, Open { tag, run });
        }
    }

    /// Rewrite headers in `arena`, the one that was given to [`Self::push`], and close all runs.
    pub fn finish(&mut self, arena: &mut [u8]) {
        self.open.clear();
        self.pieces.clear();
        for run in &mut self.runs {
            let start = self.pieces.len();
            self.pieces.push(run.first.clone());
            let mut link = run.first_link;
            while let Some(Link { payload, next }) = self.links.get(link as usize) {
                self.pieces.push(payload.clone());
                link = *next;
            }
            run.pieces = start..self.pieces.len();
            if let Some(shape) = run.shape
                && run.packets > 1
            {
                run.header = run.rewrite(&shape, &mut arena[run.first.clone()]);
            }
        }
    }

    /// What to write, in order. Nothing before [`Self::finish`].
    pub fn writes(&self) -> impl ExactSizeIterator<Item = Write<'_>> {
        let finished = if self.pieces.is_empty() {
            0
        } else {
            self.runs.len()
        };
        self.runs[..finished].iter().map(|run| Write {
            header: run.header,
            pieces: &self.pieces[run.pieces.clone()],
        })
    }

    /// A run of one packet.
    fn begin(&mut self, first: Range<usize>, shape: Option<Shape>) -> u32 {
        let run = self.runs.len() as u32;
        self.runs.push(Run {
            payload: shape.map_or(0, |shape| shape.len - shape.payload),
            first,
            shape,
            verified: false,
            packets: 1,
            last_flags: 0,
            first_link: NO_LINK,
            last_link: NO_LINK,
            header: Header::NONE,
            pieces: 0..0,
        });
        run
    }

    /// The place of the flow's open run, which becomes the first place.
    fn find(&mut self, arena: &[u8], bytes: &[u8], candidate: &Candidate) -> Option<usize> {
        let slot = self.open.iter().position(|open| {
            let run = &self.runs[open.run as usize];
            open.tag == candidate.tag
                && run.shape.is_some_and(|shape| {
                    shape.is_same_flow(&arena[run.first.clone()], &candidate.shape, bytes)
                })
        })?;
        self.open[..=slot].rotate_right(1);
        Some(0)
    }

    /// Add a packet to an open run, if it fits.
    fn join(
        &mut self,
        arena: &[u8],
        slot: usize,
        packet: Range<usize>,
        candidate: &Candidate,
    ) -> bool {
        let index = self.open[slot].run;
        let run = &mut self.runs[index as usize];
        let bytes = &arena[packet.clone()];
        let first = &arena[run.first.clone()];
        if candidate.role == Role::Alone || !run.continues(first, &candidate.shape, bytes) {
            return false;
        }
        if !run.verified {
            run.verified = run.shape.is_some_and(|shape| shape.is_intact(first));
            if !run.verified {
                return false;
            }
        }
        if !candidate.shape.is_intact(bytes) {
            return false;
        }

        let payload = packet.start + candidate.shape.payload..packet.end;
        let short = payload.len() < run.size();
        run.payload += payload.len();
        run.packets += 1;
        if candidate.shape.protocol == TCP {
            run.last_flags = bytes[candidate.shape.transport + 13] & (PSH | FIN);
        }
        let link = self.links.len() as u32;
        match self.links.get_mut(run.last_link as usize) {
            Some(last) => last.next = link,
            None => run.first_link = link,
        }
        run.last_link = link;
        self.links.push(Link {
            payload,
            next: NO_LINK,
        });
        if short || candidate.role == Role::Last {
            self.open.remove(slot);
        }
        true
    }

    /// Close every run between the addresses of a packet of which no more is known.
    fn close_between(&mut self, arena: &[u8], bytes: &[u8]) {
        let addresses = match bytes.first().map(|byte| byte >> 4) {
            Some(4) => bytes.get(12..V4_HEADER),
            Some(6) => bytes.get(8..V6_HEADER),
            _ => None,
        };
        let Some(addresses) = addresses else {
            return;
        };
        self.open.retain(|open| {
            let run = &self.runs[open.run as usize];
            run.shape
                .is_none_or(|shape| shape.addresses(&arena[run.first.clone()]) != addresses)
        });
    }
}

impl Candidate {
    /// `None` for what shows no ports, and for what is not exactly as long as it claims.
    fn of(bytes: &[u8]) -> Option<Self> {
        let (version, protocol, transport) = match bytes.first()? {
            0x45 => {
                if bytes.len() < V4_HEADER
                    || usize::from(be16(bytes, 2)) != bytes.len()
                    // Fragments, and the reserved bit.
                    || be16(bytes, 6) & !0x4000 != 0
                {
                    return None;
                }
                (Version::V4, bytes[9], V4_HEADER)
            }
            0x60..=0x6f => {
                if bytes.len() < V6_HEADER || usize::from(be16(bytes, 4)) + V6_HEADER != bytes.len()
                {
                    return None;
                }
                (Version::V6, bytes[6], V6_HEADER)
            }
            _ => return None,
        };
        let header = &bytes[transport..];
        let (len, role) = match protocol {
            TCP => {
                let flags = *header.get(13)?;
                let len = usize::from(header[12] >> 4) * 4;
                if len < 20 || len > header.len() {
                    return None;
                }
                let role = if flags & (SYN | RST | ACK | URG | CWR) != ACK || len == header.len() {
                    Role::Alone
                } else if flags & (PSH | FIN) != 0 {
                    Role::Last
                } else {
                    Role::Any
                };
                (len, role)
            }
            UDP => {
                if header.len() < 8 {
                    return None;
                }
                let whole = usize::from(be16(header, 4)) == header.len();
                // What has no checksum comes out with one. Over IPv6 that would make acceptable what
                // all but some tunnels have to drop (RFC 8200, section 8.1).
                let joins = be16(header, 6) != 0 || version == Version::V4;
                let role = if whole && header.len() > 8 && joins {
                    Role::Any
                } else {
                    Role::Alone
                };
                (8, role)
            }
            _ => return None,
        };
        let shape = Shape {
            version,
            protocol,
            transport,
            payload: transport + len,
            len: bytes.len(),
        };
        Some(Self {
            shape,
            tag: shape.tag(bytes),
            role,
        })
    }
}

impl Shape {
    fn addresses<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.version {
            Version::V4 => &bytes[12..20],
            Version::V6 => &bytes[8..40],
        }
    }

    fn ports<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.transport..self.transport + 4]
    }

    /// Differs for most flows; what is equal is compared in full.
    fn tag(&self, bytes: &[u8]) -> u64 {
        let (words, _) = self.addresses(bytes).as_chunks::<8>();
        let mut tag = u64::from(be32(bytes, self.transport)) << 8 | u64::from(self.protocol);
        for word in words {
            tag = (tag.rotate_left(23) ^ u64::from_ne_bytes(*word))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        tag
    }

    fn is_same_flow(&self, bytes: &[u8], other: &Self, other_bytes: &[u8]) -> bool {
        self.version == other.version
            && self.protocol == other.protocol
            && self.ports(bytes) == other.ports(other_bytes)
            && self.addresses(bytes) == other.addresses(other_bytes)
    }

    /// Whether all checksums that there are are right, in the form in which cutting would write them.
    ///
    /// The one's complement has two zeros: a sum may be right and still not be what comes out
    /// of computing it. Such a packet stays alone.
    fn is_intact(&self, bytes: &[u8]) -> bool {
        if self.version == Version::V4
            && (be16(bytes, 10) == 0xffff || !checksum::header_is_valid(&bytes[..V4_HEADER]))
        {
            return false;
        }
        if self.protocol == TCP && be16(bytes, self.transport + 16) == 0xffff {
            return false;
        }
        if self.protocol == UDP && be16(bytes, self.transport + 6) == 0 {
            return true;
        }
        self.pseudo(bytes, self.len)
            .bytes(&bytes[self.transport..])
            .folded()
            == 0xffff
    }

    /// The sum of the pseudo-header of a packet of `len` bytes.
    fn pseudo(&self, bytes: &[u8], len: usize) -> Sum {
        pseudo(self.addresses(bytes), self.protocol).word((len - self.transport) as u16)
    }
}

impl Run {
    /// Payload of the first packet, which is that of all but the last.
    fn size(&self) -> usize {
        self.shape.map_or(0, |shape| shape.len - shape.payload)
    }

    /// Whether a packet of the same flow is what cutting would yield next.
    fn continues(&self, first: &[u8], shape: &Shape, bytes: &[u8]) -> bool {
        let Some(own) = self.shape else {
            return false;
        };
        let payload = shape.len - shape.payload;
        if self.packets >= MAX_JOINED
            || own.payload != shape.payload
            || payload > own.len - own.payload
            || own.payload + self.payload + payload > MAX_PACKET
        {
            return false;
        }
        let ip = match own.version {
            // TOS; then DF and TTL.
            Version::V4 => {
                first[1] == bytes[1]
                    && first[6..9] == bytes[6..9]
                    && be16(first, 4).wrapping_add(self.packets as u16) == be16(bytes, 4)
            }
            // Traffic class and flow label; then hop limit.
            Version::V6 => first[..4] == bytes[..4] && first[7] == bytes[7],
        };
        if !ip {
            return false;
        }
        let first = &first[own.transport..own.payload];
        let next = &bytes[shape.transport..shape.payload];
        if own.protocol == UDP {
            return (be16(first, 6) == 0) == (be16(next, 6) == 0);
        }
        be32(first, 4).wrapping_add(self.payload as u32) == be32(next, 4)
            // Acknowledgement, length of the header and the flag beside it.
            && first[8..13] == next[8..13]
            && first[13] | PSH | FIN == next[13] | PSH | FIN
            && first[14..16] == next[14..16]
            // The urgent pointer, and the options.
            && first[18..] == next[18..]
    }

    /// Make the first packet's headers those of the whole.
    fn rewrite(&self, shape: &Shape, first: &mut [u8]) -> Header {
        let total = shape.payload + self.payload;
        let transport = shape.transport;
        match shape.version {
            Version::V4 => {
                let old = be16(first, 2);
                let sum = checksum::replace(be16(first, 10), old, total as u16);
                put16(first, 2, total as u16);
                put16(first, 10, sum);
            }
            Version::V6 => put16(first, 4, (total - V6_HEADER) as u16),
        }
        let (field, gso_type) = match (shape.protocol, shape.version) {
            (TCP, version) => {
                first[transport + 13] |= self.last_flags;
                let gso_type = match version {
                    Version::V4 => vnet::GSO_TCPV4,
                    Version::V6 => vnet::GSO_TCPV6,
                };
                (16, gso_type)
            }
            _ => {
                put16(first, transport + 4, (total - transport) as u16);
                (6, vnet::GSO_UDP_L4)
            }
        };
        let sum = shape.pseudo(first, total).folded();
        put16(first, transport + field, sum);
        Header {
            flags: vnet::NEEDS_CSUM,
            gso_type,
            hdr_len: shape.payload as u16,
            gso_size: self.size() as u16,
            csum_start: transport as u16,
            csum_offset: field as u16,
            ..Header::NONE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segments;
    use crate::testing::{self, Flow, naive_segments};
    use proptest::prelude::*;

    const BOTH: Merge = Merge {
        tcp: true,
        udp: true,
    };

    struct Written {
        header: Header,
        packet: Vec<u8>,
        joined: usize,
    }

    /// Push packets, as they would lie in a batch: apart, behind other bytes.
    fn coalesce(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Written> {
        let mut arena = vec![0xee; 16];
        let mut ranges = Vec::new();
        for packet in packets {
            ranges.push(arena.len()..arena.len() + packet.len());
            arena.extend_from_slice(packet);
            arena.extend_from_slice(&[0xee; 16]);
        }
        coalescer.clear();
        for range in ranges {
            coalescer.push(&arena, range);
        }
        assert_eq!(coalescer.writes().len(), 0);
        coalescer.finish(&mut arena);
        coalescer
            .writes()
            .map(|write| {
                let pieces: Vec<&[u8]> = write.pieces.iter().map(|p| &arena[p.clone()]).collect();
                assert_eq!(write.packets(), pieces.len());
                let packet = pieces.concat();
                assert_eq!(write.bytes(), packet.len());
                Written {
                    header: write.header,
                    packet,
                    joined: pieces.len(),
                }
            })
            .collect()
    }

    /// What the kernel would make of the writes again.
    fn cut(writes: &[Written]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for write in writes {
            let segments = Segments::new(write.header, &write.packet).expect("we wrote it well");
            assert_eq!(segments.count(), write.joined);
            for index in 0..segments.count() {
                let mut out = vec![0; segments.len(index)];
                segments.copy_into(index, &mut out);
                packets.push(out);
            }
        }
        packets
    }

    fn joined(packets: &[Vec<u8>]) -> Vec<usize> {
        let writes = coalesce(&mut Coalescer::new(BOTH), packets);
        writes.iter().map(|write| write.joined).collect()
    }

    /// `payload` bytes of a flow in packets of `size`.
    fn stream(flow: &Flow, payload: usize, size: usize) -> Vec<Vec<u8>> {
        let bytes: Vec<u8> = (0..payload).map(|i| (i * 7 % 253) as u8).collect();
        let (_, packet) = testing::large(flow, &bytes, size as u16);
        naive_segments(flow, &packet, size)
    }

    fn kinds() -> [Flow; 4] {
        [Flow::tcp4(), Flow::tcp6(), Flow::udp4(), Flow::udp6()]
    }

    #[test]
    fn a_run_joins_into_what_the_sender_cut() {
        for mut flow in kinds() {
            flow.flags |= PSH;
            flow.tos = 0b1011_1010;
            flow.tcp_options = vec![1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4];
            let bytes: Vec<u8> = (0..30_500).map(|i| (i * 7 % 253) as u8).collect();
            let (header, large) = testing::large(&flow, &bytes, 1000);
            let packets = naive_segments(&flow, &large, 1000);
            let writes = coalesce(&mut Coalescer::new(BOTH), &packets);
            assert_eq!(writes.len(), 1);
            assert_eq!(writes[0].header, header);
            assert_eq!(writes[0].packet, large);
            assert_eq!(cut(&writes), packets);
        }
    }

    #[test]
    fn a_lone_packet_is_written_as_it_is_without_looking_at_its_sums() {
        for flow in kinds() {
            let mut packet = flow.packet(&[7; 100]);
            *packet.last_mut().expect("it has bytes") ^= 1;
            let writes = coalesce(&mut Coalescer::new(BOTH), std::slice::from_ref(&packet));
            assert_eq!(writes.len(), 1);
            assert_eq!(writes[0].header, Header::NONE);
            assert_eq!(writes[0].packet, packet);
        }
    }

    #[test]
    fn a_packet_with_a_wrong_checksum_is_never_joined_and_never_repaired() {
        for flow in kinds() {
            for broken in 0..4 {
                for at in [flow.headers() - 1, flow.headers(), flow.headers() + 50] {
                    let mut packets = stream(&flow, 400, 100);
                    packets[broken][at] ^= 4;
                    let writes = coalesce(&mut Coalescer::new(BOTH), &packets);
                    assert!(
                        writes
                            .iter()
                            .all(|w| w.joined == 1 || w.packet != packets[broken])
                    );
                    assert_eq!(cut(&writes), packets);
                    assert!(writes.len() >= 2);
                }
            }
        }
    }

    #[test]
    fn a_wrong_ipv4_header_checksum_keeps_a_packet_alone() {
        for broken in 0..3 {
            let mut packets = stream(&Flow::udp4(), 300, 100);
            packets[broken][10] ^= 1;
            let writes = coalesce(&mut Coalescer::new(BOTH), &packets);
            assert_eq!(cut(&writes), packets);
            assert!(writes.len() >= 2);
        }
    }

    #[test]
    fn a_shorter_packet_ends_the_run_and_a_longer_one_begins_the_next() {
        for flow in kinds() {
            let mut packets = stream(&flow, 350, 100);
            let mut next = flow.clone();
            next.id += 4;
            next.sequence += 350;
            packets.extend(stream(&next, 450, 150));
            assert_eq!(joined(&packets), [4, 3]);
        }
    }

    #[test]
    fn psh_and_fin_end_a_run_and_stay_on_its_last_packet() {
        for flag in [PSH, FIN, PSH | FIN] {
            let mut flow = Flow::tcp4();
            flow.flags |= flag;
            let mut packets = stream(&flow, 300, 100);
            flow.id += 3;
            flow.sequence += 300;
            flow.flags = ACK;
            packets.extend(stream(&flow, 200, 100));
            let writes = coalesce(&mut Coalescer::new(BOTH), &packets);
            assert_eq!(writes.iter().map(|w| w.joined).collect::<Vec<_>>(), [3, 2]);
            assert_eq!(writes[0].packet[33], ACK | flag);
            assert_eq!(cut(&writes), packets);
        }
    }

    #[test]
    fn what_differs_in_any_field_is_not_joined() {
        type Change = fn(&mut Flow);
        let common: [(&str, Change); 4] = [
            ("tos", |f| f.tos ^= 0x10),
            ("ecn", |f| f.tos ^= 3),
            ("ttl", |f| f.ttl -= 1),
            ("options", |f| f.tcp_options = vec![1, 1, 1, 1]),
        ];
        let v4: [(&str, Change); 3] = [
            ("df", |f| f.df = false),
            ("id repeated", |f| f.id -= 1),
            ("id skipped", |f| f.id += 1),
        ];
        let v6: [(&str, Change); 1] = [("flow label", |f| f.label += 1)];
        let tcp: [(&str, Change); 5] = [
            ("sequence", |f| f.sequence += 1),
            ("sequence repeated", |f| f.sequence -= 100),
            ("acknowledgement", |f| f.ack += 1),
            ("window", |f| f.window += 1),
            ("ece", |f| f.flags |= 0x40),
        ];
        for flow in kinds() {
            let mut changes: Vec<(&str, Change)> = common.to_vec();
            changes.extend_from_slice(if flow.v6 { &v6 } else { &v4 });
            if flow.udp {
                changes.retain(|(name, _)| *name != "options");
            } else {
                changes.extend_from_slice(&tcp);
            }
            let first = flow.packet(&[1; 100]);
            let mut next = flow.clone();
            next.id += 1;
            next.sequence += 100;
            assert_eq!(joined(&[first.clone(), next.packet(&[2; 100])]), [2]);
            for (name, change) in changes {
                let mut next = next.clone();
                change(&mut next);
                let second = next.packet(&[2; 100]);
                assert_eq!(joined(&[first.clone(), second]), [1, 1], "{flow:?}: {name}");
            }
        }
    }

    #[test]
    fn cwr_urg_syn_and_rst_are_never_joined() {
        for flag in [CWR, URG, SYN, RST] {
            for at in 0..3u16 {
                let packets: Vec<Vec<u8>> = (0..3u16)
                    .map(|n| {
                        let mut flow = Flow::tcp6();
                        flow.sequence += u32::from(n) * 100;
                        flow.flags |= if n == at { flag } else { 0 };
                        flow.packet(&[n as u8; 100])
                    })
                    .collect();
                let expected: &[usize] = match at {
                    0 => &[1, 2],
                    1 => &[1, 1, 1],
                    _ => &[2, 1],
                };
                assert_eq!(joined(&packets), expected);
            }
        }
    }

    #[test]
    fn options_and_extension_headers_are_not_joined() {
        for mut flow in kinds() {
            flow.ip_options = 1;
            assert_eq!(joined(&stream(&flow, 300, 100)), [1, 1, 1]);
        }
    }

    #[test]
    fn udp_without_checksum_over_ipv6_and_without_payload_is_not_joined() {
        let mut packets = stream(&Flow::udp6(), 300, 100);
        for packet in &mut packets {
            put16(packet, 46, 0);
        }
        assert_eq!(joined(&packets), [1, 1, 1]);
        let flow = Flow::udp6();
        assert_eq!(joined(&[flow.packet(&[]), flow.packet(&[])]), [1, 1]);
    }

    #[test]
    fn udp_without_checksum_over_ipv4_is_joined_and_gets_the_right_one() {
        let packets = stream(&Flow::udp4(), 300, 100);
        let without = |packet: &Vec<u8>| {
            let mut packet = packet.clone();
            put16(&mut packet, 26, 0);
            packet
        };
        let bare: Vec<Vec<u8>> = packets.iter().map(without).collect();
        let writes = coalesce(&mut Coalescer::new(BOTH), &bare);
        assert_eq!(writes.len(), 1);
        assert_eq!(cut(&writes), packets);
        // One alone stays as it is, and the two kinds do not join.
        let writes = coalesce(&mut Coalescer::new(BOTH), &bare[..1]);
        assert_eq!(cut(&writes), bare[..1]);
        let mixed = [bare[0].clone(), packets[1].clone(), bare[2].clone()];
        assert_eq!(joined(&mixed), [1, 1, 1]);
        // What is said of its length is believed no more than with a checksum.
        let mut short = bare.clone();
        put16(&mut short[1], 24, 107);
        assert_eq!(joined(&short), [1, 1, 1]);
    }

    #[test]
    fn an_acknowledgement_between_data_keeps_its_place() {
        let mut flow = Flow::tcp4();
        let mut packets = stream(&flow, 200, 100);
        flow.id += 2;
        flow.sequence += 200;
        packets.push(flow.packet(&[]));
        flow.id += 1;
        packets.extend(stream(&flow, 200, 100));
        assert_eq!(joined(&packets), [2, 1, 2]);
    }

    #[test]
    fn interleaved_flows_are_each_joined() {
        let flows: Vec<Vec<Vec<u8>>> = (0..OPEN_FLOWS as u16)
            .map(|n| {
                let mut flow = kinds()[usize::from(n) % 4].clone();
                flow.ports.0 += n;
                stream(&flow, 1000, 100)
            })
            .collect();
        let mut packets = Vec::new();
        for round in 0..10 {
            packets.extend(flows.iter().map(|flow| flow[round].clone()));
        }
        assert_eq!(joined(&packets), [10; OPEN_FLOWS]);
    }

    #[test]
    fn one_flow_too_many_closes_the_one_unused_for_longest() {
        let packet = |n: u16, part: u16| {
            let mut flow = Flow::udp6();
            flow.ports.0 += n;
            flow.packet(&[part as u8; 50])
        };
        let flows = OPEN_FLOWS as u16;
        let mut packets: Vec<Vec<u8>> = (0..flows).map(|n| packet(n, 0)).collect();
        packets.push(packet(0, 1));
        packets.push(packet(flows, 0));
        // The first flow was used again and stayed open; the second had to go.
        packets.push(packet(0, 2));
        packets.push(packet(1, 1));
        let counts = joined(&packets);
        assert_eq!(counts[0], 3);
        assert_eq!(counts[1], 1);
        assert_eq!(counts.len(), OPEN_FLOWS + 2);
    }

    #[test]
    fn a_fragment_is_overtaken_by_nothing_between_its_addresses() {
        let flow = Flow::udp4();
        let mut fragment = flow.packet(&[9; 64]);
        put16(&mut fragment, 6, 0x2000);
        let mut other = flow.clone();
        other.host = 9;
        let ours = stream(&flow, 200, 100);
        let theirs = stream(&other, 200, 100);
        let packets = [&ours[0], &theirs[0], &fragment, &ours[1], &theirs[1]].map(Clone::clone);
        assert_eq!(joined(&packets), [1, 2, 1, 1]);
    }

    #[test]
    fn a_joined_packet_is_never_longer_than_a_packet_can_be_nor_of_too_many_parts() {
        for flow in kinds() {
            let packets = stream(&flow, 140_000, 1400);
            let writes = coalesce(&mut Coalescer::new(BOTH), &packets);
            assert_eq!(cut(&writes), packets);
            assert!(writes.iter().all(|write| write.packet.len() <= MAX_PACKET));
            assert_eq!(writes[0].joined, (MAX_PACKET - flow.headers()) / 1400);
            assert_eq!(joined(&stream(&flow, 700, 7)), [MAX_JOINED, 36]);
        }
    }

    #[test]
    fn what_the_tun_does_not_take_is_not_joined() {
        for (merge, udp) in [(true, false), (false, true)] {
            let mut coalescer = Coalescer::new(Merge {
                tcp: merge,
                udp: !merge,
            });
            for flow in kinds() {
                let writes = coalesce(&mut coalescer, &stream(&flow, 300, 100));
                assert_eq!(writes.len(), if flow.udp == udp { 1 } else { 3 });
            }
        }
    }

    #[test]
    fn sums_that_are_right_but_not_canonical_are_left_alone() {
        // A payload for which the computed TCP checksum is 0, written as the other zero.
        let mut flow = Flow::tcp4();
        let plain = flow.packet(&[0; 2]);
        let sum = be16(&plain, 36).to_be_bytes();
        let mut first = flow.packet(&sum);
        assert_eq!(be16(&first, 36), 0);
        flow.sequence += 2;
        flow.id += 1;
        let second = flow.packet(&[1, 2]);
        assert_eq!(joined(&[first.clone(), second.clone()]), [2]);
        put16(&mut first, 36, 0xffff);
        testing::assert_valid(&first);
        assert_eq!(joined(&[first, second]), [1, 1]);

        // Likewise an IPv4 header.
        let mut flow = Flow::udp4();
        flow.id = flow.id.wrapping_add(be16(&flow.packet(&[1; 9]), 10));
        let mut first = flow.packet(&[1; 9]);
        assert_eq!(be16(&first, 10), 0);
        flow.id += 1;
        let second = flow.packet(&[2; 9]);
        assert_eq!(joined(&[first.clone(), second.clone()]), [2]);
        put16(&mut first, 10, 0xffff);
        testing::assert_valid(&first);
        assert_eq!(joined(&[first, second]), [1, 1]);
    }

    #[test]
    fn a_coalescer_allocates_only_while_batches_grow() {
        let mut coalescer = Coalescer::new(BOTH);
        let packets = stream(&Flow::tcp4(), 60_000, 1000);
        coalesce(&mut coalescer, &packets);
        let room = |c: &Coalescer| {
            let Coalescer {
                runs,
                links,
                open,
                pieces,
                ..
            } = c;
            (
                runs.capacity(),
                links.capacity(),
                open.capacity(),
                pieces.capacity(),
            )
        };
        let before = room(&coalescer);
        for _ in 0..10 {
            coalesce(&mut coalescer, &packets);
        }
        assert_eq!(room(&coalescer), before);
    }

    /// What a peer may do to a flow between two packets, or instead of one.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Data {
            len: usize,
        },
        Flags {
            flags: u8,
            len: usize,
        },
        Tos(u8),
        Gap,
        Break {
            len: usize,
            at: usize,
        },
        Fragment,
        Options,
        Junk,
        /// Without a checksum, where that may be.
        Bare {
            len: usize,
        },
    }

    fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
        let len = prop::sample::select(vec![0usize, 1, 99, 100, 100, 100, 100, 100, 1000]);
        let flags = prop::sample::select(vec![
            ACK | PSH,
            ACK | FIN,
            ACK | CWR,
            ACK | 0x40,
            SYN,
            RST | ACK,
            ACK | URG,
        ]);
        let event = prop_oneof![
            12 => len.clone().prop_map(|len| Event::Data { len }),
            2 => (flags, len.clone()).prop_map(|(flags, len)| Event::Flags { flags, len }),
            1 => (0..4u8).prop_map(Event::Tos),
            1 => Just(Event::Gap),
            1 => (len, 0..200usize).prop_map(|(len, at)| Event::Break { len, at }),
            1 => Just(Event::Fragment),
            1 => Just(Event::Options),
            1 => Just(Event::Junk),
            4 => prop::sample::select(vec![1usize, 100, 100, 100]).prop_map(|len| Event::Bare { len }),
        ];
        prop::collection::vec((0..24usize, event), 0..120)
    }

    /// The packets of a sequence of events, each with the flow it belongs to: one number for all
    /// between the same addresses, and one for the ports, if it shows any.
    fn packets(events: &[(usize, Event)]) -> Vec<(usize, Option<usize>, Vec<u8>)> {
        // Three in four events concern the first four flows, so that runs come about.
        let mut flows: Vec<Flow> = (0..24u16)
            .map(|n| {
                let mut flow = kinds()[usize::from(n) % 4].clone();
                flow.ports.0 += n / 4;
                flow.host = 1 + (n / 12) as u8;
                flow
            })
            .collect();
        let mut packets = Vec::new();
        for (index, event) in events {
            let index = if *index < 6 { *index } else { index % 4 };
            let flow = &mut flows[index];
            let pair = usize::from(flow.host) * 2 + usize::from(flow.v6);
            let mut known = Some(index);
            let fill = packets.len() as u8;
            let (packet, len) = match *event {
                Event::Data { len } => (flow.packet(&vec![fill; len]), len),
                Event::Flags { flags, len } => {
                    let mut flow = flow.clone();
                    flow.flags = flags;
                    (flow.packet(&vec![fill; len]), len)
                }
                Event::Bare { len } => {
                    let mut packet = flow.packet(&vec![fill; len]);
                    if flow.udp {
                        put16(&mut packet, flow.headers() - 2, 0);
                    }
                    (packet, len)
                }
                Event::Tos(tos) => {
                    flow.tos = tos;
                    continue;
                }
                Event::Gap => {
                    flow.sequence += 1000;
                    flow.id += 7;
                    continue;
                }
                Event::Break { len, at } => {
                    let mut packet = flow.packet(&vec![fill; len]);
                    // Not in what says which flow it is.
                    let from = flow.headers() - 4;
                    let at = from + at % (packet.len() - from);
                    packet[at] ^= 0x55;
                    if flow.udp && be16(&packet, flow.headers() - 2) == 0 {
                        // No checksum at all is not a wrong one.
                        packet[at] ^= 0xff;
                    }
                    (packet, len)
                }
                Event::Fragment if !flow.v6 => {
                    let mut packet = flow.packet(&[fill; 64]);
                    put16(&mut packet, 6, 0x2000);
                    known = None;
                    (packet, 64)
                }
                Event::Fragment | Event::Options => {
                    let mut flow = flow.clone();
                    flow.ip_options = 1;
                    known = None;
                    (flow.packet(&[fill; 100]), 100)
                }
                Event::Junk => {
                    let mut packet = flow.packet(&[fill; 30]);
                    packet[if flow.v6 { 6 } else { 9 }] = 50;
                    known = None;
                    (packet, 30)
                }
            };
            flow.sequence = flow.sequence.wrapping_add(len as u32);
            flow.id = flow.id.wrapping_add(1);
            packets.push((pair, known, packet));
        }
        packets
    }

    /// With a checksum, if it is UDP without one over IPv4 that may have been joined.
    fn summed(mut packet: Vec<u8>) -> Vec<u8> {
        let is_bare = packet[0] == 0x45 && packet[9] == UDP && packet[26..28] == [0, 0];
        if is_bare && be16(&packet, 6) & 0x3fff == 0 {
            let sum = pseudo(&packet[12..20], UDP)
                .word((packet.len() - V4_HEADER) as u16)
                .bytes(&packet[V4_HEADER..]);
            put16(&mut packet, 26, sum.udp_checksum());
        }
        packet
    }

    proptest! {
        #[test]
        fn every_flow_comes_out_byte_for_byte_and_in_order(events in events(), tcp: bool, udp: bool) {
            let input = packets(&events);
            let bytes: Vec<Vec<u8>> = input.iter().map(|(_, _, packet)| packet.clone()).collect();
            let writes = coalesce(&mut Coalescer::new(Merge { tcp, udp }), &bytes);
            for write in &writes {
                // What stays alone is as it was.
                prop_assert!(write.joined > 1 || bytes.contains(&write.packet));
            }
            let output: Vec<Vec<u8>> = cut(&writes).into_iter().map(summed).collect();
            prop_assert_eq!(output.len(), bytes.len());
            let input: Vec<_> = input.into_iter().map(|(p, f, bytes)| (p, f, summed(bytes))).collect();

            // Equal packets belong to the same flow, so a packet tells where it belongs.
            let belongs = |packet: &Vec<u8>| {
                input.iter().find(|(_, _, p)| p == packet).map(|(pair, flow, _)| (*pair, *flow))
            };
            for index in 0..24 {
                let own = |pair_of: usize, of: Option<usize>, pair: usize| match of {
                    Some(of) => of == index,
                    None => pair_of == pair,
                };
                let Some(pair) = input.iter().find(|(_, f, _)| *f == Some(index)).map(|(p, _, _)| *p) else {
                    continue;
                };
                let sent: Vec<_> = input.iter().filter(|(p, f, _)| own(*p, *f, pair)).map(|(_, _, b)| b).collect();
                let mut arrived = Vec::new();
                for packet in &output {
                    let Some((p, f)) = belongs(packet) else {
                        return Err(TestCaseError::fail("a packet was changed"));
                    };
                    if own(p, f, pair) {
                        arrived.push(packet);
                    }
                }
                prop_assert_eq!(arrived, sent);
            }
        }

        #[test]
        fn no_packet_makes_it_panic(packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..80), 0..6u8), 0..40)) {
            let packets: Vec<Vec<u8>> = packets.into_iter().map(|(mut packet, shape)| {
                let len = packet.len();
                if len >= 28 && shape < 2 {
                    packet[0] = 0x45;
                    put16(&mut packet, 2, len as u16);
                    put16(&mut packet, 6, 0);
                    packet[9] = if shape == 0 { TCP } else { UDP };
                }
                if len >= 48 && (2..4).contains(&shape) {
                    packet[0] = 0x60;
                    put16(&mut packet, 4, len as u16 - 40);
                    packet[6] = if shape == 2 { TCP } else { UDP };
                }
                packet
            }).collect();
            let writes = coalesce(&mut Coalescer::new(BOTH), &packets);
            let output: Vec<Vec<u8>> = writes.into_iter().map(|write| write.packet).collect();
            prop_assert_eq!(output, packets);
        }
    }
}
