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
    /// Which packets are led into our table, of all that go where it has a route.
    pub steering: Steering,
    /// Prefixes in our table that lead into the interface.
    pub routes: BTreeSet<IpNet>,
    /// Whether what this host sends into the tunnel from an address of its own that peers do not take
    /// from it gets the interface's address: what a socket is bound to, or what a service's
    /// address was translated for.
    pub masquerade: bool,
    /// What must never be carried outside the tunnel.
    pub fence: Fence,
}

/// Whether one of `prefixes` is `net` or contains it. Asks for each prefix that could, at most 129, and not for all
/// that there are: there may be thousands, and as many to ask for.
pub fn is_within(prefixes: &BTreeSet<IpNet>, net: &IpNet) -> bool {
    std::iter::successors(Some(*net), IpNet::supernet).any(|net| prefixes.contains(&net))
}

/// Which packets go by the tunnel: all to a prefix, or another tunnel's between the same nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Steering {
    /// Everything to the prefixes.
    #[default]
    Prefixes,
    /// UDP to these ports at the nodes' own addresses: what an overlay network of VXLAN or Geneve wraps
    /// its packets in. Nothing else between the nodes is touched.
    Overlay {
        /// The overlay's ports, 8472 or 4789 as a rule; never the tunnel's own.
        ports: BTreeSet<u16>,
    },
}

/// What must never leave or enter in the clear, also when the daemon is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The mesh's prefixes: blackholes in our table behind the routes, and drop rules in nftables. Of an
    /// overlay, where its packets go: everything, as a rule.
    pub mesh: BTreeSet<IpNet>,
    /// This node's own addresses and prefixes: all that what comes out of the tunnel may reach.
    pub local: BTreeSet<IpNet>,
    /// What of the mesh's prefixes is carried in the clear, both ways, by the host's own routes:
    /// exceptions that somebody asked for.
    pub open: BTreeSet<IpNet>,
    /// Whether nothing of the mesh's may enter in the clear, either. While nodes join one by one
    /// it may: a node that does not know yet how to encrypt is still heard.
    pub inward: bool,
}
