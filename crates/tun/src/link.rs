//! The interface as others see it: looked up, changed and watched by netlink.
//!
//! A handful of messages of `rtnetlink(7)`, by interface index, so that a change of name between
//! two calls cannot hit another interface.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read, retry_on_intr};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, send, socket_with};

use crate::sys;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const RTMGRP_LINK: u32 = 1;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_CARRIER: u16 = 33;
const IFLA_GSO_MAX_SIZE: u16 = 41;
/// In the data of a TUN (`linux/if_tun.h`, `linux/if_link.h`).
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;
/// What marks the type of an attribute besides its number.
const NLA_TYPE_MASK: u16 = 0x3fff;

const IFF_UP: u32 = 1;

const MESSAGE_HEADER: usize = 16;
const INTERFACE_HEADER: usize = 16;
/// More than any message about one interface.
const BUFFER: usize = 64 * 1024;

/// What the kernel says of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// It is a TUN or a TAP.
    pub(crate) is_tun: bool,
    /// A TUN has a carrier while somebody holds a queue of it.
    pub(crate) carrier: bool,
    /// Queues that are held; `None` where the kernel does not say.
    pub(crate) queues: Option<u32>,
}

/// The interface of a name, if there is one.
pub(crate) fn by_name(name: &str) -> io::Result<Option<Link>> {
    if name.is_empty() {
        return Ok(None);
    }
    let mut attribute = name.as_bytes().to_vec();
    attribute.push(0);
    get(0, &[(IFLA_IFNAME, &attribute)])
}

/// The interface of an index, if there is one.
pub(crate) fn by_index(index: u32) -> io::Result<Option<Link>> {
    get(index, &[])
}

/// Set up or down.
pub(crate) fn set_up(index: u32, up: bool) -> io::Result<()> {
    let flags = if up { IFF_UP } else { 0 };
    request(RTM_SETLINK, NLM_F_ACK, index, flags, IFF_UP, &[]).map(drop)
}

/// Set the MTU.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    let attributes: &[(u16, &[u8])] = &[(IFLA_MTU, &mtu.to_ne_bytes())];
    request(RTM_SETLINK, NLM_F_ACK, index, 0, 0, attributes).map(drop)
}

/// Set the size of the largest packet that the kernel leaves to be cut.
pub(crate) fn set_gso_max_size(index: u32, bytes: u32) -> io::Result<()> {
    let attributes: &[(u16, &[u8])] = &[(IFLA_GSO_MAX_SIZE, &bytes.to_ne_bytes())];
    request(RTM_SETLINK, NLM_F_ACK, index, 0, 0, attributes).map(drop)
}

/// Delete it, whoever holds its queues.
pub(crate) fn delete(index: u32) -> io::Result<()> {
    request(RTM_DELLINK, NLM_F_ACK, index, 0, 0, &[]).map(drop)
}

fn get(index: u32, attributes: &[(u16, &[u8])]) -> io::Result<Option<Link>> {
    match request(RTM_GETLINK, 0, index, 0, 0, attributes) {
        Ok(answer) => Ok(answer),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ask, and wait for the answer, which the kernel gives at once.
fn request(
    kind: u16,
    flags: u16,
    index: u32,
    up: u32,
    change: u32,
    attributes: &[(u16, &[u8])],
) -> io::Result<Option<Link>> {
    let socket = socket(SocketFlags::CLOEXEC, 0)?;
    send(
        &socket,
        &encode(kind, NLM_F_REQUEST | flags, index, up, change, attributes),
        SendFlags::empty(),
    )?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = retry_on_intr(|| read(&socket, &mut buffer[..]))?;
        for message in messages(&buffer[..len]) {
            match message {
                Message::Link(_, link) => return Ok(Some(link)),
                Message::Result(0) => return Ok(None),
                Message::Result(error) => return Err(io::Error::from_raw_os_error(error)),
                Message::Other => {}
            }
        }
    }
}

fn socket(flags: SocketFlags, groups: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        flags,
        // The number of NETLINK_ROUTE is 0, the default.
        None,
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn encode(
    kind: u16,
    flags: u16,
    index: u32,
    up: u32,
    change: u32,
    attributes: &[(u16, &[u8])],
) -> Vec<u8> {
    let mut bytes = vec![0; MESSAGE_HEADER];
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    // Family and type of the interface: any.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&index.to_ne_bytes());
    bytes.extend_from_slice(&up.to_ne_bytes());
    bytes.extend_from_slice(&change.to_ne_bytes());
    for (kind, value) in attributes {
        bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    /// Of the type `RTM_NEWLINK` or `RTM_DELLINK`.
    Link(u16, Link),
    /// An errno, or 0.
    Result(i32),
    Other,
}

/// The messages in what was received. What is cut off is left out.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        let len = word(bytes, 0)? as usize;
        let kind = half(bytes, 4)?;
        let body = bytes.get(MESSAGE_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(match kind {
            RTM_NEWLINK | RTM_DELLINK => {
                parse(body).map_or(Message::Other, |link| Message::Link(kind, link))
            }
            NLMSG_ERROR => word(body, 0).map_or(Message::Other, |error| {
                Message::Result((error as i32).wrapping_neg())
            }),
            _ => Message::Other,
        })
    })
}

fn parse(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: word(body, 4)?,
        name: String::new(),
        mtu: 0,
        up: word(body, 8)? & IFF_UP != 0,
        is_tun: false,
        carrier: false,
        queues: None,
    };
    for (kind, value) in attributes(body.get(INTERFACE_HEADER..)?) {
        match kind {
            IFLA_IFNAME => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or(value);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_MTU => link.mtu = word(value, 0)?,
            IFLA_CARRIER => link.carrier = *value.first()? != 0,
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => link.is_tun = value.strip_suffix(b"\0") == Some(b"tun"),
                        IFLA_INFO_DATA => link.queues = held_queues(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// Queues that are attached or detached, where this kernel says it.
fn held_queues(data: &[u8]) -> Option<u32> {
    attributes(data)
        .filter(|(kind, _)| matches!(*kind, IFLA_TUN_NUM_QUEUES | IFLA_TUN_NUM_DISABLED_QUEUES))
        .filter_map(|(_, value)| word(value, 0))
        .reduce(u32::saturating_add)
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes([bytes[0], bytes[1]]))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// What happened to the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It was set up.
    Up,
    /// It was set down. This is no end.
    Down,
    /// It has another MTU.
    Mtu(u32),
    /// It has another name.
    Renamed(String),
    /// It was moved to another network namespace, where it works on. No more events will follow.
    Moved,
    /// It was deleted. This is the end.
    Deleted,
}

/// Watches one interface, from the moment on at which the device was asked for it.
///
/// Never blocks; when the descriptor is readable, [`Self::next_event`] may have an event.
#[derive(Debug)]
pub struct Links {
    socket: OwnedFd,
    /// A queue, to tell whether the interface is gone or only gone from here.
    tun: OwnedFd,
    known: Link,
    due: VecDeque<LinkEvent>,
    buffer: Vec<u8>,
}

impl Links {
    pub(crate) fn new(index: u32, tun: OwnedFd) -> io::Result<Self> {
        // Listen first and look then: no change falls in between.
        let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, RTMGRP_LINK)?;
        let known = by_index(index)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            socket,
            tun,
            known,
            due: VecDeque::new(),
            buffer: vec![0; BUFFER],
        })
    }

    /// The next event, or `None` for now.
    pub fn next_event(&mut self) -> io::Result<Option<LinkEvent>> {
        loop {
            if let Some(event) = self.due.pop_front() {
                return Ok(Some(event));
            }
            match retry_on_intr(|| read(&self.socket, &mut self.buffer[..])) {
                Ok(len) => {
                    let index = self.known.index;
                    let links: Vec<_> = messages(&self.buffer[..len])
                        .filter_map(|message| match message {
                            Message::Link(kind, link) if link.index == index => Some((kind, link)),
                            _ => None,
                        })
                        .collect();
                    for (kind, link) in links {
                        if kind == RTM_DELLINK {
                            self.gone();
                        } else {
                            self.changed(link);
                        }
                    }
                }
                Err(Errno::AGAIN) => return Ok(None),
                // More happened than the kernel kept for us: look again.
                Err(Errno::NOBUFS) => match by_index(self.known.index)? {
                    Some(link) => self.changed(link),
                    None => self.gone(),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn changed(&mut self, link: Link) {
        if link.name != self.known.name {
            self.due.push_back(LinkEvent::Renamed(link.name.clone()));
        }
        if link.mtu != self.known.mtu {
            self.due.push_back(LinkEvent::Mtu(link.mtu));
        }
        if link.up != self.known.up {
            let event = if link.up {
                LinkEvent::Up
            } else {
                LinkEvent::Down
            };
            self.due.push_back(event);
        }
        self.known = link;
    }

    fn gone(&mut self) {
        self.due.push_back(match sys::attached(self.tun.as_fd()) {
            Ok(_) => LinkEvent::Moved,
            Err(_) => LinkEvent::Deleted,
        });
    }
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Vec<u8> {
        let mut data = Vec::new();
        for (kind, count) in [
            (IFLA_TUN_NUM_QUEUES, 2u32),
            (IFLA_TUN_NUM_DISABLED_QUEUES, 1),
        ] {
            data.extend_from_slice(&8u16.to_ne_bytes());
            data.extend_from_slice(&kind.to_ne_bytes());
            data.extend_from_slice(&count.to_ne_bytes());
        }
        let mut info = 8u16.to_ne_bytes().to_vec();
        info.extend_from_slice(&IFLA_INFO_KIND.to_ne_bytes());
        info.extend_from_slice(b"tun\0");
        info.extend_from_slice(&(data.len() as u16 + 4).to_ne_bytes());
        // Marked as nested.
        info.extend_from_slice(&(IFLA_INFO_DATA | 0x8000).to_ne_bytes());
        info.extend_from_slice(&data);
        encode(
            RTM_NEWLINK,
            0,
            7,
            IFF_UP,
            0,
            &[
                (IFLA_IFNAME, b"wg0\0"),
                (IFLA_MTU, &1420u32.to_ne_bytes()),
                (IFLA_CARRIER, &[1]),
                (IFLA_LINKINFO, &info),
            ],
        )
    }

    #[test]
    fn a_link_is_read_from_its_message() {
        let expected = Link {
            index: 7,
            name: "wg0".to_owned(),
            mtu: 1420,
            up: true,
            is_tun: true,
            carrier: true,
            queues: Some(3),
        };
        let mut twice = link();
        twice.extend_from_slice(&link());
        let read: Vec<_> = messages(&twice).collect();
        assert_eq!(
            read,
            [
                Message::Link(RTM_NEWLINK, expected.clone()),
                Message::Link(RTM_NEWLINK, expected)
            ]
        );
    }

    #[test]
    fn a_message_cut_anywhere_or_with_any_length_is_read_without_harm() {
        let whole = link();
        for len in 0..whole.len() {
            messages(&whole[..len]).for_each(drop);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 4, 5, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                messages(&bytes).for_each(drop);
            }
        }
    }

    #[test]
    fn an_error_is_read_with_its_number() {
        let mut bytes = vec![0; MESSAGE_HEADER];
        bytes[0] = 20;
        bytes[4] = NLMSG_ERROR as u8;
        bytes.extend_from_slice(&(-19i32).to_ne_bytes());
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [Message::Result(19)]);
        let bytes: Vec<u8> = bytes[..16].iter().copied().chain([0; 4]).collect();
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [Message::Result(0)]);
    }
}
