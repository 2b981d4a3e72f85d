//! What the mesh needs of a `Node` and of a [`MeshNode`], read once at the door.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use crate::resources::{MeshNode, Mode};

/// What the mesh needs of a `Node`. The rest of the object, which is large, is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// Its uid: a Node that is made anew under its name has another.
    pub uid: String,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Its internal addresses, then its external ones.
    pub addresses: Vec<IpAddr>,
    /// What of the two could not be read, as it was written.
    pub unreadable: Vec<String>,
}

/// What the mesh needs of a [`MeshNode`].
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// Why a [`MeshNode`] is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
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

impl NodeFacts {
    /// Reads a `Node`.
    pub fn of(node: &Node) -> Self {
        let mut unreadable = Vec::new();
        let spec = node.spec.as_ref();
        let pod_cidrs = spec.and_then(|spec| spec.pod_cidrs.as_deref());
        // Servers fill the list from the single value; objects of tests and of old clouds may not.
        let single = spec.and_then(|spec| spec.pod_cidr.as_ref());
        let pod_cidrs = match pod_cidrs {
            None | Some([]) => single.map(std::slice::from_ref).unwrap_or_default(),
            Some(several) => several,
        };
        let pod_cidrs = read(
            pod_cidrs.iter().filter(|text| !text.is_empty()),
            &mut unreadable,
        );

        let status = node.status.as_ref();
        let listed = status.and_then(|status| status.addresses.as_deref());
        let mut addresses: Vec<IpAddr> = Vec::new();
        for kind in ["InternalIP", "ExternalIP"] {
            let of_kind = listed.unwrap_or_default().iter();
            let of_kind = of_kind.filter(|address| address.type_ == kind);
            for address in read(of_kind.map(|address| &address.address), &mut unreadable) {
                // Some clouds list one address under both kinds.
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        Self {
            uid: node.uid().unwrap_or_default(),
            pod_cidrs,
            addresses,
            unreadable,
        }
    }
}

impl Record {
    /// Reads a [`MeshNode`].
    ///
    /// Schema and admission policy refuse what is refused here; a cluster whose definition is older
    /// than this program, or which lost its policy, must do no harm either.
    pub fn of(object: &MeshNode) -> Result<Self, RecordError> {
        let spec = &object.spec;
        if !is_owned(&object.metadata, &spec.node_uid) {
            return Err(RecordError::Owner {
                uid: spec.node_uid.clone(),
            });
        }
        let endpoint = |text: &String| {
            text.parse()
                .map_err(|_| RecordError::Endpoint(text.clone()))
        };
        if spec.port == 0 {
            return Err(RecordError::Port);
        }
        let created = object.metadata.creation_timestamp.as_ref();
        Ok(Self {
            node_uid: spec.node_uid.clone(),
            created: created.map_or(i64::MAX, |time| time.0.as_second()),
            public_key: spec.public_key.clone(),
            endpoints: spec
                .endpoints
                .iter()
                .map(endpoint)
                .collect::<Result<_, _>>()?,
            port: spec.port,
            mode: spec.mode,
            epoch: spec.epoch,
        })
    }
}

/// Whether the Node of this very name and `uid` is an owner.
fn is_owned(metadata: &ObjectMeta, uid: &str) -> bool {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| {
        owner.kind == "Node"
            && owner.api_version == "v1"
            && Some(&owner.name) == metadata.name.as_ref()
            && owner.uid == uid
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
                unreadable.push(text.clone());
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
        let node: Node = serde_json::from_value(json!({
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
        let node: Node = serde_json::from_value(json!({
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
    fn object(owner: &str, api: &str, kind: &str, owner_uid: &str, uid: &str) -> MeshNode {
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
