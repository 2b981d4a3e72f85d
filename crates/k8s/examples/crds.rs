//! Writes the definitions of the resources to `deploy/kubernetes/crds`.
//!
//! ```sh
//! cargo run -p warren-k8s --example crds
//! ```

use std::fs;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    for (path, text) in files() {
        fs::write(path, text)?;
    }
    Ok(())
}

/// Each file and what belongs into it.
pub(crate) fn files() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes/crds");
    warren_k8s::crds()
        .iter()
        .map(|crd| {
            let body = serde_saphyr::to_string(crd).expect("a definition is YAML");
            let head = "# Made by crates/k8s/examples/crds.rs; a test fails when it is stale.";
            let name = format!("{}.yaml", crd.spec.names.plural);
            (folder.join(name), format!("{head}\n{body}"))
        })
        .collect()
}
