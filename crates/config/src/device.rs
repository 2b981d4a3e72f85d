//! One WireGuard device: what it should be, what it is, and the change from one to the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::{PresharedKey, PrivateKey, PublicKey};

/// What a device should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceConfig {
    /// Who this device is. Without a key it neither sends nor answers.
    pub private_key: Option<PrivateKey>,
    /// The UDP port, the same for both families; 0 lets the system choose.
    pub listen_port: u16,
    /// Mark of every packet that the device sends (`SO_MARK`); 0 is none.
    pub fwmark: u32,
    /// The peers, by public key.
    pub peers: BTreeMap<PublicKey, PeerConfig>,
}

/// What a peer should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerConfig {
    /// Mixed into every handshake with this peer.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer may be reached, in the order in which to try. Empty for one that calls us.
    pub endpoints: Vec<SocketAddr>,
    /// Interval of the persistent keepalive in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Sources accepted from the peer and destinations sent to it.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// One transaction on a device: applied whole or not at all.
///
/// This is the UAPI's `set` operation as data. A field that is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceChange {
    /// The new private key, or `Some(None)` to remove it.
    pub private_key: Option<Option<PrivateKey>>,
    /// The new UDP port.
    pub listen_port: Option<u16>,
    /// The new mark.
    pub fwmark: Option<u32>,
    /// Let the changes of `peers` start from no peers at all, so that those are left that it adds.
    pub replace_peers: bool,
    /// Changes of peers, in order; the same peer may occur more than once.
    pub peers: Vec<PeerChange>,
}

/// A change of one peer within a [`DeviceChange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// Which peer.
    pub public_key: PublicKey,
    /// Remove the peer; nothing else of this change counts then.
    pub remove: bool,
    /// Do nothing when there is no such peer, instead of adding it.
    pub update_only: bool,
    /// The new preshared key, or `Some(None)` to remove it. Takes effect at the next handshake.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// The new endpoint candidates, in the order in which to try.
    pub endpoints: Option<Vec<SocketAddr>>,
    /// The new interval of the persistent keepalive in seconds; 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// Let the changes of `allowed_ips` start from none.
    pub replace_allowed_ips: bool,
    /// Changes of allowed IPs, in order.
    pub allowed_ips: Vec<AllowedIpChange>,
}

/// A change of one allowed IP of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AllowedIpChange {
    /// The prefix is this peer's from now on, whoever had it before.
    Add(IpNet),
    /// The prefix is no longer this peer's. Nothing happens if it was another's.
    Remove(IpNet),
}

/// What a device is, as the UAPI's `get` operation shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceStatus {
    /// Who this device is.
    pub private_key: Option<PrivateKey>,
    /// The UDP port in use; 0 while the device is down and none was set.
    pub listen_port: u16,
    /// Mark of every packet that the device sends.
    pub fwmark: u32,
    /// The peers, by public key.
    pub peers: BTreeMap<PublicKey, PeerStatus>,
}

/// What a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerStatus {
    /// What was asked for.
    pub config: PeerConfig,
    /// Where the next packet goes: a configured candidate, or where the peer was last heard from.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed.
    pub last_handshake: Option<WallTime>,
    /// When the first of the initiations was sent that no handshake has followed yet.
    pub unanswered_since: Option<WallTime>,
    /// Bytes received: the payload of authenticated datagrams with the protocol's overhead.
    pub rx_bytes: u64,
    /// Bytes sent, counted alike.
    pub tx_bytes: u64,
    /// Authenticated datagrams received.
    pub rx_packets: u64,
    /// Datagrams sent.
    pub tx_packets: u64,
}

/// Wall time, as the duration since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(pub Duration);

impl PeerChange {
    /// A change of `public_key` that changes nothing yet, and adds the peer if it is new.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoints: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}
