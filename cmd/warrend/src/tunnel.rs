//! The engine on its interface, with what it must remember across restarts.

use std::io;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use tokio::sync::oneshot;
use warren_config::{DeviceChange, DeviceConfig};
use warren_engine::{ApplyError, BindError, End, Engine, Options, Timestamps};
use warren_mesh::Plan;
use warren_state::StateDir;
use warren_tun::Device;
use warren_wireguard::time::Tai64n;

/// The ceiling of timestamps: none above it was ever sent.
const CEILING_FILE: &str = "timestamps.ceiling";

/// A running engine. Dropping it ends its threads; the interface stays.
pub(crate) struct Tunnel {
    engine: Arc<Engine>,
    interface: String,
    /// What comes out of it may reach these, once that was said.
    local: Option<Vec<IpNet>>,
    ended: oneshot::Receiver<End>,
}

impl Tunnel {
    /// Opens the plan's interface, which outlives this process, and starts an engine on it.
    pub(crate) fn open(plan: &Plan, workers: usize, state: &StateDir) -> anyhow::Result<Self> {
        let interface = plan.host.interface.clone();
        let device = Device::open(&warren_tun::Options {
            name: interface.clone(),
            queues: workers,
            persist: true,
            mtu: Some(plan.host.mtu),
            ..warren_tun::Options::default()
        })
        .with_context(|| format!("interface {interface} cannot be opened"))?;
        let options = Options {
            timestamps: timestamps(state)?,
            // An interface that the run before has left is up: it is to have this port and no other.
            listen_port: plan.device.listen_port,
            fwmark: plan.device.fwmark,
            ..Options::default()
        };
        let engine = Arc::new(Engine::start(device, options)?);
        let (tell, ended) = oneshot::channel();
        let waiting = Arc::clone(&engine);
        std::thread::Builder::new()
            .name("warren-end".to_owned())
            .spawn(move || {
                // Nobody listens when the tunnel was dropped.
                let _unheard = tell.send(waiting.wait());
            })
            .context("no thread to wait for the engine's end with")?;
        Ok(Self {
            engine,
            interface,
            local: None,
            ended,
        })
    }

    /// What carries the packets.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Its interface, by the name under which it was opened.
    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    /// Makes the device what it should be. Changes nothing when it is.
    pub(crate) fn apply(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let should: &DeviceConfig = &plan.device;
        let change = warren_config::diff(&self.engine.status(), should);
        // What comes out reaches this node and its own, before a new peer may send.
        let local: Vec<_> = plan.host.fence.local.iter().copied().collect();
        if self.local.as_ref() != Some(&local) {
            self.engine.set_local(Some(&local));
            self.local = Some(local);
        }
        self.change(&change)
    }

    /// Changes the device.
    pub(crate) fn change(&self, change: &DeviceChange) -> anyhow::Result<()> {
        if !change.is_empty() {
            (self.engine.apply(change)).map_err(|error| match error {
                ApplyError::Bind(error) => anyhow!(remedy(&error)),
                error => anyhow!(error),
            })?;
        }
        Ok(())
    }

    /// Whether its sockets are open, on the port of the plan.
    pub(crate) fn listens(&self, plan: &Plan) -> bool {
        let engine = &self.engine;
        let is_open = engine.is_up() && engine.unbound().is_none();
        is_open && engine.listen_port() == plan.device.listen_port
    }

    /// Why there are no sockets although the interface is up, and what to do.
    pub(crate) fn unbound(&self) -> Option<String> {
        (self.engine.unbound()).map(|why| format!("no peer is reached: {}", remedy(&why)))
    }

    /// Waits until the engine comes to its end by itself. Dropping the future loses nothing.
    pub(crate) async fn ended(&mut self) -> End {
        (&mut self.ended).await.unwrap_or(End::Failed)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.engine.shutdown();
    }
}

/// What is wrong with the sockets, with what can be done where something can.
fn remedy(error: &BindError) -> String {
    match error {
        BindError::PortTaken { .. } => {
            format!("{error}; end that program, or give the mesh another `port`")
        }
        _ => error.to_string(),
    }
}

/// Timestamps that continue where the last run may have ended: peers refuse initiations with an
/// older one than they have seen.
fn timestamps(state: &StateDir) -> anyhow::Result<Timestamps> {
    let ceiling = match state.read(CEILING_FILE)? {
        None => Tai64n::ZERO,
        Some(bytes) => match bytes.try_into() {
            Ok(bytes) => Tai64n::from_bytes(bytes),
            Err(_) => {
                let path = state.path().join(CEILING_FILE);
                tracing::warn!(
                    "{} is damaged; if the clock was set back, peers refuse this node until it \
                     has caught up",
                    path.display()
                );
                Tai64n::ZERO
            }
        },
    };
    let state = state.clone();
    let remember = move |ceiling: Tai64n| {
        state
            .write(CEILING_FILE, ceiling.as_bytes())
            .map_err(io::Error::other)
    };
    Ok(Timestamps::resume(ceiling, Box::new(remember)))
}
