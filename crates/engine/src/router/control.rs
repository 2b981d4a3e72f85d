//! What happens beside the packets: handshakes, timers, and what peers ask for.
//!
//! [`Router::tick`] is called when there is something to do: a handshake message waits, a peer is
//! on the agenda, or the deadline of [`Control::next_deadline`] has come. An idle peer is in none
//! of these and costs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_config::WallTime;
use warren_packet::batch::SendBatch;
use warren_wireguard::time::{Instant, Tai64n, Tai64nClock};
use warren_wireguard::{Action, Permit};

use super::outbound::unstage;
use super::seal::Sealer;
use super::{Edges, Router};
use crate::drops::Reason;
use crate::limits::{HANDSHAKES_PER_TURN, PEERS_PER_TURN};
use crate::peer::{PeerHandle, PeerId};

/// Bytes sealed before they are sent; the largest packet, cut as small as can be, is sent in parts.
const SEND_BYTES: usize = 2 * 65536;

/// What the control thread keeps: the deadlines of peers, and the clock of initiations.
#[derive(Debug)]
pub struct Control {
    deadlines: BTreeMap<(Instant, PeerId), Arc<PeerHandle>>,
    timestamps: Timestamps,
    due: Vec<Arc<PeerHandle>>,
    out: SendBatch,
}

/// The timestamps of initiations, which never go backwards, also across restarts if they are
/// remembered (BEHAVIOURS 13).
pub struct Timestamps {
    clock: Tai64nClock,
    remember: Option<Box<dyn FnMut(Tai64n) -> std::io::Result<()> + Send>>,
}

impl Timestamps {
    /// Not remembered: if wall time goes backwards across a restart, peers refuse this node's
    /// initiations until it has caught up.
    pub fn forgetful() -> Self {
        Self {
            clock: Tai64nClock::without_ceiling(),
            remember: None,
        }
    }

    /// Continues above `ceiling`, what was last remembered or [`Tai64n::ZERO`] the first time.
    ///
    /// `remember` is called, before any timestamp above the last ceiling is issued, with a new one
    /// to be put on disk. While it fails no initiation is sent.
    pub fn resume(
        ceiling: Tai64n,
        remember: Box<dyn FnMut(Tai64n) -> std::io::Result<()> + Send>,
    ) -> Self {
        Self {
            clock: Tai64nClock::resume(ceiling),
            remember: Some(remember),
        }
    }

    fn stamp(&mut self, wall: WallTime) -> std::io::Result<Tai64n> {
        loop {
            match (self.clock.stamp(wall), &mut self.remember) {
                (Ok(stamp), _) => return Ok(stamp),
                (Err(reached), Some(remember)) => {
                    remember(reached.0)?;
                    self.clock.ceiling_written(reached.0);
                }
                (Err(reached), None) => self.clock.ceiling_written(reached.0),
            }
        }
    }
}

impl Default for Timestamps {
    fn default() -> Self {
        Self::forgetful()
    }
}

impl std::fmt::Debug for Timestamps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timestamps")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Without any deadline yet.
    pub fn new(timestamps: Timestamps) -> Self {
        Self {
            deadlines: BTreeMap::new(),
            timestamps,
            due: Vec::new(),
            out: SendBatch::new(SEND_BYTES, 64),
        }
    }

    /// When [`Router::tick`] is to be called if nothing calls for it earlier. Exact, and after a
    /// tick that left nothing to do later than the time of that tick.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines
            .first_key_value()
            .map(|((deadline, _), _)| *deadline)
    }

    fn schedule(
        &mut self,
        peer: &Arc<PeerHandle>,
        before: Option<Instant>,
        after: Option<Instant>,
    ) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.deadlines.remove(&(before, peer.id()));
        }
        if let Some(after) = after {
            self.deadlines.insert((after, peer.id()), Arc::clone(peer));
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next_deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Takes a peer whose deadline has come.
    fn take_due(&mut self, now: Instant) -> Option<Arc<PeerHandle>> {
        let first = self.deadlines.first_entry()?;
        (first.key().0 <= now).then(|| {
            let peer = first.remove();
            peer.arm(None);
            peer
        })
    }
}

impl Router {
    /// Does what is due. Answers whether there is more to do right away.
    ///
    /// To be called by one thread, whenever the router asked to be woken or the deadline of
    /// `control` has come. Does a bounded amount of work, some of each kind, so that neither a flood
    /// of handshake messages holds up the timers, nor thousands of peers that are due at once the
    /// answers to what was sent to them.
    pub fn tick(
        &self,
        control: &mut Control,
        now: Instant,
        wall: WallTime,
        edges: &mut dyn Edges,
    ) -> bool {
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some(visitor) = self.door.next() else {
                break;
            };
            self.serve(&visitor, &mut control.out, now, edges);
        }
        let mut due = std::mem::take(&mut control.due);
        self.agenda.take(PEERS_PER_TURN, &mut due);
        for peer in due.drain(..) {
            self.look_after(control, &peer, now, wall, edges);
        }
        control.due = due;
        for _ in 0..PEERS_PER_TURN {
            let Some(peer) = control.take_due(now) else {
                break;
            };
            self.look_after(control, &peer, now, wall, edges);
        }
        if !control.out.transmits.is_empty() {
            edges.transmit(&mut control.out);
        }
        self.door.queued() > 0 || !self.agenda.is_empty() || control.is_due(now)
    }

    /// Does everything that one peer asks for, and sees to its next deadline.
    fn look_after(
        &self,
        control: &mut Control,
        peer: &Arc<PeerHandle>,
        now: Instant,
        wall: WallTime,
        edges: &mut dyn Edges,
    ) {
        loop {
            let action = {
                let mut state = peer.lock_quietly(&self.agenda);
                if state
                    .next_deadline()
                    .is_some_and(|deadline| deadline <= now)
                {
                    state.handle_timeout(now);
                }
                let action = state.poll(now);
                if action.is_none() {
                    let after = state.next_deadline();
                    let before = peer.arm(after);
                    control.schedule(peer, before, after);
                }
                action
            };
            match action {
                None => return,
                Some(Action::RetireIndex(index)) => self.indices.retire(index),
                Some(Action::StagedPurged(packets)) => {
                    self.drops
                        .count(Reason::OutStagedExpired, u64::from(packets));
                }
                Some(Action::Flush) => self.flush(control, peer, now, edges),
                Some(Action::SendKeepalive(permit)) => {
                    self.send_keepalive(control, peer, &permit, edges);
                }
                Some(Action::Initiate) => match control.timestamps.stamp(wall) {
                    Ok(stamp) => self.initiate(peer, stamp, &mut control.out, now, edges),
                    Err(error) => tracing::error!(
                        %error,
                        peer = %peer.public_key(),
                        "no initiation is sent, since its timestamp cannot be put on disk"
                    ),
                },
            }
        }
    }

    /// Sends what was staged. Newer packets wait behind it until it is done, so that they keep
    /// their order.
    fn flush(
        &self,
        control: &mut Control,
        peer: &Arc<PeerHandle>,
        now: Instant,
        edges: &mut dyn Edges,
    ) {
        loop {
            let staged = peer.lock_quietly(&self.agenda).take_staged(now);
            let Some((permit, packets)) = staged else {
                return;
            };
            let mut sealer = Sealer::new(&permit, peer.id(), self.mtu());
            for (header, packet) in packets.iter().filter_map(|packet| unstage(packet)) {
                if sealer
                    .push(header, packet, &mut control.out, edges)
                    .is_err()
                {
                    self.drops.count(Reason::OutMalformed, 1);
                }
            }
            peer.sent(sealer.finish(&mut control.out));
            edges.transmit(&mut control.out);
        }
    }

    fn send_keepalive(
        &self,
        control: &mut Control,
        peer: &PeerHandle,
        permit: &Permit,
        edges: &mut dyn Edges,
    ) {
        let mut sealer = Sealer::new(permit, peer.id(), self.mtu());
        sealer.push_keepalive(&mut control.out, edges);
        peer.sent(sealer.finish(&mut control.out));
    }
}
