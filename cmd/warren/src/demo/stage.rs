//! Where the demo takes place: namespaces that only its own processes hold.
//!
//! ```text
//!   hut ────┐                    underlay  192.0.2.0/24, 2001:db8::/64
//!   barn ───┼── switch           mesh      10.77.0.0/16, fd77::/48
//!   mill ───┤   (default
//!   laptop ─┘    gateway, wiretap)
//! ```
//!
//! None of the namespaces has a name. When the last process that holds one is gone the kernel takes
//! it apart, with the interfaces in it and the file system for what the nodes write. So nothing is left
//! behind whatever ends the demo, SIGKILL included.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, anyhow, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::links::Links;
use crate::capture::{self, Wiretap};
use crate::sys;

/// Where the demo's files are, in a file system that only its processes see.
pub(super) const DIRECTORY: &str = "/run/warren-demo";
/// The interface of every node on the underlay.
pub(super) const CARD: &str = "eth0";
const SWITCH: &str = "switch";

/// Takes this process, which must have one thread yet, out of the host's view: its own mounts, and
/// its own users if it is not root. `true` if it has its own users.
pub(super) fn leave_host() -> anyhow::Result<bool> {
    tun_may_be_opened()?;
    let is_root = rustix::process::geteuid().is_root();
    let own_users = !(is_root && sys::leave(UnshareFlags::NEWNS).is_ok());
    if own_users {
        become_root_of_own_users().map_err(|error| match is_root {
            true => anyhow!(
                "this host lets not even root make namespaces ({error}); in a container, run it \
                 with --privileged"
            ),
            false => anyhow!(
                "this host lets you make no user namespace ({error}); run the demo as root, or \
                 allow them: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu, \
                 `sysctl -w kernel.unprivileged_userns_clone=1` on older Debian"
            ),
        })?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("the demo's mounts cannot be kept from the host's")?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    mount("warren-demo", "/run", "tmpfs", flags, c"mode=755,size=64m")
        .context("there is no file system for the demo's files")?;
    fs::create_dir_all(DIRECTORY)?;
    // What the nodes mount their own directories over.
    fs::create_dir_all("/run/warren")?;
    Ok(own_users)
}

fn tun_may_be_opened() -> anyhow::Result<()> {
    const TUN: &str = "/dev/net/tun";
    let opened = File::options().read(true).write(true).open(TUN);
    let Err(error) = opened else { return Ok(()) };
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => bail!(
            "there is no {TUN}; load it with `modprobe tun`, and give a container the device with \
             `--device {TUN}`"
        ),
        Some(libc::EACCES | libc::EPERM) => bail!(
            "you may not open {TUN}; run the demo as root, or let everybody open it, as most \
             distributions do: `chmod 0666 {TUN}`"
        ),
        _ => bail!("{TUN} cannot be opened: {error}"),
    }
}

fn become_root_of_own_users() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    sys::leave(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))
}

/// A network namespace without a name.
#[derive(Debug)]
pub(super) struct Namespace {
    handle: OwnedFd,
}

impl Namespace {
    /// Makes one, with its loopback up.
    pub(super) fn new() -> anyhow::Result<Self> {
        let made = thread::spawn(|| -> io::Result<OwnedFd> {
            sys::leave(UnshareFlags::NEWNET)?;
            Links::new()?.up("lo")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let handle = joined(made).context("a network namespace cannot be made")?;
        Ok(Self { handle })
    }

    /// What stands for it, to be given to a child.
    pub(super) fn handle(&self) -> io::Result<OwnedFd> {
        self.handle.try_clone()
    }

    /// Runs a function inside, on a thread of its own.
    pub(super) fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let handle = self.handle()?;
        thread::Builder::new().spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(handle.as_fd(), kind)
                .expect("whoever made a namespace may enter it");
            work()
        })
    }

    /// Runs a function inside and waits for its result.
    pub(super) fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Ok(joined(self.thread(work)?))
    }
}

/// What a thread came to.
pub(super) fn joined<T>(thread: JoinHandle<T>) -> T {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The switch between the nodes, which is their way to everywhere else, too.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) namespace: Namespace,
    /// The interfaces to which the nodes are connected.
    pub(super) ports: Vec<u32>,
}

/// Where the underlay's default gateway is.
const GATEWAYS: [&str; 2] = ["192.0.2.254", "2001:db8::fe"];

impl Switch {
    pub(super) fn new() -> anyhow::Result<Self> {
        let namespace = Namespace::new()?;
        let made = namespace.enter(|| -> io::Result<()> {
            let links = Links::new()?;
            links.bridge(SWITCH)?;
            links.up(SWITCH)?;
            links.address(SWITCH, ip(GATEWAYS[0]), 24)?;
            links.address(SWITCH, ip(GATEWAYS[1]), 64)
        })?;
        made.context("the kernel makes no bridge for the nodes to meet on")?;
        Ok(Self {
            namespace,
            ports: Vec::new(),
        })
    }

    /// Connects a host of this number, with a card of its own.
    pub(super) fn connect(&mut self, host: &Namespace, number: u8) -> anyhow::Result<()> {
        let port = format!("port{number}");
        let there = host.handle()?;
        let index = self.namespace.enter(move || -> io::Result<u32> {
            let links = Links::new()?;
            let hardware = [2, 0, 0, 0, 0, number];
            links.cable(&port, CARD, hardware, there.as_fd())?;
            links.plug(&port, SWITCH)?;
            links.up(&port)?;
            links.index(&port)
        })?;
        self.ports
            .push(index.context("the kernel makes no pair of virtual cards")?);
        let configured = host.enter(move || -> io::Result<()> {
            let links = Links::new()?;
            links.up(CARD)?;
            let [v4, v6] = underlay_addresses(number);
            links.address(CARD, v4, 24)?;
            links.address(CARD, v6, 64)?;
            for gateway in GATEWAYS.map(ip) {
                links.route(gateway, 0, gateway)?;
            }
            Ok(())
        })?;
        configured.context("a node's card cannot be set up")
    }

    /// A wiretap at every port.
    pub(super) fn tap(&self) -> anyhow::Result<Wiretap> {
        (self.namespace.enter(capture::open)?).context("the switch cannot be listened at")
    }
}

/// The addresses of a host on the underlay.
pub(super) fn underlay_addresses(number: u8) -> [IpAddr; 2] {
    [
        ip(&format!("192.0.2.{number}")),
        ip(&format!("2001:db8::{number}")),
    ]
}

/// The addresses of a node in the mesh.
pub(super) fn mesh_addresses(number: u8) -> [IpAddr; 2] {
    [
        ip(&format!("10.77.0.{number}")),
        ip(&format!("fd77::{number}")),
    ]
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("the demo's addresses are addresses")
}

/// The directory of a node.
pub(super) fn directory(node: &str) -> PathBuf {
    Path::new(DIRECTORY).join(node)
}
