//! What a host may rely on, with the oldest SQLite that is promised.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use litemesh_extension_oldest_sqlite::{create_item, exchange, extension, load, memory, open, rows, text};
use rusqlite::{Connection, OpenFlags, params};

fn count(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn this_host_is_the_oldest_that_is_promised() {
    assert!(rusqlite::version().starts_with("3.38."), "{}", rusqlite::version());
}

/// Every kind of write, both ways, with a conflict: equal rows and equal clocks.
#[test]
fn two_databases_converge() {
    let (a, b) = (memory(), memory());
    let (mut a_sent, mut b_sent) = (0, 0);
    let mut both_ways = || {
        a_sent = exchange(&a, &b, a_sent);
        b_sent = exchange(&b, &a, b_sent);
    };
    a.execute_batch("INSERT INTO item VALUES ('x', 1, x'00ff'), ('y', 2.5, NULL), ('z', 'text', 9223372036854775807)")
        .unwrap();
    both_ways();
    a.execute_batch("UPDATE item SET a = 'from a' WHERE id = 'x'; DELETE FROM item WHERE id = 'y'").unwrap();
    b.execute_batch("UPDATE item SET a = 'from b', b = 7 WHERE id = 'x'; UPDATE item SET b = 0 WHERE id = 'y'")
        .unwrap();
    both_ways();
    b.execute_batch("INSERT INTO item VALUES ('y', 'again', 1); UPDATE item SET id = 'zz' WHERE id = 'z'").unwrap();
    both_ways();
    both_ways();
    const ROWS: &str = "SELECT * FROM item ORDER BY id";
    assert_eq!(rows(&a, ROWS), ["x from b 7", "y again 1", "zz text 9223372036854775807"]);
    assert_eq!(rows(&a, ROWS), rows(&b, ROWS));
    // A sentinel that says what its cells say already is not kept by who merges it.
    const CLOCKS: &str = "SELECT pk, cid, val, col_version, site_id, cl FROM crsql_changes
         WHERE NOT (cid = '-1' AND cl = 1) ORDER BY pk, cid";
    assert_eq!(rows(&a, CLOCKS), rows(&b, CLOCKS));
}

/// Brings a database with `item` to another schema, and writes to what came.
fn migrate(db: &Connection) {
    const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY NOT NULL, a, c, d DEFAULT 5);
         SELECT crsql_as_crr(''item''); CREATE TABLE IF NOT EXISTS more (id TEXT PRIMARY KEY NOT NULL, e); SELECT crsql_as_crr(''more'')";
    text(db, &format!("SELECT crsql_automigrate('{SCHEMA}')"));
    db.execute_batch("INSERT INTO item (id) VALUES ('migrated'); INSERT INTO more VALUES ('m', 1)").unwrap();
    assert_eq!(text(db, "SELECT d FROM item WHERE id = 'migrated'"), "5");
    assert_eq!(count(db, "SELECT count(*) FROM crsql_changes WHERE \"table\" = 'more'"), 1);
}

/// Everything else of the SQL surface has the SQL that it needs.
#[test]
fn schema_changes_and_ordered_lists_work() {
    let (a, b) = (memory(), memory());
    a.execute_batch("INSERT INTO item VALUES ('x', 1, 1)").unwrap();
    for db in [&a, &b] {
        text(db, "SELECT crsql_begin_alter('item')");
        db.execute_batch("ALTER TABLE item ADD COLUMN c DEFAULT 3; ALTER TABLE item DROP COLUMN b").unwrap();
        text(db, "SELECT crsql_commit_alter('item')");
    }
    a.execute_batch("INSERT INTO item VALUES ('y', 2, 4)").unwrap();
    exchange(&a, &b, 0);
    assert_eq!(rows(&b, "SELECT id, a, c FROM item ORDER BY id"), ["x 1 3", "y 2 4"]);

    a.execute_batch("CREATE TABLE list (id INTEGER PRIMARY KEY NOT NULL, place TEXT)").unwrap();
    text(&a, "SELECT crsql_as_crr('list')");
    text(&a, "SELECT crsql_fract_as_ordered('list', 'place')");
    a.execute_batch("INSERT INTO list VALUES (1, 1), (2, 1), (3, -1)").unwrap();
    assert_eq!(rows(&a, "SELECT id FROM list ORDER BY place"), ["3", "1", "2"]);
    assert_eq!(rows(&a, "SELECT cell FROM crsql_unpack_columns(crsql_pack_columns(1, 'a', 2.5))"), ["1", "a", "2.5"]);
    text(&a, "SELECT crsql_as_table('list')");
    a.execute_batch("DROP TABLE list").unwrap();
    a.close().unwrap();

    b.execute_batch("CREATE VIRTUAL TABLE pair_schema USING clset (id TEXT PRIMARY KEY NOT NULL, v)").unwrap();
    b.execute_batch("INSERT INTO pair VALUES ('p', 1)").unwrap();
    assert_eq!(count(&b, "SELECT count(*) FROM crsql_changes WHERE \"table\" = 'pair'"), 1);
    b.execute_batch("DROP TABLE pair_schema").unwrap();
    migrate(&b);
    b.close().unwrap();
}

/// TX-5, TX-7, FN-5: the engine follows the host's transactions.
#[test]
fn rollbacks_and_savepoints_are_followed() {
    let db = memory();
    db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
    db.execute_batch("BEGIN; INSERT INTO item VALUES ('b', 1, 1); ROLLBACK").unwrap();
    assert_eq!(text(&db, "SELECT crsql_db_version(), crsql_next_db_version()"), "1 2");
    db.execute_batch(
        "BEGIN; INSERT INTO item VALUES ('c', 1, 1); SAVEPOINT s; INSERT INTO item VALUES ('d', 1, 1); ROLLBACK TO s;
         RELEASE s; COMMIT",
    )
    .unwrap();
    assert_eq!(
        rows(&db, "SELECT DISTINCT hex(pk), db_version FROM crsql_changes ORDER BY 2"),
        ["010B0161 1", "010B0163 2"]
    );
    let other = memory();
    exchange(&db, &other, 0);
    other.execute_batch("BEGIN").unwrap();
    const MERGE: &str = "INSERT INTO crsql_changes VALUES ('item', x'010B0165', 'a', 1, 1, 5, x'01', 1, 0)";
    other.execute_batch(MERGE).unwrap();
    assert_eq!(count(&other, "SELECT crsql_rows_impacted()"), 1);
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(count(&other, "SELECT crsql_rows_impacted()"), 0);
    assert_eq!(count(&other, "SELECT count(*) FROM item"), 2);
}

/// BUG-21, TX-6: SQLite keeps one hook of each kind, and it stays the host's, whoever came first.
#[test]
fn hooks_stay_the_hosts() {
    for is_hooked_first in [true, false] {
        let db = Connection::open_in_memory().unwrap();
        let (commits, rollbacks) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let updates = Arc::new(Mutex::new(Vec::new()));
        let hook = || {
            let (commits, rollbacks, updates) = (commits.clone(), rollbacks.clone(), updates.clone());
            db.commit_hook(Some(move || {
                commits.fetch_add(1, Ordering::Relaxed);
                false
            }));
            db.rollback_hook(Some(move || {
                rollbacks.fetch_add(1, Ordering::Relaxed);
            }));
            db.update_hook(Some(move |_, _: &str, table: &str, _| {
                if table == "item" {
                    updates.lock().unwrap().push(table.to_owned());
                }
            }));
        };
        if is_hooked_first {
            hook();
        }
        load(&db, &extension()).unwrap();
        if !is_hooked_first {
            hook();
        }
        create_item(&db);
        db.execute_batch("INSERT INTO item VALUES ('zero', 0, 0)").unwrap();
        let before = (commits.load(Ordering::Relaxed), rollbacks.load(Ordering::Relaxed));
        updates.lock().unwrap().clear();

        db.execute_batch("INSERT INTO item VALUES ('a', 1, 1); UPDATE item SET a = 2 WHERE id = 'a'").unwrap();
        db.execute_batch("BEGIN; INSERT INTO item VALUES ('b', 1, 1); ROLLBACK").unwrap();
        let after = (commits.load(Ordering::Relaxed), rollbacks.load(Ordering::Relaxed));
        assert_eq!((after.0 - before.0, after.1 - before.1), (2, 1), "hooked first: {is_hooked_first}");
        assert_eq!(updates.lock().unwrap().len(), 3);
        // And the engine followed the same transactions.
        assert_eq!(text(&db, "SELECT crsql_db_version(), count(*) FROM item"), "3 2");
    }
}

/// A commit hook of the host that refuses a commit rolls it back, and the engine follows.
#[test]
fn a_commit_that_the_host_refuses_leaves_no_version() {
    let db = memory();
    db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
    db.commit_hook(Some(|| true));
    assert!(db.execute_batch("INSERT INTO item VALUES ('b', 1, 1)").is_err());
    db.commit_hook(None::<fn() -> bool>);
    db.execute_batch("INSERT INTO item VALUES ('c', 1, 1)").unwrap();
    assert_eq!(rows(&db, "SELECT id FROM item ORDER BY id"), ["a", "c"]);
    assert_eq!(count(&db, "SELECT crsql_db_version()"), 2);
}

/// BUG-22, FN-9: `sqlite3_close` refuses while statements are open.
#[test]
fn connections_close_without_being_finalized() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (open(&folder.path().join("a.db")), open(&folder.path().join("b.db")));
    for db in [&a, &b] {
        create_item(db);
        db.execute_batch("INSERT INTO item VALUES (hex(randomblob(8)), 1, 1)").unwrap();
    }
    exchange(&a, &b, 0);
    a.execute_batch("BEGIN; INSERT INTO item VALUES ('open', 1, 1)").unwrap();
    a.close().unwrap();
    b.close().unwrap();
    // Only loaded, never used.
    open(&folder.path().join("c.db")).close().unwrap();
    // And where somebody still calls it.
    let db = open(&folder.path().join("b.db"));
    assert_eq!(text(&db, "SELECT crsql_finalize()"), "finalized");
    assert_eq!(count(&db, "SELECT count(*) FROM item"), 2);
    db.close().unwrap();
}

/// Loading is asked for again by pools, by an automatic extension and by hand; also from a running statement.
#[test]
fn loading_twice_does_nothing() {
    let db = memory();
    db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
    db.execute_batch("BEGIN; INSERT INTO item VALUES ('b', 1, 1)").unwrap();
    load(&db, &extension()).unwrap();
    let sql = format!("SELECT load_extension('{}')", extension().display());
    // SAFETY: the extension under test.
    unsafe { db.load_extension_enable() }.unwrap();
    db.query_row(&sql, [], |_| Ok(())).unwrap();
    db.execute_batch("INSERT INTO item VALUES ('c', 1, 1); COMMIT").unwrap();
    assert_eq!(text(&db, "SELECT crsql_db_version(), count(*) FROM crsql_changes"), "2 6");
    db.close().unwrap();
}

/// A copy named after CRSqlite is found by its own entry point.
#[test]
fn a_copy_stands_in_for_crsqlite() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["crsqlite", "litemesh"] {
        let copy = folder.path().join(name).with_extension(&std::env::consts::DLL_SUFFIX[1..]);
        std::fs::copy(extension(), &copy).unwrap();
        let db = Connection::open_in_memory().unwrap();
        load(&db, &copy).unwrap();
        create_item(&db);
        db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
        assert_eq!(count(&db, "SELECT crsql_db_version()"), 1);
        // Two copies of the engine in one connection would count the same writes.
        let error = load(&db, &extension()).map(|()| "loaded").unwrap_or("refused");
        assert_eq!(error, "loaded", "the same engine is recognised");
        assert_eq!(count(&db, "SELECT crsql_db_version()"), 1);
    }
}

/// The host's settings are its own.
#[test]
fn settings_of_the_host_stay() {
    const SETTINGS: [&str; 8] = [
        "busy_timeout",
        "journal_mode",
        "synchronous",
        "foreign_keys",
        "recursive_triggers",
        "trusted_schema",
        "cache_size",
        "locking_mode",
    ];
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join("a.db")).unwrap();
    db.execute_batch("PRAGMA busy_timeout = 1234; PRAGMA foreign_keys = 0; PRAGMA trusted_schema = 0").unwrap();
    let settings = |db: &Connection| SETTINGS.map(|name| text(db, &format!("PRAGMA {name}")));
    let before = settings(&db);
    load(&db, &extension()).unwrap();
    assert_eq!(settings(&db), before);
    create_item(&db);
    db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
    assert_eq!(settings(&db), before);
}

/// What the host asks about its own statement is not answered with one of ours.
#[test]
fn rowid_and_counts_are_the_hosts() {
    let db = Connection::open_in_memory().unwrap();
    load(&db, &extension()).unwrap();
    db.execute_batch("CREATE TABLE n (id INTEGER PRIMARY KEY NOT NULL, v)").unwrap();
    text(&db, "SELECT crsql_as_crr('n')");
    assert_eq!(db.execute("INSERT INTO n VALUES (700, 1), (701, 2), (702, 3)", []).unwrap(), 3);
    assert_eq!(db.last_insert_rowid(), 702);
    assert_eq!(db.execute("UPDATE n SET v = 0 WHERE id > 700", []).unwrap(), 2);
    assert_eq!(db.execute("DELETE FROM n", []).unwrap(), 3);
    assert_eq!(db.last_insert_rowid(), 702);
}

/// TX-2, TX-4: a file that is refused stays as it is, and the connection stays usable.
#[test]
fn refused_files_are_named_and_left_alone() {
    for (schema, gist) in [
        ("CREATE TABLE crsql_db_versions (a)", "layout of another CRSqlite version"),
        ("PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (a)", "UTF-16"),
        ("PRAGMA encoding = 'UTF-16be'; CREATE TABLE t (a)", "UTF-16"),
    ] {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(schema).unwrap();
        let error = load(&db, &extension()).unwrap_err().to_string();
        assert!(error.contains("litemesh: ") && error.contains(gist), "{error}");
        assert_eq!(count(&db, "SELECT count(*) FROM sqlite_master"), 1);
        let error = db.prepare("SELECT crsql_db_version()").unwrap_err().to_string();
        assert!(error.contains("no such function"), "{error}");
        // Again, and the file's own tables still work.
        assert!(load(&db, &extension()).is_err());
        db.execute_batch("CREATE TABLE u (a); INSERT INTO u VALUES (1)").unwrap();
        db.close().unwrap();
    }
}

/// TX-2: nothing is written where all is there; nothing can be written to a file that is read-only.
#[test]
fn read_only_files_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let fresh = folder.path().join("fresh.db");
    Connection::open(&fresh).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let db = open(&path);
    create_item(&db);
    db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
    db.close().unwrap();
    let read_only = |path: &Path| {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        load(&db, &extension()).unwrap();
        db
    };
    assert_eq!(count(&read_only(&path), "SELECT count(*) FROM crsql_changes"), 2);
    assert_eq!(count(&read_only(&fresh), "SELECT count(*) FROM crsql_changes"), 0);
}

/// TX-2: a program must be able to start while another one writes.
#[test]
fn loading_waits_for_no_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let writer = open(&path);
    writer.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    create_item(&writer);
    writer
        .execute_batch("INSERT INTO item VALUES ('a', 1, 1); BEGIN IMMEDIATE; INSERT INTO item VALUES ('b', 1, 1)")
        .unwrap();
    let reader = Connection::open(&path).unwrap();
    reader.busy_timeout(std::time::Duration::ZERO).unwrap();
    load(&reader, &extension()).unwrap();
    assert_eq!(count(&reader, "SELECT count(*) FROM item"), 1);
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(text(&reader, "SELECT count(*), crsql_db_version() FROM item"), "2 2");
}

/// Many connections of many threads, on one file and for themselves; the first loads race.
#[test]
fn threads_have_their_own_connections() {
    const THREADS: i64 = 8;
    const ROWS: i64 = 25;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.db");
    let setup = open(&path);
    setup.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    create_item(&setup);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let path = &path;
            scope.spawn(move || {
                let db = open(path);
                db.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
                let own = memory();
                for row in 0..ROWS {
                    let id = format!("{thread}-{row}");
                    db.execute("INSERT INTO item VALUES (?1, ?2, ?3)", params![id, thread, row]).unwrap();
                    own.execute("INSERT INTO item VALUES (?1, ?2, ?3)", params![id, thread, row]).unwrap();
                }
                assert_eq!(count(&own, "SELECT crsql_db_version()"), ROWS);
                own.close().unwrap();
                db.close().unwrap();
            });
        }
    });
    // TX-12: one version for each transaction, none twice.
    let expected = format!("{0} {0} {0}", THREADS * ROWS);
    let sql = "SELECT crsql_db_version(), count(DISTINCT db_version), count(DISTINCT pk) FROM crsql_changes";
    assert_eq!(text(&setup, sql), expected);
}

/// One connection that goes from thread to thread.
#[test]
fn a_connection_moves_between_threads() {
    let mut db = memory();
    for round in 0..20 {
        db = std::thread::spawn(move || {
            db.execute("INSERT INTO item VALUES (?1, 1, 1)", [round.to_string()]).unwrap();
            db
        })
        .join()
        .unwrap();
    }
    assert_eq!(count(&db, "SELECT crsql_db_version()"), 20);
    db.close().unwrap();
}

/// Loaded, used and closed again and again: nothing is left behind.
#[test]
fn files_are_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    for round in 0..200 {
        let db = open(&path);
        if round == 0 {
            create_item(&db);
        }
        db.execute("INSERT INTO item VALUES (?1, 1, 1)", [round.to_string()]).unwrap();
        db.close().unwrap();
    }
    let open_files = || {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return 0 };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|file| file.file_name() == path.file_name() && file.parent() == path.parent())
            .count()
    };
    assert_eq!(open_files(), 0);
    if cfg!(target_os = "linux") {
        let _db = open(&path);
        assert_eq!(open_files(), 1, "the test can see open files");
    }
}
