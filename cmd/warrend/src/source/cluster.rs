//! The mesh as Kubernetes describes it: its nodes from the API, and this node's record kept there.
//!
//! What the API says is taken in by [`ClusterSource::take_in`], as far as it may be believed; what follows
//! from it is the plan. In between stands what this node remembers (`memory.rs`): an API that is away, or
//! emptied, changes nothing, and what was once reached through the tunnel stays closed.

mod memory;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, sleep_until};
use warren_k8s::{
    Access, Client, Distrust, Entries, Event as Told, Feed, MeshSpec, Mode, NodeFacts, Own,
    Progress, Proposal, Publisher, Record, Settings, Severity as Gravity, Stage, View, connect,
};
use warren_mesh::{
    Candidate, Cause, Enforcement, NodeName, Place, Plan, Resolved, Roster, Secrets, Severity,
    Underlay, plan,
};
use warren_netlink::{Host, Surroundings};
use warren_state::StateDir;

use self::memory::Memory;
use super::{Aim, Around, wall_time};

/// MTU in bytes of a link of which nothing is known.
const ETHERNET: u32 = 1500;
/// How many times as long as the last plan took the API's changes wait for the next: a cluster that
/// never rests takes a tenth of a core.
const REST: u32 = 9;
/// But no longer than this, so that a new node is reached within a second.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Bytes around a packet in the tunnel: IP, UDP (8), header (16) and tag (16).
const AROUND_V4: u32 = 20 + 8 + 16 + 16;
/// The same where a peer is reached by IPv6.
const AROUND_V6: u32 = 40 + 8 + 16 + 16;

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
    /// The API has told something in this run that was believed.
    is_live: bool,
    /// The Node was Ready when the API told of it last.
    was_ready: bool,
    roster: Roster,
    /// Those with whom there was traffic before this start have been called.
    has_called: bool,
    ready: BTreeSet<NodeName>,
    /// What these take.
    reached: BTreeSet<IpNet>,
    /// The plan follows no more from what is known.
    is_stale: bool,
    /// When to look at the peers again.
    look_at: Option<Instant>,
    started: Instant,
    /// When the last plan was begun, and when the next is made if it is the API that changes.
    began: Instant,
    not_before: Option<Instant>,
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
    settings: Settings,
    entries: Entries,
    stage: Stage,
    /// The operator says Staged.
    is_staged: bool,
}

/// What follows from a Mesh, before anything is changed by it.
enum Outcome {
    /// The Mesh says that nothing of Warren is to be here.
    Removed,
    /// A plan, what it is founded on, and what leads to pods with a larger MTU.
    Planned(Box<(Plan, Made, Option<LargerBehind>)>),
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
        let publisher = Publisher::start(&client, &feed, hold);
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
            is_live: false,
            was_ready: false,
            roster: Roster::new(rand_seed()?),
            has_called: false,
            ready: BTreeSet::new(),
            reached: BTreeSet::new(),
            is_stale: false,
            look_at: None,
            started: Instant::now(),
            began: Instant::now(),
            not_before: None,
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

    /// Takes in what has happened; whether the plan may be another now.
    pub(crate) fn take(&mut self, event: &Event, around: &Around<'_>) -> bool {
        match event {
            Event::Changed => {
                if !self.matters() {
                    return false;
                }
                let now = Instant::now();
                let Some(at) = self.not_before.filter(|at| *at > now) else {
                    // After a rest the first comes through at once.
                    self.not_before = None;
                    return true;
                };
                // A plan takes as long as the cluster is large; what comes meanwhile is one change.
                self.is_stale = true;
                self.look_at = Some(self.look_at.map_or(at, |look_at| look_at.min(at)));
                false
            }
            Event::Look => self.look(around),
        }
    }

    /// Looks at what nobody tells of; whether the plan may be another now.
    pub(crate) fn tick(&mut self, around: &Around<'_>) -> bool {
        let denied = self.denied != self.denials();
        let changed = self.look(around);
        self.memory.tick();
        self.post(around);
        changed || denied
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

    /// Whether what has changed is anything that a plan depends on. What all count on, and write down now and
    /// then, is not, but while it decides when the mesh turns strict.
    fn matters(&mut self) -> bool {
        let names = self.feed.changed_nodes();
        let now = self.feed.view();
        let is_staged =
            (self.made.as_ref()).is_none_or(|made| matches!(made.stage, Stage::Staged(_)));
        let (Some(view), None, false) = (&mut self.believed, &self.distrust, is_staged) else {
            return true;
        };
        let is_same = view.mesh == now.mesh
            && view.api_servers == now.api_servers
            && view.cluster == now.cluster;
        let (Some(nodes), Some(records)) = (&mut view.nodes, &mut view.records) else {
            return true;
        };
        let (Some(nodes_now), Some(records_now)) = (&now.nodes, &now.records) else {
            return true;
        };
        let uncounted = |record: &Record| Record {
            progress: Progress::default(),
            ..record.clone()
        };
        let counts_on = |name: &String| {
            let record = match (records.get(name), records_now.get(name)) {
                (Some(Ok(before)), Some(Ok(now))) => uncounted(before) == uncounted(now),
                (before, now) => before == now,
            };
            let node = match (nodes.get(name), nodes_now.get(name)) {
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
            record && node
        };
        if !is_same || names.is_empty() || !names.iter().all(counts_on) {
            return true;
        }
        for name in names {
            if let Some(node) = nodes_now.get(&name) {
                nodes.insert(name.clone(), node.clone());
            }
            if let Some(record) = records_now.get(&name) {
                records.insert(name, record.clone());
            }
        }
        false
    }

    /// Takes in what the API says, if it may be believed.
    fn take_in(&mut self) -> Result<(), String> {
        let view = self.feed.view();
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
                self.ready.clear();
            }
        }
        let Some(identity) = self.memory.identity() else {
            return Ok(());
        };
        match view.trust(identity) {
            Ok(()) => {
                self.follow_keys(&view);
                self.is_live = true;
                let mut believed = View::clone(&view);
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
        let Some(before) = self
            .believed
            .as_ref()
            .and_then(|view| view.records.as_ref())
        else {
            return;
        };
        for (name, record) in view.records.iter().flatten() {
            let (Ok(record), Some(Ok(before))) = (record, before.get(name)) else {
                continue;
            };
            let is_same_node = record.node_uid == before.node_uid;
            if is_same_node && record.public_key != before.public_key && name != self.node.as_str()
            {
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
            let proposal = proposal(view);
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
        let one = |error: &dyn std::fmt::Display| vec![error.to_string()];
        let mode = mode(spec, view)?;
        let settings = Settings::of(spec, ETHERNET - AROUND_V6, mode);
        let mut settings = settings.map_err(|error| one(&error))?;
        let Some(identity) = self.memory.identity() else {
            return Err(vec![self.waiting()]);
        };
        if settings.removed {
            return Ok(Outcome::Removed);
        }

        let own = Own {
            turned: self.memory.is_strict(),
            returning: !self.was_ready,
        };
        let stage = view.stage(&settings, identity, own);
        let is_staged = settings.mesh.enforcement == Enforcement::Staged;
        settings.mesh.enforcement = match &stage {
            Stage::Permissive => Enforcement::Permissive,
            Stage::Staged(_) => Enforcement::Staged,
            Stage::Strict => Enforcement::Strict,
        };
        let mut entries = view.directory(&settings, self.memory.known());
        let key = self.memory.private_key();
        if let Some(own) = entries.directory.nodes.get_mut(&self.node) {
            // The record follows the key, not the key the record.
            own.public_key = Some(key.public());
        }
        let secrets = Secrets {
            private_key: Some(key),
            ..Secrets::default()
        };
        let steered = match stage {
            Stage::Permissive => self.reached.clone(),
            Stage::Staged(_) | Stage::Strict => {
                latched_of(mode, self.memory.latched(), &settings, view)
            }
        };
        let resolved = Resolved::new();
        let planned = |entries: &Entries, underlay: &Underlay| {
            let directory = &entries.directory;
            let (node, secrets) = (&self.node, &secrets);
            plan(directory, node, &resolved, secrets, underlay, &steered)
                .map_err(|error| one(&error))
        };
        let alone = planned(&entries, &Underlay::default())?;
        let surroundings = host.surroundings(&alone.host).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is around the tunnel is not known");
            Surroundings::default()
        });
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
            entries.directory.mesh.mtu = mtu(view, &self.node, &surroundings);
        }
        let tunnel = entries.directory.mesh.mtu;
        let larger_behind = (surroundings.mtu_behind())
            .filter(|(_, mtu)| *mtu > tunnel)
            .map(|(interface, mtu)| LargerBehind {
                interface: interface.to_owned(),
                mtu,
                tunnel,
            });
        let plan = planned(&entries, &underlay)?;
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
            settings,
            entries,
            stage,
            is_staged,
        };
        Ok(Outcome::Planned(Box::new((plan, made, larger_behind))))
    }

    /// From now on this is what the node is to be. What it must remember is on the disk before anything
    /// is changed.
    fn take_on(&mut self, outcome: Outcome, view: &View) -> Aim {
        let Outcome::Planned(planned) = outcome else {
            self.memory.forget_latch();
            self.made = None;
            return Aim::Nothing;
        };
        let (plan, made, larger_behind) = *planned;
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
        self.memory.believes(view, &made.entries);
        self.larger_behind = larger_behind;
        self.made = Some(made);
        Aim::Node(Box::new(plan))
    }

    /// It becomes strict though the operator says Staged, and was not so before.
    fn is_turning(&self, made: &Made) -> bool {
        !self.memory.is_strict() && made.is_staged
    }

    /// The plan is made true, as far as the host lets: calls who is new, and publishes.
    pub(crate) fn realised(&mut self, plan: &Plan, around: &Around<'_>) {
        self.tell_of_refused_claims(plan);
        let pause = (self.began.elapsed() * REST).min(PAUSE_MAX);
        self.not_before = Some(Instant::now() + pause);
        let is_first = !std::mem::replace(&mut self.has_called, true);
        let epoch = |name: &NodeName| {
            let records = self.believed.as_ref()?.records.as_ref()?;
            Some(records.get(name.as_str())?.as_ref().ok()?.epoch)
        };
        let candidates = plan.peers.iter().filter_map(|(name, peer)| {
            Some(Candidate {
                name: name.clone(),
                public_key: peer.public_key?,
                epoch: epoch(name),
                first: is_first && self.memory.spoke_with(name),
            })
        });
        let candidates: Vec<_> = candidates.collect();
        let now = self.started.elapsed();
        self.roster.update(candidates, plan.peers.len() + 1, now);
        if self.look(around) {
            // By way of the loop. What is not true yet is not said.
            self.look_at = Some(Instant::now());
            return;
        }
        self.publish(plan, around);
    }

    /// Looks at the peers: calls those that are to be called, and closes for ever what was reached.
    /// Whether the plan is another now.
    fn look(&mut self, around: &Around<'_>) -> bool {
        self.look_at = None;
        if self.is_stale {
            return true;
        }
        let (Some(tunnel), Some(made)) = (around.tunnel, &self.made) else {
            return false;
        };
        let device = tunnel.engine().status();
        let now = self.started.elapsed();
        let seen = self.roster.look(&device, wall_time(), now);
        if !seen.calls.is_empty() {
            tunnel.engine().rekey(&seen.calls);
        }
        self.look_at = seen.next.map(|at| self.started + at);
        let changed = seen.ready != self.ready;
        self.ready = seen.ready;
        let directory = &made.entries.directory;
        self.memory.speaks(&device, wall_time(), directory);
        // By what the device has, where nobody's claim is another's.
        let ready = self
            .ready
            .iter()
            .filter_map(|name| directory.nodes.get(name));
        let ready = ready.filter_map(|node| device.peers.get(&node.public_key?));
        let allowed_ips = ready.flat_map(|peer| peer.config.allowed_ips.iter().copied());
        self.reached = allowed_ips.collect();
        self.is_stale |= match made.stage {
            Stage::Permissive => changed,
            Stage::Staged(_) => self.memory.latch(&self.reached),
            Stage::Strict => {
                self.memory.latch(&self.reached);
                false
            }
        };
        if self.is_stale {
            return true;
        }
        if changed {
            let plan = around.board.facts().plan.clone();
            if let Some(plan) = plan {
                self.publish(&plan, around);
            }
        }
        false
    }

    /// Nothing can be said yet of what this node should be, and why.
    pub(crate) fn stalled(&mut self, sentence: &str, around: &Around<'_>) {
        self.publish_stalled(sentence, around);
    }

    /// Everything was taken away.
    pub(crate) fn removed(&mut self, around: &Around<'_>, failure: Option<&str>) {
        self.roster = Roster::new(0);
        self.ready.clear();
        self.look_at = None;
        self.publish_removed(around, failure);
    }
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
/// to route. That an overlay is there is for the operator to say: a wrong guess would leave all in the clear.
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

/// What was reached in this mode: prefixes of pods where these are routed, addresses of nodes where what
/// is between them is wrapped. A Mesh that changes its mode must not fence the one as if it were the other.
fn latched_of(
    mode: Mode,
    latched: &BTreeSet<IpNet>,
    settings: &Settings,
    view: &View,
) -> BTreeSet<IpNet> {
    let nodes = view.nodes.iter().flatten();
    let of_nodes: BTreeSet<IpNet> = nodes
        .flat_map(|(_, node)| node.addresses.iter().copied().map(IpNet::from))
        .collect();
    let of_pods = |prefix: &IpNet| {
        let mut prefixes = settings.mesh.prefixes.iter();
        prefix.prefix_len() < prefix.max_prefix_len() || prefixes.any(|all| all.contains(prefix))
    };
    let counts = |prefix: &&IpNet| match mode {
        Mode::Route => of_pods(prefix) && !of_nodes.contains(*prefix),
        Mode::Overlay => of_nodes.contains(*prefix),
    };
    latched.iter().filter(counts).copied().collect()
}

/// What the nodes show of what a Mesh leaves open.
fn proposal(view: &View) -> Proposal {
    let none = BTreeMap::new();
    Proposal::of(view.nodes.as_ref().unwrap_or(&none), false)
}

fn rand_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed)
        .map_err(|error| anyhow::anyhow!("the system gave no random bytes: {error}"))?;
    Ok(u64::from_ne_bytes(seed))
}
