//! What a node's host does not give to its daemon, and how the operator hears of it.

use std::time::Duration;

use serde_json::json;
use warren_control::status::Status;
use warren_tests_cluster::{Lab, Node, PODS, patiently};

/// A daemon tries again every few seconds.
const TRIED_AGAIN: Duration = Duration::from_secs(30);

#[test]
fn a_tun_that_is_missing_or_denied_is_named_in_record_status_and_probe() {
    let lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    nodes[0].host.run("mount -t tmpfs none /dev/net");
    // There and not to be opened, as where a container's runtime allows no device.
    nodes[1].host.run(
        "mount -t tmpfs -o nodev none /dev/net
        mknod -m 666 /dev/net/tun c 10 200",
    );
    for (node, sentence) in nodes.iter_mut().zip([
        "/dev/net/tun is missing; is the tun module loaded?",
        "/dev/net/tun may not be opened: its rights, the container's runtime (runc 1.2.0 to 1.2.3 do) or a \
         security module denies it",
    ]) {
        node.start();
        node.until("it says why", |status| {
            let unready = status.unready.as_deref();
            unready.is_some_and(|why| why.contains(sentence))
        });
        let probe = node.http("/readyz");
        assert!(probe.starts_with("HTTP/1.1 503"), "{probe}");
        assert!(probe.contains(sentence), "{probe}");
        patiently("its record says so", Duration::from_secs(30), || {
            let status = lab.record(&node.name).and_then(|record| record.status);
            let conditions = status.map(|status| status.conditions);
            conditions.into_iter().flatten().any(|condition| {
                condition.type_ == "Ready"
                    && condition.status == "False"
                    && condition.message.contains(sentence)
            })
        });
        assert!(node.log().contains(sentence), "{}", node.log());
    }
    // It is granted later.
    for node in &mut nodes {
        node.host.run("umount /dev/net");
        node.be_patient(TRIED_AGAIN);
    }
    lab.settle(&nodes);
    nodes[0].talk_to(&nodes[1]);
}

#[test]
fn pods_with_a_larger_mtu_than_the_tunnel_are_named_on_their_node() {
    let lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    nodes[0].host.run("ip link set pod mtu 9000");
    nodes[1].host.run("ip link set pod mtu 1420");
    for node in &mut nodes {
        node.start();
    }
    lab.settle(&nodes);
    let complaints = |status: &Status| -> Vec<String> {
        let problems = status.problems.iter();
        let about_pods = problems.filter(|problem| problem.contains("leads to this node's pods"));
        about_pods.cloned().collect()
    };
    nodes[0].until("n1 says so", |status| {
        complaints(status)
            == ["pod leads to this node's pods with an MTU of 9000, and the tunnel has 1420; give pods at most \
                 that, or their large packets are refused until they have learnt it"]
    });
    assert!(
        complaints(&nodes[1].daemon().status()).is_empty(),
        "n2 has no such pods"
    );
}
