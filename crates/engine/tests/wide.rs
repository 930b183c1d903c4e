//! Tables with more columns than a function of SQLite takes arguments (CRR-7, BUG-11).

mod support;

use litemesh_engine::proto::Column;
use litemesh_engine::rusqlite::ffi;
use litemesh_engine::{Engine, ReplicateError};
use support::{ask, dump, merge, refusal, select_changes};

/// With the limits of SQLite before 3.48, which a program that loads the engine may still have.
fn engine(columns: usize, limit: i32) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    // SAFETY: the connection is open.
    unsafe { ffi::sqlite3_limit(engine.connection().handle(), ffi::SQLITE_LIMIT_FUNCTION_ARG, limit) };
    let cells: Vec<_> = (0..columns).map(|n| format!(", \"c {n}\"")).collect();
    let create = format!("CREATE TABLE wide (id PRIMARY KEY NOT NULL{})", cells.concat());
    engine.connection().execute_batch(&create).unwrap();
    engine.replicate("wide").unwrap();
    engine
}

/// 62 cells are the last that CRSqlite takes. The text of triggers is its own up to there.
#[test]
fn tables_of_any_width_replicate() {
    for (columns, is_packed) in
        [(1, false), (62, false), (63, true), (99, true), (100, true), (250, true), (1997, true)]
    {
        let (mut one, mut two) = (engine(columns, 127), engine(columns, 127));
        let trigger: String = ask(one.connection(), "SELECT sql FROM sqlite_master WHERE name = 'wide__crsql_utrig'");
        assert_eq!(trigger.contains("litemesh_after_update"), is_packed, "{columns}");
        let last = columns - 1;
        one.connection().execute_batch("INSERT INTO wide (id, \"c 0\") VALUES (1, 'x'), (2, 'y'), (3, 'z')").unwrap();
        let version = one.db_version().unwrap();
        for nothing in
            ["UPDATE wide SET \"c 0\" = \"c 0\"".to_owned(), format!("UPDATE wide SET \"c {last}\" = \"c {last}\"")]
        {
            one.connection().execute_batch(&nothing).unwrap();
            assert_eq!(one.db_version().unwrap(), version, "VER-6, {columns}: {nothing}");
        }
        one.connection()
            .execute_batch(&format!(
                "UPDATE wide SET \"c {last}\" = 'last' WHERE id = 1; UPDATE wide SET id = 4 WHERE id = 2; DELETE FROM wide WHERE id = 3"
            ))
            .unwrap();
        let changed = select_changes(one.connection(), "WHERE db_version = 2");
        assert_eq!(changed.len(), 1, "{columns}");
        assert_eq!((changed[0].column.as_str(), changed[0].col_version.get()), (&*format!("c {last}"), 2));
        let moved = select_changes(one.connection(), "WHERE db_version = 3");
        assert_eq!(
            moved.iter().filter(|change| change.column != Column::Row).count(),
            columns,
            "LW-6: every cell moves"
        );
        merge(&mut two, &dump(&one));
        let rows = format!(
            "SELECT group_concat(id || coalesce(\"c 0\", '-') || coalesce(\"c {last}\", '-'), ' ') FROM (SELECT * FROM wide ORDER BY id)"
        );
        assert_eq!(ask::<String>(two.connection(), &rows), ask::<String>(one.connection(), &rows), "{columns}");
        assert_eq!(
            ask::<String>(two.connection(), "SELECT group_concat(id, '') FROM (SELECT id FROM wide ORDER BY id)"),
            "14"
        );
        two.connection().execute_batch(&format!("UPDATE wide SET \"c {last}\" = 'back'")).unwrap();
        merge(&mut one, &dump(&two));
        assert_eq!(ask::<i64>(one.connection(), &format!("SELECT count(*) FROM wide WHERE \"c {last}\" = 'back'")), 2);
    }
}

/// Values are told apart by type, as in narrow tables; those of every kind come through.
#[test]
fn packed_values_are_compared_as_they_are() {
    let engine = engine(70, 127);
    let connection = engine.connection();
    connection.execute_batch("INSERT INTO wide (id, \"c 5\") VALUES (1, 1)").unwrap();
    let mut version = 1;
    for (value, is_change) in [
        ("1", false),
        ("1.0", true),
        ("'1'", true),
        ("x'31'", true),
        ("NULL", true),
        ("NULL", false),
        ("0.0", true),
        ("-0.0", false),
        ("9e999", true),
        ("''", true),
        ("x''", true),
        ("-9223372036854775808", true),
    ] {
        connection.execute_batch(&format!("UPDATE wide SET \"c 5\" = {value}")).unwrap();
        version += i64::from(is_change);
        assert_eq!(engine.db_version().unwrap().get(), version, "{value}");
    }
}

/// Added columns cross the width at which triggers change.
#[test]
fn a_table_can_become_wide_and_narrow_again() {
    let mut engine = engine(62, 127);
    let trigger = |engine: &Engine| {
        ask::<String>(engine.connection(), "SELECT sql FROM sqlite_master WHERE name = 'wide__crsql_utrig'")
    };
    engine.connection().execute_batch("INSERT INTO wide (id) VALUES (1)").unwrap();
    engine.alter("wide", |connection| connection.execute_batch("ALTER TABLE wide ADD COLUMN d")).unwrap();
    assert!(trigger(&engine).contains("litemesh_after_update"));
    engine.connection().execute_batch("UPDATE wide SET d = 5, \"c 3\" = 6").unwrap();
    assert_eq!(select_changes(engine.connection(), "WHERE db_version = 2").len(), 2);
    engine.alter("wide", |connection| connection.execute_batch("ALTER TABLE wide DROP COLUMN \"c 3\"")).unwrap();
    assert!(!trigger(&engine).contains("litemesh_after_update"));
    engine.connection().execute_batch("UPDATE wide SET d = 7").unwrap();
    assert_eq!(select_changes(engine.connection(), "WHERE db_version = 3").len(), 1);
}

/// PRAGMA trusted_schema = OFF is recommended for files from strangers.
#[test]
fn wide_tables_work_where_the_schema_is_not_trusted() {
    for columns in [2, 80] {
        let engine = engine(columns, 127);
        engine
            .connection()
            .execute_batch("PRAGMA trusted_schema = OFF; INSERT INTO wide (id) VALUES (1); UPDATE wide SET \"c 1\" = 2; DELETE FROM wide")
            .unwrap();
        assert_eq!(engine.db_version().unwrap().get(), 3);
    }
}

#[test]
fn what_is_too_wide_is_told() {
    let engine = Engine::open_in_memory().unwrap();
    let columns = |count: usize| (0..count).map(|n| format!(", c{n}")).collect::<String>();
    engine.connection().execute_batch(&format!("CREATE TABLE t (id PRIMARY KEY NOT NULL{})", columns(1998))).unwrap();
    let error = engine.replicate("t").unwrap_err();
    assert!(matches!(error, ReplicateError::TooWide { columns: 1999, columns_max: 1998, .. }), "{error}");
    let keys: Vec<_> = (0..256).map(|n| format!("k{n}")).collect();
    let create = format!("CREATE TABLE k ({} NOT NULL, PRIMARY KEY ({}))", keys.join(" NOT NULL, "), keys.join(", "));
    engine.connection().execute_batch(&create).unwrap();
    let error = engine.replicate("k").unwrap_err();
    assert!(matches!(error, ReplicateError::TooManyKeys { keys: 256, .. }), "{error}");
}

#[test]
fn wrong_arguments_are_errors() {
    let engine = engine(70, 127);
    for (arguments, gist) in [
        ("", "expected at least 1 argument"),
        ("'wide'", "expected 142 values, got 0"),
        ("'wide', litemesh_pack(1), litemesh_pack(1)", "expected 142 values, got 2"),
        ("'wide', x'ff', x'ff'", ""),
        ("'wide', 1, 2", ""),
        ("'none', x'00'", "not found"),
        ("NULL", ""),
    ] {
        let message = refusal(engine.connection(), &format!("SELECT litemesh_after_update({arguments})"));
        assert!(message.contains(gist), "{arguments}: {message}");
    }
    assert_eq!(engine.db_version().unwrap().get(), 0);
}
