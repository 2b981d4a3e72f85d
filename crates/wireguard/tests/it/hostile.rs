//! Floods and nonsense at the door.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;
use warren_wireguard::messages::{self, Handshake, Message};
use warren_wireguard::time::Instant;
use warren_wireguard::{Admission, Gate, Knock};

use crate::util::*;

const COOKIE_SECRET_LIFETIME: u64 = 120;
/// An eighth of the kernel's queue of 4096.
const LOAD_THRESHOLD: usize = 512;

/// Bob's door, and an initiation of Alice's to knock with.
struct Door {
    pair: Pair,
    gate: Gate,
    random: Random,
    queued: usize,
    /// Where peers are known to be.
    known: Vec<SocketAddr>,
}

/// An admission as it is seen from outside.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Pass,
    CookieReply(Vec<u8>),
    CallBack,
    Limited,
}

impl Door {
    fn new() -> Self {
        Self {
            pair: Pair::new(),
            gate: Gate::new(),
            random: Random(5),
            queued: 0,
            known: Vec::new(),
        }
    }

    fn loaded() -> Self {
        Self {
            queued: LOAD_THRESHOLD,
            ..Self::new()
        }
    }

    /// Alice's next initiation, which has yet to be answered.
    fn initiation(&mut self) -> Datagram {
        self.pair.log.clear();
        self.pair.alice.peer.rekey(self.pair.now);
        self.pair.advance_cut(secs(6));
        let (_, datagram) = self.pair.log.pop().expect("an initiation");
        datagram
    }

    fn knock(&mut self, datagram: &Datagram, now: Instant) -> Answer {
        let Ok(Message::Handshake(message)) = messages::parse(&datagram.bytes) else {
            panic!("a handshake message");
        };
        let addressed = self
            .pair
            .bob
            .identity
            .verify(message)
            .expect("a valid mac1");
        let knock = Knock {
            message: addressed,
            from: datagram.from,
            known: self.known.contains(&datagram.from),
            queued: self.queued,
        };
        let random = &mut |bytes: &mut [u8]| self.random.fill(bytes);
        match self.gate.admit(&knock, now, random) {
            Admission::Pass => Answer::Pass,
            Admission::DemandCookie(ticket) => {
                let mut nonce = [0; 24];
                self.random.fill(&mut nonce);
                Answer::CookieReply(ticket.seal(&self.pair.bob.identity, &nonce).to_vec())
            }
            Admission::CallBack => Answer::CallBack,
            Admission::Limited => Answer::Limited,
        }
    }

    fn knock_from(&mut self, datagram: &Datagram, from: SocketAddr, now: Instant) -> Answer {
        self.knock(
            &Datagram {
                from,
                ..datagram.clone()
            },
            now,
        )
    }

    /// Alice learns of the cookie and tries again.
    fn initiation_with_cookie(&mut self, from: SocketAddr) -> Datagram {
        let initiation = self.initiation();
        let Answer::CookieReply(reply) = self.knock_from(&initiation, from, self.pair.now) else {
            panic!("a cookie is demanded");
        };
        let reply = Datagram {
            from: BOB,
            to: ALICE,
            bytes: reply,
        };
        self.pair.deliver(&reply);
        assert!(
            self.pair.alice.refused.is_empty(),
            "{:?}",
            self.pair.alice.refused
        );
        Datagram {
            from,
            ..self.initiation()
        }
    }
}

#[test]
fn under_load_mac2_is_demanded_and_a_cookie_opens_the_door() {
    let mut door = Door::loaded();
    let initiation = door.initiation_with_cookie(ALICE);
    assert_eq!(door.knock(&initiation, door.pair.now), Answer::Pass);
    // It also does what it is for.
    door.pair.deliver(&initiation);
    door.pair.settle();
    assert!(door.pair.bob.peer.is_ready(door.pair.now));
}

#[test]
fn without_load_no_cookie_is_demanded() {
    let mut door = Door::new();
    let initiation = door.initiation();
    assert_eq!(door.knock(&initiation, door.pair.now), Answer::Pass);
}

#[test]
fn the_cookie_covers_source_address_and_port() {
    let mut door = Door::loaded();
    let initiation = door.initiation_with_cookie(ALICE);
    let mut other_port = ALICE;
    other_port.set_port(1);
    for from in [addr(9), other_port] {
        let admission = door.knock_from(&initiation, from, door.pair.now);
        assert!(matches!(admission, Answer::CookieReply(_)), "{from}");
    }
    assert_eq!(door.knock(&initiation, door.pair.now), Answer::Pass);
}

#[test]
fn the_cookie_changes_every_120_s() {
    let mut door = Door::loaded();
    let initiation = door.initiation_with_cookie(ALICE);
    let given = door.pair.now;
    let late = given + secs(COOKIE_SECRET_LIFETIME - 7);
    assert_eq!(door.knock(&initiation, late), Answer::Pass);
    let too_late = given + secs(COOKIE_SECRET_LIFETIME);
    assert!(matches!(
        door.knock(&initiation, too_late),
        Answer::CookieReply(_)
    ));
}

#[test]
fn a_cookie_is_not_used_in_its_last_seconds() {
    let mut door = Door::loaded();
    let with = door.initiation_with_cookie(ALICE);
    assert_ne!(with.bytes[132..], [0; 16]);
    door.pair.advance_cut(secs(COOKIE_SECRET_LIFETIME - 5));
    let without = door.initiation();
    assert_eq!(without.bytes[132..], [0; 16]);
}

#[test]
fn the_answer_is_smaller_than_what_caused_it() {
    let mut door = Door::loaded();
    let initiation = door.initiation();
    let Answer::CookieReply(reply) = door.knock(&initiation, door.pair.now) else {
        panic!("a cookie is demanded");
    };
    assert_eq!((reply.len(), initiation.bytes.len()), (64, 148));
    assert!(reply.len() < 92, "a response may cause one as well");
}

#[test]
fn load_ends_when_the_queue_is_short_again() {
    let mut door = Door::loaded();
    let initiation = door.initiation();
    let now = door.pair.now;
    assert!(matches!(
        door.knock(&initiation, now),
        Answer::CookieReply(_)
    ));
    door.queued = 0;
    assert!(matches!(
        door.knock(&initiation, now + millis(999)),
        Answer::CookieReply(_)
    ));
    assert_eq!(door.knock(&initiation, now + secs(1)), Answer::Pass);
}

#[test]
fn the_endpoint_never_follows_a_cookie_reply() {
    let mut door = Door::loaded();
    let initiation = door.initiation();
    let Answer::CookieReply(reply) = door.knock(&initiation, door.pair.now) else {
        panic!("a cookie is demanded");
    };
    let reply = Datagram {
        from: addr(66),
        to: ALICE,
        bytes: reply,
    };
    door.pair.deliver(&reply);
    assert!(door.pair.alice.refused.is_empty());
    assert_eq!(door.pair.alice.peer.endpoint(), Some(BOB.into()));
    // A reply answers one message, once.
    door.pair.deliver(&reply);
    assert_eq!(
        door.pair.alice.refused,
        ["the cookie reply is not authentic"]
    );
}

#[test]
fn a_forged_cookie_reply_changes_nothing() {
    let mut door = Door::loaded();
    let initiation = door.initiation();
    let Answer::CookieReply(reply) = door.knock(&initiation, door.pair.now) else {
        panic!("a cookie is demanded");
    };
    for at in [4, 8, 20, 32, 50, 63] {
        let mut reply = Datagram {
            from: BOB,
            to: ALICE,
            bytes: reply.clone(),
        };
        reply.bytes[at] ^= 1;
        door.pair.deliver(&reply);
    }
    assert_eq!(door.pair.alice.refused.len(), 6);
    assert_eq!(door.initiation().bytes[132..], [0; 16]);
}

#[test]
fn one_flooder_neither_starves_others_nor_brings_about_load() {
    let mut door = Door::new();
    let initiation = door.initiation();
    let start = door.pair.now;
    let (mut passed, mut cookies, mut limited) = (0, 0, 0);
    for nth in 0..50_000 {
        let now = start + std::time::Duration::from_micros(20 * nth);
        match door.knock_from(&initiation, addr(66), now) {
            Answer::Pass => passed += 1,
            Answer::CookieReply(_) => cookies += 1,
            Answer::Limited => limited += 1,
            Answer::CallBack => panic!("nobody is known to be there"),
        }
        // Everything that passes waits: curve operations do not keep up with a flood at all.
        door.queued = passed;
        if nth % 5_000 == 0 {
            let other = addr(100 + (nth / 5_000) as u8);
            let admission = door.knock_from(&initiation, other, now);
            let mut honest = admission == Answer::Pass;
            if let Answer::CookieReply(_) = admission {
                honest = door.gate.is_loaded(now);
            }
            assert!(honest, "at {nth}");
        }
    }
    assert!(passed <= 400 + 500, "{passed}");
    assert!(cookies <= 400 + 500, "{cookies}");
    assert!(limited > 48_000, "{limited}");
    // For good it is not: the flood goes on, and a second after the queue is short it is over.
    door.queued = 0;
    let later = start + secs(3);
    assert_eq!(door.knock_from(&initiation, addr(99), later), Answer::Pass);
}

#[test]
fn an_ipv6_source_is_a_64() {
    let mut door = Door::new();
    let initiation = door.initiation();
    let now = door.pair.now;
    let host = |prefix: u16, host: u16| {
        let ip = Ipv6Addr::new(0x2001, 0xdb8, 0, prefix, 0, 0, 0, host);
        SocketAddr::new(IpAddr::V6(ip), 1)
    };
    let passed = (0..2_000)
        .filter(|nth| door.knock_from(&initiation, host(1, *nth), now) == Answer::Pass)
        .count();
    assert_eq!(passed, 400);
    assert_eq!(door.knock_from(&initiation, host(2, 1), now), Answer::Pass);
}

#[test]
fn two_hundred_peers_behind_one_address_pass_at_once() {
    let mut door = Door::new();
    let initiation = door.initiation();
    for port in 0..200 {
        let from = SocketAddr::new(ALICE.ip(), 10_000 + port);
        assert_eq!(
            door.knock_from(&initiation, from, door.pair.now),
            Answer::Pass
        );
    }
}

#[test]
fn a_source_that_has_proved_itself_cannot_be_starved_by_others_in_its_name() {
    let mut door = Door::loaded();
    let genuine = door.initiation_with_cookie(ALICE);
    let now = door.pair.now;
    let forged = Datagram {
        bytes: door.pair.alice_without_cookie(&genuine),
        ..genuine.clone()
    };
    for _ in 0..5_000 {
        assert_ne!(door.knock(&forged, now), Answer::Pass);
    }
    assert_eq!(door.knock(&genuine, now), Answer::Pass);
}

#[test]
fn a_proven_message_that_was_overheard_does_not_use_up_its_sources_share() {
    let mut door = Door::loaded();
    let genuine = door.initiation_with_cookie(ALICE);
    let now = door.pair.now;
    assert_eq!(door.knock(&genuine, now), Answer::Pass);
    for _ in 0..5_000 {
        assert_eq!(door.knock(&genuine, now), Answer::Limited);
    }
    let next = door.initiation();
    assert_eq!(door.knock(&next, now), Answer::Pass);
}

#[test]
fn an_answer_to_us_passes_whatever_floods_in_its_name_and_itself_not_without_end() {
    let mut door = Door::loaded();
    let initiation = door.initiation();
    let now = door.pair.now;
    for _ in 0..5_000 {
        door.knock(&initiation, now);
    }
    assert_eq!(door.knock(&initiation, now), Answer::Limited);
    // Alice's response to Bob, for whom it is another door that she knocks at.
    door.pair.bob.peer.set_endpoints(vec![ALICE]);
    door.pair.bob.peer.rekey(now);
    door.pair.bob.poll(now);
    let from_bob = door.pair.bob.sent_last();
    door.pair.alice.receive(&from_bob, now);
    door.pair.alice.poll(now);
    let response = door.pair.alice.sent_last();
    assert_eq!(response.kind(), Kind::Response);
    let passed = (0..1_000).filter(|_| door.knock(&response, now) == Answer::Pass);
    assert_eq!(passed.count(), 32);
}

#[test]
fn a_peer_in_whose_name_somebody_floods_is_called_back_as_often_as_an_initiation_may_be_sent() {
    let mut door = Door::new();
    door.known = vec![ALICE];
    let initiation = door.initiation();
    let start = door.pair.now;
    let mut calls = Vec::new();
    for nth in 0..200_000 {
        let now = start + std::time::Duration::from_micros(60 * nth);
        if door.knock(&initiation, now) == Answer::CallBack {
            calls.push(now.saturating_duration_since(start).as_secs());
        }
        // The same address, but nobody is known to be at the port.
        let mut other = ALICE;
        other.set_port(1);
        assert_ne!(door.knock_from(&initiation, other, now), Answer::CallBack);
    }
    assert_eq!(calls, [0, 5, 10]);
}

#[test]
fn the_table_of_sources_is_bounded_and_those_it_has_no_room_for_may_prove_themselves() {
    let mut door = Door::new();
    let initiation = door.initiation();
    let now = door.pair.now;
    let invented = |nth: u32| {
        let ip = Ipv6Addr::from((u128::from(nth) << 64) | 0x2001 << 112 | 1);
        SocketAddr::new(IpAddr::V6(ip), 1)
    };
    let passed = (0..100_000)
        .filter(|nth| door.knock_from(&initiation, invented(*nth), now) == Answer::Pass)
        .count();
    assert_eq!(passed, 8_192);
    // All are at rest again soon after, and make room.
    let later = now + millis(200);
    assert_eq!(
        door.knock_from(&initiation, invented(200_000), later),
        Answer::Pass
    );
}

#[test]
fn a_flood_of_invented_sources_does_not_keep_honest_ones_out() {
    let mut door = Door::loaded();
    let initiation = door.initiation();
    let start = door.pair.now;
    // 200,000 in a second: the table is full every 40 ms.
    for nth in 0..30_000 {
        let now = start + std::time::Duration::from_micros(5 * nth);
        let invented = std::net::Ipv4Addr::from(0x0a00_0000 + nth as u32);
        door.knock_from(&initiation, SocketAddr::new(IpAddr::V4(invented), 1), now);
        if nth.is_multiple_of(1_000) {
            let honest = addr(100 + (nth / 1_000) as u8);
            let admission = door.knock_from(&initiation, honest, now);
            assert!(
                matches!(admission, Answer::CookieReply(_)),
                "at {nth}: {admission:?}"
            );
        }
    }
}

#[test]
fn nothing_is_answered_without_a_valid_mac1() {
    // The gate takes nothing but what `verify` let through, so this is all there is to show.
    let mut door = Door::loaded();
    let mut datagram = door.initiation();
    for at in 0..132 {
        datagram.bytes[at] ^= 0x10;
        if let Ok(Message::Handshake(message)) = messages::parse(&datagram.bytes) {
            assert!(door.pair.bob.identity.verify(message).is_none(), "{at}");
        }
        datagram.bytes[at] ^= 0x10;
    }
}

#[test]
fn a_datagram_of_every_short_length_and_first_byte_is_dropped_without_a_panic() {
    let mut pair = Pair::connected();
    let before = pair.log.len();
    for len in 0..200 {
        for first in 0..=255 {
            let mut bytes = vec![0; len];
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let well_formed = matches!((first, len), (1, 148) | (2, 92) | (3, 64) | (4, 32..));
            assert_eq!(
                messages::parse(&bytes).is_ok(),
                well_formed,
                "{first} {len}"
            );
            let nonsense = Datagram {
                from: addr(66),
                to: BOB,
                bytes,
            };
            pair.deliver(&nonsense);
        }
    }
    assert_eq!(pair.bob.refused.len(), 200 * 256);
    assert_eq!(pair.log.len(), before, "nothing was answered");
    pair.alice_sends(b"still there?");
    pair.settle();
    assert_eq!(pair.bob.delivered, [b"still there?"]);
}

proptest! {
    #[test]
    fn parsing_never_panics_and_views_hold_what_arrived(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        kind in 0..6_u8,
        len in prop_oneof![Just(148_usize), Just(92), Just(64), Just(32), 0..300_usize],
    ) {
        let mut bytes = bytes;
        bytes.resize(len, 0);
        bytes.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, header)| *byte = header);
        match messages::parse(&bytes) {
            Ok(Message::Handshake(message)) => {
                prop_assert_eq!(message.bytes(), &bytes[..]);
                match message {
                    Handshake::Initiation(message) => {
                        prop_assert_eq!(message.sender().to_le_bytes(), &bytes[4..8]);
                    }
                    Handshake::Response(message) => {
                        prop_assert_eq!(message.receiver().to_le_bytes(), &bytes[8..12]);
                    }
                    Handshake::CookieReply(message) => {
                        prop_assert_eq!(message.receiver().to_le_bytes(), &bytes[4..8]);
                    }
                }
            }
            Ok(Message::Data { receiver, counter, sealed }) => {
                prop_assert_eq!(receiver.to_le_bytes(), &bytes[4..8]);
                prop_assert_eq!(counter.to_le_bytes(), &bytes[8..16]);
                prop_assert_eq!(sealed, &bytes[16..]);
            }
            Err(messages::Malformed) => {}
        }
    }
}

impl Pair {
    /// What somebody else may send who has seen or guessed as much of a message.
    fn alice_without_cookie(&self, message: &Datagram) -> Vec<u8> {
        let mut bytes = message.bytes.clone();
        bytes[132..].fill(0);
        bytes
    }
}
