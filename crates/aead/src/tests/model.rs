//! ChaCha20-Poly1305 as RFC 8439 words it, without a thought for speed.

/// The plaintext of section 2.8.2.
pub(super) const SUNSCREEN: &[u8; 114] = b"Ladies and Gentlemen of the class of '99: \
    If I could offer you only one tip for the future, sunscreen would be it.";

/// The ciphertext of section 2.8.2, which does not depend on the additional data.
#[rustfmt::skip]
pub(super) const SUNSCREEN_SEALED: [u8; 114] = [
    0xd3, 0x1a, 0x8d, 0x34, 0x64, 0x8e, 0x60, 0xdb, 0x7b, 0x86, 0xaf, 0xbc, 0x53, 0xef, 0x7e, 0xc2,
    0xa4, 0xad, 0xed, 0x51, 0x29, 0x6e, 0x08, 0xfe, 0xa9, 0xe2, 0xb5, 0xa7, 0x36, 0xee, 0x62, 0xd6,
    0x3d, 0xbe, 0xa4, 0x5e, 0x8c, 0xa9, 0x67, 0x12, 0x82, 0xfa, 0xfb, 0x69, 0xda, 0x92, 0x72, 0x8b,
    0x1a, 0x71, 0xde, 0x0a, 0x9e, 0x06, 0x0b, 0x29, 0x05, 0xd6, 0xa5, 0xb6, 0x7e, 0xcd, 0x3b, 0x36,
    0x92, 0xdd, 0xbd, 0x7f, 0x2d, 0x77, 0x8b, 0x8c, 0x98, 0x03, 0xae, 0xe3, 0x28, 0x09, 0x1b, 0x58,
    0xfa, 0xb3, 0x24, 0xe4, 0xfa, 0xd6, 0x75, 0x94, 0x55, 0x85, 0x80, 0x8b, 0x48, 0x31, 0xd7, 0xbc,
    0x3f, 0xf4, 0xde, 0xf0, 0x8e, 0x4b, 0x7a, 0x9d, 0xe5, 0x76, 0xd2, 0x65, 0x86, 0xce, 0xc6, 0x4b,
    0x61, 0x16,
];

/// The ciphertext of `plain`, and its tag (section 2.8).
pub(super) fn seal(
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    plain: &[u8],
) -> (Vec<u8>, [u8; 16]) {
    let mut sealed = plain.to_vec();
    for (block, counter) in sealed.chunks_mut(64).zip(1..) {
        for (byte, key) in block.iter_mut().zip(chacha20_block(key, counter, nonce)) {
            *byte ^= key;
        }
    }
    let mut authenticated = aad.to_vec();
    authenticated.resize(aad.len().next_multiple_of(16), 0);
    authenticated.extend(&sealed);
    authenticated.resize(authenticated.len().next_multiple_of(16), 0);
    authenticated.extend((aad.len() as u64).to_le_bytes());
    authenticated.extend((plain.len() as u64).to_le_bytes());
    let one_time_key = chacha20_block(key, 0, nonce);
    let tag = poly1305(
        one_time_key.first_chunk().expect("32 of 64"),
        &authenticated,
    );
    (sealed, tag)
}

/// Section 2.3.
fn chacha20_block(key: &[u8; 32], counter: u32, nonce: &[u8; 12]) -> [u8; 64] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    for (i, word) in key.chunks(4).enumerate() {
        start[4 + i] = u32::from_le_bytes(word.try_into().expect("four bytes"));
    }
    start[12] = counter;
    for (i, word) in nonce.chunks(4).enumerate() {
        start[13 + i] = u32::from_le_bytes(word.try_into().expect("four bytes"));
    }
    let mut state = start;
    for _ in 0..10 {
        for column in 0..4 {
            quarter_round(&mut state, column, column + 4, column + 8, column + 12);
        }
        for i in 0..4 {
            let [b, c, d] = [1, 2, 3].map(|shift| (i + shift) % 4);
            quarter_round(&mut state, i, b + 4, c + 8, d + 12);
        }
    }
    let mut block = [0; 64];
    for (i, out) in block.chunks_mut(4).enumerate() {
        out.copy_from_slice(&state[i].wrapping_add(start[i]).to_le_bytes());
    }
    block
}

/// Section 2.1.
fn quarter_round(state: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    for (x, y, z, left) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        state[x] = state[x].wrapping_add(state[y]);
        state[z] = (state[z] ^ state[x]).rotate_left(left);
    }
}

/// Section 2.5.
pub(super) fn poly1305(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let (r, s) = key.split_at(16);
    let r = u128::from_le_bytes(r.try_into().expect("half of the key"));
    let r = r & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
    let s = u128::from_le_bytes(s.try_into().expect("half of the key"));
    let mut sum = Residue::default();
    for block in message.chunks(16) {
        let mut padded = [0; 17];
        padded[..block.len()].copy_from_slice(block);
        padded[block.len()] = 1;
        let low = u128::from_le_bytes(*padded.first_chunk().expect("16 of 17"));
        let high = padded[16];
        sum = sum.plus(Residue { high, low }).times(r);
    }
    sum.low.wrapping_add(s).to_le_bytes()
}

/// A number below 2^130 - 5.
#[derive(Clone, Copy, Default)]
struct Residue {
    high: u8,
    low: u128,
}

impl Residue {
    fn plus(self, other: Self) -> Self {
        let (low, carry) = self.low.overflowing_add(other.low);
        let high = self.high + other.high + u8::from(carry);
        // At most twice the modulus, so one subtraction is enough.
        let (reduced, borrow) = low.overflowing_sub(u128::MAX - 4);
        match high.checked_sub(3 + u8::from(borrow)) {
            Some(high) => Self { high, low: reduced },
            None => Self { high, low },
        }
    }

    fn times(self, factor: u128) -> Self {
        (0..128).rev().fold(Self::default(), |product, bit| {
            let doubled = product.plus(product);
            match factor >> bit & 1 {
                0 => doubled,
                _ => doubled.plus(self),
            }
        })
    }
}

#[test]
fn the_model_agrees_with_rfc_8439_section_2_3_2() {
    let mut key = [0; 32];
    key.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
    let block = chacha20_block(&key, 1, &[0, 0, 0, 9, 0, 0, 0, 0x4a, 0, 0, 0, 0]);
    let expected = [
        0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15, 0x50, 0x0f, 0xdd, 0x1f, 0xa3, 0x20, 0x71,
        0xc4,
    ];
    assert_eq!(block[..16], expected);
}

#[test]
fn the_model_agrees_with_rfc_8439_section_2_5_2() {
    let key = [
        0x85, 0xd6, 0xbe, 0x78, 0x57, 0x55, 0x6d, 0x33, 0x7f, 0x44, 0x52, 0xfe, 0x42, 0xd5, 0x06,
        0xa8, 0x01, 0x03, 0x80, 0x8a, 0xfb, 0x0d, 0xb2, 0xfd, 0x4a, 0xbf, 0xf6, 0xaf, 0x41, 0x49,
        0xf5, 0x1b,
    ];
    let tag = poly1305(&key, b"Cryptographic Forum Research Group");
    let expected = [
        0xa8, 0x06, 0x1d, 0xc1, 0x30, 0x51, 0x36, 0xc6, 0xc2, 0x2b, 0x8b, 0xaf, 0x0c, 0x01, 0x27,
        0xa9,
    ];
    assert_eq!(tag, expected);
}

#[test]
fn the_model_agrees_with_rfc_8439_section_2_8_2() {
    let mut key = [0; 32];
    key.iter_mut().zip(0x80..).for_each(|(byte, n)| *byte = n);
    let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
    let aad = [
        0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
    ];
    let (sealed, tag) = seal(&key, &nonce, &aad, SUNSCREEN);
    assert_eq!(sealed, SUNSCREEN_SEALED);
    let expected = [
        0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a, 0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60, 0x06,
        0x91,
    ];
    assert_eq!(tag, expected);
}
