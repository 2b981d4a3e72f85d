//! The offload header in front of each packet on a TUN queue: `struct virtio_net_hdr`.
//!
//! Ten bytes in the host's byte order, as in `include/uapi/linux/virtio_net.h`. What a header
//! says of its packet is checked where it is used, by [`crate::segment`]; here are only the fields.

/// Bytes of an encoded header.
pub const LEN: usize = 10;

/// [`Header::flags`]: the transport checksum is to be finished by whoever receives the packet.
pub const NEEDS_CSUM: u8 = 1;
/// [`Header::flags`]: the checksum was verified; it need not be again.
pub const DATA_VALID: u8 = 2;

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
/// [`Header::gso_type`], or-ed to a TCP type: CWR is set in the first segment.
pub const GSO_ECN: u8 = 0x80;

/// What a TUN says of a packet, or is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Header {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` values.
    pub gso_type: u8,
    /// Length of all headers of a packet to be cut. A hint; the kernel does not promise it.
    pub hdr_len: u16,
    /// Payload of each segment of a packet to be cut.
    pub gso_size: u16,
    /// Where the checksummed part begins, if [`NEEDS_CSUM`].
    pub csum_start: u16,
    /// Where in that part the checksum is, if [`NEEDS_CSUM`].
    pub csum_offset: u16,
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
    };

    /// The header as the kernel reads it.
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    /// The header as the kernel wrote it.
    pub fn decode(bytes: &[u8; LEN]) -> Self {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
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
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(bytes[..2], [1, 0x84]);
        assert_eq!(bytes[2..4], 0x0102u16.to_ne_bytes());
        assert_eq!(bytes[8..10], 0x0708u16.to_ne_bytes());
        assert_eq!(Header::NONE.encode(), [0; LEN]);
    }
}
