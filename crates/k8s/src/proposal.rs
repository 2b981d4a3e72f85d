//! What the operator could set, as far as the nodes show it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::facts::NodeFacts;
use crate::publisher::{Holds, Stated};
use crate::resources::{MeshSpec, Mode};
use crate::settings::SettingsError;

/// Prefixes of a family that a proposal may have: what a `Mesh` takes in all is twice that.
const PREFIXES: usize = 8;

/// A proposal for what a `Mesh` leaves open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Prefixes that cover those of all nodes, and no node's address.
    pub pod_prefixes: Vec<IpNet>,
    /// How pod traffic gets into the tunnel.
    pub mode: Mode,
}

impl Proposal {
    /// What the nodes show. `overlay` tells that this host has the interface of an overlay (VXLAN,
    /// Geneve) by which its pods are reached.
    ///
    /// The prefixes of a family become the longest one that covers them all, or several where that
    /// one would cover a node's own address. The cluster may give its pods more than they show: nodes to
    /// come get prefixes beside those that there are.
    pub fn of(nodes: &BTreeMap<String, NodeFacts>, overlay: bool) -> Self {
        let addresses: Vec<IpAddr> = nodes
            .values()
            .flat_map(|node| node.addresses.clone())
            .collect();
        let all = || nodes.values().flat_map(|node| &node.pod_cidrs);
        let v4: Vec<IpNet> = all()
            .filter(|prefix| prefix.addr().is_ipv4())
            .copied()
            .collect();
        let v6: Vec<IpNet> = all()
            .filter(|prefix| prefix.addr().is_ipv6())
            .copied()
            .collect();
        let mut pod_prefixes = cover(&v4, &addresses);
        pod_prefixes.extend(cover(&v6, &addresses));
        // Without prefixes of its nodes a cluster's CNI gives addresses otherwise, and only what it wraps
        // can be told by where it goes.
        let mode = match overlay || pod_prefixes.is_empty() {
            true => Mode::Overlay,
            false => Mode::Route,
        };
        Self { pod_prefixes, mode }
    }
}

/// The condition [`Configured`](crate::ConditionType::Configured) of a node: whether `mesh`, of which
/// `settings` were made, can be used, and what to set where it leaves something open.
pub fn configured<S>(
    mesh: Option<&MeshSpec>,
    settings: Result<&S, &SettingsError>,
    proposal: &Proposal,
) -> Stated {
    let stated = |holds, reason: &str, message: String| Stated {
        holds,
        reason: reason.to_owned(),
        message,
    };
    if let Err(error) = settings {
        return stated(Holds::False, "Unusable", error.to_string());
    }
    let Some(mesh) = mesh else {
        let message = format!("there is no Mesh called default; make one with {proposal}");
        return stated(Holds::False, "NoMesh", message);
    };
    let needs_prefixes = mesh.mode.unwrap_or(proposal.mode) == Mode::Route;
    if needs_prefixes && mesh.pod_prefixes.is_empty() {
        let message = format!(
            "spec.podPrefixes of the Mesh is empty, so that nothing is ever strict; set {proposal}, or \
             the wider prefixes from which the cluster gives addresses to pods"
        );
        return stated(Holds::False, "NoPodPrefixes", message);
    }
    match mesh.mode {
        Some(_) => stated(
            Holds::True,
            "Configured",
            "the Mesh can be used on this node".to_owned(),
        ),
        None => stated(
            Holds::True,
            "ModeDetected",
            format!(
                "spec.mode of the Mesh is not set, and {:?} is taken",
                proposal.mode
            ),
        ),
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode;
        if self.pod_prefixes.is_empty() {
            return write!(f, "mode: {mode:?}");
        }
        let prefixes: Vec<String> = self.pod_prefixes.iter().map(ToString::to_string).collect();
        write!(
            f,
            "mode: {mode:?} and podPrefixes: [{}]",
            prefixes.join(", ")
        )
    }
}

/// Few prefixes that cover `prefixes`, which are of one family, and none of `addresses`.
fn cover(prefixes: &[IpNet], addresses: &[IpAddr]) -> Vec<IpNet> {
    let Some(all) = common(prefixes) else {
        return Vec::new();
    };
    let is_clear = |prefix: &IpNet| !addresses.iter().any(|address| prefix.contains(address));
    if all.prefix_len() > 0 && is_clear(&all) {
        return vec![all];
    }
    // Its halves, each with what lies in it.
    let is_whole = prefixes.contains(&all);
    if is_whole {
        return Vec::new();
    }
    let halves = all.subnets(all.prefix_len() + 1).into_iter().flatten();
    let covered = halves.flat_map(|half| {
        let within = prefixes.iter().filter(|prefix| half.contains(*prefix));
        cover(&within.copied().collect::<Vec<_>>(), addresses)
    });
    covered.take(PREFIXES).collect()
}

/// The longest prefix that contains all of these, which are of one family.
fn common(prefixes: &[IpNet]) -> Option<IpNet> {
    let mut prefixes = prefixes.iter();
    let first = prefixes.next()?.trunc();
    let covers = prefixes.try_fold(first, |mut covering, prefix| {
        while !covering.contains(prefix) {
            covering = covering.supernet()?;
        }
        Some(covering)
    });
    covers.or(match first {
        IpNet::V4(_) => Some(Ipv4Net::default().into()),
        IpNet::V6(_) => Some(Ipv6Net::default().into()),
    })
}
