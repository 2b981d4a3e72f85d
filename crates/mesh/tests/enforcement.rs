//! What happens to what cannot be encrypted, and what is left out of the mesh.

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::{key, name, private, sentences};
use ipnet::IpNet;
use proptest::prelude::*;
use warren_mesh::{
    Cause, Description, Directory, Enforcement, Mesh, Node, OVERLAY_ADDRESS, Plan, PlanError,
    Resolved, Secrets, Severity, Steering, Underlay, plan,
};

#[test]
fn a_strict_mesh_steers_all_and_fences_its_prefixes_whatever_was_steered() {
    for steered in [&[][..], &["10.244.2.0/24"]] {
        let plan = plan_of(&directory(Enforcement::Strict), steered);
        assert_eq!(plan.host.fence.mesh, nets(&["10.244.0.0/16"]));
        assert!(plan.host.fence.inward);
        assert_eq!(
            plan.host.routes,
            nets(&[
                "10.244.2.0/24",
                "10.244.2.0/32",
                "10.244.3.0/24",
                "10.244.3.0/32"
            ])
        );
    }
}

#[test]
fn a_staged_mesh_closes_outward_what_was_reached_and_nothing_else() {
    let mut directory = directory(Enforcement::Staged);
    let none = plan_of(&directory, &[]);
    assert_eq!(
        (&none.host.routes, &none.host.fence.mesh),
        (&nets(&[]), &nets(&[]))
    );
    assert_eq!(
        none.device.peers.len(),
        2,
        "to have something to shake hands with"
    );

    let one = plan_of(&directory, &["10.244.2.0/24"]);
    assert_eq!(one.host.routes, nets(&["10.244.2.0/24", "10.244.2.0/32"]));
    assert_eq!(one.host.fence.mesh, nets(&["10.244.2.0/24"]));
    assert!(!one.host.fence.inward);

    // Its key goes, and then the node: what was latched stays closed.
    directory
        .nodes
        .get_mut(&name("b"))
        .expect("a node")
        .public_key = None;
    let keyless = plan_of(&directory, &["10.244.2.0/24"]);
    assert_eq!(keyless.host.routes, nets(&[]));
    assert_eq!(keyless.host.fence, one.host.fence);
    directory.nodes.remove(&name("b"));
    assert_eq!(
        plan_of(&directory, &["10.244.2.0/24"]).host.fence,
        one.host.fence
    );
}

#[test]
fn a_staged_mesh_does_not_fence_what_is_this_node_s_own() {
    let plan = plan_of(
        &directory(Enforcement::Staged),
        &["10.244.1.0/24", "10.244.3.0/24"],
    );
    assert_eq!(plan.host.fence.mesh, nets(&["10.244.3.0/24"]));
}

#[test]
fn a_permissive_mesh_steers_what_is_ready_and_fences_nothing() {
    let mut directory = directory(Enforcement::Permissive);
    directory.mesh.prefixes.clear();
    let plan = plan_of(&directory, &["10.244.3.0/24"]);
    assert_eq!(plan.host.routes, nets(&["10.244.3.0/24", "10.244.3.0/32"]));
    assert_eq!(plan.host.fence.mesh, nets(&[]));
    assert!(!plan.host.fence.inward);
    assert_eq!(errors(&plan), "");
}

#[test]
fn only_a_strict_mesh_needs_to_know_its_prefixes() {
    for (enforcement, refused) in [
        (Enforcement::Strict, true),
        (Enforcement::Staged, false),
        (Enforcement::Permissive, false),
    ] {
        let mut directory = directory(enforcement);
        directory.mesh.prefixes.clear();
        let problems = directory.review();
        let found = problems
            .iter()
            .any(|problem| problem.cause == Cause::NoMeshPrefix);
        assert_eq!(found, refused, "{enforcement:?}");
        let plan = plan_around(&directory, &Underlay::default(), &[]);
        assert_eq!(
            matches!(plan, Err(PlanError::Mesh(_))),
            refused,
            "{enforcement:?}"
        );
    }
}

#[test]
fn an_exception_is_no_peer_lacks_no_key_and_is_reached_in_the_clear() {
    let mut directory = directory(Enforcement::Strict);
    let c = directory.nodes.get_mut(&name("c")).expect("a node");
    c.outside = true;
    c.public_key = None;
    let strict = plan_of(&directory, &[]);
    assert_eq!(
        strict.host.fence.open,
        nets(&["10.244.3.0/24", "10.244.3.0/32"])
    );
    assert_eq!(strict.host.fence.mesh, nets(&["10.244.0.0/16"]));
    assert_eq!(
        strict.host.routes,
        nets(&["10.244.2.0/24", "10.244.2.0/32"])
    );
    assert!(strict.peers[&name("c")].outside);
    assert_eq!(strict.problems, []);
    let description = Description::of(&strict);
    let lines: Vec<&str> = (description.sections.iter())
        .flat_map(|section| section.lines.iter().map(String::as_str))
        .collect();
    assert!(lines.contains(&"10.244.3.0/24 is reached in the clear, both ways"));
    assert!(lines.contains(&"an exception: it is no peer"));

    // That it has a key changes nothing.
    directory
        .nodes
        .get_mut(&name("c"))
        .expect("a node")
        .public_key = Some(key(3));
    assert_eq!(plan_of(&directory, &[]), strict);

    // Whoever excepts a node takes back what was latched of it, and no more than that.
    directory.mesh.enforcement = Enforcement::Staged;
    let staged = plan_of(&directory, &["10.244.2.0/24", "10.244.3.0/24"]);
    assert_eq!(staged.host.fence.open, strict.host.fence.open);
    assert_eq!(
        plan_of(&directory, &["10.244.2.0/24"]).host.fence.open,
        nets(&[])
    );
}

#[test]
fn a_node_that_is_an_exception_itself_steers_and_fences_nothing() {
    let mut directory = directory(Enforcement::Strict);
    directory.nodes.get_mut(&name("a")).expect("a node").outside = true;
    let plan = plan_of(&directory, &["10.244.2.0/24"]);
    assert_eq!(plan.host.routes, nets(&[]));
    assert_eq!(plan.host.fence.mesh, nets(&[]));
    assert!(!plan.host.fence.inward);
    assert!(plan.device.peers.is_empty());
}

// Behaviour 38.
#[test]
fn the_api_server_is_reached_in_the_clear_wherever_in_the_mesh_it_is() {
    let underlay = |address: &str| Underlay {
        api_servers: addresses(&[address]),
        ..Underlay::default()
    };
    for (enforcement, steered, address, opened) in [
        (Enforcement::Strict, None, "10.244.3.9", true),
        // In the mesh, and of no node that is known.
        (Enforcement::Strict, None, "10.244.9.9", true),
        (Enforcement::Strict, None, "192.0.2.9", false),
        // Its own has a way of its own.
        (Enforcement::Strict, None, "10.244.1.9", false),
        (
            Enforcement::Staged,
            Some("10.244.3.0/24"),
            "10.244.3.9",
            true,
        ),
        (Enforcement::Staged, None, "10.244.3.9", false),
        (
            Enforcement::Permissive,
            Some("10.244.3.0/24"),
            "10.244.3.9",
            true,
        ),
        (Enforcement::Permissive, None, "10.244.3.9", false),
    ] {
        let directory = directory(enforcement);
        let steered: Vec<&str> = steered.into_iter().collect();
        let plan = plan_around(&directory, &underlay(address), &steered).expect("a plan");
        let open = match opened {
            true => BTreeSet::from([IpNet::from(ip(address))]),
            false => BTreeSet::new(),
        };
        assert_eq!(
            plan.host.fence.open, open,
            "{enforcement:?} {steered:?} {address}"
        );
        let warned = (plan.problems.iter()).any(|problem| {
            matches!(problem.cause, Cause::ApiServer { .. })
                && problem.severity() == Severity::Warning
        });
        assert_eq!(warned, opened);
    }
}

// Behaviour 43.
#[test]
fn without_prefixes_of_the_mesh_a_node_cannot_claim_what_the_host_needs() {
    let mut directory = directory(Enforcement::Permissive);
    directory.mesh.prefixes.clear();
    let b = directory.nodes.get_mut(&name("b")).expect("a node");
    b.prefixes
        .extend(["192.0.2.128/25", "198.51.100.0/24"].map(net));
    b.addresses.push(ip("203.0.113.53"));
    let underlay = Underlay {
        addresses: addresses(&["192.0.2.1", "10.244.1.1"]),
        gateways: addresses(&["192.0.2.254"]),
        resolvers: addresses(&["203.0.113.53"]),
        api_servers: BTreeSet::new(),
    };
    let plan = plan_around(&directory, &underlay, &["0.0.0.0/0"]).expect("a plan");
    let expected = nets(&["10.244.2.0/24", "10.244.2.0/32", "198.51.100.0/24"]);
    assert_eq!(plan.device.peers[&key(2)].allowed_ips, expected);
    assert_eq!(
        errors(&plan),
        "node \"b\", addresses: \"203.0.113.53/32\" covers 203.0.113.53, a name server of this \
         host, which would be cut off; narrow the prefix\n\
         node \"b\", prefixes: \"192.0.2.128/25\" covers 192.0.2.254, the default gateway of this \
         host, which would be cut off; narrow the prefix"
    );
}

// Behaviour 43.
#[test]
fn without_prefixes_of_the_mesh_an_endpoint_and_what_covers_it_are_not_both_believed() {
    let mut directory = directory(Enforcement::Staged);
    directory.mesh.prefixes.clear();
    let b = directory.nodes.get_mut(&name("b")).expect("a node");
    b.prefixes.push(net("192.0.2.0/29"));
    for (seniority, refused) in [
        (
            2,
            "node \"b\", prefixes: \"192.0.2.0/29\" covers 192.0.2.1, where node \"a\" is reached",
        ),
        (
            0,
            "node \"c\", endpoints: \"192.0.2.3\" is inside the mesh's own prefix \"192.0.2.0/29\"",
        ),
    ] {
        let directory = &mut directory.clone();
        for (node, senior) in [("a", 1), ("c", 1), ("b", seniority)] {
            directory
                .nodes
                .get_mut(&name(node))
                .expect("a node")
                .seniority = senior;
        }
        let found = sentences(&directory.review());
        assert!(found.contains(refused), "{found}");
    }
}

#[test]
fn an_overlay_is_steered_by_its_ports_between_the_nodes_own_addresses() {
    let directory = overlay(Enforcement::Strict);
    let plan = plan_of(&directory, &[]);
    assert_eq!(sentences(&plan.problems), "");
    assert_eq!(plan.host.steering, directory.mesh.steering);
    assert_eq!(
        plan.host.routes,
        nets(&["192.0.2.2/32", "192.0.2.3/32", "2001:db8::2/128"])
    );
    assert_eq!(
        plan.device.peers[&key(2)].allowed_ips,
        nets(&["192.0.2.2/32", "2001:db8::2/128"])
    );
    assert_eq!(
        plan.device.peers[&key(2)].endpoints[0].ip(),
        ip("192.0.2.2")
    );
    assert_eq!(plan.host.addresses, BTreeSet::from([OVERLAY_ADDRESS]));
    assert_eq!(plan.host.fence.local, nets(&["192.0.2.1/32"]));
    assert_eq!(plan.host.fence.mesh, nets(&["0.0.0.0/0", "::/0"]));
    assert!(plan.host.fence.inward);
}

#[test]
fn an_overlay_is_staged_and_excepted_by_the_addresses_of_its_nodes() {
    let mut directory = overlay(Enforcement::Staged);
    let staged = plan_of(&directory, &["192.0.2.2/32"]);
    assert_eq!(staged.host.routes, nets(&["192.0.2.2/32"]));
    assert_eq!(staged.host.fence.mesh, nets(&["192.0.2.2/32"]));

    directory.mesh.enforcement = Enforcement::Strict;
    directory.nodes.get_mut(&name("c")).expect("a node").outside = true;
    let strict = plan_of(&directory, &[]);
    assert_eq!(strict.host.fence.open, nets(&["192.0.2.3/32"]));
    assert_eq!(
        strict.host.routes,
        nets(&["192.0.2.2/32", "2001:db8::2/128"])
    );
}

#[test]
fn the_underlay_may_be_where_an_overlay_goes() {
    let underlay = Underlay {
        addresses: addresses(&["192.0.2.1"]),
        gateways: addresses(&["192.0.2.2"]),
        resolvers: addresses(&["192.0.2.3"]),
        api_servers: addresses(&["192.0.2.3"]),
    };
    let plan = plan_around(&overlay(Enforcement::Strict), &underlay, &[]).expect("a plan");
    assert_eq!(sentences(&plan.problems), "");
    assert_eq!(plan.host.fence.open, nets(&[]));
}

#[test]
fn an_overlay_needs_a_port_that_is_not_the_tunnel_s() {
    for (ports, refused) in [
        (&[8472, 4789][..], ""),
        (&[], "[mesh], steering: there is no port of an overlay"),
        (
            &[8472, 51820],
            "[mesh], steering: 51820 cannot be the port of an overlay",
        ),
        (&[0], "[mesh], steering: 0 cannot be the port of an overlay"),
    ] {
        let mut directory = overlay(Enforcement::Strict);
        let ports = ports.iter().copied().collect();
        directory.mesh.steering = Steering::Overlay { ports };
        let found = sentences(&directory.review());
        assert!(found.starts_with(refused), "{found}");
        assert_eq!(found.is_empty(), refused.is_empty(), "{found}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is latched, keyed, excepted and known: what a route leads into the tunnel is fenced where
    /// the mesh is not permissive, what was latched is fenced or an exception, and nothing is opened
    /// that nobody excepted.
    #[test]
    fn what_was_latched_is_steered_blackholed_or_excepted(
        nodes in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..8),
        enforcement in prop_oneof![
            Just(Enforcement::Strict), Just(Enforcement::Staged), Just(Enforcement::Permissive),
        ],
        with_prefixes in any::<bool>(),
    ) {
        let mut directory = directory(enforcement);
        directory.nodes.retain(|node, _| node.as_str() == "a");
        if !with_prefixes && enforcement != Enforcement::Strict {
            directory.mesh.prefixes.clear();
        }
        let mut steered = BTreeSet::new();
        let mut excepted = BTreeSet::new();
        for (number, (keyed, outside, latched)) in (2..).zip(&nodes) {
            let mut node = node(number);
            node.outside = *outside;
            node.public_key = node.public_key.filter(|_| *keyed);
            if *latched {
                steered.extend(node.prefixes.iter().copied());
            }
            if *outside {
                excepted.extend(node.prefixes.iter().copied());
            }
            directory.nodes.insert(name(&format!("n{number}")), node);
        }
        // One that no node has any more.
        steered.insert(net("10.244.200.0/24"));
        let plan = plan(
            &directory, &name("a"), &Resolved::new(), &secrets(), &Underlay::default(), &steered,
        ).expect("a plan");
        let fence = &plan.host.fence;
        let fenced = |net: &IpNet| fence.mesh.iter().any(|mesh| mesh.contains(net));
        if enforcement != Enforcement::Permissive {
            prop_assert!(plan.host.routes.iter().all(fenced));
            prop_assert!(steered.iter().all(fenced));
        }
        for open in &fence.open {
            prop_assert!(excepted.iter().any(|excepted| excepted.contains(open)));
            prop_assert!(!plan.host.routes.contains(open));
        }
        for route in &plan.host.routes {
            let latched = steered.iter().any(|net| net.contains(route));
            prop_assert!(latched || enforcement == Enforcement::Strict);
        }
    }
}

/// Nodes a, b and c, each with a key, an endpoint and pods.
fn directory(enforcement: Enforcement) -> Directory {
    let nodes = [("a", 1), ("b", 2), ("c", 3)];
    Directory {
        mesh: Mesh {
            prefixes: vec![net("10.244.0.0/16")],
            enforcement,
            ..Mesh::default()
        },
        nodes: nodes
            .map(|(text, number)| (name(text), node(number)))
            .into(),
        pairs: [].into(),
    }
}

fn node(number: u8) -> Node {
    Node {
        public_key: Some(key(number)),
        endpoints: vec![format!("192.0.2.{number}").parse().expect("an endpoint")],
        addresses: vec![ip(&format!("10.244.{number}.0"))],
        prefixes: vec![net(&format!("10.244.{number}.0/24"))],
        ..Node::default()
    }
}

/// The same, with what they have as nodes of an overlay.
fn overlay(enforcement: Enforcement) -> Directory {
    let mut directory = directory(enforcement);
    let ports = [8472].into();
    directory.mesh.prefixes.clear();
    directory.mesh.steering = Steering::Overlay { ports };
    for (number, node) in (1..).zip(directory.nodes.values_mut()) {
        node.addresses = vec![ip(&format!("192.0.2.{number}"))];
    }
    let b = directory.nodes.get_mut(&name("b")).expect("a node");
    b.addresses.push(ip("2001:db8::2"));
    directory
}

fn secrets() -> Secrets {
    Secrets {
        private_key: Some(private(1)),
        ..Secrets::default()
    }
}

fn plan_of(directory: &Directory, steered: &[&str]) -> Plan {
    plan_around(directory, &Underlay::default(), steered).expect("a plan")
}

fn plan_around(
    directory: &Directory,
    underlay: &Underlay,
    steered: &[&str],
) -> Result<Plan, PlanError> {
    let (this, resolved) = (name("a"), Resolved::new());
    plan(
        directory,
        &this,
        &resolved,
        &secrets(),
        underlay,
        &nets(steered),
    )
}

fn errors(plan: &Plan) -> String {
    let errors = (plan.problems.iter()).filter(|problem| problem.severity() == Severity::Error);
    sentences(&errors.collect::<Vec<_>>())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn net(text: &str) -> IpNet {
    text.parse().expect(text)
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}
