//! Threads meet in a router, in many orders.
//!
//! Run with `--cfg shuttle`, which `./check races` sets: shuttle then decides at each lock and each
//! atomic who goes on, by chance from a seed.
#![cfg(shuttle)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};
use warren_config::{AllowedIpChange, DeviceChange, PeerChange, PrivateKey};
use warren_engine::{Control, Edges, Inbound, Outbound, Reason, Router, Timestamps};
use warren_packet::batch::{RecvBatch, SendBatch, Source};
use warren_packet::vnet;
use warren_tests_simulation::node::{Batches, MERGE, MTU, flight, wall};
use warren_tests_simulation::packet::{self, Flow};
use warren_tests_simulation::{Insider, Random};
use warren_wireguard::time::Instant;

const HERE: &str = "192.0.2.1:51820";
/// Orders that are tried of each kind.
const ORDERS: usize = 400;

/// Runs a story in many orders: some at random, some with few changes between threads, each at the
/// worst place that chance finds.
fn explore(story: fn()) {
    let config = || {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        config
    };
    Runner::new(RandomScheduler::new_from_seed(1, ORDERS), config()).run(story);
    Runner::new(PctScheduler::new_from_seed(2, 3, ORDERS), config()).run(story);
}

/// A router that threads share.
#[derive(Clone)]
struct Device {
    router: Arc<Router>,
    woken: Arc<AtomicBool>,
    wire: Wire,
    now: Instant,
}

/// What was sent by any thread, in the order in which it was.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Vec<Sent>>>);

/// Where to, and what.
type Sent = (SocketAddr, Vec<u8>);

/// One thread's way out and in.
struct Ends {
    wire: Wire,
    delivered: Vec<Vec<u8>>,
}

impl Edges for Ends {
    fn transmit(&mut self, batch: &mut SendBatch) {
        for transmit in batch.transmits.drain(..) {
            for range in transmit.datagrams() {
                let bytes = batch.arena[range].to_vec();
                self.wire.lock().push((transmit.remote, bytes));
            }
        }
    }

    fn deliver(&mut self, header: &vnet::Header, arena: &[u8], pieces: &[Range<usize>]) {
        let whole: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| &arena[piece.clone()])
            .copied()
            .collect();
        self.delivered.extend(packet::cut(*header, &whole));
    }
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Vec<Sent>> {
        self.0.lock().expect("nobody panics while holding it")
    }

    /// What was sent of a type of messages.
    fn of(&self, kind: u8) -> Vec<Sent> {
        let all = self.lock();
        all.iter()
            .filter(|(_, bytes)| bytes[0] == kind)
            .cloned()
            .collect()
    }
}

impl Device {
    fn new() -> Self {
        let woken = Arc::new(AtomicBool::new(false));
        let wake = Arc::clone(&woken);
        let router = Router::new(
            MTU,
            Box::new(move || wake.store(true, Ordering::Relaxed)),
            Box::new(Random::new(1)),
        );
        let device = Self {
            router: Arc::new(router),
            woken,
            wire: Wire::default(),
            now: Instant::from_nanos(1_000_000_000),
        };
        device.set_key(1);
        device
    }

    fn set_key(&self, key: u8) {
        let change = DeviceChange {
            private_key: Some(Some(PrivateKey::from_bytes([key; 32]))),
            ..DeviceChange::default()
        };
        self.router.apply(&change, self.now);
    }

    fn peer(&self, host: u8) -> Insider {
        let address = SocketAddr::from(([198, 51, 100, host], 4000));
        let public = PrivateKey::from_bytes([1; 32]).public();
        Insider::new(address, &public, Random::new(u64::from(host)))
    }

    /// The peer has 10.9.0.0/16 from now on.
    fn add(&self, peer: &Insider) {
        self.change(PeerChange {
            endpoints: Some(vec![peer.address]),
            allowed_ips: vec![AllowedIpChange::Add(
                "10.9.0.0/16".parse().expect("a prefix"),
            )],
            ..PeerChange::new(peer.public())
        });
    }

    fn remove(&self, peer: &Insider) {
        self.change(PeerChange {
            remove: true,
            ..PeerChange::new(peer.public())
        });
    }

    fn change(&self, peer: PeerChange) {
        let change = DeviceChange {
            peers: vec![peer],
            ..DeviceChange::default()
        };
        self.router.apply(&change, self.now);
    }

    fn ends(&self) -> Ends {
        Ends {
            wire: self.wire.clone(),
            delivered: Vec::new(),
        }
    }

    /// A host sends one packet of a flow.
    fn leave(&self, outbound: &mut Outbound, number: u16, id: u64) {
        let (header, bytes) = packet::build(flow(number), id, 1, 40);
        let mut batches = Batches::new();
        batches.push_read(header, &bytes);
        self.router.outbound(
            outbound,
            &batches.read,
            &mut batches.send,
            self.now,
            &mut self.ends(),
        );
    }

    /// A datagram arrives. Answers what is delivered of it.
    fn arrive(&self, inbound: &mut Inbound, from: SocketAddr, bytes: &[u8]) -> Vec<Vec<u8>> {
        let here: SocketAddr = HERE.parse().expect("an address");
        let local = Source {
            ip: here.ip(),
            interface: 1,
        };
        let mut batches = Batches {
            recv: RecvBatch::new(1),
            ..Batches::new()
        };
        assert!(batches.push_received(&flight(from, here, bytes), local));
        let mut ends = self.ends();
        self.router.inbound(
            inbound,
            &mut batches.recv,
            &mut batches.send,
            self.now,
            &mut ends,
        );
        ends.delivered
    }

    /// Control does what it was woken for.
    fn control(&self, control: &mut Control) {
        while self.woken.swap(false, Ordering::Relaxed) {
            let mut ends = self.ends();
            while self
                .router
                .tick(control, self.now, wall(self.now), &mut ends)
            {}
        }
    }

    /// Control as a thread: it looks again and again, for a while.
    fn spawn_control(&self, mut control: Control) -> thread::JoinHandle<Control> {
        let device = self.clone();
        thread::spawn(move || {
            for _ in 0..10 {
                device.control(&mut control);
                thread::yield_now();
            }
            control
        })
    }

    /// The peer and this device agree on a session that the peer has not yet confirmed.
    fn shake_hands(&self, control: &mut Control, peer: &mut Insider) {
        let before = self.wire.of(2).len();
        let initiation = peer.initiation(self.now);
        self.arrive(&mut inbound(), peer.address, &initiation);
        self.control(control);
        let (_, response) = self.wire.of(2).remove(before);
        peer.response(&response, self.now);
    }

    fn session(&self, control: &mut Control, peer: &mut Insider) {
        self.shake_hands(control, peer);
        let keepalive = peer.seal(&[]);
        self.arrive(&mut inbound(), peer.address, &keepalive);
        self.control(control);
    }
}

fn flow(number: u16) -> Flow {
    Flow {
        source: "10.0.0.1".parse().expect("an address"),
        destination: "10.9.0.1".parse().expect("an address"),
        number,
    }
}

/// What a peer's host sends.
fn answer(id: u64) -> Vec<u8> {
    let Flow {
        source,
        destination,
        number,
    } = flow(0);
    let back = Flow {
        source: destination,
        destination: source,
        number,
    };
    packet::build(back, id, 1, 40).1
}

fn inbound() -> Inbound {
    Inbound::new(MERGE)
}

fn control() -> Control {
    Control::new(Timestamps::forgetful())
}

/// Every data message that was sent to `peer` has a counter of its own; each flow arrives whole and
/// in order.
fn assert_flows(device: &Device, peer: &Insider, flows: Range<u16>, ids: Range<u64>) {
    let mut seen = BTreeSet::new();
    let mut arrived: Vec<Vec<u64>> = flows.clone().map(|_| Vec::new()).collect();
    for (to, bytes) in device.wire.of(4) {
        assert_eq!(to, peer.address);
        assert!(
            seen.insert(bytes[4..16].to_vec()),
            "a counter was used twice"
        );
        let opened = peer.open(&bytes);
        if opened.is_empty() {
            continue;
        }
        let len = usize::from(u16::from_be_bytes([opened[2], opened[3]]));
        let (flow, id) = packet::read(&opened[..len]).expect("a packet of ours");
        arrived[usize::from(flow.number - flows.start)].push(id);
    }
    for flow in arrived {
        assert_eq!(flow, ids.clone().collect::<Vec<_>>());
    }
}

#[test]
fn staged_packets_keep_their_order_while_the_session_comes_up() {
    explore(|| {
        let device = Device::new();
        let mut control = control();
        let mut peer = device.peer(1);
        device.add(&peer);
        device.shake_hands(&mut control, &mut peer);
        for number in 0..2 {
            device.leave(&mut Outbound::new(), number, 0);
        }
        let keepalive = peer.seal(&[]);

        let mut threads = Vec::new();
        for number in 0..2 {
            let device = device.clone();
            threads.push(thread::spawn(move || {
                let mut outbound = Outbound::new();
                for id in 1..5 {
                    device.leave(&mut outbound, number, id);
                }
            }));
        }
        let confirming = device.clone();
        let from = peer.address;
        threads.push(thread::spawn(move || {
            confirming.arrive(&mut inbound(), from, &keepalive);
        }));
        let controlling = device.spawn_control(control);
        for thread in threads {
            thread.join().expect("no panic");
        }
        let mut control = controlling.join().expect("no panic");
        device.control(&mut control);
        assert_flows(&device, &peer, 0..2, 0..5);
    });
}

#[test]
fn counters_are_used_once_and_nothing_is_lost_while_keys_are_renewed() {
    explore(|| {
        let device = Device::new();
        let mut control = control();
        let mut peer = device.peer(1);
        device.add(&peer);
        device.session(&mut control, &mut peer);

        let mut threads = Vec::new();
        for number in 0..2 {
            let device = device.clone();
            threads.push(thread::spawn(move || {
                let mut outbound = Outbound::new();
                for id in 0..5 {
                    device.leave(&mut outbound, number, id);
                }
            }));
        }
        let renewing = Device {
            now: device.now + Duration::from_millis(100),
            ..device.clone()
        };
        let controlling = renewing.spawn_control(control);
        let renewal = thread::spawn(move || {
            let mut inbound = inbound();
            let initiation = peer.initiation(renewing.now);
            renewing.arrive(&mut inbound, peer.address, &initiation);
            for _ in 0..100 {
                if let Some((_, response)) = renewing.wire.of(2).get(1) {
                    peer.response(response, renewing.now);
                    let keepalive = peer.seal(&[]);
                    renewing.arrive(&mut inbound, peer.address, &keepalive);
                    break;
                }
                thread::yield_now();
            }
            peer
        });
        for thread in threads {
            thread.join().expect("no panic");
        }
        let peer = renewal.join().expect("no panic");
        let mut control = controlling.join().expect("no panic");
        device.control(&mut control);
        assert_flows(&device, &peer, 0..2, 0..5);
    });
}

#[test]
fn a_removed_peer_is_heard_no_more_and_its_successor_is_not_taken_for_it() {
    explore(|| {
        let device = Device::new();
        let mut control = control();
        let mut old = device.peer(1);
        let mut new = device.peer(2);
        device.add(&old);
        device.session(&mut control, &mut old);
        let sealed: Vec<_> = (0..5).map(|id| old.seal(&answer(id))).collect();
        let from = old.address;
        // Set when the change is complete.
        let gone = Arc::new(AtomicBool::new(false));

        let mut threads = Vec::new();
        for part in [0..2, 2..4] {
            let (device, gone, sealed) = (device.clone(), gone.clone(), sealed[part].to_vec());
            threads.push(thread::spawn(move || {
                let mut inbound = inbound();
                for bytes in sealed {
                    let before = gone.load(Ordering::Relaxed);
                    let delivered = device.arrive(&mut inbound, from, &bytes);
                    assert!(!before || delivered.is_empty(), "heard after its removal");
                }
            }));
        }
        let sending = (device.clone(), gone.clone());
        threads.push(thread::spawn(move || {
            let (device, gone) = sending;
            let mut outbound = Outbound::new();
            for id in 0..3 {
                let before = gone.load(Ordering::Relaxed);
                let sent = device.wire.of(4).len();
                device.leave(&mut outbound, 0, id);
                let sent = device.wire.of(4).len() - sent;
                assert!(!before || sent == 0, "sent to who was removed");
            }
        }));
        let initiation = new.initiation(device.now);
        let changing = device.clone();
        let (removed, added) = (old, new);
        let change = thread::spawn(move || {
            changing.remove(&removed);
            changing.add(&added);
            gone.store(true, Ordering::Relaxed);
            changing.arrive(&mut inbound(), added.address, &initiation);
            (removed, added)
        });
        let controlling = device.spawn_control(control);
        for thread in threads {
            thread.join().expect("no panic");
        }
        let (old, mut new) = change.join().expect("no panic");
        let mut control = controlling.join().expect("no panic");
        device.control(&mut control);

        // The successor has the place, and its own session.
        let (to, response) = device.wire.of(2).remove(1);
        assert_eq!(to, new.address);
        new.response(&response, device.now);
        let packet = answer(9);
        let sealed_by_new = new.seal(&packet);
        let mut inbound = inbound();
        let delivered = device.arrive(&mut inbound, new.address, &sealed_by_new);
        assert_eq!(delivered, [packet]);
        assert!(
            device
                .arrive(&mut inbound, old.address, &sealed[4])
                .is_empty()
        );
        device.control(&mut control);
        let before = device.wire.of(4).len();
        device.leave(&mut Outbound::new(), 0, 10);
        let (to, bytes) = device.wire.of(4).remove(before);
        assert_eq!(to, new.address);
        new.open(&bytes);
    });
}

#[test]
fn a_packet_that_two_workers_receive_is_delivered_once() {
    explore(|| {
        let device = Device::new();
        let mut control = control();
        let mut peer = device.peer(1);
        device.add(&peer);
        device.session(&mut control, &mut peer);
        let sealed: Vec<_> = (0..4).map(|id| peer.seal(&answer(id))).collect();
        let from = peer.address;
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (device, sealed) = (device.clone(), sealed.clone());
                thread::spawn(move || {
                    let mut inbound = inbound();
                    let arrive = |bytes: &Vec<u8>| device.arrive(&mut inbound, from, bytes);
                    sealed.iter().flat_map(arrive).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut delivered: Vec<u64> = threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no panic"))
            .map(|packet| packet::read(&packet).expect("a packet of ours").1)
            .collect();
        delivered.sort_unstable();
        assert_eq!(delivered, [0, 1, 2, 3]);
        assert!(device.router.drops().contains(&(Reason::InReplayed, 8)));
    });
}

#[test]
fn a_handshake_in_progress_does_not_outlive_who_this_device_was() {
    explore(|| {
        let device = Device::new();
        let control = control();
        let mut peer = device.peer(1);
        device.add(&peer);
        let initiation = peer.initiation(device.now);
        device.arrive(&mut inbound(), peer.address, &initiation);
        let changing = device.clone();
        let change = thread::spawn(move || changing.set_key(2));
        let controlling = device.spawn_control(control);
        change.join().expect("no panic");
        let mut control = controlling.join().expect("no panic");
        device.control(&mut control);

        // Whether or not it was answered: with those keys nothing is sent.
        if let Some((_, response)) = device.wire.of(2).first() {
            peer.response(response, device.now);
            let keepalive = peer.seal(&[]);
            device.arrive(&mut inbound(), peer.address, &keepalive);
            device.control(&mut control);
        }
        device.leave(&mut Outbound::new(), 0, 0);
        device.control(&mut control);
        assert_eq!(device.wire.of(4), []);
    });
}

#[test]
fn what_a_worker_leaves_to_control_is_never_forgotten() {
    explore(|| {
        let device = Device::new();
        let peers: Vec<Insider> = (1..4).map(|host| device.peer(host)).collect();
        for (at, peer) in peers.iter().enumerate() {
            device.change(PeerChange {
                endpoints: Some(vec![peer.address]),
                allowed_ips: vec![AllowedIpChange::Add(
                    format!("10.9.{at}.0/24").parse().expect("a prefix"),
                )],
                ..PeerChange::new(peer.public())
            });
        }
        let controlling = device.spawn_control(control());
        let threads: Vec<_> = (0..3u8)
            .map(|at| {
                let device = device.clone();
                thread::spawn(move || {
                    let to = Flow {
                        destination: [10, 9, at, 1].into(),
                        ..flow(0)
                    };
                    let (header, bytes) = packet::build(to, 0, 1, 40);
                    let mut batches = Batches::new();
                    batches.push_read(header, &bytes);
                    device.router.outbound(
                        &mut Outbound::new(),
                        &batches.read,
                        &mut batches.send,
                        device.now,
                        &mut device.ends(),
                    );
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        let mut control = controlling.join().expect("no panic");
        device.control(&mut control);
        let asked: BTreeSet<_> = device.wire.of(1).into_iter().map(|(to, _)| to).collect();
        assert_eq!(asked.len(), 3);
        assert_eq!(device.wire.of(1).len(), 3);

        // And so is what is due later: the response is late in five seconds.
        for _ in 0..2 {
            let next = control.next_deadline().expect("three retries are due");
            let later = Device {
                now: next + Duration::from_secs(1),
                ..device.clone()
            };
            later.woken.store(true, Ordering::Relaxed);
            later.control(&mut control);
        }
        assert_eq!(device.wire.of(1).len(), 3 * 3);
    });
}
