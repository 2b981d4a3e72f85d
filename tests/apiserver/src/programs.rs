//! Where `kube-apiserver` and `etcd` are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The two programs.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) apiserver: PathBuf,
    pub(crate) etcd: PathBuf,
}

/// The folder of `KUBEBUILDER_ASSETS`, which users of envtest have, then one of the path, then the
/// script that builds them.
pub(crate) fn programs() -> &'static Programs {
    static FOUND: OnceLock<Programs> = OnceLock::new();
    FOUND.get_or_init(|| {
        let given = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        if let Some(given) = &given {
            assert!(
                has_both(given),
                "KUBEBUILDER_ASSETS names {}, which has not both kube-apiserver and etcd",
                given.display()
            );
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let mut places = given.into_iter().chain(env::split_paths(&path));
        let folder = places.find(|place| has_both(place)).unwrap_or_else(built);
        Programs {
            apiserver: folder.join("kube-apiserver"),
            etcd: folder.join("etcd"),
        }
    })
}

fn has_both(folder: &Path) -> bool {
    folder.join("kube-apiserver").is_file() && folder.join("etcd").is_file()
}

fn built() -> PathBuf {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("build.sh"))
        .stderr(Stdio::inherit())
        .output()
        .expect("the script is there");
    assert!(
        output.status.success(),
        "there is no API server to test against: set KUBEBUILDER_ASSETS to a folder with \
         kube-apiserver and etcd, put them into PATH, or install Go, with which \
         tests/apiserver/build.sh builds them into the cache"
    );
    let text = String::from_utf8(output.stdout).expect("a path is text");
    text.trim_end().into()
}
