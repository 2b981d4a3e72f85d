//! What the daemon tells of itself: facts that the control loop posts, and the engine's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use warren_config::{DeviceStatus, Steering};
use warren_control::status::{self, Cluster, Fences, Node, Peer, Source, Status};
use warren_engine::Engine;
use warren_mesh::{Description, NodeName, Plan};
use warren_netlink::{Nftables, Report};

/// Where the control loop posts what it knows, and clients' threads read it.
pub(crate) struct Board {
    node: NodeName,
    facts: Mutex<Facts>,
    /// When the control loop last came round.
    round: Mutex<Instant>,
}

/// What is known beyond the engine. A copy costs little, so that nobody waits while it is told.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    /// What carries the packets, if anything does.
    pub(crate) engine: Option<Arc<Engine>>,
    /// What is in force.
    pub(crate) plan: Option<Arc<Plan>>,
    /// The digest of the file in force, where there is a file.
    pub(crate) digest: Option<String>,
    /// How the fence stands, in words; `None` where nothing is fenced.
    pub(crate) fence: Option<String>,
    /// The same, as facts.
    pub(crate) fences: Option<Fences>,
    /// Packets that the fence has dropped, by counter.
    pub(crate) fence_drops: BTreeMap<String, u64>,
    /// Whether nftables is in use.
    pub(crate) nftables: bool,
    /// What is not as it should be, a sentence each.
    pub(crate) problems: Vec<String>,
    /// Why this node carries no traffic, if it does not.
    pub(crate) unready: Option<String>,
    /// Its part in a cluster, if it is in one.
    pub(crate) cluster: Option<Cluster>,
    /// The peers that are ready, by name, where somebody judges it.
    pub(crate) ready_peers: Option<Arc<BTreeSet<String>>>,
    /// The digests that other nodes have told, by their names.
    pub(crate) digests: BTreeMap<String, String>,
}

impl Board {
    /// Nothing is known yet but which node this is.
    pub(crate) fn new(node: NodeName) -> Self {
        Self {
            node,
            facts: Mutex::new(Facts {
                unready: Some("it has just started".to_owned()),
                ..Facts::default()
            }),
            round: Mutex::new(Instant::now()),
        }
    }

    /// The facts, to be read or changed.
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        // A thread that panicked while it held them left facts, if old ones.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control loop has come round.
    pub(crate) fn came_round(&self) {
        *self.round.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// For how long it has not.
    fn idle(&self) -> Duration {
        let round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        round.elapsed()
    }
}

impl Source for Board {
    fn unready(&self) -> Option<String> {
        self.facts().unready.clone()
    }

    fn control_idle_s(&self) -> Option<u64> {
        Some(self.idle().as_secs())
    }

    fn status(&self) -> Status {
        let facts = self.facts().clone();
        let engine = facts.engine.as_ref();
        let device = engine.map_or_else(DeviceStatus::default, |engine| engine.status());
        let mut status = Status::of_device(&device);
        status.node.name = Some(self.node.to_string());
        status.node.version = env!("CARGO_PKG_VERSION").to_owned();
        status.node.mesh_digest.clone_from(&facts.digest);
        status.node.fence.clone_from(&facts.fence);
        status.fences = facts.fences;
        status.unready.clone_from(&facts.unready);
        status.cluster.clone_from(&facts.cluster);
        status.control_idle_s = Some(self.idle().as_secs());
        if let Some(engine) = engine {
            let report = engine.report();
            status.node = Node {
                interface: report.interface,
                up: report.up,
                mtu: report.mtu,
                workers: report.workers as u32,
                aead: report.aead.to_owned(),
                aead_longest_bytes: report.aead_longest.map(|longest| longest as u64),
                ..status.node
            };
            status.waiting = Some(status::Waiting {
                handshakes: report.waiting.handshakes as u64,
                staged_bytes: report.waiting.staged_bytes as u64,
            });
            status.features = (report.features.iter())
                .map(|(name, used)| ((*name).to_owned(), *used))
                .collect();
            status.drops = (report.drops.iter())
                .map(|(&name, &count)| (name.to_owned(), count))
                .collect();
        }
        status
            .features
            .insert("nftables".to_owned(), facts.nftables);
        status.drops.extend(
            (facts.fence_drops.iter()).map(|(name, count)| (format!("fence_{name}"), *count)),
        );
        status.problems.clone_from(&facts.problems);
        if let Some(plan) = &facts.plan {
            status.node.addresses.clone_from(&plan.host.addresses);
            let fence = &plan.host.fence;
            status.node.mesh_prefixes.clone_from(&fence.mesh);
            status.node.own_prefixes.clone_from(&fence.local);
            status.node.open_prefixes.clone_from(&fence.open);
            if let Steering::Overlay { ports } = &plan.host.steering {
                status.node.overlay_ports.clone_from(ports);
            }
            name_peers(&mut status, plan, &facts);
            status.plan = (Description::of(plan).sections.into_iter())
                .map(|section| status::Section {
                    heading: section.heading,
                    lines: section.lines,
                })
                .collect();
        }
        status
    }
}

/// Gives the peers their names, and those that the device does not have a place.
fn name_peers(status: &mut Status, plan: &Plan, facts: &Facts) {
    let mut known: BTreeMap<String, Peer> = std::mem::take(&mut status.peers)
        .into_iter()
        .filter_map(|peer| Some((peer.public_key.clone()?, peer)))
        .collect();
    for (name, planned) in &plan.peers {
        let name = name.as_str();
        let key = planned.public_key.map(|key| key.to_string());
        let mut peer = key.and_then(|key| known.remove(&key)).unwrap_or_default();
        peer.name = Some(name.to_owned());
        peer.mesh_digest = facts.digests.get(name).cloned();
        let ready = facts
            .ready_peers
            .as_ref()
            .filter(|_| planned.public_key.is_some());
        peer.ready = ready.map(|ready| ready.contains(name));
        let runs_another = peer.mesh_digest.is_some() && peer.mesh_digest != facts.digest;
        peer.problem = if planned.outside {
            Some("it is an exception: what it has is reached in the clear".to_owned())
        } else if planned.public_key.is_none() {
            Some("it is fenced: nothing is sent to it".to_owned())
        } else if planned.unreachable {
            Some("it cannot be reached: neither side has an endpoint".to_owned())
        } else if runs_another {
            Some("it runs another mesh file".to_owned())
        } else {
            None
        };
        status.peers.push(peer);
    }
    status.peers.extend(known.into_values());
}

/// How the fence stands, as facts.
pub(crate) fn fences(report: &Report) -> Fences {
    Fences {
        rules: report.rules_stand,
        nftables: report.table_stands,
        boot: is_loaded_at_boot(),
    }
}

/// How the fence stands, in words.
pub(crate) fn fence_in_words(report: &Report) -> String {
    let ahead: Vec<String> = report.ahead.iter().map(ToString::to_string).collect();
    let ahead = ahead.join(" and ");
    let now = match (report.rules_stand, report.table_stands, &report.nftables) {
        (false, true, _) if !ahead.is_empty() => {
            format!("closed by nftables alone: {ahead} may take packets past the fence's rules")
        }
        (false, false, _) if !ahead.is_empty() => format!(
            "OPEN: {ahead} may take packets past the fence's rules, and nftables does not stand"
        ),
        (true, true, _) => "closed twice, by rules and by nftables".to_owned(),
        (true, false, Nftables::Absent(why)) => {
            format!("closed by rules alone, since there is no nftables here ({why})")
        }
        (true, false, Nftables::Present(_)) => {
            "closed by rules alone; nftables is being put back".to_owned()
        }
        (false, true, _) => "closed by nftables alone; the rules are being put back".to_owned(),
        (false, false, _) => "OPEN: neither rules nor nftables stand".to_owned(),
    };
    let boot = match is_loaded_at_boot() {
        true => "closed from boot",
        false => "open from boot to start, since warren-fence.service is not enabled",
    };
    format!("{now}; {boot}")
}

/// Whether systemd loads the fence before the network.
fn is_loaded_at_boot() -> bool {
    is_wanted(Path::new("/etc/systemd/system"))
}

/// Whether a target of these units wants the fence's. In a pod this is all of the host that there is, and what
/// the link leads to is not.
fn is_wanted(units: &Path) -> bool {
    let link = |entry: std::fs::DirEntry| entry.path().join("warren-fence.service");
    std::fs::read_dir(units).is_ok_and(|units| {
        let mut links = units.flatten().map(link);
        links.any(|link| link.symlink_metadata().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::{fs, process};

    use warren_control::status::Source as _;

    use super::{Board, is_wanted};

    #[test]
    fn a_daemon_that_has_just_started_is_not_ready() {
        let board = Board::new("n1".parse().expect("a name"));
        assert_eq!(board.unready().as_deref(), Some("it has just started"));
        assert_eq!(board.status().unready, board.unready());
    }

    #[test]
    fn a_unit_that_a_target_wants_is_seen_also_where_the_unit_itself_is_not() {
        let units = std::env::temp_dir().join(format!("warrend-units-{}", process::id()));
        let wants = units.join("sysinit.target.wants");
        fs::create_dir_all(&wants).expect("a temporary directory");
        fs::write(units.join("warren-fence.service"), "").expect("ours");
        assert!(!is_wanted(&units), "it is there and not enabled");
        let link = wants.join("warren-fence.service");
        symlink("/nowhere/warren-fence.service", link).expect("ours");
        assert!(is_wanted(&units));
        fs::remove_dir_all(&units).expect("ours");
        assert!(!is_wanted(&units));
    }
}
