//! From what the server holds to the directory, read with a daemon's own token.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use warren_k8s::{
    Distrust, Identity, Known, MeshNodeObject, MeshSpec, Mode, NodeFacts, NodeObject, Record,
    Settings, View,
};
use warren_tests_apiserver::{Cluster, Daemon, object};

#[tokio::test]
async fn what_daemons_publish_is_a_directory_for_every_one_of_them() {
    let cluster = Cluster::shared().await;
    let a = join(&cluster, "dir-a", "10.244.1.0/24", 1).await;
    let b = join(&cluster, "dir-b", "10.244.2.0/24", 2).await;

    let seen = view(&a).await;
    assert_eq!(seen, view(&b).await);
    let entries = seen.directory(&settings(), &Known::default());
    let node = |name: &str| {
        let mut nodes = entries.directory.nodes.iter();
        let found = nodes.find(|(found, _)| found.as_str() == name);
        found.expect("it is in the directory").1.clone()
    };
    for (daemon, prefix) in [(&a, "10.244.1.0/24"), (&b, "10.244.2.0/24")] {
        let node = node(&daemon.node);
        let key = daemon
            .records()
            .get(&daemon.node)
            .await
            .expect("its own")
            .spec
            .public_key;
        assert_eq!(node.public_key.map(|key| key.to_string()), Some(key));
        assert_eq!(node.prefixes, [prefix.parse().expect("a prefix")]);
        assert_eq!(node.endpoints.len(), 1);
    }
    let identity = identity(&seen, &a);
    assert_eq!(seen.trust(&identity), Ok(()));

    // A node that goes and comes back under its name is another, and its old record no peer.
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let known = Known::after(&entries.directory, &entries.uids);
    let deleted = nodes.delete("dir-b", &DeleteParams::default()).await;
    deleted.expect("the operator");
    cluster.node("dir-b", &["10.244.2.0/24"]).await;
    let seen = view(&a).await;
    let entries = seen.directory(&settings(), &known);
    let (_, anew) = (entries.directory.nodes.iter())
        .find(|(name, _)| name.as_str() == "dir-b")
        .expect("its Node is there");
    assert_eq!(anew.public_key, None);

    // This node itself gone: nothing may be taken away.
    let deleted = nodes.delete("dir-a", &DeleteParams::default()).await;
    deleted.expect("the operator");
    let without = view(&b).await.trust(&identity);
    assert_eq!(without, Err(Distrust::NotListed(identity.node)));
}

/// A node with a prefix, whose daemon has published its record under the key of this number.
async fn join(cluster: &Cluster, name: &str, prefix: &str, number: u8) -> Daemon {
    cluster.node(name, &[prefix]).await;
    let daemon = cluster.daemon(name).await;
    let mut record = daemon.record();
    let key = format!("TrMvSoP4jYQlY6RIzBgb{number}sQqY3vxI2Pi+y71lOWWXX0=");
    record["spec"]["publicKey"] = json!(key);
    daemon.apply(&record).await.expect("its own");
    daemon
}

/// All that a daemon reads.
async fn view(daemon: &Daemon) -> View {
    View {
        cluster: kube_system(daemon).await,
        nodes: Some(
            read::<NodeObject>(daemon, "/api/v1/nodes")
                .await
                .into_iter()
                .map(|(name, node)| (name, NodeFacts::of(&node)))
                .collect(),
        ),
        records: Some(
            read::<MeshNodeObject>(daemon, "/apis/mesh.warren.dev/v1alpha1/meshnodes")
                .await
                .into_iter()
                .map(|(name, record)| (name, Record::of(&record)))
                .collect(),
        ),
        ..View::default()
    }
}

async fn kube_system(daemon: &Daemon) -> Option<String> {
    let namespaces: Api<Namespace> = Api::all(daemon.client.clone());
    namespaces.get("kube-system").await.expect("it may").uid()
}

/// Every object of a path, by name.
async fn read<T: serde::de::DeserializeOwned>(daemon: &Daemon, path: &str) -> BTreeMap<String, T> {
    let request = http::Request::get(path).body(Vec::new());
    let list = daemon.client.request::<Value>(request.expect("a request"));
    let mut list = list.await.expect("it may");
    let items = list["items"].as_array_mut().expect("a list");
    let items = items.iter_mut().map(Value::take);
    items
        .map(|item| {
            let name = item["metadata"]["name"].as_str().expect("a name");
            (name.to_owned(), object(item))
        })
        .collect()
}

fn identity(view: &View, daemon: &Daemon) -> Identity {
    Identity {
        cluster: view.cluster.clone().expect("a uid"),
        node: daemon.node.parse().expect("a name"),
        uid: daemon.uid.clone(),
    }
}

fn settings() -> Settings {
    let spec = MeshSpec {
        pod_prefixes: vec!["10.244.0.0/16".to_owned()],
        ..MeshSpec::default()
    };
    Settings::of(&spec, 1420, Mode::Route).expect("they can be used")
}
