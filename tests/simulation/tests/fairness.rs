//! Control does some of everything, and nothing for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use warren_config::{AllowedIpChange, DeviceChange, PeerChange, PrivateKey, PublicKey};
use warren_engine::{Control, Entropy, Outbound, Router, Timestamps};
use warren_tests_simulation::node::{Batches, Done, Node, flight, wall};
use warren_tests_simulation::packet::{self, Flow};
use warren_tests_simulation::{Insider, Random};
use warren_wireguard::messages::{self, Handshake, Message};
use warren_wireguard::time::{Instant, Tai64n};
use warren_wireguard::{Identity, open_initiation};

const START: Instant = Instant::from_nanos(1_000_000_000);

fn everything_behind(peer: PublicKey) -> PeerChange {
    PeerChange {
        endpoints: Some(vec![SocketAddr::from(([198, 51, 100, 1], 4000))]),
        allowed_ips: vec![AllowedIpChange::Add(
            "10.9.0.0/16".parse().expect("a prefix"),
        )],
        ..PeerChange::new(peer)
    }
}

/// The host sends a packet to the peer of [`everything_behind`].
fn send_one(node: &mut Node, batches: &mut Batches, now: Instant) -> Done {
    push_one(batches);
    node.outbound(batches, now)
}

fn push_one(batches: &mut Batches) {
    let flow = Flow {
        source: "10.0.1.1".parse().expect("an address"),
        destination: "10.9.0.1".parse().expect("an address"),
        number: 0,
    };
    let (header, packet) = packet::build(flow, 1, 1, 100);
    batches.push_read(header, &packet);
}

fn arrive(node: &mut Node, batches: &mut Batches, from: SocketAddr, bytes: &[u8], now: Instant) {
    let local = node.local();
    assert!(batches.push_received(&flight(from, node.address, bytes), local));
    node.inbound(batches, now);
}

#[test]
fn thousands_of_peers_that_are_due_at_once_keep_no_call_waiting() {
    let mut random = Random::new(1);
    let mut node = Node::new(1, random.fork());
    let mut batches = Batches::new();
    let address = SocketAddr::from(([198, 51, 100, 1], 4000));
    let mut caller = Insider::new(address, &node.public(), random.fork());
    let silent: Vec<_> = (0..2000)
        .map(|_| PeerChange {
            endpoints: Some(vec![SocketAddr::from(([192, 0, 2, 1], 1))]),
            persistent_keepalive: Some(25),
            ..PeerChange::new(PublicKey::from_bytes(random.key()))
        })
        .collect();
    node.set_peers([PeerChange::new(caller.public())], START);
    node.set_peers(silent, START);

    // The call comes while control is busy with them.
    let mut done = Done::default();
    assert!(
        node.router
            .tick(&mut node.control, START, wall(START), &mut done)
    );
    let initiation = caller.initiation(START);
    arrive(&mut node, &mut batches, address, &initiation, START);
    assert!(
        node.router
            .tick(&mut node.control, START, wall(START), &mut done)
    );

    let kinds: Vec<_> = done.datagrams().map(|(_, bytes)| bytes[0]).collect();
    assert!(kinds.contains(&2), "the response is among the first");
    assert!(kinds.len() < 200, "{} messages in two turns", kinds.len());
    let rest = node.tick(START);
    let calls = rest.datagrams().chain(done.datagrams());
    assert_eq!(calls.filter(|(_, bytes)| bytes[0] == 1).count(), 2000);
}

#[test]
fn a_deadline_of_a_peer_that_was_removed_is_forgotten() {
    let mut random = Random::new(2);
    let mut node = Node::new(1, random.fork());
    let key = PublicKey::from_bytes(random.key());
    let peer = PeerChange {
        persistent_keepalive: Some(u16::MAX),
        ..PeerChange::new(key)
    };
    node.set_peers([peer], START);
    node.tick(START);
    assert!(node.control.next_deadline().is_some());
    let removed = PeerChange {
        remove: true,
        ..PeerChange::new(key)
    };
    node.set_peers([removed], START);
    node.tick(START);
    assert_eq!(node.control.next_deadline(), None);
}

#[test]
fn a_replayed_packet_does_not_count_as_received() {
    let mut random = Random::new(3);
    let mut node = Node::new(1, random.fork());
    let mut batches = Batches::new();
    let address = SocketAddr::from(([198, 51, 100, 1], 4000));
    let mut peer = Insider::new(address, &node.public(), random.fork());
    node.set_peers([everything_behind(peer.public())], START);
    let initiation = peer.initiation(START);
    arrive(&mut node, &mut batches, address, &initiation, START);
    let response = node.tick(START);
    let response = response.datagrams().next().expect("a response").1.to_vec();
    peer.response(&response, START);

    let keepalive = peer.seal(&[]);
    let mut received = || {
        arrive(&mut node, &mut batches, address, &keepalive, START);
        let status = node.router.status(START, wall(START));
        status.peers[&peer.public()].rx_bytes
    };
    let once = received();
    assert_eq!(once, 148 + 32);
    assert_eq!(received(), once);
}

#[test]
fn while_timestamps_cannot_be_remembered_packets_do_not_ask_for_each_of_them() {
    let mut random = Random::new(4);
    let mut node = Node::new(1, random.fork());
    let mut batches = Batches::new();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let full_disk = move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Err(io::ErrorKind::StorageFull.into())
    };
    node.control = Control::new(Timestamps::resume(Tai64n::ZERO, Box::new(full_disk)));
    node.set_peers(
        [everything_behind(PublicKey::from_bytes(random.key()))],
        START,
    );

    for _ in 0..100 {
        assert!(send_one(&mut node, &mut batches, START).sent.is_empty());
        node.tick(START);
    }
    assert_eq!(attempts.load(Ordering::Relaxed), 1);

    let later = START + Duration::from_secs(6);
    node.tick(later);
    assert_eq!(attempts.load(Ordering::Relaxed), 2, "it is tried again");
}

#[test]
fn a_key_that_was_missing_is_used_at_once() {
    let mut random = Random::new(5);
    let mut node = Node::new(1, random.fork());
    let mut batches = Batches::new();
    let key = node.key.clone();
    let set = |key| DeviceChange {
        private_key: Some(key),
        ..DeviceChange::default()
    };
    node.apply(&set(None), START);
    node.set_peers(
        [everything_behind(PublicKey::from_bytes(random.key()))],
        START,
    );
    send_one(&mut node, &mut batches, START);
    assert!(node.tick(START).sent.is_empty());

    node.apply(&set(Some(key)), START);
    send_one(&mut node, &mut batches, START);
    assert_eq!(node.tick(START).datagrams().count(), 1);
}

type Happening = Box<dyn FnOnce() + Send>;

/// Random bytes, and something that happens when so many have been asked for at once.
struct Interrupted {
    random: Random,
    at: usize,
    then: Arc<Mutex<Option<Happening>>>,
}

impl Entropy for Interrupted {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.random.fill(bytes);
        if bytes.len() == self.at
            && let Some(then) = self.then.lock().expect("nobody panicked").take()
        {
            then();
        }
    }
}

#[test]
fn an_initiation_that_a_change_of_key_overtakes_is_made_anew_at_once() {
    let mut random = Random::new(6);
    let then = Arc::default();
    let entropy = Interrupted {
        random: random.fork(),
        // The ephemeral key of the initiation.
        at: 32,
        then: Arc::clone(&then),
    };
    let router = Arc::new(Router::new(1420, Box::new(|| {}), Box::new(entropy)));
    let [old, new, theirs] = [(); 3].map(|()| PrivateKey::from_bytes(random.key()));
    let set = |key: &PrivateKey| DeviceChange {
        private_key: Some(Some(key.clone())),
        ..DeviceChange::default()
    };
    router.apply(&set(&old), START);
    let peer = PeerChange {
        persistent_keepalive: Some(25),
        ..everything_behind(theirs.public())
    };
    let peers = DeviceChange {
        peers: vec![peer],
        ..DeviceChange::default()
    };
    router.apply(&peers, START);
    let (changed, change) = (Arc::clone(&router), set(&new));
    *then.lock().expect("nobody panicked") = Some(Box::new(move || changed.apply(&change, START)));

    let mut control = Control::new(Timestamps::forgetful());
    let mut done = Done::default();
    while router.tick(&mut control, START, wall(START), &mut done) {}
    let sent: Vec<_> = done.datagrams().map(|(_, bytes)| bytes.to_vec()).collect();
    assert_eq!(sent.len(), 1);
    let Ok(Message::Handshake(Handshake::Initiation(initiation))) = messages::parse(&sent[0])
    else {
        panic!("it is an initiation");
    };
    let from = open_initiation(&Identity::new(theirs), initiation).expect("it is for them");
    assert_eq!(from.static_key(), &new.public());
}

#[test]
fn control_is_woken_when_the_peer_is_free_for_it() {
    let mut random = Random::new(7);
    let device: Arc<OnceLock<Weak<Router>>> = Arc::default();
    let woken = Arc::clone(&device);
    let wake = move || {
        let Some(router) = woken.get().and_then(Weak::upgrade) else {
            return;
        };
        let (answer, answered) = mpsc::channel();
        // Locks every peer.
        thread::spawn(move || answer.send(router.status(START, wall(START)).peers.len()));
        let peers = answered.recv_timeout(Duration::from_secs(10));
        assert_eq!(peers.ok(), Some(1), "the peer is locked");
    };
    let router = Arc::new(Router::new(1420, Box::new(wake), Box::new(random.fork())));
    let peers = DeviceChange {
        peers: vec![everything_behind(PublicKey::from_bytes(random.key()))],
        ..DeviceChange::default()
    };
    router.apply(&peers, START);
    device.set(Arc::downgrade(&router)).expect("it was not set");

    let mut batches = Batches::new();
    push_one(&mut batches);
    let mut done = Done::default();
    let Batches { read, send, .. } = &mut batches;
    router.outbound(&mut Outbound::new(), read, send, START, &mut done);
    assert!(done.sent.is_empty(), "an initiation is due");
}
