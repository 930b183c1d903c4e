//! What another connection does to the schema between two statements of ours, at every place where it can (TX-11).
//!
//! Method: SQLite tells of each statement before it starts, and so before it sees any state of the file. Each operation is
//! run again and again; the n-th time the other engine acts before the n-th statement.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use litemesh_engine::proto::{Change, Cursor, DbVersion, SiteId};
use litemesh_engine::rusqlite::trace::{TraceEvent, TraceEventCodes};
use litemesh_engine::rusqlite::{self, Connection};
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits, SiteBounds, Witness};
use support::ask;

const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT);
    CREATE TABLE tag (id TEXT PRIMARY KEY NOT NULL, name TEXT);
    CREATE TABLE later (id TEXT PRIMARY KEY NOT NULL);
    INSERT INTO todo VALUES ('a', 'x'), ('b', 'y');
    INSERT INTO tag VALUES ('a', 'x');";

const PAGE: PageLimits = PageLimits { changes_max: 100, bytes_max: 1 << 20, stretch: 1 };

/// The bytes of a file with two replicated tables.
fn template() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("template.db");
    let engine = Engine::open(&path).unwrap();
    engine.connection().execute_batch(SCHEMA).unwrap();
    engine.replicate("todo").unwrap();
    engine.replicate("tag").unwrap();
    engine.connection().execute("UPDATE todo SET title = 'z'", []).unwrap();
    drop(engine);
    std::fs::read(&path).unwrap()
}

/// Makes such a file, and the engine that will interfere.
fn file(path: &Path) -> Engine {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    std::fs::write(path, TEMPLATE.get_or_init(template)).unwrap();
    let other = Engine::open(path).unwrap();
    other.connection().pragma_update(None, "synchronous", "OFF").unwrap();
    // While the engine under test holds the write lock, nobody can interfere.
    other.connection().busy_timeout(std::time::Duration::ZERO).unwrap();
    other
}

/// A change of table `tag` by a third site.
fn foreign_change() -> Change {
    static CHANGE: OnceLock<Change> = OnceLock::new();
    CHANGE.get_or_init(make_foreign_change).clone()
}

fn make_foreign_change() -> Change {
    let third = Engine::open_in_memory().unwrap();
    third.connection().execute_batch(SCHEMA).unwrap();
    third.replicate("tag").unwrap();
    third.connection().execute("UPDATE tag SET name = 'third'", []).unwrap();
    third.changes_since(&Cursor::new()).flat_map(|changeset| changeset.unwrap().changes).last().unwrap()
}

/// Lets `other` act before the statement of `connection` with this number. Says later whether it came to that.
fn interfere(connection: &mut Connection, other: Engine, interference: &'static str, step: i32) -> Arc<AtomicBool> {
    let has_interfered = Arc::new(AtomicBool::new(false));
    let (seen, other, mut left) = (has_interfered.clone(), Mutex::new(other), step);
    let act = move |event: TraceEvent<'_>| {
        let TraceEvent::Stmt(..) = event else { return };
        if left == 0 {
            // An error means that the operation holds the lock.
            let _ = other.lock().unwrap().connection().execute_batch(interference);
            seen.store(true, Ordering::Relaxed);
        }
        left -= 1;
    };
    connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(act)).unwrap();
    has_interfered
}

const INTERFERENCES: [&str; 3] = ["SELECT crsql_as_table('todo')", "DROP TABLE todo", "SELECT crsql_as_crr('later')"];

type Operation = fn(&mut Engine) -> Result<(), Box<dyn std::error::Error>>;

/// Runs `operation` with `interference` before each of its statements in turn.
fn interleave(name: &str, operation: Operation, interference: &'static str, is_warm: bool) {
    for step in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.db");
        let other = file(&path);
        let mut engine = Engine::open(&path).unwrap();
        engine.connection().pragma_update(None, "synchronous", "OFF").unwrap();
        if is_warm {
            // Statements that were prepared before are not prepared again.
            operation(&mut engine).unwrap();
        }
        let has_interfered = interfere(engine.connection_mut(), other, interference, step);
        let result = operation(&mut engine);
        engine.connection_mut().trace_v2::<fn(TraceEvent<'_>)>(TraceEventCodes::empty(), None).unwrap();
        let place = format!("{name}, {interference:?} before statement {step}, warm: {is_warm}");
        result.unwrap_or_else(|error| panic!("{place}: {error}"));
        // What it knows now is what is there.
        let fresh = Engine::open(&path).unwrap();
        assert_eq!(engine.tables().unwrap(), fresh.tables().unwrap(), "{place}");
        assert_eq!(engine.db_version().unwrap(), fresh.db_version().unwrap(), "{place}");
        if !has_interfered.load(Ordering::Relaxed) {
            assert!(step > 0, "{name} runs no statement");
            return;
        }
    }
}

fn interleave_all(name: &str, operation: Operation) {
    for interference in INTERFERENCES {
        for is_warm in [false, true] {
            interleave(name, operation, interference, is_warm);
        }
    }
}

fn run(engine: &Engine, sql: &str) -> rusqlite::Result<()> {
    let mut statement = engine.connection().prepare(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// What came out does not matter, only whether something did.
fn done<T, E: std::error::Error + 'static>(result: Result<T, E>) -> Result<(), Box<dyn std::error::Error>> {
    result?;
    Ok(())
}

#[test]
fn looking_for_changes_survives_a_table_that_leaves_or_comes() {
    interleave_all("tables", |engine| done(engine.tables()));
    interleave_all("db_version", |engine| done(engine.db_version()));
    interleave_all("cursor", |engine| done(engine.cursor()));
    interleave_all("tables_changed_since", |engine| done(engine.tables_changed_since(DbVersion::ZERO)));
    const ASK: &str = "SELECT crsql_db_version(), crsql_next_db_version()";
    interleave_all(ASK, |engine| done(run(engine, ASK)));
}

#[test]
fn reading_survives_a_table_that_leaves_or_comes() {
    interleave_all("read_local", |engine| {
        done(engine.read_local(&LocalPlace::default(), &LocalFilter::default(), PAGE))
    });
    interleave_all("read_sites", |engine| {
        let bounds = SiteBounds { until: engine.cursor()?, ..SiteBounds::default() };
        let mut plan = engine.plan_sites(&bounds)?;
        done(engine.read_sites(&mut plan, PAGE))
    });
    interleave_all("changes_since", |engine| done(engine.changes_since(&Cursor::new()).collect::<Result<Vec<_>, _>>()));
    interleave_all("crsql_changes", |engine| done(run(engine, "SELECT * FROM crsql_changes")));
}

#[test]
fn writing_survives_a_table_that_leaves_or_comes() {
    interleave_all("merge", |engine| done(engine.merge(&[foreign_change()], &MergeProgress::default())));
    interleave_all("a local write", |engine| done(run(engine, "INSERT OR REPLACE INTO tag VALUES ('b', 'new')")));
    interleave_all("raise_version", |engine| {
        let version = engine.db_version()?.get() + 10;
        done(engine.raise_version(Witness {
            remote: SiteId::from_bytes([7; 16]),
            seen: DbVersion::new(version),
            written: DbVersion::new(version),
            newest: DbVersion::new(version),
        }))
    });
    interleave_all("prune_origins", |engine| done(engine.prune_origins(DbVersion::ZERO, 100)));
}

/// Opening writes what is missing, and looks at the tables for it.
#[test]
fn opening_survives_a_table_that_leaves_or_comes() {
    for interference in INTERFERENCES {
        for step in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file.db");
            let mut first = file(&path);
            // Work for `record_unknown_origins`: a merge whose origin nobody knows.
            first.merge(&[foreign_change()], &MergeProgress::default()).unwrap();
            first.connection().execute_batch("DELETE FROM litemesh_origin; DELETE FROM litemesh_meta").unwrap();
            let mut connection = Connection::open(&path).unwrap();
            let has_interfered = interfere(&mut connection, first, interference, step);
            let engine = Engine::attach(connection);
            let engine = engine.unwrap_or_else(|error| panic!("{interference:?} before statement {step}: {error}"));
            assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM litemesh_origin"), 1);
            if !has_interfered.load(Ordering::Relaxed) {
                assert!(step > 0);
                break;
            }
        }
    }
}
