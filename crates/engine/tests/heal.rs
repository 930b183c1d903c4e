//! DDL past the alter functions (ALT-7, BUG-1, BUG-2, FN-8): replication goes on, and what was left behind is mended.

mod support;

use std::path::Path;

use litemesh_engine::rusqlite::{Connection, OpenFlags};
use litemesh_engine::{Engine, MergeProgress};
use support::{ask, dump, merge, refusal, select_changes};

fn open(sql: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(sql).unwrap();
    engine
}

fn at(path: &Path, sql: &str) -> Engine {
    let engine = Engine::open(path).unwrap();
    engine.connection().execute_batch(sql).unwrap();
    engine
}

const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');";
const ROWS: &str = "INSERT INTO foo VALUES (1, 1); INSERT INTO foo VALUES (2, 2); UPDATE foo SET b = 3 WHERE a = 2;";

/// `cid val col_version db_version` of one row, by column.
fn changes(engine: &Engine, key: u8) -> Vec<String> {
    let rest = format!("WHERE pk = x'0109{key:02x}' ORDER BY cid");
    let line = |change: &litemesh_engine::proto::Change| {
        let (column, value) = (change.column.as_str().to_owned(), format!("{:?}", change.value));
        format!("{column} {value} {} {}", change.col_version.get(), change.db_version.get())
    };
    select_changes(engine.connection(), &rest).iter().map(line).collect()
}

/// Everything of the engine's that is named after tables.
fn shadows(engine: &Engine) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_master WHERE name LIKE '%\\_\\_crsql\\_%' ESCAPE '\\' ORDER BY name";
    let mut statement = engine.connection().prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn shadows_of(tables: &[&str]) -> Vec<String> {
    let suffixes = ["clock", "clock_dbv_idx", "dtrig", "itrig", "pks", "pks_pks", "utrig"];
    let names = tables.iter().flat_map(|table| suffixes.map(|suffix| format!("{table}__crsql_{suffix}")));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Whether the update trigger passes a column.
fn passes(engine: &Engine, column: &str) -> bool {
    let sql: String =
        ask(engine.connection(), "SELECT sql FROM sqlite_master WHERE name LIKE '%\\_\\_crsql\\_utrig' ESCAPE '\\'");
    sql.contains(&format!("NEW.\"{column}\""))
}

/// FN-8: an UPDATE right after ADD COLUMN is recorded, the added columns included; and the triggers are mended by then.
#[test]
fn updates_right_after_add_column_are_recorded() {
    let engine =
        open(&format!("{FOO} {ROWS} ALTER TABLE foo ADD COLUMN c; ALTER TABLE foo ADD COLUMN d TEXT DEFAULT 5"));
    assert!(!passes(&engine, "c"));
    engine.connection().execute_batch("UPDATE foo SET c = 7 WHERE a = 1").unwrap();
    assert_eq!(changes(&engine, 1), ["b 1 1 1", "c 7 1 4"]);
    assert!(passes(&engine, "c") && passes(&engine, "d"), "mended when the transaction ended");
    assert_eq!(shadows(&engine), shadows_of(&["foo"]));
    // From here on the old values are known again.
    engine.connection().execute_batch("UPDATE foo SET b = 8, c = c WHERE a = 1; UPDATE foo SET d = 9").unwrap();
    assert_eq!(changes(&engine, 1), ["b 8 2 5", "c 7 1 4", "d \"9\" 1 6"]);
}

#[test]
fn nothing_is_recorded_for_defaults_of_added_columns() {
    let engine =
        open(&format!("{FOO} {ROWS} BEGIN; ALTER TABLE foo ADD COLUMN c; ALTER TABLE foo ADD COLUMN d TEXT DEFAULT 5"));
    let connection = engine.connection();
    connection.execute_batch("UPDATE foo SET b = b; UPDATE foo SET c = NULL, d = '5'").unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT crsql_next_db_version()"), 4, "VER-6");
    connection.execute_batch("UPDATE foo SET b = 5 WHERE a = 1").unwrap();
    assert_eq!(changes(&engine, 1), ["b 5 2 4"]);
    connection.execute_batch("UPDATE foo SET a = 9 WHERE a = 1; COMMIT").unwrap();
    let moved = changes(&engine, 9);
    assert_eq!(moved.len(), 4, "LW-6: every cell moves: {moved:?}");
    assert!(passes(&engine, "d"));
}

/// Writes of every kind go on, in one transaction with the change and in the next.
#[test]
fn add_column_interrupts_nothing() {
    for (begin, end) in [("SELECT 1", "SELECT 1"), ("BEGIN", "COMMIT"), ("SAVEPOINT s", "RELEASE s")] {
        let mut engine = open(&format!("{FOO} {ROWS}"));
        let mut other = open("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo')");
        other.connection().execute_batch("INSERT INTO foo VALUES (5, 5, 5)").unwrap();
        engine
            .connection()
            .execute_batch(&format!(
                "{begin}; ALTER TABLE foo ADD COLUMN c; INSERT INTO foo VALUES (3, 3, 3); UPDATE foo SET c = 4 WHERE a = 3;
                 REPLACE INTO foo VALUES (2, 2, 2); INSERT INTO foo VALUES (1, 9, 9) ON CONFLICT (a) DO UPDATE SET c = excluded.c;
                 DELETE FROM foo WHERE a = 3; UPDATE foo SET a = 7 WHERE a = 2; {end}"
            ))
            .unwrap();
        assert!(passes(&engine, "c"), "{begin}");
        merge(&mut other, &dump(&engine));
        merge(&mut engine, &dump(&other));
        let rows =
            "SELECT group_concat(a || coalesce(b, '-') || coalesce(c, '-'), ' ') FROM (SELECT * FROM foo ORDER BY a)";
        assert_eq!(ask::<String>(engine.connection(), rows), "119 555 722", "{begin}");
        assert_eq!(ask::<String>(other.connection(), rows), "119 555 722", "{begin}");
    }
}

/// TX-10: in the middle of a transaction that has written, too, and whatever statements stand between.
#[test]
fn a_change_after_writes_of_the_same_transaction_is_seen() {
    for (before, ddl, after, expected) in [
        (
            "INSERT INTO foo VALUES (5, 5)",
            "ALTER TABLE foo ADD COLUMN c",
            "UPDATE foo SET c = 7 WHERE a = 5",
            "c 7 1 4",
        ),
        (
            "INSERT INTO foo VALUES (5, 5)",
            "ALTER TABLE foo ADD COLUMN c",
            "INSERT INTO foo VALUES (6, 6, 6)",
            "c 6 1 4",
        ),
        (
            "UPDATE foo SET b = 8 WHERE a = 1",
            "ALTER TABLE foo ADD COLUMN c DEFAULT 5",
            "UPDATE foo SET c = 7 WHERE a = 1",
            "c 7 1 4",
        ),
        ("DELETE FROM foo WHERE a = 1", "ALTER TABLE foo RENAME TO bar", "INSERT INTO bar VALUES (6, 6)", "b 6 1 4"),
        (
            "DELETE FROM foo WHERE a = 1",
            "CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, c); SELECT crsql_as_crr('new')",
            "INSERT INTO new VALUES (6, 6)",
            "c 6 1 4",
        ),
        (
            "INSERT INTO foo VALUES (5, 5)",
            "DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, c); SELECT crsql_as_crr('foo')",
            "INSERT INTO foo VALUES (6, 6)",
            "c 6 1 4",
        ),
    ] {
        let engine = open(&format!("{FOO} {ROWS}"));
        engine.connection().execute_batch(&format!("BEGIN; {before}; {ddl}; {after}; COMMIT")).unwrap();
        let found = [changes(&engine, 5), changes(&engine, 6), changes(&engine, 1)].concat();
        assert!(found.iter().any(|change| change == expected), "{ddl}; {after}: {found:?}");
    }
}

/// A statement that was prepared before goes on, and so do readers that are in the middle of a table.
#[test]
fn mending_disturbs_no_statement() {
    let engine = open(&format!("{FOO} {ROWS}"));
    let connection = engine.connection();
    let mut update = connection.prepare("UPDATE foo SET b = b + 1 WHERE a = ?1").unwrap();
    let mut select = connection.prepare("SELECT a FROM foo").unwrap();
    let mut rows = select.query([]).unwrap();
    assert_eq!(rows.next().unwrap().unwrap().get::<_, i64>(0).unwrap(), 1);
    connection.execute_batch("ALTER TABLE foo ADD COLUMN c").unwrap();
    update.execute([1]).unwrap();
    assert!(passes(&engine, "c"));
    update.execute([2]).unwrap();
    assert_eq!(rows.next().unwrap().unwrap().get::<_, i64>(0).unwrap(), 2);
    assert!(rows.next().unwrap().is_none());
    assert_eq!(ask::<i64>(connection, "SELECT sum(b) FROM foo"), 6);
    assert_eq!(changes(&engine, 1), ["b 2 2 4"]);
    // A user's own triggers run in the same statements.
    connection
        .execute_batch(
            "CREATE TABLE log (x); CREATE TRIGGER log_foo AFTER UPDATE ON foo BEGIN INSERT INTO log VALUES (NEW.b);
             UPDATE foo SET b = 100 WHERE a = NEW.a AND b < 100; END; ALTER TABLE foo ADD COLUMN d;
             UPDATE foo SET b = 50, d = 1",
        )
        .unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM log"), 2);
    assert!(passes(&engine, "d"));
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM crsql_changes WHERE cid = 'd'"), 2);
}

/// A table of keys alone had an update trigger without cells.
#[test]
fn the_first_column_can_be_added() {
    let engine = open(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1)",
    );
    engine.connection().execute_batch("ALTER TABLE foo ADD COLUMN b; UPDATE foo SET b = 5").unwrap();
    assert_eq!(changes(&engine, 1), ["-1 NULL 1 1", "b 5 1 2"]);
    assert!(passes(&engine, "b"));
}

/// The same for a table whose update trigger packs its values, and for one that only now becomes so wide.
#[test]
fn columns_can_be_added_to_wide_tables() {
    for count in [61, 62, 100] {
        let cells: String = (0..count).map(|n| format!(", c{n}")).collect();
        let engine = open(&format!(
            "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL{cells}); SELECT crsql_as_crr('foo'); INSERT INTO foo (a) VALUES (1);
             ALTER TABLE foo ADD COLUMN d; ALTER TABLE foo ADD COLUMN e; UPDATE foo SET d = 5, c7 = 8"
        ));
        let changed = select_changes(engine.connection(), "WHERE db_version = 2 ORDER BY cid");
        let columns: Vec<_> = changed.iter().map(|change| change.column.as_str()).collect();
        assert_eq!(columns, ["c7", "d"], "{count}");
        assert!(passes(&engine, "e"), "{count}");
    }
}

/// RENAME TABLE: triggers and shadow tables keep the old name until somebody mends them. Reads, writes and merges go on.
#[test]
fn a_renamed_table_goes_on_replicating() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let mut engine = at(&path, &format!("{FOO} {ROWS} ALTER TABLE foo RENAME TO bar"));
    assert_eq!(engine.tables().unwrap(), ["bar".into()]);
    engine
        .connection()
        .execute_batch("INSERT INTO bar VALUES (3, 3); UPDATE bar SET b = 9 WHERE a = 1; DELETE FROM bar WHERE a = 2")
        .unwrap();
    let changed = |engine: &Engine| {
        dump(engine).iter().map(|c| format!("{} {}", c.table, support::identity(c))).collect::<Vec<_>>()
    };
    let before = changed(&engine);
    assert_eq!(before.len(), 3);
    assert!(before.iter().all(|change| change.starts_with("bar ")), "{before:?}");
    // Also where nobody may mend anything.
    let reader = Engine::attach(Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()).unwrap();
    assert_eq!(changed(&reader), before);
    drop(reader);
    assert_eq!(shadows(&engine), shadows_of(&["foo"]));
    let other = open(
        "CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar'); INSERT INTO bar VALUES (4, 4)",
    );
    merge(&mut engine, &dump(&other));
    assert_eq!(shadows(&engine), shadows_of(&["bar"]), "a merge mends");
    assert_eq!(ask::<i64>(engine.connection(), "SELECT sum(a) FROM bar"), 8);
    engine.connection().execute_batch("UPDATE bar SET b = 10 WHERE a = 4").unwrap();
    assert_eq!(dump(&engine).len(), 4);
    assert_eq!(engine.db_version().unwrap().get(), 8);
    // Another way to mend is to open the file.
    engine.connection().execute_batch("ALTER TABLE bar RENAME TO baz").unwrap();
    drop(engine);
    let engine = Engine::open(&path).unwrap();
    assert_eq!(shadows(&engine), shadows_of(&["baz"]));
    // And another to call a function with the name.
    engine.connection().execute_batch("ALTER TABLE baz RENAME TO \"it's\"; SELECT crsql_as_crr('IT''S')").unwrap();
    assert_eq!(shadows(&engine), shadows_of(&["it's"]));
    engine.connection().execute_batch("UPDATE \"it's\" SET b = 11").unwrap();
    assert_eq!(dump(&engine).len(), 4);
}

/// Names that go round in a circle, with a column added on the way.
#[test]
fn tables_can_swap_their_names() {
    let engine = open(&format!(
        "{FOO} {ROWS} CREATE TABLE bar (x INTEGER PRIMARY KEY NOT NULL, y); SELECT crsql_as_crr('bar'); INSERT INTO bar VALUES (7, 7);
         ALTER TABLE foo RENAME TO temporary_; ALTER TABLE bar RENAME TO foo; ALTER TABLE temporary_ RENAME TO bar;
         ALTER TABLE bar ADD COLUMN c"
    ));
    let check = |engine: &Engine, what: &str| {
        let found = select_changes(engine.connection(), "");
        let tables: Vec<_> = found.iter().map(|change| (&*change.table, change.column.as_str())).collect();
        assert_eq!(tables, [("bar", "b"), ("bar", "b"), ("foo", "y")], "{what}");
    };
    check(&engine, "before");
    engine.connection().execute_batch("INSERT INTO bar VALUES (3, 3, 3); DELETE FROM bar WHERE a = 3").unwrap();
    assert!(engine.connection().execute_batch("SELECT crsql_as_crr('foo')").is_ok());
    let names = shadows(&engine);
    assert_eq!(names, shadows_of(&["bar", "foo"]));
    engine.connection().execute_batch("UPDATE bar SET c = 5 WHERE a = 1; UPDATE foo SET y = 8").unwrap();
    assert_eq!(
        ask::<i64>(engine.connection(), "SELECT count(*) FROM crsql_changes WHERE \"table\" = 'bar' AND cid = 'c'"),
        1
    );
    assert_eq!(ask::<i64>(engine.connection(), "SELECT val FROM crsql_changes WHERE \"table\" = 'foo'"), 8);
}

/// A new table of the old name has nothing to do with the clocks of the renamed one.
#[test]
fn the_old_name_can_be_used_again() {
    for replicate in ["", "SELECT crsql_as_crr('foo');"] {
        let engine = open(&format!(
            "{FOO} {ROWS} ALTER TABLE foo RENAME TO bar; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, z); {replicate}
             INSERT INTO foo VALUES (1, 1); INSERT INTO bar VALUES (3, 3); UPDATE bar SET b = 4 WHERE a = 3"
        ));
        let count = |table: &str| {
            ask::<i64>(engine.connection(), &format!("SELECT count(*) FROM crsql_changes WHERE \"table\" = '{table}'"))
        };
        assert_eq!((count("bar"), count("foo")), (3, i64::from(!replicate.is_empty())));
    }
}

/// BUG-1: what a dropped table leaves is removed, and the version stays (VER-7).
#[test]
fn a_dropped_table_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let mut engine = at(
        &path,
        &format!(
            "CREATE TABLE kept (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('kept'); {FOO} {ROWS} DROP TABLE foo"
        ),
    );
    assert_eq!(engine.db_version().unwrap().get(), 3);
    assert!(engine.tables().unwrap() == ["kept".into()] && dump(&engine).is_empty());
    let other = open(
        "CREATE TABLE kept (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('kept'); INSERT INTO kept VALUES (1, 1)",
    );
    merge(&mut engine, &dump(&other));
    assert_eq!(shadows(&engine), shadows_of(&["kept"]));
    assert_eq!(engine.db_version().unwrap().get(), 4);
    engine.connection().execute_batch("DROP TABLE kept").unwrap();
    drop(engine);
    let engine = Engine::open(&path).unwrap();
    assert!(shadows(&engine).is_empty());
    assert_eq!(engine.db_version().unwrap().get(), 4);
    engine.connection().execute_batch(&format!("{FOO} INSERT INTO foo VALUES (1, 1)")).unwrap();
    assert_eq!(changes(&engine, 1), ["b 1 1 5"], "nothing of the old history is left");
}

/// Made anew before anybody could mend it, a table is an ordinary one until it is told otherwise.
#[test]
fn a_table_made_anew_begins_as_an_ordinary_one() {
    let mut engine = open(&format!(
        "{FOO} {ROWS} DELETE FROM foo WHERE a = 2; DROP TABLE foo; CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b);
         INSERT INTO foo VALUES (5, 5)"
    ));
    assert!(engine.tables().unwrap().is_empty() && dump(&engine).is_empty());
    let stray = open(&format!("{FOO} INSERT INTO foo VALUES (6, 6)"));
    let refused = engine.merge(&dump(&stray), &MergeProgress::default()).unwrap_err();
    assert!(refused.is_content(), "{refused}");
    // Told so, it goes on with the tombstones that there were, and forgets the rows that went with the table.
    engine.replicate("foo").unwrap();
    assert_eq!(changes(&engine, 1), [""; 0]);
    assert_eq!(changes(&engine, 2), ["-1 NULL 2 4"]);
    assert_eq!(changes(&engine, 5), ["b 5 1 5"]);
}

/// BUG-2 and VT-5: a column that was renamed is a new one, whose old clocks are skipped; a window with nothing inside puts
/// them right.
#[test]
fn a_renamed_column_is_skipped_until_it_is_put_right() {
    let mut engine = open(&format!("{FOO} {ROWS} ALTER TABLE foo RENAME COLUMN b TO c"));
    assert!(select_changes(engine.connection(), "").is_empty() && dump(&engine).is_empty());
    engine.connection().execute_batch("UPDATE foo SET c = 9 WHERE a = 2; INSERT INTO foo VALUES (3, 3)").unwrap();
    assert_eq!(changes(&engine, 2), ["c 9 1 4"]);
    engine.alter("foo", |_| Ok(())).unwrap();
    assert_eq!(changes(&engine, 1), ["c 1 1 5"]);
    assert_eq!(changes(&engine, 2), ["c 9 1 4"]);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM foo__crsql_clock WHERE col_name = 'b'"), 0);
}

/// A renamed key column: writes say what to do, everything else is skipped, and no history is lost.
#[test]
fn renamed_key_columns_keep_their_history() {
    let create = "CREATE TABLE foo (a NOT NULL, k NOT NULL, b, PRIMARY KEY (k, a)); SELECT crsql_as_crr('foo');
                  INSERT INTO foo VALUES (1, 2, 3); UPDATE foo SET b = 4; CREATE TABLE other (a PRIMARY KEY NOT NULL, b);
                  SELECT crsql_as_crr('other'); INSERT INTO other VALUES (1, 1);";
    let rename = "ALTER TABLE foo RENAME COLUMN a TO id; ALTER TABLE foo RENAME COLUMN k TO key;";
    let history = |engine: &Engine| {
        let found = select_changes(engine.connection(), "WHERE \"table\" = 'foo'");
        found
            .iter()
            .map(|change| (const_hex::encode(change.key.as_bytes()), change.col_version.get()))
            .collect::<Vec<_>>()
    };
    let engine = open(&format!("{create} {rename}"));
    assert_eq!(select_changes(engine.connection(), "").len(), 1, "one table does not poison the others");
    let message = refusal(engine.connection(), "INSERT INTO foo VALUES (5, 6, 7)");
    assert!(message.contains("crsql_as_crr('foo')"), "{message}");
    engine.connection().execute_batch("SELECT crsql_as_crr('foo'); UPDATE foo SET b = 5").unwrap();
    assert_eq!(history(&engine), [("0209020901".to_owned(), 3)]);
    // By a merge.
    let mut engine = open(&format!("{create} {rename}"));
    let other = open(
        "CREATE TABLE other (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('other'); INSERT INTO other VALUES (2, 2)",
    );
    merge(&mut engine, &dump(&other));
    engine.connection().execute_batch("UPDATE foo SET b = 5").unwrap();
    assert_eq!(history(&engine), [("0209020901".to_owned(), 3)]);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT key * 10 + id FROM foo__crsql_pks"), 21);
    // Begin and commit, too.
    let mut engine = open(&format!("{create} {rename}"));
    engine.alter("foo", |connection| connection.execute_batch("ALTER TABLE foo ADD COLUMN c")).unwrap();
    assert_eq!(history(&engine), [("0209020901".to_owned(), 2)]);
}

/// Turned off, nothing is mended, unless a function names the table; and replication goes on all the same.
#[test]
fn mending_can_be_turned_off() {
    let mut engine =
        open(&format!("{FOO} {ROWS} CREATE TABLE gone (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('gone')"));
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_config_get('self-heal')"), 1);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_config_set('self-heal', 0)"), 0);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_config_get('self-heal')"), 0);
    assert_eq!(
        ask::<i64>(engine.connection(), "SELECT count(*) FROM crsql_master WHERE key LIKE 'config.%'"),
        0,
        "CRSqlite reads these"
    );
    engine
        .connection()
        .execute_batch("DROP TABLE gone; ALTER TABLE foo RENAME TO bar; ALTER TABLE bar ADD COLUMN c")
        .unwrap();
    let before = shadows(&engine);
    engine.connection().execute_batch("UPDATE bar SET c = 5 WHERE a = 1; UPDATE bar SET c = 6 WHERE a = 1").unwrap();
    let other = open(
        "CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('bar'); INSERT INTO bar VALUES (4, 4, 4)",
    );
    merge(&mut engine, &dump(&other));
    assert_eq!(changes(&engine, 1), ["b 1 1 1", "c 6 2 5"]);
    assert_eq!(shadows(&engine), before);
    assert!(!passes(&engine, "c"));
    engine.connection().execute_batch("SELECT crsql_as_crr('bar')").unwrap();
    let mut expected = shadows_of(&["bar", "gone"]);
    expected.retain(|name| !(name.starts_with("gone") && name.ends_with("trig")));
    assert_eq!(shadows(&engine), expected);
    engine.connection().execute_batch("SELECT crsql_config_set('self-heal', 1)").unwrap();
    merge(&mut engine, &dump(&other));
    assert_eq!(shadows(&engine), shadows_of(&["bar"]));
}

/// What is in a window is on its way to something else.
#[test]
fn nothing_is_mended_inside_of_a_window() {
    let engine =
        open(&format!("{FOO} {ROWS} CREATE TABLE bar (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar')"));
    engine
        .connection()
        .execute_batch(
            "SELECT crsql_begin_alter('foo'); CREATE TABLE new (a INTEGER PRIMARY KEY NOT NULL, b, c);
             INSERT INTO new SELECT a, b, NULL FROM foo; DROP TABLE foo; INSERT INTO bar VALUES (1, 1); SELECT crsql_as_crr('bar');
             CREATE TABLE late (a PRIMARY KEY NOT NULL); SELECT crsql_as_crr('late'); SELECT crsql_as_table('late');
             ALTER TABLE new RENAME TO foo; SELECT crsql_commit_alter('foo')",
        )
        .unwrap();
    assert_eq!(changes(&engine, 2), ["b 3 2 3"]);
    // A table that is renamed inside takes its history along.
    for commit in ["foo", "renamed"] {
        let engine = open(&format!("{FOO} {ROWS}"));
        let sql = format!(
            "SELECT crsql_begin_alter('foo'); ALTER TABLE foo RENAME TO renamed; SELECT crsql_commit_alter('{commit}')"
        );
        match engine.connection().execute_batch(&sql) {
            Ok(()) => {
                assert_eq!(commit, "renamed");
                assert_eq!(changes(&engine, 2), ["b 3 2 3"]);
                assert_eq!(shadows(&engine), shadows_of(&["renamed"]));
            }
            Err(error) => {
                assert_eq!(commit, "foo", "{error}");
                assert_eq!(shadows(&engine), shadows_of(&["foo"]));
            }
        }
    }
}

/// CRR-8: triggers that pass the name in another case, as CRSqlite leaves them after a second `crsql_as_crr`.
#[test]
fn triggers_of_another_case_are_understood() {
    let engine = open(FOO);
    engine
        .connection()
        .execute_batch(
            "DROP TRIGGER foo__crsql_itrig; CREATE TRIGGER FOO__crsql_itrig AFTER INSERT ON FOO WHEN crsql_internal_sync_bit() = 0
             BEGIN VALUES (crsql_after_insert('FOO', NEW.\"a\")); END; INSERT INTO foo VALUES (1, 1)",
        )
        .unwrap();
    assert_eq!(changes(&engine, 1), ["b 1 1 1"]);
}

/// TX-13 and CRR-2: a temporary table hides the one of the main database from names without a schema, not from us.
#[test]
fn a_temporary_table_of_the_same_name_is_another_one() {
    let mut engine =
        open(&format!("{FOO} {ROWS} CREATE TEMP TABLE foo (x, y, z); INSERT INTO temp.foo VALUES (1, 2, 3)"));
    let other = open(&format!("{FOO} INSERT INTO foo VALUES (9, 9)"));
    merge(&mut engine, &dump(&other));
    engine
        .connection()
        .execute_batch("UPDATE main.foo SET b = 7 WHERE a = 9; DELETE FROM main.foo WHERE a = 1")
        .unwrap();
    assert_eq!(changes(&engine, 9), ["b 7 2 5"]);
    assert_eq!(changes(&engine, 1), ["-1 NULL 2 6"]);
    engine
        .connection()
        .execute_batch(
            "SELECT crsql_begin_alter('foo'); ALTER TABLE main.foo ADD COLUMN c; SELECT crsql_commit_alter('foo')",
        )
        .unwrap();
    engine.connection().execute_batch("UPDATE main.foo SET c = 1 WHERE a = 2").unwrap();
    assert_eq!(changes(&engine, 2), ["b 3 2 3", "c 1 1 7"]);
    engine.unreplicate("foo").unwrap();
    assert!(shadows(&engine).is_empty());
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM temp.foo"), 1);
}
