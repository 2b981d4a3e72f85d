//! What is there: the part of the host's state that planning looks at.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use warren_config::{HostConfig, Steering};

use crate::ahead::AnyRule;
use crate::connection::{Connection, KernelError};
use crate::fence;
use crate::nft::{Found, TableName};
use crate::owned::Claim;
use crate::route::{self, Address, Family, Link, MAIN_TABLE, Route, RouteKind, Rule};

/// The routes of tables that are not ours; `None` of one with more of them than are read.
pub type TablesOfOthers = BTreeMap<(Family, u32), Option<Vec<Route>>>;

/// The host as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// All interfaces, by index.
    pub links: BTreeMap<u32, Link>,
    /// All addresses.
    pub addresses: BTreeSet<Address>,
    /// The routes of every table that is claimed, in the kernel's order.
    pub routes: Vec<Route>,
    /// Those rules that have a shape that this crate makes, whoever made them.
    pub rules: Vec<Rule>,
    /// All rules, in the order in which the kernel asks them within a family.
    pub order: Vec<AnyRule>,
    /// The tables that rules of others lead to ahead of the claims'.
    pub others: TablesOfOthers,
    /// The families that the kernel routes.
    pub families: BTreeSet<Family>,
    /// The nftables tables that are claimed, by name.
    pub tables: BTreeMap<String, Found>,
    /// Those of the same names that translate addresses.
    pub masquerades: BTreeMap<TableName, Found>,
    /// What nftables can do here.
    pub nftables: Nftables,
}

/// What nftables can do on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nftables {
    /// The fence, with these features.
    Present(Features),
    /// Nothing, and why. The rules and blackholes are the only fence.
    Absent(String),
}

/// What not every kernel's nftables can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Judges the sources of own prefixes by their way back (the `fib` expression, Linux 4.10).
    pub way_back: bool,
    /// Keeps others from changing the table while the daemon lives (Linux 6.9).
    pub exclusive: bool,
    /// Translates addresses by whose they are (`nat` chains, `fib` and `masq`).
    pub masquerade: bool,
}

impl Default for Nftables {
    fn default() -> Self {
        Self::Absent("not asked".to_owned())
    }
}

/// What around the tunnel must not fall into the mesh's prefixes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Addresses of all interfaces but the tunnel's and the loopback, with their interface's name.
    pub addresses: BTreeMap<IpAddr, String>,
    /// Next hops of default routes.
    pub gateways: BTreeSet<IpAddr>,
    /// Where names are resolved.
    pub resolvers: BTreeSet<IpAddr>,
    /// MTU in bytes of all interfaces but the tunnel's and the loopback, by name.
    pub mtus: BTreeMap<String, u32>,
    /// Of the interfaces that lead to what is behind this node, or that wrap an overlay's packets, the one with
    /// the largest MTU: what comes from there may be as large.
    pub behind: Option<String>,
    /// Interfaces that wrap packets in VXLAN or Geneve.
    pub overlays: BTreeSet<String>,
}

impl Surroundings {
    /// The MTU in bytes of the interface that has this address, and the interface.
    pub fn mtu_at(&self, address: IpAddr) -> Option<(&str, u32)> {
        self.mtu_of(self.addresses.get(&address)?)
    }

    /// The largest MTU in bytes behind this node, and the interface that has it.
    pub fn mtu_behind(&self) -> Option<(&str, u32)> {
        self.mtu_of(self.behind.as_ref()?)
    }

    fn mtu_of(&self, interface: &str) -> Option<(&str, u32)> {
        let (interface, mtu) = self.mtus.get_key_value(interface)?;
        Some((interface, *mtu))
    }
}

const LOOPBACK: &str = "lo";
/// Kinds of interfaces that wrap an overlay's packets.
const OVERLAYS: [&str; 2] = ["vxlan", "geneve"];

/// What a kernel says that has no nftables, or not the family `inet`.
const NO_NFTABLES: [i32; 5] = [
    libc::EAFNOSUPPORT,
    libc::EOPNOTSUPP,
    libc::EPROTONOSUPPORT,
    libc::EINVAL,
    libc::EPERM,
];

/// So many routes of a table that is not ours are read, and no more: it is done at every look at the host,
/// and a table with all prefixes of the internet would take all of the time in which the fence is put back.
const ROUTES_OF_OTHERS: usize = 4096;

/// Sockets to the kernel.
pub(crate) struct Kernel {
    pub(crate) route: Connection,
    /// Absent where the kernel has no netfilter netlink, with its words.
    pub(crate) netfilter: Result<Connection, String>,
    /// What no transaction has shown to be missing yet, and no option has switched off.
    pub(crate) features: Features,
    /// Whether rules know ports, once it was tried.
    pub(crate) ports_in_rules: Option<bool>,
}

impl Kernel {
    pub(crate) fn open() -> Result<Self, KernelError> {
        Ok(Self {
            route: Connection::route()?,
            netfilter: Connection::netfilter().map_err(|error| error.to_string()),
            features: Features {
                way_back: true,
                exclusive: true,
                masquerade: true,
            },
            ports_in_rules: None,
        })
    }

    /// Looks at the host, and at what of it these claims name.
    pub(crate) fn observe<'a>(
        &mut self,
        claims: impl Iterator<Item = &'a Claim>,
    ) -> Result<Observed, KernelError> {
        let claims: Vec<&Claim> = claims.collect();
        let mut observed = Observed::default();
        for link in self.route.dump(&route::dump_links())? {
            if let Some(link) = Link::parse(&link) {
                observed.links.insert(link.index, link);
            }
        }
        let addresses = self.route.dump(&route::dump_addresses())?;
        observed.addresses = addresses
            .iter()
            .filter_map(|raw| Address::parse(raw))
            .collect();
        let tables: BTreeSet<u32> = claims.iter().map(|claim| claim.table).collect();
        for family in Family::ALL {
            match self.route.dump(&route::dump_rules(family)) {
                Ok(rules) => {
                    observed.families.insert(family);
                    let rules = rules.iter().filter_map(|raw| AnyRule::parse(raw));
                    observed.order.extend(rules);
                }
                // A kernel without this family has nothing of it to fence.
                Err(error) if [libc::EAFNOSUPPORT, libc::EOPNOTSUPP].contains(&error.errno()) => {
                    continue;
                }
                Err(error) => return Err(error),
            }
            for table in &tables {
                let routes = self.routes(family, *table)?;
                observed.routes.extend(routes);
            }
        }
        observed.rules = (observed.order.iter())
            .filter_map(|rule| rule.ours)
            .collect();
        observed.others = Self::others(&observed, &claims)?;
        observed.nftables = self.tables(&claims, &mut observed)?;
        Ok(observed)
    }

    /// What the tables have that rules lead to ahead of the claims', or among theirs.
    fn others(observed: &Observed, claims: &[&Claim]) -> Result<TablesOfOthers, KernelError> {
        let is_ahead = |rule: &&AnyRule| {
            let mut claims = claims.iter();
            claims.any(|claim| rule.priority <= claim.rule_priority.saturating_add(1))
        };
        let mut others = BTreeMap::new();
        for rule in observed.order.iter().filter(is_ahead) {
            let Some(table) = rule.table() else { continue };
            let is_ours = claims.iter().any(|claim| claim.table == table);
            if let Entry::Vacant(place) = others.entry((rule.family, table))
                && !is_ours
            {
                place.insert(routes_within(rule.family, table, ROUTES_OF_OTHERS)?);
            }
        }
        Ok(others)
    }

    fn routes(&mut self, family: Family, table: u32) -> Result<Vec<Route>, KernelError> {
        match self.route.dump(&route::dump_routes(family, table)) {
            Ok(found) => Ok(of_table(table, &found)),
            // A table that nobody has used yet.
            Err(error) if error.errno() == libc::ENOENT => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn tables(
        &mut self,
        claims: &[&Claim],
        observed: &mut Observed,
    ) -> Result<Nftables, KernelError> {
        let netfilter = match &mut self.netfilter {
            Ok(netfilter) => netfilter,
            Err(reason) => return Ok(Nftables::Absent(reason.clone())),
        };
        for claim in claims {
            let name = fence::inet_name(&claim.interface);
            match Found::read(netfilter, &name) {
                Ok(found) => (observed.tables).extend(found.map(|found| (name.name, found))),
                // Anything else passes, and must not be taken for a kernel without nftables.
                Err(error) if NO_NFTABLES.contains(&error.errno()) => {
                    return Ok(Nftables::Absent(error.to_string()));
                }
                Err(error) => return Err(error),
            }
            for family in &observed.families {
                let name = fence::masquerade_name(&claim.interface, *family);
                let found = Found::read(netfilter, &name)?;
                (observed.masquerades).extend(found.map(|found| (name, found)));
            }
        }
        Ok(Nftables::Present(self.features))
    }

    /// The interfaces of overlays.
    pub(crate) fn overlays(&mut self) -> Result<BTreeSet<String>, KernelError> {
        let observed = self.observe(std::iter::empty())?;
        let overlays = observed.links.into_values().filter(Link::wraps);
        Ok(overlays.map(|link| link.name).collect())
    }

    /// Looks at what is around the tunnel that is configured like this; `resolv_conf` is the resolver's
    /// file.
    pub(crate) fn surroundings(
        &mut self,
        config: &HostConfig,
        resolv_conf: &str,
    ) -> Result<Surroundings, KernelError> {
        let interface = config.interface.as_str();
        let observed = self.observe(std::iter::empty())?;
        let mut surroundings = Surroundings {
            resolvers: resolvers(resolv_conf),
            ..Surroundings::default()
        };
        for address in &observed.addresses {
            let name = observed
                .links
                .get(&address.interface)
                .map(|link| link.name.as_str());
            let ip = address.address.addr();
            let elsewhere = name.filter(|name| *name != interface && !ip.is_loopback());
            if let Some(name) = elsewhere {
                surroundings.addresses.insert(ip, name.to_owned());
            }
        }
        let mut ways = BTreeSet::new();
        let behind = fence::behind(config);
        for family in &observed.families {
            let routes = self.routes(*family, MAIN_TABLE)?;
            ways.extend(routes.iter().filter_map(|route| match route.kind {
                RouteKind::Unicast(interface) => {
                    let mut behind = behind.iter();
                    let leads = behind.any(|net| net.contains(&route.destination));
                    leads.then_some(interface)
                }
                _ => None,
            }));
            let unicast = |route: &Route| matches!(route.kind, RouteKind::Unicast(_));
            let default = routes
                .iter()
                .filter(|route| route.destination.prefix_len() == 0 && unicast(route));
            surroundings
                .gateways
                .extend(default.filter_map(|route| route.gateway));
        }
        let others = (observed.links.values())
            .filter(|link| link.name != interface && link.name != LOOPBACK);
        let wraps = |link: &&Link| link.wraps();
        let is_behind = |link: &&Link| match config.steering {
            // A bridge says what its ports were given, and each port what is at its other end.
            Steering::Prefixes => {
                ways.contains(&link.index)
                    || link.master.is_some_and(|bridge| ways.contains(&bridge))
            }
            Steering::Overlay { .. } => wraps(link),
        };
        let largest = others.clone().filter(is_behind).max_by_key(|link| link.mtu);
        surroundings.behind = largest.map(|link| link.name.clone());
        let overlays = others.clone().filter(wraps);
        surroundings.overlays = overlays.map(|link| link.name.clone()).collect();
        surroundings.mtus = others.map(|link| (link.name.clone(), link.mtu)).collect();
        Ok(surroundings)
    }
}

impl Link {
    /// Whether it wraps what it is given, as an overlay does.
    fn wraps(&self) -> bool {
        (self.kind.as_deref()).is_some_and(|kind| OVERLAYS.contains(&kind))
    }
}

/// The routes of a table that is not ours, unless there are more than `bound`.
fn routes_within(
    family: Family,
    table: u32,
    bound: usize,
) -> Result<Option<Vec<Route>>, KernelError> {
    let found = Connection::route()?.dump_within(&route::dump_routes(family, table), bound);
    let found = match found {
        // As above.
        Err(error) if error.errno() == libc::ENOENT => Some(Vec::new()),
        found => found?,
    };
    Ok(found.map(|found| of_table(table, &found)))
}

fn of_table(table: u32, found: &[Vec<u8>]) -> Vec<Route> {
    let routes = found.iter().filter_map(|raw| Route::parse(raw));
    routes.filter(|route| route.table == table).collect()
}

/// The name servers of a `resolv.conf`.
fn resolvers(resolv_conf: &str) -> BTreeSet<IpAddr> {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim();
        // A zone may follow a link-local address.
        address.split('%').next()?.parse().ok()
    };
    resolv_conf.lines().filter_map(server).collect()
}

impl Observed {
    /// The interface of this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// Packets that the fence of this claim has dropped, by counter.
    pub fn drops(&self, claim: &Claim) -> BTreeMap<String, u64> {
        let table = self.tables.get(&claim.nftables());
        table
            .map(|table| table.counters().clone())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let file = "# a comment\nsearch example.com\nnameserver 10.0.0.1\n nameserver\tfd00::1%eth0\nnameserver what\n";
        let expected = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().expect("an address"));
        assert_eq!(resolvers(file), BTreeSet::from(expected));
    }
}
