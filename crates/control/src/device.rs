//! What is behind the sockets.

use warren_config::uapi::Errno;
use warren_config::{DeviceChange, DeviceStatus};

/// Something that can be told what to be and asked what it is.
pub trait Device: Send + Sync {
    /// Carries out a change whole or not at all, before it returns.
    fn apply(&self, change: &DeviceChange) -> Result<(), Refused>;

    /// What the device is at this moment, secrets included.
    fn status(&self) -> DeviceStatus;
}

/// Why a change was not carried out.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// What the client is answered.
    pub errno: Errno,
    /// What the log says.
    pub reason: String,
}
