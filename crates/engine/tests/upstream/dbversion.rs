//! `test_dbversion.py` and `test_db_version.rs`: one version for each transaction that wrote.

use litemesh_engine::Engine;

use crate::{FOO, check, replica, run, version};

/// test_dbversion.py: min_on_init.
#[test]
fn a_new_database_is_at_version_zero() {
    check(&replica(1, ""), "SELECT crsql_db_version()", &["0"]);
    check(&replica(1, FOO), "SELECT crsql_db_version()", &["0"]);
}

/// test_dbversion.py: increments_on_modification.
#[test]
fn each_write_takes_the_next_version() {
    let engine = replica(1, FOO);
    for (sql, expected) in [("INSERT INTO foo VALUES (1, 1)", 1), ("UPDATE foo SET b = 2", 2), ("DELETE FROM foo", 3)] {
        run(&engine, sql);
        assert_eq!(version(&engine), expected, "{sql}");
    }
}

/// test_dbversion.py: db_version_restored_from_disk.
#[test]
fn the_version_is_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let engine = Engine::open(&path).unwrap();
    run(&engine, FOO);
    drop(engine);
    let engine = Engine::open(&path).unwrap();
    assert_eq!(version(&engine), 0, "clock tables, and nothing in them");
    run(&engine, "INSERT INTO foo VALUES (1, 1)");
    drop(engine);
    assert_eq!(version(&Engine::open(&path).unwrap()), 1);
}

/// test_dbversion.py: each_tx_gets_a_version.
#[test]
fn all_writes_of_a_transaction_share_its_version() {
    let engine = replica(1, FOO);
    run(&engine, "BEGIN; INSERT INTO foo VALUES (1, 1); INSERT INTO foo VALUES (2, 2); COMMIT");
    run(&engine, "BEGIN; INSERT INTO foo VALUES (3, 3); INSERT INTO foo VALUES (4, 4); COMMIT");
    check(&engine, "SELECT db_version, count(*) FROM crsql_changes GROUP BY 1", &["1 2", "2 2"]);
    assert_eq!(version(&engine), 2);
}

/// test_dbversion.py: rollback_does_not_move_db_version.
#[test]
fn what_is_rolled_back_takes_no_version() {
    let engine = replica(1, FOO);
    for _ in 0..3 {
        run(&engine, "BEGIN; INSERT INTO foo VALUES (1, 1); ROLLBACK");
        assert_eq!(version(&engine), 0);
    }
    for expected in 1..4 {
        run(&engine, &format!("BEGIN; INSERT INTO foo VALUES ({expected}, 1); COMMIT"));
        assert_eq!(version(&engine), expected);
        run(&engine, "BEGIN; UPDATE foo SET b = 2; ROLLBACK");
        assert_eq!(version(&engine), expected);
    }
}

/// test_db_version.rs, and the version over all tables of CRSqlite's unit tests: the stored version: 0 twice on a new
/// database, 0 after as_crr, then 1 and 2 by inserts in two tables.
#[test]
fn the_version_is_the_highest_of_all_tables() {
    let engine = replica(1, "");
    assert_eq!((version(&engine), version(&engine)), (0, 0));
    run(&engine, FOO);
    run(&engine, "CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar')");
    assert_eq!(version(&engine), 0);
    run(&engine, "INSERT INTO foo VALUES (1, 1)");
    assert_eq!(version(&engine), 1);
    run(&engine, "INSERT INTO bar VALUES (1, 1)");
    assert_eq!(version(&engine), 2);
}

/// test_db_version.rs: next is 1, and again; -1 and 0 change nothing; 3 after 3, and stays so after 2; the committed
/// version is untouched.
#[test]
fn the_next_version_never_falls() {
    let engine = replica(1, FOO);
    for (argument, expected) in [("", 1), ("", 1), ("-1", 1), ("0", 1), ("3", 3), ("2", 3), ("", 3)] {
        check(&engine, &format!("SELECT crsql_next_db_version({argument})"), &[&expected.to_string()]);
        assert_eq!(version(&engine), 0);
    }
}
