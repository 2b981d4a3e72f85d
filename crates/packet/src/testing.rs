//! Packets for tests, and the naive model of cutting them: each segment is built from nothing.

use proptest::prelude::*;

use crate::ip::{TCP, UDP, put16, put32};
use crate::vnet::{self, Header};

/// All that a packet's headers say.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) host: u8,
    pub(crate) ports: (u16, u16),
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) df: bool,
    pub(crate) id: u16,
    pub(crate) label: u32,
    pub(crate) sequence: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) flags: u8,
    pub(crate) tcp_options: Vec<u8>,
    /// IPv4 options, or IPv6 extension headers: each of 8 bytes, destination options.
    pub(crate) ip_options: usize,
}

impl Flow {
    pub(crate) fn tcp4() -> Self {
        Self {
            v6: false,
            udp: false,
            host: 1,
            ports: (40_000, 443),
            tos: 0,
            ttl: 64,
            df: true,
            id: 100,
            label: 0,
            sequence: 1_000_000,
            ack: 77,
            window: 502,
            flags: 0x10,
            tcp_options: Vec::new(),
            ip_options: 0,
        }
    }

    pub(crate) fn tcp6() -> Self {
        Self {
            v6: true,
            label: 0xabcde,
            ..Self::tcp4()
        }
    }

    pub(crate) fn udp4() -> Self {
        Self {
            udp: true,
            ..Self::tcp4()
        }
    }

    pub(crate) fn udp6() -> Self {
        Self {
            udp: true,
            ..Self::tcp6()
        }
    }

    /// One of each kind, with and without options at each layer.
    pub(crate) fn samples() -> Vec<Self> {
        let mut samples = Vec::new();
        for plain in [Self::tcp4(), Self::tcp6(), Self::udp4(), Self::udp6()] {
            for options in 0..3 {
                let mut flow = plain.clone();
                flow.ip_options = options;
                flow.tos = options as u8 * 41;
                if !flow.udp && options == 1 {
                    flow.tcp_options = vec![1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4];
                    flow.flags = 0xd9;
                }
                samples.push(flow);
            }
        }
        samples
    }

    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let ip = (
            any::<[bool; 3]>(),
            any::<u8>(),
            any::<u8>(),
            any::<u16>(),
            0..1u32 << 20,
            0..4usize,
        );
        let transport = (
            any::<(u16, u16)>(),
            any::<u32>(),
            any::<u32>(),
            any::<u16>(),
            any::<u8>(),
            0..11usize,
        );
        (ip, transport).prop_map(|(ip, transport)| {
            let ([v6, udp, df], tos, ttl, id, label, ip_options) = ip;
            let (ports, sequence, ack, window, flags, options) = transport;
            Self {
                v6,
                udp,
                host: 1,
                ports,
                tos,
                ttl,
                df,
                id,
                label,
                sequence,
                ack,
                window,
                flags,
                tcp_options: (0..options as u8 * 4).collect(),
                ip_options,
            }
        })
    }

    /// Bytes of all headers.
    pub(crate) fn headers(&self) -> usize {
        self.transport()
            + if self.udp {
                8
            } else {
                20 + self.tcp_options.len()
            }
    }

    fn transport(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + self.ip_options * 8
    }

    /// The packet with everything filled in, all sums made byte by byte.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        self.build(payload, true)
    }

    fn build(&self, payload: &[u8], finished: bool) -> Vec<u8> {
        let transport = self.transport();
        let mut bytes = vec![0; self.headers()];
        bytes.extend_from_slice(payload);
        let total = bytes.len();
        let protocol = if self.udp { UDP } else { TCP };
        if self.v6 {
            let word = 6 << 28 | u32::from(self.tos) << 20 | self.label;
            put32(&mut bytes, 0, word);
            put16(&mut bytes, 4, (total - 40) as u16);
            bytes[6] = if self.ip_options > 0 { 60 } else { protocol };
            bytes[7] = self.ttl;
            bytes[8] = 0xfd;
            bytes[23] = self.host;
            bytes[24] = 0xfd;
            bytes[39] = 2;
            for n in 0..self.ip_options {
                let at = 40 + n * 8;
                let next = if n + 1 < self.ip_options {
                    60
                } else {
                    protocol
                };
                bytes[at..at + 8].copy_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
            }
        } else {
            bytes[0] = 0x45 + self.ip_options as u8 * 2;
            bytes[1] = self.tos;
            put16(&mut bytes, 2, total as u16);
            put16(&mut bytes, 4, self.id);
            put16(&mut bytes, 6, if self.df { 0x4000 } else { 0 });
            bytes[8] = self.ttl;
            bytes[9] = protocol;
            bytes[12..16].copy_from_slice(&[10, 0, 0, self.host]);
            bytes[16..20].copy_from_slice(&[10, 0, 0, 2]);
            bytes[20..transport].fill(1);
            let sum = naive_sum(&bytes[..transport]);
            put16(&mut bytes, 10, !sum);
        }
        let len = (total - transport) as u16;
        put16(&mut bytes, transport, self.ports.0);
        put16(&mut bytes, transport + 2, self.ports.1);
        let field = if self.udp {
            put16(&mut bytes, transport + 4, len);
            transport + 6
        } else {
            put32(&mut bytes, transport + 4, self.sequence);
            put32(&mut bytes, transport + 8, self.ack);
            bytes[transport + 12] = ((20 + self.tcp_options.len()) * 4) as u8;
            bytes[transport + 13] = self.flags;
            put16(&mut bytes, transport + 14, self.window);
            let options = transport + 20;
            bytes[options..options + self.tcp_options.len()].copy_from_slice(&self.tcp_options);
            transport + 16
        };
        let mut summed = bytes[if self.v6 { 8..40 } else { 12..20 }].to_vec();
        summed.extend_from_slice(&[0, protocol]);
        summed.extend_from_slice(&len.to_be_bytes());
        if !finished {
            let sum = naive_sum(&summed);
            put16(&mut bytes, field, sum);
            return bytes;
        }
        summed.extend_from_slice(&bytes[transport..]);
        let sum = match !naive_sum(&summed) {
            0 if self.udp => 0xffff,
            sum => sum,
        };
        put16(&mut bytes, field, sum);
        bytes
    }
}

/// What a TUN delivers for `payload` sent in segments of `size`.
pub(crate) fn large(flow: &Flow, payload: &[u8], size: u16) -> (Header, Vec<u8>) {
    let header = Header {
        flags: vnet::NEEDS_CSUM,
        gso_type: match (flow.udp, flow.v6) {
            (true, _) => vnet::GSO_UDP_L4,
            (false, false) => vnet::GSO_TCPV4,
            (false, true) => vnet::GSO_TCPV6,
        },
        hdr_len: flow.headers() as u16,
        gso_size: size,
        csum_start: flow.transport() as u16,
        csum_offset: if flow.udp { 6 } else { 16 },
        ..Header::NONE
    };
    (header, flow.build(payload, false))
}

/// The segments of a large packet, each built as if it had been sent alone.
pub(crate) fn naive_segments(flow: &Flow, packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let payload = &packet[flow.headers()..];
    let chunks: Vec<&[u8]> = if payload.is_empty() {
        vec![payload]
    } else {
        payload.chunks(size).collect()
    };
    let mut flow = flow.clone();
    let flags = flow.flags;
    let mut segments = Vec::new();
    for (n, chunk) in chunks.iter().enumerate() {
        flow.flags = flags;
        if n > 0 {
            flow.flags &= !0x80;
        }
        if n + 1 < chunks.len() {
            flow.flags &= !0x09;
        }
        segments.push(flow.packet(chunk));
        flow.id = flow.id.wrapping_add(1);
        flow.sequence = flow.sequence.wrapping_add(chunk.len() as u32);
    }
    segments
}

/// Panics unless lengths and checksums of a TCP or UDP packet are right.
pub(crate) fn assert_valid(bytes: &[u8]) {
    let packet = crate::ip::Packet::parse(bytes).expect("it is IP");
    assert_eq!(packet.bytes().len(), bytes.len());
    let transport = packet.transport().expect("its headers end");
    if packet.version() == crate::ip::Version::V4 {
        assert_eq!(naive_sum(&bytes[..packet.header_len()]), 0xffff);
    }
    let mut summed = packet.addresses().to_vec();
    summed.extend_from_slice(&[0, transport.protocol]);
    summed.extend_from_slice(&((bytes.len() - transport.offset) as u16).to_be_bytes());
    summed.extend_from_slice(&bytes[transport.offset..]);
    assert_eq!(naive_sum(&summed), 0xffff);
}

fn naive_sum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}
