//! Two hosts with a tunnel of ours between them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use warren_control::status::{self, Status};

use crate::{Host, Run, connect, patiently, warren_wg};

/// Two hosts, joined by a cable and by a tunnel `wg0` from `10.9.0.1` to `10.9.0.2`.
#[derive(Debug)]
pub struct Pair {
    /// The host that calls, and the host that is called.
    pub hosts: [Host; 2],
}

impl Pair {
    /// A tunnel of this MTU between two daemons that were started with these switches.
    pub fn new(switches: &str, mtu: u32) -> Self {
        let hosts = [Host::new(), Host::new()];
        connect(
            (&hosts[0], &["192.0.2.1/24"]),
            (&hosts[1], &["192.0.2.2/24"]),
        );
        let keys = hosts.each_ref().map(|host| {
            host.run(&format!("ip link set eth0 mtu {}", mtu.max(1420) + 80));
            let run = Run::from(
                host.command(warren_wg())
                    .args(switches.split_whitespace())
                    .args(["--mtu", &mtu.to_string(), "wg0"])
                    .stdin(Stdio::null()),
            );
            assert!(run.success, "{run}");
            let public = host.shell("wg genkey | tee /var/run/key | wg pubkey", "");
            host.run("wg set wg0 private-key /var/run/key listen-port 51820");
            public.trim().to_owned()
        });
        for (n, host) in hosts.iter().enumerate() {
            let (own, other) = (n + 1, 2 - n);
            host.run(&format!(
                "wg set wg0 peer {} endpoint 192.0.2.{other}:51820 allowed-ips 10.9.0.{other}/32",
                keys[1 - n]
            ));
            host.run(&format!("ip address add 10.9.0.{own}/24 dev wg0"));
            host.run("ip link set wg0 up");
        }
        Self { hosts }
    }

    /// Moves this many bytes each way at once, compares each with what it should be, and gives up
    /// after a time. `program` is where `exchange` of this package was built.
    #[track_caller]
    pub fn exchange(&self, program: &str, bytes: u64, within: Duration) {
        self.exchange_at("10.9.0.2:7", program, bytes, within);
    }

    /// As [`Self::exchange`], over another address of the second host.
    #[track_caller]
    pub fn exchange_at(&self, address: &str, program: &str, bytes: u64, within: Duration) {
        let [caller, called] = &self.hosts;
        let bytes = bytes.to_string();
        let server = called
            .command(Path::new(program))
            .args(["serve", address, &bytes])
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter is installed");
        patiently("the server listens", || {
            called.run("ss -Hltn").contains(&format!("{address} "))
        });
        let seconds = within.as_secs().to_string();
        let call = Run::from(
            caller
                .command("timeout")
                .args([&seconds, program, "call", address, &bytes]),
        );
        assert!(call.success, "{call}");
        let server = server.wait_with_output().expect("a child");
        assert!(
            server.status.success(),
            "{}",
            String::from_utf8_lossy(&server.stderr)
        );
    }

    /// What the daemons say of themselves.
    pub fn status(&self) -> [Status; 2] {
        self.hosts.each_ref().map(|host| {
            let socket = host.root().join("run/warren/wg0.sock");
            status::ask(&socket, Duration::from_secs(10)).expect("the daemon answers")
        })
    }

    /// Memory that the daemons hold now, in KiB.
    pub fn resident_kib(&self) -> [u64; 2] {
        self.hosts
            .each_ref()
            .map(|host| host.memory_kib("warren-wg", "VmRSS"))
    }
}
