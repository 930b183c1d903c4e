//! Local writes are noted by triggers and recorded later: whatever the statement is, and however it ends.

mod support;

use litemesh_engine::Engine;
use rusqlite::Connection;
use support::ask;

fn foo() -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c)").unwrap();
    engine.replicate("foo").unwrap();
    engine
}

/// `(key, column, col_version, db_version, seq)` of every clock.
type Clock = (i64, String, i64, i64, i64);

fn clocks(connection: &Connection) -> Vec<Clock> {
    let sql = "SELECT k.a, col_name, col_version, db_version, seq FROM foo__crsql_clock
         JOIN foo__crsql_pks k ON k.__crsql_key = key ORDER BY db_version, seq";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn clock(key: i64, column: &str, col_version: i64, db_version: i64, seq: i64) -> Clock {
    (key, column.to_owned(), col_version, db_version, seq)
}

/// Clocks are recorded when the transaction is committed, or when the engine is asked before.
#[test]
fn clocks_are_there_when_the_engine_is_asked_and_when_the_transaction_is_over() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 2, 3)").unwrap();
    assert_eq!(clocks(db), []);
    assert_eq!(ask::<i64>(db, "SELECT count(*) FROM crsql_changes"), 2);
    assert_eq!(clocks(db), [clock(1, "b", 1, 1, 0), clock(1, "c", 1, 1, 1)]);
    db.execute_batch("UPDATE foo SET b = 5; DELETE FROM foo").unwrap();
    assert_eq!(ask::<i64>(db, "SELECT crsql_get_seq()"), 4);
    assert_eq!(clocks(db), [clock(1, "-1", 2, 1, 3)]);
    db.execute_batch("INSERT INTO foo VALUES (1, 2, 3); COMMIT").unwrap();
    assert_eq!(clocks(db), [clock(1, "-1", 3, 1, 4), clock(1, "b", 1, 1, 5), clock(1, "c", 1, 1, 6)]);
}

/// The rowid and the count are the user's, not those of a key row or a clock.
#[test]
fn recording_leaves_the_users_rowid_and_count() {
    for around in [["", ""], ["BEGIN", "COMMIT"]] {
        let engine = foo();
        let db = engine.connection();
        db.execute_batch(around[0]).unwrap();
        assert_eq!(db.execute("INSERT INTO foo VALUES (70, 1, 1), (80, 1, 1)", []).unwrap(), 2);
        assert_eq!(db.last_insert_rowid(), 80);
        assert_eq!(db.execute("UPDATE foo SET b = 2, c = 3", []).unwrap(), 2);
        assert_eq!(db.changes(), 2);
        assert_eq!(db.last_insert_rowid(), 80);
        db.execute_batch(around[1]).unwrap();
        assert_eq!(clocks(db).len(), 4);
    }
}

/// A statement that fails leaves neither rows nor clocks; what was before it in the transaction stays.
#[test]
fn a_failed_statement_leaves_nothing() {
    for around in [["", ""], ["BEGIN", "COMMIT"], ["SAVEPOINT s", "RELEASE s"]] {
        let engine = foo();
        let db = engine.connection();
        db.execute_batch("INSERT INTO foo VALUES (9, 0, 0)").unwrap();
        db.execute_batch(around[0]).unwrap();
        db.execute_batch("INSERT INTO foo VALUES (1, 1, 1)").unwrap();
        db.execute_batch("INSERT INTO foo VALUES (2, 1, 1), (3, 1, 1), (9, 1, 1)").unwrap_err();
        db.execute_batch(around[1]).unwrap();
        let keys: Vec<i64> = clocks(db).into_iter().map(|clock| clock.0).collect();
        assert_eq!(keys, [9, 9, 1, 1], "{around:?}");
    }
}

/// OR FAIL keeps the rows before the one that failed, and so it does their clocks.
#[test]
fn or_fail_keeps_the_rows_before_with_their_clocks() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch("INSERT INTO foo VALUES (9, 0, 0); BEGIN").unwrap();
    db.execute_batch("INSERT OR FAIL INTO foo VALUES (2, 1, 1), (9, 1, 1), (3, 1, 1)").unwrap_err();
    db.execute_batch("COMMIT").unwrap();
    let keys: Vec<i64> = clocks(db).into_iter().map(|clock| clock.0).collect();
    assert_eq!(keys, [9, 9, 2, 2]);
}

#[test]
fn or_rollback_takes_the_transaction_back() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch("INSERT INTO foo VALUES (9, 0, 0); BEGIN; INSERT INTO foo VALUES (1, 1, 1)").unwrap();
    db.execute_batch("INSERT OR ROLLBACK INTO foo VALUES (2, 1, 1), (9, 1, 1)").unwrap_err();
    assert!(db.is_autocommit());
    db.execute_batch("INSERT INTO foo VALUES (3, 1, 1)").unwrap();
    assert_eq!(
        clocks(db).into_iter().map(|clock| (clock.0, clock.3)).collect::<Vec<_>>(),
        [(9, 1), (9, 1), (3, 2), (3, 2)]
    );
}

/// Savepoints inside of each other, released and rolled back.
#[test]
fn savepoints_take_their_clocks_along() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch(
        "BEGIN; INSERT INTO foo VALUES (1, 1, 1);
         SAVEPOINT x; INSERT INTO foo VALUES (2, 1, 1);
         SAVEPOINT y; INSERT INTO foo VALUES (3, 1, 1); ROLLBACK TO y; INSERT INTO foo VALUES (4, 1, 1); RELEASE y;
         ROLLBACK TO x; INSERT INTO foo VALUES (5, 1, 1); RELEASE x; COMMIT",
    )
    .unwrap();
    let mut keys: Vec<i64> = clocks(db).into_iter().map(|clock| clock.0).collect();
    keys.dedup();
    assert_eq!(keys, [1, 5]);
}

/// RETURNING gives its rows after all of them were written; a statement that is left half-way is over all the same.
#[test]
fn returning_that_is_not_read_to_its_end_is_recorded() {
    for around in [["", ""], ["BEGIN", "COMMIT"]] {
        let engine = foo();
        let db = engine.connection();
        db.execute_batch(around[0]).unwrap();
        {
            let mut insert = db.prepare("INSERT INTO foo VALUES (1, 1, 1), (2, 2, 2) RETURNING a").unwrap();
            let mut rows = insert.query([]).unwrap();
            rows.next().unwrap().unwrap();
        }
        db.execute_batch(around[1]).unwrap();
        assert_eq!(clocks(db).len(), 4, "{around:?}");
    }
}

/// While another statement of the connection reads, SQLite gives an autocommit write a savepoint of its own.
#[test]
fn a_write_beside_a_reader_is_recorded() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch("INSERT INTO foo VALUES (1, 1, 1), (2, 2, 2)").unwrap();
    let mut reader = db.prepare("SELECT a FROM foo").unwrap();
    let mut rows = reader.query([]).unwrap();
    rows.next().unwrap().unwrap();
    db.execute_batch("INSERT INTO foo VALUES (3, 3, 3)").unwrap();
    assert_eq!(clocks(db).len(), 6);
    db.execute_batch("INSERT INTO foo VALUES (4, 3, 3), (1, 3, 3)").unwrap_err();
    assert_eq!(clocks(db).len(), 6);
}

/// More rows than notes are kept of, in one statement; and it may still fail as a whole.
#[test]
fn a_statement_over_many_rows_is_recorded_in_parts() {
    let engine = foo();
    let db = engine.connection();
    let fill = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO foo SELECT CASE WHEN i = 20000 THEN ?1 ELSE i END, i, i FROM n";
    db.execute_batch("BEGIN").unwrap();
    db.execute(fill, [7]).unwrap_err();
    assert_eq!(clocks(db).len(), 0);
    db.execute(fill, [20_000]).unwrap();
    db.execute_batch("COMMIT").unwrap();
    let clocks = clocks(db);
    assert_eq!(clocks.len(), 40_000);
    assert!(clocks.windows(2).all(|pair| pair[0].4 < pair[1].4), "one seq each, in order");
    assert_eq!(engine.db_version().unwrap().get(), 1);
    db.execute_batch("BEGIN; UPDATE foo SET b = b + 1; ROLLBACK; BEGIN; DELETE FROM foo; COMMIT").unwrap();
    assert_eq!(self::clocks(db).len(), 20_000);
}

/// What reads through the engine, in the middle of a statement, sees what the statement did so far.
#[test]
fn functions_of_the_engine_see_what_is_noted() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch(
        "CREATE TABLE seen (n);
         CREATE TRIGGER see AFTER INSERT ON foo BEGIN INSERT INTO seen SELECT count(*) FROM crsql_changes; END;
         INSERT INTO foo VALUES (1, 1, 1), (2, 2, 2)",
    )
    .unwrap();
    let mut statement = db.prepare("SELECT n FROM seen").unwrap();
    let seen: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(seen == [2, 4] || seen == [0, 2], "triggers run in an order that SQLite does not promise: {seen:?}");
}

/// TX-10 b: whatever changes the schema in the transaction, the next write follows it.
#[test]
fn writes_follow_the_schema_inside_of_a_transaction() {
    for change in [
        "CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar')",
        "SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN d; SELECT crsql_commit_alter('foo')",
        "SELECT crsql_begin_alter('foo'); ALTER TABLE foo DROP COLUMN c; SELECT crsql_commit_alter('foo')",
        "SELECT crsql_as_table('foo'); SELECT crsql_as_crr('foo')",
        "CREATE INDEX i ON foo (b)",
        "CREATE TRIGGER t AFTER UPDATE ON foo BEGIN SELECT 1; END",
        "CREATE VIEW v AS SELECT * FROM foo",
        "DROP INDEX j",
        "ALTER TABLE other RENAME TO others",
        "ALTER TABLE other ADD COLUMN x",
    ] {
        let engine = foo();
        let db = engine.connection();
        db.execute_batch("CREATE INDEX j ON foo (b); CREATE TABLE other (a)").unwrap();
        db.execute_batch("BEGIN; INSERT INTO foo (a) VALUES (1)").unwrap();
        db.execute_batch(change).unwrap();
        if change.contains("bar") {
            db.execute_batch("INSERT INTO bar VALUES (1, 1)").unwrap();
        }
        db.execute_batch("INSERT INTO foo (a) VALUES (2); UPDATE foo SET b = 7; COMMIT").unwrap();
        let columns = |table: &str| -> i64 {
            let sql = format!("SELECT count(*) FROM pragma_table_info('{table}') WHERE pk = 0");
            db.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        let of_second: i64 = db
            .query_row(
                "SELECT count(*) FROM crsql_changes WHERE \"table\" = 'foo' AND pk = crsql_pack_columns(2)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(of_second, columns("foo"), "{change}");
        if change.contains("bar") {
            let of_bar: i64 =
                db.query_row("SELECT count(*) FROM crsql_changes WHERE \"table\" = 'bar'", [], |r| r.get(0)).unwrap();
            assert_eq!(of_bar, 1);
        }
    }
}

/// The same without the alter functions: a new row has a clock for the new column.
#[test]
fn an_insert_after_add_column_records_the_new_column() {
    let engine = foo();
    let db = engine.connection();
    db.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1, 1)").unwrap();
    db.execute_batch("ALTER TABLE foo ADD COLUMN d").unwrap();
    db.execute_batch("INSERT INTO foo VALUES (2, 2, 2, 2); COMMIT").unwrap();
    let of_second = clocks(db).into_iter().filter(|clock| clock.0 == 2).map(|clock| clock.1);
    assert_eq!(of_second.collect::<Vec<_>>(), ["b", "c", "d"]);
}

/// FN-9: whatever a statement left behind, the connection closes.
#[test]
fn a_connection_closes_after_a_statement_that_failed() {
    for failing in ["INSERT INTO foo VALUES (2, 1, 1), (1, 1, 1)", "BEGIN; INSERT INTO foo VALUES (2, 1, 1), (1, 1, 1)"]
    {
        let db = Connection::open_in_memory().unwrap();
        litemesh_engine::load(&db).unwrap();
        db.execute_batch(
            "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');
             INSERT INTO foo VALUES (1, 1, 1)",
        )
        .unwrap();
        db.execute_batch(failing).unwrap_err();
        db.close().unwrap();
    }
}
