//! Listening by netfilter: copies of the packets that a table of ours picks, for whoever may not open a packet
//! socket. It takes CAP_NET_ADMIN alone.
//!
//! The way of a copy: a rule of table `inet warren_verify_GROUP` picks the packet (`log group`), the kernel's
//! `nfnetlink_log` queues it for the socket that is bound to the group, [`Tap::hear`] reads it.
//!
//! Where it listens: after everything else in postrouting, so what every fence and every translation let pass,
//! and before everything else in prerouting. That is where packets are routed, not the card. It does not
//! hear what never comes by there: address resolution, frames that a bridge carries, what eBPF or a
//! flow table hands from card to card, what a packet socket writes. What is dropped behind it (a queue, eBPF
//! on the way out) it hears all the same.
//!
//! A group has one listener in a network namespace, which the kernel sees to: so whoever holds a group is alone
//! with its table, and a table whose group nobody holds is what somebody left who was killed. Since Linux 5.12 there
//! is no such thing, because the kernel takes the table away with the socket that made it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use libc::{
    ARPHRD_LOOPBACK, ARPHRD_NONE, MSG_DONTWAIT, MSG_TRUNC, NF_INET_POST_ROUTING,
    NF_INET_PRE_ROUTING,
};
use netlink_sys::Socket;

use crate::connection::{Connection, KernelError};
use crate::fence::set;
use crate::nft::{self, Chain, Found, Hook, Match, Rule, Table, TableName, Verdict};
use crate::route::Family;
use crate::wire::{self, Message, bytes, find};

/// Begins the name of each table; the group follows.
const NAME: &str = "warren_verify_";
/// Out of the way of others: `ulogd` and firewalls count from 0 up.
const FIRST_GROUP: u16 = 22_336;
/// As many may listen at once in one network namespace.
const GROUPS: u16 = 16;
/// Enough for the headers of anything, and for what a small packet carries.
const HEAD_MAX: u32 = 512;
/// The largest packet with all that is said about it; larger answers there are none.
const BUFFER: usize = 128 * 1024;

// `include/uapi/linux/netfilter/nfnetlink_log.h`. The subsystem is NFNL_SUBSYS_ULOG.
const MSG_PACKET: u16 = 4 << 8;
const MSG_CONFIG: u16 = 4 << 8 | 1;
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_QTHRESH: u16 = 5;
const CFG_FLAGS: u16 = 6;
const CMD_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const FLAG_SEQUENCE: u16 = 1;
const IN_INTERFACE: u16 = 4;
const OUT_INTERFACE: u16 = 5;
const PAYLOAD: u16 = 9;
const SEQUENCE: u16 = 12;

/// Which packets to pick.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sought {
    /// The tunnel's interface, where packets are as they should be.
    pub tunnel: String,
    /// The mesh's prefixes: what leaves for one of them, or comes from one, is picked.
    pub mesh: BTreeSet<IpNet>,
    /// Those of them that are this host's own or are carried in the clear: to them, and from them, is not.
    pub open: BTreeSet<IpNet>,
    /// This host's addresses in the mesh: what leaves from one of them is picked.
    pub addresses: BTreeSet<IpAddr>,
    /// Where an overlay is what is encrypted, its UDP ports: of the mesh's, only what goes to these is picked.
    pub overlay_ports: BTreeSet<u16>,
    /// What leaves from this UDP port is picked: the tunnel's.
    pub port: Option<u16>,
    /// What a socket of this priority sends is picked.
    pub priority: u32,
}

/// A packet that was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tapped<'a> {
    /// The index of the interface by which it leaves or came.
    pub interface: u32,
    /// Whether it leaves.
    pub outgoing: bool,
    /// The packet from its IP header on, or its beginning.
    pub bytes: &'a [u8],
}

/// Why nothing can be listened at.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The process lacks the right.
    #[error("this process may not use netfilter: it lacks CAP_NET_ADMIN")]
    Denied,
    /// All groups are in use.
    #[error(
        "all {GROUPS} groups of the netfilter log from {FIRST_GROUP} on are in use here: wait until another \
         verify is done"
    )]
    Busy,
    /// The kernel has no such log.
    #[error(
        "this kernel has no netfilter log (modules nfnetlink_log and nft_log): {0}; run it where packet sockets \
         are allowed (CAP_NET_RAW)"
    )]
    Absent(KernelError),
    /// The kernel refused something.
    #[error("netfilter refuses to log packets: {0}")]
    Refused(KernelError),
    /// Somebody has removed the table, or changed what is in it.
    #[error(
        "table {0} was removed or changed while it listened by it, so nothing is proved; run it again while no other \
         program loads rules of nftables"
    )]
    Disturbed(TableName),
}

impl From<KernelError> for TapError {
    fn from(error: KernelError) -> Self {
        Self::Refused(error)
    }
}

/// Listens until it is dropped.
pub struct Tap {
    /// Made the table, and is what the kernel ties it to.
    netfilter: Connection,
    table: TableName,
    /// As it was read back.
    made: Found,
    socket: Socket,
    buffer: Vec<u8>,
    /// The number of the next packet, once there was one.
    expected: Option<u32>,
    lost: u64,
}

impl Tap {
    /// Begins to listen in the network namespace of the calling thread.
    pub fn open(sought: &Sought) -> Result<Self, TapError> {
        let mut netfilter = Connection::netfilter()?;
        // Asked first: a group in use is refused in the same word as one who may not ask.
        let left = tables(&mut netfilter)?;
        let Some((group, socket)) = bind_any()? else {
            return Err(TapError::Busy);
        };
        for other in left {
            // Whoever holds the group of a table uses it. This one's own is replaced below.
            if other != group
                && let Some(_held) = bind(other)?
            {
                remove(&mut netfilter, &name(other))?;
            }
        }
        let table = table(group, sought);
        match netfilter.transaction(&table.borrow()) {
            Err(error) if [libc::EOPNOTSUPP, libc::EINVAL].contains(&error.errno()) => {
                netfilter.transaction(&table.replace()).map_err(absent)?;
            }
            made => made.map_err(absent)?,
        }
        let made = Found::read(&mut netfilter, &table.name)?;
        Ok(Self {
            made: made.ok_or_else(|| TapError::Disturbed(table.name.clone()))?,
            netfilter,
            table: table.name,
            socket,
            buffer: vec![0; BUFFER],
            expected: None,
            lost: 0,
        })
    }

    /// The next packet; `None` if there is none now.
    pub fn hear(&mut self) -> io::Result<Option<Tapped<'_>>> {
        let length = loop {
            let mut space = &mut self.buffer[..];
            match self.socket.recv_from(&mut space, MSG_DONTWAIT | MSG_TRUNC) {
                // Port 0 is the kernel; nobody else is believed.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((length, _)) if length > BUFFER => self.lost += 1,
                Ok((length, _)) => {
                    let (read, missed) = read(&self.buffer[..length], self.expected);
                    self.expected = read.or(self.expected);
                    self.lost += u64::from(missed);
                    if packet(&self.buffer[..length]).is_some() {
                        break length;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // There was no room for one at least; where others follow their numbers tell how many.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost += 1,
                Err(error) => return Err(error),
            }
        };
        Ok(packet(&self.buffer[..length]))
    }

    /// How many packets at least were missed for want of room to wait in. An error if the table is not what it was,
    /// as may be where the kernel does not guard it (before Linux 5.12): then nobody knows how many.
    pub fn lost(&mut self) -> Result<u64, TapError> {
        let found = Found::read(&mut self.netfilter, &self.table)?;
        match found {
            Some(found) if found == self.made => Ok(self.lost),
            _ => Err(TapError::Disturbed(self.table.clone())),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // The kernel does it otherwise, or whoever comes next.
        let _late = remove(&mut self.netfilter, &self.table);
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (f.debug_struct("Tap").field("table", &self.table.name)).finish_non_exhaustive()
    }
}

/// The groups whose tables there are.
fn tables(netfilter: &mut Connection) -> Result<Vec<u16>, TapError> {
    let names = match nft::table_names(netfilter, None) {
        Ok(names) => names,
        Err(error) if error.errno() == libc::EPERM => return Err(TapError::Denied),
        Err(error) => return Err(absent(error)),
    };
    let groups = names
        .iter()
        .filter_map(|name| name.strip_prefix(NAME)?.parse().ok());
    // Others are nobody's that this program could have made.
    let ours = FIRST_GROUP..FIRST_GROUP + GROUPS;
    Ok(groups.filter(|group| ours.contains(group)).collect())
}

fn bind_any() -> Result<Option<(u16, Socket)>, TapError> {
    for group in FIRST_GROUP..FIRST_GROUP + GROUPS {
        if let Some(socket) = bind(group)? {
            return Ok(Some((group, socket)));
        }
    }
    Ok(None)
}

/// A socket that is told of this group's packets; `None` if another is.
fn bind(group: u16) -> Result<Option<Socket>, TapError> {
    let [high, low] = group.to_be_bytes();
    // `struct nfgenmsg`: no family, version 0, the group.
    let config = |attrs: &[wire::Attr]| Message::new(MSG_CONFIG, 0, &[0, 0, high, low], attrs);
    let mut connection = Connection::netfilter()?;
    match connection.request(&config(&[bytes(CFG_CMD, &[CMD_BIND])])) {
        Ok(()) => {}
        Err(error) if [libc::EPERM, libc::EBUSY].contains(&error.errno()) => return Ok(None),
        Err(error) => return Err(absent(error)),
    }
    // `struct nfulnl_msg_config_mode`: all of the packet.
    let mode = [&0xffff_u32.to_be_bytes()[..], &[COPY_PACKET, 0]].concat();
    connection.request(&config(&[
        bytes(CFG_MODE, &mode),
        // Each at once, and numbered.
        bytes(CFG_QTHRESH, &1u32.to_be_bytes()),
        bytes(CFG_FLAGS, &FLAG_SEQUENCE.to_be_bytes()),
    ]))?;
    Ok(Some(connection.into_socket()))
}

fn remove(netfilter: &mut Connection, table: &TableName) -> Result<(), KernelError> {
    match netfilter.transaction(&nft::remove(table)) {
        Err(error) if error.errno() != libc::ENOENT => Err(error),
        _ => Ok(()),
    }
}

fn absent(error: KernelError) -> TapError {
    let is_absent = [
        libc::ENOENT,
        libc::EINVAL,
        libc::EOPNOTSUPP,
        libc::EPROTONOSUPPORT,
    ]
    .contains(&error.errno());
    match is_absent {
        true => TapError::Absent(error),
        false => TapError::Refused(error),
    }
}

fn name(group: u16) -> TableName {
    let (family, name) = (None, format!("{NAME}{group}"));
    TableName { family, name }
}

struct Names {
    mesh: &'static str,
    open: &'static str,
    addresses: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            mesh: "mesh4",
            open: "open4",
            addresses: "addresses4",
        },
        Family::V6 => Names {
            mesh: "mesh6",
            open: "open6",
            addresses: "addresses6",
        },
    }
}

/// The table that picks what is sought.
fn table(group: u16, sought: &Sought) -> Table {
    let rule = |matches, verdict| Rule {
        comment: "warren: listens",
        matches,
        verdict,
    };
    let pass = |matches| rule(matches, Verdict::Accept);
    let show = |matches| rule(matches, Verdict::Log(group, Some(HEAD_MAX)));
    let mut out = vec![
        pass(vec![Match::OutType(ARPHRD_LOOPBACK)]),
        pass(vec![
            Match::OutName(sought.tunnel.clone()),
            Match::OutType(ARPHRD_NONE),
        ]),
        show(vec![Match::Priority(sought.priority)]),
    ];
    if let Some(port) = sought.port {
        // Whole: one packet may be cut into many records later, each of which is looked for.
        let whole = Verdict::Log(group, None);
        out.push(rule(vec![Match::UdpFrom(port)], whole));
    }
    let mut incoming = vec![
        pass(vec![Match::InType(ARPHRD_LOOPBACK)]),
        pass(vec![
            Match::InName(sought.tunnel.clone()),
            Match::InType(ARPHRD_NONE),
        ]),
    ];
    let addresses: BTreeSet<IpNet> = sought.addresses.iter().copied().map(IpNet::from).collect();
    let mut sets = Vec::new();
    for family in Family::ALL {
        let names = names(family);
        sets.push(set(names.mesh, family, &sought.mesh));
        sets.push(set(names.open, family, &sought.open));
        sets.push(set(names.addresses, family, &addresses));
        let source = |set| Match::Source(family, set, true);
        let destination = |set| Match::Destination(family, set, true);
        let is = || Match::Family(family);
        out.push(pass(vec![is(), destination(names.open)]));
        if sought.overlay_ports.is_empty() {
            incoming.push(show(vec![is(), source(names.addresses)]));
        }
        incoming.push(pass(vec![is(), source(names.open)]));
        for port in &sought.overlay_ports {
            let overlay = || Match::UdpTo(*port);
            out.push(show(vec![is(), overlay(), destination(names.mesh)]));
            incoming.push(show(vec![is(), overlay(), source(names.mesh)]));
        }
        if sought.overlay_ports.is_empty() {
            out.push(show(vec![is(), destination(names.mesh)]));
            out.push(show(vec![is(), source(names.addresses)]));
            incoming.push(show(vec![is(), source(names.mesh)]));
        }
    }
    let chain = |name, number, priority, rules| Chain {
        name,
        hook: Some(Hook {
            kind: "filter",
            number,
            priority,
        }),
        rules,
    };
    Table {
        name: name(group),
        generation: "",
        comment: "warren: verify listens, and takes this away",
        exclusive: false,
        counters: Vec::new(),
        sets,
        chains: vec![
            chain("out", NF_INET_POST_ROUTING, i32::MAX, out),
            chain("in", NF_INET_PRE_ROUTING, i32::MIN, incoming),
        ],
    }
}

/// The attributes of the packet in a datagram of the kernel's.
fn attributes(datagram: &[u8]) -> Option<&[u8]> {
    let message = wire::messages(datagram).find(|message| message.kind == MSG_PACKET)?;
    // Behind `struct nfgenmsg`.
    message.payload.get(4..)
}

/// The number that is expected next, and how many were missed before this one.
fn read(datagram: &[u8], expected: Option<u32>) -> (Option<u32>, u32) {
    let sequence = attributes(datagram)
        .and_then(|attrs| find(attrs, SEQUENCE))
        .and_then(wire::read_u32)
        .map(u32::from_be);
    let missed = match (sequence, expected) {
        (Some(is), Some(expected)) => is.wrapping_sub(expected),
        _ => 0,
    };
    (sequence.map(|is| is.wrapping_add(1)), missed)
}

/// The packet in a datagram of the kernel's, if there is one.
fn packet(datagram: &[u8]) -> Option<Tapped<'_>> {
    let attrs = attributes(datagram)?;
    let interface = |kind| find(attrs, kind).and_then(wire::read_u32).map(u32::from_be);
    // What is forwarded has both when it leaves.
    let leaves = interface(OUT_INTERFACE);
    Some(Tapped {
        interface: leaves.or_else(|| interface(IN_INTERFACE))?,
        outgoing: leaves.is_some(),
        bytes: find(attrs, PAYLOAD)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::net;
    use crate::wire::be32;

    /// What the kernel sends for a packet of the group.
    fn datagram(attrs: &[wire::Attr]) -> Vec<u8> {
        let mut out = Vec::new();
        Message::new(MSG_PACKET, 0, &[2, 0, 0x57, 0x40], attrs).write(0, 0, &mut out);
        out
    }

    #[test]
    fn a_packet_that_leaves_is_told_from_one_that_enters() {
        let payload = || bytes(PAYLOAD, b"a packet");
        let leaving = datagram(&[be32(IN_INTERFACE, 3), be32(OUT_INTERFACE, 2), payload()]);
        let entering = datagram(&[be32(IN_INTERFACE, 3), payload()]);
        let tapped = |interface, outgoing| Tapped {
            interface,
            outgoing,
            bytes: b"a packet",
        };
        assert_eq!(packet(&leaving), Some(tapped(2, true)));
        assert_eq!(packet(&entering), Some(tapped(3, false)));
    }

    #[test]
    fn what_says_too_little_is_no_packet() {
        let no_interface = datagram(&[bytes(PAYLOAD, b"x")]);
        let no_payload = datagram(&[be32(OUT_INTERFACE, 2)]);
        let short = datagram(&[bytes(OUT_INTERFACE, &[0]), bytes(PAYLOAD, b"x")]);
        let mut of_others = datagram(&[be32(OUT_INTERFACE, 2), bytes(PAYLOAD, b"x")]);
        of_others[5] = 10;
        for datagram in [no_interface, no_payload, short, of_others, Vec::new()] {
            assert_eq!(packet(&datagram), None, "{datagram:?}");
        }
    }

    #[test]
    fn a_gap_in_the_numbers_is_what_was_missed() {
        let numbered = |number| datagram(&[be32(SEQUENCE, number), be32(OUT_INTERFACE, 2)]);
        assert_eq!(read(&numbered(7), None), (Some(8), 0));
        assert_eq!(read(&numbered(8), Some(8)), (Some(9), 0));
        assert_eq!(read(&numbered(12), Some(9)), (Some(13), 3));
        assert_eq!(read(&numbered(0), Some(u32::MAX)), (Some(1), 1));
        assert_eq!(read(b"nothing", Some(9)), (None, 0));
    }

    #[test]
    fn the_port_of_an_overlay_is_sought_in_place_of_its_prefixes() {
        let mut sought = Sought {
            tunnel: "warren0".to_owned(),
            mesh: [net("0.0.0.0/0")].into(),
            priority: 7,
            ..Sought::default()
        };
        let ports = |sought: &Sought| {
            let table = table(FIRST_GROUP, sought);
            let rules = table.chains.iter().flat_map(|chain| &chain.rules);
            let shown = rules.filter(|rule| matches!(rule.verdict, Verdict::Log(..)));
            let by_port = |rule: &&Rule| {
                (rule.matches.iter()).any(|wanted| matches!(wanted, Match::UdpTo(8472)))
            };
            let (by_port, others): (Vec<_>, Vec<_>) = shown.partition(by_port);
            (by_port.len(), others.len())
        };
        assert_eq!(ports(&sought), (0, 9));
        sought.overlay_ports = [8472].into();
        assert_eq!(ports(&sought), (4, 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = packet(&datagram);
            let _ = read(&datagram, Some(7));
        }

        #[test]
        fn no_attributes_make_reading_panic_or_yield_more_than_there_is(
            attrs in prop::collection::vec((0u16..24, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            cut in 0usize..200,
        ) {
            let attrs: Vec<_> = attrs.iter().map(|(kind, value)| bytes(*kind, value)).collect();
            let mut datagram = datagram(&attrs);
            datagram.truncate(cut);
            if let Some(tapped) = packet(&datagram) {
                prop_assert!(tapped.bytes.len() < datagram.len());
            }
        }
    }
}
