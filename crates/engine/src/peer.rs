//! A peer's place in the engine: its state machine behind one lock, and what needs none.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};

use warren_config::PublicKey;
use warren_wireguard::time::Instant;
use warren_wireguard::{Identity, LowOrderKey, Peer, StaticShared};

use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Where a peer stands in [`crate::tables::Tables`]. Small, so that a million prefixes may name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(pub(crate) u32);

/// No deadline is armed.
const UNARMED: u64 = u64::MAX;

/// One peer.
#[derive(Debug)]
pub(crate) struct PeerHandle {
    id: PeerId,
    public_key: PublicKey,
    state: Mutex<Peer>,
    /// The peer is on the agenda already.
    on_agenda: AtomicBool,
    /// The peer is no longer configured. Set under the lock; no session is installed after that.
    removed: AtomicBool,
    /// The deadline for which control will wake up, in nanoseconds since boot.
    armed: AtomicU64,
    /// The secret shared with the identity that last had a handshake with the peer. Boxed, since most
    /// of ten thousand peers never have one.
    shared: Mutex<Option<Box<(PublicKey, StaticShared)>>>,
    pub(crate) rx_bytes: AtomicU64,
    pub(crate) tx_bytes: AtomicU64,
    pub(crate) rx_packets: AtomicU64,
    pub(crate) tx_packets: AtomicU64,
}

impl PeerHandle {
    pub(crate) fn new(id: PeerId, public_key: PublicKey, state: Peer) -> Self {
        Self {
            id,
            public_key,
            state: Mutex::new(state),
            on_agenda: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            armed: AtomicU64::new(UNARMED),
            shared: Mutex::new(None),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            rx_packets: AtomicU64::new(0),
            tx_packets: AtomicU64::new(0),
        }
    }

    pub(crate) const fn id(&self) -> PeerId {
        self.id
    }

    pub(crate) const fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Locks the state machine. Whatever is done to it, letting go puts the peer on the agenda if
    /// it has something for control to do, now or earlier than control would look by itself.
    pub(crate) fn lock<'a>(self: &'a Arc<Self>, agenda: &'a Agenda) -> PeerGuard<'a> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let staged_bytes = state.staged_bytes();
        PeerGuard {
            handle: self,
            agenda,
            state,
            staged_bytes,
            quiet: false,
            waker: Waker { agenda, due: false },
        }
    }

    /// The peer is no longer configured: ends its sessions and forgets what it had staged. Control
    /// looks after it once more, and lets go of its deadline, however far away that was.
    pub(crate) fn remove(self: &Arc<Self>, agenda: &Agenda) {
        let mut state = self.lock(agenda);
        self.removed.store(true, Ordering::Relaxed);
        state.stop();
        drop(state);
        if agenda.enlist(self) {
            agenda.wake();
        }
    }

    /// Whether the peer is no longer configured. Exact only while the peer is locked.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// As [`Self::lock`], for control while it looks after the peer anyway.
    pub(crate) fn lock_quietly<'a>(self: &'a Arc<Self>, agenda: &'a Agenda) -> PeerGuard<'a> {
        let mut guard = self.lock(agenda);
        guard.quiet = true;
        guard
    }

    /// Control will look at the peer again at `deadline`. Answers when it would have before. To be
    /// called with the peer locked, so that no earlier deadline slips through.
    pub(crate) fn arm(&self, deadline: Option<Instant>) -> Option<Instant> {
        let nanos = deadline.map_or(UNARMED, Instant::as_nanos);
        let before = self.armed.swap(nanos, Ordering::Relaxed);
        (before != UNARMED).then(|| Instant::from_nanos(before))
    }

    /// The secret that this peer shares with `identity`: a curve operation the first time.
    pub(crate) fn shared_with(&self, identity: &Identity) -> Result<StaticShared, LowOrderKey> {
        let mut cached = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((with, shared)) = cached.as_deref()
            && with == identity.public()
        {
            return Ok(shared.clone());
        }
        let shared = identity.shared_with(&self.public_key)?;
        *cached = Some(Box::new((*identity.public(), shared.clone())));
        Ok(shared)
    }
}

/// A locked peer.
pub(crate) struct PeerGuard<'a> {
    handle: &'a Arc<PeerHandle>,
    agenda: &'a Agenda,
    state: MutexGuard<'a, Peer>,
    /// What the peer held staged when it was locked.
    staged_bytes: usize,
    quiet: bool,
    /// Behind the lock, since fields are dropped in their order: control is woken when it is free.
    waker: Waker<'a>,
}

/// Wakes control when it is dropped, if that is due.
struct Waker<'a> {
    agenda: &'a Agenda,
    due: bool,
}

impl Drop for Waker<'_> {
    fn drop(&mut self) {
        if self.due {
            self.agenda.wake();
        }
    }
}

impl Deref for PeerGuard<'_> {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.state
    }
}

impl DerefMut for PeerGuard<'_> {
    fn deref_mut(&mut self) -> &mut Peer {
        &mut self.state
    }
}

impl Drop for PeerGuard<'_> {
    fn drop(&mut self) {
        self.agenda
            .staged_changed(self.staged_bytes, self.state.staged_bytes());
        if self.quiet {
            return;
        }
        let deadline = self
            .state
            .next_deadline()
            .map_or(UNARMED, Instant::as_nanos);
        if self.state.attention() || deadline < self.handle.armed.load(Ordering::Relaxed) {
            self.waker.due = self.agenda.enlist(self.handle);
        }
    }
}

/// Peers for which control has something to do, and the bytes that all of them hold staged.
pub(crate) struct Agenda {
    peers: Mutex<VecDeque<Arc<PeerHandle>>>,
    staged_bytes: AtomicUsize,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Agenda {
    /// `wake` is called when there is something new for control to do.
    pub(crate) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            peers: Mutex::new(VecDeque::new()),
            staged_bytes: AtomicUsize::new(0),
            wake,
        }
    }

    pub(crate) fn wake(&self) {
        (self.wake)();
    }

    /// Bytes staged by all peers together.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.staged_bytes.load(Ordering::Relaxed)
    }

    /// Adds a peer once; the agenda never holds more than there are peers. Answers whether it is
    /// new there, and control is to be woken.
    fn enlist(&self, peer: &Arc<PeerHandle>) -> bool {
        let new = !peer.on_agenda.swap(true, Ordering::AcqRel);
        if new {
            self.peers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_back(Arc::clone(peer));
        }
        new
    }

    /// Takes up to `most` of the peers on the agenda into `due`, those first that wait for longest.
    /// A peer that is locked from now on may come again.
    pub(crate) fn take(&self, most: usize, due: &mut Vec<Arc<PeerHandle>>) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = peers.len().min(most);
        due.extend(peers.drain(..taken));
        drop(peers);
        for peer in due {
            peer.on_agenda.store(false, Ordering::Release);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    fn staged_changed(&self, before: usize, after: usize) {
        if after > before {
            self.staged_bytes
                .fetch_add(after - before, Ordering::Relaxed);
        } else if before > after {
            self.staged_bytes
                .fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Agenda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agenda")
            .field("staged_bytes", &self.staged_bytes)
            .finish_non_exhaustive()
    }
}
