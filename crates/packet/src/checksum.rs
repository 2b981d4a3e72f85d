//! The internet checksum (RFC 1071), fast enough to run over every byte.
//!
//! The one's complement sum does not care about byte order as long as it is stored as it was
//! loaded, so everything is summed in the host's order and eight bytes at a time. Written without
//! intrinsics: the loop below becomes vector adds on every target (SSE2 suffices for memory
//! speed, hence there is no `simd.rs`).

/// A one's complement sum in the making.
///
/// Slices are added as if each began at an even offset, which headers and payloads of IP do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// The sum of `data`.
    pub fn of(data: &[u8]) -> Self {
        const LANES: usize = 8;
        let mut low = [0u64; LANES];
        let mut high = [0u64; LANES];
        let (blocks, rest) = data.as_chunks::<{ LANES * 8 }>();
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for lane in 0..LANES {
                // Halves in separate lanes cannot overflow below 2^32 blocks.
                let word = u64::from_ne_bytes(words[lane]);
                low[lane] += word & 0xffff_ffff;
                high[lane] += word >> 32;
            }
        }
        let (words, tail) = rest.as_chunks::<8>();
        let mut sum = 0;
        for word in words {
            let word = u64::from_ne_bytes(*word);
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        if !tail.is_empty() {
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            let word = u64::from_ne_bytes(word);
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        for lane in 0..LANES {
            sum += low[lane] + high[lane];
        }
        Self(sum)
    }

    /// This and the sum of `data`.
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Self {
        self.plus(Self::of(data))
    }

    /// This and another sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        // Folded to below 2^33 first, so that no number of additions overflows.
        Self(fold_once(self.0) + fold_once(other.0))
    }

    /// This and one 16-bit number of a header.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(fold_once(self.0) + u64::from(word.to_be()))
    }

    /// This without a 16-bit number that was added before.
    #[must_use]
    pub fn without(self, word: u16) -> Self {
        self.word(!word)
    }

    /// The sum as a header's 16-bit number, not complemented.
    ///
    /// This is what the checksum field of a packet holds that the kernel leaves to be finished.
    pub fn folded(self) -> u16 {
        let sum = fold_once(self.0);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum: the complement of the sum.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The checksum of UDP, where 0 would mean that there is none (RFC 768).
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

fn fold_once(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// The sum of the pseudo-header (RFC 793, RFC 8200) without its length: addresses and protocol.
///
/// `addresses` is source and destination as they stand in the IP header.
pub fn pseudo(addresses: &[u8], protocol: u8) -> Sum {
    Sum::of(addresses).word(u16::from(protocol))
}

/// What `checksum` becomes when one of the numbers it covers changes (RFC 1624, equation 3).
pub fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::ZERO.word(!checksum).without(old).word(new).checksum()
}

/// Whether `header`, which contains its checksum, sums up as it must.
pub fn header_is_valid(header: &[u8]) -> bool {
    Sum::of(header).folded() == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written: two bytes at a time, in network order.
    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in data.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&data).folded(), 0xddf2);
        assert_eq!(Sum::of(&data).checksum(), !0xddf2);
    }

    #[test]
    fn every_length_agrees_with_the_naive_sum() {
        let data: Vec<u8> = (0..700u32).map(|i| (i * 37 + 11) as u8).collect();
        for len in 0..data.len() {
            assert_eq!(Sum::of(&data[..len]).folded(), naive(&data[..len]), "{len}");
        }
        let ones = [0xff; 65535];
        assert_eq!(Sum::of(&ones).folded(), naive(&ones));
    }

    #[test]
    fn sums_do_not_overflow_however_many_are_added() {
        let mut sum = Sum(u64::MAX);
        for _ in 0..100 {
            sum = sum.plus(Sum(u64::MAX)).word(0xffff);
        }
        assert_eq!(sum.folded(), 0xffff);
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!(Sum::ZERO.word(0xffff).checksum(), 0);
        assert_eq!(Sum::ZERO.word(0xffff).udp_checksum(), 0xffff);
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_whole(data in prop::collection::vec(any::<u8>(), 0..4000), cut in 0..2000usize) {
            let cut = (cut * 2).min(data.len() & !1);
            prop_assert_eq!(Sum::of(&data[..cut]).bytes(&data[cut..]).folded(), naive(&data));
        }

        #[test]
        fn replacing_a_number_equals_summing_anew(mut data in prop::collection::vec(any::<u8>(), 20), at in 0..10usize, new: u16) {
            // A header that is not all zeros, as RFC 1624 has it.
            data[0] |= 0x40;
            let at = at * 2;
            let before = Sum::of(&data).checksum();
            let old = u16::from_be_bytes([data[at], data[at + 1]]);
            data[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assume!(data.iter().any(|byte| *byte != 0));
            prop_assert_eq!(replace(before, old, new), Sum::of(&data).checksum());
        }
    }
}
