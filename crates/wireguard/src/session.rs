//! What a handshake yields: two keys and two indices, which never change again.
//!
//! What does change with every packet, counters and the replay window, is the peer's, so that any
//! number of threads may seal and open with a session that they hold.

use std::fmt;

use warren_aead::Key;

use crate::crypto::Secret;

/// The keys of one handshake. Wiped when the last holder lets go.
pub struct Session {
    local_index: u32,
    remote_index: u32,
    initiator: bool,
    sealing: Key,
    opening: Key,
}

impl Session {
    /// `first` and `second` are the two keys in the order in which the handshake yields them: the
    /// first seals what the initiator sends.
    pub(crate) fn new(
        local_index: u32,
        remote_index: u32,
        initiator: bool,
        first: &Secret,
        second: &Secret,
    ) -> Self {
        let (sealing, opening) = if initiator {
            (first, second)
        } else {
            (second, first)
        };
        Self::from_keys(local_index, remote_index, initiator, sealing, opening)
    }

    pub(crate) fn from_keys(
        local_index: u32,
        remote_index: u32,
        initiator: bool,
        sealing: &Secret,
        opening: &Secret,
    ) -> Self {
        Self {
            local_index,
            remote_index,
            initiator,
            sealing: Key::new(*sealing.bytes()),
            opening: Key::new(*opening.bytes()),
        }
    }

    /// The index by which the other side addresses this session.
    #[inline]
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The index by which this side addresses it.
    #[inline]
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// Whether this side sent the initiation.
    pub fn is_initiator(&self) -> bool {
        self.initiator
    }

    /// Seals what is sent.
    #[inline]
    pub fn sealing(&self) -> &Key {
        &self.sealing
    }

    /// Opens what is received.
    #[inline]
    pub fn opening(&self) -> &Key {
        &self.opening
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("initiator", &self.initiator)
            .finish_non_exhaustive()
    }
}
