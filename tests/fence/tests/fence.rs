//! The fence under attack: behaviours 41, 46 and 47, and what "each alone is closed" means.
//!
//! In each test traffic in the clear is sent all the while, from the nodes and from
//! behind one of them, and a sniffer on the underlay looks for what is of the mesh.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::Duration;

use warren_netlink::{Host, Options, load_fence, table_name};
use warren_tests_fence::{
    Arrivals, Daemon, FWMARK, Flood, INTERFACE, Namespace, Node, Sniffed, Sniffer, Topology,
    config_of, observe, open_tun, patiently, state_directory,
};

const DAEMON: &str = env!("CARGO_BIN_EXE_fence-daemon");
/// The mesh, and somebody on the underlay, so that the sniffer is seen to work.
const TO_B: [&str; 6] = [
    "10.1.0.2",
    "10.1.2.5",
    "fd00:1::2",
    "fd00:1:2::5",
    "192.0.2.254",
    "2001:db8::fe",
];
const TO_A: [&str; 6] = [
    "10.1.0.1",
    "10.1.1.5",
    "fd00:1::1",
    "fd00:1:1::5",
    "192.0.2.254",
    "2001:db8::fe",
];
const ONE_SECOND: Duration = Duration::from_secs(1);

/// The network with traffic in all directions and a sniffer.
struct Scene {
    topology: Topology,
    floods: Vec<Flood>,
    sniffer: Sniffer,
}

impl Scene {
    /// Of every sort.
    fn new(topology: Topology) -> Self {
        Self::with(topology, true)
    }

    /// Without IPv4 sockets that are tied to an interface, which ignore rules.
    fn without_tied_sockets(topology: Topology) -> Self {
        Self::with(topology, false)
    }

    fn with(topology: Topology, tied: bool) -> Self {
        let sniffer = topology.sniffer();
        let floods = vec![
            Flood::start(&topology.a, &TO_B, FWMARK, tied),
            // The network behind a has addresses of the mesh, and may speak to the underlay under them.
            Flood::start(&topology.lan, &TO_B[..4], FWMARK, tied),
            Flood::start(&topology.b, &TO_A, FWMARK, tied),
        ];
        let scene = Self {
            topology,
            floods,
            sniffer,
        };
        scene.go_on();
        scene
    }

    /// Lets traffic flow for a while.
    fn go_on(&self) {
        let before: Vec<u64> = self.floods.iter().map(Flood::attempts).collect();
        patiently("traffic flows", Duration::from_secs(20), || {
            self.floods
                .iter()
                .zip(&before)
                .all(|(flood, before)| flood.attempts() > before + 800)
        });
    }

    fn end(self) -> (Topology, Sniffed) {
        for flood in self.floods {
            flood.stop();
        }
        (self.topology, self.sniffer.stop())
    }

    fn end_closed(self) -> Topology {
        let (topology, seen) = self.end();
        assert_closed(&seen);
        topology
    }
}

fn assert_closed(seen: &Sniffed) {
    assert!(
        seen.frames > 100,
        "the sniffer saw nothing at all: {seen:?}"
    );
    assert!(seen.leaks.is_empty(), "leaks: {:#?}", seen.leaks);
}

/// Two daemons, traffic of every sort, an attack on a; nothing leaks, and all is put back within a
/// second.
fn attacked(attack: impl FnOnce(&Namespace)) {
    attacked_on(false, Scene::new, attack);
}

/// The same on a kernel on which others can change the nftables table.
fn attacked_table(attack: impl FnOnce(&Namespace)) {
    attacked_on(true, Scene::without_tied_sockets, attack);
}

fn attacked_on(
    shared: bool,
    traffic: impl FnOnce(Topology) -> Scene,
    attack: impl FnOnce(&Namespace),
) {
    let topology = Topology::new();
    let daemon = Daemon::start(&topology.a, Node::A, DAEMON, shared);
    let other = Daemon::start(&topology.b, Node::B, DAEMON, shared);
    let scene = traffic(topology);

    attack(&scene.topology.a);
    let took = daemon.wait_until_whole(&scene.topology.a, Node::A);
    scene.go_on();

    assert!(took < ONE_SECOND, "put back after {took:?}");
    let topology = scene.end_closed();
    // The daemons end before their namespaces do.
    drop((daemon, other));
    drop(topology);
}

/// Converges once, without a daemon.
fn set_up(at: &Namespace, node: Node, options: Options) {
    let directory = state_directory(at);
    at.enter(move || {
        let config = config_of(node);
        drop(open_tun(&config.interface).expect("a TUN"));
        let mut host = Host::with_options(&directory, options).expect("netlink is there");
        let report = host.converge(&config).expect("a sound configuration");
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        assert!(report.rules_stand);
    });
}

/// All eight of them in a moment.
fn remove_rules(at: &Namespace) {
    let rules = ["-4", "-6"].map(|family| {
        (96..=99).map(move |priority| format!("ip {family} rule del priority {priority}"))
    });
    at.run_script(&rules.into_iter().flatten().collect::<Vec<_>>().join("\n"));
}

#[test]
fn without_a_fence_the_same_traffic_is_seen_in_the_clear() {
    let topology = Topology::new();
    topology.b.ip("addr add 10.1.0.2/32 dev lo");
    topology.b.ip("addr add fd00:1::2/128 dev lo");
    let arrivals = Arrivals::start(&topology.b);

    let (_topology, seen) = Scene::new(topology).end();

    // From the host and from behind it; UDP, ICMP and TCP; both families; both directions.
    for source in ["192.0.2.1", "10.1.1.5", "2001:db8::1", "fd00:1:1::5"] {
        let (kind, icmp, target) = if source.contains(':') {
            ("0x86dd", 58, "fd00:1:2::5")
        } else {
            ("0x0800", 1, "10.1.2.5")
        };
        for protocol in [17, 6, icmp] {
            let leak = format!("a: type {kind} protocol Some({protocol}) [{source}, {target}]");
            assert!(
                seen.leaks.contains_key(&leak),
                "{leak} in {:#?}",
                seen.leaks
            );
        }
    }
    assert!(
        seen.leaks.keys().any(|leak| leak.starts_with("b: ")),
        "{:#?}",
        seen.leaks
    );
    assert!(arrivals.stop()["plaintext of the mesh"] > 100);
}

#[test]
fn sigkill_of_the_daemon_leaves_the_fence_closed_and_a_restart_finds_it_whole() {
    let topology = Topology::new();
    let mut daemon = Daemon::start(&topology.a, Node::A, DAEMON, false);
    let _other = Daemon::start(&topology.b, Node::B, DAEMON, false);
    let scene = Scene::new(topology);
    let at = &scene.topology.a;

    daemon.kill();
    scene.go_on();
    let table = observe(at, Node::A)
        .tables
        .contains_key(&table_name(INTERFACE));
    assert!(table && at.run("ip rule").contains("lookup 51820"));
    assert!(
        at.run("ip route show table 51820")
            .contains("10.1.2.0/24 dev warren0")
    );

    let again = Daemon::start_in(at, Node::A, DAEMON, daemon.directory(), false);
    again.wait_until_whole(at, Node::A);
    scene.go_on();
    scene.end_closed();
}

#[test]
fn a_deleted_rule_leaks_nothing_and_is_put_back_within_a_second() {
    attacked(remove_rules);
}

#[test]
fn a_flushed_ruleset_leaks_nothing_and_is_put_back_within_a_second() {
    attacked_table(|at| {
        at.run("nft flush ruleset");
    });
}

#[test]
fn while_the_daemon_lives_its_table_outlasts_a_flushed_ruleset_and_cannot_be_changed() {
    let table = table_name(INTERFACE);
    attacked(|at| {
        at.run("nft add table inet others");
        at.run("nft flush ruleset");
        assert!(at.run("nft list tables").contains(&table));
        assert!(!at.run("nft list tables").contains("others"));
        for change in [
            format!("delete table inet {table}"),
            format!("flush chain inet {table} out"),
            format!("insert rule inet {table} out accept"),
            format!("delete element inet {table} mesh4 {{ 10.1.0.0/16 }}"),
        ] {
            assert!(!at.succeeds(&format!("nft {change}")), "{change}");
        }
    });
}

#[test]
fn a_tun_that_is_set_down_leaks_nothing_and_is_put_back_within_a_second() {
    attacked(|at| at.ip("link set warren0 down"));
}

#[test]
fn a_tun_that_is_deleted_leaks_nothing_and_is_put_back_within_a_second() {
    attacked(|at| at.ip("link del warren0"));
}

#[test]
fn a_replaced_route_leaks_nothing_and_is_put_back_within_a_second() {
    attacked(|at| {
        at.ip("route replace 10.1.2.0/24 via 192.0.2.254 metric 1024 table 51820");
        at.ip("route add 10.1.2.5/32 via 192.0.2.254 table 51820");
        at.ip("-6 route replace fd00:1:2::/64 via 2001:db8::fe metric 1024 table 51820");
        at.ip("-6 route add fd00:1:2::5/128 via 2001:db8::fe table 51820");
    });
}

#[test]
fn removed_addresses_leak_nothing_and_are_put_back_within_a_second() {
    attacked(|at| at.ip("addr flush dev warren0"));
}

#[test]
fn a_flushed_routing_table_leaks_nothing_and_is_put_back_within_a_second() {
    attacked(|at| {
        at.ip("-4 route flush table 51820");
        at.ip("-6 route flush table 51820");
    });
}

#[test]
fn a_hole_in_the_nftables_table_leaks_nothing_and_is_put_back_within_a_second() {
    let table = table_name(INTERFACE);
    for hole in [
        format!("insert rule inet {table} out accept"),
        format!("flush chain inet {table} out"),
        format!("delete element inet {table} mesh4 {{ 10.1.0.0/16 }}"),
        format!("add element inet {table} behind6 {{ fd00:1:2::/64 }}"),
        format!("add table inet {table} {{ flags dormant; }}"),
    ] {
        attacked_table(|at| {
            // A word each; nft joins them.
            at.run(&format!("nft {hole}"));
        });
    }
}

#[test]
fn everything_torn_down_in_turn_leaks_nothing_while_one_fence_stands() {
    attacked_table(|at| {
        // More often would be a fight, and be put back twice a second.
        for _ in 0..3 {
            at.run("nft flush ruleset");
            patiently("the table is back", ONE_SECOND, || {
                at.run("nft list tables").contains("warren")
            });
            remove_rules(at);
            patiently("the rules are back", ONE_SECOND, || {
                ["ip rule", "ip -6 rule"]
                    .iter()
                    .all(|list| at.run(list).contains("blackhole"))
            });
        }
    });
}

#[test]
fn the_rules_alone_are_closed() {
    let topology = Topology::new();
    for (at, node) in [(&topology.a, Node::A), (&topology.b, Node::B)] {
        set_up(at, node, Options::default());
        at.run("nft flush ruleset");
    }
    let scene = Scene::without_tied_sockets(topology);
    // With the tunnel and its routes, with the tunnel down, and without it.
    scene.topology.a.ip("link set warren0 down");
    scene.go_on();
    scene.topology.a.ip("link del warren0");
    scene.go_on();
    // And with nothing left in our table.
    scene.topology.a.ip("-4 route flush table 51820");
    scene.topology.a.ip("-6 route flush table 51820");
    scene.go_on();
    scene.end_closed();
}

#[test]
fn the_nftables_table_alone_is_closed() {
    let topology = Topology::new();
    for (at, node) in [(&topology.a, Node::A), (&topology.b, Node::B)] {
        set_up(at, node, Options::default());
        remove_rules(at);
    }
    let scene = Scene::new(topology);
    scene.topology.a.ip("link del warren0");
    scene.go_on();
    // Somebody else's interface that takes the name is not the tunnel.
    scene
        .topology
        .a
        .ip("link add warren0 type veth peer name other");
    scene.topology.a.ip("link set warren0 up");
    scene.topology.a.ip("link set other up");
    scene.topology.a.ip("route add 10.1.2.0/24 dev warren0");
    scene.go_on();
    scene.end_closed();
}

#[test]
fn a_rule_of_somebody_else_ahead_is_named_and_the_nftables_table_holds() {
    let topology = Topology::new();
    set_up(&topology.b, Node::B, Options::default());
    let directory = state_directory(&topology.a);
    let (tell, told) = channel();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let keeper = topology.a.thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let config = config_of(Node::A);
            let _tun = open_tun(INTERFACE).expect("a TUN");
            let mut host = Host::new(&directory).expect("netlink is there");
            loop {
                let report = host.converge(&config).expect("is sound");
                let names: Vec<String> = report.ahead.iter().map(ToString::to_string).collect();
                // Nobody asks any more at the end.
                let _ = tell.send((report.rules_stand, report.table_stands, names));
                tokio::select! {
                    _ = &mut stopped => return,
                    changed = host.changed() => changed.expect("netlink is there"),
                }
            }
        });
    });
    let told_of = |expected: &[&str]| loop {
        let (rules_stand, table_stands, names) =
            (told.recv_timeout(5 * ONE_SECOND)).unwrap_or_else(|_| panic!("never: {expected:?}"));
        if table_stands && names == expected {
            assert_eq!(rules_stand, expected.is_empty());
            return;
        }
    };
    told_of(&[]);
    let scene = Scene::new(topology);
    let at = &scene.topology.a;

    at.ip("rule add priority 90 lookup main");
    told_of(&["the IPv4 rule of preference 90 (lookup 254)"]);
    scene.go_on();
    at.ip("-6 rule add priority 90 lookup 100");
    at.ip("-6 route add fd00:1:2::/64 via 2001:db8::fe table 100");
    let both = [
        "the IPv4 rule of preference 90 (lookup 254)",
        "the IPv6 rule of preference 90 (lookup 100)",
    ];
    told_of(&both);
    scene.go_on();
    // A route in that table is heard of, too.
    at.ip("-6 route del fd00:1:2::/64 table 100");
    told_of(&both[..1]);
    // One that nobody reads to its end counts, whatever is in it.
    at.run_script(
        "seq 5000 | sed 's|.*|route add unreachable fd00:2::&/128 table 100|' | ip -6 -batch -",
    );
    told_of(&both);
    scene.go_on();
    at.ip("-6 route flush table 100");
    at.ip("rule del priority 90");
    told_of(&[]);

    let topology = scene.end_closed();
    let _ = stop.send(());
    keeper.join().expect("it does not panic");
    drop(topology);
}

#[test]
fn a_kernel_without_nftables_is_closed_by_the_rules() {
    let topology = Topology::new();
    let options = Options {
        without_nftables: true,
        ..Options::default()
    };
    for (at, node) in [(&topology.a, Node::A), (&topology.b, Node::B)] {
        set_up(at, node, options);
        assert_eq!(at.run("nft list tables"), "");
    }
    Scene::without_tied_sockets(topology).end_closed();
}

#[test]
fn after_a_reboot_the_fence_is_closed_before_any_interface_is_up() {
    let old = Topology::new();
    set_up(&old.a, Node::A, Options::default());
    set_up(&old.b, Node::B, Options::default());
    let directories = [state_directory(&old.a), state_directory(&old.b)];

    // The state directories are all that is left; the fences are there before the interfaces.
    let [a, b] = directories;
    let topology = Topology::with_boot(move |name, namespace| {
        let directory = match name {
            "a" => a.clone(),
            "b" => b.clone(),
            _ => return,
        };
        namespace.enter(move || load_fence(&directory).expect("the fence is loaded"));
    });
    assert!(topology.a.run("ip rule").contains("blackhole"));
    let topology = Scene::new(topology).end_closed();

    // Then each alone.
    for at in [&topology.a, &topology.b] {
        at.run("nft flush ruleset");
    }
    let topology = Scene::without_tied_sockets(topology).end_closed();
    for (at, old) in [(&topology.a, &old.a), (&topology.b, &old.b)] {
        let directory = state_directory(old);
        at.enter(move || load_fence(&directory).expect("the fence is loaded"));
        remove_rules(at);
    }
    let topology = Scene::new(topology).end_closed();

    // And the daemon starts on it.
    let directory = state_directory(&old.a);
    let daemon = Daemon::start_in(&topology.a, Node::A, DAEMON, &directory, false);
    let scene = Scene::new(topology);
    daemon.wait_until_whole(&scene.topology.a, Node::A);
    scene.go_on();
    scene.end_closed();
}

#[test]
fn what_is_behind_a_node_is_not_sent_by_the_default_route_when_its_interface_is_gone() {
    let topology = Topology::new();
    set_up(&topology.a, Node::A, Options::default());
    topology.a.ip("link set lan0 down");
    let sniffer = topology.sniffer();
    let flood = Flood::start(
        &topology.a,
        &["10.1.1.5", "fd00:1:1::5", "192.0.2.254"],
        FWMARK,
        false,
    );
    patiently("traffic", Duration::from_secs(10), || {
        flood.attempts() > 1000
    });
    flood.stop();
    assert_closed(&sniffer.stop());
}

#[test]
fn plaintext_from_the_mesh_s_addresses_does_not_enter() {
    let topology = Topology::new();
    set_up(&topology.a, Node::A, Options::default());
    let at_a = Arrivals::start(&topology.a);
    let behind_a = Arrivals::start(&topology.lan);
    for prefix in ["10.1.0.0/16", "fd00:1::/32"] {
        let gateway = if prefix.contains(':') {
            "2001:db8::1"
        } else {
            "192.0.2.1"
        };
        topology
            .stranger
            .ip(&format!("route add {prefix} via {gateway}"));
    }
    let v4 = ["192.0.2.1", "10.1.0.1", "10.1.1.5"];
    let v6 = ["2001:db8::1", "fd00:1::1", "fd00:1:1::5"];
    let flood = |source: &str| {
        let targets = if source.contains(':') { v6 } else { v4 };
        Flood::start_as(&topology.stranger, source, &targets)
    };
    // As b, as somebody behind b, as somebody behind a.
    let as_others = [
        ["10.1.0.2", "10.1.2.5", "10.1.1.77"],
        ["fd00:1::2", "fd00:1:2::5", "fd00:1:1::77"],
    ];
    // And under its own name: to the underlay it may speak, and to what is behind a if that
    // forwards, but not to the address in the mesh.
    let sources = as_others.as_flattened().iter();
    let sources = sources.chain(&["192.0.2.66", "2001:db8::66"]);
    let mut floods: Vec<Flood> = sources.map(|source| flood(source)).collect();
    let traffic = |floods: &[Flood]| {
        patiently("traffic", Duration::from_secs(10), || {
            let drops = drops(&topology.a);
            let counters = ["in_mesh", "in_spoofed", "in_destination"];
            let are_dropped = counters.iter().all(|counter| drops[*counter] > 50);
            are_dropped && floods.iter().all(|flood| flood.attempts() > 300)
        });
    };
    traffic(&floods);
    // As a itself, after which what it sends to that address goes nowhere.
    floods.extend(["10.1.0.1", "fd00:1::1"].map(flood));
    traffic(&floods);
    for flood in floods {
        flood.stop();
    }

    let said = |arrived: BTreeMap<String, u64>| arrived.into_keys().collect::<Vec<_>>();
    assert_eq!(
        said(at_a.stop()),
        ["192.0.2.66 to 192.0.2.1", "2001:db8::66 to 2001:db8::1"]
    );
    let expected = ["192.0.2.66 to 10.1.1.5", "2001:db8::66 to fd00:1:1::5"];
    assert_eq!(said(behind_a.stop()), expected);
}

fn drops(at: &Namespace) -> BTreeMap<String, u64> {
    let observed = observe(at, Node::A);
    observed.drops(&warren_netlink::Claim::of(&config_of(Node::A)))
}

#[test]
fn what_is_behind_a_node_still_reaches_the_node_the_underlay_and_is_reached() {
    let topology = Topology::new();
    set_up(&topology.a, Node::A, Options::default());
    let at_a = Arrivals::start(&topology.a);
    let at_stranger = Arrivals::start(&topology.stranger);
    let behind_a = Arrivals::start(&topology.lan);
    topology.stranger.ip("route add 10.1.1.0/24 via 192.0.2.1");
    topology
        .stranger
        .ip("route add fd00:1:1::/64 via 2001:db8::1");
    let lan = &topology.lan;
    let floods = [
        Flood::start_as(lan, "10.1.1.5", &["10.1.0.1", "10.1.1.254", "192.0.2.66"]),
        Flood::start_as(
            lan,
            "fd00:1:1::5",
            &["fd00:1::1", "fd00:1:1::fe", "2001:db8::66"],
        ),
        Flood::start_as(&topology.a, "10.1.1.254", &["10.1.1.5", "10.1.0.1"]),
        Flood::start_as(
            &topology.a,
            "10.1.0.1",
            &["10.1.1.5", "10.1.0.1", "192.0.2.1"],
        ),
    ];
    patiently("traffic", Duration::from_secs(10), || {
        floods.iter().all(|flood| flood.attempts() > 300)
    });
    for flood in floods {
        let (attempts, sent) = flood.stop();
        assert_eq!(attempts, sent);
    }
    let said = |arrivals: Arrivals| arrivals.stop().into_keys().collect::<Vec<_>>();
    let expected = [
        "10.1.0.1 to 10.1.0.1",
        "10.1.0.1 to 192.0.2.1",
        "10.1.1.254 to 10.1.0.1",
        "10.1.1.5 to 10.1.0.1",
        "10.1.1.5 to 10.1.1.254",
        "fd00:1:1::5 to fd00:1:1::fe",
        "fd00:1:1::5 to fd00:1::1",
    ];
    assert_eq!(said(at_a), expected);
    let expected = ["10.1.1.5 to 192.0.2.66", "fd00:1:1::5 to 2001:db8::66"];
    assert_eq!(said(at_stranger), expected);
    assert_eq!(
        said(behind_a),
        ["10.1.0.1 to 10.1.1.5", "10.1.1.254 to 10.1.1.5"]
    );
    assert!(
        drops(&topology.a).values().all(|count| *count == 0),
        "{:?}",
        drops(&topology.a)
    );
}

#[test]
fn a_packet_from_a_peer_to_what_is_not_this_node_s_is_dropped_and_counted() {
    use std::io::Write;

    let topology = Topology::new();
    set_up(&topology.a, Node::A, Options::default());
    let at_a = Arrivals::start(&topology.a);
    let behind_a = Arrivals::start(&topology.lan);
    let at_stranger = Arrivals::start(&topology.stranger);
    topology.a.enter(|| {
        // What the engine would write: packets that a peer sent.
        let mut tun = open_tun(INTERFACE).expect("the TUN");
        for _ in 0..10 {
            for target in ["10.1.0.1", "10.1.1.5"] {
                tun.write_all(&datagram("10.1.2.5", target))
                    .expect("a packet");
            }
            for target in [
                "192.0.2.66",
                "10.1.2.9",
                "169.254.169.254",
                "127.0.0.1",
                "192.0.2.1",
            ] {
                tun.write_all(&datagram("10.1.2.5", target))
                    .expect("a packet");
            }
        }
    });
    patiently("the packets are seen", ONE_SECOND, || {
        drops(&topology.a)["in_foreign"] >= 50
    });

    assert_eq!(drops(&topology.a)["in_foreign"], 50);
    assert_eq!(at_a.stop().values().sum::<u64>(), 10);
    assert_eq!(behind_a.stop().values().sum::<u64>(), 10);
    assert_eq!(at_stranger.stop(), BTreeMap::new());
}

/// An IPv4 packet with a UDP datagram without checksum.
fn datagram(source: &str, target: &str) -> Vec<u8> {
    let octets = |ip: &str| {
        ip.parse::<std::net::Ipv4Addr>()
            .expect("an address")
            .octets()
    };
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(octets(source));
    packet.extend(octets(target));
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("is folded");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend([0x30, 0x39]);
    packet.extend(warren_tests_fence::LISTEN_PORT.to_be_bytes());
    packet.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    packet
}
