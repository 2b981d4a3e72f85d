//! Two nodes, an underlay with a sniffer and a stranger on it, and a network behind one node.
//!
//! ```text
//!   lan ──── a ──┐                         mesh          10.1.0.0/16, fd00:1::/32
//!                ├── underlay ── (default   a, and lan   10.1.0.1, 10.1.1.0/24, fd00:1:1::/64
//!            b ──┤   gateway)               b            10.1.0.2, 10.1.2.0/24, fd00:1:2::/64
//!     stranger ──┘                         underlay      192.0.2.0/24, 2001:db8::/64
//! ```
//!
//! The underlay routes the mesh's prefixes to their nodes as well, and all nodes forward. So without a fence
//! everything would arrive in the clear; a test shows that it does.

mod namespace;
mod node;
mod relay;
mod sniffer;
mod sys;
mod traffic;

pub use namespace::{Namespace, Topology};
pub use node::{Daemon, FWMARK, INTERFACE, Node, config_of, observe, state_directory};
pub use relay::{RELAY_PORT, Relay};
pub use sniffer::{Overlaid, Sniffed, Sniffer};
pub use sys::open_tun;
pub use traffic::{Arrivals, Flood, LISTEN_PORT};
pub use warren_tests_lab::patiently;
