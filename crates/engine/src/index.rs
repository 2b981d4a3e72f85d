//! Receiver indices: which session or handshake a message of ours-to-receive belongs to.
//!
//! An index is 32 random bits, unique within the device. The table changes only in handshakes, and
//! the workers ask it once for each run of datagrams of one session, through a [`Recent`] of their
//! own that holds no session alive.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, Weak};

use warren_wireguard::Session;

use crate::peer::PeerHandle;
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Shards of the table, so that handshakes of many peers do not hold up each other's data.
const SHARDS: usize = 16;
/// Sets of a worker's own cache. With [`WAYS`] places in each, all of a hundred sessions fit in it but for
/// one case in eighty, and of five hundred one in thirty does not.
const SETS: usize = 256;
/// Places of a set: a line of the processor's cache.
const WAYS: usize = 4;

/// A session that may receive, with the peer at its other end.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) session: Arc<Session>,
    pub(crate) peer: Arc<PeerHandle>,
}

#[derive(Debug)]
enum Owner {
    /// An initiation of ours that awaits its response.
    Handshake(Arc<PeerHandle>),
    Session(Arc<Receiver>),
}

impl Owner {
    fn peer(&self) -> &Arc<PeerHandle> {
        match self {
            Self::Handshake(peer) => peer,
            Self::Session(receiver) => &receiver.peer,
        }
    }
}

/// The device's receiver indices.
#[derive(Debug)]
pub(crate) struct IndexTable {
    shards: [RwLock<HashMap<u32, Owner>>; SHARDS],
}

impl IndexTable {
    pub(crate) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::new(HashMap::new())),
        }
    }

    /// Takes an index for a handshake with `peer`; `draw` yields 32 random bits a call.
    pub(crate) fn allocate(&self, peer: &Arc<PeerHandle>, mut draw: impl FnMut() -> u32) -> u32 {
        loop {
            let index = draw();
            if let Entry::Vacant(entry) = self.write(index).entry(index) {
                entry.insert(Owner::Handshake(Arc::clone(peer)));
                return index;
            }
        }
    }

    /// The handshake behind `index` became `session`.
    pub(crate) fn promote(&self, session: Arc<Session>, peer: &Arc<PeerHandle>) {
        let index = session.local_index();
        let receiver = Arc::new(Receiver {
            session,
            peer: Arc::clone(peer),
        });
        self.write(index).insert(index, Owner::Session(receiver));
    }

    /// Frees an index of `peer`. One that was freed with its peer may be another's by now, and stays.
    pub(crate) fn retire(&self, index: u32, peer: &Arc<PeerHandle>) {
        if let Entry::Occupied(entry) = self.write(index).entry(index)
            && Arc::ptr_eq(entry.get().peer(), peer)
        {
            entry.remove();
        }
    }

    /// Frees every index of peers that are gone. Walks the table: for configuration only.
    pub(crate) fn retire_removed(&self) {
        for shard in &self.shards {
            shard
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|_, owner| !owner.peer().is_removed());
        }
    }

    /// The peer whose handshake or session has this index.
    pub(crate) fn peer(&self, index: u32) -> Option<Arc<PeerHandle>> {
        let shard = self.read(index);
        Some(Arc::clone(shard.get(&index)?.peer()))
    }

    /// Whether an initiation of ours with this index awaits its response.
    pub(crate) fn awaits_response(&self, index: u32) -> bool {
        matches!(self.read(index).get(&index), Some(Owner::Handshake(_)))
    }

    /// The session that has this index.
    fn receiver(&self, index: u32) -> Option<Arc<Receiver>> {
        match self.read(index).get(&index)? {
            Owner::Handshake(_) => None,
            Owner::Session(receiver) => Some(Arc::clone(receiver)),
        }
    }

    fn read(&self, index: u32) -> RwLockReadGuard<'_, HashMap<u32, Owner>> {
        self.shard(index)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, index: u32) -> RwLockWriteGuard<'_, HashMap<u32, Owner>> {
        self.shard(index)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, index: u32) -> &RwLock<HashMap<u32, Owner>> {
        &self.shards[index as usize % SHARDS]
    }
}

/// The sessions that one worker heard from of late.
///
/// A session that ends is gone from here as well, its keys with it: what stays of a [`Receiver`] until its
/// place is taken is its allocation, empty, since a `Weak` holds that.
#[derive(Debug)]
pub(crate) struct Recent(Box<[Set]>);

/// Indices are random, so the low bits choose a set well, and those above a place in it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([(u32, Weak<Receiver>); WAYS]);

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Set>() == 64, "a set is a line");

impl Recent {
    pub(crate) fn new() -> Self {
        Self((0..SETS).map(|_| Set::default()).collect())
    }

    /// The session that has this index. Takes a lock only when it is not among the recent ones.
    pub(crate) fn lookup(&mut self, table: &IndexTable, index: u32) -> Option<Arc<Receiver>> {
        let Set(places) = &mut self.0[index as usize % SETS];
        let known = (places.iter()).find_map(|(known, receiver)| {
            let receiver = (*known == index).then_some(receiver)?;
            receiver.upgrade()
        });
        if known.is_some() {
            return known;
        }
        let found = table.receiver(index)?;
        let vacant = (places.iter()).position(|(_, receiver)| receiver.strong_count() == 0);
        // In a full set it is always the same one that gives way to this index, and not each in turn.
        let at = vacant.unwrap_or(index as usize / SETS % WAYS);
        places[at] = (index, Arc::downgrade(&found));
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use warren_config::{PrivateKey, PublicKey};
    use warren_wireguard::messages::{self, Handshake, Message};
    use warren_wireguard::time::{Instant, Tai64n};
    use warren_wireguard::{Endpoint, Identity, Peer, open_initiation};

    use super::*;
    use crate::peer::{Agenda, PeerId};

    #[test]
    fn an_index_that_is_taken_is_drawn_again_and_one_that_is_retired_is_free() {
        let table = IndexTable::new();
        let peer = handle(0);
        let allocate = |drawn: &[u32]| {
            let mut drawn = drawn.iter().copied();
            table.allocate(&peer, || drawn.next().expect("no more draws than needed"))
        };
        assert_eq!(allocate(&[7]), 7);
        assert_eq!(allocate(&[7, 7, u32::MAX]), u32::MAX);
        assert_eq!(allocate(&[7, u32::MAX, 0]), 0);
        assert!(
            [0, 7, u32::MAX]
                .iter()
                .all(|index| table.peer(*index).is_some())
        );
        table.retire(7, &peer);
        assert!(table.peer(7).is_none());
        assert_eq!(allocate(&[u32::MAX, 7]), 7);
    }

    #[test]
    fn an_index_that_passed_to_another_is_not_retired_by_who_had_it() {
        let table = IndexTable::new();
        let agenda = Agenda::new(Box::new(|| {}));
        let [first, second] = [0, 1].map(handle);
        table.allocate(&first, || 7);
        first.remove(&agenda);
        table.retire_removed();
        table.allocate(&second, || 7);
        // Control looks after the removed peer for the last time.
        table.retire(7, &first);
        let owner = table.peer(7).expect("it is taken");
        assert!(Arc::ptr_eq(&owner, &second));
        table.retire(7, &second);
        assert!(table.peer(7).is_none());
    }

    #[test]
    fn a_session_that_was_heard_from_of_late_ends_with_its_index() {
        let table = IndexTable::new();
        let mut recent = Recent::new();
        let peer = handle(0);
        let session = session(7);
        let watched = Arc::downgrade(&session);
        table.promote(session, &peer);
        for _ in 0..2 {
            let found = recent.lookup(&table, 7).expect("it is there");
            assert_eq!(found.session.local_index(), 7);
        }
        table.retire(7, &peer);
        assert_eq!(watched.strong_count(), 0, "the keys are gone");
        assert!(recent.lookup(&table, 7).is_none());
    }

    #[test]
    fn a_full_set_answers_as_the_table_does_whatever_comes_and_goes() {
        let table = IndexTable::new();
        let mut recent = Recent::new();
        let peer = handle(0);
        // Twice as many as a set has places for, and two for each of these.
        let indices: Vec<u32> = (0..2 * WAYS).map(|n| (n * SETS + 5) as u32).collect();
        let sessions: Vec<_> = indices.iter().map(|&index| session(index)).collect();
        let mut there = [false; 2 * WAYS];
        let mut random = 1_u32;
        let mut held = 0;
        for _ in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (random >> 24) as usize % indices.len();
            match (random >> 16) % 8 {
                0 if there[at] => table.retire(indices[at], &peer),
                0 | 1 if !there[at] => table.promote(Arc::clone(&sessions[at]), &peer),
                _ => {
                    let found = recent.lookup(&table, indices[at]);
                    let found = found.map(|receiver| receiver.session.local_index());
                    assert_eq!(found, there[at].then_some(indices[at]));
                    held += usize::from(found.is_some());
                    continue;
                }
            }
            there[at] = !there[at];
        }
        assert!(held > 5_000, "of 20,000 looks {held} found a session");
    }

    fn handle(id: u32) -> Arc<PeerHandle> {
        let key = PublicKey::from_bytes([1; 32]);
        Arc::new(PeerHandle::new(PeerId(id), key, Peer::new(key, 0)))
    }

    /// A session with this index of ours, of a handshake with somebody.
    fn session(index: u32) -> Arc<Session> {
        let now = Instant::from_nanos(0);
        let from = Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 1)));
        let [caller, called] =
            [1, 2].map(|n| Arc::new(Identity::new(PrivateKey::from_bytes([n; 32]))));
        let shared = |own: &Identity, other: &Identity| {
            own.shared_with(other.public()).expect("an ordinary key")
        };
        let mut peer = Peer::new(*called.public(), 0);
        peer.set_endpoints(vec![from.addr]);
        let ticket = peer.begin_initiation(Tai64n::from_bytes([1; 12]), now);
        let (_, bytes) = ticket
            .expect("the first")
            .create(&caller, &shared(&caller, &called), 1, [1; 32])
            .expect("ordinary keys");
        let Ok(Message::Handshake(Handshake::Initiation(initiation))) = messages::parse(&bytes)
        else {
            panic!("it is no initiation");
        };
        let initiation = open_initiation(&called, initiation)
            .and_then(|pending| pending.authenticate(&shared(&called, &caller)))
            .expect("it is authentic");
        let mut peer = Peer::new(*caller.public(), 0);
        let ticket = peer.initiation_received(&initiation, from, now);
        let (session, response) = ticket
            .expect("the first")
            .respond(initiation, index, [2; 32])
            .expect("ordinary keys");
        (peer.response_created(session, &response, now)).expect("nothing came between")
    }
}
