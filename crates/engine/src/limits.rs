//! The bounds of everything that the network or a program of this host can make grow.

use std::time::Duration;

/// Bytes that all peers together may hold staged. What comes beyond is dropped and counted.
pub(crate) const STAGED_BYTES: usize = 32 << 20;

/// Handshake messages that may wait for the control thread. What comes beyond is dropped.
pub(crate) const HANDSHAKE_QUEUE: usize = 4096;
/// Of these, places that only messages from a known peer's endpoint may take.
pub(crate) const HANDSHAKE_QUEUE_KNOWN: usize = 1024;
/// Handshake messages served between two looks at the timers.
pub(crate) const HANDSHAKES_PER_TURN: usize = 16;
/// Peers looked after between two looks at the handshake messages, of those that ask for it and of
/// those whose deadline has come. Each may be worth a handshake of our own.
pub(crate) const PEERS_PER_TURN: usize = 32;

/// ICMP errors that may be sent at once for packets that have nowhere to go.
pub(crate) const ICMP_BURST: u32 = 50;
/// Time in which one more may be sent.
pub(crate) const ICMP_INTERVAL: Duration = Duration::from_millis(10);
