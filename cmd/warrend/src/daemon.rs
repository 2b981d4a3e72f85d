//! The control loop: events in, one function that makes everything true.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use warren_aead::{Choice, Implementation};
use warren_config::HostConfig;
use warren_control::{Limits, Listener, Server, http, status as socket};
use warren_engine::End;
use warren_mesh::{Plan, RESOLVE_AGAIN_SECS, Step};
use warren_netlink::{Ahead, Host, LinkState, Report};
use warren_state::StateDir;

use crate::args::Run;
use crate::notify;
use crate::source::{self, Aim, Around, Source, Stepped, Todo};
use crate::status::{Board, fence_in_words, fences};
use crate::tunnel::Tunnel;

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
    runtime.block_on(async { Daemon::start(args).await?.run().await })
}

struct Daemon {
    args: Run,
    state: StateDir,
    host: Host,
    /// Where the mesh is described.
    source: Source,
    /// What the host refused when it was last tried.
    failures: Vec<String>,
    tunnel: Option<Tunnel>,
    /// What the host was last made to look like.
    made: Option<HostConfig>,
    /// The rules of others that take packets past the fence's: now, and those told of since the last tick.
    ahead: Vec<Ahead>,
    ahead_told: Vec<Ahead>,
    /// Whether whoever started this daemon was told that it is ready.
    is_ready: bool,
    /// Nothing was made true yet.
    is_starting: bool,
    board: Arc<Board>,
    signals: Signals,
    /// What answers `warren status`, and for which interface.
    server: Option<(String, Server)>,
    /// What answers who asks for metrics and how this daemon is.
    _http: Option<Server>,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

enum Event {
    End,
    Reload,
    Source(source::Event),
    Host,
    Tunnel(End),
    Tick,
    Retry,
}

impl Daemon {
    /// Claims what is this daemon's, learns of the mesh, and makes it true for the first time.
    async fn start(args: Run) -> anyhow::Result<Self> {
        let signals = Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let state = StateDir::new(&args.state);
        state.create()?;
        choose_aead(args.aead).inspect_err(|_| fence_as_it_was(&state))?;
        let mut host = Host::new(state.path())?;
        let source = Source::new(&args, &state, &mut host).await;
        let source = source.inspect_err(|_| fence_as_it_was(&state))?;
        let board = Arc::new(Board::new(args.node.clone()));
        let http = args.http.map(|address| http::serve(address, board.clone()));
        let http = http.transpose().inspect_err(|_| fence_as_it_was(&state))?;
        let mut daemon = Self {
            state,
            host,
            source,
            failures: Vec::new(),
            tunnel: None,
            made: None,
            ahead: Vec::new(),
            ahead_told: Vec::new(),
            is_ready: false,
            is_starting: true,
            board,
            signals,
            server: None,
            _http: http,
            args,
        };
        daemon.realise();
        if daemon.tunnel.is_none() && !daemon.failures.is_empty() {
            fence_as_it_was(&daemon.state);
            if !daemon.source.may_come_later() {
                bail!("{}", daemon.failures.join("\n"));
            }
        }
        daemon.is_starting = false;
        Ok(daemon)
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let ended = self.follow().await;
        notify::stopping();
        // However it ends.
        self.source.end();
        if ended.is_ok() {
            tracing::info!("ending; the fence stands, `warrend uninstall` removes it");
        }
        ended
    }

    /// Makes true what happens until a signal comes, or there is no word of the host any more.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let mut retry_at = None;
        loop {
            let wait = match (self.failures.is_empty(), self.is_ready) {
                (true, true) => None,
                (true, false) if self.tunnel.is_some() => Some(SETTLE),
                (true, false) => None,
                (false, _) => Some(RETRY),
            };
            // Other events do not put it off.
            retry_at = wait.map(|wait| retry_at.unwrap_or_else(|| Instant::now() + wait));
            let event = tokio::select! {
                Some(()) = self.signals.terminate.recv() => Event::End,
                Some(()) = self.signals.interrupt.recv() => Event::End,
                Some(()) = self.signals.hangup.recv() => Event::Reload,
                event = self.source.event() => Event::Source(event),
                changed = self.host.changed() => {
                    changed?;
                    Event::Host
                }
                end = ended(self.tunnel.as_mut()) => Event::Tunnel(end),
                _ = tick.tick() => Event::Tick,
                () = due(retry_at) => {
                    retry_at = None;
                    Event::Retry
                }
            };
            self.board.came_round();
            match event {
                Event::End => return Ok(()),
                Event::Reload => {
                    self.source.reload(&mut self.host);
                    self.realise();
                }
                Event::Source(event) => {
                    let (source, host, around) = self.source();
                    let todo = source.take(event, host, &around);
                    self.see_to(todo);
                }
                Event::Host => self.host_changed(),
                Event::Retry => self.realise(),
                Event::Tunnel(end) => self.tunnel_ended(end),
                Event::Tick => {
                    self.ahead_told.clone_from(&self.ahead);
                    let (source, host, around) = self.source();
                    let todo = source.tick(host, &around);
                    self.see_to(todo);
                }
            }
        }
    }

    /// The source, with what it may look at and what tells it about the host.
    fn source(&mut self) -> (&mut Source, &mut Host, Around<'_>) {
        let around = Around {
            tunnel: self.tunnel.as_ref(),
            is_true: self.failures.is_empty(),
            board: &self.board,
        };
        (&mut self.source, &mut self.host, around)
    }

    fn see_to(&mut self, todo: Todo) {
        match todo {
            Todo::Nothing => {}
            Todo::Step => self.step(),
            Todo::Plan => self.realise(),
            Todo::Check => self.check(),
        }
    }

    /// Makes true what has changed of single nodes, where all the rest was as it should be. It costs these; whatever
    /// is in its way leads to a look at everything.
    fn step(&mut self) {
        if !self.failures.is_empty() || !self.is_ready || self.tunnel.is_none() {
            return self.realise();
        }
        let mut facts = self.board.facts();
        let stepped = (facts.plan.as_mut()).and_then(|plan| self.source.step(plan));
        let plan = facts.plan.clone();
        drop(facts);
        let (Some(Stepped { step, is_news }), Some(plan)) = (stepped, plan) else {
            return self.realise();
        };
        if !self.make(&step) {
            return self.realise();
        }
        if is_news {
            self.tell(&plan, Vec::new());
            let (source, _, around) = self.source();
            source.stepped(&plan, &around);
        }
    }

    /// Carries out a step, if nothing is in its way. Nothing of what is fenced changes by one.
    fn make(&mut self, step: &Step) -> bool {
        let (Some(tunnel), Some(made)) = (&self.tunnel, &mut self.made) else {
            return false;
        };
        let none = BTreeSet::new();
        let mut adjust = |removed: &BTreeSet<IpNet>, added: &BTreeSet<IpNet>| {
            let refused = match removed.is_empty() && added.is_empty() {
                true => Some(Vec::new()),
                false => self.host.adjust(removed, added),
            };
            refused.is_some_and(|refused| refused.is_empty())
        };
        let is_made = adjust(&step.routes_removed, &none)
            && tunnel.change(&step.device).is_ok()
            && adjust(&none, &step.routes_added);
        if is_made {
            for route in &step.routes_removed {
                made.routes.remove(route);
            }
            made.routes.extend(&step.routes_added);
        }
        is_made
    }

    /// Plans anew though nothing is known to have changed, and says so if what was kept node by node differs.
    fn check(&mut self) {
        // What the API has told by now without having woken anybody is a step, and no fault of the last one.
        self.step();
        let before = self.board.facts().plan.clone();
        self.realise();
        let after = self.board.facts().plan.clone();
        if let (Some(before), Some(after)) = (before, after)
            && (before.device.peers != after.device.peers
                || before.host.routes != after.host.routes)
        {
            tracing::warn!(
                "what was kept node by node was not what all nodes come to; it is put right"
            );
        }
    }

    /// Something of the host has changed. What of it is the mesh's is put back; what is around the tunnel may
    /// make the plan another.
    fn host_changed(&mut self) {
        let facts = self.board.facts();
        let listens = match (&self.tunnel, &facts.plan) {
            (Some(tunnel), Some(plan)) => tunnel.listens(plan) && facts.unready.is_none(),
            _ => false,
        };
        drop(facts);
        let is_well = listens && self.failures.is_empty() && self.is_ready;
        let Some(made) = self.made.clone().filter(|_| is_well) else {
            return self.realise();
        };
        if !self.source.is_around(&mut self.host) {
            return self.realise();
        }
        match self.host.converge(&made) {
            Ok(report) if report.changed.is_empty() && !report.contested => self.converged(report),
            // Something was put back, and the tunnel may want to know.
            _ => self.realise(),
        }
    }

    /// Makes the tunnel and the host what they should be. Whatever happened leads here, but for what a
    /// step does, and where nothing differs nothing is changed.
    fn realise(&mut self) {
        let plan = match self.source.aim(&mut self.host) {
            Ok(Aim::Node(plan)) => Arc::new(*plan),
            Ok(Aim::Nothing) => return self.remove(),
            Err(sentence) => return self.wait(sentence),
        };
        let mut failures = Vec::new();
        let interface = &plan.host.interface;
        if (self.tunnel.as_ref()).is_some_and(|tunnel| tunnel.interface() != interface) {
            self.close_tunnel();
        }

        if (self.server.as_ref()).is_none_or(|(serves, _)| serves != interface) {
            match serve(interface, &self.board) {
                Ok(server) => self.server = Some((interface.clone(), server)),
                // Another daemon has it, and with it all that follows.
                Err(error) if self.server.is_none() => return self.idle(format!("{error:#}")),
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
                self.converged(report);
            }
            Err(error) => failures.push(error.to_string()),
        }
        // 4. The sockets, which the interface has as soon as it is up.
        let unbound = self.tunnel.as_ref().and_then(Tunnel::unbound);
        let is_bound = unbound.is_none();
        failures.extend(unbound);
        let listens = (self.tunnel.as_ref()).is_some_and(|tunnel| tunnel.listens(&plan));
        self.tell(&plan, failures);
        let mut against = (self.source.refused().iter())
            .chain(self.source.denied())
            .chain(&self.failures);
        let unready = match against.next() {
            None if listens => None,
            None => Some("the tunnel is not up yet".to_owned()),
            Some(why) => Some(why.clone()),
        };
        let mut facts = self.board.facts();
        (facts.plan, facts.unready) = (Some(plan.clone()), unready);
        drop(facts);
        if listens && is_bound && !self.is_ready {
            self.ready();
        }
        let (source, _, around) = self.source();
        source.realised(&plan, &around);
    }

    /// Posts how the host was found and left.
    fn converged(&mut self, report: Report) {
        let mut facts = self.board.facts();
        facts.fence = Some(fence_in_words(&report));
        facts.fences = Some(fences(&report));
        facts.nftables = report.table_stands;
        facts.fence_drops = report.drops;
        drop(facts);
        self.came_ahead(report.ahead);
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
            let workers = (self.args.workers).unwrap_or_else(warren_engine::default_workers);
            self.tunnel = Some(Tunnel::open(plan, workers, &self.state)?);
        }
        match &mut self.tunnel {
            Some(tunnel) => tunnel.apply(plan),
            None => Ok(()),
        }
    }

    /// The host as it should be, less the routes to what nobody takes in the tunnel yet.
    fn without_new_routes(&self, host: &HostConfig) -> HostConfig {
        let mut first = host.clone();
        if let Some(made) = &self.made
            && !host.routes.is_subset(&made.routes)
        {
            let device = (self.tunnel.as_ref()).map(|tunnel| tunnel.engine().status());
            let peers = device.iter().flat_map(|device| device.peers.values());
            let taken: BTreeSet<&IpNet> = peers.flat_map(|peer| &peer.config.allowed_ips).collect();
            first
                .routes
                .retain(|route| made.routes.contains(route) || taken.contains(route));
        }
        first
    }

    /// Posts what is wrong with what is in force, and says in the log what of it is new.
    fn tell(&mut self, plan: &Plan, failures: Vec<String>) {
        for failure in &failures {
            if !self.failures.contains(failure) && !self.ends_at_once() {
                tracing::error!("{failure}");
            }
        }
        self.failures = failures;
        let of_plan = (plan.problems.iter()).map(|problem| self.source.sentence(problem));
        let problems: Vec<String> = (self.source.refused().iter().cloned())
            .chain(self.failures.iter().cloned())
            .chain(self.source.complaints())
            .chain(of_plan)
            .collect();
        notify::status(match problems.is_empty() {
            true => "all is as it should be",
            false => &problems[0],
        });
        let mut facts = self.board.facts();
        facts.engine = self.tunnel.as_ref().map(|tunnel| tunnel.engine().clone());
        facts.digest = self.source.digest().map(str::to_owned);
        facts.problems = problems;
        facts
            .digests
            .retain(|name, _| (plan.peers.keys()).any(|peer| peer.as_str() == name));
    }

    /// Nothing can be said yet of what this host should be. What is in force stays so.
    fn wait(&mut self, sentence: String) {
        // What somebody tears down meanwhile is put back.
        let repaired = match self.made.clone() {
            Some(made) => self.host.converge(&made).map(|_| ()),
            None => warren_netlink::load_fence(self.state.path()).map(|_| ()),
        };
        if let Err(error) = repaired {
            tracing::debug!(%error, "the fence is not repaired");
        }
        let (source, _, around) = self.source();
        source.stalled(&sentence, &around);
        self.idle(sentence);
    }

    /// Whether a failure ends this daemon before it was one. Its last words say why, and need no line before.
    fn ends_at_once(&self) -> bool {
        self.is_starting && self.tunnel.is_none() && !self.source.may_come_later()
    }

    /// Says why this host is left as it is.
    fn idle(&mut self, sentence: String) {
        if !self.failures.contains(&sentence) && !self.ends_at_once() {
            tracing::warn!("{sentence}");
        }
        let mut facts = self.board.facts();
        facts.unready = Some(sentence.clone());
        facts.problems = vec![sentence.clone()];
        drop(facts);
        self.failures = vec![sentence];
    }

    /// Takes away what is on record as ours, and stays to say so.
    fn remove(&mut self) {
        self.close_tunnel();
        let removed = match self.host.owned().claims.is_empty() {
            true => Ok(0),
            false => Host::new(self.state.path()).and_then(|anew| {
                let host = std::mem::replace(&mut self.host, anew);
                host.uninstall().map(|changes| changes.len())
            }),
        };
        self.made = None;
        let failure = match removed {
            Ok(0) => None,
            Ok(changes) => {
                tracing::info!(
                    changes,
                    "nothing of Warren is left to carry or to fence packets"
                );
                // It knew of what is gone.
                match Host::new(self.state.path()) {
                    Ok(host) => {
                        self.host = host;
                        None
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
            Err(error) => Some(error.to_string()),
        };
        let refused = self.source.refused().iter();
        let problems: Vec<String> = failure.iter().chain(refused).cloned().collect();
        let mut facts = self.board.facts();
        facts.unready = problems.first().cloned();
        facts.problems = problems;
        (facts.plan, facts.fence, facts.fences) = (None, None, None);
        drop(facts);
        let (source, _, around) = self.source();
        source.removed(&around, failure.as_deref());
        self.failures = failure.into_iter().collect();
        if self.failures.is_empty() && !self.is_ready {
            self.ready();
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
                self.idle("the tunnel came to its end; it is started again".to_owned());
            }
        }
    }
}

fn choose_aead(choice: Choice) -> anyhow::Result<()> {
    warren_aead::choose(choice).context("cannot seal packets as --aead asks")?;
    for why in Implementation::distrusted() {
        tracing::warn!("{why}");
    }
    Ok(())
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
