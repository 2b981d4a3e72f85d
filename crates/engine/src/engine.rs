//! A running tunnel: a router, its descriptors and its threads.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use warren_config::{DeviceChange, DeviceStatus, PeerStatus, PublicKey};
use warren_packet::coalesce::Merge;
use warren_tun::{Device, LinkEvent, Links};
use warren_udp::{BindError, Pair};
use warren_wireguard::Implementation;
use warren_wireguard::time::Instant;

use crate::clock;
use crate::handover::{Desk, Handover};
use crate::poll::{Poller, Timer, Wake};
use crate::router::{Control, Entropy, Router, Timestamps, Waiting};
use crate::shared::Shared;
use crate::worker::{Directions, EdgeState, Threads, Worker, WorkerEdges, WorkerEnd};

/// How to run a tunnel. The number of workers is that of the device's queues.
#[derive(Debug, Default)]
pub struct Options {
    /// Which threads a worker has.
    pub threads: Threads,
    /// What the UDP sockets may use.
    pub udp: UdpOptions,
    /// Where the timestamps of initiations come from.
    pub timestamps: Timestamps,
    /// The UDP port of an interface that is up already, before any change is applied; 0 for any.
    pub listen_port: u16,
    /// The mark of its packets; 0 for none.
    pub fwmark: u32,
}

/// What the UDP sockets may use of what the kernel offers.
#[derive(Debug, Clone)]
pub struct UdpOptions {
    /// Send many datagrams as one (`UDP_SEGMENT`).
    pub segmentation: bool,
    /// Receive many datagrams as one (`UDP_GRO`).
    pub receive_offload: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            segmentation: true,
            receive_offload: true,
        }
    }
}

/// Why an engine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// [`Engine::shutdown`] was called.
    Stopped,
    /// The interface was deleted by someone else.
    Deleted,
    /// A thread met an error of the host that it cannot go on from; it is in the log.
    Failed,
}

/// Why a tunnel could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device's queues were taken by someone else before.
    #[error("the TUN device has no queues left to read from")]
    NoQueues,
    /// The host has no descriptor or thread to spare.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the host said.
        r#source: io::Error,
    },
}

/// Why a change was refused. Nothing of it was carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The UDP port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The mark cannot be set.
    #[error("cannot mark packets with {fwmark:#x}: {source}; it takes CAP_NET_ADMIN")]
    Fwmark {
        /// The mark that was asked for.
        fwmark: u32,
        /// What the host said.
        r#source: io::Error,
    },
}

impl ApplyError {
    /// The error number that the UAPI answers with.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Bind(error) => error.errno(),
            Self::Fwmark { source, .. } => source
                .raw_os_error()
                .unwrap_or(rustix::io::Errno::IO.raw_os_error()),
        }
    }
}

/// What an engine says of itself, beyond [`DeviceStatus`].
#[derive(Debug, Clone)]
pub struct Report {
    /// The interface's name now.
    pub interface: String,
    /// Whether the interface is up.
    pub up: bool,
    /// Why there is no UDP socket although the interface is up, so that no peer is reached. It is
    /// tried for again each second.
    pub unbound: Option<Arc<BindError>>,
    /// MTU of the interface, in bytes.
    pub mtu: u32,
    /// How many workers there are.
    pub workers: usize,
    /// What seals and opens packets of new sessions, by name.
    pub aead: &'static str,
    /// The length in bytes of the longest text for which that is used; the library does those that are
    /// longer. `None` where it is used for all.
    pub aead_longest: Option<usize>,
    /// What waits for something.
    pub waiting: Waiting,
    /// What is in use of what the kernel offers, by name.
    pub features: BTreeMap<&'static str, bool>,
    /// Every drop that occurred so far, by name: [`crate::Reason`], and what the sockets count
    /// themselves since they were opened.
    pub drops: BTreeMap<&'static str, u64>,
}

/// A running tunnel. Ends its threads when dropped; the interface stays.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    net: Arc<Mutex<Net>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The outer side of the tunnel as it was asked for, and the interface as it is.
#[derive(Debug)]
struct Net {
    device: Device,
    udp: UdpOptions,
    /// What was asked for; 0 for any.
    listen_port: u16,
    fwmark: u32,
    up: bool,
    /// Why there are no sockets although the interface is up.
    unbound: Option<Arc<BindError>>,
    workers: usize,
}

impl Engine {
    /// Starts the threads of a tunnel on `device`. It has neither key nor peers yet.
    pub fn start(mut device: Device, options: Options) -> Result<Self, StartError> {
        let Options {
            threads,
            udp,
            timestamps,
            listen_port,
            fwmark,
        } = options;
        let host = |action| move |source| StartError::Host { action, source };
        let queues: Vec<_> = device.take_queues().into_iter().map(Arc::new).collect();
        if queues.is_empty() {
            return Err(StartError::NoQueues);
        }
        let links = device.links().map_err(host("watch the interface"))?;
        let mtu = device.mtu().map_err(host("read the interface's MTU"))?;
        let up = device.is_up().map_err(host("read the interface's state"))?;
        let new_wake = || Wake::new().map(Arc::new).map_err(host("make an eventfd"));

        let control = new_wake()?;
        let wake = Arc::clone(&control);
        let router = Router::new(mtu, Box::new(move || wake.wake()), Box::new(SystemEntropy));
        let directions: &[Directions] = match threads {
            Threads::Split => &[Directions::Out, Directions::In],
            Threads::Joined => &[Directions::Both],
        };
        let mut wakes = Vec::new();
        for _ in 0..queues.len() * directions.len() {
            wakes.push(new_wake()?);
        }
        let shared = Arc::new(Shared::new(router, control, wakes));
        let features = device.features();
        let merge = Merge {
            tcp: features.tcp_offload,
            udp: features.udp_offload,
        };
        let net = Arc::new(Mutex::new(Net {
            workers: queues.len(),
            device,
            udp,
            listen_port,
            fwmark,
            up,
            unbound: None,
        }));

        let engine = Self {
            shared: Arc::clone(&shared),
            net: Arc::clone(&net),
            threads: Mutex::default(),
        };
        if up {
            // An interface that is up already when its daemon starts wants a port at once.
            lock(&net).came_up(&shared);
        } else {
            shared.router.stop();
        }
        let wakes = shared.workers.chunks_exact(directions.len());
        for (place, (queue, wakes)) in queues.iter().zip(wakes).enumerate() {
            let desk = Arc::new(Desk::default());
            let now = clock::now();
            // The last one has the other's wake, and the first the last one's.
            let others = wakes.iter().rev();
            for ((&directions, wake), other) in directions.iter().zip(wakes).zip(others) {
                let (other, desk) = (Arc::clone(other), Arc::clone(&desk));
                let handover = Handover::new(other, desk, directions == Directions::In, now);
                let worker = Worker::new(
                    Arc::clone(&shared),
                    place,
                    Arc::clone(queue),
                    Arc::clone(wake),
                    directions,
                    (directions != Directions::Both).then_some(handover),
                    merge,
                );
                let name = match directions {
                    Directions::Both => format!("warren-{place}"),
                    Directions::Out => format!("warren-out-{place}"),
                    Directions::In => format!("warren-in-{place}"),
                };
                engine.spawn(name, move || {
                    worker.run().map(|end| match end {
                        WorkerEnd::Stopped => End::Stopped,
                        WorkerEnd::Deleted => End::Deleted,
                    })
                })?;
            }
        }
        let steward = Steward {
            shared,
            net,
            links,
            queue: Arc::clone(&queues[0]),
            timestamps,
            reopen: None,
        };
        engine.spawn("warren-control".to_owned(), move || steward.run())?;
        Ok(engine)
    }

    fn spawn(
        &self,
        name: String,
        run: impl FnOnce() -> io::Result<End> + Send + 'static,
    ) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let body = move || match run() {
            Ok(end) => shared.stop(end),
            Err(error) => {
                tracing::error!(%error, "a thread of the tunnel cannot go on");
                shared.stop(End::Failed);
            }
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(|source| StartError::Host {
                action: "start a thread",
                source,
            })?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        Ok(())
    }

    /// Applies a change, whole or not at all. Blocks while another change is being applied.
    pub fn apply(&self, change: &DeviceChange) -> Result<(), ApplyError> {
        let mut net = lock(&self.net);
        net.apply(&self.shared, change)?;
        self.shared.router.apply(change, clock::now());
        Ok(())
    }

    /// What comes out of the tunnel may reach these prefixes only; `None` for any.
    pub fn set_local(&self, prefixes: Option<&[IpNet]>) {
        self.shared.router.set_local(prefixes);
    }

    /// Shakes hands with these peers now, whatever session there is; those that are no peers are passed
    /// over. Each initiation costs two curve operations, and the one who asks for many paces them.
    pub fn rekey<'a>(&self, peers: impl IntoIterator<Item = &'a PublicKey>) {
        self.shared.router.rekey(peers, clock::now());
    }

    /// What a peer is, but for its allowed IPs. Costs the same however many peers there are.
    pub fn peer(&self, key: &PublicKey) -> Option<PeerStatus> {
        (self.shared.router).peer_status(key, clock::now(), clock::wall())
    }

    /// The UDP port in use, or the one that was asked for while there is no socket.
    pub fn listen_port(&self) -> u16 {
        let wanted = lock(&self.net).listen_port;
        self.shared.sockets.load().port().unwrap_or(wanted)
    }

    /// Whether the interface is up.
    pub fn is_up(&self) -> bool {
        lock(&self.net).up
    }

    /// Why there is no UDP socket although the interface is up, so that no peer is reached.
    pub fn unbound(&self) -> Option<Arc<BindError>> {
        lock(&self.net).unbound.clone()
    }

    /// What the device is. Holds the private key, as the UAPI's `get` operation shows it.
    pub fn status(&self) -> DeviceStatus {
        let fwmark = lock(&self.net).fwmark;
        DeviceStatus {
            listen_port: self.listen_port(),
            fwmark,
            ..self.shared.router.status(clock::now(), clock::wall())
        }
    }

    /// What is in use, and what was dropped.
    pub fn report(&self) -> Report {
        let net = lock(&self.net);
        let tun = net.device.features();
        let sockets = self.shared.sockets.load();
        let mut features = BTreeMap::from([
            ("tun_multi_queue", tun.multi_queue),
            ("tun_offload_header", tun.vnet_header),
            ("tun_tcp_offload", tun.tcp_offload),
            ("tun_udp_offload", tun.udp_offload),
            ("tun_tunnel_offload", tun.tunnel_offload),
            ("tun_steering", tun.steering),
        ]);
        if sockets.is_open() {
            let all = |feature: fn(&warren_udp::Socket) -> bool| sockets.iter().all(feature);
            features.insert(
                "udp_segmentation",
                all(|socket| socket.features().segmentation),
            );
            features.insert(
                "udp_receive_offload",
                all(|socket| socket.features().receive_offload),
            );
        }
        let mut drops: BTreeMap<_, _> = self
            .shared
            .router
            .drops()
            .into_iter()
            .map(|(reason, n)| (reason.name(), n))
            .collect();
        for (name, count) in sockets.iter().flat_map(warren_udp::Socket::counters) {
            if count > 0 {
                *drops.entry(name).or_default() += count;
            }
        }
        let aead = Implementation::current();
        Report {
            interface: net.device.name(),
            up: net.up,
            unbound: net.unbound.clone(),
            mtu: u32::try_from(self.shared.router.mtu()).unwrap_or(u32::MAX),
            workers: net.workers,
            aead: aead.name(),
            aead_longest: aead.longest(),
            waiting: self.shared.router.waiting(),
            features,
            drops,
        }
    }

    /// Waits until the tunnel comes to its end.
    pub fn wait(&self) -> End {
        self.shared.wait()
    }

    /// Ends the tunnel's threads and closes its sockets. The interface stays.
    pub fn shutdown(&self) {
        self.shared.stop(End::Stopped);
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that panicked has said so on its own.
            let _panicked = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Net {
    /// The part of a change that may fail.
    fn apply(&mut self, shared: &Shared, change: &DeviceChange) -> Result<(), ApplyError> {
        let before = (self.listen_port, self.fwmark);
        self.listen_port = change.listen_port.unwrap_or(self.listen_port);
        self.fwmark = change.fwmark.unwrap_or(self.fwmark);
        let sockets = shared.sockets.load();
        let done = if !self.up {
            Ok(())
        } else if !sockets.is_open() {
            // A change of other things is not at fault, and the control thread tries again.
            let at_fault = |error: &BindError| match error {
                BindError::Mark { .. } => change.fwmark.is_some(),
                _ => change.listen_port.is_some(),
            };
            match self.open(shared) {
                Err(error) if at_fault(&error) => Err(error.into()),
                _ => Ok(()),
            }
        } else if self.listen_port != before.0
            // Asking for the port that is open is no change, also when the system chose it.
            && sockets.port() != Some(self.listen_port)
        {
            self.open(shared).map_err(ApplyError::from)
        } else if self.fwmark != before.1 {
            let fwmark = self.fwmark;
            sockets
                .iter()
                .try_for_each(|socket| socket.set_fwmark(fwmark))
                .map_err(|source| ApplyError::Fwmark { fwmark, source })
        } else {
            Ok(())
        };
        if done.is_err() {
            (self.listen_port, self.fwmark) = before;
        }
        done
    }

    /// Opens sockets on the port that is asked for, and closes those that were open.
    fn open(&mut self, shared: &Shared) -> Result<(), BindError> {
        let options = warren_udp::Options {
            port: self.listen_port,
            fwmark: self.fwmark,
            shards: self.workers,
            segmentation: self.udp.segmentation,
            receive_offload: self.udp.receive_offload,
            ..warren_udp::Options::default()
        };
        let pairs = Pair::bind(&options)?;
        shared.open_sockets(pairs);
        self.unbound = None;
        Ok(())
    }

    /// The interface is up, so there are to be sockets.
    fn came_up(&mut self, shared: &Shared) {
        self.up = true;
        if let Err(error) = self.open(shared) {
            tracing::error!(
                %error,
                "the interface is up, but its peers cannot be reached; trying again each second"
            );
            self.unbound = Some(Arc::new(error));
        }
    }

    /// Tries again for the sockets that could not be had. What was said once is not said again.
    fn reopen(&mut self, shared: &Shared) {
        match self.open(shared) {
            Ok(()) => tracing::info!("the UDP port is open, so peers can be reached"),
            Err(error) => self.unbound = Some(Arc::new(error)),
        }
    }

    fn link_changed(&mut self, shared: &Shared, event: LinkEvent) {
        match event {
            LinkEvent::Up if !self.up => {
                self.came_up(shared);
                shared.router.start();
            }
            LinkEvent::Down if self.up => {
                self.up = false;
                self.unbound = None;
                shared.close_sockets();
                shared.router.stop();
            }
            LinkEvent::Mtu(mtu) => shared.router.set_mtu(mtu),
            LinkEvent::Renamed(name) => tracing::info!(name, "the interface has another name"),
            LinkEvent::Moved => tracing::info!("the interface is in another network namespace"),
            LinkEvent::Deleted => shared.stop(End::Deleted),
            LinkEvent::Up | LinkEvent::Down => {}
        }
    }
}

/// The control thread: timers, handshakes, and what happens to the interface.
struct Steward {
    shared: Arc<Shared>,
    net: Arc<Mutex<Net>>,
    links: Links,
    queue: Arc<warren_tun::Queue>,
    timestamps: Timestamps,
    /// When to try for sockets again, if the interface is up without.
    reopen: Option<Instant>,
}

/// How often that is.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

const WAKE: u32 = 0;
const TIMER: u32 = 1;
const LINKS: u32 = 2;

impl Steward {
    fn run(mut self) -> io::Result<End> {
        let mut timer = Timer::new()?;
        let mut poller = Poller::new()?;
        poller.add(&*self.shared.control, WAKE)?;
        poller.add(&timer, TIMER)?;
        poller.add(&self.links, LINKS)?;
        let mut control = Control::new(std::mem::take(&mut self.timestamps));
        let mut state = EdgeState::default();
        loop {
            let ready = poller.wait()?;
            if ready.has(WAKE) {
                self.shared.control.drain();
            }
            if ready.has(TIMER) {
                timer.drain();
            }
            if self.shared.is_stopping() {
                return Ok(End::Stopped);
            }
            if ready.has(LINKS) {
                while let Some(event) = self.links.next_event()? {
                    lock(&self.net).link_changed(&self.shared, event);
                }
            }
            let now = clock::now();
            self.reopen(now);
            let sockets = self.shared.sockets.load_full();
            let router = &self.shared.router;
            let mut edges = WorkerEdges {
                router,
                pair: sockets.pair(0),
                queue: &self.queue,
                state: &mut state,
                now,
            };
            if router.tick(&mut control, now, clock::wall(), &mut edges) {
                // By way of the poller: the interface may change while work never ends.
                self.shared.control.wake();
            }
            let deadlines = [control.next_deadline(), self.reopen];
            timer.arm(deadlines.into_iter().flatten().min())?;
        }
    }

    /// Tries again for sockets that could not be had, and sees to the next time.
    fn reopen(&mut self, now: Instant) {
        if self.shared.sockets.load().is_open() {
            self.reopen = None;
            return;
        }
        let mut net = lock(&self.net);
        if net.unbound.is_some() && self.reopen.is_some_and(|at| at <= now) {
            net.reopen(&self.shared);
            self.reopen = None;
        }
        self.reopen = net
            .unbound
            .is_some()
            .then(|| self.reopen.unwrap_or(now + REOPEN_INTERVAL));
    }
}

/// Random bytes of the system.
#[derive(Debug)]
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        // Only a kernel before 3.17 without /dev/urandom has none, and there is no going on then.
        getrandom::fill(bytes).expect("the system has random bytes");
    }
}

fn lock(net: &Mutex<Net>) -> std::sync::MutexGuard<'_, Net> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}
