//! Bulk both ways at once in every mode that a deployment may choose, each byte compared with what it
//! should be, and memory that does not grow with what was carried.
//!
//! A selection in which each pair of choices occurs runs for every change; all of them, with a
//! gigabyte each way, by `./check matrix`.

use std::time::Duration;

use warren_tests_interop::Pair;

const WORKERS: [u32; 3] = [1, 2, 4];
const MTUS: [u32; 3] = [1280, 1420, 8920];
/// What sends and receives each packet for itself.
const NO_OFFLOADS: &str = "--no-tun-offload --no-udp-segmentation --no-udp-receive-offload";
/// Bytes each way in a mode of the selection.
const SOME: u64 = 30_000_000;
/// Bytes each way in every mode of the matrix.
const MANY: u64 = 1_000_000_000;
/// What a daemon may hold more at the end of a transfer than after a tenth of it, in KiB.
const GROWTH_KIB: u64 = 2048;

/// One choice of each.
#[derive(Debug, Clone, Copy)]
struct Mode {
    workers: u32,
    mtu: u32,
    offloads: bool,
}

#[test]
fn in_every_pair_of_modes_bytes_arrive_intact_both_ways_at_once() {
    // Workers and MTUs are all crossed, and each of both meets offloads on and off.
    for (n, mode) in (0..).zip(crossed()) {
        carries(mode(n % 2 == 0), SOME, Duration::from_secs(60));
    }
}

#[test]
#[ignore = "moves 36 gigabytes: ./check matrix"]
fn in_every_mode_a_gigabyte_arrives_intact_both_ways_at_once() {
    for mode in crossed() {
        for offloads in [true, false] {
            carries(mode(offloads), MANY, Duration::from_secs(240));
        }
    }
}

fn crossed() -> impl Iterator<Item = impl Fn(bool) -> Mode> {
    WORKERS.into_iter().flat_map(|workers| {
        MTUS.into_iter().map(move |mtu| {
            move |offloads| Mode {
                workers,
                mtu,
                offloads,
            }
        })
    })
}

/// Moves bytes in this mode, a tenth of them first, and looks at what that did to memory.
#[expect(clippy::disallowed_methods, reason = "says how long it took")]
fn carries(mode: Mode, bytes: u64, within: Duration) {
    let off = if mode.offloads { "" } else { NO_OFFLOADS };
    let pair = Pair::new(&format!("--workers {} {off}", mode.workers), mode.mtu);
    for status in pair.status() {
        assert_eq!(status.node.workers, mode.workers, "{mode:?}");
        assert_eq!(status.node.mtu, mode.mtu, "{mode:?}");
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
            late <= early + GROWTH_KIB,
            "{mode:?}: {early} KiB became {late}"
        );
    }
}
