//! The daemon and its host: what it leaves behind, what it gives back, what it does not start on.
//! Behaviour 41.

use std::process::Stdio;

use rustix::process::Signal;
use warren_tests_mesh::{Daemon, Host, Network, Run, warrend};

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
    let lines = |rights: &str, words: &str| {
        let (state, warrend) = (a.state.display(), warrend().display());
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
            assert!(lines[0].contains("root or CAP_NET_ADMIN"), "{refused}");
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
