//! A UDP port that belongs to another when the interface comes up.

use std::time::Duration;

use warren_control::status;
use warren_tests_interop::{Host, patiently, warren_wg};

#[test]
fn a_port_that_was_taken_when_the_interface_came_up_is_had_once_it_is_free() {
    let host = Host::new();
    let program = warren_wg().display();
    host.run(&format!("{program} wg1"));
    host.run("wg set wg1 listen-port 51820");
    host.run("ip link set wg1 up");
    patiently("the port is taken", || listens(&host));

    host.shell(&format!("LOG_LEVEL=debug {program} wg0 2>/var/run/log"), "");
    host.run("wg set wg0 listen-port 51820");
    host.run("ip link set wg0 up");
    let unreachable = "the interface is up, but its peers cannot be reached: \
                       UDP port 51820 of IPv4 is in use by another program";
    patiently("status says why", || problems(&host) == [unreachable]);

    let key = "wEH0bPYWpTgSbuvMiBFlAmuyVlzyf5Wy6FYj6kVKPGg=";
    host.run(&format!("wg set wg0 peer {key}"));
    host.run("wg set wg0 fwmark 0x51");
    let again = host.attempt("wg set wg0 listen-port 51820");
    assert!(!again.success, "what cannot be had is refused");
    // Long enough to be tried for more than once.
    host.run("sleep 3");
    assert_eq!(problems(&host), [unreachable]);

    host.run("ip link set wg1 down");
    patiently("nothing is wrong any more", || problems(&host).is_empty());
    assert!(listens(&host));
    assert_eq!(host.run("wg show wg0 listen-port"), "51820\n");
    assert_eq!(host.run("wg show wg0 peers"), format!("{key}\n"));
    assert_eq!(host.run("wg show wg0 fwmark"), "0x51\n");
    let log = host.run("cat /var/run/log");
    for said in ["trying again each second", "the UDP port is open"] {
        assert_eq!(log.matches(said).count(), 1, "{said:?} in\n{log}");
    }
}

#[test]
fn an_interface_that_goes_down_without_a_port_asks_for_none() {
    let host = Host::new();
    let program = warren_wg().display();
    host.run(&format!("{program} wg1"));
    host.run("wg set wg1 listen-port 51820");
    host.run("ip link set wg1 up");
    patiently("the port is taken", || listens(&host));

    host.run(&format!("{program} wg0"));
    host.run("wg set wg0 listen-port 51820");
    host.run("ip link set wg0 up");
    patiently("status says why", || !problems(&host).is_empty());
    host.run("ip link set wg0 down");
    patiently("nothing is asked for", || problems(&host).is_empty());
    host.run("ip link set wg1 down");
    patiently("the port is free", || !listens(&host));
    host.run("sleep 2");
    assert!(!listens(&host), "an interface that is down has no port");
}

/// Whether somebody has the port.
fn listens(host: &Host) -> bool {
    host.run("ss -Huln sport = :51820").contains(":51820")
}

/// What the daemon of `wg0` says is wrong.
fn problems(host: &Host) -> Vec<String> {
    let socket = host.root().join("run/warren/wg0.sock");
    let status = status::ask(&socket, Duration::from_secs(10));
    status.expect("the daemon answers").problems
}
