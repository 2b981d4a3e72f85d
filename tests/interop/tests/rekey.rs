//! Sessions between us and wireguard-go as they age, by the real clock: renewed after 120 s, dead
//! after 180 s without traffic, and made anew when there is some again.

use std::thread;

use warren_tests_interop::{Outer, Program, Tunnel};

/// Seconds after which whoever sends renews a session that it initiated.
const REKEY_AFTER_TIME: u64 = 120;
/// Pings at ten a second that outlast that.
const PINGS: u32 = 1350;
/// Longer than a session that nobody renews lives, in seconds.
const IDLE: u64 = 190;

#[test]
#[ignore = "takes six minutes: ./check matrix"]
fn sessions_are_renewed_and_expire_and_no_ping_is_lost_whoever_calls() {
    thread::scope(|scope| {
        scope.spawn(|| ages(Program::Warren, Program::WireguardGo));
        scope.spawn(|| ages(Program::WireguardGo, Program::Warren));
    });
}

fn ages(caller: Program, called: Program) {
    let ends = Tunnel::new(caller, called, Outer::V4);
    assert!(ends.caller.reaches("10.9.0.2"));
    let first = handshakes(&ends);

    let pings = ends.pings_every("0.1", PINGS);
    assert_eq!(pings.lost(), 0, "{caller:?} calls {called:?}");
    let second = handshakes(&ends);
    for (first, second) in first.into_iter().zip(second) {
        let age = second - first;
        assert!(
            (REKEY_AFTER_TIME - 1..REKEY_AFTER_TIME + 6).contains(&age),
            "{caller:?} calls {called:?}: renewed after {age} s"
        );
    }

    ends.caller.run(&format!("sleep {IDLE}"));
    assert_eq!(handshakes(&ends), second, "nobody renews what nobody uses");
    let pings = ends.pings(100);
    assert_eq!(pings.lost(), 0, "{caller:?} calls {called:?}");
    for (second, third) in second.into_iter().zip(handshakes(&ends)) {
        assert!(third >= second + IDLE, "{caller:?} calls {called:?}");
    }
}

/// When each end last shook hands, in seconds of the wall clock.
fn handshakes(ends: &Tunnel) -> [u64; 2] {
    [&ends.caller, &ends.called].map(|host| {
        let line = host.run("wg show wg0 latest-handshakes");
        let (_, seconds) = line.trim().split_once('\t').expect("one peer");
        seconds.parse().expect("a number")
    })
}
