//! Waiting for descriptors: a thin layer over epoll, an eventfd to wake a thread, and a timer that
//! counts suspend.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use warren_wireguard::time::Instant;

/// Descriptors of which one thread waits for input. Each has a token below 64.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

/// The tokens that are ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready(u64);

impl Ready {
    pub(crate) const fn has(self, token: u32) -> bool {
        self.0 & (1 << token) != 0
    }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(8),
        })
    }

    /// Waits for input on `fd` as well, until it is closed.
    pub(crate) fn add(&self, fd: impl AsFd, token: u32) -> io::Result<()> {
        let data = EventData::new_u64(u64::from(token));
        Ok(epoll::add(&self.epoll, fd, data, EventFlags::IN)?)
    }

    /// Stops waiting for `fd`.
    pub(crate) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until at least one descriptor has input or an error.
    pub(crate) fn wait(&mut self) -> io::Result<Ready> {
        self.ready(None)
    }

    /// Looks which descriptors have input or an error now.
    pub(crate) fn look(&mut self) -> io::Result<Ready> {
        self.ready(Some(&Timespec::default()))
    }

    fn ready(&mut self, patience: Option<&Timespec>) -> io::Result<Ready> {
        loop {
            self.events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut self.events), patience) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ready = self
            .events
            .iter()
            .fold(0, |ready, event| ready | 1 << event.data.u64());
        Ok(Ready(ready))
    }
}

/// Wakes one thread out of its [`Poller`], from any other.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    pub(crate) fn wake(&self) {
        // The only failure is a counter that is full, and then the thread is about to wake anyway.
        let _full = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Forgets the wake-ups so far.
    pub(crate) fn drain(&self) {
        let _empty = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A timer on the clock that goes on while the machine is suspended.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
    deadline: Option<Instant>,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            fd: timerfd_create(TimerfdClockId::Boottime, flags)?,
            deadline: None,
        })
    }

    /// Expires at `deadline` instead of when it would have.
    pub(crate) fn arm(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        if self.deadline == deadline {
            return Ok(());
        }
        self.deadline = deadline;
        // Zero disarms, which no instant is; a deadline in the past expires at once.
        let nanos = deadline.map_or(0, Instant::as_nanos);
        let value = Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (nanos % 1_000_000_000) as _,
        };
        let interval = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spec = Itimerspec {
            it_interval: interval,
            it_value: value,
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &spec)?;
        Ok(())
    }

    /// Forgets that it expired.
    pub(crate) fn drain(&mut self) {
        if rustix::io::read(&self.fd, &mut [0; 8]).is_ok() {
            self.deadline = None;
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
