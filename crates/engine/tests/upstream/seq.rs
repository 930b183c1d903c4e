//! `test_seq.py`: the place of each change in its transaction.

use crate::{FOO, check, replica, run, sync};

/// `db_version` and `seq` of every change.
const SEQS: &str = "SELECT db_version, seq FROM crsql_changes";

/// test_seq.py: increments_by_one_in_tx and resets_on_every_tx.
#[test]
fn numbers_count_within_a_transaction_and_start_over_in_the_next() {
    let engine = replica(1, FOO);
    run(&engine, "BEGIN; INSERT INTO foo VALUES (1, 1); INSERT INTO foo VALUES (2, 2); COMMIT");
    check(&engine, SEQS, &["1 0", "1 1"]);
    run(&engine, "BEGIN; INSERT INTO foo VALUES (3, 1); INSERT INTO foo VALUES (4, 2); COMMIT");
    check(&engine, SEQS, &["1 0", "1 1", "2 0", "2 1"]);
}

/// test_seq.py: preserved_on_merge. Here the receiver is compared with the sender.
#[test]
fn the_order_of_changes_survives_a_merge() {
    let (left, right) = (replica(1, FOO), replica(2, FOO));
    run(
        &left,
        "BEGIN; INSERT INTO foo VALUES (3, 1), (1, 2); INSERT INTO foo VALUES (2, 3); UPDATE foo SET b = 4; COMMIT",
    );
    sync(&left, &right);
    const ORDER: &str = "SELECT pk, cid, seq FROM crsql_changes";
    check(&left, ORDER, &["010901 b 3", "010902 b 4", "010903 b 5"]);
    check(&right, ORDER, &["010901 b 3", "010902 b 4", "010903 b 5"]);
}

/// test_seq.py: incr_by_one.
#[test]
fn each_recorded_change_takes_one_number() {
    let engine = replica(
        1,
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c, d); SELECT crsql_as_crr('foo');
         CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('bar');
         CREATE TABLE keys (a INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('keys');",
    );
    let check_last = |sql: &str, count: usize| {
        run(&engine, sql);
        let expected: Vec<_> = (0..count).map(|seq| seq.to_string()).collect();
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        check(&engine, "SELECT seq FROM crsql_changes WHERE db_version = crsql_db_version()", &expected);
    };
    check_last("INSERT INTO foo VALUES (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)", 9);
    check_last("UPDATE foo SET b = 9, c = 9", 6);
    check_last("UPDATE foo SET d = 8", 3);
    check_last("DELETE FROM foo", 3);
    check_last("INSERT INTO bar VALUES (1, 1), (2, 2)", 2);
    check_last("INSERT INTO keys VALUES (1), (2)", 2);
    check_last("UPDATE keys SET a = a + 10", 4);
}

/// test_seq.py: when_re_inserting and when_updating_after_reinsert.
#[test]
fn a_new_life_begins_with_its_sentinel() {
    let engine = replica(1, &format!("{FOO}INSERT INTO foo VALUES (1, 1); DELETE FROM foo;"));
    run(&engine, "INSERT INTO foo VALUES (1, 2)");
    check(&engine, "SELECT cid, seq FROM crsql_changes", &["-1 0", "b 1"]);
    run(&engine, "DELETE FROM foo; BEGIN; INSERT INTO foo VALUES (1, 2); UPDATE foo SET b = 3; COMMIT");
    check(&engine, "SELECT cid, seq FROM crsql_changes", &["-1 0", "b 2"]);
}

/// test_seq.py: when_resinserting_from_merge.
#[test]
fn a_merged_life_keeps_its_numbers() {
    let (left, right) = (replica(1, FOO), replica(2, FOO));
    run(&left, "INSERT INTO foo VALUES (1, 1)");
    sync(&left, &right);
    run(&left, "DELETE FROM foo; INSERT INTO foo VALUES (1, 2)");
    sync(&left, &right);
    check(&right, "SELECT cid, seq FROM crsql_changes", &["-1 0", "b 1"]);
}
