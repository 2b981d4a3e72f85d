//! Nodes and records in, a directory out: who may say what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_k8s::{
    Book, Distrust, Enforcement, Entries, Identity, Issue, Known, MeshSpec, Mode, NodeFacts,
    Progress, Record, Settings, SettingsError, View,
};
use warren_mesh::{
    Cause, Field, Node, NodeName, Place, Resolved, Secrets, Severity, Underlay, plan,
};

/// The private key of the node that plans.
const PRIVATE: &str = "YAnwDdDs5iPWzWFFZqBdvbIF/nJpmvXyHIe3BgGDFk8=";

/// Keys of nobody in particular; a key is 32 bytes of whatever, and these end as base64 must.
const KEYS: [&str; 4] = [
    "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
    "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
];

#[test]
fn prefixes_and_addresses_come_from_the_node_and_the_key_from_the_record() {
    let view = view(
        [("a", node("ua", 1)), ("b", node("ub", 2))],
        [("b", record("ub", 0))],
    );
    let Entries {
        directory,
        uids,
        findings,
    } = view.directory(&settings(), &Known::default());
    assert_eq!(findings, []);
    assert_eq!(uids[&name("b")], "ub");
    let b = &directory.nodes[&name("b")];
    assert_eq!(texts(&b.prefixes), ["10.244.2.0/24", "fd00:10:244:2::/64"]);
    assert_eq!(texts(&b.addresses), ["10.244.2.0", "fd00:10:244:2::"]);
    assert_eq!(key_of(b), Some(KEYS[0].to_owned()));
    // Without a record it is fenced, not absent.
    assert_eq!(key_of(&directory.nodes[&name("a")]), None);
    assert_eq!(directory.nodes[&name("a")].prefixes.len(), 2);
    let errors = directory
        .review()
        .into_iter()
        .filter(|p| p.severity() == Severity::Error);
    assert_eq!(errors.count(), 0);
}

#[test]
fn a_record_without_a_node_or_of_another_uid_is_no_peer() {
    let view = view(
        [("a", node("ua", 1)), ("anew", node("second", 2))],
        [("gone", record("ug", 0)), ("anew", record("first", 1))],
    );
    let entries = view.directory(&settings(), &Known::default());
    assert!(!entries.directory.nodes.contains_key(&name("gone")));
    assert_eq!(key_of(&entries.directory.nodes[&name("anew")]), None);
    let said: Vec<String> = entries.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "node \"anew\": its MeshNode is of the uid first, and its Node has second",
            "node \"gone\": there is a MeshNode, but no Node of its name",
        ]
    );
}

#[test]
fn an_endpoint_is_an_address_of_the_node_or_within_what_the_operator_allows() {
    let mut settings = settings();
    settings.allowed_endpoints = vec![prefix("203.0.113.0/24")];
    let mut aimed = record("ua", 0);
    aimed.port = 51999;
    aimed.endpoints = ["198.51.100.9", "203.0.113.7", "192.0.2.1"]
        .map(address)
        .to_vec();
    let view = view([("a", node("ua", 1))], [("a", aimed)]);
    let entries = view.directory(&settings, &Known::default());
    let a = &entries.directory.nodes[&name("a")];
    // In the order of the record, on its port, and without the third party.
    assert_eq!(endpoints_of(a), ["203.0.113.7:51999", "192.0.2.1:51999"]);
    let issues: Vec<&Issue> = entries
        .findings
        .iter()
        .map(|finding| &finding.issue)
        .collect();
    assert_eq!(issues, [&Issue::Endpoint(address("198.51.100.9"))]);
}

#[test]
fn a_node_whose_record_names_no_usable_endpoint_is_tried_at_its_own_addresses() {
    let mut aimed = record("ua", 0);
    aimed.endpoints = vec![address("198.51.100.9")];
    let view = view([("a", node("ua", 1))], [("a", aimed)]);
    let entries = view.directory(&settings(), &Known::default());
    let a = &entries.directory.nodes[&name("a")];
    assert_eq!(endpoints_of(a), ["192.0.2.1:51820", "[2001:db8::1]:51820"]);
}

#[test]
fn nodes_of_another_mode_do_not_talk() {
    let mut other = record("ua", 0);
    other.mode = Mode::Overlay;
    let view = view([("a", node("ua", 1))], [("a", other)]);
    let entries = view.directory(&settings(), &Known::default());
    assert_eq!(key_of(&entries.directory.nodes[&name("a")]), None);
    assert!(matches!(entries.findings[0].issue, Issue::Mode { .. }));
}

/// BEHAVIOURS 42.
#[test]
fn publishing_anothers_key_does_not_take_it_away_however_old_the_record() {
    let mut thief = record("ub", 1);
    thief.created = 1;
    let mut owner = record("ua", 0);
    owner.created = 1000;
    let nodes = [("a", node("ua", 1)), ("b", node("ub", 2))];
    let before = view(nodes.clone(), [("a", owner.clone()), ("b", thief.clone())]);
    let known = known_after(&before, &Known::default());

    thief.public_key = KEYS[0].to_owned();
    let after = view(nodes, [("a", owner), ("b", thief)]);
    assert_eq!(refused_keys(&after, &known), ["b"]);
    // Who knows neither believes the older record.
    assert_eq!(refused_keys(&after, &Known::default()), ["a"]);
    // What was refused is not known, so that the thief stays one.
    let known = known_after(&after, &known);
    assert_eq!(refused_keys(&after, &known), ["b"]);
}

/// BEHAVIOURS 42.
#[test]
fn of_two_newcomers_with_one_prefix_the_older_record_stays() {
    let mut old = record("ub", 1);
    old.created = 5;
    let mut young = record("ua", 0);
    young.created = 6;
    let view = view(
        [("a", node("ua", 3)), ("b", node("ub", 3))],
        [("a", young), ("b", old)],
    );
    let entries = view.directory(&settings(), &Known::default());
    let refused: Vec<(String, Option<Field>)> = entries
        .directory
        .review()
        .into_iter()
        .filter(|problem| problem.severity() == Severity::Error)
        .map(|problem| (problem.subject.place.to_string(), problem.subject.field))
        .collect();
    assert!(!refused.is_empty());
    for (place, field) in refused {
        assert_eq!(place, "node \"a\"");
        assert!(matches!(field, Some(Field::Prefixes | Field::Addresses)));
    }
}

/// BEHAVIOURS 39: an emptied API cuts no node off whose Node is still there.
#[test]
fn a_record_that_goes_takes_nothing_away_while_its_node_stays() {
    let nodes = [("a", node("ua", 1)), ("b", node("ub", 2))];
    let full = view(
        nodes.clone(),
        [("a", record("ua", 0)), ("b", record("ub", 1))],
    );
    let known = known_after(&full, &Known::default());
    let emptied = view(nodes, []);
    let entries = emptied.directory(&settings(), &known);
    let kept = full.directory(&settings(), &known).directory;
    for name in ["a", "b"].map(name) {
        let (now, before) = (&entries.directory.nodes[&name], &kept.nodes[&name]);
        assert_eq!(now.public_key, before.public_key);
        assert_eq!(now.endpoints, before.endpoints);
    }
    assert!(
        entries
            .findings
            .iter()
            .all(|finding| finding.issue == Issue::RecordGone)
    );
    // For any number of times.
    let known = known_after(&emptied, &known);
    assert_eq!(
        emptied.directory(&settings(), &known).directory,
        entries.directory
    );
}

/// BEHAVIOURS 44.
#[test]
fn a_node_made_anew_under_its_name_is_another_and_inherits_nothing() {
    let before = view([("a", node("ua", 1))], [("a", record("ua", 0))]);
    let known = known_after(&before, &Known::default());
    let anew = view([("a", node("other", 1))], []);
    let entries = anew.directory(&settings(), &known);
    assert_eq!(key_of(&entries.directory.nodes[&name("a")]), None);
}

/// BEHAVIOURS 39.
#[test]
fn a_view_takes_peers_away_only_when_whole_and_of_this_cluster_with_this_node_in_it() {
    let identity = Identity {
        cluster: "cluster".to_owned(),
        node: name("a"),
        uid: "ua".to_owned(),
    };
    let whole = view([("a", node("ua", 1))], []);
    assert_eq!(whole.trust(&identity), Ok(()));

    let partial = |change: fn(&mut View)| {
        let mut view = whole.clone();
        change(&mut view);
        view.trust(&identity)
    };
    assert_eq!(
        partial(|view| view.cluster = None),
        Err(Distrust::Partial("namespaces"))
    );
    assert_eq!(
        partial(|view| view.nodes = None),
        Err(Distrust::Partial("nodes"))
    );
    assert_eq!(
        partial(|view| view.records = None),
        Err(Distrust::Partial("meshnodes"))
    );
    assert_eq!(
        partial(|view| view.nodes = Some(BTreeMap::new())),
        Err(Distrust::NotListed(name("a")))
    );
    let replaced = view([("a", node("other", 1))], []).trust(&identity);
    assert!(
        matches!(replaced, Err(Distrust::Replaced { .. })),
        "{replaced:?}"
    );
    let foreign = partial(|view| view.cluster = Some("other".to_owned()));
    assert!(
        matches!(foreign, Err(Distrust::Cluster { .. })),
        "{foreign:?}"
    );
}

#[test]
fn settings_that_cannot_be_used_are_refused_with_field_and_value() {
    let unusable = |change: fn(&mut MeshSpec)| {
        let mut spec = MeshSpec::default();
        change(&mut spec);
        Settings::of(&spec, 1420, Mode::Route).expect_err("it cannot be used")
    };
    let error = unusable(|spec| spec.pod_prefixes = vec!["10.244.0.0".to_owned()]);
    assert!(error.to_string().contains("spec.podPrefixes"), "{error}");
    assert!(error.to_string().contains("\"10.244.0.0\""), "{error}");
    let error = unusable(|spec| spec.enforcement = Enforcement::Strict);
    assert_eq!(error, SettingsError::NoPrefixes);
}

proptest! {
    /// Whatever the records say, each node has the prefixes of its own `Node`, endpoints of its own or
    /// allowed ones, and a key only from a record of its uid.
    #[test]
    fn no_record_moves_a_prefix_or_aims_at_a_third_party(
        records in proptest::collection::btree_map(0..6u8, any_record(), 0..6),
    ) {
        let nodes = (0..4u8).map(|i| (format!("n{i}"), node(&format!("u{i}"), i)));
        let mut settings = settings();
        settings.allowed_endpoints = vec![prefix("203.0.113.0/28")];
        let view = View {
            cluster: Some("cluster".to_owned()),
            nodes: Some(nodes.collect()),
            records: Some(
                records.iter().map(|(i, record)| (format!("n{i}"), Ok(record.clone()))).collect(),
            ),
            ..View::default()
        };
        let entries = view.directory(&settings, &Known::default());
        prop_assert_eq!(entries.directory.nodes.len(), 4);
        for i in 0..4u8 {
            let found = &entries.directory.nodes[&name(&format!("n{i}"))];
            let facts = node(&format!("u{i}"), i);
            prop_assert_eq!(&found.prefixes, &facts.pod_cidrs);
            for endpoint in &found.endpoints {
                let warren_mesh::Host::Address(address) = endpoint.host else {
                    return Err(TestCaseError::fail("a name"));
                };
                prop_assert!(
                    facts.addresses.contains(&address)
                        || settings.allowed_endpoints[0].contains(&address)
                );
            }
            let record = records.get(&i).filter(|record| record.node_uid == facts.uid);
            if record.is_none() {
                prop_assert_eq!(found.public_key, None);
            } else {
                prop_assert!(!found.endpoints.is_empty());
            }
        }
    }

    /// One changed node changes no other's entry.
    #[test]
    fn a_changed_record_changes_one_entry(
        records in proptest::collection::vec(any_record(), 4),
        changed in any_record(),
        which in 0..4usize,
    ) {
        let build = |records: &[Record]| {
            let nodes = (0..4u8).map(|i| (format!("n{i}"), node(&format!("u{i}"), i)));
            let records = records.iter().enumerate();
            let view = View {
                cluster: Some("cluster".to_owned()),
                nodes: Some(nodes.collect()),
                records: Some(records.map(|(i, record)| (format!("n{i}"), Ok(record.clone()))).collect()),
                ..View::default()
            };
            view.directory(&settings(), &Known::default()).directory
        };
        let before = build(&records);
        let mut records = records;
        records[which] = changed;
        let after = build(&records);
        for i in (0..4).filter(|i| *i != which) {
            let name = name(&format!("n{i}"));
            prop_assert_eq!(&before.nodes[&name], &after.nodes[&name]);
        }
    }

    /// A book says and believes what the directory made anew and its review do, step by step; and so does the
    /// plan that follows it, of a mesh that is strict, staged with something reached, or wrapped.
    #[test]
    fn a_book_and_its_plan_are_what_is_made_anew_and_believe_the_same(
        steps in proptest::collection::vec((0..5u8, 0..5u8, any_record(), 0..4u8), 1..16),
        settings in proptest::sample::select(vec![
            settings_as(Planned::Strict), settings_as(Planned::Staged), settings_as(Planned::Overlay),
        ]),
        latched in proptest::collection::btree_set(0..4u8, 0..3),
    ) {
        let this = "n0".parse::<NodeName>().expect("a name");
        let secrets = Secrets { private_key: Some(PRIVATE.parse().expect("a key")), ..Secrets::default() };
        let public = secrets.private_key.as_ref().expect("it is there").public();
        let mut own = record("u0", 0);
        own.mode = settings.mode;
        let mut view = view([("n0", node("u0", 9))], [("n0", own)]);
        let (underlay, resolved) = (Underlay::default(), Resolved::new());
        let steered: BTreeSet<IpNet> = latched.iter().flat_map(|number| node("", *number).pod_cidrs).collect();
        let mut kept = Known::default();
        let mut book = Book::new(&view, settings.clone(), Some((this.clone(), public)), &mut kept);
        let mut known = kept.clone();
        let mut followed = book.reviewed()
            .plan(&this, &resolved, &secrets, &underlay, &steered)
            .expect("a plan");
        for (name, kind, record, number) in steps {
            let name = format!("n{name}");
            let record = Record { mode: if number == 3 { record.mode } else { settings.mode }, ..record };
            let nodes = view.nodes.as_mut().expect("there are");
            let records = view.records.as_mut().expect("there are");
            match kind {
                0 => drop(nodes.insert(name.clone(), node(&record.node_uid, number))),
                1 if name != "n0" => drop(nodes.remove(&name)),
                1 | 2 => drop(records.remove(&name)),
                // A record of the node that there is, so that keys are contested.
                3 => {
                    let uid = nodes.entry(name.clone()).or_insert_with(|| node("u9", number)).uid.clone();
                    let node_uid = uid;
                    drop(records.insert(name.clone(), Ok(Record { node_uid, ..record })));
                }
                _ => drop(records.insert(name.clone(), Ok(record))),
            }
            let affected = book.update(&view, &mut kept, [&name]);
            let mut entries = view.directory(&settings, &known);
            entries.directory.nodes.get_mut(&this).expect("it is there").public_key = Some(public);
            known = Known::after(&entries.directory, &entries.uids);
            prop_assert_eq!(book.reviewed().directory(), &entries.directory);
            prop_assert_eq!(book.uids(), &entries.uids);
            prop_assert_eq!(book.findings().cloned().collect::<Vec<_>>(), entries.findings);
            prop_assert_eq!(&kept, &known);

            let anew = plan(&entries.directory, &this, &resolved, &secrets, &underlay, &steered);
            let anew = anew.expect("a plan");
            let before = followed.clone();
            match book.reviewed().replan(&mut followed, &affected, &underlay, &steered) {
                Some(step) => {
                    prop_assert_eq!(&followed, &anew);
                    let mut device = before.device;
                    device.apply(&step.device);
                    prop_assert_eq!(&device, &anew.device);
                }
                None => {
                    prop_assert_eq!(&followed, &before);
                    prop_assert!(affected.contains(&this), "only this node itself is about all: {:?}", affected);
                    followed = anew;
                }
            }
        }
    }

    /// Whoever is believed stays believed, whatever the others publish later.
    #[test]
    fn no_later_record_of_others_takes_a_known_key_away(
        later in proptest::collection::vec(any_record(), 3),
    ) {
        let mut owner = record("u0", 0);
        owner.created = 1_000_000;
        let nodes: Vec<(String, NodeFacts)> =
            (0..4u8).map(|i| (format!("n{i}"), node(&format!("u{i}"), i))).collect();
        let view = |others: &[Record]| View {
            cluster: Some("cluster".to_owned()),
            nodes: Some(nodes.iter().cloned().collect()),
            records: Some(
                std::iter::once(&owner)
                    .chain(others)
                    .enumerate()
                    .map(|(i, record)| (format!("n{i}"), Ok(record.clone())))
                    .collect(),
            ),
            ..View::default()
        };
        let known = known_after(&view(&[]), &Known::default());
        prop_assert!(!refused_keys(&view(&later), &known).contains(&"n0".to_owned()));
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    let uid = (0..6u8).prop_map(|i| format!("u{i}"));
    let key = proptest::sample::select(KEYS.to_vec());
    let addresses = [
        "192.0.2.1",
        "198.51.100.9",
        "203.0.113.7",
        "203.0.113.99",
        "10.244.1.1",
    ];
    let endpoints = proptest::sample::subsequence(addresses.to_vec(), 0..=addresses.len());
    (uid, key, endpoints, 0..100i64).prop_map(|(uid, key, endpoints, created)| Record {
        created,
        public_key: key.to_owned(),
        endpoints: endpoints.into_iter().map(address).collect(),
        ..record(&uid, 0)
    })
}

/// What a plan is made for.
#[derive(Clone, Copy, PartialEq)]
enum Planned {
    Strict,
    Staged,
    Overlay,
}

fn settings_as(planned: Planned) -> Settings {
    let spec = MeshSpec {
        pod_prefixes: vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()],
        enforcement: match planned {
            Planned::Staged => Enforcement::Staged,
            Planned::Strict | Planned::Overlay => Enforcement::Strict,
        },
        mode: Some(match planned {
            Planned::Overlay => Mode::Overlay,
            Planned::Strict | Planned::Staged => Mode::Route,
        }),
        ..MeshSpec::default()
    };
    Settings::of(&spec, 1420, Mode::Route).expect("they can be used")
}

fn settings() -> Settings {
    let spec = MeshSpec {
        pod_prefixes: vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()],
        ..MeshSpec::default()
    };
    Settings::of(&spec, 1420, Mode::Route).expect("they can be used")
}

/// A node with the prefixes of this number.
fn node(uid: &str, number: u8) -> NodeFacts {
    NodeFacts {
        uid: uid.to_owned(),
        pod_cidrs: vec![
            prefix(&format!("10.244.{number}.0/24")),
            prefix(&format!("fd00:10:244:{number}::/64")),
        ],
        addresses: vec![address("192.0.2.1"), address("2001:db8::1")],
        ready: true,
        ..NodeFacts::default()
    }
}

fn record(uid: &str, key: usize) -> Record {
    Record {
        node_uid: uid.to_owned(),
        created: 10,
        public_key: KEYS[key].to_owned(),
        endpoints: Vec::new(),
        port: 51820,
        mode: Mode::Route,
        epoch: 1,
        progress: Progress::default(),
        fenced: None,
    }
}

fn view<const N: usize, const M: usize>(
    nodes: [(&str, NodeFacts); N],
    records: [(&str, Record); M],
) -> View {
    View {
        cluster: Some("cluster".to_owned()),
        nodes: Some(nodes.map(|(name, node)| (name.to_owned(), node)).into()),
        records: Some(
            records
                .map(|(name, record)| (name.to_owned(), Ok(record)))
                .into(),
        ),
        ..View::default()
    }
}

fn known_after(view: &View, known: &Known) -> Known {
    let entries = view.directory(&settings(), known);
    Known::after(&entries.directory, &entries.uids)
}

/// The nodes whose key is another's.
fn refused_keys(view: &View, known: &Known) -> Vec<String> {
    let problems = view.directory(&settings(), known).directory.review();
    let mut refused = Vec::new();
    for problem in problems {
        if let (Cause::DuplicateKey { .. }, Place::Node(name)) =
            (problem.cause, problem.subject.place)
        {
            refused.push(name.to_string());
        }
    }
    refused
}

fn key_of(node: &Node) -> Option<String> {
    node.public_key.map(|key| key.to_string())
}

fn endpoints_of(node: &Node) -> Vec<String> {
    let at = |endpoint: &warren_mesh::Endpoint| match endpoint.host {
        warren_mesh::Host::Address(address) => endpoint.at(address, 0).to_string(),
        warren_mesh::Host::Name(_) => panic!("a name"),
    };
    node.endpoints.iter().map(at).collect()
}

fn texts(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn prefix(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}
