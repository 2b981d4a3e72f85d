//! What a feed makes of answers that a server gives on bad days, each of which was seen on a real one
//! (tests/apiserver). Played here, since a real one cannot be made to give them at will.

#[path = "feed/server.rs"]
mod server;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{self, Instant};
use warren_k8s::{Access, Enforcement, Feed, View, connect};

use self::server::Server;

const NODES: &str = "/api/v1/nodes";

#[tokio::test]
async fn a_list_that_is_streamed_is_a_view_once_its_end_has_come() {
    let server = Server::start().await;
    let mut feed = feed(&server).await;
    let (asked, reply) = server.asked(NODES).await;
    assert!(asked.query.contains("sendInitialEvents=true"), "{asked:?}");
    let mut stream = reply.stream().await;
    stream.event("ADDED", &node("a", 5)).await;
    stream.event("ADDED", &node("b", 6)).await;
    until(&mut feed, |view| {
        view.cluster.is_some() && view.records.is_some()
    })
    .await;
    // Half a list takes nothing away, and gives nothing.
    assert_eq!(feed.view().nodes, None);
    stream.event("BOOKMARK", &list_end(7)).await;
    until(&mut feed, |view| names(view) == ["a", "b"]).await;
    stream.event("DELETED", &node("a", 8)).await;
    until(&mut feed, |view| names(view) == ["b"]).await;
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_asked_for_pages_at_once() {
    for (code, message) in [
        (
            422,
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        ),
        (500, "storage feature RequestWatchProgress is disabled"),
    ] {
        let server = Server::start().await;
        let mut feed = feed(&server).await;
        let (_, reply) = server.asked(NODES).await;
        reply.refuse(code, message, None).await;
        let start = Instant::now();
        let (asked, reply) = server.asked(NODES).await;
        assert!(
            start.elapsed() < Duration::from_millis(200),
            "{:?}",
            start.elapsed()
        );
        assert!(!asked.query.contains("watch"), "{asked:?}");
        reply.page(&[node("a", 3)], 9, Some("to-b")).await;
        let (asked, reply) = server.asked(NODES).await;
        assert!(asked.query.contains("continue=to-b"), "{asked:?}");
        assert_eq!(feed.view().nodes, None);
        reply.page(&[node("b", 4)], 9, None).await;
        until(&mut feed, |view| names(view) == ["a", "b"]).await;
        let (asked, _watch) = server.asked(NODES).await;
        assert!(asked.query.contains("watch=true"), "{asked:?}");
        assert!(asked.query.ends_with("resourceVersion=9"), "{asked:?}");
    }
}

#[tokio::test]
async fn a_watch_that_expired_leads_to_a_list_that_takes_away_only_what_is_gone() {
    let server = Server::start().await;
    let (mut feed, mut stream) = watching(&server).await;
    let mut view = feed.look();
    stream
        .event("ERROR", &status(410, "too old resource version: 7 (900)"))
        .await;
    // What is listed anew is there all the while.
    let (asked, reply) = server.asked(NODES).await;
    assert!(asked.query.contains("sendInitialEvents=true"), "{asked:?}");
    assert_eq!(names(&feed.view()), ["a", "b"]);
    let mut stream = reply.stream().await;
    stream.event("ADDED", &node("b", 900)).await;
    server.settled().await;
    assert_eq!(names(&feed.view()), ["a", "b"]);
    stream.event("BOOKMARK", &list_end(901)).await;
    until(&mut feed, |view| names(view) == ["b"]).await;
    // The other is no news.
    // This is node a: what concerns it is about all, and nothing is taken over by half.
    assert_eq!(feed.follow(&mut view), None);
    assert_eq!(names(&view), ["a", "b"]);
    let mut view = feed.look();
    stream.event("DELETED", &node("b", 902)).await;
    until(&mut feed, |view| names(view).is_empty()).await;
    let changed = feed
        .follow(&mut view)
        .expect("only another node has changed");
    assert_eq!(changed.keys().collect::<Vec<_>>(), ["b"]);
    assert!(changed["b"].node.is_some() && changed["b"].record.is_none());
    assert_eq!(view, *feed.view());
    assert_eq!(feed.follow(&mut view), Some([].into()));
}

#[tokio::test]
async fn a_list_that_expires_between_two_pages_is_asked_for_in_one_piece() {
    let server = Server::start().await;
    let mut feed = feed(&server).await;
    let (_, reply) = server.asked(NODES).await;
    reply.refuse(422, "no", None).await;
    let (_, reply) = server.asked(NODES).await;
    reply.page(&[node("a", 3)], 9, Some("to-b")).await;
    let (_, reply) = server.asked(NODES).await;
    reply
        .refuse(410, "the provided continue parameter is too old", None)
        .await;
    let (asked, reply) = server.asked(NODES).await;
    assert!(!asked.query.contains("limit"), "{asked:?}");
    reply.page(&[node("a", 3), node("b", 4)], 12, None).await;
    until(&mut feed, |view| names(view) == ["a", "b"]).await;
}

#[tokio::test]
async fn a_server_that_is_busy_is_left_alone_for_as_long_as_it_asks() {
    let server = Server::start().await;
    let mut feed = feed(&server).await;
    let (_, reply) = server.asked(NODES).await;
    reply
        .refuse(429, "storage is (re)initializing", Some(1))
        .await;
    let start = Instant::now();
    let (_, reply) = server.asked(NODES).await;
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    let mut stream = reply.stream().await;
    stream.event("BOOKMARK", &list_end(7)).await;
    until(&mut feed, |view| view.nodes.is_some()).await;
}

#[tokio::test]
async fn a_resource_that_is_not_there_any_more_takes_nothing_away() {
    let server = Server::start().await;
    let (mut feed, mut stream) = watching(&server).await;
    stream
        .event("ERROR", &status(410, "too old resource version"))
        .await;
    let (_, reply) = server.asked(NODES).await;
    reply
        .refuse(
            404,
            "the server could not find the requested resource",
            None,
        )
        .await;
    // It goes on asking.
    let (_, reply) = server.asked(NODES).await;
    assert_eq!(names(&feed.view()), ["a", "b"]);
    let health = feed.health().0["nodes"].clone();
    assert!(health.error.is_some_and(|error| error.contains("404")));
    let mut stream = reply.stream().await;
    stream.event("ADDED", &node("a", 8)).await;
    stream.event("BOOKMARK", &list_end(9)).await;
    until(&mut feed, |view| names(view) == ["a"]).await;
    assert_eq!(feed.health().0["nodes"].error, None);
}

#[tokio::test]
async fn a_watch_goes_on_where_the_last_bookmark_was() {
    let server = Server::start().await;
    let (_feed, mut stream) = watching(&server).await;
    stream
        .event(
            "BOOKMARK",
            &json!({"metadata": {"resourceVersion": "4711"}}),
        )
        .await;
    stream.end().await;
    let (asked, _watch) = server.asked(NODES).await;
    assert!(asked.query.ends_with("resourceVersion=4711"), "{asked:?}");
    assert!(
        asked.query.contains("allowWatchBookmarks=true"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_server_that_has_fallen_silent_is_left_for_a_new_connection() {
    let server = Server::start().await;
    let (_feed, _silent) = watching(&server).await;
    time::pause();
    time::advance(Duration::from_secs(200)).await;
    time::resume();
    let (asked, _watch) = server.asked(NODES).await;
    assert!(asked.query.ends_with("resourceVersion=7"), "{asked:?}");
}

#[tokio::test]
async fn another_cluster_behind_the_address_is_listed_from_nothing() {
    let server = Server::start().await;
    let (mut feed, stream) = watching(&server).await;
    server.become_cluster("another");
    stream.end().await;
    let (asked, reply) = server.asked(NODES).await;
    assert!(asked.query.contains("sendInitialEvents=true"), "{asked:?}");
    // The view says so before anything of it is believed.
    assert_eq!(feed.view().cluster.as_deref(), Some("another"));
    assert_eq!(names(&feed.view()), ["a", "b"]);
    let mut stream = reply.stream().await;
    stream.event("BOOKMARK", &list_end(3)).await;
    until(&mut feed, |view| names(view).is_empty()).await;
}

#[tokio::test]
async fn a_server_whose_data_became_older_is_listed_anew() {
    let server = Server::start().await;
    let (_feed, mut stream) = watching(&server).await;
    stream
        .event("BOOKMARK", &json!({"metadata": {"resourceVersion": "3"}}))
        .await;
    let (asked, _reply) = server.asked(NODES).await;
    assert!(asked.query.contains("sendInitialEvents=true"), "{asked:?}");
}

#[tokio::test]
async fn what_changes_nothing_that_is_needed_wakes_nobody() {
    let server = Server::start().await;
    let (mut feed, mut stream) = watching(&server).await;
    for version in 8..28 {
        let mut beating = node("a", version);
        beating["status"]["conditions"][0]["lastHeartbeatTime"] = json!(format!("t{version}"));
        beating["status"]["images"] = json!([{"names": ["an image"]}]);
        beating["metadata"]["annotations"] = json!({"seen": version.to_string()});
        stream.event("MODIFIED", &beating).await;
    }
    // All of it has been read once the next watch begins there.
    stream.end().await;
    let (asked, reply) = server.asked(NODES).await;
    assert!(asked.query.ends_with("resourceVersion=27"), "{asked:?}");
    let woken = time::timeout(Duration::from_millis(300), feed.changed()).await;
    assert!(woken.is_err());

    let mut ill = node("a", 28);
    ill["status"]["conditions"][0]["status"] = json!("False");
    let mut stream = reply.stream().await;
    stream.event("MODIFIED", &ill).await;
    feed.changed().await;
    assert!(!feed.view().nodes.as_ref().expect("a list")["a"].ready);
}

#[tokio::test]
async fn a_burst_of_events_is_one_change_and_none_is_lost() {
    let server = Server::start().await;
    let (mut feed, mut stream) = watching(&server).await;
    for number in 0..200 {
        stream
            .event("ADDED", &node(&format!("n{number}"), 8 + number))
            .await;
    }
    let mut changes = 0;
    while names(&feed.view()).len() < 202 {
        // Dropped before it ends, now and then, as a daemon does that waits for several things.
        let _ = time::timeout(Duration::from_millis(3), feed.changed()).await;
        changes += 1;
    }
    assert!(changes < 100, "{changes}");
    // What has been looked at is no news.
    let _ = time::timeout(Duration::from_millis(300), feed.changed()).await;
    let woken = time::timeout(Duration::from_millis(300), feed.changed()).await;
    assert!(woken.is_err());
}

#[tokio::test]
async fn a_mesh_that_nobody_can_read_leaves_the_last_one_in_force_and_is_told_of_in_a_sentence() {
    let server = Server::start().await;
    let path = "/apis/mesh.warren.dev/v1alpha1/meshes";
    server.hold(path);
    let client = connect(&Access::Kubeconfig(server.kubeconfig())).await;
    let mut feed = Feed::start(
        &client.expect("a kubeconfig"),
        &"a".parse().expect("a name"),
    );
    let mesh = |version: u64, enforcement: &str| {
        json!({
            "apiVersion": "mesh.warren.dev/v1alpha1",
            "kind": "Mesh",
            "metadata": {"name": "default", "resourceVersion": version.to_string()},
            "spec": {"enforcement": enforcement},
        })
    };
    let (_, reply) = server.asked(path).await;
    let mut stream = reply.stream().await;
    stream.event("ADDED", &mesh(5, "Staged")).await;
    stream.event("BOOKMARK", &list_end(7)).await;
    until(&mut feed, |view| matches!(view.mesh, Some(Some(_)))).await;
    assert_eq!(feed.unreadable_mesh(), None);
    stream.event("MODIFIED", &mesh(8, "Sometimes")).await;
    feed.changed().await;
    let sentence = feed.unreadable_mesh().expect("it cannot be read");
    for part in [
        "spec.enforcement",
        "\"Sometimes\"",
        "Staged",
        "update warrend",
    ] {
        assert!(sentence.contains(part), "{sentence}");
    }
    assert!(matches!(feed.view().mesh, Some(Some(_))));
    // It is followed further on the same watch.
    stream.event("MODIFIED", &mesh(9, "Permissive")).await;
    until(&mut feed, |view| {
        let mesh = view.mesh.as_ref().and_then(Option::as_ref);
        mesh.is_some_and(|mesh| mesh.enforcement == Enforcement::Permissive)
    })
    .await;
    assert_eq!(feed.unreadable_mesh(), None);
}

#[tokio::test]
async fn a_line_without_an_end_is_not_read_to_its_end() {
    let server = Server::start().await;
    let (feed, mut stream) = watching(&server).await;
    let piece = vec![b' '; 1 << 20];
    // More than any object has; somewhere on the way nobody reads any more.
    for _ in 0..64 {
        if !stream.write(&piece).await {
            break;
        }
    }
    let (asked, _watch) = server.asked(NODES).await;
    assert!(asked.query.ends_with("resourceVersion=7"), "{asked:?}");
    let error = feed.health().0["nodes"].error.clone();
    assert!(error.is_some_and(|error| error.contains("longer than 8 MiB")));
    assert_eq!(names(&feed.view()), ["a", "b"]);
}

#[tokio::test]
async fn a_list_without_an_end_is_not_read_to_its_end() {
    let server = Server::start().await;
    let mut feed = feed(&server).await;
    let (_, reply) = server.asked(NODES).await;
    reply.refuse(422, "no", None).await;
    let mut next = None;
    for page in 0..=40_u64 {
        let (asked, reply) = server.asked(NODES).await;
        assert_eq!(
            asked.query.contains("continue"),
            next.is_some(),
            "{asked:?}"
        );
        let node = |number| node(&format!("n{}", page * 500 + number), 3);
        let nodes: Vec<Value> = (0..500).map(node).collect();
        next = Some("on");
        reply.page(&nodes, 9, next).await;
    }
    // It is asked for anew, from the beginning, later.
    let (asked, _reply) = server.asked(NODES).await;
    assert!(!asked.query.contains("continue"), "{asked:?}");
    let error = feed.health().0["nodes"].error.clone();
    assert!(error.is_some_and(|error| error.contains("more than 20000")));
    assert_eq!(feed.view().nodes, None);
    let mut view = View::clone(&feed.view());
    assert_eq!(feed.follow(&mut view), Some([].into()));
}

#[tokio::test]
async fn a_record_that_nobody_can_read_keeps_no_other_from_being_read() {
    let server = Server::start().await;
    let path = "/apis/mesh.warren.dev/v1alpha1/meshnodes";
    server.hold(path);
    let mut feed = feed(&server).await;
    let (_, reply) = server.asked(path).await;
    let mut stream = reply.stream().await;
    let mut strange = record("strange");
    strange["spec"]["mode"] = json!("Teleport");
    stream.event("ADDED", &strange).await;
    stream.event("ADDED", &record("sound")).await;
    stream.event("BOOKMARK", &list_end(7)).await;
    until(&mut feed, |view| view.records.is_some()).await;
    let view = feed.view();
    let records = view.records.as_ref().expect("a list");
    assert!(records["strange"].is_err());
    assert!(records["sound"].is_ok());
}

/// A feed that has listed two nodes, up to version 7, and the watch that follows.
async fn watching(server: &Server) -> (Feed, server::Stream) {
    let mut feed = feed(server).await;
    let (_, reply) = server.asked(NODES).await;
    let mut stream = reply.stream().await;
    stream.event("ADDED", &node("a", 5)).await;
    stream.event("ADDED", &node("b", 6)).await;
    stream.event("BOOKMARK", &list_end(7)).await;
    until(&mut feed, |view| {
        names(view) == ["a", "b"]
            && view.records.is_some()
            && view.mesh.is_some()
            && view.api_servers.is_some()
    })
    .await;
    // Nothing is left to be told.
    let _ = time::timeout(Duration::from_millis(300), feed.changed()).await;
    (feed, stream)
}

async fn feed(server: &Server) -> Feed {
    server.hold(NODES);
    let client = connect(&Access::Kubeconfig(server.kubeconfig())).await;
    Feed::start(
        &client.expect("a kubeconfig"),
        &"a".parse().expect("a name"),
    )
}

async fn until(feed: &mut Feed, is: impl Fn(&View) -> bool) {
    let wait = async {
        while !is(&feed.view()) {
            feed.changed().await;
        }
    };
    let in_time = time::timeout(Duration::from_secs(30), wait).await;
    assert!(in_time.is_ok(), "{:?}", feed.health());
}

fn names(view: &View) -> Vec<&str> {
    let nodes = view.nodes.iter().flatten();
    nodes.map(|(name, _)| name.as_str()).collect()
}

fn node(name: &str, version: u64) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string()},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn record(name: &str) -> Value {
    let uid = format!("uid-{name}");
    json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": {
            "name": name,
            "resourceVersion": "5",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
        },
        "spec": {
            "nodeUID": uid,
            "publicKey": "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
            "port": 51820,
            "mode": "Route",
            "mtu": 1420,
            "epoch": 1,
            "version": "0.1.0",
        },
    })
}

fn list_end(version: u64) -> Value {
    json!({"metadata": {
        "resourceVersion": version.to_string(),
        "annotations": {"k8s.io/initial-events-end": "true"},
    }})
}

fn status(code: u16, message: &str) -> Value {
    server::status(code, message)
}
