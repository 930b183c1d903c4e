//! `crsql_automigrate` (AM-1 to AM-4, BUG-23). Ports of CRSqlite's `automigrate.rs` carry its names.

mod support;

use litemesh_engine::Engine;
use litemesh_engine::rusqlite::{self, Connection};
use support::{ask, dump, refusal, select_changes};

fn open(sql: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(sql).unwrap();
    engine
}

fn try_migrate(engine: &Engine, schema: &str) -> rusqlite::Result<String> {
    engine.connection().query_row("SELECT crsql_automigrate(?1)", [schema], |row| row.get(0))
}

#[track_caller]
fn migrate(engine: &Engine, schema: &str) {
    assert_eq!(try_migrate(engine, schema).unwrap(), "migration complete", "AM-3");
}

#[track_caller]
fn check_fails(engine: &Engine, schema: &str, gist: &str) {
    let before = objects(engine.connection());
    let message = try_migrate(engine, schema).unwrap_err().to_string();
    assert!(message.contains(gist), "{schema}: {message}");
    assert_eq!(objects(engine.connection()), before, "{schema}");
    assert!(engine.connection().is_autocommit(), "{schema}");
}

/// The application's tables with their columns, and its indexes.
fn objects(connection: &Connection) -> Vec<String> {
    let mut statement = connection
        .prepare(
            "SELECT type || ' ' || name || coalesce(' ' || (SELECT group_concat(c.name, ',') FROM pragma_table_xinfo(m.name) c
             WHERE m.type = 'table'), '') FROM sqlite_master m WHERE name NOT LIKE 'crsql\\_%' ESCAPE '\\'
             AND name NOT LIKE 'litemesh\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1",
        )
        .unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// empty_schema, to_empty_from_something, to_something_from_empty, idempotent.
#[test]
fn tables_come_and_go() {
    let engine = open("SELECT 1");
    for empty in ["", " -- nothing\n;"] {
        migrate(&engine, empty);
        assert!(objects(engine.connection()).is_empty());
    }
    let schema = "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b); CREATE TABLE IF NOT EXISTS bar (x);
                  CREATE INDEX IF NOT EXISTS foo_b ON foo (b); SELECT crsql_as_crr('foo');";
    migrate(&engine, schema);
    assert_eq!(engine.tables().unwrap(), ["foo".into()]);
    engine.connection().execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
    migrate(&engine, schema);
    assert_eq!(dump(&engine).len(), 1, "idempotent");
    // BUG-1: shadow tables go, too, and the version stays.
    assert_eq!(ask::<String>(engine.connection(), "SELECT crsql_automigrate(NULL)"), "migration complete");
    assert!(objects(engine.connection()).is_empty());
    assert_eq!(engine.db_version().unwrap().get(), 1);
    // The engine's own tables are no part of any schema.
    assert_eq!(
        ask::<i64>(
            engine.connection(),
            "SELECT count(*) FROM sqlite_master WHERE name LIKE 'litemesh\\_%' ESCAPE '\\' AND type = 'table'"
        ),
        6
    );
}

/// add_col, remove_col, rename_col: renaming is removing and adding.
#[test]
fn columns_come_and_go() {
    for replicate in ["", "SELECT crsql_as_crr('foo');"] {
        let schema = |columns: &str| {
            format!("CREATE TABLE IF NOT EXISTS foo (a INTEGER PRIMARY KEY NOT NULL, {columns}); {replicate}")
        };
        let engine = open(&schema("b"));
        engine.connection().execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
        migrate(
            &engine,
            &schema("b, c TEXT NOT NULL DEFAULT 'x, (y)' COLLATE NOCASE CHECK (c <> 'z'), \"d e\" DECIMAL(10, 2)"),
        );
        engine.connection().execute_batch("INSERT INTO foo VALUES (2, 3, 'C', 1.5)").unwrap();
        assert_eq!(ask::<String>(engine.connection(), "SELECT c FROM foo WHERE a = 1"), "x, (y)");
        assert_eq!(
            ask::<i64>(engine.connection(), "SELECT count(*) FROM foo WHERE c = 'c'"),
            1,
            "the collation came along"
        );
        refusal(engine.connection(), "INSERT INTO foo VALUES (3, 3, 'z', 1)");
        migrate(&engine, &schema("renamed"));
        assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM foo WHERE renamed IS NULL"), 2);
        let columns = objects(engine.connection()).into_iter().find(|name| name.starts_with("table foo "));
        assert_eq!(columns.as_deref(), Some("table foo a,renamed"));
        if !replicate.is_empty() {
            engine.connection().execute_batch("UPDATE foo SET renamed = 7 WHERE a = 1").unwrap();
            let changes = select_changes(engine.connection(), "WHERE pk = x'010901'");
            assert_eq!(changes.len(), 1);
            assert_eq!((changes[0].column.as_str(), changes[0].db_version.get()), ("renamed", 3));
        }
    }
}

/// remove_index, add_index, change_index_from_unique, remove_col_from_index, add_col_to_index; and what CRSqlite does not see.
#[test]
fn indexes_are_those_of_the_schema() {
    let definition = |engine: &Engine| -> Option<String> {
        let sql = "SELECT max(sql) FROM sqlite_master WHERE type = 'index' AND tbl_name = 'foo' AND sql IS NOT NULL";
        ask(engine.connection(), sql)
    };
    let indexes = [
        "",
        "CREATE INDEX IF NOT EXISTS i ON foo (b)",
        "CREATE UNIQUE INDEX IF NOT EXISTS i ON foo (b)",
        "CREATE INDEX IF NOT EXISTS i ON foo (b, c)",
        "CREATE INDEX IF NOT EXISTS i ON foo (c)",
        "CREATE INDEX IF NOT EXISTS i ON foo (c DESC)",
        "CREATE INDEX IF NOT EXISTS i ON foo (c COLLATE NOCASE)",
        "CREATE INDEX IF NOT EXISTS i ON foo (c + 1)",
        "CREATE INDEX IF NOT EXISTS i ON foo (c) WHERE b > 'x'",
        "CREATE INDEX IF NOT EXISTS i ON foo (c) WHERE b > 'X'",
    ];
    for from in indexes {
        for to in indexes {
            let table = "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b, c);";
            let engine = open(&format!("{table} {from}"));
            migrate(&engine, &format!("{table} {to}"));
            let expected = (!to.is_empty()).then(|| to.replace(" IF NOT EXISTS", ""));
            assert_eq!(definition(&engine), expected, "{from} to {to}");
        }
    }
    // One that differs in nothing that counts is not made anew.
    let engine = open("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b); CREATE INDEX \"i\" ON foo ([b])");
    migrate(
        &engine,
        "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b); create index if not exists I on FOO(b) -- x",
    );
    assert_eq!(definition(&engine).as_deref(), Some("CREATE INDEX \"i\" ON foo ([b])"));
}

/// AM-4: an indexed column can go, with its index.
#[test]
fn an_indexed_column_is_dropped_after_its_index() {
    let engine = open(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b, c); CREATE INDEX i ON foo (b); CREATE INDEX j ON foo (c) WHERE b > 1;
         SELECT crsql_as_crr('foo'); INSERT INTO foo VALUES (1, 2, 3)",
    );
    migrate(
        &engine,
        "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, c); CREATE INDEX IF NOT EXISTS j ON foo (c);
         SELECT crsql_as_crr('foo')",
    );
    assert_eq!(dump(&engine).len(), 1);
}

/// AM-1: whatever a schema says of the engine is left out of the private database, and nothing else is.
#[test]
fn asking_for_the_engine_takes_no_line_along() {
    let engine = open("SELECT 1");
    migrate(
        &engine,
        "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b TEXT DEFAULT 'crsql_as_crr'); select CRSQL_AS_CRR('foo'); CREATE TABLE IF NOT EXISTS bar (x);
         SELECT crsql_config_set('merge-equal-values', 1); /* crsql_as_crr */ CREATE TABLE IF NOT EXISTS baz (y);
         CREATE TRIGGER IF NOT EXISTS t AFTER INSERT ON bar BEGIN UPDATE baz SET y = CASE NEW.x WHEN ';' THEN 1 END; SELECT 1; END",
    );
    let found = objects(engine.connection());
    for table in ["table bar x", "table baz y", "table foo a,b", "trigger t"] {
        assert!(found.iter().any(|name| name == table), "{table} in {found:?}");
    }
    assert_eq!(engine.tables().unwrap(), ["foo".into()]);
}

/// AM-3: what was written for CRSqlite's private database, where the extension is loaded.
#[test]
fn the_cleanup_runs_on_the_private_database() {
    let engine = open("SELECT 1");
    let run = |cleanup: &str| -> rusqlite::Result<String> {
        let schema = "CREATE TABLE IF NOT EXISTS foo (a)";
        engine.connection().query_row("SELECT crsql_automigrate(?1, ?2)", [schema, cleanup], |row| row.get(0))
    };
    assert_eq!(run("SELECT crsql_finalize();").unwrap(), "migration complete");
    assert_eq!(run("DROP TABLE foo").unwrap(), "migration complete");
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM pragma_table_info('foo')"), 1);
    let message = run("SELECT * FROM missing").unwrap_err().to_string();
    assert!(message.contains("no such table: missing"), "{message}");
    // The engine is not in there.
    assert!(run("SELECT crsql_db_version()").unwrap_err().to_string().contains("no such function"));
}

/// AM-4 and BUG-23: failures are errors, and undo themselves and no more.
#[test]
fn failures_are_errors_and_change_nothing() {
    let engine = open(
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b, c UNIQUE); CREATE TABLE crr (a PRIMARY KEY NOT NULL, b, c);
         CREATE INDEX i ON foo (b); CREATE INDEX j ON crr (b); CREATE VIEW v AS SELECT b FROM crr; SELECT crsql_as_crr('crr');
         INSERT INTO crr VALUES (1, 2, 3)",
    );
    let (foo, crr) = (
        "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b, c UNIQUE);",
        "CREATE TABLE IF NOT EXISTS crr (a PRIMARY KEY NOT NULL, b, c);",
    );
    let cases = [
        ("CREATE TABLE foo (a".to_owned(), "incomplete input"),
        ("CREATE TABEL foo (a)".to_owned(), "near \"TABEL\": syntax error"),
        ("SELECT * FROM missing".to_owned(), "no such table: missing"),
        ("SELECT crsql_db_version()".to_owned(), "no such function: crsql_db_version"),
        (format!("{foo} BEGIN; {crr} COMMIT"), "must not contain BEGIN"),
        (format!("{foo}; commit; begin; {crr}"), "must not contain COMMIT"),
        (format!("{foo} ATTACH ':memory:' AS x"), "must not contain ATTACH"),
        (format!("CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b); {crr}"), "drop column c of table foo"),
        (format!("{foo} CREATE TABLE IF NOT EXISTS crr (a PRIMARY KEY NOT NULL, c)"), "drop column b of table crr"),
        (
            format!("{foo} CREATE TABLE IF NOT EXISTS crr (a, b, c, d PRIMARY KEY NOT NULL)"),
            "primary key of table crr would change",
        ),
        (
            format!("{foo} CREATE TABLE IF NOT EXISTS crr (d PRIMARY KEY NOT NULL, b, c)"),
            "primary key of table crr would change",
        ),
        (
            format!("{foo} CREATE TABLE IF NOT EXISTS crr (a NOT NULL, b NOT NULL, c, PRIMARY KEY (a, b))"),
            "primary key of table crr would change (column b)",
        ),
        (
            format!("CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b, c UNIQUE, d UNIQUE); {crr}"),
            "add column d to table foo",
        ),
        (
            format!("{foo} CREATE TABLE IF NOT EXISTS crr (a PRIMARY KEY NOT NULL, b, c, d NOT NULL)"),
            "add column d to table crr",
        ),
        (
            format!("{foo} CREATE TABLE IF NOT EXISTS crr (a PRIMARY KEY NOT NULL, b, c, d REFERENCES foo)"),
            "foreign key constraints",
        ),
        (format!("{foo} {crr} CREATE UNIQUE INDEX IF NOT EXISTS u ON crr (c)"), "unique indices"),
        ("CREATE TABLE foo (a PRIMARY KEY NOT NULL, b, c UNIQUE)".to_owned(), "IF NOT EXISTS"),
        (
            format!("{foo} CREATE TABLE IF NOT EXISTS bad (a); SELECT crsql_as_crr('bad')"),
            "Table bad has no primary key",
        ),
    ];
    for (schema, gist) in &cases {
        check_fails(&engine, schema, gist);
    }
    // Inside of the caller's transaction.
    engine.connection().execute_batch("BEGIN; INSERT INTO crr VALUES (2, 3, 4)").unwrap();
    for (schema, gist) in &cases {
        let message = try_migrate(&engine, schema).unwrap_err().to_string();
        assert!(message.contains(gist), "{schema}: {message}");
        assert!(!engine.connection().is_autocommit());
    }
    engine.connection().execute_batch("COMMIT; INSERT INTO crr VALUES (3, 4, 5)").unwrap();
    assert_eq!(dump(&engine).len(), 6);
    // And in time for everything to be undone that was done before.
    engine.connection().execute_batch("BEGIN").unwrap();
    migrate(&engine, foo);
    engine.connection().execute_batch("ROLLBACK").unwrap();
    assert_eq!(dump(&engine).len(), 6);
}

#[test]
fn arguments_are_checked() {
    let engine = open("CREATE TABLE foo (a)");
    assert!(refusal(engine.connection(), "SELECT crsql_automigrate()").contains("expected a schema"));
    for wrong in ["1", "1.5", "x'00'"] {
        assert!(refusal(engine.connection(), &format!("SELECT crsql_automigrate({wrong})")).contains("must be text"));
        assert!(
            refusal(engine.connection(), &format!("SELECT crsql_automigrate('', {wrong})")).contains("must be text")
        );
    }
    assert!(
        refusal(engine.connection(), "SELECT crsql_automigrate('SELECT ''a' || char(0) || ''''))")
            .contains("syntax error")
    );
    assert!(try_migrate(&engine, "SELECT '\0'").is_err());
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM pragma_table_info('foo')"), 1);
}

/// Tables that a virtual table keeps its rows in are its own; a clset table is made, altered and dropped with its table.
#[test]
fn virtual_tables_are_kept() {
    let schema = "CREATE VIRTUAL TABLE IF NOT EXISTS foo_schema USING clset (a PRIMARY KEY NOT NULL, b);
                  CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (body)";
    let engine = open("SELECT 1");
    if engine.connection().execute_batch("CREATE VIRTUAL TABLE temp.has_fts USING fts5 (x)").is_err() {
        panic!("the bundled SQLite has FTS5");
    }
    migrate(&engine, schema);
    engine
        .connection()
        .execute_batch("INSERT INTO foo VALUES (1, 2); INSERT INTO texts VALUES ('some words')")
        .unwrap();
    migrate(&engine, schema);
    assert_eq!(dump(&engine).len(), 1);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM texts WHERE texts MATCH 'words'"), 1);
    migrate(&engine, &schema.replace(", b)", ", b, c)"));
    engine.connection().execute_batch("UPDATE foo SET c = 3").unwrap();
    assert_eq!(dump(&engine).len(), 2);
    migrate(&engine, "");
    assert!(objects(engine.connection()).is_empty(), "{:?}", objects(engine.connection()));
}

/// strut_schema: many tables at once, with ordered lists; twice, and then with columns added. And remove_col_fract_table,
/// which CRSqlite has but does not run.
#[test]
fn a_whole_application_migrates() {
    let schema = |more: &str, body: &str| {
        let mut schema = String::new();
        for table in
            ["deck", "slide", "style", "theme", "user", "marker", "viewport", "note", "file", "audit", "invite"]
        {
            schema.push_str(&format!(
                "CREATE TABLE IF NOT EXISTS \"{table}\" (\"id\" INTEGER PRIMARY KEY NOT NULL, \"title\", \"created\" INTEGER{more});
                 SELECT crsql_as_crr('{table}');\n"
            ));
        }
        schema + &format!(
            "CREATE TABLE IF NOT EXISTS component (id INTEGER PRIMARY KEY NOT NULL, slide_id, \"order\", x {body}{more});
             CREATE INDEX IF NOT EXISTS component_slide ON component (slide_id, \"order\"); SELECT crsql_as_crr('component');
             SELECT crsql_fract_as_ordered('component', 'order', 'slide_id')"
        )
    };
    let engine = open("SELECT 1");
    let connection = engine.connection();
    for _ in 0..2 {
        migrate(&engine, &schema("", ", body"));
    }
    assert_eq!(engine.tables().unwrap().len(), 12);
    connection
        .execute_batch(
            "INSERT INTO component VALUES (1, 1, 1, 0, 0), (2, 1, 1, 0, 0); INSERT INTO deck VALUES (1, 't', 0)",
        )
        .unwrap();
    let order =
        || ask::<String>(connection, "SELECT group_concat(id, ',') FROM (SELECT id FROM component ORDER BY \"order\")");
    assert_eq!(order(), "1,2");
    let changes = dump(&engine).len();
    migrate(&engine, &schema(", modified INTEGER DEFAULT 0, \"deleted at\"", ", body"));
    assert_eq!(dump(&engine).len(), changes, "added columns are told to nobody");
    connection
        .execute_batch("INSERT INTO component_fractindex (id, slide_id, modified, after_id) VALUES (3, 1, 9, 1); UPDATE deck SET modified = 1")
        .unwrap();
    assert_eq!(order(), "1,3,2");
    migrate(&engine, &schema(", modified INTEGER DEFAULT 0, \"deleted at\"", ""));
    connection.execute_batch("INSERT INTO component_fractindex (id, slide_id, after_id) VALUES (4, 1, 2)").unwrap();
    assert_eq!(order(), "1,3,2,4");
    migrate(&engine, &schema("", ""));
    assert_eq!(order(), "1,3,2,4");
}

/// A migration on one node and the next: both keep agreeing.
#[test]
fn nodes_that_migrate_go_on_syncing() {
    let old = "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, b, c); SELECT crsql_as_crr('foo');";
    let new = "CREATE TABLE IF NOT EXISTS foo (a PRIMARY KEY NOT NULL, c, d DEFAULT 4); SELECT crsql_as_crr('foo');";
    let (mut one, mut two) = (open(old), open(old));
    one.connection().execute_batch("INSERT INTO foo VALUES (1, 2, 3)").unwrap();
    support::merge(&mut two, &dump(&one));
    migrate(&one, new);
    one.connection().execute_batch("UPDATE foo SET d = 5; INSERT INTO foo VALUES (2, 3, 4)").unwrap();
    migrate(&two, new);
    support::merge(&mut two, &dump(&one));
    support::merge(&mut one, &dump(&two));
    for engine in [&one, &two] {
        assert_eq!(ask::<String>(engine.connection(), "SELECT group_concat(a || c || d, ' ') FROM foo"), "135 234");
    }
}
