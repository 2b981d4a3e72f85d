//! `warren verify`: what leaves this node is ciphertext to the right peer, and nothing of the mesh
//! goes another way.
//!
//! In this order, with a wiretap at every interface but the tunnel:
//!
//! 1. Every peer is pinged through the tunnel, each with pings of a size of its own. Records of that
//!    size must leave for the peer's endpoint, and for nobody else's.
//! 2. Marked packets are sent to every peer, and to addresses of the mesh that nobody has, past the
//!    tunnel ([`attempts`]), by each interface. Not one may be seen.
//!
//! The wiretap hears what the network layer hands to a card, after every fence and before the wire.
//! What comes in is looked at all the while, but not tried: that takes somebody outside.

pub(crate) mod attempts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use serde::Serialize;
use warren_control::status::{Peer, Status};

use crate::capture::{self, Capture, Filter, Heard, Seen};
use crate::echo::{self, Echo};
use crate::{args, clock, output, status};
use attempts::{Attempt, Tried, Way};

/// How many pings each peer gets.
const PINGS: u16 = 4;
/// How long answers are waited for; a handshake may come first.
const PATIENCE: Duration = Duration::from_millis(2500);
/// After how long to say what is being waited for.
const SILENCE: Duration = Duration::from_secs(1);
/// How many peers are pinged at once, so that each has a size of its own.
const AT_ONCE: usize = 32;
/// The payload of the smallest ping.
const SMALLEST: usize = 256;
/// Bounds what is tried on a host with very many interfaces.
const INTERFACES: usize = 32;

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Verdict {
    /// Whether nothing leaks and all that should be seen was.
    pub(crate) passed: bool,
    /// This node's tunnel.
    pub(crate) interface: String,
    /// The interfaces that were listened at.
    pub(crate) underlay: Vec<String>,
    /// A line for each peer.
    pub(crate) peers: Vec<PeerVerdict>,
    /// Mesh addresses of nobody to which packets were sent as well.
    pub(crate) nobody: Vec<IpAddr>,
    /// How often it was tried to send past the tunnel, and how often the kernel took the packet.
    pub(crate) attempts: u64,
    /// Of those.
    pub(crate) taken: u64,
    /// Frames that were read.
    pub(crate) frames: u64,
    /// Frames that carried something of the mesh in the clear on their way out, in words.
    pub(crate) leaks: BTreeMap<String, u64>,
    /// Frames with an address of the mesh in the clear that came in from outside.
    pub(crate) clear_incoming: u64,
    /// Frames that were missed: with any, nothing is proved.
    pub(crate) missed: u64,
}

/// What came of one peer.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct PeerVerdict {
    /// What it is called.
    pub(crate) name: String,
    /// Which of its addresses was pinged.
    pub(crate) address: Option<IpAddr>,
    /// Where its packets should go.
    pub(crate) endpoint: Option<SocketAddr>,
    /// How many pings it answered.
    pub(crate) answered: u16,
    /// Encrypted records with the pings that were seen on their way to it.
    pub(crate) records: u64,
    /// Encrypted records of that size that were seen on their way elsewhere.
    pub(crate) elsewhere: u64,
    /// How often it was tried to send to it past the tunnel.
    pub(crate) attempts: u64,
    /// What is wrong, in a sentence.
    pub(crate) fault: Option<String>,
}

pub(crate) fn run(args: &args::Verify) -> anyhow::Result<ExitCode> {
    let statuses = status::ask(args.interface.as_deref())?;
    let [status] = statuses.as_slice() else {
        bail!("this host has several tunnels; say which with --interface");
    };
    let verdict = judge(status)?;
    if args.json {
        let mut text = serde_json::to_string_pretty(&verdict)?;
        text.push('\n');
        output::raw(text.as_bytes())?;
    } else {
        print(&verdict)?;
    }
    Ok(match verdict.passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Judges the node whose status this is, from the network namespace of the calling thread.
pub(crate) fn judge(status: &Status) -> anyhow::Result<Verdict> {
    let node = &status.node;
    ensure!(
        !node.mesh_prefixes.is_empty(),
        "the daemon of {} does not say what its mesh is",
        node.interface
    );
    let mut verdict = Verdict {
        interface: node.interface.clone(),
        ..Verdict::default()
    };
    let interfaces = underlay(&node.interface)?;
    verdict.underlay = interfaces.keys().cloned().collect();
    let mut marker = [0; 16];
    getrandom::fill(&mut marker).context("the system gave no random bytes")?;
    let filter = Filter {
        interfaces: (interfaces.values())
            .map(|index| (*index, Heard::Both))
            .collect(),
        mesh: node.mesh_prefixes.iter().copied().collect(),
        marker: marker.to_vec(),
        ports: [node.listen_port].into(),
    };

    let mut pings = ping_peers(status, &filter, &mut verdict)?;
    try_to_leak(status, &filter, &mut pings, &mut verdict)?;
    verdict.peers = pings;
    verdict.passed = verdict.leaks.is_empty()
        && verdict.missed == 0
        && verdict.peers.iter().all(|peer| peer.fault.is_none());
    Ok(verdict)
}

/// Step 1: every peer, in groups.
fn ping_peers(
    status: &Status,
    filter: &Filter,
    verdict: &mut Verdict,
) -> anyhow::Result<Vec<PeerVerdict>> {
    let mut judged = Vec::new();
    for peers in status.peers.chunks(AT_ONCE) {
        let capture = listen(filter)?;
        let pinged = ping_group(peers, &filter.marker)?;
        let seen = capture.stop()?;
        note(verdict, &seen);
        let records: BTreeSet<usize> = pinged.iter().map(|(_, record)| *record).collect();
        ensure!(
            records.len() == pinged.len(),
            "pings of two peers look alike"
        );
        for (mut peer, record) in pinged {
            let flows = seen.flows.iter().filter(|(flow, _)| flow.outgoing);
            for (flow, messages) in flows {
                let count = messages.lengths.get(&record).copied().unwrap_or(0);
                match Some(flow.to) == peer.endpoint {
                    true => peer.records += count,
                    false => peer.elsewhere += count,
                }
            }
            peer.fault = fault(&peer);
            judged.push(peer);
        }
    }
    Ok(judged)
}

/// Pings some peers at once: for each what is known of it, and the length of its records.
fn ping_group(peers: &[Peer], marker: &[u8]) -> anyhow::Result<Vec<(PeerVerdict, usize)>> {
    let mut group = Vec::new();
    for (place, peer) in peers.iter().enumerate() {
        let payload = SMALLEST + 16 * place;
        let address = own_address(peer);
        let judged = PeerVerdict {
            name: peer
                .name
                .clone()
                .or_else(|| peer.public_key.clone())
                .unwrap_or_default(),
            address,
            endpoint: peer.endpoint,
            ..PeerVerdict::default()
        };
        // A peer without an endpoint is sent nothing until it calls.
        let echo = match (address, peer.endpoint) {
            (Some(address), Some(_)) => Some(Echo::new(address).map_err(not_root)?),
            _ => None,
        };
        group.push((judged, echo, payload));
    }
    for sequence in 0..PINGS {
        for (_, echo, payload) in &group {
            let Some(echo) = echo else { continue };
            let mut bytes = marker.to_vec();
            bytes.resize(*payload, 0);
            // A tunnel that is not up answers nothing, which is what is looked at.
            let _refused = echo.send(sequence, &bytes);
        }
    }
    let start = clock::now();
    let mut silent = true;
    loop {
        let mut open = 0;
        for (peer, echo, _) in &mut group {
            let Some(echo) = echo else { continue };
            while echo.answer().is_some() {
                peer.answered += 1;
            }
            open += u32::from(peer.answered < PINGS);
        }
        let waited = clock::now().duration_since(start);
        if open == 0 || waited >= PATIENCE {
            break;
        }
        if silent && waited >= SILENCE {
            silent = false;
            let peers = if open == 1 { "peer" } else { "peers" };
            output::note(format_args!("Waiting for answers of {open} {peers}."));
        }
        clock::pause(Duration::from_millis(5));
    }
    let done = group.into_iter().map(|(peer, _, payload)| {
        let header = if peer.address.is_some_and(|at| at.is_ipv6()) {
            40
        } else {
            20
        };
        let packet = header + echo::HEADER + payload;
        // Padded to 16 bytes, between the header and the tag of a data message.
        let record = 16 + packet.next_multiple_of(16) + 16;
        (peer, record)
    });
    Ok(done.collect())
}

/// What the pings say against a peer.
fn fault(peer: &PeerVerdict) -> Option<String> {
    if peer.answered > 0 && peer.records < u64::from(peer.answered) {
        return Some(match peer.elsewhere {
            0 => "it answered, but nothing was seen to leave for its endpoint".to_owned(),
            _ => "its packets left for somewhere else".to_owned(),
        });
    }
    (peer.records == 0 && peer.elsewhere > 0)
        .then(|| "packets of the size of its pings left for somewhere else".to_owned())
}

/// Step 2: every way past the tunnel, to every peer and to nobody.
fn try_to_leak(
    status: &Status,
    filter: &Filter,
    peers: &mut [PeerVerdict],
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    let node = &status.node;
    verdict.nobody = (node.mesh_prefixes.iter())
        .filter_map(|prefix| address_of_nobody(prefix, status))
        .collect();
    let capture = listen(filter)?;
    let mut all = Tried::default();
    for interface in &verdict.underlay {
        let attempt = Attempt {
            interface,
            fwmark: node.fwmark,
            marker: &filter.marker,
        };
        for peer in peers.iter_mut() {
            let Some(address) = peer.address else {
                continue;
            };
            let before = all.total();
            attempt.to(address, &Way::AROUND, &mut all);
            if let Some(outside) = peer.endpoint {
                let own = node.addresses.iter();
                for own in own.filter(|own| own.is_ipv4() == outside.is_ipv4()) {
                    attempt.with_own_source(*own, outside.ip(), &mut all);
                }
            }
            peer.attempts += all.total() - before;
        }
        for address in &verdict.nobody {
            attempt.to(*address, &Way::AROUND, &mut all);
        }
    }
    let seen = capture.stop()?;
    (verdict.attempts, verdict.taken) = (all.total(), all.taken);
    note(verdict, &seen);
    for peer in peers {
        let Some(address) = peer.address else {
            continue;
        };
        let to = format!(" to {address}");
        if verdict.leaks.keys().any(|leak| leak.ends_with(&to)) && peer.fault.is_none() {
            peer.fault = Some("packets to it leave in the clear".to_owned());
        }
    }
    Ok(())
}

fn listen(filter: &Filter) -> anyhow::Result<Capture> {
    let socket = capture::open().map_err(not_root)?;
    Ok(Capture::start(socket, filter.clone())?)
}

fn note(verdict: &mut Verdict, seen: &Seen) {
    verdict.frames += seen.frames;
    verdict.missed += seen.lost;
    verdict.clear_incoming += seen.clear_frames - seen.clear_out;
    for ((outgoing, what), count) in &seen.clear {
        if *outgoing {
            *verdict.leaks.entry(what.clone()).or_default() += count;
        }
    }
    if seen.marked > 0 {
        *verdict
            .leaks
            .entry("the marker in the clear".to_owned())
            .or_default() += seen.marked;
    }
}

fn not_root(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("only root may listen at the interfaces; run it as root")
        }
        _ => error.into(),
    }
}

/// An address that the peer itself has.
fn own_address(peer: &Peer) -> Option<IpAddr> {
    let own = |prefix: &&IpNet| prefix.prefix_len() == prefix.max_prefix_len();
    peer.allowed_ips.iter().find(own).map(IpNet::addr)
}

/// The last address of a prefix that is no node's.
fn address_of_nobody(prefix: &IpNet, status: &Status) -> Option<IpAddr> {
    let taken = |address: &IpAddr| {
        status.node.addresses.contains(address)
            || (status.peers.iter())
                .any(|peer| (peer.allowed_ips.iter()).any(|prefix| prefix.contains(address)))
    };
    // The very last is a broadcast address.
    let last = match prefix {
        IpNet::V4(prefix) => {
            let last = u32::from(prefix.broadcast()).checked_sub(1)?;
            IpAddr::V4(last.into())
        }
        IpNet::V6(prefix) => IpAddr::V6(prefix.broadcast()),
    };
    (prefix.contains(&last) && !taken(&last)).then_some(last)
}

/// Every interface but loopback and the tunnel, with its index.
fn underlay(tunnel: &str) -> anyhow::Result<BTreeMap<String, u32>> {
    // What libraries read from /sys is another namespace's where that was not mounted anew.
    let table = fs::read_to_string("/proc/thread-self/net/dev")
        .context("the interfaces of this host cannot be listed")?;
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .or_else(|_| std::net::UdpSocket::bind(("::1", 0)))?;
    let mut interfaces = BTreeMap::new();
    for line in table.lines().skip(2) {
        let Some((name, _)) = line.split_once(':') else {
            continue;
        };
        let name = name.trim();
        if name == "lo" || name == tunnel || interfaces.len() == INTERFACES {
            continue;
        }
        // It may have gone since.
        if let Ok(index) = rustix::net::netdevice::name_to_index(&socket, name) {
            interfaces.insert(name.to_owned(), index);
        }
    }
    ensure!(
        !interfaces.is_empty(),
        "there is no interface beside {tunnel} at which to listen"
    );
    Ok(interfaces)
}

const GREEN: Style = AnsiColor::Green.on_default().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();

fn print(verdict: &Verdict) -> io::Result<()> {
    for peer in &verdict.peers {
        let (style, sign) = match (&peer.fault, peer.answered) {
            (Some(_), _) => (RED, '✗'),
            (None, 0) => (YELLOW, '•'),
            (None, _) => (GREEN, '✓'),
        };
        output::line(format_args!("{style}{sign}{style:#} {}", in_words(peer)))?;
    }
    let (style, sign, word) = match verdict.passed {
        true => (GREEN, '✓', "nothing leaks"),
        false => (RED, '✗', "it does not hold"),
    };
    output::line(format_args!(
        "{style}{sign}{style:#} {word}: {} attempts to send past {}, {} of them taken by the kernel; \
         {} frames read on {}",
        verdict.attempts,
        verdict.interface,
        verdict.taken,
        verdict.frames,
        verdict.underlay.join(", ")
    ))?;
    for (what, count) in &verdict.leaks {
        output::line(format_args!(
            "  {RED}in the clear{RED:#}: {what}, {count} times"
        ))?;
    }
    if verdict.missed > 0 {
        output::line(format_args!(
            "  {} frames could not be read in time, so nothing is proved; try again with less traffic",
            verdict.missed
        ))?;
    }
    if verdict.clear_incoming > 0 {
        output::line(format_args!(
            "  {} frames with a mesh address came in from outside; the fence drops such",
            verdict.clear_incoming
        ))?;
    }
    Ok(())
}

/// A peer's line.
fn in_words(peer: &PeerVerdict) -> String {
    let name = &peer.name;
    let tried = match peer.attempts {
        0 => String::new(),
        attempts => format!("; {attempts} attempts past the tunnel"),
    };
    let came_of_it = match (&peer.fault, peer.endpoint) {
        (Some(fault), _) => fault.clone(),
        (None, Some(endpoint)) if peer.answered > 0 => format!(
            "{} of {PINGS} pings answered, {} records sealed to {endpoint}",
            peer.answered, peer.records
        ),
        (None, Some(endpoint)) => {
            format!("no answer; {} records sealed to {endpoint}", peer.records)
        }
        (None, None) => "silent: it has no endpoint yet, so nothing is sent to it".to_owned(),
    };
    format!("{name}: {came_of_it}{tried}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_at_fault_when_its_packets_go_elsewhere() {
        let peer = |answered, records, elsewhere| PeerVerdict {
            answered,
            records,
            elsewhere,
            ..PeerVerdict::default()
        };
        assert_eq!(fault(&peer(4, 4, 0)), None);
        assert_eq!(fault(&peer(0, 0, 0)), None);
        // Somebody else's packets of that size.
        assert_eq!(fault(&peer(4, 4, 9)), None);
        assert!(fault(&peer(4, 0, 4)).is_some());
        assert!(fault(&peer(4, 0, 0)).is_some());
        assert!(fault(&peer(0, 0, 4)).is_some());
    }

    #[test]
    fn an_address_of_nobody_is_in_the_mesh_and_no_node_has_it() {
        let prefix: IpNet = "10.77.0.0/16".parse().expect("a prefix");
        let mut status = Status::default();
        let last: IpAddr = "10.77.255.254".parse().expect("an address");
        assert_eq!(address_of_nobody(&prefix, &status), Some(last));
        let mut peer = Peer::default();
        peer.allowed_ips
            .insert("10.77.255.0/24".parse().expect("a prefix"));
        status.peers.push(peer);
        assert_eq!(address_of_nobody(&prefix, &status), None);
    }
}
