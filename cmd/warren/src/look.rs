//! `warren check` and `warren plan`: what a mesh file says and would do.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use anyhow::bail;
use warren_control::status::{self, AskError};
use warren_mesh::{Description, Plan, Secrets, Section, Severity, Underlay};
use warren_netlink::{Host, HostError};
use warren_state::StateDir;

use crate::status::no_right;
use crate::{args, mesh_file, output, resolve};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn check(args: &args::Check) -> anyhow::Result<()> {
    let file = mesh_file::read(&args.mesh)?;
    file.warnings.iter().for_each(output::located);
    let nodes = match file.directory.nodes.len() {
        1 => "1 node".to_owned(),
        nodes => format!("{nodes} nodes"),
    };
    let warnings = match file.warnings.len() {
        0 => String::new(),
        1 => ", with 1 warning".to_owned(),
        warnings => format!(", with {warnings} warnings"),
    };
    let (mesh, name) = (args.mesh.display(), &file.directory.mesh.name);
    let digest = &file.digest[..16];
    Ok(output::line(format_args!(
        "{mesh} is right: mesh \"{name}\" of {nodes}, digest {digest}{warnings}"
    ))?)
}

pub(crate) fn plan(args: &args::Plan) -> anyhow::Result<()> {
    let file = mesh_file::read(&args.mesh)?;
    let directory = &file.directory;
    let state = StateDir::new(&args.state.directory);
    let (preshared_keys, mut errors) = mesh_file::preshared_keys(directory, &args.node, &state);
    let private_key = match state.private_key() {
        Ok(key) => Some(key),
        Err(error) => {
            errors.push(error);
            None
        }
    };
    let secrets = Secrets {
        private_key,
        preshared_keys,
    };
    let resolved = resolve::all(directory.host_names(&args.node));
    let plan = |underlay: &Underlay| {
        let (node, steered) = (&args.node, &BTreeSet::new());
        warren_mesh::plan(directory, node, &resolved, &secrets, underlay, steered)
    };
    let alone = plan(&Underlay::default())?;
    let around = underlay(&alone, &state).unwrap_or_else(|error| {
        output::problem(
            Severity::Warning,
            format_args!("what is around the tunnel is not known: {error}"),
        );
        Underlay::default()
    });
    let plan = plan(&around)?;
    let after = Description::of(&plan);

    let before = running(&plan)?;
    let to = match &before {
        Some(_) => "to what the running daemon does",
        None => "to nothing, since no daemon answers",
    };
    let lines = after.since(&before.unwrap_or_default());
    if lines.is_empty() {
        output::line("This changes nothing: the running daemon does it already.")?;
    }
    for line in &lines {
        output::difference(line)?;
    }
    if !lines.is_empty() {
        output::note(format_args!("The difference is {to}."));
    }

    for error in &errors {
        output::problem(Severity::Error, error);
    }
    for problem in &plan.problems {
        output::located(&file.locate(problem));
    }
    if (plan.problems.iter()).any(|problem| problem.severity() == Severity::Error) {
        bail!("a daemon would not take this file for the errors above");
    }
    Ok(())
}

/// What this host needs outside the mesh, as a daemon would find it.
fn underlay(plan: &Plan, state: &StateDir) -> Result<Underlay, HostError> {
    let around = Host::new(state.path())?.surroundings(&plan.host)?;
    Ok(Underlay {
        addresses: around.addresses.into_keys().collect(),
        gateways: around.gateways,
        resolvers: around.resolvers,
        api_servers: BTreeSet::new(),
    })
}

/// What the daemon of the plan's interface carries out, if one runs.
fn running(plan: &Plan) -> anyhow::Result<Option<Description>> {
    let path = status::path(&plan.host.interface);
    match status::ask(&path, PATIENCE) {
        Ok(status) => Ok(Some(Description {
            sections: (status.plan.into_iter())
                .map(|section| Section {
                    heading: section.heading,
                    lines: section.lines,
                })
                .collect(),
        })),
        Err(AskError::NoDaemon { source, .. }) => match source.kind() {
            io::ErrorKind::PermissionDenied => Err(no_right(&path)),
            _ => Ok(None),
        },
        Err(error) => Err(error.into()),
    }
}
