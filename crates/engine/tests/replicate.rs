//! Which tables can replicate, under which names, and what becoming replicated or ordinary does to what is there.

mod support;

use litemesh_engine::proto::Cursor;
use litemesh_engine::rusqlite::{Connection, OpenFlags};
use litemesh_engine::{Engine, LocalFilter, LocalPlace, PageLimits};
use litemesh_testkit::{literal, quote};
use support::{ask, dump, merge, refusal, select_changes, value};

fn open(sql: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(sql).unwrap();
    engine
}

/// The table `t` is refused with this gist, by the function and natively, and nothing is left behind.
fn check_refused(create: &str, gist: &str) {
    let engine = open(create);
    let message = engine.replicate("t").unwrap_err().to_string();
    assert!(message.contains(gist), "{create}: {message}");
    assert!(refusal(engine.connection(), "SELECT crsql_as_crr('t')").contains(gist), "{create}");
    let left: i64 =
        ask(engine.connection(), "SELECT count(*) FROM sqlite_master WHERE name LIKE 't\\_\\_%' ESCAPE '\\'");
    assert_eq!(left, 0, "{create}");
    assert!(engine.tables().unwrap().is_empty(), "{create}");
}

/// `known-failures.md` E4: the original leaves it to its README.
/// CRR-2, with its FIXes.
#[test]
fn tables_that_cannot_converge_are_refused_with_the_reason() {
    let unique = "unique indices besides the primary key";
    check_refused("CREATE TABLE t (a PRIMARY KEY NOT NULL, b UNIQUE)", unique);
    check_refused("CREATE TABLE t (a PRIMARY KEY NOT NULL, b); CREATE UNIQUE INDEX i ON t (b) WHERE b > 1", unique);
    let nullable = "Table t has no primary key or primary key is nullable. CRRs must have a non nullable primary key";
    check_refused("CREATE TABLE t (a)", nullable);
    check_refused("CREATE TABLE t (a PRIMARY KEY)", nullable);
    check_refused("CREATE TABLE t (a INTEGER PRIMARY KEY)", nullable);
    check_refused("CREATE TABLE t (a NOT NULL, b, PRIMARY KEY (a, b))", "part of which is nullable");
    check_refused("CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL)", "auto-increment primary key");
    check_refused(
        "CREATE TABLE o (a PRIMARY KEY); CREATE TABLE t (a PRIMARY KEY NOT NULL, b REFERENCES o)",
        "checked foreign key constraints",
    );
    check_refused("CREATE TABLE t (a PRIMARY KEY NOT NULL, b NOT NULL)", "NOT NULL column without a DEFAULT VALUE: b");
    check_refused("CREATE TABLE t (a PRIMARY KEY NOT NULL, \"-1\")", "a column named -1");
    check_refused("CREATE TABLE t (__crsql_key PRIMARY KEY NOT NULL)", "a column named __crsql_key");
    check_refused("CREATE TABLE t (a TEXT COLLATE NOCASE PRIMARY KEY NOT NULL)", "collation other than BINARY");
    check_refused("CREATE VIEW t AS SELECT 1", "view or a virtual table");
    check_refused("CREATE TEMP TABLE t (a PRIMARY KEY NOT NULL)", "temporary");
    check_refused("SELECT 1", "does not exist");
}

/// CRR-2: check 2 comes before 4 and has CRSqlite's text, so what else is wrong with the key is in the advice.
#[test]
fn a_nullable_autoincrement_key_is_told_both_faults() {
    let nullable = "Table t has no primary key or primary key is nullable. CRRs must have a non nullable primary key";
    let check = |create: &str, is_told: bool| {
        let engine = open(create);
        let error = engine.replicate("t").unwrap_err();
        assert_eq!(error.to_string(), nullable, "{create}");
        assert_eq!(error.advice().contains("AUTOINCREMENT"), is_told, "{create}: {}", error.advice());
        assert!(error.advice().contains("PRIMARY KEY NOT NULL"), "{create}: {}", error.advice());
    };
    check("CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT, b)", true);
    check("CREATE TABLE t (a INTEGER PRIMARY KEY, autoincrement_of TEXT) -- no autoincrement", false);
    check("CREATE TABLE t (a)", false);
}

#[test]
fn virtual_tables_are_refused() {
    // CREATE VIRTUAL TABLE needs a module; the one that is always there is our own, so FTS stands in where it is built in.
    let engine = Engine::open_in_memory().unwrap();
    if engine.connection().execute_batch("CREATE VIRTUAL TABLE t USING fts5(a)").is_ok() {
        assert!(engine.replicate("t").is_err());
    }
}

/// What CRSqlite accepts.
#[test]
fn unusual_tables_that_can_converge_are_accepted() {
    for create in [
        "CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, b)",
        "CREATE TABLE t (a TEXT PRIMARY KEY, b) WITHOUT ROWID",
        "CREATE TABLE t (a TEXT PRIMARY KEY NOT NULL, b ANY) STRICT",
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, b, c AS (b + 1), d AS (b * 2) STORED)",
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, b CHECK (b > 0), c NOT NULL DEFAULT 5)",
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, b COLLATE NOCASE); CREATE INDEX i ON t (b); CREATE INDEX j ON t (b + 1)",
        "CREATE TABLE t (a PRIMARY KEY NOT NULL, b, \"autoincrement\") -- not autoincrement",
    ] {
        let (engine, mut other) = (open(create), open(create));
        engine.replicate("t").unwrap();
        other.replicate("t").unwrap();
        engine.connection().execute_batch("INSERT INTO t (a, b) VALUES (1, 7)").unwrap();
        merge(&mut other, &dump(&engine));
        assert_eq!(ask::<i64>(other.connection(), "SELECT b FROM t"), 7, "{create}");
    }
}

/// CRR-6: every name is quoted everywhere.
#[test]
fn odd_names_replicate() {
    let names = [
        "with space",
        "it's",
        "a\"b",
        "select",
        "100%",
        "1st",
        "dash-ed",
        "ünï",
        "x]y",
        "a.b",
        "[x]",
        "`t`",
        "semi;colon",
    ];
    for name in names {
        let create = format!(
            "CREATE TABLE {0} ({1} TEXT NOT NULL, {0} TEXT NOT NULL, {2}, \"from\" DEFAULT 'x', PRIMARY KEY ({0}, {1}))",
            quote(name),
            quote(&format!("{name} key")),
            quote(&format!("{name} cell"))
        );
        let (engine, mut other) = (open(&create), open(&create));
        engine.replicate(name).unwrap();
        ask::<String>(other.connection(), &format!("SELECT crsql_as_crr({})", literal(&name.into())));
        let (table, cell) = (quote(name), quote(&format!("{name} cell")));
        engine
            .connection()
            .execute_batch(&format!(
                "INSERT INTO {table} VALUES ('k1', 'k2', 1, 2), ('l1', 'l2', 3, 4), ('m1', 'm2', 5, 6);
                 UPDATE {table} SET {cell} = 'new' WHERE {0} = 'k2'; UPDATE {table} SET {0} = 'moved' WHERE {0} = 'l2';
                 REPLACE INTO {table} VALUES ('k1', 'k2', 'again', 2); DELETE FROM {table} WHERE {0} = 'm2'",
                quote(name)
            ))
            .unwrap();
        merge(&mut other, &dump(&engine));
        let rows = |engine: &Engine| -> String {
            let sql = format!(
                "SELECT json_group_array(json_array({0}, {cell}, \"from\") ORDER BY {0}) FROM {table}",
                quote(name)
            );
            ask(engine.connection(), &sql)
        };
        assert_eq!(rows(&other), r#"[["k2","again",2],["moved",3,4]]"#, "{name}");
        assert_eq!(rows(&other), rows(&engine), "{name}");
        engine.unreplicate(name).unwrap();
        let left: i64 = ask(
            engine.connection(),
            "SELECT count(*) FROM sqlite_master WHERE name LIKE '%\\_\\_crsql\\_%' ESCAPE '\\'",
        );
        assert_eq!(left, 0, "{name}");
    }
}

/// CRR-8.
#[test]
fn a_name_in_another_case_is_the_same_table() {
    let engine = open("CREATE TABLE Foo (a PRIMARY KEY NOT NULL, b)");
    engine.replicate("fOO").unwrap();
    engine.replicate("FOO").unwrap();
    assert_eq!(engine.tables().unwrap(), ["Foo".into()]);
    engine.connection().execute_batch("INSERT INTO foo VALUES (1, 2)").unwrap();
    assert_eq!(&*dump(&engine)[0].table, "Foo");
    engine.unreplicate("foo").unwrap();
    assert!(engine.tables().unwrap().is_empty());
}

/// `known-failures.md` A13: older rows are in no history of the original.
/// CRR-5.
#[test]
fn rows_that_were_there_before_replicate() {
    let create =
        "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b, c DEFAULT 5); CREATE TABLE keys (a PRIMARY KEY NOT NULL);
                  CREATE TABLE empty (a PRIMARY KEY NOT NULL, b)";
    let engine = open(create);
    engine
        .connection()
        .execute_batch("INSERT INTO foo (a) VALUES (1), ('x'); INSERT INTO keys VALUES (1), (2)")
        .unwrap();
    for (table, version) in [("foo", 1), ("keys", 2), ("empty", 2)] {
        engine.replicate(table).unwrap();
        engine.replicate(table).unwrap();
        assert_eq!(engine.db_version().unwrap().get(), version, "{table}");
    }
    let changes = select_changes(engine.connection(), "");
    let versions: Vec<(i64, i64)> = changes.iter().map(|c| (c.db_version.get(), c.seq.get())).collect();
    assert_eq!(versions, [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]);
    assert!(changes.iter().all(|change| change.col_version.get() == 1));
    let mut other = open(create);
    for table in ["foo", "keys", "empty"] {
        other.replicate(table).unwrap();
    }
    merge(&mut other, &dump(&engine));
    assert_eq!(ask::<i64>(other.connection(), "SELECT sum(c) FROM foo"), 10);
    assert_eq!(ask::<i64>(other.connection(), "SELECT count(*) FROM keys"), 2);
}

/// VER-7: the version that a new table's rows get is above all others, wherever the table is made.
#[test]
fn tables_made_inside_a_transaction_go_on_with_its_version() {
    let engine = open(
        "CREATE TABLE a (id PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('a'); INSERT INTO a VALUES (1, 1);
         INSERT INTO a VALUES (2, 1); BEGIN; SELECT crsql_increment_and_get_seq(); CREATE TABLE b (id PRIMARY KEY NOT NULL, v);
         INSERT INTO b VALUES (1, 1); SELECT crsql_as_crr('b'); INSERT INTO b VALUES (2, 1); COMMIT",
    );
    let versions: Vec<i64> = select_changes(engine.connection(), "").iter().map(|c| c.db_version.get()).collect();
    assert_eq!(versions, [1, 2, 3, 3]);
    assert_eq!(engine.db_version().unwrap().get(), 3);
}

/// BUG-19 and CRR-4: what the caller did before stays done.
#[test]
fn an_error_rolls_back_nothing_of_the_caller() {
    let engine = open("CREATE TABLE good (a PRIMARY KEY NOT NULL, b); CREATE TABLE bad (a, b)");
    engine
        .connection()
        .execute_batch("BEGIN; SELECT crsql_as_crr('good'); INSERT INTO good VALUES (1, 2); SAVEPOINT mine")
        .unwrap();
    assert!(refusal(engine.connection(), "SELECT crsql_as_crr('bad')").contains("no primary key"));
    // A name that is taken fails in the middle, after the clock table was made.
    engine
        .connection()
        .execute_batch("CREATE TABLE late (a PRIMARY KEY NOT NULL, b); CREATE VIEW late__crsql_pks AS SELECT 1 AS a")
        .unwrap();
    refusal(engine.connection(), "SELECT crsql_as_crr('late')");
    engine.connection().execute_batch("RELEASE mine; COMMIT").unwrap();
    assert_eq!(engine.tables().unwrap(), ["good".into()]);
    let left: i64 = ask(engine.connection(), "SELECT count(*) FROM sqlite_master WHERE name = 'late__crsql_clock'");
    assert_eq!(left, 0);
    assert_eq!(dump(&engine).len(), 1);
}

/// VER-7: a version that fell would be given out twice, and peers that hold the first would never take the second.
#[test]
fn versions_do_not_fall_when_history_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let check = |engine: &Engine, version: i64, what: &str| {
        assert_eq!(engine.db_version().unwrap().get(), version, "{what}");
        let fresh = Engine::open(&path).unwrap();
        assert_eq!(fresh.db_version().unwrap().get(), version, "{what}, opened again");
    };
    let engine = Engine::open(&path).unwrap();
    engine
        .connection()
        .execute_batch(
            "CREATE TABLE a (id PRIMARY KEY NOT NULL, v); CREATE TABLE b (id PRIMARY KEY NOT NULL, v);
             CREATE TABLE c (id PRIMARY KEY NOT NULL, v);
             SELECT crsql_as_crr('a'); SELECT crsql_as_crr('b'); SELECT crsql_as_crr('c');
             INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1); INSERT INTO c VALUES (1, 1)",
        )
        .unwrap();
    check(&engine, 3, "written");
    engine.connection().execute_batch("SELECT crsql_as_table('c')").unwrap();
    check(&engine, 3, "as_table");
    engine.connection().execute_batch("INSERT INTO b VALUES (2, 1)").unwrap();
    check(&engine, 4, "written again");
    // BUG-1: the clock table is left behind by a DROP TABLE of the user.
    engine.connection().execute_batch("DROP TABLE b").unwrap();
    check(&engine, 4, "dropped");
    engine.connection().execute_batch("UPDATE a SET v = 2").unwrap();
    check(&engine, 5, "written at last");
}

/// BUG-1.
#[test]
fn a_dropped_table_does_not_poison_the_others() {
    let mut engine = open(
        "CREATE TABLE a (id PRIMARY KEY NOT NULL, v); CREATE TABLE b (id PRIMARY KEY NOT NULL, v);
         SELECT crsql_as_crr('a'); SELECT crsql_as_crr('b'); INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)",
    );
    let before = dump(&engine);
    engine.connection().execute_batch("DROP TABLE b").unwrap();
    assert_eq!(engine.tables().unwrap(), ["a".into()]);
    assert_eq!(dump(&engine).len(), 1);
    assert_eq!(select_changes(engine.connection(), "").len(), 1);
    engine.connection().execute_batch("INSERT INTO a VALUES (2, 2)").unwrap();
    // The table may come back, and what peers know of its rows is merged again.
    engine.connection().execute_batch("CREATE TABLE b (id PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('b')").unwrap();
    let newer = before.into_iter().filter(|change| &*change.table == "b").map(|mut change| {
        change.col_version = change.col_version.next();
        change
    });
    merge(&mut engine, &newer.collect::<Vec<_>>());
    assert_eq!(ask::<i64>(engine.connection(), "SELECT v FROM b"), 1);
}

/// TX-2: a file that is complete opens for reading alone; one that is not is a database without replicated tables.
#[test]
fn read_only_files_open() {
    let folder = tempfile::tempdir().unwrap();
    let read_only = |name: &str| {
        let path = folder.path().join(name);
        Engine::attach(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()).unwrap()
    };
    let engine = Engine::open(folder.path().join("a.db")).unwrap();
    engine
        .connection()
        .execute_batch(
            "CREATE TABLE a (id PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('a'); INSERT INTO a VALUES (1, 'x')",
        )
        .unwrap();
    let reader = read_only("a.db");
    assert_eq!(reader.site().unwrap(), engine.site().unwrap());
    assert_eq!(dump(&reader), dump(&engine));
    assert_eq!(reader.cursor().unwrap(), engine.cursor().unwrap());
    assert_eq!(select_changes(reader.connection(), "").len(), 1);
    refusal(reader.connection(), "INSERT INTO a VALUES (2, 'y')");

    // A file that only CRSqlite wrote so far: what it merged is of unknown version, and goes to everybody.
    let other =
        open("CREATE TABLE a (id PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('a'); INSERT INTO a VALUES (2, 'y')");
    let mut theirs = Engine::open(folder.path().join("theirs.db")).unwrap();
    theirs.connection().execute_batch("CREATE TABLE a (id PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('a')").unwrap();
    theirs.connection().execute_batch("INSERT INTO a VALUES (1, 'x')").unwrap();
    merge(&mut theirs, &dump(&other));
    let site = theirs.site().unwrap();
    drop(theirs);
    let plain = Connection::open(folder.path().join("theirs.db")).unwrap();
    for table in ["origin", "cursor", "position", "meta"] {
        plain.execute_batch(&format!("DROP TABLE litemesh_{table}")).unwrap();
    }
    drop(plain);
    let reader = read_only("theirs.db");
    assert_eq!(reader.site().unwrap(), site);
    assert_eq!(reader.cursor().unwrap().get(&site).get(), 2);
    let all = PageLimits { changes_max: usize::MAX, bytes_max: usize::MAX, stretch: 1 };
    let page = reader.read_local(&LocalPlace::default(), &LocalFilter::default(), all).unwrap();
    assert_eq!(page.changes.len(), 2);
    assert_eq!(select_changes(reader.connection(), "").len(), 2);
    assert_eq!(dump(&reader).len(), 1, "by sites only what is of a known version");

    Connection::open(folder.path().join("plain.db")).unwrap().execute_batch("CREATE TABLE plain (x)").unwrap();
    let reader = read_only("plain.db");
    assert_eq!(reader.db_version().unwrap().get(), 0);
    assert_eq!(reader.cursor().unwrap(), Cursor::new());
    assert!(reader.tables().unwrap().is_empty() && dump(&reader).is_empty());
    assert!(select_changes(reader.connection(), "").is_empty());
}

/// 1.4: without the engine a write fails instead of going unrecorded.
#[test]
fn writes_without_the_engine_fail() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let engine = Engine::open(&path).unwrap();
    engine.connection().execute_batch("CREATE TABLE a (id PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('a')").unwrap();
    let plain = Connection::open(&path).unwrap();
    for sql in ["INSERT INTO a VALUES (1, 1)", "UPDATE a SET v = 1", "DELETE FROM a"] {
        let message = plain.execute_batch(sql).unwrap_err().to_string();
        assert!(message.contains("no such function: crsql_internal_sync_bit"), "{sql}: {message}");
    }
    let mut statement = plain.prepare("SELECT count(*) FROM a").unwrap();
    let count = statement.query_row([], |row| Ok(value(row.get_ref(0)?))).unwrap();
    assert_eq!(count, 0.into());
}
