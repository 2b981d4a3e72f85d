//! The WireGuard protocol as state machines.
//!
//! Nothing here does I/O, reads a clock, takes a lock or makes up randomness: time, random bytes
//! and messages come in as arguments, and what should happen comes out. Packets of the tunnel are
//! sealed and opened by the caller, with the keys that a [`Session`] holds, many at once and
//! outside of any lock.
//!
//! The path through it:
//!
//! - [`messages::parse`] tells what a datagram is.
//! - [`Identity::verify`], then [`Gate::admit`], decide which handshake messages are worth curve
//!   work; [`noise`] does that work.
//! - [`Peer`] decides everything else: its documentation names a caller's duties.
//! - [`AllowedIps`] says whose a packet is.
//!
//! References are to the paper (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel",
//! NDSS 2017) and to the kernel's driver, `drivers/net/wireguard`, whose words are used.

pub mod allowed_ips;
mod cookie;
mod crypto;
pub mod gate;
mod identity;
pub mod messages;
pub mod noise;
mod peer;
pub mod replay;
mod session;
pub mod time;
mod timers;

use std::time::Duration;

pub use allowed_ips::AllowedIps;
pub use cookie::CookieTicket;
pub use gate::{Admission, Gate, Knock};
pub use identity::{AT_ONCE, Addressed, Identity, LowOrderKey, StaticShared};
pub use noise::{
    AuthenticInitiation, HandshakeError, InFlight, PendingInitiation, open_initiation,
};
pub use peer::{
    Accepted, Action, CookieRefused, CookieState, Endpoint, InitiationTicket, Peer, PeerState,
    Permit, RESTORE_COUNTER_JUMP, Record, Refused, Reservation, ResponseOpener, ResponseTicket,
    SessionState, Stale, TimersState, Verdict,
};
pub use session::Session;
pub use warren_aead::{Forged, Implementation, Key};

/// Age at which an initiator renews a session that it sends with.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Age at which a session is neither sent with nor received with.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Messages after which a session is renewed.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages after which a session is neither sent with nor received with.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Time between two initiations to a peer.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound of what is added at random to whatever leads to an initiation.
pub const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(334);
/// Time after which attempts to reach a silent peer end.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Time within which data that was received is answered, if only by a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two initiations of a peer that are answered: 50 in a second.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// Packets that are staged for a peer at most.
pub const MAX_STAGED_PACKETS: u32 = 128;
/// Bytes that are staged for a peer at most.
pub const MAX_STAGED_BYTES: usize = 256 << 10;
/// How many times in a row those who send are held up by those who send what was staged before.
const MAX_FLUSH_ROUNDS: u8 = 16;
