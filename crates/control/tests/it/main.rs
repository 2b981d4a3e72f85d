//! The sockets, from their clients' side.

mod listener;
mod scratch;
mod status;
mod uapi;
