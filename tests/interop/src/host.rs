//! Hosts in namespaces.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A host of its own, until it is dropped.
#[derive(Debug)]
pub struct Host {
    /// The `unshare` that made the namespaces. With it goes the first process in them, and with
    /// that one every other.
    holder: Child,
    /// That first process, seen from outside.
    pid: u32,
}

impl Host {
    /// A host with a loopback interface and nothing else.
    pub fn new() -> Self {
        let script = r#"set -e
            mount -t tmpfs -o mode=755 tmpfs "$(readlink -f /var/run)"
            ip link set lo up
            echo ready
            exec sleep infinity"#;
        let mut holder = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
            ])
            .args(["--kill-child=KILL", "--mount-proc", "sh", "-c", script])
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
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let children = fs::read_to_string(children).expect("the holder runs");
        let pid = children.trim().parse().expect("it has one child");
        Self { holder, pid }
    }

    /// A command that runs on the host.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.pid.to_string();
        command.args([
            "--target", &target, "--net", "--mount", "--pid", "--wd=/", "--",
        ]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a line of words that must succeed, and returns what it wrote.
    pub fn run(&self, line: &str) -> String {
        let run = self.attempt(line);
        assert!(run.success, "`{line}` failed: {run}");
        run.stdout
    }

    /// Runs a line of words.
    pub fn attempt(&self, line: &str) -> Run {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program");
        Run::from(self.command(program).args(words).stdin(Stdio::null()))
    }

    /// Runs a script of the shell with an input; it must succeed.
    pub fn shell(&self, script: &str, input: &str) -> String {
        let mut child = self
            .command("bash")
            .args(["-euc", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash is installed");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("the shell reads");
        drop(stdin);
        let run = Run::of(&child.wait_with_output().expect("the shell ends"));
        assert!(run.success, "`{script}` failed: {run}");
        run.stdout
    }

    /// The number of processes of this name on the host.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        let found = self.attempt(&format!("pidof {name}"));
        let pids = found.stdout.split_whitespace();
        pids.map(|pid| pid.parse().expect("a number")).collect()
    }

    /// A figure of the memory of the one process of this name, as `/proc/PID/status` has it, in KiB.
    pub fn memory_kib(&self, process: &str, field: &str) -> u64 {
        let pids = self.processes(process);
        let [pid] = pids[..] else {
            panic!("{process} runs as {pids:?}");
        };
        let status = self.run(&format!("cat /proc/{pid}/status"));
        let figures = status.lines().filter_map(|line| line.split_once(':'));
        let mut wanted = figures.filter(|(name, _)| *name == field);
        let (_, figure) = wanted.next().expect("a line of the kernel");
        let kib = figure.trim().strip_suffix(" kB").expect("a size");
        kib.parse().expect("a number")
    }

    /// Whether the host has this interface.
    pub fn has_interface(&self, name: &str) -> bool {
        self.attempt(&format!("ip link show dev {name}")).success
    }

    /// Whether something exists in the host's file system.
    pub fn exists(&self, path: &str) -> bool {
        self.attempt(&format!("test -e {path}")).success
    }

    /// The host's file system, seen from outside.
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.pid).into()
    }

    /// One echo of an address, with two seconds for the answer.
    pub fn reaches(&self, address: &str) -> bool {
        self.attempt(&format!("ping -c 1 -W 2 {address}")).success
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

/// Joins two hosts by a cable: an interface `eth0` on both with these addresses.
pub fn connect(left: (&Host, &[&str]), right: (&Host, &[&str])) {
    connect_as("eth0", left, right);
}

/// As [`connect`], with another name for the interface on both.
pub fn connect_as(interface: &str, left: (&Host, &[&str]), right: (&Host, &[&str])) {
    let peer = right.0.pid;
    // The far end is put where it belongs as it is made, seen from outside of both.
    let status = Command::new("nsenter")
        .args(["--target", &left.0.pid.to_string(), "--net", "--"])
        .args(["ip", "link", "add", interface, "type", "veth"])
        .args(["peer", "name", interface, "netns", &peer.to_string()])
        .status();
    assert!(status.expect("ip is installed").success());
    for (host, addresses) in [left, right] {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            host.run(&format!("ip address add {address} dev {interface} {nodad}"));
        }
        host.run(&format!("ip link set {interface} up"));
    }
}

/// A command of a host that ends when this is dropped.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // What was started is `nsenter`: it does not take its program along, and ends with it.
        let pid = self.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let mut programs = children
            .split_whitespace()
            .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        let ended = programs.any(|program| kill_process(program, Signal::KILL).is_ok());
        if !ended {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
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

impl Run {
    fn of(output: &Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl From<&mut Command> for Run {
    fn from(command: &mut Command) -> Self {
        Self::of(&command.output().expect("nsenter is installed"))
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdout, stderr, .. } = self;
        write!(f, "{}{}", stdout.trim_end(), stderr.trim_end())
    }
}

/// Looks until it is so, for ten seconds at most.
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "programs of others offer nothing to wait for, and a test has an end"
)]
pub fn patiently(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
