//! Daemons that die, hosts that boot, and how long it takes.

use std::time::Duration;

use rustix::process::Signal;
use warren_tests_cluster::{Flood, Flow, Lab, patiently};

/// Waits until the next packet of each arrives; how long that took.
fn both_go_on(flows: &[&Flow]) -> Duration {
    let before: Vec<u64> = flows.iter().map(|flow| flow.arrived()).collect();
    patiently("all go on", Duration::from_secs(10), || {
        flows
            .iter()
            .zip(&before)
            .all(|(flow, before)| flow.arrived() > *before)
    })
}

#[test]
fn a_killed_daemon_carries_both_ways_within_half_a_second_of_its_start() {
    let (mut lab, mut nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let to = Flow::start(&nodes[1].pod, &nodes[0].pod, "10.244.1.5");
    let from = Flow::start(&nodes[0].pod, &nodes[2].pod, "fd00:10:244:3::5");
    nodes[0].end(Signal::KILL);
    let flood = Flood::start(&nodes[0].pod, &nodes[1].pod_addresses());
    flood.go_on();
    nodes[0].start();
    let took = both_go_on(&[&to, &from]);
    eprintln!("from start to the first packet both ways: {took:?}");
    assert!(
        took < Duration::from_millis(500),
        "{took:?}\n{}",
        nodes[0].log()
    );
    flood.stop();
    to.stop();
    from.stop();
    lab.assert_closed();
}

#[test]
fn a_booted_node_encrypts_before_the_api_answers_and_leaks_nothing_before_that() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    assert!(nodes[0].pod.reaches("10.244.2.5"));
    // What a boot leaves: the disk.
    nodes[0].end(Signal::KILL);
    nodes[0].shut_way();
    nodes[0].host.run(
        "nft flush ruleset
        ip link del warren0
        ip rule flush; ip rule add pref 32766 lookup main
        ip -6 rule flush; ip -6 rule add pref 32766 lookup main",
    );
    lab.listen();
    let flood = {
        // As the unit does it, before anything of the network is up.
        let state = nodes[0].state.clone();
        let run = nodes[0].host.warrend("fence --load", &state);
        assert!(run.success, "{run}");
        Flood::start(&nodes[0].pod, &nodes[1].pod_addresses())
    };
    nodes[0].start();
    patiently("it is reached", Duration::from_secs(15), || {
        nodes[1].pod.reaches("10.244.1.5") && nodes[0].pod.reaches("fd00:10:244:2::5")
    });
    flood.stop();
    nodes[0].open_way();
    lab.settle(&nodes);
    lab.assert_closed();
}

/// Fifty daemons start on as many cores as there are; what is measured is the one that starts alone.
#[test]
#[ignore = "a minute, and two gigabytes"]
fn with_fifty_peers_a_killed_daemon_carries_within_half_a_second_too() {
    let (mut lab, mut nodes) = Lab::of(51, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let mut flows: Vec<Flow> = (nodes[1..].iter().step_by(10))
        .map(|node| Flow::start(&nodes[0].pod, &node.pod, &node.pod_addresses()[0]))
        .collect();
    flows.push(Flow::start(&nodes[50].pod, &nodes[0].pod, "10.244.1.5"));
    nodes[0].end(Signal::KILL);
    nodes[0].start();
    let took = both_go_on(&flows.iter().collect::<Vec<_>>());
    eprintln!("from start to the first packet of the last peer: {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    flows.into_iter().for_each(|flow| drop(flow.stop()));
    lab.assert_closed();
}
