//! `test_cl_merging.py`: the causal length decides before versions, and versions before values.

use litemesh_engine::Engine;
use litemesh_testkit::{Statement, schemas};

use crate::support::{assert_same, create, engine, execute, for_seeds, merge_by_sql, select_changes, state};
use crate::{CHANGES, FOO, check, check_clocks, replica, run, sync, sync_where, version};

const REBORN: &str = "INSERT INTO foo VALUES (1, 1); DELETE FROM foo; INSERT INTO foo VALUES (1, 1);";
const DEAD: &str = "INSERT INTO foo VALUES (1, 1); DELETE FROM foo;";

fn foo(site: u8, sql: &str) -> Engine {
    replica(site, &format!("{FOO}{sql}"))
}

/// test_cl_merging.py: larger_cl_wins_all.
#[test]
fn a_longer_life_beats_higher_versions_and_larger_values() {
    let left = foo(1, REBORN);
    let right = foo(2, "INSERT INTO foo VALUES (1, 9); UPDATE foo SET b = 10; UPDATE foo SET b = 11;");
    sync(&left, &right);
    check(&right, "SELECT * FROM foo", &["1 1"]);
    check(&right, "SELECT cid, col_version, cl FROM crsql_changes ORDER BY cid", &["-1 3 3", "b 1 3"]);
    sync(&right, &left);
    check(&left, "SELECT * FROM foo", &["1 1"]);
    check(&left, "SELECT cid, col_version, cl FROM crsql_changes ORDER BY cid", &["-1 3 3", "b 1 3"]);
}

/// test_cl_merging.py: larger_cl_delete_deletes_all.
#[test]
fn a_longer_deletion_takes_the_row_and_its_cells() {
    let left = foo(1, "BEGIN; INSERT INTO foo VALUES (1, 1); DELETE FROM foo; COMMIT;");
    let right = foo(2, "INSERT INTO foo VALUES (1, 9); UPDATE foo SET b = 10; UPDATE foo SET b = 11;");
    sync(&left, &right);
    check(&right, "SELECT * FROM foo", &[]);
    // The receiver's next version; the author's site and sequence number.
    check_clocks(&right, &["1 -1 2 4 1 1"]);
    check(&right, CHANGES, &["010901 -1 NULL 2 4 01 2 1"]);
}

/// test_cl_merging.py: smaller_delete_does_not_delete_larger_cl.
#[test]
fn a_deletion_of_an_older_life_does_nothing() {
    let (left, right) = (foo(1, DEAD), foo(2, REBORN));
    sync(&left, &right);
    check(&right, "SELECT * FROM foo", &["1 1"]);
    check_clocks(&right, &["1 -1 3 3 0 0", "1 b 1 3 0 1"]);
    assert_eq!(version(&right), 3);
}

/// test_cl_merging.py: equivalent_delete_cls_is_noop.
#[test]
fn an_equal_deletion_touches_nothing() {
    let (left, right) = (foo(1, DEAD), foo(2, DEAD));
    // It would go if the deletion were carried out again.
    run(&right, "INSERT INTO foo__crsql_clock VALUES (1, 'b', 3, 1, 0, 1)");
    sync(&left, &right);
    check_clocks(&right, &["1 -1 2 2 0 0", "1 b 3 1 0 1"]);
    assert_eq!(version(&right), 2);
}

/// test_cl_merging.py: smaller_cl_loses_all.
#[test]
fn an_update_of_an_older_life_does_nothing() {
    let left = foo(1, "INSERT INTO foo VALUES (1, 9); UPDATE foo SET b = 10; UPDATE foo SET b = 11;");
    let right = foo(2, REBORN);
    sync(&left, &right);
    check(&right, "SELECT * FROM foo", &["1 1"]);
    check_clocks(&right, &["1 -1 3 3 0 0", "1 b 1 3 0 1"]);
}

/// test_cl_merging.py: pr_299_scenario.
#[test]
fn a_new_life_replaces_high_versions_also_where_the_deletion_was_missed() {
    let left = foo(1, "INSERT INTO foo VALUES (1, 1); UPDATE foo SET b = 2; UPDATE foo SET b = 3;");
    let right = foo(2, "");
    sync(&left, &right);
    run(&left, "DELETE FROM foo; INSERT INTO foo VALUES (1, 0);");
    sync_where(&left, &right, "db_version = crsql_db_version()");
    check(&right, "SELECT * FROM foo", &["1 0"]);
    check(&right, CHANGES, &["010901 -1 NULL 3 5 01 3 0", "010901 b 0 1 5 01 3 1"]);
    sync(&left, &right);
    assert_eq!(version(&right), 5, "nothing was new");
}

/// test_cl_merging.py: sync_with_siteid.
#[test]
fn every_kind_of_change_carries_its_author() {
    let (left, right) = (foo(1, ""), foo(2, ""));
    for (sql, expected) in [
        ("INSERT INTO foo VALUES (1, 1)", &["010901 b 1 1 1 01 1 0"][..]),
        ("UPDATE foo SET b = 2", &["010901 b 2 2 2 01 1 0"]),
        ("DELETE FROM foo", &["010901 -1 NULL 2 3 01 2 0"]),
        ("INSERT INTO foo VALUES (1, 1)", &["010901 -1 NULL 3 4 01 3 0", "010901 b 1 1 4 01 3 1"]),
    ] {
        run(&left, sql);
        sync(&left, &right);
        check(&right, CHANGES, expected);
    }
}

/// test_cl_merging.py: resurrection_of_live_thing_via_sentinel. MRG-9.
#[test]
fn a_sentinel_of_a_new_life_makes_room_for_its_cells() {
    let (left, right) = (foo(1, REBORN), foo(2, "INSERT INTO foo VALUES (1, 8); UPDATE foo SET b = 9;"));
    sync_where(&left, &right, "cid = '-1'");
    check(&right, "SELECT * FROM foo", &["1 9"]);
    // The cell counts as never written, is told of again, and keeps its author.
    check_clocks(&right, &["1 -1 3 3 1 0", "1 b 0 3 0 0"]);
    sync_where(&left, &right, "cid = 'b'");
    check(&right, "SELECT * FROM foo", &["1 1"]);
    check_clocks(&right, &["1 -1 3 3 1 0", "1 b 1 4 1 1"]);
}

/// test_cl_merging.py: resurrection_of_live_thing_via_non_sentinel.
#[test]
fn a_cell_of_a_new_life_brings_the_sentinel_along() {
    let (left, right) = (foo(1, REBORN), foo(2, "INSERT INTO foo VALUES (1, 8); UPDATE foo SET b = 9;"));
    sync_where(&left, &right, "cid = 'b'");
    check(&right, "SELECT * FROM foo", &["1 1"]);
    check_clocks(&right, &["1 -1 3 3 1 1", "1 b 1 3 1 1"]);
    sync(&left, &right);
    assert_eq!(version(&right), 3, "the rest is known");
}

/// test_cl_merging.py: resurrection_of_dead_thing_via_sentinel.
#[test]
fn a_dead_row_comes_back_by_its_sentinel() {
    let (left, right) = (foo(1, REBORN), foo(2, DEAD));
    sync_where(&left, &right, "cid = '-1'");
    check(&right, "SELECT * FROM foo", &["1 NULL"]);
    check_clocks(&right, &["1 -1 3 3 1 0"]);
    sync_where(&left, &right, "cid = 'b'");
    check(&right, "SELECT * FROM foo", &["1 1"]);
    check_clocks(&right, &["1 -1 3 3 1 0", "1 b 1 4 1 1"]);
}

/// test_cl_merging.py: resurrection_of_dead_thing_via_non_sentinel.
#[test]
fn a_dead_row_comes_back_by_a_cell() {
    let (left, right) = (foo(1, REBORN), foo(2, DEAD));
    sync_where(&left, &right, "cid = 'b'");
    check(&right, "SELECT * FROM foo", &["1 1"]);
    check_clocks(&right, &["1 -1 3 3 1 1", "1 b 1 3 1 1"]);
    sync(&left, &right);
    assert_eq!(version(&right), 3, "the rest is known");
}

/// test_cl_merging.py: delete_via_sentinel.
#[test]
fn a_deletion_is_one_change_whatever_the_row_had() {
    let table = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c, d); SELECT crsql_as_crr('foo');";
    let (left, right) = (replica(1, table), replica(2, table));
    run(&left, "INSERT INTO foo VALUES (1, 1, 2, 3)");
    sync(&left, &right);
    check(&right, "SELECT cid FROM crsql_changes", &["b", "c", "d"]);
    run(&left, "DELETE FROM foo");
    sync(&left, &right);
    check(&right, CHANGES, &["010901 -1 NULL 2 2 01 2 0"]);
}

/// test_cl_merging.py: larger_col_version_same_cl and larger_col_value_same_cl_and_col_version.
#[test]
fn within_a_life_versions_decide_and_then_values() {
    let left = foo(1, &format!("{REBORN}UPDATE foo SET b = 0;"));
    let right = foo(2, &format!("{REBORN}INSERT INTO foo VALUES (2, 5);"));
    run(&left, "INSERT INTO foo VALUES (2, 4)");
    sync(&left, &right);
    check(&right, "SELECT * FROM foo", &["1 0", "2 5"]);
    sync(&right, &left);
    check(&left, "SELECT * FROM foo", &["1 0", "2 5"]);
}

/// test_cl_merging.py: pko_create, pko_delete, pko_resurrect.
#[test]
fn tables_of_keys_alone_live_and_die_alike() {
    let table = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo');";
    let (left, right) = (replica(1, table), replica(2, table));
    for (sql, base, changes) in [
        ("INSERT INTO foo VALUES (1)", &["1"][..], &["010901 -1 NULL 1 1 01 1 0"][..]),
        ("DELETE FROM foo", &[], &["010901 -1 NULL 2 2 01 2 0"]),
        ("INSERT INTO foo VALUES (1)", &["1"], &["010901 -1 NULL 3 3 01 3 0"]),
    ] {
        run(&left, sql);
        sync(&left, &right);
        check(&right, "SELECT * FROM foo", base);
        check(&right, CHANGES, changes);
    }
}

/// test_cl_merging.py: discord_report_corrosion.
#[test]
fn updates_may_arrive_before_the_insert_that_they_need() {
    let table = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');";
    let (left, right) = (replica(1, table), replica(2, table));
    run(&left, "INSERT INTO foo VALUES (1, 1, 1); DELETE FROM foo; INSERT INTO foo VALUES (1, 2, 2)");
    let before = select_changes(left.connection(), "");
    run(&left, "UPDATE foo SET b = 3; UPDATE foo SET c = 4");
    sync_where(&left, &right, "db_version > 3");
    merge_by_sql(right.connection(), &before);
    let all = "SELECT cid, val, col_version, cl FROM crsql_changes ORDER BY cid";
    check(&left, all, &["-1 NULL 3 3", "b 3 2 3", "c 4 2 3"]);
    check(&right, all, &["-1 NULL 3 3", "b 3 2 3", "c 4 2 3"]);
}

/// Writes at random, and gives the changes of each transaction as a peer would have seen them then.
fn history(rng: &mut fastrand::Rng, engine: &Engine) -> Vec<Vec<litemesh_engine::proto::Change>> {
    let schemas = schemas();
    let mut sent = 0;
    (0..25)
        .map(|_| {
            execute(engine, &schemas, &Statement::random(rng, &schemas));
            let changes = select_changes(
                engine.connection(),
                &format!("WHERE db_version > {sent} AND site_id = crsql_site_id()"),
            );
            sent = version(engine);
            changes
        })
        .collect()
}

/// test_cl_merging.py: out_of_order_merge.
#[test]
fn transactions_may_arrive_in_any_order() {
    for_seeds(0x00c1, 20, |rng| {
        let (left, right) = (engine(&schemas()), engine(&schemas()));
        let mut transactions = history(rng, &left);
        rng.shuffle(&mut transactions);
        for changes in &transactions {
            merge_by_sql(right.connection(), changes);
        }
        assert_same(&state(&left, &schemas()), &state(&right, &schemas()), "after all transactions");
    });
}

/// test_cl_merging.py: out_of_order_merge_bidi.
#[test]
fn transactions_may_arrive_in_any_order_both_ways() {
    for_seeds(0x00c2, 20, |rng| {
        let (left, right) = (engine(&schemas()), engine(&schemas()));
        let (mut of_left, mut of_right) = (history(rng, &left), history(rng, &right));
        rng.shuffle(&mut of_left);
        rng.shuffle(&mut of_right);
        for (from_left, from_right) in of_left.iter().zip(&of_right) {
            merge_by_sql(right.connection(), from_left);
            merge_by_sql(left.connection(), from_right);
        }
        assert_same(&state(&left, &schemas()), &state(&right, &schemas()), "after all transactions");
    });
}

/// test_cl_merging.py: ordered_delta_merge_proxy.
#[test]
fn a_relay_passes_everything_on() {
    for_seeds(0x00c3, 20, |rng| {
        let schemas = schemas();
        let sites: Vec<Engine> = (1..4)
            .map(|site| {
                let engine = replica(site, "");
                create(&engine, &schemas);
                engine
            })
            .collect();
        // Up to which version of the other one each has asked: of the first and the relay, of the last and the relay.
        let mut cursors = [[0; 3]; 3];
        for round in 0..30 {
            for site in &sites {
                execute(site, &schemas, &Statement::random(rng, &schemas));
            }
            // The last rounds carry what is left.
            for (from, to) in [(0, 1), (1, 2), (2, 1), (1, 0)] {
                if round < 26 && rng.bool() {
                    continue;
                }
                let condition = format!(
                    "db_version > {} AND site_id IS NOT x'{}'",
                    cursors[to][from],
                    format!("{:02x}", to + 1).repeat(16)
                );
                sync_where(&sites[from], &sites[to], &condition);
                cursors[to][from] = version(&sites[from]);
            }
        }
        for (from, to) in [(0, 1), (2, 1), (1, 0), (1, 2)] {
            let condition = format!("db_version > {}", cursors[to][from]);
            sync_where(&sites[from], &sites[to], &condition);
        }
        let first = state(&sites[0], &schemas);
        assert_same(&first, &state(&sites[1], &schemas), "first and relay");
        assert_same(&first, &state(&sites[2], &schemas), "first and last");
    });
}
