//! Hours on a bad line: loss, duplication, reordering, outages, late polls, nodes that move and
//! handshakes that cross. Whatever happened, a line that is good again carries packets.

use std::collections::BTreeSet;

use crate::util::*;

/// Previous, current and next, and an initiation in flight.
const MOST_INDICES: usize = 4;

#[test]
fn whatever_happened_a_good_line_carries_packets_again() {
    for seed in 0..24 {
        let mut soak = Soak::new(seed);
        for _ in 0..400 {
            soak.step();
        }
        soak.heal();
    }
}

struct Soak {
    pair: Pair,
    random: Random,
    seed: u64,
    packets: u32,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut pair = Pair::new();
        pair.bob.peer.set_endpoints(vec![ALICE]);
        if seed.is_multiple_of(3) {
            pair.bob.peer.set_persistent_keepalive(25, pair.now);
        }
        Self {
            pair,
            random: Random(seed),
            seed,
            packets: 0,
        }
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.random.next().is_multiple_of(times)
    }

    fn step(&mut self) {
        if self.one_in(2) {
            self.send(true);
        }
        if self.one_in(2) {
            self.send(false);
        }
        if self.one_in(40) {
            self.pair.alice.peer.rekey(self.pair.now);
        }
        if self.one_in(40) {
            self.pair.bob.peer.rekey(self.pair.now);
        }
        if self.one_in(60) {
            let host = 10 + (self.random.next() % 3) as u8;
            self.pair.bob.addr = addr(host);
        }
        if self.one_in(60) {
            let state = self.pair.alice.peer.export();
            self.pair.alice.take_over(&state);
        }
        if self.one_in(80) {
            self.pair.bob.peer.expire_sessions();
        }
        self.pair.poll();
        self.carry();
        let wait = match self.random.next() % 20 {
            0 => secs(self.random.next() % 400),
            1..5 => secs(self.random.next() % 12),
            _ => millis(self.random.next() % 500),
        };
        self.pair.sleep(wait);
        self.check();
    }

    fn send(&mut self, alice: bool) {
        self.packets += 1;
        let packet = self.packets.to_le_bytes();
        if alice {
            self.pair.alice_sends(&packet);
        } else {
            self.pair.bob_sends(&packet);
        }
    }

    /// Does to what is on the wire what networks do.
    fn carry(&mut self) {
        for _ in 0..8 {
            if self.pair.wire.is_empty() {
                return;
            }
            let at = self.random.next() as usize % self.pair.wire.len();
            let datagram = self.pair.wire.remove(at).expect("in range");
            match self.random.next() % 10 {
                0..3 => {} // lost
                3 => {
                    self.pair.deliver(&datagram);
                    self.pair.deliver(&datagram);
                }
                4 => self.pair.wire.push_back(datagram), // delayed
                _ => self.pair.deliver(&datagram),
            }
        }
        self.pair.wire.truncate(8);
    }

    fn check(&self) {
        for node in [&self.pair.alice, &self.pair.bob] {
            assert!(node.indices() <= MOST_INDICES, "seed {}", self.seed);
            let deadline = node.peer.next_deadline();
            assert!(
                deadline.is_none_or(|at| at > self.pair.now),
                "seed {}",
                self.seed
            );
            let distinct: BTreeSet<_> = node.delivered.iter().collect();
            assert_eq!(distinct.len(), node.delivered.len(), "seed {}", self.seed);
        }
    }

    /// The line is good from now on. Both sides are at most a retry and a rotation of endpoints
    /// away from each other.
    fn heal(&mut self) {
        self.pair.wire.clear();
        self.pair.bob.addr = BOB;
        for node in [&mut self.pair.alice, &mut self.pair.bob] {
            node.delivered.clear();
        }
        for _ in 0..10 {
            self.pair.advance(secs(5));
            self.send(true);
            self.send(false);
        }
        self.pair.settle();
        self.check();
        let last = self.packets;
        let seed = self.seed;
        let expected = |packet: u32| packet.to_le_bytes().to_vec();
        assert!(
            self.pair.bob.delivered.contains(&expected(last - 1)),
            "seed {seed}"
        );
        assert!(
            self.pair.alice.delivered.contains(&expected(last)),
            "seed {seed}"
        );
    }
}
