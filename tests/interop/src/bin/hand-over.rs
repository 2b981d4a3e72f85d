//! Opens an interface `given0` and a socket, and becomes the program that is to use them, as a
//! supervisor does.

use std::error::Error;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

fn main() -> Result<(), Box<dyn Error>> {
    let program = std::env::args_os().nth(1).ok_or("expected a program")?;
    let mut tun = warren_tun::Device::open(&warren_tun::Options {
        name: "given0".to_owned(),
        ..warren_tun::Options::default()
    })?;
    let queue = tun.take_queues().pop().ok_or("expected a queue")?;
    fs::create_dir_all("/var/run/given")?;
    let socket = UnixListener::bind("/var/run/given/it.sock")?;
    let mut command = Command::new(program);
    for (variable, fd) in [("WG_TUN_FD", queue.as_fd()), ("WG_UAPI_FD", socket.as_fd())] {
        let inherited: OwnedFd = fd.try_clone_to_owned()?;
        fcntl_setfd(&inherited, FdFlags::empty())?;
        command.env(variable, inherited.as_raw_fd().to_string());
        std::mem::forget(inherited);
    }
    Err(command.arg("ignored").exec().into())
}
