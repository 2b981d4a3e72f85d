//! A Linux TUN interface as a set of queues that move batches.
//!
//! [`Device::open`] makes the interface, or attaches to a persistent one, with everything the
//! kernel grants: several queues, an offload header on each packet, segmentation of TCP and UDP
//! left to us, and a program that keeps each flow on one queue. Each of these is probed, can be
//! switched off by [`Options`], and stands in [`Features`]. The [`Queue`]s then go to the threads
//! that read and write them; the [`Device`] stays with whoever sets MTU and state, and [`Links`]
//! tells what others did to the interface.
//!
//! The interface lives until the device, all queues and all monitors are dropped; a persistent
//! one lives on.
//!
//! Two things the kernel does are not obvious. Flags, offloads, header length and steering belong
//! to the interface and survive in a persistent one, so all are set anew at each attach, also to
//! nothing. And a multi-queue interface can be attached to by a second process, which then takes
//! a share of the packets; so an interface whose queues are held is refused.
//!
//! Why not the `tun` or `tun-rs` crate: the first knows no offload header; the second does, but
//! neither probes what it gets, steers, tells whether an interface is held, nor hands out the
//! header as it is, and it reads into buffers of its own. What is left is a dozen ioctls, in
//! `sys.rs`, and a dozen netlink messages.
//!
//! This crate never touches addresses, routes or packets' contents, and has no threads.

mod link;
mod queue;
mod steering;
mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use thiserror::Error;
use warren_packet::vnet;

pub use link::{LinkEvent, Links};
pub use queue::{Queue, is_deleted};

/// What to open, and what to leave off that the kernel would grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Name of the interface; empty or with `%d` lets the kernel choose.
    pub name: String,
    /// How many queues; one where there is no multi-queue.
    pub queues: usize,
    /// Have the offload header, and leave checksums and the segmentation of TCP to us.
    pub offload: bool,
    /// Leave the segmentation of UDP to us as well.
    pub udp_offload: bool,
    /// Leave the segmentation of what is in VXLAN or Geneve to us as well.
    pub tunnel_offload: bool,
    /// Be able to have several queues, also if there is only one: a persistent interface can
    /// later only be opened in the same mode.
    pub multi_queue: bool,
    /// Keep each flow on one queue by a program in the kernel.
    pub steering: bool,
    /// The interface outlives this process.
    pub persist: bool,
    /// Set the MTU.
    pub mtu: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: String::new(),
            queues: 1,
            offload: true,
            udp_offload: true,
            tunnel_offload: true,
            multi_queue: true,
            steering: true,
            persist: false,
            mtu: None,
        }
    }
}

/// What is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// How many queues there are.
    pub queues: usize,
    /// The interface can have several queues.
    pub multi_queue: bool,
    /// Packets have an offload header.
    pub vnet_header: bool,
    /// The kernel leaves checksums to us. What it takes from us needs no such grant.
    pub checksum_offload: bool,
    /// Large TCP packets are exchanged, both ways.
    pub tcp_offload: bool,
    /// Large UDP packets are exchanged, both ways.
    pub udp_offload: bool,
    /// Large packets in UDP tunnels (VXLAN, Geneve) are read. They are never written: Linux 6.18 checks
    /// them as if each interface had Ethernet headers (`virtio_net_hdr_tnl_to_skb`).
    pub tunnel_offload: bool,
    /// A flow stays on one queue. Without it, and with more than one queue, whoever writes must
    /// keep a flow on one queue, since the kernel answers where it was last written.
    pub steering: bool,
    /// The interface outlives this process.
    pub persistent: bool,
}

/// Why there is no device.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no TUN in this kernel, or no device node.
    #[error("/dev/net/tun is missing; is the tun module loaded? ({0})")]
    Missing(io::Error),
    /// The device node is there and may not be opened, which takes no capability.
    #[error(
        "/dev/net/tun may not be opened: its rights, the container's runtime (runc 1.2.0 to 1.2.3 do) or \
         a security module denies it; run as root, and a container as a privileged one ({0})"
    )]
    Denied(io::Error),
    /// It takes `CAP_NET_ADMIN`.
    #[error("no permission to {action}; it takes root or CAP_NET_ADMIN ({source})")]
    Permission {
        /// What was not permitted.
        action: &'static str,
        /// What the kernel said.
        r#source: io::Error,
    },
    /// The name is longer than 15 bytes or no name of an interface at all.
    #[error("{0:?} cannot be the name of an interface")]
    Name(String),
    /// Another process holds its queues.
    #[error("interface {0} is in use by another process")]
    Busy(String),
    /// There is an interface of this name that is no TUN, or one of another mode.
    #[error("interface {0} exists and cannot be used: it is no TUN or of another owner")]
    Other(String),
    /// A descriptor that was handed over is no queue of a TUN interface.
    #[error("the descriptor is not attached to a TUN interface{}", in_brackets(.0.as_ref()))]
    NotTun(Option<io::Error>),
    /// Something else went wrong.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        r#source: io::Error,
    },
}

fn in_brackets(cause: Option<&io::Error>) -> String {
    cause.map_or_else(String::new, |cause| format!(" ({cause})"))
}

/// A TUN interface.
#[derive(Debug)]
pub struct Device {
    /// A further descriptor of the first queue, for what is set on the interface.
    control: OwnedFd,
    index: u32,
    name: String,
    features: Features,
    queues: Vec<Queue>,
}

/// Of `linux/if_tun.h` since Linux 6.17; libc does not have them yet.
const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x080;
const TUN_F_UDP_TUNNEL_GSO_CSUM: libc::c_uint = 0x100;

const BASE_FLAGS: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI;

impl Device {
    /// Open what `options` say, or as much of it as the kernel grants.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        check_name(&options.name)?;
        let first = open_node()?;
        let known = sys::known_flags(first.as_fd()).map_err(system("ask for TUN features"))?;
        let wanted = |flag, on| if on { flag & known } else { 0 };
        let mut flags = BASE_FLAGS
            | wanted(libc::IFF_VNET_HDR, options.offload)
            | wanted(libc::IFF_MULTI_QUEUE, options.multi_queue);

        let existing = link::by_name(&options.name).map_err(system("look for the interface"))?;
        match &existing {
            Some(link) if !link.is_tun => return Err(OpenError::Other(options.name.clone())),
            Some(link) if link.carrier => return Err(OpenError::Busy(options.name.clone())),
            _ => {}
        }
        let interface = match sys::attach(first.as_fd(), &options.name, flags) {
            // A persistent interface of the other queue mode: use it in its own.
            Err(error) if existing.is_some() && is(&error, Errno::INVAL) => {
                flags ^= libc::IFF_MULTI_QUEUE & known;
                sys::attach(first.as_fd(), &options.name, flags)
            }
            result => result,
        }
        .map_err(|error| attach_error(error, &options.name, existing.is_some()))?;

        let device = Self::with_first(first, &interface.name, flags, options)?;
        // Between the look and the attach another process may have done the same.
        let link = link::by_index(device.index).map_err(system("look at the interface"))?;
        if link
            .and_then(|link| link.queues)
            .is_some_and(|held| held > 1)
        {
            return Err(OpenError::Busy(interface.name));
        }
        device.set_up_queues(flags, options)
    }

    /// Take over a queue that another process opened, in the mode of its interface.
    ///
    /// It has to be without packet information (`IFF_NO_PI`), which the kernel does not tell.
    /// More queues than this are not opened, whatever `options` say; its name is not looked at.
    pub fn from_fd(queue: OwnedFd, options: &Options) -> Result<Self, OpenError> {
        let interface =
            sys::attached(queue.as_fd()).map_err(|error| OpenError::NotTun(Some(error)))?;
        if interface.flags & libc::IFF_TUN == 0 || interface.flags & libc::IFF_DETACH_QUEUE != 0 {
            return Err(OpenError::NotTun(None));
        }
        let flags = fcntl_getfl(&queue).map_err(|error| OpenError::NotTun(Some(error.into())))?;
        fcntl_setfl(&queue, flags | OFlags::NONBLOCK)
            .map_err(|error| OpenError::NotTun(Some(error.into())))?;
        let device = Self::with_first(queue, &interface.name, interface.flags, options)?;
        let options = Options {
            queues: 1,
            persist: interface.flags & libc::IFF_PERSIST != 0,
            ..options.clone()
        };
        device.set_up_queues(interface.flags, &options)
    }

    /// A device with its first queue, and nothing set yet.
    fn with_first(
        first: OwnedFd,
        name: &str,
        flags: libc::c_int,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let control = first
            .try_clone()
            .map_err(system("duplicate a descriptor"))?;
        let link = link::by_name(name)
            .map_err(system("look at the interface"))?
            .ok_or_else(|| OpenError::Other(name.to_owned()))?;
        let vnet_header = flags & libc::IFF_VNET_HDR != 0;
        Ok(Self {
            control,
            index: link.index,
            name: link.name,
            features: Features {
                queues: 1,
                multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
                vnet_header,
                checksum_offload: false,
                tcp_offload: false,
                udp_offload: false,
                tunnel_offload: false,
                steering: false,
                persistent: options.persist,
            },
            queues: vec![Queue::new(first, vnet_header)],
        })
    }

    /// Everything that is the same for a new interface and a persistent one.
    fn set_up_queues(mut self, flags: libc::c_int, options: &Options) -> Result<Self, OpenError> {
        self.set_offloads(options)?;
        if self.features.multi_queue {
            for _ in 1..options.queues {
                let queue = open_node()?;
                sys::attach(queue.as_fd(), &self.name, flags)
                    .map_err(|error| attach_error(error, &self.name, true))?;
                self.queues
                    .push(Queue::new(queue, self.features.vnet_header));
            }
        }
        self.features.queues = self.queues.len();
        self.features.steering = self.steer(options);
        sys::set_persist(self.control.as_fd(), options.persist)
            .map_err(system("make the interface persistent"))?;
        if let Some(mtu) = options.mtu {
            self.set_mtu(mtu).map_err(system("set the MTU"))?;
        }
        Ok(self)
    }

    /// Ask for as much as there is, in steps: older kernels refuse what they do not know.
    fn set_offloads(&mut self, options: &Options) -> Result<(), OpenError> {
        let tun = self.control.as_fd();
        if !self.features.vnet_header {
            // An earlier process may have left offloads on, for which there is no header now.
            return sys::set_offload(tun, 0).map_err(system("reset offloads"));
        }
        sys::set_header_len(tun, vnet::LEN as libc::c_int)
            .map_err(system("set the length of the offload header"))?;
        let checksum = libc::TUN_F_CSUM;
        let tcp = checksum | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // The kernel takes both of these or none.
        let udp = tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        let plain = if options.udp_offload { udp } else { tcp };
        let tunnel = plain | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM;
        let first = if options.tunnel_offload {
            tunnel
        } else {
            plain
        };
        let granted = [first, plain, tcp, checksum]
            .into_iter()
            .find(|offload| sys::set_offload(tun, *offload).is_ok())
            .unwrap_or(0);
        if granted == 0 {
            sys::set_offload(tun, 0).map_err(system("reset offloads"))?;
        }
        self.features.checksum_offload = granted & checksum != 0;
        self.features.tcp_offload = granted & libc::TUN_F_TSO4 != 0;
        self.features.udp_offload = granted & libc::TUN_F_USO4 != 0;
        self.features.tunnel_offload = granted & TUN_F_UDP_TUNNEL_GSO != 0;
        Ok(())
    }

    /// Whether the steering program is in place.
    fn steer(&self, options: &Options) -> bool {
        let tun = self.control.as_fd();
        if !options.steering || self.queues.len() < 2 {
            // Not there at all on old kernels, so nothing to remove either.
            let _ = sys::set_steering(tun, None);
            return false;
        }
        let loaded = sys::load_socket_filter(&steering::program())
            .and_then(|program| sys::set_steering(tun, Some(program.as_fd())));
        loaded.is_ok()
    }

    /// What is in use.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The queues, once; later there are none.
    pub fn take_queues(&mut self) -> Vec<Queue> {
        std::mem::take(&mut self.queues)
    }

    /// A monitor of what happens to the interface from now on.
    pub fn links(&self) -> io::Result<Links> {
        Links::new(self.index, self.control.try_clone()?)
    }

    /// The name, which others can change; the last one known if there is no interface any more.
    pub fn name(&self) -> String {
        sys::attached(self.control.as_fd()).map_or_else(|_| self.name.clone(), |now| now.name)
    }

    /// The index, which nobody can change.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether the interface was deleted.
    pub fn is_deleted(&self) -> bool {
        sys::attached(self.control.as_fd()).is_err()
    }

    /// The MTU.
    pub fn mtu(&self) -> io::Result<u32> {
        Ok(self.link()?.mtu)
    }

    /// Set the MTU.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        link::set_mtu(self.index, mtu)
    }

    /// Whether it is up.
    pub fn is_up(&self) -> io::Result<bool> {
        Ok(self.link()?.up)
    }

    /// Set it up or down.
    pub fn set_up(&self, up: bool) -> io::Result<()> {
        link::set_up(self.index, up)
    }

    /// Bound the large packets that the kernel leaves to be cut.
    ///
    /// A packet of 64 KiB may need one datagram more than a segmented send can carry; a smaller
    /// bound saves the second send. Older kernels do not take it, which does no harm.
    pub fn set_gso_max_size(&self, bytes: u32) -> io::Result<()> {
        link::set_gso_max_size(self.index, bytes)
    }

    /// Delete the interface, persistent or not, whoever holds its queues.
    pub fn delete(self) -> io::Result<()> {
        match link::delete(self.index) {
            Err(error) if is(&error, Errno::NODEV) => Ok(()),
            result => result,
        }
    }

    fn link(&self) -> io::Result<link::Link> {
        link::by_index(self.index)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What `dev_valid_name` of the kernel takes, or nothing.
fn check_name(name: &str) -> Result<(), OpenError> {
    let valid = name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| byte == 0 || byte == b'/' || byte == b':' || byte.is_ascii_whitespace());
    if valid {
        Ok(())
    } else {
        Err(OpenError::Name(name.to_owned()))
    }
}

fn open_node() -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open("/dev/net/tun", flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => OpenError::Missing(error.into()),
        Errno::ACCESS | Errno::PERM => OpenError::Denied(error.into()),
        _ => OpenError::System {
            action: "open /dev/net/tun",
            source: error.into(),
        },
    })
}

fn attach_error(error: io::Error, name: &str, existed: bool) -> OpenError {
    match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => OpenError::Busy(name.to_owned()),
        Some(Errno::PERM | Errno::ACCESS) => OpenError::Permission {
            action: "make a TUN interface",
            source: error,
        },
        Some(Errno::INVAL) if existed => OpenError::Other(name.to_owned()),
        Some(Errno::INVAL) => OpenError::Name(name.to_owned()),
        _ => OpenError::System {
            action: "attach to the interface",
            source: error,
        },
    }
}

fn system(action: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |source| match Errno::from_io_error(&source) {
        Some(Errno::PERM | Errno::ACCESS) => OpenError::Permission { action, source },
        _ => OpenError::System { action, source },
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_refuse_or_cut_are_refused() {
        for good in ["", "wg0", "wg%d", "a-name.of-15--b", "mesh_1"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in [
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "a\0",
            "\t",
            "sixteen--bytes--",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_tun_is_refused() {
        let file = std::fs::File::open("/dev/null").expect("there is /dev/null");
        let refused = Device::from_fd(file.into(), &Options::default());
        let refused = refused.expect_err("it is no TUN");
        assert!(matches!(refused, OpenError::NotTun(Some(_))));
        assert!(
            refused.to_string().ends_with(" (os error 25))"),
            "{refused}"
        );
    }
}
