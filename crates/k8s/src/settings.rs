//! What the operator sets for all nodes, read once at the door.

use ipnet::IpNet;
use warren_mesh::Mesh;

use crate::resources::{MeshSpec, Mode};

/// What the operator sets for all nodes, in the planner's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What all nodes have in common.
    pub mesh: Mesh,
    /// How pod traffic gets into the tunnel.
    pub mode: Mode,
    /// Seconds between keepalives; `None` leaves it to the planner.
    pub keepalive: Option<u16>,
    /// Where endpoints may lie that are not addresses of the `Node`.
    pub allowed_endpoints: Vec<IpNet>,
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
    /// The mode is one that this program cannot plan.
    #[error("spec.mode of the Mesh is {0:?}, which this version cannot do; set it to Route")]
    Mode(Mode),
}

impl Settings {
    /// Reads a [`MeshSpec`]. `mtu` is the tunnel's, and `mode` the one found on this host, where the
    /// operator says nothing.
    pub fn of(spec: &MeshSpec, mtu: u32, mode: Mode) -> Result<Self, SettingsError> {
        let mode = spec.mode.unwrap_or(mode);
        if mode != Mode::Route {
            return Err(SettingsError::Mode(mode));
        }
        let mesh = Mesh {
            port: spec.port,
            mtu: spec.mtu.unwrap_or(mtu),
            prefixes: prefixes("podPrefixes", &spec.pod_prefixes)?,
            interface: spec.interface.clone(),
            table: spec.table,
            rule_priority: spec.rule_priorities.route,
            fwmark: spec.fwmark,
            ..Mesh::default()
        };
        Ok(Self {
            mesh,
            mode,
            keepalive: (spec.keepalive_seconds > 0).then_some(spec.keepalive_seconds),
            allowed_endpoints: prefixes("allowedEndpointCIDRs", &spec.allowed_endpoint_cidrs)?,
        })
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
