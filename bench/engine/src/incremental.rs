//! What a peer that is nearly up to date costs: the last changes among many, and nothing new among many tables.

use std::time::Instant;

use litemesh_engine::proto::DbVersion;
use litemesh_engine::{Engine, LocalFilter, LocalPlace, PageLimits};
use rusqlite::Connection;
use serde_json::json;

use crate::Error;

const RUNS: usize = 51;
const LIMITS: PageLimits = PageLimits { changes_max: 4096, bytes_max: 1 << 20, stretch: 1 };

pub fn run(changes: usize, tables: usize) -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let engine = Engine::open(folder.path().join("many.db"))?;
    let db = engine.connection();
    db.execute_batch("CREATE TABLE todo (id INTEGER PRIMARY KEY NOT NULL, title TEXT, done INT, ts INT)")?;
    engine.replicate("todo")?;
    db.execute(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         INSERT INTO todo SELECT i, 'title ' || i, 0, i FROM n",
        [i64::try_from(changes / 3)?],
    )?;
    let since = engine.db_version()?;
    for row in 1..=100 {
        db.execute("UPDATE todo SET done = 1 WHERE id = ?1", [row * 7])?;
    }
    let sql = "SELECT * FROM crsql_changes WHERE db_version > ?1";
    let by_sql = median(|| {
        let rows = count(db, sql, since)?;
        if rows == 100 { Ok(()) } else { Err(format!("{rows} changes instead of 100").into()) }
    })?;
    let native = median(|| {
        let page = engine.read_local(&LocalPlace::after(since), &LocalFilter::default(), LIMITS)?;
        if page.changes.len() == 100 { Ok(()) } else { Err("not the last 100 changes".into()) }
    })?;
    println!(
        "{}",
        json!({
            "work": "last 100 changes", "among": changes, "crsql_changes_ms": by_sql, "native_ms": native, "bar_ms": 0.5,
        })
    );

    let engine = Engine::open(folder.path().join("tables.db"))?;
    let db = engine.connection();
    for table in 0..tables {
        db.execute_batch(&format!("CREATE TABLE t{table} (id INTEGER PRIMARY KEY NOT NULL, a TEXT)"))?;
        engine.replicate(&format!("t{table}"))?;
        db.execute_batch(&format!("INSERT INTO t{table} VALUES (1, 'x')"))?;
    }
    let since = engine.db_version()?;
    let by_sql = median(|| if count(db, sql, since)? == 0 { Ok(()) } else { Err("changes out of nothing".into()) })?;
    let native = median(|| {
        let page = engine.read_local(&LocalPlace::after(since), &LocalFilter::default(), LIMITS)?;
        if page.changes.is_empty() { Ok(()) } else { Err("changes out of nothing".into()) }
    })?;
    println!(
        "{}",
        json!({
            "work": "nothing new", "tables": tables, "crsql_changes_ms": by_sql, "native_ms": native, "bar_ms": 0.5,
        })
    );
    Ok(())
}

/// As a program does that prepares its query each time.
fn count(db: &Connection, sql: &str, since: DbVersion) -> Result<usize, Error> {
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query([since.get()])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        for column in 0..9 {
            std::hint::black_box(row.get_ref(column)?);
        }
        count += 1;
    }
    Ok(count)
}

fn median(mut work: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[RUNS / 2] * 1000.0).round() / 1000.0)
}
