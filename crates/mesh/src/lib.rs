//! A directory of nodes and this node's name in; what this node should be out.
//!
//! The path through it:
//!
//! 1. [`MeshFile::parse`] reads the one file that describes all nodes, or Kubernetes' objects are
//!    read elsewhere; either way a [`Directory`] comes out, which knows nothing of files.
//! 2. [`Directory::review`] judges it: every rule that does not depend on the host, as [`Problem`]s.
//!    The file form refuses a file with an error whole; a directory from elsewhere loses only the
//!    item at fault. [`Reviewed`] says the same of one that changes node by node, without looking at
//!    all of it again.
//! 3. [`plan()`] turns the directory, the name of this node, the addresses that names resolved to and
//!    the secrets into a [`Plan`]: a device, a host, and what people should know.
//! 4. [`Roster`] judges over time who of the peers is ready, and who is to be called.
//! 5. [`Description`] says a plan in words, and the difference between two, for `warren plan`.
//!
//! Level-triggered and deterministic: the same input gives the same plan, whatever came before and
//! in whatever order the nodes were written. This crate never does I/O, never asks for the time
//! and draws no randomness; it builds for wasm as proof.

use std::net::{IpAddr, Ipv4Addr};

mod describe;
mod directory;
mod endpoint;
mod file;
mod name;
mod plan;
mod problem;
mod review;
mod reviewed;
mod roster;
mod wg_quick;

pub use describe::{Description, Line, Mark, Section};
pub use directory::{Directory, Enforcement, KeyFile, Mesh, Node, Pair};
pub use endpoint::{Endpoint, EndpointError, Host, HostName, Unusable};
pub use file::{Located, MeshFile, Position};
pub use name::{NameError, NodeName, nearest};
pub use plan::{Peer, Plan, PlanError, Resolved, Secrets, Step, Underlay, plan};
pub use problem::{Cause, Field, Place, Problem, Severity, Subject};
pub use review::unusable_prefix;
pub use reviewed::Reviewed;
pub use roster::{Candidate, Glance, Roster, Seen};
pub use warren_config::{PublicKey, Steering};
pub use wg_quick::{ExportError, wg_quick};

/// Where a node keeps what is its own, unless told otherwise: `0700`, owned by root.
pub const STATE_DIR: &str = "/var/lib/warren";

/// Seconds after which a host name is resolved again while its peer does not answer.
pub const RESOLVE_AGAIN_SECS: u64 = 15;

/// The address of the interface that carries an overlay's packets. The kernel drops what comes by an
/// interface without an IPv4 address where it checks reverse paths (`rp_filter`), however loosely;
/// no packet bears this one.
pub const OVERLAY_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 213, 20));

/// Persistent keepalive, in seconds, of a node without an endpoint towards those that have one:
/// just under the half minute after which many NATs forget a UDP flow.
pub const DEFAULT_KEEPALIVE_SECS: u16 = 25;
