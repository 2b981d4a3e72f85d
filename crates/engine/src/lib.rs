//! Tables, workers and changes: the thing that runs one tunnel.
//!
//! - [`Router`] is everything but threads and descriptors. It joins the protocol's state machines
//!   (`warren-wireguard`) to batches of packets (`warren-packet`). A simulation runs it on one
//!   thread with a clock of its own.
//! - [`Engine`] gives a router what it lacks: a TUN device, UDP sockets, worker threads, and one
//!   control thread for timers and handshakes.
//!
//! The path of a packet is written at the top of `router/outbound.rs` and `router/inbound.rs`, the
//! functions there in its order. What holds on it:
//!
//! - nothing is allocated for a packet, and the clock is read once for each batch;
//! - a peer is locked once for each batch, and on the way in once more for each further session or
//!   address that it used within the batch; no cipher runs under its lock;
//! - packets of one flow stay in order;
//! - every queue is bounded (`limits.rs`) and every drop has a name ([`Reason`]).
//!
//! This crate does not know who configures it: there is no mesh here and no cluster. It reads no
//! environment variable, and the only place that asks the system for the time is `clock.rs`.

mod clock;
mod drops;
mod engine;
mod handover;
mod index;
mod known;
mod limits;
mod peer;
mod poll;
mod router;
mod schedule;
mod shared;
mod standing;
mod sync;
mod sys;
mod tables;
mod worker;

pub use drops::Reason;
pub use engine::{ApplyError, End, Engine, Options, Report, StartError, UdpOptions};
pub use router::{Control, Edges, Entropy, Inbound, Outbound, Router, Timestamps, Waiting};
#[cfg(all(debug_assertions, not(shuttle)))]
pub use sync::locks_taken;
/// Why a UDP port was not opened, as [`ApplyError`] and [`Report`] tell.
pub use warren_udp::BindError;
pub use worker::{Threads, default_workers, workers_asked};
