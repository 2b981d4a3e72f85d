//! The packet's way out, on one thread and one call stack.
//!
//! 1. [`Router::outbound`] takes what a TUN queue delivered: large packets or several small ones.
//! 2. `group` looks up the packets' peers, all at once, and links the packets of one peer, in order.
//! 3. `reserve` asks each peer, once, for a session and as many counters as there will be records.
//!    Where there is no session yet the packets are staged, and an initiation is due.
//! 4. `seal` cuts and seals straight into the buffer that is sent from; no lock is held.
//! 5. [`Edges::transmit`] sends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_packet::batch::{ReadBatch, SendBatch};
use warren_packet::segment::Segments;
use warren_packet::{icmp, ip, vnet};
use warren_wireguard::time::Instant;
use warren_wireguard::{Permit, Reservation};

use super::seal::Sealer;
use super::{Edges, Router};
use crate::drops::{Reason, Tally};
use crate::limits::{ICMP_BURST, ICMP_INTERVAL, STAGED_BYTES};
use crate::peer::{PeerHandle, PeerId};
use crate::tables::Tables;

/// What one worker's way out keeps from batch to batch. Reused, so that nothing is allocated for
/// a packet.
#[derive(Debug)]
pub struct Outbound {
    groups: Vec<Group>,
    /// For each packet of the batch, the next of its group.
    next: Vec<u32>,
    /// The packets of the batch that are in order, where they go, and whose that is.
    sound: Vec<Sound>,
    destinations: Vec<IpAddr>,
    owners: Vec<Option<PeerId>>,
    tally: Tally,
    icmp: icmp::Limiter,
}

/// The packets of one batch for one peer.
#[derive(Debug, Clone, Copy)]
struct Group {
    peer: PeerId,
    /// Records that the packets will become.
    records: u32,
    first: u32,
    last: u32,
}

/// A packet that can be cut into records.
#[derive(Debug, Clone, Copy)]
struct Sound {
    /// Its place in the batch.
    at: u32,
    /// Records that it will become.
    records: u32,
}

/// Ends the chain of a group.
const END: u32 = u32::MAX;

impl Outbound {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            groups: Vec::new(),
            next: Vec::new(),
            sound: Vec::new(),
            destinations: Vec::new(),
            owners: Vec::new(),
            tally: Tally::new(),
            icmp: icmp::Limiter::new(ICMP_INTERVAL, ICMP_BURST),
        }
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self::new()
    }
}

impl Router {
    /// Takes a batch of packets for the mesh and transmits it, sealed, by way of `out`.
    ///
    /// Packets of one flow leave in the order in which they are in the batch.
    pub fn outbound(
        &self,
        scratch: &mut Outbound,
        batch: &ReadBatch,
        out: &mut SendBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) {
        let tables = self.tables.load();
        self.group(scratch, &tables, batch, now, edges);
        let mut groups = std::mem::take(&mut scratch.groups);
        for group in groups.drain(..) {
            let Some(peer) = tables.peer(group.peer) else {
                continue;
            };
            if let Some(permit) = self.reserve(scratch, peer, group, batch, now, edges) {
                self.seal(scratch, &permit, peer, group, batch, out, edges);
            }
        }
        scratch.groups = groups;
        if !out.transmits.is_empty() {
            edges.transmit(out);
        }
        self.drops.absorb(&mut scratch.tally);
    }

    /// Step 2.
    fn group(
        &self,
        scratch: &mut Outbound,
        tables: &Tables,
        batch: &ReadBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) {
        scratch.next.clear();
        scratch.sound.clear();
        scratch.destinations.clear();
        for (at, packet) in (0..).zip(batch.packets()) {
            scratch.next.push(END);
            let bytes = &batch.arena()[packet.range.clone()];
            let (Ok(destination), Ok(segments)) =
                (ip::destination(bytes), Segments::new(packet.header, bytes))
            else {
                scratch.tally.count(Reason::OutMalformed);
                continue;
            };
            let records =
                u32::try_from(segments.count()).expect("a packet has 65535 bytes at most");
            scratch.sound.push(Sound { at, records });
            scratch.destinations.push(destination);
        }
        (tables.allowed_ips).lookup_all(&scratch.destinations, &mut scratch.owners);
        for (&Sound { at, records }, peer) in scratch.sound.iter().zip(&scratch.owners) {
            let Some(peer) = *peer else {
                scratch.tally.count(Reason::OutNoPeer);
                let range = batch.packets()[at as usize].range.clone();
                unreachable(&mut scratch.icmp, &batch.arena()[range], now, edges);
                continue;
            };
            // Flows come in runs, so the peer of the packet before is the likely one.
            match scratch
                .groups
                .iter_mut()
                .rev()
                .find(|group| group.peer == peer)
            {
                Some(group) => {
                    scratch.next[group.last as usize] = at;
                    group.last = at;
                    group.records += records;
                }
                None => scratch.groups.push(Group {
                    peer,
                    records,
                    first: at,
                    last: at,
                }),
            }
        }
    }

    /// Step 3: one lock. Stages the packets if there is nothing to seal them with yet.
    fn reserve(
        &self,
        scratch: &mut Outbound,
        peer: &Arc<PeerHandle>,
        group: Group,
        batch: &ReadBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) -> Option<Permit> {
        let mut state = peer.lock(&self.agenda);
        match state.reserve(group.records, now) {
            Reservation::Ready(permit) => return Some(permit),
            Reservation::Stage => {}
            Reservation::NoEndpoint => {
                drop(state);
                scratch
                    .tally
                    .add(Reason::OutNoEndpoint, group.records as usize);
                for at in chain(&scratch.next, group) {
                    let bytes = &batch.arena()[batch.packets()[at].range.clone()];
                    unreachable(&mut scratch.icmp, bytes, now, edges);
                }
                return None;
            }
        }
        let mut room = STAGED_BYTES.saturating_sub(self.agenda.staged_bytes());
        for at in chain(&scratch.next, group) {
            let packet = &batch.packets()[at];
            let records = Segments::new(packet.header, &batch.arena()[packet.range.clone()])
                .map_or(0, |segments| segments.count());
            let Some(left) = room.checked_sub(packet.range.len()) else {
                scratch.tally.add(Reason::OutStagedOverflow, records);
                continue;
            };
            room = left;
            let staged = stage(&packet.header, &batch.arena()[packet.range.clone()]);
            let dropped = state.stage(staged, u32::try_from(records).unwrap_or(u32::MAX));
            scratch
                .tally
                .add(Reason::OutStagedOverflow, dropped as usize);
        }
        None
    }

    /// Step 4.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one step, each of its own kind"
    )]
    fn seal(
        &self,
        scratch: &mut Outbound,
        permit: &Permit,
        peer: &PeerHandle,
        group: Group,
        batch: &ReadBatch,
        out: &mut SendBatch,
        edges: &mut dyn Edges,
    ) {
        let mut sealer = Sealer::new(permit, peer.id(), self.mtu());
        for at in chain(&scratch.next, group) {
            let packet = &batch.packets()[at];
            let bytes = &batch.arena()[packet.range.clone()];
            if sealer.push(packet.header, bytes, out, edges).is_err() {
                scratch.tally.count(Reason::OutMalformed);
            }
        }
        sealer.finish(out);
    }
}

/// The places of a group's packets, in order.
fn chain(next: &[u32], group: Group) -> impl Iterator<Item = usize> + '_ {
    std::iter::successors(Some(group.first), |&at| {
        Some(next[at as usize]).filter(|&at| at != END)
    })
    .map(|at| at as usize)
}

/// A packet as it waits for a session: its offload header, then its bytes.
fn stage(header: &vnet::Header, packet: &[u8]) -> Box<[u8]> {
    let mut staged = Vec::with_capacity(vnet::LEN + packet.len());
    staged.extend_from_slice(&header.encode());
    staged.extend_from_slice(packet);
    staged.into_boxed_slice()
}

/// Takes apart what [`stage`] made.
pub(super) fn unstage(staged: &[u8]) -> Option<(vnet::Header, &[u8])> {
    let (header, packet) = staged.split_first_chunk::<{ vnet::LEN }>()?;
    Some((vnet::Header::decode(header), packet))
}

/// Tells the sender that nobody owns the address, or that nobody knows where its owner is, as the
/// kernel's driver does.
fn unreachable(limiter: &mut icmp::Limiter, packet: &[u8], now: Instant, edges: &mut dyn Edges) {
    let mut reply = [0; icmp::MAX_REPLY];
    // Most floods are cut off here, before a reply is put together.
    if limiter.allow(Duration::from_nanos(now.as_nanos()))
        && let Ok(len) = icmp::unreachable(packet, &mut reply)
    {
        let whole = 0..len;
        edges.deliver(&vnet::Header::NONE, &reply, std::slice::from_ref(&whole));
    }
}
