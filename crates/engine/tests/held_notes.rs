//! Notes of local writes, and of what is merged through `crsql_changes`, wait for the commit. Whenever they are recorded, the clocks
//! are the same: those that a transaction leaves whose clocks are recorded after each statement, because the engine was asked.

mod support;

use fastrand::Rng;
use litemesh_engine::Engine;
use litemesh_engine::rusqlite::{Connection, types::ValueRef};
use litemesh_testkit::{Schema, Statement, quote, schemas};
use support::{ask, for_seeds, refusal};

/// Has everything recorded that waits.
const ASK: &str = "SELECT crsql_get_seq()";

const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c)";

fn foo() -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(FOO).unwrap();
    engine.replicate("foo").unwrap();
    engine
}

fn rows(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let text = |value: ValueRef<'_>| format!("{value:?}");
    let rows = statement.query_map([], |row| (0..columns).map(|n| Ok(text(row.get_ref(n)?))).collect());
    rows.unwrap().map(|row| row.map(|row: Vec<String>| row.join(" ")).unwrap()).collect()
}

/// Everything that is stored about tables, and what the functions say. Shadow tables first: reading them records nothing.
fn stored(connection: &Connection, tables: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    for table in tables {
        for shadow in ["__crsql_clock", "__crsql_pks", ""] {
            let sql = format!("SELECT * FROM {} ORDER BY 1, 2", quote(&format!("{table}{shadow}")));
            all.extend(rows(connection, &sql).into_iter().map(|row| format!("{table}{shadow} {row}")));
        }
    }
    let changes = "SELECT \"table\", pk, cid, val, col_version, db_version, cl, seq FROM crsql_changes";
    all.extend(rows(connection, changes));
    all.extend(rows(connection, "SELECT crsql_db_version(), crsql_get_seq(), crsql_rows_impacted()"));
    all
}

/// Whether a statement failed; and of a merge its rowid, and how many rows it changed.
type Told = (bool, (i64, u64));

/// What comes of statements, when the engine is asked after those that `asks` names: whether each failed, and what SQLite tells of
/// it; and everything that is stored at last.
fn outcome(
    engine: &Engine,
    tables: &[&str],
    statements: &[String],
    mut asks: impl FnMut(usize) -> bool,
) -> (Vec<Told>, Vec<String>) {
    let connection = engine.connection();
    let mut failed = Vec::new();
    for (index, sql) in statements.iter().enumerate() {
        let has_failed = connection.execute_batch(sql).is_err();
        // What merges tell their peers.
        let is_merge = sql.starts_with("INSERT INTO crsql_changes") && !has_failed;
        let told = is_merge.then(|| (connection.last_insert_rowid(), connection.changes()));
        failed.push((has_failed, told.unwrap_or_default()));
        if asks(index) {
            connection.execute_batch(ASK).unwrap();
        }
    }
    (failed, stored(connection, tables))
}

/// Runs statements in one engine that is never asked, one that is asked after each, and one that is asked now and then.
fn check(make: impl Fn() -> Engine, tables: &[&str], statements: &[String], rng: &mut Rng) {
    let asked = outcome(&make(), tables, statements, |_| true);
    for sometimes in [false, true] {
        let found = outcome(&make(), tables, statements, |_| sometimes && rng.u8(..6) == 0);
        let program = statements.join(";\n");
        for (index, (found, asked)) in found.0.iter().zip(&asked.0).enumerate() {
            assert_eq!(found, asked, "failed, rowid and changes of {}, of\n{program}", statements[index]);
        }
        let differing = found.1.iter().zip(&asked.1).find(|(found, asked)| found != asked);
        assert_eq!(found.1.len(), asked.1.len(), "{differing:?} after\n{program}");
        assert_eq!(differing, None, "after\n{program}");
    }
}

fn texts(statements: &[&str]) -> Vec<String> {
    statements.iter().map(|sql| (*sql).to_owned()).collect()
}

#[track_caller]
fn check_foo(statements: &[&str]) -> Engine {
    check(foo, &["foo"], &texts(statements), &mut Rng::with_seed(1));
    let engine = foo();
    outcome(&engine, &["foo"], &texts(statements), |_| false);
    engine
}

/// Statements on runs of keys, one row each or all at once: what is written together when it is recorded.
fn run_of_statements(rng: &mut Rng, program: &mut Vec<String>) {
    let first = rng.i64(1..20);
    let last = first + rng.i64(0..12);
    let mut keys: Vec<i64> = (first..=last).collect();
    if rng.u8(..3) == 0 {
        rng.shuffle(&mut keys);
    }
    if rng.u8(..4) == 0 {
        keys.retain(|key| key % 3 > 0);
    }
    if rng.u8(..4) == 0 {
        keys.extend_from_within(..keys.len() / 2);
    }
    let cells = ["b = b || 'x'", "c = 7 + coalesce(c, 0)", "b = b + 1, c = c + 1", "b = b"];
    let set = rng.choice(cells).unwrap();
    let verb = rng.choice(["INSERT", "REPLACE", "INSERT OR IGNORE"]).unwrap();
    match rng.u8(..6) {
        0 | 1 => program.extend(keys.iter().map(|key| format!("{verb} INTO run VALUES ({key}, 1, {key})"))),
        2 => program.extend(keys.iter().map(|key| format!("UPDATE run SET {set} WHERE a = {key}"))),
        3 => program.extend(keys.iter().map(|key| format!("DELETE FROM run WHERE a = {key}"))),
        4 => program.push(format!("UPDATE run SET {set} WHERE a BETWEEN {first} AND {last}")),
        _ => program.push(format!("DELETE FROM run WHERE a BETWEEN {first} AND {last}")),
    }
}

/// Changes of remotes as peers insert them: row by row, several cells of each, one statement each or many; among them what is
/// known, what loses, what ends a life or begins another one, and what the table refuses.
fn run_of_merges(rng: &mut Rng, program: &mut Vec<String>) {
    let is_of_words = rng.bool();
    let version = rng.i64(1..12);
    let site = rng.i64(1..4);
    let mut changes = Vec::new();
    for row in 0..rng.i64(1..6) {
        let number = rng.i64(1..40) + row;
        let (table, key) = if is_of_words { ("words", format!("'w{number}'")) } else { ("run", number.to_string()) };
        for _ in 0..rng.u8(1..4) {
            let cell = match rng.u8(..12) {
                0 => "-1",
                1 => "gone",
                2..7 => "b",
                _ => "c",
            };
            let length = if rng.u8(..6) == 0 { rng.i64(0..5) } else { 1 };
            let value = if rng.u8(..10) == 0 { "'refused'".to_owned() } else { rng.i64(0..4).to_string() };
            let col_version = if cell == "-1" { length } else { rng.i64(1..4) };
            let version = if rng.u8(..5) == 0 { rng.i64(1..12) } else { version };
            changes.push(format!(
                "('{table}', crsql_pack_columns({key}), '{cell}', {value}, {col_version}, {version}, x'{site:032x}', {length}, {})",
                changes.len()
            ));
        }
    }
    let together = if rng.u8(..4) == 0 { rng.usize(1..6) } else { 1 };
    program
        .extend(changes.chunks(together).map(|rows| format!("INSERT INTO crsql_changes VALUES {}", rows.join(", "))));
}

/// Transactions with savepoints inside of each other, and statements of which some fail.
fn random_program(rng: &mut Rng, schemas: &[Schema]) -> Vec<String> {
    let mut program = Vec::new();
    for _ in 0..rng.usize(1..4) {
        let mut open: Vec<usize> = Vec::new();
        let is_savepoint = rng.u8(..3) == 0;
        program.push(if is_savepoint { "SAVEPOINT s0" } else { "BEGIN" }.to_owned());
        for number in 1..rng.usize(2..25) {
            match rng.u8(..20) {
                0..3 => {
                    program.push(format!("SAVEPOINT s{number}"));
                    open.push(number);
                }
                3..5 if !open.is_empty() => {
                    let place = rng.usize(..open.len());
                    program.push(format!("ROLLBACK TO s{}", open[place]));
                    open.truncate(place + 1);
                }
                5..7 if !open.is_empty() => {
                    let place = rng.usize(..open.len());
                    program.push(format!("RELEASE s{}", open[place]));
                    open.truncate(place);
                }
                7 if is_savepoint => {
                    program.push("ROLLBACK TO s0".to_owned());
                    open.clear();
                }
                8..13 => run_of_statements(rng, &mut program),
                13 => program.push(format!(
                    "INSERT INTO crsql_changes VALUES ('run', crsql_pack_columns({}), 'b', {}, {}, {}, x'{:032x}', {}, 3)",
                    rng.i64(1..30),
                    rng.i64(0..9),
                    rng.i64(1..4),
                    rng.i64(1..12),
                    rng.u8(1..4),
                    rng.i64(1..4)
                )),
                14..17 => run_of_merges(rng, &mut program),
                _ => program.push(Statement::random(rng, schemas).to_sql(schemas)),
            }
        }
        program.push(if rng.u8(..8) == 0 { "ROLLBACK" } else { "COMMIT" }.to_owned());
    }
    program
}

#[test]
fn what_is_recorded_at_the_commit_is_what_is_recorded_after_each_statement() {
    let schemas = schemas();
    let names: Vec<&str> = schemas.iter().map(|schema| &*schema.name).chain(["run", "words"]).collect();
    for recursive in [false, true] {
        for_seeds(0x4e1d, 120, |rng| {
            let ties = rng.u8(..2);
            let make = || {
                let engine = support::engine(&schemas);
                engine.connection().execute_batch("CREATE TABLE run (a INTEGER PRIMARY KEY NOT NULL, b, c)").unwrap();
                engine.replicate("run").unwrap();
                let words = "CREATE TABLE words (a TEXT PRIMARY KEY NOT NULL, b, c CHECK (c <> 'refused'))";
                engine.connection().execute_batch(words).unwrap();
                engine.replicate("words").unwrap();
                let config = format!("SELECT crsql_config_set('merge-equal-values', {ties})");
                engine.connection().execute_batch(&config).unwrap();
                engine.connection().pragma_update(None, "recursive_triggers", recursive).unwrap();
                engine
            };
            let program = random_program(rng, &schemas);
            check(make, &names, &program, rng);
        });
    }
}

/// Each savepoint takes back what was noted inside of it, whenever it was recorded.
#[test]
fn a_savepoint_takes_back_its_own_notes() {
    let engine = check_foo(&[
        "BEGIN",
        "INSERT INTO foo VALUES (1, 1, 1)",
        "SAVEPOINT x",
        "INSERT INTO foo VALUES (2, 1, 1)",
        "UPDATE foo SET b = 2",
        "SAVEPOINT y",
        "DELETE FROM foo WHERE a = 1",
        "ROLLBACK TO y",
        "RELEASE y",
        "ROLLBACK TO x",
        "INSERT INTO foo VALUES (3, 1, 1)",
        "COMMIT",
    ]);
    let clocks = rows(engine.connection(), "SELECT key, col_name, col_version, seq FROM foo__crsql_clock");
    assert_eq!(clocks.len(), 4, "{clocks:?}");
}

/// What was noted before a savepoint and recorded inside of it is recorded again when it is rolled back.
#[test]
fn what_was_recorded_inside_of_a_savepoint_is_recorded_again() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1, 1); SAVEPOINT x; INSERT INTO foo VALUES (2, 1, 1)").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes"), 4);
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 4);
    db.execute_batch("ROLLBACK TO x").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 0);
    assert_eq!(ask::<i64>(db, ASK), 2, "numbers come back");
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 2);
    db.execute_batch("INSERT INTO foo VALUES (3, 1, 1); COMMIT").unwrap();
    assert_eq!(
        rows(db, "SELECT key, seq FROM foo__crsql_clock").join(", "),
        [0, 1, 2, 3].map(|seq| { format!("Integer({}) Integer({seq})", if seq < 2 { 1 } else { 2 }) }).join(", ")
    );
    assert_eq!(engine.db_version().unwrap().get(), 1);
}

/// A savepoint that is older than the engine's part in the transaction, or is the transaction.
#[test]
fn a_savepoint_from_before_the_first_write_takes_everything_back() {
    check_foo(&[
        "BEGIN",
        "SAVEPOINT x",
        "SAVEPOINT y",
        "INSERT INTO foo VALUES (1, 1, 1)",
        "ROLLBACK TO x",
        "INSERT INTO foo VALUES (2, 1, 1)",
        "COMMIT",
    ]);
    check_foo(&[
        "SAVEPOINT x",
        "INSERT INTO foo VALUES (1, 1, 1)",
        "ROLLBACK TO x",
        "INSERT INTO foo VALUES (2, 1, 1)",
        "RELEASE x",
    ]);
}

#[test]
fn a_failed_statement_takes_back_its_own_notes() {
    let engine = check_foo(&[
        "BEGIN",
        "INSERT INTO foo VALUES (1, 1, 1)",
        "INSERT INTO foo VALUES (2, 1, 1), (3, 1, 1), (1, 1, 1)",
        "INSERT OR FAIL INTO foo VALUES (4, 1, 1), (1, 1, 1), (5, 1, 1)",
        "COMMIT",
    ]);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM foo__crsql_clock"), 4);
}

/// More than notes are kept of, below a savepoint, in it, and in one statement that fails.
#[test]
fn notes_that_are_many_are_recorded_before_the_commit() {
    let fill = |first: i64, last: i64, end: &str| {
        format!(
            "WITH RECURSIVE n(i) AS (VALUES ({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {last})
             INSERT INTO foo SELECT CASE i WHEN {last} THEN {end} ELSE i END, i, i FROM n"
        )
    };
    check_foo(&[
        "BEGIN",
        &fill(1, 900, "900"),
        "SAVEPOINT x",
        &fill(1_001, 5_000, "5000"),
        "UPDATE foo SET b = 0",
        &fill(6_001, 9_000, "1"),
        "ROLLBACK TO x",
        "DELETE FROM foo WHERE a % 5 > 0",
        &fill(1_001, 1_600, "1600"),
        "SAVEPOINT y",
        "DELETE FROM foo",
        "ROLLBACK TO y",
        "UPDATE foo SET b = 1, c = 1",
        "COMMIT",
    ]);
}

fn fill(first: i64, last: i64) -> String {
    format!(
        "INSERT INTO foo WITH RECURSIVE n(i) AS (VALUES ({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {last})
         SELECT i, i, i FROM n"
    )
}

/// All rows are deleted, or all but some: the clocks of those that stay, or were dead before, are what they were.
#[test]
fn a_table_is_emptied() {
    for before in [
        "",
        "DELETE FROM foo WHERE a IN (1, 2, 70, 300)",
        "DELETE FROM foo WHERE a > 150; INSERT INTO foo VALUES (151, 1, 1), (160, 1, 1), (300, 1, 1)",
        "DELETE FROM foo WHERE a < 150; DELETE FROM foo WHERE a % 2 = 0; REPLACE INTO foo VALUES (290, 1, 1)",
        "DELETE FROM foo__crsql_clock WHERE key IN (3, 5) AND col_name = 'b'; DELETE FROM foo__crsql_pks WHERE __crsql_key = 6",
        "SELECT crsql_internal_sync_bit(1); DELETE FROM foo WHERE a IN (5, 300); SELECT crsql_internal_sync_bit(0)",
        "SELECT crsql_internal_sync_bit(1); INSERT INTO foo VALUES (500, 1, 1); SELECT crsql_internal_sync_bit(0)",
    ] {
        let all: Vec<i64> = (1..=500).collect();
        for (keys, sql) in [
            (all.clone(), Some("DELETE FROM foo")),
            (all.iter().copied().filter(|key| *key != 20).collect(), Some("DELETE FROM foo WHERE a <> 20")),
            (all[..298].to_vec(), Some("DELETE FROM foo WHERE a < 299")),
            (all[19..260].to_vec(), Some("DELETE FROM foo WHERE a BETWEEN 20 AND 260")),
            (all.iter().copied().filter(|key| key % 20 > 2).collect(), Some("DELETE FROM foo WHERE a % 20 > 2")),
            (all.iter().copied().rev().collect(), None),
            (all[150..].iter().chain(&all[..150]).copied().collect(), None),
            (all.iter().chain(&all).copied().collect(), None),
        ] {
            let mut program = texts(&[&fill(1, 300), before, "BEGIN"]);
            program.extend(keys.iter().map(|key| format!("DELETE FROM foo WHERE a = {key}")));
            program.push("COMMIT".to_owned());
            check(foo, &["foo"], &program, &mut Rng::with_seed(1));
            let Some(sql) = sql else { continue };
            let at_once = foo();
            let found =
                outcome(&at_once, &["foo"], &texts(&[&fill(1, 300), before, "BEGIN", sql, "COMMIT"]), |_| false);
            assert_eq!(found.1, outcome(&foo(), &["foo"], &program, |_| true).1, "after {before} and {sql}");
            assert_eq!(ask::<String>(at_once.connection(), "PRAGMA integrity_check"), "ok");
        }
    }
}

/// Deletes of more rows than notes are kept of are held all the same, below a savepoint and in it.
#[test]
fn many_deletes_are_held() {
    for last in [
        "DELETE FROM foo",
        "ROLLBACK TO x",
        "ROLLBACK TO x; DELETE FROM foo WHERE a % 3 = 0",
        "ROLLBACK TO x; INSERT INTO foo VALUES (1, 2, 3); DELETE FROM foo",
        "RELEASE x; DELETE FROM foo WHERE a > 2700; INSERT OR FAIL INTO foo VALUES (3000, 1, 1), (2999, 1, 1), (2999, 1, 1)",
        "UPDATE foo SET b = 1 WHERE a > 2500; DELETE FROM foo WHERE a > 2600",
        "DELETE FROM foo__crsql_pks WHERE __crsql_key < 5; DELETE FROM foo WHERE a > 2500",
    ] {
        check_foo(&[
            &fill(1, 3_000),
            "BEGIN",
            "DELETE FROM foo WHERE a <= 1100",
            "DELETE FROM foo WHERE a <= 1400",
            "SAVEPOINT x",
            "DELETE FROM foo WHERE a <= 1500",
            "DELETE FROM foo WHERE a <= 2500",
            last,
            "COMMIT",
        ]);
    }
    let by_key: Vec<String> = (1..=3_000).map(|key| format!("DELETE FROM foo WHERE a = {key}")).collect();
    let mut program = vec![fill(1, 3_000), "BEGIN".to_owned()];
    program.extend(by_key);
    program.push("COMMIT".to_owned());
    check(foo, &["foo"], &program, &mut Rng::with_seed(1));
}

/// The same at random.
#[test]
fn deletes_of_ranges_at_random() {
    for_seeds(0xde1e, 40, |rng| {
        let mut program = vec![fill(1, 2_500)];
        for _ in 0..2 {
            program.push("BEGIN".to_owned());
            let mut is_open = false;
            for _ in 0..rng.usize(2..9) {
                let first = rng.i64(1..2_500);
                let last = rng.i64(first..=2_500);
                program.push(match rng.u8(..12) {
                    0..4 => format!("DELETE FROM foo WHERE a BETWEEN {first} AND {last}"),
                    4 => format!("DELETE FROM foo WHERE a BETWEEN {first} AND {last} AND a % {} > 0", rng.u8(2..40)),
                    5 | 6 => "DELETE FROM foo".to_owned(),
                    7 => fill(first, last).replace("INSERT", "INSERT OR IGNORE"),
                    8 => format!("UPDATE foo SET b = b + 1 WHERE a BETWEEN {first} AND {last}"),
                    9 if is_open => "ROLLBACK TO x".to_owned(),
                    _ => {
                        is_open = true;
                        "SAVEPOINT x".to_owned()
                    }
                });
            }
            program.push("COMMIT".to_owned());
        }
        check(foo, &["foo"], &program, rng);
    });
}

/// Several writes of one row come to what they come to one by one.
#[test]
fn a_row_that_is_written_again_and_again() {
    let again: Vec<String> = (0..12)
        .flat_map(|n| {
            let (a, b) = (n % 3, (n + 1) % 3);
            [
                format!("INSERT OR IGNORE INTO foo VALUES ({a}, {n}, 1)"),
                format!("UPDATE foo SET b = {n} + 100 WHERE a = {a}"),
                format!("REPLACE INTO foo VALUES ({b}, 1, {n})"),
                format!("UPDATE OR REPLACE foo SET a = {b} WHERE a = {a}"),
                format!("DELETE FROM foo WHERE a = {b}"),
            ]
        })
        .collect();
    let mut program = vec!["BEGIN"];
    program.extend(again.iter().map(String::as_str));
    program.push("COMMIT");
    check_foo(&program);
}

/// A long run in which a cell has no clock, a row was deleted before, and keys are not known.
#[test]
fn rows_beside_each_other_that_are_not_alike() {
    let each = |sql: &str| (1..=9).map(|key| format!("{sql} {key}; ")).collect::<String>();
    let fill = "INSERT INTO foo SELECT value, 1, 1 FROM json_each('[1,2,3,4,5,6,7,8,9]')";
    for disturb in [
        "DELETE FROM foo__crsql_clock WHERE key IN (3, 5) AND col_name = 'b'",
        "DELETE FROM foo__crsql_clock WHERE key = 4",
        "DELETE FROM foo__crsql_pks WHERE __crsql_key = 6",
        "DELETE FROM foo WHERE a = 5; INSERT INTO foo VALUES (5, 1, 1)",
        "SELECT crsql_internal_sync_bit(1); DELETE FROM foo WHERE a = 5; SELECT crsql_internal_sync_bit(0)",
    ] {
        for write in
            ["UPDATE foo SET b = 5 WHERE a =", "UPDATE foo SET b = 5, c = 2 WHERE a =", "DELETE FROM foo WHERE a ="]
        {
            check_foo(&[fill, disturb, "BEGIN", &each(write), "COMMIT"]);
        }
        let insert: String = (1..=12).map(|key| format!("INSERT OR REPLACE INTO foo VALUES ({key}, 2, 2); ")).collect();
        check_foo(&[fill, disturb, "BEGIN", &insert, "COMMIT"]);
    }
}

/// Schema changes with notes waiting, which are of the tables as they were.
#[test]
fn schema_changes_while_notes_wait() {
    for change in [
        "SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN d; SELECT crsql_commit_alter('foo')",
        "SELECT crsql_begin_alter('foo'); ALTER TABLE foo DROP COLUMN c; SELECT crsql_commit_alter('foo')",
        "ALTER TABLE foo ADD COLUMN d",
        "ALTER TABLE foo RENAME COLUMN c TO e",
        "SELECT crsql_as_table('foo'); SELECT crsql_as_crr('foo')",
        "CREATE TABLE other (a PRIMARY KEY NOT NULL); SELECT crsql_as_crr('other')",
        "CREATE INDEX i ON foo (b)",
    ] {
        check_foo(&[
            "INSERT INTO foo VALUES (1, 1, 1)",
            "BEGIN",
            "INSERT INTO foo VALUES (2, 1, 1)",
            "UPDATE foo SET b = 2",
            change,
            "INSERT INTO foo (a) VALUES (3)",
            "UPDATE foo SET b = 3",
            "COMMIT",
        ]);
    }
}

/// A table that is dropped leaves its clocks, as ever; shadow tables that are dropped take them along, and nothing fails.
#[test]
fn a_table_is_dropped_while_notes_wait() {
    for (drop, is_kept) in [
        ("DROP TABLE foo", true),
        ("DROP TABLE foo; DROP TABLE foo__crsql_clock; DROP TABLE foo__crsql_pks", false),
        ("DROP TABLE foo; DROP TABLE foo__crsql_clock; INSERT INTO bar VALUES (1, 1)", false),
    ] {
        let engine = foo();
        let db = engine.connection();
        db.execute_batch("CREATE TABLE bar (a PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar')").unwrap();
        db.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1, 1); INSERT INTO bar VALUES (0, 0)").unwrap();
        db.execute_batch(drop).unwrap();
        db.execute_batch("INSERT INTO bar VALUES (2, 2); COMMIT").unwrap();
        if is_kept {
            assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 2);
        }
        let of_bar = ask::<i64>(db, "SELECT count(*) FROM bar__crsql_clock");
        assert_eq!(of_bar, ask::<i64>(db, "SELECT count(*) FROM bar"), "{drop}");
    }
}

/// The commit fails when clocks cannot be written, says why, and takes everything back (`known-failures.md` A6).
#[test]
fn a_commit_that_cannot_record_takes_everything_back() {
    for around in [["BEGIN", "COMMIT"], ["SAVEPOINT s", "RELEASE s"]] {
        let engine = foo();
        let db = engine.connection();
        db.execute_batch(
            "INSERT INTO foo VALUES (1, 1, 1);
             CREATE TRIGGER refuse BEFORE INSERT ON foo__crsql_clock WHEN NEW.key = 3
             BEGIN SELECT RAISE(ABORT, 'no clock of a third row'); END",
        )
        .unwrap();
        db.execute_batch(around[0]).unwrap();
        db.execute_batch("INSERT INTO foo VALUES (2, 1, 1); UPDATE foo SET b = 2; INSERT INTO foo VALUES (3, 1, 1)")
            .unwrap();
        assert!(refusal(db, around[1]).contains("no clock of a third row"));
        // SQLite rolls back for a RELEASE, too, but says that a transaction is open.
        if !db.is_autocommit() {
            db.execute_batch("ROLLBACK").unwrap();
        }
        assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo"), 1);
        assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 2);
        assert_eq!(engine.db_version().unwrap().get(), 1);
        db.execute_batch("DROP TRIGGER refuse; BEGIN; INSERT INTO foo VALUES (3, 1, 1); COMMIT").unwrap();
        assert_eq!(engine.db_version().unwrap().get(), 2);
        assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 4);
    }
}

/// Where the engine is asked first, that fails, and so does the commit: half of the clocks must not stay. A savepoint from before
/// takes it back.
#[test]
fn what_is_half_recorded_is_not_committed() {
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON foo__crsql_clock WHEN NEW.key = 2
         BEGIN SELECT RAISE(ABORT, 'no clock of a second row'); END";
    let write = "INSERT INTO foo VALUES (1, 1, 1); UPDATE foo SET b = 2; INSERT INTO foo VALUES (2, 1, 1)";
    for is_saved in [false, true] {
        let engine = foo();
        let db = engine.connection();
        db.execute_batch(refuse).unwrap();
        db.execute_batch("BEGIN; INSERT INTO foo VALUES (9, 9, 9); DELETE FROM foo").unwrap();
        if is_saved {
            db.execute_batch("SAVEPOINT s").unwrap();
        }
        // The key of the row that went is 1.
        db.execute_batch(write).unwrap();
        assert!(refusal(db, ASK).contains("no clock of a second row"));
        assert!(refusal(db, "SELECT crsql_db_version()").contains("could not be recorded"));
        if is_saved {
            db.execute_batch("SAVEPOINT t; ROLLBACK TO t; RELEASE t").unwrap();
            assert!(refusal(db, ASK).contains("could not be recorded"));
            db.execute_batch("ROLLBACK TO s; COMMIT").unwrap();
            assert_eq!(rows(db, "SELECT key, col_name FROM foo__crsql_clock"), ["Integer(1) Text([45, 49])"]);
        } else {
            assert!(refusal(db, "COMMIT").contains("could not be recorded"));
            assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 0);
        }
        assert!(db.is_autocommit());
        assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo"), 0);
        db.execute_batch("DROP TRIGGER refuse; INSERT INTO foo VALUES (5, 5, 5)").unwrap();
    }
}

/// A commit that is refused for a deferred foreign key leaves the transaction open, with what it noted.
#[test]
fn a_refused_commit_keeps_notes() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch(
        "PRAGMA foreign_keys = ON; CREATE TABLE parent (a INTEGER PRIMARY KEY);
         CREATE TABLE child (p REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
    )
    .unwrap();
    db.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1, 1); INSERT INTO child VALUES (7)").unwrap();
    assert!(refusal(db, "COMMIT").contains("FOREIGN KEY"));
    assert!(!db.is_autocommit());
    db.execute_batch("INSERT INTO foo VALUES (2, 1, 1); INSERT INTO parent VALUES (7); COMMIT").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM foo__crsql_clock"), 4);
    assert_eq!(engine.db_version().unwrap().get(), 1);
}

/// A commit for which SQLite gets no lock leaves the transaction open: after notes were recorded, and a savepoint may yet take
/// them back.
#[test]
fn a_commit_that_is_busy_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("busy.db");
    let engine = Engine::attach(Connection::open(&file).unwrap()).unwrap();
    let db = engine.connection();
    db.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA busy_timeout = 0").unwrap();
    db.execute_batch(FOO).unwrap();
    engine.replicate("foo").unwrap();
    let reader = Connection::open(&file).unwrap();
    db.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1, 1); SAVEPOINT s; INSERT INTO foo VALUES (2, 1, 1)").unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM foo").unwrap();
    assert!(refusal(db, "COMMIT").contains("locked"));
    assert!(!db.is_autocommit());
    reader.execute_batch("COMMIT").unwrap();
    db.execute_batch("ROLLBACK TO s; INSERT INTO foo VALUES (3, 1, 1); COMMIT").unwrap();
    assert_eq!(ask::<i64>(&reader, "SELECT count(*) FROM foo__crsql_clock"), 4);
    assert_eq!(ask::<i64>(&reader, "SELECT max(seq) FROM foo__crsql_clock"), 3);
}

/// What the application asks of SQLite after asking the engine is about its own statements.
#[test]
fn who_forbids_itself_to_write_can_commit_what_it_wrote() {
    check_foo(&[
        "BEGIN",
        "INSERT INTO foo VALUES (1, 2, 3)",
        "PRAGMA query_only = ON",
        "SELECT count(*) FROM foo",
        "COMMIT",
        "INSERT INTO foo VALUES (2, 2, 3)",
        "PRAGMA query_only = OFF",
        "UPDATE foo SET b = 3",
    ]);
}

#[test]
fn asking_leaves_the_applications_counters() {
    let engine = foo();
    let db = engine.connection();
    for (sql, count) in [
        ("INSERT INTO foo VALUES (50, 1, 1)", 1),
        ("INSERT INTO foo VALUES (60, 1, 1), (61, 1, 1), (62, 1, 1)", 3),
        ("UPDATE foo SET b = 7 WHERE a < 70", 4),
        ("DELETE FROM foo", 4),
        ("UPDATE foo SET b = 7", 0),
    ] {
        db.execute_batch("BEGIN; INSERT OR IGNORE INTO foo VALUES (70, 0, 0)").unwrap();
        db.execute_batch(sql.replace("DELETE FROM foo", "DELETE FROM foo WHERE a <> 70").as_str()).unwrap();
        let expected = if count == 0 { 1 } else { count };
        for _ in 0..2 {
            db.execute_batch(ASK).unwrap();
            assert_eq!(ask::<i64>(db, "SELECT changes()"), expected, "{sql}");
        }
        let rowid = ask::<i64>(db, "SELECT last_insert_rowid()");
        db.execute_batch("COMMIT").unwrap();
        assert_eq!(ask::<i64>(db, "SELECT last_insert_rowid()"), rowid, "{sql}");
    }
}

/// The application may write to shadow tables while notes wait.
#[test]
fn shadow_tables_are_written_to_while_notes_wait() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch(
        "INSERT INTO foo VALUES (1, 1, 1), (2, 1, 1); BEGIN; UPDATE foo SET b = 2; INSERT INTO foo VALUES (3, 1, 1);
         DELETE FROM foo__crsql_clock; DELETE FROM foo__crsql_pks WHERE a = 1; INSERT INTO foo__crsql_pks (a) VALUES (3); COMMIT",
    )
    .unwrap();
    let changes = rows(db, "SELECT pk, cid FROM crsql_changes");
    assert_eq!(changes.len(), 4, "{changes:?}");
    assert_eq!(engine.db_version().unwrap().get(), 2);
}

/// FN-9: notes hold tables, and tables statements.
#[test]
fn a_connection_closes_while_notes_wait() {
    for end in ["", "SAVEPOINT s; SELECT crsql_get_seq(); SELECT crsql_finalize()", "SELECT crsql_finalize()"] {
        let db = Connection::open_in_memory().unwrap();
        litemesh_engine::load(&db).unwrap();
        db.execute_batch(&format!("{FOO}; SELECT crsql_as_crr('foo'); BEGIN; INSERT INTO foo VALUES (2, 1, 1)"))
            .unwrap();
        db.execute_batch(end).unwrap();
        db.close().unwrap();
    }
}

/// The same, and the transaction goes on.
#[test]
fn finalizing_keeps_what_a_savepoint_may_need() {
    check_foo(&[
        "BEGIN",
        "INSERT INTO foo VALUES (2, 1, 1)",
        "SAVEPOINT s",
        "INSERT INTO foo VALUES (3, 1, 1)",
        "SELECT crsql_finalize()",
        "ROLLBACK TO s",
        "INSERT INTO foo VALUES (4, 1, 1)",
        "COMMIT",
    ]);
}

/// Wake-ups come with commits of local writes, as ever.
#[test]
fn versions_are_told_as_ever() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1, 1)").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_next_db_version()"), 1);
    assert_eq!(ask::<i64>(db, "SELECT crsql_db_version()"), 0);
    db.execute_batch("UPDATE foo SET b = 2").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_next_db_version(7)"), 7);
    db.execute_batch("UPDATE foo SET b = 3; COMMIT").unwrap();
    assert_eq!(rows(db, "SELECT col_name, col_version, db_version, seq FROM foo__crsql_clock ORDER BY 1").len(), 2);
    assert_eq!(ask::<i64>(db, "SELECT db_version FROM foo__crsql_clock WHERE col_name = 'b'"), 7);
    assert_eq!(ask::<i64>(db, "SELECT crsql_db_version()"), 7);
}
