//! A place for sockets that goes away with its test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own for each test. Short, since the path of a socket has at most 107 bytes.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("warren-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("a writable temporary directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A socket in a directory that does not exist yet.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("wireguard/wg0.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
