//! `test_sentinel_omission.py`: a row has a sentinel from its first death on, and no sooner.

use litemesh_engine::Engine;

use crate::{check, replica, run, sync, version};

fn tables(site: u8) -> Engine {
    replica(
        site,
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
         CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('bar');",
    )
}

/// 400 rows in each of two tables.
fn write(engine: &Engine, verb: &str, value: i64) {
    for (table, columns) in [("foo", "n, V"), ("bar", "n, V, V")] {
        let columns = columns.replace('V', &value.to_string());
        run(
            engine,
            &format!(
                "WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < 400)
                 {verb} INTO {table} SELECT {columns} FROM numbers"
            ),
        );
    }
}

#[track_caller]
fn check_sentinels(engine: &Engine, expected: i64) {
    check(engine, "SELECT count(*) FROM crsql_changes WHERE cid = '-1'", &[&expected.to_string()]);
}

/// test_sentinel_omission.py: none after insert, replace, merge, no-op merge (also the versions stay equal), update
/// merge; 800 after deleting all, and after merging those deletes.
#[test]
fn sentinels_come_with_the_first_death() {
    let (left, right) = (tables(1), tables(2));
    write(&left, "INSERT", 1);
    check_sentinels(&left, 0);
    write(&left, "REPLACE", 2);
    check_sentinels(&left, 0);
    sync(&left, &right);
    check_sentinels(&right, 0);
    assert_eq!(version(&right), version(&left));
    sync(&left, &right);
    check_sentinels(&right, 0);
    assert_eq!(version(&right), version(&left));
    run(&left, "UPDATE foo SET b = 3; UPDATE bar SET b = 3");
    sync(&left, &right);
    check_sentinels(&right, 0);
    run(&left, "DELETE FROM foo; DELETE FROM bar");
    check_sentinels(&left, 800);
    sync(&left, &right);
    check_sentinels(&right, 800);
    check(&right, "SELECT (SELECT count(*) FROM foo) + (SELECT count(*) FROM bar)", &["0"]);
}
