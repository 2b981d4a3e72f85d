//! What has to be reached, beside what was measured: the last table of a run.

use crate::case::Case;

/// How a figure stands to its bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    AimReached,
    Passed,
    Short,
    NoBar,
    NotMeasured,
}

impl Verdict {
    /// As the table has it.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Verdict::AimReached => "pass, aim reached",
            Verdict::Passed => "pass",
            Verdict::Short => "SHORT",
            Verdict::NoBar => "no bar",
            Verdict::NotMeasured => "not measured",
        }
    }
}

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    /// A ratio to wireguard-go.
    WireguardGo,
    /// A ratio to the peer that is the best by its median over all rounds.
    BestPeer,
    /// A ratio to Warren with the library's cipher alone.
    Library,
    /// The figure itself.
    Nothing,
}

/// A figure with its bar and what is aimed at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    /// What the row is called.
    pub(crate) name: &'static str,
    pub(crate) case: Case,
    pub(crate) figure: &'static str,
    pub(crate) against: Against,
    /// Whether the device that leaves the cipher out is meant.
    pub(crate) null: bool,
    /// The bar and the aim, where there are any.
    pub(crate) wanted: Option<[f64; 2]>,
    /// The same on a processor without AVX-512 IFMA.
    pub(crate) without_ifma: Option<[f64; 2]>,
}

/// All of them, in the order of the table in which they were set.
///
/// What was not asked for stands behind, without a bar, so that it is not lost: among it UDP_SEGMENT
/// with datagrams of full size, since the bar of UDP_SEGMENT was set by prototypes that sent 64 bytes.
pub(crate) const BARS: [Bar; 34] = {
    use Against::{BestPeer, Library, Nothing, WireguardGo};
    use Case::{
        Bbr, Handshakes, Lookups, Memory, Peers, Ping, PingLoaded, Plain, Segment64, Segment1372,
        Shed, Tcp1, Tcp4, Udp64, Udp1372, Vxlan, Workers,
    };
    [
        bar("bulk TCP, 1 stream", Tcp1, "Gb/s", WireguardGo, [2.2, 3.0]).without([1.8, 2.4]),
        bar("bulk TCP, 4 streams", Tcp4, "Gb/s", WireguardGo, [2.2, 3.0]).without([1.8, 2.4]),
        bar(
            "system CPU per byte, 1 stream",
            Tcp1,
            "system ns/B",
            WireguardGo,
            [0.42, 0.33],
        )
        .without([0.55, 0.45]),
        bar(
            "system CPU per byte, 4 streams",
            Tcp4,
            "system ns/B",
            WireguardGo,
            [0.42, 0.33],
        )
        .without([0.55, 0.45]),
        Bar {
            null: true,
            ..bar(
                "bulk TCP, cipher left out",
                Tcp1,
                "Gb/s",
                WireguardGo,
                [4.0, 5.0],
            )
        },
        bar("UDP of 64 bytes", Udp64, "kpps", BestPeer, [1.8, 3.0]),
        bar("UDP of 1372 bytes", Udp1372, "kpps", BestPeer, [1.8, 2.5]),
        bar(
            "UDP_SEGMENT of 64 bytes",
            Segment64,
            "kpps",
            WireguardGo,
            [4.0, 6.0],
        ),
        bar(
            "bulk TCP through VXLAN",
            Vxlan,
            "Gb/s",
            WireguardGo,
            [2.0, 3.0],
        ),
        bar(
            "ping p99 beside bulk",
            PingLoaded,
            "p99 us",
            BestPeer,
            [0.7, 0.25],
        ),
        bar("ping p99 idle", Ping, "p99 us", BestPeer, [1.1, 0.8]),
        bar(
            "bulk TCP, offloads off",
            Plain,
            "Gb/s",
            BestPeer,
            [1.3, 1.6],
        ),
        bar(
            "peak memory, MiB",
            Memory,
            "peak MiB",
            Nothing,
            [24.0, 10.0],
        ),
        bar(
            "memory per idle peer, KiB",
            Peers,
            "KiB/peer",
            Nothing,
            [2.0, 1.0],
        ),
        bar(
            "peers configured",
            Peers,
            "configure ms",
            BestPeer,
            [0.5, 0.2],
        ),
        bar("peers shown", Peers, "show ms", BestPeer, [1.0, 0.2]),
        bar(
            "allowed-ips of a million, v4, ns",
            Lookups,
            "v4 ns",
            Nothing,
            [150.0, 100.0],
        ),
        bar(
            "allowed-ips of a million, v6, ns",
            Lookups,
            "v6 ns",
            Nothing,
            [400.0, 250.0],
        ),
        bar(
            "handshakes answered per CPU second",
            Handshakes,
            "a CPU second",
            WireguardGo,
            [1.5, 2.5],
        ),
        bar(
            "forged handshakes shed, M/s",
            Shed,
            "M a second",
            Nothing,
            [1.0, 3.0],
        ),
        bar(
            "reordered, UDP of 64 bytes",
            Udp64,
            "reordered",
            Nothing,
            [0.0, 0.0],
        ),
        bar(
            "reordered, UDP of 1372 bytes",
            Udp1372,
            "reordered",
            Nothing,
            [0.0, 0.0],
        ),
        bar(
            "reordered, UDP_SEGMENT",
            Segment64,
            "reordered",
            Nothing,
            [0.0, 0.0],
        ),
        bar("reordered, 1 worker", Workers, "by 1", Nothing, [0.0, 0.0]),
        bar("reordered, 2 workers", Workers, "by 2", Nothing, [0.0, 0.0]),
        bar("reordered, 4 workers", Workers, "by 4", Nothing, [0.0, 0.0]),
        bar(
            "reordered, UDP_SEGMENT of 1372 bytes",
            Segment1372,
            "reordered",
            Nothing,
            [0.0, 0.0],
        ),
        row(
            "UDP_SEGMENT of 1372 bytes",
            Segment1372,
            "kpps",
            WireguardGo,
        ),
        row("bulk TCP with BBR", Bbr, "Gb/s", WireguardGo),
        row(
            "system CPU per byte with BBR",
            Bbr,
            "system ns/B",
            WireguardGo,
        ),
        Bar {
            null: true,
            ..row(
                "bulk TCP with BBR, cipher left out",
                Bbr,
                "Gb/s",
                WireguardGo,
            )
        },
        row("bulk TCP, 1 stream", Tcp1, "Gb/s", Library),
        row("bulk TCP, 4 streams", Tcp4, "Gb/s", Library),
        row("UDP_SEGMENT of 64 bytes", Segment64, "kpps", Library),
    ]
};

const fn row(name: &'static str, case: Case, figure: &'static str, against: Against) -> Bar {
    Bar {
        name,
        case,
        figure,
        against,
        null: false,
        wanted: None,
        without_ifma: None,
    }
}

const fn bar(
    name: &'static str,
    case: Case,
    figure: &'static str,
    against: Against,
    wanted: [f64; 2],
) -> Bar {
    Bar {
        wanted: Some(wanted),
        without_ifma: Some(wanted),
        ..row(name, case, figure, against)
    }
}

impl Bar {
    const fn without(self, without_ifma: [f64; 2]) -> Bar {
        Bar {
            without_ifma: Some(without_ifma),
            ..self
        }
    }

    /// What a value is worth on a processor with or without AVX-512 IFMA.
    pub(crate) fn verdict(&self, value: f64, larger_is_better: bool, ifma: bool) -> Verdict {
        let reached = |wanted: f64| {
            if larger_is_better {
                value >= wanted
            } else {
                value <= wanted
            }
        };
        match self.wanted_on(ifma).map(|wanted| wanted.map(reached)) {
            Some([_, true]) => Verdict::AimReached,
            Some([true, false]) => Verdict::Passed,
            Some([false, false]) => Verdict::Short,
            None => Verdict::NoBar,
        }
    }

    /// The bar and the aim on such a processor.
    pub(crate) fn wanted_on(&self, ifma: bool) -> Option<[f64; 2]> {
        if ifma { self.wanted } else { self.without_ifma }
    }
}

#[cfg(test)]
mod tests {
    use super::{BARS, Verdict};

    #[test]
    fn a_figure_passes_at_its_bar_and_is_short_just_behind_it() {
        let bulk = &BARS[0];
        assert_eq!(bulk.verdict(2.2, true, true), Verdict::Passed);
        assert_eq!(bulk.verdict(2.19, true, true), Verdict::Short);
        assert_eq!(bulk.verdict(2.19, true, false), Verdict::Passed);
        assert_eq!(bulk.verdict(3.0, true, true), Verdict::AimReached);
        let cost = &BARS[2];
        assert_eq!(cost.verdict(0.42, false, true), Verdict::Passed);
        assert_eq!(cost.verdict(0.43, false, true), Verdict::Short);
    }

    #[test]
    fn no_two_rows_have_one_name() {
        let mut names = BARS.map(|bar| (bar.name, bar.against as u8));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
