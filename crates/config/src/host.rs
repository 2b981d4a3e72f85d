//! What the host around a tunnel should look like: link, addresses, routes, rule, fence.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// What the host should look like for one tunnel interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Name of the TUN interface.
    pub interface: String,
    /// MTU of the interface in bytes.
    pub mtu: u32,
    /// Addresses of the interface, each as a host prefix (/32 or /128).
    pub addresses: BTreeSet<IpAddr>,
    /// Our routing table.
    pub table: u32,
    /// Preference of our rule `not fwmark FWMARK lookup TABLE`, one per family. The two preferences
    /// before it and the one after it are ours, too.
    pub rule_priority: u32,
    /// Mark of the tunnel's own packets, which must not be steered into the tunnel.
    pub fwmark: u32,
    /// Prefixes in our table that lead into the interface.
    pub routes: BTreeSet<IpNet>,
    /// What must never be carried outside the tunnel.
    pub fence: Fence,
}

/// What must never leave or enter in the clear, also when the daemon is dead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fence {
    /// The mesh's prefixes: blackholes in our table behind the routes, and drop rules in nftables.
    pub mesh: BTreeSet<IpNet>,
    /// This node's own addresses and prefixes: all that what comes out of the tunnel may reach.
    pub local: BTreeSet<IpNet>,
}
