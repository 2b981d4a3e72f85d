//! The door for handshake messages: who may make this node do curve work, and how often.
//!
//! The engine keeps one gate behind a lock that handshake messages alone take. What passes goes to
//! one bounded queue, whose length is what *load* means here:
//!
//! 1. A message needs a valid first mac to be shown to the gate at all ([`Addressed`]).
//! 2. One with a valid second mac has proved its address, and counts against that source's share
//!    of proven messages. Nobody else can use it up.
//! 3. Any other counts against its source's unproven share. Where that is used up, or always under
//!    load, the answer is a cookie, so that an honest sender can prove itself. Sources are limited
//!    in how many cookies they are given, too.
//!
//! So a flood from one source never fills the queue, one from many invented sources fills it until
//! load sets in and then fails step 2, and load ends a second after the queue is short again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::cookie::Secrets;
use crate::identity::Addressed;
use crate::messages::{COOKIE_REPLY_LEN, Handshake};
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

/// What becomes of a handshake message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Queue it for the control thread.
    Pass,
    /// Send this back to where it came from, and drop it.
    CookieReply([u8; COOKIE_REPLY_LEN]),
    /// Its source has had its share: drop it.
    Limited,
}

/// The door, with what it remembers.
#[derive(Debug)]
pub struct Gate {
    secrets: Secrets,
    loaded_until: Option<Instant>,
    proven: Limiter,
    unproven: Limiter,
    cookies: Limiter,
}

impl Gate {
    /// A gate that knows nobody.
    pub fn new() -> Self {
        Self {
            secrets: Secrets::new(),
            loaded_until: None,
            proven: Limiter::default(),
            unproven: Limiter::default(),
            cookies: Limiter::default(),
        }
    }

    /// Judges a message that arrived from `from` while `queued` messages wait. `random` fills
    /// bytes fit for keys.
    pub fn admit(
        &mut self,
        addressed: &Addressed<'_>,
        from: SocketAddr,
        queued: usize,
        now: Instant,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Admission {
        let loaded = self.observe(queued, now);
        let source = Source::of(from.ip());
        let message = match addressed.message() {
            // Cookie replies are cheap to open, and are never answered.
            Handshake::CookieReply(_) => {
                return match self.unproven.take(source, CALM, now) {
                    Ok(()) => Admission::Pass,
                    Err(Exhausted) => Admission::Limited,
                };
            }
            message => message.bytes(),
        };
        if self.secrets.proves(message, from, now) {
            let rate = if loaded { LOADED } else { CALM };
            return match self.proven.take(source, rate, now) {
                Ok(()) => Admission::Pass,
                Err(Exhausted) => Admission::Limited,
            };
        }
        if !loaded && self.unproven.take(source, CALM, now).is_ok() {
            return Admission::Pass;
        }
        if self.cookies.take(source, COOKIES, now).is_err() {
            return Admission::Limited;
        }
        self.secrets
            .reply(addressed.identity(), message, from, now, random)
            .map_or(Admission::Limited, Admission::CookieReply)
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

/// A token bucket for each source, as the time at which it will be full again (the generic cell
/// rate algorithm). A source whose time has passed is as good as unknown, and may be forgotten.
///
/// An ordered map: no sender can make it slow by the choice of its addresses.
#[derive(Debug, Default)]
struct Limiter {
    full_at: BTreeMap<Source, Instant>,
    /// When the table was last searched and most of it was found to be in use.
    swept_in_vain: Option<Instant>,
}

impl Limiter {
    fn take(&mut self, source: Source, rate: Rate, now: Instant) -> Result<(), Exhausted> {
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
