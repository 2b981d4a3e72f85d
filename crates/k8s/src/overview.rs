//! What people ask of a whole cluster, and the one thing that they may have it do.

use std::collections::BTreeMap;

use http::Method;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use crate::access::{Client, Failure, OBJECTS_MAX, too_many};
use crate::facts::NodeFacts;
use crate::objects::{List, MeshNodeObject, MeshObject, NodeObject};
use crate::resources::{Enforcement, GROUP, MESH, MeshNodeSpec, MeshNodeStatus, MeshSpec, VERSION};
use crate::settings::Excepted;

/// Objects of one answer, so that none is larger than a few megabytes.
const PAGE: u32 = 500;

/// A cluster's mesh as its objects tell it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Overview {
    /// What the operator has set; `None` where there is no Mesh.
    pub mesh: Option<MeshSpec>,
    /// Every Node by name.
    pub nodes: BTreeMap<String, NodeOverview>,
}

/// A node's mesh as its objects tell it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct NodeOverview {
    /// The Node's condition `Ready` is true.
    pub ready: bool,
    /// The operator leaves it outside.
    pub outside: bool,
    /// What its daemon has published; `None` where it has published nothing, or nothing under the
    /// Node's present uid.
    pub record: Option<RecordOverview>,
}

/// What a daemon has published.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecordOverview {
    /// Of its node.
    pub spec: MeshNodeSpec,
    /// Of what it sees.
    pub status: MeshNodeStatus,
}

/// Why the API server did not do as it was asked, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct RequestError(#[from] Failure);

impl Client {
    /// Reads all nodes, their records and the mesh.
    pub async fn overview(&self) -> Result<Overview, RequestError> {
        let mesh = self.mesh().await?;
        let mut records: BTreeMap<String, MeshNodeObject> = BTreeMap::new();
        for record in self
            .pages(&format!("/apis/{GROUP}/{VERSION}/meshnodes"))
            .await?
        {
            let record: MeshNodeObject = record;
            records.insert(record.metadata.name.clone(), record);
        }
        let nodes: Vec<NodeObject> = self.pages("/api/v1/nodes").await?;
        let nodes = nodes.into_iter().map(|node| {
            let name = &node.metadata.name;
            let facts = NodeFacts::of(&node);
            let report = NodeOverview {
                ready: facts.ready,
                outside: mesh
                    .as_ref()
                    .is_some_and(|mesh| Excepted::of(&mesh.exceptions).covers(name, &facts)),
                record: records
                    .remove(name)
                    .and_then(|record| of_node(record, &facts)),
            };
            (name.clone(), report)
        });
        Ok(Overview {
            nodes: nodes.collect(),
            mesh,
        })
    }

    /// Sets what is enforced, in the Mesh that is there. Returns whether there is one.
    pub async fn enforce(&self, enforcement: Enforcement) -> Result<bool, RequestError> {
        let change = json!({"spec": {"enforcement": enforcement}}).to_string();
        let uri = format!("{}?fieldManager=warren", mesh_uri());
        let kind = "application/merge-patch+json";
        let sent = self.send(Method::PATCH, &uri, kind, change.into_bytes());
        match sent.await {
            Ok(IgnoredAny) => Ok(true),
            Err(failure) if failure.code() == Some(404) => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn mesh(&self) -> Result<Option<MeshSpec>, Failure> {
        match self.get::<MeshObject>(&mesh_uri()).await {
            Ok(mesh) => mesh.spec.map(Some).map_err(Failure::Unreadable),
            Err(failure) if failure.code() == Some(404) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn pages<T: DeserializeOwned>(&self, resource: &str) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        let mut next = String::new();
        loop {
            let mut uri = format!("{resource}?limit={PAGE}");
            if !next.is_empty() {
                uri = format!("{uri}&continue={next}");
            }
            let page: List<T> = self.list(&uri).await?;
            items.extend(page.items);
            if items.len() > OBJECTS_MAX {
                return Err(too_many(resource));
            }
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(items);
            }
        }
    }
}

fn mesh_uri() -> String {
    format!("/apis/{GROUP}/{VERSION}/meshes/{MESH}")
}

/// The record, if it is of this very node and of a version that can be read.
fn of_node(record: MeshNodeObject, node: &NodeFacts) -> Option<RecordOverview> {
    let spec = record.spec?;
    (spec.node_uid == node.uid).then(|| RecordOverview {
        spec,
        status: record.status.unwrap_or_default(),
    })
}
