//! The sockets, from their clients' side.

mod http;
mod listener;
mod metrics;
mod scratch;
mod status;
mod uapi;
