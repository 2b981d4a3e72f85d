//! Time: this program is an outermost loop, so it asks the system, but only here.

use std::fs;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

/// Time since it was started.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(
        clippy::disallowed_methods,
        reason = "a measurement is an outermost loop"
    )]
    pub(crate) fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Time since the Unix epoch, by the clock that the kernel stamps what arrives with.
pub(crate) fn since_epoch() -> Duration {
    let now = clock_gettime(ClockId::Realtime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Lets time pass, and ends the whole run when somebody interrupts it.
pub(crate) struct Pace {
    interrupts: OwnedFd,
}

impl Pace {
    pub(crate) fn new() -> Result<Pace> {
        Ok(Pace {
            interrupts: crate::sys::interrupts()?,
        })
    }

    pub(crate) fn rest(&self, time: Duration) -> Result<()> {
        let timeout = timespec(time);
        if poll(
            &mut [PollFd::new(&self.interrupts, PollFlags::IN)],
            Some(&timeout),
        )? > 0
        {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Lets time pass on a thread that a generator has for itself.
pub(crate) fn pause(time: Duration) -> Result<()> {
    poll(&mut [], Some(&timespec(time)))?;
    Ok(())
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// What the processors of this machine did since it started, in hundredths of a second of one.
#[derive(Clone, Copy)]
pub(crate) struct Ticks {
    busy: u64,
    /// When one was wanted and the host of this virtual machine had given it to another.
    stolen: u64,
    all: u64,
}

impl Ticks {
    pub(crate) fn now() -> Result<Ticks> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<u64> = (line.split_whitespace().skip(1))
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let [user, nice, system, idle, wait, irq, softirq, stolen, ..] = ticks[..] else {
            bail!("/proc/stat has too few fields");
        };
        let busy = user + nice + system + irq + softirq;
        Ok(Ticks {
            busy,
            stolen,
            all: busy + stolen + idle + wait,
        })
    }

    pub(crate) fn busy_seconds(self) -> f64 {
        self.busy as f64 / 100.0
    }

    /// The share of all time since `earlier`, 0 to 1, that was stolen.
    pub(crate) fn stolen_since(self, earlier: Ticks) -> f64 {
        let all = (self.all - earlier.all).max(1);
        self.stolen.saturating_sub(earlier.stolen) as f64 / all as f64
    }
}

/// The speed of this core just now: nanoseconds for one step of a counted loop of dependent
/// multiplications, the best of some short runs, so that only the clock of the core and what the
/// host takes away show.
pub(crate) fn loop_step_ns() -> f64 {
    const STEPS: u32 = 2_000_000;
    (0..3)
        .map(|_| {
            let watch = Stopwatch::start();
            let mut value = 1_u64;
            for _ in 0..STEPS {
                value = black_box(
                    value
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1),
                );
            }
            watch.elapsed().as_nanos() as f64 / f64::from(STEPS)
        })
        .fold(f64::INFINITY, f64::min)
}
