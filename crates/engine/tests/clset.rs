//! Tables made by the virtual table module `clset` (UV-3 to UV-5). Ports of CRSqlite's `test_cl_set_vtab.rs`.

mod support;

use litemesh_engine::Engine;
use support::{ask, dump, refusal, select_changes};

fn open(sql: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(sql).unwrap();
    engine
}

fn objects(engine: &Engine) -> i64 {
    ask(
        engine.connection(),
        "SELECT count(*) FROM sqlite_master WHERE name NOT LIKE 'crsql%' AND name NOT LIKE 'litemesh%' AND name NOT LIKE 'sqlite%'",
    )
}

/// create_crr_via_vtab.
#[test]
fn a_table_made_by_clset_replicates() {
    for create in [
        "CREATE VIRTUAL TABLE foo_schema USING clset (a INTEGER PRIMARY KEY NOT NULL, b TEXT DEFAULT 'x, (y)', CHECK (b <> 'z'))",
        "CREATE VIRTUAL TABLE main.\"foo_schema\" USING CLSet(a INTEGER PRIMARY KEY NOT NULL,b)",
        "BEGIN; CREATE VIRTUAL TABLE foo_SCHEMA USING clset (a INTEGER PRIMARY KEY NOT NULL, b); COMMIT",
    ] {
        let engine = open(create);
        assert_eq!(engine.tables().unwrap(), ["foo".into()], "{create}");
        engine.connection().execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
        let changes = select_changes(engine.connection(), "");
        assert_eq!(changes.len(), 1, "{create}");
        assert_eq!((changes[0].db_version.get(), &*changes[0].table), (1, "foo"));
    }
    let engine = open("CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b TEXT DEFAULT 'x, (y)')");
    engine.connection().execute_batch("INSERT INTO foo (a) VALUES (1)").unwrap();
    assert_eq!(ask::<String>(engine.connection(), "SELECT b FROM foo"), "x, (y)");
}

/// destroy_crr_via_vtab, and VER-7.
#[test]
fn dropping_it_drops_everything() {
    for (begin, end) in [("SELECT 1", "SELECT 1"), ("BEGIN", "COMMIT")] {
        let engine = open(&format!(
            "CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b); INSERT INTO foo VALUES (1, 2); {begin};
             DROP TABLE foo_schema; {end}"
        ));
        assert_eq!(objects(&engine), 0);
        assert!(engine.tables().unwrap().is_empty() && dump(&engine).is_empty());
        assert_eq!(engine.db_version().unwrap().get(), 1);
        let again =
            "CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b); INSERT INTO foo VALUES (1, 2)";
        engine.connection().execute_batch(again).unwrap();
        assert_eq!(engine.db_version().unwrap().get(), 2);
    }
    // Also where the table went before.
    let engine = open(
        "CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b); DROP TABLE foo; DROP TABLE foo_schema",
    );
    assert_eq!(objects(&engine), 0);
    // A rollback brings it back.
    let engine = open(
        "CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b); INSERT INTO foo VALUES (1, 2); BEGIN;
         DROP TABLE foo_schema; ROLLBACK; INSERT INTO foo VALUES (2, 3)",
    );
    assert_eq!(dump(&engine).len(), 2);
}

/// create_invalid_crr: the reason is told, and nothing remains.
#[test]
fn a_refused_table_leaves_nothing() {
    for (create, gist) in [
        ("CREATE VIRTUAL TABLE foo_schema USING clset (a)", "Table foo has no primary key or primary key is nullable"),
        ("CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b UNIQUE)", "unique indices besides"),
        ("CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b NOT NULL)", "without a DEFAULT VALUE"),
        ("CREATE VIRTUAL TABLE foo_schema USING clset", "syntax error"),
        ("CREATE VIRTUAL TABLE foo_schema USING clset (a, a)", "duplicate column name"),
        ("CREATE VIRTUAL TABLE foo USING clset (a PRIMARY KEY NOT NULL)", "must end with `_schema`"),
        ("CREATE VIRTUAL TABLE _schema USING clset (a PRIMARY KEY NOT NULL)", "must end with `_schema`"),
        ("CREATE VIRTUAL TABLE \"é\" USING clset (a PRIMARY KEY NOT NULL)", "must end with `_schema`"),
        (
            "CREATE VIRTUAL TABLE temp.foo_schema USING clset (a PRIMARY KEY NOT NULL)",
            "only tables of the main database",
        ),
    ] {
        for (begin, end) in [("SELECT 1", "SELECT 1"), ("BEGIN", "COMMIT")] {
            let engine = open(begin);
            let message = refusal(engine.connection(), create);
            assert!(message.contains(gist), "{create}: {message}");
            engine.connection().execute_batch(end).unwrap();
            assert_eq!(objects(&engine), 0, "{create}");
            engine.connection().execute_batch("CREATE TABLE foo (x); INSERT INTO foo VALUES (1)").unwrap();
        }
    }
}

/// create_if_not_exists.
#[test]
fn if_not_exists_makes_it_once() {
    let create = "CREATE VIRTUAL TABLE IF NOT EXISTS foo_schema USING clset (a PRIMARY KEY NOT NULL, b)";
    let engine = open(&format!("{create}; INSERT INTO foo VALUES (1, 2); {create}"));
    assert_eq!(dump(&engine).len(), 1);
    // What is there already is left alone.
    let engine = open("CREATE TABLE foo (x); INSERT INTO foo VALUES (1)");
    assert!(refusal(engine.connection(), create).contains("already exists"));
    assert_eq!(ask::<i64>(engine.connection(), "SELECT x FROM foo"), 1);
}

/// UV-4.
#[test]
fn the_definition_cannot_be_read_or_written() {
    let engine =
        open("CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b); INSERT INTO foo VALUES (1, 2)");
    let connection = engine.connection();
    for write in [
        "INSERT INTO foo_schema (alteration) VALUES ('x')",
        "DELETE FROM foo_schema",
        "UPDATE foo_schema SET schema = 1",
    ] {
        assert!(refusal(connection, write).contains("may not be modified"), "{write}");
    }
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM foo_schema"), 0);
    assert_eq!(ask::<i64>(connection, "SELECT count(alteration) + count(schema) FROM foo_schema"), 0);
    assert_eq!(
        ask::<i64>(
            connection,
            "SELECT count(*) FROM pragma_table_xinfo('foo_schema') WHERE hidden = 1 AND type = 'TEXT'"
        ),
        2
    );
    assert!(refusal(connection, "ALTER TABLE foo_schema RENAME TO bar_schema").contains("cannot be renamed"));
}

/// It is there after the file was opened again, and in another connection.
#[test]
fn it_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let engine = Engine::open(&path).unwrap();
    engine
        .connection()
        .execute_batch("CREATE VIRTUAL TABLE foo_schema USING clset (a PRIMARY KEY NOT NULL, b)")
        .unwrap();
    let other = Engine::open(&path).unwrap();
    other.connection().execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
    drop(engine);
    other.connection().execute_batch("DROP TABLE foo_schema").unwrap();
    assert_eq!(objects(&other), 0);
}
