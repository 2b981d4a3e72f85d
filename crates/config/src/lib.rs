//! What a tunnel and its host should look like, as plain data.
//!
//! Everything above the engine speaks in these types: the mesh plans a [`DeviceConfig`] and a
//! [`HostConfig`], `wg(8)` sends a [`DeviceChange`] as text, the engine applies changes
//! and answers with a [`DeviceStatus`]. [`diff()`] finds the change that leads from a status to a
//! configuration, [`DeviceConfig::apply`] says what a change means, [`uapi`] is its text form.
//!
//! This crate never does I/O, asks for the time or draws randomness, and it builds for wasm as
//! proof. Parsing happens here, once, into types that cannot be wrong.

mod apply;
mod device;
mod diff;
mod host;
mod keys;
pub mod uapi;

pub use device::{
    AllowedIpChange, DeviceChange, DeviceConfig, DeviceStatus, PeerChange, PeerConfig, PeerStatus,
    WallTime,
};
pub use diff::diff;
pub use host::{Fence, HostConfig, Steering, is_within};
pub use keys::{KeyError, PresharedKey, PrivateKey, PublicKey};
