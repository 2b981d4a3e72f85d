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
//! | `p - 1` | `to OPEN lookup main` | exceptions, in the clear |
//! | `p` | `not fwmark MARK lookup TABLE` | peers' prefixes into the tunnel; blackholes behind them |
//! | `p + 1` | `to MESH blackhole`, or `lookup TABLE` of a staged mesh in many pieces | marked packets, and a table that somebody flushed |
//!
//! Of an overlay all but the first say `ipproto udp dport PORT`, one for each port, and none says `not fwmark`:
//! what the tunnel itself sends has another port. Where it is strict its mesh is everything.
//!
//! While a mesh is staged MESH is what was ever reached, and only what leaves is judged; of a permissive one
//! it is nothing.
//!
//! **nftables.** Table `inet warren-INTERFACE`. What leaves is judged last of all, after
//! every rewriting of its destination, so output and forwarding are one place (postrouting); what
//! enters is judged first, as it came from the wire (prerouting, before connection tracking).
//! The interface is known by name *and* type, so that a renamed network card is not taken for
//! the tunnel; it need not exist, so the fence can be loaded before the network.
//!
//! A table that should be another is not replaced by one transaction: the kernel takes rules away and adds them
//! chain by chain, and the elements of sets at yet another moment (`nf_tables_commit`). The next one is put beside
//! it, under other names in the same table, and only then the old one goes.
//!
//! From Linux 6.9 on the table is the daemon's alone while that lives: `nft flush ruleset` passes it
//! over, and nobody can change it. When the daemon dies the table stays, and the next one adopts it.
//!
//! Beside the fence there are tables `ip warren-INTERFACE` and `ip6 warren-INTERFACE` where this host's own packets
//! are masqueraded. Nothing is closed by them, and nobody is kept from changing them; they are put back.
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
use warren_config::{HostConfig, Steering};

use crate::nft::{Chain, Hook, Match, Rule, Set, Table, TableName, Verdict};
use crate::observe::Features;
use crate::route::{self, Action, Family, Route, RouteKind};

/// Begins every comment of ours; what carries one is ours.
pub(crate) const COMMENT: &str = "warren:";
/// Behind every route that one would think of.
pub(crate) const BLACKHOLE_METRIC: u32 = u32::MAX;
/// The kernel tries rules one by one for every packet that it looks up, those that are not the mesh's among them. Of
/// a staged mesh with more pieces than this marked packets are led into our table as well, and only the nftables
/// table closes what somebody has flushed from there.
const BACKSTOPS: usize = 64;
/// What IPv6 has by default; IPv4 gets it too.
pub(crate) const ROUTE_METRIC: u32 = 1024;
/// After everything that rewrites a packet; source NAT is at 100.
const LAST: i32 = 300;
/// Of what translates sources the first: others are at 100.
const BEFORE_OTHERS: i32 = 99;
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

/// As the kernel has it.
pub(crate) fn inet_name(interface: &str) -> TableName {
    let (family, name) = (None, table_name(interface));
    TableName { family, name }
}

/// The tables that translate addresses: `inet` can since Linux 5.2 only.
pub(crate) fn masquerade_name(interface: &str, family: Family) -> TableName {
    let (family, name) = (Some(family), table_name(interface));
    TableName { family, name }
}

/// This node's own prefixes beside the addresses of the tunnel interface: what is behind it.
pub(crate) fn behind(config: &HostConfig) -> BTreeSet<IpNet> {
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

/// The table as it should be, with what the kernel can do, in any generation.
pub(crate) fn tables(config: &HostConfig, features: Features) -> [Table; 2] {
    ["", "-b"].map(|generation| Table {
        generation,
        ..table(config, features)
    })
}

/// The first of them.
pub(crate) fn table(config: &HostConfig, features: Features) -> Table {
    let tunnel_in = || {
        let name = config.interface.clone();
        vec![Match::InName(name), Match::InType(ARPHRD_NONE)]
    };
    let tunnel_out = || {
        let name = config.interface.clone();
        vec![Match::OutName(name), Match::OutType(ARPHRD_NONE)]
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
        let rules = match &config.steering {
            Steering::Prefixes => of_prefixes(family, features),
            Steering::Overlay { ports } => of_overlay(family, ports),
        };
        out.extend(
            rules
                .out
                .into_iter()
                .filter(|(always, _)| *always || config.fence.inward)
                .map(|(_, rule)| rule),
        );
        if config.fence.inward {
            incoming.extend(rules.incoming);
        }
        peers.extend(rules.peers);
    }
    peers.push(rule(
        "warren: from peers to elsewhere",
        Vec::new(),
        Verdict::Drop("in_foreign"),
    ));

    let chain = |name, hook: Option<(i32, i32)>, rules| Chain {
        name,
        hook: hook.map(|(number, priority)| Hook {
            kind: "filter",
            number,
            priority,
        }),
        rules,
    };
    Table {
        name: inet_name(&config.interface),
        generation: "",
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

/// The rules that keep one family's packets in.
#[derive(Default)]
struct Kept {
    /// Each with whether it stands also where plaintext may enter.
    out: Vec<(bool, Rule)>,
    incoming: Vec<Rule>,
    peers: Vec<Rule>,
}

fn rule(comment: &'static str, matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule {
        comment,
        matches,
        verdict,
    }
}

/// All that goes to the mesh's prefixes.
fn of_prefixes(family: Family, features: Features) -> Kept {
    let names = names(family);
    let is = || Match::Family(family);
    let source = |set, inside| Match::Source(family, set, inside);
    let destination = |set, inside| Match::Destination(family, set, inside);
    let mut incoming = vec![
        rule(
            "warren: mesh address of this node, from outside",
            vec![is(), source(names.addresses, true)],
            Verdict::Drop("in_mesh"),
        ),
        rule(
            "warren: mesh source",
            vec![
                is(),
                source(names.mesh, true),
                source(names.behind, false),
                source(names.open, false),
            ],
            Verdict::Drop("in_mesh"),
        ),
    ];
    if features.way_back {
        incoming.push(rule(
            "warren: own prefix, not by the way to it",
            vec![is(), source(names.behind, true), Match::NoWayBack],
            Verdict::Drop("in_spoofed"),
        ));
    }
    // As wg-quick does (CVE-2019-14899): a neighbour on the underlay must not reach what
    // listens on the address in the mesh.
    incoming.push(rule(
        "warren: to the mesh address of this node",
        vec![
            is(),
            destination(names.addresses, true),
            source(names.behind, false),
            source(names.open, false),
        ],
        Verdict::Drop("in_destination"),
    ));
    Kept {
        out: vec![
            (
                true,
                rule(
                    "warren: mesh destination",
                    vec![
                        is(),
                        destination(names.mesh, true),
                        destination(names.behind, false),
                        destination(names.open, false),
                    ],
                    Verdict::Drop("out_mesh"),
                ),
            ),
            (
                // Whoever does not encrypt yet is answered as it asks.
                false,
                rule(
                    "warren: mesh address of this node",
                    vec![
                        is(),
                        source(names.addresses, true),
                        destination(names.behind, false),
                        destination(names.open, false),
                    ],
                    Verdict::Drop("out_source"),
                ),
            ),
        ],
        incoming,
        peers: vec![rule(
            "warren: from peers to this node",
            vec![is(), destination(names.own, true)],
            Verdict::Accept,
        )],
    }
}

/// What an overlay wraps, and what the kernel says of it to whoever sent it: that repeats it.
fn of_overlay(family: Family, ports: &BTreeSet<u16>) -> Kept {
    let names = names(family);
    let mut kept = Kept::default();
    for &port in ports {
        let is = || Match::Family(family);
        let closed = || {
            [
                Match::Destination(family, names.mesh, true),
                Match::Destination(family, names.open, false),
            ]
        };
        let out = [
            rule(
                "warren: packets of the overlay",
                [is(), Match::UdpTo(port)]
                    .into_iter()
                    .chain(closed())
                    .collect(),
                Verdict::Drop("out_mesh"),
            ),
            rule(
                "warren: packets of the overlay, sent back",
                [is(), Match::Quotes(family, port)]
                    .into_iter()
                    .chain(closed())
                    .collect(),
                Verdict::Drop("out_mesh"),
            ),
        ];
        kept.out.extend(out.map(|rule| (true, rule)));
        kept.incoming.push(rule(
            "warren: packets of the overlay, from outside",
            vec![
                is(),
                Match::UdpTo(port),
                Match::Source(family, names.mesh, true),
                Match::Source(family, names.open, false),
            ],
            Verdict::Drop("in_mesh"),
        ));
        kept.peers.push(rule(
            "warren: packets of the overlay, from peers",
            vec![
                is(),
                Match::UdpTo(port),
                Match::Destination(family, names.own, true),
            ],
            Verdict::Accept,
        ));
    }
    kept
}

/// The tables that lend the tunnel's address to this host's own packets: to those of sockets that are
/// bound to another, and of those that asked for a service's address and got the main route's. What is
/// behind this node has addresses that peers take from it, and so have they who are not of this host.
pub(crate) fn masquerades(config: &HostConfig) -> Vec<Table> {
    if !config.masquerade || config.steering != Steering::Prefixes {
        return Vec::new();
    }
    let has_address = |family: &Family| {
        let mut addresses = config.addresses.iter();
        addresses.any(|address| Family::of(&IpNet::from(*address)) == *family)
    };
    let table = |family| {
        let own = names(family).own;
        let matches = vec![
            Match::OutName(config.interface.clone()),
            Match::OutType(ARPHRD_NONE),
            Match::SourceIsLocal,
            Match::Source(family, own, false),
        ];
        Table {
            name: masquerade_name(&config.interface, family),
            generation: "",
            comment: "warren: lends the tunnel's address to this host's packets",
            exclusive: false,
            counters: Vec::new(),
            sets: sets(config, family)
                .into_iter()
                .filter(|set| set.name == own)
                .collect(),
            chains: vec![Chain {
                name: "out",
                hook: Some(Hook {
                    kind: "nat",
                    number: NF_INET_POST_ROUTING,
                    priority: BEFORE_OTHERS,
                }),
                rules: vec![rule(
                    "warren: this host's, by another address",
                    matches,
                    Verdict::Masquerade,
                )],
            }],
        }
    };
    (Family::ALL.into_iter().filter(has_address))
        .map(table)
        .collect()
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
    /// What is carried in the clear.
    open: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            mesh: "mesh4",
            addresses: "addresses4",
            behind: "behind4",
            own: "own4",
            open: "open4",
        },
        Family::V6 => Names {
            mesh: "mesh6",
            addresses: "addresses6",
            behind: "behind6",
            own: "own6",
            open: "open6",
        },
    }
}

fn sets(config: &HostConfig, family: Family) -> [Set; 5] {
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
        set(names.open, family, &config.fence.open),
    ]
}

pub(crate) fn set(name: &'static str, family: Family, prefixes: &BTreeSet<IpNet>) -> Set {
    let of_family = prefixes
        .iter()
        .filter(|prefix| Family::of(prefix) == family);
    // Without those that others contain, and with neighbours joined: ranges are apart, and none begins
    // where another ends, of which the kernel takes some and refuses others.
    let mut ranges: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
    for prefix in IpNet::aggregate(&of_family.copied().collect()) {
        let first = route::ip_bytes(prefix.network());
        let end = successor(prefix.broadcast()).map(route::ip_bytes);
        match ranges.last_mut() {
            Some((_, last)) if last.as_ref() == Some(&first) => *last = end,
            _ => ranges.push((first, end)),
        }
    }
    Set {
        name,
        family,
        ranges,
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

/// The prefixes of one family in as few as say the same.
pub(crate) fn joined(prefixes: &BTreeSet<IpNet>, family: Family) -> Vec<IpNet> {
    let of_family = prefixes
        .iter()
        .filter(|prefix| Family::of(prefix) == family);
    IpNet::aggregate(&of_family.map(IpNet::trunc).collect())
}

/// What rules close behind our table, whatever is in it. `None` where that would be too many.
pub(crate) fn backstops(config: &HostConfig, family: Family) -> Option<Vec<IpNet>> {
    let mesh = joined(&config.fence.mesh, family);
    (mesh.len() <= BACKSTOPS).then_some(mesh)
}

/// The rules as they should be, in the order in which to add them.
///
/// Own prefixes first, so that what is behind this node is not cut off in between.
pub(crate) fn rules(config: &HostConfig, family: Family) -> Vec<route::Rule> {
    let rule = |priority, to: Option<IpNet>, port, action| route::Rule {
        family,
        priority,
        // The kernel takes everything for no selector at all.
        to: to.filter(|to| to.prefix_len() > 0),
        unmarked: None,
        port,
        action,
        protocol: route::PROTOCOL_KERNEL,
    };
    let lookup = |table, suppress| Action::Lookup { table, suppress };
    let priority = config.rule_priority;
    let of_family = |prefix: &&IpNet| Family::of(prefix) == family;
    let ports: Vec<Option<u16>> = match &config.steering {
        Steering::Prefixes => vec![None],
        Steering::Overlay { ports } => ports.iter().copied().map(Some).collect(),
    };

    let mut rules = vec![rule(
        priority - 2,
        None,
        None,
        lookup(route::LOCAL_TABLE, None),
    )];
    if config.steering == Steering::Prefixes {
        let behind = behind(config);
        rules.extend(behind.iter().filter(of_family).map(|prefix| {
            // Only a route that is about this prefix. Nothing is shorter than the shortest.
            let suppress = u32::from(prefix.prefix_len()).checked_sub(1);
            let main = lookup(route::MAIN_TABLE, suppress);
            rule(priority - 1, Some(*prefix), None, main)
        }));
    }
    let (open, mesh) = (
        joined(&config.fence.open, family),
        backstops(config, family),
    );
    for port in ports {
        rules.extend(open.iter().map(|prefix| {
            let main = lookup(route::MAIN_TABLE, None);
            rule(priority - 1, Some(*prefix), port, main)
        }));
        match &mesh {
            Some(mesh) => rules.extend(
                mesh.iter()
                    .map(|prefix| rule(priority + 1, Some(*prefix), port, Action::Blackhole)),
            ),
            None => rules.push(rule(priority + 1, None, port, lookup(config.table, None))),
        }
        rules.push(route::Rule {
            // What the tunnel itself sends goes to another port than an overlay's.
            unmarked: port.is_none().then_some(config.fwmark),
            ..rule(priority, None, port, lookup(config.table, None))
        });
    }
    rules
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
