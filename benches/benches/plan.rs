//! What one node plans in a cluster of thousands: the review of all nodes, and the plan that follows from it.

#![allow(
    missing_docs,
    reason = "criterion's macros write functions without any"
)]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net};
use warren_config::PrivateKey;
use warren_mesh::{
    Directory, Endpoint, Enforcement, Host, Mesh, Node, NodeName, Resolved, Reviewed, Secrets,
    Underlay, plan,
};

/// Nodes of the largest clusters that Kubernetes is tested with.
const NODES: u16 = 5000;

/// Nodes with a prefix of 256 pods each, `10.0.0.0/24` and so on, and an address of the underlay.
fn directory(enforcement: Enforcement) -> Directory {
    let node = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let network = Ipv4Addr::new(10, high, low, 0);
        let mut private = [7; 32];
        private[..2].copy_from_slice(&[high, low]);
        Node {
            public_key: Some(PrivateKey::from_bytes(private).public()),
            endpoints: vec![Endpoint {
                host: Host::Address(Ipv4Addr::new(172, 16 + high, low, 1).into()),
                port: None,
            }],
            addresses: vec![network.into()],
            prefixes: vec![Ipv4Net::new_assert(network, 24).into()],
            ..Node::default()
        }
    };
    Directory {
        mesh: Mesh {
            prefixes: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8).into()],
            enforcement,
            ..Mesh::default()
        },
        nodes: (0..NODES)
            .map(|number| (name(number), node(number)))
            .collect(),
        pairs: [].into(),
    }
}

fn name(number: u16) -> NodeName {
    format!("node-{number}").parse().expect("a name")
}

fn plans(criterion: &mut Criterion) {
    let strict = directory(Enforcement::Strict);
    let staged = directory(Enforcement::Staged);
    let latched: BTreeSet<IpNet> = (staged.nodes.values())
        .flat_map(|node| node.prefixes.iter().copied())
        .collect();
    let (this, resolved) = (name(0), Resolved::new());
    let (secrets, underlay) = (Secrets::default(), Underlay::default());

    let mut group = criterion.benchmark_group("plan of 5000 nodes");
    group.bench_function("review", |bencher| {
        bencher.iter(|| black_box(strict.review()));
    });
    for (label, directory) in [("strict", &strict), ("staged", &staged)] {
        group.bench_function(label, |bencher| {
            bencher.iter(|| {
                black_box(plan(
                    directory, &this, &resolved, &secrets, &underlay, &latched,
                ))
            });
        });
    }
    let mut reviewed = Reviewed::new(strict.clone());
    let changed = name(2500);
    let mut node = strict.nodes[&changed].clone();
    let mut key = 0;
    group.bench_function("review of one that changed", |bencher| {
        bencher.iter(|| {
            key = (key + 1) % 251;
            node.public_key = Some(warren_config::PublicKey::from_bytes([key + 1; 32]));
            black_box(reviewed.set(&changed, Some(node.clone())))
        });
    });
    group.bench_function("strict, reviewed", |bencher| {
        bencher.iter(|| black_box(reviewed.plan(&this, &resolved, &secrets, &underlay, &latched)));
    });
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);
