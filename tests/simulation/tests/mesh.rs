//! Stories of a mesh. The invariants hold in each of them, see the crate.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_config::{AllowedIpChange, DeviceChange, PeerChange, PresharedKey, PrivateKey};
use warren_engine::Reason;
use warren_tests_simulation::{Conditions, Mesh, Node, for_each_seed, packet};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Any node sends any other a few packets of any size.
fn somebody_sends(mesh: &mut Mesh) {
    let from = mesh.random.index(mesh.nodes.len());
    let to = (from + 1 + mesh.random.index(mesh.nodes.len() - 1)) % mesh.nodes.len();
    let count = 1 + mesh.random.index(6);
    let payload = 24 + mesh.random.index(1300);
    let number = mesh.random.below(0..4) as u16;
    mesh.send(from, to, number, count, payload);
}

#[test]
fn ten_nodes_talk_for_three_hours_and_lose_nothing() {
    for_each_seed(&[1, 2], |seed| {
        let mut mesh = Mesh::new(10, seed);
        let end = mesh.now() + secs(3 * 3600);
        while mesh.now() < end {
            somebody_sends(&mut mesh);
            // Bursts, talk, silence after which sessions are old, and silence after which they
            // are gone.
            let gap = match mesh.random.below(0..100) {
                0..60 => Duration::ZERO..millis(20),
                60..98 => millis(20)..secs(8),
                98 => secs(100)..secs(200),
                _ => secs(200)..secs(700),
            };
            let gap = mesh.random.duration(&gap);
            mesh.run_for(gap);
        }
        mesh.run_for(secs(1));
        mesh.assert_all_delivered(0);
        assert!(mesh.delivered > 3000, "{}", mesh.delivered);
        mesh.run_for(secs(600));
        mesh.assert_idle();
    });
}

#[test]
fn a_steady_flow_is_rekeyed_every_two_minutes_without_a_lost_or_overtaken_packet() {
    for_each_seed(&[3, 4], |seed| {
        let mut mesh = Mesh::new(2, seed);
        let end = mesh.now() + secs(3600);
        while mesh.now() < end {
            mesh.send(0, 1, 0, 3, 400);
            if mesh.random.permille(300) {
                mesh.send(1, 0, 1, 1, 100);
            }
            let gap = mesh.random.duration(&(Duration::ZERO..millis(500)));
            mesh.run_for(gap);
        }
        mesh.run_for(secs(1));
        mesh.assert_all_delivered(0);
        // Each session lasts 120 s and a handshake.
        let initiations = mesh.initiations();
        assert!((29..=31).contains(&initiations), "{initiations}");
    });
}

#[test]
fn flows_that_only_one_side_feeds_are_rekeyed_before_their_keys_end() {
    // The initiator of the first session only receives; the responder never asks for new keys by
    // age, so the initiator must, in time.
    for_each_seed(&[5], |seed| {
        let mut mesh = Mesh::new(2, seed);
        mesh.send(0, 1, 0, 1, 64);
        mesh.run_for(secs(1));
        let end = mesh.now() + secs(1800);
        while mesh.now() < end {
            mesh.send(1, 0, 0, 1, 64);
            mesh.run_for(secs(1));
        }
        mesh.assert_all_delivered(0);
    });
}

#[test]
fn a_bad_network_harms_nothing_but_what_it_loses() {
    for_each_seed(&[6, 7, 8], |seed| {
        let mut mesh = Mesh::new(5, seed);
        mesh.set_conditions(Conditions {
            loss: 100,
            duplication: 50,
            damage: 20,
            delay: millis(1)..millis(120),
        });
        let end = mesh.now() + secs(1800);
        while mesh.now() < end {
            somebody_sends(&mut mesh);
            let gap = mesh.random.duration(&(Duration::ZERO..millis(1500)));
            mesh.run_for(gap);
        }
        mesh.run_for(secs(5));
        let (sent, missing) = (mesh.mark(), mesh.missing(0).len());
        // A loss of 10 % and some damage, and little more: sessions were there when needed.
        assert!(missing * 100 < sent * 16, "{missing} of {sent} are missing");
        let refused: u64 = mesh
            .nodes
            .iter()
            .map(|node| node.dropped(Reason::InForged))
            .sum();
        assert!(refused > 0, "nothing was damaged");
        let replayed: u64 = mesh
            .nodes
            .iter()
            .map(|node| node.dropped(Reason::InReplayed))
            .sum();
        assert!(replayed > 0, "nothing was doubled");

        // And when the network is good again, so is the mesh.
        mesh.set_conditions(Conditions::CLEAN);
        mesh.run_for(secs(30));
        let mark = mesh.mark();
        for _ in 0..200 {
            somebody_sends(&mut mesh);
            mesh.run_for(millis(100));
        }
        mesh.run_for(secs(6));
        mesh.assert_all_delivered(mark);
        mesh.run_for(secs(600));
        mesh.assert_idle();
    });
}

#[test]
fn a_partition_that_heals_is_forgotten() {
    for_each_seed(&[9, 10], |seed| {
        let mut mesh = Mesh::new(4, seed);
        let side = [mesh.nodes[0].address, mesh.nodes[1].address];
        for _ in 0..100 {
            somebody_sends(&mut mesh);
            mesh.run_for(millis(200));
        }
        mesh.assert_all_delivered(0);

        // Long enough that all attempts to reach the other side are given up.
        mesh.wire.partition(side);
        for _ in 0..500 {
            somebody_sends(&mut mesh);
            mesh.run_for(secs(1));
        }
        assert!(!mesh.missing(0).is_empty());
        let given_up = |mesh: &Mesh| -> u64 {
            let dropped = |reason| {
                mesh.nodes
                    .iter()
                    .map(|node| node.dropped(reason))
                    .sum::<u64>()
            };
            dropped(Reason::OutStagedExpired) + dropped(Reason::OutStagedOverflow)
        };
        let within: usize = mesh.missing(0).len();
        assert!(given_up(&mesh) <= within as u64);

        mesh.wire.heal();
        // The next attempt may have to wait out the interval of the last.
        let mark = mesh.mark();
        for from in 0..4 {
            for to in (0..4).filter(|to| *to != from) {
                mesh.send(from, to, 0, 1, 64);
            }
        }
        mesh.run_for(secs(6));
        mesh.assert_all_delivered(mark);
        mesh.run_for(secs(700));
        mesh.assert_idle();
    });
}

#[test]
fn a_node_that_changes_its_address_is_followed_with_the_first_packet() {
    for_each_seed(&[11], |seed| {
        let mut mesh = Mesh::new(3, seed);
        mesh.send(0, 1, 0, 1, 64);
        mesh.send(1, 0, 0, 1, 64);
        mesh.run_for(secs(1));
        let handshakes = mesh.initiations();
        for place in 1..50u8 {
            mesh.relocate(0, SocketAddr::from(([198, 51, 100, place], 40000)));
            mesh.send(0, 1, 0, 1, 64);
            mesh.run_for(millis(50));
            mesh.send(1, 0, 0, 1, 64);
            mesh.run_for(millis(50));
        }
        mesh.assert_all_delivered(0);
        assert_eq!(mesh.initiations(), handshakes, "the session moves along");
        let status = mesh.nodes[1].router.status(mesh.now(), Default::default());
        let peer = &status.peers[&mesh.nodes[0].public()];
        assert_eq!(peer.endpoint, Some(mesh.nodes[0].address));
    });
}

#[test]
fn an_endpoint_that_does_not_answer_gives_way_to_the_next_candidate() {
    for_each_seed(&[12], |seed| {
        let mut mesh = Mesh::new(2, seed);
        let dead = |host| SocketAddr::from(([203, 0, 113, host], 51820));
        let candidates = vec![
            dead(1),
            "[2001:db8::1]:9".parse().expect("an address"),
            mesh.nodes[1].address,
        ];
        let peer = PeerChange {
            endpoints: Some(candidates),
            ..PeerChange::new(mesh.nodes[1].public())
        };
        mesh.set_peers(0, [peer]);
        mesh.send(0, 1, 0, 1, 64);
        // Two attempts in vain, each of five seconds and its jitter.
        mesh.run_for(secs(9));
        assert!(!mesh.missing(0).is_empty());
        mesh.run_for(secs(3));
        mesh.assert_all_delivered(0);

        // A roamed endpoint that falls silent gives way to what is configured.
        let home = mesh.nodes[1].address;
        mesh.relocate(1, dead(9));
        mesh.send(1, 0, 0, 1, 64);
        mesh.run_for(secs(1));
        mesh.relocate(1, home);
        mesh.send(0, 1, 0, 1, 64);
        mesh.run_for(secs(60));
        let mark = mesh.mark();
        mesh.send(0, 1, 0, 1, 64);
        mesh.run_for(secs(1));
        mesh.assert_all_delivered(mark);
    });
}

#[test]
fn a_node_that_restarts_is_talked_to_again_from_either_side() {
    for_each_seed(&[13, 14], |seed| {
        let mut mesh = Mesh::new(3, seed);
        for round in 0..20 {
            for _ in 0..20 {
                somebody_sends(&mut mesh);
                mesh.run_for(millis(100));
            }
            mesh.run_for(secs(1));
            mesh.restart(0);
            let mark = mesh.mark();
            if round % 2 == 0 {
                // The one that restarted speaks: at once there is a new session.
                mesh.send(0, 1, 0, 1, 64);
                mesh.send(0, 2, 0, 1, 64);
                mesh.run_for(millis(100));
                mesh.assert_all_delivered(mark);
            } else {
                // The others speak to somebody who no longer knows them. After 15 s without an
                // answer they ask again.
                mesh.send(1, 0, 0, 1, 64);
                mesh.send(2, 0, 0, 1, 64);
                mesh.run_for(secs(16));
                assert_eq!(mesh.missing(mark).len(), 2);
                let mark = mesh.mark();
                mesh.send(1, 0, 0, 1, 64);
                mesh.send(2, 0, 0, 1, 64);
                mesh.run_for(secs(1));
                mesh.assert_all_delivered(mark);
            }
        }
    });
}

#[test]
fn a_peer_that_takes_anothers_place_never_meets_what_was_the_others() {
    for_each_seed(&[15, 16], |seed| {
        let mut mesh = Mesh::new(4, seed);
        // Nodes 2 and 3 have, in turn, the prefixes of node 2.
        let (two, three) = (mesh.nodes[2].public(), mesh.nodes[3].public());
        let prefixes = mesh.nodes[2].prefixes.clone();
        mesh.nodes[3].prefixes.clone_from(&prefixes);
        let remove = |key| PeerChange {
            remove: true,
            ..PeerChange::new(key)
        };
        mesh.set_peers(0, [remove(three)]);
        let mut present = 2;
        for _ in 0..60 {
            for _ in 0..10 {
                mesh.send(0, present, 0, 3, 200);
                mesh.send(present, 0, 0, 3, 200);
                let gap = mesh.random.duration(&(Duration::ZERO..millis(40)));
                mesh.run_for(gap);
            }
            // With packets under way both ways, and some staged.
            let absent = 5 - present;
            let (from, to) = if present == 2 {
                (two, three)
            } else {
                (three, two)
            };
            let newcomer = mesh.nodes[absent].as_peer();
            assert_eq!(newcomer.public_key, to);
            mesh.set_peers(0, [remove(from), newcomer]);
            present = absent;
        }
        mesh.run_for(secs(10));
        // The one that is present may still think of the session of its last time. It hears of the
        // new one with the first packet.
        let mark = mesh.mark();
        mesh.send(0, present, 0, 1, 64);
        mesh.run_for(secs(7));
        mesh.send(present, 0, 0, 1, 64);
        mesh.run_for(secs(1));
        mesh.assert_all_delivered(mark);
    });
}

#[test]
fn a_prefix_that_moves_reaches_its_old_peer_or_its_new_one_and_nobody_else() {
    for_each_seed(&[17, 18], |seed| {
        let mut mesh = Mesh::new(5, seed);
        // Something that node 0 reaches by way of 1, 2, 3 or 4, and of which each thinks that it is
        // its own. A wider prefix of node 4 lies around it all the time.
        let prefix = "172.16.5.0/24".parse().expect("a prefix");
        let around = "172.16.0.0/16".parse().expect("a prefix");
        let host: IpAddr = "172.16.5.9".parse().expect("an address");
        let give = |mesh: &mut Mesh, to: usize, prefix| {
            let peer = PeerChange {
                update_only: true,
                allowed_ips: vec![AllowedIpChange::Add(prefix)],
                ..PeerChange::new(mesh.nodes[to].public())
            };
            mesh.set_peers(0, [peer]);
        };
        give(&mut mesh, 4, around);
        let own = mesh.nodes[0].host(false);
        let flow = |source, destination| packet::Flow {
            source,
            destination,
            number: 2,
        };
        for to in 1..5 {
            mesh.send(0, to, 0, 1, 64);
        }
        mesh.run_for(secs(1));
        for _ in 0..400 {
            let holder = 1 + mesh.random.index(3);
            give(&mut mesh, holder, prefix);
            let mark = mesh.mark();
            for _ in 0..mesh.random.below(1..4) {
                mesh.send_flow(0, flow(own, host), 2, 100);
            }
            // All four claim it; node 0 hears the holder alone, see the mesh's invariants.
            mesh.run_for(millis(11));
            mesh.assert_all_delivered(mark);
            for from in 1..5 {
                mesh.send_flow(from, flow(host, own), 1, 100);
            }
            let gap = mesh.random.duration(&(Duration::ZERO..millis(20)));
            mesh.run_for(gap);
        }
        mesh.run_for(secs(1));
        assert!(mesh.nodes[0].dropped(Reason::InWrongSource) > 800);
        assert!(mesh.delivered > 1000);
    });
}

#[test]
fn a_new_private_key_ends_what_the_old_one_agreed_on() {
    for_each_seed(&[19, 20], |seed| {
        let mut mesh = Mesh::new(4, seed);
        for _ in 0..10 {
            for _ in 0..50 {
                somebody_sends(&mut mesh);
                let gap = mesh.random.duration(&(Duration::ZERO..millis(100)));
                mesh.run_for(gap);
            }
            let old = mesh.nodes[0].public();
            let change = DeviceChange {
                private_key: Some(Some(PrivateKey::from_bytes(mesh.random.key()))),
                ..DeviceChange::default()
            };
            mesh.apply(0, &change);
            // Until the others have heard of it nobody understands what is sent.
            let mark = mesh.mark();
            mesh.send(0, 1, 0, 1, 64);
            mesh.run_for(millis(500));
            assert_eq!(mesh.missing(mark).len(), 1);
            for other in 1..4 {
                let gone = PeerChange {
                    remove: true,
                    ..PeerChange::new(old)
                };
                let renewed = mesh.nodes[0].as_peer();
                mesh.set_peers(other, [gone, renewed]);
            }
            mesh.run_for(secs(6));
            mesh.assert_all_delivered(mark);
        }
    });
}

#[test]
fn a_new_preshared_key_costs_no_packet_while_the_old_session_lives() {
    for_each_seed(&[21, 22], |seed| {
        let mut mesh = Mesh::new(2, seed);
        mesh.send(0, 1, 0, 1, 64);
        mesh.run_for(secs(1));
        for _ in 0..10 {
            let key = PresharedKey::from_bytes(mesh.random.key());
            let talk = |mesh: &mut Mesh, time| {
                let end = mesh.now() + time;
                while mesh.now() < end {
                    mesh.send(0, 1, 0, 2, 64);
                    mesh.send(1, 0, 0, 2, 64);
                    mesh.run_for(millis(250));
                }
            };
            // One side first, the other when it has heard of it: handshakes in between fail.
            for side in 0..2 {
                let peer = PeerChange {
                    preshared_key: Some(key.clone()),
                    ..PeerChange::new(mesh.nodes[1 - side].public())
                };
                let before = mesh.initiations();
                mesh.set_peers(side, [peer]);
                mesh.run_for(millis(20));
                assert_eq!(mesh.initiations(), before, "a new key tears nothing down");
                let pause = mesh.random.duration(&(secs(5)..secs(40)));
                talk(&mut mesh, pause);
            }
            talk(&mut mesh, secs(130));
        }
        mesh.run_for(secs(1));
        mesh.assert_all_delivered(0);
    });
}

#[test]
fn two_hundred_peers_behind_one_address_shake_hands_at_once() {
    for_each_seed(&[23], |seed| {
        let mut mesh = Mesh::of_strangers(201, seed);
        let hub = mesh.nodes[0].as_peer();
        for at in 1..=200u16 {
            let node = usize::from(at);
            let place = SocketAddr::from(([198, 51, 100, 1], 10000 + at));
            mesh.relocate(node, place);
            mesh.set_peers(node, [hub.clone()]);
        }
        let spokes: Vec<_> = mesh.nodes[1..].iter().map(Node::as_peer).collect();
        mesh.set_peers(0, spokes);
        for node in 1..=200 {
            mesh.send(node, 0, 0, 1, 64);
        }
        mesh.run_for(secs(1));
        mesh.assert_all_delivered(0);
        assert_eq!(mesh.initiations(), 200, "nobody had to ask twice");
    });
}

#[test]
fn an_idle_mesh_waits_for_nothing_and_a_kept_alive_one_only_for_that() {
    for_each_seed(&[24], |seed| {
        let mut mesh = Mesh::new(3, seed);
        mesh.assert_idle();
        mesh.send(0, 1, 0, 1, 64);
        mesh.run_for(secs(600));
        mesh.assert_idle();

        let peer = PeerChange {
            persistent_keepalive: Some(25),
            ..PeerChange::new(mesh.nodes[2].public())
        };
        mesh.set_peers(0, [peer.clone()]);
        mesh.run_for(secs(600));
        assert!(mesh.nodes[0].control.next_deadline().is_some());
        assert_eq!(mesh.nodes[1].control.next_deadline(), None);
        let mark = mesh.mark();
        mesh.send(2, 0, 0, 1, 64);
        mesh.run_for(millis(20));
        mesh.assert_all_delivered(mark);

        let off = PeerChange {
            persistent_keepalive: Some(0),
            ..peer
        };
        mesh.set_peers(0, [off]);
        mesh.run_for(secs(600));
        mesh.assert_idle();
    });
}

#[test]
fn one_seed_leads_to_the_same_datagrams_each_time() {
    let run = |seed| {
        let mut mesh = Mesh::new(6, seed);
        mesh.set_conditions(Conditions {
            loss: 50,
            duplication: 50,
            damage: 10,
            delay: millis(1)..millis(50),
        });
        for peer in 1..6 {
            let keepalive = PeerChange {
                persistent_keepalive: Some(10),
                ..PeerChange::new(mesh.nodes[peer].public())
            };
            mesh.set_peers(0, [keepalive]);
        }
        for round in 0..100 {
            somebody_sends(&mut mesh);
            mesh.run_for(millis(700));
            if round == 50 {
                let change = DeviceChange {
                    private_key: Some(Some(PrivateKey::from_bytes(mesh.random.key()))),
                    ..DeviceChange::default()
                };
                mesh.apply(0, &change);
                for other in 1..6 {
                    let renewed = mesh.nodes[0].as_peer();
                    mesh.set_peers(other, [renewed]);
                }
            }
        }
        (mesh.wire.sent, mesh.wire.digest)
    };
    assert_eq!(run(25), run(25));
    assert_ne!(run(25), run(26));
}
