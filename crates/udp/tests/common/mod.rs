//! What the tests of this crate have in common.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file is a crate of its own and uses a part"
)]

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use warren_packet::{Ecn, RecvBatch, Source, Transmit};
use warren_udp::{Failed, Options, Pair, SendReport, Socket};

/// One datagram, as its receiver saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub payload: Vec<u8>,
    pub remote: SocketAddr,
    pub source: Option<Source>,
    pub ecn: Ecn,
}

/// A socket of the family of `ip` alone.
pub fn open(options: &Options, ip: IpAddr) -> Socket {
    let options = Options {
        v4: ip.is_ipv4(),
        v6: ip.is_ipv6(),
        ..options.clone()
    };
    let mut pairs = Pair::bind(&options).expect("a port of the system's choice");
    let pair = pairs.remove(0);
    pair.v4.or(pair.v6).expect("one family was asked for")
}

pub fn transmit(range: Range<usize>, stride: usize, remote: (IpAddr, u16)) -> Transmit {
    Transmit {
        range,
        stride,
        remote: remote.into(),
        source: None,
        ecn: Ecn::NotEct,
        tos: 0,
        tag: 0,
    }
}

/// Sends all, waiting for room as long as it takes, and answers what failed.
pub fn send_all(socket: &Socket, arena: &[u8], transmits: &mut [Transmit]) -> Vec<Failed> {
    let mut report = SendReport::default();
    let mut finished = 0;
    while finished < transmits.len() {
        finished += socket.send(
            Duration::ZERO,
            arena,
            &mut transmits[finished..],
            &mut report,
        );
        assert!(
            socket.wait_writable(Duration::from_secs(5)),
            "no room in five seconds"
        );
    }
    report.drain().collect()
}

/// Receives until there are `count` datagrams, with batches that are used again and again.
pub fn receive(socket: &Socket, count: usize) -> Vec<Received> {
    let mut batch = RecvBatch::new(4);
    let mut received = Vec::new();
    while received.len() < count {
        wait_readable(socket);
        batch.clear();
        socket
            .recv(&mut batch)
            .expect("nothing that happens to a socket ends reception");
        received.extend(split(&batch));
    }
    assert_eq!(received.len(), count, "more than were waited for");
    received
}

pub fn wait_readable(socket: &Socket) {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let timeout = Timespec::try_from(Duration::from_secs(5)).expect("a short time");
    let ready = rustix::event::poll(&mut fds, Some(&timeout)).expect("a poll");
    assert_eq!(ready, 1, "nothing arrived in five seconds");
}

/// Every datagram of a batch.
pub fn split(batch: &RecvBatch) -> Vec<Received> {
    let all = batch.datagrams.iter();
    let pieces = all.flat_map(|message| {
        message.datagrams().map(|range| Received {
            payload: batch.arena[range].to_vec(),
            remote: message.remote,
            source: message.source,
            ecn: message.ecn,
        })
    });
    pieces.collect()
}
