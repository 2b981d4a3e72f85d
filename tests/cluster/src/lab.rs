//! The cluster of the drawing.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node as NodeObject};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use warren_control::status::Status;
use warren_k8s::{Access, Enforcement, Mesh, MeshNode};
use warren_tests_apiserver::{Cluster, Options, Server, object};
use warren_tests_lab::patiently;
use warren_tests_mesh::{Daemon, Host, Seen, Wiretap, listen, warrend};

use crate::Way;

/// All pods.
pub const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// Nodes that a cluster may have here.
const NODES: u8 = 60;
/// How long anything may take that a daemon does at once.
const AT_ONCE: Duration = Duration::from_secs(30);
/// How long a daemon may wait, at most, before it asks a server again that was away.
pub const ASKED_AGAIN: Duration = Duration::from_secs(60);

/// The cluster of the drawing, gone when it is dropped.
pub struct Lab {
    /// Where frames pass between nodes.
    pub underlay: Host,
    /// The API server.
    pub server: Arc<Server>,
    /// What is in it.
    pub cluster: Cluster,
    runtime: Runtime,
    scratch: Scratch,
    wiretap: Option<Wiretap>,
    cni: Cni,
}

/// What carries pods' traffic between nodes without a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cni {
    /// Routes by the nodes, as kindnet makes them.
    Routes,
    /// VXLAN between the nodes, at port 8472 as flannel makes it.
    Vxlan,
}

/// A node with a pod.
pub struct Node {
    /// The name of its `Node`.
    pub name: String,
    /// The last number of its addresses.
    pub number: u8,
    /// The number in the prefixes of its pods.
    pub pods: u8,
    /// The host itself.
    pub host: Host,
    /// Its pod.
    pub pod: Host,
    /// The state directory of its daemon.
    pub state: PathBuf,
    way: Option<Way>,
    daemon: Option<Daemon>,
    patience: Duration,
    server: SocketAddr,
    log: PathBuf,
    kubeconfig: PathBuf,
}

/// Gone when it is dropped.
struct Scratch(PathBuf);

impl Lab {
    /// A cluster with no node, and no Mesh.
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    /// The same, with another CNI.
    pub fn by(cni: Cni) -> Self {
        let mut lab = Self::new();
        lab.cni = cni;
        lab
    }

    /// The same, on another server.
    pub fn with(options: Options) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let scratch = std::env::temp_dir().join(format!("wcl-{}-{count}", process::id()));
        fs::create_dir(&scratch).expect("a temporary directory");
        let runtime = Runtime::new().expect("a runtime");
        let server = Arc::new(runtime.block_on(Server::start(options)));
        let cluster = runtime.block_on(async {
            let cluster = Cluster::bare(server.clone());
            cluster.install().await;
            let nodes: Api<NodeObject> = Api::all(cluster.admin.clone());
            // It was for the installation alone.
            let installed = nodes.delete("installed", &DeleteParams::default()).await;
            installed.expect("it is there");
            cluster
        });
        let underlay = Host::new();
        underlay.run(
            "ip link set lo up
            ip link add bridge type bridge
            ip link set bridge up
            ip addr add 192.0.2.254/24 dev bridge
            ip addr add 2001:db8::fe/64 dev bridge nodad",
        );
        Self {
            underlay,
            server,
            cluster,
            runtime,
            scratch: Scratch(scratch),
            wiretap: None,
            cni: Cni::Routes,
        }
    }

    /// A cluster of this many nodes with their daemons, and a Mesh of this enforcement.
    pub fn of(nodes: u8, enforcement: &str) -> (Self, Vec<Node>) {
        let lab = Self::new();
        lab.mesh(json!({"podPrefixes": PODS, "enforcement": enforcement}));
        let mut nodes: Vec<Node> = (1..=nodes).map(|number| lab.join(number)).collect();
        // As many as there are start on as many cores as there are.
        let patience = AT_ONCE + Duration::from_secs(2) * nodes.len() as u32;
        for node in &mut nodes {
            node.patience = patience;
            node.start();
        }
        (lab, nodes)
    }

    /// Nodes 1 and 2 with their daemons, which have reached each other in a staged mesh and closed that.
    #[track_caller]
    pub fn staged_pair(&self) -> Vec<Node> {
        let mut nodes: Vec<Node> = (1..=2).map(|number| self.join(number)).collect();
        for node in &mut nodes {
            node.start();
        }
        self.settle(&nodes);
        for node in &nodes {
            node.until_latched();
        }
        nodes
    }

    /// Waits for what the API server does.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Applies the Mesh with this spec, as an operator does.
    pub fn mesh(&self, spec: Value) {
        self.try_mesh(spec).expect("the Mesh is taken");
    }

    /// The same, where it may be refused.
    pub fn try_mesh(&self, spec: Value) -> kube::Result<()> {
        let mut mesh = json!({
            "apiVersion": "mesh.warren.dev/v1alpha1",
            "kind": "Mesh",
            "metadata": {"name": "default"},
        });
        mesh["spec"] = spec;
        let mesh = object(mesh);
        self.wait(self.cluster.apply(&mesh)).map(|_| ())
    }

    /// The Meshes.
    pub fn meshes(&self) -> Api<Mesh> {
        Api::all(self.cluster.admin.clone())
    }

    /// The `Node` objects.
    pub fn nodes(&self) -> Api<NodeObject> {
        Api::all(self.cluster.admin.clone())
    }

    /// Waits until the record of this node says that the Mesh cannot be used, and why.
    #[track_caller]
    pub fn until_unconfigured(&self, name: &str, why: &str) {
        patiently(why, AT_ONCE, || {
            let status = self.record(name).and_then(|record| record.status);
            let mut conditions = status.into_iter().flat_map(|status| status.conditions);
            conditions.any(|condition| {
                condition.type_ == "Configured"
                    && condition.status == "False"
                    && condition.message.contains(why)
            })
        });
    }

    /// Waits until the record of this node says that nothing of Warren is left there.
    #[track_caller]
    pub fn until_removed(&self, name: &str) {
        patiently("its record says so", AT_ONCE, || {
            let status = self.record(name).and_then(|record| record.status);
            status.and_then(|status| status.enforcement) == Some(Enforcement::Removed)
        });
    }

    /// What a daemon publishes.
    pub fn record(&self, name: &str) -> Option<MeshNode> {
        let records: Api<MeshNode> = Api::all(self.cluster.admin.clone());
        self.wait(records.get_opt(name))
            .expect("the server answers")
    }

    /// A host with its pod, its `Node`, and a way to the API server. Its daemon is not started.
    pub fn join(&self, number: u8) -> Node {
        self.join_with(number, &prefixes_of(number))
    }

    /// The same, where the `Node` has no prefixes yet.
    pub fn join_without_prefixes(&self, number: u8) -> Node {
        self.join_with(number, &[])
    }

    /// The same, where the `Node` has these prefixes, whatever the addresses of its pod.
    pub fn join_with(&self, number: u8, prefixes: &[String]) -> Node {
        let name = format!("n{number}");
        let host = Host::new();
        let pod = Host::new();
        let (pid, pod_pid) = (host.pid(), pod.pid());
        self.underlay.run(&format!(
            "ip link add to-{name} type veth peer name eth0 netns {pid}
            ip link set to-{name} master bridge up"
        ));
        let others = self.cni.script(number);
        host.run(&format!(
            "ip link set lo up
            echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter
            ip link set eth0 up
            ip addr add 192.0.2.{number}/24 dev eth0
            ip addr add 2001:db8::{number}/64 dev eth0 nodad
            ip route add default via 192.0.2.254
            ip route add default via 2001:db8::fe
            ip link add pod type veth peer name eth0 netns {pod_pid}
            ip link set pod up
            ip addr add 10.244.{number}.1/24 dev pod
            ip addr add fd00:10:244:{number}::1/64 dev pod nodad
            {others}"
        ));
        pod.run(&format!(
            "ip link set lo up
            ip link set eth0 up
            ip addr add 10.244.{number}.5/24 dev eth0
            ip addr add fd00:10:244:{number}::5/64 dev eth0 nodad
            ip route add default via 10.244.{number}.1
            ip route add default via fd00:10:244:{number}::1"
        ));
        self.add_node_with(&name, number, prefixes);
        let kubeconfig = self.credentials(&name);
        let server = server_of(&kubeconfig);
        let scratch = &self.scratch.0;
        Node {
            way: Some(Way::open(&host, server)),
            state: scratch.join(&name),
            log: scratch.join(format!("{name}.log")),
            daemon: None,
            patience: AT_ONCE,
            name,
            number,
            pods: number,
            host,
            pod,
            server,
            kubeconfig,
        }
    }

    /// Makes the `Node` of a host; its uid.
    pub fn add_node(&self, name: &str, number: u8) -> String {
        self.add_node_with(name, number, &prefixes_of(number))
    }

    /// The same, with these prefixes.
    pub fn add_node_with(&self, name: &str, number: u8, prefixes: &[String]) -> String {
        let node = object(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"podCIDR": prefixes.first(), "podCIDRs": prefixes},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": format!("192.0.2.{number}")},
                    {"type": "InternalIP", "address": format!("2001:db8::{number}")},
                ],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }));
        let node = self.wait(self.nodes().create(&PostParams::default(), &node));
        node.expect("a Node").uid().expect("it has one")
    }

    /// Changes the status of a `Node`, as its kubelet does.
    pub fn patch_node_status(&self, name: &str, status: &Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let nodes = self.nodes();
        let by = PatchParams::default();
        let patched = nodes.patch_status(name, &by, &patch);
        self.wait(patched).expect("the Node is there");
    }

    /// Gives a `Node` that has none its prefixes, as the controller manager does.
    pub fn give_prefixes(&self, name: &str, prefixes: &[String]) {
        let patch = Patch::Merge(json!({
            "spec": {"podCIDR": prefixes.first(), "podCIDRs": prefixes},
        }));
        let nodes = self.nodes();
        let by = PatchParams::default();
        let patched = nodes.patch(name, &by, &patch);
        self.wait(patched).expect("the Node has none");
    }

    /// The events of this reason: on which `Node`, and what they say.
    pub fn events(&self, reason: &str) -> Vec<(String, String)> {
        let events: Api<Event> = Api::namespaced(self.cluster.admin.clone(), "default");
        let events = self.wait(events.list(&ListParams::default()));
        let events = events.expect("the operator may").into_iter();
        events
            .filter(|event| event.reason.as_deref() == Some(reason))
            .map(|event| {
                let node = event.involved_object.name.unwrap_or_default();
                (node, event.message.unwrap_or_default())
            })
            .collect()
    }

    /// A new pod of a node's daemon: what its token is in.
    pub fn credentials(&self, name: &str) -> PathBuf {
        let daemon = self.wait(self.cluster.daemon(name));
        match daemon.access(&self.cluster) {
            Access::Kubeconfig(path) => path,
            Access::InCluster => panic!("these tests are no pod"),
        }
    }

    /// Listens on the underlay from now on.
    pub fn listen(&mut self) {
        self.listen_for(&PODS);
    }

    /// Listens for what is from or to these prefixes alone.
    pub fn listen_for(&mut self, prefixes: &[&str]) {
        self.wiretap = Some(listen(&self.underlay, prefixes));
    }

    /// Listens no more; what was seen.
    #[track_caller]
    pub fn stop_listening(&mut self) -> Seen {
        self.wiretap.take().expect("it listens").stop()
    }

    /// Listens no more: that tunnels were seen, and nothing of pods in the clear.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        self.stop_listening().assert_closed();
    }

    /// Waits until all of these are so ready as they expect of each other.
    #[track_caller]
    pub fn settle(&self, nodes: &[Node]) {
        for node in nodes {
            let others = nodes.len() as u32 - 1;
            node.until(&format!("{} has reached {others}", node.name), |status| {
                let cluster = status.cluster.as_ref();
                cluster.is_some_and(|cluster| {
                    (cluster.peers_ready, cluster.peers_expected) == (others, others)
                })
            });
        }
    }

    /// Waits until the disk of the first has the keys of the others, with which it starts when it is killed. What is
    /// new waits for some seconds, and for up to a minute where the disk was slow.
    #[track_caller]
    pub fn until_kept(&self, nodes: &[Node]) {
        let (first, others) = nodes.split_first().expect("some");
        let kept = first.state.join("cluster.json");
        let keys: Vec<String> = (others.iter())
            .map(|node| self.record(&node.name).expect("it is published"))
            .map(|record| record.spec.public_key)
            .collect();
        patiently("the disk has its peers", Duration::from_secs(90), || {
            fs::read_to_string(&kept).is_ok_and(|kept| keys.iter().all(|key| kept.contains(key)))
        });
    }
}

impl Cni {
    /// What it does on the node of this number.
    fn script(self, number: u8) -> String {
        let others = (1..=NODES).filter(|other| *other != number);
        match self {
            Self::Routes => others
                .map(|other| {
                    format!(
                        "ip route add 10.244.{other}.0/24 via 192.0.2.{other}
                        ip route add fd00:10:244:{other}::/64 via 2001:db8::{other}\n"
                    )
                })
                .collect(),
            Self::Vxlan => {
                let device = format!(
                    "ip link add vx type vxlan id 1 dstport 8472 local 192.0.2.{number} dev eth0
                    ip link set vx mtu 1370 up
                    ip addr add 10.244.{number}.0/32 dev vx
                    ip addr add fd00:10:244:{number}::/128 dev vx nodad\n"
                );
                let ways = others.map(|other| {
                    format!(
                        "bridge fdb append 00:00:00:00:00:00 dev vx dst 192.0.2.{other}
                        ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev vx onlink
                        ip route add fd00:10:244:{other}::/64 via fd00:10:244:{other}:: dev vx onlink\n"
                    )
                });
                std::iter::once(device).chain(ways).collect()
            }
        }
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// The addresses of its pod.
    pub fn pod_addresses(&self) -> [String; 2] {
        let pods = self.pods;
        [format!("10.244.{pods}.5"), format!("fd00:10:244:{pods}::5")]
    }

    /// Its CNI gives its pod an address in the prefixes of this number. The pod answers at the earlier one
    /// as well, if anything still comes there, and sends nothing from it.
    pub fn renumber_pod(&mut self, pods: u8) {
        let before = std::mem::replace(&mut self.pods, pods);
        self.host.run(&format!(
            "ip route del 10.244.{pods}.0/24
            ip route del fd00:10:244:{pods}::/64
            ip addr flush dev pod scope global
            ip addr add 10.244.{pods}.1/24 dev pod
            ip addr add fd00:10:244:{pods}::1/64 dev pod nodad
            ip route add 10.244.{before}.0/24 dev pod
            ip route add fd00:10:244:{before}::/64 dev pod"
        ));
        self.pod.run(&format!(
            "ip addr flush dev eth0 scope global
            ip addr add 10.244.{pods}.5/24 dev eth0
            ip addr add fd00:10:244:{pods}::5/64 dev eth0 nodad
            ip addr add 10.244.{before}.5/32 dev eth0
            ip addr add fd00:10:244:{before}::5/128 dev eth0 nodad preferred_lft 0
            ip route replace default via 10.244.{pods}.1
            ip route replace default via fd00:10:244:{pods}::1"
        ));
    }

    /// The pods of both talk to each other for a while, both families.
    #[track_caller]
    pub fn talk_to(&self, other: &Self) {
        for (from, to) in [(self, other), (other, self)] {
            for address in to.pod_addresses() {
                let run = from
                    .pod
                    .attempt(&format!("ping -q -c 5 -i 0.02 -W 2 {address}"));
                assert!(run.success, "{run}\n{}\n{}", from.describe(), to.describe());
            }
        }
    }

    /// Starts its daemon.
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "it runs");
        let mut command = self.command();
        self.daemon = Some(Daemon::spawn(&self.host, &self.log, &mut command));
    }

    /// How its daemon is started.
    pub fn command(&self) -> Command {
        let mut command = self.host.command(warrend());
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.args(["--node", &self.name, "--workers", "1"]);
        command.args(["--http", "127.0.0.1:9586", "--state"]);
        command.arg(&self.state);
        command
    }

    /// Its daemon.
    #[track_caller]
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    /// Ends its daemon by this signal.
    #[track_caller]
    pub fn end(&mut self, signal: rustix::process::Signal) {
        let daemon = self.daemon.take().expect("it runs");
        daemon.end(signal);
    }

    /// Waits until its daemon's status is so; how long it took.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Duration {
        let mut last = None;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            patiently(what, self.patience, || {
                last = self.daemon().ask();
                last.as_ref().is_some_and(&is_so)
            })
        }));
        outcome.unwrap_or_else(|_| panic!("{what}: {last:#?}\n{}", self.log()))
    }

    /// Waits until it has reached something, and closed it.
    #[track_caller]
    pub fn until_latched(&self) {
        self.until("it has latched", |status| {
            let cluster = status.cluster.as_ref();
            cluster.is_some_and(|cluster| cluster.latched_prefixes > 0)
        });
    }

    /// What its host looks like, for whoever wonders why something does not arrive.
    pub fn describe(&self) -> String {
        let host = self.host.attempt(
            "ip rule; ip route show table 51880; ip -6 rule; ip -6 route show table 51880
            nft list ruleset; ip -s link; nstat -az | grep -i 'filter\\|discard'",
        );
        format!("{}: {host}\n{}", self.name, self.log())
    }

    /// What its daemons have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its daemon may take so long from now on.
    pub fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// From now on the API server is away for this node.
    pub fn shut_way(&mut self) {
        self.way = None;
    }

    /// The API server is back for this node.
    pub fn open_way(&mut self) {
        self.way = Some(Way::open(&self.host, self.server));
    }

    /// Its daemon has other credentials from its next start on.
    pub fn credit(&mut self, kubeconfig: PathBuf) {
        self.kubeconfig = kubeconfig;
    }

    /// What its daemon answers to this request by HTTP.
    pub fn http(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let asked = self.host.thread(move || {
            let mut stream = TcpStream::connect("127.0.0.1:9586")?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            io::Result::Ok(answer)
        });
        let answer = asked.join().expect("nobody panics");
        answer.unwrap_or_else(|error| panic!("{error}: {}", self.log()))
    }
}

/// The prefixes of the pods of a node with this number.
pub fn prefixes_of(number: u8) -> [String; 2] {
    [
        format!("10.244.{number}.0/24"),
        format!("fd00:10:244:{number}::/64"),
    ]
}

/// Of two nodes one is the first to send through the tunnel. Until the other does, what it sends in the
/// clear comes by another way than the answers take, which a strict check of reverse paths drops.
pub fn check_reverse_paths_loosely(nodes: &[Node]) {
    for node in nodes {
        node.host
            .run("for conf in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 2 > $conf; done");
    }
}

/// Where a kubeconfig says that the server is.
fn server_of(kubeconfig: &Path) -> SocketAddr {
    let text = fs::read_to_string(kubeconfig).expect("it was just written");
    let config: Value = serde_json::from_str(&text).expect("JSON is YAML");
    let url = config["clusters"][0]["cluster"]["server"].as_str();
    let address = url.and_then(|url| url.strip_prefix("https://")?.parse().ok());
    address.expect("an address with a port")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
