//! Two network namespaces joined by a veth pair, and how threads get into them.
//!
//! ```text
//!    namespace A                                  namespace B
//!   device i 10.201.i.1                          device i 10.201.i.2
//!        |                                            |
//!   wire 10.200.0.1 ------------- veth ---------- wire 10.200.0.2
//! ```

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// One side of the bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::A, Side::B];

    /// The address on the wire between the namespaces.
    pub(crate) fn outer(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, 0, self.host())
    }

    /// The address inside of the tunnel of device number `device`.
    pub(crate) fn inner(self, device: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 201, device as u8, self.host())
    }

    /// The address inside of VXLAN inside of that tunnel.
    pub(crate) fn overlay(self, device: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 202, device as u8, self.host())
    }

    pub(crate) fn host(self) -> u8 {
        match self {
            Side::A => 1,
            Side::B => 2,
        }
    }

    pub(crate) fn letter(self) -> char {
        match self {
            Side::A => 'a',
            Side::B => 'b',
        }
    }
}

/// The pair of namespaces; they go away with it.
pub(crate) struct Bed {
    names: [String; 2],
}

impl Bed {
    /// A pair in which TCP has this congestion control.
    pub(crate) fn new(congestion: &str) -> Result<Bed> {
        let bed = Bed {
            names: Side::BOTH.map(|side| format!("wbc-{}-{}", std::process::id(), side.letter())),
        };
        for name in &bed.names {
            run("ip", &["netns", "add", name])?;
        }
        run(
            "ip",
            &[
                "-n",
                &bed.names[0],
                "link",
                "add",
                "wire",
                "type",
                "veth",
                "peer",
                "name",
                "wire",
                "netns",
                &bed.names[1],
            ],
        )?;
        for side in Side::BOTH {
            bed.ip(side, "link set lo up")?;
            bed.ip(side, &format!("address add {}/24 dev wire", side.outer()))?;
            bed.ip(side, "link set wire up")?;
        }
        bed.set_congestion(congestion)?;
        Ok(bed)
    }

    /// Has TCP begin connections with this congestion control from now on.
    pub(crate) fn set_congestion(&self, name: &str) -> Result<()> {
        const SETTING: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
        const KNOWN: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
        for side in Side::BOTH {
            self.within(side, || {
                fs::write(SETTING, name).with_context(|| {
                    let known = fs::read_to_string(KNOWN).unwrap_or_default();
                    format!(
                        "the congestion control cannot be {name}; this kernel has {}",
                        known.trim()
                    )
                })
            })?;
        }
        Ok(())
    }

    pub(crate) fn name(&self, side: Side) -> &str {
        &self.names[usize::from(side == Side::B)]
    }

    /// Runs `ip` in a namespace; arguments are separated by blanks.
    pub(crate) fn ip(&self, side: Side, arguments: &str) -> Result<()> {
        let mut all = vec!["-n", self.name(side)];
        all.extend(arguments.split(' '));
        run("ip", &all)
    }

    /// A command that will run in a namespace.
    pub(crate) fn command(&self, side: Side, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(side), program]);
        command
    }

    /// Switches segmentation and receive offloads of an interface. Not every interface has every
    /// feature, so a feature that is not there is not an error.
    pub(crate) fn set_offloads(&self, side: Side, interface: &str, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        for feature in ["tx-udp-segmentation", "tso", "gso", "gro"] {
            self.command(side, "ethtool")
                .args(["-K", interface, feature, state])
                .output()
                .context("ethtool does not start")?;
        }
        Ok(())
    }

    /// Runs `work` on a thread in a namespace, so that what it opens belongs there, and returns what
    /// it returns.
    pub(crate) fn within<T: Send>(
        &self,
        side: Side,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let name = self.name(side);
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    enter(name)?;
                    work()
                })
                .join()
                .expect("the thread returns its errors")
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn enter(name: &str) -> Result<()> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).with_context(|| format!("{path} cannot be opened"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("{path} cannot be entered"))
}

/// Runs a program to its end; what it complained of becomes the error.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} does not start"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
