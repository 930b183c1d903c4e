//! `test_prior_versions.py`.

use litemesh_engine::Engine;
use litemesh_engine::rusqlite::{Connection, OpenFlags};

use crate::{FOO, check, run};

/// test_prior_versions.py: a database that was made read/write opens for reading (TX-2).
#[test]
fn a_file_that_is_complete_opens_for_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let engine = Engine::attach(Connection::open(&path).unwrap()).unwrap();
    run(&engine, FOO);
    run(&engine, "INSERT INTO foo VALUES (1, 1)");
    drop(engine);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let engine = Engine::attach(Connection::open_with_flags(&path, flags).unwrap()).unwrap();
    check(&engine, "SELECT cid, val FROM crsql_changes", &["b 1"]);
}
