//! What is wrong with a directory, and where: data first, a sentence on demand.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_config::PublicKey;

use crate::directory::{KeyFile, Pair};
use crate::endpoint::{Endpoint, HostName, Unusable};
use crate::name::NodeName;

/// Something that people should know about a directory or a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What the problem is of.
    pub subject: Subject,
    /// What else it is of: where the other claimant of an address stands, say.
    pub related: Option<Subject>,
    /// What is wrong, and what would be right.
    pub cause: Cause,
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The item has no effect; a file that contains it is refused.
    Error,
    /// All is as it was written, but maybe not as it was meant.
    Warning,
}

/// One item of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Whose it is.
    pub place: Place,
    /// Which field; `None` for the place itself.
    pub field: Option<Field>,
    /// Which entry of the field, from zero; zero for a field of one value.
    pub index: usize,
}

/// A part of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// What all nodes have in common.
    Mesh,
    /// A node.
    Node(NodeName),
    /// A pair of nodes.
    Pair(Pair),
}

/// A field of a [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "named as in the file, and explained with the types"
)]
pub enum Field {
    Name,
    Port,
    Mtu,
    PresharedKeyFile,
    Interface,
    Table,
    RulePriority,
    Fwmark,
    Steering,
    PublicKey,
    Endpoints,
    Addresses,
    Prefixes,
    Keepalive,
    Nodes,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each variant is explained by its sentence, below"
)]
pub enum Cause {
    MeshName(String),
    Interface(String),
    PortZero,
    Mtu(u32),
    MtuForIpv6(u32),
    Table(u32),
    RulePriority(u32),
    FwmarkZero,
    NoMeshPrefix,
    NoOverlayPort,
    OverlayPort(u16),
    NoKeyFile,

    ZeroLength(IpNet),
    HostBits(IpNet),
    Special(IpNet, Unusable),
    OutsideMesh(IpNet),
    Overlap {
        what: IpNet,
        other: IpNet,
        owner: Option<NodeName>,
    },

    NoAddress,
    SpecialAddress(IpAddr, Unusable),
    AddressOutsideMesh(IpAddr),
    AddressTaken {
        address: IpAddr,
        other: IpNet,
        owner: NodeName,
    },

    PortOfEndpoint(Endpoint),
    Endpoint(Endpoint, Unusable),
    SharedEndpoint {
        endpoint: Endpoint,
        owner: NodeName,
    },
    ZeroKey,
    DuplicateKey {
        key: PublicKey,
        owner: NodeName,
    },
    UnknownNode {
        name: NodeName,
        nearest: Option<NodeName>,
    },

    NoKey,
    Unreachable {
        first: Vec<NodeName>,
        more: usize,
    },

    Unresolved(HostName),
    ResolvedTo {
        name: HostName,
        address: IpAddr,
        unusable: Unusable,
    },
    NoPrivateKey,
    WrongPrivateKey {
        key: PublicKey,
        owner: Option<NodeName>,
    },
    NoPresharedKey(KeyFile),
    Covers {
        prefix: IpNet,
        what: &'static str,
        address: IpAddr,
    },
    CoversEndpoint {
        prefix: IpNet,
        address: IpAddr,
        owner: NodeName,
    },
    ApiServer {
        prefix: IpNet,
        address: IpAddr,
    },
}

impl Cause {
    /// Whether a review of the directory finds it, and not only a plan.
    pub(crate) fn is_of_review(&self) -> bool {
        !matches!(
            self,
            Self::Unresolved(_)
                | Self::ResolvedTo { .. }
                | Self::NoPrivateKey
                | Self::WrongPrivateKey { .. }
                | Self::NoPresharedKey(_)
                | Self::Covers { .. }
                | Self::ApiServer { .. }
        )
    }
}

impl Problem {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self.cause {
            Cause::SharedEndpoint { .. }
            | Cause::NoKey
            | Cause::Unreachable { .. }
            | Cause::Unresolved(_)
            | Cause::ResolvedTo { .. }
            | Cause::ApiServer { .. } => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// The problem as one sentence, where `at` says where the related subject stands.
    pub(crate) fn write(
        &self,
        f: &mut fmt::Formatter<'_>,
        at: &dyn Fn(&Subject) -> String,
    ) -> fmt::Result {
        let at = self.related.as_ref().map(at).unwrap_or_default();
        write!(f, "{}: ", self.subject)?;
        self.cause.write(f, &at)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &|_| String::new())
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl Subject {
    /// A place itself.
    pub(crate) fn of(place: Place) -> Self {
        Self {
            place,
            field: None,
            index: 0,
        }
    }

    /// An entry of a field of a place.
    pub(crate) fn entry(place: Place, field: Field, index: usize) -> Self {
        Self {
            place,
            field: Some(field),
            index,
        }
    }

    /// An entry of a field of a node.
    pub(crate) fn node(name: &NodeName, field: Field, index: usize) -> Self {
        Self::entry(Place::Node(name.clone()), field, index)
    }

    /// That `cause` is wrong with it.
    pub(crate) fn has(self, cause: Cause) -> Problem {
        Problem {
            subject: self,
            related: None,
            cause,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        match self.field {
            Some(field) => write!(f, ", {}", field.as_str()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("[mesh]"),
            Self::Node(name) => write!(f, "node \"{name}\""),
            Self::Pair(pair) => {
                let [a, b] = pair.names();
                write!(f, "pair \"{a}\" and \"{b}\"")
            }
        }
    }
}

impl Field {
    /// The field as it is written in a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Port => "port",
            Self::Mtu => "mtu",
            Self::PresharedKeyFile => "preshared_key_file",
            Self::Interface => "interface",
            Self::Table => "table",
            Self::RulePriority => "rule_priority",
            Self::Fwmark => "fwmark",
            Self::Steering => "steering",
            Self::PublicKey => "public_key",
            Self::Endpoints => "endpoints",
            Self::Addresses => "addresses",
            Self::Prefixes => "prefixes",
            Self::Keepalive => "keepalive",
            Self::Nodes => "nodes",
        }
    }
}

impl Cause {
    /// The sentence. `at` follows the name of the other claimant, as in `" on line 7"`.
    fn write(&self, f: &mut fmt::Formatter<'_>, at: &str) -> fmt::Result {
        match self {
            Self::MeshName(name) => write!(f, "{name:?} is no name; {}", crate::name::NameError),
            Self::Interface(name) => write!(
                f,
                "{name:?} is no name of an interface; it has at most 15 letters, digits, '-', '_' \
                 and '.', begins with a letter and is not \"lo\", \"all\" or \"default\""
            ),
            Self::PortZero => f.write_str(
                "0 is no port on which others could reach a node; choose one from 1 to 65535",
            ),
            Self::Mtu(mtu) => write!(
                f,
                "{mtu} is no MTU of a tunnel; choose one from 576 to 65475, and 1420 for \
                 an ordinary network"
            ),
            Self::MtuForIpv6(mtu) => write!(
                f,
                "{mtu} is too small for the mesh's IPv6 prefix; IPv6 asks for at least 1280"
            ),
            Self::Table(table) => write!(
                f,
                "{table} is a table of the system; choose any number but 0, 253, 254 and 255"
            ),
            Self::RulePriority(priority) => write!(
                f,
                "{priority} is not between the system's own rules; choose one from 3 to 32764"
            ),
            Self::FwmarkZero => f.write_str(
                "0 marks nothing, and the tunnel's own packets would be led into the tunnel; \
                 choose any other number",
            ),
            Self::NoMeshPrefix => f.write_str(
                "there is none; say what the mesh may carry, as in prefixes = [\"10.77.0.0/16\"]",
            ),
            Self::NoOverlayPort => f.write_str(
                "there is no port of an overlay to steer by; name that of its VXLAN or Geneve, as in \
                 8472, 4789 or 6081",
            ),
            Self::OverlayPort(port) => write!(
                f,
                "{port} cannot be the port of an overlay, since the tunnel listens there or nobody \
                 can; name that of the overlay's VXLAN or Geneve, as in 8472, 4789 or 6081"
            ),
            Self::NoKeyFile => f.write_str(
                "the path is empty; name a file that `warren genpsk` filled, as in \"mesh.psk\"",
            ),

            Self::ZeroLength(net) => write!(
                f,
                "\"{net}\" is everything there is, and would cut the node off; name what the mesh \
                 carries"
            ),
            Self::HostBits(net) => {
                write!(
                    f,
                    "\"{net}\" is an address inside a prefix; the prefix is \"{}\"",
                    net.trunc()
                )
            }
            Self::Special(net, unusable) => write!(
                f,
                "\"{net}\" contains {}; name a prefix that machines can have, \
                 as in \"10.77.0.0/16\" or \"fd77::/48\"",
                unusable.plural()
            ),
            Self::OutsideMesh(net) => write!(
                f,
                "\"{net}\" is outside the mesh, so that nothing would keep its traffic out of the \
                 clear; add it to the prefixes of [mesh]"
            ),
            Self::Overlap {
                what,
                other,
                owner: None,
            } if what == other => match is_host(what) {
                true => write!(f, "\"{}\" is listed twice; once is enough", what.addr()),
                false => write!(f, "\"{what}\" is listed twice; once is enough"),
            },
            Self::Overlap {
                what,
                other,
                owner: None,
            } => write!(
                f,
                "\"{what}\" and \"{other}\"{at} overlap; the larger one is enough"
            ),
            Self::Overlap {
                what,
                other,
                owner: Some(owner),
            } => write!(
                f,
                "\"{what}\" overlaps \"{other}\" of node \"{owner}\"{at}; what lies in a prefix \
                 can be reached through one node only"
            ),

            Self::NoAddress => {
                f.write_str("there is none; give the node an address inside the prefixes of [mesh]")
            }
            Self::SpecialAddress(address, unusable) => write!(
                f,
                "\"{address}\" {unusable}; give the node one that machines can have"
            ),
            Self::AddressOutsideMesh(address) => write!(
                f,
                "\"{address}\" is outside the mesh; choose one inside the prefixes of [mesh]"
            ),
            Self::AddressTaken {
                address,
                other,
                owner,
            } if is_host(other) => write!(
                f,
                "\"{address}\" is the address of node \"{owner}\"{at}; choose one that is free"
            ),
            Self::AddressTaken {
                address,
                other,
                owner,
            } => write!(
                f,
                "\"{address}\" is in \"{other}\" of node \"{owner}\"{at}; choose one that is free"
            ),

            Self::PortOfEndpoint(endpoint) => write!(
                f,
                "\"{endpoint}\" has port 0, which nobody listens on; choose one from 1 to 65535"
            ),
            Self::Endpoint(endpoint, unusable @ Unusable::InsideMesh(_)) => write!(
                f,
                "\"{endpoint}\" {unusable}, and the tunnel cannot be reached through itself; name \
                 an address outside the mesh, or narrow that prefix"
            ),
            Self::Endpoint(endpoint, unusable) => write!(
                f,
                "\"{endpoint}\" {unusable}; name one that the other nodes can reach"
            ),
            Self::SharedEndpoint { endpoint, owner } => write!(
                f,
                "\"{endpoint}\" is an endpoint of node \"{owner}\"{at}, too; only one of them can \
                 be reached there"
            ),
            Self::ZeroKey => f.write_str(
                "a key of zeros is nobody's; leave the field out until the node has a key",
            ),
            Self::DuplicateKey { key, owner } => write!(
                f,
                "\"{key}\" is the key of node \"{owner}\"{at}; each node needs its own, \
                 which `warren init` makes"
            ),
            Self::UnknownNode { name, nearest } => {
                write!(f, "there is no node \"{name}\"")?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean \"{nearest}\"?"),
                    None => f.write_str("; name two nodes of this mesh"),
                }
            }

            Self::NoKey => f.write_str(
                "there is none yet, and nothing is sent to the node until there is; \
                 `warren init` on that node prints it",
            ),
            Self::Unreachable { first, more } => {
                let others = Names { first, more: *more };
                write!(
                    f,
                    "neither it nor {others} has an endpoint, so that they cannot reach each \
                     other; one of each two needs an endpoint"
                )
            }

            Self::Unresolved(name) => write!(
                f,
                "no address of \"{name}\" is known yet; it is asked for again until there is one"
            ),
            Self::ResolvedTo {
                name,
                address,
                unusable,
            } => write!(
                f,
                "\"{name}\" is at {address}, which {unusable} and is left out; let the name lead \
                 to an address that other nodes can reach"
            ),
            Self::NoPrivateKey => f.write_str(
                "this node has no private key, and neither sends nor answers; \
                 `warren init` makes one",
            ),
            Self::WrongPrivateKey {
                key,
                owner: Some(owner),
            } => write!(
                f,
                "the private key on this node is that of node \"{owner}\", \"{key}\", and is not \
                 used; start with the right name, or make a new key"
            ),
            Self::WrongPrivateKey { key, owner: None } => write!(
                f,
                "the private key on this node belongs to \"{key}\" and is not used; write this \
                 public key, or bring the private key that belongs to the one written"
            ),
            Self::NoPresharedKey(file) => write!(
                f,
                "the preshared key \"{file}\" could not be read, and the pair is fenced; put the \
                 key where both nodes read it"
            ),
            Self::Covers {
                prefix,
                what,
                address,
            } => write!(
                f,
                "\"{prefix}\" covers {address}, {what} of this host, which would be cut off; \
                 narrow the prefix"
            ),
            Self::CoversEndpoint {
                prefix,
                address,
                owner,
            } => write!(
                f,
                "\"{prefix}\" covers {address}, where node \"{owner}\"{at} is reached, and the \
                 tunnel cannot be reached through itself; narrow the prefix"
            ),
            Self::ApiServer { prefix, address } => write!(
                f,
                "\"{prefix}\" covers {address}, where the API is, and this address alone is \
                 reached in the clear; narrow the prefix"
            ),
        }
    }
}

/// Some names in a sentence, and how many more there are.
struct Names<'a> {
    first: &'a [NodeName],
    more: usize,
}

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.first.iter().enumerate() {
            match i {
                0 => {}
                _ if self.more == 0 && i + 1 == self.first.len() => f.write_str(" or ")?,
                _ => f.write_str(", ")?,
            }
            write!(f, "\"{name}\"")?;
        }
        match self.more {
            0 => Ok(()),
            1 => f.write_str(" or 1 other"),
            more => write!(f, " or any of {more} others"),
        }
    }
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}
