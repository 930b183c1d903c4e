//! `crsql_check()`: what is inconsistent is found, what is legal is not, and what can be repaired is.

mod support;

use litemesh_engine::rusqlite::{Connection, OpenFlags};
use litemesh_engine::{Engine, FindingKind, Repair};
use litemesh_testkit::{Statement, literal, schemas};
use support::{ask, dump, execute, for_seeds, merge, select_changes};

const SCHEMA: &str = "CREATE TABLE foo (id TEXT PRIMARY KEY NOT NULL, b, c INTEGER DEFAULT 5);
    CREATE TABLE tag (id INTEGER PRIMARY KEY NOT NULL);
    CREATE TABLE pair (y REAL NOT NULL, x NOT NULL, v TEXT DEFAULT 'none', PRIMARY KEY (x, y)) WITHOUT ROWID;
    SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('tag'); SELECT crsql_as_crr('pair');";

const ROWS: &str = "INSERT INTO foo VALUES ('a', 1, 2), ('b', NULL, 5), ('dead', 1, 1), ('back', 1, 1);
    DELETE FROM foo WHERE id IN ('dead', 'back'); INSERT INTO foo (id) VALUES ('back');
    INSERT INTO tag VALUES (1), (2); DELETE FROM tag WHERE id = 2; UPDATE foo SET id = 'moved' WHERE id = 'b';
    INSERT INTO pair VALUES (1.5, 'k', 'v'), (2, x'00', 'none');";

fn open(sql: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(sql).unwrap();
    engine
}

fn sample() -> Engine {
    let engine = open(SCHEMA);
    engine.connection().execute_batch(ROWS).unwrap();
    engine
}

/// Runs SQL that the triggers do not record.
fn past_triggers(engine: &Engine, sql: &str) {
    let sql = format!("SELECT crsql_internal_sync_bit(1); {sql}; SELECT crsql_internal_sync_bit(0);");
    engine.connection().execute_batch(&sql).unwrap();
}

/// `kind table (key) name`, of everything that is found.
fn found(engine: &Engine) -> Vec<String> {
    let findings = engine.check().unwrap().map(Result::unwrap);
    let text = findings.map(|finding| {
        let key = finding.key.map(|key| key.unpack().unwrap().iter().map(literal).collect::<Vec<_>>().join(" "));
        let parts = [Some(finding.kind.as_str()), finding.table.as_deref(), key.as_deref(), finding.name.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    });
    text.collect()
}

/// After `damage`, exactly `expected` is found. Gives the engine.
#[track_caller]
fn check(damage: &str, expected: &[&str]) -> Engine {
    let engine = sample();
    past_triggers(&engine, damage);
    assert_eq!(found(&engine), expected, "{damage}");
    // The same in SQL.
    let kinds = "SELECT json_group_array(kind) FROM crsql_check()";
    let kinds: String = ask(engine.connection(), kinds);
    for text in expected {
        let kind = text.split(' ').next().unwrap();
        assert!(kinds.contains(kind), "{kind}: {kinds}");
    }
    engine
}

/// All rows, as text.
fn rows(engine: &Engine) -> String {
    ask(
        engine.connection(),
        "SELECT group_concat(row, char(10)) FROM (
         SELECT 'foo ' || quote(id) || quote(b) || quote(c) AS row FROM foo
         UNION ALL SELECT 'tag ' || id FROM tag UNION ALL SELECT 'pair ' || quote(x) || quote(y) || quote(v) FROM pair
         ORDER BY 1)",
    )
}

/// The damage is found, a repair leaves nothing to find, and what is here then reaches another site.
#[track_caller]
fn check_repaired(damage: &str, expected: &[&str]) -> Engine {
    let mut engine = check(damage, expected);
    let (version, before) = (engine.db_version().unwrap(), rows(&engine));
    let repaired = engine.repair().unwrap();
    assert!(repaired.iter().all(|done| matches!(done.kind.repair(), Repair::Automatic(_))), "{repaired:?}");
    assert_eq!(found(&engine), [""; 0], "{damage}");
    assert_eq!(rows(&engine), before, "a repair writes to no base table: {damage}");
    assert!(engine.db_version().unwrap() >= version, "VER-7: {damage}");
    assert_eq!(engine.repair().unwrap(), [], "nothing is left to do: {damage}");
    let mut other = open(SCHEMA);
    merge(&mut other, &dump(&engine));
    assert_eq!(rows(&other), rows(&engine), "{damage}");
    engine
}

/// What a repair leaves, and says so.
#[track_caller]
fn check_left(damage: &str, expected: &[&str]) -> Engine {
    let mut engine = check(damage, expected);
    engine.repair().unwrap();
    assert_eq!(found(&engine), expected, "{damage}");
    for finding in engine.check().unwrap() {
        assert!(matches!(finding.unwrap().kind.repair(), Repair::ByHand(_)));
    }
    engine
}

#[test]
fn a_sound_database_has_no_findings_and_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(folder.path().join("a.db")).unwrap();
    engine.connection().execute_batch(SCHEMA).unwrap();
    engine.connection().execute_batch(ROWS).unwrap();
    assert_eq!(found(&engine), [""; 0]);
    let other = Connection::open(folder.path().join("a.db")).unwrap();
    let version = ask::<i64>(&other, "PRAGMA data_version");
    let changes = dump(&engine);
    assert_eq!(engine.repair().unwrap(), []);
    assert_eq!(ask::<i64>(&other, "PRAGMA data_version"), version);
    assert_eq!(dump(&engine), changes);
}

/// Whatever is written, merged and deleted: the engine itself leaves nothing to find (19.5).
#[test]
fn random_histories_leave_no_findings() {
    let schemas = schemas();
    for_seeds(0xC4EC, 8, |rng| {
        let mut engines: Vec<Engine> = (0..3).map(|_| support::engine(&schemas)).collect();
        for _ in 0..80 {
            let writer = rng.usize(..engines.len());
            execute(&engines[writer], &schemas, &Statement::random(rng, &schemas));
            if rng.u8(..4) == 0 {
                let changes = dump(&engines[writer]);
                let reader = rng.usize(..engines.len());
                merge(&mut engines[reader], &changes);
            }
        }
        for engine in &engines {
            assert_eq!(found(engine), [""; 0]);
        }
    });
}

/// VT-4, ALT-5, MRG-7, MRG-9: a cell that was never written has its default and no clock, or a clock of zero.
#[test]
fn what_is_legal_is_not_reported() {
    let mut engine = sample();
    let other = open(SCHEMA);
    other
        .connection()
        .execute_batch(
            "INSERT INTO foo VALUES ('new', 7, 8), ('a', 0, 0); DELETE FROM foo WHERE id = 'a';
             INSERT INTO foo VALUES ('a', 3, 3)",
        )
        .unwrap();
    // One cell of a new row, and a new life of a living row without its values.
    let mut changes = dump(&other);
    changes.retain(|c| c.column.as_str() == if c.causal_length.get() == 1 { "b" } else { "-1" });
    assert_eq!(changes.len(), 2);
    merge(&mut engine, &changes);
    assert!(ask::<i64>(engine.connection(), "SELECT count(*) FROM foo__crsql_clock WHERE col_version = 0") > 0);
    assert_eq!(found(&engine), [""; 0]);
}

/// VT-4: defaults of every sort, and columns that were added to a table with rows (as the alter functions leave them).
#[test]
fn cells_that_hold_their_default_need_no_clock() {
    let engine = open(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, a TEXT DEFAULT 1, b INTEGER DEFAULT '2', c DEFAULT -1.5, d DEFAULT word,
         e DEFAULT (1 + 2), f BLOB DEFAULT x'00', g DEFAULT CURRENT_TIMESTAMP, h DEFAULT (random()), i);
         SELECT crsql_as_crr('t')",
    );
    past_triggers(&engine, "INSERT INTO t (id) VALUES (1), (2)");
    engine.connection().execute_batch("UPDATE t SET i = 1").unwrap();
    assert_eq!(found(&engine), [""; 0]);
    past_triggers(
        &engine,
        "UPDATE t SET a = 2, b = NULL, c = -1, d = 'Word', e = 3.5, f = '', g = 1, h = 1 WHERE id = 1",
    );
    let expected = ["a", "b", "c", "d", "e", "f"].map(|name| format!("cell-without-clock t 1 {name}"));
    // What has another value each time cannot be told from a default: g and h.
    assert_eq!(found(&engine), expected);
}

/// BUG-18, VER-13: published as rows that are inserted now.
#[test]
fn rows_written_past_the_triggers_are_found_and_published() {
    let engine = check_repaired(
        "INSERT INTO foo VALUES ('x', 1, 2); INSERT INTO tag VALUES (7); INSERT INTO pair VALUES (3, 'k', 'w');
         DELETE FROM tag__crsql_clock WHERE key = 1",
        &[
            "row-without-clocks foo 'x'",
            "row-without-clocks tag 1",
            "row-without-clocks tag 7",
            "row-without-clocks pair 'k' 3.0",
        ],
    );
    let versions: Vec<_> = select_changes(engine.connection(), "ORDER BY db_version DESC LIMIT 4");
    assert!(versions.iter().all(|change| change.db_version == engine.db_version().unwrap()));
}

/// BUG-18, ALT-5.
#[test]
fn cells_written_past_the_triggers_are_found_and_published() {
    check_repaired(
        "DELETE FROM foo__crsql_clock WHERE col_name = 'c'; DELETE FROM pair__crsql_clock WHERE key = 2",
        &["cell-without-clock foo 'a' c", "row-without-clocks pair x'00' 2.0"],
    );
}

/// VT-2: what became of the row nobody knows, so a repair leaves it. Burying deletes it everywhere.
#[test]
fn rows_deleted_past_the_triggers_are_found_and_can_be_buried() {
    let mut engine = check_left(
        "DELETE FROM foo WHERE id IN ('a', 'back'); DELETE FROM tag WHERE id = 1",
        &["clock-without-row foo 'a'", "clock-without-row foo 'back'", "clock-without-row tag 1"],
    );
    let mut other = open(SCHEMA);
    merge(&mut other, &dump(&sample()));
    let buried = engine.bury_missing_rows().unwrap();
    assert_eq!(buried.iter().map(|done| done.count).sum::<u64>(), 3);
    assert_eq!(found(&engine), [""; 0]);
    merge(&mut other, &dump(&engine));
    assert_eq!(rows(&other), rows(&engine));
    assert_eq!(found(&other), [""; 0]);
    assert_eq!(engine.bury_missing_rows().unwrap(), []);
}

/// DSK-4, VER-7.
#[test]
fn clocks_of_no_row_are_removed() {
    let engine = check_repaired(
        "INSERT INTO foo__crsql_clock VALUES (99, 'b', 1, 50, 0, 0), (99, 'c', 1, 50, 0, 1)",
        &["clock-without-key foo"],
    );
    assert_eq!(engine.db_version().unwrap().get(), 50);
}

/// 1.3, 4.5: even means dead.
#[test]
fn dead_rows_have_neither_rows_nor_clocks() {
    check_repaired(
        "INSERT INTO foo VALUES ('dead', 4, 5); INSERT INTO tag VALUES (2)",
        &["dead-row-present foo 'dead'", "dead-row-present tag 2"],
    );
    check_repaired(
        "INSERT INTO foo__crsql_clock SELECT key, 'b', 9, 90, 0, 0 FROM foo__crsql_clock
         WHERE col_name = '-1' AND col_version = 2",
        &["dead-row-with-clocks foo 'b'", "dead-row-with-clocks foo 'dead'"],
    );
    check_left(
        "UPDATE foo__crsql_clock SET col_version = -3 WHERE col_name = '-1' AND col_version = 3",
        &["invalid-sentinel foo 'back'"],
    );
}

/// BUG-2, VT-5, ALT-7: a column that was renamed without the alter functions. SQLite rewrites the triggers.
#[test]
fn clocks_of_columns_that_are_gone_are_replaced() {
    let mut engine = sample();
    engine.connection().execute_batch("ALTER TABLE foo RENAME COLUMN c TO d").unwrap();
    assert_eq!(found(&engine), ["clock-of-missing-column foo c", "cell-without-clock foo 'a' d"]);
    engine.repair().unwrap();
    assert_eq!(found(&engine), [""; 0]);
    assert_eq!(select_changes(engine.connection(), "WHERE cid = 'd'").len(), 1);
}

/// MRG-5, BUG-17: CRSqlite leaves the keys of changes that lost.
#[test]
fn keys_without_clocks_are_worth_a_note() {
    let engine = check("INSERT INTO foo__crsql_pks (id) VALUES ('x'), ('y')", &["key-without-clocks foo"]);
    let finding = engine.check().unwrap().next().unwrap().unwrap();
    assert_eq!((finding.kind.severity().as_str(), finding.detail.contains('2')), ("info", true));
    check_repaired("INSERT INTO tag__crsql_pks (id) VALUES (77)", &["key-without-clocks tag"]);
}

/// BUG-16: one row, two identities. Not published under the second.
#[test]
fn keys_of_another_type_than_their_row_are_found() {
    check_left(
        "UPDATE tag__crsql_pks SET id = '1' WHERE id = 1; INSERT INTO foo VALUES (12, 1, 1);
         INSERT INTO foo__crsql_pks VALUES (40, 12); INSERT INTO foo__crsql_clock VALUES (40, 'b', 1, 9, 0, 0)",
        &["key-of-other-type foo 12", "key-of-other-type tag '1'"],
    );
}

/// DSK-3, 5.3.
#[test]
fn clocks_without_an_author_are_adopted() {
    let engine =
        check_repaired("UPDATE foo__crsql_clock SET site_id = 9 WHERE col_name = 'b'", &["unknown-author foo"]);
    assert!(select_changes(engine.connection(), "").iter().all(|change| change.site == engine.site().unwrap()));
}

/// 5.6: the version of the author was never recorded, as by CRSqlite.
#[test]
fn merged_clocks_without_origin_are_found() {
    let mut engine = sample();
    let mut other = open(SCHEMA);
    merge(&mut other, &dump(&engine));
    assert_eq!(found(&other), [""; 0]);
    other.connection().execute_batch("DELETE FROM litemesh_origin").unwrap();
    let expected = ["missing-origin foo", "missing-origin tag", "missing-origin pair"];
    assert_eq!(found(&other), expected);
    other.repair().unwrap();
    assert_eq!(found(&other), ["unknown-origin"]);
    assert_eq!(FindingKind::UnknownOrigin.severity().as_str(), "info");
    merge(&mut engine, &dump(&other));
    past_triggers(
        &engine,
        "INSERT INTO litemesh_origin VALUES (3, 8, 1); INSERT INTO crsql_site_id VALUES (x'01', 30)",
    );
    assert_eq!(found(&engine), ["malformed-site-id", "origin-of-unknown-site"]);
    engine.repair().unwrap();
    assert_eq!(found(&engine), ["malformed-site-id"]);
}

/// BUG-29.
#[test]
fn versions_at_the_end_of_the_range_are_found() {
    let engine = sample();
    past_triggers(&engine, "UPDATE tag__crsql_clock SET db_version = 9223372036854775807 WHERE key = 1");
    assert_eq!(found(&engine), ["absurd-version tag"]);
}

/// DSK-8: triggers of either engine are right, whatever their spaces; others are not.
#[test]
fn triggers_are_compared_with_what_the_table_needs() {
    let theirs = "DROP TRIGGER foo__crsql_itrig; CREATE TRIGGER IF NOT EXISTS \"foo__crsql_itrig\"
      AFTER INSERT ON \"foo\" WHEN crsql_internal_sync_bit() = 0
      BEGIN
        VALUES (crsql_after_insert('foo', NEW.\"id\"));
      END;";
    check(theirs, &[]);
    check_repaired("DROP TRIGGER foo__crsql_utrig", &["missing-trigger foo foo__crsql_utrig"]);
    check_repaired(&theirs.replace("= 0", "= 1"), &["altered-trigger foo foo__crsql_itrig"]);
    check_repaired(&theirs.replace("'foo'", "'tag'"), &["trigger-of-other-table foo foo__crsql_itrig"]);
    // ALT-7: a column that was added without the alter functions.
    check_repaired("ALTER TABLE foo ADD COLUMN d", &["altered-trigger foo foo__crsql_utrig"]);
}

/// DSK-3, DSK-5, DSK-7. Without the index on versions not even a read is possible.
#[test]
fn indexes_are_made_again() {
    check_repaired(
        "DROP INDEX foo__crsql_clock_dbv_idx; DROP INDEX pair__crsql_pks_pks; DROP INDEX crsql_site_id_site_id;
         DROP INDEX litemesh_origin_site",
        &[
            "missing-index crsql_site_id_site_id",
            "missing-index litemesh_origin_site",
            "missing-index foo foo__crsql_clock_dbv_idx",
            "missing-index pair pair__crsql_pks_pks",
        ],
    );
    check_repaired(
        "DROP INDEX tag__crsql_clock_dbv_idx; CREATE INDEX tag__crsql_clock_dbv_idx ON tag__crsql_clock (site_id, db_version)",
        &["missing-index tag tag__crsql_clock_dbv_idx"],
    );
}

/// BUG-1, VER-7.
#[test]
fn shadow_tables_of_dropped_tables_are_removed() {
    let mut engine = sample();
    engine.connection().execute_batch("DROP TABLE pair; CREATE TABLE gone__crsql_pks (a)").unwrap();
    let version = engine.db_version().unwrap();
    let orphans = ["pair pair__crsql_clock", "pair pair__crsql_pks", "gone gone__crsql_pks"];
    assert_eq!(found(&engine), orphans.map(|orphan| format!("orphan-shadow-table {orphan}")));
    engine.repair().unwrap();
    assert_eq!(found(&engine), [""; 0]);
    assert_eq!(engine.db_version().unwrap(), version);
    let left = "SELECT count(*) FROM sqlite_master WHERE name LIKE '%pair%' OR name LIKE 'gone%'";
    assert_eq!(ask::<i64>(engine.connection(), left), 0);
}

/// ALT-7: a history is not an orphan because its table, or its key, has another name by now.
#[test]
fn the_history_of_a_renamed_table_is_kept() {
    for (rename, changed) in [
        ("ALTER TABLE foo RENAME TO bar", "renamed-table bar"),
        ("ALTER TABLE foo RENAME COLUMN id TO key", "renamed-table foo"),
    ] {
        let mut engine = sample();
        engine.connection().execute_batch("SELECT crsql_config_set('self-heal', 0)").unwrap();
        let clocks = "SELECT count(*) FROM crsql_changes";
        let before: i64 = ask(engine.connection(), clocks);
        engine.connection().execute_batch(rename).unwrap();
        assert_eq!(found(&engine), [changed], "{rename}");
        let repaired = engine.repair().unwrap();
        assert_eq!(repaired.iter().map(|done| done.kind).collect::<Vec<_>>(), [FindingKind::RenamedTable], "{rename}");
        assert_eq!(found(&engine), [""; 0], "{rename}");
        assert_eq!(ask::<i64>(engine.connection(), clocks), before, "{rename}");
    }
}

/// DSK-9, BUG-1: a table that was made anew. Whether its history goes on is for its owner to say.
#[test]
fn tables_with_a_history_that_do_not_replicate_are_found() {
    for again in ["SELECT crsql_as_crr('foo')", "SELECT crsql_as_table('foo')"] {
        let engine = check_left(
            "DROP TABLE foo; CREATE TABLE foo (id TEXT PRIMARY KEY NOT NULL, b, c INTEGER DEFAULT 5);
             INSERT INTO foo VALUES ('a', 7, 7), ('x', 8, 8)",
            &["untracked-table foo"],
        );
        engine.connection().execute_batch(again).unwrap();
        assert_eq!(found(&engine), [""; 0], "{again}");
    }
    check_left("DROP TRIGGER foo__crsql_itrig", &["untracked-table foo"]);
    // Inside of a window that is how it must be.
    let engine = sample();
    engine.connection().execute_batch("SELECT crsql_begin_alter('foo')").unwrap();
    assert_eq!(found(&engine), [""; 0]);
}

/// DSK-4, DSK-6, ALT-4.
#[test]
fn shadow_tables_that_do_not_fit_are_left_alone() {
    check_left("DROP TABLE foo__crsql_pks", &["missing-shadow-table foo foo__crsql_pks"]);
    check_left(
        "DROP TABLE foo__crsql_clock; DROP TABLE foo__crsql_pks",
        &["missing-shadow-table foo foo__crsql_clock"],
    );
    check_left("ALTER TABLE foo__crsql_pks ADD COLUMN more", &["keys-of-other-columns foo foo__crsql_pks"]);
}

/// CRR-2, MRG-10: a rule that a table broke after it became replicated.
#[test]
fn rules_that_are_broken_later_are_found() {
    let engine = check("CREATE UNIQUE INDEX one ON foo (b)", &["broken-rule foo"]);
    let finding = engine.check().unwrap().next().unwrap().unwrap();
    assert!(finding.detail.contains("unique indices"), "{}", finding.detail);
}

/// One table's findings; and what SQL itself does with the columns.
#[test]
fn the_table_function_can_be_narrowed_down() {
    let engine = check(
        "INSERT INTO foo VALUES ('x', 1, 2); INSERT INTO tag VALUES (7); DROP INDEX crsql_site_id_site_id",
        &["missing-index crsql_site_id_site_id", "row-without-clocks foo 'x'", "row-without-clocks tag 7"],
    );
    let connection = engine.connection();
    let text = "SELECT severity || ' ' || \"table\" || ' ' || kind || ' ' || rule || ' ' || hex(pk) || ' ' || repair
                FROM crsql_check WHERE \"table\" = 'tag'";
    let text: String = ask(connection, text);
    assert!(text.starts_with("error tag row-without-clocks BUG-18 010907 repair: "), "{text}");
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM crsql_check WHERE \"table\" IS NULL"), 1);
    assert_eq!(ask::<i64>(connection, "SELECT count(*) FROM crsql_check() WHERE severity = 'error'"), 3);
    let joined = "SELECT count(*) FROM (SELECT 'foo' AS t UNION SELECT 'tag') JOIN crsql_check c ON c.\"table\" = t";
    assert_eq!(ask::<i64>(connection, joined), 2);
}

/// TX-2: reading alone is enough, also where there is nothing to read.
#[test]
fn a_read_only_connection_can_check() {
    let folder = tempfile::tempdir().unwrap();
    let read_only = |name: &str| {
        let path = folder.path().join(name);
        Engine::attach(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()).unwrap()
    };
    let engine = Engine::open(folder.path().join("a.db")).unwrap();
    engine.connection().execute_batch(SCHEMA).unwrap();
    past_triggers(&engine, "INSERT INTO tag VALUES (7)");
    let reader = read_only("a.db");
    assert_eq!(found(&reader), ["row-without-clocks tag 7"]);
    Connection::open(folder.path().join("plain.db")).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert_eq!(found(&read_only("plain.db")), [""; 0]);
}

/// A repair that fails changes nothing: here, two keys of one row forbid the unique index.
#[test]
fn a_repair_that_fails_leaves_everything_as_it_was() {
    let mut engine = sample();
    past_triggers(
        &engine,
        "DROP TRIGGER tag__crsql_utrig; DROP INDEX tag__crsql_pks_pks; INSERT INTO tag__crsql_pks (id) VALUES (1)",
    );
    let before = found(&engine);
    assert!(engine.repair().unwrap_err().to_string().contains("UNIQUE constraint failed"));
    assert_eq!(found(&engine), before);
    // And the engine goes on.
    engine.connection().execute_batch("INSERT INTO foo (id) VALUES ('z')").unwrap();
}
