//! `is-crr.test.c`.

use crate::{FOO, replica, run};

/// is-crr.test.c: a plain table is none, a replicated one is one, after as_table it is none again.
#[test]
fn a_table_replicates_from_as_crr_to_as_table() {
    let engine = replica(1, "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)");
    assert!(engine.tables().unwrap().is_empty());
    run(&engine, "SELECT crsql_as_crr('foo')");
    assert_eq!(engine.tables().unwrap(), ["foo".into()]);
    run(&engine, "SELECT crsql_as_table('foo')");
    assert!(engine.tables().unwrap().is_empty());
    run(&engine, "DROP TABLE foo");
    run(&engine, FOO);
    assert_eq!(engine.tables().unwrap(), ["foo".into()]);
}
