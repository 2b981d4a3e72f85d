//! The one promise to the runtime that the compiler cannot check.
#![allow(unsafe_code)] // Registering a descriptor: tokio takes its validity on trust.

use std::io;

use netlink_sys::Socket;
use tokio::io::unix::AsyncFd;

/// Lets the runtime wait for a socket.
pub(crate) fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: `Socket` names one descriptor, which it opened, for its whole life and closes only
    // when it is dropped; the `AsyncFd` owns it, and nobody takes it out.
    let registered = unsafe { AsyncFd::register(socket) };
    registered.map_err(Into::into)
}
