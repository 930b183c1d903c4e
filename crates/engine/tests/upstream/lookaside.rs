//! `test_lookaside_key_creation.py`: a key has one row in the keys table, for ever.

use litemesh_engine::Engine;

use crate::{FOO, check, replica, run, sync};

const KEYS: &str = "SELECT * FROM foo__crsql_pks ORDER BY 1";

fn foo(site: u8) -> Engine {
    replica(site, FOO)
}

/// test_lookaside_key_creation.py: insert, insert_or_replace, insert_or_ignore, upsert, update, delete, delete_all.
#[test]
fn local_writes_make_each_key_once() {
    for statements in [
        &["INSERT INTO foo VALUES (1, 1)"][..],
        &["INSERT OR REPLACE INTO foo VALUES (1, 1)"; 3],
        &["INSERT OR IGNORE INTO foo VALUES (1, 1)"; 3],
        &["INSERT INTO foo VALUES (1, 1) ON CONFLICT DO UPDATE SET b = excluded.b"; 3],
        &["INSERT INTO foo VALUES (1, 1)", "UPDATE foo SET b = 2", "UPDATE foo SET b = 3"],
        &["INSERT INTO foo VALUES (1, 1)", "DELETE FROM foo WHERE a = 1"],
        &["INSERT INTO foo VALUES (1, 1)", "DELETE FROM foo", "INSERT INTO foo VALUES (1, 1)"],
    ] {
        let engine = foo(1);
        for sql in statements {
            run(&engine, sql);
            check(&engine, KEYS, &["1 1"]);
        }
    }
}

/// test_lookaside_key_creation.py: pk_update.
#[test]
fn updates_of_the_key_add_keys_in_their_order() {
    let engine = foo(1);
    run(&engine, "INSERT INTO foo VALUES (1, 1); UPDATE foo SET a = 9; UPDATE foo SET a = 5; UPDATE foo SET a = 9");
    check(&engine, KEYS, &["1 1", "2 9", "3 5"]);
}

/// test_lookaside_key_creation.py: merge_new_row, merge_existing_row, merge_delete_of_new_row,
/// merge_delete_of_existing_row, merge_pk_update.
#[test]
fn merges_make_each_key_once() {
    for (left_sql, right_sql, expected) in [
        ("INSERT INTO foo VALUES (1, 1)", "", &["1 1"][..]),
        ("INSERT INTO foo VALUES (1, 1)", "INSERT INTO foo VALUES (1, 0)", &["1 1"]),
        ("INSERT INTO foo VALUES (1, 1); DELETE FROM foo", "", &["1 1"]),
        ("INSERT INTO foo VALUES (1, 1); DELETE FROM foo", "INSERT INTO foo VALUES (1, 0)", &["1 1"]),
        ("INSERT INTO foo VALUES (1, 1); UPDATE foo SET a = 2", "INSERT INTO foo VALUES (1, 0)", &["1 1", "2 2"]),
    ] {
        let (left, right) = (foo(1), foo(2));
        run(&left, left_sql);
        run(&right, right_sql);
        for _ in 0..2 {
            sync(&left, &right);
            check(&right, KEYS, expected);
        }
    }
}
