//! Handshakes: real initiations from many peers, which a daemon answers.
//!
//! They are made before anything is measured, and what counts is the daemon's own processor time,
//! so that the caller's work is in no figure. No more than [`WINDOW`] are under way at once, and
//! they come from many addresses: nobody's defence against floods is on the way.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_benches::ends::{End, callers};
use warren_config::{PrivateKey, PublicKey};
use warren_wireguard::messages::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};

use crate::bed::{Bed, Side};
use crate::clock::{Pace, Stopwatch};

/// Initiations under way: below the 128 from which on wireguard-go is under load, the least of all.
const WINDOW: usize = 32;
/// Addresses that they come from.
const SOURCES: usize = 128;
/// Peers: so many that the turn comes to none twice within the 20 ms in which it is answered once.
const PEERS: usize = 512;
/// Initiations of each peer that are measured.
const PASSES: usize = 8;

/// The private key of every daemon that is called.
pub(crate) const CALLED: [u8; 32] = [0x48; 32];

/// The peers of a daemon, and what they send it.
pub(crate) struct Callers {
    pub(crate) keys: Vec<PublicKey>,
    ends: Vec<End>,
    /// One of each peer, again and again.
    initiations: Vec<[u8; INITIATION_LEN]>,
    /// The last of the first peers, to which the right response is known.
    last: Vec<[u8; INITIATION_LEN]>,
}

/// What came of the initiations.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) count: usize,
    /// Seconds of pauses that the daemon asked for by cookie replies.
    pub(crate) paused: f64,
}

impl Callers {
    pub(crate) fn new() -> Callers {
        let called = PrivateKey::from_bytes(CALLED).public();
        let (keys, mut ends) = callers(PEERS, called);
        let initiations = (0..PASSES)
            .flat_map(|_| ends.iter_mut().map(End::initiation).collect::<Vec<_>>())
            .collect();
        let last = ends[..WINDOW].iter_mut().map(End::initiation).collect();
        Callers {
            keys,
            ends,
            initiations,
            last,
        }
    }

    /// Sockets with an address each in the network that [`route`] leads to side A.
    pub(crate) fn sockets(bed: &Bed, to: SocketAddr) -> Result<Vec<UdpSocket>> {
        bed.within(Side::A, || {
            (0..SOURCES)
                .map(|number| {
                    let socket = UdpSocket::bind((Ipv4Addr::new(10, 203, 0, number as u8 + 1), 0))?;
                    socket.connect(to)?;
                    Ok(socket)
                })
                .collect()
        })
    }

    /// Sends as many as are answered within about `patience`.
    pub(crate) fn call(
        &self,
        sockets: &[UdpSocket],
        patience: Duration,
        pace: &Pace,
    ) -> Result<Answers> {
        let mut answers = Answers::default();
        let watch = Stopwatch::start();
        for (number, window) in self.initiations.chunks(WINDOW).enumerate() {
            if watch.elapsed() > patience {
                break;
            }
            let from = &sockets[number * WINDOW % SOURCES..][..window.len()];
            let (mut answered, mut cookies) = (0, 0);
            for reply in exchange(from, window)? {
                answered += usize::from(reply.len() == RESPONSE_LEN);
                cookies += usize::from(reply.len() == COOKIE_REPLY_LEN);
            }
            answers.count += answered;
            if cookies > 0 {
                // boringtun and its fork answer a hundred within a second, then ask for cookies.
                let pause = Duration::from_millis(1100);
                answers.paused += pause.as_secs_f64();
                pace.rest(pause)?;
            }
        }
        Ok(answers)
    }

    /// Whether the answers are the responses that make sessions.
    pub(crate) fn check(&self, sockets: &[UdpSocket]) -> Result<()> {
        for socket in &sockets[..WINDOW] {
            // What was late for its window.
            while !receive(socket, Duration::from_millis(1))?.is_empty() {}
        }
        let replies = exchange(&sockets[..WINDOW], &self.last)?;
        let sessions = replies
            .iter()
            .zip(&self.ends)
            .filter(|(reply, end)| end.accept(reply).is_some())
            .count();
        ensure!(
            sessions == WINDOW,
            "{sessions} of {WINDOW} answers make a session"
        );
        Ok(())
    }
}

/// Leads the addresses of callers to side A, whatever they are.
pub(crate) fn route(bed: &Bed) -> Result<()> {
    bed.ip(Side::A, "route replace local 10.203.0.0/24 dev lo")?;
    let gateway = Side::A.outer();
    bed.ip(
        Side::B,
        &format!("route replace 10.203.0.0/24 via {gateway}"),
    )
}

/// Sends one from each socket and returns what each receives, which may be nothing.
fn exchange(sockets: &[UdpSocket], messages: &[[u8; INITIATION_LEN]]) -> Result<Vec<Vec<u8>>> {
    for (socket, message) in sockets.iter().zip(messages) {
        socket.send(message)?;
    }
    let mut patience = Duration::from_millis(200);
    let mut replies = Vec::new();
    for socket in &sockets[..messages.len()] {
        let reply = receive(socket, patience)?;
        if reply.is_empty() {
            // All were sent at once, so the others have had the same time.
            patience = Duration::from_millis(1);
        }
        replies.push(reply);
    }
    Ok(replies)
}

/// The next datagram, or nothing.
fn receive(socket: &UdpSocket, patience: Duration) -> Result<Vec<u8>> {
    socket.set_read_timeout(Some(patience))?;
    let mut reply = vec![0; 256];
    match socket.recv(&mut reply) {
        Ok(length) => reply.truncate(length),
        Err(error) if error.kind() == ErrorKind::WouldBlock => reply.clear(),
        Err(error) => return Err(error.into()),
    }
    Ok(reply)
}
