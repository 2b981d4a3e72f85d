//! From what the API says of all nodes to the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_mesh::{Directory, Endpoint, Host, NameError, Node, NodeName};

use crate::facts::{NodeFacts, Record, RecordError};
use crate::known::Known;
use crate::resources::{MeshSpec, Mode};
use crate::settings::Settings;

/// What the API says, as far as it has arrived. Names are those of the objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The uid of the namespace kube-system.
    pub cluster: Option<String>,
    /// Every Node.
    pub nodes: Option<BTreeMap<String, NodeFacts>>,
    /// Every MeshNode.
    pub records: Option<BTreeMap<String, Result<Record, RecordError>>>,
    /// The [`Mesh`](crate::Mesh), if there is one.
    pub mesh: Option<Option<MeshSpec>>,
    /// Where the API server is behind the Service `kubernetes`.
    pub api_servers: Option<BTreeSet<IpAddr>>,
}

/// What a view had of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// Its `Node`.
    pub node: Option<NodeFacts>,
    /// Its record.
    pub record: Option<Result<Record, RecordError>>,
}

/// A directory, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries {
    /// All nodes of the mesh. One without a usable record is in it without a key: it is fenced.
    pub directory: Directory,
    /// The uids of their `Node` objects.
    pub uids: BTreeMap<NodeName, String>,
    /// What people should know that the directory does not show, ordered by node.
    pub findings: Vec<Finding>,
}

/// Something that is wrong with the objects of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name of the objects.
    pub node: String,
    /// What is wrong with them.
    pub issue: Issue,
}

/// What is wrong with the objects of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Issue {
    /// The Node's name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A prefix or address of the Node is none.
    #[error("its Node has {0:?}, which is neither a prefix nor an address")]
    Unreadable(String),
    /// There is a record, but no Node.
    #[error("there is a MeshNode, but no Node of its name")]
    NoNode,
    /// The record is no record.
    #[error("its MeshNode is not followed: {0}")]
    Record(RecordError),
    /// The record is that of another Node of this name.
    #[error("its MeshNode is of the uid {record}, and its Node has {node}")]
    OtherNode {
        /// What the record says.
        record: String,
        /// What the Node says.
        node: String,
    },
    /// The record went, or is none any more, and the node stayed.
    #[error("it has no MeshNode to follow; its last key stays in force until its Node goes, too")]
    RecordGone,
    /// The record's key is none.
    #[error("its public key is no key")]
    Key,
    /// The record aims at an address that is not the node's.
    #[error(
        "its endpoint {0} is neither an address of its Node nor within allowedEndpointCIDRs, and is \
         not followed"
    )]
    Endpoint(IpAddr),
    /// The record is of a node that steers its traffic otherwise.
    #[error("its mode is {theirs:?}, and the mesh's is {ours:?}")]
    Mode {
        /// The record's.
        theirs: Mode,
        /// The mesh's.
        ours: Mode,
    },
}

impl View {
    /// The directory that follows from this view, the operator's `settings` and what was `known`
    /// before. Whether it may take anything away is another question: [`View::trust`].
    pub fn directory(&self, settings: &Settings, known: &Known) -> Entries {
        let mut entries = Entries {
            directory: Directory {
                mesh: settings.mesh.clone(),
                nodes: BTreeMap::new(),
                pairs: BTreeMap::new(),
            },
            uids: BTreeMap::new(),
            findings: Vec::new(),
        };
        let nodes = self.nodes.iter().flat_map(BTreeMap::keys);
        let records = self.records.iter().flat_map(BTreeMap::keys);
        let names: BTreeSet<&String> = nodes.chain(records).collect();
        for name in names {
            self.enter(name, settings, known, &mut entries);
        }
        entries
    }

    /// Takes over what `from` has of the node of this name, its `Node` and its record, into what is there. What
    /// was there before; nothing of resources of which nothing has arrived.
    pub fn take_over(&mut self, from: &Self, name: &str) -> Before {
        fn replace<V: Clone>(
            into: Option<&mut BTreeMap<String, V>>,
            from: Option<&BTreeMap<String, V>>,
            name: &str,
        ) -> Option<V> {
            let (into, from) = (into?, from?);
            match from.get(name) {
                Some(value) => into.insert(name.to_owned(), value.clone()),
                None => into.remove(name),
            }
        }
        Before {
            node: replace(self.nodes.as_mut(), from.nodes.as_ref(), name),
            record: replace(self.records.as_mut(), from.records.as_ref(), name),
        }
    }

    /// Whether `now` has more that is new than what [`View::take_over`] brings of other nodes than `this`.
    pub(crate) fn differs_in_more_than_nodes(&self, now: &Self, this: &str) -> bool {
        fn own<'a>(view: &'a View, this: &str) -> Option<&'a NodeFacts> {
            view.nodes.as_ref()?.get(this)
        }
        self.cluster != now.cluster
            || self.mesh != now.mesh
            || self.nodes.is_some() != now.nodes.is_some()
            || self.records.is_some() != now.records.is_some()
            // They arrive by another list, which may be refused.
            || now.api_servers.is_some() && self.api_servers != now.api_servers
            || own(self, this) != own(now, this)
    }

    /// Enters what there is of the node of this name, after all that was entered before.
    fn enter(&self, name: &str, settings: &Settings, known: &Known, entries: &mut Entries) {
        let (entry, findings) = self.entry_of(name, settings, known);
        entries.findings.extend(findings);
        if let (Some((uid, node)), Ok(name)) = (entry, name.parse::<NodeName>()) {
            entries.uids.insert(name.clone(), uid);
            entries.directory.nodes.insert(name, node);
        }
    }

    /// The uid and the entry of the node of this name, and what people should know of it.
    pub(crate) fn entry_of(
        &self,
        name: &str,
        settings: &Settings,
        known: &Known,
    ) -> (Option<(String, Node)>, Vec<Finding>) {
        let facts = self.nodes.as_ref().and_then(|nodes| nodes.get(name));
        let record = self.records.as_ref().and_then(|records| records.get(name));
        let mut findings = Vec::new();
        let mut found = |issue| {
            findings.push(Finding {
                node: name.to_owned(),
                issue,
            });
        };
        let entry = match (facts, name.parse()) {
            (Some(facts), Ok(name)) => {
                let node = entry(&name, facts, record, settings, known, &mut found);
                Some((facts.uid.clone(), node))
            }
            (Some(_), Err(error)) => {
                found(Issue::Name(error));
                None
            }
            (None, _) => {
                if record.is_some() {
                    found(Issue::NoNode);
                }
                None
            }
        };
        (entry, findings)
    }
}

/// One node: prefixes and addresses from its `Node`, the key from its record.
fn entry(
    name: &NodeName,
    facts: &NodeFacts,
    record: Option<&Result<Record, RecordError>>,
    settings: &Settings,
    known: &Known,
    found: &mut impl FnMut(Issue),
) -> Node {
    for text in &facts.unreadable {
        found(Issue::Unreadable(text.clone()));
    }
    let mut node = match settings.mode {
        Mode::Route => Node {
            // The address that is a prefix's name is given to no pod, and so it is free for the tunnel.
            addresses: facts.pod_cidrs.iter().map(IpNet::network).collect(),
            prefixes: facts.pod_cidrs.clone(),
            ..Node::default()
        },
        // What the CNI wraps goes from node to node.
        Mode::Overlay => Node {
            addresses: facts.addresses.clone(),
            ..Node::default()
        },
    };
    node.keepalive = settings.keepalive;
    node.outside = settings.excepts(name.as_str(), facts);
    let record = match record {
        Some(Ok(record)) if record.node_uid == facts.uid => Some(record),
        Some(Ok(record)) => {
            found(Issue::OtherNode {
                record: record.node_uid.clone(),
                node: facts.uid.clone(),
            });
            None
        }
        Some(Err(error)) => {
            found(Issue::Record(error.clone()));
            None
        }
        None => None,
    };
    let created = match (record, known.same(name, &facts.uid)) {
        (Some(record), _) if record.mode != settings.mode => {
            found(Issue::Mode {
                theirs: record.mode,
                ours: settings.mode,
            });
            record.created
        }
        (Some(record), _) => {
            node.public_key = record.public_key.parse().ok();
            if node.public_key.is_none() {
                found(Issue::Key);
            }
            node.endpoints = endpoints(facts, record, &settings.allowed_endpoints, found);
            record.created
        }
        // Whoever empties the API, or takes one record away, cuts no node off.
        (None, Some(last)) if last.public_key.is_some() => {
            found(Issue::RecordGone);
            node.public_key = last.public_key;
            node.endpoints = last.endpoints.clone();
            0
        }
        (None, _) => i64::MAX,
    };
    node.seniority = known.seniority(name, &facts.uid, &node, created);
    node
}

/// Where to reach a node: where its record says, as far as that is its own or allowed, and else at
/// the addresses of its `Node`.
fn endpoints(
    facts: &NodeFacts,
    record: &Record,
    allowed: &[IpNet],
    found: &mut impl FnMut(Issue),
) -> Vec<Endpoint> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for &address in &record.endpoints {
        let own = facts.addresses.contains(&address);
        if own || allowed.iter().any(|prefix| prefix.contains(&address)) {
            addresses.push(address);
        } else {
            found(Issue::Endpoint(address));
        }
    }
    if addresses.is_empty() {
        addresses.clone_from(&facts.addresses);
    }
    let endpoint = |address| Endpoint {
        host: Host::Address(address),
        port: Some(record.port),
    };
    addresses.into_iter().map(endpoint).collect()
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node \"{}\": {}", self.node, self.issue)
    }
}
