//! `wg(8)` against the model of a device, over a real socket.
//!
//! What `wg(8)` sends is not documented line by line; here it sends it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use warren_config::{PeerConfig, PublicKey};
use warren_control::{Limits, Listener, Memory, Server, uapi};
use warren_tests_interop::Host;

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PSK: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
const A: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const B: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

const CONFIGURATION: &str = "[Interface]
ListenPort = 51820
FwMark = 0xca6c
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=

[Peer]
PublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
AllowedIPs = 10.2.0.0/16, 10.3.0.0/24
Endpoint = [2607:5300:60:6b0::c05f:543]:2468

[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
PresharedKey = FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=
AllowedIPs = 10.192.122.3/32, fd00::/64
Endpoint = 192.95.5.67:1234
PersistentKeepalive = 25
";

#[test]
fn set_and_show_agree() {
    let device = Device::new();
    device.wg(&format!(
        "set wg0 listen-port 51820 fwmark 0xca6c private-key <(echo {PRIVATE}) \
         peer {A} preshared-key <(echo {PSK}) endpoint 192.95.5.67:1234 persistent-keepalive 25 \
         allowed-ips 10.192.122.3/32,fd00::/64"
    ));
    assert_eq!(
        device.wg("show wg0 dump"),
        format!(
            "{PRIVATE}\tHIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=\t51820\t0xca6c\n\
             {A}\t{PSK}\t192.95.5.67:1234\t10.192.122.3/32,fd00::/64\t0\t0\t0\t25\n"
        )
    );
    let shown = device.wg("show wg0");
    for line in [
        "interface: wg0",
        "  private key: (hidden)",
        "  listening port: 51820",
        "  fwmark: 0xca6c",
        "  endpoint: 192.95.5.67:1234",
        "  allowed ips: 10.192.122.3/32, fd00::/64",
        "  persistent keepalive: every 25 seconds",
    ] {
        assert!(
            shown.lines().any(|it| it == line),
            "{line} is not in\n{shown}"
        );
    }
    assert_eq!(device.wg("show interfaces"), "wg0\n");
}

#[test]
fn what_was_set_can_be_taken_back() {
    let device = Device::new();
    device.configure("setconf", CONFIGURATION);
    device.wg(&format!(
        "set wg0 fwmark off private-key /dev/null listen-port 0 \
         peer {A} preshared-key /dev/null persistent-keepalive off allowed-ips '' peer {B} remove"
    ));
    let config = device.memory.config();
    assert_eq!(
        (config.private_key, config.fwmark, config.listen_port),
        (None, 0, 0)
    );
    let endpoint = "192.95.5.67:1234".parse().expect("an address");
    let bare = PeerConfig {
        endpoints: vec![endpoint],
        ..PeerConfig::default()
    };
    assert_eq!(
        config.peers.into_iter().collect::<Vec<_>>(),
        [(key(A), bare)]
    );
}

#[test]
fn a_prefix_given_to_another_peer_leaves_the_first() {
    let device = Device::new();
    device.wg(&format!(
        "set wg0 peer {A} allowed-ips 10.0.0.0/24,10.0.1.0/24"
    ));
    device.wg(&format!("set wg0 peer {B} allowed-ips 10.0.1.0/24"));
    let shown = device.wg("show wg0 allowed-ips");
    assert!(shown.contains(&format!("{A}\t10.0.0.0/24\n")), "{shown}");
    assert!(shown.contains(&format!("{B}\t10.0.1.0/24\n")), "{shown}");
}

#[test]
fn showconf_is_what_setconf_takes() {
    let device = Device::new();
    device.configure("setconf", CONFIGURATION);
    let first = device.memory.config();
    assert_eq!(first.peers.len(), 2);
    let shown = device.wg("showconf wg0");
    device.configure("setconf", "[Interface]\n");
    assert!(device.memory.config().peers.is_empty());
    device.configure("setconf", &shown);
    assert_eq!(device.memory.config(), first);
    assert_eq!(device.wg("showconf wg0"), shown);
}

#[test]
fn addconf_adds_and_leaves_the_rest() {
    let device = Device::new();
    device.wg(&format!(
        "set wg0 peer {A} allowed-ips 10.9.0.0/24 persistent-keepalive 7"
    ));
    device.configure(
        "addconf",
        &format!("[Peer]\nPublicKey = {B}\nAllowedIPs = 10.8.0.0/24\n"),
    );
    let config = device.memory.config();
    assert_eq!(config.peers[&key(A)].persistent_keepalive, 7);
    assert_eq!(config.peers.len(), 2);
}

#[test]
fn syncconf_removes_what_is_not_named_and_keeps_what_is() {
    let device = Device::new();
    device.configure("setconf", CONFIGURATION);
    let only = CONFIGURATION.split("[Peer]").take(2).collect::<Vec<_>>();
    device.configure("syncconf", &only.join("[Peer]"));
    let config = device.memory.config();
    assert_eq!(config.peers.keys().collect::<Vec<_>>(), [&key(B)]);
    assert_eq!(config.peers[&key(B)].allowed_ips.len(), 2);
}

#[test]
fn a_link_local_endpoint_keeps_its_interface() {
    let device = Device::new();
    device.wg(&format!("set wg0 peer {A} endpoint [fe80::1%lo]:51820"));
    let shown = device.wg("show wg0 endpoints");
    assert_eq!(shown, format!("{A}\t[fe80::1%lo]:51820\n"));
}

#[test]
fn a_port_that_is_taken_is_said_in_words() {
    let device = Device::new();
    let failed = device.attempt("set wg0 fwmark 7 listen-port 53");
    assert_eq!(
        failed,
        "Unable to modify interface: Address already in use\n"
    );
    assert_eq!(
        device.memory.config().fwmark,
        0,
        "nothing of it was carried out"
    );
}

#[test]
fn ten_thousand_peers_come_and_go_by_wg() {
    let device = Device::new();
    let peers = (0..10_000u32).map(|n| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let [_, _, c, d] = n.to_be_bytes();
        let key = PublicKey::from_bytes(bytes);
        format!("[Peer]\nPublicKey = {key}\nAllowedIPs = 10.0.{c}.{d}/32\n")
    });
    let configuration: String = peers.collect();
    device.configure("setconf", &configuration);
    assert_eq!(device.memory.config().peers.len(), 10_000);
    assert_eq!(device.wg("show wg0 peers").lines().count(), 10_000);
    device.configure("syncconf", "[Interface]\n");
    assert!(device.memory.config().peers.is_empty());
}

/// A device `wg0` in memory, on a host where `wg` finds it.
struct Device {
    memory: Arc<Memory>,
    host: Host,
    directory: PathBuf,
    _server: Server,
}

impl Device {
    /// One whose port 53 is taken.
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("warren-wg8-{}-{count}", std::process::id()));
        let listener = Listener::claim(&directory.join("wg0.sock")).expect("a free path");
        let memory = Arc::new(Memory::with_taken_ports([53]));
        let server = uapi::serve(listener, memory.clone(), Limits::default());
        let host = Host::new();
        host.run("mkdir -p /var/run/wireguard");
        host.run(&format!(
            "mount --bind {} /var/run/wireguard",
            directory.display()
        ));
        Self {
            memory,
            host,
            directory,
            _server: server.expect("a server"),
        }
    }

    /// Runs `wg`, with what a shell makes of the words.
    fn wg(&self, words: &str) -> String {
        self.host.shell(&format!("wg {words}"), "")
    }

    /// The complaint of a `wg` that must fail.
    fn attempt(&self, words: &str) -> String {
        let run = self.host.attempt(&format!("wg {words}"));
        assert!(!run.success, "wg {words} succeeded");
        run.stderr
    }

    fn configure(&self, command: &str, configuration: &str) {
        let script = format!("wg {command} wg0 /dev/stdin");
        self.host.shell(&script, configuration);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn key(text: &str) -> PublicKey {
    text.parse().expect("a key")
}
