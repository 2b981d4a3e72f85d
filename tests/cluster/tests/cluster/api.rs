//! An API server that is away, forgets, or says nonsense.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use warren_k8s::MeshNode;
use warren_tests_cluster::{ASKED_AGAIN, Flow, Lab, Node, PODS, patiently};

#[test]
fn an_api_server_that_is_away_changes_nothing_and_is_followed_when_it_is_back() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    lab.server.halt();
    for node in &nodes {
        node.until("it says that the API is away", |status| {
            let api = status.cluster.as_ref().map(|cluster| &cluster.api);
            api.is_some_and(|api| api.values().any(|feed| feed.error.is_some()))
        });
        assert!(
            node.http("/readyz").starts_with("HTTP/1.1 200"),
            "{}",
            node.http("/readyz")
        );
    }
    // Also for one that starts meanwhile.
    nodes[1].end(rustix::process::Signal::TERM);
    nodes[1].start();
    flow.go_on();
    lab.wait(lab.server.resume());
    let mut newcomer = lab.join(3);
    newcomer.start();
    nodes.push(newcomer);
    for node in &mut nodes {
        node.be_patient(ASKED_AGAIN);
    }
    lab.settle(&nodes);
    flow.go_on();
    flow.stop();
    lab.assert_closed();
}

/// Whether the server cannot tell any more what has happened since this version.
fn is_expired(lab: &Lab, version: &str) -> bool {
    let uri = format!("/api/v1/nodes?watch=true&timeoutSeconds=1&resourceVersion={version}");
    let request = http::Request::get(uri).body(Vec::new()).expect("a request");
    match lab.wait(lab.cluster.admin.request_text(request)) {
        Ok(events) => events.contains("\"code\":410"),
        Err(kube::Error::Api(status)) => status.code == 410,
        Err(error) => panic!("{error}"),
    }
}

/// Longer than any watch, list or probe of a connection waits before it is given up.
#[test]
fn an_api_server_that_is_away_for_over_a_minute_costs_no_packet() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    lab.server.halt();
    for node in &mut nodes {
        node.be_patient(Duration::from_secs(120));
        node.until("it has heard nothing for over a minute", |status| {
            let api = status.cluster.as_ref().map(|cluster| &cluster.api);
            api.is_some_and(|api| api.values().all(|feed| feed.staleness_s > 65))
        });
        assert!(node.http("/readyz").starts_with("HTTP/1.1 200"));
    }
    lab.wait(lab.server.resume());
    for node in &mut nodes {
        node.be_patient(ASKED_AGAIN);
        node.until("it hears of it again", |status| {
            let api = status.cluster.as_ref().map(|cluster| &cluster.api);
            api.is_some_and(|api| {
                (api.values()).all(|feed| feed.error.is_none() && feed.staleness_s < 60)
            })
        });
    }
    flow.go_on();
    flow.end_whole();
    lab.assert_closed();
}

#[test]
fn what_changed_while_a_watch_expired_is_followed_and_nobody_is_gone_for_a_moment() {
    let (mut lab, mut nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    let known = lab.wait(lab.nodes().list(&ListParams::default()));
    let known = known.expect("the operator may").metadata.resource_version;
    nodes[0].shut_way();
    let deleted = lab.wait(lab.nodes().delete("n3", &DeleteParams::default()));
    deleted.expect("it is there");
    nodes[2].end(rustix::process::Signal::TERM);
    // What a server remembers of the past ends with it.
    lab.server.halt();
    lab.wait(lab.server.resume());
    lab.add_node("n4", 4);
    assert!(is_expired(&lab, &known.unwrap_or_default()));
    nodes[0].open_way();
    nodes[0].be_patient(ASKED_AGAIN);
    nodes[0].until("n3 has gone", |status| {
        let cluster = status.cluster.as_ref();
        cluster.is_some_and(|cluster| cluster.peers_expected == 1)
    });
    flow.end_whole();
    lab.assert_closed();
}

#[test]
fn an_api_server_with_other_data_takes_no_peer_away() {
    let (mut lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    lab.server.halt();
    lab.server.wipe();
    lab.wait(lab.server.resume());
    lab.wait(lab.cluster.install());
    for node in &nodes {
        // Until somebody gives it a token that is of use there.
        node.until("it is refused", |status| {
            let api = status.cluster.as_ref().map(|cluster| &cluster.api);
            let error = api.and_then(|api| api.get("nodes")?.error.clone());
            error.is_some_and(|error| error.contains("401"))
        });
        lab.add_node(&node.name, node.number);
        lab.credentials(&node.name);
        node.until("it does not believe it", |status| {
            (status.problems.iter()).any(|problem| problem.contains("kube-system"))
        });
    }
    flow.go_on();
    flow.end_whole();
    lab.assert_closed();
}

#[test]
fn an_api_without_nodes_and_records_takes_no_peer_away() {
    let (mut lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    let (by, all) = (DeleteParams::default(), ListParams::default());
    let (api, records) = (lab.nodes(), Api::<MeshNode>::all(lab.cluster.admin.clone()));
    lab.wait(async {
        api.delete_collection(&by, &all)
            .await
            .expect("the operator may");
        records
            .delete_collection(&by, &all)
            .await
            .expect("the operator may");
    });
    for node in &nodes {
        node.until("it does not believe it", |status| {
            let why = format!("there is no Node {}", node.name);
            status.problems.iter().any(|problem| problem.contains(&why))
        });
    }
    flow.go_on();
    flow.end_whole();
    lab.assert_closed();
}

#[test]
fn records_that_somebody_deletes_come_back_and_nobody_is_cut_off() {
    let (mut lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    let records: Api<MeshNode> = Api::all(lab.cluster.admin.clone());
    let (by, all) = (DeleteParams::default(), ListParams::default());
    let deleted = records.delete_collection(&by, &all);
    lab.wait(deleted).expect("the operator may");
    patiently("they come back", Duration::from_secs(30), || {
        nodes.iter().all(|node| lab.record(&node.name).is_some())
    });
    flow.end_whole();
    lab.assert_closed();
}

#[test]
fn at_rest_nothing_is_written() {
    let (lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    let versions = || -> Vec<Option<String>> {
        let version = |name: &str| {
            lab.record(name)
                .and_then(|record| record.resource_version())
        };
        nodes.iter().map(|node| version(&node.name)).collect()
    };
    let writes = || -> Vec<String> {
        let monitor = |name: &str| format!("{name}: {:?}", lab.record(name).map(|it| it.spec));
        nodes.iter().map(|node| monitor(&node.name)).collect()
    };
    // Counts settle, at most once in ten seconds.
    patiently(
        "both say that they are ready",
        Duration::from_secs(30),
        || {
            nodes.iter().all(|node| {
                let status = lab.record(&node.name).and_then(|record| record.status);
                status.is_some_and(|status| status.peers_ready == 1)
            })
        },
    );
    let (before, spec) = (versions(), writes());
    let watched = nodes[0].host.run(
        "timeout 20 nft monitor 2>/dev/null &
        timeout 20 ip monitor link address route rule 2>/dev/null || :
        wait",
    );
    assert_eq!(watched, "", "nothing of the host is changed");
    assert_eq!((versions(), writes()), (before, spec));
}

#[test]
fn a_mesh_that_cannot_work_is_refused_with_a_sentence_and_the_last_good_one_stays() {
    let (mut lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    // The schema cannot know of the underlay.
    lab.mesh(json!({"podPrefixes": ["10.244.0.0/16", "192.0.0.0/8"], "enforcement": "Strict"}));
    for node in &nodes {
        node.until("it says what is wrong", |status| {
            let why = status.unready.as_deref().unwrap_or_default();
            why.contains("192.0.0.0/8")
        });
        assert!(
            node.http("/readyz").contains("192.0.0.0/8"),
            "{}",
            node.http("/readyz")
        );
        patiently("its record says so, too", Duration::from_secs(30), || {
            let status = lab.record(&node.name).and_then(|record| record.status);
            let conditions = status.map(|status| status.conditions).unwrap_or_default();
            conditions.iter().any(|condition| {
                condition.type_ == "Configured" && condition.message.contains("192.0.0.0/8")
            })
        });
    }
    flow.go_on();
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    for node in &nodes {
        node.until("it is ready again", |status| status.unready.is_none());
    }
    flow.end_whole();
    lab.assert_closed();
}

/// As a newer version's resources take it, which an older daemon follows for a while.
#[test]
fn a_mesh_that_cannot_be_read_is_named_and_the_last_good_one_stays() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    let resources: Api<CustomResourceDefinition> = Api::all(lab.cluster.admin.clone());
    let mut resource = lab.wait(resources.get("meshes.mesh.warren.dev"));
    let resource = resource.as_mut().expect("it is installed");
    let mut text = serde_json::to_value(&resource.spec).expect("JSON");
    let spec = &mut text["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let values = &mut spec["properties"]["enforcement"]["enum"];
    values
        .as_array_mut()
        .expect("a list")
        .push("Paranoid".into());
    let (by, patch) = (PatchParams::default(), Patch::Merge(json!({"spec": text})));
    let patched = resources.patch("meshes.mesh.warren.dev", &by, &patch);
    lab.wait(patched).expect("the operator may");
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    let newer = json!({"podPrefixes": PODS, "enforcement": "Paranoid", "mtu": 1300});
    patiently("the server takes it", Duration::from_secs(30), || {
        lab.try_mesh(newer.clone()).is_ok()
    });
    let sentence = ["enforcement", "Paranoid"];
    let says = |text: &str| sentence.iter().all(|part| text.contains(part));
    let named = |node: &Node| {
        node.until("it is named", |status| {
            status.unready.as_deref().is_some_and(says)
        });
        assert!(node.log().lines().any(says), "{}", node.log());
        assert!(says(&node.http("/readyz")));
        patiently("its record says so", Duration::from_secs(30), || {
            let status = lab.record(&node.name).and_then(|record| record.status);
            let mut conditions = status.into_iter().flat_map(|status| status.conditions);
            conditions
                .any(|it| it.type_ == "Configured" && it.status == "False" && says(&it.message))
        });
        let link = node.host.run("ip link show warren0");
        assert!(
            !link.contains("mtu 1300"),
            "nothing of it is in force: {link}"
        );
    };
    nodes.iter().for_each(named);
    flow.go_on();
    // Also for a daemon that starts now.
    nodes[1].end(rustix::process::Signal::TERM);
    nodes[1].start();
    named(&nodes[1]);
    flow.go_on();
    flow.stop();
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    for node in &nodes {
        node.until("it is ready again", |status| status.unready.is_none());
    }
}

#[test]
fn without_a_mesh_or_with_one_that_cannot_work_a_new_node_says_so_in_its_record() {
    let lab = Lab::new();
    let mut node = lab.join(1);
    node.start();
    let refused = |why: &str| {
        lab.until_unconfigured("n1", why);
        assert!(node.http("/readyz").starts_with("HTTP/1.1 503"));
    };
    // What to set is proposed.
    refused("10.244.1.0/24");
    lab.mesh(json!({"podPrefixes": ["192.0.0.0/8"], "enforcement": "Strict"}));
    refused("192.0.0.0/8");
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    node.until("it is a node", |status| status.unready.is_none());
}
