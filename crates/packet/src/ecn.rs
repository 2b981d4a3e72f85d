//! Congestion marks between inner and outer header, as RFC 6040 says.
//!
//! Only the two bits of the mark cross the border; the rest of the outer byte tells nothing of
//! the inner one.

use thiserror::Error;

use crate::Ecn;
use crate::checksum;
use crate::ip::{V4_HEADER, V6_HEADER, be16, put16};

/// The packet met congestion, and its transport cannot be told otherwise: drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("congestion was marked on a packet whose transport knows no marks")]
pub struct Congested;

/// The outer mark of a packet with the inner mark `inner`: the same (RFC 6040, 4.1, normal mode).
pub const fn encapsulate(inner: Ecn) -> Ecn {
    inner
}

/// The mark with which a packet goes on (RFC 6040, 4.2, figure 4).
pub const fn decapsulate(inner: Ecn, outer: Ecn) -> Result<Ecn, Congested> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => Err(Congested),
        (Ecn::NotEct, _) => Ok(Ecn::NotEct),
        (Ecn::Ce, _) | (_, Ecn::Ce) => Ok(Ecn::Ce),
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ect1) => Ok(Ecn::Ect1),
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ect0 | Ecn::NotEct) => Ok(inner),
    }
}

/// Bring the outer mark into an inner packet, its IPv4 header checksum included.
///
/// What is too short for an IP header is left as it is. A checksum that was wrong stays wrong.
pub fn apply(packet: &mut [u8], outer: Ecn) -> Result<(), Congested> {
    if outer == Ecn::NotEct {
        return Ok(());
    }
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= V4_HEADER => {
            let inner = Ecn::from_tos(packet[1]);
            let marked = decapsulate(inner, outer)?;
            if marked != inner {
                let old = be16(packet, 0);
                packet[1] = packet[1] & !3 | marked.bits();
                let sum = checksum::replace(be16(packet, 10), old, be16(packet, 0));
                put16(packet, 10, sum);
            }
        }
        Some(6) if packet.len() >= V6_HEADER => {
            let inner = Ecn::from_tos(packet[1] >> 4);
            let marked = decapsulate(inner, outer)?;
            packet[1] = packet[1] & !0x30 | marked.bits() << 4;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{Sum, header_is_valid};

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    /// RFC 6040, figure 4: a row for each inner mark, a column for each outer one, both in the
    /// order of `ALL`.
    const TABLE: [[Option<Ecn>; 4]; 4] = [
        [
            Some(Ecn::NotEct),
            Some(Ecn::NotEct),
            Some(Ecn::NotEct),
            None,
        ],
        [
            Some(Ecn::Ect0),
            Some(Ecn::Ect0),
            Some(Ecn::Ect1),
            Some(Ecn::Ce),
        ],
        [
            Some(Ecn::Ect1),
            Some(Ecn::Ect1),
            Some(Ecn::Ect1),
            Some(Ecn::Ce),
        ],
        [Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce)],
    ];

    #[test]
    fn marks_leave_the_tunnel_as_the_table_of_rfc_6040_says() {
        for (inner, row) in ALL.into_iter().zip(TABLE) {
            for (outer, expected) in ALL.into_iter().zip(row) {
                assert_eq!(
                    decapsulate(inner, outer).ok(),
                    expected,
                    "{inner:?} {outer:?}"
                );
            }
        }
    }

    #[test]
    fn marks_enter_the_tunnel_unchanged() {
        for inner in ALL {
            assert_eq!(encapsulate(inner), inner);
        }
    }

    #[test]
    fn a_mark_brought_into_a_packet_changes_the_mark_and_the_checksum_only() {
        for dscp in [0u8, 0b1011_1000, 0xfc] {
            for (inner, row) in ALL.into_iter().zip(TABLE) {
                for (outer, expected) in ALL.into_iter().zip(row) {
                    let mut v4 = vec![0x45, dscp | inner.bits(), 0, 20, 1, 2, 0x40, 0, 64, 17];
                    v4.extend_from_slice(&[0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
                    let sum = Sum::of(&v4).checksum();
                    put16(&mut v4, 10, sum);
                    let before = v4.clone();
                    assert_eq!(apply(&mut v4, outer).is_ok(), expected.is_some());
                    assert!(header_is_valid(&v4));
                    assert_eq!(v4[1], dscp | expected.unwrap_or(inner).bits());
                    assert_eq!(v4[2..10], before[2..10]);
                    assert_eq!(v4[12..], before[12..]);

                    let class = dscp | inner.bits();
                    let mut v6 = [7; 40];
                    v6[0] = 0x60 | class >> 4;
                    v6[1] = class << 4 | 0x0a;
                    let before = v6;
                    assert_eq!(apply(&mut v6, outer).is_ok(), expected.is_some());
                    let class = dscp | expected.unwrap_or(inner).bits();
                    assert_eq!(v6[..2], [0x60 | class >> 4, class << 4 | 0x0a]);
                    assert_eq!(v6[2..], before[2..]);
                }
            }
        }
    }

    #[test]
    fn a_wrong_header_checksum_is_not_repaired() {
        let mut v4 = [0; 20];
        v4[0] = 0x45;
        v4[1] = Ecn::Ect0.bits();
        v4[10] = 0x12;
        assert_eq!(apply(&mut v4, Ecn::Ce), Ok(()));
        assert_eq!(v4[1], Ecn::Ce.bits());
        assert!(!header_is_valid(&v4));
    }

    #[test]
    fn what_is_too_short_for_a_header_is_left_alone() {
        for len in 0..40 {
            for first in [0x45, 0x60, 0x00, 0xff] {
                let mut bytes = vec![first; len];
                assert_eq!(apply(&mut bytes, Ecn::Ect1), Ok(()));
                if first != 0x45 || len < 20 {
                    assert_eq!(bytes, vec![first; len]);
                }
            }
        }
    }
}
