//! Files of `@app/sync`: what its history tells is taken over, and both of its tables are kept while they are there.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use fastrand::Rng;
use litemesh_engine::proto::{
    CausalLength, Change, ColVersion, Column, Cursor, DbVersion, PackedKey, Seq, SiteId, Value,
};
use litemesh_engine::rusqlite::types::Value as SqlValue;
use litemesh_engine::rusqlite::{Connection, params_from_iter};
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits, load};
use litemesh_testkit::{Statement, schemas};
use support::{
    INSERT, Parameter, ask, assert_origins_complete, create, dump, engine, execute, for_seeds, merge, merge_by_sql,
    select_changes, value,
};

/// As the original's migrations leave them (`wire-protocol.md` 2).
const ORIGINAL_TABLES: &str = "
    CREATE TABLE crsql_change_history (
        id integer primary key autoincrement,
        `table` text not null, pk blob not null, cid text not null, val blob,
        col_version int not null, db_version not null, site_id blob not null,
        cl int not null, seq int not null);
    CREATE INDEX idx_crsql_change_history_site_db_version ON crsql_change_history(site_id, db_version);
    CREATE TABLE all_peers (site_id blob not null primary key, db_version int not null);";

const SCHEMA: &str = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title, done);
    CREATE TABLE tag (name TEXT PRIMARY KEY NOT NULL);
    SELECT crsql_as_crr('todo'); SELECT crsql_as_crr('tag');";

/// The original on a file of its own.
struct Original {
    _folder: tempfile::TempDir,
    path: PathBuf,
    cursor: Cursor,
}

impl Original {
    fn new(schema: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let original = Self { path: folder.path().join("app.db"), _folder: folder, cursor: Cursor::new() };
        let connection = original.connect();
        connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        connection.execute_batch(schema).unwrap();
        connection.execute_batch(ORIGINAL_TABLES).unwrap();
        forget_origins(&connection);
        original
    }

    /// The engine stands in for CRSqlite, which reads and writes the same tables.
    fn connect(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        load(&connection).unwrap();
        connection
    }

    fn write(&self, sql: &str) {
        let connection = self.connect();
        connection.execute_batch(sql).unwrap();
        forget_origins(&connection);
    }

    /// 4.3: one transaction of changes, then history; another one of the cursor.
    fn receive(&mut self, changes: &[Change]) {
        let connection = self.connect();
        connection.execute_batch("BEGIN").unwrap();
        merge_by_sql(&connection, changes);
        remember(&connection, changes);
        connection.execute_batch("COMMIT; BEGIN; DELETE FROM all_peers").unwrap();
        self.cursor.update(changes.iter().map(|change| (change.site, change.db_version)));
        for (site, version) in self.cursor.iter() {
            connection.execute("INSERT INTO all_peers VALUES (?1, ?2)", (site.as_bytes(), version.get())).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
        forget_origins(&connection);
    }

    fn open(&self) -> Engine {
        Engine::open(&self.path).unwrap()
    }
}

/// What was merged since an `Engine` had the file has no origin: CRSqlite keeps none.
fn forget_origins(connection: &Connection) {
    let complete: i64 = connection
        .query_row("SELECT value FROM litemesh_meta WHERE key = 'origins_complete_until'", [], |row| row.get(0))
        .unwrap_or_default();
    connection.execute("DELETE FROM litemesh_origin WHERE local_version > ?1", [complete]).unwrap();
}

fn remember(connection: &Connection, changes: &[Change]) {
    let insert = INSERT.replace(
        "crsql_changes",
        "crsql_change_history (\"table\", pk, cid, val, col_version, db_version, site_id, cl, seq)",
    );
    let mut insert = connection.prepare(&insert).unwrap();
    for Change { table, key, column, value, col_version, db_version, site, causal_length, seq } in changes {
        let (column, value) = (column.as_str(), Parameter(value));
        let (versions, site) = ((col_version.get(), db_version.get()), site.as_bytes());
        let counts = (causal_length.get(), seq.get());
        insert
            .execute((&**table, key.as_bytes(), column, value, versions.0, versions.1, site, counts.0, counts.1))
            .unwrap();
    }
}

/// 4.4: what the original answers to a remote that holds `cursor`.
fn answer(connection: &Connection, own: &Cursor, cursor: &Cursor) -> Vec<Change> {
    let mut sites: BTreeMap<SiteId, i64> = own.iter().map(|(site, _)| (*site, 0)).collect();
    sites.extend(cursor.iter().map(|(site, version)| (*site, version.get())));
    let terms = vec!["(site_id = ? AND db_version > ?)"; sites.len()].join(" OR ");
    let sql = format!("SELECT * FROM crsql_change_history WHERE {terms} ORDER BY site_id, db_version");
    let binds = sites.iter().flat_map(|(site, version)| [SqlValue::Blob(site.as_bytes().into()), (*version).into()]);
    history(connection, &sql, params_from_iter(binds))
}

fn history(connection: &Connection, sql: &str, parameters: impl litemesh_engine::rusqlite::Params) -> Vec<Change> {
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map(parameters, |row| {
        Ok(Change {
            table: row.get::<_, String>("table")?.into(),
            key: PackedKey::from_bytes(row.get::<_, Vec<u8>>("pk")?),
            column: Column::from(row.get::<_, String>("cid")?.as_str()),
            value: value(row.get_ref("val")?),
            col_version: ColVersion::new(row.get("col_version")?),
            db_version: DbVersion::new(row.get("db_version")?),
            site: SiteId::from_slice(&row.get::<_, Vec<u8>>("site_id")?).unwrap(),
            causal_length: CausalLength::new(row.get("cl")?),
            seq: Seq::new(row.get("seq")?),
        })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn all_history(connection: &Connection) -> Vec<Change> {
    history(connection, "SELECT * FROM crsql_change_history ORDER BY id", [])
}

fn all_peers(connection: &Connection) -> Cursor {
    let mut statement = connection.prepare("SELECT site_id, db_version FROM all_peers").unwrap();
    let rows = statement.query_map([], |row| {
        Ok((SiteId::from_slice(&row.get::<_, Vec<u8>>(0)?).unwrap(), DbVersion::new(row.get(1)?)))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// An author with the schema above, which has written these transactions.
fn author(transactions: &[&str]) -> Engine {
    let engine = engine(&[]);
    engine.connection().execute_batch(SCHEMA).unwrap();
    for sql in transactions {
        engine.connection().execute_batch(&format!("BEGIN; {sql}; COMMIT")).unwrap();
    }
    engine
}

/// `local version: author's version` of every origin, 0 where it is not known.
fn origins(engine: &Engine) -> Vec<(i64, i64)> {
    let mut statement =
        engine.connection().prepare("SELECT local_version, version FROM litemesh_origin ORDER BY 1, 2").unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

fn versions(engine: &Engine) -> Vec<i64> {
    origins(engine).into_iter().map(|(_, version)| version).collect()
}

/// What a change says, in an order that does not matter.
fn set(changes: &[Change]) -> BTreeSet<String> {
    changes.iter().map(|change| format!("{change:?}")).collect()
}

fn by_version(engine: &Engine) -> Vec<Vec<Change>> {
    engine.changes_since(&Cursor::new()).map(|changeset| changeset.unwrap().changes).collect()
}

fn claims(cursor: &[(SiteId, i64)]) -> MergeProgress {
    let cursor = cursor.iter().map(|(site, version)| (*site, DbVersion::new(*version))).collect();
    MergeProgress { cursor, ..MergeProgress::default() }
}

#[test]
fn what_the_original_merged_is_read_under_its_authors_versions() {
    let author = author(&[
        "INSERT INTO todo VALUES ('a', 'one', 0), ('b', 'gone', 0)",
        "UPDATE todo SET title = 'two' WHERE id = 'a'; INSERT INTO tag VALUES ('x')",
        "DELETE FROM todo WHERE id = 'b'",
        "INSERT INTO todo VALUES ('b', 'back', 1)",
    ]);
    let mut original = Original::new(SCHEMA);
    // So that local versions are others than the author's.
    original.write("INSERT INTO todo VALUES ('own', 1, 2); UPDATE todo SET done = 3; UPDATE todo SET done = 4");
    for changes in by_version(&author) {
        original.receive(&changes);
    }
    let engine = original.open();
    assert_eq!(origins(&engine), [(4, 1), (5, 2), (6, 4)]);
    assert_origins_complete(&engine);
    let of_author = |changes: Vec<Change>| -> Vec<Change> {
        changes.into_iter().filter(|change| change.site == author.site().unwrap()).collect()
    };
    assert_eq!(set(&of_author(dump(&engine))), set(&dump(&author)));

    // Who holds what the author wrote is sent nothing of it.
    let covered = author.cursor().unwrap();
    let all = PageLimits { changes_max: usize::MAX, bytes_max: usize::MAX, stretch: 1 };
    let read = |filter: &LocalFilter<'_>| engine.read_local(&LocalPlace::default(), filter, all).unwrap().changes;
    assert_eq!(of_author(read(&LocalFilter { covered: &covered, ..LocalFilter::default() })), []);
    assert_eq!(set(&of_author(read(&LocalFilter::default()))), set(&dump(&author)));
}

#[test]
fn the_originals_cursor_is_not_taken_for_ours() {
    let author = author(&["INSERT INTO tag VALUES ('x')", "INSERT INTO tag VALUES ('y')"]);
    let mut original = Original::new(SCHEMA);
    original.receive(&by_version(&author)[1]);
    assert_eq!(all_peers(&original.connect()), author.cursor().unwrap(), "though version 1 has not come");
    let engine = original.open();
    assert_eq!(engine.cursor().unwrap().get(&author.site().unwrap()), DbVersion::ZERO);
    assert_eq!(versions(&engine), [2]);
}

#[test]
fn of_several_versions_under_one_stamp_the_highest_counts() {
    let author = author(&["INSERT INTO tag VALUES ('x')", "INSERT INTO todo VALUES ('a', 1, 2)"]);
    let other = self::author(&["INSERT INTO tag VALUES ('z')"]);
    let mut original = Original::new(SCHEMA);
    // So that all of the batch gets one local version.
    original.write("INSERT INTO tag VALUES ('own'); INSERT INTO tag VALUES ('own too')");
    original.receive(&[dump(&author), dump(&other)].concat());
    assert_eq!(origins(&original.open()), [(3, 1), (3, 2)], "one for each site");
}

#[test]
fn a_change_that_the_history_does_not_have_leaves_its_version_unknown() {
    let author = author(&[
        "INSERT INTO tag VALUES ('x')",
        "INSERT INTO todo VALUES ('a', 1, 2); INSERT INTO tag VALUES ('y')",
        "INSERT INTO tag VALUES ('z')",
    ]);
    for lost in [
        "DELETE FROM crsql_change_history WHERE",
        "UPDATE crsql_change_history SET col_version = 2 WHERE",
        "UPDATE crsql_change_history SET cl = 3 WHERE",
        "UPDATE crsql_change_history SET cid = 'other' WHERE",
        "UPDATE crsql_change_history SET pk = x'010b0162' WHERE",
        "UPDATE crsql_change_history SET \"table\" = 'tag' WHERE",
        "UPDATE crsql_change_history SET site_id = x'00112233445566778899aabbccddeeff' WHERE",
        "UPDATE crsql_change_history SET site_id = (SELECT site_id FROM crsql_site_id WHERE ordinal = 0) WHERE",
        // Nobody can have merged that under the local version that it has.
        "UPDATE crsql_change_history SET db_version = 40 WHERE",
        "UPDATE crsql_change_history SET db_version = 0 WHERE",
        "UPDATE crsql_change_history SET db_version = 1.5 WHERE",
        "UPDATE crsql_change_history SET db_version = 'two' WHERE",
        "UPDATE crsql_change_history SET db_version = 9e99 WHERE",
    ] {
        let mut original = Original::new(SCHEMA);
        for changes in by_version(&author) {
            original.receive(&changes);
        }
        original.write(&format!("{lost} cid = 'done'"));
        let engine = original.open();
        assert_eq!(origins(&engine), [(1, 1), (2, 0), (3, 3)], "{lost}");
        assert_origins_complete(&engine);
        // Nothing is lost for that.
        let mut reader = self::author(&[]);
        merge(&mut reader, &dump(&engine));
        assert_eq!(select_changes(reader.connection(), "").len(), select_changes(engine.connection(), "").len());
    }
}

#[test]
fn versions_that_the_originals_binding_made_real_numbers_are_read() {
    let author = author(&["SELECT crsql_next_db_version(3000000000); INSERT INTO tag VALUES ('x')"]);
    let mut original = Original::new(SCHEMA);
    original.receive(&dump(&author));
    original.write("UPDATE crsql_change_history SET db_version = CAST(db_version AS REAL)");
    assert_eq!(versions(&original.open()), [author.db_version().unwrap().get()]);
}

#[test]
fn a_change_that_the_history_has_under_two_versions_is_of_unknown_version() {
    // Written once more by an author that was restored from a backup, or sent under a lower number by a hub.
    let author =
        author(&["INSERT INTO tag VALUES ('x')", "INSERT INTO tag VALUES ('y')", "INSERT INTO tag VALUES ('z')"]);
    let changes = by_version(&author);
    let mut lower = changes[1].clone();
    lower[0].db_version = DbVersion::new(1);
    let mut original = Original::new(SCHEMA);
    original.write("INSERT INTO tag VALUES ('own'); INSERT INTO tag VALUES ('own too')");
    original.receive(&lower);
    original.receive(&changes[1]);
    // The same twice under one number is what the original's filters let pass.
    original.receive(&changes[2]);
    original.receive(&changes[2]);
    assert_eq!(origins(&original.open()), [(3, 0), (4, 3)]);
}

#[test]
fn what_was_imported_is_not_imported_again_but_what_came_since_is() {
    let author =
        author(&["INSERT INTO tag VALUES ('x')", "INSERT INTO tag VALUES ('y')", "INSERT INTO tag VALUES ('z')"]);
    let mut original = Original::new(SCHEMA);
    let changes = by_version(&author);
    original.receive(&changes[0]);
    original.write("DELETE FROM crsql_change_history");
    drop(original.open());
    // Too late: what is known of version 1 stays as it is.
    remember(&original.connect(), &changes[0]);
    original.receive(&changes[1]);
    assert_eq!(origins(&original.open()), [(1, 0), (2, 2)]);
    let before: i64 = ask(&original.connect(), "SELECT crsql_db_version() * 1000 + count(*) FROM crsql_change_history");
    let read = |original: &Original| -> String {
        ask(
            &original.connect(),
            "SELECT group_concat(key || '=' || value) FROM (SELECT * FROM litemesh_meta ORDER BY key)",
        )
    };
    let meta = read(&original);
    assert_eq!(origins(&original.open()), [(1, 0), (2, 2)]);
    assert_eq!(read(&original), meta);
    let after: i64 = ask(&original.connect(), "SELECT crsql_db_version() * 1000 + count(*) FROM crsql_change_history");
    assert_eq!(after, before);
    // A history that begins anew has numbers that were read in the old one.
    original.write("DROP TABLE crsql_change_history; DROP TABLE all_peers");
    original.write(ORIGINAL_TABLES);
    original.receive(&changes[2]);
    assert_eq!(origins(&original.open()), [(1, 0), (2, 2), (3, 3)]);
}

#[test]
fn a_history_that_comes_later_settles_what_was_unknown() {
    let author = author(&["INSERT INTO todo VALUES ('a', 1, 2)", "INSERT INTO tag VALUES ('y')"]);
    let mut original = Original::new(SCHEMA);
    original.receive(&by_version(&author)[0]);
    original.write("ALTER TABLE crsql_change_history RENAME TO elsewhere");
    assert_eq!(origins(&original.open()), [(1, 0)]);
    original.write("ALTER TABLE elsewhere RENAME TO crsql_change_history");
    let mut engine = original.open();
    assert_eq!(origins(&engine), [(1, 1)]);
    // What is merged here keeps the origin that it was merged with.
    merge(&mut engine, &by_version(&author)[1]);
    engine.connection().execute_batch("UPDATE crsql_change_history SET db_version = 1").unwrap();
    drop(engine);
    assert_eq!(origins(&original.open()), [(1, 1), (2, 2)]);
}

#[test]
fn imported_origins_are_the_highest_of_their_clocks_or_unknown() {
    // Goal: no label that the author did not give. Method: random writers, merged by the original in random batches; of
    // the history a part is lost; what stands in the clock tables is looked up in all that was ever sent.
    let schemas = schemas();
    let (mut known, mut unknown) = (0, 0);
    for_seeds(0x4157, 30, |rng| {
        let mut original = Original::new("");
        let file = original.open();
        create(&file, &schemas);
        drop(file);
        let mut writers: Vec<Engine> = (0..3).map(|_| engine(&schemas)).collect();
        let mut sent: BTreeMap<String, i64> = BTreeMap::new();
        for _ in 0..rng.usize(3..8) {
            for _ in 0..rng.usize(1..8) {
                execute(rng.choice(&writers).unwrap(), &schemas, &Statement::random(rng, &schemas));
            }
            let (from, to) = (rng.usize(..writers.len()), rng.usize(..writers.len()));
            let changes = dump(&writers[from]);
            merge(&mut writers[to], &changes);
            for change in &changes {
                sent.insert(clock(change), change.db_version.get());
            }
            for batch in cut(rng, &changes) {
                original.receive(batch);
            }
            if rng.u8(..3) == 0 {
                let statement = Statement::random(rng, &schemas).to_sql(&schemas);
                let connection = original.connect();
                let _ = connection.execute(&statement, []);
                forget_origins(&connection);
            }
            if rng.u8(..4) == 0 {
                original.write(&format!("DELETE FROM crsql_change_history WHERE id % 29 = {}", rng.u8(..29)));
            }
            if rng.u8(..4) == 0 {
                assert_origins_complete(&original.open());
            }
        }
        let engine = original.open();
        assert_origins_complete(&engine);
        // By local version and site: the author's versions of its clocks, `None` for one that was never sent.
        let mut stamps: BTreeMap<(i64, SiteId), Vec<Option<i64>>> = BTreeMap::new();
        for change in select_changes(engine.connection(), "") {
            if change.site != engine.site().unwrap() {
                let version = sent.get(&clock(&change)).copied();
                stamps.entry((change.db_version.get(), change.site)).or_default().push(version);
            }
        }
        for ((local, site), versions) in stamps {
            let origin: i64 = engine
                .connection()
                .query_row(
                    "SELECT version FROM litemesh_origin o JOIN crsql_site_id s ON s.ordinal = o.site
                     WHERE local_version = ?1 AND site_id = ?2",
                    (local, site.as_bytes()),
                    |row| row.get(0),
                )
                .unwrap();
            if origin == 0 {
                unknown += 1;
            } else {
                known += 1;
                assert_eq!(Some(origin), versions.iter().flatten().max().copied(), "{local}: {versions:?}");
                assert!(versions.iter().all(Option::is_some), "{local}: {versions:?}");
            }
        }
    });
    assert!(known > 2 * unknown && unknown > 0, "{known} known, {unknown} unknown");
}

fn clock(change: &Change) -> String {
    let Change { table, key, column, col_version, causal_length, site, .. } = change;
    format!("{table} {key:?} {column:?} {col_version:?} {causal_length:?} {site:?}")
}

fn cut<'a>(rng: &mut Rng, changes: &'a [Change]) -> Vec<&'a [Change]> {
    let mut batches = Vec::new();
    let mut rest = changes;
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(rng.usize(1..=rest.len()));
        batches.push(batch);
        rest = after;
    }
    batches
}

/// `known-failures.md` D13: what comes again is in the original's history twice.
#[test]
fn a_merge_writes_its_changes_into_the_history_exactly_and_once() {
    let author = author(&[
        "INSERT INTO todo VALUES ('a', 9007199254740993, 1.0), ('b', x'00ff', -0.0), ('c', NULL, '1' || char(0) || 'x'),
         ('d', x'', '')",
        "INSERT INTO tag VALUES ('x')",
        "DELETE FROM todo WHERE id = 'a'",
    ]);
    let original = Original::new(SCHEMA);
    let mut engine = original.open();
    let changes = dump(&author);
    merge(&mut engine, &changes[..3]);
    merge(&mut engine, &changes);
    merge(&mut engine, &changes);
    assert_eq!(set(&all_history(engine.connection())), set(&changes));
    assert_eq!(all_history(engine.connection()).len(), changes.len());
    let blobs: i64 = ask(
        engine.connection(),
        "SELECT count(*) FROM crsql_change_history WHERE typeof(pk) = 'blob' AND typeof(site_id) = 'blob'
         AND typeof(db_version) = 'integer'",
    );
    assert_eq!(usize::try_from(blobs).unwrap(), changes.len());

    // Twice in one batch, beside one that differs in its value alone; and what loses here is written all the same.
    let lost = Change { value: Value::Real(1.0), ..change("tag", "lost", "title", 1) };
    let lost = Change { table: "todo".into(), ..lost };
    let twice = [lost.clone(), Change { value: Value::Integer(1), ..lost.clone() }, lost.clone()];
    merge(&mut engine, &twice);
    merge(&mut engine, &twice);
    assert_eq!(all_history(engine.connection())[changes.len()..], twice[..2]);
    let typed: String = ask(engine.connection(), "SELECT typeof(title) || title FROM todo WHERE id = 'lost'");
    assert_eq!(typed, "integer1");
}

fn change(table: &str, key: &str, column: &str, db_version: i64) -> Change {
    Change {
        table: table.into(),
        key: PackedKey::pack(&[Value::text(key)]).unwrap(),
        column: Column::from(column),
        value: Value::Null,
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(db_version),
        site: SiteId::from_bytes([7; 16]),
        causal_length: CausalLength::FIRST,
        seq: Seq::new(0),
    }
}

#[test]
fn rows_that_come_back_are_not_taken_for_new_ones() {
    // A change that brings its row back counts twice as won, so that of two changes one can be held already.
    let original = Original::new(SCHEMA);
    let mut engine = original.open();
    let held = change("todo", "held", "title", 5);
    let back = Change { causal_length: CausalLength::new(3), ..change("todo", "back", "title", 5) };
    merge(&mut engine, &[held.clone(), change("todo", "back", "title", 4)]);
    merge(&mut engine, &[held, back]);
    assert_eq!(all_history(engine.connection()).len(), 3);
}

#[test]
fn a_merge_joins_its_progress_into_all_peers() {
    let [one, two, three] = [1, 2, 3].map(|n| SiteId::from_bytes([n; 16]));
    let mut original = Original::new(SCHEMA);
    original.receive(&[Change { site: two, ..change("tag", "x", "-1", 9) }]);
    let mut engine = original.open();
    let own = engine.site().unwrap();
    engine.merge(&[], &claims(&[(one, 4), (two, 5), (own, 99)])).unwrap();
    let held = |engine: &Engine| {
        let held = all_peers(engine.connection());
        [one, two, three, own].map(|site| held.get(&site).get())
    };
    assert_eq!(held(&engine), [4, 9, 0, 0]);
    engine.merge(&[change("tag", "y", "-1", 1)], &claims(&[(two, 10), (three, 1)])).unwrap();
    assert_eq!(held(&engine), [4, 10, 1, 0]);
    // Ours does not follow the original's.
    assert_eq!(engine.cursor().unwrap().get(&two).get(), 10);
}

/// `known-failures.md` D13: with an empty `all_peers` the original asks for everything once more, and keeps it twice.
#[test]
fn without_all_peers_nothing_is_asked_for_again() {
    let sites = [1, 2, 3].map(|n| (SiteId::from_bytes([n; 16]), 4));
    let original = Original::new(SCHEMA);
    let mut engine = original.open();
    let changes = sites.map(|(site, _)| Change { site, ..change("tag", &site.to_string(), "-1", 4) });
    engine.merge(&changes, &claims(&sites)).unwrap();
    engine.connection().execute_batch("DELETE FROM all_peers").unwrap();
    drop(engine);
    let mut engine = original.open();
    for (site, version) in sites {
        assert_eq!(engine.cursor().unwrap().get(&site).get(), version);
    }
    // And where they come all the same.
    engine.merge(&changes, &claims(&sites)).unwrap();
    assert_eq!(all_history(engine.connection()), changes);
}

#[test]
fn a_merge_that_fails_leaves_nothing_in_either_table() {
    let original = Original::new(SCHEMA);
    let mut engine = original.open();
    let progress = claims(&[(SiteId::from_bytes([7; 16]), 3)]);
    let good = change("tag", "x", "-1", 3);
    for broken in ["unknown", "todo"] {
        assert!(engine.merge(&[good.clone(), change(broken, "x", "unknown", 3)], &progress).is_err());
    }
    // And the other way round: what the tables refuse is not merged.
    for table in ["crsql_change_history", "all_peers"] {
        let refuse = "BEGIN SELECT raise(ABORT, 'full'); END";
        engine.connection().execute_batch(&format!("CREATE TRIGGER refuse BEFORE INSERT ON {table} {refuse}")).unwrap();
        assert!(engine.merge(std::slice::from_ref(&good), &progress).is_err());
        engine.connection().execute_batch("DROP TRIGGER refuse").unwrap();
        assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM tag"), 0);
        assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM tag__crsql_clock"), 0);
        assert!(engine.cursor().unwrap().is_empty());
    }
    assert_eq!(all_history(engine.connection()), []);
    assert!(all_peers(engine.connection()).is_empty());
    engine.merge(std::slice::from_ref(&good), &progress).unwrap();
    assert_eq!(all_history(engine.connection()), [good]);
}

#[test]
fn the_original_goes_on_with_what_was_merged_here() {
    let author =
        author(&["INSERT INTO todo VALUES ('a', 1, 2)", "INSERT INTO tag VALUES ('x')", "UPDATE todo SET title = 3"]);
    let changes = by_version(&author);
    let mut original = Original::new(SCHEMA);
    original.write("INSERT INTO tag VALUES ('own')");
    original.receive(&changes[0]);
    let mut engine = original.open();
    let progress = MergeProgress { cursor: author.cursor().unwrap(), ..MergeProgress::default() };
    engine.merge(&changes[1..].concat(), &progress).unwrap();
    engine.connection().execute_batch("INSERT INTO tag VALUES ('own too')").unwrap();
    drop(engine);

    let connection = original.connect();
    let held = all_peers(&connection);
    assert_eq!(held, author.cursor().unwrap());
    assert_eq!(set(&answer(&connection, &held, &Cursor::new())), set(&changes.concat()));
    let second = [(author.site().unwrap(), DbVersion::new(2))].into_iter().collect();
    assert_eq!(answer(&connection, &held, &second), changes[1..].concat().split_off(changes[1].len()));
    // 4.5: own writes, wherever they were made, are found by the original itself.
    let own = "WHERE db_version > coalesce((SELECT p.db_version FROM all_peers p WHERE p.site_id = crsql_site_id()), 0)
         AND site_id = crsql_site_id()";
    assert_eq!(select_changes(&connection, own).len(), 2);
    // And a peer that has nothing but these answers holds the same.
    let mut reader = self::author(&[]);
    merge(&mut reader, &[answer(&connection, &held, &Cursor::new()), select_changes(&connection, own)].concat());
    for sql in ["SELECT group_concat(name) FROM (SELECT name FROM tag ORDER BY name)", "SELECT title || done FROM todo"]
    {
        assert_eq!(ask::<String>(reader.connection(), sql), ask::<String>(&connection, sql));
    }
}

#[test]
fn what_we_wrote_is_not_in_the_history_also_when_it_comes_back() {
    let original = Original::new(SCHEMA);
    let mut engine = original.open();
    engine.connection().execute_batch("INSERT INTO tag VALUES ('own')").unwrap();
    let own = dump(&engine);
    merge(&mut engine, &own);
    assert_eq!((own.len(), all_history(engine.connection())), (1, vec![]));
}

#[test]
fn a_write_through_crsql_changes_leaves_the_history_to_its_writer() {
    let original = Original::new(SCHEMA);
    let engine = original.open();
    merge_by_sql(engine.connection(), &[change("tag", "x", "-1", 3)]);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM tag"), 1);
    assert_eq!(all_history(engine.connection()), []);
    assert!(all_peers(engine.connection()).is_empty());
}

#[test]
fn the_tables_may_come_and_go_while_the_file_is_open() {
    let mut engine = author(&[]);
    let progress = claims(&[(SiteId::from_bytes([7; 16]), 3)]);
    engine.merge(&[change("tag", "a", "-1", 1)], &progress).unwrap();
    engine.connection().execute_batch(ORIGINAL_TABLES).unwrap();
    engine.merge(&[change("tag", "b", "-1", 2)], &progress).unwrap();
    assert_eq!(all_history(engine.connection()), [change("tag", "b", "-1", 2)]);
    assert_eq!(all_peers(engine.connection()), progress.cursor);
    engine.connection().execute_batch("DROP TABLE all_peers").unwrap();
    engine.merge(&[change("tag", "c", "-1", 3)], &progress).unwrap();
    assert_eq!(all_history(engine.connection()).len(), 2);
    engine.connection().execute_batch("DROP TABLE crsql_change_history").unwrap();
    engine.merge(&[change("tag", "d", "-1", 4)], &progress).unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM tag"), 4);
}

#[test]
fn a_temporary_table_of_the_name_is_not_the_originals() {
    let original = Original::new(SCHEMA);
    let mut engine = original.open();
    engine
        .connection()
        .execute_batch("CREATE TEMP TABLE crsql_change_history (x); CREATE TEMP TABLE all_peers (x)")
        .unwrap();
    engine.merge(&[change("tag", "a", "-1", 1)], &claims(&[(SiteId::from_bytes([7; 16]), 1)])).unwrap();
    engine.connection().execute_batch("DROP TABLE temp.crsql_change_history; DROP TABLE temp.all_peers").unwrap();
    assert_eq!(all_history(engine.connection()).len(), 1);
    assert_eq!(all_peers(engine.connection()).iter().count(), 1);
}

#[test]
fn tables_of_another_shape_are_left_alone() {
    let index = "CREATE INDEX i ON crsql_change_history (site_id, db_version);";
    let columns = "\"table\", pk, cid, val, col_version, db_version, site_id, cl";
    for schema in [
        "CREATE TABLE crsql_change_history (id INTEGER PRIMARY KEY, what)".to_owned(),
        format!("CREATE TABLE crsql_change_history (id INTEGER PRIMARY KEY, {columns}); {index}"),
        format!("CREATE TABLE crsql_change_history (id INTEGER PRIMARY KEY, {columns}, seq)"),
        format!(
            "CREATE TABLE crsql_change_history (id INTEGER PRIMARY KEY, {columns}, seq);
             CREATE INDEX i ON crsql_change_history (db_version, site_id)"
        ),
        format!(
            "CREATE TABLE crsql_change_history (id INTEGER PRIMARY KEY, {columns}, seq);
             CREATE INDEX i ON crsql_change_history (site_id, db_version) WHERE cl > 1"
        ),
        format!("CREATE TABLE crsql_change_history (id INTEGER PRIMARY KEY, {columns}, seq, more NOT NULL); {index}"),
        format!("CREATE TABLE crsql_change_history (id PRIMARY KEY NOT NULL, {columns}, seq); {index}"),
        format!("CREATE TABLE crsql_change_history (id INTEGER PRIMARY KEY, {columns}, seq) WITHOUT ROWID; {index}"),
        "CREATE VIEW crsql_change_history AS SELECT 1 AS id".to_owned(),
        "CREATE TABLE all_peers (site_id BLOB PRIMARY KEY)".to_owned(),
        "CREATE TABLE all_peers (site_id BLOB, db_version)".to_owned(),
        "CREATE TABLE all_peers (site_id BLOB, db_version, name TEXT NOT NULL, PRIMARY KEY (site_id))".to_owned(),
        "CREATE TABLE all_peers (site_id BLOB, db_version, PRIMARY KEY (site_id, db_version))".to_owned(),
        "CREATE VIEW all_peers AS SELECT 1 AS site_id, 2 AS db_version".to_owned(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let connection = Connection::open(&path).unwrap();
        load(&connection).unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        merge_by_sql(&connection, &[change("tag", "before", "-1", 3)]);
        connection.execute_batch(&format!("DELETE FROM litemesh_origin; {schema}")).unwrap();
        drop(connection);
        let mut engine = Engine::open(&path).unwrap();
        engine.merge(&[change("tag", "x", "-1", 4)], &claims(&[(SiteId::from_bytes([7; 16]), 4)])).unwrap();
        assert_eq!(versions(&engine), [0, 4], "{schema}");
        let table = if schema.contains("all_peers") { "all_peers" } else { "crsql_change_history" };
        let is_view = schema.starts_with("CREATE VIEW");
        let rows: i64 = ask(engine.connection(), &format!("SELECT count(*) FROM {table}"));
        assert_eq!(rows, i64::from(is_view), "{schema}");
    }
}
