//! Each daemon writes the record of its own node and nothing else.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Secret, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use warren_k8s::{Mesh, MeshNode};
use warren_tests_apiserver::{
    ACCOUNT, Cluster, Daemon, NAMESPACE, eventually, is_denied, is_forbidden, object,
};

#[tokio::test]
async fn the_token_of_a_pod_names_its_node_and_the_nodes_uid() {
    let (_, daemon) = daemon("claims").await;
    let reviews: Api<SelfSubjectReview> = Api::all(daemon.client.clone());
    let by = PostParams::default();
    let review = reviews.create(&by, &SelfSubjectReview::default()).await;
    let review = review.expect("anybody may ask who they are");
    let user = review.status.and_then(|status| status.user_info);
    let extra = user.and_then(|user| user.extra).expect("claims");
    let claim = |name: &str| extra[&format!("authentication.kubernetes.io/{name}")].clone();
    assert_eq!(claim("node-name"), ["claims".to_owned()]);
    assert_eq!(claim("node-uid"), [daemon.uid]);
}

#[tokio::test]
async fn a_daemon_creates_and_changes_its_own_record_and_its_status() {
    let (_, daemon) = daemon("own").await;
    let created = daemon.apply(&daemon.record()).await.expect("its own");
    assert_eq!(created.spec.node_uid, daemon.uid);

    let mut changed = daemon.record();
    changed["spec"]["epoch"] = json!(2);
    let changed = daemon.apply(&changed).await.expect("its own");
    assert_eq!(changed.spec.epoch, 2);
    assert_eq!(changed.uid(), created.uid());

    let written = apply_status(&daemon, "own", status())
        .await
        .expect("its own");
    assert_eq!(written.status.expect("a status").peers_ready, 3);
    assert_eq!(written.spec.epoch, 2);
}

#[tokio::test]
async fn a_daemon_applies_the_same_twice_and_nothing_changes() {
    let (_, daemon) = daemon("twice").await;
    let first = daemon.apply(&daemon.record()).await.expect("its own");
    let second = daemon.apply(&daemon.record()).await.expect("its own");
    assert_eq!(first.resource_version(), second.resource_version());
}

#[tokio::test]
async fn a_daemon_cannot_create_the_record_of_another_node() {
    let (cluster, daemon) = daemon("maker").await;
    let other = cluster.node("maker-other", &[]).await;
    let foreign = daemon.record_of("maker-other", &other);
    assert_denied(
        daemon.apply(&foreign).await,
        "only the record of its own node",
    );

    let made: MeshNode = object(foreign);
    let made = daemon.records().create(&PostParams::default(), &made).await;
    assert_denied(made, "only the record of its own node");

    // Not under a name that the server chooses, either.
    let mut nameless = daemon.record();
    nameless["metadata"]["generateName"] = json!("maker");
    nameless["metadata"]["name"] = Value::Null;
    let nameless: MeshNode = object(nameless);
    let made = daemon
        .records()
        .create(&PostParams::default(), &nameless)
        .await;
    assert_denied(made, "only the record of its own node");
}

#[tokio::test]
async fn a_daemon_cannot_change_the_record_of_another_node_in_any_way() {
    let (cluster, daemon) = daemon("changer").await;
    let victim = victim(&cluster, "changer-victim").await;
    let name = "changer-victim";
    let records = daemon.records();
    let before = records.get(name).await.expect("anybody may read");

    // Apply, with force and without.
    let mut taken = daemon.record_of(name, &victim.uid);
    taken["spec"]["publicKey"] = json!("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=");
    assert_denied(
        daemon.apply(&taken).await,
        "only the record of its own node",
    );
    // Under the daemon's own uid.
    let mut taken = daemon.record_of(name, &daemon.uid);
    taken["metadata"]["ownerReferences"][0]["name"] = json!("changer");
    assert_denied(
        daemon.apply(&taken).await,
        "only the record of its own node",
    );
    // The kinds of patch.
    let change = json!({"spec": {"publicKey": "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="}});
    let patched = records
        .patch(name, &PatchParams::default(), &Patch::Merge(&change))
        .await;
    assert_denied(patched, "only the record of its own node");
    let change = json!([{"op": "replace", "path": "/spec/port", "value": 1}]);
    let request = http::Request::patch(format!("/apis/mesh.warren.dev/v1alpha1/meshnodes/{name}"))
        .header("content-type", "application/json-patch+json")
        .body(change.to_string().into_bytes());
    let patched = daemon
        .client
        .request::<MeshNode>(request.expect("a request"))
        .await;
    assert_denied(patched, "only the record of its own node");
    // Verbs that no daemon has.
    let mut replaced = before.clone();
    replaced.spec.port = 1;
    assert_forbidden(
        records
            .replace(name, &PostParams::default(), &replaced)
            .await,
    );
    assert_forbidden(records.delete(name, &DeleteParams::default()).await);
    let all = records
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await;
    assert_forbidden(all);
    // The status.
    assert_denied(
        apply_status(&daemon, name, status()).await,
        "only the record of its own node",
    );
    let change = json!({"status": {"latched": true}});
    let patched = records
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&change))
        .await;
    assert_denied(patched, "only the record of its own node");
    let mut replaced = before.clone();
    replaced.status = Some(object(status()));
    assert_forbidden(
        records
            .replace_status(name, &PostParams::default(), &replaced)
            .await,
    );

    let after = records.get(name).await.expect("anybody may read");
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_daemon_cannot_write_its_own_record_with_another_uid() {
    let (cluster, daemon) = daemon("uid").await;
    let other = cluster.node("uid-other", &[]).await;

    let mut wrong = daemon.record();
    wrong["spec"]["nodeUID"] = json!(other);
    assert_denied(
        daemon.apply(&wrong).await,
        "must be the uid of the daemon's own Node",
    );

    daemon.apply(&daemon.record()).await.expect("its own");
    assert_denied(
        daemon.apply(&wrong).await,
        "must be the uid of the daemon's own Node",
    );
}

#[tokio::test]
async fn a_daemon_cannot_give_its_record_another_owner() {
    let (cluster, daemon) = daemon("owner").await;
    let other = cluster.node("owner-other", &[]).await;
    let own = || json!({"apiVersion": "v1", "kind": "Node", "name": "owner", "uid": daemon.uid});
    let with = |field: &str, value: Value| {
        let mut owner = own();
        owner[field] = value;
        owner
    };
    let foreign = json!({"apiVersion": "v1", "kind": "Node", "name": "owner-other", "uid": other});
    let wrong = [
        json!([]),
        json!([foreign.clone()]),
        json!([own(), foreign]),
        json!([with("uid", json!(other))]),
        json!([with("name", json!("owner-other"))]),
        json!([with("kind", json!("Pod"))]),
        json!([with("apiVersion", json!("v2"))]),
        json!([with("blockOwnerDeletion", json!(true))]),
        json!([with("controller", json!(true))]),
    ];
    // First when there is no record yet, then when there is.
    for round in 0..2 {
        for owners in &wrong {
            let mut record = daemon.record();
            record["metadata"]["ownerReferences"] = owners.clone();
            assert_denied(daemon.apply(&record).await, "the only owner must be");
        }
        let whole = daemon.apply(&daemon.record()).await.expect("its own");
        assert_eq!(whole.owner_references().len(), 1, "round {round}");
    }
    // Without mentioning the record at all.
    let change = json!({"metadata": {"ownerReferences": null}});
    let (records, by) = (daemon.records(), PatchParams::default());
    let patched = records.patch("owner", &by, &Patch::Merge(&change)).await;
    assert_denied(patched, "the only owner must be");
}

#[tokio::test]
async fn a_daemon_neither_sets_nor_removes_finalizers_labels_and_annotations() {
    let (cluster, daemon) = daemon("marks").await;
    let marks = [
        (json!({"finalizers": ["example.org/stay"]}), "finalizers"),
        (json!({"labels": {"a": "b"}}), "labels and annotations"),
        (json!({"annotations": {"a": "b"}}), "labels and annotations"),
    ];
    for (mark, words) in &marks {
        let mut record = daemon.record();
        merge(&mut record["metadata"], mark);
        assert_denied(daemon.apply(&record).await, words);
    }
    daemon.apply(&daemon.record()).await.expect("its own");
    let as_admin: Api<MeshNode> = Api::all(cluster.admin.clone());
    for (mark, words) in &marks {
        let change = json!({"metadata": mark});
        let by = PatchParams::default();
        let set = daemon
            .records()
            .patch("marks", &by, &Patch::Merge(&change))
            .await;
        assert_denied(set, words);
        // What the operator has set stays.
        as_admin
            .patch("marks", &by, &Patch::Merge(&change))
            .await
            .expect("the operator");
        let field = mark
            .as_object()
            .and_then(|mark| mark.keys().next())
            .expect("one");
        let change = json!({"metadata": {field: null}});
        let cleared = daemon
            .records()
            .patch("marks", &by, &Patch::Merge(&change))
            .await;
        assert_denied(cleared, words);
    }
    // With all of them there, the daemon still writes what is its own.
    let mut record = daemon.record();
    record["spec"]["epoch"] = json!(7);
    let written = daemon.apply(&record).await.expect("its own");
    assert_eq!(written.finalizers(), ["example.org/stay"]);
    assert_eq!(written.labels().len(), 1);
    // Nor by the way of the status, which carries metadata along.
    let change = json!({"metadata": {"finalizers": null}, "status": status()});
    let by = PatchParams::default();
    let written = daemon
        .records()
        .patch_status("marks", &by, &Patch::Merge(&change))
        .await;
    let written = written.expect("its own status");
    assert_eq!(written.finalizers(), ["example.org/stay"]);
    let change = json!({"metadata": {"finalizers": null}});
    let freed = as_admin.patch("marks", &by, &Patch::Merge(&change)).await;
    freed.expect("the operator");
}

#[tokio::test]
async fn a_daemon_writes_no_node_not_even_its_own() {
    let (cluster, daemon) = daemon("kubelet").await;
    cluster.node("kubelet-other", &[]).await;
    let nodes: Api<Node> = Api::all(daemon.client.clone());
    let by = PatchParams::default();
    for name in ["kubelet", "kubelet-other"] {
        let node = nodes.get(name).await.expect("it reads all Nodes");
        let label = json!({"metadata": {"labels": {"a": "b"}}});
        assert_forbidden(nodes.patch(name, &by, &Patch::Merge(&label)).await);
        assert_forbidden(nodes.patch_status(name, &by, &Patch::Merge(&label)).await);
        assert_forbidden(nodes.replace(name, &PostParams::default(), &node).await);
        assert_forbidden(
            nodes
                .replace_status(name, &PostParams::default(), &node)
                .await,
        );
        assert_forbidden(nodes.delete(name, &DeleteParams::default()).await);
    }
    let more = object(json!({"metadata": {"name": "kubelet-more"}}));
    assert_forbidden(nodes.create(&PostParams::default(), &more).await);
}

#[tokio::test]
async fn a_daemon_reaches_nothing_else() {
    let (_, daemon) = daemon("curious").await;
    let client = || daemon.client.clone();
    let list = ListParams::default();
    assert_forbidden(Api::<Secret>::all(client()).list(&list).await);
    assert_forbidden(Api::<Pod>::all(client()).list(&list).await);
    let accounts: Api<ServiceAccount> = Api::namespaced(client(), NAMESPACE);
    let request = object(json!({"spec": {"audiences": []}}));
    let by = PostParams::default();
    assert_forbidden(accounts.create_token_request(ACCOUNT, &by, &request).await);
    let bindings: Api<ClusterRoleBinding> = Api::all(client());
    assert_forbidden(bindings.list(&list).await);
    let meshes: Api<Mesh> = Api::all(client());
    let mesh = object(json!({"metadata": {"name": "default"}, "spec": {}}));
    assert_forbidden(meshes.create(&PostParams::default(), &mesh).await);
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client());
    namespaces
        .get("kube-system")
        .await
        .expect("its uid tells the cluster");
    assert_forbidden(namespaces.get("default").await);
}

#[tokio::test]
async fn a_daemon_reads_where_the_api_servers_are_and_no_other_slice() {
    let (_, daemon) = daemon("slices").await;
    let slices: Api<EndpointSlice> = Api::namespaced(daemon.client.clone(), "default");
    let of_servers = ListParams::default().fields("metadata.name=kubernetes");
    slices.list(&of_servers).await.expect("it may");
    assert_forbidden(slices.list(&ListParams::default()).await);
    assert_forbidden(slices.get("another").await);
    let elsewhere: Api<EndpointSlice> = Api::namespaced(daemon.client.clone(), "kube-system");
    assert_forbidden(elsewhere.list(&of_servers).await);
    let change = json!({"endpoints": []});
    let by = PatchParams::default();
    let patched = slices
        .patch("kubernetes", &by, &Patch::Merge(&change))
        .await;
    assert_forbidden(patched);
}

#[tokio::test]
async fn a_daemon_tells_events_where_those_of_nodes_are_and_reads_none() {
    let (_, daemon) = daemon("events").await;
    let events: Api<Event> = Api::namespaced(daemon.client.clone(), "default");
    let event = |namespace: &str| -> Event {
        object(json!({
            "metadata": {"generateName": "events.", "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "events"},
            "reason": "Tried",
        }))
    };
    let by = PostParams::default();
    let made = events.create(&by, &event("default")).await.expect("it may");
    assert_forbidden(events.list(&ListParams::default()).await);
    let name = made.name_any();
    assert_forbidden(events.delete(&name, &DeleteParams::default()).await);
    let elsewhere: Api<Event> = Api::namespaced(daemon.client.clone(), "kube-system");
    assert_forbidden(elsewhere.create(&by, &event("kube-system")).await);
}

#[tokio::test]
async fn a_daemon_tells_events_of_its_own_node_alone_and_changes_nobody_elses() {
    let (cluster, daemon) = daemon("teller").await;
    let events: Api<Event> = Api::namespaced(daemon.client.clone(), "default");
    let by = PostParams::default();
    let of = |kind: &str, name: &str| -> Event {
        object(json!({
            "metadata": {"generateName": "teller.", "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": kind, "name": name},
            "reason": "Tried",
        }))
    };
    // A policy is in force a moment after it was installed.
    eventually("events of others are refused", || async {
        let foreign = events.create(&by, &of("Node", "another")).await;
        foreign.is_err_and(|error| is_refused_by(&error, "warren-own-events"))
    })
    .await;
    let pod = events.create(&by, &of("Pod", "teller")).await;
    assert!(pod.is_err_and(|error| is_refused_by(&error, "warren-own-events")));
    let own = events.create(&by, &of("Node", "teller")).await;
    let own = own.expect("it is its own").name_any();
    let count = Patch::Merge(json!({"count": 2}));
    let params = PatchParams::default();
    let counted = events.patch(&own, &params, &count).await;
    counted.expect("it is its own");

    let admin: Api<Event> = Api::namespaced(cluster.admin.clone(), "default");
    let foreign = admin.create(&by, &of("Node", "another")).await;
    let foreign = foreign.expect("the operator may").name_any();
    let mine = json!({"involvedObject": {"name": "teller"}});
    for change in [count, Patch::Merge(mine)] {
        let patched = events.patch(&foreign, &params, &change).await;
        let error = patched.expect_err("it is another's");
        assert!(is_refused_by(&error, "warren-own-events"), "{error}");
    }
}

fn is_refused_by(error: &kube::Error, policy: &str) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains(policy))
}

#[tokio::test]
async fn a_token_that_is_bound_to_no_node_writes_nothing() {
    let (cluster, daemon) = daemon("bound").await;
    let unbound = Daemon {
        client: cluster.unbound().await,
        ..daemon.clone()
    };
    assert_denied(unbound.apply(&unbound.record()).await, "bound to no Node");
    daemon.apply(&daemon.record()).await.expect("its own");
    assert_denied(unbound.apply(&unbound.record()).await, "bound to no Node");
    assert_denied(
        apply_status(&unbound, "bound", status()).await,
        "bound to no Node",
    );
}

#[tokio::test]
async fn the_daemon_of_a_node_made_anew_takes_the_record_over_and_the_old_token_loses_it() {
    let (cluster, old) = daemon("anew").await;
    old.apply(&old.record()).await.expect("its own");
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let deleted = nodes.delete("anew", &DeleteParams::default()).await;
    deleted.expect("the operator");
    cluster.node("anew", &[]).await;
    let new = cluster.daemon("anew").await;
    assert_ne!(old.uid, new.uid);

    // Until the record is its own, its status is not either.
    assert_denied(
        apply_status(&new, "anew", status()).await,
        "must be the uid",
    );
    let taken = new.apply(&new.record()).await.expect("its own");
    assert_eq!(taken.spec.node_uid, new.uid);
    assert_eq!(taken.owner_references().len(), 1);
    // The old pod's token lives as long as its pod, and says the old uid.
    let mut back = old.record();
    back["spec"]["nodeUID"] = json!(new.uid);
    let refused = old.apply(&back).await.expect_err("the old token");
    assert!(
        is_denied(&refused) || is_unauthorized(&refused),
        "{refused}"
    );
}

#[tokio::test]
async fn a_daemon_deletes_nothing_even_with_all_rights() {
    let (cluster, daemon) = daemon("mighty").await;
    // An account of its own would not do: the policy goes by the daemon's.
    let role = object(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "mighty"},
        "rules": [{
            "apiGroups": ["mesh.warren.dev"],
            "resources": ["meshnodes", "meshnodes/status"],
            "resourceNames": ["mighty", "mighty-victim"],
            "verbs": ["delete", "update"],
        }],
    }));
    cluster.apply(&role).await.expect("the operator");
    let binding = object(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "mighty"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "mighty"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
    }));
    cluster.apply(&binding).await.expect("the operator");
    daemon.apply(&daemon.record()).await.expect("its own");
    victim(&cluster, "mighty-victim").await;
    let records = daemon.records();
    eventually("the rights are in force", || async {
        let deleted = records
            .delete("mighty", &DeleteParams::default().dry_run())
            .await;
        !deleted.is_err_and(|error| is_forbidden(&error))
    })
    .await;

    for name in ["mighty", "mighty-victim"] {
        let deleted = records.delete(name, &DeleteParams::default()).await;
        assert_denied(deleted.map(|_| ()), "a daemon deletes no record");
    }
    let mut replaced = records.get("mighty-victim").await.expect("a record");
    replaced.spec.port = 1;
    let by = PostParams::default();
    let put = records.replace("mighty-victim", &by, &replaced).await;
    assert_denied(put, "only the record of its own node");
    let put = records
        .replace_status("mighty-victim", &by, &replaced)
        .await;
    assert_denied(put, "only the record of its own node");
}

/// The cluster, with a `Node` of this name and its daemon.
async fn daemon(node: &str) -> (Cluster, Daemon) {
    let cluster = Cluster::shared().await;
    cluster.node(node, &[]).await;
    let daemon = cluster.daemon(node).await;
    (cluster, daemon)
}

/// A daemon with a record and a status.
async fn victim(cluster: &Cluster, node: &str) -> Daemon {
    cluster.node(node, &[]).await;
    let victim = cluster.daemon(node).await;
    victim.apply(&victim.record()).await.expect("its own");
    apply_status(&victim, node, status())
        .await
        .expect("its own");
    victim
}

async fn apply_status(daemon: &Daemon, name: &str, status: Value) -> kube::Result<MeshNode> {
    let object = json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": name},
        "status": status,
    });
    let by = PatchParams::apply("warrend-status").force();
    daemon
        .records()
        .patch_status(name, &by, &Patch::Apply(&object))
        .await
}

fn status() -> Value {
    json!({
        "peersExpected": 3,
        "peersReady": 3,
        "enforcement": "Staged",
        "conditions": [{
            "type": "Ready",
            "status": "True",
            "reason": "AllPeersReady",
            "message": "3 of 3 peers are ready",
            "lastTransitionTime": "2026-11-21T10:00:00Z",
        }],
    })
}

fn merge(into: &mut Value, from: &Value) {
    for (field, value) in from.as_object().expect("an object") {
        into[field] = value.clone();
    }
}

#[track_caller]
fn assert_denied<T: std::fmt::Debug>(result: kube::Result<T>, words: &str) {
    let error = result.expect_err("the policy refuses it");
    assert!(is_denied(&error), "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[track_caller]
fn assert_forbidden<T>(result: kube::Result<T>) {
    match result {
        Ok(_) => panic!("it was allowed"),
        Err(error) => assert!(is_forbidden(&error), "{error}"),
    }
}

fn is_unauthorized(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401)
}
