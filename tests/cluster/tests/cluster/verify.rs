//! `warren verify` and `warren cluster verify` with what the pod may: CAP_NET_ADMIN and nothing else.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{socket_domain, socket_protocol};
use rustix::net::{AddressFamily, SendFlags, send};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};
use warren_control::status::{self, Status};
use warren_control::{Limits, Listener};
use warren_netlink::{Sought, Tap, TapError};
use warren_tests_cluster::{Cni, Flood, Host, Lab, Node, patiently, warren};

/// The tables by which it listens.
const TABLE: &str = "warren_verify_";

/// How `warren` is started on a node with one capability, as in the pod.
fn confined(node: &Node, words: &[&str]) -> Command {
    let mut command = node.host.command("setpriv");
    command.args(["--bounding-set", "-all,+net_admin"]);
    command.arg(warren()).args(words);
    command
}

fn run(mut command: Command) -> Output {
    command.output().expect("setpriv is installed")
}

#[track_caller]
fn verdict(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", in_words(output)))
}

fn in_words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn tables(node: &Node) -> String {
    node.host.run("nft list tables")
}

#[track_caller]
fn assert_proved(output: &Output, peers: usize) -> Value {
    let verdict = verdict(output);
    assert!(output.status.success(), "{verdict:#}");
    assert_eq!(verdict["passed"], true, "{verdict:#}");
    assert_eq!(verdict["leaks"], json!({}), "{verdict:#}");
    assert_eq!(verdict["missed"], 0, "{verdict:#}");
    let judged = verdict["peers"].as_array().expect("a list");
    assert_eq!(judged.len(), peers, "{verdict:#}");
    for peer in judged {
        assert!(peer["records"].as_u64() >= Some(4), "{verdict:#}");
        assert!(peer["attempts"].as_u64() > Some(0), "{verdict:#}");
        assert_eq!(peer["elsewhere"], 0, "{verdict:#}");
    }
    verdict
}

#[test]
fn with_net_admin_alone_every_peer_is_proved_while_pods_talk() {
    let (lab, nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    let floods = [
        Flood::start(&nodes[0].pod, &nodes[1].pod_addresses()),
        Flood::start(&nodes[2].pod, &nodes[0].pod_addresses()),
    ];
    let proved = assert_proved(&run(confined(&nodes[0], &["verify", "--json"])), 2);
    assert_eq!(proved["listened"], "netfilter_log", "{proved:#}");
    assert_eq!(proved["asked"], "datagrams", "{proved:#}");
    assert_eq!(proved["not_tried"], json!(["ICMP by a raw socket"]));
    for peer in proved["peers"].as_array().expect("a list") {
        assert_eq!(peer["answered"], 4, "{proved:#}");
    }
    assert!(!tables(&nodes[0]).contains(TABLE));

    // Where the node lets root ping.
    nodes[1]
        .host
        .run("sysctl -qw net.ipv4.ping_group_range='0 0'");
    let proved = assert_proved(&run(confined(&nodes[1], &["verify", "--json"])), 2);
    assert_eq!(proved["asked"], "pings", "{proved:#}");

    // And where all is allowed, what pods say to their own node is no leak.
    let mut command = nodes[0].host.command(warren());
    command.args(["verify", "--json"]);
    let proved = assert_proved(&run(command), 2);
    assert_eq!(proved["listened"], "packet_socket", "{proved:#}");
    assert_eq!(proved["not_tried"], json!([]), "{proved:#}");
    for flood in floods {
        flood.go_on();
        flood.stop();
    }
}

#[test]
fn an_overlay_is_proved_by_what_is_sealed_for_each_peer() {
    let lab = Lab::by(Cni::Vxlan);
    lab.mesh(json!({"mode": "Overlay", "overlayPorts": [8472], "enforcement": "Strict"}));
    let mut nodes: Vec<Node> = (1..=2).map(|number| lab.join(number)).collect();
    for node in &mut nodes {
        node.start();
    }
    lab.settle(&nodes);
    nodes[0].talk_to(&nodes[1]);
    let flood = Flood::start(&nodes[0].pod, &nodes[1].pod_addresses());
    for command in [confined(&nodes[0], &["verify", "--json"]), {
        let mut command = nodes[0].host.command(warren());
        command.args(["verify", "--json"]);
        command
    }] {
        let proved = assert_proved(&run(command), 1);
        assert_eq!(proved["overlay"], true, "{proved:#}");
    }
    flood.go_on();
    flood.stop();
    let said = in_words(&run(confined(&nodes[0], &["verify"])));
    let (line, rest) = said.split_once('\n').expect("several lines");
    assert!(
        line.starts_with("✓ n2: ") && line.contains(" packets of the overlay, "),
        "{said}"
    );
    assert!(!rest.contains("answers"), "nobody does: {said}");
    // Nothing of it has come between the pods.
    nodes[0].talk_to(&nodes[1]);

    // Without a session nothing is sealed.
    lab.until_kept(&nodes);
    for node in &mut nodes {
        node.end(Signal::KILL);
    }
    nodes[0].start();
    nodes[0].until("it is a node", |status| status.unready.is_none());
    let output = run(confined(&nodes[0], &["verify"]));
    let said = in_words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for sentence in [
        "n2: nothing was sealed for it: is its daemon running",
        "it does not hold: ",
    ] {
        assert!(said.contains(sentence), "no {sentence:?}: {said}");
    }
}

#[test]
fn plaintext_past_a_fence_that_is_gone_is_seen_and_named() {
    let (lab, mut nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    let claimed: Status = nodes[0].daemon().status();
    nodes[0].end(Signal::KILL);
    nodes[0].host.run(
        "nft delete table inet warren-warren0
        ip rule flush; ip rule add pref 0 lookup local; ip rule add pref 32766 lookup main
        ip -6 rule flush; ip -6 rule add pref 0 lookup local; ip -6 rule add pref 32766 lookup main",
    );
    // What it said while it lived.
    let socket = nodes[0].host.file("/run/warren/warren0.sock");
    let listener = Listener::claim(&socket).expect("nobody listens there");
    let told = Arc::new(move || claimed.clone());
    let server = status::serve(listener, told, Limits::default()).expect("a thread");

    let output = run(confined(&nodes[0], &["verify", "--json"]));
    let verdict = verdict(&output);
    assert_eq!(output.status.code(), Some(1), "{verdict:#}");
    assert_eq!(verdict["listened"], "netfilter_log", "{verdict:#}");
    let leaks = verdict["leaks"].as_object().expect("by words");
    for leak in [
        "UDP from 192.0.2.1 to 10.244.2.0",
        "the marker in the clear",
    ] {
        assert!(leaks.contains_key(leak), "no {leak}: {verdict:#}");
    }
    for (place, name) in ["n2", "n3"].into_iter().enumerate() {
        let peer = &verdict["peers"][place];
        assert_eq!(peer["name"], name, "{verdict:#}");
        assert_eq!(
            peer["fault"], "packets to it leave in the clear",
            "{verdict:#}"
        );
    }
    let kubeconfig = lab.credentials("n1");
    let words = [
        "cluster",
        "verify",
        "--kubeconfig",
        kubeconfig.to_str().expect("text"),
    ];
    let output = run(confined(&nodes[0], &words));
    let said = in_words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for sentence in [
        "n2: packets to it leave in the clear\n",
        "n3: packets to it leave in the clear\n",
        "it does not hold: ",
    ] {
        assert!(said.contains(sentence), "no {sentence:?}: {said}");
    }
    drop(server);
}

#[test]
fn every_node_of_the_cluster_is_a_line_and_who_is_missing_is_named() {
    let (lab, mut nodes) = Lab::of(3, "Strict");
    lab.settle(&nodes);
    lab.add_node("n9", 9);
    let kubeconfig = lab.credentials("n1");
    let words = [
        "cluster",
        "verify",
        "--kubeconfig",
        kubeconfig.to_str().expect("text"),
    ];
    let state_of = |said: &str, name: &str| {
        let line = said.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no line of {name}: {said}"));
        let (_, state) = line.rsplit_once("  ").unwrap_or_default();
        state.to_owned()
    };

    let output = run(confined(&nodes[0], &words));
    let said = in_words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("FROM n1 TO "), "{said}");
    let states = ["n2 ", "n3 ", "n9 "].map(|name| state_of(&said, name));
    assert_eq!(states, ["sealed", "sealed", "no daemon"], "{said}");
    assert!(said.contains("n9: no warrend has published"), "{said}");

    // Nobody waits for a node that is away.
    let away = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    lab.patch_node_status("n9", &away);
    let output = run(confined(&nodes[0], &words));
    let said = in_words(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(state_of(&said, "n9 "), "Node not Ready", "{said}");

    // But for one that should be there.
    nodes[1].end(Signal::KILL);
    let output = run(confined(&nodes[0], &words));
    let said = in_words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(state_of(&said, "n2 "), "silent", "{said}");
    assert!(said.contains("n2: it has not answered"), "{said}");
    assert_eq!(state_of(&said, "n3 "), "sealed", "{said}");
}

#[test]
fn what_a_killed_verify_left_is_taken_away_and_several_do_not_disturb_each_other() {
    let (lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    let prove = || confined(&nodes[0], &["verify", "--json"]);
    // As kernels before 5.12 keep it: one table in the place of the next, one beside it, and one of others.
    nodes[0].host.run(&format!(
        "nft add table inet {TABLE}22336
        nft add chain inet {TABLE}22336 out '{{ type filter hook postrouting priority 0; }}'
        nft add rule inet {TABLE}22336 out log group 22336
        nft add table inet {TABLE}22340
        nft add table inet {TABLE}1"
    ));
    assert_proved(&run(prove()), 1);
    let left = tables(&nodes[0]);
    assert!(!left.contains(&format!("{TABLE}22")), "{left}");
    assert!(left.contains(&format!("{TABLE}1")), "{left}");

    let several: Vec<Child> = (0..3)
        .map(|_| {
            let mut command = prove();
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("setpriv is installed")
        })
        .collect();
    for child in several {
        assert_proved(&child.wait_with_output().expect("it ends"), 1);
    }

    // Who waits for an answer that does not come can be killed meanwhile.
    nodes[1].end(Signal::KILL);
    let mut killed = confined(&nodes[0], &["verify"]);
    killed.stdout(Stdio::null()).stderr(Stdio::null());
    let mut killed = killed.spawn().expect("setpriv is installed");
    patiently("it listens", Duration::from_secs(30), || {
        tables(&nodes[0]).contains(&format!("{TABLE}22"))
    });
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    let output = run(confined(&nodes[0], &["verify"]));
    assert_eq!(output.status.code(), Some(0), "{}", in_words(&output));
    let left = tables(&nodes[0]);
    assert!(!left.contains(&format!("{TABLE}22")), "{left}");
}

#[test]
fn a_table_that_somebody_takes_away_or_empties_while_it_listens_is_named() {
    let (lab, mut nodes) = Lab::of(2, "Strict");
    lab.settle(&nodes);
    // An answer that does not come is waited for meanwhile.
    nodes[1].end(Signal::KILL);
    for message in [DELETE_TABLE, DELETE_RULES] {
        let mut command = confined(&nodes[0], &["verify"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("setpriv is installed");
        patiently("it listens", Duration::from_secs(30), || {
            tables(&nodes[0]).contains(TABLE)
        });
        ask_in_the_name_of(&child, message, "warren_verify_22336");
        let output = child.wait_with_output().expect("it ends");
        let said = in_words(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let named = "table inet warren_verify_22336 was removed or changed while it listened";
        assert!(said.contains(named), "{said}");
        assert!(!tables(&nodes[0]).contains(TABLE));
    }
}

// `include/uapi/linux/netfilter/nf_tables.h`, of the subsystem NFNL_SUBSYS_NFTABLES.
const DELETE_TABLE: u16 = 10 << 8 | 2;
const DELETE_RULES: u16 = 10 << 8 | 8;

/// Changes a table by the very sockets of the process that has made it. The kernel lets nobody else since 5.12,
/// and before it anybody.
#[track_caller]
fn ask_in_the_name_of(process: &Child, message: u16, table: &str) {
    const NETFILTER: u32 = 12;
    let padded = (table.len() + 1).next_multiple_of(4);
    let mut attribute = (4 + table.len() as u16 + 1).to_ne_bytes().to_vec();
    attribute.extend(1u16.to_ne_bytes());
    attribute.extend(table.as_bytes());
    attribute.resize(4 + padded, 0);
    // `struct nlmsghdr` and `struct nfgenmsg`: the family, version 0, and for the brackets the subsystem.
    let part = |kind: u16, generic: [u8; 4], rest: &[u8]| {
        let mut part = (20 + rest.len() as u32).to_ne_bytes().to_vec();
        part.extend(kind.to_ne_bytes());
        part.extend(1u16.to_ne_bytes());
        part.extend([0; 8]);
        part.extend(generic);
        part.extend(rest);
        part
    };
    let batch = [
        part(16, [0, 0, 0, 10], &[]),
        part(message, [1, 0, 0, 0], &attribute),
        part(17, [0, 0, 0, 10], &[]),
    ]
    .concat();

    let pid = Pid::from_child(process);
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
    let folder = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let numbers = fs::read_dir(folder).expect("it runs");
    let mut asked = 0;
    for number in numbers {
        let name = number.expect("listed").file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let number = number.expect("a number");
        let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let protocol = socket_protocol(&socket).ok().flatten();
        if socket_domain(&socket) == Ok(AddressFamily::NETLINK)
            && protocol.is_some_and(|protocol| protocol.as_raw().get() == NETFILTER)
        {
            send(&socket, &batch, SendFlags::empty()).expect("the kernel takes it");
            asked += 1;
        }
    }
    assert!(asked > 0, "it has no such socket");
}

#[test]
fn when_too_many_listen_at_once_a_sentence_says_so() {
    let host = Host::new();
    let listening = host.thread(|| {
        let sought = Sought::default();
        let taps: Result<Vec<Tap>, TapError> = (0..16).map(|_| Tap::open(&sought)).collect();
        let taps = taps.expect("sixteen at once");
        let refused = Tap::open(&sought).expect_err("no group is left");
        drop(taps);
        Tap::open(&sought).expect("all are left");
        refused.to_string()
    });
    let said = listening.join().expect("it has not panicked");
    assert!(
        said.starts_with("all 16 groups of the netfilter log"),
        "{said}"
    );
}
