//! `test_crsql_changes_filters.py`: what the virtual table filters is what a filter over all rows gives.

use litemesh_engine::Engine;

use crate::{FOO, replica, rows, run, sync};

fn busy() -> Engine {
    let (left, right) = (replica(1, FOO), replica(2, FOO));
    run(&left, "CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('bar')");
    run(&right, "INSERT INTO foo VALUES (7, 7), (8, 8); DELETE FROM foo WHERE a = 8; UPDATE foo SET b = 9");
    for sql in [
        "INSERT INTO foo VALUES (1, 1), (2, 2), (3, 3)",
        "INSERT INTO bar VALUES (1, 1, 1), (2, 2, 2)",
        "UPDATE foo SET b = 4",
        "UPDATE bar SET c = 5 WHERE a = 2",
        "DELETE FROM foo WHERE a = 3",
    ] {
        run(&left, sql);
    }
    sync(&right, &left);
    left
}

const ALL: &str = "SELECT \"table\", pk, cid, val, col_version, db_version, site_id, cl, seq";

/// Compares a condition on the virtual table with the same on a copy of its rows.
fn check_filter(engine: &Engine, condition: &str) {
    let filtered = rows(engine, &format!("{ALL} FROM crsql_changes WHERE {condition}"));
    let expected = rows(engine, &format!("{ALL} FROM plain WHERE {condition} ORDER BY db_version, seq"));
    // Rows of equal place may stand in any order.
    let places = rows(engine, &format!("SELECT db_version, seq FROM crsql_changes WHERE {condition}"));
    let expected_places = rows(engine, &format!("SELECT db_version, seq FROM plain WHERE {condition} ORDER BY 1, 2"));
    assert_eq!(places, expected_places, "{condition}");
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(filtered), sorted(expected), "{condition}");
}

/// test_crsql_changes_filters.py: db_version, seq, col_version by `< > = != IS, IS NOT` with 0 to 4; cid, table, pk by
/// `= !=`; site_id with NULL by `= != IS, IS NOT`.
#[test]
fn filters_of_the_table_are_filters_of_its_rows() {
    let engine = busy();
    run(&engine, &format!("CREATE TEMP TABLE plain AS {ALL} FROM crsql_changes"));
    for operator in ["<", ">", "=", "!=", "IS", "IS NOT", "<=", ">="] {
        for column in ["db_version", "seq", "col_version", "cl"] {
            for value in 0..5 {
                check_filter(&engine, &format!("{column} {operator} {value}"));
            }
        }
    }
    for operator in ["=", "!=", "IS", "IS NOT"] {
        for (column, values) in [
            ("cid", ["'b'", "'c'", "'-1'", "'nothing'"]),
            ("\"table\"", ["'foo'", "'bar'", "'FOO'", "NULL"]),
            ("pk", ["x'010901'", "x'010902'", "x'00'", "NULL"]),
            ("site_id", ["NULL", "crsql_site_id()", "x'02020202020202020202020202020202'", "x''"]),
        ] {
            for value in values {
                check_filter(&engine, &format!("{column} {operator} {value}"));
            }
        }
    }
}

/// VT-8 for conditions of several sides, which CRSqlite gets wrong: SQLite tells changes apart by rowids there, and several
/// changes of a row share one.
#[test]
fn alternatives_lose_no_changes() {
    let engine = busy();
    run(&engine, &format!("CREATE TEMP TABLE plain AS {ALL} FROM crsql_changes"));
    let sides = [
        "db_version < 3",
        "db_version > 2",
        "db_version >= 4",
        "db_version = 2",
        "site_id = crsql_site_id()",
        "site_id IS x'02020202020202020202020202020202'",
        "\"table\" = 'bar'",
        "cid = 'b'",
        "cl > 1",
        "site_id = crsql_site_id() AND db_version > 1",
    ];
    for first in sides {
        for second in sides {
            check_filter(&engine, &format!("({first}) OR ({second})"));
            for order in ["pk DESC", "db_version DESC, seq", "cid, cl"] {
                let count = |from: &str| {
                    rows(&engine, &format!("SELECT cid FROM {from} WHERE ({first}) OR ({second}) ORDER BY {order}"))
                        .len()
                };
                assert_eq!(count("crsql_changes"), count("plain"), "({first}) OR ({second}) ORDER BY {order}");
            }
            check_filter(&engine, &format!("seq >= 0 AND (({first}) OR ({second}) OR col_version = 2)"));
        }
    }
}
