//! An error says its cause itself, or has it as its source, and never both: whoever prints an error
//! with all of its sources, as the commands do, would say the cause twice.
//!
//! Here it says it itself, since most errors become a sentence without being asked for their sources.
//! thiserror takes every field `source` for one; a cause is `r#source` or has another name. What is
//! `transparent` says nothing of its own, so it may be made `#[from]` what it holds.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::sources::tokens;
use crate::{rust_files, shown};

#[test]
fn no_error_says_its_cause_and_has_it_as_its_source() {
    let mut wrong = Vec::new();
    for path in rust_files(&["crates", "cmd"]) {
        let name = with_source(tokens(&path));
        wrong.extend(name.map(|name| format!("{}: {name}", shown(&path))));
    }
    assert!(wrong.is_empty(), "errors with a source: {wrong:#?}");
}

#[test]
fn a_source_is_seen_however_it_is_made() {
    let seen = |text: &str| with_source(text.parse().expect("it is Rust"));
    for text in [
        "#[derive(Debug, thiserror::Error)] pub(crate) enum E { #[error(\"{0}\")] A(#[source] F) }",
        "#[derive(Error)] enum E { #[error(\"{0}\")] A(#[from] F) }",
        "mod m { #[derive(Error)] #[error(\"{source}\")] struct E { source: F } }",
        "#[derive(Error)] enum E { #[error(transparent)] A(#[from] F), #[error(\"\")] B(#[from] G) }",
        "impl std::error::Error for E { fn source(&self) -> Option<&F> { None } }",
    ] {
        assert_eq!(seen(text).as_deref(), Some("E"), "{text}");
    }
    for text in [
        "struct S { source: F }",
        "#[derive(Error)] enum E { #[error(\"{source}\")] A { r#source: F } } struct S { source: F }",
        "#[derive(Error)] #[error(transparent)] pub struct E(#[from] F);",
        "impl std::error::Error for E {}",
    ] {
        assert_eq!(seen(text), None, "{text}");
    }
}

/// The first error of these items that has a source of its own.
fn with_source(items: TokenStream) -> Option<String> {
    let items: Vec<TokenTree> = items.into_iter().collect();
    // Of an item with `derive(Error)`: whether it says nothing of its own, and its name.
    let mut derives = false;
    let mut is_transparent = false;
    let mut name = None;
    for (at, item) in items.iter().enumerate() {
        let is_next = |next: usize, word: &str| is_word(items.get(at + next), word);
        match item {
            TokenTree::Ident(word) if word == "enum" || word == "struct" => {
                name = (items.get(at + 1)).map(ToString::to_string);
            }
            TokenTree::Ident(word) if word == "Error" && is_next(1, "for") => {
                let body = items.get(at + 3);
                if let Some(TokenTree::Group(body)) = body
                    && body
                        .stream()
                        .into_iter()
                        .any(|token| is_word(Some(&token), "source"))
                {
                    return (items.get(at + 2)).map(ToString::to_string);
                }
            }
            TokenTree::Group(group) => match (group.delimiter(), name.take()) {
                (Delimiter::Bracket, kept) => {
                    name = kept;
                    derives |= is_attribute(group, "derive") && has_word(group.stream(), "Error");
                    is_transparent |= is_attribute(group, "error") && says_nothing(group);
                }
                (_, Some(name)) => {
                    if derives && body_has_source(group.stream(), &mut is_transparent) {
                        return Some(name);
                    }
                    (derives, is_transparent) = (false, false);
                }
                (_, None) => {
                    if let Some(name) = with_source(group.stream()) {
                        return Some(name);
                    }
                }
            },
            _ => {}
        }
    }
    None
}

fn body_has_source(body: TokenStream, is_transparent: &mut bool) -> bool {
    let body: Vec<TokenTree> = body.into_iter().collect();
    (0..body.len()).any(|at| match &body[at] {
        TokenTree::Ident(word) => {
            let is_field =
                matches!(body.get(at + 1), Some(TokenTree::Punct(next)) if next.as_char() == ':');
            word == "source" && is_field && !*is_transparent
        }
        TokenTree::Group(group) if is_attribute(group, "error") => {
            *is_transparent = says_nothing(group);
            false
        }
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            (is_attribute(group, "source") || is_attribute(group, "from")) && !*is_transparent
        }
        TokenTree::Group(group) => body_has_source(group.stream(), is_transparent),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

fn is_attribute(group: &Group, name: &str) -> bool {
    group.delimiter() == Delimiter::Bracket
        && is_word(group.stream().into_iter().next().as_ref(), name)
}

/// Whether an attribute `error` leaves it to the cause to say something.
fn says_nothing(attribute: &Group) -> bool {
    has_word(attribute.stream(), "transparent")
}

fn has_word(tokens: TokenStream, word: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Group(group) => has_word(group.stream(), word),
        token => is_word(Some(&token), word),
    })
}

fn is_word(token: Option<&TokenTree>, word: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == word)
}
