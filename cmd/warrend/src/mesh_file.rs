//! A mesh file with the secrets it needs: read as a whole, or refused as a whole.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use warren_mesh::{MeshFile, NodeName, Plan, Problem, Resolved, Secrets, Severity, Underlay, plan};
use warren_netlink::Surroundings;
use warren_state::StateDir;

/// The last file that was taken, so that a restart with a bad one goes on with it.
const LAST_GOOD: &str = "mesh.last-good.toml";

/// Bound of a mesh file in bytes: a hundred thousand nodes.
const FILE_MAX: u64 = 32 << 20;

/// A file and all that is needed to make it true.
pub(crate) struct Mesh {
    text: String,
    pub(crate) file: MeshFile,
    secrets: Secrets,
}

impl Mesh {
    /// Reads the file at `path`, or says in sentences why it is refused. The files of all keys that it
    /// needs are put into `files`, also of those that are missing.
    pub(crate) fn read(
        path: &Path,
        node: &NodeName,
        state: &StateDir,
        files: &mut BTreeSet<PathBuf>,
    ) -> Result<Self, Vec<String>> {
        let shown = path.display();
        let mut bytes = Vec::new();
        // A pipe's writer would be waited for, and with it everything else.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path);
        let read = opened.and_then(|file| match file.metadata()?.is_file() {
            true => file.take(FILE_MAX + 1).read_to_end(&mut bytes),
            false => Err(io::Error::other("it is no ordinary file")),
        });
        read.map_err(|error| vec![format!("{shown} cannot be read: {error}")])?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(vec![format!("{shown} is larger than {FILE_MAX} bytes")]);
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| vec![format!("{shown} is no text; a mesh file is TOML in UTF-8")])?;
        Self::parse(text, &shown.to_string(), node, state, files)
    }

    /// The last file that was taken, if there was one. One without this node was another node's.
    pub(crate) fn last_good(node: &NodeName, state: &StateDir) -> Option<Self> {
        let text = String::from_utf8(state.read(LAST_GOOD).ok()??).ok()?;
        let path = state.path().join(LAST_GOOD);
        let name = path.display().to_string();
        let mesh = Self::parse(text, &name, node, state, &mut BTreeSet::new()).ok()?;
        (mesh.file.directory.nodes.contains_key(node)).then_some(mesh)
    }

    fn parse(
        text: String,
        name: &str,
        node: &NodeName,
        state: &StateDir,
        files: &mut BTreeSet<PathBuf>,
    ) -> Result<Self, Vec<String>> {
        let file = MeshFile::parse(&text, name)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let mut secrets = Secrets::default();
        let mut errors = Vec::new();
        match state.private_key() {
            Ok(key) => secrets.private_key = Some(key),
            Err(error) => errors.push(error.to_string()),
        }
        for key_file in file.directory.key_files(node) {
            files.insert(state.path().join(&key_file.0));
            match state.preshared_key(&key_file.0) {
                Ok(key) => {
                    secrets.preshared_keys.insert(key_file.clone(), key);
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        match errors.is_empty() {
            true => Ok(Self {
                text,
                file,
                secrets,
            }),
            false => Err(errors),
        }
    }

    /// Keeps the file for a restart with a bad one.
    pub(crate) fn keep(&self, state: &StateDir) {
        if let Err(error) = state.write(LAST_GOOD, self.text.as_bytes()) {
            tracing::warn!("{error}; a restart with a bad mesh file would find no old one");
        }
    }

    /// What `node` should be, according to this file.
    pub(crate) fn plan(
        &self,
        node: &NodeName,
        resolved: &Resolved,
        surroundings: &Surroundings,
    ) -> Result<Plan, String> {
        let underlay = Underlay {
            addresses: surroundings.addresses.keys().copied().collect(),
            gateways: surroundings.gateways.clone(),
            resolvers: surroundings.resolvers.clone(),
            api_servers: BTreeSet::new(),
        };
        let (secrets, steered) = (&self.secrets, &BTreeSet::new());
        let directory = &self.file.directory;
        plan(directory, node, resolved, secrets, &underlay, steered)
            .map_err(|error| error.to_string())
    }

    /// A problem in a sentence that says where it is.
    pub(crate) fn sentence(&self, problem: &Problem) -> String {
        self.file.locate(problem).to_string()
    }

    /// The sentences of all problems of a plan that refuse a file.
    pub(crate) fn errors(&self, plan: &Plan) -> Vec<String> {
        (plan.problems.iter())
            .filter(|problem| problem.severity() == Severity::Error)
            .map(|problem| self.sentence(problem))
            .collect()
    }

    /// Whether this is the same file with the same secrets.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let Secrets {
            private_key,
            preshared_keys,
        } = &self.secrets;
        self.file.digest == other.file.digest
            && *private_key == other.secrets.private_key
            && *preshared_keys == other.secrets.preshared_keys
    }
}
