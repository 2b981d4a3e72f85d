//! What the operator sets for all nodes, read once at the door.

use std::collections::BTreeSet;

use ipnet::IpNet;
use warren_mesh::{Mesh, Steering};

use crate::facts::NodeFacts;
use crate::resources::{Enforcement, Exceptions, MeshSpec, Mode};

/// What the operator sets for all nodes, in the planner's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What all nodes have in common. Its enforcement is what the operator says; that a staged mesh has
    /// turned strict is said by [`View::stage`](crate::View::stage).
    pub mesh: Mesh,
    /// How pod traffic gets into the tunnel.
    pub mode: Mode,
    /// Seconds between keepalives; `None` leaves it to the planner.
    pub keepalive: Option<u16>,
    /// Where endpoints may lie that are not addresses of the `Node`.
    pub allowed_endpoints: Vec<IpNet>,
    /// Nodes that stay outside.
    pub excepted: Excepted,
}

/// Nodes that stay outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Excepted {
    /// By name.
    pub nodes: BTreeSet<String>,
    /// By a label that no kubelet can set.
    pub labels: BTreeSet<String>,
}

/// Why a [`MeshSpec`] cannot be used. The last one that could stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A prefix is none. The schema lets none through, but that of an older definition may.
    #[error(
        "spec.{field} of the Mesh has {value:?}, which is no prefix; write it as 10.244.0.0/16"
    )]
    Prefix {
        /// Of which field.
        field: &'static str,
        /// What is there.
        value: String,
    },
    /// Nothing says what must not travel in the clear.
    #[error(
        "spec.enforcement of the Mesh is Strict and spec.podPrefixes is empty; set the prefixes from \
         which the cluster gives addresses to pods"
    )]
    NoPrefixes,
}

impl Settings {
    /// Reads a [`MeshSpec`]. `mtu` is the tunnel's, and `mode` the one found on this host, where the
    /// operator says nothing.
    pub fn of(spec: &MeshSpec, mtu: u32, mode: Mode) -> Result<Self, SettingsError> {
        let mode = spec.mode.unwrap_or(mode);
        let (steering, rule_priority) = match mode {
            Mode::Route => (Steering::Prefixes, spec.rule_priorities.route),
            Mode::Overlay => {
                let ports = spec.overlay_ports.iter().copied().collect();
                (Steering::Overlay { ports }, spec.rule_priorities.overlay)
            }
        };
        let mesh = Mesh {
            port: spec.port,
            mtu: spec.mtu.unwrap_or(mtu),
            prefixes: prefixes("podPrefixes", &spec.pod_prefixes)?,
            interface: spec.interface.clone(),
            table: spec.table,
            rule_priority,
            fwmark: spec.fwmark,
            enforcement: match spec.enforcement {
                Enforcement::Strict => warren_mesh::Enforcement::Strict,
                Enforcement::Staged => warren_mesh::Enforcement::Staged,
                // Of one that is to be gone nothing is planned.
                Enforcement::Permissive | Enforcement::Removed => {
                    warren_mesh::Enforcement::Permissive
                }
            },
            steering,
            // A Service's clients and what kube-proxy forwards have addresses that no peer takes.
            masquerade: true,
            ..Mesh::default()
        };
        let is_routed = mode == Mode::Route;
        if spec.enforcement == Enforcement::Strict && is_routed && mesh.prefixes.is_empty() {
            return Err(SettingsError::NoPrefixes);
        }
        Ok(Self {
            mesh,
            mode,
            keepalive: (spec.keepalive_seconds > 0).then_some(spec.keepalive_seconds),
            allowed_endpoints: prefixes("allowedEndpointCIDRs", &spec.allowed_endpoint_cidrs)?,
            excepted: Excepted::of(&spec.exceptions),
        })
    }

    /// Whether the node of this name is an exception, which stays outside the mesh.
    pub fn excepts(&self, name: &str, facts: &NodeFacts) -> bool {
        self.excepted.covers(name, facts)
    }
}

impl Excepted {
    /// Reads what the operator says of them.
    pub fn of(exceptions: &Exceptions) -> Self {
        Self {
            nodes: exceptions.nodes.iter().cloned().collect(),
            labels: exceptions.labels.iter().cloned().collect(),
        }
    }

    /// Whether the node of this name is one of them.
    pub fn covers(&self, name: &str, facts: &NodeFacts) -> bool {
        self.nodes.contains(name) || !self.labels.is_disjoint(&facts.restricted_labels)
    }
}

fn prefixes(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    let prefix = |text: &String| {
        text.parse().map_err(|_| SettingsError::Prefix {
            field,
            value: text.clone(),
        })
    };
    texts.iter().map(prefix).collect()
}
