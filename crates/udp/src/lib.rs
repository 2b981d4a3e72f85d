//! UDP sockets that move batches, with what the kernel offers to make that cheap.
//!
//! A segmented send (`UDP_SEGMENT`) hands the kernel up to 64 datagrams as one, receive offload
//! (`UDP_GRO`) does the same on the way in, and `sendmmsg`/`recvmmsg` move what is left in one call.
//! Each is probed and each may be refused later, also for one destination only; then what was asked
//! for is done without, and [`Features`] says so.
//!
//! The way out, in [`Socket::send`]:
//!
//! 1. up to 64 transmits become messages: one if it may be segmented, else one for each datagram
//! 2. `sendmmsg`; what the kernel did not take is where the next call resumes
//! 3. a refusal is understood: the feature, the path, the source address, the host, or a full buffer
//!
//! The way in, in [`Socket::recv`]:
//!
//! 1. `recvmmsg` into the free part of the batch, with local address, mark and stride of each
//! 2. an error that the network or the host caused is counted and the call repeated
//!
//! Nothing is allocated per call, and no clock is read: `now` is an argument.

mod bind;
mod send;
mod socket;
mod sys;

pub use bind::{BindError, Family, Options, Pair};
pub use send::{Failed, Failure, SendReport, Sent};
pub use socket::{Features, Socket};
