//! What `chacha20.rs` and `poly1305.rs` need of a processor: numbers side by side in lanes.
//!
//! A [`Processor`] is proof that the instructions behind its lanes may be used: whoever makes one
//! has asked the processor. Lanes come from it, or from other lanes, and from nowhere else.

use std::ops::{Add, BitAnd, BitOr, BitXor};

use super::chacha20::{Keystream, WIDEST};
use super::poly1305::{Mac, PIECE_LEN};

/// Half of the lanes of [`Words`] hold the [`Limbs`] of as many records.
pub(crate) const WIDEST_LIMBS: usize = WIDEST / 2;

/// A set of instructions.
pub(crate) trait Processor: Copy {
    /// Lanes of [`Words`], which are twice the lanes of [`Limbs`].
    const BLOCKS: usize;

    type Words: Words<Limbs = Self::Limbs>;
    type Limbs: Limbs;
    /// The form of Poly1305 that suits its multiplication.
    type Mac: Mac<Self>;

    /// The same word in every lane.
    fn word(self, word: u32) -> Self::Words;

    /// As many of the words as there are lanes.
    fn words(self, words: &[u32; WIDEST]) -> Self::Words;

    /// The same limb in every lane.
    fn limb(self, limb: u64) -> Self::Limbs;

    /// As many of the limbs as there are lanes.
    fn limbs(self, limbs: &[u64; WIDEST_LIMBS]) -> Self::Limbs;

    /// The low and the high halves of one piece for each lane, which is in little endian.
    fn gather<'a>(self, piece: impl Fn(usize) -> &'a [u8; PIECE_LEN]) -> [Self::Limbs; 2];
}

/// A 32-bit word in each lane. Addition wraps.
pub(crate) trait Words: Copy + Add<Output = Self> + BitXor<Output = Self> {
    type Limbs: Limbs;

    fn rotate_left<const BITS: i32>(self) -> Self;

    /// These lanes up to number `lane`, and the others' from there on.
    fn splice(self, lane: usize, others: Self) -> Self;

    /// The words of the lower and of the upper half of the lanes, as numbers of 64 bits.
    fn widen(self) -> [Self::Limbs; 2];

    /// Puts the 16 words of lane `i`, in little endian, into block `i`.
    fn interleave(words: &[Self; 16], blocks: &mut Keystream);
}

/// A 64-bit number in each lane. Addition wraps.
pub(crate) trait Limbs:
    Copy + Add<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self>
{
    fn shl<const BITS: i32>(self) -> Self;

    fn shr<const BITS: i32>(self) -> Self;

    /// The product of the lower 32 bits of both.
    fn mul32(self, other: Self) -> Self;

    fn to_array(self) -> [u64; WIDEST_LIMBS];
}

/// What AVX-512 calls IFMA: products of the lower 52 bits of `a` and `b`, added to `self`.
pub(crate) trait MulAdd52: Limbs {
    /// Adds the lower 52 bits of the product.
    fn add_low52(self, a: Self, b: Self) -> Self;

    /// Adds the upper 52 bits of the product.
    fn add_high52(self, a: Self, b: Self) -> Self;
}
