//! A mesh of three to start from, and small helpers.
#![allow(dead_code, reason = "each test file uses some")]

use warren_config::{PrivateKey, PublicKey};
use warren_mesh::{MeshFile, NodeName};

/// Two houses that can be reached, and a laptop behind NAT that has no key yet.
pub(crate) fn three() -> String {
    format!(
        r#"[mesh]
name = "home"
prefixes = ["10.77.0.0/16", "fd77::/48"]

[[node]]
name = "hut"
public_key = "{}"
endpoints = ["hut.example.org", "192.0.2.7:51821"]
addresses = ["10.77.0.1", "fd77::1"]

[[node]]
name = "barn"
public_key = "{}"
endpoints = "198.51.100.9"
addresses = "10.77.0.2"
prefixes = "10.77.2.0/24"

[[node]]
name = "laptop"
addresses = "10.77.0.3"
"#,
        key(1),
        key(2),
    )
}

/// The private key of the node with this number.
pub(crate) fn private(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// The public key of the node with this number.
pub(crate) fn key(number: u8) -> PublicKey {
    private(number).public()
}

/// A name.
pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

/// A file that is right.
pub(crate) fn parse(text: &str) -> MeshFile {
    MeshFile::parse(text, "mesh.toml").unwrap_or_else(|problems| {
        panic!("{}", sentences(&problems));
    })
}

/// All that is wrong with a file, one sentence a line.
pub(crate) fn refusal(text: &str) -> String {
    let problems = MeshFile::parse(text, "mesh.toml").expect_err("the file is refused");
    sentences(&problems)
}

/// One sentence a line.
pub(crate) fn sentences(problems: &[impl ToString]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
