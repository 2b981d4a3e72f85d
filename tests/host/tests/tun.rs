//! TUN interfaces of a real kernel. Needs root.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use warren_packet::coalesce::Merge;
use warren_packet::icmp::{MAX_REPLY, unreachable};
use warren_packet::segment::Segments;
use warren_packet::{ReadBatch, ip, vnet};
use warren_tests_host::{Namespace, Wire, address, ip, readable, ready};
use warren_tests_lab::{patiently, set_udp_segment};
use warren_tun::{Device, Features, LinkEvent, OpenError, Options, Queue, is_deleted};

fn options() -> Options {
    Options {
        name: "wpk0".to_owned(),
        ..Options::default()
    }
}

/// A device in the namespace of the calling thread, with addresses of `host`, and its queues.
fn open(options: &Options, host: u8) -> (Device, Vec<Queue>) {
    let mut device = Device::open(options).expect("these tests need root and a TUN");
    address(&device.name(), host);
    let queues = device.take_queues();
    (device, queues)
}

/// A device that was open a moment ago. Programs that other tests start hold every descriptor of this process
/// until they run, so it may still be in use.
fn open_again(options: &Options) -> Device {
    let mut opened = None;
    patiently("nobody holds it", Duration::from_secs(10), || {
        opened = match Device::open(options) {
            Err(OpenError::Busy(_)) => None,
            result => Some(result.expect("it opens again")),
        };
        opened.is_some()
    });
    opened.expect("it is open")
}

fn merge(features: Features) -> Merge {
    Merge {
        tcp: features.tcp_offload,
        udp: features.udp_offload,
    }
}

/// Wait for packets of UDP or TCP, and finish them; others, which the kernel sends on its own
/// account, are passed over.
fn packets(queue: &Queue, protocol: u8) -> Vec<Vec<u8>> {
    let mut batch = ReadBatch::new(1 << 20, 64);
    let mut packets = Vec::new();
    while packets.is_empty() {
        assert!(readable(queue), "no packet came");
        batch.clear();
        queue.read(&mut batch).expect("it can be read");
        for packet in batch.packets() {
            let bytes = &batch.arena()[packet.range.clone()];
            let parsed = ip::Packet::parse(bytes).expect("the kernel sends IP");
            if parsed.transport().map(|t| t.protocol) != Some(protocol) {
                continue;
            }
            let segments = Segments::new(packet.header, bytes).expect("the kernel is right");
            let mut out = vec![0; segments.len(0)];
            segments.copy_into(0, &mut out);
            packets.push(out);
        }
    }
    packets
}

/// The answer to a UDP packet: the same from the other end. No sum changes by that.
fn turned(packet: &[u8]) -> Vec<u8> {
    let mut turned = packet.to_vec();
    let (first, len, ports) = if packet[0] >> 4 == 4 {
        (12, 4, 20)
    } else {
        (8, 16, 40)
    };
    turned[first..first + len].copy_from_slice(&packet[first + len..first + 2 * len]);
    turned[first + len..first + 2 * len].copy_from_slice(&packet[first..first + len]);
    turned[ports..ports + 2].copy_from_slice(&packet[ports + 2..ports + 4]);
    turned[ports + 2..ports + 4].copy_from_slice(&packet[ports..ports + 2]);
    turned
}

fn write(queue: &Queue, packet: &[u8]) -> std::io::Result<()> {
    queue.write(
        &vnet::Header::NONE,
        packet,
        std::slice::from_ref(&(0..packet.len())),
    )
}

fn udp(remote: &str) -> UdpSocket {
    let any = if remote.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any).expect("a port is free");
    socket.connect(remote).expect("there is a route");
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a timeout can be set");
    socket
}

/// How often something is tried again that a busy machine may lose: the kernel's backlog of
/// received packets is shared by all namespaces.
const TRIES: usize = 20;

/// Send a datagram into the device, answer it on `queue`, and see the answer arrive.
fn echo(queue: &Queue) {
    for remote in ["10.9.0.77:7", "[fd09::77]:7"] {
        let socket = udp(remote);
        let arrived = (0..TRIES).any(|_| {
            socket.send(b"there").expect("it can be sent");
            write(queue, &turned(&packets(queue, ip::UDP)[0])).expect("the kernel takes it");
            let mut answer = [0; 16];
            let len = socket.recv(&mut answer);
            len.is_ok_and(|len| &answer[..len] == b"there")
        });
        assert!(arrived, "no answer from {remote} arrives");
    }
}

/// Every way of leaving something off, beside the full set.
fn variants() -> Vec<(&'static str, Options)> {
    let all = options();
    vec![
        ("everything", all.clone()),
        (
            "no UDP offload",
            Options {
                udp_offload: false,
                ..all.clone()
            },
        ),
        (
            "no tunnel offload",
            Options {
                tunnel_offload: false,
                ..all.clone()
            },
        ),
        (
            "no offload",
            Options {
                offload: false,
                ..all.clone()
            },
        ),
        (
            "no multi-queue",
            Options {
                multi_queue: false,
                ..all.clone()
            },
        ),
        (
            "no steering",
            Options {
                steering: false,
                ..all.clone()
            },
        ),
        (
            "nothing",
            Options {
                offload: false,
                udp_offload: false,
                tunnel_offload: false,
                multi_queue: false,
                steering: false,
                ..all
            },
        ),
    ]
}

#[test]
fn each_feature_switched_off_is_off_and_packets_still_pass() {
    for (name, options) in variants() {
        let options = Options {
            queues: 3,
            ..options
        };
        Namespace::new().run(|| {
            let (device, queues) = open(&options, 1);
            let features = device.features();
            assert!(options.offload || !features.vnet_header, "{name}");
            assert_eq!(features.tcp_offload, options.offload, "{name}");
            assert!(options.udp_offload || !features.udp_offload, "{name}");
            let tunnel_allowed = options.offload && options.tunnel_offload;
            assert!(tunnel_allowed || !features.tunnel_offload, "{name}");
            assert_eq!(features.multi_queue, options.multi_queue, "{name}");
            assert_eq!(
                features.queues,
                if options.multi_queue { 3 } else { 1 },
                "{name}"
            );
            assert_eq!(features.queues, queues.len(), "{name}");
            assert_eq!(
                features.steering,
                options.steering && queues.len() > 1,
                "{name}"
            );
            if queues.len() == 1 {
                echo(&queues[0]);
            }
        });
        Namespace::new().run(|| {
            let (_device, queues) = open(
                &Options {
                    queues: 1,
                    ..options
                },
                1,
            );
            echo(&queues[0]);
        });
    }
}

#[test]
fn mtu_and_state_are_set_and_told() {
    Namespace::new().run(|| {
        let mut options = options();
        options.mtu = Some(1380);
        let device = Device::open(&options).expect("it opens");
        assert_eq!(device.name(), "wpk0");
        assert_eq!(device.mtu().expect("it is told"), 1380);
        device.set_mtu(8920).expect("it can be set");
        assert_eq!(device.mtu().expect("it is told"), 8920);
        assert!(!device.is_up().expect("it is told"));
        device.set_up(true).expect("it can be set");
        assert!(device.is_up().expect("it is told"));
        device.set_gso_max_size(63_000).expect("it can be set");
        ip("link set wpk0 down");
        ip("link set wpk0 name wpk1");
        assert_eq!(device.name(), "wpk1");
        assert!(!device.is_up().expect("it is told"));
    });
}

#[test]
fn the_kernel_chooses_a_name_where_none_is_given() {
    Namespace::new().run(|| {
        let mut options = options();
        options.name = String::new();
        let first = Device::open(&options).expect("it opens");
        options.name = "wpk%d".to_owned();
        let second = Device::open(&options).expect("it opens");
        assert_eq!(first.name(), "tun0");
        assert_eq!(second.name(), "wpk0");
    });
}

#[test]
fn a_persistent_interface_is_attached_to_again_with_any_number_of_queues() {
    Namespace::new().run(|| {
        for queues in [1, 4, 1, 2] {
            let options = Options {
                queues,
                persist: true,
                ..options()
            };
            let mut device = open_again(&options);
            assert!(device.features().persistent);
            assert_eq!(device.take_queues().len(), queues);
        }
        let device = open_again(&options());
        assert!(!device.features().persistent);
        drop(device);
        patiently("it is gone", Duration::from_secs(10), || !is_there("wpk0"));
    });
}

#[test]
fn a_persistent_interface_made_for_one_queue_is_used_with_one() {
    Namespace::new().run(|| {
        ip("tuntap add dev wpk0 mode tun");
        let (device, queues) = open(
            &Options {
                queues: 4,
                ..options()
            },
            1,
        );
        assert!(!device.features().multi_queue);
        assert!(device.features().tcp_offload);
        assert_eq!(queues.len(), 1);
        echo(&queues[0]);
    });
}

#[test]
fn offloads_left_on_by_an_earlier_process_are_taken_back() {
    Namespace::new().run(|| {
        drop(open(
            &Options {
                persist: true,
                ..options()
            },
            1,
        ));
        let plain = Options {
            persist: true,
            offload: false,
            ..options()
        };
        let mut device = open_again(&plain);
        assert!(!device.features().vnet_header);
        let queue = device.take_queues().remove(0);
        // Without the header nothing says where to cut, so nothing may be larger than the MTU.
        let socket = udp("10.9.0.77:7");
        set_udp_segment(&socket, 1000).expect("the kernel cuts");
        socket.send(&[7; 10_000]).expect("it can be sent");
        let lengths: Vec<usize> = packets(&queue, ip::UDP).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1028; 10]);
    });
}

#[test]
fn an_interface_in_use_is_refused_to_a_second_process() {
    Namespace::new().run(|| {
        for multi_queue in [true, false] {
            let options = Options {
                multi_queue,
                persist: true,
                ..options()
            };
            let first = Device::open(&options).expect("it opens");
            for multi_queue in [true, false] {
                let second = Device::open(&Options {
                    multi_queue,
                    ..options.clone()
                });
                assert!(
                    matches!(&second, Err(OpenError::Busy(name)) if name == "wpk0"),
                    "{second:?}"
                );
            }
            first.delete().expect("it can be deleted");
        }
    });
}

#[test]
fn an_interface_that_is_no_tun_is_refused() {
    Namespace::new().run(|| {
        ip("link add wpkveth type veth peer name wpkpeer");
        ip("link set wpkveth up");
        ip("tuntap add dev wpktap mode tap");
        for name in ["lo", "wpkveth", "wpktap"] {
            let options = Options {
                name: name.to_owned(),
                ..options()
            };
            let refused = Device::open(&options);
            assert!(
                matches!(&refused, Err(OpenError::Other(_))),
                "{name}: {refused:?}"
            );
        }
    });
}

#[test]
fn a_device_deleted_underneath_is_a_clean_and_named_end() {
    for persist in [false, true] {
        Namespace::new().run(|| {
            let (device, queues) = open(
                &Options {
                    queues: 2,
                    persist,
                    ..options()
                },
                1,
            );
            let mut links = device.links().expect("it can be watched");
            assert!(!device.is_deleted());
            ip("link del wpk0");
            assert!(device.is_deleted());
            for queue in &queues {
                // A poll tells, so that no one waits for ever.
                assert!(readable(queue));
                let error = queue
                    .read(&mut ReadBatch::new(0, 1))
                    .expect_err("it is gone");
                assert!(is_deleted(&error));
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                let error = write(queue, &[0x45; 20]).expect_err("it is gone");
                assert!(is_deleted(&error));
            }
            assert!(readable(&links));
            let mut last = None;
            while let Some(event) = links.next_event().expect("it can be watched") {
                last = Some(event);
            }
            assert_eq!(last, Some(LinkEvent::Deleted));
            assert_eq!(device.name(), "wpk0");
            assert_eq!(
                device.mtu().expect_err("it is gone").kind(),
                ErrorKind::NotFound
            );
            device.delete().expect("what is gone is deleted");
        });
    }
}

#[test]
fn set_down_and_up_again_is_no_end() {
    Namespace::new().run(|| {
        let (device, queues) = open(&options(), 1);
        let mut links = device.links().expect("it can be watched");
        let mut events = || {
            assert!(readable(&links));
            let mut events = Vec::new();
            while let Some(event) = links.next_event().expect("it can be watched") {
                events.push(event);
            }
            events
        };
        echo(&queues[0]);
        ip("link set wpk0 down");
        assert_eq!(events(), [LinkEvent::Down]);
        let mut batch = ReadBatch::new(1 << 20, 16);
        let mut answer = [0x45; 20];
        answer[2..4].copy_from_slice(&20u16.to_be_bytes());
        let error = write(&queues[0], &answer).expect_err("it is down");
        assert_eq!(error.kind(), ErrorKind::NetworkDown);
        while queues[0].read(&mut batch).expect("it is only down") > 0 {
            batch.clear();
        }

        ip("link set wpk0 up");
        ip("link set wpk0 mtu 1300");
        assert_eq!(events(), [LinkEvent::Up, LinkEvent::Mtu(1300)]);
        ip("addr add fd09::1/64 dev wpk0 nodad");
        echo(&queues[0]);
        ip("link set wpk0 name wpk1");
        assert_eq!(events(), [LinkEvent::Renamed("wpk1".to_owned())]);
        drop(device);
    });
}

#[test]
fn an_interface_moved_to_another_namespace_works_on() {
    let (here, there) = (Namespace::new(), Namespace::new());
    let (device, queues, mut links) = here.run(|| {
        let (device, queues) = open(&options(), 1);
        let links = device.links().expect("it can be watched");
        (device, queues, links)
    });
    here.run(|| ip(&format!("link set wpk0 netns {}", there.path())));
    assert!(readable(&links));
    let mut last = None;
    while let Some(event) = links.next_event().expect("it can be watched") {
        last = Some(event);
    }
    assert_eq!(last, Some(LinkEvent::Moved));
    assert!(!device.is_deleted());
    there.run(|| {
        address("wpk0", 1);
        echo(&queues[0]);
    });
}

#[test]
fn a_queue_that_is_handed_over_is_used_as_it_is() {
    for (name, options) in variants() {
        Namespace::new().run(|| {
            let (device, mut queues) = open(&options, 1);
            let features = device.features();
            drop(device);
            let descriptor = OwnedFd::from(queues.remove(0));
            let mut device = Device::from_fd(descriptor, &Options::default()).expect("it is a TUN");
            assert_eq!(device.name(), "wpk0");
            assert_eq!(
                device.features().vnet_header,
                features.vnet_header,
                "{name}"
            );
            assert_eq!(
                device.features().multi_queue,
                features.multi_queue,
                "{name}"
            );
            let queue = device.take_queues().remove(0);
            echo(&queue);
        });
    }
}

#[test]
fn a_refused_packet_is_told_from_a_broken_queue() {
    Namespace::new().run(|| {
        let (_device, queues) = open(&options(), 1);
        let error = write(&queues[0], &[0x15; 40]).expect_err("it is not IP");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        // More pieces than any coalescer makes.
        let error = queues[0]
            .write(&vnet::Header::NONE, &[0x45; 100], &vec![0..1; 100])
            .expect_err("it is too many");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        echo(&queues[0]);
    });
    Namespace::new().run(|| {
        let (_device, queues) = open(
            &Options {
                offload: false,
                ..options()
            },
            1,
        );
        let header = vnet::Header {
            gso_size: 1,
            ..vnet::Header::NONE
        };
        let error = queues[0]
            .write(&header, &[0x45; 40], std::slice::from_ref(&(0..40)))
            .expect_err("there is no header to say it in");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_destination_unreachable_reaches_the_application() {
    Namespace::new().run(|| {
        let (_device, queues) = open(&options(), 1);
        for remote in ["10.9.0.77:7", "[fd09::77]:7"] {
            thread::scope(|scope| {
                // Threads stay in the namespace of who makes them.
                let caller = scope.spawn(|| TcpStream::connect(remote));
                let mut reply = [0; MAX_REPLY];
                while !caller.is_finished() {
                    if !ready(&queues[0], 100) {
                        continue;
                    }
                    for offending in packets(&queues[0], ip::TCP) {
                        let len = unreachable(&offending, &mut reply).expect("it is answered");
                        write(&queues[0], &reply[..len]).expect("the kernel takes it");
                    }
                }
                let result = caller.join().expect("it returns");
                let error = result.expect_err("it is told");
                assert_eq!(
                    error.kind(),
                    ErrorKind::HostUnreachable,
                    "{remote}: {error}"
                );
            });
        }
    });
}

/// Two namespaces, each with a TUN, joined by a wire that cuts and joins; returns both directions
/// when `work` is done.
fn spliced(options: &Options, work: impl FnOnce(&Namespace, &Namespace) + Send) -> [Wire; 2] {
    let (left, right) = (Namespace::new(), Namespace::new());
    let (left_device, left_queues) = left.run(|| open(options, 1));
    let (right_device, right_queues) = right.run(|| open(options, 2));
    let mut there = Wire::new(merge(right_device.features()));
    let mut back = Wire::new(merge(left_device.features()));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (wire, from, to) in [
            (&mut there, &left_queues[0], &right_queues[0]),
            (&mut back, &right_queues[0], &left_queues[0]),
        ] {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    if !wire.step(from, to) {
                        ready(from, 20);
                    }
                }
            });
        }
        // Also when the work panics, so that the panic is seen and not a hang.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&left, &right)));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    [there, back]
}

/// The byte of a stream at a place.
fn byte_at(place: usize) -> u8 {
    (place as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(17) as u8
}

fn transfer(left: &Namespace, right: &Namespace, remote: &str, bytes: usize) {
    let listener = right.run(|| TcpListener::bind(remote).expect("the address is there"));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = left.run(|| TcpStream::connect(remote).expect("it answers"));
            let chunk: Vec<u8> = (0..bytes).map(byte_at).collect();
            stream.write_all(&chunk).expect("it is taken");
        });
        let (mut stream, _) = listener.accept().expect("somebody calls");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout can be set");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("it arrives");
        assert_eq!(received.len(), bytes);
        let wrong = received
            .iter()
            .enumerate()
            .find(|(at, byte)| **byte != byte_at(*at));
        assert_eq!(wrong, None);
    });
}

#[test]
fn a_tcp_stream_is_cut_and_joined_and_arrives_intact() {
    const BYTES: usize = 8 << 20;
    let mut cases = variants();
    for mtu in [1280, 8920] {
        let options = Options {
            mtu: Some(mtu),
            ..options()
        };
        cases.push(("everything", options));
    }
    for (name, options) in cases {
        let mtu = options.mtu.unwrap_or(1420);
        let options = Options {
            mtu: Some(mtu),
            ..options
        };
        let [there, back] = spliced(&options, |left, right| {
            transfer(left, right, "10.9.0.2:7777", BYTES);
            transfer(left, right, "[fd09::2]:7777", BYTES);
        });
        let what = format!("{name}, MTU {mtu}: {there:?}");
        if options.offload {
            assert!(
                there.largest_read > mtu as usize,
                "nothing large was read: {what}"
            );
            assert!(
                there.segments > there.read * 4,
                "little was to be cut: {what}"
            );
            assert!(
                there.written * 3 < there.segments,
                "little was joined: {what}"
            );
        } else {
            assert!(there.largest_read <= mtu as usize, "{what}");
            assert_eq!(there.read, there.segments, "{what}");
            assert_eq!(there.written, there.segments, "{what}");
        }
        assert!(back.read > 0);
    }
}

#[test]
fn a_tcp_stream_in_vxlan_is_cut_with_its_outer_headers_and_arrives_intact() {
    for tunnel_offload in [true, false] {
        for checksum in ["udpcsum", "noudpcsum"] {
            let options = Options {
                tunnel_offload,
                ..options()
            };
            let granted = Namespace::new().run(|| open(&options, 1).0.features().tunnel_offload);
            let [there, _] = spliced(&options, |left, right| {
                for (namespace, own, other) in [(left, 1, 2), (right, 2, 1)] {
                    namespace.run(|| {
                        ip(&format!(
                            "link add overlay type vxlan id 7 dstport 4789 {checksum} local 10.9.0.{own} remote 10.9.0.{other}"
                        ));
                        ip(&format!("addr add 10.8.0.{own}/24 dev overlay"));
                        ip("link set overlay mtu 1370 up");
                    });
                }
                transfer(left, right, "10.8.0.2:7777", 4 << 20);
            });
            let what = format!("granted {granted}, {checksum}: {there:?}");
            if granted {
                assert!(
                    there.segments > there.read * 4,
                    "little was to be cut: {what}"
                );
            } else {
                assert_eq!(there.read, there.segments, "{what}");
            }
            assert!(
                there.written * 3 < there.segments,
                "little was joined: {what}"
            );
        }
    }
}

#[test]
fn datagrams_sent_at_once_cross_as_one_and_arrive_each_for_itself() {
    for remote in ["10.9.0.2:7777", "[fd09::2]:7777"] {
        let [there, _] = spliced(&options(), |left, right| {
            let receiver = right.run(|| UdpSocket::bind(remote).expect("the address is there"));
            let sender = left.run(|| udp(remote));
            set_udp_segment(&sender, 1000).expect("the kernel cuts");
            receiver
                .set_read_timeout(Some(Duration::from_millis(300)))
                .expect("a timeout can be set");
            let payload: Vec<u8> = (0..15_500).map(byte_at).collect();
            for _ in 0..50 {
                let arrived = (0..TRIES).any(|_| {
                    sender.send(&payload).expect("it can be sent");
                    let mut datagram = [0; 2000];
                    let all = payload.chunks(1000).all(|expected| {
                        let len = receiver.recv(&mut datagram);
                        len.is_ok_and(|len| &datagram[..len] == expected)
                    });
                    // What is left of a try must not be met by the next.
                    while !all && receiver.recv(&mut datagram).is_ok() {}
                    all
                });
                assert!(arrived, "some datagram never arrives, or not as it was");
            }
        });
        assert!(there.largest_read > 15_500, "{there:?}");
        assert!(there.written < there.segments / 8, "{there:?}");
    }
}

/// What `steering.rs` says, once more: which of `queues` a UDP packet takes.
fn model(packet: &[u8], queues: u32) -> u32 {
    const MULTIPLIER: u64 = 0x5bd1_e995;
    let word = |at: usize| {
        u64::from(u32::from_be_bytes([
            packet[at],
            packet[at + 1],
            packet[at + 2],
            packet[at + 3],
        ]))
    };
    let (addresses, ports): (Vec<usize>, usize) = if packet[0] >> 4 == 4 {
        (vec![12, 16], 20)
    } else {
        ((8..40).step_by(4).collect(), 40)
    };
    let mut hash = 0u64;
    for at in addresses {
        hash = hash.wrapping_mul(MULTIPLIER).wrapping_add(word(at));
    }
    hash = hash.wrapping_mul(MULTIPLIER).wrapping_add(word(ports));
    hash = hash
        .wrapping_mul(MULTIPLIER)
        .wrapping_add(u64::from(ip::UDP));
    hash = (hash ^ hash >> 32).wrapping_mul(MULTIPLIER);
    // The kernel keeps 16 bits of what the program returns.
    u32::from((hash >> 32) as u16) % queues
}

/// Send `rounds` numbered datagrams in each of many flows, answer each on queue 0, and tell the
/// queues on which each flow came.
fn queues_of_flows(queues: &[Queue], remote: &str, rounds: u32) -> Vec<Vec<usize>> {
    let sockets: Vec<UdpSocket> = (0..48).map(|_| udp(remote)).collect();
    let mut seen = vec![Vec::new(); sockets.len()];
    let mut batch = ReadBatch::new(1 << 20, 64);
    for round in 0..rounds {
        for (flow, socket) in sockets.iter().enumerate() {
            let mut payload = [0; 64];
            payload[0] = flow as u8;
            payload[1..5].copy_from_slice(&round.to_be_bytes());
            socket.send(&payload).expect("it can be sent");
            // Sent is queued: a TUN has no delay.
            for (index, queue) in queues.iter().enumerate() {
                batch.clear();
                queue.read(&mut batch).expect("it can be read");
                for packet in batch.packets() {
                    let bytes = &batch.arena()[packet.range.clone()];
                    let parsed = ip::Packet::parse(bytes).expect("the kernel sends IP");
                    let Some(transport) = parsed.transport() else {
                        continue;
                    };
                    if transport.protocol != ip::UDP {
                        continue;
                    }
                    let payload = &bytes[transport.offset + 8..];
                    assert_eq!(usize::from(payload[0]), flow);
                    assert_eq!(
                        payload[1..5],
                        round.to_be_bytes(),
                        "a packet is out of order"
                    );
                    seen[flow].push(index);
                    let segments = Segments::new(packet.header, bytes).expect("it is right");
                    let mut out = vec![0; segments.len(0)];
                    segments.copy_into(0, &mut out);
                    write(&queues[0], &turned(&out)).expect("the kernel takes it");
                }
            }
        }
    }
    for flow in &seen {
        assert_eq!(flow.len(), rounds as usize);
    }
    seen
}

#[test]
fn a_flow_stays_on_one_queue_wherever_it_is_answered() {
    for remote in ["10.9.0.77:7", "[fd09::77]:7"] {
        Namespace::new().run(|| {
            let (device, queues) = open(
                &Options {
                    queues: 4,
                    ..options()
                },
                1,
            );
            assert!(
                device.features().steering,
                "the kernel takes no steering program"
            );
            let flows = queues_of_flows(&queues, remote, 20);
            let mut used = [0; 4];
            for flow in flows {
                assert!(flow.iter().all(|queue| *queue == flow[0]), "{flow:?}");
                used[flow[0]] += 1;
            }
            assert!(used.iter().all(|count| *count > 0), "{used:?}");
        });
    }
}

#[test]
fn numbered_flows_arrive_in_order_under_load() {
    const FLOWS: u16 = 16;
    const PACKETS: u32 = 3000;
    Namespace::new().run(|| {
        let (_device, queues) = open(
            &Options {
                queues: 4,
                ..options()
            },
            1,
        );
        let done = AtomicBool::new(false);
        let (done, queues) = (&done, &queues);
        let logs: Vec<Vec<(u16, u32)>> = thread::scope(|scope| {
            let readers: Vec<_> = (0..queues.len())
                .map(|index| scope.spawn(move || read_and_answer(queues, index, done)))
                .collect();
            let senders: Vec<_> = (0..2)
                .map(|half| {
                    scope.spawn(move || {
                        let flows: Vec<(u16, UdpSocket)> = (0..FLOWS)
                            .filter(|flow| flow % 2 == half)
                            .map(|flow| (flow, udp("10.9.0.77:7")))
                            .collect();
                        for number in 0..PACKETS {
                            for (flow, socket) in &flows {
                                let mut payload = [0; 200];
                                payload[..2].copy_from_slice(&flow.to_be_bytes());
                                payload[2..6].copy_from_slice(&number.to_be_bytes());
                                socket.send(&payload).expect("it can be sent");
                            }
                        }
                    })
                })
                .collect();
            for sender in senders {
                sender.join().expect("it sends");
            }
            done.store(true, Ordering::Relaxed);
            readers
                .into_iter()
                .map(|reader| reader.join().expect("it reads"))
                .collect()
        });
        for flow in 0..FLOWS {
            let numbers: Vec<Vec<u32>> = logs
                .iter()
                .map(|log| {
                    log.iter()
                        .filter(|(f, _)| *f == flow)
                        .map(|(_, n)| *n)
                        .collect()
                })
                .collect();
            let used: Vec<&Vec<u32>> = numbers.iter().filter(|n| !n.is_empty()).collect();
            assert_eq!(
                used.len(),
                1,
                "flow {flow} is on several queues, or on none"
            );
            assert!(
                used[0].is_sorted_by(|a, b| a < b),
                "flow {flow} is out of order"
            );
            // A queue that is full drops, yet not most.
            assert!(used[0].len() > 100, "flow {flow}: {}", used[0].len());
        }
    });
}

/// Log flow and number of all that comes on a queue, and answer on another one: whom the kernel
/// would follow. Ends when nothing comes any more.
fn read_and_answer(queues: &[Queue], index: usize, done: &AtomicBool) -> Vec<(u16, u32)> {
    let mut batch = ReadBatch::new(1 << 20, 64);
    let mut log = Vec::new();
    loop {
        let last = done.load(Ordering::Relaxed);
        batch.clear();
        if queues[index].read(&mut batch).expect("it can be read") == 0 {
            if last {
                return log;
            }
            ready(&queues[index], 20);
            continue;
        }
        for packet in batch.packets() {
            let bytes = &batch.arena()[packet.range.clone()];
            if bytes[0] == 0x45 && bytes[9] == ip::UDP {
                log.push((
                    u16::from_be_bytes([bytes[28], bytes[29]]),
                    u32::from_be_bytes([bytes[30], bytes[31], bytes[32], bytes[33]]),
                ));
                // The sum may be unfinished: that the kernel drops it does not matter here.
                write(&queues[log.len() % queues.len()], &turned(bytes)).expect("it is taken");
            }
        }
    }
}

#[test]
fn the_kernel_takes_joined_datagrams_of_any_size_and_number() {
    for remote in ["10.9.0.2:7777", "[fd09::2]:7777"] {
        let (left, right) = (Namespace::new(), Namespace::new());
        let (_left_device, from) = left.run(|| open(&options(), 1));
        let (right_device, to) = right.run(|| open(&options(), 2));
        let sender = left.run(|| udp(remote));
        let receiver = right.run(|| UdpSocket::bind(remote).expect("the address is there"));
        receiver
            .set_read_timeout(Some(Duration::from_millis(300)))
            .expect("a timeout can be set");
        for size in [1, 2, 63, 500, 1372] {
            for count in [2, 3, 44, 64] {
                let arrived = (0..TRIES).any(|_| {
                    let mut wire = Wire::new(merge(right_device.features()));
                    for number in 0..count {
                        sender.send(&vec![number; size]).expect("it can be sent");
                    }
                    while wire.step(&from[0], &to[0]) {}
                    let mut datagram = [0; 2000];
                    let mut next = || {
                        receiver
                            .recv(&mut datagram)
                            .map(|len| datagram[..len].to_vec())
                    };
                    let all = (0..count).all(|n| next().is_ok_and(|d| d == vec![n; size]));
                    while !all && next().is_ok() {}
                    // Others may have come between, but most of it was joined.
                    all && wire.written <= wire.segments / 2 + 1
                });
                assert!(arrived, "{remote}: {count} datagrams of {size} bytes");
            }
        }
    }
}

#[test]
fn without_steering_a_flow_follows_its_last_writer() {
    Namespace::new().run(|| {
        let (_device, queues) = open(
            &Options {
                queues: 4,
                steering: false,
                ..options()
            },
            1,
        );
        let flows = queues_of_flows(&queues, "10.9.0.77:7", 3);
        assert!(flows.iter().all(|flow| flow[1..] == [0, 0]), "{flows:?}");
        assert!(flows.iter().any(|flow| flow[0] != 0), "{flows:?}");
    });
}

#[test]
fn the_steering_program_computes_what_its_model_does() {
    for remote in ["10.9.0.77:7", "[fd09::77]:7"] {
        Namespace::new().run(|| {
            let (_device, queues) = open(
                &Options {
                    queues: 3,
                    ..options()
                },
                1,
            );
            for _ in 0..64 {
                let socket = udp(remote);
                socket.send(&[7; 40]).expect("it can be sent");
                let found = (0..queues.len()).find(|index| ready(&queues[*index], 0));
                // Neighbour discovery and its like may be on a queue, too.
                let index = found.expect("it was sent");
                let mut batch = ReadBatch::new(1 << 20, 64);
                for (index, queue) in queues.iter().enumerate().skip(index) {
                    batch.clear();
                    queue.read(&mut batch).expect("it can be read");
                    for packet in batch.packets() {
                        let bytes = &batch.arena()[packet.range.clone()];
                        let protocol = ip::Packet::parse(bytes)
                            .ok()
                            .and_then(|packet| packet.transport())
                            .map(|transport| transport.protocol);
                        if protocol == Some(ip::UDP) {
                            assert_eq!(model(bytes, 3), index as u32);
                        }
                    }
                }
            }
        });
    }
}

/// Whether there is an interface of this name.
fn is_there(name: &str) -> bool {
    let output = std::process::Command::new("ip")
        .args(["link", "show", "dev", name])
        .output()
        .expect("there is ip(8)");
    output.status.success()
}
