//! What another layout on disk could give, measured with bare SQL: no triggers, no engine, only the rows that each layout
//! stores beside a freshly inserted row of `todo(id, title, done, ts)`.

use rusqlite::{Connection, params};
use serde_json::json;

use crate::Error;
use crate::times::cpu;
use crate::work::{Keys, Shape};

const RUNS: usize = 5;

/// A layout: its tables, and the statements that store one new row (?1 is its number, ?2 its primary key).
struct Layout {
    name: &'static str,
    schema: &'static str,
    statements: &'static [&'static str],
}

const KEYS_AND_CLOCKS: &str = "CREATE TABLE pks (key INTEGER PRIMARY KEY, id);
     CREATE UNIQUE INDEX pks_id ON pks (id);
     CREATE TABLE clock (key INTEGER NOT NULL, col_name TEXT NOT NULL, col_version INTEGER NOT NULL,
     db_version INTEGER NOT NULL, site_id INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL,
     PRIMARY KEY (key, col_name)) WITHOUT ROWID, STRICT;
     CREATE INDEX clock_version ON clock (db_version)";

const LAYOUTS: [Layout; 4] = [
    Layout { name: "no clocks", schema: "", statements: &[] },
    Layout {
        name: "CRSqlite's: a key row, a clock for each column",
        schema: KEYS_AND_CLOCKS,
        statements: &[
            "INSERT INTO pks VALUES (?1, ?2)",
            "INSERT OR IGNORE INTO clock VALUES (?1, 'done', 1, 1, 0, ?1 * 3), (?1, 'title', 1, 1, 0, ?1 * 3 + 1),
             (?1, 'ts', 1, 1, 0, ?1 * 3 + 2)",
        ],
    },
    Layout {
        name: "a key row, one clock for a new row",
        schema: KEYS_AND_CLOCKS,
        statements: &[
            "INSERT INTO pks VALUES (?1, ?2)",
            "INSERT OR IGNORE INTO clock VALUES (?1, '*', 1, 1, 0, ?1 * 3)",
        ],
    },
    Layout {
        name: "one clock for a new row, beside the packed key",
        schema: "CREATE TABLE clock (pk BLOB NOT NULL PRIMARY KEY, cl INTEGER NOT NULL, db_version INTEGER NOT NULL,
             site_id INTEGER NOT NULL, seq INTEGER NOT NULL, cells BLOB) WITHOUT ROWID, STRICT;
             CREATE INDEX clock_version ON clock (db_version)",
        statements: &["INSERT OR IGNORE INTO clock VALUES (CAST(?2 AS BLOB), 1, 1, 0, ?1 * 3, NULL)"],
    },
];

/// In one transaction, and in transactions of a hundred rows.
pub fn run(rows: usize) -> Result<(), Error> {
    for batch in [rows, 100] {
        compare(rows, batch)?;
    }
    Ok(())
}

fn compare(rows: usize, batch: usize) -> Result<(), Error> {
    let mut samples = vec![Vec::new(); LAYOUTS.len()];
    for _ in 0..RUNS {
        for (layout, samples) in LAYOUTS.iter().zip(&mut samples) {
            samples.push(measure(layout, rows, batch)?);
        }
    }
    for (layout, measured) in LAYOUTS.iter().zip(&samples).skip(1) {
        let ratio = |of: fn(&(f64, f64)) -> f64| {
            let mut ratios: Vec<f64> = measured.iter().zip(&samples[0]).map(|(s, plain)| of(s) / of(plain)).collect();
            ratios.sort_by(f64::total_cmp);
            (ratios[RUNS / 2] * 100.0).round() / 100.0
        };
        println!(
            "{}",
            json!({
                "layout": layout.name, "rows": rows, "transactions_of": batch, "insert_cpu": ratio(|s| s.0), "file": ratio(|s| s.1),
            })
        );
    }
    Ok(())
}

/// CPU seconds of the inserts, and bytes of the file.
fn measure(layout: &Layout, rows: usize, batch: usize) -> Result<(f64, f64), Error> {
    let shape = Shape { columns: 4, keys: Keys::Ascending };
    let folder = tempfile::tempdir()?;
    let db = Connection::open(folder.path().join("layout.db"))?;
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")?;
    db.execute_batch(&shape.schema())?;
    db.execute_batch(layout.schema)?;
    let values: Vec<_> = (0..rows).map(|row| shape.row(row)).collect();
    let before = cpu();
    let mut insert = db.prepare(&shape.insert())?;
    let mut beside = layout.statements.iter().map(|sql| db.prepare(sql)).collect::<Result<Vec<_>, _>>()?;
    let mut row = 0_i64;
    for values in values.chunks(batch) {
        let transaction = db.unchecked_transaction()?;
        for values in values {
            row += 1;
            insert.execute(rusqlite::params_from_iter(values))?;
            for statement in &mut beside {
                match statement.parameter_count() {
                    1 => statement.execute([row])?,
                    _ => statement.execute(params![row, &values[0]])?,
                };
            }
        }
        transaction.commit()?;
    }
    let seconds = (cpu() - before).as_secs_f64();
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    Ok((seconds, (pragma("page_count")? * pragma("page_size")?) as f64))
}
