//! The least that the layout of CRSqlite costs: the shadow tables of a whole transaction are written together at its end, by as
//! few statements as can be, each in the order in which its B-trees lie. Whoever writes this layout through SQLite pays that,
//! also where clocks wait for the commit; and besides for noticing what was written, and for finding out what is held.
//!
//! Nothing is found out here: the numbers of keys and rows, and the versions that are held, are known beforehand. The
//! application's own statements stay row by row; those of a merge are written together, too. What differs from row to row
//! comes from temporary tables. The statements are the best of those that were tried (docs/benchmarks.md).

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params, params_from_iter};

use crate::Error;
use crate::subject::Notices;
use crate::work::{Task, Work};

/// Whether there is such a floor.
pub fn is_known(work: Work, notices: Notices) -> bool {
    let is_local = matches!(work, Work::Insert | Work::Update | Work::UpdateBulk | Work::Delete | Work::DeleteHalf);
    is_local || notices == Notices::Nothing && matches!(work, Work::MergeNew | Work::MergeNewer)
}

/// Makes the temporary tables: rows, and clocks of new rows in the order of their table.
///
/// The triggers do nothing, with as many calls and values as those that note what was written. The hook notes the keys of rows that
/// changed, as the engine does.
pub fn prepare(task: Task, connection: &Connection, rows: &[Vec<SqlValue>], notices: Notices) -> Result<(), Error> {
    let cells = task.shape.cells().join(", ");
    connection.execute_batch(&format!(
        "CREATE TEMP TABLE row_fed (key INTEGER PRIMARY KEY, id, {cells});
         CREATE TEMP TABLE clock_fed (number INTEGER PRIMARY KEY, key INT, name TEXT, seq INT)"
    ))?;
    let parameters = vec!["?"; task.shape.columns + 1].join(", ");
    let mut row_fed = connection.prepare(&format!("INSERT INTO row_fed VALUES ({parameters})"))?;
    let mut clock_fed = connection.prepare("INSERT INTO clock_fed (key, name, seq) VALUES (?1, ?2, ?3)")?;
    let mut names = task.shape.cells().to_vec();
    names.sort_unstable();
    for (key, row) in (1_i64..).zip(rows) {
        row_fed.execute(params_from_iter(std::iter::once(&SqlValue::Integer(key)).chain(row)))?;
        for (place, name) in (0..).zip(&names) {
            clock_fed.execute(params![key, name, (key - 1) * names.len() as i64 + place])?;
        }
    }
    if notices == Notices::ByTriggers {
        let values = |row: &str| task.shape.cells().iter().map(|name| format!(", {row}.{name}")).collect::<String>();
        for (event, values) in [
            ("INSERT", "NEW.id".to_owned()),
            ("UPDATE", format!("NEW.id, OLD.id{}{}", values("NEW"), values("OLD"))),
            ("DELETE", "OLD.id".to_owned()),
        ] {
            connection.execute_batch(&format!(
                "CREATE TRIGGER on_{event} AFTER {event} ON todo WHEN abs(0) = 0 BEGIN VALUES (max('todo', {values})); END"
            ))?;
        }
    }
    #[cfg(feature = "preupdate-hook")]
    match notices {
        Notices::ByHook => crate::preupdate::install(connection, 1),
        Notices::ByIdleHook => crate::preupdate::install_idle(connection),
        Notices::Nothing | Notices::ByTriggers => {}
    }
    Ok(())
}

/// Does the work, all of it in one transaction. OR FAIL and OR REPLACE: SQLite keeps nothing to undo the statement by.
pub fn run(task: Task, connection: &Connection, rows: &[Vec<SqlValue>]) -> Result<(), Error> {
    let transaction = connection.unchecked_transaction()?;
    let value = |row: usize| row as i64 % 2 + 5;
    let cells = task.shape.cells().join(", ");
    let deleted = if task.work == Work::DeleteHalf { &rows[..rows.len() / 2] } else { rows };
    match task.work {
        Work::Insert => {
            let mut base = connection.prepare(&task.shape.insert())?;
            for row in rows {
                base.execute(params_from_iter(row))?;
            }
        }
        Work::MergeNew => {
            connection.execute(&format!("INSERT OR FAIL INTO todo SELECT id, {cells} FROM row_fed"), [])?;
        }
        Work::Update => {
            let mut base = connection.prepare("UPDATE todo SET done = ?2 WHERE id = ?1")?;
            for (index, row) in rows.iter().enumerate() {
                base.execute(params![&row[0], value(index)])?;
            }
        }
        Work::UpdateBulk => drop(connection.execute("UPDATE todo SET done = done + 1", [])?),
        Work::MergeNewer => {
            let base = "UPDATE OR FAIL todo SET done = fed.done + 5 FROM row_fed fed WHERE todo.rowid = fed.key";
            connection.execute(base, [])?;
        }
        Work::Delete | Work::DeleteHalf => {
            let mut base = connection.prepare("DELETE FROM todo WHERE id = ?1")?;
            for row in deleted {
                base.execute([&row[0]])?;
            }
        }
        _ => return Err("there is no bulk floor for this work".into()),
    }
    #[cfg(feature = "preupdate-hook")]
    crate::preupdate::remove(connection);
    match task.work {
        Work::Insert | Work::MergeNew => {
            let keys = "INSERT OR FAIL INTO todo__crsql_pks (__crsql_key, id) SELECT key, id FROM row_fed";
            connection.execute(keys, [])?;
            let clocks = "INSERT OR FAIL INTO todo__crsql_clock (key, col_name, col_version, db_version, site_id, seq)
                          SELECT key, name, 1, 1, 0, seq FROM clock_fed";
            connection.execute(clocks, [])?;
        }
        // No key has to be looked for: the clocks lie beside each other.
        Work::Update | Work::UpdateBulk => {
            let clocks = "UPDATE OR FAIL todo__crsql_clock SET col_version = col_version + 1, db_version = 2, site_id = 0, seq = key
                          WHERE key BETWEEN 1 AND ?1 AND col_name = 'done'";
            connection.execute(clocks, [rows.len() as i64])?;
        }
        Work::MergeNewer => {
            let clocks =
                "INSERT OR REPLACE INTO todo__crsql_clock (key, col_name, col_version, db_version, site_id, seq)
                          SELECT key, 'done', 2, 2, 0, key FROM row_fed";
            connection.execute(clocks, [])?;
        }
        _ => {
            if task.work == Work::Delete {
                // Without WHERE, SQLite drops them page by page.
                connection.execute("DELETE FROM todo__crsql_clock", [])?;
            } else {
                let clocks = "DELETE FROM todo__crsql_clock WHERE key BETWEEN 1 AND ?1 AND col_name <> '-1'";
                connection.execute(clocks, [deleted.len() as i64])?;
            }
            let sentinels =
                "INSERT OR FAIL INTO todo__crsql_clock (key, col_name, col_version, db_version, site_id, seq)
                 SELECT __crsql_key, '-1', 2, 2, 0, __crsql_key FROM todo__crsql_pks WHERE __crsql_key <= ?1";
            connection.execute(sentinels, [deleted.len() as i64])?;
        }
    }
    transaction.commit()?;
    Ok(())
}
