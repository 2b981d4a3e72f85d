//! What the node says of itself: its record in the API, and its status here.

use std::collections::BTreeMap;

use warren_config::is_within;
use warren_control::status;
use warren_k8s::{
    ConditionType, Distrust, Enforcement, Holds, MeshNodeSpec, MeshSpec, Mode, NODE_UNREADY,
    NodeFacts, Progress, Stage, Stated, configured,
};
use warren_mesh::{NodeName, Place, Plan, Severity};

use super::super::{Around, wall_time};
use super::{ClusterSource, LargerBehind, Made, proposal};

/// Endpoints that a record may have.
const ENDPOINTS: usize = 8;
/// Peers that a record names.
const NAMED: usize = 8;

/// What was said, so that it is not said again.
#[derive(Default)]
pub(super) struct Reported {
    /// The conditions of the record, as they were last wanted.
    conditions: BTreeMap<ConditionType, Stated>,
    progress: Progress,
    /// Since when the mesh is staged here, in seconds since 1970.
    staged_since: Option<u64>,
}

impl ClusterSource {
    /// Keeps this node's record and status as they should be. `is_anew` where all nodes were planned, and not only
    /// some: then what they show is asked of all of them.
    pub(super) fn publish(&mut self, plan: &Plan, around: &Around<'_>, is_anew: bool) {
        let Some(made) = &self.made else { return };
        let enforcement = match made.stage {
            Stage::Permissive => Enforcement::Permissive,
            Stage::Staged(_) => Enforcement::Staged,
            Stage::Strict => Enforcement::Strict,
        };
        let is_staged = enforcement == Enforcement::Staged;
        self.reported.staged_since = is_staged.then(|| {
            let now = wall_time().0.as_secs();
            self.reported.staged_since.unwrap_or(now)
        });
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        self.reported.progress = Progress {
            peers_expected: count(plan.device.peers.len()),
            peers_ready: count(self.roster.ready().len()),
            unreached: Some(self.unreached(plan)),
            enforcement: Some(enforcement),
            latched: self.memory.is_strict(),
            latched_prefixes: self.memory.latched_of_record(made.book.settings().mode),
        };
        self.reported.conditions = self.conditions(plan, around, is_anew);
        let mode = made.book.settings().mode;
        let (port, mtu) = (plan.device.listen_port, plan.host.mtu);
        self.want(port, mode, mtu);
        self.post(around);
    }

    /// Brings the record in line with what is to be reported.
    fn want(&self, port: u16, mode: Mode, mtu: u32) {
        // What the record has of an earlier run is not replaced before it was read.
        let identity = self.memory.identity().filter(|_| self.has_recalled);
        let Some(identity) = identity else {
            return;
        };
        let addresses = self.own_facts().map(|facts| &facts.addresses);
        let addresses = addresses.into_iter().flatten().take(ENDPOINTS);
        let spec = MeshNodeSpec {
            node_uid: identity.uid.clone(),
            public_key: self.memory.private_key().public().to_string(),
            endpoints: addresses.map(ToString::to_string).collect(),
            port,
            mode,
            mtu,
            epoch: self.memory.epoch(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.publisher.want(
            &identity.uid,
            spec,
            self.reported.progress.clone(),
            self.reported.conditions.clone(),
        );
    }

    /// The same of a node that is none at present, by the Mesh as far as there is one.
    fn want_without_plan(&self) {
        let spec = self.spec_without_plan();
        let mtu = spec.mtu.unwrap_or(super::ETHERNET - super::AROUND_V6);
        self.want(spec.port, self.mode_without_plan(), mtu);
    }

    fn spec_without_plan(&self) -> MeshSpec {
        let view = self.believed.as_ref();
        let spec = view.and_then(|view| view.mesh.clone().flatten());
        let spec = spec.or_else(|| self.memory.mesh().cloned());
        spec.unwrap_or_default()
    }

    fn mode_without_plan(&self) -> Mode {
        self.spec_without_plan().mode.unwrap_or(Mode::Route)
    }

    /// The record of a node of which nothing can be said yet, and why.
    pub(super) fn publish_stalled(&mut self, sentence: &str, around: &Around<'_>) {
        let not = |reason: &str| Stated {
            holds: Holds::False,
            reason: reason.to_owned(),
            message: sentence.to_owned(),
        };
        // What was closed is so whether or not there is a plan.
        self.reported.progress = Progress {
            latched: self.memory.is_strict(),
            latched_prefixes: self.memory.latched_of_record(self.mode_without_plan()),
            ..Progress::default()
        };
        let mut conditions = BTreeMap::from([
            (ConditionType::Ready, not(NODE_UNREADY)),
            (ConditionType::Synced, self.synced()),
        ]);
        if let Some(view) = &self.believed {
            let mesh = view.mesh.as_ref().and_then(Option::as_ref);
            let configured = match self.refused.is_empty() {
                true => configured(mesh, Ok(&()), || proposal(view, self.has_overlay)),
                false => not("Unusable"),
            };
            conditions.insert(ConditionType::Configured, configured);
        }
        self.reported.conditions = conditions;
        self.want_without_plan();
        self.post(around);
    }

    /// The record of a node that has taken everything away.
    pub(super) fn publish_removed(&mut self, around: &Around<'_>, failure: Option<&str>) {
        let gone = failure.is_none();
        self.reported.staged_since = None;
        self.reported.progress = Progress {
            enforcement: gone.then_some(Enforcement::Removed),
            ..Progress::default()
        };
        let removed = Stated {
            holds: Holds::False,
            reason: if gone { "Removed" } else { "NotRemoved" }.to_owned(),
            message: failure
                .unwrap_or("the Mesh says Removed: nothing of Warren is on this node")
                .to_owned(),
        };
        let mut conditions = BTreeMap::from([(ConditionType::Ready, removed)]);
        // What came after the one that says so.
        if !self.refused.is_empty() {
            conditions.insert(ConditionType::Configured, self.unusable());
        }
        self.reported.conditions = conditions;
        self.want_without_plan();
        self.post(around);
    }

    fn own_facts(&self) -> Option<&NodeFacts> {
        let nodes = self.believed.as_ref()?.nodes.as_ref()?;
        nodes.get(self.node.as_str())
    }

    /// Peers on Ready nodes of which something may still be reached in the clear.
    fn unreached(&self, plan: &Plan) -> Vec<String> {
        let nodes = self.believed.as_ref().and_then(|view| view.nodes.as_ref());
        let is_ready = |name: &NodeName| {
            nodes.is_some_and(|nodes| nodes.get(name.as_str()).is_some_and(|node| node.ready))
        };
        let mode = (self.made.as_ref()).map(|made| made.book.settings().mode);
        let latched = mode.map(|mode| self.memory.latched(mode));
        let is_reached = |key| {
            let claims = plan.device.peers.get(&key);
            let claims = claims.into_iter().flat_map(|peer| &peer.allowed_ips);
            let mut claims = claims.peekable();
            claims.peek().is_some()
                && claims.all(|claim| latched.is_some_and(|latched| is_within(latched, claim)))
        };
        let key = |name: &NodeName| plan.peers.get(name)?.public_key;
        (self.roster.unready().iter())
            .filter(|name| key(name).is_some_and(|key| is_ready(name) && !is_reached(key)))
            .map(ToString::to_string)
            .take(NAMED)
            .collect()
    }

    fn conditions(
        &self,
        plan: &Plan,
        around: &Around<'_>,
        is_anew: bool,
    ) -> BTreeMap<ConditionType, Stated> {
        let stated = |holds, reason: &str, message: String| Stated {
            holds,
            reason: reason.to_owned(),
            message,
        };
        let mut conditions = BTreeMap::new();

        let Progress {
            peers_expected,
            peers_ready,
            ..
        } = self.reported.progress;
        let unready = self.roster.unready().iter().map(NodeName::as_str);
        let unready: Vec<&str> = unready.take(NAMED).collect();
        let why = around.board.facts().unready.clone();
        conditions.insert(
            ConditionType::Ready,
            match why {
                Some(why) => stated(Holds::False, NODE_UNREADY, why),
                None if peers_ready < peers_expected => stated(
                    Holds::False,
                    "PeersUnready",
                    format!("no tunnel to {} and maybe others", unready.join(", ")),
                ),
                None => stated(
                    Holds::True,
                    "PeersReady",
                    "the tunnel is up and every expected peer is ready".to_owned(),
                ),
            },
        );

        let view = self.believed.as_ref();
        let mesh = view.and_then(|view| view.mesh.as_ref()?.as_ref());
        let mesh = mesh.or(self.memory.mesh());
        // Which mode it is all nodes are asked.
        let detected = (self.reported.conditions.get(&ConditionType::Configured))
            .filter(|stated| !is_anew && stated.reason == "ModeDetected");
        let mut configured = match (&self.refused[..], view, detected) {
            ([], Some(_), Some(detected)) => detected.clone(),
            // A mode that is not set was found, and an overlay's interface has not been there then.
            ([], Some(view), None) => configured(mesh, Ok(&()), || proposal(view, false)),
            _ => self.unusable(),
        };
        if configured.reason == "ModeDetected"
            && let Some(sentence) = self.made.as_ref().and_then(Made::late_overlay)
        {
            configured.message = sentence;
        }
        conditions.insert(ConditionType::Configured, configured);
        conditions.insert(ConditionType::Synced, self.synced());

        let of_this = |place: &Place| *place == Place::Node(self.node.clone());
        let claims: Vec<String> = (plan.problems.iter())
            .filter(|problem| {
                problem.severity() == Severity::Error && of_this(&problem.subject.place)
            })
            .map(ToString::to_string)
            .collect();
        conditions.insert(
            ConditionType::ClaimsAccepted,
            match claims.is_empty() {
                true => stated(
                    Holds::True,
                    "Accepted",
                    "no other node claims this one's key or prefixes".to_owned(),
                ),
                false => stated(Holds::False, "Contested", claims.join("; ")),
            },
        );
        conditions
    }

    /// The Mesh as it is now is refused.
    fn unusable(&self) -> Stated {
        Stated {
            holds: Holds::False,
            reason: "Unusable".to_owned(),
            message: self.refused.join("; "),
        }
    }

    /// Whether what the API says is believed.
    fn synced(&self) -> Stated {
        let (holds, reason, message) = match &self.distrust {
            None => (
                Holds::True,
                "Synced",
                "what the API says is complete and of this cluster".to_owned(),
            ),
            Some(distrust @ Distrust::Partial(_)) => {
                (Holds::Unknown, "Partial", distrust.to_string())
            }
            Some(distrust) => (Holds::False, "Distrusted", distrust.to_string()),
        };
        Stated {
            holds,
            reason: reason.to_owned(),
            message,
        }
    }

    /// Posts the node's part in the cluster for those who ask on this host.
    pub(super) fn post(&mut self, around: &Around<'_>) {
        let report = self.publisher.report();
        if let Some(epoch) = report.epoch {
            self.memory.published(epoch);
        }
        let progress = &self.reported.progress;
        let now = wall_time().0.as_secs();
        let api = self.feed.health().0.into_iter().map(|(kind, health)| {
            let silent = health.silent.unwrap_or_else(|| self.started.elapsed());
            let feed = status::Feed {
                staleness_s: silent.as_secs(),
                error: health.error,
            };
            (kind.to_owned(), feed)
        });
        let conditions = self
            .reported
            .conditions
            .iter()
            .map(|(kind, stated)| status::Condition {
                kind: kind.to_string(),
                status: match stated.holds {
                    Holds::True => status::ConditionStatus::True,
                    Holds::False => status::ConditionStatus::False,
                    Holds::Unknown => status::ConditionStatus::Unknown,
                },
                reason: stated.reason.clone(),
                message: stated.message.clone(),
            });
        let cluster = status::Cluster {
            enforcement: progress.enforcement.map(|enforcement| match enforcement {
                Enforcement::Staged => status::Enforcement::Staged,
                Enforcement::Strict => status::Enforcement::Strict,
                Enforcement::Permissive => status::Enforcement::Permissive,
                Enforcement::Removed => status::Enforcement::Removed,
            }),
            staged_s: self
                .reported
                .staged_since
                .map(|since| now.saturating_sub(since)),
            holdups: match self.made.as_ref().map(|made| &made.stage) {
                Some(Stage::Staged(holdups)) => (holdups.nodes.iter())
                    .map(|(name, lack)| (name.clone(), lack.to_string()))
                    .collect(),
                _ => BTreeMap::new(),
            },
            latched: progress.latched,
            latched_prefixes: u32::try_from(self.memory.latched_count()).unwrap_or(u32::MAX),
            peers_expected: progress.peers_expected,
            peers_ready: progress.peers_ready,
            api: api.collect(),
            key_changes: self.key_changes,
            epoch: report.epoch,
            conditions: conditions.collect(),
        };
        around.board.facts().cluster = Some(cluster);
    }

    /// What is not as it should be beyond the plan, a sentence each.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        complaints.extend(self.denied.iter().cloned());
        let report = self.publisher.report();
        complaints.extend(report.error.filter(|_| !report.denied));
        match &self.distrust {
            Some(distrust) if !matches!(distrust, Distrust::Partial(_)) => {
                complaints.push(format!("all stays as it is, since {distrust}"));
            }
            _ => {}
        }
        if let Some(LargerBehind {
            interface,
            mtu,
            tunnel,
        }) = &self.larger_behind
        {
            complaints.push(format!(
                "{interface} leads to this node's pods with an MTU of {mtu}, and the tunnel has {tunnel}; give pods at \
                 most that, or their large packets are refused until they have learnt it"
            ));
        }
        complaints.extend(self.made.as_ref().and_then(Made::late_overlay));
        let findings = || self.made.iter().flat_map(|made| made.book.findings());
        let count = findings().count();
        complaints.extend(findings().take(NAMED).map(ToString::to_string));
        if let more @ 1.. = count.saturating_sub(NAMED) {
            complaints.push(format!("and {more} more of the kind"));
        }
        complaints.extend(self.memory.complaints());
        if let Some(Stage::Staged(holdups)) = self.made.as_ref().map(|made| &made.stage) {
            complaints.push(format!("the mesh is staged: {holdups}"));
        }
        complaints
    }
}
