//! The lanes of x86-64: AVX2 and AVX-512.
//!
//! All that is unsafe is here, and is of two kinds. Instructions that only some processors have are
//! allowed by a token, [`Avx2`] or [`Avx512`], which `detect` alone makes; lanes are made from a
//! token or from other lanes, so whoever has some may use the instructions. And what is loaded or
//! stored is behind a reference to an array of at least the size in question.
//!
//! A function compiled for a processor of its own is never inlined into one that is not. Therefore
//! `seal` and `open` of each token are the only ways in, and all that they call is inlined.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor};

use crate::wide::chacha20::{BLOCK_LEN, Keystream, WIDEST};
use crate::wide::lanes::{Limbs, MulAdd52, Processor, WIDEST_LIMBS, Words};
use crate::wide::poly1305::{PIECE_LEN, Radix26, Radix44};
use crate::wide::{self, Run};
use crate::{Forged, KEY_LEN};

/// Proof of AVX2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

/// Proof of AVX-512 F, BW, VL and IFMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(());

/// Eight words.
#[derive(Clone, Copy)]
pub(crate) struct Words256(__m256i);

/// Four limbs.
#[derive(Clone, Copy)]
pub(crate) struct Limbs256(__m256i);

/// Sixteen words.
#[derive(Clone, Copy)]
pub(crate) struct Words512(__m512i);

/// Eight limbs.
#[derive(Clone, Copy)]
pub(crate) struct Limbs512(__m512i);

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    pub(crate) fn seal(self, key: &[u8; KEY_LEN], counters: &[u64], run: Run<'_>) {
        #[target_feature(enable = "avx2")]
        fn seal(processor: Avx2, key: &[u8; KEY_LEN], counters: &[u64], run: Run<'_>) {
            wide::seal(processor, key, counters, run);
        }
        // SAFETY: the token is proof of the feature.
        unsafe { seal(self, key, counters, run) }
    }

    pub(crate) fn open(
        self,
        key: &[u8; KEY_LEN],
        counters: &[u64],
        run: Run<'_>,
        opened: &mut [Result<(), Forged>],
    ) {
        #[target_feature(enable = "avx2")]
        fn open(
            processor: Avx2,
            key: &[u8; KEY_LEN],
            counters: &[u64],
            run: Run<'_>,
            opened: &mut [Result<(), Forged>],
        ) {
            wide::open(processor, key, counters, run, opened);
        }
        // SAFETY: the token is proof of the feature.
        unsafe { open(self, key, counters, run, opened) }
    }
}

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma");
        detected.then_some(Self(()))
    }

    pub(crate) fn seal(self, key: &[u8; KEY_LEN], counters: &[u64], run: Run<'_>) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
        fn seal(processor: Avx512, key: &[u8; KEY_LEN], counters: &[u64], run: Run<'_>) {
            wide::seal(processor, key, counters, run);
        }
        // SAFETY: the token is proof of the features.
        unsafe { seal(self, key, counters, run) }
    }

    pub(crate) fn open(
        self,
        key: &[u8; KEY_LEN],
        counters: &[u64],
        run: Run<'_>,
        opened: &mut [Result<(), Forged>],
    ) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
        fn open(
            processor: Avx512,
            key: &[u8; KEY_LEN],
            counters: &[u64],
            run: Run<'_>,
            opened: &mut [Result<(), Forged>],
        ) {
            wide::open(processor, key, counters, run, opened);
        }
        // SAFETY: the token is proof of the features.
        unsafe { open(self, key, counters, run, opened) }
    }
}

impl Processor for Avx2 {
    const BLOCKS: usize = 8;

    type Words = Words256;
    type Limbs = Limbs256;
    type Mac = Radix26<Self>;

    #[inline(always)]
    fn word(self, word: u32) -> Words256 {
        // SAFETY: the token is proof of the instruction.
        Words256(unsafe { _mm256_set1_epi32(word as i32) })
    }

    #[inline(always)]
    fn words(self, words: &[u32; WIDEST]) -> Words256 {
        // SAFETY: the token is proof of the instruction, which loads 8 of the 16 words.
        Words256(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
    }

    #[inline(always)]
    fn limb(self, limb: u64) -> Limbs256 {
        // SAFETY: the token is proof of the instruction.
        Limbs256(unsafe { _mm256_set1_epi64x(limb as i64) })
    }

    #[inline(always)]
    fn limbs(self, limbs: &[u64; WIDEST_LIMBS]) -> Limbs256 {
        // SAFETY: the token is proof of the instruction, which loads 4 of the 8 limbs.
        Limbs256(unsafe { _mm256_loadu_si256(limbs.as_ptr().cast()) })
    }

    #[inline(always)]
    fn gather<'a>(self, piece: impl Fn(usize) -> &'a [u8; PIECE_LEN]) -> [Limbs256; 2] {
        let pieces = [piece(0), piece(1), piece(2), piece(3)];
        // SAFETY: the token is proof of the instructions.
        unsafe { gather256(pieces) }
    }
}

impl Processor for Avx512 {
    const BLOCKS: usize = 16;

    type Words = Words512;
    type Limbs = Limbs512;
    type Mac = Radix44<Self>;

    #[inline(always)]
    fn word(self, word: u32) -> Words512 {
        // SAFETY: the token is proof of the instruction.
        Words512(unsafe { _mm512_set1_epi32(word as i32) })
    }

    #[inline(always)]
    fn words(self, words: &[u32; WIDEST]) -> Words512 {
        // SAFETY: the token is proof of the instruction, which loads the 16 words.
        Words512(unsafe { _mm512_loadu_si512(words.as_ptr().cast()) })
    }

    #[inline(always)]
    fn limb(self, limb: u64) -> Limbs512 {
        // SAFETY: the token is proof of the instruction.
        Limbs512(unsafe { _mm512_set1_epi64(limb as i64) })
    }

    #[inline(always)]
    fn limbs(self, limbs: &[u64; WIDEST_LIMBS]) -> Limbs512 {
        // SAFETY: the token is proof of the instruction, which loads the 8 limbs.
        Limbs512(unsafe { _mm512_loadu_si512(limbs.as_ptr().cast()) })
    }

    #[inline(always)]
    fn gather<'a>(self, piece: impl Fn(usize) -> &'a [u8; PIECE_LEN]) -> [Limbs512; 2] {
        let low = [piece(0), piece(1), piece(2), piece(3)];
        let high = [piece(4), piece(5), piece(6), piece(7)];
        // SAFETY: the token is proof of the instructions.
        unsafe { gather512(low, high) }
    }
}

/// Implements operators by one instruction each.
macro_rules! operators {
    ($lanes:ident: $($operator:ident::$method:ident = $instruction:ident),*) => {$(
        impl $operator for $lanes {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the lanes are proof of the instruction.
                Self(unsafe { $instruction(self.0, other.0) })
            }
        }
    )*};
}

operators!(Words256: Add::add = _mm256_add_epi32, BitXor::bitxor = _mm256_xor_si256);
operators!(Words512: Add::add = _mm512_add_epi32, BitXor::bitxor = _mm512_xor_si512);
operators!(Limbs256: Add::add = _mm256_add_epi64, BitAnd::bitand = _mm256_and_si256, BitOr::bitor = _mm256_or_si256);
operators!(Limbs512: Add::add = _mm512_add_epi64, BitAnd::bitand = _mm512_and_si512, BitOr::bitor = _mm512_or_si512);

impl Words for Words256 {
    type Limbs = Limbs256;

    #[inline(always)]
    fn rotate_left<const BITS: i32>(self) -> Self {
        // SAFETY: the lanes are proof of the instructions.
        Self(unsafe { rotate256::<BITS>(self.0) })
    }

    #[inline(always)]
    fn splice(self, lane: usize, others: Self) -> Self {
        // SAFETY: the lanes are proof of the instructions.
        Self(unsafe { splice256(self.0, lane, others.0) })
    }

    #[inline(always)]
    fn widen(self) -> [Limbs256; 2] {
        // SAFETY: the lanes are proof of the instructions.
        unsafe { widen256(self.0) }.map(Limbs256)
    }

    #[inline(always)]
    fn interleave(words: &[Self; 16], blocks: &mut Keystream) {
        // SAFETY: the lanes are proof of the instructions.
        unsafe { interleave256(words, blocks) }
    }
}

impl Words for Words512 {
    type Limbs = Limbs512;

    #[inline(always)]
    fn rotate_left<const BITS: i32>(self) -> Self {
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm512_rol_epi32::<BITS>(self.0) })
    }

    #[inline(always)]
    fn splice(self, lane: usize, others: Self) -> Self {
        let from_lane = (u32::from(u16::MAX) << lane) as u16;
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm512_mask_mov_epi32(self.0, from_lane, others.0) })
    }

    #[inline(always)]
    fn widen(self) -> [Limbs512; 2] {
        // SAFETY: the lanes are proof of the instructions.
        unsafe { widen512(self.0) }.map(Limbs512)
    }

    #[inline(always)]
    fn interleave(words: &[Self; 16], blocks: &mut Keystream) {
        // SAFETY: the lanes are proof of the instructions.
        unsafe { interleave512(words, blocks) }
    }
}

impl Limbs for Limbs256 {
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm256_slli_epi64::<BITS>(self.0) })
    }

    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm256_srli_epi64::<BITS>(self.0) })
    }

    #[inline(always)]
    fn mul32(self, other: Self) -> Self {
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm256_mul_epu32(self.0, other.0) })
    }

    #[inline(always)]
    fn to_array(self) -> [u64; WIDEST_LIMBS] {
        let mut limbs = [0; WIDEST_LIMBS];
        // SAFETY: the lanes are proof of the instruction, which stores 4 of the 8 limbs.
        unsafe { _mm256_storeu_si256(limbs.as_mut_ptr().cast(), self.0) };
        limbs
    }
}

impl Limbs for Limbs512 {
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        // SAFETY: the lanes are proof of the instructions.
        Self(unsafe { shl512::<BITS>(self.0) })
    }

    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        // SAFETY: the lanes are proof of the instructions.
        Self(unsafe { shr512::<BITS>(self.0) })
    }

    #[inline(always)]
    fn mul32(self, other: Self) -> Self {
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm512_mul_epu32(self.0, other.0) })
    }

    #[inline(always)]
    fn to_array(self) -> [u64; WIDEST_LIMBS] {
        let mut limbs = [0; WIDEST_LIMBS];
        // SAFETY: the lanes are proof of the instruction, which stores the 8 limbs.
        unsafe { _mm512_storeu_si512(limbs.as_mut_ptr().cast(), self.0) };
        limbs
    }
}

impl MulAdd52 for Limbs512 {
    #[inline(always)]
    fn add_low52(self, a: Self, b: Self) -> Self {
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm512_madd52lo_epu64(self.0, a.0, b.0) })
    }

    #[inline(always)]
    fn add_high52(self, a: Self, b: Self) -> Self {
        // SAFETY: the lanes are proof of the instruction.
        Self(unsafe { _mm512_madd52hi_epu64(self.0, a.0, b.0) })
    }
}

/// A rotation by whole bytes is one shuffle of them, any other is three instructions.
#[inline]
#[target_feature(enable = "avx2")]
fn rotate256<const BITS: i32>(words: __m256i) -> __m256i {
    match BITS {
        8 => shuffle256(words, &ROTATE_8),
        16 => shuffle256(words, &ROTATE_16),
        _ => _mm256_or_si256(
            _mm256_slli_epi32::<BITS>(words),
            _mm256_srlv_epi32(words, _mm256_set1_epi32(32 - BITS)),
        ),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn splice256(words: __m256i, lane: usize, others: __m256i) -> __m256i {
    let ordinals = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(lane as i32), ordinals);
    _mm256_blendv_epi8(others, words, before)
}

/// Which byte of 16 comes where.
#[repr(align(32))]
struct Order([u8; 32]);

static ROTATE_8: Order = Order(twice([
    3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
]));
static ROTATE_16: Order = Order(twice([
    2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
]));

const fn twice(half: [u8; 16]) -> [u8; 32] {
    let mut both = [0; 32];
    let mut i = 0;
    while i < both.len() {
        both[i] = half[i % half.len()];
        i += 1;
    }
    both
}

/// Where the compiler sees the order it makes up to twice as many shuffles of these, which costs a
/// tenth of ChaCha20; so it does not.
#[inline]
#[target_feature(enable = "avx2")]
fn shuffle256(words: __m256i, order: &'static Order) -> __m256i {
    let shuffled;
    // SAFETY: the instruction reads the 32 bytes at the reference, which are aligned.
    unsafe {
        asm!(
            "vpshufb {shuffled}, {words}, ymmword ptr [{order}]",
            shuffled = lateout(ymm_reg) shuffled,
            words = in(ymm_reg) words,
            order = in(reg) order.0.as_ptr(),
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    shuffled
}

/// Shifts take constants of another type here, which a constant vector becomes.
#[inline]
#[target_feature(enable = "avx512f")]
fn shl512<const BITS: i32>(limbs: __m512i) -> __m512i {
    _mm512_sllv_epi64(limbs, _mm512_set1_epi64(i64::from(BITS)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn shr512<const BITS: i32>(limbs: __m512i) -> __m512i {
    _mm512_srlv_epi64(limbs, _mm512_set1_epi64(i64::from(BITS)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen256(words: __m256i) -> [__m256i; 2] {
    [
        _mm256_cvtepu32_epi64(_mm256_castsi256_si128(words)),
        _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<1>(words)),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen512(words: __m512i) -> [__m512i; 2] {
    [
        _mm512_cvtepu32_epi64(_mm512_castsi512_si256(words)),
        _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<1>(words)),
    ]
}

#[inline]
#[target_feature(enable = "sse2")]
fn load128(piece: &[u8; PIECE_LEN]) -> __m128i {
    // SAFETY: 16 bytes are at the reference.
    unsafe { _mm_loadu_si128(piece.as_ptr().cast()) }
}

/// The low and the high halves of pieces, in order of the pieces.
#[inline]
#[target_feature(enable = "avx2")]
fn gather256([a, b, c, d]: [&[u8; PIECE_LEN]; 4]) -> [Limbs256; 2] {
    let even = _mm256_set_m128i(load128(c), load128(a));
    let odd = _mm256_set_m128i(load128(d), load128(b));
    [
        Limbs256(_mm256_unpacklo_epi64(even, odd)),
        Limbs256(_mm256_unpackhi_epi64(even, odd)),
    ]
}

/// As [`gather256`].
#[inline]
#[target_feature(enable = "avx512f")]
fn gather512(
    [a, b, c, d]: [&[u8; PIECE_LEN]; 4],
    [e, f, g, h]: [&[u8; PIECE_LEN]; 4],
) -> [Limbs512; 2] {
    let even = join512(
        _mm256_set_m128i(load128(c), load128(a)),
        _mm256_set_m128i(load128(g), load128(e)),
    );
    let odd = join512(
        _mm256_set_m128i(load128(d), load128(b)),
        _mm256_set_m128i(load128(h), load128(f)),
    );
    [
        Limbs512(_mm512_unpacklo_epi64(even, odd)),
        Limbs512(_mm512_unpackhi_epi64(even, odd)),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn join512(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Turns words around in two steps: four words of four lanes become four words of one lane, and
/// four such quarters become a block. In loops, since a closure is not always inlined into what has the
/// instructions, and each of them is a call then.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave256(words: &[Words256; 16], blocks: &mut Keystream) {
    let (fours, _) = words.as_chunks::<4>();
    let mut turned = [[words[0].0; 4]; 4];
    for (turned, &[w, x, y, z]) in turned.iter_mut().zip(fours) {
        let [w, x, y, z] = [w.0, x.0, y.0, z.0];
        let wx = [_mm256_unpacklo_epi32(w, x), _mm256_unpackhi_epi32(w, x)];
        let yz = [_mm256_unpacklo_epi32(y, z), _mm256_unpackhi_epi32(y, z)];
        // Words of the lanes 0 and 4, 1 and 5, 2 and 6, 3 and 7.
        *turned = [
            _mm256_unpacklo_epi64(wx[0], yz[0]),
            _mm256_unpackhi_epi64(wx[0], yz[0]),
            _mm256_unpacklo_epi64(wx[1], yz[1]),
            _mm256_unpackhi_epi64(wx[1], yz[1]),
        ];
    }
    let [a, b, c, d] = turned;
    for i in 0..4 {
        let lower = [
            _mm256_permute2x128_si256::<0x20>(a[i], b[i]),
            _mm256_permute2x128_si256::<0x20>(c[i], d[i]),
        ];
        let upper = [
            _mm256_permute2x128_si256::<0x31>(a[i], b[i]),
            _mm256_permute2x128_si256::<0x31>(c[i], d[i]),
        ];
        store256(lower, &mut blocks.0[i]);
        store256(upper, &mut blocks.0[i + 4]);
    }
}

/// As [`interleave256`].
#[inline]
#[target_feature(enable = "avx512f")]
fn interleave512(words: &[Words512; 16], blocks: &mut Keystream) {
    let (fours, _) = words.as_chunks::<4>();
    let mut turned = [[words[0].0; 4]; 4];
    for (turned, &[w, x, y, z]) in turned.iter_mut().zip(fours) {
        let [w, x, y, z] = [w.0, x.0, y.0, z.0];
        let wx = [_mm512_unpacklo_epi32(w, x), _mm512_unpackhi_epi32(w, x)];
        let yz = [_mm512_unpacklo_epi32(y, z), _mm512_unpackhi_epi32(y, z)];
        // Words of the lanes 0, 4, 8 and 12; 1, 5, 9 and 13; and so on.
        *turned = [
            _mm512_unpacklo_epi64(wx[0], yz[0]),
            _mm512_unpackhi_epi64(wx[0], yz[0]),
            _mm512_unpacklo_epi64(wx[1], yz[1]),
            _mm512_unpackhi_epi64(wx[1], yz[1]),
        ];
    }
    let [a, b, c, d] = turned;
    for i in 0..4 {
        // Quarters of the first two lanes, and of the last two.
        let ab = [
            _mm512_shuffle_i32x4::<0x44>(a[i], b[i]),
            _mm512_shuffle_i32x4::<0xee>(a[i], b[i]),
        ];
        let cd = [
            _mm512_shuffle_i32x4::<0x44>(c[i], d[i]),
            _mm512_shuffle_i32x4::<0xee>(c[i], d[i]),
        ];
        for half in 0..2 {
            let even = _mm512_shuffle_i32x4::<0x88>(ab[half], cd[half]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(ab[half], cd[half]);
            store512(even, &mut blocks.0[i + 8 * half]);
            store512(odd, &mut blocks.0[i + 8 * half + 4]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store256(halves: [__m256i; 2], block: &mut [u8; BLOCK_LEN]) {
    let (blocks, _) = block.as_chunks_mut::<32>();
    for (half, block) in halves.into_iter().zip(blocks) {
        // SAFETY: 32 bytes are at the reference.
        unsafe { _mm256_storeu_si256(block.as_mut_ptr().cast(), half) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store512(value: __m512i, block: &mut [u8; BLOCK_LEN]) {
    // SAFETY: 64 bytes are at the reference.
    unsafe { _mm512_storeu_si512(block.as_mut_ptr().cast(), value) };
}
