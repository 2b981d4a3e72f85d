//! What only the kernel's raw interface offers: ioctls of `/dev/net/tun`, and `bpf(2)`.
//!
//! rustix has neither, and what it has (reads, vectored writes, netlink sockets) is used elsewhere
//! in this crate without `unsafe`.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What the kernel says of a queue's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// `IFF_TUN` and its like, as in `linux/if_tun.h`.
    pub(crate) flags: libc::c_int,
}

/// Attach a queue to the interface `name`, which is created if there is none (`TUNSETIFF`).
pub(crate) fn attach(tun: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<Interface> {
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, whatever the name.
    if name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is for the whole call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result)?;
    Ok(interface(&request))
}

/// The interface that a queue belongs to (`TUNGETIFF`). `EBADFD` if it belongs to none.
pub(crate) fn attached(tun: BorrowedFd<'_>) -> io::Result<Interface> {
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is for the whole call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    check(result)?;
    Ok(interface(&request))
}

fn interface(request: &libc::ifreq) -> Interface {
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|byte| *byte as u8)
        .take_while(|byte| *byte != 0)
        .collect();
    // SAFETY: both TUNSETIFF and TUNGETIFF leave the flags in this union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Interface {
        name: String::from_utf8_lossy(&name).into_owned(),
        flags: libc::c_int::from(flags as u16),
    }
}

/// The flags that this kernel's TUN knows (`TUNGETFEATURES`).
pub(crate) fn known_flags(tun: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut flags: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, which `flags` is for the whole call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETFEATURES, &raw mut flags) };
    check(result)?;
    Ok(flags as libc::c_int)
}

/// What the kernel may leave to us (`TUNSETOFFLOAD`); of the interface, not of the queue.
pub(crate) fn set_offload(tun: BorrowedFd<'_>, offload: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument of TUNSETOFFLOAD is the number itself.
    let result = unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offload),
        )
    };
    check(result)
}

/// Bytes of the offload header (`TUNSETVNETHDRSZ`); of the interface, not of the queue.
pub(crate) fn set_header_len(tun: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `len` is for the whole call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    check(result)
}

/// Whether the interface outlives its queues (`TUNSETPERSIST`).
pub(crate) fn set_persist(tun: BorrowedFd<'_>, persist: bool) -> io::Result<()> {
    // SAFETY: the argument of TUNSETPERSIST is the number itself.
    let result = unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETPERSIST,
            libc::c_ulong::from(persist),
        )
    };
    check(result)
}

/// The program that chooses a packet's queue, or none (`TUNSETSTEERINGEBPF`).
pub(crate) fn set_steering(tun: BorrowedFd<'_>, program: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let program: RawFd = program.map_or(-1, |program| program.as_raw_fd());
    // SAFETY: TUNSETSTEERINGEBPF reads one int, which `program` is for the whole call; the kernel
    // takes its own reference to what the descriptor names.
    let result = unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETSTEERINGEBPF,
            &raw const program,
        )
    };
    check(result)
}

/// One instruction of eBPF: `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination in the low half, source in the high one; see [`Self::registers`].
    registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

impl Instruction {
    pub(crate) const fn new(
        code: u8,
        destination: u8,
        source: u8,
        offset: i16,
        immediate: i32,
    ) -> Self {
        let registers = if cfg!(target_endian = "little") {
            source << 4 | destination
        } else {
            destination << 4 | source
        };
        Self {
            code,
            registers,
            offset,
            immediate,
        }
    }
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` that the oldest kernels know.
#[derive(Default)]
#[repr(C)]
struct LoadProgram {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
}

/// Have the kernel check and load a program of type socket filter.
pub(crate) fn load_socket_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    let license = c"Dual MIT/GPL";
    let attributes = LoadProgram {
        program_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadProgram::default()
    };
    // SAFETY: the kernel reads `attributes` and what it points to, `program` and `license`, all
    // of which outlive the call, and no more of them than the lengths say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            (&raw const attributes).cast::<c_void>(),
            size_of::<LoadProgram>(),
        )
    };
    check(result as libc::c_int)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
