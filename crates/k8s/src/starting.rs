//! The taint with which nodes start, and its end.
//!
//! A kubelet that registers its Node with [`STARTING`] gets no pods but those that tolerate it. Whoever runs
//! [`Starting`] takes it away once the node's daemon has said what it enforces: until then a pod's traffic
//! leaves in the clear also where the mesh is strict.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::{self, Instant};

use crate::access::{Client, Denied, Failure};
use crate::backoff::Backoff;
use crate::directory::View;
use crate::feed::Feed;
use crate::objects::Metadata;
use crate::resources::Enforcement;

/// The key of the taint. Its effect and value are the operator's.
pub const STARTING: &str = "mesh.warren.dev/starting";

/// After this a Node is tried again that was refused.
const AGAIN: Duration = Duration::from_secs(60);

/// Between these tries somebody else has changed the Node.
const TRIES: usize = 5;

/// Between two looks whether the daemons are heard, where they say nothing.
const LOOK: Duration = Duration::from_secs(5);

/// Follows all daemons, and takes the taint from the Nodes of those that enforce what the Mesh says.
#[derive(Debug)]
pub struct Starting {
    client: Client,
    feed: Feed,
    /// What the API said, up to those of `changed`.
    view: View,
    /// Nodes that were not looked at since their record changed.
    changed: BTreeSet<String>,
    /// The uid of each Node that was seen without the taint: it does not come back, since a kubelet sets it
    /// where it makes the Node alone.
    started: BTreeMap<String, String>,
    /// Why the daemons are not heard, as it was said last.
    deaf: Option<String>,
    /// Those that failed, and when they are tried again.
    failed: BTreeMap<String, Instant>,
    backoff: Backoff,
}

/// What has come of it.
#[derive(Debug)]
pub enum Started {
    /// The taint is gone from this Node.
    Node {
        /// Its name.
        name: String,
        /// What its daemon enforces.
        enforcement: Enforcement,
    },
    /// Why it could not be taken from one, or nobody knows from whom, in a sentence. It is tried again.
    Failed(String),
}

/// What of a `Node` is read.
#[derive(Deserialize)]
struct Tainted {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize, Default)]
struct Spec {
    /// Whole, since they are written back.
    #[serde(default)]
    taints: Vec<Value>,
}

impl Starting {
    /// Follows the API by `client`, on the current tokio runtime.
    pub fn follow(client: &Client) -> Self {
        Self {
            client: client.clone(),
            feed: Feed::of_records(client),
            view: View::default(),
            changed: BTreeSet::new(),
            started: BTreeMap::new(),
            deaf: None,
            failed: BTreeMap::new(),
            backoff: Backoff::default(),
        }
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Started {
        loop {
            self.follow_changes();
            while let Some((name, uid, enforcement)) = self.waiting() {
                match self.client.start(&name, &uid).await {
                    Ok(was_tainted) => {
                        self.backoff.reset();
                        self.started.insert(name.clone(), uid);
                        if was_tainted {
                            return Started::Node { name, enforcement };
                        }
                    }
                    Err(failure) => {
                        let sentence = format!("Node {name}: {}", failure.sentence());
                        let is_of_all =
                            matches!(failure.denied(), Some(Denied::Credentials | Denied::Rights));
                        if failure.is_of_a_moment() || is_of_all {
                            self.changed.insert(name);
                            self.backoff.wait(failure.retry_after()).await;
                        } else {
                            self.failed.insert(name, Instant::now() + AGAIN);
                        }
                        return Started::Failed(sentence);
                    }
                }
            }
            if time::timeout(LOOK, self.feed.changed()).await.is_err() {
                let health = self.feed.health();
                let deaf = health.0.into_values().find_map(|records| records.error);
                if self.deaf != deaf {
                    self.deaf.clone_from(&deaf);
                    if let Some(sentence) = deaf {
                        return Started::Failed(sentence);
                    }
                }
            }
        }
    }

    /// Takes over what the API has said of single nodes, or of all.
    fn follow_changes(&mut self) {
        match self.feed.follow(&mut self.view) {
            Some(changed) => self.changed.extend(changed.into_keys()),
            None => {
                self.view = self.feed.look();
                let records = self.view.records.iter().flatten();
                self.changed.extend(records.map(|(name, _)| name.clone()));
                self.changed.extend(self.started.keys().cloned());
            }
        }
        let now = Instant::now();
        let due = self.failed.extract_if(.., |_, again| *again <= now);
        self.changed.extend(due.map(|(name, _)| name));
    }

    /// The next node whose daemon enforces something and of whose taint nothing is known.
    fn waiting(&mut self) -> Option<(String, String, Enforcement)> {
        while let Some(name) = self.changed.pop_first() {
            let records = self.view.records.as_ref();
            let Some(record) = records.and_then(|records| records.get(&name)) else {
                self.started.remove(&name);
                self.failed.remove(&name);
                continue;
            };
            let Some((enforcement, uid)) = (record.as_ref().ok())
                .and_then(|record| Some((record.fenced?, record.node_uid.clone())))
            else {
                continue;
            };
            if self.started.get(&name) != Some(&uid) && !self.failed.contains_key(&name) {
                return Some((name, uid, enforcement));
            }
        }
        None
    }
}

impl Client {
    /// Takes the taint from the Node of this name and uid; whether it had it. Others stay.
    async fn start(&self, name: &str, uid: &str) -> Result<bool, Failure> {
        let uri = format!("/api/v1/nodes/{name}");
        let mut left = TRIES;
        loop {
            left -= 1;
            let node = match self.get::<Tainted>(&uri).await {
                Ok(node) if node.metadata.uid == uid => node,
                // The record of another Node goes with it.
                Ok(_) => return Ok(false),
                Err(failure) if failure.code() == Some(404) => return Ok(false),
                Err(failure) => return Err(failure),
            };
            let before = node.spec.taints;
            let after: Vec<&Value> = (before.iter())
                .filter(|taint| taint["key"] != STARTING)
                .collect();
            if after.len() == before.len() {
                return Ok(false);
            }
            // Others taint it, too, and nothing of theirs is undone.
            let change = json!([
                {"op": "test", "path": "/metadata/uid", "value": uid},
                {"op": "test", "path": "/spec/taints", "value": before},
                {"op": "replace", "path": "/spec/taints", "value": after},
            ]);
            let kind = "application/json-patch+json";
            let to = format!("{uri}?fieldManager=warren");
            let sent = self.send(Method::PATCH, &to, kind, change.to_string().into_bytes());
            match sent.await {
                Ok(IgnoredAny) => return Ok(true),
                // A test that fails is answered by 422.
                Err(failure) if matches!(failure.code(), Some(409 | 422)) && left > 0 => {}
                Err(failure) => return Err(failure),
            }
        }
    }
}
