//! The offload header in front of each packet on a TUN queue: `struct virtio_net_hdr_v1_hash_tunnel`.
//!
//! As in `include/uapi/linux/virtio_net.h`: ten bytes that every kernel knows, and fourteen more, which
//! Linux takes for padding before 6.17 and of which the last four are used. They are in the host's byte
//! order, but in little endian for a packet in a UDP tunnel (`virtio_net_hdr_tnl_from_skb`). What a header
//! says of its packet is checked where it is used, by [`crate::segment`]; here are only the fields.

/// Bytes of an encoded header.
pub const LEN: usize = 24;

/// [`Header::flags`]: the transport checksum is to be finished by whoever receives the packet.
pub const NEEDS_CSUM: u8 = 1;
/// [`Header::flags`]: the checksum was verified; it need not be again.
pub const DATA_VALID: u8 = 2;
/// [`Header::flags`], of a packet in a UDP tunnel: its outer UDP header is to have a checksum, too.
pub const UDP_TUNNEL_CSUM: u8 = 8;

/// [`Header::gso_type`]: an ordinary packet.
pub const GSO_NONE: u8 = 0;
/// [`Header::gso_type`]: TCP over IPv4, to be cut.
pub const GSO_TCPV4: u8 = 1;
/// [`Header::gso_type`]: UDP over IPv4, to be fragmented by IP. Never asked for, so never met.
pub const GSO_UDP: u8 = 3;
/// [`Header::gso_type`]: TCP over IPv6, to be cut.
pub const GSO_TCPV6: u8 = 4;
/// [`Header::gso_type`]: UDP over either family, to be cut into datagrams.
pub const GSO_UDP_L4: u8 = 5;
/// [`Header::gso_type`], or-ed to the type of what is inside: it is in a UDP tunnel over IPv4.
pub const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
/// [`Header::gso_type`], or-ed to the type of what is inside: it is in a UDP tunnel over IPv6.
pub const GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
/// [`Header::gso_type`], or-ed to the type of what is inside: either of the two, never both.
pub const GSO_UDP_TUNNEL: u8 = GSO_UDP_TUNNEL_IPV4 | GSO_UDP_TUNNEL_IPV6;
/// [`Header::gso_type`], or-ed to a TCP type: CWR is set in the first segment.
pub const GSO_ECN: u8 = 0x80;

/// What a TUN says of a packet, or is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Header {
    /// [`NEEDS_CSUM`], [`DATA_VALID`], [`UDP_TUNNEL_CSUM`].
    pub flags: u8,
    /// One of the `GSO_` values, perhaps with those that are or-ed to it.
    pub gso_type: u8,
    /// Length of all headers of a packet to be cut. A hint; the kernel does not promise it.
    pub hdr_len: u16,
    /// Payload of each segment of a packet to be cut.
    pub gso_size: u16,
    /// Where the checksummed part begins, if [`NEEDS_CSUM`]. In a UDP tunnel it is the inner one, as
    /// counted from the beginning of the whole.
    pub csum_start: u16,
    /// Where in that part the checksum is, if [`NEEDS_CSUM`].
    pub csum_offset: u16,
    /// Where the outer UDP header is, in a UDP tunnel; 0 elsewhere.
    pub outer_transport: u16,
    /// Where the inner IP header is, in a UDP tunnel; 0 elsewhere.
    pub inner_network: u16,
}

impl Header {
    /// The header of a packet about which there is nothing to say.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        outer_transport: 0,
        inner_network: 0,
    };

    fn is_in_tunnel(&self) -> bool {
        self.gso_type & GSO_UDP_TUNNEL != 0
    }

    /// The header as the kernel reads it.
    pub fn encode(&self) -> [u8; LEN] {
        let number: fn(u16) -> [u8; 2] = if self.is_in_tunnel() {
            u16::to_le_bytes
        } else {
            u16::to_ne_bytes
        };
        let mut bytes = [0; LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&number(self.hdr_len));
        bytes[4..6].copy_from_slice(&number(self.gso_size));
        bytes[6..8].copy_from_slice(&number(self.csum_start));
        bytes[8..10].copy_from_slice(&number(self.csum_offset));
        // Between them are the number of buffers, the hash and its kind, which a TUN does not have.
        bytes[20..22].copy_from_slice(&number(self.outer_transport));
        bytes[22..24].copy_from_slice(&number(self.inner_network));
        bytes
    }

    /// The header as the kernel wrote it.
    pub fn decode(bytes: &[u8; LEN]) -> Self {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let header = Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            ..Self::NONE
        };
        if !header.is_in_tunnel() {
            // What is behind may be anything: some kernels leave it as it was in memory.
            return header;
        }
        Self {
            hdr_len: u16::from_le(header.hdr_len),
            gso_size: u16::from_le(header.gso_size),
            csum_start: u16::from_le(header.csum_start),
            csum_offset: u16::from_le(header.csum_offset),
            outer_transport: u16::from_le(field(20)),
            inner_network: u16::from_le(field(22)),
            ..header
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_encoding_with_every_field_in_its_place() {
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
            ..Header::NONE
        };
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(bytes[..2], [1, 0x84]);
        assert_eq!(bytes[2..4], 0x0102u16.to_ne_bytes());
        assert_eq!(bytes[8..10], 0x0708u16.to_ne_bytes());
        assert_eq!(bytes[10..], [0; 14]);
        bytes[10..].fill(0xaa);
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(Header::NONE.encode(), [0; LEN]);
    }

    #[test]
    fn a_header_of_a_tunnel_is_in_little_endian() {
        let header = Header {
            flags: NEEDS_CSUM | UDP_TUNNEL_CSUM,
            gso_type: GSO_TCPV4 | GSO_UDP_TUNNEL_IPV6,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
            outer_transport: 0x090a,
            inner_network: 0x0b0c,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(bytes[..10], [9, 0x41, 2, 1, 4, 3, 6, 5, 8, 7]);
        assert_eq!(bytes[10..20], [0; 10]);
        assert_eq!(bytes[20..], [0x0a, 0x09, 0x0c, 0x0b]);
    }
}
