//! Tunnels between `warren-wg` and other implementations, in both roles, over both families.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use warren_tests_interop::{Host, Outer, Program, Tunnel, patiently};

const PSK: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
const OTHER_PSK: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=";

#[test]
fn warren_calls_warren_over_ipv4() {
    carries(Program::Warren, Program::Warren, Outer::V4);
}

#[test]
fn warren_calls_warren_over_ipv6() {
    carries(Program::Warren, Program::Warren, Outer::V6);
}

#[test]
fn warren_calls_wireguard_go_over_ipv4() {
    carries(Program::Warren, Program::WireguardGo, Outer::V4);
}

#[test]
fn warren_calls_wireguard_go_over_ipv6() {
    carries(Program::Warren, Program::WireguardGo, Outer::V6);
}

#[test]
fn wireguard_go_calls_warren_over_ipv4() {
    carries(Program::WireguardGo, Program::Warren, Outer::V4);
}

#[test]
fn wireguard_go_calls_warren_over_ipv6() {
    carries(Program::WireguardGo, Program::Warren, Outer::V6);
}

#[test]
fn warren_calls_boringtun_over_ipv4() {
    carries(Program::Warren, Program::Boringtun, Outer::V4);
}

#[test]
fn warren_calls_boringtun_over_ipv6() {
    carries(Program::Warren, Program::Boringtun, Outer::V6);
}

#[test]
fn boringtun_calls_warren_over_ipv4() {
    carries(Program::Boringtun, Program::Warren, Outer::V4);
}

#[test]
fn boringtun_calls_warren_over_ipv6() {
    carries(Program::Boringtun, Program::Warren, Outer::V6);
}

/// The caller knows where the other is, the other does not: both families inside, large packets too,
/// and both ends agree on what was carried.
fn carries(caller: Program, called: Program, outer: Outer) {
    let ends = Tunnel::with_preshared(caller, called, outer, Some([PSK, PSK]));
    assert!(ends.caller.reaches("10.9.0.2"), "{}", ends.describe());
    assert!(ends.called.reaches("fd09::1"));
    ends.caller.run("ping -q -c 20 -i 0.01 -s 8000 10.9.0.2");
    ends.called.run("ping -q -c 20 -i 0.01 -s 8000 10.9.0.1");
    for (host, program) in [(&ends.caller, caller), (&ends.called, called)] {
        let handshake = host.run("wg show wg0 latest-handshakes");
        // boringtun tells how long ago it was, which is not what was asked.
        let told = !matches!(program, Program::Boringtun);
        assert!(!told || !handshake.ends_with("\t0\n"), "{handshake}");
        let transfer = host.run("wg show wg0 transfer");
        for bytes in transfer.split_whitespace().skip(1) {
            assert!(
                bytes.parse::<u64>().expect("a number") > 2 * 20 * 8000,
                "{transfer}"
            );
        }
    }
}

#[test]
fn preshared_keys_that_differ_let_nothing_through_until_they_agree() {
    let differing = Some([PSK, OTHER_PSK]);
    let ends = Tunnel::with_preshared(Program::Warren, Program::WireguardGo, Outer::V4, differing);
    assert!(!ends.caller.reaches("10.9.0.2"));
    ends.set_preshared([PSK, PSK]);
    patiently("a handshake with the right key", || {
        ends.caller.reaches("10.9.0.2")
    });
}

#[test]
fn a_new_preshared_key_tears_nothing_down() {
    let ends = Tunnel::new(Program::Warren, Program::WireguardGo, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    ends.set_preshared([PSK, OTHER_PSK]);
    ends.caller.run("ping -q -c 5 -i 0.05 -W 1 10.9.0.2");
}

#[test]
fn each_follows_the_other_to_a_new_port() {
    let ends = Tunnel::new(Program::Warren, Program::WireguardGo, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    ends.caller.run("wg set wg0 listen-port 4000");
    assert!(ends.caller.reaches("10.9.0.2"));
    assert!(
        ends.called
            .run("wg show wg0 endpoints")
            .ends_with("192.0.2.1:4000\n")
    );
    ends.called.run("wg set wg0 listen-port 4001");
    assert!(ends.called.reaches("10.9.0.1"));
    assert!(
        ends.caller
            .run("wg show wg0 endpoints")
            .ends_with("192.0.2.2:4001\n")
    );
}

#[test]
fn each_follows_the_other_to_a_new_address() {
    let ends = Tunnel::new(Program::Warren, Program::Warren, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    for (address, former) in [("192.0.2.77", "192.0.2.1"), ("192.0.2.78", "192.0.2.77")] {
        // The source address that was in use disappears, and the next packet takes another.
        ends.caller
            .run(&format!("ip address delete {former}/24 dev eth0"));
        ends.caller
            .run(&format!("ip address add {address}/24 dev eth0"));
        patiently("the new source", || ends.caller.reaches("10.9.0.2"));
        let endpoint = ends.called.run("wg show wg0 endpoints");
        assert!(endpoint.contains(address), "{endpoint}");
    }
}

#[test]
fn traffic_survives_changes_of_port_mark_and_mtu() {
    let ends = Tunnel::new(Program::Warren, Program::Warren, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    let pings = ends.pings(300);
    for port in 4000..4010 {
        ends.caller.run(&format!("wg set wg0 listen-port {port}"));
        ends.caller.run(&format!("wg set wg0 fwmark {port}"));
        ends.caller
            .run(&format!("ip link set wg0 mtu {}", 1280 + port % 100));
    }
    let lost = pings.lost();
    assert!(lost <= 3, "{lost} of 300 were lost");
    assert!(ends.caller.reaches("10.9.0.2"));
}

#[test]
fn two_hundred_syncconfs_lose_not_one_ping() {
    let ends = Tunnel::new(Program::Warren, Program::Warren, Outer::V4);
    ends.caller.run("wg set wg0 listen-port 4000");
    assert!(ends.caller.reaches("10.9.0.2"));
    let pings = ends.pings(600);
    ends.caller.shell(
        "wg showconf wg0 > /var/run/conf; for i in $(seq 200); do wg syncconf wg0 /var/run/conf; done",
        "",
    );
    assert_eq!(pings.lost(), 0);
}

#[test]
fn prefixes_move_between_peers_while_traffic_flows() {
    let ends = Tunnel::new(Program::Warren, Program::Warren, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    let pings = ends.pings(400);
    let peer = ends.caller.run("wg show wg0 peers");
    let peer = peer.trim();
    for _ in 0..50 {
        ends.caller.run(&format!(
            "wg set wg0 peer {peer} allowed-ips 10.9.0.0/16,fd09::/64"
        ));
        ends.caller.run(&format!(
            "wg set wg0 peer {peer} allowed-ips 10.9.0.2/32,fd09::2/128"
        ));
    }
    assert_eq!(pings.lost(), 0);
}

#[test]
fn a_port_that_the_system_chose_can_be_asked_for() {
    // As `wg showconf` and `wg syncconf` of a device without a port of its own do it.
    let ends = Tunnel::new(Program::Warren, Program::Warren, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    let chosen = ends.caller.run("wg show wg0 listen-port");
    ends.caller
        .run(&format!("wg set wg0 listen-port {}", chosen.trim()));
    assert_eq!(ends.caller.run("wg show wg0 listen-port"), chosen);
    assert!(ends.caller.reaches("10.9.0.2"));
}

#[test]
fn down_and_up_again_carries_on() {
    let ends = Tunnel::new(Program::Warren, Program::WireguardGo, Outer::V4);
    for _ in 0..3 {
        assert!(ends.caller.reaches("10.9.0.2"));
        ends.caller.run("ip link set wg0 down");
        assert!(!ends.called.reaches("10.9.0.1"));
        ends.caller.run("ip link set wg0 up");
    }
    assert!(ends.caller.reaches("10.9.0.2"));
}

#[test]
fn a_peer_that_is_removed_is_not_heard_any_more() {
    let ends = Tunnel::new(Program::Warren, Program::WireguardGo, Outer::V4);
    assert!(ends.called.reaches("10.9.0.1") || ends.caller.reaches("10.9.0.2"));
    let peer = ends.caller.run("wg show wg0 peers");
    ends.caller
        .run(&format!("wg set wg0 peer {} remove", peer.trim()));
    assert!(!ends.called.reaches("10.9.0.1"));
    assert_eq!(ends.caller.run("wg show wg0 peers"), "");
}

#[test]
fn an_allowed_ip_is_taken_from_a_peer_with_a_minus() {
    let ends = Tunnel::new(Program::Warren, Program::Warren, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    let key = uapi(&ends.caller, "get=1\n\n");
    let key = key
        .lines()
        .find(|line| line.starts_with("public_key="))
        .expect("a peer");
    let answer = uapi(
        &ends.caller,
        &format!("set=1\n{key}\nallowed_ip=-10.9.0.2/32\n\n"),
    );
    assert_eq!(answer, "errno=0\n\n");
    assert!(!ends.caller.reaches("10.9.0.2"));
    assert!(ends.caller.reaches("fd09::2"), "the other prefix stays");
}

#[test]
fn an_address_that_nobody_owns_is_answered_unreachable() {
    let ends = Tunnel::new(Program::Warren, Program::Warren, Outer::V4);
    let run = ends.caller.attempt("ping -c 1 -W 2 10.9.0.99");
    assert!(run.stdout.contains("Destination Host Unreachable"), "{run}");
    let run = ends.caller.attempt("ping -c 1 -W 2 fd09::99");
    assert!(run.stdout.contains("Address unreachable"), "{run}");
}

/// One message to the daemon of a host, past `wg(8)`, and all of its answer.
fn uapi(host: &Host, message: &str) -> String {
    let socket = host.root().join("run/wireguard/wg0.sock");
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    stream.write_all(message.as_bytes()).expect("it reads");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("a connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}
