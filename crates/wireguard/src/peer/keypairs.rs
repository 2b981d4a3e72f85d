//! The three sessions of a peer: previous, current and next, as the kernel's `noise.c` slides them.

use std::sync::Arc;

use crate::replay::Window;
use crate::session::Session;
use crate::time::Instant;
use crate::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES};

/// A session with everything about it that changes.
#[derive(Debug)]
pub(crate) struct Keypair {
    pub(crate) session: Arc<Session>,
    pub(crate) derived: Instant,
    /// The counter that is used next.
    pub(crate) sending_counter: u64,
    /// Nothing is sent with it any more. Receiving goes on until it is too old.
    pub(crate) sending_ended: bool,
    pub(crate) window: Window,
}

impl Keypair {
    pub(crate) fn new(session: Arc<Session>, now: Instant) -> Self {
        Self {
            session,
            derived: now,
            sending_counter: 0,
            sending_ended: false,
            window: Window::new(),
        }
    }

    /// Takes `count` counters, if the session may still be used for so many.
    #[inline]
    pub(crate) fn take_counters(&mut self, count: u32, now: Instant) -> Option<u64> {
        if self.sending_ended {
            return None;
        }
        let next = self.sending_counter.saturating_add(count.into());
        if self.is_expired(now) || next > REJECT_AFTER_MESSAGES {
            self.sending_ended = true;
            return None;
        }
        Some(std::mem::replace(&mut self.sending_counter, next))
    }

    #[inline]
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.age(now) >= REJECT_AFTER_TIME
    }

    #[inline]
    pub(crate) fn age(&self, now: Instant) -> std::time::Duration {
        now.saturating_duration_since(self.derived)
    }

    #[inline]
    pub(crate) fn is_used_up(&self) -> bool {
        self.sending_counter > REKEY_AFTER_MESSAGES
    }
}

/// At most three sessions. The indices of those that fall out go to `retired`.
#[derive(Debug, Default)]
pub(crate) struct Keypairs {
    pub(crate) previous: Option<Box<Keypair>>,
    pub(crate) current: Option<Box<Keypair>>,
    /// Derived as the responder, and not yet confirmed by the initiator.
    pub(crate) next: Option<Box<Keypair>>,
}

impl Keypairs {
    pub(crate) fn insert(&mut self, keypair: Keypair, retired: &mut Vec<u32>) {
        let keypair = Some(Box::new(keypair));
        let initiator = keypair
            .as_ref()
            .is_some_and(|keypair| keypair.session.is_initiator());
        let dropped = if initiator {
            let demoted = self.next.take();
            let current = std::mem::replace(&mut self.current, keypair);
            if demoted.is_some() {
                [std::mem::replace(&mut self.previous, demoted), current]
            } else {
                [std::mem::replace(&mut self.previous, current), None]
            }
        } else {
            [
                self.previous.take(),
                std::mem::replace(&mut self.next, keypair),
            ]
        };
        retire(&dropped, retired);
    }

    /// The session, if it is still one of this peer's.
    #[inline]
    pub(crate) fn find(&mut self, session: &Session) -> Option<&mut Keypair> {
        [&mut self.current, &mut self.next, &mut self.previous]
            .into_iter()
            .flatten()
            .find(|keypair| std::ptr::eq(&*keypair.session, session))
            .map(|keypair| &mut **keypair)
    }

    /// Something was received with `session`. Answers whether that confirmed the next one.
    #[inline]
    pub(crate) fn received_with(&mut self, session: &Session, retired: &mut Vec<u32>) -> bool {
        let confirmed = self
            .next
            .as_ref()
            .is_some_and(|next| std::ptr::eq(&*next.session, session));
        if confirmed {
            let current = std::mem::replace(&mut self.current, self.next.take());
            let dropped = std::mem::replace(&mut self.previous, current);
            retire(&[dropped], retired);
        }
        confirmed
    }

    /// Sends nothing more with what there is; what is under way may still arrive.
    pub(crate) fn end_sending(&mut self) {
        for keypair in [&mut self.current, &mut self.next].into_iter().flatten() {
            keypair.sending_ended = true;
        }
    }

    pub(crate) fn clear(&mut self, retired: &mut Vec<u32>) {
        let dropped = [self.next.take(), self.previous.take(), self.current.take()];
        retire(&dropped, retired);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Keypair> {
        [&self.previous, &self.current, &self.next]
            .into_iter()
            .flatten()
            .map(|keypair| &**keypair)
    }
}

fn retire<const N: usize>(dropped: &[Option<Box<Keypair>>; N], retired: &mut Vec<u32>) {
    retired.extend(
        dropped
            .iter()
            .flatten()
            .map(|keypair| keypair.session.local_index()),
    );
}
