//! What a daemon sees of the API, waited for by condition.

use std::time::Duration;

use tokio::time::{self, Instant};
use warren_k8s::{Feed, View, connect};

use crate::{Cluster, Daemon};

/// How long what a daemon should see may take. It takes milliseconds on an idle machine, and seconds
/// after a server was started anew.
const PATIENCE: Duration = Duration::from_secs(60);

/// The feed of a daemon, with the daemon's own token.
pub async fn feed(cluster: &Cluster, daemon: &Daemon) -> Feed {
    let client = connect(&daemon.access(cluster))
        .await
        .expect("a kubeconfig");
    Feed::start(&client, &daemon.node.parse().expect("a name"))
}

/// Waits until what `feed` says is as described; how long that took.
pub async fn until(feed: &mut Feed, what: &str, is: impl Fn(&View) -> bool) -> Duration {
    let start = Instant::now();
    let wait = async {
        while !is(&feed.view()) {
            feed.changed().await;
        }
    };
    let in_time = time::timeout(PATIENCE, wait).await;
    assert!(
        in_time.is_ok(),
        "not within {PATIENCE:?}: {what}; {:?}",
        feed.health()
    );
    start.elapsed()
}

/// Waits until everything has been listed.
pub async fn synced(feed: &mut Feed) {
    until(feed, "everything is listed", |view| {
        view.cluster.is_some()
            && view.nodes.is_some()
            && view.records.is_some()
            && view.mesh.is_some()
            && view.api_servers.is_some()
    })
    .await;
}
