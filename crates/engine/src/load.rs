//! Loads the engine into a connection: its tables into the file, its functions and virtual tables into the connection.
//!
//! A connection that belongs to somebody else (a program that loads the extension, a pool) gets nothing but that: its
//! settings, its hooks and its open statements stay as they are.

use std::sync::Arc;

use rusqlite::Connection;

use crate::bootstrap::{Bootstrap, bootstrap};
use crate::core::{Core, Shared};
use crate::error::OpenError;
use crate::functions::VERSION_FUNCTION;
use crate::statement::Handle;
use crate::transaction::TransactionFlags;
use crate::{
    batch_table, changes_table, check, clset_table, functions, key_walk, newer_clocks, scratch, transaction,
    trigger_functions, unpack_table,
};

/// Loads the engine into a connection that stays the caller's. Does nothing where it is loaded already.
///
/// The SQL surface is there from now on, until the connection closes; nothing has to be called before that. The file is
/// written to only if the engine's tables are missing (TX-2).
///
/// ```
/// use litemesh_engine::{load, rusqlite::Connection};
///
/// let connection = Connection::open_in_memory()?;
/// load(&connection)?;
/// connection.execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
/// connection.query_row("SELECT crsql_as_crr('todo')", [], |_| Ok(()))?;
/// connection.execute("INSERT INTO todo VALUES ('a', 'write docs')", [])?;
/// let version: i64 = connection.query_row("SELECT crsql_db_version()", [], |row| row.get(0))?;
/// assert_eq!(version, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// SQLite fails, the layout of the file is not one that we may touch, or CRSqlite itself is loaded ([`OpenError`]). Nothing
/// was loaded then.
pub fn load(connection: &Connection) -> Result<(), OpenError> {
    if scratch::is_opening() || answers(handle(connection), VERSION_FUNCTION) {
        return Ok(());
    }
    load_shared(connection).map(drop)
}

/// The same, and gives the state, and what was found in the file.
pub(crate) fn load_shared(connection: &Connection) -> Result<(Arc<Shared>, Bootstrap), OpenError> {
    let db = handle(connection);
    // Two engines would both answer the triggers of one connection, each with its own idea of the version.
    if answers(db, "crsql_internal_sync_bit") {
        return Err(OpenError::OtherEngine);
    }
    let found = bootstrap(db)?;
    let flags = Arc::new(TransactionFlags::default());
    let mut core = Core::new(db, found.site, flags.clone(), found.merge_equal_values);
    core.has_litemesh_tables = found.has_litemesh_tables;
    core.has_crsql_tables = found.has_crsql_tables;
    core.opened_at = crate::incarnation::newest_number(&mut core)?;
    let shared = Arc::new(Shared::new(core, flags));
    transaction::register(db, &shared)?;
    batch_table::register(db)?;
    key_walk::register(db)?;
    newer_clocks::register(db)?;
    functions::register(connection, &shared)?;
    trigger_functions::register(db, &shared)?;
    changes_table::register(connection, &shared)?;
    check::table::register(connection, &shared)?;
    clset_table::register(connection, Some(&shared))?;
    unpack_table::register(connection)?;
    Ok((shared, found))
}

fn handle(connection: &Connection) -> Handle {
    // SAFETY: what keeps the handle is the state, which is owned by the connection's functions and virtual tables (SQLite
    // drops those when it closes), and by an `Engine`, which drops its connection with it.
    unsafe { Handle::new(connection.handle()) }
}

/// Whether the connection has a function of this name and no arguments.
fn answers(db: Handle, function: &str) -> bool {
    db.prepare(&format!("SELECT {function}()")).is_ok()
}
