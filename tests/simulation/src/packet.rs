//! The packets that hosts of the mesh exchange: UDP over either family, each with a number.
//!
//! Checksums are computed here, byte by byte, so that nothing is tested against itself.

use std::net::IpAddr;

use warren_packet::segment::Segments;
use warren_packet::vnet;

/// What every packet carries, and no datagram may show.
pub const MARKER: [u8; 16] = *b"inner plaintext!";
/// The least payload of a packet: marker and number.
pub const LEAST: usize = MARKER.len() + 8;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const PORT: u16 = 4096;

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The inner source.
    pub source: IpAddr,
    /// The inner destination, of the same family.
    pub destination: IpAddr,
    /// Tells flows between the same hosts apart.
    pub number: u16,
}

/// Packets `first..first + count` of a flow, each with `payload` bytes, as a TUN delivers them:
/// several as one large packet that is still to be cut.
pub fn build(flow: Flow, first: u64, count: usize, payload: usize) -> (vnet::Header, Vec<u8>) {
    assert!(payload >= LEAST && count >= 1);
    let mut body = Vec::with_capacity(count * payload);
    for number in (first..).take(count) {
        body.extend_from_slice(&MARKER);
        body.extend_from_slice(&number.to_be_bytes());
        body.extend((LEAST..payload).map(|at| filling(number, at)));
    }
    let udp_len = u16::try_from(UDP_HEADER + body.len()).expect("what one packet holds");
    let mut packet = ip_header(flow, udp_len, first);
    let transport = packet.len();
    packet.extend_from_slice(&PORT.to_be_bytes());
    packet.extend_from_slice(&(PORT + flow.number).to_be_bytes());
    packet.extend_from_slice(&udp_len.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(&body);
    let whole = count == 1;
    let sum = match (whole, checksum(flow, &packet[transport..])) {
        // As a host leaves it to who cuts the packet: the sum of the pseudo-header alone.
        (false, _) => fold(pseudo(flow, usize::from(udp_len))),
        (true, 0) => 0xffff,
        (true, sum) => sum,
    };
    packet[transport + 6..transport + 8].copy_from_slice(&sum.to_be_bytes());
    let header = if whole {
        vnet::Header::NONE
    } else {
        vnet::Header {
            flags: vnet::NEEDS_CSUM,
            gso_type: vnet::GSO_UDP_L4,
            hdr_len: (transport + UDP_HEADER) as u16,
            gso_size: payload as u16,
            csum_start: transport as u16,
            csum_offset: 6,
            ..vnet::Header::NONE
        }
    };
    (header, packet)
}

/// The packets that one write to a TUN stands for.
pub fn cut(header: vnet::Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let segments = Segments::new(header, packet).expect("what is delivered can be cut");
    (0..segments.count())
        .map(|index| {
            let mut bytes = vec![0; segments.len(index)];
            segments.copy_into(index, &mut bytes);
            bytes
        })
        .collect()
}

/// Reads a packet that [`build`] made, and its number. `None` if it is another kind of packet.
///
/// # Panics
///
/// If any byte of it is not as it was made.
pub fn read(packet: &[u8]) -> Option<(Flow, u64)> {
    let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, usize) =
        match packet[0] >> 4 {
            4 => {
                let at = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("4 bytes");
                assert_eq!(fold(sum(&packet[..20])), 0xffff, "header checksum");
                (at(12).into(), at(16).into(), packet[9], 20)
            }
            _ => {
                let at = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes");
                (at(8).into(), at(24).into(), packet[6], 40)
            }
        };
    if protocol != UDP {
        return None;
    }
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let flow = Flow {
        source,
        destination,
        number: word(transport + 2) - PORT,
    };
    assert_eq!(
        usize::from(word(transport + 4)),
        packet.len() - transport,
        "length"
    );
    assert_eq!(checksum(flow, &packet[transport..]), 0, "checksum");
    let body = &packet[transport + UDP_HEADER..];
    assert_eq!(body[..MARKER.len()], MARKER);
    let number = body[MARKER.len()..LEAST].try_into().expect("8 bytes");
    let number = u64::from_be_bytes(number);
    for (at, &byte) in body.iter().enumerate().skip(LEAST) {
        assert_eq!(byte, filling(number, at), "byte {at} of packet {number}");
    }
    Some((flow, number))
}

/// Whether an inner packet's marker can be seen in these bytes.
pub fn is_visible_in(bytes: &[u8]) -> bool {
    bytes.windows(MARKER.len()).any(|window| window == MARKER)
}

fn filling(number: u64, at: usize) -> u8 {
    (number.wrapping_mul(31) ^ at as u64) as u8
}

fn ip_header(flow: Flow, payload: u16, id: u64) -> Vec<u8> {
    match (flow.source, flow.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&(20 + payload).to_be_bytes());
            header.extend_from_slice(&(id as u16).to_be_bytes());
            header.extend_from_slice(&[0, 0, 64, UDP, 0, 0]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            let checksum = !fold(sum(&header));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&payload.to_be_bytes());
            header.extend_from_slice(&[UDP, 64]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            header
        }
        _ => unreachable!("a flow is of one family"),
    }
}

fn checksum(flow: Flow, udp: &[u8]) -> u16 {
    !fold(pseudo(flow, udp.len()) + sum(udp))
}

fn pseudo(flow: Flow, len: usize) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    address(flow.source) + address(flow.destination) + u64::from(UDP) + len as u64
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The same IPv4 packet with another TOS byte.
pub fn with_tos(mut packet: Vec<u8>, tos: u8) -> Vec<u8> {
    packet[1] = tos;
    packet[10..12].fill(0);
    let checksum = !fold(sum(&packet[..20]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}
