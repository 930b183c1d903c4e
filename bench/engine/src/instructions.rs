//! Instructions executed for one operation, counted by callgrind: they do not change with the load of the machine, so they
//! are what CI can gate on.

use std::path::Path;
use std::process::Command;

use crate::Error;
use crate::subject::Subject;
use crate::work::{Task, Work, name};

/// Instructions an operation: the whole task, less its preparation.
pub fn count(subject: &Subject, task: &Task, operations: usize) -> Result<f64, Error> {
    let whole = callgrind(subject, task, false)?;
    let preparation = callgrind(subject, task, true)?;
    Ok((whole as f64 - preparation as f64) / operations as f64)
}

fn callgrind(subject: &Subject, task: &Task, is_preparation: bool) -> Result<u64, Error> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--dump-instr=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(probe_arguments(subject, task, is_preparation));
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("valgrind failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    total(&out)
}

/// The arguments that make this program run a task once.
pub fn probe_arguments(subject: &Subject, task: &Task, is_preparation: bool) -> Vec<String> {
    let mut arguments = vec!["probe".to_owned(), "--subject".to_owned(), subject.name()];
    arguments.extend(["--work".to_owned(), name(&task.work)]);
    for (name, value) in [("--rows", task.rows), ("--batch", task.batch), ("--columns", task.shape.columns)] {
        arguments.extend([name.to_owned(), value.to_string()]);
    }
    arguments.extend(["--keys".to_owned(), name(&task.shape.keys)]);
    if is_preparation {
        arguments.push("--only-prepare".to_owned());
    }
    arguments
}

/// The sum of the events that callgrind writes at the end of its file.
fn total(out: &Path) -> Result<u64, Error> {
    let text = std::fs::read_to_string(out)?;
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")))
        .ok_or("callgrind wrote no totals")?;
    Ok(line.trim().parse()?)
}

/// What is counted, and by what it is judged.
pub struct Bar {
    pub name: &'static str,
    pub work: Work,
    /// What we want, if anything.
    pub wanted: Option<f64>,
    /// A tenth above what it took when this was written: above that, something became slower.
    pub ceiling: f64,
}

const fn bar(name: &'static str, work: Work, wanted: Option<f64>, ceiling: f64) -> Bar {
    Bar { name, work, wanted, ceiling }
}

/// What must take no longer than what: nothing that is packed waits for it.
pub const NO_SLOWER: [(Work, Work); 2] = [(Work::Pack, Work::Read), (Work::PackSmall, Work::ReadSmall)];

pub const BARS: [Bar; 17] = [
    bar("insert a row", Work::Insert, Some(28_000.0), 30_100.0),
    bar("update one column by key", Work::Update, Some(20_000.0), 27_100.0),
    bar("update one column by one statement", Work::UpdateBulk, None, 19_500.0),
    bar("delete a row by key", Work::Delete, Some(18_000.0), 18_900.0),
    bar("delete a row of half of them by key", Work::DeleteHalf, None, 35_000.0),
    bar("merge a change, empty database", Work::MergeNew, Some(8_000.0), 8_800.0),
    bar("merge a change already known", Work::MergeKnown, Some(3_500.0), 3_150.0),
    bar("merge a newer value", Work::MergeNewer, Some(20_000.0), 20_700.0),
    bar("merge a change through crsql_changes", Work::MergeSql, Some(25_000.0), 27_200.0),
    bar("read a change", Work::Read, Some(3_500.0), 3_660.0),
    bar("read a change of small transactions", Work::ReadSmall, None, 4_900.0),
    bar("read one cell of a row", Work::ReadCells, None, 10_700.0),
    bar("read one cell of a row through crsql_changes", Work::ReadCellsSql, None, 19_000.0),
    bar("read one column of all rows", Work::ReadColumn, None, 8_800.0),
    bar("read a change through crsql_changes", Work::ReadSql, None, 12_700.0),
    bar("pack a change into a frame", Work::Pack, None, 930.0),
    bar("pack a change of small transactions into a frame", Work::PackSmall, None, 900.0),
];
