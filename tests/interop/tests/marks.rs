//! What the wire tells of what it carries: the type of service of handshakes, and of congestion no
//! less and no more than RFC 6040 says.

use std::time::Duration;

use warren_control::status;
use warren_tests_interop::{Killed, Outer, Program, Seen, Tunnel, Wiretap, patiently};

/// Assured forwarding 41, as the kernel's driver marks handshakes.
const HANDSHAKE_TOS: u8 = 0x88;
/// Expedited forwarding, which is nobody's business outside.
const INNER_DSCP: u8 = 0xb8;
/// Congestion was experienced, of the two bits of RFC 3168.
const CE: u8 = 3;

#[test]
fn handshakes_are_marked_as_the_kernel_marks_them_and_data_is_not() {
    for outer in [Outer::V4, Outer::V6] {
        let ends = Tunnel::new(Program::Warren, Program::Warren, outer);
        let seen = pinged(&ends, "10.9.0.2", INNER_DSCP, true);
        for (kind, tos) in [(1, HANDSHAKE_TOS), (2, HANDSHAKE_TOS), (4, 0)] {
            let marks: Vec<u8> = outers(&seen, kind).collect();
            assert!(!marks.is_empty(), "no message of type {kind}: {seen:?}");
            assert!(marks.iter().all(|&mark| mark == tos), "{kind}: {marks:x?}");
        }
    }
}

#[test]
fn cookie_replies_are_not_marked_as_the_kernel_does_not_mark_them() {
    for (outer, target) in [
        (Outer::V4, "192.0.2.2:51820"),
        (Outer::V6, "[2001:db8::2]:51820"),
    ] {
        let ends = Tunnel::new(Program::Warren, Program::Warren, outer);
        let key = ends.called.run("wg show wg0 public-key");
        let wiretap = Wiretap::start(&ends.called, env!("CARGO_BIN_EXE_wiretap"));
        let flood = ends
            .caller
            .command(env!("CARGO_BIN_EXE_flood"))
            .args(["one", target, key.trim(), "2000"])
            .spawn();
        let flood = Killed(flood.expect("nsenter is installed"));
        let socket = ends.called.root().join("run/warren/wg0.sock");
        patiently("a cookie is demanded", || {
            let status = status::ask(&socket, Duration::from_secs(10));
            let drops = status.expect("the daemon answers").drops;
            drops.get("in_cookie_demanded").is_some_and(|&n| n > 0)
        });
        drop(flood);
        assert!(ends.caller.processes("flood").is_empty(), "it goes on");
        let marks: Vec<u8> = outers(&wiretap.stop(), 3).collect();
        assert!(!marks.is_empty(), "no cookie reply");
        assert!(marks.iter().all(|&mark| mark == 0), "{marks:x?}");
    }
}

#[test]
fn the_wire_tells_of_congestion_marks_and_of_nothing_else() {
    for outer in [Outer::V4, Outer::V6] {
        let ends = Tunnel::new(Program::Warren, Program::Warren, outer);
        assert!(ends.caller.reaches("10.9.0.2"));
        for address in ["10.9.0.2", "fd09::2"] {
            for ecn in 0..=3 {
                let seen = pinged(&ends, address, INNER_DSCP | ecn, true);
                // A keepalive, which has no mark, may be among them.
                assert!(
                    outers(&seen, 4).all(|tos| tos == ecn || tos == 0),
                    "{ecn}: {seen:?}"
                );
                assert!(outers(&seen, 4).any(|tos| tos == ecn), "{ecn}: {seen:?}");
                assert!(
                    echoes(&seen).all(|tos| tos == INNER_DSCP | ecn),
                    "{ecn}: {seen:?}"
                );
            }
        }
    }
}

#[test]
fn congestion_on_the_way_reaches_who_understands_it_and_drops_the_rest() {
    for outer in [Outer::V4, Outer::V6] {
        let ends = Tunnel::new(Program::Warren, Program::Warren, outer);
        assert!(ends.caller.reaches("10.9.0.2"));
        ends.caller.shell(
            "nft -f -",
            "table inet congested { chain output { type filter hook output priority 0;
                udp dport 51820 ip ecn set ce
                udp dport 51820 ip6 ecn set ce
            }
            }\n",
        );
        for address in ["10.9.0.2", "fd09::2"] {
            for ecn in [1, 2, CE] {
                let seen = pinged(&ends, address, INNER_DSCP | ecn, true);
                assert!(outers(&seen, 4).any(|tos| tos == CE), "{seen:?}");
                let inner: Vec<u8> = echoes(&seen).collect();
                assert_eq!(inner, [INNER_DSCP | CE], "{ecn}");
            }
            // Its sender would not hear of it, so it is to notice a loss.
            let seen = pinged(&ends, address, INNER_DSCP, false);
            assert_eq!(echoes(&seen).count(), 0, "{seen:?}");
        }
    }
}

/// What passes the called host during one ping with this type of service, which is answered or not.
fn pinged(ends: &Tunnel, address: &str, tos: u8, answered: bool) -> Vec<Seen> {
    let wiretap = Wiretap::start(&ends.called, env!("CARGO_BIN_EXE_wiretap"));
    let run = ends
        .caller
        .attempt(&format!("ping -c 1 -W 2 -Q {tos} {address}"));
    let seen = wiretap.stop();
    assert_eq!(run.success, answered, "{run}\n{seen:?}");
    seen
}

/// The types of service of the tunnel's messages of this type.
fn outers(seen: &[Seen], kind: u8) -> impl Iterator<Item = u8> {
    seen.iter()
        .filter(move |seen| seen.is_outer(kind))
        .map(|seen| seen.tos)
}

/// The types of service of the echo requests that came out of the tunnel.
fn echoes(seen: &[Seen]) -> impl Iterator<Item = u8> {
    seen.iter()
        .filter(|seen| seen.is_echo())
        .map(|seen| seen.tos)
}
