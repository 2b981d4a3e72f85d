//! The three kinds of key that a configuration holds.
//!
//! All are 32 bytes. Public keys print as base64, as `wg(8)` shows them. Secrets are zeroized on
//! drop, compared in constant time, and their `Debug` says only that they are secrets.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of every key, in bytes.
const KEY_LEN: usize = 32;

/// An X25519 public key: a peer's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

/// An X25519 private key: who this node is.
///
/// Boxed, as is [`PresharedKey`], so that moving it, as a growing `Vec` does, leaves no copy behind.
#[derive(Clone)]
pub struct PrivateKey(Box<[u8; KEY_LEN]>);

/// The symmetric key that two peers may share beside their key pairs (the paper's section 5.2).
///
/// All zeros is the protocol's way to say "none"; such a key is never built, see
/// [`PresharedKey::from_bytes`].
#[derive(Clone)]
pub struct PresharedKey(Box<[u8; KEY_LEN]>);

impl PublicKey {
    /// Takes the bytes as they are. Whether they are a useful point shows in the handshake, where
    /// an all-zero shared secret is refused.
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The UAPI's form.
    pub fn to_hex(&self) -> String {
        hex_of(&self.0)
    }

    /// Reads the UAPI's form, 64 hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        bytes_of_hex(text).map(|bytes| Self(*bytes))
    }
}

impl PrivateKey {
    /// Clamps the bytes as X25519 asks (RFC 7748, section 5), as `wg genkey` and the kernel do.
    pub fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        let key = Self(Box::new(bytes));
        bytes.zeroize();
        key
    }

    /// The key's bytes, clamped.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public key that belongs to this private key.
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The UAPI's form. The text is as secret as the key: zeroize it after use.
    pub fn to_hex(&self) -> String {
        hex_of(&self.0)
    }

    /// The form of configuration files. The text is as secret as the key: zeroize it after use.
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0[..])
    }

    /// Reads the UAPI's form. All zeros means "no key" there, and is `None` here.
    pub fn from_hex(text: &str) -> Result<Option<Self>, KeyError> {
        let bytes = bytes_of_hex(text)?;
        Ok((*bytes != [0; KEY_LEN]).then(|| Self::from_bytes(*bytes)))
    }
}

impl PresharedKey {
    /// `None` for all zeros, which the protocol takes for "no preshared key".
    pub fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Option<Self> {
        let key = (bytes != [0; KEY_LEN]).then(|| Self(Box::new(bytes)));
        bytes.zeroize();
        key
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The UAPI's form. The text is as secret as the key: zeroize it after use.
    pub fn to_hex(&self) -> String {
        hex_of(&self.0)
    }

    /// The form of configuration files. The text is as secret as the key: zeroize it after use.
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0[..])
    }

    /// Reads the UAPI's form. All zeros means "no key" there, and is `None` here.
    pub fn from_hex(text: &str) -> Result<Option<Self>, KeyError> {
        bytes_of_hex(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

/// Why a text is no key. Says nothing of the text itself, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 64 hexadecimal digits.
    #[error("a key in hexadecimal is 64 digits 0-9 and a-f")]
    Hex,
    /// Not the base64 of 32 bytes.
    #[error("a key in base64 is 44 characters, the last of them '='")]
    Base64,
    /// All zeros, which stands for "no key".
    #[error("a key of zeros stands for no key")]
    Zero,
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        bytes_of_base64(text).map(|bytes| Self(*bytes))
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = bytes_of_base64(text)?;
        match *bytes == [0; KEY_LEN] {
            true => Err(KeyError::Zero),
            false => Ok(Self::from_bytes(*bytes)),
        }
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*bytes_of_base64(text)?).ok_or(KeyError::Zero)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(secret)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(secret)")
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for PrivateKey {}

impl Drop for PresharedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for PresharedKey {}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.0[..].ct_eq(&other.0[..]).into()
    }
}

impl Eq for PrivateKey {}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.0[..].ct_eq(&other.0[..]).into()
    }
}

impl Eq for PresharedKey {}

/// Writes a key as 64 lowercase hexadecimal digits, the UAPI's form, and leaves no copy of them.
pub(crate) fn write_hex(out: &mut impl fmt::Write, bytes: &[u8; KEY_LEN]) -> fmt::Result {
    // Filled and wiped where it is: moving it would leave digits behind.
    let mut digits = Zeroizing::new([0; 2 * KEY_LEN]);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        for (digit, nibble) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
            *digit = hex_digit(nibble);
        }
    }
    out.write_str(str::from_utf8(&digits[..]).expect("digits are UTF-8"))
}

fn hex_of(bytes: &[u8; KEY_LEN]) -> String {
    // It never grows, which would leave a copy.
    let mut text = String::with_capacity(2 * KEY_LEN);
    write_hex(&mut text, bytes).expect("a string takes everything");
    text
}

fn bytes_of_hex(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_LEN {
        return Err(KeyError::Hex);
    }
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    let mut valid = u8::MAX;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [(high, high_is_valid), (low, low_is_valid)] = [pair[0], pair[1]].map(nibble);
        *byte = high << 4 | low;
        valid &= high_is_valid & low_is_valid;
    }
    match valid {
        0 => Err(KeyError::Hex),
        _ => Ok(bytes),
    }
}

/// A digit of four bits, which may be a secret's: without a table or a branch, as in `encoding.c` of wireguard-tools,
/// since both leave traces in the processor's caches.
fn hex_digit(nibble: u8) -> u8 {
    // From '9' to 'a' are 39 more.
    let is_letter = (9_u8.wrapping_sub(nibble) as i8 >> 7) as u8;
    b'0' + nibble + (is_letter & 39)
}

/// The four bits of a digit, in the same way, and a mask that is all ones if it is one, else 0.
fn nibble(digit: u8) -> (u8, u8) {
    // All ones where `value` is from 0 to `last`.
    let within = |value: i16, last: i16| !((value | (last - value)) >> 15) as u8;
    let number = i16::from(digit) - i16::from(b'0');
    let letter = i16::from(digit | 0x20) - i16::from(b'a');
    let (is_number, is_letter) = (within(number, 9), within(letter, 5));
    let value = number as u8 & is_number | (letter as u8).wrapping_add(10) & is_letter;
    (value, is_number | is_letter)
}

/// By tables: the library has no other way. Files of keys are read so, where the UAPI has digits.
fn bytes_of_base64(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    // `decode_slice` refuses an output that might not fit its estimate, hence the spare byte.
    let mut room = Zeroizing::new([0; KEY_LEN + 1]);
    let len = BASE64
        .decode_slice(text, &mut room[..])
        .map_err(|_| KeyError::Base64)?;
    if len != KEY_LEN {
        return Err(KeyError::Base64);
    }
    bytes.copy_from_slice(&room[..KEY_LEN]);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_hexadecimal_digit_or_none_as_the_standard_library_has_it() {
        for byte in 0..=u8::MAX {
            let wanted = char::from(byte).to_digit(16);
            let (value, is_valid) = nibble(byte);
            match wanted {
                Some(wanted) => assert_eq!((u32::from(value), is_valid), (wanted, u8::MAX)),
                None => assert_eq!(is_valid, 0, "{byte:#x}"),
            }
        }
        for value in 0..16 {
            assert_eq!(nibble(hex_digit(value)), (value, u8::MAX));
            assert!(!hex_digit(value).is_ascii_uppercase());
        }
    }

    #[test]
    fn a_private_key_is_clamped() {
        // The clamping of RFC 7748, section 5.
        let hex = "77076d0a7318a57d3c16c17251b26645df4c2f92ebc099291f0af1a4f0f3b0a0";
        let alice = PrivateKey::from_hex(hex)
            .expect("hexadecimal")
            .expect("not zero");
        assert_eq!(alice.as_bytes()[0] & 7, 0);
        assert_eq!(alice.as_bytes()[31] & 0xc0, 0x40);
        assert_ne!(alice.public(), PublicKey::from_bytes([0; 32]));
    }

    #[test]
    fn secrets_are_absent_from_debug() {
        let private = PrivateKey::from_bytes([7; 32]);
        let preshared = PresharedKey::from_bytes([7; 32]).expect("not zero");
        assert_eq!(
            format!("{private:?} {preshared:?}"),
            "PrivateKey(secret) PresharedKey(secret)"
        );
    }

    #[test]
    fn keys_survive_both_text_forms() {
        let key = PublicKey::from_bytes(std::array::from_fn(|i| i as u8 * 7));
        let hex = key.to_hex();
        assert!(hex.starts_with("00070e151c232a31383f"), "{hex}");
        assert_eq!(hex.capacity(), 64);
        assert_eq!(PublicKey::from_hex(&hex), Ok(key));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 44);
    }

    #[test]
    fn texts_that_are_no_keys_are_refused() {
        for text in [
            "",
            "AAAA",
            "not base64 at all, is it now? really not it..",
            &"A".repeat(44),
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Base64), "{text:?}");
        }
        for text in ["", "00", &"g".repeat(64), &"0".repeat(65)] {
            assert_eq!(PublicKey::from_hex(text), Err(KeyError::Hex), "{text:?}");
        }
        let zero = BASE64.encode([0; 32]);
        assert_eq!(zero.parse::<PrivateKey>(), Err(KeyError::Zero));
        assert_eq!(zero.parse::<PresharedKey>(), Err(KeyError::Zero));
        assert_eq!(PrivateKey::from_hex(&"0".repeat(64)), Ok(None));
    }
}
