//! X25519 by a library in C and assembly: twice as fast as the portable one.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};

use super::{LowOrder, Secret};

/// A private key with its public key. The library wipes its memory when it frees it.
pub(crate) struct DhKey {
    private: PrivateKey,
    public: [u8; 32],
}

impl DhKey {
    /// One curve operation with a fixed base.
    pub(crate) fn new(private: &[u8; 32]) -> Self {
        let private =
            PrivateKey::from_private_key(&X25519, private).expect("any 32 bytes are a key");
        let public = private
            .compute_public_key()
            .expect("a key has a public one");
        let public = public.as_ref().try_into().expect("of 32 bytes");
        Self { private, public }
    }

    pub(crate) const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// DH(private, public): one curve operation.
    pub(crate) fn agree(&self, public: &[u8; 32]) -> Result<Secret, LowOrder> {
        let public = UnparsedPublicKey::new(&X25519, public);
        agreement::agree(&self.private, public, LowOrder, |shared| {
            let shared = shared.try_into().map_err(|_| LowOrder)?;
            Ok(Secret::copy_of(shared))
        })
    }
}
