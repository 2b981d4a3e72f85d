//! What a cluster's operator relies on, in namespaces with a real API server.

mod api;
mod crash;
mod enforcement;
mod host;
mod identity;
mod join;
mod overlay;
mod rights;
mod scale;
mod verify;
