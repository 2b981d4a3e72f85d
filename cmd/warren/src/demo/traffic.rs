//! Traffic of the demo: a steady stream of pings, and bulk data by TCP.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::stage::{Namespace, joined};
use crate::clock;
use crate::echo::Echo;

/// Between two pings of a stream.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long a stream waits for the last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How much is read or written by one call.
const CHUNK: usize = 256 << 10;

/// A ping every two milliseconds until it is stopped.
#[derive(Debug)]
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Streamed>>,
}

/// What became of a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Streamed {
    pub(super) sent: u64,
    pub(super) answered: u64,
    /// The longest way of an answer.
    pub(super) slowest: Duration,
}

impl Streamed {
    pub(super) fn lost(&self) -> u64 {
        self.sent - self.answered
    }

    /// Both together.
    pub(super) fn and(self, other: &Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            answered: self.answered + other.answered,
            slowest: self.slowest.max(other.slowest),
        }
    }
}

impl Stream {
    pub(super) fn start(from: &Namespace, to: IpAddr, payload: Vec<u8>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = from.thread(move || stream(to, &payload, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Waits for the last answers.
    pub(super) fn stop(self) -> io::Result<Streamed> {
        self.stop.store(true, Ordering::Relaxed);
        joined(self.thread)
    }
}

fn stream(to: IpAddr, payload: &[u8], stop: &AtomicBool) -> io::Result<Streamed> {
    let echo = Echo::new(to)?;
    // When each was sent, until it is answered. Sequence numbers go round after two minutes.
    let mut open: Vec<Option<Instant>> = vec![None; 1 << 16];
    let mut streamed = Streamed::default();
    let mut due = clock::now();
    let mut end = None;
    loop {
        while let Some(sequence) = echo.answer() {
            if let Some(sent) = open[usize::from(sequence)].take() {
                let way = clock::now().duration_since(sent);
                streamed.answered += 1;
                streamed.slowest = streamed.slowest.max(way);
            }
        }
        let now = clock::now();
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(now + LAST_ANSWERS);
        }
        if let Some(end) = end {
            if now >= end || streamed.lost() == 0 {
                return Ok(streamed);
            }
            echo.poll(end.duration_since(now));
            continue;
        }
        if now < due {
            echo.poll(due.duration_since(now));
            continue;
        }
        let sequence = streamed.sent as u16;
        streamed.sent += 1;
        // One that the kernel refuses is one that is lost.
        if echo.send(sequence, payload).is_ok() {
            open[usize::from(sequence)] = Some(now);
        }
        // What could not be sent in time is not made up for.
        due = (due + INTERVAL).max(now);
    }
}

/// How much arrived, and in which time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bulk {
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

/// How bulk data is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// For how long.
    pub(super) duration: Duration,
    /// How much is written by one call.
    pub(super) chunk: usize,
    /// Between two calls, if not at once.
    pub(super) pause: Option<Duration>,
}

impl Pace {
    /// As fast as it goes.
    pub(super) const fn full(duration: Duration) -> Self {
        Self {
            duration,
            chunk: CHUNK,
            pause: None,
        }
    }
}

/// Sends `fill` over and over to `address` by TCP, until it is time or somebody says stop.
pub(super) fn bulk(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    fill: &[u8],
    pace: Pace,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Bulk> {
    let listener = to.enter(move || TcpListener::bind(SocketAddr::new(address, 0)))??;
    let target = listener.local_addr()?;
    let receiver = to.thread(move || receive(&listener))?;
    let chunk = fill.repeat(pace.chunk.div_ceil(fill.len()));
    let stop = Arc::clone(stop);
    let sent = from.enter(move || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        let start = clock::now();
        while clock::now().duration_since(start) < pace.duration && !stop.load(Ordering::Relaxed) {
            stream.write_all(&chunk)?;
            pace.pause.into_iter().for_each(clock::pause);
        }
        Ok(())
    })?;
    sent.with_context(|| format!("nothing could be sent to {address} by TCP"))?;
    let received = joined(receiver);
    received.with_context(|| format!("nothing arrived at {address} by TCP"))
}

fn receive(listener: &TcpListener) -> io::Result<Bulk> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = vec![0; CHUNK];
    let start = clock::now();
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => bytes += length as u64,
        }
    }
    Ok(Bulk {
        bytes,
        time: clock::now().duration_since(start),
    })
}
