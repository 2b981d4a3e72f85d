//! A device that only remembers.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use warren_config::uapi::Errno;
use warren_config::{DeviceChange, DeviceConfig, DeviceStatus};

use crate::{Device, Refused};

/// A [`Device`] without packets: it becomes what it is told to be, and that is all.
///
/// With it the sockets are tested without root, and `wg(8)` is tested against the model of
/// [`DeviceConfig::apply`].
#[derive(Debug, Default)]
pub struct Memory {
    config: Mutex<DeviceConfig>,
    taken_ports: BTreeSet<u16>,
}

impl Memory {
    /// A device that cannot have these ports, as if others had them.
    pub fn with_taken_ports(ports: impl IntoIterator<Item = u16>) -> Self {
        Self {
            taken_ports: ports.into_iter().collect(),
            ..Self::default()
        }
    }

    /// What the device was told to be.
    pub fn config(&self) -> DeviceConfig {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, DeviceConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Memory {
    fn apply(&self, change: &DeviceChange) -> Result<(), Refused> {
        if let Some(port) = change.listen_port
            && self.taken_ports.contains(&port)
        {
            return Err(Refused {
                errno: Errno::PORT_IN_USE,
                reason: format!("port {port} is taken"),
            });
        }
        self.lock().apply(change);
        Ok(())
    }

    fn status(&self) -> DeviceStatus {
        DeviceStatus::idle(&self.lock())
    }
}
