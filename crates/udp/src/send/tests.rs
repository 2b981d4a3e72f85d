//! Sending through a kernel that refuses what it is told to refuse.

use std::cell::RefCell;
use std::net::Ipv4Addr;

use warren_packet::{Ecn, Source};

use super::*;

const STRIDE: usize = 100;
const START: Duration = Duration::from_secs(1000);

/// What a [`FakeKernel`] says to a message.
type Policy = Box<dyn Fn(&Outgoing<'_>) -> Option<Errno>>;

/// Takes messages until its policy or its buffer stops it, as `sendmmsg` does.
struct FakeKernel {
    policy: Policy,
    /// How many messages it takes in each call, the last for all that follow.
    takes: RefCell<Vec<usize>>,
    sent: RefCell<Vec<Sent>>,
    calls: RefCell<usize>,
}

/// A message that a [`FakeKernel`] took.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    payload: Vec<u8>,
    segment: Option<u16>,
    sourced: bool,
    tos: u8,
}

impl FakeKernel {
    fn new(policy: impl Fn(&Outgoing<'_>) -> Option<Errno> + 'static) -> Self {
        Self {
            policy: Box::new(policy),
            takes: RefCell::new(vec![sys::BATCH]),
            sent: RefCell::default(),
            calls: RefCell::default(),
        }
    }

    fn taking(self, takes: &[usize]) -> Self {
        self.takes.replace(takes.to_vec());
        self
    }

    fn payloads(&self) -> Vec<u8> {
        let sent = self.sent.borrow();
        sent.iter().flat_map(|sent| sent.payload.clone()).collect()
    }

    fn segments(&self) -> Vec<Option<u16>> {
        self.sent.borrow().iter().map(|sent| sent.segment).collect()
    }
}

impl Outlet for FakeKernel {
    fn send<'a>(&self, messages: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        *self.calls.borrow_mut() += 1;
        assert!(*self.calls.borrow() < 1000, "it goes on for ever");
        let mut takes = self.takes.borrow_mut();
        let room = if takes.len() > 1 {
            takes.remove(0)
        } else {
            takes[0]
        };
        let mut sent = 0;
        for message in messages.take(sys::BATCH) {
            let errno = match (self.policy)(&message) {
                None if sent < room => None,
                None => Some(Errno::AGAIN),
                refused => refused,
            };
            match errno {
                None => self.sent.borrow_mut().push(Sent {
                    payload: message.payload.to_vec(),
                    segment: message.segment,
                    sourced: message.source.is_some(),
                    tos: message.tos,
                }),
                Some(errno) if sent == 0 => return Err(errno.into()),
                Some(_) => break,
            }
            sent += 1;
        }
        Ok(sent)
    }
}

#[test]
fn a_run_leaves_as_one_segmented_send_and_a_single_datagram_as_itself() {
    let kernel = FakeKernel::new(|_| None);
    let (arena, mut transmits) = batch(&[250, 100, 40]);
    let (finished, failed) = send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
    assert_eq!((finished, failed), (3, vec![]));
    assert_eq!(kernel.segments(), [Some(100), None, None]);
    assert_eq!(kernel.payloads(), arena);
}

#[test]
fn without_segmentation_each_datagram_leaves_by_itself() {
    let kernel = FakeKernel::new(|_| None);
    let (arena, mut transmits) = batch(&[250, 100]);
    let (finished, failed) = send(&Sender::new(false), &kernel, START, &arena, &mut transmits);
    assert_eq!((finished, failed), (2, vec![]));
    assert_eq!(kernel.segments(), [None; 4]);
    assert_eq!(kernel.payloads(), arena);
}

#[test]
fn a_partial_sendmmsg_resumes_where_it_stopped() {
    for segmentation in [true, false] {
        for takes in 1..8 {
            let kernel = FakeKernel::new(|_| None).taking(&[takes]);
            let (arena, mut transmits) = batch(&[250, 640, 100, 330]);
            let sender = Sender::new(segmentation);
            let (finished, failed) = send(&sender, &kernel, START, &arena, &mut transmits);
            assert_eq!((finished, failed), (4, vec![]));
            assert_eq!(kernel.payloads(), arena, "{takes} at a time");
        }
    }
}

#[test]
fn a_full_buffer_in_the_middle_of_a_transmit_leaves_the_rest_of_it() {
    let kernel = FakeKernel::new(|_| None).taking(&[3, 0, sys::BATCH]);
    let (arena, mut transmits) = batch(&[100, 450, 200]);
    let sender = Sender::new(false);
    let (finished, failed) = send(&sender, &kernel, START, &arena, &mut transmits);
    assert_eq!((finished, failed), (1, vec![]));
    assert_eq!(transmits[1].range, 300..550);
    let (finished, failed) = send(&sender, &kernel, START, &arena, &mut transmits[1..]);
    assert_eq!((finished, failed), (2, vec![]));
    assert_eq!(kernel.payloads(), arena);
}

#[test]
fn eio_switches_segmentation_off_for_the_socket() {
    let kernel = FakeKernel::new(|message| message.segment.map(|_| Errno::IO));
    let (arena, mut transmits) = batch(&[250, 250]);
    let sender = Sender::new(true);
    let (finished, failed) = send(&sender, &kernel, START, &arena, &mut transmits);
    assert_eq!((finished, failed), (2, vec![]));
    assert_eq!(kernel.payloads(), arena);
    assert!(!sender.segments());
}

#[test]
fn emsgsize_and_einval_switch_segmentation_off_for_the_destination_and_a_minute() {
    for errno in [Errno::MSGSIZE, Errno::INVAL] {
        let narrow = remote(2);
        let kernel = FakeKernel::new(move |message| {
            (message.segment.is_some() && message.remote == narrow).then_some(errno)
        });
        let sender = Sender::new(true);
        let (arena, mut transmits) = batch(&[250, 250, 250]);
        transmits[1].remote = narrow;
        let (finished, failed) = send(&sender, &kernel, START, &arena, &mut transmits);
        assert_eq!((finished, failed), (3, vec![]));
        assert_eq!(kernel.payloads(), arena);
        let expected = [Some(100), None, None, None, Some(100)];
        assert_eq!(kernel.segments(), expected, "{errno}");
        assert!(sender.segments());

        // Within the minute nothing is tried in vain.
        let calls = *kernel.calls.borrow();
        let (arena, mut transmits) = batch(&[250]);
        transmits[0].remote = narrow;
        send(
            &sender,
            &kernel,
            START + Duration::from_secs(59),
            &arena,
            &mut transmits,
        );
        assert_eq!(*kernel.calls.borrow(), calls + 1);

        // After it the path has another chance.
        let willing = FakeKernel::new(|_| None);
        let (arena, mut transmits) = batch(&[250]);
        transmits[0].remote = narrow;
        send(
            &sender,
            &willing,
            START + UNSEGMENTED,
            &arena,
            &mut transmits,
        );
        assert_eq!(willing.segments(), [Some(100)]);
    }
}

#[test]
fn a_source_that_is_gone_is_reported_and_left_out_without_blaming_the_segments() {
    for errno in [
        Errno::INVAL,
        Errno::NETUNREACH,
        Errno::NODEV,
        Errno::ADDRNOTAVAIL,
    ] {
        let kernel = FakeKernel::new(move |message| message.source.map(|_| errno));
        let (arena, mut transmits) = batch(&[250, 100]);
        transmits[0].source = Some(source());
        let sender = Sender::new(true);
        let (finished, failed) = send(&sender, &kernel, START, &arena, &mut transmits);
        let gone = Failed {
            tag: 0,
            kind: Failure::SourceGone,
            datagrams: 0,
        };
        assert_eq!((finished, failed), (2, vec![gone]));
        assert_eq!(kernel.segments(), [Some(100), None]);
        assert_eq!(kernel.payloads(), arena);
        assert_eq!(transmits[0].source, None);
    }
}

#[test]
fn refused_segments_are_not_blamed_on_the_source() {
    let kernel = FakeKernel::new(|message| message.segment.map(|_| Errno::INVAL));
    let (arena, mut transmits) = batch(&[250]);
    transmits[0].source = Some(source());
    let (finished, failed) = send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
    assert_eq!((finished, failed), (1, vec![]));
    assert!(kernel.sent.borrow().iter().all(|sent| sent.sourced));
    assert_eq!(kernel.payloads(), arena);
}

#[test]
fn a_dead_source_and_refused_segments_at_once_are_both_found() {
    let kernel = FakeKernel::new(|message| {
        (message.segment.is_some() || message.source.is_some()).then_some(Errno::INVAL)
    });
    let (arena, mut transmits) = batch(&[250]);
    transmits[0].source = Some(source());
    let (finished, failed) = send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
    assert_eq!(finished, 1);
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].kind, Failure::SourceGone);
    assert_eq!(kernel.payloads(), arena);
}

#[test]
fn transient_errors_of_one_destination_end_nothing_and_are_told_by_name() {
    for (errno, kind) in [
        (Errno::CONNREFUSED, Failure::Refused),
        (Errno::NETUNREACH, Failure::Unreachable),
        (Errno::HOSTUNREACH, Failure::Unreachable),
        (Errno::PERM, Failure::Forbidden),
        (Errno::NOBUFS, Failure::NoBuffers),
        (Errno::MSGSIZE, Failure::TooLarge),
        (Errno::INVAL, Failure::Other),
    ] {
        let dead = remote(2);
        let kernel = FakeKernel::new(move |message| (message.remote == dead).then_some(errno));
        let (arena, mut transmits) = batch(&[250, 250, 100]);
        transmits[1].remote = dead;
        let (finished, failed) = send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
        let expected = Failed {
            tag: 1,
            kind,
            datagrams: 3,
        };
        assert_eq!((finished, failed), (3, vec![expected]), "{errno}");
        assert_eq!(kernel.payloads(), [&arena[..250], &arena[500..]].concat());
    }
}

#[test]
fn what_was_sent_is_told_by_tag_and_what_was_not_is_left_out() {
    let dead = remote(2);
    let kernel = FakeKernel::new(move |message| (message.remote == dead).then_some(Errno::PERM));
    let kernel = kernel.taking(&[2, 1, sys::BATCH]);
    let (arena, mut transmits) = batch(&[100, 250, 250, 100]);
    transmits[1].tag = 0;
    transmits[2].remote = dead;
    let mut report = SendReport::default();
    let sender = Sender::new(false);
    let finished = sender.send(&kernel, START, &arena, &mut transmits, &mut report);
    assert_eq!(finished, 4);
    let sent: Vec<_> = report
        .drain_sent()
        .map(|sent| (sent.tag, sent.bytes, sent.datagrams))
        .collect();
    assert_eq!(sent, [(0, 350, 4), (3, 100, 1)]);
}

#[test]
fn a_source_is_not_blamed_for_a_host_that_cannot_be_reached_without_it_either() {
    let kernel = FakeKernel::new(|_| Some(Errno::NETUNREACH));
    let (arena, mut transmits) = batch(&[250]);
    transmits[0].source = Some(source());
    let (finished, failed) = send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
    let expected = Failed {
        tag: 0,
        kind: Failure::Unreachable,
        datagrams: 3,
    };
    assert_eq!((finished, failed), (1, vec![expected]));
    assert_eq!(transmits[0].source, Some(source()));
}

#[test]
fn an_interrupted_call_is_made_again() {
    let interrupted = std::cell::Cell::new(false);
    let kernel = FakeKernel::new(move |_| (!interrupted.replace(true)).then_some(Errno::INTR));
    let (arena, mut transmits) = batch(&[250]);
    let (finished, failed) = send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
    assert_eq!((finished, failed), (1, vec![]));
    assert_eq!(kernel.payloads(), arena);
}

#[test]
fn more_transmits_than_one_call_takes_all_leave_in_order() {
    let kernel = FakeKernel::new(|_| None);
    let (arena, mut transmits) = batch(&[30; 3 * sys::BATCH + 5]);
    let count = transmits.len();
    let (finished, failed) = send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
    assert_eq!((finished, failed), (count, vec![]));
    assert_eq!(kernel.payloads(), arena);
}

#[test]
fn the_mark_takes_the_two_low_bits_of_the_tos_byte() {
    let kernel = FakeKernel::new(|_| None);
    let (arena, mut transmits) = batch(&[10, 10]);
    transmits[0].tos = 0x88;
    transmits[1].tos = 0x8b;
    transmits[1].ecn = Ecn::Ect0;
    send(&Sender::new(true), &kernel, START, &arena, &mut transmits);
    let sent = kernel.sent.borrow();
    assert_eq!([sent[0].tos, sent[1].tos], [0x88, 0x8a]);
}

#[test]
fn unsegmented_destinations_are_bounded() {
    let unsegmented = Unsegmented::default();
    for n in 0..2 * MAX_UNSEGMENTED as u64 {
        unsegmented.insert(remote(n as u16), START + Duration::from_millis(n));
    }
    let now = unsegmented.at(START);
    assert!(!now.holds(&remote(0)));
    assert!(now.holds(&remote(2 * MAX_UNSEGMENTED as u16 - 1)));
    drop(now);
    assert_eq!(unsegmented.count.load(Ordering::Relaxed), MAX_UNSEGMENTED);
    assert!(!unsegmented.at(START + 2 * UNSEGMENTED).holds(&remote(2047)));
    assert_eq!(unsegmented.count.load(Ordering::Relaxed), 0);
}

fn send(
    sender: &Sender,
    kernel: &FakeKernel,
    now: Duration,
    arena: &[u8],
    transmits: &mut [Transmit],
) -> (usize, Vec<Failed>) {
    let mut report = SendReport::default();
    let before = kernel.payloads().len();
    let finished = sender.send(kernel, now, arena, transmits, &mut report);
    let sent: u64 = report.drain_sent().map(|sent| sent.bytes).sum();
    assert_eq!(sent, (kernel.payloads().len() - before) as u64);
    (finished, report.drain().collect())
}

/// Transmits of these lengths, one after the other, tagged by their place.
fn batch(lens: &[usize]) -> (Vec<u8>, Vec<Transmit>) {
    let mut end = 0;
    let transmits = lens.iter().zip(0..).map(|(&len, tag)| {
        let start = end;
        end += len;
        Transmit {
            range: start..end,
            stride: STRIDE,
            remote: remote(1),
            source: None,
            ecn: Ecn::NotEct,
            tos: 0,
            tag,
        }
    });
    let transmits = transmits.collect();
    ((0..end).map(|n| (n % 251) as u8).collect(), transmits)
}

fn remote(port: u16) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, 1), port).into()
}

fn source() -> Source {
    Source {
        ip: Ipv4Addr::new(192, 0, 2, 7).into(),
        interface: 3,
    }
}
