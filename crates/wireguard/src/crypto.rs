//! The primitives of the handshake, by the paper's names (section 5.4), and the one place that
//! knows the crates behind them. Transport data is sealed by `warren-aead` instead.

#[cfg(not(target_family = "wasm"))]
mod library;
#[cfg(any(target_family = "wasm", test))]
mod portable;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use blake2s_simd::many::{HashManyJob, MAX_DEGREE, hash_many};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, Tag, XChaCha20Poly1305};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

#[cfg(not(target_family = "wasm"))]
pub(crate) use library::DhKey;
#[cfg(target_family = "wasm")]
pub(crate) use portable::DhKey;

const TAG: usize = crate::messages::TAG;

/// 32 secret bytes on the heap, wiped on drop: moving them leaves nothing behind.
#[derive(Clone)]
pub(crate) struct Secret(Box<[u8; 32]>);

impl Secret {
    /// Copies the bytes; whoever holds the original wipes it.
    pub(crate) fn copy_of(bytes: &[u8; 32]) -> Self {
        Self::written(|secret| secret.copy_from_slice(bytes))
    }

    /// Lets `write` fill the bytes where they stay.
    fn written(write: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut secret = Self(Box::new([0; 32]));
        write(&mut secret.0);
        secret
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Secret {}

/// The shared secret is all zeros: the public key is of low order, and anybody knows the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LowOrder;

/// The tag is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forged;

impl std::fmt::Debug for DhKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DhKey(secret)")
    }
}

/// HASH over the parts, one after the other.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        Update::update(&mut state, part);
    }
    state.finalize().into()
}

/// MAC(key, parts): keyed BLAKE2s with 16 bytes of output. Keys are 16 or 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut state = Blake2sMac::<U16>::new_from_slice(key).expect("at most 32 bytes");
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// How many macs are computed together.
pub(crate) const MACS: usize = MAX_DEGREE;

/// MAC(key, part) of each part, all at once with the vectors that the processor has. The key is no secret.
pub(crate) fn macs(key: &[u8; 32], parts: &[&[u8]; MACS]) -> [[u8; 16]; MACS] {
    let mut params = blake2s_simd::Params::new();
    params.hash_length(16).key(key);
    let mut jobs = parts.map(|part| HashManyJob::new(&params, part));
    hash_many(&mut jobs);
    jobs.map(|job| *job.to_hash().as_bytes().first_chunk().expect("16 bytes"))
}

/// Whether two macs are the same, in constant time.
pub(crate) fn same_mac(a: &[u8; 16], b: &[u8; 16]) -> bool {
    a.ct_eq(b).into()
}

/// KDF1(key, input).
pub(crate) fn kdf1(key: &[u8; 32], input: &[u8]) -> Secret {
    let [first] = kdf(key, input);
    first
}

/// KDF2(key, input).
pub(crate) fn kdf2(key: &[u8; 32], input: &[u8]) -> (Secret, Secret) {
    let [first, second] = kdf(key, input);
    (first, second)
}

/// KDF3(key, input).
pub(crate) fn kdf3(key: &[u8; 32], input: &[u8]) -> (Secret, Secret, Secret) {
    let [first, second, third] = kdf(key, input);
    (first, second, third)
}

/// HKDF (RFC 5869) over HMAC-BLAKE2s: N keys of 32 bytes.
fn kdf<const N: usize>(key: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let extracted = hmac(key, &[input]);
    let mut number = 0;
    let mut last: Option<Secret> = None;
    std::array::from_fn(|_| {
        number += 1;
        let before: &[u8] = last.as_ref().map_or(&[], |last| last.bytes());
        let output = hmac(extracted.bytes(), &[before, &[number]]);
        last = Some(output.clone());
        output
    })
}

/// HMAC-BLAKE2s (RFC 2104); not the keyed mode of BLAKE2s, which [`mac`] is.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    const BLOCK: usize = 64;
    let padded = |pad: u8| {
        let mut block = Zeroizing::new([pad; BLOCK]);
        block
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
        block
    };
    let mut inner = Blake2s256::new();
    Update::update(&mut inner, &padded(0x36)[..]);
    for part in parts {
        Update::update(&mut inner, part);
    }
    let mut outer = Blake2s256::new();
    Update::update(&mut outer, &padded(0x5c)[..]);
    let digest = Secret::written(|digest| Digest::finalize_into(inner, digest.into()));
    Update::update(&mut outer, digest.bytes());
    Secret::written(|output| Digest::finalize_into(outer, output.into()))
}

/// AEAD(key, 0, text, aad), with a key that seals one thing only. `OUT` is `IN` and the tag.
pub(crate) fn seal<const IN: usize, const OUT: usize>(
    key: &Secret,
    aad: &[u8],
    text: &[u8; IN],
) -> [u8; OUT] {
    const { assert!(OUT == IN + TAG) };
    let mut out = [0; OUT];
    let (body, tag) = out.split_at_mut(IN);
    body.copy_from_slice(text);
    let cipher = ChaCha20Poly1305::new(key.bytes().into());
    let sealed = cipher
        .encrypt_inout_detached(&[0; 12].into(), aad, body.into())
        .expect("shorter than the cipher's limit of 256 GiB");
    tag.copy_from_slice(&sealed);
    out
}

/// Opens what [`seal`] made.
pub(crate) fn open<const IN: usize, const OUT: usize>(
    key: &Secret,
    aad: &[u8],
    sealed: &[u8; IN],
) -> Result<[u8; OUT], Forged> {
    const { assert!(IN == OUT + TAG) };
    let mut out = [0; OUT];
    let (body, tag) = sealed.split_at(OUT);
    out.copy_from_slice(body);
    let tag = Tag::try_from(tag).map_err(|_| Forged)?;
    let cipher = ChaCha20Poly1305::new(key.bytes().into());
    cipher
        .decrypt_inout_detached(&[0; 12].into(), aad, out.as_mut_slice().into(), &tag)
        .map_err(|_| Forged)?;
    Ok(out)
}

/// XAEAD(key, nonce, cookie, aad).
pub(crate) fn seal_cookie(
    key: &[u8; 32],
    nonce: &[u8; 24],
    aad: &[u8],
    cookie: &[u8; 16],
) -> [u8; 32] {
    let mut out = [0; 32];
    let (body, tag) = out.split_at_mut(16);
    body.copy_from_slice(cookie);
    let sealed = XChaCha20Poly1305::new(key.into())
        .encrypt_inout_detached(nonce.into(), aad, body.into())
        .expect("shorter than the cipher's limit of 256 GiB");
    tag.copy_from_slice(&sealed);
    out
}

/// Opens what [`seal_cookie`] made.
pub(crate) fn open_cookie(
    key: &[u8; 32],
    nonce: &[u8; 24],
    aad: &[u8],
    sealed: &[u8; 32],
) -> Result<[u8; 16], Forged> {
    let (body, tag) = sealed.split_at(16);
    let mut out = [0; 16];
    out.copy_from_slice(body);
    let tag = Tag::try_from(tag).map_err(|_| Forged)?;
    XChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(nonce.into(), aad, out.as_mut_slice().into(), &tag)
        .map_err(|_| Forged)?;
    Ok(out)
}

#[cfg(all(test, not(target_family = "wasm")))]
mod tests {
    use proptest::prelude::*;

    use super::{LowOrder, library, portable};

    /// Public keys whose shared secret is zero whatever the private key: the points of order 1, 2, 4
    /// and 8, on the curve and its twist, in every encoding (RFC 7748, section 6.1).
    const LOW_ORDER: [&str; 7] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];

    fn agree(private: &[u8; 32], public: &[u8; 32]) -> [Result<[u8; 32], LowOrder>; 2] {
        let (library, portable) = (library::DhKey::new(private), portable::DhKey::new(private));
        assert_eq!(library.public(), portable.public());
        [library.agree(public), portable.agree(public)]
            .map(|shared| shared.map(|shared| *shared.bytes()))
    }

    fn point(hex: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..][..2], 16).expect("two digits"))
    }

    #[test]
    fn public_keys_of_low_order_are_refused_by_both() {
        for (hex, high) in LOW_ORDER
            .into_iter()
            .flat_map(|hex| [(hex, 0), (hex, 0x80)])
        {
            let mut public = point(hex);
            public[31] |= high;
            for private in [[0; 32], [0xff; 32], [0x40; 32], [7; 32]] {
                let refused = Err(LowOrder);
                assert_eq!(
                    agree(&private, &public),
                    [refused, refused],
                    "{hex} {high:#x}"
                );
            }
        }
    }

    #[test]
    fn every_encoding_above_the_prime_is_taken_as_what_it_stands_for() {
        // 2^255 - 19 + n for n in 2..=18, and the same with the bit that is ignored.
        for n in 0xef..=0xff_u8 {
            for high in [0x7f, 0xff] {
                let mut public = [0xff; 32];
                (public[0], public[31]) = (n, high);
                let mut canonical = [0; 32];
                canonical[0] = n - 0xed;
                let [shared, oracle] = agree(&[9; 32], &public);
                assert_eq!(shared, oracle);
                assert_eq!(shared, agree(&[9; 32], &canonical)[0]);
                assert!(shared.is_ok());
            }
        }
    }

    proptest! {
        #[test]
        fn both_agree_on_everything(private: [u8; 32], public: [u8; 32]) {
            let [shared, oracle] = agree(&private, &public);
            prop_assert_eq!(shared, oracle);
            prop_assert!(shared.is_ok());
        }
    }
}
