//! What neither socket2 nor rustix offers: many messages in one call, with their control messages,
//! and the socket options that belong to these.
//!
//! The arrays that the kernel reads and fills live on the stack of one call and are initialised
//! only as far as they are used, so nothing is allocated and nothing outlives a call.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libc::{c_int, c_void};
use warren_packet::Source;

/// Messages in one call, at most.
pub(crate) const BATCH: usize = 64;

/// Bytes of control messages of one message, at most: an address, a TOS byte and a segment size
/// take 88 with 64-bit alignment.
const CONTROL: usize = 96;

/// `SO_MEMINFO` (`linux/sock_diag.h`): how many numbers it knows, and which of them are drops.
const MEMINFO_VARS: usize = 9;
const MEMINFO_DROPS: usize = 8;
const SO_MEMINFO: c_int = 55;
const SO_BINDTOIFINDEX: c_int = 62;

/// A message to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outgoing<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) remote: SocketAddr,
    pub(crate) source: Option<Source>,
    pub(crate) tos: u8,
    /// Cut the payload into datagrams of this size.
    pub(crate) segment: Option<u16>,
}

/// A message that was received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming {
    /// The slot that it is in, and how many bytes of it.
    pub(crate) slot: usize,
    pub(crate) len: usize,
    pub(crate) remote: SocketAddr,
    pub(crate) source: Option<Source>,
    pub(crate) tos: u8,
    /// The size of the datagrams of which it is made up, if the kernel joined several.
    pub(crate) segment: Option<usize>,
    /// The slot, or the room for control messages, was too small.
    pub(crate) truncated: bool,
}

/// Room for control messages, aligned as `cmsghdr` asks.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([MaybeUninit<u8>; CONTROL]);

/// Sends messages, [`BATCH`] at most, and answers how many the kernel took (`sendmmsg`).
///
/// An error is always about the first message: what stopped a later one is answered when that is
/// the first of another call.
pub(crate) fn send<'a>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = Outgoing<'a>>,
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
    let mut names = [const { MaybeUninit::<libc::sockaddr_storage>::uninit() }; BATCH];
    let mut controls = [Control([MaybeUninit::uninit(); CONTROL]); BATCH];
    let mut count = 0;
    let slots = headers.iter_mut().zip(&mut vectors).zip(&mut names);
    for (((header, vector), name), (control, message)) in
        slots.zip(controls.iter_mut().zip(messages))
    {
        let vector = vector.write(libc::iovec {
            iov_base: message.payload.as_ptr().cast_mut().cast(),
            iov_len: message.payload.len(),
        });
        let name_len = write_name(name, message.remote);
        // SAFETY: `mmsghdr` is plain data, for which zeros are valid.
        let mut new: libc::mmsghdr = unsafe { mem::zeroed() };
        new.msg_hdr.msg_name = name.as_mut_ptr().cast();
        new.msg_hdr.msg_namelen = name_len;
        new.msg_hdr.msg_iov = vector;
        new.msg_hdr.msg_iovlen = 1;
        let mut writer = ControlWriter { control, len: 0 };
        writer.write_all(&message);
        let len = writer.len;
        if len != 0 {
            new.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            new.msg_hdr.msg_controllen = len as _;
        }
        header.write(new);
        count += 1;
    }
    // SAFETY: the first `count` headers are initialised, and what they point to (payloads, names,
    // vectors, control messages) outlives the call. The kernel writes only to the headers' lengths.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count,
            libc::MSG_DONTWAIT as _,
        )
    };
    check(sent)
}

/// Receives messages into consecutive slots of `slot` bytes of `arena`, at most [`BATCH`], and
/// tells of each. Answers how many there were (`recvmmsg`).
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    arena: &mut [u8],
    slot: usize,
    mut each: impl FnMut(Incoming),
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
    let mut names = [const { MaybeUninit::<libc::sockaddr_storage>::uninit() }; BATCH];
    let mut controls = [Control([MaybeUninit::uninit(); CONTROL]); BATCH];
    let mut count = 0;
    let places = headers.iter_mut().zip(&mut vectors).zip(&mut names);
    for (((header, vector), name), (control, slot)) in
        places.zip(controls.iter_mut().zip(arena.chunks_exact_mut(slot)))
    {
        let vector = vector.write(libc::iovec {
            iov_base: slot.as_mut_ptr().cast(),
            iov_len: slot.len(),
        });
        // SAFETY: `mmsghdr` is plain data, for which zeros are valid.
        let mut new: libc::mmsghdr = unsafe { mem::zeroed() };
        new.msg_hdr.msg_name = name.as_mut_ptr().cast();
        new.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
        new.msg_hdr.msg_iov = vector;
        new.msg_hdr.msg_iovlen = 1;
        new.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        new.msg_hdr.msg_controllen = CONTROL as _;
        header.write(new);
        count += 1;
    }
    // SAFETY: the first `count` headers are initialised; the names, vectors and control buffers
    // that they point to are as long as they say and outlive the call, and each slot of the arena
    // is exclusively ours. No timeout is given.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let received = check(received)?;
    for (index, header) in headers[..received].iter().enumerate() {
        // SAFETY: `received` is at most `count`, and so many headers were initialised above.
        let header = unsafe { header.assume_init_ref() };
        // SAFETY: the kernel filled the name and the control messages that this header points to.
        if let Some(incoming) = unsafe { incoming(index, header) } {
            each(incoming);
        }
    }
    Ok(received)
}

/// What the kernel wrote about the message in slot `index`. `None` if it came from no IP address.
///
/// # Safety
///
/// `header` was filled by `recvmmsg`, and what it points to is still there.
unsafe fn incoming(index: usize, header: &libc::mmsghdr) -> Option<Incoming> {
    let hdr = &header.msg_hdr;
    let cut = libc::MSG_TRUNC | libc::MSG_CTRUNC;
    // SAFETY: the name is what the kernel wrote, of the length that it says.
    let remote = unsafe { read_name(hdr.msg_name.cast(), hdr.msg_namelen as usize) }?;
    let mut incoming = Incoming {
        slot: index,
        len: header.msg_len as usize,
        remote,
        source: None,
        tos: 0,
        segment: None,
        truncated: hdr.msg_flags & cut != 0,
    };
    // SAFETY: the control buffer holds what the kernel wrote, `msg_controllen` bytes of it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(hdr) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR answer null or a whole header within the buffer.
    while let Some(cmsg) = unsafe { next.as_ref() } {
        // SAFETY: the header is within the buffer, so its data begins within or at its end.
        let data = unsafe { libc::CMSG_DATA(cmsg) };
        #[allow(clippy::unnecessary_cast, reason = "with musl the type is another")]
        let len = (cmsg.cmsg_len as usize).saturating_sub(data.addr() - next.addr());
        match (cmsg.cmsg_level, cmsg.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_TOS) if len >= 1 => {
                // SAFETY: there is a byte of data.
                incoming.tos = unsafe { data.read() };
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if len >= size_of::<c_int>() => {
                // SAFETY: there are as many bytes of data as an int has.
                incoming.tos = unsafe { data.cast::<c_int>().read_unaligned() } as u8;
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if len >= size_of::<libc::in_pktinfo>() => {
                // SAFETY: there are as many bytes of data as this plain struct has.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                incoming.source = Some(Source {
                    ip: IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr))),
                    interface: info.ipi_ifindex as u32,
                });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if len >= size_of::<libc::in6_pktinfo>() => {
                // SAFETY: there are as many bytes of data as this plain struct has.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                incoming.source = Some(Source {
                    ip: IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
                    interface: info.ipi6_ifindex as u32,
                });
            }
            (libc::SOL_UDP, libc::UDP_GRO) if len >= size_of::<c_int>() => {
                // SAFETY: there are as many bytes of data as an int has.
                let size = unsafe { data.cast::<c_int>().read_unaligned() };
                incoming.segment = usize::try_from(size).ok();
            }
            _ => {}
        }
        // SAFETY: `cmsg` is a header within the buffer that `hdr` describes.
        next = unsafe { libc::CMSG_NXTHDR(hdr, cmsg) };
    }
    Some(incoming)
}

/// Appends control messages to a buffer.
struct ControlWriter<'a> {
    control: &'a mut Control,
    len: usize,
}

impl ControlWriter<'_> {
    fn write_all(&mut self, message: &Outgoing<'_>) {
        let v4 = message.remote.is_ipv4();
        match message.source.map(|source| (source.ip, source.interface)) {
            // The interface is left to the routing table, as the kernel's driver leaves it: the
            // address stays while a route may move.
            Some((IpAddr::V4(ip), _)) if v4 => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: ip.to_bits().to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.write(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some((IpAddr::V6(ip), interface)) if !v4 => {
                let scoped = ip.is_unicast_link_local();
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ipi6_ifindex: if scoped { interface as _ } else { 0 },
                };
                self.write(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            _ => {}
        }
        if message.tos != 0 {
            let (level, kind) = if v4 {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            self.write(level, kind, c_int::from(message.tos));
        }
        if let Some(size) = message.segment {
            self.write(libc::SOL_UDP, libc::UDP_SEGMENT, size);
        }
    }

    fn write<T: Copy>(&mut self, level: c_int, kind: c_int, value: T) {
        let size = size_of::<T>() as u32;
        // SAFETY: CMSG_SPACE only computes.
        let space = unsafe { libc::CMSG_SPACE(size) } as usize;
        // SAFETY: CMSG_LEN only computes.
        let len = unsafe { libc::CMSG_LEN(size) };
        assert!(
            self.len + space <= CONTROL,
            "no more than the three that fit"
        );
        let at = self.control.0[self.len..].as_mut_ptr();
        let header = at.cast::<libc::cmsghdr>();
        // SAFETY: `space` bytes from `at` are ours, checked above, and aligned for a header because
        // the buffer is and every CMSG_SPACE is a multiple of that alignment. A zeroed header is
        // valid; its padding bytes are initialised with it.
        unsafe { ptr::write_bytes(at, 0, space) };
        // SAFETY: as above, and all bytes of the header are initialised.
        let header = unsafe { &mut *header };
        header.cmsg_level = level;
        header.cmsg_type = kind;
        header.cmsg_len = len as _;
        // SAFETY: the data follows the header within the `space` bytes.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: `space` holds header and data, of which `T` is the latter.
        unsafe { data.cast::<T>().write_unaligned(value) };
        self.len += space;
    }
}

/// Writes an address as the kernel reads it, and answers its length.
fn write_name(
    name: &mut MaybeUninit<libc::sockaddr_storage>,
    address: SocketAddr,
) -> libc::socklen_t {
    match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: address.ip().to_bits().to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` has room for, and the alignment of, any address.
            unsafe { name.as_mut_ptr().cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>() as _
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: a `sockaddr_storage` has room for, and the alignment of, any address.
            unsafe { name.as_mut_ptr().cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>() as _
        }
    }
}

/// Reads an address that the kernel wrote.
///
/// # Safety
///
/// `name` is aligned as a `sockaddr_storage`, and `len` bytes of it are initialised.
unsafe fn read_name(name: *const libc::sockaddr_storage, len: usize) -> Option<SocketAddr> {
    if len < size_of::<libc::sockaddr_in>() {
        return None;
    }
    // SAFETY: every address begins with its family, and there are enough bytes for that.
    let family = unsafe { name.cast::<libc::sa_family_t>().read() };
    match c_int::from(family) {
        libc::AF_INET => {
            // SAFETY: the length was checked, and the family says that it is this struct.
            let raw = unsafe { name.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: the length was checked, and the family says that it is this struct.
            let raw = unsafe { name.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            // A flow label is the sender's, and would be a mark on what we send back.
            Some(SocketAddrV6::new(ip, port, 0, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Has the kernel tell to which local address each datagram came.
pub(crate) fn set_packet_info(socket: BorrowedFd<'_>, v4: bool) -> io::Result<()> {
    if v4 {
        set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    } else {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    }
}

/// Has the kernel join datagrams of one flow and size (Linux 5.0).
pub(crate) fn set_receive_offload(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel knows segmented sends (Linux 4.18). Changes nothing.
pub(crate) fn knows_segmentation(socket: BorrowedFd<'_>) -> bool {
    let mut size: c_int = 0;
    get_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, &mut size).is_ok()
}

/// Has the socket receive only from the interface with this index, which need not exist
/// (Linux 5.0).
pub(crate) fn bind_to_interface(socket: BorrowedFd<'_>, index: c_int) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, index)
}

/// How many datagrams found the receive buffer full (Linux 4.12).
pub(crate) fn overflows(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut numbers = [0_u32; MEMINFO_VARS];
    get_option(socket, libc::SOL_SOCKET, SO_MEMINFO, &mut numbers)?;
    Ok(numbers[MEMINFO_DROPS])
}

fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let len = size_of::<c_int>() as _;
    let value: *const c_void = (&raw const value).cast();
    // SAFETY: the value is an int, which the call reads.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) }).map(drop)
}

/// Reads an option. What the kernel does not write stays as it was.
fn get_option<T: PlainNumbers>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let value: *mut c_void = (&raw mut *value).cast();
    // SAFETY: the value has `len` bytes, and any bytes that the call writes are valid numbers.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value, &raw mut len) })
        .map(drop)
}

/// Types for which any bytes are a value.
trait PlainNumbers {}
impl PlainNumbers for c_int {}
impl PlainNumbers for [u32; MEMINFO_VARS] {}

fn check(result: c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_were_written() {
        for address in ["192.0.2.1:51820", "[2001:db8::1]:1", "[fe80::1%7]:65535"] {
            let address: SocketAddr = address.parse().expect("an address");
            let mut name = MaybeUninit::uninit();
            let len = write_name(&mut name, address) as usize;
            // SAFETY: `write_name` initialised `len` bytes.
            assert_eq!(unsafe { read_name(name.as_ptr(), len) }, Some(address));
            // SAFETY: as above, with fewer bytes.
            assert_eq!(unsafe { read_name(name.as_ptr(), len - 1) }, None);
        }
    }

    #[test]
    fn the_largest_set_of_control_messages_fits() {
        let mut control = Control([MaybeUninit::uninit(); CONTROL]);
        let mut writer = ControlWriter {
            control: &mut control,
            len: 0,
        };
        let source = Source {
            ip: Ipv6Addr::LOCALHOST.into(),
            interface: 1,
        };
        writer.write_all(&Outgoing {
            payload: &[],
            remote: (Ipv6Addr::LOCALHOST, 1).into(),
            source: Some(source),
            tos: 0x88,
            segment: Some(1452),
        });
        assert!(writer.len > 0 && writer.len <= CONTROL);
    }
}
