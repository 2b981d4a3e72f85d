//! What one router does, packet by packet, with peers that keep no rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_config::{AllowedIpChange, DeviceChange, PeerChange, PrivateKey, PublicKey};
use warren_engine::{Outbound, Reason};
use warren_packet::{Ecn, vnet};
use warren_tests_simulation::node::{Batches, Done, Node, flight};
use warren_tests_simulation::packet::{self, Flow};
use warren_tests_simulation::{Insider, Random, for_each_seed, wire::Flight};
use warren_wireguard::messages::{self, Handshake, Message};
use warren_wireguard::time::Instant;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A node, and insiders as its peers.
struct Scene {
    node: Node,
    now: Instant,
    batches: Batches,
    random: Random,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            node: Node::new(1, random.fork()),
            now: Instant::from_nanos(1_000_000_000),
            batches: Batches::new(),
            random,
        }
    }

    /// A peer with these prefixes, without a session.
    fn peer(&mut self, host: u8, prefixes: &[&str]) -> Insider {
        let address = SocketAddr::from(([198, 51, 100, host], 4000));
        let insider = Insider::new(address, &self.node.public(), self.random.fork());
        let peer = PeerChange {
            endpoints: Some(vec![address]),
            allowed_ips: added(prefixes),
            ..PeerChange::new(insider.public())
        };
        self.node.set_peers([peer], self.now);
        insider
    }

    /// A peer with these prefixes, and a session.
    fn session(&mut self, host: u8, prefixes: &[&str]) -> Insider {
        let mut insider = self.peer(host, prefixes);
        self.shake_hands(&mut insider);
        // What confirms the session.
        let keepalive = insider.seal(&[]);
        let done = self.arrive(&insider, &[&keepalive]);
        assert!(done.delivered.is_empty() && done.sent.is_empty());
        insider
    }

    fn shake_hands(&mut self, insider: &mut Insider) {
        let initiation = insider.initiation(self.now);
        self.arrive(insider, &[&initiation]);
        let done = self.tick();
        let response = single(&done, 2);
        insider.response(&response, self.now);
    }

    /// Datagrams arrive from an insider, in one batch.
    fn arrive(&mut self, from: &Insider, datagrams: &[&[u8]]) -> Done {
        self.arrive_from(from.address, datagrams)
    }

    fn arrive_from(&mut self, from: SocketAddr, datagrams: &[&[u8]]) -> Done {
        let flights = datagrams
            .iter()
            .map(|bytes| flight(from, self.node.address, bytes));
        let flights: Vec<_> = flights.collect();
        self.arrive_all(&flights)
    }

    fn arrive_all(&mut self, flights: &[Flight]) -> Done {
        let mut all = Done::default();
        let local = self.node.local();
        for flight in flights {
            if !self.batches.push_received(flight, local) {
                let done = self.node.inbound(&mut self.batches, self.now);
                all.sent.extend(done.sent);
                all.delivered.extend(done.delivered);
                assert!(self.batches.push_received(flight, local));
            }
        }
        let done = self.node.inbound(&mut self.batches, self.now);
        all.sent.extend(done.sent);
        all.delivered.extend(done.delivered);
        all
    }

    /// The host sends packets, in one batch.
    fn leave(&mut self, packets: &[(vnet::Header, Vec<u8>)]) -> Done {
        for (header, packet) in packets {
            self.batches.push_read(*header, packet);
        }
        self.node.outbound(&mut self.batches, self.now)
    }

    fn tick(&mut self) -> Done {
        self.node.tick(self.now)
    }

    /// Lets time pass from deadline to deadline; what is sent on the way is lost.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.tick();
        while let Some(next) = self.node.control.next_deadline() {
            if next > end {
                break;
            }
            self.now = next;
            self.tick();
        }
        self.now = end;
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.node.dropped(reason)
    }

    /// Everything that was dropped on the way in.
    fn dropped_in(&self) -> u64 {
        let drops = self.node.router.drops();
        drops
            .iter()
            .filter(|(reason, _)| reason.name().starts_with("in_"))
            .map(|(_, count)| count)
            .sum()
    }
}

fn added(prefixes: &[&str]) -> Vec<AllowedIpChange> {
    prefixes
        .iter()
        .map(|prefix| AllowedIpChange::Add(prefix.parse().expect("a prefix")))
        .collect()
}

fn udp(source: &str, destination: &str, number: u64) -> (vnet::Header, Vec<u8>) {
    packet::build(flow(source, destination), number, 1, 100)
}

fn flow(source: &str, destination: &str) -> Flow {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    Flow {
        source: address(source),
        destination: address(destination),
        number: 0,
    }
}

/// The only datagram that was sent, of this type.
fn single(done: &Done, kind: u8) -> Vec<u8> {
    let all: Vec<_> = done.datagrams().map(|(_, bytes)| bytes.to_vec()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0][0], kind);
    all[0].clone()
}

fn kinds(done: &Done) -> Vec<u8> {
    done.datagrams().map(|(_, bytes)| bytes[0]).collect()
}

fn numbers(packets: &[Vec<u8>]) -> Vec<u64> {
    packets
        .iter()
        .map(|packet| packet::read(packet).expect("a packet of ours").1)
        .collect()
}

/// BEHAVIOURS 1.
#[test]
fn a_wider_prefix_does_not_let_a_peer_use_anothers_narrower_one() {
    let mut scene = Scene::new(1);
    let mut wide = scene.session(1, &["10.9.0.0/16"]);
    let mut narrow = scene.session(2, &["10.9.7.0/24"]);
    let (_, theirs) = udp("10.9.7.1", "10.0.1.1", 1);
    let (_, own) = udp("10.9.8.1", "10.0.1.1", 2);
    let (_, nobodys) = udp("10.10.0.1", "10.0.1.1", 3);

    let sealed = [&theirs, &own, &nobodys].map(|packet| wide.seal(packet));
    let done = scene.arrive(&wide, &[&sealed[0], &sealed[1], &sealed[2]]);
    assert_eq!(done.delivered, [own]);
    assert_eq!(scene.dropped(Reason::InWrongSource), 2);

    let sealed = narrow.seal(&theirs);
    let done = scene.arrive(&narrow, &[&sealed]);
    assert_eq!(done.delivered, [theirs]);
}

/// BEHAVIOURS 3.
#[test]
fn what_is_sealed_is_trimmed_to_its_ip_length_and_dropped_if_it_claims_more_or_is_no_ip() {
    let mut scene = Scene::new(2);
    let mut peer = scene.session(1, &["10.9.0.0/16", "fd09::/16"]);
    for (source, destination) in [("10.9.0.1", "10.0.1.1"), ("fd09::1", "fd00:1::1")] {
        let before = scene.dropped(Reason::InInnerMalformed);
        let (_, whole) = udp(source, destination, 1);
        let mut long = whole.clone();
        long.extend_from_slice(&[0xaa; 300]);
        let short = &whole[..whole.len() - 1];
        let sealed = [&long[..], short, &whole[..8], &[0; 32], &[0x50; 64], &whole]
            .map(|packet| peer.seal(packet));
        let sealed: Vec<&[u8]> = sealed.iter().map(Vec::as_slice).collect();
        let done = scene.arrive(&peer, &sealed);
        assert_eq!(done.delivered, [whole.clone(), whole]);
        assert_eq!(scene.dropped(Reason::InInnerMalformed) - before, 4);
    }
}

/// BEHAVIOURS 4.
#[test]
fn a_prefix_that_stays_is_never_absent_while_allowed_ips_are_replaced() {
    let mut scene = Scene::new(3);
    let peer = scene.session(1, &["10.9.0.0/16"]);
    let replaced = |extra: u8| DeviceChange {
        peers: vec![PeerChange {
            replace_allowed_ips: true,
            allowed_ips: added(&["10.9.0.0/16", &format!("10.77.{extra}.0/24")]),
            ..PeerChange::new(peer.public())
        }],
        ..DeviceChange::default()
    };
    let router = &scene.node.router;
    let now = scene.now;
    let finished = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..2000u32 {
                router.apply(&replaced(round as u8), now);
            }
            finished.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut batches = Batches::new();
        let mut outbound = Outbound::new();
        let (header, packet) = udp("10.0.1.1", "10.9.0.1", 1);
        while !finished.load(std::sync::atomic::Ordering::Acquire) {
            let mut done = Done::default();
            batches.push_read(header, &packet);
            router.outbound(
                &mut outbound,
                &batches.read,
                &mut batches.send,
                now,
                &mut done,
            );
            batches.read.clear();
            assert_eq!(done.sent.len(), 1);
        }
    });
    assert_eq!(scene.dropped(Reason::OutNoPeer), 0);
}

/// Changes at random, see [`Node::apply`].
#[test]
fn a_device_follows_its_model_whatever_is_asked_of_it() {
    for_each_seed(&[4, 5, 6], |seed| {
        let mut scene = Scene::new(seed);
        let mut random = scene.random.fork();
        let own: Vec<PrivateKey> = (0..3)
            .map(|_| PrivateKey::from_bytes(random.key()))
            .collect();
        let mut keys: Vec<PublicKey> = (0..5)
            .map(|_| PublicKey::from_bytes(random.key()))
            .collect();
        keys.extend(own.iter().map(PrivateKey::public));
        for _ in 0..400 {
            let mut change = DeviceChange {
                replace_peers: random.permille(100),
                ..DeviceChange::default()
            };
            if random.permille(100) {
                change.private_key =
                    Some(random.permille(900).then(|| own[random.index(3)].clone()));
            }
            for _ in 0..random.below(0..6) {
                let mut peer = PeerChange::new(keys[random.index(keys.len())]);
                peer.remove = random.permille(200);
                peer.update_only = random.permille(300);
                peer.replace_allowed_ips = random.permille(300);
                if random.permille(300) {
                    peer.persistent_keepalive = Some(random.below(0..3) as u16 * 10);
                }
                if random.permille(300) {
                    let host = random.below(0..4) as u8;
                    peer.endpoints = Some(vec![SocketAddr::from(([192, 0, 2, host], 1))]);
                }
                for _ in 0..random.below(0..4) {
                    let prefix = format!("10.{}.0.0/16", random.below(0..6));
                    let prefix = prefix.parse().expect("a prefix");
                    peer.allowed_ips.push(if random.permille(700) {
                        AllowedIpChange::Add(prefix)
                    } else {
                        AllowedIpChange::Remove(prefix)
                    });
                }
                change.peers.push(peer);
            }
            scene.node.apply(&change, scene.now);
            scene.pass(millis(200));
        }
    });
}

/// BEHAVIOURS 6.
#[test]
fn receiver_indices_are_random_32_bit_numbers_and_unique() {
    const PEERS: u8 = 200;
    let mut scene = Scene::new(24);
    let peers: Vec<_> = (0..PEERS)
        .map(|at| PeerChange {
            endpoints: Some(vec![SocketAddr::from(([192, 0, 2, at], 1))]),
            persistent_keepalive: Some(25),
            ..PeerChange::new(PublicKey::from_bytes([at + 1; 32]))
        })
        .collect();
    scene.node.set_peers(peers, scene.now);
    let done = scene.tick();
    let indices: BTreeSet<u32> = done
        .datagrams()
        .map(|(_, bytes)| u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes")))
        .collect();
    assert_eq!(indices.len(), usize::from(PEERS));
    for bit in 0..32 {
        let set = indices
            .iter()
            .filter(|index| *index >> bit & 1 == 1)
            .count();
        assert!(
            (60..=140).contains(&set),
            "bit {bit} is set in {set} of {PEERS}"
        );
    }
}

/// BEHAVIOURS 9.
#[test]
fn nothing_is_sent_on_a_key_that_its_initiator_has_not_confirmed() {
    let mut scene = Scene::new(7);
    let mut peer = scene.peer(1, &["10.9.0.0/16"]);
    scene.shake_hands(&mut peer);
    let packets: Vec<_> = (0..3)
        .map(|number| udp("10.0.1.1", "10.9.0.1", number))
        .collect();
    let done = scene.leave(&packets);
    assert!(done.sent.is_empty());
    // Nor is another handshake begun at once: one is under way.
    assert!(scene.tick().sent.is_empty());

    let keepalive = peer.seal(&[]);
    scene.arrive(&peer, &[&keepalive]);
    let done = scene.tick();
    let opened: Vec<_> = done
        .datagrams()
        .map(|(_, bytes)| peer.open(bytes))
        .collect();
    assert_eq!(opened.len(), 3);
    for (opened, (_, packet)) in opened.iter().zip(&packets) {
        assert_eq!(opened[..packet.len()], packet[..]);
    }
}

/// BEHAVIOURS 10.
#[test]
fn new_allowed_ips_and_endpoints_keep_the_session() {
    let mut scene = Scene::new(8);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let elsewhere = SocketAddr::from(([203, 0, 113, 7], 7));
    let change = PeerChange {
        endpoints: Some(vec![elsewhere]),
        replace_allowed_ips: true,
        allowed_ips: added(&["10.8.0.0/16"]),
        persistent_keepalive: Some(0),
        preshared_key: Some(warren_config::PresharedKey::from_bytes([7; 32])),
        ..PeerChange::new(peer.public())
    };
    scene.node.set_peers([change], scene.now);
    let done = scene.leave(&[udp("10.0.1.1", "10.8.0.1", 1)]);
    assert_eq!(done.sent[0].0.remote, elsewhere);
    assert!(!peer.open(&single(&done, 4)).is_empty());
    let (_, packet) = udp("10.8.0.1", "10.0.1.1", 1);
    let sealed = peer.seal(&packet);
    assert_eq!(scene.arrive(&peer, &[&sealed]).delivered, [packet]);
}

/// BEHAVIOURS 23.
#[test]
fn a_flooder_with_one_address_leaves_the_door_open_for_others() {
    let mut scene = Scene::new(9);
    let mut honest = scene.peer(1, &["10.9.0.0/16"]);
    let flooder = SocketAddr::from(([203, 0, 113, 66], 6666));
    // Its first authenticator is right: that is all that a stranger can do.
    let mut stranger = Insider::new(flooder, &scene.node.public(), scene.random.fork());
    let initiation = stranger.initiation(scene.now);
    for _ in 0..10 {
        let flood = vec![&initiation[..]; 1000];
        scene.arrive_from(flooder, &flood);
    }
    assert!(scene.dropped(Reason::InSourceLimited) > 8000);
    assert_eq!(scene.dropped(Reason::InHandshakeQueueFull), 0);
    scene.shake_hands(&mut honest);
    assert_eq!(scene.dropped(Reason::InHandshakeRefused), 400);
}

/// BEHAVIOURS 22, 23.
#[test]
fn a_flood_from_everywhere_costs_honest_peers_a_cookie_and_ends_with_itself() {
    let mut scene = Scene::new(10);
    let mut honest = scene.peer(1, &["10.9.0.0/16"]);
    let mut stranger = Insider::new(
        SocketAddr::from(([203, 0, 113, 66], 6666)),
        &scene.node.public(),
        scene.random.fork(),
    );
    let initiation = stranger.initiation(scene.now);
    let flood = |scene: &mut Scene| -> Done {
        let flights = (0..5000u32).map(|n| {
            let [_, _, b, c] = n.to_be_bytes();
            let from = SocketAddr::from(([172, 16, b, c], 1));
            flight(from, scene.node.address, &initiation)
        });
        let flights: Vec<_> = flights.collect();
        scene.arrive_all(&flights)
    };
    let done = flood(&mut scene);
    // What is sent is smaller than what asked for it, and the queue stayed short.
    assert!(
        done.datagrams()
            .all(|(_, bytes)| bytes[0] == 3 && bytes.len() < initiation.len())
    );
    assert!(scene.dropped(Reason::InCookieDemanded) > 4000);
    assert_eq!(scene.dropped(Reason::InHandshakeQueueFull), 0);

    let first = honest.initiation(scene.now);
    let done = scene.arrive(&honest, &[&first]);
    single(&done, 3);

    // The flood ends; so, a second after it is worked off, does the mode.
    scene.tick();
    scene.now = scene.now + millis(1100);
    scene.shake_hands(&mut honest);
}

/// BEHAVIOURS 24.
#[test]
fn a_flood_of_valid_initiations_from_one_peer_stops_nobodys_data() {
    let mut scene = Scene::new(11);
    let mut steady = scene.session(1, &["10.8.0.0/16"]);
    let mut flooder = scene.peer(2, &["10.9.0.0/16"]);
    let mut delivered = 0;
    let mut answers = 0;
    for round in 0..200 {
        let initiations: Vec<_> = (0..5).map(|_| flooder.initiation(scene.now)).collect();
        let initiations: Vec<&[u8]> = initiations.iter().map(Vec::as_slice).collect();
        let done = scene.arrive(&flooder, &initiations);
        assert!(
            kinds(&done).iter().all(|kind| *kind == 3),
            "cookies at most"
        );
        let (_, packet) = udp("10.8.0.1", "10.0.1.1", round);
        let sealed = steady.seal(&packet);
        delivered += scene.arrive(&steady, &[&sealed]).delivered.len();
        let done = scene.leave(&[udp("10.0.1.1", "10.8.0.1", round)]);
        assert_eq!(steady.open(&single(&done, 4)).len(), 128);
        answers += kinds(&scene.tick())
            .iter()
            .filter(|kind| **kind == 2)
            .count();
        scene.now = scene.now + millis(1);
    }
    assert_eq!(delivered, 200);
    // Of a thousand initiations in 200 ms one in 20 ms was answered, if at all.
    assert!(answers <= 11, "{answers}");
}

/// BEHAVIOURS 25, 27.
#[test]
fn datagrams_of_every_length_with_every_first_byte_are_counted_and_answered_by_nothing() {
    let mut scene = Scene::new(12);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let mut arrived = 0;
    for fill in [0, 0xff] {
        for kind in 0..=255u8 {
            let mut bytes = [fill; 200];
            bytes[0] = kind;
            if fill == 0xff && (1..=4).contains(&kind) {
                bytes[1..4].fill(0);
            }
            for len in 0..=200 {
                let stray = &bytes[..len];
                let done = scene.arrive_from(peer.address, &[stray]);
                assert!(done.sent.is_empty() && done.delivered.is_empty());
                arrived += 1;
            }
            assert!(scene.tick().sent.is_empty());
        }
    }
    assert_eq!(scene.dropped_in(), arrived);
    let (_, packet) = udp("10.9.0.1", "10.0.1.1", 1);
    let sealed = peer.seal(&packet);
    assert_eq!(scene.arrive(&peer, &[&sealed]).delivered, [packet]);
}

/// BEHAVIOURS 25.
#[test]
fn a_segmented_datagram_with_any_stride_is_counted_and_harms_nothing() {
    let mut scene = Scene::new(13);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let (_, packet) = udp("10.9.0.1", "10.0.1.1", 1);
    let mut bytes = peer.seal(&packet);
    bytes.extend_from_slice(&peer.seal(&packet));
    let local = scene.node.local();
    for stride in 0..=bytes.len() {
        let flight = flight(peer.address, scene.node.address, &bytes);
        assert!(scene.batches.push_received(&flight, local));
        scene.batches.recv.datagrams[0].stride = stride;
        let done = scene.node.inbound(&mut scene.batches, scene.now);
        let whole = stride == bytes.len() / 2;
        assert_eq!(
            done.delivered.len(),
            if whole { 2 } else { 0 },
            "stride {stride}"
        );
        assert!(done.sent.is_empty());
    }
}

/// BEHAVIOURS 26.
#[test]
fn a_peer_that_cannot_be_reached_delays_nobody() {
    let mut scene = Scene::new(14);
    scene.peer(1, &["10.7.0.0/16"]);
    let peer = scene.session(2, &["10.8.0.0/16"]);
    let nowhere = PeerChange {
        allowed_ips: added(&["10.6.0.0/16"]),
        ..PeerChange::new(PublicKey::from_bytes([9; 32]))
    };
    scene.node.set_peers([nowhere], scene.now);
    for round in 0..100 {
        let mut packets = Vec::new();
        for at in 0..10 {
            packets.push(udp("10.0.1.1", "10.6.0.1", at));
            packets.push(udp("10.0.1.1", "10.7.0.1", at));
            packets.push(udp("10.0.1.1", "10.8.0.1", round * 10 + at));
        }
        let done = scene.leave(&packets);
        let opened: Vec<_> = done
            .datagrams()
            .map(|(_, bytes)| peer.open(bytes))
            .collect();
        let expected: Vec<u64> = (round * 10..round * 10 + 10).collect();
        let opened: Vec<_> = opened.iter().map(|packet| packet[..128].to_vec()).collect();
        assert_eq!(numbers(&opened), expected);
    }
    assert_eq!(scene.dropped(Reason::OutNoEndpoint), 1000);
    // Of what is for the silent one the newest 128 are kept.
    assert_eq!(scene.dropped(Reason::OutStagedOverflow), 1000 - 128);
    // And after 90 s not even these.
    scene.pass(secs(100));
    assert_eq!(scene.dropped(Reason::OutStagedExpired), 128);
}

#[test]
fn staged_packets_leave_before_newer_ones_and_in_order() {
    let mut scene = Scene::new(15);
    let mut peer = scene.peer(1, &["10.9.0.0/16"]);
    let mut left = Vec::new();
    let mut carry = |peer: &Insider, done: &Done| {
        left.extend(
            done.datagrams()
                .filter(|(_, bytes)| bytes[0] == 4)
                .map(|(_, bytes)| peer.open(bytes)),
        );
    };
    for number in 0..20 {
        let done = scene.leave(&[udp("10.0.1.1", "10.9.0.1", number)]);
        assert!(done.sent.is_empty());
    }
    scene.shake_hands_with_initiation_due(&mut peer);
    let keepalive = peer.seal(&[]);
    scene.arrive(&peer, &[&keepalive]);
    // The session is up, and control has not yet come to send what waits.
    for number in 20..30 {
        let done = scene.leave(&[udp("10.0.1.1", "10.9.0.1", number)]);
        carry(&peer, &done);
    }
    let done = scene.tick();
    carry(&peer, &done);
    for number in 30..40 {
        let done = scene.leave(&[udp("10.0.1.1", "10.9.0.1", number)]);
        carry(&peer, &done);
    }
    let left: Vec<_> = left.iter().map(|packet| packet[..128].to_vec()).collect();
    assert_eq!(numbers(&left), (0..40).collect::<Vec<u64>>());
}

#[test]
fn all_peers_together_stage_no_more_than_the_bound() {
    const BOUND: u64 = 32 << 20;
    let mut scene = Scene::new(16);
    let peers: Vec<_> = (0..200u8)
        .map(|at| PeerChange {
            endpoints: Some(vec![SocketAddr::from(([192, 0, 2, at], 1))]),
            allowed_ips: added(&[&format!("10.100.{at}.0/24")]),
            ..PeerChange::new(PublicKey::from_bytes([at + 1; 32]))
        })
        .collect();
    scene.node.set_peers(peers, scene.now);
    // 32 records of 2000 bytes are one packet.
    let (mut packets, mut size) = (0, 0);
    for at in 0..200 {
        let large = packet::build(flow("10.0.1.1", &format!("10.100.{at}.1")), 0, 32, 2000);
        size = large.1.len() as u64;
        for _ in 0..4 {
            scene.leave(std::slice::from_ref(&large));
            packets += 32;
        }
    }
    let kept = packets - scene.dropped(Reason::OutStagedOverflow);
    let bytes = kept / 32 * size;
    assert!(bytes <= BOUND + (64 << 10), "{bytes} bytes are staged");
    assert!(bytes > BOUND / 2, "{bytes} bytes are staged");
    // When nobody answers the room is free again.
    scene.pass(secs(100));
    assert_eq!(scene.dropped(Reason::OutStagedExpired), kept);
    scene.leave(&[udp("10.0.1.1", "10.100.3.1", 1)]);
    assert_eq!(scene.dropped(Reason::OutStagedOverflow), packets - kept);
}

/// BEHAVIOURS 34.
#[test]
fn marks_of_congestion_cross_the_tunnel_and_the_traffic_class_does_not() {
    let mut scene = Scene::new(17);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let (header, out) = udp("10.0.1.1", "10.9.0.1", 1);
    let (_, back) = udp("10.9.0.1", "10.0.1.1", 1);
    for inner in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
        let marked = packet::with_tos(out.clone(), 0xb8 | inner.bits());
        let done = scene.leave(&[(header, marked)]);
        assert_eq!(done.sent[0].0.ecn, inner);
        assert_eq!(done.sent[0].0.tos, 0);

        let sealed = peer.seal(&packet::with_tos(back.clone(), 0xb8 | inner.bits()));
        let mut congested = flight(peer.address, scene.node.address, &sealed);
        congested.ecn = Ecn::Ce;
        let done = scene.arrive_all(&[congested]);
        if inner == Ecn::NotEct {
            assert!(done.delivered.is_empty());
            assert_eq!(scene.dropped(Reason::InEcn), 1);
        } else {
            assert_eq!(done.delivered, [packet::with_tos(back.clone(), 0xb8 | 3)]);
        }
    }
}

/// Issue 5: a queue that stands is told of by a mark where the flow takes it, and by one packet where not.
#[test]
fn who_fills_the_queue_before_the_reader_is_told_once() {
    let mut scene = Scene::new(21);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let mut other = scene.session(2, &["10.8.0.0/16"]);
    let bulk = |number, payload| packet::build(flow("10.9.0.1", "10.0.1.1"), number, 1, payload).1;
    for inner in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
        let marked = |packet: &[u8]| packet::with_tos(packet.to_vec(), inner.bits());
        // A sparse peer, then a run as GRO joins it: a sparse flow first, a shorter end.
        let sparse = marked(&udp("10.8.0.1", "10.0.1.1", 8).1);
        let mut packets = vec![marked(&udp("10.9.0.7", "10.0.1.1", 9).1)];
        packets.extend((0..4).map(|n| marked(&bulk(n, 700))));
        packets.push(marked(&bulk(4, 300)));
        let mut flights = vec![flight(
            other.address,
            scene.node.address,
            &other.seal(&sparse),
        )];
        for packet in &packets {
            let sealed = peer.seal(packet);
            flights.push(flight(peer.address, scene.node.address, &sealed));
        }
        scene.node.tell(1);
        let done = scene.arrive_all(&flights);
        let mut wanted = vec![sparse];
        wanted.extend(packets);
        match inner {
            Ecn::NotEct => drop(wanted.remove(2)),
            _ => wanted[2] = packet::with_tos(wanted[2].clone(), Ecn::Ce.bits()),
        }
        assert_eq!(done.delivered, wanted, "{inner:?}");
        // And nobody after that.
        assert_eq!(
            scene
                .arrive_all(&[flight(
                    peer.address,
                    scene.node.address,
                    &peer.seal(&wanted[1]),
                )])
                .delivered,
            wanted[1..2]
        );
    }
    assert_eq!(scene.dropped(Reason::InStandingQueue), 1);
    assert_eq!(scene.dropped(Reason::InEcn), 0);
}

/// Issue 5: a lump may end where a read does, and the next one is of somebody else.
#[test]
fn who_comes_behind_what_filled_the_queue_is_not_told() {
    let mut scene = Scene::new(21);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let (_, packet) = udp("10.9.0.1", "10.0.1.1", 1);
    scene.node.tell(1000);
    for _ in 0..20 {
        let sealed = peer.seal(&packet);
        assert_eq!(scene.arrive(&peer, &[&sealed]).delivered.len(), 1);
        assert!(!scene.node.told());
    }
    assert_eq!(scene.dropped(Reason::InStandingQueue), 0);
}

/// Issue 5: a packet that is for nobody tells nobody.
#[test]
fn a_packet_that_goes_no_further_is_not_the_one_that_tells() {
    let mut scene = Scene::new(21);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let bulk = |source, payload| packet::build(flow(source, "10.0.1.1"), 1, 1, payload).1;
    let (stray, next, last) = (
        bulk("10.8.0.1", 900),
        bulk("10.9.0.1", 700),
        bulk("10.9.0.1", 600),
    );
    let sealed = [&stray, &next, &last].map(|packet| peer.seal(packet));
    scene.node.tell(1);
    let done = scene.arrive(&peer, &sealed.each_ref().map(Vec::as_slice));
    assert_eq!(done.delivered, [last]);
    assert_eq!(scene.dropped(Reason::InWrongSource), 1);
    assert_eq!(scene.dropped(Reason::InStandingQueue), 1);
    assert!(scene.node.told());

    scene.node.tell(1);
    let sealed = peer.seal(&stray);
    assert!(scene.arrive(&peer, &[&sealed]).delivered.is_empty());
    assert!(!scene.node.told(), "the next batch may");
}

/// Issue 5: who has most of a batch is a peer, whatever ports it sends from, and what it repeats does not count.
#[test]
fn who_fills_the_queue_is_told_of_by_what_was_accepted_of_all_places() {
    let mut scene = Scene::new(21);
    let mut spread = scene.session(1, &["10.9.0.0/16"]);
    let mut honest = scene.session(2, &["10.8.0.0/16"]);
    let mut replayed = scene.session(3, &["10.7.0.0/16"]);
    let bulk = |source, number| packet::build(flow(source, "10.0.1.1"), number, 1, 700).1;
    let repeated: Vec<_> = (0..6)
        .map(|n| replayed.seal(&bulk("10.7.0.1", n)))
        .collect();
    let repeated: Vec<&[u8]> = repeated.iter().map(Vec::as_slice).collect();
    scene.arrive(&replayed, &repeated);

    let to = scene.node.address;
    let mut flights: Vec<_> = (repeated.iter())
        .map(|sealed| flight(replayed.address, to, sealed))
        .collect();
    flights.extend((0..3).map(|n| flight(honest.address, to, &honest.seal(&bulk("10.8.0.1", n)))));
    flights.extend((0..5).map(|n| {
        let port = SocketAddr::new(spread.address.ip(), 2000 + n as u16);
        flight(port, to, &spread.seal(&bulk("10.9.0.1", n)))
    }));
    scene.node.tell(1);
    let done = scene.arrive_all(&flights);
    assert_eq!(scene.dropped(Reason::InStandingQueue), 1);
    assert!(scene.node.told());
    let mut wanted: Vec<_> = (0..3).map(|n| bulk("10.8.0.1", n)).collect();
    wanted.extend((1..5).map(|n| bulk("10.9.0.1", n)));
    assert_eq!(done.delivered, wanted);
}

/// BEHAVIOURS 47.
#[test]
fn a_packet_that_is_for_neither_this_node_nor_its_prefixes_is_dropped_and_counted() {
    let mut scene = Scene::new(18);
    let mut peer = scene.session(1, &["10.9.0.0/16", "fd09::/16"]);
    let prefixes = scene.node.prefixes.clone();
    scene.node.router.set_local(Some(&prefixes));
    for (source, here, elsewhere) in [
        (
            "10.9.0.1",
            "10.0.1.7",
            ["169.254.169.254", "8.8.8.8", "10.9.0.2"],
        ),
        (
            "fd09::1",
            "fd00:1::7",
            ["fe80::1", "2001:db8::1", "fd09::2"],
        ),
    ] {
        let before = scene.dropped(Reason::InNotForUs);
        for elsewhere in elsewhere {
            let sealed = peer.seal(&udp(source, elsewhere, 1).1);
            assert!(scene.arrive(&peer, &[&sealed]).delivered.is_empty());
        }
        assert_eq!(scene.dropped(Reason::InNotForUs) - before, 3);
        let (_, packet) = udp(source, here, 1);
        let sealed = peer.seal(&packet);
        assert_eq!(scene.arrive(&peer, &[&sealed]).delivered, [packet]);
    }
    // Where relaying was asked for, there is no such limit.
    scene.node.router.set_local(None);
    let sealed = peer.seal(&udp("10.9.0.1", "8.8.8.8", 1).1);
    assert_eq!(scene.arrive(&peer, &[&sealed]).delivered.len(), 1);
}

#[test]
fn what_is_unknown_forged_or_replayed_is_dropped_under_its_name() {
    let mut scene = Scene::new(19);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let (_, packet) = udp("10.9.0.1", "10.0.1.1", 1);
    let sealed = peer.seal(&packet);
    let mut forged = sealed.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    let mut unknown = sealed.clone();
    unknown[4] ^= 1;

    // A forgery does not use up the counter of what it imitates.
    let done = scene.arrive(&peer, &[&forged, &unknown, &sealed, &sealed]);
    assert_eq!(done.delivered, [packet]);
    assert!(scene.arrive(&peer, &[&sealed]).delivered.is_empty());
    assert_eq!(
        scene.node.router.drops(),
        [
            (Reason::InUnknownReceiver, 1),
            (Reason::InForged, 1),
            (Reason::InReplayed, 2),
        ]
    );
    // Nor does it, or any other, move the peer.
    let elsewhere = SocketAddr::from(([203, 0, 113, 1], 1));
    scene.arrive_from(elsewhere, &[&forged, &unknown, &sealed]);
    let done = scene.leave(&[udp("10.0.1.1", "10.9.0.1", 1)]);
    assert_eq!(done.sent[0].0.remote, peer.address);

    // A session ends 180 s after it began.
    let late = peer.seal(&udp("10.9.0.1", "10.0.1.1", 2).1);
    scene.pass(secs(180));
    assert!(scene.arrive(&peer, &[&late]).delivered.is_empty());
    assert_eq!(scene.dropped(Reason::InSessionExpired), 1);
}

#[test]
fn a_keepalive_is_delivered_to_nobody_and_is_no_drop() {
    let mut scene = Scene::new(20);
    let mut peer = scene.session(1, &["10.9.0.0/16"]);
    let keepalives: Vec<_> = (0..10).map(|_| peer.seal(&[])).collect();
    let keepalives: Vec<&[u8]> = keepalives.iter().map(Vec::as_slice).collect();
    let done = scene.arrive(&peer, &keepalives);
    assert!(done.delivered.is_empty() && done.sent.is_empty());
    assert_eq!(scene.node.router.drops(), []);
}

#[test]
fn who_sends_to_nobody_is_told_so_but_not_without_end() {
    let mut scene = Scene::new(21);
    let packet = udp("10.0.1.1", "10.200.0.1", 1);
    let done = scene.leave(std::slice::from_ref(&packet));
    let [reply] = &done.delivered[..] else {
        panic!("one answer");
    };
    assert_eq!(reply[9], 1, "ICMP");
    assert_eq!(reply[12..16], [10, 200, 0, 1]);
    assert_eq!(reply[16..20], [10, 0, 1, 1]);
    assert_eq!(reply[20], 3, "destination unreachable");
    let mut answers = 1;
    for _ in 0..100 {
        let done = scene.leave(&vec![packet.clone(); 10]);
        answers += done.delivered.len();
    }
    assert_eq!(answers, 50);
    assert_eq!(scene.dropped(Reason::OutNoPeer), 1001);
}

#[test]
fn a_handshake_that_waited_while_the_key_changed_leads_to_nothing() {
    let mut scene = Scene::new(22);
    let mut peer = scene.peer(1, &["10.9.0.0/16"]);
    let initiation = peer.initiation(scene.now);
    scene.arrive(&peer, &[&initiation]);
    let change = DeviceChange {
        private_key: Some(Some(PrivateKey::from_bytes([5; 32]))),
        ..DeviceChange::default()
    };
    scene.node.apply(&change, scene.now);
    assert!(scene.tick().sent.is_empty(), "the old self answered");
    assert_eq!(scene.dropped(Reason::InHandshakeRefused), 1);
}

/// Responses and cookie replies answer something of ours, or nothing.
#[test]
fn an_answer_to_nothing_is_turned_away_at_the_door() {
    let mut scene = Scene::new(23);
    scene.peer(1, &["10.9.0.0/16"]);
    scene.tick();
    let mut reply = vec![0; 64];
    reply[0] = 3;
    for n in 0..1000u32 {
        let [_, _, b, c] = n.to_be_bytes();
        reply[4..8].copy_from_slice(&n.to_be_bytes());
        scene.arrive_from(SocketAddr::from(([172, 16, b, c], 1)), &[&reply]);
    }
    assert_eq!(scene.dropped(Reason::InUnknownReceiver), 1000);
    assert!(!scene.node.is_due(scene.now), "and nobody was woken for it");
}

impl Scene {
    /// As [`Self::shake_hands`], where the node sends an initiation of its own, which is lost.
    fn shake_hands_with_initiation_due(&mut self, insider: &mut Insider) {
        let done = self.tick();
        assert_eq!(kinds(&done), [1]);
        let initiation = insider.initiation(self.now);
        self.arrive(insider, &[&initiation]);
        let done = self.tick();
        let response = single(&done, 2);
        assert!(matches!(
            messages::parse(&response),
            Ok(Message::Handshake(Handshake::Response(_)))
        ));
        insider.response(&response, self.now);
    }
}
