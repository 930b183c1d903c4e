//! Large merges: rows updated where they lie, clocks read by walking over them, and our triggers left out. The result is that of
//! merging the changes one by one through `crsql_changes`, and nobody else's trigger is missed.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER;
use litemesh_engine::rusqlite::functions::FunctionFlags;
use litemesh_engine::rusqlite::{Connection, ffi};
use litemesh_engine::{Engine, MergeError, MergeProgress};
use support::{ask, for_seeds, identity, merge_by_sql, select_changes};

/// Enough rows that triggers are turned off.
const MANY: i64 = 2000;

fn change(keys: &[Value], column: &str, value: impl Into<Value>, col_version: i64) -> Change {
    Change {
        table: "t".into(),
        key: PackedKey::pack(keys).unwrap(),
        column: Column::from(column),
        value: value.into(),
        col_version: ColVersion::new(col_version),
        db_version: DbVersion::new(col_version),
        site: SiteId::from_bytes([7; 16]),
        causal_length: CausalLength::new(1),
        seq: Seq::new(0),
    }
}

fn integer(value: i64) -> Value {
    Value::Integer(value)
}

/// One cell of each row.
fn cells(column: &str, count: i64, col_version: i64) -> Vec<Change> {
    (1..=count).map(|n| change(&[integer(n)], column, integer(n * 10 + col_version), col_version)).collect()
}

fn deaths(count: i64) -> Vec<Change> {
    let death = |n| Change { causal_length: CausalLength::new(2), ..change(&[integer(n)], "-1", Value::Null, 2) };
    (1..=count).map(death).collect()
}

const SCHEMA: &str =
    "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c); CREATE TABLE log (n INTEGER PRIMARY KEY, what)";

fn engine(schema: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(schema).unwrap();
    engine.replicate("t").unwrap();
    engine
}

fn merge(engine: &mut Engine, changes: &[Change]) {
    let merged = engine.merge(changes, &MergeProgress::default()).unwrap();
    assert_eq!(merged.won, changes.len());
}

fn count(engine: &Engine, table: &str) -> i64 {
    ask(engine.connection(), &format!("SELECT count(*) FROM {table}"))
}

fn has_triggers_on(engine: &Engine) -> bool {
    engine.connection().db_config(SQLITE_DBCONFIG_ENABLE_TRIGGER).unwrap()
}

/// Whether what the application writes gets its clock.
#[track_caller]
fn assert_captured(engine: &Engine) {
    let before: i64 = ask(engine.connection(), "SELECT crsql_db_version()");
    engine.connection().execute_batch("INSERT INTO t (a) VALUES (987654); DELETE FROM t WHERE a = 987654").unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_db_version()"), before + 2);
}

/// A function that a CHECK calls for every row counts in how many of them triggers were off.
fn watch(engine: &Engine) -> Arc<AtomicI64> {
    let off = Arc::new(AtomicI64::new(0));
    let counted = off.clone();
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let watch = move |context: &litemesh_engine::rusqlite::functions::Context<'_>| {
        // SAFETY: nothing is kept of the connection.
        let connection = unsafe { context.get_connection()? };
        if !connection.db_config(SQLITE_DBCONFIG_ENABLE_TRIGGER)? {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(true)
    };
    engine.connection().create_scalar_function("watched", 1, flags, watch).unwrap();
    off
}

#[test]
fn our_triggers_are_left_out_of_large_merges_alone() {
    let mut engine = Engine::open_in_memory().unwrap();
    let off = watch(&engine);
    engine
        .connection()
        .execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c, CHECK (watched(a)))")
        .unwrap();
    engine.replicate("t").unwrap();
    merge(&mut engine, &cells("b", 500, 1));
    assert_eq!(off.load(Ordering::Relaxed), 0);
    engine.connection().execute_batch("DELETE FROM t").unwrap();
    let alive = |change| Change { causal_length: CausalLength::new(3), ..change };
    let changes: Vec<_> = cells("b", MANY, 2).into_iter().map(alive).collect();
    engine.merge(&changes, &MergeProgress::default()).unwrap();
    assert!(off.load(Ordering::Relaxed) >= MANY, "{off:?}");
    assert!(has_triggers_on(&engine));
    assert_captured(&engine);
    // Who knows everything already need not turn anything off.
    off.store(0, Ordering::Relaxed);
    assert_eq!(engine.merge(&changes, &MergeProgress::default()).unwrap().won, 0);
    assert_eq!(off.load(Ordering::Relaxed), 0);
}

#[test]
fn triggers_of_the_user_fire_in_merges_of_any_size() {
    for kind in ["", "TEMP"] {
        for rows in [3, MANY] {
            let mut engine = engine(SCHEMA);
            let triggers: String = ["INSERT", "UPDATE", "DELETE"]
                .iter()
                .map(|event| {
                    let log = format!("INSERT INTO log (what) VALUES ('{event}')");
                    format!("CREATE {kind} TRIGGER on_{event} AFTER {event} ON t BEGIN {log}; END;")
                })
                .collect();
            engine.connection().execute_batch(&triggers).unwrap();
            for changes in [cells("b", rows, 1), cells("b", rows, 2), deaths(rows)] {
                merge(&mut engine, &changes);
            }
            for event in ["INSERT", "UPDATE", "DELETE"] {
                let sql = format!("SELECT count(*) FROM log WHERE what = '{event}'");
                assert_eq!(ask::<i64>(engine.connection(), &sql), rows, "{kind} {event}");
            }
            assert!(has_triggers_on(&engine));
        }
    }
}

#[test]
fn triggers_of_another_table_in_the_batch_fire() {
    let mut engine = engine(SCHEMA);
    let other = "CREATE TABLE u (a INTEGER PRIMARY KEY NOT NULL, b);
         CREATE TRIGGER noted AFTER INSERT ON u BEGIN INSERT INTO log (what) VALUES ('u'); END";
    engine.connection().execute_batch(other).unwrap();
    engine.replicate("u").unwrap();
    let mut changes = cells("b", MANY, 1);
    changes.extend(cells("b", MANY, 1).into_iter().map(|change| Change { table: "u".into(), ..change }));
    merge(&mut engine, &changes);
    assert_eq!(count(&engine, "log"), MANY);
    assert_captured(&engine);
}

#[test]
fn triggers_where_foreign_keys_lead_fire() {
    let mut engine = engine(SCHEMA);
    let others = "CREATE TABLE child (t REFERENCES t (a) ON DELETE CASCADE, id INTEGER PRIMARY KEY);
         CREATE TABLE grandchild (child REFERENCES child (id) ON DELETE CASCADE);
         CREATE INDEX child_t ON child (t); CREATE INDEX grandchild_child ON grandchild (child);
         CREATE TRIGGER noted AFTER DELETE ON grandchild BEGIN INSERT INTO log (what) VALUES (OLD.child); END";
    engine.connection().execute_batch(others).unwrap();
    merge(&mut engine, &cells("b", MANY, 1));
    let fill = "INSERT INTO child SELECT a, a FROM t; INSERT INTO grandchild SELECT a FROM t";
    engine.connection().execute_batch(fill).unwrap();
    merge(&mut engine, &deaths(MANY));
    assert_eq!((count(&engine, "grandchild"), count(&engine, "log")), (0, MANY));
}

#[test]
fn triggers_on_shadow_tables_fire() {
    let mut engine = engine(SCHEMA);
    let sql = "CREATE TRIGGER noted AFTER INSERT ON t__crsql_clock BEGIN INSERT INTO log (what) VALUES (NEW.key); END";
    engine.connection().execute_batch(sql).unwrap();
    merge(&mut engine, &cells("b", MANY, 1));
    assert_eq!(count(&engine, "log"), MANY);
}

#[test]
fn a_trigger_that_another_connection_makes_between_two_merges_fires() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.db");
    let mut engine = Engine::open(&file).unwrap();
    engine.connection().execute_batch(SCHEMA).unwrap();
    engine.replicate("t").unwrap();
    merge(&mut engine, &cells("b", MANY, 1));
    let other = Connection::open(&file).unwrap();
    let sql = "CREATE TRIGGER noted AFTER UPDATE ON t BEGIN INSERT INTO log (what) VALUES (NEW.a); END";
    other.execute_batch(sql).unwrap();
    merge(&mut engine, &cells("b", MANY, 2));
    assert_eq!(count(&engine, "log"), MANY);
    other.execute_batch("DROP TRIGGER noted; DELETE FROM log").unwrap();
    merge(&mut engine, &cells("b", MANY, 3));
    assert_eq!(count(&engine, "log"), 0);
    assert_captured(&engine);
}

#[test]
fn triggers_that_the_host_turned_off_stay_off() {
    let mut engine = engine(SCHEMA);
    engine.connection().set_db_config(SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    merge(&mut engine, &cells("b", MANY, 1));
    assert!(!has_triggers_on(&engine));
    engine.connection().set_db_config(SQLITE_DBCONFIG_ENABLE_TRIGGER, true).unwrap();
    assert_captured(&engine);
    assert_eq!(select_changes(engine.connection(), "WHERE site_id <> crsql_site_id()").len() as i64, MANY);
}

#[test]
fn a_merge_that_fails_in_the_middle_turns_triggers_on_again() {
    for newer in [false, true] {
        let mut engine = engine("CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b NOT NULL DEFAULT 0, c)");
        if newer {
            merge(&mut engine, &cells("b", MANY, 1));
        }
        let mut changes = cells("b", MANY, 2);
        changes[1234].value = Value::Null;
        let error = engine.merge(&changes, &MergeProgress::default()).unwrap_err();
        assert!(matches!(error, MergeError::Constraint { index: 1234, .. }), "{error}");
        assert!(has_triggers_on(&engine));
        assert_captured(&engine);
        changes[1234].value = integer(7);
        merge(&mut engine, &changes);
        assert_eq!(count(&engine, "t"), MANY);
    }
}

/// SQLite makes a statement that runs fail at the next table that it opens, where triggers are turned meanwhile.
#[test]
fn statements_of_the_host_go_on_over_a_large_merge() {
    let mut engine = engine(&format!("{SCHEMA}; INSERT INTO log (what) VALUES (1), (2), (3)"));
    // SAFETY: the statement is finalized before its connection closes, and used by this thread alone.
    unsafe {
        let mut statement = std::ptr::null_mut();
        let sql = c"SELECT what FROM log UNION ALL SELECT a FROM t";
        let handle = engine.connection().handle();
        assert_eq!(ffi::sqlite3_prepare_v2(handle, sql.as_ptr(), -1, &raw mut statement, std::ptr::null_mut()), 0);
        assert_eq!(ffi::sqlite3_step(statement), ffi::SQLITE_ROW);
        merge(&mut engine, &cells("b", MANY, 1));
        let mut rows = 1;
        while ffi::sqlite3_step(statement) == ffi::SQLITE_ROW {
            rows += 1;
        }
        assert_eq!(ffi::sqlite3_finalize(statement), ffi::SQLITE_OK);
        assert_eq!(rows, 3 + MANY);
    }
    assert_captured(&engine);
}

fn rows(engine: &Engine) -> Vec<String> {
    let mut statement = engine.connection().prepare("SELECT * FROM t ORDER BY 1, 2").unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect::<Result<Vec<_>, _>>()
    });
    rows.unwrap().map(|row| row.unwrap().join(" ")).collect()
}

/// Rows that lie where they are guessed and others, whose clocks, keys or base rows are gone, or which died; whatever keys are.
#[test]
fn newer_values_of_rows_that_have_moved_are_those_of_single_merges() {
    let schemas = [
        "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c, d)",
        "CREATE TABLE t (a INT PRIMARY KEY NOT NULL, b, c, d)",
        "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c, d) WITHOUT ROWID",
        "CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL, b, c, d CHECK (d IS NULL OR d > -5))",
        "CREATE TABLE t (a NUMERIC PRIMARY KEY NOT NULL, b, c, d)",
        "CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL, b, c, rowid)",
        "CREATE TABLE t (b, a TEXT NOT NULL, k BLOB NOT NULL DEFAULT x'00', c, d, PRIMARY KEY (k, a))",
    ];
    for_seeds(0x1a26e, 12, |rng| {
        let schema = *rng.choice(&schemas).unwrap();
        let last = if schema.contains("rowid)") { "rowid" } else { "d" };
        let columns = ["b", "c", last, "-1"];
        let is_wide = schema.contains("(k, a)");
        let is_text = schema.contains("a TEXT");
        let key = |n: i64| match (is_wide, is_text) {
            (true, _) => vec![Value::blob([u8::try_from(n % 2).unwrap()]), Value::text(format!("{n:05}"))],
            (_, true) => vec![Value::text(format!("{n:05}"))],
            _ => vec![integer(n)],
        };
        let many = rng.i64(30..800);
        let mut engines = [engine(schema), engine(schema)];
        let first: Vec<_> = (1..=many).flat_map(|n| columns[..3].iter().map(move |column| (n, *column))).collect();
        let first: Vec<_> = first.into_iter().map(|(n, column)| change(&key(n), column, integer(n), 1)).collect();
        let mut rounds = vec![first];
        for round in 2..rng.i64(4..7) {
            // All of one cell, or anything; in order mostly.
            let cell = rng.bool().then(|| columns[rng.usize(0..3)]);
            let mut changes = Vec::new();
            for n in 1..=many + rng.i64(0..9) {
                if rng.u8(..40) == 0 {
                    continue;
                }
                let is_death = rng.u8(..60) == 0;
                let column = cell.filter(|_| rng.u8(..90) > 0).unwrap_or(columns[rng.usize(0..4)]);
                let column = if is_death { "-1" } else { column };
                let length = rng.i64(1..4);
                let length = if column == "-1" { length } else { *rng.choice(&[1, 1, 1, 1, 1, 3]).unwrap() };
                let version = if column == "-1" { length } else { rng.i64(1..=round) };
                let change = change(&key(n), column, integer(n + rng.i64(0..3)), version);
                let value = if column == "-1" { Value::Null } else { change.value.clone() };
                changes.push(Change { value, causal_length: CausalLength::new(length), ..change });
            }
            for _ in 0..rng.usize(0..5) {
                let (a, b) = (rng.usize(..changes.len()), rng.usize(..changes.len()));
                changes.swap(a, b);
            }
            rounds.push(changes);
        }
        for changes in rounds {
            let [native, by_sql] = &mut engines;
            native.merge(&changes, &MergeProgress::default()).unwrap();
            merge_by_sql(by_sql.connection(), &changes);
            let (all, one_by_one) = (rows(native), rows(by_sql));
            assert_eq!(all.len(), one_by_one.len(), "{schema}");
            for (together, alone) in all.iter().zip(one_by_one) {
                assert_eq!(*together, alone, "{schema}");
            }
            let clocks = |engine: &Engine| {
                let mut clocks: Vec<_> = select_changes(engine.connection(), "").iter().map(identity).collect();
                clocks.sort();
                clocks
            };
            assert_eq!(clocks(native), clocks(by_sql), "{schema}");
            let unsound = "SELECT count(*) FROM crsql_check() WHERE severity <> 'info' AND rule NOT LIKE 'CRR-2%'";
            assert_eq!(ask::<i64>(native.connection(), unsound), ask::<i64>(by_sql.connection(), unsound));
            // Meanwhile rows go and come again elsewhere, some of them unseen.
            let (seed, skipped) = (rng.i64(2..50), rng.i64(2..50));
            let unseen = match rng.u8(..4) {
                0 => format!("DELETE FROM t WHERE abs(c) % {seed} = 1"),
                // Keys need not have the same numbers in both.
                1 => format!(
                    "DELETE FROM t__crsql_clock WHERE col_name <> 'b' AND key IN
                     (SELECT __crsql_key FROM t__crsql_pks WHERE abs(a) % {seed} = 1)"
                ),
                2 => format!("UPDATE t SET b = -1 WHERE abs(c) % {seed} = 1"),
                _ => String::new(),
            };
            let script = format!(
                "CREATE TEMP TABLE moved AS SELECT * FROM t WHERE abs(c) % {skipped} = 0;
                 DELETE FROM t WHERE abs(c) % {skipped} = 0; INSERT INTO t SELECT * FROM moved; DROP TABLE moved;
                 SELECT crsql_internal_sync_bit(1); {unseen}; SELECT crsql_internal_sync_bit(0)"
            );
            for engine in &engines {
                engine.connection().execute_batch(&script).unwrap();
            }
        }
    });
}
