//! The rules that a directory must obey, whatever the host.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use warren_config::Steering;

use crate::directory::{Directory, Enforcement, Mesh, Node};
use crate::endpoint::{Endpoint, Host, Unusable};
use crate::name::{NodeName, is_dns_name, nearest};
use crate::problem::{Cause, Field, Place, Problem, Severity, Subject};

/// The smallest MTU of IPv4 that every host must take whole (RFC 791).
pub(crate) const MTU_MIN: u32 = 576;
/// The smallest MTU of IPv6 (RFC 8200, section 5).
const MTU_MIN_V6: u32 = 1280;
/// The largest UDP payload of IPv4 less the 32 bytes around a packet in a data message.
pub(crate) const MTU_MAX: u32 = 65507 - 32;
/// `RT_TABLE_UNSPEC`, `RT_TABLE_DEFAULT`, `RT_TABLE_MAIN`, `RT_TABLE_LOCAL`.
const SYSTEM_TABLES: [u32; 4] = [0, 253, 254, 255];
/// The system's rules stand at 0 (local), 32766 (main) and 32767 (default); ours take four places.
const RULE_PRIORITIES: std::ops::RangeInclusive<u32> = 3..=32764;
/// Nodes that one sentence names.
const NAMED_AT_MOST: usize = 6;

impl Directory {
    /// All that is wrong with the directory, ordered by where.
    ///
    /// Where two nodes claim the same, the problem is the newcomer's
    /// (see [`Node::seniority`]).
    pub fn review(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.review_mesh(&mut problems);
        problems.extend(self.review_nodes());
        self.review_pairs(&mut problems);
        let callers: Vec<&NodeName> = (self.nodes.iter())
            .filter(|(_, node)| node.is_caller())
            .map(|(name, _)| name)
            .collect();
        Self::review_reachability(&callers, &mut problems);
        problems.sort_by(|a, b| a.subject.cmp(&b.subject));
        problems
    }

    /// What is wrong with nodes by themselves and among each other, but for who can call whom.
    pub(crate) fn review_nodes(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, node) in &self.nodes {
            self.review_node(name, node, &mut problems);
        }
        let refused = refused(&problems);
        self.review_claims(&refused, &mut problems);
        if self.bounds().is_none() && self.mesh.steering == Steering::Prefixes {
            self.review_endpoints_among_claims(&refused, &mut problems);
        }
        self.review_keys(&mut problems);
        self.review_shared_endpoints(&refused, &mut problems);
        problems
    }

    pub(crate) fn review_mesh(&self, problems: &mut Vec<Problem>) {
        let Mesh {
            name,
            port,
            mtu,
            prefixes,
            preshared_key,
            interface,
            table,
            rule_priority,
            fwmark,
            enforcement,
            steering,
            masquerade: _,
        } = &self.mesh;
        let mut wrong = |field, index, cause| {
            problems.push(Subject::entry(Place::Mesh, field, index).has(cause));
        };
        if !is_dns_name(name) {
            wrong(Field::Name, 0, Cause::MeshName(name.clone()));
        }
        if *port == 0 {
            wrong(Field::Port, 0, Cause::PortZero);
        }
        let v6 = prefixes.iter().any(|net| matches!(net, IpNet::V6(_)));
        if !(MTU_MIN..=MTU_MAX).contains(mtu) {
            wrong(Field::Mtu, 0, Cause::Mtu(*mtu));
        } else if v6 && *mtu < MTU_MIN_V6 {
            wrong(Field::Mtu, 0, Cause::MtuForIpv6(*mtu));
        }
        if preshared_key.as_ref().is_some_and(|file| file.0.is_empty()) {
            wrong(Field::PresharedKeyFile, 0, Cause::NoKeyFile);
        }
        if !is_interface_name(interface) {
            wrong(Field::Interface, 0, Cause::Interface(interface.clone()));
        }
        if SYSTEM_TABLES.contains(table) {
            wrong(Field::Table, 0, Cause::Table(*table));
        }
        if !RULE_PRIORITIES.contains(rule_priority) {
            wrong(Field::RulePriority, 0, Cause::RulePriority(*rule_priority));
        }
        if *fwmark == 0 {
            wrong(Field::Fwmark, 0, Cause::FwmarkZero);
        }
        match steering {
            Steering::Prefixes if prefixes.is_empty() && *enforcement == Enforcement::Strict => {
                wrong(Field::Prefixes, 0, Cause::NoMeshPrefix);
            }
            Steering::Prefixes => {}
            Steering::Overlay { ports } if ports.is_empty() => {
                wrong(Field::Steering, 0, Cause::NoOverlayPort);
            }
            Steering::Overlay { ports } => {
                for (index, overlay) in ports.iter().enumerate() {
                    if [0, *port].contains(overlay) {
                        wrong(Field::Steering, index, Cause::OverlayPort(*overlay));
                    }
                }
            }
        }
        let mut seen = Claims::default();
        for (index, net) in prefixes.iter().enumerate() {
            let subject = Subject::entry(Place::Mesh, Field::Prefixes, index);
            if let Some(cause) = unusable_prefix(*net) {
                problems.push(subject.has(cause));
            } else if let Some((other, related)) = seen.claim(*net, subject.clone()) {
                problems.push(Problem {
                    subject,
                    related: Some(related),
                    cause: Cause::Overlap {
                        what: *net,
                        other,
                        owner: None,
                    },
                });
            }
        }
    }

    pub(crate) fn review_node(&self, name: &NodeName, node: &Node, problems: &mut Vec<Problem>) {
        let mesh = self.bounds();
        // A prefix that is refused for its size holds every endpoint, and explains none.
        let sound: Vec<IpNet> = (mesh.into_iter().flatten().copied())
            .filter(|net| {
                !matches!(
                    unusable_prefix(*net),
                    Some(Cause::ZeroLength(_) | Cause::Special(..))
                )
            })
            .collect();
        let mut wrong =
            |field, index, cause| problems.push(Subject::node(name, field, index).has(cause));
        match node.public_key {
            None if node.outside => {}
            None => wrong(Field::PublicKey, 0, Cause::NoKey),
            Some(key) if *key.as_bytes() == [0; 32] => wrong(Field::PublicKey, 0, Cause::ZeroKey),
            Some(_) => {}
        }
        for (index, endpoint) in node.endpoints.iter().enumerate() {
            let unusable = match endpoint.host {
                Host::Address(address) => Unusable::of(address, &sound),
                Host::Name(_) => None,
            };
            if let Some(unusable) = unusable {
                let cause = Cause::Endpoint(endpoint.clone(), unusable);
                wrong(Field::Endpoints, index, cause);
            } else if endpoint.port == Some(0) {
                let cause = Cause::PortOfEndpoint(endpoint.clone());
                wrong(Field::Endpoints, index, cause);
            }
        }
        if node.addresses.is_empty() {
            wrong(Field::Addresses, 0, Cause::NoAddress);
        }
        for (index, &address) in node.addresses.iter().enumerate() {
            if let Some(unusable) = Unusable::of(address, &[]) {
                let cause = Cause::SpecialAddress(address, unusable);
                wrong(Field::Addresses, index, cause);
            } else if mesh.is_some_and(|mesh| !mesh.iter().any(|net| net.contains(&address))) {
                wrong(Field::Addresses, index, Cause::AddressOutsideMesh(address));
            }
        }
        for (index, &prefix) in node.prefixes.iter().enumerate() {
            if let Some(cause) = unusable_prefix(prefix) {
                wrong(Field::Prefixes, index, cause);
            } else if mesh.is_some_and(|mesh| !mesh.iter().any(|net| net.contains(&prefix))) {
                wrong(Field::Prefixes, index, Cause::OutsideMesh(prefix));
            }
        }
    }

    /// Every address of the mesh leads to one node only.
    fn review_claims(&self, refused: &BTreeSet<Subject>, problems: &mut Vec<Problem>) {
        let mut claims = Claims::default();
        // Of what an overlay wraps nothing is looked at.
        let has_prefixes = self.mesh.steering == Steering::Prefixes;
        for (name, node) in self.by_seniority() {
            for (index, &prefix) in node.prefixes.iter().enumerate() {
                let subject = Subject::node(name, Field::Prefixes, index);
                if refused.contains(&subject) || !has_prefixes {
                    continue;
                }
                if let Some((other, related)) = claims.claim(prefix, subject.clone()) {
                    let owner = owner_of(&related).filter(|owner| *owner != name).cloned();
                    problems.push(Problem {
                        subject,
                        related: Some(related),
                        cause: Cause::Overlap {
                            what: prefix,
                            other,
                            owner,
                        },
                    });
                }
            }
            let mut own = BTreeMap::new();
            for (index, &address) in node.addresses.iter().enumerate() {
                let subject = Subject::node(name, Field::Addresses, index);
                if refused.contains(&subject) {
                    continue;
                }
                let host = IpNet::from(address);
                if let Some(related) = own.insert(address, subject.clone()) {
                    problems.push(Problem {
                        subject,
                        related: Some(related),
                        cause: Cause::Overlap {
                            what: host,
                            other: host,
                            owner: None,
                        },
                    });
                    continue;
                }
                // An address within a prefix of the same node is ordinary.
                if let Some((other, related)) = claims.claim(host, subject.clone())
                    && let Some(owner) = owner_of(&related).filter(|owner| *owner != name)
                {
                    problems.push(Problem {
                        subject,
                        cause: Cause::AddressTaken {
                            address,
                            other,
                            owner: owner.clone(),
                        },
                        related: Some(related),
                    });
                }
            }
        }
    }

    /// Where no prefixes of the mesh part what it carries from what carries it: an endpoint and a prefix
    /// that covers it cannot both be. The newcomer is wrong.
    fn review_endpoints_among_claims(
        &self,
        refused: &BTreeSet<Subject>,
        problems: &mut Vec<Problem>,
    ) {
        let mut claims = Claims::default();
        let mut endpoints: BTreeMap<IpAddr, (&NodeName, Subject)> = BTreeMap::new();
        for (name, node) in self.by_seniority() {
            for (field, index, prefix) in node.claims() {
                let subject = Subject::node(name, field, index);
                if refused.contains(&subject) {
                    continue;
                }
                let mut covered = endpoints.range(prefix.network()..=prefix.broadcast());
                match covered.next() {
                    None => drop(claims.claim(prefix, subject)),
                    Some((address, (owner, related))) => problems.push(Problem {
                        subject,
                        related: Some(related.clone()),
                        cause: Cause::CoversEndpoint {
                            prefix,
                            address: *address,
                            owner: (*owner).clone(),
                        },
                    }),
                }
            }
            for (index, endpoint) in node.endpoints.iter().enumerate() {
                let subject = Subject::node(name, Field::Endpoints, index);
                let Host::Address(address) = endpoint.host else {
                    continue;
                };
                if refused.contains(&subject) {
                    continue;
                }
                match claims.covering(address) {
                    None => drop(endpoints.entry(address).or_insert((name, subject))),
                    Some((prefix, related)) => problems.push(Problem {
                        subject,
                        related: Some(related.clone()),
                        cause: Cause::Endpoint(endpoint.clone(), Unusable::InsideMesh(prefix)),
                    }),
                }
            }
        }
    }

    /// A public key names one node only.
    fn review_keys(&self, problems: &mut Vec<Problem>) {
        let mut owners = BTreeMap::new();
        for (name, node) in self.by_seniority() {
            let Some(key) = node.public_key.filter(|key| *key.as_bytes() != [0; 32]) else {
                continue;
            };
            match owners.entry(key) {
                Entry::Vacant(vacant) => {
                    vacant.insert(name);
                }
                Entry::Occupied(owner) => problems.push(Problem {
                    subject: Subject::node(name, Field::PublicKey, 0),
                    related: Some(Subject::node(owner.get(), Field::PublicKey, 0)),
                    cause: Cause::DuplicateKey {
                        key,
                        owner: (*owner.get()).clone(),
                    },
                }),
            }
        }
    }

    fn review_shared_endpoints(&self, refused: &BTreeSet<Subject>, problems: &mut Vec<Problem>) {
        let mut seen: BTreeMap<Endpoint, (&NodeName, Subject)> = BTreeMap::new();
        for (name, node) in self.by_seniority() {
            for (index, endpoint) in node.endpoints.iter().enumerate() {
                let subject = Subject::node(name, Field::Endpoints, index);
                if refused.contains(&subject) {
                    continue;
                }
                match seen.entry(self.full(endpoint)) {
                    Entry::Vacant(vacant) => {
                        vacant.insert((name, subject));
                    }
                    Entry::Occupied(other) => problems.push(Problem {
                        subject,
                        related: Some(other.get().1.clone()),
                        cause: Cause::SharedEndpoint {
                            endpoint: endpoint.clone(),
                            owner: other.get().0.clone(),
                        },
                    }),
                }
            }
        }
    }

    pub(crate) fn review_pairs(&self, problems: &mut Vec<Problem>) {
        for (pair, file) in &self.pairs {
            let place = || Place::Pair(pair.clone());
            for (index, name) in pair.names().into_iter().enumerate() {
                if !self.nodes.contains_key(name) {
                    problems.push(Subject::entry(place(), Field::Nodes, index).has(
                        Cause::UnknownNode {
                            name: name.clone(),
                            nearest: self.nearest_node(name.as_str()),
                        },
                    ));
                }
            }
            if file.0.is_empty() {
                problems.push(
                    Subject::entry(place(), Field::PresharedKeyFile, 0).has(Cause::NoKeyFile),
                );
            }
        }
    }

    /// Two nodes reach each other when at least one has an endpoint. Each pair that does not is
    /// named once, with the node that comes first.
    pub(crate) fn review_reachability(callers: &[&NodeName], problems: &mut Vec<Problem>) {
        for (i, name) in callers.iter().enumerate() {
            let others = &callers[i + 1..];
            if !others.is_empty() {
                let first = others.iter().take(NAMED_AT_MOST).copied().cloned();
                let subject = Subject::node(name, Field::Endpoints, 0);
                problems.push(subject.has(Cause::Unreachable {
                    first: first.collect(),
                    more: others.len().saturating_sub(NAMED_AT_MOST),
                }));
            }
        }
    }

    /// The first address of each of the mesh's prefixes that no node claims, for a new node.
    pub fn free_addresses(&self) -> Vec<IpAddr> {
        let mut claims = Claims::default();
        for node in self.nodes.values() {
            let addresses = node.addresses.iter().map(|address| IpNet::from(*address));
            for net in node.prefixes.iter().copied().chain(addresses) {
                claims.claim(net, Subject::of(Place::Mesh));
            }
        }
        let free = |prefix: &IpNet| {
            // The first address of a prefix is its name, not a machine's.
            let mut free = next(prefix.network())?;
            while let Some((_, (end, ..))) = claims.ranges.range(..=free).next_back()
                && *end >= free
                && end.is_ipv4() == free.is_ipv4()
            {
                free = next(*end)?;
            }
            (prefix.contains(&free) && free != prefix.broadcast()).then_some(free)
        };
        self.mesh.prefixes.iter().filter_map(free).collect()
    }

    fn by_seniority(&self) -> Vec<(&NodeName, &Node)> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|(name, node)| (node.seniority, *name));
        nodes
    }

    /// The node whose name is nearest to `text`, if any is near.
    pub fn nearest_node(&self, text: &str) -> Option<NodeName> {
        let names = self.nodes.keys().map(NodeName::as_str);
        nearest(text, names).and_then(|name| name.parse().ok())
    }
}

/// The items without effect.
pub(crate) fn refused(problems: &[Problem]) -> BTreeSet<Subject> {
    problems
        .iter()
        .filter(|problem| problem.severity() == Severity::Error)
        .map(|problem| problem.subject.clone())
        .collect()
}

/// Disjoint ranges of addresses, each with whom it belongs to.
#[derive(Default)]
struct Claims {
    /// By first address: last address, prefix, claimant.
    ranges: BTreeMap<IpAddr, (IpAddr, IpNet, Subject)>,
}

impl Claims {
    /// Takes `net` for `subject`, or answers with who has some of it already.
    fn claim(&mut self, net: IpNet, subject: Subject) -> Option<(IpNet, Subject)> {
        let (first, last) = (net.network(), net.broadcast());
        // The ranges are disjoint: if one overlaps, so does the last that begins before our end.
        // All of IPv4 sorts before all of IPv6.
        if let Some((_, (end, other, owner))) = self.ranges.range(..=last).next_back()
            && *end >= first
            && end.is_ipv4() == last.is_ipv4()
        {
            return Some((*other, owner.clone()));
        }
        self.ranges.insert(first, (last, net, subject));
        None
    }

    /// What `address` is in, and whose that is.
    fn covering(&self, address: IpAddr) -> Option<(IpNet, &Subject)> {
        let (_, (_, net, owner)) = self.ranges.range(..=address).next_back()?;
        net.contains(&address).then_some((*net, owner))
    }
}

/// The address after this one.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4)
            .checked_add(1)
            .map(|bits| IpAddr::from(bits.to_be_bytes())),
        IpAddr::V6(v6) => u128::from(v6)
            .checked_add(1)
            .map(|bits| IpAddr::from(bits.to_be_bytes())),
    }
}

fn owner_of(subject: &Subject) -> Option<&NodeName> {
    match &subject.place {
        Place::Node(name) => Some(name),
        Place::Mesh | Place::Pair(_) => None,
    }
}

/// What keeps `net` from being a prefix of a mesh or of a node, if anything does.
pub fn unusable_prefix(net: IpNet) -> Option<Cause> {
    if net.prefix_len() == 0 {
        return Some(Cause::ZeroLength(net));
    }
    let special = match net {
        IpNet::V4(net) => v4_special(net),
        IpNet::V6(net) => v6_special(net),
    };
    if let Some(unusable) = special {
        return Some(Cause::Special(net, unusable));
    }
    (net != net.trunc()).then_some(Cause::HostBits(net))
}

fn v4_special(net: Ipv4Net) -> Option<Unusable> {
    [
        ([0, 0, 0, 0], 8, Unusable::Unspecified),
        ([127, 0, 0, 0], 8, Unusable::Loopback),
        ([169, 254, 0, 0], 16, Unusable::LinkLocal),
        ([224, 0, 0, 0], 4, Unusable::Multicast),
        ([240, 0, 0, 0], 4, Unusable::Reserved),
    ]
    .into_iter()
    .find(|&(octets, len, _)| {
        Ipv4Net::new(octets.into(), len)
            .is_ok_and(|special| special.contains(&net.network()) || net.contains(&special))
    })
    .map(|(_, _, unusable)| unusable)
}

fn v6_special(net: Ipv6Net) -> Option<Unusable> {
    let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    [
        (Ipv6Addr::UNSPECIFIED, 128, Unusable::Unspecified),
        (Ipv6Addr::LOCALHOST, 128, Unusable::Loopback),
        (mapped, 96, Unusable::Mapped),
        (
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
            10,
            Unusable::LinkLocal,
        ),
        (
            Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
            8,
            Unusable::Multicast,
        ),
    ]
    .into_iter()
    .find(|&(address, len, _)| {
        Ipv6Net::new(address, len)
            .is_ok_and(|special| special.contains(&net.network()) || net.contains(&special))
    })
    .map(|(_, _, unusable)| unusable)
}

/// What the kernel's `dev_valid_name` takes, less what nft(8), sysctl paths, shells and people
/// would stumble over.
fn is_interface_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.len() <= 15
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && !["lo", "all", "default"].contains(&name)
}
