//! The sockets on which programs of this host ask and set.
//!
//! [`uapi`] serves the text protocol of `wg(8)`, [`status`] answers `warren status` in JSON. Both are
//! unix sockets at well-known paths: [`Listener`] claims one, so that a second daemon of the same
//! name is refused, and [`Server`] holds conversations on it until it is stopped or its socket is
//! deleted. What is behind them is a [`Device`]: the engine, or [`Memory`], which only remembers.
//! [`http`] tells the same status as metrics, and whether the daemon lives and the node is ready.
//!
//! Clients are trusted with the device but not with our time: connections, lines and messages are
//! bounded, and a client that begins a message and does not end it is sent away.
//!
//! Threads, not an async runtime: there are a few clients a minute.

mod device;
mod engine;
pub mod http;
mod listener;
mod memory;
pub mod metrics;
mod server;
pub mod status;
pub mod uapi;

pub use device::{Device, Refused};
pub use listener::{ClaimError, Listener};
pub use memory::Memory;
pub use server::{End, Limits, Server, Stopper};
