//! What somebody sees who listens on the underlay.

use std::collections::BTreeMap;

use ipnet::IpNet;
use warren_tests_lab::Frame;

use crate::host::Host;
use crate::traffic::TEXT;

/// The port of the tunnels, by default.
const TUNNEL: u16 = 51820;

/// Records, until it is stopped, what passes on the underlay.
pub type Wiretap = warren_tests_lab::Wiretap<Seen>;

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Frames of the tunnels.
    pub ciphertext: u64,
    /// Frames from or to a mesh prefix, that ask for one, or with the tests' text in the clear, by
    /// what they are.
    pub leaks: BTreeMap<String, u64>,
}

/// Begins on a host through which the packets of a mesh with these prefixes pass.
pub fn listen(underlay: &Host, mesh: &[&str]) -> Wiretap {
    let mesh: Vec<IpNet> = (mesh.iter())
        .map(|net| net.parse().expect("a prefix"))
        .collect();
    Wiretap::start(&underlay.network(), move |seen: &mut Seen, frame| {
        seen.look_at(&frame, &mesh);
    })
}

impl Seen {
    /// That there was something to see, and nothing of the mesh in the clear.
    #[track_caller]
    pub fn assert_closed(&self) {
        assert!(self.ciphertext > 10, "no tunnel was seen: {self:?}");
        self.assert_no_leak();
    }

    /// That there was nothing of the mesh in the clear.
    #[track_caller]
    pub fn assert_no_leak(&self) {
        assert!(self.leaks.is_empty(), "leaks: {:#?}", self.leaks);
    }

    fn look_at(&mut self, frame: &Frame<'_>, mesh: &[IpNet]) {
        let addresses = frame.addresses();
        let of_mesh = (addresses.iter()).any(|ip| mesh.iter().any(|net| net.contains(ip)));
        let is_readable = (frame.bytes().windows(TEXT.len())).any(|bytes| bytes == TEXT);
        if of_mesh || is_readable {
            let kind = frame.kind;
            let leak = format!("type {kind:#06x} {addresses:?} readable: {is_readable}");
            *self.leaks.entry(leak).or_default() += 1;
        }
        if frame.source_port() == Some(TUNNEL) {
            self.ciphertext += 1;
        }
    }
}
