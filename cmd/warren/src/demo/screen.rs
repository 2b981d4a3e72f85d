//! What the demo says: steps, what was seen in each, and how long it took.

use std::fmt::Display;
use std::io;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};

use crate::{clock, output};

const GREEN: Style = AnsiColor::Green.on_default().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Writes the demo's lines.
#[derive(Debug)]
pub(super) struct Screen {
    started: Instant,
    /// When the last line was written.
    since: Instant,
    step: u32,
}

impl Screen {
    pub(super) fn new() -> Self {
        let now = clock::now();
        Self {
            started: now,
            since: now,
            step: 0,
        }
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) -> io::Result<()> {
        self.step += 1;
        self.since = clock::now();
        let step = self.step;
        output::line(format_args!("\n{BOLD}{step}  {title}{BOLD:#}"))
    }

    /// Something was seen that is as it should be.
    pub(super) fn good(&mut self, text: impl Display) -> io::Result<()> {
        self.line(GREEN, '✓', &text)
    }

    /// Something should be known.
    pub(super) fn note(&mut self, text: impl Display) -> io::Result<()> {
        self.line(YELLOW, '•', &text)
    }

    /// Something is not as it should be.
    pub(super) fn bad(&mut self, text: impl Display) -> io::Result<()> {
        self.line(RED, '✗', &text)
    }

    /// What somebody may type.
    pub(super) fn command(&self, text: impl Display) -> io::Result<()> {
        output::line(format_args!("              {BOLD}{text}{BOLD:#}"))
    }

    /// A line without a time.
    pub(super) fn plain(&self, text: impl Display) -> io::Result<()> {
        output::line(text)
    }

    /// How long all of it took until now.
    pub(super) fn total(&self) -> Duration {
        clock::now().duration_since(self.started)
    }

    fn line(&mut self, style: Style, sign: char, text: &dyn Display) -> io::Result<()> {
        let now = clock::now();
        let took = in_words(now.duration_since(self.since));
        self.since = now;
        output::line(format_args!(
            "   {style}{sign}{style:#} {DIM}{took:>7}{DIM:#}  {text}"
        ))
    }
}

/// A time as people say it.
pub(super) fn in_words(time: Duration) -> String {
    match time.as_secs_f64() {
        secs if secs >= 1.0 => format!("{secs:.1} s"),
        secs if secs >= 0.01 => format!("{:.0} ms", secs * 1e3),
        secs => format!("{:.2} ms", secs * 1e3),
    }
}

/// A rate as people say it.
pub(super) fn rate(bytes: u64, time: Duration) -> String {
    let bits = bytes as f64 * 8.0 / time.as_secs_f64().max(f64::EPSILON);
    match bits {
        bits if bits >= 1e9 => format!("{:.1} Gbit/s", bits / 1e9),
        bits => format!("{:.0} Mbit/s", bits / 1e6),
    }
}
