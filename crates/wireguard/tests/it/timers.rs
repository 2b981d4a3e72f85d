//! When what is sent, to whom nothing happens.

use crate::util::*;

const REKEY_AFTER_TIME: f64 = 120.0;
const REJECT_AFTER_TIME: u64 = 180;
const REKEY_TIMEOUT: f64 = 5.0;
const JITTER: f64 = 0.334;
const KEEPALIVE_TIMEOUT: f64 = 10.0;
const REKEY_ATTEMPT_TIME: f64 = 90.0;

fn within(value: f64, from: f64, to: f64) -> bool {
    value >= from && value < to
}

#[test]
fn an_idle_peer_waits_for_nothing() {
    let mut pair = Pair::connected();
    pair.advance(secs(3 * REJECT_AFTER_TIME + 20));
    for node in [&pair.alice, &pair.bob] {
        assert_eq!(node.peer.next_deadline(), None);
        assert!(!node.peer.attention());
        assert_eq!(node.indices(), 0);
    }
}

#[test]
fn a_peer_is_small() {
    // Beside this an idle peer has its endpoint candidates on the heap, and nothing else.
    assert!(
        size_of::<warren_wireguard::Peer>() <= 640,
        "{}",
        size_of::<warren_wireguard::Peer>()
    );
}

#[test]
fn passive_keepalive_is_armed_by_received_data_and_counts_from_its_arrival() {
    let mut pair = Pair::connected();
    let start = pair.now;
    pair.advance(secs(3));
    pair.alice_sends(b"more");
    pair.settle();
    pair.advance(secs(30));
    // The first packet arrived at 0; what is sent at 10 answers the one at 3 as well.
    assert_eq!(pair.sent(BOB, Kind::Keepalive, start), [KEEPALIVE_TIMEOUT]);
    let later = pair.now;
    pair.alice_sends(b"and more");
    pair.settle();
    pair.advance(secs(30));
    assert_eq!(pair.sent(BOB, Kind::Keepalive, later), [KEEPALIVE_TIMEOUT]);
}

#[test]
fn passive_keepalive_is_not_armed_by_keepalives() {
    let mut pair = Pair::connected();
    let start = pair.now;
    pair.advance(secs(100));
    assert_eq!(pair.sent(BOB, Kind::Keepalive, start), [KEEPALIVE_TIMEOUT]);
    assert_eq!(pair.sent(ALICE, Kind::Keepalive, start), []);
}

#[test]
fn passive_keepalive_is_put_off_by_anything_sent() {
    let mut pair = Pair::connected();
    let start = pair.now;
    pair.advance(secs(9));
    pair.bob_sends(b"an answer");
    pair.advance(secs(60));
    assert_eq!(pair.sent(BOB, Kind::Keepalive, start), []);
    // Now it is Alice who received data that she did not answer.
    assert_eq!(
        pair.sent(ALICE, Kind::Keepalive, start),
        [9.0 + KEEPALIVE_TIMEOUT]
    );
}

#[test]
fn persistent_keepalive_is_sent_as_soon_as_it_is_switched_on() {
    let mut pair = Pair::new();
    pair.alice.peer.set_persistent_keepalive(25, pair.now);
    pair.settle();
    assert!(pair.alice.peer.is_ready(pair.now));
    let mut pair = Pair::connected();
    pair.advance(secs(20));
    let start = pair.now;
    pair.alice.peer.set_persistent_keepalive(25, pair.now);
    pair.advance(secs(60));
    assert_eq!(pair.sent(ALICE, Kind::Keepalive, start), [0.0, 25.0, 50.0]);
    // Another interval while it is on sends nothing by itself.
    pair.alice.peer.set_persistent_keepalive(30, pair.now);
    pair.advance(secs(31));
    assert_eq!(
        pair.sent(ALICE, Kind::Keepalive, start),
        [0.0, 25.0, 50.0, 90.0]
    );
}

#[test]
fn persistent_keepalive_is_pushed_back_by_any_authenticated_traffic() {
    let mut pair = Pair::connected();
    let start = pair.now;
    pair.alice.peer.set_persistent_keepalive(25, pair.now);
    pair.settle();
    pair.advance(secs(20));
    pair.bob_sends(b"hello"); // received
    pair.settle();
    pair.advance(secs(5));
    assert_eq!(pair.sent(ALICE, Kind::Keepalive, start), [0.0]);
    pair.alice_sends(b"hello"); // sent
    pair.settle();
    // Bob answers with a keepalive after 10 s, which counts as well.
    pair.advance(secs(40));
    assert_eq!(
        pair.sent(ALICE, Kind::Keepalive, start),
        [0.0, 25.0 + 10.0 + 25.0]
    );
}

#[test]
fn persistent_keepalive_keeps_a_session_for_ever() {
    let mut pair = Pair::new();
    pair.alice.peer.set_persistent_keepalive(25, pair.now);
    pair.settle();
    for _ in 0..100 {
        pair.advance(secs(60));
        assert!(pair.alice.peer.is_ready(pair.now) && pair.bob.peer.is_ready(pair.now));
        assert!(pair.alice.indices() <= 3 && pair.bob.indices() <= 3);
    }
    assert!(pair.alice.refused.is_empty() && pair.bob.refused.is_empty());
}

#[test]
fn every_retry_and_every_nothing_heard_is_jittered() {
    let mut pair = Pair::new();
    let start = pair.now;
    pair.alice_sends(b"ping");
    pair.advance_cut(secs(60));
    let sent = pair.sent(ALICE, Kind::Initiation, start);
    let gaps: Vec<_> = sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 10, "{sent:?}");
    assert!(
        gaps.iter()
            .all(|gap| within(*gap, REKEY_TIMEOUT, REKEY_TIMEOUT + JITTER)),
        "{gaps:?}"
    );
    assert!(gaps.windows(2).any(|pair| pair[0] != pair[1]), "{gaps:?}");

    let mut delays = Vec::new();
    let mut pair = Pair::connected();
    pair.advance(secs(20));
    for _ in 0..5 {
        let start = pair.now;
        pair.alice_sends(b"ping");
        pair.advance_cut(secs(16));
        delays.extend(pair.sent(ALICE, Kind::Initiation, start).first().copied());
        pair.alice.peer.rekey(pair.now);
        pair.advance(secs(20));
    }
    let after = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT;
    assert_eq!(delays.len(), 5);
    assert!(
        delays
            .iter()
            .all(|delay| within(*delay, after, after + JITTER)),
        "{delays:?}"
    );
    assert!(
        delays.windows(2).any(|pair| pair[0] != pair[1]),
        "{delays:?}"
    );
}

#[test]
fn data_that_is_answered_asks_for_no_handshake() {
    let mut pair = Pair::connected();
    let start = pair.now;
    for _ in 0..10 {
        pair.alice_sends(b"ping");
        pair.settle();
        pair.advance(secs(9));
    }
    assert_eq!(
        pair.sent(ALICE, Kind::Initiation, start),
        [0.0],
        "the one that connected"
    );
}

#[test]
fn there_is_one_initiation_in_rekey_timeout_whatever_asks_for_it() {
    let mut pair = Pair::new();
    let start = pair.now;
    for _ in 0..200 {
        pair.alice_sends(b"ping");
        pair.alice.peer.rekey(pair.now);
        pair.alice.peer.set_persistent_keepalive(0, pair.now);
        pair.alice.peer.set_persistent_keepalive(1, pair.now);
        pair.advance_cut(millis(100));
    }
    let sent = pair.sent(ALICE, Kind::Initiation, start);
    assert_eq!(sent.len(), 4, "{sent:?}");
    assert!(
        sent.windows(2)
            .all(|pair| pair[1] - pair[0] >= REKEY_TIMEOUT),
        "{sent:?}"
    );
}

#[test]
fn a_request_that_comes_too_soon_is_served_when_it_may_be() {
    let mut pair = Pair::connected();
    let start = pair.now;
    pair.advance(secs(2));
    pair.alice.peer.rekey(pair.now);
    pair.advance(secs(20));
    let sent = pair.sent(ALICE, Kind::Initiation, start);
    assert_eq!(sent.len(), 2);
    assert!(
        within(sent[1], REKEY_TIMEOUT, REKEY_TIMEOUT + JITTER),
        "{sent:?}"
    );
}

#[test]
fn an_initiation_that_the_caller_could_not_make_is_asked_for_again() {
    let mut pair = Pair::new();
    pair.alice.send(b"ping", pair.now);
    while pair.alice.peer.poll(pair.now).is_some() {}
    pair.advance(secs(6));
    assert_eq!(pair.bob.delivered, [b"ping"]);
}

#[test]
fn an_initiator_that_sends_rekeys_at_120_s() {
    let mut pair = Pair::connected();
    let start = pair.now;
    for _ in 0..130 {
        pair.advance(secs(1));
        pair.alice_sends(b"tick");
        pair.settle();
    }
    assert_eq!(
        pair.sent(ALICE, Kind::Initiation, start),
        [0.0, REKEY_AFTER_TIME]
    );
    assert_eq!(pair.bob.delivered.len(), 130, "nothing is lost");
    assert_eq!(pair.sent(BOB, Kind::Initiation, start), []);
}

#[test]
fn an_initiator_that_only_receives_rekeys_at_165_s_once() {
    let mut pair = Pair::connected();
    let start = pair.now;
    // Bob sends, and every keepalive of Alice's is lost on the way out of her state machine: her
    // own sending would have led to a rekey at 120 s.
    for second in 1..=175 {
        pair.now = pair.now + secs(1);
        let Some(session) = pair.alice.peer.sessions().last().cloned() else {
            panic!()
        };
        let mut records = [warren_wireguard::Record::new(second, 100)];
        let from = BOB.into();
        let _ = pair
            .alice
            .peer
            .accept(&session, from, &mut records, pair.now);
        pair.alice.poll(pair.now);
        pair.poll();
        pair.wire.clear();
    }
    let keepalive_and_timeout = 15.0;
    assert_eq!(
        pair.sent(ALICE, Kind::Initiation, start),
        [0.0, REJECT_AFTER_TIME as f64 - keepalive_and_timeout],
    );
}

#[test]
fn a_responder_never_rekeys_by_age() {
    let mut pair = Pair::connected();
    let start = pair.now;
    // Alice says nothing of her own accord.
    for _ in 0..179 {
        pair.advance(secs(1));
        pair.bob.send(b"tick", pair.now);
        pair.bob.poll(pair.now);
        let quiet = pair.bob.sent_all();
        for datagram in quiet {
            assert_eq!(datagram.kind(), Kind::Data);
        }
        // Heard from her, so that "nothing heard" does not ask for a handshake.
        let session = pair.bob.peer.sessions().last().cloned().expect("a session");
        let counter = pair.now.as_nanos() / 1_000_000_000;
        let mut records = [warren_wireguard::Record::new(counter, 0)];
        let _ = pair
            .bob
            .peer
            .accept(&session, ALICE.into(), &mut records, pair.now);
    }
    assert_eq!(pair.sent(BOB, Kind::Initiation, start), []);
}

#[test]
fn staged_packets_are_bounded_and_the_oldest_is_dropped() {
    const MAX_STAGED_PACKETS: u32 = 128;
    let mut pair = Pair::new();
    let dropped: u32 = (0..130_u8).map(|i| pair.alice.send(&[i], pair.now)).sum();
    assert_eq!(dropped, 130 - MAX_STAGED_PACKETS);
    assert_eq!(pair.alice.peer.staged_bytes(), 128);
    pair.settle();
    let expected: Vec<_> = (2..130).map(|i| vec![i]).collect();
    assert_eq!(pair.bob.delivered, expected);
    assert_eq!(pair.alice.peer.staged_bytes(), 0);

    // Large ones are bounded in bytes.
    let mut pair = Pair::new();
    for _ in 0..128 {
        pair.alice.peer.stage(vec![0; 60_000].into(), 1);
        assert!(pair.alice.peer.staged_bytes() <= 256 << 10);
    }
    // One that is larger than the bound by itself pushes out all others, and stays.
    assert_eq!(pair.alice.peer.stage(vec![0; 65_535].into(), 1_000), 4);
    assert_eq!(pair.alice.peer.staged_bytes(), 65_535);
}

#[test]
fn staged_packets_are_purged_after_the_last_retry() {
    let mut pair = Pair::new();
    let start = pair.now;
    pair.alice_sends(b"ping");
    pair.alice_sends(b"ping");
    pair.advance_cut(secs(89));
    assert_eq!(pair.alice.purged, 0);
    pair.advance_cut(secs(7));
    assert_eq!(pair.alice.purged, 2);
    let sent = pair.sent(ALICE, Kind::Initiation, start);
    assert!(
        sent.last().is_some_and(|last| *last < REKEY_ATTEMPT_TIME),
        "{sent:?}"
    );
    pair.advance_cut(secs(1_000));
    assert_eq!(pair.sent(ALICE, Kind::Initiation, start).len(), sent.len());
    assert_eq!(pair.alice.peer.next_deadline(), None);
    assert_eq!(
        pair.alice.indices(),
        0,
        "what was left of the attempt is gone"
    );
    // A new packet begins anew.
    pair.alice_sends(b"again");
    pair.settle();
    assert_eq!(pair.bob.delivered, [b"again"]);
}

#[test]
fn packets_that_keep_coming_keep_the_attempts_going() {
    let mut pair = Pair::new();
    let start = pair.now;
    for _ in 0..20 {
        pair.alice_sends(b"ping");
        pair.advance_cut(secs(10));
    }
    assert_eq!(pair.alice.purged, 0);
    let last = pair
        .sent(ALICE, Kind::Initiation, start)
        .pop()
        .expect("sent");
    assert!(last > 190.0, "{last}");
}

#[test]
fn a_deadline_is_exact_never_in_the_past_and_advances() {
    // `Pair::advance` asserts after every step that the next deadline is later. Here with all
    // timers armed, and polls that come late by whatever a busy host makes of it.
    let mut pair = Pair::connected();
    let mut random = Random(1);
    pair.alice.peer.set_persistent_keepalive(7, pair.now);
    for round in 0..2_000 {
        if random.next().is_multiple_of(5) {
            pair.alice_sends(b"x");
        }
        if random.next().is_multiple_of(7) {
            pair.bob_sends(b"y");
        }
        if random.next().is_multiple_of(11) {
            pair.wire.clear();
        }
        pair.settle();
        pair.now = pair.now + millis(random.next() % 9_000);
        for node in [&mut pair.alice, &mut pair.bob] {
            node.peer.handle_timeout(pair.now);
            assert!(
                node.peer.next_deadline().is_none_or(|at| at > pair.now),
                "round {round}"
            );
        }
        pair.poll();
        for node in [&pair.alice, &pair.bob] {
            assert!(
                node.peer.next_deadline().is_none_or(|at| at > pair.now),
                "round {round}"
            );
        }
    }
}

#[test]
fn one_late_poll_still_sees_expiry() {
    let mut pair = Pair::connected();
    pair.sleep(secs(3 * REJECT_AFTER_TIME));
    pair.poll();
    assert_eq!(pair.alice.peer.sessions().count(), 0);
    assert_eq!(pair.bob.peer.sessions().count(), 0);
}

#[test]
fn a_suspend_counts_as_elapsed() {
    let mut pair = Pair::connected();
    pair.bob_sends(b"sent before, received after");
    let late = pair.wire.pop_front().expect("data");
    // Nobody has even looked at the timers since.
    pair.now = pair.now + secs(REJECT_AFTER_TIME);
    pair.alice.receive(&late, pair.now);
    assert_eq!(pair.alice.refused, ["Expired"]);
    pair.alice_sends(b"ping");
    assert_eq!(pair.wire.back().map(Datagram::kind), Some(Kind::Initiation));
    pair.settle();
    assert_eq!(pair.bob.delivered, [b"ping"]);
}

#[test]
fn time_that_goes_backwards_or_ends_never_panics() {
    let mut pair = Pair::connected();
    let mut random = Random(2);
    pair.alice.peer.set_persistent_keepalive(3, pair.now);
    for _ in 0..2_000 {
        let shift = random.next() % 65;
        let nanos = random.next().checked_shr(shift as u32).unwrap_or(u64::MAX);
        pair.now = warren_wireguard::time::Instant::from_nanos(nanos);
        for node in [&mut pair.alice, &mut pair.bob] {
            node.peer.handle_timeout(pair.now);
        }
        pair.alice_sends(b"x");
        pair.bob_sends(b"y");
        pair.settle();
    }
}

#[test]
fn a_peer_is_unanswered_from_the_first_initiation_until_it_answers_whoever_calls_then() {
    let mut pair = Pair::connected();
    assert_eq!(pair.alice.peer.unanswered_since(), None);
    pair.advance(secs(3 * REJECT_AFTER_TIME));
    let called = pair.now;
    pair.alice_sends(b"ping");
    pair.advance_cut(secs(300));
    // Alice has long given up, and it is still so.
    assert_eq!(pair.alice.peer.unanswered_since(), Some(called));
    pair.alice_sends(b"once more");
    pair.advance_cut(secs(10));
    assert_eq!(pair.alice.peer.unanswered_since(), Some(called));
    pair.bob_sends(b"here I am");
    pair.settle();
    assert_eq!(pair.alice.peer.unanswered_since(), None);
    assert_eq!(pair.bob.peer.unanswered_since(), None);
}
