//! `warren init`: a key for this node, and the block that describes it.

use std::fmt::Write as _;

use warren_config::PublicKey;
use warren_state::StateDir;

use crate::args::Init;
use crate::{keys, mesh_file, output};

pub(crate) fn run(args: &Init) -> anyhow::Result<()> {
    // Whatever may fail does so before there is a key.
    let mesh = args.mesh.as_deref().map(mesh_file::read).transpose()?;
    let state = StateDir::new(&args.state.directory);
    state.create()?;
    let made = state.create_private_key(&keys::private_key()?)?;
    let key = state.private_key()?.public();

    let path = state.private_key_path();
    let path = path.display();
    match made {
        true => output::note(format_args!(
            "The private key is in {path}, and stays there."
        )),
        false => output::note(format_args!("The private key in {path} was there already.")),
    }
    let known = mesh
        .as_ref()
        .and_then(|mesh| mesh.directory.nodes.get(&args.name));
    if let (Some(mesh), Some(node)) = (&args.mesh, known) {
        let (name, mesh) = (&args.name, mesh.display());
        // Nothing of it is for the standard output, which may be on its way to the end of that file.
        match node.public_key == Some(key) {
            true => output::note(format_args!("{mesh} has node \"{name}\" with this key.")),
            false => output::note(format_args!(
                "{mesh} has node \"{name}\"; write this into its block:\npublic_key = \"{key}\""
            )),
        }
        return Ok(());
    }
    output::note("Paste this into the mesh file:");
    let free = mesh.map(|mesh| mesh.directory.free_addresses());
    Ok(output::raw(block(args, free, key).as_bytes())?)
}

/// The node in the words of the mesh file.
pub(crate) fn block(args: &Init, free: Option<Vec<std::net::IpAddr>>, key: PublicKey) -> String {
    let mut text = format!(
        "\n[[node]]\nname = \"{}\"\npublic_key = \"{key}\"\n",
        args.name
    );
    let _infallible = match list(&args.endpoints) {
        Some(endpoints) => writeln!(text, "endpoints = {endpoints}"),
        None => writeln!(
            text,
            "endpoints = []  # where others reach it, as in \"hut.example.org\"; none behind NAT"
        ),
    };
    let addresses = list(&args.addresses).or_else(|| list(&free?));
    let _infallible = match addresses {
        Some(addresses) => writeln!(text, "addresses = {addresses}"),
        None => writeln!(
            text,
            "addresses = []  # its own in the mesh, as in \"10.77.0.1\""
        ),
    };
    text
}

fn list(items: &[impl std::fmt::Display]) -> Option<String> {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    (!quoted.is_empty()).then(|| format!("[{}]", quoted.join(", ")))
}
