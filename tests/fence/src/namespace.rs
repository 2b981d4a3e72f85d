//! Network namespaces that are gone when the test is.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use warren_tests_lab::thread_in;

/// A network namespace; removed when dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Self {
        let namespace = Self { name };
        run("ip", &["netns", "add", &namespace.name]);
        // Addresses are of use at once; everything here is made for the test.
        namespace
            .run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where files of this namespace may be.
    pub(crate) fn directory(&self) -> PathBuf {
        env::temp_dir().join(format!("warren-fence-{}", self.name))
    }

    /// Runs `ip` with these words inside.
    pub fn ip(&self, words: &str) {
        let mut args = vec!["-n", &self.name];
        args.extend(words.split_whitespace());
        run("ip", &args);
    }

    /// Runs a program inside; its output.
    pub fn run(&self, program: &str) -> String {
        let mut args = vec!["netns", "exec", &self.name];
        args.extend(program.split_whitespace());
        run("ip", &args)
    }

    /// Runs lines of shell inside.
    pub fn run_script(&self, lines: &str) {
        run("ip", &["netns", "exec", &self.name, "sh", "-ec", lines]);
    }

    /// Whether a program inside succeeds.
    pub fn succeeds(&self, program: &str) -> bool {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(program.split_whitespace())
            .output();
        output.is_ok_and(|output| output.status.success())
    }

    /// Starts a program inside.
    pub fn spawn(&self, program: &str, args: &[&str]) -> process::Child {
        let inside = ["netns", "exec", &self.name, program];
        Command::new("ip")
            .args(inside)
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .expect("ip(8) is there")
    }

    /// The file that stands for it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    /// Runs a function on a thread of its own inside.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        thread_in(&self.path(), work)
    }

    /// Runs a function inside and waits for its result.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.thread(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        let _ = fs::remove_dir_all(self.directory());
    }
}

/// Runs a program; its output. Panics with what it says when it fails.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error: io::Error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {}: {said}",
        args.join(" ")
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The network of the module's drawing.
pub struct Topology {
    /// A node with a network behind it.
    pub a: Namespace,
    /// Another node.
    pub b: Namespace,
    /// What is behind a.
    pub lan: Namespace,
    /// Between the nodes.
    pub underlay: Namespace,
    /// Somebody on the underlay.
    pub stranger: Namespace,
}

/// Where a node's own frames come from.
pub(crate) const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
/// As [`MAC_A`].
pub(crate) const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

impl Topology {
    /// Builds it.
    pub fn new() -> Self {
        Self::with_boot(|_, _| ())
    }

    /// A network behind b, in the place of its addresses.
    pub fn lan_behind_b(&self) -> Namespace {
        let name = self.b.name().replace("-b", "-p");
        let (b, lan) = (&self.b, Namespace::new(name));
        b.ip("addr del 10.1.2.5/32 dev lo");
        b.ip("addr del fd00:1:2::5/128 dev lo");
        b.ip(&format!(
            "link add lan0 type veth peer name eth0 netns {}",
            lan.name()
        ));
        b.ip("link set lan0 up");
        b.ip("addr add 10.1.2.254/24 dev lan0");
        b.ip("addr add fd00:1:2::fe/64 dev lan0 nodad");
        lan.ip("link set lo up");
        lan.ip("link set eth0 up");
        lan.ip("addr add 10.1.2.5/24 dev eth0");
        lan.ip("addr add fd00:1:2::5/64 dev eth0 nodad");
        lan.ip("route add default via 10.1.2.254");
        lan.ip("route add default via fd00:1:2::fe");
        lan
    }

    /// Has the nodes check reverse paths strictly, on all interfaces that are and will be.
    pub fn check_reverse_paths(&self) {
        for node in [&self.a, &self.b] {
            node.run_script("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done");
        }
    }

    /// Builds it, with something to be done in each namespace before it has any interface: what a
    /// host does at boot before the network.
    pub fn with_boot(boot: impl Fn(&str, &Namespace)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let named = |role| {
            let namespace = Namespace::new(format!("wnl-{}-{count}-{role}", process::id()));
            boot(role, &namespace);
            namespace.ip("link set lo up");
            namespace
        };
        let topology = Self {
            a: named("a"),
            b: named("b"),
            lan: named("lan"),
            underlay: named("u"),
            stranger: named("x"),
        };
        let Self {
            a,
            b,
            lan,
            underlay,
            stranger,
        } = &topology;
        for forwarding in [a, b, underlay] {
            forwarding.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        }
        underlay.ip("link add bridge type bridge");
        underlay.ip("link set bridge up");
        underlay.ip("addr add 192.0.2.254/24 dev bridge");
        underlay.ip("addr add 2001:db8::fe/64 dev bridge nodad");
        for (node, end, mac, host) in [
            (a, "to-a", "0a", 1),
            (b, "to-b", "0b", 2),
            (stranger, "to-x", "0c", 66),
        ] {
            let name = node.name();
            underlay.ip(&format!(
                "link add {end} type veth peer name eth0 netns {name} address 02:00:00:00:00:{mac}"
            ));
            underlay.ip(&format!("link set {end} master bridge up"));
            node.ip("link set eth0 up");
            node.ip(&format!("addr add 192.0.2.{host}/24 dev eth0"));
            node.ip(&format!("addr add 2001:db8::{host}/64 dev eth0 nodad"));
            node.ip("route add default via 192.0.2.254");
            node.ip("route add default via 2001:db8::fe");
        }
        for (prefix, node) in [("1", "1"), ("2", "2")] {
            underlay.ip(&format!("route add 10.1.{prefix}.0/24 via 192.0.2.{node}"));
            underlay.ip(&format!("route add 10.1.0.{prefix}/32 via 192.0.2.{node}"));
            underlay.ip(&format!(
                "route add fd00:1:{prefix}::/64 via 2001:db8::{node}"
            ));
            underlay.ip(&format!(
                "route add fd00:1::{prefix}/128 via 2001:db8::{node}"
            ));
        }
        a.ip(&format!(
            "link add lan0 type veth peer name eth0 netns {}",
            lan.name()
        ));
        a.ip("link set lan0 up");
        a.ip("addr add 10.1.1.254/24 dev lan0");
        a.ip("addr add fd00:1:1::fe/64 dev lan0 nodad");
        lan.ip("link set eth0 up");
        lan.ip("addr add 10.1.1.5/24 dev eth0");
        lan.ip("addr add fd00:1:1::5/64 dev eth0 nodad");
        lan.ip("route add default via 10.1.1.254");
        lan.ip("route add default via fd00:1:1::fe");
        // Behind b there is only an address; it is enough to be sent to and from.
        b.ip("addr add 10.1.2.5/32 dev lo");
        b.ip("addr add fd00:1:2::5/128 dev lo");
        topology
    }
}

impl Default for Topology {
    fn default() -> Self {
        Self::new()
    }
}
