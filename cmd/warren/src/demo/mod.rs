//! `warren demo`: three nodes and a fourth, on this machine alone, from nothing to nothing.
//!
//! The steps are the functions of [`Demo`], in order. Each does something, looks at what came of it,
//! and says both; what is not as it should be ends the demo with an error. `stage.rs` draws where
//! it takes place and says why nothing is left behind.

mod interrupt;
mod links;
mod node;
mod screen;
mod stage;
mod traffic;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::args;
use crate::capture::{Capture, Filter, Heard, Messages, Seen};
use crate::clock;
use crate::echo::Echo;
use crate::verify::attempts::{Attempt, DISCARD, Tried, Way};
use interrupt::{Interrupt, Interrupted};
use node::{MESH_FILE, Node};
use screen::{Screen, in_words, rate};
use stage::{Namespace, Switch, mesh_addresses, underlay_addresses};
use traffic::{Pace, Stream, Streamed, bulk};

/// What the mesh may carry.
const MESH: [&str; 2] = ["10.77.0.0/16", "fd77::/48"];
/// The tunnels' port and mark, as they are where a mesh file says nothing of them.
const PORT: u16 = 51820;
const FWMARK: u32 = 0x20;
/// How long bulk data is moved through the tunnel, and beside it.
const BULK: Duration = Duration::from_millis(2000);
const BULK_BESIDE: Duration = Duration::from_millis(700);
/// How bulk data is moved while the wiretap reads it: so that it need not miss any, which has less
/// room for what waits where the demo is not root.
const BULK_TAPPED: Pace = Pace {
    duration: Duration::from_millis(800),
    chunk: 128 << 10,
    pause: Some(Duration::from_millis(4)),
};
const BULK_TAPPED_AS_USER: Pace = Pace {
    chunk: 16 << 10,
    pause: Some(Duration::from_millis(2)),
    ..BULK_TAPPED
};
/// How long a first ping may take, with a handshake.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long traffic flows before and after something happens.
const MEANWHILE: Duration = Duration::from_millis(400);
/// How long a node is without its daemon.
const DEAD: Duration = Duration::from_millis(1000);

/// Exit code of a command that was interrupted.
const INTERRUPTED: u8 = 130;

pub(crate) fn run(args: &args::Demo) -> anyhow::Result<ExitCode> {
    let warrend = daemon_beside_this_command()?;
    // Before there is a second thread.
    let own_users = stage::leave_host()?;
    let interrupt = Interrupt::new()?;
    let screen = Screen::new();
    screen.plain(format_args!(
        "Warren's demo. Everything happens in network namespaces of its own{}; your network stays \
         as it is.",
        if own_users {
            ", as a user of its own"
        } else {
            ""
        },
    ))?;

    let mut demo = Demo {
        screen,
        interrupt,
        warrend,
        marker: marker()?,
        own_users,
        nftables: false,
        stands: false,
        switch: Switch::new()?,
        nodes: Vec::new(),
    };
    let done = demo.play().and_then(|()| match args.keep {
        true => demo.stand(),
        false => Ok(()),
    });
    let interrupted = done.as_ref().is_err_and(anyhow::Error::is::<Interrupted>);
    let code = match &done {
        Ok(()) => ExitCode::SUCCESS,
        // Ctrl-C is how a demo that stands comes to its end.
        Err(_) if interrupted && demo.stands => ExitCode::SUCCESS,
        Err(_) if interrupted => ExitCode::from(INTERRUPTED),
        Err(error) => {
            demo.screen.bad(format_args!("{error:#}"))?;
            ExitCode::FAILURE
        }
    };
    let midway = interrupted && !demo.stands;
    demo.clean_up(midway)?;
    Ok(code)
}

/// The `warrend` of the same build.
fn daemon_beside_this_command() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("this command does not know where it is")?;
    let warrend = this.with_file_name("warrend");
    ensure!(
        warrend.exists(),
        "there is no warrend beside {}; build both with `cargo build --release -p warrend -p warren`",
        this.display()
    );
    Ok(warrend)
}

/// What is looked for on the wire.
fn marker() -> anyhow::Result<Vec<u8>> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).context("the system gave no random bytes")?;
    let random = u64::from_ne_bytes(random);
    Ok(format!("plaintext-{random:016x}").into_bytes())
}

struct Demo {
    screen: Screen,
    interrupt: Interrupt,
    warrend: PathBuf,
    marker: Vec<u8>,
    own_users: bool,
    /// Whether the kernel has the half of the fence that knows what is tied to a card and what comes in.
    nftables: bool,
    /// Everything was shown, and is left standing.
    stands: bool,
    // Nodes before the switch that they are on.
    nodes: Vec<Node>,
    switch: Switch,
}

/// Which node of the three is which.
const HUT: usize = 0;
const BARN: usize = 1;
const MILL: usize = 2;

impl Demo {
    fn play(&mut self) -> anyhow::Result<()> {
        self.hosts()?;
        self.mesh()?;
        self.ping()?;
        self.bulk()?;
        self.wire()?;
        self.fourth()?;
        self.kill()
    }

    /// Three hosts, and what a wiretap reads while there is no Warren.
    fn hosts(&mut self) -> anyhow::Result<()> {
        self.screen
            .step("Three hosts on a switch, without Warren")?;
        for (name, number) in [("hut", 1), ("barn", 2), ("mill", 3)] {
            let node = Node::new(&mut self.switch, name, number, true)?;
            self.nodes.push(node);
        }
        let hosts: Vec<String> = (self.nodes.iter())
            .map(|node| format!("{} {}", node.name, underlay_addresses(node.number)[0]))
            .collect();
        let hosts = hosts.join(", ");
        self.screen.good(format_args!("{hosts}"))?;

        let capture = self.listen()?;
        let [to, _] = mesh_addresses(2);
        const PACKETS: u64 = 5;
        let marker = self.marker.clone();
        let sent = self.nodes[HUT].host.enter(move || {
            let mut tried = Tried::default();
            let attempt = Attempt {
                interface: stage::CARD,
                fwmark: FWMARK,
                marker: &marker,
                port: DISCARD,
            };
            for _ in 0..PACKETS {
                attempt.to(to, &[Way::Plain], &mut tried);
            }
            tried
        })?;
        // The way out must be found before the first can leave.
        let start = clock::now();
        while capture.marked() < sent.total() && clock::now().duration_since(start) < PATIENCE {
            self.interrupt.pause(Duration::from_millis(5))?;
        }
        let seen = capture.stop()?;
        ensure!(
            seen.marked == sent.total() && seen.clear_frames >= seen.marked,
            "the wiretap misses what it should see: {seen:?}"
        );
        let read = seen.marked;
        Ok(self.screen.good(format_args!(
            "hut sends {PACKETS} packets to {to}: a wiretap on the switch reads {read}, in the clear"
        ))?)
    }

    /// One file, and a daemon on each host.
    fn mesh(&mut self) -> anyhow::Result<()> {
        self.screen
            .step("One mesh file, and warrend on each of them")?;
        let mut file = format!("[mesh]\nprefixes = [\"{}\", \"{}\"]\n", MESH[0], MESH[1]);
        for node in &self.nodes {
            file += &node.init()?;
        }
        fs::write(MESH_FILE, &file)?;
        let (nodes, lines) = (self.nodes.len(), file.lines().count());
        self.screen.good(format_args!(
            "mesh.toml has {nodes} nodes in {lines} lines; the keys are made as `warren init` makes them"
        ))?;
        for node in &mut self.nodes {
            node.start(&self.warrend)?;
        }
        let mut fence = String::new();
        let mut digest = String::new();
        for node in &mut self.nodes {
            let status = node.ready(&self.interrupt)?;
            self.nftables = status.features.get("nftables") == Some(&true);
            fence = status.node.fence.unwrap_or_default();
            digest = status.node.mesh_digest.unwrap_or_default();
        }
        let fence = fence.split(';').next().unwrap_or_default();
        let digest = digest.get(..16).unwrap_or_default();
        self.screen
            .good(format_args!("three daemons run it (digest {digest})"))?;
        Ok(self.screen.good(format_args!(
            "the mesh's prefixes are {fence}, on each of them"
        ))?)
    }

    /// Everybody reaches everybody.
    fn ping(&mut self) -> anyhow::Result<()> {
        self.screen.step("Ping across")?;
        for (from, to) in [(HUT, BARN), (BARN, MILL), (MILL, HUT)] {
            let [v4, v6] = mesh_addresses(self.nodes[to].number);
            let (first, _) = self.first_ping(from, v4)?;
            let back = mesh_addresses(self.nodes[from].number)[0];
            let best = self.best_ping(from, v4)?;
            let best_v6 = self.best_ping(from, v6)?;
            self.best_ping(to, back)?;
            let (from, to) = (self.nodes[from].name, self.nodes[to].name);
            self.screen.good(format_args!(
                "{from} ⇄ {to}: {} with the handshake, then {} by IPv4 and {} by IPv6",
                in_words(first),
                in_words(best),
                in_words(best_v6),
            ))?;
        }
        Ok(())
    }

    /// Bulk data, through the tunnel and beside it.
    fn bulk(&mut self) -> anyhow::Result<()> {
        self.screen.step("Move bulk data by TCP, hut to barn")?;
        let [inside, _] = mesh_addresses(2);
        let [outside, _] = underlay_addresses(2);
        let through = self.move_bulk(inside, b"bulk", Pace::full(BULK))?;
        self.screen.good(format_args!(
            "through the tunnel: {}",
            rate(through.bytes, through.time)
        ))?;
        let beside = self.move_bulk(outside, b"bulk", Pace::full(BULK_BESIDE))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(self.screen.good(format_args!(
            "the same path without a tunnel: {}, on the same {cores} cores",
            rate(beside.bytes, beside.time)
        ))?)
    }

    /// What a wiretap reads now.
    fn wire(&mut self) -> anyhow::Result<()> {
        self.screen.step("Listen on the wire")?;
        let capture = self.listen()?;
        let [inside, inside_v6] = mesh_addresses(2);
        let marker = self.marker.clone();
        let pace = match self.own_users {
            true => BULK_TAPPED_AS_USER,
            false => BULK_TAPPED,
        };
        let moved = self.move_bulk(inside, &marker, pace)?;
        for to in [inside, inside_v6] {
            self.best_ping(HUT, to)?;
        }
        let seen = capture.stop()?;
        nothing_leaks(&seen)?;
        let Messages {
            data,
            keepalives,
            initiations,
            responses,
            ..
        } = seen.messages();
        ensure!(data > 0, "the wiretap saw no tunnel: {seen:?}");
        let megabytes = moved.bytes / 1_000_000;
        self.screen.good(format_args!(
            "{megabytes} MB crossed, full of the words of step 1; the wiretap read {} frames:",
            seen.frames
        ))?;
        self.screen.plain(format_args!(
            "       {data:>14} encrypted packets  {keepalives:>5} keepalives            {:>4} handshake messages",
            initiations + responses
        ))?;
        self.screen.plain(format_args!(
            "       {:>14} with those words   {:>5} with a mesh address   {:>4} others, such as ARP",
            seen.marked, seen.clear_frames, seen.other
        ))?;
        if seen.lost > 0 {
            self.screen.note(format_args!(
                "the wiretap was too slow for {} more, which it did not read",
                seen.lost
            ))?;
        }
        let strange = seen.strange;
        ensure!(
            strange == 0,
            "{strange} datagrams at the tunnels' port are no messages of WireGuard"
        );
        Ok(self.screen.good(match seen.lost {
            0 => "nothing but ciphertext",
            _ => "nothing but ciphertext in all that it read",
        })?)
    }

    /// A fourth node, while the three talk.
    fn fourth(&mut self) -> anyhow::Result<()> {
        self.screen
            .step("A fourth node joins while the others talk")?;
        let streams = self.streams(&[(HUT, BARN), (BARN, MILL), (MILL, HUT)])?;
        self.interrupt.pause(MEANWHILE)?;

        let laptop = Node::new(&mut self.switch, "laptop", 4, false)?;
        let block = laptop.init()?;
        self.nodes.push(laptop);
        let mut file = fs::read_to_string(MESH_FILE)?;
        file += &block;
        // As an editor does: whoever looks sees the old file or the new.
        let beside = Path::new(MESH_FILE).with_extension("new");
        fs::write(&beside, &file)?;
        fs::rename(&beside, MESH_FILE)?;
        let new = self.nodes.len() - 1;
        self.nodes[new].start(&self.warrend)?;
        self.screen.good(
            "laptop, without an endpoint as if behind NAT, is in the file, and its warrend started",
        )?;
        self.nodes[new].ready(&self.interrupt)?;
        for to in [HUT, BARN, MILL] {
            let [v4, _] = mesh_addresses(self.nodes[to].number);
            self.first_ping(new, v4)?;
        }
        let [laptop, _] = mesh_addresses(4);
        let (_, way) = self.first_ping(HUT, laptop)?;
        self.screen.good(format_args!(
            "it reaches all three, and hut reaches it in {}",
            in_words(way)
        ))?;
        self.interrupt.pause(MEANWHILE)?;
        let streamed = stopped(streams)?;
        none_lost(&streamed)?;
        Ok(self.screen.good(format_args!(
            "the others sent {} pings meanwhile: all were answered, the slowest after {}",
            streamed.sent,
            in_words(streamed.slowest)
        ))?)
    }

    /// A daemon dies, and comes back.
    fn kill(&mut self) -> anyhow::Result<()> {
        self.screen.step("Kill hut's daemon with SIGKILL")?;
        let others = self.streams(&[(BARN, MILL)])?;
        let capture = self.listen()?;
        let listener = self.arrivals()?;
        let [other, _] = underlay_addresses(2);

        ensure!(self.nodes[HUT].kill(), "hut has no daemon to be killed");
        let killed = clock::now();
        let mut tried = Tried::default();
        let mut forged = 0;
        while clock::now().duration_since(killed) < DEAD {
            self.interrupt.check()?;
            tried = self.try_to_leak(other, tried)?;
            if self.nftables {
                forged += self.forge()?;
            }
        }
        let seen = capture.stop()?;
        let arrived = listener.stop()?;
        nothing_leaks(&seen)?;
        let missed = seen.lost;
        ensure!(missed == 0, "the wiretap missed {missed} frames");
        ensure!(arrived == 0, "{arrived} forged packets came in");
        let (total, ways) = (tried.total(), tried.attempts.len());
        self.screen.good(format_args!(
            "hut tried {total} times in {ways} ways to send into the mesh: nothing left in the clear"
        ))?;
        match self.nftables {
            true => self.screen.good(format_args!(
                "the switch sent it {forged} packets that pretend to be barn's: none came in"
            ))?,
            false => self.screen.note(
                "without nftables nobody asks about sockets tied to a card, nor what comes in",
            )?,
        }

        let start = clock::now();
        self.nodes[HUT].start(&self.warrend)?;
        let [to, _] = mesh_addresses(2);
        self.first_ping(HUT, to)?;
        let back = in_words(clock::now().duration_since(start));
        self.nodes[HUT].ready(&self.interrupt)?;
        self.screen.good(format_args!(
            "started again, hut has barn's answer after {back}"
        ))?;
        let streamed = stopped(others)?;
        none_lost(&streamed)?;
        Ok(self.screen.good(format_args!(
            "barn and mill sent {} pings all the while, and lost none",
            streamed.sent
        ))?)
    }

    /// Stands until somebody says to end, and says how to look around.
    fn stand(&mut self) -> anyhow::Result<()> {
        self.stands = true;
        self.screen
            .step("It stands until Ctrl-C; look around from another terminal")?;
        let warren = std::env::current_exe()?;
        let warren = warren.display();
        let users = if self.own_users {
            " --user --preserve-credentials"
        } else {
            ""
        };
        for node in &self.nodes {
            let Some(process) = node.process() else {
                continue;
            };
            let enter = format!("nsenter --target {process}{users} --mount --net");
            match node.name {
                "hut" => {
                    self.screen
                        .command(format_args!("{enter} {warren} status"))?;
                    self.screen
                        .command(format_args!("{enter} {warren} verify"))?;
                    self.screen.command(format_args!(
                        "{enter}    # a shell on hut; try: ping 10.77.0.2"
                    ))?;
                }
                name => self.screen.command(format_args!("{enter}    # {name}"))?,
            }
        }
        self.screen.plain(format_args!(
            "              The mesh file is {MESH_FILE} in there; a change to it is taken at once."
        ))?;
        loop {
            self.interrupt.pause(Duration::from_secs(3600))?;
        }
    }

    /// Takes everything down.
    fn clean_up(mut self, midway: bool) -> anyhow::Result<()> {
        let title = match midway {
            true => "Interrupted; clean up",
            false => "Clean up",
        };
        self.screen.step(title)?;
        let nodes = self.nodes.len();
        let daemons = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.kill().then_some(()));
        let daemons = daemons.count();
        self.nodes.clear();
        fs::remove_dir_all(stage::DIRECTORY).context("the demo's files stay")?;
        let namespaces = nodes + 1;
        self.screen.good(format_args!(
            "{daemons} daemons, {namespaces} network namespaces and all files are gone; \
             nothing else was touched"
        ))?;
        let total = in_words(self.screen.total());
        Ok(self
            .screen
            .plain(format_args!("\nAll of it took {total}."))?)
    }

    /// A wiretap at every port of the switch.
    fn listen(&self) -> anyhow::Result<Capture> {
        let filter = Filter {
            interfaces: (self.switch.ports.iter())
                .map(|port| (*port, Heard::Incoming))
                .collect(),
            mesh: mesh_prefixes(),
            marker: self.marker.clone(),
            ports: [PORT].into(),
            ..Filter::default()
        };
        Ok(Capture::start(self.switch.tap()?, filter)?)
    }

    fn first_ping(&self, from: usize, to: IpAddr) -> anyhow::Result<(Duration, Duration)> {
        self.interrupt.check()?;
        let marker = self.marker.clone();
        let interrupt = self.interrupt.clone();
        let answered = self.nodes[from]
            .host
            .enter(move || -> std::io::Result<_> {
                let give_up = || interrupt.check().is_err();
                Ok(Echo::new(to)?.first_answer(&marker, PATIENCE, give_up))
            })??;
        self.interrupt.check()?;
        let from = self.nodes[from].name;
        answered
            .with_context(|| format!("{from} had no answer from {to} in {}", in_words(PATIENCE)))
    }

    /// The shortest way of a few pings, all of which must be answered.
    fn best_ping(&self, from: usize, to: IpAddr) -> anyhow::Result<Duration> {
        const PINGS: u16 = 5;
        self.interrupt.check()?;
        let marker = self.marker.clone();
        let ways = self.nodes[from]
            .host
            .enter(move || -> std::io::Result<_> {
                let echo = Echo::new(to)?;
                let mut ways = Vec::new();
                for sequence in 0..PINGS {
                    let sent = clock::now();
                    echo.send(sequence, &marker)?;
                    ways.push(echo.wait(sequence, sent, sent + Duration::from_secs(2)));
                }
                Ok(ways)
            })??;
        let from = self.nodes[from].name;
        let ways: Option<Vec<Duration>> = ways.into_iter().collect();
        let best = ways.and_then(|ways| ways.into_iter().min());
        best.with_context(|| format!("{from} lost a ping to {to}"))
    }

    fn move_bulk(&self, to: IpAddr, fill: &[u8], pace: Pace) -> anyhow::Result<traffic::Bulk> {
        self.interrupt.check()?;
        let (hut, barn) = (&self.nodes[HUT].host, &self.nodes[BARN].host);
        let moved = bulk(hut, barn, to, fill, pace, self.interrupt.flag())?;
        self.interrupt.check()?;
        Ok(moved)
    }

    fn streams(&self, pairs: &[(usize, usize)]) -> anyhow::Result<Vec<Stream>> {
        let start = |(from, to): &(usize, usize)| {
            let [to, _] = mesh_addresses(self.nodes[*to].number);
            Ok(Stream::start(
                &self.nodes[*from].host,
                to,
                self.marker.clone(),
            )?)
        };
        pairs.iter().map(start).collect()
    }

    /// A round of every way past the tunnel, from hut.
    fn try_to_leak(&self, outside: IpAddr, mut tried: Tried) -> anyhow::Result<Tried> {
        let marker = self.marker.clone();
        let nftables = self.nftables;
        let tried = self.nodes[HUT].host.enter(move || {
            let attempt = Attempt {
                interface: stage::CARD,
                fwmark: FWMARK,
                marker: &marker,
                port: DISCARD,
            };
            // Two nodes, one that has no address yet, and both families.
            for to in [2, 3, 99].map(mesh_addresses).into_iter().flatten() {
                attempt.to(to, &[Way::Plain], &mut tried);
                match nftables {
                    true => attempt.to(to, &Way::AROUND, &mut tried),
                    false => attempt.to(to, &[Way::Marked], &mut tried),
                }
            }
            if nftables {
                let [own, _] = mesh_addresses(1);
                attempt.with_own_source(own, outside, &mut tried);
            }
            tried
        })?;
        Ok(tried)
    }

    /// A round of packets from the switch to hut's mesh address, as if they were barn's.
    fn forge(&self) -> anyhow::Result<u64> {
        let marker = self.marker.clone();
        let sent = self
            .switch
            .namespace
            .enter(move || -> std::io::Result<u64> {
                let links = links::Links::new()?;
                let (barn, hut) = (mesh_addresses(2)[0], mesh_addresses(1)[0]);
                let exists = |error: &std::io::Error| error.raw_os_error() == Some(libc::EEXIST);
                for done in [
                    links.address("lo", barn, 32),
                    links.route(hut, 32, underlay_addresses(1)[0]),
                ] {
                    if let Err(error) = done
                        && !exists(&error)
                    {
                        return Err(error);
                    }
                }
                let socket = std::net::UdpSocket::bind((barn, 0))?;
                Ok(u64::from(
                    socket.send_to(&marker, (hut, FORGED_PORT)).is_ok(),
                ))
            })?;
        sent.context("the switch cannot pretend to be barn")
    }

    /// Listens on hut for what was forged.
    fn arrivals(&self) -> anyhow::Result<Arrivals> {
        Arrivals::start(&self.nodes[HUT].host)
    }
}

/// Where forged packets go.
const FORGED_PORT: u16 = 7777;

/// A socket on which nothing should arrive.
struct Arrivals(Socket);

impl Arrivals {
    fn start(host: &Namespace) -> anyhow::Result<Self> {
        let socket = host.enter(|| -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            let any = std::net::SocketAddr::from(([0, 0, 0, 0], FORGED_PORT));
            socket.bind(&SockAddr::from(any))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })??;
        Ok(Self(socket))
    }

    /// How much has arrived.
    fn stop(self) -> anyhow::Result<u64> {
        let mut arrived = 0;
        let mut buffer = [0; 64];
        let socket = std::net::UdpSocket::from(std::os::fd::OwnedFd::from(self.0));
        loop {
            match socket.recv(&mut buffer) {
                Ok(_) => arrived += 1,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(arrived),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn stopped(streams: Vec<Stream>) -> anyhow::Result<Streamed> {
    let mut sum = Streamed::default();
    for stream in streams {
        sum = sum.and(&stream.stop()?);
    }
    Ok(sum)
}

fn none_lost(streamed: &Streamed) -> anyhow::Result<()> {
    let (lost, sent) = (streamed.lost(), streamed.sent);
    ensure!(lost == 0, "{lost} of {sent} pings were lost");
    Ok(())
}

fn nothing_leaks(seen: &Seen) -> anyhow::Result<()> {
    if seen.leaks() > 0 {
        bail!(
            "something of the mesh left in the clear: {} frames with the marker; {:?}",
            seen.marked,
            seen.clear
        );
    }
    Ok(())
}

fn mesh_prefixes() -> Vec<IpNet> {
    MESH.map(|prefix| prefix.parse().expect("the demo's prefixes are prefixes"))
        .to_vec()
}
