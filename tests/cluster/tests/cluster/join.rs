//! Nodes that come, and what they carry for each other.

use warren_tests_cluster::Lab;

#[test]
fn three_strict_nodes_carry_their_pods_traffic_encrypted_and_nothing_in_the_clear() {
    let (mut lab, nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    lab.listen();
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.name != from.name) {
            for address in to.pod_addresses() {
                assert!(from.pod.reaches(&address), "pod to pod: {address}");
                assert!(from.host.reaches(&address), "host to pod: {address}");
            }
        }
    }
    lab.assert_closed();
}
