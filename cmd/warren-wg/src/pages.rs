//! Shell completions and the manual page, made from the command line's own description.

use std::io::{self, Write as _};

use anyhow::Context as _;

use crate::settings::{self, Pages};

pub(crate) fn make(pages: &Pages) -> anyhow::Result<()> {
    let mut command = settings::command();
    match pages {
        Pages::Completions(shell) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, "warren-wg", &mut script);
            match io::stdout().write_all(&script) {
                // Whoever reads has seen enough, as `head` does.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written.context("the completions cannot be written"),
            }
        }
        Pages::Man(directory) => clap_mangen::generate_to(command, directory)
            .with_context(|| format!("{} cannot be written", directory.display())),
    }
}
