//! What a cluster of thousands of nodes costs each of them, measured in one process: from the JSON of
//! an event to the plan.
//!
//!     cargo run --release -p warren-k8s --example scale -- [NODES]
//!
//! docs/kubernetes.md has the figures.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use warren_k8s::{
    Book, Identity, Known, MeshNodeObject, MeshSpec, Mode, NodeFacts, NodeObject, Own, Record,
    Settings, Snapshot, View,
};
use warren_mesh::{NodeName, Resolved, Secrets, Underlay, plan};

/// How often each figure is taken; the middle one is printed.
const ROUNDS: usize = 15;
/// Events of a cluster that does not rest.
const CHURN: usize = 6000;

fn main() {
    let nodes: u32 = std::env::args()
        .nth(1)
        .map_or(5000, |text| text.parse().expect("a number"));
    let start = resident();
    let mut view = View {
        cluster: Some("cluster".to_owned()),
        nodes: Some(BTreeMap::new()),
        records: Some(BTreeMap::new()),
        mesh: Some(None),
        api_servers: Some(BTreeSet::new()),
    };
    for number in 0..nodes {
        put(&mut view, &node(number, 0), &record(number, 1));
    }
    let in_view = resident() - start;
    let settings = settings();
    let entries = view.directory(&settings, &Known::default());
    let known = Known::after(&entries.directory, &entries.uids);
    let after_known = resident() - start;
    println!("{nodes} nodes");
    print("memory: the view", &mib(in_view));
    print(
        "memory: with a directory and what is known",
        &mib(after_known),
    );
    let snapshot = snapshot(&view, &known);
    print("snapshot on disk", &mib(snapshot.to_bytes().len() as u64));

    let mut number = 0;
    let mut next = || {
        number = (number + 1) % nodes;
        number
    };
    let text = node(7, 1).to_string();
    print("JSON of a Node", &format!("{} bytes", text.len()));
    let record_text = record(7, 2).to_string();
    print(
        "JSON of a MeshNode",
        &format!("{} bytes", record_text.len()),
    );
    print(
        "an event of a Node is read",
        &time(|| {
            let node: NodeObject = serde_json::from_str(&text).expect("a Node");
            NodeFacts::of(&node)
        }),
    );
    print(
        "an event of a MeshNode is read",
        &time(|| {
            let record: MeshNodeObject = serde_json::from_str(&record_text).expect("a MeshNode");
            Record::of(&record)
        }),
    );
    let mut epoch = 1;
    let mut change = |view: &mut View| {
        epoch += 1;
        let number = next();
        let object = serde_json::from_value(record(number, epoch)).expect("a MeshNode");
        let records = view.records.as_mut().expect("there are");
        records.insert(name(number), Record::of(&object));
        name(number)
    };
    print(
        "a changed node: the directory, anew",
        &time(|| {
            change(&mut view);
            view.directory(&settings, &known)
        }),
    );
    let this: NodeName = name(0).parse().expect("a name");
    let steered = BTreeSet::new();
    let underlay = Underlay::default();
    let secrets = Secrets {
        private_key: Some(
            "YAnwDdDs5iPWzWFFZqBdvbIF/nJpmvXyHIe3BgGDFk8="
                .parse()
                .expect("a key"),
        ),
        ..Secrets::default()
    };
    let public = secrets.private_key.as_ref().expect("it is there").public();
    let mut kept = known.clone();
    let own = Some((this.clone(), public));
    let mut book = Book::new(&view, settings.clone(), own, &mut kept);
    let all: Vec<String> = (0..nodes).map(name).collect();
    book.update(&view, &mut kept, &all);
    print(
        "a changed node: the book",
        &time(|| {
            let name = change(&mut view);
            book.update(&view, &mut kept, [&name])
        }),
    );
    print(
        "a changed node: what is known, anew",
        &time(|| Known::after(&entries.directory, &entries.uids)),
    );
    let mut followed = (book.reviewed())
        .plan(&this, &Resolved::new(), &secrets, &underlay, &steered)
        .expect("a plan");
    let mut cluster = Cluster { nodes, round: 0 };
    let mut taken = Vec::new();
    let mut read = 0;
    let mut steps = 0;
    for _ in 0..CHURN {
        let Happened { name, bytes } = cluster.happens(&mut view);
        read += bytes;
        let start = now();
        let affected = book.update(&view, &mut kept, [&name]);
        let reviewed = book.reviewed();
        let step = reviewed.replan(&mut followed, &affected, &underlay, &steered);
        taken.push(start.elapsed());
        steps += usize::from(step.is_some());
    }
    assert_eq!(steps, CHURN, "none is about more than its node");
    let anew = (book.reviewed())
        .plan(&this, &Resolved::new(), &secrets, &underlay, &steered)
        .expect("a plan");
    assert_eq!(followed, anew, "what was followed is what all come to");
    taken.sort();
    print(
        "churn: an event, from the book to the step",
        &micros(taken[CHURN / 2]),
    );
    print(
        "churn: 99 of 100 take at most",
        &micros(taken[CHURN * 99 / 100]),
    );
    print(
        "churn: an event is read from",
        &format!("{} bytes", read / CHURN),
    );
    print(
        "a changed node: the plan",
        &time(|| {
            plan(
                &entries.directory,
                &this,
                &Resolved::new(),
                &secrets,
                &underlay,
                &steered,
            )
            .is_ok()
        }),
    );
    let identity = identity();
    print(
        "a changed node: the stage",
        &time(|| view.stage(&settings, &identity, Own::default())),
    );
    print("the snapshot is written", &time(|| snapshot.to_bytes()));
    print("memory in the end", &mib(resident() - start));
}

fn put(view: &mut View, node: &Value, record: &Value) {
    // As it comes from the server: as text, of which most is skipped.
    let node: NodeObject = serde_json::from_str(&node.to_string()).expect("a Node");
    let record: MeshNodeObject = serde_json::from_str(&record.to_string()).expect("a MeshNode");
    let number = view.nodes.as_ref().map_or(0, BTreeMap::len);
    let name = name(u32::try_from(number).expect("not that many"));
    let nodes = view.nodes.as_mut().expect("there are");
    nodes.insert(name.clone(), NodeFacts::of(&node));
    let records = view.records.as_mut().expect("there are");
    records.insert(name, Record::of(&record));
}

/// A cluster in which one node after the other is replaced, moves, starts anew, or gets another key.
struct Cluster {
    nodes: u32,
    round: u32,
}

/// An event of a node, and its size in bytes.
struct Happened {
    name: String,
    bytes: usize,
}

impl Cluster {
    fn happens(&mut self, view: &mut View) -> Happened {
        self.round += 1;
        let number = 1 + (self.round / 6 * 7919) % (self.nodes - 1);
        let name = name(number);
        let nodes = view.nodes.as_mut().expect("there are");
        let records = view.records.as_mut().expect("there are");
        let (mut node, mut record) = (
            node(number, self.round),
            record(number, i64::from(self.round)),
        );
        match self.round % 6 {
            0 => {
                node["status"]["addresses"][0]["address"] =
                    format!("172.16.{}.{}", number / 250, number % 250).into();
            }
            1 => {
                record["spec"]["publicKey"] =
                    format!("{:08}{}=", 90_000_000 + self.round, "A".repeat(35)).into();
            }
            2 => record["spec"]["port"] = 51821.into(),
            // The node goes, and comes again as it was.
            3 => drop(records.remove(&name)),
            4 => drop(nodes.remove(&name)),
            _ => {
                let facts = serde_json::from_value(node.clone()).expect("a Node");
                nodes.insert(name.clone(), NodeFacts::of(&facts));
            }
        }
        let bytes = match self.round % 6 {
            0 => {
                let facts = serde_json::from_value(node.clone()).expect("a Node");
                nodes.insert(name.clone(), NodeFacts::of(&facts));
                node.to_string().len()
            }
            3 => record.to_string().len(),
            4 => node.to_string().len(),
            _ => {
                let object = serde_json::from_value(record.clone()).expect("a MeshNode");
                records.insert(name.clone(), Record::of(&object));
                record.to_string().len()
            }
        };
        Happened { name, bytes }
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn now() -> Instant {
    Instant::now()
}

fn micros(taken: Duration) -> String {
    format!("{:.1} us", taken.as_secs_f64() * 1e6)
}

/// The middle of how long it takes, in microseconds.
fn time<T>(mut work: impl FnMut() -> T) -> String {
    let mut taken: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = now();
            let result = work();
            let taken = start.elapsed();
            drop(result);
            taken
        })
        .collect();
    taken.sort();
    micros(taken[ROUNDS / 2])
}

fn print(what: &str, figure: &str) {
    println!("{what:<45} {figure:>14}");
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("it is Linux");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a number");
    pages * 4096
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn snapshot(view: &View, known: &Known) -> Snapshot {
    Snapshot {
        identity: identity(),
        mesh: None,
        view: view.clone(),
        known: known.clone(),
        epoch: warren_k8s::Epoch::default(),
        spoke_with: BTreeSet::new(),
    }
}

fn identity() -> Identity {
    Identity {
        cluster: "cluster".to_owned(),
        node: name(0).parse().expect("a name"),
        uid: uid(0),
    }
}

fn settings() -> Settings {
    let spec = MeshSpec {
        pod_prefixes: vec!["10.128.0.0/9".to_owned(), "fd00:10::/32".to_owned()],
        ..MeshSpec::default()
    };
    Settings::of(&spec, 1420, Mode::Route).expect("they can be used")
}

fn name(number: u32) -> String {
    format!(
        "ip-10-0-{}-{}.eu-central-1.compute.internal",
        number / 250,
        number % 250
    )
}

fn uid(number: u32) -> String {
    format!("{number:08x}-7a3c-4b1e-9d55-0123456789ab")
}

/// A Node of the size that a kubelet's has: fifty images, five conditions, and the books of three who
/// write to it.
fn node(number: u32, version: u32) -> Value {
    let (high, low) = (number / 250, number % 250);
    let images: Vec<Value> = (0..50)
        .map(|image| {
            let digest = format!("registry.example.org/project/image-{image}@sha256:{:064x}", image * 7919);
            json!({"names": [digest, format!("registry.example.org/project/image-{image}:v1.{version}.0")],
                "sizeBytes": 123_456_789})
        })
        .collect();
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "lastHeartbeatTime": "2026-11-21T10:00:00Z",
            "lastTransitionTime": "2026-11-20T10:00:00Z", "reason": "KubeletSaysSo",
            "message": "kubelet has sufficient of whatever this is about"})
    };
    let books = json!({"f:metadata": {"f:labels": {".": {}, "f:kubernetes.io/hostname": {}}},
        "f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}}}, "f:images": {}}});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name(number),
            "uid": uid(number),
            "resourceVersion": version.to_string(),
            "labels": {"kubernetes.io/hostname": name(number), "topology.kubernetes.io/zone": "a",
                "node.kubernetes.io/instance-type": "large", "kubernetes.io/os": "linux"},
            "managedFields": (0..3).map(|_| books.clone()).collect::<Vec<_>>(),
        },
        "spec": {"podCIDRs": [
            format!("10.{}.{}.0/24", 128 + number / 256, number % 256),
            format!("fd00:10:{number:x}::/64"),
        ]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("192.168.{high}.{low}")},
                {"type": "Hostname", "address": name(number)}],
            "conditions": [condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
                condition("PIDPressure", "False"), condition("NetworkUnavailable", "False"),
                condition("Ready", "True")],
            "images": images,
        },
    })
}

fn record(number: u32, epoch: i64) -> Value {
    // 32 bytes in base64, all different.
    let key = format!("{number:08}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": "AllPeersReady",
            "message": "4999 of 4999 peers are ready", "lastTransitionTime": "2026-11-21T10:00:00Z"})
    };
    let conditions = [
        "Ready",
        "Configured",
        "Synced",
        "IdentityEnforced",
        "ClaimsAccepted",
    ];
    let conditions = conditions.map(condition);
    let books = json!({"f:metadata": {"f:ownerReferences": {"k:{\"uid\":\"x\"}": {}}},
        "f:spec": {"f:publicKey": {}, "f:endpoints": {}, "f:port": {}, "f:mode": {}, "f:mtu": {}}});
    json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": {
            "name": name(number),
            "uid": uid(number + 1_000_000),
            "resourceVersion": epoch.to_string(),
            "creationTimestamp": "2026-11-21T10:00:00Z",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": name(number), "uid": uid(number)}],
            "managedFields": [books, books.clone()],
        },
        "spec": {
            "nodeUID": uid(number),
            "publicKey": key,
            "endpoints": [format!("192.168.{}.{}", number / 250, number % 250)],
            "port": 51820,
            "mode": "Route",
            "mtu": 1420,
            "epoch": epoch,
            "version": "0.1.0",
        },
        "status": {
            "peersExpected": 4999,
            "peersReady": 4999,
            "unreached": [],
            "enforcement": "Strict",
            "latched": true,
            "conditions": conditions,
        },
    })
}
