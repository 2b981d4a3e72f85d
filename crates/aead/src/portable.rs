//! The cipher in pure Rust, for targets without AWS-LC; tests compare the two.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};

use crate::{Forged, KEY_LEN, NONCE_LEN, TAG_LEN};

/// A key as the `chacha20poly1305` crate keeps it; boxed so that a move leaves no copy, and wiped
/// by that crate on drop.
pub(crate) struct Cipher(Box<ChaCha20Poly1305>);

impl Cipher {
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(Box::new(ChaCha20Poly1305::new(key.into())))
    }

    pub(crate) fn seal(&self, nonce: [u8; NONCE_LEN], text: &mut [u8]) -> [u8; TAG_LEN] {
        self.0
            .encrypt_inout_detached(&nonce.into(), &[], text.into())
            .expect("a record is shorter than the cipher's limit of 256 GiB")
            .into()
    }

    pub(crate) fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Forged> {
        self.0
            .decrypt_inout_detached(&nonce.into(), &[], text.into(), &Tag::from(*tag))
            .map_err(|_| Forged)
    }
}
