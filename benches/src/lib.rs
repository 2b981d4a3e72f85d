//! What the benches in `benches/` share: packets as a TUN delivers them, the ends of a
//! handshake, routers in memory, and large tables of prefixes.
//!
//! `cargo bench -p warren-benches` measures single parts; `benches/compare` measures whole tunnels
//! beside each other.

pub mod ends;
pub mod nodes;
pub mod packets;
pub mod tables;
