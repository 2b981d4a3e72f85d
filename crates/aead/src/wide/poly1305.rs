//! Poly1305 (RFC 8439, section 2.5) with a message in each lane, in two forms of arithmetic.
//!
//! Both keep a number below about 2^130 as limbs in lanes of 64 bits, with room above each limb for
//! the sums of products. Bounds are given as limbs enter and leave a step.

use super::lanes::{Limbs, MulAdd52, Processor};

/// Length of what is absorbed at once, in bytes.
pub(crate) const PIECE_LEN: usize = 16;

/// A Poly1305 in each lane, of one-time keys `r` and `s`.
pub(crate) trait Mac<P: Processor>: Copy {
    /// What [`Self::absorb_four`] needs, once for a key.
    type Powers;

    /// `r`, not clamped yet, and `s`, each as its low and its high half.
    fn new(processor: P, r: [P::Limbs; 2], s: [P::Limbs; 2]) -> Self;

    /// Absorbs a piece, given as its low and its high half, and as `top` what is above them: 1 for
    /// a piece of a message. A piece of zeros without a top changes nothing before a message.
    fn absorb(&mut self, piece: [P::Limbs; 2], top: P::Limbs);

    fn powers(&self) -> Self::Powers;

    /// Absorbs four pieces of a message, one after the other.
    fn absorb_four(&mut self, powers: &Self::Powers, pieces: [[P::Limbs; 2]; 4]);

    /// The tag, as its low and its high half.
    fn finish(self) -> [P::Limbs; 2];
}

/// Section 2.5: some bits of `r` are clear.
#[inline(always)]
fn clamp<P: Processor>(processor: P, [low, high]: [P::Limbs; 2]) -> [P::Limbs; 2] {
    [
        low & processor.limb(0x0fff_fffc_0fff_ffff),
        high & processor.limb(0x0fff_fffc_0fff_fffc),
    ]
}

/// Five limbs of 26 bits, for processors that multiply 32 by 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Radix26<P: Processor> {
    processor: P,
    /// The sum so far: limbs below 2^26 + 2^12.
    h: [P::Limbs; 5],
    r: [P::Limbs; 5],
    /// 5 r, but for the lowest limb: what is carried out of 2^130 comes in again times 5.
    r5: [P::Limbs; 4],
    s: [P::Limbs; 5],
}

impl<P: Processor> Radix26<P> {
    const MASK: u64 = (1 << 26) - 1;

    #[inline(always)]
    fn limbs(processor: P, [low, high]: [P::Limbs; 2]) -> [P::Limbs; 5] {
        let mask = processor.limb(Self::MASK);
        [
            low & mask,
            low.shr::<26>() & mask,
            (low.shr::<52>() | high.shl::<12>()) & mask,
            high.shr::<14>() & mask,
            high.shr::<40>(),
        ]
    }

    /// One chain of carries, from the lowest limb to what leaves the highest.
    #[inline(always)]
    fn carry(&self, [h0, h1, h2, h3, h4]: [P::Limbs; 5]) -> ([P::Limbs; 5], P::Limbs) {
        let mask = self.processor.limb(Self::MASK);
        let (h1, h0) = (h1 + h0.shr::<26>(), h0 & mask);
        let (h2, h1) = (h2 + h1.shr::<26>(), h1 & mask);
        let (h3, h2) = (h3 + h2.shr::<26>(), h2 & mask);
        let (h4, h3) = (h4 + h3.shr::<26>(), h3 & mask);
        ([h0, h1, h2, h3, h4 & mask], h4.shr::<26>())
    }
}

impl<P: Processor> Mac<P> for Radix26<P> {
    /// None: what a reduction costs is less beside 25 products.
    type Powers = ();

    #[inline(always)]
    fn new(processor: P, r: [P::Limbs; 2], s: [P::Limbs; 2]) -> Self {
        let r = Self::limbs(processor, clamp(processor, r));
        let [_, r1, r2, r3, r4] = r;
        Self {
            processor,
            h: [processor.limb(0); 5],
            r,
            r5: [times5(r1), times5(r2), times5(r3), times5(r4)],
            s: Self::limbs(processor, s),
        }
    }

    #[inline(always)]
    fn absorb(&mut self, piece: [P::Limbs; 2], top: P::Limbs) {
        let [p0, p1, p2, p3, p4] = Self::limbs(self.processor, piece);
        let [h0, h1, h2, h3, h4] = self.h;
        // Below 2^27 + 2^12.
        let h0 = h0 + p0;
        let h1 = h1 + p1;
        let h2 = h2 + p2;
        let h3 = h3 + p3;
        let h4 = h4 + (p4 | top.shl::<24>());

        let [r0, r1, r2, r3, r4] = self.r;
        let [s1, s2, s3, s4] = self.r5;
        // Five products below (2^27 + 2^12) * 5 * 2^26 each: sums below 2^58.
        let d0 = h0.mul32(r0) + h1.mul32(s4) + h2.mul32(s3) + h3.mul32(s2) + h4.mul32(s1);
        let d1 = h0.mul32(r1) + h1.mul32(r0) + h2.mul32(s4) + h3.mul32(s3) + h4.mul32(s2);
        let d2 = h0.mul32(r2) + h1.mul32(r1) + h2.mul32(r0) + h3.mul32(s4) + h4.mul32(s3);
        let d3 = h0.mul32(r3) + h1.mul32(r2) + h2.mul32(r1) + h3.mul32(r0) + h4.mul32(s4);
        let d4 = h0.mul32(r4) + h1.mul32(r3) + h2.mul32(r2) + h3.mul32(r1) + h4.mul32(r0);

        // Two chains of carries beside each other, 0 1 2 3 and 3 4 0 1.
        let mask = self.processor.limb(Self::MASK);
        let (d1, d0) = (d1 + d0.shr::<26>(), d0 & mask);
        let (d4, d3) = (d4 + d3.shr::<26>(), d3 & mask);
        let (d2, d1) = (d2 + d1.shr::<26>(), d1 & mask);
        // The carry is below 2^33, and five times it below 2^36.
        let (d0, d4) = (d0 + times5(d4.shr::<26>()), d4 & mask);
        let (d3, d2) = (d3 + d2.shr::<26>(), d2 & mask);
        let (d1, d0) = (d1 + d0.shr::<26>(), d0 & mask);
        let (d4, d3) = (d4 + d3.shr::<26>(), d3 & mask);
        self.h = [d0, d1, d2, d3, d4];
    }

    #[inline(always)]
    fn powers(&self) {}

    #[inline(always)]
    fn absorb_four(&mut self, (): &(), pieces: [[P::Limbs; 2]; 4]) {
        let top = self.processor.limb(1);
        for piece in pieces {
            self.absorb(piece, top);
        }
    }

    #[inline(always)]
    fn finish(self) -> [P::Limbs; 2] {
        // Twice, since the first may carry out of 2^130; what is left is below 2^130.
        let (h, out) = self.carry(self.h);
        let [h0, h1, h2, h3, h4] = h;
        let ([h0, h1, h2, h3, h4], _) = self.carry([h0 + times5(out), h1, h2, h3, h4]);
        // It is 2^130 - 5 or more if adding 5 carries out, and those 5 with the carry left out are
        // the difference.
        let five = self.processor.limb(5);
        let (_, out) = self.carry([h0 + five, h1, h2, h3, h4]);
        let [s0, s1, s2, s3, s4] = self.s;
        let sum = [h0 + times5(out) + s0, h1 + s1, h2 + s2, h3 + s3, h4 + s4];
        let ([h0, h1, h2, h3, h4], _) = self.carry(sum);
        [
            h0 | h1.shl::<26>() | h2.shl::<52>(),
            h2.shr::<12>() | h3.shl::<14>() | h4.shl::<40>(),
        ]
    }
}

/// Three limbs of 44, 44 and 42 bits, for processors that multiply 52 by 52 bits.
#[derive(Clone, Copy)]
pub(crate) struct Radix44<P: Processor> {
    processor: P,
    /// The sum so far: limbs below 2^44, 2^44 + 2^9 and 2^42.
    h: [P::Limbs; 3],
    r: Factor<P::Limbs>,
    s: [P::Limbs; 3],
}

/// What is multiplied by: a number with limbs as a sum has them.
#[derive(Clone, Copy)]
pub(crate) struct Factor<L> {
    r: [L; 3],
    /// 20 r, but for the lowest limb: what is carried out of 2^132 comes in again times 4 times 5. Below
    /// 2^49.
    r20: [L; 2],
}

impl<L: Limbs> Factor<L> {
    #[inline(always)]
    fn new(r: [L; 3]) -> Self {
        let [_, r1, r2] = r;
        Self {
            r,
            r20: [times5(r1).shl::<2>(), times5(r2).shl::<2>()],
        }
    }
}

/// Sums of the low and of the high halves of products, by limb.
#[derive(Clone, Copy)]
struct Products<L> {
    low: [L; 3],
    high: [L; 3],
}

impl<L: MulAdd52> Products<L> {
    /// Adds the product of a number with limbs below 2^45, 2^45 + 2^9 and 2^43, within the 52 bits that
    /// are multiplied. To each sum come three low halves below 2^52 and three high ones, which are below 2^41
    /// together, and for the highest limb below 2^38.
    #[inline(always)]
    fn add(&mut self, [h0, h1, h2]: [L; 3], factor: &Factor<L>) {
        let [r0, r1, r2] = factor.r;
        let [s1, s2] = factor.r20;
        let rows = [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]];
        for ((low, high), [a, b, c]) in self.low.iter_mut().zip(&mut self.high).zip(rows) {
            *low = low.add_low52(h0, a).add_low52(h1, b).add_low52(h2, c);
            *high = high.add_high52(h0, a).add_high52(h1, b).add_high52(h2, c);
        }
    }
}

impl<P: Processor> Radix44<P>
where
    P::Limbs: MulAdd52,
{
    const MASK44: u64 = (1 << 44) - 1;
    const MASK42: u64 = (1 << 42) - 1;

    #[inline(always)]
    fn limbs(processor: P, [low, high]: [P::Limbs; 2]) -> [P::Limbs; 3] {
        let mask = processor.limb(Self::MASK44);
        [
            low & mask,
            (low.shr::<44>() | high.shl::<20>()) & mask,
            high.shr::<24>(),
        ]
    }

    /// A piece with what is above it.
    #[inline(always)]
    fn topped(processor: P, piece: [P::Limbs; 2], top: P::Limbs) -> [P::Limbs; 3] {
        let [p0, p1, p2] = Self::limbs(processor, piece);
        [p0, p1, p2 | top.shl::<40>()]
    }

    #[inline(always)]
    fn zero(processor: P) -> Products<P::Limbs> {
        let zeros = [processor.limb(0); 3];
        Products {
            low: zeros,
            high: zeros,
        }
    }

    /// The sum of at most four products, with limbs as a sum has them.
    #[inline(always)]
    fn reduce(processor: P, products: Products<P::Limbs>) -> [P::Limbs; 3] {
        // Sums below 2^56 of low halves, and of high ones below 2^43, the highest limb's below 2^40.
        let Products {
            low: [l0, l1, l2],
            high: [u0, u1, u2],
        } = products;
        // A high half is worth 2^52, which is 2^8 times the next limb.
        let mask44 = processor.limb(Self::MASK44);
        let mask42 = processor.limb(Self::MASK42);
        let (h0, l1) = (l0 & mask44, l1 + l0.shr::<44>() + u0.shl::<8>());
        let (h1, l2) = (l1 & mask44, l2 + l1.shr::<44>() + u1.shl::<8>());
        // Above the highest limb of 42 bits it is 2^10 times what comes in again times 5: below 2^51.
        let (h2, out) = (l2 & mask42, l2.shr::<42>() + u2.shl::<10>());
        let h0 = h0 + times5(out);
        // The carry is below 2^9.
        let (h0, h1) = (h0 & mask44, h1 + h0.shr::<44>());
        [h0, h1, h2]
    }

    #[inline(always)]
    fn product(processor: P, number: [P::Limbs; 3], factor: &Factor<P::Limbs>) -> [P::Limbs; 3] {
        let mut products = Self::zero(processor);
        products.add(number, factor);
        Self::reduce(processor, products)
    }

    #[inline(always)]
    fn plus(self, [p0, p1, p2]: [P::Limbs; 3]) -> [P::Limbs; 3] {
        let [h0, h1, h2] = self.h;
        [h0 + p0, h1 + p1, h2 + p2]
    }

    /// One chain of carries, from the lowest limb to what leaves the highest.
    #[inline(always)]
    fn carry(&self, [h0, h1, h2]: [P::Limbs; 3]) -> ([P::Limbs; 3], P::Limbs) {
        let mask44 = self.processor.limb(Self::MASK44);
        let mask42 = self.processor.limb(Self::MASK42);
        let (h1, h0) = (h1 + h0.shr::<44>(), h0 & mask44);
        let (h2, h1) = (h2 + h1.shr::<44>(), h1 & mask44);
        ([h0, h1, h2 & mask42], h2.shr::<42>())
    }
}

impl<P: Processor> Mac<P> for Radix44<P>
where
    P::Limbs: MulAdd52,
{
    /// From `r` to its fourth power.
    type Powers = [Factor<P::Limbs>; 4];

    #[inline(always)]
    fn new(processor: P, r: [P::Limbs; 2], s: [P::Limbs; 2]) -> Self {
        Self {
            processor,
            h: [processor.limb(0); 3],
            r: Factor::new(Self::limbs(processor, clamp(processor, r))),
            s: Self::limbs(processor, s),
        }
    }

    #[inline(always)]
    fn absorb(&mut self, piece: [P::Limbs; 2], top: P::Limbs) {
        let piece = Self::topped(self.processor, piece, top);
        self.h = Self::product(self.processor, self.plus(piece), &self.r);
    }

    #[inline(always)]
    fn powers(&self) -> Self::Powers {
        let mut powers = [self.r; 4];
        for i in 1..powers.len() {
            let power = Self::product(self.processor, powers[i - 1].r, &self.r);
            powers[i] = Factor::new(power);
        }
        powers
    }

    /// Their products with four powers have one reduction together.
    #[inline(always)]
    fn absorb_four(&mut self, powers: &Self::Powers, pieces: [[P::Limbs; 2]; 4]) {
        let top = self.processor.limb(1);
        let mut products = Self::zero(self.processor);
        for (i, (piece, power)) in pieces.into_iter().zip(powers.iter().rev()).enumerate() {
            let piece = Self::topped(self.processor, piece, top);
            let number = if i == 0 { self.plus(piece) } else { piece };
            products.add(number, power);
        }
        self.h = Self::reduce(self.processor, products);
    }

    #[inline(always)]
    fn finish(self) -> [P::Limbs; 2] {
        // As in radix 2^26.
        let ([h0, h1, h2], out) = self.carry(self.h);
        let ([h0, h1, h2], _) = self.carry([h0 + times5(out), h1, h2]);
        let (_, out) = self.carry([h0 + self.processor.limb(5), h1, h2]);
        let [s0, s1, s2] = self.s;
        let ([h0, h1, h2], _) = self.carry([h0 + times5(out) + s0, h1 + s1, h2 + s2]);
        [h0 | h1.shl::<44>(), h1.shr::<20>() | h2.shl::<24>()]
    }
}

#[inline(always)]
fn times5<L: Limbs>(limb: L) -> L {
    limb + limb.shl::<2>()
}
