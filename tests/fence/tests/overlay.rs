//! An overlay network of VXLAN between the nodes, whose packets are what the tunnel carries. The kernel's own VXLAN,
//! both families, reverse paths checked strictly on every interface.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use warren_config::{Fence, HostConfig, Steering};
use warren_netlink::{Claim, Host, Options, load_fence};
use warren_tests_fence::{
    FWMARK, INTERFACE, Namespace, Overlaid, Relay, Topology, open_tun, patiently, state_directory,
};

/// The default of flannel and Cilium.
const PORT: u16 = 8472;

fn nets(texts: &[String]) -> std::collections::BTreeSet<IpNet> {
    texts
        .iter()
        .map(|text| text.parse().expect("a prefix"))
        .collect()
}

fn config(own: u8) -> HostConfig {
    let other = 3 - own;
    let addresses = |node: u8| {
        [
            format!("192.0.2.{node}/32"),
            format!("2001:db8::{node}/128"),
        ]
    };
    let ports = [PORT].into();
    HostConfig {
        interface: INTERFACE.to_owned(),
        mtu: 1420,
        addresses: ["169.254.213.20".parse().expect("an address")].into(),
        table: 51820,
        rule_priority: 98,
        fwmark: FWMARK,
        steering: Steering::Overlay { ports },
        routes: nets(&addresses(other)),
        masquerade: false,
        fence: Fence {
            mesh: nets(&["0.0.0.0/0".to_owned(), "::/0".to_owned()]),
            local: nets(&addresses(own)),
            open: [].into(),
            inward: true,
        },
    }
}

/// As what a cluster's network makes: two interfaces on each node, one over IPv4 and one over IPv6.
fn overlay(topology: &Topology) {
    for (node, own) in [(&topology.a, 1), (&topology.b, 2)] {
        let other = 3 - own;
        for (name, id, from, to) in [
            (
                "vx4",
                4,
                format!("192.0.2.{own}"),
                format!("192.0.2.{other}"),
            ),
            (
                "vx6",
                6,
                format!("2001:db8::{own}"),
                format!("2001:db8::{other}"),
            ),
        ] {
            let mac = |node: u8| format!("02:99:00:00:0{id}:0{node}");
            // As flannel does it: each peer by an entry of its own, and no learning.
            let device = "udp6zerocsumrx udp6zerocsumtx nolearning";
            node.ip(&format!(
                "link add {name} address {} type vxlan id {id} local {from} dstport {PORT} {device}",
                mac(own)
            ));
            node.ip(&format!("link set {name} up mtu 1350"));
            node.run(&format!(
                "bridge fdb append {} dev {name} dst {to}",
                mac(other)
            ));
            node.ip(&format!("addr add 10.99.0.{id}{own}/32 dev {name}"));
            node.ip(&format!("route add 10.99.0.{id}{other}/32 dev {name}"));
            node.ip(&format!(
                "neigh add 10.99.0.{id}{other} lladdr {} dev {name} nud permanent",
                mac(other)
            ));
        }
    }
}

fn converge(at: &Namespace, config: &HostConfig) {
    let (directory, config) = (state_directory(at), config.clone());
    at.enter(move || {
        let mut host = Host::new(&directory).expect("netlink is there");
        let report = host.converge(&config).expect("a sound configuration");
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        assert!(report.rules_stand && report.table_stands, "{report:?}");
        let again = host.converge(&config).expect("a sound configuration");
        assert!(again.changed.is_empty(), "{:?}", again.changed);
    });
}

fn set_up(topology: &Topology) {
    for (at, own) in [(&topology.a, 1), (&topology.b, 2)] {
        at.enter(|| drop(open_tun(INTERFACE).expect("a TUN")));
        converge(at, &config(own));
    }
    topology.check_reverse_paths();
    for (at, own) in [(&topology.a, 1), (&topology.b, 2)] {
        converge(at, &config(own));
    }
}

fn relays(topology: &Topology) -> [Relay; 2] {
    let (a, b): (&[&str], &[&str]) = (
        &["192.0.2.1/32", "2001:db8::1/128"],
        &["192.0.2.2/32", "2001:db8::2/128"],
    );
    [
        Relay::start(&topology.a, &[(b, "192.0.2.2")]),
        Relay::start(&topology.b, &[(a, "192.0.2.1")]),
    ]
}

/// The addresses of b in the overlays, and what carries each.
const OF_B: [(&str, &str); 2] = [("10.99.0.42", "IPv4"), ("10.99.0.62", "IPv6")];

fn ping(topology: &Topology, address: &str) -> bool {
    (topology.a).succeeds(&format!("ping -n -c 2 -i 0.2 -W 1 -s 1000 {address}"))
}

#[track_caller]
fn all_answer(topology: &Topology) {
    for (address, family) in OF_B {
        patiently(
            &format!("{address} by {family}"),
            Duration::from_secs(10),
            || ping(topology, address),
        );
    }
}

#[track_caller]
fn none_answers(topology: &Topology) {
    for (address, _) in OF_B {
        assert!(!ping(topology, address), "{address} answers");
    }
}

#[track_caller]
fn assert_closed(seen: &Overlaid) {
    assert!(seen.leaks.is_empty(), "{seen:?}");
}

fn drops(at: &Namespace, own: u8) -> BTreeMap<String, u64> {
    let directory = state_directory(at);
    at.enter(move || {
        let mut host = Host::new(&directory).expect("netlink is there");
        let observed = host.observe(&config(own)).expect("netlink answers");
        observed.drops(&Claim::of(&config(own)))
    })
}

#[test]
fn without_a_fence_the_overlay_is_seen_in_the_clear() {
    let topology = Topology::new();
    overlay(&topology);
    let sniffer = topology.overlay_sniffer();
    all_answer(&topology);
    let seen = sniffer.stop();
    let leaks: Vec<&str> = seen.leaks.keys().map(String::as_str).collect();
    assert_eq!(
        leaks,
        [
            "a: protocol Some(17) [192.0.2.1, 192.0.2.2]",
            "a: protocol Some(17) [2001:db8::1, 2001:db8::2]",
            "b: protocol Some(17) [192.0.2.2, 192.0.2.1]",
            "b: protocol Some(17) [2001:db8::2, 2001:db8::1]",
        ]
    );
}

#[test]
fn the_overlay_goes_by_the_tunnel_and_everything_else_as_before() {
    let topology = Topology::new();
    overlay(&topology);
    // It had its ways before there was a tunnel.
    all_answer(&topology);
    set_up(&topology);
    let _relays = relays(&topology);
    let sniffer = topology.overlay_sniffer();
    all_answer(&topology);
    for other in ["192.0.2.2", "2001:db8::2", "192.0.2.254"] {
        assert!(
            topology.a.succeeds(&format!("ping -n -c 1 -W 2 {other}")),
            "{other}"
        );
    }
    // What leaves by itself has not the address of the tunnel.
    assert!(
        topology
            .a
            .run("ip route get 198.51.100.1")
            .contains("src 192.0.2.1")
    );
    let seen = sniffer.stop();
    assert_closed(&seen);
    assert!(seen.carried >= 16, "{seen:?}");
}

#[test]
fn with_the_daemon_dead_the_tun_away_or_one_fence_torn_down_the_overlay_is_closed() {
    let topology = Topology::new();
    overlay(&topology);
    set_up(&topology);
    let carriers = relays(&topology);
    all_answer(&topology);
    let sniffer = topology.overlay_sniffer();
    drop(carriers);
    none_answers(&topology);
    let (a, b) = (&topology.a, &topology.b);
    a.ip("link set warren0 down");
    none_answers(&topology);
    a.ip("link del warren0");
    none_answers(&topology);

    // The rules alone.
    a.run("nft flush ruleset");
    none_answers(&topology);
    for family in ["-4", "-6"] {
        a.ip(&format!("{family} route flush table 51820"));
    }
    none_answers(&topology);
    // The table alone.
    converge_without_link(a);
    for priority in 96..=99 {
        for family in ["-4", "-6"] {
            let _ = a.succeeds(&format!("ip {family} rule del priority {priority}"));
        }
    }
    none_answers(&topology);
    // What b sends of itself is closed as well.
    assert!(!b.succeeds("ping -n -c 1 -W 1 10.99.0.41"));
    let seen = sniffer.stop();
    assert_closed(&seen);
    assert!(drops(a, 1)["out_mesh"] >= 4);
}

fn converge_without_link(at: &Namespace) {
    let directory = state_directory(at);
    at.enter(move || drop(load_fence(&directory).expect("the fence is loaded")));
}

#[test]
fn forged_packets_of_the_overlay_do_not_enter_from_outside() {
    let topology = Topology::new();
    overlay(&topology);
    set_up(&topology);
    let _relays = relays(&topology);
    all_answer(&topology);
    let before = drops(&topology.b, 2)["in_mesh"];
    // Somebody on the underlay who knows everything but the key.
    for _ in 0..5 {
        topology.stranger.run_script(
            "python3 - <<'P'\nimport socket\n\
             for f, a in ((socket.AF_INET, '192.0.2.2'), (socket.AF_INET6, '2001:db8::2')):\n    \
             s = socket.socket(f, socket.SOCK_DGRAM)\n    \
             s.sendto(bytes([8, 0, 0, 0, 0, 0, 4, 0]) + bytes(60), (a, 8472))\nP",
        );
    }
    assert_eq!(drops(&topology.b, 2)["in_mesh"], before + 10);
}

#[test]
fn what_the_kernel_says_of_a_packet_of_the_overlay_does_not_repeat_it_in_the_clear() {
    let topology = Topology::new();
    overlay(&topology);
    set_up(&topology);
    let _relays = relays(&topology);
    all_answer(&topology);
    // Nobody takes the overlay's packets at b any more, and its kernel answers that.
    topology.b.ip("link del vx4");
    topology.b.ip("link del vx6");
    let sniffer = topology.overlay_sniffer();
    none_answers(&topology);
    assert_closed(&sniffer.stop());
    assert!(
        drops(&topology.b, 2)["out_mesh"] >= 2,
        "{:?}",
        drops(&topology.b, 2)
    );
}

// Behaviour 47.
#[test]
fn what_comes_by_the_tunnel_and_is_none_of_the_overlay_s_is_dropped_and_counted() {
    let topology = Topology::new();
    overlay(&topology);
    set_up(&topology);
    let _relays = relays(&topology);
    let before = drops(&topology.a, 1)["in_foreign"];
    // As if b had been taken over: it sends anything at all into the tunnel.
    topology
        .b
        .ip("rule add priority 10 to 192.0.2.1 not fwmark 0x2000 lookup 51820");
    assert!(!topology.b.succeeds("ping -n -c 3 -i 0.2 -W 1 192.0.2.1"));
    assert_eq!(drops(&topology.a, 1)["in_foreign"], before + 3);
}

#[test]
fn a_staged_overlay_is_closed_to_whom_it_reached_and_open_to_others() {
    let topology = Topology::new();
    overlay(&topology);
    set_up(&topology);
    let mut staged = config(1);
    staged.fence.inward = false;
    staged.fence.mesh = nets(&["192.0.2.2/32".to_owned()]);
    staged.routes = staged.fence.mesh.clone();
    converge(&topology.a, &staged);
    let mut open = config(2);
    open.fence.inward = false;
    open.fence.mesh.clear();
    open.routes.clear();
    converge(&topology.b, &open);
    let carriers = relays(&topology);
    let sniffer = topology.overlay_sniffer();
    all_answer(&topology);
    drop(carriers);
    let (by_v4, by_v6) = (OF_B[0].0, OF_B[1].0);
    assert!(!ping(&topology, by_v4));
    assert!(ping(&topology, by_v6));
    let seen = sniffer.stop();
    let of_a: Vec<&String> = seen
        .leaks
        .keys()
        .filter(|leak| leak.starts_with("a: "))
        .collect();
    assert_eq!(of_a, ["a: protocol Some(17) [2001:db8::1, 2001:db8::2]"]);

    // Strict from here on, with an exception.
    let mut excepting = config(1);
    excepting.fence.open = nets(&["2001:db8::2/128".to_owned()]);
    excepting.routes = nets(&["192.0.2.2/32".to_owned()]);
    converge(&topology.a, &excepting);
    assert!(!ping(&topology, by_v4));
    assert!(ping(&topology, by_v6));
}

#[test]
fn a_kernel_whose_rules_know_no_ports_is_left_as_it_is_and_the_table_closes_the_overlay() {
    let topology = Topology::new();
    overlay(&topology);
    let rules = topology.a.run("ip rule");
    let directory = state_directory(&topology.a);
    topology.a.enter(move || {
        drop(open_tun(INTERFACE).expect("a TUN"));
        let options = Options {
            without_ports_in_rules: true,
            ..Options::default()
        };
        let mut host = Host::with_options(&directory, options).expect("netlink is there");
        let report = host.converge(&config(1)).expect("a sound configuration");
        assert!(report.table_stands && !report.rules_stand);
        let why: Vec<String> = report
            .refused
            .iter()
            .map(|(_, why)| why.to_string())
            .collect();
        assert!(
            why[0].contains("this kernel's rules know no ports"),
            "{why:?}"
        );
    });
    // Ours about addresses of its own, and nothing that would lead everything into the tunnel.
    let ours = "96:\tfrom all lookup local\n";
    assert_eq!(topology.a.run("ip rule").replace(ours, ""), rules);
    let sniffer = topology.overlay_sniffer();
    none_answers(&topology);
    let seen = sniffer.stop();
    let of_a = seen.leaks.keys().find(|leak| leak.starts_with("a: "));
    assert_eq!(of_a, None);
}

// Behaviour 41.
#[test]
fn uninstalling_leaves_the_overlay_as_it_was() {
    let topology = Topology::new();
    overlay(&topology);
    let shown = |at: &Namespace| {
        [
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "nft list tables",
            "ip -o addr",
        ]
        .map(|list| at.run(list))
    };
    let before = shown(&topology.a);
    set_up(&topology);
    assert_ne!(shown(&topology.a), before);
    for at in [&topology.a, &topology.b] {
        let directory = state_directory(at);
        at.enter(move || {
            let host = Host::with_options(&directory, Options::default()).expect("netlink");
            host.uninstall().expect("all of it can be removed");
        });
    }
    assert_eq!(shown(&topology.a), before);
    all_answer(&topology);
}
