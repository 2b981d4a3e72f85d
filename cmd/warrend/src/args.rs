//! What can be said on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use warren_aead::Choice;
use warren_engine::workers_asked;
use warren_k8s::Access;
use warren_mesh::{NodeName, STATE_DIR};

/// Makes this host a node of a mesh, and keeps it so.
#[derive(Debug, Parser)]
#[command(name = "warrend", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  warrend --mesh /etc/warren/mesh.toml --node hut
  warrend --kubernetes --node worker-1 --http 127.0.0.1:9586
  warrend fence --load
  warrend uninstall

Signals:
  SIGHUP            read the mesh file and the keys again
  SIGTERM, SIGINT   end; interface and fence stay, `warrend uninstall` removes them

Exit codes:
  0  it came to the end that was asked for
  1  it did not, and a sentence says why
  2  the command line is not understood")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// How much to say: error, warn, info, debug or trace, for each part if need be; info unless
    /// given here or in the environment as WARREN_LOG.
    #[arg(long, global = true, value_name = "LEVEL", value_parser = log_filter)]
    pub(crate) log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Put the fence up as it last was, before the network and without a daemon.
    Fence(Fence),
    /// Remove interface, routes, rules and the fence: everything that is on record as Warren's.
    Uninstall(State),
    /// Print completions for a shell.
    #[command(after_help = "\
Example:
  warrend completions bash > /usr/share/bash-completion/completions/warrend")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Write the manual pages into a directory.
    #[command(after_help = "\
Example:
  warrend man /usr/local/share/man/man1")]
    Man {
        /// Where to.
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Fence {
    /// Load it from the state directory.
    #[arg(long, required = true)]
    load: bool,
    #[command(flatten)]
    pub(crate) state: State,
}

/// What there is to say without a subcommand.
#[derive(Debug, ClapArgs)]
#[group(id = "origin", required = true, multiple = true, args = ["mesh", "kubernetes", "kubeconfig"])]
pub(crate) struct RunArgs {
    /// The mesh file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["kubernetes", "kubeconfig"])]
    pub(crate) mesh: Option<PathBuf>,
    /// Learn of the mesh from Kubernetes, as a pod of the cluster.
    #[arg(long)]
    pub(crate) kubernetes: bool,
    /// Learn of the mesh from Kubernetes, reached as this file says.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Which node this is: its name in the mesh file, or that of its Node.
    #[arg(long, value_name = "NAME", required = true)]
    pub(crate) node: Option<NodeName>,
    /// Serve metrics and probes over HTTP at this address; on the loopback unless the network may know.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address_and_port)]
    pub(crate) http: Option<SocketAddr>,
    /// How many threads carry packets each way; half of the processors unless given.
    #[arg(long, value_name = "NUMBER", value_parser = workers_asked, allow_negative_numbers = true)]
    pub(crate) workers: Option<usize>,
    /// What seals and opens packets.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) aead: Choice,
    #[command(flatten)]
    pub(crate) state: State,
}

/// What may be said, held against what it is: a filter takes an unknown word for the name of a part, and says nothing
/// of all parts where it is told of some alone, not even what the daemon ends of.
pub(crate) fn log_filter(text: &str) -> Result<String, String> {
    // To its parser numbers are levels, too, and nothing is one.
    let level =
        |word: &str| word.starts_with(char::is_alphabetic) && word.parse::<LevelFilter>().is_ok();
    let is_known = |directive: &str| match directive.split_once('=') {
        Some((part, word)) => !part.is_empty() && level(word),
        None => level(directive),
    };
    let directives = || text.split(',');
    let has_level = directives().any(|directive| !directive.contains('='));
    let is_filter = EnvFilter::try_new(text).is_ok();
    match has_level && is_filter && directives().all(is_known) {
        true => Ok(text.to_owned()),
        false => Err(
            "it should be error, warn, info, debug or trace, with others for parts behind it, \
             as in info,warren_netlink=debug"
                .to_owned(),
        ),
    }
}

/// What a daemon is to run.
#[derive(Debug)]
pub(crate) struct Run {
    /// Where the mesh is described.
    pub(crate) origin: Origin,
    /// Which node this is.
    pub(crate) node: NodeName,
    /// Where to serve metrics and probes, if anywhere.
    pub(crate) http: Option<SocketAddr>,
    /// How many threads carry packets each way; `None` leaves the number to the machine.
    pub(crate) workers: Option<usize>,
    /// What seals and opens packets.
    pub(crate) aead: Choice,
    /// Where the node keeps its own.
    pub(crate) state: PathBuf,
}

/// Where the mesh is described.
#[derive(Debug)]
pub(crate) enum Origin {
    /// In one file.
    File(PathBuf),
    /// In Kubernetes.
    Kubernetes(Access),
}

impl RunArgs {
    /// `None` where a subcommand made them unnecessary.
    pub(crate) fn into_run(self) -> Option<Run> {
        let origin = match (self.mesh, self.kubeconfig, self.kubernetes) {
            (Some(path), ..) => Origin::File(path),
            (None, Some(kubeconfig), _) => Origin::Kubernetes(Access::Kubeconfig(kubeconfig)),
            (None, None, true) => Origin::Kubernetes(Access::InCluster),
            (None, None, false) => return None,
        };
        Some(Run {
            origin,
            node: self.node?,
            http: self.http,
            workers: self.workers,
            aead: self.aead,
            state: self.state.directory,
        })
    }
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct State {
    /// Where the node keeps its keys and what must survive a restart.
    #[arg(
        long = "state",
        value_name = "DIR",
        default_value = STATE_DIR,
        value_hint = ValueHint::DirPath
    )]
    pub(crate) directory: PathBuf,
}

fn address_and_port(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "ADDRESS:PORT, such as 127.0.0.1:9586 or [::1]:9586")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn what_would_silence_the_log_is_refused() {
        for text in [
            "info",
            "TRACE",
            "off",
            "warn,warren_netlink=debug",
            "error,a::b=info",
        ] {
            assert_eq!(log_filter(text), Ok(text.to_owned()));
        }
        for text in [
            "",
            "inof",
            "nonsense",
            "info,inof",
            "warren_netlink=debug",
            "info,[=debug",
            "warren=loud",
            "=info",
            "=,=",
            "3",
            "info,",
        ] {
            assert!(log_filter(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_node_is_run_unless_something_else_is_asked_for() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let run = parse("warrend --mesh m.toml --node hut").expect("it is enough");
        assert!(run.command.is_none() && run.run.into_run().is_some());
        for line in [
            "--kubernetes --node n",
            "--kubeconfig f --node n --http 127.0.0.1:9",
        ] {
            let run = parse(&format!("warrend {line}")).expect(line);
            assert!(run.run.into_run().is_some(), "{line}");
        }
        for line in ["uninstall", "fence --load", "man dir", "completions zsh"] {
            let other = parse(&format!("warrend {line}")).expect(line);
            assert!(other.command.is_some() && other.run.into_run().is_none());
        }
        for line in [
            "warrend",
            "warrend --mesh m.toml",
            "warrend fence",
            "warrend --kubernetes",
            "warrend --mesh m --kubernetes --node n",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_value_that_means_nothing_is_answered_with_what_would() {
        for (option, expected) in [
            (
                "--workers abc",
                "'abc' for '--workers <NUMBER>': a number from 1 to 256",
            ),
            (
                "--workers -1",
                "'-1' for '--workers <NUMBER>': a number from 1 to 256",
            ),
            (
                "--workers 257",
                "'257' for '--workers <NUMBER>': a number from 1 to 256",
            ),
            (
                "--http nonsense",
                "'nonsense' for '--http <ADDRESS:PORT>': ADDRESS:PORT, such as 127.0.0.1:9586",
            ),
        ] {
            let line = format!("warrend --mesh m --node n {option}");
            let error = Args::try_parse_from(line.split(' '))
                .expect_err(option)
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
