//! The engine beside plain SQLite, and beside any other engine that is given as an extension.
//!
//!     cargo run --release -p engine-bench -- times
//!     cargo run --release -p engine-bench -- instructions
//!     cargo run --release -p engine-bench -- incremental
//!     cargo run --release -p engine-bench -- alter
//!
//! Every line printed is a JSON object. `times` gives ratios to plain SQLite doing the same rows in the same run, medians of
//! interleaved runs; `instructions` counts with callgrind.

mod alter;
mod bulk_floor;
mod floor;
mod incremental;
mod instructions;
mod layouts;
#[cfg(feature = "preupdate-hook")]
mod preupdate;
mod subject;
mod times;
mod work;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde_json::json;

use crate::instructions::Bar;
use crate::subject::{Notices, Subject};
use crate::work::{Keys, Shape, Task, Work};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ratios of wall time and CPU time to plain SQLite.
    Times {
        #[arg(long, default_value_t = 100_000)]
        rows: usize,
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Another engine, measured in the same run.
        #[arg(long)]
        extension: Option<PathBuf>,
        /// Only this work.
        #[arg(long)]
        work: Option<Work>,
        /// Only this shape: 3, 4 or 10 columns.
        #[arg(long)]
        columns: Option<usize>,
        /// Only these keys.
        #[arg(long)]
        keys: Option<Keys>,
    },
    /// Instructions an operation, by callgrind.
    Instructions {
        #[arg(long, default_value_t = 2_000)]
        rows: usize,
        #[arg(long)]
        extension: Option<PathBuf>,
        #[arg(long)]
        work: Option<Work>,
        /// Columns of the table, with its key.
        #[arg(long, default_value_t = 4)]
        columns: usize,
        #[arg(long, default_value = "ascending")]
        keys: Keys,
        /// Beside the floors: bare SQL on the same layout, without an engine, row by row and all at once.
        #[arg(long)]
        floor: bool,
        /// Fail where a ceiling is passed: something became slower. Ceilings are for the table of four columns.
        #[arg(long)]
        gate: bool,
    },
    /// Reading the last changes among many, and finding nothing new in many tables.
    Incremental {
        #[arg(long, default_value_t = 1_000_000)]
        changes: usize,
        #[arg(long, default_value_t = 200)]
        tables: usize,
    },
    /// What other layouts on disk could give, by bare SQL.
    Layouts {
        #[arg(long, default_value_t = 100_000)]
        rows: usize,
    },
    /// Schema changes of a large table: milliseconds. Fails where adding a column takes more than 50.
    Alter {
        #[arg(long, default_value_t = 1_000_000)]
        rows: usize,
    },
    #[command(hide = true)]
    Probe {
        #[arg(long)]
        subject: String,
        #[arg(long)]
        work: Work,
        #[arg(long)]
        rows: usize,
        #[arg(long)]
        batch: usize,
        #[arg(long)]
        columns: usize,
        #[arg(long, default_value = "ascending")]
        keys: Keys,
        #[arg(long)]
        only_prepare: bool,
    },
}

fn main() -> Result<(), Error> {
    match Arguments::parse().command {
        Command::Times { rows, runs, extension, work, columns, keys } => {
            times::run(rows, runs, extension, work, columns, keys)
        }
        Command::Instructions { rows, extension, work, columns, keys, floor, gate } => {
            let shape = Shape { columns, keys };
            let mut subjects = vec![Subject::Plain];
            if floor {
                subjects.push(Subject::Floor);
                subjects.extend([Notices::Nothing, Notices::ByTriggers].map(Subject::BulkFloor));
                if cfg!(feature = "preupdate-hook") {
                    subjects.extend([Notices::ByHook, Notices::ByIdleHook].map(Subject::BulkFloor));
                }
            }
            subjects.push(Subject::Litemesh);
            subjects.extend(extension.map(Subject::Extension));
            count_instructions(rows, shape, &subjects, work, gate)
        }
        Command::Incremental { changes, tables } => incremental::run(changes, tables),
        Command::Layouts { rows } => layouts::run(rows),
        Command::Alter { rows } => alter::run(rows),
        Command::Probe { subject, work, rows, batch, columns, keys, only_prepare } => {
            let shape = Shape { columns, keys };
            let task = Task { work, shape, rows, batch, memory_temp_store: false };
            let folder = tempfile::tempdir()?;
            let mut prepared = task.prepare(&Subject::parse(&subject), folder.path())?;
            if !only_prepare {
                prepared.run()?;
            }
            prepared.close()
        }
    }
}

fn count_instructions(
    rows: usize,
    shape: Shape,
    subjects: &[Subject],
    only: Option<Work>,
    gate: bool,
) -> Result<(), Error> {
    let mut slower = Vec::new();
    let mut counted = Vec::new();
    for Bar { name, work, wanted, ceiling } in instructions::BARS {
        if only.is_some_and(|only| only != work) {
            continue;
        }
        let task = Task { work, shape, rows, batch: rows, memory_temp_store: false };
        let mut line = json!({ "work": name, "columns": shape.columns, "keys": work::name(&shape.keys) });
        for subject in subjects {
            let is_known = match subject {
                Subject::Floor => floor::is_known(work),
                Subject::BulkFloor(notices) => bulk_floor::is_known(work, *notices),
                Subject::Litemesh => true,
                _ => work.is_of_database(),
            };
            if !is_known {
                continue;
            }
            let folder = tempfile::tempdir()?;
            let mut prepared = task.prepare(subject, folder.path())?;
            let operations = prepared.operations();
            if !work.is_of_database() {
                prepared.run()?;
                line["bytes_a_change"] = json!((prepared.bytes_a_change() * 100.0).round() / 100.0);
            }
            let instructions = instructions::count(subject, &task, operations)?.round();
            line[subject.name()] = json!(instructions);
            if matches!(subject, Subject::Litemesh) {
                counted.push((work, instructions));
                line["bar"] = json!(wanted);
                if instructions > ceiling {
                    slower.push(format!("{name}: {instructions} instructions, at most {ceiling} so far"));
                }
            }
        }
        println!("{line}");
    }
    let of = |work| counted.iter().find(|(counted, _)| *counted == work).map(|(_, instructions)| *instructions);
    for (work, other) in instructions::NO_SLOWER {
        if let (Some(ours), Some(most)) = (of(work), of(other))
            && ours > most
        {
            slower.push(format!("{}: {ours} instructions, {}: {most}", work::name(&work), work::name(&other)));
        }
    }
    if gate && !slower.is_empty() {
        return Err(slower.join("; ").into());
    }
    Ok(())
}
