//! The calls that have no safe form elsewhere.
#![allow(unsafe_code)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Have one send of a socket be cut by the kernel into datagrams of `size` bytes.
pub fn set_udp_segment(socket: &UdpSocket, size: u16) -> io::Result<()> {
    let size = libc::c_int::from(size);
    // SAFETY: UDP_SEGMENT reads one int, which `size` is for the whole call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
