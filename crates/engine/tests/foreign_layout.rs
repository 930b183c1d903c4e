//! TX-3, TX-4: files of other versions of CRSqlite are recognised by their tables, refused, and left byte by byte.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use litemesh_engine::rusqlite::{Connection, OpenFlags};
use litemesh_engine::{Engine, OpenError, load};
use support::ask;

const MASTER: &str = "CREATE TABLE crsql_master (key TEXT PRIMARY KEY, value ANY);
    CREATE TABLE crsql_tracked_peers (site_id BLOB NOT NULL, version INTEGER NOT NULL, seq INTEGER DEFAULT 0, tag INTEGER,
    event INTEGER, PRIMARY KEY (site_id, tag, event)) STRICT;
    CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); INSERT INTO foo VALUES (1, 'x');";

/// The tables of each version, as section 13.2 of the compatibility specification tells them; and whose they are said to be.
const LAYOUTS: [(&str, &str); 8] = [
    (
        "0.12 or older",
        "INSERT INTO crsql_master VALUES ('crsqlite_version', 120000);
         CREATE TABLE foo__crsql_clock (a, __crsql_col_name, __crsql_col_version, __crsql_db_version, __crsql_site_id,
         PRIMARY KEY (a, __crsql_col_name)); INSERT INTO foo__crsql_clock VALUES (1, 'b', 1, 1, NULL);
         CREATE TABLE __crsql_siteid (site_id)",
    ),
    (
        "0.13 to 0.15",
        "INSERT INTO crsql_master VALUES ('crsqlite_version', 130000);
         CREATE TABLE foo__crsql_clock (a, __crsql_col_name, __crsql_col_version, __crsql_db_version, __crsql_site_id, __crsql_seq,
         PRIMARY KEY (a, __crsql_col_name)); CREATE TABLE __crsql_siteid (site_id)",
    ),
    // 0.15 carries a number that 0.16 accepts; and one that 0.16 has stamped anew, with a second site id beside the first.
    (
        "0.13 to 0.15",
        "INSERT INTO crsql_master VALUES ('crsqlite_version', 150000);
         CREATE TABLE foo__crsql_clock (a, __crsql_col_name, __crsql_col_version, __crsql_db_version, __crsql_site_id, __crsql_seq,
         PRIMARY KEY (a, __crsql_col_name)); CREATE TABLE __crsql_siteid (site_id, ordinal)",
    ),
    (
        "0.13 to 0.15",
        "INSERT INTO crsql_master VALUES ('crsqlite_version', 160300);
         CREATE TABLE foo__crsql_clock (a, __crsql_col_name, __crsql_col_version, __crsql_db_version, __crsql_site_id, __crsql_seq,
         PRIMARY KEY (a, __crsql_col_name)); CREATE TABLE __crsql_siteid (site_id, ordinal);
         CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY)",
    ),
    // Nothing replicates there yet.
    ("0.15 or older", "INSERT INTO crsql_master VALUES ('crsqlite_version', 150000); CREATE TABLE __crsql_siteid (site_id)"),
    (
        "fork 0.17",
        "INSERT INTO crsql_master VALUES ('crsqlite_version', 170000);
         CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);
         CREATE TABLE crsql_db_versions (site_id BLOB NOT NULL PRIMARY KEY, db_version INTEGER NOT NULL)",
    ),
    // The clocks alone: somebody removed the other table.
    (
        "fork 0.17",
        "CREATE TABLE foo__crsql_clock (key INTEGER NOT NULL, col_name TEXT NOT NULL, col_version INTEGER NOT NULL,
         db_version INTEGER NOT NULL, site_id INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL, ts TEXT NOT NULL DEFAULT '0',
         PRIMARY KEY (key, col_name)) WITHOUT ROWID, STRICT",
    ),
    (
        "fork 0.18",
        "INSERT INTO crsql_master VALUES ('crsqlite_version', 180000);
         CREATE TABLE crsql_db_versions (site_id BLOB NOT NULL PRIMARY KEY, db_version INTEGER NOT NULL);
         CREATE TABLE foo__crsql_v2_clock (cell INTEGER PRIMARY KEY)",
    ),
];

/// Every file of a folder, with its bytes. What other processes share of a log is memory, not content.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let files = entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()));
    files.filter(|(name, _)| !name.ends_with("-shm")).collect()
}

/// Each way to open is refused, and changes no byte of any file.
#[track_caller]
fn check_refused(path: &Path, is_expected: impl Fn(&OpenError) -> bool) {
    let folder = path.parent().unwrap();
    let before = files(folder);
    let read_only = || Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let errors = [
        Engine::open(path).err(),
        Engine::attach(Connection::open(path).unwrap()).err(),
        load(&Connection::open(path).unwrap()).err(),
        Engine::attach(read_only()).err(),
    ];
    for error in errors {
        let error = error.expect("the file is refused");
        assert!(is_expected(&error), "{error}");
        assert!(error.to_string().contains("a new file"), "it says what to do: {error}");
    }
    assert_eq!(files(folder), before, "{}", path.display());
}

fn is_of(error: &OpenError, version: &str) -> bool {
    matches!(error, OpenError::ForeignLayout { found, .. } if *found == version)
}

#[test]
fn files_of_other_versions_are_refused_untouched() {
    for (index, (version, sql)) in LAYOUTS.into_iter().enumerate() {
        for mode in ["DELETE", "WAL"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(format!("{index}.db"));
            let plain = Connection::open(&path).unwrap();
            plain.execute_batch(&format!("PRAGMA journal_mode = {mode}; {MASTER} {sql}")).unwrap();
            drop(plain);
            check_refused(&path, |error| is_of(error, version));
            let plain = Connection::open(&path).unwrap();
            assert_eq!(ask::<String>(&plain, "PRAGMA journal_mode"), mode.to_lowercase());
            assert_eq!(ask::<String>(&plain, "SELECT b FROM foo"), "x");
        }
    }
}

/// A program that died left a log. What is in it is read, and stays there.
#[test]
fn a_log_that_was_left_stays_as_it_is() {
    for (version, sql) in LAYOUTS {
        let (folder, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = folder.path().join("a.db");
        let plain = Connection::open(&path).unwrap();
        plain.execute_batch(&format!("PRAGMA journal_mode = WAL; {MASTER} {sql}")).unwrap();
        for name in ["a.db", "a.db-wal"] {
            std::fs::copy(folder.path().join(name), crashed.path().join(name)).unwrap();
        }
        let path = crashed.path().join("a.db");
        let before = files(crashed.path());
        assert!(before["a.db-wal"].len() > before["a.db"].len(), "all of it is in the log");
        assert!(is_of(&Engine::open(&path).err().unwrap(), version));
        assert_eq!(files(crashed.path()), before);
        assert!(is_of(&Engine::attach(Connection::open(&path).unwrap()).err().unwrap(), version));
        assert_eq!(files(crashed.path()), before);
    }
}

/// While another program has the file open.
#[test]
fn a_file_in_use_is_refused_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let other = Connection::open(&path).unwrap();
    let (version, sql) = LAYOUTS[1];
    other
        .execute_batch(&format!("PRAGMA journal_mode = WAL; {MASTER} {sql}; BEGIN IMMEDIATE; DELETE FROM foo"))
        .unwrap();
    check_refused(&path, |error| is_of(error, version));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(ask::<i64>(&other, "SELECT count(*) FROM foo"), 1);
}

/// TX-3: the tables of 0.16, and a number below those that it opens.
#[test]
fn old_numbers_are_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let plain = Connection::open(&path).unwrap();
    plain
        .execute_batch(&format!(
            "{MASTER} CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);
             INSERT INTO crsql_master VALUES ('crsqlite_version', 140000)"
        ))
        .unwrap();
    drop(plain);
    check_refused(&path, |error| {
        error.to_string().starts_with("opening a db created with version 140000")
            && matches!(error, OpenError::OldLayout { version: 140_000 })
    });
}

/// TX-3: later numbers are accepted and left, where the tables are those of 0.16.
#[test]
fn later_numbers_are_accepted_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let engine = Engine::open(&path).unwrap();
    engine
        .connection()
        .execute_batch(
            "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
             UPDATE crsql_master SET value = 160400 WHERE key = 'crsqlite_version'",
        )
        .unwrap();
    drop(engine);
    let engine = Engine::open(&path).unwrap();
    engine.connection().execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
    let version = "SELECT value FROM crsql_master WHERE key = 'crsqlite_version'";
    assert_eq!(ask::<i64>(engine.connection(), version), 160_400);
}

/// TX-2: a file that was never written to, of no bytes or with other tables, loads for reading with an empty state.
#[test]
fn fresh_files_load_for_reading_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty.db"), "").unwrap();
    Connection::open(folder.path().join("plain.db")).unwrap().execute_batch("CREATE TABLE plain (x)").unwrap();
    let before = files(folder.path());
    for name in ["empty.db", "plain.db"] {
        let path = folder.path().join(name);
        let engine =
            Engine::attach(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()).unwrap();
        let db = engine.connection();
        for (sql, expected) in [
            ("SELECT crsql_db_version()", 0),
            ("SELECT crsql_next_db_version()", 1),
            ("SELECT count(*) FROM crsql_changes", 0),
            ("SELECT count(*) FROM crsql_check()", 0),
            ("SELECT crsql_rows_impacted()", 0),
            ("SELECT crsql_config_get('merge-equal-values')", 0),
            ("SELECT length(crsql_site_id())", 16),
        ] {
            assert_eq!(ask::<i64>(db, sql), expected, "{name}: {sql}");
        }
        assert!(engine.tables().unwrap().is_empty());
        assert_eq!(engine.cursor().unwrap().iter().count(), 0);
        for sql in ["SELECT crsql_as_crr('plain')", "SELECT crsql_config_set('merge-equal-values', 1)"] {
            assert!(!support::refusal(db, sql).is_empty(), "{name}: {sql}");
        }
    }
    assert_eq!(files(folder.path()), before);
}
