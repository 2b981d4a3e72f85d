//! A session in the hands of a new process.

use crate::util::*;

#[test]
fn a_restored_peer_carries_on_without_a_handshake() {
    let mut pair = Pair::connected();
    pair.advance(secs(50));
    pair.bob_sends(b"before");
    pair.settle();
    let state = pair.alice.peer.export();
    pair.alice.take_over(&state);
    drop(state);
    let initiations = pair.sent(ALICE, Kind::Initiation, pair.log[0].0).len();
    pair.alice_sends(b"after");
    pair.bob_sends(b"after");
    pair.settle();
    assert_eq!(pair.bob.delivered, [b"after"]);
    assert_eq!(pair.alice.delivered, [b"before".as_slice(), b"after"]);
    assert_eq!(
        pair.sent(ALICE, Kind::Initiation, pair.log[0].0).len(),
        initiations
    );
    // And renews the session when it is due, by its age and not that of the process.
    pair.advance(secs(69));
    pair.alice_sends(b"at 119 s");
    pair.settle();
    assert_eq!(
        pair.sent(ALICE, Kind::Initiation, pair.log[0].0).len(),
        initiations
    );
    pair.advance(secs(1));
    pair.alice_sends(b"at 120 s");
    pair.settle();
    assert_eq!(
        pair.sent(ALICE, Kind::Initiation, pair.log[0].0).len(),
        initiations + 1
    );
}

#[test]
fn a_restored_peer_never_seals_with_a_counter_that_was_used() {
    let mut pair = Pair::connected();
    let state = pair.alice.peer.export();
    // The old process is not quite done.
    pair.alice_sends(b"from the old process");
    let old = pair.wire.pop_front().expect("data");
    pair.alice.take_over(&state);
    pair.alice_sends(b"from the new process");
    let new = pair.wire.pop_front().expect("data");
    assert_ne!(old.bytes[8..16], new.bytes[8..16]);
    pair.deliver(&new);
    assert_eq!(pair.bob.delivered, [b"from the new process"]);
}

#[test]
fn a_restored_peer_refuses_what_was_received_before() {
    let mut pair = Pair::connected();
    pair.bob_sends(b"once");
    let data = pair.wire.pop_front().expect("data");
    pair.deliver(&data);
    pair.bob.peer.rekey(pair.now);
    pair.advance(secs(6));
    let initiations: Vec<_> = pair
        .log
        .iter()
        .filter(|(_, datagram)| datagram.kind() == Kind::Initiation && datagram.from == BOB)
        .map(|(_, datagram)| datagram.clone())
        .collect();
    let state = pair.alice.peer.export();
    pair.alice.take_over(&state);
    pair.deliver(&data);
    pair.deliver(&initiations[0]);
    assert_eq!(
        pair.alice.refused,
        [
            "Replayed",
            "the initiation was seen before, or is older than one that was"
        ],
    );
    assert_eq!(pair.alice.delivered, [b"once"]);
}

#[test]
fn a_restored_peer_keeps_its_endpoints_and_its_timers() {
    let mut pair = Pair::new();
    pair.alice.peer.set_endpoints(vec![BOB, addr(21)]);
    pair.alice.peer.set_persistent_keepalive(25, pair.now);
    pair.settle();
    pair.bob.addr = addr(22);
    pair.bob_sends(b"from elsewhere");
    pair.settle();
    let state = pair.alice.peer.export();
    let (endpoint, deadline) = (pair.alice.peer.endpoint(), pair.alice.peer.next_deadline());
    pair.alice.take_over(&state);
    assert_eq!(pair.alice.peer.endpoint(), endpoint);
    assert_eq!(pair.alice.peer.endpoints(), [BOB, addr(21)]);
    assert_eq!(pair.alice.peer.next_deadline(), deadline);
    assert_eq!(pair.alice.peer.persistent_keepalive(), 25);
    assert!(
        !pair.alice.peer.attention(),
        "taking over sends nothing by itself"
    );
}

#[test]
fn a_handshake_cut_by_the_handover_is_tried_again() {
    let mut pair = Pair::new();
    pair.alice_sends(b"lost with the old process");
    pair.wire.clear();
    let state = pair.alice.peer.export();
    pair.alice.take_over(&state);
    pair.advance(secs(6));
    assert!(pair.alice.peer.is_ready(pair.now));
}
