//! Two ends on one host: what is sent arrives, however it travels.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use common::{Received, open, receive, send_all, transmit};
use warren_packet::batch::MAX_TRANSMIT;
use warren_packet::{Ecn, RecvBatch, Source};
use warren_udp::{Options, Pair, SendReport};

const EVERY_FORM: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

#[test]
fn datagrams_of_every_length_to_200_and_the_largest_arrive_whole() {
    for (segmentation, receive_offload) in EVERY_FORM {
        let options = Options {
            segmentation,
            receive_offload,
            largest_datagram: MAX_TRANSMIT,
            ..Options::default()
        };
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ] {
            let (from, to) = (open(&options, ip), open(&options, ip));
            for len in (0..=200).chain([1452, 9000, MAX_TRANSMIT]) {
                let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
                let mut transmits = [transmit(0..len, len.max(1), (ip, to.port()))];
                send_all(&from, &payload, &mut transmits);
                let received = receive(&to, 1);
                assert_eq!(received[0].payload, payload, "{len} bytes over {ip}");
                assert_eq!(received[0].remote, SocketAddr::from((ip, from.port())));
            }
        }
    }
}

#[test]
fn a_run_arrives_as_the_datagrams_that_it_is_made_of() {
    for (segmentation, receive_offload) in EVERY_FORM {
        let options = Options {
            segmentation,
            receive_offload,
            ..Options::default()
        };
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ] {
            let (from, to) = (open(&options, ip), open(&options, ip));
            // 64 segments, the most bytes, a short last one, and one more than fits two runs.
            for (len, stride) in [(64 * 100, 100), (45 * 1452, 1452), (1000, 333), (333, 333)] {
                let payload: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
                let mut transmits = [transmit(0..len, stride, (ip, to.port()))];
                send_all(&from, &payload, &mut transmits);
                let received = receive(&to, len.div_ceil(stride));
                let sent: Vec<_> = payload.chunks(stride).collect();
                let received: Vec<_> = received.iter().map(|one| &one.payload[..]).collect();
                assert_eq!(
                    received, sent,
                    "{segmentation} {receive_offload} {len} {stride}"
                );
            }
        }
    }
}

#[test]
fn what_is_in_use_is_what_was_allowed_and_the_kernel_grants() {
    for (segmentation, receive_offload) in EVERY_FORM {
        let options = Options {
            segmentation,
            receive_offload,
            ..Options::default()
        };
        let features = open(&options, Ipv4Addr::LOCALHOST.into()).features();
        // Both are older than any kernel on which tests run.
        assert_eq!(features.segmentation, segmentation);
        assert_eq!(features.receive_offload, receive_offload);
    }
}

#[test]
fn a_segmented_run_is_received_as_one_message_of_its_stride() {
    let ip = Ipv4Addr::LOCALHOST.into();
    let options = Options::default();
    let (from, to) = (open(&options, ip), open(&options, ip));
    let payload = vec![7; 45 * 1452 - 10];
    let mut transmits = [transmit(0..payload.len(), 1452, (ip, to.port()))];
    send_all(&from, &payload, &mut transmits);
    let mut batch = RecvBatch::new(2);
    common::wait_readable(&to);
    assert_eq!(to.recv(&mut batch).expect("something is there"), 1);
    assert_eq!(batch.datagrams[0].stride, 1452);
    assert_eq!(batch.datagrams[0].range.len(), payload.len());
}

#[test]
fn marks_and_the_tos_byte_cross() {
    for ip in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let options = Options::default();
        let (from, to) = (open(&options, ip), open(&options, ip));
        for ecn in [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce] {
            for tos in [0, 0x88] {
                let mut one = transmit(0..4, 4, (ip, to.port()));
                (one.ecn, one.tos) = (ecn, tos);
                send_all(&from, b"mark", &mut [one]);
                assert_eq!(receive(&to, 1)[0].ecn, ecn, "{ip}, TOS {tos:#x}");
            }
        }
    }
}

#[test]
fn a_reply_leaves_from_the_address_that_was_called() {
    // All of 127/8 is this host.
    let called = IpAddr::from(Ipv4Addr::new(127, 1, 2, 3));
    let options = Options::default();
    let (caller, callee) = (
        open(&options, Ipv4Addr::LOCALHOST.into()),
        open(&options, called),
    );
    send_all(
        &caller,
        b"hello",
        &mut [transmit(0..5, 5, (called, callee.port()))],
    );
    let heard = receive(&callee, 1);
    let source = heard[0].source.expect("the local address is told");
    assert_eq!(source.ip, called);
    assert_ne!(source.interface, 0);

    let mut reply = transmit(0..2, 2, (Ipv4Addr::LOCALHOST.into(), caller.port()));
    reply.source = Some(source);
    send_all(&callee, b"hi", &mut [reply]);
    let answered = receive(&caller, 1);
    assert_eq!(
        answered[0].remote,
        SocketAddr::from((called, callee.port()))
    );
}

#[test]
fn a_source_address_that_is_not_ours_is_forgotten_and_the_datagrams_arrive() {
    for (ip, foreign) in [
        (
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)),
        ),
        (
            IpAddr::from(Ipv6Addr::LOCALHOST),
            "2001:db8::1".parse().expect("an address"),
        ),
    ] {
        for segmentation in [true, false] {
            let options = Options {
                segmentation,
                ..Options::default()
            };
            let (from, to) = (open(&options, ip), open(&options, ip));
            let payload = [1; 300];
            let mut transmits = [transmit(0..300, 100, (ip, to.port()))];
            transmits[0].tag = 42;
            transmits[0].source = Some(Source {
                ip: foreign,
                interface: 1,
            });
            let failed = send_all(&from, &payload, &mut transmits);
            assert_eq!(failed.len(), 1);
            assert_eq!(failed[0].kind, warren_udp::Failure::SourceGone);
            assert_eq!((failed[0].tag, failed[0].datagrams), (42, 0));
            assert_eq!(receive(&to, 3).len(), 3);
            assert_eq!(from.features().segmentation, segmentation);
        }
    }
}

#[test]
fn an_icmp_port_unreachable_ends_neither_direction() {
    for ip in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let options = Options::default();
        let (from, to) = (open(&options, ip), open(&options, ip));
        let nobody = UdpSocket::bind((ip, 0)).expect("a port for a moment");
        let dead = nobody.local_addr().expect("it is bound");
        drop(nobody);
        for _ in 0..10 {
            let mut transmits = [
                transmit(0..1, 1, (dead.ip(), dead.port())),
                transmit(0..1, 1, (ip, to.port())),
            ];
            assert_eq!(send_all(&from, b"x", &mut transmits), []);
            receive(&to, 1);
            send_all(&to, b"y", &mut [transmit(0..1, 1, (ip, from.port()))]);
            receive(&from, 1);
        }
    }
}

#[test]
fn a_destination_that_cannot_be_reached_is_reported_and_the_others_are_served() {
    let ip = Ipv4Addr::LOCALHOST.into();
    let options = Options::default();
    let (from, to) = (open(&options, ip), open(&options, ip));
    // The kernel refuses broadcasts from a socket that did not ask for them.
    let forbidden = (Ipv4Addr::BROADCAST.into(), 9);
    let mut transmits = [
        transmit(0..300, 100, forbidden),
        transmit(0..300, 100, (ip, to.port())),
    ];
    let failed = send_all(&from, &[1; 300], &mut transmits);
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].datagrams, 3);
    assert_eq!(receive(&to, 3).len(), 3);
}

#[test]
fn a_datagram_larger_than_its_slot_is_counted_and_the_next_is_received() {
    let ip = Ipv4Addr::LOCALHOST.into();
    let options = Options {
        receive_offload: false,
        largest_datagram: 1500,
        ..Options::default()
    };
    let (from, to) = (open(&options, ip), open(&options, ip));
    let mut transmits = [
        transmit(0..3000, 3000, (ip, to.port())),
        transmit(0..1500, 1500, (ip, to.port())),
        transmit(0..2000, 2000, (ip, to.port())),
    ];
    send_all(&from, &[1; 3000], &mut transmits);
    assert_eq!(receive(&to, 1)[0].payload.len(), 1500);
    assert_eq!(
        to.recv(&mut RecvBatch::new(1))
            .expect("nothing is no error"),
        0
    );
    assert_eq!(to.counters(), [("in_truncated", 2)]);
}

#[test]
fn a_batch_is_filled_and_not_beyond() {
    let ip = Ipv4Addr::LOCALHOST.into();
    let options = Options::default();
    let (from, to) = (open(&options, ip), open(&options, ip));
    for n in 0..5_u8 {
        send_all(&from, &[n], &mut [transmit(0..1, 1, (ip, to.port()))]);
    }
    let mut batch = RecvBatch::new(3);
    common::wait_readable(&to);
    while to.recv(&mut batch).expect("no error") > 0 {}
    let first = batch
        .datagrams
        .iter()
        .map(|datagram| batch.arena[datagram.range.start]);
    assert_eq!(first.collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(receive(&to, 2).len(), 2);
}

#[test]
fn what_the_socket_could_not_queue_is_counted() {
    let ip = Ipv4Addr::LOCALHOST.into();
    let small = Options {
        buffer_bytes: 4096,
        ..Options::default()
    };
    let (from, to) = (open(&Options::default(), ip), open(&small, ip));
    for _ in 0..100 {
        send_all(
            &from,
            &[0; 1000],
            &mut [transmit(0..1000, 1000, (ip, to.port()))],
        );
    }
    let counters = to.counters();
    assert!(
        counters
            .iter()
            .any(|&(name, count)| name == "in_socket_overflow" && count > 0),
        "{counters:?}"
    );
}

#[test]
fn a_full_send_buffer_is_no_failure_and_everything_arrives_in_the_end() {
    let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
    let options = Options::default();
    let (from, to) = (open(&options, ip), open(&options, ip));
    assert!(from.wait_writable(Duration::ZERO));
    let payload = vec![3; 64 * 1000];
    let mut transmits = vec![transmit(0..payload.len(), 1000, (ip, to.port())); 20];
    let mut report = SendReport::default();
    let mut received = 0;
    let mut finished = 0;
    let mut batch = RecvBatch::new(8);
    while finished < transmits.len() {
        finished += from.send(
            Duration::ZERO,
            &payload,
            &mut transmits[finished..],
            &mut report,
        );
        batch.clear();
        to.recv(&mut batch).expect("no error");
        received += common::split(&batch).len();
    }
    while received < 20 * 64 {
        common::wait_readable(&to);
        batch.clear();
        to.recv(&mut batch).expect("no error");
        received += common::split(&batch).len();
    }
    assert_eq!(report.drain().count(), 0);
}

#[test]
fn both_families_answer_on_one_port() {
    let pairs = Pair::bind(&Options::default()).expect("a port");
    let v4 = pairs[0].v4.as_ref().expect("this host has IPv4");
    let v6 = pairs[0].v6.as_ref().expect("this host has IPv6");
    assert_eq!(v4.port(), v6.port());
    let from = open(&Options::default(), Ipv6Addr::LOCALHOST.into());
    send_all(
        &from,
        b"6",
        &mut [transmit(0..1, 1, (Ipv6Addr::LOCALHOST.into(), v6.port()))],
    );
    let Received { payload, .. } = &receive(v6, 1)[0];
    assert_eq!(payload, b"6");
}
