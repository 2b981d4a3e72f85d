//! What rustix does not have: how the kernel schedules a thread.
#![allow(unsafe_code)]

use std::io;

/// `struct sched_param` (`linux/sched/types.h`).
#[repr(C)]
struct Parameters {
    priority: libc::c_int,
}

/// From now on the calling thread, when it wakes, waits until whoever runs pauses or has used up
/// its slice (`SCHED_BATCH`, sched(7)). Its share of the processor and its niceness stay as they are.
pub(crate) fn schedule_as_batch() -> io::Result<()> {
    let parameters = Parameters { priority: 0 };
    // SAFETY: the kernel reads one `sched_param`, which `parameters` is for the whole call; 0 is the
    // calling thread. By its number, since musl's own function answers that there is none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_BATCH,
            &raw const parameters,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::schedule_as_batch;

    #[test]
    fn the_kernel_takes_a_thread_for_a_batch() {
        std::thread::spawn(|| {
            schedule_as_batch().expect("it needs no right");
            let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("there is a /proc");
            let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
            // The 41st field, counted from the one behind the name, which is the third (proc(5)).
            assert_eq!(fields.split_whitespace().nth(38), Some("3"));
        })
        .join()
        .expect("the thread ends well");
    }
}
