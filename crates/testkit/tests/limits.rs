//! docs/security.md names every limit with its figure: the same as in the code, with a reason there, and with tests that exist.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Whose limits there are: what reads bytes of remotes. The engine has those of `proto`.
const CRATES: [&str; 4] = ["proto", "litemesh", "http", "nostr"];

/// Of a name that ends like that the reader expects a limit.
const ENDINGS: [&str; 3] = ["_MAX", "_MAX_V1", "TIMEOUT"];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One constant of the sources.
#[derive(Debug)]
struct Constant {
    /// `http/server/accept.rs`
    file: String,
    name: String,
    expression: String,
    comment: String,
}

/// The constants of all files, those of tests left out.
fn constants() -> Vec<Constant> {
    let mut found = Vec::new();
    for name in CRATES {
        let source = crates().join(name).join("src");
        for path in files(&source) {
            let inside = path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
            if inside.contains("tests") || inside.ends_with("hostile.rs") || inside == "simulation.rs" {
                continue;
            }
            let text = read(&path);
            let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
            find_constants(&format!("{name}/{inside}"), text, &mut found);
        }
    }
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let inside = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    paths.into_iter().flat_map(inside).filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

fn find_constants(file: &str, text: &str, found: &mut Vec<Constant>) {
    let mut comment = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(more) = line.strip_prefix("///") {
            comment = format!("{comment}{more} ");
            continue;
        }
        let comment = std::mem::take(&mut comment);
        let visible = ["pub const ", "pub(crate) const ", "pub(super) const ", "const "];
        let Some(rest) = visible.iter().find_map(|start| line.strip_prefix(start)) else { continue };
        let Some((name, rest)) = rest.split_once(':') else { continue };
        let Some((_, expression)) = rest.split_once(" = ") else { continue };
        let mut expression = expression.to_owned();
        while !expression.ends_with(';') {
            let Some(more) = lines.next() else { break };
            expression += more.trim();
        }
        let expression = expression.trim_end_matches(';').to_owned();
        found.push(Constant { file: file.to_owned(), name: name.to_owned(), expression, comment });
    }
}

/// What an expression comes to: a number, or microseconds. `None` where it is not one of those that limits are made of.
fn value(all: &[Constant], of: &Constant) -> Option<f64> {
    let mut parser = Parser { all, file: &of.file, rest: of.expression.trim() };
    let value = parser.sum()?;
    parser.rest.is_empty().then_some(value)
}

struct Parser<'a> {
    all: &'a [Constant],
    file: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    fn takes(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.trim_start().strip_prefix(token) else { return false };
        self.rest = rest.trim_start();
        true
    }

    /// `a << b` binds least, but for sums in brackets.
    fn sum(&mut self) -> Option<f64> {
        let mut value = self.terms()?;
        while self.takes("<<") {
            value *= self.terms()?.exp2();
        }
        Some(value)
    }

    fn terms(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        loop {
            if self.takes("+") {
                value += self.product()?;
            } else if self.takes("-") {
                value -= self.product()?;
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.factor()?;
        loop {
            if self.takes("*") {
                value *= self.factor()?;
            } else if self.takes("/") {
                value = (value / self.factor()?).floor();
            } else if self.takes(".saturating_mul(") {
                value *= self.sum()?;
                self.takes(")").then_some(())?;
            } else {
                return Some(value);
            }
        }
    }

    fn factor(&mut self) -> Option<f64> {
        for (start, micros) in [("from_secs(", 1e6), ("from_millis(", 1e3), ("from_micros(", 1.0)] {
            if self.takes(&format!("Duration::{start}")) {
                let value = self.sum()? * micros;
                return self.takes(")").then_some(value);
            }
        }
        if self.takes("(") {
            let value = self.sum()?;
            return self.takes(")").then_some(value);
        }
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || "_:.".contains(c))).unwrap_or(self.rest.len());
        let is_number = self.rest.starts_with(|c: char| c.is_ascii_digit());
        let end = if is_number { end } else { self.rest[..end].find('.').unwrap_or(end) };
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        if is_number {
            return word.replace('_', "").parse().ok();
        }
        let name = word.rsplit("::").next()?;
        let mut named: Vec<_> = self.all.iter().filter(|constant| constant.name == name).collect();
        for narrower in [
            |this: &Self, file: &str| file == this.file,
            |this: &Self, file: &str| file.split('/').next() == this.file.split('/').next(),
        ] {
            if named.iter().any(|constant| narrower(self, &constant.file)) {
                named.retain(|constant| narrower(self, &constant.file));
            }
        }
        // A name that is imported from a neighbour: in the same file, the same crate, or any.
        let values: Vec<f64> = named.iter().filter_map(|constant| value(self.all, constant)).collect();
        values.first().copied()
    }
}

/// A figure of the table: `30 s`, `64 KiB`, `2^53 - 1`, `1,000,000`; what follows it is not looked at.
fn figure(text: &str) -> Option<f64> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_digit() || ",.^".contains(c))).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.trim_end_matches([',', '.']).replace(',', "");
    let number = match number.split_once('^') {
        Some((base, power)) => base.parse::<f64>().ok()?.powf(power.parse().ok()?),
        None => number.parse().ok()?,
    };
    if let Some(less) = unit.strip_prefix(" - ") {
        return Some(number - figure(less)?);
    }
    let units = [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6)];
    let unit = unit.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    Some(number * units.iter().find(|(name, _)| *name == unit).map_or(1.0, |(_, factor)| *factor))
}

/// The cells of the rows of the tables in a section.
fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let section = document.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands between back quotes, and what follows it.
fn quoted(cell: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = cell.split('`').collect();
    parts.chunks(2).zip(parts.chunks(2).skip(1)).map(|(this, next)| (this[1], next[0])).collect()
}

fn is_constant(name: &str) -> bool {
    name.contains('_') && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

fn security() -> String {
    read(&crates().join("../docs/security.md"))
}

#[test]
fn the_table_of_attempts_has_the_figures_of_the_code() {
    let all = constants();
    let limits = read(&crates().join("proto/src/limits.rs"));
    let defaults = limits.split("impl Default for Limits").nth(1).unwrap();
    let mut compared = 0;
    for row in rows(&security(), "What nobody can do") {
        let mut names = 0;
        for (name, after) in quoted(&row[1]) {
            names += usize::from(!name.starts_with("--"));
            if let Some(field) = name.strip_prefix("Limits::") {
                let (_, rest) = defaults.split_once(&format!("{field}: ")).unwrap_or_else(|| panic!("no {field}"));
                let expression = rest.split_once(',').unwrap().0.to_owned();
                let file = "proto/limits.rs".to_owned();
                let default = Constant { file, name: field.to_owned(), expression, comment: String::new() };
                assert_eq!(figure(after), value(&all, &default), "{name} in {row:?}");
            } else if is_constant(name) {
                let values: Vec<_> =
                    all.iter().filter(|constant| constant.name == name).map(|constant| value(&all, constant)).collect();
                let figure = figure(after);
                assert!(figure.is_some() && values.contains(&figure), "{name} is {values:?}, not {figure:?}: {row:?}");
            }
            compared += 1;
        }
        assert!(names > 0, "a limit has a name: {row:?}");
        assert!(!row[2].is_empty(), "an attempt has an answer: {row:?}");
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn the_tests_of_the_table_exist() {
    for row in rows(&security(), "What nobody can do") {
        let tests = quoted(&row[3]);
        assert!(!tests.is_empty(), "no test: {row:?}");
        for (path, after) in tests {
            let file = crates().join(path);
            assert!(file.exists(), "no {path}: {row:?}");
            let name = after.trim().trim_end_matches(',').trim();
            if !name.is_empty() {
                assert!(read(&file).contains(&format!("fn {name}")), "no test {name} in {path}");
            }
        }
    }
}

#[test]
fn every_limit_is_listed_with_its_figure_and_has_a_reason() {
    let all = constants();
    let security = security();
    let mut listed: BTreeMap<(String, String), String> = BTreeMap::new();
    for row in rows(&security, "Every limit") {
        let name = |cell: &str| cell.trim_matches('`').to_owned();
        assert!(listed.insert((name(&row[3]), name(&row[0])), row[1].clone()).is_none(), "twice: {row:?}");
    }
    let is_limit = |constant: &&Constant| ENDINGS.iter().any(|ending| constant.name.ends_with(ending));
    for constant in all.iter().filter(is_limit) {
        let Constant { file, name, comment, .. } = constant;
        // What it is, and why: two sentences, or one with a reason behind a colon or a semicolon.
        let parts = comment.matches([':', ';', '.']).count();
        assert!(parts >= 2, "{name} of {file} gives no reason: {comment}");
        // Made of others by a function.
        let Some(value) = value(&all, constant) else { continue };
        let text = listed.remove(&(file.clone(), name.clone()));
        let text = text.unwrap_or_else(|| panic!("{name} of {file} is not in docs/security.md"));
        assert_eq!(figure(&text), Some(value), "{name} of {file}: {text}");
    }
    assert!(listed.is_empty(), "listed, and not there: {listed:?}");
}
