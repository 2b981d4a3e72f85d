//! Nodes that are there for their handshakes alone, thousands of them on one thread.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use warren_config::{PeerChange, PublicKey};
use warren_packet::{RecvBatch, Source};
use warren_tests_mesh::Host;
use warren_tests_simulation::node::{Batches, Done, flight};
use warren_tests_simulation::{self as simulation, Random};
use warren_udp::{Options, Pair, SendReport, Socket};
use warren_wireguard::time::Instant;

/// The node before the first one. What is routed there is for benchmarks (RFC 2544).
const BASE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Between two looks whether this is the end.
const LOOK: Duration = Duration::from_millis(100);

/// Nodes in the underlay that answer the handshakes of one peer and never begin one, until this is dropped.
#[derive(Debug)]
pub struct Played {
    keys: Vec<PublicKey>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Played {
    /// This many nodes, which know one peer.
    pub fn start(underlay: &Host, count: u16, peer: PublicKey) -> Self {
        underlay.run("ip route add local 198.18.0.0/15 dev lo");
        let mut random = Random::new(1);
        let now = now();
        let nodes: Vec<simulation::Node> = (0..count)
            .map(|number| {
                let mut node = simulation::Node::new(number, random.fork());
                node.address.set_ip(Self::address(number).into());
                node.set_peers([PeerChange::new(peer)], now);
                node
            })
            .collect();
        let keys = nodes.iter().map(simulation::Node::public).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self {
            keys,
            stop,
            thread: Some(underlay.thread(move || play(nodes, &stopped))),
        }
    }

    /// Where a node is.
    pub fn address(number: u16) -> Ipv4Addr {
        Ipv4Addr::from_bits(BASE.to_bits() + 1 + u32::from(number))
    }

    /// The public key of each.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn play(mut nodes: Vec<simulation::Node>, stop: &AtomicBool) {
    let pairs = Pair::bind(&Options {
        port: 51820,
        v6: false,
        receive_offload: false,
        ..Options::default()
    });
    let pair = pairs.expect("the port is free").remove(0);
    let socket = pair.v4.expect("it was asked for");
    let look = Timespec::try_from(LOOK).expect("it is short");
    let mut received = RecvBatch::new(4);
    let mut batches = Batches::new();
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        poll(&mut fds, Some(&look)).expect("a socket");
        received.clear();
        socket.recv(&mut received).expect("a socket");
        for datagram in &received.datagrams {
            let source = datagram.source.expect("the socket tells");
            let Some(node) = number_of(source).and_then(|number| nodes.get_mut(number)) else {
                continue;
            };
            let bytes = &received.arena[datagram.range.clone()];
            let to = SocketAddr::new(source.ip, socket.port());
            assert!(batches.push_received(&flight(datagram.remote, to, bytes), source));
            let now = now();
            send(&socket, node.inbound(&mut batches, now), now);
            send(&socket, node.tick(now), now);
        }
    }
}

fn number_of(source: Source) -> Option<usize> {
    let IpAddr::V4(address) = source.ip else {
        return None;
    };
    let number = address.to_bits().checked_sub(BASE.to_bits() + 1)?;
    usize::try_from(number).ok()
}

fn send(socket: &Socket, done: Done, now: Instant) {
    let now = Duration::from_nanos(now.as_nanos());
    for (mut transmit, bytes) in done.sent {
        transmit.range = 0..bytes.len();
        // What is lost is asked for again, as on any network.
        socket.send(now, &bytes, &mut [transmit], &mut SendReport::default());
    }
}

fn now() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = now.tv_sec.unsigned_abs() * 1_000_000_000;
    Instant::from_nanos(seconds + now.tv_nsec.unsigned_abs())
}
