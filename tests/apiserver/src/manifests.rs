//! What `deploy/kubernetes` installs.

use std::fs;
use std::path::{Path, PathBuf};

use kube::api::DynamicObject;

/// The folder of the manifests.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes")
}

/// The definitions of the resources.
pub fn crds() -> Vec<DynamicObject> {
    objects(&deploy().join("crds"))
}

/// Everything else, in the order in which it can be created.
pub fn manifests() -> Vec<DynamicObject> {
    let mut objects = objects(&deploy());
    objects.sort_by_key(|object| {
        let kind = object.types.as_ref().map(|types| types.kind.as_str());
        kind != Some("Namespace")
    });
    objects
}

fn objects(folder: &Path) -> Vec<DynamicObject> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder is in the checkout")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no manifest", folder.display());
    let read = |path: PathBuf| -> Vec<DynamicObject> {
        let text = fs::read_to_string(&path).expect("it can be read");
        serde_saphyr::from_multiple(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.into_iter().flat_map(read).collect()
}
