//! ICMP echo, sent and heard by a raw socket, or by a ping socket where that may not be opened: the kernel of
//! the other side answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recvfrom};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::clock;

/// Bytes of an echo message before its payload.
pub(crate) const HEADER: usize = 8;

/// Sends echo requests to one address from the network namespace in which it was made.
#[derive(Debug)]
pub(crate) struct Echo {
    socket: Socket,
    to: IpAddr,
    ident: u16,
    /// A ping socket: the kernel sets the identifier and the checksum, and hears nobody else's answers.
    is_ping: bool,
}

impl Echo {
    pub(crate) fn new(to: IpAddr) -> io::Result<Self> {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let open = |kind| Socket::new(domain, kind, Some(protocol));
        // `net.ipv4.ping_group_range` says who may have a ping socket.
        let (socket, is_ping) = match open(Type::RAW) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                (open(Type::DGRAM)?, true)
            }
            socket => (socket?, false),
        };
        socket.set_nonblocking(true)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id() as u16;
        Ok(Self {
            socket,
            to,
            ident: process.wrapping_mul(31).wrapping_add(count),
            is_ping,
        })
    }

    /// What sends.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends a request with a payload behind its header.
    pub(crate) fn send(&self, sequence: u16, payload: &[u8]) -> io::Result<()> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.ident.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend(payload);
        if self.to.is_ipv4() {
            // The kernel does this for IPv6 alone.
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let to = SockAddr::from(SocketAddr::new(self.to, 0));
        self.socket.send_to(&message, &to).map(drop)
    }

    /// The sequence number of an answer that is there.
    pub(crate) fn answer(&self) -> Option<u16> {
        let mut buffer = [0; 256];
        loop {
            let (length, from) = match recvfrom(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((length, _, from)) => (length, from?),
                Err(Errno::AGAIN) => return None,
                // It is about a request that could not be delivered, which has no answer.
                Err(_) => continue,
            };
            let from = SocketAddr::try_from(from).ok().map(|from| from.ip());
            if from == Some(self.to)
                && let Some(sequence) = self.sequence(&buffer[..length])
            {
                return Some(sequence);
            }
        }
    }

    fn sequence(&self, packet: &[u8]) -> Option<u16> {
        let (reply, message) = match self.to {
            // A raw socket of IPv4 hears the header, too.
            IpAddr::V4(_) if self.is_ping => (0, packet),
            IpAddr::V4(_) => (0, packet.get(usize::from(packet.first()? & 0xf) * 4..)?),
            IpAddr::V6(_) => (129, packet),
        };
        let header = message.first_chunk::<HEADER>()?;
        let ident = u16::from_be_bytes([header[4], header[5]]);
        (header[0] == reply && (self.is_ping || ident == self.ident))
            .then(|| u16::from_be_bytes([header[6], header[7]]))
    }

    /// Waits for the answer to `sequence` and says how long it took from `sent` on.
    pub(crate) fn wait(&self, sequence: u16, sent: Instant, until: Instant) -> Option<Duration> {
        loop {
            while let Some(answered) = self.answer() {
                if answered == sequence {
                    return Some(clock::now().duration_since(sent));
                }
            }
            let now = clock::now();
            if now >= until {
                return None;
            }
            self.poll(until.duration_since(now));
        }
    }

    /// Waits until there may be an answer.
    pub(crate) fn poll(&self, at_most: Duration) {
        let timeout = Timespec::try_from(at_most).ok();
        // Interrupted or not, the caller looks.
        let _ready = poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref());
    }

    /// Asks again and again until there is an answer; how long that took, and how long its own way.
    pub(crate) fn first_answer(
        &self,
        payload: &[u8],
        patience: Duration,
        give_up: impl Fn() -> bool,
    ) -> Option<(Duration, Duration)> {
        const AGAIN: Duration = Duration::from_millis(20);
        let start = clock::now();
        for sequence in 0.. {
            let sent = clock::now();
            if sent.duration_since(start) >= patience || give_up() {
                return None;
            }
            // It may not be possible yet.
            let _refused = self.send(sequence, payload);
            if let Some(way) = self.wait(sequence, sent, sent + AGAIN) {
                return Some((clock::now().duration_since(start), way));
            }
        }
        None
    }
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The checksum of RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let words = message
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_a_known_message() {
        let message = [8, 0, 0, 0, 0, 1, 0, 9, b'a', b'b', b'c'];
        let sum = checksum(&message);
        let mut whole = message.to_vec();
        whole[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&whole), 0);
        assert_eq!(sum, 0x3393);
    }
}
