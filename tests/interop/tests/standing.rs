//! A daemon that finds more before it than it should have to, since it did not get to read.

use std::net::UdpSocket;
use std::time::Duration;

use warren_tests_interop::{Host, Pair};
use warren_tests_lab::{patiently, set_udp_segment, thread_in};

const MTU: u16 = 1420;
/// What a datagram of the MTU has of its own.
const SEGMENT: u16 = MTU - 28;
/// Datagrams of one send of an application, which is sealed, sent and received as one.
const RUN: usize = 43;
const RUN_BYTES: usize = RUN * SEGMENT as usize;
/// What it is then, header and tag with each.
const SEALED_BYTES: usize = RUN * (MTU as usize + 32);
/// `PAUSE` in the engine: nobody is told again within it.
const PAUSE: Duration = Duration::from_millis(10);
/// How long anything may take here.
const AT_MOST: Duration = Duration::from_secs(10);

#[test]
fn one_sender_is_told_where_megabytes_waited_before_the_way_in() {
    let pair = Pair::new("", MTU.into());
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
    // Pauses the reader until so many runs wait in its socket. Answers how long it then reads.
    let pile_up = |runs: usize| {
        reader.run(&format!("kill -STOP {daemon}"));
        send(sender, runs);
        patiently("all waits", AT_MOST, || {
            waiting(reader) >= runs * SEALED_BYTES
        });
        patiently("all is read", AT_MOST, || {
            reader.run(&format!("kill -CONT {daemon}"));
            waiting(reader) == 0
        })
    };
    pile_up(12);
    assert_eq!(told(), 0, "0.7 MB are no queue");
    let read_for = pile_up(60);
    patiently("somebody is told", AT_MOST, || told() > 0);
    let at_most = read_for.as_millis() / PAUSE.as_millis() + 1;
    let told = u128::from(told());
    assert!(told <= at_most, "{told} in {read_for:?}");
    assert!(sender.reaches("10.9.0.2"));
}

/// Sends as many runs through the tunnel.
fn send(host: &Host, runs: usize) {
    let network = host.root().with_file_name("ns").join("net");
    let sending = thread_in(&network, move || {
        let socket = UdpSocket::bind("10.9.0.1:0").expect("the address of the tunnel");
        set_udp_segment(&socket, SEGMENT).expect("the kernel cuts");
        for _ in 0..runs {
            let sent = socket.send_to(&[0; RUN_BYTES], "10.9.0.2:9");
            assert_eq!(sent.expect("there is room"), RUN_BYTES);
        }
    });
    sending.join().expect("everything is sent");
}

/// What a host's sockets of UDP hold that was not read, in bytes of the kernel's memory.
fn waiting(host: &Host) -> usize {
    let sockets = host.run("ss -Huan");
    let queues = sockets.lines().map(|line| {
        let queue = line.split_whitespace().nth(1).expect("a column of ss");
        queue.parse::<usize>().expect("a number")
    });
    queues.sum()
}
