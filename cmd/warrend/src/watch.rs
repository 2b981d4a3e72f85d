//! Hears of changes of a few files, also when others are renamed over them.
//!
//! Their directories are watched, since a file that is replaced takes its watch with it. Any file in them
//! counts, because ours may be a link to a neighbour. A file counts when whoever writes it is done:
//! half of one may be a good file with half of the nodes. What a watch cannot hear of (a network file
//! system, a link to elsewhere) is found by the daemon's own timer.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::sync::Notify;

/// Hears of changes in the directories of files.
pub(crate) struct Watch {
    inotify: Arc<OwnedFd>,
    directories: BTreeSet<PathBuf>,
    heard: Arc<Notify>,
}

impl Watch {
    /// Hears of nothing yet, on a thread that ends with the process.
    pub(crate) fn new() -> io::Result<Self> {
        let watch = Self {
            inotify: Arc::new(inotify::init(CreateFlags::CLOEXEC)?),
            directories: BTreeSet::new(),
            heard: Arc::default(),
        };
        let (inotify, heard) = (watch.inotify.clone(), watch.heard.clone());
        std::thread::Builder::new()
            .name("warren-watch".to_owned())
            .spawn(move || listen(&inotify, &heard))?;
        Ok(watch)
    }

    /// Watches the directories of these files from now on. Those of earlier files may be heard of still.
    pub(crate) fn files(&mut self, files: &BTreeSet<PathBuf>) {
        self.directories = files.iter().map(|file| directory_of(file)).collect();
        self.begin();
    }

    /// Watches the directories that have the paths now. One that is not there is passed over.
    pub(crate) fn begin(&self) {
        for directory in &self.directories {
            if let Err(error) = self.watch(directory) {
                tracing::debug!(%error, "{} cannot be watched", directory.display());
            }
        }
    }

    fn watch(&self, directory: &Path) -> io::Result<()> {
        let interesting = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.inotify, directory, interesting)?;
        Ok(())
    }

    /// Waits until something in the directories has changed. Dropping the future loses nothing.
    pub(crate) async fn changed(&self) {
        self.heard.notified().await;
    }
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
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
                tracing::warn!(%error, "the mesh file and the keys are looked at once in a while only");
                return;
            }
        }
    }
}
