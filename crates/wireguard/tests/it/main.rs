//! The protocol as two nodes see it, by sections of the paper. Constants are restated here, so
//! that the tests check the paper and not the code against itself.

mod boringtun; // all of it, with another implementation
mod endpoints; // section 2.1 and 6.5, BEHAVIOURS 2
mod export; // no section: what a new process takes over
mod handshake; // section 5.4.2 to 5.4.4, BEHAVIOURS 9 to 13, 21
mod hostile; // section 5.3 and 5.4.7, BEHAVIOURS 22, 23, 25, 27
mod keys; // section 5.4.6 and 6.1, BEHAVIOURS 5, 7, 8, 11
mod soak; // all of it, for hours
mod timers; // section 6, BEHAVIOURS 14 to 20
mod util;
mod vectors; // section 5.4, beside an independent implementation
