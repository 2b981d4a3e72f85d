//! Everything of a tunnel but threads and descriptors.
//!
//! A [`Router`] joins the protocol's state machines to batches of packets. The workers of
//! [`crate::Engine`] and a simulation on one thread run this very code:
//!
//! - [`Router::outbound`] for what a TUN queue delivered (`outbound.rs` has the packet's path),
//! - [`Router::inbound`] for what a UDP socket delivered (`inbound.rs`),
//! - [`Router::tick`] for timers and handshakes (`control.rs`), from one thread,
//! - [`Router::apply`] for changes (`apply.rs`), from any thread, one after the other.
//!
//! What leaves goes through [`Edges`]. Time is an argument; randomness comes
//! from an [`Entropy`].

mod apply;
mod control;
mod handshake;
mod inbound;
mod outbound;
mod seal;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use warren_config::PublicKey;
use warren_packet::batch::{SendBatch, Source};
use warren_packet::vnet;
use warren_wireguard::{AllowedIps, Endpoint};

pub use control::{Control, Timestamps};
pub use inbound::Inbound;
pub use outbound::Outbound;

use crate::drops::{Drops, Reason};
use crate::index::IndexTable;
use crate::known::KnownEndpoints;
use crate::peer::{Agenda, PeerHandle};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{ArcSwap, Mutex, RwLock};
use crate::tables::Tables;
use handshake::Door;

/// The two ways out of a router.
///
/// Implemented by a worker's descriptors and by the simulation.
pub trait Edges {
    /// Sends every transmit of the batch, in order, and clears it. What was sent is counted by
    /// [`Router::sent`]; what cannot be sent is dropped and counted by [`Router::dropped`].
    fn transmit(&mut self, batch: &mut SendBatch);

    /// Hands one packet, in pieces of `arena`, to the local host.
    fn deliver(&mut self, header: &vnet::Header, arena: &[u8], pieces: &[Range<usize>]);
}

/// Where a router takes its random bytes from: the system, or a seed in a simulation.
pub trait Entropy: Send {
    /// Fills `bytes`, fit for keys.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// What waits in a router for something. All of it is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Handshake messages that are not served yet.
    pub handshakes: usize,
    /// Bytes of packets whose peers have no session yet.
    pub staged_bytes: usize,
}

/// The tables, peers and queues of one tunnel.
pub struct Router {
    /// What every batch looks up in.
    tables: ArcSwap<Tables>,
    /// The same peers by name, for handshakes and changes.
    by_key: RwLock<HashMap<PublicKey, Arc<PeerHandle>>>,
    indices: IndexTable,
    door: Door,
    known: KnownEndpoints,
    agenda: Agenda,
    drops: Drops,
    /// MTU of the interface, in bytes.
    mtu: AtomicU32,
    entropy: Mutex<Box<dyn Entropy>>,
    /// The interface is up. Written under `changes`.
    running: AtomicBool,
    /// Changes are made one after the other.
    changes: Mutex<()>,
}

impl Router {
    /// A router without key or peers, whose interface is up until [`Self::stop`] says otherwise.
    ///
    /// `wake` is called, from any thread, when [`Self::tick`] has something new to do.
    pub fn new(mtu: u32, wake: Box<dyn Fn() + Send + Sync>, entropy: Box<dyn Entropy>) -> Self {
        Self {
            tables: ArcSwap::from_pointee(Tables {
                allowed_ips: AllowedIps::new(),
                peers: Vec::new(),
                identities: Vec::new(),
                local: None,
            }),
            by_key: RwLock::new(HashMap::new()),
            indices: IndexTable::new(),
            door: Door::new(),
            known: KnownEndpoints::default(),
            agenda: Agenda::new(wake),
            drops: Drops::new(),
            mtu: AtomicU32::new(mtu),
            entropy: Mutex::new(entropy),
            running: AtomicBool::new(true),
            changes: Mutex::new(()),
        }
    }

    /// MTU of the interface, in bytes.
    pub fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed) as usize
    }

    /// The interface has another MTU, in bytes.
    pub fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Every drop that occurred so far, by reason, in a fixed order.
    pub fn drops(&self) -> Vec<(Reason, u64)> {
        self.drops.report()
    }

    /// Counts drops that happened at an edge.
    pub fn dropped(&self, reason: Reason, packets: u64) {
        self.drops.count(reason, packets);
    }

    /// Counts datagrams that an edge sent for the transmits with this tag, and their bytes.
    pub fn sent(&self, tag: u32, bytes: u64, datagrams: u64) {
        if let Some(peer) = self.tables.load().peer(crate::peer::PeerId(tag)) {
            peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
            peer.tx_packets.fetch_add(datagrams, Ordering::Relaxed);
        }
    }

    /// What waits: handshake messages to be served, and bytes of packets for sessions that are not there
    /// yet.
    pub fn waiting(&self) -> Waiting {
        Waiting {
            handshakes: self.door.queued(),
            staged_bytes: self.agenda.staged_bytes(),
        }
    }

    /// The source address that the transmit with this tag was to leave from is gone: let the
    /// system choose from now on, until the peer is heard at another.
    pub fn source_gone(&self, tag: u32) {
        if let Some(peer) = self.tables.load().peer(crate::peer::PeerId(tag)) {
            peer.lock(&self.agenda).forget_source();
        }
    }
}

impl Router {
    fn fill_random(&self, bytes: &mut [u8]) {
        self.entropy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill(bytes);
    }

    fn peer_named(&self, key: &PublicKey) -> Option<Arc<PeerHandle>> {
        self.by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .map(Arc::clone)
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("mtu", &self.mtu)
            .finish_non_exhaustive()
    }
}

fn endpoint_of(addr: SocketAddr, source: Option<Source>) -> Endpoint {
    Endpoint {
        addr,
        source: source.map(|source| (source.ip, source.interface)),
    }
}

fn source_of(endpoint: &Endpoint) -> Option<Source> {
    endpoint
        .source
        .map(|(ip, interface)| Source { ip, interface })
}
