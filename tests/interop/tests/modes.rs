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
/// Whether the kernel's offloads are used, packets are sealed one at a time, and a worker is one thread.
const SWITCHES: [[bool; 3]; 4] = [
    [true, false, false],
    [true, true, true],
    [false, true, false],
    [false, false, true],
];
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
    offloads: bool,
    library: bool,
    joined: bool,
}

impl Mode {
    fn new(workers: u32, mtu: u32, [offloads, library, joined]: [bool; 3]) -> Self {
        Self {
            workers,
            mtu,
            offloads,
            library,
            joined,
        }
    }

    fn switches(&self) -> String {
        let mut switches = format!("--workers {}", self.workers);
        for (chosen, switch) in [
            (!self.offloads, NO_OFFLOADS),
            (self.library, "--aead library"),
            (self.joined, "--joined"),
        ] {
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
    // Each mode as the numbers of its choices.
    let choices = |mode: &Mode| {
        [
            mode.workers,
            mode.mtu,
            mode.offloads.into(),
            mode.library.into(),
            mode.joined.into(),
        ]
    };
    let pairs = |modes: Vec<Mode>| -> BTreeSet<_> {
        let pairs = modes.iter().map(choices).flat_map(|of| {
            let both = (0..of.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
            both.map(move |(a, b)| (a, of[a], b, of[b]))
        });
        pairs.collect()
    };
    assert_eq!(pairs(selection()), pairs(all()));
    assert_eq!((selection().len(), all().len()), (12, 72));
}

#[test]
#[ignore = "moves 29 gigabytes: ./check matrix"]
fn in_every_mode_bytes_arrive_intact_both_ways_at_once() {
    for mode in all() {
        carries(mode, MANY, Duration::from_secs(240));
    }
}

/// Workers are crossed with rows of switches in which each two meet; the MTUs go round.
fn selection() -> Vec<Mode> {
    let rows = WORKERS
        .iter()
        .flat_map(|&workers| SWITCHES.map(|row| (workers, row)));
    let round = (0..).map(|n| MTUS[(n + n / SWITCHES.len()) % MTUS.len()]);
    let modes = rows.zip(round);
    modes
        .map(|((workers, row), mtu)| Mode::new(workers, mtu, row))
        .collect()
}

fn all() -> Vec<Mode> {
    let mut modes = Vec::new();
    for workers in WORKERS {
        for mtu in MTUS {
            for number in 0..8 {
                let row = [0, 1, 2].map(|bit| number >> bit & 1 != 0);
                modes.push(Mode::new(workers, mtu, row));
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
        if mode.library {
            assert_eq!(status.node.aead, "library", "{mode:?}");
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
