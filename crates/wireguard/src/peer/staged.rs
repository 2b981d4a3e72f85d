//! Packets that wait for a session.

use std::collections::VecDeque;

use crate::{MAX_STAGED_BYTES, MAX_STAGED_PACKETS};

/// A bounded queue: what comes on top of a full one pushes out the oldest, which a transport
/// protocol would have given up on first.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    entries: VecDeque<Entry>,
    packets: u32,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    packet: Box<[u8]>,
    /// How many records it will become.
    packets: u32,
}

impl Staged {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a packet. Answers how many were pushed out. A single one is taken whatever its size,
    /// which an IP packet bounds.
    pub(crate) fn push(&mut self, packet: Box<[u8]>, packets: u32) -> u32 {
        let mut dropped = 0;
        while !self.is_empty()
            && (self.packets.saturating_add(packets) > MAX_STAGED_PACKETS
                || self.bytes.saturating_add(packet.len()) > MAX_STAGED_BYTES)
        {
            dropped += self.pop();
        }
        self.packets += packets;
        self.bytes += packet.len();
        self.entries.push_back(Entry { packet, packets });
        dropped
    }

    /// How many records the packets will become.
    pub(crate) fn packets(&self) -> u32 {
        self.packets
    }

    /// Takes all, oldest first, and gives the room back.
    pub(crate) fn take(&mut self) -> Vec<Box<[u8]>> {
        std::mem::take(self)
            .entries
            .into_iter()
            .map(|entry| entry.packet)
            .collect()
    }

    fn pop(&mut self) -> u32 {
        let Some(entry) = self.entries.pop_front() else {
            return 0;
        };
        self.packets -= entry.packets;
        self.bytes -= entry.packet.len();
        entry.packets
    }
}
