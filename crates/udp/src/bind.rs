//! Opening a port: for both families, for several workers, and for nobody else.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Domain, Protocol, SockAddr, Type};

use crate::socket::{Features, Socket};
use crate::sys;

/// Other ports that are tried when the system's choice for one family is taken in the other.
const PORT_TRIES: usize = 32;

/// An interface index that no interface has: they are counted up from 1.
const NO_INTERFACE: i32 = i32::MAX;

/// What to open, and what may be used of what the kernel offers.
#[derive(Debug, Clone)]
pub struct Options {
    /// The port, the same for both families; 0 for one of the system's choice.
    pub port: u16,
    /// Mark of every packet that is sent (`SO_MARK`); 0 is none.
    pub fwmark: u32,
    /// How many sockets of each family share the port. The kernel spreads flows over them.
    pub shards: usize,
    /// Segmented sends, where the kernel knows them.
    pub segmentation: bool,
    /// Joined receives, where the kernel knows them.
    pub receive_offload: bool,
    /// Open IPv4, if the host has it.
    pub v4: bool,
    /// Open IPv6, if the host has it.
    pub v6: bool,
    /// What each socket may queue in each direction, in bytes. Without the right to exceed the
    /// host's limit, that limit.
    pub buffer_bytes: usize,
    /// Bytes of the largest datagram that is expected. Counts only without receive offload: a
    /// larger one is then dropped, and with it any has room.
    pub largest_datagram: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            fwmark: 0,
            shards: 1,
            segmentation: true,
            receive_offload: true,
            v4: true,
            v6: true,
            buffer_bytes: 4 << 20,
            largest_datagram: 9216,
        }
    }
}

/// One worker's sockets, on one port. A family is absent if it was not asked for or the host has
/// none.
#[derive(Debug, Default)]
pub struct Pair {
    /// The IPv4 socket.
    pub v4: Option<Socket>,
    /// The IPv6 socket, for IPv6 alone.
    pub v6: Option<Socket>,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why a port was not opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port belongs to another.
    #[error("UDP port {port} of {family} is in use by another program")]
    PortTaken {
        /// In which family.
        family: Family,
        /// Which port.
        port: u16,
    },
    /// Neither family is there.
    #[error("this host lets open neither IPv4 nor IPv6 sockets")]
    NoFamily,
    /// The mark was refused.
    #[error("cannot set the firewall mark {fwmark:#x}, which needs CAP_NET_ADMIN: {source}")]
    Mark {
        /// The mark.
        fwmark: u32,
        /// What the kernel said.
        r#source: io::Error,
    },
    /// Anything else that the kernel said.
    #[error("cannot open a UDP socket for {family}: {source}")]
    Socket {
        /// For which family.
        family: Family,
        /// What the kernel said.
        r#source: io::Error,
    },
}

impl BindError {
    /// The error number that says the same, as the UAPI answers it.
    pub fn errno(&self) -> i32 {
        let unknown = Errno::IO.raw_os_error();
        match self {
            Self::PortTaken { .. } => Errno::ADDRINUSE.raw_os_error(),
            Self::NoFamily => Errno::AFNOSUPPORT.raw_os_error(),
            Self::Mark { source, .. } | Self::Socket { source, .. } => {
                source.raw_os_error().unwrap_or(unknown)
            }
        }
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        Self::from_raw_os_error(error.errno())
    }
}

impl Pair {
    /// Opens one port in both families, with a pair of sockets for each of `shards` workers.
    ///
    /// Another program on the port is an error and never shared with: the first socket of a family
    /// is bound alone, and only then made to share with the others. When they are all bound the
    /// door is closed behind them, see `open_guard`: the kernel refuses further sockets, also of
    /// the same user. What remains is the moment in between, for a program of the same user that
    /// wants to share; and kernels before 5.0, where such a program may join at any time.
    pub fn bind(options: &Options) -> Result<Vec<Self>, BindError> {
        for _ in 1..PORT_TRIES {
            match Self::bind_once(options) {
                Err(BindError::PortTaken { .. }) if options.port == 0 => {}
                done => return done,
            }
        }
        Self::bind_once(options)
    }

    fn bind_once(options: &Options) -> Result<Vec<Self>, BindError> {
        let v4 = bind_family(Family::V4, options.port, options)?;
        let port = v4.first().map_or(options.port, Socket::port);
        let v6 = bind_family(Family::V6, port, options)?;
        if v4.is_empty() && v6.is_empty() {
            return Err(BindError::NoFamily);
        }
        let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
        let pairs = (0..options.shards.max(1)).map(|_| Self {
            v4: v4.next(),
            v6: v6.next(),
        });
        Ok(pairs.collect())
    }
}

/// The sockets of one family, or none if the host does not have it.
fn bind_family(family: Family, port: u16, options: &Options) -> Result<Vec<Socket>, BindError> {
    let wanted = match family {
        Family::V4 => options.v4,
        Family::V6 => options.v6,
    };
    if !wanted {
        return Ok(Vec::new());
    }
    let fail = |source| BindError::Socket { family, source };
    let mut sockets = Vec::new();
    for _ in 0..options.shards.max(1) {
        match open(family) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            socket => sockets.push(socket.map_err(fail)?),
        }
    }
    for socket in &sockets {
        configure(socket, family, options)?;
    }
    let guards = match sockets.len() {
        1 => Vec::new(),
        _ => (0..2).map_while(|_| open_guard(family).ok()).collect(),
    };
    let port = match bind_in_turn(family, port, &sockets, &guards) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRINUSE) => {
            return Err(BindError::PortTaken { family, port });
        }
        bound => bound.map_err(fail)?,
    };
    let receive_offload = options.receive_offload
        && sockets
            .iter()
            .all(|socket| sys::set_receive_offload(socket.as_fd()).is_ok());
    let features = Features {
        segmentation: options.segmentation && sys::knows_segmentation(sockets[0].as_fd()),
        receive_offload,
    };
    let guards = Arc::new(guards);
    let sockets = sockets.into_iter().map(|socket| {
        let guards = Arc::clone(&guards);
        Socket::new(
            socket.into(),
            port,
            features,
            options.largest_datagram,
            guards,
        )
    });
    Ok(sockets.collect())
}

/// Binds a guard, the sockets, and a guard, and answers the port. The first of all is bound alone:
/// that fails if anybody has the port.
fn bind_in_turn(
    family: Family,
    mut port: u16,
    sockets: &[socket2::Socket],
    guards: &[socket2::Socket],
) -> io::Result<u16> {
    let (front, back) = guards.split_at(guards.len() / 2);
    let all = front.iter().chain(sockets).chain(back);
    let shared = sockets.len() > 1;
    for (place, socket) in all.enumerate() {
        if place != 0 {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&unspecified(family, port))?;
        if place == 0 {
            let address = socket.local_addr()?.as_socket();
            port = address.map_or(port, |address| address.port());
            socket.set_reuse_port(shared)?;
        }
    }
    for guard in guards {
        guard.set_reuse_port(false)?;
    }
    Ok(port)
}

/// A socket that keeps others from joining those that share a port.
///
/// The kernel compares a newcomer with the first in its list that has the port
/// (`udp_lib_lport_inuse`), and puts it at the front or, for sharing IPv6 sockets, at the back
/// (`sk_add_node_rcu`). So a guard that stopped sharing once all were bound stands at either end.
/// It never receives, for it listens to an interface that does not exist.
fn open_guard(family: Family) -> io::Result<socket2::Socket> {
    let guard = open(family)?;
    sys::bind_to_interface(guard.as_fd(), NO_INTERFACE)?;
    Ok(guard)
}

fn open(family: Family) -> io::Result<socket2::Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = socket2::Socket::new(
        domain,
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Whether the host does not have the family at all: it can be compiled out, switched off at boot,
/// or left without any address.
fn is_absent(error: &io::Error) -> bool {
    let absent = [
        Errno::AFNOSUPPORT,
        Errno::PROTONOSUPPORT,
        Errno::ADDRNOTAVAIL,
    ];
    Errno::from_io_error(error).is_some_and(|errno| absent.contains(&errno))
}

fn configure(socket: &socket2::Socket, family: Family, options: &Options) -> Result<(), BindError> {
    let fail = |source| BindError::Socket { family, source };
    sys::set_packet_info(socket.as_fd(), family == Family::V4).map_err(fail)?;
    if options.fwmark != 0 {
        socket
            .set_mark(options.fwmark)
            .map_err(|source| BindError::Mark {
                fwmark: options.fwmark,
                source,
            })?;
    }
    // The rest makes a socket better and is no reason to do without it.
    //
    // Path MTUs learnt from ICMP are not for us: anybody can forge them, and segments that are
    // larger than one would be refused. Fragments are what remains, as with the kernel's driver.
    let _kept_default = match family {
        Family::V4 => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::OMIT),
        Family::V6 => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::OMIT),
    };
    let _no_marks = match family {
        Family::V4 => sockopt::set_ip_recvtos(socket, true),
        Family::V6 => sockopt::set_ipv6_recvtclass(socket, true),
    };
    let bytes = options.buffer_bytes;
    let _host_limit = sockopt::set_socket_recv_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes));
    let _host_limit = sockopt::set_socket_send_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes));
    Ok(())
}

fn unspecified(family: Family, port: u16) -> SockAddr {
    let address: SocketAddr = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    address.into()
}
