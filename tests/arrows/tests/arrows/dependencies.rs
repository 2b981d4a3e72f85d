//! The arrows between the crates of the workspace, read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::root;

/// What each crate may use of the others. A crate that is not named here fails the test, so that a
/// new one gets its place on purpose.
const ARROWS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("aead", &[]),
    ("packet", &[]),
    ("mesh", &["config"]),
    ("netlink", &["config"]),
    ("state", &["config"]),
    ("wireguard", &["config", "aead"]),
    ("tun", &["packet"]),
    ("udp", &["packet"]),
    ("k8s", &["mesh"]),
    ("engine", &["config", "wireguard", "packet", "tun", "udp"]),
    ("control", &["engine", "config"]),
];

/// What packages of a folder share: those that make namespaces, and the benches.
const SHARED: &[(&str, &str)] = &[
    ("tests/", "tests/lab"),
    ("tests/cluster", "tests/apiserver"),
    ("tests/cluster", "tests/mesh"),
    ("tests/cluster", "tests/simulation"),
    ("benches/", "benches"),
];

/// Async runtimes, and the only packages that may have one below them.
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "async-executor"];
const ASYNC: &[&str] = &["netlink", "k8s", "warrend", "warren"];

#[test]
fn crates_use_only_what_the_ground_plan_lets_them_use() {
    let members = members(&metadata());
    let mut wrong = Vec::new();
    for (package, member) in &members {
        let allowed: Option<BTreeSet<&str>> = match member.place.split('/').next() {
            Some("crates") => match ARROWS.iter().find(|(name, _)| *name == short(package)) {
                Some((_, allowed)) => Some(allowed.iter().copied().collect()),
                None => {
                    wrong.push(format!("{package} has no place in the ground plan"));
                    continue;
                }
            },
            // A command, a test package, a bench: any crate, but nothing outside of crates/, save what
            // the packages of its folder share.
            _ => None,
        };
        for used in &member.uses {
            let place = &members[used].place;
            let from_crates = place.starts_with("crates/");
            let shared =
                (SHARED.iter()).any(|(folder, of)| member.place.starts_with(folder) && place == of);
            let fine = (allowed.as_ref()).map_or(from_crates || shared, |allowed| {
                allowed.contains(short(used))
            });
            if !fine {
                wrong.push(format!("{package} -> {used}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that the ground plan does not have: {wrong:#?}"
    );
}

#[test]
fn an_async_runtime_is_below_nothing_but_the_daemon_and_what_talks_to_the_host() {
    let metadata = metadata();
    let members = members(&metadata);
    let graph = Graph::new(&metadata);
    let mut wrong = Vec::new();
    for (package, member) in &members {
        if ASYNC.contains(&short(package))
            || !["crates", "cmd"].contains(&member.place.split('/').next().unwrap_or(""))
        {
            continue;
        }
        for below in graph.below(&member.id) {
            if RUNTIMES.contains(&graph.names[&below].as_str()) {
                wrong.push(format!("{package} -> .. -> {}", graph.names[&below]));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "async runtimes where none may be: {wrong:#?}"
    );
}

#[test]
fn every_version_lives_in_the_root_manifest_and_every_member_keeps_the_lints() {
    let mut wrong = Vec::new();
    for (package, member) in members(&metadata()) {
        let path = root().join(&member.place).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).expect("a member has a manifest");
        let manifest: toml::Table = text.parse().expect("cargo has read it, too");
        if manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            != Some(&toml::Value::Boolean(true))
        {
            wrong.push(format!("{package} does not take the workspace's lints"));
        }
        let mut tables: Vec<&toml::Table> = vec![&manifest];
        if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
            tables.extend(targets.values().filter_map(toml::Value::as_table));
        }
        for table in tables {
            for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
                for (name, entry) in table
                    .get(kind)
                    .and_then(toml::Value::as_table)
                    .into_iter()
                    .flatten()
                {
                    if entry.get("workspace") != Some(&toml::Value::Boolean(true)) {
                        wrong.push(format!("{package} says by itself which {name} it takes"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A package of this workspace.
struct Member {
    id: String,
    /// Its folder, from the root on.
    place: String,
    /// The packages of this workspace that it depends on, for any purpose.
    uses: BTreeSet<String>,
}

fn members(metadata: &Value) -> BTreeMap<String, Member> {
    let ids: BTreeSet<&str> = array(&metadata["workspace_members"])
        .iter()
        .map(text)
        .collect();
    let folder = text(&metadata["workspace_root"]);
    let packages: Vec<&Value> = array(&metadata["packages"])
        .iter()
        .filter(|package| ids.contains(text(&package["id"])))
        .collect();
    let names: BTreeSet<&str> = packages
        .iter()
        .map(|package| text(&package["name"]))
        .collect();
    packages
        .iter()
        .map(|package| {
            let place = text(&package["manifest_path"])
                .strip_prefix(folder)
                .and_then(|path| path.strip_suffix("/Cargo.toml"))
                .expect("a member lies below the root");
            let uses = array(&package["dependencies"])
                .iter()
                .map(|dependency| text(&dependency["name"]))
                .filter(|name| names.contains(name))
                .map(str::to_owned)
                .collect();
            let member = Member {
                id: text(&package["id"]).to_owned(),
                place: place.trim_start_matches('/').to_owned(),
                uses,
            };
            (text(&package["name"]).to_owned(), member)
        })
        .collect()
}

/// The resolved graph without what only tests use.
struct Graph {
    names: BTreeMap<String, String>,
    edges: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn new(metadata: &Value) -> Graph {
        let names = array(&metadata["packages"])
            .iter()
            .map(|package| {
                (
                    text(&package["id"]).to_owned(),
                    text(&package["name"]).to_owned(),
                )
            })
            .collect();
        let edges = array(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let below = array(&node["deps"])
                    .iter()
                    .filter(|edge| {
                        array(&edge["dep_kinds"])
                            .iter()
                            .any(|kind| kind["kind"] != "dev")
                    })
                    .map(|edge| text(&edge["pkg"]).to_owned())
                    .collect();
                (text(&node["id"]).to_owned(), below)
            })
            .collect();
        Graph { names, edges }
    }

    fn below(&self, id: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![id.to_owned()];
        while let Some(next) = open.pop() {
            for below in &self.edges[&next] {
                if found.insert(below.clone()) {
                    open.push(below.clone());
                }
            }
        }
        found
    }
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn short(package: &str) -> &str {
    package.strip_prefix("warren-").unwrap_or(package)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().expect("cargo metadata has a text here")
}
