//! Tells other nodes, through the tunnel, which mesh file this one runs, and hears what they run.
//!
//! One datagram of text to a peer after each new handshake and after each new file: an idle peer
//! stays idle. Nothing is ever answered. The tunnel vouches for the sender's address, so that a node
//! can only speak of itself; what is not exactly such a message is ignored.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::UdpSocket;
use warren_config::{DeviceStatus, WallTime};
use warren_mesh::{Directory, NodeName, Plan};

/// What a message begins with; the digest follows, 64 hexadecimal digits.
const PREFIX: &[u8] = b"warren mesh file ";
const DIGEST_LEN: usize = 64;
/// A peer that was not heard of for so long has no session, and is not woken up.
const SESSION_SECS: u64 = 180;

/// The sockets inside the mesh, one for each family at most.
#[derive(Default)]
pub(crate) struct Beacon {
    v4: Option<(SocketAddr, UdpSocket)>,
    v6: Option<(SocketAddr, UdpSocket)>,
    /// What each node was told, and in which session.
    told: BTreeMap<NodeName, (WallTime, String)>,
}

/// Which mesh file somebody says to run.
pub(crate) struct Heard {
    /// Who, by address.
    pub(crate) from: IpAddr,
    /// The digest of the file.
    pub(crate) digest: String,
}

impl Beacon {
    /// Listens on this node's own addresses, as far as the host has them by now.
    pub(crate) fn listen(&mut self, plan: &Plan) {
        let port = port(plan);
        let first = |v4: bool| {
            (plan.host.addresses.iter())
                .find(|address| address.is_ipv4() == v4)
                .map(|address| SocketAddr::new(*address, port))
        };
        for (slot, wanted) in [(&mut self.v4, first(true)), (&mut self.v6, first(false))] {
            if slot.as_ref().map(|(at, _)| *at) != wanted {
                *slot = wanted.and_then(|at| Some((at, bind(at).ok()?)));
            }
        }
    }

    /// Tells every peer with a session what it does not know yet.
    pub(crate) fn tell(
        &mut self,
        directory: &Directory,
        plan: &Plan,
        device: &DeviceStatus,
        digest: &str,
        now: WallTime,
    ) {
        let message = [PREFIX, digest.as_bytes()].concat();
        self.told.retain(|name, _| plan.peers.contains_key(name));
        for (name, peer) in &plan.peers {
            let handshake = (peer.public_key)
                .and_then(|key| device.peers.get(&key))
                .and_then(|peer| peer.last_handshake);
            let Some(handshake) = handshake else { continue };
            let knows = (self.told.get(name))
                .is_some_and(|(session, told)| *session == handshake && told == digest);
            let age = now.0.saturating_sub(handshake.0);
            if knows || age.as_secs() >= SESSION_SECS {
                continue;
            }
            let addresses = directory.nodes.get(name).map(|node| &node.addresses);
            let told = addresses.into_iter().flatten().any(|address| {
                let slot = if address.is_ipv4() {
                    &self.v4
                } else {
                    &self.v6
                };
                let to = SocketAddr::new(*address, port(plan));
                (slot.as_ref()).is_some_and(|(_, socket)| socket.try_send_to(&message, to).is_ok())
            });
            if told {
                self.told
                    .insert(name.clone(), (handshake, digest.to_owned()));
            }
        }
    }

    /// The next message of anybody. Dropping the future loses nothing.
    pub(crate) async fn heard(&self) -> Heard {
        tokio::select! {
            heard = hear(self.v4.as_ref()) => heard,
            heard = hear(self.v6.as_ref()) => heard,
        }
    }
}

/// The UDP port inside the mesh: beside the one outside, which the engine has on every address.
fn port(plan: &Plan) -> u16 {
    match plan.device.listen_port.checked_add(1) {
        Some(port) => port,
        None => plan.device.listen_port - 1,
    }
}

fn bind(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(at)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn hear(socket: Option<&(SocketAddr, UdpSocket)>) -> Heard {
    let Some((_, socket)) = socket else {
        return pending().await;
    };
    // One byte more than a message has, so that a longer one is told from it.
    let mut buffer = [0; PREFIX.len() + DIGEST_LEN + 1];
    loop {
        // An error is about a message that we sent; there is nothing to do about it.
        if let Ok((len, from)) = socket.recv_from(&mut buffer).await
            && let Some(digest) = digest_in(&buffer[..len])
        {
            return Heard {
                from: from.ip(),
                digest,
            };
        }
    }
}

fn digest_in(message: &[u8]) -> Option<String> {
    let digest = message.strip_prefix(PREFIX)?;
    let is_digest = digest.len() == DIGEST_LEN
        && (digest.iter()).all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    is_digest.then(|| String::from_utf8_lossy(digest).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_message_is_heard() {
        let digest = "0123456789abcdef".repeat(4);
        let message = |text: &str| [PREFIX, text.as_bytes()].concat();
        assert_eq!(digest_in(&message(&digest)), Some(digest.clone()));
        assert_eq!(digest_in(&message(&digest[1..])), None);
        assert_eq!(digest_in(&message(&format!("{digest}0"))), None);
        assert_eq!(digest_in(&message(&digest.to_uppercase())), None);
        assert_eq!(digest_in(digest.as_bytes()), None);
        assert_eq!(digest_in(b""), None);
    }
}
