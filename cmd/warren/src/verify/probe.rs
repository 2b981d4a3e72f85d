//! Asking a peer for an answer through the tunnel, with what this process may open.
//!
//! Best by ICMP echo ([`Echo`]). That takes CAP_NET_RAW, or a group within `net.ipv4.ping_group_range`; where a
//! process has neither, a datagram is sent to a port at which nobody listens, from the first of traceroute on. The
//! kernel of the peer answers that with "port unreachable" (or its firewall with another refusal), and this kernel
//! keeps who said so. Only what the peer itself said counts: a refusal of this host's own firewall does not.
//!
//! Linux answers so one address once a second, but for the first six.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::attempts::recognise;
use crate::echo::Echo;
use crate::sys;

/// The first that traceroute uses, for the same reason. The following ones are for the following probes.
const PORT: u16 = 33434;

/// What asks one peer.
#[derive(Debug)]
pub(super) enum Probe {
    /// Pings.
    Echo(Echo),
    /// Datagrams to closed ports.
    Datagrams(Datagrams),
}

/// Sends datagrams to one address from the network namespace in which it was made.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: Socket,
    to: IpAddr,
    port: u16,
}

impl Probe {
    /// Whatever this process may have.
    pub(super) fn new(to: IpAddr) -> io::Result<Self> {
        match Echo::new(to) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Datagrams::new(to, PORT).map(Self::Datagrams)
            }
            echo => {
                let echo = echo?;
                recognise(echo.socket());
                Ok(Self::Echo(echo))
            }
        }
    }

    /// Datagrams that all go to one port, of which no answer is expected.
    pub(super) fn to_port(to: SocketAddr) -> io::Result<Self> {
        Datagrams::new(to.ip(), to.port()).map(Self::Datagrams)
    }

    /// What it is called.
    pub(super) fn in_words(&self) -> &'static str {
        match self {
            Self::Echo(_) => "pings",
            Self::Datagrams(_) => "datagrams",
        }
    }

    /// Asks with a payload.
    pub(super) fn send(&self, sequence: u16, payload: &[u8]) -> io::Result<()> {
        match self {
            Self::Echo(echo) => echo.send(sequence, payload),
            Self::Datagrams(datagrams) => datagrams.send(sequence, payload),
        }
    }

    /// Whether there is one more answer.
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::Echo(echo) => echo.answer().is_some(),
            Self::Datagrams(datagrams) => datagrams.is_refused(),
        }
    }
}

impl Datagrams {
    fn new(to: IpAddr, port: u16) -> io::Result<Self> {
        let domain = match to {
            IpAddr::V4(_) => Domain::IPV4,
            IpAddr::V6(_) => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        sys::keep_refusals(socket.as_fd(), to.is_ipv4())?;
        recognise(&socket);
        Ok(Self { socket, to, port })
    }

    fn send(&self, sequence: u16, payload: &[u8]) -> io::Result<()> {
        let port = match self.port {
            PORT => PORT + sequence,
            port => port,
        };
        let to = SockAddr::from(SocketAddr::new(self.to, port));
        // The first try may be told of a refusal that has come meanwhile, and sends nothing then.
        let tried = self.socket.send_to(payload, &to);
        tried.or_else(|_| self.socket.send_to(payload, &to))?;
        Ok(())
    }

    fn is_refused(&self) -> bool {
        while let Ok(Some(control)) = sys::refusal(self.socket.as_fd()) {
            if refused_by(&control) == Some(self.to) {
                return true;
            }
        }
        false
    }
}

/// Who said by ICMP that a datagram is refused, in the control messages of the kernel (`IP_RECVERR` in `ip(7)`).
fn refused_by(mut control: &[u8]) -> Option<IpAddr> {
    const WORD: usize = size_of::<usize>();
    // `struct cmsghdr`: length with itself, level, type.
    const HEADER: usize = WORD + 8;
    // `struct sock_extended_err`: error, origin, ICMP type, ICMP code, padding, two numbers.
    const ERROR: usize = 16;
    let number = |bytes: &[u8]| bytes.first_chunk().copied().map(i32::from_ne_bytes);
    loop {
        let length = usize::from_ne_bytes(*control.first_chunk()?);
        let message = control.get(..length)?;
        let kind = (
            number(message.get(WORD..)?)?,
            number(message.get(WORD + 4..)?)?,
        );
        let data = message.get(HEADER..)?;
        // The origins are SO_EE_ORIGIN_ICMP and SO_EE_ORIGIN_ICMP6; behind the error who sent it
        // (`struct sockaddr_in`, `sockaddr_in6`).
        let by = data.get(ERROR..);
        match (kind, data.get(4), by) {
            ((libc::IPPROTO_IP, libc::IP_RECVERR), Some(2), Some(by)) => {
                let octets: [u8; 4] = *by.get(4..)?.first_chunk()?;
                return Some(octets.into());
            }
            ((libc::IPPROTO_IPV6, libc::IPV6_RECVERR), Some(3), Some(by)) => {
                let octets: [u8; 16] = *by.get(8..)?.first_chunk()?;
                return Some(octets.into());
            }
            _ => control = control.get(length.next_multiple_of(WORD)..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control message of the kernel's.
    fn control(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let length = size_of::<usize>() + 8 + data.len();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(level.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(data);
        message.resize(length.next_multiple_of(size_of::<usize>()), 0);
        message
    }

    fn error(origin: u8, by: &[u8]) -> Vec<u8> {
        let mut error = vec![111, 0, 0, 0, origin, 3, 3, 0];
        error.resize(16, 0);
        error.extend(by);
        error
    }

    #[test]
    fn who_refuses_is_read_from_the_error_and_no_other_message() {
        let by = [2, 0, 0, 0, 10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        let refusal = control(libc::IPPROTO_IP, libc::IP_RECVERR, &error(2, &by));
        let expected: IpAddr = "10.77.0.2".parse().expect("an address");
        assert_eq!(refused_by(&refusal), Some(expected));
        let another = control(libc::SOL_SOCKET, 29, &[0; 12]);
        let both = [another.clone(), refusal].concat();
        assert_eq!(refused_by(&both), Some(expected));
        // This host itself: SO_EE_ORIGIN_LOCAL.
        let local = control(libc::IPPROTO_IP, libc::IP_RECVERR, &error(1, &by));
        assert_eq!(refused_by(&[local, another].concat()), None);

        let mut by = [0; 28];
        by[23] = 1;
        let refusal = control(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &error(3, &by));
        assert_eq!(
            refused_by(&refusal),
            Some("::1".parse().expect("an address"))
        );
    }

    #[test]
    fn no_cut_of_a_control_message_is_too_short_and_no_length_too_long() {
        let whole = control(libc::IPPROTO_IP, libc::IP_RECVERR, &error(2, &[2; 16]));
        for length in 0..whole.len() {
            assert_eq!(refused_by(&whole[..length]), None);
        }
        for length in [0, 1, 8, 15, usize::MAX] {
            let mut lying = whole.clone();
            lying[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(refused_by(&lying), None, "{length}");
        }
    }
}
