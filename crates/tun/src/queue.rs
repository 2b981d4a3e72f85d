//! One queue of the interface: packets in batches, each call on one thread.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read, retry_on_intr, write, writev};
use warren_packet::coalesce::MAX_JOINED;
use warren_packet::{ReadBatch, vnet};

/// One queue of a TUN interface. Never blocks.
///
/// The errors of [`Self::read`] and [`Self::write`], by their [`io::ErrorKind`]:
///
/// - [`io::ErrorKind::BrokenPipe`]: the interface was deleted, or this queue detached from it.
///   This is final; see [`is_deleted`]. A poll of the descriptor then reports an error, always.
/// - [`io::ErrorKind::NetworkDown`], of a write only: the interface is down. The packet is lost,
///   later ones are not once it is up again. Reads of an interface that is down yield nothing.
/// - [`io::ErrorKind::InvalidInput`], of a write only: the kernel refuses this very packet, which
///   is not IP or does not fit its header.
/// - Anything else, such as a want of memory, is passing, too, and comes as the kernel says it.
#[derive(Debug)]
pub struct Queue {
    tun: OwnedFd,
    header: bool,
}

/// Whether an error of a queue says that there is no interface any more.
pub fn is_deleted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

impl Queue {
    pub(crate) fn new(tun: OwnedFd, header: bool) -> Self {
        Self { tun, header }
    }

    /// Read until there is nothing left or the batch is full; returns how many packets were added.
    ///
    /// Fewer than fit means that there are no more for now. An error after some packets were read
    /// is kept for the next call, which meets it again.
    pub fn read(&self, batch: &mut ReadBatch) -> io::Result<usize> {
        let mut count = 0;
        while let Some(spare) = batch.spare() {
            // Without a header from the kernel, that of the batch stays as it was lent: empty.
            let skipped = if self.header { 0 } else { vnet::LEN };
            match retry_on_intr(|| read(&self.tun, &mut spare[skipped..])) {
                Ok(len) if len + skipped > vnet::LEN => {
                    batch.commit(len + skipped - vnet::LEN);
                    count += 1;
                }
                // The kernel has no empty packets to give.
                Ok(_) | Err(Errno::AGAIN) => break,
                Err(_) if count > 0 => break,
                Err(error) => return Err(named(error)),
            }
        }
        Ok(count)
    }

    /// Write one packet, gathered from `pieces` of `arena`.
    ///
    /// `header` is [`vnet::Header::NONE`] where [`crate::Features::vnet_header`] is absent.
    pub fn write(
        &self,
        header: &vnet::Header,
        arena: &[u8],
        pieces: &[Range<usize>],
    ) -> io::Result<()> {
        let result = if !self.header {
            if *header != vnet::Header::NONE {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            match pieces {
                [piece] => retry_on_intr(|| write(&self.tun, &arena[piece.clone()])),
                _ => self.gather::<MAX_JOINED>(None, arena, pieces),
            }
        } else {
            let header = header.encode();
            // Most writes are of one packet; they should not pay for what many pieces need.
            match pieces {
                [_] => self.gather::<2>(Some(&header), arena, pieces),
                _ => self.gather::<{ MAX_JOINED + 1 }>(Some(&header), arena, pieces),
            }
        };
        match result {
            // A TUN takes a packet whole or not at all.
            Ok(_) => Ok(()),
            Err(error) => Err(named(error)),
        }
    }

    fn gather<const N: usize>(
        &self,
        header: Option<&[u8; vnet::LEN]>,
        arena: &[u8],
        pieces: &[Range<usize>],
    ) -> rustix::io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); N];
        let header = header.map(|header| &header[..]);
        let parts = header
            .into_iter()
            .chain(pieces.iter().map(|piece| &arena[piece.clone()]));
        let count = usize::from(header.is_some()) + pieces.len();
        if count > N {
            return Err(Errno::INVAL);
        }
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        retry_on_intr(|| writev(&self.tun, &slices[..count]))
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

/// The descriptor, to hand it to another process.
impl From<Queue> for OwnedFd {
    fn from(queue: Queue) -> Self {
        queue.tun
    }
}

fn named(error: Errno) -> io::Error {
    match error {
        Errno::BADFD => io::ErrorKind::BrokenPipe.into(),
        Errno::IO => io::ErrorKind::NetworkDown.into(),
        other => other.into(),
    }
}
