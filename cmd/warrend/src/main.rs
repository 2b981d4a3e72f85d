//! The daemon of a node: makes the host the node that a mesh file, or Kubernetes, describes, and keeps it so.
//!
//! The control path, on one thread (`daemon.rs`; what is before the plan in `source/`):
//!
//! ```text
//! mesh file or API, names, host, timer -> Directory -> mesh::plan -> Plan
//!                                      |-> config::diff(engine.status(), plan.device) -> engine.apply
//!                                      |-> netlink::Host::converge(plan.host)
//!                                      '-> problems and results -> status
//! ```
//!
//! Level-triggered: whatever happens leads to the same function, and doing it twice changes nothing.
//! Packets are carried by the engine's own threads and never wait for this one.
//!
//! It ends without removing anything: the interface stays and the fence stands. `uninstall` removes
//! what is on record as ours.

#[cfg(warren_null_cipher)]
compile_error!("a mesh without a cipher is nothing to measure");

mod args;
mod beacon;
mod daemon;
mod mesh_file;
mod notify;
mod pages;
mod resolver;
mod rights;
mod source;
mod status;
mod tunnel;
mod watch;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command};

/// How long a daemon that may still run has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let args = Args::parse();
    start_log(&args.log.unwrap_or_else(level_of_environment));
    let with_rights = |work: &dyn Fn() -> anyhow::Result<()>| rights::check().and_then(|()| work());
    let done = match (args.command, args.run.into_run()) {
        (Some(Command::Fence(fence)), _) => with_rights(&|| load_fence(&fence)),
        (Some(Command::Uninstall(state)), _) => with_rights(&|| uninstall(&state)),
        (Some(Command::Completions { shell }), _) => pages::completions(shell),
        (Some(Command::Man { directory }), _) => pages::man(&directory),
        (None, Some(run)) => rights::check().and_then(|()| daemon::run(run)),
        (None, None) => unreachable!("both are required without a subcommand"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                tracing::error!("{line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Puts the fence up as it was last written, before the network and without a daemon.
fn load_fence(args: &args::Fence) -> anyhow::Result<()> {
    let changed = warren_netlink::load_fence(&args.state.directory)?;
    match changed.len() {
        0 => tracing::info!("the fence stands already"),
        changed => tracing::info!(changed, "the fence stands"),
    }
    Ok(())
}

fn uninstall(state: &args::State) -> anyhow::Result<()> {
    let host = warren_netlink::Host::new(&state.directory)?;
    if host.owned().claims.is_empty() {
        tracing::info!("there is nothing of Warren on this host");
        return Ok(());
    }
    for claim in &host.owned().claims {
        let socket = warren_control::status::path(&claim.interface);
        if warren_control::status::ask(&socket, PATIENCE).is_ok() {
            let interface = &claim.interface;
            anyhow::bail!("warrend still runs on {interface} and would put it back; stop it first");
        }
    }
    let removed = host.uninstall()?.len();
    tracing::info!(
        removed,
        "nothing of Warren is left to carry or to fence packets"
    );
    tracing::info!(
        "keys and the mesh file stay in {}",
        state.directory.display()
    );
    Ok(())
}

/// What `WARREN_LOG` says. Where that means nothing it is told and left: it may be set for the whole host, and a fence
/// that does not go up at boot because of it would leave the host open.
fn level_of_environment() -> String {
    let value = std::env::var("WARREN_LOG").unwrap_or_default();
    match args::log_filter(&value) {
        Ok(level) => level,
        Err(_) if value.is_empty() => "info".to_owned(),
        Err(wanted) => {
            eprintln!("warrend: WARREN_LOG is {value:?}, and info instead; {wanted}");
            "info".to_owned()
        }
    }
}

/// Logs to the standard error: with time and colour for people, without for a journal, which has
/// both.
fn start_log(level: &str) {
    let filter = EnvFilter::new(level);
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(terminal);
    if terminal {
        log.init();
    } else {
        log.without_time().init();
    }
}
