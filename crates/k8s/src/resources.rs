//! The two resources. Their documentation is what `kubectl explain` shows.

use std::fmt;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// The group of both resources.
pub const GROUP: &str = "mesh.warren.dev";

/// The one version in which they are served.
pub const VERSION: &str = "v1alpha1";

/// The name of the one [`Mesh`] of a cluster.
pub const MESH: &str = "default";

/// What all nodes of the mesh have in common. Written by the operator; read by every daemon. What
/// is not set has a default that works, but for `podPrefixes`: Kubernetes does not publish them.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "mesh.warren.dev",
    version = "v1alpha1",
    kind = "Mesh",
    plural = "meshes",
    shortname = "mesh",
    category = "warren",
    doc = "The mesh of a cluster: what all its nodes have in common. There is one, called default.",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name == 'default'")
        .message("a cluster has one mesh, and it is called default"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Enforcement", type_ = "string", json_path = ".spec.enforcement"),
    printcolumn(name = "Pod-Prefixes", type_ = "string", json_path = ".spec.podPrefixes"),
    printcolumn(name = "Port", type_ = "integer", json_path = ".spec.port"),
    printcolumn(name = "Interface", type_ = "string", json_path = ".spec.interface", priority = "1"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".spec.mtu", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.enforcement != 'Strict' || size(self.podPrefixes) > 0 || (has(self.mode) && self.mode == 'Overlay')")
    .message("Strict needs podPrefixes, but for mode Overlay: without them nothing says what must not travel in the clear")
    .field_path(".podPrefixes"))]
#[x_kube(validation = Rule::new("!(self.port in self.overlayPorts)")
    .message("the mesh's own port cannot be that of the CNI's tunnel")
    .field_path(".overlayPorts"))]
pub struct MeshSpec {
    /// The UDP port on which every node listens, the same on all.
    #[serde(default = "default::port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,

    /// Name of the TUN interface on every node.
    #[serde(default = "default::interface")]
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = "^[A-Za-z][A-Za-z0-9_.-]*$")
    )]
    pub interface: String,

    /// Mark of the tunnel's own packets, which must not be steered into the tunnel again. A bit that
    /// neither the CNI nor kube-proxy (0x4000, 0x8000) uses.
    #[serde(default = "default::fwmark")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub fwmark: u32,

    /// The routing table that is the mesh's own. Calico counts 1 to 250 as its own, Cilium uses 2004
    /// and 2005.
    #[serde(default = "default::table")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    #[x_kube(validation = Rule::new("!(self in [253, 254, 255])")
        .message("253, 254 and 255 are the system's tables default, main and local"))]
    pub table: u32,

    /// Preferences of the routing rules.
    #[serde(default)]
    pub rule_priorities: RulePriorities,

    /// MTU of the tunnel in bytes. Computed from the links of each node where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65475))]
    pub mtu: Option<u32>,

    /// Seconds between keepalives towards peers that have an endpoint; 0 is off. Nodes behind NAT
    /// need it.
    #[serde(default)]
    #[schemars(range(max = 65535))]
    pub keepalive_seconds: u16,

    /// How pod traffic gets into the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,

    /// UDP ports of the tunnels that the CNI makes between nodes, which mode Overlay encrypts: 4789 is
    /// VXLAN of Calico, 8472 of flannel and Cilium, 6081 is Geneve.
    #[serde(default = "default::overlay_ports")]
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 65535)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub overlay_ports: Vec<u16>,

    /// All prefixes from which the cluster gives addresses to pods, of both families: what lies in
    /// them travels between nodes encrypted or, once it is enforced, not at all. While there are
    /// none, a condition of each MeshNode proposes what it sees.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(max = 43)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.all(p, isCIDR(p) && string(cidr(p).masked()) == p)")
        .message("each is a prefix without host bits, as 10.244.0.0/16 or fd00:10:244::/56"))]
    #[x_kube(validation = Rule::new("self.all(p, !isCIDR(p) || cidr(p).prefixLength() > 0)")
        .message("a prefix of length zero would take all traffic, the API server's too"))]
    #[x_kube(validation = Rule::new("self.all(p, self.all(q, p == q || !isCIDR(p) || !isCIDR(q) || !cidr(p).containsCIDR(q)))")
        .message("prefixes must not overlap"))]
    pub pod_prefixes: Vec<String>,

    /// What happens to pod traffic that cannot be encrypted.
    #[serde(default)]
    pub enforcement: Enforcement,

    /// Nodes that stay outside the mesh: traffic from and to them is not encrypted.
    #[serde(default)]
    pub exceptions: Exceptions,

    /// Where endpoints may lie that are not addresses of the Node object, such as those of a NAT. A
    /// record that names any other is not followed: it would aim all nodes at a third party.
    #[serde(default, rename = "allowedEndpointCIDRs")]
    #[schemars(length(max = 32), inner(length(max = 43)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.all(p, isCIDR(p) && string(cidr(p).masked()) == p)")
        .message("each is a prefix without host bits, as 192.0.2.0/24 or 2001:db8::/64"))]
    pub allowed_endpoint_cidrs: Vec<String>,
}

/// Preferences of the routing rules. Only those of the mode that is in force are used: the one
/// named, the two before it and the one after it.
#[derive(KubeSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulePriorities {
    /// Of the rule that looks up pod prefixes. Calico's own stands at 99.
    #[serde(default = "default::route_priority")]
    #[schemars(range(min = 3, max = 32764))]
    pub route: u32,

    /// Of the rule that looks up where the CNI's tunnel goes.
    #[serde(default = "default::overlay_priority")]
    #[schemars(range(min = 3, max = 32764))]
    pub overlay: u32,
}

/// How pod traffic gets into the tunnel: `Route` where the prefixes of pods are routed between
/// nodes, `Overlay` where the CNI wraps pod traffic in a tunnel of its own, which is then encrypted.
/// Detected and proposed where the Mesh does not set it.
#[derive(
    JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Mode {
    /// The prefixes of pods are routed between nodes: kindnet, kubenet, flannel host-gw, kube-router,
    /// Calico without encapsulation, routes of a cloud.
    Route,
    /// The CNI wraps pod traffic in VXLAN or Geneve between nodes, and that is what is encrypted.
    Overlay,
}

/// What happens to pod traffic that cannot be encrypted: `Staged` lets it pass until its destination
/// has once been reached through the tunnel, and never again; `Strict` drops it; `Permissive` lets it
/// pass; `Removed` has every daemon take away what it made.
#[derive(
    JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Enforcement {
    /// It travels in the clear until its destination has once been reached through the tunnel, and
    /// never again after that. The cluster turns strict by itself once all have reached all.
    #[default]
    Staged,
    /// It is dropped.
    Strict,
    /// It travels in the clear.
    Permissive,
    /// Every daemon takes its interface, routes and rules away, and says so.
    Removed,
}

/// Nodes that stay outside the mesh. Named, or marked by a label that a node cannot give itself.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exceptions {
    /// Names of nodes.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub nodes: Vec<String>,

    /// Keys of labels, whatever their value. They begin with node-restriction.kubernetes.io/, which
    /// NodeRestriction keeps from kubelets.
    #[serde(default)]
    #[schemars(
        length(max = 16),
        inner(
            length(max = 94),
            regex(
                pattern = r"^node-restriction\.kubernetes\.io/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
            )
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub labels: Vec<String>,
}

/// What the daemon of a node says of itself. Only that daemon may write it.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "mesh.warren.dev",
    version = "v1alpha1",
    kind = "MeshNode",
    plural = "meshnodes",
    shortname = "mn",
    category = "warren",
    doc = "What the daemon of the node of this name publishes. It belongs to that Node and goes with it.",
    status = "MeshNodeStatus",
    derive = "PartialEq",
    printcolumn(name = "Key", type_ = "string", json_path = ".spec.publicKey"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.endpoints[0]"),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.peersReady",
        description = "Peers that are ready"
    ),
    printcolumn(
        name = "Expected",
        type_ = "integer",
        json_path = ".status.peersExpected",
        description = "Peers that there should be"
    ),
    printcolumn(
        name = "Enforcement",
        type_ = "string",
        json_path = ".status.enforcement"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Port",
        type_ = "integer",
        json_path = ".spec.port",
        priority = "1"
    ),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        priority = "1"
    ),
    printcolumn(
        name = "MTU",
        type_ = "integer",
        json_path = ".spec.mtu",
        priority = "1"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".spec.version",
        priority = "1"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeshNodeSpec {
    /// The uid of the Node object of this name. A record of another uid is that of a node that is
    /// gone.
    #[serde(rename = "nodeUID")]
    #[schemars(length(min = 1, max = 64))]
    pub node_uid: String,

    /// The node's WireGuard key: X25519, in base64.
    #[schemars(
        regex(pattern = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"),
        length(max = 44)
    )]
    #[x_kube(validation = Rule::new("self != 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='")
        .message("a key of zeros is no key"))]
    pub public_key: String,

    /// Addresses at which the node may be reached, in the order in which to try. Only addresses of
    /// its Node object and those within the mesh's `allowedEndpointCIDRs` are followed; where there
    /// is none, the addresses of the Node object are tried.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(max = 45)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("each is an IP address"))]
    pub endpoints: Vec<String>,

    /// The UDP port on which the node listens.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,

    /// How this node's pod traffic gets into the tunnel. Nodes of different modes do not talk.
    pub mode: Mode,

    /// MTU of the node's tunnel in bytes.
    #[schemars(range(min = 576, max = 65475))]
    pub mtu: u32,

    /// Grows with each start of the daemon: sessions with an older one have ended.
    #[schemars(range(min = 0))]
    pub epoch: i64,

    /// The daemon's version.
    #[schemars(length(max = 64))]
    pub version: String,
}

/// What the daemon of a node sees. Changes when something changes, not with traffic.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshNodeStatus {
    /// The uid of the Node that this is said of. A status may be older than its spec.
    #[serde(default, rename = "nodeUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub node_uid: Option<String>,

    /// Peers that there should be: nodes with a daemon, this one and the exceptions apart.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub peers_expected: u32,

    /// Peers that have shaken hands under this key and epoch, and let no initiation go unanswered for
    /// 90 seconds since.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub peers_ready: u32,

    /// Names of expected peers on Ready nodes to which no tunnel has led yet, the first few by name.
    /// The cluster turns strict when no Ready node has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), inner(length(max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub unreached: Option<Vec<String>>,

    /// What is enforced on this node now. `Staged` becomes `Strict` when the cluster turns strict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,

    /// This node has turned strict, and stays so: a node that sees any such record starts strict.
    #[serde(default)]
    pub latched: bool,

    /// What was once reached through the tunnel while the mesh is staged, and is never sent to in the clear again:
    /// prefixes of pods, or addresses of nodes in the mode Overlay, joined where they make up one prefix. A node
    /// that has lost its disk takes them from here. Where they are more than 256 the largest of each family are here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 43)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub latched_prefixes: Vec<String>,

    /// What people should know. Types: Ready, Configured, Synced, IdentityEnforced, ClaimsAccepted.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// The reason of a condition [`ConditionType::Ready`] that is `False` since this node itself is not as it should
/// be, whoever it has reached.
pub const NODE_UNREADY: &str = "NodeUnready";

/// The types of [`MeshNodeStatus::conditions`]. Each is `True` when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The tunnel is up and every expected peer is ready.
    Ready,
    /// The mesh's configuration can be used on this node. Where it lacks `podPrefixes` or `mode`, the
    /// message proposes a value.
    Configured,
    /// What the API says is complete and of this cluster. Otherwise the node keeps what it has.
    Synced,
    /// The API server refuses this node's daemon the records of other nodes.
    IdentityEnforced,
    /// No other node claims this one's key or prefixes.
    ClaimsAccepted,
}

impl ConditionType {
    /// Every type, in the order in which people should read them.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Configured,
        Self::Synced,
        Self::IdentityEnforced,
        Self::ClaimsAccepted,
    ];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "Ready",
            Self::Configured => "Configured",
            Self::Synced => "Synced",
            Self::IdentityEnforced => "IdentityEnforced",
            Self::ClaimsAccepted => "ClaimsAccepted",
        })
    }
}

impl Default for MeshSpec {
    fn default() -> Self {
        Self {
            port: default::port(),
            interface: default::interface(),
            fwmark: default::fwmark(),
            table: default::table(),
            rule_priorities: RulePriorities::default(),
            mtu: None,
            keepalive_seconds: 0,
            mode: None,
            overlay_ports: default::overlay_ports(),
            pod_prefixes: Vec::new(),
            enforcement: Enforcement::default(),
            exceptions: Exceptions::default(),
            allowed_endpoint_cidrs: Vec::new(),
        }
    }
}

impl Default for RulePriorities {
    fn default() -> Self {
        Self {
            route: default::route_priority(),
            overlay: default::overlay_priority(),
        }
    }
}

/// The values of a mesh file that are the same under Kubernetes.
mod default {
    use warren_mesh::Mesh;

    pub(super) fn port() -> u16 {
        Mesh::default().port
    }

    pub(super) fn interface() -> String {
        Mesh::default().interface
    }

    pub(super) fn fwmark() -> u32 {
        Mesh::default().fwmark
    }

    pub(super) fn table() -> u32 {
        Mesh::default().table
    }

    pub(super) fn route_priority() -> u32 {
        Mesh::default().rule_priority
    }

    pub(super) fn overlay_ports() -> Vec<u16> {
        vec![4789, 6081, 8472]
    }

    /// Before the rule of the other mode, so that a mesh that changes its mode has both for a moment.
    pub(super) fn overlay_priority() -> u32 {
        94
    }
}
