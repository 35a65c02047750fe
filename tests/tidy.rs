//! Rules of the source that no compiler checks: who may name whom, how long files get, and that every
//! error reason is explained.

#![allow(clippy::expect_used)] // It is all test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer may name those that stand left of it.
const LAYERS: [&str; 7] = ["record", "store", "coordinator", "rpc", "server", "cli", "main"];

/// What `record` may not name: it is pure. Files, sockets, time, protocols and tasks are other layers'.
const IMPURE: [&str; 16] = [
    "async",
    "await",
    "async_trait",
    "clock",
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "fs",
    "io",
    "net",
    "env",
    "thread",
    "prost",
    "tokio",
    "tonic",
    "onced_client",
];

/// Names that belong to a few places: the name, where it may stand, and why.
const KEPT_APART: [(&str, &[&str], &str); 5] = [
    ("etcd_client", &["src/store/etcd/"], "etcd can be replaced as long as one place knows it"),
    ("redb", &["src/store/embedded"], "redb can be replaced as long as one place knows it"),
    ("onced.store.v1", &["src/store/encoding.rs"], "the stored form changes in one place"),
    ("onced_client::v1", &["src/rpc/", "src/cli/", "src/lib.rs"], "the API changes in one place"),
    ("onced_v1", &["src/rpc/", "src/lib.rs"], "the API changes in one place"),
];

const FILE_MAX_LINES: usize = 500;

#[test]
fn no_layer_names_one_to_its_right() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        let Some(own) = layer_of(&file.path) else { continue };
        for (line, name) in named_from_the_root(&file.code) {
            if LAYERS[own + 1..].contains(&name) {
                wrong.push(format!("{}:{line} names {name}", file.path));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn what_stands_beside_the_layers_names_none_of_them_but_record() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        if !["src/access/", "src/clock.rs", "src/config/", "src/telemetry.rs"]
            .iter()
            .any(|place| file.path.starts_with(place))
        {
            continue;
        }
        for (line, name) in named_from_the_root(&file.code) {
            if LAYERS[1..].contains(&name) {
                wrong.push(format!("{}:{line} names {name}", file.path));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn record_is_pure() {
    let mut wrong = Vec::new();
    for file in sources("src/record") {
        for (line, text) in lines(&file.code) {
            for name in IMPURE {
                if has_word(text, name) {
                    wrong.push(format!("{}:{line} names {name}: {}", file.path, text.trim()));
                }
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn tonic_is_named_where_calls_are_served_or_made_alone() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        let serves = ["src/rpc", "src/server", "src/cli", "src/store/etcd", "src/lib.rs"];
        if serves.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        for (line, text) in lines(&file.code) {
            if ["tonic", "tonic_types", "tonic_prost"].iter().any(|name| has_word(text, name)) {
                wrong.push(format!("{}:{line}: {}", file.path, text.trim()));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn names_that_belong_to_one_place_stay_there() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        for (name, places, why) in KEPT_APART {
            if places.iter().any(|place| file.path.starts_with(place)) {
                continue;
            }
            for (line, text) in lines(&file.code) {
                if has_word(text, name) {
                    wrong.push(format!("{}:{line} names {name} ({why}): {}", file.path, text.trim()));
                }
            }
        }
    }
    assert_none(&wrong);
}

/// Least of all on the server, of which it says whether it is right.
#[test]
fn the_checker_of_histories_depends_on_nothing() {
    let manifest = read("history/Cargo.toml");
    let own: Vec<_> = lines(&manifest).filter(|(_, text)| text.ends_with("dependencies]")).collect();
    assert!(matches!(own.as_slice(), [(_, "[dev-dependencies]")]), "{own:?}");
    assert!(!manifest.contains("path = "), "{manifest}");
}

/// Which of several things that are ready comes first is ours to say: a draw would make no two simulations of a seed
/// alike.
#[test]
fn no_select_of_a_server_draws() {
    let mut wrong = Vec::new();
    for file in ["src/store", "src/coordinator", "src/rpc", "src/server"].into_iter().flat_map(sources) {
        let mut lines = lines(&file.code).peekable();
        while let Some((line, text)) = lines.next() {
            let biased = lines.peek().is_some_and(|(_, next)| next.trim() == "biased;");
            if text.trim_end().ends_with("select! {") && !biased {
                wrong.push(format!("{}:{line} does not begin with `biased;`", file.path));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut wrong = Vec::new();
    for file in ["src", "tests", "clients", "history", "model"].into_iter().flat_map(sources) {
        let count = file.code.lines().count();
        if count >= FILE_MAX_LINES {
            wrong.push(format!("{} has {count} lines", file.path));
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_error_reason_has_its_page_and_every_page_its_reason() {
    let proto = read("proto/onced/v1/error_reason.proto");
    let reasons: BTreeSet<String> = proto
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ERROR_REASON_")?.split_once(" = "))
        .filter(|(reason, _)| *reason != "UNSPECIFIED")
        .map(|(reason, _)| reason.to_owned())
        .collect();
    assert!(reasons.len() > 30, "the proto was not understood: {reasons:?}");

    let mut pages = BTreeSet::new();
    for path in files("docs/errors", "md") {
        let reason = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if reason == "README" {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a page");
        assert!(text.starts_with(&format!("# {reason}\n")), "{} has another heading", path.display());
        pages.insert(reason);
    }
    assert_eq!(reasons, pages, "reasons of the proto, left, and pages in docs/errors, right");
}

/// The rules are only as good as what they read names with.
#[test]
fn names_are_found_where_they_stand_and_only_there() {
    let code = "use crate::store::Revision;\nuse crate::{\n    clock,\n    record::{Key, server},\n    rpc::health,\n};\n\
                onced::server::serve(config); super::cli::run(); let store = restore::main; crate::mainly();";
    let mut names = named_from_the_root(code);
    names.sort_unstable();
    let expected =
        [(1, "store"), (2, "clock"), (2, "record"), (2, "rpc"), (7, "cli"), (7, "mainly"), (7, "server")];
    assert_eq!(names, expected);
    assert!(has_word("use redb::Database;", "redb"));
    assert!(!has_word("let credbook = 1;", "redb"));
    let text = "code(); // a remark on tokio\n/// tokio\n    let url = \"http://x\";";
    assert_eq!(without_comments(text), "code(); \n\n    let url = \"http://x\";\n");
    assert_eq!(layer_of("src/server/mod.rs"), Some(4));
    assert_eq!(layer_of("src/main.rs"), Some(6));
    assert_eq!(layer_of("src/config/mod.rs"), None);
}

/// A file of the source: its path from the root, with slashes, and its lines without comments. Text between
/// quotes is code: a name in it counts, too.
struct Source {
    path: String,
    code: String,
}

fn sources(directory: &str) -> Vec<Source> {
    let found: Vec<Source> = files(directory, "rs")
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a source file");
            let path = path.strip_prefix(root()).expect("below the root");
            Source { path: path.to_string_lossy().replace('\\', "/"), code: without_comments(&text) }
        })
        .collect();
    assert!(!found.is_empty(), "no source files in {directory}: a rule that reads nothing holds nothing");
    found
}

/// Files below a directory of the root, links not followed.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("a file type");
            if kind.is_dir() && entry.file_name() != "target" && entry.file_name() != "node_modules" {
                open.push(entry.path());
            } else if kind.is_file() && entry.path().extension().is_some_and(|found| found == extension) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect("a file of the repository")
}

/// The place of a file in the chain: `src/rpc/mod.rs` and `src/rpc.rs` are of `rpc`.
fn layer_of(path: &str) -> Option<usize> {
    let name = path.strip_prefix("src/")?.split(['/', '.']).next()?;
    LAYERS.iter().position(|layer| *layer == name)
}

fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        // The slashes of an URL follow a colon.
        let end =
            line.match_indices("//").map(|(start, _)| start).find(|start| !line[..*start].ends_with(':'));
        code.push_str(&line[..end.unwrap_or(line.len())]);
        code.push('\n');
    }
    code
}

fn lines(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().map(|(number, line)| (number + 1, line))
}

/// What code names right below the crate's root, each with its line: `b` and `d` of
/// `crate::b::c` and `use crate::{b, d::e}`. `super::b` counts as well: it may be the root's.
fn named_from_the_root(code: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    for from in ["crate::", "onced::", "super::"] {
        for (start, _) in code.match_indices(from) {
            let line = code[..start].matches('\n').count() + 1;
            names.extend(names_at(&code[start + from.len()..]).into_iter().map(|name| (line, name)));
        }
    }
    names
}

/// The name that code starts with, or the first one of each member of the group in braces.
fn names_at(code: &str) -> Vec<&str> {
    let Some(group) = code.strip_prefix('{') else { return vec![name_at(code)] };
    let (mut depth, mut start, mut members) = (1_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (c == ',' && depth == 1) {
            members.push(name_at(group[start..at].trim_start()));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    members.retain(|name| !name.is_empty());
    members
}

fn name_at(code: &str) -> &str {
    let end = code.find(|c| !is_of_name(c)).unwrap_or(code.len());
    // `onced::store=debug` is a log filter.
    if code[end..].starts_with('=') { "" } else { &code[..end] }
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(start, _)| {
        !code[..start].ends_with(is_of_name) && !code[start + word.len()..].starts_with(is_of_name)
    })
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[track_caller]
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
