//! The command for people: makes keys and mesh files, and shows what they mean.
//!
//! Each subcommand is one function in the module of its concern; this file only says which there
//! are. Nothing here changes a host: `init` writes a key and `export` a file, `demo` plays in namespaces
//! of its own, `verify` sends packets that must not arrive and may listen by an nftables table of its own, the rest only
//! looks. `cluster remove` changes a Kubernetes object, from which the daemons take their word.

mod args;
mod capture;
mod clock;
mod cluster;
mod demo;
mod echo;
mod export;
mod init;
mod keys;
mod look;
mod mesh_file;
mod output;
mod pages;
mod resolve;
mod status;
mod sys;
mod verify;

use std::io;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Demo(args) => return exit(demo::run(&args)),
        Command::Status(args) => status::run(&args),
        Command::Verify(args) => return exit(verify::run(&args)),
        Command::Cluster(args) => return exit(cluster::run(&args)),
        Command::Init(args) => init::run(&args),
        Command::Genkey => keys::genkey(),
        Command::Pubkey => keys::pubkey(),
        Command::Genpsk => keys::genpsk(),
        Command::Check(args) => look::check(&args),
        Command::Plan(args) => look::plan(&args),
        Command::Export(args) => export::run(&args),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { directory } => pages::man(&directory),
    };
    exit(done.map(|()| ExitCode::SUCCESS))
}

fn exit(done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        // Whoever read our output has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
