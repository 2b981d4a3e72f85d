//! What this host sends into the tunnel from addresses that peers do not take from it: sockets bound to the
//! node's own address, services, ports of the node. On every interface reverse paths are checked strictly.

use std::time::Duration;

use ipnet::IpNet;
use warren_config::HostConfig;
use warren_netlink::{Host, Options};
use warren_tests_fence::{
    INTERFACE, Namespace, Node, Relay, Topology, config_of, open_tun, patiently, state_directory,
};

/// A node whose tunnel has the address that is its prefix's name.
fn config(node: Node) -> HostConfig {
    let number = match node {
        Node::A => 1,
        Node::B => 2,
    };
    let mut config = config_of(node);
    let addresses = [format!("10.1.{number}.0"), format!("fd00:1:{number}::")];
    config.addresses = addresses.map(|ip| ip.parse().expect("an address")).into();
    let hosts = config.addresses.iter().map(|address| IpNet::from(*address));
    config.fence.local.extend(hosts);
    config.masquerade = true;
    config
}

fn converge(at: &Namespace, config: &HostConfig) -> usize {
    let (directory, config) = (state_directory(at), config.clone());
    at.enter(move || {
        // Adopting a table whose owner is gone would be a change.
        let options = Options {
            without_exclusive: true,
            ..Options::default()
        };
        let mut host = Host::with_options(&directory, options).expect("netlink is there");
        let report = host.converge(&config).expect("a sound configuration");
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        assert!(report.masquerades);
        report.changed.len()
    })
}

struct Scene {
    topology: Topology,
    behind_b: Namespace,
    relays: [Relay; 2],
}

fn scene(change: impl Fn(&mut HostConfig)) -> Scene {
    let topology = Topology::new();
    let behind_b = topology.lan_behind_b();
    for (at, node) in [(&topology.a, Node::A), (&topology.b, Node::B)] {
        let mut config = config(node);
        change(&mut config);
        at.enter(|| drop(open_tun(INTERFACE).expect("a TUN")));
        converge(at, &config);
    }
    // Before the loose setting of the tunnel is put back by the next look.
    topology.check_reverse_paths();
    for (at, node) in [(&topology.a, Node::A), (&topology.b, Node::B)] {
        let mut config = config(node);
        change(&mut config);
        converge(at, &config);
    }
    let of_a: &[&str] = &["10.1.1.0/24", "fd00:1:1::/64"];
    let of_b: &[&str] = &["10.1.2.0/24", "fd00:1:2::/64"];
    let relays = [
        Relay::start(&topology.a, &[(of_b, "192.0.2.2")]),
        Relay::start(&topology.b, &[(of_a, "192.0.2.1")]),
    ];
    Scene {
        topology,
        behind_b,
        relays,
    }
}

#[track_caller]
fn answers(from: &Namespace, source: &str, target: &str) {
    patiently(
        &format!("{target} answers {source}"),
        Duration::from_secs(5),
        || ping(from, source, target),
    );
}

fn ping(from: &Namespace, source: &str, target: &str) -> bool {
    let source = match source {
        "" => String::new(),
        source => format!("-I {source}"),
    };
    from.succeeds(&format!("ping -n -c 1 -W 1 {source} {target}"))
}

#[test]
fn a_host_reaches_pods_of_others_and_pods_reach_it_whatever_address_it_speaks_from() {
    let scene = scene(|_| ());
    let Topology { a, b, lan, .. } = &scene.topology;
    let sniffer = scene.topology.sniffer();
    for (pod, source) in [("10.1.2.5", "192.0.2.1"), ("fd00:1:2::5", "2001:db8::1")] {
        answers(a, "", pod);
        answers(a, source, pod);
        answers(lan, "", pod);
    }
    // From the address behind it, which is in its prefix, it is taken as it is.
    answers(a, "10.1.1.254", "10.1.2.5");
    answers(a, "fd00:1:1::fe", "fd00:1:2::5");
    for (pod, host) in [("10.1.2.5", "10.1.1.0"), ("fd00:1:2::5", "fd00:1:1::")] {
        answers(&scene.behind_b, pod, host);
    }
    answers(&scene.behind_b, "10.1.2.5", "10.1.1.254");
    answers(b, "192.0.2.2", "10.1.1.0");
    let seen = sniffer.stop();
    assert!(seen.frames > 20 && seen.leaks.is_empty(), "{seen:?}");
    for relay in &scene.relays {
        assert_eq!(relay.refused(), 0);
    }
}

#[test]
fn without_it_a_host_is_not_answered_under_its_own_address() {
    let scene = scene(|config| config.masquerade = false);
    let a = &scene.topology.a;
    answers(a, "", "10.1.2.5");
    assert!(!ping(a, "192.0.2.1", "10.1.2.5"));
    assert!(!ping(a, "2001:db8::1", "fd00:1:2::5"));
    assert!(scene.relays[1].refused() >= 2);
    assert_eq!(a.run("nft list tables").lines().count(), 1);
}

#[test]
fn a_service_and_a_port_of_another_node_lead_to_a_pod() {
    let scene = scene(|_| ());
    let Topology { a, stranger, .. } = &scene.topology;
    // What kube-proxy writes, in short.
    a.run_script(
        "nft -f - <<-'R'
        table ip services {
            chain to {
                ip daddr 10.96.0.10 udp dport 53 dnat to 10.1.2.5:7777
                ip daddr 192.0.2.1 udp dport 30080 meta mark set meta mark | 0x4000 dnat to 10.1.2.5:7777
            }
            chain in { type nat hook prerouting priority -100; goto to; }
            chain own { type nat hook output priority -100; goto to; }
            chain out {
                type nat hook postrouting priority 100;
                meta mark & 0x4000 == 0x4000 masquerade
            }
        }
        table ip6 services {
            chain to {
                ip6 daddr fd96::10 udp dport 53 dnat to [fd00:1:2::5]:7777
                ip6 daddr 2001:db8::1 udp dport 30080 meta mark set meta mark | 0x4000 dnat to [fd00:1:2::5]:7777
            }
            chain in { type nat hook prerouting priority -100; goto to; }
            chain own { type nat hook output priority -100; goto to; }
            chain out {
                type nat hook postrouting priority 100;
                meta mark & 0x4000 == 0x4000 masquerade
            }
        }
R",
    );
    let echo = scene.behind_b.spawn(
        "python3",
        &[
            "-c",
            "import socket\n\
             s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
             s.bind(('::', 7777))\n\
             while True:\n    d, p = s.recvfrom(99)\n    s.sendto(p[0].encode(), p)\n",
        ],
    );
    let mut echo = Ended(echo);
    let asked = |from: &Namespace, address: &str, port: u16| -> String {
        let script = format!(
            "import socket\n\
             f = socket.AF_INET6 if ':' in '{address}' else socket.AF_INET\n\
             for _ in range(20):\n    s = socket.socket(f, socket.SOCK_DGRAM)\n    \
             s.settimeout(0.3)\n    s.sendto(b'x', ('{address}', {port}))\n    \
             try:\n        print(s.recv(99).decode())\n        break\n    \
             except OSError:\n        pass\n"
        );
        let directory = state_directory(from);
        let path = directory.join("ask.py");
        std::fs::write(&path, script).expect("a file");
        from.run(&format!("python3 {}", path.display()))
            .trim()
            .to_owned()
    };
    // From the host itself, by a service's address, which only the default route knows.
    assert_eq!(asked(a, "10.96.0.10", 53), "::ffff:10.1.1.0");
    assert_eq!(asked(a, "fd96::10", 53), "fd00:1:1::");
    // From elsewhere, by a port of a node that has not the pod.
    assert_eq!(asked(stranger, "192.0.2.1", 30080), "::ffff:10.1.1.0");
    assert_eq!(asked(stranger, "2001:db8::1", 30080), "fd00:1:1::");
    echo.0.kill().expect("it runs");
}

struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Behaviours 40 and 41.
#[test]
fn its_tables_are_written_once_put_back_when_flushed_and_gone_after_uninstalling() {
    let scene = scene(|_| ());
    let a = &scene.topology.a;
    let config = config(Node::A);
    assert_eq!(converge(a, &config), 0);

    a.run("nft flush ruleset");
    assert_eq!(converge(a, &config), 3);
    answers(a, "192.0.2.1", "10.1.2.5");
    a.run("nft flush chain ip warren-warren0 out");
    a.run("nft delete element ip6 warren-warren0 own6 { fd00:1:1::/64 }");
    assert_eq!(converge(a, &config), 2);
    assert_eq!(converge(a, &config), 0);

    let mut without = config.clone();
    without.masquerade = false;
    assert_eq!(converge(a, &without), 2);
    assert_eq!(a.run("nft list tables").lines().count(), 1);
    converge(a, &config);
    let directory = state_directory(a);
    a.enter(move || {
        let host = Host::new(&directory).expect("netlink is there");
        host.uninstall().expect("all of it can be removed");
    });
    assert_eq!(a.run("nft list tables"), "");
}

#[test]
fn a_kernel_that_cannot_translate_is_said_to_and_fenced_all_the_same() {
    let topology = Topology::new();
    let directory = state_directory(&topology.a);
    topology.a.enter(move || {
        drop(open_tun(INTERFACE).expect("a TUN"));
        let options = Options {
            without_masquerade: true,
            ..Options::default()
        };
        let mut host = Host::with_options(&directory, options).expect("netlink is there");
        let report = host
            .converge(&config(Node::A))
            .expect("a sound configuration");
        assert!(report.rules_stand && report.table_stands && !report.masquerades);
    });
    assert_eq!(topology.a.run("nft list tables").lines().count(), 1);
}
