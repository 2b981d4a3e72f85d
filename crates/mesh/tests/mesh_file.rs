//! What a mesh file says, and the exact sentences about one that is wrong.

mod common;

use common::{key, name, parse, refusal, sentences, three};
use warren_mesh::{Host, KeyFile, Mesh, Severity};

#[test]
fn three_nodes_need_twenty_lines() {
    let file = parse(&three());
    assert!(three().lines().count() <= 20);
    let directory = file.directory;
    assert_eq!(directory.mesh.name, "home");
    assert_eq!(
        directory.mesh.prefixes,
        [
            "10.77.0.0/16".parse().expect("a prefix"),
            "fd77::/48".parse().expect("a prefix")
        ]
    );
    let hut = &directory.nodes[&name("hut")];
    assert_eq!(hut.public_key, Some(key(1)));
    assert_eq!(hut.endpoints.len(), 2);
    assert_eq!(hut.endpoints[1].port, Some(51821));
    assert!(
        matches!(&hut.endpoints[0].host, Host::Name(host) if host.as_str() == "hut.example.org")
    );
    let barn = &directory.nodes[&name("barn")];
    assert_eq!(barn.prefixes, ["10.77.2.0/24".parse().expect("a prefix")]);
}

#[test]
fn what_a_file_does_not_mention_has_a_default_that_works() {
    let file = parse("[mesh]\nprefixes = \"10.77.0.0/16\"\n");
    let mesh = file.directory.mesh;
    assert_eq!(
        mesh,
        Mesh {
            prefixes: mesh.prefixes.clone(),
            ..Mesh::default()
        }
    );
    assert_eq!((mesh.port, mesh.mtu), (51820, 1420));
}

#[test]
fn every_field_can_be_set() {
    let file = parse(&format!(
        r#"
        [mesh]
        name = "home"
        prefixes = "10.77.0.0/16"
        port = 4500
        mtu = 8920
        preshared_key_file = "mesh.psk"
        interface = "wn-home"
        table = 7777
        rule_priority = 120
        fwmark = 0xca7

        [[node]]
        name = "hut"
        public_key = "{}"
        addresses = "10.77.0.1"
        endpoints = "hut.example.org:1"
        keepalive = 15

        [[node]]
        name = "barn"
        addresses = "10.77.0.2"

        [[pair]]
        nodes = ["hut", "barn"]
        preshared_key_file = "/etc/warren/hut-barn.psk"
        "#,
        key(1)
    ));
    let directory = file.directory;
    let expected = Mesh {
        name: "home".to_owned(),
        port: 4500,
        mtu: 8920,
        prefixes: vec!["10.77.0.0/16".parse().expect("a prefix")],
        preshared_key: Some(KeyFile("mesh.psk".to_owned())),
        interface: "wn-home".to_owned(),
        table: 7777,
        rule_priority: 120,
        fwmark: 0xca7,
        ..Mesh::default()
    };
    assert_eq!(directory.mesh, expected);
    assert_eq!(directory.nodes[&name("hut")].keepalive, Some(15));
    assert_eq!(
        directory.key_file(&name("barn"), &name("hut")),
        Some(&KeyFile("/etc/warren/hut-barn.psk".to_owned()))
    );
}

#[test]
fn the_digest_is_that_of_b2sum_and_changes_with_every_byte() {
    // printf '[mesh]\nprefixes = "10.77.0.0/16"\n' | b2sum -l 256
    let text = "[mesh]\nprefixes = \"10.77.0.0/16\"\n";
    assert_eq!(
        parse(text).digest,
        "682dfb2982a24dfd4b168d012cef26afe3a7cdddd4a7db5d994bb208a688bbe5"
    );
    assert_ne!(
        parse(text).digest,
        parse(&format!("{text}# a comment\n")).digest
    );
}

#[test]
fn a_file_with_an_error_is_refused_whole() {
    // One wrong digit in one node, and nothing of the others is handed out.
    let text = three().replace("10.77.0.2", "10.78.0.2");
    assert_eq!(
        refusal(&text),
        "mesh.toml:15:13: error: node \"barn\", addresses: \"10.78.0.2\" is outside the mesh; \
         choose one inside the prefixes of [mesh]\n\
         mesh.toml:18:1: warning: node \"laptop\", public_key: there is none yet, and nothing is \
         sent to the node until there is; `warren init` on that node prints it"
    );
}

#[test]
fn all_problems_are_named_at_once_in_the_order_of_their_lines() {
    assert_eq!(
        refusal(include_str!("wrong.toml")),
        include_str!("wrong.txt").trim_end()
    );
}

#[test]
fn one_bracket_too_few_is_one_sentence() {
    let text = "[mesh]\nport = 99999\nprefixes = [\"10.77.0.0/16\"\nmtu = 1\nmtu = 2\n\n[[node]\nname = 5\n";
    assert_eq!(
        refusal(text),
        "mesh.toml:2:8: error: [mesh], port: 99999 is out of range; choose one from 1 to 65535, \
         as in 51820\n\
         mesh.toml:4:1: error: this is not TOML: missing comma between array elements, expected \
         `,`; what \
         follows could not be read"
    );
}

#[test]
fn a_field_given_twice_is_named_beside_the_rest() {
    let text = "[mesh]\nprefixes = \"10.77.0.0/16\"\nmtu = 1400\nmtu = 1420\nport = 0\n";
    assert_eq!(
        refusal(text),
        "mesh.toml:4:1: error: the field is given twice here; keep one of the two\n\
         mesh.toml:5:8: error: [mesh], port: 0 is out of range; choose one from 1 to 65535, as in \
         51820"
    );
}

#[test]
fn an_empty_file_is_told_how_to_begin() {
    assert_eq!(
        refusal(""),
        "mesh.toml: error: there is no [mesh]; begin with the lines [mesh] and prefixes = \
         [\"10.77.0.0/16\"]"
    );
}

#[test]
fn a_private_key_in_the_file_is_refused_and_not_repeated() {
    let secret = common::private(9).to_base64();
    let text = three().replace(
        "name = \"laptop\"",
        &format!("name = \"laptop\"\nprivate_key = \"{secret}\""),
    );
    let refusal = refusal(&text);
    assert!(
        refusal.contains(
            "mesh.toml:20:1: error: node \"laptop\": a private key never leaves its node; remove \
             \"private_key\", make a new key, and write the public_key that belongs to it"
        ),
        "{refusal}"
    );
    assert!(!refusal.contains(&secret));
}

#[test]
fn a_node_without_a_key_is_valid_and_named() {
    let file = parse(&three());
    assert_eq!(
        sentences(&file.warnings),
        "mesh.toml:18:1: warning: node \"laptop\", public_key: there is none yet, and nothing is \
         sent to the node until there is; `warren init` on that node prints it"
    );
}

#[test]
fn a_pair_without_an_endpoint_is_named_as_unreachable() {
    let text = format!(
        "{}\n[[node]]\nname = \"phone\"\npublic_key = \"{}\"\naddresses = \"10.77.0.4\"\n",
        three(),
        key(4)
    );
    let warnings = sentences(&parse(&text).warnings);
    assert!(
        warnings.contains(
            "mesh.toml:18:1: warning: node \"laptop\", endpoints: neither it nor \"phone\" has an \
             endpoint, so that they cannot reach each other; one of each two needs an endpoint"
        ),
        "{warnings}"
    );
    assert_eq!(warnings.lines().count(), 2);
}

#[test]
fn a_shared_endpoint_is_a_warning() {
    let text = three().replace("198.51.100.9", "192.0.2.7:51821");
    let file = parse(&text);
    assert!(
        file.warnings
            .iter()
            .all(|found| found.severity == Severity::Warning)
    );
    assert_eq!(
        sentences(&file.warnings[..1]),
        "mesh.toml:8:33: warning: node \"hut\", endpoints: \"192.0.2.7:51821\" is an endpoint of \
         node \"barn\" on line 14, too; only one of them can be reached there"
    );
}

#[test]
fn a_huge_number_of_nodes_behind_nat_is_named_in_bounded_space() {
    use std::fmt::Write as _;
    let mut text = "[mesh]\nprefixes = \"10.77.0.0/16\"\n".to_owned();
    for i in 0..2000 {
        let (high, low) = (i / 256, i % 256);
        let _infallible = write!(
            text,
            "[[node]]\nname = \"n{i:04}\"\naddresses = \"10.77.{high}.{low}\"\n"
        );
    }
    let warnings = parse(&text).warnings;
    assert_eq!(warnings.len(), 2000 + 1999);
    assert!(
        warnings[1].text.contains("\"n0006\" or any of 1993 others"),
        "{}",
        warnings[1]
    );
    assert!(warnings.iter().all(|found| found.text.len() < 300));
}
