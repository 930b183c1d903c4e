//! The SQL that CRSqlite's users know: functions, and `crsql_changes` as a table.

mod support;

use litemesh_engine::proto::{CausalLength, Change, Column, SiteId};
use litemesh_engine::rusqlite::{self, ErrorCode};
use litemesh_engine::{Engine, MergeProgress};
use litemesh_testkit::{Statement, schemas};
use support::{ask, dump, engine, execute, for_seeds, identity, merge, merge_by_sql, refusal, select_changes};

fn foo() -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine
        .connection()
        .execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo')")
        .unwrap();
    engine
}

#[test]
fn wrong_arguments_are_errors_and_never_crashes() {
    let engine = foo();
    let check = |sql: &str, gist: &str| {
        let message = refusal(engine.connection(), sql);
        assert!(message.contains(gist), "{sql}: {message}");
    };
    check("SELECT crsql_as_crr()", "wrong number of args");
    for wrong in ["NULL", "1", "1.5", "x'00'"] {
        check(&format!("SELECT crsql_as_crr({wrong})"), "must be text");
        check(&format!("SELECT crsql_as_crr('main', {wrong})"), "must be text");
        check(&format!("SELECT crsql_as_crr({wrong}, 'foo')"), "must be text");
        check(&format!("SELECT crsql_as_table({wrong})"), "must be text");
        check(&format!("SELECT crsql_config_get({wrong})"), "Unknown setting name");
        check(&format!("SELECT crsql_config_set({wrong}, 1)"), "Unknown setting name");
        for function in ["insert", "update", "delete"] {
            refusal(engine.connection(), &format!("SELECT crsql_after_{function}({wrong})"));
            check(&format!("SELECT crsql_after_{function}('foo', {wrong}, {wrong}, {wrong})"), "expected");
        }
    }
    check("SELECT crsql_as_crr('other', 'foo')", "schema other is not supported");
    check("SELECT crsql_as_crr('nothing')", "does not exist");
    check("SELECT crsql_as_crr('')", "does not exist");
    check("SELECT crsql_config_set('merge-equal-values', 'yes')", "could not persist config");
    for function in ["insert", "update", "delete"] {
        check(&format!("SELECT crsql_after_{function}()"), "expected at least 1 argument");
        check(&format!("SELECT crsql_after_{function}('nothing', 1)"), "nothing not found");
    }
    // Nothing of this wrote anything.
    assert_eq!(engine.db_version().unwrap().get(), 0);
    assert!(dump(&engine).is_empty());
    // Those that take anything.
    let connection = engine.connection();
    assert_eq!(ask::<i64>(connection, "SELECT crsql_internal_sync_bit('x')"), 0);
    assert_eq!(ask::<i64>(connection, "SELECT crsql_next_db_version(NULL)"), 1);
    assert_eq!(ask::<i64>(connection, "SELECT crsql_next_db_version('x')"), 1);
    assert_eq!(ask::<String>(connection, "SELECT crsql_as_crr('MAIN', 'foo')"), "OK");
    assert_eq!(ask::<Option<i64>>(connection, "SELECT crsql_as_table('nothing')"), None);
}

#[test]
fn pack_columns_gives_the_documented_bytes() {
    let engine = foo();
    let check = |arguments: &str, hex: &str| {
        assert_eq!(ask::<String>(engine.connection(), &format!("SELECT hex(crsql_pack_columns({arguments}))")), hex);
    };
    check("", "00");
    check("0", "0101");
    check("128", "010980");
    check("-1", "0141FFFFFFFFFFFFFFFF");
    check("NULL", "0105");
    check("1.5", "01023FF8000000000000");
    check("12, 'str', x'010203'", "03090C0B037374720C03010203");
    check("4, 5", "0209040905");
}

#[test]
fn site_ids_are_random_uuids_and_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let site = Engine::open(&path).unwrap().site().unwrap();
    let again = Engine::open(&path).unwrap();
    assert_eq!(again.site().unwrap(), site);
    assert_eq!(ask::<Vec<u8>>(again.connection(), "SELECT crsql_site_id()"), site.as_bytes());
    assert_eq!((site.as_bytes()[6] >> 4, site.as_bytes()[8] >> 6), (4, 2));
    assert_ne!(Engine::open_in_memory().unwrap().site().unwrap(), site);
}

/// VER-3, VER-6 and FN-3: what was told as the next version is not used up by that, but no lower one follows.
#[test]
fn next_db_version_never_falls_and_uses_nothing_up() {
    let engine = foo();
    let connection = engine.connection();
    for (sql, expected) in [
        ("SELECT crsql_next_db_version()", 1),
        ("SELECT crsql_next_db_version(100)", 100),
        ("SELECT crsql_next_db_version()", 100),
        ("SELECT crsql_next_db_version(7, 8)", 100),
        ("SELECT crsql_next_db_version(-5)", 100),
        ("SELECT crsql_db_version()", 0),
    ] {
        assert_eq!(ask::<i64>(connection, sql), expected, "{sql}");
    }
    // BUG-29: this is not promised.
    assert_eq!(ask::<i64>(connection, "SELECT crsql_next_db_version(9223372036854775807)"), i64::MAX);
    connection.execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT crsql_db_version()"), 100);
    assert_eq!(ask::<i64>(connection, "SELECT crsql_next_db_version()"), 101);
    connection.execute_batch("BEGIN; INSERT INTO foo VALUES (2, 2)").unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT crsql_next_db_version(200)"), 200);
    connection.execute_batch("ROLLBACK; INSERT INTO foo VALUES (2, 2)").unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT crsql_db_version()"), 101);
}

#[test]
fn sequence_numbers_count_within_a_transaction() {
    let engine = foo();
    let connection = engine.connection();
    connection.execute_batch("BEGIN; INSERT INTO foo VALUES (1, 1), (2, 2)").unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT crsql_get_seq()"), 2);
    assert_eq!(ask::<i64>(connection, "SELECT crsql_increment_and_get_seq()"), 2);
    connection.execute_batch("INSERT INTO foo VALUES (3, 3); COMMIT").unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT max(seq) FROM crsql_changes"), 3);
    assert_eq!(ask::<i64>(connection, "SELECT crsql_get_seq()"), 0);
}

#[test]
fn settings_are_stored_and_seen_by_all_connections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (a, b) = (Engine::open(&path).unwrap(), Engine::open(&path).unwrap());
    let get = |engine: &Engine| ask::<i64>(engine.connection(), "SELECT crsql_config_get('merge-equal-values')");
    assert_eq!((get(&a), get(&b)), (0, 0));
    assert_eq!(ask::<i64>(a.connection(), "SELECT crsql_config_set('merge-equal-values', 1)"), 1);
    assert_eq!((get(&a), get(&b)), (1, 1));
    // CFG-4: what another tool stored must not keep the file from opening.
    b.connection().execute_batch("UPDATE crsql_master SET value = 'yes' WHERE key LIKE 'config.%'").unwrap();
    assert_eq!(get(&Engine::open(&path).unwrap()), 0);
}

fn remote_changes() -> Vec<Change> {
    let other = foo();
    other
        .connection()
        .execute_batch("INSERT INTO foo VALUES (1, 1), (2, 2), (3, 3); DELETE FROM foo WHERE a = 3")
        .unwrap();
    dump(&other)
}

/// FN-5, with its FIX.
#[test]
fn rows_impacted_counts_what_won_in_this_transaction() {
    let engine = foo();
    let connection = engine.connection();
    let impacted = || ask::<i64>(connection, "SELECT crsql_rows_impacted()");
    let changes = remote_changes();
    assert_eq!(changes.len(), 3);
    connection.execute_batch("BEGIN").unwrap();
    merge_by_sql(connection, &changes[..2]);
    merge_by_sql(connection, &changes[..2]);
    assert_eq!(impacted(), 2);
    connection.execute_batch("ROLLBACK").unwrap();
    assert_eq!(impacted(), 0, "after a rollback");
    connection.execute_batch("BEGIN").unwrap();
    merge_by_sql(connection, &changes);
    assert_eq!(impacted(), 3);
    connection.execute_batch("COMMIT").unwrap();
    assert_eq!(impacted(), 0, "after a commit");
    // A cell of a later life counts twice: the birth and the cell.
    connection.execute_batch("BEGIN").unwrap();
    let mut reborn = changes.iter().find(|change| change.column != Column::Row).unwrap().clone();
    reborn.causal_length = CausalLength::new(3);
    merge_by_sql(connection, &[reborn]);
    assert_eq!(impacted(), 2);
    connection.execute_batch("ROLLBACK").unwrap();
}

#[test]
fn rows_impacted_goes_back_with_a_savepoint() {
    let engine = foo();
    let connection = engine.connection();
    let impacted = || ask::<i64>(connection, "SELECT crsql_rows_impacted()");
    let changes = remote_changes();
    connection.execute_batch("BEGIN").unwrap();
    merge_by_sql(connection, &changes[..1]);
    connection.execute_batch("SAVEPOINT s").unwrap();
    merge_by_sql(connection, &changes[1..]);
    assert_eq!(impacted(), 3);
    connection.execute_batch("ROLLBACK TO s").unwrap();
    assert_eq!(impacted(), 1, "after ROLLBACK TO");
    connection.execute_batch("RELEASE s; COMMIT").unwrap();
}

/// MRG-14: a statement merges all of its rows or none.
#[test]
fn a_multi_row_insert_is_atomic() {
    let engine = foo();
    let connection = engine.connection();
    let site = "x'aabbccddeeff00112233445566778899'";
    let row = |table: &str, key: i64| format!("('{table}', crsql_pack_columns({key}), 'b', 7, 1, 1, {site}, 1, 0)");
    let bad = format!("INSERT INTO crsql_changes VALUES {}, {}, {}", row("foo", 1), row("foo", 2), row("bar", 3));
    for begin in ["SELECT 1", "BEGIN"] {
        connection.execute_batch(begin).unwrap();
        let message = connection.execute_batch(&bad).unwrap_err().to_string();
        assert!(message.contains("could not find the schema information for table bar"), "{message}");
        assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM foo"), 0);
        assert_eq!(ask::<i64>(connection, "SELECT crsql_rows_impacted()"), 0, "after {begin}");
    }
    connection.execute_batch("COMMIT").unwrap();
    assert!(dump(&engine).is_empty());
    let good = format!("INSERT INTO crsql_changes VALUES {}, {}", row("foo", 1), row("foo", 2));
    connection.execute_batch(&good).unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT sum(b) FROM foo"), 14);
    assert_eq!(
        dump(&engine)[0].site,
        SiteId::from_slice(&ask::<Vec<u8>>(connection, &format!("SELECT {site}"))).unwrap()
    );
}

/// A version that no clock carries must not be reported: it would be given out again after a restart, and peers that took
/// the report into their cursors would leave out what was written under it.
#[test]
fn rolled_back_writes_use_up_no_version() {
    let check = |statements: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let engine = Engine::open(&path).unwrap();
        let create =
            "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b CHECK (b <> 666)); SELECT crsql_as_crr('foo');
                      INSERT INTO foo VALUES (1, 1)";
        engine.connection().execute_batch(create).unwrap();
        for statement in statements.split(';') {
            // Those that must fail do.
            let _ = engine.connection().execute_batch(statement);
        }
        assert!(engine.connection().is_autocommit());
        let version = engine.db_version().unwrap();
        drop(engine);
        let again = Engine::open(&path).unwrap();
        assert_eq!(again.db_version().unwrap(), version, "{statements}");
        let written = ask::<i64>(again.connection(), "SELECT max(db_version) FROM crsql_changes");
        assert_eq!(written, version.get(), "{statements}");
    };
    check("BEGIN; SAVEPOINT s; UPDATE foo SET b = 2; ROLLBACK TO s; COMMIT");
    check("BEGIN; SAVEPOINT s; UPDATE foo SET b = 2; ROLLBACK TO s; RELEASE s; COMMIT");
    check("BEGIN; SAVEPOINT s; SAVEPOINT t; UPDATE foo SET b = 2; RELEASE t; ROLLBACK TO s; COMMIT");
    check("BEGIN; INSERT INTO foo VALUES (2, 2), (3, 666); COMMIT");
    check("BEGIN; INSERT INTO foo VALUES (2, 2), (3, 666); UPDATE foo SET b = 5; COMMIT");
    check("BEGIN; UPDATE foo SET b = 2; SAVEPOINT s; UPDATE foo SET b = 3; ROLLBACK TO s; COMMIT");
    check("BEGIN; UPDATE foo SET b = 2; ROLLBACK");
    check("INSERT INTO foo VALUES (2, 2), (3, 666)");
    check("SAVEPOINT s; UPDATE foo SET b = 2; ROLLBACK TO s; RELEASE s");
    check("BEGIN; SELECT crsql_next_db_version(50); SELECT crsql_increment_and_get_seq(); COMMIT");
    check("BEGIN; INSERT INTO crsql_changes VALUES ('foo', x'010907', 'b', 666, 1, 90, x'07', 1, 0); COMMIT");
}

/// VT-8: whatever is pushed down, the rows are those that a plain filter gives.
#[test]
fn constraints_give_what_filtering_gives() {
    let schemas = schemas();
    for_seeds(0xf117e5, 8, |rng| {
        let (mut hub, other) = (engine(&schemas), engine(&schemas));
        for _ in 0..30 {
            execute(&hub, &schemas, &Statement::random(rng, &schemas));
            execute(&other, &schemas, &Statement::random(rng, &schemas));
        }
        merge(&mut hub, &dump(&other));
        let all = select_changes(hub.connection(), "");
        let order = |change: &Change| (change.db_version, change.seq);
        assert!(all.is_sorted_by_key(order), "VT-9: the default order");
        let check = |constraint: &str, keep: &dyn Fn(&Change) -> bool| {
            let found = select_changes(hub.connection(), &format!("WHERE {constraint}"));
            assert!(found.is_sorted_by_key(order), "{constraint}");
            let mut found: Vec<String> = found.iter().map(identity).collect();
            let mut expected: Vec<String> = all.iter().filter(|change| keep(change)).map(identity).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{constraint}");
        };
        let version = rng.i64(0..hub.db_version().unwrap().get() + 2);
        for n in [version, 1, 0, -1] {
            check(&format!("db_version > {n}"), &|c| c.db_version.get() > n);
            check(&format!("db_version >= {n}"), &|c| c.db_version.get() >= n);
            check(&format!("db_version < {n}"), &|c| c.db_version.get() < n);
            check(&format!("db_version <= {n}"), &|c| c.db_version.get() <= n);
            check(&format!("db_version = {n}"), &|c| c.db_version.get() == n);
            check(&format!("db_version <> {n}"), &|c| c.db_version.get() != n);
            check(&format!("db_version IS {n}"), &|c| c.db_version.get() == n);
            check(&format!("db_version IN ({n}, 2, 3)"), &|c| [n, 2, 3].contains(&c.db_version.get()));
            check(&format!("seq = {n}"), &|c| c.seq.get() == n);
            check(&format!("col_version > {n}"), &|c| c.col_version.get() > n);
            check(&format!("db_version > {n} AND db_version <= {n} + 5 AND site_id IS NOT crsql_site_id()"), &|c| {
                (n + 1..=n + 5).contains(&c.db_version.get()) && c.site != hub.site().unwrap()
            });
        }
        // Affinity of the column: text and reals are compared as the numbers that they are.
        check(&format!("db_version > '{version}'"), &|c| c.db_version.get() > version);
        check(&format!("db_version > {version}.5"), &|c| c.db_version.get() > version);
        check("db_version > NULL", &|_| false);
        check("db_version IS NULL", &|_| false);
        let (own, theirs) = (hub.site().unwrap(), other.site().unwrap());
        let hex = const_hex::encode(theirs.as_bytes());
        check("site_id = crsql_site_id()", &|c| c.site == own);
        check("site_id IS NOT crsql_site_id()", &|c| c.site != own);
        check(&format!("site_id = x'{hex}'"), &|c| c.site == theirs);
        check(&format!("site_id IN (x'{hex}', x'00')"), &|c| c.site == theirs);
        check("site_id = x'00'", &|_| false);
        check("site_id IS NULL", &|_| false);
        check("site_id IS NOT NULL", &|_| true);
        check("\"table\" = 'items'", &|c| &*c.table == "items");
        check("\"table\" = 'ITEMS'", &|_| false);
        check("\"table\" IN ('items', 'tags', 'none')", &|c| ["items", "tags"].contains(&&*c.table));
        check("\"table\" <> 'items' AND db_version > 3", &|c| &*c.table != "items" && c.db_version.get() > 3);
        check("\"table\" = 'items' OR cid = '-1'", &|c| &*c.table == "items" || c.column == Column::Row);
        check("\"table\" LIKE 'it%'", &|c| c.table.starts_with("it"));
        check("pk = crsql_pack_columns(1)", &|c| c.key.as_bytes() == [1, 9, 1]);
        check("cl % 2 = 0", &|c| !c.causal_length.is_alive());
        check("cid = 'a' AND site_id = crsql_site_id() AND \"table\" = 'items'", &|c| {
            c.column.as_str() == "a" && c.site == own && &*c.table == "items"
        });
    });
}

/// VT-10, with its FIX.
#[test]
fn every_order_can_be_asked_for() {
    let schemas = schemas();
    let engine = engine(&schemas);
    engine
        .connection()
        .execute_batch(
            "BEGIN; INSERT INTO items VALUES (1, 5, 6), (2, 7, 8); COMMIT; INSERT INTO tags VALUES (1, 'a');
             INSERT INTO items VALUES (3, 1, 2)",
        )
        .unwrap();
    let pairs = |rest: &str| -> Vec<(i64, i64)> {
        select_changes(engine.connection(), rest).iter().map(|c| (c.db_version.get(), c.seq.get())).collect()
    };
    let ascending = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (3, 0), (3, 1)];
    let mut mixed = ascending;
    mixed.sort_by_key(|(version, seq)| (std::cmp::Reverse(*version), *seq));
    let descending: Vec<_> = ascending.into_iter().rev().collect();
    assert_eq!(pairs(""), ascending);
    assert_eq!(pairs("ORDER BY db_version, seq"), ascending);
    assert_eq!(pairs("ORDER BY db_version DESC, seq ASC"), mixed);
    assert_eq!(pairs("ORDER BY db_version DESC, seq DESC"), descending);
    assert_eq!(pairs("ORDER BY db_version, seq LIMIT 2 OFFSET 1"), ascending[1..3]);
    let connection = engine.connection();
    let values: Vec<i64> = select_changes(connection, "WHERE cid <> '-1' ORDER BY val DESC")
        .iter()
        .map(|change| match change.value {
            litemesh_engine::proto::Value::Integer(value) => value,
            _ => panic!("integers were written"),
        })
        .collect();
    assert_eq!(values, [8, 7, 6, 5, 2, 1]);
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM (SELECT DISTINCT val FROM crsql_changes)"), 7);
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM (SELECT 1 FROM crsql_changes GROUP BY rowid)"), 4);
    assert_eq!(ask::<i64>(connection, "SELECT max(rowid) FROM crsql_changes"), 3 * 10_000_000_000_000 + 1);
}

/// VT-13.
#[test]
fn changes_can_be_inserted_and_selected_and_nothing_else() {
    let engine = foo();
    let connection = engine.connection();
    connection.execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
    for sql in ["UPDATE crsql_changes SET val = 2", "DELETE FROM crsql_changes"] {
        let error = connection.execute_batch(sql).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ApiMisuse), "{sql}: {error}");
        assert!(error.to_string().contains("only INSERT and SELECT are allowed"), "{sql}: {error}");
    }
    assert_eq!(ask::<i64>(connection, "SELECT b FROM foo"), 1);
}

/// VT-15: from one database to another with plain SQL, in one statement.
#[test]
fn insert_select_copies_a_database() {
    let schemas = schemas();
    for_seeds(0x15e1, 5, |rng| {
        let (source, target) = (engine(&schemas), engine(&schemas));
        for _ in 0..40 {
            execute(&source, &schemas, &Statement::random(rng, &schemas));
        }
        let connection = target.connection();
        connection
            .execute_batch(
                "CREATE TEMP TABLE sent (\"table\", pk, cid, val, col_version, db_version, site_id, cl, seq)",
            )
            .unwrap();
        let mut insert = connection.prepare("INSERT INTO sent VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)").unwrap();
        let mut select = source.connection().prepare("SELECT * FROM crsql_changes").unwrap();
        let mut rows = select.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<rusqlite::types::Value> = (0..9).map(|column| row.get(column).unwrap()).collect();
            insert.execute(rusqlite::params_from_iter(values)).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO crsql_changes (seq, cl, site_id, db_version, col_version, val, cid, pk, \"table\")
                 SELECT seq, cl, site_id, db_version, col_version, val, cid, pk, \"table\" FROM sent",
            )
            .unwrap();
        support::assert_same(
            &support::state(&target, &schemas),
            &support::state(&source, &schemas),
            "copied by one statement",
        );
        support::assert_origins_complete(&target);
    });
}

/// Also in the middle of a transaction, between two writes of one table.
#[test]
fn finalize_can_be_called_between_two_writes() {
    let engine = foo();
    let connection = engine.connection();
    let writes = "BEGIN; INSERT INTO foo VALUES (1, 1); SELECT crsql_finalize(); UPDATE foo SET b = 2; COMMIT";
    connection.execute_batch(writes).unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT col_version FROM crsql_changes"), 2);
}

#[test]
fn finalize_can_be_called_at_any_time() {
    let mut engine = foo();
    engine.connection().execute_batch("INSERT INTO foo VALUES (1, 1)").unwrap();
    for _ in 0..2 {
        assert_eq!(ask::<String>(engine.connection(), "SELECT crsql_finalize()"), "finalized");
    }
    engine.connection().execute_batch("UPDATE foo SET b = 2").unwrap();
    engine.merge(&remote_changes(), &MergeProgress::default()).unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM foo"), 2);
}
