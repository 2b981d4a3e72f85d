//! Hearing of changes to the host, and how often to act on them.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

use libc::{
    MSG_DONTWAIT, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, NFT_MSG_NEWGEN, RTM_DELROUTE,
    RTM_NEWROUTE, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_LINK,
};
use netlink_sys::{Socket, protocols};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::owned::Claim;
use crate::route::table_of_route;
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

    /// Waits until something changes that these claims may care about, or in one of the routing
    /// tables beside theirs.
    pub(crate) async fn changed(
        &mut self,
        claims: &[Claim],
        others: &BTreeSet<u32>,
    ) -> io::Result<()> {
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
                relevant |= drain(socket.get_ref(), index == 0, claims, others, buffer)?;
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
            drain(
                socket.get_ref(),
                false,
                &[],
                &BTreeSet::new(),
                &mut self.buffer,
            )?;
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
    claims: &[Claim],
    others: &BTreeSet<u32>,
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
                        concerns_routing(message, claims, others)
                    } else {
                        concerns_nftables(message, claims)
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

/// Links, addresses and rules are few; of routes there may be very many, and only those of our table, of
/// tables that are asked ahead of it, and the default ones matter.
fn concerns_routing(message: wire::Received<'_>, claims: &[Claim], others: &BTreeSet<u32>) -> bool {
    if ![RTM_NEWROUTE, RTM_DELROUTE].contains(&message.kind) {
        return true;
    }
    let is_default = message.payload.get(1) == Some(&0);
    let table = table_of_route(message.payload);
    is_default
        || table.is_some_and(|table| others.contains(&table))
        || claims.iter().any(|claim| table == Some(claim.table))
}

/// Every message about a part of a table has the table's name as its first attribute.
fn concerns_nftables(message: wire::Received<'_>, claims: &[Claim]) -> bool {
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
