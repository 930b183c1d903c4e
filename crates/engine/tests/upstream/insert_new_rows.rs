//! `test_insert_new_rows.py`.

use crate::{FOO, check, check_clocks, replica, version};

/// test_insert_new_rows.py: the exact clock row, one version, and the row as it was written.
#[test]
fn an_insert_leaves_one_clock_for_each_cell() {
    let engine = replica(1, &format!("{FOO}INSERT INTO foo VALUES (1, 'a')"));
    check_clocks(&engine, &["1 b 1 1 0 0"]);
    assert_eq!(version(&engine), 1);
    check(&engine, "SELECT * FROM foo", &["1 a"]);
}
