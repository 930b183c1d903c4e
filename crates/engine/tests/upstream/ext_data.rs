//! `ext-data.test.c`: what a connection keeps, and when it reads it anew. Theirs looks into a C struct; ours sees what
//! comes of it.

use litemesh_engine::Engine;

use crate::{FOO, check, replica, rows, run, version};

/// ext-data.test.c: the initial state of a connection.
#[test]
fn a_connection_begins_with_nothing() {
    let engine = replica(1, "");
    check(
        &engine,
        "SELECT crsql_db_version(), crsql_next_db_version(), crsql_get_seq(), crsql_rows_impacted(),
         crsql_internal_sync_bit()",
        &["0 1 0 0 0"],
    );
    check(&engine, "SELECT count(*) FROM crsql_changes", &["0"]);
}

/// ext-data.test.c: free; finalize twice. FN-9, the FIX: the connection goes on.
#[test]
fn finalizing_twice_does_no_harm() {
    let engine = replica(1, FOO);
    for key in 0..2 {
        check(&engine, "SELECT crsql_finalize()", &["finalized"]);
        check(&engine, "SELECT crsql_finalize()", &["finalized"]);
        run(&engine, &format!("INSERT INTO foo VALUES ({key}, 1)"));
    }
    assert_eq!(version(&engine), 2);
}

/// ext-data.test.c: schema_version is noticed, for both caches: the list of tables, and the statements over all of
/// them.
#[test]
fn schema_changes_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (a, b) = (Engine::open(&path).unwrap(), Engine::open(&path).unwrap());
    assert_eq!(version(&b), 0);
    run(&a, FOO);
    run(&a, "INSERT INTO foo VALUES (1, 1)");
    assert_eq!(version(&b), 1, "with clock tables that came since");
    check(&b, "SELECT \"table\" FROM crsql_changes", &["foo"]);
    run(&b, "INSERT INTO foo VALUES (2, 2)");
    run(&a, "SELECT crsql_as_table('foo')");
    check(&b, "SELECT count(*) FROM crsql_changes", &["0"]);
    // VER-7, the FIX: without clock tables it does not fall.
    assert_eq!((version(&a), version(&b)), (2, 2));
}

/// ext-data.test.c: data_version changes only by writes of other connections.
#[test]
fn writes_of_other_connections_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (a, b) = (Engine::open(&path).unwrap(), Engine::open(&path).unwrap());
    run(&a, FOO);
    let data_version = |engine: &Engine| rows(engine, "PRAGMA data_version");
    let (of_a, of_b) = (data_version(&a), data_version(&b));
    run(&a, "INSERT INTO foo VALUES (1, 1)");
    assert_eq!(data_version(&a), of_a);
    assert_ne!(data_version(&b), of_b);
    assert_eq!((version(&a), version(&b)), (1, 1));
    run(&b, "INSERT INTO foo VALUES (2, 2)");
    assert_eq!((version(&a), version(&b)), (2, 2));
}
