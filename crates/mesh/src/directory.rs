//! All nodes of a mesh as typed data, wherever they were written down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_config::{PublicKey, Steering};

use crate::endpoint::{Endpoint, Host, HostName};
use crate::name::NodeName;
use crate::problem::Field;

/// All nodes of a mesh.
///
/// The fields are open: whoever fills them may get them wrong, [`Directory::review`] says where,
/// and [`plan`](crate::plan()) leaves out what is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// What all nodes have in common.
    pub mesh: Mesh,
    /// The nodes, by name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Preshared keys of pairs of nodes; each takes the place of the mesh's for its pair.
    pub pairs: BTreeMap<Pair, KeyFile>,
}

/// What all nodes of a mesh have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// What people call the mesh.
    pub name: String,
    /// The UDP port on which every node listens.
    pub port: u16,
    /// MTU of the tunnel, in bytes.
    pub mtu: u32,
    /// All that the mesh may carry, and therefore all that is fenced: what lies in these prefixes
    /// travels encrypted or not at all.
    pub prefixes: Vec<IpNet>,
    /// The preshared key of all pairs of nodes that have none of their own.
    pub preshared_key: Option<KeyFile>,
    /// Name of the TUN interface.
    pub interface: String,
    /// Our routing table.
    pub table: u32,
    /// Preference of our routing rule.
    pub rule_priority: u32,
    /// Mark of the tunnel's own packets.
    pub fwmark: u32,
    /// What happens to what cannot be encrypted.
    pub enforcement: Enforcement,
    /// Which packets go by the tunnel.
    pub steering: Steering,
    /// Whether this host's own packets into the tunnel get its address where they have another that
    /// peers do not take from it.
    pub masquerade: bool,
}

/// What happens to what cannot be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// It is dropped, all of the mesh's prefixes, both ways.
    #[default]
    Strict,
    /// What was once steered into the tunnel is never sent in the clear again; the rest is, and
    /// plaintext from the mesh is taken.
    Staged,
    /// It is sent in the clear.
    Permissive,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its key. A node without one is fenced: nothing is sent to it until it has.
    pub public_key: Option<PublicKey>,
    /// Where it may be reached, in the order in which to try. Empty behind NAT.
    pub endpoints: Vec<Endpoint>,
    /// Its own addresses in the mesh.
    pub addresses: Vec<IpAddr>,
    /// What lies behind it.
    pub prefixes: Vec<IpNet>,
    /// Seconds between keepalives towards nodes that have an endpoint; 0 is off. Where it is
    /// `None` a node without an endpoint of its own takes
    /// [`DEFAULT_KEEPALIVE_SECS`](crate::DEFAULT_KEEPALIVE_SECS) and others take none.
    pub keepalive: Option<u16>,
    /// Who keeps a key, an address or a prefix that two nodes claim: the one with the lower
    /// number, then the one whose name comes first. Kubernetes counts known nodes and older
    /// records lower. In a file all are equal, since there a contested claim refuses the file.
    pub seniority: u64,
    /// Whether it is no part of the tunnel: an exception that somebody asked for. It is no peer, and
    /// what it has is reached in the clear.
    pub outside: bool,
}

/// Two different nodes, in no order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair(NodeName, NodeName);

/// The name under which a preshared key is kept: a path, which the caller reads. A relative one
/// starts in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyFile(pub String);

impl Directory {
    /// The host names whose addresses `this` needs: those of all other nodes.
    pub fn host_names(&self, this: &NodeName) -> BTreeSet<&HostName> {
        self.others(this)
            .flat_map(|(_, node)| &node.endpoints)
            .filter_map(|endpoint| match &endpoint.host {
                Host::Name(name) => Some(name),
                Host::Address(_) => None,
            })
            .collect()
    }

    /// The preshared keys that `this` needs.
    pub fn key_files(&self, this: &NodeName) -> BTreeSet<&KeyFile> {
        self.others(this)
            .filter_map(|(other, _)| self.key_file(this, other))
            .collect()
    }

    /// The preshared key of two nodes: their own, else the mesh's.
    pub fn key_file(&self, a: &NodeName, b: &NodeName) -> Option<&KeyFile> {
        Pair::new(a.clone(), b.clone())
            .and_then(|pair| self.pairs.get(&pair))
            .or(self.mesh.preshared_key.as_ref())
    }

    /// The prefixes in which all lies that nodes claim, and in which no endpoint does; `None` where
    /// the mesh has none: what an overlay wraps goes to the nodes' own addresses, and a mesh that is not
    /// strict need not know all that it may carry.
    pub(crate) fn bounds(&self) -> Option<&[IpNet]> {
        let Mesh {
            prefixes,
            enforcement,
            steering,
            ..
        } = &self.mesh;
        let is_open = *enforcement != Enforcement::Strict && prefixes.is_empty();
        match steering {
            Steering::Overlay { .. } => None,
            Steering::Prefixes => (!is_open).then_some(prefixes),
        }
    }

    /// An endpoint with its port.
    pub(crate) fn full(&self, endpoint: &Endpoint) -> Endpoint {
        Endpoint {
            host: endpoint.host.clone(),
            port: endpoint.port.or(Some(self.mesh.port)),
        }
    }

    /// Every node but `this`.
    pub(crate) fn others(&self, this: &NodeName) -> impl Iterator<Item = (&NodeName, &Node)> {
        self.nodes.iter().filter(move |(name, _)| *name != this)
    }
}

impl Node {
    /// Whether others wait for it to call.
    pub(crate) fn is_caller(&self) -> bool {
        self.endpoints.is_empty() && !self.outside
    }

    /// Its prefixes, then its addresses, each with where it is written.
    pub(crate) fn claims(&self) -> impl Iterator<Item = (Field, usize, IpNet)> {
        let prefixes = (self.prefixes.iter().enumerate())
            .map(|(index, prefix)| (Field::Prefixes, index, *prefix));
        let addresses = (self.addresses.iter().enumerate())
            .map(|(index, address)| (Field::Addresses, index, IpNet::from(*address)));
        prefixes.chain(addresses)
    }
}

impl Default for Mesh {
    /// The values that a mesh file need not mention. The prefixes are empty, and must be given.
    fn default() -> Self {
        Self {
            name: "warren".to_owned(),
            port: 51820,
            // 1500 less 40 (IPv6), 8 (UDP), 16 (header) and 16 (tag): fits whatever the family.
            mtu: 1420,
            prefixes: Vec::new(),
            preshared_key: None,
            interface: "warren0".to_owned(),
            // wg-quick(8) looks for a free table from 51820 upwards.
            table: 51880,
            rule_priority: 98,
            fwmark: 0x20,
            enforcement: Enforcement::default(),
            steering: Steering::default(),
            masquerade: false,
        }
    }
}

impl Pair {
    /// A pair that no file can name, for one whose names could not be read.
    pub(crate) const NOBODIES: Self = Self(NodeName::NOBODY, NodeName::NOBODY);

    /// `None` for a node and itself.
    pub fn new(a: NodeName, b: NodeName) -> Option<Self> {
        match a.cmp(&b) {
            std::cmp::Ordering::Less => Some(Self(a, b)),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Self(b, a)),
        }
    }

    /// The two, by name.
    pub fn names(&self) -> [&NodeName; 2] {
        [&self.0, &self.1]
    }
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
