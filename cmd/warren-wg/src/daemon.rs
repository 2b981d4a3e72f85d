//! Becoming a daemon: a second process of this program does the work, the first waits until it can.
//!
//! A threaded program cannot fork safely, so the program is started anew, with the marks of
//! [`crate::settings::Role::Daemon`] in its environment, as wireguard-go does. Unlike there, the
//! first process goes only when the device is ready, and fails when it cannot be.
//!
//! The second process has the first's standard error until then, and tells its readiness through its
//! standard output. Afterwards it has neither, except that the log goes on in the standard error
//! where LOG_LEVEL asks for one.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;

use crate::settings::{DAEMON_VARIABLE, FOREGROUND_VARIABLE};

const READY: &[u8] = b"ready\n";

/// Starts the daemon, and returns when it is ready or has said why it cannot be.
pub(crate) fn launch() -> anyhow::Result<ExitCode> {
    let program = env::current_exe().context("cannot find this program's file")?;
    let mut daemon = Command::new(program)
        .args(env::args_os().skip(1))
        .env(FOREGROUND_VARIABLE, "1")
        .env(DAEMON_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the daemon")?;
    let mut said = Vec::new();
    if let Some(mut stdout) = daemon.stdout.take() {
        stdout
            .read_to_end(&mut said)
            .context("cannot hear from the daemon")?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = daemon.wait().context("cannot wait for the daemon")?;
    if status.code().is_none() {
        // Otherwise it had time for its own sentence.
        anyhow::bail!("the daemon did not become ready: {status}");
    }
    Ok(ExitCode::FAILURE)
}

/// Lets go of what the daemon has of the process that started it, and tells that one to go.
pub(crate) fn ready(keep_stderr: bool) -> io::Result<()> {
    // A session of its own: the terminal's signals are no longer meant for us.
    rustix::process::setsid()?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let mut stdout = io::stdout().lock();
    // Whoever waited may have been killed, which changes nothing for the device.
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    rustix::stdio::dup2_stdout(&null)?;
    if !keep_stderr {
        rustix::stdio::dup2_stderr(&null)?;
    }
    Ok(())
}
