//! What the nodes carry between them, and what not.

use std::fs;
use std::time::Duration;

use warren_control::status::Via;
use warren_tests_mesh::{Arrivals, Daemon, Flood, Flow, Network, patiently};

const AT_ONCE: Duration = Duration::from_secs(5);
/// More than the time after which a name is asked for again, twice, and a retry of the handshake.
const ASKED_AGAIN: Duration = Duration::from_secs(45);

#[test]
fn three_nodes_of_one_file_reach_each_other_and_only_ciphertext_is_seen() {
    let network = Network::new();
    let Network { a, b, c, .. } = &network;
    let wiretap = network.wiretap();
    let daemons = [a, b, c].map(Daemon::start);
    let pairs = [(a, b), (b, c), (c, a)];
    for (from, to) in pairs {
        for address in to.addresses() {
            let flow = Flow::start(&from.host, &to.host, &address);
            flow.end_whole();
        }
        // Larger than the tunnel's MTU, so in pieces.
        from.host
            .run(&format!("ping -q -c 3 -i 0.01 -W 5 -s 3000 {}", to.v4()));
    }
    for daemon in &daemons {
        let status = daemon.status();
        assert_eq!(status.problems, Vec::<String>::new());
        assert!(
            status.node.up
                && status
                    .node
                    .fence
                    .is_some_and(|fence| fence.contains("closed twice"))
        );
        for peer in &status.peers {
            assert_eq!(peer.via, Via::Candidate);
            assert!(peer.last_handshake_unix_s.is_some() && peer.rx_bytes > 0);
        }
    }
    drop(daemons);
    wiretap.stop().assert_closed();
}

#[test]
fn a_node_behind_nat_calls_and_is_then_reached() {
    let network = Network::new();
    let Network { a, b, d, .. } = &network;
    // Of d's addresses only those behind its NAT are left.
    let nat = &network.underlay;
    nat.run(
        "nft add table ip nat
        nft add chain ip nat out '{ type nat hook postrouting priority 100; }'
        nft 'add rule ip nat out ip saddr 198.51.100.0/24 oifname \"bridge\" masquerade random'
        ip link set to-d nomaster
        ip addr add 198.51.100.1/24 dev to-d
        ip route del 10.77.0.4/32; ip route del 10.77.4.0/24",
    );
    d.host.run(
        "ip addr flush dev eth0
        ip addr add 198.51.100.2/24 dev eth0
        ip route add default via 198.51.100.1",
    );
    let endpoints = "endpoints = [\"192.0.2.4\", \"2001:db8::4\"]\n";
    let mesh = network.mesh_of(&["a", "b", "d"]);
    assert!(mesh.contains(endpoints));
    network.write(&mesh.replace(endpoints, ""));

    let wiretap = network.wiretap();
    let daemons = [a, b, d].map(Daemon::start);
    // It keeps alive, so it calls unasked.
    patiently("d is reached", 2 * AT_ONCE, || a.host.reaches(&d.v4()));
    let flows = [
        Flow::start(&b.host, &d.host, &d.v4()),
        Flow::start(&d.host, &a.host, &a.v4()),
    ];
    for flow in flows {
        flow.end_whole();
    }
    let peer = daemons[0].peer("d");
    assert_eq!(peer.via, Via::Roaming);
    assert!(
        peer.endpoint
            .is_some_and(|at| at.ip().to_string() == "192.0.2.254")
    );
    assert_eq!(daemons[2].peer("a").persistent_keepalive_s, 25);
    drop(daemons);
    wiretap.stop().assert_closed();
}

#[test]
fn a_node_without_a_key_is_fenced_until_it_has_one() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let whole = network.mesh_of(&["a", "b", "c"]);
    let key = format!("public_key = \"{}\"\n", b.public_key());
    assert!(whole.contains(&key));
    network.write(&whole.replace(&key, ""));
    let wiretap = network.wiretap();
    let daemons = [a, b].map(Daemon::start);
    let flood = Flood::start(&a.host, &b.addresses());
    flood.go_on();
    assert!(!a.host.reaches(&b.v4()));
    let peer = daemons[0].peer("b");
    assert_eq!(peer.public_key, None);
    assert!(
        peer.problem
            .is_some_and(|problem| problem.contains("fenced"))
    );

    network.write(&whole);
    daemons[0].wait("b has a key", AT_ONCE, |_| {
        daemons[0].peer("b").public_key.is_some()
    });
    patiently("b is reached", AT_ONCE, || a.host.reaches(&b.v4()));
    flood.stop();
    drop(daemons);
    wiretap.stop().assert_closed();
}

#[test]
fn a_packet_from_a_peer_to_what_is_not_this_node_s_is_dropped_and_counted() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    // b believes that all of this is a's: a network that nobody has, an address on a's underlay,
    // the metadata address of clouds.
    let foreign = ["10.77.99.1", "203.0.113.9", "198.18.0.1"];
    let greedy = network.scratch().join("greedy.toml");
    let text = network
        .mesh_of(&["a", "b", "c"])
        .replacen(
            "\"10.77.0.0/16\"",
            "\"10.77.0.0/16\", \"203.0.113.0/24\", \"198.18.0.0/15\"",
            1,
        )
        .replacen(
            "\"10.77.1.0/24\"",
            "\"10.77.1.0/24\", \"10.77.99.0/24\", \"203.0.113.0/24\", \"198.18.0.0/15\"",
            1,
        );
    fs::write(&greedy, text).expect("a scratch directory");
    // Whatever a would forward arrives here.
    for address in foreign {
        network
            .underlay
            .run(&format!("ip addr add {address}/32 dev lo"));
    }
    let outside = Arrivals::start(&network.underlay);

    let daemons = [Daemon::start(a), Daemon::start_with(b, &greedy)];
    let flow = Flow::start(&b.host, &a.host, "10.77.1.5");
    let drops = || {
        let drops = daemons[0].status().drops;
        drops.get("in_not_for_us").copied().unwrap_or_default()
    };
    assert_eq!(drops(), 0);
    for address in foreign {
        let before = drops();
        b.host
            .attempt(&format!("ping -q -c 5 -i 0.01 -W 1 {address}"));
        let flood = Flood::to_arrive(&b.host, address);
        flood.go_on();
        flood.stop();
        assert!(
            drops() >= before + 5,
            "{address}: {:?}",
            daemons[0].status().drops
        );
    }
    flow.end_whole();
    assert_eq!(outside.count(), 0);
    outside.stop();
}

#[test]
fn an_endpoint_s_name_is_resolved_and_asked_for_again_while_its_node_does_not_answer() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let mesh = network.mesh_of(&["a", "b"]).replace(
        "endpoints = [\"192.0.2.2\", \"2001:db8::2\"]",
        "endpoints = \"burrow.example.org\"",
    );
    network.write(&mesh);
    // Hosts are files; nobody asks the network.
    let hosts = network.scratch().join("hosts");
    let say = |address: &str| {
        fs::write(&hosts, format!("{address} burrow.example.org\n")).expect("a scratch directory");
    };
    say("192.0.2.99");
    a.host
        .run(&format!("mount --bind {} /etc/hosts", hosts.display()));
    let daemons = [a, b].map(Daemon::start);
    let candidates = || -> Vec<String> {
        let peer = daemons[0].peer("b");
        (peer.candidates.iter()).map(ToString::to_string).collect()
    };
    patiently("the name is known", AT_ONCE, || {
        candidates() == ["192.0.2.99:51820"]
    });
    assert!(!a.host.reaches(&b.v4()));

    say("192.0.2.2");
    patiently("b is reached", ASKED_AGAIN, || a.host.reaches(&b.v4()));
    assert_eq!(candidates(), ["192.0.2.2:51820"]);

    // A name that leads to a victim is left out.
    say("127.0.0.1");
    drop(daemons);
    let daemon = Daemon::start(a);
    daemon.wait("it is said", AT_ONCE, |status| {
        status
            .problems
            .iter()
            .any(|problem| problem.contains("127.0.0.1"))
    });
    assert!(daemon.peer("b").candidates.is_empty());
}

#[test]
fn a_host_outside_the_mesh_reaches_nothing_in_it() {
    let network = Network::new();
    let Network { a, b, d, .. } = &network;
    let _daemons = [a, b].map(Daemon::start);
    assert!(a.host.reaches(&b.v4()));
    // What is behind a is not a's to close.
    for address in ["10.77.0.1", "fd77::1"] {
        let once = format!("ping -c 1 -W 1 {address}");
        assert!(!d.host.attempt(&once).success, "{address}");
    }
}
