//! Who a node is: a static key pair and what is computed from it once.
//!
//! Any number of identities may be live at once; nothing here or in [`crate::Peer`] assumes one.

use std::{array, fmt};

use warren_config::{PrivateKey, PublicKey};

use crate::crypto::{self, DhKey, Secret};
use crate::messages::{Handshake, Macs};

/// How many messages [`Identity::verify_all`] takes.
pub const AT_ONCE: usize = crypto::MACS;

const LABEL_MAC1: &[u8; 8] = b"mac1----";
const LABEL_COOKIE: &[u8; 8] = b"cookie--";

/// A static key pair of this node.
pub struct Identity {
    private: PrivateKey,
    public: PublicKey,
    dh: DhKey,
    /// Key of the first mac of everything that is sent to this identity.
    mac1_key: [u8; 32],
    /// Key under which cookies for this identity's peers are sealed.
    cookie_key: [u8; 32],
}

/// The shared secret of two static keys: one curve operation that every handshake of an identity
/// with a peer needs, and needs to compute only once.
#[derive(Clone)]
pub struct StaticShared(Secret);

/// The peer's public key is of low order: the secret "shared" with it is known to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the public key is of low order")]
pub struct LowOrderKey;

/// A handshake message whose first mac is right: its sender knows this identity's public key.
///
/// That is no more than an invitation to look closer, but without one nothing is ever answered:
/// only [`Identity::verify`] makes this type, and only for it does [`crate::Gate`] make replies.
#[derive(Debug, Clone, Copy)]
pub struct Addressed<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) message: Handshake<'a>,
}

impl Identity {
    /// Computes the public key: one curve operation.
    pub fn new(private: PrivateKey) -> Self {
        let dh = DhKey::new(private.as_bytes());
        let public = PublicKey::from_bytes(*dh.public());
        Self {
            mac1_key: mac1_key(&public),
            cookie_key: cookie_key(&public),
            private,
            public,
            dh,
        }
    }

    /// The public key: what peers know this node by.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The private key.
    pub fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// The secret shared with a peer: one curve operation.
    pub fn shared_with(&self, peer: &PublicKey) -> Result<StaticShared, LowOrderKey> {
        self.dh
            .agree(peer.as_bytes())
            .map(StaticShared)
            .map_err(|crypto::LowOrder| LowOrderKey)
    }

    /// Checks the first mac of an initiation or response, in constant time. Cookie replies carry
    /// none, and pass: they are never answered, and open only for who asked.
    pub fn verify<'a>(&'a self, message: Handshake<'a>) -> Option<Addressed<'a>> {
        let addressed = match message {
            Handshake::CookieReply(_) => true,
            Handshake::Initiation(_) | Handshake::Response(_) => {
                let macs = Macs::of(message.bytes())?;
                crypto::same_mac(
                    &crypto::mac(&self.mac1_key, &[macs.covered_by_mac1]),
                    macs.mac1,
                )
            }
        };
        addressed.then_some(Addressed {
            identity: self,
            message,
        })
    }

    /// [`Self::verify`] of several messages together, where the processor is faster so. `None` for what is not there,
    /// and for what fails.
    pub fn verify_all<'a>(
        &'a self,
        messages: &[Option<Handshake<'a>>; AT_ONCE],
    ) -> [Option<Addressed<'a>>; AT_ONCE] {
        let macs = messages.map(|message| match message {
            None | Some(Handshake::CookieReply(_)) => None,
            Some(message) => Macs::of(message.bytes()),
        });
        let covered = macs.each_ref().map(|macs| match macs {
            Some(macs) => macs.covered_by_mac1,
            None => &[],
        });
        let computed = crypto::macs(&self.mac1_key, &covered);
        array::from_fn(|at| {
            let message = messages[at]?;
            let is_addressed = match (message, &macs[at]) {
                (Handshake::CookieReply(_), _) => true,
                (_, Some(macs)) => crypto::same_mac(&computed[at], macs.mac1),
                (_, None) => false,
            };
            is_addressed.then_some(Addressed {
                identity: self,
                message,
            })
        })
    }

    pub(crate) fn dh(&self) -> &DhKey {
        &self.dh
    }

    pub(crate) fn cookie_key(&self) -> &[u8; 32] {
        &self.cookie_key
    }
}

impl StaticShared {
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        self.0.bytes()
    }
}

impl<'a> Addressed<'a> {
    /// The message.
    pub fn message(&self) -> Handshake<'a> {
        self.message
    }

    /// The identity that it is for.
    pub fn identity(&self) -> &'a Identity {
        self.identity
    }
}

/// Key of the first mac of what is sent to `to`.
pub(crate) fn mac1_key(to: &PublicKey) -> [u8; 32] {
    crypto::hash(&[LABEL_MAC1, to.as_bytes()])
}

/// Key under which `from` seals cookies.
pub(crate) fn cookie_key(from: &PublicKey) -> [u8; 32] {
    crypto::hash(&[LABEL_COOKIE, from.as_bytes()])
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for StaticShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticShared(secret)")
    }
}
