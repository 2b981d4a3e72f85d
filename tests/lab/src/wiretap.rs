//! What somebody sees who listens on a wire.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};

use crate::frame::Frame;
use crate::thread_in;

const ETH_P_ALL: i32 = 0x0003;
/// Bytes that may wait to be looked at.
const BACKLOG: usize = 32 << 20;
/// More frames than fit in there.
const BACKLOG_FRAMES: u32 = 200_000;
/// The largest frame, of a link that segments.
const FRAME_MAX: usize = 1 << 16;

/// Looks at every frame in a network namespace until it is stopped.
#[derive(Debug)]
pub struct Wiretap<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Default + Send + 'static> Wiretap<T> {
    /// Begins; `look` notes in a `T` what it sees.
    pub fn start(
        namespace: &Path,
        mut look: impl FnMut(&mut T, Frame<'_>) + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = channel();
        let thread = thread_in(namespace, move || {
            // The protocol of a packet socket is in network order.
            let protocol = Protocol::from(ETH_P_ALL.to_be() >> 16);
            let mut socket =
                Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("a packet socket");
            let size = set_socket_recv_buffer_size_force(&socket, BACKLOG);
            size.expect("these tests are root");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("a timeout");
            ready.send(()).expect("somebody waits");
            let mut seen = T::default();
            let mut buffer = vec![0; FRAME_MAX];
            // What is in the backlog at the end was sent before; more than that it does not hold.
            let mut rest = BACKLOG_FRAMES;
            while rest > 0 {
                let is_stopped = stopped.load(Ordering::Relaxed);
                rest -= u32::from(is_stopped);
                match socket.read(&mut buffer) {
                    Ok(length) => {
                        if let Some(frame) = Frame::parse(&buffer[..length]) {
                            look(&mut seen, frame);
                        }
                    }
                    Err(_) if is_stopped => break,
                    Err(_) => {}
                }
            }
            seen
        });
        is_ready.recv().expect("the wiretap runs");
        Self { stop, thread }
    }

    /// Ends, after all that has been sent so far was seen.
    pub fn stop(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the wiretap does not panic")
    }
}
