//! Where a peer is thought to be.

use warren_wireguard::Endpoint;
use warren_wireguard::time::Instant;

use crate::util::*;

const ELSEWHERE: std::net::SocketAddr = addr(77);

#[test]
fn the_endpoint_follows_every_authenticated_message() {
    let mut pair = Pair::connected();
    assert_eq!(pair.bob.peer.endpoint(), Some(ALICE.into()));
    // Data.
    pair.alice.addr = addr(11);
    pair.alice_sends(b"ping");
    pair.settle();
    assert!(pair.bob.last_accepted.moved);
    assert_eq!(pair.bob.peer.endpoint(), Some(addr(11).into()));
    // A keepalive.
    pair.alice.addr = addr(12);
    pair.alice.peer.set_persistent_keepalive(25, pair.now);
    pair.settle();
    assert_eq!(pair.bob.peer.endpoint(), Some(addr(12).into()));
    // An initiation.
    pair.advance(secs(6));
    pair.alice.addr = addr(13);
    pair.alice.peer.rekey(pair.now);
    pair.poll();
    let initiation = pair.wire.pop_front().expect("an initiation");
    pair.deliver(&initiation);
    assert_eq!(pair.bob.peer.endpoint(), Some(addr(13).into()));
    // A response.
    let mut response = pair.wire.pop_front().expect("a response");
    response.from = ELSEWHERE;
    pair.deliver(&response);
    assert_eq!(pair.alice.peer.endpoint(), Some(ELSEWHERE.into()));
}

#[test]
fn the_endpoint_does_not_follow_what_is_not_authentic() {
    let mut pair = Pair::connected();
    pair.alice_sends(b"ping");
    let data = pair.wire.pop_front().expect("data");
    let mut forged = data.clone();
    forged.bytes[20] ^= 1;
    forged.from = ELSEWHERE;
    pair.deliver(&forged);
    assert_eq!(pair.bob.peer.endpoint(), Some(ALICE.into()));
    // A replayed packet is authentic, and yet says nothing of where the peer is now.
    pair.deliver(&data);
    let replayed = Datagram {
        from: ELSEWHERE,
        ..data
    };
    pair.deliver(&replayed);
    assert_eq!(pair.bob.refused, ["forged", "Replayed"]);
    assert_eq!(pair.bob.peer.endpoint(), Some(ALICE.into()));
}

#[test]
fn a_new_endpoint_keeps_the_session() {
    let mut pair = Pair::connected();
    pair.alice.peer.set_endpoints(vec![ELSEWHERE]);
    pair.alice_sends(b"ping");
    let data = pair.wire.pop_front().expect("data");
    assert_eq!((data.kind(), data.to), (Kind::Data, ELSEWHERE));
    // The one in use stays if it is among the new ones, and so does its source address.
    let here = Endpoint {
        addr: BOB,
        source: Some(("192.0.2.1".parse().expect("an ip"), 3)),
    };
    let session = pair
        .alice
        .peer
        .sessions()
        .last()
        .cloned()
        .expect("a session");
    let mut records = [warren_wireguard::Record::new(7, 0)];
    let _ = pair
        .alice
        .peer
        .accept(&session, here, &mut records, pair.now);
    pair.alice.peer.set_endpoints(vec![ELSEWHERE, BOB]);
    assert_eq!(pair.alice.peer.endpoint(), Some(here));
    pair.alice.peer.set_endpoints(vec![]);
    assert_eq!(pair.alice.peer.endpoint(), Some(here));
    pair.alice.peer.forget_source();
    assert_eq!(pair.alice.peer.endpoint(), Some(BOB.into()));
}

#[test]
fn without_an_endpoint_nothing_is_sent_or_staged() {
    let mut pair = Pair::new();
    pair.bob_sends(b"where to?");
    assert_eq!(pair.bob.refused, ["no endpoint"]);
    pair.bob.peer.set_persistent_keepalive(25, pair.now);
    pair.advance(secs(100));
    assert!(pair.log.is_empty());
    assert_eq!(pair.bob.peer.next_deadline(), None);
    // As soon as there is one, what keeps alive takes up.
    pair.bob.peer.set_endpoints(vec![ALICE]);
    pair.settle();
    assert!(pair.alice.peer.is_ready(pair.now));
}

#[test]
fn each_candidate_is_tried_after_an_unanswered_initiation() {
    let v6 = "[2001:db8::7]:51820".parse().expect("an address");
    let mut pair = Pair::new();
    let start = pair.now;
    pair.alice.peer.set_endpoints(vec![addr(21), v6, BOB]);
    pair.alice_sends(b"ping");
    pair.settle();
    pair.advance(secs(30));
    assert_eq!(pair.initiations_to(start), [addr(21), v6, BOB]);
    assert_eq!(pair.bob.delivered, [b"ping"]);
}

#[test]
fn candidates_are_tried_in_turn_without_end() {
    let mut pair = Pair::new();
    pair.alice.peer.set_endpoints(vec![addr(21), addr(22)]);
    pair.alice_sends(b"ping");
    pair.advance_cut(secs(23));
    let tried: Vec<_> = pair.log.iter().map(|(_, datagram)| datagram.to).collect();
    assert_eq!(tried, [addr(21), addr(22), addr(21), addr(22), addr(21)]);
}

#[test]
fn a_roamed_endpoint_that_stops_answering_falls_back_to_the_configured_ones() {
    let mut pair = roamed();
    // Bob goes back, and does not say so.
    pair.bob.addr = BOB;
    let start = pair.now;
    pair.alice_sends(b"are you there?");
    pair.settle();
    pair.advance(secs(30));
    assert_eq!(pair.initiations_to(start), [ELSEWHERE, BOB]);
    assert_eq!(pair.alice.peer.endpoint(), Some(BOB.into()));
    assert!(pair.alice.peer.is_ready(pair.now));
}

#[test]
fn the_roamed_endpoint_is_tried_again_after_the_candidates() {
    // The configured address may be the one that is out of date.
    let mut pair = roamed();
    let start = pair.now;
    pair.alice_sends(b"lost");
    pair.advance_cut(secs(16)); // and so is the first initiation
    pair.advance(secs(20));
    assert_eq!(pair.initiations_to(start), [ELSEWHERE, BOB, ELSEWHERE]);
    assert!(pair.alice.peer.is_ready(pair.now));
}

/// A pair in which Alice heard from Bob elsewhere, in a keepalive, and nobody waits for anything.
fn roamed() -> Pair {
    let mut pair = Pair::connected();
    pair.bob.addr = ELSEWHERE;
    pair.advance(secs(10));
    assert_eq!(pair.alice.peer.endpoint(), Some(ELSEWHERE.into()));
    pair
}

impl Pair {
    /// Where Alice has sent initiations to, from `start` on.
    fn initiations_to(&self, start: Instant) -> Vec<std::net::SocketAddr> {
        self.log
            .iter()
            .filter(|(at, datagram)| {
                *at >= start && datagram.from == ALICE && datagram.kind() == Kind::Initiation
            })
            .map(|(_, datagram)| datagram.to)
            .collect()
    }
}
