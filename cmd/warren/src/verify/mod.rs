//! `warren verify`: what leaves this node is ciphertext to the right peer, and nothing of the mesh
//! goes another way.
//!
//! In this order, with a wiretap at every interface but the tunnel:
//!
//! 1. Every peer is asked for an answer through the tunnel ([`probe`]), each with packets of a size of its own.
//!    Records of that size must leave for the peer's endpoint, and for nobody else's. Of an overlay nobody
//!    answers: its packets are sent all the same.
//! 2. Marked packets are sent to every peer, and to addresses of the mesh that nobody has, past the
//!    tunnel ([`attempts`]), by each interface. Not one may be seen.
//!
//! The wiretap is a packet socket where one may be had (CAP_NET_RAW): it hears what the network layer hands to a
//! card, after every fence and before the wire. Otherwise it is netfilter's log ([`Tap`], CAP_NET_ADMIN), which hears
//! what has passed every fence a little earlier, and only that of the network layer.
//! What comes in is looked at all the while, but not tried: that takes somebody outside.

pub(crate) mod attempts;
mod probe;

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
use warren_control::status::{Enforcement, Peer, Status};
use warren_netlink::{Sought, Tap, TapError};

use crate::capture::{self, Capture, Filter, Heard, Seen, Wiretap};
use crate::{args, clock, echo, output, status};
use attempts::{Attempt, DISCARD, PRIORITY, Tried, Way};
use probe::Probe;

/// How often each peer is asked; again each second while it does not answer.
const ASKED: u16 = 4;
/// How long answers are waited for; a handshake may come first.
const PATIENCE: Duration = Duration::from_millis(2500);
/// After how long to say what is being waited for, and to ask again who has not answered at all.
const SILENCE: Duration = Duration::from_secs(1);
/// How many peers are asked at once, so that each has a size of its own.
const AT_ONCE: usize = 32;
/// The payload of the smallest packet that asks.
const SMALLEST: usize = 256;
/// Bounds what is tried on a host with very many interfaces: those that were there first.
const INTERFACES: usize = 32;
/// As many are named.
const NAMED: usize = 4;
/// What is wrong with a peer of an overlay to which nothing went.
pub(crate) const UNSEALED: &str =
    "nothing was sealed for it: is its daemon running, and UDP to it open?";
/// Before the marker, so that no program takes what it is sent for more than it is: of no overlay is a header of
/// zeros valid.
const NOTHING: [u8; 16] = [0; 16];

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Verdict {
    /// Whether nothing leaks and all that should be seen was.
    pub(crate) passed: bool,
    /// What this node is called.
    pub(crate) node: String,
    /// This node's tunnel.
    pub(crate) interface: String,
    /// How it was listened.
    pub(crate) listened: Listened,
    /// Whether packets of an overlay are what is encrypted, which nobody answers.
    pub(crate) overlay: bool,
    /// What peers were asked with: pings, or datagrams to ports at which nobody listens.
    pub(crate) asked: String,
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
    /// Ways past the tunnel that this process lacks the rights to try.
    pub(crate) not_tried: Vec<String>,
    /// Frames that were read.
    pub(crate) frames: u64,
    /// Frames that carried something of the mesh in the clear on their way out, in words.
    pub(crate) leaks: BTreeMap<String, u64>,
    /// Frames with an address of the mesh in the clear that came in from outside.
    pub(crate) clear_incoming: u64,
    /// Frames that were missed: with any, nothing is proved.
    pub(crate) missed: u64,
}

/// How frames are heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Listened {
    /// By packet sockets: every frame between network layer and card.
    #[default]
    PacketSocket,
    /// By netfilter: what it routes, after every fence.
    NetfilterLog,
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
    /// How many packets asked it for an answer.
    pub(crate) asked: u16,
    /// How many of them it answered.
    pub(crate) answered: u16,
    /// Encrypted records with those packets that were seen on their way to it.
    pub(crate) records: u64,
    /// Encrypted records of that size that were seen on their way elsewhere.
    pub(crate) elsewhere: u64,
    /// How often it was tried to send to it past the tunnel.
    pub(crate) attempts: u64,
    /// What is wrong, in a sentence.
    pub(crate) fault: Option<String>,
    /// What the daemon says of it, in a sentence.
    pub(crate) remark: Option<String>,
}

impl PeerVerdict {
    /// Whether it was seen to be reached through the tunnel: by its answer, or where nobody answers by what was
    /// sealed for it.
    pub(crate) fn is_reached(&self, overlay: bool) -> bool {
        match overlay {
            true => self.records > 0,
            false => self.answered > 0,
        }
    }
}

impl Verdict {
    /// Of an overlay what is sealed is all the proof there is, so who has an endpoint in the `mesh` and was sealed
    /// nothing for is at fault; of a staged one that is whoever was reached. In a cluster whether anybody should
    /// be there is asked first.
    fn miss_seals(&mut self, mesh: &BTreeSet<IpNet>) {
        if !self.overlay {
            return;
        }
        for peer in &mut self.peers {
            let is_closed = (peer.endpoint)
                .is_some_and(|endpoint| mesh.iter().any(|net| net.contains(&endpoint.ip())));
            if is_closed && peer.records == 0 && peer.fault.is_none() {
                peer.fault = Some(UNSEALED.to_owned());
                self.passed = false;
            }
        }
    }
}

pub(crate) fn run(args: &args::Verify) -> anyhow::Result<ExitCode> {
    let status = status_of(args.interface.as_deref())?;
    let mut verdict = judge(&status)?;
    verdict.miss_seals(&status.node.mesh_prefixes);
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

/// What the daemon says of which there is one, or of that interface.
pub(crate) fn status_of(interface: Option<&str>) -> anyhow::Result<Status> {
    one_of(status::ask(interface)?)
}

/// The one that is of a mesh. Bare devices do not count, unless there is nothing else.
fn one_of(statuses: Vec<Status>) -> anyhow::Result<Status> {
    let (mut meshes, mut bare): (Vec<_>, Vec<_>) =
        (statuses.into_iter()).partition(|status| !is_bare(status));
    match (meshes.len(), bare.len()) {
        (1, _) => Ok(meshes.remove(0)),
        (0, 1) => Ok(bare.remove(0)),
        (0, _) => bail!("{}", nothing_to_prove(&bare)),
        (..) => bail!(
            "this host has the tunnels {}; say which with --interface",
            interfaces(&meshes)
        ),
    }
}

/// Whether it is a device without a mesh around it, as warren-wg's: it is no node and has no name.
fn is_bare(status: &Status) -> bool {
    status.node.name.is_none()
}

fn nothing_to_prove(bare: &[Status]) -> String {
    let (are, devices) = match bare.len() {
        1 => ("is", "a bare device"),
        _ => ("are", "bare devices"),
    };
    format!(
        "{} {are} {devices} of warren-wg, without a mesh and a fence, so there is nothing to prove",
        interfaces(bare)
    )
}

fn interfaces(statuses: &[Status]) -> String {
    let names: Vec<&str> = (statuses.iter())
        .map(|status| status.node.interface.as_str())
        .collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// Judges the node whose status this is, from the network namespace of the calling thread.
pub(crate) fn judge(status: &Status) -> anyhow::Result<Verdict> {
    if is_bare(status) {
        bail!("{}", nothing_to_prove(std::slice::from_ref(status)));
    }
    let node = &status.node;
    let enforcement = (status.cluster.as_ref()).and_then(|cluster| cluster.enforcement);
    if let Some(open @ (Enforcement::Permissive | Enforcement::Removed)) = enforcement {
        bail!(
            "spec.enforcement of the Mesh is {open:?}: nothing keeps packets inside the tunnel, so there is nothing \
             to prove; set it to Staged or Strict"
        );
    }
    ensure!(
        !node.mesh_prefixes.is_empty() || enforcement != Some(Enforcement::Staged),
        "nothing is closed yet: the mesh is Staged, and no peer was reached through the tunnel; `warren status` \
         says why"
    );
    if let (true, Some(why)) = (node.mesh_prefixes.is_empty(), &status.unready) {
        bail!("the daemon carries no traffic yet, so there is nothing to prove: {why}");
    }
    ensure!(
        !node.mesh_prefixes.is_empty(),
        "the daemon of {} does not say what its mesh is",
        node.interface
    );
    let mut verdict = Verdict {
        node: node.name.clone().unwrap_or_default(),
        interface: node.interface.clone(),
        overlay: !node.overlay_ports.is_empty(),
        ..Verdict::default()
    };
    let mut interfaces = underlay(&node.interface)?;
    interfaces.sort_unstable();
    verdict.underlay = interfaces.iter().map(|(_, name)| name.clone()).collect();
    let mut marker = [0; 16];
    getrandom::fill(&mut marker).context("the system gave no random bytes")?;
    let filter = Filter {
        interfaces: (interfaces.iter())
            .map(|(index, _)| (*index, Heard::Both))
            .collect(),
        mesh: IpNet::aggregate(&node.mesh_prefixes.iter().copied().collect()),
        open: open(status).into_iter().collect(),
        addresses: node.addresses.clone(),
        overlay_ports: node.overlay_ports.clone(),
        marker: marker.to_vec(),
        ports: [node.listen_port].into(),
    };

    let mut asked = ask_peers(status, &filter, &mut verdict)?;
    try_to_leak(status, &filter, &mut asked, &mut verdict)?;
    verdict.peers = asked;
    verdict.passed = verdict.leaks.is_empty()
        && verdict.missed == 0
        && verdict.peers.iter().all(|peer| peer.fault.is_none());
    Ok(verdict)
}

/// What of the mesh is this node's own, or is an exception. Of an overlay only exceptions are.
fn open(status: &Status) -> BTreeSet<IpNet> {
    let node = &status.node;
    match node.overlay_ports.is_empty() {
        true => &node.own_prefixes | &node.open_prefixes,
        false => node.open_prefixes.clone(),
    }
}

/// Step 1: every peer, in groups.
fn ask_peers(
    status: &Status,
    filter: &Filter,
    verdict: &mut Verdict,
) -> anyhow::Result<Vec<PeerVerdict>> {
    let mut judged = Vec::new();
    for peers in status.peers.chunks(AT_ONCE) {
        let capture = listen(status, filter, Some(status.node.listen_port), verdict)?;
        let port = status.node.overlay_ports.first().copied();
        let (pinged, asked) = ask_group(peers, port, &filter.marker)?;
        verdict.asked = asked.to_owned();
        let seen = capture.stop()?;
        note(verdict, &seen);
        let records: BTreeSet<usize> = pinged.iter().map(|(_, record)| *record).collect();
        ensure!(
            records.len() == pinged.len(),
            "packets for two peers look alike"
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

/// What is known of each peer, and the length of its records.
type Asked = Vec<(PeerVerdict, usize)>;

/// Asks some peers at once, by packets of an overlay if there is a port of one. And what they were asked with.
fn ask_group(
    peers: &[Peer],
    overlay: Option<u16>,
    marker: &[u8],
) -> anyhow::Result<(Asked, &'static str)> {
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
            remark: peer.problem.clone(),
            ..PeerVerdict::default()
        };
        // A peer without an endpoint is sent nothing until it calls.
        let probe = match (address, peer.endpoint, overlay) {
            (Some(address), Some(_), None) => Some(Probe::new(address)?),
            (Some(address), Some(_), Some(port)) => {
                Some(Probe::to_port(SocketAddr::new(address, port))?)
            }
            _ => None,
        };
        group.push((judged, probe, payload));
    }
    let mut asked = (group.iter()).filter_map(|(_, probe, _)| probe.as_ref().map(Probe::in_words));
    let asked = asked.next().unwrap_or("nothing");
    let ask = |(peer, probe, payload): &mut (PeerVerdict, Option<Probe>, usize)| {
        let Some(probe) = probe else { return };
        let mut bytes = [&NOTHING, marker].concat();
        bytes.resize(*payload, 0);
        // A tunnel that is not up answers nothing, which is what is looked at.
        let _refused = probe.send(peer.asked, &bytes);
        peer.asked += 1;
    };
    for _ in 0..ASKED {
        group.iter_mut().for_each(ask);
    }
    let start = clock::now();
    let mut again = SILENCE;
    loop {
        let (mut open, mut silent) = (0, 0);
        for (peer, probe, _) in &mut group {
            let Some(probe) = probe else { continue };
            while probe.is_answered() {
                peer.answered += 1;
            }
            open += u32::from(peer.answered < peer.asked);
            silent += u32::from(peer.answered == 0);
        }
        let waited = clock::now().duration_since(start);
        if open == 0 || waited >= PATIENCE || silent == 0 && waited >= SILENCE {
            break;
        }
        if waited >= again {
            if again == SILENCE && overlay.is_none() {
                let peers = if silent == 1 { "peer" } else { "peers" };
                output::note(format_args!("Waiting for answers of {silent} {peers}."));
            }
            again += SILENCE;
            // A kernel that has answered many answers one a second.
            let silent = group.iter_mut().filter(|(peer, ..)| peer.answered == 0);
            silent.for_each(ask);
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
    Ok((done.collect(), asked))
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
        .then(|| "packets of that size left for somewhere else".to_owned())
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
    let capture = listen(status, filter, None, verdict)?;
    let mut all = Tried::default();
    let overlay = node.overlay_ports.first().copied();
    let ways = match overlay {
        None => &Way::AROUND[..],
        Some(_) => &Way::OF_DATAGRAMS,
    };
    let payload = [&NOTHING, &filter.marker[..]].concat();
    for interface in verdict.underlay.iter().take(INTERFACES) {
        let attempt = Attempt {
            interface,
            fwmark: node.fwmark,
            marker: &payload,
            port: overlay.unwrap_or(DISCARD),
        };
        for peer in peers.iter_mut() {
            let Some(address) = peer.address else {
                continue;
            };
            let before = all.total();
            attempt.to(address, ways, &mut all);
            if let (Some(outside), None) = (peer.endpoint, overlay) {
                let own = node.addresses.iter();
                for own in own.filter(|own| own.is_ipv4() == outside.is_ipv4()) {
                    attempt.with_own_source(*own, outside.ip(), &mut all);
                }
            }
            peer.attempts += all.total() - before;
        }
        for address in &verdict.nobody {
            attempt.to(*address, ways, &mut all);
        }
    }
    let seen = capture.stop()?;
    (verdict.attempts, verdict.taken) = (all.total(), all.taken);
    let denied = all.denied.iter().map(|way| way.in_words().to_owned());
    verdict.not_tried = denied.collect();
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

/// Listens by the best that this process may have. What leaves from `port` is of interest in any case.
fn listen(
    status: &Status,
    filter: &Filter,
    port: Option<u16>,
    verdict: &mut Verdict,
) -> anyhow::Result<Capture> {
    let wiretap = match capture::open() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            verdict.listened = Listened::NetfilterLog;
            let node = &status.node;
            let tap = Tap::open(&Sought {
                tunnel: node.interface.clone(),
                mesh: node.mesh_prefixes.clone(),
                open: open(status),
                addresses: node.addresses.clone(),
                overlay_ports: node.overlay_ports.clone(),
                port,
                priority: PRIORITY,
            });
            Wiretap::log(tap.map_err(|error| match error {
                TapError::Denied => anyhow::anyhow!(
                    "it takes CAP_NET_RAW or CAP_NET_ADMIN to listen at the interfaces; run it as root"
                ),
                error => error.into(),
            })?)
        }
        socket => socket?,
    };
    Ok(Capture::start(wiretap, filter.clone())?)
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

/// Every interface but loopback and the tunnel, by its index.
fn underlay(tunnel: &str) -> anyhow::Result<Vec<(u32, String)>> {
    // What libraries read from /sys is another namespace's where that was not mounted anew.
    let table = fs::read_to_string("/proc/thread-self/net/dev")
        .context("the interfaces of this host cannot be listed")?;
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .or_else(|_| std::net::UdpSocket::bind(("::1", 0)))?;
    let mut interfaces = Vec::new();
    for line in table.lines().skip(2) {
        let Some((name, _)) = line.split_once(':') else {
            continue;
        };
        let name = name.trim();
        if name == "lo" || name == tunnel {
            continue;
        }
        // It may have gone since.
        if let Ok(index) = rustix::net::netdevice::name_to_index(&socket, name) {
            interfaces.push((index, name.to_owned()));
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
        let (style, sign) = sign(peer, verdict.overlay);
        let words = in_words(peer, verdict);
        output::line(format_args!("{style}{sign}{style:#} {words}"))?;
    }
    print_summary(verdict, verdict.passed)
}

/// What came of it altogether.
pub(crate) fn print_summary(verdict: &Verdict, passed: bool) -> io::Result<()> {
    let (style, sign, word) = match passed {
        true => (GREEN, '✓', "nothing leaks"),
        false => (RED, '✗', "it does not hold"),
    };
    let (named, others) = verdict.underlay.split_at(verdict.underlay.len().min(NAMED));
    let by = match others.len() {
        0 => named.join(", "),
        others => format!("{} and {others} more", named.join(", ")),
    };
    let frames = match verdict.listened {
        Listened::PacketSocket => format!("{} frames read on {by}", verdict.frames),
        Listened::NetfilterLog => format!(
            "{} packets of interest logged by netfilter on {by}",
            verdict.frames
        ),
    };
    output::line(format_args!(
        "{style}{sign}{style:#} {word}: {} attempts to send past {}, {} of them taken by the kernel; {frames}",
        verdict.attempts, verdict.interface, verdict.taken,
    ))?;
    if verdict.listened == Listened::NetfilterLog {
        output::line(
            "  listened by netfilter, as CAP_NET_RAW is missing: what never passes it (a bridge, eBPF, a flow \
             table) was not heard",
        )?;
    }
    if !verdict.not_tried.is_empty() {
        output::line(format_args!(
            "  not tried, as this process may not: {}",
            verdict.not_tried.join(", ")
        ))?;
    }
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

/// How a peer's line begins.
fn sign(peer: &PeerVerdict, overlay: bool) -> (Style, char) {
    match (&peer.fault, peer.is_reached(overlay)) {
        (Some(_), _) => (RED, '✗'),
        (None, false) => (YELLOW, '•'),
        (None, true) => (GREEN, '✓'),
    }
}

/// A peer's line.
fn in_words(peer: &PeerVerdict, verdict: &Verdict) -> String {
    let asked = &verdict.asked;
    let name = &peer.name;
    let tried = match peer.attempts {
        0 => String::new(),
        attempts => format!("; {attempts} attempts past the tunnel"),
    };
    let came_of_it = match (&peer.fault, peer.endpoint) {
        (Some(fault), _) => fault.clone(),
        // Nobody answers those.
        (None, Some(endpoint)) if verdict.overlay => format!(
            "{} packets of the overlay, {} records sealed to {endpoint}",
            peer.asked, peer.records
        ),
        (None, Some(endpoint)) if peer.answered > 0 => format!(
            "{} of {} {asked} answered, {} records sealed to {endpoint}",
            peer.answered, peer.asked, peer.records
        ),
        (None, Some(endpoint)) => {
            format!("no answer; {} records sealed to {endpoint}", peer.records)
        }
        (None, None) => match &peer.remark {
            Some(remark) => remark.clone(),
            None => "silent: it has no endpoint yet, so nothing is sent to it".to_owned(),
        },
    };
    format!("{name}: {came_of_it}{tried}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_tunnels_those_of_a_mesh_count() {
        let status = |interface: &str, name: Option<&str>| {
            let mut status = Status::default();
            status.node.interface = interface.to_owned();
            status.node.name = name.map(str::to_owned);
            status
        };
        let mesh = |interface| status(interface, Some("hut"));
        let bare = |interface| status(interface, None);
        let chosen = |statuses: Vec<Status>| match one_of(statuses) {
            Ok(status) => status.node.interface,
            Err(error) => error.to_string(),
        };
        assert_eq!(
            chosen(vec![bare("wg0"), mesh("warren0"), bare("wg1")]),
            "warren0"
        );
        assert_eq!(
            chosen(vec![mesh("w0"), bare("wg0"), mesh("w1"), mesh("w2")]),
            "this host has the tunnels w0, w1 and w2; say which with --interface"
        );
        assert_eq!(
            chosen(vec![bare("wg0"), bare("wg1")]),
            "wg0 and wg1 are bare devices of warren-wg, without a mesh and a fence, so there is nothing to prove"
        );
        let alone = one_of(vec![bare("wg0")]).and_then(|status| judge(&status));
        assert_eq!(
            alone.expect_err("no mesh").to_string(),
            "wg0 is a bare device of warren-wg, without a mesh and a fence, so there is nothing to prove"
        );
    }

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
    fn of_an_overlay_what_was_sealed_is_what_counts() {
        let peer = |name: &str, endpoint: Option<&str>, answered, records| PeerVerdict {
            name: name.to_owned(),
            endpoint: endpoint.map(|endpoint| endpoint.parse().expect("an endpoint")),
            asked: 4,
            answered,
            records,
            ..PeerVerdict::default()
        };
        let at = Some("192.0.2.2:51820");
        let verdict = |overlay| {
            let mut verdict = Verdict {
                passed: true,
                overlay,
                asked: "datagrams".to_owned(),
                peers: vec![
                    peer("sealed", at, 0, 4),
                    peer("nothing", at, 0, 0),
                    peer("open", Some("192.0.2.200:51820"), 0, 0),
                    peer("nowhere", None, 0, 0),
                ],
                ..Verdict::default()
            };
            verdict.miss_seals(&["192.0.2.0/25".parse().expect("a prefix")].into());
            let lines = verdict.peers.iter().map(|peer| {
                let (_, sign) = sign(peer, overlay);
                format!("{sign} {}", in_words(peer, &verdict))
            });
            (verdict.passed, lines.collect::<Vec<_>>())
        };
        let nowhere = "• nowhere: silent: it has no endpoint yet, so nothing is sent to it";
        let (passed, lines) = verdict(true);
        assert!(!passed);
        assert_eq!(
            lines,
            [
                "✓ sealed: 4 packets of the overlay, 4 records sealed to 192.0.2.2:51820",
                "✗ nothing: nothing was sealed for it: is its daemon running, and UDP to it open?",
                "• open: 4 packets of the overlay, 0 records sealed to 192.0.2.200:51820",
                nowhere,
            ]
        );
        let (passed, lines) = verdict(false);
        assert!(passed);
        assert_eq!(
            lines,
            [
                "• sealed: no answer; 4 records sealed to 192.0.2.2:51820",
                "• nothing: no answer; 0 records sealed to 192.0.2.2:51820",
                "• open: no answer; 0 records sealed to 192.0.2.200:51820",
                nowhere,
            ]
        );
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
