//! This node's own record, kept as it should be, and what people are told by events.
//!
//! Level-triggered: what is wanted is compared with what is there, whoever changed it, and only a
//! difference is written ([`step()`]). One task writes the record, another the events.

mod events;
mod step;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use warren_mesh::NodeName;

use self::events::Events;
pub use self::events::{Event, Severity};
use self::step::{Pace, Seen, Step, step};
use crate::access::{Client, Denied, Failure, OWN_RECORD};
use crate::backoff::{Backoff, jittered};
use crate::facts::Progress;
use crate::feed::{Feed, Shared};
use crate::objects::MeshNodeObject;
use crate::resources::{ConditionType, GROUP, MeshNodeSpec, VERSION};

/// Under which name this writes, in the books that the API server keeps of every field.
const MANAGER: &str = "warrend";

/// The name of the foreign record that is tried. No node has it.
const FOREIGN: &str = "warren-foreign-record";

/// How often a foreign record is tried, less a third by chance.
const TRY_AGAIN: Duration = Duration::from_secs(3600);

/// Keeps this node's record. Its tasks end with it, and leave the record as it is.
#[derive(Debug)]
pub struct Publisher {
    mine: Arc<Mine>,
    _tasks: JoinSet<()>,
}

/// Whether a condition holds, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    /// Whether it does.
    pub holds: Holds,
    /// One word in CamelCase, for programs.
    pub reason: String,
    /// A sentence, for people.
    pub message: String,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows yet.
    Unknown,
}

/// How publishing goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishReport {
    /// Why the record is not as it should be, if it is not and that is not a matter of a moment.
    pub error: Option<String>,
    /// That is so since this daemon has no right to write it.
    pub denied: bool,
    /// What became of a write to a foreign record.
    pub foreign: Foreign,
    /// The epoch that the record has by the API server's word.
    pub epoch: Option<i64>,
    /// Writes to the record that the API server took.
    pub writes: u64,
    /// Events that were dropped since there were too many.
    pub events_dropped: u64,
}

/// What becomes of this daemon's write to another node's record. It is tried without doing it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Foreign {
    /// It was not tried yet.
    #[default]
    Untried,
    /// The policy `warren-own-record` refuses it, as it should be.
    Refused,
    /// It is refused by something else: a missing right, or a policy of others. Then nothing is told of whether
    /// ours would.
    Unknown(String),
    /// It is taken: any daemon could replace any node's key.
    Taken,
}

/// What [`Publisher::want`] was told last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    uid: String,
    spec: MeshNodeSpec,
    progress: Progress,
    conditions: BTreeMap<ConditionType, Stated>,
}

#[derive(Debug)]
struct Mine {
    node: NodeName,
    wanted: signal::Sender<Option<Wanted>>,
    events: Mutex<Events>,
    more_events: tokio::sync::Notify,
    report: Mutex<PublishReport>,
}

impl Publisher {
    /// Keeps the record of the node that `feed` was started for, which is this one. Nothing is written before
    /// the first [`Publisher::want`], before `hold` is over, which keeps daemons that start in a loop from
    /// writing an epoch each time, and before the feed has this node. Runs on the current tokio
    /// runtime.
    pub fn start(client: &Client, feed: &Feed, node: &NodeName, hold: Duration) -> Self {
        let mine = Arc::new(Mine {
            node: node.clone(),
            wanted: signal::channel(None).0,
            events: Mutex::default(),
            more_events: tokio::sync::Notify::new(),
            report: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let shared = feed.shared();
        tasks.spawn(publish(client.clone(), shared, mine.clone(), hold));
        tasks.spawn(try_foreign(client.clone(), mine.clone()));
        tasks.spawn(events::tell(client.clone(), mine.clone()));
        Self {
            mine,
            _tasks: tasks,
        }
    }

    /// What the record of this node, whose `Node` has this `uid`, should say. Where nothing is said of
    /// [`ConditionType::IdentityEnforced`], what was tried is.
    pub fn want(
        &self,
        uid: &str,
        spec: MeshNodeSpec,
        progress: Progress,
        conditions: BTreeMap<ConditionType, Stated>,
    ) {
        let wanted = Some(Wanted {
            uid: uid.to_owned(),
            spec,
            progress,
            conditions,
        });
        self.mine.wanted.send_if_modified(|before| {
            let differs = *before != wanted;
            *before = wanted;
            differs
        });
    }

    /// Tells people something about this node, by an Event on its `Node`. What was told before is
    /// counted, not told again; where too much is told the newest is dropped, and counted.
    pub fn event(&self, event: Event) {
        let taken = self.mine.events().push(event);
        if taken {
            self.mine.more_events.notify_one();
        } else {
            self.mine.report().events_dropped += 1;
        }
    }

    /// How it goes.
    pub fn report(&self) -> PublishReport {
        self.mine.report().clone()
    }
}

impl PublishReport {
    fn ails(&mut self, error: Option<String>, denied: bool) {
        (self.error, self.denied) = (error, denied);
    }
}

impl Mine {
    fn report(&self) -> MutexGuard<'_, PublishReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings the record to what is wanted, for ever.
async fn publish(client: Client, shared: Arc<Shared>, mine: Arc<Mine>, hold: Duration) {
    let mut wanted = mine.wanted.subscribe();
    let mut own_changes = shared.own_changes.subscribe();
    let mut pace = Pace::new(Instant::now(), hold);
    let mut acknowledged: Option<Acknowledged> = None;
    let mut backoff = Backoff::default();
    loop {
        // Before looking, so that nothing that changes from here on is missed.
        let own_change = *own_changes.borrow_and_update();
        let want = wanted.borrow_and_update().clone();
        let next = want.map(|want| {
            let seen = seen(&shared, &mine.node, acknowledged.as_ref(), own_change);
            let want = with_identity(want, &mine.report().foreign, &seen);
            step(
                &want,
                &mine.node,
                &seen,
                &pace,
                Instant::now(),
                Timestamp::now(),
            )
        });
        let result = match next {
            None => None,
            Some(Step::Nothing) => {
                mine.report().ails(None, false);
                None
            }
            Some(Step::Stopped(why)) => {
                mine.report().ails(Some(why), false);
                None
            }
            Some(Step::Wait(until)) => Some(Err(until)),
            Some(Step::Spec(object)) => {
                pace.spec_written(Instant::now());
                Some(Ok(write(&client, &mine.node, "", object).await))
            }
            Some(Step::Status(object)) => {
                pace.status_written(Instant::now());
                Some(Ok(write(&client, &mine.node, "/status", object).await))
            }
        };
        let until = match result {
            None => None,
            Some(Err(until)) => Some(until),
            Some(Ok(Ok(object))) => {
                backoff.reset();
                let mut report = mine.report();
                report.ails(None, false);
                report.epoch = object.spec.as_ref().map(|spec| spec.epoch);
                report.writes += 1;
                acknowledged = Some(Acknowledged { object, own_change });
                continue;
            }
            Some(Ok(Err(failure))) => {
                let sentence = format!("meshnodes cannot be written: {}", failure.sentence());
                mine.report().ails(Some(sentence), failure.lacks_right());
                backoff.wait(failure.retry_after()).await;
                continue;
            }
        };
        let pause = async {
            match until {
                Some(until) => time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Whoever sends lives as long as this task.
            _ = wanted.changed() => {}
            _ = own_changes.changed() => {}
            () = pause => {}
        }
    }
}

/// What the API server made of a write.
struct Acknowledged {
    object: MeshNodeObject,
    /// How often the feed had changed before.
    own_change: u64,
}

/// What is known of the record: by the feed, or by what the server said to the last write where the
/// feed has not heard of that yet.
fn seen(
    shared: &Shared,
    node: &NodeName,
    acknowledged: Option<&Acknowledged>,
    own_change: u64,
) -> Seen {
    let store = shared.store();
    let record = match (&store.own, acknowledged) {
        (None, Some(acknowledged)) if acknowledged.own_change == own_change => {
            Some(acknowledged.object.clone())
        }
        (Some(own), Some(acknowledged)) => Some(later(own, &acknowledged.object).clone()),
        (own, _) => own.clone(),
    };
    let nodes = store.view.nodes.as_ref();
    Seen {
        node: nodes.map(|nodes| nodes.get(node.as_str()).map(|node| node.uid.clone())),
        nodes: nodes.map_or(0, BTreeMap::len),
        record: store.view.records.is_some().then_some(record),
    }
}

/// The later of two states of one object; the first where nobody can tell.
fn later<'a>(a: &'a MeshNodeObject, b: &'a MeshNodeObject) -> &'a MeshNodeObject {
    let version = |object: &MeshNodeObject| object.metadata.resource_version.parse::<u64>();
    match (version(a), version(b)) {
        (Ok(first), Ok(second)) if second > first && a.metadata.uid == b.metadata.uid => b,
        _ => a,
    }
}

async fn write(
    client: &Client,
    node: &NodeName,
    part: &str,
    object: Vec<u8>,
) -> Result<MeshNodeObject, Failure> {
    let uri =
        format!("/apis/{GROUP}/{VERSION}/meshnodes/{node}{part}?fieldManager={MANAGER}&force=true");
    client.apply(&uri, object).await
}

/// With the condition [`ConditionType::IdentityEnforced`], if nobody has stated it. Before it was tried
/// it stays what it was, so that a start changes nothing.
fn with_identity(mut wanted: Wanted, foreign: &Foreign, seen: &Seen) -> Wanted {
    let kind = ConditionType::IdentityEnforced;
    let stated = |holds, reason: &str, message: &str| Stated {
        holds,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let identity = match foreign {
        Foreign::Untried => seen.stated(kind).unwrap_or_else(|| {
            stated(
                Holds::Unknown,
                "Untried",
                "no write to a foreign record was tried yet",
            )
        }),
        Foreign::Refused => stated(
            Holds::True,
            "ForeignRecordRefused",
            &format!("the policy {OWN_RECORD} refuses this daemon the records of other nodes"),
        ),
        Foreign::Unknown(why) => stated(
            Holds::Unknown,
            "Untold",
            &format!(
                "{OWN_RECORD} was not asked whether this daemon may write the records of other nodes: {why}"
            ),
        ),
        Foreign::Taken => stated(
            Holds::False,
            "ForeignRecordTaken",
            &format!(
                "the API server lets this daemon write the records of other nodes; install the \
                 ValidatingAdmissionPolicy {OWN_RECORD}"
            ),
        ),
    };
    wanted.conditions.entry(kind).or_insert(identity);
    wanted
}

/// Tries to write a record that is not this node's, without doing it, and again now and then: a
/// policy can be taken away.
async fn try_foreign(client: Client, mine: Arc<Mine>) {
    let mut wanted = mine.wanted.subscribe();
    let mut backoff = Backoff::default();
    loop {
        // What this node publishes is what the schema takes, so that it is not what refuses.
        let spec = match wanted.wait_for(Option::is_some).await {
            Ok(want) => want
                .as_ref()
                .map(|want| (want.uid.clone(), want.spec.clone())),
            Err(_) => return,
        };
        let Some((uid, spec)) = spec else { continue };
        let object = step::spec_object(FOREIGN, &uid, &spec);
        let uri = format!(
            "/apis/{GROUP}/{VERSION}/meshnodes/{FOREIGN}?fieldManager={MANAGER}&force=true&dryRun=All"
        );
        let tried = client.apply::<serde_json::Value>(&uri, object).await;
        let foreign = match &tried {
            Ok(_) => Foreign::Taken,
            Err(failure) => match failure.denied() {
                Some(Denied::Policy(OWN_RECORD)) => Foreign::Refused,
                // What refuses for another reason hides whether ours would.
                Some(Denied::Rights | Denied::Policy(_)) => Foreign::Unknown(failure.sentence()),
                Some(Denied::Credentials) | None => {
                    backoff.wait(failure.retry_after()).await;
                    continue;
                }
            },
        };
        let is_known = !matches!(foreign, Foreign::Unknown(_));
        let before = std::mem::replace(&mut mine.report().foreign, foreign.clone());
        if before != foreign {
            // The record says it, too.
            mine.wanted.send_modify(|_| {});
        }
        if is_known {
            backoff.reset();
            time::sleep(jittered(TRY_AGAIN)).await;
        } else {
            backoff.wait(None).await;
        }
    }
}

/// The JSON of an object, which is bytes from here on.
fn bytes(object: &serde_json::Value) -> Vec<u8> {
    object.to_string().into_bytes()
}

/// The beginning of an object of ours.
fn record(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "MeshNode",
        "metadata": {"name": name},
    })
}
