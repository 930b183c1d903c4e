//! `changes-vtab.test.c`, `changes-vtab-rowid.test.c`, and the slabs of rowids among CRSqlite's unit tests.

use crate::{FOO, check, replica, run};

/// changes-vtab.test.c: a composite key packs to `0209040905`.
#[test]
fn composite_keys_are_packed_in_their_order() {
    let engine = replica(
        1,
        "CREATE TABLE foo (a INTEGER NOT NULL, b INTEGER NOT NULL, c, PRIMARY KEY (a, b)); SELECT crsql_as_crr('foo');
         INSERT INTO foo VALUES (4, 5, 6);",
    );
    check(&engine, "SELECT pk, cid, val FROM crsql_changes", &["0209040905 c 6"]);
}

/// changes-vtab.test.c: filters: none; site_id IS NULL, IS NOT NULL, =, !=, IS; a range of versions; OR.
#[test]
fn filters_count_what_they_name() {
    let engine = replica(1, &format!("{FOO}INSERT INTO foo VALUES (1, 1); INSERT INTO foo VALUES (2, 2);"));
    run(
        &engine,
        "INSERT INTO crsql_changes VALUES ('foo', x'010903', 'b', 3, 1, 3, x'abababababababababababababababab', 1, 0)",
    );
    let remote = "x'abababababababababababababababab'";
    for (condition, expected) in [
        ("true", "3"),
        ("site_id IS NULL", "0"),
        ("site_id IS NOT NULL", "3"),
        (&format!("site_id = {remote}"), "1"),
        (&format!("site_id != {remote}"), "2"),
        (&format!("site_id IS {remote}"), "1"),
        ("db_version > 1 AND db_version < 3", "1"),
        ("db_version >= 2", "2"),
        (&format!("site_id = {remote} OR db_version = 1"), "2"),
    ] {
        check(&engine, &format!("SELECT count(*) FROM crsql_changes WHERE {condition}"), &[expected]);
    }
}

/// changes-vtab-rowid.test.c: rowids 1, 2 in one table, slabs of 10^13 for the second and third. And the unit test of
/// rowid slab arithmetic: VT-12.
#[test]
fn rowids_tell_table_and_key() {
    let engine = replica(1, FOO);
    for table in ["bar", "baz"] {
        run(
            &engine,
            &format!("CREATE TABLE {table} (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('{table}')"),
        );
    }
    run(&engine, "BEGIN");
    for table in ["foo", "bar", "baz"] {
        run(&engine, &format!("INSERT INTO {table} VALUES (70, 1), (71, 1)"));
    }
    run(&engine, "COMMIT");
    check(
        &engine,
        "SELECT \"table\", rowid FROM crsql_changes",
        &["foo 1", "foo 2", "bar 10000000000001", "bar 10000000000002", "baz 20000000000001", "baz 20000000000002"],
    );
    // A key at the end of its slab, and the first beyond: the same number, one slab on.
    run(
        &engine,
        "UPDATE foo__crsql_pks SET __crsql_key = 9999999999999 WHERE a = 70;
                  UPDATE foo__crsql_clock SET key = 9999999999999 WHERE key = 1;
                  UPDATE foo__crsql_pks SET __crsql_key = 10000000000001 WHERE a = 71;
                  UPDATE foo__crsql_clock SET key = 10000000000001 WHERE key = 2;",
    );
    check(&engine, "SELECT rowid FROM crsql_changes WHERE \"table\" = 'foo'", &["9999999999999", "1"]);
}
