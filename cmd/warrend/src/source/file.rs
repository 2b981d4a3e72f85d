//! The mesh as one file describes it, with the names that it has and what other nodes say to run.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use warren_config::PublicKey;
use warren_mesh::{Host as EndpointHost, NodeName, Plan, Problem, Resolved};
use warren_netlink::{Host, Surroundings};
use warren_state::StateDir;

use super::{Around, wall_time};
use crate::beacon::{Beacon, Heard};
use crate::mesh_file::Mesh;
use crate::resolver::{Answer, Resolver};
use crate::watch::Watch;

/// A mesh file in force, and what keeps it so.
pub(crate) struct FileSource {
    path: PathBuf,
    node: NodeName,
    state: StateDir,
    /// What is in force.
    mesh: Mesh,
    /// What is wrong with a newer file, which is therefore not in force.
    refused: Vec<String>,
    resolved: Resolved,
    resolver: Resolver,
    beacon: Beacon,
    /// Bytes to and from each peer at the last tick.
    traffic: BTreeMap<PublicKey, (u64, u64)>,
    /// The files as they looked when they were last read, and at the last tick.
    looks: (Looks, Looks),
    /// The nodes that said at the last tick to run another file.
    strangers: BTreeSet<String>,
    watch: Watch,
}

/// What a mesh file's surroundings tell.
pub(crate) enum Event {
    Changed,
    Answered(Answer),
    Heard(Heard),
}

/// How the mesh file looks, and the files of all keys that it needs.
type Looks = BTreeMap<PathBuf, Option<Look>>;

/// What tells one state of a file from another; a change of its rights is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

impl FileSource {
    /// Takes the file at `path`, or else the last good one.
    pub(crate) fn new(
        path: PathBuf,
        node: NodeName,
        state: StateDir,
        host: &mut Host,
    ) -> anyhow::Result<Self> {
        let mut watch = Watch::new().context("this host lets watch no file")?;
        let resolved = Resolved::new();
        let considered = consider(&path, &node, &state, host, &resolved, &mut watch);
        let (looks, considered) = considered;
        let (mesh, refused) = match considered {
            Ok(mesh) => (mesh, Vec::new()),
            Err(sentences) => match Mesh::last_good(&node, &state) {
                Some(mesh) => {
                    tracing::error!("the mesh file is refused; the last good one is in force");
                    (mesh, sentences)
                }
                None => bail!("{}", sentences.join("\n")),
            },
        };
        for sentence in &refused {
            tracing::error!("{sentence}");
        }
        let mut source = Self {
            path,
            node,
            state,
            mesh,
            refused,
            resolved,
            resolver: Resolver::new(),
            beacon: Beacon::default(),
            traffic: BTreeMap::new(),
            looks: (looks.clone(), looks),
            strangers: BTreeSet::new(),
            watch,
        };
        source.took_mesh();
        Ok(source)
    }

    /// What this node should be, given what is around it now.
    pub(crate) fn plan(&self, host: &mut Host) -> Result<Plan, String> {
        plan(&self.node, &self.mesh, host, &self.resolved)
    }

    /// A problem of the plan in a sentence that says where in the file it is.
    pub(crate) fn sentence(&self, problem: &Problem) -> String {
        self.mesh.sentence(problem)
    }

    /// What is wrong with a newer file.
    pub(crate) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// The digest of the file in force.
    pub(crate) fn digest(&self) -> &str {
        &self.mesh.file.digest
    }

    /// The next thing that happens. Dropping the future loses nothing.
    pub(crate) async fn event(&mut self) -> Event {
        tokio::select! {
            () = self.watch.changed() => Event::Changed,
            answer = self.resolver.answered() => Event::Answered(answer),
            heard = self.beacon.heard() => Event::Heard(heard),
        }
    }

    /// Takes in what has happened; whether the plan may be another now.
    pub(crate) fn take(&mut self, event: Event, host: &mut Host, around: &Around<'_>) -> bool {
        match event {
            Event::Changed => {
                let changed = Look::again(&self.looks.0) != self.looks.0;
                if changed {
                    self.reload(host);
                }
                changed
            }
            Event::Answered(answer) => self.answered(answer),
            Event::Heard(heard) => {
                self.heard(&heard, around);
                false
            }
        }
    }

    /// Reads the mesh file and the keys again: all of it comes into force, or nothing.
    pub(crate) fn reload(&mut self, host: &mut Host) {
        let (looks, considered) = consider(
            &self.path,
            &self.node,
            &self.state,
            host,
            &self.resolved,
            &mut self.watch,
        );
        self.looks = (looks.clone(), looks);
        match considered {
            Ok(mesh) if mesh.is_same(&self.mesh) && self.refused.is_empty() => {}
            Ok(mesh) => {
                self.refused.clear();
                self.mesh = mesh;
                self.took_mesh();
            }
            Err(sentences) => {
                tracing::error!("the mesh file is refused; the old one stays in force");
                for sentence in &sentences {
                    tracing::error!("{sentence}");
                }
                self.refused = sentences;
            }
        }
    }

    fn took_mesh(&mut self) {
        self.mesh.keep(&self.state);
        let directory = &self.mesh.file.directory;
        let nodes = directory.nodes.len();
        let digest = &self.mesh.file.digest[..16];
        tracing::info!(nodes, digest, "the mesh file is in force");
        for warning in &self.mesh.file.warnings {
            tracing::warn!("{warning}");
        }
        let names = directory.host_names(&self.node);
        self.resolved.retain(|name, _| names.contains(name));
        for name in names {
            if !self.resolved.contains_key(name) {
                self.resolver.ask(name);
            }
        }
    }

    fn answered(&mut self, Answer { name, addresses }: Answer) -> bool {
        match addresses {
            Ok(addresses) => {
                let wanted = self.mesh.file.directory.host_names(&self.node);
                if !wanted.contains(&name) || self.resolved.get(&name) == Some(&addresses) {
                    return false;
                }
                tracing::info!(%name, ?addresses, "resolved");
                self.resolved.insert(name, addresses);
                true
            }
            // What was known stays; the next tick asks again.
            Err(error) => {
                tracing::debug!(%name, %error, "not resolved");
                false
            }
        }
    }

    fn heard(&self, Heard { from, digest }: &Heard, around: &Around<'_>) {
        let nodes = &self.mesh.file.directory.nodes;
        let sender = (nodes.iter()).find(|(_, node)| node.addresses.contains(from));
        let Some((name, _)) = sender else { return };
        (around.board.facts().digests).insert(name.to_string(), digest.clone());
    }

    /// The plan is made true: this node's addresses are there.
    pub(crate) fn realised(&mut self, plan: &Plan) {
        self.beacon.listen(plan);
    }

    /// Looks at what nobody tells of; whether the plan may be another now.
    pub(crate) fn tick(&mut self, host: &mut Host, around: &Around<'_>) -> bool {
        // What no watch tells of is taken when it has looked the same twice.
        let looks = Look::again(&self.looks.0);
        let settled = looks == self.looks.1;
        let is_new = looks != self.looks.0;
        self.looks.1 = looks;
        if settled && is_new {
            self.reload(host);
        }
        self.watch.begin();
        self.name_strangers(around);
        self.look_after_names(around);
        settled && is_new
    }

    /// Says which nodes run another file, once for each: at a tick, since a node may say so as often
    /// as it likes.
    fn name_strangers(&mut self, around: &Around<'_>) {
        let digests = &around.board.facts().digests;
        let ours = &self.mesh.file.digest;
        let others = digests.iter().filter(|(_, digest)| *digest != ours);
        for (node, digest) in others.clone() {
            if !self.strangers.contains(node) {
                let digest = &digest[..16];
                tracing::warn!(node, digest, "another node runs another mesh file");
            }
        }
        self.strangers = others.map(|(node, _)| node.clone()).collect();
    }

    /// Asks again for the names of nodes that are called for and silent, and tells others of our file.
    fn look_after_names(&mut self, around: &Around<'_>) {
        let Some(tunnel) = around.tunnel else { return };
        let device = tunnel.engine().status();
        let directory = &self.mesh.file.directory;
        let mut traffic = BTreeMap::new();
        let facts = around.board.facts();
        let Some(plan) = &facts.plan else { return };
        for (name, peer) in &plan.peers {
            let Some((key, status)) =
                (peer.public_key).and_then(|key| Some((key, device.peers.get(&key)?)))
            else {
                continue;
            };
            let (sent, received) = (status.tx_bytes, status.rx_bytes);
            let before = self.traffic.get(&key).copied().unwrap_or((sent, received));
            // Called for, and silent. A tunnel that is new counts from zero.
            let unanswered = sent > before.0 && received == before.1;
            traffic.insert(key, (sent, received));
            let endpoints = directory.nodes.get(name).map(|node| &node.endpoints);
            for endpoint in endpoints.into_iter().flatten() {
                if let EndpointHost::Name(host) = &endpoint.host
                    && (unanswered || !self.resolved.contains_key(host))
                {
                    self.resolver.ask(host);
                }
            }
        }
        self.traffic = traffic;
        self.beacon.listen(plan);
        let digest = &self.mesh.file.digest;
        self.beacon
            .tell(directory, plan, &device, digest, wall_time());
    }
}

/// A new file: right by itself, right for this host, and with all its keys; or sentences. From now on all
/// these files are watched; how they looked before they were read.
fn consider(
    path: &Path,
    node: &NodeName,
    state: &StateDir,
    host: &mut Host,
    resolved: &Resolved,
    watch: &mut Watch,
) -> (Looks, Result<Mesh, Vec<String>>) {
    let own = BTreeSet::from([path.to_owned(), state.private_key_path()]);
    let mut files = own.clone();
    loop {
        watch.files(&files);
        let looks: Looks = (files.iter())
            .map(|file| (file.clone(), Look::at(file)))
            .collect();
        let mut named = own.clone();
        let mesh = Mesh::read(path, node, state, &mut named);
        // A key that was not looked at before it was read could have changed in between.
        if named.is_subset(&files) {
            let mesh = mesh.and_then(|mesh| right_here(node, mesh, host, resolved));
            return (looks, mesh);
        }
        files.extend(named);
    }
}

/// The file, if it is right for this host.
fn right_here(
    node: &NodeName,
    mesh: Mesh,
    host: &mut Host,
    resolved: &Resolved,
) -> Result<Mesh, Vec<String>> {
    let plan = plan(node, &mesh, host, resolved).map_err(|sentence| vec![sentence])?;
    let errors = mesh.errors(&plan);
    match errors.is_empty() {
        true => Ok(mesh),
        false => Err(errors),
    }
}

/// What this node should be, given what is around it now.
fn plan(
    node: &NodeName,
    mesh: &Mesh,
    host: &mut Host,
    resolved: &Resolved,
) -> Result<Plan, String> {
    let alone = mesh.plan(node, resolved, &Surroundings::default())?;
    let surroundings = host.surroundings(&alone.host).unwrap_or_else(|error| {
        tracing::warn!(%error, "what is around the tunnel is not known");
        Surroundings::default()
    });
    mesh.plan(node, resolved, &surroundings)
}

impl Look {
    fn at(file: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Self {
            inode: metadata.ino(),
            len: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// How the same files look now.
    fn again(looks: &Looks) -> Looks {
        let files = looks.keys();
        files.map(|file| (file.clone(), Self::at(file))).collect()
    }
}
