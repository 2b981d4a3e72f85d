//! A review that follows its nodes one by one says what a review of all of them says.

mod common;

use common::{key, name, private};
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
        Just((
            vec!["10.77.0.0/16"],
            Enforcement::Staged,
            Steering::Prefixes
        )),
        Just((
            vec!["10.77.0.0/16"],
            Enforcement::Permissive,
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

/// What another host needs around it: some of it where nodes may claim it.
fn underlay() -> impl Strategy<Value = Underlay> {
    let address = prop_oneof![
        Just([192, 0, 2, 77]),
        Just([10, 77, 2, 9]),
        Just([10, 77, 5, 1])
    ];
    let addresses = prop::collection::btree_set(address.prop_map(std::net::IpAddr::from), 0..2);
    (addresses.clone(), addresses.clone(), addresses).prop_map(
        |(gateways, resolvers, api_servers)| Underlay {
            addresses: [[192, 0, 2, 1].into()].into(),
            gateways,
            resolvers,
            api_servers,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_that_follows_its_nodes_one_by_one_is_the_plan_of_all(
        mesh in mesh(),
        before in prop::collection::vec(prop::option::of(node()), 8),
        changes in prop::collection::vec((1usize..9, prop::option::weighted(0.8, node())), 1..12),
        underlay in underlay(),
        steered in prop::collection::btree_set(prop::sample::select(vec![
            "10.77.1.0/24", "10.77.2.0/23", "10.77.3.1/32", "10.77.4.0/24", "10.77.7.0/24", "192.0.2.1/32",
        ]), 0..4),
    ) {
        let named = |number: usize| name(&format!("n{number}"));
        let nodes = before.into_iter().enumerate().map(|(number, node)| (number + 1, node));
        let mut directory = Directory {
            mesh,
            nodes: nodes.filter_map(|(number, node)| Some((named(number), node?))).collect(),
            pairs: [].into(),
        };
        let this = named(0);
        directory.nodes.insert(this.clone(), Node {
            public_key: Some(key(9)),
            endpoints: vec!["192.0.2.9".parse().expect("an endpoint")],
            addresses: vec![[10, 77, 6, 0].into()],
            prefixes: vec!["10.77.6.0/24".parse().expect("a prefix")],
            seniority: 1,
            ..Node::default()
        });
        let steered = steered.into_iter().map(|net| net.parse().expect("a prefix")).collect();
        let resolved = Resolved::new();
        let secrets = Secrets { private_key: Some(private(9)), ..Secrets::default() };
        let mut reviewed = Reviewed::new(directory);
        let whole = |reviewed: &Reviewed| {
            reviewed.plan(&this, &resolved, &secrets, &underlay, &steered).expect("this node is there")
        };
        let mut plan = whole(&reviewed);
        for (number, node) in changes {
            let affected = reviewed.set(&named(number), node);
            let before = plan.clone();
            let should = whole(&reviewed);
            match reviewed.replan(&mut plan, &affected, &underlay, &steered) {
                Some(step) => {
                    prop_assert_eq!(&plan, &should);
                    let mut device = before.device;
                    device.apply(&step.device);
                    prop_assert_eq!(&device, &should.device);
                    prop_assert!(step.routes_removed.is_subset(&before.host.routes));
                    prop_assert!(step.routes_added.is_disjoint(&before.host.routes));
                    let kept = before.host.routes.difference(&step.routes_removed).copied();
                    let routes = kept.chain(step.routes_added).collect();
                    prop_assert_eq!(&should.host.routes, &routes);
                }
                None => {
                    prop_assert_eq!(&plan, &before, "nothing is done by half");
                    plan = should;
                }
            }
        }
    }
}

/// What a change of one node touches is that node, however many there are.
#[test]
fn the_step_of_one_changed_node_is_the_same_among_a_hundred_and_among_thousands() {
    let steps: Vec<_> = [100, 5000_u32]
        .map(|count| {
            let net = |number: u32| format!("10.{}.{}.0/24", number / 256, number % 256);
            let node = |number: u32, network: &str| {
                let mut bytes = [7; 32];
                bytes[..4].copy_from_slice(&number.to_le_bytes());
                let prefix: IpNet = net(number).parse().expect("a prefix");
                let endpoint = format!("{network}.{}.{}", number / 250, number % 250);
                Node {
                    public_key: Some(warren_config::PublicKey::from_bytes(bytes)),
                    endpoints: vec![endpoint.parse().expect("an endpoint")],
                    addresses: vec![prefix.network()],
                    prefixes: vec![prefix],
                    ..Node::default()
                }
            };
            let named = |number: u32| name(&format!("n{number:05}"));
            let mut nodes: std::collections::BTreeMap<_, _> = (0..count)
                .map(|number| (named(number), node(number, "192.168")))
                .collect();
            let this = named(0);
            nodes.get_mut(&this).expect("is there").public_key = Some(key(9));
            let mut reviewed = Reviewed::new(Directory {
                mesh: Mesh {
                    prefixes: vec!["10.0.0.0/8".parse().expect("a prefix")],
                    ..Mesh::default()
                },
                nodes,
                pairs: [].into(),
            });
            let secrets = Secrets {
                private_key: Some(private(9)),
                ..Secrets::default()
            };
            let (underlay, steered) = (Underlay::default(), [].into());
            let plan = reviewed.plan(&this, &Resolved::new(), &secrets, &underlay, &steered);
            let mut plan = plan.expect("a plan");
            let mut steps = Vec::new();
            for changed in [Some(node(42, "172.16")), None, Some(node(42, "192.168"))] {
                let affected = reviewed.set(&named(42), changed);
                assert_eq!(affected, [named(42)].into(), "nobody else is looked at");
                let step = reviewed.replan(&mut plan, &affected, &underlay, &steered);
                steps.push(step.expect("it is about this node alone"));
            }
            steps
        })
        .into();
    assert_eq!(steps[0], steps[1]);
    let sizes: Vec<_> = (steps[0].iter())
        .map(|step| {
            let routes = (step.routes_removed.len(), step.routes_added.len());
            (step.device.peers.len(), routes)
        })
        .collect();
    assert_eq!(sizes, [(1, (0, 0)), (1, (2, 0)), (1, (0, 2))]);
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
