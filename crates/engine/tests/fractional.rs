//! Ordered lists (`crsqlite-compat.md` section 14): what the triggers and the view of `crsql_fract_as_ordered` write.
//!
//! The keys themselves are tested beside `src/fractional/key.rs`.

mod support;

use litemesh_engine::Engine;
use litemesh_engine::rusqlite::Connection;
use litemesh_testkit::quote;
use support::{ask, dump, for_seeds, merge, merge_by_sql, refusal};

fn open(create: &str, order: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(create).unwrap();
    ask::<Option<i64>>(engine.connection(), &format!("SELECT crsql_fract_as_ordered({order})"));
    engine
}

/// The table of the inventory's test_as_ordered.py.
fn foo() -> Engine {
    open(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, spot TEXT, list); SELECT crsql_as_crr('foo')",
        "'foo', 'spot', 'list'",
    )
}

fn run(engine: &Engine, sql: &str) {
    engine.connection().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn spot(engine: &Engine, a: i64) -> String {
    ask(engine.connection(), &format!("SELECT spot FROM foo WHERE a = {a}"))
}

/// Keys of `a` in the order of a list.
fn ordered(engine: &Engine, list: &str) -> Vec<i64> {
    let sql = format!("SELECT a FROM foo WHERE list IS {list} ORDER BY spot, a");
    let mut statement = engine.connection().prepare(&sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// test_as_ordered.py: first_insertion_prepend, first_insertion_append. FR-7: text counts like the number.
#[test]
fn the_first_row_of_a_list_gets_the_first_key() {
    for request in ["-1", "1", "'-1'", "'1'"] {
        let engine = foo();
        run(&engine, &format!("INSERT INTO foo VALUES (1, {request}, 'l')"));
        assert_eq!(spot(&engine, 1), "a ", "{request}");
    }
}

/// test_as_ordered.py: view_first_insertion.
#[test]
fn the_first_row_may_come_through_the_view() {
    for after in ["NULL", "77"] {
        let engine = foo();
        run(&engine, &format!("INSERT INTO foo_fractindex (a, list, after_a) VALUES (1, 'l', {after})"));
        assert_eq!(spot(&engine, 1), "a ", "after {after}");
    }
}

fn two() -> Engine {
    let engine = foo();
    run(&engine, "INSERT INTO foo VALUES (1, 1, 'l'), (2, 1, 'l')");
    assert_eq!((spot(&engine, 1), spot(&engine, 2)), ("a ".to_owned(), "a!".to_owned()));
    engine
}

/// test_as_ordered.py: middle_insertion, front_insertion, endinsertion. rs-fract.test.c: rows between others.
#[test]
fn a_row_is_inserted_after_the_one_it_names() {
    for (after, expected) in [("1", "a P"), ("NULL", "Z~"), ("2", "a\"")] {
        let engine = two();
        run(&engine, &format!("INSERT INTO foo_fractindex (a, list, after_a) VALUES (3, 'l', {after})"));
        assert_eq!(spot(&engine, 3), expected, "after {after}");
    }
}

/// test_as_ordered.py: view_move. FR-9: an update that names no row moves to the front.
#[test]
fn a_row_moves_after_the_one_it_names() {
    let engine = two();
    run(&engine, "INSERT INTO foo VALUES (3, 1, 'l'); UPDATE foo_fractindex SET after_a = 1 WHERE a = 3");
    assert_eq!((spot(&engine, 3).as_str(), ordered(&engine, "'l'")), ("a P", vec![1, 3, 2]));
    run(&engine, "UPDATE foo_fractindex SET list = 'l' WHERE a = 2");
    assert_eq!((spot(&engine, 2).as_str(), ordered(&engine, "'l'")), ("Z~", vec![2, 1, 3]));
    // After itself it stays where it is.
    run(&engine, "UPDATE foo_fractindex SET after_a = 1 WHERE a = 1");
    assert_eq!(ordered(&engine, "'l'"), [2, 1, 3]);
}

/// FR-8. rs-fract.test.c: rows at both ends.
#[test]
fn minus_one_and_one_move_to_the_ends() {
    let engine = two();
    run(&engine, "UPDATE foo SET spot = -1 WHERE a = 2");
    assert_eq!((spot(&engine, 2).as_str(), ordered(&engine, "'l'")), ("Z~", vec![2, 1]));
    run(&engine, "UPDATE foo SET spot = 1 WHERE a = 2");
    assert_eq!((spot(&engine, 2).as_str(), ordered(&engine, "'l'")), ("a!", vec![1, 2]));
    // Also with triggers that may call themselves, and many rows in one statement.
    run(&engine, "PRAGMA recursive_triggers = ON; INSERT INTO foo VALUES (3, 1, 'l'); UPDATE foo SET spot = -1");
    let mut reached = ordered(&engine, "'l'");
    reached.sort_unstable();
    assert_eq!(reached, [1, 2, 3]);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(DISTINCT spot) FROM foo"), 3);
}

/// Each combination of list columns is a list of its own, NULL is one like any other, and a row can change its list.
#[test]
fn lists_do_not_see_each_other() {
    let engine = two();
    run(&engine, "INSERT INTO foo VALUES (3, 1, 'm'), (4, 1, NULL), (5, 1, NULL)");
    assert_eq!((spot(&engine, 3), spot(&engine, 4), spot(&engine, 5)), ("a ".into(), "a ".into(), "a!".into()));
    run(&engine, "INSERT INTO foo_fractindex (a, list, after_a) VALUES (6, NULL, 4)");
    assert_eq!(ordered(&engine, "NULL"), [4, 6, 5]);
    // The named row is in another list: to the front.
    run(&engine, "INSERT INTO foo_fractindex (a, list, after_a) VALUES (7, 'm', 1)");
    assert_eq!(ordered(&engine, "'m'"), [7, 3]);
    run(&engine, "UPDATE foo_fractindex SET list = 'm', after_a = 7 WHERE a = 1");
    assert_eq!((ordered(&engine, "'m'"), ordered(&engine, "'l'")), (vec![7, 1, 3], vec![2]));
}

/// A.2 fract.rs: order without list columns. Several of them, too.
#[test]
fn a_table_may_be_one_list_or_many() {
    let engine = open("CREATE TABLE foo (a INTEGER PRIMARY KEY, spot)", "'foo', 'spot'");
    run(&engine, "INSERT INTO foo VALUES (1, -1), (2, -1); INSERT INTO foo_fractindex (a, after_a) VALUES (3, 2)");
    let order = "SELECT group_concat(a) FROM (SELECT a FROM foo ORDER BY spot)";
    assert_eq!(ask::<String>(engine.connection(), order), "2,3,1");

    let engine = open("CREATE TABLE foo (a INTEGER PRIMARY KEY, x, spot, y)", "'foo', 'spot', 'x', 'y'");
    run(&engine, "INSERT INTO foo VALUES (1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 1, 2), (4, NULL, 1, 1), (5, NULL, 1, 1)");
    let spots = "SELECT group_concat(spot) FROM (SELECT spot FROM foo ORDER BY a)";
    assert_eq!(ask::<String>(engine.connection(), spots), "a ,a!,a ,a ,a!");
}

/// A.3 rs-fract.test.c, the repair of a collision; A.2 fract.rs, a move among equal keys. FR-9, FR-10.
#[test]
fn equal_keys_are_told_apart_when_somebody_goes_between() {
    let before = |engine: &Engine| {
        run(
            engine,
            "INSERT INTO foo VALUES (1, 1, 'l'), (2, 1, 'l');
             INSERT INTO foo_fractindex (a, list, after_a) VALUES (3, 'l', 1);
             INSERT INTO foo VALUES (4, 'a!', 'l'), (5, 'a!', 'm')",
        );
        let spots: Vec<_> = (1..=5).map(|a| spot(engine, a)).collect();
        assert_eq!(spots, ["a ", "a!", "a P", "a!", "a!"]);
    };
    let after = |engine: &Engine, new: i64| {
        assert_eq!(spot(engine, 2), "a h", "the named row moves just below the key that it shared");
        assert_eq!(spot(engine, new), "a t", "and makes room for the new one");
        assert_eq!((spot(engine, 4), spot(engine, 5)), ("a!".into(), "a!".into()), "the others stay");
    };
    let engine = foo();
    before(&engine);
    run(&engine, "INSERT INTO foo_fractindex (a, list, after_a) VALUES (6, 'l', 2)");
    after(&engine, 6);

    let engine = foo();
    before(&engine);
    run(&engine, "UPDATE foo_fractindex SET after_a = 2 WHERE a = 1");
    after(&engine, 1);

    // The function, as triggers in files of CRSqlite call it.
    let engine = foo();
    before(&engine);
    let fix = "SELECT crsql_fract_fix_conflict_return_old_key('foo', 'spot', 'list', -1, 'a', 2)";
    assert_eq!(ask::<String>(engine.connection(), fix), "a t");
    run(&engine, "INSERT INTO foo VALUES (6, 'a t', 'l')");
    after(&engine, 6);
    // Everything of this is recorded: another database gets the same keys.
    let mut other = foo();
    merge(&mut other, &dump(&engine));
    assert_eq!((ordered(&other, "'l'"), spot(&other, 2)), (ordered(&engine, "'l'"), "a h".to_owned()));

    // The first of a list has no predecessor.
    let engine = foo();
    run(&engine, "INSERT INTO foo VALUES (1, 'a ', 'l'), (2, 'a ', 'l')");
    run(&engine, "INSERT INTO foo_fractindex (a, list, after_a) VALUES (3, 'l', 1)");
    assert_eq!((spot(&engine, 1), spot(&engine, 3), spot(&engine, 2)), ("Z~".into(), "Z~P".into(), "a ".into()));
}

/// FR-10, the FIX: composite keys; and their values may be anything, -1 and NULL included.
#[test]
fn conflicts_of_composite_keys_are_fixed() {
    let engine = open(
        "CREATE TABLE t (x NOT NULL, y NOT NULL, o, l, PRIMARY KEY (y, x)); SELECT crsql_as_crr('t');
         INSERT INTO t VALUES (-1, 'a', 'a!', 1), (-1, 'b', 'a!', 1), (-1, 'c', 'a!', 2)",
        "'t', 'o', 'l'",
    );
    let connection = engine.connection();
    let fix = "SELECT crsql_fract_fix_conflict_return_old_key('t', 'o', 'l', -1, 'x', 'y', -1, 'a')";
    assert_eq!(ask::<String>(connection, fix), "a P");
    assert_eq!(ask::<String>(connection, "SELECT group_concat(o) FROM (SELECT o FROM t ORDER BY y)"), "a ,a!,a!");
    run(&engine, "INSERT INTO t_fractindex (x, y, l, after_x, after_y) VALUES (5, 'd', 1, -1, 'a')");
    run(&engine, "INSERT INTO t_fractindex (x, y, l, after_x) VALUES (6, 'e', 1, -1)");
    let order = "SELECT group_concat(y) FROM (SELECT y FROM t WHERE l = 1 ORDER BY o)";
    assert_eq!(ask::<String>(connection, order), "e,a,d,b", "half of a key names no row");
    run(&engine, "UPDATE t_fractindex SET after_x = -1, after_y = 'b' WHERE y = 'e' AND x = 6");
    assert_eq!(ask::<String>(connection, order), "a,d,b,e");
}

#[test]
fn fixing_a_conflict_refuses_what_it_cannot_mean() {
    let engine = two();
    run(&engine, "INSERT INTO foo VALUES (3, NULL, 'l'), (4, '0', 'l')");
    let check = |arguments: &str, gist: &str| {
        let sql = format!("SELECT crsql_fract_fix_conflict_return_old_key({arguments})");
        let message = refusal(engine.connection(), &sql);
        assert!(message.contains(gist), "{arguments}: {message}");
    };
    check("", "expected (table");
    check("'foo'", "expected (table");
    check("'foo', 'spot', 'a', 1", "expected (table");
    check("'foo', -1, 'a', 1", "expected (table");
    check("'foo', 'spot', -1", "expected (table");
    check("'foo', 'spot', -1, 'a'", "expected (table");
    check("'foo', 'spot', -1, 'a', 'list', 1", "expected (table");
    check("'foo', NULL, -1, 'a', 1", "expected (table");
    check("'nope', 'spot', -1, 'a', 1", "does not exist");
    check("'foo', 'nope', -1, 'a', 1", "all columns are not present");
    check("'foo', 'spot', 'nope', -1, 'a', 1", "all columns are not present");
    check("'foo', 'spot', -1, 'nope', 1", "all columns are not present");
    check("'foo', 'spot', -1, 'a', 77", "no row of table");
    check("'foo', 'spot', -1, 'a', NULL", "no row of table");
    check("'foo', 'spot', -1, 'a', 3", "no order key");
    check("'foo', 'spot', -1, 'a', 4", "head is out of range");
    assert_eq!((spot(&engine, 1), spot(&engine, 2)), ("a ".to_owned(), "a!".to_owned()));
}

/// FR-6, the FIX: a table without rowids.
#[test]
fn tables_without_rowids_are_ordered_by_their_keys() {
    let engine = open(
        "CREATE TABLE foo (spot TEXT, a INTEGER NOT NULL, b TEXT NOT NULL, list, PRIMARY KEY (b, a)) WITHOUT ROWID;
         SELECT crsql_as_crr('foo')",
        "'foo', 'spot', 'list'",
    );
    run(&engine, "INSERT INTO foo VALUES (1, 1, 'x', 'l'), (1, 2, 'x', 'l'), (-1, 3, 'y', 'l')");
    run(&engine, "INSERT INTO foo_fractindex (a, b, list, after_a, after_b) VALUES (4, 'z', 'l', 1, 'x')");
    assert_eq!(ordered(&engine, "'l'"), [3, 1, 4, 2]);
    run(
        &engine,
        "UPDATE foo_fractindex SET after_a = 2, after_b = 'x' WHERE a = 3; UPDATE foo SET spot = -1 WHERE a = 2",
    );
    assert_eq!(ordered(&engine, "'l'"), [2, 1, 4, 3]);
}

/// A table whose columns hide the names of the rowid, and one with a key that may be NULL.
#[test]
fn rows_are_told_apart_whatever_their_columns_are_called() {
    let engine = open("CREATE TABLE foo (a INTEGER NOT NULL PRIMARY KEY, _rowid_, rowid, oid, spot)", "'foo', 'spot'");
    run(&engine, "INSERT INTO foo (a, _rowid_, rowid, oid, spot) VALUES (1, 7, 7, 7, 1), (2, 7, 7, 7, 1)");
    assert_eq!((spot(&engine, 1), spot(&engine, 2)), ("a ".into(), "a!".into()));
    let engine = open("CREATE TABLE foo (a PRIMARY KEY, _rowid_, spot)", "'foo', 'spot'");
    run(&engine, "INSERT INTO foo VALUES (NULL, 7, 1), (NULL, 7, 1), (NULL, 7, -1)");
    let spots = "SELECT group_concat(spot) FROM (SELECT spot FROM foo ORDER BY spot)";
    assert_eq!(ask::<String>(engine.connection(), spots), "Z~,a ,a!");
}

/// CRR-6: any name works, in any case.
#[test]
fn names_are_quoted_and_found_in_any_case() {
    for (table, key, order, list) in [
        ("it's \"x\" - 100%", "a \"k\"", "or'der", "select"),
        ("order", "key", "by", "group"),
        ("1st", "après", "after", "new"),
        ("foo__other", "_rowid_", "old", "-1"),
    ] {
        let engine = Engine::open_in_memory().unwrap();
        let connection = engine.connection();
        let [t, k, o, l] = [table, key, order, list].map(quote);
        run(&engine, &format!("CREATE TABLE {t} ({k} INTEGER PRIMARY KEY NOT NULL, {o} TEXT, {l})"));
        if list != "-1" {
            engine.replicate(table).unwrap();
        }
        let spelled = [table, order, list].map(str::to_uppercase);
        for arguments in [[table, order, list], spelled.each_ref().map(String::as_str)] {
            let done = connection.query_row("SELECT crsql_fract_as_ordered(?1, ?2, ?3)", arguments, |_| Ok(()));
            // SQLite folds ASCII letters only, and so do we.
            assert!(done.is_ok() || !table.is_ascii() || !key.is_ascii(), "{arguments:?}: {done:?}");
        }
        let view = quote(&format!("{table}_fractindex"));
        let after = quote(&format!("after_{key}"));
        run(&engine, &format!("INSERT INTO {t} VALUES (1, 1, 'l'), (2, 1, 'l')"));
        run(&engine, &format!("INSERT INTO {view} ({k}, {l}, {after}) VALUES (3, 'l', 1)"));
        run(&engine, &format!("INSERT INTO {t} VALUES (4, 'a!', 'l'); UPDATE {view} SET {after} = 2 WHERE {k} = 1"));
        let order = format!("SELECT group_concat(k) FROM (SELECT {k} AS k FROM {t} ORDER BY {o})");
        assert_eq!(ask::<String>(connection, &order), "3,2,1,4", "{table}");
    }
}

/// A.3 rs-fract.test.c: as_ordered twice. FR-6, the FIX: no trigger of the former order column is left.
#[test]
fn ordering_again_replaces_what_was_there() {
    let engine = foo();
    run(&engine, "SELECT crsql_fract_as_ordered('foo', 'spot', 'list'); INSERT INTO foo VALUES (1, 1, 'l')");
    run(&engine, "ALTER TABLE foo ADD COLUMN place");
    run(&engine, "SELECT crsql_as_table('foo'); SELECT crsql_fract_as_ordered('FOO', 'PLACE')");
    run(
        &engine,
        "UPDATE foo SET spot = -1; INSERT INTO foo VALUES (2, 1, 'l', 1); UPDATE foo SET place = -1 WHERE a = 1",
    );
    assert_eq!((spot(&engine, 1), spot(&engine, 2)), ("-1".into(), "1".into()), "`spot` is an ordinary column now");
    assert_eq!(ask::<String>(engine.connection(), "SELECT place FROM foo WHERE a = 1"), "Z~");
    let parts =
        "SELECT group_concat(name) FROM (SELECT name FROM sqlite_master WHERE name LIKE '%fractindex%' ORDER BY name)";
    assert_eq!(
        ask::<String>(engine.connection(), parts),
        "__crsql_foo_fractindex_ezmove,__crsql_foo_fractindex_pend_trig,foo_fractindex,foo_fractindex_insert_trig,\
         foo_fractindex_update_trig"
    );
}

#[test]
fn ordering_refuses_what_cannot_be_ordered() {
    let engine = two();
    run(
        &engine,
        "CREATE VIEW v AS SELECT 1 AS a; CREATE TEMP TABLE temporary (a INTEGER PRIMARY KEY, o);
         CREATE TABLE keyless (o); CREATE TABLE clash (id INTEGER PRIMARY KEY, AFTER_ID, o);
         CREATE TABLE generated (a INTEGER PRIMARY KEY, o AS (a + 1))",
    );
    let parts = "SELECT group_concat(sql) FROM sqlite_master WHERE name LIKE '%fractindex%'";
    let before: String = ask(engine.connection(), parts);
    let check = |arguments: &str, gist: &str| {
        let message = refusal(engine.connection(), &format!("SELECT crsql_fract_as_ordered({arguments})"));
        assert!(message.contains(gist), "{arguments}: {message}");
        assert_eq!(ask::<String>(engine.connection(), parts), before, "{arguments}");
    };
    check("", "too few arguments");
    check("'foo'", "too few arguments");
    check("NULL, 'spot'", "must be given as text");
    check("'foo', 1", "must be given as text");
    check("'foo', 'spot', NULL", "must be given as text");
    check("'nope', 'spot'", "does not exist");
    check("'temporary', 'o'", "does not exist");
    check("'v', 'a'", "is a view");
    check("'crsql_changes', 'cid'", "does not exist");
    check("'foo', 'nope'", "all columns are not present");
    check("'foo', 'spot', 'list', 'nope'", "all columns are not present");
    check("'generated', 'o'", "all columns are not present");
    check("'keyless', 'o'", "no primary key");
    check("'clash', 'o'", "AFTER_ID");
}

/// BUG-19: an error takes back what the call did, and nothing of the transaction around it.
#[test]
fn a_refusal_leaves_the_transaction_alone() {
    let engine = two();
    // The second thing that the call drops is not a view, after it dropped two triggers.
    run(
        &engine,
        "BEGIN; INSERT INTO foo VALUES (3, 1, 'l'); DROP VIEW foo_fractindex; CREATE TABLE foo_fractindex (a)",
    );
    let message = refusal(engine.connection(), "SELECT crsql_fract_as_ordered('foo', 'spot')");
    assert!(message.contains("foo_fractindex"), "{message}");
    assert!(!engine.connection().is_autocommit());
    run(&engine, "INSERT INTO foo VALUES (4, 1, 'l'); COMMIT");
    assert_eq!(ordered(&engine, "'l'"), [1, 2, 3, 4], "the triggers are still there");
}

/// Section 10: a migration may drop the columns that a list is made of, and then nothing of the list is in its way.
#[test]
fn a_migration_may_drop_the_columns_of_a_list() {
    let migrate = |engine: &Engine, columns: &str, order: &str| {
        let schema = format!(
            "CREATE TABLE IF NOT EXISTS foo (a INTEGER PRIMARY KEY NOT NULL{columns});
             SELECT crsql_as_crr('foo');
             {order}"
        );
        engine.connection().query_row("SELECT crsql_automigrate(?1)", [schema], |_| Ok(())).unwrap();
    };
    for (columns, order) in [
        (", list", ""),
        (", spot TEXT", "SELECT crsql_fract_as_ordered('foo', 'spot')"),
        (", place, list", "SELECT crsql_fract_as_ordered('foo', 'place', 'list')"),
        ("", ""),
    ] {
        let engine = two();
        migrate(&engine, columns, order);
        run(&engine, "INSERT INTO foo (a) VALUES (3)");
        let parts = "SELECT count(*) FROM sqlite_master WHERE name LIKE '%fractindex%'";
        assert_eq!(ask::<i64>(engine.connection(), parts), if order.is_empty() { 0 } else { 5 }, "{columns}");
    }
    // Another column goes: the list stays.
    let engine = two();
    run(&engine, "SELECT crsql_begin_alter('foo'); ALTER TABLE foo ADD COLUMN c; SELECT crsql_commit_alter('foo')");
    migrate(&engine, ", spot TEXT, list", "");
    run(&engine, "INSERT INTO foo VALUES (3, -1, 'l')");
    assert_eq!(spot(&engine, 3), "Z~");
}

/// FR-11, and what is sent: the key, never the request.
#[test]
fn an_insert_replicates_as_its_key() {
    let engine = foo();
    run(&engine, "INSERT INTO foo VALUES (1, -1, 'l')");
    let spots = "SELECT val || ':' || col_version FROM crsql_changes WHERE cid = 'spot'";
    assert_eq!(ask::<String>(engine.connection(), spots), "a :2");
}

/// A merge stores what was sent, also where that is a request or the column's default is one: computed anew, each peer would
/// have a key of its own and none would tell the others.
#[test]
fn merges_do_not_compute_keys() {
    let create = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, spot TEXT NOT NULL DEFAULT '-1', list);
                  SELECT crsql_as_crr('foo')";
    let source = Engine::open_in_memory().unwrap();
    run(&source, create);
    run(&source, "INSERT INTO foo VALUES (1, '1', 'l'), (2, 'a!', 'l')");
    let changes = dump(&source);
    let mut native = open(create, "'foo', 'spot', 'list'");
    merge(&mut native, &changes);
    let by_sql = open(create, "'foo', 'spot', 'list'");
    merge_by_sql(by_sql.connection(), &changes);
    for engine in [&native, &by_sql] {
        assert_eq!((spot(engine, 1), spot(engine, 2)), ("1".into(), "a!".into()));
        assert_eq!(dump(engine), changes);
        // What is no key is passed over.
        run(engine, "INSERT INTO foo_fractindex (a, list, after_a) VALUES (3, 'l', 1), (4, 'l', 2)");
        assert_eq!((spot(engine, 3), spot(engine, 4)), ("a ".into(), "a\"".into()));
    }
}

/// The property that all of this is for: lists of peers that move rows at the same time converge, and every key is in use once
/// where one peer alone wrote it.
#[test]
fn lists_move_at_random_and_converge() {
    for_seeds(0xf8ac7, 20, |rng| {
        let mut peers: Vec<Engine> = (0..3)
            .map(|_| {
                let engine = support::attach(Connection::open_in_memory().unwrap());
                run(&engine, "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, spot TEXT, list)");
                engine.replicate("foo").unwrap();
                run(&engine, "SELECT crsql_fract_as_ordered('foo', 'spot', 'list')");
                engine
            })
            .collect();
        for step in 0..60 {
            let peer = &peers[rng.usize(..3)];
            let list = rng.choice(["'l'", "'m'", "NULL"]).unwrap();
            let rows = ordered(peer, list);
            let expected = match (rng.u8(..4), rng.choice(&rows).copied()) {
                (0, _) | (_, None) => {
                    let request = rng.choice([-1, 1]).unwrap();
                    run(peer, &format!("INSERT INTO foo VALUES ({step}, {request}, {list})"));
                    if request == 1 {
                        rows.last().copied().map(|last| (last, step))
                    } else {
                        rows.first().map(|first| (step, *first))
                    }
                }
                (1, Some(after)) => {
                    run(
                        peer,
                        &format!("INSERT INTO foo_fractindex (a, list, after_a) VALUES ({step}, {list}, {after})"),
                    );
                    Some((after, step))
                }
                (_, Some(after)) => {
                    let moved = *rng.choice(&rows).unwrap();
                    run(peer, &format!("UPDATE foo_fractindex SET after_a = {after} WHERE a = {moved}"));
                    (moved != after).then_some((after, moved))
                }
            };
            if let Some((first, second)) = expected {
                let spots = [first, second].map(|a| spot(peer, a));
                assert!(spots[0] < spots[1], "step {step}: {first} before {second}, {spots:?}");
                let between = format!("SELECT count(*) FROM foo WHERE list IS {list} AND spot > ?1 AND spot < ?2");
                let between: i64 = peer.connection().query_row(&between, spots, |row| row.get(0)).unwrap();
                assert_eq!(between, 0, "step {step}: {second} right after {first}");
            }
            if rng.u8(..5) == 0 {
                let (from, to) = (rng.usize(..3), rng.usize(..3));
                let changes = dump(&peers[from]);
                merge(&mut peers[to], &changes);
            }
        }
        for _ in 0..2 {
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                let changes = dump(&peers[from]);
                merge(&mut peers[to], &changes);
            }
        }
        let state = |peer: &Engine| {
            let sql = "SELECT group_concat(a || spot || ifnull(list, 0)) FROM (SELECT * FROM foo ORDER BY a)";
            ask::<String>(peer.connection(), sql)
        };
        assert_eq!(state(&peers[0]), state(&peers[1]));
        assert_eq!(state(&peers[0]), state(&peers[2]));
    });
}

/// FR-3 to FR-5 by SQL.
#[test]
fn key_between_is_a_function_of_sql() {
    let engine = Engine::open_in_memory().unwrap();
    let between = |a: &str, b: &str| format!("SELECT crsql_fract_key_between({a}, {b})");
    assert_eq!(ask::<String>(engine.connection(), &between("NULL", "NULL")), "a ");
    assert_eq!(ask::<String>(engine.connection(), &between("'a0'", "'a1'")), "a0P");
    for (a, b, gist) in [
        ("'a0'", "'a0'", "a must be before b"),
        ("''", "NULL", "must not be empty"),
        ("1", "NULL", "must be text, not Integer"),
        ("NULL", "1.5", "must be text, not Real"),
        ("x'6130'", "NULL", "must be text, not Blob"),
        ("CAST(x'61ff' AS TEXT)", "NULL", "printable ASCII"),
    ] {
        let message = refusal(engine.connection(), &between(a, b));
        assert!(message.contains(gist), "{a}, {b}: {message}");
    }
    refusal(engine.connection(), "SELECT crsql_fract_key_between('a0')");
}

/// Keys sort by bytes, whatever collation the column has.
#[test]
fn a_collation_of_the_column_does_not_matter() {
    let engine = open("CREATE TABLE foo (a INTEGER PRIMARY KEY, spot TEXT COLLATE NOCASE)", "'foo', 'spot'");
    // For NOCASE, `a ` comes before `Z~`, and `aB` equals `ab`.
    run(&engine, "INSERT INTO foo VALUES (1, 1), (2, -1), (3, -1), (4, 'aB'), (5, 'ab')");
    assert_eq!((spot(&engine, 2), spot(&engine, 3)), ("Z~".into(), "Z}".into()));
    run(&engine, "INSERT INTO foo_fractindex (a, after_a) VALUES (6, 4)");
    assert_eq!(spot(&engine, 6), "aC", "no conflict");
}
