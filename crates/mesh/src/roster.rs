//! Which peers are ready, and which are to be called: what is known of them over time.
//!
//! Time is given by the caller, as the duration since an instant of its own; nothing is asked for it
//! here. What a device tells in wall time is taken as an age, so that a clock that is set moves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use warren_config::{DeviceStatus, PeerStatus, PublicKey, WallTime};

use crate::name::NodeName;

/// Initiations that have gone unanswered for so long make a peer unready: the time after which
/// attempts end (`REKEY_ATTEMPT_TIME`).
const UNANSWERED: Duration = Duration::from_secs(90);
/// A node that starts shakes hands before its new epoch has reached everybody: it is published 10 s
/// later at most, and takes some time to arrive.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(15);
/// For so long a peer with a new epoch counts as it did before: it calls by itself.
const GRACE: Duration = Duration::from_secs(90);
/// A peer with a new epoch that was heard of within this time needs no call.
const SILENCE: Duration = Duration::from_secs(2);
/// A session that is older is none any more (`REJECT_AFTER_TIME`).
const SESSION: Duration = Duration::from_secs(180);
/// After so long a peer that is not ready is called again.
const AGAIN: Duration = Duration::from_secs(120);

/// Who was called is looked at this often at least, until it has answered or is given up.
const SELDOM: Duration = Duration::from_secs(5);

/// Calls that may be made at once.
const BURST: u32 = 64;
/// A further call may be made each time that this has passed. All nodes that one event concerns spread
/// theirs alike, so that the one that is called answers as many.
const PACE: Duration = Duration::from_millis(10);

/// What is known of the peers over time.
///
/// A look at one peer costs that peer: who is to be looked at when is kept in order, and so is who is ready.
#[derive(Debug)]
pub struct Roster {
    seed: u64,
    peers: BTreeMap<PublicKey, Entry>,
    /// When to look at whom again, if nothing else happens.
    agenda: BTreeSet<(Duration, PublicKey)>,
    ready: BTreeSet<NodeName>,
    unready: BTreeSet<NodeName>,
    /// Calls that may be made now, and when that was last reckoned.
    calls: (u32, Option<Duration>),
}

/// A peer as the directory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: NodeName,
    /// Its key.
    pub public_key: PublicKey,
    /// Grows with each start of its daemon; `None` where nobody tells.
    pub epoch: Option<i64>,
    /// It is called before others: there was traffic with it before this node started.
    pub first: bool,
}

/// What a look at the device has shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The peers that are ready.
    pub ready: BTreeSet<NodeName>,
    /// The peers with which to shake hands now.
    pub calls: Vec<PublicKey>,
    /// When to look again at the latest; `None` when nothing is waited for.
    pub next: Option<Duration>,
}

/// What a look at the peers that were due has shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Glance {
    /// Those of them that are ready.
    pub ready: BTreeSet<NodeName>,
    /// Those that are not.
    pub unready: BTreeSet<NodeName>,
    /// One has become ready, or is so no more.
    pub changed: bool,
    /// The peers with which to shake hands now.
    pub calls: Vec<PublicKey>,
    /// When to look again at the latest; `None` when nothing is waited for.
    pub next: Option<Duration>,
}

#[derive(Debug)]
struct Entry {
    name: NodeName,
    /// Its place on the agenda.
    wake: Option<Duration>,
    /// When it was called last.
    called: Option<Duration>,
    epoch: Option<i64>,
    /// When a newer epoch was heard of, and the bytes that had been received by then.
    renewed: Option<Renewed>,
    /// Bytes received at the last look.
    received: u64,
    was_ready: bool,
    /// When to call.
    due: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Renewed {
    at: Duration,
    received: u64,
}

impl Roster {
    /// Nobody is known yet. The seed spreads calls over time; another one on each node.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            peers: BTreeMap::new(),
            agenda: BTreeSet::new(),
            ready: BTreeSet::new(),
            unready: BTreeSet::new(),
            calls: (BURST, None),
        }
    }

    /// These are the peers now. Whoever is new is called, and of whoever has started anew it is seen
    /// whether that is needed. `population` is how many nodes hear of the same.
    pub fn update(
        &mut self,
        candidates: impl IntoIterator<Item = Candidate>,
        population: usize,
        now: Duration,
    ) {
        let candidates: Vec<Candidate> = candidates.into_iter().collect();
        let keys: BTreeSet<PublicKey> = (candidates.iter())
            .map(|candidate| candidate.public_key)
            .collect();
        let gone: Vec<PublicKey> = (self.peers.keys())
            .filter(|key| !keys.contains(*key))
            .copied()
            .collect();
        for key in gone {
            self.remove(&key);
        }
        for candidate in candidates {
            self.set(candidate, population, now);
        }
    }

    /// The same of one peer, whom the next look is at. The others stay as they are.
    pub fn set(&mut self, candidate: Candidate, population: usize, now: Duration) {
        let key = candidate.public_key;
        let mut entry = match self.take(&key) {
            Some(entry) => entry,
            None => Entry {
                name: candidate.name.clone(),
                wake: None,
                called: None,
                epoch: candidate.epoch,
                renewed: None,
                received: 0,
                was_ready: false,
                due: Some(match candidate.first {
                    true => now,
                    false => now + self.spread(&key, population),
                }),
            },
        };
        entry.name = candidate.name;
        if candidate.epoch > entry.epoch {
            entry.epoch = candidate.epoch;
            entry.renewed = Some(Renewed {
                at: now,
                received: entry.received,
            });
            let look_at = now + SILENCE + self.spread(&key, population);
            entry.due = Some(entry.due.map_or(look_at, |due| due.min(look_at)));
        }
        entry.wake = Some(now);
        self.put(key, entry);
    }

    /// This is no peer any more.
    pub fn remove(&mut self, key: &PublicKey) {
        self.take(key);
    }

    /// The peers that were ready at the last look.
    pub fn ready(&self) -> &BTreeSet<NodeName> {
        &self.ready
    }

    /// The others.
    pub fn unready(&self) -> &BTreeSet<NodeName> {
        &self.unready
    }

    /// When to look at somebody next, if nothing else happens.
    pub fn next(&self) -> Option<Duration> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// Judges every peer by what the device says of it, at wall time `wall`, which is the caller's `now`.
    pub fn look(&mut self, device: &DeviceStatus, wall: WallTime, now: Duration) -> Seen {
        let all: Vec<PublicKey> = self.peers.keys().copied().collect();
        let status = |key: &PublicKey| device.peers.get(key).cloned();
        let Glance { calls, next, .. } = self.judge(&all, status, wall, now);
        Seen {
            ready: self.ready.clone(),
            calls,
            next,
        }
    }

    /// Judges those peers whose time has come, each by its `status` on the device. What nobody waits for
    /// (that a peer which was ready has ceased to answer) is seen by [`Roster::look`] alone.
    pub fn glance(
        &mut self,
        status: impl FnMut(&PublicKey) -> Option<PeerStatus>,
        wall: WallTime,
        now: Duration,
    ) -> Glance {
        let due = self.agenda.iter().take_while(|(at, _)| *at <= now);
        let due: Vec<PublicKey> = due.map(|(_, key)| *key).collect();
        self.judge(&due, status, wall, now)
    }

    fn judge(
        &mut self,
        keys: &[PublicKey],
        mut status: impl FnMut(&PublicKey) -> Option<PeerStatus>,
        wall: WallTime,
        now: Duration,
    ) -> Glance {
        let mut allowed = self.allowance(now);
        // A look costs as much as there are peers to look at.
        let step = PACE * u32::try_from(keys.len() / 64).unwrap_or(32).clamp(1, 32);
        let mut glance = Glance::default();
        // Those that have waited longest go first.
        let mut due: Vec<(Duration, PublicKey)> = Vec::new();
        for key in keys {
            let Some(mut entry) = self.take(key) else {
                continue;
            };
            let status = status(key).unwrap_or_default();
            entry.received = status.rx_bytes;
            let age = |at: Option<WallTime>| at.map(|at| wall.0.saturating_sub(at.0));
            let handshake = age(status.last_handshake);
            let unanswered = age(status.unanswered_since);
            let is_ready = entry.is_ready(handshake, unanswered, now);
            glance.changed |= entry.was_ready != is_ready;
            entry.was_ready = is_ready;
            if is_ready {
                glance.ready.insert(entry.name.clone());
                entry.settle(handshake, now);
            } else {
                glance.unready.insert(entry.name.clone());
                let again = || now + AGAIN + spread(self.seed, key, AGAIN);
                entry.due.get_or_insert_with(again);
            }
            if let Some(at) = entry.due
                && at <= now
            {
                if entry.needs_call(handshake, unanswered, is_ready, now) {
                    due.push((at, *key));
                } else {
                    entry.due = None;
                }
            }
            entry.wake = entry.waits(unanswered, is_ready, step, now);
            self.put(*key, entry);
        }
        due.sort_unstable();
        for (_, key) in due {
            let Some(mut entry) = self.take(&key) else {
                continue;
            };
            entry.wake = Some(now + step);
            if allowed > 0 {
                allowed -= 1;
                entry.due = None;
                entry.called = Some(now);
                glance.calls.push(key);
            }
            self.put(key, entry);
        }
        self.calls.0 = allowed;
        glance.next = self.next();
        glance
    }

    /// Takes an entry out, and all that is kept of it beside.
    fn take(&mut self, key: &PublicKey) -> Option<Entry> {
        let entry = self.peers.remove(key)?;
        if let Some(at) = entry.wake {
            self.agenda.remove(&(at, *key));
        }
        match entry.was_ready {
            true => self.ready.remove(&entry.name),
            false => self.unready.remove(&entry.name),
        };
        Some(entry)
    }

    fn put(&mut self, key: PublicKey, entry: Entry) {
        if let Some(at) = entry.wake {
            self.agenda.insert((at, key));
        }
        match entry.was_ready {
            true => self.ready.insert(entry.name.clone()),
            false => self.unready.insert(entry.name.clone()),
        };
        self.peers.insert(key, entry);
    }

    /// How many calls may be made now.
    fn allowance(&mut self, now: Duration) -> u32 {
        let (left, reckoned) = self.calls;
        let Some(reckoned) = reckoned else {
            self.calls.1 = Some(now);
            return left;
        };
        let passed = now.saturating_sub(reckoned);
        let more = u32::try_from(passed.as_nanos() / PACE.as_nanos()).unwrap_or(u32::MAX);
        // What is left of the last step counts for the next.
        self.calls.1 = Some(match left.saturating_add(more) >= BURST {
            true => now,
            false => reckoned + PACE * more,
        });
        left.saturating_add(more).min(BURST)
    }

    /// A moment within the time in which all nodes may make a call each.
    fn spread(&self, key: &PublicKey, population: usize) -> Duration {
        let population = u32::try_from(population).unwrap_or(u32::MAX);
        spread(self.seed, key, PACE.saturating_mul(population))
    }
}

impl Entry {
    /// Whether it has shaken hands under this key and epoch, and lets no initiation go unanswered.
    /// All but `now` are ages.
    fn is_ready(
        &self,
        handshake: Option<Duration>,
        unanswered: Option<Duration>,
        now: Duration,
    ) -> bool {
        let Some(handshake) = handshake else {
            return false;
        };
        if unanswered.is_some_and(|unanswered| unanswered >= UNANSWERED) {
            return false;
        }
        match self.renewed {
            None => true,
            Some(renewed) => {
                let renewed = now.saturating_sub(renewed.at);
                handshake <= renewed + PUBLISHED_WITHIN || self.was_ready && renewed < GRACE
            }
        }
    }

    /// A peer that is ready and of whose newest start nothing is open needs no call.
    fn settle(&mut self, handshake: Option<Duration>, now: Duration) {
        let is_newer =
            |renewed: Renewed| handshake.is_some_and(|age| age <= now.saturating_sub(renewed.at));
        if self.renewed.is_none_or(is_newer) {
            self.renewed = None;
            self.due = None;
        }
    }

    /// Whether the call that is due is still needed.
    fn needs_call(
        &self,
        handshake: Option<Duration>,
        unanswered: Option<Duration>,
        is_ready: bool,
        now: Duration,
    ) -> bool {
        // It is being called.
        if unanswered.is_some_and(|unanswered| unanswered < UNANSWERED) {
            return false;
        }
        let Some(renewed) = self.renewed else {
            return !is_ready;
        };
        // Its daemon has started anew. Where there is no older session nothing is lost with it.
        let silent = self.received == renewed.received;
        let renewed = now.saturating_sub(renewed.at);
        let older_session = handshake.is_some_and(|age| age > renewed && age < SESSION);
        !is_ready || silent && older_session
    }

    /// When to look at it again.
    fn waits(
        &self,
        unanswered: Option<Duration>,
        is_ready: bool,
        step: Duration,
        now: Duration,
    ) -> Option<Duration> {
        // An answer takes a round trip, of which nobody tells: often at first, then seldom.
        let often = |since: Duration| now + since.clamp(step, SELDOM);
        let unanswered = unanswered.filter(|unanswered| *unanswered < UNANSWERED);
        let answer = unanswered
            .map(|unanswered| often(unanswered).min(now + UNANSWERED.saturating_sub(unanswered)));
        // A call that was not made yet.
        let called = self.called.map(|called| now.saturating_sub(called));
        let called = called.filter(|since| !is_ready && *since < SELDOM);
        let due = self.due.filter(|at| *at > now);
        let waits = [answer, called.map(often), due, self.grace_ends(now)];
        waits.into_iter().flatten().min()
    }

    /// When a peer that is ready for the time being is not any more.
    fn grace_ends(&self, now: Duration) -> Option<Duration> {
        let end = self.renewed?.at + GRACE;
        (self.was_ready && end > now).then_some(end)
    }
}

/// A moment within `width` that is another for each key and seed (splitmix64).
fn spread(seed: u64, key: &PublicKey, width: Duration) -> Duration {
    let (first, _) = key.as_bytes().split_first_chunk().expect("32 bytes");
    let mut z = seed ^ u64::from_le_bytes(*first);
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let width = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(z.checked_rem(width).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_shook_hands_is_ready_and_silence_changes_nothing() {
        let mut node = Played::new(&[(1, Some(1))], 3);
        assert_eq!(node.look(0).ready.len(), 0);
        assert_eq!(node.look(1).calls, [], "it has been called");
        node.handshake(1, 1.0);
        for at in [1, 500, 100_000] {
            let seen = node.look(at);
            assert_eq!((seen.ready.len(), seen.calls.len()), (1, 0), "at {at}");
            assert_eq!(seen.next, None, "at {at}");
        }
    }

    #[test]
    fn a_peer_whose_initiations_go_unanswered_for_90_seconds_is_not_ready_and_called_again() {
        let mut node = Played::new(&[(1, None)], 2);
        node.look(0);
        node.handshake(1, 0.0);
        node.unanswered(1, 100.0);
        assert_eq!(node.look(189).ready.len(), 1);
        assert_eq!(node.look(189).next, Some(Duration::from_secs(190)));
        assert_eq!(node.look(190).ready.len(), 0);
        let again = node.look(190).next.expect("it is called again");
        assert!(again > Duration::from_secs(190) + AGAIN);
        assert!(again < Duration::from_secs(190) + AGAIN * 2);
        let at = again.as_secs() + 1;
        assert_eq!(node.look(at).calls, [key(1)]);
    }

    // BEHAVIOURS 48.
    #[test]
    fn a_new_epoch_moves_nobody_who_has_heard_of_the_peer_or_has_no_older_session() {
        let silent = |node: &mut Played| node.look(5).calls;
        for (what, play, calls) in [
            ("silent with an old session", (|_| {}) as fn(&mut Played), 1),
            ("heard of it", |node| node.receive(1), 0),
            ("has a new session", |node| node.handshake(1, 2.5), 0),
            ("is calling it", |node| node.unanswered(1, 2.0), 0),
        ] {
            let mut node = Played::new(&[(1, Some(7))], 2);
            node.look(0);
            node.handshake(1, 0.0);
            node.look(1);
            node.update(&[(1, Some(8))], 2, 2);
            assert_eq!(node.look(3).calls, [], "{what}: not before two seconds");
            play(&mut node);
            assert_eq!(silent(&mut node).len(), calls, "{what}");
        }
        // Its session has ended by itself.
        let mut node = Played::new(&[(1, Some(7))], 2);
        node.look(0);
        node.handshake(1, 0.0);
        node.look(1);
        node.update(&[(1, Some(8))], 2, 1000);
        assert_eq!(node.look(1003).calls, []);
        // An epoch that goes back is an old record.
        node.update(&[(1, Some(3))], 2, 1100);
        assert_eq!(node.look(1101).ready.len(), 0, "the grace has passed");
    }

    #[test]
    fn a_peer_with_a_new_epoch_stays_ready_for_a_while_and_needs_a_handshake_then() {
        let mut node = Played::new(&[(1, Some(1))], 2);
        node.look(0);
        node.handshake(1, 0.0);
        node.look(1);
        node.update(&[(1, Some(2))], 2, 200);
        assert_eq!(node.look(200).ready.len(), 1);
        assert_eq!(node.look(289).ready.len(), 1);
        assert_eq!(node.look(290).ready.len(), 0);
        // The one who started has called before its record arrived.
        let mut node = Played::new(&[(1, Some(1))], 2);
        node.look(0);
        node.handshake(1, 0.0);
        node.look(1);
        node.handshake(1, 195.0);
        node.update(&[(1, Some(2))], 2, 200);
        assert_eq!(node.look(1000).ready.len(), 1);
    }

    #[test]
    fn a_start_calls_whom_it_had_traffic_with_first_and_the_rest_at_a_pace() {
        let mut roster = Roster::new(1);
        let candidates = (0..1000_u32).map(|number| Candidate {
            first: number % 100 == 7,
            ..candidate(number, Some(1))
        });
        roster.update(candidates, 1000, Duration::ZERO);
        let device = DeviceStatus::default();
        let mut called = BTreeSet::new();
        let mut now = Duration::ZERO;
        let mut first = None;
        while called.len() < 1000 {
            let seen = roster.look(&device, WallTime::default(), now);
            first.get_or_insert_with(|| seen.calls.clone());
            called.extend(seen.calls);
            let most = u128::from(BURST) + now.as_nanos() / PACE.as_nanos();
            assert!(called.len() as u128 <= most, "{} by {now:?}", called.len());
            now = seen.next.expect("there are more").max(now + PACE);
            assert!(now < Duration::from_secs(60), "only {}", called.len());
        }
        let first = first.expect("a look");
        for number in (0..10).map(|hundred| hundred * 100 + 7) {
            assert!(first.contains(&key(number)), "{number} had traffic");
        }
    }

    #[test]
    fn of_thousands_only_those_are_looked_at_whose_time_has_come() {
        let count = 5000;
        let peers: Vec<_> = (0..count).map(|number| (number, Some(1))).collect();
        let mut node = Played::new(&peers, 10);
        for number in 0..count {
            node.handshake(number, 0.0);
        }
        node.look(1);
        assert_eq!(node.roster.ready().len(), 5000);
        assert_eq!(node.roster.next(), None, "nobody is waited for");

        // One starts anew, and one is new.
        let at = Duration::from_secs(100);
        node.roster.set(candidate(7, Some(2)), 10, at);
        node.roster.set(candidate(count, Some(1)), 10, at);
        let mut looked_at = Vec::new();
        let mut glance = |node: &mut Played, at: Duration| {
            looked_at.clear();
            let device = &node.device;
            let status = |key: &PublicKey| {
                looked_at.push(*key);
                device.peers.get(key).cloned()
            };
            let glance = node.roster.glance(status, WallTime(at), at);
            (glance, looked_at.len())
        };
        let (first, looks) = glance(&mut node, at);
        assert_eq!(looks, 2);
        assert_eq!(first.ready, [candidate(7, None).name].into());
        assert_eq!(first.unready, [candidate(count, None).name].into());
        assert!(!first.changed, "a new one was not ready before, either");
        let at = at + Duration::from_millis(200);
        let (called, looks) = glance(&mut node, at);
        assert_eq!((called.calls, looks), (vec![key(count)], 1));
        node.handshake(count, 100.3);
        let at = called.next.expect("it is looked at again");
        assert!(at < Duration::from_millis(100_300), "soon: {at:?}");
        let (answered, looks) = glance(&mut node, at);
        assert!(answered.changed && answered.ready.len() == 1);
        assert_eq!(looks, 1);
        assert_eq!(node.roster.ready().len(), 5001);

        node.roster.remove(&key(7));
        assert_eq!(node.roster.ready().len(), 5000);
        assert!(node.roster.unready().is_empty());
        // What is kept by name and by time is what a look at all says.
        let ready = node.roster.ready().clone();
        assert_eq!(node.look(101).ready, ready);
    }

    /// A restart of one node among thousands: no storm, whoever had a session with it.
    #[test]
    fn thousands_spread_their_calls_to_one_that_has_started_anew() {
        let population = 5000;
        let mut calls_in_second = BTreeMap::<u64, u32>::new();
        for seed in 0..population {
            // Each holds a session, and hears nothing: the starter calls none of them.
            let mut node = Played::with_seed(seed, &[(1, Some(1))], population as usize);
            node.look(0);
            node.handshake(1, 0.0);
            node.look(100);
            node.update(&[(1, Some(2))], population as usize, 100);
            let mut at = node.look(100).next.expect("it looks again");
            let seen = node.look_at(at);
            if seen.calls.is_empty() {
                at = seen.next.expect("it looks again");
                assert_eq!(node.look_at(at).calls.len(), 1);
            }
            *calls_in_second.entry(at.as_secs()).or_default() += 1;
        }
        let most = calls_in_second.values().max().copied();
        assert!(most < Some(150), "{calls_in_second:?}");
        let first = calls_in_second.keys().next().copied();
        assert!(first >= Some(102), "{calls_in_second:?}");
    }

    /// A roster with the device that it looks at.
    struct Played {
        roster: Roster,
        device: DeviceStatus,
    }

    impl Played {
        fn new(peers: &[(u32, Option<i64>)], population: usize) -> Self {
            Self::with_seed(1, peers, population)
        }

        fn with_seed(seed: u64, peers: &[(u32, Option<i64>)], population: usize) -> Self {
            let mut played = Self {
                roster: Roster::new(seed),
                device: DeviceStatus::default(),
            };
            played.update(peers, population, 0);
            let everybody = played.roster.peers.values_mut();
            everybody.for_each(|entry| entry.due = Some(Duration::ZERO));
            played
        }

        fn update(&mut self, peers: &[(u32, Option<i64>)], population: usize, at: u64) {
            let candidates = peers
                .iter()
                .map(|(number, epoch)| candidate(*number, *epoch));
            let at = Duration::from_secs(at);
            self.roster.update(candidates, population, at);
        }

        fn look(&mut self, at: u64) -> Seen {
            self.look_at(Duration::from_secs(at))
        }

        fn look_at(&mut self, at: Duration) -> Seen {
            self.roster.look(&self.device, WallTime(at), at)
        }

        fn peer(&mut self, number: u32) -> &mut PeerStatus {
            self.device.peers.entry(key(number)).or_default()
        }

        fn handshake(&mut self, number: u32, at: f64) {
            let peer = self.peer(number);
            peer.last_handshake = Some(WallTime(Duration::from_secs_f64(at)));
            peer.unanswered_since = None;
            peer.rx_bytes += 100;
        }

        fn unanswered(&mut self, number: u32, since: f64) {
            self.peer(number).unanswered_since = Some(WallTime(Duration::from_secs_f64(since)));
        }

        fn receive(&mut self, number: u32) {
            self.peer(number).rx_bytes += 100;
        }
    }

    fn key(number: u32) -> PublicKey {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn candidate(number: u32, epoch: Option<i64>) -> Candidate {
        Candidate {
            name: format!("n{number}").parse().expect("a name"),
            public_key: key(number),
            epoch,
            first: false,
        }
    }
}
