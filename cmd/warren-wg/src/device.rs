//! The device from its first descriptor to its end.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context as _, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use warren_aead::{Choice, Implementation};
use warren_control::status::{self, Status};
use warren_control::{Limits, Listener, Server, uapi};
use warren_engine::{Engine, Threads, UdpOptions};

use crate::settings::{Role, Settings, Tuning};
use crate::{daemon, sys};

/// wireguard-go's, which leaves room for an outer IPv6 header on Ethernet.
const DEFAULT_MTU: u32 = 1420;

/// Why the device ends.
#[derive(Debug)]
enum End {
    Signal(i32),
    Engine(warren_engine::End),
    Uapi(warren_control::End),
}

/// Makes the device and returns when it has come to its end, with nothing of it left.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    // Numbers first, before a descriptor of our own could have one of them.
    let tun_fd = settings
        .tun_fd
        .map(|fd| adopt("WG_TUN_FD", fd))
        .transpose()?;
    let uapi_fd = settings
        .uapi_fd
        .map(|fd| adopt("WG_UAPI_FD", fd))
        .transpose()?;
    choose_aead(settings.tuning.aead)?;
    let (ends, end) = mpsc::channel();
    watch_signals(ends.clone())?;

    // The socket is what tells two daemons of one name apart: a TUN interface with several queues
    // would take both. A name that the kernel completes is nobody else's.
    let mut listener = match uapi_fd {
        Some(fd) => Some(Listener::from_fd(fd).context("WG_UAPI_FD is no listening unix socket")?),
        None if tun_fd.is_some() || settings.interface.is_pattern() => None,
        None => Some(claim(settings.interface.as_str())?),
    };
    let tun = open_tun(settings, tun_fd)?;
    let interface = tun.name();
    let listener = match listener.take() {
        Some(listener) => listener,
        None => claim(&interface)?,
    };
    let engine = Engine::start(tun, engine_options(&settings.tuning))
        .with_context(|| format!("cannot start {interface}"))?;
    let engine = Arc::new(engine);
    let uapi =
        uapi::serve(listener, engine.clone(), Limits::default()).context("cannot serve wg(8)")?;
    let status = serve_status(&interface, &engine);
    if settings.role == Role::Daemon {
        daemon::ready(settings.keep_stderr).context("cannot leave the terminal")?;
    }
    let aead = Implementation::current();
    tracing::info!(
        aead = aead.name(),
        aead_longest_bytes = aead.longest(),
        "{interface} is ready"
    );
    tracing::info!("no state is kept: a clock set back between two starts delays handshakes");

    let stopper = uapi.stopper();
    watch("end-engine", ends.clone(), {
        let engine = engine.clone();
        move || End::Engine(engine.wait())
    })?;
    watch("end-uapi", ends, move || End::Uapi(uapi.wait()))?;
    let first = end
        .recv()
        .context("every thread that waits for the end has gone")?;
    tracing::info!("{interface} ends: {first}");

    engine.shutdown();
    stopper.stop();
    drop(status);
    // The socket's file is removed when its server has ended.
    let mut uapi_ended = matches!(first, End::Uapi(_));
    while !uapi_ended {
        uapi_ended = matches!(end.recv(), Ok(End::Uapi(_)) | Err(_));
    }
    match first {
        End::Engine(warren_engine::End::Failed) => bail!("{interface} failed; the log says why"),
        End::Uapi(warren_control::End::Failed(error)) => Err(error).context("cannot serve wg(8)"),
        _ => Ok(()),
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use warren_control::End as Socket;
        use warren_engine::End as Interface;

        match self {
            Self::Signal(signal) => write!(f, "signal {signal} arrived"),
            Self::Engine(Interface::Stopped) => f.write_str("it was stopped"),
            Self::Engine(Interface::Deleted) => f.write_str("the interface was deleted"),
            Self::Engine(Interface::Failed) => f.write_str("a thread of the tunnel failed"),
            Self::Uapi(Socket::Stopped) => f.write_str("the socket was closed"),
            Self::Uapi(Socket::SocketRemoved) => f.write_str("the socket was deleted"),
            Self::Uapi(Socket::Failed(error)) => write!(f, "the socket failed: {error}"),
        }
    }
}

fn choose_aead(choice: Choice) -> anyhow::Result<()> {
    warren_aead::choose(choice).context("cannot seal packets as --aead or WARREN_AEAD asks")?;
    // Seen unless the log is silent: it is a fault of the code or of the processor.
    for why in Implementation::distrusted() {
        tracing::error!("{why}");
    }
    Ok(())
}

fn adopt(variable: &str, fd: i32) -> anyhow::Result<OwnedFd> {
    sys::adopt(fd).with_context(|| format!("{variable} is {fd}, which is no open descriptor"))
}

fn claim(interface: &str) -> anyhow::Result<Listener> {
    Ok(Listener::claim(&uapi::path(interface))?)
}

fn open_tun(settings: &Settings, fd: Option<OwnedFd>) -> anyhow::Result<warren_tun::Device> {
    let tuning = &settings.tuning;
    let mut options = warren_tun::Options {
        name: settings.interface.as_str().to_owned(),
        queues: (tuning.workers).unwrap_or_else(warren_engine::default_workers),
        offload: !tuning.no_tun_offload,
        udp_offload: !tuning.no_uso,
        tunnel_offload: !tuning.no_tunnel_offload,
        multi_queue: !tuning.no_multi_queue,
        steering: !tuning.no_steering,
        persist: false,
        mtu: Some(tuning.mtu.unwrap_or(DEFAULT_MTU)),
    };
    match fd {
        Some(fd) => {
            // Whoever opened it may have taken its rights along and has chosen an MTU.
            options.mtu = tuning.mtu;
            warren_tun::Device::from_fd(fd, &options).context("cannot use WG_TUN_FD")
        }
        None => warren_tun::Device::open(&options)
            .with_context(|| format!("cannot open {}", settings.interface.as_str())),
    }
}

fn engine_options(tuning: &Tuning) -> warren_engine::Options {
    warren_engine::Options {
        threads: if tuning.joined {
            Threads::Joined
        } else {
            Threads::Split
        },
        udp: UdpOptions {
            segmentation: !tuning.no_udp_segmentation,
            receive_offload: !tuning.no_udp_receive_offload,
        },
        ..warren_engine::Options::default()
    }
}

/// Lets `warren status` ask. wg(8) does without, so this is no reason not to start.
fn serve_status(interface: &str, engine: &Arc<Engine>) -> Option<Server> {
    let path: PathBuf = status::path(interface);
    let engine = Arc::clone(engine);
    let source = move || describe(&engine);
    let served = Listener::claim(&path)
        .map_err(anyhow::Error::from)
        .and_then(|listener| {
            Ok(status::serve(
                listener,
                Arc::new(source),
                Limits::default(),
            )?)
        });
    served
        .inspect_err(|error| tracing::warn!("warren status will not answer: {error:#}"))
        .ok()
}

fn describe(engine: &Engine) -> Status {
    let report = engine.report();
    let mut status = Status::of_device(&engine.status());
    status.node.version = env!("CARGO_PKG_VERSION").to_owned();
    status.node.interface = report.interface;
    status.node.up = report.up;
    status.node.mtu = report.mtu;
    status.problems.extend(
        (report.unbound)
            .map(|why| format!("the interface is up, but its peers cannot be reached: {why}")),
    );
    status.node.workers = u32::try_from(report.workers).unwrap_or(u32::MAX);
    status.node.aead = report.aead.to_owned();
    status.node.aead_longest_bytes = report.aead_longest.map(|longest| longest as u64);
    let features = report.features.into_iter();
    status.features = features
        .map(|(name, used)| (name.to_owned(), used))
        .collect();
    let drops = report.drops.into_iter();
    status.drops = drops
        .map(|(reason, count)| (reason.to_owned(), count))
        .collect();
    status
}

fn watch_signals(ends: Sender<End>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot wait for signals")?;
    watch("end-signal", ends, move || {
        End::Signal(signals.forever().next().unwrap_or(SIGTERM))
    })
}

/// Waits for one kind of end on a thread of its own.
fn watch(
    name: &str,
    ends: Sender<End>,
    wait: impl FnOnce() -> End + Send + 'static,
) -> anyhow::Result<()> {
    let wait = move || {
        // Nobody listens any more when another end came first.
        let _ = ends.send(wait());
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(())
}
