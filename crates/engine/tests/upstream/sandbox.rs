//! `test_sandbox.py` and `sandbox.test.c`.

use crate::{check, replica, run, sync};

/// test_sandbox.py: rows with UUIDs as keys, inserted, deleted, inserted again, go both ways.
#[test]
fn rows_with_uuids_go_both_ways() {
    let table = "CREATE TABLE foo (id BLOB PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');";
    let (left, right) = (replica(1, table), replica(2, table));
    const ID: &str = "x'018f3a5c7e0b7c11a2b3c4d5e6f70819'";
    run(&left, &format!("INSERT INTO foo VALUES ({ID}, 1); DELETE FROM foo; INSERT INTO foo VALUES ({ID}, 2)"));
    sync(&left, &right);
    run(&right, &format!("DELETE FROM foo; INSERT INTO foo VALUES ({ID}, 3)"));
    sync(&right, &left);
    for engine in [&left, &right] {
        check(engine, "SELECT b FROM foo", &["3"]);
        check(engine, "SELECT cid, cl FROM crsql_changes ORDER BY cid", &["-1 5", "b 5"]);
    }
}

/// sandbox.test.c: a table of keys alone.
#[test]
fn keys_alone_go_over() {
    let table = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo');";
    let (left, right) = (replica(1, table), replica(2, table));
    run(&left, "INSERT INTO foo VALUES (1), (2), (3)");
    sync(&left, &right);
    check(&right, "SELECT a FROM foo ORDER BY a", &["1", "2", "3"]);
}
