//! Programs: those under test, built when they are missing, and what one did.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// This checkout's program of this name, built with the tests' profile. A variable names another:
/// `WARREN_WG` for `warren-wg`.
pub fn built(program: &'static str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let find = || {
        let variable = program.to_uppercase().replace('-', "_");
        env::var_os(variable).map_or_else(|| build(program), PathBuf::from)
    };
    built.entry(program).or_insert_with(find).clone()
}

/// Where this checkout is.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn build(program: &str) -> PathBuf {
    // TARGET/PROFILE/deps/THIS-TEST
    let this = env::current_exe().expect("a test is a file");
    let directory = (this.ancestors().nth(2)).expect("it is in a target directory");
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => panic!("{} is no target directory", directory.display()),
    };
    let done = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", program])
        .args(["--profile", profile, "--target-dir"])
        .arg(directory.parent().expect("a target directory"))
        .current_dir(repository())
        .status();
    let done = done.expect("cargo runs").success();
    assert!(done, "{program} does not build");
    directory.join(program)
}

/// What a program did.
#[derive(Debug)]
pub struct Run {
    /// Whether it ended well.
    pub success: bool,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl From<&mut Command> for Run {
    /// Runs it to its end, with nothing to read.
    fn from(command: &mut Command) -> Self {
        let output: Output = (command.stdin(Stdio::null()).output()).expect("it is installed");
        Self::of(&output)
    }
}

impl Run {
    /// One that has come to its end.
    pub fn of(output: &Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdout, stderr, .. } = self;
        write!(f, "{}{}", stdout.trim_end(), stderr.trim_end())
    }
}
