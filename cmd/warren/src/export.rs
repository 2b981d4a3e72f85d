//! `warren export`: a node as a file for `wg-quick`.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use warren_mesh::{Secrets, wg_quick};
use warren_state::StateDir;
use zeroize::Zeroizing;

use crate::args::Export;
use crate::{keys, mesh_file, output};

pub(crate) fn run(args: &Export) -> anyhow::Result<()> {
    let mut directory = mesh_file::read(&args.mesh)?.directory;
    let state = StateDir::new(&args.state.directory);
    let (preshared_keys, errors) = mesh_file::preshared_keys(&directory, &args.name, &state);
    if let Some(error) = errors.into_iter().next() {
        return Err(error.into());
    }
    let private_key = args.new_key.then(keys::private_key).transpose()?;
    let public_key = private_key.as_ref().map(warren_config::PrivateKey::public);
    let written = directory.nodes.get_mut(&args.name).and_then(|node| {
        let written = node.public_key;
        node.public_key = public_key.or(written);
        written
    });
    let secrets = Secrets {
        private_key,
        preshared_keys,
    };
    let text = Zeroizing::new(wg_quick(&directory, &args.name, &secrets)?);
    match &args.output {
        Some(path) => write_new(path, text.as_bytes())?,
        None => output::raw(text.as_bytes())?,
    }
    let (mesh, name) = (args.mesh.display(), &args.name);
    match (public_key, written) {
        (Some(key), _) => output::note(format_args!(
            "Write this into the block of node \"{name}\" in {mesh}:\npublic_key = \"{key}\""
        )),
        (None, Some(key)) => output::note(format_args!(
            "The private key that belongs to \"{key}\" is still to be written into the export."
        )),
        (None, None) => output::note(format_args!(
            "Node \"{name}\" has no public_key in {mesh}, and nothing is sent to it until it has."
        )),
    }
    Ok(())
}

/// Writes a file where there is none, for its owner alone.
fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} is there already; name a new file", path.display());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be written", path.display()));
        }
    };
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("{} cannot be written", path.display()))
}
