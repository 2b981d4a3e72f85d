//! How a staged cluster turns strict, without anybody who decides for all.
//!
//! Every node looks at what all publish and comes to the same conclusion, some a moment later than
//! others; which of them are strict already matters to nobody, since a strict node takes and sends
//! through the tunnel only, and so does a staged one with whatever it has reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use warren_mesh::{Enforcement, Steering};

use crate::directory::View;
use crate::facts::Record;
use crate::settings::Settings;
use crate::trust::{Distrust, Identity};

/// What is enforced on this node now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Nothing: the operator wants it so.
    Permissive,
    /// What was reached; these hold the cluster up.
    Staged(Holdups),
    /// Everything. The node says so in its record (`latched`) and on its disk.
    Strict,
}

/// What this node knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Own {
    /// It has turned strict before, by its disk.
    pub turned: bool,
    /// It has just started, or its `Node` was not Ready when it looked last: it may have missed the
    /// turn, and follows whoever has not.
    pub returning: bool,
}

/// Why a cluster is not strict yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holdups {
    /// What is missing in all of it.
    pub mesh: Option<Missing>,
    /// Nodes, and what each of them lacks.
    pub nodes: BTreeMap<String, Holdup>,
}

/// What a cluster lacks for being strict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// What the API says is not to be believed.
    #[error(transparent)]
    Trust(#[from] Distrust),
    /// Nothing says what must not travel in the clear.
    #[error("the Mesh has no podPrefixes")]
    Prefixes,
    /// There is nobody to talk to.
    #[error("there are fewer than two Ready nodes with a daemon")]
    Peers,
}

/// What a Ready node lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Holdup {
    /// It has no daemon, or one that says nothing of use. Name it in the Mesh's exceptions if it should have
    /// none.
    #[error("no daemon of it publishes a record that is followed")]
    NoRecord,
    /// Its daemon has not said yet whom it has reached, or not of all who are here now.
    #[error("it reports on {reported} peers, and there are {expected}")]
    Behind {
        /// Of how many it reports; none while it does not.
        reported: u32,
        /// How many peers it has.
        expected: u32,
    },
    /// It has not reached these, and maybe others.
    #[error("it has not reached {}", .0.join(", "))]
    Unreached(Vec<String>),
}

impl View {
    /// What is enforced on the node of `identity`.
    ///
    /// A staged cluster turns strict when every Ready node that is no exception has a record which says
    /// that all its peers that are Ready were reached. Nodes that are not Ready are not waited for, and
    /// are strict when they come back. Only a view that is trusted turns anything, only two nodes or
    /// more, and in mode Route only if there are prefixes to be strict about. There is no way back but
    /// by the operator, who sets another enforcement.
    pub fn stage(&self, settings: &Settings, identity: &Identity, own: Own) -> Stage {
        match settings.mesh.enforcement {
            Enforcement::Permissive => return Stage::Permissive,
            Enforcement::Strict => return Stage::Strict,
            Enforcement::Staged if own.turned => return Stage::Strict,
            Enforcement::Staged => {}
        }
        let of_mesh = |missing| {
            Stage::Staged(Holdups {
                mesh: Some(missing),
                nodes: BTreeMap::new(),
            })
        };
        let is_routed = settings.mesh.steering == Steering::Prefixes;
        if is_routed && settings.mesh.prefixes.is_empty() {
            return of_mesh(Missing::Prefixes);
        }
        if let Err(distrust) = self.trust(identity) {
            return of_mesh(distrust.into());
        }

        let members: Vec<Member<'_>> = self.members(settings).collect();
        let records = || members.iter().filter_map(|member| member.record);
        if own.returning && records().any(|record| record.progress.latched) {
            return Stage::Strict;
        }
        // Of two records with one key one is no peer.
        let keys: BTreeSet<&str> = records().map(|record| record.public_key.as_str()).collect();
        let expected = u32::try_from(keys.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let mut nodes = BTreeMap::new();
        let mut talking = 0;
        for member in members.iter().filter(|member| member.ready) {
            talking += u32::from(member.record.is_some());
            if let Some(holdup) = holdup(member.record, expected) {
                nodes.insert(member.name.to_owned(), holdup);
            }
        }
        if talking < 2 {
            let mesh = Some(Missing::Peers);
            return Stage::Staged(Holdups { mesh, nodes });
        }
        if nodes.is_empty() {
            Stage::Strict
        } else {
            Stage::Staged(Holdups { mesh: None, nodes })
        }
    }

    /// Every node that is no exception, by name.
    fn members(&self, settings: &Settings) -> impl Iterator<Item = Member<'_>> {
        // Both are in the order of names, so that none is looked for.
        let mut records = self.records.iter().flatten().peekable();
        let nodes = self.nodes.iter().flatten();
        nodes.filter_map(move |(name, facts)| {
            while records.next_if(|(other, _)| *other < name).is_some() {}
            let record = records.next_if(|(other, _)| *other == name);
            let record = record.and_then(|(_, record)| record.as_ref().ok());
            let followed =
                |record: &&Record| record.node_uid == facts.uid && record.mode == settings.mode;
            (!settings.excepts(name, facts)).then(|| Member {
                name,
                ready: facts.ready,
                record: record.filter(followed),
            })
        })
    }
}

/// A node that is no exception.
struct Member<'a> {
    name: &'a str,
    ready: bool,
    /// Its record, if that is followed.
    record: Option<&'a Record>,
}

/// What a Ready node lacks, if anything.
fn holdup(record: Option<&Record>, expected: u32) -> Option<Holdup> {
    let Some(record) = record else {
        return Some(Holdup::NoRecord);
    };
    let progress = &record.progress;
    match &progress.unreached {
        Some(unreached) if !unreached.is_empty() => Some(Holdup::Unreached(unreached.clone())),
        // It counts fewer than there are: it has not heard of all of them. It may count more: a node whose
        // record went is still its peer.
        Some(_) if progress.peers_expected >= expected => None,
        Some(_) => Some(Holdup::Behind {
            reported: progress.peers_expected,
            expected,
        }),
        None => Some(Holdup::Behind {
            reported: 0,
            expected,
        }),
    }
}

impl Holdups {
    /// The names of the nodes that hold the cluster up.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }
}

impl fmt::Display for Holdups {
    /// A sentence: what is missing, and the first few nodes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 5;
        let mut separator = "";
        if let Some(missing) = &self.mesh {
            write!(f, "{missing}")?;
            separator = "; ";
        }
        for (name, holdup) in self.nodes.iter().take(NAMED) {
            write!(f, "{separator}node {name}: {holdup}")?;
            separator = "; ";
        }
        if let Some(more) = self.nodes.len().checked_sub(NAMED).filter(|more| *more > 0) {
            write!(f, "; and {more} more")?;
        }
        Ok(())
    }
}
