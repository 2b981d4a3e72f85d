//! Warren beside other userspace WireGuard implementations: two namespaces, a veth pair, every
//! program as a pair of devices driven by wg(8), the same loads through each in turn.
//!
//! The machine under a bench is seldom quiet, so nothing is compared over time: within a round each
//! case runs on one device right after the other, in an order that rotates; ratios are taken within
//! a round, and the median over the rounds is what counts. The bare wire and a counted loop run in
//! every round, too, and show what the machine itself did.
#![allow(clippy::print_stdout)] // A command for people; its tables go there.

mod bars;
mod bed;
mod case;
mod clock;
mod device;
mod load;
mod report;
mod shake;
mod sys;

use std::env;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use bed::Bed;
use case::{Case, Setting, Subject};
use clock::{Pace, Ticks};
use device::{Pair, Program};
use report::{Failure, LIBRARY, NULL, PEERS, Report, Sample, WARREN, WIRE};

/// Run Warren, wireguard-go, gotatun and boringtun-cli side by side in network namespaces.
///
/// Needs root. Builds warren-wg and those peers that are not in the cache yet. Every figure is a median over rounds with
/// its range; `= N x` is the ratio to the reference within the rounds.
#[derive(Parser)]
#[command(after_help = "Examples:\n  \
    warren-compare                                         everything, about a quarter of an hour\n  \
    warren-compare --only tcp1,udp64 --rounds 5            two cases\n  \
    warren-compare --device warren --device wireguard-go   two programs\n  \
    warren-compare --add 'before=/tmp/warren-wg -f {}'     and another build")]
struct Options {
    /// How often each case runs on each device.
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    rounds: usize,
    /// How long one measurement takes. Echoes are a thousand, however long that takes.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Only these cases.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Case>,
    /// Only these of warren, warren-library (which seals packet by packet, by the library alone),
    /// warren-null (which leaves the cipher out), wireguard-go, gotatun and boringtun-cli.
    #[arg(long = "device", value_name = "NAME")]
    devices: Vec<String>,
    /// One more program: a name and a command line in which {} stands for the interface.
    #[arg(long = "add", value_name = "NAME=COMMAND")]
    added: Vec<String>,
    /// Use this warren-wg instead of building one.
    #[arg(long, value_name = "PATH")]
    warren: Option<PathBuf>,
    /// Use this warren-wg without a cipher instead of building one.
    #[arg(long, value_name = "PATH")]
    null: Option<PathBuf>,
    /// The device that ratios are taken against.
    #[arg(long, default_value = "wireguard-go")]
    reference: String,
    /// TCP's congestion control. What the host has set is not asked, so that runs on two hosts carry the same load.
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    congestion: String,
    /// How many idle peers are configured and shown.
    #[arg(long, default_value_t = 10_000)]
    peers: usize,
    /// Keep the raw results here [default: compare/DATE-COMMIT.json beside the folder of this program, but nowhere
    /// with --smoke]
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Fail if a figure of the chosen cases does not reach its bar, or was not measured.
    #[arg(long)]
    strict: bool,
    /// Run each case once and briefly, to see that everything works; the figures mean little.
    #[arg(long)]
    smoke: bool,
}

fn at_least_one(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or("it should be a number from 1 on")
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (0.1..=3600.0).contains(number));
    number.ok_or("it should be a number from 0.1 to 3600")
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.smoke {
        options.rounds = 1;
        options.seconds = 0.3;
        options.peers = 200;
    }
    match compare(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("warren-compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was asked for could be measured.
fn compare(options: &Options) -> Result<bool> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root"
    );
    check(options)?;
    let programs = programs(options)?;
    let pace = Pace::new()?;
    let bed = Bed::new(&options.congestion)?;
    let setting = Setting {
        bed: &bed,
        pace: &pace,
        seconds: options.seconds,
        congestion: &options.congestion,
        peers: options.peers,
        smoke: options.smoke,
        callers: std::cell::OnceCell::new(),
    };
    let cases: Vec<Case> = Case::ALL
        .into_iter()
        .filter(|case| options.only.is_empty() || options.only.contains(case))
        .collect();
    let mut report = Report::new(
        options.rounds,
        options.seconds,
        &options.congestion,
        &programs,
    )?;
    // Before the run, which takes minutes: a folder that cannot be made is known by then.
    let path = match &options.json {
        Some(path) => Some(path.clone()),
        None if options.smoke => None,
        None => Some(report.place()?),
    };
    let before = Ticks::now()?;
    for round in 0..options.rounds {
        run_round(round, &setting, &programs, &cases, &mut report)?;
    }
    report.stolen = Ticks::now()?.stolen_since(before);
    clear_progress();
    let mut devices = vec![WIRE.to_owned()];
    devices.extend(programs.iter().map(|program| program.name.clone()));
    print!("{}", report.tables(&devices, &options.reference)?);
    if let Some(path) = path {
        report.write_json(&path)?;
        eprintln!("The raw results are in {}.", path.display());
    }
    let short = match options.strict {
        true => report.short_of(&cases),
        false => Vec::new(),
    };
    if !short.is_empty() {
        eprintln!("Short of the bar, or not measured: {}.", short.join("; "));
    }
    Ok(report.failures.is_empty() && short.is_empty())
}

/// Looks at what would be found out after the builds and the run otherwise.
fn check(options: &Options) -> Result<()> {
    let added = options
        .added
        .iter()
        .filter_map(|added| added.split_once('='));
    let mut names = [&[WIRE, WARREN, LIBRARY, NULL], &PEERS[..]].concat();
    names.extend(added.map(|(name, _)| name));
    ensure!(
        names.contains(&options.reference.as_str()),
        "--reference is {:?}; there are {}",
        options.reference,
        names.join(", ")
    );
    if let Some(path) = &options.json {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        ensure!(
            folder.is_none_or(Path::is_dir) && !path.is_dir(),
            "--json {} is no file in a folder that is there",
            path.display()
        );
    }
    Ok(())
}

/// Fresh pairs of all programs at once, which cost nothing while they are idle, and each case on each.
fn run_round(
    round: usize,
    setting: &Setting<'_>,
    programs: &[Program],
    cases: &[Case],
    report: &mut Report,
) -> Result<()> {
    let mut pairs = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        progress(&format!("round {}: starting {}", round + 1, program.name));
        match Pair::start(program, number, setting.bed, setting.pace) {
            Ok(pair) => pairs.push(Some(pair)),
            Err(error) => {
                setting.pace.rest(std::time::Duration::ZERO)?;
                report.failures.push(Failure {
                    round,
                    case: "start".to_owned(),
                    device: program.name.clone(),
                    error: format!("{error:#}"),
                });
                pairs.push(None);
            }
        }
    }
    let mut subjects = vec![(
        WIRE,
        Subject {
            program: None,
            pair: None,
        },
    )];
    for (program, pair) in programs.iter().zip(&pairs) {
        if let Some(pair) = pair {
            subjects.push((
                &program.name,
                Subject {
                    program: Some(program),
                    pair: Some(pair),
                },
            ));
        }
    }
    for (turn, case) in cases.iter().enumerate() {
        if matches!(case, Case::Ping | Case::PingLoaded) {
            ping(round, *case, setting, &subjects, report)?;
            continue;
        }
        // Nobody is always first.
        let count = subjects.len();
        for step in 0..count {
            let (name, subject) = &subjects[(round + turn + step) % count];
            progress(&format!("round {}: {case:?} on {name}", round + 1));
            let loop_step_ns = clock::loop_step_ns();
            let (case_name, device) = (format!("{case:?}"), (*name).to_owned());
            match setting.run(*case, subject) {
                Ok(Some(figures)) => {
                    report.samples.push(Sample {
                        round,
                        case: case_name,
                        device,
                        loop_step_ns,
                        figures,
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    // An interrupt ends the run, whatever else it broke.
                    setting.pace.rest(std::time::Duration::ZERO)?;
                    report.failures.push(Failure {
                        round,
                        case: case_name,
                        device,
                        error: format!("{error:#}"),
                    });
                }
            }
        }
    }
    Ok(())
}

/// Echoes of all, but for those that differ from Warren in their cipher alone.
fn ping(
    round: usize,
    case: Case,
    setting: &Setting<'_>,
    subjects: &[(&str, Subject<'_>)],
    report: &mut Report,
) -> Result<()> {
    progress(&format!("round {}: {case:?} on all", round + 1));
    let (names, pinged): (Vec<_>, Vec<_>) = (subjects.iter())
        .filter(|(name, _)| ![NULL, LIBRARY].contains(name))
        .map(|(name, subject)| (*name, subject))
        .unzip();
    let loop_step_ns = clock::loop_step_ns();
    let figures = match case {
        Case::PingLoaded => setting.ping_loaded(&pinged),
        _ => setting.ping(&pinged),
    };
    let case = format!("{case:?}");
    match figures {
        Ok(all) => report
            .samples
            .extend(names.iter().zip(all).map(|(name, figures)| Sample {
                round,
                case: case.clone(),
                device: (*name).to_owned(),
                loop_step_ns,
                figures,
            })),
        Err(error) => {
            setting.pace.rest(std::time::Duration::ZERO)?;
            report.failures.push(Failure {
                round,
                case,
                device: names.join(", "),
                error: format!("{error:#}"),
            });
        }
    }
    Ok(())
}

fn programs(options: &Options) -> Result<Vec<Program>> {
    let known = [&[WARREN, LIBRARY, NULL], &PEERS[..]].concat();
    if let Some(unknown) = options
        .devices
        .iter()
        .find(|name| !known.contains(&name.as_str()))
    {
        bail!(
            "no device is called {unknown}; there are {}",
            known.join(", ")
        );
    }
    let chosen = |name: &&str| {
        options.devices.is_empty() || options.devices.iter().any(|device| device == *name)
    };
    // Before anything is built, which takes minutes.
    let added = options.added.iter().map(|added| {
        let (name, command) = (added.split_once('='))
            .with_context(|| format!("--add {added:?} should be NAME=COMMAND"))?;
        let (path, arguments) = (command.trim().split_once(' '))
            .filter(|(_, arguments)| arguments.contains("{}"))
            .with_context(|| format!("--add {added:?} has no {{}} where the interface stands"))?;
        Ok((name, path, arguments))
    });
    let added = added.collect::<Result<Vec<_>>>()?;
    let mut programs = Vec::new();
    let own: Vec<&str> = [WARREN, LIBRARY].into_iter().filter(chosen).collect();
    if !own.is_empty() {
        let build = || build_warren(&[]);
        let path = options.warren.clone().map_or_else(build, Ok)?;
        for name in own {
            programs.push(Program::known(name, &path)?);
        }
    }
    if options.null.is_some() || chosen(&NULL) {
        let path = options.null.clone().map_or_else(build_null, Ok)?;
        let program = Program::known(NULL, &path)?;
        ensure!(
            program.version.contains("WITHOUT A CIPHER"),
            "{} was not built with --cfg warren_null_cipher",
            path.display()
        );
        programs.push(program);
    }
    let peers: Vec<&str> = PEERS.iter().copied().filter(chosen).collect();
    if !peers.is_empty() {
        for (name, path) in build_peers(&peers)? {
            programs.push(Program::known(&name, &path)?);
        }
    }
    for (name, path, arguments) in added {
        programs.push(Program::new(name, Path::new(path), arguments)?);
    }
    ensure!(!programs.is_empty(), "there is nothing to compare");
    Ok(programs)
}

/// The optimised warren-wg of this checkout.
fn build_warren(variables: &[(&str, OsString)]) -> Result<PathBuf> {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let output = Command::new(cargo)
        .args([
            "build",
            "--profile",
            "fast",
            "--package",
            "warren-wg",
            "--message-format",
            "json-render-diagnostics",
        ])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    ensure!(output.status.success(), "warren-wg does not build");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no executable")
}

/// The same with the cipher left out, in a folder of its own so that neither spoils the other.
fn build_null() -> Result<PathBuf> {
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(" --cfg warren_null_cipher");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")),
        PathBuf::from,
    );
    build_warren(&[
        ("RUSTFLAGS", flags),
        ("CARGO_TARGET_DIR", target.join("null").into_os_string()),
    ])
}

fn build_peers(names: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/peers.sh"))
        .args(names)
        .stderr(Stdio::inherit())
        .output()
        .context("peers.sh does not start")?;
    ensure!(output.status.success(), "the peers cannot be built");
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, path)| (name.to_owned(), path.into()))
        .collect())
}

/// What is going on, on one line of a terminal.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}

fn clear_progress() {
    progress("");
}
