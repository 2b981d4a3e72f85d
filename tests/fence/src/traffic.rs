//! Traffic in the clear, of every sort that might slip through.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::Namespace;

/// Where [`Arrivals`] listen.
pub const LISTEN_PORT: u16 = 7777;
/// Between rounds; each is a packet of every sort to every target.
const PAUSE: Duration = Duration::from_micros(500);

/// Sends to a list of addresses, all the time.
pub struct Flood {
    stop: Sender<()>,
    sent: Arc<AtomicU64>,
    attempts: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Flood {
    /// Sends UDP (plain, with the tunnel's mark, tied to the underlay's interface if `tied`), ICMP
    /// and the beginnings of TCP connections from here to each target.
    pub fn start(from: &Namespace, targets: &[&str], mark: u32, tied: bool) -> Self {
        let targets: Vec<SocketAddr> = targets.iter().map(|ip| target(ip)).collect();
        Self::run(from, move |sent, attempts| {
            let mut sorts = Vec::new();
            for family in [Domain::IPV4, Domain::IPV6] {
                for (name, socket) in senders(family, mark, tied) {
                    sorts.push((family, name, socket));
                }
            }
            move || {
                for target in &targets {
                    let family = Domain::for_address(*target);
                    for (of, name, socket) in &sorts {
                        if *of != family {
                            continue;
                        }
                        attempts.fetch_add(1, Ordering::Relaxed);
                        let payload = match (*name, *target) {
                            ("icmp", SocketAddr::V4(_)) => &[8, 0, 0xf7, 0xff, 0, 0, 0, 0][..],
                            ("icmp", SocketAddr::V6(_)) => &[128, 0, 0, 0, 0, 0, 0, 0],
                            _ => b"plaintext of the mesh",
                        };
                        // A raw socket of IPv6 takes no port.
                        let port = if *name == "icmp" { 0 } else { target.port() };
                        let to = SockAddr::from(SocketAddr::new(target.ip(), port));
                        if socket.send_to(payload, &to).is_ok() {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    connect(family, *target);
                }
            }
        })
    }

    /// Sends UDP from an address that is made one of this namespace, whoever's it is. Each datagram
    /// says from where to where.
    pub fn start_as(from: &Namespace, source: &str, targets: &[&str]) -> Self {
        from.ip(&format!("addr replace {source} dev lo nodad"));
        let said = |ip: &&str| (target(ip), format!("{source} to {ip}"));
        let targets: Vec<(SocketAddr, String)> = targets.iter().map(said).collect();
        let source: IpAddr = source.parse().expect("an address");
        Self::run(from, move |sent, attempts| {
            let socket = UdpSocket::bind(SocketAddr::new(source, 0));
            let socket = socket.expect("the address is here");
            move || {
                for (target, payload) in &targets {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    if socket.send_to(payload.as_bytes(), target).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        })
    }

    fn run<R: FnMut()>(
        from: &Namespace,
        prepare: impl FnOnce(Arc<AtomicU64>, Arc<AtomicU64>) -> R + Send + 'static,
    ) -> Self {
        let (stop, stopped) = channel();
        let sent = Arc::new(AtomicU64::new(0));
        let attempts = Arc::new(AtomicU64::new(0));
        let counters = (Arc::clone(&sent), Arc::clone(&attempts));
        let thread = from.thread(move || {
            let mut round = prepare(counters.0, counters.1);
            while stopped.recv_timeout(PAUSE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                round();
            }
        });
        Self {
            stop,
            sent,
            attempts,
            thread,
        }
    }

    /// How many packets the kernel was asked to send until now.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Ends; how many packets the kernel was asked to send, and how many it took.
    pub fn stop(self) -> (u64, u64) {
        let _ = self.stop.send(());
        self.thread.join().expect("the flood does not panic");
        (
            self.attempts.load(Ordering::Relaxed),
            self.sent.load(Ordering::Relaxed),
        )
    }
}

fn target(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), LISTEN_PORT)
}

fn senders(family: Domain, mark: u32, tied: bool) -> Vec<(&'static str, Socket)> {
    let udp = || Socket::new(family, Type::DGRAM, Some(Protocol::UDP)).expect("a UDP socket");
    let marked = udp();
    marked.set_mark(mark).expect("tests of the fence are root");
    let icmp = if family == Domain::IPV4 {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    };
    let icmp = Socket::new(family, Type::RAW, Some(icmp)).expect("tests of the fence are root");
    let mut senders = vec![("plain", udp()), ("marked", marked), ("icmp", icmp)];
    if tied {
        let bound = udp();
        bound
            .bind_device(Some(b"eth0"))
            .expect("every namespace has one");
        senders.push(("bound", bound));
    }
    for (_, socket) in &senders {
        socket.set_nonblocking(true).expect("a socket option");
    }
    senders
}

/// Begins a TCP connection and leaves it.
fn connect(family: Domain, target: SocketAddr) {
    let socket = Socket::new(family, Type::STREAM, Some(Protocol::TCP)).expect("a TCP socket");
    socket.set_nonblocking(true).expect("a socket option");
    let _ = socket.connect(&SockAddr::from(target));
}

/// Counts what arrives at any address of a namespace, by what it says.
pub struct Arrivals {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, u64>>,
}

impl Arrivals {
    /// Begins to listen.
    pub fn start(at: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = channel();
        let thread = at.thread(move || {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP));
            let socket = socket.expect("a UDP socket");
            socket.set_only_v6(false).expect("a socket option");
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, LISTEN_PORT));
            socket.bind(&any.into()).expect("the port is free");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("a socket option");
            ready.send(()).expect("somebody waits");
            let mut arrived = BTreeMap::new();
            let mut socket = socket;
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(length) = socket.read(&mut buffer) {
                    let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    *arrived.entry(said).or_default() += 1;
                }
            }
            arrived
        });
        is_ready.recv().expect("the listener runs");
        Self { stop, thread }
    }

    /// Ends; what arrived.
    pub fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the listener does not panic")
    }
}
