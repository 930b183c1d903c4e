//! The table that all scenarios use: a TEXT key and three cells, short values, as in a to-do application.

use litemesh::Database;
use litemesh::rusqlite::{Connection, params};

use crate::Error;

pub const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER, ts INTEGER)";

pub fn create(db: &Database) -> Result<(), Error> {
    db.lock().connection().execute_batch(SCHEMA)?;
    db.lock().replicate("todo")?;
    Ok(())
}

/// Inserts rows in transactions of `batch`.
pub fn fill(connection: &Connection, rows: usize, batch: usize) -> Result<(), Error> {
    let (rows, batch) = (i64::try_from(rows)?, i64::try_from(batch)?);
    let mut row = 0;
    while row < rows {
        let transaction = connection.unchecked_transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO todo VALUES (?1, ?2, ?3, ?4)")?;
            for n in row..rows.min(row + batch) {
                insert.execute(params![format!("r-{n:08}"), format!("title of r {n}"), n % 2, 1_700_000_000 + n])?;
            }
        }
        transaction.commit()?;
        row += batch;
    }
    Ok(())
}

pub fn count(connection: &Connection) -> Result<usize, Error> {
    let count: i64 = connection.query_row("SELECT count(*) FROM todo", [], |row| row.get(0))?;
    Ok(usize::try_from(count)?)
}
