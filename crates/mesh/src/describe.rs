//! A plan in words, and the difference between two: what `warren plan` shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use blake2::digest::consts::U8;
use blake2::{Blake2b, Digest as _};
use warren_config::{PeerConfig, PresharedKey, Steering};

use crate::plan::Plan;

/// A plan in words, without its secrets: a daemon publishes it, and `warren plan` compares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// The sections, in the order in which to show them.
    pub sections: Vec<Section>,
}

/// One thing and all that is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it is: `interface warren0`, `peer hut`.
    pub heading: String,
    /// One property a line, no line twice.
    pub lines: Vec<String>,
}

/// A line of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What becomes of it.
    pub mark: Mark,
    /// Whether it is a section's heading; the lines of the section follow.
    pub heading: bool,
    /// The text.
    pub text: String,
}

/// What becomes of a [`Line`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It is new.
    Added,
    /// It goes away.
    Removed,
    /// It stays, and something below it changes.
    Kept,
}

impl Description {
    /// A plan in words.
    pub fn of(plan: &Plan) -> Self {
        let Plan {
            node: _,
            mesh: _,
            device,
            host,
            peers,
            problems: _,
        } = plan;
        let mut sections =
            vec![
                Section {
                    heading: format!("interface {}", host.interface),
                    lines: [
                        match &device.private_key {
                            Some(key) => format!("public key {}", key.public()),
                            None => "no key, so that it neither sends nor answers".to_owned(),
                        },
                        format!("listens on UDP port {}", device.listen_port),
                        format!("MTU {}", host.mtu),
                    ]
                    .into_iter()
                    .chain(host.addresses.iter().map(|ip| format!("address {ip}")))
                    .chain((host.masquerade).then(|| {
                        "lends its address to what this host sends from another".to_owned()
                    }))
                    .collect(),
                },
                Section {
                    heading: format!("routing table {}", host.table),
                    lines: std::iter::once(format!(
                        "asked first, by rule {} for {}",
                        host.rule_priority,
                        match &host.steering {
                            Steering::Prefixes => format!("all but mark {:#x}", host.fwmark),
                            Steering::Overlay { ports } => {
                                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                                format!("UDP to port {}", ports.join(", "))
                            }
                        }
                    ))
                    .chain(
                        host.routes
                            .iter()
                            .map(|net| format!("{net} into the tunnel")),
                    )
                    .collect(),
                },
                Section {
                    heading: "fence".to_owned(),
                    lines: (host.fence.mesh.iter())
                        .map(|net| format!("{net} through the tunnel or not at all"))
                        .chain(
                            (host.fence.local.iter())
                                .map(|net| format!("{net} may be reached from the tunnel")),
                        )
                        .chain(
                            (host.fence.open.iter())
                                .map(|net| format!("{net} is reached in the clear, both ways")),
                        )
                        .chain(
                            (!host.fence.inward)
                                .then(|| "what arrives in the clear is taken".to_owned()),
                        )
                        .collect(),
                },
            ];
        for (name, peer) in peers {
            let config = peer
                .public_key
                .and_then(|key| Some((key, device.peers.get(&key)?)));
            let mut lines = match config {
                Some((key, config)) => {
                    let mut lines = vec![format!("public key {key}")];
                    lines.extend(peer_lines(config));
                    lines
                }
                None if peer.outside => vec!["an exception: it is no peer".to_owned()],
                None if !host.fence.inward => vec!["no peer yet".to_owned()],
                None => vec!["fenced: nothing is sent to it".to_owned()],
            };
            if peer.unreachable {
                lines.push("unreachable: neither side has an endpoint".to_owned());
            }
            sections.push(Section {
                heading: format!("peer {name}"),
                lines,
            });
        }
        Self { sections }
    }

    /// What changes on the way from `before` to this; empty where nothing does.
    pub fn since(&self, before: &Self) -> Vec<Line> {
        let old: BTreeMap<&str, &Section> = by_heading(before);
        let new: BTreeMap<&str, &Section> = by_heading(self);
        let mut lines = Vec::new();
        for section in &self.sections {
            match old.get(section.heading.as_str()) {
                None => whole(section, Mark::Added, &mut lines),
                Some(before) => changes(before, section, &mut lines),
            }
        }
        for section in &before.sections {
            if !new.contains_key(section.heading.as_str()) {
                whole(section, Mark::Removed, &mut lines);
            }
        }
        lines
    }
}

fn peer_lines(config: &PeerConfig) -> Vec<String> {
    let PeerConfig {
        preshared_key,
        endpoints,
        persistent_keepalive,
        allowed_ips,
    } = config;
    let mut lines = Vec::new();
    lines.extend(preshared_key.as_ref().map(fingerprint));
    lines.extend(
        (endpoints.iter().enumerate()).map(|(index, endpoint)| match index {
            0 => format!("endpoint {endpoint}"),
            later => format!("endpoint {endpoint}, after {later} without an answer"),
        }),
    );
    if *persistent_keepalive != 0 {
        lines.push(format!("keepalive every {persistent_keepalive} s"));
    }
    lines.extend(allowed_ips.iter().map(|net| format!("carries {net}")));
    lines
}

/// Shows whether two preshared keys are the same, and nothing else of them: they are 256 random
/// bits, so that nobody finds one by its hash.
fn fingerprint(key: &PresharedKey) -> String {
    let hash = Blake2b::<U8>::new()
        .chain_update(b"warren preshared key fingerprint")
        .chain_update(key.as_bytes())
        .finalize();
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("preshared key with fingerprint {hex}")
}

fn by_heading(description: &Description) -> BTreeMap<&str, &Section> {
    (description.sections.iter())
        .map(|section| (section.heading.as_str(), section))
        .collect()
}

fn whole(section: &Section, mark: Mark, lines: &mut Vec<Line>) {
    lines.push(Line {
        mark,
        heading: true,
        text: section.heading.clone(),
    });
    lines.extend(section.lines.iter().map(|text| Line {
        mark,
        heading: false,
        text: text.clone(),
    }));
}

fn changes(before: &Section, after: &Section, lines: &mut Vec<Line>) {
    let old: BTreeSet<&String> = before.lines.iter().collect();
    let new: BTreeSet<&String> = after.lines.iter().collect();
    if old == new {
        return;
    }
    lines.push(Line {
        mark: Mark::Kept,
        heading: true,
        text: after.heading.clone(),
    });
    let of = |mark, section: &Section, other: &BTreeSet<&String>| -> Vec<Line> {
        (section.lines.iter())
            .filter(|text| !other.contains(text))
            .map(|text| Line {
                mark,
                heading: false,
                text: text.clone(),
            })
            .collect()
    };
    lines.extend(of(Mark::Removed, before, &new));
    lines.extend(of(Mark::Added, after, &old));
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            Mark::Added => '+',
            Mark::Removed => '-',
            Mark::Kept => ' ',
        };
        let indent = if self.heading { "" } else { "    " };
        write!(f, "{mark} {indent}{}", self.text)
    }
}
