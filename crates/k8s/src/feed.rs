//! What the API says, kept up to date.
//!
//! One task for each resource lists it and watches it from there on (`watch`); what they read goes
//! into one [`Store`] and from there into the [`View`] that the daemon looks at. A list replaces what
//! was there in one step, so that a relist takes away what is gone and nothing else, not for a moment.

mod kinds;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use warren_mesh::NodeName;

use crate::access::{Client, Failure};
use crate::directory::{Before, View};
use crate::objects::MeshNodeObject;
use crate::resources::{MeshSpec, Mode};

/// Events that arrive within this belong to one change.
const GATHER: Duration = Duration::from_millis(10);

/// A stream of events that never pauses is told of this often.
const GATHER_AT_MOST: Duration = Duration::from_millis(100);

/// What the API says, kept up to date by tasks that end with this.
#[derive(Debug)]
pub struct Feed {
    shared: Arc<Shared>,
    changes: signal::Receiver<u64>,
    /// When [`Feed::changed`] first saw the change that it is gathering.
    gathering: Option<Instant>,
    tasks: JoinSet<()>,
}

/// What a [`Feed`] has read, by which it can be looked at.
#[derive(Debug)]
pub struct Current(Arc<View>);

/// How each resource is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health(pub BTreeMap<&'static str, ResourceHealth>);

/// How a resource is followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceHealth {
    /// For how long nothing has been heard of it; `None` before the first word. The server says
    /// something about once a minute, also when nothing happens.
    pub silent: Option<Duration>,
    /// Its first list has arrived whole.
    pub synced: bool,
    /// What went wrong last, while it is wrong.
    pub error: Option<String>,
    /// That is since this daemon has no right to it.
    pub denied: bool,
}

/// What tasks share with those who look.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The node whose record is kept whole, if there is one.
    node: Option<NodeName>,
    store: Mutex<Store>,
    pub(crate) changes: signal::Sender<u64>,
    /// Counts changes of this node's own Node and record.
    pub(crate) own_changes: signal::Sender<u64>,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) view: Arc<View>,
    /// Every Mesh by name, of which the one called default counts.
    pub(crate) meshes: Option<BTreeMap<String, Result<MeshSpec, String>>>,
    /// Why that one cannot be read, while it cannot.
    pub(crate) unreadable_mesh: Option<String>,
    /// The addresses of every EndpointSlice that was asked for.
    pub(crate) slices: Option<BTreeMap<String, BTreeSet<IpAddr>>>,
    /// This node's own record, whole.
    pub(crate) own: Option<MeshNodeObject>,
    /// Nodes whose Node or record changed since somebody asked.
    pub(crate) changed_nodes: BTreeSet<String>,
    health: BTreeMap<&'static str, Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    at: Option<Instant>,
    synced: bool,
    /// In a sentence, and whether this daemon has no right to it.
    error: Option<(String, bool)>,
}

impl Feed {
    /// Follows the API by `client`. `node` is this node: its record is kept whole, so that a
    /// [`Publisher`](crate::Publisher) sees what others made of it. Runs on the current tokio runtime.
    pub fn start(client: &Client, node: &NodeName) -> Self {
        let mut feed = Self::empty(Some(node.clone()));
        feed.follow_too(kinds::Nodes, client);
        feed.follow_too(kinds::Records, client);
        feed.follow_too(kinds::Meshes, client);
        feed.follow_too(kinds::ApiServers, client);
        feed
    }

    /// Follows what the daemons publish, and nothing else.
    pub(crate) fn of_records(client: &Client) -> Self {
        let mut feed = Self::empty(None);
        feed.follow_too(kinds::Records, client);
        feed
    }

    fn empty(node: Option<NodeName>) -> Self {
        let (changes, receiver) = signal::channel(0);
        let shared = Arc::new(Shared {
            node,
            store: Mutex::default(),
            changes,
            own_changes: signal::channel(0).0,
        });
        Self {
            shared,
            changes: receiver,
            gathering: None,
            tasks: JoinSet::new(),
        }
    }

    fn follow_too<K: kinds::Kind>(&mut self, kind: K, client: &Client) {
        let following = watch::follow(kind, client.clone(), self.shared.clone());
        self.tasks.spawn(following);
    }

    /// Waits until what the API says has changed. A burst of events is one change. Nothing is lost
    /// when this is dropped before it ends.
    pub async fn changed(&mut self) {
        let first = match self.gathering {
            Some(first) => first,
            None => {
                // The sender is in `shared`, and lives as long as this.
                let _ = self.changes.changed().await;
                *self.gathering.insert(Instant::now())
            }
        };
        let end = first + GATHER_AT_MOST;
        loop {
            let quiet = end.min(Instant::now() + GATHER);
            match time::timeout_at(quiet, self.changes.changed()).await {
                Ok(_) if quiet < end => {}
                _ => break,
            }
        }
        self.gathering = None;
    }

    /// What the API says now. It does not change while it is held.
    pub fn view(&self) -> Current {
        Current(self.shared.store().view.clone())
    }

    /// Brings `view`, an earlier [`Feed::view`], up to date by name, and says what it had of the nodes that have
    /// changed. Costs these.
    ///
    /// `None` where it takes more than names: something else has changed (the `Mesh`, the cluster, where the
    /// API is), or this node's own `Node`, or a list has arrived for the first time. Then `view` is as it was,
    /// and all names are told again until [`Feed::look`] was asked for everything.
    pub fn follow(&mut self, view: &mut View) -> Option<BTreeMap<String, Before>> {
        let mut store = self.shared.store();
        let own = self.shared.node.as_ref().map_or("", NodeName::as_str);
        if view.differs_in_more_than_nodes(&store.view, own) {
            return None;
        }
        let names = std::mem::take(&mut store.changed_nodes);
        let now = &store.view;
        let changed = names.into_iter().map(|name| {
            let before = view.take_over(now, &name);
            (name, before)
        });
        Some(changed.collect())
    }

    /// What the API says now, all of it: [`Feed::follow`] tells of what comes after.
    pub fn look(&mut self) -> View {
        let mut store = self.shared.store();
        store.changed_nodes.clear();
        View::clone(&store.view)
    }

    /// Why the [`Mesh`](crate::Mesh) cannot be read as it is now, in a sentence. The view has what it said
    /// before.
    pub fn unreadable_mesh(&self) -> Option<String> {
        self.shared.store().unreadable_mesh.clone()
    }

    /// What this node's own record says to be closed on it
    /// ([`latched_prefixes`](crate::MeshNodeStatus::latched_prefixes)), and in which mode it was reached; `None`
    /// where there is none of the Node of this `uid`.
    pub fn latched(&self, uid: &str) -> Option<(Mode, Vec<IpNet>)> {
        let store = self.shared.store();
        let own = store.own.as_ref()?;
        let spec = own.spec.as_ref().filter(|spec| spec.node_uid == uid)?;
        let status = own.status.iter();
        let latched = status.flat_map(|status| &status.latched_prefixes);
        // What cannot be read was written by no daemon.
        let latched = latched.filter_map(|prefix| prefix.parse().ok());
        Some((spec.mode, latched.collect()))
    }

    /// How each resource is followed.
    pub fn health(&self) -> Health {
        let store = self.shared.store();
        let of = |heard: &Heard| ResourceHealth {
            silent: heard.at.map(|at| at.elapsed()),
            synced: heard.synced,
            error: heard.error.as_ref().map(|(sentence, _)| sentence.clone()),
            denied: heard.error.as_ref().is_some_and(|(_, denied)| *denied),
        };
        Health(
            store
                .health
                .iter()
                .map(|(&name, heard)| (name, of(heard)))
                .collect(),
        )
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

impl Health {
    /// How long ago the resource was last heard of of which nothing was heard for longest; `None`
    /// while there is one of which nothing was heard at all.
    pub fn staleness(&self) -> Option<Duration> {
        let silent = self.0.values().map(|health| health.silent);
        silent.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

impl Deref for Current {
    type Target = View;

    fn deref(&self) -> &View {
        &self.0
    }
}

impl Shared {
    /// Whether this is the name of the node whose record is kept whole.
    fn is_own(&self, name: &str) -> bool {
        (self.node.as_ref()).is_some_and(|node| node.as_str() == name)
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        // Nothing panics while it is held; if something did, what is there is still what was read.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody waits for this.
    fn tell(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn heard(&self, kind: &'static str) {
        let mut store = self.store();
        let heard = store.health.entry(kind).or_default();
        heard.at = Some(Instant::now());
        heard.error = None;
    }

    fn synced(&self, kind: &'static str) {
        self.heard(kind);
        self.store().health.entry(kind).or_default().synced = true;
    }

    fn failed(&self, kind: &'static str, failure: &Failure) {
        let error = Some((failure.sentence(), failure.lacks_right()));
        self.store().health.entry(kind).or_default().error = error;
    }
}
