//! Batches: one arena each, packets as ranges in it, reused for ever.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::arena::Arena;
use crate::vnet;

/// Datagrams in one segmented send, at most: the limit of older kernels.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes in one segmented send, at most: the largest UDP payload over IPv4.
pub const MAX_TRANSMIT: usize = 65507;
/// The largest packet that a TUN delivers, without its offload header.
pub const MAX_PACKET: usize = 65535;

const CACHE_LINE: usize = 64;
/// Where in its arena the first packet of a [`ReadBatch`] lies: on a cache line, behind room for its header.
const FIRST: usize = CACHE_LINE;

/// A local outer address: what a reply should be sent from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// The address.
    pub ip: IpAddr,
    /// Index of the interface on which it was seen.
    pub interface: u32,
}

/// The two bits of explicit congestion notification (RFC 3168).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not understand marks.
    #[default]
    NotEct = 0,
    /// It does, and says ECT(1).
    Ect1 = 1,
    /// It does, and says ECT(0).
    Ect0 = 2,
    /// Congestion was experienced on the way.
    Ce = 3,
}

impl Ecn {
    /// The mark in the two low bits of a TOS or traffic class byte.
    pub const fn from_tos(tos: u8) -> Self {
        match tos & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The two bits.
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// What was read from a TUN queue.
///
/// [`Self::spare`] lends room for the largest packet, [`Self::commit`] says how much of it was
/// used; small packets so lie close together. The arena is never touched beyond what was lent, so
/// that its untouched end costs no memory.
#[derive(Debug)]
pub struct ReadBatch {
    arena: Arena,
    packets: Vec<ReadPacket>,
    max_packets: usize,
    /// Where the next packet will lie, behind its header.
    next: usize,
}

/// A packet of a [`ReadBatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPacket {
    /// What the TUN said of it.
    pub header: vnet::Header,
    /// Where in the arena it is, without the offload header.
    pub range: Range<usize>,
}

impl ReadBatch {
    /// A batch of at most `max_packets`, in an arena of about `capacity` bytes.
    ///
    /// The arena has room for one packet of any size, however small `capacity` is.
    pub fn new(capacity: usize, max_packets: usize) -> Self {
        Self {
            arena: Arena::new(capacity.max(vnet::LEN + MAX_PACKET) + CACHE_LINE),
            packets: Vec::with_capacity(max_packets),
            max_packets,
            next: FIRST,
        }
    }

    /// What was read, in order.
    pub fn packets(&self) -> &[ReadPacket] {
        &self.packets
    }

    /// The bytes that the packets' ranges speak of.
    pub fn arena(&self) -> &[u8] {
        &self.arena
    }

    /// The same, to change packets in place.
    pub fn arena_mut(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// A packet and its bytes.
    pub fn get(&self, index: usize) -> Option<(vnet::Header, &[u8])> {
        let packet = self.packets.get(index)?;
        Some((packet.header, &self.arena[packet.range.clone()]))
    }

    /// Forget all packets and begin anew.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.next = FIRST;
    }

    /// Forget one packet. Its room is not lent again before [`Self::clear`].
    pub fn remove(&mut self, index: usize) {
        self.packets.remove(index);
    }

    /// Whether there is no room for one more packet.
    pub fn is_full(&self) -> bool {
        self.packets.len() >= self.max_packets || self.next + MAX_PACKET > self.arena.len()
    }

    /// Room for one more packet: [`vnet::LEN`] bytes of offload header, then [`MAX_PACKET`] bytes.
    ///
    /// `None` if the batch is full. A queue without offload header fills only the part behind it;
    /// the header is lent as zeros, which say nothing of the packet.
    pub fn spare(&mut self) -> Option<&mut [u8]> {
        if self.is_full() {
            return None;
        }
        let spare = &mut self.arena[self.next - vnet::LEN..self.next + MAX_PACKET];
        spare[..vnet::LEN].fill(0);
        Some(spare)
    }

    /// A packet of `len` bytes was put behind the header in what [`Self::spare`] lent.
    ///
    /// `len` does not count the header.
    ///
    /// # Panics
    ///
    /// If `len` is more than was lent.
    pub fn commit(&mut self, len: usize) {
        assert!(len <= MAX_PACKET && self.next + len <= self.arena.len());
        let mut header = [0; vnet::LEN];
        header.copy_from_slice(&self.arena[self.next - vnet::LEN..self.next]);
        let range = self.next..self.next + len;
        // The next packet begins on a cache line again, behind room for its own header.
        self.next = (range.end + vnet::LEN).next_multiple_of(CACHE_LINE);
        self.packets.push(ReadPacket {
            header: vnet::Header::decode(&header),
            range,
        });
    }
}

/// What is to be sent by UDP.
#[derive(Debug)]
pub struct SendBatch {
    /// The bytes that the transmits' ranges speak of.
    pub arena: Arena,
    /// What to send, in order.
    pub transmits: Vec<Transmit>,
}

impl SendBatch {
    /// An arena of `capacity` bytes and room for `transmits` without another allocation.
    pub fn new(capacity: usize, transmits: usize) -> Self {
        Self {
            arena: Arena::new(capacity),
            transmits: Vec::with_capacity(transmits),
        }
    }

    /// Forget all transmits.
    pub fn clear(&mut self) {
        self.transmits.clear();
    }

    /// How much of the arena the transmits so far occupy.
    pub fn used(&self) -> usize {
        self.transmits.last().map_or(0, |last| last.range.end)
    }
}

/// One segmented send: datagrams of one size to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where in the arena the datagrams lie, one after the other: at most [`MAX_SEGMENTS`] of
    /// them, at most [`MAX_TRANSMIT`] bytes.
    pub range: Range<usize>,
    /// Bytes of each datagram; the last one may be shorter.
    pub stride: usize,
    /// Where to.
    pub remote: SocketAddr,
    /// From which local address, if that matters.
    pub source: Option<Source>,
    /// The outer mark.
    pub ecn: Ecn,
    /// The outer TOS or traffic class but for the two bits of the mark.
    pub tos: u8,
    /// The caller's own: what it needs to know whose send failed.
    pub tag: u32,
}

impl Transmit {
    /// Each datagram, in order.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        strides(self.range.clone(), self.stride)
    }
}

/// What came by UDP.
///
/// The arena has room for messages of [`RecvBatch::SLOT`] bytes: larger than any datagram, so that
/// none is ever truncated. A socket that receives only small ones may lay them closer together, and
/// then more of them fit.
#[derive(Debug)]
pub struct RecvBatch {
    /// The bytes that the datagrams' ranges speak of.
    pub arena: Arena,
    /// What came, in order.
    pub datagrams: Vec<Datagram>,
    /// Whether the last read filled all the room that it was lent, so that more may wait.
    pub more: bool,
}

impl RecvBatch {
    /// Bytes of one slot.
    pub const SLOT: usize = 65536;

    /// A batch with room for `slots` messages.
    pub fn new(slots: usize) -> Self {
        Self {
            arena: Arena::new(slots * Self::SLOT),
            datagrams: Vec::with_capacity(slots),
            more: false,
        }
    }

    /// How many messages of any size fit.
    pub fn slots(&self) -> usize {
        self.arena.len() / Self::SLOT
    }

    /// Forget all datagrams.
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.more = false;
    }
}

/// One received message: datagrams of one size from one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Where in the arena the datagrams lie, one after the other.
    pub range: Range<usize>,
    /// Bytes of each datagram; the last one may be shorter.
    pub stride: usize,
    /// Where from.
    pub remote: SocketAddr,
    /// The local address it came to.
    pub source: Option<Source>,
    /// The outer mark.
    pub ecn: Ecn,
}

impl Datagram {
    /// Each datagram, in order.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        strides(self.range.clone(), self.stride)
    }
}

/// `range` cut every `stride` bytes. A stride of zero does not cut, an empty range is one piece.
fn strides(range: Range<usize>, stride: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let stride = if stride == 0 {
        range.len().max(1)
    } else {
        stride
    };
    let count = range.len().div_ceil(stride).max(1);
    (0..count).map(move |index| {
        let start = range.start + index * stride;
        start..(start + stride).min(range.end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(batch: &mut ReadBatch, header: vnet::Header, packet: &[u8]) -> bool {
        let Some(spare) = batch.spare() else {
            return false;
        };
        spare[..vnet::LEN].copy_from_slice(&header.encode());
        spare[vnet::LEN..][..packet.len()].copy_from_slice(packet);
        batch.commit(packet.len());
        true
    }

    #[test]
    fn packets_lie_close_together_and_begin_on_cache_lines() {
        let mut batch = ReadBatch::new(200_000, 64);
        let header = vnet::Header {
            gso_size: 7,
            ..vnet::Header::NONE
        };
        assert!(read(&mut batch, header, &[1; 40]));
        assert!(read(&mut batch, vnet::Header::NONE, &[2; 60]));
        assert!(read(&mut batch, vnet::Header::NONE, &[]));
        assert!(read(&mut batch, vnet::Header::NONE, &[3; 1420]));
        assert_eq!(batch.get(0), Some((header, &[1; 40][..])));
        assert_eq!(batch.get(1), Some((vnet::Header::NONE, &[2; 60][..])));
        assert_eq!(batch.get(2), Some((vnet::Header::NONE, &[][..])));
        assert_eq!(batch.get(3), Some((vnet::Header::NONE, &[3; 1420][..])));
        assert_eq!(batch.get(4), None);
        let starts: Vec<_> = batch.packets().iter().map(|p| p.range.start).collect();
        assert_eq!(
            starts.iter().map(|s| s - starts[0]).collect::<Vec<_>>(),
            [0, 64, 192, 256]
        );
        for start in starts {
            assert_eq!(batch.arena()[start..].as_ptr().align_offset(CACHE_LINE), 0);
        }
    }

    #[test]
    fn room_for_a_packet_of_any_size_is_lent_or_none_at_all() {
        let mut batch = ReadBatch::new(0, 64);
        assert_eq!(batch.spare().map(|s| s.len()), Some(vnet::LEN + MAX_PACKET));
        assert!(read(&mut batch, vnet::Header::NONE, &[1; MAX_PACKET]));
        assert!(batch.spare().is_none());
        batch.clear();
        assert!(read(&mut batch, vnet::Header::NONE, &[1; 1]));
    }

    #[test]
    fn a_batch_takes_no_more_packets_than_it_was_made_for() {
        let mut batch = ReadBatch::new(1 << 20, 3);
        let taken = (0..10)
            .take_while(|_| read(&mut batch, vnet::Header::NONE, &[0; 20]))
            .count();
        assert_eq!(taken, 3);
    }

    #[test]
    fn a_header_left_by_an_earlier_packet_is_not_met_again() {
        let mut batch = ReadBatch::new(0, 4);
        let header = vnet::Header {
            flags: vnet::NEEDS_CSUM,
            ..vnet::Header::NONE
        };
        assert!(read(&mut batch, header, &[0; 20]));
        batch.clear();
        batch.spare().expect("an empty batch has room");
        batch.commit(20);
        assert_eq!(batch.packets()[0].header, vnet::Header::NONE);
    }

    #[test]
    fn strides_cover_the_range_and_only_the_last_is_short() {
        let pieces = |range, stride| {
            strides(range, stride)
                .map(|piece| (piece.start, piece.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(pieces(10..40, 15), [(10, 25), (25, 40)]);
        assert_eq!(pieces(10..41, 15), [(10, 25), (25, 40), (40, 41)]);
        assert_eq!(pieces(10..12, 15), [(10, 12)]);
        assert_eq!(pieces(10..12, 0), [(10, 12)]);
        assert_eq!(pieces(10..10, 0), [(10, 10)]);
        assert_eq!(pieces(10..10, 5), [(10, 10)]);
    }

    #[test]
    fn ecn_is_the_two_low_bits() {
        for tos in 0..=255 {
            assert_eq!(Ecn::from_tos(tos).bits(), tos & 3);
        }
    }
}
