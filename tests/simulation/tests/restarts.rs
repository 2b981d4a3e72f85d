//! What starts among thousands cost one node: who calls whom and when is the roster's, the rest the router's.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use warren_config::PublicKey;
use warren_mesh::{Candidate, NodeName, RESOLVE_AGAIN_SECS, Roster};
use warren_tests_simulation::node::{Batches, Done, flight, wall};
use warren_tests_simulation::wire::Flight;
use warren_tests_simulation::{Node, Random};
use warren_wireguard::time::Instant;

/// Nodes besides the one that is looked at.
const NODES: usize = 5000;
/// The one that is looked at.
const HUB: usize = 0;
/// Between two looks at who has something to do.
const STEP: Duration = Duration::from_millis(100);
/// A daemon looks at all its peers this often, and otherwise at those whose time has come.
const TICK: Duration = Duration::from_secs(RESOLVE_AGAIN_SECS);
/// How long an epoch is on its way to everybody.
const HEARD: Duration = Duration::from_secs(2);
/// The node that starts may call 64 at once and 100 in a second, and the others, of whom each takes its turn
/// within so many hundredths of a second as there are nodes, call it as often.
const IN_SECOND: u32 = 64 + 100 + 100;
/// By then each of them has had its turn.
const TURNS: Duration = Duration::from_millis(10 * NODES as u64);

/// BEHAVIOURS 48: calls are paced by whoever starts, and spread by whoever is called by nobody.
#[test]
#[ignore = "half a minute of a core that is idle"]
fn one_start_among_thousands_costs_a_handshake_with_each_and_no_more_than_so_many_a_second() {
    let mut world = World::new(30);
    world.until_ready(Duration::from_secs(120));
    world.run_for(Duration::from_secs(5));
    let quiet = world.begin();
    world.restart(HUB, |peer| peer % 10 == 0);
    world.run_for(HEARD);
    world.hear();
    world.until_ready(Duration::from_secs(120));
    world.run_for(TURNS + Duration::from_secs(10));
    let cost = world.end(&quiet);
    eprintln!("one start among {NODES}: {cost:?}");
    assert!(cost.handshakes >= NODES as u32, "{cost:?}");
    assert!(cost.handshakes <= NODES as u32 * 11 / 10, "{cost:?}");
    assert!(cost.handshakes_in_second <= IN_SECOND, "{cost:?}");
    assert!(cost.datagrams <= 4 * u64::from(cost.handshakes), "{cost:?}");
}

/// A tenth of all at a time, as `maxUnavailable: 10%` does it at its fastest.
#[test]
#[ignore = "half a minute of a core that is idle"]
fn a_rolling_restart_of_thousands_costs_each_node_no_more_than_one_handshake_for_each_start() {
    let mut world = World::new(31);
    world.until_ready(Duration::from_secs(120));
    world.run_for(Duration::from_secs(5));
    let quiet = world.begin();
    let nodes: Vec<usize> = (1..=NODES).collect();
    for tenth in nodes.chunks(NODES / 10) {
        for &node in tenth {
            // One in twenty had traffic with the hub.
            world.restart(node, |_| node % 20 == 0);
        }
        world.run_for(HEARD);
        world.hear();
        world.run_for(Duration::from_secs(8));
    }
    world.until_ready(Duration::from_secs(120));
    world.run_for(TURNS + Duration::from_secs(10));
    let cost = world.end(&quiet);
    eprintln!("a rolling restart of {NODES}: {cost:?}");
    assert!(cost.handshakes >= NODES as u32, "{cost:?}");
    assert!(cost.handshakes <= NODES as u32 * 5 / 4, "{cost:?}");
    assert!(cost.handshakes_in_second <= IN_SECOND, "{cost:?}");
    assert!(cost.datagrams <= 4 * u64::from(cost.handshakes), "{cost:?}");
}

/// What a time has cost the hub.
#[derive(Debug)]
#[expect(dead_code, reason = "it is shown whole")]
struct Cost {
    /// Initiations that it sent or received.
    handshakes: u32,
    /// Of these, in the second that had most.
    handshakes_in_second: u32,
    /// All that it sent or received.
    datagrams: u64,
    /// Processor time of its router and its roster.
    cpu: Duration,
    /// Simulated.
    time: Duration,
}

/// The hub and its peers, which know nobody but it, on a network without delay.
struct World {
    nodes: Vec<Node>,
    /// What they are called, and their keys.
    names: Vec<(NodeName, PublicKey)>,
    rosters: Vec<Roster>,
    epochs: Vec<i64>,
    /// Those whose newest start the others have not heard of.
    unheard: BTreeSet<usize>,
    /// When each looks at those of its peers whose time has come.
    glances: Vec<Option<Duration>>,
    /// When each looks at all of them.
    looks: Vec<Duration>,
    at: HashMap<SocketAddr, usize>,
    now: Instant,
    wire: VecDeque<Flight>,
    batches: Batches,
    ready: usize,
    /// Of the hub, by second.
    initiations: BTreeMap<u64, u32>,
    datagrams: u64,
    cpu: Duration,
}

/// What was spent before.
struct Before {
    second: u64,
    datagrams: u64,
    cpu: Duration,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut nodes: Vec<Node> = (0..=NODES)
            .map(|number| Node::new(u16::try_from(number).expect("few enough"), random.fork()))
            .collect();
        let now = Instant::from_nanos(1_000_000_000);
        let hub = nodes[HUB].as_peer();
        let peers: Vec<_> = nodes[1..].iter().map(Node::as_peer).collect();
        nodes[HUB].set_peers(peers, now);
        for node in &mut nodes[1..] {
            node.set_peers([hub.clone()], now);
        }
        let at = nodes.iter().map(|node| node.address).zip(0..).collect();
        let mut world = Self {
            rosters: (0..=NODES as u64).map(Roster::new).collect(),
            epochs: vec![1; NODES + 1],
            unheard: BTreeSet::new(),
            glances: vec![None; NODES + 1],
            looks: vec![Duration::ZERO; NODES + 1],
            names: (0..)
                .zip(&nodes)
                .map(|(number, node)| {
                    let name = format!("n{number}").parse().expect("a name");
                    (name, node.public())
                })
                .collect(),
            nodes,
            at,
            now,
            wire: VecDeque::new(),
            batches: Batches::new(),
            ready: 0,
            initiations: BTreeMap::new(),
            datagrams: 0,
            cpu: Duration::ZERO,
        };
        (0..=NODES).for_each(|node| world.start(node, &|_| false));
        world
    }

    /// A daemon dies, and the next one starts. `spoke_with`: with whom it had traffic.
    fn restart(&mut self, node: usize, spoke_with: impl Fn(usize) -> bool) {
        self.nodes[node].restart(self.now);
        self.epochs[node] += 1;
        self.rosters[node] = Roster::new((node as u64) << 32 | self.epochs[node].unsigned_abs());
        self.unheard.insert(node);
        self.start(node, &spoke_with);
    }

    /// All hear of the newest start of their peers: a change of these alone.
    fn hear(&mut self) {
        for started in std::mem::take(&mut self.unheard) {
            let told = if started == HUB { 1..=NODES } else { HUB..=HUB };
            for node in told {
                let candidate = self.candidate(started, false);
                let before = cpu_time();
                let now = self.time();
                self.rosters[node].set(candidate, NODES + 1, now);
                self.spent(node, before);
                self.glances[node] = Some(now);
            }
        }
    }

    /// A daemon that starts plans all, and looks at all.
    fn start(&mut self, node: usize, first: &dyn Fn(usize) -> bool) {
        let peers = if node == HUB { 1..=NODES } else { HUB..=HUB };
        let peers: Vec<_> = peers
            .map(|peer| self.candidate(peer, first(peer)))
            .collect();
        let now = self.time();
        self.rosters[node].update(peers, NODES + 1, now);
        self.looks[node] = now;
    }

    fn candidate(&self, peer: usize, first: bool) -> Candidate {
        let (name, public_key) = self.names[peer].clone();
        Candidate {
            name,
            public_key,
            epoch: Some(self.epochs[peer]),
            first,
        }
    }

    /// Since the beginning of all time.
    fn time(&self) -> Duration {
        Duration::from_nanos(self.now.as_nanos())
    }

    /// Until the hub has reached all.
    fn until_ready(&mut self, at_most: Duration) {
        let end = self.time() + at_most;
        loop {
            self.step();
            if self.ready == NODES {
                return;
            }
            assert!(self.time() < end, "{} of {NODES} are ready", self.ready);
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.time() + duration;
        while self.time() < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now = self.now + STEP;
        for node in 0..self.nodes.len() {
            self.look(node);
            self.tick(node);
        }
        while let Some(flight) = self.wire.pop_front() {
            let Some(&to) = self.at.get(&flight.to) else {
                continue;
            };
            let local = self.nodes[to].local();
            assert!(self.batches.push_received(&flight, local));
            let before = cpu_time();
            let done = self.nodes[to].inbound(&mut self.batches, self.now);
            self.spent(to, before);
            self.carry_out(to, &done);
            self.tick(to);
        }
    }

    fn look(&mut self, node: usize) {
        let (now, wall) = (self.time(), wall(self.now));
        let is_all = self.looks[node] <= now;
        if !is_all && self.glances[node].is_none_or(|at| at > now) {
            return;
        }
        let before = cpu_time();
        let router = &self.nodes[node].router;
        let roster = &mut self.rosters[node];
        let (calls, next) = if is_all {
            let seen = roster.look(&router.status(self.now, wall), wall, now);
            (seen.calls, seen.next)
        } else {
            let status = |key: &PublicKey| router.peer_status(key, self.now, wall);
            let glance = roster.glance(status, wall, now);
            (glance.calls, glance.next)
        };
        router.rekey(&calls, self.now);
        self.spent(node, before);
        self.glances[node] = next;
        if is_all {
            self.looks[node] = now + TICK;
        }
        if node == HUB {
            self.ready = self.rosters[HUB].ready().len();
        }
    }

    fn tick(&mut self, node: usize) {
        if self.nodes[node].is_due(self.now) {
            let before = cpu_time();
            let done = self.nodes[node].tick(self.now);
            self.spent(node, before);
            self.carry_out(node, &done);
        }
    }

    fn spent(&mut self, node: usize, before: Duration) {
        if node == HUB {
            self.cpu += cpu_time() - before;
        }
    }

    fn carry_out(&mut self, from: usize, done: &Done) {
        let address = self.nodes[from].address;
        let second = self.time().as_secs();
        for (transmit, bytes) in done.datagrams() {
            if from == HUB || self.at.get(&transmit.remote) == Some(&HUB) {
                self.datagrams += 1;
                // Type 1 is an initiation.
                let is_initiation = bytes.first() == Some(&1);
                *self.initiations.entry(second).or_default() += u32::from(is_initiation);
            }
            self.wire.push_back(flight(address, transmit.remote, bytes));
        }
    }

    fn begin(&self) -> Before {
        Before {
            second: self.time().as_secs(),
            datagrams: self.datagrams,
            cpu: self.cpu,
        }
    }

    fn end(&self, before: &Before) -> Cost {
        let since = self.initiations.range(before.second..);
        let since: Vec<u32> = since.map(|(_, count)| *count).collect();
        Cost {
            handshakes: since.iter().sum(),
            handshakes_in_second: since.into_iter().max().unwrap_or(0),
            datagrams: self.datagrams - before.datagrams,
            cpu: self.cpu - before.cpu,
            time: self.time() - Duration::from_secs(before.second),
        }
    }
}

/// Processor time of this thread so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
