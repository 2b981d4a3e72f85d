//! A [`Status`] as Prometheus metrics.
//!
//! Every series carries `node`, the name of the node that tells it. How many there are: about 80 for a
//! node, and six for each of its peers. A mesh of 5,000 nodes in which each told of each would have a
//! hundred million series, which no server holds: from more than [`PEERS_MAX`] peers on, those that are
//! not ready are told of one by one, the first [`PEERS_MAX`] by name, and the others are counted.

use std::collections::HashMap;

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder,
};

use crate::status::{Cluster, ConditionStatus, Enforcement, Peer, Status};

/// What the text is, as HTTP says it.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// Of how many peers each has series of its own.
pub const PEERS_MAX: usize = 256;

/// How many nodes are named that keep a mesh from turning strict. All nodes name the same.
const HOLDUPS_MAX: usize = 32;

/// Drops with this beginning are those of the fence and not of the tunnel.
const OF_FENCE: &str = "fence_";

/// The metrics of a status, in the text format of Prometheus.
///
/// They are made anew each time. Counters are the daemon's own and begin with it; those of a peer begin
/// again when its tunnel does, which `rate` understands.
pub fn text(status: &Status) -> String {
    let mut text = Vec::new();
    let told = Registry::new_custom(None, Some(labels(status)))
        .and_then(|registry| {
            of_node(status, &registry)?;
            of_peers(&status.peers, &registry)?;
            if let Some(cluster) = &status.cluster {
                of_cluster(cluster, &registry)?;
            }
            Ok(registry)
        })
        .and_then(|registry| TextEncoder::new().encode(&registry.gather(), &mut text));
    // Names and labels are constants, and all values are numbers.
    told.expect("every metric has a valid name, which is its own");
    String::from_utf8(text).expect("labels are text")
}

fn labels(status: &Status) -> HashMap<String, String> {
    let node = &status.node;
    let name = node.name.as_ref().unwrap_or(&node.interface);
    HashMap::from([("node".to_owned(), name.clone())])
}

fn of_node(status: &Status, registry: &Registry) -> prometheus::Result<()> {
    let node = &status.node;
    let gauges = Gauges(registry);
    gauges.labelled(
        "warren_build_info",
        "The version of the daemon; always 1.",
        "version",
        [(node.version.as_str(), 1)],
    )?;
    gauges.one(
        "warren_ready",
        "Whether the node can carry traffic, as /readyz says.",
        status.unready.is_none().into(),
    )?;
    gauges.maybe(
        "warren_control_idle_seconds",
        "Since the control loop last came round.",
        status.control_idle_s,
    )?;
    gauges.one(
        "warren_interface_up",
        "Whether the tunnel's interface is up.",
        node.up.into(),
    )?;
    gauges.one(
        "warren_interface_mtu_bytes",
        "MTU of the tunnel's interface.",
        node.mtu.into(),
    )?;
    gauges.one(
        "warren_workers",
        "Threads that carry packets each way.",
        node.workers.into(),
    )?;
    gauges.one(
        "warren_problems",
        "How much is not as it should be; `warren status` tells each in a sentence.",
        count(status.problems.len()),
    )?;
    gauges.labelled(
        "warren_aead_in_use",
        "What seals and opens packets of new sessions; always 1.",
        "implementation",
        (!node.aead.is_empty()).then_some((node.aead.as_str(), 1)),
    )?;
    gauges.maybe(
        "warren_aead_longest_bytes",
        "The longest text for which that is used; absent where it is used for all.",
        node.aead_longest_bytes,
    )?;
    gauges.maybe(
        "warren_queued_handshakes",
        "Handshake messages that wait to be served.",
        status.waiting.map(|waiting| waiting.handshakes),
    )?;
    gauges.maybe(
        "warren_staged_bytes",
        "Bytes of packets that wait for a session with their peer.",
        status.waiting.map(|waiting| waiting.staged_bytes),
    )?;
    gauges.labelled(
        "warren_feature_in_use",
        "Features of the kernel, and whether they are in use.",
        "feature",
        (status.features.iter()).map(|(name, used)| (name.as_str(), i64::from(*used))),
    )?;
    let fences = status.fences.iter().flat_map(|fences| {
        [
            ("rules", fences.rules),
            ("nftables", fences.nftables),
            ("boot", fences.boot),
        ]
    });
    gauges.labelled(
        "warren_fence_standing",
        "Whether a fence stands: routing rules, nftables table, what is loaded at boot.",
        "fence",
        fences.map(|(name, stands)| (name, i64::from(stands))),
    )?;
    let of_fence = |name: &str| name.strip_prefix(OF_FENCE).is_some();
    let drops = status.drops.iter();
    counters(
        registry,
        "warren_dropped_packets_total",
        "Packets that the tunnel has dropped.",
        "reason",
        drops
            .clone()
            .filter(|(name, _)| !of_fence(name))
            .map(|(name, count)| (name.as_str(), *count)),
    )?;
    counters(
        registry,
        "warren_fence_dropped_packets_total",
        "Packets that the fence has dropped: they would have travelled in the clear.",
        "reason",
        drops.filter_map(|(name, count)| Some((name.strip_prefix(OF_FENCE)?, *count))),
    )
}

fn of_peers(peers: &[Peer], registry: &Registry) -> prometheus::Result<()> {
    let gauges = Gauges(registry);
    gauges.one("warren_peers", "Peers of all kinds.", count(peers.len()))?;
    let shown: Vec<(&str, &Peer)> = (peers.iter())
        .filter(|peer| peers.len() <= PEERS_MAX || peer.ready == Some(false))
        .filter_map(|peer| {
            let name = peer.name.as_deref().or(peer.public_key.as_deref())?;
            Some((name, peer))
        })
        .take(PEERS_MAX)
        .collect();
    let shown = shown.iter().copied();
    gauges.labelled(
        "warren_peer_ready",
        "Whether a peer is ready: it has shaken hands and answers.",
        "peer",
        (shown.clone()).filter_map(|(name, peer)| Some((name, i64::from(peer.ready?)))),
    )?;
    let handshakes = GaugeVec::new(
        Opts::new(
            "warren_peer_last_handshake_timestamp_seconds",
            "When the last handshake with a peer was completed; absent where none was.",
        ),
        &["peer"],
    )?;
    for (name, peer) in shown.clone() {
        if let Some(at) = peer.last_handshake_unix_s {
            handshakes.with_label_values(&[name]).set(at as f64);
        }
    }
    register(registry, handshakes)?;
    counters(
        registry,
        "warren_peer_received_bytes_total",
        "Bytes received from a peer.",
        "peer",
        (shown.clone()).map(|(name, peer)| (name, peer.rx_bytes)),
    )?;
    counters(
        registry,
        "warren_peer_sent_bytes_total",
        "Bytes sent to a peer.",
        "peer",
        (shown.clone()).map(|(name, peer)| (name, peer.tx_bytes)),
    )?;
    counters(
        registry,
        "warren_peer_received_packets_total",
        "Datagrams received from a peer.",
        "peer",
        (shown.clone()).map(|(name, peer)| (name, peer.rx_packets)),
    )?;
    counters(
        registry,
        "warren_peer_sent_packets_total",
        "Datagrams sent to a peer.",
        "peer",
        shown.map(|(name, peer)| (name, peer.tx_packets)),
    )
}

fn of_cluster(cluster: &Cluster, registry: &Registry) -> prometheus::Result<()> {
    let gauges = Gauges(registry);
    let enforcement = [
        ("Staged", Enforcement::Staged),
        ("Strict", Enforcement::Strict),
        ("Permissive", Enforcement::Permissive),
        ("Removed", Enforcement::Removed),
    ];
    gauges.labelled(
        "warren_enforcement",
        "What is enforced on this node now: 1 for that state, 0 for the others.",
        "state",
        enforcement.map(|(name, state)| (name, i64::from(cluster.enforcement == Some(state)))),
    )?;
    gauges.maybe(
        "warren_staged_seconds",
        "For how long the node has been staged; absent where it is not.",
        cluster.staged_s,
    )?;
    gauges.labelled(
        "warren_staged_holdup",
        "Nodes that keep this one from turning strict, the first by name; always 1.",
        "by",
        (cluster.holdups.keys().take(HOLDUPS_MAX)).map(|name| (name.as_str(), 1)),
    )?;
    gauges.one(
        "warren_latched",
        "Whether the node has turned strict, and stays so.",
        cluster.latched.into(),
    )?;
    gauges.one(
        "warren_latched_prefixes",
        "Prefixes of the others that this node never sends to in the clear again.",
        cluster.latched_prefixes.into(),
    )?;
    gauges.one(
        "warren_peers_expected",
        "Peers that there should be.",
        cluster.peers_expected.into(),
    )?;
    gauges.one(
        "warren_peers_ready",
        "Peers that are ready.",
        cluster.peers_ready.into(),
    )?;
    gauges.labelled(
        "warren_api_staleness_seconds",
        "Since the API server last said something of a resource.",
        "resource",
        (cluster.api.iter()).map(|(name, feed)| (name.as_str(), whole(feed.staleness_s))),
    )?;
    gauges.labelled(
        "warren_api_failing",
        "Whether the last attempt to read a resource went wrong.",
        "resource",
        (cluster.api.iter()).map(|(name, feed)| (name.as_str(), feed.error.is_some().into())),
    )?;
    let key_changes = IntCounterVec::new(
        Opts::new(
            "warren_key_changes_total",
            "Keys of peers that have changed while their Node stayed the same.",
        ),
        &[],
    )?;
    let none: &[&str] = &[];
    key_changes
        .with_label_values(none)
        .inc_by(cluster.key_changes);
    register(registry, key_changes)?;
    let conditions = IntGaugeVec::new(
        Opts::new(
            "warren_condition",
            "Conditions of the node's record: 1 for the status of each, 0 for the others.",
        ),
        &["condition", "status"],
    )?;
    for condition in &cluster.conditions {
        for (name, status) in [
            ("true", ConditionStatus::True),
            ("false", ConditionStatus::False),
            ("unknown", ConditionStatus::Unknown),
        ] {
            let series = conditions.with_label_values(&[condition.kind.as_str(), name]);
            series.set((condition.status == status).into());
        }
    }
    register(registry, conditions)
}

/// Makes gauges of whole numbers.
struct Gauges<'a>(&'a Registry);

impl Gauges<'_> {
    fn one(&self, name: &str, help: &str, value: i64) -> prometheus::Result<()> {
        let none: &[&str] = &[];
        let gauge = IntGaugeVec::new(Opts::new(name, help), none)?;
        gauge.with_label_values(none).set(value);
        register(self.0, gauge)
    }

    /// A gauge that is absent where there is no value.
    fn maybe(&self, name: &str, help: &str, value: Option<u64>) -> prometheus::Result<()> {
        value.map_or(Ok(()), |value| self.one(name, help, whole(value)))
    }

    fn labelled<'v>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, i64)>,
    ) -> prometheus::Result<()> {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        for (value, number) in values {
            gauge.with_label_values(&[value]).set(number);
        }
        register(self.0, gauge)
    }
}

fn counters<'v>(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'v str, u64)>,
) -> prometheus::Result<()> {
    let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
    for (value, number) in values {
        counter.with_label_values(&[value]).inc_by(number);
    }
    register(registry, counter)
}

fn register(registry: &Registry, metric: impl Collector + 'static) -> prometheus::Result<()> {
    registry.register(Box::new(metric))
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
