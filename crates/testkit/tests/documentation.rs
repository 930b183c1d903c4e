//! What the documentation says of this repository, held against it: which tests stand for which known failure, names, links, and what
//! crates need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a folder that have this extension, but those that are made or fetched.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<String> {
    files(&root().join("crates"), "rs").iter().map(|path| read(path)).collect()
}

/// What stands between backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// A letter and a number, as entries of `known-failures.md` are called, at the start of a text.
fn entry(text: &str) -> Option<(char, u32)> {
    let letter = text.chars().next().filter(char::is_ascii_uppercase)?;
    let digits = text[1..].split(|c: char| !c.is_ascii_digit()).next()?;
    Some((letter, digits.parse().ok()?))
}

/// The entries that a comment names: `known-failures.md` and a list.
fn named(comment: &str) -> Vec<(char, u32)> {
    let mut entries = Vec::new();
    for list in comment.split("`known-failures.md` ").skip(1) {
        for item in list.split(", ") {
            let Some((letter, number)) = entry(item) else { break };
            entries.push((letter, number));
            if item != format!("{letter}{number}") {
                break;
            }
        }
    }
    entries
}

type Tests = BTreeMap<(char, u32), BTreeSet<String>>;

/// By entry, the tests whose comment names it.
fn tests_that_name_an_entry() -> Tests {
    let mut tests = Tests::new();
    for source in sources() {
        let (mut comment, mut is_test) = (String::new(), false);
        for line in source.lines().map(str::trim) {
            if let Some(text) = line.strip_prefix("///") {
                comment.push_str(text);
            } else if line.starts_with("#[") {
                is_test |= line.contains("test");
            } else {
                let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                if let Some((name, _)) = name.and_then(|line| line.split_once('(')).filter(|_| is_test) {
                    for entry in named(&comment) {
                        tests.entry(entry).or_default().insert(name.to_owned());
                    }
                }
                (comment, is_test) = (String::new(), false);
            }
        }
    }
    tests
}

/// The table of docs/testing.md names every test that stands for an entry, and no other; and every entry has one.
#[test]
fn every_known_failure_has_tests_that_name_it() {
    let testing = read(&root().join("docs/testing.md"));
    let (_, section) = testing.split_once("## Known failures of the original\n").unwrap();
    let mut table = Tests::new();
    for row in section.lines().take_while(|line| !line.starts_with("## ")).filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let Some(entry) = entry(cells[0]) else { continue };
        let tests = spans(cells[2]).filter(|span| !span.contains(['.', ' ', '/'])).map(str::to_owned).collect();
        assert!(table.insert(entry, tests).is_none(), "{entry:?} has two rows");
    }
    for letter in 'A'..='E' {
        let numbers: Vec<u32> = table.keys().filter(|entry| entry.0 == letter).map(|entry| entry.1).collect();
        assert!(!numbers.is_empty() && numbers.iter().copied().eq(1..=numbers.len() as u32), "{letter}: {numbers:?}");
    }
    let named = tests_that_name_an_entry();
    for (entry, tests) in &table {
        assert!(!tests.is_empty(), "{entry:?} has no test");
        assert_eq!(Some(tests), named.get(entry), "{entry:?}: the table on the left, comments of tests on the right");
    }
    assert!(named.keys().eq(table.keys()), "{named:?}");
}

/// Whether the sources define this: `Owner::name`, or `name` in a module.
fn is_defined(sources: &[String], owner: &str, name: &str) -> bool {
    let has = |source: &String, kinds: &[&str], name: &str| {
        let is_end = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        kinds.iter().any(|kind| {
            source.match_indices(&format!("{kind}{name}")).any(|(at, found)| is_end(&source[at + found.len()..]))
        })
    };
    if !owner.starts_with(|c: char| c.is_ascii_uppercase()) {
        let kinds = ["struct ", "enum ", "trait ", "fn ", "const ", "type ", "mod "];
        return sources.iter().any(|source| has(source, &kinds, name));
    }
    sources.iter().any(|source| has(source, &["struct ", "enum ", "trait "], owner))
        // A method, or a variant at the beginning of its line.
        && sources.iter().any(|source| has(source, &["enum ", "trait ", "impl ", "> "], owner) && has(source, &["fn ", "\n    "], name))
}

/// `known-failures.md` E3: the README of the original documents classes and signatures that do not exist. Examples of ours are
/// compiled as well, and run.
#[test]
fn the_documentation_names_what_exists() {
    let root = root();
    let mut links = 0;
    for path in files(&root, "md") {
        let text = read(&path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(path.parent().unwrap().join(file).exists(), "{} links to {target}", path.display());
            links += 1;
        }
    }
    assert!(links > 50, "{links} links");

    let (sources, seed) = (sources(), read(&root.join("docs/seed.md")));
    let mut names = 0;
    for row in seed.lines().filter(|line| line.starts_with("| ")) {
        let ours = row.replace("\\|", "").split(" | ").nth(1).unwrap_or_default().to_owned();
        for word in spans(&ours).flat_map(|span| span.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')) {
            let path: Vec<&str> = word.split("::").filter(|part| !part.is_empty()).collect();
            let [.., owner, name] = path.as_slice() else { continue };
            assert!(is_defined(&sources, owner, name), "docs/seed.md names {word}: {row}");
            names += 1;
        }
    }
    assert!(names > 50, "{names} names");
    assert!(!is_defined(&sources, "Peer", "get_config") && !is_defined(&sources, "http", "TransportNostr"));
}

/// `known-failures.md` D11: the original writes out cursors for a log that nobody reads. Macros of `tracing` evaluate what they are given
/// only where somebody does; here even then no line grows with the number of sites.
#[test]
fn no_log_line_has_a_cursor() {
    let mut lines = 0;
    for source in sources() {
        for level in ["error!(", "warn!(", "info!(", "debug!(", "trace!("] {
            for (at, _) in source.match_indices(level) {
                let line = source[at..].split(";\n").next().unwrap_or_default();
                assert!(!line.to_lowercase().contains("cursor"), "{line}");
                lines += 1;
            }
        }
    }
    assert!(lines > 50, "{lines} lines");
}

/// What a section of a manifest says of each dependency.
fn dependencies(manifest: &str, section: &str) -> BTreeMap<String, String> {
    let lines = manifest.lines().skip_while(|line| *line != section).skip(1).take_while(|line| !line.starts_with('['));
    let dependency = |line: &str| {
        let (name, what) = line.split_once('=')?;
        Some((name.trim().trim_end_matches(".workspace").to_owned(), what.trim().to_owned()))
    };
    lines.filter(|line| !line.starts_with('#')).filter_map(dependency).collect()
}

/// `known-failures.md` E6: the original needs packages that are in no registry, and the migrations of one application.
#[test]
fn published_crates_need_nothing_that_is_not_published() {
    let root = root();
    let workspace = dependencies(&read(&root.join("Cargo.toml")), "[workspace.dependencies]");
    let manifests: Vec<String> = files(&root.join("crates"), "toml").iter().map(|path| read(path)).collect();
    let name = |manifest: &str| dependencies(manifest, "[package]")["name"].trim_matches('"').to_owned();
    let published: Vec<&String> = manifests.iter().filter(|manifest| !manifest.contains("publish = false")).collect();
    let names: BTreeSet<String> = published.iter().map(|manifest| name(manifest)).collect();
    let expected = ["litemesh", "litemesh-cli", "litemesh-engine", "litemesh-http", "litemesh-nostr", "litemesh-proto"];
    assert!(names.iter().eq(expected), "{names:?}");
    for manifest in published {
        let needed = dependencies(manifest, "[dependencies]");
        assert!(!needed.is_empty());
        for (dependency, what) in needed {
            let what =
                if what == "true" || what.contains("workspace = true") { &workspace[&dependency] } else { &what };
            let has_version = what.starts_with('"') || what.contains("version = ");
            assert!(has_version && !what.contains("git = "), "{} needs {dependency} = {what}", name(manifest));
            let is_ours = what.contains("path = ");
            assert!(!is_ours || names.contains(&dependency), "{} needs {dependency}", name(manifest));
        }
    }
}
