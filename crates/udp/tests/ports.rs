//! Who may have a port.

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use common::{open, receive, send_all, split, transmit};
use rustix::net::sockopt;
use socket2::{Domain, Type};
use warren_packet::RecvBatch;
use warren_udp::{BindError, Family, Options, Pair};

#[test]
fn a_port_taken_in_one_family_only_is_a_clear_error() {
    for (ip, taken) in [
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), Family::V4),
        (IpAddr::from(Ipv6Addr::UNSPECIFIED), Family::V6),
    ] {
        let other = foreign(ip, 0, false).expect("a port of the system's choice");
        let port = port_of(&other);
        let error = Pair::bind(&with_port(port, 1)).expect_err("the port is taken");
        assert!(
            matches!(error, BindError::PortTaken { family, port: at } if (family, at) == (taken, port)),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            format!("UDP port {port} of {taken} is in use by another program")
        );
    }
}

#[test]
fn a_second_daemon_is_refused_whatever_number_of_sockets_either_has() {
    for first in [1, 2, 4] {
        for second in [1, 2, 4] {
            let pairs = Pair::bind(&with_port(0, first)).expect("a port");
            let port = pairs[0].v4.as_ref().expect("this host has IPv4").port();
            let error = Pair::bind(&with_port(port, second)).expect_err("the port is taken");
            assert!(matches!(error, BindError::PortTaken { .. }), "{error:?}");
            drop(pairs);
            Pair::bind(&with_port(port, second)).expect("the port is free again");
        }
    }
}

#[test]
fn a_program_that_wants_to_share_is_refused_in_every_form() {
    for shards in [1, 2, 4] {
        let pairs = Pair::bind(&with_port(0, shards)).expect("a port");
        let port = pairs[0].v4.as_ref().expect("this host has IPv4").port();
        for ip in ["0.0.0.0", "127.0.0.1", "::", "::1"] {
            let ip: IpAddr = ip.parse().expect("an address");
            for both_families in [false, true] {
                let other = foreign_form(ip, port, true, both_families);
                assert!(other.is_none(), "{shards} sockets, {ip}, {both_families}");
            }
        }
    }
}

#[test]
fn a_program_that_shares_already_is_not_joined() {
    for shards in [1, 2] {
        let other = foreign(Ipv4Addr::UNSPECIFIED.into(), 0, true).expect("a port");
        let error = Pair::bind(&with_port(port_of(&other), shards)).expect_err("it is taken");
        assert!(matches!(error, BindError::PortTaken { .. }), "{error:?}");
    }
}

#[test]
fn flows_are_spread_over_all_sockets_and_each_stays_on_one() {
    const SHARDS: usize = 3;
    for ip in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        let pairs = Pair::bind(&with_port(0, SHARDS)).expect("a port");
        let sockets: Vec<_> = pairs
            .iter()
            .map(|pair| if ip.is_ipv4() { &pair.v4 } else { &pair.v6 })
            .map(|socket| socket.as_ref().expect("this host has both families"))
            .collect();
        assert_eq!(sockets.len(), SHARDS);
        let port = sockets[0].port();
        let senders: Vec<_> = (0..32).map(|_| open(&Options::default(), ip)).collect();
        for sender in &senders {
            for _ in 0..4 {
                send_all(sender, b"x", &mut [transmit(0..1, 1, (ip, port))]);
            }
        }
        let mut of_shard = Vec::new();
        for socket in &sockets {
            let mut batch = RecvBatch::new(200);
            while socket.recv(&mut batch).expect("no error") > 0 {}
            of_shard.push(split(&batch));
        }
        assert_eq!(
            of_shard.iter().map(Vec::len).sum::<usize>(),
            4 * senders.len()
        );
        let flows = of_shard
            .iter()
            .map(|all| all.iter().map(|one| one.remote).collect());
        let flows: Vec<BTreeSet<SocketAddr>> = flows.collect();
        assert!(
            flows.iter().all(|flows| !flows.is_empty()),
            "a socket that nothing reaches"
        );
        let distinct: BTreeSet<_> = flows.iter().flatten().collect();
        assert_eq!(
            distinct.len(),
            flows.iter().map(BTreeSet::len).sum::<usize>()
        );
    }
}

#[test]
fn any_of_the_sockets_answers_from_the_shared_port() {
    let ip = Ipv4Addr::LOCALHOST.into();
    let pairs = Pair::bind(&with_port(0, 3)).expect("a port");
    let caller = open(&Options::default(), ip);
    for pair in &pairs {
        let socket = pair.v4.as_ref().expect("this host has IPv4");
        send_all(socket, b"x", &mut [transmit(0..1, 1, (ip, caller.port()))]);
        assert_eq!(
            receive(&caller, 1)[0].remote.port(),
            pairs[0].v4.as_ref().expect("it").port()
        );
    }
}

#[test]
fn no_family_at_all_is_an_error_and_one_is_enough() {
    let neither = Options {
        v4: false,
        v6: false,
        ..Options::default()
    };
    assert!(matches!(Pair::bind(&neither), Err(BindError::NoFamily)));
    let alone = Options {
        v6: false,
        ..Options::default()
    };
    let pairs = Pair::bind(&alone).expect("IPv4 alone");
    assert!(pairs[0].v4.is_some() && pairs[0].v6.is_none());
}

#[test]
fn buffers_are_as_large_as_asked_or_as_the_host_allows() {
    let socket = open(&Options::default(), Ipv4Addr::LOCALHOST.into());
    let plain = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let size = sockopt::socket_recv_buffer_size(socket.as_fd()).expect("an option");
    let usual = sockopt::socket_recv_buffer_size(&plain).expect("an option");
    assert!(size >= usual, "{size} of {usual}");
}

fn with_port(port: u16, shards: usize) -> Options {
    Options {
        port,
        shards,
        ..Options::default()
    }
}

/// Another program's socket, if it gets the port.
fn foreign(ip: IpAddr, port: u16, share: bool) -> Option<socket2::Socket> {
    foreign_form(ip, port, share, false)
}

fn foreign_form(
    ip: IpAddr,
    port: u16,
    share: bool,
    both_families: bool,
) -> Option<socket2::Socket> {
    let domain = Domain::for_address((ip, port).into());
    let socket = socket2::Socket::new(domain, Type::DGRAM, None).expect("a socket");
    if ip.is_ipv6() {
        socket.set_only_v6(!both_families).expect("an option");
    }
    socket.set_reuse_port(share).expect("an option");
    socket.set_reuse_address(share).expect("an option");
    socket.bind(&SocketAddr::from((ip, port)).into()).ok()?;
    Some(socket)
}

fn port_of(socket: &socket2::Socket) -> u16 {
    let address = socket.local_addr().expect("it is bound");
    address.as_socket().expect("an IP address").port()
}
