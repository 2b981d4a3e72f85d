//! Interfaces, addresses and routes of a namespace that is the demo's own, by netlink.
//!
//! A handful of requests with fixed content; `warren-netlink` is about making a host match and knows
//! neither bridges nor pairs of virtual cards.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

const IFF_UP: u32 = 1;
/// `IFA_F_NODAD`: of use at once.
const NO_DAD: u8 = 2;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A conversation with the kernel about the network namespace in which it began.
pub(super) struct Links(Socket);

impl Links {
    pub(super) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(protocols::NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The index of the interface by this name.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        // Asked of a socket of this namespace, which a netlink socket is.
        Ok(rustix::net::netdevice::name_to_index(
            socket_fd(&self.0),
            name,
        )?)
    }

    /// A switch.
    pub(super) fn bridge(&self, name: &str) -> io::Result<()> {
        let kind = nest(IFLA_LINKINFO, &attr(IFLA_INFO_KIND, b"bridge"));
        let body = [link(0, 0), text(IFLA_IFNAME, name), kind].concat();
        self.ask(RTM_NEWLINK, CREATE, &body)
    }

    /// A cable: `name` here, and `peer` with a hardware address in another namespace.
    pub(super) fn cable(
        &self,
        name: &str,
        peer: &str,
        peer_hardware: [u8; 6],
        there: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let there = there.as_raw_fd().to_ne_bytes();
        let peer = [
            link(0, 0),
            text(IFLA_IFNAME, peer),
            attr(IFLA_ADDRESS, &peer_hardware),
            attr(IFLA_NET_NS_FD, &there),
        ]
        .concat();
        let info = [
            attr(IFLA_INFO_KIND, b"veth"),
            nest(IFLA_INFO_DATA, &nest(VETH_INFO_PEER, &peer)),
        ]
        .concat();
        let body = [
            link(0, 0),
            text(IFLA_IFNAME, name),
            nest(IFLA_LINKINFO, &info),
        ]
        .concat();
        self.ask(RTM_NEWLINK, CREATE, &body)
    }

    /// Plugs an interface into a switch.
    pub(super) fn plug(&self, name: &str, bridge: &str) -> io::Result<()> {
        let master = self.index(bridge)?.to_ne_bytes();
        let body = [link(self.index(name)?, 0), attr(IFLA_MASTER, &master)].concat();
        self.ask(RTM_NEWLINK, 0, &body)
    }

    pub(super) fn up(&self, name: &str) -> io::Result<()> {
        self.ask(RTM_NEWLINK, 0, &link(self.index(name)?, IFF_UP))
    }

    /// Gives an interface an address.
    pub(super) fn address(&self, name: &str, address: IpAddr, length: u8) -> io::Result<()> {
        let bytes = octets(address);
        let mut body = vec![family(address), length, NO_DAD, 0];
        body.extend(self.index(name)?.to_ne_bytes());
        body.extend(attr(IFA_LOCAL, &bytes));
        body.extend(attr(IFA_ADDRESS, &bytes));
        self.ask(RTM_NEWADDR, CREATE, &body)
    }

    /// A route by way of a neighbour; to everywhere with a length of 0.
    pub(super) fn route(&self, to: IpAddr, length: u8, by: IpAddr) -> io::Result<()> {
        const TABLE_MAIN: u8 = 254;
        const PROTOCOL_BOOT: u8 = 3;
        const TYPE_UNICAST: u8 = 1;
        let mut body = vec![family(by), length, 0, 0];
        body.extend([TABLE_MAIN, PROTOCOL_BOOT, 0, TYPE_UNICAST, 0, 0, 0, 0]);
        if length > 0 {
            body.extend(attr(RTA_DST, &octets(to)));
        }
        body.extend(attr(RTA_GATEWAY, &octets(by)));
        self.ask(RTM_NEWROUTE, CREATE, &body)
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).expect("a request is short");
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        self.0.send(&message, 0)?;
        // One request at a time, so what comes is its answer: `struct nlmsgerr`.
        let (answer, _) = self.0.recv_from_full()?;
        let code = (answer.get(HEADER..)).and_then(|payload| payload.first_chunk::<4>());
        match code.map(|code| i32::from_ne_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn socket_fd(socket: &Socket) -> BorrowedFd<'_> {
    socket.as_fd()
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    // Which of the flags are meant.
    body.extend(flags.to_ne_bytes());
    body
}

fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("an attribute is short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nest(kind: u16, inner: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attr(kind | NESTED, inner)
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attr(kind, &[value.as_bytes(), b"\0"].concat())
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).expect("families are small numbers")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
