//! The error catalogue (section 15 of the compatibility specification) of what changes schemas: each gist, by the statement
//! that brings it about. And whatever the arguments are, the answer is an error of SQL (section 7).

mod support;

use litemesh_engine::Engine;
use support::{ask, refusal};

fn foo() -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine
        .connection()
        .execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')")
        .unwrap();
    engine
}

#[test]
fn each_error_says_what_the_catalogue_says() {
    let in_window = "SELECT crsql_begin_alter('foo');";
    for (before, statement, gists) in [
        ("", "SELECT crsql_as_crr()", &["wrong number of args"][..]),
        ("", "SELECT crsql_begin_alter()", &["wrong number of args"]),
        ("", "SELECT crsql_begin_alter('main', 'foo', 1)", &["wrong number of args"]),
        ("", "SELECT crsql_commit_alter()", &["wrong number of args"]),
        ("", "SELECT crsql_commit_alter('main', 'foo', 1, 1)", &["wrong number of args"]),
        ("", "SELECT crsql_commit_alter('main', 'foo', 'x')", &["last argument must be 0 or 1"]),
        ("", "SELECT crsql_begin_alter('other', 'foo')", &["schema other is not supported"]),
        ("", "SELECT crsql_commit_alter('other', 'foo')", &["schema other is not supported"]),
        ("", "SELECT crsql_commit_alter('temp', 'foo', 0)", &["schema temp is not supported"]),
        (
            "",
            "SELECT crsql_commit_alter('foo')",
            &["failed compacting tables post alteration", "crsql_begin_alter('foo')"],
        ),
        (
            in_window,
            "SELECT crsql_commit_alter('bar')",
            &["failed compacting tables post alteration", "crsql_begin_alter('bar')"],
        ),
        (
            "SELECT crsql_begin_alter('foo'); DROP TABLE foo",
            "SELECT crsql_commit_alter('foo')",
            &["failed compacting tables post alteration", "Table foo does not exist"],
        ),
        (
            "SELECT crsql_begin_alter('foo'); CREATE UNIQUE INDEX i ON foo (b)",
            "SELECT crsql_commit_alter('foo')",
            &["failed compacting tables post alteration", "Table foo has unique indices besides the primary key"],
        ),
        (
            "SELECT crsql_begin_alter('foo'); ALTER TABLE foo RENAME COLUMN a TO id",
            "SELECT crsql_commit_alter('foo', 1)",
            &["failed compacting tables post alteration", "primary key changed"],
        ),
        (
            "CREATE TEMP TABLE t (a)",
            "SELECT crsql_as_table('t')",
            &["failed to downgrade the crr", "Table t is temporary"],
        ),
        ("CREATE TEMP TABLE t (a)", "SELECT crsql_as_crr('t')", &["Table t is temporary"]),
        ("", "SELECT crsql_as_crr('main.foo')", &["Table main.foo does not exist", "('main', 'foo')"]),
        ("", "SELECT crsql_as_crr('main', 'main.foo')", &["Table main.foo does not exist"]),
        (
            "ATTACH ':memory:' AS x; CREATE TABLE x.t (a PRIMARY KEY NOT NULL)",
            "SELECT crsql_as_crr('x', 't')",
            &["schema x is not supported"],
        ),
        (
            "ATTACH ':memory:' AS x; CREATE TABLE x.t (a PRIMARY KEY NOT NULL)",
            "SELECT crsql_as_crr('t')",
            &["Table t does not exist"],
        ),
        ("", "SELECT crsql_after_insert('nothing', 1)", &["table nothing not found"]),
        ("", "SELECT crsql_after_update('foo', 1, 1)", &["expected 4 values, got 2", "crsql_begin_alter('foo')"]),
        ("", "SELECT crsql_after_insert()", &["expected at least 1 argument"]),
        ("", "SELECT crsql_config_set('nothing', 1)", &["Unknown setting name"]),
        ("", "SELECT crsql_config_set('self-heal', 'no')", &["could not persist config"]),
        ("", "SELECT crsql_automigrate()", &["expected a schema"]),
        ("", "SELECT crsql_automigrate('CREATE TABLE foo (a')", &["incomplete input"]),
        (
            "",
            "SELECT crsql_automigrate('CREATE TABLE foo (b PRIMARY KEY NOT NULL)')",
            &["primary key of table foo would change"],
        ),
        ("", "CREATE VIRTUAL TABLE t USING clset (a PRIMARY KEY NOT NULL)", &["name must end with `_schema`"]),
        (
            "",
            "CREATE VIRTUAL TABLE t_schema USING clset (a)",
            &["Table t has no primary key or primary key is nullable"],
        ),
        ("CREATE TEMP TABLE t (a)", "SELECT crsql_begin_alter('t')", &["Table t is temporary"]),
    ] {
        let engine = foo();
        engine.connection().execute_batch(before).unwrap();
        let message = refusal(engine.connection(), statement);
        for gist in gists {
            assert!(message.contains(gist), "{before} {statement}: {message}");
        }
    }
}

/// Any value in any place: an error, and nothing happened; or it is taken, and the connection goes on.
#[test]
fn functions_survive_arguments_of_every_kind() {
    let values = [
        "NULL",
        "0",
        "-1",
        "9223372036854775807",
        "1.5",
        "9e999",
        "''",
        "'foo'",
        "x''",
        "x'00ff'",
        "char(0)",
        "'main'",
    ];
    for function in ["crsql_begin_alter", "crsql_commit_alter", "crsql_as_crr"] {
        for first in values {
            for rest in ["", ", NULL", ", 1", ", 'foo'", ", x'00'", ", NULL, NULL", ", 'foo', 1", ", 1, 1, 1"] {
                let engine = foo();
                let sql = format!("SELECT {function}({first}{rest})");
                let result = engine.connection().query_row(&sql, [], |_| Ok(()));
                let is_text = first.starts_with(['\'', 'c']);
                assert!(is_text || result.is_err(), "{sql} was taken");
                if !engine.connection().is_autocommit() {
                    engine.connection().execute_batch("ROLLBACK").unwrap();
                }
                engine.connection().execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
                let count = ask::<i64>(engine.connection(), "SELECT count(*) FROM crsql_changes");
                assert!(count == 1, "{sql}: {result:?}");
            }
        }
    }
}

/// Section 7: what changes schemas is called directly, never from a view or trigger that a stranger's file brings along.
#[test]
fn schema_changes_are_direct_only() {
    let engine = foo();
    for call in ["crsql_begin_alter('foo')", "crsql_commit_alter('foo')"] {
        engine.connection().execute_batch(&format!("CREATE VIEW v AS SELECT {call} AS x")).unwrap();
        let message = refusal(engine.connection(), "SELECT * FROM v");
        assert!(message.contains("unsafe use of"), "{call}: {message}");
        engine.connection().execute_batch("DROP VIEW v").unwrap();
    }
}
