//! Bulk both ways at once in every mode that a deployment may choose, each byte compared with what it
//! should be, and memory that does not grow with what was carried.
//!
//! A selection in which each pair of choices occurs runs for every change; all of them, with 200
//! megabytes each way, by `./check matrix`.

use std::collections::BTreeSet;
use std::time::Duration;

use warren_control::status::Status;
use warren_tests_interop::{Pair, patiently};

const WORKERS: [u32; 3] = [1, 2, 4];
const MTUS: [u32; 3] = [1280, 1420, 8920];
/// What sends and receives each packet for itself.
const NO_OFFLOADS: &str = "--no-tun-offload --no-udp-segmentation --no-udp-receive-offload";
/// Bytes each way in a mode of the selection.
const SOME: u64 = 30_000_000;
/// Bytes each way in every mode of the matrix.
const MANY: u64 = 200_000_000;
/// What a daemon may hold more at the end of a transfer than after a tenth of it, in KiB.
const GROWTH_KIB: u64 = 2048;
/// What a worker may read ahead, and may not have needed in the beginning, in KiB.
const BACKLOG_KIB: u64 = 2304;

/// One choice of each.
#[derive(Debug, Clone, Copy)]
struct Mode {
    workers: u32,
    mtu: u32,
    /// Whether the kernel's offloads are used.
    offloads: bool,
    cipher: &'static str,
    /// Whether a worker is one thread.
    joined: bool,
}

impl Mode {
    fn switches(&self) -> String {
        let mut switches = format!("--workers {} --aead {}", self.workers, self.cipher);
        for (chosen, switch) in [(!self.offloads, NO_OFFLOADS), (self.joined, "--joined")] {
            if chosen {
                switches.push(' ');
                switches.push_str(switch);
            }
        }
        switches
    }
}

#[test]
fn in_every_pair_of_modes_bytes_arrive_intact_both_ways_at_once() {
    for mode in selection() {
        carries(mode, SOME, Duration::from_secs(60));
    }
}

#[test]
fn in_the_selection_every_two_choices_meet() {
    let choices = |mode: &Mode| {
        [
            mode.workers.to_string(),
            mode.mtu.to_string(),
            mode.offloads.to_string(),
            mode.cipher.to_owned(),
            mode.joined.to_string(),
        ]
    };
    let pairs = |modes: Vec<Mode>| -> BTreeSet<_> {
        let pairs = modes.iter().map(choices).flat_map(|of| {
            let both = (0..of.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
            both.map(move |(a, b)| (a, of[a].clone(), b, of[b].clone()))
        });
        pairs.collect()
    };
    assert_eq!(pairs(selection()), pairs(all()));
    assert_eq!(selection().len(), 12);
    assert_eq!(all().len(), 36 * ciphers().len());
}

#[test]
#[ignore = "moves 58 gigabytes: ./check matrix"]
fn in_every_mode_bytes_arrive_intact_both_ways_at_once() {
    for mode in all() {
        carries(mode, MANY, Duration::from_secs(240));
    }
}

/// The ciphers that this processor has, by their names for `--aead`. The processor is asked, not the crate that is
/// tried here: what that took for missing would not be missed.
fn ciphers() -> Vec<&'static str> {
    let mut ciphers = vec!["auto", "library"];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            ciphers.push("avx2");
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
        {
            ciphers.push("avx512");
        }
    }
    ciphers
}

/// Workers are crossed with four ciphers, some of them twice where there are fewer; the MTUs go round,
/// and the rest is such that each two choices meet.
fn selection() -> Vec<Mode> {
    let ciphers = ciphers();
    let crossed = (0..WORKERS.len()).flat_map(|w| (0..4).map(move |c| (w, c)));
    let modes = crossed.map(|(w, c)| Mode {
        workers: WORKERS[w],
        mtu: MTUS[(w + c) % MTUS.len()],
        offloads: (w + c) % 2 == 0,
        cipher: ciphers[c % ciphers.len()],
        joined: (w == 1) != (c >= 2),
    });
    modes.collect()
}

fn all() -> Vec<Mode> {
    let mut modes = Vec::new();
    for workers in WORKERS {
        for mtu in MTUS {
            for cipher in ciphers() {
                for (offloads, joined) in
                    [(false, false), (false, true), (true, false), (true, true)]
                {
                    modes.push(Mode {
                        workers,
                        mtu,
                        offloads,
                        cipher,
                        joined,
                    });
                }
            }
        }
    }
    modes
}

/// Moves bytes in this mode, a tenth of them first, and looks at what that did to memory.
#[expect(clippy::disallowed_methods, reason = "says how long it took")]
fn carries(mode: Mode, bytes: u64, within: Duration) {
    let pair = Pair::new(&mode.switches(), mode.mtu);
    patiently("both have seen that their interface is up", || {
        let open = |status: &Status| status.features.contains_key("udp_segmentation");
        pair.status().iter().all(open)
    });
    for status in pair.status() {
        assert_eq!(status.node.workers, mode.workers, "{mode:?}");
        assert_eq!(status.node.mtu, mode.mtu, "{mode:?}");
        if mode.cipher != "auto" {
            assert_eq!(status.node.aead, mode.cipher, "{mode:?}");
        }
        for feature in [
            "tun_offload_header",
            "udp_segmentation",
            "udp_receive_offload",
        ] {
            assert_eq!(status.features[feature], mode.offloads, "{mode:?}");
        }
    }
    let exchange = env!("CARGO_BIN_EXE_exchange");
    pair.exchange(exchange, bytes / 10, within);
    let early = pair.resident_kib();
    let begun = std::time::Instant::now();
    pair.exchange(exchange, bytes, within);
    let rate = bytes as f64 * 8e-9 / begun.elapsed().as_secs_f64();
    let late = pair.resident_kib();
    eprintln!("{mode:?}: {rate:.2} Gb/s each way, {early:?} to {late:?} KiB");
    for (early, late) in early.into_iter().zip(late) {
        assert!(
            late <= early + GROWTH_KIB + u64::from(mode.workers) * BACKLOG_KIB,
            "{mode:?}: {early} KiB became {late}"
        );
    }
}
