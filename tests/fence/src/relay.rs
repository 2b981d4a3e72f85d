//! What an engine does with packets, but for the encryption: for tests of where the host sends them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;
use crate::node::{FWMARK, INTERFACE};
use crate::sys::open_tun;

/// Where relays send to and from.
pub const RELAY_PORT: u16 = 51820;

/// Carries packets between the TUN of a namespace and its peers, as long as it is there.
pub struct Relay {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts it, with each peer's prefixes and the IPv4 address where it is.
    pub fn start(at: &Namespace, peers: &[(&[&str], &str)]) -> Self {
        let peers: Vec<(IpNet, IpAddr)> = (peers.iter())
            .flat_map(|(prefixes, endpoint)| {
                let endpoint = endpoint.parse().expect("an address");
                let prefix = |prefix: &&str| (prefix.parse().expect("a prefix"), endpoint);
                prefixes.iter().map(prefix).collect::<Vec<_>>()
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&refused));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = at.thread(move || {
            let tun = open_tun(INTERFACE).expect("the TUN");
            let udp = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP));
            let udp = udp.expect("a UDP socket");
            udp.set_mark(FWMARK).expect("these tests are root");
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, RELAY_PORT));
            udp.bind(&any.into()).expect("the port is free");
            ready.send(()).expect("somebody waits");
            carry(&tun, &udp, &peers, &stopped, &counter);
        });
        is_ready.recv().expect("the relay runs");
        Self {
            stop,
            refused,
            thread: Some(thread),
        }
    }

    /// Packets that came with a source that is not their peer's.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(
    mut tun: &File,
    mut udp: &Socket,
    peers: &[(IpNet, IpAddr)],
    stopped: &AtomicBool,
    refused: &AtomicU64,
) {
    let peer_of = |address: IpAddr| {
        let covering = peers.iter().filter(|(prefix, _)| prefix.contains(&address));
        let best = covering.max_by_key(|(prefix, _)| prefix.prefix_len());
        best.map(|(_, endpoint)| *endpoint)
    };
    let patience = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut buffer = vec![0; 65536];
    while !stopped.load(Ordering::Relaxed) {
        let mut ready = [
            PollFd::new(tun, PollFlags::IN),
            PollFd::new(udp, PollFlags::IN),
        ];
        if poll(&mut ready, Some(&patience)).is_err() {
            return;
        }
        let [from_host, from_peer] = ready.map(|fd| fd.revents());
        if from_host.contains(PollFlags::IN)
            && let Ok(length) = tun.read(&mut buffer)
            && let Some([_, destination]) = addresses(&buffer[..length])
            && let Some(endpoint) = peer_of(destination)
        {
            let to = SocketAddr::new(endpoint, RELAY_PORT);
            // It is as lossy as any link.
            let _ = udp.send_to(&buffer[..length], &to.into());
        } else if from_host.intersects(PollFlags::ERR | PollFlags::HUP) {
            // The interface is gone.
            return;
        }
        if from_peer.contains(PollFlags::IN)
            && let Ok(length) = udp.read(&mut buffer)
            && let Some([source, _]) = addresses(&buffer[..length])
        {
            match peer_of(source) {
                Some(_) => drop(tun.write(&buffer[..length])),
                None => drop(refused.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }
}

/// Source and destination of an IP packet.
fn addresses(packet: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
    let v6 = |at| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
    match packet.first()? >> 4 {
        4 => Some([v4(12)?, v4(16)?]),
        6 => Some([v6(8)?, v6(24)?]),
        _ => None,
    }
}
