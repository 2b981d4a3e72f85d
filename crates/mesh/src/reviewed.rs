//! A directory that is reviewed node by node: what one change costs does not grow with the mesh.
//!
//! Two nodes matter to each other where they claim the same key, the same endpoint, or addresses that overlap. Who
//! keeps what is contested depends on who else contests it, and so on; so what is looked at again when a node
//! changes is everybody whom such claims connect with it, before or after. As a rule that is nobody.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use warren_config::PublicKey;

use crate::directory::{Directory, Node};
use crate::endpoint::{Endpoint, Host};
use crate::name::NodeName;
use crate::problem::{Field, Place, Problem, Subject};
use crate::review::refused;

/// A directory with what [`Directory::review`] says of it, which stays true while nodes come, change and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    directory: Directory,
    /// Of each node what is wrong with it by itself and among others, in order.
    of_nodes: BTreeMap<NodeName, Vec<Problem>>,
    claims: Claims,
}

/// Who claims what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Claims {
    keys: BTreeMap<PublicKey, BTreeSet<NodeName>>,
    endpoints: BTreeMap<Endpoint, BTreeSet<NodeName>>,
    /// Prefixes, addresses, and the addresses of endpoints, by which a prefix may be refused.
    nets: BTreeMap<IpNet, BTreeSet<NodeName>>,
    /// Who has no endpoint.
    callers: BTreeSet<NodeName>,
}

impl Reviewed {
    /// Reviews all of it.
    pub fn new(directory: Directory) -> Self {
        let mut claims = Claims::default();
        for (name, node) in &directory.nodes {
            claims.add(&directory, name, node);
        }
        let of_nodes = sorted(directory.review_nodes());
        Self {
            directory,
            of_nodes,
            claims,
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The MTU of the tunnel, in bytes, is found to be this. It is nothing to any node.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.directory.mesh.mtu = mtu;
    }

    /// Puts a node into the place of the one of its name, or takes that away. All nodes whose problems may be
    /// others than before, this one among them.
    pub fn set(&mut self, name: &NodeName, node: Option<Node>) -> BTreeSet<NodeName> {
        if self.directory.nodes.get(name) == node.as_ref() {
            return BTreeSet::new();
        }
        let mut affected = self.connected(name);
        if let Some(old) = self.directory.nodes.remove(name) {
            self.claims.remove(&self.directory, name, &old);
        }
        if let Some(node) = node {
            self.claims.add(&self.directory, name, &node);
            self.directory.nodes.insert(name.clone(), node);
        }
        affected.extend(self.connected(name));
        affected.insert(name.clone());

        let nodes = affected
            .iter()
            .filter_map(|name| self.directory.nodes.get_key_value(name));
        let part = Directory {
            mesh: self.directory.mesh.clone(),
            nodes: nodes
                .map(|(name, node)| (name.clone(), node.clone()))
                .collect(),
            pairs: BTreeMap::new(),
        };
        let mut problems = sorted(part.review_nodes());
        for name in &affected {
            match problems.remove(name) {
                Some(problems) => self.of_nodes.insert(name.clone(), problems),
                None => self.of_nodes.remove(name),
            };
        }
        affected
    }

    /// What is wrong with a node, other than that it and others have no endpoint.
    pub fn problems_of(&self, name: &NodeName) -> &[Problem] {
        self.of_nodes.get(name).map_or(&[], Vec::as_slice)
    }

    /// All that is wrong, as [`Directory::review`] says it. Costs what is wrong, and the mesh's own fields.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.directory.review_mesh(&mut problems);
        problems.extend(self.of_nodes.values().flatten().cloned());
        self.directory.review_pairs(&mut problems);
        let callers: Vec<&NodeName> = self.claims.callers.iter().collect();
        Directory::review_reachability(&callers, &mut problems);
        problems.sort_by(|a, b| a.subject.cmp(&b.subject));
        problems
    }

    /// Every node that claims connect with this one, itself among them where it is there.
    fn connected(&self, name: &NodeName) -> BTreeSet<NodeName> {
        let mut connected = BTreeSet::new();
        let mut next = vec![name];
        while let Some(name) = next.pop() {
            let Some(node) = self.directory.nodes.get(name) else {
                continue;
            };
            if connected.insert(name.clone()) {
                next.extend(self.claims.of_others(&self.directory, name, node));
            }
        }
        connected
    }
}

impl Claims {
    fn add(&mut self, directory: &Directory, name: &NodeName, node: &Node) {
        fn insert<K: Ord>(claims: &mut BTreeMap<K, BTreeSet<NodeName>>, key: K, name: &NodeName) {
            claims.entry(key).or_default().insert(name.clone());
        }
        if let Some(key) = node.public_key {
            insert(&mut self.keys, key, name);
        }
        for endpoint in &node.endpoints {
            insert(&mut self.endpoints, directory.full(endpoint), name);
        }
        for net in nets(directory, name, node) {
            insert(&mut self.nets, net, name);
        }
        if node.is_caller() {
            self.callers.insert(name.clone());
        }
    }

    fn remove(&mut self, directory: &Directory, name: &NodeName, node: &Node) {
        fn remove<K: Ord>(claims: &mut BTreeMap<K, BTreeSet<NodeName>>, key: &K, name: &NodeName) {
            if let Some(names) = claims.get_mut(key) {
                names.remove(name);
                if names.is_empty() {
                    claims.remove(key);
                }
            }
        }
        if let Some(key) = &node.public_key {
            remove(&mut self.keys, key, name);
        }
        for endpoint in &node.endpoints {
            remove(&mut self.endpoints, &directory.full(endpoint), name);
        }
        for net in nets(directory, name, node) {
            remove(&mut self.nets, &net, name);
        }
        self.callers.remove(name);
    }

    /// Who else claims any of what a node claims. A node more than once.
    fn of_others<'a>(
        &'a self,
        directory: &Directory,
        name: &NodeName,
        node: &Node,
    ) -> impl Iterator<Item = &'a NodeName> {
        let mut claimants: Vec<&BTreeSet<NodeName>> = Vec::new();
        claimants.extend(node.public_key.and_then(|key| self.keys.get(&key)));
        for endpoint in &node.endpoints {
            claimants.extend(self.endpoints.get(&directory.full(endpoint)));
        }
        for net in nets(directory, name, node) {
            // Those that contain it, and those in it.
            let wider = std::iter::successors(Some(net), IpNet::supernet);
            claimants.extend(wider.filter_map(|wider| self.nets.get(&wider)));
            let first = IpNet::new_assert(net.network(), 0);
            let inner =
                (self.nets.range(first..)).take_while(|(inner, _)| net.contains(&inner.network()));
            claimants.extend(inner.map(|(_, names)| names));
        }
        let name = name.clone();
        let others = claimants.into_iter().flatten();
        others.filter(move |other| **other != name)
    }
}

/// What a node claims or is reached at, but for what it cannot have whoever else there is.
fn nets(directory: &Directory, name: &NodeName, node: &Node) -> Vec<IpNet> {
    let mut problems = Vec::new();
    directory.review_node(name, node, &mut problems);
    let refused = refused(&problems);
    let is_sound = |field, index| !refused.contains(&Subject::node(name, field, index));
    let endpoints = (node.endpoints.iter().enumerate())
        .filter(|(index, _)| is_sound(Field::Endpoints, *index))
        .filter_map(|(_, endpoint)| match endpoint.host {
            Host::Address(address) => Some(IpNet::from(address)),
            Host::Name(_) => None,
        });
    let claims = (node.claims())
        .filter(|(field, index, _)| is_sound(*field, *index))
        .map(|(_, _, net)| net);
    claims.chain(endpoints).collect()
}

fn sorted(problems: Vec<Problem>) -> BTreeMap<NodeName, Vec<Problem>> {
    let mut of_nodes: BTreeMap<NodeName, Vec<Problem>> = BTreeMap::new();
    for problem in problems {
        if let Place::Node(name) = &problem.subject.place {
            of_nodes.entry(name.clone()).or_default().push(problem);
        }
    }
    of_nodes
}
