//! The calls that have no safe form elsewhere.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Put the calling thread, and no other, into a new network namespace.
pub(crate) fn leave_network() -> io::Result<()> {
    // SAFETY: only the network namespace is unshared, neither memory nor descriptors; what the
    // thread has open stays valid.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}
