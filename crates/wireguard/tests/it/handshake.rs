//! Sections 5.4.2 to 5.4.4: the handshake, and what must be refused.

use crate::util::*;

#[test]
fn one_round_trip_connects() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    pair.settle();
    let kinds: Vec<_> = pair
        .log
        .iter()
        .map(|(_, datagram)| datagram.kind())
        .collect();
    assert_eq!(kinds, [Kind::Initiation, Kind::Response, Kind::Data]);
    assert_eq!(pair.bob.delivered, [b"ping"]);
    pair.bob_sends(b"pong");
    pair.settle();
    assert_eq!(pair.alice.delivered, [b"pong"]);
    assert_eq!((pair.alice.indices(), pair.bob.indices()), (1, 1));
}
