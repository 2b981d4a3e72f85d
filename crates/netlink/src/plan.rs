//! From what is there to what should be: the changes, in the order in which to make them.
//!
//! Pure. The order is that of the fence: what closes comes before what opens, the link is set up
//! when both fences stand, and routes lead into the tunnel last.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_config::{HostConfig, Steering};

use crate::fence::{self, BLACKHOLE_METRIC, COMMENT, ROUTE_METRIC};
use crate::nft::{Found, Remains, Table, TableName};
use crate::observe::{Features, Nftables, Observed};
use crate::owned::{Claim, Owned};
use crate::route::{
    Action, Address, Family, LOCAL_TABLE, Link, MAIN_TABLE, PROTOCOL_KERNEL, Route, RouteKind, Rule,
};

/// `rp_filter` of the tunnel: loose. The effective value is the larger of this and that of `all`, so
/// zero would not do where `all` is strict.
const LOOSE: u32 = 2;

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Puts the nftables table in the place of whatever has its name, at once.
    ReplaceTable(Box<Table>),
    /// Puts the nftables table beside what stands under its name, and then takes that away.
    SucceedTable(Box<Table>, Remains),
    /// Keeps others from changing the nftables table of this name, which stands.
    AdoptTable(TableName),
    /// Removes the nftables table of this name.
    RemoveTable(TableName),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule.
    RemoveRule(Rule),
    /// Adds a route, in the place of one with its destination and metric.
    AddRoute(Route),
    /// Removes a route.
    RemoveRoute(Route),
    /// Sets the MTU of the interface of this index.
    SetMtu(u32, u32),
    /// Sets `rp_filter` of the interface of this index.
    SetReversePathFilter(u32, u32),
    /// Stops the kernel from giving the interface of this index a link-local address.
    SetNoLinkLocal(u32),
    /// Adds an address.
    AddAddress(Address),
    /// Removes an address.
    RemoveAddress(Address),
    /// Sets the interface of this index up.
    SetUp(u32),
    /// Removes the interface of this index.
    RemoveLink(u32),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplaceTable(table) => write!(f, "put table {} in place", table.name),
            Self::SucceedTable(table, _) => write!(f, "renew table {}", table.name),
            Self::AdoptTable(name) => write!(f, "adopt table {name}"),
            Self::RemoveTable(name) => write!(f, "remove table {name}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::SetMtu(index, mtu) => write!(f, "set the MTU of interface {index} to {mtu}"),
            Self::SetReversePathFilter(index, value) => {
                write!(f, "set rp_filter of interface {index} to {value}")
            }
            Self::SetNoLinkLocal(index) => {
                write!(f, "give interface {index} no link-local address")
            }
            Self::AddAddress(address) => {
                write!(
                    f,
                    "add address {} to interface {}",
                    address.address, address.interface
                )
            }
            Self::RemoveAddress(address) => {
                write!(
                    f,
                    "remove address {} from interface {}",
                    address.address, address.interface
                )
            }
            Self::SetUp(index) => write!(f, "set interface {index} up"),
            Self::RemoveLink(index) => write!(f, "remove interface {index}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:", self.family.name(), self.priority)?;
        if let Some(mark) = self.unmarked {
            write!(f, " not fwmark {mark:#x}")?;
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(port) = self.port {
            write!(f, " ipproto udp dport {port}")?;
        }
        match self.action {
            Action::Lookup { table, suppress } => {
                write!(f, " lookup {table}")?;
                suppress.map_or(Ok(()), |length| {
                    write!(f, " suppress_prefixlength {length}")
                })
            }
            Action::Blackhole => write!(f, " blackhole"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast(interface) => {
                write!(f, "{} by interface {interface}", self.destination)?;
            }
            RouteKind::Blackhole => write!(f, "blackhole {}", self.destination)?,
            RouteKind::Other(kind) => write!(f, "{} of type {kind}", self.destination)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " table {} metric {}", self.table, self.metric)
    }
}

/// What to change so that the host is as it should be, and nothing is left of claims that
/// no longer are.
///
/// Empty when all is as it should be. What needs the link is left out while there is none.
pub fn plan(observed: &Observed, config: &HostConfig, owned: &Owned) -> Vec<Change> {
    let mut changes = Vec::new();
    let link = tunnel(observed, &config.interface);
    let wanted = wanted_routes(observed, config, link);
    // A route of somebody else in our table may lead outside: first of all. What closes goes last, when
    // what takes its place stands; but not what closes everything, which other rules may lead to by now.
    let (closing, wrong): (Vec<Route>, Vec<Route>) = wrong_routes(observed, config.table, &wanted)
        .partition(|route| {
            route.kind == RouteKind::Blackhole && route.destination.prefix_len() > 0
        });
    changes.extend(wrong.into_iter().map(Change::RemoveRoute));
    let current = Claim::of(config);
    let rules: Vec<Rule> = wanted_rules(observed, config).collect();
    let claims = owned.claims.iter().chain([&current]);
    let places: BTreeSet<(u32, u32)> = claims
        .map(|claim| (claim.rule_priority, claim.table))
        .collect();
    let is_stale = |rule: &&Rule| {
        let mut places = places.iter();
        places.any(|(priority, table)| is_ours(rule, *priority, *table)) && !rules.contains(rule)
    };
    // A rule for all packets must not find the end of an overlay's table.
    let (unselective, stale): (Vec<Rule>, Vec<Rule>) = (observed.rules.iter().copied())
        .filter(|rule| is_stale(&rule))
        .partition(|rule| rule.unmarked.is_some() && config.steering != Steering::Prefixes);
    changes.extend(unselective.into_iter().map(Change::RemoveRule));
    changes.extend(plan_fence(observed, config));
    if let Some(link) = link {
        plan_link(observed, config, link, &mut changes);
    }
    let tunnel_routes = wanted
        .iter()
        .filter(|route| route.kind != RouteKind::Blackhole);
    let present: HashSet<&Route> = observed.routes.iter().collect();
    let missing = tunnel_routes.filter(|route| !present.contains(route));
    changes.extend(missing.copied().map(Change::AddRoute));
    plan_masquerades(observed, config, &mut changes);

    changes.extend(stale.into_iter().map(Change::RemoveRule));
    changes.extend(closing.into_iter().map(Change::RemoveRoute));
    for claim in &owned.claims {
        if claim.table != current.table {
            let routes = observed
                .routes
                .iter()
                .filter(|route| route.table == claim.table);
            changes.extend(routes.copied().map(Change::RemoveRoute));
        }
        if claim.interface != current.interface {
            changes.extend(link_removal(observed, claim));
            changes.extend(table_removals(observed, claim));
        }
    }
    changes
}

/// What to change so that this host's packets get the tunnel's address, and none where they should not.
fn plan_masquerades(observed: &Observed, config: &HostConfig, changes: &mut Vec<Change>) {
    let Nftables::Present(features) = observed.nftables else {
        return;
    };
    let mut wanted = fence::masquerades(config);
    wanted.retain(|table| {
        let family = table.name.family;
        features.masquerade && family.is_some_and(|family| observed.families.contains(&family))
    });
    for family in Family::ALL {
        let name = fence::masquerade_name(&config.interface, family);
        if !wanted.iter().any(|table| table.name == name) {
            changes.extend(removal(observed.masquerades.get(&name), name));
        }
    }
    let stands = |table: &Table| {
        let found = observed.masquerades.get(&table.name);
        found.is_some_and(|found| table.is(found))
    };
    let missing = wanted.into_iter().filter(|table| !stands(table));
    changes.extend(missing.map(|table| Change::ReplaceTable(Box::new(table))));
}

/// Whether this host's packets get the tunnel's address wherever they should.
pub(crate) fn masquerades(observed: &Observed, config: &HostConfig) -> bool {
    let wanted = fence::masquerades(config);
    let mut wanted = wanted.iter().filter(|table| {
        let family = table.name.family;
        family.is_some_and(|family| observed.families.contains(&family))
    });
    wanted.all(|table| {
        let found = observed.masquerades.get(&table.name);
        found.is_some_and(|found| table.is(found))
    })
}

/// What to change so that both fences stand. Only adds; needs no link.
pub fn plan_fence(observed: &Observed, config: &HostConfig) -> Vec<Change> {
    let mut changes = Vec::new();
    if let Nftables::Present(features) = observed.nftables {
        plan_table(observed, config, features, &mut changes);
    }
    let present: HashSet<&Route> = observed.routes.iter().collect();
    let blackholes = wanted_blackholes(observed, config);
    let missing = blackholes.filter(|route| !present.contains(route));
    changes.extend(missing.map(Change::AddRoute));
    let missing = wanted_rules(observed, config).filter(|rule| !observed.rules.contains(rule));
    changes.extend(missing.map(Change::AddRule));
    changes
}

fn plan_table(
    observed: &Observed,
    config: &HostConfig,
    features: Features,
    changes: &mut Vec<Change>,
) {
    let [table, next] = fence::tables(config, features);
    // One that was never anybody's cannot be adopted.
    let found = (observed.tables.get(&table.name.name))
        .filter(|found| !features.exclusive || found.has_owner() || found.is_orphan());
    if let Some(found) = found
        && features.exclusive
        && !found.has_owner()
    {
        changes.push(Change::AdoptTable(table.name.clone()));
    }
    let Some(found) = found.filter(|found| found.has_comment(COMMENT) && !found.is_dormant())
    else {
        // What cannot be adopted is not left, either.
        changes.clear();
        changes.push(Change::ReplaceTable(Box::new(table)));
        return;
    };
    if table.is(found) || next.is(found) {
        return;
    }
    changes.push(match [table, next] {
        [table, _] if table.fits_beside(found) => {
            Change::SucceedTable(Box::new(table), found.remains())
        }
        [_, next] if next.fits_beside(found) => {
            Change::SucceedTable(Box::new(next), found.remains())
        }
        [table, _] => Change::ReplaceTable(Box::new(table)),
    });
}

/// What to change so that nothing is left of what is ours.
///
/// The table first: where a daemon holds it the kernel refuses, and nothing else is taken away.
pub fn plan_uninstall(observed: &Observed, owned: &Owned) -> Vec<Change> {
    let mut changes = Vec::new();
    for claim in &owned.claims {
        changes.extend(table_removals(observed, claim));
    }
    for claim in &owned.claims {
        let rules = observed
            .rules
            .iter()
            .filter(|rule| is_ours(rule, claim.rule_priority, claim.table));
        changes.extend(rules.copied().map(Change::RemoveRule));
        let routes = observed
            .routes
            .iter()
            .filter(|route| route.table == claim.table);
        changes.extend(routes.copied().map(Change::RemoveRoute));
        changes.extend(link_removal(observed, claim));
    }
    changes
}

fn table_removals(observed: &Observed, claim: &Claim) -> impl Iterator<Item = Change> {
    let name = fence::inet_name(&claim.interface);
    let fence = removal(observed.tables.get(&name.name), name);
    let others = Family::ALL.into_iter().filter_map(|family| {
        let name = fence::masquerade_name(&claim.interface, family);
        removal(observed.masquerades.get(&name), name)
    });
    fence.into_iter().chain(others)
}

/// The end of a table that was found and is ours.
fn removal(found: Option<&Found>, name: TableName) -> Option<Change> {
    let is_ours = found?.has_comment(COMMENT);
    is_ours.then_some(Change::RemoveTable(name))
}

fn link_removal(observed: &Observed, claim: &Claim) -> Option<Change> {
    tunnel(observed, &claim.interface).map(|link| Change::RemoveLink(link.index))
}

fn plan_link(observed: &Observed, config: &HostConfig, link: &Link, changes: &mut Vec<Change>) {
    let index = link.index;
    if link.mtu != config.mtu {
        changes.push(Change::SetMtu(index, config.mtu));
    }
    if link.reverse_path_filter.is_some_and(|value| value != LOOSE) {
        changes.push(Change::SetReversePathFilter(index, LOOSE));
    }
    if link.makes_link_local == Some(true) {
        changes.push(Change::SetNoLinkLocal(index));
    }
    let address = |ip| Address {
        interface: index,
        address: IpNet::from(ip),
    };
    let wanted: BTreeSet<Address> = config.addresses.iter().copied().map(address).collect();
    let present = observed
        .addresses
        .iter()
        .filter(|address| address.interface == index);
    let wrong = present.filter(|address| !wanted.contains(address));
    changes.extend(wrong.copied().map(Change::RemoveAddress));
    let routed = |address: &&Address| observed.families.contains(&Family::of(&address.address));
    let missing = wanted.difference(&observed.addresses).filter(routed);
    changes.extend(missing.copied().map(Change::AddAddress));
    if !link.up {
        changes.push(Change::SetUp(index));
    }
}

/// The interface of this name, if it is one that can be a tunnel of ours.
pub(crate) fn tunnel<'a>(observed: &'a Observed, name: &str) -> Option<&'a Link> {
    observed
        .link(name)
        .filter(|link| link.kind.as_deref() == Some("tun"))
}

fn wanted_rules(observed: &Observed, config: &HostConfig) -> impl Iterator<Item = Rule> {
    observed
        .families
        .iter()
        .flat_map(|family| fence::rules(config, *family))
}

fn wanted_blackholes(observed: &Observed, config: &HostConfig) -> impl Iterator<Item = Route> {
    let routed = |route: &Route| observed.families.contains(&Family::of(&route.destination));
    fence::blackholes(config).into_iter().filter(routed)
}

/// Everything that should be in our table.
fn wanted_routes(observed: &Observed, config: &HostConfig, link: Option<&Link>) -> Vec<Route> {
    let ways = link.map(|link| Ways::of(observed, config, link));
    let tunnel = (ways.iter()).flat_map(|ways| {
        let routes = config.routes.iter();
        routes.filter_map(|prefix| ways.route(prefix))
    });
    wanted_blackholes(observed, config).chain(tunnel).collect()
}

/// How routes into the tunnel look on a host.
#[derive(Debug)]
pub(crate) struct Ways {
    table: u32,
    interface: u32,
    families: BTreeSet<Family>,
    /// One for each family that has one.
    sources: Vec<IpAddr>,
}

impl Ways {
    pub(crate) fn of(observed: &Observed, config: &HostConfig, link: &Link) -> Self {
        // An overlay's packets are from the node itself.
        let has = |address: &IpAddr| {
            let mut present = observed.addresses.iter();
            present.any(|present| present.address.addr() == *address)
        };
        let candidates: Vec<IpAddr> = match config.steering {
            Steering::Prefixes => config.addresses.iter().copied().collect(),
            Steering::Overlay { .. } => (config.fence.local.iter().map(IpNet::addr))
                .filter(has)
                .collect(),
        };
        let source = |family| {
            let mut candidates = candidates.iter();
            candidates
                .find(|address| Family::of(&IpNet::from(**address)) == family)
                .copied()
        };
        Self {
            table: config.table,
            interface: link.index,
            families: observed.families.clone(),
            sources: Family::ALL.into_iter().filter_map(source).collect(),
        }
    }

    /// The route to a prefix, if the kernel routes its family.
    pub(crate) fn route(&self, prefix: &IpNet) -> Option<Route> {
        let family = Family::of(prefix);
        let mut sources = self.sources.iter();
        (self.families.contains(&family)).then(|| Route {
            table: self.table,
            destination: prefix.trunc(),
            metric: ROUTE_METRIC,
            kind: RouteKind::Unicast(self.interface),
            gateway: None,
            source: sources
                .find(|source| Family::of(&IpNet::from(**source)) == family)
                .copied(),
            complex: false,
        })
    }
}

/// What is in our table and should not be, but for what adding the right one replaces.
fn wrong_routes<'a>(
    observed: &'a Observed,
    table: u32,
    wanted: &'a [Route],
) -> impl Iterator<Item = Route> + 'a {
    let in_table = observed
        .routes
        .iter()
        .filter(move |route| route.table == table);
    // The right one takes the place of another with its destination and metric.
    let places: HashSet<(IpNet, u32)> = wanted
        .iter()
        .map(|route| (route.destination, route.metric))
        .collect();
    in_table
        .filter(move |route| !places.contains(&(route.destination, route.metric)))
        .copied()
}

/// Whether a rule has the place and the shape of one of ours.
pub(crate) fn is_ours(rule: &Rule, priority: u32, table: u32) -> bool {
    let lookup = |wanted| matches!(rule.action, Action::Lookup { table, .. } if table == wanted);
    let shape = match rule
        .priority
        .checked_add(2)
        .and_then(|end| end.checked_sub(priority))
    {
        Some(0) => rule.to.is_none() && lookup(LOCAL_TABLE),
        Some(1) => rule.to.is_some() && lookup(MAIN_TABLE),
        Some(2) => {
            let is_selective = rule.unmarked.is_some() || rule.port.is_some();
            is_selective && matches!(rule.action, Action::Lookup { .. })
        }
        Some(3) => {
            let is_selective = rule.to.is_some() || rule.port.is_some();
            is_selective && rule.action == Action::Blackhole || rule.to.is_none() && lookup(table)
        }
        _ => false,
    };
    shape && rule.protocol == PROTOCOL_KERNEL
}

/// What is already there under a name that a claim takes, and is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Occupied {
    /// The interface is not a TUN.
    #[error("interface {0} is there and is not a TUN")]
    Interface(String),
    /// The routing table is in use.
    #[error("routing table {table} is in use: {route}")]
    RoutingTable {
        /// The table.
        table: u32,
        /// A route that is in it.
        route: Box<Route>,
    },
    /// Another tunnel's rule is at the preference.
    #[error("rule preference {priority} is in use: {rule}")]
    Preference {
        /// The preference.
        priority: u32,
        /// The rule that is there.
        rule: Box<Rule>,
    },
    /// A table of nftables has the name.
    #[error("table inet {0} is there and is not of this program")]
    Nftables(String),
}

/// Looks for what is in the way of a claim that is not recorded yet. What is on record as ours under
/// other names is not: whoever renames one keeps the rest.
pub fn occupied(observed: &Observed, config: &HostConfig, owned: &Owned) -> Vec<Occupied> {
    let mut found = Vec::new();
    let claim = Claim::of(config);
    let link = tunnel(observed, &config.interface);
    if link.is_none() && observed.link(&config.interface).is_some() {
        found.push(Occupied::Interface(config.interface.clone()));
    }
    let recorded = |interface| {
        (owned.claims.iter())
            .filter(|claim| claim.table == config.table)
            .filter_map(|claim| tunnel(observed, &claim.interface))
            .any(|link| link.index == interface)
    };
    let ours = |route: &Route| match route.kind {
        RouteKind::Unicast(interface) => {
            link.is_some_and(|link| link.index == interface) || recorded(interface)
        }
        RouteKind::Blackhole => route.metric == BLACKHOLE_METRIC,
        RouteKind::Other(_) => false,
    };
    let mut routes = observed
        .routes
        .iter()
        .filter(|route| route.table == config.table);
    if let Some(route) = routes.find(|route| !ours(route)) {
        found.push(Occupied::RoutingTable {
            table: config.table,
            route: Box::new(*route),
        });
    }
    let is_table = |table| {
        let mut claims = owned.claims.iter();
        table == config.table
            || claims
                .any(|claim| claim.table == table && claim.rule_priority == config.rule_priority)
    };
    let another = |rule: &&Rule| {
        let to_table = matches!(rule.action, Action::Lookup { table, .. } if is_table(table));
        rule.priority == config.rule_priority
            && is_ours(rule, config.rule_priority, config.table)
            && !to_table
    };
    if let Some(rule) = observed.rules.iter().find(another) {
        found.push(Occupied::Preference {
            priority: config.rule_priority,
            rule: Box::new(*rule),
        });
    }
    let name = claim.nftables();
    if observed
        .tables
        .get(&name)
        .is_some_and(|table| !table.has_comment(COMMENT))
    {
        found.push(Occupied::Nftables(name));
    }
    found
}
