//! What a wiretap on the underlay sees of the mesh.

use std::collections::BTreeMap;

use ipnet::IpNet;
use warren_tests_lab::{Frame, Wiretap};

use crate::namespace::{MAC_A, MAC_B, Topology};

/// Records, until it is stopped, what the nodes send to the underlay.
pub type Sniffer = Wiretap<Sniffed>;

/// What was seen.
#[derive(Debug, Default)]
pub struct Sniffed {
    /// Frames of the nodes, of any content: shows that somebody looked.
    pub frames: u64,
    /// Frames of the nodes from or to a mesh prefix in the clear, or that ask for one, by what they are.
    pub leaks: BTreeMap<String, u64>,
}

impl Topology {
    /// Begins to record on the underlay.
    pub fn sniffer(&self) -> Sniffer {
        Wiretap::start(&self.underlay.path(), Sniffed::look_at)
    }
}

impl Sniffed {
    fn look_at(&mut self, frame: Frame<'_>) {
        let from = match frame.source() {
            MAC_A => "a",
            MAC_B => "b",
            _ => return,
        };
        self.frames += 1;
        let addresses = frame.addresses();
        let mesh =
            ["10.1.0.0/16", "fd00:1::/32"].map(|net| net.parse::<IpNet>().expect("a prefix"));
        if (addresses.iter()).any(|address| mesh.iter().any(|prefix| prefix.contains(address))) {
            let (kind, protocol) = (frame.kind, frame.protocol());
            let what = format!("{from}: type {kind:#06x} protocol {protocol:?} {addresses:?}");
            *self.leaks.entry(what).or_default() += 1;
        }
    }
}
