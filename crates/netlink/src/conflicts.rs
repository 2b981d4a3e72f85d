//! What a configuration must not ask of this host.
//!
//! A mesh prefix that covers what the tunnel itself needs would carry the ciphertext into the
//! tunnel, or cut the host off. Each conflict is named; what follows is the caller's choice.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use ipnet::IpNet;
use warren_config::{Fence, HostConfig, Steering, is_within};

use crate::observe::Surroundings;

/// Tables that are the kernel's own: unspecified, default, main, local.
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];
/// The kernel's own rules are at 0, 32766 and 32767; four preferences are needed.
const PREFERENCES: std::ops::RangeInclusive<u32> = 3..=32_764;
/// What an IPv4 host must be able to receive, and an IPv6 link must carry (RFC 8200, section 5).
const SMALLEST_MTU_V4: u32 = 576;
const SMALLEST_MTU_V6: u32 = 1280;
const LARGEST_MTU: u32 = 65_535;

/// One thing that a configuration asks and that must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Conflict {
    /// A prefix of length zero would be everything.
    #[error("{0} is everything: a mesh prefix names what is inside the mesh")]
    Everything(IpNet),
    /// A prefix covers addresses with a meaning of their own.
    #[error("{prefix} covers {reserved}, which is {meaning}")]
    Reserved {
        /// Whose prefix.
        prefix: IpNet,
        /// What it covers.
        reserved: IpNet,
        /// What that is.
        meaning: &'static str,
    },
    /// A prefix covers an address that this host has outside the tunnel.
    #[error("{prefix} covers {address}, this host's address on {interface}")]
    Underlay {
        /// Which prefix.
        prefix: IpNet,
        /// The address.
        address: IpAddr,
        /// Whose address it is.
        interface: String,
    },
    /// A prefix covers the default gateway.
    #[error("{prefix} covers the default gateway {gateway}")]
    Gateway {
        /// Which prefix.
        prefix: IpNet,
        /// The gateway.
        gateway: IpAddr,
    },
    /// A prefix covers a resolver, whose answers the endpoints' names need.
    #[error("{prefix} covers the resolver {resolver}")]
    Resolver {
        /// Which prefix.
        prefix: IpNet,
        /// The resolver.
        resolver: IpAddr,
    },
    /// A prefix covers the endpoint of a peer.
    #[error("{prefix} covers the endpoint {endpoint}")]
    Endpoint {
        /// Which prefix.
        prefix: IpNet,
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// A route into the tunnel has no fence around it.
    #[error("{0} leads into the tunnel and is in no mesh prefix: nothing would fence it")]
    Unfenced(IpNet),
    /// The routing table is the kernel's.
    #[error("routing table {0} is the system's")]
    Table(u32),
    /// There is no room for the rules at this preference.
    #[error("rule preference {0}: it must be from 3 to 32764")]
    Preference(u32),
    /// Mark 0 is every packet's, so no packet would go into the tunnel.
    #[error("fwmark 0 is the mark of every packet: nothing would be routed into the tunnel")]
    NoMark,
    /// There is nothing to tell an overlay's packets by.
    #[error("there is no port of an overlay: nothing would be routed into the tunnel")]
    NoPort,
    /// The kernel has no such names.
    #[error("{0:?} is not the name of an interface")]
    Interface(String),
    /// The MTU does not carry the families of the addresses.
    #[error("MTU {mtu}: it must be from {least} to 65535 here")]
    Mtu {
        /// What was asked for.
        mtu: u32,
        /// The least that works.
        least: u32,
    },
}

/// Everything that is wrong with a configuration by itself.
pub fn faults(config: &HostConfig) -> Vec<Conflict> {
    let mut found = identity_faults(config);
    let fence = &config.fence;
    // Of an overlay everything is fenced, wherever it goes.
    let is_overlay = config.steering != Steering::Prefixes;
    let mesh = fence.mesh.iter().filter(|_| !is_overlay);
    for prefix in mesh
        .chain(&fence.local)
        .chain(&fence.open)
        .chain(&config.routes)
    {
        if prefix.prefix_len() == 0 {
            found.push(Conflict::Everything(*prefix));
        } else {
            found.extend(reserved(prefix));
        }
    }
    found.extend(unfenced(&config.routes, fence));
    let has_v6 = config.addresses.iter().any(IpAddr::is_ipv6);
    let least = if has_v6 {
        SMALLEST_MTU_V6
    } else {
        SMALLEST_MTU_V4
    };
    if !(least..=LARGEST_MTU).contains(&config.mtu) {
        let mtu = config.mtu;
        found.push(Conflict::Mtu { mtu, least });
    }
    found.sort();
    found.dedup();
    found
}

/// What is wrong with routes that are added to a configuration without faults.
pub(crate) fn faults_of_routes(routes: &BTreeSet<IpNet>, fence: &Fence) -> Vec<Conflict> {
    let everything = (routes.iter())
        .filter(|route| route.prefix_len() == 0)
        .map(|route| Conflict::Everything(*route));
    let special = routes.iter().flat_map(reserved);
    everything
        .chain(special)
        .chain(unfenced(routes, fence))
        .collect()
}

/// Routes beside the fence. A permissive mesh fences nothing.
fn unfenced<'a>(
    routes: &'a BTreeSet<IpNet>,
    fence: &'a Fence,
) -> impl Iterator<Item = Conflict> + 'a {
    let is_fenced = fence.inward || !fence.mesh.is_empty();
    let unfenced = move |route: &&IpNet| is_fenced && !is_within(&fence.mesh, route);
    routes
        .iter()
        .filter(unfenced)
        .copied()
        .map(Conflict::Unfenced)
}

/// What would make even the fence wrong.
pub(crate) fn identity_faults(config: &HostConfig) -> Vec<Conflict> {
    let mut found = Vec::new();
    if RESERVED_TABLES.contains(&config.table) {
        found.push(Conflict::Table(config.table));
    }
    if !PREFERENCES.contains(&config.rule_priority) {
        found.push(Conflict::Preference(config.rule_priority));
    }
    if config.fwmark == 0 {
        found.push(Conflict::NoMark);
    }
    if matches!(&config.steering, Steering::Overlay { ports } if ports.is_empty()) {
        found.push(Conflict::NoPort);
    }
    let name = &config.interface;
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte <= b' ' || byte >= 0x7f;
    if !(1..=15).contains(&name.len()) || name.bytes().any(bad) || [".", ".."].contains(&&**name) {
        found.push(Conflict::Interface(name.clone()));
    }
    found
}

/// Everything that is wrong with a configuration on this host, with these endpoints of peers.
///
/// Own prefixes may cover what is this host's: they are not routed into its tunnel.
pub fn conflicts(
    surroundings: &Surroundings,
    config: &HostConfig,
    endpoints: impl IntoIterator<Item = SocketAddr>,
) -> Vec<Conflict> {
    let mut found = faults(config);
    let fence = &config.fence;
    if config.steering != Steering::Prefixes {
        return found;
    }
    let mesh = |address: IpAddr| {
        let covering = fence.mesh.iter().chain(&config.routes);
        covering.copied().find(|prefix| prefix.contains(&address))
    };
    let foreign = |address: IpAddr| {
        let own = fence.local.iter().any(|prefix| prefix.contains(&address));
        mesh(address).filter(|_| !own)
    };
    for (address, interface) in &surroundings.addresses {
        found.extend(foreign(*address).map(|prefix| Conflict::Underlay {
            prefix,
            address: *address,
            interface: interface.clone(),
        }));
    }
    for gateway in surroundings.gateways.iter().copied() {
        found.extend(foreign(gateway).map(|prefix| Conflict::Gateway { prefix, gateway }));
    }
    for resolver in surroundings.resolvers.iter().copied() {
        found.extend(foreign(resolver).map(|prefix| Conflict::Resolver { prefix, resolver }));
    }
    for endpoint in endpoints {
        found.extend(mesh(endpoint.ip()).map(|prefix| Conflict::Endpoint { prefix, endpoint }));
    }
    found.sort();
    found.dedup();
    found
}

/// Prefixes that no mesh may have, whole or in part.
static RESERVED: LazyLock<[(IpNet, &str); 8]> = LazyLock::new(|| {
    [
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "the loopback"),
        (
            "169.254.0.0/16",
            "link-local, where clouds keep their metadata",
        ),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "the broadcast address"),
        ("::/127", "the loopback"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    ]
    .map(|(net, meaning)| (net.parse().expect("a prefix"), meaning))
});

fn reserved(prefix: &IpNet) -> Option<Conflict> {
    let overlaps = |reserved: &IpNet| prefix.contains(reserved) || reserved.contains(prefix);
    let (reserved, meaning) = RESERVED.iter().find(|(reserved, _)| overlaps(reserved))?;
    Some(Conflict::Reserved {
        prefix: *prefix,
        reserved: *reserved,
        meaning,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::tests::{config, ip, net};

    fn surroundings() -> Surroundings {
        Surroundings {
            addresses: BTreeMap::from([
                (ip("192.0.2.1"), "eth0".to_owned()),
                (ip("10.1.1.254"), "lan0".to_owned()),
            ]),
            gateways: BTreeSet::from([ip("192.0.2.254")]),
            resolvers: BTreeSet::from([ip("192.0.2.53")]),
            ..Surroundings::default()
        }
    }

    fn endpoint(address: &str) -> SocketAddr {
        address.parse().expect("an address with a port")
    }

    #[test]
    fn a_sound_configuration_has_no_conflicts() {
        let found = conflicts(&surroundings(), &config(), [endpoint("198.51.100.2:51820")]);
        assert_eq!(found, []);
    }

    #[test]
    fn a_prefix_of_zero_length_is_refused() {
        for everything in ["0.0.0.0/0", "::/0"] {
            let mut config = config();
            config.fence.mesh.insert(net(everything));
            let found = conflicts(&surroundings(), &config, []);
            assert!(
                found.contains(&Conflict::Everything(net(everything))),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_prefix_that_covers_the_underlay_the_gateway_the_resolver_or_an_endpoint_is_refused() {
        let mut config = config();
        let prefix = net("192.0.2.0/24");
        config.fence.mesh.insert(prefix);

        let found = conflicts(&surroundings(), &config, [endpoint("192.0.2.9:51820")]);

        let interface = "eth0".to_owned();
        let address = ip("192.0.2.1");
        let expected = [
            Conflict::Underlay {
                prefix,
                address,
                interface,
            },
            Conflict::Gateway {
                prefix,
                gateway: ip("192.0.2.254"),
            },
            Conflict::Resolver {
                prefix,
                resolver: ip("192.0.2.53"),
            },
            Conflict::Endpoint {
                prefix,
                endpoint: endpoint("192.0.2.9:51820"),
            },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_behind_this_node_may_be_on_its_own_interfaces_but_not_be_an_endpoint() {
        let found = conflicts(&surroundings(), &config(), [endpoint("10.1.1.7:51820")]);
        assert!(
            matches!(found[..], [Conflict::Endpoint { .. }]),
            "{found:?}"
        );
    }

    #[test]
    fn metadata_addresses_multicast_and_loopback_are_no_mesh_prefixes() {
        for prefix in [
            "169.254.169.254/32",
            "224.0.0.0/3",
            "::1/128",
            "fe80::/64",
            "127.0.0.0/8",
        ] {
            let mut config = config();
            config.fence.mesh.insert(net(prefix));
            let found = faults(&config);
            assert!(
                matches!(found[..], [Conflict::Reserved { .. }]),
                "{prefix}: {found:?}"
            );
        }
    }

    #[test]
    fn a_route_into_the_tunnel_outside_the_fence_is_refused() {
        let mut config = config();
        config.routes.insert(net("203.0.113.0/24"));
        assert_eq!(faults(&config), [Conflict::Unfenced(net("203.0.113.0/24"))]);
    }

    #[test]
    fn a_mesh_that_fences_nothing_may_have_routes() {
        let mut config = config();
        config.fence.mesh.clear();
        config.fence.inward = false;
        assert_eq!(faults(&config), []);
        config.fence.inward = true;
        assert_eq!(faults(&config).len(), config.routes.len());
    }

    #[test]
    fn an_exception_is_not_everything() {
        let mut config = config();
        config.fence.open.insert(net("0.0.0.0/0"));
        assert_eq!(faults(&config), [Conflict::Everything(net("0.0.0.0/0"))]);
    }

    #[test]
    fn an_overlay_is_fenced_wherever_it_goes_and_needs_a_port() {
        let mut config = config();
        let ports = [8472].into();
        config.steering = Steering::Overlay { ports };
        config.fence.mesh = ["0.0.0.0/0", "::/0"].map(net).into();
        config.routes = [net("192.0.2.9/32")].into();
        let found = conflicts(&surroundings(), &config, [endpoint("192.0.2.9:51820")]);
        assert_eq!(found, []);
        let ports = [].into();
        config.steering = Steering::Overlay { ports };
        assert_eq!(faults(&config), [Conflict::NoPort]);
    }

    #[test]
    fn tables_preferences_marks_and_names_that_cannot_work_are_refused() {
        let faults = |change: fn(&mut HostConfig)| {
            let mut config = config();
            change(&mut config);
            faults(&config)
        };
        assert_eq!(faults(|config| config.table = 254), [Conflict::Table(254)]);
        assert_eq!(
            faults(|config| config.rule_priority = 1),
            [Conflict::Preference(1)]
        );
        assert_eq!(faults(|config| config.rule_priority = u32::MAX).len(), 1);
        assert_eq!(faults(|config| config.fwmark = 0), [Conflict::NoMark]);
        assert_eq!(faults(|config| config.mtu = 1000).len(), 1);
        for name in ["", "a/b", "sixteen-letters-", "a b", ".."] {
            let mut config = config();
            name.clone_into(&mut config.interface);
            let found = identity_faults(&config);
            assert_eq!(found, [Conflict::Interface(name.to_owned())]);
        }
    }
}
