//! What Prometheus is told, and that alerts and dashboard ask for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use promql_parser::label::Matchers;
use promql_parser::parser::{self, BinaryExpr, Expr, LabelModifier, VectorMatchCardinality};
use serde_json::Value;
use warren_control::metrics::{self, PEERS_MAX};
use warren_control::status::{
    Cluster, Condition, ConditionStatus, Enforcement, Feed, Fences, Node, Peer, Status, Waiting,
};
use warren_engine::Reason;

#[test]
fn a_status_is_told_as_metrics() {
    let text = metrics::text(&full());
    for line in [
        "# TYPE warren_peer_sent_bytes_total counter",
        "# TYPE warren_ready gauge",
        r#"warren_build_info{version="0.1.0",node="hut"} 1"#,
        r#"warren_ready{node="hut"} 0"#,
        r#"warren_control_idle_seconds{node="hut"} 7"#,
        r#"warren_interface_mtu_bytes{node="hut"} 1420"#,
        r#"warren_feature_in_use{feature="nftables",node="hut"} 1"#,
        r#"warren_fence_standing{fence="rules",node="hut"} 1"#,
        r#"warren_fence_standing{fence="boot",node="hut"} 0"#,
        r#"warren_dropped_packets_total{reason="in_forged",node="hut"} 3"#,
        r#"warren_fence_dropped_packets_total{reason="out_mesh",node="hut"} 5"#,
        r#"warren_peer_ready{peer="barn",node="hut"} 0"#,
        r#"warren_peer_last_handshake_timestamp_seconds{peer="barn",node="hut"} 1700000000"#,
        r#"warren_peer_received_bytes_total{peer="barn",node="hut"} 11"#,
        r#"warren_peer_sent_bytes_total{peer="barn",node="hut"} 12"#,
        r#"warren_peer_received_packets_total{peer="barn",node="hut"} 13"#,
        r#"warren_peer_sent_packets_total{peer="barn",node="hut"} 14"#,
        r#"warren_aead_in_use{implementation="avx2",node="hut"} 1"#,
        r#"warren_aead_longest_bytes{node="hut"} 768"#,
        r#"warren_queued_handshakes{node="hut"} 15"#,
        r#"warren_staged_bytes{node="hut"} 16"#,
        r#"warren_enforcement{state="Staged",node="hut"} 1"#,
        r#"warren_enforcement{state="Strict",node="hut"} 0"#,
        r#"warren_staged_seconds{node="hut"} 3601"#,
        r#"warren_staged_holdup{by="barn",node="hut"} 1"#,
        r#"warren_peers_expected{node="hut"} 2"#,
        r#"warren_api_staleness_seconds{resource="nodes",node="hut"} 9"#,
        r#"warren_api_failing{resource="nodes",node="hut"} 1"#,
        r#"warren_key_changes_total{node="hut"} 4"#,
        r#"warren_condition{condition="Ready",status="false",node="hut"} 1"#,
        r#"warren_condition{condition="Ready",status="true",node="hut"} 0"#,
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
    }
    assert!(
        !text.contains("fence_out_mesh"),
        "a drop of the fence is none of the tunnel"
    );
}

#[test]
fn what_is_not_known_is_absent() {
    let text = metrics::text(&Status::default());
    for absent in [
        "idle",
        "fence_standing",
        "staged",
        "api",
        "condition",
        "aead",
    ] {
        assert!(!text.contains(absent), "{absent} in\n{text}");
    }
    assert!(text.contains("warren_ready{node=\"\"} 1\n"), "{text}");
}

#[test]
fn names_of_nodes_cannot_forge_metrics() {
    let mut status = full();
    status.peers[0].name = Some("a\"} 1\nwarren_ready{node=\"b".to_owned());
    let text = metrics::text(&status);
    let forged = r#"{peer="a\"} 1\nwarren_ready{node=\"b",node="hut"}"#;
    assert!(text.contains(forged), "{text}");
    assert_eq!(text.matches("\nwarren_ready{").count(), 1, "{text}");
}

#[test]
fn in_a_large_mesh_only_peers_that_are_not_ready_are_told_of_one_by_one() {
    let peer = |n: usize| Peer {
        name: Some(format!("node-{n:04}")),
        ready: Some(!n.is_multiple_of(10)),
        last_handshake_unix_s: Some(1),
        ..Peer::default()
    };
    let of = |count: usize| {
        let status = Status {
            peers: (0..count).map(peer).collect(),
            ..Status::default()
        };
        let text = metrics::text(&status);
        assert!(text.contains(&format!("warren_peers{{node=\"\"}} {count}\n")));
        text.lines().filter(|line| line.contains("peer=")).count()
    };
    assert_eq!(of(PEERS_MAX), 6 * PEERS_MAX);
    assert_eq!(of(1000), 6 * 100);
    assert_eq!(of(5000), 6 * PEERS_MAX);
}

#[test]
fn alerts_ask_for_metrics_and_labels_that_there_are() {
    let text = deployed("alerts/warren.rules.yaml");
    let rules: Value = serde_saphyr::from_str(&text).expect("it is YAML");
    let exported = Exported::all();
    let mut names = BTreeSet::new();
    for group in rules["groups"].as_array().expect("groups") {
        for rule in group["rules"].as_array().expect("rules") {
            let name = rule["alert"].as_str().expect("a name");
            assert!(names.insert(name.to_owned()), "two alerts {name}");
            let labels = exported.labels(name, rule["expr"].as_str().expect("an expression"));
            assert!(rule["labels"]["severity"].is_string(), "{name}");
            for annotation in ["summary", "description"] {
                let said = rule["annotations"][annotation].as_str().expect(annotation);
                for used in said.split("$labels.").skip(1) {
                    let label: String =
                        used.chars().take_while(|it| it.is_alphanumeric()).collect();
                    assert!(
                        labels.contains(&label),
                        "{name}: no label {label}: {labels:?}"
                    );
                }
            }
        }
    }
    assert!(names.len() > 10, "{names:?}");
}

#[test]
fn the_dashboard_asks_for_metrics_and_labels_that_there_are() {
    let dashboard: Value =
        serde_json::from_str(&deployed("dashboard/warren.json")).expect("it is JSON");
    let exported = Exported::all();
    let mut ids = BTreeSet::new();
    let mut expressions = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            let expression = expression.replace("$__rate_interval", "5m");
            let labels = exported.labels(title, &expression);
            let legend = target["legendFormat"].as_str().expect("a legend");
            for used in legend.split("{{").skip(1) {
                let (label, _) = used.split_once("}}").expect("it is closed");
                assert!(
                    labels.contains(label),
                    "{title}: no label {label}: {labels:?}"
                );
            }
            expressions += 1;
        }
    }
    assert!(expressions > 15, "{expressions}");
    for variable in dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
    {
        let Some(inner) = (variable["query"].as_str())
            .and_then(|query| query.strip_prefix("label_values("))
            .and_then(|query| query.strip_suffix(')'))
        else {
            continue;
        };
        let (metric, label) = inner.split_once(", ").expect("a metric and its label");
        let labels = exported.labels("a variable", metric);
        assert!(labels.contains(label), "no label {label}: {labels:?}");
    }
}

#[test]
fn a_wrong_question_is_noticed() {
    let exported = Exported::all();
    for wrong in [
        "warren_weather",
        "warren_ready{nod=\"hut\"}",
        "warren_condition{condition=\"Redy\"}",
        "sum by (reason) (warren_ready)",
        "warren_ready and on (peer) warren_peer_ready",
        "rate(warren_ready{fence=~\"x|y\"}[5m])",
        "warren_ready ==",
    ] {
        let asked = std::panic::catch_unwind(|| exported.labels("wrong", wrong));
        assert!(asked.is_err(), "{wrong}");
    }
}

/// A status in which nothing is absent.
fn full() -> Status {
    let condition = |kind: &str| Condition {
        kind: kind.to_owned(),
        status: ConditionStatus::False,
        ..Condition::default()
    };
    let feed = Feed {
        staleness_s: 9,
        error: Some("429".to_owned()),
    };
    let resources = ["nodes", "meshnodes", "meshes"];
    let fence = ["out_mesh", "out_source", "in_mesh", "in_spoofed"];
    let drops = (Reason::ALL.iter()).map(|reason| (reason.name().to_owned(), 3));
    let drops = drops.chain(fence.map(|name| (format!("fence_{name}"), 5)));
    Status {
        node: Node {
            name: Some("hut".to_owned()),
            version: "0.1.0".to_owned(),
            interface: "warren0".to_owned(),
            up: true,
            mtu: 1420,
            workers: 2,
            aead: "avx2".to_owned(),
            aead_longest_bytes: Some(768),
            ..Node::default()
        },
        peers: vec![Peer {
            name: Some("barn".to_owned()),
            last_handshake_unix_s: Some(1_700_000_000),
            rx_bytes: 11,
            tx_bytes: 12,
            rx_packets: 13,
            tx_packets: 14,
            ready: Some(false),
            ..Peer::default()
        }],
        drops: drops.collect(),
        features: [("nftables".to_owned(), true)].into(),
        waiting: Some(Waiting {
            handshakes: 15,
            staged_bytes: 16,
        }),
        problems: vec!["barn cannot be reached".to_owned()],
        unready: Some("there is no TUN device".to_owned()),
        control_idle_s: Some(7),
        fences: Some(Fences {
            rules: true,
            nftables: true,
            boot: false,
        }),
        cluster: Some(Cluster {
            enforcement: Some(Enforcement::Staged),
            staged_s: Some(3601),
            holdups: [("barn".to_owned(), "it has not reached hut".to_owned())].into(),
            latched: true,
            latched_prefixes: 1,
            peers_expected: 2,
            peers_ready: 1,
            api: resources.map(|name| (name.to_owned(), feed.clone())).into(),
            key_changes: 4,
            epoch: Some(1),
            conditions: [
                "Ready",
                "Configured",
                "Synced",
                "IdentityEnforced",
                "ClaimsAccepted",
            ]
            .map(condition)
            .into(),
        }),
        ..Status::default()
    }
}

fn deployed(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    fs::read_to_string(folder.join(file)).expect("it is in the checkout")
}

/// Every metric, with its labels and the values that they can have.
struct Exported(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Exported {
    fn all() -> Self {
        let mut metrics: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for line in metrics::text(&full()).lines() {
            if line.starts_with('#') {
                continue;
            }
            let (series, _) = line.rsplit_once(' ').expect("a value");
            // Labels are written as PromQL reads them.
            let Ok(Expr::VectorSelector(series)) = parser::parse(series) else {
                panic!("{line}");
            };
            let labels = metrics.entry(series.name.expect("a name")).or_default();
            for label in series.matchers.matchers {
                labels.entry(label.name).or_default().insert(label.value);
            }
        }
        Self(metrics)
    }

    /// The labels that the result of a question has. Panics where it asks for what there is not.
    fn labels(&self, who: &str, expression: &str) -> BTreeSet<String> {
        let parsed = parser::parse(expression);
        let parsed = parsed.unwrap_or_else(|error| panic!("{who}: {expression}: {error}"));
        self.labels_of(&format!("{who}: {expression}"), &parsed)
    }

    fn labels_of(&self, who: &str, expression: &Expr) -> BTreeSet<String> {
        match expression {
            Expr::VectorSelector(series) => {
                self.labels_of_metric(who, series.name.as_deref(), &series.matchers)
            }
            Expr::MatrixSelector(range) => {
                self.labels_of_metric(who, range.vs.name.as_deref(), &range.vs.matchers)
            }
            Expr::Aggregate(aggregate) => {
                let inner = self.labels_of(who, &aggregate.expr);
                match &aggregate.modifier {
                    Some(LabelModifier::Include(kept)) => named(who, &kept.labels, &inner),
                    Some(LabelModifier::Exclude(gone)) => {
                        let gone = named(who, &gone.labels, &inner);
                        inner.difference(&gone).cloned().collect()
                    }
                    // The ones that choose series keep their labels.
                    None if aggregate.op.to_string().starts_with("sort") => inner,
                    None => BTreeSet::new(),
                }
            }
            Expr::Binary(binary) => self.labels_of_two(who, binary),
            Expr::Unary(unary) => self.labels_of(who, &unary.expr),
            Expr::Paren(paren) => self.labels_of(who, &paren.expr),
            Expr::Subquery(subquery) => self.labels_of(who, &subquery.expr),
            Expr::Call(call) => {
                let arguments = call.args.args.iter();
                arguments.flat_map(|it| self.labels_of(who, it)).collect()
            }
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => BTreeSet::new(),
        }
    }

    fn labels_of_metric(
        &self,
        who: &str,
        name: Option<&str>,
        matchers: &Matchers,
    ) -> BTreeSet<String> {
        let name = name.unwrap_or_else(|| panic!("{who}: a selector without a name"));
        let metric = (self.0.get(name)).unwrap_or_else(|| panic!("{who}: there is no {name}"));
        for matcher in &matchers.matchers {
            let values = (metric.get(&matcher.name))
                .unwrap_or_else(|| panic!("{who}: {name} has no label {}", matcher.name));
            assert!(
                matcher.value == "$node" || values.iter().any(|value| matcher.is_match(value)),
                "{who}: {matcher} is true for none of {values:?}"
            );
        }
        metric.keys().cloned().collect()
    }

    fn labels_of_two(&self, who: &str, binary: &BinaryExpr) -> BTreeSet<String> {
        let left = self.labels_of(who, &binary.lhs);
        let right = self.labels_of(who, &binary.rhs);
        let Some(modifier) = &binary.modifier else {
            return match *binary.lhs {
                Expr::NumberLiteral(_) | Expr::Call(_) if left.is_empty() => right,
                _ => left,
            };
        };
        if let Some(matching) = &modifier.matching {
            let both: BTreeSet<String> = left.intersection(&right).cloned().collect();
            named(who, &matching.labels().labels, &both);
        }
        match &modifier.card {
            VectorMatchCardinality::ManyToOne(taken) => &left | &named(who, &taken.labels, &right),
            VectorMatchCardinality::OneToMany(taken) => &right | &named(who, &taken.labels, &left),
            _ => left,
        }
    }
}

/// `labels`, all of which must be in `there`.
fn named(who: &str, labels: &[String], there: &BTreeSet<String>) -> BTreeSet<String> {
    for label in labels {
        assert!(
            there.contains(label),
            "{who}: no label {label} in {there:?}"
        );
    }
    labels.iter().cloned().collect()
}
