//! Keeps the host of one node as it should be, until it is killed.
//!
//! `fence-daemon NODE DIRECTORY exclusive` opens the TUN and runs the loop that `warrend` runs, without an
//! engine; with `shared` in place of `exclusive`, as on kernels before 6.9.
//! `fence-daemon load DIRECTORY` only puts up the fence, as before the network at boot.

use std::path::Path;
use std::process::ExitCode;

use warren_netlink::{Host, HostError, LinkState, Options, load_fence};
use warren_tests_fence::{Node, config_of, open_tun};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["load", directory] => load_fence(Path::new(directory)).map(|_| ()),
        ["a", directory, mode] => keep(Node::A, Path::new(directory), mode == "shared"),
        ["b", directory, mode] => keep(Node::B, Path::new(directory), mode == "shared"),
        _ => {
            eprintln!("fence-daemon {{a|b}} DIRECTORY {{exclusive|shared}}, or load DIRECTORY");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fence-daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn keep(node: Node, directory: &Path, shared: bool) -> Result<(), HostError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = config_of(node);
        let options = Options {
            without_exclusive: shared,
            ..Options::default()
        };
        let mut host = Host::with_options(directory, options)?;
        let mut tun = None;
        loop {
            let report = host.converge(&config)?;
            for (change, error) in &report.refused {
                eprintln!("fence-daemon: {change}: {error}");
            }
            if report.link == LinkState::Missing || tun.is_none() {
                tun = Some(open_tun(&config.interface)?);
                continue;
            }
            host.changed().await?;
        }
    })
}
