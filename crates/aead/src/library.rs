//! The cipher by AWS-LC, packet by packet: assembly chosen by what the processor has.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::{Forged, KEY_LEN, NONCE_LEN, TAG_LEN};

/// A key expanded for AWS-LC.
///
/// It holds the key in memory from AWS-LC's allocator, which wipes all that is returned to it
/// (`OPENSSL_free`). Working copies on the stack are wiped at the end of each call.
pub(crate) struct Cipher(LessSafeKey);

impl Cipher {
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has the cipher's size");
        Self(LessSafeKey::new(key))
    }

    #[inline]
    pub(crate) fn seal(&self, nonce: [u8; NONCE_LEN], text: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::empty(), text)
            .expect("a record is shorter than the cipher's limit of 256 GiB");
        tag.as_ref()
            .try_into()
            .expect("the tag has the cipher's size")
    }

    #[inline]
    pub(crate) fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Forged> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0
            .open_in_place_separate_tag(nonce, Aad::empty(), tag, text)
            .map(drop)
            .map_err(|_| Forged)
    }
}
