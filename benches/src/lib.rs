//! Nothing: the benches of this package are its point, see `benches/`.
//!
//! `cargo bench -p warren-benches` measures single parts; `benches/compare` measures whole tunnels
//! beside each other.
