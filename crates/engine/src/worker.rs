//! The threads that move packets, each between one TUN queue and one pair of UDP sockets.
//!
//! A packet stays on the thread that read it, from read to write. With [`Threads::Joined`] a worker is
//! one thread that takes turns. With [`Threads::Split`] it is two, of which one has the way in, and the way
//! out goes to and fro between them ([`Handover`]). Nothing but the router's tables and peers is shared
//! between them.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use warren_packet::backlog::Backlog;
use warren_packet::batch::{RecvBatch, SendBatch, Transmit};
use warren_packet::coalesce::Merge;
use warren_packet::vnet::{self, GSO_UDP_L4};
use warren_tun::Queue;
use warren_udp::{Failure, Family, Pair, SendReport, Socket};
use warren_wireguard::time::Instant;

use crate::clock;
use crate::drops::Reason;
use crate::handover::Handover;
use crate::poll::{Poller, Wake};
use crate::router::{Edges, Inbound, Outbound, Router};
use crate::schedule::{Duty, Flood, Schedule};
use crate::shared::{Shared, SocketSet};
use crate::standing::Standing;

/// How many packets one read of a TUN queue takes at most.
const READ_PACKETS: usize = 64;
/// Bytes for these: four of the largest, or as many small ones as there are.
const READ_BYTES: usize = 4 * 65536;
/// How many such batches are read ahead at most: 2 MiB, more than a bulk stream's window mostly is.
const READ_AHEAD: usize = 8;
/// Batches that are read for each that is sealed, so that what waits comes to wait here.
const READS: usize = 2;
/// Bytes sealed before they are sent.
const SEND_BYTES: usize = 5 * 65536;
/// Messages taken from a socket at once.
const RECV_SLOTS: usize = 8;
/// A packet whose pieces have no more bytes than this is put together before it is written: the kernel
/// takes longer to step from piece to piece than a copy takes.
const SMALL_PIECE: usize = 512;
/// Turns that a direction takes before it looks whether something else happened.
const TURNS: usize = 16;
/// How long a full socket is waited for, each time that it takes nothing more, before what is left
/// of the batch is dropped. One that takes a little now and then is waited for again: every wait is
/// paid for by something that was sent.
const SEND_PATIENCE: Duration = Duration::from_millis(1);

const WAKE: u32 = 0;
const TUN: u32 = 1;
const V4: u32 = 2;
const V6: u32 = 3;

/// Which threads a worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Threads {
    /// One for each direction when there is much to do, and one for both when there is little.
    #[default]
    Split,
    /// One for both always: less throughput where cores are free.
    Joined,
}

/// How many workers there are unless somebody asks for a number.
///
/// A worker has a thread for each direction, so half of the processors are enough to keep all of them
/// busy. Eight at most: each keeps a megabyte of batches, whether or not it has work.
pub fn default_workers() -> usize {
    thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2).min(8))
}

/// How many workers there are at most.
const WORKERS_MAX: usize = 256;

/// How many workers somebody asks for with this text, or what it should be.
pub fn workers_asked(text: &str) -> Result<usize, &'static str> {
    let workers = (text.parse().ok()).filter(|workers| (1..=WORKERS_MAX).contains(workers));
    workers.ok_or("a number from 1 to 256")
}

/// A thread's share of a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// Which of the shared sockets are this worker's.
    place: usize,
    queue: Arc<Queue>,
    wake: Arc<Wake>,
    outbound: Option<Box<OutboundPump>>,
    inbound: Option<InboundPump>,
    handover: Option<Handover<Box<OutboundPump>>>,
    /// When the last batch began.
    now: Instant,
}

/// Why a worker came to its end.
#[derive(Debug)]
pub(crate) enum WorkerEnd {
    /// It was told to.
    Stopped,
    /// The TUN interface is gone.
    Deleted,
}

#[derive(Debug)]
pub(crate) struct OutboundPump {
    scratch: Outbound,
    backlog: Backlog,
    flood: Flood,
    edges: EdgeState,
    out: SendBatch,
}

#[derive(Debug)]
struct InboundPump {
    scratch: Inbound,
    batch: RecvBatch,
    standing: Standing,
    edges: EdgeState,
    out: SendBatch,
}

impl OutboundPump {
    fn new(now: Instant) -> Self {
        Self {
            scratch: Outbound::new(),
            backlog: Backlog::new(READ_AHEAD, READ_BYTES, READ_PACKETS),
            flood: Flood::new(now),
            edges: EdgeState::default(),
            out: SendBatch::new(SEND_BYTES, READ_PACKETS),
        }
    }
}

impl InboundPump {
    fn new(merge: Merge, now: Instant) -> Self {
        Self {
            scratch: Inbound::new(merge),
            standing: Standing::new(now),
            batch: RecvBatch::new(RECV_SLOTS),
            edges: EdgeState::default(),
            // Only cookie replies leave by this way.
            out: SendBatch::new(4096, 64),
        }
    }
}

/// Which directions a thread serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Directions {
    Both,
    /// The way out when there is much to do.
    Out,
    /// The way in, and the way out when there is little to do.
    In,
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        place: usize,
        queue: Arc<Queue>,
        wake: Arc<Wake>,
        directions: Directions,
        handover: Option<Handover<Box<OutboundPump>>>,
        merge: Merge,
    ) -> Self {
        let now = clock::now();
        Self {
            shared,
            place,
            queue,
            wake,
            outbound: (directions != Directions::Out).then(|| Box::new(OutboundPump::new(now))),
            inbound: (directions != Directions::Out).then(|| InboundPump::new(merge, now)),
            handover,
            now,
        }
    }

    /// Moves packets until it is told to stop or the interface is gone.
    pub(crate) fn run(mut self) -> io::Result<WorkerEnd> {
        let mut schedule = Schedule::of_thread(self.duty(), self.now);
        let mut poller = Poller::new()?;
        poller.add(&*self.wake, WAKE)?;
        if self.outbound.is_some() {
            poller.add(&*self.queue, TUN)?;
        }
        let mut sockets = self.shared.sockets.load_full();
        self.listen(&poller, &sockets)?;
        loop {
            let ready = match self.is_behind() {
                true => poller.look()?,
                false => poller.wait()?,
            };
            if ready.has(WAKE) {
                self.wake.drain();
                if self.shared.is_stopping() {
                    return Ok(WorkerEnd::Stopped);
                }
                let current = self.shared.sockets.load_full();
                if !Arc::ptr_eq(&current, &sockets) {
                    self.mute(&poller, &sockets)?;
                    self.listen(&poller, &current)?;
                    sockets = current;
                }
                self.take_over(&poller)?;
            }
            let pair = sockets.pair(self.place);
            for _ in 0..TURNS {
                let mut more = false;
                if ready.has(TUN) || self.is_behind() {
                    match self.turn_out(pair) {
                        Ok(full) => more |= full,
                        Err(error) if warren_tun::is_deleted(&error) => {
                            return Ok(WorkerEnd::Deleted);
                        }
                        // An interface that is down has nothing to read and says so as an error.
                        Err(_) => {}
                    }
                }
                if ready.has(V4) {
                    more |= self.turn_in(pair, Family::V4);
                }
                if ready.has(V6) {
                    more |= self.turn_in(pair, Family::V6);
                }
                if !more {
                    break;
                }
            }
            self.hand_over(&poller)?;
            schedule.serve(self.duty(), self.now);
            schedule.look(self.now);
        }
    }

    /// What it has to move now.
    fn duty(&self) -> Duty {
        match (&self.inbound, &self.outbound) {
            (Some(_), Some(_)) => Duty::Both,
            (Some(_), None) => Duty::In,
            (None, _) if self.handover.as_ref().is_some_and(Handover::is_sparse) => Duty::Answers,
            (None, Some(pump)) if pump.flood.is_flooded() => Duty::Flooded,
            (None, _) => Duty::Out,
        }
    }

    /// Takes the way out, if the other thread has given it.
    fn take_over(&mut self, poller: &Poller) -> io::Result<()> {
        self.now = clock::now();
        if let Some(pump) = self.handover.as_mut().and_then(|it| it.take(self.now)) {
            poller.add(&*self.queue, TUN)?;
            self.outbound = Some(pump);
        }
        Ok(())
    }

    /// Gives the way out to the other thread, if that is the better one for it. What has left has left by then,
    /// so no packet passes another.
    fn hand_over(&mut self, poller: &Poller) -> io::Result<()> {
        let Some(handover) = &mut self.handover else {
            return Ok(());
        };
        let is_due = handover.is_due(self.outbound.is_some(), self.now);
        if let Some(pump) = self.outbound.take_if(|_| is_due) {
            poller.remove(&*self.queue)?;
            handover.give(pump);
        }
        Ok(())
    }

    /// Whether something was read from the TUN queue that has not left.
    fn is_behind(&self) -> bool {
        (self.outbound.as_ref()).is_some_and(|pump| !pump.backlog.is_empty())
    }

    /// Reads ahead, and sends one batch. Answers whether there may be more.
    fn turn_out(&mut self, pair: &Pair) -> io::Result<bool> {
        let Some(pump) = &mut self.outbound else {
            return Ok(false);
        };
        let OutboundPump {
            scratch,
            backlog,
            flood,
            edges,
            out,
        } = &mut **pump;
        let read = read_ahead(&self.queue, backlog);
        let Some(batch) = backlog.next() else {
            return read.map(|()| false);
        };
        // What was read before an error leaves; the next turn meets the error again.
        let router = &self.shared.router;
        let now = clock::now();
        let packets = batch.packets();
        let are_runs = (packets.first()).is_some_and(|first| first.header.gso_type == GSO_UDP_L4);
        flood.count(are_runs && backlog.is_full(), now);
        let bytes = packets.iter().map(|packet| packet.range.len()).sum();
        if let Some(handover) = &mut self.handover {
            handover.count(packets.len(), bytes);
        }
        self.now = now;
        let mut edges = WorkerEdges {
            router,
            pair,
            queue: &self.queue,
            state: edges,
            now,
        };
        router.outbound(scratch, batch, out, now, &mut edges);
        backlog.sent();
        Ok(!backlog.is_empty())
    }

    /// One batch from a socket. Answers whether there may be more.
    fn turn_in(&mut self, pair: &Pair, family: Family) -> bool {
        let socket = match family {
            Family::V4 => &pair.v4,
            Family::V6 => &pair.v6,
        };
        let (Some(pump), Some(socket)) = (&mut self.inbound, socket) else {
            return false;
        };
        let InboundPump {
            scratch,
            batch,
            standing,
            edges,
            out,
        } = pump;
        batch.clear();
        // Errors of a socket are counted where they happen, and end nothing.
        if !matches!(socket.recv(batch), Ok(messages) if messages > 0) {
            standing.emptied(family);
            return false;
        }
        scratch.tell(standing.tells(family));
        let router = &self.shared.router;
        let now = clock::now();
        let datagrams = &batch.datagrams;
        let bytes = datagrams.iter().map(|datagram| datagram.range.len()).sum();
        if let Some(handover) = &mut self.handover {
            handover.count(datagrams.len(), bytes);
        }
        self.now = now;
        let mut edges = WorkerEdges {
            router,
            pair,
            queue: &self.queue,
            state: edges,
            now,
        };
        router.inbound(scratch, batch, out, now, &mut edges);
        if scratch.told() {
            standing.told(family, now);
        }
        match batch.more {
            true => standing.left_more(family, scratch.accepted(), now),
            false => standing.emptied(family),
        }
        batch.more
    }

    fn listen(&self, poller: &Poller, sockets: &SocketSet) -> io::Result<()> {
        if self.inbound.is_some() {
            let pair = sockets.pair(self.place);
            for (socket, token) in [(&pair.v4, V4), (&pair.v6, V6)] {
                if let Some(socket) = socket {
                    poller.add(socket, token)?;
                }
            }
        }
        Ok(())
    }

    fn mute(&self, poller: &Poller, sockets: &SocketSet) -> io::Result<()> {
        if self.inbound.is_some() {
            let pair = sockets.pair(self.place);
            for socket in [&pair.v4, &pair.v6].into_iter().flatten() {
                poller.remove(socket)?;
            }
        }
        Ok(())
    }
}

/// Reads until there is nothing left, or twice as much as leaves in a turn.
fn read_ahead(queue: &Queue, backlog: &mut Backlog) -> io::Result<()> {
    for _ in 0..READS {
        let Some(batch) = backlog.spare() else { break };
        let read = queue.read(batch);
        let full = batch.is_full();
        backlog.commit();
        if read? == 0 || !full {
            break;
        }
    }
    Ok(())
}

/// What [`WorkerEdges`] keeps from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct EdgeState {
    report: SendReport,
    /// A packet of small pieces, put together.
    gathered: Vec<u8>,
}

/// A worker's descriptors as the router sees them.
pub(crate) struct WorkerEdges<'a> {
    pub(crate) router: &'a Router,
    pub(crate) pair: &'a Pair,
    pub(crate) queue: &'a Queue,
    pub(crate) state: &'a mut EdgeState,
    pub(crate) now: Instant,
}

impl Edges for WorkerEdges<'_> {
    fn transmit(&mut self, batch: &mut SendBatch) {
        let SendBatch { arena, transmits } = batch;
        // One call for each run of one family; nearly always that is one call.
        for run in transmits.chunk_by_mut(|a, b| a.remote.is_ipv4() == b.remote.is_ipv4()) {
            let v4 = run
                .first()
                .is_some_and(|transmit| transmit.remote.is_ipv4());
            match if v4 { &self.pair.v4 } else { &self.pair.v6 } {
                Some(socket) => self.send(socket, arena, run),
                None => self.router.dropped(Reason::OutNoSocket, datagrams(run)),
            }
        }
        transmits.clear();
    }

    fn deliver(&mut self, header: &vnet::Header, arena: &[u8], pieces: &[Range<usize>]) {
        let written = match pieces {
            [_, second, ..] if second.len() <= SMALL_PIECE => {
                let gathered = &mut self.state.gathered;
                gathered.clear();
                for piece in pieces {
                    gathered.extend_from_slice(&arena[piece.clone()]);
                }
                let whole = 0..gathered.len();
                self.queue
                    .write(header, gathered, std::slice::from_ref(&whole))
            }
            _ => self.queue.write(header, arena, pieces),
        };
        if written.is_err() {
            self.router.dropped(Reason::InTunRefused, 1);
        }
    }
}

impl WorkerEdges<'_> {
    fn send(&mut self, socket: &Socket, arena: &[u8], mut left: &mut [Transmit]) {
        let now = Duration::from_nanos(self.now.as_nanos());
        loop {
            let finished = socket.send(now, arena, left, &mut self.state.report);
            left = &mut left[finished..];
            for sent in self.state.report.drain_sent() {
                self.router.sent(sent.tag, sent.bytes, sent.datagrams);
            }
            for failed in self.state.report.drain() {
                if failed.kind == Failure::SourceGone {
                    self.router.source_gone(failed.tag);
                } else {
                    self.router
                        .dropped(Reason::OutSocketRefused, failed.datagrams);
                }
            }
            if left.is_empty() {
                return;
            }
            if finished == 0 && !socket.wait_writable(SEND_PATIENCE) {
                return self.router.dropped(Reason::OutSocketFull, datagrams(left));
            }
        }
    }
}

fn datagrams(transmits: &[Transmit]) -> u64 {
    transmits
        .iter()
        .map(|transmit| transmit.datagrams().len() as u64)
        .sum()
}
