//! A private database to try a schema in: in memory, and without the engine.

use std::cell::Cell;

use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, Result};

use crate::clset_table;

thread_local! {
    static IS_OPENING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is just opening a scratch database. A program can have SQLite load the engine into every connection
/// that opens; into this one it must not, or its schema would be more than the one that is tried.
pub(crate) fn is_opening() -> bool {
    IS_OPENING.get()
}

/// Opens one. The functions by which a schema asks for the engine do nothing there.
pub(crate) fn open() -> Result<Connection> {
    IS_OPENING.set(true);
    let opened = Connection::open_in_memory();
    IS_OPENING.set(false);
    let connection = opened?;
    for name in ["crsql_as_crr", "crsql_as_table", "crsql_fract_as_ordered", "crsql_config_set", "crsql_finalize"] {
        connection.create_scalar_function(name, -1, FunctionFlags::SQLITE_UTF8, |_| Ok("OK"))?;
    }
    clset_table::register(&connection, None)?;
    Ok(connection)
}
