//! What a run leaves: raw results as JSON, and tables that can be pasted into a document.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bars::{Against, BARS, Bar, Verdict};
use crate::case::{Case, Figures, larger_is_better};
use crate::device::Program;

/// The name under which the bare wire stands among the devices.
pub(crate) const WIRE: &str = "no tunnel";

pub(crate) const WARREN: &str = "warren";

/// Warren without a cipher.
pub(crate) const NULL: &str = "warren-null";

/// Warren with the library's cipher alone, beside which stands what `warren-aead` gains.
pub(crate) const LIBRARY: &str = "warren-library";

const WIREGUARD_GO: &str = "wireguard-go";

/// What others make.
pub(crate) const PEERS: [&str; 3] = [WIREGUARD_GO, "gotatun", "boringtun-cli"];

#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: usize,
    seconds: f64,
    congestion: String,
    /// The share of the run, 0 to 1, in which others had the processors.
    pub(crate) stolen: f64,
    programs: BTreeMap<String, String>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: Vec<Failure>,
}

#[derive(Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    avx512ifma: bool,
    kernel: String,
    date: String,
    commit: String,
    /// What else kept the machine busy: the load average when the run began.
    load_before: String,
}

/// One case on one device in one round.
#[derive(Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) case: String,
    pub(crate) device: String,
    /// The counted loop just before.
    pub(crate) loop_step_ns: f64,
    pub(crate) figures: Figures,
}

#[derive(Serialize)]
pub(crate) struct Failure {
    pub(crate) round: usize,
    pub(crate) case: String,
    pub(crate) device: String,
    pub(crate) error: String,
}

impl Report {
    pub(crate) fn new(
        rounds: usize,
        seconds: f64,
        congestion: &str,
        programs: &[Program],
    ) -> Result<Report> {
        Ok(Report {
            machine: Machine::this()?,
            rounds,
            seconds,
            congestion: congestion.to_owned(),
            stolen: 0.0,
            programs: programs
                .iter()
                .map(|program| {
                    let line = format!("{} ({})", program.version, program.arguments.join(" "));
                    (program.name.clone(), line)
                })
                .collect(),
            samples: Vec::new(),
            failures: Vec::new(),
        })
    }

    /// Where the raw results go if nobody says: beside the folder of this program, which is
    /// cargo's for what it builds. The folder is made.
    pub(crate) fn place(&self) -> Result<PathBuf> {
        let program = std::env::current_exe()?;
        let built = program.ancestors().nth(2).context("a program of cargo")?;
        let folder = built.join("compare");
        fs::create_dir_all(&folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        let name = format!("{}-{}.json", self.machine.date, self.machine.commit);
        Ok(folder.join(name.replace(' ', "-").replace(':', "")))
    }

    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n")
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    /// The tables. Each cell has the median over the rounds with its range, and the median of the
    /// ratios to the reference within the rounds with theirs.
    pub(crate) fn tables(&self, devices: &[String], reference: &str) -> Result<String> {
        let mut text = String::new();
        let machine = &self.machine;
        writeln!(
            text,
            "{}, {} cores{}, Linux {}, {}, commit {}; {} rounds of {} s, interleaved.",
            machine.processor,
            machine.cores,
            if machine.avx512ifma {
                " with AVX-512 IFMA"
            } else {
                ""
            },
            machine.kernel,
            machine.date,
            machine.commit,
            self.rounds,
            self.seconds,
        )?;
        writeln!(
            text,
            "The load average was {} before the run. TCP has congestion control {}.",
            machine.load_before, self.congestion
        )?;
        for (name, version) in &self.programs {
            writeln!(text, "{name}: {version}")?;
        }
        let mut loops: Vec<f64> = self
            .samples
            .iter()
            .map(|sample| sample.loop_step_ns)
            .collect();
        if let Some(spread) = Spread::of(&mut loops) {
            writeln!(
                text,
                "The machine's own drift: a step of the counted loop took {} ns; other machines of its host had {:.1} % of the processors.",
                spread.show(),
                self.stolen * 100.0,
            )?;
        }
        for case in Case::ALL {
            self.table(&mut text, case, devices, reference)?;
        }
        self.bars(&mut text)?;
        for failure in &self.failures {
            writeln!(
                text,
                "\nFAILED: round {}, {}, {}: {}",
                failure.round, failure.case, failure.device, failure.error
            )?;
        }
        Ok(text)
    }

    /// What has to be reached beside what was; rows of cases that were not run say so.
    fn bars(&self, text: &mut String) -> Result<()> {
        let header = ["", "against", "measured", "bar", "aim", ""].map(str::to_owned);
        let mut rows = vec![header.to_vec()];
        let mut measured = 0;
        for bar in &BARS {
            let sign = if larger_is_better(bar.figure) {
                ">="
            } else {
                "<="
            };
            let wanted = bar.wanted_on(self.machine.avx512ifma);
            let [least, aim] = wanted.map_or(["-", "-"].map(str::to_owned), |wanted| {
                wanted.map(|wanted| format!("{sign} {wanted}"))
            });
            let rival = self.rival(bar);
            let spread = Spread::of(&mut self.against(bar, rival));
            measured += usize::from(spread.is_some());
            rows.push(vec![
                bar.name.to_owned(),
                match (bar.against, rival) {
                    (Against::Nothing, _) => "-".to_owned(),
                    (Against::WireguardGo, _) => WIREGUARD_GO.to_owned(),
                    (Against::Library, _) => LIBRARY.to_owned(),
                    (Against::BestPeer, None) => "the best peer".to_owned(),
                    (Against::BestPeer, Some(peer)) => format!("{peer} (the best)"),
                },
                (spread.as_ref()).map_or("-".to_owned(), Spread::show),
                least,
                aim,
                self.verdict(bar, spread.as_ref()).in_words().to_owned(),
            ]);
        }
        if measured == 0 {
            return Ok(());
        }
        let processor = if self.machine.avx512ifma {
            "with AVX-512 IFMA"
        } else {
            "without AVX-512 IFMA"
        };
        writeln!(
            text,
            "\n### What has to be reached by Warren, on a processor {processor}\n"
        )?;
        lay_out(text, &rows)?;
        writeln!(
            text,
            "\nAllocations per packet are counted elsewhere: `cargo test -p warren-tests-simulation --test allocations`."
        )?;
        Ok(())
    }

    /// What of these cases does not reach its bar, or was not measured on all that its bar asks for.
    pub(crate) fn short_of(&self, cases: &[Case]) -> Vec<&'static str> {
        let has_bar = |bar: &&Bar| bar.wanted_on(self.machine.avx512ifma).is_some();
        let is_short = |bar: &&Bar| {
            let spread = Spread::of(&mut self.against(bar, self.rival(bar)));
            let verdict = self.verdict(bar, spread.as_ref());
            matches!(verdict, Verdict::Short | Verdict::NotMeasured)
        };
        let asked = BARS.iter().filter(|bar| cases.contains(&bar.case));
        asked
            .filter(has_bar)
            .filter(is_short)
            .map(|bar| bar.name)
            .collect()
    }

    fn verdict(&self, bar: &Bar, measured: Option<&Spread>) -> Verdict {
        let ifma = self.machine.avx512ifma;
        let Some(spread) = measured else {
            return Verdict::NotMeasured;
        };
        let value = match bar.wanted_on(ifma) {
            // What must never happen may not happen in any round.
            Some([0.0, _]) => spread.most,
            _ => spread.median,
        };
        bar.verdict(value, larger_is_better(bar.figure), ifma)
    }

    /// The figure of one device in one round.
    fn figure(&self, case: Case, figure: &str, device: &str, round: usize) -> Option<f64> {
        let case = format!("{case:?}");
        let sample = self.samples.iter().find(|sample| {
            sample.case == case && sample.device == device && sample.round == round
        })?;
        sample.figures.get(figure).copied()
    }

    /// The figure of one device in all rounds.
    fn rounds_of(&self, case: Case, figure: &str, device: &str) -> Vec<f64> {
        (0..self.rounds)
            .filter_map(|round| self.figure(case, figure, device, round))
            .collect()
    }

    /// Ratios of one device to another within the rounds.
    fn ratios(&self, case: Case, figure: &str, device: &str, to: &str) -> Vec<f64> {
        (0..self.rounds)
            .filter_map(|round| {
                let to = self.figure(case, figure, to, round)?;
                Some(self.figure(case, figure, device, round)? / to)
            })
            .filter(|ratio| ratio.is_finite())
            .collect()
    }

    /// Whoever of these has the best median over the rounds in which all were measured. The best of each round would be
    /// whom chance has favoured in it, and better than any of them.
    fn best(&self, case: Case, figure: &str, peers: &[&'static str]) -> Option<&'static str> {
        let rounds: Vec<Vec<f64>> = (0..self.rounds)
            .filter_map(|round| {
                let figures = peers.iter();
                figures
                    .map(|peer| self.figure(case, figure, peer, round))
                    .collect()
            })
            .collect();
        let mut medians: Vec<(f64, &'static str)> = (peers.iter().enumerate())
            .filter_map(|(place, &peer)| {
                let mut figures: Vec<f64> = rounds.iter().map(|round| round[place]).collect();
                Some((Spread::of(&mut figures)?.median, peer))
            })
            .collect();
        medians.sort_by(|a, b| a.0.total_cmp(&b.0));
        let best = match larger_is_better(figure) {
            true => medians.last(),
            false => medians.first(),
        };
        best.map(|(_, peer)| *peer)
    }

    /// Whom a bar's figure is held against, if it is against anybody.
    fn rival(&self, bar: &Bar) -> Option<&'static str> {
        match bar.against {
            Against::Nothing => None,
            Against::WireguardGo => Some(WIREGUARD_GO),
            Against::Library => Some(LIBRARY),
            Against::BestPeer => self.best(bar.case, bar.figure, &PEERS),
        }
    }

    /// What is held against a bar, of all rounds.
    fn against(&self, bar: &Bar, rival: Option<&str>) -> Vec<f64> {
        let device = if bar.null { NULL } else { WARREN };
        match (bar.against, rival) {
            (Against::Nothing, _) => self.rounds_of(bar.case, bar.figure, device),
            (_, Some(rival)) => self.ratios(bar.case, bar.figure, device, rival),
            (_, None) => Vec::new(),
        }
    }

    fn table(
        &self,
        text: &mut String,
        case: Case,
        devices: &[String],
        reference: &str,
    ) -> Result<()> {
        let key = format!("{case:?}");
        let samples: Vec<&Sample> = self
            .samples
            .iter()
            .filter(|sample| sample.case == key)
            .collect();
        let mut figures: Vec<&str> = samples
            .iter()
            .flat_map(|sample| sample.figures.keys().copied())
            .collect();
        figures.sort_by_key(|figure| (!larger_is_better(figure), *figure));
        figures.dedup();
        if figures.is_empty() {
            return Ok(());
        }
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(figures.iter().map(|figure| (*figure).to_owned()));
        for device in devices {
            let mut row = vec![device.clone()];
            for figure in &figures {
                let mut cell = Spread::of(&mut self.rounds_of(case, figure, device))
                    .map_or_else(|| "-".to_owned(), |spread| spread.show());
                if device != reference
                    && device != WIRE
                    && let Some(spread) =
                        Spread::of(&mut self.ratios(case, figure, device, reference))
                {
                    write!(cell, " = {} x", spread.show())?;
                }
                row.push(cell);
            }
            if row[1..].iter().any(|cell| cell != "-") {
                rows.push(row);
            }
        }
        writeln!(text, "\n### {}\n", case.title())?;
        lay_out(text, &rows)?;
        // The reference may be slow where another is fast, so those that are no peers are also held
        // against whichever peer is the best.
        let peers: Vec<&str> = (PEERS.into_iter())
            .filter(|peer| devices.iter().any(|device| device == peer))
            .collect();
        if peers.len() < 2 {
            return Ok(());
        }
        let is_other = |device: &&String| !peers.contains(&device.as_str()) && *device != WIRE;
        for device in devices.iter().filter(is_other) {
            let mut against = Vec::new();
            for figure in &figures {
                let Some(best) = self.best(case, figure, &peers) else {
                    continue;
                };
                let mut ratios = self.ratios(case, figure, device, best);
                if let Some(spread) = Spread::of(&mut ratios) {
                    against.push(format!("{figure} {} x of {best}", spread.show()));
                }
            }
            if !against.is_empty() {
                writeln!(
                    text,
                    "\n{device} against the best peer: {}",
                    against.join(", ")
                )?;
            }
        }
        Ok(())
    }
}

/// The median and the range of some values.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: &mut [f64]) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread {
            median,
            least,
            most,
        })
    }

    fn show(&self) -> String {
        if self.least == self.most {
            digits(self.median)
        } else {
            format!(
                "{} ({}..{})",
                digits(self.median),
                digits(self.least),
                digits(self.most)
            )
        }
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    let before = value.abs().log10().floor();
    let after = if value == 0.0 {
        0.0
    } else {
        (2.0 - before).clamp(0.0, 4.0)
    };
    format!("{value:.*}", after as usize)
}

fn lay_out(text: &mut String, rows: &[Vec<String>]) -> Result<()> {
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "| {cell:width$} ")?;
        }
        writeln!(text, "|")?;
        if number == 0 {
            for width in &widths {
                write!(text, "|{}", "-".repeat(width + 2))?;
            }
            writeln!(text, "|")?;
        }
    }
    Ok(())
}

impl Machine {
    fn this() -> Result<Machine> {
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let field = |name: &str| {
            info.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(": "))
                .map_or("", |(_, value)| value)
        };
        Ok(Machine {
            processor: field("model name").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            avx512ifma: field("flags").contains("avx512ifma"),
            kernel: said("uname", &["-r"]),
            date: said("date", &["-u", "+%Y-%m-%d %H:%M:%S UTC"]),
            commit: said(
                "git",
                &[
                    "-C",
                    env!("CARGO_MANIFEST_DIR"),
                    "describe",
                    "--always",
                    "--dirty",
                    "--abbrev=12",
                ],
            ),
            load_before: fs::read_to_string("/proc/loadavg")?
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        })
    }
}

/// What a program prints, or that it is not known.
fn said(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Against, BARS, Bar, Case, Figures, Machine, Report, Sample, Spread, WARREN, WIREGUARD_GO,
        digits,
    };

    fn report() -> Report {
        Report {
            machine: Machine::this().expect("it is known"),
            rounds: 3,
            seconds: 0.0,
            congestion: "cubic".to_owned(),
            stolen: 0.0,
            programs: [].into(),
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn sample(round: usize, case: Case, device: &str, figures: Figures) -> Sample {
        Sample {
            round,
            case: format!("{case:?}"),
            device: device.to_owned(),
            loop_step_ns: 1.0,
            figures,
        }
    }

    #[test]
    fn a_bar_is_missed_by_its_median_and_where_nothing_may_happen_by_any_round() {
        let mut report = report();
        let short_of = |report: &Report| report.short_of(&[Case::Segment64]);
        let [rate, order] = ["UDP_SEGMENT of 64 bytes", "reordered, UDP_SEGMENT"];
        assert_eq!(short_of(&report), [rate, order], "nothing was measured");
        assert!(report.short_of(&[Case::Bbr]).is_empty(), "it has no bar");
        for (round, warren) in [40.0, 1.0, 39.0].into_iter().enumerate() {
            for (device, kpps) in [(WARREN, warren), (WIREGUARD_GO, 1.0)] {
                let figures = Figures::from([("kpps", kpps), ("reordered", 0.0)]);
                (report.samples).push(sample(round, Case::Segment64, device, figures));
            }
        }
        assert!(short_of(&report).is_empty(), "one slow round of three");
        let fast = &mut report.samples[0].figures;
        fast.insert("reordered", 1.0);
        assert_eq!(
            short_of(&report),
            [order],
            "one datagram of one round was late"
        );
        report.samples[0].figures = Figures::from([("kpps", 2.0), ("reordered", 0.0)]);
        assert_eq!(short_of(&report), [rate], "two slow rounds of three");
    }

    #[test]
    fn the_best_peer_is_the_best_of_all_rounds_and_not_of_each() {
        let mut report = report();
        report.rounds = 4;
        let rounds = [
            (WARREN, &[10.0, 20.0, 30.0, 40.0][..]),
            (WIREGUARD_GO, &[10.0, 1.0, 90.0, 1.0]),
            ("boringtun-cli", &[20.0, 9.0, 8.0, 99.0]),
            // Of the last round it is not known who was the best.
            ("gotatun", &[30.0, 31.0, 32.0]),
        ];
        for (device, values) in rounds {
            for (round, &value) in values.iter().enumerate() {
                let figures = Figures::from([("p99 us", value), ("kpps", value)]);
                report
                    .samples
                    .push(sample(round, Case::Ping, device, figures));
            }
        }
        let rival = |figure| {
            let bar = BARS.iter().find(|bar| bar.against == Against::BestPeer);
            report.rival(&Bar {
                case: Case::Ping,
                figure,
                ..*bar.expect("there are some")
            })
        };
        assert_eq!(rival("p99 us"), Some("boringtun-cli"));
        assert_eq!(rival("kpps"), Some("gotatun"));
        assert_eq!(rival("Gb/s"), None, "nobody was measured");
        let ratios = report.ratios(Case::Ping, "p99 us", WARREN, "gotatun");
        assert_eq!(ratios, [10.0 / 30.0, 20.0 / 31.0, 30.0 / 32.0]);
    }

    #[test]
    fn figures_have_three_digits_whatever_their_size() {
        let shown = [0.0, 0.0126, 0.457, 1.0, 15.81, 428.2, 57_904.3].map(digits);
        assert_eq!(
            shown,
            ["0", "0.0126", "0.457", "1.00", "15.8", "428", "57904"]
        );
    }

    #[test]
    fn a_median_comes_with_its_range() {
        let spread = Spread::of(&mut [3.0, 1.0, 2.0]).expect("there are values");
        assert_eq!(spread.show(), "2.00 (1.00..3.00)");
        let spread = Spread::of(&mut [3.0, 1.0]).expect("there are values");
        assert_eq!(spread.show(), "2.00 (1.00..3.00)");
        assert_eq!(
            Spread::of(&mut [4.0]).expect("there is a value").show(),
            "4.00"
        );
        assert!(Spread::of(&mut []).is_none());
    }
}
