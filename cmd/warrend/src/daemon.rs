//! The control loop: events in, one function that makes everything true.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use warren_config::{HostConfig, PublicKey, WallTime};
use warren_control::{Limits, Listener, Server, status as socket};
use warren_engine::End;
use warren_mesh::{Host as EndpointHost, Plan, RESOLVE_AGAIN_SECS, Resolved};
use warren_netlink::{Ahead, Host, LinkState, Report, Surroundings};
use warren_state::StateDir;

use crate::args::Run;
use crate::beacon::{Beacon, Heard};
use crate::mesh_file::Mesh;
use crate::notify;
use crate::resolver::{Answer, Resolver};
use crate::status::{Board, fence_in_words};
use crate::tunnel::Tunnel;
use crate::watch::Watch;

/// How long to wait before trying again what the host refused.
const RETRY: Duration = Duration::from_secs(2);
/// How long to wait at the start until the interface is seen to be up.
const SETTLE: Duration = Duration::from_millis(50);
/// How often to look whether a name should be asked for again, and at what nobody tells us of.
const TICK: Duration = Duration::from_secs(RESOLVE_AGAIN_SECS);

/// Runs until a signal ends it.
pub(crate) fn run(args: Run) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("there is no runtime")?;
    runtime.block_on(async { Daemon::start(args)?.run().await })
}

struct Daemon {
    args: Run,
    state: StateDir,
    host: Host,
    /// What is in force.
    mesh: Mesh,
    /// What is wrong with a newer file, which is therefore not in force.
    refused: Vec<String>,
    /// What the host refused when it was last tried.
    failures: Vec<String>,
    resolved: Resolved,
    resolver: Resolver,
    tunnel: Option<Tunnel>,
    /// What the host was last made to look like.
    made: Option<HostConfig>,
    beacon: Beacon,
    /// Bytes to and from each peer at the last tick.
    traffic: BTreeMap<PublicKey, (u64, u64)>,
    /// The files as they looked when they were last read, and at the last tick.
    looks: (Looks, Looks),
    /// The rules of others that take packets past the fence's: now, and those told of since the last tick.
    ahead: Vec<Ahead>,
    ahead_told: Vec<Ahead>,
    /// Whether whoever started this daemon was told that it is ready.
    is_ready: bool,
    /// The nodes that said at the last tick to run another file.
    strangers: BTreeSet<String>,
    board: Arc<Board>,
    watch: Watch,
    signals: Signals,
    /// What answers `warren status`, and for which interface.
    server: (String, Server),
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// How the mesh file looks, and the files of all keys that it needs.
type Looks = BTreeMap<PathBuf, Option<Look>>;

/// What tells one state of a file from another; a change of its rights is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

enum Event {
    End,
    Reload,
    Changed,
    Answered(Answer),
    Host,
    Tunnel(End),
    Heard(Heard),
    Tick,
    Retry,
}

impl Daemon {
    /// Claims what is this daemon's, takes a mesh file, and makes it true for the first time.
    fn start(args: Run) -> anyhow::Result<Self> {
        let signals = Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let state = StateDir::new(&args.state);
        state.create()?;
        let mut watch = Watch::new().context("this host lets watch no file")?;
        let mut host = Host::new(state.path())?;

        let resolved = Resolved::new();
        let (looks, considered) = consider(&args, &state, &mut host, &resolved, &mut watch);
        let (mesh, refused) = match considered {
            Ok(mesh) => (mesh, Vec::new()),
            Err(sentences) => match Mesh::last_good(&args.node, &state) {
                Some(mesh) => {
                    tracing::error!("the mesh file is refused; the last good one is in force");
                    (mesh, sentences)
                }
                None => {
                    fence_as_it_was(&state);
                    bail!("{}", sentences.join("\n"));
                }
            },
        };
        for sentence in &refused {
            tracing::error!("{sentence}");
        }
        let interface = mesh.file.directory.mesh.interface.clone();
        let board = Arc::new(Board::default());
        let server = serve(&interface, &board)?;

        let mut daemon = Self {
            state,
            host,
            mesh,
            refused,
            failures: Vec::new(),
            resolved,
            resolver: Resolver::new(),
            tunnel: None,
            made: None,
            beacon: Beacon::default(),
            traffic: BTreeMap::new(),
            looks: (looks.clone(), looks),
            ahead: Vec::new(),
            ahead_told: Vec::new(),
            is_ready: false,
            strangers: BTreeSet::new(),
            board,
            watch,
            signals,
            server: (interface, server),
            args,
        };
        daemon.took_mesh();
        daemon.realise();
        if daemon.tunnel.is_none() {
            fence_as_it_was(&daemon.state);
            bail!("{}", daemon.failures.join("\n"));
        }
        Ok(daemon)
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let mut retry_at = None;
        loop {
            let wait = match (self.failures.is_empty(), self.is_ready) {
                (true, true) => None,
                (true, false) => Some(SETTLE),
                (false, _) => Some(RETRY),
            };
            // Other events do not put it off.
            retry_at = wait.map(|wait| retry_at.unwrap_or_else(|| Instant::now() + wait));
            let event = tokio::select! {
                Some(()) = self.signals.terminate.recv() => Event::End,
                Some(()) = self.signals.interrupt.recv() => Event::End,
                Some(()) = self.signals.hangup.recv() => Event::Reload,
                () = self.watch.changed() => Event::Changed,
                answer = self.resolver.answered() => Event::Answered(answer),
                changed = self.host.changed() => {
                    changed?;
                    Event::Host
                }
                end = ended(self.tunnel.as_mut()) => Event::Tunnel(end),
                heard = self.beacon.heard() => Event::Heard(heard),
                _ = tick.tick() => Event::Tick,
                () = due(retry_at) => {
                    retry_at = None;
                    Event::Retry
                }
            };
            match event {
                Event::End => break,
                Event::Reload => self.reload(),
                Event::Changed => {
                    if Look::again(&self.looks.0) != self.looks.0 {
                        self.reload();
                    }
                }
                Event::Answered(answer) => self.answered(answer),
                Event::Host | Event::Retry => self.realise(),
                Event::Tunnel(end) => self.tunnel_ended(end),
                Event::Heard(heard) => self.heard(&heard),
                Event::Tick => self.tick(),
            }
        }
        notify::stopping();
        tracing::info!("ending; the fence stands, `warrend uninstall` removes it");
        Ok(())
    }

    /// Reads the mesh file and the keys again: all of it comes into force, or nothing.
    fn reload(&mut self) {
        let (looks, considered) = consider(
            &self.args,
            &self.state,
            &mut self.host,
            &self.resolved,
            &mut self.watch,
        );
        self.looks = (looks.clone(), looks);
        match considered {
            Ok(mesh) if mesh.is_same(&self.mesh) && self.refused.is_empty() => {}
            Ok(mesh) => {
                self.refused.clear();
                self.mesh = mesh;
                self.took_mesh();
            }
            Err(sentences) => {
                tracing::error!("the mesh file is refused; the old one stays in force");
                for sentence in &sentences {
                    tracing::error!("{sentence}");
                }
                self.refused = sentences;
            }
        }
        self.realise();
    }

    fn took_mesh(&mut self) {
        self.mesh.keep(&self.state);
        let directory = &self.mesh.file.directory;
        let nodes = directory.nodes.len();
        let digest = &self.mesh.file.digest[..16];
        tracing::info!(nodes, digest, "the mesh file is in force");
        for warning in &self.mesh.file.warnings {
            tracing::warn!("{warning}");
        }
        let names = directory.host_names(&self.args.node);
        self.resolved.retain(|name, _| names.contains(name));
        for name in names {
            if !self.resolved.contains_key(name) {
                self.resolver.ask(name);
            }
        }
    }

    /// Makes the tunnel and the host what they should be. Whatever happened leads here, and where
    /// nothing differs nothing is changed.
    fn realise(&mut self) {
        let planned = plan(&self.args, &self.mesh, &mut self.host, &self.resolved);
        let plan = match planned {
            Ok(plan) => plan,
            Err(sentence) => {
                self.failures = vec![sentence];
                self.board.facts().problems.clone_from(&self.failures);
                return;
            }
        };
        let mut failures = Vec::new();
        let interface = &plan.host.interface;
        if (self.tunnel.as_ref()).is_some_and(|tunnel| tunnel.interface() != interface) {
            self.close_tunnel();
        }

        if self.server.0 != *interface {
            match serve(interface, &self.board) {
                Ok(server) => self.server = (interface.clone(), server),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }

        // 1. The fence comes first, and routes go before the peers behind them.
        let first = self.without_new_routes(&plan.host);
        if (first != plan.host || self.tunnel.is_none())
            && let Err(error) = self.host.converge(&first)
        {
            failures.push(error.to_string());
        }
        // 2. The tunnel. While the fence could not even be tried nothing is carried.
        if failures.is_empty()
            && let Err(error) = self.tunnel_as(&plan)
        {
            failures.push(format!("{error:#}"));
        }
        // 3. The rest: the interface, its addresses, routes to peers that are there by now.
        match self.host.converge(&plan.host) {
            Ok(report) => {
                failures.extend(complaints(&report, interface));
                self.made = Some(plan.host.clone());
                let mut facts = self.board.facts();
                facts.fence = fence_in_words(&report);
                facts.nftables = report.table_stands;
                facts.fence_drops = report.drops;
                drop(facts);
                self.came_ahead(report.ahead);
            }
            Err(error) => failures.push(error.to_string()),
        }
        // 4. The sockets, which the interface has as soon as it is up.
        if let Some(tunnel) = &self.tunnel {
            match tunnel.unbound() {
                Some(why) => failures.push(why),
                None if !self.is_ready && tunnel.listens(&plan) => self.ready(),
                None => {}
            }
        }
        self.beacon.listen(&plan);
        self.post(plan, failures);
    }

    /// Tells whoever started this daemon that it does what it is there for.
    fn ready(&mut self) {
        self.is_ready = true;
        tracing::info!("ready");
        notify::ready();
    }

    /// Says in the log what rules take packets past the fence's, each when it is new. One that comes and
    /// goes is told of once a tick.
    fn came_ahead(&mut self, ahead: Vec<Ahead>) {
        for rule in &ahead {
            if !self.ahead_told.contains(rule) {
                tracing::warn!("{rule} comes before the fence's and may take packets past them");
                self.ahead_told.push(rule.clone());
            }
        }
        self.ahead = ahead;
    }

    fn tunnel_as(&mut self, plan: &Plan) -> anyhow::Result<()> {
        if self.tunnel.is_none() {
            let workers =
                (self.args.workers).map_or_else(warren_engine::default_workers, usize::from);
            self.tunnel = Some(Tunnel::open(plan, workers, &self.state)?);
            self.traffic.clear();
        }
        match &self.tunnel {
            Some(tunnel) => tunnel.apply(plan),
            None => Ok(()),
        }
    }

    /// The host as it should be, less the routes that it does not have yet.
    fn without_new_routes(&self, host: &HostConfig) -> HostConfig {
        let mut first = host.clone();
        if let Some(made) = &self.made {
            let old: &BTreeSet<IpNet> = &made.routes;
            first.routes.retain(|route| old.contains(route));
        }
        first
    }

    /// Publishes what is in force, and says in the log what is new of what is wrong.
    fn post(&mut self, plan: Plan, failures: Vec<String>) {
        for failure in &failures {
            if !self.failures.contains(failure) {
                tracing::error!("{failure}");
            }
        }
        self.failures = failures;
        let of_plan = (plan.problems.iter()).map(|problem| self.mesh.sentence(problem));
        let problems: Vec<String> = (self.refused.iter().cloned())
            .chain(self.failures.iter().cloned())
            .chain(of_plan)
            .collect();
        notify::status(match problems.is_empty() {
            true => "all is as the mesh file says",
            false => &problems[0],
        });
        let mut facts = self.board.facts();
        facts.engine = self.tunnel.as_ref().map(|tunnel| tunnel.engine().clone());
        facts.digest.clone_from(&self.mesh.file.digest);
        facts.problems = problems;
        facts
            .digests
            .retain(|name, _| (plan.peers.keys()).any(|peer| peer.as_str() == name));
        facts.plan = Some(plan);
    }

    fn answered(&mut self, Answer { name, addresses }: Answer) {
        match addresses {
            Ok(addresses) => {
                let wanted = self.mesh.file.directory.host_names(&self.args.node);
                if !wanted.contains(&name) || self.resolved.get(&name) == Some(&addresses) {
                    return;
                }
                tracing::info!(%name, ?addresses, "resolved");
                self.resolved.insert(name, addresses);
                self.realise();
            }
            // What was known stays; the next tick asks again.
            Err(error) => tracing::debug!(%name, %error, "not resolved"),
        }
    }

    /// Lets go of every handle, so that the interface can be opened again.
    fn close_tunnel(&mut self) {
        self.tunnel = None;
        self.board.facts().engine = None;
    }

    fn tunnel_ended(&mut self, end: End) {
        self.close_tunnel();
        match end {
            End::Deleted => {
                tracing::warn!("the interface was deleted by someone else; it is made again");
                self.realise();
            }
            // Not at once, lest it goes round and round.
            End::Failed | End::Stopped => {
                self.failures = vec!["the tunnel came to its end; it is started again".to_owned()];
            }
        }
    }

    fn heard(&self, Heard { from, digest }: &Heard) {
        let nodes = &self.mesh.file.directory.nodes;
        let sender = (nodes.iter()).find(|(_, node)| node.addresses.contains(from));
        let Some((name, _)) = sender else { return };
        (self.board.facts().digests).insert(name.to_string(), digest.clone());
    }

    /// Says which nodes run another file, once for each: at a tick, since a node may say so as often
    /// as it likes.
    fn name_strangers(&mut self) {
        let digests = &self.board.facts().digests;
        let ours = &self.mesh.file.digest;
        let others = digests.iter().filter(|(_, digest)| *digest != ours);
        for (node, digest) in others.clone() {
            if !self.strangers.contains(node) {
                let digest = &digest[..16];
                tracing::warn!(node, digest, "another node runs another mesh file");
            }
        }
        self.strangers = others.map(|(node, _)| node.clone()).collect();
    }

    fn tick(&mut self) {
        // What no watch tells of is taken when it has looked the same twice.
        let looks = Look::again(&self.looks.0);
        let settled = looks == self.looks.1;
        let is_new = looks != self.looks.0;
        self.looks.1 = looks;
        if settled && is_new {
            self.reload();
        }
        self.watch.begin();
        self.ahead_told.clone_from(&self.ahead);
        self.name_strangers();
        let Some(tunnel) = &self.tunnel else { return };
        let device = tunnel.engine().status();
        let directory = &self.mesh.file.directory;
        let mut traffic = BTreeMap::new();
        let facts = self.board.facts();
        let Some(plan) = &facts.plan else { return };
        for (name, peer) in &plan.peers {
            let Some((key, status)) =
                (peer.public_key).and_then(|key| Some((key, device.peers.get(&key)?)))
            else {
                continue;
            };
            let (sent, received) = (status.tx_bytes, status.rx_bytes);
            let before = self.traffic.get(&key).copied().unwrap_or((sent, received));
            // Called for, and silent.
            let unanswered = sent > before.0 && received == before.1;
            traffic.insert(key, (sent, received));
            let endpoints = directory.nodes.get(name).map(|node| &node.endpoints);
            for endpoint in endpoints.into_iter().flatten() {
                if let EndpointHost::Name(host) = &endpoint.host
                    && (unanswered || !self.resolved.contains_key(host))
                {
                    self.resolver.ask(host);
                }
            }
        }
        self.traffic = traffic;
        self.beacon.listen(plan);
        let digest = &self.mesh.file.digest;
        self.beacon
            .tell(directory, plan, &device, digest, wall_time());
    }
}

/// Answers `warren status` for an interface.
fn serve(interface: &str, board: &Arc<Board>) -> anyhow::Result<Server> {
    let listener = Listener::claim(&socket::path(interface))?;
    socket::serve(listener, board.clone(), Limits::default())
        .context("no thread to tell the status with")
}

/// What was fenced before stays fenced, though nothing comes of this start.
fn fence_as_it_was(state: &StateDir) {
    if let Ok(changed) = warren_netlink::load_fence(state.path()) {
        tracing::info!(changed = changed.len(), "the fence stands as it was");
    }
}

/// A new file: right by itself, right for this host, and with all its keys; or sentences. From now on all
/// these files are watched; how they looked before they were read.
fn consider(
    args: &Run,
    state: &StateDir,
    host: &mut Host,
    resolved: &Resolved,
    watch: &mut Watch,
) -> (Looks, Result<Mesh, Vec<String>>) {
    let own = BTreeSet::from([args.mesh.clone(), state.private_key_path()]);
    let mut files = own.clone();
    loop {
        watch.files(&files);
        let looks: Looks = (files.iter())
            .map(|file| (file.clone(), Look::at(file)))
            .collect();
        let mut named = own.clone();
        let mesh = Mesh::read(&args.mesh, &args.node, state, &mut named);
        // A key that was not looked at before it was read could have changed in between.
        if named.is_subset(&files) {
            let mesh = mesh.and_then(|mesh| right_here(args, mesh, host, resolved));
            return (looks, mesh);
        }
        files.extend(named);
    }
}

/// The file, if it is right for this host.
fn right_here(
    args: &Run,
    mesh: Mesh,
    host: &mut Host,
    resolved: &Resolved,
) -> Result<Mesh, Vec<String>> {
    let plan = plan(args, &mesh, host, resolved).map_err(|sentence| vec![sentence])?;
    let errors = mesh.errors(&plan);
    match errors.is_empty() {
        true => Ok(mesh),
        false => Err(errors),
    }
}

/// What this node should be, given what is around it now.
fn plan(args: &Run, mesh: &Mesh, host: &mut Host, resolved: &Resolved) -> Result<Plan, String> {
    let alone = mesh.plan(&args.node, resolved, &Surroundings::default())?;
    let surroundings = host.surroundings(&alone.host).unwrap_or_else(|error| {
        tracing::warn!(%error, "what is around the tunnel is not known");
        Surroundings::default()
    });
    mesh.plan(&args.node, resolved, &surroundings)
}

/// What the host would not do, a sentence each.
fn complaints(report: &Report, interface: &str) -> Vec<String> {
    let mut complaints: Vec<String> = (report.refused.iter())
        .map(|(change, error)| format!("the kernel refused: {change}: {error}"))
        .collect();
    if report.contested {
        complaints.push(
            "another program keeps removing rules or tables of the fence; they are put back"
                .to_owned(),
        );
    }
    if report.link == LinkState::NotATun {
        complaints.push(format!("{interface} is there already and is no TUN"));
    }
    complaints
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

async fn ended(tunnel: Option<&mut Tunnel>) -> End {
    match tunnel {
        Some(tunnel) => tunnel.ended().await,
        None => pending().await,
    }
}

impl Look {
    fn at(file: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Self {
            inode: metadata.ino(),
            len: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// How the same files look now.
    fn again(looks: &Looks) -> Looks {
        let files = looks.keys();
        files.map(|file| (file.clone(), Self::at(file))).collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the outermost loop")]
fn wall_time() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WallTime(since.unwrap_or_default())
}
