//! The document for people and the reader agree.

mod common;

use common::{parse, sentences};
use warren_mesh::{Field, Mesh};

const DOCUMENT: &str = include_str!("../../../docs/mesh-file.md");

#[test]
fn the_example_of_the_document_is_right_and_of_twenty_lines() {
    let (_, rest) = DOCUMENT.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    assert!(example.lines().count() <= 20);
    let file = parse(example);
    assert_eq!(file.directory.nodes.len(), 3);
    assert_eq!(file.warnings.len(), 1, "{}", sentences(&file.warnings));
}

#[test]
fn every_field_is_in_the_document_with_its_default() {
    let mesh = Mesh::default();
    let defaults = [
        (Field::Name, format!("`{:?}`", mesh.name)),
        (Field::Port, format!("`{}`", mesh.port)),
        (Field::Mtu, format!("`{}`", mesh.mtu)),
        (Field::Interface, format!("`{:?}`", mesh.interface)),
        (Field::Table, format!("`{}`", mesh.table)),
        (Field::RulePriority, format!("`{}`", mesh.rule_priority)),
        (Field::Fwmark, format!("`{:#x}`", mesh.fwmark)),
        (Field::PresharedKeyFile, "none".to_owned()),
    ];
    for (field, default) in defaults {
        let row = format!("| `{}` | {default} |", field.as_str());
        assert!(DOCUMENT.contains(&row), "{row}");
    }
    for field in [
        Field::PublicKey,
        Field::Endpoints,
        Field::Addresses,
        Field::Keepalive,
        Field::Nodes,
    ] {
        assert!(
            DOCUMENT.contains(&format!("| `{}` |", field.as_str())),
            "{field:?}"
        );
    }
}
