//! What the compiler does not check of the workspace's shape: which crate may use which, where
//! `unsafe` and the environment may appear, that no error says its cause twice, and that each behaviour has a test that carries it.
//!
//! Everything here reads `cargo metadata` and the sources; nothing is built or run.

mod behaviours;
mod causes;
mod dependencies;
mod sources;

use std::path::{Path, PathBuf};

/// The root of the checkout.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Every Rust source below the given folders of the root, in order; build outputs are not sources.
fn rust_files(folders: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return;
        };
        for entry in entries {
            let path = entry
                .expect("a folder of the checkout can be listed")
                .path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    walk(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut found);
    }
    found.sort();
    found
}

/// A file's name as people write it, from the root on.
fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}
