//! A CNI that wraps pods' traffic in VXLAN, which is what is encrypted.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use warren_control::status::Status;
use warren_tests_cluster::{
    Cni, Flood, Flow, Lab, Node, PODS, check_reverse_paths_loosely, patiently,
};

#[test]
fn an_overlay_s_packets_go_by_the_tunnel_or_not_at_all() {
    let mut lab = Lab::by(Cni::Vxlan);
    lab.mesh(json!({"mode": "Overlay", "overlayPorts": [8472], "enforcement": "Strict"}));
    let mut nodes: Vec<Node> = (1..=3).map(|number| lab.join(number)).collect();
    assert!(nodes[0].pod.reaches("10.244.2.5"), "in the clear");
    for node in &mut nodes {
        node.start();
    }
    lab.settle(&nodes);
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    nodes[1].talk_to(&nodes[2]);
    let flow = Flow::start(&nodes[0].pod, &nodes[2].pod, "10.244.3.5");
    let flood = Flood::start(&nodes[1].pod, &nodes[0].pod_addresses());
    nodes[1].end(Signal::KILL);
    flood.go_on();
    assert!(!nodes[1].pod.reaches("10.244.1.5"));
    nodes[1].host.run("ip link del warren0");
    flood.go_on();
    nodes[1].start();
    lab.settle(&nodes);
    nodes[0].talk_to(&nodes[1]);
    flood.stop();
    flow.end_whole();
    lab.assert_closed();
}

#[test]
fn a_staged_overlay_turns_strict_and_loses_less_than_a_twentieth_of_a_second() {
    let mut lab = Lab::by(Cni::Vxlan);
    lab.mesh(json!({"mode": "Overlay", "overlayPorts": [8472]}));
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    check_reverse_paths_loosely(&nodes);
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    for node in &mut nodes {
        node.start();
    }
    for node in &nodes {
        node.until("it is strict", |status| {
            let cluster = status.cluster.as_ref();
            cluster.is_some_and(|cluster| cluster.latched)
        });
    }
    flow.go_on();
    let lost = flow.stop();
    assert!(lost.len() < 25, "{lost:?}");
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

#[test]
fn whether_an_overlay_is_to_be_encrypted_is_asked_and_not_guessed() {
    let lab = Lab::by(Cni::Vxlan);
    lab.mesh(json!({"podPrefixes": PODS}));
    let mut node = lab.join(1);
    node.start();
    lab.until_unconfigured("n1", "an overlay's interface, vx; set it to Overlay if");
    assert!(node.http("/readyz").starts_with("HTTP/1.1 503"));
    // To take away what it would be is no answer.
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Removed"}));
    lab.until_removed("n1");
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    lab.until_unconfigured("n1", "an overlay's interface, vx; set it to Overlay if");
    assert!(node.http("/readyz").starts_with("HTTP/1.1 503"));
    lab.mesh(json!({"mode": "Route", "podPrefixes": PODS}));
    node.until("it goes on", |status| status.unready.is_none());
}

#[test]
fn an_overlay_that_is_made_after_the_daemon_has_started_is_told_of() {
    let lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS}));
    let mut node = lab.join(1);
    node.start();
    node.until("it is a node", |status| status.unready.is_none());
    let asks = |status: &Status| {
        let mut problems = status.problems.iter();
        problems.any(|problem| problem.contains("an overlay's interface by now, vx; set it to"))
    };
    assert!(!asks(&node.daemon().status()));
    node.host
        .run("ip link add vx type vxlan id 1 dstport 8472 dev eth0");
    node.until("it tells of it", asks);
    assert!(node.log().contains("by now, vx"), "{}", node.log());
    patiently("so does its record", Duration::from_secs(30), || {
        let status = lab.record("n1").and_then(|record| record.status);
        let mut conditions = status.into_iter().flat_map(|status| status.conditions);
        conditions.any(|condition| condition.message.contains("by now, vx"))
    });
    // What is in force stays so.
    assert!(node.http("/readyz").starts_with("HTTP/1.1 200"));
    lab.mesh(json!({"mode": "Route", "podPrefixes": PODS}));
    node.until("that is an answer", |status| !asks(status));
}

#[test]
fn where_the_cni_wraps_pods_traffic_overlay_is_proposed_before_there_is_a_mesh() {
    for (cni, mode) in [(Cni::Vxlan, "Overlay"), (Cni::Routes, "Route")] {
        let lab = Lab::by(cni);
        let mut node = lab.join(1);
        node.start();
        let proposed = format!("make one with mode: {mode} and podPrefixes: [10.244.1.0/24,");
        lab.until_unconfigured("n1", &proposed);
        patiently("its probe says so", Duration::from_secs(30), || {
            node.http("/readyz").contains(&proposed)
        });
    }
}

#[test]
fn a_mesh_that_changes_from_overlay_to_route_cuts_no_node_off() {
    let lab = Lab::by(Cni::Vxlan);
    lab.mesh(json!({"mode": "Overlay", "overlayPorts": [8472]}));
    lab.add_node("n9", 9);
    let nodes = lab.staged_pair();
    lab.mesh(json!({"mode": "Route", "podPrefixes": PODS}));
    for node in &nodes {
        node.until("pods' prefixes are in the tunnel", |status| {
            let plan = status.plan.iter().flat_map(|section| &section.lines);
            plan.clone()
                .any(|line| line.starts_with("10.244.") && line.contains("into the tunnel"))
        });
    }
    assert!(nodes[0].host.reaches("192.0.2.2") && nodes[1].host.reaches("2001:db8::1"));
    nodes[0].talk_to(&nodes[1]);
}
