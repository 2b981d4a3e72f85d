//! What the mesh believed last: it decides who keeps what two nodes claim, and it stays while the API
//! forgets.

use std::collections::BTreeMap;

use warren_mesh::{Directory, Field, Node, NodeName, Place, Problem, Severity};

/// Set in the seniority of a node that claims something which it did not have before. Below it are
/// the seconds since 1970 of its record.
const NEWCOMER: u64 = 1 << 63;

/// Every node as it was last believed, by name. Kept on disk, so that a node that starts while the
/// API is away, or emptied, is not a stranger to its peers' keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known(pub BTreeMap<NodeName, KnownNode>);

/// A node as it was last believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNode {
    /// The uid of its `Node`.
    pub uid: String,
    /// Its key, endpoints and prefixes, without what was refused.
    pub node: Node,
}

impl Known {
    /// The node of this name, if it is still the same one.
    pub(crate) fn same(&self, name: &NodeName, uid: &str) -> Option<&Node> {
        let known = self.0.get(name)?;
        (known.uid == uid).then_some(&known.node)
    }

    /// How `node` stands when another claims what it claims, where `created` is when its record was
    /// made, in seconds since 1970.
    ///
    /// A node that claims only what it was believed to have stands before all others: publishing
    /// somebody's key or prefix does not take it away, however old the record of the one who does. A
    /// number that depends on the other nodes would change theirs whenever one comes or goes.
    pub(crate) fn seniority(&self, name: &NodeName, uid: &str, node: &Node, created: i64) -> u64 {
        let settled = self.same(name, uid).is_some_and(|known| {
            (node.public_key.is_none() || node.public_key == known.public_key)
                && node
                    .prefixes
                    .iter()
                    .all(|prefix| known.prefixes.contains(prefix))
                // What is claimed where the CNI's own tunnel is what goes into ours.
                && node
                    .addresses
                    .iter()
                    .all(|address| known.addresses.contains(address))
        });
        let age = u64::try_from(created).unwrap_or(0);
        if settled { age } else { age | NEWCOMER }
    }

    /// What is believed after `directory`, whose nodes have these `uids`: all of it but the items
    /// that its review refuses.
    pub fn after(directory: &Directory, uids: &BTreeMap<NodeName, String>) -> Self {
        let mut problems: BTreeMap<NodeName, Vec<Problem>> = BTreeMap::new();
        for problem in directory.review() {
            if let Place::Node(name) = &problem.subject.place {
                problems.entry(name.clone()).or_default().push(problem);
            }
        }
        let mut known = Self::default();
        for (name, uid) in uids {
            let node = directory.nodes.get(name).map(|node| (uid.as_str(), node));
            let problems = problems.get(name).map_or(&[][..], Vec::as_slice);
            known.believe(name, node, problems);
        }
        known
    }

    /// Believes of a node what its `problems`, in the order of a review, leave of it; or forgets it.
    /// What [`Known::after`] does for all.
    pub fn believe(&mut self, name: &NodeName, node: Option<(&str, &Node)>, problems: &[Problem]) {
        let Some((uid, node)) = node else {
            self.0.remove(name);
            return;
        };
        let mut node = node.clone();
        // From the last entry of a field to its first, so that indices stay what they were.
        for problem in problems.iter().rev() {
            if problem.severity() != Severity::Error {
                continue;
            }
            let index = problem.subject.index;
            match problem.subject.field {
                Some(Field::PublicKey) => node.public_key = None,
                Some(Field::Prefixes) => remove(&mut node.prefixes, index),
                Some(Field::Addresses) => remove(&mut node.addresses, index),
                Some(Field::Endpoints) => remove(&mut node.endpoints, index),
                _ => {}
            }
        }
        let uid = uid.to_owned();
        self.0.insert(name.clone(), KnownNode { uid, node });
    }
}

fn remove<T>(items: &mut Vec<T>, index: usize) {
    if index < items.len() {
        items.remove(index);
    }
}
