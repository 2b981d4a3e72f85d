//! Real daemons of one mesh: what they carry, what they refuse, and what becomes of the host around
//! them. Behaviours 41, 43, 46 and 47.

mod fence;
mod file;
mod host;
mod peers;
