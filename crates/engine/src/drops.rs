//! Every way in which a packet ends here, by name.
//!
//! A drop is counted in the batch's own [`Tally`] and added to the shared [`Drops`] once per
//! batch, so that a flood does not make the workers fight over a cache line per packet.

use crate::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a packet or datagram went no further.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order in which reports list them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name under which status and metrics show the reason.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

reasons! {
    /// Out: not an IP packet, or one whose headers contradict its length.
    OutMalformed => "out_malformed",
    /// Out: no peer's allowed IPs hold the destination.
    OutNoPeer => "out_no_peer",
    /// Out: the peer has neither a configured endpoint nor been heard from.
    OutNoEndpoint => "out_no_endpoint",
    /// Out: staged for a session that never came, or pushed out by later packets.
    OutStagedOverflow => "out_staged_overflow",
    /// Out: staged, and the peer did not answer for 90 s.
    OutStagedExpired => "out_staged_expired",
    /// Out: the kernel would not take the datagram in time.
    OutSocketFull => "out_socket_full",
    /// Out: the host refused to send (no route, a firewall, an interface that is down).
    OutSocketRefused => "out_socket_refused",
    /// Out: no socket of the endpoint's family is open.
    OutNoSocket => "out_no_socket",
    /// In: no WireGuard message, or one of the wrong length.
    InMalformed => "in_malformed",
    /// In: a datagram that was larger than the buffer for it.
    InTruncated => "in_truncated",
    /// In: a handshake message whose first authenticator is wrong, or no key is configured.
    InBadMac1 => "in_bad_mac1",
    /// In: a handshake message beyond what its source may send.
    InSourceLimited => "in_source_limited",
    /// In: a handshake message without a valid cookie while under load; a cookie was sent.
    InCookieDemanded => "in_cookie_demanded",
    /// In: a handshake message that the full queue had no place for.
    InHandshakeQueueFull => "in_handshake_queue_full",
    /// In: a handshake message that failed authentication, was replayed, or came too soon.
    InHandshakeRefused => "in_handshake_refused",
    /// In: the receiver index belongs to no session, and to no handshake that is under way.
    InUnknownReceiver => "in_unknown_receiver",
    /// In: the authentication tag is wrong.
    InForged => "in_forged",
    /// In: the counter was seen before, or is older than the replay window.
    InReplayed => "in_replayed",
    /// In: the session is too old or used up.
    InSessionExpired => "in_session_expired",
    /// In: what was sealed is no IP packet, or claims to be longer than it is.
    InInnerMalformed => "in_inner_malformed",
    /// In: the inner source address is not this peer's.
    InWrongSource => "in_wrong_source",
    /// In: the inner destination is neither this node's nor within its prefixes.
    InNotForUs => "in_not_for_us",
    /// In: marked "congestion experienced" on the way though the sender cannot understand it
    /// (RFC 6040, section 4.2).
    InEcn => "in_ecn",
    /// In: too much waited to be read, and this packet's sender, which understands no marks, was told
    /// by its loss.
    InStandingQueue => "in_standing_queue",
    /// In: the TUN interface did not take the packet.
    InTunRefused => "in_tun_refused",
}

const COUNT: usize = Reason::ALL.len();

/// The drops of one batch.
#[derive(Debug)]
pub(crate) struct Tally([u32; COUNT]);

/// All drops so far, shared by the workers.
#[derive(Debug)]
pub(crate) struct Drops([AtomicU64; COUNT]);

impl Tally {
    pub(crate) const fn new() -> Self {
        Self([0; COUNT])
    }

    pub(crate) fn count(&mut self, reason: Reason) {
        self.add(reason, 1);
    }

    pub(crate) fn add(&mut self, reason: Reason, packets: usize) {
        let slot = &mut self.0[reason as usize];
        *slot = slot.saturating_add(u32::try_from(packets).unwrap_or(u32::MAX));
    }
}

impl Drops {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    pub(crate) fn count(&self, reason: Reason, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// Adds a batch's drops and empties the tally.
    pub(crate) fn absorb(&self, tally: &mut Tally) {
        for (total, count) in self.0.iter().zip(&mut tally.0) {
            if *count != 0 {
                total.fetch_add(u64::from(std::mem::take(count)), Ordering::Relaxed);
            }
        }
    }

    /// Every reason that occurred, with its count, in the order of [`Reason::ALL`].
    pub(crate) fn report(&self) -> Vec<(Reason, u64)> {
        Reason::ALL
            .iter()
            .map(|&reason| (reason, self.0[reason as usize].load(Ordering::Relaxed)))
            .filter(|&(_, count)| count != 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_drop_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), COUNT);
    }

    #[test]
    fn a_batch_is_added_once() {
        let drops = Drops::new();
        let mut tally = Tally::new();
        tally.add(Reason::InForged, 3);
        tally.count(Reason::OutNoPeer);
        drops.absorb(&mut tally);
        drops.absorb(&mut tally);
        assert_eq!(
            drops.report(),
            [(Reason::OutNoPeer, 1), (Reason::InForged, 3)]
        );
    }
}
