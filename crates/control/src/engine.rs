//! The engine as what is behind the sockets.

use warren_config::uapi::Errno;
use warren_config::{DeviceChange, DeviceStatus};
use warren_engine::Engine;

use crate::{Device, Refused};

impl Device for Engine {
    fn apply(&self, change: &DeviceChange) -> Result<(), Refused> {
        Engine::apply(self, change).map_err(|error| Refused {
            errno: Errno(error.errno()),
            reason: error.to_string(),
        })
    }

    fn status(&self) -> DeviceStatus {
        Engine::status(self)
    }
}
