//! The two nodes as `warren-netlink` is told of them, and the process that keeps one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use ipnet::IpNet;
use warren_config::{Fence, HostConfig, Steering};
use warren_netlink::{Host, Observed, Options, plan};
use warren_tests_lab::patiently;

use crate::namespace::Namespace;

/// The mark of the tunnels' own packets.
pub const FWMARK: u32 = 0x2000;
/// The interface of the tunnels.
pub const INTERFACE: &str = "warren0";

/// One of the nodes of the drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The one with a network behind it.
    A,
    /// The other.
    B,
}

/// What the host of a node should look like.
pub fn config_of(node: Node) -> HostConfig {
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    let ip = |text: &str| text.parse().expect("an address");
    let (own, other) = match node {
        Node::A => (1, 2),
        Node::B => (2, 1),
    };
    let prefixes = |node: u8| {
        [
            net(&format!("10.1.0.{node}/32")),
            net(&format!("fd00:1::{node}/128")),
            net(&format!("10.1.{node}.0/24")),
            net(&format!("fd00:1:{node}::/64")),
        ]
    };
    HostConfig {
        interface: INTERFACE.to_owned(),
        mtu: 1420,
        addresses: [ip(&format!("10.1.0.{own}")), ip(&format!("fd00:1::{own}"))].into(),
        table: 51820,
        rule_priority: 98,
        fwmark: FWMARK,
        steering: Steering::Prefixes,
        routes: prefixes(other).into(),
        masquerade: false,
        fence: Fence {
            mesh: [net("10.1.0.0/16"), net("fd00:1::/32")].into(),
            local: prefixes(own).into(),
            open: [].into(),
            inward: true,
        },
    }
}

/// The process that keeps the host of a node; killed when dropped.
pub struct Daemon {
    child: Child,
    shared: bool,
    directory: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until the host is as it should be. With `shared`, as on kernels on which
    /// others can change the nftables table.
    pub fn start(at: &Namespace, node: Node, program: &str, shared: bool) -> Self {
        let directory = state_directory(at);
        let daemon = Self::start_in(at, node, program, &directory, shared);
        daemon.wait_until_whole(at, node);
        daemon
    }

    /// Starts it on an existing state directory.
    pub fn start_in(
        at: &Namespace,
        node: Node,
        program: &str,
        directory: &Path,
        shared: bool,
    ) -> Self {
        let path = directory.to_str().expect("a temporary directory");
        let name = match node {
            Node::A => "a",
            Node::B => "b",
        };
        Self {
            child: at.spawn(
                program,
                &[name, path, if shared { "shared" } else { "exclusive" }],
            ),
            shared,
            directory: directory.to_owned(),
        }
    }

    /// Its state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until nothing is left to change; how long it took.
    pub fn wait_until_whole(&self, at: &Namespace, node: Node) -> Duration {
        let is_whole = || is_whole(at, &self.directory, node, self.shared);
        patiently(
            "the host is as it should be",
            Duration::from_secs(5),
            is_whole,
        )
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.signal("KILL");
    }

    /// Ends it with the signal of this name.
    pub fn signal(&mut self, name: &str) {
        // `ip netns exec` becomes the program: one process.
        let signal = match name {
            "TERM" => rustix::process::Signal::TERM,
            _ => rustix::process::Signal::KILL,
        };
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state directory of the node in a namespace; gone with the namespace.
pub fn state_directory(at: &Namespace) -> PathBuf {
    let directory = at.directory();
    fs::create_dir_all(&directory).expect("a temporary directory");
    directory
}

/// What is there, as the crate sees it.
pub fn observe(at: &Namespace, node: Node) -> Observed {
    let directory = state_directory(at);
    at.enter(move || {
        let mut host = Host::new(&directory).expect("netlink is there");
        host.observe(&config_of(node)).expect("netlink answers")
    })
}

/// Whether nothing is to be changed, and there is a link that is up.
fn is_whole(at: &Namespace, directory: &Path, node: Node, shared: bool) -> bool {
    let directory = directory.to_owned();
    let config = config_of(node);
    at.enter(move || {
        let options = Options {
            without_exclusive: shared,
            ..Options::default()
        };
        let mut host = Host::with_options(&directory, options).expect("netlink is there");
        let observed = host.observe(&config).expect("netlink answers");
        observed.link(INTERFACE).is_some_and(|link| link.up)
            && plan(&observed, &config, host.owned()).is_empty()
    })
}
