//! Hosts in namespaces.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use warren_tests_lab::{Run, thread_in};

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

    /// Whether it comes back within a fifth of a second.
    pub fn reaches_at_once(&self, address: &str) -> bool {
        self.attempt(&format!("ping -c 1 -W 0.2 {address}")).success
    }

    /// The file that stands for the host's network.
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }

    /// Runs a function on a thread of its own in the host's network.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        thread_in(&self.network(), work)
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

/// Writes a file beside its place and renames it over, as careful tools do.
pub(crate) fn rename_over(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("the scratch directory is writable");
    fs::rename(&beside, path).expect("both are in one directory");
}
