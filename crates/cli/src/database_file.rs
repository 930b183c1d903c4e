//! Opens files in the ways that commands need, and explains why one cannot be opened.

use std::path::Path;
use std::sync::Arc;

use litemesh::engine::{Engine, StorageError};
use litemesh::rusqlite::{self, Connection, OpenFlags};
use litemesh::{Database, SiteId};

use crate::failure::Failure;

/// Refuses a path without a file: SQLite would make an empty one of every misspelt name.
pub(crate) fn require(file: &Path) -> Result<(), Failure> {
    if file.is_dir() {
        return Err(Failure::database(format!("{} is a folder", file.display()), "give an SQLite file"));
    }
    match file.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::database(
            format!("{} does not exist", file.display()),
            "check the path, or make it with `litemesh init FILE --schema SQL_FILE`",
        )),
        Err(error) => Err(Failure::database(
            format!("{} cannot be reached: {error}", file.display()),
            "check the permissions of its folders",
        )),
    }
}

/// Opens a file that is there, for reading and writing.
pub(crate) fn open(file: &Path) -> Result<Database, Failure> {
    require(file)?;
    Database::open(file).map_err(|error| Failure::open(file, &error))
}

/// Opens a file for reading only; it may be in use.
pub(crate) fn open_read_only(file: &Path) -> Result<Engine, Failure> {
    require(file)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(|error| Failure::sqlite(file, &error))?;
    Engine::attach(connection).map_err(|error| Failure::open(file, &error))
}

/// The replicated tables, by name.
pub(crate) fn replicated_tables(file: &Path, engine: &Engine) -> Result<Vec<Arc<str>>, Failure> {
    let mut tables = engine.tables().map_err(|StorageError(error)| Failure::sqlite(file, &error))?;
    tables.sort();
    Ok(tables)
}

/// The site id, `None` where the engine has never been loaded into the file for writing.
pub(crate) fn site(file: &Path, engine: &Engine) -> Result<Option<SiteId>, Failure> {
    let site = engine.site().map_err(|StorageError(error)| Failure::sqlite(file, &error))?;
    Ok((site != SiteId::default()).then_some(site))
}

/// A name as it stands in SQL.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A count or a size, read by a query with one result.
pub(crate) fn number(connection: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<u64> {
    connection.query_row(sql, params, |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// The place in the primary key, from 1 on; zero for the other columns.
    pub(crate) key_place: i64,
}

/// The columns of a table, in their order, without generated ones. `schema` is `main` or the name of an attached file.
pub(crate) fn columns(connection: &Connection, schema: &str, table: &str) -> rusqlite::Result<Vec<Column>> {
    let mut statement = connection.prepare("SELECT name, pk FROM pragma_table_info(?1, ?2) ORDER BY cid")?;
    let columns =
        statement.query_map([table, schema], |row| Ok(Column { name: row.get(0)?, key_place: row.get(1)? }))?;
    columns.collect()
}

/// The columns of the primary key, in its order.
pub(crate) fn key_columns(columns: &[Column]) -> Vec<&str> {
    let mut key: Vec<&Column> = columns.iter().filter(|column| column.key_place > 0).collect();
    key.sort_by_key(|column| column.key_place);
    key.into_iter().map(|column| column.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_comes_in_the_order_of_its_clause() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE \"a \"\"b\" (x, y NOT NULL, z NOT NULL, PRIMARY KEY (z, y))").unwrap();
        let columns = columns(&connection, "main", "a \"b").unwrap();
        assert_eq!(columns.len(), 3);
        assert_eq!(key_columns(&columns), ["z", "y"]);
        assert_eq!(quote("a \"b"), "\"a \"\"b\"");
    }
}
