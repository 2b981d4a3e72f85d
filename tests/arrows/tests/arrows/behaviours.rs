//! `docs/behaviours.md` says which test carries which behaviour; here the table is held to the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::root;
use crate::sources::tokens;

const TABLE: &str = "docs/behaviours.md";

/// The behaviours that belong to the tunnel, the standalone mesh and what is there for Kubernetes.
fn wanted() -> BTreeSet<u32> {
    (1..=48).collect()
}

#[test]
fn each_behaviour_is_in_the_table_once_and_either_has_a_test_or_is_said_to_lack_one() {
    let table = table();
    let listed: BTreeSet<u32> = table.iter().map(|row| row.number).collect();
    assert_eq!(
        listed.len(),
        table.len(),
        "a behaviour is listed twice in {TABLE}"
    );
    let missing: Vec<u32> = wanted().difference(&listed).copied().collect();
    assert!(
        missing.is_empty(),
        "behaviours without a line in {TABLE}: {missing:?}"
    );
    for row in &table {
        assert!(
            row.tests.is_empty() == row.open,
            "behaviour {}: a line names its tests, or says `no test yet`, not both and not neither",
            row.number
        );
    }
}

#[test]
fn each_test_that_the_table_names_is_in_the_tree() {
    let rows = table().into_iter();
    let named = rows.map(|row| (format!("behaviour {}", row.number), row.tests));
    assert_in_tree(named.chain(failures()));
}

#[test]
fn each_failure_on_kubernetes_has_a_test() {
    for (failure, tests) in failures() {
        assert!(!tests.is_empty(), "{failure} has no test in {TABLE}");
    }
}

fn assert_in_tree(named: impl Iterator<Item = (String, Vec<(String, String)>)>) {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (what, tests) in named {
        for (name, file) in tests {
            let path = root()
                .join(TABLE)
                .parent()
                .expect("the table lies in a folder")
                .join(&file);
            if !path.is_file() {
                wrong.push(format!("{what}: there is no {file}"));
                continue;
            }
            let tests = known.entry(file.clone()).or_insert_with(|| tests_in(&path));
            if !tests.contains(&name) {
                wrong.push(format!("{what}: {file} has no test {name}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{TABLE} names what is not there: {wrong:#?}"
    );
}

#[test]
fn only_functions_marked_as_tests_count() {
    let mut found = BTreeSet::new();
    let text = "mod m { fn helper() {} #[test] #[ignore] fn one() {} } prop! { #[test] fn two(x in 0..1u8) {} } fn three() {}";
    collect_tests(text.parse().expect("it is Rust"), &mut found);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["one", "two"]);
}

struct Row {
    number: u32,
    /// Name of the test and its file, relative to the table.
    tests: Vec<(String, String)>,
    open: bool,
}

/// The rows `| number | behaviour | tests |`; a test is a link with its name as code:
/// [`name`](../path/to/file.rs).
fn table() -> Vec<Row> {
    let text =
        std::fs::read_to_string(root().join(TABLE)).expect("the table of behaviours is in docs/");
    let rows: Vec<Row> = text
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line
                .strip_prefix('|')?
                .trim_end()
                .strip_suffix('|')?
                .split('|')
                .map(str::trim)
                .collect();
            let number = cells.first()?.parse().ok()?;
            assert_eq!(
                cells.len(),
                3,
                "line of behaviour {number}: number, behaviour, tests"
            );
            Some(Row {
                number,
                tests: links(cells[2]),
                open: cells[2] == "no test yet",
            })
        })
        .collect();
    assert!(!rows.is_empty(), "{TABLE} has no rows");
    rows
}

/// The rows `| failure | tests |` of the table behind that of behaviours.
fn failures() -> Vec<(String, Vec<(String, String)>)> {
    let text = std::fs::read_to_string(root().join(TABLE)).expect("it is in docs/");
    let (_, behind) = text.split_once("| Failure | Tests |").expect("its heading");
    let rows = behind.lines().skip(2).filter_map(|line| {
        let (failure, tests) = line.strip_prefix('|')?.split_once('|')?;
        Some((failure.trim().to_owned(), links(tests)))
    });
    let rows: Vec<_> = rows.collect();
    assert!(!rows.is_empty(), "{TABLE} has no failures");
    rows
}

fn links(cell: &str) -> Vec<(String, String)> {
    cell.split("[`")
        .skip(1)
        .map(|rest| {
            let (name, rest) = rest
                .split_once("`](")
                .expect("a test is a link: [`name`](file)");
            let (file, _) = rest.split_once(')').expect("a link ends with a bracket");
            (name.to_owned(), file.to_owned())
        })
        .collect()
}

fn tests_in(path: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect_tests(tokens(path), &mut found);
    found
}

/// The names of functions with an attribute that has the word `test` in it, also within macros.
fn collect_tests(tokens: TokenStream, found: &mut BTreeSet<String>) {
    let mut marked = false;
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                if let Some(TokenTree::Group(group)) = tokens.peek()
                    && group.delimiter() == Delimiter::Bracket
                {
                    let is_test =
                        |token| matches!(token, TokenTree::Ident(ident) if ident == "test");
                    marked |= group.stream().into_iter().any(is_test);
                    tokens.next();
                }
            }
            TokenTree::Ident(ident) if ident == "fn" => {
                if let Some(TokenTree::Ident(name)) = tokens.peek()
                    && std::mem::take(&mut marked)
                {
                    found.insert(name.to_string());
                }
            }
            TokenTree::Group(group) => {
                collect_tests(group.stream(), found);
                if group.delimiter() == Delimiter::Brace {
                    marked = false;
                }
            }
            TokenTree::Punct(_) | TokenTree::Ident(_) | TokenTree::Literal(_) => {}
        }
    }
}
