//! What the layout of CRSqlite itself costs: the same work by the fewest plain statements that leave the shadow tables right.
//! No triggers, no functions, no transaction to follow, nothing that is checked. One row at a time, by prepared statements, which
//! is how local writes come.

use std::path::Path;

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params, params_from_iter};

use crate::Error;
use crate::subject::{Store, Subject};
use crate::work::{Shape, Task, Work};

/// Whether there is such a floor.
pub fn is_known(work: Work) -> bool {
    matches!(work, Work::Insert | Work::Update | Work::Delete | Work::MergeNew | Work::MergeKnown | Work::MergeNewer)
}

/// A file as the engine leaves it, of a program that is not the engine.
pub fn prepare(task: Task, folder: &Path) -> Result<Connection, Error> {
    Subject::Litemesh.open(&folder.join("measured.db"), task.memory_temp_store).and_then(|store| {
        store.connection().execute_batch(&task.shape.schema())?;
        store.replicate("todo")?;
        if !matches!(task.work, Work::Insert | Work::MergeNew) {
            let rows: Vec<_> = (0..task.rows).map(|row| task.shape.row(row)).collect();
            task.fill(store.connection(), &rows)?;
        }
        store.close()
    })?;
    let store = Subject::Plain.open(&folder.join("measured.db"), task.memory_temp_store)?;
    let Store::Sql(connection) = store else { return Err("plain SQLite is a connection".into()) };
    for kind in ["i", "u", "d"] {
        connection.execute_batch(&format!("DROP TRIGGER todo__crsql_{kind}trig"))?;
    }
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    Ok(connection)
}

/// `?1` is the version, `?2` the first seq, `?3` the key.
fn clocks_of_new_row(shape: Shape) -> String {
    let mut names = shape.cells().to_vec();
    names.sort_unstable();
    let clock = |(seq, name): (usize, &&str)| format!("(?3, '{name}', 1, ?1, 0, ?2 + {seq})");
    let clocks: Vec<_> = names.iter().enumerate().map(clock).collect();
    format!(
        "INSERT OR IGNORE INTO todo__crsql_clock (key, col_name, col_version, db_version, site_id, seq) VALUES {}",
        clocks.join(", ")
    )
}

const KEY_OF: &str = "(SELECT __crsql_key FROM todo__crsql_pks WHERE id = ?1)";

/// Does the work, all of it in one transaction.
pub fn run(task: Task, connection: &Connection, rows: &[Vec<SqlValue>]) -> Result<(), Error> {
    let transaction = connection.unchecked_transaction()?;
    let value = |row: usize| row as i64 % 2 + 5;
    match task.work {
        Work::Insert | Work::MergeNew => {
            let mut base = connection.prepare(&task.shape.insert())?;
            let mut key = connection.prepare("INSERT INTO todo__crsql_pks (id) VALUES (?1) ON CONFLICT DO NOTHING")?;
            let mut clocks = connection.prepare(&clocks_of_new_row(task.shape))?;
            for row in rows {
                base.execute(params_from_iter(row))?;
                key.execute([&row[0]])?;
                let seq = connection.last_insert_rowid() * 3;
                clocks.execute(params![1, seq, connection.last_insert_rowid()])?;
            }
        }
        Work::Update => {
            let mut base = connection.prepare("UPDATE todo SET done = ?2 WHERE id = ?1")?;
            let mut clock = connection.prepare(&format!(
                "UPDATE todo__crsql_clock SET col_version = col_version + 1, db_version = 2, site_id = 0, seq = ?2
                 WHERE key = {KEY_OF} AND col_name = 'done'"
            ))?;
            for (index, row) in rows.iter().enumerate() {
                base.execute(params![&row[0], value(index)])?;
                clock.execute(params![&row[0], index as i64])?;
            }
        }
        Work::Delete => {
            let mut base = connection.prepare("DELETE FROM todo WHERE id = ?1")?;
            let mut key = connection.prepare(&format!("SELECT {KEY_OF}"))?;
            let mut clocks = connection.prepare("DELETE FROM todo__crsql_clock WHERE key = ?1")?;
            let mut sentinel = connection.prepare("INSERT INTO todo__crsql_clock VALUES (?1, '-1', 2, 2, 0, ?2)")?;
            for (index, row) in rows.iter().enumerate() {
                base.execute([&row[0]])?;
                let key: i64 = key.query_row([&row[0]], |row| row.get(0))?;
                clocks.execute([key])?;
                sentinel.execute(params![key, index as i64])?;
            }
        }
        Work::MergeKnown | Work::MergeNewer => {
            let mut clocks = connection
                .prepare(&format!("SELECT key, col_name, col_version FROM todo__crsql_clock WHERE key = {KEY_OF}"))?;
            let mut held = connection.prepare("SELECT * FROM todo WHERE id = ?1")?;
            let mut base = connection.prepare("UPDATE todo SET done = ?2 WHERE id = ?1")?;
            let mut clock = connection.prepare(
                "UPDATE todo__crsql_clock SET col_version = ?2, db_version = 2, site_id = 1, seq = ?3
                 WHERE key = ?1 AND col_name = 'done'",
            )?;
            for (index, row) in rows.iter().enumerate() {
                let mut key = 0;
                let mut found = clocks.query([&row[0]])?;
                while let Some(clock) = found.next()? {
                    key = clock.get::<_, i64>(0)?;
                    std::hint::black_box((clock.get_ref(1)?, clock.get_ref(2)?));
                }
                if task.work == Work::MergeKnown {
                    let mut found = held.query([&row[0]])?;
                    std::hint::black_box(found.next()?.is_some());
                } else {
                    base.execute(params![&row[0], value(index)])?;
                    clock.execute(params![key, 2, index as i64])?;
                }
            }
        }
        _ => return Err("there is no floor for this work".into()),
    }
    transaction.commit()?;
    Ok(())
}
