//! What the mesh needs of a `Node` and of a [`MeshNode`](crate::MeshNode), read once at the door.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::{Deserialize, Serialize};

use crate::access::shortened;
use crate::objects::{MeshNodeObject, NodeObject};
use crate::resources::{Enforcement, MeshNodeStatus, Mode, NODE_UNREADY};

/// The beginning of labels that a kubelet cannot give its own Node.
const RESTRICTED: &str = "node-restriction.kubernetes.io/";

/// What the mesh needs of a `Node`. The rest of the object, which is large, is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeFacts {
    /// Its uid: a Node that is made anew under its name has another.
    pub uid: String,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Its internal addresses, then its external ones.
    pub addresses: Vec<IpAddr>,
    /// What of the two could not be read, as it was written.
    pub unreadable: Vec<String>,
    /// The keys of its labels that a kubelet cannot set, all below `node-restriction.kubernetes.io/`.
    pub restricted_labels: BTreeSet<String>,
    /// Its condition `Ready` is true.
    pub ready: bool,
}

/// What the mesh needs of a [`MeshNode`](crate::MeshNode).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The uid of the Node that it is of.
    pub node_uid: String,
    /// When the record was made, in seconds since 1970, by the API server's clock.
    pub created: i64,
    /// The node's key, in base64.
    pub public_key: String,
    /// Where it wants to be reached, in the order in which to try.
    pub endpoints: Vec<IpAddr>,
    /// The UDP port on which it listens.
    pub port: u16,
    /// How its pod traffic gets into the tunnel.
    pub mode: Mode,
    /// Grows with each start of its daemon.
    pub epoch: i64,
    /// What its daemon says of itself.
    #[serde(default)]
    pub progress: Progress,
    /// What its daemon enforces, once nothing keeps this node from it.
    #[serde(default)]
    pub fenced: Option<Enforcement>,
}

/// What a daemon says of itself in the status of its record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Progress {
    /// Peers that there should be.
    pub peers_expected: u32,
    /// Peers that are ready.
    pub peers_ready: u32,
    /// Names of the first expected peers on Ready nodes that it has not reached yet; `None` while it
    /// does not know.
    pub unreached: Option<Vec<String>>,
    /// What is enforced on its node.
    pub enforcement: Option<Enforcement>,
    /// Its node has turned strict.
    pub latched: bool,
    /// What is closed on this node while it is staged. Each reads its own alone: of others it is empty.
    #[serde(skip)]
    pub latched_prefixes: Vec<IpNet>,
}

/// Why a [`MeshNode`](crate::MeshNode) is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is of a version that this program does not know, or of none.
    #[error("its spec is not one that this version can read")]
    Unreadable,
    /// It does not say that it is of the node that owns it.
    #[error("its nodeUID {uid} is not that of an owner of kind Node and of its own name")]
    Owner {
        /// Of which node it says to be.
        uid: String,
    },
    /// An endpoint is no address.
    #[error("its endpoint {0:?} is no IP address")]
    Endpoint(String),
    /// Port zero, which is no port.
    #[error("its port is 0")]
    Port,
}

/// Prefixes of a `Node` that are looked at; there is one of each family.
const POD_CIDRS_MAX: usize = 8;
/// Addresses of each kind that are looked at.
const ADDRESSES_MAX: usize = 8;
/// Labels of those that a kubelet cannot set that are looked at.
const LABELS_MAX: usize = 64;
/// Endpoints and names of a record that are looked at, as many as the schema allows.
const OF_RECORD_MAX: usize = 8;

impl NodeFacts {
    /// Reads a `Node`.
    pub fn of(node: &NodeObject) -> Self {
        let mut unreadable = Vec::new();
        // A kubelet writes them, and a list without an end must cost nobody else anything.
        // Servers fill the list from the single value; objects of tests and of old clouds may not.
        let pod_cidrs = match node.spec.pod_cidrs.as_slice() {
            [] => node.spec.pod_cidr.as_slice(),
            several => several,
        };
        let pod_cidrs = read(
            pod_cidrs
                .iter()
                .filter(|text| !text.is_empty())
                .take(POD_CIDRS_MAX),
            &mut unreadable,
        );

        let listed = &node.status.addresses;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for kind in ["InternalIP", "ExternalIP"] {
            let of_kind = listed.iter().filter(|address| address.kind == kind);
            let of_kind = of_kind.take(ADDRESSES_MAX);
            for address in read(of_kind.map(|address| &address.address), &mut unreadable) {
                // Some clouds list one address under both kinds.
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        let labels = node.metadata.labels.keys();
        let restricted = labels.filter(|key| key.starts_with(RESTRICTED));
        let mut conditions = node.status.conditions.iter();
        Self {
            uid: node.metadata.uid.clone(),
            pod_cidrs,
            addresses,
            unreadable,
            restricted_labels: restricted.take(LABELS_MAX).cloned().collect(),
            ready: conditions
                .any(|condition| condition.kind == "Ready" && condition.status == "True"),
        }
    }
}

impl Record {
    /// Reads a [`MeshNode`](crate::MeshNode).
    ///
    /// Schema and admission policy refuse what is refused here; a cluster whose definition is older
    /// than this program, or which lost its policy, must do no harm either.
    pub fn of(object: &MeshNodeObject) -> Result<Self, RecordError> {
        let spec = object.spec.as_ref().ok_or(RecordError::Unreadable)?;
        let metadata = &object.metadata;
        if !is_owned(&metadata.owner_references, &metadata.name, &spec.node_uid) {
            return Err(RecordError::Owner {
                uid: spec.node_uid.clone(),
            });
        }
        let endpoint = |text: &String| {
            text.parse()
                .map_err(|_| RecordError::Endpoint(shortened(text)))
        };
        if spec.port == 0 {
            return Err(RecordError::Port);
        }
        let created = metadata.creation_timestamp.as_ref();
        let status = object.status.as_ref();
        Ok(Self {
            node_uid: spec.node_uid.clone(),
            created: created.map_or(i64::MAX, |time| time.0.as_second()),
            public_key: shortened(&spec.public_key),
            endpoints: spec
                .endpoints
                .iter()
                .take(OF_RECORD_MAX)
                .map(endpoint)
                .collect::<Result<_, _>>()?,
            port: spec.port,
            mode: spec.mode,
            epoch: spec.epoch,
            progress: status.map(Progress::of).unwrap_or_default(),
            fenced: status
                .filter(|status| status.node_uid.as_ref() == Some(&spec.node_uid))
                .and_then(fenced),
        })
    }
}

impl Progress {
    fn of(status: &MeshNodeStatus) -> Self {
        Self {
            peers_expected: status.peers_expected,
            peers_ready: status.peers_ready,
            unreached: status.unreached.as_ref().map(|names| {
                let names = names.iter().take(OF_RECORD_MAX);
                names.map(|name| shortened(name)).collect()
            }),
            enforcement: status.enforcement,
            latched: status.latched,
            latched_prefixes: Vec::new(),
        }
    }
}

fn fenced(status: &MeshNodeStatus) -> Option<Enforcement> {
    let mut conditions = status.conditions.iter();
    let is_unready = conditions.any(|condition| condition.reason == NODE_UNREADY);
    status.enforcement.filter(|_| !is_unready)
}

/// Whether the Node of this very `name` and `uid` is an owner.
pub(crate) fn is_owned(owners: &[OwnerReference], name: &str, uid: &str) -> bool {
    owners.iter().any(|owner| {
        owner.kind == "Node" && owner.api_version == "v1" && owner.name == name && owner.uid == uid
    })
}

fn read<'a, T: std::str::FromStr>(
    texts: impl Iterator<Item = &'a String>,
    unreadable: &mut Vec<String>,
) -> Vec<T> {
    texts
        .filter_map(|text| match text.parse() {
            Ok(value) => Some(value),
            Err(_) => {
                unreadable.push(shortened(text));
                None
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_gives_both_families_internal_addresses_first_and_each_once() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "u1"},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "Hostname", "address": "a"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "2001:db8::1"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
            ]},
        }))
        .expect("a Node");
        let facts = NodeFacts::of(&node);
        assert_eq!(facts.uid, "u1");
        assert_eq!(texts(&facts.pod_cidrs), ["10.1.0.0/24", "fd00:1::/64"]);
        assert_eq!(
            texts(&facts.addresses),
            ["192.0.2.1", "2001:db8::1", "203.0.113.1"]
        );
        assert_eq!(facts.unreadable, [""; 0]);
    }

    #[test]
    fn what_cannot_be_read_of_a_node_is_named_and_the_rest_is_kept() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "u1"},
            "spec": {"podCIDRs": ["10.1.0.0/33", "fd00:1::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "a.example"}]},
        }))
        .expect("a Node");
        let facts = NodeFacts::of(&node);
        assert_eq!(texts(&facts.pod_cidrs), ["fd00:1::/64"]);
        assert_eq!(facts.unreadable, ["10.1.0.0/33", "a.example"]);
    }

    #[test]
    fn a_record_belongs_to_the_node_of_its_name_and_uid() {
        assert_eq!(
            Record::of(&object("a", "v1", "Node", "u1", "u1")).map(|_| ()),
            Ok(())
        );
        for wrong in [
            object("b", "v1", "Node", "u1", "u1"),
            object("a", "v2", "Node", "u1", "u1"),
            object("a", "v1", "Pod", "u1", "u1"),
            object("a", "v1", "Node", "u2", "u1"),
        ] {
            let uid = "u1".to_owned();
            assert_eq!(Record::of(&wrong), Err(RecordError::Owner { uid }));
        }
    }

    /// The record of node a and `uid`, owned as told.
    fn object(owner: &str, api: &str, kind: &str, owner_uid: &str, uid: &str) -> MeshNodeObject {
        serde_json::from_value(json!({
            "apiVersion": "mesh.warren.dev/v1alpha1",
            "kind": "MeshNode",
            "metadata": {"name": "a", "ownerReferences": [
                {"apiVersion": api, "kind": kind, "name": owner, "uid": owner_uid},
            ]},
            "spec": {
                "nodeUID": uid,
                "publicKey": "key",
                "port": 51820,
                "mode": "Route",
                "mtu": 1420,
                "epoch": 1,
                "version": "0.1.0",
            },
        }))
        .expect("a MeshNode")
    }

    fn texts(values: &[impl ToString]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }
}
