//! How packet threads share the processors with the programs whose packets they move.
//!
//! | a thread has          | niceness | when it wakes                                                  |
//! |-----------------------|----------|----------------------------------------------------------------|
//! | both directions       | -3       | waits until whoever runs pauses, unless that takes long        |
//! | the way out           | -8       | waits until whoever runs pauses, so that it finds many packets |
//! | the way out, flooded  | -11      | the same                                                       |
//! | answers alone         | -8       | runs at once                                                   |
//! | the way in            | -11      | runs at once                                                   |
//!
//! Niceness counts from the daemon's, and takes `CAP_SYS_NICE`; without it all are the daemon's, and the way out runs at
//! once. To wait is the policy `SCHED_BATCH`, which takes no right. A daemon that was given another policy than the
//! usual one keeps it.

use std::fs::File;
use std::time::Duration;

use warren_wireguard::time::Instant;

use crate::sys::{self, Policy};

/// By how much a thread that has both directions is nicer to its packets than the daemon is to the host.
///
/// The program that sends is one thread; its packet takes two on the way out and in. With equal
/// shares of too few processors the sender fills queues that nobody has the time to empty, and what
/// it sent is dropped. Twice the share (a step is a quarter more) mends that. Ten steps are too
/// many for who reads from the TUN: a thread that pre-empts its sender at each packet never finds
/// two to send together.
const NICENESS_BOTH: i32 = -3;

/// The same for a thread that has the way out alone. It pre-empts nobody when it wakes, so that it may have six
/// times a sender's share and finds many packets.
const NICENESS_OUT: i32 = -8;

/// The same for a thread that has the way in alone: twice the share of the way out that is not flooded.
///
/// A bulk stream's window stands before whichever thread gets too little time. Before the way in it
/// is sealed and nothing can pass it; before the way out a sparse flow does
/// ([`Backlog`](warren_packet::backlog::Backlog)).
const NICENESS_IN: i32 = -11;

/// The same for a thread that has the way out alone and is flooded: what the sender does with a larger share is lost.
const NICENESS_FLOODED: i32 = NICENESS_IN;

/// For how long, and how often, a thread looks at what it has read ahead before it says whether it is flooded.
const FLOODED_WITHIN: Duration = Duration::from_millis(10);
const FLOODED_LOOKS: u32 = 3;
/// After so long without an answer it begins anew: nothing came in between.
const FLOOD_OVER: Duration = Duration::from_millis(100);

/// How often a thread looks at most how long it has waited: a look is a system call.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same where it tries to wait, so that a mistake costs few packets.
const LOOK_AT_FIRST: Duration = Duration::from_millis(10);
/// Who waits longer than this for the average of its turns waits for programs that do not pause: a turn behind one that
/// does takes some ten microseconds, one behind the others milliseconds. A few of these among many short ones are
/// not seen.
const LONG_WAIT: Duration = Duration::from_micros(200);
/// For how long a thread then runs at once before it tries again to wait. Twice as long each time that it was a
/// mistake, up to the second.
const PAUSES: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(64)];

/// What a thread has to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Little, in both directions.
    Both,
    /// The way out.
    Out,
    /// The way out, on which there is little, beside much on the way in: acknowledgements, and sparse flows whose
    /// packets would wait for a thread that does not pause.
    Answers,
    /// The way out, before which more runs of datagrams wait than are read ahead ([`Flood`]).
    Flooded,
    /// The way in.
    In,
}

/// How the calling thread is scheduled.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// The niceness that the daemon was given, where it can be told.
    given: Option<i32>,
    waits: Option<Waits>,
    /// Whether the policy is the usual one, and nobody has chosen another.
    is_ours: bool,
    manners: Manners,
    duty: Duty,
    look_at: Instant,
}

impl Schedule {
    /// That of the calling thread, which has to stay the one that uses it, and serves `duty` from now on.
    pub(crate) fn of_thread(duty: Duty, now: Instant) -> Self {
        let mut schedule = Self {
            given: rustix::process::getpriority_process(None).ok(),
            waits: Waits::of_thread(),
            is_ours: sys::policy() == Some(Policy::Normal),
            manners: Manners::new(now),
            duty,
            look_at: now,
        };
        schedule.begin(duty, now);
        schedule
    }

    /// The thread serves this from now on.
    pub(crate) fn serve(&mut self, duty: Duty, now: Instant) {
        if duty != self.duty {
            if self.duty == Duty::Both {
                self.judge(now);
            }
            self.begin(duty, now);
        }
    }

    fn begin(&mut self, duty: Duty, now: Instant) {
        self.duty = duty;
        match duty {
            // The larger share without waiting would stop the sender at each packet, and waiting without the
            // larger share would only take longer.
            Duty::Out if self.take(NICENESS_OUT) && self.schedule(Policy::Batch) => {}
            Duty::Flooded
                if (self.take(NICENESS_FLOODED) || self.take(NICENESS_OUT))
                    && self.schedule(Policy::Batch) => {}
            Duty::Out | Duty::Flooded => self.run_at_once(NICENESS_BOTH),
            Duty::Answers => self.run_at_once(NICENESS_OUT),
            Duty::In => self.run_at_once(NICENESS_IN),
            Duty::Both => {
                self.take(NICENESS_BOTH);
                // What it waited for before was another duty's.
                let _before = self.waits.as_mut().and_then(Waits::mean);
                self.adopt(now);
            }
        }
    }

    /// Looks now and then whether waiting takes too long.
    pub(crate) fn look(&mut self, now: Instant) {
        if self.duty != Duty::Both || now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        if self.judge(now) {
            self.adopt(now);
        }
    }

    /// Whether what it has waited since the last look makes another policy the better one.
    fn judge(&mut self, now: Instant) -> bool {
        let before = self.manners.waits;
        let wait = self.waits.as_mut().and_then(Waits::mean);
        wait.is_some_and(|wait| self.manners.after(wait, now) != before)
    }

    fn adopt(&mut self, now: Instant) {
        self.look_at = now + LOOK_AT_FIRST;
        // Who cannot tell how long it waits does not.
        self.schedule(match self.manners.waits && self.waits.is_some() {
            true => Policy::Batch,
            false => Policy::Normal,
        });
    }

    fn run_at_once(&self, niceness: i32) {
        self.schedule(Policy::Normal);
        self.take(niceness);
    }

    /// Answers whether it could. Where it is refused packets are moved all the same.
    fn schedule(&self, policy: Policy) -> bool {
        self.is_ours && sys::schedule(policy).is_ok()
    }

    /// Sets the niceness, and answers whether it could. Without the right to (`CAP_SYS_NICE`) it stays as it is.
    fn take(&self, niceness: i32) -> bool {
        self.given.is_some_and(|given| {
            rustix::process::setpriority_process(None, given + niceness).is_ok()
        })
    }
}

/// Whether runs of datagrams fill all that is read ahead, at more than half of the looks.
///
/// TCP slows down when its packets wait. A program that sends datagrams mostly does not, and one that sends runs of
/// them (`UDP_SEGMENT`) makes more with its share of a processor than can be sealed with as much.
#[derive(Debug)]
pub(crate) struct Flood {
    since: Instant,
    looks: u32,
    full: u32,
    is_flooded: bool,
}

impl Flood {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            looks: 0,
            full: 0,
            is_flooded: false,
        }
    }

    /// A look has found all room taken by runs, or not.
    pub(crate) fn count(&mut self, is_full: bool, now: Instant) {
        let so_far = now.saturating_duration_since(self.since);
        if so_far >= FLOOD_OVER {
            *self = Self::new(now);
        }
        self.looks += 1;
        self.full += u32::from(is_full);
        if so_far >= FLOODED_WITHIN && self.looks >= FLOODED_LOOKS {
            // To stay so takes less, since with its larger share a thread finds room now and then.
            let few = self.looks / if self.is_flooded { 4 } else { 2 };
            *self = Self {
                is_flooded: self.full > few,
                ..Self::new(now)
            };
        }
    }

    pub(crate) fn is_flooded(&self) -> bool {
        self.is_flooded
    }
}

/// Whether a thread that has both directions waits for whoever runs when it wakes.
///
/// An echo that wakes it comes from a program that is about to wait for the answer: to stop that one, be
/// back at it and stop it for good is two changes of thread more than to run behind it, for each of the threads that
/// an echo wakes. But behind a program that calculates it would wait until that one's time is up, each
/// time.
#[derive(Debug)]
struct Manners {
    waits: bool,
    since: Instant,
    /// For how long it did not wait when it last did not.
    pause: Duration,
}

impl Manners {
    fn new(now: Instant) -> Self {
        Self {
            waits: true,
            since: now,
            pause: Duration::ZERO,
        }
    }

    /// What is best after it has waited so long for each of its last turns.
    fn after(&mut self, wait: Duration, now: Instant) -> bool {
        let so_far = now.saturating_duration_since(self.since);
        let [first, longest] = PAUSES;
        match self.waits {
            true if wait > LONG_WAIT => {
                let was_a_mistake = so_far <= self.pause;
                self.pause = if was_a_mistake { self.pause * 2 } else { first }.min(longest);
                (self.waits, self.since) = (false, now);
            }
            false if so_far >= self.pause => (self.waits, self.since) = (true, now),
            _ => {}
        }
        self.waits
    }
}

/// How long a thread was ready to run and did not (`/proc/thread-self/schedstat`,
/// Documentation/scheduler/sched-stats.rst).
#[derive(Debug)]
struct Waits {
    file: File,
    waited: Duration,
    turns: u64,
}

impl Waits {
    /// That of the calling thread; `None` where the kernel does not count.
    fn of_thread() -> Option<Self> {
        let mut waits = Self {
            file: File::open("/proc/thread-self/schedstat").ok()?,
            waited: Duration::ZERO,
            turns: 0,
        };
        // A thread that looks has run before.
        waits.mean().map(|_| waits)
    }

    /// The average since the last look; `None` if it was not scheduled since.
    fn mean(&mut self) -> Option<Duration> {
        let mut text = [0; 64];
        let length = rustix::io::pread(&self.file, &mut text, 0).ok()?;
        let (waited, turns) = parse(text.get(..length)?)?;
        let more = waited.saturating_sub(self.waited);
        let times = turns.saturating_sub(self.turns);
        (self.waited, self.turns) = (waited, turns);
        more.checked_div(u32::try_from(times).ok()?)
    }
}

/// The time that a thread has waited, and how often it had a turn, of its `schedstat`.
fn parse(text: &[u8]) -> Option<(Duration, u64)> {
    let mut fields = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let mut field = || fields.next()?.parse::<u64>().ok();
    let (_ran, waited, turns) = (field()?, field()?, field()?);
    Some((Duration::from_nanos(waited), turns))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(40);
    const LONG: Duration = Duration::from_millis(4);

    /// Not from the boot on, which is a nanosecond later than it says.
    fn at(seconds: u64) -> Instant {
        Instant::from_nanos((1 + seconds) * 1_000_000_000)
    }

    #[test]
    fn a_thread_that_waits_long_runs_at_once_and_tries_again_ever_more_seldom() {
        let mut manners = Manners::new(at(0));
        assert!(manners.after(SHORT, at(9)));
        let mut now = 10;
        for pause in [4, 8, 16, 32, 64, 64] {
            assert!(!manners.after(LONG, at(now)), "{pause} s");
            assert!(!manners.after(SHORT, at(now + pause - 1)), "{pause} s");
            now += pause;
            assert!(manners.after(SHORT, at(now)), "{pause} s");
        }
        // It was none for longer than it had stopped.
        assert!(manners.after(SHORT, at(now + 65)));
        assert!(!manners.after(LONG, at(now + 66)));
        assert!(manners.after(SHORT, at(now + 70)));
    }

    #[test]
    fn a_flood_is_what_fills_the_backlog_at_more_than_half_of_the_looks() {
        let ms = |ms: u64| at(0) + Duration::from_millis(ms);
        let mut flood = Flood::new(ms(0));
        for now in 0..10 {
            flood.count(true, ms(now));
            assert!(!flood.is_flooded(), "{now} ms are too few");
        }
        flood.count(false, ms(10));
        assert!(flood.is_flooded());
        // A third of the looks is enough to stay so, and not to become so.
        for expected in [true, false] {
            flood.is_flooded = expected;
            for now in 0..=11 {
                flood.count(now % 3 == 0, ms(20 + now));
            }
            assert_eq!(flood.is_flooded(), expected);
            flood = Flood::new(ms(20));
        }
    }

    #[test]
    fn a_flood_is_over_when_nothing_came_for_a_while_and_few_looks_tell_nothing() {
        let ms = |ms: u64| at(0) + Duration::from_millis(ms);
        let mut flood = Flood::new(ms(0));
        flood.count(true, ms(20));
        flood.count(true, ms(40));
        assert!(!flood.is_flooded());
        flood.count(true, ms(60));
        assert!(flood.is_flooded());
        flood.count(true, ms(200));
        assert!(!flood.is_flooded());
    }

    #[test]
    fn what_the_kernel_tells_of_a_thread_is_read() {
        assert_eq!(
            parse(b"5000 1200 3\n"),
            Some((Duration::from_nanos(1200), 3))
        );
        for nothing in [&b""[..], b"1 2", b"1 2 x\n", b"1 -2 3\n"] {
            assert_eq!(parse(nothing), None);
        }
        let Some(mut waits) = Waits::of_thread() else {
            // This kernel does not count.
            return;
        };
        // To wait for another thread ends a turn, unless that one is through already.
        let has_had_a_turn = (0..1000).any(|_| {
            std::thread::spawn(|| ()).join().expect("it does nothing");
            waits.mean().is_some()
        });
        assert!(has_had_a_turn);
    }

    #[test]
    fn a_thread_is_scheduled_as_its_duty_asks() {
        std::thread::spawn(|| {
            let now = at(0);
            let mut schedule = Schedule::of_thread(Duty::Both, now);
            // Not where the kernel does not count.
            let waiting = match schedule.waits {
                Some(_) => Policy::Batch,
                None => Policy::Normal,
            };
            assert_eq!(sys::policy(), Some(waiting));
            for duty in [Duty::In, Duty::Answers] {
                schedule.serve(duty, now);
                assert_eq!(sys::policy(), Some(Policy::Normal), "{duty:?}");
                schedule.serve(Duty::Both, now);
                assert_eq!(sys::policy(), Some(waiting));
            }
            let may_take_more = schedule.take(NICENESS_OUT);
            let takes = [Duty::Out, Duty::Flooded, Duty::Out].map(|duty| {
                schedule.serve(duty, now);
                let is_batch = sys::policy() == Some(Policy::Batch);
                assert_eq!(is_batch, may_take_more, "the share of it or neither");
                rustix::process::getpriority_process(None).expect("it is there")
            });
            if schedule.take(NICENESS_FLOODED) {
                let given = takes[0] - NICENESS_OUT;
                let expected = [NICENESS_OUT, NICENESS_FLOODED, NICENESS_OUT];
                assert_eq!(takes, expected.map(|niceness| given + niceness));
            }
            // It is a mistake now, and is looked at again when it is time.
            schedule.serve(Duty::Both, now);
            schedule.manners.waits = false;
            schedule.manners.since = now;
            schedule.manners.pause = Duration::from_secs(4);
            schedule.adopt(now);
            assert_eq!(sys::policy(), Some(Policy::Normal));
            schedule.look(at(3));
            assert_eq!(sys::policy(), Some(Policy::Normal));
            let tries_again = (0..1000).any(|_| {
                std::thread::spawn(|| ()).join().expect("it does nothing");
                schedule.look_at = at(4);
                schedule.look(at(4));
                sys::policy() == Some(Policy::Batch)
            });
            assert_eq!(tries_again, waiting == Policy::Batch);
        })
        .join()
        .expect("the thread ends well");
    }

    #[test]
    fn a_policy_that_was_given_to_the_daemon_stays() {
        std::thread::spawn(|| {
            sys::schedule(Policy::Batch).expect("it takes no right");
            let mut schedule = Schedule::of_thread(Duty::In, at(0));
            schedule.serve(Duty::Both, at(0));
            schedule.serve(Duty::In, at(0));
            assert_eq!(sys::policy(), Some(Policy::Batch));
        })
        .join()
        .expect("the thread ends well");
    }
}
