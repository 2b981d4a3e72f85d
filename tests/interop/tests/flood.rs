//! What honest peers keep while somebody floods their node with 50,000 handshake messages a second.

use std::process::Stdio;
use std::time::{Duration, Instant};

use warren_config::{PrivateKey, PublicKey};
use warren_control::status::{self, Status};
use warren_tests_interop::{Host, Killed, Run, connect, connect_as, patiently, warren_wg};

/// Messages a second.
const RATE: &str = "50000";
/// Bytes moved each way for one measurement: seconds of an optimised daemon.
const BYTES: &str = "400000000";
/// How often a machine that others use as well is asked.
const TRIES: usize = 4;
/// Memory that a flood may not make a daemon exceed, in KiB.
const MEMORY_KIB: u64 = 32 << 10;

/// BEHAVIOURS 27: nothing answers it either.
#[test]
#[ignore = "compares rates, so it wants the machine for itself: ./check matrix"]
fn a_flood_with_wrong_macs_leaves_half_of_the_rate() {
    let status = flooded("forged");
    assert!(status.drops["in_bad_mac1"] > 10_000, "{:?}", status.drops);
}

/// BEHAVIOURS 23.
#[test]
#[ignore = "compares rates, so it wants the machine for itself: ./check matrix"]
fn a_flood_from_one_source_leaves_half_of_the_rate() {
    let status = flooded("one");
    assert!(
        status.drops["in_source_limited"] > 10_000,
        "{:?}",
        status.drops
    );
}

/// BEHAVIOURS 22: the sources are asked for cookies.
#[test]
#[ignore = "compares rates, so it wants the machine for itself: ./check matrix"]
fn a_flood_from_many_sources_leaves_half_of_the_rate() {
    let status = flooded("many");
    assert!(
        status.drops["in_cookie_demanded"] > 1_000,
        "{:?}",
        status.drops
    );
}

/// Compares the rate between two honest peers with and without a flood of one of them, and that
/// one can still be reached by a new peer. Answers its status.
fn flooded(kind: &str) -> Status {
    let [honest, target, flooder] = [Host::new(), Host::new(), Host::new()];
    connect((&honest, &["192.0.2.1/24"]), (&target, &["192.0.2.2/24"]));
    connect_as(
        "eth1",
        (&flooder, &["203.0.113.1/24"]),
        (&target, &["203.0.113.2/24"]),
    );
    flooder.run("ip route add local 198.18.0.0/24 dev lo");
    target.run("ip route add 198.18.0.0/24 via 203.0.113.1");
    let keys = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]));
    start(
        &honest,
        &keys[0],
        &keys[1].public(),
        "192.0.2.2",
        "10.9.0.1",
        "10.9.0.2",
    );
    start(
        &target,
        &keys[1],
        &keys[0].public(),
        "192.0.2.1",
        "10.9.0.2",
        "10.9.0.1",
    );

    let public = keys[1].public().to_string();
    let mut rates = Vec::new();
    for _ in 0..TRIES {
        let quiet = seconds(&honest, &target);
        let flood = Killed(
            flooder
                .command(env!("CARGO_BIN_EXE_flood"))
                .args([kind, "203.0.113.2:51820", &public, RATE])
                .spawn()
                .expect("nsenter is installed"),
        );
        let loud = seconds(&honest, &target);
        drop(flood);
        rates.push(quiet / loud);
        eprintln!(
            "under the flood ({kind}) the peers keep {:.2}",
            quiet / loud
        );
        if quiet / loud >= 0.5 {
            let peak = target.memory_kib("warren-wg", "VmHWM");
            assert!(peak < MEMORY_KIB, "the flood made it take {peak} KiB");
            let socket = target.root().join("run/warren/wg0.sock");
            return status::ask(&socket, Duration::from_secs(10)).expect("the daemon answers");
        }
    }
    panic!("under the flood the peers keep {rates:.2?} of their rate");
}

fn start(host: &Host, key: &PrivateKey, peer: &PublicKey, endpoint: &str, own: &str, other: &str) {
    let run = Run::from(host.command(warren_wg()).arg("wg0").stdin(Stdio::null()));
    assert!(run.success, "{run}");
    let configuration = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\n\
         [Peer]\nPublicKey = {peer}\nEndpoint = {endpoint}:51820\nAllowedIPs = {other}/32\n",
        key.to_base64(),
    );
    host.shell("wg setconf wg0 /dev/stdin", &configuration);
    host.run(&format!("ip address add {own}/24 dev wg0"));
    host.run("ip link set wg0 up");
}

/// How long bytes take both ways, compared one by one with what they should be.
#[expect(clippy::disallowed_methods, reason = "a rate is measured by the clock")]
fn seconds(honest: &Host, target: &Host) -> f64 {
    let exchange = env!("CARGO_BIN_EXE_exchange");
    let server = target
        .command(exchange)
        .args(["serve", "10.9.0.2:7", BYTES])
        .spawn();
    let mut server = Killed(server.expect("nsenter is installed"));
    patiently("the server listens", || {
        target.run("ss -Hltn").contains("10.9.0.2:7 ")
    });
    let begun = Instant::now();
    let call =
        Run::from(
            honest
                .command("timeout")
                .args(["60", exchange, "call", "10.9.0.2:7", BYTES]),
        );
    assert!(call.success, "{call}");
    assert!(server.0.wait().expect("a child").success());
    begun.elapsed().as_secs_f64()
}
