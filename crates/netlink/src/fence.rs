//! What the fence is made of: the rules with their blackholes, and the nftables table.
//!
//! Two fences, each closed without the other.
//!
//! **Rules.** Four preferences in a row, both families, `p` being the configured one:
//!
//! | preference | rule | why |
//! | --- | --- | --- |
//! | `p - 2` | `lookup local` | what is this host's own stays so where others moved the kernel's rule |
//! | `p - 1` | `to OWN lookup main suppress_prefixlength LENGTH - 1` | own prefixes by their own route, never by the default route |
//! | `p` | `not fwmark MARK lookup TABLE` | peers' prefixes into the tunnel; blackholes behind them |
//! | `p + 1` | `to MESH blackhole` | marked packets, and a table that somebody flushed |
//!
//! **nftables.** Table `inet warren-INTERFACE`. What leaves is judged last of all, after
//! every rewriting of its destination, so output and forwarding are one place (postrouting); what
//! enters is judged first, as it came from the wire (prerouting, before connection tracking).
//! The interface is known by name *and* type, so that a renamed network card is not taken for
//! the tunnel; it need not exist, so the fence can be loaded before the network.
//!
//! From Linux 6.9 on the table is the daemon's alone while that lives: `nft flush ruleset` passes it
//! over, and nobody can change it. When the daemon dies the table stays, and the next one adopts it.
//!
//! Where they are not equal: the rules say nothing about what enters, and an IPv4 socket that is tied to
//! an interface (`SO_BINDTODEVICE`) ignores them, since the kernel takes a destination without
//! a route for a neighbour then (`ip_route_output_key_hash_rcu`). Both are the table's alone.
//!
//! An own prefix is judged by its way back (`fib`), which needs the rules to stand: with the rules
//! deleted a default route makes any interface a way back. That is about sources
//! that pretend to be behind this node, and the one place where the two fences lean on each other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use libc::{ARPHRD_LOOPBACK, ARPHRD_NONE, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING};
use warren_config::HostConfig;

use crate::nft::{Chain, Hook, Match, Rule, Set, Table, Verdict};
use crate::observe::Features;
use crate::route::{self, Action, Family, Route, RouteKind};

/// Begins every comment of ours; what carries one is ours.
pub(crate) const COMMENT: &str = "warren:";
/// Behind every route that one would think of.
pub(crate) const BLACKHOLE_METRIC: u32 = u32::MAX;
/// What IPv6 has by default; IPv4 gets it too.
pub(crate) const ROUTE_METRIC: u32 = 1024;
/// After everything that rewrites a packet; source NAT is at 100.
const LAST: i32 = 300;
/// After defragmentation (-400), before everything else; `raw` is at -300.
const FIRST: i32 = -350;

/// Counters of the table, and what each has dropped.
pub const COUNTERS: [(&str, &str); 6] = [
    ("out_mesh", "to a mesh prefix, not by the tunnel"),
    (
        "out_source",
        "from this node's mesh address, not by the tunnel",
    ),
    ("in_mesh", "from a mesh prefix, not by the tunnel"),
    (
        "in_spoofed",
        "from this node's own prefix, but not by the way to it",
    ),
    (
        "in_destination",
        "to this node's mesh address, not by the tunnel",
    ),
    ("in_foreign", "by the tunnel, to what is not this node's"),
];

/// The nftables table of the tunnel by this name.
pub fn table_name(interface: &str) -> String {
    format!("warren-{interface}")
}

/// This node's own prefixes beside the addresses of the tunnel interface: what is behind it.
fn behind(config: &HostConfig) -> BTreeSet<IpNet> {
    let own = |prefix: &&IpNet| {
        prefix.prefix_len() < prefix.max_prefix_len() || !config.addresses.contains(&prefix.addr())
    };
    config
        .fence
        .local
        .iter()
        .filter(own)
        .map(IpNet::trunc)
        .collect()
}

/// The table as it should be, with what the kernel can do.
pub(crate) fn table(config: &HostConfig, features: Features) -> Table {
    let tunnel_in = || {
        let name = config.interface.clone();
        vec![Match::InName(name), Match::InType(ARPHRD_NONE)]
    };
    let tunnel_out = || {
        let name = config.interface.clone();
        vec![Match::OutName(name), Match::OutType(ARPHRD_NONE)]
    };
    let rule = |comment, matches, verdict| Rule {
        comment,
        matches,
        verdict,
    };

    let mut out = vec![
        rule(
            "warren: within this host",
            vec![Match::OutType(ARPHRD_LOOPBACK)],
            Verdict::Accept,
        ),
        rule("warren: by the tunnel", tunnel_out(), Verdict::Accept),
    ];
    let mut incoming = vec![
        rule(
            "warren: within this host",
            vec![Match::InType(ARPHRD_LOOPBACK)],
            Verdict::Accept,
        ),
        rule("warren: by the tunnel", tunnel_in(), Verdict::Goto("peers")),
    ];
    let mut peers = Vec::new();
    for family in Family::ALL {
        let names = names(family);
        let is = Match::Family(family);
        let source = |set, inside| Match::Source(family, set, inside);
        let destination = |set, inside| Match::Destination(family, set, inside);
        out.push(rule(
            "warren: mesh destination",
            vec![
                is.clone(),
                destination(names.mesh, true),
                destination(names.behind, false),
            ],
            Verdict::Drop("out_mesh"),
        ));
        out.push(rule(
            "warren: mesh address of this node",
            vec![
                is.clone(),
                source(names.addresses, true),
                destination(names.behind, false),
            ],
            Verdict::Drop("out_source"),
        ));
        incoming.push(rule(
            "warren: mesh address of this node, from outside",
            vec![is.clone(), source(names.addresses, true)],
            Verdict::Drop("in_mesh"),
        ));
        incoming.push(rule(
            "warren: mesh source",
            vec![
                is.clone(),
                source(names.mesh, true),
                source(names.behind, false),
            ],
            Verdict::Drop("in_mesh"),
        ));
        if features.way_back {
            incoming.push(rule(
                "warren: own prefix, not by the way to it",
                vec![is.clone(), source(names.behind, true), Match::NoWayBack],
                Verdict::Drop("in_spoofed"),
            ));
        }
        // As wg-quick does (CVE-2019-14899): a neighbour on the underlay must not reach what
        // listens on the address in the mesh.
        incoming.push(rule(
            "warren: to the mesh address of this node",
            vec![
                is.clone(),
                destination(names.addresses, true),
                source(names.behind, false),
            ],
            Verdict::Drop("in_destination"),
        ));
        peers.push(rule(
            "warren: from peers to this node",
            vec![is, destination(names.own, true)],
            Verdict::Accept,
        ));
    }
    peers.push(rule(
        "warren: from peers to elsewhere",
        Vec::new(),
        Verdict::Drop("in_foreign"),
    ));

    let chain = |name, hook: Option<(i32, i32)>, rules| Chain {
        name,
        hook: hook.map(|(number, priority)| Hook { number, priority }),
        rules,
    };
    Table {
        name: table_name(&config.interface),
        comment: "warren: keeps what is the mesh's inside the tunnel",
        exclusive: features.exclusive,
        counters: COUNTERS.map(|(name, _)| name).to_vec(),
        sets: Family::ALL
            .into_iter()
            .flat_map(|family| sets(config, family))
            .collect(),
        chains: vec![
            chain("out", Some((NF_INET_POST_ROUTING, LAST)), out),
            chain("in", Some((NF_INET_PRE_ROUTING, FIRST)), incoming),
            chain("peers", None, peers),
        ],
    }
}

/// The sets of one family.
struct Names {
    /// Everything that is the mesh's.
    mesh: &'static str,
    /// Addresses of the tunnel interface.
    addresses: &'static str,
    /// This node's other prefixes.
    behind: &'static str,
    /// All that is this node's.
    own: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            mesh: "mesh4",
            addresses: "addresses4",
            behind: "behind4",
            own: "own4",
        },
        Family::V6 => Names {
            mesh: "mesh6",
            addresses: "addresses6",
            behind: "behind6",
            own: "own6",
        },
    }
}

fn sets(config: &HostConfig, family: Family) -> [Set; 4] {
    let names = names(family);
    let addresses: BTreeSet<IpNet> = config
        .addresses
        .iter()
        .map(|address| IpNet::from(*address))
        .collect();
    let own = &config.fence.local | &addresses;
    [
        set(names.mesh, family, &config.fence.mesh),
        set(names.addresses, family, &addresses),
        set(names.behind, family, &behind(config)),
        set(names.own, family, &own),
    ]
}

fn set(name: &'static str, family: Family, prefixes: &BTreeSet<IpNet>) -> Set {
    let of_family = prefixes
        .iter()
        .filter(|prefix| Family::of(prefix) == family);
    // Without those that others contain, and with neighbours joined: ranges are apart.
    let apart = IpNet::aggregate(&of_family.copied().collect());
    let ranges = apart.iter().map(|prefix| {
        let end = successor(prefix.broadcast());
        (route::ip_bytes(prefix.network()), end.map(route::ip_bytes))
    });
    Set {
        name,
        family,
        ranges: ranges.collect(),
    }
}

/// The address after this one; none after the last.
fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address)
            .checked_add(1)
            .map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(address) => u128::from(address)
            .checked_add(1)
            .map(|next| IpAddr::V6(next.into())),
    }
}

/// The rules as they should be, in the order in which to add them.
///
/// Own prefixes first, so that what is behind this node is not cut off in between.
pub(crate) fn rules(config: &HostConfig, family: Family) -> Vec<route::Rule> {
    let rule = |priority, to, unmarked, action| route::Rule {
        family,
        priority,
        to,
        unmarked,
        action,
        protocol: route::PROTOCOL_KERNEL,
    };
    let lookup = |table, suppress| Action::Lookup { table, suppress };
    let priority = config.rule_priority;
    let of_family = |prefix: &&IpNet| Family::of(prefix) == family;
    let local = rule(priority - 2, None, None, lookup(route::LOCAL_TABLE, None));
    let behind = behind(config);
    let own = behind.iter().filter(of_family).map(|prefix| {
        // Only a route that is about this prefix. Nothing is shorter than the shortest.
        let suppress = u32::from(prefix.prefix_len()).checked_sub(1);
        rule(
            priority - 1,
            Some(*prefix),
            None,
            lookup(route::MAIN_TABLE, suppress),
        )
    });
    let tunnel = rule(
        priority,
        None,
        Some(config.fwmark),
        lookup(config.table, None),
    );
    let mesh = config.fence.mesh.iter().filter(of_family);
    let backstop =
        mesh.map(|prefix| rule(priority + 1, Some(prefix.trunc()), None, Action::Blackhole));
    std::iter::once(local)
        .chain(own)
        .chain(backstop)
        .chain([tunnel])
        .collect()
}

/// The blackholes in our table, behind the routes into the tunnel.
pub(crate) fn blackholes(config: &HostConfig) -> Vec<Route> {
    let blackhole = |prefix: &IpNet| Route {
        table: config.table,
        destination: prefix.trunc(),
        metric: BLACKHOLE_METRIC,
        kind: RouteKind::Blackhole,
        gateway: None,
        source: None,
        complex: false,
    };
    config.fence.mesh.iter().map(blackhole).collect()
}
