//! The door of a router while somebody floods it in another's name.

use std::net::SocketAddr;

use warren_config::PeerChange;
use warren_engine::Reason;
use warren_tests_simulation::node::{Batches, Done, Node, flight};
use warren_tests_simulation::{Insider, Random};
use warren_wireguard::time::Instant;

/// BEHAVIOURS 23.
#[test]
fn a_peer_in_whose_name_somebody_floods_is_called_back_and_its_answer_let_in() {
    let mut random = Random::new(41);
    let mut node = Node::new(1, random.fork());
    let mut batches = Batches::new();
    let now = Instant::from_nanos(1_000_000_000);
    let home = SocketAddr::from(([198, 51, 100, 1], 4000));
    let mut peer = Insider::new(home, &node.public(), random.fork());
    // The first authenticator is right: that is all that a stranger can do.
    let mut stranger = Insider::new(home, &node.public(), random.fork());
    let configured = PeerChange {
        endpoints: Some(vec![home]),
        ..PeerChange::new(peer.public())
    };
    node.set_peers([configured], now);

    let mut calls = Vec::new();
    let forged = stranger.initiation(now);
    for _ in 0..1000 {
        arrive(&mut node, &mut batches, home, &forged, now);
        calls.extend(messages(&node.tick(now), 1));
    }
    assert!(node.dropped(Reason::InSourceLimited) > 300);
    assert_eq!(calls.len(), 1, "one call, however much is refused");
    // What the peer itself sends fares no better than the flood.
    let initiation = peer.initiation(now);
    arrive(&mut node, &mut batches, home, &initiation, now);
    assert!(messages(&node.tick(now), 2).is_empty());

    let response = peer.answer(&calls[0], now);
    arrive(&mut node, &mut batches, home, &response, now);
    let done = node.tick(now);
    let keepalive = messages(&done, 4);
    assert_eq!(keepalive.len(), 1, "the session is confirmed at once");
    assert!(peer.open(&keepalive[0]).is_empty());
}

/// As `wg_socket_send_buffer_as_reply_to_skb` of the kernel's driver sends it.
#[test]
fn a_cookie_reply_is_not_marked_as_the_other_handshake_messages_are() {
    let mut random = Random::new(42);
    let mut node = Node::new(1, random.fork());
    let mut batches = Batches::new();
    let now = Instant::from_nanos(1_000_000_000);
    let home = SocketAddr::from(([198, 51, 100, 1], 4000));
    let mut peer = Insider::new(home, &node.public(), random.fork());
    node.set_peers([PeerChange::new(peer.public())], now);

    let mut sent = Vec::new();
    for _ in 0..500 {
        let initiation = peer.initiation(now);
        let flight = flight(home, node.address, &initiation);
        assert!(batches.push_received(&flight, node.local()));
        sent.extend(marks(&node.inbound(&mut batches, now)));
        sent.extend(marks(&node.tick(now)));
    }
    assert!(sent.contains(&(2, 0x88)), "{sent:?}");
    assert!(sent.contains(&(3, 0)), "{sent:?}");
    assert!(!sent.contains(&(3, 0x88)), "{sent:?}");
}

fn arrive(node: &mut Node, batches: &mut Batches, from: SocketAddr, bytes: &[u8], now: Instant) {
    let flight = flight(from, node.address, bytes);
    assert!(batches.push_received(&flight, node.local()));
    node.inbound(batches, now);
}

/// The messages of a type that were sent.
fn messages(done: &Done, kind: u8) -> Vec<Vec<u8>> {
    let all = done.datagrams().map(|(_, bytes)| bytes.to_vec());
    all.filter(|bytes| bytes[0] == kind).collect()
}

/// Type and type of service of each message that was sent.
fn marks(done: &Done) -> Vec<(u8, u8)> {
    let all = done.datagrams();
    all.map(|(transmit, bytes)| (bytes[0], transmit.tos))
        .collect()
}
