//! Recognises files of other versions of CRSqlite, by their tables (TX-4): their numbers do not tell, since 0.16 itself stamps
//! files of 0.15 anew that it cannot read.
//!
//! | version | what is different |
//! |---|---|
//! | 0.12 and older | clocks hold the primary key and `__crsql_col_name`; the site id is in `__crsql_siteid` |
//! | 0.13 to 0.15 | the same, and `__crsql_seq`; in 0.15 authors are ordinals |
//! | fork 0.17 | clocks have `ts`; `crsql_db_versions` holds the versions of all sites |
//! | fork 0.18 | tables `__crsql_v2_…` beside or instead of clocks |

use crate::error::OpenError;
use crate::statement::Handle;

/// The oldest number that CRSqlite 0.16 opens (TX-3).
const LAYOUT_VERSION_MIN: i64 = 150_000;

/// Refuses what is not of 0.16. Reads only.
pub(crate) fn refuse_foreign_layout(db: Handle) -> Result<(), OpenError> {
    // What tells most comes first.
    const FORK_0_18: &str = "type = 'table' AND instr(name, '__crsql_v2_') > 0";
    const FORK_0_17: &str = "type = 'table' AND name = 'crsql_db_versions'";
    const CLOCKS: &str = "type = 'table' AND substr(name, -13) = '__crsql_clock'";
    const OLD_SITE: &str = "type = 'table' AND name = '__crsql_siteid'";
    for (condition, found) in [
        (FORK_0_18, Some("fork 0.18")),
        (FORK_0_17, Some("fork 0.17")),
        (CLOCKS, None),
        (OLD_SITE, Some("0.15 or older")),
    ] {
        let list = db.prepare(&format!("SELECT name FROM sqlite_master WHERE {condition} ORDER BY rowid"))?;
        let rows = list.query(&[])?;
        while rows.next()? {
            let table = rows.text(0).into_owned();
            let found = match found {
                Some(found) => Some(found),
                None => layout_of_clocks(db, &table)?,
            };
            if let Some(found) = found {
                return Err(OpenError::ForeignLayout { table, found });
            }
        }
    }
    if exists(db, "crsql_master")? && exists(db, "crsql_site_id")? {
        let version = "SELECT value FROM crsql_master WHERE key = 'crsqlite_version'";
        let version = db.query_integer(version, &[])?.unwrap_or_default();
        if version < LAYOUT_VERSION_MIN {
            return Err(OpenError::OldLayout { version });
        }
    }
    Ok(())
}

/// Whose a clock table is; `None` where it is one of 0.16.
fn layout_of_clocks(db: Handle, table: &str) -> rusqlite::Result<Option<&'static str>> {
    let columns = db.prepare(
        "SELECT coalesce(sum(name IN ('key', 'col_name', 'col_version', 'db_version', 'site_id', 'seq')), 0),
         coalesce(sum(name = 'ts'), 0), coalesce(sum(name = '__crsql_col_name'), 0), coalesce(sum(name = '__crsql_seq'), 0)
         FROM pragma_table_info(?1, 'main')",
    )?;
    let counts = columns.query(&[table.into()])?;
    counts.next()?;
    Ok(match (counts.integer(0), counts.integer(1), counts.integer(2), counts.integer(3)) {
        (_, _, 1, 0) => Some("0.12 or older"),
        (_, _, 1, _) => Some("0.13 to 0.15"),
        (6, 0, ..) => None,
        (_, 1, ..) => Some("fork 0.17"),
        _ => Some("one that is not known"),
    })
}

fn exists(db: Handle, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
    Ok(db.query_integer(sql, &[table.into()])? > Some(0))
}
