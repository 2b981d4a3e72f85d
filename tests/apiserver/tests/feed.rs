//! What a daemon's feed makes of what happens in a cluster.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use warren_k8s::{
    Access, Entries, Feed, Identity, Issue, Known, MeshSpec, Mode, Settings, View, connect,
};
use warren_mesh::Cause;
use warren_tests_apiserver::{Cluster, Daemon, eventually, feed, object, synced, until};

/// Within which a node that joins is to be reachable. The feed is a small part of the way.
const JOIN: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_node_that_joins_and_one_that_leaves_is_seen_within_a_second() {
    let (cluster, _, mut feed) = watching("join").await;
    for round in 0..3 {
        let name = format!("joiner{round}");
        let joiner = joined(&cluster, &name, "10.244.9.0/24", &numbered('a', 1)).await;
        let took = until(&mut feed, "it has joined", |view| {
            key(view, &name).as_deref() == Some(&*numbered('a', 1))
        });
        let took = took.await;
        assert!(took < JOIN, "{took:?}");

        delete(&cluster, &joiner.node).await;
        let took = until(&mut feed, "it has left", |view| {
            !directory(view)
                .directory
                .nodes
                .contains_key(&name.parse().expect("a name"))
        });
        let took = took.await;
        assert!(took < JOIN, "{took:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_made_anew_under_its_name_is_another_node() {
    let (cluster, _, mut feed) = watching("anew-observer").await;
    let old = joined(&cluster, "anew", "10.244.10.0/24", &numbered('b', 0)).await;
    until(&mut feed, "it has joined", |view| {
        key(view, "anew").is_some()
    })
    .await;
    let known = known(&feed.view());

    delete(&cluster, "anew").await;
    let uid = cluster.node("anew", &["10.244.10.0/24"]).await;
    assert_ne!(uid, old.uid);
    until(&mut feed, "there is another", |view| {
        let nodes = view.nodes.as_ref();
        nodes
            .and_then(|nodes| nodes.get("anew"))
            .is_some_and(|node| node.uid == uid)
    })
    .await;
    // Its old record is still there, and neither it nor what was known of the old one is its own.
    let entries = feed.view().directory(&settings(), &known);
    let node = &entries.directory.nodes[&"anew".parse().expect("a name")];
    assert_eq!(node.public_key, None);
    assert!(entries.findings.iter().any(|finding| {
        finding.node == "anew" && matches!(finding.issue, Issue::OtherNode { .. })
    }));

    let new = cluster.daemon("anew").await;
    publish(&new, &numbered('b', 2)).await;
    until(&mut feed, "the new one has joined", |view| {
        key(view, "anew").as_deref() == Some(&*numbered('b', 2))
    })
    .await;
}

#[tokio::test]
async fn a_changed_address_and_a_changed_key_are_followed() {
    let (cluster, _, mut feed) = watching("change-observer").await;
    let changer = joined(&cluster, "changer", "10.244.11.0/24", &numbered('c', 0)).await;
    until(&mut feed, "it has joined", |view| {
        key(view, "changer").is_some()
    })
    .await;

    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let moved = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.77"}]}});
    nodes
        .patch_status("changer", &PatchParams::default(), &Patch::Merge(&moved))
        .await
        .expect("the operator");
    // What its record says is no address of its Node any more, until its daemon has noticed.
    let took = until(&mut feed, "it is elsewhere", |view| {
        let entries = directory(view);
        let node = &entries.directory.nodes[&"changer".parse().expect("a name")];
        let at = |endpoint: &warren_mesh::Endpoint| endpoint.to_string() == "192.0.2.77:51820";
        node.endpoints.len() == 1 && node.endpoints.iter().all(at)
    });
    assert!(took.await < JOIN);

    publish(&changer, &numbered('c', 1)).await;
    let took = until(&mut feed, "it has another key", |view| {
        key(view, "changer").as_deref() == Some(&*numbered('c', 1))
    });
    assert!(took.await < JOIN);
}

#[tokio::test]
async fn whoever_claims_anothers_key_or_prefix_later_is_refused_and_named() {
    let (cluster, _, mut feed) = watching("claims-observer").await;
    joined(&cluster, "holder", "10.244.12.0/24", &numbered('d', 0)).await;
    until(&mut feed, "it has joined", |view| {
        key(view, "holder").is_some()
    })
    .await;
    let known = known(&feed.view());

    // A thief whose name comes first, with the key and the prefix of the other.
    joined(&cluster, "a-thief", "10.244.12.0/24", &numbered('d', 0)).await;
    until(&mut feed, "the thief is there", |view| {
        key(view, "a-thief").is_some()
    })
    .await;
    let entries = feed.view().directory(&settings(), &known);
    let believed = Known::after(&entries.directory, &entries.uids);
    let node = |name: &str| &believed.0[&name.parse().expect("a name")].node;
    let text = node("holder").public_key.map(|key| key.to_string());
    assert_eq!(text.as_deref(), Some(&*numbered('d', 0)));
    assert_eq!(node("holder").prefixes.len(), 1);
    assert_eq!(node("a-thief").public_key, None);
    assert!(node("a-thief").prefixes.is_empty());
    let problems = entries.directory.review();
    let names_thief = |problem: &&warren_mesh::Problem| {
        matches!(problem.cause, Cause::DuplicateKey { .. })
            && problem.to_string().contains("a-thief")
    };
    assert!(
        problems.iter().any(|problem| names_thief(&problem)),
        "{problems:#?}"
    );
}

#[tokio::test]
async fn the_mesh_and_the_api_servers_are_seen_to_come_change_and_go() {
    let (cluster, _, mut feed) = watching("mesh-observer").await;
    assert_eq!(feed.view().mesh, Some(None));
    let mesh = |port: u16| {
        object(json!({
            "apiVersion": "mesh.warren.dev/v1alpha1",
            "kind": "Mesh",
            "metadata": {"name": "default"},
            "spec": {"port": port},
        }))
    };
    for port in [51820, 51821] {
        cluster.apply(&mesh(port)).await.expect("the operator");
        until(&mut feed, "there is a mesh", |view| {
            view.mesh
                .as_ref()
                .is_some_and(|mesh| mesh.as_ref().is_some_and(|mesh| mesh.port == port))
        })
        .await;
    }
    let meshes: Api<warren_k8s::Mesh> = Api::all(cluster.admin.clone());
    let deleted = meshes.delete("default", &DeleteParams::default()).await;
    deleted.expect("the operator");
    until(&mut feed, "there is none again", |view| {
        view.mesh == Some(None)
    })
    .await;

    let slice = object(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.10"]}, {"addresses": ["192.0.2.11"]}],
        "ports": [{"name": "https", "port": 6443}],
    }));
    cluster.apply(&slice).await.expect("the operator");
    until(&mut feed, "the API servers are there", |view| {
        let servers = view.api_servers.as_ref();
        servers.is_some_and(|servers| {
            let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
            servers == ["192.0.2.10", "192.0.2.11"]
        })
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_read_again_from_its_file() {
    let cluster = Cluster::shared().await;
    cluster.node("renewing", &[]).await;
    let daemon = cluster.daemon("renewing").await;
    let stale = cluster.server.kubeconfig("renewing", "not-a-token");
    let client = connect(&Access::Kubeconfig(stale))
        .await
        .expect("a kubeconfig");
    let mut feed = Feed::start(&client, &"renewing".parse().expect("a name"));
    eventually("it is refused", || async {
        let health = feed.health();
        let error = health
            .0
            .get("nodes")
            .and_then(|health| health.error.clone());
        error.is_some_and(|error| error.contains("401"))
    })
    .await;
    assert_eq!(feed.view().nodes, None);

    cluster.server.renew("renewing", &daemon.token);
    synced(&mut feed).await;
}

/// A cluster, a node with its daemon in it, and what that daemon sees.
async fn watching(name: &str) -> (Cluster, Daemon, Feed) {
    let cluster = Cluster::shared().await;
    cluster.node(name, &[]).await;
    let daemon = cluster.daemon(name).await;
    let mut feed = feed(&cluster, &daemon).await;
    synced(&mut feed).await;
    until(&mut feed, "this node is there", |view| {
        view.nodes
            .as_ref()
            .is_some_and(|nodes| nodes.contains_key(name))
    })
    .await;
    let identity = Identity {
        cluster: feed.view().cluster.clone().expect("it is synced"),
        node: name.parse().expect("a name"),
        uid: daemon.uid.clone(),
    };
    assert_eq!(feed.view().trust(&identity), Ok(()));
    (cluster, daemon, feed)
}

/// A node with a prefix, whose daemon has published a key.
async fn joined(cluster: &Cluster, name: &str, prefix: &str, key: &str) -> Daemon {
    cluster.node(name, &[prefix]).await;
    let daemon = cluster.daemon(name).await;
    publish(&daemon, key).await;
    daemon
}

async fn publish(daemon: &Daemon, key: &str) {
    let mut record: Value = daemon.record();
    record["spec"]["publicKey"] = json!(key);
    daemon.apply(&record).await.expect("its own");
}

async fn delete(cluster: &Cluster, name: &str) {
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let deleted = nodes.delete(name, &DeleteParams::default()).await;
    deleted.expect("the operator");
}

fn directory(view: &View) -> Entries {
    view.directory(&settings(), &Known::default())
}

fn known(view: &View) -> Known {
    let entries = directory(view);
    Known::after(&entries.directory, &entries.uids)
}

fn key(view: &View, name: &str) -> Option<String> {
    let entries = directory(view);
    let node = entries
        .directory
        .nodes
        .get(&name.parse().expect("a name"))?;
    node.public_key.map(|key| key.to_string())
}

/// A key of a test, so that no test's nodes claim what another's have.
fn numbered(test: char, number: u8) -> String {
    format!("TrMvSoP4jYQlY6RIzBgb{number}{test}QqY3vxI2Pi+y71lOWWXX0=")
}

fn settings() -> Settings {
    let spec = MeshSpec {
        pod_prefixes: vec!["10.244.0.0/16".to_owned()],
        ..MeshSpec::default()
    };
    Settings::of(&spec, 1420, Mode::Route).expect("they can be used")
}
