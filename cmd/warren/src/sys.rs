//! What no library has in a safe form: leaving namespaces, a child that begins in others, packet
//! sockets with the offload header, and what came back about a datagram.
#![allow(unsafe_code)] // unshare(2), code between fork and exec, and structures of the kernel's.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

use rustix::mount::mount_bind;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Leaves namespaces for new ones: of the calling thread, and with `NEWUSER` of the process, which
/// must have one thread then.
pub(crate) fn leave(namespaces: UnshareFlags) -> io::Result<()> {
    assert!(!namespaces.contains(UnshareFlags::FILES));
    // SAFETY: the table of descriptors stays shared, as asserted; nothing else about unsharing can
    // break a promise of Rust's.
    unsafe { unshare_unsafe(namespaces) }?;
    Ok(())
}

/// Lets a child begin in the network namespace `network`, with the directory `from` mounted over
/// `over` for it alone, and die with the thread that starts it.
pub(crate) fn confine(command: &mut Command, network: OwnedFd, from: CString, over: CString) {
    let parent = rustix::process::getpid();
    let prepare = move || -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died before it could be said what to do then.
        if getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let network = network.as_fd();
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        // SAFETY: as in `leave`; the child has one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_bind(from.as_c_str(), over.as_c_str())?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, with arguments that were made
    // before; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}

/// A packet socket that hears every frame of every interface of its network namespace.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    socket: OwnedFd,
    offload_header: bool,
}

/// What is known of a frame beside its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Where it was heard.
    pub(crate) interface: u32,
    /// Whether it was on its way out.
    pub(crate) outgoing: bool,
    /// The kind of link (`ARPHRD_`).
    pub(crate) link: u16,
    /// Payload of each of the datagrams that it will be cut into, if it will.
    pub(crate) segment: Option<usize>,
}

/// `struct virtio_net_hdr`.
const OFFLOAD_HEADER: usize = 10;
/// `VIRTIO_NET_HDR_GSO_NONE`.
const GSO_NONE: u8 = 0;

impl PacketSocket {
    /// Begins to hear. `buffer_bytes` may wait to be read, as far as the kernel grants it.
    pub(crate) fn open(buffer_bytes: usize) -> io::Result<Self> {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket(2) takes numbers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just opened and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let bytes = i32::try_from(buffer_bytes).unwrap_or(i32::MAX);
        // The second is for those who may; the first is bounded by a sysctl.
        let _bounded = set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
        let _refused = set(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            bytes,
        );
        let offload_header =
            set(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1).is_ok();
        Ok(Self {
            socket,
            offload_header,
        })
    }

    /// The next frame, at the start of what is returned of `buffer`; `None` if there is none now.
    pub(crate) fn next<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<(Frame, &'a [u8])>> {
        let mut from = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointers and lengths are those of `buffer` and `from`, which outlive the call.
        let len = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                from.as_mut_ptr().cast(),
                &raw mut from_len,
            )
        };
        let Ok(len) = usize::try_from(len) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // An interface that went down tells its sockets; others go on.
                Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(None),
                _ => Err(error),
            };
        };
        // SAFETY: all of it was zeroed before the kernel wrote any of it, and it is plain numbers.
        let from = unsafe { from.assume_init() };
        let header = if self.offload_header {
            OFFLOAD_HEADER
        } else {
            0
        };
        let (header, bytes) = buffer[..len].split_at(header.min(len));
        let is_cut = header.get(1).is_some_and(|kind| *kind != GSO_NONE);
        let segment = match header.get(4..6) {
            Some(&[low, high]) if is_cut => Some(u16::from_ne_bytes([low, high]).into()),
            _ => None,
        };
        let frame = Frame {
            interface: from.sll_ifindex.cast_unsigned(),
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            link: from.sll_hatype,
            segment: segment.filter(|segment| *segment > 0),
        };
        Ok(Some((frame, bytes)))
    }

    /// How many frames were lost since the last question, for want of room to wait in.
    pub(crate) fn lost(&self) -> io::Result<u32> {
        // `struct tpacket_stats`: heard, lost.
        let mut stats = [0u32; 2];
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: `stats` has the size that is said, and outlives the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                stats.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        match result {
            0 => Ok(stats[1]),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl std::os::fd::AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has the kernel keep what comes back about datagrams of an UDP socket of this family, for [`refusal`].
pub(crate) fn keep_refusals(socket: BorrowedFd<'_>, is_v4: bool) -> io::Result<()> {
    match is_v4 {
        true => set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        false => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// The next ICMP error about a datagram of a socket: its control messages, as bytes. `None` if there is none now.
pub(crate) fn refusal(socket: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let mut control = vec![0u8; 512];
    let mut payload = [0u8; 64];
    let mut vector = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: the structure is plain numbers and pointers, of which zero is one of each.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len() as _;
    // SAFETY: the pointers and lengths in `message` are those of `vector` and `control`, and that in `vector` is
    // that of `payload`; all outlive the call.
    let length = unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut message,
            libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
        )
    };
    if length < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(None),
            _ => Err(error),
        };
    }
    control.truncate(message.msg_controllen as usize);
    Ok(Some(control))
}

fn set(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
