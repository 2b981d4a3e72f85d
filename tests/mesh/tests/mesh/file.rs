//! The mesh file changes under running daemons.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use warren_config::{PresharedKey, PrivateKey};
use warren_state::StateDir;
use warren_tests_mesh::{Daemon, Flood, Flow, Network, Node, Run, SOCKET, patiently, warren};

const AT_ONCE: Duration = Duration::from_secs(5);
/// More than twice the interval at which daemons tell each other which file they run.
const TOLD: Duration = Duration::from_secs(40);

/// Three daemons.
fn start(network: &Network) -> [Daemon; 3] {
    [&network.a, &network.b, &network.c].map(Daemon::start)
}

#[test]
fn a_fourth_node_joins_without_a_lost_packet_or_a_disturbed_session_of_the_others() {
    let network = Network::new();
    let Network { a, b, c, d, .. } = &network;
    let daemons = start(&network);
    let whole = network.mesh_of(&["a", "b", "c", "d"]);
    let ahead = network.scratch().join("ahead.toml");
    fs::write(&ahead, &whole).expect("a scratch directory");
    let fourth = Daemon::start_with(d, &ahead);
    let wiretap = network.wiretap();
    let flows = [
        Flow::start(&a.host, &b.host, &b.v4()),
        Flow::start(&b.host, &c.host, "fd77:0:3::5"),
        Flow::start(&c.host, &a.host, "10.77.1.5"),
    ];
    let sessions = |daemon: &Daemon, names: [&str; 2]| {
        names.map(|name| {
            let peer = daemon.peer(name);
            (peer.last_handshake_unix_s, peer.endpoint)
        })
    };
    let before = sessions(&daemons[0], ["b", "c"]);

    network.write(&whole);
    for daemon in &daemons {
        daemon.wait("d is a peer", AT_ONCE, |status| {
            let names = status.peers.iter().map(|peer| peer.name.as_deref());
            names.eq(["a", "b", "c", "d"]
                .map(Some)
                .into_iter()
                .filter(|name| *name != status.node.name.as_deref()))
        });
    }
    assert!(d.host.reaches(&a.v4()) && c.host.reaches(&d.v4()));
    for flow in &flows {
        flow.go_on();
    }

    assert_eq!(sessions(&daemons[0], ["b", "c"]), before);
    for flow in flows {
        flow.end_whole();
    }
    drop((daemons, fourth));
    wiretap.stop().assert_closed();
}

#[test]
fn a_node_that_leaves_the_file_is_fenced_and_the_others_lose_nothing() {
    let network = Network::new();
    let Network { a, b, c, .. } = &network;
    let daemons = start(&network);
    let wiretap = network.wiretap();
    let flow = Flow::start(&a.host, &b.host, &b.v4());
    assert!(c.host.reaches(&a.v4()));

    let without = network.mesh_of(&["a", "b"]);
    network.write(&without);
    daemons[0].wait("c is no peer", AT_ONCE, |status| status.peers.len() == 1);
    daemons[1].wait("c is no peer", AT_ONCE, |status| status.peers.len() == 1);
    assert!(!c.host.reaches(&a.v4()) && !a.host.reaches(&c.v4()));
    // It does not take a file that does not know it, and says so.
    let problems = daemons[2].status().problems;
    assert!(problems[0].contains("no node \"c\""), "{problems:?}");

    flow.end_whole();
    drop(daemons);
    wiretap.stop().assert_closed();
}

#[test]
fn sighup_reads_what_no_watch_tells_of() {
    let network = Network::new();
    // The file is a link to another directory, where it is written in place.
    let elsewhere = network.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a scratch directory");
    let target = elsewhere.join("mesh.toml");
    fs::write(&target, network.mesh_of(&["a", "b"])).expect("a scratch directory");
    let link = network.scratch().join("link.toml");
    symlink(&target, &link).expect("a scratch directory");
    let daemon = Daemon::start_with(&network.a, &link);
    assert_eq!(daemon.status().peers.len(), 1);

    fs::write(&target, network.mesh_of(&["a", "b", "c"])).expect("a scratch directory");
    daemon.signal(Signal::HUP);
    daemon.wait("c is a peer", AT_ONCE, |status| status.peers.len() == 2);
}

#[test]
fn sighup_takes_a_new_preshared_key_at_the_next_handshake() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let keyed = network.mesh_of(&["a", "b"]).replacen(
        "[mesh]",
        "[mesh]\npreshared_key_file = \"mesh.psk\"",
        1,
    );
    network.write(&keyed);
    let keep = |node: &Node, key: [u8; 32]| {
        let key = PresharedKey::from_bytes(key).expect("not zero");
        let state = StateDir::new(&node.state);
        let text = key.to_base64();
        state
            .write("mesh.psk", text.as_bytes())
            .expect("a scratch directory");
    };
    keep(a, [1; 32]);
    keep(b, [2; 32]);
    let daemons = [a, b].map(Daemon::start);
    assert!(!a.host.reaches(&b.v4()));

    keep(b, [1; 32]);
    daemons[1].signal(Signal::HUP);
    patiently("they agree", 2 * AT_ONCE, || a.host.reaches(&b.v4()));
}

#[test]
fn keys_that_are_renamed_over_are_taken_without_a_signal() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let keyed = network.mesh_of(&["a", "b"]).replacen(
        "[mesh]",
        "[mesh]\npreshared_key_file = \"mesh.psk\"",
        1,
    );
    let keep = |node: &Node, name: &str, text: String| {
        let state = StateDir::new(&node.state);
        let kept = state.write(name, text.as_bytes());
        kept.expect("a scratch directory");
    };
    let preshared = |byte| {
        let key = PresharedKey::from_bytes([byte; 32]).expect("not zero");
        key.to_base64()
    };
    let daemons = [a, b].map(Daemon::start);
    keep(a, "mesh.psk", preshared(1));
    network.write(&keyed);
    // One that is missed, and made.
    daemons[1].wait("the key is missed", AT_ONCE, |status| {
        let mut problems = status.problems.iter();
        problems.any(|problem| problem.contains("mesh.psk"))
    });
    keep(b, "mesh.psk", preshared(2));
    daemons[1].wait("the key is there", AT_ONCE, |status| {
        status.problems.is_empty()
    });
    patiently("the keys differ", AT_ONCE, || !a.host.reaches(&b.v4()));
    keep(b, "mesh.psk", preshared(1));
    patiently("they agree", 2 * AT_ONCE, || a.host.reaches(&b.v4()));

    // The private key after the file that names the new public one.
    let new = PrivateKey::from_bytes([77; 32]);
    network.write(&keyed.replace(&b.public_key(), &new.public().to_string()));
    daemons[1].wait("the key does not fit", AT_ONCE, |status| {
        let mut problems = status.problems.iter();
        problems.any(|problem| problem.contains("private key"))
    });
    keep(b, "private.key", new.to_base64());
    daemons[1].wait("the key fits", AT_ONCE, |status| status.problems.is_empty());
    patiently("they agree again", 2 * AT_ONCE, || a.host.reaches(&b.v4()));
}

#[test]
fn a_bad_file_is_refused_whole_with_its_sentence_and_the_old_one_stays_in_force() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let daemons = start(&network);
    let flow = Flow::start(&a.host, &b.host, &b.v4());
    let before = daemons[0].status();

    // A good fourth node, and a mistake in it.
    let bad = network
        .mesh_of(&["a", "b", "c", "d"])
        .replace("fd77:0:4::/48", "fd77:0:3::/48");
    network.write(&bad);
    let line = 1 + bad
        .lines()
        .position(|line| line.contains("10.77.4.0"))
        .expect("it is there");
    let place = format!("{}:{line}:", network.mesh_file().display());
    for daemon in &daemons {
        daemon.wait("the sentence is in status", AT_ONCE, |status| {
            let sentence = status.problems.first().map_or("", |problem| problem);
            sentence.starts_with(&place) && sentence.contains("fd77:0:3::/48")
        });
    }
    let after = daemons[0].status();
    assert_eq!(after.node.mesh_digest, before.node.mesh_digest);
    assert_eq!(after.plan, before.plan);
    assert!(
        !a.host
            .run("ip route show table 51880")
            .contains("10.77.4.0")
    );

    // Half a file, none at all, and the good one again.
    network.write(&bad[..bad.len() / 2]);
    fs::remove_file(network.mesh_file()).expect("it is there");
    daemons[0].wait("the file is missed", AT_ONCE, |status| {
        status
            .problems
            .first()
            .is_some_and(|problem| problem.contains("cannot be read"))
    });
    network.write(&network.mesh_of(&["a", "b", "c"]));
    daemons[0].wait("all is well", AT_ONCE, |status| status.problems.is_empty());
    flow.end_whole();
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_waited_for_by_nobody() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let text = network.mesh_of(&["a", "b", "c"]);
    let keyed = text.replacen("[mesh]", "[mesh]\npreshared_key_file = \"mesh.psk\"", 1);
    let daemons = [a, b].map(Daemon::start);
    let refused = |place: &Path| {
        let place = place.display().to_string();
        daemons[0].wait("the pipe is refused", AT_ONCE, |status| {
            let mut problems = status.problems.iter();
            problems
                .any(|problem| problem.starts_with(&place) && problem.contains("no ordinary file"))
        });
        assert!(a.host.reaches(&b.v4()));
    };

    let pipe = network.scratch().join("pipe");
    a.host.run(&format!("mkfifo -m 600 {}", pipe.display()));
    fs::rename(&pipe, network.mesh_file()).expect("a scratch directory");
    refused(network.mesh_file());
    let key = a.state.join("mesh.psk");
    a.host.run(&format!("mkfifo -m 600 {}", key.display()));
    network.write(&keyed);
    refused(&key);
    network.write(&text);
    daemons[0].wait("all is well", AT_ONCE, |status| status.problems.is_empty());
}

#[test]
fn a_file_that_covers_the_underlay_is_refused() {
    let network = Network::new();
    let daemon = Daemon::start(&network.a);
    let bad = network.mesh_of(&["a", "b", "c"]).replacen(
        "\"10.77.0.0/16\"",
        "\"10.77.0.0/16\", \"192.0.2.0/25\"",
        1,
    );
    network.write(&bad);
    daemon.wait("the sentence is in status", AT_ONCE, |status| {
        let mut problems = status.problems.iter();
        problems.any(|problem| problem.contains("192.0.2.0/25") && problem.contains("192.0.2.1"))
    });
    assert!(network.a.host.reaches("192.0.2.2"));
}

#[test]
fn a_restart_with_a_bad_file_goes_on_with_the_last_good_one() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let good = Daemon::start(a).status().node.mesh_digest;
    let _other = Daemon::start(b);
    network.write("[mesh]\nprefixes = \"everything\"\n");

    let daemon = Daemon::start(a);
    let status = daemon.status();
    assert_eq!(status.node.mesh_digest, good);
    assert!(
        status.problems[0].contains("everything"),
        "{:?}",
        status.problems
    );
    assert!(a.host.reaches(&b.v4()));

    // Without one there is nothing to go on with.
    let c = &network.c;
    let run = c.host.warrend(
        &format!("--mesh {} --node c", network.mesh_file().display()),
        &c.state,
    );
    assert!(!run.success && run.stderr.contains("everything"), "{run}");
}

#[test]
fn nodes_that_run_different_files_name_each_other() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let other = network.scratch().join("other.toml");
    let text = network.mesh_of(&["a", "b", "c"]);
    fs::write(&other, format!("# A comment more.\n{text}")).expect("a scratch directory");
    let daemons = [Daemon::start(a), Daemon::start_with(b, &other)];
    assert!(a.host.reaches(&b.v4()));

    let digests = daemons
        .each_ref()
        .map(|daemon| daemon.status().node.mesh_digest);
    for (daemon, (peer, digest)) in daemons.iter().zip([("b", &digests[1]), ("a", &digests[0])]) {
        daemon.wait("the other is named", TOLD, |_| {
            let peer = daemon.peer(peer);
            peer.mesh_digest == *digest
                && peer.problem.as_deref() == Some("it runs another mesh file")
        });
    }
    // And no longer, when they have come together.
    fs::write(&other, text).expect("a scratch directory");
    for (daemon, peer) in daemons.iter().zip(["b", "a"]) {
        daemon.wait("they agree", TOLD, |_| daemon.peer(peer).problem.is_none());
    }
}

#[test]
fn an_interface_that_the_file_renames_takes_fence_and_status_with_it() {
    let network = Network::new();
    let Network { a, b, .. } = &network;
    let mut daemons = [a, b].map(Daemon::start);
    assert!(a.host.reaches(&b.v4()));
    let wiretap = network.wiretap();
    let flood = Flood::start(&a.host, &b.addresses());
    let renamed = "[mesh]\ninterface = \"burrow0\"";
    network.write(
        &network
            .mesh_of(&["a", "b", "c"])
            .replacen("[mesh]", renamed, 1),
    );
    for (daemon, node) in daemons.iter_mut().zip([a, b]) {
        daemon.renamed(node, "burrow0");
        daemon.wait("it is there under its new name", 2 * AT_ONCE, |status| {
            status.node.up && status.problems.is_empty()
        });
        patiently("nothing is left of the old name", AT_ONCE, || {
            !node.host.file(SOCKET).exists()
                && !node.host.attempt("ip link show warren0").success
                && !node.host.run("nft list tables").contains("warren0")
        });
    }
    patiently("b is reached", 2 * AT_ONCE, || a.host.reaches(&b.v4()));
    flood.go_on();
    flood.stop();
    drop(daemons);
    wiretap.stop().assert_closed();
}

#[test]
fn plan_shows_what_the_daemon_does_and_refuses_what_it_refuses() {
    let network = Network::new();
    let a = &network.a;
    let file = network.scratch().join("next.toml");
    let plan = |text: &str| {
        fs::write(&file, text).expect("a scratch directory");
        let mut command = a.host.command(warren());
        command
            .arg("plan")
            .arg(&file)
            .args(["--node", "a", "--state"]);
        Run::from(command.arg(&a.state))
    };
    let good = network.mesh_of(&["a", "b", "c"]);
    let before = plan(&good);
    assert!(
        before.success && before.stdout.contains("10.77.0.2/32"),
        "{before}"
    );

    let daemon = Daemon::start(a);
    let same = plan(&good);
    assert!(
        same.success && same.stdout.contains("changes nothing"),
        "{same}"
    );
    let more = plan(&network.mesh_of(&["a", "b", "c", "d"]));
    assert!(
        more.success && more.stdout.contains("10.77.0.4/32"),
        "{more}"
    );
    assert!(!more.stdout.contains("10.77.0.2/32"), "{more}");

    // An address of the underlay: the daemon's very sentence.
    let over = "\"10.77.0.0/16\", \"192.0.2.0/25\"";
    let bad = good.replacen("\"10.77.0.0/16\"", over, 1);
    let refused = plan(&bad);
    network.write(&bad);
    daemon.wait("it is refused", AT_ONCE, |status| {
        !status.problems.is_empty()
    });
    let problems = daemon.status().problems;
    assert!(!refused.success);
    for problem in problems {
        let (_, sentence) = problem.split_once(": ").expect("a place and a sentence");
        assert!(refused.stderr.contains(sentence), "{sentence} in {refused}");
    }
}
