//! Hears of changes of one file, also when another is renamed over it.
//!
//! The directory is watched, since a file that is replaced takes its watch with it. Any file in it
//! counts, because ours may be a link to a neighbour. A file counts when whoever writes it is done:
//! half of one may be a good file with half of the nodes. What a watch cannot hear of (a network file
//! system, a link to elsewhere) is found by the daemon's own timer.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::sync::Notify;

/// Hears of changes in a file's directory.
pub(crate) struct Watch {
    inotify: Arc<OwnedFd>,
    directory: PathBuf,
    heard: Arc<Notify>,
}

impl Watch {
    /// Watches the directory of `file`, on a thread that ends with the process.
    pub(crate) fn new(file: &Path) -> io::Result<Self> {
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let watch = Self {
            inotify: Arc::new(inotify::init(CreateFlags::CLOEXEC)?),
            directory,
            heard: Arc::default(),
        };
        watch.begin()?;
        let (inotify, heard) = (watch.inotify.clone(), watch.heard.clone());
        std::thread::Builder::new()
            .name("warren-watch".to_owned())
            .spawn(move || listen(&inotify, &heard))?;
        Ok(watch)
    }

    /// Watches the directory that has the path now.
    pub(crate) fn begin(&self) -> io::Result<()> {
        let interesting = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.inotify, &self.directory, interesting)?;
        Ok(())
    }

    /// Waits until something in the directory has changed. Dropping the future loses nothing.
    pub(crate) async fn changed(&self) {
        self.heard.notified().await;
    }
}

fn listen(inotify: &OwnedFd, heard: &Notify) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    loop {
        match reader.next() {
            // Many at once are one: whoever is told reads the file as it is then.
            Ok(_) => heard.notify_one(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "the mesh file is looked at once in a while only");
                return;
            }
        }
    }
}
