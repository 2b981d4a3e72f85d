//! The life of `warren-wg`: how it starts, what it refuses, and how it ends.

use std::process::{Command, Stdio};

use warren_tests_interop::{Host, Run, patiently, warren_wg};

#[test]
fn it_returns_when_the_device_is_ready_and_lives_on() {
    let host = Host::new();
    let run = start(&host, "wg0");
    assert!(run.success, "{run}");
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    assert!(host.has_interface("wg0"));
    assert_eq!(host.processes("warren-wg").len(), 1);
    assert_eq!(host.run("wg show interfaces"), "wg0\n");
    assert_eq!(host.run("stat -c %a /var/run/wireguard"), "755\n");
    assert_eq!(
        host.run("stat -c %a:%F /var/run/wireguard/wg0.sock"),
        "600:socket\n"
    );
}

#[test]
fn the_daemon_has_left_the_terminal_and_every_descriptor_of_its_starter() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    let pid = host.processes("warren-wg")[0];
    for fd in [0, 1, 2] {
        assert_eq!(
            host.run(&format!("readlink /proc/{pid}/fd/{fd}")),
            "/dev/null\n"
        );
    }
    let stat = host.run(&format!("ps -o sid=,tty= -p {pid}"));
    let words: Vec<_> = stat.split_whitespace().collect();
    assert_eq!(
        words,
        [pid.to_string().as_str(), "?"],
        "a session of its own"
    );
}

#[test]
fn the_log_goes_on_in_the_background_when_it_is_asked_for() {
    let host = Host::new();
    let program = warren_wg().display();
    host.shell(
        &format!("LOG_LEVEL=debug {program} wg0 2>/var/run/log; wg set wg0 listen-port 7"),
        "",
    );
    stop(&host, "TERM");
    patiently("the end is in the log", || {
        host.run("cat /var/run/log")
            .contains("ends: signal 15 arrived")
    });
}

#[test]
fn a_second_daemon_of_the_name_is_refused_with_a_sentence() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    let second = start(&host, "wg0");
    assert!(!second.success);
    assert_eq!(
        second.stderr,
        "warren-wg: /var/run/wireguard/wg0.sock is in use: another daemon serves this name; \
         stop it first\n"
    );
    assert_eq!(host.processes("warren-wg").len(), 1);
    assert_eq!(
        host.run("wg show interfaces"),
        "wg0\n",
        "the first is unharmed"
    );
    assert!(
        start(&host, "wg1").success,
        "another name is another device"
    );
}

#[test]
fn a_name_that_is_none_is_refused_with_a_sentence() {
    let host = Host::new();
    for name in ["../wg0", "a-name-that-is-too-long", "wg:0"] {
        let run = start(&host, name);
        assert!(!run.success);
        assert!(
            run.stderr.contains("an interface name has 1 to 15 bytes"),
            "{run}"
        );
        assert!(!host.exists("/var/run/wireguard"));
    }
}

#[test]
fn a_name_that_is_no_tun_interface_is_refused_with_a_sentence() {
    let host = Host::new();
    let run = start(&host, "lo");
    assert!(!run.success);
    assert!(run.stderr.starts_with("warren-wg: cannot open lo"), "{run}");
    assert_eq!(run.stderr.lines().count(), 1, "{run}");
    assert!(!host.exists("/var/run/wireguard/lo.sock"));
}

#[test]
fn without_rights_it_says_what_to_do() {
    let host = Host::new();
    for prepare in ["true", "mkdir -m 777 /var/run/wireguard"] {
        host.shell(prepare, "");
        let run = Run::from(
            host.command("setpriv")
                .args([
                    "--reuid",
                    "65534",
                    "--regid",
                    "65534",
                    "--clear-groups",
                    "--",
                ])
                .arg(warren_wg())
                .arg("wg0"),
        );
        assert!(!run.success);
        assert!(run.stderr.contains("root"), "{run}");
        assert_eq!(run.stderr.lines().count(), 1, "{run}");
        assert!(!host.exists("/var/run/wireguard/wg0.sock"));
    }
}

#[test]
fn a_signal_ends_it_with_its_interface_and_its_socket() {
    for signal in ["TERM", "INT", "HUP"] {
        let host = Host::new();
        assert!(start(&host, "wg0").success);
        stop(&host, signal);
        is_gone(&host);
    }
}

#[test]
fn deleting_the_interface_ends_it() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    host.run("ip link delete dev wg0");
    is_gone(&host);
}

#[test]
fn deleting_the_socket_ends_it() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    host.run("rm -f /var/run/wireguard/wg0.sock");
    is_gone(&host);
}

#[test]
fn after_a_kill_it_starts_again_beside_the_stale_socket() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    host.run("wg set wg0 listen-port 7");
    stop(&host, "KILL");
    // A process that is killed lets go of its descriptors one after the other.
    patiently("the process and its interface go", || {
        host.processes("warren-wg").is_empty()
            && !host.has_interface("wg0")
            && !host.run("ss -Hlx").contains("wg0.sock")
    });
    assert!(
        host.exists("/var/run/wireguard/wg0.sock"),
        "nobody could remove it"
    );
    let again = start(&host, "wg0");
    assert!(again.success, "{again}");
    assert_eq!(host.run("wg show wg0 listen-port"), "0\n", "a new device");
}

#[test]
fn down_and_up_again_is_no_end() {
    let host = Host::new();
    assert!(start(&host, "wg0").success);
    host.run("wg set wg0 listen-port 7");
    for _ in 0..3 {
        host.run("ip link set wg0 up");
        patiently("the port is open", || host.run("ss -Hlun").contains(":7 "));
        host.run("ip link set wg0 down");
        patiently("the port is closed", || {
            !host.run("ss -Hlun").contains(":7 ")
        });
    }
    assert_eq!(host.run("wg show wg0 listen-port"), "7\n");
}

#[test]
fn in_the_foreground_it_stays_until_it_is_interrupted() {
    for how in ["--foreground", "-f"] {
        let host = Host::new();
        let mut process = host
            .command(warren_wg())
            .args([how, "wg0"])
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter is installed");
        patiently("the socket is there", || {
            host.exists("/var/run/wireguard/wg0.sock")
        });
        assert_eq!(host.run("wg show interfaces"), "wg0\n");
        assert!(process.try_wait().expect("a child").is_none());
        stop(&host, "INT");
        assert!(process.wait().expect("a child").success());
        is_gone(&host);
    }
}

#[test]
fn descriptors_that_others_opened_are_used() {
    let host = Host::new();
    let supervisor = env!("CARGO_BIN_EXE_hand-over");
    let run = Run::from(host.command(supervisor).arg(warren_wg()));
    assert!(run.success, "{run}");
    assert!(host.has_interface("given0"));
    host.run("mkdir /var/run/wireguard");
    host.run("ln -s /var/run/given/it.sock /var/run/wireguard/given0.sock");
    host.run("wg set given0 listen-port 7");
    assert_eq!(host.run("wg show given0 listen-port"), "7\n");
    stop(&host, "TERM");
    patiently("the interface goes", || !host.has_interface("given0"));
}

#[test]
fn descriptors_that_are_none_are_refused_with_a_sentence() {
    let host = Host::new();
    let program = warren_wg().display();
    for (variable, sentence) in [
        (
            "WG_TUN_FD=77",
            "warren-wg: WG_TUN_FD is 77, which is no open descriptor",
        ),
        (
            "WG_UAPI_FD=77",
            "warren-wg: WG_UAPI_FD is 77, which is no open descriptor",
        ),
        ("WG_TUN_FD=0", "warren-wg: cannot use WG_TUN_FD"),
        (
            "WG_UAPI_FD=0",
            "warren-wg: WG_UAPI_FD is no listening unix socket",
        ),
    ] {
        let script = format!("! {variable} {program} -f wg0 2>&1 </dev/null");
        let said = host.shell(&script, "");
        assert!(said.starts_with(sentence), "{said}");
    }
}

#[test]
fn the_kernel_chooses_a_number_where_the_name_asks_for_it() {
    let host = Host::new();
    for name in ["wg0", "wg1"] {
        assert!(start(&host, "wg%d").success);
        assert!(host.has_interface(name));
        assert!(host.exists(&format!("/var/run/wireguard/{name}.sock")));
    }
}

#[test]
fn help_and_version_go_to_the_standard_output() {
    for (option, start) in [
        ("--help", "A userspace WireGuard device"),
        ("--version", "warren-wg "),
    ] {
        let run = Run::from(Command::new(warren_wg()).arg(option));
        assert!(run.success && run.stdout.starts_with(start), "{run}");
        assert_eq!(run.stderr, "");
    }
    let run = Run::from(&mut Command::new(warren_wg()));
    assert!(
        !run.success && run.stderr.contains("Usage: warren-wg"),
        "{run}"
    );
}

fn start(host: &Host, interface: &str) -> Run {
    Run::from(
        host.command(warren_wg())
            .arg(interface)
            .stdin(Stdio::null()),
    )
}

/// Sends a signal to the daemon of the host.
fn stop(host: &Host, signal: &str) {
    for pid in host.processes("warren-wg") {
        host.run(&format!("kill -{signal} {pid}"));
    }
}

#[track_caller]
fn is_gone(host: &Host) {
    patiently("the interface goes", || !host.has_interface("wg0"));
    patiently("the socket goes", || {
        !host.exists("/var/run/wireguard/wg0.sock")
    });
    patiently("the status socket goes", || {
        !host.exists("/run/warren/wg0.sock")
    });
}
