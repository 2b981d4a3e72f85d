//! The packet's way in, on one thread and one call stack.
//!
//! 1. [`Router::inbound`] takes what a UDP socket delivered, split by stride.
//! 2. Handshake messages pass the door in `handshake.rs` and wait there for the control thread.
//! 3. `open` finds the session of each run of records by its receiver index and opens the run in
//!    place; no lock is held.
//! 4. `accept` asks each session's peer, once for each place that the batch has records of it from:
//!    replay window, roaming, confirmation, timers. Nearly always that is once for each peer.
//! 5. `admit` holds each inner packet against the allowed IPs: the longest match for its source
//!    must be this very peer. It is trimmed to its IP length.
//! 6. [`Edges::deliver`] takes runs of one flow as one large packet each.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use warren_packet::batch::{Datagram, RecvBatch, SendBatch};
use warren_packet::coalesce::{Coalescer, Merge};
use warren_packet::{Ecn, ecn, ip};
use warren_wireguard::messages::{self, DATA_HEADER, Message, TAG};
use warren_wireguard::time::Instant;
use warren_wireguard::{Endpoint, Record, Verdict};

use super::{Edges, Router, endpoint_of, handshake};
use crate::drops::{Reason, Tally};
use crate::index::{Receiver, Recent};
use crate::peer::PeerId;
use crate::tables::Tables;

/// Tags a transmit to someone who may be no peer.
const NO_PEER: u32 = u32::MAX;

/// What one worker's way in keeps from batch to batch. Reused, so that nothing is allocated for a
/// packet.
#[derive(Debug)]
pub struct Inbound {
    recent: Recent,
    /// The batch's groups are the first `used` of these; the others keep their room.
    groups: Vec<Group>,
    used: usize,
    /// Handshake messages of the batch, and where they are from.
    visits: Vec<(Range<usize>, Endpoint)>,
    counters: Vec<u64>,
    opened: Vec<Result<(), warren_wireguard::Forged>>,
    coalescer: Coalescer,
    tally: Tally,
    /// Bytes that the last batch brought of peers, replays left out.
    accepted: usize,
    /// How much the next batch has to bring for one of its packets to tell its sender that too much waits, if any may.
    tells: Option<usize>,
    told: bool,
}

/// What one batch holds of one session, from one place.
#[derive(Debug)]
struct Group {
    receiver: Option<Arc<Receiver>>,
    from: Endpoint,
    /// For [`warren_wireguard::Peer::accept`], in order.
    records: Vec<Record>,
    /// Where each record's plaintext lies, and its outer mark.
    plaintexts: Vec<(Range<usize>, Ecn)>,
    /// Bytes of those of them that were neither replayed nor of a session that has ended.
    accepted: usize,
}

impl Group {
    fn peer(&self) -> Option<PeerId> {
        self.receiver.as_ref().map(|receiver| receiver.peer.id())
    }
}

impl Inbound {
    /// An empty one, whose deliveries are merged as far as `merge` says.
    pub fn new(merge: Merge) -> Self {
        Self {
            recent: Recent::new(),
            groups: Vec::new(),
            used: 0,
            visits: Vec::new(),
            counters: Vec::new(),
            opened: Vec::new(),
            coalescer: Coalescer::new(merge),
            tally: Tally::new(),
            accepted: 0,
            tells: None,
            told: false,
        }
    }

    /// Bytes of data messages that the last batch brought and that were neither forged nor replayed.
    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// Has one packet of the next batch tell its sender that too much waits here, as one does that met congestion on
    /// its way: a large one of the peer that has most of the batch. If the batch brings less than `least` bytes, what
    /// waited was read before it, and nobody is told: it may be others' altogether. With `None` nobody is in any case.
    pub fn tell(&mut self, least: Option<usize>) {
        self.tells = least;
    }

    /// Whether one of the last batch did.
    pub fn told(&self) -> bool {
        self.told
    }

    /// The group of this session and place, made if the batch has none yet.
    fn group(&mut self, receiver: &Arc<Receiver>, from: Endpoint) -> &mut Group {
        let known = self.groups[..self.used].iter().rposition(|group| {
            group.from == from
                && group
                    .receiver
                    .as_ref()
                    .is_some_and(|known| Arc::ptr_eq(known, receiver))
        });
        let at = known.unwrap_or_else(|| {
            if self.used == self.groups.len() {
                self.groups.push(Group {
                    receiver: None,
                    from,
                    records: Vec::new(),
                    plaintexts: Vec::new(),
                    accepted: 0,
                });
            }
            self.used += 1;
            let group = &mut self.groups[self.used - 1];
            group.receiver = Some(Arc::clone(receiver));
            group.from = from;
            self.used - 1
        });
        &mut self.groups[at]
    }
}

impl Router {
    /// Takes a batch of datagrams and delivers what was sealed in them.
    ///
    /// Answers that the door gives (cookie replies) are transmitted by way of `out`. Packets of
    /// one flow are delivered in the order in which they are in the batch.
    pub fn inbound(
        &self,
        scratch: &mut Inbound,
        batch: &mut RecvBatch,
        out: &mut SendBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) {
        let tables = self.tables.load();
        let RecvBatch {
            arena, datagrams, ..
        } = batch;
        for datagram in datagrams.iter() {
            self.split(scratch, arena, datagram);
        }
        self.receive(scratch, &tables, arena, out, now, edges);
        let mut groups = std::mem::take(&mut scratch.groups);
        let used = &mut groups[..std::mem::take(&mut scratch.used)];
        for group in used.iter_mut() {
            self.accept(&mut scratch.tally, group, now);
        }
        scratch.accepted = used.iter().map(|group| group.accepted).sum();
        let tells = (scratch.tells.take()).filter(|least| scratch.accepted >= *least);
        let teller = tells.and_then(|_| teller(used));
        scratch.told = false;
        for (at, group) in used.iter_mut().enumerate() {
            let teller = teller.filter(|teller| teller.group == at);
            scratch.told |= self.admit(scratch, &tables, arena, group, teller);
            group.receiver = None;
            group.records.clear();
            group.plaintexts.clear();
        }
        scratch.groups = groups;
        scratch.coalescer.finish(arena);
        for write in scratch.coalescer.writes() {
            edges.deliver(&write.header, arena, write.pieces);
        }
        scratch.coalescer.clear();
        if !out.transmits.is_empty() {
            edges.transmit(out);
        }
        self.drops.absorb(&mut scratch.tally);
    }

    /// Step 1. Runs of records of one session go to step 3 together.
    fn split(&self, scratch: &mut Inbound, arena: &mut [u8], datagram: &Datagram) {
        let mut run: Option<(u32, Range<usize>)> = None;
        for record in datagram.datagrams() {
            let data = match messages::parse(&arena[record.clone()]) {
                Ok(Message::Data {
                    receiver, counter, ..
                }) => Some((receiver, counter)),
                Ok(Message::Handshake(_)) => {
                    let from = endpoint_of(datagram.remote, datagram.source);
                    scratch.visits.push((record.clone(), from));
                    None
                }
                Err(_) => {
                    scratch.tally.count(Reason::InMalformed);
                    None
                }
            };
            match (data, &mut run) {
                (Some((receiver, _)), Some((of, range))) if *of == receiver => {
                    range.end = record.end;
                }
                (data, run) => {
                    self.open(scratch, arena, datagram, run.take());
                    *run = data.map(|(receiver, _)| (receiver, record));
                }
            }
            scratch.counters.extend(data.map(|(_, counter)| counter));
        }
        self.open(scratch, arena, datagram, run);
    }

    /// Step 2.
    fn receive(
        &self,
        scratch: &mut Inbound,
        tables: &Tables,
        arena: &[u8],
        out: &mut SendBatch,
        now: Instant,
        edges: &mut dyn Edges,
    ) {
        let Inbound { visits, tally, .. } = scratch;
        self.knock_all(tables, arena, visits, now, |from, knocked| match knocked {
            Ok(None) => {}
            Ok(Some(reply)) => {
                let tos = handshake::COOKIE_REPLY_TOS;
                handshake::put(&reply, tos, from, NO_PEER, out, edges);
                tally.count(Reason::InCookieDemanded);
            }
            Err(reason) => tally.count(reason),
        });
        visits.clear();
    }

    /// Step 3. The run's counters are in the scratch, one for each record.
    fn open(
        &self,
        scratch: &mut Inbound,
        arena: &mut [u8],
        datagram: &Datagram,
        run: Option<(u32, Range<usize>)>,
    ) {
        let Some((index, range)) = run else { return };
        let counters = std::mem::take(&mut scratch.counters);
        let Some(receiver) = scratch.recent.lookup(&self.indices, index) else {
            scratch.tally.add(Reason::InUnknownReceiver, counters.len());
            scratch.counters = counters;
            scratch.counters.clear();
            return;
        };
        scratch.opened.clear();
        let stride = datagram.stride.min(range.len());
        let opening = receiver.session.opening();
        opening.open_run(
            &counters,
            &mut arena[range.clone()],
            stride,
            DATA_HEADER,
            &mut scratch.opened,
        );
        let opened = std::mem::take(&mut scratch.opened);
        let group = scratch.group(&receiver, endpoint_of(datagram.remote, datagram.source));
        let mut forged = 0;
        for (at, (&counter, opened)) in counters.iter().zip(&opened).enumerate() {
            let start = range.start + at * stride;
            let end = (start + stride).min(range.end);
            if opened.is_err() {
                forged += 1;
                continue;
            }
            let plaintext = start + DATA_HEADER..end - TAG;
            group.records.push(Record::new(counter, plaintext.len()));
            group.plaintexts.push((plaintext, datagram.ecn));
        }
        scratch.tally.add(Reason::InForged, forged);
        scratch.opened = opened;
        scratch.counters = counters;
        scratch.counters.clear();
    }

    /// Step 4: one lock.
    fn accept(&self, tally: &mut Tally, group: &mut Group, now: Instant) {
        group.accepted = 0;
        let Some(receiver) = &group.receiver else {
            return;
        };
        if group.records.is_empty() {
            return;
        }
        {
            let mut state = receiver.peer.lock(&self.agenda);
            let accepted = state.accept(&receiver.session, group.from, &mut group.records, now);
            if accepted.moved {
                // Under the lock, since a peer that is being removed is forgotten after it was stopped.
                self.known.learn(receiver.peer.id(), group.from.addr);
            }
        }
        let (mut bytes, mut packets) = (0, 0);
        for record in &group.records {
            match record.verdict {
                Verdict::Accepted => {
                    bytes += DATA_HEADER + record.len + TAG;
                    packets += 1;
                }
                Verdict::Replayed => tally.count(Reason::InReplayed),
                Verdict::Expired => tally.count(Reason::InSessionExpired),
            }
        }
        group.accepted = bytes;
        let peer = &receiver.peer;
        peer.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        peer.rx_packets.fetch_add(packets, Ordering::Relaxed);
    }

    /// Step 5. Answers whether one of them told its sender: the teller, or the next that is for anybody here.
    fn admit(
        &self,
        scratch: &mut Inbound,
        tables: &Tables,
        arena: &mut [u8],
        group: &Group,
        mut teller: Option<Teller>,
    ) -> bool {
        let Some(receiver) = &group.receiver else {
            return false;
        };
        let mut told = false;
        let records = group.records.iter().zip(&group.plaintexts).enumerate();
        for (at, (record, (plaintext, outer))) in records {
            if record.verdict != Verdict::Accepted || plaintext.is_empty() {
                continue;
            }
            let bytes = &mut arena[plaintext.clone()];
            let tells = teller.is_some_and(|teller| teller.record <= at);
            let admitted = admit(tables, bytes, *outer, tells, receiver);
            let is_mark = |reason| matches!(reason, Reason::InStandingQueue | Reason::InEcn);
            if tells && admitted.err().is_none_or(is_mark) {
                told = true;
                teller = None;
            }
            match admitted {
                Ok(len) => scratch
                    .coalescer
                    .push(arena, plaintext.start..plaintext.start + len),
                Err(reason) => scratch.tally.count(reason),
            }
        }
        told
    }
}

/// The length of the inner packet, or why it goes no further.
fn admit(
    tables: &Tables,
    bytes: &mut [u8],
    outer: Ecn,
    tells: bool,
    receiver: &Receiver,
) -> Result<usize, Reason> {
    let packet = ip::Packet::parse(bytes).map_err(|_| Reason::InInnerMalformed)?;
    let (source, destination) = (packet.source(), packet.destination());
    let len = packet.bytes().len();
    if tables.allowed_ips.lookup(source) != Some(receiver.peer.id()) {
        return Err(Reason::InWrongSource);
    }
    if let Some(local) = &tables.local
        && local.lookup(destination).is_none()
    {
        return Err(Reason::InNotForUs);
    }
    let (outer, loss) = match tells && outer != Ecn::Ce {
        true => (Ecn::Ce, Reason::InStandingQueue),
        false => (outer, Reason::InEcn),
    };
    ecn::apply(&mut bytes[..len], outer).map_err(|_| loss)?;
    Ok(len)
}

/// The packet of a batch that tells its sender that too much waits.
#[derive(Debug, Clone, Copy)]
struct Teller {
    group: usize,
    /// Its place in the group.
    record: usize,
}

/// Which one that is: of the peer that has most of the batch, by whatever sessions and from whatever places, the first
/// of the longest, which is of the flow that fills the batch, and not what comes behind it as an end or between.
fn teller(groups: &[Group]) -> Option<Teller> {
    let of = |peer| groups.iter().filter(move |group| group.peer() == peer);
    let most = (groups.iter().map(Group::peer))
        .max_by_key(|&peer| of(peer).map(|group| group.accepted).sum::<usize>())?;
    let records = groups.iter().enumerate().flat_map(|(group, held)| {
        let records = held.records.iter().enumerate();
        records.map(move |(record, found)| (Teller { group, record }, held.peer(), found))
    });
    records
        .rev()
        .filter(|(_, peer, found)| *peer == most && found.verdict == Verdict::Accepted)
        .filter(|(_, _, found)| found.len != 0)
        .max_by_key(|(_, _, found)| found.len)
        .map(|(teller, _, _)| teller)
}
