//! A node as a file for `wg-quick` and the WireGuard applications: phones, laptops, routers.

use std::fmt::Write as _;

use warren_config::PrivateKey;

use crate::directory::Directory;
use crate::name::NodeName;
use crate::plan::{PlanError, Secrets, Underlay, plan};
use crate::problem::{Cause, Problem, Severity};

/// Why a node cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// There is no plan for the node.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A preshared key or a private key is not what it should be.
    #[error("{0}")]
    Problem(Box<Problem>),
}

/// The file that makes a device without Warren the node `name`, from the very plan that a node
/// with Warren would carry out.
///
/// The text holds the node's private key, or a line in its place that says what to write there,
/// and every preshared key: zeroize it after use.
pub fn wg_quick(
    directory: &Directory,
    name: &NodeName,
    secrets: &Secrets,
) -> Result<String, ExportError> {
    let underlay = Underlay::default();
    let plan = plan(directory, name, &[].into(), secrets, &underlay, &[].into())?;
    let wrong = plan.problems.iter().find(|problem| {
        let expected = matches!(problem.cause, Cause::NoPrivateKey);
        problem.severity() == Severity::Error && !expected
    });
    if let Some(problem) = wrong {
        return Err(ExportError::Problem(Box::new(problem.clone())));
    }
    let mesh = &directory.mesh;
    let node = &directory.nodes[name];
    let mut text = String::new();
    let _infallible = write_interface(&mut text, directory, name, plan.device.private_key.as_ref());
    if !node.endpoints.is_empty() {
        let _infallible = writeln!(text, "ListenPort = {}", mesh.port);
    }
    let _infallible = writeln!(text, "MTU = {}", mesh.mtu);
    for (peer_name, peer) in &plan.peers {
        let (Some(key), false) = (peer.public_key, peer.unreachable) else {
            let why = match (peer.outside, peer.unreachable) {
                (true, _) => "it is an exception",
                (false, true) => "neither side has an endpoint",
                (false, false) => "it has no key yet",
            };
            let _infallible = writeln!(text, "\n# {peer_name} is left out: {why}.");
            continue;
        };
        let config = &plan.device.peers[&key];
        let endpoints = &directory.nodes[peer_name].endpoints;
        let _infallible = writeln!(text, "\n# {peer_name}\n[Peer]\nPublicKey = {key}");
        if let Some(preshared_key) = &config.preshared_key {
            let _infallible = writeln!(text, "PresharedKey = {}", preshared_key.to_base64());
        }
        let allowed_ips: Vec<String> = config.allowed_ips.iter().map(ToString::to_string).collect();
        let _infallible = writeln!(text, "AllowedIPs = {}", allowed_ips.join(", "));
        for (index, endpoint) in endpoints.iter().enumerate() {
            let endpoint = crate::Endpoint {
                host: endpoint.host.clone(),
                port: endpoint.port.or(Some(mesh.port)),
            };
            let spare = if index == 0 { "" } else { "# or: " };
            let _infallible = writeln!(text, "{spare}Endpoint = {endpoint}");
        }
        if config.persistent_keepalive != 0 {
            let keepalive = config.persistent_keepalive;
            let _infallible = writeln!(text, "PersistentKeepalive = {keepalive}");
        }
    }
    Ok(text)
}

fn write_interface(
    text: &mut String,
    directory: &Directory,
    name: &NodeName,
    private_key: Option<&PrivateKey>,
) -> std::fmt::Result {
    let mesh = &directory.mesh.name;
    writeln!(
        text,
        "# Node {name} of mesh {mesh}. Without Warren nothing is fenced: while this"
    )?;
    writeln!(
        text,
        "# tunnel is down, what is meant for the mesh may leave in the clear."
    )?;
    writeln!(text, "[Interface]")?;
    match private_key {
        Some(key) => writeln!(text, "PrivateKey = {}", key.to_base64())?,
        None => writeln!(text, "PrivateKey = (write here the private key of {name})")?,
    }
    let addresses: Vec<String> = (directory.nodes[name].addresses.iter())
        .map(|address| ipnet::IpNet::from(*address).to_string())
        .collect();
    writeln!(text, "Address = {}", addresses.join(", "))
}
