//! Sending: what becomes one message, what a refusal means, and where to resume.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::vec;

use rustix::io::Errno;
use warren_packet::Transmit;

use crate::socket::Socket;
use crate::sys::{self, Outgoing};

/// How long a destination is sent to without segmentation after it was refused. The kernel refuses
/// segments that are larger than a path's MTU; such a path may be a forgery, and it may get better.
const UNSEGMENTED: Duration = Duration::from_secs(60);

/// How many such destinations are remembered. Beyond that the oldest is tried again.
const MAX_UNSEGMENTED: usize = 1024;

macro_rules! failures {
    ($($(#[doc = $doc:literal])+ $variant:ident => $out:literal, $in:literal,)+) => {
        /// What the host said to a message.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Failure {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Failure {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name of the counter for what could not be sent.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $out,)+
                }
            }

            /// The name of the counter for an error that a receive met.
            pub(crate) const fn in_name(self) -> &'static str {
                match self {
                    $(Self::$variant => $in,)+
                }
            }
        }
    };
}

failures! {
    /// The local address that the message was to leave from is gone. It left from another.
    SourceGone => "out_source_gone", "in_error_source_gone",
    /// There is no route, or an interface on it is down.
    Unreachable => "out_unreachable", "in_error_unreachable",
    /// A firewall or a policy does not allow it.
    Forbidden => "out_forbidden", "in_error_forbidden",
    /// The host is out of memory, or a queue of an interface is full.
    NoBuffers => "out_no_buffers", "in_error_no_buffers",
    /// It is larger than what can be sent there, also in fragments.
    TooLarge => "out_too_large", "in_error_too_large",
    /// Somebody said by ICMP that nobody listens there.
    Refused => "out_refused", "in_error_refused",
    /// Something else.
    Other => "out_other_error", "in_error_other",
}

impl Failure {
    pub(crate) fn of(errno: Option<Errno>) -> Self {
        match errno {
            Some(
                Errno::NETUNREACH
                | Errno::HOSTUNREACH
                | Errno::NETDOWN
                | Errno::HOSTDOWN
                | Errno::AFNOSUPPORT
                | Errno::ADDRNOTAVAIL
                | Errno::NODEV,
            ) => Self::Unreachable,
            Some(Errno::PERM | Errno::ACCESS) => Self::Forbidden,
            Some(Errno::NOBUFS | Errno::NOMEM) => Self::NoBuffers,
            Some(Errno::MSGSIZE) => Self::TooLarge,
            Some(Errno::CONNREFUSED) => Self::Refused,
            _ => Self::Other,
        }
    }
}

/// A transmit that was not sent as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// The transmit's own tag.
    pub tag: u32,
    /// What the host said.
    pub kind: Failure,
    /// How many datagrams are lost.
    pub datagrams: u64,
}

/// What was sent of one or several transmits in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The transmits' own tag.
    pub tag: u32,
    /// How many bytes the host took.
    pub bytes: u64,
    /// In how many datagrams.
    pub datagrams: u64,
}

/// What [`Socket::send`] has to say, appended call by call until both are drained.
#[derive(Debug, Default)]
pub struct SendReport {
    sent: Vec<Sent>,
    failed: Vec<Failed>,
}

impl SendReport {
    /// What was sent, in order.
    pub fn drain_sent(&mut self) -> vec::Drain<'_, Sent> {
        self.sent.drain(..)
    }

    /// What was not sent as it was asked for, in order.
    pub fn drain(&mut self) -> vec::Drain<'_, Failed> {
        self.failed.drain(..)
    }

    fn sent(&mut self, tag: u32, bytes: usize, datagrams: usize) {
        let (bytes, datagrams) = (bytes as u64, datagrams as u64);
        match self.sent.last_mut() {
            Some(last) if last.tag == tag => {
                last.bytes += bytes;
                last.datagrams += datagrams;
            }
            _ => self.sent.push(Sent {
                tag,
                bytes,
                datagrams,
            }),
        }
    }
}

impl Socket {
    /// Sends `transmits`, in order, and answers how many are finished: sent, or failed for good and
    /// in the `report`. Fewer than all means that the socket's buffer is full.
    ///
    /// Call again with what is left, once [`Self::wait_writable`] or a poll says so. A transmit of
    /// which a part has left is shortened to what has not; one whose source address is gone has it
    /// removed. No failure of one transmit keeps those behind it.
    ///
    /// All go to the socket's own family. `now` is time since any fixed moment.
    ///
    /// # Panics
    ///
    /// If a transmit's range is not within `arena`.
    pub fn send(
        &self,
        now: Duration,
        arena: &[u8],
        transmits: &mut [Transmit],
        report: &mut SendReport,
    ) -> usize {
        self.sender
            .send(&Kernel(self.as_fd()), now, arena, transmits, report)
    }
}

/// Takes messages as `sendmmsg` does. The second one is in the tests.
trait Outlet {
    fn send<'a>(&self, messages: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize>;
}

struct Kernel<'a>(BorrowedFd<'a>);

impl Outlet for Kernel<'_> {
    fn send<'a>(&self, messages: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        sys::send(self.0, messages)
    }
}

/// What was learnt of sending by one socket.
#[derive(Debug)]
pub(crate) struct Sender {
    segmentation: AtomicBool,
    unsegmented: Unsegmented,
}

/// What follows from a refusal of the first transmit.
enum Step {
    /// It was changed, or the host: send again.
    Again,
    /// There is nothing more to do for it.
    Finished,
    /// The socket's buffer is full.
    Full,
}

impl Sender {
    pub(crate) fn new(segmentation: bool) -> Self {
        Self {
            segmentation: AtomicBool::new(segmentation),
            unsegmented: Unsegmented::default(),
        }
    }

    pub(crate) fn segments(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    fn send(
        &self,
        outlet: &impl Outlet,
        now: Duration,
        arena: &[u8],
        transmits: &mut [Transmit],
        report: &mut SendReport,
    ) -> usize {
        let mut finished = 0;
        while finished < transmits.len() {
            let rest = transmits.len() - finished;
            let window = &mut transmits[finished..][..rest.min(sys::BATCH)];
            let plan = self.plan(now, window);
            let all = window.iter().enumerate();
            let messages = all.flat_map(|(at, one)| messages(arena, one, plan.segments(at)));
            match outlet.send(messages) {
                Ok(sent) => finished += plan.advance(window, sent, report),
                Err(error) => {
                    let retry = Retry {
                        sender: self,
                        outlet,
                        now,
                        arena,
                        segmented: plan.segments(0),
                    };
                    match retry.refused(&mut window[0], &error, report) {
                        Step::Again => {}
                        Step::Finished => finished += 1,
                        Step::Full => break,
                    }
                }
            }
        }
        finished
    }

    /// Decides which transmits are segmented.
    fn plan(&self, now: Duration, window: &[Transmit]) -> Plan {
        let mut plan = Plan(0);
        if self.segments() {
            let unsegmented = self.unsegmented.at(now);
            for (at, transmit) in window.iter().enumerate() {
                let several = transmit.datagrams().len() > 1;
                if several && !unsegmented.holds(&transmit.remote) {
                    plan.0 |= 1 << at;
                }
            }
        }
        plan
    }
}

/// Which of up to 64 transmits are segmented. Made once per call of the kernel, since another
/// thread may learn more in between.
#[derive(Clone, Copy)]
struct Plan(u64);

impl Plan {
    fn segments(self, at: usize) -> bool {
        self.0 >> at & 1 != 0
    }

    /// The kernel took so many messages: answers how many transmits are finished, and shortens the
    /// one of which a part has left.
    fn advance(self, window: &mut [Transmit], mut sent: usize, report: &mut SendReport) -> usize {
        for (at, transmit) in window.iter_mut().enumerate() {
            let messages = match self.segments(at) {
                true => 1,
                false => transmit.datagrams().len(),
            };
            if sent < messages {
                if sent > 0 {
                    report.sent(transmit.tag, sent * transmit.stride, sent);
                    transmit.range.start += sent * transmit.stride;
                }
                return at;
            }
            report.sent(
                transmit.tag,
                transmit.range.len(),
                transmit.datagrams().len(),
            );
            sent -= messages;
        }
        window.len()
    }
}

/// A transmit as messages: one, or one for each datagram.
fn messages<'a>(
    arena: &'a [u8],
    transmit: &'a Transmit,
    segmented: bool,
) -> impl Iterator<Item = Outgoing<'a>> {
    let segment = segmented.then(|| {
        u16::try_from(transmit.stride).expect("a send with several datagrams is below 64 KiB")
    });
    let count = if segmented { 1 } else { usize::MAX };
    transmit.datagrams().take(count).map(move |datagram| {
        let range = match segmented {
            true => transmit.range.clone(),
            false => datagram,
        };
        Outgoing {
            payload: &arena[range],
            remote: transmit.remote,
            source: transmit.source,
            tos: transmit.tos & !3 | transmit.ecn.bits(),
            segment,
        }
    })
}

/// Finds out what the kernel has against a transmit.
struct Retry<'a, O> {
    sender: &'a Sender,
    outlet: &'a O,
    now: Duration,
    arena: &'a [u8],
    segmented: bool,
}

impl<O: Outlet> Retry<'_, O> {
    fn refused(&self, transmit: &mut Transmit, error: &io::Error, report: &mut SendReport) -> Step {
        let errno = Errno::from_io_error(error);
        match errno {
            Some(Errno::INTR) => return Step::Again,
            Some(Errno::AGAIN) => return Step::Full,
            // An interface without checksum offload, or IPsec on the way.
            Some(Errno::IO) if self.segmented => {
                self.sender.segmentation.store(false, Ordering::Relaxed);
                return Step::Again;
            }
            _ => {}
        }
        // The same number may mean the source address or the segments: what is sent without one of
        // them tells which it was. A source that is gone is EINVAL or, with newer kernels, as if
        // there were no route.
        let sourced = transmit.source.is_some();
        let kind = Failure::of(errno);
        let invalid = errno == Some(Errno::INVAL);
        let source = sourced && (invalid || kind == Failure::Unreachable);
        let segments = self.segmented && (invalid || kind == Failure::TooLarge);
        for (try_it, segmented, sourced) in [
            (source, self.segmented, false),
            (segments, false, sourced),
            (source && segments, false, false),
        ] {
            if try_it && let Some(step) = self.try_without(transmit, segmented, sourced, report) {
                return step;
            }
        }
        report.failed.push(Failed {
            tag: transmit.tag,
            kind,
            datagrams: transmit.datagrams().len() as u64,
        });
        Step::Finished
    }

    /// Sends the first message of a transmit in another form. `None` if that was refused as well.
    fn try_without(
        &self,
        transmit: &mut Transmit,
        segmented: bool,
        sourced: bool,
        report: &mut SendReport,
    ) -> Option<Step> {
        let form = Transmit {
            source: transmit.source.filter(|_| sourced),
            ..transmit.clone()
        };
        match self
            .outlet
            .send(messages(self.arena, &form, segmented).take(1))
        {
            Ok(1) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                return Some(Step::Full);
            }
            _ => return None,
        }
        if self.segmented && !segmented {
            self.sender.unsegmented.insert(transmit.remote, self.now);
        }
        if transmit.source.is_some() && !sourced {
            transmit.source = None;
            report.failed.push(Failed {
                tag: transmit.tag,
                kind: Failure::SourceGone,
                datagrams: 0,
            });
        }
        let plan = Plan(u64::from(segmented));
        Some(
            match plan.advance(std::slice::from_mut(transmit), 1, report) {
                0 => Step::Again,
                _ => Step::Finished,
            },
        )
    }
}

/// Destinations to which nothing is sent in segments, each until a time.
#[derive(Debug, Default)]
struct Unsegmented {
    until: Mutex<BTreeMap<SocketAddr, Duration>>,
    /// How many there are, so that nobody waits for the lock while there are none.
    count: AtomicUsize,
}

/// The same at one time.
struct UnsegmentedNow<'a>(Option<MutexGuard<'a, BTreeMap<SocketAddr, Duration>>>);

impl Unsegmented {
    fn at(&self, now: Duration) -> UnsegmentedNow<'_> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return UnsegmentedNow(None);
        }
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, until| *until > now);
        self.count.store(until.len(), Ordering::Relaxed);
        UnsegmentedNow(Some(until))
    }

    fn insert(&self, remote: SocketAddr, now: Duration) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= MAX_UNSEGMENTED {
            let oldest = until.iter().min_by_key(|(_, until)| **until);
            if let Some(oldest) = oldest.map(|(remote, _)| *remote) {
                until.remove(&oldest);
            }
        }
        until.insert(remote, now.saturating_add(UNSEGMENTED));
        self.count.store(until.len(), Ordering::Relaxed);
    }
}

impl UnsegmentedNow<'_> {
    fn holds(&self, remote: &SocketAddr) -> bool {
        self.0
            .as_ref()
            .is_some_and(|until| until.contains_key(remote))
    }
}

#[cfg(test)]
mod tests;
