//! An overlay between two hosts whose packets go through a tunnel between two of us: large packets are
//! cut and joined with the outer headers around them. VXLAN, since a kernel for tests may lack Geneve.

use std::time::Duration;

use warren_tests_interop::Pair;

const BYTES: u64 = 4 << 20;
const WITHIN: Duration = Duration::from_secs(60);

/// Whether outer headers have a checksum, and between which addresses the overlay is.
const OVERLAYS: [(&str, &str); 3] = [
    ("udpcsum", "10.9.0."),
    // As Flannel and Cilium have it.
    ("noudpcsum", "10.9.0."),
    ("", "fd09::"),
];

#[test]
fn bytes_through_an_overlay_arrive_intact() {
    through_overlays("");
}

#[test]
fn bytes_through_an_overlay_arrive_intact_without_tunnel_offload() {
    through_overlays("--no-tunnel-offload");
}

#[test]
fn bytes_through_an_overlay_arrive_intact_without_udp_offload() {
    through_overlays("--no-uso");
}

#[test]
fn bytes_through_an_overlay_arrive_intact_without_offload() {
    through_overlays("--no-tun-offload --joined");
}

fn through_overlays(switches: &str) {
    let pair = Pair::new(switches, 1420);
    for (n, host) in pair.hosts.iter().enumerate() {
        let (own, other) = (n + 1, 2 - n);
        let peer = host.run("wg show wg0 peers");
        host.run(&format!(
            "wg set wg0 peer {} allowed-ips 10.9.0.{other}/32,fd09::{other}/128",
            peer.trim()
        ));
        host.run(&format!("ip address add fd09::{own}/64 dev wg0 nodad"));
    }
    for (checksum, underlay) in OVERLAYS {
        for (n, host) in pair.hosts.iter().enumerate() {
            let (own, other) = (n + 1, 2 - n);
            host.run(&format!(
                "ip link add overlay type vxlan id 7 dstport 4789 {checksum} local {underlay}{own} remote {underlay}{other}"
            ));
            host.run(&format!("ip address add 10.8.0.{own}/24 dev overlay"));
            host.run(&format!("ip address add fd08::{own}/64 dev overlay nodad"));
            host.run("ip link set overlay mtu 1350 up");
        }
        for address in ["10.8.0.2:7", "[fd08::2]:7"] {
            pair.exchange_at(address, env!("CARGO_BIN_EXE_exchange"), BYTES, WITHIN);
        }
        for host in &pair.hosts {
            host.run("ip link delete overlay");
        }
    }
    for host in &pair.hosts {
        let wrong = host.shell(
            "nstat -asz TcpInCsumErrors UdpInCsumErrors Udp6InCsumErrors IpExtInCsumErrors",
            "",
        );
        let counters: Vec<_> = wrong
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert_eq!(counters.len(), 4, "{wrong}");
        for line in counters {
            assert_eq!(line.split_whitespace().nth(1), Some("0"), "{wrong}");
        }
    }
    for status in pair.status() {
        let malformed = status.drops.get("out_malformed").copied();
        assert_eq!(malformed.unwrap_or(0), 0, "{:?}", status.drops);
    }
}
