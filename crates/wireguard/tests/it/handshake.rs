//! The handshake, and what of it must be refused.

use std::sync::Arc;

use warren_config::{PresharedKey, PublicKey};
use warren_wireguard::messages::{self, Handshake, INITIATION_LEN, Message};
use warren_wireguard::{AT_ONCE, HandshakeError, Identity, open_initiation};

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

#[test]
fn an_initiator_with_nothing_staged_confirms_by_a_keepalive() {
    let mut pair = Pair::new();
    pair.alice.peer.rekey(pair.now);
    pair.settle();
    let kinds: Vec<_> = pair
        .log
        .iter()
        .map(|(_, datagram)| datagram.kind())
        .collect();
    assert_eq!(kinds, [Kind::Initiation, Kind::Response, Kind::Keepalive]);
    assert!(pair.bob.peer.is_ready(pair.now));
}

#[test]
fn a_responder_sends_no_data_before_the_initiator_has_confirmed() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    let initiation = pair.wire.pop_front().expect("an initiation");
    pair.deliver(&initiation);
    // Bob has answered; his data has to wait until something of Alice's arrives.
    pair.bob_sends(b"too early");
    assert!(!pair.bob.peer.is_ready(pair.now));
    assert_eq!(pair.sent(BOB, Kind::Data, pair.now), []);
    pair.settle();
    assert!(pair.bob.last_accepted.confirmed);
    assert_eq!(pair.alice.delivered, [b"too early"]);
}

#[test]
fn a_preshared_key_on_one_side_only_is_refused() {
    let mut pair = Pair::new();
    pair.alice.peer.set_preshared_key(preshared(7));
    pair.alice_sends(b"ping");
    pair.settle();
    assert_eq!(pair.alice.refused, ["the message is not authentic"]);
    assert!(!pair.alice.peer.is_ready(pair.now));
}

#[test]
fn a_new_preshared_key_applies_at_the_next_handshake_and_tears_nothing_down() {
    let mut pair = Pair::connected();
    for node in [&mut pair.alice, &mut pair.bob] {
        node.peer.set_preshared_key(preshared(7));
    }
    pair.alice_sends(b"with the old keys");
    pair.settle();
    assert_eq!(pair.bob.delivered, [b"with the old keys"]);
    // Were the key not in use from the next handshake on, a change on one side would go unseen.
    pair.advance(secs(6));
    pair.alice.peer.rekey(pair.now);
    pair.settle();
    assert!(pair.alice.refused.is_empty() && pair.bob.refused.is_empty());
    pair.bob.peer.set_preshared_key(preshared(8));
    pair.advance(secs(6));
    pair.alice.peer.rekey(pair.now);
    pair.settle();
    assert_eq!(pair.alice.refused, ["the message is not authentic"]);
    pair.alice_sends(b"still with the session before");
    pair.settle();
    assert_eq!(pair.bob.delivered.len(), 2);
}

#[test]
fn a_replayed_initiation_is_refused() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    let initiation = pair.wire.pop_front().expect("an initiation");
    pair.deliver(&initiation);
    pair.settle();
    pair.advance(secs(1));
    pair.deliver(&initiation);
    assert_eq!(
        pair.bob.refused,
        ["the initiation was seen before, or is older than one that was"]
    );
    assert!(pair.wire.is_empty());
}

#[test]
fn at_most_one_initiation_in_20_ms_is_answered() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    pair.advance_cut(secs(16));
    let initiations: Vec<_> = pair
        .log
        .iter()
        .map(|(_, datagram)| datagram.clone())
        .collect();
    pair.log.clear();
    pair.deliver(&initiations[0]);
    pair.now = pair.now + millis(19);
    pair.deliver(&initiations[1]);
    assert_eq!(pair.bob.refused, ["initiations come too fast"]);
    pair.now = pair.now + millis(1);
    pair.deliver(&initiations[2]);
    assert_eq!(pair.sent(BOB, Kind::Response, pair.log[0].0).len(), 2);
}

#[test]
fn a_response_that_arrives_late_in_the_retry_interval_is_still_accepted() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    let initiation = pair.wire.pop_front().expect("an initiation");
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().expect("a response");
    pair.advance(millis(4_999));
    pair.deliver(&response);
    pair.settle();
    assert_eq!(pair.bob.delivered, [b"ping"]);
}

#[test]
fn a_response_to_an_initiation_that_was_replaced_is_refused() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    let initiation = pair.wire.pop_front().expect("an initiation");
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().expect("a response");
    pair.advance_cut(secs(6));
    pair.deliver(&response);
    assert_eq!(pair.alice.refused, ["not in flight"]);
    assert_eq!(pair.alice.indices(), 1);
}

#[test]
fn a_message_with_any_bit_changed_is_refused_and_spoils_nothing() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    let initiation = pair.wire.pop_front().expect("an initiation");
    for at in 0..initiation.bytes.len() {
        // The second mac counts under load only.
        if at < 132 {
            pair.deliver(&flipped(&initiation, at));
        }
    }
    assert_eq!(pair.bob.refused.len(), 132);
    assert!(pair.wire.is_empty(), "nothing was answered");
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().expect("a response");
    for at in 0..76 {
        pair.deliver(&flipped(&response, at));
    }
    assert_eq!(pair.alice.refused.len(), 76);
    pair.deliver(&response);
    let data = pair.wire.pop_front().expect("data");
    for at in 0..data.bytes.len() {
        pair.deliver(&flipped(&data, at));
    }
    assert!(pair.bob.delivered.is_empty());
    pair.deliver(&data);
    assert_eq!(pair.bob.delivered, [b"ping"]);
}

#[test]
fn a_valid_mac1_around_a_forged_inside_is_refused() {
    // Whoever knows the public key of a node gets past mac1, and no further.
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    let initiation = pair.wire.pop_front().expect("an initiation");
    for at in (4..116).step_by(3) {
        let mut forged = flipped(&initiation, at);
        remac(&mut forged.bytes, pair.bob.identity.public());
        let Ok(Message::Handshake(message)) = messages::parse(&forged.bytes) else {
            panic!("an initiation");
        };
        assert!(pair.bob.identity.verify(message).is_some());
        // The sender's index is not sealed, so that only the answer would go astray.
        if at >= 8 {
            pair.deliver(&forged);
        }
    }
    assert!(pair.wire.is_empty());
    assert!(
        pair.bob
            .refused
            .iter()
            .all(|reason| reason == "the message is not authentic")
    );
}

#[test]
fn a_public_key_of_low_order_is_refused() {
    // The points of small order on the curve and its twist, with their non-canonical encodings
    // (Cremers and Jackson, "Prime, Order Please!", table 2).
    let mut almost_p = [0xff; 32];
    (almost_p[0], almost_p[31]) = (0xec, 0x7f);
    let mut p = almost_p;
    p[0] = 0xed;
    let mut one = [0; 32];
    one[0] = 1;
    let order_8 = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ];
    for low in [[0; 32], one, p, almost_p, order_8] {
        // As a peer.
        let bob = Identity::new(private_key(2));
        let key = PublicKey::from_bytes(low);
        assert!(bob.shared_with(&key).is_err());
        // As the ephemeral key of an initiation.
        let mut bytes = [0; INITIATION_LEN];
        bytes[0] = 1;
        bytes[8..40].copy_from_slice(&low);
        let Ok(Message::Handshake(Handshake::Initiation(message))) = messages::parse(&bytes) else {
            panic!("an initiation");
        };
        assert_eq!(
            open_initiation(&bob, message).err(),
            Some(HandshakeError::LowOrder)
        );
        // As that of a response.
        let mut pair = Pair::new();
        pair.alice_sends(b"ping");
        pair.settle();
        let mut pair = Pair::new();
        pair.alice_sends(b"ping");
        let initiation = pair.wire.pop_front().expect("an initiation");
        pair.deliver(&initiation);
        let mut response = pair.wire.pop_front().expect("a response");
        response.bytes[12..44].copy_from_slice(&low);
        remac(&mut response.bytes, pair.alice.identity.public());
        pair.deliver(&response);
        assert_eq!(
            pair.alice.refused,
            ["a public key of the handshake is of low order"]
        );
    }
}

#[test]
fn initiations_that_cross_lead_to_one_session_at_once() {
    for [first, second] in [[0, 1], [1, 0]] {
        let mut pair = Pair::new();
        pair.bob.peer.set_endpoints(vec![ALICE]);
        pair.alice.send(b"from alice", pair.now);
        pair.bob.send(b"from bob", pair.now);
        pair.poll();
        let crossing: Vec<_> = pair.wire.drain(..).collect();
        assert!(
            crossing
                .iter()
                .all(|datagram| datagram.kind() == Kind::Initiation)
        );
        pair.deliver(&crossing[first]);
        pair.deliver(&crossing[second]);
        pair.settle();
        assert_eq!(pair.bob.delivered, [b"from alice"]);
        assert_eq!(pair.alice.delivered, [b"from bob"]);
        pair.alice_sends(b"more");
        pair.bob_sends(b"more");
        // Both send with one and the same session.
        let [to_bob, to_alice] = [ALICE, BOB].map(|from| {
            let datagram = pair.wire.iter().find(|datagram| datagram.from == from);
            let index = datagram.expect("sent").bytes[4..8].try_into();
            u32::from_le_bytes(index.expect("4 bytes"))
        });
        assert!(pair.alice.peer.sessions().any(|session| {
            (session.local_index(), session.remote_index()) == (to_alice, to_bob)
        }));
        pair.settle();
        // No further handshake was needed.
        assert_eq!(pair.sent(ALICE, Kind::Initiation, pair.log[0].0).len(), 1);
        assert_eq!(pair.sent(BOB, Kind::Initiation, pair.log[0].0).len(), 1);
        pair.advance(secs(100));
        assert_eq!(pair.sent(ALICE, Kind::Initiation, pair.log[0].0).len(), 1);
        assert_eq!(pair.sent(BOB, Kind::Initiation, pair.log[0].0).len(), 1);
    }
}

#[test]
fn messages_are_verified_together_as_one_by_one() {
    let mut pair = Pair::new();
    pair.alice_sends(b"ping");
    let initiation = pair.wire.pop_front().expect("an initiation");
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().expect("a response");
    let mut cookie_reply = vec![0; 64];
    cookie_reply[0] = 3;
    let mut all = vec![
        initiation.bytes.clone(),
        response.bytes.clone(),
        cookie_reply,
    ];
    // Changed in what the first mac covers, and in that mac.
    all.extend((4..132).step_by(9).map(|at| flipped(&initiation, at).bytes));
    let all: Vec<_> = all
        .iter()
        .map(|bytes| match messages::parse(bytes) {
            Ok(Message::Handshake(message)) => Some(message),
            _ => panic!("a handshake message"),
        })
        .chain([None])
        .collect();
    for identity in [&pair.alice.identity, &pair.bob.identity] {
        let mut verified = 0;
        for first in 0..all.len() {
            let messages = std::array::from_fn(|at| all[(first + at) % all.len()]);
            for (message, together) in messages.iter().zip(identity.verify_all(&messages)) {
                let alone = message.and_then(|message| identity.verify(message));
                assert_eq!(together.is_some(), alone.is_some());
                let bytes = together.map(|it| it.message().bytes());
                assert_eq!(bytes, alone.map(|it| it.message().bytes()));
                verified += usize::from(together.is_some());
            }
        }
        // A cookie reply, and the one of both that is for this identity.
        assert_eq!(verified, 2 * AT_ONCE);
    }
}

#[test]
fn two_static_identities_work_at_once() {
    let mut pair = Pair::new();
    // Bob is about to become somebody else; to Alice he is two peers.
    let new = Arc::new(Identity::new(private_key(3)));
    pair.alice_sends(b"to the old bob");
    pair.settle();
    let mut alice = Node::new(1, ALICE, new.public());
    let mut bob = Node::new(3, BOB, pair.alice.identity.public());
    alice.peer.set_endpoints(vec![BOB]);
    alice.send(b"to the new bob", pair.now);
    alice.poll(pair.now);
    let initiation = alice.sent_last();
    // The new Bob's initiation is for nobody but him, though both listen at one address.
    let Ok(Message::Handshake(message)) = messages::parse(&initiation.bytes) else {
        panic!("an initiation");
    };
    assert!(pair.bob.identity.verify(message).is_none());
    assert!(bob.identity.verify(message).is_some());
    bob.receive(&initiation, pair.now);
    alice.receive(&bob.sent_last(), pair.now);
    bob.receive(&alice.sent_last(), pair.now);
    assert_eq!(bob.delivered, [b"to the new bob"]);
    pair.alice_sends(b"and again to the old");
    pair.settle();
    assert_eq!(pair.bob.delivered.len(), 2);
}

#[test]
fn a_node_that_becomes_somebody_else_shakes_hands_anew() {
    let mut pair = Pair::connected();
    pair.advance(secs(1));
    pair.alice.peer.expire_sessions();
    pair.bob_sends(b"under way");
    pair.settle();
    assert_eq!(
        pair.alice.delivered,
        [b"under way"],
        "what is under way still arrives"
    );
    pair.alice_sends(b"ping");
    pair.settle();
    assert_eq!(pair.sent(ALICE, Kind::Initiation, pair.now).len(), 1);
    assert_eq!(pair.bob.delivered, [b"ping"]);
}

#[test]
fn a_stopped_peer_says_nothing_and_leaves_nothing() {
    let mut pair = Pair::connected();
    pair.alice.peer.set_persistent_keepalive(25, pair.now);
    pair.settle();
    let before = pair.log.len();
    pair.alice.peer.stop();
    pair.alice_sends(b"into the void");
    pair.bob_sends(b"unheard");
    pair.settle();
    assert_eq!(pair.alice.indices(), 0);
    assert_eq!(pair.alice.peer.next_deadline(), None);
    assert_eq!(pair.alice.refused, ["unknown receiver"]);
    assert_eq!(pair.log.len(), before + 1);
    pair.advance(secs(6));
    pair.alice.peer.start();
    pair.settle();
    assert!(
        pair.alice.peer.is_ready(pair.now),
        "what keeps alive begins to by itself"
    );
}

fn preshared(byte: u8) -> Option<PresharedKey> {
    PresharedKey::from_bytes([byte; 32])
}

fn flipped(datagram: &Datagram, at: usize) -> Datagram {
    let mut datagram = datagram.clone();
    datagram.bytes[at] ^= 1 << (at % 8);
    datagram
}
