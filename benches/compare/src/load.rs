//! What is sent through the tunnels: streams, numbered datagrams, echoes. Generators are threads of
//! this process inside of the namespaces, so that their cost is the same whatever carries them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use warren_packet::arena::Arena;

use crate::bed::{Bed, Side};
use crate::clock::{self, Pace, Stopwatch};
use crate::sys::{self, BATCH};

/// What has arrived so far.
#[derive(Default)]
pub(crate) struct Arrived {
    pub(crate) bytes: AtomicU64,
    pub(crate) datagrams: AtomicU64,
    /// Datagrams with a lower number than one before them.
    pub(crate) reordered: AtomicU64,
    /// Datagrams or pieces of a stream that are not what was sent.
    pub(crate) damaged: AtomicU64,
}

/// A load that runs until it is dropped.
#[derive(Default)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pub(crate) arrived: Arc<Arrived>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Bulk TCP from A to the address of B. What every read begins and ends with is compared with what
/// was sent at that place of the stream; [`carry`] compares every byte.
pub(crate) fn streams(bed: &Bed, to: Ipv4Addr, count: usize) -> Result<Load> {
    let pattern = Arc::new(Pattern::new());
    let mut load = Load::default();
    for _ in 0..count {
        let (sender, receiver) = connect(bed, to)?;
        load.threads.push(thread::spawn({
            let (stop, pattern) = (Arc::clone(&load.stop), Arc::clone(&pattern));
            move || send_stream(sender, &pattern, &stop)
        }));
        load.threads.push(thread::spawn({
            let (arrived, pattern) = (Arc::clone(&load.arrived), Arc::clone(&pattern));
            let stop = Arc::clone(&load.stop);
            move || receive_stream(receiver, &pattern, &arrived, &stop)
        }));
    }
    Ok(load)
}

fn send_stream(mut stream: TcpStream, pattern: &Pattern, stop: &AtomicBool) {
    let mut at = 0;
    while !stop.load(Relaxed) {
        match stream.write(pattern.at(at, 128 << 10)) {
            Ok(written) => at += written as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn receive_stream(mut stream: TcpStream, pattern: &Pattern, arrived: &Arrived, stop: &AtomicBool) {
    let mut buffer = Arena::new(256 << 10);
    let mut at = 0;
    loop {
        match stream.read(&mut buffer) {
            // The sender has shut down, which is how each run ends.
            Ok(0) => break,
            Ok(read) => {
                let piece = read.min(32);
                let whole = buffer[..piece] == *pattern.at(at, piece)
                    && buffer[read - piece..read] == *pattern.at(at + (read - piece) as u64, piece);
                arrived.damaged.fetch_add(u64::from(!whole), Relaxed);
                arrived.bytes.fetch_add(read as u64, Relaxed);
                at += read as u64;
            }
            // A device that loses much may lose what tells of the end, too.
            Err(error) if error.kind() == ErrorKind::WouldBlock && !stop.load(Relaxed) => {}
            Err(_) => break,
        }
    }
}

/// Sends `bytes` of a pseudo-random stream from A to B and compares each on arrival.
pub(crate) fn carry(bed: &Bed, to: Ipv4Addr, bytes: usize) -> Result<()> {
    const CHUNK: usize = 64 << 10;
    const PATIENCE: Duration = Duration::from_secs(10);
    let (mut sender, mut receiver) = connect(bed, to)?;
    sender.set_write_timeout(Some(PATIENCE))?;
    let seed = u64::from_le_bytes(random()?);
    let sending = thread::spawn(move || -> io::Result<()> {
        let mut source = Random(seed | 1);
        let mut chunk = vec![0; CHUNK];
        for _ in 0..bytes / CHUNK {
            source.fill(&mut chunk);
            sender.write_all(&chunk)?;
        }
        sender.shutdown(Shutdown::Write)
    });
    let mut source = Random(seed | 1);
    let (mut wanted, mut chunk) = (vec![0; CHUNK], vec![0; CHUNK]);
    receiver.set_read_timeout(Some(PATIENCE))?;
    for number in 0..bytes / CHUNK {
        source.fill(&mut wanted);
        receiver
            .read_exact(&mut chunk)
            .with_context(|| format!("the stream stopped after {} KiB", number * 64))?;
        ensure!(
            chunk == wanted,
            "the stream differs within 64 KiB from {} KiB on",
            number * 64
        );
    }
    ensure!(
        receiver.read(&mut chunk)? == 0,
        "more came out than went in"
    );
    sending.join().expect("the sender returns its errors")?;
    Ok(())
}

/// A connection from A to B. Both ends wake up now and then to see whether they shall stop.
fn connect(bed: &Bed, to: Ipv4Addr) -> Result<(TcpStream, TcpStream)> {
    let listener = bed.within(Side::B, || Ok(TcpListener::bind((to, 0))?))?;
    let address = listener.local_addr()?;
    let sender = bed.within(Side::A, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(5))
            .context("no TCP connection through the tunnel")
    })?;
    let (receiver, _) = listener.accept()?;
    sender.set_write_timeout(Some(Duration::from_millis(200)))?;
    receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok((sender, receiver))
}

/// How an application sends and receives datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagrams {
    /// Payload of one.
    pub(crate) bytes: usize,
    /// How many leave in one segmented send; 1 for plain sends. With more the receiver takes runs,
    /// too.
    pub(crate) segments: usize,
}

/// Numbered datagrams from A to the address of B, as fast as the sender can: 64 in one call, or one
/// segmented send a call.
pub(crate) fn flood(bed: &Bed, to: Ipv4Addr, shape: Datagrams) -> Result<Load> {
    const BUFFER: usize = 8 << 20;
    let receiver = bed.within(Side::B, || {
        let socket = UdpSocket::bind((to, 0))?;
        SockRef::from(&socket).set_recv_buffer_size(BUFFER)?;
        if shape.segments > 1 {
            sys::set_receive_offload(&socket)?;
        }
        Ok(socket)
    })?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let address = receiver.local_addr()?;
    let sender = bed.within(Side::A, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(address)?;
        SockRef::from(&socket).set_send_buffer_size(BUFFER)?;
        if shape.segments > 1 {
            sys::set_segment_size(&socket, shape.bytes)?;
        }
        Ok(socket)
    })?;
    sender.set_write_timeout(Some(Duration::from_millis(100)))?;

    let mut load = Load::default();
    load.threads.push(thread::spawn({
        let (stop, arrived) = (Arc::clone(&load.stop), Arc::clone(&load.arrived));
        move || receive_datagrams(&receiver, shape, &arrived, &stop)
    }));
    load.threads.push(thread::spawn({
        let stop = Arc::clone(&load.stop);
        move || send_datagrams(&sender, shape, &stop)
    }));
    Ok(load)
}

fn send_datagrams(socket: &UdpSocket, shape: Datagrams, stop: &AtomicBool) {
    let calls = if shape.segments > 1 { 1 } else { BATCH };
    let size = shape.bytes * shape.segments;
    let mut buffers = Arena::new(calls * size);
    buffers.fill(0x5a);
    let mut number = 0_u64;
    while !stop.load(Relaxed) {
        for datagram in buffers.chunks_exact_mut(shape.bytes) {
            stamp(datagram, number);
            number += 1;
        }
        let datagrams: Vec<&[u8]> = buffers.chunks_exact(size).collect();
        let mut sent = 0;
        while sent < datagrams.len() && !stop.load(Relaxed) {
            match sys::send_many(socket, &datagrams[sent..]) {
                Ok(count) => sent += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => {}
                // A full queue on the way drops, as it would without us looking.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => sent += 1,
                Err(_) => return,
            }
        }
    }
}

fn receive_datagrams(socket: &UdpSocket, shape: Datagrams, arrived: &Arrived, stop: &AtomicBool) {
    let (count, room) = match shape.segments {
        // More than one has, so that a longer one shows, and each on a cache line.
        1 => (BATCH, (shape.bytes + 1).next_multiple_of(64)),
        _ => (16, 1 << 16),
    };
    let mut buffers = Arena::new(count * room);
    let mut lengths = Vec::new();
    let mut highest = None;
    while !stop.load(Relaxed) {
        match sys::receive_many(socket, &mut buffers, room, &mut lengths) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        let (mut datagrams, mut bytes, mut reordered, mut damaged) = (0, 0, 0, 0);
        for (buffer, &length) in buffers.chunks_exact(room).zip(&lengths) {
            for datagram in buffer[..length].chunks(shape.bytes) {
                match stamped(datagram, shape.bytes) {
                    Some(number) => {
                        reordered += u64::from(highest.is_some_and(|highest| number < highest));
                        highest = highest.max(Some(number));
                    }
                    None => damaged += 1,
                }
                datagrams += 1;
                bytes += datagram.len() as u64;
            }
        }
        arrived.datagrams.fetch_add(datagrams, Relaxed);
        arrived.bytes.fetch_add(bytes, Relaxed);
        arrived.reordered.fetch_add(reordered, Relaxed);
        arrived.damaged.fetch_add(damaged, Relaxed);
    }
}

/// The number goes to the front and its complement to the end.
fn stamp(datagram: &mut [u8], number: u64) {
    datagram[..8].copy_from_slice(&number.to_le_bytes());
    let end = datagram.len() - 8;
    datagram[end..].copy_from_slice(&(!number).to_le_bytes());
}

/// The number of a datagram that is whole.
fn stamped(datagram: &[u8], bytes: usize) -> Option<u64> {
    if datagram.len() != bytes {
        return None;
    }
    let (front, end) = (datagram.first_chunk()?, datagram.last_chunk()?);
    let (front, end) = (u64::from_le_bytes(*front), u64::from_le_bytes(*end));
    (front == !end).then_some(front)
}

/// Messages that look like initiations and are none, from A to a port of B, as many a second as said.
pub(crate) fn forgeries(bed: &Bed, to: SocketAddr, a_second: u32) -> Result<Load> {
    let socket = bed.within(Side::A, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    let seed = u64::from_le_bytes(random()?);
    let mut load = Load::default();
    load.threads.push(thread::spawn({
        let stop = Arc::clone(&load.stop);
        move || send_forgeries(&socket, Random(seed | 1), a_second, &stop)
    }));
    Ok(load)
}

fn send_forgeries(socket: &UdpSocket, mut random: Random, a_second: u32, stop: &AtomicBool) {
    let mut messages = [[0; 148]; BATCH];
    let (watch, mut sent) = (Stopwatch::start(), 0);
    while !stop.load(Relaxed) {
        for message in &mut messages {
            random.fill(&mut message[4..]);
            message[..4].copy_from_slice(&[1, 0, 0, 0]);
        }
        // What the kernel does not take counts as sent: the rate is what is asked for.
        let _ = sys::send_many(socket, &messages.each_ref().map(<[u8; 148]>::as_slice));
        sent += BATCH as u32;
        let due = Duration::from_secs(1) * sent / a_second;
        if clock::pause(due.saturating_sub(watch.elapsed())).is_err() {
            return;
        }
    }
}

/// How long one echo took.
#[derive(Clone, Copy)]
pub(crate) struct RoundTrip {
    /// Until the kernel had the answer, which is what `ping` tells: the network's part.
    pub(crate) network: Duration,
    /// Until this program had it, which waits for a core as any other does.
    pub(crate) program: Duration,
}

/// What is not answered within it counts as this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Round-trip times of ICMP echoes with 56 bytes, `count` to each of the addresses, the next `interval`
/// after an answer.
///
/// What the one before has left in caches and awake is found by the next, so that each comes after any
/// other in turn.
pub(crate) fn echoes(
    bed: &Bed,
    to: &[Ipv4Addr],
    count: usize,
    interval: Duration,
    pace: &Pace,
) -> Result<Vec<Vec<RoundTrip>>> {
    let sockets: Vec<Socket> = (to.iter())
        .map(|&to| echo_socket(bed, Side::A, to))
        .collect::<Result<_>>()?;
    let mut times = vec![Vec::new(); to.len()];
    let mut order: Vec<usize> = (0..to.len()).collect();
    for number in 0..count {
        shuffle(&mut order)?;
        for &place in &order {
            let answer = echo(&sockets[place], number as u16, PATIENCE)?;
            times[place].push(answer.unwrap_or(RoundTrip {
                network: PATIENCE,
                program: PATIENCE,
            }));
            // Not at fixed times: what is late would be followed at once by what would have come meanwhile.
            pace.rest(interval)?;
        }
    }
    Ok(times)
}

fn shuffle(places: &mut [usize]) -> Result<()> {
    for end in (1..places.len()).rev() {
        let random = getrandom::u32()? as usize;
        places.swap(end, random % (end + 1));
    }
    Ok(())
}

/// Whether one echo is answered within 200 ms.
pub(crate) fn ping_once(bed: &Bed, from: Side, to: Ipv4Addr) -> Result<bool> {
    let socket = echo_socket(bed, from, to)?;
    Ok(echo(&socket, 0, Duration::from_millis(200))?.is_some())
}

fn echo_socket(bed: &Bed, from: Side, to: Ipv4Addr) -> Result<Socket> {
    bed.within(from, || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.connect(&SockAddr::from(SocketAddr::from((to, 0))))?;
        sys::stamp_arrivals(&socket)?;
        Ok(socket)
    })
}

/// None if there was no answer within `patience`.
fn echo(socket: &Socket, number: u16, patience: Duration) -> Result<Option<RoundTrip>> {
    const ID: [u8; 2] = *b"Wb";
    let mut request = [0x5a; 64];
    request[..4].copy_from_slice(&[8, 0, 0, 0]);
    request[4..6].copy_from_slice(&ID);
    request[6..8].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(&request);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let (sent, watch) = (clock::since_epoch(), Stopwatch::start());
    match socket.send(&request) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    loop {
        let left = patience.saturating_sub(watch.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 256];
        let (received, arrived) = match sys::receive_stamped(socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => bail!(error),
        };
        // A raw socket shows the IP header, which has 20 bytes, and what others were answered.
        if let Some(answer) = buffer[..received].get(20..28)
            && answer[0] == 0
            && answer[4..6] == ID
            && answer[6..8] == number.to_be_bytes()
        {
            return Ok(Some(RoundTrip {
                network: (arrived.checked_sub(sent))
                    .context("the clock was set back while an echo was under way")?,
                program: watch.elapsed(),
            }));
        }
    }
}

fn checksum(message: &[u8]) -> u16 {
    let mut sum: u32 = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A megabyte of pseudo-random bytes again and again.
struct Pattern {
    bytes: Arena,
}

impl Pattern {
    const PERIOD: usize = 1 << 20;

    fn new() -> Pattern {
        let mut bytes = Arena::new(Self::PERIOD + (256 << 10));
        Random(0x9e37_79b9_7f4a_7c15).fill(&mut bytes[..Self::PERIOD]);
        bytes.copy_within(..256 << 10, Self::PERIOD);
        Pattern { bytes }
    }

    /// Up to 256 KiB from a place of the stream on.
    fn at(&self, place: u64, length: usize) -> &[u8] {
        let from = place as usize % Self::PERIOD;
        &self.bytes[from..from + length]
    }
}

/// xorshift64: what it makes has no short period and costs little beside a tunnel.
struct Random(u64);

impl Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Pattern, Random, checksum, stamp, stamped};

    #[test]
    fn a_datagram_that_was_cut_or_changed_has_no_number() {
        let mut datagram = [0; 64];
        stamp(&mut datagram, 7);
        assert_eq!(stamped(&datagram, 64), Some(7));
        assert_eq!(stamped(&datagram[..63], 64), None);
        datagram[63] ^= 1;
        assert_eq!(stamped(&datagram, 64), None);
    }

    #[test]
    fn the_pattern_of_a_stream_goes_on_where_its_period_ends() {
        let pattern = Pattern::new();
        let end = Pattern::PERIOD as u64;
        assert_eq!(pattern.at(end - 8, 16)[8..], pattern.at(0, 8)[..]);
        assert_ne!(pattern.at(0, 8), pattern.at(8, 8));
    }

    #[test]
    fn one_seed_makes_one_stream() {
        let draw = |seed| {
            let mut bytes = [0; 32];
            Random(seed).fill(&mut bytes);
            bytes
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(5));
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
