//! From where the peers were last heard: whose handshake messages still find a place in a queue
//! that strangers have filled.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::PoisonError;

use crate::peer::PeerId;
use crate::sync::RwLock;

/// The endpoints of peers that authenticated from there, one for each peer.
///
/// Written when a peer moves, read for handshake messages alone.
#[derive(Debug, Default)]
pub(crate) struct KnownEndpoints(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    of: HashMap<PeerId, SocketAddr>,
    /// How many peers are at an address.
    at: HashMap<SocketAddr, u32>,
}

impl KnownEndpoints {
    /// `peer` authenticated from `addr`.
    pub(crate) fn learn(&self, peer: PeerId, addr: SocketAddr) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = inner.of.insert(peer, addr) {
            inner.leave(old);
        }
        *inner.at.entry(addr).or_default() += 1;
    }

    /// `peer` is gone.
    pub(crate) fn forget(&self, peer: PeerId) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = inner.of.remove(&peer) {
            inner.leave(old);
        }
    }

    pub(crate) fn contains(&self, addr: &SocketAddr) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .at
            .contains_key(addr)
    }
}

impl Inner {
    fn leave(&mut self, addr: SocketAddr) {
        if let Some(peers) = self.at.get_mut(&addr) {
            *peers -= 1;
            if *peers == 0 {
                self.at.remove(&addr);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_known_while_any_peer_is_there() {
        let known = KnownEndpoints::default();
        let [here, there]: [SocketAddr; 2] =
            ["192.0.2.1:1", "192.0.2.2:2"].map(|addr| addr.parse().expect("an address"));
        known.learn(PeerId(0), here);
        known.learn(PeerId(1), here);
        known.learn(PeerId(0), there);
        assert!(known.contains(&here) && known.contains(&there));
        known.forget(PeerId(1));
        assert!(!known.contains(&here));
        known.learn(PeerId(0), there);
        known.forget(PeerId(0));
        assert!(!known.contains(&there));
    }
}
