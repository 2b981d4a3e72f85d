//! Hosts in namespaces for the tests of this package, and the programs that run on them.
//!
//! A [`Host`] has a network, a mount and a process namespace of its own, and an empty `/run`, so that
//! each has its own `/var/run/wireguard` and everything on it dies with it. Nothing of it has a name
//! outside, so nothing can be left behind, not even by a test that is killed.
//!
//! The tests need root, `ip`, `unshare`, `nsenter`, `ping`, `wg` and `wg-quick`.

mod host;
mod pair;
mod programs;
mod tunnel;
mod wiretap;

pub use host::{Host, Killed, Run, connect, connect_as, patiently};
pub use pair::Pair;
pub use programs::{boringtun, warren_wg, wireguard_go};
pub use tunnel::{Outer, Pings, Program, Tunnel};
pub use wiretap::{Seen, Wiretap};
