//! From a status to the text that answers `get=1`.

use std::fmt;

use super::Errno;
use crate::keys::write_hex;
use crate::{DeviceStatus, PeerStatus, PresharedKey, PublicKey};

/// Writes the answer to `get=1`: every line in wireguard-go's order, `errno=0` and the blank line.
///
/// Each line holds exactly one `=`, for there are readers that count them (Cilium's among them).
/// The text contains the private key and the preshared keys: `out` is to be zeroized.
pub fn write_status(out: &mut impl fmt::Write, status: &DeviceStatus) -> fmt::Result {
    if let Some(key) = &status.private_key {
        write_key(out, "private_key=", key.as_bytes())?;
    }
    if status.listen_port != 0 {
        writeln!(out, "listen_port={}", status.listen_port)?;
    }
    if status.fwmark != 0 {
        writeln!(out, "fwmark={}", status.fwmark)?;
    }
    for (key, peer) in &status.peers {
        write_peer(out, key, peer)?;
    }
    out.write_str("errno=0\n\n")
}

/// Writes the answer to a request that is only done or not done.
///
/// The number is negated, as wireguard-go and the kernel return it: `wg(8)` negates it once more to
/// find the words for it.
pub fn write_errno(out: &mut impl fmt::Write, result: Result<(), Errno>) -> fmt::Result {
    let errno = result.err().map_or(0, |errno| errno.0);
    write!(out, "errno={}\n\n", -i64::from(errno))
}

fn write_peer(out: &mut impl fmt::Write, key: &PublicKey, peer: &PeerStatus) -> fmt::Result {
    write_key(out, "public_key=", key.as_bytes())?;
    let preshared_key = peer.config.preshared_key.as_ref();
    let preshared_key = preshared_key.map_or(&[0; 32], PresharedKey::as_bytes);
    write_key(out, "preshared_key=", preshared_key)?;
    out.write_str("protocol_version=1\n")?;
    if let Some(endpoint) = peer.endpoint {
        // The scope of a link-local address is written as a number, which every reader takes.
        writeln!(out, "endpoint={endpoint}")?;
    }
    let handshake = peer.last_handshake.unwrap_or_default().0;
    writeln!(out, "last_handshake_time_sec={}", handshake.as_secs())?;
    writeln!(out, "last_handshake_time_nsec={}", handshake.subsec_nanos())?;
    writeln!(out, "tx_bytes={}", peer.tx_bytes)?;
    writeln!(out, "rx_bytes={}", peer.rx_bytes)?;
    let interval = peer.config.persistent_keepalive;
    writeln!(out, "persistent_keepalive_interval={interval}")?;
    for prefix in &peer.config.allowed_ips {
        writeln!(out, "allowed_ip={prefix}")?;
    }
    Ok(())
}

/// As `writeln!`, but a key does not go through the machinery of formats: of thousands it shows.
fn write_key(out: &mut impl fmt::Write, name: &str, key: &[u8; 32]) -> fmt::Result {
    out.write_str(name)?;
    write_hex(out, key)?;
    out.write_str("\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::uapi::{Request, parse_all};
    use crate::{DeviceConfig, PeerConfig, PrivateKey, WallTime};

    #[test]
    fn a_device_without_anything_says_only_that_all_is_well() {
        assert_eq!(text(&DeviceStatus::default()), "errno=0\n\n");
    }

    #[test]
    fn everything_is_told_in_the_order_that_wireguard_go_uses() {
        let mut status = DeviceStatus {
            private_key: Some(PrivateKey::from_bytes([0x41; 32])),
            listen_port: 51820,
            fwmark: 0xca6c,
            ..DeviceStatus::default()
        };
        let prefixes = ["2001:db8::/64", "10.0.0.0/24"];
        status.peers.insert(
            PublicKey::from_bytes([2; 32]),
            PeerStatus {
                config: PeerConfig {
                    preshared_key: PresharedKey::from_bytes([3; 32]),
                    persistent_keepalive: 25,
                    allowed_ips: prefixes.map(|text| text.parse().expect("a prefix")).into(),
                    ..PeerConfig::default()
                },
                endpoint: Some("[fe80::1%3]:51820".parse().expect("an endpoint")),
                last_handshake: Some(WallTime(Duration::new(1_700_000_000, 5))),
                rx_bytes: 1,
                tx_bytes: 2,
                ..PeerStatus::default()
            },
        );
        let expected = format!(
            "private_key=40{}\nlisten_port=51820\nfwmark=51820\n\
             public_key={}\npreshared_key={}\nprotocol_version=1\nendpoint=[fe80::1%3]:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n\
             tx_bytes=2\nrx_bytes=1\npersistent_keepalive_interval=25\n\
             allowed_ip=10.0.0.0/24\nallowed_ip=2001:db8::/64\nerrno=0\n\n",
            "41".repeat(31),
            "02".repeat(32),
            "03".repeat(32),
        );
        assert_eq!(text(&status), expected);
    }

    #[test]
    fn each_line_has_exactly_one_equals_sign() {
        let mut config = DeviceConfig {
            private_key: Some(PrivateKey::from_bytes([1; 32])),
            ..DeviceConfig::default()
        };
        let peer = config
            .peers
            .entry(PublicKey::from_bytes([2; 32]))
            .or_default();
        peer.endpoints = vec!["192.0.2.1:1".parse().expect("an endpoint")];
        peer.allowed_ips
            .insert("0.0.0.0/0".parse().expect("a prefix"));
        let text = text(&DeviceStatus::idle(&config));
        for line in text.trim_end().lines() {
            assert_eq!(line.matches('=').count(), 1, "{line}");
        }
    }

    #[test]
    fn what_is_told_can_be_set_again() {
        let mut config = DeviceConfig {
            private_key: Some(PrivateKey::from_bytes([1; 32])),
            listen_port: 7,
            fwmark: 8,
            ..DeviceConfig::default()
        };
        for n in 2..5 {
            let peer = config
                .peers
                .entry(PublicKey::from_bytes([n; 32]))
                .or_default();
            peer.preshared_key = PresharedKey::from_bytes([n; 32]);
            peer.endpoints = vec![([192, 0, 2, n], 51820).into()];
            let net = ipnet::IpNet::new([10, n, 0, 0].into(), 16);
            peer.allowed_ips.insert(net.expect("16 is in range"));
        }
        let told = text(&DeviceStatus::idle(&config));
        let set: String = told
            .lines()
            .filter(|line| {
                !["last_", "tx_", "rx_", "errno"]
                    .iter()
                    .any(|reading| line.starts_with(reading))
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let (requests, refusal) = parse_all(format!("set=1\n{set}").as_bytes(), |_| None);
        assert_eq!(refusal, None);
        let [Request::Set(change)] = &requests[..] else {
            panic!("{requests:?}");
        };
        let mut again = DeviceConfig::default();
        again.apply(change);
        assert_eq!(again, config);
    }

    #[test]
    fn an_error_is_negative_as_wg_expects_it() {
        let mut out = String::new();
        let taken = Err(Errno::PORT_IN_USE);
        write_errno(&mut out, taken).expect("a string takes everything");
        write_errno(&mut out, Ok(())).expect("a string takes everything");
        assert_eq!(out, "errno=-98\n\nerrno=0\n\n");
    }

    fn text(status: &DeviceStatus) -> String {
        let mut out = String::new();
        write_status(&mut out, status).expect("a string takes everything");
        out
    }
}
