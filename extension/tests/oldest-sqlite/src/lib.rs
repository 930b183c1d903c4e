//! A host of the extension: SQLite 3.38, linked into this program.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

/// The extension: `LITEMESH_EXTENSION`, else the debug build.
pub fn extension() -> PathBuf {
    std::env::var_os("LITEMESH_EXTENSION").map_or_else(
        || {
            let name = format!("{}litemesh{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug").join(name)
        },
        PathBuf::from,
    )
}

/// Loads a file as an extension; SQLite finds the entry point by the file's name.
pub fn load(connection: &Connection, file: &Path) -> rusqlite::Result<()> {
    // SAFETY: what is loaded is what these tests are about.
    unsafe {
        connection.load_extension_enable()?;
        let loaded = connection.load_extension(file, None);
        connection.load_extension_disable()?;
        loaded
    }
}

/// A database file with the extension loaded.
pub fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    load(&connection, &extension()).unwrap();
    connection
}

/// A database in memory with the extension loaded, and a replicated table `item(id, a, b)`.
pub fn memory() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    load(&connection, &extension()).unwrap();
    create_item(&connection);
    connection
}

pub fn create_item(connection: &Connection) {
    connection.execute_batch("CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, a, b)").unwrap();
    text(connection, "SELECT crsql_as_crr('item')");
}

/// The columns of the first row, joined.
pub fn text(connection: &Connection, sql: &str) -> String {
    rows(connection, sql).into_iter().next().unwrap_or_default()
}

/// One string for each row: SQLite's literals, separated by blanks.
pub fn rows(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        (0..columns).map(|index| row.get_ref(index).map(literal)).collect::<rusqlite::Result<Vec<_>>>()
    };
    statement.query_map([], row).unwrap().map(|row| row.unwrap().join(" ")).collect()
}

fn literal(value: rusqlite::types::ValueRef<'_>) -> String {
    use rusqlite::types::ValueRef;
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(value) => value.to_string(),
        ValueRef::Real(value) => format!("{value:?}"),
        ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
    }
}

/// Sends what `from` has above `since` and does not come from `to` itself; gives the version reached.
pub fn exchange(from: &Connection, to: &Connection, since: i64) -> i64 {
    let site: Vec<u8> = to.query_row("SELECT crsql_site_id()", [], |row| row.get(0)).unwrap();
    let mut read = from
        .prepare(
            "SELECT \"table\", pk, cid, val, col_version, db_version, site_id, cl, seq FROM crsql_changes
             WHERE db_version > ?1 AND site_id IS NOT ?2 ORDER BY db_version, seq",
        )
        .unwrap();
    to.execute_batch("BEGIN IMMEDIATE").unwrap();
    {
        let mut write = to.prepare("INSERT INTO crsql_changes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)").unwrap();
        let mut changes = read.query(rusqlite::params![since, site]).unwrap();
        while let Some(change) = changes.next().unwrap() {
            let values = (0..9).map(|index| change.get::<_, rusqlite::types::Value>(index).unwrap());
            write.execute(rusqlite::params_from_iter(values)).unwrap();
        }
    }
    to.execute_batch("COMMIT").unwrap();
    from.query_row("SELECT crsql_db_version()", [], |row| row.get(0)).unwrap()
}
