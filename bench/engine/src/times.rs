//! Wall and CPU time as ratios to plain SQLite.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::Error;
use crate::subject::Subject;
use crate::work::{Keys, Shape, Task, Work, name};

/// One measurement of one subject.
#[derive(Clone, Copy)]
struct Sample {
    wall: f64,
    cpu: f64,
    bytes: u64,
}

pub fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn measure(task: Task, subject: &Subject) -> Result<Sample, Error> {
    let folder = tempfile::tempdir()?;
    let mut prepared = task.prepare(subject, folder.path())?;
    let (wall, before) = (Instant::now(), cpu());
    prepared.run()?;
    let sample = Sample {
        wall: wall.elapsed().as_secs_f64(),
        cpu: (cpu() - before).as_secs_f64(),
        bytes: prepared.file_bytes()?,
    };
    prepared.close()?;
    Ok(sample)
}

pub fn run(
    rows: usize,
    runs: usize,
    extension: Option<PathBuf>,
    only: Option<Work>,
    columns: Option<usize>,
    only_keys: Option<Keys>,
) -> Result<(), Error> {
    let shapes = [
        (4, Keys::Ascending),
        (4, Keys::Random),
        (10, Keys::Integer),
        (3, Keys::Ascending),
        (3, Keys::Integer),
        (4, Keys::Integer),
        (10, Keys::Ascending),
    ];
    for (shape_columns, keys) in shapes {
        if columns.is_some_and(|only| only != shape_columns) {
            continue;
        }
        if only_keys.is_some_and(|only| only != keys) {
            continue;
        }
        let shape = Shape { columns: shape_columns, keys };
        for work in Work::value_variants() {
            // What the database has no part in has no ratio to plain SQLite.
            if only.is_some_and(|only| only != *work) || !work.is_of_database() {
                continue;
            }
            let by_row = matches!(work, Work::Insert | Work::Update | Work::Delete);
            let batches: &[usize] = if by_row { &[0, 100, 1] } else { &[0] };
            for batch in batches {
                for memory_temp_store in [false, true] {
                    // Transactions of one row wait for the disk: fewer of them say as much.
                    let rows = if *batch == 1 { rows / 10 } else { rows };
                    let batch = if *batch == 0 { rows } else { *batch };
                    let task = Task { work: *work, shape, rows, batch, memory_temp_store };
                    println!("{}", compare(task, runs, extension.as_ref())?);
                }
            }
        }
    }
    Ok(())
}

fn compare(task: Task, runs: usize, extension: Option<&PathBuf>) -> Result<serde_json::Value, Error> {
    let mut subjects = vec![Subject::Plain, Subject::Litemesh];
    subjects.extend(extension.cloned().map(Subject::Extension));
    let mut samples = vec![Vec::new(); subjects.len()];
    for _ in 0..runs {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(measure(task, subject)?);
        }
    }
    let mut line = json!({
        "work": name(&task.work), "columns": task.shape.columns, "keys": name(&task.shape.keys), "rows": task.rows,
        "rows_per_transaction": task.batch, "temp_store": if task.memory_temp_store { "memory" } else { "default" },
        "plain_us_per_row": round(median(samples[0].iter().map(|s| s.wall)) * 1e6 / task.rows as f64),
    });
    for (subject, measured) in subjects.iter().zip(&samples).skip(1) {
        let ratio = |of: fn(&Sample) -> f64| {
            round(median(measured.iter().zip(&samples[0]).map(|(sample, plain)| of(sample) / of(plain))))
        };
        line[subject.name()] = json!({
            "wall": ratio(|s| s.wall), "cpu": ratio(|s| s.cpu), "file": ratio(|s| s.bytes as f64),
        });
    }
    Ok(line)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
