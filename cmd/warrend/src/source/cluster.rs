//! The mesh as Kubernetes describes it: its nodes from the API, and this node's record kept there.
//!
//! What the API says is taken in by [`ClusterSource::take_in`], as far as it may be believed; what follows
//! from it is the plan. In between stands what this node remembers (`memory.rs`): an API that is away, or
//! emptied, changes nothing, and what was once reached through the tunnel stays closed.

mod latch;
mod memory;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, sleep_until};
use warren_config::{HostConfig, PublicKey};
use warren_k8s::{
    Access, Before, Book, Client, Distrust, Event as Told, Feed, Known, MeshSpec, Mode, NodeFacts,
    Own, Progress, Proposal, Publisher, Record, Settings, Severity as Gravity, Stage, View,
    connect,
};
use warren_mesh::{
    Candidate, Cause, Enforcement, NodeName, Place, Plan, Resolved, Roster, Secrets, Severity,
    Step, Underlay,
};
use warren_netlink::{Host, Surroundings};
use warren_state::StateDir;

use self::memory::Memory;
use super::{Aim, Around, Stepped, Todo, wall_time};

/// MTU in bytes of a link of which nothing is known.
const ETHERNET: u32 = 1500;
/// How many times as long as the last plan took the API's changes wait for the next: a cluster that
/// never rests takes a tenth of a core.
const REST: u32 = 9;
/// But no longer than this, so that a new node is reached within a second.
const REST_MAX: Duration = Duration::from_millis(500);
/// After so long without a plan of all nodes there is one, in case that what is kept node by node went wrong.
const CHECK: Duration = Duration::from_secs(300);
/// A peer with a handshake no older than this is one there is traffic with.
const SESSION: Duration = Duration::from_secs(180);
/// Bytes around a packet in the tunnel: IP, UDP (8), header (16) and tag (16).
const AROUND_V4: u32 = 20 + 8 + 16 + 16;
/// The same where a peer is reached by IPv6.
const AROUND_V6: u32 = 40 + 8 + 16 + 16;

/// What to do about a mode that an overlay's interface leaves open.
const WHICH_MODE: &str = "set it to Overlay if the CNI wraps pod traffic in VXLAN or Geneve, and to Route if it \
                          routes it";

/// What Kubernetes says of a mesh, and what this node makes of it.
pub(crate) struct ClusterSource {
    node: NodeName,
    feed: Feed,
    publisher: Publisher,
    /// Where the API server is, by the credentials.
    server: Option<IpAddr>,
    memory: Memory,
    /// What the API says, as it was last believed.
    believed: Option<View>,
    /// Why what it says now is not.
    distrust: Option<Distrust>,
    /// What is wrong with the Mesh as it is now, whose last good state is in force.
    refused: Vec<String>,
    /// What this daemon has no right to, a sentence each.
    denied: Vec<String>,
    /// What followed from it last.
    made: Option<Made>,
    /// This host had an overlay's interface when there was no Mesh.
    has_overlay: bool,
    /// The API has told something in this run that was believed.
    is_live: bool,
    /// The Node was Ready when the API told of it last.
    was_ready: bool,
    roster: Roster,
    /// Those with whom there was traffic before this start have been called.
    has_called: bool,
    /// What the record has of an earlier run was looked at.
    has_recalled: bool,
    /// What the peers take that are ready.
    reached: BTreeSet<IpNet>,
    /// The plan follows no more from what is known.
    is_stale: bool,
    /// The API has told something that is not taken in yet.
    has_news: bool,
    /// What the last step was about, whose peers are looked at when it is made true.
    stepped: BTreeSet<NodeName>,
    /// When to look at the peers again.
    look_at: Option<Instant>,
    started: Instant,
    /// When the last plan was begun, and when the next is made if it is the API that changes.
    began: Instant,
    not_before: Option<Instant>,
    /// When all nodes were planned last.
    planned: Instant,
    /// What leads to this node's pods with a larger MTU than the tunnel's.
    larger_behind: Option<LargerBehind>,
    /// How often a peer's key has changed under the same uid.
    key_changes: u64,
    /// Claims that are refused since another node has what is claimed: whose, and a sentence.
    refused_claims: BTreeSet<(NodeName, String)>,
    reported: report::Reported,
}

/// A plan's foundations.
struct Made {
    /// Its settings have the enforcement of the stage.
    book: Book,
    stage: Stage,
    /// The operator says Staged.
    is_staged: bool,
    /// What goes by the tunnel although the mesh is not strict.
    steered: BTreeSet<IpNet>,
    underlay: Underlay,
    /// The host as far as this node alone decides it, and what was around it.
    alone: HostConfig,
    surroundings: Surroundings,
    /// The operator leaves the MTU to the nodes, or the mode.
    finds_mtu: bool,
    finds_mode: bool,
}

/// What follows from a Mesh, before anything is changed by it.
enum Outcome {
    /// The Mesh says that nothing of Warren is to be here.
    Removed,
    /// A plan, what it is founded on, what is believed of the nodes then, and what leads to pods with a larger
    /// MTU.
    Planned(Box<(Plan, Made, Known, Option<LargerBehind>)>),
}

/// An interface, its MTU in bytes, and the tunnel's.
struct LargerBehind {
    interface: String,
    mtu: u32,
    tunnel: u32,
}

/// What the API and the clock tell.
pub(crate) enum Event {
    Changed,
    Look,
}

impl ClusterSource {
    /// Follows the API from now on. It may be away: then what the disk has is in force.
    pub(crate) async fn new(
        access: &Access,
        node: NodeName,
        state: StateDir,
    ) -> anyhow::Result<Self> {
        let (memory, hold) = Memory::load(node.clone(), state)?;
        let client: Client = connect(access).await?;
        let feed = Feed::start(&client, &node);
        let publisher = Publisher::start(&client, &feed, &node, hold);
        let believed = memory.view().cloned();
        if believed.is_some() {
            tracing::info!("what the API said last is in force until it answers");
        }
        Ok(Self {
            node,
            feed,
            publisher,
            server: client.server(),
            memory,
            believed,
            distrust: None,
            refused: Vec::new(),
            denied: Vec::new(),
            made: None,
            has_overlay: false,
            is_live: false,
            was_ready: false,
            roster: Roster::new(rand_seed()?),
            has_called: false,
            has_recalled: false,
            reached: BTreeSet::new(),
            is_stale: false,
            has_news: false,
            stepped: BTreeSet::new(),
            look_at: None,
            started: Instant::now(),
            began: Instant::now(),
            not_before: None,
            planned: Instant::now(),
            larger_behind: None,
            key_changes: 0,
            refused_claims: BTreeSet::new(),
            reported: report::Reported::default(),
        })
    }

    /// The next thing that happens. Dropping the future loses nothing.
    pub(crate) async fn event(&mut self) -> Event {
        let look_at = self.look_at;
        let look = async {
            match look_at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.feed.changed() => Event::Changed,
            () = look => Event::Look,
        }
    }

    /// Takes in what has happened.
    pub(crate) fn take(&mut self, event: &Event, around: &Around<'_>) -> Todo {
        match event {
            Event::Changed => {
                self.has_news = true;
                match self.rests_until() {
                    None => self.news(),
                    // A plan takes as long as the cluster is large; what comes meanwhile is one change.
                    Some(at) => {
                        self.look_no_later_than(at);
                        Todo::Nothing
                    }
                }
            }
            Event::Look => {
                self.memory.tick();
                match self.rests_until() {
                    None if self.has_news => self.news(),
                    _ => self.glance(around),
                }
            }
        }
    }

    /// Looks at what nobody tells of.
    pub(crate) fn tick(&mut self, around: &Around<'_>) -> Todo {
        let denied = self.denied != self.denials();
        let todo = self.look(around);
        self.memory.tick();
        self.post(around);
        let is_checked = self.made.is_none() || self.planned.elapsed() < CHECK;
        match todo {
            Todo::Nothing if denied => Todo::Plan,
            Todo::Nothing if !self.has_news && !is_checked => Todo::Check,
            todo => todo,
        }
    }

    pub(crate) fn end(&mut self) {
        self.memory.end();
    }

    fn news(&mut self) -> Todo {
        self.has_news = false;
        // After a rest the first comes through at once.
        self.not_before = None;
        match self.is_stale {
            true => Todo::Plan,
            false => Todo::Step,
        }
    }

    /// Until when what the API says waits, if it does.
    fn rests_until(&self) -> Option<Instant> {
        self.not_before.filter(|at| *at > Instant::now())
    }

    fn look_no_later_than(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |look_at| look_at.min(at)));
    }

    /// What this daemon has no right to now, a sentence each.
    fn denials(&self) -> Vec<String> {
        let health = self.feed.health();
        let unread = health.0.into_iter().filter(|(_, health)| health.denied);
        let unread = unread
            .filter_map(|(kind, health)| Some(format!("{kind} cannot be read: {}", health.error?)));
        let report = self.publisher.report();
        let unwritten = report.error.filter(|_| report.denied);
        unread.chain(unwritten).collect()
    }

    /// What this daemon has no right to, when it was last looked at.
    pub(crate) fn denied(&self) -> &[String] {
        &self.denied
    }

    /// What is wrong with the Mesh as it is now.
    pub(crate) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// What this node should be, given what is around it now.
    pub(crate) fn aim(&mut self, host: &mut Host) -> Result<Aim, String> {
        self.began = Instant::now();
        let denied = self.denials();
        for sentence in denied.iter().filter(|it| !self.denied.contains(it)) {
            tracing::error!("{sentence}");
        }
        self.denied = denied;
        self.take_in()?;
        self.is_stale = false;
        let Some(view) = self.believed.take() else {
            return Err(self.waiting());
        };
        let aim = self.plan_by(&view, host);
        self.believed = Some(view);
        aim
    }

    /// Takes in what the API says anew of single nodes, and brings the plan in line with it. `None` where more than
    /// these may be planned otherwise.
    pub(crate) fn step(&mut self, plan: &mut Arc<Plan>) -> Option<Stepped> {
        self.began = Instant::now();
        let is_settled = !self.is_stale
            && self.is_live
            && self.distrust.is_none()
            && self.refused.is_empty()
            && self.feed.unreadable_mesh().is_none()
            && self.denied == self.denials();
        let mut view = self.believed.take_if(|_| is_settled)?;
        let stepped = self.step_by(&mut view, plan);
        self.believed = Some(view);
        stepped
    }

    fn step_by(&mut self, view: &mut View, plan: &mut Arc<Plan>) -> Option<Stepped> {
        let changed = self.feed.follow(view)?;
        for (name, before) in &changed {
            self.follow_key(view, name, before.record.as_ref());
        }
        let counts_on = |(name, before): (&String, &Before)| only_counts(view, name, before);
        let only_counts = changed.iter().all(counts_on);
        let made = self.made.as_mut()?;
        let is_about_more =
            |(name, before): (&String, &Before)| made.is_about_more(&self.node, view, name, before);
        if changed.iter().any(is_about_more) {
            return None;
        }
        let is_staged = matches!(made.stage, Stage::Staged(_));
        if is_staged {
            // Then what is closed is whatever any node has.
            if self.memory.has_lost_latch() {
                return None;
            }
            let own = Own {
                turned: self.memory.is_strict(),
                returning: !self.was_ready,
            };
            let stage = view.stage(made.book.settings(), self.memory.identity()?, own);
            if !matches!(stage, Stage::Staged(_)) {
                return None;
            }
            made.stage = stage;
        }

        let known = self.memory.known_mut()?;
        let affected = made.book.update(view, known, changed.keys());
        let matters = !only_counts || !affected.is_empty();
        self.memory.follows(view, changed.keys(), matters);
        if matches!(made.stage, Stage::Permissive) && !affected.is_empty() {
            // What is reached decides what goes by the tunnel.
            return None;
        }
        let mut names = affected.clone();
        names.extend(changed.iter().filter_map(|(name, before)| {
            let is_new = epoch(view, name) != epoch_of(before.record.as_ref());
            name.parse::<NodeName>().ok().filter(|_| is_new)
        }));
        let key = |plan: &Plan, name: &NodeName| plan.peers.get(name)?.public_key;
        let before: Vec<(&NodeName, PublicKey)> = (names.iter())
            .filter_map(|name| Some((name, key(plan, name)?)))
            .collect();
        let step = match affected.is_empty() {
            true => Step::default(),
            false => {
                let reviewed = made.book.reviewed();
                let plan = Arc::make_mut(plan);
                reviewed.replan(plan, &affected, &made.underlay, &made.steered)?
            }
        };
        for (name, before) in before {
            if key(plan, name) != Some(before) {
                self.roster.remove(&before);
            }
        }
        let (now, population) = (self.started.elapsed(), plan.peers.len() + 1);
        for name in &names {
            if let Some(public_key) = key(plan, name) {
                let candidate = Candidate {
                    name: name.clone(),
                    public_key,
                    epoch: epoch(view, name.as_str()),
                    first: false,
                };
                self.roster.set(candidate, population, now);
            }
        }
        let is_news = is_staged || !only_counts || !names.is_empty();
        self.stepped.extend(names);
        Some(Stepped { step, is_news })
    }

    /// Whether the host around the tunnel is as it was when the plan was made.
    pub(crate) fn is_around(&self, host: &mut Host) -> bool {
        self.made.as_ref().is_some_and(|made| {
            let now = host.surroundings(&made.alone);
            now.is_ok_and(|now| now == made.surroundings)
        })
    }

    /// Takes in what the API says, if it may be believed.
    fn take_in(&mut self) -> Result<(), String> {
        let view = self.feed.look();
        let whole = (&view.cluster, &view.nodes, &view.records);
        let own = view
            .nodes
            .as_ref()
            .and_then(|nodes| nodes.get(self.node.as_str()));
        if let ((Some(cluster), _, Some(_)), Some(own)) = (whole, own) {
            let became = self.memory.is_of(cluster, &own.uid)?;
            if became {
                // Sessions of another are none of this node's.
                self.roster = Roster::new(rand_seed().map_err(|error| format!("{error:#}"))?);
            }
        }
        let uid = (self.memory.identity()).map(|identity| identity.uid.clone());
        if let (false, Some(_), Some(uid)) = (self.has_recalled, &view.records, uid) {
            self.has_recalled = true;
            if let Some((mode, latched)) = self.feed.latched(&uid) {
                self.memory.recall(mode, &latched);
            }
        }
        let Some(identity) = self.memory.identity() else {
            return Ok(());
        };
        match view.trust(identity) {
            Ok(()) => {
                self.follow_keys(&view);
                self.is_live = true;
                let mut believed = view;
                if believed.api_servers.is_none() {
                    // They arrive by another list, which may be refused.
                    believed.api_servers = self.believed.take().and_then(|view| view.api_servers);
                }
                self.believed = Some(believed);
                if self.distrust.take().is_some() {
                    tracing::info!("what the API says is believed again");
                }
            }
            Err(distrust) => {
                // At the start it is partial for a moment.
                let is_new = self.distrust.as_ref() != Some(&distrust);
                if is_new && !matches!(distrust, Distrust::Partial(_)) {
                    tracing::warn!("all stays as it is, since {distrust}");
                }
                self.distrust = Some(distrust);
            }
        }
        Ok(())
    }

    /// Why there is no plan yet, and what to do.
    fn waiting(&self) -> String {
        let health = self.feed.health();
        let failed = health.0.iter().find_map(|(kind, health)| {
            let error = health.error.as_ref()?;
            Some(format!("{kind} cannot be read: {error}"))
        });
        if let Some(failed) = failed {
            return failed;
        }
        let nodes = self.feed.view().nodes.clone();
        match nodes {
            Some(nodes) if !nodes.contains_key(self.node.as_str()) => format!(
                "there is no Node {}; --node must name the Node that this runs on",
                self.node
            ),
            _ => "the API server has not told all of the cluster yet".to_owned(),
        }
    }

    /// A changed key under the same uid is followed, and people are told.
    fn follow_keys(&mut self, view: &View) {
        let Some(before) = self.believed.take() else {
            return;
        };
        for (name, record) in before.records.iter().flatten() {
            self.follow_key(view, name, Some(record));
        }
        self.believed = Some(before);
    }

    /// The same of one node, whose record was `before`.
    fn follow_key<E>(&mut self, view: &View, name: &str, before: Option<&Result<Record, E>>) {
        let (Some(record), Some(Ok(before))) = (record(view, name), before) else {
            return;
        };
        let is_same_node = record.node_uid == before.node_uid;
        if !is_same_node || record.public_key == before.public_key || name == self.node.as_str() {
            return;
        }
        self.key_changes += 1;
        let key = &record.public_key;
        tracing::warn!(node = name, key, "a node has another key, and is followed");
        // All see it, and one is enough to tell of it.
        if next_after(view, name) == Some(self.node.as_str()) {
            self.publisher.event(Told {
                severity: Gravity::Warning,
                reason: "KeyChanged".to_owned(),
                message: format!("node {name} has another key under the same uid"),
            });
        }
    }

    fn plan_by(&mut self, view: &View, host: &mut Host) -> Result<Aim, String> {
        let good = self.memory.mesh().cloned();
        if let Some(sentence) = self.feed.unreadable_mesh() {
            return self.stay_with(good, vec![sentence], view, host);
        }
        let wanted = view.mesh.clone().flatten();
        // A Mesh that somebody deletes by mistake takes nothing away.
        let Some(wanted) = wanted.or_else(|| good.clone()) else {
            if view.mesh.is_none() {
                return Err(self.waiting());
            }
            let overlays = host.overlays();
            self.has_overlay = overlays.is_ok_and(|overlays| !overlays.is_empty());
            let proposal = proposal(view, self.has_overlay);
            return Err(format!(
                "there is no Mesh called default; make one with {proposal}"
            ));
        };
        match self.outcome(&wanted, view, host) {
            Ok(outcome) => {
                self.refused.clear();
                self.memory.took_mesh(&wanted);
                Ok(self.take_on(outcome, view))
            }
            Err(sentences) => {
                let good = good.filter(|good| *good != wanted);
                self.stay_with(good, sentences, view, host)
            }
        }
    }

    /// The Mesh as it is now is refused for these reasons, and the last good one stays in force.
    fn stay_with(
        &mut self,
        good: Option<MeshSpec>,
        sentences: Vec<String>,
        view: &View,
        host: &mut Host,
    ) -> Result<Aim, String> {
        if self.refused != sentences {
            for sentence in &sentences {
                tracing::error!("the Mesh is refused: {sentence}");
            }
        }
        self.refused = sentences;
        let Some(good) = good else {
            return Err(self.refused.join("\n"));
        };
        let outcome = self.outcome(&good, view, host);
        let outcome = outcome.map_err(|sentences| sentences.join("\n"))?;
        Ok(self.take_on(outcome, view))
    }

    /// People are told of claims that are refused since another node has what is claimed.
    fn tell_of_refused_claims(&mut self, plan: &Plan) {
        let refused = (plan.problems.iter()).filter_map(|problem| {
            let contested = matches!(
                problem.cause,
                Cause::DuplicateKey { .. } | Cause::AddressTaken { .. } | Cause::Overlap { .. }
            );
            match &problem.subject.place {
                Place::Node(name) if contested => Some((name.clone(), problem.to_string())),
                _ => None,
            }
        });
        let refused: BTreeSet<(NodeName, String)> = refused.collect();
        let view = self.believed.as_ref();
        for (name, message) in refused.difference(&self.refused_claims) {
            // All see it, and one is enough to tell of it.
            let teller = view.and_then(|view| next_after(view, name.as_str()));
            if teller == Some(self.node.as_str()) {
                self.publisher.event(Told {
                    severity: Gravity::Warning,
                    reason: "ClaimRefused".to_owned(),
                    message: message.clone(),
                });
            }
        }
        self.refused_claims = refused;
    }

    /// What follows from this Mesh, or the sentences that refuse it. Changes nothing, so that one that is
    /// refused has done nothing.
    fn outcome(
        &self,
        spec: &MeshSpec,
        view: &View,
        host: &mut Host,
    ) -> Result<Outcome, Vec<String>> {
        // It asks for nothing else: also what never could be set up can be taken away.
        if is_removal(spec) {
            return Ok(Outcome::Removed);
        }
        let one = |error: &dyn std::fmt::Display| vec![error.to_string()];
        let mode = mode(spec, view)?;
        let settings = Settings::of(spec, ETHERNET - AROUND_V6, mode);
        let mut settings = settings.map_err(|error| one(&error))?;
        let Some(identity) = self.memory.identity() else {
            return Err(vec![self.waiting()]);
        };

        // Where nobody says what the mesh may carry, there is no all to close.
        let knows_all = mode == Mode::Overlay || !settings.mesh.prefixes.is_empty();
        let own = Own {
            turned: self.memory.is_strict() || self.memory.has_lost_latch() && knows_all,
            returning: !self.was_ready,
        };
        let stage = view.stage(&settings, identity, own);
        let is_staged = settings.mesh.enforcement == Enforcement::Staged;
        settings.mesh.enforcement = match &stage {
            Stage::Permissive => Enforcement::Permissive,
            Stage::Staged(_) => Enforcement::Staged,
            Stage::Strict => Enforcement::Strict,
        };
        let mut steered = match stage {
            Stage::Permissive => self.reached.clone(),
            Stage::Staged(_) | Stage::Strict => self.memory.latched(mode).clone(),
        };
        let key = self.memory.private_key();
        // The record follows the key, not the key the record.
        let own = Some((self.node.clone(), key.public()));
        let mut known = self.memory.known().clone();
        let mut book = Book::new(view, settings, own, &mut known);
        if matches!(stage, Stage::Staged(_)) && self.memory.has_lost_latch() {
            // Any of what the others have may have been reached.
            let nodes = book.reviewed().directory().nodes.iter();
            let others = nodes.filter(|(name, node)| **name != self.node && !node.outside);
            steered.extend(others.flat_map(|(_, node)| node.prefixes.iter().copied()));
        }
        let secrets = Secrets {
            private_key: Some(key),
            ..Secrets::default()
        };
        let resolved = Resolved::new();
        let planned = |book: &Book, underlay: &Underlay| {
            (book.reviewed())
                .plan(&self.node, &resolved, &secrets, underlay, &steered)
                .map_err(|error| one(&error))
        };
        let alone = match book.reviewed().host_alone(&self.node) {
            Some(alone) => alone,
            None => planned(&book, &Underlay::default())?.host,
        };
        let surroundings = host.surroundings(&alone).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is around the tunnel is not known");
            Surroundings::default()
        });
        let is_found = spec.mode.is_none() && mode == Mode::Route;
        if is_found && !was_routed(self.memory.mesh()) {
            no_overlay(&surroundings)?;
        }
        let underlay = Underlay {
            addresses: surroundings.addresses.keys().copied().collect(),
            gateways: surroundings.gateways.clone(),
            resolvers: surroundings.resolvers.clone(),
            // The address that this daemon uses may be that of a Service.
            api_servers: (view.api_servers.iter().flatten().copied())
                .chain(self.server)
                .collect(),
        };
        if spec.mtu.is_none() {
            book.set_mtu(mtu(view, &self.node, &surroundings));
        }
        let tunnel = book.settings().mesh.mtu;
        let larger_behind = (surroundings.mtu_behind())
            .filter(|(_, mtu)| *mtu > tunnel)
            .map(|(interface, mtu)| LargerBehind {
                interface: interface.to_owned(),
                mtu,
                tunnel,
            });
        let plan = planned(&book, &underlay)?;
        let errors: Vec<String> = (plan.problems.iter())
            .filter(|problem| problem.severity() == Severity::Error)
            .filter(|problem| problem.subject.place == Place::Mesh)
            .map(ToString::to_string)
            .collect();
        // What is in force stays so whatever the host comes to look like: nobody opens it by an address.
        let is_in_force = self.made.is_some() && self.memory.mesh() == Some(spec);
        if !errors.is_empty() && !is_in_force {
            return Err(errors);
        }
        let made = Made {
            book,
            stage,
            is_staged,
            steered,
            underlay,
            alone,
            surroundings,
            finds_mtu: spec.mtu.is_none(),
            finds_mode: spec.mode.is_none(),
        };
        let planned = (plan, made, known, larger_behind);
        Ok(Outcome::Planned(Box::new(planned)))
    }

    /// From now on this is what the node is to be. What it must remember is on the disk before anything
    /// is changed.
    fn take_on(&mut self, outcome: Outcome, view: &View) -> Aim {
        let Outcome::Planned(planned) = outcome else {
            self.memory.forget_latch();
            self.made = None;
            return Aim::Nothing;
        };
        let (plan, made, known, larger_behind) = *planned;
        match &made.stage {
            Stage::Permissive => self.memory.forget_latch(),
            Stage::Strict if self.is_turning(&made) => {
                self.memory.turn_strict();
                tracing::info!(
                    "the cluster has turned strict: what cannot be encrypted is dropped"
                );
                self.publisher.event(Told {
                    severity: Gravity::Normal,
                    reason: "TurnedStrict".to_owned(),
                    message: "all were reached; what cannot be encrypted is dropped from now on"
                        .to_owned(),
                });
            }
            Stage::Strict | Stage::Staged(_) => {}
        }
        if self.is_live {
            let nodes = view.nodes.as_ref();
            let own = nodes.and_then(|nodes| nodes.get(self.node.as_str()));
            self.was_ready = own.is_some_and(|own| own.ready);
        }
        self.memory.believes(view, known);
        self.planned = self.began;
        self.larger_behind = larger_behind;
        let late = made.late_overlay();
        if let Some(sentence) = &late
            && late != self.made.as_ref().and_then(Made::late_overlay)
        {
            tracing::warn!("{sentence}");
        }
        self.made = Some(made);
        Aim::Node(Box::new(plan))
    }

    /// It becomes strict though the operator says Staged, and was not so before.
    fn is_turning(&self, made: &Made) -> bool {
        !self.memory.closes_all() && made.is_staged
    }

    /// The plan is made true, as far as the host lets: calls who is new, and publishes.
    pub(crate) fn realised(&mut self, plan: &Plan, around: &Around<'_>) {
        self.tell_of_refused_claims(plan);
        self.rest();
        let is_first = !std::mem::replace(&mut self.has_called, true);
        let view = self.believed.as_ref();
        let candidates = plan.peers.iter().filter_map(|(name, peer)| {
            Some(Candidate {
                name: name.clone(),
                public_key: peer.public_key?,
                epoch: view.and_then(|view| epoch(view, name.as_str())),
                first: is_first && self.memory.spoke_with(name),
            })
        });
        let candidates: Vec<_> = candidates.collect();
        let now = self.started.elapsed();
        self.roster.update(candidates, plan.peers.len() + 1, now);
        self.stepped.clear();
        if self.look(around) != Todo::Nothing {
            // By way of the loop. What is not true yet is not said.
            self.look_at = Some(Instant::now());
            return;
        }
        self.publish(plan, around, true);
    }

    /// A step is made true: looks at the peers that it is about, and publishes.
    pub(crate) fn stepped(&mut self, plan: &Plan, around: &Around<'_>) {
        self.memory.tick();
        self.tell_of_refused_claims(plan);
        self.rest();
        if self.glance(around) != Todo::Nothing {
            self.look_at = Some(Instant::now());
            return;
        }
        self.publish(plan, around, false);
    }

    /// For a while what the API says waits.
    fn rest(&mut self) {
        let pause = (self.began.elapsed() * REST).min(REST_MAX);
        self.not_before = Some(Instant::now() + pause);
    }

    /// Looks at all peers: calls those that are to be called, and closes for ever what was reached.
    fn look(&mut self, around: &Around<'_>) -> Todo {
        self.look_at = self.not_before.filter(|_| self.has_news);
        if self.is_stale {
            return Todo::Plan;
        }
        let (Some(tunnel), Some(made)) = (around.tunnel, &self.made) else {
            return Todo::Nothing;
        };
        let device = tunnel.engine().status();
        let before = self.roster.ready().clone();
        let seen = (self.roster).look(&device, wall_time(), self.started.elapsed());
        if !seen.calls.is_empty() {
            tunnel.engine().rekey(&seen.calls);
        }
        let directory = made.book.reviewed().directory();
        self.memory.speaks(&device, wall_time(), directory);
        // By what the device has, where nobody's claim is another's.
        let ready = (seen.ready.iter()).filter_map(|name| directory.nodes.get(name));
        let ready = ready.filter_map(|node| device.peers.get(&node.public_key?));
        let allowed_ips = ready.flat_map(|peer| peer.config.allowed_ips.iter().copied());
        self.reached = allowed_ips.collect();
        let reached = self.reached.clone();
        let changed = seen.ready != before;
        let ready = seen.ready.iter().map(ToString::to_string);
        around.board.facts().ready_peers = Some(Arc::new(ready.collect()));
        self.seen(changed, &reached, seen.next, around)
    }

    /// The same of those whose time has come. Costs these.
    fn glance(&mut self, around: &Around<'_>) -> Todo {
        let plan = around.board.facts().plan.clone();
        // What is reached decides what goes by the tunnel, and nobody is reached for ever.
        let is_permissive =
            (self.made.as_ref()).is_some_and(|made| made.stage == Stage::Permissive);
        let is_enough = around.is_true && !is_permissive;
        let (Some(tunnel), Some(plan), true) = (around.tunnel, plan, is_enough) else {
            return self.look(around);
        };
        self.look_at = self.not_before.filter(|_| self.has_news);
        if self.is_stale {
            return Todo::Plan;
        }
        let (engine, wall) = (tunnel.engine(), wall_time());
        let mut talking = BTreeSet::new();
        let status = |key: &PublicKey| {
            let peer = engine.peer(key)?;
            let handshake = peer.last_handshake;
            if handshake.is_some_and(|at| wall.0.saturating_sub(at.0) < SESSION) {
                talking.insert(*key);
            }
            Some(peer)
        };
        let glance = self.roster.glance(status, wall, self.started.elapsed());
        if !glance.calls.is_empty() {
            engine.rekey(&glance.calls);
        }
        // All that was planned is in force, so the device has what the plan says.
        let of_plan = |name: &NodeName| {
            let key = plan.peers.get(name)?.public_key?;
            Some((key, plan.device.peers.get(&key)?))
        };
        let mut reached = BTreeSet::new();
        for name in &glance.ready {
            if let Some((key, peer)) = of_plan(name) {
                reached.extend(&peer.allowed_ips);
                if talking.contains(&key) {
                    self.memory.speaks_with(name);
                }
            }
        }
        self.reached.extend(&reached);
        let names = std::mem::take(&mut self.stepped);
        let looked_at = glance.ready.iter().chain(&glance.unready).chain(&names);
        self.tell_ready(looked_at, around);
        self.seen(glance.changed, &reached, glance.next, around)
    }

    /// What a look has shown: whether readiness changed, what was reached, and when to look again.
    fn seen(
        &mut self,
        changed: bool,
        reached: &BTreeSet<IpNet>,
        next: Option<Duration>,
        around: &Around<'_>,
    ) -> Todo {
        if let Some(at) = next {
            self.look_no_later_than(self.started + at);
        }
        if let Some(at) = self.memory.due() {
            self.look_no_later_than(at);
        }
        self.is_stale |= match &self.made {
            Some(made) => {
                let mode = made.book.settings().mode;
                match made.stage {
                    Stage::Permissive => made.steered != self.reached,
                    Stage::Staged(_) => self.memory.latch(mode, reached),
                    Stage::Strict => {
                        self.memory.latch_in_time(mode, reached);
                        false
                    }
                }
            }
            None => false,
        };
        if self.is_stale {
            return Todo::Plan;
        }
        if changed {
            let plan = around.board.facts().plan.clone();
            if let Some(plan) = plan {
                self.publish(&plan, around, false);
            }
        }
        Todo::Nothing
    }

    /// Posts of these whether they are ready.
    fn tell_ready<'a>(&self, names: impl Iterator<Item = &'a NodeName>, around: &Around<'_>) {
        let mut facts = around.board.facts();
        let ready = Arc::make_mut(facts.ready_peers.get_or_insert_default());
        for name in names {
            match self.roster.ready().contains(name) {
                true => ready.insert(name.to_string()),
                false => ready.remove(name.as_str()),
            };
        }
    }

    /// Nothing can be said yet of what this node should be, and why.
    pub(crate) fn stalled(&mut self, sentence: &str, around: &Around<'_>) {
        self.publish_stalled(sentence, around);
    }

    /// Everything was taken away.
    pub(crate) fn removed(&mut self, around: &Around<'_>, failure: Option<&str>) {
        self.roster = Roster::new(0);
        around.board.facts().ready_peers = None;
        self.look_at = None;
        self.publish_removed(around, failure);
    }
}

impl Made {
    /// What to do about the interface of an overlay that was made after `Route` had been found, which stays.
    fn late_overlay(&self) -> Option<String> {
        let is_found = self.finds_mode && self.book.settings().mode == Mode::Route;
        let interface = (self.surroundings.overlays.first()).filter(|_| is_found)?;
        Some(format!(
            "spec.mode of the Mesh is not set, so that Route was taken, and this node has an overlay's interface by \
             now, {interface}; {WHICH_MODE}"
        ))
    }

    /// Whether a node that has changed may make more of the plan another than what is about it alone.
    fn is_about_more(&self, this: &NodeName, view: &View, name: &str, before: &Before) -> bool {
        let facts = |name: &str| view.nodes.as_ref()?.get(name);
        let none = Vec::new();
        let now = facts(name).map_or(&none, |node| &node.addresses);
        let before = (before.node.as_ref()).map_or(&none, |node| &node.addresses);
        let by_v6 = |addresses: &[IpAddr]| addresses.iter().any(IpAddr::is_ipv6);
        let shows_mode = || facts(this.as_str()).is_some_and(|own| !own.pod_cidrs.is_empty());
        self.finds_mtu && by_v6(now) != by_v6(before) || self.finds_mode && !shows_mode()
    }
}

fn record<'a>(view: &'a View, name: &str) -> Option<&'a Record> {
    view.records.as_ref()?.get(name)?.as_ref().ok()
}

fn epoch(view: &View, name: &str) -> Option<i64> {
    Some(record(view, name)?.epoch)
}

fn epoch_of<E>(record: Option<&Result<Record, E>>) -> Option<i64> {
    Some(record?.as_ref().ok()?.epoch)
}

/// Whether a node has changed in nothing but what all count on, and write down now and then. That it has turned
/// strict is no such thing: whoever starts while the API is away goes by it.
fn only_counts(view: &View, name: &str, before: &Before) -> bool {
    let uncounted = |record: &Record| Record {
        progress: Progress {
            enforcement: record.progress.enforcement,
            latched: record.progress.latched,
            ..Progress::default()
        },
        fenced: None,
        ..record.clone()
    };
    let record = view.records.as_ref().and_then(|records| records.get(name));
    let is_same_record = match (&before.record, record) {
        (Some(Ok(before)), Some(Ok(now))) => uncounted(before) == uncounted(now),
        (before, now) => before.as_ref() == now,
    };
    let node = view.nodes.as_ref().and_then(|nodes| nodes.get(name));
    let is_same_node = match (&before.node, node) {
        (Some(before), Some(now)) => {
            let ready = before.ready;
            *before
                == NodeFacts {
                    ready,
                    ..now.clone()
                }
        }
        (before, now) => before.is_none() && now.is_none(),
    };
    is_same_record && is_same_node
}

/// The name of the node with a record that comes after this one, and after the last the first.
fn next_after<'a>(view: &'a View, name: &str) -> Option<&'a str> {
    let records = view.records.as_ref()?;
    let after = (Bound::Excluded(name), Bound::Unbounded);
    let mut after = records.range::<str, _>(after);
    let next = after.next().or_else(|| records.first_key_value())?;
    Some(next.0.as_str())
}

/// MTU in bytes of a tunnel over the link that has the node's address.
fn mtu(view: &View, node: &NodeName, surroundings: &Surroundings) -> u32 {
    let none = BTreeMap::new();
    let nodes = view.nodes.as_ref().unwrap_or(&none);
    let own = nodes.get(node.as_str()).map(|own| &own.addresses);
    let links = own.into_iter().flatten();
    let link = links.filter_map(|address| Some(surroundings.mtu_at(*address)?.1));
    let by_v6 = (nodes.values()).any(|node| node.addresses.iter().any(IpAddr::is_ipv6));
    let around = if by_v6 { AROUND_V6 } else { AROUND_V4 };
    link.min().unwrap_or(ETHERNET).saturating_sub(around)
}

/// How pod traffic gets into the tunnel: as the Mesh says, and else by routes, if the nodes have prefixes
/// to route.
fn mode(spec: &MeshSpec, view: &View) -> Result<Mode, Vec<String>> {
    let nodes = view.nodes.as_ref();
    let has_prefixes =
        || nodes.is_some_and(|nodes| nodes.values().any(|node| !node.pod_cidrs.is_empty()));
    match spec.mode {
        Some(mode) => Ok(mode),
        None if has_prefixes() => Ok(Mode::Route),
        None => Err(vec![
            "spec.mode of the Mesh is not set, and no Node has podCIDRs that could be routed; set it \
             to Overlay if the CNI wraps pod traffic in VXLAN or Geneve"
                .to_owned(),
        ]),
    }
}

/// The operator wants nothing of Warren on the nodes.
fn is_removal(spec: &MeshSpec) -> bool {
    spec.enforcement == warren_k8s::Enforcement::Removed
}

/// Whether `Route` was found for the Mesh that was good last, and in force: it stays, whatever interface is made
/// on the host. One that took all away has answered nothing.
fn was_routed(good: Option<&MeshSpec>) -> bool {
    good.is_some_and(|good| good.mode.is_none() && !is_removal(good))
}

/// Nobody guesses what an overlay's interface is there for: where the CNI wraps pod traffic past the routes
/// `Route` would leave all of it in the clear, and where it does not `Overlay` would.
fn no_overlay(surroundings: &Surroundings) -> Result<(), Vec<String>> {
    let Some(interface) = surroundings.overlays.first() else {
        return Ok(());
    };
    Err(vec![format!(
        "spec.mode of the Mesh is not set, and this node has an overlay's interface, {interface}; {WHICH_MODE}"
    )])
}

/// What the nodes, and this host's interfaces, show of what a Mesh leaves open.
fn proposal(view: &View, has_overlay: bool) -> Proposal {
    let none = BTreeMap::new();
    Proposal::of(view.nodes.as_ref().unwrap_or(&none), has_overlay)
}

fn rand_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed)
        .map_err(|error| anyhow::anyhow!("the system gave no random bytes: {error}"))?;
    Ok(u64::from_ne_bytes(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_was_found_only_for_a_mesh_that_was_in_force() {
        let spec = |mode, enforcement| MeshSpec {
            mode,
            enforcement,
            ..MeshSpec::default()
        };
        use warren_k8s::Enforcement::{Permissive, Removed, Staged, Strict};
        for enforcement in [Permissive, Staged, Strict] {
            assert!(was_routed(Some(&spec(None, enforcement))));
            assert!(!was_routed(Some(&spec(Some(Mode::Route), enforcement))));
        }
        assert!(!was_routed(Some(&spec(None, Removed))));
        assert!(!was_routed(None));
    }

    #[test]
    fn that_a_node_has_turned_strict_is_no_mere_count() {
        let counted = Progress {
            peers_expected: 2,
            peers_ready: 1,
            unreached: Some(vec!["n3".to_owned()]),
            enforcement: Some(warren_k8s::Enforcement::Staged),
            latched: false,
            latched_prefixes: Vec::new(),
        };
        let before = Before {
            node: Some(NodeFacts::default()),
            record: Some(Ok(record_with(counted.clone()))),
        };
        let is_mere = |progress| {
            let view = View {
                nodes: Some([("n2".to_owned(), NodeFacts::default())].into()),
                records: Some([("n2".to_owned(), Ok(record_with(progress)))].into()),
                ..View::default()
            };
            only_counts(&view, "n2", &before)
        };
        assert!(is_mere(Progress {
            peers_ready: 2,
            unreached: Some(Vec::new()),
            ..counted.clone()
        }));
        assert!(!is_mere(Progress {
            latched: true,
            ..counted.clone()
        }));
        assert!(!is_mere(Progress {
            enforcement: Some(warren_k8s::Enforcement::Strict),
            ..counted
        }));
    }

    fn record_with(progress: Progress) -> Record {
        Record {
            node_uid: "uid".to_owned(),
            created: 1,
            public_key: "key".to_owned(),
            endpoints: Vec::new(),
            port: 51820,
            mode: Mode::Route,
            epoch: 1,
            progress,
            fenced: None,
        }
    }
}
