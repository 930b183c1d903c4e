//! `test_siteid.py`.

use litemesh_engine::Engine;
use litemesh_engine::rusqlite::Connection;

use crate::{FOO, check, replica, rows, run, sync};

/// test_siteid.py: a UUID of 16 bytes; the function equals the table; stable across reopening.
#[test]
fn a_database_has_one_site_id_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let engine = Engine::attach(Connection::open(&path).unwrap()).unwrap();
    check(&engine, "SELECT typeof(crsql_site_id()), length(crsql_site_id())", &["blob 16"]);
    let site = rows(&engine, "SELECT crsql_site_id()");
    // Version 4, variant 1 (VER-16).
    assert_eq!(&site[0][12..13], "4");
    assert!("89ab".contains(&site[0][16..17]), "{site:?}");
    assert_eq!(rows(&engine, "SELECT site_id FROM crsql_site_id WHERE ordinal = 0"), site);
    drop(engine);
    let engine = Engine::attach(Connection::open(&path).unwrap()).unwrap();
    assert_eq!(rows(&engine, "SELECT crsql_site_id()"), site);
}

/// test_siteid.py: all local operations carry the own id.
#[test]
fn local_operations_carry_the_own_id() {
    let engine = replica(7, FOO);
    for sql in [
        "INSERT INTO foo VALUES (1, 1), (2, 2), (3, 3)",
        "UPDATE foo SET b = 5 WHERE a = 1",
        "DELETE FROM foo WHERE a = 2",
        "UPDATE foo SET a = 9 WHERE a = 3",
    ] {
        run(&engine, sql);
        check(&engine, "SELECT DISTINCT site_id FROM crsql_changes", &[&"07".repeat(16)]);
    }
}

/// test_siteid.py: the author's id is preserved from A over B to C.
#[test]
fn the_author_is_the_author_however_far_it_went() {
    let (a, b, c) = (replica(1, FOO), replica(2, FOO), replica(3, FOO));
    run(&a, "INSERT INTO foo VALUES (1, 1)");
    run(&b, "INSERT INTO foo VALUES (2, 2)");
    sync(&a, &b);
    sync(&b, &c);
    check(&c, "SELECT pk, substr(site_id, 1, 1) FROM crsql_changes ORDER BY pk", &["010901 01", "010902 02"]);
}
