//! A whole database as text: what must not change when something is refused.

use std::fmt::Write as _;

use litemesh_engine::rusqlite::Connection;
use litemesh_engine::rusqlite::types::ValueRef;

/// Schema and rows of every table, those of the engine included.
pub(crate) fn snapshot(connection: &Connection) -> String {
    let mut text = String::new();
    append(connection, "SELECT type, name, sql FROM sqlite_schema ORDER BY rowid", &mut text);
    let mut tables = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name")
        .unwrap();
    let names: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for name in names {
        let quoted = name.replace('"', "\"\"");
        append(connection, &format!("SELECT * FROM \"{quoted}\""), &mut text);
    }
    text
}

/// The rows of a query.
pub(crate) fn append(connection: &Connection, sql: &str, text: &mut String) {
    writeln!(text, "{sql}").unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        for column in 0..columns {
            match row.get_ref(column).unwrap() {
                ValueRef::Null => text.push_str("NULL"),
                ValueRef::Integer(value) => write!(text, "{value}").unwrap(),
                ValueRef::Real(value) => write!(text, "{value:?}").unwrap(),
                ValueRef::Text(bytes) => write!(text, "'{}'", String::from_utf8_lossy(bytes)).unwrap(),
                ValueRef::Blob(bytes) => write!(text, "x{bytes:02x?}").unwrap(),
            }
            text.push('|');
        }
        text.push('\n');
    }
}
