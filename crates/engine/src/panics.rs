//! A panic at every step of SQLite that the engine takes, in turn: nothing is half recorded or half merged afterwards, and the
//! connection goes on.
//!
//! A panic is a bug. That it costs a transaction and no more is what the rest of the engine relies on: [`Shared`](crate::core::Shared)
//! forgets what it knew of the database, and what was written of a transaction cannot be committed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use litemesh_proto::{Change, DbVersion};
use rusqlite::types::Value;

use crate::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits};

thread_local! {
    static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Called by each step of a statement of ours, before it.
pub(crate) fn step() {
    match STEPS_LEFT.get() {
        // Without the hook that prints each panic.
        Some(0) => {
            STEPS_LEFT.set(None);
            resume_unwind(Box::new("a panic of this test"));
        }
        left => STEPS_LEFT.set(left.map(|left| left - 1)),
    }
}

/// Runs `work` with a panic after so many steps; also says whether it came to that.
fn with_panic_after<T>(steps: u32, work: impl FnOnce() -> T) -> (std::thread::Result<T>, bool) {
    STEPS_LEFT.set(Some(steps));
    let result = catch_unwind(AssertUnwindSafe(work));
    let has_panicked = STEPS_LEFT.take().is_none();
    (result, has_panicked)
}

/// Statements of one transaction, of every kind that is recorded in its own way.
const WRITES: [&str; 7] = [
    "BEGIN",
    "WITH RECURSIVE s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s WHERE n < 6)
     INSERT INTO todo SELECT 'new-' || n, 'bread', n FROM s",
    "UPDATE todo SET title = 'milk' WHERE id LIKE 'old-1%'",
    // Who asks makes the engine record what there is.
    "SELECT * FROM crsql_changes",
    "UPDATE todo SET id = 'moved' WHERE id = 'old-02'",
    "DELETE FROM todo WHERE id IN ('old-04', 'old-05', 'old-06', 'old-07', 'new-3')",
    "COMMIT",
];

fn open() -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    let schema = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INT)";
    engine.connection().execute_batch(schema).unwrap();
    engine.replicate("todo").unwrap();
    engine
}

/// A database that was written to.
fn filled() -> Engine {
    let engine = open();
    for n in 0..20 {
        engine.connection().execute("INSERT INTO todo VALUES (printf('old-%02d', ?1), 'x', ?1)", [n]).unwrap();
    }
    engine
}

fn run(engine: &Engine, sql: &str) -> rusqlite::Result<()> {
    engine.connection().execute_batch(sql)
}

/// Every row of every table, those of the engine included.
fn dump(engine: &Engine) -> Vec<String> {
    let mut names = engine.connection().prepare("SELECT name FROM sqlite_master WHERE type = 'table'").unwrap();
    let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut lines = Vec::new();
    for name in names {
        let mut rows = engine.connection().prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        let columns = rows.column_count();
        let rows =
            rows.query_map([], |row| (0..columns).map(|column| row.get(column)).collect::<Result<Vec<Value>, _>>());
        lines.extend(rows.unwrap().map(|row| format!("{name}: {:?}", row.unwrap())));
    }
    lines.sort();
    lines
}

fn rows(engine: &Engine) -> Vec<String> {
    dump(engine).into_iter().filter(|line| line.starts_with("todo: ")).collect()
}

fn changes_after(engine: &Engine, since: DbVersion) -> Vec<Change> {
    let limits = PageLimits { changes_max: 100_000, bytes_max: 1 << 30, stretch: 1 };
    let page = engine.read_local(&LocalPlace::after(since), &LocalFilter::default(), limits).unwrap();
    assert!(page.complete.is_some());
    page.changes
}

/// Whether all is consistent, and what is written next is recorded.
fn goes_on(engine: &Engine) {
    assert!(engine.connection().is_autocommit());
    assert_eq!(engine.check().unwrap().map(Result::unwrap).collect::<Vec<_>>(), []);
    let version = engine.db_version().unwrap();
    assert_eq!(recorded_by(engine, "UPDATE todo SET done = 77 WHERE id = 'old-19'"), 1);
    assert_eq!(engine.db_version().unwrap(), version);
}

/// How many changes a write is recorded as; it is taken back.
fn recorded_by(engine: &Engine, sql: &str) -> i64 {
    const COUNT: &str = "SELECT count(*) FROM crsql_changes WHERE db_version = crsql_next_db_version()";
    engine.connection().execute_batch(&format!("BEGIN; {sql}")).unwrap();
    let count = engine.connection().query_row(COUNT, [], |row| row.get(0)).unwrap();
    engine.connection().execute_batch("ROLLBACK").unwrap();
    count
}

#[test]
fn a_write_whose_recording_panics_is_refused_and_rolled_back_as_a_whole() {
    let engine = filled();
    let before = dump(&engine);
    let mut panics = 0;
    for steps in 0.. {
        // Panics do not come out of SQLite: who writes gets an error.
        let (result, has_panicked) = with_panic_after(steps, || WRITES.iter().try_for_each(|sql| run(&engine, sql)));
        let result = result.expect("no panic leaves SQLite");
        if !has_panicked {
            result.unwrap();
            break;
        }
        panics += 1;
        let error = result.expect_err("a write that was not recorded is no success").to_string();
        assert!(error.contains("internal error"), "{error}");
        if !engine.connection().is_autocommit() {
            engine.connection().execute_batch("ROLLBACK").unwrap();
        }
        assert_eq!(dump(&engine), before, "after {steps} steps");
        goes_on(&engine);
    }
    assert!(panics > 20, "{panics}");
    goes_on(&engine);
    // The last time it went through: as if there had been no panic.
    let other = filled();
    WRITES.iter().for_each(|sql| run(&other, sql).unwrap());
    assert_eq!(rows(&engine), rows(&other));
}

#[test]
fn who_commits_in_spite_of_a_panic_commits_nothing_that_is_half_recorded() {
    let (mut panics, mut commits) = (0, 0);
    for steps in 0.. {
        let engine = filled();
        let mut replica = open();
        replica.merge(&changes_after(&engine, DbVersion::ZERO), &MergeProgress::default()).unwrap();
        let (before, version) = (rows(&engine), engine.db_version().unwrap());
        let (result, has_panicked) = with_panic_after(steps, || WRITES.map(|sql| run(&engine, sql)));
        if !has_panicked {
            break;
        }
        panics += 1;
        let [.., commit] = result.expect("no panic leaves SQLite");
        match commit {
            Ok(()) => commits += 1,
            Err(_) => {
                if !engine.connection().is_autocommit() {
                    engine.connection().execute_batch("ROLLBACK").unwrap();
                }
                assert_eq!(rows(&engine), before, "after {steps} steps");
            }
        }
        goes_on(&engine);
        // Whatever is there was recorded: others hear of it.
        replica.merge(&changes_after(&engine, version), &MergeProgress::default()).unwrap();
        assert_eq!(rows(&replica), rows(&engine), "after {steps} steps");
    }
    // Both happen: a statement that failed alone, and a transaction of which a part was recorded.
    assert!(commits > 0 && panics > commits, "{commits} of {panics}");
}

#[test]
fn a_merge_that_panics_merges_nothing_and_comes_through_the_next_time() {
    let author = filled();
    let mut reader = open();
    reader.merge(&changes_after(&author, DbVersion::ZERO), &MergeProgress::default()).unwrap();
    // Equal versions, values that lose, and rows that are read and compared.
    reader.connection().execute_batch("UPDATE todo SET title = 'own' WHERE id LIKE 'old-1%'").unwrap();
    let version = author.db_version().unwrap();
    WRITES.iter().for_each(|sql| run(&author, sql).unwrap());
    let changes = changes_after(&author, version);
    let progress = MergeProgress {
        cursor: [(author.site().unwrap(), author.db_version().unwrap())].into_iter().collect(),
        ..MergeProgress::default()
    };
    let before = dump(&reader);
    let mut panics = 0;
    for steps in 0.. {
        let (result, has_panicked) = with_panic_after(steps, || reader.merge(&changes, &progress));
        if !has_panicked {
            result.expect("no panic").unwrap();
            break;
        }
        panics += 1;
        assert!(!matches!(result, Ok(Ok(_))), "a merge that panicked is no success, after {steps} steps");
        assert_eq!(dump(&reader), before, "after {steps} steps");
        goes_on(&reader);
    }
    assert!(panics > 20, "{panics}");
    goes_on(&reader);
    assert_eq!(reader.cursor().unwrap().get(&author.site().unwrap()), author.db_version().unwrap());
    let mut other = author;
    other.merge(&changes_after(&reader, DbVersion::ZERO), &MergeProgress::default()).unwrap();
    assert_eq!(rows(&reader), rows(&other));
}

#[test]
fn a_large_merge_that_panics_leaves_triggers_on() {
    let author = open();
    let fill = "WITH RECURSIVE s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s WHERE n < 800)
                INSERT INTO todo SELECT printf('old-%02d', n), 'x', n FROM s";
    author.connection().execute_batch(fill).unwrap();
    let changes = changes_after(&author, DbVersion::ZERO);
    let mut reader = open();
    let before = dump(&reader);
    let mut panics = 0;
    for steps in (0..).step_by(13) {
        let (result, has_panicked) = with_panic_after(steps, || reader.merge(&changes, &MergeProgress::default()));
        if !has_panicked {
            result.expect("no panic").unwrap();
            break;
        }
        panics += 1;
        assert!(!matches!(result, Ok(Ok(_))));
        assert_eq!(dump(&reader), before, "after {steps} steps");
        // Its trigger fires: what is written is recorded.
        assert_eq!(recorded_by(&reader, "INSERT INTO todo VALUES ('own', 'x', 1)"), 2);
    }
    assert!(panics > 5, "{panics}");
    assert_eq!(rows(&reader), rows(&author));
    goes_on(&reader);
}
