//! From all nodes to what this one should be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_config::{
    DeviceChange, DeviceConfig, DeviceStatus, Fence, HostConfig, PeerConfig, PresharedKey,
    PrivateKey, PublicKey, Steering, diff, is_within,
};

use crate::directory::{Directory, Enforcement, KeyFile, Node, Pair};
use crate::endpoint::{Host, HostName, Unusable};
use crate::name::NodeName;
use crate::problem::{Cause, Field, Place, Problem, Severity, Subject};
use crate::review::refused;
use crate::reviewed::Reviewed;
use crate::{DEFAULT_KEEPALIVE_SECS, OVERLAY_ADDRESS};

/// Addresses that one name may add to a peer's candidates; a resolver's answer does not decide how
/// much is kept.
const ADDRESSES_PER_NAME: usize = 8;

/// What the fence of an overlay closes: its packets to wherever they go.
const EVERYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];
const NAME_SERVER: &str = "a name server";

/// The addresses of host names, as far as they are known.
pub type Resolved = BTreeMap<HostName, BTreeSet<IpAddr>>;

/// The secrets of this node.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Who this node is.
    pub private_key: Option<PrivateKey>,
    /// The preshared keys that [`Directory::key_files`] asks for.
    pub preshared_keys: BTreeMap<KeyFile, PresharedKey>,
}

/// What this host needs outside the mesh, without what is on the tunnel's own interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Underlay {
    /// The host's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its default gateways.
    pub gateways: BTreeSet<IpAddr>,
    /// Its name servers.
    pub resolvers: BTreeSet<IpAddr>,
    /// Where the API is that tells of the mesh: the way to it never depends on a key that is still to
    /// be fetched there.
    pub api_servers: BTreeSet<IpAddr>,
}

/// What one node should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which node this is a plan for.
    pub node: NodeName,
    /// What people call the mesh.
    pub mesh: String,
    /// What the tunnel should be.
    pub device: DeviceConfig,
    /// What the host around it should look like.
    pub host: HostConfig,
    /// Every other node.
    pub peers: BTreeMap<NodeName, Peer>,
    /// What people should know, ordered by where. The fence stands whatever they say.
    pub problems: Vec<Problem>,
}

/// Another node, as this one sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The peer of the device that it is; `None` while it is fenced.
    pub public_key: Option<PublicKey>,
    /// Neither it nor this node has an endpoint.
    pub unreachable: bool,
    /// An exception: what it has is reached in the clear.
    pub outside: bool,
}

/// What is to be done about a plan of which some nodes were planned anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// Of the device.
    pub device: DeviceChange,
    /// Routes that go, before the device is changed.
    pub routes_removed: BTreeSet<IpNet>,
    /// Routes that come, after that.
    pub routes_added: BTreeSet<IpNet>,
}

/// Why there is no plan. What was in force stays so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The directory does not know this node.
    #[error("there is no node \"{name}\" in the mesh{}", did_you_mean(.nearest.as_ref()))]
    UnknownNode {
        /// The name that was asked for.
        name: NodeName,
        /// The one that may have been meant.
        nearest: Option<NodeName>,
    },
    /// What all nodes have in common is wrong.
    #[error("{}", sentences(.0))]
    Mesh(Vec<Problem>),
}

/// What the node `this` should be, according to `directory`.
///
/// An item that [`Directory::review`] calls an error is left out, and with it whatever it alone
/// would have carried; the fence covers the mesh's prefixes regardless.
///
/// `steered` is what goes by the tunnel although the mesh is not strict: of a staged one all that was
/// ever reached through it, of a permissive one what is reached now. A strict mesh takes no
/// notice of it.
///
/// A node that is an exception itself steers and fences nothing: the others reach it in the clear.
pub fn plan(
    directory: &Directory,
    this: &NodeName,
    resolved: &Resolved,
    secrets: &Secrets,
    underlay: &Underlay,
    steered: &BTreeSet<IpNet>,
) -> Result<Plan, PlanError> {
    let around = (underlay, steered);
    plan_after(
        directory,
        || directory.review(),
        this,
        resolved,
        secrets,
        around,
    )
}

impl Reviewed {
    /// The same as [`plan()`] of the directory, without another look at all of it.
    pub fn plan(
        &self,
        this: &NodeName,
        resolved: &Resolved,
        secrets: &Secrets,
        underlay: &Underlay,
        steered: &BTreeSet<IpNet>,
    ) -> Result<Plan, PlanError> {
        let (directory, around) = (self.directory(), (underlay, steered));
        plan_after(
            directory,
            || self.problems(),
            this,
            resolved,
            secrets,
            around,
        )
    }

    /// What the host of the node `this` is to look like, but for all that other nodes decide: routes and what is
    /// fenced. By this a caller asks what is around it, before there is a plan.
    pub fn host_alone(&self, this: &NodeName) -> Option<HostConfig> {
        let node = self.directory().nodes.get(this)?;
        let refused = refused(self.problems_of(this));
        let sound = Sound {
            directory: self.directory(),
            refused: &refused,
        };
        let (device, steered) = (DeviceConfig::default(), BTreeSet::new());
        Some(host(&sound, this, node, &device, &steered))
    }

    /// Brings a plan that [`Reviewed::plan`] gave, for these arguments and an earlier state of the nodes, to what it
    /// would give now, where only the nodes of these names have changed since, or what is wrong with them
    /// ([`Reviewed::set`] names them). The others are not looked at: it costs these nodes and what is wrong.
    ///
    /// `None` where more than these nodes may be planned otherwise: one of them is this node, or an exception, or goes by
    /// names or preshared keys; it has an address that this host needs; or nothing says what the mesh may
    /// carry. Then the plan is as it was, and is to be made anew.
    pub fn replan(
        &self,
        plan: &mut Plan,
        names: &BTreeSet<NodeName>,
        underlay: &Underlay,
        steered: &BTreeSet<IpNet>,
    ) -> Option<Step> {
        let directory = self.directory();
        let this = plan.node.clone();
        let node = directory.nodes.get(&this)?;
        let is_about_more = |name: &NodeName| {
            let there = directory.nodes.get(name);
            *name == this
                || directory.key_file(&this, name).is_some()
                || plan.peers.get(name).is_some_and(|peer| peer.outside)
                || there.is_some_and(|other| {
                    let mut endpoints = other.endpoints.iter();
                    other.outside
                        || endpoints.any(|endpoint| matches!(endpoint.host, Host::Name(_)))
                })
        };
        let is_unbounded =
            directory.bounds().is_none() && directory.mesh.steering == Steering::Prefixes;
        if is_unbounded
            || node.outside
            // Whose key this is would be asked of all.
            || node.public_key.is_none()
            || plan.device.private_key.is_none()
            || names.iter().any(is_about_more)
        {
            return None;
        }
        let review = self.problems();
        if (review.iter()).any(|problem| {
            problem.severity() == Severity::Error && problem.subject.place == Place::Mesh
        }) {
            return None;
        }

        let refused = (names.iter().chain([&this]))
            .flat_map(|name| refused(self.problems_of(name)))
            .collect();
        let sound = Sound {
            directory,
            refused: &refused,
        };
        let (resolved, secrets) = (Resolved::new(), Secrets::default());
        let mut unheard = (Vec::new(), BTreeSet::new());
        let of_this = OfThis {
            name: &this,
            node,
            is_reachable: sound.is_reachable(&this, node),
            resolved: &resolved,
            secrets: &secrets,
        };
        let mut before = DeviceConfig::default();
        let mut after = DeviceConfig::default();
        let mut peers = BTreeMap::new();
        for name in names {
            let key = plan.peers.get(name).and_then(|peer| peer.public_key);
            before.peers.extend(key.and_then(|key| {
                let peer = plan.device.peers.get(&key)?;
                Some((key, peer.clone()))
            }));
            if let Some(other) = directory.nodes.get(name) {
                let (peer, config) = of_this.peer(&sound, name, other, &mut unheard);
                peers.insert(name, peer);
                after.peers.extend(peer.public_key.zip(config));
            }
        }
        let is_strict = directory.mesh.enforcement == Enforcement::Strict;
        let routes = |device: &DeviceConfig| -> BTreeSet<IpNet> {
            let allowed_ips = device.peers.values().flat_map(|peer| &peer.allowed_ips);
            let is_routed = |net: &IpNet| is_strict || is_within(steered, net);
            allowed_ips.copied().filter(is_routed).collect()
        };
        let (routes_before, routes_after) = (routes(&before), routes(&after));
        let is_needed = |net: &IpNet| {
            let mut needed = underlay.resolvers.iter().chain(&underlay.api_servers);
            needed.any(|address| net.contains(address))
        };
        let mut differing = routes_before.symmetric_difference(&routes_after);
        if differing.any(is_needed) {
            return None;
        }

        for name in names {
            match peers.remove(name) {
                Some(peer) => plan.peers.insert(name.clone(), peer),
                None => plan.peers.remove(name),
            };
        }
        for key in before.peers.keys() {
            plan.device.peers.remove(key);
        }
        let device = diff(&DeviceStatus::idle(&before), &after);
        plan.device.peers.extend(after.peers);
        let step = Step {
            device,
            routes_removed: (routes_before.difference(&routes_after).copied()).collect(),
            routes_added: (routes_after.difference(&routes_before).copied()).collect(),
        };
        for net in &step.routes_removed {
            plan.host.routes.remove(net);
        }
        plan.host.routes.extend(&step.routes_added);
        let before = std::mem::replace(&mut plan.problems, review);
        let of_plan = |problem: &Problem| !problem.cause.is_of_review();
        plan.problems.extend(before.into_iter().filter(of_plan));
        plan.problems.sort_by(|a, b| a.subject.cmp(&b.subject));
        Some(step)
    }
}

fn plan_after(
    directory: &Directory,
    review: impl FnOnce() -> Vec<Problem>,
    this: &NodeName,
    resolved: &Resolved,
    secrets: &Secrets,
    (underlay, steered): (&Underlay, &BTreeSet<IpNet>),
) -> Result<Plan, PlanError> {
    let Some(node) = directory.nodes.get(this) else {
        return Err(PlanError::UnknownNode {
            name: this.clone(),
            nearest: directory.nearest_node(this.as_str()),
        });
    };
    let mut problems = review();
    let of_mesh = |problem: &&Problem| {
        problem.severity() == Severity::Error && problem.subject.place == Place::Mesh
    };
    if problems.iter().any(|problem| of_mesh(&problem)) {
        let mesh = problems.iter().filter(of_mesh).cloned();
        return Err(PlanError::Mesh(mesh.collect()));
    }
    if directory.bounds().is_none() && directory.mesh.steering == Steering::Prefixes {
        covering(directory, this, node, underlay, &mut problems);
    }
    let refused = refused(&problems);
    let sound = Sound {
        directory,
        refused: &refused,
    };

    let (device, peers) = device(&sound, this, node, resolved, secrets, &mut problems);
    let mut host = host(&sound, this, node, &device, steered);
    host.fence.open = open(&sound, this, &host, underlay, &mut problems);
    covered(directory, this, &host, underlay, &mut problems);
    problems.sort_by(|a, b| a.subject.cmp(&b.subject));
    Ok(Plan {
        node: this.clone(),
        mesh: directory.mesh.name.clone(),
        device,
        host,
        peers,
        problems,
    })
}

fn device(
    sound: &Sound<'_>,
    this: &NodeName,
    node: &Node,
    resolved: &Resolved,
    secrets: &Secrets,
    problems: &mut Vec<Problem>,
) -> (DeviceConfig, BTreeMap<NodeName, Peer>) {
    let directory = sound.directory;
    let of_this = OfThis {
        name: this,
        node,
        is_reachable: sound.is_reachable(this, node),
        resolved,
        secrets,
    };
    let mut device = DeviceConfig {
        private_key: private_key(sound, this, node, secrets, problems),
        listen_port: directory.mesh.port,
        fwmark: directory.mesh.fwmark,
        peers: BTreeMap::new(),
    };
    let mut peers = BTreeMap::new();
    let mut told = (std::mem::take(problems), BTreeSet::new());
    for (name, other) in directory.others(this) {
        let (peer, config) = of_this.peer(sound, name, other, &mut told);
        device.peers.extend(peer.public_key.zip(config));
        peers.insert(name.clone(), peer);
    }
    let (told, missing) = told;
    *problems = told;
    problems.extend(missing.into_iter().map(|(place, file)| {
        Subject::entry(place, Field::PresharedKeyFile, 0).has(Cause::NoPresharedKey(file))
    }));
    (device, peers)
}

/// What of this node decides how it sees another.
struct OfThis<'a> {
    name: &'a NodeName,
    node: &'a Node,
    /// Whether others can call it.
    is_reachable: bool,
    resolved: &'a Resolved,
    secrets: &'a Secrets,
}

impl OfThis<'_> {
    /// Another node, and the peer of the device that it is. What is wrong goes to `told`, the preshared keys that are
    /// missing apart.
    fn peer(
        &self,
        sound: &Sound<'_>,
        name: &NodeName,
        other: &Node,
        (problems, missing): &mut (Vec<Problem>, BTreeSet<(Place, KeyFile)>),
    ) -> (Peer, Option<PeerConfig>) {
        let there_reachable = sound.is_reachable(name, other);
        let mut peer = Peer {
            public_key: None,
            unreachable: !self.is_reachable && !there_reachable,
            outside: other.outside,
        };
        if self.node.outside || other.outside {
            peer.unreachable = false;
            return (peer, None);
        }
        let directory = sound.directory;
        let preshared_key = match directory.key_file(self.name, name) {
            None => None,
            Some(file) => match self.secrets.preshared_keys.get(file) {
                Some(key) => Some(key.clone()),
                // Going without would be a weaker tunnel than the one that was asked for.
                None => {
                    missing.insert(key_file_place(directory, self.name, name, file));
                    return (peer, None);
                }
            },
        };
        peer.public_key = sound.public_key(name, other);
        let config = peer.public_key.map(|_| {
            let keepalive = self.node.keepalive.unwrap_or(match self.is_reachable {
                true => 0,
                false => DEFAULT_KEEPALIVE_SECS,
            });
            PeerConfig {
                preshared_key,
                endpoints: endpoints(sound, name, other, self.resolved, problems),
                persistent_keepalive: if there_reachable { keepalive } else { 0 },
                allowed_ips: sound.claims(name, other),
            }
        });
        (peer, config)
    }
}

/// This node's key, unless it is another's: two hosts with one key would take each other's traffic
/// away in turn.
fn private_key(
    sound: &Sound<'_>,
    this: &NodeName,
    node: &Node,
    secrets: &Secrets,
    problems: &mut Vec<Problem>,
) -> Option<PrivateKey> {
    let subject = Subject::node(this, Field::PublicKey, 0);
    let Some(private) = &secrets.private_key else {
        problems.push(subject.has(Cause::NoPrivateKey));
        return None;
    };
    let key = private.public();
    let owner = sound
        .directory
        .others(this)
        .find(|(name, other)| sound.public_key(name, other) == Some(key))
        .map(|(name, _)| name.clone());
    let foreign = node.public_key.is_some_and(|expected| expected != key);
    if owner.is_some() || foreign {
        problems.push(subject.has(Cause::WrongPrivateKey { key, owner }));
        return None;
    }
    Some(private.clone())
}

/// Where to reach a node, in the order in which it says to try.
fn endpoints(
    sound: &Sound<'_>,
    name: &NodeName,
    node: &Node,
    resolved: &Resolved,
    problems: &mut Vec<Problem>,
) -> Vec<SocketAddr> {
    let mesh = &sound.directory.mesh;
    let bounds = sound.directory.bounds().unwrap_or_default();
    let mut candidates = Vec::new();
    for (index, endpoint) in node.endpoints.iter().enumerate() {
        let subject = Subject::node(name, Field::Endpoints, index);
        if sound.refused.contains(&subject) {
            continue;
        }
        let mut candidate = |address| {
            let candidate = endpoint.at(address, mesh.port);
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        };
        let host = match &endpoint.host {
            Host::Address(address) => {
                candidate(*address);
                continue;
            }
            Host::Name(host) => host,
        };
        let Some(addresses) = resolved.get(host).filter(|found| !found.is_empty()) else {
            problems.push(subject.has(Cause::Unresolved(host.clone())));
            continue;
        };
        for address in addresses.iter().take(ADDRESSES_PER_NAME) {
            let address = address.to_canonical();
            match Unusable::of(address, bounds) {
                None => candidate(address),
                Some(unusable) => problems.push(subject.clone().has(Cause::ResolvedTo {
                    name: host.clone(),
                    address,
                    unusable,
                })),
            }
        }
    }
    candidates
}

/// The host, but for what is carried in the clear.
fn host(
    sound: &Sound<'_>,
    this: &NodeName,
    node: &Node,
    device: &DeviceConfig,
    steered: &BTreeSet<IpNet>,
) -> HostConfig {
    let mesh = &sound.directory.mesh;
    let nothing = BTreeSet::new();
    let (enforcement, steered) = match node.outside {
        true => (Enforcement::Permissive, &nothing),
        false => (mesh.enforcement, steered),
    };
    let is_strict = enforcement == Enforcement::Strict;
    let local = sound.claims(this, node);
    let is_own = |net: &IpNet| local.iter().any(|own| own.contains(net));
    let fenced = match (enforcement, &mesh.steering) {
        // What was once reached stays closed, also where the mesh's prefixes do not name it.
        (Enforcement::Strict, Steering::Prefixes) => (mesh.prefixes.iter().copied())
            .chain(steered.iter().copied().filter(|net| {
                !is_own(net) && !mesh.prefixes.iter().any(|prefix| prefix.contains(net))
            }))
            .collect(),
        (Enforcement::Strict, Steering::Overlay { .. }) => EVERYWHERE.into(),
        (Enforcement::Staged, _) => (steered.iter().copied())
            .filter(|net| !is_own(net))
            .collect(),
        (Enforcement::Permissive, _) => BTreeSet::new(),
    };
    let allowed_ips = device.peers.values().flat_map(|peer| &peer.allowed_ips);
    HostConfig {
        interface: mesh.interface.clone(),
        mtu: mesh.mtu,
        addresses: match mesh.steering {
            Steering::Prefixes => sound.addresses(this, node).collect(),
            Steering::Overlay { .. } => [OVERLAY_ADDRESS].into(),
        },
        table: mesh.table,
        rule_priority: mesh.rule_priority,
        fwmark: mesh.fwmark,
        steering: mesh.steering.clone(),
        routes: (allowed_ips.copied())
            .filter(|net| is_strict || is_within(steered, net))
            .collect(),
        masquerade: mesh.masquerade,
        fence: Fence {
            mesh: fenced,
            local,
            open: BTreeSet::new(),
            inward: is_strict,
        },
    }
}

/// What is carried in the clear, of what would otherwise be kept from it: the exceptions', and where the
/// API is. The way there never depends on a key that is fetched by it.
fn open(
    sound: &Sound<'_>,
    this: &NodeName,
    host: &HostConfig,
    underlay: &Underlay,
    problems: &mut Vec<Problem>,
) -> BTreeSet<IpNet> {
    let HostConfig { fence, routes, .. } = host;
    let closed = |net: &IpNet| {
        let mut closed = fence.mesh.iter().chain(routes);
        closed.find(|closed| closed.contains(net) || net.contains(*closed))
    };
    let outside = sound
        .directory
        .others(this)
        .filter(|(_, node)| node.outside);
    let mut open: BTreeSet<IpNet> = outside
        .flat_map(|(name, node)| sound.claims(name, node))
        .filter(|net| closed(net).is_some())
        .collect();
    if sound.directory.mesh.steering != Steering::Prefixes {
        return open;
    }
    for &address in &underlay.api_servers {
        let net = IpNet::from(address);
        if fence.local.iter().any(|own| own.contains(&address)) {
            continue;
        }
        if let Some(&prefix) = closed(&net) {
            let mesh = &sound.directory.mesh.prefixes;
            let index = mesh.iter().position(|mesh| mesh.contains(&address));
            let index = index.unwrap_or_default();
            let subject = Subject::entry(Place::Mesh, Field::Prefixes, index);
            problems.push(subject.has(Cause::ApiServer { prefix, address }));
            open.insert(net);
        }
    }
    open
}

/// What nodes claim and would cut this host off, where no prefixes of the mesh say what it may carry.
fn covering(
    directory: &Directory,
    this: &NodeName,
    node: &Node,
    underlay: &Underlay,
    problems: &mut Vec<Problem>,
) {
    let own = |address: &IpAddr| node.claims().any(|(_, _, net)| net.contains(address));
    let mut needs = BTreeMap::new();
    for (what, addresses) in underlay.needs() {
        for &address in addresses.iter().filter(|address| !own(address)) {
            needs.entry(address).or_insert(what);
        }
    }
    for (name, other) in directory.others(this) {
        for (field, index, prefix) in other.claims() {
            let covered = needs.range(prefix.network()..=prefix.broadcast()).next();
            if let Some((&address, &what)) = covered {
                let subject = Subject::node(name, field, index);
                problems.push(subject.has(Cause::Covers {
                    prefix,
                    what,
                    address,
                }));
            }
        }
    }
}

/// What of the host's own needs the mesh would cut off.
///
/// These are errors, so that a new file is not taken; they open no fence that stands. Otherwise
/// whoever runs the network that a laptop joins could open it by handing out such an address.
fn covered(
    directory: &Directory,
    this: &NodeName,
    host: &HostConfig,
    underlay: &Underlay,
    problems: &mut Vec<Problem>,
) {
    let prefixes = directory.bounds().unwrap_or_default();
    let needs_names = !directory.host_names(this).is_empty();
    let all = (underlay.needs().into_iter())
        .flat_map(|(what, addresses)| addresses.iter().map(move |address| (what, address)));
    for (what, address) in all {
        // A resolver of the mesh is a good one for whoever finds the mesh without it.
        let is_peer = || host.routes.iter().any(|net| net.contains(address));
        if host.fence.local.iter().any(|net| net.contains(address))
            || what == NAME_SERVER && !needs_names && is_peer()
        {
            continue;
        }
        if let Some(index) = prefixes.iter().position(|net| net.contains(address)) {
            let subject = Subject::entry(Place::Mesh, Field::Prefixes, index);
            problems.push(subject.has(Cause::Covers {
                prefix: prefixes[index],
                what,
                address: *address,
            }));
        }
    }
}

/// Whose field names the preshared key of two nodes.
fn key_file_place(
    directory: &Directory,
    a: &NodeName,
    b: &NodeName,
    file: &KeyFile,
) -> (Place, KeyFile) {
    let place = Pair::new(a.clone(), b.clone())
        .filter(|pair| directory.pairs.contains_key(pair))
        .map_or(Place::Mesh, Place::Pair);
    (place, file.clone())
}

impl Underlay {
    /// What is cut off when the mesh takes it, and what to call it.
    fn needs(&self) -> [(&'static str, &BTreeSet<IpAddr>); 3] {
        [
            ("an address", &self.addresses),
            ("the default gateway", &self.gateways),
            (NAME_SERVER, &self.resolvers),
        ]
    }
}

/// A directory without the items that are refused.
struct Sound<'a> {
    directory: &'a Directory,
    refused: &'a BTreeSet<Subject>,
}

impl Sound<'_> {
    fn allows(&self, name: &NodeName, field: Field, index: usize) -> bool {
        !self.refused.contains(&Subject::node(name, field, index))
    }

    fn public_key(&self, name: &NodeName, node: &Node) -> Option<PublicKey> {
        node.public_key
            .filter(|_| self.allows(name, Field::PublicKey, 0))
    }

    fn addresses(&self, name: &NodeName, node: &Node) -> impl Iterator<Item = IpAddr> {
        (node.addresses.iter().enumerate())
            .filter(|&(index, _)| self.allows(name, Field::Addresses, index))
            .map(|(_, address)| *address)
    }

    /// All that a node is: what it may send from, and what is sent to it. What an overlay wraps goes from
    /// node to node.
    fn claims(&self, name: &NodeName, node: &Node) -> BTreeSet<IpNet> {
        let has_prefixes = self.directory.mesh.steering == Steering::Prefixes;
        let prefixes = (node.prefixes.iter().enumerate())
            .filter(|&(index, _)| has_prefixes && self.allows(name, Field::Prefixes, index))
            .map(|(_, prefix)| *prefix);
        let addresses = self.addresses(name, node).map(IpNet::from);
        addresses.chain(prefixes).collect()
    }

    /// Whether others can call the node.
    fn is_reachable(&self, name: &NodeName, node: &Node) -> bool {
        (0..node.endpoints.len()).any(|index| self.allows(name, Field::Endpoints, index))
    }
}

fn did_you_mean(nearest: Option<&NodeName>) -> String {
    nearest.map_or_else(String::new, |nearest| {
        format!("; did you mean \"{nearest}\"?")
    })
}

fn sentences(problems: &[Problem]) -> String {
    let sentences: Vec<String> = problems.iter().map(ToString::to_string).collect();
    sentences.join("\n")
}
