//! Local writes: which clocks each form of statement leaves (`crsqlite-compat.md` section 4).

use litemesh_engine::Engine;

type Clock = (i64, String, i64, i64, i64, i64);

fn clocks(engine: &Engine, table: &str) -> Vec<Clock> {
    let sql = format!("SELECT * FROM \"{table}__crsql_clock\" ORDER BY key, col_name");
    let mut statement = engine.connection().prepare(&sql).unwrap();
    let rows =
        statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A statement, the clocks that it leaves, the version after it.
type Step<'a> = (&'a str, &'a [(i64, &'a str, i64, i64, i64, i64)], i64);

/// Runs statements, each a transaction of its own, and compares clocks and version after each.
fn check_trace(engine: &Engine, trace: &[Step<'_>]) {
    for (sql, expected, version) in trace {
        engine.connection().execute_batch(sql).unwrap();
        let expected: Vec<Clock> =
            expected.iter().map(|(k, n, c, d, s, q)| (*k, (*n).to_owned(), *c, *d, *s, *q)).collect();
        assert_eq!(clocks(engine, "foo"), expected, "after {sql}");
        assert_eq!(engine.db_version().unwrap().get(), *version, "after {sql}");
    }
}

fn foo() -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b, c)").unwrap();
    engine.replicate("foo").unwrap();
    engine
}

/// 4.6, the trace recorded from CRSqlite, with LW-6's FIX in its last line.
#[test]
fn golden_trace() {
    check_trace(
        &foo(),
        &[
            ("INSERT INTO foo VALUES (1,'x','y')", &[(1, "b", 1, 1, 0, 0), (1, "c", 1, 1, 0, 1)], 1),
            ("UPDATE foo SET b='z'", &[(1, "b", 2, 2, 0, 0), (1, "c", 1, 1, 0, 1)], 2),
            (
                "INSERT INTO foo VALUES (1,'q','y') ON CONFLICT DO UPDATE SET b=excluded.b",
                &[(1, "b", 3, 3, 0, 0), (1, "c", 1, 1, 0, 1)],
                3,
            ),
            ("REPLACE INTO foo VALUES (1,'q','y')", &[(1, "b", 4, 4, 0, 1), (1, "c", 2, 4, 0, 2)], 4),
            ("DELETE FROM foo WHERE a=1", &[(1, "-1", 2, 5, 0, 0)], 5),
            ("DELETE FROM foo WHERE a=1", &[(1, "-1", 2, 5, 0, 0)], 5),
            ("INSERT INTO foo (a) VALUES (1)", &[(1, "-1", 3, 6, 0, 0), (1, "b", 1, 6, 0, 1), (1, "c", 1, 6, 0, 2)], 6),
            (
                "BEGIN; UPDATE foo SET b='t1'; UPDATE foo SET b='t2'; COMMIT",
                &[(1, "-1", 3, 6, 0, 0), (1, "b", 3, 7, 0, 1), (1, "c", 1, 6, 0, 2)],
                7,
            ),
            (
                "BEGIN; INSERT INTO foo VALUES (2,1,1); DELETE FROM foo WHERE a=2; COMMIT",
                &[(1, "-1", 3, 6, 0, 0), (1, "b", 3, 7, 0, 1), (1, "c", 1, 6, 0, 2), (2, "-1", 2, 8, 0, 2)],
                8,
            ),
            (
                "UPDATE foo SET a=5 WHERE a=1",
                &[
                    (1, "-1", 4, 9, 0, 0),
                    (2, "-1", 2, 8, 0, 2),
                    (3, "-1", 1, 9, 0, 3),
                    (3, "b", 4, 9, 0, 1),
                    (3, "c", 2, 9, 0, 2),
                ],
                9,
            ),
        ],
    );
}

/// LW-2 and 4.5: a table of keys alone has a sentinel from the start.
#[test]
fn keys_only_table_counts_lives() {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL)").unwrap();
    engine.replicate("foo").unwrap();
    check_trace(
        &engine,
        &[
            ("INSERT INTO foo VALUES (7)", &[(1, "-1", 1, 1, 0, 0)], 1),
            ("DELETE FROM foo", &[(1, "-1", 2, 2, 0, 0)], 2),
            ("INSERT INTO foo VALUES (7)", &[(1, "-1", 3, 3, 0, 0)], 3),
        ],
    );
}

/// VER-6 and VER-9: what writes no clock takes no version; a rollback gives everything back.
#[test]
fn versions_follow_commits() {
    let engine = foo();
    check_trace(
        &engine,
        &[
            ("INSERT INTO foo VALUES (1,1,1)", &[(1, "b", 1, 1, 0, 0), (1, "c", 1, 1, 0, 1)], 1),
            ("UPDATE foo SET b=b", &[(1, "b", 1, 1, 0, 0), (1, "c", 1, 1, 0, 1)], 1),
            ("BEGIN; UPDATE foo SET b=2; ROLLBACK", &[(1, "b", 1, 1, 0, 0), (1, "c", 1, 1, 0, 1)], 1),
            ("INSERT OR IGNORE INTO foo VALUES (1,5,5)", &[(1, "b", 1, 1, 0, 0), (1, "c", 1, 1, 0, 1)], 1),
            (
                "BEGIN; UPDATE foo SET b=3; SAVEPOINT s; UPDATE foo SET c=3; ROLLBACK TO s; COMMIT",
                &[(1, "b", 2, 2, 0, 0), (1, "c", 1, 1, 0, 1)],
                2,
            ),
        ],
    );
    engine.connection().execute_batch("BEGIN; UPDATE foo SET b=9").unwrap();
    let inside: i64 = engine.connection().query_row("SELECT crsql_db_version()", [], |r| r.get(0)).unwrap();
    assert_eq!(inside, 2, "VER-2: the committed version, also inside a transaction");
    engine.connection().execute_batch("COMMIT").unwrap();
    assert_eq!(engine.db_version().unwrap().get(), 3);
}

/// LW-6: also of cells that have no clock yet, here because only the birth of the row was merged. Peers may hold other values
/// under the new key, and would keep them.
#[test]
fn a_moved_row_takes_all_of_its_cells_along() {
    let engine = foo();
    let birth =
        "INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns(1), '-1', NULL, 1, 1, randomblob(16), 1, 0)";
    engine.connection().execute_batch(birth).unwrap();
    assert_eq!(clocks(&engine, "foo"), [(1, "-1".to_owned(), 1, 1, 1, 0)]);
    check_trace(
        &engine,
        &[(
            "UPDATE foo SET a = 2",
            &[(1, "-1", 2, 2, 0, 0), (2, "-1", 1, 2, 0, 3), (2, "b", 1, 2, 0, 1), (2, "c", 1, 2, 0, 2)],
            2,
        )],
    );
}

/// DSK-7 and LW-6: keys are equal as SQLite compares them, so 1 and 1.0 are one row, which does not move.
#[test]
fn a_key_that_changes_its_type_alone_stays_the_same_row() {
    let held = &[(1, "b", 1, 1, 0, 0), (1, "c", 1, 1, 0, 1)];
    check_trace(
        &foo(),
        &[
            ("INSERT INTO foo VALUES (1,'x','y')", held, 1),
            ("UPDATE foo SET a = 1.0", held, 1),
            ("UPDATE foo SET a = 1, b = 'z'", &[(1, "b", 2, 2, 0, 0), (1, "c", 1, 1, 0, 1)], 2),
        ],
    );
}

#[test]
fn replace_with_recursive_triggers_starts_a_new_life() {
    let engine = foo();
    engine.connection().execute_batch("PRAGMA recursive_triggers = ON").unwrap();
    check_trace(
        &engine,
        &[
            ("INSERT INTO foo VALUES (1,1,1)", &[(1, "b", 1, 1, 0, 0), (1, "c", 1, 1, 0, 1)], 1),
            (
                "REPLACE INTO foo VALUES (1,2,2)",
                &[(1, "-1", 3, 2, 0, 1), (1, "b", 1, 2, 0, 2), (1, "c", 1, 2, 0, 3)],
                2,
            ),
        ],
    );
}

/// TX-9 and TX-10: several connections to one file.
#[test]
fn connections_see_each_others_versions_and_tables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (a, b) = (Engine::open(&path).unwrap(), Engine::open(&path).unwrap());
    assert_eq!(a.site().unwrap(), b.site().unwrap());
    a.connection().execute_batch("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b, c)").unwrap();
    a.replicate("foo").unwrap();
    a.connection().execute_batch("INSERT INTO foo VALUES (1,1,1)").unwrap();
    assert_eq!(b.db_version().unwrap().get(), 1);
    b.connection().execute_batch("INSERT INTO foo VALUES (2,1,1)").unwrap();
    a.connection().execute_batch("UPDATE foo SET b = 7").unwrap();
    assert_eq!((a.db_version().unwrap().get(), b.db_version().unwrap().get()), (3, 3));
    drop(a);
    drop(b);
    // FN-9: no statement kept the connections open, so the WAL was checkpointed and removed.
    assert!(!path.with_extension("db-wal").exists());
}

/// LW-5: rows beside each other, rows far from each other, rows without clocks or keys.
#[test]
fn an_update_of_many_rows_counts_as_if_each_were_updated_alone() {
    let check = |keys: &str, updated: &str| {
        let [together, alone] = [(); 2].map(|()| {
            let engine = Engine::open_in_memory().unwrap();
            engine.connection().execute_batch(&format!("CREATE TABLE foo (z, y, {keys}) WITHOUT ROWID")).unwrap();
            engine.replicate("foo").unwrap();
            let fill = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)
                 INSERT INTO foo (a, b, y, z) SELECT i, 'key ' || (i * 7 % 1000), i, i FROM n;
                 DELETE FROM foo__crsql_clock WHERE key % 50 = 7 AND col_name = 'z';
                 DELETE FROM foo__crsql_clock WHERE key % 90 = 8; DELETE FROM foo__crsql_pks WHERE __crsql_key % 90 = 8";
            engine.connection().execute_batch(fill).unwrap();
            engine
        });
        let set = "SET z = z + a % 3, y = CASE a % 5 WHEN 0 THEN 'new' ELSE y END";
        together.connection().execute_batch(&format!("UPDATE foo {set} WHERE {updated}")).unwrap();
        let find = format!("SELECT a, b FROM foo WHERE {updated}");
        let rows: Vec<(i64, String)> = {
            let mut found = alone.connection().prepare(&find).unwrap();
            found.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
        };
        alone.connection().execute_batch("BEGIN").unwrap();
        for (a, b) in rows {
            let update = format!("UPDATE foo {set} WHERE a = ?1 AND b = ?2");
            alone.connection().execute(&update, (a, b)).unwrap();
        }
        alone.connection().execute_batch("COMMIT").unwrap();
        assert_eq!(clocks(&together, "foo"), clocks(&alone, "foo"), "{keys}, {updated}");
    };
    for keys in
        ["a INTEGER NOT NULL, b TEXT NOT NULL, PRIMARY KEY (a, b)", "b NOT NULL, a NOT NULL, PRIMARY KEY (b, a)"]
    {
        for updated in ["true", "a % 3 = 0", "a % 40 = 0 OR a BETWEEN 300 AND 340", "a IN (5, 6, 7)", "a > 890"] {
            check(keys, updated);
        }
    }
}
