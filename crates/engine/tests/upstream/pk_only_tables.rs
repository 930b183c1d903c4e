//! `pk_only_tables.rs` and `pk_update.rs`.

use crate::{CHANGES, FOO, check, replica, run, sync, sync_where, version};

const TABLE: &str = "CREATE TABLE foo (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo');";

/// pk_only_tables.rs: create; an insert syncs.
#[test]
fn inserts_go_over() {
    let (left, right) = (replica(1, TABLE), replica(2, TABLE));
    run(&left, "INSERT INTO foo VALUES (1), (2)");
    sync(&left, &right);
    check(&right, "SELECT * FROM foo", &["1", "2"]);
}

/// pk_only_tables.rs: an update of the key syncs: the old one goes, the new one is there.
#[test]
fn updates_of_the_key_go_over() {
    let (left, right) = (replica(1, TABLE), replica(2, TABLE));
    run(&left, "INSERT INTO foo VALUES (1)");
    sync(&left, &right);
    run(&left, "UPDATE foo SET id = 2");
    sync(&left, &right);
    check(&right, "SELECT * FROM foo", &["2"]);
}

/// pk_only_tables.rs: INSERT … ON CONFLICT DO NOTHING gives one `-1` row. And its junction_table, which CRSqlite does
/// not run.
#[test]
fn inserts_that_may_do_nothing_are_recorded_once() {
    let engine = replica(
        1,
        "CREATE TABLE jx (id1 INTEGER NOT NULL, id2 INTEGER NOT NULL, PRIMARY KEY (id1, id2)); SELECT crsql_as_crr('jx');",
    );
    for _ in 0..2 {
        run(&engine, "INSERT INTO jx VALUES (1, 2) ON CONFLICT DO NOTHING");
        check(&engine, CHANGES, &["0209010902 -1 NULL 1 1 01 1 0"]);
    }
    let other = replica(2, "CREATE TABLE jx (id1 INTEGER NOT NULL, id2 INTEGER NOT NULL, PRIMARY KEY (id1, id2))");
    run(&other, "SELECT crsql_as_crr('jx')");
    sync(&engine, &other);
    run(&other, "UPDATE jx SET id2 = 3");
    sync(&other, &engine);
    check(&engine, "SELECT * FROM jx", &["1 3"]);
}

/// pk_update.rs describes what LW-6 has to do: the row moves with its cells, also for who asks with a cursor.
#[test]
fn a_row_moves_with_its_cells() {
    let (left, right) = (replica(1, FOO), replica(2, FOO));
    run(&left, "INSERT INTO foo VALUES (1, 5)");
    sync(&left, &right);
    let seen = version(&left);
    run(&left, "UPDATE foo SET a = 2");
    sync_where(&left, &right, &format!("db_version > {seen}"));
    check(&right, "SELECT * FROM foo", &["2 5"]);
}
