//! `test_sync.py` and `test_sync_prop.py`. What is merged after an alter is in `tests/alter.rs`.

use litemesh_engine::Engine;
use litemesh_testkit::{Statement, schemas};

use crate::support::{assert_same, create, execute, for_seeds, state};
use crate::{CHANGES, FOO, check, replica, run, sync, sync_where, version};

/// test_sync.py: changes_since.
#[test]
fn changes_come_in_the_order_in_which_they_were_made() {
    let engine = replica(
        1,
        "CREATE TABLE user (id INTEGER PRIMARY KEY NOT NULL, name TEXT);
         CREATE TABLE deck (id INTEGER PRIMARY KEY NOT NULL, owner INTEGER, title TEXT);
         CREATE TABLE slide (id INTEGER PRIMARY KEY NOT NULL, deck INTEGER, position INTEGER);
         CREATE TABLE component (id INTEGER PRIMARY KEY NOT NULL, slide INTEGER, kind TEXT, content TEXT);
         SELECT crsql_as_crr('user'); SELECT crsql_as_crr('deck'); SELECT crsql_as_crr('slide');
         SELECT crsql_as_crr('component');
         BEGIN;
         INSERT INTO user VALUES (1, 'Ada');
         INSERT INTO deck VALUES (1, 1, 'First');
         INSERT INTO slide VALUES (1, 1, 0), (2, 1, 1), (3, 1, 2);
         INSERT INTO component VALUES (1, 1, 'text', 'a'), (2, 1, 'text', 'b'), (3, 2, 'text', 'c');
         COMMIT;",
    );
    const ROWS: &str = "SELECT \"table\", pk, cid, val, col_version, cl, db_version, seq FROM crsql_changes";
    check(
        &engine,
        ROWS,
        &[
            "user 010901 name Ada 1 1 1 0",
            "deck 010901 owner 1 1 1 1 1",
            "deck 010901 title First 1 1 1 2",
            "slide 010901 deck 1 1 1 1 3",
            "slide 010901 position 0 1 1 1 4",
            "slide 010902 deck 1 1 1 1 5",
            "slide 010902 position 1 1 1 1 6",
            "slide 010903 deck 1 1 1 1 7",
            "slide 010903 position 2 1 1 1 8",
            "component 010901 slide 1 1 1 1 9",
            "component 010901 kind text 1 1 1 10",
            "component 010901 content a 1 1 1 11",
            "component 010902 slide 1 1 1 1 12",
            "component 010902 kind text 1 1 1 13",
            "component 010902 content b 1 1 1 14",
            "component 010903 slide 2 1 1 1 15",
            "component 010903 kind text 1 1 1 16",
            "component 010903 content c 1 1 1 17",
        ],
    );
    run(&engine, "BEGIN; UPDATE user SET name = 'Eve'; UPDATE deck SET title = 'Last'; COMMIT");
    check(
        &engine,
        &format!("{ROWS} WHERE db_version > 1"),
        &["user 010901 name Eve 2 1 2 0", "deck 010901 title Last 2 1 2 1"],
    );
}

/// test_sync.py: delete.
#[test]
fn deletions_are_tombstones() {
    let engine = replica(1, &format!("{FOO}INSERT INTO foo VALUES (1, 1), (2, 2), (3, 3);"));
    run(&engine, "DELETE FROM foo WHERE a = 2");
    check(&engine, &format!("{CHANGES} WHERE db_version > 1"), &["010902 -1 NULL 2 2 01 2 0"]);
    run(&engine, "DELETE FROM foo");
    check(
        &engine,
        &format!("{CHANGES} WHERE db_version > 1"),
        &["010902 -1 NULL 2 2 01 2 0", "010901 -1 NULL 2 3 01 2 0", "010903 -1 NULL 2 3 01 2 1"],
    );
}

fn pair(left: &str, right: &str) -> (Engine, Engine) {
    (replica(1, &format!("{FOO}{left}")), replica(2, &format!("{FOO}{right}")))
}

/// Each side's changes after it has merged the other's as they were before.
fn check_both_ways(left: &str, right: &str, at_left: &str, at_right: &str) {
    let (a, b) = pair(left, right);
    sync(&a, &b);
    check(&b, CHANGES, &[at_right]);
    let (a, b) = pair(left, right);
    sync(&b, &a);
    check(&a, CHANGES, &[at_left]);
}

/// test_sync.py: merge_same.
#[test]
fn equal_values_change_nothing() {
    let insert = "INSERT INTO foo VALUES (1, 2);";
    check_both_ways(insert, insert, "010901 b 2 1 1 01 1 0", "010901 b 2 1 1 02 1 0");
}

/// test_sync.py: merge_same_w_tie_breaker.
#[test]
fn with_the_tie_breaker_all_agree_on_the_author() {
    let nodes: Vec<Engine> = (1..4)
        .map(|site| {
            replica(
                site,
                &format!("{FOO}SELECT crsql_config_set('merge-equal-values', 1); INSERT INTO foo VALUES (1, 2);"),
            )
        })
        .collect();
    for _ in 0..2 {
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2), (2, 1), (1, 0)] {
            sync(&nodes[from], &nodes[to]);
        }
        for node in &nodes {
            check(
                node,
                "SELECT pk, cid, val, col_version, substr(site_id, 1, 1), cl, seq FROM crsql_changes",
                &["010901 b 2 1 03 1 0"],
            );
        }
    }
    let versions: Vec<i64> = nodes.iter().map(version).collect();
    sync(&nodes[0], &nodes[1]);
    sync(&nodes[1], &nodes[2]);
    assert_eq!(nodes.iter().map(version).collect::<Vec<_>>(), versions, "nothing is new any more");
}

/// test_sync.py: merge_matching_clocks_lesser_value.
#[test]
fn at_equal_versions_the_larger_value_stays() {
    check_both_ways(
        "INSERT INTO foo VALUES (1, 1);",
        "INSERT INTO foo VALUES (1, 2);",
        "010901 b 2 1 2 02 1 0",
        "010901 b 2 1 1 02 1 0",
    );
}

/// test_sync.py: merge_larger_clock_larger_value, merge_larger_clock_smaller_value, merge_larger_clock_same_value.
#[test]
fn the_higher_version_stays_whatever_the_values() {
    for value in [9, 0, 5] {
        check_both_ways(
            &format!("INSERT INTO foo VALUES (1, 1); UPDATE foo SET b = {value};"),
            "INSERT INTO foo VALUES (1, 5);",
            &format!("010901 b {value} 2 2 01 1 0"),
            &format!("010901 b {value} 2 2 01 1 0"),
        );
    }
}

/// test_sync.py: merge.
#[test]
fn rows_of_both_sides_come_together() {
    let (a, b) = pair("INSERT INTO foo VALUES (1, 1);", "INSERT INTO foo VALUES (2, 2);");
    sync(&a, &b);
    sync(&b, &a);
    for engine in [&a, &b] {
        check(engine, "SELECT * FROM foo ORDER BY a", &["1 1", "2 2"]);
    }
}

/// test_sync_prop.py: delta_sync.
#[test]
fn deltas_bring_every_database_to_the_same_state() {
    for_seeds(0x5c, 15, |rng| {
        let schemas = schemas();
        let count = rng.usize(2..=5);
        let nodes: Vec<Engine> = (0..count)
            .map(|index| {
                let engine = replica(u8::try_from(index + 1).unwrap(), "");
                create(&engine, &schemas);
                engine
            })
            .collect();
        let mut cursors = vec![vec![0; count]; count];
        let mut pass = |from: usize, to: usize| {
            let condition = format!(
                "db_version > {} AND site_id IS NOT x'{}'",
                cursors[to][from],
                format!("{:02x}", to + 1).repeat(16)
            );
            sync_where(&nodes[from], &nodes[to], &condition);
            cursors[to][from] = version(&nodes[from]);
        };
        for _ in 0..40 {
            execute(&nodes[rng.usize(..count)], &schemas, &Statement::random(rng, &schemas));
            if rng.u8(..3) == 0 {
                let from = rng.usize(..count);
                pass(from, (from + rng.usize(1..count)) % count);
            }
        }
        // A star: everything to the first, and from there to all.
        for other in 1..count {
            pass(other, 0);
        }
        for other in 1..count {
            pass(0, other);
        }
        let first = state(&nodes[0], &schemas);
        for other in &nodes[1..] {
            assert_same(&first, &state(other, &schemas), "after the star");
        }
    });
}
