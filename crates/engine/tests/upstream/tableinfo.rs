//! `tableinfo.rs`: how a table is seen.

use litemesh_engine::Engine;

use crate::{check, replica, rows, run};

/// tableinfo.rs: the list of tables is read anew when the schema changes, and is empty once the clocks are gone.
#[test]
fn the_list_of_tables_follows_the_schema() {
    let engine = replica(1, "");
    let tables = |engine: &Engine| engine.tables().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(tables(&engine).is_empty());
    for table in ["foo", "bar"] {
        run(
            &engine,
            &format!("CREATE TABLE {table} (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('{table}')"),
        );
    }
    assert_eq!(tables(&engine), ["foo", "bar"]);
    run(&engine, "CREATE TABLE plain (a)");
    assert_eq!(tables(&engine), ["foo", "bar"]);
    run(&engine, "DROP TABLE foo__crsql_clock");
    assert_eq!(tables(&engine), ["bar"]);
    run(&engine, "DROP TABLE bar__crsql_clock");
    assert!(tables(&engine).is_empty());
}

/// tableinfo.rs: columns are split into keys and others, keys in PRIMARY KEY order. With the partition of
/// update-trigger arguments of CRSqlite's unit tests: 1 and 2 keys, 0, 1 and 2 other columns.
#[test]
fn columns_are_split_and_keep_their_order() {
    for (columns, keys, cells) in [
        ("a NOT NULL, PRIMARY KEY (a)", &["a"][..], &[][..]),
        ("b, a NOT NULL, PRIMARY KEY (a)", &["a"], &["b"]),
        ("c, a NOT NULL, b, PRIMARY KEY (a)", &["a"], &["c", "b"]),
        ("a NOT NULL, z NOT NULL, PRIMARY KEY (z, a)", &["z", "a"], &[]),
        ("a NOT NULL, b, z NOT NULL, PRIMARY KEY (z, a)", &["z", "a"], &["b"]),
        ("c, a NOT NULL, b, z NOT NULL, PRIMARY KEY (z, a)", &["z", "a"], &["c", "b"]),
    ] {
        let engine = replica(1, &format!("CREATE TABLE foo ({columns}); SELECT crsql_as_crr('foo')"));
        let of_keys = rows(&engine, "SELECT name FROM pragma_table_info('foo__crsql_pks') WHERE cid > 0 ORDER BY cid");
        assert_eq!(of_keys, keys, "{columns}");
        let all = keys.iter().chain(cells).map(|name| format!("'{name}'")).collect::<Vec<_>>();
        let names = keys.iter().chain(cells).copied().collect::<Vec<_>>().join(", ");
        run(&engine, &format!("INSERT INTO foo ({names}) VALUES ({})", all.join(", ")));
        let expected = if cells.is_empty() { &["-1"] } else { cells };
        check(&engine, "SELECT cid FROM crsql_changes", expected);
        // Each trigger passes the arguments that its function takes, in their order.
        for (position, cell) in cells.iter().enumerate() {
            run(&engine, &format!("UPDATE foo SET {cell} = {position}"));
            check(
                &engine,
                "SELECT cid, val FROM crsql_changes WHERE db_version = crsql_db_version()",
                &[&format!("{cell} {position}")],
            );
        }
        run(&engine, &format!("UPDATE foo SET {} = 'new'", keys[0]));
        check(&engine, "SELECT count(DISTINCT pk) FROM crsql_changes", &["2"]);
    }
}

/// tableinfo.rs: the matrix of tables that are accepted. More of them in `tests/replicate.rs`, with the reasons.
#[test]
fn tables_are_accepted_as_crsqlite_does() {
    for (create, is_accepted) in [
        ("CREATE TABLE foo (a)", false),
        ("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL)", true),
        ("CREATE TABLE foo (a PRIMARY KEY)", false),
        ("CREATE TABLE foo (a NOT NULL, b, PRIMARY KEY (a, b))", false),
        ("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); CREATE INDEX i ON foo (b)", true),
        ("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); CREATE UNIQUE INDEX i ON foo (b)", false),
        ("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b NOT NULL)", false),
        ("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b NOT NULL DEFAULT 1)", true),
        (
            "CREATE TABLE bar (a PRIMARY KEY NOT NULL); CREATE TABLE foo (a PRIMARY KEY NOT NULL, b REFERENCES bar (a))",
            false,
        ),
        ("CREATE TABLE foo (a TEXT PRIMARY KEY, b ANY) STRICT", true),
        ("CREATE TABLE foo (a INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL)", false),
        ("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)", true),
    ] {
        let engine = replica(1, create);
        assert_eq!(engine.replicate("foo").is_ok(), is_accepted, "{create}");
    }
}

/// tableinfo.rs: the clock tables of four shapes of table are all the same.
#[test]
fn clock_tables_do_not_depend_on_the_table() {
    for columns in [
        "a INTEGER PRIMARY KEY NOT NULL",
        "a INTEGER PRIMARY KEY NOT NULL, b",
        "a NOT NULL, b NOT NULL, PRIMARY KEY (a, b)",
        "a NOT NULL, b NOT NULL, c, d, PRIMARY KEY (a, b)",
    ] {
        let engine = replica(1, &format!("CREATE TABLE foo ({columns}); SELECT crsql_as_crr('foo')"));
        check(
            &engine,
            "SELECT name, type, \"notnull\", pk FROM pragma_table_info('foo__crsql_clock')",
            &[
                "key INTEGER 1 1",
                "col_name TEXT 1 2",
                "col_version INTEGER 1 0",
                "db_version INTEGER 1 0",
                "site_id INTEGER 1 0",
                "seq INTEGER 1 0",
            ],
        );
        check(&engine, "SELECT wr, strict FROM pragma_table_list('foo__crsql_clock')", &["1 1"]);
    }
}

/// tableinfo.rs: two connections whose DDL is interleaved keep no statements open: both can close.
#[test]
fn interleaved_schema_changes_leak_no_statements() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (a, b) = (Engine::open(&path).unwrap(), Engine::open(&path).unwrap());
    for n in 0..5 {
        run(&a, &format!("CREATE TABLE a{n} (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('a{n}')"));
        run(&b, &format!("CREATE TABLE b{n} (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('b{n}')"));
        run(&a, &format!("INSERT INTO b{n} VALUES (1, 1); UPDATE b{n} SET v = 2"));
        run(&b, &format!("INSERT INTO a{n} VALUES (1, 1); DELETE FROM a{n}"));
        assert_eq!(rows(&a, "SELECT * FROM crsql_changes"), rows(&b, "SELECT * FROM crsql_changes"));
    }
    drop(a);
    // The last connection to a file in WAL mode removes the log, unless a statement keeps it from closing.
    assert!(path.with_extension("db-wal").exists());
    drop(b);
    assert!(!path.with_extension("db-wal").exists());
}
