//! What a node keeps on its disk: its keys, and what must survive a restart.
//!
//! One directory ([`StateDir`]), which nobody but its owner may enter. A secret is taken only from a
//! file that others could neither read nor have replaced, and it is never overwritten. Everything
//! else is written beside its place and renamed into it, so that after a power cut there is the old
//! or the new, and not half of either.
//!
//! Both the daemon and the command for people use this crate; it never draws randomness and knows
//! nothing of what it keeps beyond keys.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use warren_config::{KeyError, PresharedKey, PrivateKey};
use zeroize::Zeroizing;

/// The private key, one line of base64 as `wg genkey` prints it.
pub const PRIVATE_KEY_FILE: &str = "private.key";

/// Bound of a key file in bytes; a key takes 45.
const KEY_FILE_MAX: u64 = 4096;

/// A node's state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

/// Why a file of the state directory is not used, with what would be right.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The host said no.
    #[error("{} cannot be {did}: {source}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was to be done.
        did: &'static str,
        /// What the host said.
        r#source: io::Error,
    },
    /// The directory is none.
    #[error("{} is no directory; the keys are kept in one", .path.display())]
    NoDirectory {
        /// What should be one.
        path: PathBuf,
    },
    /// There is no such file.
    #[error("there is no {what} at {}; `{make}` makes one", .path.display())]
    Missing {
        /// What would be there.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The command that makes it.
        make: &'static str,
    },
    /// Others may read it.
    #[error("{} is open to others (mode {mode:04o}); run `chmod {right:o} {0}`", .path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        right: u32,
    },
    /// Somebody else could have put it there.
    #[error("{} belongs to user {owner}, who could have replaced it; run `chown {right} {0}`", .path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        right: u32,
    },
    /// It is a directory, a link, a pipe or the like.
    #[error("{} is no ordinary file; put the key itself there", .path.display())]
    NoFile {
        /// Which.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{} holds no key; {source}", .path.display())]
    NoKey {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        r#source: KeyError,
    },
}

impl StateDir {
    /// The directory at `path`, whether or not there is one.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the private key is.
    pub fn private_key_path(&self) -> PathBuf {
        self.path.join(PRIVATE_KEY_FILE)
    }

    /// Makes the directory where there is none, for its owner alone, and refuses one in which
    /// others could put files.
    pub fn create(&self) -> Result<(), StateError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&self.path)
            .map_err(|source| match fs::metadata(&self.path) {
                Ok(metadata) if !metadata.is_dir() => StateError::NoDirectory {
                    path: self.path.clone(),
                },
                _ => self.error("made", source),
            })?;
        let metadata = fs::metadata(&self.path).map_err(|source| self.error("read", source))?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(StateError::Open {
                path: self.path.clone(),
                mode,
                right: 0o700,
            });
        }
        check_owner(&self.path, metadata.uid())
    }

    /// The private key, if the file is this user's alone.
    pub fn private_key(&self) -> Result<PrivateKey, StateError> {
        read_key(&self.private_key_path(), "private key", "warren init")
    }

    /// Puts `key` where there is none yet; `false` if there was one, which stays.
    pub fn create_private_key(&self, key: &PrivateKey) -> Result<bool, StateError> {
        let mut text = Zeroizing::new(key.to_base64());
        text.push('\n');
        self.put(PRIVATE_KEY_FILE, text.as_bytes(), RenameFlags::NOREPLACE)
    }

    /// Puts `key` in the place of whatever was there: the node has become another.
    pub fn replace_private_key(&self, key: &PrivateKey) -> Result<(), StateError> {
        let mut text = Zeroizing::new(key.to_base64());
        text.push('\n');
        self.write(PRIVATE_KEY_FILE, text.as_bytes())
    }

    /// A preshared key; a relative path starts in this directory.
    pub fn preshared_key(&self, path: &str) -> Result<PresharedKey, StateError> {
        read_key(&self.path.join(path), "preshared key", "warren genpsk")
    }

    /// The bytes of a file, or `None` where there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error(self.path.join(name), "read", source)),
        }
    }

    /// Replaces a file as a whole, on the disk when this returns. Its owner alone may read it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.put(name, bytes, RenameFlags::empty()).map(|_| ())
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(self.path.join(name), "removed", error))
            }
            _ => Ok(()),
        }
    }

    /// Writes beside the place, syncs, renames, syncs. `false` if `flags` forbid to replace.
    fn put(&self, name: &str, bytes: &[u8], flags: RenameFlags) -> Result<bool, StateError> {
        let path = self.path.join(name);
        let beside = self.path.join(format!(".{name}.{}", std::process::id()));
        // Left over from a process of the same number that was killed.
        let _absent = fs::remove_file(&beside);
        let put = || -> io::Result<bool> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)?;
            // A umask can only take bits away, and could take those of the owner.
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(bytes)?;
            file.sync_all()?;
            match renameat_with(CWD, &beside, CWD, &path, flags) {
                Ok(()) => {}
                Err(rustix::io::Errno::EXIST) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            File::open(&self.path)?.sync_all()?;
            Ok(true)
        };
        let done = put();
        if !matches!(done, Ok(true)) {
            let _absent = fs::remove_file(&beside);
        }
        done.map_err(|source| io_error(path, "written", source))
    }

    fn error(&self, did: &'static str, source: io::Error) -> StateError {
        io_error(self.path.clone(), did, source)
    }
}

/// A key from a file that is its owner's alone.
fn read_key<K: FromStr<Err = KeyError>>(
    path: &Path,
    what: &'static str,
    make: &'static str,
) -> Result<K, StateError> {
    let missing = || StateError::Missing {
        what,
        path: path.to_owned(),
        make,
    };
    let no_file = || StateError::NoFile {
        path: path.to_owned(),
    };
    // A path comes from the mesh file, and some devices do things as soon as they are opened.
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(no_file());
    }
    // Neither follow a link nor wait for a pipe's writer that have come meanwhile.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags as i32)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(no_file());
        }
        Err(source) => return Err(io_error(path.to_owned(), "read", source)),
    };
    // Of the open file, so that it cannot be exchanged between the question and the use.
    let metadata = file
        .metadata()
        .map_err(|source| io_error(path.to_owned(), "read", source))?;
    if !metadata.is_file() {
        return Err(no_file());
    }
    check_owner(path, metadata.uid())?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StateError::Open {
            path: path.to_owned(),
            mode,
            right: 0o600,
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_MAX as usize));
    file.take(KEY_FILE_MAX)
        .read_to_string(&mut text)
        .map_err(|source| io_error(path.to_owned(), "read", source))?;
    text.trim().parse().map_err(|source| StateError::NoKey {
        path: path.to_owned(),
        source,
    })
}

/// Refuses what is neither this user's nor root's.
fn check_owner(path: &Path, owner: u32) -> Result<(), StateError> {
    let own = rustix::process::geteuid().as_raw();
    if owner == own || owner == 0 {
        return Ok(());
    }
    Err(StateError::Foreign {
        path: path.to_owned(),
        owner,
        right: own,
    })
}

fn io_error(path: PathBuf, did: &'static str, source: io::Error) -> StateError {
    StateError::Io { path, did, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_key_is_kept_for_its_owner_alone() {
        let scratch = Scratch::new("alone");
        let state = scratch.state();
        state.create().expect("created");
        assert!(state.create_private_key(&key(1)).expect("written"));
        assert_eq!(mode(state.path()), 0o700);
        assert_eq!(mode(&state.private_key_path()), 0o600);
        assert_eq!(state.private_key().expect("read"), key(1));
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let scratch = Scratch::new("kept");
        let state = scratch.state();
        state.create().expect("created");
        assert!(state.create_private_key(&key(1)).expect("written"));
        assert!(!state.create_private_key(&key(2)).expect("kept"));
        assert_eq!(state.private_key().expect("read"), key(1));
        let files = fs::read_dir(state.path()).expect("a directory").count();
        assert_eq!(files, 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_a_sentence() {
        let scratch = Scratch::new("open");
        let state = scratch.state();
        state.create().expect("created");
        state.create_private_key(&key(1)).expect("written");
        let path = state.private_key_path();
        for bits in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666] {
            fs::set_permissions(&path, Permissions::from_mode(bits)).expect("changed");
            let error = state.private_key().expect_err("open to others");
            let at = path.display();
            assert_eq!(
                error.to_string(),
                format!("{at} is open to others (mode {bits:04o}); run `chmod 600 {at}`")
            );
        }
    }

    #[test]
    fn a_link_a_pipe_a_directory_and_nonsense_are_no_keys() {
        let scratch = Scratch::new("nonsense");
        let state = scratch.state();
        state.create().expect("created");
        let path = state.private_key_path();
        let error = state.private_key().expect_err("missing").to_string();
        assert!(error.ends_with("`warren init` makes one"), "{error}");

        state.write("elsewhere", b"x").expect("written");
        symlink(state.path().join("elsewhere"), &path).expect("linked");
        assert!(matches!(
            state.private_key(),
            Err(StateError::NoFile { .. })
        ));
        fs::remove_file(&path).expect("removed");
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::Fifo, mode, 0).expect("made");
        assert!(matches!(
            state.private_key(),
            Err(StateError::NoFile { .. })
        ));
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("made");
        assert!(matches!(
            state.private_key(),
            Err(StateError::NoFile { .. })
        ));
        fs::remove_dir(&path).expect("removed");
        for nonsense in [&b""[..], b"abc\n", &[0xff; 32], &[b'A'; 100_000]] {
            state.write(PRIVATE_KEY_FILE, nonsense).expect("written");
            assert!(state.private_key().is_err());
        }
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_called_one() {
        let scratch = Scratch::new("file");
        scratch.state().create().expect("created");
        scratch.state().write("file", b"x").expect("written");
        let state = StateDir::new(scratch.state().path().join("file"));
        let error = state.create().expect_err("it is a file").to_string();
        let sentence = format!(
            "{} is no directory; the keys are kept in one",
            state.path().display()
        );
        assert_eq!(error, sentence);
    }

    #[test]
    fn a_directory_in_which_others_may_write_is_refused() {
        let scratch = Scratch::new("shared");
        let state = scratch.state();
        state.create().expect("created");
        fs::set_permissions(state.path(), Permissions::from_mode(0o777)).expect("changed");
        assert!(matches!(
            state.create(),
            Err(StateError::Open { mode: 0o777, .. })
        ));
    }

    #[test]
    fn what_is_written_replaces_the_old_as_a_whole() {
        let scratch = Scratch::new("whole");
        let state = scratch.state();
        state.create().expect("created");
        assert_eq!(state.read("ceiling").expect("read"), None);
        state
            .write("ceiling", b"a long first text")
            .expect("written");
        state.write("ceiling", b"short").expect("written");
        assert_eq!(
            state.read("ceiling").expect("read").as_deref(),
            Some(&b"short"[..])
        );
        assert_eq!(mode(&state.path().join("ceiling")), 0o600);
    }

    fn key(number: u8) -> PrivateKey {
        PrivateKey::from_bytes([number; 32])
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").mode() & 0o7777
    }

    /// A directory of this test's own, gone when it ends.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let name = format!("warren-state-{test}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn state(&self) -> StateDir {
            StateDir::new(&self.0)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _gone = fs::remove_dir_all(&self.0);
        }
    }
}
