//! `test_sync_bit.py` and `sync_bit_honored.rs`: what is merged is not recorded as a write of our own.

use crate::{CHANGES, FOO, check, replica, run};

/// test_sync_bit.py: a merged insert, update and delete keep the incoming version, sequence number, site and causal
/// length.
#[test]
fn merged_changes_are_as_they_came() {
    let engine = replica(1, FOO);
    for (values, expected) in [
        ("'b', 1, 1, 10, x'ABABABABABABABABABABABABABABABAB', 1, 7", "010901 b 1 1 10 ab 1 7"),
        ("'b', 2, 2, 20, x'ABABABABABABABABABABABABABABABAB', 1, 8", "010901 b 2 2 20 ab 1 8"),
        ("'-1', NULL, 2, 30, x'ABABABABABABABABABABABABABABABAB', 2, 9", "010901 -1 NULL 2 30 ab 2 9"),
    ] {
        run(&engine, &format!("INSERT INTO crsql_changes VALUES ('foo', x'010901', {values})"));
        check(&engine, CHANGES, &[expected]);
    }
}

/// test_sync_bit.py: a trigger that asks for bit 0 does not fire on merges, one that asks for 1 does.
#[test]
fn triggers_can_tell_merges_from_local_writes() {
    let engine = replica(
        1,
        &format!(
            "{FOO} CREATE TABLE log (what TEXT);
             CREATE TRIGGER on_write AFTER INSERT ON foo WHEN crsql_internal_sync_bit() = 0
             BEGIN INSERT INTO log VALUES ('local ' || NEW.a); END;
             CREATE TRIGGER on_merge AFTER INSERT ON foo WHEN crsql_internal_sync_bit() = 1
             BEGIN INSERT INTO log VALUES ('merged ' || NEW.a); END;"
        ),
    );
    run(&engine, "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', 1, 1, 1, zeroblob(16), 1, 0)");
    check(&engine, "SELECT what FROM log", &["merged 1"]);
    run(&engine, "INSERT INTO foo VALUES (2, 2)");
    check(&engine, "SELECT what FROM log", &["merged 1", "local 2"]);
}

/// sync_bit_honored.rs: with bit 1 insert, update and delete leave the clock table empty.
#[test]
fn nothing_is_recorded_while_the_bit_is_set() {
    let engine = replica(1, &format!("{FOO}SELECT crsql_internal_sync_bit(1);"));
    for sql in ["INSERT INTO foo VALUES (1, 1)", "UPDATE foo SET b = 2", "DELETE FROM foo"] {
        run(&engine, sql);
        check(&engine, "SELECT count(*) FROM foo__crsql_clock", &["0"]);
    }
    check(&engine, "SELECT crsql_internal_sync_bit(0)", &["0"]);
    run(&engine, "INSERT INTO foo VALUES (1, 1)");
    check(&engine, "SELECT count(*) FROM foo__crsql_clock", &["1"]);
}
