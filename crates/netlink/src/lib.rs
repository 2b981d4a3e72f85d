//! Makes the host around a tunnel match its configuration, and keeps it so.
//!
//! The path: [`Host::observe`] asks the kernel what is there ([`Observed`]), [`plan()`] compares that
//! with a [`HostConfig`](warren_config::HostConfig) and yields [`Change`]s in order,
//! [`Host::converge`] makes them, and [`Host::changed`] waits for the kernel to say that
//! something is different. Any event leads to the same function, and where nothing differs
//! nothing is written.
//!
//! What it is there for is the fence (`fence.rs` draws it): what is the mesh's never
//! leaves or enters this host but by the tunnel, also when the daemon is dead, when one half of the
//! fence is torn down, and between boot and start ([`load_fence`]).
//!
//! It touches what is its own and nothing else: one interface, one routing table, rules of one shape
//! around one preference, one nftables table, all named in a file of the state directory ([`Owned`]). Beside all this
//! a [`Tap`] listens, by a table that is gone with it.
//!
//! It never runs another program, opens no TUN, and speaks netlink itself (`wire.rs`, `nft.rs`,
//! `route.rs` say why). There is no async runtime in it but to wait for an event.
//!
//! Left out on purpose: sysctls. Whoever wants a node to forward for what is behind it sets
//! `ip_forward`; a fence does not open.

mod ahead;
mod conflicts;
mod connection;
mod fence;
mod host;
mod nft;
mod observe;
mod owned;
mod plan;
mod route;
mod sys;
mod tap;
mod watch;
mod wire;

#[cfg(test)]
mod tests;

pub use ahead::{Ahead, AnyRule, Deed, ahead};
pub use conflicts::{Conflict, conflicts, faults};
pub use connection::KernelError;
pub use fence::{COUNTERS, table_name};
pub use host::{Host, HostError, LinkState, Options, Report, load_fence};
pub use nft::{Found, Remains, Table, TableName};
pub use observe::{Features, Nftables, Observed, Surroundings, TablesOfOthers};
pub use owned::{Claim, Owned, StateError};
pub use plan::{Change, Occupied, occupied, plan, plan_fence, plan_uninstall};
pub use route::{Action, Address, Family, LOCAL_TABLE, Link, MAIN_TABLE, Route, RouteKind, Rule};
pub use tap::{Sought, Tap, TapError, Tapped};
