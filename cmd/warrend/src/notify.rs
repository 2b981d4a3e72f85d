//! Tells systemd how the daemon is doing (`sd_notify(3)`), where it runs under one.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The daemon does what it is there for.
pub(crate) fn ready() {
    tell("READY=1");
}

/// The daemon is about to end.
pub(crate) fn stopping() {
    tell("STOPPING=1");
}

/// One sentence for `systemctl status`.
pub(crate) fn status(sentence: &str) {
    tell(&format!("STATUS={}", sentence.replace('\n', " ")));
}

fn tell(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    }
    .and_then(|address| UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address));
    if let Err(error) = told {
        tracing::debug!(%error, "systemd does not listen");
    }
}
