//! Rules of others ahead of the fence's: what may take the mesh's packets before they come to it.
//!
//! The kernel asks its rules in order, and the first that finds a route decides. So the fence's rules hold by
//! themselves only where no rule before them can find one for what is the mesh's. Others' rules are not
//! ours to remove; they are named, and the nftables table is the fence that is left.
//!
//! In doubt a rule counts: what a packet's source, protocol, port or user may be nobody can say in
//! advance. A rule does not count when
//!
//! - it drops, does nothing, or asks the table `local`, as the kernel's own first rule does;
//! - it is about other destinations, or about what is behind this node alone;
//! - it is about the tunnel's interface, or about one that is not there;
//! - it comes behind our lookup, and is not about the tunnel's mark;
//! - its table has no route for the mesh. The tables `main` and `default` are not looked into, nor is one
//!   that is very long: they change all the time, and a default route is in there soon enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use libc::{RTN_BLACKHOLE, RTN_PROHIBIT, RTN_THROW, RTN_UNREACHABLE};
use warren_config::{HostConfig, Steering};

use crate::fence;
use crate::observe::Observed;
use crate::route::{self, Action, Family, LOCAL_TABLE, MAIN_TABLE, Route, RouteKind, Rule};
use crate::wire::{self, read_u32};

/// `RT_TABLE_DEFAULT`.
const DEFAULT_TABLE: u32 = 253;

const FR_ACT_GOTO: u8 = 2;
const FR_ACT_UNREACHABLE: u8 = 7;
const FR_ACT_PROHIBIT: u8 = 8;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_FLOW: u16 = 11;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;

/// A rule of any shape, as far as it tells what packets it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyRule {
    /// Whose packets.
    pub family: Family,
    /// The lower, the sooner; among equals the older comes first.
    pub priority: u32,
    /// Whether it is about the packets that the selectors do not name.
    pub inverted: bool,
    /// Packets to this prefix.
    pub to: Option<IpNet>,
    /// Packets with this mark under this mask.
    pub marked: Option<(u32, u32)>,
    /// Packets that came in by the interface of this name.
    pub from_interface: Option<String>,
    /// Packets of sockets that are tied to the interface of this name.
    pub by_interface: Option<String>,
    /// Packets of this IP protocol.
    pub ip_protocol: Option<u8>,
    /// Packets to a port from the first to the second.
    pub ports: Option<(u16, u16)>,
    /// Whether it selects by anything else.
    pub is_narrower: bool,
    /// What is done with the packets.
    pub deed: Deed,
    /// The rule, if it is of a shape that this crate makes.
    pub ours: Option<Rule>,
}

/// What a rule of any shape does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Looks the destination up.
    Lookup {
        /// In this table.
        table: u32,
        /// And goes on to the next rule when the route's prefix is this short or shorter.
        suppress: Option<u32>,
    },
    /// Looks the destination up in the table of the packet's VRF.
    LookupOfVrf,
    /// Goes on with the rule of this preference.
    GoTo(u32),
    /// Drops, or goes on with the next rule.
    Harmless,
    /// Something that this crate does not know; the kernel's number.
    Unknown(u8),
}

/// A rule of somebody else that may take the mesh's packets before they come to the fence's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// Whose packets.
    pub family: Family,
    /// Its preference.
    pub priority: u32,
    /// What it does with them.
    pub deed: Deed,
}

impl fmt::Display for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family.name();
        write!(f, "the {family} rule of preference {} (", self.priority)?;
        match self.deed {
            Deed::Lookup { table, .. } => write!(f, "lookup {table}")?,
            Deed::LookupOfVrf => write!(f, "lookup of a VRF")?,
            Deed::GoTo(priority) => write!(f, "goto {priority}")?,
            Deed::Harmless => write!(f, "nothing")?,
            Deed::Unknown(number) => write!(f, "action {number}")?,
        }
        write!(f, ")")
    }
}

/// The rules of others that may take the mesh's packets before they come to ours, in the kernel's order.
pub fn ahead(observed: &Observed, config: &HostConfig) -> Vec<Ahead> {
    let families = observed.families.iter();
    families
        .flat_map(|family| ahead_in(observed, config, *family))
        .collect()
}

fn ahead_in(observed: &Observed, config: &HostConfig, family: Family) -> Vec<Ahead> {
    let ours = fence::rules(config, family);
    // What no rule of ours has stopped yet.
    let mesh = fence::joined(&config.fence.mesh, family);
    let mut open: BTreeSet<IpNet> = mesh.into_iter().collect();
    // An overlay has one of each for each of its ports.
    let ports = match &config.steering {
        Steering::Prefixes => 1,
        Steering::Overlay { ports } => ports.len(),
    };
    let mut lookups = 0;
    let mut blackholes: BTreeMap<IpNet, usize> = BTreeMap::new();
    let mut is_marked = false;
    let mut found = Vec::new();
    let rules = observed.order.iter();
    for rule in rules.filter(|rule| rule.family == family) {
        if open.is_empty() {
            break;
        }
        if let Some(rule) = rule.ours.filter(|rule| ours.contains(rule)) {
            // The lookup takes all that has not the mark, the blackholes what they name.
            if rule.priority == config.rule_priority {
                lookups += 1;
                is_marked |= lookups == ports;
            }
            // It leads to the blackholes of all.
            if rule.priority == config.rule_priority + 1 && rule.action != Action::Blackhole {
                open.clear();
            }
            let everything = || open.iter().find(|prefix| prefix.prefix_len() == 0);
            if rule.priority == config.rule_priority + 1
                && let Some(prefix) = rule.to.or_else(|| everything().copied())
            {
                let passed = blackholes.entry(prefix).or_default();
                *passed += 1;
                if *passed == ports {
                    open.remove(&prefix);
                }
            }
        } else if rule.may_take(observed, config, &open, is_marked) {
            found.push(Ahead {
                family,
                priority: rule.priority,
                deed: rule.deed,
            });
        }
    }
    found
}

impl AnyRule {
    /// A rule as the kernel tells it. What it selects by and is not known here makes it narrower.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let fixed: [u8; 12] = *payload.first_chunk()?;
        let [family, to_length, from_length, tos, table, _, _, action, ..] = fixed;
        let mut rule = Self {
            family: Family::from_number(family)?,
            priority: 0,
            inverted: read_u32(&fixed[8..])? & route::FIB_RULE_INVERT != 0,
            to: None,
            marked: None,
            from_interface: None,
            by_interface: None,
            ip_protocol: None,
            ports: None,
            is_narrower: from_length != 0 || tos != 0,
            deed: Deed::Unknown(action),
            ours: Rule::parse(payload),
        };
        let (mut mark, mut mask) = (None, None);
        let (mut table, mut suppress) = (u32::from(table), None);
        let (mut next, mut of_vrf) = (None, false);
        let name = |value| wire::read_text(value).map(str::to_owned);
        for (kind, value) in wire::attributes(payload.get(12..)?) {
            match kind {
                route::FRA_DST => {
                    rule.to = Some(IpNet::new(route::read_ip(value)?, to_length).ok()?);
                }
                FRA_IIFNAME => rule.from_interface = name(value),
                FRA_OIFNAME => rule.by_interface = name(value),
                FRA_GOTO => next = read_u32(value),
                route::FRA_PRIORITY => rule.priority = read_u32(value)?,
                route::FRA_FWMARK => mark = read_u32(value),
                route::FRA_FWMASK => mask = read_u32(value),
                route::FRA_TABLE => table = read_u32(value)?,
                route::FRA_SUPPRESS_PREFIXLEN => {
                    suppress = read_u32(value).filter(|length| *length != route::UNSUPPRESSED);
                }
                route::FRA_IP_PROTO => rule.ip_protocol = value.first().copied(),
                route::FRA_DPORT_RANGE => rule.ports = route::read_ports(value),
                route::FRA_DPORT_MASK if value == [0xff; 2] => {}
                FRA_L3MDEV => of_vrf = value.first() == Some(&1),
                // No selectors.
                route::FRA_SUPPRESS_IFGROUP | route::FRA_PROTOCOL | FRA_FLOW | FRA_PAD => {}
                route::FRA_TUN_ID if value.iter().all(|byte| *byte == 0) => {}
                _ => rule.is_narrower = true,
            }
        }
        if mark.is_some() || mask.is_some() {
            rule.marked = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
        }
        rule.deed = match (action, next) {
            (route::FR_ACT_TO_TBL, _) if of_vrf => Deed::LookupOfVrf,
            (route::FR_ACT_TO_TBL, _) => Deed::Lookup { table, suppress },
            (FR_ACT_GOTO, Some(next)) => Deed::GoTo(next),
            (
                route::FR_ACT_NOP | route::FR_ACT_BLACKHOLE | FR_ACT_UNREACHABLE | FR_ACT_PROHIBIT,
                _,
            ) => Deed::Harmless,
            _ => Deed::Unknown(action),
        };
        Some(rule)
    }

    /// The table that must be looked into to know whether the rule takes anything.
    pub(crate) fn table(&self) -> Option<u32> {
        match self.deed {
            Deed::Lookup { table, .. } => {
                (![LOCAL_TABLE, MAIN_TABLE, DEFAULT_TABLE].contains(&table)).then_some(table)
            }
            _ => None,
        }
    }

    fn may_take(
        &self,
        observed: &Observed,
        config: &HostConfig,
        open: &BTreeSet<IpNet>,
        is_marked: bool,
    ) -> bool {
        let at_stake = self.at_stake(config, open);
        if at_stake.is_empty() || !self.may_match(observed, config, is_marked) {
            return false;
        }
        match self.deed {
            Deed::Harmless => false,
            // It may not jump over our blackholes.
            Deed::GoTo(priority) => priority > config.rule_priority + 1,
            Deed::LookupOfVrf | Deed::Unknown(_) => true,
            Deed::Lookup {
                table: LOCAL_TABLE, ..
            } => false,
            Deed::Lookup {
                table: MAIN_TABLE | DEFAULT_TABLE,
                ..
            } => true,
            Deed::Lookup { table, suppress } => {
                let tunnel = observed.link(&config.interface).map(|link| link.index);
                let routes = match observed.others.get(&(self.family, table)) {
                    Some(Some(routes)) => routes.iter(),
                    Some(None) => return true,
                    None => return false,
                };
                let mut routes = routes.filter(|route| leads_elsewhere(route, suppress, tunnel));
                routes.any(|route| {
                    let common = |prefix| overlap(prefix, &route.destination);
                    let mut taken = at_stake.iter().filter_map(common);
                    taken.any(|prefix| !is_own(config, &prefix) && !is_open(config, &prefix))
                })
            }
        }
    }

    /// Destinations of the mesh that the rule may be about, but for what is this node's own.
    fn at_stake(&self, config: &HostConfig, open: &BTreeSet<IpNet>) -> Vec<IpNet> {
        let by_destination_alone = self.marked.is_none() && !self.selects_by_more();
        let of_rule = |prefix: &IpNet| match (self.to, self.inverted) {
            (None, _) => Some(*prefix),
            (Some(to), false) => overlap(prefix, &to),
            (Some(to), true) => (!(by_destination_alone && to.contains(prefix))).then_some(*prefix),
        };
        (open.iter().filter_map(of_rule))
            .filter(|prefix| !is_own(config, prefix) && !is_open(config, prefix))
            .collect()
    }

    /// Whether there can be a packet with the properties that it selects by, its destination apart.
    fn may_match(&self, observed: &Observed, config: &HostConfig, is_marked: bool) -> bool {
        let has_tunnel_mark = (self.marked).map(|(mark, mask)| config.fwmark & mask == mark & mask);
        if self.inverted {
            // All packets that come here, or none of them.
            let matches_all =
                !is_marked && self.marked.is_none() || is_marked && has_tunnel_mark.unwrap_or(true);
            return self.to.is_some() || self.selects_by_more() || !matches_all;
        }
        let is_overlay_s = match &config.steering {
            Steering::Prefixes => true,
            Steering::Overlay { ports } => {
                let (first, last) = self.ports.unwrap_or((0, u16::MAX));
                self.ip_protocol
                    .is_none_or(|protocol| protocol == route::UDP)
                    && ports.range(first..=last.max(first)).next().is_some()
            }
        };
        // What the peers send is let out of the tunnel to this node and its own only.
        let is_other = |name: &String| *name != config.interface && observed.link(name).is_some();
        is_overlay_s
            && (!is_marked || has_tunnel_mark.unwrap_or(true))
            && self.from_interface.as_ref().is_none_or(is_other)
            && self.by_interface.as_ref().is_none_or(is_other)
    }

    /// Whether it selects by more than destination and mark.
    fn selects_by_more(&self) -> bool {
        let by_port = self.ip_protocol.is_some() || self.ports.is_some();
        let by_interface = self.from_interface.is_some() || self.by_interface.is_some();
        self.is_narrower || by_port || by_interface
    }

    /// Whether this is what [`Rule::try_out`] added, with all of its selectors.
    pub(crate) fn is_trial_of(&self, rule: &Rule) -> bool {
        let ports = rule.port.map(|port| (port, port));
        (self.family, self.priority, self.deed) == (rule.family, rule.priority, Deed::Harmless)
            && (self.ip_protocol, self.ports) == (Some(route::UDP), ports)
    }
}

/// Whether all of a prefix is this node's own.
fn is_own(config: &HostConfig, prefix: &IpNet) -> bool {
    let mut local = config.fence.local.iter();
    local.any(|local| local.trunc().contains(prefix))
}

/// Whether all of a prefix is carried in the clear anyway.
fn is_open(config: &HostConfig, prefix: &IpNet) -> bool {
    let mut open = config.fence.open.iter();
    open.any(|open| open.trunc().contains(prefix))
}

/// Whether a route found in another table sends packets somewhere, other than into the tunnel.
fn leads_elsewhere(route: &Route, suppress: Option<u32>, tunnel: Option<u32>) -> bool {
    let is_suppressed =
        suppress.is_some_and(|length| u32::from(route.destination.prefix_len()) <= length);
    let sends = match route.kind {
        RouteKind::Unicast(interface) => Some(interface) != tunnel || route.complex,
        RouteKind::Blackhole => false,
        RouteKind::Other(kind) => {
            ![RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW].contains(&kind)
        }
    };
    sends && !is_suppressed
}

/// What two prefixes have in common: the narrower of them, or nothing.
fn overlap(one: &IpNet, other: &IpNet) -> Option<IpNet> {
    let (one, other) = (one.trunc(), other.trunc());
    if one.contains(&other) {
        Some(other)
    } else {
        other.contains(&one).then_some(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Link;
    use crate::tests::{config, ip, net};

    const UNDERLAY: u32 = 2;

    /// A host with our rules, and one of somebody else among those of IPv4, at its place.
    fn host(theirs: AnyRule) -> Observed {
        host_of(&config(), theirs)
    }

    fn host_of(config: &HostConfig, theirs: AnyRule) -> Observed {
        let mut observed = Observed {
            families: Family::ALL.into(),
            ..Observed::default()
        };
        for (index, name) in [(UNDERLAY, "eth0"), (7, "warren0")] {
            let link = Link {
                index,
                name: name.to_owned(),
                mtu: 1500,
                up: true,
                kind: None,
                master: None,
                reverse_path_filter: None,
                makes_link_local: None,
            };
            observed.links.insert(index, link);
        }
        let ours = Family::ALL.map(|family| fence::rules(config, family));
        let ours = ours
            .iter()
            .flatten()
            .map(|rule| AnyRule::parse(rule.add().payload()).expect("it is a rule"));
        observed.order = ours.collect();
        assert!(observed.order.iter().all(|rule| rule.ours.is_some()));
        // Among equals it is the oldest.
        observed.order.insert(0, theirs);
        observed.order.sort_by_key(|rule| rule.priority);
        observed
    }

    fn theirs(priority: u32, table: u32) -> AnyRule {
        let suppress = None;
        AnyRule {
            family: Family::V4,
            priority,
            inverted: false,
            to: None,
            marked: None,
            from_interface: None,
            by_interface: None,
            ip_protocol: None,
            ports: None,
            is_narrower: false,
            deed: Deed::Lookup { table, suppress },
            ours: None,
        }
    }

    fn is_ahead(rule: AnyRule) -> bool {
        let (priority, deed) = (rule.priority, rule.deed);
        let found = ahead(&host(rule), &config());
        let expected = Ahead {
            family: Family::V4,
            priority,
            deed,
        };
        assert!(found.is_empty() || found == [expected], "{found:?}");
        !found.is_empty()
    }

    #[test]
    fn a_rule_for_everything_counts_ahead_of_ours_and_at_the_same_preference() {
        for (priority, counts) in [(0, true), (95, true), (97, true), (98, true), (100, false)] {
            assert_eq!(is_ahead(theirs(priority, MAIN_TABLE)), counts, "{priority}");
        }
        // Between our lookup and our blackholes there is only what has the tunnel's mark.
        let marked = |mark, mask| AnyRule {
            marked: Some((mark, mask)),
            ..theirs(99, MAIN_TABLE)
        };
        assert!(is_ahead(theirs(99, MAIN_TABLE)));
        assert!(is_ahead(marked(0x2000, 0xf000)));
        assert!(!is_ahead(marked(0x1, 0xf)));
        let other_than = |mark| AnyRule {
            inverted: true,
            ..marked(mark, u32::MAX)
        };
        assert!(is_ahead(other_than(0xca6c)));
        assert!(!is_ahead(other_than(0x2000)));
    }

    #[test]
    fn selectors_that_no_packet_to_another_node_has_do_not_count() {
        let counts = |change: fn(&mut AnyRule)| {
            let mut rule = theirs(50, MAIN_TABLE);
            change(&mut rule);
            is_ahead(rule)
        };
        assert!(counts(|rule| rule.to = Some(net("10.0.0.0/8"))));
        assert!(counts(|rule| rule.to = Some(net("10.1.2.5/32"))));
        assert!(!counts(|rule| rule.to = Some(net("203.0.113.0/24"))));
        // What is behind this node goes its own way.
        assert!(!counts(|rule| rule.to = Some(net("10.1.1.0/25"))));
        assert!(counts(|rule| rule.is_narrower = true));
        assert!(counts(|rule| rule.marked = Some((1, 1))));
        assert!(counts(|rule| rule.from_interface = Some("eth0".to_owned())));
        assert!(counts(|rule| rule.by_interface = Some("eth0".to_owned())));
        for name in ["warren0", "gone0"] {
            let mut rule = theirs(50, MAIN_TABLE);
            rule.from_interface = Some(name.to_owned());
            assert!(!is_ahead(rule.clone()), "{name}");
            rule.by_interface = rule.from_interface.take();
            assert!(!is_ahead(rule), "{name}");
        }

        let inverted = |change: fn(&mut AnyRule)| {
            let mut rule = theirs(50, MAIN_TABLE);
            rule.inverted = true;
            change(&mut rule);
            is_ahead(rule)
        };
        assert!(!inverted(|_| ()));
        assert!(!inverted(|rule| rule.to = Some(net("10.0.0.0/8"))));
        assert!(inverted(|rule| rule.to = Some(net("10.1.2.0/24"))));
        assert!(inverted(|rule| {
            rule.to = Some(net("10.0.0.0/8"));
            rule.is_narrower = true;
        }));
        assert!(inverted(|rule| rule.marked = Some((0xca6c, u32::MAX))));
        assert!(inverted(
            |rule| rule.from_interface = Some("gone0".to_owned())
        ));
    }

    #[test]
    fn only_a_deed_that_may_let_packets_past_counts() {
        let counts = |deed| {
            is_ahead(AnyRule {
                deed,
                ..theirs(50, 0)
            })
        };
        assert!(!counts(Deed::Harmless));
        assert!(counts(Deed::LookupOfVrf));
        assert!(counts(Deed::Unknown(5)));
        assert!(!counts(Deed::GoTo(60)));
        assert!(counts(Deed::GoTo(1000)));
        assert!(!is_ahead(theirs(50, LOCAL_TABLE)));
    }

    #[test]
    fn a_table_counts_when_a_route_in_it_leads_the_mesh_elsewhere() {
        let counts = |destination: &str, kind, suppress| {
            let mut rule = theirs(50, 100);
            rule.deed = Deed::Lookup {
                table: 100,
                suppress,
            };
            let mut observed = host(rule);
            let route = Route {
                table: 100,
                destination: net(destination),
                metric: 0,
                kind,
                gateway: Some(ip("192.0.2.254")),
                source: None,
                complex: false,
            };
            observed.others.insert((Family::V4, 100), Some(vec![route]));
            !ahead(&observed, &config()).is_empty()
        };
        let away = RouteKind::Unicast(UNDERLAY);
        assert!(!is_ahead(theirs(50, 100)));
        assert!(counts("0.0.0.0/0", away, None));
        assert!(!counts("0.0.0.0/0", away, Some(0)));
        assert!(counts("10.1.2.5/32", away, Some(0)));
        assert!(!counts("10.2.0.0/16", away, None));
        assert!(!counts("10.1.1.0/24", away, None));
        assert!(!counts("::/0", away, None));
        assert!(!counts("10.1.0.0/16", RouteKind::Unicast(7), None));
        assert!(!counts("10.1.0.0/16", RouteKind::Blackhole, None));
        assert!(!counts(
            "10.1.0.0/16",
            RouteKind::Other(RTN_UNREACHABLE),
            None
        ));
        assert!(counts("10.1.0.0/16", RouteKind::Other(libc::RTN_NAT), None));

        // Of one that is too long to be read nobody knows.
        let mut observed = host(theirs(50, 100));
        observed.others.insert((Family::V6, 100), None);
        assert!(ahead(&observed, &config()).is_empty());
        observed.others.insert((Family::V4, 100), None);
        assert_eq!(ahead(&observed, &config()).len(), 1);
    }

    #[test]
    fn a_rule_about_what_is_an_exception_does_not_count() {
        let mut config = config();
        config.fence.open = [net("10.1.2.0/24")].into();
        for (to, counts) in [
            ("10.1.2.0/24", false),
            ("10.1.2.9/32", false),
            ("10.1.3.0/24", true),
        ] {
            let rule = AnyRule {
                to: Some(net(to)),
                ..theirs(90, MAIN_TABLE)
            };
            let found = ahead(&host_of(&config, rule), &config);
            assert_eq!(!found.is_empty(), counts, "{to}");
        }
    }

    #[test]
    fn of_an_overlay_a_rule_counts_that_may_be_about_its_ports() {
        let ports = [4789, 8472].into();
        let mut config = config();
        config.steering = Steering::Overlay { ports };
        config.fence.mesh = ["0.0.0.0/0", "::/0"].map(net).into();
        config.fence.local = ["192.0.2.1/32"].map(net).into();
        let tcp = 6;
        for (priority, ip_protocol, ports, counts) in [
            (90, None, None, true),
            (90, Some(route::UDP), None, true),
            (90, Some(tcp), None, false),
            (90, Some(route::UDP), Some((53, 53)), false),
            (90, Some(route::UDP), Some((4000, 5000)), true),
            (90, None, Some((8472, 8472)), true),
            // The kernel's own come after the last blackhole.
            (100, None, None, false),
            (32766, None, None, false),
        ] {
            let rule = AnyRule {
                ip_protocol,
                ports,
                ..theirs(priority, MAIN_TABLE)
            };
            let found = ahead(&host_of(&config, rule.clone()), &config);
            assert_eq!(!found.is_empty(), counts, "{rule:?}");
        }
    }

    #[test]
    fn a_rule_for_one_port_is_read_as_older_and_as_newer_kernels_tell_it() {
        let rule = Rule {
            family: Family::V4,
            priority: 98,
            to: None,
            unmarked: None,
            port: Some(8472),
            action: Action::Lookup {
                table: 51820,
                suppress: None,
            },
            protocol: route::PROTOCOL_KERNEL,
        };
        let older = rule.add().payload().to_vec();
        assert_eq!(Rule::parse(&older), Some(rule));
        let mask = wire::Message::new(0, 0, &[], &[wire::bytes(route::FRA_DPORT_MASK, &[0xff; 2])]);
        let newer = [older.as_slice(), mask.payload()].concat();
        assert_eq!(Rule::parse(&newer), Some(rule));
        let read = AnyRule::parse(&newer).expect("it is a rule");
        assert!(!read.is_narrower && read.ours == Some(rule));
        // One for several ports is nobody's of ours.
        let mask = wire::Message::new(0, 0, &[], &[wire::bytes(route::FRA_DPORT_MASK, &[0xff, 0])]);
        let masked = [older.as_slice(), mask.payload()].concat();
        assert_eq!(Rule::parse(&masked), None);
    }

    #[test]
    fn what_the_kernel_tells_of_a_rule_is_read() {
        let lookup = Action::Lookup {
            table: 51820,
            suppress: Some(0),
        };
        let rule = Rule {
            family: Family::V4,
            priority: 40,
            to: Some(net("10.0.0.0/8")),
            unmarked: Some(0xca6c),
            port: None,
            action: lookup,
            protocol: 3,
        };
        let read = AnyRule::parse(rule.add().payload()).expect("it is a rule");
        let expected = AnyRule {
            inverted: true,
            to: rule.to,
            marked: Some((0xca6c, u32::MAX)),
            deed: Deed::Lookup {
                table: 51820,
                suppress: Some(0),
            },
            ours: Some(rule),
            ..theirs(40, 0)
        };
        assert_eq!(read, expected);

        // `iif eth0 fwmark 0/0xff ipproto tcp goto 1000`
        let mut fixed = [0; 12];
        fixed[0] = 2;
        fixed[7] = FR_ACT_GOTO;
        let attrs = [
            wire::text(FRA_IIFNAME, "eth0"),
            wire::u32(route::FRA_FWMASK, 0xff),
            wire::bytes(route::FRA_IP_PROTO, &[6]),
            wire::u32(FRA_GOTO, 1000),
            wire::u32(route::FRA_PRIORITY, 7),
        ];
        let message = wire::Message::new(0, 0, &fixed, &attrs);
        let read = AnyRule::parse(message.payload()).expect("it is a rule");
        let expected = AnyRule {
            marked: Some((0, 0xff)),
            from_interface: Some("eth0".to_owned()),
            ip_protocol: Some(6),
            deed: Deed::GoTo(1000),
            ..theirs(7, 0)
        };
        assert_eq!(read, expected);
    }
}
