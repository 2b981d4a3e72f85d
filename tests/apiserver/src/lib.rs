//! A real API server of Kubernetes for tests: `kube-apiserver` and etcd on a loopback address of
//! their own, with their own certificates and data, gone when the test ends, however it ends.
//!
//! Where the two programs come from is in `programs`. The server is run as clusters run it: Node and
//! RBAC as authorizers, NodeRestriction, tokens of service accounts. What has no kubelet is played:
//! [`Cluster`] makes `Node` and `Pod` objects, and gets the tokens that a kubelet would fetch.

mod cluster;
mod follow;
mod manifests;
mod programs;
mod server;

pub use cluster::{
    ACCOUNT, Cluster, Daemon, NAMESPACE, eventually, is_denied, is_forbidden, object,
};
pub use follow::{feed, synced, until};
pub use manifests::{crds, deploy, manifests};
pub use server::{Options, Server};
