//! Rows that lie beside each other are read without the version index: the changes must be the same, wherever a run begins
//! and ends, and no value may be read that is not sent.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use litemesh_engine::proto::{Change, Column, Cursor, DbVersion, SiteId};
use litemesh_engine::rusqlite::trace::{TraceEvent, TraceEventCodes};
use litemesh_engine::rusqlite::{self, Connection, StatementStatus};
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits, SiteBounds};
use litemesh_testkit::quote;
use support::{ask, attach, for_seeds, identity, merge, select_changes};

/// A table: its name, its cells, and what creates it.
type Shape = (&'static str, &'static [&'static str], &'static str);

/// Every kind of key, names on both sides of `-1`, no cells, and columns that hide the rowid.
const SHAPES: [Shape; 8] = [
    ("by_text", &["title", "done"], "CREATE TABLE by_text (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INT)"),
    ("by_number", &["a"], "CREATE TABLE by_number (id INTEGER PRIMARY KEY NOT NULL, a)"),
    ("bare", &["a", "b"], "CREATE TABLE bare (id TEXT PRIMARY KEY NOT NULL, a, b) WITHOUT ROWID"),
    ("keys_only", &[], "CREATE TABLE keys_only (id TEXT PRIMARY KEY NOT NULL)"),
    ("odd", &["!a", "a", "-"], "CREATE TABLE odd (id TEXT PRIMARY KEY NOT NULL, a, \"!a\", \"-\")"),
    ("hidden", &["rowid", "v"], "CREATE TABLE hidden (id TEXT PRIMARY KEY NOT NULL, rowid, v)"),
    (
        "generated",
        &["v"],
        "CREATE TABLE generated (id TEXT PRIMARY KEY NOT NULL, rowid TEXT AS (NULL), v DEFAULT 'x')",
    ),
    (
        "wide",
        &["c0", "c1", "c31", "c32", "c33", "c39"],
        "CREATE TABLE wide (id TEXT PRIMARY KEY NOT NULL, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14,
         c15, c16, c17, c18, c19, c20, c21, c22, c23, c24, c25, c26, c27, c28, c29, c30, c31, c32, c33, c34, c35, c36, c37,
         c38, c39)",
    ),
];

fn engine() -> Engine {
    let engine = attach(Connection::open_in_memory().unwrap());
    for (name, _, create) in SHAPES {
        engine.connection().execute_batch(create).unwrap();
        engine.replicate(name).unwrap();
    }
    engine
}

fn few(changes_max: usize) -> PageLimits {
    PageLimits { changes_max, bytes_max: usize::MAX, stretch: 1 }
}

fn set(changes: &[Change]) -> BTreeSet<String> {
    changes.iter().map(identity).collect()
}

fn read_pages(engine: &Engine, place: &LocalPlace, limits: PageLimits) -> Vec<Change> {
    let (mut changes, mut place) = (Vec::new(), place.clone());
    loop {
        let page = engine.read_local(&place, &LocalFilter::default(), limits).unwrap();
        changes.extend(page.changes);
        if page.complete.is_some() {
            return changes;
        }
        place = page.place;
    }
}

fn read_all(engine: &Engine) -> Vec<Change> {
    read_pages(engine, &LocalPlace::default(), few(usize::MAX))
}

/// One statement on many rows, or on few.
fn write(rng: &mut Rng, engine: &Engine) {
    let (name, cells, _) = SHAPES[rng.usize(..SHAPES.len())];
    let (table, from) = (quote(name), rng.i64(0..60));
    let until = from + [1, 3, 20, 60][rng.usize(..4)];
    let rows = format!("WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {until})");
    // Every second row, or all of them; a number, or what is no number.
    let (step, key) = (rng.i64(1..3), if name == "by_number" { "i" } else { "printf('%04d', i)" });
    let of_step = format!("CAST(id AS INTEGER) BETWEEN {from} AND {until} AND CAST(id AS INTEGER) % {step} = 0");
    let names: Vec<_> = cells.iter().map(|cell| quote(cell)).collect();
    let sql = match rng.u8(..9) {
        // Each row in a transaction of its own.
        8 => {
            let columns: String = names.iter().map(|name| format!(", {name}")).collect();
            let insert = |row: i64| {
                let values = names.iter().map(|_| format!(", {row}")).collect::<String>();
                let key = if name == "by_number" { row.to_string() } else { format!("'{row:04}'") };
                format!("INSERT OR IGNORE INTO {table} (id{columns}) VALUES ({key}{values});")
            };
            (from..=until).map(insert).collect()
        }
        0..4 => {
            let columns: String = names.iter().map(|name| format!(", {name}")).collect();
            let values: String = names.iter().map(|_| format!(", i * {}", rng.i64(1..100))).collect();
            // Keys in descending order: then the rowids run the other way where the rows were there before.
            let order = if rng.bool() { "" } else { "ORDER BY i DESC" };
            format!(
                "INSERT OR IGNORE INTO {table} (id{columns}) {rows} SELECT {key}{values} FROM n WHERE i % {step} = 0 {order}"
            )
        }
        4 => format!("DELETE FROM {table} WHERE {of_step}"),
        // Past the triggers: clocks without a row, a column and a clock that nobody has.
        5 if rng.u8(..4) == 0 => format!(
            "SELECT crsql_internal_sync_bit(1); DELETE FROM {table} WHERE id = (SELECT max(id) FROM {table});
             SELECT crsql_internal_sync_bit(0);
             INSERT OR IGNORE INTO \"{name}__crsql_clock\" SELECT max(__crsql_key), 'gone', 1, 1, 0, 9
             FROM \"{name}__crsql_pks\" WHERE true HAVING count(*) > 0"
        ),
        _ if names.is_empty() => format!("UPDATE OR IGNORE {table} SET id = id || 'x' WHERE {of_step}"),
        _ => {
            let cell = &names[rng.usize(..names.len())];
            format!("UPDATE {table} SET {cell} = {} WHERE {of_step}", rng.i64(1..1000))
        }
    };
    engine.connection().execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn busy_engine(rng: &mut Rng) -> Engine {
    let mut hub = engine();
    for _ in 0..3 {
        let mut other = engine();
        if rng.bool() {
            merge(&mut other, &read_all(&hub));
        }
        for _ in 0..12 {
            write(rng, &hub);
            write(rng, &other);
        }
        merge(&mut hub, &read_all(&other));
    }
    if rng.bool() {
        hub.connection().execute_batch("ANALYZE").unwrap();
    }
    hub
}

/// `crsql_changes` reads by other statements; cells without a row or a column are no changes here (VT-2, VT-5).
fn changes_by_sql(engine: &Engine) -> Vec<Change> {
    let mut changes = select_changes(engine.connection(), "");
    changes.retain(|change| change.column != Column::Row || change.col_version.get() == change.causal_length.get());
    changes
}

#[test]
fn pages_of_every_size_give_the_same_changes_as_one() {
    for_seeds(0x40_0d, 10, |rng| {
        let engine = busy_engine(rng);
        let all = read_all(&engine);
        let by_sql = changes_by_sql(&engine);
        let missing: Vec<_> = set(&by_sql).difference(&set(&all)).cloned().collect();
        // A cell whose row is gone is a `-1` there, now and then one like the sentinel.
        assert!(set(&all).is_subset(&set(&by_sql)) && missing.iter().all(|of| of.contains("-1")), "{missing:?}");
        for size in [1, 2, 3, 7, 25, 100, rng.usize(1..300)] {
            let place = LocalPlace::default();
            assert_eq!(read_pages(&engine, &place, few(size)), all, "pages of {size}");
        }
        // From each version on.
        for version in 0..engine.db_version().unwrap().get() {
            let place = LocalPlace::after(DbVersion::new(version));
            let rest = read_pages(&engine, &place, few(usize::MAX));
            assert_eq!(rest, all[all.len() - rest.len()..], "after {version}");
        }
    });
}

#[test]
fn plans_by_site_give_the_same_changes() {
    for_seeds(0x40_51, 8, |rng| {
        let engine = busy_engine(rng);
        let all = read_all(&engine);
        let until: Cursor = all.iter().map(|change| (change.site, DbVersion::new(i64::MAX))).collect();
        for size in [usize::MAX, 7, 1] {
            let bounds = SiteBounds { until: until.clone(), ..SiteBounds::default() };
            let mut plan = engine.plan_sites(&bounds).unwrap();
            let (mut changes, mut more) = (Vec::new(), true);
            while more {
                let (page, goes_on) = engine.read_sites(&mut plan, few(size)).unwrap();
                changes.extend(page);
                more = goes_on;
            }
            assert_eq!(set(&changes), set(&all), "pages of {size}");
            assert_eq!(changes.len(), all.len(), "pages of {size}");
        }
    });
}

/// What `crsql_changes` must give, by one plain query: all columns of each change as text.
fn changes_as_stored(engine: &Engine) -> Vec<String> {
    let mut changes = Vec::new();
    for (name, cells, _) in SHAPES {
        let all: Vec<String> = if name == "wide" {
            (0..40).map(|n| format!("c{n}")).collect()
        } else {
            cells.iter().map(|cell| (*cell).to_owned()).collect()
        };
        let case: String = all.iter().map(|cell| format!(" WHEN '{cell}' THEN b.{}", quote(cell))).collect();
        let names: String = all.iter().map(|cell| format!(", '{cell}'")).collect();
        let sql = format!(
            "SELECT '{name}', hex(crsql_pack_columns(p.id)), iif(b.id IS NULL, '-1', c.col_name),
             quote(iif(c.col_name = '-1', NULL, CASE c.col_name WHEN '' THEN 0 {case} END)), c.col_version, c.db_version,
             hex(s.site_id),
             coalesce((SELECT l.col_version FROM {name}__crsql_clock l WHERE l.key = c.key AND l.col_name = '-1'), 1), c.seq
             FROM {name}__crsql_clock c JOIN {name}__crsql_pks p ON p.__crsql_key = c.key
             JOIN crsql_site_id s ON s.ordinal = c.site_id LEFT JOIN {name} b ON b.id = p.id
             WHERE c.col_name IN ('-1'{names})"
        );
        changes.extend(lines(engine, &sql));
    }
    changes.sort();
    changes
}

fn lines(engine: &Engine, sql: &str) -> Vec<String> {
    let mut statement = engine.connection().prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let columns = statement.column_count();
    let line = |row: &rusqlite::Row<'_>| {
        let text = |column| format!("{:?}", row.get_ref(column).unwrap());
        Ok((0..columns).map(text).collect::<Vec<_>>().join(" "))
    };
    statement.query_map([], line).unwrap().map(Result::unwrap).collect()
}

const COLUMNS: &str = "\"table\", hex(pk), cid, quote(val), col_version, db_version, hex(site_id), cl, seq";

#[test]
fn crsql_changes_gives_every_change_in_its_order() {
    for_seeds(0x40_9e, 15, |rng| {
        let engine = busy_engine(rng);
        let mut changes = lines(&engine, &format!("SELECT {COLUMNS} FROM crsql_changes"));
        let places: Vec<(i64, i64)> = {
            let mut statement = engine.connection().prepare("SELECT db_version, seq FROM crsql_changes").unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            rows.map(Result::unwrap).collect()
        };
        assert!(places.is_sorted(), "VT-9");
        assert_eq!(places.len(), changes.len());
        changes.sort();
        assert_eq!(changes, changes_as_stored(&engine));
        // Columns in any order and number, and several cursors at once.
        let count: i64 = ask(engine.connection(), "SELECT count(*) FROM crsql_changes");
        assert_eq!(usize::try_from(count).unwrap(), changes.len());
        let twice = "SELECT count(*) FROM crsql_changes a JOIN crsql_changes b
             ON a.db_version = b.db_version AND a.\"table\" = b.\"table\" AND a.pk = b.pk AND a.seq = b.seq
             AND a.cl = b.cl AND a.val IS b.val AND a.site_id = b.site_id WHERE a.cid = b.cid AND a.rowid = b.rowid";
        if changes.len() < 1500 {
            assert!(ask::<i64>(engine.connection(), twice) >= count);
        }
    });
}

/// A row under the cursor stays what it was, and the next one is found, whatever the same connection writes in between.
#[test]
fn crsql_changes_goes_on_while_rows_are_written() {
    let (engine, _) = many_rows();
    let connection = engine.connection();
    let mut statement = connection.prepare(&format!("SELECT val, cid, pk, {COLUMNS} FROM crsql_changes")).unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut count = 0;
    while let Some(row) = rows.next().unwrap() {
        count += 1;
        let before = format!("{:?}", row.get_ref(0).unwrap());
        match count % 5 {
            0 => drop(connection.execute("UPDATE by_text SET title = 'new' WHERE rowid = ?1", [count / 2]).unwrap()),
            1 => drop(connection.execute("DELETE FROM by_text WHERE rowid = ?1", [count]).unwrap()),
            2 => drop(connection.execute("INSERT INTO by_text VALUES (?1, 'more', 1)", [format!("x{count}")]).unwrap()),
            3 => connection.execute_batch("BEGIN; DELETE FROM by_text; ROLLBACK").unwrap(),
            _ => {}
        }
        assert_eq!(format!("{:?}", row.get_ref(0).unwrap()), before);
    }
    assert_eq!(count, 400, "as many as there were when it began");
}

/// A clock that is newer than the beginning must not come with a value that is older.
#[test]
fn crsql_changes_gives_no_new_clock_with_an_old_value() {
    let (engine, filled) = many_rows();
    let connection = engine.connection();
    // The cursor looks one version ahead: there must be one more for it to see what is written meanwhile.
    let newer =
        "UPDATE by_text SET done = -3 WHERE rowid = 3 OR rowid = 4; UPDATE by_text SET done = -5 WHERE rowid = 5";
    connection.execute_batch(newer).unwrap();
    let sql = "SELECT val, db_version FROM crsql_changes WHERE cid = 'done'";
    let mut statement = connection.prepare(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut values = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let (value, version): (i64, i64) = (row.get(0).unwrap(), row.get(1).unwrap());
        if version > filled.get() {
            values.push(value);
            if values.len() == 1 {
                connection.execute("UPDATE by_text SET done = -30 WHERE rowid = 3", []).unwrap();
            }
        }
    }
    assert_eq!(values, [-3, -3, -5, -30]);
}

/// Two hundred rows, of which every eleventh is a changeset of its own later on.
fn many_rows() -> (Engine, DbVersion) {
    let engine = engine();
    engine
        .connection()
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
             INSERT INTO by_text SELECT printf('%04d', i), 'title', i FROM n",
        )
        .unwrap();
    let filled = engine.db_version().unwrap();
    (engine, filled)
}

#[test]
fn echoes_and_covered_changes_are_left_out_of_a_run() {
    let (other, filled) = many_rows();
    let mut hub = engine();
    let echo = hub.merge(&read_all(&other), &MergeProgress::default()).unwrap().local_versions.unwrap();
    hub.connection().execute_batch("INSERT INTO by_number VALUES (1, 1)").unwrap();
    let count = |covered: &[(SiteId, DbVersion)], echoes: &[(DbVersion, DbVersion)]| {
        let filter = LocalFilter { covered: &covered.iter().copied().collect(), echoes, ..LocalFilter::default() };
        let page = hub.read_local(&LocalPlace::default(), &filter, few(usize::MAX)).unwrap();
        page.changes.len()
    };
    assert_eq!(count(&[], &[]), 401);
    assert_eq!(count(&[], &[echo]), 1);
    assert_eq!(count(&[(other.site().unwrap(), filled)], &[]), 1);
    assert_eq!(count(&[(hub.site().unwrap(), hub.db_version().unwrap())], &[echo]), 0);
}

/// Rows that were whole once, and of which single cells, and single rows, are newer by now.
#[test]
fn rows_of_a_run_that_changed_since_are_read_in_part() {
    let (engine, filled) = many_rows();
    for row in (0..200).step_by(11) {
        let cell = if row % 2 == 0 { "title" } else { "done" };
        engine.connection().execute(&format!("UPDATE by_text SET {cell} = 'new' WHERE rowid = {row} + 1"), []).unwrap();
    }
    engine.connection().execute_batch("DELETE FROM by_text WHERE rowid BETWEEN 60 AND 75").unwrap();
    let all = read_all(&engine);
    assert_eq!(set(&all), set(&changes_by_sql(&engine)));
    let of_filled = all.iter().filter(|change| change.db_version == filled).count();
    let newer = (0..200).step_by(11).filter(|row| !(60..=75).contains(&(row + 1))).count();
    assert_eq!(of_filled, 2 * (200 - 16) - newer);
    for size in 1..30 {
        assert_eq!(read_pages(&engine, &LocalPlace::default(), few(size)), all, "pages of {size}");
    }
}

/// Small transactions that wrote one row after another; then the rows come in the order of versions, with others in between.
#[test]
fn rows_of_small_transactions_are_read_in_the_order_of_versions() {
    let engine = engine();
    let insert = |from: i64, until: i64| {
        for row in from..until {
            let sql = format!("INSERT INTO by_text VALUES ('{row:04}', 'title', {row})");
            engine.connection().execute_batch(&sql).unwrap();
            if row % 13 == 0 {
                engine.connection().execute_batch(&format!("INSERT INTO by_number VALUES ({row}, 0)")).unwrap();
            }
            if row % 17 == 0 {
                engine.connection().execute_batch("UPDATE by_text SET done = done + 1 WHERE id = '0003'").unwrap();
            }
            if row % 29 == 0 {
                let late = format!("BEGIN; UPDATE by_text SET done = -1 WHERE id = '{:04}';", row - 3);
                let insert = format!("INSERT INTO by_text VALUES ('x{row}', 'a', 1), ('y{row}', 'b', 2); COMMIT");
                engine.connection().execute_batch(&(late + &insert)).unwrap();
            }
        }
    };
    insert(0, 120);
    engine.connection().execute_batch("DELETE FROM by_text WHERE rowid % 19 = 0").unwrap();
    insert(120, 200);
    let all = read_all(&engine);
    assert!(all.is_sorted_by_key(|change| change.db_version));
    assert_eq!(set(&all), set(&changes_by_sql(&engine)));
    assert_eq!(set(&all).len(), all.len(), "nothing twice");
    for size in 1..40 {
        assert_eq!(read_pages(&engine, &LocalPlace::default(), few(size)), all, "pages of {size}");
    }
}

/// Bytes that this thread has read from files so far.
#[cfg(target_os = "linux")]
fn bytes_read() -> u64 {
    let counts = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// What is stored beside a change costs nothing: by the index, in a run that begins with a page, and in a run that is found.
#[cfg(target_os = "linux")]
#[test]
fn a_large_value_beside_a_small_change_is_not_read() {
    const ROWS: usize = 40;
    const BLOB: usize = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.db");
    {
        let engine = Engine::open(&path).unwrap();
        let create = "CREATE TABLE files (id TEXT PRIMARY KEY NOT NULL, is_seen INT, bytes BLOB)";
        engine.connection().execute_batch(create).unwrap();
        engine.replicate("files").unwrap();
        engine
            .connection()
            .execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
                 INSERT INTO files SELECT printf('%04d', i), 0, zeroblob({BLOB}) FROM n;
                 UPDATE files SET is_seen = 1"
            ))
            .unwrap();
    }
    for size in [usize::MAX, 3] {
        let engine = Engine::open(&path).unwrap();
        let place = LocalPlace::after(DbVersion::new(1));
        let before = bytes_read();
        let changes = read_pages(&engine, &place, few(size));
        assert_eq!(changes.len(), ROWS);
        assert!(changes.iter().all(|change| matches!(&change.column, Column::Cell(name) if &**name == "is_seen")));
        // Each row has the first bytes of its BLOB beside it, and so a page for itself.
        let read = bytes_read() - before;
        assert!(read < (ROWS * BLOB / 10) as u64, "{read} bytes were read for {ROWS} small changes");
    }
    let engine = Engine::open(&path).unwrap();
    let before = bytes_read();
    assert_eq!(read_all(&engine).len(), 2 * ROWS);
    assert!(bytes_read() - before > (ROWS * BLOB) as u64, "the count counts");
}

/// A run must end where rows of other versions follow, not at the end of the table.
#[test]
fn a_run_ends_with_its_rows() {
    let engine = engine();
    let connection = engine.connection();
    connection
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50)
             INSERT INTO by_text SELECT printf('%06d', i), 'first', i FROM n;
             BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
             INSERT INTO by_text SELECT printf('%06d', i), 'second', i FROM n;
             UPDATE by_text SET done = -1 WHERE title = 'first';
             COMMIT;
             UPDATE by_text SET done = -2 WHERE title = 'first' AND id % 2 = 0",
        )
        .unwrap();
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM by_text__crsql_clock WHERE db_version = 1"), 50);
    let (mut changes, mut place, mut pages) = (Vec::new(), LocalPlace::default(), 0);
    loop {
        let page = engine.read_local(&place, &LocalFilter::default(), few(20_000)).unwrap();
        changes.extend(page.changes);
        pages += 1;
        if page.complete.is_some() {
            break;
        }
        place = page.place;
    }
    assert_eq!(changes.len(), 50 + 2 * 59_001 + 25 + 25);
    assert_eq!(pages, 6, "as many as the changes fill: no page was cut short for clocks that it passed");
    assert_eq!(set(&changes), set(&changes_by_sql(&engine)));
}

/// What SQLite has done so far for a connection, in instructions of its virtual machine.
#[derive(Clone, Default)]
struct Steps(Arc<Mutex<(HashMap<String, i32>, i64)>>);

impl Steps {
    fn of(engine: &mut Engine) -> Self {
        let steps = Self::default();
        let counted = steps.clone();
        let count = move |event: TraceEvent<'_>| {
            let TraceEvent::Profile(statement, _) = event else { return };
            // A statement that is run again counts on.
            let (mut guard, now) = (counted.0.lock().unwrap(), statement.get_status(StatementStatus::VmStep));
            let before = guard.0.insert(statement.sql().into_owned(), now).filter(|before| *before <= now);
            guard.1 += i64::from(now - before.unwrap_or(0));
        };
        engine.connection_mut().trace_v2(TraceEventCodes::SQLITE_TRACE_PROFILE, Some(count)).unwrap();
        steps
    }

    fn take(&self) -> i64 {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

/// `known-failures.md` D2: the original reads everything before a page for each page, and sorts it.
#[test]
fn a_page_costs_what_it_holds_wherever_it_lies() {
    const PAGE: usize = 500;
    for rows_of_a_transaction in [1, 20_000] {
        let mut engine = engine();
        let steps = Steps::of(&mut engine);
        for first in (0..20_000).step_by(rows_of_a_transaction) {
            engine
                .connection()
                .execute_batch(&format!(
                    "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {first} + {rows_of_a_transaction})
                     INSERT INTO by_number SELECT i, 'x' FROM n"
                ))
                .unwrap();
        }
        let check = |costs: Vec<i64>, order: &str| {
            assert!(costs.len() >= 40, "{order}: {} pages", costs.len());
            // The first one prepares statements, the last ones may be short.
            let (early, late) = (costs[1..5].iter().max().unwrap(), costs[costs.len() - 5..].iter().max().unwrap());
            assert!(*early > 0 && 2 * early > *late, "{order}, {rows_of_a_transaction} rows a transaction: {costs:?}");
        };
        steps.take();
        let (mut costs, mut place) = (Vec::new(), LocalPlace::default());
        loop {
            let page = engine.read_local(&place, &LocalFilter::default(), few(PAGE)).unwrap();
            costs.push(steps.take());
            if page.complete.is_some() {
                break;
            }
            place = page.place;
        }
        check(costs, "by version");
        // For peers of the original.
        let until: Cursor = [(engine.site().unwrap(), DbVersion::new(i64::MAX))].into_iter().collect();
        let mut plan = engine.plan_sites(&SiteBounds { until, ..SiteBounds::default() }).unwrap();
        steps.take();
        let (mut costs, mut more) = (Vec::new(), true);
        while more {
            more = engine.read_sites(&mut plan, few(PAGE)).unwrap().1;
            costs.push(steps.take());
        }
        check(costs, "by site");
    }
}

/// `known-failures.md` D2: what is written meanwhile moves the pages of the original.
#[test]
fn writes_between_two_pages_repeat_nothing_and_hide_nothing() {
    let engine = engine();
    let insert = |first: i64, until: i64| {
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {until})
             INSERT INTO by_number SELECT i, 'x' FROM n"
        );
        engine.connection().execute_batch(&sql).unwrap();
    };
    insert(1000, 1300);
    insert(2000, 2300);
    let (mut changes, mut place) = (Vec::new(), LocalPlace::default());
    for number in 0.. {
        let page = engine.read_local(&place, &LocalFilter::default(), few(50)).unwrap();
        changes.extend(page.changes);
        if page.complete.is_some() {
            break;
        }
        place = page.place;
        if number < 5 {
            // Below, between and above the keys that are read; and what was read moves behind everything else.
            insert(10 * number, 10 * number + 3);
            insert(1400 + 10 * number, 1400 + 10 * number + 3);
            insert(3000 + 10 * number, 3000 + 10 * number + 3);
            let update = format!("UPDATE by_number SET a = 'y' WHERE id = {}", 1000 + 7 * number);
            engine.connection().execute_batch(&update).unwrap();
        }
    }
    assert_eq!(set(&changes).len(), changes.len(), "nothing twice");
    let missing: Vec<String> = set(&read_all(&engine)).difference(&set(&changes)).cloned().collect();
    assert!(missing.is_empty() && changes.len() == 600 + 45 + 5, "{} changes, without {missing:?}", changes.len());
}
