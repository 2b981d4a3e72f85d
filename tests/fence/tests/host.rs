//! The host as it is made, kept, left alone and given back. Behaviours 40, 41 and 43.

use std::time::Duration;

use warren_netlink::{Change, Conflict, Host, HostError, Occupied, Options, conflicts, table_name};
use warren_tests_fence::{
    Daemon, FWMARK, Flood, INTERFACE, Namespace, Node, Topology, config_of, observe, open_tun,
    patiently, state_directory,
};

const DAEMON: &str = env!("CARGO_BIN_EXE_fence-daemon");

/// Everything that the tools of others show of a host, but for what traffic counts and for whose the
/// nftables table and the TUN are at the moment.
fn shown(at: &Namespace) -> Vec<String> {
    let lists = [
        "nft list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "ip -o link",
        "ip -o addr",
    ];
    let passing = [
        ("NO-CARRIER,", ""),
        (",LOWER_UP", ""),
        (" linkdown", ""),
        ("state DOWN", "state UNKNOWN"),
        (" # progname fence-daemon", ""),
    ];
    let text = lists.map(|list| at.run(list)).concat();
    let text = passing
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to));
    let lines = text.lines();
    lines
        .filter(|line| !line.contains("packets") && !line.contains("flags"))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn assert_same(left: &[String], right: &[String]) {
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .cloned()
            .collect()
    };
    assert_eq!(only(left, right), only(right, left));
}

/// A firewall, a rule and a table of somebody else.
fn others(at: &Namespace) {
    at.run("nft add table inet filter");
    at.run("nft add chain inet filter input { type filter hook input priority 0 ; }");
    at.run("nft add rule inet filter input counter accept");
    at.ip("rule add to 203.0.113.0/24 lookup 100 priority 99");
    at.ip("route add 203.0.113.0/24 via 192.0.2.254 table 100");
}

#[test]
fn a_second_converge_changes_nothing_and_the_kernel_hears_of_none() {
    let topology = Topology::new();
    let directory = state_directory(&topology.a);
    topology.a.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let config = config_of(Node::A);
            let _tun = open_tun(INTERFACE).expect("a TUN");
            let mut host = Host::new(&directory).expect("netlink is there");
            assert!(!host.converge(&config).expect("is sound").changed.is_empty());
            // What the first has done is heard of.
            host.changed().await.expect("netlink is there");
            for _ in 0..3 {
                let report = host.converge(&config).expect("is sound");
                assert_eq!(report.changed, []);
                let silence = Duration::from_millis(300);
                let heard = tokio::time::timeout(silence, host.changed()).await;
                assert!(heard.is_err(), "somebody wrote something");
            }
        });
    });
}

#[test]
fn sigterm_and_sigkill_leave_everything_in_place_and_uninstalling_removes_all_and_only_what_is_ours()
 {
    for signal in ["TERM", "KILL"] {
        let topology = Topology::new();
        let at = &topology.a;
        others(at);
        let before = shown(at);
        let mut daemon = Daemon::start(at, Node::A, DAEMON, false);
        let running = shown(at);
        daemon.signal(signal);
        assert_same(&shown(at), &running);

        let directory = state_directory(at);
        let changed = at.enter(move || {
            let host = Host::new(&directory).expect("netlink is there");
            host.uninstall().expect("nobody holds it")
        });
        assert!(
            changed
                .iter()
                .any(|change| matches!(change, Change::RemoveLink(_)))
        );
        assert_same(&shown(at), &before);
        let left = std::fs::read_dir(state_directory(at))
            .expect("a directory")
            .count();
        assert_eq!(left, 0);
    }
}

#[test]
fn uninstalling_while_the_daemon_lives_is_refused_and_takes_nothing_away() {
    let topology = Topology::new();
    let _daemon = Daemon::start(&topology.a, Node::A, DAEMON, false);
    let before = shown(&topology.a);
    let directory = state_directory(&topology.a);
    let refused = topology.a.enter(move || {
        let host = Host::new(&directory).expect("netlink is there");
        host.uninstall().expect_err("the daemon holds the table")
    });
    assert!(matches!(refused, HostError::Refused { .. }), "{refused}");
    assert_same(&shown(&topology.a), &before);
}

#[test]
fn what_is_in_use_by_others_is_refused_by_name_and_left_alone() {
    let topology = Topology::new();
    let at = &topology.a;
    at.run(&format!("nft add table inet {}", table_name(INTERFACE)));
    at.ip("route add 203.0.113.0/24 via 192.0.2.254 table 51820");
    at.ip(&format!("link add {INTERFACE} type veth peer name other"));
    let before = shown(at);
    let directory = state_directory(at);
    let refused = at.enter(move || {
        let mut host = Host::new(&directory).expect("netlink is there");
        host.converge(&config_of(Node::A))
            .expect_err("it is in use")
    });
    let HostError::Occupied(found) = refused else {
        panic!("{refused}");
    };
    assert!(matches!(
        found[..],
        [
            Occupied::Interface(_),
            Occupied::RoutingTable { .. },
            Occupied::Nftables(_)
        ]
    ));
    assert_same(&shown(at), &before);
}

#[test]
fn prefixes_over_the_underlay_the_gateway_or_an_endpoint_are_found_on_the_host() {
    let topology = Topology::new();
    let directory = state_directory(&topology.a);
    topology.a.enter(move || {
        let mut host = Host::new(&directory).expect("netlink is there");
        let mut config = config_of(Node::A);
        let surroundings = host.surroundings(&config).expect("netlink answers");
        let peer = "192.0.2.2:51820".parse().expect("an endpoint");
        // The machine that runs the tests may have a resolver anywhere.
        let relevant = |config: &_, endpoints: Vec<_>| -> Vec<Conflict> {
            let found = conflicts(&surroundings, config, endpoints);
            found
                .into_iter()
                .filter(|found| !matches!(found, Conflict::Resolver { .. }))
                .collect()
        };
        assert_eq!(relevant(&config, vec![peer]), []);

        config
            .fence
            .mesh
            .insert("192.0.2.0/24".parse().expect("a prefix"));
        config
            .fence
            .mesh
            .insert("2001:db8::/32".parse().expect("a prefix"));
        let found = relevant(&config, vec![peer]);
        let count =
            |is: fn(&Conflict) -> bool| found.iter().filter(|conflict| is(conflict)).count();
        assert_eq!(
            count(|conflict| matches!(conflict, Conflict::Underlay { .. })),
            2,
            "{found:?}"
        );
        assert_eq!(
            count(|conflict| matches!(conflict, Conflict::Gateway { .. })),
            2,
            "{found:?}"
        );
        assert_eq!(
            count(|conflict| matches!(conflict, Conflict::Endpoint { .. })),
            1,
            "{found:?}"
        );
        assert_eq!(found.len(), 5);
    });
}

#[test]
fn a_program_that_keeps_deleting_what_is_ours_is_reported_and_causes_no_storm() {
    let topology = Topology::new();
    let directory = state_directory(&topology.a);
    let vandal = topology.a.thread(|| {
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        for _ in 0..400 {
            let mut command = std::process::Command::new("ip");
            let _ = command.args(["rule", "del", "priority", "98"]).output();
            let _ = never.recv_timeout(Duration::from_millis(8));
        }
    });
    let (repairs, contested) = topology.a.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let config = config_of(Node::A);
            let _tun = open_tun(INTERFACE).expect("a TUN");
            let mut host = Host::new(&directory).expect("netlink is there");
            let (mut repairs, mut contested) = (0, false);
            let four_seconds = tokio::time::sleep(Duration::from_secs(4));
            tokio::pin!(four_seconds);
            loop {
                let report = host.converge(&config).expect("is sound");
                repairs += u32::from(!report.changed.is_empty());
                contested |= report.contested;
                tokio::select! {
                    () = &mut four_seconds => return (repairs, contested),
                    changed = host.changed() => changed.expect("netlink is there"),
                }
            }
        })
    });
    vandal.join().expect("it ends");
    assert!(contested);
    assert!((20..=30).contains(&repairs), "{repairs} repairs");
}

#[test]
fn a_state_directory_that_is_gone_is_reported_and_the_fence_is_put_back_all_the_same() {
    let topology = Topology::new();
    let directory = state_directory(&topology.a);
    topology.a.enter(move || {
        let config = config_of(Node::A);
        let _tun = open_tun(INTERFACE).expect("a TUN");
        let mut host = Host::new(&directory).expect("netlink is there");
        assert!(host.converge(&config).expect("is sound").unsaved.is_none());
        std::fs::remove_dir_all(&directory).expect("is there");
        let deleted = std::process::Command::new("ip")
            .args(["rule", "del", "priority", "99"])
            .status();
        assert!(deleted.expect("ip(8) is there").success());
        let report = host.converge(&config).expect("is sound");
        assert!(report.unsaved.is_some() && report.rules_stand);
        assert_eq!(report.changed.len(), 1);
    });
}

#[test]
fn a_kernel_without_the_fib_expression_has_the_rest_of_the_fence() {
    let topology = Topology::new();
    let directory = state_directory(&topology.a);
    let options = Options {
        without_way_back: true,
        ..Options::default()
    };
    let report = topology.a.enter(move || {
        let _tun = open_tun(INTERFACE).expect("a TUN");
        let mut host = Host::with_options(&directory, options).expect("netlink is there");
        host.converge(&config_of(Node::A)).expect("is sound")
    });
    assert!(report.table_stands && report.rules_stand);
    let ruleset = topology.a.run("nft list ruleset");
    assert!(!ruleset.contains("fib") && ruleset.contains("out_mesh"));
}

#[test]
fn marked_packets_of_the_tunnel_itself_leave_by_the_underlay() {
    let topology = Topology::new();
    let _daemon = Daemon::start(&topology.a, Node::A, DAEMON, false);
    let flood = Flood::start(&topology.a, &["192.0.2.2", "2001:db8::2"], FWMARK, true);
    patiently("traffic", Duration::from_secs(5), || flood.attempts() > 500);
    let (attempts, sent) = flood.stop();
    assert_eq!(attempts, sent);
    assert!(observe(&topology.a, Node::A).link(INTERFACE).is_some());
}

#[test]
fn the_mtu_of_the_underlay_and_the_largest_behind_a_node_are_told() {
    let topology = Topology::new();
    let a = &topology.a;
    a.ip("link set eth0 mtu 1450");
    a.ip("link set lan0 mtu 1400");
    let directory = state_directory(a);
    let surroundings = |config: warren_config::HostConfig| {
        let directory = directory.clone();
        a.enter(move || {
            let mut host = Host::new(&directory).expect("netlink is there");
            host.surroundings(&config).expect("netlink answers")
        })
    };
    let of_prefixes = surroundings(config_of(Node::A));
    for address in ["192.0.2.1", "2001:db8::1"] {
        let address = address.parse().expect("an address");
        assert_eq!(of_prefixes.mtu_at(address), Some(("eth0", 1450)));
    }
    assert_eq!(
        of_prefixes.mtu_at("192.0.2.9".parse().expect("an address")),
        None
    );
    assert_eq!(of_prefixes.mtu_behind(), Some(("lan0", 1400)));

    // A bridge with a port that carries more, as one that pods are on.
    a.ip("link add cni0 type bridge");
    a.ip("link add pod0 mtu 9000 type veth peer name pod1");
    a.ip("link set pod0 master cni0");
    a.ip("link set cni0 mtu 1300 up");
    a.ip("addr add 10.1.1.129/25 dev cni0");
    assert_eq!(
        surroundings(config_of(Node::A)).mtu_behind(),
        Some(("pod0", 9000))
    );

    // Of an overlay it is what wraps its packets.
    a.ip("link add vx0 type vxlan id 1 local 192.0.2.1 dstport 8472");
    a.ip("link set vx0 mtu 1390");
    let mut overlay = config_of(Node::A);
    let ports = [8472].into();
    overlay.steering = warren_config::Steering::Overlay { ports };
    let found = surroundings(overlay);
    assert_eq!(found.mtu_behind(), Some(("vx0", 1390)));
    assert_eq!(found.overlays, ["vx0".to_owned()].into());
}

/// The host of one node of five thousand, each with a prefix for 256 pods and an address in it.
fn of_five_thousand() -> warren_config::HostConfig {
    let mut config = config_of(Node::A);
    let node = |number: u16| std::net::Ipv4Addr::from((10 << 24) | (u32::from(number) << 8));
    let nets = |number: u16| {
        let net = |length| ipnet::Ipv4Net::new_assert(node(number), length).into();
        [net(24), net(32)]
    };
    config.addresses = [node(0).into()].into();
    config.routes = (1..5000).flat_map(nets).collect();
    config.fence.local = nets(0).into();
    config.masquerade = true;
    config
}

// Behaviour 40.
#[test]
fn a_look_at_the_host_of_one_of_five_thousand_nodes_is_short_and_writes_nothing() {
    let topology = Topology::new();
    let directory = state_directory(&topology.a);
    let times = topology.a.enter(move || {
        drop(open_tun(INTERFACE).expect("a TUN"));
        let mut host = Host::new(&directory).expect("netlink is there");
        let mut strict = of_five_thousand();
        strict.fence.mesh = ["10.0.0.0/8".parse().expect("a prefix")].into();
        let mut staged = strict.clone();
        staged.fence.mesh = strict
            .routes
            .iter()
            .filter(|net| net.prefix_len() == 24)
            .copied()
            .collect();
        staged.fence.inward = false;
        let mut times = Vec::new();
        for (name, config) in [("strict", strict), ("staged", staged)] {
            let mut made = 0;
            let first = patiently("the host is made", Duration::from_secs(60), || {
                let report = host.converge(&config).expect("a sound configuration");
                assert!(report.refused.is_empty(), "{:?}", report.refused);
                made = report.changed.len();
                true
            });
            let looks = 3;
            let all = patiently("the host is looked at", Duration::from_secs(60), || {
                for _ in 0..looks {
                    let report = host.converge(&config).expect("a sound configuration");
                    assert!(report.changed.is_empty(), "{:?}", report.changed);
                }
                true
            });
            times.push((name, made, first, all / looks));
        }
        times
    });
    for (name, made, first, look) in times {
        println!("{name}: {made} changes in {first:?}, then {look:?} a look");
        // Of a program that is not optimised, on a machine that has other things to do. To compare every
        // route with every other took minutes.
        assert!(look < Duration::from_secs(15), "{look:?}");
    }
}
