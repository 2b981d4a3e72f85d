//! Many peers.

use std::fmt::Write as _;
use std::process::Stdio;

use warren_config::{PrivateKey, PublicKey};
use warren_tests_interop::{Host, Run, connect, patiently, warren_wg};

const PEERS: u64 = 10_000;

#[test]
fn ten_thousand_peers_come_change_and_go_in_two_seconds_each() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    host.run("ip link set wg0 up");
    let configuration = configuration();
    // Again, because a change of peers that are there is another path than adding them.
    for command in ["setconf", "setconf", "syncconf", "addconf"] {
        host.shell(
            &format!("timeout 2 wg {command} wg0 /dev/stdin"),
            &configuration,
        );
        assert_eq!(
            host.run("wg show wg0 peers").lines().count(),
            PEERS as usize,
            "{command}"
        );
    }
    host.shell(
        "timeout 2 wg syncconf wg0 /dev/stdin",
        "[Interface]\nListenPort = 51820\n",
    );
    assert_eq!(host.run("wg show wg0 peers"), "");
}

#[test]
fn ten_thousand_idle_peers_cost_little_memory_and_no_wake_up() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    // Without an address of its own the kernel asks for no router.
    host.run("ip link set wg0 addrgenmode none");
    host.run("ip link set wg0 up");
    let before = host.memory_kib("warren-wg", "VmRSS");
    host.shell("wg setconf wg0 /dev/stdin", &configuration());
    let after = host.memory_kib("warren-wg", "VmRSS");
    let bytes = after.saturating_sub(before) * 1024 / PEERS;
    assert!(bytes < 2048, "a peer takes {bytes} bytes");

    // Nobody asks the daemon anything meanwhile: each switch to one of its threads is a wake-up.
    let before = switches(&host);
    host.run("sleep 3");
    assert_eq!(switches(&host), before);
}

#[test]
fn two_hundred_peers_behind_one_address_shake_hands() {
    const PEERS: u8 = 200;
    let (many, one) = (Host::new(), Host::new());
    connect((&many, &["192.0.2.1/24"]), (&one, &["192.0.2.2/24"]));
    assert!(start(&one, "wg0").success);
    let server = PrivateKey::from_bytes([255; 32]);
    let mut configuration = format!(
        "[Interface]\nListenPort = 51820\nPrivateKey = {}\n",
        server.to_base64()
    );
    for n in 0..PEERS {
        let key = PrivateKey::from_bytes([n; 32]).public();
        writeln!(
            configuration,
            "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.9.0.{n}/32"
        )
        .expect("a string takes everything");
    }
    one.shell("wg setconf wg0 /dev/stdin", &configuration);
    one.run("ip link set wg0 up");
    for n in 0..PEERS {
        assert!(start(&many, &format!("wg{n}")).success);
        let configuration = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = 192.0.2.2:51820\n\
             AllowedIPs = 0.0.0.0/0\nPersistentKeepalive = 5\n",
            PrivateKey::from_bytes([n; 32]).to_base64(),
            server.public(),
        );
        many.shell(&format!("wg setconf wg{n} /dev/stdin"), &configuration);
    }
    // All at once.
    let up: String = (0..PEERS).fold(String::new(), |mut text, n| {
        writeln!(text, "link set wg{n} up").expect("a string takes everything");
        text
    });
    many.shell("ip -batch -", &up);
    patiently("every peer has shaken hands", || {
        let handshakes = one.run("wg show wg0 latest-handshakes");
        handshakes.lines().all(|line| !line.ends_with("\t0"))
    });
}

fn start(host: &Host, interface: &str) -> Run {
    Run::from(
        host.command(warren_wg())
            .args(["--workers", "1", "--joined", interface])
            .stdin(Stdio::null()),
    )
}

/// The configuration of a device with as many peers, of which nobody is there.
fn configuration() -> String {
    let mut configuration = "[Interface]\nListenPort = 51820\n".to_owned();
    for n in 0..PEERS as u32 {
        let [a, b, c, d] = n.to_be_bytes();
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&[a, b, c, d]);
        let key = PublicKey::from_bytes(bytes);
        writeln!(
            configuration,
            "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.0.{c}.{d}/32"
        )
        .expect("a string takes everything");
    }
    configuration
}

/// How often the threads of the daemon were switched to.
fn switches(host: &Host) -> Vec<String> {
    let pid = host.processes("warren-wg")[0];
    let text = host.shell(&format!("cat /proc/{pid}/task/*/status"), "");
    let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
    lines.map(str::to_owned).collect()
}
