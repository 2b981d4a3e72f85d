//! What is on the wire: a packet socket, or netfilter's log where that may not be opened, and what each
//! frame of it is.
//!
//! Frames are read here from their bytes and not by the crates that make them, since this is what
//! those are judged by. Whatever is not recognised counts as "other" and is searched for the marker
//! and for the mesh's addresses all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use warren_netlink::Tap;

use crate::sys::{Frame, PacketSocket};

/// Room for frames that wait to be read.
const WAITING_BYTES: usize = 64 << 20;
/// The largest frame there is, with its offload header: larger ones are cut off, not lost.
const FRAME_MAX: usize = 128 << 10;
/// Frames looked at between two looks whether it is over: more than can wait.
const FRAMES: usize = 1 << 20;
/// How long a reader that was stopped waits for a last frame.
const LINGER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
/// Of how many sorts of leaks each is kept in words; more are only counted.
const SORTS: usize = 16;

/// Padding makes every data message a multiple of this many bytes.
const STEP: usize = 16;

const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
/// A link without a header of its own.
const ARPHRD_NONE: u16 = 0xfffe;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// What to look for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// On which interfaces, by index, and there only what travels in one direction.
    pub(crate) interfaces: BTreeMap<u32, Heard>,
    /// Prefixes whose addresses should never be seen.
    pub(crate) mesh: Vec<IpNet>,
    /// But for these, which are behind this host or exceptions: nor is a frame counted that goes to one, or
    /// comes from one.
    pub(crate) open: Vec<IpNet>,
    /// Of which these are not.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Where an overlay is what should never be seen, its UDP ports: nothing else is looked for then.
    pub(crate) overlay_ports: BTreeSet<u16>,
    /// Bytes that should never be seen; none if empty.
    pub(crate) marker: Vec<u8>,
    /// The UDP ports of tunnels.
    pub(crate) ports: BTreeSet<u16>,
}

/// Which of an interface's frames count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Those that arrive.
    Incoming,
    /// Both, told apart.
    Both,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// All frames that count.
    pub(crate) frames: u64,
    /// Messages of tunnels.
    pub(crate) flows: BTreeMap<Flow, Messages>,
    /// Frames with an address of the mesh in the clear: whether on their way out, and in words.
    pub(crate) clear: BTreeMap<(bool, String), u64>,
    /// How many of those there were.
    pub(crate) clear_frames: u64,
    /// And how many of them were on their way out.
    pub(crate) clear_out: u64,
    /// Frames with the marker.
    pub(crate) marked: u64,
    /// UDP datagrams at a tunnel's port that are no message of it, or begin like none.
    pub(crate) strange: u64,
    /// Everything else: address resolution and what other programs send.
    pub(crate) other: u64,
    /// Frames that were missed.
    pub(crate) lost: u64,
}

/// From where to where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    pub(crate) outgoing: bool,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// Messages of WireGuard by their type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Messages {
    pub(crate) initiations: u64,
    pub(crate) responses: u64,
    pub(crate) cookie_replies: u64,
    pub(crate) keepalives: u64,
    pub(crate) data: u64,
    pub(crate) data_bytes: u64,
    /// Data messages by their length.
    pub(crate) lengths: BTreeMap<usize, u64>,
}

impl Seen {
    /// All messages of all flows.
    pub(crate) fn messages(&self) -> Messages {
        let mut sum = Messages::default();
        for messages in self.flows.values() {
            sum.initiations += messages.initiations;
            sum.responses += messages.responses;
            sum.cookie_replies += messages.cookie_replies;
            sum.keepalives += messages.keepalives;
            sum.data += messages.data;
            sum.data_bytes += messages.data_bytes;
        }
        sum
    }

    /// How many frames carried something of the mesh in the clear.
    pub(crate) fn leaks(&self) -> u64 {
        self.clear_frames.max(self.marked)
    }
}

/// Listens on a thread of its own until it is stopped.
#[derive(Debug)]
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    marked: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<Seen>>,
}

/// What hears frames.
#[derive(Debug)]
pub(crate) enum Wiretap {
    /// Every frame of every interface.
    Packets(PacketSocket),
    /// The packets that netfilter was asked for.
    Log(Box<Tap>),
}

/// A packet socket in the network namespace of the thread that opens it.
pub(crate) fn open() -> io::Result<Wiretap> {
    PacketSocket::open(WAITING_BYTES).map(Wiretap::Packets)
}

impl Wiretap {
    /// The log, with room for what waits to be read.
    pub(crate) fn log(tap: Tap) -> Self {
        // Refused to whoever is root in a user namespace alone; what does not fit is counted.
        let _bounded = set_socket_recv_buffer_size_force(&tap, WAITING_BYTES);
        Self::Log(Box::new(tap))
    }

    fn next<'a>(&'a mut self, buffer: &'a mut [u8]) -> io::Result<Option<(Frame, &'a [u8])>> {
        match self {
            Self::Packets(socket) => socket.next(buffer),
            Self::Log(tap) => Ok(tap.hear()?.map(|tapped| {
                let frame = Frame {
                    interface: tapped.interface,
                    outgoing: tapped.outgoing,
                    link: ARPHRD_NONE,
                    segment: None,
                };
                (frame, tapped.bytes)
            })),
        }
    }

    fn lost(&mut self) -> io::Result<u64> {
        match self {
            Self::Packets(socket) => socket.lost().map(u64::from),
            Self::Log(tap) => tap.lost().map_err(io::Error::other),
        }
    }
}

impl AsFd for Wiretap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Packets(socket) => socket.as_fd(),
            Self::Log(tap) => tap.as_fd(),
        }
    }
}

impl Capture {
    /// Reads what `wiretap` hears, from whatever thread.
    pub(crate) fn start(wiretap: Wiretap, filter: Filter) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let marked = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&marked));
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || listen(wiretap, &filter, &stopped, &counted))?;
        Ok(Self {
            stop,
            marked,
            thread,
        })
    }

    /// How many frames with the marker were seen until now.
    pub(crate) fn marked(&self) -> u64 {
        self.marked.load(Ordering::Relaxed)
    }

    /// Reads what has been heard until now, and ends.
    pub(crate) fn stop(self) -> io::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(seen) => seen,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn listen(
    mut wiretap: Wiretap,
    filter: &Filter,
    stop: &AtomicBool,
    marked: &AtomicU64,
) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        // Whoever sends faster than this looks does not keep it from its end.
        let mut left = FRAMES;
        while left > 0
            && let Some((frame, bytes)) = wiretap.next(&mut buffer)?
        {
            seen.frame(frame, bytes, filter);
            left -= 1;
        }
        marked.store(seen.marked, Ordering::Relaxed);
        if stopping {
            seen.lost = wiretap.lost()? + u64::from(left == 0);
            return Ok(seen);
        }
        poll(&mut [PollFd::new(&wiretap, PollFlags::IN)], Some(&LINGER))
            .map(drop)
            .or_else(|errno| match errno {
                rustix::io::Errno::INTR => Ok(()),
                errno => Err(errno),
            })?;
    }
}

impl Seen {
    fn frame(&mut self, frame: Frame, bytes: &[u8], filter: &Filter) {
        let Some(heard) = filter.interfaces.get(&frame.interface) else {
            return;
        };
        if *heard == Heard::Incoming && frame.outgoing {
            return;
        }
        self.frames += 1;
        let marker = &filter.marker;
        if !marker.is_empty() && bytes.windows(marker.len()).any(|window| window == marker) {
            self.marked += 1;
        }
        let Some((kind, packet)) = strip_link(frame.link, bytes) else {
            self.other += 1;
            return;
        };
        let addresses = addresses(kind, packet);
        if filter.is_clear(frame.outgoing, kind, packet, &addresses) {
            self.clear_frames += 1;
            self.clear_out += u64::from(frame.outgoing);
            let sort = (frame.outgoing, in_words(kind, packet, &addresses));
            if self.clear.len() < SORTS || self.clear.contains_key(&sort) {
                *self.clear.entry(sort).or_default() += 1;
            }
            return;
        }
        let Some(datagram) = Datagram::read(kind, packet) else {
            self.other += 1;
            return;
        };
        let ports = [datagram.from.port(), datagram.to.port()];
        if !ports.iter().any(|port| filter.ports.contains(port)) {
            self.other += 1;
            return;
        }
        let flow = Flow {
            outgoing: frame.outgoing,
            from: datagram.from,
            to: datagram.to,
        };
        let stride = frame.segment.unwrap_or_else(|| stride(datagram.payload));
        // A datagram without payload is one, too.
        if datagram.payload.is_empty() {
            self.strange += 1;
        }
        for message in datagram.payload.chunks(stride) {
            match self.flows.entry(flow).or_default().count(message) {
                true => {}
                false => self.strange += 1,
            }
        }
    }
}

impl Filter {
    /// Whether a frame has something of the mesh in the clear that should not be there.
    fn is_clear(&self, outgoing: bool, kind: u16, packet: &[u8], addresses: &[IpAddr]) -> bool {
        let within =
            |nets: &[IpNet], address: &IpAddr| nets.iter().any(|net| net.contains(address));
        let is_open =
            |address: &IpAddr| within(&self.open, address) && !self.addresses.contains(address);
        let is_closed = |address: &IpAddr| within(&self.mesh, address) && !is_open(address);
        if !self.overlay_ports.is_empty() {
            return Datagram::read(kind, packet).is_some_and(|datagram| {
                let far = if outgoing { datagram.to } else { datagram.from };
                self.overlay_ports.contains(&datagram.to.port()) && is_closed(&far.ip())
            });
        }
        // What goes to a pod of this host, or comes from one, is on its way to the tunnel or from it.
        let [from, to] = [addresses.first(), addresses.get(1)];
        let near = if outgoing { to } else { from };
        !near.is_some_and(is_open) && addresses.iter().any(is_closed)
    }
}

/// The length of each message, where a payload is many of a length: behind the first is another's header that
/// says the same but the next number (section 5.4.6 of the paper). Only packet sockets tell it.
fn stride(payload: &[u8]) -> usize {
    let next = || {
        let (header, _) = payload.split_first_chunk::<STEP>()?;
        let number = u64::from_le_bytes(*header.last_chunk()?);
        let mut next = *header;
        next[8..].copy_from_slice(&number.wrapping_add(1).to_le_bytes());
        let mut steps = payload.chunks_exact(STEP);
        steps.position(|step| *step == next)
    };
    match (payload.first(), next()) {
        (Some(4), Some(steps)) => steps * STEP,
        _ => usize::MAX,
    }
}

impl Messages {
    /// Counts a message by its type and length (section 5.4 of the paper); `false` if it is none.
    fn count(&mut self, message: &[u8]) -> bool {
        let Some((kind, _)) = message.split_first_chunk::<4>() else {
            return false;
        };
        match (kind, message.len()) {
            ([1, 0, 0, 0], 148) => self.initiations += 1,
            ([2, 0, 0, 0], 92) => self.responses += 1,
            ([3, 0, 0, 0], 64) => self.cookie_replies += 1,
            ([4, 0, 0, 0], 32) => self.keepalives += 1,
            ([4, 0, 0, 0], len @ 33..) => {
                self.data += 1;
                self.data_bytes += len as u64;
                *self.lengths.entry(len).or_default() += 1;
            }
            _ => return false,
        }
        true
    }
}

/// The type of what is in a frame, and its bytes.
fn strip_link(link: u16, bytes: &[u8]) -> Option<(u16, &[u8])> {
    if !matches!(link, ARPHRD_ETHER | ARPHRD_LOOPBACK) {
        return match bytes.first()? >> 4 {
            4 => Some((IPV4, bytes)),
            6 => Some((IPV6, bytes)),
            _ => None,
        };
    }
    let mut rest = bytes.get(12..)?;
    loop {
        let (kind, packet) = rest.split_first_chunk::<2>()?;
        match u16::from_be_bytes(*kind) {
            // Tags of virtual networks.
            0x8100 | 0x88a8 => rest = packet.get(2..)?,
            kind => return Some((kind, packet)),
        }
    }
}

/// Every address that a packet names in its headers, and in what resolves addresses.
fn addresses(kind: u16, packet: &[u8]) -> Vec<IpAddr> {
    let found = match kind {
        IPV4 => vec![v4(packet, 12), v4(packet, 16)],
        // A reply is addressed to whoever asked, and says nothing of what they call themselves.
        ARP if packet.get(7) == Some(&2) => vec![v4(packet, 14)],
        ARP => vec![v4(packet, 14), v4(packet, 24)],
        IPV6 => {
            let mut found = vec![v6(packet, 8), v6(packet, 24)];
            // Neighbour solicitation and advertisement say for whom.
            if packet.get(6) == Some(&58) && matches!(packet.get(40), Some(135 | 136)) {
                found.push(v6(packet, 48));
            }
            found
        }
        _ => Vec::new(),
    };
    found.into_iter().flatten().collect()
}

fn in_words(kind: u16, packet: &[u8], addresses: &[IpAddr]) -> String {
    let protocol = match kind {
        IPV4 => packet.get(9),
        IPV6 => packet.get(6),
        _ => None,
    };
    let what = match (kind, protocol) {
        (ARP, _) => "ARP".to_owned(),
        (_, Some(1 | 58)) => "ICMP".to_owned(),
        (_, Some(6)) => "TCP".to_owned(),
        (_, Some(17)) => "UDP".to_owned(),
        (_, Some(protocol)) => format!("protocol {protocol}"),
        (kind, None) => format!("type {kind:#06x}"),
    };
    match addresses {
        [from, to, ..] => format!("{what} from {from} to {to}"),
        [from] => format!("{what} from {from}"),
        _ => what,
    }
}

/// A UDP datagram.
struct Datagram<'a> {
    from: SocketAddr,
    to: SocketAddr,
    payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// The datagram in a packet; `None` if there is none, or less than its headers.
    fn read(kind: u16, packet: &'a [u8]) -> Option<Self> {
        let (from, to, udp) = match kind {
            IPV4 => {
                let is_first = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff == 0;
                if packet.get(9) != Some(&17) || !is_first {
                    return None;
                }
                let header = usize::from(packet[0] & 0xf) * 4;
                let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                // What the card will cut may say 0; what is short was padded by the link.
                let packet = match total {
                    0 => packet,
                    total => packet.get(..total).unwrap_or(packet),
                };
                (v4(packet, 12)?, v4(packet, 16)?, packet.get(header..)?)
            }
            IPV6 if packet.get(6) == Some(&17) => {
                let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                let udp = packet.get(40..)?;
                let udp = match length {
                    0 => udp,
                    length => udp.get(..length).unwrap_or(udp),
                };
                (v6(packet, 8)?, v6(packet, 24)?, udp)
            }
            _ => return None,
        };
        let (header, payload) = udp.split_first_chunk::<8>()?;
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Self {
            from: SocketAddr::new(from, port(0)),
            to: SocketAddr::new(to, port(2)),
            payload,
        })
    }
}

fn v4(packet: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = *packet.get(at..)?.first_chunk()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(packet: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = *packet.get(at..)?.first_chunk()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 51820;

    #[test]
    fn messages_of_a_tunnel_are_told_by_type_and_segment() {
        let mut payload = [message(4, 1456), message(4, 1456), message(4, 96)].concat();
        let seen = look(&udp(&payload), Some(1456));
        let messages = seen.messages();
        assert_eq!((messages.data, messages.data_bytes), (3, 3008));
        assert_eq!((seen.strange, seen.other, seen.clear_frames), (0, 0, 0));

        payload = message(1, 148);
        assert_eq!(look(&udp(&payload), None).messages().initiations, 1);
        payload = message(4, 32);
        assert_eq!(look(&udp(&payload), None).messages().keepalives, 1);
        payload = message(1, 149);
        assert_eq!(look(&udp(&payload), None).strange, 1);
        assert_eq!(look(&udp(b"plain words at the port"), None).strange, 1);
    }

    #[test]
    fn an_address_of_the_mesh_is_seen_in_every_packet_that_can_carry_one() {
        let mut packet = udp(b"x");
        packet[14 + 16..14 + 20].copy_from_slice(&[10, 77, 0, 2]);
        let seen = look(&packet, None);
        assert_eq!(seen.clear_frames, 1);
        assert_eq!(
            seen.clear.keys().next(),
            Some(&(false, "UDP from 192.0.2.1 to 10.77.0.2".to_owned()))
        );

        let mut who_has = vec![0xff; 12];
        who_has.extend([0x08, 0x06]);
        who_has.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
        who_has.extend([192, 0, 2, 1]);
        who_has.extend([0; 6]);
        who_has.extend([10, 77, 0, 2]);
        assert_eq!(look(&who_has, None).clear_frames, 1);

        // Who asked with an address of the mesh is answered.
        let mut is_at = who_has.clone();
        is_at[14 + 7] = 2;
        assert_eq!(look(&is_at, None).clear_frames, 0);
        is_at[14 + 14..14 + 18].copy_from_slice(&[10, 77, 0, 1]);
        assert_eq!(look(&is_at, None).clear_frames, 1);
    }

    #[test]
    fn what_is_behind_this_host_may_be_spoken_to_by_the_mesh_and_nowhere_else() {
        let net = |text: &str| -> IpNet { text.parse().expect("a prefix") };
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let filter = Filter {
            mesh: vec![net("10.77.0.0/16")],
            open: vec![net("10.77.1.0/24")],
            addresses: [ip("10.77.1.0")].into(),
            ..Filter::default()
        };
        let is_clear = |outgoing, from, to| {
            let addresses = [ip(from), ip(to)];
            filter.is_clear(outgoing, IPV4, &[], &addresses)
        };
        // On the way between the tunnel and a pod.
        assert!(!is_clear(true, "10.77.2.5", "10.77.1.5"));
        assert!(!is_clear(false, "10.77.1.5", "10.77.2.5"));
        // A pod and the world.
        assert!(!is_clear(true, "10.77.1.5", "198.51.100.1"));
        // By a card, past the tunnel.
        assert!(is_clear(true, "10.77.1.5", "10.77.2.5"));
        assert!(is_clear(true, "192.0.2.1", "10.77.2.5"));
        assert!(is_clear(true, "10.77.1.0", "198.51.100.1"));
        assert!(is_clear(false, "10.77.2.5", "10.77.1.5"));
    }

    #[test]
    fn of_an_overlay_its_port_is_what_counts() {
        let filter = Filter {
            mesh: vec!["0.0.0.0/0".parse().expect("a prefix")],
            open: vec!["192.0.2.9/32".parse().expect("a prefix")],
            overlay_ports: [PORT].into(),
            ..Filter::default()
        };
        let mut frame = udp(b"wrapped");
        let is_clear = |frame: &[u8]| filter.is_clear(true, IPV4, &frame[14..], &[]);
        assert!(is_clear(&frame));
        frame[14 + 19] = 9;
        assert!(!is_clear(&frame), "an exception");
        frame[14 + 19] = 2;
        frame[14 + 22] ^= 1;
        assert!(!is_clear(&frame), "another port");
    }

    #[test]
    fn messages_of_one_length_are_told_apart_without_being_told_the_length() {
        let numbered = |number: u64, len| {
            let mut message = message(4, len);
            message[4..8].copy_from_slice(b"peer");
            message[8..16].copy_from_slice(&number.to_le_bytes());
            message
        };
        let run = [numbered(7, 320), numbered(8, 320), numbered(9, 96)].concat();
        let seen = look(&udp(&run), None).messages();
        assert_eq!((seen.data, seen.data_bytes), (3, 736));
        // Numbers that do not follow each other are no run.
        let one = [numbered(7, 320), numbered(9, 320)].concat();
        assert_eq!(look(&udp(&one), None).messages().data, 1);
    }

    #[test]
    fn the_marker_is_found_wherever_it_is() {
        assert_eq!(look(&udp(b"nothing"), None).marked, 0);
        assert_eq!(look(&udp(b"some marker here"), None).marked, 1);
        assert_eq!(look(b"no frame at all, but a marker", None).marked, 1);
    }

    #[test]
    fn no_cut_of_a_frame_is_too_short() {
        let whole = udp(&message(4, 64));
        for len in 0..whole.len() {
            let seen = look(&whole[..len], None);
            assert_eq!(seen.frames, 1);
        }
    }

    fn look(bytes: &[u8], segment: Option<usize>) -> Seen {
        let filter = Filter {
            interfaces: [(7, Heard::Incoming)].into(),
            mesh: vec!["10.77.0.0/16".parse().expect("a prefix")],
            marker: b"marker".to_vec(),
            ports: [PORT].into(),
            ..Filter::default()
        };
        let frame = Frame {
            interface: 7,
            outgoing: false,
            link: ARPHRD_ETHER,
            segment,
        };
        let mut seen = Seen::default();
        seen.frame(frame, bytes, &filter);
        seen
    }

    fn message(kind: u8, len: usize) -> Vec<u8> {
        let mut message = vec![0; len];
        message[0] = kind;
        message
    }

    /// An Ethernet frame from 192.0.2.1 to 192.0.2.2, both at the tunnel's port.
    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((28 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend(PORT.to_be_bytes());
        frame.extend(PORT.to_be_bytes());
        frame.extend((8 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(payload);
        frame
    }
}
