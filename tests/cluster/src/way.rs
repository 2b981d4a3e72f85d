//! The way from a host in a namespace to the API server, which listens outside of it.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use warren_tests_mesh::Host;

/// Between two looks for a connection.
const LOOK: Duration = Duration::from_millis(5);

/// Carries connections from a host to a server that has this address on the loopback outside.
#[derive(Debug)]
pub struct Way {
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    listening: Option<JoinHandle<()>>,
}

impl Way {
    /// Opens it: connections to `server` on the host's loopback end at the server.
    pub fn open(host: &Host, server: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (accepted, to_carry) = channel::<TcpStream>();
        let (ready, is_ready) = channel();
        let stopped = Arc::clone(&stop);
        let listening = host.thread(move || {
            let listener = TcpListener::bind(server).expect("the whole loopback is the host's");
            listener.set_nonblocking(true).expect("a socket option");
            ready.send(()).expect("somebody waits");
            let (_keep, never) = channel::<()>();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => accepted.send(stream).expect("somebody carries"),
                    Err(_) => {
                        let waited = never.recv_timeout(LOOK);
                        assert_eq!(waited, Err(RecvTimeoutError::Timeout));
                    }
                }
            }
        });
        is_ready.recv().expect("the listener runs");
        let streams = Arc::clone(&open);
        // Outside: a socket belongs to the network in which its thread is.
        thread::spawn(move || {
            for inside in to_carry {
                let Ok(outside) = TcpStream::connect(server) else {
                    continue;
                };
                inside.set_nonblocking(false).expect("a socket option");
                let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                let mut open = streams.lock().expect("nobody panicked");
                open.extend([clone(&inside), clone(&outside)]);
                drop(open);
                for (mut from, mut to) in [
                    (clone(&inside), clone(&outside)),
                    (clone(&outside), clone(&inside)),
                ] {
                    thread::spawn(move || {
                        // One end that is shut ends the other.
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                        let _ = from.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self {
            stop,
            open,
            listening: Some(listening),
        }
    }
}

impl Drop for Way {
    /// Shuts it: connections end, and new ones are refused.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
        let open = self
            .open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for stream in open.iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
