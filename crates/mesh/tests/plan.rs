//! What one node should be, given all of them.

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::{key, name, parse, private, sentences, three};
use ipnet::IpNet;
use warren_config::PresharedKey;
use warren_mesh::{
    Cause, Description, Directory, KeyFile, Plan, PlanError, Resolved, Secrets, Severity, Underlay,
    plan, wg_quick,
};

#[test]
fn a_peer_carries_its_addresses_and_prefixes_and_is_called_where_it_says() {
    let plan = plan_of(&directory(), "hut", 1);
    let barn = &plan.device.peers[&key(2)];
    assert_eq!(barn.allowed_ips, nets(&["10.77.0.2/32", "10.77.2.0/24"]));
    assert_eq!(
        barn.endpoints,
        ["198.51.100.9:51820".parse().expect("an address")]
    );
    assert_eq!(barn.persistent_keepalive, 0);
    assert_eq!(plan.device.listen_port, 51820);
    assert_eq!(plan.device.private_key, Some(private(1)));
    assert_eq!(plan.host.addresses, addresses(&["10.77.0.1", "fd77::1"]));
    assert_eq!(plan.host.routes, barn.allowed_ips);
    assert_eq!(
        plan.host.fence.local,
        nets(&["10.77.0.1/32", "fd77::1/128"])
    );
}

#[test]
fn a_node_without_a_key_is_fenced_and_no_peer() {
    let plan = plan_of(&directory(), "hut", 1);
    assert_eq!(plan.device.peers.len(), 1);
    assert_eq!(plan.peers[&name("laptop")].public_key, None);
    assert_eq!(plan.host.fence.mesh, nets(&["10.77.0.0/16", "fd77::/48"]));
    let laptop: IpAddr = "10.77.0.3".parse().expect("an address");
    assert!(plan.host.fence.mesh.iter().any(|net| net.contains(&laptop)));
    assert!(!plan.host.routes.iter().any(|net| net.contains(&laptop)));
}

#[test]
fn a_node_without_an_endpoint_keeps_alive_to_those_that_have_one() {
    let mut directory = directory();
    directory
        .nodes
        .entry(name("laptop"))
        .and_modify(|laptop| laptop.public_key = Some(key(3)));
    let phone = warren_mesh::Node {
        public_key: Some(key(4)),
        addresses: vec!["10.77.0.4".parse().expect("an address")],
        ..warren_mesh::Node::default()
    };
    directory.nodes.insert(name("phone"), phone);

    let laptop = plan_of(&directory, "laptop", 3);
    assert_eq!(laptop.device.peers[&key(1)].persistent_keepalive, 25);
    assert_eq!(laptop.device.peers[&key(2)].persistent_keepalive, 25);
    assert_eq!(laptop.device.peers[&key(4)].persistent_keepalive, 0);
    let hut = plan_of(&directory, "hut", 1);
    assert_eq!(hut.device.peers[&key(3)].persistent_keepalive, 0);

    for (keepalive, expected) in [(0, 0), (7, 7)] {
        let node = directory.nodes.get_mut(&name("laptop")).expect("a node");
        node.keepalive = Some(keepalive);
        let laptop = plan_of(&directory, "laptop", 3);
        assert_eq!(laptop.device.peers[&key(1)].persistent_keepalive, expected);
    }
}

#[test]
fn a_pair_without_an_endpoint_is_unreachable_from_both_sides() {
    let mut directory = directory();
    directory
        .nodes
        .entry(name("barn"))
        .and_modify(|barn| barn.endpoints.clear());
    directory
        .nodes
        .entry(name("laptop"))
        .and_modify(|laptop| laptop.public_key = Some(key(3)));
    for (this, other, number) in [("barn", "laptop", 2), ("laptop", "barn", 3)] {
        let plan = plan_of(&directory, this, number);
        assert!(plan.peers[&name(other)].unreachable);
        assert!(!plan.peers[&name("hut")].unreachable);
        assert!(
            sentences(&plan.problems).contains(
                "node \"barn\", endpoints: neither it nor \"laptop\" has an endpoint, so that they \
                 cannot reach each other"
            ),
            "{}",
            sentences(&plan.problems)
        );
    }
}

#[test]
fn endpoints_are_candidates_in_their_order_and_names_become_addresses() {
    let mut resolved = Resolved::new();
    let host = "hut.example.org".parse().expect("a name");
    assert_eq!(
        directory().host_names(&name("barn")),
        BTreeSet::from([&host])
    );
    assert!(
        directory().host_names(&name("hut")).is_empty(),
        "one's own name is not asked for"
    );

    let barn = plan_with(&directory(), "barn", &resolved, &secrets(2));
    assert_eq!(
        barn.device.peers[&key(1)].endpoints,
        ["192.0.2.7:51821".parse().expect("one")]
    );
    assert!(sentences(&barn.problems).contains(
        "node \"hut\", endpoints: no address of \"hut.example.org\" is known yet; it is asked for \
         again until there is one"
    ));

    resolved.insert(host, addresses(&["2001:db8::7", "203.0.113.7"]));
    let barn = plan_with(&directory(), "barn", &resolved, &secrets(2));
    let endpoints: Vec<String> = (barn.device.peers[&key(1)].endpoints.iter())
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        endpoints,
        [
            "203.0.113.7:51820",
            "[2001:db8::7]:51820",
            "192.0.2.7:51821"
        ]
    );
    assert!(errors(&barn).is_empty());
}

#[test]
fn a_name_that_leads_to_a_victim_or_into_the_mesh_is_left_out_and_named() {
    let host = "hut.example.org".parse().expect("a name");
    let lies = addresses(&[
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "10.77.0.1",
        "::ffff:127.0.0.1",
        "fe80::1",
    ]);
    let barn = plan_with(&directory(), "barn", &[(host, lies)].into(), &secrets(2));
    assert_eq!(
        barn.device.peers[&key(1)].endpoints,
        ["192.0.2.7:51821".parse().expect("one")]
    );
    let problems = sentences(&barn.problems);
    assert!(
        problems.contains(
            "node \"hut\", endpoints: \"hut.example.org\" is at 10.77.0.1, which is inside the \
             mesh's own prefix \"10.77.0.0/16\" and is left out; let the name lead to an address \
             that other nodes can reach"
        ),
        "{problems}"
    );
    assert_eq!(problems.matches("is left out").count(), 8);
    assert!(errors(&barn).is_empty(), "what DNS says refuses no file");
}

#[test]
fn a_resolver_does_not_decide_how_many_candidates_there_are() {
    let host = "hut.example.org".parse().expect("a name");
    let many = (0..=255).map(|i| IpAddr::from([203, 0, 113, i])).collect();
    let barn = plan_with(&directory(), "barn", &[(host, many)].into(), &secrets(2));
    assert_eq!(barn.device.peers[&key(1)].endpoints.len(), 9);
}

#[test]
fn a_pair_has_its_own_preshared_key_and_others_the_mesh_s() {
    let (directory, mut secrets) = preshared();
    let plan = plan_with(&directory, "hut", &Resolved::new(), &secrets);
    assert_eq!(plan.device.peers[&key(2)].preshared_key, psk(21));
    assert_eq!(plan.device.peers[&key(3)].preshared_key, psk(20));
    let wanted: Vec<&str> = directory
        .key_files(&name("hut"))
        .iter()
        .map(|file| file.0.as_str())
        .collect();
    assert_eq!(wanted, ["hut-barn.psk", "mesh.psk"]);

    // Without its key a pair is fenced, and does not go on with less.
    secrets
        .preshared_keys
        .remove(&KeyFile("hut-barn.psk".to_owned()));
    let plan = plan_with(&directory, "hut", &Resolved::new(), &secrets);
    assert!(!plan.device.peers.contains_key(&key(2)));
    assert_eq!(plan.peers[&name("barn")].public_key, None);
    assert_eq!(plan.device.peers[&key(3)].preshared_key, psk(20));
    assert_eq!(plan.host.routes, nets(&["10.77.0.3/32"]));
    assert_eq!(
        errors(&plan),
        [
            "pair \"barn\" and \"hut\", preshared_key_file: the preshared key \"hut-barn.psk\" \
             could not be read, and the pair is fenced; put the key where both nodes read it"
        ]
    );
}

#[test]
fn a_private_key_that_is_another_s_is_not_used() {
    // A cloned disk would take its origin's traffic away.
    let plan = plan_of(&directory(), "hut", 2);
    assert_eq!(plan.device.private_key, None);
    assert_eq!(
        errors(&plan),
        [format!(
            "node \"hut\", public_key: the private key on this node is that of node \"barn\", \
             \"{}\", and is not used; start with the right name, or make a new key",
            key(2)
        )]
    );
    let plan = plan_of(&directory(), "hut", 9);
    assert_eq!(plan.device.private_key, None);
    assert_eq!(
        errors(&plan),
        [format!(
            "node \"hut\", public_key: the private key on this node belongs to \"{}\" and is not \
             used; write this public key, or bring the private key that belongs to the one written",
            key(9)
        )]
    );
    // The laptop has no key in the file yet: a new one is used, but not another node's.
    assert_eq!(
        plan_of(&directory(), "laptop", 3).device.private_key,
        Some(private(3))
    );
    assert_eq!(plan_of(&directory(), "laptop", 1).device.private_key, None);
}

#[test]
fn a_node_that_the_directory_does_not_know_has_no_plan() {
    let error = plan(
        &directory(),
        &name("bran"),
        &Resolved::new(),
        &secrets(1),
        &Underlay::default(),
        &BTreeSet::new(),
    );
    let error = error.expect_err("there is no such node");
    assert_eq!(
        error.to_string(),
        "there is no node \"bran\" in the mesh; did you mean \"barn\"?"
    );
}

#[test]
fn a_mesh_that_is_wrong_has_no_plan_so_that_the_old_one_stays() {
    let mut directory = directory();
    directory
        .mesh
        .prefixes
        .push("0.0.0.0/0".parse().expect("a prefix"));
    directory.mesh.port = 0;
    let none = plan(
        &directory,
        &name("hut"),
        &Resolved::new(),
        &secrets(1),
        &Underlay::default(),
        &BTreeSet::new(),
    );
    match none.expect_err("the mesh is wrong") {
        PlanError::Mesh(problems) => assert_eq!(problems.len(), 2),
        other => panic!("{other}"),
    }
}

#[test]
fn one_bad_node_of_a_directory_is_a_problem_and_never_a_failure_of_the_mesh() {
    let good = plan_of(&directory(), "hut", 1);
    let mut directory = directory();
    let mut bad = directory.nodes[&name("barn")].clone();
    bad.seniority = 1;
    bad.endpoints = vec![
        "127.0.0.1".parse().expect("one"),
        "192.0.2.99".parse().expect("one"),
    ];
    bad.addresses
        .push("10.77.0.77".parse().expect("an address"));
    bad.prefixes.push("0.0.0.0/0".parse().expect("a prefix"));
    bad.prefixes.push("10.77.0.0/23".parse().expect("a prefix"));
    directory.nodes.insert(name("anton"), bad);
    let plan = plan_of(&directory, "hut", 1);
    assert_eq!(
        plan.device, good.device,
        "another's key, address and prefix are not for the taking"
    );
    assert_eq!(plan.host, good.host);
    assert_eq!(plan.peers[&name("anton")].public_key, None);
    assert_eq!(errors(&plan).len(), 6);
}

#[test]
fn of_two_that_claim_a_key_or_prefix_the_senior_keeps_it() {
    for (first, second, holder) in [(0, 1, "barn"), (1, 0, "thief"), (0, 0, "barn")] {
        let mut directory = directory();
        let mut thief = directory.nodes[&name("barn")].clone();
        thief.seniority = second;
        directory
            .nodes
            .entry(name("barn"))
            .and_modify(|barn| barn.seniority = first);
        directory.nodes.insert(name("thief"), thief);
        let plan = plan_of(&directory, "hut", 1);
        assert_eq!(plan.device.peers.len(), 1);
        assert_eq!(
            plan.peers[&name(holder)].public_key,
            Some(key(2)),
            "{first} {second}"
        );
        assert_eq!(
            plan.device.peers[&key(2)].allowed_ips,
            nets(&["10.77.0.2/32", "10.77.2.0/24"])
        );
    }
}

#[test]
fn a_prefix_that_covers_what_the_host_needs_is_an_error_and_opens_no_fence() {
    let underlay = Underlay {
        addresses: addresses(&["10.77.99.5", "192.168.1.5", "10.77.0.1"]),
        gateways: addresses(&["10.77.99.1", "192.168.1.1"]),
        resolvers: addresses(&["10.77.99.2", "127.0.0.53", "10.77.0.2"]),
        api_servers: BTreeSet::new(),
    };
    let plan = plan(
        &directory(),
        &name("hut"),
        &Resolved::new(),
        &secrets(1),
        &underlay,
        &BTreeSet::new(),
    );
    let plan = plan.expect("a plan");
    let covers = |address: &str, what: &str| {
        format!(
            "[mesh], prefixes: \"10.77.0.0/16\" covers {address}, {what} of this host, which would \
             be cut off; narrow the prefix"
        )
    };
    assert_eq!(
        errors(&plan),
        [
            covers("10.77.99.5", "an address"),
            covers("10.77.99.1", "the default gateway"),
            covers("10.77.99.2", "a name server"),
        ],
        "its own address in the mesh, and a name server that is a node, are as they should be"
    );
    assert_eq!(plan.host.fence.mesh, nets(&["10.77.0.0/16", "fd77::/48"]));
}

#[test]
fn a_name_server_inside_the_mesh_is_an_error_for_whoever_needs_it_to_find_the_mesh() {
    let underlay = Underlay {
        resolvers: addresses(&["10.77.0.1"]),
        ..Underlay::default()
    };
    let plan = plan(
        &directory(),
        &name("barn"),
        &Resolved::new(),
        &secrets(2),
        &underlay,
        &BTreeSet::new(),
    );
    let plan = plan.expect("a plan");
    assert!(matches!(
        plan.problems.iter().find(|problem| problem.severity() == Severity::Error),
        Some(problem) if matches!(problem.cause, Cause::Covers { what: "a name server", .. })
    ));
}

#[test]
fn a_difference_says_what_changes_and_nothing_of_secrets() {
    let before = Description::of(&plan_of(&directory(), "hut", 1));
    assert_eq!(
        Description::of(&plan_of(&directory(), "hut", 1)).since(&before),
        []
    );

    let (mut directory, secrets) = preshared();
    directory.mesh.mtu = 1400;
    let barn = directory.nodes.get_mut(&name("barn")).expect("a node");
    barn.endpoints.push("203.0.113.1:1".parse().expect("one"));
    barn.prefixes.clear();
    let after = Description::of(&plan_with(&directory, "hut", &Resolved::new(), &secrets));
    let difference = sentences(&after.since(&before));
    let key3 = key(3);
    let (shown, fingerprints): (Vec<&str>, Vec<&str>) = difference
        .lines()
        .partition(|line| !line.contains("fingerprint"));
    assert_eq!(
        shown.join("\n"),
        format!(
            "  interface warren0\n\
             -     MTU 1420\n\
             +     MTU 1400\n\
             \x20 routing table 51880\n\
             -     10.77.2.0/24 into the tunnel\n\
             +     10.77.0.3/32 into the tunnel\n\
             \x20 peer barn\n\
             -     carries 10.77.2.0/24\n\
             +     endpoint 203.0.113.1:1, after 1 without an answer\n\
             \x20 peer laptop\n\
             -     fenced: nothing is sent to it\n\
             +     public key {key3}\n\
             +     carries 10.77.0.3/32"
        )
    );
    assert_eq!(fingerprints.len(), 2);
    for secret in [psk(20), psk(21)] {
        let secret = secret.expect("a key");
        assert!(!difference.contains(&secret.to_base64()));
    }
    assert!(!difference.contains(&private(1).to_base64()));
}

#[test]
fn the_first_plan_is_all_new() {
    let plan = plan_of(&directory(), "barn", 2);
    let lines = Description::of(&plan).since(&Description::default());
    assert!(
        lines
            .iter()
            .all(|line| line.mark == warren_mesh::Mark::Added)
    );
    assert_eq!(lines[0].to_string(), "+ interface warren0");
    assert_eq!(lines[1].to_string(), format!("+     public key {}", key(2)));
}

#[test]
fn an_export_is_the_plan_in_the_words_of_wg_quick() {
    let (mut directory, mut secrets) = preshared();
    let phone = warren_mesh::Node {
        addresses: vec!["10.77.0.9".parse().expect("an address")],
        ..warren_mesh::Node::default()
    };
    directory.nodes.insert(name("phone"), phone);
    directory
        .nodes
        .entry(name("barn"))
        .and_modify(|barn| barn.public_key = None);
    secrets.private_key = None;
    let (hut, mesh_psk) = (key(1), psk(20).expect("a key").to_base64());
    assert_eq!(
        wg_quick(&directory, &name("phone"), &secrets).expect("an export"),
        format!(
            "# Node phone of mesh home. Without Warren nothing is fenced: while this\n\
             # tunnel is down, what is meant for the mesh may leave in the clear.\n\
             [Interface]\n\
             PrivateKey = (write here the private key of phone)\n\
             Address = 10.77.0.9/32\n\
             MTU = 1420\n\
             \n\
             # barn is left out: it has no key yet.\n\
             \n\
             # hut\n\
             [Peer]\n\
             PublicKey = {hut}\n\
             PresharedKey = {mesh_psk}\n\
             AllowedIPs = 10.77.0.1/32, fd77::1/128\n\
             Endpoint = hut.example.org:51820\n\
             # or: Endpoint = 192.0.2.7:51821\n\
             PersistentKeepalive = 25\n\
             \n\
             # laptop is left out: neither side has an endpoint.\n"
        )
    );
    secrets.private_key = Some(private(7));
    let text = wg_quick(&directory, &name("phone"), &secrets).expect("an export");
    assert!(text.contains(&format!("PrivateKey = {}\n", private(7).to_base64())));

    secrets.preshared_keys.clear();
    let error = wg_quick(&directory, &name("phone"), &secrets).expect_err("a key is missing");
    assert_eq!(
        error.to_string(),
        "[mesh], preshared_key_file: the preshared key \"mesh.psk\" could not be read, and the \
         pair is fenced; put the key where both nodes read it"
    );
}

#[test]
fn a_free_address_is_the_first_that_nobody_claims() {
    let mut directory = directory();
    let free = |directory: &Directory| -> Vec<String> {
        directory
            .free_addresses()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(free(&directory), ["10.77.0.4", "fd77::2"]);
    directory.mesh.prefixes = [
        "10.77.2.0/24",
        "10.77.0.0/30",
        "10.77.0.2/31",
        "10.77.3.0/24",
    ]
    .map(|net| net.parse().expect(net))
    .to_vec();
    assert_eq!(free(&directory), ["10.77.3.1"], "the others are full");
    directory.mesh.prefixes = vec!["255.255.255.252/30".parse().expect("a prefix")];
    assert_eq!(free(&directory), ["255.255.255.253"]);
}

fn directory() -> Directory {
    parse(&three()).directory
}

/// Three nodes with keys; hut and barn share a preshared key of their own.
fn preshared() -> (Directory, Secrets) {
    let text = three()
        .replace(
            "name = \"home\"",
            "name = \"home\"\npreshared_key_file = \"mesh.psk\"",
        )
        .replace(
            "addresses = \"10.77.0.3\"",
            &format!("addresses = \"10.77.0.3\"\npublic_key = \"{}\"", key(3)),
        )
        + "[[pair]]\nnodes = [\"hut\", \"barn\"]\npreshared_key_file = \"hut-barn.psk\"\n";
    let mut secrets = secrets(1);
    for (file, number) in [("mesh.psk", 20), ("hut-barn.psk", 21)] {
        let psk = psk(number).expect("a key");
        secrets.preshared_keys.insert(KeyFile(file.to_owned()), psk);
    }
    (parse(&text).directory, secrets)
}

fn psk(number: u8) -> Option<PresharedKey> {
    PresharedKey::from_bytes([number; 32])
}

fn secrets(number: u8) -> Secrets {
    Secrets {
        private_key: Some(private(number)),
        ..Secrets::default()
    }
}

fn plan_of(directory: &Directory, this: &str, number: u8) -> Plan {
    plan_with(directory, this, &Resolved::new(), &secrets(number))
}

fn plan_with(directory: &Directory, this: &str, resolved: &Resolved, secrets: &Secrets) -> Plan {
    plan(
        directory,
        &name(this),
        resolved,
        secrets,
        &Underlay::default(),
        &BTreeSet::new(),
    )
    .expect("a plan")
}

fn errors(plan: &Plan) -> Vec<String> {
    (plan.problems.iter())
        .filter(|problem| problem.severity() == Severity::Error)
        .map(ToString::to_string)
        .collect()
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}
