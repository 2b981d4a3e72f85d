//! How a daemon keeps its record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{Event as ApiEvent, Node};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;
use warren_k8s::{
    ConditionType, Enforcement, Event, Feed, Foreign, Holds, MeshNode, MeshNodeSpec, Mode,
    Progress, Publisher, Severity, Stated, connect,
};
use warren_tests_apiserver::{
    Cluster, Daemon, Options, Server, eventually, is_forbidden, object, synced,
};

#[tokio::test]
async fn a_daemon_makes_its_record_with_status_and_conditions() {
    let publishing = publishing("made").await;
    publishing.want(&progress(0));
    let record = publishing.settled().await;
    assert_eq!(record.spec, spec(&publishing.daemon.uid));
    let owners = record.owner_references();
    assert_eq!(owners.len(), 1);
    assert_eq!(owners[0].uid, publishing.daemon.uid);
    let status = record.status.clone().expect("a status");
    assert_eq!(status.peers_expected, 2);
    assert_eq!(status.enforcement, Some(Enforcement::Staged));
    assert_eq!(
        condition(&record, "Ready"),
        ("False".to_owned(), "NotYet".to_owned())
    );
    // The policy is in force.
    let identity = condition(&record, "IdentityEnforced");
    assert_eq!(
        identity,
        ("True".to_owned(), "ForeignRecordRefused".to_owned())
    );
    assert_eq!(publishing.publisher.report().foreign, Foreign::Refused);
    assert_eq!(publishing.publisher.report().epoch, Some(7));
}

#[tokio::test]
async fn a_condition_keeps_its_time_until_it_changes() {
    let publishing = publishing("times").await;
    publishing.want(&progress(0));
    let first = publishing.settled().await;
    // What is said of it changes, and whether it holds does not.
    publishing.want_stated(
        &progress(0),
        &stated(Holds::False, "NotYet", "1 of 2 peers"),
    );
    let second = publishing.settled().await;
    assert_ne!(first.resource_version(), second.resource_version());
    assert_eq!(time(&first, "Ready"), time(&second, "Ready"));
    // Times are of whole seconds.
    eventually("a second has passed", || async {
        let then = time(&first, "Ready").expect("a condition");
        k8s_openapi::jiff::Timestamp::now()
            .duration_since(then)
            .as_secs()
            >= 2
    })
    .await;
    publishing.want_stated(
        &progress(2),
        &stated(Holds::True, "AllReady", "2 of 2 peers"),
    );
    let third = publishing.settled().await;
    assert_eq!(condition(&third, "Ready").0, "True");
    assert!(time(&third, "Ready") > time(&first, "Ready"));
    assert_eq!(
        time(&third, "IdentityEnforced"),
        time(&first, "IdentityEnforced")
    );
}

#[tokio::test]
async fn what_others_changed_or_deleted_is_put_back() {
    let publishing = publishing("kept").await;
    publishing.want(&progress(0));
    publishing.settled().await;
    let records: Api<MeshNode> = Api::all(publishing.cluster.admin.clone());
    let by = PatchParams::default();
    let change = json!({"spec": {"port": 1, "endpoints": ["198.51.100.1"]}});
    records
        .patch("kept", &by, &Patch::Merge(&change))
        .await
        .expect("the operator");
    publishing.settled().await;
    let change = json!({"status": {"peersReady": 77}});
    records
        .patch_status("kept", &by, &Patch::Merge(&change))
        .await
        .expect("the operator");
    publishing.settled().await;
    let before = records.get("kept").await.expect("it is there").uid();
    let deleted = records.delete("kept", &DeleteParams::default()).await;
    deleted.expect("the operator");
    let after = publishing.settled().await;
    assert_ne!(before, after.uid());
}

#[tokio::test]
async fn the_daemon_of_a_node_that_was_made_anew_stops_writing_and_says_so() {
    let publishing = publishing("replaced").await;
    publishing.want(&progress(0));
    publishing.settled().await;
    let nodes: Api<Node> = Api::all(publishing.cluster.admin.clone());
    let deleted = nodes.delete("replaced", &DeleteParams::default()).await;
    deleted.expect("the operator");
    publishing.says("there is no Node replaced").await;
    publishing.cluster.node("replaced", &[]).await;
    publishing.says("was made anew").await;
    // Also when there is something to write.
    let writes = publishing.publisher.report().writes;
    publishing.want(&progress(2));
    publishing.says("was made anew").await;
    assert_eq!(publishing.publisher.report().writes, writes);
}

#[tokio::test]
async fn an_event_is_seen_on_the_node_and_the_same_again_is_counted() {
    let publishing = publishing("told").await;
    publishing.want(&progress(0));
    let event = |message: &str| Event {
        severity: Severity::Warning,
        reason: "KeyChanged".to_owned(),
        message: message.to_owned(),
    };
    let message = "the key of node other changed";
    publishing.publisher.event(event(message));
    let told = || async {
        let events: Api<ApiEvent> = Api::namespaced(publishing.cluster.admin.clone(), "default");
        let of_node = ListParams::default().fields("involvedObject.name=told");
        events.list(&of_node).await.expect("events").items
    };
    eventually("it is told", || async { told().await.len() == 1 }).await;
    let first = told().await.remove(0);
    assert_eq!(first.reason.as_deref(), Some("KeyChanged"));
    assert_eq!(first.message.as_deref(), Some(message));
    assert_eq!(first.type_.as_deref(), Some("Warning"));
    assert_eq!(
        first.involved_object.uid.as_deref(),
        Some(&*publishing.daemon.uid)
    );
    publishing.publisher.event(event(message));
    publishing.publisher.event(event(message));
    eventually("it is counted", || async {
        told()
            .await
            .iter()
            .map(|event| event.count)
            .collect::<Vec<_>>()
            == [Some(3)]
    })
    .await;
    assert_eq!(publishing.publisher.report().events_dropped, 0);
}

#[tokio::test]
async fn a_daemon_holds_its_first_record_back_for_as_long_as_it_is_told() {
    let hold = Duration::from_secs(2);
    let start = Instant::now();
    let publishing = held("held", hold).await;
    publishing.want(&progress(0));
    publishing.settled().await;
    assert!(start.elapsed() >= hold);
}

#[tokio::test]
async fn without_the_policy_a_daemon_says_that_it_may_write_foreign_records() {
    let cluster = own_cluster().await;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(cluster.admin.clone());
    let deleted = bindings
        .delete("warren-own-record", &DeleteParams::default())
        .await;
    deleted.expect("the operator");
    cluster.node("open-victim", &[]).await;
    cluster.node("open", &[]).await;
    let daemon = cluster.daemon("open").await;
    eventually("the policy is out of force", || async {
        daemon
            .apply_dry(&daemon.record_of("open-victim", &daemon.uid))
            .await
            .is_ok()
    })
    .await;
    let publishing = publishing_in(cluster, daemon, Duration::ZERO).await;
    publishing.want(&progress(0));
    let record = publishing.settled().await;
    assert_eq!(condition(&record, "IdentityEnforced").0, "False");
    assert_eq!(publishing.publisher.report().foreign, Foreign::Taken);
    let foreign: Api<MeshNode> = Api::all(publishing.cluster.admin.clone());
    assert_eq!(
        foreign
            .list(&ListParams::default())
            .await
            .expect("records")
            .items
            .len(),
        1
    );
}

#[tokio::test]
async fn a_refusal_by_a_policy_of_others_is_not_taken_for_the_one_by_ours() {
    let cluster = own_cluster().await;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(cluster.admin.clone());
    let deleted = bindings
        .delete("warren-own-record", &DeleteParams::default())
        .await;
    deleted.expect("the operator");
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(cluster.admin.clone());
    let by = PostParams::default();
    let policy = object(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "names-of-the-house"},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["mesh.warren.dev"],
                "apiVersions": ["*"],
                "operations": ["*"],
                "resources": ["meshnodes"],
            }]},
            "validations": [{
                "expression": "!object.metadata.name.startsWith('warren-')",
                "message": "that is kept; see ValidatingAdmissionPolicy 'warren-own-record'",
            }],
        },
    }));
    policies.create(&by, &policy).await.expect("the operator");
    let binding = object(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "names-of-the-house"},
        "spec": {"policyName": "names-of-the-house", "validationActions": ["Deny"]},
    }));
    bindings.create(&by, &binding).await.expect("the operator");
    cluster.node("guest", &[]).await;
    let daemon = cluster.daemon("guest").await;
    let of_another = daemon.record_of("warren-any", &daemon.uid);
    eventually("theirs is in force, and ours is not", || async {
        let tried = daemon.apply_dry(&of_another).await;
        tried.is_err_and(|error| error.to_string().contains("'names-of-the-house'"))
    })
    .await;
    let publishing = publishing_in(cluster, daemon, Duration::ZERO).await;
    publishing.want(&progress(0));
    publishing
        .is_untold("names-of-the-house is none of Warren's")
        .await;
    eventually("its record says so", || async {
        let status = publishing.record().await.and_then(|record| record.status);
        let mut conditions = status.into_iter().flat_map(|status| status.conditions);
        conditions.any(|it| it.type_ == "IdentityEnforced" && it.reason == "Untold")
    })
    .await;
}

#[tokio::test]
async fn a_daemon_without_the_right_to_write_does_not_take_that_for_the_policy() {
    let cluster = own_cluster().await;
    cluster.node("poor", &[]).await;
    let daemon = cluster.daemon("poor").await;
    let roles: Api<ClusterRole> = Api::all(cluster.admin.clone());
    let mut role = roles.get("warrend").await.expect("it is installed");
    let rules = role.rules.get_or_insert_default();
    rules.retain(|rule| !rule.verbs.iter().any(|verb| verb == "patch"));
    let replaced = roles
        .replace("warrend", &PostParams::default(), &role)
        .await;
    replaced.expect("the operator may");
    eventually("the right is gone", || async {
        daemon
            .apply_dry(&daemon.record())
            .await
            .is_err_and(|error| is_forbidden(&error))
    })
    .await;
    let publishing = publishing_in(cluster, daemon, Duration::ZERO).await;
    publishing.want(&progress(0));
    publishing.is_untold("rights.yaml").await;
    eventually("it says that it cannot publish", || async {
        let report = publishing.publisher.report();
        report.denied && report.error.is_some_and(|why| why.contains("rights.yaml"))
    })
    .await;
}

#[tokio::test]
async fn a_reconcile_that_changes_nothing_writes_nothing() {
    let cluster = own_cluster().await;
    cluster.node("calm", &[]).await;
    let daemon = cluster.daemon("calm").await;
    let publishing = publishing_in(cluster, daemon, Duration::ZERO).await;
    publishing.want(&progress(0));
    let record = publishing.settled().await;
    let writes = writes(&publishing.cluster).await;

    // The same again, and what is none of its business, each seen before the next.
    let mut feed = feed_of(&publishing).await;
    for round in 0..20 {
        publishing.want(&progress(0));
        let name = format!("other{round}");
        publishing.cluster.node(&name, &[]).await;
        warren_tests_apiserver::until(&mut feed, "it is there", |view| {
            view.nodes
                .as_ref()
                .is_some_and(|nodes| nodes.contains_key(&name))
        })
        .await;
    }
    assert_eq!(self::writes(&publishing.cluster).await, writes);
    let after = publishing.record().await.expect("it is there");
    assert_eq!(after.resource_version(), record.resource_version());
    // And a restart writes what changed and nothing else: here nothing.
    let Publishing {
        cluster,
        daemon,
        publisher,
        feed,
        ..
    } = publishing;
    drop((publisher, feed));
    let publishing = publishing_in(cluster, daemon, Duration::ZERO).await;
    publishing.want(&progress(0));
    let again = publishing.settled().await;
    assert_eq!(again.resource_version(), record.resource_version());
    assert_eq!(self::writes(&publishing.cluster).await, writes);
}

/// A node whose daemon publishes.
struct Publishing {
    cluster: Cluster,
    daemon: Daemon,
    feed: Feed,
    publisher: Publisher,
    wanted: std::sync::Mutex<Option<(Progress, Stated)>>,
}

async fn publishing(name: &str) -> Publishing {
    held(name, Duration::ZERO).await
}

async fn held(name: &str, hold: Duration) -> Publishing {
    let cluster = Cluster::shared().await;
    cluster.node(name, &[]).await;
    let daemon = cluster.daemon(name).await;
    publishing_in(cluster, daemon, hold).await
}

async fn publishing_in(cluster: Cluster, daemon: Daemon, hold: Duration) -> Publishing {
    let client = connect(&daemon.access(&cluster))
        .await
        .expect("a kubeconfig");
    let node = daemon.node.parse().expect("a name");
    let mut feed = Feed::start(&client, &node);
    synced(&mut feed).await;
    let publisher = Publisher::start(&client, &feed, &node, hold);
    Publishing {
        cluster,
        daemon,
        feed,
        publisher,
        wanted: std::sync::Mutex::default(),
    }
}

async fn feed_of(publishing: &Publishing) -> Feed {
    let mut feed = warren_tests_apiserver::feed(&publishing.cluster, &publishing.daemon).await;
    synced(&mut feed).await;
    feed
}

impl Publishing {
    fn want(&self, progress: &Progress) {
        self.want_stated(progress, &stated(Holds::False, "NotYet", "0 of 2 peers"));
    }

    fn want_stated(&self, progress: &Progress, ready: &Stated) {
        let conditions = BTreeMap::from([(ConditionType::Ready, ready.clone())]);
        let uid = &self.daemon.uid;
        self.publisher
            .want(uid, spec(uid), progress.clone(), conditions);
        *self.wanted.lock().expect("nobody panicked") = Some((progress.clone(), ready.clone()));
    }

    /// The record once it is as wanted and it is known what becomes of foreign ones.
    async fn settled(&self) -> MeshNode {
        let (progress, ready) = self
            .wanted
            .lock()
            .expect("nobody panicked")
            .clone()
            .expect("wanted");
        let is_settled = |record: &MeshNode| {
            let status = record.status.clone().unwrap_or_default();
            let conditions = &status.conditions;
            let says = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
            record.spec == spec(&self.daemon.uid)
                && status.peers_ready == progress.peers_ready
                && says("Ready").is_some_and(|condition| condition.message == ready.message)
                && says("IdentityEnforced").is_some_and(|condition| condition.status != "Unknown")
        };
        eventually("the record is as wanted", || async {
            self.record()
                .await
                .is_some_and(|record| is_settled(&record))
        })
        .await;
        self.record().await.expect("it was there")
    }

    /// Waits until another refusal than ours has hidden whether ours would, for a reason with these words.
    async fn is_untold(&self, words: &str) {
        eventually("it was tried", || async {
            match self.publisher.report().foreign {
                Foreign::Untried => false,
                Foreign::Unknown(why) => why.contains(words),
                other => panic!("{other:?}"),
            }
        })
        .await;
    }

    async fn record(&self) -> Option<MeshNode> {
        let records: Api<MeshNode> = Api::all(self.cluster.admin.clone());
        records.get_opt(&self.daemon.node).await.expect("it may")
    }

    async fn says(&self, words: &str) {
        eventually(words, || async {
            let error = self.publisher.report().error;
            error.is_some_and(|error| error.contains(words))
        })
        .await;
    }
}

/// A cluster of its own, for what would disturb others or be disturbed by them.
async fn own_cluster() -> Cluster {
    let server = Server::start(Options::default()).await;
    let cluster = Cluster::bare(Arc::new(server));
    cluster.install().await;
    cluster
}

/// How many requests the server had that write records or events.
async fn writes(cluster: &Cluster) -> u64 {
    let request = http::Request::get("/metrics").body(Vec::new());
    let metrics = cluster
        .admin
        .request_text(request.expect("a request"))
        .await;
    let metrics = metrics.expect("the administrator may");
    let mut count = 0;
    for line in metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
    {
        let is = |label: &str| line.contains(label);
        let of_ours = is("resource=\"meshnodes\"") || is("resource=\"events\"");
        let reads = is("verb=\"GET\"") || is("verb=\"LIST\"") || is("verb=\"WATCH\"");
        if of_ours && !reads && !is("dry_run=\"All\"") {
            let value = line.rsplit(' ').next().expect("a value");
            count += value.parse::<f64>().expect("a number") as u64;
        }
    }
    count
}

fn spec(uid: &str) -> MeshNodeSpec {
    MeshNodeSpec {
        node_uid: uid.to_owned(),
        public_key: "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=".to_owned(),
        endpoints: vec!["192.0.2.1".to_owned()],
        port: 51820,
        mode: Mode::Route,
        mtu: 1420,
        epoch: 7,
        version: "0.1.0".to_owned(),
    }
}

fn progress(ready: u32) -> Progress {
    Progress {
        peers_expected: 2,
        peers_ready: ready,
        unreached: None,
        enforcement: Some(Enforcement::Staged),
        latched: false,
        latched_prefixes: Vec::new(),
    }
}

fn stated(holds: Holds, reason: &str, message: &str) -> Stated {
    Stated {
        holds,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn condition(record: &MeshNode, kind: &str) -> (String, String) {
    let status = record.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.into_iter();
    let condition = conditions.find(|condition| condition.type_ == kind);
    let condition = condition.unwrap_or_else(|| panic!("no condition {kind}"));
    (condition.status, condition.reason)
}

fn time(record: &MeshNode, kind: &str) -> Option<k8s_openapi::jiff::Timestamp> {
    let status = record.status.clone()?;
    let mut conditions = status.conditions.into_iter();
    let condition = conditions.find(|condition| condition.type_ == kind)?;
    Some(condition.last_transition_time.0)
}
