//! Everything that a user can set, read in one place: the command line and the environment.
//!
//! What both set, the command line decides. Nothing else in this program reads a variable.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, ValueEnum};
use clap_complete::Shell;
use tracing::level_filters::LevelFilter;
use warren_aead::Choice;
use warren_engine::workers_asked;

/// The marks of a process that [`crate::daemon`] has started.
pub(crate) const FOREGROUND_VARIABLE: &str = "WG_PROCESS_FOREGROUND";
pub(crate) const DAEMON_VARIABLE: &str = "WARREN_WG_DAEMON";

/// What this process is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) interface: InterfaceName,
    pub(crate) role: Role,
    pub(crate) log_level: LevelFilter,
    /// Whether the log goes on after becoming a daemon.
    pub(crate) keep_stderr: bool,
    /// A queue of a TUN interface that somebody else has opened.
    pub(crate) tun_fd: Option<RawFd>,
    /// A listening socket for `wg(8)`.
    pub(crate) uapi_fd: Option<RawFd>,
    pub(crate) tuning: Tuning,
}

/// Which part of a start this process plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Start a daemon, wait until it is ready and go.
    Launcher,
    /// Be that daemon, and say on the standard output when it is ready.
    Daemon,
    /// Stay where it was started.
    Foreground,
}

/// What is for benchmarks and for kernels in which something is broken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// `None` leaves the number to the machine.
    pub(crate) workers: Option<usize>,
    pub(crate) joined: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) no_tun_offload: bool,
    pub(crate) no_uso: bool,
    pub(crate) no_tunnel_offload: bool,
    pub(crate) no_multi_queue: bool,
    pub(crate) no_steering: bool,
    pub(crate) no_udp_segmentation: bool,
    pub(crate) no_udp_receive_offload: bool,
    pub(crate) aead: Choice,
}

/// A name that the kernel takes for an interface (`dev_valid_name` in `net/core/dev.c`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InterfaceName(String);

impl InterfaceName {
    /// IFNAMSIZ without the terminating zero.
    const LEN_MAX: usize = 15;

    pub(crate) fn new(name: &str) -> Result<Self, String> {
        let forbidden = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c == '\x0b';
        let valid = (1..=Self::LEN_MAX).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.contains(forbidden)
            && !name.contains('\0');
        valid.then(|| Self(name.to_owned())).ok_or_else(|| {
            format!(
                "an interface name has 1 to {} bytes, is not '.' or '..', and contains no '/', ':' or white space",
                Self::LEN_MAX
            )
        })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the kernel is to choose a number for the name.
    pub(crate) fn is_pattern(&self) -> bool {
        self.0.contains("%d")
    }
}

/// What can be made of the command line's own description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Completions for a shell.
    Completions(Shell),
    /// The manual page, into this directory.
    Man(PathBuf),
}

/// Why there are no settings.
#[derive(Debug)]
pub(crate) enum SettingsError {
    /// The command line is wrong, or asks for help.
    CommandLine(clap::Error),
    /// The command line asks for pages about itself.
    Pages(Pages),
    /// A variable has a value that means nothing.
    Variable {
        name: &'static str,
        value: OsString,
        expected: &'static str,
    },
}

impl Settings {
    pub(crate) fn read(
        command_line: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&'static str) -> Option<OsString>,
    ) -> Result<Self, SettingsError> {
        let arguments =
            CommandLine::try_parse_from(command_line).map_err(SettingsError::CommandLine)?;
        let pages = arguments.pages;
        let asked = (pages.completions.map(Pages::Completions)).or(pages.man.map(Pages::Man));
        let interface = match (arguments.interface, asked) {
            (_, Some(asked)) => return Err(SettingsError::Pages(asked)),
            (Some(interface), None) => interface,
            (None, None) => unreachable!("it is required without pages"),
        };
        let environment = Environment(&variable);
        let log_level = environment.text("LOG_LEVEL");
        let role = if environment.text(DAEMON_VARIABLE).as_deref() == Some("1") {
            Role::Daemon
        } else if arguments.foreground
            || environment.text(FOREGROUND_VARIABLE).as_deref() == Some("1")
        {
            Role::Foreground
        } else {
            Role::Launcher
        };
        let tuning = arguments.tuning;
        Ok(Self {
            interface,
            role,
            log_level: level(log_level.as_deref()),
            keep_stderr: log_level.is_some_and(|level| level != "silent"),
            tun_fd: environment.parsed("WG_TUN_FD", descriptor)?,
            uapi_fd: environment.parsed("WG_UAPI_FD", descriptor)?,
            tuning: Tuning {
                workers: match tuning.workers {
                    None => environment.parsed("WARREN_WORKERS", workers_asked)?,
                    given => given,
                },
                joined: tuning.joined || environment.switch("WARREN_JOINED")?,
                mtu: match tuning.mtu {
                    None => environment.parsed("WARREN_MTU", mtu)?,
                    given => given,
                },
                no_tun_offload: tuning.no_tun_offload
                    || environment.switch("WARREN_NO_TUN_OFFLOAD")?,
                no_uso: tuning.no_uso || environment.switch("WARREN_NO_USO")?,
                no_tunnel_offload: tuning.no_tunnel_offload
                    || environment.switch("WARREN_NO_TUNNEL_OFFLOAD")?,
                no_multi_queue: tuning.no_multi_queue
                    || environment.switch("WARREN_NO_MULTI_QUEUE")?,
                no_steering: tuning.no_steering || environment.switch("WARREN_NO_STEERING")?,
                no_udp_segmentation: tuning.no_udp_segmentation
                    || environment.switch("WARREN_NO_UDP_SEGMENTATION")?,
                no_udp_receive_offload: tuning.no_udp_receive_offload
                    || environment.switch("WARREN_NO_UDP_RECEIVE_OFFLOAD")?,
                aead: match tuning.aead {
                    None => environment.aead("WARREN_AEAD")?,
                    Some(given) => given,
                },
            },
        })
    }
}

/// The bounds that the kernel has for TUN interfaces.
const MTU_MIN: u32 = 68;
const MTU_MAX: u32 = 65_521;

fn mtu(text: &str) -> Result<u32, &'static str> {
    let bytes = (text.parse().ok()).filter(|bytes| (MTU_MIN..=MTU_MAX).contains(bytes));
    bytes.ok_or("a number of bytes from 68 to 65521")
}

fn descriptor(text: &str) -> Result<RawFd, &'static str> {
    let number = (text.parse().ok()).filter(|number| *number >= 0);
    number.ok_or("the number of an open file descriptor")
}

/// What `--version` says.
const VERSION: &str = if cfg!(warren_null_cipher) {
    concat!(env!("CARGO_PKG_VERSION"), ", WITHOUT A CIPHER")
} else {
    env!("CARGO_PKG_VERSION")
};

/// A userspace WireGuard device, driven by wg(8) and wg-quick(8).
///
/// Opens the TUN interface INTERFACE and listens for wg(8) at /var/run/wireguard/INTERFACE.sock. It
/// returns to the shell when the device is ready, and ends with its interface when it gets SIGTERM,
/// when the interface or the socket is deleted, or with `wg-quick down`.
#[derive(Debug, Parser)]
#[command(
    name = "warren-wg",
    version = VERSION,
    after_help = AFTER_HELP,
    after_long_help = AFTER_HELP,
    max_term_width = 100,
)]
struct CommandLine {
    /// Stay in the foreground and log to the standard error
    #[arg(short, long)]
    foreground: bool,

    /// Name of the interface; with %d in it the kernel chooses a number
    #[arg(value_parser = InterfaceName::new, required_unless_present = "pages")]
    interface: Option<InterfaceName>,

    #[command(flatten)]
    tuning: TuningArguments,

    #[command(flatten)]
    pages: PagesArguments,
}

/// The command line's description.
pub(crate) fn command() -> clap::Command {
    CommandLine::command()
}

#[derive(Debug, Args)]
#[command(next_help_heading = "In place of an interface")]
#[group(id = "pages", multiple = false)]
struct PagesArguments {
    /// Print completions for a shell
    #[arg(long, value_name = "SHELL", exclusive = true)]
    completions: Option<Shell>,

    /// Write the manual page into a directory
    #[arg(long, value_name = "DIR", exclusive = true)]
    man: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "For benchmarks and for kernels in which something is broken")]
struct TuningArguments {
    /// Workers, each with a queue of the interface [WARREN_WORKERS; half the processors]
    #[arg(long, value_name = "N", value_parser = workers_asked, allow_negative_numbers = true)]
    workers: Option<usize>,

    /// One thread for both directions of a worker instead of two [WARREN_JOINED]
    #[arg(long)]
    joined: bool,

    /// MTU that the interface gets at first [WARREN_MTU; 1420]
    #[arg(long, value_name = "BYTES", value_parser = mtu, allow_negative_numbers = true)]
    mtu: Option<u32>,

    /// No large packets from and to the interface [WARREN_NO_TUN_OFFLOAD]
    #[arg(long)]
    no_tun_offload: bool,

    /// No large UDP packets from and to the interface [WARREN_NO_USO]
    #[arg(long)]
    no_uso: bool,

    /// No large packets within VXLAN or Geneve from the interface [WARREN_NO_TUNNEL_OFFLOAD]
    #[arg(long)]
    no_tunnel_offload: bool,

    /// An interface with a single queue [WARREN_NO_MULTI_QUEUE]
    #[arg(long)]
    no_multi_queue: bool,

    /// No program in the kernel that keeps a flow on its queue [WARREN_NO_STEERING]
    #[arg(long)]
    no_steering: bool,

    /// One datagram for each send [WARREN_NO_UDP_SEGMENTATION]
    #[arg(long)]
    no_udp_segmentation: bool,

    /// One datagram for each receive [WARREN_NO_UDP_RECEIVE_OFFLOAD]
    #[arg(long)]
    no_udp_receive_offload: bool,

    /// What seals and opens packets: whatever is fastest, or one by name [WARREN_AEAD; auto]
    #[arg(long, value_name = "CIPHER")]
    aead: Option<Choice>,
}

const AFTER_HELP: &str = "\
Environment:
  LOG_LEVEL              verbose or debug, info, error (the default), silent; a log
                         that is asked for goes on in the background
  WG_TUN_FD, WG_UAPI_FD  open descriptors of an interface and a socket to use
  WG_PROCESS_FOREGROUND  1 is the same as --foreground
  The names in brackets above: 1 is the same as a switch, a value as an option's.

Handshakes carry the time, and peers refuse one that is not later than the last. This program keeps
no state: after a restart with a clock that was set back, peers refuse it until the clock has caught up.

Examples:
  warren-wg wg0
      Make wg0; then: wg setconf wg0 wg0.conf
  WG_QUICK_USERSPACE_IMPLEMENTATION=warren-wg wg-quick up wg0
      Let wg-quick(8) do all of it, where the kernel has no WireGuard
  LOG_LEVEL=debug warren-wg --foreground wg0
      Watch what it does
  warren-wg --workers 1 --no-tun-offload wg0
      Find out whether an offload is to blame";

/// `error` where wireguard-go takes it, as for every word that it does not know.
fn level(text: Option<&str>) -> LevelFilter {
    match text {
        Some("silent") => LevelFilter::OFF,
        Some("info") => LevelFilter::INFO,
        Some("verbose" | "debug") => LevelFilter::DEBUG,
        _ => LevelFilter::ERROR,
    }
}

struct Environment<'a>(&'a dyn Fn(&'static str) -> Option<OsString>);

impl Environment<'_> {
    /// A variable that is empty counts as absent.
    fn get(&self, name: &'static str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &'static str) -> Option<String> {
        self.get(name)?.into_string().ok()
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, SettingsError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        // No value that means something has what is no text.
        match parse(&value.to_string_lossy()) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(expected) => Err(SettingsError::Variable {
                name,
                value,
                expected,
            }),
        }
    }

    fn switch(&self, name: &'static str) -> Result<bool, SettingsError> {
        let Some(value) = self.get(name) else {
            return Ok(false);
        };
        match value.to_str() {
            Some("1" | "true" | "yes") => Ok(true),
            Some("0" | "false" | "no") => Ok(false),
            _ => Err(SettingsError::Variable {
                name,
                value,
                expected: "1, yes or true, or 0, no or false",
            }),
        }
    }

    fn aead(&self, name: &'static str) -> Result<Choice, SettingsError> {
        let Some(value) = self.get(name) else {
            return Ok(Choice::default());
        };
        let aead = (value.to_str()).and_then(|text| Choice::from_str(text, false).ok());
        aead.ok_or(SettingsError::Variable {
            name,
            value,
            expected: "auto, library, avx2 or avx512",
        })
    }
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandLine(error) => write!(f, "{error}"),
            Self::Pages(pages) => write!(f, "no interface but {pages:?}"),
            Self::Variable {
                name,
                value,
                expected,
            } => write!(
                f,
                "{name} is {:?} but should be {expected}",
                PathBuf::from(value)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_asks_for_a_daemon() {
        let settings = read("wg0", &[]).expect("settings");
        assert_eq!(settings.interface.as_str(), "wg0");
        assert_eq!(settings.role, Role::Launcher);
        assert_eq!(settings.log_level, LevelFilter::ERROR);
        assert!(!settings.keep_stderr);
        assert_eq!(settings.tuning, Tuning::default());
    }

    #[test]
    fn the_foreground_is_asked_for_in_three_ways() {
        for (arguments, environment) in [
            ("-f wg0", &[][..]),
            ("wg0 --foreground", &[]),
            ("wg0", &[(FOREGROUND_VARIABLE, "1")]),
        ] {
            let settings = read(arguments, environment).expect("settings");
            assert_eq!(settings.role, Role::Foreground, "{arguments}");
        }
        let settings = read("wg0", &[(FOREGROUND_VARIABLE, "0")]).expect("settings");
        assert_eq!(settings.role, Role::Launcher);
    }

    #[test]
    fn a_launched_daemon_knows_its_part() {
        let marks = [(FOREGROUND_VARIABLE, "1"), (DAEMON_VARIABLE, "1")];
        let settings = read("wg0", &marks).expect("settings");
        assert_eq!(settings.role, Role::Daemon);
    }

    #[test]
    fn log_levels_are_those_of_wireguard_go() {
        for (text, level, keep) in [
            ("verbose", LevelFilter::DEBUG, true),
            ("debug", LevelFilter::DEBUG, true),
            ("info", LevelFilter::INFO, true),
            ("error", LevelFilter::ERROR, true),
            ("chatty", LevelFilter::ERROR, true),
            ("silent", LevelFilter::OFF, false),
            ("", LevelFilter::ERROR, false),
        ] {
            let settings = read("wg0", &[("LOG_LEVEL", text)]).expect("settings");
            assert_eq!(settings.log_level, level, "{text}");
            assert_eq!(settings.keep_stderr, keep, "{text}");
        }
    }

    #[test]
    fn names_that_the_kernel_refuses_are_refused() {
        for name in [
            "wg0",
            "a",
            "wg-home.1",
            "=+_",
            "wg%d",
            "fünf",
            "fifteen-bytes-x",
        ] {
            assert!(InterfaceName::new(name).is_ok(), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "../../etc/x",
            "a:b",
            "a b",
            "a\tb",
            "a\0b",
            "sixteen-bytes-xy",
        ] {
            let sentence = InterfaceName::new(name).expect_err(name);
            assert!(sentence.starts_with("an interface name has 1 to 15 bytes"));
        }
        let error = read("a/b", &[]).expect_err("no name");
        assert!(error.to_string().contains("contains no '/'"), "{error}");
    }

    #[test]
    fn descriptors_are_numbers() {
        let environment = [("WG_TUN_FD", "3"), ("WG_UAPI_FD", "4")];
        let settings = read("wg0", &environment).expect("settings");
        assert_eq!((settings.tun_fd, settings.uapi_fd), (Some(3), Some(4)));
        for value in ["-1", "x", "3 "] {
            let error = read("wg0", &[("WG_TUN_FD", value)]).expect_err("no number");
            let sentence = error.to_string();
            assert!(sentence.starts_with("WG_TUN_FD is "), "{sentence}");
            assert!(sentence.ends_with("an open file descriptor"), "{sentence}");
        }
    }

    #[test]
    fn every_switch_can_be_set_by_option_and_by_variable() {
        let everything = Tuning {
            workers: Some(4),
            joined: true,
            mtu: Some(1280),
            no_tun_offload: true,
            no_uso: true,
            no_tunnel_offload: true,
            no_multi_queue: true,
            no_steering: true,
            no_udp_segmentation: true,
            no_udp_receive_offload: true,
            aead: Choice::Library,
        };
        let by_option = read(
            "--workers 4 --joined --mtu 1280 --no-tun-offload --no-uso --no-tunnel-offload \
             --no-multi-queue --no-steering --no-udp-segmentation --no-udp-receive-offload \
             --aead library wg0",
            &[],
        );
        assert_eq!(by_option.expect("settings").tuning, everything);
        let by_variable = read(
            "wg0",
            &[
                ("WARREN_WORKERS", "4"),
                ("WARREN_JOINED", "1"),
                ("WARREN_MTU", "1280"),
                ("WARREN_NO_TUN_OFFLOAD", "1"),
                ("WARREN_NO_USO", "yes"),
                ("WARREN_NO_TUNNEL_OFFLOAD", "1"),
                ("WARREN_NO_MULTI_QUEUE", "true"),
                ("WARREN_NO_STEERING", "1"),
                ("WARREN_NO_UDP_SEGMENTATION", "1"),
                ("WARREN_NO_UDP_RECEIVE_OFFLOAD", "1"),
                ("WARREN_AEAD", "library"),
            ],
        );
        assert_eq!(by_variable.expect("settings").tuning, everything);
    }

    #[test]
    fn the_command_line_decides_over_the_environment() {
        let environment = [("WARREN_WORKERS", "2"), ("WARREN_MTU", "9000")];
        let settings = read("--workers 8 wg0", &environment).expect("settings");
        assert_eq!(settings.tuning.workers, Some(8));
        assert_eq!(settings.tuning.mtu, Some(9000));
    }

    #[test]
    fn every_cipher_has_a_name() {
        for (name, aead) in [
            ("auto", Choice::Auto),
            ("library", Choice::Library),
            ("avx2", Choice::Avx2),
            ("avx512", Choice::Avx512),
        ] {
            let by_option = read(&format!("--aead {name} wg0"), &[]).expect("settings");
            let by_variable = read("wg0", &[("WARREN_AEAD", name)]).expect("settings");
            assert_eq!([by_option, by_variable].map(|s| s.tuning.aead), [aead; 2]);
        }
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        for arguments in [
            "",
            "wg0 wg1",
            "--workers 0 wg0",
            "--workers 257 wg0",
            "--mtu 67 wg0",
            "--mtu 65522 wg0",
            "--offload wg0",
            "--aead sse2 wg0",
        ] {
            assert!(read(arguments, &[]).is_err(), "{arguments}");
        }
        for variable in [
            ("WARREN_WORKERS", "0"),
            ("WARREN_WORKERS", "many"),
            ("WARREN_MTU", "67"),
            ("WARREN_NO_USO", "maybe"),
            ("WARREN_AEAD", "avx"),
        ] {
            assert!(read("wg0", &[variable]).is_err(), "{variable:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_be_right() {
        for (arguments, expected) in [
            (
                "--workers abc wg0",
                "'--workers <N>': a number from 1 to 256",
            ),
            (
                "--workers -1 wg0",
                "'--workers <N>': a number from 1 to 256",
            ),
            (
                "--mtu abc wg0",
                "'--mtu <BYTES>': a number of bytes from 68 to 65521",
            ),
        ] {
            let error = read(arguments, &[]).expect_err(arguments).to_string();
            assert!(error.contains(expected), "{error}");
        }
        for (variable, expected) in [
            (
                ("WARREN_WORKERS", "0"),
                "but should be a number from 1 to 256",
            ),
            (
                ("WARREN_NO_USO", "2"),
                "but should be 1, yes or true, or 0, no or false",
            ),
        ] {
            let error = read("wg0", &[variable]).expect_err(expected).to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn pages_are_asked_for_in_place_of_an_interface() {
        for (arguments, expected) in [
            ("--completions zsh", Pages::Completions(Shell::Zsh)),
            ("--man pages", Pages::Man("pages".into())),
        ] {
            let asked = read(arguments, &[]).expect_err("no settings");
            assert!(
                matches!(&asked, SettingsError::Pages(pages) if *pages == expected),
                "{asked}"
            );
            let both = read(&format!("{arguments} wg0"), &[]).expect_err("not both");
            assert!(matches!(both, SettingsError::CommandLine(_)), "{both}");
        }
    }

    #[test]
    fn every_variable_is_in_the_help() {
        let help = read("--help", &[]).expect_err("help").to_string();
        for name in [
            "LOG_LEVEL",
            "WG_TUN_FD",
            "WG_UAPI_FD",
            "WG_PROCESS_FOREGROUND",
            "WARREN_WORKERS",
            "WARREN_JOINED",
            "WARREN_MTU",
            "WARREN_NO_TUN_OFFLOAD",
            "WARREN_NO_USO",
            "WARREN_NO_TUNNEL_OFFLOAD",
            "WARREN_NO_MULTI_QUEUE",
            "WARREN_NO_STEERING",
            "WARREN_NO_UDP_SEGMENTATION",
            "WARREN_NO_UDP_RECEIVE_OFFLOAD",
            "WARREN_AEAD",
        ] {
            assert!(help.contains(name), "{name} is missing from\n{help}");
        }
    }

    fn read(
        arguments: &str,
        environment: &[(&'static str, &str)],
    ) -> Result<Settings, SettingsError> {
        let program = std::iter::once("warren-wg");
        let command_line = program.chain(arguments.split_whitespace());
        Settings::read(command_line.map(OsString::from), |name| {
            let found = environment.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }
}
