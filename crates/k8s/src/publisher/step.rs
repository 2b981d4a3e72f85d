//! What to write next, if anything: from what is wanted and what is there.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use warren_mesh::NodeName;

use super::{Holds, Stated, Wanted, bytes, record};
use crate::epoch;
use crate::facts::is_owned;
use crate::objects::MeshNodeObject;
use crate::resources::{ConditionType, MeshNodeSpec, MeshNodeStatus};

/// Between two writes of the spec at first. It doubles while something else keeps changing it back.
const SPEC: Duration = Duration::from_secs(1);

/// Between two writes of the spec at most.
const SPEC_AT_MOST: Duration = Duration::from_secs(60);

/// Between two writes of a status that says something new of the node.
const STATUS: Duration = Duration::from_secs(1);

/// Between two writes of a status that only counts on, for each node of the mesh: every write of one node is
/// read by all others, so that each node writes less often the more there are. 5,000 nodes that all count on
/// write 20 times a second. While the mesh is staged it is the counts that turn it strict, so that few nodes
/// do not wait.
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

impl Seen {
    /// What the record says of a condition.
    pub(super) fn stated(&self, kind: ConditionType) -> Option<Stated> {
        let status = self.record.as_ref()?.as_ref()?.status.as_ref()?;
        let kind = kind.to_string();
        let condition = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)?;
        Some(Stated {
            holds: match condition.status.as_str() {
                "True" => Holds::True,
                "False" => Holds::False,
                _ => Holds::Unknown,
            },
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        })
    }
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
        let epoch = record
            .as_ref()
            .and_then(|record| Some(record.spec.as_ref()?.epoch));
        let new_epoch = epoch.is_some_and(|epoch| epoch != wanted.spec.epoch);
        let epoch_from = pace
            .spec_at
            .filter(|_| new_epoch)
            .map(|at| at + epoch::PAUSE);
        let from = epoch_from.map_or(pace.spec_from, |from| from.max(pace.spec_from));
        return if now < from {
            Step::Wait(from)
        } else {
            Step::Spec(spec_object(name.as_str(), &wanted.uid, &wanted.spec))
        };
    };

    let before = there.status.as_ref();
    let status = status(wanted, before, wall);
    if before.is_some_and(|before| ordered(before) == ordered(&status)) {
        return Step::Nothing;
    }
    let pause = match before {
        Some(before) if counts_on(before, &status) => {
            STATUS.max(COUNTS_PER_NODE * u32::try_from(seen.nodes).unwrap_or(u32::MAX))
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
    record.spec.as_ref() == Some(&wanted.spec)
        && is_owned(&metadata.owner_references, &metadata.name, &wanted.uid)
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
        node_uid: Some(wanted.uid.clone()),
        peers_expected: progress.peers_expected,
        peers_ready: progress.peers_ready,
        unreached: progress.unreached.clone(),
        enforcement: progress.enforcement,
        latched: progress.latched,
        latched_prefixes: (progress.latched_prefixes.iter())
            .map(ToString::to_string)
            .collect(),
        conditions: conditions.collect(),
    }
}

/// A status in one order, and without what others have put into it: the server keeps conditions as a
/// map, in an order of its own.
fn ordered(status: &MeshNodeStatus) -> MeshNodeStatus {
    let mut status = status.clone();
    let ours = ConditionType::ALL.map(|kind| kind.to_string());
    (status.conditions).retain(|condition| ours.contains(&condition.type_));
    (status.conditions).sort_by(|a, b| a.type_.cmp(&b.type_));
    status
}

/// Reasons of the condition `Ready` that say something of the peers alone.
const OF_PEERS: [&str; 2] = ["PeersReady", "PeersUnready"];

/// Whether nothing differs but numbers, names and sentences, and whether all peers are ready: a node that
/// dies changes that at all others.
fn counts_on(before: &MeshNodeStatus, after: &MeshNodeStatus) -> bool {
    let told = |status: &MeshNodeStatus| {
        let conditions = ordered(status).conditions.into_iter();
        let conditions = conditions.filter(|condition| !OF_PEERS.contains(&&*condition.reason));
        let conditions: Vec<_> = conditions
            .map(|condition| (condition.type_, condition.status, condition.reason))
            .collect();
        (status.enforcement, status.latched, conditions)
    };
    told(before) == told(after)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;
    use crate::facts::Progress;
    use crate::resources::{Enforcement, Mode};

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn nothing_is_written_before_it_is_known_what_is_there() {
        let world = World::new();
        for seen in [
            Seen {
                node: None,
                ..world.seen()
            },
            Seen {
                record: None,
                ..world.seen()
            },
        ] {
            assert_eq!(world.step(&seen), Step::Nothing);
        }
        assert!(matches!(world.step(&world.seen()), Step::Spec(_)));
    }

    #[test]
    fn nothing_is_written_for_a_node_that_is_not_this_one() {
        let world = World::new();
        let step = world.step(&Seen {
            node: Some(Some("uid-2".to_owned())),
            ..world.seen()
        });
        assert!(
            matches!(&step, Step::Stopped(why) if why.contains("made anew")),
            "{step:?}"
        );
        let step = world.step(&Seen {
            node: Some(None),
            ..world.seen()
        });
        assert!(
            matches!(&step, Step::Stopped(why) if why.contains("no Node a")),
            "{step:?}"
        );
    }

    #[test]
    fn the_record_is_made_then_its_status_and_then_nothing_more() {
        let mut world = World::new();
        assert_eq!(world.run(Duration::from_secs(600)), 2);
        let record = world.record.clone().expect("it was made");
        assert_eq!(record.spec, Some(world.wanted.spec.clone()));
        assert!(record.status.is_some());
        assert_eq!(world.run(Duration::from_secs(3600)), 0);
    }

    #[test]
    fn a_record_of_another_owner_or_with_anything_changed_is_written_again() {
        for change in [
            (|record| record.metadata.owner_references.clear()) as fn(&mut MeshNodeObject),
            |record| record.metadata.owner_references[0].uid = "uid-0".to_owned(),
            |record| record.spec = None,
            |record| {
                if let Some(spec) = &mut record.spec {
                    spec.port = 1;
                }
            },
        ] {
            let mut world = World::new();
            world.run(Duration::from_secs(60));
            change(world.record.as_mut().expect("it was made"));
            assert_eq!(world.run(Duration::from_secs(60)), 1);
            assert_eq!(world.run(Duration::from_secs(60)), 0);
        }
    }

    #[test]
    fn who_keeps_changing_the_record_back_is_answered_ever_more_rarely() {
        let mut world = World::new();
        let mut writes = 0;
        for _ in 0..3600 {
            writes += world.run(Duration::from_secs(1));
            if let Some(spec) = world
                .record
                .as_mut()
                .and_then(|record| record.spec.as_mut())
            {
                spec.port = 1;
            }
        }
        // Once a minute in the end.
        assert!((60..90).contains(&writes), "{writes}");
    }

    #[test]
    fn an_epoch_is_written_ten_seconds_after_the_last_one_at_the_earliest() {
        let mut world = World::new();
        world.run(Duration::from_secs(1));
        world.wanted.spec.epoch += 1;
        assert_eq!(world.run(Duration::from_secs(8)), 0);
        assert_eq!(world.run(Duration::from_secs(3)), 1);
    }

    #[test]
    fn a_start_holds_its_first_record_back() {
        let mut world = World::new();
        world.pace = Pace::new(world.now, Duration::from_secs(7));
        assert_eq!(world.run(Duration::from_secs(6)), 0);
        assert_eq!(world.run(Duration::from_secs(2)), 2);
    }

    #[test]
    fn what_only_counts_on_is_written_the_less_often_the_more_nodes_read_it() {
        for (nodes, most) in [(3, 3600), (100, 721), (5000, 15)] {
            let mut world = World::new();
            world.nodes = nodes;
            world.run(Duration::from_secs(60));
            let mut writes = 0;
            for _ in 0..3600 {
                world.wanted.progress.peers_ready += 1;
                writes += world.run(Duration::from_secs(1));
            }
            assert!(
                (most - 2..=most).contains(&writes),
                "{nodes} nodes: {writes}"
            );
        }
    }

    #[test]
    fn what_people_should_know_is_written_at_once() {
        for change in [
            (|wanted| wanted.progress.latched = true) as fn(&mut Wanted),
            |wanted| wanted.progress.enforcement = Some(Enforcement::Strict),
            |wanted| {
                for stated in wanted.conditions.values_mut() {
                    stated.holds = Holds::True;
                }
            },
            |wanted| {
                for stated in wanted.conditions.values_mut() {
                    stated.reason = "Other".to_owned();
                }
            },
        ] {
            let mut world = World::new();
            world.nodes = 5000;
            world.run(Duration::from_secs(60));
            change(&mut world.wanted);
            assert_eq!(world.run(NONE), 1);
        }
    }

    #[test]
    fn a_condition_has_the_time_of_its_last_change_and_no_other() {
        let mut world = World::new();
        let time = |world: &World| {
            let status = world
                .record
                .as_ref()
                .and_then(|record| record.status.clone());
            status.expect("a status").conditions[0]
                .last_transition_time
                .0
        };
        world.run(Duration::from_secs(60));
        let first = time(&world);
        let stated = |world: &mut World, holds, message: &str| {
            let stated = world.wanted.conditions.get_mut(&ConditionType::Ready);
            let stated = stated.expect("it is stated");
            stated.holds = holds;
            stated.message = message.to_owned();
        };
        stated(&mut world, Holds::False, "less");
        assert_eq!(world.run(Duration::from_secs(60)), 1);
        assert_eq!(time(&world), first);
        stated(&mut world, Holds::True, "all");
        assert_eq!(world.run(Duration::from_secs(60)), 1);
        assert!(time(&world) > first);
    }

    /// A server that takes what is written, and time that passes when told.
    struct World {
        wanted: Wanted,
        record: Option<MeshNodeObject>,
        nodes: usize,
        pace: Pace,
        start: Instant,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let ready = Stated {
                holds: Holds::False,
                reason: "NotYet".to_owned(),
                message: "0 of 2".to_owned(),
            };
            Self {
                wanted: Wanted {
                    uid: "uid-1".to_owned(),
                    spec: MeshNodeSpec {
                        node_uid: "uid-1".to_owned(),
                        public_key: "key".to_owned(),
                        endpoints: Vec::new(),
                        port: 51820,
                        mode: Mode::Route,
                        mtu: 1420,
                        epoch: 1,
                        version: "0.1.0".to_owned(),
                    },
                    progress: Progress::default(),
                    conditions: BTreeMap::from([(ConditionType::Ready, ready)]),
                },
                record: None,
                nodes: 3,
                pace: Pace::new(now, NONE),
                start: now,
                now,
            }
        }

        fn seen(&self) -> Seen {
            Seen {
                node: Some(Some("uid-1".to_owned())),
                nodes: self.nodes,
                record: Some(self.record.clone()),
            }
        }

        fn step(&self, seen: &Seen) -> Step {
            let wall = 1_800_000_000 + (self.now - self.start).as_secs();
            let wall = Timestamp::from_second(wall.try_into().expect("not long")).expect("a time");
            let name = "a".parse().expect("a name");
            step(&self.wanted, &name, seen, &self.pace, self.now, wall)
        }

        /// Lets time pass; how much was written.
        fn run(&mut self, time: Duration) -> usize {
            let end = self.now + time;
            let mut writes = 0;
            loop {
                match self.step(&self.seen()) {
                    Step::Wait(until) if until <= end => self.now = until,
                    Step::Wait(_) | Step::Nothing => {
                        self.now = end;
                        return writes;
                    }
                    Step::Spec(object) => {
                        self.pace.spec_written(self.now);
                        let object: Value = serde_json::from_slice(&object).expect("JSON");
                        let status = self.record.take().and_then(|record| record.status);
                        let mut record: MeshNodeObject =
                            serde_json::from_value(object).expect("a record");
                        record.status = status;
                        self.record = Some(record);
                        writes += 1;
                    }
                    Step::Status(object) => {
                        self.pace.status_written(self.now);
                        let object: Value = serde_json::from_slice(&object).expect("JSON");
                        let status = serde_json::from_value(object["status"].clone());
                        let record = self.record.as_mut().expect("its spec was written first");
                        record.status = Some(status.expect("a status"));
                        writes += 1;
                    }
                    Step::Stopped(why) => panic!("{why}"),
                }
            }
        }
    }
}
