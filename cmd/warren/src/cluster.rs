//! `warren cluster`: how the mesh of a whole Kubernetes cluster is doing, what of it this node can prove, when a
//! new node may have pods, and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{self, Instant};
use warren_k8s::{
    Access, Client, Enforcement, NodeOverview, Overview, STARTING, Started, Starting, connect,
};

use crate::status::table;
use crate::verify::{self, PeerVerdict, UNSEALED, Verdict};
use crate::{args, output};

/// How often to look who has removed what.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Of how many characters of a key people compare the beginning.
const KEY_LEN: usize = 8;

pub(crate) fn run(args: &args::Cluster) -> anyhow::Result<ExitCode> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("there is no runtime")?;
    runtime.block_on(async {
        match &args.command {
            args::ClusterCommand::Status(args) => status(args).await,
            args::ClusterCommand::Verify(args) => verify(args).await,
            args::ClusterCommand::Untaint(args) => untaint(args).await,
            args::ClusterCommand::Remove(args) => remove(args).await,
        }
    })
}

async fn status(args: &args::ClusterStatus) -> anyhow::Result<ExitCode> {
    let overview = client(&args.access).await?.overview().await?;
    let wrong = wrong(&overview);
    if args.json {
        let told = json!({"wrong": wrong, "mesh": overview.mesh, "nodes": overview.nodes});
        let mut text = serde_json::to_string_pretty(&told)?;
        text.push('\n');
        output::raw(text.as_bytes())?;
    } else {
        output::raw(without_escapes(&in_words(&overview)).as_bytes())?;
        if !wrong.is_empty() {
            output::line("")?;
        }
        for sentence in &wrong {
            output::line(without_escapes(sentence))?;
        }
    }
    Ok(match wrong.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn verify(args: &args::ClusterVerify) -> anyhow::Result<ExitCode> {
    let overview = client(&args.access).await?.overview().await?;
    let status = verify::status_of(args.interface.as_deref())?;
    let verdict = verify::judge(&status)?;
    let nodes: BTreeMap<&String, Proof<'_>> = (overview.nodes.iter())
        .filter(|(name, _)| **name != verdict.node)
        .map(|(name, node)| (name, Proof::of(name, node, &verdict)))
        .collect();
    let mut wrong: Vec<String> = Vec::new();
    if !overview.nodes.contains_key(&verdict.node) {
        wrong.push(format!(
            "{}: the cluster of this API server has no such Node",
            verdict.node
        ));
    }
    wrong.extend(nodes.iter().filter_map(|(name, proof)| {
        let fault = proof.fault.as_ref()?;
        Some(format!("{name}: {fault}"))
    }));
    // Whoever is no Node of the cluster any more may be a peer still.
    let strangers = (verdict.peers.iter()).filter(|peer| !nodes.contains_key(&peer.name));
    wrong.extend(strangers.filter_map(|peer| {
        let fault = peer.fault.as_ref()?;
        Some(format!("{}, which is no Node: {fault}", peer.name))
    }));
    let passed = verdict.passed && wrong.is_empty();
    if args.json {
        let told = json!({
            "passed": passed,
            "wrong": wrong,
            "nodes": nodes,
            "verdict": verdict,
        });
        let mut text = serde_json::to_string_pretty(&told)?;
        text.push('\n');
        output::raw(text.as_bytes())?;
    } else {
        output::raw(without_escapes(&proofs_in_words(&verdict, &nodes)).as_bytes())?;
        for sentence in &wrong {
            output::line(without_escapes(sentence))?;
        }
        verify::print_summary(&verdict, passed)?;
    }
    Ok(match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What this node can say of its traffic to another.
#[derive(Debug, Serialize)]
struct Proof<'a> {
    /// What to make of it, in a word or two.
    state: &'static str,
    /// What is wrong, in a sentence.
    fault: Option<String>,
    #[serde(skip)]
    peer: Option<&'a PeerVerdict>,
}

impl<'a> Proof<'a> {
    fn of(name: &str, node: &NodeOverview, verdict: &'a Verdict) -> Self {
        let peer = verdict.peers.iter().find(|peer| peer.name == name);
        let proof = |state, fault: Option<String>| Self { state, fault, peer };
        let wrong = |state, fault: &str| proof(state, Some(fault.to_owned()));
        // What leaks does so whoever it is.
        if let Some(fault) = peer.and_then(|peer| peer.fault.as_deref()) {
            return wrong("WRONG", fault);
        }
        if node.outside {
            return proof("outside", None);
        }
        let is_reached = peer.is_some_and(|peer| peer.is_reached(verdict.overlay));
        match (is_reached, node.ready, &node.record, peer) {
            (true, ..) => proof("sealed", None),
            (_, false, ..) => proof("Node not Ready", None),
            (_, _, None, _) => wrong(
                "no daemon",
                "no warrend has published a record for it: it is outside the mesh",
            ),
            (_, _, _, None) => wrong("unknown", "the daemon here does not know it"),
            (_, _, _, Some(peer)) => match (peer.endpoint, &peer.remark) {
                (None, Some(remark)) => wrong("no endpoint", remark),
                (None, None) => wrong("no endpoint", "the daemon here has no endpoint of it"),
                _ if verdict.overlay => wrong("silent", UNSEALED),
                _ => wrong(
                    "silent",
                    "it has not answered through the tunnel: is its daemon running, and UDP to it open?",
                ),
            },
        }
    }
}

/// One line for each node but this one.
fn proofs_in_words(verdict: &Verdict, nodes: &BTreeMap<&String, Proof<'_>>) -> String {
    let from = if verdict.node.is_empty() {
        "here"
    } else {
        &verdict.node
    };
    let columns = [
        format!("FROM {from} TO"),
        "ENDPOINT".to_owned(),
        "ANSWERED".to_owned(),
        "SEALED".to_owned(),
        "TRIED PAST IT".to_owned(),
        "STATE".to_owned(),
    ];
    let mut rows = vec![columns];
    rows.extend(nodes.iter().map(|(name, proof)| {
        let told = |tell: fn(&PeerVerdict) -> Option<String>| {
            let told = proof.peer.and_then(tell);
            told.unwrap_or_else(|| "-".to_owned())
        };
        [
            (*name).clone(),
            told(|peer| Some(peer.endpoint?.to_string())),
            told(|peer| Some(format!("{}/{}", peer.answered, peer.asked))),
            told(|peer| Some(peer.records.to_string())),
            told(|peer| Some(peer.attempts.to_string())),
            proof.state.to_owned(),
        ]
    }));
    table(&rows)
}

async fn untaint(args: &args::ClusterUntaint) -> anyhow::Result<ExitCode> {
    let mut starting = Starting::follow(&client(&args.access).await?);
    // As the first process of a container it ends by none that it does not ask for.
    let mut end = signal(SignalKind::terminate()).context("signals cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be caught")?;
    loop {
        let started = tokio::select! {
            started = starting.next() => started,
            _ = end.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        };
        match started {
            Started::Node { name, enforcement } => output::line(without_escapes(&format!(
                "{name}: its mesh is {enforcement:?}; the taint {STARTING} is gone"
            )))?,
            Started::Failed(sentence) => output::note(without_escapes(&sentence)),
        }
    }
}

async fn remove(args: &args::ClusterRemove) -> anyhow::Result<ExitCode> {
    let client = client(&args.access).await?;
    if !client.enforce(Enforcement::Removed).await? {
        let left = Left::of(&client.overview().await?);
        if left.is_done() {
            output::note("There is no Mesh called default, and no daemon has one in force.");
            return Ok(ExitCode::SUCCESS);
        }
        bail!(
            "there is no Mesh called default, but the last one is in force on {}; apply one with \
             enforcement: Removed, and say this again",
            left.waited_for.join(", ")
        );
    }
    let end = Instant::now() + Duration::from_secs(args.timeout.into());
    let mut told = BTreeSet::new();
    loop {
        let left = match client.overview().await {
            Ok(overview) => {
                for (name, node) in &overview.nodes {
                    if has_removed(node) && told.insert(name.clone()) {
                        output::line(format_args!("{name}: interface, routes and rules are gone"))?;
                    }
                }
                Left::of(&overview)
            }
            // It is waited for as everything else is.
            Err(error) => Left::unknown(error.to_string()),
        };
        if left.is_done() {
            for name in &left.away {
                output::note(format_args!(
                    "{name}: its Node is not Ready; run `warrend uninstall` there when it is back"
                ));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() + LOOK_AGAIN > end {
            bail!("after {} s {}", args.timeout, left.sentence());
        }
        time::sleep(LOOK_AGAIN).await;
    }
}

/// What records say is written by nodes, and a terminal obeys what it is told.
fn without_escapes(text: &str) -> String {
    let is_harmful = |letter: char| letter.is_control() && letter != '\n';
    text.replace(is_harmful, "\u{fffd}")
}

/// Who has not said yet that everything is taken away.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    waited_for: Vec<String>,
    /// Nobody waits for nodes that are not Ready: they may never come back.
    away: Vec<String>,
    error: Option<String>,
}

impl Left {
    fn of(overview: &Overview) -> Self {
        let left = (overview.nodes.iter()).filter(|(_, node)| {
            // A node without a record has no daemon that could do it.
            node.record.is_some() && !has_removed(node)
        });
        let (waited_for, away): (Vec<_>, Vec<_>) = left.partition(|(_, node)| node.ready);
        let names = |nodes: Vec<(&String, &NodeOverview)>| {
            nodes.into_iter().map(|(name, _)| name.clone()).collect()
        };
        Self {
            waited_for: names(waited_for),
            away: names(away),
            error: None,
        }
    }

    fn unknown(error: String) -> Self {
        Self {
            waited_for: Vec::new(),
            away: Vec::new(),
            error: Some(error),
        }
    }

    fn is_done(&self) -> bool {
        self.waited_for.is_empty() && self.error.is_none()
    }

    fn sentence(&self) -> String {
        match &self.error {
            Some(error) => format!("it is not known who has removed what is Warren's: {error}"),
            None => format!(
                "these nodes have not said that they removed what is Warren's: {}; is warrend running \
                 there?",
                self.waited_for.join(", ")
            ),
        }
    }
}

fn has_removed(node: &NodeOverview) -> bool {
    let record = node.record.as_ref();
    record.is_some_and(|record| record.status.enforcement == Some(Enforcement::Removed))
}

/// One line for each node.
fn in_words(overview: &Overview) -> String {
    let columns = [
        "NODE",
        "KEY",
        "ENDPOINT",
        "PEERS",
        "ENFORCEMENT",
        "MTU",
        "STATE",
    ];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend((overview.nodes.iter()).map(|(name, node)| {
        let absent = || "-".to_owned();
        let Some(record) = &node.record else {
            let [key, endpoint, peers, enforcement, mtu] = std::array::from_fn(|_| absent());
            return [
                name.clone(),
                key,
                endpoint,
                peers,
                enforcement,
                mtu,
                state(node),
            ];
        };
        let (spec, status) = (&record.spec, &record.status);
        let key = spec.public_key.get(..KEY_LEN).unwrap_or(&spec.public_key);
        let endpoint = spec
            .endpoints
            .first()
            .map(|address| match address.contains(':') {
                true => format!("[{address}]:{}", spec.port),
                false => format!("{address}:{}", spec.port),
            });
        [
            name.clone(),
            key.to_owned(),
            endpoint.unwrap_or_else(absent),
            format!("{}/{}", status.peers_ready, status.peers_expected),
            status
                .enforcement
                .map_or_else(absent, |is| format!("{is:?}")),
            spec.mtu.to_string(),
            state(node),
        ]
    }));
    table(&rows)
}

/// What to make of a node, in a word or two.
fn state(node: &NodeOverview) -> String {
    let faults = faults(node);
    match (node.outside, node.ready, faults.first()) {
        (true, ..) => "outside".to_owned(),
        (_, false, _) => "Node not Ready".to_owned(),
        (_, _, Some((fault, _))) => fault.clone(),
        (_, _, None) => "well".to_owned(),
    }
}

/// What is wrong with the mesh, a sentence each. Nodes that are not Ready and those that are left outside
/// count for nothing.
fn wrong(overview: &Overview) -> Vec<String> {
    let mut wrong = Vec::new();
    if overview.mesh.is_none() {
        wrong.push("there is no Mesh called default; docs/kubernetes.md has one".to_owned());
    }
    for (name, node) in &overview.nodes {
        if node.ready && !node.outside {
            let faults = faults(node).into_iter();
            wrong.extend(faults.map(|(_, sentence)| format!("{name}: {sentence}")));
        }
    }
    wrong
}

/// What is wrong with a node: a word or two, and a sentence.
fn faults(node: &NodeOverview) -> Vec<(String, String)> {
    let Some(record) = &node.record else {
        let sentence = "no warrend has published a record for it: it is outside the mesh";
        return vec![("no daemon".to_owned(), sentence.to_owned())];
    };
    let mut faults = Vec::new();
    let mut is_ready = false;
    for condition in &record.status.conditions {
        let kind = &condition.type_;
        match condition.status.as_str() {
            "True" => is_ready |= kind == "Ready",
            "False" => {
                is_ready |= kind == "Ready";
                faults.push((
                    format!("not {kind}: {}", condition.reason),
                    format!("{kind}: {}", condition.message),
                ));
            }
            _ => {}
        }
    }
    if !is_ready {
        let sentence = "its daemon has not said yet how it is doing";
        faults.push(("not known".to_owned(), sentence.to_owned()));
    }
    faults
}

async fn client(args: &args::Access) -> anyhow::Result<Client> {
    let access = match (&args.kubeconfig, std::env::var_os("KUBECONFIG")) {
        (Some(file), _) => Access::Kubeconfig(file.clone()),
        (None, Some(file)) if !file.is_empty() => Access::Kubeconfig(file.into()),
        (None, _) if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => Access::InCluster,
        (None, _) => {
            let home = std::env::var_os("HOME").context(
                "nobody says how to reach the API server; name a kubeconfig with --kubeconfig or KUBECONFIG",
            )?;
            let usual = PathBuf::from(home).join(".kube/config");
            ensure!(
                usual.exists(),
                "nobody says how to reach the API server, and there is no {}; name a kubeconfig with --kubeconfig \
                 or KUBECONFIG",
                usual.display()
            );
            Access::Kubeconfig(usual)
        }
    };
    Ok(connect(&access).await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use warren_k8s::{MeshSpec, RecordOverview};

    use super::*;

    #[test]
    fn each_node_is_a_line_and_what_is_wrong_a_sentence() {
        let overview = overview();
        assert_eq!(
            in_words(&overview),
            "NODE   KEY       ENDPOINT             PEERS  ENFORCEMENT  MTU   STATE\n\
             away   AAAAAAAA  192.0.2.1:51820      0/2    Staged       1420  Node not Ready\n\
             bare   -         -                    -      -            -     no daemon\n\
             nas    -         -                    -      -            -     outside\n\
             new    AAAAAAAA  192.0.2.1:51820      0/0    -            1420  not known\n\
             sick   AAAAAAAA  [2001:db8::1]:51820  1/2    Strict       1420  not Ready: PeersMissing\n\
             sound  AAAAAAAA  192.0.2.1:51820      2/2    Strict       1420  well\n"
        );
        assert_eq!(
            wrong(&overview),
            [
                "bare: no warrend has published a record for it: it is outside the mesh",
                "new: its daemon has not said yet how it is doing",
                "sick: Ready: barn has not been reached",
            ]
        );
    }

    #[test]
    fn each_node_is_proved_or_a_sentence_says_why_not() {
        let overview = overview();
        let peer = |name: &str, answered| PeerVerdict {
            name: name.to_owned(),
            endpoint: Some("192.0.2.1:51820".parse().expect("an endpoint")),
            asked: 4,
            answered,
            records: 4,
            attempts: 7,
            ..PeerVerdict::default()
        };
        let mut verdict = Verdict {
            node: "new".to_owned(),
            passed: true,
            peers: vec![peer("sick", 0), peer("sound", 4), peer("away", 0)],
            ..Verdict::default()
        };
        let proofs = |verdict: &Verdict| -> Vec<(&'static str, bool)> {
            let nodes = overview.nodes.iter();
            let proofs = nodes.map(|(name, node)| Proof::of(name, node, verdict));
            let said = proofs.map(|proof| (proof.state, proof.fault.is_some()));
            said.collect()
        };
        let expected = [
            ("Node not Ready", false),
            ("no daemon", true),
            ("outside", false),
            ("unknown", true),
            ("silent", true),
            ("sealed", false),
        ];
        assert_eq!(proofs(&verdict), expected);
        // Whom nobody expects to answer is sent nothing in the clear either.
        verdict.peers[2].fault = Some("packets to it leave in the clear".to_owned());
        assert_eq!(proofs(&verdict)[0], ("WRONG", true));
        // Who does not know how to answer was sent ciphertext at least.
        verdict.overlay = true;
        assert_eq!(proofs(&verdict)[4], ("sealed", false));

        let name = "sound".to_owned();
        let proof = Proof::of(&name, &overview.nodes[&name], &verdict);
        assert_eq!(
            proofs_in_words(&verdict, &[(&name, proof)].into()),
            "FROM new TO  ENDPOINT         ANSWERED  SEALED  TRIED PAST IT  STATE\n\
             sound        192.0.2.1:51820  4/4       4       7              sealed\n"
        );
    }

    #[test]
    fn a_cluster_without_a_mesh_is_not_well() {
        let wrong = wrong(&Overview::default());
        assert!(wrong[0].starts_with("there is no Mesh"), "{wrong:?}");
    }

    #[test]
    fn a_removal_waits_for_ready_nodes_with_a_daemon() {
        let mut overview = overview();
        let left = Left::of(&overview);
        assert_eq!(left.waited_for, ["new", "sick", "sound"]);
        assert_eq!(left.away, ["away"]);
        assert!(!left.is_done());
        assert!(left.sentence().contains("new, sick, sound;"));
        for node in overview.nodes.values_mut() {
            if let Some(record) = &mut node.record
                && node.ready
            {
                record.status.enforcement = Some(Enforcement::Removed);
            }
        }
        assert!(Left::of(&overview).is_done());
        assert!(!Left::unknown("no".to_owned()).is_done());
    }

    fn overview() -> Overview {
        let node = |ready: bool, record: Option<RecordOverview>| NodeOverview {
            ready,
            outside: false,
            record,
        };
        let mut nas = node(true, None);
        nas.outside = true;
        let well = json!([{"type": "Ready", "status": "True"}]);
        let ill = json!([
            {"type": "Ready", "status": "False", "reason": "PeersMissing",
             "message": "barn has not been reached"},
            {"type": "Synced", "status": "Unknown"},
        ]);
        let v4 = "192.0.2.1";
        Overview {
            mesh: Some(MeshSpec::default()),
            nodes: [
                (
                    "away",
                    node(false, Some(record(v4, 0, 2, Some("Staged"), &well))),
                ),
                ("bare", node(true, None)),
                ("nas", nas),
                ("new", node(true, Some(record(v4, 0, 0, None, &json!([]))))),
                (
                    "sick",
                    node(
                        true,
                        Some(record("2001:db8::1", 1, 2, Some("Strict"), &ill)),
                    ),
                ),
                (
                    "sound",
                    node(true, Some(record(v4, 2, 2, Some("Strict"), &well))),
                ),
            ]
            .map(|(name, node)| (name.to_owned(), node))
            .into(),
        }
    }

    fn record(
        endpoint: &str,
        ready: u32,
        expected: u32,
        enforcement: Option<&str>,
        conditions: &serde_json::Value,
    ) -> RecordOverview {
        let mut conditions = conditions.clone();
        for condition in conditions.as_array_mut().expect("a list") {
            for field in ["reason", "message"] {
                if condition.get(field).is_none() {
                    condition[field] = json!("");
                }
            }
            condition["lastTransitionTime"] = json!("2026-11-21T12:00:00Z");
        }
        let spec = json!({
            "nodeUID": "u1",
            "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "endpoints": [endpoint],
            "port": 51820,
            "mode": "Route",
            "mtu": 1420,
            "epoch": 1,
            "version": "0.1.0",
        });
        let status = json!({
            "peersReady": ready,
            "peersExpected": expected,
            "enforcement": enforcement,
            "conditions": conditions,
        });
        RecordOverview {
            spec: serde_json::from_value(spec).expect("a spec"),
            status: serde_json::from_value(status).expect("a status"),
        }
    }
}
