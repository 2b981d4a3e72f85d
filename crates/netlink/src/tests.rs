//! Planning against hosts made of plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_config::{Fence, HostConfig, Steering};

use crate::*;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

pub(crate) fn config() -> HostConfig {
    HostConfig {
        interface: "warren0".to_owned(),
        mtu: 1420,
        addresses: [ip("10.1.0.1"), ip("fd00:1::1")].into(),
        table: 51820,
        rule_priority: 98,
        fwmark: 0x2000,
        steering: Steering::Prefixes,
        routes: [
            "10.1.0.2/32",
            "10.1.2.0/24",
            "fd00:1::2/128",
            "fd00:1:2::/64",
        ]
        .map(net)
        .into(),
        masquerade: false,
        fence: Fence {
            mesh: ["10.1.0.0/16", "fd00:1::/32"].map(net).into(),
            local: [
                "10.1.0.1/32",
                "fd00:1::1/128",
                "10.1.1.0/24",
                "fd00:1:1::/64",
            ]
            .map(net)
            .into(),
            open: BTreeSet::new(),
            inward: true,
        },
    }
}

/// A host in memory that holds to the kernel's rules, and to the order that the fence asks for.
#[derive(Debug, Clone)]
struct Model {
    observed: Observed,
    config: HostConfig,
}

const FEATURES: Features = Features {
    way_back: true,
    exclusive: true,
    masquerade: true,
};
const TUNNEL: u32 = 7;
const UNDERLAY: u32 = 2;

impl Model {
    /// With an underlay, and nothing of ours.
    fn bare(config: HostConfig) -> Self {
        let underlay = Link {
            index: UNDERLAY,
            name: "eth0".to_owned(),
            mtu: 1500,
            up: true,
            kind: Some("veth".to_owned()),
            master: None,
            reverse_path_filter: Some(1),
            makes_link_local: Some(true),
        };
        let address = Address {
            interface: UNDERLAY,
            address: net("192.0.2.1/24"),
        };
        let features = Features {
            way_back: true,
            exclusive: true,
            masquerade: true,
        };
        let observed = Observed {
            links: BTreeMap::from([(UNDERLAY, underlay)]),
            addresses: BTreeSet::from([address]),
            families: Family::ALL.into(),
            nftables: Nftables::Present(features),
            ..Observed::default()
        };
        Self { observed, config }
    }

    /// A TUN as it is when it was just opened.
    fn with_tun(mut self) -> Self {
        let link = Link {
            index: TUNNEL,
            name: self.config.interface.clone(),
            mtu: 1500,
            up: false,
            kind: Some("tun".to_owned()),
            master: None,
            reverse_path_filter: Some(0),
            makes_link_local: Some(true),
        };
        self.observed.links.insert(TUNNEL, link);
        self
    }

    fn whole() -> Self {
        let mut model = Self::bare(config()).with_tun();
        model.converge(&Owned::default());
        model
    }

    fn plan(&self, owned: &Owned) -> Vec<Change> {
        plan(&self.observed, &self.config, owned)
    }

    /// One round is enough, and a second finds nothing to do.
    fn converge(&mut self, owned: &Owned) -> Vec<Change> {
        let changes = self.plan(owned);
        for change in &changes {
            self.make(change);
        }
        assert_eq!(self.plan(owned), [], "after {changes:?}");
        changes
    }

    fn make(&mut self, change: &Change) {
        let fence_stands = plan_fence(&self.observed, &self.config).is_empty();
        let observed = &mut self.observed;
        match change {
            Change::ReplaceTable(table) | Change::SucceedTable(table, _) => {
                let found = Found::of(table);
                match table.name.family {
                    None => drop(observed.tables.insert(table.name.name.clone(), found)),
                    Some(_) => drop(observed.masquerades.insert(table.name.clone(), found)),
                }
            }
            Change::AdoptTable(name) => {
                let Nftables::Present(features) = observed.nftables else {
                    panic!("there is no nftables");
                };
                assert!(features.exclusive && observed.tables[&name.name].is_orphan());
                let adopted = observed.tables[&name.name].adopted();
                observed.tables.insert(name.name.clone(), adopted);
            }
            Change::RemoveTable(name) => {
                let found = match name.family {
                    None => observed.tables.remove(&name.name),
                    Some(_) => observed.masquerades.remove(name),
                };
                found.expect("was found");
            }
            Change::AddRule(rule) => {
                assert!(!observed.rules.contains(rule), "{rule} is there");
                observed.rules.push(*rule);
            }
            Change::RemoveRule(rule) => {
                let at = observed.rules.iter().position(|other| other == rule);
                observed.rules.remove(at.expect("was found"));
            }
            Change::AddRoute(route) => {
                if let RouteKind::Unicast(index) = route.kind {
                    assert!(fence_stands, "{route} before the fence");
                    assert!(observed.links[&index].up, "{route} by a link that is down");
                    let is_there = |source: IpAddr| {
                        let mut addresses = observed.addresses.iter();
                        addresses.any(|address| address.address.addr() == source)
                    };
                    assert!(
                        route.source.is_none_or(is_there),
                        "{route} before its source"
                    );
                }
                let place = (route.table, route.destination, route.metric);
                let same = |other: &Route| (other.table, other.destination, other.metric) == place;
                observed.routes.retain(|other| !same(other));
                observed.routes.push(*route);
            }
            Change::RemoveRoute(route) => {
                let at = observed.routes.iter().position(|other| other == route);
                observed.routes.remove(at.expect("was found"));
            }
            Change::SetMtu(index, mtu) => self.link(*index).mtu = *mtu,
            Change::SetReversePathFilter(index, value) => {
                self.link(*index).reverse_path_filter = Some(*value);
            }
            Change::SetNoLinkLocal(index) => self.link(*index).makes_link_local = Some(false),
            Change::AddAddress(address) => {
                assert!(observed.addresses.insert(*address));
            }
            Change::RemoveAddress(address) => {
                assert!(observed.addresses.remove(address));
            }
            Change::SetUp(index) => {
                assert!(fence_stands, "up before the fence");
                self.link(*index).up = true;
            }
            Change::RemoveLink(index) => {
                observed.links.remove(index).expect("was found");
            }
        }
    }

    /// Where a packet that this host makes would go by its rules and routes alone. What others have
    /// in the table main leads elsewhere, whatever it is.
    fn way_to(&self, to: IpAddr, udp: Option<u16>) -> Way {
        let family = Family::of(&IpNet::from(to));
        let rules = self.observed.rules.iter();
        let mut rules: Vec<&Rule> = rules.filter(|rule| rule.family == family).collect();
        rules.sort_by_key(|rule| rule.priority);
        for rule in rules {
            if rule.to.is_some_and(|net| !net.contains(&to))
                || rule.port.is_some_and(|port| udp != Some(port))
            {
                continue;
            }
            match rule.action {
                Action::Blackhole => return Way::Nowhere,
                Action::Lookup {
                    table: LOCAL_TABLE, ..
                } => {}
                Action::Lookup {
                    table: MAIN_TABLE, ..
                } => return Way::Elsewhere,
                Action::Lookup { table, .. } => {
                    let routes = self.observed.routes.iter();
                    let matching = routes
                        .filter(|route| route.table == table && route.destination.contains(&to));
                    let best = matching.max_by_key(|route| {
                        (route.destination.prefix_len(), u32::MAX - route.metric)
                    });
                    match best.map(|route| route.kind) {
                        Some(RouteKind::Unicast(TUNNEL)) => return Way::Tunnel,
                        Some(RouteKind::Blackhole) => return Way::Nowhere,
                        Some(_) => return Way::Elsewhere,
                        None => {}
                    }
                }
            }
        }
        Way::Elsewhere
    }

    fn link(&mut self, index: u32) -> &mut Link {
        self.observed.links.get_mut(&index).expect("was found")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tunnel,
    Nowhere,
    Elsewhere,
}

/// A configuration with some of the other nodes steered, of some enforcement, and some of them excepted.
fn staged(strict: Option<bool>, steered: &[bool], open: &[bool]) -> HostConfig {
    let of = |chosen: &[bool]| -> BTreeSet<IpNet> {
        let numbered = (2..).zip(chosen);
        (numbered.filter(|(_, chosen)| **chosen))
            .map(|(node, _)| net(&format!("10.1.{node}.0/24")))
            .collect()
    };
    let mut config = config();
    let open = of(open);
    config.routes = &of(steered) - &open;
    config.fence.inward = strict == Some(true);
    config.fence.mesh = match strict {
        Some(true) => config.fence.mesh,
        Some(false) => of(steered),
        None => BTreeSet::new(),
    };
    config.fence.open = open;
    config
}

/// The same hosts as nodes of an overlay.
fn overlay() -> HostConfig {
    let ports = [8472].into();
    HostConfig {
        addresses: [ip("169.254.213.20")].into(),
        steering: Steering::Overlay { ports },
        routes: ["192.0.2.2/32", "2001:db8::2/128"].map(net).into(),
        fence: Fence {
            mesh: ["0.0.0.0/0", "::/0"].map(net).into(),
            local: ["192.0.2.1/32", "2001:db8::1/128"].map(net).into(),
            open: BTreeSet::new(),
            inward: true,
        },
        ..config()
    }
}

/// Something that somebody does to the host.
#[derive(Debug, Clone)]
enum Damage {
    Rule(prop::sample::Index),
    Route(prop::sample::Index),
    ReplacedRoute(prop::sample::Index),
    ForeignRoute,
    Table,
    Orphan,
    Hole,
    Down,
    Deleted,
    Address(prop::sample::Index),
    ForeignAddress,
    Mtu(u32),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            any::<prop::sample::Index>().prop_map(Self::Rule),
            any::<prop::sample::Index>().prop_map(Self::Route),
            any::<prop::sample::Index>().prop_map(Self::ReplacedRoute),
            any::<prop::sample::Index>().prop_map(Self::Address),
            any::<u32>().prop_map(Self::Mtu),
            prop_oneof![
                Just(Self::ForeignRoute),
                Just(Self::Table),
                Just(Self::Orphan),
                Just(Self::Hole),
                Just(Self::Down),
                Just(Self::Deleted),
                Just(Self::ForeignAddress),
            ],
        ]
    }

    fn befall(&self, model: &mut Model) {
        let interface = model.config.interface.clone();
        let name = table_name(&interface);
        let observed = &mut model.observed;
        let by_tunnel = |route: &Route| route.kind == RouteKind::Unicast(TUNNEL);
        match self {
            Self::Rule(at) if !observed.rules.is_empty() => {
                observed.rules.remove(at.index(observed.rules.len()));
            }
            Self::Route(at) if !observed.routes.is_empty() => {
                observed.routes.remove(at.index(observed.routes.len()));
            }
            Self::ReplacedRoute(at) if !observed.routes.is_empty() => {
                let at = at.index(observed.routes.len());
                observed.routes[at].kind = RouteKind::Unicast(UNDERLAY);
                observed.routes[at].source = None;
            }
            Self::ForeignRoute => observed.routes.push(Route {
                table: model.config.table,
                destination: net("10.1.2.5/32"),
                metric: 0,
                kind: RouteKind::Unicast(UNDERLAY),
                gateway: Some(ip("192.0.2.254")),
                source: None,
                complex: false,
            }),
            Self::Table => drop(observed.tables.remove(&name)),
            Self::Orphan => {
                if let Some(found) = observed.tables.get_mut(&name) {
                    *found = found.orphaned();
                }
            }
            Self::Hole => {
                let Nftables::Present(features) = observed.nftables else {
                    return;
                };
                let mut table = fence::table(&model.config, features);
                table.chains[0].rules.remove(2);
                observed.tables.insert(name, Found::of(&table));
            }
            Self::Down => {
                if let Some(link) = observed.links.get_mut(&TUNNEL) {
                    link.up = false;
                    observed.routes.retain(|route| !by_tunnel(route));
                    let v4 = |address: &Address| Family::of(&address.address) == Family::V4;
                    observed
                        .addresses
                        .retain(|address| address.interface != TUNNEL || v4(address));
                }
            }
            Self::Deleted => {
                observed.links.remove(&TUNNEL);
                observed.routes.retain(|route| !by_tunnel(route));
                observed
                    .addresses
                    .retain(|address| address.interface != TUNNEL);
            }
            Self::Address(at) => {
                let addresses: Vec<Address> = observed.addresses.iter().copied().collect();
                let address = addresses[at.index(addresses.len())];
                if address.interface == TUNNEL {
                    observed.addresses.remove(&address);
                    let source = Some(address.address.addr());
                    observed.routes.retain(|route| route.source != source);
                }
            }
            Self::ForeignAddress if observed.links.contains_key(&TUNNEL) => {
                let address = Address {
                    interface: TUNNEL,
                    address: net("198.51.100.1/24"),
                };
                observed.addresses.insert(address);
            }
            Self::Mtu(mtu) => {
                if let Some(link) = observed.links.get_mut(&TUNNEL) {
                    link.mtu = *mtu;
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_done_to_the_host_one_plan_mends_it_and_a_second_is_empty(
        damages in prop::collection::vec(Damage::any(), 0..8),
        reopened in any::<bool>(),
    ) {
        let mut model = Model::whole();
        for damage in &damages {
            damage.befall(&mut model);
        }
        if reopened && !model.observed.links.contains_key(&TUNNEL) {
            model = model.with_tun();
        }
        model.converge(&Owned::default());
        if model.observed.links.contains_key(&TUNNEL) {
            let whole = Model::whole().observed;
            prop_assert_eq!(&model.observed.links, &whole.links);
            prop_assert_eq!(&model.observed.addresses, &whole.addresses);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a mesh was and becomes (staged and then strict, say): what both close is closed after each
    /// single change on the way, by the rules and by the table alike.
    #[test]
    fn what_is_closed_before_and_after_is_closed_in_between(
        from in (prop::option::of(any::<bool>()), [any::<bool>(); 4], [any::<bool>(); 4]),
        to in (prop::option::of(any::<bool>()), [any::<bool>(); 4], [any::<bool>(); 4]),
    ) {
        let (from, to) = (staged(from.0, &from.1, &from.2), staged(to.0, &to.1, &to.2));
        let closes = |config: &HostConfig, address| {
            let holds = |nets: &BTreeSet<IpNet>| nets.iter().any(|net| net.contains(&address));
            holds(&config.fence.mesh) && !holds(&config.fence.open)
        };
        let mut model = Model::bare(from.clone()).with_tun();
        model.converge(&Owned::default());
        model.config = to.clone();
        let mut judge = &from;
        let owned = Owned::default();
        for change in model.plan(&owned) {
            model.make(&change);
            if matches!(change, Change::SucceedTable(..)) {
                judge = &to;
            }
            prop_assert!(!matches!(change, Change::ReplaceTable(_)));
            for node in 2..8 {
                let address = ip(&format!("10.1.{node}.7"));
                if closes(&from, address) && closes(&to, address) {
                    prop_assert_ne!(model.way_to(address, None), Way::Elsewhere, "after {}", change);
                    let found = &model.observed.tables["warren-warren0"];
                    let tables = fence::tables(judge, FEATURES);
                    prop_assert!(tables.iter().any(|table| table.is(found)));
                }
            }
        }
        prop_assert_eq!(model.plan(&owned), []);
    }
}

#[test]
fn a_change_of_steering_cuts_nothing_else_off_on_the_way() {
    for (from, to) in [(config(), overlay()), (overlay(), config())] {
        let mut model = Model::bare(from).with_tun();
        model.converge(&Owned::default());
        model.config = to;
        let owned = Owned::default();
        for change in model.plan(&owned) {
            model.make(&change);
            for elsewhere in ["198.51.100.7", "2001:db8:1::7"] {
                let way = model.way_to(ip(elsewhere), Some(53));
                assert_eq!(way, Way::Elsewhere, "after {change}");
            }
        }
        assert_eq!(model.plan(&owned), []);
        let fresh = Model::bare(model.config.clone()).with_tun();
        let mut fresh = fresh.clone();
        fresh.converge(&owned);
        let sorted = |model: &Model| {
            let mut rules: Vec<String> = model
                .observed
                .rules
                .iter()
                .map(ToString::to_string)
                .collect();
            rules.sort();
            rules
        };
        assert_eq!(sorted(&model), sorted(&fresh));
        assert_eq!(model.observed.routes.len(), fresh.observed.routes.len());
    }
}

#[test]
fn an_overlay_s_packets_go_by_the_tunnel_or_nowhere_and_all_else_as_before() {
    let mut model = Model::bare(overlay()).with_tun();
    model.converge(&Owned::default());
    for (to, port, way) in [
        ("192.0.2.2", Some(8472), Way::Tunnel),
        ("192.0.2.9", Some(8472), Way::Nowhere),
        ("192.0.2.2", Some(51820), Way::Elsewhere),
        ("192.0.2.2", None, Way::Elsewhere),
        ("2001:db8::2", Some(8472), Way::Tunnel),
        ("2001:db8::9", Some(8472), Way::Nowhere),
        ("2001:db8::2", None, Way::Elsewhere),
    ] {
        assert_eq!(model.way_to(ip(to), port), way, "{to} {port:?}");
    }
    let rules: Vec<String> = model
        .observed
        .rules
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        rules[..3],
        [
            "IPv4 96: lookup 255",
            "IPv4 99: ipproto udp dport 8472 blackhole",
            "IPv4 98: ipproto udp dport 8472 lookup 51820",
        ]
    );
    let sources = model
        .observed
        .routes
        .iter()
        .filter(|route| route.kind != RouteKind::Blackhole);
    let sources: Vec<Option<IpAddr>> = sources.map(|route| route.source).collect();
    // The host has no IPv6 address to send from.
    assert_eq!(sources, [Some(ip("192.0.2.1")), None]);

    // The link gone, and then the table flushed: closed by the rules.
    Damage::Deleted.befall(&mut model);
    assert_eq!(model.way_to(ip("192.0.2.2"), Some(8472)), Way::Nowhere);
    model.observed.routes.clear();
    assert_eq!(model.way_to(ip("192.0.2.2"), Some(8472)), Way::Nowhere);
    assert_eq!(model.way_to(ip("192.0.2.2"), None), Way::Elsewhere);
}

#[test]
fn a_mesh_in_many_pieces_asks_the_kernel_for_few_rules() {
    let mut config = staged(Some(false), &[], &[]);
    // No two beside each other, and all of them.
    for (step, backstop) in [(2, false), (1, true)] {
        let pieces = (256..456u16).step_by(step).map(|number| {
            let [high, low] = number.to_be_bytes();
            net(&format!("10.{}.{low}.0/24", 64 + high))
        });
        config.fence.mesh = pieces.collect();
        config.routes.clear();
        let mut model = Model::bare(config.clone()).with_tun();
        model.converge(&Owned::default());
        assert!(
            model.observed.rules.len() < 30,
            "{:?}",
            model.observed.rules
        );
        let piece = ip("10.65.2.9");
        assert_eq!(model.way_to(piece, None), Way::Nowhere);
        assert_eq!(model.way_to(ip("10.1.2.9"), None), Way::Elsewhere);
        // Marked packets come to the last rule alone.
        model.observed.rules.retain(|rule| rule.unmarked.is_none());
        assert_eq!(model.way_to(piece, None), Way::Nowhere);
        model.observed.routes.clear();
        let flushed = model.way_to(piece, None);
        assert_eq!(flushed == Way::Nowhere, backstop);

        model.converge(&Owned::default());
        let claims = [Claim::of(&config)].into();
        for change in plan_uninstall(&model.observed, &Owned { claims }) {
            model.make(&change);
        }
        assert_eq!(model.observed.rules, []);
    }
}

#[test]
fn an_exception_is_asked_for_in_the_table_main() {
    let mut model = Model::bare(staged(Some(true), &[true, true], &[false, true])).with_tun();
    model.converge(&Owned::default());
    assert_eq!(model.way_to(ip("10.1.2.7"), None), Way::Tunnel);
    assert_eq!(model.way_to(ip("10.1.3.7"), None), Way::Elsewhere);
    assert_eq!(model.way_to(ip("10.1.4.7"), None), Way::Nowhere);
}

#[test]
fn addresses_are_lent_while_that_is_asked_for_and_the_tables_are_put_back() {
    let mut config = config();
    config.masquerade = true;
    let mut model = Model::bare(config).with_tun();
    model.converge(&Owned::default());
    let names = |model: &Model| -> Vec<String> {
        (model.observed.masquerades.keys())
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(names(&model), ["ip warren-warren0", "ip6 warren-warren0"]);
    assert!(plan::masquerades(&model.observed, &model.config));

    model.observed.masquerades.clear();
    assert!(!plan::masquerades(&model.observed, &model.config));
    let changes = model.converge(&Owned::default());
    assert!(matches!(
        changes[..],
        [Change::ReplaceTable(_), Change::ReplaceTable(_)]
    ));

    // One that is not ours has the name of one of ours.
    let mut foreign = fence::masquerades(&model.config).remove(0);
    foreign.comment = "of somebody else";
    foreign.chains.clear();
    model.config.masquerade = false;
    let mut without = model.clone();
    without.converge(&Owned::default());
    assert_eq!(names(&without), [""; 0]);
    model
        .observed
        .masquerades
        .insert(foreign.name.clone(), Found::of(&foreign));
    model.converge(&Owned::default());
    assert_eq!(names(&model), ["ip warren-warren0"]);
}

#[test]
fn uninstalling_removes_the_tables_that_lend_addresses() {
    let mut config = config();
    config.masquerade = true;
    let claims = [Claim::of(&config)].into();
    let mut model = Model::bare(config).with_tun();
    model.converge(&Owned::default());
    for change in plan_uninstall(&model.observed, &Owned { claims }) {
        model.make(&change);
    }
    assert!(model.observed.tables.is_empty());
    assert!(model.observed.masquerades.is_empty());
}

#[test]
fn a_table_that_should_be_another_is_renewed_beside_itself_and_back() {
    let mut model = Model::whole();
    let mut generations = Vec::new();
    for node in 2..5 {
        model.config.fence.open = [net(&format!("10.1.{node}.0/24"))].into();
        for change in model.converge(&Owned::default()) {
            match change {
                Change::SucceedTable(table, remains) => {
                    assert!(table.fits_beside(&Found::default()));
                    assert_ne!(remains, Remains::default());
                    generations.push(table.generation);
                }
                Change::ReplaceTable(table) => panic!("{} is replaced", table.name),
                _ => {}
            }
        }
    }
    assert_eq!(generations, ["-b", "", "-b"]);
    // What has names of both, and is whole in neither, is replaced.
    let [one, other] = fence::tables(&config(), FEATURES);
    let found = Found::of(&one).beside(&Found::of(&other));
    model.observed.tables.insert(one.name.name.clone(), found);
    let changes = model.converge(&Owned::default());
    assert!(matches!(changes[0], Change::ReplaceTable(_)), "{changes:?}");
}

#[test]
fn a_kernel_that_translates_nothing_is_fenced_all_the_same() {
    let mut config = config();
    config.masquerade = true;
    let mut model = Model::bare(config).with_tun();
    model.observed.nftables = Nftables::Present(Features {
        masquerade: false,
        ..FEATURES
    });
    model.converge(&Owned::default());
    assert!(model.observed.masquerades.is_empty());
    assert_eq!(model.observed.tables.len(), 1);
    assert!(!plan::masquerades(&model.observed, &model.config));
}

#[test]
fn a_host_that_is_as_it_should_be_is_not_written_to() {
    assert_eq!(Model::whole().plan(&Owned::default()), []);
}

#[test]
fn without_a_link_both_fences_are_put_up() {
    let mut model = Model::bare(config());
    let changes = model.converge(&Owned::default());
    assert!(matches!(changes[0], Change::ReplaceTable(_)), "{changes:?}");
    let count = |is: fn(&Change) -> bool| changes.iter().filter(|change| is(change)).count();
    assert_eq!(count(|change| matches!(change, Change::AddRoute(_))), 2);
    // Local, own prefix, mesh and the tunnel's table, for each family.
    assert_eq!(count(|change| matches!(change, Change::AddRule(_))), 8);
    assert_eq!(changes.len(), 1 + 2 + 8);
}

#[test]
fn the_fence_closes_before_the_link_is_up_and_routes_come_last() {
    // The model asserts the order.
    let changes = Model::bare(config()).with_tun().converge(&Owned::default());
    let up = changes
        .iter()
        .position(|change| *change == Change::SetUp(TUNNEL));
    let last = changes.len() - config().routes.len() - 1;
    assert_eq!(up, Some(last));
}

#[test]
fn a_route_of_somebody_else_in_our_table_goes_first() {
    let mut model = Model::whole();
    Damage::ForeignRoute.befall(&mut model);
    Damage::Table.befall(&mut model);
    let changes = model.converge(&Owned::default());
    assert!(matches!(changes[0], Change::RemoveRoute(_)), "{changes:?}");
}

#[test]
fn an_interface_of_that_name_that_is_no_tun_is_left_alone() {
    let mut model = Model::bare(config()).with_tun();
    model.link(TUNNEL).kind = Some("wireguard".to_owned());
    let before = model.observed.clone();
    model.converge(&Owned::default());
    assert_eq!(model.observed.links, before.links);
    assert_eq!(model.observed.addresses, before.addresses);
    let occupied = occupied(&before, &config(), &Owned::default());
    assert_eq!(occupied, [Occupied::Interface("warren0".to_owned())]);
}

#[test]
fn rules_and_routes_of_others_are_left_alone() {
    let mut model = Model::bare(config()).with_tun();
    let theirs = Rule {
        family: Family::V4,
        priority: 98,
        to: None,
        unmarked: None,
        port: None,
        action: Action::Lookup {
            table: 100,
            suppress: None,
        },
        protocol: 3,
    };
    // At our own preferences, and with the same table.
    let kubernetes = Rule {
        priority: 99,
        to: Some(net("10.96.0.0/12")),
        ..theirs
    };
    model.observed.rules.extend([theirs, kubernetes]);
    let their_route = Route {
        table: 100,
        destination: net("0.0.0.0/0"),
        metric: 0,
        kind: RouteKind::Unicast(UNDERLAY),
        gateway: None,
        source: None,
        complex: false,
    };
    model.observed.routes.push(their_route);
    model.converge(&Owned::default());
    assert!(model.observed.rules.contains(&theirs));
    assert!(model.observed.rules.contains(&kubernetes));
    assert!(model.observed.routes.contains(&their_route));

    let owned = Owned {
        claims: [Claim::of(&config())].into(),
    };
    for change in plan_uninstall(&model.observed, &owned) {
        model.make(&change);
    }
    assert_eq!(model.observed.rules, [theirs, kubernetes]);
    assert_eq!(model.observed.routes, [their_route]);
    assert_eq!(model.observed.links.len(), 1);
    assert!(model.observed.tables.is_empty());
}

#[test]
fn a_routing_table_preference_or_nftables_table_in_use_by_others_is_named() {
    let mut model = Model::bare(config());
    Damage::ForeignRoute.befall(&mut model);
    let found = occupied(&model.observed, &config(), &Owned::default());
    assert!(
        matches!(found[..], [Occupied::RoutingTable { table: 51820, .. }]),
        "{found:?}"
    );

    let mut model = Model::bare(config());
    let mut table = fence::table(
        &config(),
        Features {
            way_back: true,
            exclusive: false,
            masquerade: true,
        },
    );
    table.comment = "of somebody else";
    table.chains.clear();
    model
        .observed
        .tables
        .insert(table.name.name.clone(), Found::of(&table));
    let found = occupied(&model.observed, &config(), &Owned::default());
    assert_eq!(found, [Occupied::Nftables("warren-warren0".to_owned())]);

    let mut model = Model::bare(config());
    let mut other = config();
    other.table = 999;
    model.observed.rules = fence::rules(&other, Family::V4);
    let found = occupied(&model.observed, &config(), &Owned::default());
    assert!(
        matches!(found[..], [Occupied::Preference { priority: 98, .. }]),
        "{found:?}"
    );

    // What is left of a run whose record is lost is ours by its shape.
    let whole = Model::whole().observed;
    assert_eq!(occupied(&whole, &config(), &Owned::default()), []);
}

#[test]
fn what_is_ours_under_another_name_is_not_in_the_way_of_a_new_one() {
    let whole = Model::whole().observed;
    let owned = Owned {
        claims: [Claim::of(&config())].into(),
    };
    let (mut interface, mut table) = (config(), config());
    interface.interface = "mesh1".to_owned();
    table.table = 999;
    for renamed in [interface, table] {
        assert_ne!(occupied(&whole, &renamed, &Owned::default()), []);
        assert_eq!(occupied(&whole, &renamed, &owned), []);
    }
}

#[test]
fn after_a_change_of_names_nothing_is_left_under_the_old_ones() {
    let mut model = Model::whole();
    let old = Claim::of(&model.config);
    model.config.interface = "mesh1".to_owned();
    model.config.table = 999;
    model.config.rule_priority = 200;
    let owned = Owned {
        claims: [old.clone(), Claim::of(&model.config)].into(),
    };
    model.converge(&owned);
    assert_eq!(model.observed.link("warren0"), None);
    assert!(model.observed.routes.iter().all(|route| route.table == 999));
    assert!(
        model
            .observed
            .rules
            .iter()
            .all(|rule| (198..=201).contains(&rule.priority))
    );
    assert_eq!(
        model.observed.tables.keys().collect::<Vec<_>>(),
        ["warren-mesh1"]
    );
}

#[test]
fn preferences_that_overlap_the_old_ones_lose_no_rule() {
    let mut model = Model::whole();
    let old = Claim::of(&model.config);
    for priority in 95..=101 {
        let mut model = model.clone();
        model.config.rule_priority = priority;
        let owned = Owned {
            claims: [old.clone(), Claim::of(&model.config)].into(),
        };
        model.converge(&owned);
        assert_eq!(model.observed.rules.len(), 8);
    }
    model.converge(&Owned::default());
}

#[test]
fn a_host_without_ipv6_is_fenced_for_ipv4() {
    let mut model = Model::bare(config()).with_tun();
    model.observed.families = [Family::V4].into();
    model.converge(&Owned::default());
    assert!(
        model
            .observed
            .rules
            .iter()
            .all(|rule| rule.family == Family::V4)
    );
    assert_eq!(model.observed.rules.len(), 4);
}

#[test]
fn a_kernel_without_nftables_is_fenced_by_the_rules() {
    let mut model = Model::bare(config()).with_tun();
    model.observed.nftables = Nftables::Absent("no such protocol".to_owned());
    let changes = model.converge(&Owned::default());
    assert!(
        !changes
            .iter()
            .any(|change| matches!(change, Change::ReplaceTable(_)))
    );
    assert_eq!(model.observed.rules.len(), 8);
}

#[test]
fn prefixes_within_each_other_and_beside_each_other_make_ranges_that_are_apart() {
    let mut config = config();
    config.fence.mesh = [
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.2.0.0/16",
        "10.3.0.0/16",
        "255.255.255.0/24",
    ]
    .map(net)
    .into();
    let features = Features {
        way_back: true,
        exclusive: true,
        masquerade: true,
    };
    let table = fence::table(&config, features);
    let mesh = table
        .sets
        .iter()
        .find(|set| set.name == "mesh4")
        .expect("is always there");
    let range = |from: [u8; 4], to: Option<[u8; 4]>| (from.to_vec(), to.map(|to| to.to_vec()));
    let expected = [
        range([10, 1, 0, 0], Some([10, 4, 0, 0])),
        range([255, 255, 255, 0], None),
    ];
    assert_eq!(mesh.ranges, expected);
}
