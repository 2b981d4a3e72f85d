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
/// `settings` were made, can be used, and what to set where it leaves something open. Only then all nodes are asked for
/// a proposal.
pub fn configured<S>(
    mesh: Option<&MeshSpec>,
    settings: Result<&S, &SettingsError>,
    proposal: impl FnOnce() -> Proposal,
) -> Stated {
    let stated = |holds, reason: &str, message: String| Stated {
        holds,
        reason: reason.to_owned(),
        message,
    };
    if let Err(error) = settings {
        return stated(Holds::False, "Unusable", error.to_string());
    }
    let can_be_used = || {
        stated(
            Holds::True,
            "Configured",
            "the Mesh can be used on this node".to_owned(),
        )
    };
    let lacks_prefixes =
        |mesh: &MeshSpec, mode| mode == Mode::Route && mesh.pod_prefixes.is_empty();
    if let Some(mesh) = mesh
        && let Some(mode) = mesh.mode
        && !lacks_prefixes(mesh, mode)
    {
        return can_be_used();
    }
    let proposal = proposal();
    let Some(mesh) = mesh else {
        let message = format!("there is no Mesh called default; make one with {proposal}");
        return stated(Holds::False, "NoMesh", message);
    };
    if lacks_prefixes(mesh, mesh.mode.unwrap_or(proposal.mode)) {
        let message = format!(
            "spec.podPrefixes of the Mesh is empty, so that nothing is ever strict; set {proposal}, or \
             the wider prefixes from which the cluster gives addresses to pods"
        );
        return stated(Holds::False, "NoPodPrefixes", message);
    }
    match mesh.mode {
        Some(_) => can_be_used(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn nodes_with_prefixes_side_by_side_propose_the_one_around_them_of_each_family() {
        let nodes = nodes(&[
            (&["10.244.0.0/24", "fd00:10:244::/64"], "192.0.2.1"),
            (&["10.244.1.0/24", "fd00:10:244:1::/64"], "192.0.2.2"),
            (&["10.244.5.0/24", "fd00:10:244:5::/64"], "2001:db8::1"),
        ]);
        let proposal = Proposal::of(&nodes, false);
        assert_eq!(texts(&proposal), ["10.244.0.0/21", "fd00:10:244::/61"]);
        assert_eq!(proposal.mode, Mode::Route);
    }

    #[test]
    fn no_proposal_covers_the_address_of_a_node() {
        let nodes = nodes(&[
            (&["10.0.1.0/24"], "10.0.128.1"),
            (&["10.0.2.0/24"], "10.0.128.2"),
            (&["10.0.192.0/24"], "10.0.128.3"),
        ]);
        // 10.0.0.0/16 has the nodes in it, and so has its upper half.
        assert_eq!(
            texts(&Proposal::of(&nodes, false)),
            ["10.0.0.0/22", "10.0.192.0/24"]
        );
    }

    #[test]
    fn prefixes_far_apart_do_not_propose_the_whole_internet() {
        let nodes = nodes(&[
            (&["10.0.0.0/24"], "192.0.2.1"),
            (&["192.168.0.0/24"], "192.0.2.2"),
        ]);
        assert_eq!(
            texts(&Proposal::of(&nodes, false)),
            ["10.0.0.0/24", "192.168.0.0/24"]
        );
    }

    #[test]
    fn a_cluster_that_gives_its_nodes_no_prefixes_is_proposed_the_overlay() {
        let none = Proposal::of(&nodes(&[(&[], "192.0.2.1")]), false);
        assert_eq!(none.mode, Mode::Overlay);
        assert_eq!(none.to_string(), "mode: Overlay");
        let one = Proposal::of(&nodes(&[(&["10.0.0.0/24"], "192.0.2.1")]), true);
        assert_eq!(one.mode, Mode::Overlay);
    }

    #[test]
    fn the_condition_says_what_to_set_and_why() {
        let proposal = Proposal::of(&nodes(&[(&["10.244.0.0/24"], "192.0.2.1")]), false);
        let of = |mesh: Option<&MeshSpec>| {
            let settings = mesh.map(|mesh| Settings::of(mesh, 1420, proposal.mode));
            let settings =
                settings.unwrap_or_else(|| Settings::of(&MeshSpec::default(), 1420, Mode::Route));
            configured(mesh, settings.as_ref(), || proposal.clone())
        };
        let mut mesh = MeshSpec::default();
        let stated = of(None);
        assert_eq!(
            (stated.holds, stated.reason.as_str()),
            (Holds::False, "NoMesh")
        );
        let stated = of(Some(&mesh));
        assert_eq!(
            (stated.holds, stated.reason.as_str()),
            (Holds::False, "NoPodPrefixes")
        );
        assert!(
            stated.message.contains("podPrefixes: [10.244.0.0/24]"),
            "{}",
            stated.message
        );
        mesh.pod_prefixes = vec!["10.244.0.0/16".to_owned()];
        assert_eq!(of(Some(&mesh)).reason, "ModeDetected");
        mesh.mode = Some(Mode::Route);
        assert_eq!(of(Some(&mesh)).holds, Holds::True);
        mesh.pod_prefixes = vec!["10.244.0.0".to_owned()];
        let stated = of(Some(&mesh));
        assert_eq!(
            (stated.holds, stated.reason.as_str()),
            (Holds::False, "Unusable")
        );
        assert!(
            stated.message.contains("spec.podPrefixes"),
            "{}",
            stated.message
        );
    }

    fn nodes(nodes: &[(&[&str], &str)]) -> BTreeMap<String, NodeFacts> {
        let facts = nodes
            .iter()
            .enumerate()
            .map(|(number, (prefixes, address))| {
                let prefixes = prefixes.iter().map(|text| text.parse().expect("a prefix"));
                let facts = NodeFacts {
                    pod_cidrs: prefixes.collect(),
                    addresses: vec![address.parse().expect("an address")],
                    ..NodeFacts::default()
                };
                (format!("n{number}"), facts)
            });
        facts.collect()
    }

    fn texts(proposal: &Proposal) -> Vec<String> {
        proposal
            .pod_prefixes
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}
