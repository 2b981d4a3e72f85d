//! The directory of a cluster, kept node by node: what one change costs does not grow with the cluster.

use std::collections::{BTreeMap, BTreeSet};

use warren_mesh::{Node, NodeName, PublicKey, Reviewed};

use crate::directory::{Finding, View};
use crate::known::Known;
use crate::settings::Settings;

/// What [`View::directory`] and [`Known::after`] give, kept up to date for one state of the settings.
#[derive(Debug, Clone)]
pub struct Book {
    settings: Settings,
    /// This node, whose record follows its key and not the other way round.
    own: Option<(NodeName, PublicKey)>,
    reviewed: Reviewed,
    uids: BTreeMap<NodeName, String>,
    findings: BTreeMap<String, Vec<Finding>>,
    /// Nodes of which something else is believed since they were entered: how they stand in a contest
    /// depends on that.
    due: BTreeSet<String>,
}

impl Book {
    /// Enters everything, and brings `known` to what is believed then. Costs as much as the cluster is
    /// large; so does another state of the settings, which needs another book. `own` is who keeps the book,
    /// with its key, whatever its record says.
    pub fn new(
        view: &View,
        settings: Settings,
        own: Option<(NodeName, PublicKey)>,
        known: &mut Known,
    ) -> Self {
        let mut entries = view.directory(&settings, known);
        for (name, node) in &mut entries.directory.nodes {
            with_own_key(own.as_ref(), name, node);
        }
        let mut findings: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
        for finding in entries.findings {
            let of_node = findings.entry(finding.node.clone()).or_default();
            of_node.push(finding);
        }
        let mut book = Self {
            settings,
            own,
            reviewed: Reviewed::new(entries.directory),
            uids: entries.uids,
            findings,
            due: BTreeSet::new(),
        };
        let gone = known.0.keys().filter(|name| !book.uids.contains_key(*name));
        let names: BTreeSet<NodeName> = book.uids.keys().chain(gone).cloned().collect();
        book.believe(&names, known);
        book
    }

    /// Enters the nodes of these names anew, which are all that have changed in `view`, and whoever is
    /// believed to be another than before, and brings `known` to what is believed then. All whose entries
    /// or problems may have changed: none where only what daemons say of their progress did.
    pub fn update<'a>(
        &mut self,
        view: &View,
        known: &mut Known,
        names: impl IntoIterator<Item = &'a String>,
    ) -> BTreeSet<NodeName> {
        let mut due = std::mem::take(&mut self.due);
        due.extend(names.into_iter().cloned());
        let mut affected = BTreeSet::new();
        for name in &due {
            let (entry, findings) = view.entry_of(name, &self.settings, known);
            if findings.is_empty() {
                self.findings.remove(name);
            } else {
                self.findings.insert(name.clone(), findings);
            }
            let Ok(name) = name.parse::<NodeName>() else {
                continue;
            };
            let (uid, mut node) = entry.unzip();
            if let Some(node) = &mut node {
                with_own_key(self.own.as_ref(), &name, node);
            }
            let before = match &uid {
                Some(uid) => self.uids.insert(name.clone(), uid.clone()),
                None => self.uids.remove(&name),
            };
            affected.extend(self.reviewed.set(&name, node));
            if before != uid {
                affected.insert(name);
            }
        }
        self.believe(&affected, known);
        affected
    }

    /// The directory, with what is wrong with it.
    pub fn reviewed(&self) -> &Reviewed {
        &self.reviewed
    }

    /// The MTU of the tunnel, in bytes, is found to be this.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.settings.mesh.mtu = mtu;
        self.reviewed.set_mtu(mtu);
    }

    /// The settings that it is of.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The uids of the `Node` objects.
    pub fn uids(&self) -> &BTreeMap<NodeName, String> {
        &self.uids
    }

    /// What people should know that the directory does not show, ordered by node.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.values().flatten()
    }

    fn believe(&mut self, names: &BTreeSet<NodeName>, known: &mut Known) {
        for name in names {
            let node = self.reviewed.directory().nodes.get(name);
            let node = self.uids.get(name).map(String::as_str).zip(node);
            let before = known.0.get(name).cloned();
            known.believe(name, node, self.reviewed.problems_of(name));
            if known.0.get(name) != before.as_ref() {
                self.due.insert(name.to_string());
            }
        }
    }
}

fn with_own_key(own: Option<&(NodeName, PublicKey)>, name: &NodeName, node: &mut Node) {
    if let Some((own, key)) = own
        && own == name
    {
        node.public_key = Some(*key);
    }
}
