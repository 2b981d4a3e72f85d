//! UDP sockets on networks that change under them. Needs root.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use warren_packet::{Datagram, Ecn, RecvBatch, Source, Transmit};
use warren_tests_host::{Namespace, address, ip, readable};
use warren_udp::{Failed, Failure, Options, Pair, SendReport, Socket};

const NEAR: [&str; 2] = ["10.9.0.1", "fd09::1"];
const FAR: [&str; 2] = ["10.9.0.2", "fd09::2"];

/// Two namespaces with a cable between them, the hosts 1 and 2.
struct Cable {
    near: Namespace,
    far: Namespace,
}

impl Cable {
    fn new() -> Self {
        let cable = Self {
            near: Namespace::new(),
            far: Namespace::new(),
        };
        cable.near.run(|| {
            let far = cable.far.path();
            ip(&format!(
                "link add wud0 type veth peer name wud0 netns {far}"
            ));
            address("wud0", 1);
        });
        cable.far.run(|| address("wud0", 2));
        cable.near.run(|| warm_up(&FAR));
        cable
    }
}

/// Waits until datagrams cross, since the first ones on a new link may not.
fn warm_up(hosts: &[&str]) {
    for host in hosts {
        let host: IpAddr = host.parse().expect("an address");
        let any: IpAddr = if host.is_ipv4() {
            [0; 4].into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0)).expect("a port");
        socket.connect((host, 9)).expect("a route");
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("an option");
        // Nobody listens there: the answer is that.
        let answered = (0..250).any(|_| {
            let _lost = socket.send(b"?");
            let error = socket.recv(&mut [0; 1]).expect_err("nobody answers");
            error.kind() == std::io::ErrorKind::ConnectionRefused
        });
        assert!(answered, "{host} cannot be reached");
    }
}

fn open(options: &Options) -> Pair {
    Pair::bind(options).expect("a port").remove(0)
}

fn of<'a>(pair: &'a Pair, ip: &IpAddr) -> &'a Socket {
    let socket = if ip.is_ipv4() { &pair.v4 } else { &pair.v6 };
    socket.as_ref().expect("the kernel has both families")
}

fn transmit(len: usize, stride: usize, remote: IpAddr, port: u16) -> Transmit {
    Transmit {
        range: 0..len,
        stride,
        remote: (remote, port).into(),
        source: None,
        ecn: Ecn::NotEct,
        tos: 0,
        tag: 5,
    }
}

fn send(socket: &Socket, transmit: Transmit) -> Vec<Failed> {
    send_at(Duration::ZERO, socket, transmit)
}

fn send_at(now: Duration, socket: &Socket, transmit: Transmit) -> Vec<Failed> {
    let mut report = SendReport::default();
    let arena = vec![1; transmit.range.end];
    assert_eq!(socket.send(now, &arena, &mut [transmit], &mut report), 1);
    report.drain().collect()
}

/// Receives until there are `count` datagrams, and answers the messages that held them.
fn receive(socket: &Socket, count: usize) -> Vec<Datagram> {
    let mut batch = RecvBatch::new(100);
    let datagrams = |batch: &RecvBatch| -> usize {
        let all = batch.datagrams.iter();
        all.map(|message| message.datagrams().len()).sum()
    };
    while datagrams(&batch) < count {
        assert!(readable(socket), "{} of {count} came", datagrams(&batch));
        socket.recv(&mut batch).expect("reception never ends");
    }
    assert_eq!(datagrams(&batch), count);
    batch.datagrams
}

#[test]
fn the_mark_is_on_what_is_sent_and_changes_while_the_socket_is_open() {
    let cable = Cable::new();
    let far = cable.far.run(|| open(&Options::default()));
    cable.near.run(|| {
        ip("rule add fwmark 0x2a prohibit");
        ip("-6 rule add fwmark 0x2a prohibit");
        let near = open(&Options {
            fwmark: 0x2a,
            ..Options::default()
        });
        for host in FAR.map(|host| host.parse().expect("an address")) {
            let (socket, to) = (of(&near, &host), of(&far, &host));
            let one = transmit(300, 100, host, to.port());
            let refused = Failed {
                tag: 5,
                kind: Failure::Forbidden,
                datagrams: 3,
            };
            assert_eq!(send(socket, one.clone()), [refused]);
            socket.set_fwmark(0).expect("root may");
            assert_eq!(send(socket, one.clone()), []);
            receive(to, 3);
            socket.set_fwmark(0x2a).expect("root may");
            assert_eq!(send(socket, one), [refused]);
        }
    });
}

#[test]
fn a_host_without_ipv6_addresses_runs_with_ipv4() {
    let cable = Cable::new();
    let far = cable.far.run(|| open(&Options::default()));
    cable.near.run(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("root may");
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").expect("root may");
        let near = open(&Options::default());
        let host = FAR[0].parse().expect("an address");
        assert_eq!(
            send(
                of(&near, &host),
                transmit(9, 9, host, of(&far, &host).port())
            ),
            []
        );
        receive(of(&far, &host), 1);
        let host = FAR[1].parse().expect("an address");
        let failed = send(
            of(&near, &host),
            transmit(9, 9, host, of(&far, &host).port()),
        );
        assert_eq!(failed[0].kind, Failure::Unreachable);
    });
}

#[test]
fn a_local_address_that_is_removed_is_forgotten_and_another_answers() {
    let cable = Cable::new();
    let far = cable.far.run(|| open(&Options::default()));
    for (removed, host, prefix) in [("10.9.0.77", 0, 24), ("fd09::77", 1, 64)] {
        let (near, source) = cable.near.run(|| {
            let nodad = if host == 1 { "nodad" } else { "" };
            ip(&format!("addr add {removed}/{prefix} dev wud0 {nodad}"));
            let near = open(&Options::default());
            let source = Source {
                ip: removed.parse().expect("an address"),
                interface: 0,
            };
            (near, source)
        });
        let remote: IpAddr = FAR[host].parse().expect("an address");
        let (socket, to) = (of(&near, &remote), of(&far, &remote));
        let mut one = transmit(300, 100, remote, to.port());
        one.source = Some(source);
        assert_eq!(send(socket, one.clone()), []);
        let received = receive(to, 3);
        assert_eq!(
            received[0].remote,
            SocketAddr::from((source.ip, socket.port()))
        );

        cable
            .near
            .run(|| ip(&format!("addr del {removed}/{prefix} dev wud0")));
        let gone = Failed {
            tag: 5,
            kind: Failure::SourceGone,
            datagrams: 0,
        };
        assert_eq!(send(socket, one), [gone]);
        let received = receive(to, 3);
        let own: IpAddr = NEAR[host].parse().expect("an address");
        assert_eq!(received[0].remote, SocketAddr::from((own, socket.port())));
        assert!(socket.features().segmentation);
    }
}

#[test]
fn segments_larger_than_the_link_leave_as_fragments_and_only_there() {
    let cable = Cable::new();
    let far = cable.far.run(|| open(&Options::default()));
    let near = cable.near.run(|| {
        ip("link set wud0 mtu 1400");
        open(&Options::default())
    });
    for host in FAR.map(|host| host.parse().expect("an address")) {
        let (socket, to) = (of(&near, &host), of(&far, &host));
        let large = transmit(10 * 1452, 1452, host, to.port());
        assert_eq!(send(socket, large.clone()), []);
        let received = receive(to, 10);
        assert!(received.iter().all(|message| message.stride == 1452));
        assert!(
            socket.features().segmentation,
            "it ended for one destination"
        );

        // The link recovers, and a minute later so does the destination.
        cable.near.run(|| ip("link set wud0 mtu 1500"));
        assert_eq!(send_at(Duration::from_secs(61), socket, large), []);
        let received = receive(to, 10);
        assert_eq!(received.len(), 1, "one segmented send, received as one");
        cable.near.run(|| ip("link set wud0 mtu 1400"));
    }
}

#[test]
fn a_path_mtu_that_was_learnt_does_not_end_segmented_sends() {
    let cable = Cable::new();
    let far = cable.far.run(|| open(&Options::default()));
    let near = cable.near.run(|| {
        ip("route add 10.9.0.2/32 dev wud0 mtu 1280");
        ip("-6 route add fd09::2/128 dev wud0 mtu 1280");
        open(&Options::default())
    });
    for host in FAR.map(|host| host.parse().expect("an address")) {
        let (socket, to) = (of(&near, &host), of(&far, &host));
        assert_eq!(send(socket, transmit(10 * 1400, 1400, host, to.port())), []);
        let received = receive(to, 10);
        assert_eq!(received.len(), 1, "one segmented send, received as one");
    }
}

#[test]
fn a_link_that_goes_down_and_up_again_ends_nothing() {
    let cable = Cable::new();
    let far = cable.far.run(|| open(&Options::default()));
    let near = cable.near.run(|| open(&Options::default()));
    let host: IpAddr = FAR[0].parse().expect("an address");
    let (socket, to) = (of(&near, &host), of(&far, &host));
    let one = transmit(300, 100, host, to.port());
    assert_eq!(send(socket, one.clone()), []);
    receive(to, 3);
    cable.near.run(|| ip("link set wud0 down"));
    let failed = send(socket, one.clone());
    assert_eq!(
        (failed[0].kind, failed[0].datagrams),
        (Failure::Unreachable, 3)
    );
    cable.near.run(|| {
        ip("link set wud0 up");
        warm_up(&FAR[..1]);
    });
    assert_eq!(send(socket, one), []);
    receive(to, 3);
}

#[test]
fn a_random_port_that_is_taken_in_one_family_is_chosen_anew() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        std::fs::write(range, "40000 40007").expect("root may");
        let taken: Vec<_> = (40000..40007)
            .map(|port| UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).expect("it is free"))
            .collect();
        let pair = open(&Options::default());
        let v6 = pair.v6.as_ref().expect("the kernel has IPv6");
        assert_eq!(v6.port(), 40007);
        assert_eq!(pair.v4.as_ref().expect("and IPv4").port(), 40007);
        drop(taken);
    });
}
