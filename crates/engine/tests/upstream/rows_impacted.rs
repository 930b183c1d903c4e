//! `rows-impacted.test.c`: `crsql_rows_impacted()` counts what changed something.

use litemesh_engine::Engine;

use crate::{FOO, check, replica, run};

/// A change of foo; `site` is SQL.
fn change(key: u8, cid: &str, value: &str, col_version: i64, cl: i64, site: &str) -> String {
    format!("('foo', x'0109{key:02x}', '{cid}', {value}, {col_version}, 1, {site}, {cl}, 0)")
}

/// Merges in one transaction, and gives the count before it commits. After it the count is zero.
#[track_caller]
fn check_count(engine: &Engine, statements: &[Vec<String>], expected: i64) {
    run(engine, "BEGIN");
    for changes in statements {
        run(engine, &format!("INSERT INTO crsql_changes VALUES {}", changes.join(", ")));
    }
    check(engine, "SELECT crsql_rows_impacted()", &[&expected.to_string()]);
    run(engine, "COMMIT");
    check(engine, "SELECT crsql_rows_impacted()", &["0"]);
}

/// rows-impacted.test.c: a single row, many statements, one statement of many rows; reset after each commit.
#[test]
fn every_row_that_wins_counts() {
    for site in ["NULL", "zeroblob(16)"] {
        let engine = replica(1, FOO);
        let one = |key| change(key, "b", "1", 1, 1, site);
        check_count(&engine, &[vec![one(1)]], 1);
        check_count(&engine, &[vec![one(2)], vec![one(3)], vec![one(4)]], 3);
        check_count(&engine, &[vec![one(5), one(6), one(7)]], 3);
    }
}

/// rows-impacted.test.c: equal value, smaller value, smaller clock, stale delete, duplicate create: 0. Larger value,
/// larger clock, delete: 1.
#[test]
fn only_what_changes_something_counts() {
    for site in ["NULL", "zeroblob(16)"] {
        for (cid, value, col_version, cl, expected) in [
            ("b", "2", 2, 1, 0),
            ("b", "1", 2, 1, 0),
            ("b", "9", 1, 1, 0),
            ("-1", "NULL", 0, 0, 0),
            ("-1", "NULL", 1, 1, 0),
            ("b", "3", 2, 1, 1),
            ("b", "0", 3, 1, 1),
            ("-1", "NULL", 2, 2, 1),
        ] {
            let engine = replica(1, &format!("{FOO}INSERT INTO foo VALUES (1, 1); UPDATE foo SET b = 2;"));
            check_count(&engine, &[vec![change(1, cid, value, col_version, cl, site)]], expected);
        }
        // A deletion that is known.
        let engine = replica(1, &format!("{FOO}INSERT INTO foo VALUES (1, 1); DELETE FROM foo;"));
        check_count(&engine, &[vec![change(1, "-1", "NULL", 2, 2, site)]], 0);
    }
}
