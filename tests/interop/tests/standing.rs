//! A daemon that finds more before it than it should have to, since it did not get to read.

use warren_tests_interop::{Pair, patiently};

/// What one write of `dd` becomes: a run of full-size packets, sealed and sent as one.
const RUN_BYTES: usize = 60_000;

#[test]
fn one_sender_is_told_where_megabytes_waited_before_the_way_in() {
    let pair = Pair::new("", 1420);
    let [sender, reader] = &pair.hosts;
    assert!(sender.reaches("10.9.0.2"));
    let told = || {
        let [_, reader] = pair.status();
        let count = reader.drops.get("in_standing_queue").copied();
        count.unwrap_or_default()
    };
    let [daemon] = reader.processes("warren-wg")[..] else {
        panic!("one daemon");
    };
    // Pauses the reader while so many runs come to its socket, and waits until they are read.
    let pile_up = |runs: usize| {
        let datagrams = || in_datagrams(&reader.run("cat /proc/net/snmp"));
        let before = datagrams();
        reader.run(&format!("kill -STOP {daemon}"));
        let line =
            format!("dd if=/dev/zero bs={RUN_BYTES} count=1 status=none > /dev/udp/10.9.0.2/9");
        sender.shell(
            &format!("for n in $(seq {runs}); do {line}; done; sleep 0.2"),
            "",
        );
        reader.run(&format!("kill -CONT {daemon}"));
        patiently("all is read", || datagrams() >= before + runs as u64);
    };
    pile_up(12);
    assert_eq!(told(), 0, "0.7 MB are no queue");
    pile_up(60);
    patiently("somebody is told", || told() > 0);
    assert!(told() <= 4, "{} of 2,500 packets", told());
    assert!(sender.reaches("10.9.0.2"));
}

/// Datagrams that programs of a host have read.
fn in_datagrams(snmp: &str) -> u64 {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let [names, values] = [(); 2].map(|()| lines.next().expect("two lines").split(' '));
    let mut figures = names.zip(values);
    let found = figures.find(|(name, _)| *name == "InDatagrams");
    let (_, count) = found.expect("a figure of the kernel");
    count.parse().expect("a number")
}
