//! Reading a mesh file and saying what is wrong with it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use warren_mesh::{Directory, KeyFile, MeshFile, NodeName, Severity};
use warren_state::{StateDir, StateError};

use crate::output;

/// Reads a file; all that is wrong with it has been said when this fails.
pub(crate) fn read(path: &Path) -> anyhow::Result<MeshFile> {
    let name = path.display().to_string();
    let bytes = fs::read(path).with_context(|| format!("{name} cannot be read"))?;
    let Ok(text) = String::from_utf8(bytes) else {
        bail!("{name} is no text; a mesh file is TOML in UTF-8");
    };
    match MeshFile::parse(&text, &name) {
        Ok(file) => Ok(file),
        Err(problems) => {
            problems.iter().for_each(output::located);
            let errors = problems
                .iter()
                .filter(|found| found.severity == Severity::Error)
                .count();
            let errors = match errors {
                1 => "the error above".to_owned(),
                many => format!("the {many} errors above"),
            };
            bail!("{name} is refused for {errors}");
        }
    }
}

/// The preshared keys that a node needs, as far as they can be read; why others cannot is said.
pub(crate) fn preshared_keys(
    directory: &Directory,
    node: &NodeName,
    state: &StateDir,
) -> (
    std::collections::BTreeMap<KeyFile, warren_config::PresharedKey>,
    Vec<StateError>,
) {
    let mut keys = std::collections::BTreeMap::new();
    let mut errors = Vec::new();
    for file in directory.key_files(node) {
        match state.preshared_key(&file.0) {
            Ok(key) => {
                keys.insert(file.clone(), key);
            }
            Err(error) => errors.push(error),
        }
    }
    (keys, errors)
}
