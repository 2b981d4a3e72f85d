//! What a node keeps on its disk of what the API said, so that it encrypts before the API answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_mesh::{Endpoint, Node, NodeName};

use crate::directory::View;
use crate::epoch::Epoch;
use crate::facts::{NodeFacts, Record};
use crate::known::{Known, KnownNode};
use crate::resources::MeshSpec;
use crate::trust::Identity;

/// Of the form below. A daemon that is older than what it finds starts without.
const VERSION: u32 = 1;

/// What a node keeps on its disk. It has no secrets, and yet tells who talks to whom: `0600`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Who this node is, and in which cluster. Without it nothing below is of use.
    pub identity: Identity,
    /// What the operator set last that could be used.
    pub mesh: Option<MeshSpec>,
    /// What the API said. Records that were none are not kept.
    pub view: View,
    /// What was believed of it.
    pub known: Known,
    /// The epoch of its last start.
    pub epoch: Epoch,
    /// Peers with which there was traffic, which are called first after a start.
    pub spoke_with: BTreeSet<NodeName>,
}

/// Why a snapshot is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Unreadable(String),
    /// Another version of this program wrote it.
    #[error("the snapshot has version {0}, and this program reads {VERSION}")]
    Version(u32),
    /// What it says cannot be.
    #[error("the snapshot has {value:?} as {field}, which cannot be")]
    Invalid {
        /// Of what.
        field: &'static str,
        /// What is there.
        value: String,
    },
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    version: u32,
    cluster: String,
    node: String,
    uid: String,
    mesh: Option<MeshSpec>,
    #[serde(default)]
    nodes: BTreeMap<String, NodeFacts>,
    #[serde(default)]
    records: BTreeMap<String, Record>,
    #[serde(default)]
    api_servers: BTreeSet<IpAddr>,
    #[serde(default)]
    known: BTreeMap<String, KnownForm>,
    #[serde(default)]
    epoch: Epoch,
    #[serde(default)]
    spoke_with: BTreeSet<String>,
}

/// What decides who keeps what two nodes claim.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KnownForm {
    uid: String,
    public_key: Option<String>,
    #[serde(default)]
    endpoints: Vec<String>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    #[serde(default)]
    prefixes: Vec<IpNet>,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Snapshot {
    /// The form in which it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        let records = self.view.records.iter().flatten();
        let records = records.filter_map(|(name, record)| {
            let record = record.as_ref().ok()?;
            Some((name.clone(), record.clone()))
        });
        let form = Form {
            version: VERSION,
            cluster: self.identity.cluster.clone(),
            node: self.identity.node.to_string(),
            uid: self.identity.uid.clone(),
            mesh: self.mesh.clone(),
            nodes: self.view.nodes.clone().unwrap_or_default(),
            records: records.collect(),
            api_servers: self.view.api_servers.clone().unwrap_or_default(),
            known: (self.known.0.iter())
                .map(|(name, known)| (name.to_string(), KnownForm::of(known)))
                .collect(),
            epoch: self.epoch,
            spoke_with: self.spoke_with.iter().map(ToString::to_string).collect(),
        };
        serde_json::to_vec(&form).expect("the keys of its maps are texts")
    }

    /// Reads what [`Snapshot::to_bytes`] wrote, and believes no item that could not be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let unreadable = |error: serde_json::Error| SnapshotError::Unreadable(error.to_string());
        let Versioned { version } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let form: Form = serde_json::from_slice(bytes).map_err(unreadable)?;
        for (field, value) in [("cluster", &form.cluster), ("uid", &form.uid)] {
            if value.is_empty() {
                return Err(invalid(field, value));
            }
        }
        let mut known = BTreeMap::new();
        for (name, form) in form.known {
            known.insert(node_name(&name)?, form.read()?);
        }
        let records = form.records.into_iter();
        let spoke_with = form.spoke_with.iter().map(|name| node_name(name));
        Ok(Self {
            identity: Identity {
                cluster: form.cluster.clone(),
                node: node_name(&form.node)?,
                uid: form.uid,
            },
            view: View {
                cluster: Some(form.cluster),
                nodes: Some(form.nodes),
                records: Some(records.map(|(name, record)| (name, Ok(record))).collect()),
                mesh: Some(form.mesh.clone()),
                api_servers: Some(form.api_servers),
            },
            mesh: form.mesh,
            known: Known(known),
            epoch: form.epoch,
            spoke_with: spoke_with.collect::<Result<_, _>>()?,
        })
    }
}

impl KnownForm {
    fn of(KnownNode { uid, node }: &KnownNode) -> Self {
        Self {
            uid: uid.clone(),
            public_key: node.public_key.map(|key| key.to_string()),
            endpoints: node.endpoints.iter().map(ToString::to_string).collect(),
            addresses: node.addresses.clone(),
            prefixes: node.prefixes.clone(),
        }
    }

    fn read(self) -> Result<KnownNode, SnapshotError> {
        let key = |text: String| text.parse().map_err(|_| invalid("a public key", &text));
        let endpoint = |text: &String| -> Result<Endpoint, SnapshotError> {
            text.parse().map_err(|_| invalid("an endpoint", text))
        };
        let node = Node {
            public_key: self.public_key.map(key).transpose()?,
            endpoints: self
                .endpoints
                .iter()
                .map(endpoint)
                .collect::<Result<_, _>>()?,
            addresses: self.addresses,
            prefixes: self.prefixes,
            ..Node::default()
        };
        Ok(KnownNode {
            uid: self.uid,
            node,
        })
    }
}

fn node_name(text: &str) -> Result<NodeName, SnapshotError> {
    text.parse()
        .map_err(|_| invalid("the name of a node", text))
}

fn invalid(field: &'static str, value: &str) -> SnapshotError {
    SnapshotError::Invalid {
        field,
        value: value.to_owned(),
    }
}
