//! `crsqlite.test.c`. A column that is dropped and one that is added in one window: `tests/alter.rs`.

use litemesh_engine::Engine;

use crate::{FOO, check, replica, rows, run, sync, sync_where, version};

/// crsqlite.test.c: end to end: three databases, REAL, BLOB and TEXT, with their authors.
#[test]
fn three_databases_end_up_the_same() {
    let table =
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b REAL, c BLOB, d TEXT); SELECT crsql_as_crr('foo');";
    let nodes: Vec<Engine> = (1..4).map(|site| replica(site, table)).collect();
    run(&nodes[0], "INSERT INTO foo VALUES (1, 2.0, x'1232', 'blah'), (2, 2.0, x'1232', 'blah')");
    run(&nodes[1], "INSERT INTO foo VALUES (2, 3.5, x'00', 'other')");
    run(&nodes[2], "INSERT INTO foo VALUES (3, -0.25, x'', '')");
    for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2)] {
        sync(&nodes[from], &nodes[to]);
    }
    for node in &nodes {
        check(node, "SELECT * FROM foo ORDER BY a", &["1 2.0 1232 blah", "2 3.5 1232 other", "3 -0.25  "]);
        // For a cell that both wrote with equal versions: the author of the larger value.
        check(
            node,
            "SELECT pk, cid, substr(site_id, 1, 1) FROM crsql_changes ORDER BY pk, cid",
            &[
                "010901 b 01",
                "010901 c 01",
                "010901 d 01",
                "010902 b 02",
                "010902 c 01",
                "010902 d 02",
                "010903 b 03",
                "010903 c 03",
                "010903 d 03",
            ],
        );
    }
}

/// crsqlite.test.c: the Lamport condition: after a merge the receiver's version is at least the sender's, and a later
/// change flows back.
#[test]
fn versions_follow_those_that_were_seen() {
    let (a, b) = (replica(1, FOO), replica(2, FOO));
    run(&b, "INSERT INTO foo VALUES (9, 0)");
    for n in 0..5 {
        run(&a, &format!("REPLACE INTO foo VALUES (1, {n})"));
    }
    sync(&a, &b);
    assert!(version(&b) >= version(&a));
    let seen = version(&a);
    run(&b, "UPDATE foo SET b = 7 WHERE a = 1");
    assert!(version(&b) > seen);
    sync_where(&b, &a, &format!("db_version > {seen}"));
    check(&a, "SELECT b FROM foo WHERE a = 1", &["7"]);
}

/// crsqlite.test.c: no-op merges do not move versions.
#[test]
fn merges_without_effect_take_no_version() {
    let (a, b) = (replica(1, FOO), replica(2, FOO));
    run(&a, "INSERT INTO foo VALUES (1, 1), (2, 2); DELETE FROM foo WHERE a = 2");
    sync(&a, &b);
    let (changes, at) = (rows(&b, "SELECT * FROM crsql_changes"), version(&b));
    for _ in 0..3 {
        sync(&a, &b);
        sync(&b, &b);
    }
    assert_eq!((rows(&b, "SELECT * FROM crsql_changes"), version(&b)), (changes, at));
}

/// crsqlite.test.c: a filter for local changes alone.
#[test]
fn local_changes_can_be_asked_for() {
    let (a, b) = (replica(1, FOO), replica(2, FOO));
    run(&a, "INSERT INTO foo VALUES (1, 1)");
    run(&b, "INSERT INTO foo VALUES (2, 2)");
    sync(&a, &b);
    check(&b, "SELECT pk FROM crsql_changes WHERE site_id IS crsql_site_id()", &["010902"]);
    check(&b, "SELECT pk FROM crsql_changes WHERE site_id = crsql_site_id()", &["010902"]);
}
