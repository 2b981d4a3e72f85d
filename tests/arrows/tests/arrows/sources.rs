//! What the sources may say, and where. Files are read as tokens, so that comments and texts count
//! for nothing.

use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::{root, rust_files, shown};

#[test]
fn unsafe_is_only_in_files_named_sys_and_simd() {
    let mut wrong = Vec::new();
    for path in rust_files(&["crates", "cmd", "tests", "benches", "fuzz"]) {
        let fenced = path.ends_with("sys.rs") || path.ends_with("simd.rs");
        if !fenced && mentions(tokens(&path), &["unsafe", "unsafe_code"]) {
            wrong.push(shown(&path));
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe outside of sys.rs and simd.rs: {wrong:#?}"
    );
}

#[test]
fn the_environment_is_read_only_by_commands() {
    let mut wrong = Vec::new();
    for path in rust_files(&["crates"]) {
        if reads_environment(tokens(&path)) {
            wrong.push(shown(&path));
        }
    }
    assert!(
        wrong.is_empty(),
        "environment variables read outside of cmd/: {wrong:#?}"
    );
}

#[test]
fn a_breach_is_seen_in_code_and_not_in_prose() {
    let parse = |text: &str| text.parse::<TokenStream>().expect("it is Rust");
    assert!(mentions(
        parse("fn f() { g!(unsafe { h() }) }"),
        &["unsafe"]
    ));
    assert!(!mentions(
        parse("// unsafe\n/// unsafe\nfn f() -> &str { \"unsafe\" }"),
        &["unsafe"]
    ));
    assert!(reads_environment(parse("fn f() { std::env::var_os(X) }")));
    assert!(reads_environment(parse("use std::env::{args, var};")));
    assert!(!reads_environment(parse(
        "fn f() { std::env::args(); env!(\"X\"); var(); }"
    )));
}

/// The tokens of a file.
pub(crate) fn tokens(path: &Path) -> TokenStream {
    let text = std::fs::read_to_string(path).expect("a source of the checkout can be read");
    text.parse()
        .unwrap_or_else(|error| panic!("{}: {error}", shown(path)))
}

fn mentions(tokens: TokenStream, words: &[&str]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => words.iter().any(|word| ident == word),
        TokenTree::Group(group) => mentions(group.stream(), words),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

/// Whether `env::` is followed by a function that reads or changes variables, or by a group with one.
fn reads_environment(tokens: TokenStream) -> bool {
    const FUNCTIONS: &[&str] = &["var", "var_os", "vars", "vars_os", "set_var", "remove_var"];
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let path = |at: usize| {
        let is = |offset: usize, what: char| matches!(tokens.get(at + offset), Some(TokenTree::Punct(punct)) if punct.as_char() == what);
        matches!(&tokens[at], TokenTree::Ident(ident) if ident == "env") && is(1, ':') && is(2, ':')
    };
    (0..tokens.len()).any(|at| match &tokens[at] {
        TokenTree::Group(group) => reads_environment(group.stream()),
        _ if path(at) => match tokens.get(at + 3) {
            Some(TokenTree::Ident(ident)) => FUNCTIONS.iter().any(|function| ident == function),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                mentions(group.stream(), FUNCTIONS)
            }
            _ => false,
        },
        _ => false,
    })
}

#[test]
fn the_folders_that_are_searched_exist() {
    for folder in ["crates", "cmd", "tests"] {
        assert!(
            root().join(folder).is_dir(),
            "{folder} is not in the checkout"
        );
        assert!(!rust_files(&[folder]).is_empty(), "{folder} has no source");
    }
}
