//! `warren demo` as people run it: the real binary in a directory of the test's own, what it prints,
//! and what is left of it.
//!
//! Its namespaces have no names, so what is looked for afterwards is what would hold them: processes
//! of the copied binaries. When none is left the kernel has taken them apart.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use warren_tests_lab::built;
pub use warren_tests_lab::patiently;

/// How long anything may take that is done at once.
pub const AT_ONCE: Duration = Duration::from_secs(10);

/// Both binaries in a directory that everybody may enter; gone when dropped.
pub struct Copy {
    directory: PathBuf,
}

impl Copy {
    /// Copies this checkout's binaries, built with the tests' profile.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wdm-{}-{count}", std::process::id());
        let directory = env::temp_dir().join(name);
        fs::create_dir(&directory).expect("a temporary directory");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&directory, open).expect("it is ours");
        for binary in ["warren", "warrend"] {
            fs::copy(built(binary), directory.join(binary)).expect("it was built");
        }
        Self { directory }
    }

    /// The command for people.
    pub fn warren(&self) -> PathBuf {
        self.directory.join("warren")
    }

    /// A directory for what a test makes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the demo.
    pub fn demo(&self, args: &[&str]) -> Demo<'_> {
        let mut command = Command::new(self.warren());
        command.arg("demo").args(args);
        self.start(command)
    }

    /// Starts a command that runs the demo.
    pub fn start(&self, mut command: Command) -> Demo<'_> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demo starts");
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe"));
        Demo {
            copy: self,
            child,
            lines,
            said: String::new(),
        }
    }

    /// The processes of the copied binaries, by name and number. One that only waits for its parent
    /// to notice its end holds nothing any more.
    pub fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
        let ours = entries.filter_map(|entry| {
            let program = fs::read_link(entry.path().join("exe")).ok()?;
            (program.starts_with(&self.directory)).then(|| {
                let number = entry.file_name();
                format!("{} {}", program.display(), number.display())
            })
        });
        ours.collect()
    }

    /// Waits until there is no process left. Panics when that does not come.
    pub fn wait_until_gone(&self) {
        patiently("the demo's processes are gone", AT_ONCE, || {
            self.processes().is_empty()
        });
    }
}

impl Default for Copy {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A running demo; killed when dropped.
pub struct Demo<'a> {
    copy: &'a Copy,
    child: Child,
    lines: BufReader<ChildStdout>,
    said: String,
}

impl Demo<'_> {
    /// Reads on until a line with `words`. Panics with all that was said when it ends before.
    pub fn wait_for(&mut self, words: &str) {
        loop {
            let from = self.said.len();
            let length = self.lines.read_line(&mut self.said).expect("it says text");
            if self.said[from..].contains(words) {
                return;
            }
            assert!(length > 0, "no {words:?} in: {}", self.end().1);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end: its exit status and all that it said.
    pub fn end(&mut self) -> (ExitStatus, String) {
        self.lines
            .read_to_string(&mut self.said)
            .expect("it says text");
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut errors).expect("it says text");
        }
        let status = self.child.wait().expect("it ends");
        (status, format!("{}{errors}", self.said))
    }

    /// What it said so far.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Where its binaries are.
    pub fn copy(&self) -> &Copy {
        self.copy
    }
}

impl Drop for Demo<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
