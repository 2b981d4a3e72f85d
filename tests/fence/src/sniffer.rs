//! What a wiretap on the underlay sees of the mesh.

use std::collections::BTreeMap;

use ipnet::IpNet;
use warren_tests_lab::{Frame, Wiretap};

use crate::namespace::{MAC_A, MAC_B, Topology};
use crate::relay::RELAY_PORT;

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

/// What was seen of an overlay network.
#[derive(Debug, Default)]
pub struct Overlaid {
    /// Frames of the nodes, of any content.
    pub frames: u64,
    /// Frames of the nodes in which a packet between the overlay's addresses, `10.99.0.0/24` or
    /// `fd99::/64`, can be read and that no [`Relay`](crate::Relay) sent, by what they are.
    pub leaks: BTreeMap<String, u64>,
    /// Those that a relay sent.
    pub carried: u64,
}

impl Topology {
    /// Begins to record on the underlay what an overlay of the nodes sends.
    pub fn overlay_sniffer(&self) -> Wiretap<Overlaid> {
        Wiretap::start(&self.underlay.path(), Overlaid::look_at)
    }
}

impl Overlaid {
    fn look_at(&mut self, frame: Frame<'_>) {
        let from = match frame.source() {
            MAC_A => "a",
            MAC_B => "b",
            _ => return,
        };
        self.frames += 1;
        // From one to the other, as two addresses follow each other in a header.
        let v4 = frame.bytes().windows(8).any(|bytes| {
            bytes[..3] == [10, 99, 0] && bytes[4..7] == [10, 99, 0] && bytes[3] != bytes[7]
        });
        let prefix = [0xfd, 0x99, 0, 0, 0, 0, 0, 0];
        let v6 = (frame.bytes().windows(32))
            .any(|bytes| bytes[..8] == prefix && bytes[16..24] == prefix);
        if !v4 && !v6 {
            return;
        }
        if frame.source_port() == Some(RELAY_PORT) {
            self.carried += 1;
        } else {
            let (protocol, addresses) = (frame.protocol(), frame.addresses());
            let what = format!("{from}: protocol {protocol:?} {addresses:?}");
            *self.leaks.entry(what).or_default() += 1;
        }
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
