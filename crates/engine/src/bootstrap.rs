//! Creates the engine's tables, or recognises a layout that is not ours before anything is written.

use litemesh_proto::SiteId;

use crate::error::OpenError;
use crate::foreign_layout::refuse_foreign_layout;
use crate::statement::{Bind, Handle};

/// The layout that we read and write, as CRSqlite 0.16.3 stamps it (DSK-2).
pub(crate) const LAYOUT_VERSION: i64 = 160_300;

/// What opening found out.
pub(crate) struct Bootstrap {
    pub(crate) site: SiteId,
    pub(crate) merge_equal_values: i64,
    pub(crate) has_litemesh_tables: bool,
    pub(crate) has_crsql_tables: bool,
}

/// Makes the global tables that are missing. Writes nothing where all is there, so that a read-only file opens (TX-2).
pub(crate) fn bootstrap(db: Handle) -> Result<Bootstrap, OpenError> {
    refuse_what_is_not_ours(db)?;
    let mut has_litemesh_tables = true;
    if !is_complete(db)? {
        if !is_read_only(db) {
            create(db)?;
        } else if exists(db, "crsql_master")? && exists(db, "crsql_site_id")? {
            // A file of CRSqlite's own.
            has_litemesh_tables = false;
        } else {
            let site = SiteId::default();
            return Ok(Bootstrap { site, merge_equal_values: 0, has_litemesh_tables: false, has_crsql_tables: false });
        }
    }
    let site = own_site(db)?;
    // A value that is no integer counts as the default (CFG-4): the file must stay openable.
    let config = "SELECT value FROM crsql_master WHERE key = 'config.merge-equal-values' AND typeof(value) = 'integer'";
    let merge_equal_values = db.query_integer(config, &[])?.unwrap_or_default();
    Ok(Bootstrap { site, merge_equal_values, has_litemesh_tables, has_crsql_tables: true })
}

/// The site id of the database, zeros where it has none that can be used.
pub(crate) fn own_site(db: Handle) -> rusqlite::Result<SiteId> {
    let statement = db.prepare("SELECT site_id FROM crsql_site_id WHERE ordinal = 0")?;
    let rows = statement.query(&[])?;
    Ok(if rows.next()? { SiteId::from_slice(rows.bytes(0)).unwrap_or_default() } else { SiteId::default() })
}

fn exists(db: Handle, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
    Ok(db.query_integer(sql, &[table.into()])?.unwrap_or_default() > 0)
}

/// Columns of ours that came later than their tables.
const LATER_COLUMNS: [(&str, &str); 2] = [("litemesh_position", "incarnation"), ("litemesh_cursor", "moved")];

fn has_column(db: Handle, table: &str, column: &str) -> rusqlite::Result<bool> {
    const FIND: &str = "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2";
    Ok(db.query_integer(FIND, &[table.into(), column.into()])? == Some(1))
}

fn is_complete(db: Handle) -> rusqlite::Result<bool> {
    for (table, column) in LATER_COLUMNS {
        if !has_column(db, table, column)? {
            return Ok(false);
        }
    }
    let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('crsql_tracked_peers',
        'crsql_master', 'crsql_site_id', 'litemesh_origin', 'litemesh_cursor', 'litemesh_position', 'litemesh_stage',
        'litemesh_incarnation', 'litemesh_meta')";
    Ok(db.query_integer(tables, &[])? == Some(9)
        && db.query_integer("SELECT length(site_id) FROM crsql_site_id WHERE ordinal = 0", &[])? == Some(16))
}

pub(crate) fn is_read_only(db: Handle) -> bool {
    // SAFETY: the connection is open and the name terminated.
    unsafe { rusqlite::ffi::sqlite3_db_readonly(db.as_ptr(), c"main".as_ptr()) != 0 }
}

/// To be asked before anything is written, the journal mode included.
pub(crate) fn refuse_what_is_not_ours(db: Handle) -> Result<(), OpenError> {
    refuse_utf16(db)?;
    refuse_foreign_layout(db)
}

/// Keys and values are compared, and sent, as the bytes that SQLite holds: they must be the same bytes everywhere.
fn refuse_utf16(db: Handle) -> Result<(), OpenError> {
    let statement = db.prepare("PRAGMA encoding")?;
    let rows = statement.query(&[])?;
    // In a database of UTF-16 the answer is in UTF-16, too.
    if rows.next()? && rows.bytes(0) == b"UTF-8" { Ok(()) } else { Err(OpenError::Utf16) }
}

fn create(db: Handle) -> rusqlite::Result<()> {
    db.execute("SAVEPOINT litemesh_bootstrap")?;
    let created = create_tables(db);
    if created.is_err() {
        db.execute("ROLLBACK TO litemesh_bootstrap")?;
    }
    db.execute("RELEASE litemesh_bootstrap")?;
    created
}

pub(crate) fn create_tables(db: Handle) -> rusqlite::Result<()> {
    for sql in [
        // DSK-1 to DSK-3: CRSqlite's own.
        "CREATE TABLE IF NOT EXISTS crsql_tracked_peers (site_id BLOB NOT NULL, version INTEGER NOT NULL,
         seq INTEGER DEFAULT 0, tag INTEGER, event INTEGER, PRIMARY KEY (site_id, tag, event)) STRICT",
        "CREATE TABLE IF NOT EXISTS crsql_master (key TEXT PRIMARY KEY, value ANY)",
        "CREATE TABLE IF NOT EXISTS crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY)",
        "CREATE UNIQUE INDEX IF NOT EXISTS crsql_site_id_site_id ON crsql_site_id (site_id)",
        // Ours; what they mean stands in docs/storage.md.
        "CREATE TABLE IF NOT EXISTS litemesh_origin (local_version INTEGER NOT NULL, site INTEGER NOT NULL,
         version INTEGER NOT NULL, PRIMARY KEY (local_version, site)) WITHOUT ROWID, STRICT",
        "CREATE INDEX IF NOT EXISTS litemesh_origin_site ON litemesh_origin (site, version)",
        "CREATE TABLE IF NOT EXISTS litemesh_cursor (site_id BLOB NOT NULL PRIMARY KEY, version INTEGER NOT NULL,
         moved INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID, STRICT",
        "CREATE TABLE IF NOT EXISTS litemesh_position (site_id BLOB NOT NULL PRIMARY KEY, position INTEGER NOT NULL,
         incarnation INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID, STRICT",
        "CREATE TABLE IF NOT EXISTS litemesh_incarnation (number INTEGER PRIMARY KEY NOT NULL,
         incarnation INTEGER NOT NULL UNIQUE, since INTEGER NOT NULL, written_since INTEGER) STRICT",
        "CREATE TABLE IF NOT EXISTS litemesh_stage (site_id BLOB NOT NULL, number INTEGER NOT NULL,
         position INTEGER NOT NULL, incarnation INTEGER NOT NULL, place BLOB, count INTEGER NOT NULL,
         changes BLOB NOT NULL, PRIMARY KEY (site_id, number)) WITHOUT ROWID, STRICT",
        // Of before whole messages were staged. Nobody counts on what it has.
        "DROP TABLE IF EXISTS litemesh_staged",
        "CREATE TABLE IF NOT EXISTS litemesh_meta (key TEXT NOT NULL PRIMARY KEY, value ANY) WITHOUT ROWID, STRICT",
    ] {
        db.execute(sql)?;
    }
    // A file may be of before these were.
    for (table, column) in LATER_COLUMNS {
        if !has_column(db, table, column)? {
            db.execute(&format!("ALTER TABLE {table} ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0"))?;
        }
    }
    let stamp = "INSERT INTO crsql_master (key, value) VALUES ('crsqlite_version', ?1)
                 ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)";
    db.prepare(stamp)?.run(&[LAYOUT_VERSION.into()])?;
    let has_site = db.query_integer("SELECT length(site_id) FROM crsql_site_id WHERE ordinal = 0", &[])?;
    if has_site != Some(16) {
        let site = new_site_id(db)?;
        db.prepare("INSERT OR REPLACE INTO crsql_site_id (site_id, ordinal) VALUES (?1, 0)")?
            .run(&[Bind::Blob(site.as_bytes())])?;
    }
    Ok(())
}

/// 16 random bytes from SQLite's generator, shaped as a UUID version 4 (VER-16).
pub(crate) fn new_site_id(db: Handle) -> rusqlite::Result<SiteId> {
    let random = db.prepare("SELECT randomblob(16)")?;
    let rows = random.query(&[])?;
    rows.next()?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(rows.bytes(0));
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Ok(SiteId::from_bytes(bytes))
}
