//! Rows that a native merge gathers and writes together: the result is that of merging them one by one through
//! `crsql_changes`, whatever the table is like and however the rows follow each other.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::rusqlite::functions::{Context, FunctionFlags};
use litemesh_engine::rusqlite::trace::{TraceEvent, TraceEventCodes};
use litemesh_engine::{Engine, MergeError, MergeProgress};
use support::{ask, dump, for_seeds, identity, merge_by_sql, refusal, select_changes};

fn engine(schema: &str, tables: &[&str]) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(schema).unwrap();
    for table in tables {
        engine.replicate(table).unwrap();
    }
    engine
}

fn change(table: &str, keys: &[Value], column: &str, value: Value, version: i64) -> Change {
    Change {
        table: table.into(),
        key: PackedKey::pack(keys).unwrap(),
        column: Column::from(column),
        value,
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(version),
        site: SiteId::from_bytes([7; 16]),
        causal_length: CausalLength::new(1),
        seq: Seq::new(0),
    }
}

fn rows(engine: &Engine, table: &str) -> Vec<String> {
    let sql = format!("SELECT * FROM {table} ORDER BY 1");
    let mut statement = engine.connection().prepare(&sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect::<Result<Vec<_>, _>>()
    });
    rows.unwrap().map(|row| row.unwrap().join(" ")).collect()
}

/// Merges natively, and change by change through `crsql_changes`, where each is a transaction and where all are one, whose clocks are
/// written together; each into what `prepare` leaves. Compares base rows and clocks.
#[track_caller]
fn check(schema: &str, tables: &[&str], prepare: &str, changes: &[Change]) -> Engine {
    let [mut native, by_sql, at_once] = [(); 3].map(|()| engine(schema, tables));
    for engine in [&native, &by_sql, &at_once] {
        engine.connection().execute_batch(prepare).unwrap();
    }
    native.merge(changes, &MergeProgress::default()).unwrap();
    merge_by_sql(by_sql.connection(), changes);
    at_once.connection().execute_batch("BEGIN").unwrap();
    merge_by_sql(at_once.connection(), changes);
    at_once.connection().execute_batch("COMMIT").unwrap();
    let clocks = |engine: &Engine| {
        let changes = select_changes(engine.connection(), "");
        let mut clocks: Vec<_> = changes.iter().map(|change| (identity(change), change.seq)).collect();
        clocks.sort();
        clocks
    };
    for other in [&native, &at_once] {
        for table in tables {
            assert_eq!(rows(other, table), rows(&by_sql, table), "rows of {table}");
        }
        assert_eq!(clocks(other), clocks(&by_sql));
    }
    assert_eq!(
        ask::<i64>(
            native.connection(),
            "SELECT count(*) FROM crsql_check() WHERE severity <> 'info' AND rule NOT LIKE 'CRR-2%'"
        ),
        0
    );
    native
}

fn pairs(count: i64, version: impl Fn(i64) -> i64) -> Vec<Change> {
    let cells = |n: i64| {
        let keys = [Value::Integer(n)];
        ["b", "c"].map(|column| change("t", &keys, column, Value::Integer(n * 10), version(n)))
    };
    (1..=count).flat_map(cells).collect()
}

const PLAIN: &str = "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c)";

#[test]
fn more_rows_than_are_gathered_in_any_order_of_keys() {
    for_seeds(0x6a7e, 4, |rng| {
        let mut changes = pairs(700, |n| 1 + n / 50);
        let (rows, _) = changes.as_chunks_mut::<2>();
        rng.shuffle(rows);
        check(PLAIN, &["t"], "", &changes);
        // The same again, over rows that are there: newer, older and equal cells among each other.
        let prepare =
            "INSERT INTO t SELECT value, value * rng, 5 FROM (SELECT 9 AS rng), json_each('[1,2,3,4,5,6,7,8,9]')";
        check(PLAIN, &["t"], prepare, &changes);
    });
}

/// Whole rows whose clocks follow from the first one, and newer values that do, with rows among them that are not like the others.
#[test]
fn clocks_that_follow_from_the_first_one_and_some_that_do_not() {
    let schema = "CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL, z, b, m)";
    let columns = ["z", "b", "m"];
    let row = |n: i64, version: i64, seq: i64, column: &str| Change {
        col_version: ColVersion::new(version),
        seq: Seq::new(seq),
        ..change("t", &[Value::text(format!("{n:05}"))], column, Value::Integer(n * 10 + version), version)
    };
    for_seeds(0xc10c, 12, |rng| {
        let mut changes = Vec::new();
        let mut seq = rng.i64(0..5);
        let disturbed = rng.u8(20..120);
        for n in 0..300 {
            for column in columns {
                changes.push(row(n, 1, seq, column));
                seq += 1;
            }
            let last = changes.len() - 1;
            match rng.u8(..disturbed) {
                0 => drop(changes.pop()),
                1 => changes.swap(last, last - 1),
                2 => seq += 1,
                3 => changes[last].col_version = ColVersion::new(2),
                4 => changes[last].seq = Seq::new(seq + 7),
                5 => changes.push(row(n, 1, seq, "z")),
                _ => {}
            }
        }
        for (version, column) in [(2, "b"), (3, "m"), (4, "b")] {
            let rise = rng.i64(-1..4);
            let mut seq = 2_000;
            for n in 0..300 {
                seq += rise;
                match rng.u8(..disturbed) {
                    0 => {}
                    1 => changes.push(row(n, version + 1, seq, column)),
                    2 => changes.push(row(n, version, seq + 1, column)),
                    3 => changes.push(row(n, version, seq, "z")),
                    4 => changes.push(row(n, 1, seq, column)),
                    _ => changes.push(row(n, version, seq, column)),
                }
            }
        }
        let held = ["", "INSERT INTO t (a) VALUES ('00050')", "INSERT INTO t (a) VALUES ('00050'); DELETE FROM t"];
        check(schema, &["t"], rng.choice(held).unwrap(), &changes);
    });
}

/// Keys of rows that are there are guessed from the row before: the guess is wrong after a gap, at a new row, and where rows
/// have changed places.
#[test]
fn known_rows_that_come_again_with_gaps_and_new_ones_among_them() {
    let schema = "CREATE TABLE t (a TEXT NOT NULL, b INTEGER NOT NULL, c, PRIMARY KEY (b, a))";
    let row = |n: i64, value: i64, col_version: i64| Change {
        col_version: ColVersion::new(col_version),
        ..change("t", &[Value::Integer(n / 2), Value::text(format!("{n:05}"))], "c", Value::Integer(value), n / 100 + 1)
    };
    for_seeds(0x9a95, 8, |rng| {
        let mut changes: Vec<_> = (0..500).map(|n| row(n * 3, n, 1)).collect();
        let again: Vec<_> = (0..1500).filter(|n| n % 3 == 0 || rng.u8(..20) == 0).collect();
        let mut again: Vec<_> = again.into_iter().map(|n| row(n, n + rng.i64(-1..2), rng.i64(1..3))).collect();
        for _ in 0..rng.usize(0..40) {
            let at = rng.usize(1..again.len());
            match rng.bool() {
                true => again.swap(at, at - 1),
                false => drop(again.remove(at)),
            }
        }
        changes.extend(again);
        check(schema, &["t"], "", &changes);
    });
}

#[test]
fn a_row_that_comes_again_waits_for_itself() {
    let keys = [Value::Integer(1)];
    let write = |value: i64, col_version: i64, version: i64| Change {
        col_version: ColVersion::new(col_version),
        ..change("t", &keys, "b", Value::Integer(value), version)
    };
    let death = Change {
        col_version: ColVersion::new(2),
        causal_length: CausalLength::new(2),
        ..change("t", &keys, "-1", Value::Null, 4)
    };
    let rebirth = Change { causal_length: CausalLength::new(3), ..write(9, 1, 5) };
    let other = change("t", &[Value::Integer(2)], "b", Value::Integer(1), 2);
    check(PLAIN, &["t"], "", &[write(1, 1, 1), other.clone(), write(2, 2, 2), other, write(3, 3, 3), death, rebirth]);
}

/// DSK-7 and BUG-16: what SQLite takes for one key is one row, however it was packed.
#[test]
fn keys_that_are_one_to_sqlite_are_one_row() {
    let schema = "CREATE TABLE t (a PRIMARY KEY NOT NULL, b); CREATE TABLE n (a INTEGER PRIMARY KEY NOT NULL, b)";
    let of = |table: &str, key: Value, value: i64| change(table, &[key], "b", Value::Integer(value), 1);
    let native = check(
        schema,
        &["t", "n"],
        "",
        &[
            of("t", Value::Integer(1), 1),
            of("t", Value::Real(1.0), 3),
            of("t", Value::Integer(1), 2),
            of("n", Value::text("1"), 1),
            of("n", Value::Integer(1), 2),
        ],
    );
    assert_eq!(ask::<i64>(native.connection(), "SELECT b FROM t"), 3);
    assert_eq!(ask::<i64>(native.connection(), "SELECT b FROM n"), 2);
}

#[test]
fn rows_of_many_tables_and_authors_among_each_other() {
    let schema =
        "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c); CREATE TABLE u (a TEXT, b, c, PRIMARY KEY (a, b))
         WITHOUT ROWID; CREATE TABLE v (a PRIMARY KEY NOT NULL)";
    let mut changes = Vec::new();
    for n in 0..200_i64 {
        let version = 1 + n / 3;
        let mut sites = [[7; 16], [8; 16]].into_iter().cycle().skip(usize::try_from(n / 3).unwrap());
        let site = SiteId::from_bytes(sites.next().unwrap());
        let all = [
            change("t", &[Value::Integer(n % 40)], "b", Value::Integer(n), version),
            change("u", &[Value::text(format!("{}", n % 60)), Value::Null], "c", Value::Integer(n), version),
            change("v", &[Value::text(format!("{n}"))], "-1", Value::Null, version),
        ];
        changes.extend(all.into_iter().map(|change| Change { site, ..change }));
    }
    for change in &mut changes {
        if &*change.table == "u" {
            change.key = PackedKey::pack(&[change.key.unpack().unwrap().remove(0), Value::Integer(0)]).unwrap();
        }
    }
    check(schema, &["t", "u", "v"], "", &changes);
}

/// MRG-15: an upsert begins with a row of defaults, which a CHECK of a living row need not allow.
#[test]
fn living_rows_are_not_judged_by_their_defaults() {
    for schema in [
        "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b DEFAULT 1, c DEFAULT 0, CHECK (c >= b))",
        "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b INTEGER DEFAULT 'text', c INTEGER DEFAULT 'text') STRICT",
    ] {
        let prepare = "INSERT INTO t VALUES (1, 1, 50), (2, 1, 50), (3, 1, 50)";
        let newer = |n: i64| Change {
            col_version: ColVersion::new(2),
            ..change("t", &[Value::Integer(n)], "c", Value::Integer(60 + n), 1)
        };
        check(schema, &["t"], prepare, &[newer(1), newer(2), newer(3)]);
    }
}

/// Triggers of the user's see the rows in their order, and what they change counts for the rows after.
#[test]
fn triggers_of_the_user_see_rows_one_by_one() {
    let log = "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c); CREATE TABLE log (n INTEGER PRIMARY KEY, what);";
    for kind in ["", "TEMP"] {
        let prepare = format!(
            "INSERT INTO t VALUES (2, 5, 5);
             CREATE {kind} TRIGGER noted AFTER INSERT ON t BEGIN
                 INSERT INTO log (what) SELECT NEW.a || ' after ' || count(*) FROM main.t;
                 UPDATE t SET b = 99 WHERE a = 2;
             END"
        );
        // Equal versions: what decides is the value that the trigger has left in row 2.
        let (a, b) = ([Value::Integer(1)], [Value::Integer(2)]);
        let changes = [change("t", &a, "b", Value::Integer(1), 1), change("t", &b, "b", Value::Integer(50), 1)];
        let native = check(log, &["t"], &prepare, &changes);
        assert_eq!(ask::<i64>(native.connection(), "SELECT b FROM t WHERE a = 2"), 99, "{kind}");
        assert_eq!(ask::<String>(native.connection(), "SELECT group_concat(what) FROM log"), "1 after 2", "{kind}");
    }
}

/// MRG-10: a unique index that came later; what is free depends on the order.
#[test]
fn a_value_passes_from_row_to_row_under_a_unique_index() {
    let prepare = "INSERT INTO t VALUES (1, 'x', 0), (2, 'y', 0); CREATE UNIQUE INDEX later ON t (b)";
    let newer = |n: i64, value: &str| Change {
        col_version: ColVersion::new(2),
        ..change("t", &[Value::Integer(n)], "b", Value::text(value), 1)
    };
    let new = change("t", &[Value::Integer(3)], "b", Value::text("x"), 1);
    check(PLAIN, &["t"], prepare, &[newer(1, "z"), new, newer(2, "w")]);
}

/// MRG-5: CRSqlite leaves keys without clocks behind.
#[test]
fn keys_without_clocks_are_taken_up() {
    let prepare = "INSERT INTO t__crsql_pks (__crsql_key, a) VALUES (50, 3), (60, 9)";
    let native = {
        let (mut native, by_sql) = (engine(PLAIN, &["t"]), engine(PLAIN, &["t"]));
        for engine in [&native, &by_sql] {
            engine.connection().execute_batch(prepare).unwrap();
        }
        native.merge(&pairs(10, |_| 1), &MergeProgress::default()).unwrap();
        merge_by_sql(by_sql.connection(), &pairs(10, |_| 1));
        assert_eq!(rows(&native, "t"), rows(&by_sql, "t"));
        native
    };
    assert_eq!(dump(&native).len(), 20);
    assert_eq!(ask::<i64>(native.connection(), "SELECT count(*) FROM t__crsql_clock WHERE key IN (50, 60)"), 4);
    assert_eq!(ask::<i64>(native.connection(), "SELECT count(*) FROM t__crsql_pks"), 10);
}

/// Clocks whose key is gone, under the number that the next key gets.
#[test]
fn clocks_without_a_key_are_written_over() {
    let prepare = "INSERT INTO t__crsql_clock (key, col_name, col_version, db_version, site_id, seq)
         VALUES (1, 'b', 9, 1, 0, 0), (2, 'c', 9, 1, 0, 0)";
    for version in [|_| 1, |n| n] {
        let changes = pairs(3, version);
        let mut engine = engine(PLAIN, &["t"]);
        engine.connection().execute_batch(prepare).unwrap();
        engine.merge(&changes, &MergeProgress::default()).unwrap();
        let clocks = |changes: &[Change]| changes.iter().map(identity).collect::<BTreeSet<_>>();
        assert_eq!(clocks(&select_changes(engine.connection(), "")), clocks(&changes));
    }
}

/// Wider than a batch, by cells and by keys.
#[test]
fn tables_wider_than_a_batch() {
    for keys in [1, 66] {
        let names: Vec<String> = (0..keys).map(|n| format!("k{n}")).collect();
        let cells: String = (0..70).map(|n| format!(", c{n}")).collect();
        let columns: String = names.iter().map(|name| format!("{name} INTEGER NOT NULL, ")).collect();
        let schema = format!("CREATE TABLE t ({columns}PRIMARY KEY ({}){})", names.join(", "), "");
        let schema = schema.replacen("PRIMARY KEY", &format!("{} , PRIMARY KEY", &cells[2..]), 1);
        let key = |n: i64| vec![Value::Integer(n); keys];
        let changes: Vec<Change> = (0..20_i64)
            .flat_map(|n| (0..70).map(move |cell| (n, cell)))
            .map(|(n, cell)| change("t", &key(n), &format!("c{cell}"), Value::Integer(n + cell), 1))
            .collect();
        let mut native = check(&schema, &["t"], "", &changes);
        let again = native.merge(&changes, &MergeProgress::default()).unwrap();
        assert_eq!(again.won, 0, "equal values win nothing");
    }
}

/// MRG-12 and 5.3, step 4: equal values, and a larger site.
#[test]
fn equal_values_are_taken_from_the_larger_site() {
    let ties =
        "SELECT crsql_config_set('merge-equal-values', 1); INSERT INTO t VALUES (1, 10, 10), (2, 20, 20), (3, 30, 30)";
    for site in [[0; 16], [255; 16]] {
        let changes: Vec<Change> =
            pairs(3, |_| 1).into_iter().map(|change| Change { site: SiteId::from_bytes(site), ..change }).collect();
        let native = check(PLAIN, &["t"], ties, &changes);
        let foreign: i64 = ask(native.connection(), "SELECT count(*) FROM t__crsql_clock WHERE site_id <> 0");
        assert_eq!(foreign, if site == [255; 16] { 6 } else { 0 });
    }
}

#[test]
fn one_bad_row_among_many_is_named_and_nothing_stays() {
    let schema = "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b NOT NULL DEFAULT 0, c)";
    let mut changes = pairs(300, |n| 1 + n / 100);
    changes[404].value = Value::Null;
    let mut engine = engine(schema, &["t"]);
    let error = engine.merge(&changes, &MergeProgress::default()).unwrap_err();
    assert!(matches!(error, MergeError::Constraint { index: 404, .. }), "{error}");
    for table in ["t", "t__crsql_pks", "t__crsql_clock", "litemesh_origin"] {
        assert_eq!(ask::<i64>(engine.connection(), &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
    changes[404].value = Value::Integer(0);
    engine.merge(&changes, &MergeProgress::default()).unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM t"), 300);
}

/// What changes a row between two changes that are merged through `crsql_changes` counts for the second.
#[test]
fn the_row_that_was_merged_last_is_read_again_after_other_writes() {
    let meanwhile = [
        "UPDATE t__crsql_clock SET col_version = 9",
        "UPDATE t SET b = 5",
        "UPDATE t SET b = 5, c = 6 WHERE a = 1",
        "DELETE FROM t",
        "SAVEPOINT s; DELETE FROM t; ROLLBACK TO s",
        "SELECT crsql_internal_sync_bit(1); UPDATE t SET c = 1000; SELECT crsql_internal_sync_bit(0)",
        "DELETE FROM t__crsql_clock",
        "COMMIT; BEGIN",
        "COMMIT; UPDATE t SET c = 7; BEGIN",
        "COMMIT; BEGIN; SELECT crsql_increment_and_get_seq()",
        "ROLLBACK; BEGIN",
        "CREATE TABLE other (x)",
        "SELECT crsql_finalize()",
    ];
    for statement in meanwhile {
        let [first, second] = [("b", 10), ("c", 20)]
            .map(|(column, value)| change("t", &[Value::Integer(1)], column, Value::Integer(value), 1));
        let run = |forget: bool| {
            let engine = engine(PLAIN, &["t"]);
            let connection = engine.connection();
            connection.execute_batch("BEGIN").unwrap();
            merge_by_sql(connection, std::slice::from_ref(&first));
            connection.execute_batch(statement).unwrap();
            if forget {
                // Another row comes between, so nothing of the first is kept.
                let other = change("t", &[Value::Integer(2)], "b", Value::Integer(0), 1);
                merge_by_sql(connection, &[other]);
            }
            merge_by_sql(connection, std::slice::from_ref(&second));
            connection.execute_batch("COMMIT; DELETE FROM t WHERE a = 2").unwrap();
            let clocks: Vec<_> = select_changes(connection, "WHERE pk = x'010901'").iter().map(identity).collect();
            (rows(&engine, "t"), clocks)
        };
        assert_eq!(run(false), run(true), "{statement}");
    }
}

/// A rollback opens no savepoint and takes back no count of changes: what was kept or looked at before it is void all the same.
#[test]
fn nothing_is_kept_of_what_a_savepoint_took_back() {
    let write = |column: &str, value: i64| change("t", &[Value::Integer(1)], column, Value::Integer(value), 1);
    let name = "x".repeat(3000);
    let row = "x'010901', 'b', 10, 1, 1, x'07070707070707070707070707070707', 1, 0";
    let failing = format!("INSERT INTO crsql_changes VALUES ('t', {row}), ('{name}', {row})");
    for kind in ["savepoint", "statement"] {
        let engine = engine(PLAIN, &["t"]);
        let connection = engine.connection();
        connection.execute_batch("BEGIN").unwrap();
        if kind == "savepoint" {
            connection.execute_batch("SAVEPOINT s").unwrap();
            merge_by_sql(connection, &[write("b", 10)]);
            connection.execute_batch("ROLLBACK TO s").unwrap();
        } else {
            connection.execute_batch(&failing).unwrap_err();
        }
        merge_by_sql(connection, &[write("c", 20)]);
        connection.execute_batch("COMMIT").unwrap();
        let clocks: Vec<_> = select_changes(connection, "").iter().map(identity).collect();
        assert_eq!(clocks, [identity(&write("c", 20))], "{kind}");
        assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM t__crsql_clock"), 1, "{kind}");
    }
}

#[test]
fn a_schema_that_a_savepoint_took_back_is_not_gone_by() {
    let engine = engine(PLAIN, &["t"]);
    let connection = engine.connection();
    let create = "CREATE TABLE u (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('u')";
    connection.execute_batch(&format!("BEGIN; SAVEPOINT s; {create}")).unwrap();
    merge_by_sql(connection, &[change("u", &[Value::Integer(1)], "b", Value::Integer(10), 1)]);
    connection.execute_batch("ROLLBACK TO s").unwrap();
    let insert =
        "INSERT INTO crsql_changes VALUES ('u', x'010901', 'b', 1, 1, 1, x'07070707070707070707070707070707', 1, 0)";
    let message = refusal(connection, insert);
    assert!(message.contains("could not find the schema information for table u"), "{message}");
}

/// The same for local writes: no clock for a column that is gone again.
#[test]
fn a_column_that_a_savepoint_took_back_gets_no_clock() {
    let engine = engine(PLAIN, &["t"]);
    let alter = "SELECT crsql_begin_alter('t'); ALTER TABLE t ADD COLUMN d; SELECT crsql_commit_alter('t')";
    let writes = "INSERT INTO t VALUES (1, 1, 1, 1); ROLLBACK TO s; INSERT INTO t VALUES (2, 2, 2)";
    engine.connection().execute_batch(&format!("BEGIN; SAVEPOINT s; {alter}; {writes}; COMMIT")).unwrap();
    assert_eq!(ask::<String>(engine.connection(), "SELECT group_concat(col_name) FROM t__crsql_clock"), "b,c");
}

#[track_caller]
fn assert_nothing_stayed(engine: &Engine) {
    for table in ["t", "t__crsql_pks", "t__crsql_clock", "litemesh_origin", "litemesh_cursor"] {
        assert_eq!(ask::<i64>(engine.connection(), &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
}

/// A key whose bytes are those of a REAL that is no number: SQLite makes NULL of it, which no row has for a key.
#[test]
fn a_key_that_is_no_number_is_no_key() {
    let mut packed = vec![1, 2];
    packed.extend_from_slice(&f64::NAN.to_be_bytes());
    for (column, causal_length) in [("-1", 2), ("b", 1)] {
        let change = Change {
            key: PackedKey::from_bytes(packed.as_slice()),
            causal_length: CausalLength::new(causal_length),
            ..change("t", &[], column, Value::Null, 1)
        };
        let mut engine = engine("CREATE TABLE t (a PRIMARY KEY NOT NULL, b)", &["t"]);
        let error = engine.merge(&[change], &MergeProgress::default()).unwrap_err();
        assert!(matches!(error, MergeError::NullKey { index: 0, .. }), "{error}");
        assert_nothing_stayed(&engine);
    }
}

/// What a trigger of one table does to rows of another one counts for those that come after it.
#[test]
fn triggers_of_the_user_change_rows_of_other_tables() {
    let schema =
        "CREATE TABLE u (a INTEGER PRIMARY KEY NOT NULL, b); CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b)";
    let prepare = "INSERT INTO u VALUES (1, 5), (2, 5);
         CREATE TRIGGER passed_on AFTER INSERT ON t BEGIN UPDATE u SET b = 99 WHERE a = NEW.a; END";
    let write = |table: &str, key: i64, value: i64, col_version: i64| Change {
        col_version: ColVersion::new(col_version),
        ..change(table, &[Value::Integer(key)], "b", Value::Integer(value), 1)
    };
    let newer = check(schema, &["u", "t"], prepare, &[write("u", 7, 1, 1), write("t", 1, 3, 1), write("u", 1, 50, 2)]);
    assert_eq!(ask::<i64>(newer.connection(), "SELECT b FROM u WHERE a = 1"), 50);
    // Equal versions: what decides is the value that the trigger has left.
    let equal = check(schema, &["u", "t"], prepare, &[write("u", 7, 1, 1), write("t", 2, 3, 1), write("u", 2, 50, 1)]);
    assert_eq!(ask::<i64>(equal.connection(), "SELECT b FROM u WHERE a = 2"), 99);
}

/// SQLite then rolls back the whole transaction: nothing may be written after that, least of all the cursor.
#[test]
fn an_interrupted_merge_leaves_nothing() {
    let mut engine = Engine::open_in_memory().unwrap();
    let handle = engine.connection().get_interrupt_handle();
    let is_due = Arc::new(AtomicBool::new(true));
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    let interrupt = move |context: &Context<'_>| {
        if context.get::<i64>(0)? == 405 && is_due.swap(false, Ordering::Relaxed) {
            handle.interrupt();
        }
        Ok(true)
    };
    engine.connection().create_scalar_function("interrupt", 1, flags, interrupt).unwrap();
    let create = "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b, c, CHECK (interrupt(a)))";
    engine.connection().execute_batch(create).unwrap();
    engine.replicate("t").unwrap();
    let changes = pairs(600, |n| 1 + n / 100);
    let mut progress = MergeProgress::default();
    progress.cursor.advance(changes[0].site, DbVersion::new(7));
    let error = engine.merge(&changes, &progress).unwrap_err();
    assert!(!error.is_content() && error.to_string().contains("interrupted"), "{error}");
    assert_nothing_stayed(&engine);
    engine.merge(&changes, &progress).unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM t"), 600);
}

/// A conflict clause of the table's may keep what a failing statement wrote, or end the transaction.
#[test]
fn one_bad_row_among_many_leaves_nothing_whatever_the_conflict_clause() {
    for clause in ["ROLLBACK", "FAIL", "ABORT"] {
        let schema =
            format!("CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b NOT NULL ON CONFLICT {clause} DEFAULT 0, c)");
        let mut changes = pairs(300, |n| 1 + n / 100);
        changes[404].value = Value::Null;
        let mut engine = engine(&schema, &["t"]);
        let error = engine.merge(&changes, &MergeProgress::default()).unwrap_err();
        assert!(matches!(error, MergeError::Constraint { index: 404, .. }), "{clause}: {error}");
        assert_nothing_stayed(&engine);
    }
}

/// BUG-16: `ANY` keeps every type in a STRICT table; in others it is a word like any other, and numbers are made of digits.
#[test]
fn a_text_key_of_digits_is_what_the_column_makes_of_it() {
    for (strict, expected) in [("", "integer"), ("STRICT", "text")] {
        let schema =
            format!("CREATE TABLE t (a ANY PRIMARY KEY NOT NULL, b) {strict}").replace("b) STRICT", "b ANY) STRICT");
        let of = |key: Value, value: i64| change("t", &[key], "b", Value::Integer(value), 1);
        let native = check(
            &schema,
            &["t"],
            "INSERT INTO t VALUES ('7', 1)",
            &[of(Value::text("7"), 5), of(Value::text("\x0b8"), 2)],
        );
        assert_eq!(ask::<String>(native.connection(), "SELECT DISTINCT typeof(a) FROM t"), expected);
        assert_eq!(ask::<i64>(native.connection(), "SELECT count(*) FROM t__crsql_pks"), 2);
    }
}

/// `known-failures.md` D1: two statements for each change, in the original. What a change costs is counted in instructions as
/// well, by the gate of docs/benchmarks.md.
#[test]
fn a_merge_runs_far_fewer_statements_than_it_has_changes() {
    const ROWS: i64 = 2000;
    let schema = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER, ts INTEGER)";
    let mut engine = engine(schema, &["todo"]);
    let started = Arc::new(AtomicUsize::new(0));
    let seen = started.clone();
    let count = move |event: TraceEvent<'_>| {
        seen.fetch_add(usize::from(matches!(event, TraceEvent::Stmt(..))), Ordering::Relaxed);
    };
    engine.connection_mut().trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(count)).unwrap();
    // New rows, then newer values of them.
    for col_version in [1, 2] {
        let cell = |row: i64, column: &str, value| Change {
            col_version: ColVersion::new(col_version),
            ..change("todo", &[Value::text(format!("row {row}"))], column, value, col_version)
        };
        let row = |row| {
            let title = Value::text(format!("title {row}"));
            [cell(row, "title", title), cell(row, "done", Value::Integer(0)), cell(row, "ts", Value::Integer(row))]
        };
        let changes: Vec<Change> = (0..ROWS).flat_map(row).collect();
        started.store(0, Ordering::Relaxed);
        engine.merge(&changes, &MergeProgress::default()).unwrap();
        let statements = started.load(Ordering::Relaxed);
        assert!(statements > 0 && 5 * statements < changes.len(), "{statements} statements, {} changes", changes.len());
    }
    assert_eq!(
        ask::<i64>(engine.connection(), "SELECT count(*) FROM todo__crsql_clock WHERE col_version = 2"),
        3 * ROWS
    );
}
