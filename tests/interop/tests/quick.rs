//! `wg-quick(8)` with `warren-wg` in the kernel's place.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use warren_tests_interop::{Host, Run, connect, patiently, warren_wg};

const LEFT: (&str, &str) = (
    "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
    "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
);
const RIGHT: (&str, &str) = ("4FxrG6MmvLHfZwWzKT2ZlTbPHAGsa1zhnlmaRjnAaVg=", "");

#[test]
fn up_and_down_on_both_ends_of_a_tunnel() {
    let ends = Ends::new();
    ends.up(
        "Address = 10.9.0.1/24, fd09::1/64\nListenPort = 51820\nMTU = 1380",
        "AllowedIPs = 10.9.0.2/32, fd09::2/128",
        "Address = 10.9.0.2/24, fd09::2/64",
        "Endpoint = 192.0.2.1:51820\nAllowedIPs = 10.9.0.0/24, fd09::/64\nPersistentKeepalive = 25",
    );
    assert!(ends.right.reaches("10.9.0.1"));
    assert!(ends.left.reaches("fd09::2"));
    assert!(ends.left.run("ip link show wg0").contains("mtu 1380"));
    ends.down();
}

#[test]
fn everything_through_the_tunnel() {
    // A default route makes wg-quick set a mark and rules, and the endpoint must stay outside.
    let ends = Ends::new();
    ends.up(
        "Address = 10.9.0.1/24\nListenPort = 51820",
        "AllowedIPs = 10.9.0.2/32",
        "Address = 10.9.0.2/24",
        "Endpoint = 192.0.2.1:51820\nAllowedIPs = 0.0.0.0/0",
    );
    ends.left.run("ip address add 203.0.113.1/32 dev lo");
    assert!(ends.right.reaches("203.0.113.1"));
    assert_eq!(ends.right.run("wg show wg0 fwmark"), "0xca6c\n");
    ends.down();
    assert!(!ends.right.run("ip rule").contains("51820"));
}

#[test]
fn the_configuration_is_saved_at_the_end() {
    let ends = Ends::new();
    ends.up(
        "Address = 10.9.0.1/24\nListenPort = 51820\nSaveConfig = true",
        "AllowedIPs = 10.9.0.2/32",
        "Address = 10.9.0.2/24",
        "Endpoint = 192.0.2.1:51820\nAllowedIPs = 10.9.0.1/32",
    );
    assert!(ends.right.reaches("10.9.0.1"));
    ends.down();
    let saved = fs::read_to_string(ends.file("left")).expect("the configuration");
    assert!(saved.contains("Address = 10.9.0.1/24\n"), "{saved}");
    assert!(saved.contains("ListenPort = 51820\n"), "{saved}");
    assert!(
        saved.contains("Endpoint = 192.0.2.2:"),
        "learnt by roaming\n{saved}"
    );
}

/// Two hosts on a cable, each with a configuration file `wg0.conf`.
struct Ends {
    left: Host,
    right: Host,
    directory: PathBuf,
}

impl Ends {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("warren-quick-{}-{count}", std::process::id()));
        let (left, right) = (Host::new(), Host::new());
        connect((&left, &["192.0.2.1/24"]), (&right, &["192.0.2.2/24"]));
        Self {
            left,
            right,
            directory,
        }
    }

    fn file(&self, end: &str) -> PathBuf {
        self.directory.join(end).join("wg0.conf")
    }

    fn up(&self, left: &str, left_peer: &str, right: &str, right_peer: &str) {
        let keys = |private: &str| {
            let public = self.left.shell("wg pubkey", private);
            (private.to_owned(), public.trim().to_owned())
        };
        let (left_keys, right_keys) = (keys(LEFT.0), keys(RIGHT.0));
        assert_eq!(left_keys.1, LEFT.1);
        for (end, host, own, peer, interface, block) in [
            ("left", &self.left, &left_keys, &right_keys, left, left_peer),
            (
                "right",
                &self.right,
                &right_keys,
                &left_keys,
                right,
                right_peer,
            ),
        ] {
            let file = self.file(end);
            fs::create_dir_all(file.parent().expect("a directory")).expect("a writable place");
            let text = format!(
                "[Interface]\nPrivateKey = {}\n{interface}\n\n[Peer]\nPublicKey = {}\n{block}\n",
                own.0, peer.1
            );
            fs::write(&file, text).expect("a writable place");
            let run = self.quick(host, "up", end);
            assert!(run.success, "{run}");
        }
    }

    fn down(&self) {
        for (end, host) in [("left", &self.left), ("right", &self.right)] {
            let run = self.quick(host, "down", end);
            assert!(run.success, "{run}");
            patiently("the socket goes", || {
                !host.exists("/var/run/wireguard/wg0.sock")
            });
            assert!(!host.has_interface("wg0"));
        }
    }

    fn quick(&self, host: &Host, command: &str, end: &str) -> Run {
        Run::from(
            host.command("wg-quick")
                .arg(command)
                .arg(self.file(end))
                .env("WG_QUICK_USERSPACE_IMPLEMENTATION", warren_wg()),
        )
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
