//! What a daemon says that lacks a right.

use std::time::Duration;

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use warren_k8s::Mesh;
use warren_tests_apiserver::is_forbidden;
use warren_tests_cluster::{ASKED_AGAIN, Flow, Lab, Node, PODS, patiently};

/// Changes what the daemons may do.
fn change_rules(lab: &Lab, change: impl FnOnce(&mut Vec<Value>)) {
    let roles: Api<ClusterRole> = Api::all(lab.cluster.admin.clone());
    lab.wait(async {
        let role = roles.get("warrend").await.expect("it is installed");
        let mut rules: Vec<Value> = (role.rules.iter().flatten())
            .map(|rule| serde_json::to_value(rule).expect("JSON"))
            .collect();
        change(&mut rules);
        let patch = Patch::Merge(json!({"rules": rules}));
        let by = PatchParams::default();
        let patched = roles.patch("warrend", &by, &patch).await;
        patched.expect("the operator may");
    });
}

/// That its probe and its log say this.
fn says(node: &Node, parts: &[&str]) {
    let all = |text: &str| parts.iter().all(|part| text.contains(part));
    patiently(&format!("it says {parts:?}"), ASKED_AGAIN, || {
        let probe = node.http("/readyz");
        probe.starts_with("HTTP/1.1 503") && all(&probe)
    });
    assert!(node.log().lines().any(all), "{}", node.log());
}

#[test]
fn a_daemon_that_may_not_read_says_which_right_it_lacks_and_goes_on_when_it_has_it() {
    let lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    let mut node = lab.join(1);
    let mut meshes = Vec::new();
    change_rules(&lab, |rules| {
        for rule in rules.iter_mut() {
            let resources = rule["resources"].as_array_mut().expect("a list");
            if resources.contains(&json!("meshes")) {
                meshes = resources.clone();
                resources.retain(|resource| resource != "meshes");
            }
        }
    });
    assert_eq!(meshes.len(), 2);
    let reader = lab.wait(lab.cluster.daemon("n1"));
    patiently("the right is gone", Duration::from_secs(30), || {
        let all: Api<Mesh> = Api::all(reader.client.clone());
        let listed = lab.wait(all.list(&ListParams::default()));
        listed.is_err_and(|error| is_forbidden(&error))
    });
    node.start();
    patiently("it serves", Duration::from_secs(30), || {
        node.log().contains("meshes cannot be read")
    });
    let sentence = ["meshes", "403", "rights.yaml"];
    says(&node, &sentence);
    patiently("its record says so, too", Duration::from_secs(30), || {
        let status = lab.record("n1").and_then(|record| record.status);
        let conditions = status.map(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|condition| {
            condition.type_ == "Ready"
                && condition.status == "False"
                && sentence.iter().all(|part| condition.message.contains(part))
        })
    });
    change_rules(&lab, |rules| {
        for rule in rules.iter_mut() {
            if rule["resources"] == json!(["meshnodes"]) && rule["verbs"][0] == "get" {
                rule["resources"] = json!(meshes);
            }
        }
    });
    node.be_patient(ASKED_AGAIN);
    node.until("it is a node", |status| status.unready.is_none());
}

#[test]
fn a_daemon_that_may_not_write_its_record_says_so_and_disturbs_nothing() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    let mut before = Vec::new();
    change_rules(&lab, |rules| {
        before.clone_from(rules);
        rules.retain(|rule| {
            !rule["verbs"]
                .as_array()
                .is_some_and(|verbs| verbs.contains(&json!("patch")))
        });
        assert!(rules.len() < before.len());
    });
    let writer = lab.wait(lab.cluster.daemon("n2"));
    patiently("the right is gone", Duration::from_secs(30), || {
        let written = lab.wait(writer.apply_dry(&writer.record()));
        written.is_err_and(|error| is_forbidden(&error))
    });
    // It has a new epoch to publish.
    nodes[1].end(rustix::process::Signal::TERM);
    nodes[1].start();
    nodes[1].be_patient(ASKED_AGAIN);
    nodes[1].until("it serves", |_| true);
    says(&nodes[1], &["meshnodes", "403", "rights.yaml"]);
    flow.go_on();
    assert!(nodes[1].pod.reaches("10.244.1.5"));
    change_rules(&lab, |rules| *rules = before);
    nodes[1].until("it is ready again", |status| status.unready.is_none());
    flow.stop();
    lab.assert_closed();
}
