//! Every way past the tunnel that a program has without writing frames itself.
//!
//! A packet socket is left out on purpose: whoever may open one is root and writes to the wire
//! whatever they like, and no fence of the network layer is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The discard port.
pub(crate) const DISCARD: u16 = 9;
/// The priority of sockets of this kind (`SO_PRIORITY`), by which netfilter knows what they sent whatever has become
/// of its addresses. Those up to 6 are anybody's.
pub(crate) const PRIORITY: u32 = 0x5741_5252;

/// A way past the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// As any program sends.
    Plain,
    /// With the mark of the tunnel's own packets, which its rule leaves alone.
    Marked,
    /// From a socket that is tied to an interface, which asks no routing rule.
    Tied,
    /// Both.
    TiedAndMarked,
    /// An ICMP message from a tied socket.
    Icmp,
    /// The beginning of a TCP connection from a tied socket.
    Tcp,
    /// From this node's mesh address to an address outside of the mesh.
    OwnSource,
}

impl Way {
    /// Those that lead past a tunnel which is carrying packets.
    pub(crate) const AROUND: [Self; 5] = [
        Self::Marked,
        Self::Tied,
        Self::TiedAndMarked,
        Self::Icmp,
        Self::Tcp,
    ];
    /// Those of them that an overlay's packets have.
    pub(crate) const OF_DATAGRAMS: [Self; 3] = [Self::Marked, Self::Tied, Self::TiedAndMarked];

    /// What it is called where it could not be tried.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Plain => "by an ordinary socket",
            Self::Marked => "with the tunnel's mark",
            Self::Tied => "tied to an interface",
            Self::TiedAndMarked => "tied and marked",
            Self::Icmp => "ICMP by a raw socket",
            Self::Tcp => "TCP tied to an interface",
            Self::OwnSource => "from this node's mesh address",
        }
    }
}

/// From where, and with what, it is tried.
#[derive(Debug, Clone)]
pub(crate) struct Attempt<'a> {
    /// The interface of the underlay.
    pub(crate) interface: &'a str,
    /// The mark of the tunnel's own packets.
    pub(crate) fwmark: u32,
    /// What the packets carry.
    pub(crate) marker: &'a [u8],
    /// Where datagrams and connections go.
    pub(crate) port: u16,
}

/// How often something was tried, and how often the kernel took it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tried {
    pub(crate) attempts: BTreeMap<Way, u64>,
    pub(crate) taken: u64,
    /// What this process lacks the rights to try, and whoever lacks them as well.
    pub(crate) denied: BTreeSet<Way>,
}

impl Tried {
    pub(crate) fn total(&self) -> u64 {
        self.attempts.values().sum()
    }

    fn note(&mut self, way: Way, taken: &io::Result<()>) {
        *self.attempts.entry(way).or_default() += 1;
        self.taken += u64::from(taken.is_ok());
    }
}

impl Attempt<'_> {
    /// Sends a packet to `to` in each of these ways.
    pub(crate) fn to(&self, to: IpAddr, ways: &[Way], tried: &mut Tried) {
        for way in ways {
            let to = SocketAddr::new(to, self.port);
            let socket = match self.socket(to.ip(), *way) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    tried.denied.insert(*way);
                    continue;
                }
                socket => socket,
            };
            let sent = socket.and_then(|socket| self.send(&socket, to, *way));
            // A connection that is being begun has sent its first packet.
            let sent = match sent {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                sent => sent,
            };
            tried.note(*way, &sent);
        }
    }

    /// Sends a packet from this node's own mesh address to somebody outside.
    pub(crate) fn with_own_source(&self, own: IpAddr, to: IpAddr, tried: &mut Tried) {
        let send = || -> io::Result<()> {
            let socket = socket(to, Type::DGRAM, Protocol::UDP)?;
            socket.bind(&SocketAddr::new(own, 0).into())?;
            socket.bind_device(Some(self.interface.as_bytes()))?;
            let to = SockAddr::from(SocketAddr::new(to, self.port));
            socket.send_to(self.marker, &to).map(drop)
        };
        tried.note(Way::OwnSource, &send());
    }

    fn socket(&self, to: IpAddr, way: Way) -> io::Result<Socket> {
        let socket = match way {
            Way::Icmp if to.is_ipv4() => socket(to, Type::RAW, Protocol::ICMPV4),
            Way::Icmp => socket(to, Type::RAW, Protocol::ICMPV6),
            Way::Tcp => socket(to, Type::STREAM, Protocol::TCP),
            _ => socket(to, Type::DGRAM, Protocol::UDP),
        }?;
        if matches!(way, Way::Marked | Way::TiedAndMarked) {
            socket.set_mark(self.fwmark)?;
        }
        if !matches!(way, Way::Plain | Way::Marked | Way::OwnSource) {
            socket.bind_device(Some(self.interface.as_bytes()))?;
        }
        Ok(socket)
    }

    fn send(&self, socket: &Socket, to: SocketAddr, way: Way) -> io::Result<()> {
        match way {
            Way::Tcp => socket.connect(&to.into()),
            Way::Icmp => {
                // An echo request, whose checksum nobody gets to see.
                let kind = if to.is_ipv4() { 8 } else { 128 };
                let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], self.marker].concat();
                // A raw socket of IPv6 takes no port.
                let to = SockAddr::from(SocketAddr::new(to.ip(), 0));
                socket.send_to(&message, &to).map(drop)
            }
            _ => socket.send_to(self.marker, &to.into()).map(drop),
        }
    }
}

fn socket(to: IpAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = match to {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    recognise(&socket);
    Ok(socket)
}

/// Gives a socket [`PRIORITY`], where this process may: whoever may not opens packet sockets, which need none.
pub(crate) fn recognise(socket: &Socket) {
    let _refused = socket.set_priority(PRIORITY);
}
