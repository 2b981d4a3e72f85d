//! Kubernetes' objects, less all that the mesh has no use for.
//!
//! A `Node` is about ten kilobytes of JSON, most of it images, labels and the book-keeping of who
//! wrote which field. What is not named here is skipped as it is parsed.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::access::shortened;
use crate::resources::{MeshNodeSpec, MeshNodeStatus, MeshSpec};

/// What of an object's metadata is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) creation_timestamp: Option<Time>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) owner_references: Vec<OwnerReference>,
}

/// What of a `Node` is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeObject {
    pub(crate) metadata: Metadata,
    pub(crate) spec: NodeSpec,
    pub(crate) status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub(crate) pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    pub(crate) addresses: Vec<NodeAddress>,
    pub(crate) conditions: Vec<NodeCondition>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeAddress {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) address: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeCondition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
}

/// What of a [`MeshNode`](crate::MeshNode) is read.
#[derive(Debug, Clone, Deserialize)]
pub struct MeshNodeObject {
    pub(crate) metadata: Metadata,
    /// `None` where it is not that of this version: one node's record keeps nobody from reading others'.
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) spec: Option<MeshNodeSpec>,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) status: Option<MeshNodeStatus>,
}

/// What of a [`Mesh`](crate::Mesh) is read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct MeshObject {
    pub(crate) metadata: Metadata,
    /// What it says, or which field of it says what this version does not know.
    #[serde(deserialize_with = "explained")]
    pub(crate) spec: Result<MeshSpec, String>,
}

/// What of a `Namespace` is read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NamespaceObject {
    pub(crate) metadata: Metadata,
}

/// What of an `EndpointSlice` is read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct EndpointSliceObject {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Vec<String>,
}

fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).ok())
}

/// A spec; or a sentence on the first of its fields that cannot be read. Each has a default, so that each
/// can be read without the others.
fn explained<'de, D: Deserializer<'de>>(from: D) -> Result<Result<MeshSpec, String>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    let whole = match serde_json::from_value(value.clone()) {
        Ok(spec) => return Ok(Ok(spec)),
        Err(error) => error,
    };
    let fields = value.as_object().into_iter().flatten();
    let mut wrong = fields.filter_map(|(name, value)| {
        let alone = serde_json::json!({ name: value });
        let error = serde_json::from_value::<MeshSpec>(alone).err()?;
        Some((name, value, error))
    });
    let sentence = match wrong.next() {
        Some((name, value, error)) => format!(
            "spec.{name} of the Mesh is {}, which this version of warrend cannot read: {error}; set \
             another, or update warrend on this node",
            shortened(&value.to_string())
        ),
        None => format!("spec of the Mesh cannot be read: {whole}"),
    };
    Ok(Err(sentence))
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(crate) struct List<T> {
    pub(crate) metadata: ListMetadata,
    pub(crate) items: Vec<T>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListMetadata {
    pub(crate) resource_version: String,
    /// Where the next page begins; empty on the last.
    #[serde(default, rename = "continue")]
    pub(crate) next: String,
}
