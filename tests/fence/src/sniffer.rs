//! What a wiretap on the underlay sees of the mesh.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::{MAC_A, MAC_B, Topology};

const ETH_P_ALL: i32 = 0x0003;

/// Records, until it is stopped, what the nodes send to the underlay.
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Sniffed>,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Sniffed {
    /// Frames of the nodes, of any content: shows that somebody looked.
    pub frames: u64,
    /// Frames of the nodes from or to a mesh prefix in the clear, or that ask for one, by what they are.
    pub leaks: BTreeMap<String, u64>,
}

impl Sniffer {
    /// Begins to record.
    pub fn start(topology: &Topology) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = topology.underlay.thread(move || {
            // The protocol of a packet socket is in network order.
            let protocol = Protocol::from(ETH_P_ALL.to_be() >> 16);
            let mut socket =
                Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("a packet socket");
            let size = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20);
            size.expect("tests of the fence are root");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("a timeout");
            ready.send(()).expect("somebody waits");
            let mut sniffed = Sniffed::default();
            let mut frame = [0; 2048];
            // What is in the buffer at the end was sent before; more than that it does not hold.
            let mut rest = 100_000;
            while rest > 0 {
                let is_stopped = stopped.load(Ordering::Relaxed);
                rest -= u32::from(is_stopped);
                match socket.read(&mut frame) {
                    Ok(length) => sniffed.look_at(&frame[..length]),
                    Err(_) if is_stopped => break,
                    Err(_) => {}
                }
            }
            sniffed
        });
        is_ready.recv().expect("the sniffer runs");
        Self { stop, thread }
    }

    /// Ends, after all that has been sent so far was seen.
    pub fn stop(self) -> Sniffed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sniffer does not panic")
    }
}

impl Sniffed {
    fn look_at(&mut self, frame: &[u8]) {
        let Some((header, packet)) = frame.split_at_checked(14) else {
            return;
        };
        if header[6..12] != MAC_A && header[6..12] != MAC_B {
            return;
        }
        self.frames += 1;
        let addresses: Vec<IpAddr> = match (header[12], header[13]) {
            (0x08, 0x00) => [12, 16]
                .map(|at| v4(packet, at))
                .into_iter()
                .flatten()
                .collect(),
            // ARP: who asks, and for whom.
            (0x08, 0x06) => [14, 24]
                .map(|at| v4(packet, at))
                .into_iter()
                .flatten()
                .collect(),
            (0x86, 0xdd) => {
                let mut found = vec![v6(packet, 8), v6(packet, 24)];
                // Neighbour solicitation and advertisement: for whom.
                if packet.get(6) == Some(&58) && matches!(packet.get(40), Some(135 | 136)) {
                    found.push(v6(packet, 48));
                }
                found.into_iter().flatten().collect()
            }
            _ => return,
        };
        let mesh =
            ["10.1.0.0/16", "fd00:1::/32"].map(|net| net.parse::<IpNet>().expect("a prefix"));
        if addresses
            .iter()
            .any(|address| mesh.iter().any(|prefix| prefix.contains(address)))
        {
            let from = if header[6..12] == MAC_A { "a" } else { "b" };
            let kind = u16::from_be_bytes([header[12], header[13]]);
            let protocol = if kind == 0x0800 {
                packet.get(9)
            } else {
                packet.get(6)
            };
            let what = format!("{from}: type {kind:#06x} protocol {protocol:?} {addresses:?}");
            *self.leaks.entry(what).or_default() += 1;
        }
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
