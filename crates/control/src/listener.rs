//! A unix socket at a well-known path, claimed so that only one process has it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::server::{Door, Visitor};

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening socket, whose file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    file: Option<SocketFile>,
}

/// Why a path could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process answers there.
    #[error("{} is in use: another daemon serves this name; stop it first", .0.display())]
    InUse(PathBuf),
    /// The path is taken by something that is no socket, and not ours to remove.
    #[error("{} is in the way and is not a socket; remove it", .0.display())]
    InTheWay(PathBuf),
    /// The host said no.
    #[error("cannot listen on {}: {source}{}", .path.display(), hint(.source))]
    Io {
        /// What was to be claimed.
        path: PathBuf,
        /// What the host said.
        r#source: io::Error,
    },
}

impl Listener {
    /// Listens at `path`, with rights for its owner alone, in a directory that all may enter.
    ///
    /// A socket on which nobody listens any more is replaced. The directory is locked meanwhile, so
    /// that of two daemons that start at once exactly one gets the path.
    pub fn claim(path: &Path) -> Result<Self, ClaimError> {
        let failed = |source: io::Error| ClaimError::Io {
            path: path.to_owned(),
            source,
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let mut directory = DirBuilder::new();
        let directory = directory.recursive(true).mode(0o755);
        directory.create(parent).map_err(failed)?;
        let _lock = lock(parent).map_err(failed)?;

        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ClaimError::InTheWay(path.to_owned()));
            }
            Ok(_) => match connect_now(path) {
                // EAGAIN is a listener with a full backlog.
                Ok(()) | Err(Errno::AGAIN) => return Err(ClaimError::InUse(path.to_owned())),
                Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed)?,
                Err(errno) => return Err(failed(errno.into())),
            },
        }
        let socket = bind_private(path).map_err(|errno| failed(errno.into()))?;
        let file = SocketFile::at(path).map_err(failed)?;
        Ok(Self {
            socket: socket.into(),
            file: Some(file),
        })
    }

    /// Takes over a socket that listens already, as `WG_UAPI_FD` passes one.
    ///
    /// Its file, if it has one, is treated as if it had been claimed.
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixListener::from(socket);
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let file = address.as_pathname().map(SocketFile::at).transpose();
        Ok(Self {
            socket,
            file: file.unwrap_or_default(),
        })
    }

    /// Where the socket's file is, if it has one.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// Notifications of changes of the socket's file; `None` when there is no file to watch.
    pub(crate) fn watch(&self) -> rustix::io::Result<Option<OwnedFd>> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // An open socket's file that is unlinked loses a link, which counts as an attribute.
        let events = WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        inotify::add_watch(&watch, &file.path, events)?;
        Ok(Some(watch))
    }
}

impl Door for Listener {
    fn accept(&self) -> io::Result<Visitor> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(false)?;
        Ok(Visitor {
            stream: OwnedFd::from(stream).into(),
            from: None,
        })
    }

    fn is_reachable(&self) -> bool {
        self.file.as_ref().is_none_or(SocketFile::exists)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

/// The file of a socket, known again by its inode, since another daemon may have claimed the path
/// after somebody deleted ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    fn exists(&self) -> bool {
        Self::at(&self.path)
            .is_ok_and(|found| (found.device, found.inode) == (self.device, self.inode))
    }

    fn remove(&self) {
        let _lock = self.path.parent().map(lock);
        if self.exists()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Holds off other daemons that claim a path in this directory, until it is dropped.
fn lock(directory: &Path) -> io::Result<File> {
    let directory = File::open(directory)?;
    directory.lock()?;
    Ok(directory)
}

fn connect_now(path: &Path) -> rustix::io::Result<()> {
    connect(unix_socket()?, &SocketAddrUnix::new(path)?)
}

/// Binds with the final rights, so that there is no moment in which others could connect, and
/// without the umask, which is the whole process's.
fn bind_private(path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket = unix_socket()?;
    // The kernel gives the file that bind(2) makes the mode of the socket (net/unix/af_unix.c).
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run it as root",
        io::ErrorKind::ReadOnlyFilesystem => "; mount a writable file system there",
        _ => "",
    }
}
