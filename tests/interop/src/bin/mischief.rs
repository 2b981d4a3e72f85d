//! Does to a node whatever somebody between it and its peer could think of, until it is killed.
//!
//!     mischief OWN-ADDRESS ADDRESS PORT
//!
//! It runs on the peer's host, OWN-ADDRESS, and listens to what that sends to ADDRESS and PORT. For
//! messages among it: sends them again, cut off, with a bit turned, with 60,000 bytes behind them,
//! under other types, and errors of ICMP about what the node sends, of every code.

use std::error::Error;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// `ETH_P_ALL` in the kernel's `if_ether.h`.
const ETH_P_ALL: u16 = 3;
/// Headers of IPv4 and UDP.
const HEADERS: usize = 28;
/// The longest message of a tunnel of the usual MTU; what is longer are several, not cut yet.
const LONGEST: usize = 1452;
/// Bytes that no message has.
const OVERSIZED: usize = 60_000;
/// Between two messages that are listened to.
const PAUSE: Duration = Duration::from_micros(200);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [own, target, port] = &arguments[..] else {
        return Err("expected two addresses and a port".into());
    };
    let own: Ipv4Addr = own.parse()?;
    let target = SocketAddrV4::new(target.parse()?, port.parse()?);
    // The protocol of a packet socket is in network order.
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let mut wire = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    let icmp = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    let udp = UdpSocket::bind((own, 0))?;
    let mut packet = vec![0; 1 << 16];
    for round in 0_usize.. {
        let len = wire.read(&mut packet)?;
        if let Some(message) = message(&packet[..len], target) {
            // What the node's queues do not take is part of it.
            for nonsense in nonsense(message, round) {
                let _ = udp.send_to(&nonsense, target);
            }
            let error = icmp_error(own, target, round);
            let _ = icmp.send_to(&error, &SocketAddrV4::new(*target.ip(), 0).into());
            pause();
        }
    }
    Ok(())
}

/// The first message of a packet of the peer, from the port that the tunnel has on both ends.
fn message(packet: &[u8], target: SocketAddrV4) -> Option<&[u8]> {
    let (headers, message) = packet.split_at_checked(HEADERS)?;
    let ports = [target.port().to_be_bytes(), target.port().to_be_bytes()];
    let is_tunnel = headers[0] == 0x45
        && headers[9] == 17
        && headers[16..20] == target.ip().octets()
        && headers[20..24] == ports.concat();
    is_tunnel.then(|| &message[..message.len().min(LONGEST)])
}

fn nonsense(message: &[u8], round: usize) -> [Vec<u8>; 5] {
    let [again, mut cut_off, mut turned, mut longer, mut other] =
        [(); 5].map(|()| message.to_vec());
    cut_off.truncate(round % message.len().max(1));
    if let Some(byte) = turned.get_mut(round % message.len().max(1)) {
        *byte ^= 1 << (round % 8);
    }
    longer.resize(OVERSIZED, round as u8);
    if let Some(kind) = other.first_mut() {
        *kind = round as u8;
    }
    [again, cut_off, turned, longer, other]
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792),
/// about a message from the node to its peer.
fn icmp_error(own: Ipv4Addr, target: SocketAddrV4, round: usize) -> Vec<u8> {
    let kind = [3, 3, 3, 4, 5, 11, 12][round % 7];
    let mut error = vec![0; 8 + HEADERS];
    error[0] = kind;
    error[1] = (round / 7 % 16) as u8;
    // The MTU of the next hop, where a fragment was needed.
    error[6..8].copy_from_slice(&[[0, 0], [0, 68], [2, 64]][round % 3]);
    let about = &mut error[8..];
    about[..4].copy_from_slice(&[0x45, 0, 5, 0xc8]);
    about[6] = 0x40;
    about[8..10].copy_from_slice(&[64, 17]);
    about[12..16].copy_from_slice(&target.ip().octets());
    about[16..20].copy_from_slice(&own.octets());
    about[20..22].copy_from_slice(&target.port().to_be_bytes());
    about[22..24].copy_from_slice(&target.port().to_be_bytes());
    let sum = checksum(&error);
    error[2..4].copy_from_slice(&sum.to_be_bytes());
    error
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[expect(
    clippy::disallowed_methods,
    reason = "mischief has a rate, and nothing to wait for"
)]
fn pause() {
    thread::sleep(PAUSE);
}
