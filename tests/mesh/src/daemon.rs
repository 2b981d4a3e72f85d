//! `warrend`, built when it is missing, and how it is asked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use warren_control::status::{self, Peer, Status};
use warren_tests_lab::{Run, built, patiently};

use crate::host::Host;
use crate::network::Node;

/// Where the daemon of the default interface tells its status, on its own host.
pub const SOCKET: &str = "/run/warren/warren0.sock";
/// How long anything may take that a daemon does at once.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts a node's daemon, and waits until it tells its status.
    pub fn start(node: &Node) -> Self {
        Self::start_with(node, &node.mesh)
    }

    /// Starts it with a mesh file of its own.
    pub fn start_with(node: &Node, mesh: &Path) -> Self {
        Self::start_by(&node.host, &log_of(node), &mut Self::command(node, mesh))
    }

    /// Starts one on a host by this command, and waits until it tells its status.
    pub fn start_by(host: &Host, log: &Path, command: &mut Command) -> Self {
        let mut daemon = Self::spawn(host, log, command);
        patiently("the daemon answers", AT_ONCE, || {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                panic!("{status}: {}", daemon.log());
            }
            daemon.ask().is_some_and(|status| !status.plan.is_empty())
        });
        daemon
    }

    /// Starts one, and waits for nothing. What it says is added to `log`.
    pub fn spawn(host: &Host, log: &Path, command: &mut Command) -> Self {
        let to_log = || {
            let file = File::options().create(true).append(true).open(log);
            file.expect("a scratch directory")
        };
        let child = command
            .stdout(to_log())
            .stderr(to_log())
            .spawn()
            .expect("nsenter is installed");
        Self {
            child,
            socket: host.file(SOCKET),
            log: log.to_owned(),
        }
    }

    /// The command that starts a node's daemon.
    pub fn command(node: &Node, mesh: &Path) -> Command {
        let mut command = node.host.command(warrend());
        command.arg("--mesh").arg(mesh);
        command.args(["--node", node.name, "--workers", "1", "--state"]);
        command.arg(&node.state);
        command
    }

    /// What it tells of itself now.
    pub fn status(&self) -> Status {
        self.ask()
            .unwrap_or_else(|| panic!("it answers: {}", self.log()))
    }

    /// What it tells of itself now, if it does.
    pub fn ask(&self) -> Option<Status> {
        status::ask(&self.socket, AT_ONCE).ok()
    }

    /// From now on it is asked under the name of another interface.
    pub fn renamed(&mut self, node: &Node, interface: &str) {
        self.socket = node.host.file(&format!("/run/warren/{interface}.sock"));
    }

    /// Waits until its status is so.
    #[track_caller]
    pub fn wait(&self, what: &str, at_most: Duration, is_so: impl Fn(&Status) -> bool) -> Duration {
        patiently(what, at_most, || {
            self.ask().is_some_and(|status| is_so(&status))
        })
    }

    /// What it knows of a peer.
    #[track_caller]
    pub fn peer(&self, name: &str) -> Peer {
        let peers = self.status().peers;
        let peer = (peers.into_iter()).find(|peer| peer.name.as_deref() == Some(name));
        peer.expect("the mesh file names it")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Sends it a signal that ends it, and waits until it has.
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.child.wait().expect("it ends")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a node's daemon writes what it says.
pub fn log_of(node: &Node) -> PathBuf {
    node.state.with_extension("log")
}

impl Host {
    /// Runs `warrend` with these words to its end.
    pub fn warrend(&self, words: &str, state: &Path) -> Run {
        let mut command = self.command(warrend());
        command.args(words.split_whitespace());
        Run::from(command.arg("--state").arg(state))
    }
}

/// This checkout's `warrend`, built with the tests' profile; the variable `WARREND` names another.
pub fn warrend() -> PathBuf {
    built("warrend")
}

/// This checkout's `warren`, likewise; the variable `WARREN` names another.
pub fn warren() -> PathBuf {
    built("warren")
}
