//! The resources that are followed, and what is kept of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Store;
use crate::facts::{NodeFacts, Record, RecordError};
use crate::objects::{EndpointSliceObject, MeshNodeObject, MeshObject, Metadata, NodeObject};
use crate::resources::{MESH, MeshSpec};

/// Addresses that an answer may give the API server. There are three or five as a rule.
const API_SERVERS: usize = 64;

/// A resource that is followed.
pub(super) trait Kind: Debug + Send + Sync + 'static {
    /// What people call it.
    const NAME: &'static str;
    /// Where it is.
    const PATH: &'static str;
    /// Which of them; empty for all.
    const FIELDS: &'static str = "";

    /// What is read of one.
    type Object: DeserializeOwned + Send + 'static;
    /// What is kept of one.
    type Item: Clone + PartialEq + Send + 'static;

    fn metadata(object: &Self::Object) -> &Metadata;
    fn read(object: &Self::Object) -> Self::Item;

    /// What is there.
    fn items(store: &Store) -> Option<&BTreeMap<String, Self::Item>>;
    /// Where to change it.
    fn slot(store: &mut Store) -> &mut Option<BTreeMap<String, Self::Item>>;

    /// The object of this node was read, whether what is kept of it changed or not. Answers whether somebody
    /// waits for it.
    fn own_seen(_store: &mut Store, _object: Option<Self::Object>) -> bool {
        false
    }

    /// What follows once these have changed.
    fn settle(store: &mut Store, names: impl Iterator<Item = String>);
}

#[derive(Debug)]
pub(super) struct Nodes;

impl Kind for Nodes {
    const NAME: &'static str = "nodes";
    const PATH: &'static str = "/api/v1/nodes";
    type Object = NodeObject;
    type Item = NodeFacts;

    fn metadata(object: &NodeObject) -> &Metadata {
        &object.metadata
    }

    fn read(object: &NodeObject) -> NodeFacts {
        NodeFacts::of(object)
    }

    fn items(store: &Store) -> Option<&BTreeMap<String, NodeFacts>> {
        store.view.nodes.as_ref()
    }

    fn slot(store: &mut Store) -> &mut Option<BTreeMap<String, NodeFacts>> {
        &mut Arc::make_mut(&mut store.view).nodes
    }

    fn own_seen(_: &mut Store, _: Option<NodeObject>) -> bool {
        true
    }

    fn settle(store: &mut Store, names: impl Iterator<Item = String>) {
        store.changed_nodes.extend(names);
    }
}

#[derive(Debug)]
pub(super) struct Records;

impl Kind for Records {
    const NAME: &'static str = "meshnodes";
    const PATH: &'static str = "/apis/mesh.warren.dev/v1alpha1/meshnodes";
    type Object = MeshNodeObject;
    type Item = Result<Record, RecordError>;

    fn metadata(object: &MeshNodeObject) -> &Metadata {
        &object.metadata
    }

    fn read(object: &MeshNodeObject) -> Self::Item {
        Record::of(object)
    }

    fn items(store: &Store) -> Option<&BTreeMap<String, Self::Item>> {
        store.view.records.as_ref()
    }

    fn slot(store: &mut Store) -> &mut Option<BTreeMap<String, Self::Item>> {
        &mut Arc::make_mut(&mut store.view).records
    }

    fn own_seen(store: &mut Store, object: Option<MeshNodeObject>) -> bool {
        store.own = object;
        true
    }

    fn settle(store: &mut Store, names: impl Iterator<Item = String>) {
        store.changed_nodes.extend(names);
    }
}

#[derive(Debug)]
pub(super) struct Meshes;

impl Kind for Meshes {
    const NAME: &'static str = "meshes";
    const PATH: &'static str = "/apis/mesh.warren.dev/v1alpha1/meshes";
    type Object = MeshObject;
    type Item = Result<MeshSpec, String>;

    fn metadata(object: &MeshObject) -> &Metadata {
        &object.metadata
    }

    fn read(object: &MeshObject) -> Self::Item {
        object.spec.clone()
    }

    fn items(store: &Store) -> Option<&BTreeMap<String, Self::Item>> {
        store.meshes.as_ref()
    }

    fn slot(store: &mut Store) -> &mut Option<BTreeMap<String, Self::Item>> {
        &mut store.meshes
    }

    fn settle(store: &mut Store, _: impl Iterator<Item = String>) {
        let Some(meshes) = &store.meshes else { return };
        let mesh = meshes.get(MESH).cloned().transpose();
        store.unreadable_mesh = mesh.as_ref().err().cloned();
        // What it said before stays in the view.
        if let Ok(mesh) = mesh {
            Arc::make_mut(&mut store.view).mesh = Some(mesh);
        }
    }
}

/// The slice of the Service `kubernetes`, which the API servers keep themselves.
#[derive(Debug)]
pub(super) struct ApiServers;

impl Kind for ApiServers {
    const NAME: &'static str = "endpointslices";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    const FIELDS: &'static str = "metadata.name=kubernetes";
    type Object = EndpointSliceObject;
    type Item = BTreeSet<IpAddr>;

    fn metadata(object: &EndpointSliceObject) -> &Metadata {
        &object.metadata
    }

    fn read(object: &EndpointSliceObject) -> BTreeSet<IpAddr> {
        let addresses = object
            .endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.addresses);
        let addresses = addresses.filter_map(|address| address.parse().ok());
        addresses.take(API_SERVERS).collect()
    }

    fn items(store: &Store) -> Option<&BTreeMap<String, BTreeSet<IpAddr>>> {
        store.slices.as_ref()
    }

    fn slot(store: &mut Store) -> &mut Option<BTreeMap<String, BTreeSet<IpAddr>>> {
        &mut store.slices
    }

    fn settle(store: &mut Store, _: impl Iterator<Item = String>) {
        let slices = store.slices.as_ref();
        let servers = slices.map(|slices| slices.values().flatten().copied().collect());
        Arc::make_mut(&mut store.view).api_servers = servers;
    }
}
