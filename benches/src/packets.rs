//! Packets as a TUN delivers them: large ones to be cut, small ones whose checksum is to be finished.

use std::net::Ipv4Addr;

use warren_packet::batch::ReadBatch;
use warren_packet::checksum::{Sum, pseudo};
use warren_packet::vnet;

/// What is sent through a tunnel of the usual MTU.
pub const MTU: usize = 1420;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A flow from the first node to the second, in one family and by one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Udp4, Self::Udp6];

    /// How it is called in the name of a bench.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
        }
    }

    /// Bytes of all headers of a packet.
    pub fn headers(self) -> usize {
        self.transport() + if self.is_tcp() { 20 } else { 8 }
    }

    /// One packet of `count` segments of `size` bytes of payload, or a lone one, unfinished.
    ///
    /// `number` counts packets of the flow.
    pub fn packet(self, number: u16, count: usize, size: usize) -> (vnet::Header, Vec<u8>) {
        let transport = self.transport();
        let len = self.headers() + count * size;
        let mut packet: Vec<u8> = (0..len).map(|n| (n * 7 % 253) as u8).collect();
        let protocol = if self.is_tcp() { TCP } else { UDP };
        if self.is_v4() {
            packet[..20].fill(0);
            packet[0] = 0x45;
            put16(&mut packet, 2, len);
            put16(&mut packet, 4, usize::from(number));
            packet[6] = 0x40;
            packet[8] = 64;
            packet[9] = protocol;
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = Sum::of(&packet[..20]).checksum();
            put16(&mut packet, 10, usize::from(sum));
        } else {
            packet[..8].fill(0);
            packet[0] = 0x60;
            put16(&mut packet, 4, len - 40);
            packet[6] = protocol;
            packet[7] = 64;
            packet[8..40].fill(0);
            for (at, last) in [(8, 1), (24, 2)] {
                packet[at..at + 2].copy_from_slice(&[0xfd, 0]);
                packet[at + 15] = last;
            }
        }
        let header = &mut packet[transport..];
        header[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
        let csum_offset = if self.is_tcp() {
            header[4..8].copy_from_slice(&(u32::from(number) * size as u32).to_be_bytes());
            header[8..12].fill(1);
            header[12..20].copy_from_slice(&[5 << 4, 0x10, 1, 246, 0, 0, 0, 0]);
            16
        } else {
            put16(header, 4, len - transport);
            6
        };
        let addresses = if self.is_v4() { 12..20 } else { 8..40 };
        let sum = pseudo(&packet[addresses], protocol).word((len - transport) as u16);
        put16(
            &mut packet,
            transport + csum_offset,
            usize::from(sum.folded()),
        );
        let header = vnet::Header {
            flags: vnet::NEEDS_CSUM,
            gso_type: match (count, self) {
                (1, _) => vnet::GSO_NONE,
                (_, Self::Tcp4) => vnet::GSO_TCPV4,
                (_, Self::Tcp6) => vnet::GSO_TCPV6,
                (_, Self::Udp4 | Self::Udp6) => vnet::GSO_UDP_L4,
            },
            hdr_len: self.headers() as u16,
            gso_size: if count == 1 { 0 } else { size as u16 },
            csum_start: transport as u16,
            csum_offset: csum_offset as u16,
            ..vnet::Header::NONE
        };
        (header, packet)
    }

    fn is_v4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }

    fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Where its transport header begins.
    pub fn transport(self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }
}

/// Segments of [`bulk`]: as many as one send takes.
const SEGMENTS: usize = 45;
/// Bytes of payload of [`bulk`].
pub const BULK_BYTES: usize = SEGMENTS * (MTU - 40);

/// One large packet of TCP, of segments that fill the MTU.
pub fn bulk() -> ReadBatch {
    let mut batch = ReadBatch::new(0, 64);
    let (header, packet) = Kind::Tcp4.packet(0, SEGMENTS, BULK_BYTES / SEGMENTS);
    read(&mut batch, &header, &packet);
    batch
}

/// `count` packets of UDP of `len` bytes each.
pub fn datagrams(count: u16, len: usize) -> ReadBatch {
    let mut batch = batch_for(usize::from(count), usize::from(count) * len);
    for number in 0..count {
        let size = len - Kind::Udp4.headers();
        let (header, packet) = Kind::Udp4.packet(number, 1, size);
        read(&mut batch, &header, &packet);
    }
    batch
}

/// A packet of UDP over IPv4 of `len` bytes between these, with both of its checksums.
pub fn datagram(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> Vec<u8> {
    let kind = Kind::Udp4;
    let (_, mut packet) = kind.packet(0, 1, len - kind.headers());
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    put16(&mut packet, 10, 0);
    let sum = Sum::of(&packet[..20]).checksum();
    put16(&mut packet, 10, usize::from(sum));
    let transport = kind.transport();
    put16(&mut packet, transport + 6, 0);
    let sum = pseudo(&packet[12..20], UDP).word((len - transport) as u16);
    let sum = sum.bytes(&packet[transport..]).udp_checksum();
    put16(&mut packet, transport + 6, usize::from(sum));
    packet
}

/// A batch with room for so many packets, which are so long together.
pub fn batch_for(count: usize, bytes: usize) -> ReadBatch {
    // A queue is read only while there is room for the largest packet.
    ReadBatch::new(bytes + count * 128 + (1 << 16), count)
}

/// Puts a packet into a batch, as a queue does.
pub fn read(batch: &mut ReadBatch, header: &vnet::Header, packet: &[u8]) {
    let spare = batch.spare().expect("room for the packet");
    spare[..vnet::LEN].copy_from_slice(&header.encode());
    spare[vnet::LEN..][..packet.len()].copy_from_slice(packet);
    batch.commit(packet.len());
}

fn put16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}
