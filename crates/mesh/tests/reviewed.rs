//! A review that follows its nodes one by one says what a review of all of them says.

mod common;

use common::{key, name};
use ipnet::IpNet;
use proptest::prelude::*;
use warren_mesh::{
    Directory, Enforcement, Mesh, Node, Resolved, Reviewed, Secrets, Steering, Underlay, plan,
};

/// A node that claims little of a small world, so that others claim it, too.
fn node() -> impl Strategy<Value = Node> {
    let prefix = (
        0u8..8,
        prop_oneof![Just(24u8), Just(25), Just(26), Just(23), Just(8), Just(0)],
    );
    (
        prop::option::of(0u8..4),
        prop::collection::vec(0u8..6, 0..2),
        prop::collection::vec((0u8..8, 0u8..3), 0..2),
        prop::collection::vec(prefix, 0..3),
        0u64..3,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(public_key, endpoints, addresses, prefixes, seniority, outside)| Node {
                public_key: public_key.map(key),
                endpoints: (endpoints.iter())
                    .map(|host| match host {
                        // Some in the world of the claims.
                        5 => "10.77.3.1".parse().expect("an endpoint"),
                        _ => format!("192.0.2.{host}").parse().expect("an endpoint"),
                    })
                    .collect(),
                addresses: (addresses.iter())
                    .map(|(net, host)| [10, 77, *net, *host].into())
                    .collect(),
                prefixes: (prefixes.iter())
                    .map(|(net, length)| {
                        let address = std::net::IpAddr::from([10, 77, *net, 0]);
                        IpNet::new(address, *length).expect("a prefix")
                    })
                    .collect(),
                keepalive: None,
                seniority,
                outside,
            },
        )
}

fn mesh() -> impl Strategy<Value = Mesh> {
    let overlay = || Steering::Overlay {
        ports: [8472].into(),
    };
    prop_oneof![
        Just((
            vec!["10.77.0.0/16"],
            Enforcement::Strict,
            Steering::Prefixes
        )),
        Just((vec![], Enforcement::Staged, Steering::Prefixes)),
        Just((vec![], Enforcement::Strict, overlay())),
    ]
    .prop_map(|(prefixes, enforcement, steering)| Mesh {
        prefixes: prefixes
            .iter()
            .map(|net| net.parse().expect("a prefix"))
            .collect(),
        enforcement,
        steering,
        ..Mesh::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_review_node_by_node_says_what_a_review_of_all_says(
        mesh in mesh(),
        before in prop::collection::vec(prop::option::of(node()), 8),
        changes in prop::collection::vec((0usize..8, prop::option::weighted(0.8, node())), 0..12),
    ) {
        let named = |number: usize| name(&format!("n{number}"));
        let nodes = before.into_iter().enumerate();
        let directory = Directory {
            mesh,
            nodes: nodes.filter_map(|(number, node)| Some((named(number), node?))).collect(),
            pairs: [].into(),
        };
        let mut reviewed = Reviewed::new(directory.clone());
        prop_assert_eq!(reviewed.problems(), directory.review());
        let mut directory = directory;
        for (number, node) in changes {
            let name = named(number);
            let before: Vec<_> = (0..8).map(|number| reviewed.problems_of(&named(number)).to_vec()).collect();
            let affected = reviewed.set(&name, node.clone());
            match node {
                Some(node) => drop(directory.nodes.insert(name, node)),
                None => drop(directory.nodes.remove(&name)),
            }
            prop_assert_eq!(reviewed.directory(), &directory);
            prop_assert_eq!(reviewed.problems(), directory.review());
            for (number, before) in before.iter().enumerate() {
                let name = named(number);
                prop_assert!(affected.contains(&name) || reviewed.problems_of(&name) == before);
            }
            let this = named(0);
            let (resolved, secrets) = (Resolved::new(), Secrets::default());
            let (underlay, steered) = (Underlay::default(), [].into());
            prop_assert_eq!(
                reviewed.plan(&this, &resolved, &secrets, &underlay, &steered),
                plan(&directory, &this, &resolved, &secrets, &underlay, &steered)
            );
            prop_assert_eq!(&reviewed, &Reviewed::new(directory.clone()));
        }
    }
}

#[test]
fn a_node_that_contests_nothing_concerns_nobody_else() {
    let nodes = (0..200u8).map(|number| {
        let node = Node {
            public_key: Some(key(number)),
            endpoints: vec![format!("192.0.2.{number}").parse().expect("an endpoint")],
            addresses: vec![[10, 77, number, 0].into()],
            prefixes: vec![format!("10.77.{number}.0/24").parse().expect("a prefix")],
            ..Node::default()
        };
        (name(&format!("n{number}")), node)
    });
    let directory = Directory {
        mesh: Mesh {
            prefixes: vec!["10.77.0.0/16".parse().expect("a prefix")],
            ..Mesh::default()
        },
        nodes: nodes.collect(),
        pairs: [].into(),
    };
    let mut reviewed = Reviewed::new(directory);
    let this = name("n7");
    let mut node = reviewed.directory().nodes[&this].clone();
    assert_eq!(reviewed.set(&this, Some(node.clone())), [].into());
    node.public_key = Some(key(201));
    // One that claims all there is has no say in what others claim.
    node.prefixes.push("0.0.0.0/0".parse().expect("a prefix"));
    assert_eq!(
        reviewed.set(&this, Some(node.clone())),
        [this.clone()].into()
    );
    assert_eq!(reviewed.problems_of(&this).len(), 1);
    node.prefixes
        .push("10.77.9.0/25".parse().expect("a prefix"));
    assert_eq!(
        reviewed.set(&this, Some(node)),
        [this.clone(), name("n9")].into()
    );
    assert_eq!(reviewed.set(&this, None), [this, name("n9")].into());
}
