//! The door for handshake messages: who may make this node do curve work, and how often.
//!
//! The engine keeps one gate behind a lock that handshake messages alone take. What passes goes to
//! one bounded queue, whose length is what *load* means here:
//!
//! 1. A message needs a valid first mac to be shown to the gate at all ([`Addressed`]).
//! 2. Responses and cookie replies name a receiver index of ours, 32 bits that whoever was not sent
//!    them would have to guess: that is proof enough, also under load. They count against the share
//!    of that index.
//! 3. An initiation with a valid second mac has proved its address, and counts against that source's
//!    share of proven messages. Nobody else can use it up: who has not seen the cookie cannot make
//!    such a message, and one that was overheard is let in once.
//! 4. Any other counts against its source's unproven share. Where that is used up, or always under
//!    load, the answer is a cookie, so that an honest sender can prove itself. Sources are limited
//!    in how many cookies they are given, too.
//! 5. Who floods in the name of a source can still use up both of these. If a peer is known to be at
//!    the very endpoint it is called back: this side initiates, and step 2 lets the answer in.
//!
//! So a flood from one source never fills the queue, one from many invented sources fills it until
//! load sets in and then fails step 3, load ends a second after the queue is short again, and a peer
//! in whose name somebody floods has a session after a round trip. What a flood in its name does
//! keep out, most of the time, is a sender that nobody knows to be there, and a peer at whose own door
//! somebody floods in our name as well: then each finds the other's share used up, and an initiation
//! is let in by chance alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::REKEY_TIMEOUT;
use crate::cookie::{CookieTicket, Secrets};
use crate::identity::Addressed;
use crate::messages::{Handshake, Macs};
use crate::time::Instant;

/// Messages in the queue from which on the node is under load: an eighth of the kernel's 4096.
pub const LOAD_THRESHOLD: usize = 512;
/// How long load lasts after the queue was last that long.
const LOAD_LASTS: Duration = Duration::from_secs(1);
/// Sources that are remembered for each kind of share.
const MAX_SOURCES: usize = 8192;
/// How often a full table is searched in vain for sources that are at rest again.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// What a source may send while there is no load: enough for a large site behind one address that
/// comes up at once, too little to fill the queue.
const CALM: Rate = Rate {
    interval: Duration::from_millis(2),
    burst: 400,
};
/// What a proven source may send under load, as in the kernel.
const LOADED: Rate = Rate {
    interval: Duration::from_millis(50),
    burst: 5,
};
/// Cookies that a source is given. One lasts for two minutes, so this is enough for a large site
/// behind one address; a flood from many true addresses must not be answered message for message.
const COOKIES: Rate = Rate {
    interval: Duration::from_millis(20),
    burst: 200,
};
/// Answers to one message of ours: one is enough, and some may be forged by who overheard it.
const ANSWERS: Rate = Rate {
    interval: Duration::from_millis(100),
    burst: 32,
};
/// How often an endpoint is called back: as often as an initiation may be sent to it.
const CALLS: Rate = Rate {
    interval: REKEY_TIMEOUT,
    burst: 1,
};
/// Proven messages that are remembered, so that a copy is not let in as well.
const MAX_SEEN: usize = 4096;

/// A handshake message at the door.
#[derive(Debug, Clone, Copy)]
pub struct Knock<'a> {
    /// The message. An answer, to a receiver index that awaits one.
    pub message: Addressed<'a>,
    /// From where it arrived.
    pub from: SocketAddr,
    /// A peer is known to be at that very address and port.
    pub known: bool,
    /// How many messages wait behind the door.
    pub queued: usize,
}

/// What becomes of a handshake message.
#[derive(Debug)]
pub enum Admission {
    /// Queue it for the control thread.
    Pass,
    /// Send the cookie reply back to where it came from, and drop the message.
    DemandCookie(CookieTicket),
    /// Its source has had its share, though maybe not by its own doing: drop it, and send an
    /// initiation to the peer that is there.
    CallBack,
    /// Its source has had its share: drop it.
    Limited,
}

/// The door, with what it remembers.
#[derive(Debug)]
pub struct Gate {
    secrets: Secrets,
    loaded_until: Option<Instant>,
    proven: Limiter<Source>,
    seen: Seen,
    answers: Limiter<u32>,
    unproven: Limiter<Source>,
    cookies: Limiter<Source>,
    calls: Limiter<SocketAddr>,
}

impl Gate {
    /// A gate that knows nobody.
    pub fn new() -> Self {
        Self {
            secrets: Secrets::new(),
            loaded_until: None,
            proven: Limiter::new(),
            seen: Seen::default(),
            answers: Limiter::new(),
            unproven: Limiter::new(),
            cookies: Limiter::new(),
            calls: Limiter::new(),
        }
    }

    /// Judges a message. `random` fills bytes fit for keys; it is asked once in two minutes at most.
    pub fn admit(
        &mut self,
        knock: &Knock<'_>,
        now: Instant,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Admission {
        let loaded = self.observe(knock.queued, now);
        let from = knock.from;
        let source = Source::of(from.ip());
        let pass_if = |taken: Result<(), Exhausted>| match taken {
            Ok(()) => Admission::Pass,
            Err(Exhausted) => Admission::Limited,
        };
        let initiation = match knock.message.message() {
            Handshake::Initiation(message) => message,
            Handshake::Response(message) => {
                return pass_if(self.answers.take(message.receiver(), ANSWERS, now));
            }
            Handshake::CookieReply(message) => {
                return pass_if(self.answers.take(message.receiver(), ANSWERS, now));
            }
        };
        let Some(macs) = Macs::of(initiation.bytes()) else {
            return Admission::Limited;
        };
        if self.secrets.proves(&macs, from, now) {
            if self.seen.contains(macs.mac2) {
                return Admission::Limited;
            }
            let rate = if loaded { LOADED } else { CALM };
            let taken = self.proven.take(source, rate, now);
            if taken.is_ok() {
                self.seen.add(macs.mac2);
            }
            return pass_if(taken);
        }
        if !loaded && self.unproven.take(source, CALM, now).is_ok() {
            return Admission::Pass;
        }
        if self.cookies.take(source, COOKIES, now).is_ok() {
            let cookie = self.secrets.cookie_for(from, now, random);
            return Admission::DemandCookie(CookieTicket::new(cookie, initiation, &macs));
        }
        if knock.known && self.calls.take(from, CALLS, now).is_ok() {
            return Admission::CallBack;
        }
        Admission::Limited
    }

    /// Whether the node is, or has been until just now, under load.
    pub fn is_loaded(&self, now: Instant) -> bool {
        self.loaded_until.is_some_and(|until| now < until)
    }

    fn observe(&mut self, queued: usize, now: Instant) -> bool {
        if queued >= LOAD_THRESHOLD {
            self.loaded_until = Some(now + LOAD_LASTS);
        }
        self.is_loaded(now)
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// Who shares a limit: an IPv4 address, or an IPv6 /64, which one host may own whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// One message each `interval`, after `burst` at once.
#[derive(Debug, Clone, Copy)]
struct Rate {
    interval: Duration,
    burst: u32,
}

/// The source has had its share, or there is no room to remember it.
#[derive(Debug)]
struct Exhausted;

/// Marks of the proven messages that were let in last: their second macs.
#[derive(Debug, Default)]
struct Seen {
    known: BTreeSet<[u8; 16]>,
    /// The same, the oldest first.
    order: VecDeque<[u8; 16]>,
}

impl Seen {
    fn contains(&self, mac2: &[u8; 16]) -> bool {
        self.known.contains(mac2)
    }

    fn add(&mut self, mac2: &[u8; 16]) {
        if self.order.len() >= MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        if self.known.insert(*mac2) {
            self.order.push_back(*mac2);
        }
    }
}

/// A token bucket for each source, as the time at which it will be full again (the generic cell
/// rate algorithm). A source whose time has passed is as good as unknown, and may be forgotten.
///
/// An ordered map: no sender can make it slow by the choice of its addresses.
#[derive(Debug)]
struct Limiter<K> {
    full_at: BTreeMap<K, Instant>,
    /// When the table was last searched and most of it was found to be in use.
    swept_in_vain: Option<Instant>,
}

impl<K: Ord> Limiter<K> {
    fn new() -> Self {
        Self {
            full_at: BTreeMap::new(),
            swept_in_vain: None,
        }
    }

    fn take(&mut self, source: K, rate: Rate, now: Instant) -> Result<(), Exhausted> {
        if !self.full_at.contains_key(&source) && !self.has_room(now) {
            return Err(Exhausted);
        }
        let full_at = self.full_at.entry(source).or_insert(now);
        let next = (*full_at).max(now) + rate.interval;
        if next.saturating_duration_since(now) > rate.interval * rate.burst {
            return Err(Exhausted);
        }
        *full_at = next;
        Ok(())
    }

    /// Makes room among the sources that are at rest, most of which are so within milliseconds:
    /// invented sources, each used once, do not keep others out. With no room the newcomer is
    /// refused; it may still prove itself, and be counted among those who did.
    fn has_room(&mut self, now: Instant) -> bool {
        let recently = |swept| now.saturating_duration_since(swept) < SWEEP_INTERVAL;
        if self.full_at.len() >= MAX_SOURCES && !self.swept_in_vain.is_some_and(recently) {
            self.full_at.retain(|_, full_at| *full_at > now);
            // Each search is paid for by the newcomers that it made room for.
            let in_vain = self.full_at.len() > MAX_SOURCES / 2;
            self.swept_in_vain = in_vain.then_some(now);
        }
        self.full_at.len() < MAX_SOURCES
    }
}
