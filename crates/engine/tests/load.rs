//! The engine in a connection that belongs to somebody else.

use litemesh_engine::rusqlite::{Connection, OpenFlags};
use litemesh_engine::{Engine, OpenError, load};

fn integer(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn replicate(connection: &Connection) {
    connection.execute_batch("CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, a)").unwrap();
    connection.query_row("SELECT crsql_as_crr('item')", [], |_| Ok(())).unwrap();
}

#[test]
fn loading_again_changes_nothing() {
    let connection = Connection::open_in_memory().unwrap();
    load(&connection).unwrap();
    replicate(&connection);
    connection.execute_batch("BEGIN; INSERT INTO item VALUES ('a', 1)").unwrap();
    load(&connection).unwrap();
    connection.execute_batch("INSERT INTO item VALUES ('b', 1); COMMIT").unwrap();
    assert_eq!(integer(&connection, "SELECT crsql_db_version()"), 1);
    connection.close().unwrap();
}

#[test]
fn settings_stay() {
    let connection = Connection::open_in_memory().unwrap();
    connection.busy_timeout(std::time::Duration::from_millis(1234)).unwrap();
    load(&connection).unwrap();
    assert_eq!(integer(&connection, "PRAGMA busy_timeout"), 1234);
}

/// Whoever answers the triggers of a connection counts its versions: there can be one only.
#[test]
fn two_engines_in_one_connection_are_refused() {
    let connection = Connection::open_in_memory().unwrap();
    load(&connection).unwrap();
    assert!(matches!(Engine::attach(connection), Err(OpenError::OtherEngine)));

    let connection = Connection::open_in_memory().unwrap();
    let flags = litemesh_engine::rusqlite::functions::FunctionFlags::default();
    connection.create_scalar_function(c"crsql_internal_sync_bit", -1, flags, |_| Ok(0)).unwrap();
    assert!(matches!(load(&connection), Err(OpenError::OtherEngine)));
    assert!(connection.prepare("SELECT * FROM crsql_changes").is_err(), "nothing was loaded");
}

#[test]
fn utf16_is_refused_and_left_alone() {
    for encoding in ["UTF-16le", "UTF-16be"] {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&format!("PRAGMA encoding = '{encoding}'; CREATE TABLE t (a)")).unwrap();
        assert!(matches!(load(&connection), Err(OpenError::Utf16)), "{encoding}");
        assert_eq!(integer(&connection, "SELECT count(*) FROM sqlite_master"), 1);
    }
}

/// TX-2: a program must be able to start while another one writes.
#[test]
fn an_initialised_file_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let engine = Engine::open(&path).unwrap();
    replicate(engine.connection());
    engine.connection().execute_batch("INSERT INTO item VALUES ('a', 1); BEGIN IMMEDIATE").unwrap();
    let other = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    other.busy_timeout(std::time::Duration::ZERO).unwrap();
    load(&other).unwrap();
    assert_eq!(integer(&other, "SELECT count(*) FROM crsql_changes"), 1);
}
