//! What CRSqlite gets wrong (`crsqlite-compat.md` section 16), one test a fault, where no other file names it.
//!
//! Elsewhere: BUG-1 and BUG-2 `heal.rs`, BUG-4 `merge_laws.rs`, BUG-11 `wide.rs`, BUG-16 `merge.rs`, BUG-17 and BUG-18 `check.rs`,
//! BUG-19 `replicate.rs`, BUG-21 and BUG-22 in the extension's tests, BUG-23 `automigrate.rs`, BUG-29 `functions.rs`.

use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::{Engine, MergeProgress, OpenError, ReplicateError};
use rusqlite::Connection;

fn engine(schema: &str, tables: &[&str]) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(schema).unwrap();
    for table in tables {
        engine.replicate(table).unwrap();
    }
    engine
}

fn foo() -> Engine {
    engine("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)", &["foo"])
}

fn ask<T: rusqlite::types::FromSql>(db: &Connection, sql: &str) -> T {
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn change(key: i64, value: i64, db_version: i64, seq: i64) -> Change {
    Change {
        table: "foo".into(),
        key: PackedKey::pack(&[Value::Integer(key)]).unwrap(),
        column: Column::from("b"),
        value: Value::Integer(value),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(db_version),
        site: SiteId::from_bytes([7; 16]),
        causal_length: CausalLength::FIRST,
        seq: Seq::new(seq),
    }
}

/// Copies what one database has after a version to another, by SQL.
fn pull(from: &Connection, to: &Connection, since: i64) {
    let mut select = from.prepare("SELECT * FROM crsql_changes WHERE db_version > ?1").unwrap();
    let mut insert = to.prepare("INSERT INTO crsql_changes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)").unwrap();
    let mut rows = select.query([since]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let values: Vec<rusqlite::types::Value> = (0..9).map(|column| row.get(column).unwrap()).collect();
        insert.execute(rusqlite::params_from_iter(values)).unwrap();
    }
}

#[test]
fn bug_3_a_moved_row_takes_its_values_to_peers_with_cursors() {
    let (a, b) = (foo(), foo());
    a.connection().execute_batch("INSERT INTO foo VALUES (1, 'kept')").unwrap();
    pull(a.connection(), b.connection(), 0);
    let since = a.db_version().unwrap().get();
    a.connection().execute_batch("UPDATE foo SET a = 5").unwrap();
    pull(a.connection(), b.connection(), since);
    assert_eq!(ask::<String>(b.connection(), "SELECT group_concat(a || b) FROM foo"), "5kept");
}

#[test]
fn bug_5_a_merged_transaction_has_one_version_and_its_own_numbers() {
    let mut b = foo();
    b.connection().execute_batch("INSERT INTO foo VALUES (90, 1)").unwrap();
    let changes: Vec<_> = (0..20).map(|n| change(n, n, 5, n)).collect();
    b.merge(&changes, &MergeProgress::default()).unwrap();
    let sql = "SELECT count(DISTINCT db_version) || ' ' || count(DISTINCT seq) FROM crsql_changes
         WHERE site_id IS NOT crsql_site_id()";
    assert_eq!(ask::<String>(b.connection(), sql), "1 20");
    // Another author's transaction gets another version, although its author's number is lower.
    let mut other = change(50, 1, 2, 0);
    other.site = SiteId::from_bytes([8; 16]);
    b.merge(&[other], &MergeProgress::default()).unwrap();
    assert_eq!(ask::<i64>(b.connection(), "SELECT count(DISTINCT db_version) FROM crsql_changes"), 3);
}

/// VER-6 and VER-7.
#[test]
fn bug_6_versions_neither_fall_nor_appear_out_of_nothing() {
    let a = engine(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b)",
        &["foo", "bar"],
    );
    let db = a.connection();
    db.execute_batch("INSERT INTO foo VALUES (1, 1); INSERT INTO bar VALUES (1, 1); UPDATE foo SET b = b").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_db_version()"), 2, "an update of nothing is no version");
    db.execute_batch("SELECT crsql_as_table('bar')").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_db_version()"), 2);
    db.execute_batch("UPDATE foo SET b = 2").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_db_version()"), 3);
}

#[test]
fn bug_7_a_unique_index_that_came_later_is_an_error_and_no_other_row() {
    let mut a = foo();
    a.connection().execute_batch("INSERT INTO foo VALUES (1, 10), (2, 20); CREATE UNIQUE INDEX u ON foo (b)").unwrap();
    let before: String = ask(a.connection(), "SELECT group_concat(a || ':' || b) FROM foo");
    let clocks: i64 = ask(a.connection(), "SELECT count(*) FROM foo__crsql_clock");
    a.merge(&[change(3, 10, 9, 0)], &MergeProgress::default()).unwrap_err();
    let sql = "INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns(3), 'b', 10, 1, 9, x'07', 1, 0)";
    a.connection().execute_batch(sql).unwrap_err();
    assert_eq!(ask::<String>(a.connection(), "SELECT group_concat(a || ':' || b) FROM foo"), before);
    assert_eq!(ask::<i64>(a.connection(), "SELECT count(*) FROM foo__crsql_clock"), clocks);
}

/// Section 2.3.
#[test]
fn bug_8_a_key_of_other_columns_changes_no_row() {
    let a = foo();
    a.connection().execute_batch("INSERT INTO foo VALUES (1, 10)").unwrap();
    for key in ["x'00'", "crsql_pack_columns()", "crsql_pack_columns(1, 2)", "crsql_pack_columns(1) || x'00'"] {
        let sql = format!("INSERT INTO crsql_changes VALUES ('foo', CAST({key} AS BLOB), 'b', 66, 9, 9, x'07', 1, 0)");
        a.connection().execute_batch(&sql).unwrap_err();
        assert_eq!(ask::<String>(a.connection(), "SELECT group_concat(a || ':' || b) FROM foo"), "1:10", "{key}");
    }
}

#[test]
fn bug_9_what_crashed_the_process_is_an_error() {
    let a = foo();
    for sql in [
        "INSERT INTO crsql_changes VALUES ('foo', x'', 'b', 1, 1, 1, x'07', 1, 0)",
        "INSERT INTO crsql_changes VALUES ('foo', NULL, 'b', 1, 1, 1, x'07', 1, 0)",
        "INSERT INTO crsql_changes VALUES ('foo', x'0149010203040506070809', 'b', 1, 1, 1, x'07', 1, 0)",
        "SELECT crsql_as_crr(NULL)",
        "SELECT crsql_fract_key_between('', NULL)",
        "SELECT * FROM crsql_unpack_columns(x'')",
    ] {
        let mut statement = a.connection().prepare(sql).unwrap();
        let mut rows = statement.query([]).unwrap();
        assert!(rows.next().is_err(), "{sql}");
    }
}

#[test]
fn bug_10_more_tables_than_a_compound_select_has_terms() {
    let a = Engine::open_in_memory().unwrap();
    let db = a.connection();
    // SAFETY: the connection is open. SQLite's own limit is 500, and that many tables take their time.
    unsafe { rusqlite::ffi::sqlite3_limit(db.handle(), rusqlite::ffi::SQLITE_LIMIT_COMPOUND_SELECT, 3) };
    for table in 0..8 {
        db.execute_batch(&format!("CREATE TABLE t{table} (a INTEGER PRIMARY KEY NOT NULL, b)")).unwrap();
        a.replicate(&format!("t{table}")).unwrap();
    }
    db.execute_batch("INSERT INTO t0 VALUES (1, 1); INSERT INTO t7 VALUES (1, 1)").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_db_version()"), 2);
    assert_eq!(ask::<String>(db, "SELECT group_concat(\"table\") FROM crsql_changes"), "t0,t7");
}

#[test]
fn bug_12_any_name_works() {
    for name in ["two words", "it's", "say \"so\"", "order", "1st", "100%", "日本"] {
        let (table, column) = (name.replace('"', "\"\""), format!("{name} column").replace('"', "\"\""));
        let schema =
            format!("CREATE TABLE \"{table}\" (\"{table} key\" INTEGER PRIMARY KEY NOT NULL, \"{column}\" TEXT)");
        let (a, b) = (engine(&schema, &[name]), engine(&schema, &[name]));
        let write = format!(
            "INSERT INTO \"{table}\" VALUES (1, 'x'), (2, 'y'); UPDATE \"{table}\" SET \"{column}\" = 'z' WHERE \"{table} key\" = 1;
             DELETE FROM \"{table}\" WHERE \"{table} key\" = 2"
        );
        a.connection().execute_batch(&write).unwrap();
        pull(a.connection(), b.connection(), 0);
        let values: String = ask(b.connection(), &format!("SELECT group_concat(\"{column}\") FROM \"{table}\""));
        assert_eq!(values, "z", "{name}");
    }
}

/// TX-10.
#[test]
fn bug_13_a_table_that_another_connection_made_is_seen_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (reader, writer) = (Engine::open(&path).unwrap(), Engine::open(&path).unwrap());
    assert_eq!(ask::<i64>(reader.connection(), "SELECT count(*) FROM crsql_changes"), 0);
    let create = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (1, 1)";
    writer.connection().execute_batch(create).unwrap();
    assert_eq!(ask::<i64>(reader.connection(), "SELECT count(*) FROM crsql_changes"), 1);
    reader.connection().execute_batch("INSERT INTO foo VALUES (2, 2)").unwrap();
    assert_eq!(ask::<i64>(reader.connection(), "SELECT max(db_version) FROM crsql_changes"), 2);
}

/// TX-4.
#[test]
fn bug_14_a_file_of_0_15_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(
        "CREATE TABLE crsql_master (key TEXT PRIMARY KEY, value ANY);
         INSERT INTO crsql_master VALUES ('crsqlite_version', 150000);
         CREATE TABLE __crsql_siteid (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);
         CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b);
         CREATE TABLE foo__crsql_clock (a INTEGER NOT NULL, __crsql_col_name TEXT NOT NULL, __crsql_col_version INT,
             __crsql_db_version INT, __crsql_site_id INT, __crsql_seq INT, PRIMARY KEY (a, __crsql_col_name))",
    )
    .unwrap();
    drop(old);
    let before = std::fs::read(&path).unwrap();
    let error = Engine::open(&path).err().unwrap();
    assert!(matches!(error, OpenError::ForeignLayout { .. } | OpenError::OldLayout { .. }), "{error}");
    assert!(std::fs::read(&path).unwrap() == before, "not one byte changes");
}

#[test]
fn bug_15_a_key_that_compares_otherwise_is_refused() {
    let a = Engine::open_in_memory().unwrap();
    a.connection().execute_batch("CREATE TABLE foo (a TEXT PRIMARY KEY NOT NULL COLLATE NOCASE, b)").unwrap();
    assert!(matches!(a.replicate("foo"), Err(ReplicateError::KeyCollation { .. })));
}

/// FN-5.
#[test]
fn bug_20_what_was_rolled_back_had_no_impact() {
    let a = foo();
    let db = a.connection();
    let merge = "INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns(1), 'b', 1, 1, 1, x'07', 1, 0)";
    db.execute_batch(&format!("BEGIN; {merge}")).unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_rows_impacted()"), 1);
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_rows_impacted()"), 0);
}

/// CFG-4 and CFG-5.
#[test]
fn bug_24_a_text_setting_is_refused_and_one_that_is_stored_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let a = Engine::open(&path).unwrap();
    a.connection().execute_batch("SELECT crsql_config_set('merge-equal-values', 'yes')").unwrap_err();
    let store = "INSERT OR REPLACE INTO crsql_master VALUES ('config.merge-equal-values', 'yes')";
    a.connection().execute_batch(store).unwrap();
    drop(a);
    let again = Engine::open(&path).unwrap();
    assert_eq!(ask::<i64>(again.connection(), "SELECT crsql_config_get('merge-equal-values')"), 0);
}

/// VT-10.
#[test]
fn bug_25_every_order_is_the_one_that_was_asked_for() {
    let a = foo();
    let db = a.connection();
    db.execute_batch("INSERT INTO foo VALUES (1, 'x'), (2, 'y'); INSERT INTO foo VALUES (3, 'x')").unwrap();
    let order = |by: &str| -> String {
        ask(
            db,
            &format!("SELECT group_concat(v, ' ') FROM (SELECT db_version || '.' || seq AS v FROM crsql_changes {by})"),
        )
    };
    assert_eq!(order("ORDER BY db_version DESC, seq ASC"), "2.0 1.0 1.1");
    assert_eq!(order("ORDER BY db_version ASC, seq DESC"), "1.1 1.0 2.0");
    assert_eq!(order("ORDER BY rowid DESC"), "2.0 1.1 1.0");
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM (SELECT DISTINCT val FROM crsql_changes)"), 2);
    assert_eq!(ask::<i64>(db, "SELECT max(n) FROM (SELECT count(*) n FROM crsql_changes GROUP BY val)"), 2);
}

/// Looking for one row of many tables reads that row: SQLite is told, and counts no more steps than it takes.
#[test]
fn bug_26_table_and_key_are_looked_up_not_scanned() {
    let a = engine(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); CREATE TABLE bar (a TEXT PRIMARY KEY NOT NULL, b)",
        &["foo", "bar"],
    );
    let db = a.connection();
    db.execute_batch(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO foo SELECT i, i FROM n; INSERT INTO bar VALUES ('one', 1)",
    )
    .unwrap();
    let find = "SELECT val FROM crsql_changes WHERE \"table\" = 'foo' AND pk = crsql_pack_columns(77)";
    assert_eq!(ask::<i64>(db, find), 77);
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes WHERE pk = crsql_pack_columns('one')"), 1);
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes WHERE pk = crsql_pack_columns('none')"), 0);
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes WHERE pk = 'text'"), 0);
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes WHERE pk = x'ff'"), 0);
    let plan: String = db.query_row(&format!("EXPLAIN QUERY PLAN {find}"), [], |row| row.get(3)).unwrap();
    assert!(plan.ends_with(":tp") || plan.ends_with(":pt"), "both are pushed down: {plan}");
}

/// VT-12: the documented rowid, one for all cells of a row.
#[test]
fn bug_27_rowids_are_by_row_as_documented() {
    let a = engine("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c)", &["foo"]);
    a.connection().execute_batch("INSERT INTO foo VALUES (7, 1, 1), (8, 1, 1)").unwrap();
    let rowids: String = ask(a.connection(), "SELECT group_concat(rowid) FROM crsql_changes");
    assert_eq!(rowids, "1,1,2,2");
}

#[test]
fn bug_28_match_is_not_taken_and_patterns_filter() {
    let a = foo();
    let db = a.connection();
    db.execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
    let error = db.query_row("SELECT 1 FROM crsql_changes WHERE cid MATCH 'b'", [], |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("MATCH"), "SQLite's own error: {error}");
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes WHERE cid LIKE 'B'"), 1);
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes WHERE cid GLOB '[a-c]'"), 1);
}
