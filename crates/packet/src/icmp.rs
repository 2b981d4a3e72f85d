//! The answer to a packet that nobody will take: destination unreachable.
//!
//! When not to answer is RFC 1122, section 3.2.2, and RFC 4443, section 2.4 (e); how often not
//! to is (f), for which there is a [`Limiter`].

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use crate::checksum::{Sum, pseudo};
use crate::ip::{self, Fragment, NotIp, Packet, V4_HEADER, V6_HEADER, Version, put16, put32};

/// Bytes of the longest answer: the smallest MTU of IPv6.
pub const MAX_REPLY: usize = 1280;
/// Bytes of the longest answer over IPv4 (RFC 1812, section 4.3.2.3).
const MAX_REPLY_V4: usize = 576;
/// Type, code, checksum, and four bytes without a meaning here.
const ICMP_HEADER: usize = 8;

/// Why a packet gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Silence {
    /// It is no whole IP packet.
    #[error(transparent)]
    NotIp(#[from] NotIp),
    /// Only the first fragment is answered.
    #[error("it is a later fragment")]
    Fragment,
    /// Errors are not answered with errors.
    #[error("it is an ICMP error itself")]
    Error,
    /// It went to many, who would all answer.
    #[error("its destination is not a single host")]
    Destination,
    /// There is no one to tell.
    #[error("its source is not a single host")]
    Source,
    /// What it carries cannot be told.
    #[error("its headers are cut off")]
    Transport,
}

/// Write to `reply` that the destination of `offending` is unreachable; returns the length.
///
/// As the kernel's driver does when no peer owns an address: host unreachable for IPv4, address
/// unreachable for IPv6. The answer comes from the unreachable address itself. An address of
/// this host would be truer to the RFCs, but the answer is written to a TUN, and a kernel that
/// receives its own address as a source takes the packet for a martian.
pub fn unreachable(offending: &[u8], reply: &mut [u8; MAX_REPLY]) -> Result<usize, Silence> {
    let packet = Packet::parse(offending)?;
    let transport = packet.transport().ok_or(Silence::Transport)?;
    if transport.fragment == Fragment::Later {
        return Err(Silence::Fragment);
    }
    if !is_single_host(packet.destination()) {
        return Err(Silence::Destination);
    }
    if !is_single_host(packet.source()) {
        return Err(Silence::Source);
    }
    let kind = packet.bytes().get(transport.offset).copied();
    match (transport.protocol, kind) {
        // All but the questions and answers that are known: an unknown type may be an error.
        (ip::ICMP, Some(0 | 8..=10 | 13..=18)) => {}
        (ip::ICMP, Some(_)) | (ip::ICMPV6, Some(0..=127 | 137)) => return Err(Silence::Error),
        (ip::ICMP | ip::ICMPV6, None) => return Err(Silence::Transport),
        _ => {}
    }
    Ok(match packet.version() {
        Version::V4 => unreachable_v4(&packet, reply),
        Version::V6 => unreachable_v6(&packet, reply),
    })
}

fn unreachable_v4(packet: &Packet<'_>, reply: &mut [u8; MAX_REPLY]) -> usize {
    const UNREACHABLE: u8 = 3;
    const HOST: u8 = 1;
    let icmp = V4_HEADER;
    let quote = icmp + ICMP_HEADER;
    let quoted = packet.bytes().len().min(MAX_REPLY_V4 - quote);
    let total = quote + quoted;

    let reply = &mut reply[..total];
    reply[..quote].fill(0);
    reply[0] = 0x45;
    // Internetwork control (RFC 1812, section 4.3.2.5).
    reply[1] = 0xc0;
    put16(reply, 2, total as u16);
    reply[6] = 0x40;
    reply[8] = 64;
    reply[9] = ip::ICMP;
    reply[12..16].copy_from_slice(&packet.bytes()[16..20]);
    reply[16..20].copy_from_slice(&packet.bytes()[12..16]);
    let sum = Sum::of(&reply[..icmp]).checksum();
    put16(reply, 10, sum);

    reply[icmp] = UNREACHABLE;
    reply[icmp + 1] = HOST;
    reply[quote..].copy_from_slice(&packet.bytes()[..quoted]);
    let sum = Sum::of(&reply[icmp..]).checksum();
    put16(reply, icmp + 2, sum);
    total
}

fn unreachable_v6(packet: &Packet<'_>, reply: &mut [u8; MAX_REPLY]) -> usize {
    const UNREACHABLE: u8 = 1;
    const ADDRESS: u8 = 3;
    let icmp = V6_HEADER;
    let quote = icmp + ICMP_HEADER;
    let quoted = packet.bytes().len().min(MAX_REPLY - quote);
    let total = quote + quoted;

    let reply = &mut reply[..total];
    reply[..quote].fill(0);
    put32(reply, 0, 6 << 28);
    put16(reply, 4, (total - icmp) as u16);
    reply[6] = ip::ICMPV6;
    reply[7] = 64;
    reply[8..24].copy_from_slice(&packet.bytes()[24..40]);
    reply[24..40].copy_from_slice(&packet.bytes()[8..24]);

    reply[icmp] = UNREACHABLE;
    reply[icmp + 1] = ADDRESS;
    reply[quote..].copy_from_slice(&packet.bytes()[..quoted]);
    let sum = pseudo(&reply[8..40], ip::ICMPV6)
        .word((total - icmp) as u16)
        .bytes(&reply[icmp..])
        .checksum();
    put16(reply, icmp + 2, sum);
    total
}

fn is_single_host(address: IpAddr) -> bool {
    match address {
        // Also none of 0/8 and of what was class E, in which lies the broadcast address.
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first < 240 && !v4.is_loopback() && !v4.is_multicast()
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}

/// How many answers may be given: a token bucket.
#[derive(Debug, Clone)]
pub struct Limiter {
    interval: Duration,
    burst: u32,
    tokens: u32,
    /// Up to when tokens were filled in.
    filled: Duration,
}

impl Limiter {
    /// One answer in each `interval`, `burst` of them at once after a pause.
    pub fn new(interval: Duration, burst: u32) -> Self {
        Self {
            interval,
            burst,
            tokens: burst,
            filled: Duration::ZERO,
        }
    }

    /// Whether there may be an answer at `now`, the time since any one moment.
    ///
    /// Time that goes backwards fills in nothing.
    pub fn allow(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled);
        let due = passed.as_nanos() / self.interval.as_nanos().max(1);
        if due >= u128::from(self.burst - self.tokens) {
            self.tokens = self.burst;
            self.filled = self.filled.max(now);
        } else {
            self.tokens += due as u32;
            self.filled += self.interval * due as u32;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::header_is_valid;
    use crate::ip::{ICMP, ICMPV6, UDP};
    use crate::testing::{Flow, assert_valid};
    use proptest::prelude::*;

    fn answer(offending: &[u8]) -> Result<Vec<u8>, Silence> {
        let mut reply = [0xee; MAX_REPLY];
        let len = unreachable(offending, &mut reply)?;
        assert!(reply[len..].iter().all(|byte| *byte == 0xee));
        Ok(reply[..len].to_vec())
    }

    fn change(flow: &Flow, change: impl FnOnce(&mut [u8])) -> Result<Vec<u8>, Silence> {
        let mut packet = flow.packet(&[7; 40]);
        change(&mut packet);
        answer(&packet)
    }

    #[test]
    fn an_ipv4_packet_is_answered_with_host_unreachable() {
        for len in [0, 500, 1400, 60_000] {
            let offending = Flow::udp4().packet(&vec![7; len]);
            let reply = answer(&offending).expect("it is answered");
            assert_eq!(reply.len(), (28 + offending.len()).min(576));
            let packet = Packet::parse(&reply).expect("it is IP");
            assert_eq!(packet.bytes().len(), reply.len());
            assert_eq!(packet.source(), IpAddr::from([10, 0, 0, 2]));
            assert_eq!(packet.destination(), IpAddr::from([10, 0, 0, 1]));
            assert!(header_is_valid(&reply[..20]));
            assert_eq!(reply[9], ICMP);
            assert_eq!(reply[20..22], [3, 1]);
            assert_eq!(reply[24..28], [0; 4]);
            assert_eq!(Sum::of(&reply[20..]).folded(), 0xffff);
            assert_eq!(reply[28..], offending[..reply.len() - 28]);
        }
    }

    #[test]
    fn an_ipv6_packet_is_answered_with_address_unreachable() {
        for len in [0, 500, 1400, 60_000] {
            let offending = Flow::tcp6().packet(&vec![7; len]);
            let reply = answer(&offending).expect("it is answered");
            assert_eq!(reply.len(), (48 + offending.len()).min(1280));
            assert_valid(&reply);
            assert_eq!(reply[6], ICMPV6);
            assert_eq!(reply[8..24], offending[24..40]);
            assert_eq!(reply[24..40], offending[8..24]);
            assert_eq!(reply[40..42], [1, 3]);
            assert_eq!(reply[48..], offending[..reply.len() - 48]);
        }
    }

    #[test]
    fn errors_are_not_answered_and_questions_are() {
        for kind in 0..=255u8 {
            let v4 = change(&Flow::udp4(), |packet| {
                packet[9] = ICMP;
                packet[20] = kind;
            });
            let known = [0, 8, 9, 10, 13, 14, 15, 16, 17, 18].contains(&kind);
            assert_eq!(v4.err(), (!known).then_some(Silence::Error), "{kind}");

            let v6 = change(&Flow::udp6(), |packet| {
                packet[6] = ICMPV6;
                packet[40] = kind;
            });
            let informational = kind >= 128 && kind != 137;
            assert_eq!(
                v6.err(),
                (!informational).then_some(Silence::Error),
                "{kind}"
            );
        }
        // Also where the error is behind an extension header.
        let mut flow = Flow::udp6();
        flow.ip_options = 1;
        let hidden = change(&flow, |packet| {
            packet[40] = ICMPV6;
            packet[48] = 1;
        });
        assert_eq!(hidden, Err(Silence::Error));
    }

    #[test]
    fn only_the_first_fragment_is_answered() {
        let fragment = |field| change(&Flow::udp4(), |packet| put16(packet, 6, field));
        assert!(fragment(0x2000).is_ok());
        assert_eq!(fragment(0x2001), Err(Silence::Fragment));
        assert_eq!(fragment(0x0001), Err(Silence::Fragment));
    }

    #[test]
    fn neither_many_nor_nobody_are_answered() {
        for other in [
            [224, 0, 0, 1],
            [255, 255, 255, 255],
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [240, 0, 0, 1],
        ] {
            let source = change(&Flow::udp4(), |p| p[12..16].copy_from_slice(&other));
            assert_eq!(source, Err(Silence::Source));
            let destination = change(&Flow::udp4(), |p| p[16..20].copy_from_slice(&other));
            assert_eq!(destination, Err(Silence::Destination));
        }
        for other in ["::", "::1", "ff02::1"] {
            let other: std::net::Ipv6Addr = other.parse().expect("an address");
            let source = change(&Flow::udp6(), |p| p[8..24].copy_from_slice(&other.octets()));
            assert_eq!(source, Err(Silence::Source));
            let destination = change(&Flow::udp6(), |p| {
                p[24..40].copy_from_slice(&other.octets());
            });
            assert_eq!(destination, Err(Silence::Destination));
        }
    }

    #[test]
    fn answers_are_limited() {
        let mut limiter = Limiter::new(Duration::from_millis(10), 3);
        let allowed = |limiter: &mut Limiter, at| {
            (0..100)
                .filter(|_| limiter.allow(Duration::from_millis(at)))
                .count()
        };
        assert_eq!(allowed(&mut limiter, 1000), 3);
        assert_eq!(allowed(&mut limiter, 1009), 0);
        assert_eq!(allowed(&mut limiter, 1010), 1);
        assert_eq!(allowed(&mut limiter, 1035), 2);
        assert_eq!(allowed(&mut limiter, 1040), 1);
        assert_eq!(allowed(&mut limiter, 500), 0);
        assert_eq!(allowed(&mut limiter, 100_000), 3);
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), v6: bool, next: u8) {
            let len = bytes.len();
            if len >= 40 {
                bytes[0] = if v6 { 0x60 } else { 0x45 };
                if v6 { put16(&mut bytes, 4, len as u16 - 40); bytes[6] = next % 61 }
                else { put16(&mut bytes, 2, len as u16); bytes[9] = if next & 1 == 0 { ICMP } else { UDP } }
            }
            if let Ok(reply) = answer(&bytes) {
                prop_assert!(Packet::parse(&reply).is_ok());
            }
        }
    }
}
