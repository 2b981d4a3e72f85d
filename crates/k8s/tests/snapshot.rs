//! What is kept on disk comes back as it was, and nothing else comes back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use warren_k8s::{
    Epoch, Identity, Known, MeshSpec, Mode, NodeFacts, Progress, Record, RecordError, Settings,
    Snapshot, SnapshotError, View,
};

const KEY: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

#[test]
fn a_snapshot_comes_back_as_it_was() {
    let snapshot = snapshot();
    assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes()), Ok(snapshot));
}

#[test]
fn what_follows_from_a_snapshot_is_what_followed_before() {
    let before = snapshot();
    let after = Snapshot::from_bytes(&before.to_bytes()).expect("a snapshot");
    let directory = |snapshot: &Snapshot| snapshot.view.directory(&settings(), &snapshot.known);
    assert_eq!(directory(&before), directory(&after));
    assert_eq!(after.view.trust(&after.identity), Ok(()));
    // Also of one whose record went while the daemon was away.
    let mut gone = after;
    gone.view.records = Some(BTreeMap::new());
    let node = &directory(&gone).directory.nodes[&"b".parse().expect("a name")];
    assert_eq!(
        node.public_key.map(|key| key.to_string()).as_deref(),
        Some(KEY)
    );
    assert_eq!(node.endpoints.len(), 1);
}

#[test]
fn a_record_that_was_none_is_not_kept() {
    let mut before = snapshot();
    let records = before.view.records.as_mut().expect("there are");
    records.insert("c".to_owned(), Err(RecordError::Port));
    let after = Snapshot::from_bytes(&before.to_bytes()).expect("a snapshot");
    assert_eq!(after, snapshot());
}

#[test]
fn what_is_no_snapshot_or_one_of_another_version_is_refused_by_name() {
    let changed = |change: fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&snapshot().to_bytes()).expect("JSON");
        change(&mut value);
        Snapshot::from_bytes(value.to_string().as_bytes()).expect_err("it is none")
    };
    let invalid = |field, value: &str| SnapshotError::Invalid {
        field,
        value: value.to_owned(),
    };
    assert_eq!(
        changed(|value| value["version"] = json!(2)),
        SnapshotError::Version(2)
    );
    assert_eq!(
        changed(|value| value["node"] = json!("../etc")),
        invalid("the name of a node", "../etc")
    );
    assert_eq!(
        changed(|value| value["uid"] = json!("")),
        invalid("uid", "")
    );
    assert_eq!(
        changed(|value| value["known"]["b"]["publicKey"] = json!("short")),
        invalid("a public key", "short")
    );
    assert_eq!(
        changed(|value| value["known"]["b"]["endpoints"] = json!(["a b"])),
        invalid("an endpoint", "a b")
    );
    for change in [
        (|value| value["known"]["b"]["prefixes"] = json!(["10.0.0.0/33"])) as fn(&mut Value),
        |value| value["cluster"] = json!(1),
        |value| value["records"]["b"]["port"] = json!(70_000),
    ] {
        let error = changed(change);
        assert!(matches!(error, SnapshotError::Unreadable(_)), "{error}");
    }
    let whole = snapshot().to_bytes();
    for end in [0, 1, whole.len() / 2, whole.len() - 1] {
        let error = Snapshot::from_bytes(&whole[..end]).expect_err("it is cut off");
        assert!(matches!(error, SnapshotError::Unreadable(_)), "{error}");
    }
}

#[test]
fn what_a_later_version_adds_is_passed_over_and_what_an_earlier_one_lacked_is_empty() {
    let mut value: Value = serde_json::from_slice(&snapshot().to_bytes()).expect("JSON");
    value["more"] = json!({"of": "it"});
    let fields = value.as_object_mut().expect("an object");
    for field in ["spokeWith", "apiServers", "epoch"] {
        assert!(fields.remove(field).is_some(), "{field}");
    }
    let read = Snapshot::from_bytes(value.to_string().as_bytes()).expect("a snapshot");
    assert_eq!(read.known, snapshot().known);
    assert!(read.spoke_with.is_empty());
}

fn snapshot() -> Snapshot {
    let nodes = ["a", "b"].map(|name| {
        let number = name.as_bytes()[0];
        let facts = NodeFacts {
            uid: format!("uid-{name}"),
            pod_cidrs: vec![format!("10.244.{number}.0/24").parse().expect("a prefix")],
            addresses: vec!["2001:db8::1".parse().expect("an address")],
            ready: true,
            ..NodeFacts::default()
        };
        (name.to_owned(), facts)
    });
    let record = Record {
        node_uid: "uid-b".to_owned(),
        created: 1_800_000_000,
        public_key: KEY.to_owned(),
        endpoints: Vec::new(),
        port: 51820,
        mode: Mode::Route,
        epoch: 3,
        progress: Progress {
            peers_expected: 1,
            unreached: Some(Vec::new()),
            ..Progress::default()
        },
        fenced: None,
    };
    let mesh = MeshSpec {
        pod_prefixes: vec!["10.244.0.0/16".to_owned()],
        ..MeshSpec::default()
    };
    let view = View {
        cluster: Some("cluster".to_owned()),
        nodes: Some(nodes.into()),
        records: Some(BTreeMap::from([("b".to_owned(), Ok(record))])),
        mesh: Some(Some(mesh.clone())),
        api_servers: Some(BTreeSet::from(["192.0.2.10".parse().expect("an address")])),
    };
    let entries = view.directory(&settings(), &Known::default());
    let mut known = Known::after(&entries.directory, &entries.uids);
    // What a directory decides anew each time is not kept.
    for known in known.0.values_mut() {
        known.node.seniority = 0;
    }
    Snapshot {
        identity: Identity {
            cluster: "cluster".to_owned(),
            node: "a".parse().expect("a name"),
            uid: "uid-a".to_owned(),
        },
        mesh: Some(mesh),
        view,
        known,
        epoch: Epoch::next(None, 1_800_000_000)
            .0
            .published_at(1_800_000_001),
        spoke_with: BTreeSet::from(["b".parse().expect("a name")]),
    }
}

fn settings() -> Settings {
    let spec = MeshSpec {
        pod_prefixes: vec!["10.244.0.0/16".to_owned()],
        ..MeshSpec::default()
    };
    Settings::of(&spec, 1420, Mode::Route).expect("they can be used")
}
