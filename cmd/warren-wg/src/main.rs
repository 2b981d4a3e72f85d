//! A bare userspace WireGuard device, driven by `wg(8)` and `wg-quick(8)`.
//!
//! The way through it: [`settings`] says what is asked for, [`daemon`] leaves the terminal,
//! [`device`] opens everything and waits for the end.

mod daemon;
mod device;
mod pages;
mod settings;
mod sys;

use std::env;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use settings::{Role, Settings, SettingsError};

fn main() -> ExitCode {
    let settings = match Settings::read(env::args_os(), env::var_os) {
        Ok(settings) => settings,
        Err(SettingsError::CommandLine(error)) => error.exit(),
        Err(SettingsError::Pages(pages)) => {
            return match pages::make(&pages) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            };
        }
        Err(error) => return failed(&anyhow::Error::msg(error.to_string())),
    };
    if cfg!(warren_null_cipher) {
        eprintln!("warren-wg: THIS BUILD ENCRYPTS NOTHING; it is for measuring the rest");
        if settings.role != Role::Foreground {
            return failed(&anyhow::anyhow!(
                "without a cipher it stays in the foreground"
            ));
        }
    }
    if settings.role == Role::Launcher {
        return daemon::launch().unwrap_or_else(|error| failed(&error));
    }
    tracing_subscriber::fmt()
        .with_max_level(settings.log_level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    match device::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("warren-wg: {error:#}");
    ExitCode::FAILURE
}
