//! Nodes of a Kubernetes cluster with a real `warrend` and a pod each, and a real API server.
//!
//! ```text
//!   pod ── n1 ──┐                           underlay  192.0.2.0/24, 2001:db8::/64
//!   pod ── n2 ──┼── underlay ── (default    n1        192.0.2.1, 2001:db8::1
//!   pod ── n3 ──┘                gateway)             pods 10.244.1.0/24, fd00:10:244:1::/64
//!                                                     its pod .5, its own address there .1
//! ```
//!
//! What a CNI that routes would do is done here: each node has routes to the pods of the others by their
//! nodes, so that without a mesh all is carried in the clear. Reverse paths are checked strictly, as
//! many distributions do.
//!
//! The API server runs outside of all this. Each node reaches it by a [`Way`] of its own, which can be
//! shut for one node alone.

mod lab;
mod played;
mod way;

pub use lab::{ASKED_AGAIN, Cni, Lab, Node, PODS, check_reverse_paths_loosely, prefixes_of};
pub use played::Played;
pub use warren_tests_lab::patiently;
pub use warren_tests_mesh::{Arrivals, Daemon, Flood, Flow, Host, Seen, Wiretap, warren};
pub use way::Way;
