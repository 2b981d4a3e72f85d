//! Writes a line for each packet of UDP and ICMP that passes an interface of this host, until its
//! input ends: the version of IP, the protocol, the type of service, and the first byte of the
//! payload of UDP or the type of ICMP.

use std::error::Error;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Every protocol of a link, in the kernel's `if_ether.h`.
const ETH_P_ALL: u16 = 3;
/// How long a packet may take from the wire to here.
const LATE: Duration = Duration::from_millis(100);

fn main() -> Result<(), Box<dyn Error>> {
    // The protocol of a packet socket is in network order.
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(LATE))?;
    let ended = Arc::new(AtomicBool::new(false));
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ready")?;
    thread::spawn({
        let ended = Arc::clone(&ended);
        move || {
            let _ = io::stdin().read(&mut [0]);
            ended.store(true, Ordering::Relaxed);
        }
    });
    let mut packet = vec![0; 1 << 16];
    loop {
        let is_last = ended.load(Ordering::Relaxed);
        match socket.read(&mut packet) {
            Ok(len) => {
                if let Some([version, protocol, tos, kind]) = look_at(&packet[..len]) {
                    writeln!(stdout, "{version} {protocol} {tos} {kind}")?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_last => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Nothing, if it is neither UDP nor ICMP.
fn look_at(packet: &[u8]) -> Option<[u8; 4]> {
    let version = packet.first()? >> 4;
    let (protocol, tos, payload) = match version {
        4 => (packet.get(9)?, *packet.get(1)?, packet.get(20..)?),
        6 => {
            let tos = (packet[0] << 4) | (packet.get(1)? >> 4);
            (packet.get(6)?, tos, packet.get(40..)?)
        }
        _ => return None,
    };
    let kind = match protocol {
        17 => payload.get(8)?,
        1 | 58 => payload.first()?,
        _ => return None,
    };
    Some([version, *protocol, tos, *kind])
}
