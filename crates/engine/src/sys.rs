//! What rustix does not have: how the kernel schedules a thread.
#![allow(unsafe_code)]

use std::io;

/// From now on the calling thread, when it wakes, waits until whoever runs pauses or has used up
/// its slice (`SCHED_BATCH`, sched(7)). Its share of the processor and its niceness stay as they are.
pub(crate) fn schedule_as_batch() -> io::Result<()> {
    // SAFETY: `sched_param` is plain data, for which zeros are valid.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the call reads one `sched_param`, which `parameters` is; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
