//! What a daemon tells `warren status`, and the socket on which it tells it.
//!
//! A request is a line of JSON and so is its answer. Both carry [`VERSION`]; fields are only ever
//! added, and a reader ignores those that it does not know. Nothing in here is secret: there is no
//! field that could hold a private or preshared key.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_config::{DeviceStatus, PeerStatus, PublicKey};

use crate::server::{Connection, Handler};
use crate::{Limits, Listener, Server};

/// The version of requests and answers. A daemon refuses one that it does not speak.
pub const VERSION: u32 = 1;

/// Bound of a request in bytes.
const REQUEST_MAX: usize = 4096;

/// Bound of an answer in bytes: ten thousand peers fit several times.
const ANSWER_MAX: u64 = 64 << 20;

/// Where the daemon that serves `interface` tells its status.
pub fn path(interface: &str) -> PathBuf {
    PathBuf::from(format!("/run/warren/{interface}.sock"))
}

/// A question of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The version that the client speaks.
    pub version: u32,
    /// What it wants to know.
    pub ask: Ask,
}

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How the daemon and its peers are doing.
    Status,
}

/// An answer of the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The version that the daemon speaks.
    pub version: u32,
    /// What it says.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The answer to [`Ask::Status`].
    Status(Box<Status>),
    /// Why there is no answer, in a sentence.
    Error(String),
}

/// How a daemon and its peers are doing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The daemon and its device.
    pub node: Node,
    /// Every peer, those included that have no key yet.
    pub peers: Vec<Peer>,
    /// Packets dropped since the start, by the name of the reason.
    pub drops: BTreeMap<String, u64>,
    /// Features of the kernel, by name, and whether they are in use.
    pub features: BTreeMap<String, bool>,
    /// What waits in the tunnel; `None` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// What is not as it should be, a sentence each.
    pub problems: Vec<String>,
    /// Why this node is not ready to carry traffic, in a sentence that says what to do; `None` when it
    /// is. A peer that does not answer is no reason, nor is an API server that is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unready: Option<String>,
    /// Seconds since the control loop last came round, where somebody watches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_idle_s: Option<u64>,
    /// Which fences stand; `None` where nothing is to be fenced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fences: Option<Fences>,
    /// The node's part in a cluster, if it is in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// The plan in force in words, as `warren plan` describes one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<Section>,
}

/// What waits in a tunnel for something. All of it is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// Handshake messages that are not served yet.
    pub handshakes: u64,
    /// Bytes of packets whose peers have no session yet.
    pub staged_bytes: u64,
}

/// What keeps the mesh's prefixes from travelling in the clear. Each of the first two does alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fences {
    /// Routing rules with a blackhole stand, and no rule of others takes packets past them.
    pub rules: bool,
    /// The nftables table stands.
    pub nftables: bool,
    /// The fence is loaded before the network, so that there is no gap from boot to start.
    pub boot: bool,
}

/// A node's part in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// What is enforced on this node now; `None` until that is known.
    pub enforcement: Option<Enforcement>,
    /// For how long it has been staged, in seconds of this run; `None` where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged_s: Option<u64>,
    /// The nodes that keep it from turning strict, and what each of them lacks, in a sentence.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub holdups: BTreeMap<String, String>,
    /// It has turned strict, and stays so.
    pub latched: bool,
    /// How many prefixes of the others this node never sends to in the clear again.
    pub latched_prefixes: u32,
    /// Peers that there should be.
    pub peers_expected: u32,
    /// Peers that are ready.
    pub peers_ready: u32,
    /// What is read from the API server, by resource.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub api: BTreeMap<String, Feed>,
    /// How often a peer's key has changed under the same uid since the start.
    pub key_changes: u64,
    /// The epoch that this start has published; `None` before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// The conditions of its record.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What happens to traffic of the mesh that cannot be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Enforcement {
    /// It passes until its destination has once been reached through the tunnel, and never again.
    Staged,
    /// It is dropped.
    Strict,
    /// It passes.
    Permissive,
    /// Interface, routes and rules are taken away.
    Removed,
}

/// One resource as it is read from the API server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Feed {
    /// Seconds since the server last said something of it; since the start where it never did.
    pub staleness_s: u64,
    /// What went wrong last, in a sentence, while it has not come right since.
    pub error: Option<String>,
}

/// A condition as Kubernetes has them: each holds when all is well.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Its type: `Ready`, `IdentityEnforced`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// Whether a condition holds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows.
    #[default]
    Unknown,
}

/// One thing of a plan, and all that is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Section {
    /// What it is: `interface warren0`, `peer hut`.
    pub heading: String,
    /// One property a line.
    pub lines: Vec<String>,
}

/// The daemon and its device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name in the mesh, if it is in one.
    pub name: Option<String>,
    /// Its public key in base64.
    pub public_key: Option<String>,
    /// The daemon's version.
    pub version: String,
    /// The tunnel interface.
    pub interface: String,
    /// Whether the interface is up.
    pub up: bool,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// The UDP port in use.
    pub listen_port: u16,
    /// The mark of the tunnel's own packets; 0 is none.
    pub fwmark: u32,
    /// How many workers carry packets.
    pub workers: u32,
    /// What seals and opens packets, by name.
    pub aead: String,
    /// The length of the longest text for which that is used; the library does those that are longer.
    /// `None` where it is used for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aead_longest_bytes: Option<u64>,
    /// The digest of the mesh file in force.
    pub mesh_digest: Option<String>,
    /// How the mesh's prefixes are kept from leaving in the clear, in words.
    pub fence: Option<String>,
    /// Its own addresses in the mesh.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub addresses: BTreeSet<IpAddr>,
    /// All prefixes of the mesh: what is fenced.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub mesh_prefixes: BTreeSet<IpNet>,
    /// Its own prefixes, which lead to what is behind it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub own_prefixes: BTreeSet<IpNet>,
    /// What of the mesh's prefixes is carried in the clear: exceptions that somebody asked for.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub open_prefixes: BTreeSet<IpNet>,
    /// The UDP ports of the overlay whose packets are what is encrypted; none where prefixes are.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub overlay_ports: BTreeSet<u16>,
}

/// How a peer is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// Its name in the mesh.
    pub name: Option<String>,
    /// Its public key in base64; none for a node that has no key yet.
    pub public_key: Option<String>,
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// How that endpoint is known.
    pub via: Via,
    /// Where it may be reached, in the order in which to try.
    pub candidates: Vec<SocketAddr>,
    /// Its prefixes.
    pub allowed_ips: BTreeSet<IpNet>,
    /// When the last handshake was completed, in seconds since the Unix epoch.
    pub last_handshake_unix_s: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Datagrams received from it.
    pub rx_packets: u64,
    /// Datagrams sent to it.
    pub tx_packets: u64,
    /// Interval of its persistent keepalive in seconds; 0 is off.
    pub persistent_keepalive_s: u16,
    /// The digest of the mesh file that it runs, if it told.
    pub mesh_digest: Option<String>,
    /// What is wrong with it, in a sentence.
    pub problem: Option<String>,
    /// Whether it is ready: it has shaken hands with this key and epoch, and no initiation has since
    /// gone unanswered for 90 s. `None` where nobody expects it to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}

/// How a peer's endpoint is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// There is no endpoint: the peer must call first.
    #[default]
    Nothing,
    /// It is one of the candidates.
    Candidate,
    /// The peer was heard from there.
    Roaming,
}

impl Peer {
    /// What a device knows of a peer. Its name, its digest and its problems are for others to add.
    pub fn of_device(key: &PublicKey, peer: &PeerStatus) -> Self {
        let via = match peer.endpoint {
            None => Via::Nothing,
            Some(endpoint) if peer.config.endpoints.contains(&endpoint) => Via::Candidate,
            Some(_) => Via::Roaming,
        };
        Self {
            public_key: Some(key.to_string()),
            endpoint: peer.endpoint,
            via,
            candidates: peer.config.endpoints.clone(),
            allowed_ips: peer.config.allowed_ips.clone(),
            last_handshake_unix_s: peer.last_handshake.map(|at| at.0.as_secs()),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            rx_packets: peer.rx_packets,
            tx_packets: peer.tx_packets,
            persistent_keepalive_s: peer.config.persistent_keepalive,
            ..Self::default()
        }
    }
}

impl Status {
    /// What a device knows of itself and its peers, without its secrets.
    pub fn of_device(device: &DeviceStatus) -> Self {
        let peers = device.peers.iter();
        Self {
            node: Node {
                public_key: device
                    .private_key
                    .as_ref()
                    .map(|key| key.public().to_string()),
                listen_port: device.listen_port,
                fwmark: device.fwmark,
                ..Node::default()
            },
            peers: peers
                .map(|(key, peer)| Peer::of_device(key, peer))
                .collect(),
            ..Self::default()
        }
    }
}

/// Who knows how the daemon is doing.
pub trait Source: Send + Sync {
    /// How it is doing at this moment.
    fn status(&self) -> Status;

    /// [`Status::unready`] alone, which is asked for every few seconds.
    fn unready(&self) -> Option<String> {
        self.status().unready
    }

    /// [`Status::control_idle_s`] alone.
    fn control_idle_s(&self) -> Option<u64> {
        self.status().control_idle_s
    }
}

impl<F: Fn() -> Status + Send + Sync> Source for F {
    fn status(&self) -> Status {
        self()
    }
}

/// Tells what `source` knows to the clients of `listener`, until the server is stopped or the socket
/// deleted.
pub fn serve(listener: Listener, source: Arc<dyn Source>, limits: Limits) -> io::Result<Server> {
    Server::start(listener, Arc::new(Teller { source }), limits)
}

/// Why a daemon's status is not known.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no daemon answers at {}: {source}", .path.display())]
    NoDaemon {
        /// Where one was looked for.
        path: PathBuf,
        /// What the host said.
        r#source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon's answer was cut off: {0}")]
    CutOff(io::Error),
    /// The answer is not what this version understands.
    #[error("the daemon's answer is not understood: {0}")]
    NotUnderstood(serde_json::Error),
    /// The daemon says why it gives none.
    #[error("the daemon says: {0}")]
    Refused(String),
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::CutOff(error)
    }
}

impl From<serde_json::Error> for AskError {
    fn from(error: serde_json::Error) -> Self {
        Self::NotUnderstood(error)
    }
}

/// Asks the daemon at `path` how it is doing, and waits for `patience` at most for each step.
pub fn ask(path: &Path, patience: Duration) -> Result<Status, AskError> {
    let mut stream = UnixStream::connect(path).map_err(|source| AskError::NoDaemon {
        path: path.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let request = Request {
        version: VERSION,
        ask: Ask::Status,
    };
    stream.write_all(&line_of(&request)?)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match serde_json::from_str::<Answer>(&answer)?.outcome {
        Outcome::Status(status) => Ok(*status),
        Outcome::Error(sentence) => Err(AskError::Refused(sentence)),
    }
}

struct Teller {
    source: Arc<dyn Source>,
}

impl Handler for Teller {
    fn converse(&self, connection: &mut Connection) -> io::Result<()> {
        let mut request = Vec::with_capacity(REQUEST_MAX);
        let mut buffer = [0; REQUEST_MAX];
        loop {
            let received = connection.receive(&mut buffer, !request.is_empty())?;
            if received == 0 {
                return Ok(());
            }
            for byte in &buffer[..received] {
                if *byte == b'\n' {
                    self.answer(&request, connection)?;
                    request.clear();
                } else if request.len() == REQUEST_MAX {
                    return answer(connection, Outcome::Error("the request is too long".into()));
                } else {
                    request.push(*byte);
                }
            }
        }
    }
}

impl Teller {
    fn answer(&self, request: &[u8], connection: &mut Connection) -> io::Result<()> {
        let outcome = match serde_json::from_slice::<Request>(request) {
            Ok(Request {
                version: VERSION,
                ask: Ask::Status,
            }) => Outcome::Status(Box::new(self.source.status())),
            Ok(Request { version, .. }) => Outcome::Error(format!(
                "this daemon speaks version {VERSION}, not {version}"
            )),
            Err(error) => Outcome::Error(format!("the request is not understood: {error}")),
        };
        answer(connection, outcome)
    }
}

fn answer(connection: &mut Connection, outcome: Outcome) -> io::Result<()> {
    let answer = Answer {
        version: VERSION,
        outcome,
    };
    connection.begin_answer();
    connection.send(&line_of(&answer)?)
}

fn line_of(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use warren_config::{DeviceConfig, PresharedKey, PrivateKey};

    use super::*;

    #[test]
    fn secrets_are_absent_from_status() {
        let private = PrivateKey::from_bytes([0x41; 32]);
        let mut config = DeviceConfig {
            private_key: Some(private.clone()),
            ..DeviceConfig::default()
        };
        let peer = config
            .peers
            .entry(PublicKey::from_bytes([7; 32]))
            .or_default();
        peer.preshared_key = PresharedKey::from_bytes([0x42; 32]);
        let preshared = peer.preshared_key.clone().expect("just set");

        let status = Status::of_device(&DeviceStatus::idle(&config));
        let text = String::from_utf8(line_of(&status).expect("plain data")).expect("JSON");
        assert!(text.contains(&private.public().to_string()));
        for secret in [
            private.to_base64(),
            private.to_hex(),
            preshared.to_base64(),
            preshared.to_hex(),
        ] {
            assert!(!text.contains(&secret), "{text}");
        }
    }

    #[test]
    fn the_form_of_an_answer_is_stable() {
        let mut status = Status::default();
        status.node.interface = "wg0".to_owned();
        status.drops.insert("replayed".to_owned(), 3);
        let answer = Answer {
            version: VERSION,
            outcome: Outcome::Status(Box::new(status)),
        };
        let text = String::from_utf8(line_of(&answer).expect("plain data")).expect("JSON");
        assert_eq!(
            text,
            "{\"version\":1,\"status\":{\"node\":{\"name\":null,\"public_key\":null,\"version\":\"\",\
             \"interface\":\"wg0\",\"up\":false,\"mtu\":0,\"listen_port\":0,\"fwmark\":0,\"workers\":0,\"aead\":\"\",\
             \"mesh_digest\":null,\"fence\":null},\"peers\":[],\"drops\":{\"replayed\":3},\
             \"features\":{},\"problems\":[]}}\n"
        );
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("JSON"), answer);
    }

    #[test]
    fn the_form_of_a_cluster_is_stable_and_its_absence_is_read() {
        let mut status = Status {
            unready: Some("there is no /dev/net/tun".to_owned()),
            control_idle_s: Some(3),
            fences: Some(Fences {
                rules: true,
                ..Fences::default()
            }),
            cluster: Some(Cluster {
                enforcement: Some(Enforcement::Staged),
                staged_s: Some(60),
                peers_expected: 2,
                epoch: Some(7),
                conditions: vec![Condition {
                    kind: "Ready".to_owned(),
                    status: ConditionStatus::False,
                    ..Condition::default()
                }],
                ..Cluster::default()
            }),
            ..Status::default()
        };
        let feed = Feed {
            staleness_s: 9,
            error: None,
        };
        let cluster = status.cluster.as_mut().expect("just set");
        cluster.api.insert("nodes".to_owned(), feed);
        let text = serde_json::to_string(&status).expect("plain data");
        let (_, added) = text.split_once("\"problems\":[],").expect("it comes after");
        assert_eq!(
            added,
            "\"unready\":\"there is no /dev/net/tun\",\"control_idle_s\":3,\
             \"fences\":{\"rules\":true,\"nftables\":false,\"boot\":false},\
             \"cluster\":{\"enforcement\":\"Staged\",\"staged_s\":60,\"latched\":false,\
             \"latched_prefixes\":0,\"peers_expected\":2,\"peers_ready\":0,\
             \"api\":{\"nodes\":{\"staleness_s\":9,\"error\":null}},\"key_changes\":0,\"epoch\":7,\
             \"conditions\":[{\"type\":\"Ready\",\"status\":\"False\",\"reason\":\"\",\
             \"message\":\"\"}]}}"
        );
        assert_eq!(serde_json::from_str::<Status>(&text).expect("JSON"), status);

        // What a daemon of before said.
        let peer: Peer = serde_json::from_str("{\"rx_bytes\":1}").expect("JSON");
        assert_eq!(peer.ready, None);
        let before: Status = serde_json::from_str("{\"cluster\":{}}").expect("JSON");
        assert_eq!(before.cluster, Some(Cluster::default()));
    }

    #[test]
    fn an_endpoint_says_how_it_is_known() {
        let candidate: SocketAddr = "192.0.2.1:51820".parse().expect("an address");
        let elsewhere: SocketAddr = "192.0.2.2:51820".parse().expect("an address");
        let mut peer = PeerStatus::default();
        peer.config.endpoints = vec![candidate];
        for (endpoint, via) in [
            (None, Via::Nothing),
            (Some(candidate), Via::Candidate),
            (Some(elsewhere), Via::Roaming),
        ] {
            peer.endpoint = endpoint;
            let told = Peer::of_device(&PublicKey::from_bytes([1; 32]), &peer);
            assert_eq!(told.via, via);
        }
    }
}
