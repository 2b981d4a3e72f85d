//! What a router tells of what it did: to senders, and to whoever asks.

use warren_config::{AllowedIpChange, PeerChange, PublicKey};
use warren_engine::Reason;
use warren_tests_simulation::Random;
use warren_tests_simulation::node::{Batches, Node};
use warren_tests_simulation::packet::{self, Flow};
use warren_wireguard::time::Instant;

/// As the kernel's driver does for EDESTADDRREQ.
#[test]
fn who_sends_to_a_peer_that_nobody_knows_where_to_find_is_told_so() {
    let mut random = Random::new(51);
    let now = Instant::from_nanos(1_000_000_000);
    let mut node = Node::new(1, random.fork());
    let mut batches = Batches::new();
    let homeless = PeerChange {
        allowed_ips: vec![
            AllowedIpChange::Add("10.9.0.0/16".parse().expect("a prefix")),
            AllowedIpChange::Add("fd09::/16".parse().expect("a prefix")),
        ],
        ..PeerChange::new(PublicKey::from_bytes(random.key()))
    };
    node.set_peers([homeless], now);
    for (source, destination) in [("10.0.1.1", "10.9.0.1"), ("fd00:1::1", "fd09::1")] {
        let flow = Flow {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            number: 0,
        };
        let (header, packet) = packet::build(flow, 1, 1, 100);
        batches.push_read(header, &packet);
        batches.push_read(header, &packet);
    }
    let done = node.outbound(&mut batches, now);
    assert!(done.sent.is_empty());
    assert_eq!(node.dropped(Reason::OutNoEndpoint), 4);
    let kinds = done.delivered.iter().map(|reply| match reply[0] >> 4 {
        4 => (reply[9], reply[20], reply[21]),
        _ => (reply[6], reply[40], reply[41]),
    });
    let (v4, v6) = ((1, 3, 1), (58, 1, 3));
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [v4, v4, v6, v6],
        "host, address unreachable"
    );
}
