//! Interop with boringtun, an implementation that shares no code with this one, in both roles.
//!
//! boringtun reads its own clock, so only this side's time moves as told; its timers are left out.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use warren_config::PresharedKey;
use warren_wireguard::messages::{self, Handshake, Message};
use warren_wireguard::time::Instant;
use warren_wireguard::{Admission, Gate, Knock};

use crate::util::*;

/// Ours, theirs, and nothing between them that loses anything.
struct Mixed {
    ours: Node,
    theirs: Tunn,
    now: Instant,
    delivered_there: Vec<Vec<u8>>,
    errors_there: Vec<String>,
    /// What the other side sent, by length.
    lengths: Vec<usize>,
}

impl Mixed {
    fn new(preshared: Option<[u8; 32]>) -> Self {
        // More handshakes in a second than that are met with a cookie.
        Self::limited(preshared, 1_000)
    }

    fn limited(preshared: Option<[u8; 32]>, handshakes_per_second: u64) -> Self {
        let theirs = StaticSecret::from(*private_key(2).as_bytes());
        let their_public = PublicKey::from(&theirs);
        let mut ours = Node::new(1, ALICE, &private_key(2).public());
        ours.peer.set_endpoints(vec![BOB]);
        ours.peer
            .set_preshared_key(preshared.and_then(PresharedKey::from_bytes));
        let limiter = Arc::new(RateLimiter::new(&their_public, handshakes_per_second));
        let our_public = PublicKey::from(*ours.identity.public().as_bytes());
        Self {
            ours,
            theirs: Tunn::new(theirs, our_public, preshared, None, 7, Some(limiter)),
            now: Instant::from_nanos(1_000_000_000_000),
            delivered_there: Vec::new(),
            errors_there: Vec::new(),
            lengths: Vec::new(),
        }
    }

    fn we_send(&mut self, packet: &[u8]) {
        self.ours.send(packet, self.now);
        self.settle();
    }

    fn they_send(&mut self, packet: &[u8]) {
        let mut out = vec![0; 2_000];
        let result = self.theirs.encapsulate(packet, &mut out);
        if let TunnResult::WriteToNetwork(bytes) = result {
            let bytes = bytes.to_vec();
            self.reaches_us(bytes);
        }
        self.settle();
    }

    fn they_initiate(&mut self) {
        let mut out = vec![0; 2_000];
        let result = self.theirs.format_handshake_initiation(&mut out, true);
        let TunnResult::WriteToNetwork(bytes) = result else {
            panic!("{result:?}")
        };
        let bytes = bytes.to_vec();
        self.reaches_us(bytes);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            self.ours.poll(self.now);
            let sent = self.ours.sent_all();
            if sent.is_empty() {
                return;
            }
            for datagram in sent {
                self.reaches_them(&datagram.bytes);
            }
        }
    }

    fn reaches_us(&mut self, bytes: Vec<u8>) {
        self.lengths.push(bytes.len());
        self.ours.receive(
            &Datagram {
                from: BOB,
                to: ALICE,
                bytes,
            },
            self.now,
        );
    }

    fn reaches_them(&mut self, datagram: &[u8]) {
        let mut datagram = datagram;
        loop {
            let mut out = vec![0; 2_000];
            match self
                .theirs
                .decapsulate(Some(ALICE.ip()), datagram, &mut out)
            {
                TunnResult::Done => return,
                TunnResult::Err(error) => {
                    self.errors_there.push(format!("{error:?}"));
                    return;
                }
                TunnResult::WriteToNetwork(bytes) => {
                    let bytes = bytes.to_vec();
                    self.reaches_us(bytes);
                    datagram = &[];
                }
                TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
                    self.delivered_there.push(bytes.to_vec());
                    return;
                }
            }
        }
    }

    fn talk(&mut self, what: u8) {
        self.delivered_there.clear();
        self.ours.delivered.clear();
        self.we_send(&ip_packet(what));
        self.they_send(&ip_packet(what + 1));
        assert_eq!(self.delivered_there, [ip_packet(what)]);
        assert_eq!(self.ours.delivered, [ip_packet(what + 1)]);
        assert!(self.ours.refused.is_empty(), "{:?}", self.ours.refused);
        assert!(self.errors_there.is_empty(), "{:?}", self.errors_there);
    }
}

#[test]
fn boringtun_answers_us() {
    for preshared in [None, Some([9; 32])] {
        let mut mixed = Mixed::new(preshared);
        mixed.talk(1);
        assert!(
            mixed
                .ours
                .peer
                .sessions()
                .all(|session| session.is_initiator())
        );
    }
}

#[test]
fn we_answer_boringtun() {
    for preshared in [None, Some([9; 32])] {
        let mut mixed = Mixed::new(preshared);
        mixed.they_send(&ip_packet(1));
        assert_eq!(mixed.ours.delivered, [ip_packet(1)]);
        assert!(
            mixed
                .ours
                .peer
                .sessions()
                .all(|session| !session.is_initiator())
        );
        mixed.talk(2);
    }
}

#[test]
fn a_wrong_preshared_key_is_refused_in_both_roles() {
    let mut mixed = Mixed::new(Some([9; 32]));
    mixed
        .ours
        .peer
        .set_preshared_key(PresharedKey::from_bytes([8; 32]));
    mixed.we_send(&ip_packet(1));
    assert_eq!(mixed.ours.refused, ["the message is not authentic"]);
    mixed.now = mixed.now + secs(6);
    mixed.they_initiate();
    assert_eq!(mixed.errors_there.len(), 1);
    assert!(!mixed.ours.peer.is_ready(mixed.now));
}

#[test]
fn both_sides_renew_sessions_many_times_over() {
    let mut mixed = Mixed::new(Some([9; 32]));
    mixed.talk(0);
    for round in 0..40 {
        mixed.now = mixed.now + secs(6);
        if round % 2 == 0 {
            mixed.ours.peer.rekey(mixed.now);
            mixed.settle();
        } else {
            mixed.they_initiate();
        }
        mixed.talk(2 * round);
        assert!(mixed.ours.indices() <= 3);
    }
}

#[test]
fn an_initiator_of_ours_renews_its_session_with_boringtun_by_age() {
    let mut mixed = Mixed::new(None);
    mixed.talk(0);
    let first = mixed
        .ours
        .peer
        .sessions()
        .last()
        .map(|session| session.local_index());
    mixed.now = mixed.now + secs(120);
    mixed.ours.peer.handle_timeout(mixed.now);
    mixed.talk(2);
    let last = mixed
        .ours
        .peer
        .sessions()
        .last()
        .map(|session| session.local_index());
    assert_ne!(first, last);
    mixed.talk(4);
}

#[test]
fn boringtun_under_load_is_satisfied_by_our_cookie() {
    let mut mixed = Mixed::limited(None, 0);
    mixed.we_send(&ip_packet(1));
    assert_eq!(mixed.lengths, [64], "a cookie reply");
    assert!(mixed.ours.refused.is_empty(), "{:?}", mixed.ours.refused);
    for _ in 0..2 {
        mixed.now = mixed.now + secs(6);
        mixed.ours.peer.handle_timeout(mixed.now);
        mixed.settle();
    }
    assert!(mixed.lengths.contains(&92), "a response");
    assert_eq!(mixed.delivered_there, [ip_packet(1)]);
}

#[test]
fn boringtun_brings_back_the_cookie_that_we_demand() {
    let mut mixed = Mixed::new(None);
    let mut gate = Gate::new();
    let mut random = Random(1);
    let mut admit = |mixed: &mut Mixed| {
        let mut out = vec![0; 2_000];
        let result = mixed.theirs.format_handshake_initiation(&mut out, true);
        let TunnResult::WriteToNetwork(bytes) = result else {
            panic!("{result:?}")
        };
        let Ok(Message::Handshake(message)) = messages::parse(bytes) else {
            panic!("an initiation");
        };
        assert!(matches!(message, Handshake::Initiation(_)));
        let addressed = mixed.ours.identity.verify(message).expect("a valid mac1");
        let knock = Knock {
            message: addressed,
            from: BOB,
            known: false,
            queued: 512,
        };
        gate.admit(&knock, mixed.now, &mut |bytes| random.fill(bytes))
    };
    let Admission::DemandCookie(ticket) = admit(&mut mixed) else {
        panic!("a cookie is demanded");
    };
    let reply = ticket.seal(&mixed.ours.identity, &[7; 24]);
    mixed.reaches_them(&reply);
    assert!(mixed.errors_there.is_empty(), "{:?}", mixed.errors_there);
    assert!(matches!(admit(&mut mixed), Admission::Pass));
}

/// boringtun looks at what it delivers: an IPv4 packet.
fn ip_packet(what: u8) -> Vec<u8> {
    let mut packet = vec![what; 36];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 36]);
    packet
}
