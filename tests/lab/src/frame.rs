//! An Ethernet frame as a wiretap sees it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETH_HEADER: usize = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_ICMPV6: u8 = 58;
/// Neighbour solicitation and advertisement.
const NEIGHBOUR: [u8; 2] = [135, 136];
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// An Ethernet frame.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    /// What is in it (EtherType).
    pub kind: u16,
    packet: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `None` for what is too short to be one.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, packet) = bytes.split_at_checked(ETH_HEADER)?;
        Some(Self {
            bytes,
            kind: u16::from_be_bytes([header[12], header[13]]),
            packet,
        })
    }

    /// All of it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Who sent it.
    pub fn source(&self) -> [u8; 6] {
        self.bytes[6..12].try_into().expect("six bytes")
    }

    /// The protocol inside IP.
    pub fn protocol(&self) -> Option<u8> {
        let at = match self.kind {
            ETH_P_IP => 9,
            ETH_P_IPV6 => 6,
            _ => return None,
        };
        self.packet.get(at).copied()
    }

    /// Every address that it is from, to or about: a question for a neighbour is about that.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = |at| v4(self.packet, at);
        let v6 = |at| v6(self.packet, at);
        let addresses = match self.kind {
            ETH_P_IP => [v4(12), v4(16), None],
            ETH_P_ARP => [v4(14), v4(24), None],
            ETH_P_IPV6 => {
                let kind = self.packet.get(IPV6_HEADER);
                let asks = self.protocol() == Some(IPPROTO_ICMPV6)
                    && kind.is_some_and(|kind| NEIGHBOUR.contains(kind));
                [v6(8), v6(24), asks.then(|| v6(48)).flatten()]
            }
            _ => [None; 3],
        };
        addresses.into_iter().flatten().collect()
    }

    /// The port that it comes from, if it has one. IPv4 options and extension headers are passed over.
    pub fn source_port(&self) -> Option<u16> {
        let header = match self.kind {
            ETH_P_IP => IPV4_HEADER,
            ETH_P_IPV6 => IPV6_HEADER,
            _ => return None,
        };
        let port = self.packet.get(header..)?.first_chunk()?;
        Some(u16::from_be_bytes(*port))
    }
}

fn v4(packet: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = *packet.get(at..)?.first_chunk()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(packet: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = *packet.get(at..)?.first_chunk()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut bytes = vec![1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2];
        bytes.extend(kind.to_be_bytes());
        bytes.extend(packet);
        bytes
    }

    fn shown(bytes: &[u8]) -> Vec<String> {
        let frame = Frame::parse(bytes).expect("a frame");
        let addresses = frame.addresses();
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_found_where_a_frame_has_them() {
        let mut packet = [0; 28];
        packet[9] = 17;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[20..22].copy_from_slice(&51820_u16.to_be_bytes());
        let bytes = frame(ETH_P_IP, &packet);
        let udp = Frame::parse(&bytes).expect("a frame");
        assert_eq!(udp.source(), [2; 6]);
        assert_eq!((udp.protocol(), udp.source_port()), (Some(17), Some(51820)));
        assert_eq!(shown(&bytes), ["10.0.0.1", "10.0.0.2"]);

        let mut asks = [0; 28];
        asks[14..18].copy_from_slice(&[10, 0, 0, 1]);
        asks[24..28].copy_from_slice(&[10, 0, 0, 3]);
        assert_eq!(shown(&frame(ETH_P_ARP, &asks)), ["10.0.0.1", "10.0.0.3"]);

        let mut solicits = [0; 64];
        solicits[6] = IPPROTO_ICMPV6;
        (solicits[23], solicits[39], solicits[63]) = (1, 2, 3);
        solicits[40] = 135;
        assert_eq!(shown(&frame(ETH_P_IPV6, &solicits)), ["::1", "::2", "::3"]);
        // An echo is about nobody else.
        solicits[40] = 128;
        assert_eq!(shown(&frame(ETH_P_IPV6, &solicits)), ["::1", "::2"]);
    }

    #[test]
    fn a_frame_that_was_cut_off_has_what_is_left_of_it() {
        assert!(Frame::parse(&[0; 13]).is_none());
        assert_eq!(shown(&frame(ETH_P_IP, &[10; 17])), ["10.10.10.10"]);
        assert_eq!(shown(&frame(ETH_P_IPV6, &[])), [""; 0]);
        assert_eq!(shown(&frame(0x88cc, &[10; 40])), [""; 0]);
    }
}
