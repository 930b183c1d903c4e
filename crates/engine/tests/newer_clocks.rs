//! Newer values whose clocks are written by the statement that finds them older. The result is that of merging the changes one by one
//! through `crsql_changes`, whatever rows lie among them.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::rusqlite::trace::{TraceEvent, TraceEventCodes};
use litemesh_engine::{Engine, MergeError, MergeProgress};
use support::{ask, for_seeds, identity, merge_by_sql, select_changes};

fn change(n: i64, column: &str, col_version: i64, version: i64, seq: i64) -> Change {
    Change {
        table: "t".into(),
        key: PackedKey::pack(&[Value::text(format!("{n:05}"))]).unwrap(),
        column: Column::from(column),
        value: Value::Integer(n * 100 + version),
        col_version: ColVersion::new(col_version),
        db_version: DbVersion::new(version),
        site: SiteId::from_bytes([7; 16]),
        causal_length: CausalLength::new(1),
        seq: Seq::new(seq),
    }
}

/// Of one changeset, whose numbers rise.
fn changes(rows: std::ops::Range<i64>, column: &str, col_version: i64, version: i64) -> Vec<Change> {
    rows.zip(0..).map(|(n, seq)| change(n, column, col_version, version, seq)).collect()
}

fn living(length: i64, change: Change) -> Change {
    let value = if change.column == Column::Row { Value::Null } else { change.value.clone() };
    Change { value, causal_length: CausalLength::new(length), ..change }
}

fn engine(columns: &[&str]) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    let columns: String = columns.iter().map(|column| format!(", \"{column}\"")).collect();
    engine.connection().execute_batch(&format!("CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL{columns})")).unwrap();
    engine.replicate("t").unwrap();
    engine
}

/// Counts the statements that look for older clocks.
fn watch(engine: &mut Engine) -> Arc<AtomicUsize> {
    let walks = Arc::new(AtomicUsize::new(0));
    let seen = walks.clone();
    let count = move |event: TraceEvent<'_>| {
        if let TraceEvent::Stmt(_, sql) = event {
            seen.fetch_add(usize::from(sql.contains("litemesh_is_older")), Ordering::Relaxed);
        }
    };
    engine.connection_mut().trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(count)).unwrap();
    walks
}

fn merge(engine: &mut Engine, changes: &[Change]) -> usize {
    engine.merge(changes, &MergeProgress::default()).unwrap().won
}

/// Base rows and clocks, and whether the local versions of changesets are in the order of their own.
fn state(engine: &Engine) -> (Vec<String>, Vec<(String, Seq)>) {
    let mut statement = engine.connection().prepare("SELECT * FROM t ORDER BY a").unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect::<Result<Vec<_>, _>>()
    });
    let rows = rows.unwrap().map(|row| row.unwrap().join(" ")).collect();
    let mut clocks: Vec<_> =
        select_changes(engine.connection(), "").iter().map(|change| (identity(change), change.seq)).collect();
    clocks.sort();
    let unsound = "SELECT count(*) FROM crsql_check() WHERE severity <> 'info' AND rule NOT LIKE 'CRR-2%'";
    assert_eq!(ask::<i64>(engine.connection(), unsound), 0);
    (rows, clocks)
}

#[track_caller]
fn assert_in_order(engine: &Engine) {
    let disordered = "SELECT count(*) FROM litemesh_origin a JOIN litemesh_origin b
         ON a.site = b.site AND a.local_version < b.local_version AND a.version > b.version";
    assert_eq!(ask::<i64>(engine.connection(), disordered), 0, "local versions out of order");
}

/// Merges natively and one by one, into what the same `prepare` leaves.
#[track_caller]
fn check(columns: &[&str], prepare: impl Fn(&Engine), changes: &[Change]) -> usize {
    let [mut native, by_sql] = [(); 2].map(|()| engine(columns));
    [&native, &by_sql].into_iter().for_each(&prepare);
    let walks = watch(&mut native);
    merge(&mut native, changes);
    merge_by_sql(by_sql.connection(), changes);
    assert_eq!(state(&native), state(&by_sql));
    assert_in_order(&native);
    walks.load(Ordering::Relaxed)
}

/// Names that come after that of a sentinel, and before it.
const NAMES: [[&str; 3]; 3] = [["b", "c", "d"], ["d", "-2", "c"], ["b", "+", "-"]];

/// Rows that died, came back, have newer clocks or none, and changesets that say more of some of them.
#[test]
fn older_clocks_are_written_and_no_others() {
    let mut walks = 0;
    for_seeds(0x01de4, 60, |rng| {
        let columns = *rng.choice(&NAMES).unwrap();
        let count = rng.i64(40..400);
        let seldom = rng.u16(10..120);
        let mut held = Vec::new();
        for n in 0..count {
            held.extend(columns.iter().zip(0..).map(|(column, seq)| change(n, column, 1, 1, n * 3 + seq)));
            let column = *rng.choice(&columns).unwrap();
            match rng.u16(..seldom) {
                0 => held.push(living(2, change(n, "-1", 2, 1, 0))),
                1 => {
                    held.push(living(3, change(n, "-1", 3, 1, 0)));
                    held.push(living(3, change(n, column, rng.i64(1..4), 1, 1)));
                }
                2 => held.push(change(n, column, rng.i64(2..5), 1, 0)),
                3 => held.retain(|held| held.key != change(n, column, 1, 1, 0).key || *held.column.as_str() != *column),
                _ => {}
            }
        }
        let (mut newer, mut version) = (Vec::new(), 2);
        for _ in 0..rng.usize(1..4) {
            // One changeset over all rows, or many over some of them each.
            let length = *rng.choice(&[count, 60, 20, 9]).unwrap();
            let column = *rng.choice(&columns).unwrap();
            let life = *rng.choice(&[1, 1, 1, 3]).unwrap();
            for first in (0..count).step_by(usize::try_from(length).unwrap()) {
                let rise = rng.i64(-1..3);
                let col_version = rng.i64(1..4);
                for n in first..count.min(first + length) {
                    let seq = 500 + (n - first) * rise;
                    let even = living(life, change(n, column, col_version, version, seq));
                    match rng.u16(..seldom * 8) {
                        0 => {}
                        1 => newer.extend([even, living(life, change(n, columns[0], 9, version, seq))]),
                        2 => newer.push(Change { seq: Seq::new(seq + 9), ..even }),
                        3 => newer.push(Change { col_version: ColVersion::new(5), ..even }),
                        4 => newer.push(living(rng.i64(1..4), even)),
                        _ => newer.push(even),
                    }
                }
                version += 1;
            }
        }
        walks += check(&columns, |engine| merge_by_sql(engine.connection(), &held), &newer);
    });
    assert!(walks > 50, "{walks}");
}

/// Each kind of row among those whose values are newer, in whichever life these are.
#[test]
fn other_lives_and_equal_versions_are_not_taken_for_older() {
    for length in [1, 3, 5] {
        let held: Vec<_> = (0..200)
            .flat_map(|n| {
                let (life, version, value) = match n % 16 {
                    3 if length > 1 => (length - 1, 0, 0),
                    5 => (length + 1, 0, 0),
                    7 => (length + 2, 1, 0),
                    8 if length > 1 => (length - 2, 1, 0),
                    10 => (length, 2, 0),
                    12 => (length, 2, i64::MAX),
                    14 => (length, 3, 0),
                    _ => (length, 1, 0),
                };
                let death = living(life, change(n, "-1", life, 1, 0));
                let cell = Change { value: Value::Integer(value), ..living(life, change(n, "c", version, 1, 0)) };
                match life {
                    1 => vec![cell],
                    _ if version == 0 => vec![death],
                    _ => vec![death, cell],
                }
            })
            .collect();
        let newer: Vec<_> = changes(0..200, "c", 2, 5).into_iter().map(|change| living(length, change)).collect();
        let walks = check(&["b", "c"], |engine| merge_by_sql(engine.connection(), &held), &newer);
        assert!(walks > 0, "life {length}");
    }
}

fn filled(columns: &[&str], rows: std::ops::Range<i64>) -> Engine {
    let mut engine = engine(columns);
    let held: Vec<_> = rows.flat_map(|n| columns.iter().map(move |column| change(n, column, 1, 1, n))).collect();
    merge(&mut engine, &held);
    engine
}

/// One statement for the first rows, which tell where the others are; then one for each changeset, as far as rows are gathered.
#[test]
fn what_is_newer_is_found_out_and_written_by_one_statement() {
    for (length, expected) in [(272, 1), (28, 10)] {
        let mut engine = filled(&["b", "c"], 0..272);
        let walks = watch(&mut engine);
        let newer: Vec<_> = (0..272)
            .step_by(usize::try_from(length).unwrap())
            .flat_map(|first| changes(first..272.min(first + length), "c", 2, 2 + first))
            .collect();
        assert_eq!(merge(&mut engine, &newer), 272);
        assert_eq!(walks.load(Ordering::Relaxed), expected, "changesets of {length}");
        assert_in_order(&engine);
        let written = "SELECT count(*) FROM t__crsql_clock WHERE col_name = 'c' AND col_version = 2";
        assert_eq!(ask::<i64>(engine.connection(), written), 272);
    }
}

/// Neither what is known nor what has lost uses up a version, or is walked over for nothing.
#[test]
fn what_is_not_newer_moves_nothing() {
    let mut engine = filled(&["b", "c"], 0..300);
    let version: i64 = ask(engine.connection(), "SELECT crsql_db_version()");
    merge(&mut engine, &changes(0..300, "c", 3, 2));
    let walks = watch(&mut engine);
    for col_version in [2, 3] {
        let again: Vec<_> = changes(0..300, "c", col_version, 2);
        assert_eq!(merge(&mut engine, &again), 0);
    }
    assert_eq!(walks.load(Ordering::Relaxed), 0);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_db_version()"), version + 1);
}

/// Where SQLite walks backward, a row's sentinel comes after its cells.
#[test]
fn the_order_in_which_sqlite_walks_makes_no_difference() {
    let columns = ["b", "c"];
    let prepare = |engine: &Engine| {
        let held: Vec<_> = (0..200).map(|n| change(n, "c", 1, 1, n)).collect();
        merge_by_sql(engine.connection(), &held);
        let back = (0..200)
            .filter(|n| n % 7 == 3)
            .flat_map(|n| [living(3, change(n, "-1", 3, 1, 0)), living(3, change(n, "c", 1, 1, 0))]);
        merge_by_sql(engine.connection(), &back.collect::<Vec<_>>());
        engine.connection().execute_batch("PRAGMA reverse_unordered_selects = ON").unwrap();
    };
    assert_eq!(check(&columns, prepare, &changes(0..200, "c", 2, 5)), 0);
    // Also where it began to after a merge.
    let mut engine = filled(&columns, 0..200);
    let walks = watch(&mut engine);
    for (order, col_version) in [("OFF", 2), ("ON", 3), ("OFF", 4)] {
        engine.connection().execute_batch(&format!("PRAGMA reverse_unordered_selects = {order}")).unwrap();
        let before = walks.load(Ordering::Relaxed);
        assert_eq!(merge(&mut engine, &changes(0..200, "c", col_version, col_version)), 200);
        assert_eq!(walks.load(Ordering::Relaxed) - before, usize::from(order == "OFF"), "{order}");
    }
}

/// Somebody's trigger on the clock table, which leaves a clock as it is once.
#[test]
fn a_clock_that_a_trigger_kept_is_written_all_the_same() {
    let prepare = |engine: &Engine| {
        let held: Vec<_> = (0..100).map(|n| change(n, "c", 1, 1, n)).collect();
        merge_by_sql(engine.connection(), &held);
        let trigger =
            "CREATE TRIGGER kept BEFORE UPDATE ON t__crsql_clock WHEN OLD.key = 50 BEGIN SELECT raise(IGNORE); END";
        engine.connection().execute_batch(trigger).unwrap();
    };
    let [mut native, by_sql] = [(); 2].map(|()| engine(&["b", "c"]));
    [&native, &by_sql].into_iter().for_each(prepare);
    assert_eq!(merge(&mut native, &changes(0..100, "c", 2, 5)), 100);
    by_sql.connection().execute_batch("DROP TRIGGER kept").unwrap();
    merge_by_sql(by_sql.connection(), &changes(0..100, "c", 2, 5));
    assert_eq!(state(&native), state(&by_sql));
}

/// Keys that were given out without gaps, and of which some are gone.
#[test]
fn rows_that_follow_each_other_with_a_key_missing_in_between() {
    let prepare = |engine: &Engine| {
        let held: Vec<_> = (1..=300).flat_map(|n| ["b", "c"].map(|column| change(n, column, 1, 1, n))).collect();
        merge_by_sql(engine.connection(), &held);
        let gone = "SELECT crsql_internal_sync_bit(1);
             DELETE FROM t WHERE a IN (SELECT a FROM t__crsql_pks WHERE __crsql_key % 50 = 40);
             DELETE FROM t__crsql_clock WHERE key % 50 = 40; DELETE FROM t__crsql_pks WHERE __crsql_key % 50 = 40;
             SELECT crsql_internal_sync_bit(0)";
        engine.connection().execute_batch(gone).unwrap();
    };
    for col_version in [1, 2] {
        let mut newer = changes(1..301, "c", col_version, 2);
        newer.retain(|other| (1..=300).all(|n| n % 50 != 40 || other.key != change(n, "c", 1, 1, 0).key));
        check(&["b", "c"], prepare, &newer);
    }
}

/// A value that the table refuses comes after its clock is written: nothing stays.
#[test]
fn a_refused_value_leaves_no_clock() {
    let mut engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch("CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL, b CHECK (b < 15000))").unwrap();
    engine.replicate("t").unwrap();
    merge(&mut engine, &changes(0..140, "b", 1, 1));
    let before = state(&engine);
    let walks = watch(&mut engine);
    let error = engine.merge(&changes(0..200, "b", 2, 2), &MergeProgress::default()).unwrap_err();
    assert!(matches!(error, MergeError::Constraint { index: 150, .. }), "{error}");
    assert_eq!(walks.load(Ordering::Relaxed), 1);
    assert_eq!(state(&engine), before);
}

/// In a wide table fewer rows are written by one statement.
#[test]
fn wide_rows_are_written_by_several_statements() {
    let names: Vec<String> = (0..60).map(|n| format!("column_{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let mut engine = filled(&names, 0..120);
    let walks = watch(&mut engine);
    assert_eq!(merge(&mut engine, &changes(0..120, "column_030", 2, 2)), 120);
    let walks = walks.load(Ordering::Relaxed);
    assert!((4..10).contains(&walks), "{walks}");
}
