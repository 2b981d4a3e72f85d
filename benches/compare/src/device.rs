//! The programs that are compared, and one of them running as a pair of devices.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::bed::{Bed, Side};
use crate::clock::{Pace, Stopwatch};
use crate::load::ping_once;
use crate::report::{LIBRARY, WARREN};

/// A program that makes an interface of the name that stands for `{}` among its arguments, stays in
/// the foreground and listens for wg(8).
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// What it says of its version.
    pub(crate) version: String,
}

impl Program {
    /// The command lines of the programs that are known by name.
    pub(crate) fn known(name: &str, path: &Path) -> Result<Program> {
        let arguments = match name {
            // One thread: boringtun's are on one queue each and more of them put packets out of order.
            "boringtun-cli" => "--foreground --disable-drop-privileges --threads 1 {}",
            "gotatun" => "--foreground --disable-drop-privileges {}",
            LIBRARY => "-f --aead library {}",
            _ => "-f {}",
        };
        Program::new(name, path, arguments)
    }

    pub(crate) fn new(name: &str, path: &Path, arguments: &str) -> Result<Program> {
        let path = path
            .canonicalize()
            .with_context(|| format!("{name}: {} is not there", path.display()))?;
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .with_context(|| format!("{name} does not start"))?;
        let mut version = String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        // A peer's folder is named after the version that was asked for, which says more than some
        // programs do.
        if let Some(folder) = path
            .parent()
            .and_then(Path::file_name)
            .and_then(|folder| folder.to_str())
            && let Some(built) = folder.strip_prefix(&format!("{name}-"))
        {
            version = built.to_owned();
        }
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        ensure!(
            arguments.iter().any(|argument| argument == "{}"),
            "{name}: the arguments have no {{}} for the interface"
        );
        Ok(Program {
            name: name.to_owned(),
            path,
            arguments,
            version,
        })
    }

    /// The program with a number of workers, if it can be told.
    pub(crate) fn with_workers(&self, number: usize) -> Option<Program> {
        let mut program = self.clone();
        program.arguments = match self.name.as_str() {
            WARREN => format!("-f --workers {number} {{}}"),
            "boringtun-cli" => {
                format!("--foreground --disable-drop-privileges --threads {number} {{}}")
            }
            _ => return None,
        }
        .split(' ')
        .map(str::to_owned)
        .collect();
        Some(program)
    }

    /// Starts the program in a namespace and waits for its socket.
    pub(crate) fn start(
        &self,
        bed: &Bed,
        side: Side,
        interface: &str,
        pace: &Pace,
    ) -> Result<Process> {
        let mut command = bed.command(
            side,
            self.path.to_str().context("a path that is not UTF-8")?,
        );
        command.args(self.arguments.iter().map(|argument| {
            if argument == "{}" {
                interface
            } else {
                argument
            }
        }));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("{} does not start", self.name))?;
        let mut process = Process {
            child,
            socket: PathBuf::from(format!("/var/run/wireguard/{interface}.sock")),
        };
        let waiting = Stopwatch::start();
        while UnixStream::connect(&process.socket).is_err() {
            if let Some(status) = process.child.try_wait()? {
                bail!("{} ended at once: {status}", self.name);
            }
            ensure!(
                waiting.elapsed() < Duration::from_secs(5),
                "{} did not open {}",
                self.name,
                process.socket.display()
            );
            pace.rest(Duration::from_millis(10))?;
        }
        Ok(process)
    }
}

/// A running program; it ends with this.
pub(crate) struct Process {
    child: Child,
    socket: PathBuf,
}

impl Process {
    /// Hundredths of seconds of both modes that the process has used, as seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat
            .rsplit_once(')')
            .context("/proc/PID/stat has a name in brackets")?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap_or(0))
            .sum();
        Ok(ticks as f64 / 100.0)
    }

    /// As [`Self::cpu_seconds`], exactly, of the threads that are there.
    pub(crate) fn run_seconds(&self) -> Result<f64> {
        let mut nanoseconds = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            let ran = stat.split(' ').next().context("schedstat is empty")?;
            nanoseconds += ran.parse::<u64>()?;
        }
        Ok(nanoseconds as f64 / 1e9)
    }

    /// A line of /proc/PID/status in KiB: `VmHWM` is the peak of resident memory, `VmRSS` that of now.
    pub(crate) fn memory_kib(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Sends a request of the cross-platform interface and returns the answer; an errno that is not
    /// 0 is an error.
    ///
    /// It looks at the end of the answer alone, so that the time it takes is the program's.
    pub(crate) fn ask(&self, request: &str) -> Result<String> {
        const ERRNO_LINE_MAX: usize = 32;
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "the answer was cut off");
            answer.extend_from_slice(&buffer[..count]);
            let end = &answer[answer.len().saturating_sub(ERRNO_LINE_MAX)..];
            let end = String::from_utf8_lossy(end);
            match end.lines().find_map(|line| line.strip_prefix("errno=")) {
                Some(errno) if end.ends_with('\n') => {
                    ensure!(errno == "0", "errno {errno}");
                    return Ok(String::from_utf8(answer)?);
                }
                _ => {}
            }
        }
    }
}

impl Process {
    /// Asks it to end, and waits until it has.
    fn end(&self) -> Result<()> {
        const PATIENCE: Timespec = Timespec {
            tv_sec: 2,
            tv_nsec: 0,
        };
        let pid = Pid::from_child(&self.child);
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        kill_process(pid, Signal::TERM)?;
        let count = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&PATIENCE))?;
        ensure!(count == 1, "it still runs");
        Ok(())
    }
}

impl Drop for Process {
    /// It may remove what it has made besides the socket, and is killed where it does not end.
    fn drop(&mut self) {
        if self.end().is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// A pair of devices that have shaken hands.
pub(crate) struct Pair {
    pub(crate) number: usize,
    pub(crate) processes: [Process; 2],
}

impl Pair {
    /// Starts a program on both sides, tells each of the other by wg(8), and waits for a first answer
    /// through the tunnel.
    pub(crate) fn start(program: &Program, number: usize, bed: &Bed, pace: &Pace) -> Result<Pair> {
        let interface = interface(number);
        // Names of sockets are shared by the namespaces, those of interfaces are not: each side has
        // an interface of its own.
        let names = Side::BOTH.map(|side| format!("{interface}{}", side.letter()));
        let processes = [
            program.start(bed, Side::A, &names[0], pace)?,
            program.start(bed, Side::B, &names[1], pace)?,
        ];
        let keys = [keys()?, keys()?];
        for (index, side) in Side::BOTH.into_iter().enumerate() {
            let (this, other) = (&keys[index], &keys[1 - index]);
            let peer = Side::BOTH[1 - index];
            let configuration = format!(
                "[Interface]\nPrivateKey = {}\nListenPort = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{}\n",
                this.0,
                port(number, side),
                other.1,
                peer.inner(number),
                peer.outer(),
                port(number, peer),
            );
            feed(
                bed.command(side, "wg")
                    .args(["setconf", &names[index], "/dev/stdin"]),
                &configuration,
            )?;
            bed.ip(
                side,
                &format!("address add {}/24 dev {}", side.inner(number), names[index]),
            )?;
            bed.ip(side, &format!("link set {} mtu 1420 up", names[index]))?;
        }
        let waiting = Stopwatch::start();
        while !ping_once(bed, Side::A, Side::B.inner(number))? {
            ensure!(
                waiting.elapsed() < Duration::from_secs(15),
                "no handshake in 15 s"
            );
            pace.rest(Duration::from_millis(20))?;
        }
        Ok(Pair { number, processes })
    }

    pub(crate) fn interface(&self, side: Side) -> String {
        format!("{}{}", interface(self.number), side.letter())
    }

    /// The UDP port of a side.
    pub(crate) fn port(&self, side: Side) -> u16 {
        port(self.number, side)
    }

    /// Of both processes together.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        Ok(self.processes[0].cpu_seconds()? + self.processes[1].cpu_seconds()?)
    }
}

fn port(number: usize, side: Side) -> u16 {
    52_000 + number as u16 * 10 + u16::from(side.host())
}

/// Unique among everything on this machine that listens below /var/run/wireguard.
fn interface(number: usize) -> String {
    format!("wbc{}x{number}", std::process::id() % 100_000)
}

/// A private and a public key in the form that wg(8) reads.
fn keys() -> Result<(String, String)> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)?;
    secret[0] &= 248;
    secret[31] = secret[31] & 127 | 64;
    let private = BASE64_STANDARD.encode(secret);
    let public = feed(Command::new("wg").arg("pubkey"), &private)?;
    Ok((private, public.trim().to_owned()))
}

/// Runs a command with a text as its input and returns its output.
fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("stdin is a pipe")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}
