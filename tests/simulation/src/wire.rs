//! The network between nodes: what it does to datagrams is chance, from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use warren_packet::Ecn;
use warren_wireguard::time::Instant;

use crate::random::Random;

/// What the network does to datagrams. Chances are in a thousand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// Datagrams that never arrive.
    pub loss: u64,
    /// Datagrams that arrive twice.
    pub duplication: u64,
    /// Datagrams of which a bit is flipped.
    pub damage: u64,
    /// How long a datagram takes. A range that is not empty reorders.
    pub delay: Range<Duration>,
}

impl Conditions {
    /// Everything arrives, once and in order, after 10 ms.
    pub const CLEAN: Self = Self {
        loss: 0,
        duplication: 0,
        damage: 0,
        delay: Duration::from_millis(10)..Duration::from_millis(10),
    };

    /// Whether datagrams arrive in the order in which they were sent.
    pub fn keep_order(&self) -> bool {
        self.delay.is_empty() && self.duplication == 0
    }
}

/// A datagram under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// Where it was sent from.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: SocketAddr,
    /// Its outer mark.
    pub ecn: Ecn,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// Everything between the nodes.
#[derive(Debug)]
pub struct Wire {
    /// What happens to datagrams that are sent from now on.
    pub conditions: Conditions,
    /// Initiations that were sent, by who sent them.
    pub initiations: BTreeMap<SocketAddr, u64>,
    /// A digest of everything that was sent and when.
    pub digest: u64,
    /// Datagrams that were sent.
    pub sent: u64,
    cut: BTreeSet<SocketAddr>,
    flights: BTreeMap<(Instant, u64), Flight>,
    random: Random,
}

impl Wire {
    /// A clean network.
    pub fn new(random: Random) -> Self {
        Self {
            conditions: Conditions::CLEAN,
            initiations: BTreeMap::new(),
            digest: 0,
            sent: 0,
            cut: BTreeSet::new(),
            flights: BTreeMap::new(),
            random,
        }
    }

    /// From now on these addresses reach each other, and all others reach each other, but no one
    /// from the one side the other. Datagrams under way arrive.
    pub fn partition(&mut self, side: impl IntoIterator<Item = SocketAddr>) {
        self.cut = side.into_iter().collect();
    }

    /// Everybody reaches everybody.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Takes a datagram on its way.
    pub fn send(&mut self, flight: &Flight, now: Instant) {
        self.observe(flight, now);
        if self.cut.contains(&flight.from) != self.cut.contains(&flight.to)
            || self.random.permille(self.conditions.loss)
        {
            return;
        }
        let copies = 1 + u64::from(self.random.permille(self.conditions.duplication));
        for _ in 0..copies {
            let mut copy = flight.clone();
            if self.random.permille(self.conditions.damage) && !copy.bytes.is_empty() {
                let at = self.random.index(copy.bytes.len());
                copy.bytes[at] ^= 1 << self.random.index(8);
            }
            let at = now + self.random.duration(&self.conditions.delay);
            let serial = self.random.next() >> 48 | self.sent << 16;
            self.flights.insert((at, serial), copy);
        }
    }

    /// When the next datagram arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.flights.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next datagram that has arrived.
    pub fn arrived(&mut self, now: Instant) -> Option<Flight> {
        let first = self.flights.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn observe(&mut self, flight: &Flight, now: Instant) {
        self.sent += 1;
        if flight.bytes.first() == Some(&1) {
            *self.initiations.entry(flight.from).or_default() += 1;
        }
        let mut mix = |value: u64| {
            self.digest = (self.digest ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        };
        mix(now.as_nanos());
        mix(u64::from(flight.from.port()) << 16 | u64::from(flight.to.port()));
        for chunk in flight.bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(u64::from_le_bytes(word));
        }
    }
}
