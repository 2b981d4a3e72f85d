//! The text form of the cross-platform userspace API: what `wg(8)` says to a device.
//!
//! The protocol is described at <https://www.wireguard.com/xplatform/#configuration-protocol>; where
//! it leaves room, wireguard-go is followed, because scripts were written against it. A message is
//!
//! ```text
//! get=1                    set=1
//! <blank line>             key=value
//!                          ...
//!                          <blank line>
//! ```
//!
//! and both are answered with lines that end in `errno=N` and a blank line. [`Parser`] reads
//! messages from whatever pieces of them arrive, [`write_status`] and [`write_errno`] answer.
//!
//! A `set` is one transaction: it becomes a [`DeviceChange`] only when its blank
//! line has arrived and every line of it was good. wireguard-go carries out each line as it reads it.

mod parse;
mod write;

use std::fmt;

use crate::DeviceChange;

pub use parse::{LINE_MAX, MESSAGE_MAX, Parser, ScopeId};
pub use write::{write_errno, write_status};

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Tell everything about the device, secrets included.
    Get,
    /// Carry out a change, whole or not at all.
    Set(DeviceChange),
    /// Nothing: the message was read to its end but is wrong. The next one may be good.
    Refused(Refusal),
}

/// Why a message is refused, without a word of its text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the message: {reason}")]
pub struct Refusal {
    /// What to answer.
    pub errno: Errno,
    /// Where, counted from 1, which is the line that names the operation.
    pub line: usize,
    /// What would be right.
    pub reason: &'static str,
}

/// An error number of Linux, positive as in `errno.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// `EIO`: the device could not do it.
    pub const IO: Self = Self(5);
    /// `EINVAL`: a key is unknown here, or its value is none that it takes.
    pub const INVALID: Self = Self(22);
    /// `EPROTO`: not a line of the protocol.
    pub const PROTOCOL: Self = Self(71);
    /// `EMSGSIZE`: a line or a message is too long.
    pub const TOO_LONG: Self = Self(90);
    /// `EADDRINUSE`: the port is taken.
    pub const PORT_IN_USE: Self = Self(98);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

/// Reads `input` as a client's whole side of a conversation.
///
/// Returns the requests, and the refusal that ended the conversation if one did. For tests and
/// fuzzing; a server feeds a [`Parser`].
pub fn parse_all(mut input: &[u8], scope_id: ScopeId) -> (Vec<Request>, Option<Refusal>) {
    let mut parser = Parser::new(scope_id);
    let mut requests = Vec::new();
    loop {
        match parser.read(&mut input) {
            Ok(Some(request)) => requests.push(request),
            Ok(None) => return (requests, None),
            Err(refusal) => return (requests, Some(refusal)),
        }
    }
}
