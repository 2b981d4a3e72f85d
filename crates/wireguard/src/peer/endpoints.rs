//! Where a peer is: configured candidates, and the place from which it was last heard.

use std::net::{IpAddr, SocketAddr};

/// An address of a peer, and the one of ours from which it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where the peer is.
    pub addr: SocketAddr,
    /// The local address to send from, and the interface that it was seen on. `None` lets the
    /// system choose.
    pub source: Option<(IpAddr, u32)>,
}

/// The rotation of endpoints: the learnt one, if any, then the candidates in order, and around.
///
/// Being heard from somewhere makes that the endpoint. Silence moves on.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    candidates: Box<[SocketAddr]>,
    /// Where the peer was last heard from.
    learnt: Option<Endpoint>,
    at: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Learnt,
    Candidate(usize),
}

impl Default for Place {
    fn default() -> Self {
        Self::Candidate(0)
    }
}

impl Endpoints {
    #[inline]
    pub(crate) fn current(&self) -> Option<Endpoint> {
        match self.at {
            Place::Learnt => self.learnt,
            Place::Candidate(at) => self.candidates.get(at).map(|&addr| Endpoint::from(addr)),
        }
    }

    pub(crate) fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    pub(crate) fn learnt(&self) -> Option<Endpoint> {
        self.learnt
    }

    /// Replaces the candidates. The first is tried next, unless the peer was last heard from one
    /// of them: then that stays, with its source address. Where it was heard from otherwise is
    /// still tried when no candidate answers.
    pub(crate) fn set(&mut self, candidates: Vec<SocketAddr>) {
        self.candidates = candidates.into();
        // With none there is nothing to fall back to: what was learnt is all there is.
        let stays = self.candidates.is_empty()
            || self.at == Place::Learnt
                && self
                    .learnt
                    .is_some_and(|learnt| self.candidates.contains(&learnt.addr));
        if stays {
            self.at = Place::Learnt;
        } else {
            self.at = Place::Candidate(0);
        }
    }

    /// The peer was heard from `from`. Answers whether that is another place than before.
    #[inline]
    pub(crate) fn heard_from(&mut self, from: Endpoint) -> bool {
        let moved = self
            .current()
            .is_none_or(|current| current.addr != from.addr);
        self.learnt = Some(from);
        self.at = Place::Learnt;
        moved
    }

    /// An initiation to the endpoint was not answered.
    pub(crate) fn unanswered(&mut self) {
        self.forget_source();
        let learnt = self.learnt.map(|learnt| learnt.addr);
        let from = match self.at {
            Place::Learnt => 0,
            Place::Candidate(at) => at + 1,
        };
        let next = (from..self.candidates.len()).find(|&at| learnt != Some(self.candidates[at]));
        self.at = match (next, learnt) {
            (Some(at), _) => Place::Candidate(at),
            (None, Some(_)) => Place::Learnt,
            (None, None) => Place::Candidate(0),
        };
    }

    /// Lets the system choose the local address again.
    pub(crate) fn forget_source(&mut self) {
        if let Some(learnt) = &mut self.learnt {
            learnt.source = None;
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self { addr, source: None }
    }
}
