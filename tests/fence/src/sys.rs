//! Opening a TUN: the one system call of these tests that has no safe form in a library.
#![allow(unsafe_code)] // An ioctl with a structure of the kernel's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// Attaches to the persistent TUN of this name, making it when it is not there.
pub fn open_tun(name: &str) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // `struct ifreq`: the name, then the flags.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: `request` is as large as `struct ifreq` and outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNSETPERSIST takes a number.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}
