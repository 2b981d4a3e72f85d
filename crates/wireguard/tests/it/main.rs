//! The protocol as two nodes see it, by sections of the paper. Constants are restated here, so
//! that the tests check the paper and not the code against itself.

mod handshake;
mod util;
