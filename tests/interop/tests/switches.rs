//! What can be switched off, and that bytes arrive intact without it: bulk TCP both ways at once.
//!
//! The same switches stand for kernels that lack a feature, so these are the fallbacks' tests.

use std::process::Stdio;
use std::time::Duration;

use warren_control::status::{self, Status};
use warren_tests_interop::{Host, Run, connect, patiently, warren_wg};

const BYTES: u32 = 12 << 20;

#[test]
fn with_everything_on_bytes_arrive_intact() {
    let [left, _] = exchanged("", 1420);
    assert!(left.features["tun_offload_header"] && left.features["udp_segmentation"]);
}

#[test]
fn without_tun_offload_bytes_arrive_intact() {
    without(
        "--no-tun-offload",
        &["tun_offload_header", "tun_tcp_offload", "tun_udp_offload"],
    );
}

#[test]
fn without_udp_segmentation_offload_of_the_tun_bytes_arrive_intact() {
    without("--no-uso", &["tun_udp_offload"]);
}

#[test]
fn without_multi_queue_bytes_arrive_intact() {
    without("--no-multi-queue --workers 2", &["tun_multi_queue"]);
}

#[test]
fn without_steering_bytes_arrive_intact() {
    without("--no-steering --workers 2", &["tun_steering"]);
}

#[test]
fn without_segmented_sends_bytes_arrive_intact() {
    without("--no-udp-segmentation", &["udp_segmentation"]);
}

#[test]
fn without_joined_receives_bytes_arrive_intact() {
    without("--no-udp-receive-offload", &["udp_receive_offload"]);
}

#[test]
fn without_any_of_it_bytes_arrive_intact() {
    without(
        "--no-tun-offload --no-multi-queue --no-udp-segmentation --no-udp-receive-offload",
        &[
            "tun_offload_header",
            "tun_multi_queue",
            "udp_segmentation",
            "udp_receive_offload",
        ],
    );
}

#[test]
fn with_one_thread_a_worker_bytes_arrive_intact() {
    exchanged("--joined", 1420);
}

#[test]
fn with_four_workers_bytes_arrive_intact() {
    for status in exchanged("--workers 4", 1420) {
        assert_eq!(status.node.workers, 4);
    }
}

#[test]
fn with_the_smallest_and_a_large_mtu_bytes_arrive_intact() {
    for mtu in [1280, 8920] {
        for status in exchanged("--workers 2", mtu) {
            assert_eq!(status.node.mtu, mtu);
        }
    }
}

fn without(switches: &str, features: &[&str]) {
    for status in exchanged(switches, 1420) {
        for feature in features {
            assert_eq!(status.features.get(*feature), Some(&false), "{feature}");
        }
    }
}

/// Moves bytes both ways through a tunnel between two of us with these switches.
fn exchanged(switches: &str, mtu: u32) -> [Status; 2] {
    let hosts = [Host::new(), Host::new()];
    connect(
        (&hosts[0], &["192.0.2.1/24"]),
        (&hosts[1], &["192.0.2.2/24"]),
    );
    let keys = hosts.each_ref().map(|host| {
        host.run(&format!("ip link set eth0 mtu {}", mtu.max(1420) + 80));
        let run = Run::from(
            host.command(warren_wg())
                .args(switches.split_whitespace())
                .args(["--mtu", &mtu.to_string(), "wg0"])
                .stdin(Stdio::null()),
        );
        assert!(run.success, "{run}");
        let public = host.shell("wg genkey | tee /var/run/key | wg pubkey", "");
        host.run("wg set wg0 private-key /var/run/key listen-port 51820");
        public.trim().to_owned()
    });
    for (n, host) in hosts.iter().enumerate() {
        let (own, other) = (n + 1, 2 - n);
        host.run(&format!(
            "wg set wg0 peer {} endpoint 192.0.2.{other}:51820 allowed-ips 10.9.0.{other}/32",
            keys[1 - n]
        ));
        host.run(&format!("ip address add 10.9.0.{own}/24 dev wg0"));
        host.run("ip link set wg0 up");
    }
    let exchange = env!("CARGO_BIN_EXE_exchange");
    let bytes = BYTES.to_string();
    let server = hosts[1]
        .command(exchange)
        .args(["serve", "10.9.0.2:7", &bytes])
        .stderr(Stdio::piped())
        .spawn()
        .expect("nsenter is installed");
    patiently("the server listens", || {
        hosts[1].run("ss -Hltn").contains("10.9.0.2:7 ")
    });
    let call =
        Run::from(
            hosts[0]
                .command("timeout")
                .args(["60", exchange, "call", "10.9.0.2:7", &bytes]),
        );
    assert!(call.success, "{switches}: {call}");
    let server = server.wait_with_output().expect("a child");
    assert!(
        server.status.success(),
        "{}",
        String::from_utf8_lossy(&server.stderr)
    );
    hosts.each_ref().map(|host| {
        let socket = host.root().join("run/warren/wg0.sock");
        status::ask(&socket, Duration::from_secs(10)).expect("the daemon answers")
    })
}
