//! The engine alone: local writes as ratios to plain SQLite doing the same rows in the same run, merge and read in cells/s.
//!
//! Interleaved runs, medians: the machines are shared, and only ratios within one run mean anything.

use std::time::Instant;

use litemesh::engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits};
use litemesh::rusqlite::Connection;
use serde_json::{Value, json};

use crate::{Error, workload};

const RUNS: usize = 5;

pub fn run(rows: usize) -> Result<Value, Error> {
    let mut samples: Vec<[f64; 6]> = Vec::new();
    let (mut merge, mut read) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let folder = tempfile::tempdir()?;
        let plain = Connection::open(folder.path().join("plain.db"))?;
        plain.pragma_update(None, "journal_mode", "WAL")?;
        plain.pragma_update(None, "synchronous", "NORMAL")?;
        plain.execute_batch(workload::SCHEMA)?;
        let engine = Engine::open(folder.path().join("replicated.db"))?;
        engine.connection().execute_batch(workload::SCHEMA)?;
        engine.replicate("todo")?;
        let mut sample = [0.0; 6];
        for (n, connection) in [&plain, engine.connection()].into_iter().enumerate() {
            sample[n] = timed(|| workload::fill(connection, rows, rows))?;
            sample[2 + n] = timed(|| Ok(connection.execute_batch("UPDATE todo SET ts = ts + 1")?))?;
        }
        let mut place = LocalPlace::default();
        let mut pages = Vec::new();
        let limits = PageLimits { changes_max: 10_000, bytes_max: 1 << 20, stretch: 1 };
        read.push(timed(|| {
            loop {
                let page = engine.read_local(&place, &LocalFilter::default(), limits)?;
                place = page.place;
                pages.push(page.changes);
                if page.complete.is_some() {
                    return Ok(());
                }
            }
        })?);
        let mut target = Engine::open(folder.path().join("target.db"))?;
        target.connection().execute_batch(workload::SCHEMA)?;
        target.replicate("todo")?;
        merge.push(timed(|| {
            for page in &pages {
                target.merge(page, &MergeProgress::default())?;
            }
            Ok(())
        })?);
        if workload::count(target.connection())? != rows {
            return Err("the merged copy differs".into());
        }
        for (n, connection) in [&plain, engine.connection()].into_iter().enumerate() {
            sample[4 + n] = timed(|| Ok(connection.execute_batch("DELETE FROM todo WHERE ts >= 0")?))?;
        }
        samples.push(sample);
    }
    let median = |of: fn(&[f64; 6]) -> f64| median(samples.iter().map(of).collect());
    let cells = 3.0 * rows as f64;
    Ok(json!({
        "scenario": "local",
        "rows": rows,
        "insert_ratio": round(median(|s| s[1] / s[0])),
        "update_ratio": round(median(|s| s[3] / s[2])),
        "delete_ratio": round(median(|s| s[5] / s[4])),
        "inserts_per_second": (rows as f64 / median(|s| s[1])).round(),
        "merge_cells_per_second": (cells / self::median(merge)).round(),
        "read_cells_per_second": (cells / self::median(read)).round(),
    }))
}

fn timed(work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
