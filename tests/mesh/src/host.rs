//! Hosts in namespaces, and waiting.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A host with a network and mounts of its own, until it is dropped.
#[derive(Debug)]
pub struct Host {
    /// The process that holds the namespaces.
    holder: Child,
}

impl Host {
    /// A host that has just started: no interface is up, not even the loopback.
    pub fn new() -> Self {
        let script = r#"set -e
            mount -t tmpfs -o mode=755 tmpfs "$(readlink -f /var/run)"
            for which in all default; do
                echo 0 > /proc/sys/net/ipv6/conf/$which/accept_dad
                echo 1 > /proc/sys/net/ipv6/conf/$which/forwarding
            done
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo ready
            exec sleep infinity"#;
        let mut holder = with_us("unshare")
            .args(["--net", "--mount", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and unshare are installed");
        let mut ready = String::new();
        let stdout = holder.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut ready)
            .expect("a pipe");
        assert_eq!(ready, "ready\n", "these tests need root and namespaces");
        Self { holder }
    }

    /// The process in whose namespaces the host lives.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs on the host as one process, and ends with the thread that starts it.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = with_us("nsenter");
        command.args(["--target", &self.pid().to_string(), "--net", "--mount"]);
        command.args(["--wd=/", "--"]).arg(program.as_ref());
        command
    }

    /// Runs a script of the shell that must succeed, and returns what it wrote.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let run = self.attempt(script);
        assert!(run.success, "`{script}` failed: {run}");
        run.stdout
    }

    /// Runs a script of the shell.
    pub fn attempt(&self, script: &str) -> Run {
        Run::from(self.command("sh").args(["-ec", script]))
    }

    /// A file of this host, seen from outside.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid()))
    }

    /// Whether an echo of this address comes back within two seconds.
    pub fn reaches(&self, address: &str) -> bool {
        self.attempt(&format!("ping -c 1 -W 2 {address}")).success
    }

    /// Runs a function on a thread of its own in the host's network.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let network =
            File::open(format!("/proc/{}/ns/net", self.pid())).expect("the host is there");
        thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).expect("these tests are root");
            work()
        })
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A command that is killed when the thread that starts it ends.
fn with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
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
    fn from(command: &mut Command) -> Self {
        let output: Output = (command.stdin(Stdio::null()).output()).expect("it is installed");
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

/// Looks until it is so, and says how long that took. Panics when it takes longer than `at_most`.
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "a test measures how long something takes"
)]
pub fn patiently(what: &str, at_most: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    let (_keep, never) = mpsc::channel::<()>();
    while !is_so() {
        assert!(start.elapsed() < at_most, "not within {at_most:?}: {what}");
        let _ = never.recv_timeout(Duration::from_millis(10));
    }
    start.elapsed()
}

/// Writes a file beside its place and renames it over, as careful tools do.
pub(crate) fn rename_over(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("the scratch directory is writable");
    fs::rename(&beside, path).expect("both are in one directory");
}
