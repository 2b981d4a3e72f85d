//! Sessions: counters, windows, ages, erasure.

use warren_wireguard::messages::padded_len;
use warren_wireguard::replay::Window;
use warren_wireguard::{PeerState, Record, Reservation, Verdict};

use crate::util::*;

const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
const RESTORE_COUNTER_JUMP: u64 = 1 << 24;

#[test]
fn payload_is_padded_to_a_multiple_of_16_clamped_to_the_mtu() {
    for (len, mtu, padded) in [
        (0, 1420, 0),
        (1, 1420, 16),
        (16, 1420, 16),
        (17, 1420, 32),
        (1408, 1420, 1408),
        (1409, 1420, 1420),
        (1419, 1420, 1420),
        (1420, 1420, 1420),
        (1421, 1420, 1421),
        (9000, 1420, 9000),
    ] {
        assert_eq!(padded_len(len, mtu), padded, "{len} of {mtu}");
    }
}

#[test]
fn the_sending_counter_has_64_bits_and_asks_for_new_keys_after_2_to_the_60() {
    let mut pair = Pair::connected();
    pair.advance(secs(10));
    pair.set_sending_counter(REKEY_AFTER_MESSAGES - 1);
    let start = pair.log.len();
    pair.alice_sends(b"2^60 - 1");
    pair.alice_sends(b"2^60");
    let counters: Vec<_> = pair.log[start..]
        .iter()
        .map(|(_, datagram)| counter(datagram))
        .collect();
    assert_eq!(counters[..1], [REKEY_AFTER_MESSAGES - 1]);
    pair.advance(secs(6));
    assert_eq!(
        pair.sent(ALICE, Kind::Initiation, pair.log[start].0).len(),
        1
    );
    pair.alice_sends(b"with new keys");
    assert_eq!(
        pair.wire.pop_back().map(|datagram| counter(&datagram)),
        Some(1)
    );
}

#[test]
fn a_session_that_is_used_up_sends_nothing() {
    let mut pair = Pair::connected();
    pair.set_sending_counter(REJECT_AFTER_MESSAGES - 2);
    pair.advance(secs(6));
    assert!(matches!(
        pair.alice.peer.reserve(3, pair.now),
        Reservation::Stage
    ));
    pair.alice.peer.stage(b"with new keys".as_slice().into(), 1);
    pair.settle();
    assert_eq!(pair.bob.delivered, [b"with new keys"]);
}

#[test]
fn a_counter_beyond_the_limit_is_not_received() {
    let mut pair = Pair::connected();
    let session = pair.bob.peer.sessions().last().cloned().expect("a session");
    let mut records = [
        REJECT_AFTER_MESSAGES,
        REJECT_AFTER_MESSAGES - 1,
        u64::MAX,
        5,
    ]
    .map(|counter| Record::new(counter, 1));
    let _ = pair
        .bob
        .peer
        .accept(&session, ALICE.into(), &mut records, pair.now);
    let verdicts = records.map(|record| record.verdict);
    use Verdict::{Accepted, Expired, Replayed};
    assert_eq!(verdicts, [Expired, Accepted, Expired, Replayed]);
}

#[test]
fn a_replayed_packet_is_refused() {
    let mut pair = Pair::connected();
    pair.alice_sends(b"once");
    let data = pair.wire.pop_front().expect("data");
    pair.deliver(&data);
    pair.deliver(&data);
    assert_eq!(pair.bob.delivered, [b"once"]);
    assert_eq!(pair.bob.refused, ["Replayed"]);
}

#[test]
fn a_counter_is_marked_only_after_authentication() {
    let mut pair = Pair::connected();
    pair.alice_sends(b"genuine");
    let data = pair.wire.pop_front().expect("data");
    let mut forged = data.clone();
    *forged.bytes.last_mut().expect("a tag") ^= 1;
    pair.deliver(&forged);
    pair.deliver(&data);
    assert_eq!(pair.bob.delivered, [b"genuine"]);
}

#[test]
fn reordered_packets_arrive_once_each() {
    let mut pair = Pair::connected();
    for i in 0..100 {
        pair.alice_sends(&[i]);
    }
    let sent: Vec<_> = pair.wire.drain(..).collect();
    for datagram in sent.iter().rev().chain(&sent) {
        pair.deliver(datagram);
    }
    assert_eq!(pair.bob.delivered.len(), 100);
    assert_eq!(pair.bob.refused.len(), 100);
}

#[test]
fn packets_under_way_at_a_rekey_still_arrive() {
    let mut pair = Pair::connected();
    pair.advance(secs(10));
    pair.alice_sends(b"with the old keys");
    pair.bob_sends(b"with the old keys");
    let old: Vec<_> = pair.wire.drain(..).collect();
    pair.alice.peer.rekey(pair.now);
    pair.settle();
    for datagram in &old {
        pair.deliver(datagram);
    }
    assert_eq!(
        (pair.alice.delivered.len(), pair.bob.delivered.len()),
        (1, 1)
    );
    assert!(pair.alice.refused.is_empty() && pair.bob.refused.is_empty());
}

#[test]
fn a_session_is_not_used_beyond_180_s() {
    let mut pair = Pair::connected();
    pair.bob_sends(b"in time");
    pair.bob_sends(b"too late");
    let sent: Vec<_> = pair.wire.drain(..).collect();
    pair.now = pair.now + millis(179_999);
    pair.alice.receive(&sent[0], pair.now);
    assert!(pair.alice.peer.is_ready(pair.now) && pair.bob.peer.is_ready(pair.now));
    pair.now = pair.now + millis(1);
    pair.alice.receive(&sent[1], pair.now);
    assert!(!pair.alice.peer.is_ready(pair.now) && !pair.bob.peer.is_ready(pair.now));
    assert_eq!(pair.alice.delivered, [b"in time"]);
    assert_eq!(pair.alice.refused, ["Expired"]);
}

#[test]
fn keys_are_erased_three_reject_times_after_the_last_handshake() {
    let mut pair = Pair::connected();
    let sessions: Vec<_> = [&pair.alice, &pair.bob]
        .map(|node| {
            node.peer
                .sessions()
                .map(std::sync::Arc::downgrade)
                .collect::<Vec<_>>()
        })
        .concat();
    assert_eq!(sessions.len(), 2);
    pair.advance(millis(539_999));
    assert!(sessions.iter().all(|session| session.upgrade().is_some()));
    pair.advance(millis(1));
    assert!(sessions.iter().all(|session| session.upgrade().is_none()));
}

#[test]
fn secrets_are_absent_from_debug() {
    let mut pair = Pair::connected();
    pair.alice
        .peer
        .set_preshared_key(warren_config::PresharedKey::from_bytes([0xab; 32]));
    let session = pair
        .alice
        .peer
        .sessions()
        .last()
        .cloned()
        .expect("a session");
    let state = pair.alice.peer.export();
    let text = format!(
        "{:?} {:?} {session:?} {:?} {state:?}",
        pair.alice.identity,
        pair.alice.peer,
        session.sealing(),
    );
    let sealing = session.sealing().bytes();
    for secret in [&private_key(1).as_bytes()[..], &sealing[..], &[0xab; 32]] {
        assert!(
            !text.contains(&format!("{:?}", &secret[..4]).replace(['[', ']'], "")),
            "{text}"
        );
        let hex: String = secret[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(!text.to_lowercase().contains(&hex), "{text}");
    }
}

/// The table of the kernel's `selftest/counter.c`.
#[test]
fn the_replay_window_passes_the_kernels_table() {
    const WINDOW: u64 = 8192 - 64;
    const LIM: u64 = WINDOW + 1;
    const R: u64 = REJECT_AFTER_MESSAGES;
    assert_eq!(warren_wireguard::replay::WINDOW, WINDOW);
    let mut window = Window::new();
    for (at, (counter, expected)) in [
        (0, true),
        (1, true),
        (1, false),
        (9, true),
        (8, true),
        (7, true),
        (7, false),
        (LIM, true),
        (LIM - 1, true),
        (LIM - 1, false),
        (LIM - 2, true),
        (2, true),
        (2, false),
        (LIM + 16, true),
        (3, false),
        (LIM + 16, false),
        (LIM * 4, true),
        (LIM * 4 - (LIM - 1), true),
        (10, false),
        (LIM * 4 - LIM, false),
        (LIM * 4 - (LIM + 1), false),
        (LIM * 4 - (LIM - 2), true),
        (LIM * 4 + 1 - LIM, false),
        (0, false),
        (R, false),
        (R - 1, true),
        (R, false),
        (R - 1, false),
        (R - 2, true),
        (R + 1, false),
        (R + 2, false),
        (R - 2, false),
        (R - 3, true),
        (0, false),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(window.accept(counter), expected, "case {}", at + 1);
    }
    let run = |counters: &mut dyn Iterator<Item = u64>, then: &[(u64, bool)]| {
        let mut window = Window::new();
        for counter in counters {
            assert!(window.accept(counter), "{counter}");
        }
        for (counter, expected) in then {
            assert_eq!(window.accept(*counter), *expected, "{counter}");
        }
    };
    run(&mut (1..=WINDOW), &[(0, true), (0, false)]);
    run(&mut (2..=WINDOW + 1), &[(1, true), (0, false)]);
    run(&mut (0..=WINDOW).rev(), &[]);
    run(&mut (1..=WINDOW + 1).rev(), &[(0, false)]);
    run(&mut (1..=WINDOW).rev(), &[(WINDOW + 1, true), (0, false)]);
    run(&mut (1..=WINDOW).rev(), &[(0, true), (WINDOW + 1, true)]);
}

mod replay_model {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use warren_wireguard::replay::{WINDOW, Window};

    /// Remembers everything.
    #[derive(Default)]
    struct Naive {
        seen: BTreeSet<u64>,
    }

    impl Naive {
        fn accept(&mut self, counter: u64) -> bool {
            let greatest = self.seen.last().copied().unwrap_or(0);
            counter < super::REJECT_AFTER_MESSAGES
                && greatest.saturating_sub(counter) <= WINDOW
                && self.seen.insert(counter)
        }
    }

    fn steps() -> impl Strategy<Value = Vec<i64>> {
        let step = prop_oneof![
            8 => -70..70_i64,
            2 => -9_000..9_000_i64,
            1 => -40_000..40_000_i64,
            1 => (0..62_u32).prop_map(|shift| 1_i64 << shift),
        ];
        proptest::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn the_replay_window_agrees_with_a_naive_model(
            start in prop_oneof![Just(0_u64), 0..20_000_u64, any::<u64>()],
            steps in steps(),
            handed_over in 0..400_usize,
        ) {
            let (mut window, mut naive) = (Window::new(), Naive::default());
            let mut at = start;
            for (nth, step) in steps.into_iter().enumerate() {
                if nth == handed_over {
                    let (next, ring) = window.export();
                    window = Window::restore(next, ring);
                }
                at = at.saturating_add_signed(step);
                prop_assert_eq!(window.accept(at), naive.accept(at), "{} of {}", at, start);
            }
        }
    }

    #[test]
    fn a_window_that_makes_no_sense_accepts_nothing_old() {
        for (next, len) in [(100, 0), (100, 1), (1 << 40, 4), (1 << 40, 1_000), (300, 3)] {
            let mut window = Window::restore(next, &vec![0; len]);
            assert!(
                !window.accept(next - 1) && !window.accept(next - 50),
                "{next} {len}"
            );
            assert!(window.accept(next + 64));
        }
    }
}

impl Pair {
    /// Alice carries on with her session as if she had sent as much already.
    fn set_sending_counter(&mut self, counter: u64) {
        self.change_alice(|state| {
            let current = state.current.as_mut().expect("a session");
            current.sending_counter = counter - RESTORE_COUNTER_JUMP;
        });
    }

    fn change_alice(&mut self, change: impl FnOnce(&mut PeerState)) {
        let mut state = self.alice.peer.export();
        change(&mut state);
        self.alice.take_over(&state);
    }
}

fn counter(datagram: &Datagram) -> u64 {
    u64::from_le_bytes(datagram.bytes[8..16].try_into().expect("8 bytes"))
}
