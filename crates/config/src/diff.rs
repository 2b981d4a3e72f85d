//! The change that leads from what a device is to what it should be.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::apply::Holders;
use crate::{
    AllowedIpChange, DeviceChange, DeviceConfig, DeviceStatus, PeerChange, PeerConfig, PeerStatus,
    PrivateKey, PublicKey,
};

/// The smallest change that makes a device that is as `is` what it `should` be.
///
/// Peers that go come first, then those that stay or come, in the order of their keys. Applying it
/// a second time changes nothing, and the diff of a device that is as it should be is
/// [empty](DeviceChange::is_empty). No difference are
///
/// - an endpoint learnt by roaming, as long as the configured candidates are the same;
/// - any port in use, where the system was to choose one.
///
/// A prefix that several peers claim stays with the one that has it; otherwise the first of them in
/// the order of keys gets it. A peer with the device's own public key is left out.
pub fn diff(is: &DeviceStatus, should: &DeviceConfig) -> DeviceChange {
    let own = should.private_key.as_ref().map(PrivateKey::public);
    let wanted: BTreeMap<PublicKey, &PeerConfig> = should
        .peers
        .iter()
        .filter(|(key, _)| Some(**key) != own)
        .map(|(key, peer)| (*key, peer))
        .collect();
    let given = given_prefixes(is, &wanted);

    let gone = is.peers.keys().filter(|key| !wanted.contains_key(key));
    let removals = gone.map(|key| PeerChange {
        remove: true,
        ..PeerChange::new(*key)
    });
    let nothing = BTreeSet::new();
    let updates = wanted.iter().filter_map(|(key, peer)| {
        let added = given.by_peer.get(key).unwrap_or(&nothing);
        match is.peers.get(key) {
            Some(old) => update(*key, old, peer, added, &given.all),
            None => Some(addition(*key, peer, added)),
        }
    });
    DeviceChange {
        private_key: (is.private_key != should.private_key).then(|| should.private_key.clone()),
        listen_port: (should.listen_port != 0 && is.listen_port != should.listen_port)
            .then_some(should.listen_port),
        fwmark: (is.fwmark != should.fwmark).then_some(should.fwmark),
        replace_peers: false,
        peers: removals.chain(updates).collect(),
    }
}

impl DeviceChange {
    /// Whether the change asks for nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The prefixes that are to be given to somebody who lacks them.
struct Given {
    by_peer: BTreeMap<PublicKey, BTreeSet<IpNet>>,
    all: BTreeSet<IpNet>,
}

fn given_prefixes(is: &DeviceStatus, wanted: &BTreeMap<PublicKey, &PeerConfig>) -> Given {
    let lacking: Vec<(PublicKey, IpNet)> = wanted
        .iter()
        .flat_map(|(key, peer)| {
            let held = is.peers.get(key).map(|peer| &peer.config.allowed_ips);
            let lacking = peer.allowed_ips.iter().copied();
            lacking
                .filter(move |prefix| !held.is_some_and(|held| held.contains(prefix)))
                .map(|prefix| (*key, prefix))
        })
        .collect();
    let holders = Holders::of(
        lacking.iter().map(|(_, prefix)| *prefix),
        is.peers
            .iter()
            .map(|(key, peer)| (key, &peer.config.allowed_ips)),
    );
    let mut given = Given {
        by_peer: BTreeMap::new(),
        all: BTreeSet::new(),
    };
    for (key, prefix) in lacking {
        let kept = holders
            .get(prefix)
            .and_then(|holder| wanted.get(&holder))
            .is_some_and(|holder| holder.allowed_ips.contains(&prefix));
        if !kept && given.all.insert(prefix) {
            given.by_peer.entry(key).or_default().insert(prefix);
        }
    }
    given
}

fn addition(key: PublicKey, peer: &PeerConfig, added: &BTreeSet<IpNet>) -> PeerChange {
    PeerChange {
        preshared_key: peer.preshared_key.clone().map(Some),
        endpoints: (!peer.endpoints.is_empty()).then(|| peer.endpoints.clone()),
        persistent_keepalive: (peer.persistent_keepalive != 0).then_some(peer.persistent_keepalive),
        allowed_ips: added.iter().copied().map(AllowedIpChange::Add).collect(),
        ..PeerChange::new(key)
    }
}

fn update(
    key: PublicKey,
    old: &PeerStatus,
    new: &PeerConfig,
    added: &BTreeSet<IpNet>,
    given: &BTreeSet<IpNet>,
) -> Option<PeerChange> {
    let old = &old.config;
    // A prefix that another peer is given leaves this one by that alone.
    let removed = old.allowed_ips.difference(&new.allowed_ips);
    let removed = removed.filter(|prefix| !given.contains(prefix));
    let change = PeerChange {
        update_only: true,
        preshared_key: (old.preshared_key != new.preshared_key).then(|| new.preshared_key.clone()),
        endpoints: (old.endpoints != new.endpoints).then(|| new.endpoints.clone()),
        persistent_keepalive: (old.persistent_keepalive != new.persistent_keepalive)
            .then_some(new.persistent_keepalive),
        allowed_ips: removed
            .copied()
            .map(AllowedIpChange::Remove)
            .chain(added.iter().copied().map(AllowedIpChange::Add))
            .collect(),
        ..PeerChange::new(key)
    };
    let asks_nothing = PeerChange {
        update_only: true,
        ..PeerChange::new(key)
    };
    (change != asks_nothing).then_some(change)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::PresharedKey;

    proptest! {
        #[test]
        fn applying_the_diff_makes_the_device_what_it_should_be(
            is in device(), should in device(),
        ) {
            let change = diff(&DeviceStatus::idle(&is), &should);
            let mut after = is;
            after.apply(&change);
            prop_assert_eq!(&after, &should);
            after.apply(&change);
            prop_assert_eq!(&after, &should, "applied twice");
            prop_assert!(diff(&DeviceStatus::idle(&after), &should).is_empty());
        }

        #[test]
        fn claims_that_collide_settle_at_once(is in device(), should in colliding_device()) {
            let mut after = is;
            after.apply(&diff(&DeviceStatus::idle(&after), &should));
            let again = diff(&DeviceStatus::idle(&after), &should);
            prop_assert!(again.is_empty(), "{:?}", again);
        }

        #[test]
        fn no_prefix_is_named_twice(is in device(), should in device()) {
            let change = diff(&DeviceStatus::idle(&is), &should);
            let mut named = BTreeSet::new();
            for peer in &change.peers {
                for AllowedIpChange::Add(prefix) | AllowedIpChange::Remove(prefix) in &peer.allowed_ips {
                    prop_assert!(named.insert(*prefix), "{} is named twice", prefix);
                }
            }
        }
    }

    #[test]
    fn an_endpoint_learnt_by_roaming_is_not_a_difference() {
        let mut should = DeviceConfig::default();
        let candidate = "192.0.2.1:51820".parse().expect("an address");
        should.peers.insert(
            key(1),
            PeerConfig {
                endpoints: vec![candidate],
                ..PeerConfig::default()
            },
        );
        let mut is = DeviceStatus::idle(&should);
        let peer = is.peers.get_mut(&key(1)).expect("a peer");
        peer.endpoint = Some("198.51.100.7:4000".parse().expect("an address"));
        peer.rx_bytes = 1000;
        assert!(diff(&is, &should).is_empty());
    }

    #[test]
    fn a_port_that_the_system_chose_is_not_a_difference() {
        let should = DeviceConfig::default();
        let is = DeviceStatus {
            listen_port: 40_000,
            ..DeviceStatus::default()
        };
        assert!(diff(&is, &should).is_empty());
    }

    #[test]
    fn one_changed_peer_among_many_is_the_whole_change() {
        let mut should = DeviceConfig::default();
        for n in 1..100 {
            should.peers.insert(key(n), PeerConfig::default());
        }
        let is = DeviceStatus::idle(&should);
        let changed = should.peers.get_mut(&key(50)).expect("a peer");
        changed.persistent_keepalive = 25;
        let change = diff(&is, &should);
        assert_eq!(
            change.peers,
            [PeerChange {
                update_only: true,
                persistent_keepalive: Some(25),
                ..PeerChange::new(key(50))
            }]
        );
    }

    #[test]
    fn a_prefix_moves_by_being_given_alone() {
        let prefix: IpNet = "10.0.0.0/24".parse().expect("a prefix");
        let mut is = DeviceConfig::default();
        let holder = is.peers.entry(key(1)).or_default();
        holder.allowed_ips.insert(prefix);
        is.peers.insert(key(2), PeerConfig::default());
        let mut should = is.clone();
        should.peers.insert(key(1), PeerConfig::default());
        let heir = should.peers.entry(key(2)).or_default();
        heir.allowed_ips.insert(prefix);

        let change = diff(&DeviceStatus::idle(&is), &should);
        assert_eq!(change.peers.len(), 1);
        assert_eq!(change.peers[0].public_key, key(2));
        assert_eq!(change.peers[0].allowed_ips, [AllowedIpChange::Add(prefix)]);
    }

    #[test]
    fn two_who_claim_one_prefix_do_not_take_it_from_each_other() {
        let prefix: IpNet = "10.0.0.0/24".parse().expect("a prefix");
        let mut is = DeviceConfig::default();
        let holder = is.peers.entry(key(2)).or_default();
        holder.allowed_ips.insert(prefix);
        let mut should = is.clone();
        let claimant = should.peers.entry(key(1)).or_default();
        claimant.allowed_ips.insert(prefix);

        let change = diff(&DeviceStatus::idle(&is), &should);
        assert_eq!(change.peers, [PeerChange::new(key(1))]);
    }

    #[test]
    fn the_own_key_among_the_peers_is_left_out() {
        let private = PrivateKey::from_bytes([9; 32]);
        let mut should = DeviceConfig::default();
        should.peers.insert(private.public(), PeerConfig::default());
        should.private_key = Some(private);
        let change = diff(&DeviceStatus::default(), &should);
        assert!(change.peers.is_empty());
        assert!(change.private_key.is_some());
    }

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    /// A device of up to six peers, whose prefixes are each claimed once.
    fn device() -> impl Strategy<Value = DeviceConfig> {
        colliding_device().prop_map(|mut device| {
            let mut claimed = BTreeSet::new();
            for peer in device.peers.values_mut() {
                peer.allowed_ips.retain(|prefix| claimed.insert(*prefix));
            }
            device
        })
    }

    fn colliding_device() -> impl Strategy<Value = DeviceConfig> {
        (
            prop::option::of(1..4u8),
            1..4u16,
            0..3u32,
            prop::collection::btree_map((0..6u8).prop_map(key), peer(), 0..6),
        )
            .prop_map(|(private_key, listen_port, fwmark, peers)| DeviceConfig {
                private_key: private_key.map(|n| PrivateKey::from_bytes([n; 32])),
                listen_port,
                fwmark,
                peers,
            })
    }

    fn peer() -> impl Strategy<Value = PeerConfig> {
        (
            prop::option::of(1..3u8),
            prop::collection::vec((1..4u8, 1..3u16), 0..3),
            0..3u16,
            prop::collection::btree_set((0..8u8, 24..26u8), 0..5),
        )
            .prop_map(
                |(psk, endpoints, persistent_keepalive, prefixes)| PeerConfig {
                    preshared_key: psk.and_then(|n| PresharedKey::from_bytes([n; 32])),
                    endpoints: endpoints
                        .into_iter()
                        .map(|(host, port)| ([192, 0, 2, host], port).into())
                        .collect(),
                    persistent_keepalive,
                    allowed_ips: prefixes
                        .into_iter()
                        .map(|(net, len)| {
                            let net = IpNet::new([10, 0, net, 0].into(), len);
                            net.expect("a valid length").trunc()
                        })
                        .collect(),
                },
            )
    }
}
