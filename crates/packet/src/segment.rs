//! Cutting what a TUN delivers as one large packet into the packets that go on the wire.
//!
//! Sums over the headers are made once for each large packet; a segment adds its own few numbers
//! and the sum of its payload. The rules are those of the kernel's `tcp_gso_segment` and
//! `__udp_gso_segment`:
//!
//! - IPv4 total length, or IPv6 payload length, for each segment; the IPv4 id counts up
//! - the TCP sequence number advances; FIN and PSH are on the last segment only, CWR on the first
//! - the UDP length is that of each segment, a UDP checksum of 0 is written as 0xffff
//! - the checksum field arrives with the sum of the pseudo-header, with the length of the whole
//!
//! In a UDP tunnel (VXLAN, Geneve) all of this is so for what is inside, and each segment has the outer
//! headers in front of it, with lengths, id and, if there is one, checksum of its own, as
//! `__skb_udp_tunnel_segment` does it.

use thiserror::Error;

use crate::checksum::{Sum, pseudo};
use crate::ip::{self, Fragment, NotIp, Packet, Version, be16, be32, put16, put32};
use crate::vnet::{self, Header};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Where the checksum is in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// Why a packet does not fit its offload header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Malformed {
    /// What is to be cut is not IP.
    #[error("a packet to be cut is not IP: {0}")]
    NotIp(NotIp),
    /// The offload type is none that was asked for.
    #[error("unknown offload type {0}")]
    GsoType(u8),
    /// The offload type is not of the packet's family or protocol.
    #[error("the offload type is not that of the packet")]
    Protocol,
    /// A packet to be cut names no size of the pieces.
    #[error("a packet to be cut names no segment size")]
    GsoSize,
    /// The transport header does not end within the packet.
    #[error("the transport header is cut off")]
    Transport,
    /// The part to be summed, or its checksum, is not where it could be.
    #[error("the checksum lies outside of the packet or of its header")]
    Checksum,
    /// What is to be cut in a UDP tunnel is no packet behind its outer headers, to the end.
    #[error("the inner packet is not where it could be")]
    Tunnel,
    /// The packet is longer than any can be.
    #[error("the packet is too long")]
    TooLong,
}

/// The packets that one read from a TUN stands for.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    packet: &'a [u8],
    count: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// As it is.
    Whole,
    /// As it is, but for the checksum of what begins at `start`.
    Unfinished { start: usize, field: usize },
    /// To be cut.
    Cut(Cut),
    /// To be cut within a UDP tunnel.
    Tunnel(Tunnel),
}

#[derive(Debug, Clone, Copy)]
struct Tunnel {
    outer: Ip,
    /// Where the outer UDP header begins.
    transport: usize,
    /// Of pseudo-header and ports, if there is to be a checksum.
    sum: Option<Sum>,
    /// Where the inner packet begins.
    inner: usize,
    /// Of the inner packet.
    cut: Cut,
}

/// What differs between the IP headers of segments.
#[derive(Debug, Clone, Copy)]
struct Ip {
    version: Version,
    /// Of the IPv4 header without total length, id and checksum.
    sum: Sum,
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    ip: Ip,
    protocol: Protocol,
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// Payload of each segment but the last.
    size: usize,
    /// Of pseudo-header and transport header without what differs between segments: lengths,
    /// checksum, sequence number, flags.
    transport_sum: Sum,
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Tcp,
    /// With a checksum, or with none at all (RFC 768).
    Udp {
        checksum: bool,
    },
}

impl<'a> Segments<'a> {
    /// Check a packet against its header.
    ///
    /// A packet that is not to be cut may be anything, also not IP.
    pub fn new(header: Header, packet: &'a [u8]) -> Result<Self, Malformed> {
        if packet.len() > crate::batch::MAX_PACKET {
            return Err(Malformed::TooLong);
        }
        if header.gso_type == vnet::GSO_NONE {
            let kind = if header.flags & vnet::NEEDS_CSUM == 0 {
                Kind::Whole
            } else {
                let start = usize::from(header.csum_start);
                let field = start + usize::from(header.csum_offset);
                if field + 2 > packet.len() {
                    return Err(Malformed::Checksum);
                }
                Kind::Unfinished { start, field }
            };
            return Ok(Self {
                packet,
                count: 1,
                kind,
            });
        }
        let packet = Packet::parse(packet).map_err(Malformed::NotIp)?;
        let (kind, count) = if header.gso_type & vnet::GSO_UDP_TUNNEL == 0 {
            let cut = Cut::new(header, &packet)?;
            (Kind::Cut(cut), cut.count(packet.bytes()))
        } else {
            let tunnel = Tunnel::new(header, &packet)?;
            let count = tunnel.cut.count(&packet.bytes()[tunnel.inner..]);
            (Kind::Tunnel(tunnel), count)
        };
        Ok(Self {
            packet: packet.bytes(),
            count,
            kind,
        })
    }

    /// How many packets there are; at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of a packet. All but the last are equally long, the last is not longer.
    pub fn len(&self, index: usize) -> usize {
        match &self.kind {
            Kind::Whole | Kind::Unfinished { .. } => self.packet.len(),
            Kind::Cut(cut) => cut.len(self.packet, index),
            Kind::Tunnel(tunnel) => {
                let inner = &self.packet[tunnel.inner..];
                tunnel.inner + tunnel.cut.len(inner, index)
            }
        }
    }

    /// Write a packet to the beginning of `out`, and tell its length.
    ///
    /// # Panics
    ///
    /// If there is no packet `index`, or `out` is shorter than [`Self::len`] of it.
    pub fn copy_into(&self, index: usize, out: &mut [u8]) -> usize {
        assert!(index < self.count);
        let len = self.len(index);
        let out = &mut out[..len];
        match &self.kind {
            Kind::Whole => out.copy_from_slice(self.packet),
            Kind::Unfinished { start, field } => {
                out.copy_from_slice(self.packet);
                let sum = Sum::of(&out[*start..]);
                let sum = if field - start == UDP_CHECKSUM {
                    sum.udp_checksum()
                } else {
                    sum.checksum()
                };
                put16(out, *field, sum);
            }
            Kind::Cut(cut) => cut.copy_into(self.packet, index, index + 1 == self.count, out),
            Kind::Tunnel(tunnel) => {
                tunnel.copy_into(self.packet, index, index + 1 == self.count, out);
            }
        }
        len
    }
}

impl Ip {
    fn new(packet: &Packet<'_>) -> Self {
        let bytes = packet.bytes();
        let version = packet.version();
        let sum = match version {
            Version::V4 => Sum::of(&bytes[..packet.header_len()])
                .without(be16(bytes, 2))
                .without(be16(bytes, 4))
                .without(be16(bytes, 10)),
            Version::V6 => Sum::ZERO,
        };
        Self { version, sum }
    }

    /// Make `header`, which is that of the whole, the one of segment `index`, of `total` bytes.
    fn write(&self, header: &mut [u8], index: usize, total: usize) {
        match self.version {
            Version::V4 => {
                let id = be16(header, 4).wrapping_add(index as u16);
                put16(header, 2, total as u16);
                put16(header, 4, id);
                let sum = self.sum.word(total as u16).word(id);
                put16(header, 10, sum.checksum());
            }
            Version::V6 => put16(header, 4, (total - ip::V6_HEADER) as u16),
        }
    }
}

impl Tunnel {
    fn new(header: Header, packet: &Packet<'_>) -> Result<Self, Malformed> {
        let bytes = packet.bytes();
        let version = match header.gso_type & vnet::GSO_UDP_TUNNEL {
            vnet::GSO_UDP_TUNNEL_IPV4 => Version::V4,
            vnet::GSO_UDP_TUNNEL_IPV6 => Version::V6,
            _ => return Err(Malformed::GsoType(header.gso_type)),
        };
        let transport = packet.transport().ok_or(Malformed::Transport)?;
        if packet.version() != version
            || transport.protocol != ip::UDP
            || transport.fragment != Fragment::No
        {
            return Err(Malformed::Protocol);
        }
        let transport = transport.offset;
        let inner = usize::from(header.inner_network);
        if transport != usize::from(header.outer_transport)
            || inner < transport + UDP_HEADER
            || inner > bytes.len()
        {
            return Err(Malformed::Tunnel);
        }
        let inner_packet = Packet::parse(&bytes[inner..]).map_err(Malformed::NotIp)?;
        if inner_packet.bytes().len() != bytes.len() - inner {
            return Err(Malformed::Tunnel);
        }
        let csum_start = header.csum_start.checked_sub(header.inner_network);
        let inner_header = Header {
            gso_type: header.gso_type & !vnet::GSO_UDP_TUNNEL,
            csum_start: csum_start.ok_or(Malformed::Checksum)?,
            ..header
        };
        let cut = Cut::new(inner_header, &inner_packet).map_err(|reason| match reason {
            Malformed::GsoType(_) => Malformed::GsoType(header.gso_type),
            reason => reason,
        })?;
        let has_checksum = header.flags & vnet::UDP_TUNNEL_CSUM != 0;
        Ok(Self {
            outer: Ip::new(packet),
            transport,
            // As for what is inside: the sum that is there, less the length of the whole.
            sum: has_checksum.then(|| {
                Sum::ZERO
                    .word(be16(bytes, transport + UDP_CHECKSUM))
                    .without((bytes.len() - transport) as u16)
                    .bytes(&bytes[transport..transport + 4])
            }),
            inner,
            cut,
        })
    }

    fn copy_into(&self, packet: &[u8], index: usize, last: bool, out: &mut [u8]) {
        let (outer, inner) = out.split_at_mut(self.inner);
        outer.copy_from_slice(&packet[..self.inner]);
        self.cut
            .copy_into(&packet[self.inner..], index, last, inner);

        self.outer.write(out, index, out.len());
        let (_, datagram) = out.split_at_mut(self.transport);
        let len = datagram.len() as u16;
        put16(datagram, 4, len);
        if let Some(sum) = self.sum {
            // In one piece, since what is in front of the inner packet may be of odd length.
            let sum = sum.word(len).word(len).bytes(&datagram[UDP_HEADER..]);
            put16(datagram, UDP_CHECKSUM, sum.udp_checksum());
        }
    }
}

impl Cut {
    fn new(header: Header, packet: &Packet<'_>) -> Result<Self, Malformed> {
        let bytes = packet.bytes();
        let transport = packet.transport().ok_or(Malformed::Transport)?;
        let (version, number) = match header.gso_type & !vnet::GSO_ECN {
            vnet::GSO_TCPV4 => (Version::V4, ip::TCP),
            vnet::GSO_TCPV6 => (Version::V6, ip::TCP),
            vnet::GSO_UDP_L4 => (packet.version(), ip::UDP),
            _ => return Err(Malformed::GsoType(header.gso_type)),
        };
        if packet.version() != version
            || transport.protocol != number
            || transport.fragment != Fragment::No
        {
            return Err(Malformed::Protocol);
        }
        if header.gso_size == 0 {
            return Err(Malformed::GsoSize);
        }

        let start = transport.offset;
        let (minimum, field) = match number {
            ip::TCP => (TCP_HEADER, TCP_CHECKSUM),
            _ => (UDP_HEADER, UDP_CHECKSUM),
        };
        if bytes.len() < start + minimum {
            return Err(Malformed::Transport);
        }
        let header_len = match number {
            ip::TCP => usize::from(bytes[start + 12] >> 4) * 4,
            _ => UDP_HEADER,
        };
        if header_len < minimum || bytes.len() < start + header_len {
            return Err(Malformed::Transport);
        }
        let payload = start + header_len;

        let checksum = be16(bytes, start + field);
        let unfinished = header.flags & vnet::NEEDS_CSUM != 0;
        let pseudo = if unfinished {
            if usize::from(header.csum_start) != start || usize::from(header.csum_offset) != field {
                return Err(Malformed::Checksum);
            }
            // As the kernel does: the sum that is there, less the length of the whole. It knows
            // the final destination of a routing header, which the IPv6 header does not.
            Sum::ZERO
                .word(checksum)
                .without((bytes.len() - start) as u16)
        } else {
            pseudo(packet.addresses(), number)
        };

        let (protocol, transport_sum) = match number {
            ip::TCP => {
                let words = Sum::of(&bytes[start..payload])
                    .without(checksum)
                    .without(be16(bytes, start + 4))
                    .without(be16(bytes, start + 6))
                    .without(be16(bytes, start + 12));
                (Protocol::Tcp, pseudo.plus(words))
            }
            _ => {
                let ports = Sum::of(&bytes[start..start + 4]);
                let checksum = unfinished || checksum != 0;
                (Protocol::Udp { checksum }, pseudo.plus(ports))
            }
        };
        Ok(Self {
            ip: Ip::new(packet),
            protocol,
            transport: start,
            payload,
            size: usize::from(header.gso_size),
            transport_sum,
        })
    }

    /// How many segments `packet` has.
    fn count(&self, packet: &[u8]) -> usize {
        (packet.len() - self.payload).div_ceil(self.size).max(1)
    }

    /// Length of a segment.
    fn len(&self, packet: &[u8], index: usize) -> usize {
        self.payload + self.range(packet, index).len()
    }

    /// Where in the packet the payload of a segment is.
    fn range(&self, packet: &[u8], index: usize) -> std::ops::Range<usize> {
        let start = (self.payload + index * self.size).min(packet.len());
        start..(start + self.size).min(packet.len())
    }

    fn copy_into(&self, packet: &[u8], index: usize, last: bool, out: &mut [u8]) {
        let (headers, payload) = out.split_at_mut(self.payload);
        headers.copy_from_slice(&packet[..self.payload]);
        payload.copy_from_slice(&packet[self.range(packet, index)]);

        let total = headers.len() + payload.len();
        self.ip.write(headers, index, total);
        let transport_len = (total - self.transport) as u16;
        let header = &mut headers[self.transport..];
        let sum = self.transport_sum.word(transport_len);
        match self.protocol {
            Protocol::Tcp => {
                let sequence = be32(header, 4).wrapping_add((index * self.size) as u32);
                put32(header, 4, sequence);
                if !last {
                    header[13] &= !(FIN | PSH);
                }
                if index > 0 {
                    header[13] &= !CWR;
                }
                let sum = sum
                    .bytes(payload)
                    .bytes(&header[4..8])
                    .bytes(&header[12..14]);
                put16(header, TCP_CHECKSUM, sum.checksum());
            }
            Protocol::Udp { checksum } => {
                put16(header, 4, transport_len);
                let sum = if checksum {
                    sum.word(transport_len).bytes(payload).udp_checksum()
                } else {
                    0
                };
                put16(header, UDP_CHECKSUM, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Flow, assert_valid};
    use proptest::prelude::*;

    fn all(header: Header, packet: &[u8]) -> Vec<Vec<u8>> {
        let segments = Segments::new(header, packet).expect("the packet is well-formed");
        (0..segments.count())
            .map(|index| {
                let mut out = vec![0xee; segments.len(index) + 3];
                let len = segments.copy_into(index, &mut out);
                assert_eq!(len, segments.len(index));
                assert_eq!(out[len..], [0xee; 3], "it wrote beyond its length");
                out.truncate(len);
                out
            })
            .collect()
    }

    fn large(flow: &Flow, payload: usize, size: u16) -> (Header, Vec<u8>) {
        let payload: Vec<u8> = (0..payload).map(|i| (i * 31 % 251) as u8).collect();
        testing::large(flow, &payload, size)
    }

    #[test]
    fn segments_agree_with_the_naive_model() {
        for flow in Flow::samples() {
            for (payload, size) in [
                (1, 1),
                (5000, 1000),
                (4999, 1000),
                (60_000, 1368),
                (700, 1000),
                (0, 500),
            ] {
                let (header, packet) = large(&flow, payload, size);
                assert_eq!(
                    all(header, &packet),
                    testing::naive_segments(&flow, &packet, usize::from(size)),
                    "{flow:?} {payload} {size}"
                );
            }
        }
    }

    /// What a TUN delivers for a large packet in a UDP tunnel, and its segments, each built as if sent
    /// alone. `between` is what is in front of the inner packet.
    fn tunnelled(
        outer: &Flow,
        between: &[u8],
        checksum: bool,
        (inner_flow, payload, size): (&Flow, usize, u16),
    ) -> (Header, Vec<u8>, Vec<Vec<u8>>) {
        let (inner_header, inner) = large(inner_flow, payload, size);
        let wrap = |index: usize, inner: &[u8]| {
            let mut outer = outer.clone();
            outer.id = outer.id.wrapping_add(index as u16);
            let mut packet = outer.packet(&[between, inner].concat());
            if !checksum {
                put16(&mut packet, outer.headers() - 2, 0);
            }
            packet
        };
        let at = outer.headers() + between.len();
        let tunnel = if outer.v6 {
            vnet::GSO_UDP_TUNNEL_IPV6
        } else {
            vnet::GSO_UDP_TUNNEL_IPV4
        };
        let header = Header {
            flags: vnet::NEEDS_CSUM | if checksum { vnet::UDP_TUNNEL_CSUM } else { 0 },
            gso_type: inner_header.gso_type | tunnel,
            hdr_len: inner_header.hdr_len + at as u16,
            csum_start: inner_header.csum_start + at as u16,
            outer_transport: outer.headers() as u16 - 8,
            inner_network: at as u16,
            ..inner_header
        };
        let segments = testing::naive_segments(inner_flow, &inner, usize::from(size));
        let segments = segments.iter().enumerate();
        let segments = segments.map(|(index, inner)| wrap(index, inner)).collect();
        let mut whole = testing::large(outer, &[between, &inner[..]].concat(), size).1;
        if !checksum {
            put16(&mut whole, outer.headers() - 2, 0);
        }
        (header, whole, segments)
    }

    #[test]
    fn segments_in_a_udp_tunnel_agree_with_the_naive_model() {
        for outer in Flow::samples().iter().filter(|flow| flow.udp) {
            for inner in Flow::samples() {
                for checksum in [false, true] {
                    // VXLAN and Ethernet, and what no tunnel has, of odd length.
                    for between in [22, 0, 7] {
                        let between: Vec<u8> = (1..=between).collect();
                        let load = (&inner, 5000, 1318);
                        let (header, packet, segments) = tunnelled(outer, &between, checksum, load);
                        assert_eq!(segments.len(), 4);
                        assert_eq!(all(header, &packet), segments, "{outer:?} {inner:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn segments_in_geneve_keep_its_options() {
        let mut outer = Flow::udp6();
        outer.ports = (52_000, 6081);
        // RFC 8926, 3.4 and 3.5: two options of 12 and 4 bytes, the first critical, before an Ethernet
        // header of what is inside.
        let geneve = [
            &[0x04, 0x40, 0x65, 0x58, 0x00, 0x12, 0x34, 0x00][..],
            &[0x01, 0x02, 0x83, 0x02, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x01, 0x03, 0x04, 0x00],
        ];
        let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
        let between = [&geneve.concat()[..], &ethernet].concat();
        assert_eq!(between.len(), 8 + 16 + 14);
        for inner in [Flow::tcp4(), Flow::udp4()] {
            for checksum in [false, true] {
                let load = (&inner, 4000, 1318);
                let (header, packet, expected) = tunnelled(&outer, &between, checksum, load);
                let segments = all(header, &packet);
                assert_eq!(segments, expected, "{inner:?}");
                assert_eq!(segments.len(), 4);
                for segment in segments {
                    assert_eq!(segment[outer.headers()..][..between.len()], between);
                }
            }
        }
    }

    #[test]
    fn a_header_that_does_not_fit_its_tunnel_is_malformed_by_name() {
        let load = (&Flow::tcp6(), 3000, 1000);
        let (good, packet, _) = tunnelled(&Flow::udp4(), &[1; 22], true, load);
        let refusal = |change: fn(&mut Header), packet: &[u8]| {
            let mut header = good;
            change(&mut header);
            Segments::new(header, packet).err()
        };
        assert_eq!(refusal(|_| (), &packet), None);
        type Case = (fn(&mut Header), Malformed);
        let cases: [Case; 8] = [
            (|h| h.outer_transport = 21, Malformed::Tunnel),
            (|h| h.inner_network = 27, Malformed::Tunnel),
            (|h| h.inner_network = 0xffff, Malformed::Tunnel),
            (|h| h.inner_network = 51, Malformed::NotIp(NotIp::Version)),
            (|h| h.csum_start = 49, Malformed::Checksum),
            (|h| h.csum_start = 91, Malformed::Checksum),
            (|h| h.gso_type = 0x44, Malformed::Protocol),
            (|h| h.gso_type = 0x20, Malformed::GsoType(0x20)),
        ];
        for (number, (change, reason)) in cases.into_iter().enumerate() {
            assert_eq!(refusal(change, &packet), Some(reason), "case {number}");
        }
        // Something behind the inner packet.
        let mut shorter = packet.clone();
        put16(&mut shorter, 50 + 4, 3000 + 20 - 1);
        assert_eq!(refusal(|_| (), &shorter), Some(Malformed::Tunnel));
        let (_, tcp, _) = tunnelled(&Flow::tcp4(), &[1; 22], false, load);
        assert_eq!(refusal(|_| (), &tcp), Some(Malformed::Protocol));
    }

    #[test]
    fn segments_of_frames_larger_than_the_mtu_are_valid_packets() {
        for flow in Flow::samples() {
            let (header, packet) = large(&flow, 61_000, 1360);
            let segments = all(header, &packet);
            assert_eq!(segments.len(), 45);
            for segment in &segments {
                assert_valid(segment);
            }
        }
    }

    #[test]
    fn fin_and_psh_are_on_the_last_segment_only_and_cwr_on_the_first() {
        let mut flow = Flow::tcp4();
        flow.flags = 0x10 | FIN | PSH | CWR;
        let (mut header, packet) = large(&flow, 3000, 1000);
        header.gso_type |= vnet::GSO_ECN;
        let flags: Vec<u8> = all(header, &packet).iter().map(|s| s[20 + 13]).collect();
        assert_eq!(flags, [0x10 | CWR, 0x10, 0x10 | FIN | PSH]);
    }

    #[test]
    fn a_lone_segment_keeps_all_its_flags() {
        let mut flow = Flow::tcp6();
        flow.flags = 0x10 | FIN | PSH | CWR;
        let (header, packet) = large(&flow, 900, 1000);
        let segments = all(header, &packet);
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0][40 + 13], flow.flags);
        assert_valid(&segments[0]);
    }

    #[test]
    fn ids_and_sequence_numbers_wrap_around() {
        let mut flow = Flow::tcp4();
        flow.id = 0xffff;
        flow.sequence = 0xffff_fff0;
        let (header, packet) = large(&flow, 300, 100);
        let segments = all(header, &packet);
        let ids: Vec<u16> = segments.iter().map(|s| be16(s, 4)).collect();
        let sequences: Vec<u32> = segments.iter().map(|s| be32(s, 24)).collect();
        assert_eq!(ids, [0xffff, 0, 1]);
        assert_eq!(sequences, [0xffff_fff0, 84, 184]);
        segments.iter().for_each(|s| assert_valid(s));
    }

    #[test]
    fn a_udp_checksum_of_zero_stays_absent_and_a_computed_one_is_ffff() {
        let flow = Flow::udp4();
        let (mut header, mut packet) = large(&flow, 300, 100);
        header.flags = 0;
        put16(&mut packet, 26, 0);
        for segment in all(header, &packet) {
            assert_eq!(be16(&segment, 26), 0);
        }

        // Two payload bytes chosen so that the sum comes out as 0xffff.
        let (header, mut packet) = testing::large(&flow, &[0; 2], 100);
        let plain = all(header, &packet);
        let checksum = be16(&plain[0], 26);
        put16(&mut packet, 28, checksum);
        assert_eq!(be16(&all(header, &packet)[0], 26), 0xffff);
    }

    #[test]
    fn a_checksum_left_to_us_is_finished() {
        for flow in Flow::samples() {
            let (mut header, packet) = large(&flow, 777, 1000);
            header.gso_type = vnet::GSO_NONE;
            header.gso_size = 0;
            header.hdr_len = 0;
            let finished = all(header, &packet);
            assert_eq!(finished.len(), 1);
            assert_valid(&finished[0]);
        }
    }

    #[test]
    fn a_packet_without_wishes_is_copied_as_it_is() {
        let junk = [0xab; 77];
        assert_eq!(all(Header::NONE, &junk), [junk.to_vec()]);
        assert_eq!(all(Header::NONE, &[]), [Vec::<u8>::new()]);
    }

    #[test]
    fn a_header_that_does_not_fit_its_packet_is_malformed_by_name() {
        let (good, packet) = large(&Flow::tcp4(), 3000, 1000);
        let refusal = |header, packet: &[u8]| Segments::new(header, packet).err();
        let with = |change: fn(&mut Header)| {
            let mut header = good;
            change(&mut header);
            header
        };
        assert_eq!(
            refusal(with(|h| h.gso_size = 0), &packet),
            Some(Malformed::GsoSize)
        );
        for unknown in [2, vnet::GSO_UDP, 6, 0x61, 0x7f] {
            let mut header = good;
            header.gso_type = unknown;
            assert_eq!(refusal(header, &packet), Some(Malformed::GsoType(unknown)));
        }
        for other in [vnet::GSO_TCPV6, vnet::GSO_UDP_L4] {
            let mut header = good;
            header.gso_type = other;
            assert_eq!(refusal(header, &packet), Some(Malformed::Protocol));
        }
        assert_eq!(
            refusal(with(|h| h.csum_start = 60_000), &packet),
            Some(Malformed::Checksum)
        );
        assert_eq!(
            refusal(with(|h| h.csum_start = 21), &packet),
            Some(Malformed::Checksum)
        );
        assert_eq!(
            refusal(with(|h| h.csum_offset = 15), &packet),
            Some(Malformed::Checksum)
        );
        // The length of the headers is only a hint.
        assert_eq!(refusal(with(|h| h.hdr_len = 60_000), &packet), None);
        assert_eq!(refusal(with(|h| h.hdr_len = 0), &packet), None);

        assert_eq!(
            refusal(good, &packet[..30]),
            Some(Malformed::NotIp(NotIp::Length))
        );
        assert_eq!(refusal(good, &[]), Some(Malformed::NotIp(NotIp::Version)));
        let mut cut = packet[..39].to_vec();
        put16(&mut cut, 2, 39);
        assert_eq!(refusal(good, &cut), Some(Malformed::Transport));
        let mut offset = packet.clone();
        offset[32] = 0x40;
        assert_eq!(refusal(good, &offset), Some(Malformed::Transport));
        let mut fragment = packet.clone();
        put16(&mut fragment, 6, 0x2000);
        assert_eq!(refusal(good, &fragment), Some(Malformed::Protocol));
        assert_eq!(refusal(good, &vec![0x45; 65536]), Some(Malformed::TooLong));

        let unfinished = |csum_start, csum_offset| Header {
            flags: vnet::NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Header::NONE
        };
        for (start, offset) in [(0xffff, 0xffff), (40, 0), (39, 0), (0, 39), (41, 0)] {
            assert_eq!(
                refusal(unfinished(start, offset), &packet[..40]),
                Some(Malformed::Checksum)
            );
        }
        assert_eq!(refusal(unfinished(38, 0), &packet[..40]), None);
    }

    proptest! {
        #[test]
        fn no_header_and_no_packet_make_it_panic(
            flags: u8, gso_type in prop::sample::select(vec![0u8, 1, 3, 4, 5, 0x81, 0x84, 77, 0x21, 0x41, 0x24, 0x65]),
            hdr_len: u16, gso_size in 0..200u16, csum_start in 0..120u16, csum_offset in 0..40u16,
            outer_transport in prop::sample::select(vec![20u16, 40, 28, 0, 0xffff]), inner_network in 0..120u16,
            mut packet in prop::collection::vec(any::<u8>(), 0..600),
            shape in 0..4u8,
        ) {
            // Mostly packets that get past the first checks.
            let len = packet.len();
            if len >= 40 {
                packet[0] = if shape & 1 == 0 { 0x45 } else { 0x60 };
                if shape & 1 == 0 { put16(&mut packet, 2, len as u16); put16(&mut packet, 6, 0) }
                else { put16(&mut packet, 4, len as u16 - 40) }
                let protocol = if shape & 2 == 0 { ip::TCP } else { ip::UDP };
                packet[if shape & 1 == 0 { 9 } else { 6 }] = protocol;
            }
            let header = Header {
                flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, outer_transport, inner_network,
            };
            if let Ok(segments) = Segments::new(header, &packet) {
                let mut out = vec![0; 70_000];
                let mut total = 0;
                for index in 0..segments.count() {
                    total += segments.copy_into(index, &mut out);
                }
                prop_assert!(segments.count() >= 1 && total >= segments.len(0));
            }
        }

        #[test]
        fn no_header_and_no_packet_in_a_tunnel_make_it_panic(
            outer in Flow::any(), inner in Flow::any(), checksum: bool, between in 0..40usize,
            payload in 0..3000usize, size in 1..1500u16,
            changes in prop::collection::vec((0..160usize, any::<u8>()), 0..4),
            fields in prop::collection::vec((0..6usize, 0..200u16), 0..2),
        ) {
            let outer = Flow { udp: true, ..outer };
            let load = (&inner, payload, size);
            let (mut header, mut packet, segments) =
                tunnelled(&outer, &vec![7; between], checksum, load);
            if changes.is_empty() && fields.is_empty() {
                prop_assert_eq!(all(header, &packet), segments);
            }
            let len = packet.len();
            for (at, change) in changes {
                packet[at % len] ^= change;
            }
            for (field, value) in fields {
                match field {
                    0 => header.gso_size = value,
                    1 => header.csum_start = value,
                    2 => header.csum_offset = value,
                    3 => header.outer_transport = value,
                    4 => header.inner_network = value,
                    _ => header.gso_type = value as u8,
                }
            }
            if let Ok(segments) = Segments::new(header, &packet) {
                let mut out = vec![0; 70_000];
                for index in 0..segments.count() {
                    let written = segments.copy_into(index, &mut out);
                    prop_assert!(written <= segments.len(0));
                }
            }
        }

        #[test]
        fn segments_agree_with_the_naive_model_on_random_packets(
            flow in Flow::any(), payload in prop::collection::vec(any::<u8>(), 0..5000), size in 1..1500u16,
        ) {
            let (header, packet) = testing::large(&flow, &payload, size);
            prop_assert_eq!(all(header, &packet), testing::naive_segments(&flow, &packet, usize::from(size)));
        }
    }
}
