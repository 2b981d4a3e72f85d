//! The addresses of host names, asked for all at once and not for long.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use warren_mesh::{HostName, Resolved};

use crate::output;

/// How long to wait for all names together.
const PATIENCE: Duration = Duration::from_secs(5);
/// After how long to say what is being waited for.
const SILENCE: Duration = Duration::from_secs(1);

/// The addresses of as many of the names as are known in time.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the outermost loop of the command"
)]
pub(crate) fn all(names: BTreeSet<&HostName>) -> Resolved {
    let (answers, answered) = mpsc::channel();
    let asked = names.len();
    for name in names {
        let (name, answers) = (name.clone(), answers.clone());
        // The system's resolver cannot be called off: a thread that waits for it is left behind.
        thread::spawn(move || {
            let found = (name.as_str(), 0).to_socket_addrs();
            let addresses = found.map(|found| found.map(|at: SocketAddr| at.ip()).collect());
            let _nobody_waits = answers.send((name, addresses.unwrap_or_default()));
        });
    }
    drop(answers);
    let start = Instant::now();
    let mut resolved = Resolved::new();
    let mut silent = true;
    while resolved.len() < asked {
        let limit = if silent { SILENCE } else { PATIENCE };
        match answered.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok((name, addresses)) => {
                resolved.insert(name, addresses);
            }
            Err(mpsc::RecvTimeoutError::Timeout) if silent => {
                silent = false;
                let missing = asked - resolved.len();
                output::note(format_args!(
                    "Waiting for the addresses of {missing} host names."
                ));
            }
            Err(_) => break,
        }
    }
    resolved
}
