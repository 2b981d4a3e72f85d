//! What can be said on the command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use warren_mesh::{Endpoint, NodeName, STATE_DIR};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXIT_CODES: &str = "\
Exit codes:
  0  it is done
  1  it is not, and a sentence says why
  2  the command line is not understood";

/// A mesh of WireGuard tunnels from one file.
#[derive(Debug, Parser)]
#[command(name = "warren", version, styles = STYLES, max_term_width = 100)]
#[command(after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// See a mesh of three nodes and a fourth, on this machine alone.
    ///
    /// Everything happens in network namespaces of its own and is gone afterwards. It needs no root
    /// where user namespaces are allowed, and the `warrend` of the same build beside this command.
    #[command(after_help = "\
Examples:
  warren demo
  warren demo --keep")]
    Demo(Demo),

    /// Say how this node and its peers are doing.
    #[command(after_help = "\
Examples:
  warren status
  warren status --json | jq '.[].peers[].endpoint'

Exit codes:
  0  every daemon answered
  1  none runs, or one did not answer, and a sentence says why
  2  the command line is not understood")]
    Status(Status),

    /// Prove on this node's wire that only ciphertext leaves, to the right peer, and try to leak.
    ///
    /// Asks every peer for an answer and reads along on every other interface; then sends marked packets to
    /// mesh addresses past the tunnel in every way that a program has, and looks for them. What enters is
    /// looked at and not tried, since that takes somebody outside.
    ///
    /// It reads by packet sockets, and asks by pings, where it may (CAP_NET_RAW). With CAP_NET_ADMIN alone, as
    /// in the pod of Kubernetes, it reads by netfilter's log, which hears what is routed but not what a bridge,
    /// eBPF or a flow table carries, and asks by datagrams to closed ports. It says which.
    #[command(after_help = "\
Examples:
  warren verify
  warren verify --json

Exit codes:
  0  nothing leaks
  1  something does, or it could not be looked at, and a sentence says why
  2  the command line is not understood")]
    Verify(Verify),

    /// Look at, prove or end the mesh of a whole Kubernetes cluster, and let new nodes have pods.
    #[command(after_help = "\
Examples:
  warren cluster status
  warren cluster verify
  warren cluster remove --timeout 120")]
    Cluster(Cluster),

    /// Make this node's key, and print the block that describes it in the mesh file.
    ///
    /// A key that is there already stays, and its block is printed again.
    #[command(after_help = "\
Examples:
  warren init hut --endpoint hut.example.org --address 10.77.0.1
  warren init laptop --mesh mesh.toml >> mesh.toml")]
    Init(Init),

    /// Print a new private key.
    #[command(after_help = "\
Example:
  (umask 077; warren genkey > private.key)")]
    Genkey,

    /// Read a private key from the standard input and print its public key.
    #[command(after_help = "\
Example:
  warren pubkey < private.key")]
    Pubkey,

    /// Print a new preshared key.
    #[command(after_help = "\
Example:
  (umask 077; warren genpsk > /var/lib/warren/mesh.psk)")]
    Genpsk,

    /// Say all that is wrong with a mesh file.
    #[command(after_help = "\
Examples:
  warren check
  warren check mesh.toml && scp mesh.toml hut:/etc/warren/

Exit codes:
  0  the file is right; there may be warnings
  1  the file would be refused, and sentences say why
  2  the command line is not understood")]
    Check(Check),

    /// Show what a mesh file would change on this node; touches nothing.
    ///
    /// The difference is to what the running daemon carries out, or to nothing where none runs.
    #[command(after_help = "\
Example:
  warren plan mesh.toml --node hut")]
    Plan(Plan),

    /// Write a node as a file for wg-quick and the WireGuard applications.
    ///
    /// For phones, laptops and routers without Warren. Nothing is fenced there.
    #[command(after_help = "\
Examples:
  warren export phone --new-key --output phone.conf
  warren export phone --new-key | qrencode -t ansiutf8")]
    Export(Export),

    /// Print completions for a shell.
    #[command(after_help = "\
Examples:
  warren completions bash > /usr/share/bash-completion/completions/warren
  warren completions zsh > ~/.zfunc/_warren
  warren completions fish > ~/.config/fish/completions/warren.fish")]
    Completions {
        /// Which shell.
        shell: Shell,
    },

    /// Write the manual pages into a directory.
    #[command(after_help = "\
Example:
  warren man /usr/local/share/man/man1")]
    Man {
        /// Where to.
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    /// Leave everything standing until Ctrl-C, and say how to look around.
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Status {
    /// The tunnel's interface; every daemon of this host unless given.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Print what the daemons say as JSON, a list of one object for each.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// The tunnel's interface, where this host has several.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Print the verdict as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Cluster {
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Say how every node of the cluster is doing, one line each.
    ///
    /// What it says is what the daemons have published in their MeshNode objects. Nodes that are not Ready
    /// and those that the Mesh leaves outside are shown and count for nothing.
    #[command(after_help = "\
Examples:
  warren cluster status
  warren cluster status --json | jq -r '.wrong[]'

Exit codes:
  0  the mesh of every Ready node is well
  1  it is not, or the API server was not reached, and sentences say why
  2  the command line is not understood")]
    Status(ClusterStatus),

    /// Prove from this node that what it sends to every other node of the cluster is ciphertext, one line each.
    ///
    /// Runs on a node, beside its warrend or in its pod, and does there what `warren verify` does. Which nodes
    /// there should be it takes from the API server and not from the daemon. Nodes that are not Ready and those
    /// that the Mesh leaves outside are shown and need not answer. It speaks for this node alone; for
    /// the whole cluster run it in the pod of each.
    #[command(after_help = "\
Examples:
  warren cluster verify
  kubectl -n warren-system exec POD -- /bin/warren cluster verify

Exit codes:
  0  nothing leaks, and every Ready node has answered through the tunnel
  1  something leaks, one has not, or it could not be looked at, and sentences say which and why
  2  the command line is not understood")]
    Verify(ClusterVerify),

    /// Take the taint mesh.warren.dev/starting from each Node that enforces what the Mesh says.
    ///
    /// Kubelets that register with this taint get no pods before their node's warrend is at work: until then
    /// what a strict mesh drops would leave in the clear. The chart runs this where startupTaint.enabled is set. One for the
    /// whole cluster runs until SIGTERM or Ctrl-C, with a line for each Node; it needs the rights to list and watch
    /// MeshNodes, to get and patch Nodes, and to get the namespace kube-system.
    #[command(after_help = "\
Example:
  warren cluster untaint

Exit codes:
  0  it was ended
  1  there is no way to an API server, and a sentence says why
  2  the command line is not understood")]
    Untaint(ClusterUntaint),

    /// Have every daemon take away what it made, and wait until all have.
    ///
    /// Sets spec.enforcement of the Mesh to Removed: traffic travels in the clear from then on. Keys and
    /// records stay. The chart does this before it is uninstalled.
    #[command(after_help = "\
Example:
  warren cluster remove --timeout 120

Exit codes:
  0  every Ready node with a daemon has said that it is done
  1  one has not in that time, and a sentence names it
  2  the command line is not understood")]
    Remove(ClusterRemove),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterStatus {
    #[command(flatten)]
    pub(crate) access: Access,
    /// Print the objects and what is wrong as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterVerify {
    #[command(flatten)]
    pub(crate) access: Access,
    /// The tunnel's interface, where this host has several.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Print what came of each node, and all of `warren verify --json`, as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterUntaint {
    #[command(flatten)]
    pub(crate) access: Access,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterRemove {
    #[command(flatten)]
    pub(crate) access: Access,
    /// How many seconds to wait for the daemons.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) timeout: u32,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Access {
    /// How to reach the API server; what KUBECONFIG names unless given, then the pod's own account, then
    /// ~/.kube/config.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Init {
    /// What the node is called in the mesh.
    pub(crate) name: NodeName,
    /// Where others reach the node; may be given more than once.
    #[arg(long = "endpoint", value_name = "HOST[:PORT]")]
    pub(crate) endpoints: Vec<Endpoint>,
    /// The node's own address in the mesh; may be given more than once.
    #[arg(long = "address", value_name = "ADDRESS", value_parser = address)]
    pub(crate) addresses: Vec<IpAddr>,
    /// The mesh file, of which the node takes a free address.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) mesh: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: State,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// The mesh file.
    #[arg(value_name = "FILE", default_value = "mesh.toml", value_hint = ValueHint::FilePath)]
    pub(crate) mesh: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Plan {
    /// The mesh file.
    #[arg(value_name = "FILE", default_value = "mesh.toml", value_hint = ValueHint::FilePath)]
    pub(crate) mesh: PathBuf,
    /// Which node this is.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: NodeName,
    #[command(flatten)]
    pub(crate) state: State,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Export {
    /// Which node to export.
    pub(crate) name: NodeName,
    /// The mesh file.
    #[arg(long, value_name = "FILE", default_value = "mesh.toml", value_hint = ValueHint::FilePath)]
    pub(crate) mesh: PathBuf,
    /// Make a key for the node, put it into the export, and print its public key for the mesh file.
    #[arg(long)]
    pub(crate) new_key: bool,
    /// Write to a file that only its owner may read, instead of the standard output.
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) state: State,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct State {
    /// Where the node keeps its keys.
    #[arg(
        long = "state",
        value_name = "DIR",
        default_value = STATE_DIR,
        value_hint = ValueHint::DirPath
    )]
    pub(crate) directory: PathBuf,
}

fn address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse()
        .map_err(|_| "an address without a prefix length, such as 10.77.0.1")
}

fn seconds(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "a number of seconds, such as 300")
}
