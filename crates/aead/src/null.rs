//! No cipher at all: what `--cfg warren_null_cipher` puts in the place of all others, for measuring
//! what a tunnel costs besides its cipher (`warren-compare --null`). Such a build encrypts nothing
//! and proves nothing; it understands only builds of its own kind.

use crate::{Forged, KEY_LEN, NONCE_LEN, TAG_LEN};

/// Stands where the tag would, so that what a real cipher sealed is not taken for text.
const MARK: [u8; TAG_LEN] = *b"NOT ENCRYPTED!!!";

/// A key that is not used.
pub(crate) struct Cipher;

impl Cipher {
    pub(crate) fn new(_: &[u8; KEY_LEN]) -> Self {
        Self
    }

    #[inline]
    pub(crate) fn seal(&self, _: [u8; NONCE_LEN], _: &mut [u8]) -> [u8; TAG_LEN] {
        MARK
    }

    #[inline]
    pub(crate) fn open(
        &self,
        _: [u8; NONCE_LEN],
        _: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Forged> {
        if *tag == MARK { Ok(()) } else { Err(Forged) }
    }
}
