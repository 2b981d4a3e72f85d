//! What the packages share whose tests run in network namespaces: threads inside them ([`thread_in`]), a
//! wiretap ([`Wiretap`]), the programs under test ([`built`]), sends that the kernel cuts
//! ([`set_udp_segment`]), and waiting ([`patiently`]).
//!
//! It knows no topology, no mesh and no program by name; those are each package's own. What needs root
//! here is for its callers to test, so it has only tests that do not.

mod frame;
mod programs;
mod sys;
mod wait;
mod wiretap;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use frame::Frame;
pub use programs::{Run, built, repository};
pub use sys::set_udp_segment;
pub use wait::patiently;
pub use wiretap::Wiretap;

/// Runs a function on a thread of its own in the network namespace that this file stands for.
pub fn thread_in<T: Send + 'static>(
    namespace: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let namespace = File::open(namespace).expect("the namespace is there");
    thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).expect("these tests are root");
        work()
    })
}
