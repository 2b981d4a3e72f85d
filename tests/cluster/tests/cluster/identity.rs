//! Who is who: nodes made anew, keys that change, claims of others.

use std::fs;
use std::time::Duration;

use kube::api::DeleteParams;
use warren_tests_cluster::{Flood, Flow, Lab, Node, patiently, prefixes_of};

fn key(lab: &Lab, name: &str) -> Option<String> {
    lab.record(name).map(|record| record.spec.public_key)
}

/// The pod of this node's daemon is made anew, as its Node was, until the key is another than this.
fn starts_anew(lab: &Lab, node: &mut Node, before: &str) {
    node.credit(lab.credentials(&node.name));
    node.start();
    patiently("it publishes another key", Duration::from_secs(30), || {
        key(lab, &node.name).is_some_and(|key| key != before)
    });
}

#[test]
fn a_node_made_anew_under_its_name_has_another_key() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    let before = key(&lab, "n2").expect("it publishes");
    lab.listen();
    let deleted = lab.wait(lab.nodes().delete("n2", &DeleteParams::default()));
    deleted.expect("it is there");
    lab.add_node("n2", 2);
    // Its pod is made anew with it.
    nodes[1].end(rustix::process::Signal::TERM);
    starts_anew(&lab, &mut nodes[1], &before);
    lab.settle(&nodes);
    patiently("it is reached", Duration::from_secs(30), || {
        nodes[0].pod.reaches("10.244.2.5")
    });
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

/// The prefixes that it had are nobody's until another node gets them.
#[test]
fn a_node_made_anew_with_other_prefixes_is_reached_by_these_and_not_by_those_it_had() {
    let (mut lab, mut nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let others = Flow::start(&nodes[0].pod, &nodes[2].pod, "10.244.3.5");
    let floods = [
        Flood::start(&nodes[0].pod, &nodes[1].pod_addresses()),
        Flood::start(
            &nodes[0].pod,
            &["10.244.22.5".to_owned(), "fd00:10:244:22::5".to_owned()],
        ),
    ];
    let before = key(&lab, "n2").expect("it publishes");
    let deleted = lab.wait(lab.nodes().delete("n2", &DeleteParams::default()));
    deleted.expect("it is there");
    nodes[1].end(rustix::process::Signal::TERM);
    nodes[1].renumber_pod(22);
    for other in [0, 2] {
        nodes[other].host.run(
            "ip route replace 10.244.22.0/24 via 192.0.2.2
            ip route replace fd00:10:244:22::/64 via 2001:db8::2",
        );
    }
    lab.add_node_with("n2", 2, &prefixes_of(22));
    starts_anew(&lab, &mut nodes[1], &before);
    lab.settle(&nodes);
    for other in [0, 2] {
        patiently("it is reached", Duration::from_secs(30), || {
            nodes[other].pod.reaches("10.244.22.5")
        });
        nodes[other].talk_to(&nodes[1]);
        let routes = nodes[other]
            .host
            .run("ip route show table 51880; ip -6 route show table 51880");
        assert!(
            routes.contains("10.244.22.0/24") && routes.contains("fd00:10:244:22::/64"),
            "{routes}"
        );
        assert!(
            !routes.contains("10.244.2.0/24") && !routes.contains("fd00:10:244:2::/64"),
            "{routes}"
        );
        for address in ["10.244.2.5", "fd00:10:244:2::5"] {
            assert!(!nodes[other].pod.reaches(address), "{address} is nobody's");
        }
    }
    for flood in floods {
        flood.go_on();
        flood.stop();
    }
    nodes[1].pod.run(
        "ip addr del 10.244.2.5/32 dev eth0
        ip addr del fd00:10:244:2::5/128 dev eth0",
    );
    let mut heir = lab.join_with(4, &prefixes_of(2));
    heir.renumber_pod(2);
    heir.start();
    nodes.push(heir);
    lab.settle(&nodes);
    for other in &nodes[..3] {
        other.talk_to(&nodes[3]);
    }
    others.go_on();
    others.end_whole();
    lab.assert_closed();
}

#[test]
fn a_changed_key_under_the_same_uid_is_followed_and_counted() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    let before = key(&lab, "n2").expect("it publishes");
    lab.listen();
    nodes[1].end(rustix::process::Signal::TERM);
    fs::remove_file(nodes[1].state.join("private.key")).expect("it is there");
    nodes[1].start();
    patiently("it publishes another key", Duration::from_secs(30), || {
        key(&lab, "n2").is_some_and(|key| key != before)
    });
    nodes[0].until("it has followed", |status| {
        status
            .cluster
            .as_ref()
            .is_some_and(|cluster| cluster.key_changes == 1)
    });
    lab.settle(&nodes);
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

#[test]
fn a_copied_disk_does_not_share_the_key_of_its_origin() {
    let lab = Lab::new();
    lab.mesh(
        serde_json::json!({"podPrefixes": warren_tests_cluster::PODS, "enforcement": "Strict"}),
    );
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    for node in &nodes {
        // Each on a machine of its own.
        let id = node.state.with_extension("machine-id");
        fs::write(&id, format!("{:032x}\n", node.number)).expect("a scratch directory");
        let id = id.display();
        node.host.run(&format!("mount --bind {id} /etc/machine-id"));
    }
    nodes[0].start();
    patiently("the first publishes", Duration::from_secs(30), || {
        key(&lab, "n1").is_some()
    });
    nodes[0].end(rustix::process::Signal::TERM);
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&nodes[0].state, &nodes[1].state])
        .status();
    assert!(copied.expect("there is cp").success());
    for node in &mut nodes {
        node.start();
    }
    lab.settle(&nodes);
    assert_ne!(key(&lab, "n1"), key(&lab, "n2"));
}

// BEHAVIOURS 42.
#[test]
fn a_node_that_publishes_another_s_key_is_refused_and_cuts_nobody_off() {
    let (mut lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    // n3's daemon says that n2's key is its own.
    let uid = lab.add_node("n3", 3);
    let thief = lab.wait(lab.cluster.daemon("n3"));
    let mut record = thief.record_of("n3", &uid);
    record["spec"]["publicKey"] = key(&lab, "n2").expect("it publishes").into();
    lab.wait(thief.apply(&record))
        .expect("it is its own record");
    nodes[0].until("it is named", |status| {
        let named = |problem: &String| problem.contains("n3") && problem.contains("n2");
        status.problems.iter().any(named)
    });
    assert!(!nodes[0].pod.reaches("10.244.3.5"));
    // One of those who see it tells of it, whatever n3 says.
    patiently("there is an event", Duration::from_secs(30), || {
        let events = lab.events("ClaimRefused");
        (events.iter()).any(|(_, message)| message.contains("n3") && message.contains("n2"))
    });
    assert_eq!(lab.events("ClaimRefused").len(), 1);
    flow.go_on();
    flow.end_whole();
    lab.assert_closed();
}
