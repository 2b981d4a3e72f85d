//! Changes of a running router: each whole, or not at all.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use ipnet::IpNet;
use warren_config::{
    AllowedIpChange, DeviceChange, DeviceStatus, PeerChange, PeerConfig, PeerStatus, PublicKey,
    WallTime,
};
use warren_wireguard::time::Instant;
use warren_wireguard::{AllowedIps, Identity, Peer};

use super::Router;
use crate::peer::{PeerHandle, PeerId};
use crate::tables::Tables;

impl Router {
    /// Applies everything of a change that concerns keys and peers. It cannot fail, and no packet
    /// sees half of it: prefixes and peers change for the workers in one step.
    ///
    /// A peer that stays keeps its session, also when the change replaces all peers.
    pub fn apply(&self, change: &DeviceChange, now: Instant) {
        if change.private_key.is_none() && !change.replace_peers && change.peers.is_empty() {
            return;
        }
        let _one_at_a_time = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Next {
            tables: Tables::clone(&self.tables.load()),
            removed: Vec::new(),
        };
        let identity_changed = next.set_identity(change);
        let mut by_key = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        let mut vacancy = 0;

        // Peers that are there no longer, unless the change adds them: then their sessions stay.
        let mut replaced = BTreeSet::new();
        if change.replace_peers {
            replaced.extend(by_key.keys().copied());
            next.tables.allowed_ips = AllowedIps::new();
        }
        let mut emptied = next.empty(change, &by_key);
        for peer in &change.peers {
            if peer.remove || next.is_own_key(&peer.public_key) {
                next.remove(by_key.remove(&peer.public_key));
                continue;
            }
            if peer.update_only && replaced.contains(&peer.public_key) {
                continue;
            }
            // What replaces a peer says everything of it; what it does not say is unset.
            let replace = replaced.remove(&peer.public_key);
            let handle = match by_key.get(&peer.public_key) {
                Some(handle) => {
                    if peer.replace_allowed_ips && !emptied.remove(&handle.id()) {
                        next.tables.allowed_ips.remove_all(handle.id());
                    }
                    Arc::clone(handle)
                }
                None if peer.update_only => continue,
                None => {
                    let mut seed = [0; 8];
                    self.fill_random(&mut seed);
                    let mut state = Peer::new(peer.public_key, u64::from_ne_bytes(seed));
                    if !self.running.load(Ordering::Relaxed) {
                        state.stop();
                    }
                    let handle = next.add(peer.public_key, state, &mut vacancy);
                    by_key.insert(peer.public_key, Arc::clone(&handle));
                    handle
                }
            };
            next.set_allowed_ips(handle.id(), &peer.allowed_ips);
            self.set_peer(&handle, peer, replace, now);
        }
        for key in &replaced {
            next.remove(by_key.remove(key));
        }
        if identity_changed && let Some(own) = next.own_key() {
            next.remove(by_key.remove(&own));
        }
        drop(by_key);

        self.bury(&mut next);
        next.tables.allowed_ips.come_to_rest();
        let tables = Arc::new(next.tables);
        self.tables.store(Arc::clone(&tables));
        if identity_changed {
            // After the swap, so that no handshake of the old identity is completed behind it; in
            // the order of the table, since it decides the order of what is sent.
            for handle in tables.peers.iter().flatten() {
                handle.lock(&self.agenda).expire_sessions();
            }
        }
        self.agenda.wake();
    }

    /// What comes out of the tunnel may reach these prefixes only; `None` for any.
    pub fn set_local(&self, prefixes: Option<&[IpNet]>) {
        let _one_at_a_time = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tables = Tables::clone(&self.tables.load());
        tables.local = prefixes.map(|prefixes| {
            let mut local = AllowedIps::new();
            for prefix in prefixes {
                local.insert(*prefix, ());
            }
            Arc::new(local)
        });
        self.tables.store(Arc::new(tables));
    }

    /// What the device is. `listen_port` and `fwmark` are the sockets' and stay zero here.
    pub fn status(&self, now: Instant, wall: WallTime) -> DeviceStatus {
        let tables = self.tables.load_full();
        let mut status = DeviceStatus {
            private_key: tables
                .identities
                .first()
                .map(|identity| identity.private().clone()),
            ..DeviceStatus::default()
        };
        let mut prefixes: Vec<_> = (tables.allowed_ips.iter())
            .map(|(prefix, id)| (id, prefix))
            .collect();
        // Stable: each peer's stay in their order.
        prefixes.sort_by_key(|&(id, _)| id);
        // Peers are read as they lie in memory, and put into their order by what is small.
        let mut peers = Vec::with_capacity(tables.peers.len());
        let mut order = Vec::with_capacity(tables.peers.len());
        for handle in tables.peers.iter().flatten() {
            let mut peer = self.status_of(handle, now, wall);
            let first = prefixes.partition_point(|&(id, _)| id < handle.id());
            let own = (prefixes[first..].iter()).take_while(|&&(id, _)| id == handle.id());
            peer.config.allowed_ips = own.map(|&(_, prefix)| prefix).collect();
            order.push((*handle.public_key(), peers.len()));
            peers.push(Some(peer));
        }
        order.sort_unstable();
        status.peers = (order.into_iter())
            .map(|(key, at)| (key, peers[at].take().expect("each peer has one place")))
            .collect();
        status
    }

    /// What a peer is, but for its allowed IPs, for which the whole table would be walked.
    pub fn peer_status(&self, key: &PublicKey, now: Instant, wall: WallTime) -> Option<PeerStatus> {
        let by_key = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let handle = by_key.get(key).cloned();
        drop(by_key);
        handle.map(|handle| self.status_of(&handle, now, wall))
    }

    fn status_of(&self, handle: &Arc<PeerHandle>, now: Instant, wall: WallTime) -> PeerStatus {
        let peer = handle.lock(&self.agenda);
        let at_wall = |at| {
            let ago = now.saturating_duration_since(at);
            WallTime(wall.0.saturating_sub(ago))
        };
        PeerStatus {
            config: PeerConfig {
                preshared_key: peer.preshared_key().cloned(),
                endpoints: peer.endpoints().to_vec(),
                persistent_keepalive: peer.persistent_keepalive(),
                allowed_ips: BTreeSet::new(),
            },
            endpoint: peer.endpoint().map(|endpoint| endpoint.addr),
            last_handshake: peer.last_handshake().map(at_wall),
            unanswered_since: peer.unanswered_since().map(at_wall),
            rx_bytes: handle.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: handle.tx_bytes.load(Ordering::Relaxed),
            rx_packets: handle.rx_packets.load(Ordering::Relaxed),
            tx_packets: handle.tx_packets.load(Ordering::Relaxed),
        }
    }

    /// Asks for new keys with these peers now. Those that are no peers are passed over.
    pub fn rekey<'a>(&self, peers: impl IntoIterator<Item = &'a PublicKey>, now: Instant) {
        let by_key = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        for handle in peers.into_iter().filter_map(|key| by_key.get(key)) {
            handle.lock(&self.agenda).rekey(now);
        }
        drop(by_key);
        self.agenda.wake();
    }

    /// The interface went down: no session outlives it, and nothing is sent.
    pub fn stop(&self) {
        let _no_change_meanwhile = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.running.store(false, Ordering::Relaxed);
        for handle in self.tables.load().peers.iter().flatten() {
            handle.lock(&self.agenda).stop();
        }
    }

    /// The interface came up: what keeps alive by itself begins to.
    pub fn start(&self) {
        let _no_change_meanwhile = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.running.store(true, Ordering::Relaxed);
        for handle in self.tables.load().peers.iter().flatten() {
            handle.lock(&self.agenda).start();
        }
    }

    fn set_peer(&self, handle: &Arc<PeerHandle>, change: &PeerChange, replace: bool, now: Instant) {
        let mut peer = handle.lock(&self.agenda);
        if replace || change.preshared_key.is_some() {
            peer.set_preshared_key(change.preshared_key.clone().flatten());
        }
        if replace || change.endpoints.is_some() {
            peer.set_endpoints(change.endpoints.clone().unwrap_or_default());
            match peer.endpoint() {
                Some(endpoint) => self.known.learn(handle.id(), endpoint.addr),
                None => self.known.forget(handle.id()),
            }
        }
        if replace || change.persistent_keepalive.is_some() {
            peer.set_persistent_keepalive(change.persistent_keepalive.unwrap_or(0), now);
        }
    }

    /// Ends the removed peers' sessions. Done before the tables without them are swapped in, so
    /// that whoever takes over a place in the tables never meets a session of its predecessor.
    fn bury(&self, next: &mut Next) {
        if next.removed.is_empty() {
            return;
        }
        let ids: HashSet<PeerId> = next.removed.iter().map(|handle| handle.id()).collect();
        next.tables.allowed_ips.retain(|_, id| !ids.contains(&id));
        for handle in &next.removed {
            handle.remove(&self.agenda);
            self.known.forget(handle.id());
            next.tables.peers[handle.id().0 as usize] = None;
        }
        self.indices.retire_removed();
    }
}

/// The tables that a change is building.
struct Next {
    tables: Tables,
    removed: Vec<Arc<PeerHandle>>,
}

impl Next {
    /// Answers whether the device is somebody else from now on.
    fn set_identity(&mut self, change: &DeviceChange) -> bool {
        let Some(private_key) = &change.private_key else {
            return false;
        };
        let current = self
            .tables
            .identities
            .first()
            .map(|identity| identity.private());
        if current == private_key.as_ref() {
            return false;
        }
        self.tables.identities = private_key
            .iter()
            .map(|key| Arc::new(Identity::new(key.clone())))
            .collect();
        true
    }

    fn own_key(&self) -> Option<PublicKey> {
        self.tables
            .identities
            .first()
            .map(|identity| *identity.public())
    }

    /// A device is no peer of itself, as in the kernel's driver.
    fn is_own_key(&self, key: &PublicKey) -> bool {
        self.own_key().as_ref() == Some(key)
    }

    /// Gives a new peer the first free place at or behind `vacancy`.
    fn add(&mut self, key: PublicKey, state: Peer, vacancy: &mut usize) -> Arc<PeerHandle> {
        let peers = &mut self.tables.peers;
        while peers.get(*vacancy).is_some_and(Option::is_some) {
            *vacancy += 1;
        }
        let id = PeerId(u32::try_from(*vacancy).expect("fewer than 2^32 peers"));
        let handle = Arc::new(PeerHandle::new(id, key, state));
        match peers.get_mut(*vacancy) {
            Some(place) => *place = Some(Arc::clone(&handle)),
            None => peers.push(Some(Arc::clone(&handle))),
        }
        handle
    }

    /// Removes a peer. Its place stays taken until the change is complete, so that its prefixes
    /// and sessions are not mistaken for a successor's.
    fn remove(&mut self, handle: Option<Arc<PeerHandle>>) {
        self.removed.extend(handle);
    }

    /// Empties the peers whose prefixes the change replaces, in one walk over the table: a walk for
    /// each would make a change of all peers quadratic. Answers them; one that occurs a second time
    /// is to be emptied again.
    fn empty(
        &mut self,
        change: &DeviceChange,
        by_key: &HashMap<PublicKey, Arc<PeerHandle>>,
    ) -> HashSet<PeerId> {
        let mut named = HashSet::new();
        let emptied: HashSet<_> = (change.peers.iter())
            .filter(|peer| named.insert(peer.public_key))
            .filter(|peer| !peer.remove && peer.replace_allowed_ips)
            .filter_map(|peer| by_key.get(&peer.public_key).map(|handle| handle.id()))
            .collect();
        if !emptied.is_empty() {
            self.tables
                .allowed_ips
                .retain(|_, id| !emptied.contains(&id));
        }
        emptied
    }

    fn set_allowed_ips(&mut self, id: PeerId, changes: &[AllowedIpChange]) {
        for change in changes {
            match *change {
                AllowedIpChange::Add(prefix) => {
                    self.tables.allowed_ips.insert(prefix, id);
                }
                AllowedIpChange::Remove(prefix) => {
                    self.tables.allowed_ips.remove(&prefix, id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::router::Entropy;

    #[test]
    fn nobody_is_known_to_be_at_an_endpoint_that_was_taken_away() {
        let router = Router::new(1420, Box::new(|| {}), Box::new(Zeros));
        let key = PublicKey::from_bytes([1; 32]);
        let endpoint: SocketAddr = "192.0.2.1:1".parse().expect("an address");
        for endpoints in [vec![endpoint], Vec::new()] {
            let there = !endpoints.is_empty();
            let peer = PeerChange {
                endpoints: Some(endpoints),
                ..PeerChange::new(key)
            };
            let change = DeviceChange {
                peers: vec![peer],
                ..DeviceChange::default()
            };
            router.apply(&change, Instant::from_nanos(0));
            assert_eq!(router.known.contains(&endpoint), there);
        }
    }

    #[test]
    fn status_has_each_peer_under_its_key_with_its_prefixes() {
        let router = Router::new(1420, Box::new(|| {}), Box::new(Zeros));
        let now = Instant::from_nanos(0);
        let prefixes = |n: u8| -> BTreeSet<IpNet> {
            let texts = [
                format!("2001:db8:{n}::/48"),
                format!("10.{n}.128.0/17"),
                format!("10.{n}.0.0/16"),
                format!("2001:db8:{n}::/64"),
                format!("10.{n}.0.0/24"),
            ];
            (texts.iter().map(|text| text.parse().expect("a prefix"))).collect()
        };
        let apply = |peers: Vec<PeerChange>| {
            let change = DeviceChange {
                peers,
                ..DeviceChange::default()
            };
            router.apply(&change, now);
        };
        // One at a time, so that the order of ids is another than that of keys.
        for n in [9, 2, 7, 1, 8] {
            apply(vec![PeerChange {
                persistent_keepalive: Some(n.into()),
                allowed_ips: prefixes(n).into_iter().map(AllowedIpChange::Add).collect(),
                ..PeerChange::new(PublicKey::from_bytes([n; 32]))
            }]);
        }
        apply(vec![PeerChange {
            remove: true,
            ..PeerChange::new(PublicKey::from_bytes([7; 32]))
        }]);
        let tables = router.tables.load();
        assert!(tables.peers[2].is_none(), "the place is vacant");
        let status = router.status(now, WallTime::default());
        let told = status.peers.into_iter().map(|(key, peer)| {
            let config = peer.config;
            (
                key.as_bytes()[0],
                config.persistent_keepalive,
                config.allowed_ips,
            )
        });
        let expected = [1, 2, 8, 9].map(|n| (n, n.into(), prefixes(n)));
        assert_eq!(told.collect::<Vec<_>>(), expected);
    }

    struct Zeros;

    impl Entropy for Zeros {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill(0);
        }
    }
}
