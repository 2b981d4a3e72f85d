//! Cookies: proofs of address that a responder under load demands (the paper's section 5.3, 5.4.4
//! and 5.4.7).
//!
//! [`Jar`] is the side that asks and keeps what it was given; [`Secrets`] the side that gives.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_config::PublicKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::crypto;
use crate::identity::{self, Identity};
use crate::messages::{self, COOKIE_REPLY_LEN, CookieReply, Initiation, Macs};
use crate::time::Instant;

/// How long a responder's secret lives, and so a cookie at most.
const COOKIE_SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// A cookie is not used in its last seconds, since it would be too old on arrival.
const COOKIE_SECRET_LATENCY: Duration = Duration::from_secs(5);

/// What a responder computes from the sender's address. Proves, when it comes back, that the
/// sender receives there.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Cookie([u8; 16]);

impl Cookie {
    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn mac2(&self, covered: &[u8]) -> [u8; 16] {
        crypto::mac(&self.0, &[covered])
    }
}

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(secret)")
    }
}

/// Fills in the two macs at the end of a message to `to`. Answers the first.
pub(crate) fn add_macs(message: &mut [u8], to: &PublicKey, cookie: Option<&Cookie>) -> [u8; 16] {
    let (rest, mac2) = message
        .split_last_chunk_mut::<16>()
        .expect("two macs at the end");
    let (covered, mac1) = rest
        .split_last_chunk_mut::<16>()
        .expect("two macs at the end");
    *mac1 = crypto::mac(&identity::mac1_key(to), &[covered]);
    let first = *mac1;
    if let Some(cookie) = cookie {
        *mac2 = cookie.mac2(rest);
    }
    first
}

/// A peer's cookie, and what is needed to take the next one.
#[derive(Debug, Default)]
pub(crate) struct Jar {
    /// The first mac of the last message, until a cookie reply has used it up.
    sent: Option<[u8; 16]>,
    /// Rare, hence boxed.
    received: Option<Box<Received>>,
}

pub(crate) struct Received {
    pub(crate) cookie: Cookie,
    pub(crate) at: Instant,
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Jar {
    pub(crate) fn message_sent(&mut self, mac1: [u8; 16]) {
        self.sent = Some(mac1);
    }

    /// The cookie to use now, if there is one that will not be too old on arrival.
    pub(crate) fn cookie(&self, now: Instant) -> Option<&Cookie> {
        let received = self.received.as_ref()?;
        let age = now.saturating_duration_since(received.at);
        (age < COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY).then_some(&received.cookie)
    }

    /// Takes the cookie out of a reply of `from`. A reply answers one message, once: hashing and
    /// opening 16 bytes is all the work.
    pub(crate) fn reply_received(
        &mut self,
        from: &PublicKey,
        reply: CookieReply<'_>,
        now: Instant,
    ) -> Result<(), crypto::Forged> {
        let mac1 = self.sent.as_ref().ok_or(crypto::Forged)?;
        let key = identity::cookie_key(from);
        let cookie = crypto::open_cookie(&key, reply.nonce(), mac1, reply.sealed_cookie())?;
        self.sent = None;
        self.received = Some(Box::new(Received {
            cookie: Cookie(cookie),
            at: now,
        }));
        Ok(())
    }

    pub(crate) fn received(&self) -> Option<&Received> {
        self.received.as_deref()
    }

    pub(crate) fn restore(received: Option<Received>) -> Self {
        Self {
            sent: None,
            received: received.map(Box::new),
        }
    }
}

/// A cookie that a sender is to be given. Sealing it takes longer than all that leads to it, and is
/// done when the gate is free for others again.
#[derive(Debug)]
pub struct CookieTicket {
    cookie: Cookie,
    mac1: [u8; 16],
    /// The sender's index.
    sender: u32,
}

impl CookieTicket {
    pub(crate) fn new(cookie: Cookie, to: Initiation<'_>, macs: &Macs<'_>) -> Self {
        Self {
            cookie,
            mac1: *macs.mac1,
            sender: to.sender(),
        }
    }

    /// The reply, which only the message's sender can open. `identity` is whom the message was for,
    /// `nonce` fresh random bytes.
    pub fn seal(&self, identity: &Identity, nonce: &[u8; 24]) -> [u8; COOKIE_REPLY_LEN] {
        let key = identity.cookie_key();
        let sealed = crypto::seal_cookie(key, nonce, &self.mac1, self.cookie.bytes());
        messages::write_cookie_reply(self.sender, nonce, &sealed)
    }
}

/// What cookies are computed from: a secret that is replaced every two minutes.
pub(crate) struct Secrets {
    secret: Zeroizing<[u8; 32]>,
    since: Option<Instant>,
}

impl Secrets {
    pub(crate) fn new() -> Self {
        Self {
            secret: Zeroizing::new([0; 32]),
            since: None,
        }
    }

    /// Whether a message proves that its sender receives at `from`.
    pub(crate) fn proves(&self, macs: &Macs<'_>, from: SocketAddr, now: Instant) -> bool {
        // Senders without a cookie leave the field empty; they are most, so spare them the work.
        if *macs.mac2 == [0; 16] || !self.is_fresh(now) {
            return false;
        }
        crypto::same_mac(&self.cookie(from).mac2(macs.covered_by_mac2), macs.mac2)
    }

    /// The cookie to give to a sender at `from`.
    pub(crate) fn cookie_for(
        &mut self,
        from: SocketAddr,
        now: Instant,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Cookie {
        if !self.is_fresh(now) {
            random(&mut self.secret[..]);
            self.since = Some(now);
        }
        self.cookie(from)
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.since
            .is_some_and(|since| now.saturating_duration_since(since) < COOKIE_SECRET_MAX_AGE)
    }

    /// The cookie of an address *and* port, since many share an address behind a NAT.
    fn cookie(&self, from: SocketAddr) -> Cookie {
        let port = from.port().to_be_bytes();
        Cookie(match from.ip() {
            IpAddr::V4(ip) => crypto::mac(&self.secret[..], &[&ip.octets(), &port]),
            IpAddr::V6(ip) => crypto::mac(&self.secret[..], &[&ip.octets(), &port]),
        })
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets")
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}
