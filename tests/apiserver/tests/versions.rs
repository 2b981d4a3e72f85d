//! The same on every version of Kubernetes that is supported: APIs and features as those had them, by
//! one program that emulates them.

use std::sync::Arc;

use serde_json::Value;
use warren_tests_apiserver::{Cluster, Options, Server, is_denied};

#[tokio::test]
async fn definitions_and_rights_hold_on_1_33() {
    holds_on("1.33").await;
}

#[tokio::test]
async fn definitions_and_rights_hold_on_1_34() {
    holds_on("1.34").await;
}

#[tokio::test]
async fn definitions_and_rights_hold_on_1_35() {
    holds_on("1.35").await;
}

async fn holds_on(version: &'static str) {
    let emulated_version = Some(version);
    let server = Server::start(Options {
        emulated_version,
        ..Options::default()
    })
    .await;
    let cluster = Cluster::bare(Arc::new(server));
    let request = http::Request::get("/version").body(Vec::new());
    let said: Value =
        (cluster.admin.request(request.expect("a request")).await).expect("a version");
    let emulated = ["emulationMajor", "emulationMinor"].map(|part| said[part].as_str());
    assert_eq!(emulated.map(Option::unwrap_or_default).join("."), version);
    cluster.install().await;

    cluster
        .node("a", &["10.244.1.0/24", "fd00:10:244:1::/64"])
        .await;
    let other = cluster.node("b", &[]).await;
    let a = cluster.daemon("a").await;
    a.apply(&a.record()).await.expect("its own");
    for foreign in [a.record_of("b", &other), a.record_of("a", &other)] {
        let error = a.apply(&foreign).await.expect_err("not its own");
        assert!(is_denied(&error), "{error}");
    }
}
