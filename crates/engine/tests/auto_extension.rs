//! A program that has SQLite load the engine into every connection. A test binary of its own: that is a setting of the process.

use std::ffi::{c_char, c_int};

use litemesh_engine::load;
use litemesh_engine::rusqlite::{Connection, ffi};

unsafe extern "C" fn load_everywhere(
    db: *mut ffi::sqlite3,
    _: *mut *mut c_char,
    _: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite passes an open connection; dropping ours does not close it.
    let connection = unsafe { Connection::from_handle(db) };
    if connection.is_ok_and(|connection| load(&connection).is_ok()) { ffi::SQLITE_OK } else { ffi::SQLITE_ERROR }
}

/// AM-1: the private database of a migration is nothing but the schema, also then.
#[test]
fn the_private_database_of_a_migration_has_no_engine() {
    // SAFETY: the function has the signature of an entry point.
    unsafe { ffi::sqlite3_auto_extension(Some(load_everywhere)) };
    let connection = Connection::open_in_memory().unwrap();
    let ask = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0));
    assert_eq!(ask("SELECT typeof(crsql_db_version())").unwrap(), "integer", "the engine is loaded");
    let schema = "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr(''foo'')";
    let migrate = |cleanup: &str| ask(&format!("SELECT crsql_automigrate('{schema}', '{cleanup}')"));
    assert_eq!(migrate("SELECT crsql_finalize()").unwrap(), "migration complete");
    for (cleanup, gist) in [
        ("SELECT crsql_db_version()", "no such function: crsql_db_version"),
        ("SELECT * FROM crsql_master", "no such table: crsql_master"),
        ("SELECT * FROM foo__crsql_clock", "no such table: foo__crsql_clock"),
    ] {
        let message = migrate(cleanup).unwrap_err().to_string();
        assert!(message.contains(gist), "{message}");
    }
}
