//! Hearing of changes to the host, and how often to act on them.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use libc::{
    MSG_DONTWAIT, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, NFT_MSG_NEWGEN, RTM_DELADDR, RTM_DELLINK,
    RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_LINK,
};
use netlink_sys::{Socket, protocols};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::owned::Claim;
use crate::route::{Address, table_of_route};
use crate::sys;
use crate::wire;

/// What is changed back so often within [`WINDOW`] is contested.
const BURST: usize = 20;
/// How long a repair counts.
const WINDOW: Duration = Duration::from_secs(10);
/// Between repairs of what is contested.
const CONTESTED: Duration = Duration::from_millis(500);
/// Between any two looks at the host.
const SETTLE: Duration = Duration::from_millis(20);
/// Bytes of notifications that may wait; when there are more the kernel says that some are lost.
const BACKLOG: i32 = 1 << 20;
const BUFFER: usize = 64 * 1024;

/// What of the host's changes may matter. A node on which pods come and go makes interfaces, addresses and
/// routes all the time that are none of ours.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interest {
    pub(crate) claims: Vec<Claim>,
    /// Routing tables beside the claims': those that rules ahead of ours lead to.
    pub(crate) tables: BTreeSet<u32>,
    /// Indices of the claims' interfaces as they were last seen: one that is renamed has another name already.
    pub(crate) links: BTreeSet<u32>,
    /// Names of interfaces that rules select by.
    pub(crate) names: BTreeSet<String>,
    /// By which this program changes routes: what follows from that is no news.
    pub(crate) own_port: Option<u32>,
    /// What is behind this node: addresses in it come and go with whoever has them.
    pub(crate) behind: BTreeSet<IpNet>,
}

/// Notifications of the kernel.
pub(crate) struct Watcher {
    sockets: Sockets,
    buffer: Vec<u8>,
}

/// Registered with the runtime when first waited for, since opening needs none.
enum Sockets {
    Opened(Vec<Socket>),
    Registered(Vec<AsyncFd<Socket>>),
}

impl Watcher {
    /// Hears of everything from now on.
    pub(crate) fn open() -> io::Result<Self> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV6_RULE,
        ];
        let mut sockets = vec![subscribe(protocols::NETLINK_ROUTE, &groups)?];
        // Without nftables there is nothing to hear of it.
        let nftables = NFNLGRP_NFTABLES.cast_unsigned();
        sockets.extend(subscribe(protocols::NETLINK_NETFILTER, &[nftables]));
        Ok(Self {
            sockets: Sockets::Opened(sockets),
            buffer: vec![0; BUFFER],
        })
    }

    /// Waits until something changes that may matter.
    pub(crate) async fn changed(&mut self, interest: &Interest) -> io::Result<()> {
        let Self { sockets, buffer } = self;
        if let Sockets::Opened(opened) = sockets {
            let registered = opened
                .drain(..)
                .map(sys::register)
                .collect::<io::Result<_>>()?;
            *sockets = Sockets::Registered(registered);
        }
        let Sockets::Registered(registered) = sockets else {
            return Err(io::Error::other("the sockets were not registered"));
        };
        loop {
            any_readable(registered).await?;
            let mut relevant = false;
            for (index, socket) in registered.iter().enumerate() {
                relevant |= drain(socket.get_ref(), index == 0, interest, buffer)?;
            }
            if relevant {
                return Ok(());
            }
        }
    }

    /// Passes over what has been heard so far.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        let Sockets::Registered(registered) = &self.sockets else {
            return Ok(());
        };
        for socket in registered {
            let nothing = Interest::default();
            drain(socket.get_ref(), false, &nothing, &mut self.buffer)?;
        }
        Ok(())
    }
}

async fn any_readable(sockets: &[AsyncFd<Socket>]) -> io::Result<()> {
    std::future::poll_fn(|context| {
        let mut result = std::task::Poll::Pending;
        for socket in sockets {
            if let std::task::Poll::Ready(ready) = socket.poll_read_ready(context) {
                // The next wait is for what comes after that which is read now.
                let ready = ready.map(|mut guard| guard.clear_ready());
                result = std::task::Poll::Ready(ready);
            }
        }
        result
    })
    .await
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.set_non_blocking(true)?;
    let _ = socket.set_rx_buf_sz(BACKLOG);
    socket.bind_auto()?;
    for group in groups {
        // One family less (IPv6 is off) is no reason not to hear of the other.
        let _ = socket.add_membership(*group);
    }
    Ok(socket)
}

/// Reads all that is there. Whether any of it matters; a loss of notifications does.
fn drain(
    socket: &Socket,
    is_route: bool,
    interest: &Interest,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let mut relevant = false;
    loop {
        let mut space = &mut buffer[..];
        match socket.recv_from(&mut space, MSG_DONTWAIT) {
            Ok((length, from)) if from.port_number() == 0 => {
                let length = length.min(buffer.len());
                let mut messages = wire::messages(&buffer[..length]);
                relevant |= messages.any(|message| {
                    if is_route {
                        concerns_routing(&message, interest)
                    } else {
                        concerns_nftables(&message, &interest.claims)
                    }
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(relevant),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => relevant = true,
            Err(error) => return Err(error),
        }
    }
}

/// Rules are few. Of the rest there may be very many: routes matter in our table, in those that are asked ahead
/// of it, and default ones; interfaces that are ours or that rules name; addresses that are ours or somebody's
/// out there.
fn concerns_routing(message: &wire::Received<'_>, interest: &Interest) -> bool {
    let payload = message.payload;
    let index = || payload.get(4..).and_then(wire::read_u32);
    let is_ours = || index().is_some_and(|index| interest.links.contains(&index));
    match message.kind {
        RTM_NEWROUTE | RTM_DELROUTE if interest.own_port == Some(message.port) => false,
        RTM_NEWROUTE | RTM_DELROUTE => {
            let is_default = payload.get(1) == Some(&0);
            let claimed = |table| interest.claims.iter().any(|claim| table == claim.table);
            is_default
                || table_of_route(payload)
                    .is_some_and(|table| interest.tables.contains(&table) || claimed(table))
        }
        RTM_NEWLINK | RTM_DELLINK => {
            let attrs = payload.get(16..).unwrap_or_default();
            let name = wire::find(attrs, libc::IFLA_IFNAME).and_then(wire::read_text);
            let is_named = |name: &str| {
                let mut claims = interest.claims.iter();
                interest.names.contains(name) || claims.any(|claim| claim.interface == name)
            };
            is_ours() || name.is_none_or(is_named)
        }
        RTM_NEWADDR | RTM_DELADDR => {
            let is_elsewhere = |address: Address| {
                let address = address.address.addr();
                let mut behind = interest.behind.iter();
                !is_link_local(address) && !behind.any(|prefix| prefix.contains(&address))
            };
            is_ours() || Address::parse(payload).is_none_or(is_elsewhere)
        }
        _ => true,
    }
}

/// Every interface has one of IPv6.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Every message about a part of a table has the table's name as its first attribute.
fn concerns_nftables(message: &wire::Received<'_>, claims: &[Claim]) -> bool {
    let kind = i32::from(message.kind);
    if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN {
        return false;
    }
    let attrs = message.payload.get(4..).unwrap_or_default();
    let name = wire::find(attrs, 1).and_then(wire::read_text);
    claims.iter().any(|claim| name == Some(&claim.nftables()))
}

/// How often to put things back when another program keeps changing them.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When repairs were made, within the window.
    repairs: VecDeque<Instant>,
    looked: Option<Instant>,
}

impl Pace {
    /// The host was looked at.
    pub(crate) fn looked(&mut self, now: Instant) {
        self.looked = Some(now);
    }

    /// Something was put back.
    pub(crate) fn repaired(&mut self, now: Instant) {
        self.expire(now);
        // More than these make no difference.
        self.repairs.truncate(BURST);
        self.repairs.push_front(now);
    }

    /// Whether something is put back again and again.
    pub(crate) fn is_contested(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.repairs.len() >= BURST
    }

    /// When to look at the host next, if it changes at `now`.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        let contested = self.is_contested(now);
        let wait = if contested { CONTESTED } else { SETTLE };
        self.looked.map_or(now, |looked| now.max(looked + wait))
    }

    fn expire(&mut self, now: Instant) {
        while self
            .repairs
            .back()
            .is_some_and(|repair| now.duration_since(*repair) >= WINDOW)
        {
            self.repairs.pop_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route;
    use crate::tests::{config, net};
    use crate::wire::Message;

    fn received(kind: u16, payload: &[u8]) -> wire::Received<'_> {
        wire::Received {
            kind,
            flags: 0,
            sequence: 0,
            port: 0,
            payload,
        }
    }

    #[test]
    fn routes_that_this_program_changes_itself_are_no_news() {
        let config = config();
        let route = route::Route {
            table: config.table,
            destination: net("10.1.5.0/24"),
            metric: 1024,
            kind: route::RouteKind::Unicast(7),
            gateway: None,
            source: None,
            complex: false,
        };
        let mut bytes = Vec::new();
        route.add().write(1, 0, &mut bytes);
        let interest = Interest {
            claims: vec![Claim::of(&config)],
            own_port: Some(42),
            ..Interest::default()
        };
        for (port, concerns) in [(42, false), (43, true), (0, true)] {
            for kind in [RTM_NEWROUTE, RTM_DELROUTE] {
                let mut message = received(kind, &bytes[wire::HEADER..]);
                message.port = port;
                assert_eq!(concerns_routing(&message, &interest), concerns, "{port}");
            }
        }
    }

    #[test]
    fn what_pods_make_that_come_and_go_does_not_matter() {
        let config = config();
        let interest = Interest {
            claims: vec![Claim::of(&config)],
            tables: [100].into(),
            own_port: None,
            links: [7].into(),
            names: ["eth1".to_owned()].into(),
            behind: config.fence.local.clone(),
        };
        let matters = |kind: u16, message: &Message| {
            let payload = message.payload();
            concerns_routing(&received(kind, payload), &interest)
        };
        let link = |index: u32, name: &str| {
            let mut fixed = [0; 16];
            fixed[4..8].copy_from_slice(&index.to_ne_bytes());
            Message::new(
                RTM_NEWLINK,
                0,
                &fixed,
                &[wire::text(libc::IFLA_IFNAME, name)],
            )
        };
        for (index, name, expected) in [
            (9, "veth1234", false),
            (9, "warren0", true),
            (9, "eth1", true),
            // Ours, renamed.
            (7, "stolen0", true),
        ] {
            for kind in [RTM_NEWLINK, RTM_DELLINK] {
                assert_eq!(matters(kind, &link(index, name)), expected, "{name}");
            }
        }
        for (interface, address, expected) in [
            (9, "192.0.2.7/24", true),
            (9, "10.1.1.1/32", false),
            (9, "fe80::1/64", false),
            (9, "2001:db8::7/64", true),
            (7, "10.1.1.1/32", true),
            (7, "fe80::1/64", true),
        ] {
            let address = Address {
                interface,
                address: net(address),
            };
            let message = address.add();
            for kind in [RTM_NEWADDR, RTM_DELADDR] {
                assert_eq!(matters(kind, &message), expected, "{address:?}");
            }
        }
        let route = |table, destination| route::Route {
            table,
            destination: net(destination),
            metric: 0,
            kind: route::RouteKind::Unicast(9),
            gateway: None,
            source: None,
            complex: false,
        };
        for (table, destination, expected) in [
            (254, "10.1.1.9/32", false),
            (254, "0.0.0.0/0", true),
            (100, "10.1.1.9/32", true),
            (config.table, "10.1.1.9/32", true),
        ] {
            let message = route(table, destination).add();
            assert_eq!(matters(RTM_NEWROUTE, &message), expected, "{table}");
        }
        assert!(matters(libc::RTM_NEWRULE, &route(254, "10.1.1.9/32").add()));
    }

    #[test]
    fn the_first_changes_are_put_back_at_once_and_a_fight_twice_a_second() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut now = start;
        let mut repairs = Vec::new();
        // Another program undoes each repair at once, for half a minute.
        while now < start + Duration::from_secs(30) {
            now = pace.next(now);
            pace.looked(now);
            pace.repaired(now);
            repairs.push(now - start);
        }
        assert!(
            repairs[BURST - 1] < Duration::from_millis(500),
            "{repairs:?}"
        );
        assert!(repairs.len() <= BURST + 61, "{repairs:?}");
        assert!(pace.is_contested(now));

        // It gives up, and after a while everything is as at first.
        now += WINDOW;
        assert!(!pace.is_contested(now));
        assert_eq!(pace.next(now), now);
    }

    #[test]
    fn a_host_that_changes_all_the_time_is_looked_at_fifty_times_a_second_at_most() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut now = start;
        let mut looks = 0;
        while now < start + Duration::from_secs(1) {
            now = pace.next(now);
            pace.looked(now);
            looks += 1;
        }
        assert!(looks <= 51, "{looks}");
    }
}
