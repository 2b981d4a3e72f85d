//! The system calls that have no safe form in the libraries that are used here anyway: many
//! datagrams a call, options of UDP, signals as a descriptor.
#![allow(unsafe_code)] // System calls.

use std::io;
use std::mem::{MaybeUninit, size_of, size_of_val, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::time::Duration;

/// The most datagrams that one call moves.
pub(crate) const BATCH: usize = 64;

/// Sends each of `datagrams` on a connected socket; says how many the kernel took.
pub(crate) fn send_many(socket: impl AsFd, datagrams: &[&[u8]]) -> io::Result<usize> {
    let mut vectors: [libc::iovec; BATCH] = [libc::iovec {
        iov_base: null_mut(),
        iov_len: 0,
    }; BATCH];
    // SAFETY: all-zero bytes are a valid `mmsghdr`: null pointers and zero lengths.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    let count = datagrams.len().min(BATCH);
    for ((vector, header), datagram) in vectors.iter_mut().zip(&mut headers).zip(datagrams) {
        vector.iov_base = datagram.as_ptr().cast_mut().cast();
        vector.iov_len = datagram.len();
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` headers point to vectors that point to the datagrams; all outlive
    // the call, which only reads what they point to.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count as u32,
            0,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives up to [`BATCH`] datagrams, each into `room` bytes of `buffer`, waiting for the first only; their
/// lengths go into `lengths`.
/// The socket's receive timeout ends the wait with `WouldBlock`.
pub(crate) fn receive_many(
    socket: impl AsFd,
    buffer: &mut [u8],
    room: usize,
    lengths: &mut Vec<usize>,
) -> io::Result<()> {
    let mut vectors: [libc::iovec; BATCH] = [libc::iovec {
        iov_base: null_mut(),
        iov_len: 0,
    }; BATCH];
    // SAFETY: all-zero bytes are a valid `mmsghdr`: null pointers and zero lengths.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    let rooms = buffer.chunks_exact_mut(room).take(BATCH);
    let count = rooms.len();
    for ((vector, header), slot) in vectors.iter_mut().zip(&mut headers).zip(rooms) {
        vector.iov_base = slot.as_mut_ptr().cast();
        vector.iov_len = slot.len();
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
    }
    lengths.clear();
    // SAFETY: the first `count` headers point to vectors that point to initialised, exclusively
    // borrowed buffers of the stated lengths; all outlive the call.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count as u32,
            libc::MSG_WAITFORONE,
            null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    lengths.extend(
        headers[..received]
            .iter()
            .map(|header| header.msg_len as usize),
    );
    Ok(())
}

/// Has the kernel note when each datagram arrived, for [`receive_stamped`].
pub(crate) fn stamp_arrivals(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

/// Receives one datagram into `buffer`; its length, and when the kernel got it since the Unix epoch, by
/// the clock that [`stamp_arrivals`] starts.
/// The socket's receive timeout ends the wait with `WouldBlock`.
pub(crate) fn receive_stamped(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Duration)> {
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // Words, for the alignment of a `cmsghdr`.
    let mut control = [0_u64; 16];
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and zero lengths.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: the header points to one vector, which points to an exclusively borrowed buffer, and to
    // room for control messages, with their lengths; all outlive the call.
    let received = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the header and the room that it points to.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: null, or a control message within that room.
    while let Some(control) = unsafe { message.as_ref() } {
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
            // SAFETY: `message` is a control message with its data behind it.
            let data = unsafe { libc::CMSG_DATA(message) };
            // SAFETY: those of this type are a `timespec`, not always aligned as one.
            let time = unsafe { data.cast::<libc::timespec>().read_unaligned() };
            return Ok((
                received,
                Duration::new(time.tv_sec as u64, time.tv_nsec as u32),
            ));
        }
        // SAFETY: `message` is one of the header's.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Err(io::Error::other(
        "the kernel did not say when a datagram arrived",
    ))
}

/// Has the kernel cut what is sent into datagrams of `bytes`.
pub(crate) fn set_segment_size(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    set_option(
        socket,
        libc::SOL_UDP,
        libc::UDP_SEGMENT,
        bytes as libc::c_int,
    )
}

/// Takes runs of equal datagrams as one.
pub(crate) fn set_receive_offload(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Blocks SIGINT and SIGTERM in this thread and those it starts, and returns a descriptor that
/// becomes readable when one arrives.
pub(crate) fn interrupts() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the set is initialised and the signal exists.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: the set is initialised; the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: the set is initialised.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
