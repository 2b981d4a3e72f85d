//! What on this host is ours, kept in the state directory, and the fence file beside it.
//!
//! A claim is written before anything of it is made, and taken out after all of it is gone. So
//! whatever moment the daemon dies at, the file names at least what is there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use warren_config::{Fence, HostConfig, Steering};

use crate::fence;

/// Of both files. A file of another version is refused, not guessed at.
const VERSION: u32 = 1;
const OWNED: &str = "owned.json";
const FENCE: &str = "fence.json";

/// Everything on this host that is ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owned {
    /// One for each tunnel that was ever set up and not yet removed whole.
    pub claims: BTreeSet<Claim>,
}

/// What one tunnel has on the host, by the names under which it can be found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The TUN interface, with its addresses and settings; also names the nftables table.
    pub interface: String,
    /// The routing table, with all that is in it.
    pub table: u32,
    /// The rules from two before to one after this preference that have the shape of ours.
    pub rule_priority: u32,
}

impl Claim {
    /// What a tunnel that is configured like this has.
    pub fn of(config: &HostConfig) -> Self {
        Self {
            interface: config.interface.clone(),
            table: config.table,
            rule_priority: config.rule_priority,
        }
    }

    /// The name of the nftables table.
    pub fn nftables(&self) -> String {
        fence::table_name(&self.interface)
    }
}

/// Why a file of the state directory is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        r#source: io::Error,
    },
    /// It is not what this program writes.
    #[error("{path} is not a file of this program: {source}")]
    Content {
        /// Which file.
        path: String,
        /// Why.
        r#source: serde_json::Error,
    },
    /// It is of a version that this program does not know.
    #[error("{path} is of version {found}; this program knows version {VERSION}")]
    Version {
        /// Which file.
        path: String,
        /// Its version.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedFile {
    version: u32,
    claims: BTreeSet<Claim>,
}

impl Owned {
    /// What the state directory says; nothing where there is no file yet.
    pub fn load(directory: &Path) -> Result<Self, StateError> {
        let file: Option<OwnedFile> = read(&directory.join(OWNED))?;
        let claims = file.map(|file| file.claims).unwrap_or_default();
        Ok(Self { claims })
    }

    pub(crate) fn save(&self, directory: &Path) -> Result<(), StateError> {
        let file = OwnedFile {
            version: VERSION,
            claims: self.claims.clone(),
        };
        write(&directory.join(OWNED), &file)
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FenceFile {
    version: u32,
    interface: String,
    table: u32,
    rule_priority: u32,
    fwmark: u32,
    addresses: BTreeSet<IpAddr>,
    mesh: BTreeSet<IpNet>,
    local: BTreeSet<IpNet>,
    // Not in the files of older versions, and left out where they say what those did.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    open: BTreeSet<IpNet>,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    inward: bool,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    overlay_ports: BTreeSet<u16>,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// Writes what the fence needs to know, if it is not there already.
pub(crate) fn save_fence(directory: &Path, config: &HostConfig) -> Result<(), StateError> {
    let path = directory.join(FENCE);
    let file = FenceFile {
        version: VERSION,
        interface: config.interface.clone(),
        table: config.table,
        rule_priority: config.rule_priority,
        fwmark: config.fwmark,
        addresses: config.addresses.clone(),
        mesh: config.fence.mesh.clone(),
        local: config.fence.local.clone(),
        open: config.fence.open.clone(),
        inward: config.fence.inward,
        overlay_ports: match &config.steering {
            Steering::Prefixes => BTreeSet::new(),
            Steering::Overlay { ports } => ports.clone(),
        },
    };
    // One that cannot be read is written anew.
    match read::<FenceFile>(&path) {
        Ok(Some(found)) if found == file => Ok(()),
        _ => write(&path, &file),
    }
}

/// The host as the fence file knows it: no routes into the tunnel, and no link.
pub(crate) fn load_fence(directory: &Path) -> Result<Option<HostConfig>, StateError> {
    let file: Option<FenceFile> = read(&directory.join(FENCE))?;
    Ok(file.map(|file| HostConfig {
        interface: file.interface,
        mtu: 0,
        addresses: file.addresses,
        table: file.table,
        rule_priority: file.rule_priority,
        fwmark: file.fwmark,
        steering: match file.overlay_ports {
            ports if ports.is_empty() => Steering::Prefixes,
            ports => Steering::Overlay { ports },
        },
        routes: BTreeSet::new(),
        masquerade: false,
        fence: Fence {
            mesh: file.mesh,
            local: file.local,
            open: file.open,
            inward: file.inward,
        },
    }))
}

/// Removes both files.
pub(crate) fn forget(directory: &Path) -> Result<(), StateError> {
    for name in [FENCE, OWNED] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&path, source));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(path, source)),
    };
    let content = |source| StateError::Content {
        path: path.display().to_string(),
        source,
    };
    let found = serde_json::from_slice::<Versioned>(&text)
        .map_err(content)?
        .version;
    if found != VERSION {
        let path = path.display().to_string();
        return Err(StateError::Version { path, found });
    }
    serde_json::from_slice(&text).map(Some).map_err(content)
}

/// Replaces the file whole: a reader, or the next boot, sees the old one or the new one.
fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let text = serde_json::to_vec_pretty(value).expect("plain data has a JSON form");
    let next = path.with_extension("json.new");
    let attempt = || -> io::Result<()> {
        let mut file = File::create(&next)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    attempt().map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::config;

    /// A directory that is gone after the test.
    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let name = format!("warren-owned-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).expect("a temporary directory");
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_forgotten_at_the_end() {
        let directory = Directory::new("round");
        assert_eq!(
            Owned::load(&directory.0).expect("no file is fine"),
            Owned::default()
        );
        let owned = Owned {
            claims: [Claim::of(&config())].into(),
        };
        owned.save(&directory.0).expect("is writable");
        save_fence(&directory.0, &config()).expect("is writable");

        assert_eq!(Owned::load(&directory.0).expect("was written"), owned);
        let fence = load_fence(&directory.0)
            .expect("is readable")
            .expect("was written");
        assert_eq!(fence.fence, config().fence);
        assert_eq!(Claim::of(&fence), Claim::of(&config()));
        assert_eq!(
            (fence.fwmark, fence.addresses),
            (config().fwmark, config().addresses)
        );

        forget(&directory.0).expect("can be removed");
        assert_eq!(load_fence(&directory.0).expect("no file is fine"), None);
        forget(&directory.0).expect("what is gone is forgotten");
    }

    #[test]
    fn what_older_versions_wrote_is_read_and_what_they_can_read_is_written() {
        let directory = Directory::new("older");
        let older = r#"{
            "version": 1, "interface": "warren0", "table": 51820, "rule_priority": 98,
            "fwmark": 8192, "addresses": ["10.1.0.1"], "mesh": ["10.1.0.0/16"],
            "local": ["10.1.0.1/32"]
        }"#;
        fs::write(directory.0.join(FENCE), older).expect("is writable");
        let fence = load_fence(&directory.0)
            .expect("is readable")
            .expect("was written");
        assert!(fence.fence.inward);
        assert_eq!(fence.fence.open, BTreeSet::new());
        assert_eq!(fence.steering, Steering::Prefixes);

        save_fence(&directory.0, &fence).expect("is writable");
        let written = fs::read(directory.0.join(FENCE)).expect("was written");
        let read = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).expect("JSON");
        assert_eq!(read(&written), read(older.as_bytes()));
    }

    #[test]
    fn exceptions_stages_and_overlays_are_read_back() {
        let directory = Directory::new("newer");
        let ports = [4789, 8472].into();
        let mut config = config();
        config.steering = Steering::Overlay { ports };
        config.fence.inward = false;
        config.fence.open = [crate::tests::net("10.1.3.0/24")].into();
        save_fence(&directory.0, &config).expect("is writable");
        let fence = load_fence(&directory.0)
            .expect("is readable")
            .expect("was written");
        assert_eq!(
            (fence.fence, fence.steering),
            (config.fence, config.steering)
        );
    }

    #[test]
    fn a_fence_that_is_unchanged_is_not_written_again() {
        let directory = Directory::new("unchanged");
        save_fence(&directory.0, &config()).expect("is writable");
        let path = directory.0.join(FENCE);
        let mut permissions = fs::metadata(&path).expect("was written").permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).expect("is ours");
        let before = fs::metadata(&path).expect("is there");

        save_fence(&directory.0, &config()).expect("there is nothing to write");

        // A write would have put a new file in its place.
        let after = fs::metadata(&path).expect("is there");
        assert!(after.permissions().readonly());
        assert_eq!(before.modified().ok(), after.modified().ok());
    }

    #[test]
    fn files_that_are_not_ours_or_of_another_version_are_refused() {
        let directory = Directory::new("refused");
        let path = directory.0.join(OWNED);
        fs::write(&path, "{}").expect("is writable");
        assert!(matches!(
            Owned::load(&directory.0),
            Err(StateError::Content { .. })
        ));
        fs::write(&path, r#"{"version": 2, "claims": [], "more": 1}"#).expect("is writable");
        let refused = Owned::load(&directory.0);
        assert!(
            matches!(refused, Err(StateError::Version { found: 2, .. })),
            "{refused:?}"
        );
    }
}
