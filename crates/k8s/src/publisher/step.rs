//! What to write next, if anything: from what is wanted and what is there.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use warren_mesh::NodeName;

use super::{Holds, Wanted, bytes, record};
use crate::facts::is_owned;
use crate::objects::MeshNodeObject;
use crate::resources::{MeshNodeSpec, MeshNodeStatus};

/// Between two writes of the spec at first. It doubles while something else keeps changing it back.
const SPEC: Duration = Duration::from_secs(1);

/// Between two writes of the spec at most.
const SPEC_AT_MOST: Duration = Duration::from_secs(60);

/// Between two epochs.
const EPOCH: Duration = Duration::from_secs(10);

/// Between two writes of a status that says something new of the node.
const STATUS: Duration = Duration::from_secs(1);

/// Between two writes of a status that only counts on, in a small mesh.
const COUNTS: Duration = Duration::from_secs(10);

/// The same for each node of the mesh: every write of one node is read by all others, so that each
/// node writes less often the more there are. 5,000 nodes that all count on write 20 times a second.
const COUNTS_PER_NODE: Duration = Duration::from_millis(50);

/// What is there.
#[derive(Debug)]
pub(super) struct Seen {
    /// The uid of this node's `Node`; `None` before the first list, and none in it if it has none.
    pub(super) node: Option<Option<String>>,
    /// How many nodes there are.
    pub(super) nodes: usize,
    /// The record, likewise.
    pub(super) record: Option<Option<MeshNodeObject>>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All is as wanted, or nothing is known yet.
    Nothing,
    /// Not before then.
    Wait(Instant),
    /// Nothing, until this has changed.
    Stopped(String),
    /// Apply this object.
    Spec(Vec<u8>),
    /// Apply this object's status.
    Status(Vec<u8>),
}

/// When what was written last.
#[derive(Debug)]
pub(super) struct Pace {
    /// No spec before this.
    spec_from: Instant,
    /// How long the next one waits after one that is written now.
    spec_wait: Duration,
    spec_at: Option<Instant>,
    status_at: Option<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant, hold: Duration) -> Self {
        Self {
            spec_from: now + hold,
            spec_wait: SPEC,
            spec_at: None,
            status_at: None,
        }
    }

    pub(super) fn spec_written(&mut self, now: Instant) {
        // Who is at peace for a while starts over.
        if self.spec_at.is_some_and(|at| now - at > 2 * SPEC_AT_MOST) {
            self.spec_wait = SPEC;
        }
        self.spec_from = now + self.spec_wait;
        self.spec_wait = SPEC_AT_MOST.min(self.spec_wait * 2);
        self.spec_at = Some(now);
    }

    pub(super) fn status_written(&mut self, now: Instant) {
        self.status_at = Some(now);
    }
}

/// What to do next to bring the record of `name` from what is `seen` to what is `wanted`.
pub(super) fn step(
    wanted: &Wanted,
    name: &NodeName,
    seen: &Seen,
    pace: &Pace,
    now: Instant,
    wall: Timestamp,
) -> Step {
    let (Some(node), Some(record)) = (&seen.node, &seen.record) else {
        return Step::Nothing;
    };
    match node {
        Some(uid) if *uid == wanted.uid => {}
        Some(uid) => {
            return Step::Stopped(format!(
                "the Node {name} was made anew and has the uid {uid}; this daemon runs for {}, and \
                 writes nothing",
                wanted.uid
            ));
        }
        None => {
            return Step::Stopped(format!(
                "there is no Node {name}, and so nothing is published"
            ));
        }
    }

    let there = record.as_ref().filter(|record| is_own(record, wanted));
    let Some(there) = there else {
        let new_epoch =
            (record.as_ref()).is_none_or(|record| record.spec.epoch != wanted.spec.epoch);
        let epoch_from = pace.spec_at.filter(|_| new_epoch).map(|at| at + EPOCH);
        let from = epoch_from.map_or(pace.spec_from, |from| from.max(pace.spec_from));
        return if now < from {
            Step::Wait(from)
        } else {
            Step::Spec(spec_object(name.as_str(), &wanted.uid, &wanted.spec))
        };
    };

    let before = there.status.as_ref();
    let status = status(wanted, before, wall);
    if before == Some(&status) {
        return Step::Nothing;
    }
    let pause = match before {
        Some(before) if counts_on(before, &status) => {
            COUNTS.max(COUNTS_PER_NODE * u32::try_from(seen.nodes).unwrap_or(u32::MAX))
        }
        _ => STATUS,
    };
    let from = pace.status_at.map_or(now, |at| at + pause);
    if now < from {
        Step::Wait(from)
    } else {
        Step::Status(status_object(name.as_str(), &status))
    }
}

/// An object with this spec, owned by the `Node` of its name.
pub(super) fn spec_object(name: &str, uid: &str, spec: &MeshNodeSpec) -> Vec<u8> {
    let mut object = record(name);
    object["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]);
    object["spec"] = json!(spec);
    bytes(&object)
}

fn status_object(name: &str, status: &MeshNodeStatus) -> Vec<u8> {
    let mut object = record(name);
    object["status"] = json!(status);
    bytes(&object)
}

/// Whether all of a record but its status is as wanted.
fn is_own(record: &MeshNodeObject, wanted: &Wanted) -> bool {
    let metadata = &record.metadata;
    record.spec == wanted.spec && is_owned(&metadata.owner_references, &metadata.name, &wanted.uid)
}

/// The status that is wanted. A condition's time is that of its last change, and stays without one.
fn status(wanted: &Wanted, before: Option<&MeshNodeStatus>, now: Timestamp) -> MeshNodeStatus {
    let progress = &wanted.progress;
    let conditions = wanted.conditions.iter().map(|(kind, stated)| {
        let kind = kind.to_string();
        let status = match stated.holds {
            Holds::True => "True",
            Holds::False => "False",
            Holds::Unknown => "Unknown",
        };
        let before = before.iter().flat_map(|before| &before.conditions);
        let mut same = before.filter(|before| before.type_ == kind && before.status == status);
        // The API has no fractions of seconds.
        let now = || Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
        Condition {
            last_transition_time: same
                .next()
                .map_or_else(now, |same| same.last_transition_time.clone()),
            message: stated.message.clone(),
            observed_generation: None,
            reason: stated.reason.clone(),
            status: status.to_owned(),
            type_: kind,
        }
    });
    MeshNodeStatus {
        peers_expected: progress.peers_expected,
        peers_ready: progress.peers_ready,
        unreached: progress.unreached.clone(),
        enforcement: progress.enforcement,
        latched: progress.latched,
        conditions: conditions.collect(),
    }
}

/// Whether nothing differs but numbers and words.
fn counts_on(before: &MeshNodeStatus, after: &MeshNodeStatus) -> bool {
    let conditions = |status: &MeshNodeStatus| -> Vec<(String, String, String)> {
        let conditions = status.conditions.iter();
        conditions
            .map(|condition| {
                let Condition {
                    type_,
                    status,
                    reason,
                    ..
                } = condition.clone();
                (type_, status, reason)
            })
            .collect()
    };
    before.enforcement == after.enforcement
        && before.latched == after.latched
        && conditions(before) == conditions(after)
}
