//! X25519 in Rust alone, where the library does not build, and as what the library is compared with.

use super::{LowOrder, Secret};

/// A private key with its public key.
pub(crate) struct DhKey {
    private: x25519_dalek::StaticSecret,
    public: [u8; 32],
}

impl DhKey {
    /// One curve operation with a fixed base.
    pub(crate) fn new(private: &[u8; 32]) -> Self {
        let private = x25519_dalek::StaticSecret::from(*private);
        let public = x25519_dalek::PublicKey::from(&private).to_bytes();
        Self { private, public }
    }

    pub(crate) const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// DH(private, public): one curve operation.
    pub(crate) fn agree(&self, public: &[u8; 32]) -> Result<Secret, LowOrder> {
        let public = x25519_dalek::PublicKey::from(*public);
        let shared = self.private.diffie_hellman(&public);
        if !shared.was_contributory() {
            return Err(LowOrder);
        }
        Ok(Secret::copy_of(shared.as_bytes()))
    }
}
