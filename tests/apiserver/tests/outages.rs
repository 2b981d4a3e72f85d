//! What a daemon's feed makes of a server that goes, comes back, or comes back empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_k8s::{
    Access, Distrust, Feed, Identity, Known, MeshSpec, Mode, Settings, View, connect,
};
use warren_tests_apiserver::{Cluster, Daemon, Options, Server, eventually, feed, synced, until};

#[tokio::test]
async fn an_outage_takes_nothing_away_and_what_happened_meanwhile_is_seen_after_it() {
    let (cluster, daemon, mut feed) = watching(Options::default()).await;
    for round in 0..2 {
        let before = feed.view().clone();
        cluster.server.halt();
        eventually("the outage is noticed", || async {
            let health = feed.health();
            let mut resources = health.0.values();
            resources.all(|resource| resource.error.is_some() && resource.synced)
        })
        .await;
        assert_eq!(*feed.view(), before);
        cluster.server.resume().await;
        let name = format!("meanwhile{round}");
        cluster.node(&name, &["10.244.7.0/24"]).await;
        let during = std::sync::Mutex::new(Vec::new());
        until(&mut feed, "the new node is there", |view| {
            let nodes = view.nodes.as_ref().expect("it was listed before");
            during.lock().expect("nobody panicked").push(nodes.len());
            nodes.contains_key(&name)
        })
        .await;
        // Also where the server could not go on and everything was listed anew.
        let least = during
            .lock()
            .expect("nobody panicked")
            .iter()
            .copied()
            .min();
        assert!(
            least >= before.nodes.as_ref().map(BTreeMap::len),
            "{least:?}"
        );
        assert_eq!(feed.view().trust(&identity(&before, &daemon)), Ok(()));
        eventually("all is heard of again", || async {
            feed.health()
                .0
                .values()
                .all(|resource| resource.error.is_none())
        })
        .await;
    }
}

#[tokio::test]
async fn an_emptied_server_is_not_trusted_to_take_anything_away() {
    let (cluster, daemon, mut feed) = watching(Options::default()).await;
    let before = feed.view().clone();
    let identity = identity(&before, &daemon);
    let entries = before.directory(&settings(), &Known::default());
    assert_eq!(entries.directory.nodes.len(), 3);

    cluster.server.halt();
    cluster.server.wipe();
    cluster.server.resume().await;
    until(&mut feed, "it is another cluster", |view| {
        view.cluster != before.cluster
    })
    .await;
    let other = |distrust| matches!(distrust, Err(Distrust::Cluster { .. }));
    assert!(other(feed.view().trust(&identity)));

    // The resources are made anew, and a node under this one's name.
    Cluster::bare(cluster.server.clone()).install().await;
    cluster.node(&daemon.node, &[]).await;
    until(&mut feed, "it is all listed anew", |view| {
        let nodes = view.nodes.as_ref();
        let own = nodes.and_then(|nodes| nodes.get(&daemon.node));
        own.is_some_and(|node| node.uid != daemon.uid)
            && view.records.as_ref().is_some_and(BTreeMap::is_empty)
    })
    .await;
    assert!(other(feed.view().trust(&identity)));
    let view = View {
        cluster: Some(identity.cluster.clone()),
        ..feed.view().clone()
    };
    // Each of the two would do.
    assert!(matches!(
        view.trust(&identity),
        Err(Distrust::Replaced { .. })
    ));
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_read_page_by_page() {
    for options in [
        Options {
            emulated_version: Some("1.33"),
            ..Options::default()
        },
        Options {
            feature_gates: Some("WatchList=false"),
            ..Options::default()
        },
    ] {
        let (cluster, _, mut feed) = watching(options).await;
        cluster.node("later", &[]).await;
        until(&mut feed, "it is watched from there on", |view| {
            view.nodes
                .as_ref()
                .is_some_and(|nodes| nodes.contains_key("later"))
        })
        .await;
        let health = feed.health();
        assert!(
            health.0.values().all(|resource| resource.error.is_none()),
            "{health:?}"
        );
    }
}

/// A cluster of its own with three nodes, and what the daemon of one sees, by the administrator's
/// token, which outlives the cluster's data.
async fn watching(options: Options) -> (Cluster, Daemon, Feed) {
    let server = Server::start(options).await;
    let cluster = Cluster::bare(Arc::new(server));
    cluster.install().await;
    for name in ["a", "b"] {
        cluster.node(name, &[]).await;
    }
    let daemon = cluster.daemon("a").await;
    daemon.apply(&daemon.record()).await.expect("its own");
    // With its own token it may read all that it needs.
    synced(&mut feed(&cluster, &daemon).await).await;
    let access = Access::Kubeconfig(cluster.server.admin_kubeconfig());
    let client = connect(&access).await.expect("a kubeconfig");
    let mut feed = Feed::start(&client, &daemon.node.parse().expect("a name"));
    synced(&mut feed).await;
    (cluster, daemon, feed)
}

fn identity(view: &View, daemon: &Daemon) -> Identity {
    Identity {
        cluster: view.cluster.clone().expect("it is synced"),
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
