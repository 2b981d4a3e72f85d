//! What counts as sent.

use warren_tests_interop::{Host, patiently, warren_wg};

#[test]
fn what_the_host_would_not_send_does_not_count_as_sent() {
    let host = Host::new();
    host.run(&format!("{} wg0", warren_wg().display()));
    host.shell("wg genkey > /var/run/key", "");
    let peer = "wEH0bPYWpTgSbuvMiBFlAmuyVlzyf5Wy6FYj6kVKPGg=";
    host.run("wg set wg0 private-key /var/run/key");
    host.run(&format!(
        "wg set wg0 peer {peer} endpoint 192.0.2.1:9 allowed-ips 10.9.0.2/32"
    ));
    host.run("ip address add 10.9.0.1/24 dev wg0");
    host.run("ip link set wg0 up");
    // There is no way to the endpoint yet.
    assert!(!host.attempt("ping -c 1 -W 1 10.9.0.2").success);
    assert_eq!(sent(&host), 0);
    host.run("ip address add 192.0.2.1/24 dev lo");
    patiently("an initiation leaves", || sent(&host) > 0);
    assert_eq!(sent(&host) % 148, 0);
}

/// What `wg0` says that it sent to its only peer, in bytes.
fn sent(host: &Host) -> u64 {
    let transfer = host.run("wg show wg0 transfer");
    let sent = transfer.split_whitespace().last().expect("three columns");
    sent.parse().expect("a number")
}
