//! What holds for every mesh, tried on random ones.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use common::{key, name, private};
use ipnet::IpNet;
use proptest::prelude::*;
use warren_mesh::{MeshFile, Node, Plan, Resolved, Secrets, Underlay, plan};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_does_not_depend_on_the_order_of_the_nodes(
        (mesh, order) in nodes().prop_flat_map(|nodes| {
            let order = Just((0..nodes.len()).collect::<Vec<_>>()).prop_shuffle();
            (Just(nodes), order)
        })
    ) {
        let shuffled: Vec<_> = order.iter().map(|&i| mesh[i].clone()).collect();
        let (one, other) = (parse(&mesh), parse(&shuffled));
        prop_assert_eq!(&one.directory, &other.directory);
        for node in &mesh {
            prop_assert_eq!(plan_of(&one, node), plan_of(&other, node));
        }
    }

    #[test]
    fn every_pair_of_nodes_agrees_on_what_lies_between_them(mesh in nodes()) {
        let file = parse(&mesh);
        let plans: Vec<Plan> = mesh.iter().map(|node| plan_of(&file, node)).collect();
        for (here, plan) in mesh.iter().zip(&plans) {
            let mut all = BTreeSet::new();
            for (there, other) in mesh.iter().zip(&plans) {
                if here.number == there.number {
                    continue;
                }
                match plan.device.peers.get(&key(there.number)) {
                    Some(peer) => {
                        prop_assert!(there.keyed);
                        prop_assert_eq!(&peer.allowed_ips, &there.owned());
                        prop_assert_eq!(&peer.allowed_ips, &other.host.fence.local);
                        all.extend(peer.allowed_ips.iter().copied());
                    }
                    None => prop_assert!(!there.keyed),
                }
                let name = name(&there.name());
                prop_assert_eq!(plan.peers[&name].unreachable, !here.reachable && !there.reachable);
            }
            prop_assert_eq!(&plan.host.routes, &all);
            prop_assert!(!plan.device.peers.contains_key(&key(here.number)));
            // All that any node is lies behind the fence, whether it has a key or not.
            for net in mesh.iter().flat_map(Fixture::owned) {
                prop_assert!(plan.host.fence.mesh.iter().any(|mesh| mesh.contains(&net)));
            }
        }
    }

    #[test]
    fn claims_agree_with_a_naive_model(claims in prop::collection::vec((0u8..4, 0u32..64, 26u8..=32), 1..12)) {
        // Nodes with random prefixes of 10.77.0.0/26: one overlaps an earlier one, or is accepted.
        let mut directory = parse(&[]).directory;
        let mut accepted: Vec<(u8, IpNet)> = Vec::new();
        let mut nodes: BTreeMap<u8, Node> = BTreeMap::new();
        for (owner, host, len) in claims {
            let address = IpAddr::from([10, 77, 0, host as u8]);
            let net = IpNet::new(address, len).expect("a prefix").trunc();
            nodes.entry(owner).or_default().prefixes.push(net);
        }
        for (owner, node) in nodes {
            for net in &node.prefixes {
                if !accepted.iter().any(|(_, other)| other.contains(net) || net.contains(other)) {
                    accepted.push((owner, *net));
                }
            }
            directory.nodes.insert(name(&format!("n{owner}")), Node { public_key: Some(key(owner + 1)), ..node });
        }
        let here = name("here");
        directory.nodes.insert(here.clone(), Node::default());
        let plan = plan(&directory, &here, &Resolved::new(), &Secrets::default(), &Underlay::default(), &BTreeSet::new())
            .expect("a plan");
        let carried: BTreeSet<(u8, IpNet)> = (0..4)
            .filter_map(|owner| Some((owner, plan.device.peers.get(&key(owner + 1))?)))
            .flat_map(|(owner, peer)| peer.allowed_ips.iter().map(move |net| (owner, *net)))
            .collect();
        prop_assert_eq!(carried, accepted.into_iter().collect());
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        let _refused_or_not = MeshFile::parse(&text, "mesh.toml");
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_parser_panic(
        at in any::<prop::sample::Index>(),
        cut in 0usize..20,
        put in "[\\[\\]\"=.,#{}a-z0-9/:\\n \u{e9}'\\\\-]{0,8}",
    ) {
        let mut text: Vec<char> = common::three().chars().collect();
        let at = at.index(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, put.chars());
        let text: String = text.into_iter().collect();
        if let Err(problems) = MeshFile::parse(&text, "mesh.toml") {
            prop_assert!(!problems.is_empty());
            let lines = text.lines().count() + 1;
            for problem in problems {
                prop_assert!(problem.position.is_none_or(|at| at.line <= lines), "{problem}");
                prop_assert!(!problem.text.contains('\n'), "{problem}");
            }
        }
    }
}

#[test]
fn deep_nesting_is_a_sentence_and_no_overflow() {
    for open in ["[", "{a=", "a."] {
        let text = format!("x = {}", open.repeat(100_000));
        assert!(MeshFile::parse(&text, "mesh.toml").is_err());
        let text = format!("[{}", open.repeat(100_000));
        assert!(MeshFile::parse(&text, "mesh.toml").is_err());
    }
}

/// What a random node has.
#[derive(Debug, Clone)]
struct Fixture {
    number: u8,
    keyed: bool,
    reachable: bool,
    v6: bool,
    prefixes: u8,
    keepalive: Option<u16>,
}

impl Fixture {
    fn name(&self) -> String {
        format!("n{}", self.number)
    }

    fn owned(&self) -> BTreeSet<IpNet> {
        let n = self.number;
        let v6 = self.v6.then(|| format!("fd77::{n:x}/128"));
        let prefixes = (0..self.prefixes).map(|i| format!("10.77.{n}.{}/28", 16 * i));
        std::iter::once(format!("10.77.0.{n}/32"))
            .chain(v6)
            .chain(prefixes)
            .map(|net| net.parse().expect("a prefix"))
            .collect()
    }
}

fn nodes() -> impl Strategy<Value = Vec<Fixture>> {
    let node = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0u8..4,
        prop::option::of(0u16..100),
    );
    prop::collection::vec(node, 1..8).prop_map(|nodes| {
        (1..)
            .zip(nodes)
            .map(
                |(number, (keyed, reachable, v6, prefixes, keepalive))| Fixture {
                    number,
                    keyed,
                    reachable,
                    v6,
                    prefixes,
                    keepalive,
                },
            )
            .collect()
    })
}

fn parse(nodes: &[Fixture]) -> MeshFile {
    let mut text = "[mesh]\nprefixes = [\"10.77.0.0/16\", \"fd77::/48\"]\n".to_owned();
    for node in nodes {
        let n = node.number;
        let hosts: Vec<String> = (node.owned().iter())
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(|net| net.addr().to_string())
            .collect();
        let prefixes: Vec<String> = (node.owned().iter())
            .filter(|net| net.prefix_len() != net.max_prefix_len())
            .map(ToString::to_string)
            .collect();
        let _infallible = write!(
            text,
            "[[node]]\nname = \"{}\"\naddresses = {hosts:?}\nprefixes = {prefixes:?}\n",
            node.name()
        );
        if node.keyed {
            let _infallible = writeln!(text, "public_key = \"{}\"", key(n));
        }
        if node.reachable {
            let _infallible = writeln!(text, "endpoints = \"192.0.2.{n}\"");
        }
        if let Some(keepalive) = node.keepalive {
            let _infallible = writeln!(text, "keepalive = {keepalive}");
        }
    }
    common::parse(&text)
}

fn plan_of(file: &MeshFile, node: &Fixture) -> Plan {
    let secrets = Secrets {
        private_key: Some(private(node.number)),
        ..Secrets::default()
    };
    plan(
        &file.directory,
        &name(&node.name()),
        &Resolved::new(),
        &secrets,
        &Underlay::default(),
        &BTreeSet::new(),
    )
    .expect("a plan")
}
