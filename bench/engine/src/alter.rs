//! Schema changes of a large replicated table: milliseconds from begin to commit, beside plain SQLite's own ALTER TABLE.
//!
//! What is added reads no rows (ALT-6); what goes, or was written inside of the window, must.

use std::time::Instant;

use litemesh_engine::Engine;
use rusqlite::Connection;
use serde_json::json;

use crate::Error;

const CREATE: &str = "CREATE TABLE todo (id INTEGER PRIMARY KEY NOT NULL, title TEXT, done INTEGER, ts INTEGER)";

/// Name, whether the bar of 50 ms is for it, what is done.
const CHANGES: [(&str, bool, &str); 6] = [
    ("add a nullable column", true, "ALTER TABLE todo ADD COLUMN a"),
    ("add a column with a default", true, "ALTER TABLE todo ADD COLUMN b TEXT NOT NULL DEFAULT 'x'"),
    ("rename a column", false, "ALTER TABLE todo RENAME COLUMN a TO c"),
    ("drop a column", false, "ALTER TABLE todo DROP COLUMN b"),
    (
        "add a column and set it in a tenth of the rows",
        false,
        "ALTER TABLE todo ADD COLUMN d; UPDATE todo SET d = 1 WHERE id % 10 = 0",
    ),
    ("nothing: everything is checked", false, "SELECT 1"),
];

const BAR_MS: f64 = 50.0;

pub fn run(rows: usize) -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let plain = Connection::open(folder.path().join("plain.db"))?;
    plain.pragma_update(None, "journal_mode", "WAL")?;
    plain.pragma_update(None, "synchronous", "NORMAL")?;
    let mut engine = Engine::open(folder.path().join("replicated.db"))?;
    for connection in [&plain, engine.connection()] {
        connection.execute_batch(CREATE)?;
    }
    engine.replicate("todo")?;
    for connection in [&plain, engine.connection()] {
        connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO todo SELECT i, 'Write the report of week ' || i, i % 2, 1700000000 + i FROM n",
            [i64::try_from(rows)?],
        )?;
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    }
    let mut missed = Vec::new();
    for (name, is_barred, sql) in CHANGES {
        let started = Instant::now();
        plain.execute_batch(&format!("BEGIN IMMEDIATE; {sql}; COMMIT"))?;
        let plain_ms = milliseconds(started);
        let started = Instant::now();
        engine.alter("todo", |connection| connection.execute_batch(sql))?;
        let ms = milliseconds(started);
        if is_barred && ms > BAR_MS {
            missed.push(format!("{name}: {ms} ms, at most {BAR_MS}"));
        }
        println!("{}", json!({ "alter": name, "rows": rows, "plain_ms": plain_ms, "litemesh_ms": ms }));
    }
    if missed.is_empty() { Ok(()) } else { Err(missed.join("; ").into()) }
}

fn milliseconds(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1e5).round() / 100.0
}
