//! The mesh file: one TOML file for all nodes, written by a person.
//!
//! `docs/mesh-file.md` explains it to that person. Reading goes through the whole file whatever it
//! meets: each problem becomes one sentence with its line and column, and a file with an error is
//! refused whole.

mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest as _};

use crate::directory::Directory;
use crate::problem::{Cause, Field, Place, Problem, Severity, Subject};
use reader::Reader;

/// A mesh file that holds no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshFile {
    /// What it says.
    pub directory: Directory,
    /// BLAKE2b-256 of its bytes in hexadecimal, as `b2sum -l 256` prints it. Two nodes run the same
    /// file exactly if this is the same; a changed comment is another file.
    pub digest: String,
    /// What is not as it may have been meant.
    pub warnings: Vec<Located>,
    name: String,
    positions: BTreeMap<Subject, Position>,
}

/// A problem of a file: one sentence that begins with where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The file's name, as the caller gave it.
    pub file: String,
    /// Where in the file; `None` for the file as a whole.
    pub position: Option<Position>,
    /// How bad it is.
    pub severity: Severity,
    /// The sentence.
    pub text: String,
}

/// A place in a file, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character within the line.
    pub column: usize,
}

impl MeshFile {
    /// Reads a file's text, or says all that is wrong with it, in the order of its lines.
    ///
    /// `file` is what the sentences call it.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Located>> {
        let read = Reader::read(text);
        let mut located: Vec<Located> = (read.faults.into_iter())
            .map(|(position, text)| Located {
                file: file.to_owned(),
                position,
                severity: Severity::Error,
                text,
            })
            .collect();
        let parsed = Self {
            directory: read.directory,
            digest: digest(text),
            warnings: Vec::new(),
            name: file.to_owned(),
            positions: read.positions,
        };
        located.extend(
            (parsed.directory.review().iter())
                .filter(|problem| read.well_formed || !concludes_from_absence(problem))
                .filter(|problem| !is_premature(problem, &read.incomplete))
                .map(|problem| parsed.locate(problem)),
        );
        located.sort_by_key(|found| (found.position, found.severity));
        if located
            .iter()
            .any(|found| found.severity == Severity::Error)
        {
            return Err(located);
        }
        Ok(Self {
            warnings: located,
            ..parsed
        })
    }

    /// A problem of this file's directory or of a plan made from it, with its line and column.
    pub fn locate(&self, problem: &Problem) -> Located {
        let text = WithLines {
            problem,
            positions: &self.positions,
        };
        Located {
            file: self.name.clone(),
            position: position_of(&self.positions, &problem.subject),
            severity: problem.severity(),
            text: text.to_string(),
        }
    }
}

impl Subject {
    /// The field that this is an entry of.
    fn whole(&self) -> Self {
        Self {
            index: 0,
            ..self.clone()
        }
    }
}

/// Whether the problem is that something is not there.
fn concludes_from_absence(problem: &Problem) -> bool {
    matches!(
        problem.cause,
        Cause::NoMeshPrefix
            | Cause::NoAddress
            | Cause::NoKey
            | Cause::OutsideMesh(_)
            | Cause::AddressOutsideMesh(_)
            | Cause::UnknownNode { .. }
            | Cause::Unreachable { .. }
    )
}

/// Whether what is not there may just not have been readable, which another sentence says.
fn is_premature(problem: &Problem, incomplete: &BTreeSet<Subject>) -> bool {
    let any = |field| (incomplete.iter()).any(|subject: &Subject| subject.field == Some(field));
    match problem.cause {
        Cause::OutsideMesh(_) | Cause::AddressOutsideMesh(_) => {
            incomplete.contains(&Subject::entry(Place::Mesh, Field::Prefixes, 0))
        }
        Cause::UnknownNode { .. } => any(Field::Name),
        Cause::Unreachable { .. } => any(Field::Endpoints),
        _ => concludes_from_absence(problem) && incomplete.contains(&problem.subject.whole()),
    }
}

/// Where the item is, else its field, else its place.
fn position_of(positions: &BTreeMap<Subject, Position>, subject: &Subject) -> Option<Position> {
    let place = Subject::of(subject.place.clone());
    [subject, &subject.whole(), &place]
        .into_iter()
        .find_map(|subject| positions.get(subject).copied())
}

fn digest(text: &str) -> String {
    use fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in Blake2b::<U32>::digest(text.as_bytes()) {
        let _infallible = write!(hex, "{byte:02x}");
    }
    hex
}

/// A problem's sentence that also says on which line the related item is.
struct WithLines<'a> {
    problem: &'a Problem,
    positions: &'a BTreeMap<Subject, Position>,
}

impl fmt::Display for WithLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.write(f, &|related| {
            position_of(self.positions, related)
                .map_or_else(String::new, |Position { line, .. }| {
                    format!(" on line {line}")
                })
        })
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}: {}", self.severity, self.text)
    }
}
