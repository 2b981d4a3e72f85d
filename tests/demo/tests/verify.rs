//! `warren verify` where there is no fence, and where it is lied to: it must not pass.
//!
//! A namespace with a default route and nothing of Warren in it, and a status that claims a mesh.

use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::Value;
use warren_control::status::{self, Node, Peer, Status};
use warren_control::{Limits, Listener};
use warren_tests_demo::Copy;

#[test]
fn a_node_without_a_fence_is_seen_to_leak() {
    let status = Status {
        node: node(),
        peers: vec![Peer {
            name: Some("barn".to_owned()),
            public_key: Some("a key".to_owned()),
            endpoint: Some("192.0.2.2:51820".parse().expect("an endpoint")),
            allowed_ips: ["10.77.0.2/32".parse().expect("a prefix")].into(),
            ..Peer::default()
        }],
        ..Status::default()
    };
    let verified = verify(status);
    let verdict: Value = serde_json::from_slice(&verified.stdout).expect("it is JSON");
    assert_eq!(verified.status.code(), Some(1), "{verdict:#}");
    assert_eq!(verdict["passed"], false);
    let leaks = verdict["leaks"].as_object().expect("leaks by words");
    for protocol in ["UDP", "TCP", "ICMP"] {
        let leak = |words: &String| words.starts_with(protocol) && words.ends_with("10.77.0.2");
        assert!(leaks.keys().any(leak), "no {protocol}: {verdict:#}");
    }
    assert!(leaks.contains_key("the marker in the clear"), "{verdict:#}");
    assert_eq!(
        verdict["peers"][0]["fault"], "packets to it leave in the clear",
        "{verdict:#}"
    );
}

#[test]
fn a_daemon_that_does_not_say_what_its_mesh_is_proves_nothing() {
    let why = "there is no /dev/net/tun";
    for (unready, sentence) in [
        (None, "does not say what its mesh is"),
        (Some(why.to_owned()), why),
    ] {
        let status = Status {
            node: Node {
                mesh_prefixes: [].into(),
                ..node()
            },
            unready,
            ..Status::default()
        };
        let verified = verify(status);
        assert_eq!(verified.status.code(), Some(1), "{verified:?}");
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(said.contains(sentence), "{said}");
    }
}

#[test]
fn without_a_daemon_both_commands_say_so_in_a_sentence() {
    let copy = Copy::new();
    for command in ["status", "verify"] {
        let output = Command::new(copy.warren())
            .args([command, "--interface", "wdm-nobody"])
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.starts_with("error: no warrend runs here for wdm-nobody; start one with"),
            "{said}"
        );
    }
}

fn node() -> Node {
    Node {
        name: Some("hut".to_owned()),
        interface: "tunnel".to_owned(),
        up: true,
        listen_port: 51820,
        fwmark: 0x20,
        mesh_prefixes: ["10.77.0.0/16".parse().expect("a prefix")].into(),
        ..Node::default()
    }
}

/// What `warren verify --json` says in a namespace with a card, when this is what its daemon says.
fn verify(status: Status) -> Output {
    let copy = Copy::new();
    let socket = copy.directory().join("tunnel.sock");
    let listener = Listener::claim(&socket).expect("the directory is ours");
    let source = Arc::new(move || status.clone());
    let server = status::serve(listener, source, Limits::default()).expect("a thread");
    // The neighbour is made known, since nobody would answer for it.
    let script = "set -e
        mount -t tmpfs none /run
        mkdir /run/warren
        mount --bind \"$1\" /run/warren
        ip link set lo up
        ip link add card type veth peer name other
        ip addr add 192.0.2.1/24 dev card
        ip link set card up
        ip link set other up
        ip route add default via 192.0.2.254
        ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev card
        ip neigh add 10.77.0.2 lladdr 02:00:00:00:00:fe dev card
        exec \"$0\" verify --json";
    let output = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", script])
        .arg(copy.warren())
        .arg(copy.directory())
        .output()
        .expect("unshare is there");
    drop(server);
    output
}
