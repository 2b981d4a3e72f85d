//! What the workers look things up in: an immutable snapshot, swapped whole.

use std::sync::Arc;

use warren_wireguard::{AllowedIps, Identity};

use crate::peer::{PeerHandle, PeerId};

/// One state of the device. Workers hold it for a batch; a change makes another and swaps it in,
/// so no packet ever sees half of a change (BEHAVIOURS 4).
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    /// Which peer a destination belongs to, and which a source must come from.
    pub(crate) allowed_ips: AllowedIps<PeerId>,
    /// The peers, at the place that their [`PeerId`] names.
    pub(crate) peers: Vec<Option<Arc<PeerHandle>>>,
    /// Who this device is, the newest first. None or one today; handshakes are answered for any.
    pub(crate) identities: Vec<Arc<Identity>>,
    /// What packets out of the tunnel may be addressed to; `None` for anything.
    pub(crate) local: Option<Arc<AllowedIps<()>>>,
}

impl Tables {
    pub(crate) fn peer(&self, id: PeerId) -> Option<&Arc<PeerHandle>> {
        self.peers.get(id.0 as usize)?.as_ref()
    }
}
