//! Whether what the API says may take anything away.

use warren_mesh::NodeName;

use crate::directory::View;

/// Who this node is, and in which cluster: learnt when it joined, kept on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The uid of the namespace kube-system, which lives as long as its cluster.
    pub cluster: String,
    /// The name of this node.
    pub node: NodeName,
    /// The uid of its `Node`.
    pub uid: String,
}

/// Why a view takes nothing away: all stays as it was, with a condition that says this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Not all of it has arrived.
    #[error("the first list of {0} has not arrived yet")]
    Partial(&'static str),
    /// It is of another cluster, or of one that was made anew.
    #[error(
        "the namespace kube-system has the uid {found}, and {expected} is this node's cluster; if the cluster \
         was made anew, remove cluster.json and latch.json from the state directory and start the daemon again"
    )]
    Cluster {
        /// What the API says.
        found: String,
        /// What it said when this node joined.
        expected: String,
    },
    /// It does not contain this node.
    #[error("there is no Node {0}, which is this one")]
    NotListed(NodeName),
    /// It contains another node under this one's name.
    #[error("the Node {node} has the uid {found}, and {expected} is this node's")]
    Replaced {
        /// The name of both.
        node: NodeName,
        /// What the API says.
        found: String,
        /// What it said when this node joined.
        expected: String,
    },
}

impl View {
    /// Whether this view is one that may take peers away: whole, of the cluster that `identity`
    /// joined, and with its node in it. An outage, an emptied API and a restored older one are not.
    pub fn trust(&self, identity: &Identity) -> Result<(), Distrust> {
        let cluster = self.cluster.as_ref();
        let cluster = cluster.ok_or(Distrust::Partial("namespaces"))?;
        if *cluster != identity.cluster {
            return Err(Distrust::Cluster {
                found: cluster.clone(),
                expected: identity.cluster.clone(),
            });
        }
        let nodes = self.nodes.as_ref().ok_or(Distrust::Partial("nodes"))?;
        if self.records.is_none() {
            return Err(Distrust::Partial("meshnodes"));
        }
        let node = &identity.node;
        match nodes.get(node.as_str()) {
            None => Err(Distrust::NotListed(node.clone())),
            Some(facts) if facts.uid != identity.uid => Err(Distrust::Replaced {
                node: node.clone(),
                found: facts.uid.clone(),
                expected: identity.uid.clone(),
            }),
            Some(_) => Ok(()),
        }
    }
}
