//! `test_schema_modification.py`, `backfill.rs` and `teardown.rs`: tables that begin and cease to replicate. What
//! happens to them while they do is in `tests/alter.rs`.

use crate::support::refusal;
use crate::{CHANGES, check, check_clocks, replica, run, version};

/// test_schema_modification.py: c1_4_no_primary_keys.
#[test]
fn a_table_without_a_key_cannot_replicate() {
    let engine = replica(1, "CREATE TABLE foo (a)");
    let message = refusal(engine.connection(), "SELECT crsql_as_crr('foo')");
    assert!(message.contains("Table foo has no primary key or primary key is nullable"), "{message}");
}

/// test_schema_modification.py: c1_3_quoted_identifiers.
#[test]
fn names_may_be_quoted_in_every_way() {
    for (table, key, cell) in [("\"foo\"", "\"a\"", "\"b\""), ("`foo`", "`a`", "`b`"), ("[foo]", "[a]", "[b]")] {
        let create = format!("CREATE TABLE {table} ({key} PRIMARY KEY NOT NULL, {cell})");
        let engine = replica(1, &format!("{create}; SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1, 2)"));
        check_clocks(&engine, &["1 b 1 1 0 0"]);
    }
}

/// test_schema_modification.py: c1_c5_compound_primary_key, c1_6_single_primary_key, c2_create_index.
#[test]
fn shadow_tables_have_the_documented_columns() {
    for (columns, keys) in [
        ("a INTEGER PRIMARY KEY NOT NULL, b", &["__crsql_key INTEGER 1", "a  0"][..]),
        ("a NOT NULL, b NOT NULL, c, PRIMARY KEY (a, b)", &["__crsql_key INTEGER 1", "a  0", "b  0"]),
    ] {
        let engine = replica(1, &format!("CREATE TABLE foo ({columns}); CREATE INDEX foo_b ON foo (b);"));
        run(&engine, "SELECT crsql_as_crr('foo')");
        check(&engine, "SELECT name, type, pk FROM pragma_table_info('foo__crsql_pks')", keys);
        check(
            &engine,
            "SELECT name FROM pragma_table_info('foo__crsql_clock')",
            &["key", "col_name", "col_version", "db_version", "site_id", "seq"],
        );
        check(
            &engine,
            "SELECT name, \"unique\" FROM pragma_index_list('foo__crsql_pks') UNION ALL
             SELECT name, \"unique\" FROM pragma_index_list('foo__crsql_clock') WHERE origin = 'c'",
            &["foo__crsql_pks_pks 1", "foo__crsql_clock_dbv_idx 0"],
        );
    }
}

/// test_schema_modification.py: backfill_existing_data. backfill.rs: an empty table; a table of two rows: clocks and
/// changes; applied again, to an empty and to a populated one.
#[test]
fn rows_that_are_there_are_recorded_with_all_their_cells() {
    let engine = replica(1, "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c DEFAULT 5)");
    for _ in 0..2 {
        run(&engine, "SELECT crsql_as_crr('foo')");
        check_clocks(&engine, &[]);
        assert_eq!(version(&engine), 0);
    }
    run(&engine, "SELECT crsql_as_table('foo'); INSERT INTO foo (a, b) VALUES (1, 2), (4, NULL)");
    for _ in 0..2 {
        run(&engine, "SELECT crsql_as_crr('foo')");
        check_clocks(&engine, &["1 b 1 1 0 0", "1 c 1 1 0 1", "2 b 1 1 0 2", "2 c 1 1 0 3"]);
        check(
            &engine,
            CHANGES,
            &["010901 b 2 1 1 01 1 0", "010901 c 5 1 1 01 1 1", "010904 b NULL 1 1 01 1 2", "010904 c 5 1 1 01 1 3"],
        );
        assert_eq!(version(&engine), 1);
    }
}

/// test_schema_modification.py: backfill_moves_dbversion.
#[test]
fn each_table_with_rows_takes_a_version() {
    let engine = replica(1, "");
    for (number, table) in ["foo", "bar", "baz"].into_iter().enumerate() {
        run(
            &engine,
            &format!("CREATE TABLE {table} (a INTEGER PRIMARY KEY NOT NULL, b); INSERT INTO {table} VALUES (1, 1)"),
        );
        run(&engine, &format!("SELECT crsql_as_crr('{table}')"));
        let expected = number + 1;
        check(&engine, "SELECT crsql_db_version()", &[&expected.to_string()]);
        check(
            &engine,
            &format!("SELECT db_version FROM crsql_changes WHERE \"table\" = '{table}'"),
            &[&expected.to_string()],
        );
    }
}

/// teardown.rs: as_table removes every object that replication made, and the rows stay.
#[test]
fn an_ordinary_table_has_nothing_beside_it() {
    let engine = replica(1, "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')");
    run(&engine, "INSERT INTO foo VALUES (1, 2); DELETE FROM foo; INSERT INTO foo VALUES (3, 4)");
    const OBJECTS: &str = "SELECT count(*) > 0 FROM sqlite_master WHERE name LIKE 'foo\\_\\_%' ESCAPE '\\'";
    check(&engine, OBJECTS, &["1"]);
    run(&engine, "SELECT crsql_as_table('foo')");
    check(&engine, OBJECTS, &["0"]);
    check(&engine, "SELECT * FROM foo", &["3 4"]);
    run(&engine, "UPDATE foo SET b = 5");
    check(&engine, "SELECT count(*) FROM crsql_changes", &["0"]);
}
