//! The commands that work on files alone: init, sql, status, diff.

mod support;

use serde_json::json;
use support::{Files, SCHEMA, litemesh, litemesh_with_input, rows};

/// `known-failures.md` E4: the original wants three more tables made by hand.
#[test]
fn init_makes_all_tables_of_a_schema_replicated() {
    let files = Files::new();
    let (file, schema) = (files.path("new.db"), files.write("schema.sql", SCHEMA));
    let done = litemesh(&["init", &file, "--schema", &schema, "--json"]).json();
    assert_eq!(done["site_id"].as_str().unwrap().len(), 32);
    let tables = json!([{ "table": "tag", "was_replicated": false }, { "table": "todo", "was_replicated": false }]);
    assert_eq!(done["tables"], tables);
    // Again: nothing to do, and no error.
    let again = litemesh(&["init", &file, "--json"]).json();
    assert_eq!(again["site_id"], done["site_id"]);
    assert_eq!(again["tables"][0]["was_replicated"], true);
}

#[test]
fn init_takes_the_named_tables_only_and_keeps_their_rows() {
    let files = Files::new();
    let schema = files.write("schema.sql", &format!("{SCHEMA} INSERT INTO todo (id) VALUES ('old');"));
    let file = files.path("some.db");
    let text = litemesh(&["init", &file, "--schema", &schema, "--table", "TODO"]).ok();
    assert!(text.contains("table todo is replicated"), "{text}");
    assert!(!text.contains("tag"), "{text}");
    let changes = rows(&file, "SELECT DISTINCT \"table\" FROM crsql_changes");
    assert_eq!(changes, json!([{ "table": "todo" }]));
}

#[test]
fn init_says_why_a_table_cannot_replicate_and_leaves_no_file() {
    let files = Files::new();
    let file = files.path("refused.db");
    for (sql, reason) in [
        ("CREATE TABLE t (a)", "has no primary key"),
        ("CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL, b NOT NULL)", "NOT NULL column without a DEFAULT VALUE: b"),
        ("CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL, b UNIQUE)", "unique indices besides the primary key"),
        ("CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL)", "auto-increment"),
        ("CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT)", "INTEGER PRIMARY KEY NOT NULL` with random values"),
    ] {
        let schema = files.write("schema.sql", sql);
        let done = litemesh(&["init", &file, "--schema", &schema]).fails(4, &[reason]);
        assert!(!done.stderr.contains("warning"), "{done:?}");
        assert!(!std::fs::exists(&file).unwrap(), "{sql}");
    }
    let schema = files.write("schema.sql", SCHEMA);
    litemesh(&["init", &file, "--schema", &schema, "--table", "other"]).fails(4, &["Table other does not exist"]);
    litemesh(&["init", &file, "--schema", &files.write("empty.sql", "")]).fails(4, &["has no table"]);
    litemesh(&["init", &file, "--schema", &files.write("bad.sql", "CREATE TABEL t")]).fails(3, &["syntax error"]);
    litemesh(&["init", &file, "--schema", &files.path("none.sql")]).fails(3, &["cannot read the schema"]);
    assert!(!std::fs::exists(&file).unwrap());
}

#[test]
fn init_that_fails_leaves_the_file_byte_for_byte() {
    let files = Files::new();
    let file = files.path("kept.db");
    let schema = files.write("schema.sql", "CREATE TABLE good (a TEXT PRIMARY KEY NOT NULL); CREATE TABLE bad (a);");
    litemesh(&["init", &file, "--schema", &schema, "--table", "good"]).ok();
    let before = rows(&file, "SELECT name, sql FROM sqlite_master ORDER BY name");
    litemesh(&["sql", &file, "PRAGMA wal_checkpoint(TRUNCATE)"]).ok();
    let bytes = std::fs::read(&file).unwrap();
    let more = files.write("more.sql", "CREATE TABLE third (a TEXT PRIMARY KEY NOT NULL); CREATE TABLE fourth (a);");
    let done = litemesh(&["init", &file, "--schema", &more]).fails(4, &["2 of 4 tables cannot replicate"]);
    let none = |table| {
        format!(
            "Table {table} has no primary key or primary key is nullable. CRRs must have a non nullable primary key: \
             declare one that is NOT NULL, such as `id TEXT PRIMARY KEY NOT NULL`"
        )
    };
    let (bad, fourth) = (none("bad"), none("fourth"));
    let expected = format!(
        "litemesh: {file}: 2 of 4 tables cannot replicate, nothing was changed: {bad}; {fourth}; \
         the others can: --table good --table third\n"
    );
    assert_eq!(done.stderr, expected);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    assert_eq!(rows(&file, "SELECT name, sql FROM sqlite_master ORDER BY name"), before);
}

#[test]
fn a_name_with_line_breaks_breaks_no_line() {
    let files = Files::new();
    let schema = files.write("schema.sql", "CREATE TABLE \"a\nb\" (a); CREATE TABLE \"c\x1b[2J\" (a);");
    let done =
        litemesh(&["init", &files.path("new.db"), "--schema", &schema]).fails(4, &["Table a b has no primary key"]);
    assert!(done.stderr.contains("Table c\\u{1b}[2J has no"), "{done:?}");
}

#[test]
fn sql_prints_exact_values_as_json() {
    let files = Files::new();
    let file = files.database("a.db");
    let sql = "SELECT 9223372036854775807 AS i, 1.0 AS r, 9e999 AS inf, 'a\"b' AS t, x'00ff' AS b, NULL AS n";
    let expected = json!([{
        "i": i64::MAX, "r": 1.0, "inf": { "real": "Infinity" }, "t": "a\"b", "b": { "blob": "00ff" }, "n": null
    }]);
    assert_eq!(rows(&file, sql), expected);
    assert_eq!(rows(&file, "INSERT INTO todo (id) VALUES ('x'), ('y')"), json!([]));
    assert_eq!(rows(&file, "SELECT 1 AS a; SELECT id FROM todo ORDER BY id"), json!([{ "id": "x" }, { "id": "y" }]));
    assert_eq!(rows(&file, "INSERT INTO todo (id) VALUES ('z') RETURNING id"), json!([{ "id": "z" }]));
}

#[test]
fn sql_draws_tables_and_writes_csv() {
    let files = Files::new();
    let file = files.database("a.db");
    let input =
        "INSERT INTO todo VALUES ('a', 'one, \"two\"', 1), ('b', 'esc \x1b[2J', 0);\nSELECT * FROM todo ORDER BY id;";
    let drawn = litemesh_with_input(&["sql", &file], input).ok();
    for words in ["│ id ", "one, \"two\"", "esc \\u{1b}[2J"] {
        assert!(drawn.contains(words), "{drawn}");
    }
    assert!(!drawn.contains("changed"), "only a terminal is told: {drawn}");
    let csv = litemesh(&["sql", &file, "--csv", "SELECT id, title FROM todo WHERE id = 'a'"]).ok();
    assert_eq!(csv, "id,title\r\na,\"one, \"\"two\"\"\"\r\n");
    let tables = litemesh(&["sql", &file, ".tables"]).ok();
    assert!(tables.contains("todo") && tables.contains("yes") && !tables.contains("crsql"), "{tables}");
    let schema = litemesh(&["sql", &file, ".schema"]).ok();
    assert!(schema.contains("CREATE TABLE todo") && !schema.contains("crsql"), "{schema}");
    assert!(litemesh(&["sql", &file, ".help"]).ok().contains(".quit"));
}

#[test]
fn sql_that_fails_says_so_on_one_line() {
    let files = Files::new();
    let file = files.database("a.db");
    let done = litemesh(&["sql", &file, "SELECT *\nFROM nowhere"]).fails(3, &["no such table: nowhere", ".schema"]);
    assert_eq!((done.stderr.lines().count(), done.stdout.as_str()), (1, ""));
    litemesh(&["sql", &file, "INSERT INTO todo (id) VALUES ('a'), ('a')"]).fails(3, &["UNIQUE constraint failed"]);
    litemesh(&["sql", &file, ".nonsense"]).fails(2, &[".help"]);
    assert_eq!(rows(&file, "SELECT count(*) AS n FROM todo"), json!([{ "n": 0 }]));
}

#[test]
fn a_reader_that_goes_away_ends_the_output_silently() {
    let files = Files::new();
    let file = files.database("a.db");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_litemesh"))
        .args([
            "sql",
            &file,
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200000) SELECT i FROM n",
        ])
        .args(["--csv"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn status_counts_rows_tombstones_and_sizes_of_a_file_in_use() {
    let files = Files::new();
    let file = files.database("a.db");
    litemesh(&["sql", &file, "INSERT INTO todo (id) VALUES ('a'), ('b'), ('c'); DELETE FROM todo WHERE id = 'b'"]).ok();
    // Another program is in the middle of a write.
    let writer = litemesh_cli_writer(&file);
    let status = litemesh(&["status", &file, "--json"]).json();
    drop(writer);
    let todo = &status["tables"][1];
    assert_eq!((&todo["table"], &todo["rows"], &todo["tombstones"]), (&json!("todo"), &json!(2), &json!(1)));
    assert!(todo["row_bytes"].as_u64() > Some(0) && todo["metadata_bytes"].as_u64() > Some(0), "{status}");
    assert_eq!(status["db_version"], 2);
    let own = json!([{ "site_id": status["site_id"], "version": 2, "is_local": true }]);
    assert_eq!(status["cursor"], own);
    let text = litemesh(&["status", &file]).ok();
    for words in ["site id", "schema version", "tombstones", "metadata", "this file", "todo"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// A connection that holds the write lock.
fn litemesh_cli_writer(file: &str) -> litemesh::rusqlite::Connection {
    let connection = litemesh::rusqlite::Connection::open(file).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE; CREATE TABLE unfinished (a)").unwrap();
    connection
}

#[test]
fn status_of_an_ordinary_database_writes_nothing() {
    let files = Files::new();
    let file = files.path("plain.db");
    litemesh::rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let status = litemesh(&["status", &file, "--json"]).json();
    assert_eq!((&status["site_id"], &status["tables"]), (&json!(null), &json!([])));
    assert!(litemesh(&["status", &file]).ok().contains("no table is replicated"));
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn diff_finds_missing_and_different_rows() {
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    assert_eq!(litemesh(&["diff", &a, &b]).ok(), "equal: 2 tables, 0 rows\n");
    litemesh(&["sql", &a, "INSERT INTO todo VALUES ('same', 't', 0), ('a only', 't', 0), ('diff', 'one', 1)"]).ok();
    litemesh(&["sql", &b, "INSERT INTO todo VALUES ('same', 't', 0), ('b only', 't', 0), ('diff', 'two', 1)"]).ok();
    let done = litemesh(&["diff", &a, &b, "--json"]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(1), ""));
    let found: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(found["equal"], false);
    assert_eq!(found["tables"][0]["equal"], true);
    let todo = &found["tables"][1];
    assert_eq!([&todo["only_in_a"], &todo["only_in_b"], &todo["different"]], [1, 1, 1]);
    let expected = json!([
        { "kind": "only_in_a", "key": { "id": "a only" } },
        { "kind": "only_in_b", "key": { "id": "b only" } },
        { "kind": "different", "key": { "id": "diff" }, "cells": [{ "column": "title", "a": "one", "b": "two" }] },
    ]);
    assert_eq!(todo["rows"], expected);
    let text = litemesh(&["diff", &a, &b, "--limit", "1"]).stdout;
    for words in ["A is ", "table todo: 1 rows in A only", "and 2 more rows"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn diff_tells_types_and_tables_and_columns_apart() {
    let files = Files::new();
    let database = |name: &str, sql: &str| {
        let (file, schema) = (files.path(name), files.write("schema.sql", sql));
        litemesh(&["init", &file, "--schema", &schema]).ok();
        file
    };
    let a = database("a.db", "CREATE TABLE t (k INTEGER PRIMARY KEY NOT NULL, v); INSERT INTO t VALUES (1, 1)");
    let b = database("b.db", "CREATE TABLE t (k INTEGER PRIMARY KEY NOT NULL, v); INSERT INTO t VALUES (1, 1.0)");
    let c = database("c.db", "CREATE TABLE t (k INTEGER PRIMARY KEY NOT NULL, v, w); INSERT INTO t VALUES (1, 1, 2)");
    let d = database("d.db", "CREATE TABLE u (k INTEGER PRIMARY KEY NOT NULL)");
    let differ = |one: &str, other: &str, words: &str| {
        let done = litemesh(&["diff", one, other]);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stdout.contains(words), "{words}: {done:?}");
    };
    differ(&a, &b, "1 with different cells");
    differ(&a, &c, "columns in B only: w");
    differ(&a, &d, "table u is replicated in B only");
}
