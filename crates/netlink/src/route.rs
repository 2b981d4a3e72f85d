//! Links, addresses, routes and rules: what of rtnetlink this crate speaks.
//!
//! `netlink-packet-route` decodes every attribute of every driver, and a message with one that it
//! does not know is lost. A fence must not depend on that, and needs about thirty attributes:
//! they are here, with the names of `include/uapi/linux/{rtnetlink,if_link,fib_rules}.h`.

use std::net::IpAddr;

use ipnet::IpNet;
use libc::{
    AF_INET, AF_INET6, AF_UNSPEC, IFF_UP, IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_IFNAME, IFLA_INFO_KIND,
    IFLA_LINKINFO, IFLA_MTU, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE, RT_TABLE_LOCAL, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC,
    RTA_PRIORITY, RTA_TABLE, RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_DELRULE, RTM_GETADDR,
    RTM_GETLINK, RTM_GETROUTE, RTM_GETRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE,
    RTN_BLACKHOLE, RTN_UNICAST,
};

use crate::wire::{self, Attr, Message, find, read_u32};

/// The table `local`, which the kernel keeps.
pub const LOCAL_TABLE: u32 = RT_TABLE_LOCAL as u32;
/// The table `main`, where everybody's routes are.
pub const MAIN_TABLE: u32 = RT_TABLE_MAIN as u32;
/// `RTPROT_KERNEL`. systemd-networkd drops foreign rules and routes unless they are the kernel's.
pub(crate) const PROTOCOL_KERNEL: u8 = libc::RTPROT_KERNEL;

const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFA_F_NODAD_NOPREFIXROUTE: u32 = 0x02 | 0x200;
const RTM_F_CLONED: u32 = 0x200;
pub(crate) const FR_ACT_TO_TBL: u8 = 1;
pub(crate) const FR_ACT_NOP: u8 = 3;
pub(crate) const FR_ACT_BLACKHOLE: u8 = 6;
pub(crate) const FIB_RULE_INVERT: u32 = 2;
pub(crate) const FRA_DST: u16 = 1;
pub(crate) const FRA_PRIORITY: u16 = 6;
pub(crate) const FRA_FWMARK: u16 = 10;
pub(crate) const FRA_TUN_ID: u16 = 12;
pub(crate) const FRA_SUPPRESS_IFGROUP: u16 = 13;
pub(crate) const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
pub(crate) const FRA_TABLE: u16 = 15;
pub(crate) const FRA_FWMASK: u16 = 16;
pub(crate) const FRA_PROTOCOL: u16 = 21;
pub(crate) const FRA_IP_PROTO: u16 = 22;
pub(crate) const FRA_DPORT_RANGE: u16 = 24;
pub(crate) const FRA_DPORT_MASK: u16 = 29;
pub(crate) const UDP: u8 = 17;
/// `IFLA_MASTER`: the bridge or bond that an interface is a port of.
const IFLA_MASTER: u16 = 10;
/// What a rule has when it does not suppress.
pub(crate) const UNSUPPRESSED: u32 = u32::MAX;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a prefix.
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Its name, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn number(self) -> u8 {
        narrow(match self {
            Self::V4 => AF_INET,
            Self::V6 => AF_INET6,
        })
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|family| family.number() == number)
    }

    fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from([0; 4]),
            Self::V6 => IpAddr::from([0; 16]),
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// What kind it is (`tun`, `veth`), if it is a virtual one.
    pub kind: Option<String>,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// `rp_filter` of the interface, without that of `all`.
    pub reverse_path_filter: Option<u32>,
    /// Whether the kernel gives it a link-local address.
    pub makes_link_local: Option<bool>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of the interface.
    pub interface: u32,
    /// The address with the prefix that it was given with.
    pub address: IpNet,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// The table that it is in.
    pub table: u32,
    /// Where it leads to.
    pub destination: IpNet,
    /// The lower, the sooner.
    pub metric: u32,
    /// What is done with the packets.
    pub kind: RouteKind,
    /// By which gateway.
    pub gateway: Option<IpAddr>,
    /// Source address of what this host sends by it.
    pub source: Option<IpAddr>,
    /// Whether it has several next hops, or is otherwise more than the fields say.
    pub complex: bool,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Forwards by the interface of this index.
    Unicast(u32),
    /// Drops.
    Blackhole,
    /// Something else; the kernel's number.
    Other(u8),
}

/// A rule that selects a routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Whose packets.
    pub family: Family,
    /// The lower, the sooner.
    pub priority: u32,
    /// Only packets to this prefix.
    pub to: Option<IpNet>,
    /// Only packets without this mark.
    pub unmarked: Option<u32>,
    /// Only UDP to this port. Rules know ports since Linux 4.17.
    pub port: Option<u16>,
    /// What is done with the packets.
    pub action: Action,
    /// Who made it.
    pub protocol: u8,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Looks the destination up.
    Lookup {
        /// In this table.
        table: u32,
        /// And goes on to the next rule when the route's prefix is this short or shorter.
        suppress: Option<u32>,
    },
    /// Drops.
    Blackhole,
}

fn header(bytes: &[&[u8]]) -> Vec<u8> {
    bytes.concat()
}

/// `struct ifinfomsg`.
fn link_header(family: i32, index: u32, flags: u32, change: u32) -> Vec<u8> {
    header(&[
        &[narrow(family), 0, 0, 0],
        &index.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &change.to_ne_bytes(),
    ])
}

pub(crate) fn dump_links() -> Message {
    Message::new(RTM_GETLINK, 0, &link_header(AF_UNSPEC, 0, 0, 0), &[])
}

pub(crate) fn dump_addresses() -> Message {
    // `struct ifaddrmsg`.
    Message::new(RTM_GETADDR, 0, &[0; 8], &[])
}

/// Asks for the routes of one table; an old kernel sends those of every table.
pub(crate) fn dump_routes(family: Family, table: u32) -> Message {
    let fixed = route_header(family, 0, 0, 0);
    Message::new(RTM_GETROUTE, 0, &fixed, &[wire::u32(RTA_TABLE, table)])
}

pub(crate) fn dump_rules(family: Family) -> Message {
    // `struct fib_rule_hdr`.
    let mut fixed = [0; 12];
    fixed[0] = family.number();
    Message::new(RTM_GETRULE, 0, &fixed, &[])
}

impl Link {
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let index = read_u32(payload.get(4..)?)?;
        let flags = read_u32(payload.get(8..)?)?;
        let attrs = payload.get(16..)?;
        let families = find(attrs, IFLA_AF_SPEC).unwrap_or_default();
        let inet = find(families, AF_INET as u16).unwrap_or_default();
        let inet6 = find(families, AF_INET6 as u16).unwrap_or_default();
        // The settings are numbered from one, and dumped as an array.
        let setting = 4 * (usize::from(IPV4_DEVCONF_RP_FILTER) - 1);
        Some(Self {
            index,
            name: wire::read_text(find(attrs, IFLA_IFNAME)?)?.to_owned(),
            mtu: find(attrs, IFLA_MTU).and_then(read_u32).unwrap_or(0),
            up: flags & IFF_UP as u32 != 0,
            kind: find(attrs, IFLA_LINKINFO)
                .and_then(|info| find(info, IFLA_INFO_KIND))
                .and_then(wire::read_text)
                .map(str::to_owned),
            master: find(attrs, IFLA_MASTER).and_then(read_u32),
            reverse_path_filter: find(inet, IFLA_INET_CONF)
                .and_then(|settings| settings.get(setting..))
                .and_then(read_u32),
            makes_link_local: find(inet6, IFLA_INET6_ADDR_GEN_MODE)
                .and_then(|mode| mode.first())
                .map(|mode| *mode != IN6_ADDR_GEN_MODE_NONE),
        })
    }
}

pub(crate) fn set_mtu(index: u32, mtu: u32) -> Message {
    let fixed = link_header(AF_UNSPEC, index, 0, 0);
    Message::new(RTM_NEWLINK, 0, &fixed, &[wire::u32(IFLA_MTU, mtu)])
}

pub(crate) fn set_up(index: u32) -> Message {
    let up = IFF_UP as u32;
    Message::new(RTM_NEWLINK, 0, &link_header(AF_UNSPEC, index, up, up), &[])
}

pub(crate) fn set_reverse_path_filter(index: u32, value: u32) -> Message {
    let setting = wire::u32(IPV4_DEVCONF_RP_FILTER, value);
    let inet = wire::nest(
        AF_INET as u16,
        vec![wire::nest(IFLA_INET_CONF, vec![setting])],
    );
    let fixed = link_header(AF_UNSPEC, index, 0, 0);
    Message::new(
        RTM_NEWLINK,
        0,
        &fixed,
        &[wire::nest(IFLA_AF_SPEC, vec![inet])],
    )
}

pub(crate) fn set_no_link_local(index: u32) -> Message {
    let mode = wire::bytes(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    let inet6 = wire::nest(AF_INET6 as u16, vec![mode]);
    let fixed = link_header(AF_UNSPEC, index, 0, 0);
    Message::new(
        RTM_NEWLINK,
        0,
        &fixed,
        &[wire::nest(IFLA_AF_SPEC, vec![inet6])],
    )
}

pub(crate) fn remove_link(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &link_header(AF_UNSPEC, index, 0, 0), &[])
}

impl Address {
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        Family::from_number(*payload.first()?)?;
        let prefix_length = *payload.get(1)?;
        let interface = read_u32(payload.get(4..)?)?;
        let attrs = payload.get(8..)?;
        // IFA_LOCAL (2) is the address, IFA_ADDRESS (1) is the peer's where there is one.
        let address = find(attrs, 2).or_else(|| find(attrs, IFLA_ADDRESS))?;
        Some(Self {
            interface,
            address: IpNet::new(read_ip(address)?, prefix_length).ok()?,
        })
    }

    pub(crate) fn add(&self) -> Message {
        let flags = wire::u32(8, IFA_F_NODAD_NOPREFIXROUTE);
        self.message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &[flags])
    }

    pub(crate) fn remove(&self) -> Message {
        self.message(RTM_DELADDR, 0, &[])
    }

    fn message(&self, kind: u16, flags: i32, more: &[Attr]) -> Message {
        let family = Family::of(&self.address).number();
        // Otherwise the kernel may choose it as the source of what leaves by another interface.
        let scope = match self.address {
            IpNet::V4(address) if address.addr().is_link_local() => RT_SCOPE_LINK,
            _ => RT_SCOPE_UNIVERSE,
        };
        let fixed = header(&[
            &[family, self.address.prefix_len(), 0, scope],
            &self.interface.to_ne_bytes(),
        ]);
        let address = ip_bytes(self.address.addr());
        let mut attrs = vec![wire::bytes(2, &address), wire::bytes(1, &address)];
        attrs.extend_from_slice(more);
        Message::new(kind, flags, &fixed, &attrs)
    }
}

/// `struct rtmsg`. The table is an attribute, since it has only eight bits here.
fn route_header(family: Family, prefix_length: u8, scope: u8, kind: u8) -> Vec<u8> {
    let protocol = if kind == 0 { 0 } else { PROTOCOL_KERNEL };
    let fixed = [
        family.number(),
        prefix_length,
        0,
        0,
        0,
        protocol,
        scope,
        kind,
    ];
    header(&[&fixed, &0u32.to_ne_bytes()])
}

impl Route {
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let family = Family::from_number(*payload.first()?)?;
        let prefix_length = *payload.get(1)?;
        let source_length = *payload.get(2)?;
        let tos = *payload.get(3)?;
        let short_table = *payload.get(4)?;
        let kind = *payload.get(7)?;
        let flags = read_u32(payload.get(8..)?)?;
        let attrs = payload.get(12..)?;
        if flags & RTM_F_CLONED != 0 {
            return None;
        }
        let ip = |kind| find(attrs, kind).and_then(read_ip);
        let interface = find(attrs, RTA_OIF).and_then(read_u32);
        let address = ip(RTA_DST).unwrap_or(family.unspecified());
        // RTA_MULTIPATH (9), RTA_VIA (18), RTA_ENCAP (22), RTA_NH_ID (30).
        let complex = [9, 18, 22, 30]
            .iter()
            .any(|kind| find(attrs, *kind).is_some());
        Some(Self {
            table: find(attrs, RTA_TABLE)
                .and_then(read_u32)
                .unwrap_or(u32::from(short_table)),
            destination: IpNet::new(address, prefix_length).ok()?,
            metric: find(attrs, RTA_PRIORITY).and_then(read_u32).unwrap_or(0),
            kind: match kind {
                RTN_UNICAST => RouteKind::Unicast(interface.unwrap_or(0)),
                RTN_BLACKHOLE => RouteKind::Blackhole,
                other => RouteKind::Other(other),
            },
            gateway: ip(RTA_GATEWAY),
            source: ip(RTA_PREFSRC),
            complex: complex || source_length != 0 || tos != 0,
        })
    }

    /// Adds the route, or takes the place of one with the same destination and metric.
    pub(crate) fn add(&self) -> Message {
        let scope = match self.kind {
            RouteKind::Unicast(_) => RT_SCOPE_LINK,
            _ => RT_SCOPE_UNIVERSE,
        };
        self.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, scope)
    }

    pub(crate) fn remove(&self) -> Message {
        // RT_SCOPE_NOWHERE matches every scope.
        self.message(RTM_DELROUTE, 0, libc::RT_SCOPE_NOWHERE)
    }

    fn message(&self, kind: u16, flags: i32, scope: u8) -> Message {
        let family = Family::of(&self.destination);
        let number = match self.kind {
            RouteKind::Unicast(_) => RTN_UNICAST,
            RouteKind::Blackhole => RTN_BLACKHOLE,
            RouteKind::Other(number) => number,
        };
        let mut fixed = route_header(family, self.destination.prefix_len(), scope, number);
        if kind == RTM_DELROUTE {
            // Whoever made it.
            fixed[5] = 0;
        }
        let mut attrs = vec![
            wire::u32(RTA_TABLE, self.table),
            wire::bytes(RTA_DST, &ip_bytes(self.destination.network())),
            wire::u32(RTA_PRIORITY, self.metric),
        ];
        if let RouteKind::Unicast(interface @ 1..) = self.kind {
            attrs.push(wire::u32(RTA_OIF, interface));
        }
        if let Some(gateway) = self.gateway {
            attrs.push(wire::bytes(RTA_GATEWAY, &ip_bytes(gateway)));
        }
        if let Some(source) = self.source {
            attrs.push(wire::bytes(RTA_PREFSRC, &ip_bytes(source)));
        }
        Message::new(kind, flags, &fixed, &attrs)
    }
}

impl Rule {
    /// A rule of a shape that this crate makes; `None` for any other.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let fixed: [u8; 12] = *payload.first_chunk()?;
        let attrs = payload.get(12..)?;
        let [
            number,
            to_length,
            from_length,
            tos,
            short_table,
            _,
            _,
            action,
            ..,
        ] = fixed;
        let flags = read_u32(&fixed[8..])?;
        let family = Family::from_number(number)?;
        let mut to = None;
        let mut mark = None;
        let mut mask = None;
        let mut suppress = None;
        let (mut ip_protocol, mut ports) = (None, None);
        let mut table = u32::from(short_table);
        let mut priority = 0;
        // Kernels before 4.17 do not say.
        let mut protocol = PROTOCOL_KERNEL;
        for (kind, value) in wire::attributes(attrs) {
            match kind {
                FRA_DST => to = Some(IpNet::new(read_ip(value)?, to_length).ok()?),
                FRA_PRIORITY => priority = read_u32(value)?,
                FRA_FWMARK => mark = Some(read_u32(value)?),
                FRA_FWMASK => mask = Some(read_u32(value)?),
                FRA_TABLE => table = read_u32(value)?,
                FRA_PROTOCOL => protocol = *value.first()?,
                FRA_SUPPRESS_PREFIXLEN => {
                    suppress = Some(read_u32(value)?).filter(|length| *length != UNSUPPRESSED);
                }
                FRA_IP_PROTO => ip_protocol = Some(*value.first()?),
                FRA_DPORT_RANGE => ports = Some(read_ports(value)?),
                // Said of a single port since Linux 6.15.
                FRA_DPORT_MASK if value == [0xff; 2] => {}
                FRA_SUPPRESS_IFGROUP if read_u32(value)? == UNSUPPRESSED => {}
                // FRA_PAD is 18.
                FRA_TUN_ID | 18 if value.iter().all(|byte| *byte == 0) => {}
                // A selector that none of ours has.
                _ => return None,
            }
        }
        if from_length != 0 || tos != 0 || (to_length != 0 && to.is_none()) {
            return None;
        }
        let inverted = flags & FIB_RULE_INVERT != 0;
        let unmarked = match (inverted, mark, mask) {
            (false, None, None) => None,
            (true, Some(mark), Some(u32::MAX)) => Some(mark),
            _ => return None,
        };
        let port = match (ip_protocol, ports) {
            (None, None) => None,
            (Some(UDP), Some((first, last))) if first == last && !inverted => Some(first),
            _ => return None,
        };
        Some(Self {
            family,
            priority,
            to,
            unmarked,
            port,
            action: match action {
                FR_ACT_TO_TBL => Action::Lookup { table, suppress },
                FR_ACT_BLACKHOLE => Action::Blackhole,
                _ => return None,
            },
            protocol,
        })
    }

    pub(crate) fn add(&self) -> Message {
        self.message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, self.number())
    }

    pub(crate) fn remove(&self) -> Message {
        self.message(RTM_DELRULE, 0, self.number())
    }

    /// Adds a rule that selects the same packets and does nothing with them: whether the kernel knows
    /// all of the selectors is seen by what is read back.
    pub(crate) fn try_out(&self) -> Message {
        self.message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, FR_ACT_NOP)
    }

    /// Takes away what [`Self::try_out`] added.
    pub(crate) fn end_of_trial(&self) -> Message {
        self.message(RTM_DELRULE, 0, FR_ACT_NOP)
    }

    fn number(&self) -> u8 {
        match self.action {
            Action::Lookup { .. } => FR_ACT_TO_TBL,
            Action::Blackhole => FR_ACT_BLACKHOLE,
        }
    }

    fn message(&self, kind: u16, flags: i32, action: u8) -> Message {
        let to_length = self.to.map_or(0, |to| to.prefix_len());
        let invert = if self.unmarked.is_some() {
            FIB_RULE_INVERT
        } else {
            0
        };
        let fixed = header(&[
            &[self.family.number(), to_length, 0, 0, 0, 0, 0, action],
            &invert.to_ne_bytes(),
        ]);
        let mut attrs = vec![wire::u32(FRA_PRIORITY, self.priority)];
        if let Some(to) = self.to {
            attrs.push(wire::bytes(FRA_DST, &ip_bytes(to.network())));
        }
        if let Some(mark) = self.unmarked {
            attrs.push(wire::u32(FRA_FWMARK, mark));
            attrs.push(wire::u32(FRA_FWMASK, u32::MAX));
        }
        if let Some(port) = self.port {
            let range = [port.to_ne_bytes(), port.to_ne_bytes()].concat();
            attrs.push(wire::bytes(FRA_IP_PROTO, &[UDP]));
            attrs.push(wire::bytes(FRA_DPORT_RANGE, &range));
        }
        if let Action::Lookup { table, suppress } = self.action
            && action == FR_ACT_TO_TBL
        {
            attrs.push(wire::u32(FRA_TABLE, table));
            if let Some(length) = suppress {
                attrs.push(wire::u32(FRA_SUPPRESS_PREFIXLEN, length));
            }
        }
        // Known since Linux 4.17, ignored before.
        attrs.push(wire::bytes(FRA_PROTOCOL, &[self.protocol]));
        Message::new(kind, flags, &fixed, &attrs)
    }
}

/// `struct fib_rule_port_range`.
pub(crate) fn read_ports(value: &[u8]) -> Option<(u16, u16)> {
    let port = |at| Some(u16::from_ne_bytes(*value.get(at..)?.first_chunk()?));
    Some((port(0)?, port(2)?))
}

pub(crate) fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(crate) fn read_ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

/// Whether a notification's payload names this routing table.
pub(crate) fn table_of_route(payload: &[u8]) -> Option<u32> {
    let attrs = payload.get(12..)?;
    let short = u32::from(*payload.get(4)?);
    Some(find(attrs, RTA_TABLE).and_then(read_u32).unwrap_or(short))
}

/// The constants of families and scopes are wider in C than on the wire.
fn narrow(value: i32) -> u8 {
    u8::try_from(value).expect("a constant of the kernel that is eight bits on the wire")
}
