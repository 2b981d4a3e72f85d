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
    /// The last timestamp could not be remembered, and that was said.
    forgetting: bool,
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
            forgetting: false,
            due: Vec::new(),
            out: SendBatch::new(SEND_BYTES, 64),
        }
    }

    /// When [`Router::tick`] is to be called if nothing calls for it earlier. Nothing is due before,
    /// and after a tick that left nothing to do it is later than the time of that tick.
    ///
    /// A worker that puts a peer's deadline off does not tell. So something may no longer be due by
    /// then: that costs one look at the peer, and finds the deadline that it really has.
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

    /// A timestamp for an initiation. Says once, not for each peer, that there is none to be had.
    fn stamp(&mut self, wall: WallTime) -> Option<Tai64n> {
        let stamp = self.timestamps.stamp(wall);
        match (&stamp, self.forgetting) {
            (Err(error), false) => tracing::error!(
                %error,
                "no initiation is sent, since its timestamp cannot be put on disk"
            ),
            (Ok(_), true) => tracing::info!("timestamps can be put on disk again"),
            _ => {}
        }
        self.forgetting = stamp.is_err();
        stamp.ok()
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
                Some(Action::RetireIndex(index)) => self.indices.retire(index, peer),
                Some(Action::StagedPurged(packets)) => {
                    self.drops
                        .count(Reason::OutStagedExpired, u64::from(packets));
                }
                Some(Action::Flush) => self.flush(control, peer, now, edges),
                Some(Action::SendKeepalive(permit)) => {
                    self.send_keepalive(control, peer, &permit, edges);
                }
                Some(Action::Initiate) => {
                    if let Some(stamp) = control.stamp(wall) {
                        self.initiate(peer, stamp, &mut control.out, now, edges);
                    }
                }
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
            sealer.finish(&mut control.out);
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
        sealer.finish(&mut control.out);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tracing::span;
    use warren_config::{DeviceChange, PeerChange, PrivateKey, PublicKey};
    use warren_packet::vnet;

    use super::*;
    use crate::router::Entropy;

    #[test]
    fn that_timestamps_cannot_be_put_on_disk_is_said_once_and_not_for_each_peer() {
        let router = Router::new(1420, Box::new(|| {}), Box::new(Zeros));
        let endpoint = "192.0.2.1:1".parse().expect("an address");
        let peers = (1..=9).map(|n| PeerChange {
            endpoints: Some(vec![endpoint]),
            persistent_keepalive: Some(25),
            ..PeerChange::new(PublicKey::from_bytes([n; 32]))
        });
        let change = DeviceChange {
            private_key: Some(Some(PrivateKey::from_bytes([1; 32]))),
            peers: peers.collect(),
            ..DeviceChange::default()
        };
        let start = Instant::from_nanos(1_000_000_000);
        router.apply(&change, start);
        let full_disk = |_| Err(std::io::ErrorKind::StorageFull.into());
        let mut control = Control::new(Timestamps::resume(Tai64n::ZERO, Box::new(full_disk)));
        let lines = Lines::default();
        let counted = Arc::clone(&lines.0);
        tracing::subscriber::with_default(lines, || {
            for seconds in 0..10 {
                let now = start + Duration::from_secs(seconds);
                router.tick(
                    &mut control,
                    now,
                    WallTime(Duration::from_secs(1)),
                    &mut Nowhere,
                );
            }
        });
        assert_eq!(counted.load(Ordering::Relaxed), 1);
    }

    struct Zeros;

    impl Entropy for Zeros {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill(0);
        }
    }

    struct Nowhere;

    impl Edges for Nowhere {
        fn transmit(&mut self, _: &mut SendBatch) {
            unreachable!("no initiation is made");
        }

        fn deliver(&mut self, _: &vnet::Header, _: &[u8], _: &[Range<usize>]) {
            unreachable!("nothing arrives");
        }
    }

    /// Counts what is logged.
    #[derive(Default)]
    struct Lines(Arc<AtomicUsize>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }
}
