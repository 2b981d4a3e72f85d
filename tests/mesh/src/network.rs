//! The network of the drawing, and its mesh file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use warren_config::PrivateKey;
use warren_state::StateDir;

use crate::host::{Host, rename_over};
use crate::wiretap::{self, Wiretap};

/// The underlay and the nodes on it.
#[derive(Debug)]
pub struct Network {
    /// Where frames pass.
    pub underlay: Host,
    /// A node.
    pub a: Node,
    /// Another.
    pub b: Node,
    /// A third.
    pub c: Node,
    /// One that the mesh file does not name at first.
    pub d: Node,
    scratch: Scratch,
}

/// A host that may be a node of the mesh.
#[derive(Debug)]
pub struct Node {
    /// What the mesh file calls it.
    pub name: &'static str,
    /// The last number of its addresses.
    pub number: u8,
    /// The host itself.
    pub host: Host,
    /// Its state directory.
    pub state: PathBuf,
    /// The mesh file, the same for all nodes.
    pub mesh: PathBuf,
    key: PrivateKey,
}

/// Gone when it is dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Network {
    /// Builds it, with a mesh file of a, b and c.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let scratch = std::env::temp_dir().join(format!("wme-{}-{count}", process::id()));
        fs::create_dir(&scratch).expect("a temporary directory");
        let node = |name, number| Node::new(name, number, &scratch);
        let network = Self {
            underlay: Host::new(),
            a: node("a", 1),
            b: node("b", 2),
            c: node("c", 3),
            d: node("d", 4),
            scratch: Scratch(scratch.clone()),
        };
        network.underlay.run(
            "ip link set lo up
            ip link add bridge type bridge
            ip link set bridge up
            ip addr add 192.0.2.254/24 dev bridge
            ip addr add 2001:db8::fe/64 dev bridge nodad",
        );
        for node in [&network.a, &network.b, &network.c, &network.d] {
            network.attach(node);
        }
        network.write(&network.mesh_of(&["a", "b", "c"]));
        network
    }

    /// Joins a host to the underlay as a node: its network comes up.
    pub fn attach(&self, node: &Node) {
        let (name, number, pid) = (node.name, node.number, node.host.pid());
        self.underlay.run(&format!(
            "ip link del to-{name} 2>/dev/null || :
            ip link add to-{name} type veth peer name eth0 netns {pid}
            ip link set to-{name} master bridge up
            ip route replace 10.77.0.{number}/32 via 192.0.2.{number}
            ip route replace 10.77.{number}.0/24 via 192.0.2.{number}
            ip route replace fd77::{number}/128 via 2001:db8::{number}
            ip route replace fd77:0:{number}::/48 via 2001:db8::{number}"
        ));
        node.host.run(&format!(
            "ip link set lo up
            ip link set eth0 up
            ip addr add 192.0.2.{number}/24 dev eth0
            ip addr add 2001:db8::{number}/64 dev eth0 nodad
            ip route add default via 192.0.2.254
            ip route add default via 2001:db8::fe
            ip addr add 10.77.{number}.5/32 dev lo
            ip addr add fd77:0:{number}::5/128 dev lo"
        ));
    }

    /// Listens on the underlay from now on.
    pub fn wiretap(&self) -> Wiretap {
        wiretap::listen(&self.underlay, &["10.77.0.0/16", "fd77::/32"])
    }

    /// The mesh file of these nodes.
    pub fn mesh_of(&self, names: &[&str]) -> String {
        let nodes = [&self.a, &self.b, &self.c, &self.d];
        let blocks = (nodes.into_iter())
            .filter(|node| names.contains(&node.name))
            .map(Node::block);
        let mesh = "[mesh]\nprefixes = [\"10.77.0.0/16\", \"fd77::/32\"]\n".to_owned();
        std::iter::once(mesh).chain(blocks).collect()
    }

    /// Where the nodes' common mesh file is.
    pub fn mesh_file(&self) -> &Path {
        &self.a.mesh
    }

    /// Renames this text over the mesh file.
    pub fn write(&self, text: &str) {
        rename_over(self.mesh_file(), text);
    }

    /// A directory of this network, gone with it.
    pub fn scratch(&self) -> &Path {
        &self.scratch.0
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    fn new(name: &'static str, number: u8, scratch: &Path) -> Self {
        let key = PrivateKey::from_bytes([number; 32]);
        let state = scratch.join(name);
        let directory = StateDir::new(&state);
        directory.create().expect("a scratch directory");
        let made = directory.create_private_key(&key);
        assert!(made.expect("a scratch directory"), "it is new");
        Self {
            name,
            number,
            host: Host::new(),
            state,
            mesh: scratch.join("mesh.toml"),
            key,
        }
    }

    /// Its public key, as mesh files have it.
    pub fn public_key(&self) -> String {
        self.key.public().to_string()
    }

    /// Its part of a mesh file.
    pub fn block(&self) -> String {
        let (name, number, key) = (self.name, self.number, self.public_key());
        format!(
            "
[[node]]
name = \"{name}\"
public_key = \"{key}\"
endpoints = [\"192.0.2.{number}\", \"2001:db8::{number}\"]
addresses = [\"10.77.0.{number}\", \"fd77::{number}\"]
prefixes = [\"10.77.{number}.0/24\", \"fd77:0:{number}::/48\"]
"
        )
    }

    /// Its IPv4 address in the mesh.
    pub fn v4(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    /// Its addresses in the mesh and those of what is behind it.
    pub fn addresses(&self) -> [String; 4] {
        let number = self.number;
        [
            self.v4(),
            format!("10.77.{number}.5"),
            format!("fd77::{number}"),
            format!("fd77:0:{number}::5"),
        ]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
