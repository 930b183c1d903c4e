//! What holds of every database of the engine, whatever happened to it (`crsqlite-compat.md` section 19, item 5).

use litemesh_engine::Engine;
use litemesh_engine::rusqlite::Connection;

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn count(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// # Panics
///
/// Rows and clocks of a replicated table do not fit together.
pub(crate) fn assert_consistent(engine: &Engine) {
    let connection = engine.connection();
    for table in engine.tables().unwrap() {
        let mut info = connection.prepare("SELECT name FROM pragma_table_info(?1) WHERE pk > 0").unwrap();
        let keys = info.query_map([&*table], |row| row.get::<_, String>(0)).unwrap();
        let same: Vec<_> = keys.map(|key| quote(&key.unwrap())).map(|key| format!("b.{key} IS k.{key}")).collect();
        let (base, same) = (quote(&table), same.join(" AND "));
        let (clock, keys) = (quote(&format!("{table}__crsql_clock")), quote(&format!("{table}__crsql_pks")));
        let life = format!("(SELECT col_version FROM {clock} s WHERE s.key = k.__crsql_key AND s.col_name = '-1')");
        let has_clock = format!("EXISTS (SELECT 1 FROM {clock} c WHERE c.key = k.__crsql_key)");
        let has_cells = format!("EXISTS (SELECT 1 FROM {clock} c WHERE c.key = k.__crsql_key AND c.col_name <> '-1')");
        let has_base = format!("EXISTS (SELECT 1 FROM {base} b WHERE {same})");
        for (what, sql) in [
            (
                "a clock without a key",
                format!(
                    "SELECT count(*) FROM {clock} c WHERE NOT EXISTS (SELECT 1 FROM {keys} k WHERE k.__crsql_key = c.key)"
                ),
            ),
            (
                "a row without a clock",
                format!(
                    "SELECT count(*) FROM {base} b WHERE NOT EXISTS (SELECT 1 FROM {keys} k WHERE {same} AND {has_clock})"
                ),
            ),
            (
                "a dead row that is there, or has clocks of cells",
                format!("SELECT count(*) FROM {keys} k WHERE {life} % 2 = 0 AND ({has_base} OR {has_cells})"),
            ),
            (
                "a living row that is not there",
                format!(
                    "SELECT count(*) FROM {keys} k WHERE {has_clock} AND ifnull({life}, 1) % 2 = 1 AND NOT {has_base}"
                ),
            ),
            (
                "a clock of another site without the version of that site",
                format!(
                    "SELECT count(*) FROM {clock} c WHERE c.site_id <> 0 AND NOT EXISTS (SELECT 1 FROM litemesh_origin o
                     WHERE o.local_version = c.db_version AND o.site = c.site_id)"
                ),
            ),
            (
                "a clock of an unknown site",
                format!("SELECT count(*) FROM {clock} c WHERE c.site_id NOT IN (SELECT ordinal FROM crsql_site_id)"),
            ),
        ] {
            assert_eq!(count(connection, &sql), 0, "table {table} has {what}");
        }
    }
}
