//! `deploy/install` as a distribution's packager calls it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use warren_tests_lab::{Run, built, repository};

const PROGRAMS: [&str; 3] = ["warren", "warrend", "warren-wg"];

/// A directory that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("wdm-install-{}-{name}", process::id()));
        fs::create_dir(&path).expect("a temporary directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn install(from: &Path, package: &Path) -> Run {
    let mut command = Command::new(repository().join("deploy/install"));
    command.env("FROM", from).env("DESTDIR", package);
    Run::from(command.env("PREFIX", "/usr").current_dir("/"))
}

/// The files below a directory, and whether they may be run.
fn files(directory: &Path) -> BTreeSet<(PathBuf, bool)> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).expect("a directory").flatten() {
            let metadata = entry.metadata().expect("it is there");
            if metadata.is_dir() {
                left.push(entry.path());
                continue;
            }
            assert!(metadata.len() > 0, "{} is empty", entry.path().display());
            let mode = metadata.permissions().mode() & 0o777;
            assert!(
                mode == 0o644 || mode == 0o755,
                "{mode:o} {}",
                entry.path().display()
            );
            let path = entry.path();
            let below = path.strip_prefix(directory).expect("it is below");
            found.insert((below.to_owned(), mode == 0o755));
        }
    }
    found
}

#[test]
fn a_package_has_programs_units_manual_pages_and_completions_in_their_places() {
    let (from, package) = (Scratch::new("from"), Scratch::new("package"));
    for program in PROGRAMS {
        symlink(built(program), from.0.join(program)).expect("a directory of ours");
    }
    let run = install(&from.0, &package.0);
    assert!(run.success, "{run}");

    let found = files(&package.0);
    let mut expected = BTreeSet::new();
    for program in PROGRAMS {
        expected.insert((format!("usr/bin/{program}"), true));
        for file in [
            format!("usr/share/man/man1/{program}.1"),
            format!("usr/share/bash-completion/completions/{program}"),
            format!("usr/share/zsh/site-functions/_{program}"),
            format!("usr/share/fish/vendor_completions.d/{program}.fish"),
        ] {
            expected.insert((file, false));
        }
    }
    for unit in ["warrend@.service", "warren-fence.service"] {
        expected.insert((format!("usr/lib/systemd/system/{unit}"), false));
    }
    let expected: BTreeSet<(PathBuf, bool)> = (expected.into_iter())
        .map(|(file, is_program)| (file.into(), is_program))
        .collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    // The other pages are those of the commands.
    let mut others = found.difference(&expected);
    assert!(
        others.all(|(file, is_program)| file.starts_with("usr/share/man/man1") && !is_program),
        "{found:#?}"
    );

    let unit = |name: &str| {
        let unit = package.0.join("usr/lib/systemd/system").join(name);
        fs::read_to_string(unit).expect("just found")
    };
    for name in ["warrend@.service", "warren-fence.service"] {
        let text = unit(name);
        assert!(text.contains("ExecStart=/usr/bin/warrend "), "{text}");
        assert!(!text.contains("/usr/local"), "{text}");
    }
    let page = package.0.join("usr/share/man/man1/warren-wg.1");
    let page = fs::read_to_string(page).expect("just found");
    assert!(page.contains("WG_TUN_FD"), "{page}");
}

#[test]
fn without_built_programs_it_says_so_and_installs_nothing() {
    let (from, package) = (Scratch::new("empty"), Scratch::new("nothing"));
    let run = install(&from.0, &package.0);
    assert!(!run.success);
    assert!(run.stderr.contains("there is no warren in"), "{run}");
    assert!(
        run.stderr.contains("cargo build --release --locked"),
        "{run}"
    );
    assert_eq!(files(&package.0), BTreeSet::new());
}
