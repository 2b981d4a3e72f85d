//! Noise_IKpsk2 as WireGuard runs it (the paper's sections 5.4.2 to 5.4.5).
//!
//! Each stage is a type of its own, and the step to the next consumes it, so that no key is used
//! before what it depends on has been checked:
//!
//! - initiator: [`InFlight`] awaits the response, and becomes a [`Session`];
//! - responder: [`open_initiation`] reveals who claims to send, in a [`PendingInitiation`];
//!   [`PendingInitiation::authenticate`] proves it; [`AuthenticInitiation`] then becomes a
//!   [`Session`] by being answered.
//!
//! All curve work of the protocol is behind these calls. None of them needs a peer's lock.

use std::fmt;
use std::sync::Arc;

use warren_config::{PresharedKey, PublicKey};
use zeroize::{Zeroize, Zeroizing};

use crate::cookie::{self, Cookie};
use crate::crypto::{self, DhKey, Secret};
use crate::identity::{Identity, StaticShared};
use crate::messages::{self, INITIATION_LEN, Initiation, RESPONSE_LEN, Response};
use crate::session::Session;
use crate::time::Tai64n;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// Why a handshake message was refused. All of these are the sender's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not sealed by who it claims to be from, or not for us.
    #[error("the message is not authentic")]
    Forged,
    /// A public key in it is of low order, so that a secret would be known to all.
    #[error("a public key of the handshake is of low order")]
    LowOrder,
}

impl From<crypto::LowOrder> for HandshakeError {
    fn from(_: crypto::LowOrder) -> Self {
        Self::LowOrder
    }
}

impl From<crypto::Forged> for HandshakeError {
    fn from(_: crypto::Forged) -> Self {
        Self::Forged
    }
}

/// The chaining key and the transcript's hash.
struct Symmetric {
    chaining_key: Secret,
    hash: Zeroizing<[u8; 32]>,
}

impl Symmetric {
    fn new(responder: &PublicKey) -> Self {
        let chaining_key = crypto::hash(&[CONSTRUCTION]);
        let hash = crypto::hash(&[&chaining_key, IDENTIFIER]);
        let mut symmetric = Self {
            chaining_key: Secret::copy_of(&chaining_key),
            hash: Zeroizing::new(hash),
        };
        symmetric.mix_hash(responder.as_bytes());
        symmetric
    }

    fn duplicate(&self) -> Self {
        Self {
            chaining_key: self.chaining_key.clone(),
            hash: self.hash.clone(),
        }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        *self.hash = crypto::hash(&[&self.hash[..], data]);
    }

    /// An ephemeral key, ours or theirs: into the hash and, for the sake of psk2, the key.
    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.mix_hash(public);
        self.mix_key(public);
    }

    /// Mixes a secret of which no key is needed yet.
    fn mix_key(&mut self, input: &[u8; 32]) {
        self.chaining_key = crypto::kdf1(self.chaining_key.bytes(), input);
    }

    /// Mixes a secret, and answers the key that seals what comes next.
    fn mix_key_for_sealing(&mut self, input: &[u8; 32]) -> Secret {
        let (chaining_key, key) = crypto::kdf2(self.chaining_key.bytes(), input);
        self.chaining_key = chaining_key;
        key
    }

    /// Mixes the preshared key. None is a key of zeros.
    fn mix_preshared(&mut self, preshared: Option<&PresharedKey>) -> Secret {
        let bytes = preshared.map_or(&[0; 32], PresharedKey::as_bytes);
        let (chaining_key, hashed, key) = crypto::kdf3(self.chaining_key.bytes(), bytes);
        self.chaining_key = chaining_key;
        self.mix_hash(hashed.bytes());
        key
    }

    fn seal<const IN: usize, const OUT: usize>(
        &mut self,
        key: &Secret,
        text: &[u8; IN],
    ) -> [u8; OUT] {
        let sealed = crypto::seal(key, &self.hash[..], text);
        self.mix_hash(&sealed);
        sealed
    }

    fn open<const IN: usize, const OUT: usize>(
        &mut self,
        key: &Secret,
        sealed: &[u8; IN],
    ) -> Result<[u8; OUT], crypto::Forged> {
        let text = crypto::open(key, &self.hash[..], sealed)?;
        self.mix_hash(sealed);
        Ok(text)
    }

    /// The two keys of the session.
    fn split(self) -> (Secret, Secret) {
        crypto::kdf2(self.chaining_key.bytes(), &[])
    }
}

/// An initiation that was sent and awaits its response.
pub struct InFlight {
    identity: Arc<Identity>,
    index: u32,
    ephemeral: DhKey,
    symmetric: Symmetric,
    mac1: [u8; 16],
}

/// What an initiation is made of.
pub(crate) struct InitiationParts<'a> {
    pub(crate) identity: &'a Arc<Identity>,
    pub(crate) peer: &'a PublicKey,
    pub(crate) shared: &'a StaticShared,
    pub(crate) index: u32,
    /// Fresh random bytes.
    pub(crate) ephemeral: Secret,
    pub(crate) timestamp: &'a Tai64n,
    pub(crate) cookie: Option<&'a Cookie>,
}

/// Makes an initiation: two curve operations.
pub(crate) fn create_initiation(
    parts: &InitiationParts<'_>,
) -> Result<(InFlight, [u8; INITIATION_LEN]), HandshakeError> {
    let ephemeral = DhKey::new(parts.ephemeral.bytes());
    let ephemeral_public = *ephemeral.public();
    let mut symmetric = Symmetric::new(parts.peer);
    symmetric.mix_ephemeral(&ephemeral_public);
    let es = ephemeral.agree(parts.peer.as_bytes())?;
    let key = symmetric.mix_key_for_sealing(es.bytes());
    let sealed_static = symmetric.seal(&key, parts.identity.public().as_bytes());
    let key = symmetric.mix_key_for_sealing(parts.shared.bytes());
    let sealed_timestamp = symmetric.seal(&key, parts.timestamp.as_bytes());

    let mut message = messages::write_initiation(
        parts.index,
        &ephemeral_public,
        &sealed_static,
        &sealed_timestamp,
    );
    let mac1 = cookie::add_macs(&mut message, parts.peer, parts.cookie);
    let in_flight = InFlight {
        identity: Arc::clone(parts.identity),
        index: parts.index,
        ephemeral,
        symmetric,
        mac1,
    };
    Ok((in_flight, message))
}

impl InFlight {
    /// The index under which the session will be known here.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Who sent the initiation.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    pub(crate) fn mac1(&self) -> &[u8; 16] {
        &self.mac1
    }

    /// Takes the responder's answer: two curve operations.
    ///
    /// The initiation stays as it is, so that a forged response does not spoil the real one.
    pub(crate) fn consume_response(
        &self,
        preshared: Option<&PresharedKey>,
        response: Response<'_>,
    ) -> Result<Session, HandshakeError> {
        let mut symmetric = self.symmetric.duplicate();
        let ephemeral = response.ephemeral();
        symmetric.mix_ephemeral(ephemeral);
        symmetric.mix_key(self.ephemeral.agree(ephemeral)?.bytes());
        symmetric.mix_key(self.identity.dh().agree(ephemeral)?.bytes());
        let key = symmetric.mix_preshared(preshared);
        let [] = symmetric.open(&key, response.sealed_nothing())?;
        let (first, second) = symmetric.split();
        Ok(Session::new(
            self.index,
            response.sender(),
            true,
            &first,
            &second,
        ))
    }
}

/// An initiation that names its sender, without proof yet.
pub struct PendingInitiation {
    symmetric: Symmetric,
    sender: u32,
    static_key: PublicKey,
    ephemeral: [u8; 32],
    sealed_timestamp: [u8; 28],
}

/// Reads who claims to have sent an initiation: one curve operation.
pub fn open_initiation(
    identity: &Identity,
    message: Initiation<'_>,
) -> Result<PendingInitiation, HandshakeError> {
    let ephemeral = message.ephemeral();
    let mut symmetric = Symmetric::new(identity.public());
    symmetric.mix_ephemeral(ephemeral);
    let es = identity.dh().agree(ephemeral)?;
    let key = symmetric.mix_key_for_sealing(es.bytes());
    let static_key = symmetric.open(&key, message.sealed_static())?;
    Ok(PendingInitiation {
        symmetric,
        sender: message.sender(),
        static_key: PublicKey::from_bytes(static_key),
        ephemeral: *ephemeral,
        sealed_timestamp: *message.sealed_timestamp(),
    })
}

impl PendingInitiation {
    /// The public key of who claims to have sent it.
    pub fn static_key(&self) -> &PublicKey {
        &self.static_key
    }

    /// Proves that the owner of the static key sent it. `shared` is the secret that the identity
    /// which opened the initiation shares with that key.
    pub fn authenticate(
        mut self,
        shared: &StaticShared,
    ) -> Result<AuthenticInitiation, HandshakeError> {
        let key = self.symmetric.mix_key_for_sealing(shared.bytes());
        let timestamp = self.symmetric.open(&key, &self.sealed_timestamp)?;
        Ok(AuthenticInitiation {
            symmetric: self.symmetric,
            sender: self.sender,
            static_key: self.static_key,
            ephemeral: self.ephemeral,
            timestamp: Tai64n::from_bytes(timestamp),
        })
    }
}

/// An initiation that the owner of its static key sent. Whether just now is for
/// [`crate::Peer::initiation_received`] to say.
pub struct AuthenticInitiation {
    symmetric: Symmetric,
    sender: u32,
    static_key: PublicKey,
    ephemeral: [u8; 32],
    timestamp: Tai64n,
}

impl AuthenticInitiation {
    /// Who sent it.
    pub fn static_key(&self) -> &PublicKey {
        &self.static_key
    }

    /// The sender's wall time.
    pub fn timestamp(&self) -> &Tai64n {
        &self.timestamp
    }

    /// Answers: three curve operations.
    pub(crate) fn respond(
        self,
        index: u32,
        mut ephemeral: [u8; 32],
        preshared: Option<&PresharedKey>,
        cookie: Option<&Cookie>,
    ) -> Result<(Session, [u8; RESPONSE_LEN]), HandshakeError> {
        let Self {
            mut symmetric,
            sender,
            static_key,
            ephemeral: theirs,
            ..
        } = self;
        let ours = DhKey::new(&ephemeral);
        ephemeral.zeroize();
        let ours_public = *ours.public();
        symmetric.mix_ephemeral(&ours_public);
        symmetric.mix_key(ours.agree(&theirs)?.bytes());
        symmetric.mix_key(ours.agree(static_key.as_bytes())?.bytes());
        let key = symmetric.mix_preshared(preshared);
        let sealed_nothing = symmetric.seal(&key, &[]);
        let (first, second) = symmetric.split();

        let mut message = messages::write_response(index, sender, &ours_public, &sealed_nothing);
        cookie::add_macs(&mut message, &static_key, cookie);
        Ok((Session::new(index, sender, false, &first, &second), message))
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PendingInitiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingInitiation")
            .field("static_key", &self.static_key)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthenticInitiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticInitiation")
            .field("static_key", &self.static_key)
            .field("timestamp", &self.timestamp)
            .finish_non_exhaustive()
    }
}
