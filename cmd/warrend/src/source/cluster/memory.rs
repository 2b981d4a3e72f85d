//! What a node keeps on its disk of the cluster: who it is, its key, what was believed, and what is closed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;
use warren_config::{DeviceStatus, PrivateKey, WallTime};
use warren_k8s::{Epoch, Identity, Known, MeshSpec, Mode, Snapshot, View};
use warren_mesh::{Directory, NodeName};
use warren_state::{StateDir, StateError};

use super::super::wall_time;
use super::SESSION;
use super::latch::Latch;

/// All of it but the key, as one file.
const SNAPSHOT: &str = "cluster.json";
/// What was reached through the tunnel, and whether the cluster has turned strict: small, and written
/// before the host is changed by it.
const LATCH: &str = "latch.json";
/// On which machine the key was made: a copy of this disk in another must not have the same.
const MACHINE: &str = "machine-id";
/// What systemd and container hosts tell machines apart by (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";
/// What changes often is written this often at most.
const PAUSE: Duration = Duration::from_secs(5);
/// So many times as long as the last write took pass at least before the next.
const PAUSE_OF_LARGE: u32 = 200;
/// But no more than this, since a disk may be slow for once.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// As many as the schema of the record takes.
const LATCHED_IN_RECORD: usize = 256;

/// So many names of nodes that have fallen silent are worth no write.
const FEW: usize = 64;

/// What a node remembers of its cluster, also when it starts while the API is away.
pub(super) struct Memory {
    node: NodeName,
    state: StateDir,
    key: PrivateKey,
    epoch: Epoch,
    /// The epoch of this run is in the record.
    is_published: bool,
    /// `None` until the API has said which Node this is.
    kept: Option<Snapshot>,
    latch: Latch,
    /// With whom there was traffic before this start, and when that was.
    spoke_with: BTreeSet<NodeName>,
    started: Instant,
    /// What is kept differs from the disk.
    dirty: bool,
    /// So does what is closed.
    latch_dirty: bool,
    written: Option<Instant>,
    /// How long that took.
    took: Duration,
    /// Why what is kept could not be written, while it could not, and why what is closed could not.
    unwritten: Option<String>,
    unlatched: Option<String>,
}

impl Memory {
    /// What the disk has, and how long to hold back the new epoch.
    pub(super) fn load(node: NodeName, state: StateDir) -> anyhow::Result<(Self, Duration)> {
        let machine = machine_id(Path::new(MACHINE_ID));
        let made_on = state.read(MACHINE)?;
        let is_copy = match (&machine, &made_on) {
            (Some(machine), Some(made_on)) => machine != made_on,
            // A machine without an id tells nothing.
            _ => false,
        };
        if is_copy {
            tracing::warn!(
                "this disk was another machine's: the node gets a key of its own, and starts anew"
            );
        }
        if let Some(machine) = &machine
            && made_on.as_ref() != Some(machine)
        {
            // Before the key, so that a crash between the two makes one more key and no shared one.
            if is_copy {
                forget(&state)?;
                replace_key(&state)?;
            }
            state.write(MACHINE, machine)?;
        }
        let mut kept = match state.read(SNAPSHOT)? {
            Some(bytes) => match Snapshot::from_bytes(&bytes) {
                Ok(kept) if kept.identity.node == node => Some(kept),
                Ok(kept) => {
                    tracing::warn!(
                        "what is kept is of node {}, and this is {node}: it gets a key of its own, and starts \
                         anew",
                        kept.identity.node
                    );
                    forget(&state)?;
                    replace_key(&state)?;
                    None
                }
                Err(error) => {
                    tracing::warn!("{error}; the node waits for the API");
                    None
                }
            },
            None => None,
        };
        let latch = match state.read(LATCH)? {
            None if kept.is_none() => Latch::default(),
            // It is written first.
            None => {
                tracing::error!("{LATCH} is gone from beside {SNAPSHOT}");
                Latch::lost()
            }
            Some(bytes) => Latch::from_bytes(&bytes).unwrap_or_else(|error| {
                tracing::error!("{LATCH} is damaged: {error}");
                Latch::lost()
            }),
        };
        let key = match state.private_key() {
            Ok(key) => key,
            Err(StateError::Missing { .. }) => replace_key(&state)?,
            Err(error) => return Err(error.into()),
        };
        let now = i64::try_from(wall_time().0.as_secs()).unwrap_or(i64::MAX);
        let (epoch, hold) = Epoch::next(kept.as_ref().map(|kept| kept.epoch), now);
        if let Some(kept) = &mut kept {
            kept.epoch = epoch;
        }
        let spoke_with = kept.iter().flat_map(|kept| kept.spoke_with.clone());
        let mut memory = Self {
            latch,
            spoke_with: spoke_with.collect(),
            started: Instant::now(),
            node,
            state,
            key,
            epoch,
            is_published: false,
            kept,
            dirty: false,
            latch_dirty: false,
            written: None,
            took: Duration::ZERO,
            unwritten: None,
            unlatched: None,
        };
        memory.write();
        Ok((memory, hold))
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.kept.as_ref().map(|kept| &kept.identity)
    }

    pub(super) fn private_key(&self) -> PrivateKey {
        self.key.clone()
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch.number
    }

    pub(super) fn view(&self) -> Option<&View> {
        self.kept.as_ref().map(|kept| &kept.view)
    }

    pub(super) fn mesh(&self) -> Option<&MeshSpec> {
        self.kept.as_ref().and_then(|kept| kept.mesh.as_ref())
    }

    pub(super) fn known(&self) -> &Known {
        const NOBODY: &Known = &Known(std::collections::BTreeMap::new());
        self.kept.as_ref().map_or(NOBODY, |kept| &kept.known)
    }

    /// What was reached in this mode, and is closed.
    pub(super) fn latched(&self, mode: Mode) -> &BTreeSet<IpNet> {
        self.latch.of(mode)
    }

    /// What was reached is not known any more.
    pub(super) fn has_lost_latch(&self) -> bool {
        self.latch.lost
    }

    /// What of it the record has: it is small whatever the cluster is, and none where the record says that all is
    /// closed.
    pub(super) fn latched_of_record(&self, mode: Mode) -> Vec<IpNet> {
        match self.is_strict() {
            true => Vec::new(),
            false => self.latch.joined(mode, LATCHED_IN_RECORD),
        }
    }

    /// The record has this of an earlier run of the same node, which the disk may have lost.
    pub(super) fn recall(&mut self, mode: Mode, latched: &[IpNet]) {
        if self.latch.recall(mode, latched) {
            tracing::warn!("the disk has lost what was closed; the record of this node has it");
            self.write_latch();
        }
    }

    /// How many prefixes and addresses are closed.
    pub(super) fn latched_count(&self) -> usize {
        self.latch.len()
    }

    /// The cluster has turned strict, as this node saw it.
    pub(super) fn is_strict(&self) -> bool {
        self.latch.strict
    }

    /// All is closed here whatever the cluster has come to: it has turned strict, or what was reached is not known
    /// any more.
    pub(super) fn closes_all(&self) -> bool {
        self.latch.strict || self.latch.lost
    }

    /// Whether there was traffic with a node before this start.
    pub(super) fn spoke_with(&self, node: &NodeName) -> bool {
        self.spoke_with.contains(node)
    }

    /// The API says that this node is the Node of this `uid` in this `cluster`. Whether it is another
    /// than before: then it has another key.
    pub(super) fn is_of(&mut self, cluster: &str, uid: &str) -> Result<bool, String> {
        match &self.kept {
            None => {
                self.kept = Some(Snapshot {
                    identity: Identity {
                        cluster: cluster.to_owned(),
                        node: self.node.clone(),
                        uid: uid.to_owned(),
                    },
                    mesh: None,
                    view: View::default(),
                    known: Known::default(),
                    epoch: self.epoch,
                    spoke_with: BTreeSet::new(),
                });
                self.write_latch();
                self.write();
                Ok(false)
            }
            // Of another cluster nothing is believed, not even this.
            Some(kept) if kept.identity.cluster != cluster || kept.identity.uid == uid => Ok(false),
            Some(_) => {
                tracing::warn!(
                    uid,
                    "the Node was made anew: this is another node, with another key"
                );
                self.key = replace_key(&self.state).map_err(|error| format!("{error:#}"))?;
                if let Some(kept) = &mut self.kept {
                    kept.identity.uid = uid.to_owned();
                    kept.known.0.remove(&self.node);
                }
                self.write();
                Ok(true)
            }
        }
    }

    /// This Mesh can be used.
    pub(super) fn took_mesh(&mut self, spec: &MeshSpec) {
        if let Some(kept) = &mut self.kept
            && kept.mesh.as_ref() != Some(spec)
        {
            kept.mesh = Some(spec.clone());
            self.dirty = true;
            self.write_if_due();
        }
    }

    /// This view is believed, and this is what is known by it.
    pub(super) fn believes(&mut self, view: &View, known: Known) {
        let Some(kept) = &mut self.kept else { return };
        if kept.known != known {
            kept.known = known;
            self.dirty = true;
        }
        if kept.view != *view {
            kept.view = view.clone();
            self.dirty = true;
        }
        self.write_if_due();
    }

    /// The same where only these nodes have changed. `matters` where that is worth a place on the disk,
    /// by the next [`tick`](Self::tick).
    pub(super) fn follows<'a>(
        &mut self,
        view: &View,
        names: impl Iterator<Item = &'a String>,
        matters: bool,
    ) {
        let Some(kept) = &mut self.kept else { return };
        for name in names {
            kept.view.take_over(view, name);
        }
        self.dirty |= matters;
    }

    /// What is known, to be brought in line with what was told last.
    pub(super) fn known_mut(&mut self) -> Option<&mut Known> {
        self.kept.as_mut().map(|kept| &mut kept.known)
    }

    /// These prefixes were reached: they are closed from now on, on the disk before anywhere else.
    /// Whether any is new.
    pub(super) fn latch(&mut self, mode: Mode, reached: &BTreeSet<IpNet>) -> bool {
        let is_new = self.latch.close(mode, reached);
        if is_new {
            self.write_latch();
            // What is closed is reached after a restart only with the keys that go with it.
            self.write_after(self.pause_of_large());
        }
        is_new
    }

    /// The same where all is closed anyway: it is on the disk soon.
    pub(super) fn latch_in_time(&mut self, mode: Mode, reached: &BTreeSet<IpNet>) {
        self.latch_dirty |= self.latch.close(mode, reached);
    }

    /// The cluster has turned strict, as this node sees it.
    pub(super) fn turn_strict(&mut self) {
        self.latch.strict = true;
        self.write_latch();
    }

    /// The operator opens what was closed.
    pub(super) fn forget_latch(&mut self) {
        if self.latch != Latch::default() {
            self.latch = Latch::default();
            self.write_latch();
        }
    }

    fn write_latch(&mut self) {
        let written = self.state.write(LATCH, &self.latch.to_bytes());
        // What failed is tried again at the next tick.
        self.latch_dirty = written.is_err();
        let then = match self.latch == Latch::default() {
            true => "what was closed and is open now would be closed again",
            false => "what was reached may travel in the clear again",
        };
        let why = (written.err()).map(|error| format!("{error}; after a restart {then}"));
        if let Some(sentence) = why.as_ref().filter(|_| why != self.unlatched) {
            tracing::error!("{sentence}");
        }
        self.unlatched = why;
    }

    /// With whom there is a session now: they are called first after a crash.
    pub(super) fn speaks(&mut self, device: &DeviceStatus, now: WallTime, directory: &Directory) {
        let Some(kept) = &mut self.kept else { return };
        let talks = |key| {
            let peer = device.peers.get(&key);
            let handshake = peer.and_then(|peer| peer.last_handshake);
            handshake.is_some_and(|at| now.0.saturating_sub(at.0) < SESSION)
        };
        let mut spoke_with: BTreeSet<NodeName> = (directory.nodes.iter())
            .filter(|(_, node)| node.public_key.is_some_and(talks))
            .map(|(name, _)| name.clone())
            .collect();
        // Those of before have not had the time yet: a start that fails soon must not cost the next one all of them.
        if self.started.elapsed() < SESSION {
            spoke_with.extend(self.spoke_with.iter().cloned());
        }
        // Who falls silent is forgotten when somebody else comes, or most have: it is written for nothing else.
        let is_outgrown = kept.spoke_with.len() > 2 * spoke_with.len() + FEW;
        if is_outgrown || !spoke_with.is_subset(&kept.spoke_with) {
            kept.spoke_with = spoke_with;
            self.dirty = true;
            self.write_if_due();
        }
    }

    /// There is a session with this one.
    pub(super) fn speaks_with(&mut self, name: &NodeName) {
        let Some(kept) = &mut self.kept else { return };
        if kept.spoke_with.insert(name.clone()) {
            self.dirty = true;
            self.write_if_due();
        }
    }

    /// The new epoch is in the record.
    pub(super) fn published(&mut self, epoch: i64) {
        if epoch == self.epoch.number && !self.is_published {
            self.is_published = true;
            let now = i64::try_from(wall_time().0.as_secs()).unwrap_or(i64::MAX);
            self.epoch = self.epoch.published_at(now);
            if let Some(kept) = &mut self.kept {
                kept.epoch = self.epoch;
                self.write();
            }
        }
    }

    /// What people should know of the disk, a sentence each.
    pub(super) fn complaints(&self) -> impl Iterator<Item = String> {
        let lost = self.latch.lost.then(|| {
            format!(
                "{LATCH} was damaged or removed, and what was reached before is not known any more: this node sends \
                 nothing in the clear; set spec.enforcement of the Mesh to Permissive, and then to what it should be, \
                 to have it learnt anew"
            )
        });
        let unwritten = self.unlatched.iter().chain(&self.unwritten);
        lost.into_iter().chain(unwritten.cloned())
    }

    /// Writes what had to wait.
    pub(super) fn tick(&mut self) {
        if self.latch_dirty {
            self.write_latch();
        }
        self.write_if_due();
    }

    /// Writes what would wait.
    pub(super) fn end(&mut self) {
        if self.latch_dirty {
            self.write_latch();
        }
        self.write_after(Duration::ZERO);
    }

    /// When what had to wait may be written.
    pub(super) fn due(&self) -> Option<Instant> {
        self.written
            .filter(|_| self.dirty)
            .map(|at| at + self.pause())
    }

    fn pause(&self) -> Duration {
        PAUSE.max(self.pause_of_large())
    }

    fn pause_of_large(&self) -> Duration {
        PAUSE_MAX.min(self.took * PAUSE_OF_LARGE)
    }

    fn write_if_due(&mut self) {
        self.write_after(self.pause());
    }

    fn write_after(&mut self, pause: Duration) {
        if self.dirty && self.written.is_none_or(|at| at.elapsed() >= pause) {
            self.write();
        }
    }

    fn write(&mut self) {
        let Some(kept) = &self.kept else { return };
        let began = Instant::now();
        let written = self.state.write(SNAPSHOT, &kept.to_bytes());
        self.written = Some(Instant::now());
        self.took = began.elapsed();
        match written {
            Ok(()) => {
                self.dirty = false;
                self.unwritten = None;
            }
            Err(error) => {
                self.dirty = true;
                let why = format!("{error}; a restart without the API would know less");
                if self.unwritten.as_ref() != Some(&why) {
                    tracing::warn!("{why}");
                }
                self.unwritten = Some(why);
            }
        }
    }
}

/// What is kept of another node, or another machine, is not this one's.
fn forget(state: &StateDir) -> Result<(), StateError> {
    state.remove(SNAPSHOT)?;
    state.remove(LATCH)
}

/// A key of this node's own, in the place of whatever was there.
fn replace_key(state: &StateDir) -> anyhow::Result<PrivateKey> {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|error| anyhow::anyhow!("the system gave no random bytes: {error}"))?;
    let key = PrivateKey::from_bytes(*bytes);
    state.replace_private_key(&key)?;
    Ok(key)
}

/// What tells this machine from a copy of it, if anything does.
fn machine_id(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let id = bytes.trim_ascii().to_vec();
    (!id.is_empty() && id != b"uninitialized").then_some(id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::PathBuf;

    use tokio::time::advance;
    use warren_config::{PeerStatus, PublicKey};
    use warren_mesh::{Mesh, Node};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);
    const NOW: WallTime = WallTime(Duration::from_secs(1_000_000));

    #[tokio::test(start_paused = true)]
    async fn a_start_that_ends_soon_forgets_nobody_that_the_one_before_it_talked_with() {
        let scratch = Scratch::new("starts");
        let many = names(0..200);
        let mut memory = scratch.start();
        for name in &many {
            memory.speaks_with(name);
        }
        memory.end();

        for _ in 0..2 {
            let mut memory = scratch.start();
            assert!(many.iter().all(|name| memory.spoke_with(name)));
            // Nobody has answered yet when it looks first, and a newcomer is among the first who do.
            memory.speaks(&device(&[]), NOW, &directory(&many));
            advance(PAUSE).await;
            memory.speaks(&device(&names(200..201)), NOW, &directory(&names(0..201)));
            memory.end();
        }
        assert!(scratch.start().spoke_with(&name(200)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_fallen_silent_is_forgotten_once_there_are_many() {
        let scratch = Scratch::new("silent");
        let all = names(0..FEW + 1);
        let mut memory = scratch.start();
        for name in &all[1..] {
            memory.speaks_with(name);
        }
        memory.end();

        let mut memory = scratch.start();
        let nobody = || device(&[]);
        memory.speaks(&nobody(), NOW, &directory(&all));
        advance(SESSION).await;
        memory.speaks(&nobody(), NOW, &directory(&all));
        let kept = |memory: &Memory| memory.kept.as_ref().map(|kept| kept.spoke_with.len());
        assert_eq!(kept(&memory), Some(FEW), "they are few");
        memory.speaks_with(&all[0]);
        memory.speaks(&nobody(), NOW, &directory(&all));
        assert_eq!(kept(&memory), Some(0));
        memory.end();
        let memory = scratch.start();
        assert!(!all.iter().any(|name| memory.spoke_with(name)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_has_ended_is_no_talk() {
        let scratch = Scratch::new("ended");
        let mut memory = scratch.start();
        let talking = names(0..1);
        let since = |age| WallTime(NOW.0 + age);
        memory.speaks(&device(&talking), since(SESSION), &directory(&talking));
        assert!(!memory.dirty);
        let age = SESSION - MOMENT;
        memory.speaks(&device(&talking), since(age), &directory(&talking));
        memory.end();
        assert!(scratch.start().spoke_with(&name(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_often_waits_and_is_written_when_the_daemon_ends() {
        let scratch = Scratch::new("end");
        let mut memory = scratch.start();
        memory.took_mesh(&port(1));
        assert_eq!(scratch.mesh(), None);
        advance(PAUSE - MOMENT).await;
        memory.tick();
        assert_eq!(scratch.mesh(), None);
        advance(MOMENT).await;
        memory.tick();
        assert_eq!(scratch.mesh(), Some(port(1)));
        memory.took_mesh(&port(2));
        memory.latch_in_time(Mode::Route, &prefixes());
        memory.end();
        assert_eq!(scratch.mesh(), Some(port(2)));
        assert_eq!(scratch.start().latched(Mode::Route), &prefixes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_is_written_to_more_seldom_but_once_a_minute() {
        let scratch = Scratch::new("slow");
        for (took_ms, pause_s) in [(0, 5), (25, 5), (50, 10), (300, 60), (10_000, 60)] {
            let mut memory = scratch.start();
            memory.took = Duration::from_millis(took_ms);
            memory.dirty = true;
            let pause = Duration::from_secs(pause_s);
            assert_eq!(memory.due(), Some(Instant::now() + pause), "{took_ms} ms");
            advance(pause - MOMENT).await;
            memory.tick();
            assert!(memory.dirty, "{took_ms} ms");
            advance(MOMENT).await;
            memory.tick();
            assert!(!memory.dirty, "{took_ms} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_closed_is_on_the_disk_at_once_and_so_are_the_keys_behind_it() {
        let scratch = Scratch::new("closed");
        let mut memory = scratch.start();
        memory.took_mesh(&port(1));
        assert!(memory.latch(Mode::Route, &prefixes()));
        assert_eq!(scratch.mesh(), Some(port(1)), "of a small cluster");
        assert!(!memory.latch(Mode::Route, &prefixes()), "it is nothing new");
        memory.took = Duration::from_secs(1);
        memory.took_mesh(&port(2));
        let more: BTreeSet<IpNet> = ["10.244.2.0/24".parse().expect("a prefix")].into();
        assert!(memory.latch(Mode::Route, &more));
        assert_eq!(scratch.mesh(), Some(port(1)), "a large one waits");
        let memory = scratch.start();
        assert_eq!(memory.latched(Mode::Route), &(&prefixes() | &more));
    }

    #[tokio::test(start_paused = true)]
    async fn a_latch_that_is_gone_from_beside_the_snapshot_is_lost_and_a_new_disk_has_lost_nothing()
    {
        let scratch = Scratch::new("gone");
        let memory = scratch.start();
        assert!(!memory.has_lost_latch());
        assert!(
            !scratch.start().has_lost_latch(),
            "it is there from the first snapshot on"
        );
        memory.state.remove(LATCH).expect("it is there");
        assert!(scratch.start().closes_all());
    }

    #[tokio::test(start_paused = true)]
    async fn a_damaged_latch_closes_all_until_the_operator_opens_it() {
        let scratch = Scratch::new("damaged");
        let mut memory = scratch.start();
        memory.latch(Mode::Route, &prefixes());
        for damaged in [
            &b"{\"prefixes\":[\"0.0.0.0/0\"],\"addresses\":[],\"strict\":false}"[..],
            b"{",
        ] {
            memory
                .state
                .write(LATCH, damaged)
                .expect("a scratch directory");
            memory = scratch.start();
            assert!(memory.closes_all() && memory.latched_count() == 0);
            // It is no word of the cluster's, for others to follow.
            assert!(!memory.is_strict());
            assert!(
                memory
                    .complaints()
                    .any(|told| told.contains("latch.json was damaged"))
            );
        }
        // What is closed from now on replaces nothing of that.
        memory.latch_in_time(Mode::Route, &prefixes());
        memory.end();
        let mut memory = scratch.start();
        assert!(memory.closes_all() && memory.latched(Mode::Route) == &prefixes());
        memory.forget_latch();
        let memory = scratch.start();
        assert!(!memory.closes_all() && memory.complaints().next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_closed_on_the_disk_is_tried_again_and_told_of() {
        let scratch = Scratch::new("latch");
        let mut memory = scratch.start();
        scratch.put_away();
        memory.took_mesh(&port(1));
        memory.latch(Mode::Route, &prefixes());
        let told = |memory: &Memory| -> Vec<String> {
            let told = memory.complaints().map(|told| {
                let (_, follows) = told.split_once("; ").expect("what follows");
                follows.to_owned()
            });
            told.collect()
        };
        let open = "after a restart what was reached may travel in the clear again";
        // The one does not hide the other.
        let unknown = "a restart without the API would know less";
        assert_eq!(told(&memory), [open, unknown]);
        memory.tick();
        assert_eq!(told(&memory), [open, unknown]);
        memory.forget_latch();
        let closed = "after a restart what was closed and is open now would be closed again";
        assert_eq!(told(&memory), [closed, unknown]);
        memory.latch(Mode::Route, &prefixes());

        scratch.put_back();
        memory.tick();
        assert_eq!(told(&memory), [unknown], "that is not due yet");
        assert_eq!(scratch.start().latched(Mode::Route), &prefixes());
        advance(PAUSE).await;
        memory.tick();
        assert_eq!(memory.complaints().count(), 0);
    }

    fn name(number: usize) -> NodeName {
        format!("n{number}").parse().expect("a name")
    }

    fn names(numbers: std::ops::Range<usize>) -> Vec<NodeName> {
        numbers.map(name).collect()
    }

    fn key(name: &NodeName) -> PublicKey {
        let mut bytes = [0; 32];
        let text = name.as_str().as_bytes();
        bytes[..text.len()].copy_from_slice(text);
        PrivateKey::from_bytes(bytes).public()
    }

    /// All nodes of these names.
    fn directory(names: &[NodeName]) -> Directory {
        let node = |name: &NodeName| Node {
            public_key: Some(key(name)),
            ..Node::default()
        };
        Directory {
            mesh: Mesh::default(),
            nodes: names.iter().map(|it| (it.clone(), node(it))).collect(),
            pairs: BTreeMap::new(),
        }
    }

    /// A device that has just shaken hands with these.
    fn device(talking: &[NodeName]) -> DeviceStatus {
        let peer = |name| {
            let peer = PeerStatus {
                last_handshake: Some(NOW),
                ..PeerStatus::default()
            };
            (key(name), peer)
        };
        DeviceStatus {
            peers: talking.iter().map(peer).collect(),
            ..DeviceStatus::default()
        }
    }

    /// A Mesh that is another.
    fn port(port: u16) -> MeshSpec {
        MeshSpec {
            port,
            ..MeshSpec::default()
        }
    }

    fn prefixes() -> BTreeSet<IpNet> {
        ["10.244.1.0/24", "fd00:10:244:1::/64"]
            .map(|prefix| prefix.parse().expect("a prefix"))
            .into()
    }

    /// A state directory of this test's own, gone when it ends.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let name = format!("warrend-memory-{test}-{}", std::process::id());
            let scratch = Self(std::env::temp_dir().join(name));
            scratch.state().create().expect("made");
            scratch
        }

        fn state(&self) -> StateDir {
            StateDir::new(self.0.join("state"))
        }

        /// What a daemon that starts now remembers, of a cluster that it is part of.
        fn start(&self) -> Memory {
            let (mut memory, _) = Memory::load(name(1000), self.state()).expect("it can be read");
            memory.is_of("a cluster", "a uid").expect("it is");
            memory
        }

        /// The Mesh on the disk.
        fn mesh(&self) -> Option<MeshSpec> {
            let bytes = self.state().read(SNAPSHOT).expect("read");
            let snapshot = Snapshot::from_bytes(&bytes.expect("it is there"));
            snapshot.expect("it is whole").mesh
        }

        /// Nothing can be written until it is put back.
        fn put_away(&self) {
            fs::rename(self.0.join("state"), self.0.join("away")).expect("renamed");
        }

        fn put_back(&self) {
            fs::rename(self.0.join("away"), self.0.join("state")).expect("renamed");
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _gone = fs::remove_dir_all(&self.0);
        }
    }
}
