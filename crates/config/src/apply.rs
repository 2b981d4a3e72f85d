//! What a [`DeviceChange`] does to a [`DeviceConfig`]: the model that every device follows.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

use crate::{
    AllowedIpChange, DeviceChange, DeviceConfig, DeviceStatus, PeerChange, PeerConfig, PeerStatus,
    PrivateKey, PublicKey,
};

impl DeviceConfig {
    /// Carries out `change` in the order of its lines, as `wg(8)` and the kernel understand them.
    ///
    /// - A prefix belongs to one peer: adding it takes it from the peer that had it.
    /// - A device is no peer of its own: one with the device's public key is removed with the key's
    ///   arrival, and changes of such a peer are ignored.
    /// - With `replace_peers` the changes of peers start from an empty table. That is about what a
    ///   peer should be, and says nothing of its session, which survives.
    ///
    /// Nothing here can fail: whatever a change can express, a device can be told to be.
    pub fn apply(&mut self, change: &DeviceChange) {
        if let Some(private_key) = &change.private_key {
            self.private_key.clone_from(private_key);
        }
        if let Some(listen_port) = change.listen_port {
            self.listen_port = listen_port;
        }
        if let Some(fwmark) = change.fwmark {
            self.fwmark = fwmark;
        }
        if change.replace_peers {
            self.peers.clear();
        }
        // A curve operation, which a change of addresses alone does without.
        let own = (change.private_key.is_some() || !change.peers.is_empty())
            .then(|| self.private_key.as_ref().map(PrivateKey::public))
            .flatten();
        if let Some(own) = own {
            self.peers.remove(&own);
        }
        let mut holders = Holders::of(
            change.peers.iter().flat_map(PeerChange::added),
            self.peers
                .iter()
                .map(|(key, peer)| (key, &peer.allowed_ips)),
        );
        for peer in &change.peers {
            if Some(peer.public_key) != own {
                self.apply_to_peer(peer, &mut holders);
            }
        }
    }

    fn apply_to_peer(&mut self, change: &PeerChange, holders: &mut Holders) {
        let key = change.public_key;
        if change.remove {
            self.peers.remove(&key);
            return;
        }
        if change.update_only && !self.peers.contains_key(&key) {
            return;
        }
        for prefix in change.added() {
            if let Some(former) = holders.give(prefix, key)
                && let Some(former) = self.peers.get_mut(&former)
            {
                former.allowed_ips.remove(&prefix);
            }
        }
        let peer = self.peers.entry(key).or_default();
        if let Some(preshared_key) = &change.preshared_key {
            peer.preshared_key.clone_from(preshared_key);
        }
        if let Some(endpoints) = &change.endpoints {
            peer.endpoints.clone_from(endpoints);
        }
        if let Some(interval) = change.persistent_keepalive {
            peer.persistent_keepalive = interval;
        }
        if change.replace_allowed_ips {
            peer.allowed_ips.clear();
        }
        for step in &change.allowed_ips {
            match step {
                AllowedIpChange::Add(prefix) => peer.allowed_ips.insert(*prefix),
                AllowedIpChange::Remove(prefix) => peer.allowed_ips.remove(prefix),
            };
        }
    }
}

impl DeviceStatus {
    /// The status of a device that is as `config` asks and has seen no traffic.
    pub fn idle(config: &DeviceConfig) -> Self {
        Self {
            private_key: config.private_key.clone(),
            listen_port: config.listen_port,
            fwmark: config.fwmark,
            peers: config
                .peers
                .iter()
                .map(|(key, peer)| (*key, PeerStatus::idle(peer)))
                .collect(),
        }
    }

    /// What was asked for, without what was learnt from traffic.
    pub fn config(&self) -> DeviceConfig {
        DeviceConfig {
            private_key: self.private_key.clone(),
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            peers: self
                .peers
                .iter()
                .map(|(key, peer)| (*key, peer.config.clone()))
                .collect(),
        }
    }
}

impl PeerStatus {
    fn idle(config: &PeerConfig) -> Self {
        Self {
            config: config.clone(),
            endpoint: config.endpoints.first().copied(),
            ..Self::default()
        }
    }
}

impl PeerChange {
    /// Every prefix that the change adds to the peer, also one that it removes again.
    pub(crate) fn added(&self) -> impl Iterator<Item = IpNet> {
        let counts = !self.remove;
        self.allowed_ips.iter().filter_map(move |step| match step {
            AllowedIpChange::Add(prefix) if counts => Some(*prefix),
            AllowedIpChange::Add(_) | AllowedIpChange::Remove(_) => None,
        })
    }
}

/// Which peer holds a prefix, for the prefixes that somebody asks for.
///
/// A table of all prefixes would cost a large device a long walk for each small change.
pub(crate) struct Holders(HashMap<IpNet, PublicKey>);

impl Holders {
    /// Looks up the holders of `wanted` among `peers`.
    pub(crate) fn of<'a>(
        wanted: impl Iterator<Item = IpNet>,
        peers: impl Iterator<Item = (&'a PublicKey, &'a BTreeSet<IpNet>)>,
    ) -> Self {
        let wanted: BTreeSet<IpNet> = wanted.collect();
        let mut holders = HashMap::new();
        for (key, held) in peers {
            let (few, many) = if wanted.len() < held.len() {
                (&wanted, held)
            } else {
                (held, &wanted)
            };
            let both = few.iter().filter(|prefix| many.contains(prefix));
            holders.extend(both.map(|prefix| (*prefix, *key)));
        }
        Self(holders)
    }

    /// Who holds `prefix`.
    pub(crate) fn get(&self, prefix: IpNet) -> Option<PublicKey> {
        self.0.get(&prefix).copied()
    }

    /// Notes that `prefix` is `key`'s now, and returns the other peer that may have had it.
    fn give(&mut self, prefix: IpNet, key: PublicKey) -> Option<PublicKey> {
        self.0.insert(prefix, key).filter(|former| *former != key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_moves_to_the_peer_that_was_given_it_last() {
        let mut device = DeviceConfig::default();
        device.apply(&peers([gives(1, "10.0.0.0/24"), gives(2, "10.0.0.0/24")]));
        assert_eq!(prefixes(&device, 1), "");
        assert_eq!(prefixes(&device, 2), "10.0.0.0/24");
        device.apply(&peers([gives(1, "10.0.0.0/24")]));
        assert_eq!(prefixes(&device, 1), "10.0.0.0/24");
        assert_eq!(prefixes(&device, 2), "");
    }

    #[test]
    fn a_prefix_is_removed_only_from_the_peer_that_has_it() {
        let mut device = DeviceConfig::default();
        device.apply(&peers([gives(1, "10.0.0.0/24"), gives(2, "10.0.1.0/24")]));
        device.apply(&peers([takes(2, "10.0.0.0/24")]));
        assert_eq!(prefixes(&device, 1), "10.0.0.0/24");
        device.apply(&peers([takes(1, "10.0.0.0/24")]));
        assert_eq!(prefixes(&device, 1), "");
    }

    #[test]
    fn removing_a_peer_in_the_same_breath_takes_no_prefix_from_another() {
        let mut device = DeviceConfig::default();
        device.apply(&peers([gives(1, "10.0.0.0/24")]));
        let mut removed = gives(2, "10.0.0.0/24");
        removed.remove = true;
        device.apply(&peers([removed]));
        assert_eq!(prefixes(&device, 1), "10.0.0.0/24");
    }

    #[test]
    fn an_update_of_an_unknown_peer_adds_nothing_and_takes_nothing() {
        let mut device = DeviceConfig::default();
        device.apply(&peers([gives(1, "10.0.0.0/24")]));
        let mut update = gives(2, "10.0.0.0/24");
        update.update_only = true;
        device.apply(&peers([update]));
        assert!(!device.peers.contains_key(&key(2)));
        assert_eq!(prefixes(&device, 1), "10.0.0.0/24");
    }

    #[test]
    fn replacing_peers_starts_each_of_them_afresh() {
        let mut device = DeviceConfig::default();
        let mut first = gives(1, "10.0.0.0/24");
        first.persistent_keepalive = Some(25);
        device.apply(&peers([first, gives(2, "10.0.1.0/24")]));

        let mut update = gives(2, "10.0.2.0/24");
        update.update_only = true;
        let mut change = peers([gives(1, "10.0.3.0/24"), update]);
        change.replace_peers = true;
        device.apply(&change);

        assert_eq!(prefixes(&device, 1), "10.0.3.0/24");
        assert_eq!(device.peers[&key(1)].persistent_keepalive, 0);
        assert!(
            !device.peers.contains_key(&key(2)),
            "there was none to update"
        );
    }

    #[test]
    fn a_device_is_no_peer_of_its_own() {
        let private = PrivateKey::from_bytes([9; 32]);
        let own = private.public();
        let mut device = DeviceConfig::default();
        device.apply(&peers([PeerChange::new(own), PeerChange::new(key(1))]));
        assert!(device.peers.contains_key(&own), "no key, so nobody's own");

        let mut change = peers([PeerChange::new(own)]);
        change.private_key = Some(Some(private));
        device.apply(&change);
        assert_eq!(device.peers.keys().collect::<Vec<_>>(), [&key(1)]);

        device.apply(&peers([PeerChange::new(own)]));
        assert!(!device.peers.contains_key(&own));
    }

    #[test]
    fn a_peer_whose_key_is_zero_is_a_peer() {
        let mut device = DeviceConfig::default();
        device.apply(&peers([gives(0, "10.0.0.0/24")]));
        assert_eq!(prefixes(&device, 0), "10.0.0.0/24");
    }

    #[test]
    fn ten_thousand_peers_are_no_quadratic_work() {
        // With quadratic work this test would take minutes instead of a blink.
        let change = peers((0..10_000u32).map(|i| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&i.to_be_bytes());
            let mut peer = PeerChange::new(PublicKey::from_bytes(bytes));
            let net = IpNet::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + i).into(), 32);
            peer.allowed_ips = vec![AllowedIpChange::Add(net.expect("32 is in range"))];
            peer
        }));
        let mut device = DeviceConfig::default();
        device.apply(&change);
        device.apply(&change);
        assert_eq!(device.peers.len(), 10_000);
        assert!(crate::diff(&DeviceStatus::idle(&device), &device).is_empty());
    }

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn peers(peers: impl IntoIterator<Item = PeerChange>) -> DeviceChange {
        DeviceChange {
            peers: peers.into_iter().collect(),
            ..DeviceChange::default()
        }
    }

    fn gives(n: u8, prefix: &str) -> PeerChange {
        with(n, AllowedIpChange::Add(prefix.parse().expect("a prefix")))
    }

    fn takes(n: u8, prefix: &str) -> PeerChange {
        with(
            n,
            AllowedIpChange::Remove(prefix.parse().expect("a prefix")),
        )
    }

    fn with(n: u8, step: AllowedIpChange) -> PeerChange {
        let mut peer = PeerChange::new(key(n));
        peer.allowed_ips.push(step);
        peer
    }

    fn prefixes(device: &DeviceConfig, n: u8) -> String {
        let all = device.peers[&key(n)].allowed_ips.iter();
        all.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}
