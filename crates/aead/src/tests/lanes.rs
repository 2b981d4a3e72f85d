//! Lanes in plain Rust, as the model of what the processor's do. They are for Miri and for machines
//! that lack the processor in question; nothing seals with them.

use std::array;
use std::ops::{Add, BitAnd, BitOr, BitXor};

use crate::wide::chacha20::{Keystream, WIDEST};
use crate::wide::lanes::{Limbs, MulAdd52, Processor, WIDEST_LIMBS, Words};
use crate::wide::poly1305::{PIECE_LEN, Radix26, Radix44};

/// The shape of AVX2: 8 words, 4 limbs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Narrow;

/// The shape of AVX-512: 16 words, 8 limbs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Broad;

#[derive(Debug, Clone, Copy)]
pub(super) struct PlainWords<const WORDS: usize, const LIMBS: usize>([u32; WORDS]);

#[derive(Debug, Clone, Copy)]
pub(super) struct PlainLimbs<const LIMBS: usize>([u64; LIMBS]);

macro_rules! processor {
    ($processor:ident, $words:literal, $limbs:literal, $mac:ident) => {
        impl Processor for $processor {
            const BLOCKS: usize = $words;

            type Words = PlainWords<$words, $limbs>;
            type Limbs = PlainLimbs<$limbs>;
            type Mac = $mac<Self>;

            fn word(self, word: u32) -> Self::Words {
                PlainWords([word; $words])
            }

            fn words(self, words: &[u32; WIDEST]) -> Self::Words {
                PlainWords(array::from_fn(|lane| words[lane]))
            }

            fn limb(self, limb: u64) -> Self::Limbs {
                PlainLimbs([limb; $limbs])
            }

            fn limbs(self, limbs: &[u64; WIDEST_LIMBS]) -> Self::Limbs {
                PlainLimbs(array::from_fn(|lane| limbs[lane]))
            }

            fn gather<'a>(self, piece: impl Fn(usize) -> &'a [u8; PIECE_LEN]) -> [Self::Limbs; 2] {
                [0, 64].map(|shift| {
                    PlainLimbs(array::from_fn(|lane| {
                        (u128::from_le_bytes(*piece(lane)) >> shift) as u64
                    }))
                })
            }
        }
    };
}

processor!(Narrow, 8, 4, Radix26);
processor!(Broad, 16, 8, Radix44);

impl<const W: usize, const L: usize> Add for PlainWords<W, L> {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(array::from_fn(|lane| {
            self.0[lane].wrapping_add(other.0[lane])
        }))
    }
}

impl<const W: usize, const L: usize> BitXor for PlainWords<W, L> {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        Self(array::from_fn(|lane| self.0[lane] ^ other.0[lane]))
    }
}

impl<const W: usize, const L: usize> Words for PlainWords<W, L> {
    type Limbs = PlainLimbs<L>;

    fn rotate_left<const BITS: i32>(self) -> Self {
        Self(self.0.map(|word| word.rotate_left(BITS as u32)))
    }

    fn splice(self, lane: usize, others: Self) -> Self {
        Self(array::from_fn(|i| {
            if i < lane { self.0[i] } else { others.0[i] }
        }))
    }

    fn widen(self) -> [PlainLimbs<L>; 2] {
        [0, L].map(|from| PlainLimbs(array::from_fn(|lane| u64::from(self.0[from + lane]))))
    }

    fn interleave(words: &[Self; 16], blocks: &mut Keystream) {
        for (lane, block) in blocks.0.iter_mut().take(W).enumerate() {
            for (bytes, word) in block.chunks_mut(4).zip(words) {
                bytes.copy_from_slice(&word.0[lane].to_le_bytes());
            }
        }
    }
}

impl<const L: usize> Add for PlainLimbs<L> {
    type Output = Self;

    /// No sum of limbs may be so large that it wraps.
    fn add(self, other: Self) -> Self {
        Self(array::from_fn(|lane| {
            let sum = self.0[lane].checked_add(other.0[lane]);
            sum.expect("there is room above limbs")
        }))
    }
}

impl<const L: usize> BitAnd for PlainLimbs<L> {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(array::from_fn(|lane| self.0[lane] & other.0[lane]))
    }
}

impl<const L: usize> BitOr for PlainLimbs<L> {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(array::from_fn(|lane| self.0[lane] | other.0[lane]))
    }
}

impl<const L: usize> Limbs for PlainLimbs<L> {
    fn shl<const BITS: i32>(self) -> Self {
        Self(self.0.map(|limb| limb << BITS))
    }

    fn shr<const BITS: i32>(self) -> Self {
        Self(self.0.map(|limb| limb >> BITS))
    }

    /// No factor may be so large that a part of it is left out.
    fn mul32(self, other: Self) -> Self {
        Self(array::from_fn(|lane| {
            let factors = [self.0[lane], other.0[lane]];
            assert!(factors.iter().all(|factor| factor >> 32 == 0));
            factors[0] * factors[1]
        }))
    }

    fn to_array(self) -> [u64; WIDEST_LIMBS] {
        array::from_fn(|lane| self.0.get(lane).copied().unwrap_or(0))
    }
}

impl MulAdd52 for PlainLimbs<8> {
    fn add_low52(self, a: Self, b: Self) -> Self {
        self + product52(a, b, |product| product & ((1 << 52) - 1))
    }

    fn add_high52(self, a: Self, b: Self) -> Self {
        self + product52(a, b, |product| product >> 52)
    }
}

/// No factor may be so large that a part of it is left out.
fn product52(a: PlainLimbs<8>, b: PlainLimbs<8>, part: impl Fn(u128) -> u128) -> PlainLimbs<8> {
    PlainLimbs(array::from_fn(|lane| {
        let factors = [a.0[lane], b.0[lane]];
        assert!(factors.iter().all(|factor| factor >> 52 == 0));
        part(u128::from(factors[0]) * u128::from(factors[1])) as u64
    }))
}
