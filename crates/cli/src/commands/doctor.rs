//! `litemesh doctor`: what is wrong with a file, and what of that can be repaired.

use std::collections::BTreeMap;
use std::path::Path;

use litemesh::engine::{Engine, Finding, FindingKind, MergeError, Repair, Severity, StorageError};
use litemesh::proto::Value;
use litemesh::rusqlite::{self, Connection, OpenFlags};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::database_file;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{Output, counted, printable, thousands};

/// What the doctor says; printed with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    /// Nothing is left that is worse than a note.
    sound: bool,
    /// What `PRAGMA integrity_check` found; empty where it found nothing.
    integrity: Vec<String>,
    repaired: Vec<Repaired>,
    /// What is left, counted.
    groups: Vec<Group>,
}

/// Findings that a repair made go away.
#[derive(Debug, Serialize)]
struct Repaired {
    kind: &'static str,
    table: Option<String>,
    count: u64,
}

/// Findings of one kind in one table.
#[derive(Debug, Serialize)]
struct Group {
    severity: &'static str,
    kind: &'static str,
    rule: &'static str,
    table: Option<String>,
    count: u64,
    repair: String,
    /// As many as the limit allows.
    findings: Vec<FindingReport>,
    #[serde(skip)]
    is_automatic: bool,
}

#[derive(Debug, Serialize)]
struct FindingReport {
    /// The primary key, packed.
    pk: Option<String>,
    /// The same, for people.
    #[serde(skip)]
    key: Option<String>,
    name: Option<String>,
    detail: String,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let mut report = examine(&args.file, args.limit)?;
    // A damaged file is not written to: what is repaired could be in the damaged part.
    let is_repair = args.repair || args.merge_staged || args.forget_staged;
    if is_repair && report.integrity.is_empty() && !report.groups.is_empty() {
        repair(args)?;
        let left = examine(&args.file, args.limit)?;
        report = Report { repaired: difference(&report.groups, &left.groups), ..left };
    }
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        print(&report, args, &mut output)?;
    }
    Ok(if report.sound { ExitCode::Ok } else { ExitCode::Different })
}

/// Looks at the file without writing to it.
fn examine(file: &Path, limit: usize) -> Result<Report, Failure> {
    database_file::require(file)?;
    let sqlite = |error: rusqlite::Error| Failure::sqlite(file, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(sqlite)?;
    // Before the engine is loaded, which may fail on a damaged file.
    let integrity = integrity(&connection).map_err(sqlite)?;
    let engine = Engine::attach(connection).map_err(|error| Failure::open(file, &error))?;
    // One state of the database for all findings, whatever is written meanwhile.
    engine.connection().execute_batch("BEGIN").map_err(sqlite)?;
    let groups = check(&engine, limit).map_err(|StorageError(error)| sqlite(error))?;
    let is_sound = |group: &Group| group.severity == Severity::Info.as_str();
    let sound = integrity.is_empty() && groups.iter().all(is_sound);
    Ok(Report { file: file.display().to_string(), sound, integrity, repaired: Vec::new(), groups })
}

fn integrity(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(if lines == ["ok"] { Vec::new() } else { lines })
}

fn check(engine: &Engine, limit: usize) -> Result<Vec<Group>, StorageError> {
    let mut groups: BTreeMap<(std::cmp::Reverse<Severity>, Option<String>, FindingKind), Group> = BTreeMap::new();
    for finding in engine.check()? {
        let finding = finding?;
        let table = finding.table.as_deref().map(str::to_owned);
        let kind = finding.kind;
        let group = groups.entry((std::cmp::Reverse(kind.severity()), table.clone(), kind)).or_insert_with(|| Group {
            severity: kind.severity().as_str(),
            kind: kind.as_str(),
            rule: kind.rule(),
            table,
            count: 0,
            repair: kind.repair().text(),
            findings: Vec::new(),
            is_automatic: matches!(kind.repair(), Repair::Automatic(_)),
        });
        group.count += 1;
        if group.findings.len() < limit {
            group.findings.push(report(finding));
        }
    }
    Ok(groups.into_values().collect())
}

fn report(finding: Finding) -> FindingReport {
    let values = finding.key.as_ref().and_then(|key| key.unpack().ok());
    FindingReport {
        pk: finding.key.map(|key| const_hex::encode(key.as_bytes())),
        key: values.map(|values| values.iter().map(text).collect::<Vec<_>>().join(", ")),
        name: finding.name.as_deref().map(str::to_owned),
        detail: finding.detail,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => format!("{real:?}"),
        Value::Text(text) => format!("'{}'", String::from_utf8_lossy(text)),
        Value::Blob(blob) => format!("x'{}'", const_hex::encode(blob)),
    }
}

fn repair(args: &DoctorArgs) -> Result<(), Failure> {
    let database = database_file::open(&args.file)?;
    let mut engine = database.lock();
    let storage = |StorageError(error): StorageError| Failure::sqlite(&args.file, &error);
    if args.repair {
        engine.repair().map_err(storage)?;
    }
    if args.bury {
        engine.bury_missing_rows().map_err(storage)?;
    }
    for sender in engine.staged_senders().map_err(storage)? {
        if args.merge_staged {
            engine.merge_staged(sender).map_err(|error| match error {
                MergeError::Storage(error) => storage(error),
                error => Failure::database(format!("{}: {error}", args.file.display()), ""),
            })?;
        }
        if args.forget_staged {
            engine.forget_staged(sender).map_err(storage)?;
        }
    }
    Ok(())
}

/// What was found before and is not any more. Opening the file for writing repairs a part by itself.
fn difference(before: &[Group], after: &[Group]) -> Vec<Repaired> {
    let left = |group: &Group| {
        let same = after.iter().find(|other| (other.kind, &other.table) == (group.kind, &group.table));
        same.map_or(0, |group| group.count)
    };
    let repaired = |group: &Group| Repaired {
        kind: group.kind,
        table: group.table.clone(),
        count: group.count.saturating_sub(left(group)),
    };
    before.iter().map(repaired).filter(|repaired| repaired.count > 0).collect()
}

fn print(report: &Report, args: &DoctorArgs, output: &mut Output) -> Result<(), Failure> {
    for line in &report.integrity {
        output.line(format_args!("error    the file is damaged: {}", printable(line)))?;
    }
    for done in &report.repaired {
        let place = done.table.as_ref().map(|table| format!(" in table {}", printable(table))).unwrap_or_default();
        output.line(format_args!("repaired {}{place}: {}", done.kind, thousands(done.count)))?;
    }
    for group in &report.groups {
        let place = group.table.as_ref().map(|table| format!(" in table {}", printable(table))).unwrap_or_default();
        let count = counted(group.count, "finding");
        output.line(format_args!("{:<8} {}{place}: {count} ({})", group.severity, group.kind, group.rule))?;
        for finding in &group.findings {
            let parts = [finding.key.as_deref(), finding.name.as_deref()];
            let what = parts.into_iter().flatten().map(printable).collect::<Vec<_>>().join(" ");
            let what = if what.is_empty() { what } else { format!("{what}: ") };
            output.line(format_args!("           {what}{}", printable(&finding.detail)))?;
        }
        let more = group.count - group.findings.len() as u64;
        if more > 0 && !group.findings.is_empty() {
            output.line(format_args!("           and {} more", thousands(more)))?;
        }
        output.line(format_args!("           {}", group.repair))?;
    }
    let file = printable(&report.file);
    if report.sound {
        return output.line(format_args!("{file} is sound"));
    }
    if !report.integrity.is_empty() {
        return output.line(format_args!("{file} is damaged: restore a backup, or recover what can be read of it"));
    }
    let is_automatic = |group: &Group| group.is_automatic && group.severity != Severity::Info.as_str();
    if !args.repair && report.groups.iter().any(is_automatic) {
        return output.line(format_args!("{file} is not sound: `litemesh doctor {file} --repair` mends what it can"));
    }
    output.line(format_args!("{file} is not sound: what is left takes a decision, as said above"))
}
