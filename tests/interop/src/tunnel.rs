//! A tunnel between two hosts, of which each may run another implementation.

use std::path::PathBuf;
use std::process::Stdio;

use crate::{Host, Run, boringtun, connect, patiently, warren_wg, wireguard_go};

/// Which program is an end of the tunnel.
#[derive(Debug, Clone, Copy)]
pub enum Program {
    /// `warren-wg` of this checkout.
    Warren,
    /// The newest wireguard-go.
    WireguardGo,
    /// `boringtun-cli`.
    Boringtun,
}

/// Over which family the ends reach each other.
#[derive(Debug, Clone, Copy)]
pub enum Outer {
    /// `192.0.2.0/24`.
    V4,
    /// `2001:db8::/64`.
    V6,
}

/// Two hosts, and a tunnel `wg0` between them: `10.9.0.1` and `fd09::1` call `10.9.0.2` and `fd09::2`.
#[derive(Debug)]
pub struct Tunnel {
    /// Knows where the other is.
    pub caller: Host,
    /// Learns it from the first message.
    pub called: Host,
}

impl Tunnel {
    /// A tunnel without a preshared key.
    pub fn new(caller: Program, called: Program, outer: Outer) -> Self {
        Self::with_preshared(caller, called, outer, None)
    }

    /// A tunnel with a preshared key of each end.
    pub fn with_preshared(
        caller: Program,
        called: Program,
        outer: Outer,
        preshared: Option<[&str; 2]>,
    ) -> Self {
        let (left, right) = (Host::new(), Host::new());
        let (addresses, endpoint) = match outer {
            Outer::V4 => (["192.0.2.1/24", "192.0.2.2/24"], "192.0.2.2:51820"),
            Outer::V6 => (["2001:db8::1/64", "2001:db8::2/64"], "[2001:db8::2]:51820"),
        };
        connect((&left, &addresses[..1]), (&right, &addresses[1..]));
        let tunnel = Self {
            caller: left,
            called: right,
        };
        let keys = [tunnel.start(caller, 1), tunnel.start(called, 2)];
        // One message for all of a peer: boringtun cannot change one that exists.
        for (host, device, peer, address, n) in [
            (&tunnel.caller, "", 1, format!("endpoint {endpoint}"), 2),
            (&tunnel.called, "listen-port 51820", 0, String::new(), 1),
        ] {
            let key = preshared.map(|keys| keys[1 - peer]).unwrap_or_default();
            let from = preshared.map_or("", |_| "preshared-key /dev/stdin");
            let peer = &keys[peer];
            let prefixes = format!("10.9.0.{n}/32,fd09::{n}/128");
            let script =
                format!("wg set wg0 {device} peer {peer} {from} {address} allowed-ips {prefixes}");
            host.shell(&script, key);
        }
        tunnel
    }

    /// Starts the program of an end, and returns the public key that it got.
    fn start(&self, program: Program, n: u8) -> String {
        let host = if n == 1 { &self.caller } else { &self.called };
        let (path, arguments): (PathBuf, &[&str]) = match program {
            Program::Warren => (warren_wg().to_owned(), &["wg0"]),
            Program::WireguardGo => (wireguard_go(), &["wg0"]),
            Program::Boringtun => (boringtun(), &["--disable-drop-privileges", "wg0"]),
        };
        let run = Run::from(host.command(path).args(arguments).stdin(Stdio::null()));
        assert!(run.success, "{run}");
        let public = host.shell("wg genkey | tee /var/run/key | wg pubkey", "");
        patiently("wg may speak to it", || host.attempt("wg show wg0").success);
        host.run("wg set wg0 private-key /var/run/key");
        host.run(&format!("ip address add 10.9.0.{n}/24 dev wg0"));
        host.run(&format!("ip address add fd09::{n}/64 dev wg0 nodad"));
        host.run("ip link set wg0 up");
        public.trim().to_owned()
    }

    /// Gives each end another preshared key.
    pub fn set_preshared(&self, keys: [&str; 2]) {
        for (host, key) in [&self.caller, &self.called].into_iter().zip(keys) {
            let peer = host.run("wg show wg0 peers");
            let script = format!("wg set wg0 peer {} preshared-key /dev/stdin", peer.trim());
            host.shell(&script, key);
        }
    }

    /// Pings of the called end, a hundred a second, that go on in the background.
    pub fn pings(&self, count: u32) -> Pings {
        self.pings_every("0.01", count)
    }

    /// As [`Self::pings`], with another pause between them, in seconds.
    pub fn pings_every(&self, pause: &str, count: u32) -> Pings {
        let mut command = self.caller.command("ping");
        let count = count.to_string();
        command.args(["-q", "-i", pause, "-W", "2", "-c", &count, "10.9.0.2"]);
        let child = command.stdout(Stdio::piped()).spawn();
        Pings(child.expect("nsenter is installed"))
    }

    /// What both ends say of themselves.
    pub fn describe(&self) -> String {
        format!(
            "{}\n{}",
            self.caller.run("wg show"),
            self.called.run("wg show")
        )
    }
}

/// Pings that go on.
#[derive(Debug)]
pub struct Pings(std::process::Child);

impl Pings {
    /// How many were lost in the end.
    pub fn lost(self) -> u32 {
        let run = self.0.wait_with_output().expect("a child");
        let text = String::from_utf8(run.stdout).expect("text");
        let line = text.lines().find(|line| line.contains("transmitted"));
        let counts = line.unwrap_or_else(|| panic!("no result in {text}"));
        let mut numbers = counts
            .split(' ')
            .filter_map(|word| word.parse::<u32>().ok());
        let (sent, received) = (numbers.next(), numbers.next());
        sent.expect("a number") - received.expect("a number")
    }
}
