//! Kubernetes' objects <-> the directory of nodes.
//!
//! The path through it:
//!
//! 1. [`Mesh`] and [`MeshNode`] are the two resources of the group [`GROUP`]: what the operator sets
//!    for all nodes, and what each node's daemon publishes of its own. [`crds`] are their
//!    definitions; the files below `deploy/kubernetes/crds` are made of them.
//! 2. [`Settings`], [`NodeFacts`] and [`Record`] are what the mesh needs of a [`Mesh`], a `Node` and a
//!    [`MeshNode`], read once at the door. A [`View`] holds those of all nodes.
//! 3. [`View::trust`] says whether a view may take anything away, and [`View::directory`] makes the
//!    [`Directory`](warren_mesh::Directory) of it, from which the plan follows; a [`Book`] keeps it node
//!    by node.
//!
//! Who may say what is decided here: prefixes and endpoints come from `Node` objects, which a daemon
//! cannot write, and only keys and ports from its own record. What two nodes claim is decided by
//! [`warren_mesh`], which reads [`Node::seniority`](warren_mesh::Node::seniority).

mod access;
mod backoff;
mod book;
mod crd;
mod directory;
mod epoch;
mod facts;
mod feed;
mod known;
mod objects;
mod overview;
mod proposal;
mod publisher;
#[expect(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "what KubeSchema makes beside each type is public, and columns repeat their attributes"
)]
mod resources;
mod settings;
mod snapshot;
mod stage;
mod starting;
mod trust;

pub use access::{Access, AccessError, Client, connect};
pub use book::Book;
pub use crd::crds;
pub use directory::{Before, Entries, Finding, Issue, View};
pub use epoch::Epoch;
pub use facts::{NodeFacts, Progress, Record, RecordError};
pub use feed::{Current, Feed, Health, ResourceHealth};
pub use known::{Known, KnownNode};
pub use objects::{MeshNodeObject, NodeObject};
pub use overview::{NodeOverview, Overview, RecordOverview, RequestError};
pub use proposal::{Proposal, configured};
pub use publisher::{Event, Foreign, Holds, PublishReport, Publisher, Severity, Stated};
pub use resources::{
    Condition, ConditionType, Enforcement, Exceptions, GROUP, MESH, Mesh, MeshNode, MeshNodeSpec,
    MeshNodeStatus, MeshSpec, Mode, NODE_UNREADY, RulePriorities, VERSION,
};
pub use settings::{Excepted, Settings, SettingsError};
pub use snapshot::{Snapshot, SnapshotError};
pub use stage::{Holdup, Holdups, Missing, Own, Stage};
pub use starting::{STARTING, Started, Starting};
pub use trust::{Distrust, Identity};
