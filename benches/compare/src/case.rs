//! What is measured of a device, and how.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_benches::ends::{callers, forgeries};
use warren_benches::nodes::Node;
use warren_benches::tables::{Random, filled, v4, v6, within};
use warren_config::{PeerChange, PrivateKey};

use crate::bed::{Bed, Side};
use crate::clock::{Pace, Stopwatch, Ticks};
use crate::device::{Pair, Program};
use crate::load::{self, Datagrams, Load, RoundTrip};
use crate::report::{LIBRARY, NULL, WARREN};
use crate::shake::{self, Callers};

/// One way to look at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// Every byte of a pseudo-random stream arrives as it was sent; nothing is timed.
    Integrity,
    /// Bulk TCP, one stream.
    Tcp1,
    /// Bulk TCP, four streams.
    Tcp4,
    /// Bulk TCP, one stream, whose congestion control is BBR, where the kernel has it.
    Bbr,
    /// Bulk TCP, one stream, segmentation offloads off on the link and on TUN.
    Plain,
    /// Bulk TCP, one stream, through VXLAN inside of the tunnel.
    Vxlan,
    /// 64-byte datagrams as fast as they can be sent.
    Udp64,
    /// 1372-byte datagrams as fast as they can be sent.
    Udp1372,
    /// 64-byte datagrams, 64 in each segmented send of the application.
    Segment64,
    /// 1372-byte datagrams, 46 in each segmented send of the application.
    Segment1372,
    /// Bulk TCP, one stream, while 50,000 forged handshake messages a second arrive.
    Forged,
    /// The rate of four streams, and numbered datagrams beside them, by pairs of devices with 1, 2 and 4 workers.
    Workers,
    /// Initiations of many peers, answered.
    Handshakes,
    /// Initiations with a wrong first mac, shed by Warren's engine in memory on one core.
    Shed,
    /// Random addresses looked up among a million prefixes, by Warren's table in memory.
    Lookups,
    /// Echoes through an idle tunnel.
    Ping,
    /// Echoes beside one bulk stream.
    PingLoaded,
    /// Peers configured and shown through the configuration socket, and the memory that they take.
    Peers,
    /// Peak of resident memory of the larger of both processes, after everything else of the round.
    Memory,
}

impl Case {
    pub(crate) const ALL: [Case; 19] = [
        Case::Integrity,
        Case::Tcp1,
        Case::Tcp4,
        Case::Bbr,
        Case::Plain,
        Case::Vxlan,
        Case::Udp64,
        Case::Udp1372,
        Case::Segment64,
        Case::Segment1372,
        Case::Forged,
        Case::Workers,
        Case::Handshakes,
        Case::Shed,
        Case::Lookups,
        Case::Ping,
        Case::PingLoaded,
        Case::Peers,
        Case::Memory,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Case::Integrity => "Integrity of what is carried",
            Case::Tcp1 => "Bulk TCP, 1 stream",
            Case::Tcp4 => "Bulk TCP, 4 streams",
            Case::Bbr => "Bulk TCP, 1 stream, congestion control BBR",
            Case::Plain => "Bulk TCP, 1 stream, segmentation offloads off on link and TUN",
            Case::Vxlan => "Bulk TCP, 1 stream, VXLAN inside of the tunnel",
            Case::Udp64 => "UDP flood, 64 bytes",
            Case::Udp1372 => "UDP flood, 1372 bytes",
            Case::Segment64 => "UDP flood, 64 bytes, application uses UDP_SEGMENT and UDP_GRO",
            Case::Segment1372 => "UDP flood, 1372 bytes, application uses UDP_SEGMENT and UDP_GRO",
            Case::Forged => "Bulk TCP, 1 stream, under 50,000 forged handshake messages a second",
            Case::Workers => {
                "Four streams, and datagrams out of order beside them, by the number of workers"
            }
            Case::Handshakes => "Handshakes answered",
            Case::Shed => "Forged handshake messages shed by one core, engine in memory",
            Case::Lookups => "Allowed-ips of a million prefixes, random lookups in memory",
            Case::Ping => "Ping, idle",
            Case::PingLoaded => "Ping beside one bulk TCP stream",
            Case::Peers => "Idle peers configured and shown by UAPI",
            Case::Memory => "Peak memory",
        }
    }
}

/// What a case found, by the name of the figure.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// Whether a figure is good when it is large; the names are all that there are.
pub(crate) fn larger_is_better(figure: &str) -> bool {
    figure.starts_with(GBIT) || matches!(figure, KPPS | KEPT | CPU_SECOND | SECOND | SHED)
}

/// Addresses looked up at once, as a worker does with what it read.
const BATCH: usize = 64;

const GBIT: &str = "Gb/s";
const KPPS: &str = "kpps";
const KEPT: &str = "of undisturbed";
const SYSTEM_BYTE: &str = "system ns/B";
const DAEMONS_BYTE: &str = "daemons ns/B";
const SYSTEM_PACKET: &str = "system ns/packet";
const REORDERED: &str = "reordered";
const CPU_SECOND: &str = "a CPU second";
const SECOND: &str = "a second";
const SHED: &str = "M a second";

/// What all cases share.
pub(crate) struct Setting<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) pace: &'a Pace,
    pub(crate) seconds: f64,
    /// TCP's congestion control.
    pub(crate) congestion: &'a str,
    pub(crate) peers: usize,
    pub(crate) smoke: bool,
    /// Made when they are first needed.
    pub(crate) callers: OnceCell<Callers>,
}

/// What a case is run on: a pair of devices, or the bare wire.
pub(crate) struct Subject<'a> {
    pub(crate) program: Option<&'a Program>,
    pub(crate) pair: Option<&'a Pair>,
}

impl Subject<'_> {
    fn address(&self, side: Side) -> std::net::Ipv4Addr {
        self.pair
            .map_or_else(|| side.outer(), |pair| side.inner(pair.number))
    }

    fn interface(&self, side: Side) -> String {
        self.pair
            .map_or_else(|| "wire".to_owned(), |pair| pair.interface(side))
    }

    fn cpu_seconds(&self) -> Result<f64> {
        self.pair.map_or(Ok(0.0), Pair::cpu_seconds)
    }
}

impl Setting<'_> {
    /// Runs a case; `None` where it has no meaning for the bare wire.
    pub(crate) fn run(&self, case: Case, subject: &Subject<'_>) -> Result<Option<Figures>> {
        let to = subject.address(Side::B);
        let name = subject.program.map(|program| program.name.as_str());
        let has_meaning = match name {
            // Without a cipher there is only the way of packets to look at.
            Some(NULL) => matches!(
                case,
                Case::Integrity | Case::Tcp1 | Case::Tcp4 | Case::Bbr | Case::Udp64 | Case::Udp1372
            ),
            // Where the cipher is what takes most of the time.
            Some(LIBRARY) => matches!(
                case,
                Case::Integrity | Case::Tcp1 | Case::Tcp4 | Case::Segment64 | Case::Segment1372
            ),
            _ => true,
        };
        if !has_meaning {
            return Ok(None);
        }
        let figures = match case {
            Case::Integrity => {
                let mebibytes = if self.smoke { 4 } else { 64 };
                load::carry(self.bed, to, mebibytes << 20)?;
                Figures::from([("MiB intact", mebibytes as f64)])
            }
            Case::Tcp1 => self.streams(subject, to, 1)?,
            Case::Tcp4 => self.streams(subject, to, 4)?,
            Case::Bbr => match self.with_bbr(subject)? {
                Some(figures) => figures,
                None => return Ok(None),
            },
            Case::Plain => self.without_offloads(subject)?,
            Case::Vxlan => self.overlay(subject)?,
            Case::Udp64 => self.flood(
                subject,
                Datagrams {
                    bytes: 64,
                    segments: 1,
                },
            )?,
            Case::Udp1372 => self.flood(
                subject,
                Datagrams {
                    bytes: 1372,
                    segments: 1,
                },
            )?,
            Case::Segment64 => self.flood(
                subject,
                Datagrams {
                    bytes: 64,
                    segments: 64,
                },
            )?,
            Case::Segment1372 => self.flood(
                subject,
                Datagrams {
                    bytes: 1372,
                    segments: 46,
                },
            )?,
            Case::Forged => match subject.pair {
                Some(pair) => self.forged(subject, pair)?,
                None => return Ok(None),
            },
            Case::Workers => match subject.program {
                Some(program) => self.workers(program)?,
                None => return Ok(None),
            },
            Case::Handshakes => match subject.program {
                Some(program) => self.handshakes(program)?,
                None => return Ok(None),
            },
            Case::Shed if name == Some(WARREN) => self.shed(),
            Case::Lookups if name == Some(WARREN) => self.lookups(),
            Case::Shed | Case::Lookups => return Ok(None),
            // Of all subjects in turn, by `ping` and `ping_loaded`.
            Case::Ping | Case::PingLoaded => return Ok(None),
            Case::Peers => match subject.program {
                Some(program) => self.idle_peers(program)?,
                None => return Ok(None),
            },
            Case::Memory => match subject.pair {
                Some(pair) => memory(pair)?,
                None => return Ok(None),
            },
        };
        Ok(Some(figures))
    }

    fn warm_up(&self) -> Duration {
        Duration::from_millis(if self.smoke { 100 } else { 400 })
    }

    fn streams(
        &self,
        subject: &Subject<'_>,
        to: std::net::Ipv4Addr,
        count: usize,
    ) -> Result<Figures> {
        let load = load::streams(self.bed, to, count)?;
        let window = self.window(subject, &load)?;
        ensure!(window.bytes > 0.0, "nothing arrived");
        Ok(Figures::from([
            (GBIT, window.bytes * 8.0 / window.seconds / 1e9),
            (SYSTEM_BYTE, window.busy * 1e9 / window.bytes),
            (DAEMONS_BYTE, window.daemons * 1e9 / window.bytes),
        ]))
    }

    /// `None` where the kernel has no BBR, or keeps it from namespaces.
    fn with_bbr(&self, subject: &Subject<'_>) -> Result<Option<Figures>> {
        if self.bed.set_congestion("bbr").is_err() {
            return Ok(None);
        }
        let figures = self.streams(subject, subject.address(Side::B), 1);
        self.bed.set_congestion(self.congestion)?;
        figures.map(Some)
    }

    fn without_offloads(&self, subject: &Subject<'_>) -> Result<Figures> {
        let set = |on| -> Result<()> {
            for side in Side::BOTH {
                self.bed.set_offloads(side, "wire", on)?;
                self.bed.set_offloads(side, &subject.interface(side), on)?;
            }
            Ok(())
        };
        set(false)?;
        let figures = self.streams(subject, subject.address(Side::B), 1);
        set(true)?;
        figures
    }

    fn overlay(&self, subject: &Subject<'_>) -> Result<Figures> {
        let number = subject.pair.map_or(255, |pair| pair.number);
        for side in Side::BOTH {
            let peer = if side == Side::A { Side::B } else { Side::A };
            let (local, remote) = (subject.address(side), subject.address(peer));
            let underlay = subject.interface(side);
            self.bed.ip(
                side,
                &format!("link add overlay type vxlan id 7 dstport 4789 local {local} remote {remote} dev {underlay}"),
            )?;
            self.bed.ip(
                side,
                &format!("address add {}/24 dev overlay", side.overlay(number)),
            )?;
            self.bed.ip(side, "link set overlay up")?;
        }
        let figures = self.streams(subject, Side::B.overlay(number), 1);
        for side in Side::BOTH {
            self.bed.ip(side, "link delete overlay")?;
        }
        figures
    }

    fn flood(&self, subject: &Subject<'_>, shape: Datagrams) -> Result<Figures> {
        let load = load::flood(self.bed, subject.address(Side::B), shape)?;
        let window = self.window(subject, &load)?;
        ensure!(window.datagrams > 0.0, "nothing arrived");
        Ok(Figures::from([
            (KPPS, window.datagrams / window.seconds / 1e3),
            (SYSTEM_PACKET, window.busy * 1e9 / window.datagrams),
            (REORDERED, load.arrived.reordered.load(Relaxed) as f64),
        ]))
    }

    /// The rate under a flood, and its share of the rate just before.
    fn forged(&self, subject: &Subject<'_>, pair: &Pair) -> Result<Figures> {
        let to = subject.address(Side::B);
        let undisturbed = self.streams(subject, to, 1)?[GBIT];
        let target = (Side::B.outer(), pair.port(Side::B));
        let _forgeries = load::forgeries(self.bed, target.into(), 50_000)?;
        let flooded = self.streams(subject, to, 1)?[GBIT];
        Ok(Figures::from([
            (GBIT, flooded),
            (KEPT, flooded / undisturbed),
        ]))
    }

    /// The rate of four streams and what is out of order beside them, by pairs of their own, one after the other, for the
    /// numbers of workers that the program can be told.
    fn workers(&self, program: &Program) -> Result<Figures> {
        let mut figures = Figures::new();
        for (number, reordered, rate) in [
            (1, "by 1", "Gb/s by 1"),
            (2, "by 2", "Gb/s by 2"),
            (4, "by 4", "Gb/s by 4"),
        ] {
            let Some(program) = program.with_workers(number) else {
                break;
            };
            let pair = Pair::start(&program, 100, self.bed, self.pace)?;
            let to = Side::B.inner(pair.number);
            let streams = load::streams(self.bed, to, 4)?;
            self.pace.rest(self.warm_up())?;
            let bytes = || streams.arrived.bytes.load(Relaxed) as f64;
            let (watch, before) = (Stopwatch::start(), bytes());
            self.pace
                .rest(Duration::from_secs_f64(self.seconds / 2.0))?;
            let gigabits = (bytes() - before) * 8e-9 / watch.elapsed().as_secs_f64();
            figures.insert(rate, gigabits);
            let shape = Datagrams {
                bytes: 1372,
                segments: 1,
            };
            let flood = load::flood(self.bed, to, shape)?;
            self.pace
                .rest(self.warm_up() + Duration::from_secs_f64(self.seconds / 2.0))?;
            ensure!(
                flood.arrived.datagrams.load(Relaxed) > 0,
                "nothing arrived by {number} workers"
            );
            intact(&streams)?;
            intact(&flood)?;
            figures.insert(reordered, flood.arrived.reordered.load(Relaxed) as f64);
        }
        Ok(figures)
    }

    /// A fresh process answers what many peers send it.
    fn handshakes(&self, program: &Program) -> Result<Figures> {
        const PORT: u16 = 53_999;
        let callers = self.callers.get_or_init(Callers::new);
        let interface = format!("wbc{}h", std::process::id() % 100_000);
        let process = program.start(self.bed, Side::B, &interface, self.pace)?;
        let private = PrivateKey::from_bytes(shake::CALLED).to_hex();
        let mut request = format!("set=1\nprivate_key={private}\nlisten_port={PORT}\n");
        for (number, key) in callers.keys.iter().enumerate() {
            let [high, low] = (number as u16).to_be_bytes();
            let key = key.to_hex();
            writeln!(
                request,
                "public_key={key}\nallowed_ip=10.130.{high}.{low}/32"
            )?;
        }
        request.push('\n');
        process.ask(&request).context("configuring")?;
        self.bed
            .ip(Side::B, &format!("link set {interface} mtu 1420 up"))?;
        shake::route(self.bed)?;
        let sockets = Callers::sockets(self.bed, (Side::B.outer(), PORT).into())?;
        self.pace.rest(self.warm_up())?;
        let (watch, before) = (Stopwatch::start(), process.run_seconds()?);
        let patience = Duration::from_secs_f64(self.seconds);
        let answers = callers.call(&sockets, patience, self.pace)?;
        let (seconds, after) = (watch.elapsed().as_secs_f64(), process.run_seconds()?);
        callers.check(&sockets)?;
        let count = answers.count as f64;
        Ok(Figures::from([
            (CPU_SECOND, count / (after - before)),
            (SECOND, count / (seconds - answers.paused)),
        ]))
    }

    fn shed(&self) -> Figures {
        let private = PrivateKey::from_bytes([2; 32]);
        let mut node = Node::new(1, &private);
        let (keys, mut callers) = callers(200, private.public());
        node.add_peers(keys.into_iter().map(PeerChange::new).collect());
        let mut batch = forgeries(&mut callers);
        let (watch, mut shed) = (Stopwatch::start(), 0);
        while watch.elapsed().as_secs_f64() < self.seconds / 3.0 {
            node.receive(&mut batch);
            shed += callers.len();
        }
        let seconds = watch.elapsed().as_secs_f64();
        Figures::from([(SHED, shed as f64 / seconds / 1e6)])
    }

    fn lookups(&self) -> Figures {
        let count = if self.smoke { 10_000 } else { 1_000_000 };
        let mut figures = Figures::new();
        for (name, prefix) in [("v4 ns", v4 as fn(&mut Random) -> _), ("v6 ns", v6)] {
            let mut random = Random::new();
            let prefixes: Vec<_> = (0..count).map(|_| prefix(&mut random)).collect();
            let mut table = filled(&prefixes);
            table.come_to_rest();
            // More than any cache holds.
            let addresses: Vec<_> = (0..count)
                .map(|_| within(prefixes[random.below(count)], &mut random))
                .collect();
            let mut found = Vec::with_capacity(BATCH);
            let watch = Stopwatch::start();
            for batch in addresses.chunks(BATCH) {
                table.lookup_all(black_box(batch), &mut found);
                black_box(&found);
            }
            let took = watch.elapsed().as_secs_f64();
            figures.insert(name, took * 1e9 / count as f64);
        }
        figures
    }

    /// What arrives, and what it costs, between two looks at the counters of a load that has warmed up.
    fn window(&self, subject: &Subject<'_>, load: &Load) -> Result<Window> {
        self.pace.rest(self.warm_up())?;
        let look = || -> Result<Window> {
            Ok(Window {
                seconds: 0.0,
                bytes: load.arrived.bytes.load(Relaxed) as f64,
                datagrams: load.arrived.datagrams.load(Relaxed) as f64,
                busy: Ticks::now()?.busy_seconds(),
                daemons: subject.cpu_seconds()?,
            })
        };
        let (watch, before) = (Stopwatch::start(), look()?);
        self.pace.rest(Duration::from_secs_f64(self.seconds))?;
        let (seconds, after) = (watch.elapsed().as_secs_f64(), look()?);
        intact(load)?;
        Ok(Window {
            seconds,
            bytes: after.bytes - before.bytes,
            datagrams: after.datagrams - before.datagrams,
            busy: after.busy - before.busy,
            daemons: after.daemons - before.daemons,
        })
    }

    /// Echoes to all subjects in turn. The p99 is made by few of them, and what the machine does
    /// besides for a moment would be held against whichever it falls on.
    pub(crate) fn ping(&self, subjects: &[&Subject<'_>]) -> Result<Vec<Figures>> {
        let to: Vec<_> = (subjects.iter())
            .map(|subject| subject.address(Side::B))
            .collect();
        let times = load::echoes(
            self.bed,
            &to,
            self.echoes(),
            Duration::from_millis(2),
            self.pace,
        )?;
        Ok(times.iter().map(|times| figures_of(times)).collect())
    }

    /// Echoes beside one stream to all subjects in turn, some to each and then some more, for the same reason.
    pub(crate) fn ping_loaded(&self, subjects: &[&Subject<'_>]) -> Result<Vec<Figures>> {
        const TURNS: usize = 8;
        let mut times = vec![Vec::new(); subjects.len()];
        for turn in 0..TURNS {
            for step in 0..subjects.len() {
                let at = (turn + step) % subjects.len();
                let to = subjects[at].address(Side::B);
                let load = load::streams(self.bed, to, 1)?;
                self.pace.rest(self.warm_up())?;
                let count = self.echoes().div_ceil(TURNS);
                let pause = Duration::from_millis(4);
                times[at].extend(load::echoes(self.bed, &[to], count, pause, self.pace)?.remove(0));
                ensure!(
                    load.arrived.bytes.load(Relaxed) > 0,
                    "nothing was carried beside the echoes"
                );
            }
        }
        Ok(times.iter().map(|times| figures_of(times)).collect())
    }

    /// Of fewer than a thousand the p99 is what happened to one or two.
    fn echoes(&self) -> usize {
        if self.smoke { 20 } else { 1000 }
    }

    /// A fresh process gets many peers in one request and shows them in another.
    fn idle_peers(&self, program: &Program) -> Result<Figures> {
        let interface = format!("wbc{}p", std::process::id() % 100_000);
        let process = program.start(self.bed, Side::A, &interface, self.pace)?;
        let mut request = String::from("set=1\n");
        for number in 0..self.peers {
            let mut key = [0; 32];
            getrandom::fill(&mut key)?;
            request.push_str("public_key=");
            for byte in key {
                write!(request, "{byte:02x}")?;
            }
            let [_, high, middle, low] = (number as u32).to_be_bytes();
            write!(
                request,
                "\nendpoint=10.200.0.2:51820\nreplace_allowed_ips=true\nallowed_ip=10.{}.{middle}.{low}/32\n",
                128 + high
            )?;
        }
        request.push('\n');
        let private = format!("set=1\nprivate_key={}\n\n", "48".repeat(32));
        process.ask(&private)?;
        let before = process.memory_kib("VmRSS")?;
        let watch = Stopwatch::start();
        process.ask(&request).context("configuring")?;
        let configured = watch.elapsed();
        let after = process.memory_kib("VmRSS")?;
        let watch = Stopwatch::start();
        let answer = process.ask("get=1\n\n").context("showing")?;
        let shown = watch.elapsed();
        let lines = answer.lines().count();
        ensure!(
            lines > 3 * self.peers,
            "{lines} lines cannot show {} peers",
            self.peers
        );
        Ok(Figures::from([
            ("configure ms", configured.as_secs_f64() * 1e3),
            ("show ms", shown.as_secs_f64() * 1e3),
            ("KiB/peer", (after - before) / self.peers as f64),
        ]))
    }
}

fn memory(pair: &Pair) -> Result<Figures> {
    let [first, second] = &pair.processes;
    let peak = first.memory_kib("VmHWM")?.max(second.memory_kib("VmHWM")?);
    Ok(Figures::from([("peak MiB", peak / 1024.0)]))
}

struct Window {
    seconds: f64,
    bytes: f64,
    datagrams: f64,
    busy: f64,
    daemons: f64,
}

/// Fails if a piece of what arrived is not what was sent.
fn intact(load: &Load) -> Result<()> {
    let damaged = load.arrived.damaged.load(Relaxed);
    ensure!(damaged == 0, "{damaged} pieces arrived damaged");
    Ok(())
}

fn figures_of(echoes: &[RoundTrip]) -> Figures {
    let percentile = |share: f64, part: fn(&RoundTrip) -> Duration| {
        let mut times: Vec<Duration> = echoes.iter().map(part).collect();
        times.sort();
        times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e6
    };
    Figures::from([
        ("p50 us", percentile(0.5, |echo| echo.network)),
        ("p99 us", percentile(0.99, |echo| echo.network)),
        (
            "p99 us to the program",
            percentile(0.99, |echo| echo.program),
        ),
    ])
}
