//! What the engine registers with SQLite, as SQLite tells it (`crsqlite-compat.md` section 7; section 19, item 1).
//!
//! The tables are complete: whoever adds a function or a module adds its line.

mod support;

use litemesh_engine::Engine;
use litemesh_engine::rusqlite::Connection;
use support::ask;

// The bits of `pragma_function_list.flags` (sqlite3.h).
const D: i64 = 0x800; // SQLITE_DETERMINISTIC
const O: i64 = 0x8_0000; // SQLITE_DIRECTONLY
const I: i64 = 0x20_0000; // SQLITE_INNOCUOUS
/// Those that the specification speaks of. SQLite shows no others of ours.
const FLAGS: i64 = D | O | I;

/// Name, number of arguments (-1 is any), flags.
const FUNCTIONS: &[(&str, i64, i64)] = &[
    ("crsql_after_delete", -1, I),
    ("crsql_after_insert", -1, I),
    ("crsql_after_update", -1, I),
    // D in CRSqlite, and it writes: SQLite may run a deterministic call with constant arguments although no row asks for it.
    ("crsql_as_crr", -1, 0),
    ("crsql_as_table", 1, 0),
    ("crsql_automigrate", -1, 0),
    ("crsql_begin_alter", -1, O),
    ("crsql_commit_alter", -1, O),
    // D in CRSqlite, and the setting changes.
    ("crsql_config_get", 1, I),
    ("crsql_config_set", 2, 0),
    ("crsql_db_version", 0, I),
    ("crsql_finalize", -1, O),
    ("crsql_fract_as_ordered", -1, O),
    ("crsql_fract_fix_conflict_return_old_key", -1, I),
    ("crsql_fract_key_between", 2, I | D),
    // D in CRSqlite, and the number grows (FN-4).
    ("crsql_get_seq", 0, I),
    ("crsql_increment_and_get_seq", 0, I),
    ("crsql_internal_sync_bit", -1, I),
    ("crsql_next_db_version", -1, I),
    ("crsql_pack_columns", -1, 0),
    ("crsql_rows_impacted", 0, I),
    ("crsql_sha", 0, I | D),
    ("crsql_site_id", 0, I | D),
    // Not in CRSqlite 0.16, this one and those below.
    ("crsql_version", 0, I | D),
    ("litemesh_after_update", -1, I),
    ("litemesh_batch_at", -1, O),
    ("litemesh_batch_value", -1, O),
    ("litemesh_ends_walk", -1, O),
    ("litemesh_has_life", -1, O),
    ("litemesh_is_older", -1, O),
    ("litemesh_pack", -1, I),
    ("litemesh_version", 0, I | D),
];

/// Virtual tables, ours and the two that follow transactions.
const MODULES: &[&str] = &[
    "clset",
    "crsql_changes",
    "crsql_check",
    "crsql_unpack_columns",
    "litemesh_batch",
    "litemesh_statements",
    "litemesh_transaction",
];

fn texts(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn functions_have_the_documented_arguments_and_flags() {
    let engine = Engine::open_in_memory().unwrap();
    let mut list = engine
        .connection()
        .prepare(
            "SELECT name, narg, flags, type, enc FROM pragma_function_list
             WHERE name GLOB 'crsql_*' OR name GLOB 'litemesh_*' ORDER BY name, narg",
        )
        .unwrap();
    let found: Vec<(String, i64, i64)> = list
        .query_map([], |row| {
            assert_eq!((row.get::<_, String>(3)?, row.get::<_, String>(4)?), ("s".to_owned(), "utf8".to_owned()));
            Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)? & FLAGS))
        })
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let found: Vec<(&str, i64, i64)> =
        found.iter().map(|(name, count, flags)| (name.as_str(), *count, *flags)).collect();
    for (found, listed) in found.iter().zip(FUNCTIONS) {
        assert_eq!(found, listed);
    }
    assert_eq!(found.len(), FUNCTIONS.len(), "{found:?}");
}

#[test]
fn modules_are_those_listed() {
    let engine = Engine::open_in_memory().unwrap();
    let sql = "SELECT name FROM pragma_module_list WHERE name GLOB 'c*' OR name GLOB 'litemesh_*' ORDER BY name";
    assert_eq!(texts(engine.connection(), sql), MODULES);
}

/// 6.1 and UV-1: order, names and types are what peers rely on who write `INSERT INTO crsql_changes SELECT * …`.
#[test]
fn virtual_tables_have_the_documented_columns() {
    let engine = Engine::open_in_memory().unwrap();
    let columns = |table: &str| {
        let sql = format!(
            "SELECT name || ' ' || type || iif(\"notnull\", ' NOT NULL', '') || iif(hidden, ' HIDDEN', '')
                           FROM pragma_table_xinfo('{table}') ORDER BY cid"
        );
        texts(engine.connection(), &sql)
    };
    assert_eq!(
        columns("crsql_changes"),
        [
            "table TEXT NOT NULL",
            "pk BLOB NOT NULL",
            "cid TEXT NOT NULL",
            "val ANY",
            "col_version INTEGER NOT NULL",
            "db_version INTEGER NOT NULL",
            "site_id BLOB NOT NULL",
            "cl INTEGER NOT NULL",
            "seq INTEGER NOT NULL",
        ]
    );
    assert_eq!(columns("crsql_unpack_columns"), ["cell ANY", "package BLOB HIDDEN"]);
}

/// DSK-1 to DSK-8: the facts of the layout, read from SQLite rather than from our own text.
#[test]
fn tables_have_the_documented_layout() {
    let engine = Engine::open_in_memory().unwrap();
    let connection = engine.connection();
    connection
        .execute_batch(
            "CREATE TABLE t (v, y TEXT NOT NULL, x INT NOT NULL, PRIMARY KEY (x, y)); SELECT crsql_as_crr('t')",
        )
        .unwrap();
    let columns = |table: &str| {
        let sql = format!(
            "SELECT name || ' ' || type || iif(\"notnull\", ' NOT NULL', '') || ifnull(' DEFAULT ' || dflt_value, '')
             || iif(pk, ' PK' || pk, '') FROM pragma_table_xinfo('{table}') ORDER BY cid"
        );
        texts(connection, &sql)
    };
    // STRICT makes key columns NOT NULL, in CRSqlite as well.
    assert_eq!(
        columns("crsql_tracked_peers"),
        [
            "site_id BLOB NOT NULL PK1",
            "version INTEGER NOT NULL",
            "seq INTEGER DEFAULT 0",
            "tag INTEGER NOT NULL PK2",
            "event INTEGER NOT NULL PK3",
        ]
    );
    assert_eq!(columns("crsql_master"), ["key TEXT PK1", "value ANY"]);
    assert_eq!(columns("crsql_site_id"), ["site_id BLOB NOT NULL", "ordinal INTEGER PK1"]);
    assert_eq!(
        columns("t__crsql_clock"),
        [
            "key INTEGER NOT NULL PK1",
            "col_name TEXT NOT NULL PK2",
            "col_version INTEGER NOT NULL",
            "db_version INTEGER NOT NULL",
            "site_id INTEGER NOT NULL DEFAULT 0",
            "seq INTEGER NOT NULL",
        ]
    );
    assert_eq!(columns("t__crsql_pks"), ["__crsql_key INTEGER PK1", "x ", "y "]);
    let forms = "SELECT group_concat(name || wr || strict, ' ') FROM (SELECT * FROM pragma_table_list
                 WHERE name IN ('crsql_master', 'crsql_site_id', 'crsql_tracked_peers', 't__crsql_clock', 't__crsql_pks')
                 ORDER BY name)";
    assert_eq!(
        ask::<String>(connection, forms),
        "crsql_master00 crsql_site_id00 crsql_tracked_peers01 t__crsql_clock11 t__crsql_pks00"
    );
    let index = |name: &str| {
        let sql = format!("SELECT name FROM pragma_index_info('{name}') ORDER BY seqno");
        texts(connection, &sql).join(" ")
    };
    assert_eq!(index("crsql_site_id_site_id"), "site_id");
    assert_eq!(index("t__crsql_clock_dbv_idx"), "db_version");
    assert_eq!(index("t__crsql_pks_pks"), "x y");
    let triggers = "SELECT name FROM sqlite_schema WHERE type = 'trigger' ORDER BY name";
    assert_eq!(texts(connection, triggers), ["t__crsql_dtrig", "t__crsql_itrig", "t__crsql_utrig"]);
}

#[test]
fn versions_are_those_of_the_original() {
    let engine = Engine::open_in_memory().unwrap();
    assert_eq!(ask::<i64>(engine.connection(), "SELECT crsql_version()"), 160_300);
    let stamp = "SELECT value FROM crsql_master WHERE key = 'crsqlite_version'";
    assert_eq!(ask::<i64>(engine.connection(), stamp), 160_300);
    assert!(ask::<String>(engine.connection(), "SELECT crsql_sha()").len() >= 7);
}
