//! Numbered traffic that must arrive, and traffic that would like to leak.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use warren_tests_lab::patiently;

use crate::host::Host;

/// What each packet of these tests says.
pub const TEXT: &[u8] = b"plaintext of the mesh";
/// Where it is listened for.
pub const PORT: u16 = 7777;
/// Between two packets of a flow, and between two rounds of a flood.
const PAUSE: Duration = Duration::from_millis(2);

/// Numbered datagrams from a host to an address, until it is stopped.
#[derive(Debug)]
pub struct Flow {
    sender: Repeat,
    sent: Arc<AtomicU64>,
    arrivals: Arrivals,
}

/// What listens on a host for datagrams, and remembers their numbers.
#[derive(Debug)]
pub struct Arrivals {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<BTreeSet<u64>>,
}

/// Packets of every sort to a list of addresses, until it is stopped.
#[derive(Debug)]
pub struct Flood {
    sender: Repeat,
    attempts: Arc<AtomicU64>,
}

/// A thread that does something again and again.
#[derive(Debug)]
struct Repeat {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Flow {
    /// Begins, and waits until the first have arrived. It counts from the first that arrives: what is sent before
    /// two daemons have shaken hands waits, and on a busy machine longer than as much as may wait.
    pub fn start(from: &Host, to: &Host, address: &str) -> Self {
        let arrivals = Arrivals::start(to);
        let target = SocketAddr::new(address.parse().expect("an address"), PORT);
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let count = Arc::clone(&arrivals.count);
        let sender = Repeat::start(from, move || {
            let any = if target.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any).expect("a socket");
            move || {
                if count.load(Ordering::Relaxed) == 0 {
                    let _ = socket.send_to(TEXT, target);
                    return;
                }
                let number = counter.load(Ordering::Relaxed);
                let message = [TEXT, &number.to_be_bytes()].concat();
                // What the kernel does not take is not sent; there is no such thing in a mesh that
                // is as it should be, and the numbers go on without it.
                if socket.send_to(&message, target).is_ok() {
                    counter.store(number + 1, Ordering::Relaxed);
                }
            }
        });
        let flow = Self {
            sender,
            sent,
            arrivals,
        };
        flow.go_on();
        flow
    }

    /// Waits until some more have arrived; how long it took.
    #[track_caller]
    pub fn go_on(&self) -> Duration {
        let before = self.arrivals.count();
        patiently("the flow goes on", Duration::from_secs(10), || {
            self.arrivals.count() > before + 50
        })
    }

    /// How many have arrived until now.
    pub fn arrived(&self) -> u64 {
        self.arrivals.count()
    }

    /// Ends, and every one has arrived.
    #[track_caller]
    pub fn end_whole(self) {
        let lost = self.stop();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }

    /// Ends; the numbers of those that did not arrive.
    pub fn stop(self) -> Vec<u64> {
        self.sender.stop();
        let sent = self.sent.load(Ordering::Relaxed);
        let arrived = self.arrivals.stop();
        assert!(!arrived.is_empty(), "there was no flow");
        (0..sent)
            .filter(|number| !arrived.contains(number))
            .collect()
    }
}

impl Arrivals {
    /// Begins to listen on all addresses of a host.
    pub fn start(at: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&count));
        let (ready, is_ready) = channel();
        let thread = at.thread(move || {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP));
            let socket = socket.expect("a UDP socket");
            socket.set_only_v6(false).expect("a socket option");
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
            socket.bind(&any.into()).expect("the port is free");
            let socket = UdpSocket::from(socket);
            let timeout = Some(Duration::from_millis(200));
            socket.set_read_timeout(timeout).expect("a socket option");
            ready.send(()).expect("somebody waits");
            let mut arrived = BTreeSet::new();
            let mut buffer = [0; 64];
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        counter.fetch_add(1, Ordering::Relaxed);
                        let number = buffer[..length].strip_prefix(TEXT);
                        arrived.extend(
                            number
                                .and_then(|bytes| bytes.first_chunk())
                                .map(|bytes| u64::from_be_bytes(*bytes)),
                        );
                    }
                    // What is on its way has arrived by now.
                    Err(_) if stopped.load(Ordering::Relaxed) => return arrived,
                    Err(_) => {}
                }
            }
        });
        is_ready.recv().expect("the listener runs");
        Self {
            stop,
            count,
            thread,
        }
    }

    /// How many have arrived until now.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends when nothing arrives any more; the numbers that arrived.
    pub fn stop(self) -> BTreeSet<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the listener does not panic")
    }
}

impl Flood {
    /// Sends UDP (plain, with the tunnel's mark, tied to the underlay's interface) and the
    /// beginnings of TCP connections to each address.
    ///
    /// Nobody listens there: where it arrives that is said by ICMP, which is of the mesh as well.
    pub fn start(from: &Host, addresses: &[String]) -> Self {
        Self::to_port(from, addresses, PORT + 1)
    }

    /// The same to where [`Arrivals`] would count it.
    pub fn to_arrive(from: &Host, address: &str) -> Self {
        Self::to_port(from, &[address.to_owned()], PORT)
    }

    fn to_port(from: &Host, addresses: &[String], port: u16) -> Self {
        let targets: Vec<SocketAddr> = (addresses.iter())
            .map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
            .collect();
        let attempts = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&attempts);
        let sender = Repeat::start(from, move || {
            let sockets: Vec<(Domain, Socket)> = [Domain::IPV4, Domain::IPV6]
                .into_iter()
                .flat_map(|family| senders(family).map(|socket| (family, socket)))
                .collect();
            move || {
                for target in &targets {
                    let family = Domain::for_address(*target);
                    let to = SockAddr::from(*target);
                    for (_, socket) in sockets.iter().filter(|(of, _)| *of == family) {
                        // Whether the kernel takes it is the kernel's affair.
                        let _ = socket.send_to(TEXT, &to);
                    }
                    connect(family, &to);
                }
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let flood = Self { sender, attempts };
        flood.go_on();
        flood
    }

    /// Lets it go on for a while.
    #[track_caller]
    pub fn go_on(&self) {
        let before = self.attempts.load(Ordering::Relaxed);
        patiently("the flood goes on", Duration::from_secs(20), || {
            self.attempts.load(Ordering::Relaxed) > before + 50
        });
    }

    /// Ends.
    pub fn stop(self) {
        self.sender.stop();
    }
}

fn senders(family: Domain) -> [Socket; 3] {
    let udp = || {
        let socket = Socket::new(family, Type::DGRAM, Some(Protocol::UDP)).expect("a UDP socket");
        socket.set_nonblocking(true).expect("a socket option");
        socket
    };
    let (plain, marked, tied) = (udp(), udp(), udp());
    marked
        .set_mark(crate::FWMARK)
        .expect("these tests are root");
    tied.bind_device(Some(b"eth0")).expect("there is one");
    [plain, marked, tied]
}

/// Begins a TCP connection and leaves it.
fn connect(family: Domain, to: &SockAddr) {
    let socket = Socket::new(family, Type::STREAM, Some(Protocol::TCP)).expect("a TCP socket");
    socket.set_nonblocking(true).expect("a socket option");
    let _ = socket.connect(to);
}

impl Repeat {
    fn start<R: FnMut()>(at: &Host, prepare: impl FnOnce() -> R + Send + 'static) -> Self {
        let (stop, stopped) = channel();
        let thread = at.thread(move || {
            let mut round = prepare();
            while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                round();
            }
        });
        Self { stop, thread }
    }

    fn stop(self) {
        let _ = self.stop.send(());
        self.thread.join().expect("the sender does not panic");
    }
}
