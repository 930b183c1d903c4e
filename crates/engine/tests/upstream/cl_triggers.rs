//! `test_cl_triggers.py`: which causal length each form of statement leads to.

use litemesh_engine::Engine;

use crate::support::refusal;
use crate::{FOO, check, replica, run};

/// `(key, cid, cl)` of each change.
const LENGTHS: &str = "SELECT pk, cid, cl FROM crsql_changes ORDER BY pk, cid";

fn foo(sql: &str) -> Engine {
    replica(1, &format!("{FOO}{sql}"))
}

/// Runs statements, and compares `(pk, cid, cl)` after each.
fn check_lengths(before: &str, steps: &[(&str, &[&str])]) {
    let engine = foo(before);
    for (sql, expected) in steps {
        run(&engine, sql);
        check(&engine, LENGTHS, expected);
    }
}

const UPSERT: &str = "ON CONFLICT DO UPDATE SET b = excluded.b";

/// test_cl_triggers.py: upsert_non_existing.
#[test]
fn new_rows_are_in_their_first_life_however_they_are_inserted() {
    check_lengths("", &[("INSERT OR REPLACE INTO foo VALUES (1, 1)", &["010901 b 1"])]);
    check_lengths("", &[("REPLACE INTO foo VALUES (1, 1)", &["010901 b 1"])]);
    check_lengths("", &[(&format!("INSERT INTO foo VALUES (1, 1) {UPSERT}"), &["010901 b 1"])]);
}

/// test_cl_triggers.py: insert_delete_insert_delete.
#[test]
fn each_insert_and_each_delete_counts() {
    check_lengths(
        "",
        &[
            ("INSERT INTO foo VALUES (1, 1)", &["010901 b 1"]),
            ("DELETE FROM foo", &["010901 -1 2"]),
            ("INSERT INTO foo VALUES (1, 1)", &["010901 -1 3", "010901 b 3"]),
            ("DELETE FROM foo", &["010901 -1 4"]),
        ],
    );
}

/// test_cl_triggers.py: upsert_previously_existing.
#[test]
fn rows_that_were_deleted_come_back_however_they_are_inserted() {
    let dead = "INSERT INTO foo VALUES (1, 1), (2, 2); DELETE FROM foo;";
    let upsert = format!("INSERT INTO foo VALUES (1, 5) {UPSERT}");
    for insert in ["REPLACE INTO foo VALUES (1, 5)", upsert.as_str()] {
        check_lengths(dead, &[(insert, &["010901 -1 3", "010901 b 3", "010902 -1 2"])]);
    }
    check_lengths(
        dead,
        &[
            ("REPLACE INTO foo VALUES (1, 5)", &["010901 -1 3", "010901 b 3", "010902 -1 2"]),
            ("DELETE FROM foo; REPLACE INTO foo VALUES (2, 5)", &["010901 -1 4", "010902 -1 3", "010902 b 3"]),
        ],
    );
}

/// test_cl_triggers.py: upsert_currently_existing.
#[test]
fn rows_that_are_there_stay_in_their_life() {
    for sql in ["REPLACE INTO foo VALUES (1, 5)", &format!("INSERT INTO foo VALUES (1, 5) {UPSERT}")] {
        check_lengths("INSERT INTO foo VALUES (1, 1)", &[(sql, &["010901 b 1"])]);
    }
}

/// test_cl_triggers.py: update_existing.
#[test]
fn updates_are_no_births() {
    check_lengths(
        "INSERT INTO foo VALUES (1, 1)",
        &[("UPDATE foo SET b = 2", &["010901 b 1"]), ("UPDATE foo SET b = 2 WHERE a = 7", &["010901 b 1"])],
    );
}

/// test_cl_triggers.py: insert_existing and insert_or_ignore_existing.
#[test]
fn inserts_that_do_nothing_record_nothing() {
    let engine = foo("INSERT INTO foo VALUES (1, 1)");
    assert!(refusal(engine.connection(), "INSERT INTO foo VALUES (1, 2)").contains("UNIQUE constraint failed"));
    run(&engine, "INSERT OR IGNORE INTO foo VALUES (1, 2)");
    check(&engine, "SELECT pk, cid, cl, col_version, db_version FROM crsql_changes", &["010901 b 1 1 1"]);
}

/// test_cl_triggers.py: delete_existing and delete_previously_deleted.
#[test]
fn only_what_is_there_can_be_deleted() {
    check_lengths(
        "INSERT INTO foo VALUES (1, 1)",
        &[("DELETE FROM foo WHERE a = 1", &["010901 -1 2"]), ("DELETE FROM foo WHERE a = 1", &["010901 -1 2"])],
    );
}

/// test_cl_triggers.py: change_primary_key_to_something_new. LW-6, the FIX: the cell that moved is told of after the
/// new row's key was made, so it stands between the sentinels instead of where it was.
#[test]
fn a_new_key_is_one_death_and_one_birth() {
    let engine = foo("INSERT INTO foo VALUES (1, 1); UPDATE foo SET a = 2;");
    check(
        &engine,
        "SELECT pk, cid, cl, col_version FROM crsql_changes",
        &["010901 -1 2 2", "010902 b 1 2", "010902 -1 1 1"],
    );
}

/// test_cl_triggers.py: change_primary_key_to_previously_existing.
#[test]
fn a_key_that_died_before_comes_back() {
    check_lengths(
        "INSERT INTO foo VALUES (1, 1), (2, 2); DELETE FROM foo WHERE a = 2;",
        &[("UPDATE foo SET a = 2", &["010901 -1 2", "010902 -1 3", "010902 b 3"])],
    );
}

/// test_cl_triggers.py: change_primary_key_to_currently_existing.
#[test]
fn a_key_that_is_taken_over_stays_in_its_life() {
    check_lengths(
        "INSERT INTO foo VALUES (1, 1), (2, 2)",
        &[("UPDATE OR REPLACE foo SET a = 2 WHERE a = 1", &["010901 -1 2", "010902 -1 1", "010902 b 1"])],
    );
}

/// test_cl_triggers.py: change_primary_key_away_from_thing_with_large_length.
#[test]
fn the_old_key_goes_on_counting() {
    let five = "INSERT INTO foo VALUES (1, 1); DELETE FROM foo; INSERT INTO foo VALUES (1, 1); DELETE FROM foo;
                INSERT INTO foo VALUES (1, 1);";
    check_lengths(
        five,
        &[
            ("SELECT 1", &["010901 -1 5", "010901 b 5"]),
            ("UPDATE foo SET a = 2", &["010901 -1 6", "010902 -1 1", "010902 b 1"]),
        ],
    );
}

/// test_cl_triggers.py: insert_previously_existing.
#[test]
fn an_insert_after_a_delete_is_the_third() {
    check_lengths(
        "INSERT INTO foo VALUES (1, 1); DELETE FROM foo",
        &[("INSERT INTO foo VALUES (1, 2)", &["010901 -1 3", "010901 b 3"])],
    );
}
