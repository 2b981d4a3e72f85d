//! One daemon among thousands of nodes, which are objects and handshakes.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;
use warren_config::PublicKey;
use warren_k8s::MeshNode;
use warren_tests_cluster::{Lab, Node, Played, patiently};

/// Nodes beside the one that is real.
const NODES: u16 = 5000;
/// How long is looked at a mesh at rest.
const REST: Duration = Duration::from_secs(60);
/// How often kubelets say in that time that they are there: each every five minutes.
const HEARTBEATS: u32 = NODES as u32 / 5;
/// Requests under way at once.
const AT_ONCE: usize = 32;
/// Clock ticks in a second of `/proc/PID/stat` (`USER_HZ`).
const TICKS: f64 = 100.0;

/// The others shake hands, and their kubelets say every five minutes that they are well.
#[test]
#[ignore = "minutes, and a gigabyte for the API server"]
fn a_daemon_at_rest_among_five_thousand_nodes_takes_a_hundredth_of_a_core_and_follows_each_at_once()
{
    let lab = Lab::new();
    lab.mesh(json!({
        "podPrefixes": ["10.128.0.0/10", "10.244.0.0/16", "fd00:10:244::/48"], "enforcement": "Strict",
        "mode": "Route", "mtu": 1400,
    }));
    let mut node = lab.join(1);
    node.be_patient(Duration::from_secs(300));
    // For its key, which stays.
    node.start();
    patiently("it has published", Duration::from_secs(60), || {
        lab.record(&node.name).is_some()
    });
    let key = key_of(&lab, &node);
    node.end(Signal::TERM);
    let played = Played::start(&lab.underlay, NODES, key);
    let admin = || lab.cluster.admin.clone();
    let keys = played.keys();
    lab.wait(all(0..NODES, |number| {
        make(admin(), number, keys[usize::from(number)])
    }));

    let made = lab.wait(writes(admin()));
    node.start();
    let reached = node.until("it has reached all", |status| {
        (status.cluster.as_ref()).is_some_and(|cluster| {
            let all = u32::from(NODES);
            (cluster.peers_expected, cluster.peers_ready) == (all, all)
        })
    });
    tell("at the start", &Spent::by(&node));
    eprintln!("all are ready {reached:?} after its status was there");

    // It counts on for a moment.
    let expected = Some(u32::from(NODES));
    patiently("its record says so", Duration::from_secs(300), || {
        let status = lab.record(&node.name).and_then(|record| record.status);
        status.map(|status| status.peers_ready) == expected
    });
    let before = Spent::by(&node);
    let written = lab.wait(writes(admin()));
    eprintln!("until then it wrote its record {} times", written - made);
    lab.wait(rest(admin()));
    let after = Spent::by(&node);
    let rest = after.since(&before);
    tell("at rest", &rest);
    assert_eq!(lab.wait(writes(admin())), written, "writes of records");
    assert!(rest.all < rest.at / 100.0, "{:.2} s", rest.all);

    // A burst for which no request waits for the one before.
    let before = Spent::by(&node);
    lab.wait(all((0..NODES).step_by(10), |number| {
        start_anew(admin(), number, 2)
    }));
    let has_route = |number: u16| {
        let prefix = prefix(number);
        let found = (node.host).attempt(&format!("ip route show table 51880 {prefix}"));
        found.stdout.contains("warren0")
    };
    let gone = 4321;
    assert!(has_route(gone));
    lab.wait(async {
        let nodes: Api<NodeObject> = Api::all(admin());
        let deleted = nodes.delete(&name(gone), &DeleteParams::default()).await;
        deleted.expect("it is there");
    });
    let took = patiently("its route is gone", Duration::from_secs(1), || {
        !has_route(gone)
    });
    assert!(has_route(gone - 1) && has_route(gone + 1));
    let after = Spent::by(&node);
    tell(
        "500 that start anew, and one that goes",
        &after.since(&before),
    );
    eprintln!("a node that goes: {took:?} until its route is gone");

    assert!(after.resident_mib < 100.0, "{} MiB", after.resident_mib);
}

/// A minute in which nothing happens but what happens in any cluster: kubelets say that they are there.
async fn rest(admin: Client) {
    let mut beat = tokio::time::interval(REST / HEARTBEATS);
    for number in (0..NODES).cycle().take(HEARTBEATS as usize) {
        beat.tick().await;
        let nodes: Api<NodeObject> = Api::all(admin.clone());
        let heartbeat = json!({"status": {"conditions": [{
            "type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:{:02}:00Z", number % 60),
        }]}});
        let patch = Patch::Strategic(heartbeat);
        let name = name(number);
        let patched = (nodes.patch_status(&name, &PatchParams::default(), &patch)).await;
        patched.expect("it is there");
    }
}

/// How often a record was written so far, by anybody.
async fn writes(admin: Client) -> u64 {
    let request = http::Request::get("/metrics").body(Vec::new());
    let request = request.expect("a request");
    let metrics = admin
        .request_text(request)
        .await
        .expect("the server answers");
    let of_records = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"meshnodes\"")
            && ["APPLY", "PATCH", "PUT", "POST", "DELETE"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    let counts = metrics.lines().filter(of_records);
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    let sum: u64 = counts.sum();
    assert!(sum >= u64::from(NODES), "{sum}: it counts otherwise");
    sum
}

/// The public key that a daemon has published.
fn key_of(lab: &Lab, node: &Node) -> PublicKey {
    let record = lab.record(&node.name).expect("it has published");
    record.spec.public_key.parse().expect("a key")
}

/// Does this for all of these, some at a time.
async fn all<F: Future<Output = ()> + Send + 'static>(
    numbers: impl Iterator<Item = u16>,
    mut work: impl FnMut(u16) -> F,
) {
    let mut under_way = JoinSet::new();
    for number in numbers {
        if under_way.len() == AT_ONCE {
            under_way
                .join_next()
                .await
                .expect("there is one")
                .expect("it is done");
        }
        under_way.spawn(work(number));
    }
    under_way.join_all().await;
}

/// A `Node` with what its daemon would publish.
async fn make(admin: Client, number: u16, key: PublicKey) {
    let name = name(number);
    let prefix = prefix(number);
    let address = Played::address(number).to_string();
    let node = serde_json::from_value::<NodeObject>(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": prefix, "podCIDRs": [prefix]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
    .expect("a Node");
    let nodes: Api<NodeObject> = Api::all(admin.clone());
    let node = nodes.create(&PostParams::default(), &node).await;
    let uid = node.expect("a Node").uid().expect("it has one");
    let record = serde_json::from_value::<MeshNode>(json!({
        "apiVersion": "mesh.warren.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid},
        ]},
        "spec": {
            "nodeUID": uid, "publicKey": key.to_string(), "endpoints": [address],
            "port": 51820, "mode": "Route", "mtu": 1400, "epoch": 1, "version": "0.1.0",
        },
    }))
    .expect("a record");
    let records: Api<MeshNode> = Api::all(admin);
    let made = records.create(&PostParams::default(), &record).await;
    made.expect("a record");
}

async fn start_anew(admin: Client, number: u16, epoch: i64) {
    let records: Api<MeshNode> = Api::all(admin);
    let patch = Patch::Merge(json!({"spec": {"epoch": epoch, "port": 51821}}));
    let patched = (records.patch(&name(number), &PatchParams::default(), &patch)).await;
    patched.expect("it is there");
}

fn name(number: u16) -> String {
    format!("played-{number}")
}

fn prefix(number: u16) -> String {
    format!("10.{}.{}.0/24", 128 + number / 256, number % 256)
}

/// What a daemon has used.
struct Spent {
    /// By the host's clock, in seconds.
    at: f64,
    /// Seconds of the thread that plans.
    main: f64,
    /// Seconds of all threads.
    all: f64,
    /// What its way to the API server carried, in KiB: its loopback has both ends of it.
    api_kib: f64,
    resident_mib: f64,
}

impl Spent {
    fn by(node: &Node) -> Self {
        let pid = node.daemon().pid();
        let seconds = |path: String| {
            let stat = fs::read_to_string(path).expect("it runs");
            // The name, which is second, may have spaces.
            let fields: Vec<&str> = stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .split(' ')
                .collect();
            let ticks = |place: usize| fields[place].parse::<f64>().expect("a number");
            (ticks(12) + ticks(13)) / TICKS
        };
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).expect("it runs");
        let pages: f64 = statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .expect("a number");
        let loopback = (node.host).run("awk '$1 == \"lo:\" { print $2 }' /proc/net/dev");
        let loopback: f64 = loopback.trim().parse().expect("a number");
        Self {
            at: uptime(),
            main: seconds(format!("/proc/{pid}/task/{pid}/stat")),
            all: seconds(format!("/proc/{pid}/stat")),
            api_kib: loopback / 1024.0,
            resident_mib: pages * 4096.0 / f64::from(1 << 20),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            at: self.at - before.at,
            main: self.main - before.main,
            all: self.all - before.all,
            api_kib: self.api_kib - before.api_kib,
            resident_mib: self.resident_mib,
        }
    }
}

fn tell(what: &str, spent: &Spent) {
    eprintln!(
        "{what}: {:.1} s, of which the control loop took {:.2} s and all threads {:.2} s; {:.0} KiB to and from the API; {:.0} MiB",
        spent.at, spent.main, spent.all, spent.api_kib, spent.resident_mib
    );
}

/// The host's clock, in seconds.
fn uptime() -> f64 {
    let uptime = fs::read_to_string("/proc/uptime").expect("it is Linux");
    (uptime.split(' ').next())
        .and_then(|seconds| seconds.parse().ok())
        .expect("a number")
}
