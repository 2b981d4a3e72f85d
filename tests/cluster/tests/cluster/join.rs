//! Nodes that come, and what they carry for each other.

use std::time::Duration;

use kube::api::DeleteParams;
use serde_json::json;
use warren_tests_cluster::{Lab, PODS, patiently, prefixes_of};

#[test]
fn three_strict_nodes_carry_their_pods_traffic_encrypted_and_nothing_in_the_clear() {
    let (mut lab, nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    lab.listen();
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.name != from.name) {
            for address in to.pod_addresses() {
                assert!(from.pod.reaches(&address), "pod to pod: {address}");
                assert!(from.host.reaches(&address), "host to pod: {address}");
            }
        }
    }
    lab.assert_closed();
}

#[test]
fn a_new_node_is_reached_through_the_tunnel_within_a_second_of_its_record() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let mut newcomer = lab.join(3);
    newcomer.start();
    patiently("it publishes its record", Duration::from_secs(30), || {
        lab.record("n3").is_some()
    });
    let took = patiently("all others reach it", Duration::from_secs(5), || {
        nodes
            .iter()
            .all(|node| node.pod.reaches_at_once("10.244.3.5"))
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    nodes.push(newcomer);
    lab.settle(&nodes);
    lab.assert_closed();
}

#[test]
fn a_node_that_is_deleted_is_no_peer_and_its_pods_are_fenced() {
    let (mut lab, nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let deleted = lab.wait(lab.nodes().delete("n3", &DeleteParams::default()));
    deleted.expect("it is there");
    for node in &nodes[..2] {
        node.until("it knows of one peer", |status| {
            status
                .cluster
                .as_ref()
                .is_some_and(|cluster| cluster.peers_expected == 1)
        });
        assert!(!node.pod.reaches("10.244.3.5"));
    }
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

#[test]
fn a_node_whose_address_changes_is_found_at_the_new_one() {
    let (mut lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    nodes[1].host.run(
        "ip addr flush dev eth0
        ip addr add 192.0.2.22/24 dev eth0
        ip route replace default via 192.0.2.254",
    );
    lab.patch_node_status(
        "n2",
        &json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.22"}]}),
    );
    nodes[0].until("its endpoint is the new one", |status| {
        status.peers.iter().any(|peer| {
            peer.endpoint
                .is_some_and(|endpoint| endpoint.ip().to_string() == "192.0.2.22")
        })
    });
    patiently("both ways", Duration::from_secs(20), || {
        nodes[0].pod.reaches("10.244.2.5") && nodes[1].pod.reaches("fd00:10:244:1::5")
    });
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

/// The API server lets nobody change a `Node`'s prefixes, only give it some that has none.
#[test]
fn a_node_that_gets_its_prefixes_late_is_reached_by_them() {
    let mut lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict", "mode": "Route"}));
    let mut nodes = vec![lab.join(1), lab.join_without_prefixes(2)];
    for node in &mut nodes {
        node.start();
    }
    patiently("both publish", Duration::from_secs(30), || {
        nodes.iter().all(|node| lab.record(&node.name).is_some())
    });
    lab.listen();
    assert!(!nodes[0].pod.reaches("10.244.2.5"), "nobody has that yet");
    lab.give_prefixes("n2", &prefixes_of(2));
    patiently("both are reached", Duration::from_secs(30), || {
        nodes[0].pod.reaches("10.244.2.5") && nodes[1].pod.reaches("fd00:10:244:1::5")
    });
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}
