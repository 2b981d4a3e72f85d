//! One socket: receiving, and what belongs to both directions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use warren_packet::{Datagram, Ecn, RecvBatch};

use crate::send::{Failure, Sender};
use crate::sys;

/// Received messages begin on cache lines.
const CACHE_LINE: usize = 64;

/// How often one call of `recv` starts anew after an error, so that a flood of them ends nothing
/// and holds up nothing else.
const TRIES: usize = 16;

/// A bound UDP socket that never blocks. Any number of threads may use it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u16,
    receive_offload: bool,
    /// Room that one received message gets.
    slot: usize,
    pub(crate) sender: Sender,
    truncated: AtomicU64,
    errors: [AtomicU64; Failure::ALL.len()],
    /// Held as long as any of the sockets that share the port, see `bind.rs`.
    _guards: Arc<Vec<socket2::Socket>>,
}

/// What a socket uses of what the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Sends are segmented. Ends for good when the kernel says that the host cannot.
    pub segmentation: bool,
    /// Receives are joined.
    pub receive_offload: bool,
}

impl Socket {
    pub(crate) fn new(
        fd: OwnedFd,
        port: u16,
        features: Features,
        largest_datagram: usize,
        guards: Arc<Vec<socket2::Socket>>,
    ) -> Self {
        let slot = if features.receive_offload {
            RecvBatch::SLOT
        } else {
            largest_datagram
                .next_multiple_of(CACHE_LINE)
                .clamp(CACHE_LINE, RecvBatch::SLOT)
        };
        Self {
            fd,
            port,
            receive_offload: features.receive_offload,
            slot,
            sender: Sender::new(features.segmentation),
            truncated: AtomicU64::new(0),
            errors: [const { AtomicU64::new(0) }; Failure::ALL.len()],
            _guards: guards,
        }
    }

    /// The local port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is in use now.
    pub fn features(&self) -> Features {
        Features {
            segmentation: self.sender.segments(),
            receive_offload: self.receive_offload,
        }
    }

    /// Marks every packet that is sent from now on (`SO_MARK`); 0 is none.
    pub fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        socket2::SockRef::from(self).set_mark(fwmark)
    }

    /// Appends what has arrived to `batch`, as far as there is room, and answers how many messages
    /// that were. Zero means that nothing is there, or that the batch is full. [`RecvBatch::more`] tells
    /// whether more may wait.
    ///
    /// Datagrams that do not fit their slot are dropped and counted, and so are the errors that a
    /// socket collects from the network; see [`Self::counters`]. An error that is answered is a bug.
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        let before = batch.datagrams.len();
        for _ in 0..TRIES {
            let RecvBatch {
                arena,
                datagrams,
                more,
            } = batch;
            let used = datagrams.last().map_or(0, |last| last.range.end);
            let start = used.next_multiple_of(CACHE_LINE);
            let Some(free) = arena.get_mut(start..) else {
                break;
            };
            if free.len() < self.slot {
                break;
            }
            let room = (free.len() / self.slot).min(sys::BATCH);
            let received = sys::receive(self.as_fd(), free, self.slot, |incoming| {
                if incoming.truncated {
                    self.truncated.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                let at = start + incoming.slot * self.slot;
                datagrams.push(Datagram {
                    range: at..at + incoming.len,
                    stride: incoming.segment.unwrap_or(incoming.len),
                    remote: incoming.remote,
                    source: incoming.source,
                    ecn: Ecn::from_tos(incoming.tos),
                });
            });
            *more = (received.as_ref()).is_ok_and(|&received| received == room);
            match received.map_err(|error| (Errno::from_io_error(&error), error)) {
                Ok(_) if datagrams.len() > before => break,
                Ok(_) | Err((Some(Errno::INTR), _)) => {}
                Err((Some(Errno::AGAIN), _)) => break,
                Err((Some(Errno::BADF | Errno::NOTSOCK | Errno::FAULT | Errno::INVAL), error)) => {
                    return Err(error);
                }
                Err((errno, _)) => self.count(Failure::of(errno)),
            }
        }
        Ok(batch.datagrams.len() - before)
    }

    /// Waits until the socket takes more to send, and answers whether it does.
    pub fn wait_writable(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::OUT)];
        let timeout = Timespec::try_from(patience).ok();
        matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Ok(1..))
    }

    /// What went wrong with receiving, each kind that did under its name.
    ///
    /// What could not be sent is not here: [`Self::send`] tells its caller, who knows whose it was.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = vec![
            ("in_truncated", self.truncated.load(Ordering::Relaxed)),
            (
                "in_socket_overflow",
                sys::overflows(self.as_fd()).map_or(0, u64::from),
            ),
        ];
        let errors = Failure::ALL.iter().zip(&self.errors);
        counters
            .extend(errors.map(|(kind, count)| (kind.in_name(), count.load(Ordering::Relaxed))));
        counters.retain(|&(_, count)| count != 0);
        counters
    }

    pub(crate) fn count(&self, error: Failure) {
        self.errors[error as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
