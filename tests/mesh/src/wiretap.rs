//! What somebody sees who listens on the underlay.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::Host;
use crate::traffic::TEXT;

const ETH_P_ALL: i32 = 0x0003;
const ETH_HEADER: usize = 14;
/// The port of the tunnels, by default.
const TUNNEL: u16 = 51820;

/// Records, until it is stopped, what passes on the underlay.
#[derive(Debug)]
pub struct Wiretap {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Frames of the tunnels.
    pub ciphertext: u64,
    /// Frames from or to a mesh prefix, that ask for one, or with the tests' text in the clear, by
    /// what they are.
    pub leaks: BTreeMap<String, u64>,
}

impl Wiretap {
    pub(crate) fn start(underlay: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = underlay.thread(move || {
            // The protocol of a packet socket is in network order.
            let protocol = Protocol::from(ETH_P_ALL.to_be() >> 16);
            let mut socket =
                Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("a packet socket");
            let size = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20);
            size.expect("these tests are root");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("a timeout");
            ready.send(()).expect("somebody waits");
            let mut seen = Seen::default();
            let mut frame = vec![0; 1 << 16];
            // What is in the buffer at the end was sent before; more than that it does not hold.
            let mut rest = 200_000;
            while rest > 0 {
                let is_stopped = stopped.load(Ordering::Relaxed);
                rest -= u32::from(is_stopped);
                match socket.read(&mut frame) {
                    Ok(length) => seen.look_at(&frame[..length]),
                    Err(_) if is_stopped => break,
                    Err(_) => {}
                }
            }
            seen
        });
        is_ready.recv().expect("the wiretap runs");
        Self { stop, thread }
    }

    /// Ends, after all that has been sent so far was seen.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the wiretap does not panic")
    }
}

impl Seen {
    /// That there was something to see, and nothing of the mesh in the clear.
    #[track_caller]
    pub fn assert_closed(&self) {
        assert!(self.ciphertext > 10, "no tunnel was seen: {self:?}");
        self.assert_no_leak();
    }

    /// That there was nothing of the mesh in the clear.
    #[track_caller]
    pub fn assert_no_leak(&self) {
        assert!(self.leaks.is_empty(), "leaks: {:#?}", self.leaks);
    }

    fn look_at(&mut self, frame: &[u8]) {
        let Some((header, packet)) = frame.split_at_checked(ETH_HEADER) else {
            return;
        };
        let (addresses, transport) = match (header[12], header[13]) {
            (0x08, 0x00) => ([v4(packet, 12), v4(packet, 16), None], packet.get(20..)),
            // ARP: who asks, and for whom.
            (0x08, 0x06) => ([v4(packet, 14), v4(packet, 24), None], None),
            (0x86, 0xdd) => {
                // Neighbour solicitation and advertisement: for whom.
                let asks = packet.get(6) == Some(&58) && matches!(packet.get(40), Some(135 | 136));
                let target = asks.then(|| v6(packet, 48)).flatten();
                ([v6(packet, 8), v6(packet, 24), target], packet.get(40..))
            }
            _ => return,
        };
        let addresses: Vec<IpAddr> = addresses.into_iter().flatten().collect();
        let mesh = ["10.77.0.0/16", "fd77::/32"].map(|net| net.parse::<IpNet>().expect("a prefix"));
        let of_mesh = (addresses.iter()).any(|ip| mesh.iter().any(|net| net.contains(ip)));
        let is_readable = frame.windows(TEXT.len()).any(|bytes| bytes == TEXT);
        if of_mesh || is_readable {
            let kind = u16::from_be_bytes([header[12], header[13]]);
            let leak = format!("type {kind:#06x} {addresses:?} readable: {is_readable}");
            *self.leaks.entry(leak).or_default() += 1;
        }
        let ports = transport.and_then(|bytes| bytes.first_chunk::<4>());
        if ports.is_some_and(|ports| ports[..2] == TUNNEL.to_be_bytes()) {
            self.ciphertext += 1;
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
