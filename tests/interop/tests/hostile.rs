//! Two honest peers, and somebody between them who sends whatever comes to mind.

use std::time::Duration;

use warren_tests_interop::{Host, Killed, Pair, patiently};

/// Bytes each way while it goes on.
const BYTES: u64 = 30_000_000;
/// Memory that it may not make a daemon exceed, in KiB.
const MEMORY_KIB: u64 = 32 << 10;

/// BEHAVIOURS 25 and 29.
#[test]
fn replayed_truncated_and_oversized_messages_and_icmp_errors_harm_no_honest_data() {
    let pair = Pair::new("", 1420);
    let [honest, target] = &pair.hosts;
    let endpoints = || target.run("wg show wg0 endpoints");
    assert!(honest.reaches("10.9.0.2"));
    let before = endpoints();
    let mischief = honest
        .command(env!("CARGO_BIN_EXE_mischief"))
        .args(["192.0.2.1", "192.0.2.2", "51820"])
        .spawn();
    let mischief = Killed(mischief.expect("nsenter is installed"));
    patiently("it does something", || {
        honest.run("ping -c 1 10.9.0.2");
        dropped(&pair, "in_replayed") > 0
    });

    let exchange = env!("CARGO_BIN_EXE_exchange");
    pair.exchange(exchange, BYTES, Duration::from_secs(60));
    honest.run("ping -q -c 100 -i 0.01 -W 2 10.9.0.2");
    for reason in ["in_replayed", "in_forged", "in_malformed"] {
        let count = dropped(&pair, reason);
        assert!(count > 20, "{reason}: {count}");
    }
    assert!(unreachables(target) > 20, "{}", unreachables(target));
    drop(mischief);

    pair.exchange(exchange, BYTES, Duration::from_secs(60));
    assert_eq!(endpoints(), before, "nobody moved the peer");
    let peak = target.memory_kib("warren-wg", "VmHWM");
    assert!(peak < MEMORY_KIB, "it took {peak} KiB");
}

/// Errors of ICMP that the kernel of a host understood, of the type destination unreachable.
fn unreachables(host: &Host) -> u64 {
    let snmp = host.run("cat /proc/net/snmp");
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let [names, values] = [(); 2].map(|()| lines.next().expect("two lines").split(' '));
    let mut figures = names.zip(values);
    let found = figures.find(|(name, _)| *name == "InDestUnreachs");
    let (_, count) = found.expect("a figure of the kernel");
    count.parse().expect("a number")
}

fn dropped(pair: &Pair, reason: &str) -> u64 {
    let [_, target] = pair.status();
    target.drops.get(reason).copied().unwrap_or_default()
}
