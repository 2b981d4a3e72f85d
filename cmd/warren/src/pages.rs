//! Shell completions and manual pages, made from the command line's own description.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;
use crate::output;

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "warren", &mut script);
    Ok(output::raw(&script)?)
}

pub(crate) fn man(directory: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(Args::command(), directory)
        .with_context(|| format!("{} cannot be written", directory.display()))
}
