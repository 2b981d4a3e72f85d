//! The daemon and its host: what it leaves behind, what it gives back, what it does not start on.
//! Behaviour 41.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use warren_tests_mesh::{Daemon, Host, Network, Run, log_of, patiently, warrend};

/// Everything that the tools of others show of a host, but for what traffic counts and for whose the
/// nftables table and the TUN are at the moment.
fn shown(at: &Host) -> Vec<String> {
    let text = at.run(
        "{ nft list ruleset
        ip rule
        ip -6 rule
        ip route show table all
        ip -6 route show table all
        ip -o link
        ip -o addr
        } | grep -v -e packets -e flags | sed '
            s/NO-CARRIER,//; s/,LOWER_UP//; s/ linkdown//; s/state DOWN/state UNKNOWN/
            s/ # progname warrend//; s/expires [0-9]*sec//'",
    );
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.sort();
    lines
}

#[test]
fn sigterm_and_sigkill_leave_everything_and_uninstalling_removes_all_and_only_what_is_ours() {
    for signal in [Signal::TERM, Signal::KILL] {
        let network = Network::new();
        let a = &network.a;
        a.host.run(
            "nft add table inet filter
            nft add chain inet filter input '{ type filter hook input priority 0; }'
            nft add rule inet filter input counter accept
            ip rule add to 203.0.113.0/24 lookup 100 priority 95
            ip route add 203.0.113.0/24 via 192.0.2.254 table 100
            ip tuntap add mode tun name other0",
        );
        let before = shown(&a.host);
        let daemon = Daemon::start(a);
        let running = shown(&a.host);
        assert_ne!(running, before);

        // Not while somebody would put it all back.
        let refused = a.host.warrend("uninstall", &a.state);
        assert!(
            !refused.success && refused.stderr.contains("still runs"),
            "{refused}"
        );
        assert_eq!(shown(&a.host), running);

        let status = daemon.end(signal);
        assert_eq!(status.success(), signal == Signal::TERM);
        assert_eq!(shown(&a.host), running);

        let uninstalled = a.host.warrend("uninstall", &a.state);
        assert!(uninstalled.success, "{uninstalled}");
        assert_eq!(shown(&a.host), before);
        // A second time there is nothing to do, and that is no error.
        assert!(a.host.warrend("uninstall", &a.state).success);
        assert_eq!(shown(&a.host), before);
    }
}

#[test]
fn a_second_daemon_is_refused_with_a_sentence_and_disturbs_nothing() {
    let network = Network::new();
    let a = &network.a;
    let daemon = Daemon::start(a);
    let before = shown(&a.host);
    let second = Run::from(&mut Daemon::command(a, &a.mesh));
    assert!(!second.success);
    assert!(
        second.stderr.contains("another daemon serves this name"),
        "{second}"
    );
    assert_eq!(shown(&a.host), before);
    assert_eq!(daemon.status().problems, Vec::<String>::new());
}

#[test]
fn a_stale_socket_of_a_killed_daemon_is_no_obstacle() {
    let network = Network::new();
    Daemon::start(&network.a).end(Signal::KILL);
    assert!(network.a.host.file(warren_tests_mesh::SOCKET).exists());
    Daemon::start(&network.a).end(Signal::TERM);
    assert!(!network.a.host.file(warren_tests_mesh::SOCKET).exists());
}

#[test]
fn without_rights_it_ends_with_a_sentence() {
    let network = Network::new();
    let a = &network.a;
    let warrend = warrend();
    let lines = |rights: &str, words: &str| {
        let (state, warrend) = (a.state.display(), warrend.display());
        a.host.attempt(&format!(
            "exec setpriv {rights} -- {warrend} {words} --state {state}"
        ))
    };
    let run = format!("--mesh {} --node a", a.mesh.display());
    // Root without the capability, as in a container; and anybody.
    let bare = "--bounding-set -net_admin --inh-caps -net_admin";
    let nobody = "--reuid 65534 --regid 65534 --clear-groups";
    for rights in [bare, nobody] {
        for words in [run.as_str(), "fence --load", "uninstall"] {
            let refused = lines(rights, words);
            assert!(!refused.success, "{words} as {rights}: {refused}");
            let lines: Vec<&str> = refused.stderr.lines().collect();
            assert_eq!(lines.len(), 1, "{words} as {rights}: {refused}");
            // What a user may not open at all, as /dev/net/tun on some hosts, takes root.
            let said = ["root or CAP_NET_ADMIN", "run as root"];
            let says = said.iter().any(|words| lines[0].contains(words));
            assert!(says, "{words} as {rights}: {refused}");
        }
    }
}

#[test]
fn a_name_that_is_taken_by_another_interface_is_refused_and_left_alone() {
    let network = Network::new();
    let a = &network.a;
    a.host.run("ip link add warren0 type veth peer name other");
    let before = shown(&a.host);
    let mut command = Daemon::command(a, &a.mesh);
    let run = Run::from(command.stdout(Stdio::null()));
    assert!(!run.success && run.stderr.contains("warren0"), "{run}");
    assert_eq!(shown(&a.host), before);
}

/// Somebody else on the port of the tunnels, until it is told to leave.
struct Squatter {
    stay: Sender<()>,
    thread: JoinHandle<()>,
}

impl Squatter {
    fn new(at: &Host) -> Self {
        let (stay, leave) = channel::<()>();
        let (ready, is_ready) = channel();
        let thread = at.thread(move || {
            let socket = UdpSocket::bind("0.0.0.0:51820").expect("the port is free");
            ready.send(()).expect("somebody waits");
            let _left = leave.recv();
            drop(socket);
        });
        is_ready.recv().expect("it runs");
        Self { stay, thread }
    }

    fn leave(self) {
        drop(self.stay);
        self.thread.join().expect("it does not panic");
    }
}

#[test]
fn while_the_port_is_taken_it_says_so_and_is_not_ready_and_then_it_is() {
    let at_once = Duration::from_secs(10);
    let network = Network::new();
    let (a, b) = (&network.a, &network.b);
    let _other = Daemon::start(b);
    let socket = network.scratch().join("notify.sock");
    let notified = UnixDatagram::bind(&socket).expect("a scratch directory");
    notified.set_nonblocking(true).expect("a socket option");
    let told = || {
        let mut buffer = [0; 512];
        let length = notified.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };

    // With an interface that is new, and with the one of the run before.
    for _ in 0..2 {
        let squatter = Squatter::new(&a.host);
        let mut command = Daemon::command(a, &a.mesh);
        let daemon = Daemon::start_by(&a.host, &log_of(a), command.env("NOTIFY_SOCKET", &socket));
        let names_port = |sentence: &String| {
            sentence.contains("UDP port 51820 of IPv4 is in use by another program")
                && sentence.contains("end that program, or give the mesh another `port`")
        };
        daemon.wait("the port is named, and no other taken", at_once, |status| {
            status.problems.iter().any(names_port) && status.node.listen_port == 51820
        });
        let logged: Vec<String> = daemon.log().lines().map(str::to_owned).collect();
        assert!(logged.iter().any(names_port), "{logged:#?}");
        let mut words = Vec::new();
        patiently("it goes on trying", at_once, || {
            words.extend(told());
            let tries = words.iter().filter(|words| words.starts_with("STATUS="));
            tries.count() > 2
        });
        assert!(!words.contains(&"READY=1".to_owned()), "{words:?}");
        assert!(!a.host.reaches(&b.v4()));

        squatter.leave();
        patiently("it is ready", at_once, || {
            words.extend(told());
            words.contains(&"READY=1".to_owned())
        });
        patiently("they talk", at_once, || a.host.reaches(&b.v4()));
        daemon.wait("all is well", at_once, |status| {
            status.problems.is_empty() && status.node.listen_port == 51820
        });
        assert_eq!(words.iter().filter(|words| *words == "READY=1").count(), 1);
        daemon.end(Signal::TERM);
        while told().is_some() {}
    }
}
