//! What can be switched off, and that bytes arrive intact without it: bulk TCP both ways at once.
//!
//! The same switches stand for kernels that lack a feature, so these are the fallbacks' tests.

use std::time::Duration;

use warren_control::status::Status;
use warren_tests_interop::{Host, Pair};

const BYTES: u64 = 12 << 20;
const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn with_everything_on_bytes_arrive_intact() {
    let [left, _] = exchanged("");
    assert!(left.features["tun_offload_header"] && left.features["udp_segmentation"]);
}

#[test]
fn without_tun_offload_bytes_arrive_intact() {
    without(
        "--no-tun-offload",
        &[
            "tun_offload_header",
            "tun_tcp_offload",
            "tun_udp_offload",
            "tun_tunnel_offload",
        ],
    );
}

#[test]
fn without_udp_segmentation_offload_of_the_tun_bytes_arrive_intact() {
    without("--no-uso", &["tun_udp_offload"]);
}

#[test]
fn without_tunnel_offload_bytes_arrive_intact() {
    without("--no-tunnel-offload", &["tun_tunnel_offload"]);
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
    exchanged("--joined");
}

#[test]
fn an_echo_wakes_one_thread_of_each_end_and_a_stream_two() {
    let pair = Pair::new("--workers 1", 1420);
    let echoes = || pair.hosts[0].run("ping -q -c 20 -i 0.02 10.9.0.2");
    let wakes = || pair.hosts.each_ref().map(wakes_of_the_way_out);
    // The session is made, and the threads have begun.
    echoes();
    let before = wakes();
    echoes();
    assert_eq!(wakes(), before);
    pair.exchange(env!("CARGO_BIN_EXE_exchange"), BYTES, WITHIN);
    let after = wakes();
    assert!((0..2).all(|end| after[end] > before[end] + 10), "{after:?}");
    // What is left to do is given back.
    echoes();
    let before = wakes();
    echoes();
    assert_eq!(wakes(), before);
}

/// How often the thread that has the way out when there is much to do has waited.
fn wakes_of_the_way_out(host: &Host) -> u64 {
    let pid = host.processes("warren-wg")[0];
    let text = host.shell(
        &format!("grep -l warren-out-0 /proc/{pid}/task/*/comm | xargs dirname | xargs -I {{}} cat {{}}/status"),
        "",
    );
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let count = line.expect("Linux tells").trim().parse();
    count.expect("a number")
}

fn without(switches: &str, features: &[&str]) {
    for status in exchanged(switches) {
        for feature in features {
            assert_eq!(status.features.get(*feature), Some(&false), "{feature}");
        }
    }
}

/// Moves bytes both ways through a tunnel between two of us with these switches.
fn exchanged(switches: &str) -> [Status; 2] {
    let pair = Pair::new(switches, 1420);
    pair.exchange(env!("CARGO_BIN_EXE_exchange"), BYTES, WITHIN);
    pair.status()
}
