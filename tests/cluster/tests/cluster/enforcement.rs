//! Staged, Strict, Permissive, Removed, and exceptions.

use std::fs;
use std::time::Duration;

use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use warren_control::status::{Enforcement, Status};
use warren_k8s::MeshNode;
use warren_tests_cluster::{
    Cni, Flood, Flow, Lab, Node, PODS, check_reverse_paths_loosely, patiently,
};

fn enforces(status: &Status, enforcement: Enforcement) -> bool {
    let cluster = status.cluster.as_ref();
    cluster.is_some_and(|cluster| cluster.enforcement == Some(enforcement))
}

fn all_enforce(nodes: &[Node], enforcement: Enforcement) {
    for node in nodes {
        node.until(&format!("{} is {enforcement:?}", node.name), |status| {
            enforces(status, enforcement)
        });
    }
}

#[test]
fn a_staged_cluster_turns_strict_by_itself_once_all_have_reached_all() {
    let lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS}));
    let mut nodes: Vec<Node> = (1..=3).map(|number| lab.join(number)).collect();
    // Before there is any daemon all goes in the clear, and none of it stops while they come.
    assert!(nodes[0].pod.reaches("10.244.2.5"));
    nodes[0].start();
    nodes[1].start();
    all_enforce(&nodes[..2], Enforcement::Staged);
    patiently(
        "the first two have reached each other",
        Duration::from_secs(30),
        || {
            let latched =
                |node: &Node| node.daemon().status().cluster.map(|it| it.latched_prefixes);
            nodes[..2].iter().all(|node| latched(node) > Some(0))
        },
    );
    // n3 has no daemon and holds them up, and is reached in the clear.
    assert!(nodes[0].pod.reaches("10.244.3.5"));
    assert!(nodes[2].pod.reaches("fd00:10:244:2::5"));
    let held_up = nodes[0].daemon().status().problems;
    assert!(
        held_up.iter().any(|problem| problem.contains("node n3")),
        "{held_up:?}"
    );
    all_enforce(&nodes[..2], Enforcement::Staged);

    nodes[2].start();
    all_enforce(&nodes, Enforcement::Strict);
    for node in &nodes {
        patiently("its record says so", Duration::from_secs(30), || {
            let status = lab.record(&node.name).and_then(|record| record.status);
            status.is_some_and(|status| status.latched)
        });
    }
    assert!(nodes[2].pod.reaches("10.244.1.5"));
}

#[test]
fn what_a_staged_node_once_reached_is_never_sent_in_the_clear_again() {
    let lab = Lab::new();
    // A third node without a daemon keeps the cluster staged.
    lab.mesh(json!({"podPrefixes": PODS}));
    lab.add_node("n9", 9);
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    for node in &mut nodes {
        node.start();
    }
    lab.settle(&nodes);
    let latched = |status: &Status| {
        status
            .cluster
            .as_ref()
            .is_some_and(|it| it.latched_prefixes > 0)
    };
    for node in &nodes {
        node.until("it has latched", latched);
        node.until("and is staged", |status| {
            enforces(status, Enforcement::Staged)
        });
    }
    assert!(nodes[0].pod.reaches("10.244.2.5"));
    let mut lab = lab;
    lab.listen();
    let floods: Vec<Flood> = (nodes.iter().zip(nodes.iter().rev()))
        .map(|(from, to)| Flood::start(&from.pod, &to.pod_addresses()))
        .collect();
    // The daemon dies, and its interface, and it comes back without the API; its peer's key is gone.
    lab.until_kept(&nodes);
    nodes[0].end(rustix::process::Signal::KILL);
    nodes[0].host.run("ip link del warren0");
    for flood in &floods {
        flood.go_on();
    }
    nodes[0].shut_way();
    nodes[0].start();
    nodes[0].until("it has its peer from its disk", |status| {
        status
            .cluster
            .as_ref()
            .is_some_and(|it| it.peers_expected == 1)
    });
    patiently("it is reached again", Duration::from_secs(30), || {
        nodes[1].pod.reaches("10.244.1.5")
    });
    for flood in floods {
        flood.go_on();
        flood.stop();
    }
    lab.assert_closed();
}

#[test]
fn what_a_staged_node_once_reached_stays_closed_when_its_node_goes() {
    stays_closed_without_its_node(Cni::Routes, &json!({"podPrefixes": PODS}));
}

#[test]
fn what_a_staged_overlay_once_reached_stays_closed_when_its_node_goes() {
    stays_closed_without_its_node(
        Cni::Vxlan,
        &json!({"mode": "Overlay", "overlayPorts": [8472]}),
    );
}

fn stays_closed_without_its_node(cni: Cni, mesh: &Value) {
    let mut lab = Lab::by(cni);
    lab.mesh(mesh.clone());
    // Without a daemon: it keeps the cluster staged.
    let third = lab.join(3);
    let mut nodes = lab.staged_pair();
    all_enforce(&nodes, Enforcement::Staged);
    lab.listen_for(&["10.244.2.0/24", "fd00:10:244:2::/64"]);
    nodes[0].talk_to(&nodes[1]);
    let flood = Flood::start(&nodes[0].pod, &nodes[1].pod_addresses());
    if cni == Cni::Vxlan {
        // As flannel does it: nobody has to be asked for who that is.
        nodes[0].host.run(
            "for address in 10.244.2.0 fd00:10:244:2::; do
                mac=$(ip neigh show $address dev vx | sed 's/.*lladdr \\([^ ]*\\).*/\\1/')
                ip neigh replace $address lladdr $mac dev vx nud permanent
            done",
        );
    }
    nodes[1].end(rustix::process::Signal::TERM);
    let deleted = lab.wait(lab.nodes().delete("n2", &DeleteParams::default()));
    deleted.expect("it is there");
    nodes[0].until("n2 is no peer", |status| {
        let cluster = status.cluster.as_ref();
        cluster.is_some_and(|cluster| cluster.peers_expected == 0)
    });
    flood.go_on();
    // Also for one that starts after it went.
    nodes[0].end(rustix::process::Signal::KILL);
    nodes[0].start();
    nodes[0].until("it is staged again", |status| {
        enforces(status, Enforcement::Staged)
    });
    flood.go_on();
    // What was never reached is open as it was.
    assert!(nodes[0].pod.reaches("10.244.3.5") && third.pod.reaches("10.244.1.5"));
    // By the operator's word it opens.
    let seen = lab.stop_listening();
    let mut permissive = mesh.clone();
    permissive["enforcement"] = "Permissive".into();
    lab.mesh(permissive);
    all_enforce(&nodes[..1], Enforcement::Permissive);
    lab.listen_for(&["10.244.2.0/24", "fd00:10:244:2::/64"]);
    flood.go_on();
    flood.stop();
    let open = lab.stop_listening();
    assert!(!open.leaks.is_empty(), "so this test sees something");
    seen.assert_closed();
}

/// Its record has it, too, also when the key of whoever was reached has gone meanwhile.
#[test]
fn a_staged_node_that_has_lost_its_disk_takes_what_was_closed_from_its_record() {
    let mut lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS}));
    // Without a daemon: it keeps the cluster staged.
    let third = lab.join(3);
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    for node in &mut nodes {
        node.start();
    }
    lab.settle(&nodes);
    patiently(
        "its record has what is closed",
        Duration::from_secs(30),
        || {
            let status = lab.record("n1").and_then(|record| record.status);
            let latched = status.map(|status| status.latched_prefixes);
            latched.is_some_and(|it| it.contains(&"10.244.2.0/24".to_owned()) && it.len() == 2)
        },
    );
    for node in &mut nodes {
        node.end(rustix::process::Signal::TERM);
    }
    let records: Api<MeshNode> = Api::all(lab.cluster.admin.clone());
    let deleted = lab.wait(records.delete("n2", &DeleteParams::default()));
    deleted.expect("it is there");
    fs::remove_dir_all(&nodes[0].state).expect("it is there");
    lab.listen_for(&["10.244.2.0/24", "fd00:10:244:2::/64"]);
    let flood = Flood::start(&nodes[0].pod, &nodes[1].pod_addresses());
    nodes[0].start();
    nodes[0].until("it is staged, and knows what is closed", |status| {
        let cluster = status.cluster.as_ref();
        let latched = cluster.map_or(0, |cluster| cluster.latched_prefixes);
        enforces(status, Enforcement::Staged) && latched == 2
    });
    flood.go_on();
    // What was never reached is open as it was.
    assert!(nodes[0].pod.reaches("10.244.3.5") && third.pod.reaches("10.244.1.5"));
    // The one that was reached is back with its key, and is reached by the tunnel.
    nodes[1].start();
    lab.settle(&nodes);
    nodes[0].talk_to(&nodes[1]);
    flood.stop();
    lab.assert_closed();
}

/// A disk that has lost what was closed opens nothing.
#[test]
fn a_damaged_latch_closes_all_on_this_node_and_is_told_until_the_operator_opens_it() {
    closes_all_by_a_damaged_latch(&json!({"podPrefixes": PODS}), Enforcement::Strict);
}

/// Where nobody says what the mesh may carry that is all that other nodes have.
#[test]
fn a_damaged_latch_closes_what_the_others_have_in_a_mesh_without_prefixes() {
    closes_all_by_a_damaged_latch(&json!({}), Enforcement::Staged);
}

fn closes_all_by_a_damaged_latch(mesh: &Value, enforcement: Enforcement) {
    let mut lab = Lab::new();
    lab.mesh(mesh.clone());
    // Without a daemon: it keeps the cluster staged.
    let third = lab.join(3);
    let mut nodes = lab.staged_pair();
    let damaged = "{\"prefixes\":[\"0.0.0.0/0\"],\"addresses\":[],\"strict\":false}";
    lab.listen_for(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let flood = Flood::start(&nodes[0].pod, &nodes[1].pod_addresses());
    for damaged in [damaged, "\0\0\0\0"] {
        nodes[0].end(rustix::process::Signal::KILL);
        fs::write(nodes[0].state.join("latch.json"), damaged).expect("a scratch directory");
        nodes[0].start();
        nodes[0].until("it says so", |status| {
            let told = |problem: &String| problem.contains("latch.json was damaged");
            status.problems.iter().any(told) && enforces(status, enforcement)
        });
        lab.settle(&nodes);
        nodes[0].talk_to(&nodes[1]);
        assert!(!nodes[0].pod.reaches("10.244.3.5"));
    }
    // Once more, from what it has written itself.
    nodes[0].end(rustix::process::Signal::KILL);
    nodes[0].start();
    nodes[0].until("it is closed", |status| enforces(status, enforcement));
    // The others are none the worse for it.
    all_enforce(&nodes[1..], Enforcement::Staged);
    assert!(nodes[1].pod.reaches("10.244.3.5"));
    flood.go_on();
    flood.stop();
    lab.assert_closed();
    let mut permissive = mesh.clone();
    permissive["enforcement"] = "Permissive".into();
    lab.mesh(permissive);
    all_enforce(&nodes, Enforcement::Permissive);
    let mut staged = mesh.clone();
    staged["enforcement"] = "Staged".into();
    lab.mesh(staged);
    all_enforce(&nodes, Enforcement::Staged);
    assert!(nodes[0].pod.reaches("10.244.3.5") && third.pod.reaches("10.244.1.5"));
}

#[test]
fn exceptions_are_reached_in_the_clear_and_all_else_stays_closed() {
    let lab = Lab::new();
    let mut nodes: Vec<Node> = (1..=3).map(|number| lab.join(number)).collect();
    lab.mesh(json!({
        "podPrefixes": PODS,
        "enforcement": "Strict",
        "exceptions": {"nodes": ["n3"]},
    }));
    for node in &mut nodes {
        node.start();
    }
    lab.settle(&nodes[..2]);
    let mut lab = lab;
    assert!(nodes[0].pod.reaches("10.244.3.5"));
    assert!(nodes[2].pod.reaches("fd00:10:244:2::5"));
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

#[test]
fn removed_leaves_nothing_on_any_node_and_says_so() {
    let (lab, nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Removed"}));
    for node in &nodes {
        lab.until_removed(&node.name);
        let left = node.host.run(
            "ip -o link show type tun
            ip rule show; ip -6 rule show
            nft list tables",
        );
        assert!(
            !left.contains("warren") && !left.contains("51880"),
            "{left}"
        );
    }
    assert!(nodes[0].pod.reaches("10.244.2.5"), "in the clear");
    // And back.
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    lab.settle(&nodes);
    let mut lab = lab;
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

#[test]
fn what_could_never_be_set_up_can_be_removed() {
    let lab = Lab::new();
    let mut node = lab.join_without_prefixes(1);
    // As the chart makes it.
    lab.mesh(json!({"enforcement": "Staged"}));
    node.start();
    lab.until_unconfigured("n1", "no Node has podCIDRs");
    lab.mesh(json!({"enforcement": "Removed"}));
    lab.until_removed("n1");
    // What refused it before refuses it again.
    lab.mesh(json!({"enforcement": "Staged"}));
    lab.until_unconfigured("n1", "no Node has podCIDRs");
}

#[test]
fn a_staged_cluster_loses_next_to_nothing_on_its_way_to_strict() {
    let lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS}));
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    check_reverse_paths_loosely(&nodes);
    let flows = [
        Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5"),
        Flow::start(&nodes[1].pod, &nodes[0].pod, "fd00:10:244:1::5"),
    ];
    for node in &mut nodes {
        node.start();
    }
    all_enforce(&nodes, Enforcement::Strict);
    for flow in flows {
        flow.go_on();
        // What is closed is closed before its route leads into the tunnel: some hundred microseconds.
        let lost = flow.stop();
        assert!(lost.len() < 5, "{lost:?}");
    }
}

#[test]
fn a_permissive_mesh_encrypts_what_it_reaches_and_lets_the_rest_pass() {
    let (lab, mut nodes) = Lab::of(2, "Permissive");
    lab.settle(&nodes);
    let mut lab = lab;
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
    // n3 has no daemon.
    let third = lab.join(3);
    assert!(nodes[0].pod.reaches("10.244.3.5") && third.pod.reaches("10.244.1.5"));
    // What was strict is open by the operator's word, and by nothing else.
    nodes.push(third);
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Strict"}));
    all_enforce(&nodes[..2], Enforcement::Strict);
    assert!(!nodes[0].pod.reaches("10.244.3.5"));
    lab.mesh(json!({"podPrefixes": PODS, "enforcement": "Permissive"}));
    all_enforce(&nodes[..2], Enforcement::Permissive);
    assert!(nodes[0].pod.reaches("10.244.3.5"));
}

/// Initiations go unanswered for a minute and a half before a peer is no longer ready.
#[test]
fn a_permissive_mesh_sends_in_the_clear_what_a_dead_peer_took_and_encrypts_again_when_it_is_back() {
    let (mut lab, mut nodes) = Lab::of(2, "Permissive");
    lab.settle(&nodes);
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
    // Nothing of it is left on its host that would take the answers.
    nodes[1].end(rustix::process::Signal::KILL);
    let run = nodes[1].host.warrend("uninstall", &nodes[1].state);
    assert!(run.success, "{run}");
    assert!(!nodes[0].pod.reaches("10.244.2.5"), "it may be busy");
    let took = patiently("in the clear", Duration::from_secs(180), || {
        nodes[0].pod.reaches("10.244.2.5") && nodes[0].pod.reaches("fd00:10:244:2::5")
    });
    eprintln!("in the clear after {took:?}");
    let cluster = nodes[0].daemon().status().cluster.expect("it is of one");
    assert_eq!((cluster.peers_ready, cluster.peers_expected), (0, 1));
    nodes[1].start();
    for node in &mut nodes {
        node.be_patient(Duration::from_secs(120));
    }
    lab.settle(&nodes);
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    lab.assert_closed();
}

#[test]
fn a_refused_mesh_opens_nothing_of_what_a_staged_one_has_closed() {
    let mut lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS}));
    // Without a daemon: it keeps the cluster staged.
    lab.add_node("n9", 9);
    let mut nodes = lab.staged_pair();
    lab.listen();
    nodes[0].talk_to(&nodes[1]);
    lab.mesh(json!({"podPrefixes": ["192.0.0.0/8"], "enforcement": "Permissive"}));
    for node in &nodes {
        node.until("it is refused", |status| status.unready.is_some());
    }
    let floods = [
        Flood::start(&nodes[0].pod, &nodes[1].pod_addresses()),
        Flood::start(&nodes[1].pod, &nodes[0].pod_addresses()),
    ];
    nodes[0].end(rustix::process::Signal::KILL);
    nodes[0].start();
    for flood in floods {
        flood.go_on();
        flood.stop();
    }
    lab.assert_closed();
}

#[test]
fn a_node_that_was_away_while_the_cluster_turned_strict_starts_strict() {
    let lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS}));
    let mut nodes: Vec<Node> = (1..=3).map(|number| lab.join(number)).collect();
    for node in &mut nodes[..2] {
        node.start();
    }
    lab.settle(&nodes[..2]);
    all_enforce(&nodes[..2], Enforcement::Staged);
    nodes[0].end(rustix::process::Signal::KILL);
    // Without it, and with the third, the cluster turns.
    lab.patch_node_status(
        "n1",
        &json!({"conditions": [{"type": "Ready", "status": "False"}]}),
    );
    nodes[2].start();
    all_enforce(&nodes[1..], Enforcement::Strict);
    // Their records say so a second later at most.
    patiently("it can be read", Duration::from_secs(5), || {
        let status = |name| lab.record(name).and_then(|record| record.status);
        ["n2", "n3"]
            .map(status)
            .iter()
            .all(|status| status.as_ref().is_some_and(|status| status.latched))
    });
    // Somebody new holds up whoever would judge anew.
    lab.add_node("n9", 9);
    lab.patch_node_status(
        "n1",
        &json!({"conditions": [{"type": "Ready", "status": "True"}]}),
    );
    nodes[0].start();
    all_enforce(&nodes, Enforcement::Strict);
}

/// All the way from the first latch to strict: nothing of what is latched is seen in the clear, and in the
/// end nothing at all.
#[test]
fn nothing_latched_is_seen_in_the_clear_on_the_way_to_strict_and_nothing_at_all_after_it() {
    let mut lab = Lab::new();
    lab.mesh(json!({"podPrefixes": PODS}));
    let mut nodes: Vec<Node> = (1..=3).map(|number| lab.join(number)).collect();
    check_reverse_paths_loosely(&nodes);
    // The third has no daemon yet and keeps the others staged.
    nodes[0].start();
    nodes[1].start();
    lab.settle(&nodes[..2]);
    nodes[0].until_latched();
    nodes[1].until_latched();
    all_enforce(&nodes[..2], Enforcement::Staged);
    // The two send to each other alone, as much as they can and by every way.
    lab.listen_for(&[
        "10.244.1.0/24",
        "10.244.2.0/24",
        "fd00:10:244:1::/64",
        "fd00:10:244:2::/64",
    ]);
    let mut floods: Vec<Flood> = [(0, 1), (1, 0)]
        .map(|(from, to): (usize, usize)| {
            Flood::start(&nodes[from].pod, &nodes[to].pod_addresses())
        })
        .into();
    let flow = Flow::start(&nodes[0].pod, &nodes[1].pod, "10.244.2.5");
    nodes[2].start();
    all_enforce(&nodes, Enforcement::Strict);
    floods.iter().for_each(Flood::go_on);
    // From now on nobody sends anything of pods in the clear, to whomever.
    let on_the_way = lab.stop_listening();
    lab.listen();
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.number != from.number) {
            floods.push(Flood::start(&from.pod, &to.pod_addresses()));
        }
    }
    floods.into_iter().for_each(Flood::stop);
    // What is closed is closed before its route leads into the tunnel, here among floods.
    let lost = flow.stop();
    assert!(lost.len() < 5, "{lost:?}");
    lab.assert_closed();
    on_the_way.assert_closed();
}
