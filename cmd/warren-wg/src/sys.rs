//! Descriptors that the environment names.
#![allow(unsafe_code)] // A number becomes a descriptor; no library can know that it is one.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// Takes over the descriptor that whoever started this process has left open under this number.
///
/// Each number is to be taken over once, and before this process opens anything of its own.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it is borrowed for one call, which fails with EBADF if there is no such descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: the call above found it open, and the caller says that nobody else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
