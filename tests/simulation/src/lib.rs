//! A mesh of [`warren_engine::Router`]s on one thread.
//!
//! Time is a number that moves from event to event, so hours pass in seconds. The network loses,
//! delays, reorders, doubles and damages datagrams as a seed says. Nothing else is made up: what
//! runs is the code that the workers of an engine run.
//!
//! [`Mesh`] holds the house's invariants after every step, whatever the story of the test:
//!
//! - what is delivered was sent, by the node whose prefix holds its source as the receiver is
//!   configured, to this node, and it is intact;
//! - nothing is delivered twice, and no flow is reordered unless the network reorders;
//! - no inner byte is on the wire in the clear;
//! - a deadline is later than the time of the tick before it, and every tick comes to an end;
//! - each device is what the model in `warren-config` says it should be.

pub mod insider;
pub mod mesh;
pub mod node;
pub mod packet;
pub mod random;
pub mod sys;
pub mod wire;

pub use insider::Insider;
pub use mesh::Mesh;
pub use node::Node;
pub use random::Random;
pub use wire::Conditions;

/// Runs a story once for each seed, and says which it was that failed.
pub fn for_each_seed(seeds: &[u64], story: impl Fn(u64)) {
    struct Named(u64);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("this happened with seed {}", self.0);
            }
        }
    }
    for &seed in seeds {
        let named = Named(seed);
        story(seed);
        drop(named);
    }
}
