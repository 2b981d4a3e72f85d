//! Ctrl-C: the demo hears of it between two things it does, and cleans up as at its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::clock;

/// Whether somebody wants the demo to end. Nothing that it waits for is waited for without asking
/// this, so it ends soon; SIGQUIT ends it at once, and the kernel cleans up as well.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(Arc<AtomicBool>);

/// The demo was told to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

impl Interrupt {
    pub(super) fn new() -> io::Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&told))?;
        }
        Ok(Self(told))
    }

    /// An error if somebody said to end.
    pub(super) fn check(&self) -> Result<(), Interrupted> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Interrupted),
            false => Ok(()),
        }
    }

    /// Lets time go by, unless somebody says to end.
    pub(super) fn pause(&self, duration: Duration) -> Result<(), Interrupted> {
        const SLICE: Duration = Duration::from_millis(20);
        let end = clock::now() + duration;
        loop {
            self.check()?;
            let now = clock::now();
            if now >= end {
                return Ok(());
            }
            clock::pause(SLICE.min(end.duration_since(now)));
        }
    }

    /// For whoever works on a thread of their own.
    pub(super) fn flag(&self) -> &Arc<AtomicBool> {
        &self.0
    }
}
