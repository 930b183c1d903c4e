//! A private database to try a schema in: in memory, and without the engine.

use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, Result};

use crate::clset_table;

/// Opens one. The functions by which a schema asks for the engine do nothing there.
pub(crate) fn open() -> Result<Connection> {
    let connection = Connection::open_in_memory()?;
    for name in ["crsql_as_crr", "crsql_as_table", "crsql_fract_as_ordered", "crsql_config_set", "crsql_finalize"] {
        connection.create_scalar_function(name, -1, FunctionFlags::SQLITE_UTF8, |_| Ok("OK"))?;
    }
    clset_table::register(&connection, None)?;
    Ok(connection)
}
