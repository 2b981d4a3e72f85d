//! A node of the demo: its host, its key, and the `warrend` that runs on it.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use warren_config::PublicKey;
use warren_control::status::{self, Status};
use warren_mesh::NodeName;
use warren_state::StateDir;

use super::interrupt::Interrupt;
use super::stage::{self, DIRECTORY, Namespace, Switch};
use crate::{args, clock, init, keys, sys};

/// The mesh file of the demo.
pub(super) const MESH_FILE: &str = "/run/warren-demo/mesh.toml";
/// The tunnel's interface on every node.
pub(super) const INTERFACE: &str = "warren0";
/// How long a daemon may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(10);

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: &'static str,
    /// Its last octet everywhere.
    pub(super) number: u8,
    pub(super) host: Namespace,
    has_endpoint: bool,
    daemon: Option<Child>,
}

impl Node {
    /// A host on the switch, with nothing of Warren on it.
    pub(super) fn new(
        switch: &mut Switch,
        name: &'static str,
        number: u8,
        has_endpoint: bool,
    ) -> anyhow::Result<Self> {
        let host = Namespace::new()?;
        switch.connect(&host, number)?;
        fs::create_dir_all(stage::directory(name).join("run"))?;
        Ok(Self {
            name,
            number,
            host,
            has_endpoint,
            daemon: None,
        })
    }

    /// Makes the node's key as `warren init` does; the block that describes it in the mesh file.
    pub(super) fn init(&self) -> anyhow::Result<String> {
        let state = StateDir::new(self.state());
        state.create()?;
        state.create_private_key(&keys::private_key()?)?;
        let key: PublicKey = state.private_key()?.public();
        let [v4, _] = stage::underlay_addresses(self.number);
        let endpoint = self.has_endpoint.then(|| v4.to_string());
        let args = args::Init {
            name: self.node_name()?,
            endpoints: (endpoint.iter())
                .map(|endpoint| endpoint.parse())
                .collect::<Result<_, _>>()?,
            addresses: stage::mesh_addresses(self.number).to_vec(),
            mesh: None,
            state: args::State {
                directory: self.state(),
            },
        };
        Ok(init::block(&args, None, key))
    }

    fn node_name(&self) -> anyhow::Result<NodeName> {
        Ok(self.name.parse()?)
    }

    fn state(&self) -> PathBuf {
        stage::directory(self.name).join("state")
    }

    /// Starts the node's daemon.
    pub(super) fn start(&mut self, warrend: &Path) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let own = CString::new(format!("{DIRECTORY}/{}/run", self.name))?;
        let mut command = Command::new(warrend);
        command
            .args(["--mesh", MESH_FILE, "--node", self.name, "--log", "info"])
            .arg("--state")
            .arg(self.state())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo, which then ends its daemons.
            .process_group(0);
        sys::confine(
            &mut command,
            self.host.handle()?,
            own,
            CString::from(c"/run/warren"),
        );
        let daemon = command
            .spawn()
            .with_context(|| format!("{} cannot be started", warrend.display()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Waits until the node is fenced and carries packets.
    pub(super) fn ready(&mut self, interrupt: &Interrupt) -> anyhow::Result<Status> {
        let start = clock::now();
        loop {
            let ended = match &mut self.daemon {
                Some(daemon) => daemon.try_wait()?,
                None => bail!("no daemon was started on {}", self.name),
            };
            if let Some(ended) = ended {
                bail!(
                    "warrend on {} ended with {ended}:\n{}",
                    self.name,
                    self.log()
                );
            }
            let status = self.status();
            if let Ok(status) = &status
                && status.node.up
                && is_closed(status)
            {
                return Ok(status.clone());
            }
            if clock::now().duration_since(start) > PATIENCE {
                let said = status.map_or_else(
                    |error| error.to_string(),
                    |status| format!("{:?} {:?}", status.node, status.problems),
                );
                bail!(
                    "warrend on {} is not ready: {said}\n{}",
                    self.name,
                    self.log()
                );
            }
            interrupt.pause(AGAIN)?;
        }
    }

    /// What the node's daemon says.
    pub(super) fn status(&self) -> Result<Status, status::AskError> {
        let socket = stage::directory(self.name)
            .join("run")
            .join(format!("{INTERFACE}.sock"));
        status::ask(&socket, PATIENCE)
    }

    /// Ends the daemon with SIGKILL; `false` if there was none.
    pub(super) fn kill(&mut self) -> bool {
        let Some(mut daemon) = self.daemon.take() else {
            return false;
        };
        // It may have ended by itself; either way it is waited for.
        let _gone = daemon.kill();
        daemon.wait().is_ok()
    }

    /// The process of the daemon, if one runs.
    pub(super) fn process(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    fn log_path(&self) -> PathBuf {
        stage::directory(self.name).join("log")
    }

    /// The last lines of the daemon's log.
    fn log(&self) -> String {
        const LINES: usize = 12;
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the fence stands in full, or as much of it as this kernel has.
fn is_closed(status: &Status) -> bool {
    (status.node.fence.as_ref()).is_some_and(|fence| fence.starts_with("closed"))
}
