//! `warren status`: how the daemons of this host and their peers are doing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{anyhow, bail};
use warren_control::status::{self, AskError, Peer, Status, Via};

use crate::{args, clock, output};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of how long a digest people compare the beginning.
const DIGEST_LEN: usize = 16;

pub(crate) fn run(args: &args::Status) -> anyhow::Result<()> {
    let statuses = ask(args.interface.as_deref())?;
    if args.json {
        let mut text = serde_json::to_string_pretty(&statuses)?;
        text.push('\n');
        return Ok(output::raw(text.as_bytes())?);
    }
    let now = clock::unix_s();
    for (index, status) in statuses.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        output::line(in_words(status, now).trim_end())?;
    }
    Ok(())
}

/// What the daemon of `interface` says, or every daemon of this host; one at least.
pub(crate) fn ask(interface: Option<&str>) -> anyhow::Result<Vec<Status>> {
    let sockets = match interface {
        Some(interface) => vec![status::path(interface)],
        None => sockets(&status::path("any"))?,
    };
    let mut statuses = Vec::new();
    for socket in sockets {
        match status::ask(&socket, PATIENCE) {
            Ok(status) => statuses.push(status),
            // It was killed and left its socket behind.
            Err(AskError::NoDaemon { source, .. })
                if interface.is_none() && source.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(AskError::NoDaemon { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                return Err(no_right(&socket));
            }
            Err(AskError::NoDaemon { .. }) => return Err(no_daemon(interface)),
            Err(error) => return Err(error.into()),
        }
    }
    match statuses.is_empty() {
        true => Err(no_daemon(interface)),
        false => Ok(statuses),
    }
}

/// A daemon may run, but does not talk to this user.
pub(crate) fn no_right(socket: &Path) -> anyhow::Error {
    anyhow!(
        "{} may not be opened by this user; run it as root",
        socket.display()
    )
}

fn no_daemon(interface: Option<&str>) -> anyhow::Error {
    let of = interface.map(|interface| format!(" for {interface}"));
    let of = of.unwrap_or_default();
    anyhow!(
        "no warrend runs here{of}; start one with `warrend --mesh mesh.toml --node NAME`, or look \
         why it ended with `journalctl -u 'warrend@*'`"
    )
}

/// The sockets beside the one at `any`.
fn sockets(any: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let directory = any.parent().unwrap_or(Path::new("/"));
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => bail!("{} cannot be read: {error}", directory.display()),
    };
    let mut sockets: Vec<PathBuf> = (entries.flatten())
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect();
    sockets.sort();
    Ok(sockets)
}

/// A daemon's status as people read it.
fn in_words(status: &Status, now: u64) -> String {
    let node = &status.node;
    let mut text = String::new();
    let name = node.name.as_deref().unwrap_or(&node.interface);
    let up = if node.up { "up" } else { "DOWN" };
    let mut facts = vec![
        format!("{} is {up}", node.interface),
        format!("MTU {}", node.mtu),
        format!("port {}", node.listen_port),
        match node.workers {
            1 => "1 worker".to_owned(),
            workers => format!("{workers} workers"),
        },
    ];
    facts.push(format!("warrend {}", node.version));
    line(&mut text, "node", &format!("{name}: {}", facts.join(", ")));
    if let Some(digest) = &node.mesh_digest {
        line(&mut text, "mesh file", short(digest));
    }
    if let Some(fence) = &node.fence {
        line(&mut text, "fence", fence);
    }
    if !node.aead.is_empty() {
        let aead = &node.aead;
        let what = match node.aead_longest_bytes {
            None => aead.clone(),
            Some(longest) => format!("{aead} up to {longest} bytes, library above"),
        };
        line(&mut text, "cipher", &what);
    }
    let named = |used: bool| {
        let names = status.features.iter().filter(|(_, is)| **is == used);
        let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(used) = named(true) {
        line(&mut text, "in use", &used);
    }
    if let Some(unused) = named(false) {
        line(&mut text, "not in use", &unused);
    }
    let drops = status.drops.iter().filter(|(_, count)| **count > 0);
    let drops: Vec<String> = drops
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if !drops.is_empty() {
        line(&mut text, "drops", &drops.join(", "));
    }

    if !status.peers.is_empty() {
        text.push('\n');
        let mut rows = vec![
            [
                "PEER",
                "ENDPOINT",
                "PATH",
                "HANDSHAKE",
                "RECEIVED",
                "SENT",
                "PREFIXES",
            ]
            .map(str::to_owned),
        ];
        rows.extend(status.peers.iter().map(|peer| row(peer, now)));
        text += &table(&rows);
    }

    let mut remarks: Vec<String> = status
        .peers
        .iter()
        .filter_map(|peer| remark(peer, node))
        .collect();
    remarks.extend(status.problems.iter().cloned());
    if !remarks.is_empty() {
        text.push('\n');
        for remark in remarks {
            text += &remark;
            text.push('\n');
        }
    }
    text
}

fn line(text: &mut String, name: &str, what: &str) {
    let _infallible = writeln!(text, "{name:<11} {what}");
}

fn short(digest: &str) -> &str {
    digest.get(..DIGEST_LEN).unwrap_or(digest)
}

fn row(peer: &Peer, now: u64) -> [String; 7] {
    let absent = || "-".to_owned();
    let prefixes: Vec<String> = peer
        .allowed_ips
        .iter()
        .map(
            |prefix| match prefix.prefix_len() == prefix.max_prefix_len() {
                true => prefix.addr().to_string(),
                false => prefix.to_string(),
            },
        )
        .collect();
    let path = match (peer.endpoint, peer.via) {
        (None, _) | (_, Via::Nothing) => "none".to_owned(),
        (Some(endpoint), Via::Candidate) => {
            let place = peer
                .candidates
                .iter()
                .position(|candidate| *candidate == endpoint);
            match (place, peer.candidates.len()) {
                (Some(place), many @ 2..) => format!("configured, {} of {many}", place + 1),
                _ => "configured".to_owned(),
            }
        }
        (Some(_), Via::Roaming) => "heard from".to_owned(),
    };
    [
        name(peer),
        peer.endpoint
            .map_or_else(absent, |endpoint| endpoint.to_string()),
        path,
        peer.last_handshake_unix_s
            .map_or_else(|| "never".to_owned(), |at| ago(now.saturating_sub(at))),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
        prefixes.join(" "),
    ]
}

fn name(peer: &Peer) -> String {
    let key = || peer.public_key.clone().unwrap_or_default();
    peer.name.clone().unwrap_or_else(key)
}

/// What people should know of a peer.
fn remark(peer: &Peer, node: &status::Node) -> Option<String> {
    let name = name(peer);
    let other =
        (peer.mesh_digest.as_ref()).filter(|digest| Some(*digest) != node.mesh_digest.as_ref());
    match (other, &peer.problem) {
        (Some(digest), _) => Some(format!(
            "{name}: it runs another mesh file, {}",
            short(digest)
        )),
        (None, Some(problem)) => Some(format!("{name}: {problem}")),
        (None, None) => None,
    }
}

/// Columns as wide as their widest entry.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _infallible = write!(line, "{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A time that has passed, in its two largest units.
fn ago(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs} s ago"),
        60..3600 => format!("{} min {} s ago", secs / 60, secs % 60),
        3600..86400 => format!("{} h {} min ago", secs / 3600, secs / 60 % 60),
        _ => format!("{} d {} h ago", secs / 86400, secs / 3600 % 24),
    }
}

fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            return match unit {
                "B" => format!("{count} B"),
                unit => format!("{value:.1} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} PiB")
}

#[cfg(test)]
mod tests {
    use warren_control::status::Node;

    use super::*;

    #[test]
    fn a_status_reads_as_a_table_with_what_is_wrong_below() {
        let peer = |name: &str| Peer {
            name: Some(name.to_owned()),
            allowed_ips: ["10.77.0.2/32".parse().expect("a prefix")].into(),
            ..Peer::default()
        };
        let status = Status {
            node: Node {
                name: Some("hut".to_owned()),
                version: "0.1.0".to_owned(),
                interface: "warren0".to_owned(),
                up: true,
                mtu: 1420,
                listen_port: 51820,
                workers: 2,
                mesh_digest: Some("a".repeat(64)),
                fence: Some("closed twice".to_owned()),
                aead: "avx2".to_owned(),
                aead_longest_bytes: Some(768),
                ..Node::default()
            },
            peers: vec![
                Peer {
                    endpoint: Some("192.0.2.2:51820".parse().expect("an endpoint")),
                    via: Via::Roaming,
                    last_handshake_unix_s: Some(1000),
                    rx_bytes: 1 << 20,
                    tx_bytes: 7,
                    mesh_digest: Some("b".repeat(64)),
                    ..peer("barn")
                },
                Peer {
                    problem: Some("it cannot be reached".to_owned()),
                    ..peer("laptop")
                },
            ],
            drops: [("replayed".to_owned(), 3), ("malformed".to_owned(), 0)].into(),
            features: [
                ("steering".to_owned(), false),
                ("nftables".to_owned(), true),
            ]
            .into(),
            problems: vec!["the mesh file is refused".to_owned()],
            ..Status::default()
        };
        assert_eq!(
            in_words(&status, 1090),
            "node        hut: warren0 is up, MTU 1420, port 51820, 2 workers, warrend 0.1.0\n\
             mesh file   aaaaaaaaaaaaaaaa\n\
             fence       closed twice\n\
             cipher      avx2 up to 768 bytes, library above\n\
             in use      nftables\n\
             not in use  steering\n\
             drops       replayed 3\n\
             \n\
             PEER    ENDPOINT         PATH        HANDSHAKE       RECEIVED  SENT  PREFIXES\n\
             barn    192.0.2.2:51820  heard from  1 min 30 s ago  1.0 MiB   7 B   10.77.0.2\n\
             laptop  -                none        never           0 B       0 B   10.77.0.2\n\
             \n\
             barn: it runs another mesh file, bbbbbbbbbbbbbbbb\n\
             laptop: it cannot be reached\n\
             the mesh file is refused\n"
        );
    }

    #[test]
    fn sizes_and_times_are_said_in_the_unit_that_fits() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(ago(59), "59 s ago");
        assert_eq!(ago(3661), "1 h 1 min ago");
        assert_eq!(ago(90_000), "1 d 1 h ago");
    }
}
