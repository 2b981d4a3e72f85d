//! Conversations with clients on a socket.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use socket2::Socket;

use crate::Listener;

/// What clients may take of us.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Conversations at a time. One more makes the client go that has been silent for longest; while
    /// all are busy or new it waits. Other hosts have half of these together, and each a quarter:
    /// whoever comes from there beyond that is sent away.
    pub connections: usize,
    /// How long a message may take from its first byte to its last, and its answer likewise.
    pub message: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32,
            message: Duration::from_secs(30),
        }
    }
}

/// Threads that converse with the clients of a listening socket. Dropping it stops them.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<End>>,
}

/// Why a server no longer serves.
#[derive(Debug)]
pub enum End {
    /// It was told to stop.
    Stopped,
    /// Its socket's file was deleted or replaced, which is how one asks such a daemon to go.
    SocketRemoved,
    /// The host refuses what a server needs.
    Failed(io::Error),
}

/// Stops a [`Server`] from another thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Shared>);

/// Where clients come in.
pub(crate) trait Door: AsFd + Send + 'static {
    /// Takes the client that waits, if one does; its socket blocks.
    fn accept(&self) -> io::Result<Visitor>;

    /// Whether clients can still find it.
    fn is_reachable(&self) -> bool;
}

/// Somebody who has come in.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub(crate) stream: Socket,
    /// From which other host; `None` from this one.
    pub(crate) from: Option<IpAddr>,
}

/// One side of the conversations of a server.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Converses until the client or the protocol ends it.
    fn converse(&self, connection: &mut Connection) -> io::Result<()>;
}

impl Server {
    /// Serves `handler` to the clients of `listener`, whose file is removed in the end.
    pub(crate) fn start(
        listener: Listener,
        handler: Arc<dyn Handler>,
        limits: Limits,
    ) -> io::Result<Self> {
        let watch = listener.watch().unwrap_or_else(|errno| {
            // Inotify instances are few, and others may have them all.
            tracing::debug!("no notification of a deleted socket ({errno}), looking now and then");
            None
        });
        Self::start_at(listener, Watch::File(watch), handler, limits)
    }

    /// Serves `handler` to those who come in by `door`.
    pub(crate) fn start_at(
        door: impl Door,
        watch: Watch,
        handler: Arc<dyn Handler>,
        limits: Limits,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new()?);
        let acceptor = Acceptor {
            door: Box::new(door),
            watch,
            handler,
            limits,
            shared: shared.clone(),
        };
        let accepting = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || acceptor.run())?;
        Ok(Self {
            shared,
            accepting: Some(accepting),
        })
    }

    /// What stops this server.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.shared.clone())
    }

    /// Waits for the end: every conversation is over then, and the socket's file is gone.
    pub fn wait(mut self) -> End {
        self.join()
    }

    fn join(&mut self) -> End {
        let Some(accepting) = self.accepting.take() else {
            return End::Stopped;
        };
        accepting
            .join()
            .unwrap_or_else(|_| End::Failed(io::Error::other("the accepting thread panicked")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop();
        self.join();
    }
}

impl Stopper {
    /// Ends every conversation and the server. [`Server::wait`] tells when that is done.
    pub fn stop(&self) {
        self.0.stop();
    }
}

/// A client's connection, as its conversation sees it.
pub(crate) struct Connection {
    stream: Socket,
    shared: Arc<Shared>,
    id: u64,
    limits: Limits,
    /// When the message that is being received, or its answer, must be complete.
    deadline: Instant,
}

impl Connection {
    /// Reads what has arrived, at least one byte; 0 at the end of the client's side.
    ///
    /// Between messages a client may be silent for as long as nobody else needs its place.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], within_message: bool) -> io::Result<usize> {
        if within_message {
            self.stream.set_read_timeout(Some(self.time_left()?))?;
            return read_some(&mut self.stream, buffer);
        }
        self.stream.set_read_timeout(None)?;
        self.shared.mark_idle(self.id);
        let received = read_some(&mut self.stream, buffer);
        self.shared.mark_busy(self.id);
        self.deadline = now() + self.limits.message;
        received
    }

    /// Gives the answer to come its own time.
    pub(crate) fn begin_answer(&mut self) {
        self.deadline = now() + self.limits.message;
    }

    /// Sends all of `bytes`, in the time of the answer.
    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(self.time_left()?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says that nothing more will be sent, and waits for the client to go, in the time of the answer.
    /// What it still sends is thrown away, `bytes_max` of it at most.
    ///
    /// A TCP socket that is closed with something unread takes back what was sent before.
    pub(crate) fn finish(&mut self, mut bytes_max: usize) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        let mut buffer = [0; 1024];
        while bytes_max > 0 {
            match self.receive(&mut buffer, true)? {
                0 => break,
                received => bytes_max = bytes_max.saturating_sub(received),
            }
        }
        Ok(())
    }

    fn time_left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.forget(self.id);
    }
}

/// How one learns that clients cannot find the door any more.
#[derive(Debug)]
pub(crate) enum Watch {
    /// They always can.
    Needless,
    /// By notifications of its file; by looking now and then where there are none.
    File(Option<OwnedFd>),
}

impl Watch {
    fn notifications(&self) -> Option<&OwnedFd> {
        match self {
            Self::Needless => None,
            Self::File(watch) => watch.as_ref(),
        }
    }

    fn is_blind(&self) -> bool {
        matches!(self, Self::File(None))
    }
}

/// The thread that accepts.
struct Acceptor {
    door: Box<dyn Door>,
    watch: Watch,
    handler: Arc<dyn Handler>,
    limits: Limits,
    shared: Arc<Shared>,
}

/// How long to leave a listener alone that cannot accept, and a file that cannot be watched.
const PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Nobody makes room for others sooner than this after coming in: a probe has asked, and is answered,
/// within it.
const GRACE: Duration = Duration::from_millis(100);

/// How long to wait until somebody may have become old enough to make room.
const GRACE_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

impl Acceptor {
    fn run(self) -> End {
        let end = self.accept_until_the_end();
        self.shared.stop();
        self.shared.wait_until_empty();
        end
    }

    fn accept_until_the_end(&self) -> End {
        // While no client can be taken, the listener is left alone until something changes.
        let mut accepting = true;
        // Who is there already waits for a place before anybody else.
        let mut first: Option<Visitor> = None;
        loop {
            if self.shared.lock().stopping {
                return End::Stopped;
            }
            if !self.door.is_reachable() {
                return End::SocketRemoved;
            }
            let mut events = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
            let watch = self.watch.notifications().into_iter();
            events.extend(watch.map(|watch| PollFd::new(watch, PollFlags::IN)));
            if accepting {
                events.push(PollFd::new(&self.door, PollFlags::IN));
            }
            let timeout = match &first {
                Some(_) => Some(&GRACE_PAUSE),
                None => (!accepting || self.watch.is_blind()).then_some(&PAUSE),
            };
            match poll(&mut events, timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return End::Failed(errno.into()),
            }
            let waiting = accepting
                && events
                    .pop()
                    .is_some_and(|event| !event.revents().is_empty());
            drain(&self.shared.wake);
            self.watch.notifications().into_iter().for_each(drain);
            accepting = !(waiting || first.is_some()) || self.accept(&mut first);
        }
    }

    /// Takes the client that waits, the one who is there already before others. Returns whether the next
    /// one can be taken at once.
    fn accept(&self, first: &mut Option<Visitor>) -> bool {
        let visitor = first.take().map_or_else(|| self.door.accept(), Ok);
        let accepted = visitor.and_then(|visitor| {
            let connections = self.limits.connections;
            match self.shared.make_room(connections, visitor.from, now()) {
                Room::Free => self.begin(visitor),
                Room::Later => {
                    *first = Some(visitor);
                    Ok(())
                }
                // Waiting for a place it would be in the way of this host's own.
                Room::None => {
                    end(&visitor.stream);
                    Ok(())
                }
            }
        });
        match accepted.map_err(|error| (error.kind(), error)) {
            Ok(()) => first.is_none(),
            Err((
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted,
                _,
            )) => true,
            Err((_, error)) => {
                tracing::warn!("cannot serve a client: {error}");
                false
            }
        }
    }

    fn begin(&self, visitor: Visitor) -> io::Result<()> {
        let Visitor { stream, from } = visitor;
        let mut connection = Connection {
            id: self.shared.admit(stream.try_clone()?, from, now()),
            stream,
            shared: self.shared.clone(),
            limits: self.limits,
            deadline: now() + self.limits.message,
        };
        let handler = self.handler.clone();
        thread::Builder::new()
            .name("control-client".to_owned())
            .spawn(move || {
                if let Err(error) = handler.converse(&mut connection) {
                    tracing::debug!("a client's conversation ended: {error}");
                }
            })?;
        Ok(())
    }
}

/// What the threads of a server share.
#[derive(Debug)]
struct Shared {
    /// Readable when the accepting thread should look again.
    wake: OwnedFd,
    state: Mutex<State>,
    /// Signalled when a conversation has ended.
    gone: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    ticks: u64,
    clients: BTreeMap<u64, Client>,
}

impl State {
    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }
}

#[derive(Debug)]
struct Client {
    stream: Socket,
    /// The part of other hosts that it is from; `None` for this one.
    from: Option<IpAddr>,
    /// When it came in.
    since: Instant,
    /// When it fell silent, as a number that grows; `None` while a message or its answer is under way.
    idle_since: Option<u64>,
}

/// Whether there is room for another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// There is.
    Free,
    /// Soon.
    Later,
    /// Its host has all that it may have.
    None,
}

impl Shared {
    fn new() -> io::Result<Self> {
        Ok(Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::default(),
            gone: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for client in state.clients.values() {
            end(&client.stream);
        }
        drop(state);
        self.wake();
    }

    fn wait_until_empty(&self) {
        let mut state = self.lock();
        while !state.clients.is_empty() {
            state = self
                .gone
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether there is room for another client. When there is none, the one that has been silent
    /// for longest is sent away, and its end wakes the accepting thread.
    fn make_room(&self, bound: usize, from: Option<IpAddr>, now: Instant) -> Room {
        let state = self.lock();
        let clients = state.clients.values();
        let send_away = |concerned: &dyn Fn(&Client) -> bool| {
            let idle = clients.clone().filter(|it| {
                it.idle_since.is_some() && now.duration_since(it.since) >= GRACE && concerned(it)
            });
            if let Some(oldest) = idle.min_by_key(|it| it.idle_since) {
                end(&oldest.stream);
            }
        };
        if let Some(from) = from.map(part) {
            let same = |it: &Client| it.from == Some(from);
            let other = |it: &Client| it.from.is_some();
            let of_same = clients.clone().filter(|it| same(it)).count();
            let of_others = clients.clone().filter(|it| other(it)).count();
            if of_same >= (bound / 4).max(1) {
                send_away(&same);
                return Room::None;
            }
            if of_others >= (bound / 2).max(1) || clients.len() >= bound {
                send_away(&other);
                return Room::None;
            }
            return Room::Free;
        }
        if clients.len() < bound {
            return Room::Free;
        }
        send_away(&|_| true);
        Room::Later
    }

    fn admit(&self, stream: Socket, from: Option<IpAddr>, since: Instant) -> u64 {
        let mut state = self.lock();
        if state.stopping {
            end(&stream);
        }
        let id = state.tick();
        let client = Client {
            stream,
            from: from.map(part),
            since,
            idle_since: Some(id),
        };
        state.clients.insert(id, client);
        id
    }

    fn mark_idle(&self, id: u64) {
        let mut state = self.lock();
        let since = state.tick();
        if let Some(client) = state.clients.get_mut(&id) {
            client.idle_since = Some(since);
        }
    }

    fn mark_busy(&self, id: u64) {
        if let Some(client) = self.lock().clients.get_mut(&id) {
            client.idle_since = None;
        }
    }

    fn forget(&self, id: u64) {
        self.lock().clients.remove(&id);
        self.gone.notify_all();
        self.wake();
    }

    fn wake(&self) {
        // A full counter is one that wakes already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// What of other hosts counts as one: an address, and of IPv6 the /64 in which a host has as many as it
/// likes.
fn part(address: IpAddr) -> IpAddr {
    const NETWORK: u128 = !0 << 64;
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// Ends a conversation wherever its thread may wait. A client that has gone is fine as well.
fn end(stream: &Socket) {
    let _ = stream.shutdown(Shutdown::Both);
}

fn read_some(stream: &mut Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Forgets the notifications that have arrived: what they are about is looked up anyway.
fn drain(notifications: impl AsFd) {
    let mut buffer = [0u8; 1024];
    while rustix::io::read(&notifications, &mut buffer).is_ok_and(|len| len == buffer.len()) {}
}

#[expect(
    clippy::disallowed_methods,
    reason = "a conversation's thread is an outermost loop"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_deleted_socket_is_noticed_without_notifications_too() {
        let path = std::env::temp_dir().join(format!("warren-unwatched-{}", std::process::id()));
        let listener = Listener::claim(&path).expect("a free path");
        let blind = Watch::File(None);
        let server =
            Server::start_at(listener, blind, Arc::new(Mute), Limits::default()).expect("a server");
        fs::remove_file(&path).expect("its file");
        assert!(matches!(server.wait(), End::SocketRemoved));
    }

    #[test]
    fn the_client_that_has_been_silent_for_longest_makes_room() {
        let shared = Shared::new().expect("an eventfd");
        let mut clients: Vec<_> = (0..3).map(|_| admit(&shared, None)).collect();
        shared.mark_busy(clients[0].0);
        shared.mark_busy(clients[1].0);
        shared.mark_idle(clients[1].0);

        let later = now() + GRACE;
        let make_room = |bound| shared.make_room(bound, None, later);
        assert_eq!(make_room(4), Room::Free, "there is room for a fourth");
        assert_eq!(make_room(3), Room::Later, "until somebody has gone");
        let ended = clients.iter_mut().map(|(_, stream)| is_ended(stream));
        assert_eq!(ended.collect::<Vec<_>>(), [false, false, true]);

        shared.forget(clients[2].0);
        assert_eq!(make_room(3), Room::Free);
        assert_eq!(make_room(2), Room::Later);
        assert!(is_ended(&mut clients[1].1), "the busy one may finish");
        assert!(!is_ended(&mut clients[0].1));
    }

    #[test]
    fn who_has_just_come_in_makes_no_room() {
        let shared = Shared::new().expect("an eventfd");
        let before = now();
        let (_, mut client) = admit(&shared, None);
        assert_eq!(shared.make_room(1, None, before), Room::Later);
        assert!(!is_ended(&mut client));
        let later = now() + GRACE;
        assert_eq!(shared.make_room(1, None, later), Room::Later);
        assert!(is_ended(&mut client));
    }

    #[test]
    fn other_hosts_have_half_of_the_places_and_each_a_quarter() {
        let shared = Shared::new().expect("an eventfd");
        let from = |address: &str| Some(address.parse().expect("an address"));
        let later = now() + 2 * GRACE;
        let room = |address| shared.make_room(8, from(address), later);
        // The addresses of a /64 are one host's.
        let mut greedy = ["2001:db8::1", "2001:db8::2"].map(|it| admit(&shared, from(it)));
        assert_eq!(room("2001:db8::3"), Room::None);
        assert!(is_ended(&mut greedy[0].1) && !is_ended(&mut greedy[1].1));
        assert_eq!(room("192.0.2.1"), Room::Free);
        let _more = ["192.0.2.1", "192.0.2.2"].map(|it| admit(&shared, from(it)));
        assert_eq!(room("192.0.2.3"), Room::None);
        assert_eq!(shared.make_room(8, None, later), Room::Free);
    }

    fn admit(shared: &Shared, from: Option<IpAddr>) -> (u64, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("a socket");
        let ours = OwnedFd::from(ours).into();
        (shared.admit(ours, from, now()), theirs)
    }

    fn is_ended(client: &mut UnixStream) -> bool {
        client.read(&mut [0]).is_ok_and(|len| len == 0)
    }

    struct Mute;

    impl Handler for Mute {
        fn converse(&self, _connection: &mut Connection) -> io::Result<()> {
            Ok(())
        }
    }
}
