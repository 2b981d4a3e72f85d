//! Daemons that die, hosts that boot, and how long it takes.

use std::fs;
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
    lab.until_kept(&nodes);
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
    lab.until_kept(&nodes);
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
    patiently("it is reached", Duration::from_secs(30), || {
        nodes[1].pod.reaches("10.244.1.5") && nodes[0].pod.reaches("fd00:10:244:2::5")
    });
    flood.stop();
    nodes[0].open_way();
    lab.settle(&nodes);
    lab.assert_closed();
}

/// What is on the disk of a node whose clock was a year ahead when it ran last.
const AHEAD: u64 = 365 * 24 * 3600;

/// Peers take no initiation that is older than one that they have seen.
#[test]
fn a_node_whose_clock_was_set_back_is_not_taken_for_a_replay() {
    let (mut lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    // Of two who start at once one may have called alone. Who is started again calls.
    nodes[0].end(Signal::KILL);
    nodes[0].start();
    lab.settle(&nodes);
    let ceiling = nodes[0].state.join("timestamps.ceiling");
    let refused = |nodes: &[warren_tests_cluster::Node]| {
        let drops = nodes[1].daemon().status().drops;
        drops.get("in_handshake_refused").copied().unwrap_or(0)
    };
    // A run with a clock that is ahead: what it sends is at most that old.
    nodes[0].end(Signal::KILL);
    let mut stamp = fs::read(&ceiling).expect("it has sent some");
    let seconds = u64::from_be_bytes(*stamp.first_chunk().expect("TAI64N")) + AHEAD;
    stamp[..8].copy_from_slice(&seconds.to_be_bytes());
    fs::write(&ceiling, &stamp).expect("a scratch directory");
    nodes[0].start();
    lab.settle(&nodes);
    nodes[0].talk_to(&nodes[1]);
    // And the clock is right again.
    let before = refused(&nodes);
    nodes[0].end(Signal::KILL);
    lab.listen();
    nodes[0].start();
    patiently("it is reached", Duration::from_secs(30), || {
        nodes[0].pod.reaches("10.244.2.5") && nodes[1].pod.reaches("fd00:10:244:1::5")
    });
    assert_eq!(refused(&nodes), before);
    let after = fs::read(&ceiling).expect("it stays");
    assert!(after > stamp, "{after:?} {stamp:?}");
    lab.assert_closed();
    // Without what is on the disk it would be: so this test sees something.
    nodes[0].end(Signal::KILL);
    fs::remove_file(&ceiling).expect("it is there");
    nodes[0].start();
    let flow = Flood::start(&nodes[0].pod, &nodes[1].pod_addresses());
    patiently("it is taken for a replay", Duration::from_secs(30), || {
        refused(&nodes) > before
    });
    flow.stop();
}

#[test]
fn daemons_that_are_replaced_one_after_another_stop_nobody_elses_traffic() {
    let (mut lab, mut nodes) = Lab::of(4, "Strict");
    lab.settle(&nodes);
    lab.listen();
    let through = Flow::start(&nodes[0].pod, &nodes[2].pod, "10.244.3.5");
    for at in 0..nodes.len() {
        let others: Vec<usize> = (0..nodes.len()).filter(|other| *other != at).collect();
        let (from, to) = (&nodes[others[0]], &nodes[others[1]]);
        // Somebody listens on n3 already.
        let (from, to) = if to.number == 3 {
            (to, from)
        } else {
            (from, to)
        };
        let between = Flow::start(&from.pod, &to.pod, &to.pod_addresses()[1]);
        nodes[at].end(Signal::TERM);
        nodes[at].start();
        lab.settle(&nodes);
        between.go_on();
        between.end_whole();
    }
    through.go_on();
    // A packet in two milliseconds, and each end was away once: for a second at most.
    let lost = through.stop();
    assert!(lost.len() < 1000, "{} were lost", lost.len());
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
    lab.until_kept(&nodes);
    nodes[0].end(Signal::KILL);
    nodes[0].start();
    let took = both_go_on(&flows.iter().collect::<Vec<_>>());
    eprintln!("from start to the first packet of the last peer: {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    flows.into_iter().for_each(|flow| drop(flow.stop()));
    lab.assert_closed();
}
