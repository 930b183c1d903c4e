//! The register of deviations: every way in which we answer otherwise than CRSqlite, each with the script that shows
//! it.
//!
//! Rules are those of Appendix B of the compatibility specification. Those that are not there are faults of this build
//! of CRSqlite (MRG-15, VT-2), or differences that this program has found.

use crate::scenario::Answer::{Dies, Fails, Is};
use crate::scenario::{Answer, Scenario};

const FOO: &str = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)";
const FOO_CRR: &str = "SELECT crsql_as_crr('foo')";
/// A change of `foo` by another site: `b` of row 1 is 7.
const NEWS: &str =
    "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', 7, 1, 1, x'00112233445566778899aabbccddeeff', 1, 0)";

/// `before` runs with the same outcome on both; `shown` are texts, our answer, and CRSqlite's.
fn scenario(rule: &'static str, what: &'static str, before: &[&str], shown: &[(&str, Answer, Answer)]) -> Scenario {
    Scenario {
        rule,
        what,
        before: before.iter().map(ToString::to_string).collect(),
        shown: shown.iter().map(|(text, ours, original)| (text.to_string(), *ours, *original)).collect(),
    }
}

/// Entries that this build of CRSqlite cannot show, and why.
pub(crate) const NOT_SHOWN: &[(&str, &str)] = &[
    ("MRG-12, CFG-3, CFG-4, CFG-5", "CRSqlite 0.16.0 has no settings"),
    ("TX-6", "its binding for JavaScript has no commit hooks to take"),
];

/// Appendix B of the specification: what we want to do otherwise than CRSqlite. What the register holds beyond it was found
/// by this program, or is a fault of this build alone.
#[cfg(test)]
const APPENDIX_B: &[&str] = &[
    "2.3", "LW-6", "4.5", "VER-6", "VER-7", "VER-4", "MRG-5", "MRG-6", "MRG-10", "MRG-11", "MRG-12", "5.3-3", "VT-5",
    "BUG-1", "VT-8", "VT-10", "FN-5", "FN-9", "CRR-1", "CRR-2", "CRR-4", "ALT-3", "AM-4", "CRR-6", "CRR-7", "CRR-8",
    "ALT-7", "CFG-3", "CFG-4", "CFG-5", "TX-2", "TX-4", "TX-6", "TX-10", "FR-5", "FR-6", "FR-10", "UV-2", "BUG-10",
    "BUG-16",
];

pub(crate) fn scenarios() -> Vec<Scenario> {
    [
        packed_keys(),
        local_writes(),
        merging(),
        reading(),
        functions(),
        replicating(),
        altering(),
        migrating(),
        transactions(),
        ordered_lists(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Section 2.3.
fn packed_keys() -> Vec<Scenario> {
    vec![
        scenario(
            "2.3",
            "an empty packed key is an error, and not the end of the process",
            &[FOO, FOO_CRR],
            &[("INSERT INTO crsql_changes VALUES ('foo', x'', 'b', 7, 1, 1, NULL, 1, 0)", Fails("primary key"), Dies)],
        ),
        scenario(
            "2.3",
            "an integer of nine bytes in a packed key, likewise",
            &[FOO, FOO_CRR],
            &[(
                "INSERT INTO crsql_changes VALUES ('foo', x'0149010203040506070809', 'b', 7, 1, 1, NULL, 1, 0)",
                Fails("primary key"),
                Dies,
            )],
        ),
        scenario(
            "2.3",
            "bytes after the packed values are refused",
            &[FOO, FOO_CRR],
            &[
                (
                    "INSERT INTO crsql_changes VALUES ('foo', x'01090100', 'b', 7, 1, 1, NULL, 1, 0)",
                    Fails("primary key"),
                    Is(""),
                ),
                ("SELECT * FROM foo", Is(""), Is("1, 7")),
            ],
        ),
        scenario(
            "2.3",
            "fewer values than the key has columns are refused, instead of writing to another row",
            &["CREATE TABLE two (a NOT NULL, b NOT NULL, c, PRIMARY KEY (a, b))", "SELECT crsql_as_crr('two')"],
            &[
                (
                    "INSERT INTO crsql_changes VALUES ('two', x'010901', 'c', 7, 1, 1, NULL, 1, 0)",
                    Fails("2 primary key columns"),
                    Is(""),
                ),
                ("SELECT * FROM two", Is(""), Is("1, 7, 7")),
            ],
        ),
    ]
}

/// Sections 3 and 4.
fn local_writes() -> Vec<Scenario> {
    vec![
        scenario(
            "LW-6",
            "cells that an UPDATE of the key moves are sent to who asks with a cursor",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "UPDATE foo SET a = 5"],
            &[(
                "SELECT pk, cid, val FROM crsql_changes WHERE db_version > 1 ORDER BY pk, cid",
                Is("x'010901', '-1', NULL; x'010905', '-1', NULL; x'010905', 'b', 2"),
                Is("x'010901', '-1', NULL; x'010905', '-1', NULL"),
            )],
        ),
        scenario(
            "LW-6",
            "a key that changes from 1 to 1.0 is the same row, and does not move",
            &[
                "CREATE TABLE foo (a PRIMARY KEY NOT NULL, b)",
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "UPDATE foo SET a = 1.0",
            ],
            &[("SELECT cid, cl FROM crsql_changes", Is("'b', 1"), Is("'b', 3; '-1', 3"))],
        ),
        scenario(
            "4.5",
            "a row that is there against its clocks is dead after its deletion",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "DELETE FROM foo",
                "SELECT crsql_internal_sync_bit(1)",
                "INSERT INTO foo VALUES (1, 2)",
                "SELECT crsql_internal_sync_bit(0)",
                "DELETE FROM foo",
            ],
            &[("SELECT cid, cl FROM crsql_changes", Is("'-1', 4"), Is("'-1', 3"))],
        ),
        scenario(
            "VER-6",
            "an UPDATE that changes nothing uses up no version",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "UPDATE foo SET b = b"],
            &[
                ("SELECT crsql_db_version()", Is("1"), Is("2")),
                ("SELECT max(db_version) FROM crsql_changes", Is("1"), Is("1")),
            ],
        ),
        scenario(
            "VER-9",
            "a statement that fails uses up no sequence numbers",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "BEGIN"],
            &[
                ("INSERT INTO foo VALUES (2, 2), (1, 2)", Fails("UNIQUE"), Fails("UNIQUE")),
                ("UPDATE foo SET b = 3", Is(""), Is("")),
                ("SELECT seq FROM crsql_changes", Is("0"), Is("1")),
            ],
        ),
        scenario(
            "VER-9",
            "what is rolled back to a savepoint uses up no sequence numbers",
            &[FOO, FOO_CRR, "BEGIN", "SAVEPOINT s", "INSERT INTO foo VALUES (1, 2)", "ROLLBACK TO s"],
            &[("INSERT INTO foo VALUES (2, 2)", Is(""), Is("")), ("SELECT seq FROM crsql_changes", Is("0"), Is("1"))],
        ),
        scenario(
            "TX-7",
            "the clocks of a transaction are written when it is committed, or when the engine is asked",
            &[FOO, FOO_CRR, "BEGIN", "INSERT INTO foo VALUES (1, 2)"],
            &[
                ("SELECT count(*) FROM foo__crsql_clock", Is("0"), Is("1")),
                ("SELECT count(*) FROM crsql_changes", Is("1"), Is("1")),
                ("SELECT count(*) FROM foo__crsql_clock", Is("1"), Is("1")),
            ],
        ),
        scenario(
            "VER-7",
            "db_version does not fall when a table is made ordinary",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "SELECT crsql_as_table('foo')"],
            &[("SELECT crsql_db_version()", Is("1"), Is("0"))],
        ),
    ]
}

/// Section 5.
fn merging() -> Vec<Scenario> {
    vec![
        scenario(
            "MRG-5",
            "a change that is ignored leaves no key",
            &[FOO, FOO_CRR, "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', 7, 1, 1, NULL, 0, 0)"],
            &[("SELECT count(*) FROM foo__crsql_pks", Is("0"), Is("1"))],
        ),
        scenario(
            "MRG-6",
            "the version of a sentinel is the causal length",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', NULL, 1, 1, NULL, 2, 0)",
            ],
            &[("SELECT cid, col_version, cl FROM crsql_changes", Is("'-1', 2, 2"), Is("'-1', 1, 1"))],
        ),
        scenario(
            "MRG-10",
            "a change that another unique index refuses is refused, instead of writing to another row",
            &[FOO, FOO_CRR, "CREATE UNIQUE INDEX later ON foo (b)", "INSERT INTO foo VALUES (2, 7)"],
            &[
                (NEWS, Fails("UNIQUE constraint failed"), Is("")),
                ("SELECT * FROM foo", Is("2, 7"), Is("2, 7")),
                ("SELECT pk FROM crsql_changes", Is("x'010902'"), Is("x'010902'; x'010901'")),
            ],
        ),
        scenario(
            "MRG-11",
            "an unknown column is named",
            &[FOO, FOO_CRR],
            &[(
                "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'nope', 7, 1, 1, NULL, 1, 0)",
                Fails("table foo has no replicated column nope"),
                Fails("SQL logic error"),
            )],
        ),
        scenario(
            "MRG-14",
            "a merge that fails leaves nothing in its transaction",
            &["CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b NOT NULL DEFAULT 0)", FOO_CRR, "BEGIN"],
            &[
                (
                    "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', NULL, 1, 9, NULL, 3, 0)",
                    Fails("NOT NULL constraint failed"),
                    Fails("constraint failed"),
                ),
                ("SELECT * FROM foo", Is(""), Is("1, 0")),
                ("SELECT crsql_next_db_version()", Is("1"), Is("9")),
            ],
        ),
        scenario(
            "MRG-15",
            "writes are recorded after a merge that failed",
            &["CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b NOT NULL DEFAULT 0)", FOO_CRR],
            &[
                (
                    "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', NULL, 1, 9, NULL, 1, 0)",
                    Fails("NOT NULL constraint failed"),
                    Fails("constraint failed"),
                ),
                ("INSERT INTO foo VALUES (2, 2)", Is(""), Is("")),
                ("SELECT count(*) FROM crsql_changes", Is("1"), Is("0")),
            ],
        ),
        scenario(
            "5.3-3",
            "a change wins against a row that is missing",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "SELECT crsql_internal_sync_bit(1)",
                "DELETE FROM foo",
                "SELECT crsql_internal_sync_bit(0)",
            ],
            &[(NEWS, Is(""), Fails("could not find row to merge with")), ("SELECT * FROM foo", Is("1, 7"), Is(""))],
        ),
    ]
}

/// Section 6.
fn reading() -> Vec<Scenario> {
    vec![
        scenario(
            "VT-2",
            "a clock whose row is missing is reported as the row's",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "SELECT crsql_internal_sync_bit(1)",
                "DELETE FROM foo",
                "SELECT crsql_internal_sync_bit(0)",
            ],
            &[("SELECT cid, val FROM crsql_changes", Is("'-1', NULL"), Is("'b', NULL"))],
        ),
        scenario(
            "VT-5",
            "a clock whose column is gone does not stop the others",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "ALTER TABLE foo RENAME COLUMN b TO c"],
            &[("SELECT cid FROM crsql_changes", Is(""), Fails("SQL logic error"))],
        ),
        scenario(
            "BUG-1",
            "a dropped table does not stop the others",
            &[
                FOO,
                FOO_CRR,
                "CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b)",
                "SELECT crsql_as_crr('bar')",
                "INSERT INTO foo VALUES (1, 2)",
                "INSERT INTO bar VALUES (1, 2)",
                "DROP TABLE foo",
            ],
            &[("SELECT \"table\" FROM crsql_changes", Is("'bar'"), Fails(""))],
        ),
        scenario(
            "VT-8",
            "conditions follow the types of the columns, and MATCH is SQLite's to refuse",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)"],
            &[
                ("SELECT cid FROM crsql_changes WHERE cl >= '1'", Is("'b'"), Is("")),
                (
                    "SELECT cid FROM crsql_changes WHERE cid MATCH 'b'",
                    Fails("unable to use function MATCH"),
                    Fails("SQL logic error"),
                ),
            ],
        ),
        scenario(
            "VT-8",
            "crsql_changes can be joined with itself",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)"],
            &[(
                "SELECT count(*) FROM crsql_changes a JOIN crsql_changes b",
                Is("1"),
                Fails("bad parameter or other API misuse"),
            )],
        ),
        scenario(
            "VT-8",
            "OR loses no changes",
            &[
                "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, c)",
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2, 3)",
                "UPDATE foo SET b = 4",
            ],
            &[("SELECT cid FROM crsql_changes WHERE db_version < 2 OR db_version > 1", Is("'c'; 'b'"), Is("'c'"))],
        ),
        scenario(
            "VT-10",
            "ORDER BY and DISTINCT give what they name",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2), (2, 1)", "INSERT INTO foo VALUES (3, 3)"],
            &[
                ("SELECT val FROM crsql_changes ORDER BY db_version DESC, seq ASC", Is("3; 2; 1"), Is("2; 1; 3")),
                ("SELECT DISTINCT val FROM crsql_changes", Is("2; 1; 3"), Fails("SQL logic error")),
                ("SELECT val FROM crsql_changes ORDER BY val", Is("1; 2; 3"), Fails("SQL logic error")),
            ],
        ),
    ]
}

/// Section 7.
fn functions() -> Vec<Scenario> {
    vec![
        scenario(
            "FN-5",
            "crsql_rows_impacted() forgets what was rolled back",
            &[FOO, FOO_CRR, "BEGIN", NEWS, "SELECT crsql_rows_impacted()", "ROLLBACK"],
            &[("SELECT crsql_rows_impacted()", Is("0"), Is("1"))],
        ),
        scenario(
            "FN-9",
            "the connection can be used after crsql_finalize()",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "SELECT crsql_finalize()"],
            &[
                ("SELECT crsql_db_version()", Is("1"), Fails("")),
                ("INSERT INTO foo VALUES (2, 2)", Is(""), Fails("")),
                ("SELECT count(*) FROM crsql_changes", Is("2"), Fails("")),
            ],
        ),
        scenario(
            "FN-10",
            "there is a setting (CRSqlite has it from 0.16.1 on)",
            &[],
            &[("SELECT crsql_config_get('merge-equal-values')", Is("0"), Fails("no such function"))],
        ),
    ]
}

/// Section 8.
fn replicating() -> Vec<Scenario> {
    let columns: Vec<_> = (0..63).map(|n| format!("c{n}")).collect();
    let wide = format!("CREATE TABLE wide (a INTEGER PRIMARY KEY NOT NULL, {})", columns.join(", "));
    vec![
        scenario(
            "CRR-7",
            "tables replicate whatever their width",
            &[&wide],
            &[
                ("SELECT crsql_as_crr('wide')", Is("'OK'"), Fails("SQL logic error")),
                ("INSERT INTO wide (a, c0, c62) VALUES (1, 2, 3)", Is(""), Is("")),
                ("UPDATE wide SET c62 = 4", Is(""), Is("")),
                ("SELECT cid, col_version FROM crsql_changes WHERE col_version > 1", Is("'c62', 2"), Is("")),
            ],
        ),
        scenario(
            "CRR-1",
            "a schema other than main is refused, instead of taking the table of main",
            &[FOO],
            &[("SELECT crsql_as_crr('other', 'foo')", Fails("schema other is not supported"), Is("'OK'"))],
        ),
        scenario(
            "CRR-2",
            "AUTOINCREMENT counts as a keyword alone",
            &["CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL /* no autoincrement */, b)"],
            &[(FOO_CRR, Is("'OK'"), Fails("auto-increment"))],
        ),
        scenario(
            "CRR-2",
            "temporary tables are refused",
            &["CREATE TEMP TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)"],
            &[(FOO_CRR, Fails("is temporary"), Is("'OK'"))],
        ),
        scenario(
            "CRR-2",
            "a column named -1 is refused: its clocks would be sentinels",
            &["CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, \"-1\")"],
            &[(FOO_CRR, Fails("has a column named -1"), Is("'OK'"))],
        ),
        scenario(
            "CRR-2",
            "keys with a collation are refused: one row would have several histories",
            &["CREATE TABLE foo (a TEXT PRIMARY KEY NOT NULL COLLATE NOCASE, b)"],
            &[(FOO_CRR, Fails("with a collation other than BINARY"), Is("'OK'"))],
        ),
        scenario(
            "CRR-4",
            "an error of crsql_as_crr() leaves the caller's transaction alone",
            &["CREATE TABLE plain (n)", "CREATE TABLE bad (a)", "BEGIN", "INSERT INTO plain VALUES (1)"],
            &[
                ("SELECT crsql_as_crr('bad')", Fails("no primary key"), Fails("no primary key")),
                ("SELECT count(*) FROM plain", Is("1"), Is("0")),
                ("COMMIT", Is(""), Fails("no transaction is active")),
            ],
        ),
        scenario(
            "CRR-6",
            "tables replicate whatever their names",
            &["CREATE TABLE \"two words\" (a INTEGER PRIMARY KEY NOT NULL, b)"],
            &[
                ("SELECT crsql_as_crr('two words')", Is("'OK'"), Fails("")),
                ("INSERT INTO \"two words\" VALUES (1, 2)", Is(""), Is("")),
                ("SELECT \"table\" FROM crsql_changes", Is("'two words'"), Is("")),
            ],
        ),
        scenario(
            "CRR-5",
            "rows that were there before are numbered in the order of the table",
            &[
                "CREATE TABLE foo (a INTEGER NOT NULL, b INTEGER NOT NULL, PRIMARY KEY (a, b))",
                "INSERT INTO foo VALUES (1, 2), (1, 1)",
                FOO_CRR,
            ],
            &[("SELECT pk FROM crsql_changes", Is("x'0209010902'; x'0209010901'"), Is("x'0209010901'; x'0209010902'"))],
        ),
        scenario(
            "CRR-8",
            "the name of a table is the schema's, however it is spelled",
            &[FOO],
            &[
                ("SELECT crsql_as_crr('FOO')", Is("'OK'"), Is("'OK'")),
                ("SELECT crsql_as_crr('foo')", Is("'OK'"), Is("'OK'")),
                ("INSERT INTO foo VALUES (1, 2)", Is(""), Fails("not found")),
            ],
        ),
    ]
}

/// Section 9.
fn altering() -> Vec<Scenario> {
    vec![
        scenario(
            "ALT-3",
            "an error of crsql_commit_alter() leaves the caller's transaction alone",
            &["CREATE TABLE plain (n)", FOO, FOO_CRR, "BEGIN", "INSERT INTO plain VALUES (1)"],
            &[
                (
                    "SELECT crsql_commit_alter('foo')",
                    Fails("crsql_begin_alter"),
                    Fails("failed compacting tables post alteration"),
                ),
                ("SELECT count(*) FROM plain", Is("1"), Is("0")),
            ],
        ),
        scenario(
            "ALT-3",
            "a table that cannot replicate any more is as it was before",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "SELECT crsql_begin_alter('foo')",
                "ALTER TABLE foo ADD COLUMN c REFERENCES foo (a)",
            ],
            &[
                (
                    "SELECT crsql_commit_alter('foo')",
                    Fails("foreign key"),
                    Fails("failed compacting tables post alteration"),
                ),
                ("SELECT count(*) FROM crsql_changes", Is("1"), Is("1")),
            ],
        ),
        scenario(
            "ALT-5",
            "a row that is written back over its tombstone inside of a window is alive",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "DELETE FROM foo",
                "SELECT crsql_begin_alter('foo')",
                "INSERT INTO foo VALUES (1, 3)",
                "SELECT crsql_commit_alter('foo')",
            ],
            &[(
                "SELECT cid, val, cl FROM crsql_changes ORDER BY cid",
                Is("'-1', NULL, 3; 'b', 3, 3"),
                Is("'-1', NULL, 2; 'b', 3, 2"),
            )],
        ),
    ]
}

/// Section 10, and what is altered past its functions (ALT-7).
fn migrating() -> Vec<Scenario> {
    const ADDED_KEY: &str = "SELECT crsql_automigrate('CREATE TABLE IF NOT EXISTS foo (a INTEGER NOT NULL,
        z INTEGER NOT NULL DEFAULT 0, b, PRIMARY KEY (a, z));
        SELECT crsql_as_crr(''foo'');', 'SELECT crsql_finalize()')";
    const WITHOUT_B: &str = "SELECT crsql_automigrate('CREATE TABLE IF NOT EXISTS foo (a INTEGER PRIMARY KEY NOT NULL);
        SELECT crsql_as_crr(''foo'');', 'SELECT crsql_finalize()')";
    vec![
        scenario(
            "AM-4",
            "a migration that cannot be carried out says so",
            &[FOO, FOO_CRR],
            &[
                (ADDED_KEY, Fails("primary key"), Is("'migration complete'")),
                ("SELECT count(*) FROM pragma_table_info('foo') WHERE pk > 0", Is("1"), Is("1")),
            ],
        ),
        scenario(
            "AM-4",
            "a column goes with its index, and nothing of the caller's is lost",
            &[FOO, FOO_CRR, "CREATE INDEX foo_b ON foo (b)", "BEGIN", "INSERT INTO foo VALUES (1, 2)"],
            &[
                (WITHOUT_B, Is("'migration complete'"), Is("'not an error'")),
                ("SELECT name FROM pragma_table_info('foo')", Is("'a'"), Is("'a'; 'b'")),
                ("SELECT count(*) FROM foo", Is("1"), Is("0")),
            ],
        ),
        scenario(
            "AM-4",
            "a table that goes takes its shadows along",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "SELECT crsql_automigrate('', 'SELECT crsql_finalize()')"],
            &[("SELECT count(*) FROM sqlite_master WHERE name LIKE 'foo%' AND type = 'table'", Is("0"), Is("2"))],
        ),
        scenario(
            "ALT-5",
            "a row that is written over its tombstone inside a window is alive",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO foo VALUES (1, 2)",
                "DELETE FROM foo",
                "SELECT crsql_begin_alter('foo')",
                "INSERT INTO foo VALUES (1, 3)",
                "SELECT crsql_commit_alter('foo')",
            ],
            &[("SELECT cid, cl FROM crsql_changes ORDER BY cid", Is("'-1', 3; 'b', 3"), Is("'-1', 2; 'b', 2"))],
        ),
        scenario(
            "ALT-6",
            "a window that only adds columns looks at no rows",
            &[
                FOO,
                FOO_CRR,
                "SELECT crsql_internal_sync_bit(1)",
                "INSERT INTO foo VALUES (1, 2)",
                "SELECT crsql_internal_sync_bit(0)",
                "SELECT crsql_begin_alter('foo')",
                "ALTER TABLE foo ADD COLUMN c",
                "SELECT crsql_commit_alter('foo')",
            ],
            &[("SELECT count(*) FROM crsql_changes", Is("0"), Is("2"))],
        ),
        scenario(
            "ALT-7",
            "a column that was added past crsql_begin_alter() is recorded",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "ALTER TABLE foo ADD COLUMN c"],
            &[
                ("UPDATE foo SET c = 3", Is(""), Fails("expected")),
                ("SELECT cid, val FROM crsql_changes ORDER BY cid", Is("'b', 2; 'c', 3"), Is("'b', 2")),
            ],
        ),
        scenario(
            "ALT-7",
            "a table that was renamed goes on replicating",
            &[FOO, FOO_CRR, "INSERT INTO foo VALUES (1, 2)", "ALTER TABLE foo RENAME TO bar"],
            &[
                ("UPDATE bar SET b = 3", Is(""), Fails("")),
                ("SELECT \"table\", val FROM crsql_changes", Is("'bar', 3"), Fails("")),
            ],
        ),
    ]
}

/// Section 13, and limits.
fn transactions() -> Vec<Scenario> {
    // What crsql_as_crr() makes, without its triggers: CRSqlite takes half a minute for five hundred calls.
    let tables = |n: i32| {
        [
            format!("CREATE TABLE t{n} (a INTEGER PRIMARY KEY NOT NULL, b)"),
            format!("CREATE TABLE t{n}__crsql_pks (__crsql_key INTEGER PRIMARY KEY, a)"),
            format!(
                "CREATE TABLE t{n}__crsql_clock (key INTEGER NOT NULL, col_name TEXT NOT NULL,
                 col_version INTEGER NOT NULL, db_version INTEGER NOT NULL, site_id INTEGER NOT NULL DEFAULT 0,
                 seq INTEGER NOT NULL, PRIMARY KEY (key, col_name)) WITHOUT ROWID, STRICT"
            ),
        ]
    };
    let many: Vec<String> = [FOO.to_owned(), FOO_CRR.to_owned()].into_iter().chain((1..500).flat_map(tables)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    vec![
        scenario(
            "BUG-10",
            "five hundred tables replicate",
            &many,
            &[
                ("INSERT INTO foo VALUES (1, 2)", Is(""), Fails("")),
                ("SELECT count(*) FROM crsql_changes", Is("1"), Is("0")),
            ],
        ),
        scenario(
            "TX-10",
            "a table that is made after a write replicates in the same transaction",
            &[
                FOO,
                FOO_CRR,
                "BEGIN",
                "INSERT INTO foo VALUES (1, 2)",
                "CREATE TABLE bar (a INTEGER PRIMARY KEY NOT NULL, b)",
                "SELECT crsql_as_crr('bar')",
            ],
            &[("INSERT INTO bar VALUES (1, 2)", Is(""), Fails("not found"))],
        ),
        scenario(
            "BUG-16",
            "a key of another type is the key that the table stores",
            &[
                FOO,
                FOO_CRR,
                "INSERT INTO crsql_changes VALUES ('foo', crsql_pack_columns('1'), 'b', 7, 1, 1, NULL, 1, 0)",
                "UPDATE foo SET b = 8",
            ],
            &[("SELECT __crsql_key, a FROM foo__crsql_pks", Is("1, 1"), Is("1, '1'; 2, 1"))],
        ),
        scenario(
            "BUG-29",
            "no change can push the versions to the end of their range",
            &[FOO, FOO_CRR],
            &[
                (
                    "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', 7, 1, 9223372036854775807, NULL, 1, 0)",
                    Fails("is absurd"),
                    Is(""),
                ),
                ("INSERT INTO foo VALUES (2, 2)", Is(""), Is("")),
                ("SELECT db_version FROM crsql_changes WHERE pk = x'010902'", Is("1"), Is("-1")),
            ],
        ),
    ]
}

/// Sections 11.1 and 14.
fn ordered_lists() -> Vec<Scenario> {
    const LIST: &str = "CREATE TABLE list (a INTEGER NOT NULL, b INTEGER NOT NULL, spot TEXT, PRIMARY KEY (a, b))";
    const ORDERED: &str = "SELECT crsql_fract_as_ordered('list', 'spot')";
    vec![
        scenario(
            "FR-5",
            "there is no key between equal ones",
            &[],
            &[("SELECT crsql_fract_key_between('a0', 'a0')", Fails(""), Dies)],
        ),
        scenario(
            "FR-5",
            "an empty key is an error, and not the end of the process",
            &[],
            &[("SELECT crsql_fract_key_between('', NULL)", Fails(""), Dies)],
        ),
        scenario(
            "FR-6",
            "tables without rowids can be ordered",
            &["CREATE TABLE list (a INTEGER PRIMARY KEY NOT NULL, spot TEXT) WITHOUT ROWID", ORDERED],
            &[("INSERT INTO list VALUES (1, 1)", Is(""), Fails("no such column: _rowid_"))],
        ),
        scenario(
            "FR-10",
            "a list with a composite key puts rows between equal ones",
            &[LIST, ORDERED, "INSERT INTO list VALUES (1, 1, 'a!'), (1, 2, 'a!')"],
            &[("INSERT INTO list_fractindex (a, b, after_a, after_b) VALUES (2, 2, 1, 1)", Is(""), Fails(""))],
        ),
        scenario(
            "UV-2",
            "crsql_unpack_columns takes what it cannot unpack",
            &[],
            &[
                ("SELECT count(*) FROM crsql_unpack_columns(NULL)", Is("0"), Dies),
                ("SELECT count(*) FROM crsql_unpack_columns(x'')", Fails(""), Dies),
                ("SELECT cell FROM crsql_unpack_columns(x'02090c0909') WHERE cell = 12", Is("12"), Fails("")),
                ("SELECT package FROM crsql_unpack_columns(x'010901')", Is("x'010901'"), Fails("")),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::{APPENDIX_B, NOT_SHOWN, scenarios};
    use crate::by_hand;
    use crate::deviation::Deviation;

    #[test]
    fn the_register_holds_all_of_appendix_b() {
        let scenarios = scenarios();
        let mut rules: Vec<&str> = scenarios.iter().map(|scenario| scenario.rule).collect();
        rules.extend(by_hand::ALL.iter().map(|(rule, ..)| *rule));
        rules.extend(NOT_SHOWN.iter().flat_map(|(rules, _)| rules.split(", ")));
        let missing: Vec<_> = APPENDIX_B.iter().filter(|rule| !rules.contains(rule)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn what_random_programs_may_meet_is_in_the_register() {
        for deviation in Deviation::ALL {
            let (rule, what) = deviation.describe();
            assert!(scenarios().iter().any(|scenario| scenario.rule == rule), "{rule}: {what}");
        }
    }
}
