//! What the tests of this package share: network namespaces, and a wire between two TUNs.
//!
//! These tests need root. Each makes the namespaces that it works in, which are gone with the
//! test, whatever becomes of it: nothing but descriptors and threads keeps them.

mod sys;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use warren_packet::ReadBatch;
use warren_packet::coalesce::{Coalescer, Merge};
use warren_packet::segment::Segments;
use warren_tun::Queue;

/// A network namespace of a test's own.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Namespace {
    /// A new one, with loopback up.
    pub fn new() -> Self {
        let namespace = thread::spawn(|| {
            sys::leave_network().expect("these tests need root");
            let own = std::fs::File::open("/proc/thread-self/ns/net").expect("/proc is mounted");
            ip("link set lo up");
            OwnedFd::from(own)
        });
        Self(namespace.join().expect("a namespace can be made"))
    }

    /// What `ip(8)` takes for its name.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Do something inside of it: on another thread, since a namespace is a thread's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.0.as_fd(), network)
                    .expect("the namespace can be entered");
                work()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Run `ip` in the namespace of the calling thread, or panic.
pub fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("there is ip(8)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// Give an interface both families' addresses of host `host`, and set it up.
pub fn address(name: &str, host: u8) {
    ip(&format!("addr add 10.9.0.{host}/24 dev {name}"));
    ip(&format!("addr add fd09::{host}/64 dev {name} nodad"));
    ip(&format!("link set {name} up"));
}

/// Wait until something can be read, for five seconds at most.
pub fn readable(descriptor: impl AsFd) -> bool {
    ready(descriptor, 5000)
}

/// Whether something can be read within so many milliseconds.
pub fn ready(descriptor: impl AsFd, milliseconds: i64) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: milliseconds % 1000 * 1_000_000,
    };
    let mut descriptors = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut descriptors, Some(&timeout)).expect("poll works") > 0
}

/// One direction between two queues: every packet is cut as for the wire, and joined again.
pub struct Wire {
    batch: ReadBatch,
    arena: Vec<u8>,
    coalescer: Coalescer,
    /// Packets as they were read.
    pub read: usize,
    /// Packets as they would have been on the wire.
    pub segments: usize,
    /// Packets as they were written.
    pub written: usize,
    /// The largest packet that was read.
    pub largest_read: usize,
}

impl Wire {
    /// A wire towards a device that takes what `merge` says.
    pub fn new(merge: Merge) -> Self {
        Self {
            batch: ReadBatch::new(256 * 1024, 64),
            arena: vec![0; 4 << 20],
            coalescer: Coalescer::new(merge),
            read: 0,
            segments: 0,
            written: 0,
            largest_read: 0,
        }
    }

    /// Move what there is; returns whether there was anything.
    pub fn step(&mut self, from: &Queue, to: &Queue) -> bool {
        self.batch.clear();
        self.coalescer.clear();
        if from.read(&mut self.batch).expect("it can be read") == 0 {
            return false;
        }
        let mut end = 0;
        for packet in self.batch.packets() {
            let bytes = &self.batch.arena()[packet.range.clone()];
            let segments = Segments::new(packet.header, bytes).expect("the kernel is right");
            for index in 0..segments.count() {
                let len = segments.copy_into(index, &mut self.arena[end..]);
                self.coalescer.push(&self.arena, end..end + len);
                end += len;
            }
            self.read += 1;
            self.segments += segments.count();
            self.largest_read = self.largest_read.max(bytes.len());
        }
        self.coalescer.finish(&mut self.arena);
        for write in self.coalescer.writes() {
            to.write(&write.header, &self.arena, write.pieces)
                .expect("the kernel takes it");
            self.written += 1;
        }
        true
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            read,
            segments,
            written,
            largest_read,
            ..
        } = self;
        write!(
            f,
            "read {read} packets, the largest of {largest_read} bytes, cut into {segments}, joined into {written}"
        )
    }
}
