//! The programs under test, built when they are missing.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// This checkout's `warren-wg`, built with the tests' profile; the variable `WARREN_WG` names another.
pub fn warren_wg() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(path) = env::var_os("WARREN_WG") {
            return path.into();
        }
        // TARGET/PROFILE/deps/THIS-TEST
        let this = env::current_exe().expect("a test is a file");
        let directory = this
            .ancestors()
            .nth(2)
            .expect("it is in a target directory");
        let profile = match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("{} is no target directory", directory.display()),
        };
        let target = directory.parent().expect("a target directory");
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--package",
                "warren-wg",
                "--profile",
                profile,
            ])
            .arg("--target-dir")
            .arg(target)
            .current_dir(repository())
            .status();
        assert!(
            built.expect("cargo runs").success(),
            "warren-wg does not build"
        );
        directory.join("warren-wg")
    })
}

/// The newest wireguard-go that `peers.sh` knows.
pub fn wireguard_go() -> PathBuf {
    peer("wireguard-go")
}

/// `boringtun-cli`, likewise.
pub fn boringtun() -> PathBuf {
    peer("boringtun-cli")
}

/// The directory of the variable `WARREN_PEERS`, then the path, then the script that builds it.
fn peer(name: &'static str) -> PathBuf {
    static FOUND: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let find = || {
        let given = env::var_os("WARREN_PEERS").map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        let mut places = given.into_iter().chain(env::split_paths(&path));
        let existing = places.find(|place| place.join(name).is_file());
        existing.map_or_else(|| build(name), |place| place.join(name))
    };
    found.entry(name).or_insert_with(find).clone()
}

fn build(name: &str) -> PathBuf {
    let output = Command::new(repository().join("benches/compare/peers.sh"))
        .arg(name)
        .stderr(Stdio::inherit())
        .output()
        .expect("the script is there");
    assert!(output.status.success(), "{name} does not build");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the script says where").trim().into()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
