//! What an IP packet says of itself, checked against the bytes that there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::Ecn;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Bytes of an IPv4 header without options.
pub const V4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const V6_HEADER: usize = 40;

/// Why some bytes are not an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum NotIp {
    /// The version is neither 4 nor 6, or there is not one byte.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// It ends within its header, or an IPv4 header claims to be shorter than one can be.
    #[error("the IP header is cut off")]
    Header,
    /// It claims more bytes than there are, or less than its own header.
    #[error("the IP length is not that of the packet")]
    Length,
}

/// The family of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A packet whose header and length were checked.
///
/// It is exactly as long as it claims: bytes behind its own length are left out (the padding of
/// a WireGuard record), and a packet that claims more than there is was refused.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    version: Version,
    header_len: usize,
}

impl<'a> Packet<'a> {
    /// Check the header of the packet with which `bytes` begins.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NotIp> {
        let version = version(bytes)?;
        let (header_len, total) = match version {
            Version::V4 => {
                if bytes.len() < V4_HEADER {
                    return Err(NotIp::Header);
                }
                let header_len = usize::from(bytes[0] & 0x0f) * 4;
                if header_len < V4_HEADER {
                    return Err(NotIp::Header);
                }
                (header_len, usize::from(be16(bytes, 2)))
            }
            Version::V6 => {
                if bytes.len() < V6_HEADER {
                    return Err(NotIp::Header);
                }
                (V6_HEADER, V6_HEADER + usize::from(be16(bytes, 4)))
            }
        };
        if total < header_len || total > bytes.len() {
            return Err(NotIp::Length);
        }
        Ok(Self {
            bytes: &bytes[..total],
            version,
            header_len,
        })
    }

    /// The packet, without what lay behind it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// IPv4 or IPv6.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Bytes of the IPv4 header with its options, or of the fixed IPv6 header.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Where it comes from.
    pub fn source(&self) -> IpAddr {
        match self.version {
            Version::V4 => v4_at(self.bytes, 12),
            Version::V6 => v6_at(self.bytes, 8),
        }
    }

    /// Where it goes.
    pub fn destination(&self) -> IpAddr {
        match self.version {
            Version::V4 => v4_at(self.bytes, 16),
            Version::V6 => v6_at(self.bytes, 24),
        }
    }

    /// Source and destination as they stand in the header.
    pub fn addresses(&self) -> &'a [u8] {
        match self.version {
            Version::V4 => &self.bytes[12..20],
            Version::V6 => &self.bytes[8..40],
        }
    }

    /// The congestion mark.
    pub fn ecn(&self) -> Ecn {
        match self.version {
            Version::V4 => Ecn::from_tos(self.bytes[1]),
            Version::V6 => Ecn::from_tos(self.bytes[1] >> 4),
        }
    }

    /// Which protocol is inside and where it begins, past options and extension headers.
    ///
    /// `None` if the headers do not end within the packet.
    pub fn transport(&self) -> Option<Transport> {
        match self.version {
            Version::V4 => {
                let fragment = be16(self.bytes, 6);
                Some(Transport {
                    protocol: self.bytes[9],
                    offset: self.header_len,
                    fragment: match (fragment & 0x1fff, fragment & 0x2000) {
                        (0, 0) => Fragment::No,
                        (0, _) => Fragment::First,
                        _ => Fragment::Later,
                    },
                })
            }
            Version::V6 => self.v6_transport(),
        }
    }

    fn v6_transport(&self) -> Option<Transport> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION_OPTIONS: u8 = 60;
        const MOBILITY: u8 = 135;
        const HOST_IDENTITY: u8 = 139;
        const SHIM6: u8 = 140;

        let mut protocol = self.bytes[6];
        let mut offset = V6_HEADER;
        let mut fragment = Fragment::No;
        // Each extension header is at least 8 bytes long, so the walk ends.
        loop {
            let len = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
                    (usize::from(*self.bytes.get(offset + 1)?) + 1) * 8
                }
                AUTHENTICATION => (usize::from(*self.bytes.get(offset + 1)?) + 2) * 4,
                FRAGMENT => {
                    let field = self.bytes.get(offset + 2..offset + 4)?;
                    let field = be16(field, 0);
                    fragment = match (field & 0xfff8, field & 1) {
                        (0, 0) => Fragment::No,
                        (0, _) => Fragment::First,
                        _ => Fragment::Later,
                    };
                    8
                }
                _ => {
                    return Some(Transport {
                        protocol,
                        offset,
                        fragment,
                    });
                }
            };
            let next = *self.bytes.get(offset)?;
            offset += len;
            if offset > self.bytes.len() {
                return None;
            }
            protocol = next;
            if fragment == Fragment::Later {
                // What follows is the middle of something: there are no headers to walk.
                return Some(Transport {
                    protocol,
                    offset,
                    fragment,
                });
            }
        }
    }
}

/// What is inside an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// Its protocol number.
    pub protocol: u8,
    /// Where in the packet it begins. May be the packet's very end.
    pub offset: usize,
    /// Whether it is only a part.
    pub fragment: Fragment,
}

/// Which part of a datagram a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    No,
    /// The beginning, with the transport header.
    First,
    /// A later part, without the transport header.
    Later,
}

/// The family of the packet with which `bytes` begins.
pub fn version(bytes: &[u8]) -> Result<Version, NotIp> {
    match bytes.first().map(|byte| byte >> 4) {
        Some(4) => Ok(Version::V4),
        Some(6) => Ok(Version::V6),
        _ => Err(NotIp::Version),
    }
}

/// Where a packet goes. Only the header is looked at, not the length.
pub fn destination(bytes: &[u8]) -> Result<IpAddr, NotIp> {
    match version(bytes)? {
        Version::V4 if bytes.len() >= V4_HEADER => Ok(v4_at(bytes, 16)),
        Version::V6 if bytes.len() >= V6_HEADER => Ok(v6_at(bytes, 24)),
        _ => Err(NotIp::Header),
    }
}

/// Where a packet comes from. Only the header is looked at, not the length.
pub fn source(bytes: &[u8]) -> Result<IpAddr, NotIp> {
    match version(bytes)? {
        Version::V4 if bytes.len() >= V4_HEADER => Ok(v4_at(bytes, 12)),
        Version::V6 if bytes.len() >= V6_HEADER => Ok(v6_at(bytes, 8)),
        _ => Err(NotIp::Header),
    }
}

fn v4_at(bytes: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 4];
    octets.copy_from_slice(&bytes[at..at + 4]);
    Ipv4Addr::from(octets).into()
}

fn v6_at(bytes: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from(octets).into()
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(total: u16, have: usize) -> Vec<u8> {
        let mut bytes = vec![0; have];
        bytes[0] = 0x45;
        put16(&mut bytes, 2, total);
        bytes[9] = UDP;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes
    }

    fn v6(payload: &[u8], next: u8) -> Vec<u8> {
        let mut bytes = vec![0; V6_HEADER];
        bytes[0] = 0x60;
        put16(&mut bytes, 4, payload.len() as u16);
        bytes[6] = next;
        bytes[8] = 0xfd;
        bytes[23] = 1;
        bytes[24] = 0xfd;
        bytes[39] = 2;
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_packet_is_trimmed_to_its_own_length() {
        let padded = v4(30, 48);
        assert_eq!(Packet::parse(&padded).expect("it is IP").bytes().len(), 30);
        let mut padded = v6(&[0; 10], UDP);
        padded.extend_from_slice(&[0; 6]);
        assert_eq!(Packet::parse(&padded).expect("it is IP").bytes().len(), 50);
    }

    #[test]
    fn a_packet_that_claims_more_than_arrived_is_refused() {
        assert_eq!(Packet::parse(&v4(31, 30)).err(), Some(NotIp::Length));
        let mut cut = v6(&[0; 10], UDP);
        cut.pop();
        assert_eq!(Packet::parse(&cut).err(), Some(NotIp::Length));
    }

    #[test]
    fn a_packet_that_claims_less_than_its_header_is_refused() {
        assert_eq!(Packet::parse(&v4(19, 30)).err(), Some(NotIp::Length));
        let mut options = v4(24, 24);
        options[0] = 0x47;
        assert_eq!(Packet::parse(&options).err(), Some(NotIp::Length));
        options[0] = 0x44;
        assert_eq!(Packet::parse(&options).err(), Some(NotIp::Header));
    }

    #[test]
    fn what_is_not_ip_is_refused_by_name() {
        for first in (0..=255u8).filter(|byte| !matches!(byte >> 4, 4 | 6)) {
            assert_eq!(Packet::parse(&[first; 60]).err(), Some(NotIp::Version));
        }
        assert_eq!(Packet::parse(&[]).err(), Some(NotIp::Version));
        assert_eq!(Packet::parse(&[0x45; 19]).err(), Some(NotIp::Header));
        assert_eq!(Packet::parse(&[0x60; 39]).err(), Some(NotIp::Header));
        assert_eq!(destination(&[0x45; 19]), Err(NotIp::Header));
        assert_eq!(source(&[0x60; 39]), Err(NotIp::Header));
        assert_eq!(destination(&[]), Err(NotIp::Version));
    }

    #[test]
    fn addresses_and_mark_are_read_in_both_families() {
        let mut bytes = v4(20, 20);
        bytes[1] = 0b1011_1011;
        let packet = Packet::parse(&bytes).expect("it is IP");
        assert_eq!(packet.source(), IpAddr::from([10, 0, 0, 1]));
        assert_eq!(packet.destination(), IpAddr::from([10, 0, 0, 2]));
        assert_eq!(packet.ecn(), Ecn::Ce);
        assert_eq!(source(&bytes), Ok(packet.source()));
        assert_eq!(destination(&bytes), Ok(packet.destination()));

        let mut bytes = v6(&[], UDP);
        bytes[1] = 0x20;
        let packet = Packet::parse(&bytes).expect("it is IP");
        assert_eq!(packet.source().to_string(), "fd00::1");
        assert_eq!(packet.destination().to_string(), "fd00::2");
        assert_eq!(packet.ecn(), Ecn::Ect0);
        assert_eq!(source(&bytes), Ok(packet.source()));
        assert_eq!(destination(&bytes), Ok(packet.destination()));
    }

    #[test]
    fn the_transport_is_found_behind_options_and_extension_headers() {
        let mut bytes = v4(40, 40);
        bytes[0] = 0x47;
        let transport = Packet::parse(&bytes).ok().and_then(|p| p.transport());
        assert_eq!(
            transport,
            Some(Transport {
                protocol: UDP,
                offset: 28,
                fragment: Fragment::No
            })
        );

        // Hop-by-hop (8), destination options (16), authentication (12), then TCP.
        let mut chain = vec![60, 0, 0, 0, 0, 0, 0, 0];
        chain.extend_from_slice(&[51, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend_from_slice(&[TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend_from_slice(&[0; 20]);
        let bytes = v6(&chain, 0);
        let transport = Packet::parse(&bytes).ok().and_then(|p| p.transport());
        assert_eq!(
            transport,
            Some(Transport {
                protocol: TCP,
                offset: 76,
                fragment: Fragment::No
            })
        );
    }

    #[test]
    fn fragments_are_told_apart() {
        let mut bytes = v4(40, 40);
        for (field, expected) in [
            (0x4000, Fragment::No),
            (0x2000, Fragment::First),
            (0x2001, Fragment::Later),
            (0x0001, Fragment::Later),
        ] {
            put16(&mut bytes, 6, field);
            let transport = Packet::parse(&bytes).ok().and_then(|p| p.transport());
            assert_eq!(transport.map(|t| t.fragment), Some(expected));
        }
        for (field, expected) in [
            (0, Fragment::No),
            (1, Fragment::First),
            (9, Fragment::Later),
            (8, Fragment::Later),
        ] {
            // The later part holds what would be read as an endless extension header.
            let bytes = v6(&[0, 0, 0, field, 0, 0, 0, 0, 0, 255], 44);
            let transport = Packet::parse(&bytes).ok().and_then(|p| p.transport());
            if expected == Fragment::Later {
                assert_eq!(transport.map(|t| t.fragment), Some(expected));
            } else {
                assert_eq!(transport, None);
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | (*first & 0xf) };
            }
            if v6 && bytes.len() >= V6_HEADER {
                let payload = (bytes.len() - V6_HEADER) as u16;
                put16(&mut bytes, 4, payload);
                bytes[6] %= 64;
            }
            if let Ok(packet) = Packet::parse(&bytes)
                && let Some(transport) = packet.transport()
            {
                prop_assert!(transport.offset <= packet.bytes().len());
            }
        }
    }
}
