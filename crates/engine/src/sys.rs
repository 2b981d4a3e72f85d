//! What rustix does not have: how the kernel schedules a thread.
#![allow(unsafe_code)]

use std::io;

/// `struct sched_param` (`linux/sched/types.h`).
#[repr(C)]
struct Parameters {
    priority: libc::c_int,
}

/// When a thread that wakes runs (sched(7)). Its share of the processor is its niceness's in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// At once, if it has had less than its share (`SCHED_OTHER`).
    Normal,
    /// When whoever runs pauses or has used up its slice (`SCHED_BATCH`).
    Batch,
}

/// Schedules the calling thread so from now on.
pub(crate) fn schedule(policy: Policy) -> io::Result<()> {
    let parameters = Parameters { priority: 0 };
    let policy = match policy {
        Policy::Normal => libc::SCHED_OTHER,
        Policy::Batch => libc::SCHED_BATCH,
    };
    // SAFETY: the kernel reads one `sched_param`, which `parameters` is for the whole call; 0 is the
    // calling thread. By its number, since musl's own function answers that there is none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy,
            &raw const parameters,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How the calling thread is scheduled; `None` is in another way.
pub(crate) fn policy() -> Option<Policy> {
    // SAFETY: the kernel takes a number, of which 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) } {
        policy if policy == libc::c_long::from(libc::SCHED_OTHER) => Some(Policy::Normal),
        policy if policy == libc::c_long::from(libc::SCHED_BATCH) => Some(Policy::Batch),
        _ => None,
    }
}
