//! A mesh file that anybody may have written: it is read, or refused with places that are in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_mesh::MeshFile;

fuzz_target!(|text: &str| {
    match MeshFile::parse(text, "mesh.toml") {
        Ok(_) => {}
        Err(problems) => assert!(!problems.is_empty(), "refused without a word"),
    }
});
