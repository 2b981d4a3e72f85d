//! What the threads of one engine have in common.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use warren_udp::Pair;

use crate::engine::End;
use crate::poll::Wake;
use crate::router::Router;

/// How long workers are waited for that should let go of closed sockets. Only one that is held up
/// by the host takes so long.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) router: Router,
    /// The sockets in use, swapped whole when the port changes.
    pub(crate) sockets: ArcSwap<SocketSet>,
    /// Wakes control.
    pub(crate) control: Arc<Wake>,
    /// Wakes each of the workers' threads.
    pub(crate) workers: Vec<Arc<Wake>>,
    stopping: AtomicBool,
    closing: Arc<Closing>,
    end: Mutex<Option<End>>,
    ended: Condvar,
}

/// One pair of sockets for each worker, all on one port. Without any while the interface is down.
#[derive(Debug, Default)]
pub(crate) struct SocketSet {
    pairs: Vec<Pair>,
    none: Pair,
    /// Tells, by being dropped with the sockets, that they are closed.
    _open: Option<Open>,
}

/// There is a set of open sockets somewhere.
#[derive(Debug)]
struct Open(Arc<Closing>);

/// Lets whoever wants a port again wait until the workers have let go of it.
#[derive(Debug, Default)]
struct Closing {
    open: Mutex<usize>,
    closed: Condvar,
}

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.closed.notify_all();
    }
}

impl SocketSet {
    pub(crate) fn pair(&self, place: usize) -> &Pair {
        self.pairs.get(place).unwrap_or(&self.none)
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.pairs.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &warren_udp::Socket> {
        self.pairs
            .iter()
            .flat_map(|pair| [&pair.v4, &pair.v6])
            .flatten()
    }

    /// The port, the same for all; `None` without sockets.
    pub(crate) fn port(&self) -> Option<u16> {
        self.iter().next().map(warren_udp::Socket::port)
    }
}

impl Shared {
    pub(crate) fn new(router: Router, control: Arc<Wake>, workers: Vec<Arc<Wake>>) -> Self {
        Self {
            router,
            sockets: ArcSwap::from_pointee(SocketSet::default()),
            control,
            workers,
            stopping: AtomicBool::new(false),
            closing: Arc::default(),
            end: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    /// The workers use these sockets from now on.
    pub(crate) fn open_sockets(&self, pairs: Vec<Pair>) {
        *self
            .closing
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += 1;
        let open = Some(Open(Arc::clone(&self.closing)));
        self.set_sockets(SocketSet {
            pairs,
            none: Pair::default(),
            _open: open,
        });
    }

    /// Closes the sockets, and waits until every worker has let go of them, so that their port can
    /// be had again. A worker does so within a batch.
    pub(crate) fn close_sockets(&self) {
        self.set_sockets(SocketSet::default());
        let open = self
            .closing
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let _late = self
            .closing
            .closed
            .wait_timeout_while(open, CLOSE_PATIENCE, |open| *open > 0);
    }

    fn set_sockets(&self, sockets: SocketSet) {
        self.sockets.store(Arc::new(sockets));
        self.wake_workers();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Brings every thread to its end. The first reason given is the one that counts.
    pub(crate) fn stop(&self, end: End) {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(end);
        self.stopping.store(true, Ordering::Release);
        self.ended.notify_all();
        self.control.wake();
        self.wake_workers();
    }

    /// Waits until [`Self::stop`] was called.
    pub(crate) fn wait(&self) -> End {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *end {
                Some(end) => return end,
                None => end = self.ended.wait(end).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn wake_workers(&self) {
        for worker in &self.workers {
            worker.wake();
        }
    }
}
