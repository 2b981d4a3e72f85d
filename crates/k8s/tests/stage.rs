//! When a staged cluster turns strict, and when not.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use warren_k8s::{
    Distrust, Enforcement, Holdup, Identity, MeshSpec, Missing, Mode, NodeFacts, Own, Progress,
    Record, Settings, Stage, View,
};

const RUNNING: Own = Own {
    turned: false,
    returning: false,
};
const RETURNING: Own = Own {
    turned: false,
    returning: true,
};
const TURNED: Own = Own {
    turned: true,
    returning: false,
};

#[test]
fn a_cluster_whose_ready_nodes_have_all_reached_all_turns_strict() {
    let view = cluster(3);
    assert_eq!(stage(&view), Stage::Strict);
}

#[test]
fn a_ready_node_that_has_not_reached_another_holds_the_cluster_up_by_name() {
    let mut view = cluster(3);
    progress(&mut view, "n1").unreached = Some(vec!["n2".to_owned()]);
    assert_eq!(
        holdups(&stage(&view)),
        BTreeMap::from([("n1".to_owned(), Holdup::Unreached(vec!["n2".to_owned()]))])
    );
}

#[test]
fn a_ready_node_that_says_nothing_yet_holds_the_cluster_up() {
    let mut view = cluster(3);
    progress(&mut view, "n1").unreached = None;
    let behind = Holdup::Behind {
        reported: 0,
        expected: 2,
    };
    assert_eq!(
        holdups(&stage(&view)),
        BTreeMap::from([("n1".to_owned(), behind)])
    );
}

#[test]
fn a_node_that_has_just_joined_is_waited_for_by_those_who_have_not_heard_of_it() {
    let mut view = cluster(3);
    add(&mut view, "n3", Some(record("n3", 3, Some(&[]))));
    // It has reached all, and the others do not know of it.
    let behind = Holdup::Behind {
        reported: 2,
        expected: 3,
    };
    let expected = ["n0", "n1", "n2"].map(|name| (name.to_owned(), behind.clone()));
    assert_eq!(holdups(&stage(&view)), BTreeMap::from(expected));
}

#[test]
fn a_ready_node_without_a_daemon_holds_the_cluster_up_unless_it_is_an_exception() {
    let mut view = cluster(3);
    add(&mut view, "bare", None);
    assert_eq!(
        holdups(&stage(&view)),
        BTreeMap::from([("bare".to_owned(), Holdup::NoRecord)])
    );
    let mut excepting = settings();
    excepting.excepted.nodes = BTreeSet::from(["bare".to_owned()]);
    assert_eq!(view.stage(&excepting, &identity(), RUNNING), Stage::Strict);

    let mut excepting = settings();
    let label = "node-restriction.kubernetes.io/outside";
    excepting.excepted.labels = BTreeSet::from([label.to_owned()]);
    assert_ne!(view.stage(&excepting, &identity(), RUNNING), Stage::Strict);
    node(&mut view, "bare")
        .restricted_labels
        .insert(label.to_owned());
    assert_eq!(view.stage(&excepting, &identity(), RUNNING), Stage::Strict);
}

#[test]
fn nodes_that_are_not_ready_are_not_waited_for_and_follow_when_they_come_back() {
    let mut view = cluster(3);
    node(&mut view, "n2").ready = false;
    progress(&mut view, "n2").unreached = None;
    assert_eq!(stage(&view), Stage::Strict);
    // The others have turned; this one comes back, and another has joined meanwhile.
    for name in ["n0", "n1"] {
        progress(&mut view, name).latched = true;
    }
    add(&mut view, "n3", Some(record("n3", 0, None)));
    assert!(matches!(stage(&view), Stage::Staged(_)));
    assert_eq!(
        view.stage(&settings(), &identity(), RETURNING),
        Stage::Strict
    );
}

#[test]
fn who_has_turned_stays_strict_whatever_the_others_say() {
    let mut view = cluster(3);
    progress(&mut view, "n1").unreached = Some(vec!["n2".to_owned()]);
    add(&mut view, "bare", None);
    assert_eq!(view.stage(&settings(), &identity(), TURNED), Stage::Strict);
    assert_eq!(
        View::default().stage(&settings(), &identity(), TURNED),
        Stage::Strict
    );
}

#[test]
fn only_the_operator_turns_a_cluster_back() {
    let mut view = cluster(3);
    progress(&mut view, "n0").latched = true;
    for enforcement in [Enforcement::Permissive, Enforcement::Removed] {
        let settings = settings_with(&["10.244.0.0/16"], enforcement);
        assert_eq!(
            view.stage(&settings, &identity(), TURNED),
            Stage::Permissive
        );
    }
    let settings = settings_with(&["10.244.0.0/16"], Enforcement::Strict);
    assert_eq!(
        View::default().stage(&settings, &identity(), RUNNING),
        Stage::Strict
    );
}

#[test]
fn a_cluster_of_one_node_does_not_turn_strict_by_accident() {
    let view = cluster(1);
    assert_eq!(missing(&stage(&view)), Some(Missing::Peers));
    // Nor one with others that are not there.
    let mut view = cluster(2);
    node(&mut view, "n1").ready = false;
    assert_eq!(missing(&stage(&view)), Some(Missing::Peers));
    assert_eq!(
        missing(&stage(&cluster(0))),
        Some(Missing::Trust(Distrust::NotListed(identity().node)))
    );
}

#[test]
fn a_cluster_without_pod_prefixes_does_not_turn_strict_by_accident() {
    let mut view = cluster(3);
    let none = settings_with(&[], Enforcement::Staged);
    assert_eq!(
        missing(&view.stage(&none, &identity(), RUNNING)),
        Some(Missing::Prefixes)
    );
    // Not even behind others.
    progress(&mut view, "n1").latched = true;
    assert_eq!(
        missing(&view.stage(&none, &identity(), RETURNING)),
        Some(Missing::Prefixes)
    );
}

#[test]
fn a_view_that_is_not_trusted_turns_nothing() {
    let mut view = cluster(3);
    progress(&mut view, "n1").latched = true;
    for untrusted in [
        View {
            cluster: Some("another".to_owned()),
            ..view.clone()
        },
        View {
            cluster: None,
            ..view.clone()
        },
        View {
            records: None,
            ..view.clone()
        },
    ] {
        let stage = untrusted.stage(&settings(), &identity(), RETURNING);
        assert!(
            matches!(missing(&stage), Some(Missing::Trust(_))),
            "{stage:?}"
        );
    }
}

#[test]
fn what_holds_a_cluster_up_is_a_sentence_of_few_nodes() {
    let mut view = cluster(12);
    for number in 0..12 {
        progress(&mut view, &format!("n{number}")).unreached = None;
    }
    let Stage::Staged(holdups) = stage(&view) else {
        panic!("nobody has reached anybody");
    };
    let text = holdups.to_string();
    assert!(
        text.starts_with("node n0: it reports on 0 peers, and there are 11; "),
        "{text}"
    );
    assert!(text.ends_with("; and 7 more"), "{text}");
    assert_eq!(holdups.names().count(), 12);
}

#[test]
fn of_two_records_with_one_key_one_is_nobody_to_wait_for() {
    let mut view = cluster(3);
    let records = view.records.as_mut().expect("there are");
    for name in ["n1", "n2"] {
        let record = records.get_mut(name).expect("it is there").as_mut();
        record.expect("it is one").public_key = "one".to_owned();
    }
    for name in ["n0", "n1", "n2"] {
        progress(&mut view, name).peers_expected = 1;
    }
    assert_eq!(stage(&view), Stage::Strict);
}

#[test]
fn a_peer_whose_record_went_is_counted_and_holds_nobody_up() {
    let mut view = cluster(4);
    view.records.as_mut().expect("there are").remove("n3");
    node(&mut view, "n3").ready = false;
    assert_eq!(stage(&view), Stage::Strict);
}

proptest! {
    /// Whoever turns on its own does so on the word of every Ready node.
    #[test]
    fn no_cluster_turns_strict_over_a_ready_node_that_did_not_say_so(
        nodes in proptest::collection::vec((any::<bool>(), any_progress()), 1..6),
    ) {
        let mut view = cluster(0);
        for (number, (ready, progress)) in nodes.iter().enumerate() {
            let name = format!("n{number}");
            let record = progress.as_ref().map(|progress| Record {
                progress: progress.clone(),
                ..record(&name, 0, None)
            });
            add(&mut view, &name, record);
            node(&mut view, &name).ready = *ready;
        }
        let strict = stage(&view) == Stage::Strict;
        let ready: Vec<&Option<Progress>> =
            nodes.iter().filter(|(ready, _)| *ready).map(|(_, progress)| progress).collect();
        let peers = nodes.iter().filter(|(_, progress)| progress.is_some()).count().saturating_sub(1);
        let all_said = ready.iter().all(|progress| {
            progress.as_ref().is_some_and(|progress| {
                progress.unreached == Some(Vec::new()) && progress.peers_expected as usize >= peers
            })
        });
        prop_assert_eq!(strict, all_said && ready.len() >= 2);
    }

    /// All who see the same decide the same.
    #[test]
    fn every_node_of_a_cluster_comes_to_the_same_conclusion(
        unreached in proptest::collection::vec(any::<bool>(), 3),
    ) {
        let mut view = cluster(3);
        for (number, unreached) in unreached.iter().enumerate() {
            if *unreached {
                progress(&mut view, &format!("n{number}")).unreached = Some(vec!["x".to_owned()]);
            }
        }
        let stages = (0..3).map(|number| {
            let this = Identity {
                node: format!("n{number}").parse().expect("a name"),
                uid: format!("uid-n{number}"),
                ..identity()
            };
            view.stage(&settings(), &this, RUNNING)
        });
        let stages: Vec<Stage> = stages.collect();
        prop_assert!(stages.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

fn any_progress() -> impl Strategy<Value = Option<Progress>> {
    let unreached = proptest::option::of(proptest::collection::vec(Just("x".to_owned()), 0..2));
    proptest::option::weighted(
        0.9,
        (0..6u32, unreached).prop_map(|(peers_expected, unreached)| Progress {
            peers_expected,
            unreached,
            ..Progress::default()
        }),
    )
}

/// Nodes n0 and on, all Ready, all of which have reached all.
fn cluster(size: u32) -> View {
    let mut view = View {
        cluster: Some("cluster".to_owned()),
        nodes: Some(BTreeMap::new()),
        records: Some(BTreeMap::new()),
        ..View::default()
    };
    for number in 0..size {
        let name = format!("n{number}");
        add(&mut view, &name, Some(record(&name, size - 1, Some(&[]))));
    }
    view
}

fn add(view: &mut View, name: &str, record: Option<Record>) {
    let facts = NodeFacts {
        uid: format!("uid-{name}"),
        ready: true,
        ..NodeFacts::default()
    };
    view.nodes
        .as_mut()
        .expect("there are")
        .insert(name.to_owned(), facts);
    if let Some(record) = record {
        view.records
            .as_mut()
            .expect("there are")
            .insert(name.to_owned(), Ok(record));
    }
}

fn record(name: &str, expected: u32, unreached: Option<&[&str]>) -> Record {
    Record {
        node_uid: format!("uid-{name}"),
        created: 10,
        public_key: format!("key of {name}"),
        endpoints: Vec::new(),
        port: 51820,
        mode: Mode::Route,
        epoch: 1,
        progress: Progress {
            peers_expected: expected,
            unreached: unreached.map(|names| names.iter().map(ToString::to_string).collect()),
            ..Progress::default()
        },
        fenced: None,
    }
}

fn node<'a>(view: &'a mut View, name: &str) -> &'a mut NodeFacts {
    let nodes = view.nodes.as_mut().expect("there are");
    nodes.get_mut(name).expect("it is there")
}

fn progress<'a>(view: &'a mut View, name: &str) -> &'a mut Progress {
    let records = view.records.as_mut().expect("there are");
    let record = records.get_mut(name).expect("it is there").as_mut();
    &mut record.expect("it is one").progress
}

fn stage(view: &View) -> Stage {
    view.stage(&settings(), &identity(), RUNNING)
}

fn holdups(stage: &Stage) -> BTreeMap<String, Holdup> {
    match stage {
        Stage::Staged(holdups) => holdups.nodes.clone(),
        other => panic!("{other:?}"),
    }
}

fn missing(stage: &Stage) -> Option<Missing> {
    match stage {
        Stage::Staged(holdups) => holdups.mesh.clone(),
        other => panic!("{other:?}"),
    }
}

fn identity() -> Identity {
    Identity {
        cluster: "cluster".to_owned(),
        node: "n0".parse().expect("a name"),
        uid: "uid-n0".to_owned(),
    }
}

fn settings() -> Settings {
    settings_with(&["10.244.0.0/16"], Enforcement::Staged)
}

fn settings_with(prefixes: &[&str], enforcement: Enforcement) -> Settings {
    let spec = MeshSpec {
        pod_prefixes: prefixes.iter().map(ToString::to_string).collect(),
        enforcement,
        ..MeshSpec::default()
    };
    Settings::of(&spec, 1420, Mode::Route).expect("they can be used")
}
