//! Standard output and error, with colour only on a terminal.

use std::fmt::Display;
use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use warren_mesh::{Line, Located, Mark, Severity};

const RED: Style = AnsiColor::Red.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const BOLD: Style = Style::new().bold();

/// A line of the result.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(anstream::stdout().lock(), "{text}")
}

/// The result as it is, for programs.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// What somebody should know beside the result.
pub(crate) fn note(text: impl Display) {
    // There is nobody left to tell that standard error is closed.
    let _told = writeln!(anstream::stderr().lock(), "{text}");
}

/// Why it is not done: each error a sentence, with what led to it.
pub(crate) fn error(error: &anyhow::Error) {
    let bold = RED.bold();
    note(format_args!("{bold}error{bold:#}: {error:#}"));
}

/// What is wrong with a file.
pub(crate) fn located(found: &Located) {
    let style = severity(found.severity);
    note(format_args!("{style}{found}{style:#}"));
}

/// What should be known of a plan.
pub(crate) fn problem(severity: Severity, text: impl Display) {
    let style = self::severity(severity).bold();
    note(format_args!("{style}{severity}{style:#}: {text}"));
}

/// A line of a difference.
pub(crate) fn difference(line: &Line) -> io::Result<()> {
    let style = match line.mark {
        Mark::Added => GREEN,
        Mark::Removed => RED,
        Mark::Kept => BOLD,
    };
    self::line(format_args!("{style}{line}{style:#}"))
}

fn severity(severity: Severity) -> Style {
    match severity {
        Severity::Error => RED,
        Severity::Warning => YELLOW,
    }
}
