//! Shell completions and manual pages, made from the command line's own description.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "warrend", &mut script);
    match io::stdout().write_all(&script) {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("the completions cannot be written"),
    }
}

pub(crate) fn man(directory: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(Args::command(), directory)
        .with_context(|| format!("{} cannot be written", directory.display()))
}
