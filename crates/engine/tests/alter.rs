//! Schema changes between `crsql_begin_alter` and `crsql_commit_alter` (ALT-1 to ALT-6), and what they do to clocks.
//!
//! Ports of CRSqlite's own tests carry its name for them: `test_schema_modification.py`, `test_sync.py`, `crsqlite.test.c`.

mod support;

use litemesh_engine::rusqlite::Connection;
use litemesh_engine::rusqlite::types::Value;
use litemesh_engine::{AlterError, Engine, ReplicateError};
use support::{ask, count_steps, dump, merge, refusal};

fn open(sql: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(sql).unwrap();
    engine
}

fn alter(engine: &Engine, sql: &str) {
    let sql = format!("SELECT crsql_begin_alter('foo'); {sql}; SELECT crsql_commit_alter('foo')");
    engine.connection().execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Each row as one text, `a b c`.
fn rows(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let mut texts = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let value = |column| match row.get(column).unwrap() {
            Value::Null => "NULL".to_owned(),
            Value::Integer(value) => value.to_string(),
            Value::Text(text) => text,
            other => format!("{other:?}"),
        };
        texts.push((0..columns).map(value).collect::<Vec<_>>().join(" "));
    }
    texts
}

/// `key name col_version db_version`, by key and name.
#[track_caller]
fn check_clocks(engine: &Engine, expected: &[&str]) {
    let sql = "SELECT key, col_name, col_version, db_version FROM foo__crsql_clock ORDER BY key, col_name";
    assert_eq!(rows(engine.connection(), sql), expected);
}

/// `pk cid value col_version db_version cl`, in the order of `crsql_changes`.
#[track_caller]
fn check_changes(engine: &Engine, expected: &[&str]) {
    let sql = "SELECT hex(pk), cid, val, col_version, db_version, cl FROM crsql_changes";
    assert_eq!(rows(engine.connection(), sql), expected);
}

/// Clocks and keys agree with the table (section 19, 5), and the table has its triggers.
#[track_caller]
fn check_consistent(engine: &Engine, table: &str) {
    let check = |what: &str, sql: &str| {
        let sql = sql.replace("foo", table);
        assert_eq!(ask::<i64>(engine.connection(), &sql), 0, "{what}: {sql}");
    };
    check(
        "clocks without key",
        "SELECT count(*) FROM foo__crsql_clock WHERE key NOT IN (SELECT __crsql_key FROM foo__crsql_pks)",
    );
    check(
        "keys without clock",
        "SELECT count(*) FROM foo__crsql_pks WHERE __crsql_key NOT IN (SELECT key FROM foo__crsql_clock)",
    );
    check(
        "clocks of columns that are gone",
        "SELECT count(*) FROM foo__crsql_clock WHERE col_name <> '-1' AND col_name NOT IN (SELECT name FROM pragma_table_info('foo') WHERE pk = 0)",
    );
    check(
        "triggers",
        "SELECT count(*) - 3 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'foo' AND name LIKE 'foo\\_\\_crsql\\__trig' ESCAPE '\\'",
    );
    let keys =
        rows(engine.connection(), &format!("SELECT name FROM pragma_table_info('{table}') WHERE pk > 0 ORDER BY pk"));
    let same: Vec<_> = keys.iter().map(|key| format!("b.\"{key}\" = p.\"{key}\"")).collect();
    let same = same.join(" AND ");
    check(
        "rows without key",
        &format!("SELECT count(*) FROM foo b WHERE NOT EXISTS (SELECT 1 FROM foo__crsql_pks p WHERE {same})"),
    );
    check(
        "living clocks without row",
        &format!(
            "SELECT count(*) FROM foo__crsql_clock c JOIN foo__crsql_pks p ON p.__crsql_key = c.key
             WHERE (c.col_name <> '-1' OR c.col_version % 2 = 1) AND NOT EXISTS (SELECT 1 FROM foo b WHERE {same})"
        ),
    );
    check(
        "tombstones of living rows",
        &format!(
            "SELECT count(*) FROM foo__crsql_clock c JOIN foo__crsql_pks p ON p.__crsql_key = c.key
             WHERE c.col_name = '-1' AND c.col_version % 2 = 0 AND EXISTS (SELECT 1 FROM foo b WHERE {same})"
        ),
    );
}

const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');";

/// ALT-4: drop_clock_on_col_remove.
#[test]
fn a_dropped_column_takes_its_clocks_along() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3); INSERT INTO foo VALUES (4, 5, 6)"));
    alter(&engine, "ALTER TABLE foo DROP COLUMN b");
    check_changes(&engine, &["010901 c 3 1 1 1", "010904 c 6 1 2 1"]);
    check_consistent(&engine, "foo");
}

/// ALT-5: backfill_col_add, add_col_with_default, add_col_nullable, add_col_implicit_nullable.
#[test]
fn added_columns_make_no_changes_until_they_are_written() {
    for column in ["d", "d TEXT NULL", "d DEFAULT 7", "d TEXT NOT NULL DEFAULT 'x'"] {
        let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
        alter(&engine, &format!("ALTER TABLE foo ADD COLUMN {column}"));
        check_changes(&engine, &["010901 b 2 1 1 1", "010901 c 3 1 1 1"]);
        engine.connection().execute_batch("INSERT INTO foo (a) VALUES (2); UPDATE foo SET d = 9 WHERE a = 1").unwrap();
        check_clocks(&engine, &["1 b 1 1", "1 c 1 1", "1 d 1 3", "2 b 1 2", "2 c 1 2", "2 d 1 2"]);
        check_consistent(&engine, "foo");
    }
}

/// ALT-5: backfill_clocks_on_rename.
#[test]
fn a_renamed_column_is_a_new_one() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3), (4, 5, 6); UPDATE foo SET b = 7 WHERE a = 1"));
    alter(&engine, "ALTER TABLE foo RENAME COLUMN b TO d");
    check_changes(&engine, &["010901 c 3 1 1 1", "010904 c 6 1 1 1", "010901 d 7 1 2 1", "010904 d 5 1 2 1"]);
    assert_eq!(engine.db_version().unwrap().get(), 2);
    check_consistent(&engine, "foo");
}

/// ALT-5: delete_sentinels_not_lost.
#[test]
fn tombstones_survive() {
    for change in ["ALTER TABLE foo ADD COLUMN d", "ALTER TABLE foo DROP COLUMN b", "SELECT 1"] {
        let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3), (4, 5, 6); DELETE FROM foo WHERE a = 4"));
        alter(&engine, change);
        let sql = "SELECT key, col_name, col_version, db_version FROM foo__crsql_clock WHERE key = 2";
        assert_eq!(rows(engine.connection(), sql), ["2 -1 2 2"], "{change}");
        check_consistent(&engine, "foo");
    }
}

/// ALT-5: pk_only_sentinels and pk_only_table_backfill.
#[test]
fn a_table_of_keys_alone_can_get_columns_and_lose_them() {
    let engine = open(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL); INSERT INTO foo VALUES (1); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (2)",
    );
    check_changes(&engine, &["010901 -1 NULL 1 1 1", "010902 -1 NULL 1 2 1"]);
    alter(&engine, "ALTER TABLE foo ADD COLUMN b");
    check_changes(&engine, &["010901 -1 NULL 1 1 1", "010902 -1 NULL 1 2 1"]);
    engine.connection().execute_batch("INSERT INTO foo VALUES (3, 4)").unwrap();
    check_changes(&engine, &["010901 -1 NULL 1 1 1", "010902 -1 NULL 1 2 1", "010903 b 4 1 3 1"]);
    alter(&engine, "ALTER TABLE foo DROP COLUMN b");
    check_changes(&engine, &["010901 -1 NULL 1 1 1", "010902 -1 NULL 1 2 1", "010903 -1 NULL 1 3 1"]);
    check_consistent(&engine, "foo");
}

const TWELVE_STEPS: &str =
    "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, c, d); INSERT INTO new SELECT a, b, c, NULL FROM foo;
    DROP TABLE foo; ALTER TABLE new RENAME TO foo";

/// ALT-5: backfill_for_alter_does_not_move_dbversion.
#[test]
fn a_migration_moves_no_version() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3); INSERT INTO foo VALUES (4, 5, 6)"));
    alter(&engine, &format!("{TWELVE_STEPS}; INSERT INTO foo VALUES (7, 8, 9, 10)"));
    check_changes(
        &engine,
        &[
            "010901 b 2 1 1 1",
            "010901 c 3 1 1 1",
            "010904 b 5 1 2 1",
            "010907 b 8 1 2 1",
            "010904 c 6 1 2 1",
            "010907 c 9 1 2 1",
            "010907 d 10 1 2 1",
        ],
    );
    assert_eq!(engine.db_version().unwrap().get(), 2);
    engine.connection().execute_batch("INSERT INTO foo VALUES (11, 1, 1, 1)").unwrap();
    assert_eq!(engine.db_version().unwrap().get(), 3);
    check_consistent(&engine, "foo");
}

/// ALT-5: add_col_through_12step, add_column_and_set_column.
#[test]
fn values_set_inside_are_recorded_at_the_current_version() {
    for change in [
        &format!("{TWELVE_STEPS}; UPDATE foo SET d = 4"),
        "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, c, d); INSERT INTO new SELECT a, b, c, 4 FROM foo;
         DROP TABLE foo; ALTER TABLE new RENAME TO foo",
        "ALTER TABLE foo ADD COLUMN d; UPDATE foo SET d = 4",
        "ALTER TABLE foo ADD COLUMN d DEFAULT 3; UPDATE foo SET d = 4 WHERE a = 1",
        "ALTER TABLE foo ADD COLUMN d; REPLACE INTO foo VALUES (1, 2, 3, 4)",
        "ALTER TABLE foo ADD COLUMN d; INSERT INTO foo VALUES (1, 0, 0, 4) ON CONFLICT (a) DO UPDATE SET d = excluded.d",
    ] {
        let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
        alter(&engine, change);
        check_changes(&engine, &["010901 b 2 1 1 1", "010901 d 4 1 1 1", "010901 c 3 1 1 1"]);
        assert_eq!(
            ask::<i64>(engine.connection(), "SELECT db_version FROM crsql_changes WHERE cid = 'd'"),
            1,
            "{change}"
        );
        check_consistent(&engine, "foo");
    }
}

/// ALT-5: a default is a default however it is written, also where the value was written explicitly.
#[test]
fn defaults_are_recognised() {
    for (column, value, recorded) in [
        ("d DEFAULT 5", "5", false),
        ("d DEFAULT 5", "6", true),
        ("d TEXT DEFAULT 5", "'5'", false),
        ("d INTEGER DEFAULT '7'", "7", false),
        ("d DEFAULT word", "'word'", false),
        ("d DEFAULT \"b\"", "'b'", false),
        ("d DEFAULT TRUE", "1", false),
        ("d DEFAULT -1.5", "-1.5", false),
        ("d DEFAULT x'00ff'", "x'00ff'", false),
        ("d DEFAULT 'it''s'", "'it''s'", false),
        ("d DEFAULT (1 + 2)", "3", false),
        ("d DEFAULT NULL", "NULL", false),
        ("d DEFAULT NULL", "0", true),
        ("d COLLATE NOCASE DEFAULT 'x'", "'X'", true),
        // Another value each time is no default that every node has.
        ("d DEFAULT CURRENT_TIMESTAMP", "1", true),
        ("d DEFAULT (abs(3))", "3", true),
    ] {
        let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
        alter(
            &engine,
            &format!(
                "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, c, {column}); INSERT INTO new SELECT a, b, c, {value}
                 FROM foo; DROP TABLE foo; ALTER TABLE new RENAME TO foo"
            ),
        );
        let found: bool = ask(engine.connection(), "SELECT count(*) FROM crsql_changes WHERE cid = 'd'");
        assert_eq!(found, recorded, "{column} with {value}");
    }
}

/// CRR-5: pk_and_default_backfill, pk_and_default_backfill_post12step_with_new_rows.
#[test]
fn rows_of_defaults_alone_are_recorded_all_the_same() {
    let create = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b DEFAULT 0);";
    let engine = open(&format!("{create} INSERT INTO foo (a) VALUES (1); SELECT crsql_as_crr('foo')"));
    check_changes(&engine, &["010901 b 0 1 1 1"]);
    let engine = open(&format!("{create} SELECT crsql_as_crr('foo')"));
    alter(&engine, "INSERT INTO foo (a) VALUES (1)");
    check_changes(&engine, &["010901 b 0 1 0 1"]);
    check_consistent(&engine, "foo");
}

/// ALT-5: remove_rows_on_alter. Every way to remove rows is noticed.
#[test]
fn rows_removed_inside_leave_nothing() {
    for remove in [
        "DELETE FROM foo WHERE a = 1",
        "DELETE FROM foo WHERE a = 1; ALTER TABLE foo ADD COLUMN d",
        "ALTER TABLE foo DROP COLUMN c; DELETE FROM foo WHERE a = 1; ALTER TABLE foo ADD COLUMN c",
        "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, c); INSERT INTO new SELECT * FROM foo WHERE a > 1;
         DROP TABLE foo; ALTER TABLE new RENAME TO foo",
        "CREATE TRIGGER t AFTER DELETE ON other BEGIN DELETE FROM foo WHERE a = 1; END; DELETE FROM other; DROP TRIGGER t",
    ] {
        let engine = open(&format!(
            "{FOO} INSERT INTO foo VALUES (1, 2, 3), (4, 5, 6); CREATE TABLE other (x); INSERT INTO other VALUES (1)"
        ));
        alter(&engine, remove);
        let keys = rows(engine.connection(), "SELECT DISTINCT hex(pk) FROM crsql_changes");
        assert_eq!(keys, ["010904"], "{remove}");
        check_consistent(&engine, "foo");
    }
    for remove in [
        "DELETE FROM foo",
        "DELETE FROM foo; ALTER TABLE foo ADD COLUMN d",
        "DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c)",
        "DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c, d)",
    ] {
        let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3), (4, 5, 6)"));
        alter(&engine, remove);
        check_changes(&engine, &[]);
        assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM foo__crsql_pks"), 0, "{remove}");
        assert_eq!(engine.db_version().unwrap().get(), 1, "VER-7: {remove}");
    }
}

/// ALT-6: rows that are written while columns are added are noticed, whatever writes them.
#[test]
fn writes_inside_are_noticed_whatever_they_are() {
    let staged = "CREATE TABLE staged (a INTEGER PRIMARY KEY NOT NULL, b, c); INSERT INTO staged VALUES (7, 8, 9);";
    for (table, write) in [
        ("", "INSERT INTO foo (a, b, c) VALUES (7, 8, 9)"),
        ("", "INSERT INTO foo (a, b, c) SELECT * FROM staged"),
        ("", "REPLACE INTO foo (a, b, c) VALUES (7, 8, 9)"),
        ("", "INSERT INTO foo (a, b, c) VALUES (1, 8, 9) ON CONFLICT (a) DO UPDATE SET a = 7, b = 8, c = 9"),
        ("", "UPDATE foo SET a = 7, b = 8, c = 9"),
        (" WITHOUT ROWID", "INSERT INTO foo (a, b, c) VALUES (7, 8, 9)"),
        (" WITHOUT ROWID", "UPDATE foo SET a = 7, b = 8, c = 9"),
        // SQLite copies these without looking at the rows.
        (
            "",
            "DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); INSERT INTO foo SELECT * FROM staged",
        ),
        // Nothing is written at all.
        ("", "DROP TABLE foo; ALTER TABLE staged RENAME TO foo"),
        ("", "ALTER TABLE foo RENAME TO old; ALTER TABLE staged RENAME TO foo"),
    ] {
        let engine = open(&format!(
            "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c){table}; SELECT crsql_as_crr('foo');
             INSERT INTO foo VALUES (1, 2, 3); {staged}"
        ));
        alter(&engine, &format!("{write}; ALTER TABLE foo ADD COLUMN d"));
        let found = rows(engine.connection(), "SELECT cid, val, col_version FROM crsql_changes WHERE pk = x'010907'");
        assert_eq!(found, ["b 8 1", "c 9 1", "d NULL 1"], "{table} {write}");
        check_consistent(&engine, "foo");
    }
}

/// ALT-6: a column that is added is seen by reading the schema alone. The limit is what SQLite's steps may be, not a time.
#[test]
fn adding_a_column_reads_no_rows() {
    let mut engine = open(&format!(
        "{FOO} WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO foo SELECT i, i, i FROM n"
    ));
    let mut check = |sql: &str, is_expected: fn(usize) -> bool| {
        let work = |engine: &mut Engine| engine.alter("foo", |connection| connection.execute_batch(sql)).unwrap();
        let ((), count) = count_steps(&mut engine, work);
        assert!(is_expected(count), "{sql}: {count} steps");
    };
    check("ALTER TABLE foo ADD COLUMN d", |count| count < 10_000);
    check("ALTER TABLE foo ADD COLUMN e TEXT DEFAULT 'x'", |count| count < 10_000);
    // A full pass: the limit above would find it.
    check("SELECT 1", |count| count > 100_000);
}

/// LW-3 for what is written inside: a row over its tombstone is alive again.
#[test]
fn rows_written_back_inside_are_alive() {
    for (create, expected) in [
        ("a INTEGER PRIMARY KEY NOT NULL, b", &["010901 -1 NULL 3 2 3", "010901 b 5 1 2 3"][..]),
        ("a INTEGER PRIMARY KEY NOT NULL", &["010901 -1 NULL 3 2 3"]),
    ] {
        let engine = open(&format!(
            "CREATE TABLE foo ({create}); SELECT crsql_as_crr('foo'); INSERT INTO foo (a) VALUES (1); DELETE FROM foo"
        ));
        let write = if create.contains('b') { "INSERT INTO foo VALUES (1, 5)" } else { "INSERT INTO foo VALUES (1)" };
        alter(&engine, write);
        check_changes(&engine, expected);
        check_consistent(&engine, "foo");
    }
}

/// ALT-4: remove_col_from_pk, remove_pk_column, add_existing_col_to_pk, add_new_col_to_pk, rename_pk_column.
#[test]
fn another_primary_key_begins_a_new_history() {
    for (change, keys) in [
        (
            "CREATE TABLE new (a NOT NULL, b NOT NULL DEFAULT 0, c, PRIMARY KEY (a)); INSERT INTO new SELECT a, b, c FROM foo",
            "0901",
        ),
        ("CREATE TABLE new (a NOT NULL, c, PRIMARY KEY (a)); INSERT INTO new SELECT a, c FROM foo", "0901"),
        (
            "CREATE TABLE new (a NOT NULL, b NOT NULL, c NOT NULL, PRIMARY KEY (a, b, c)); INSERT INTO new SELECT * FROM foo",
            "090109020903",
        ),
        (
            "CREATE TABLE new (a NOT NULL, b NOT NULL, c, d NOT NULL, PRIMARY KEY (a, b, d)); INSERT INTO new SELECT *, 4 FROM foo",
            "090109020904",
        ),
    ] {
        let engine = open(
            "CREATE TABLE foo (a NOT NULL, b NOT NULL, c, PRIMARY KEY (a, b)); SELECT crsql_as_crr('foo');
             INSERT INTO foo VALUES (1, 2, 3), (9, 9, 9); UPDATE foo SET c = c + 0.0 WHERE a = 9; UPDATE foo SET c = 3 WHERE a = 9;
             DELETE FROM foo WHERE a = 9",
        );
        alter(&engine, &format!("{change}; DROP TABLE foo; ALTER TABLE new RENAME TO foo"));
        let found = rows(
            engine.connection(),
            "SELECT DISTINCT substr(hex(pk), 3), col_version, db_version, cl FROM crsql_changes",
        );
        assert_eq!(found, [format!("{keys} 1 4 1")], "{change}");
        check_consistent(&engine, "foo");
    }
    let engine =
        open("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1, 2)");
    engine.connection().execute_batch("UPDATE foo SET b = 3").unwrap();
    alter(&engine, "ALTER TABLE foo RENAME COLUMN a TO id");
    check_changes(&engine, &["010901 b 3 1 2 1"]);
    // Order alone is not another key: names find the columns.
    let engine = open(
        "CREATE TABLE foo (a NOT NULL, b NOT NULL, c, PRIMARY KEY (a, b)); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 2, 3); UPDATE foo SET c = 4",
    );
    alter(
        &engine,
        "CREATE TABLE new (a NOT NULL, b NOT NULL, c, PRIMARY KEY (b, a)); INSERT INTO new SELECT * FROM foo; DROP TABLE foo;
         ALTER TABLE new RENAME TO foo",
    );
    check_changes(&engine, &["0209020901 c 4 2 2 1"]);
    engine.connection().execute_batch("UPDATE foo SET c = 5").unwrap();
    check_changes(&engine, &["0209020901 c 5 3 3 1"]);
}

/// changing_values_in_primary_key_columns.
#[test]
fn a_key_value_changed_inside_is_another_row() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    alter(&engine, "UPDATE foo SET a = 5");
    check_changes(&engine, &["010905 b 2 1 1 1", "010905 c 3 1 1 1"]);
    check_consistent(&engine, "foo");
}

/// test_sync.py: merging_on_defaults, merging_on_defaults2: what was written beats what a migration put there.
#[test]
fn recorded_values_beat_defaults_that_nobody_wrote() {
    for explicit in [1, 9] {
        let mut writer = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
        let mut other = open(FOO);
        merge(&mut other, &dump(&writer));
        alter(&writer, "ALTER TABLE foo ADD COLUMN d DEFAULT 4");
        alter(&other, "ALTER TABLE foo ADD COLUMN d DEFAULT 4");
        writer.connection().execute(&format!("UPDATE foo SET d = {explicit}"), []).unwrap();
        let (ours, theirs) = (dump(&writer), dump(&other));
        assert_eq!((ours.len(), theirs.len()), (3, 2), "the default is told to nobody");
        merge(&mut other, &ours);
        merge(&mut writer, &theirs);
        for engine in [&writer, &other] {
            assert_eq!(ask::<i64>(engine.connection(), "SELECT d FROM foo"), explicit);
        }
    }
}

/// test_sync.py: merging_larger_backfilled_default.
#[test]
fn a_backfilled_default_counts_as_written() {
    let mut one = open(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b DEFAULT 4); INSERT INTO foo (a) VALUES (1); SELECT crsql_as_crr('foo')",
    );
    let mut two = open(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b DEFAULT 4); INSERT INTO foo VALUES (1, 2); SELECT crsql_as_crr('foo')",
    );
    let (ours, theirs) = (dump(&one), dump(&two));
    merge(&mut one, &theirs);
    merge(&mut two, &ours);
    for engine in [&one, &two] {
        assert_eq!(ask::<i64>(engine.connection(), "SELECT b FROM foo"), 4, "the larger value at equal versions");
    }
}

/// test_sync.py: db_version_moves_as_expected_post_alter.
#[test]
fn versions_go_on_after_an_alter() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    alter(&engine, "ALTER TABLE foo ADD COLUMN d");
    for version in 2..5 {
        engine.connection().execute("UPDATE foo SET d = coalesce(d, 0) + 1", []).unwrap();
        assert_eq!(engine.db_version().unwrap().get(), version);
    }
}

/// crsqlite.test.c: a column dropped and another added in one window.
#[test]
fn drop_and_add_shows_the_new_column_alone() {
    let engine = open(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1, 2)",
    );
    alter(&engine, "ALTER TABLE foo ADD COLUMN c; ALTER TABLE foo DROP COLUMN b");
    // The row had no other cell: it is recorded anew.
    check_changes(&engine, &["010901 c NULL 1 1 1"]);
    engine.connection().execute_batch("UPDATE foo SET c = 5").unwrap();
    check_changes(&engine, &["010901 c 5 2 2 1"]);
    check_consistent(&engine, "foo");
}

/// DSK-2 and VER-7: what clocks said of versions stays known when they go.
#[test]
fn the_version_floor_is_kept() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3); UPDATE foo SET b = 3"));
    alter(&engine, "ALTER TABLE foo DROP COLUMN b");
    assert_eq!(
        ask::<i64>(engine.connection(), "SELECT value FROM crsql_master WHERE key = 'pre_compact_dbversion'"),
        2
    );
    assert_eq!(ask::<i64>(engine.connection(), "SELECT max(db_version) FROM crsql_changes"), 1);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_db_version()"), 2);
    // In one transaction with a write, whose version is not the committed one yet.
    engine
        .connection()
        .execute_batch(
            "BEGIN; UPDATE foo SET c = 9; SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN d; DELETE FROM foo;
             SELECT crsql_commit_alter('foo')",
        )
        .unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_db_version()"), 2);
    engine.connection().execute_batch("COMMIT").unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_db_version()"), 3);
}

/// A rolled back alter raised the floor in vain.
#[test]
fn a_rollback_takes_the_floor_back() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    engine
        .connection()
        .execute_batch(
            "BEGIN; UPDATE foo SET c = 9; SELECT crsql_begin_alter('foo'); DELETE FROM foo; SELECT crsql_commit_alter('foo');
             ROLLBACK",
        )
        .unwrap();
    assert_eq!(engine.db_version().unwrap().get(), 1);
    engine.connection().execute_batch("UPDATE foo SET c = 9").unwrap();
    assert_eq!(engine.db_version().unwrap().get(), 2);
}

/// ALT-2: what is done inside is seen by nobody until it is committed, and leaves no triggers behind that see it.
#[test]
fn writes_inside_are_not_recorded_one_by_one() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    engine.connection().execute_batch("SELECT crsql_begin_alter('main', 'foo'); UPDATE foo SET b = 7").unwrap();
    assert!(!engine.connection().is_autocommit(), "ALT-1: the savepoint stays open");
    engine.connection().execute_batch("SELECT crsql_commit_alter('main', 'foo')").unwrap();
    assert!(engine.connection().is_autocommit());
    check_clocks(&engine, &["1 b 1 1", "1 c 1 1"]);
    assert_eq!(ask::<String>(engine.connection(), "SELECT crsql_begin_alter('FOO')"), "OK");
    assert_eq!(ask::<Option<i64>>(engine.connection(), "SELECT crsql_commit_alter('foo')"), None);
}

/// ALT-3 with its FIX: only the window is undone.
#[test]
fn a_failed_commit_undoes_the_window_and_no_more() {
    let engine = open(&format!("CREATE TABLE mine (x); {FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    let connection = engine.connection();
    for (change, gist) in [
        ("ALTER TABLE foo ADD COLUMN d NOT NULL DEFAULT 1; CREATE UNIQUE INDEX u ON foo (d)", "unique indices besides"),
        ("DROP TABLE foo", "does not exist"),
        ("DROP TABLE foo; CREATE VIEW foo AS SELECT 1", "view or a virtual table"),
        ("DROP TABLE foo; CREATE TABLE foo (a, b, c)", "no primary key or primary key is nullable"),
        ("ALTER TABLE foo ADD COLUMN \"-1\"", "a column named -1"),
        // The shadow table cannot be made again.
        (
            "DROP TABLE foo__crsql_pks; CREATE VIEW foo__crsql_pks AS SELECT 1 AS a; DROP TABLE foo__crsql_clock",
            "foo__crsql_pks",
        ),
    ] {
        connection.execute_batch("BEGIN; INSERT INTO mine VALUES (1); SELECT crsql_begin_alter('foo')").unwrap();
        connection.execute_batch(change).unwrap_or_else(|error| panic!("{change}: {error}"));
        let message = refusal(connection, "SELECT crsql_commit_alter('foo')");
        assert!(message.contains("failed compacting tables post alteration"), "{change}: {message}");
        assert!(message.contains(gist), "{change}: {message}");
        assert!(!connection.is_autocommit(), "{change}");
        assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM mine"), 1, "{change}");
        check_changes(&engine, &["010901 b 2 1 1 1", "010901 c 3 1 1 1"]);
        check_consistent(&engine, "foo");
        // The window is closed.
        let message = refusal(connection, "SELECT crsql_commit_alter('foo')");
        assert!(message.contains("no crsql_begin_alter('foo')"), "{message}");
        connection.execute_batch("ROLLBACK").unwrap();
    }
    // Without a transaction of the caller nothing stays open.
    connection.execute_batch("SELECT crsql_begin_alter('foo'); DROP TABLE foo").unwrap();
    refusal(connection, "SELECT crsql_commit_alter('foo')");
    assert!(connection.is_autocommit());
    check_consistent(&engine, "foo");
}

/// A window is closed by whatever ends its savepoint.
#[test]
fn a_commit_without_begin_is_told() {
    let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    let connection = engine.connection();
    for (open, end) in [
        ("SELECT 1", "SELECT 1"),
        ("BEGIN; SELECT crsql_begin_alter('foo'); ROLLBACK", "SELECT 1"),
        ("SAVEPOINT s; SELECT crsql_begin_alter('foo'); ROLLBACK TO s", "RELEASE s"),
        ("SELECT crsql_begin_alter('foo'); ROLLBACK TO alter_crr; RELEASE alter_crr", "SELECT 1"),
        ("BEGIN; SELECT crsql_begin_alter('other')", "ROLLBACK"),
    ] {
        connection.execute_batch(open).unwrap();
        let message = refusal(connection, "SELECT crsql_commit_alter('foo')");
        assert!(message.contains("there is no crsql_begin_alter('foo')"), "{open}: {message}");
        connection.execute_batch(end).unwrap();
        assert!(connection.is_autocommit(), "{open}");
        check_consistent(&engine, "foo");
        check_changes(&engine, &["010901 b 2 1 1 1", "010901 c 3 1 1 1"]);
    }
    // Committed inside: the triggers are gone, and the message says what makes them again.
    connection.execute_batch("SELECT crsql_begin_alter('foo'); UPDATE foo SET b = 5; COMMIT").unwrap();
    let message = refusal(connection, "SELECT crsql_commit_alter('foo')");
    assert!(message.contains("crsql_as_crr('foo')"), "{message}");
    connection.execute_batch("SELECT crsql_as_crr('foo')").unwrap();
    check_consistent(&engine, "foo");
}

#[test]
fn windows_nest() {
    let engine = open(&format!(
        "{FOO} CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar');
         INSERT INTO foo VALUES (1, 2, 3); INSERT INTO bar VALUES (1, 2)"
    ));
    for (first, second) in [("foo", "bar"), ("bar", "foo")] {
        engine
            .connection()
            .execute_batch(&format!(
                "SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN {first}; SELECT crsql_begin_alter('bar');
                 ALTER TABLE bar ADD COLUMN {first}; SELECT crsql_commit_alter('{first}'); SELECT crsql_commit_alter('{second}')"
            ))
            .unwrap();
        assert!(engine.connection().is_autocommit());
        check_consistent(&engine, "foo");
        check_consistent(&engine, "bar");
    }
    // One that fails takes those inside of it along.
    engine
        .connection()
        .execute_batch(
            "BEGIN; SELECT crsql_begin_alter('foo'); SELECT crsql_begin_alter('bar'); ALTER TABLE bar ADD COLUMN x; DROP TABLE foo",
        )
        .unwrap();
    refusal(engine.connection(), "SELECT crsql_commit_alter('foo')");
    assert!(refusal(engine.connection(), "SELECT crsql_commit_alter('bar')").contains("no crsql_begin_alter"));
    engine.connection().execute_batch("COMMIT").unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM pragma_table_info('bar') WHERE name = 'x'"), 0);
    check_consistent(&engine, "foo");
    check_consistent(&engine, "bar");
}

/// ALT-1 works on any name; a table can be made inside.
#[test]
fn a_table_made_inside_replicates() {
    let engine = open("SELECT 1");
    alter(&engine, "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); INSERT INTO foo VALUES (1, 2)");
    check_changes(&engine, &["010901 b 2 1 0 1"]);
    check_consistent(&engine, "foo");
}

/// ALT-6: the third argument of the fork.
#[test]
fn nothing_is_compacted_where_the_caller_says_so() {
    for commit in ["('foo', 1)", "('main', 'foo', 1)"] {
        let engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
        let connection = engine.connection();
        connection
            .execute_batch(&format!(
                "SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN d; UPDATE foo SET d = 4; SELECT crsql_commit_alter{commit}"
            ))
            .unwrap();
        check_clocks(&engine, &["1 b 1 1", "1 c 1 1"]);
        connection.execute_batch("UPDATE foo SET d = 5").unwrap();
        check_clocks(&engine, &["1 b 1 1", "1 c 1 1", "1 d 1 2"]);
        connection.execute_batch("SELECT crsql_begin_alter('foo'); ALTER TABLE foo RENAME COLUMN a TO id").unwrap();
        let message = refusal(connection, &format!("SELECT crsql_commit_alter{commit}"));
        assert!(message.contains("its primary key changed"), "{message}");
        check_consistent(&engine, "foo");
    }
}

/// A table that lost its triggers past the alter functions keeps the history of the rows that it still has.
#[test]
fn as_crr_takes_up_a_history_that_is_there() {
    let engine = open(&format!(
        "{FOO} INSERT INTO foo VALUES (1, 2, 3), (4, 5, 6), (7, 8, 9); UPDATE foo SET b = 0; DELETE FROM foo WHERE a = 7"
    ));
    engine
        .connection()
        .execute_batch(
            "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, d DEFAULT 1); INSERT INTO new SELECT a, b, 1 FROM foo WHERE a = 1;
             INSERT INTO new VALUES (10, 11, 12); DROP TABLE foo; ALTER TABLE new RENAME TO foo; SELECT crsql_as_crr('foo')",
        )
        .unwrap();
    check_changes(&engine, &["010901 b 0 2 2 1", "010907 -1 NULL 2 3 2", "01090A b 11 1 4 1", "01090A d 12 1 4 1"]);
    check_consistent(&engine, "foo");
}

#[test]
fn the_native_form_cannot_be_left_half_open() {
    let mut engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    let count = engine
        .alter("foo", |connection| {
            connection.execute_batch("ALTER TABLE foo ADD COLUMN d")?;
            connection.execute("UPDATE foo SET d = 4", [])
        })
        .unwrap();
    assert_eq!(count, 1);
    check_clocks(&engine, &["1 b 1 1", "1 c 1 1", "1 d 1 1"]);
    // An error inside.
    let error = engine
        .alter("foo", |connection| connection.execute_batch("ALTER TABLE foo DROP COLUMN d; SELECT * FROM nothing"));
    assert!(matches!(error, Err(AlterError::Storage(_))), "{error:?}");
    assert!(engine.connection().is_autocommit());
    check_clocks(&engine, &["1 b 1 1", "1 c 1 1", "1 d 1 1"]);
    // A panic inside.
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        engine.alter("foo", |connection| -> litemesh_engine::rusqlite::Result<()> {
            connection.execute_batch("ALTER TABLE foo DROP COLUMN d")?;
            panic!("as a test")
        })
    }));
    assert!(panicked.is_err() && engine.connection().is_autocommit());
    // A table that cannot replicate any more.
    let error = engine.alter("foo", |connection| connection.execute_batch("DROP TABLE foo; CREATE TABLE foo (a)"));
    assert!(matches!(error, Err(AlterError::Refused { source: ReplicateError::NoPrimaryKey { .. }, .. })), "{error:?}");
    check_clocks(&engine, &["1 b 1 1", "1 c 1 1", "1 d 1 1"]);
    check_consistent(&engine, "foo");
    // The transaction is the caller's, and so is its end.
    engine.connection().execute_batch("BEGIN; UPDATE foo SET b = 9").unwrap();
    engine.alter("foo", |_| Ok(())).unwrap();
    engine.alter("foo", |connection| connection.execute_batch("SELECT * FROM nothing")).unwrap_err();
    assert!(!engine.connection().is_autocommit());
    engine.connection().execute_batch("COMMIT").unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT b FROM foo"), 9);
    // A commit inside ends the window.
    let error = engine.alter("foo", |connection| connection.execute_batch("COMMIT"));
    assert!(matches!(error, Err(AlterError::NotBegun { .. })), "{error:?}");
    engine.replicate("foo").unwrap();
    check_consistent(&engine, "foo");
}

/// `known-failures.md` B20: where there is nothing left to roll back, the original says so, and not what went wrong before.
#[test]
fn the_error_that_ended_the_transaction_is_the_one_that_is_told() {
    for begin in ["", "BEGIN"] {
        let mut engine = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
        engine.connection().execute_batch(begin).unwrap();
        let failed = engine.alter("foo", |connection| {
            connection.execute_batch("ALTER TABLE foo ADD COLUMN d; ROLLBACK; SELECT * FROM absent")
        });
        let error = failed.unwrap_err();
        assert!(
            matches!(&error, AlterError::Storage(error) if error.to_string().contains("no such table: absent")),
            "{error:?}"
        );
        assert!(engine.connection().is_autocommit());
        check_consistent(&engine, "foo");
    }
    // A merge, which a trigger of the application rolls back.
    let author = open(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)"));
    let mut engine = open(FOO);
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON foo BEGIN SELECT RAISE(ROLLBACK, 'no such rows here'); END";
    engine.connection().execute_batch(refuse).unwrap();
    let failed = engine.merge(&dump(&author), &litemesh_engine::MergeProgress::default()).unwrap_err();
    assert!(format!("{failed} {failed:?}").contains("no such rows here"), "{failed:?}");
    assert!(engine.connection().is_autocommit());
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM foo"), 0);
    check_consistent(&engine, "foo");
}

/// Another connection goes on writing meanwhile, and the alter waits for it instead of failing.
#[test]
fn an_alter_waits_for_writers_and_is_seen_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let mut engine = Engine::open(&path).unwrap();
    engine.connection().execute_batch(&format!("{FOO} INSERT INTO foo VALUES (1, 2, 3)")).unwrap();
    let other = Engine::open(&path).unwrap();
    let mut insert = other.connection().prepare("INSERT INTO foo (a, b) VALUES (?1, 1)").unwrap();
    insert.execute([2]).unwrap();
    engine.alter("foo", |connection| connection.execute_batch("ALTER TABLE foo ADD COLUMN d")).unwrap();
    insert.execute([3]).unwrap();
    other.connection().execute_batch("UPDATE foo SET d = 4 WHERE a = 1").unwrap();
    check_clocks(&engine, &["1 b 1 1", "1 c 1 1", "1 d 1 4", "2 b 1 2", "2 c 1 2", "3 b 1 3", "3 c 1 3", "3 d 1 3"]);
    check_consistent(&engine, "foo");
}
