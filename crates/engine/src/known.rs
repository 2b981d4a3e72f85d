//! Where the peers are: whose handshake messages still find a place in a queue that strangers have
//! filled, and who is called back when somebody floods in their name.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::PoisonError;

use crate::peer::PeerId;
use crate::sync::RwLock;

/// The endpoints of peers, one for each: from where it last authenticated, or where it was
/// configured to be.
///
/// Written when a peer moves, read for handshake messages alone.
#[derive(Debug, Default)]
pub(crate) struct KnownEndpoints(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    of: HashMap<PeerId, SocketAddr>,
    at: BTreeSet<(SocketAddr, PeerId)>,
}

/// Peers that are called back at one endpoint at most. More than one is there only when a node
/// changes its key.
const MOST_AT_ONE: usize = 4;

impl KnownEndpoints {
    /// `peer` is at `addr`.
    pub(crate) fn learn(&self, peer: PeerId, addr: SocketAddr) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = inner.of.insert(peer, addr) {
            inner.at.remove(&(old, peer));
        }
        inner.at.insert((addr, peer));
    }

    /// `peer` is gone.
    pub(crate) fn forget(&self, peer: PeerId) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = inner.of.remove(&peer) {
            inner.at.remove(&(old, peer));
        }
    }

    /// Whether a peer is at `addr`.
    pub(crate) fn contains(&self, addr: &SocketAddr) -> bool {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        inner.peers_at(addr).next().is_some()
    }

    /// The peers at `addr`.
    pub(crate) fn peers_at(&self, addr: &SocketAddr) -> Vec<PeerId> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        inner.peers_at(addr).take(MOST_AT_ONE).collect()
    }
}

impl Inner {
    fn peers_at(&self, addr: &SocketAddr) -> impl Iterator<Item = PeerId> + '_ {
        let all = (*addr, PeerId(0))..=(*addr, PeerId(u32::MAX));
        self.at.range(all).map(|&(_, peer)| peer)
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
        assert_eq!(known.peers_at(&here), [PeerId(0), PeerId(1)]);
        known.learn(PeerId(0), there);
        assert!(known.contains(&here) && known.contains(&there));
        known.forget(PeerId(1));
        assert!(!known.contains(&here));
        known.learn(PeerId(0), there);
        assert_eq!(known.peers_at(&there), [PeerId(0)]);
        known.forget(PeerId(0));
        assert!(!known.contains(&there));
    }
}
