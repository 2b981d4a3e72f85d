//! Packet bytes: what moves between a TUN queue and a UDP socket, and what is done to it on the way.
//!
//! The way out, in the order of the packet:
//!
//! 1. [`batch::ReadBatch`] holds what was read from TUN: packets of up to 64 KiB, each with its
//!    [`vnet::Header`]
//! 2. [`backlog::Backlog`] lets sparse flows pass those of which much waits
//! 3. [`ip`] finds the destination, once for each large packet
//! 4. [`segment::Segments`] cuts it, copying each segment to where it is sealed
//! 5. [`batch::SendBatch`] holds the sealed records, grouped as they will be sent
//!
//! The way in:
//!
//! 1. [`batch::RecvBatch`] holds what came from UDP; records are opened in place
//! 2. [`ip`] checks and trims what was inside, [`ecn`] joins the outer mark to the inner
//! 3. [`coalesce::Coalescer`] joins runs of one flow into large packets, for one TUN write each
//!
//! Plain functions on bytes. This crate never does I/O, never allocates per packet, and nothing
//! that a packet can say makes it panic. Arenas are one allocation each and packets are ranges in
//! them, so that batches are reused for ever and no lifetime outlasts a call.

pub mod arena;
pub mod backlog;
pub mod batch;
pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod icmp;
pub mod ip;
pub mod segment;
#[cfg(test)]
mod testing;
pub mod vnet;

pub use batch::{Datagram, Ecn, ReadBatch, ReadPacket, RecvBatch, SendBatch, Source, Transmit};
