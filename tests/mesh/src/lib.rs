//! Three nodes with a real `warrend` each, from one mesh file, on one underlay with a wiretap.
//!
//! ```text
//!   a ──┐                           mesh      10.77.0.0/16, fd77::/32
//!   b ──┼── underlay ── (default    a         10.77.0.1, fd77::1, behind it 10.77.1.0/24, fd77:0:1::/48
//!   c ──┤    gateway)               b, c, d   likewise with 2, 3, 4
//!   d ──┘                           underlay  192.0.2.0/24, 2001:db8::/64
//! ```
//!
//! The underlay forwards, and leads the mesh's prefixes to their nodes. So without a fence everything
//! would arrive in the clear; a test shows that it does. Behind a node there is one address, on
//! its loopback.
//!
//! Each host has network and mounts of its own, so that daemons find their sockets at the usual
//! paths without meeting each other. What is here goes with the test, also when that is killed.

mod daemon;
mod host;
mod network;
mod traffic;
mod wiretap;

pub use daemon::{Daemon, SOCKET, log_of, warren, warrend};
pub use host::Host;
pub use network::{Network, Node};
pub use traffic::{Arrivals, Flood, Flow, PORT, TEXT};
pub use warren_tests_lab::{Run, patiently};
pub use wiretap::{Seen, Wiretap, listen};

/// The tunnel's interface, as mesh files have it by default.
pub const INTERFACE: &str = "warren0";
/// The mark of the tunnel's own packets, likewise.
pub const FWMARK: u32 = 0x20;
