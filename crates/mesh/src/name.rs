//! Names of nodes, and what somebody probably meant.

use std::fmt;
use std::str::FromStr;

/// The name of a node: unique in its mesh, and a valid DNS name in lower case.
///
/// Kubernetes names its nodes by the same rule, and a name that obeys it is harmless wherever it
/// goes: in a file name, a unit's instance, a log line or a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// Why a text is no name of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name is made of lower-case letters, digits and '-', in parts of at most 63 joined by '.', \
     and each part begins and ends with a letter or digit"
)]
pub struct NameError;

impl NodeName {
    /// A name that no node has, for one whose own could not be read.
    pub(crate) const NOBODY: Self = Self(String::new());

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_dns_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError)
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is a DNS name in lower case (RFC 1123, section 2.1).
pub(crate) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.len() <= 63
        && alphanumeric(first)
        && alphanumeric(last)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

/// The one of `candidates` that somebody who wrote `text` probably meant, if any is near.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long texts are no typing errors of short names, and the distance below is quadratic.
    if text.len() > 64 {
        return None;
    }
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let allowed = (text.len() / 3).max(1);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= 64)
        .map(|candidate| (distance(&text, candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, removals, replacements and swaps of neighbours that lead from `a` to `b`.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_name_in_lower_case() {
        for name in [
            "a",
            "hut",
            "hut-2",
            "2",
            "node.example.org",
            &"a".repeat(63),
        ] {
            assert!(name.parse::<NodeName>().is_ok(), "{name:?}");
        }
        for name in [
            "",
            "Hut",
            "hut_2",
            "-hut",
            "hut-",
            "hut.",
            ".hut",
            "a..b",
            "../etc",
            "a b",
            "a/b",
            "hütte",
            "a\n",
            &"a".repeat(64),
            &"a.".repeat(127),
        ] {
            assert_eq!(name.parse::<NodeName>(), Err(NameError), "{name:?}");
        }
    }

    #[test]
    fn the_nearest_name_is_what_was_meant() {
        let fields = ["name", "public_key", "endpoints", "addresses", "prefixes"];
        for (typed, meant) in [
            ("prefxies", Some("prefixes")),
            ("endpoint", Some("endpoints")),
            ("adresses", Some("addresses")),
            ("PublicKey", Some("public_key")),
            ("nmae", Some("name")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, fields), meant, "{typed:?}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), fields), None);
    }
}
