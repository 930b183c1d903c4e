//! Gives a copied database a site id of its own (VER-16; `crsqlite-compat.md` 17.4).
//!
//! A copy has the site id of its original. What either writes from then on would carry the same id and the same versions,
//! and whoever holds the one would never take the other. So the copy becomes a new site, and what it took over becomes what
//! a merge would have left: the changes of another site, with its versions, all of which we hold.

use litemesh_proto::{DbVersion, SiteId};

use crate::bootstrap::new_site_id;
use crate::core::Core;
use crate::cursor_moves;
use crate::schema::CLOCK_SUFFIX;
use crate::sql::quote;
use crate::statement::{Bind, Handle};

/// What [`Engine::fork`](crate::Engine::fork) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forked {
    /// The site id that the database had: that of its original.
    pub before: SiteId,
    /// The site id that it has now.
    pub after: SiteId,
    /// Up to here the versions of the original are held: what it had written when it was copied.
    pub version: DbVersion,
}

/// Forks in the transaction that is running.
pub(crate) fn fork(core: &mut Core, copied_at: Option<DbVersion>) -> rusqlite::Result<Forked> {
    // Nothing that was read before counts: the file may be another one by now.
    core.forget_everything();
    core.enlist()?;
    let db = core.db;
    let newest = core.db_version()?;
    let version = copied_at.map_or(newest, |version| version.get().clamp(0, newest));
    let (before, after) = (core.site, new_site_id(db)?);

    let ordinal = db.query_integer("SELECT max(ordinal) + 1 FROM crsql_site_id", &[])?.unwrap_or(1).max(1);
    db.prepare("UPDATE crsql_site_id SET ordinal = ?1 WHERE ordinal = 0")?.run(&[ordinal.into()])?;
    db.prepare("INSERT INTO crsql_site_id (site_id, ordinal) VALUES (?1, 0)")?.run(&[Bind::Blob(after.as_bytes())])?;
    // Also those of tables that do not replicate at the moment.
    for clock in clock_tables(db)? {
        hand_over(db, &clock, ordinal, version)?;
        if version < newest {
            write_again(db, &clock, version)?;
        }
    }
    // The versions of what came back to the former id go with it. What stays ours was written under the new one, as far as anybody knows.
    db.execute("DELETE FROM litemesh_origin WHERE site = 0")?;
    if copied_at.is_some() {
        // Whoever knew the original as well took us for it, and left out of what we were sent all that the original had: what it wrote
        // since, and what it passed on. So nothing counts that we were told to hold; it is asked for once more.
        for table in ["litemesh_position", "litemesh_stage", "litemesh_cursor"] {
            db.execute(&format!("DELETE FROM {table}"))?;
        }
        db.execute("DELETE FROM litemesh_meta WHERE key BETWEEN 'as_of:' AND 'as_of:g'")?;
    }
    // What the file has forgotten was the former id's: of the new one there is nothing else anywhere.
    db.execute(
        "DELETE FROM litemesh_meta
         WHERE key IN ('own_held_until', 'own_seen_until', 'own_back_until', 'parted_at', 'merged_after', 'merged_until')
         OR key BETWEEN 'own_doubted_by:' AND 'own_doubted_by:g'",
    )?;
    // We hold all that the original had, in its own order of versions, too: an exchange with it begins after that.
    let (original, moves) = (Bind::Blob(before.as_bytes()), cursor_moves::count(core)?.next());
    let held = "INSERT INTO litemesh_cursor (site_id, version, moved) VALUES (?1, ?2, ?3)
                ON CONFLICT (site_id) DO UPDATE SET version = max(version, excluded.version), moved = excluded.moved";
    db.prepare(held)?.run(&[original, version.into(), moves.get().into()])?;
    cursor_moves::record(core, moves, &[before])?;
    let read = "INSERT INTO litemesh_position (site_id, position) VALUES (?1, ?2)
                ON CONFLICT (site_id) DO UPDATE SET position = max(position, excluded.position)";
    db.prepare(read)?.run(&[original, version.into()])?;
    core.forget_everything();
    Ok(Forked { before, after, version: DbVersion::new(version) })
}

fn clock_tables(db: Handle) -> rusqlite::Result<Vec<String>> {
    let list = db.prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, -13) = ?1")?;
    let rows = list.query(&[CLOCK_SUFFIX.into()])?;
    let mut tables = Vec::new();
    while rows.next()? {
        tables.push(format!("main.{}", quote(&rows.text(0))));
    }
    Ok(tables)
}

/// Own clocks become clocks of `ordinal`, with the versions that they have: for an own change the local version is the
/// author's, unless it is one that came back.
fn hand_over(db: Handle, clock: &str, ordinal: i64, version: i64) -> rusqlite::Result<()> {
    const VERSION: &str =
        "coalesce((SELECT version FROM litemesh_origin WHERE local_version = db_version AND site = 0), db_version)";
    let origins = format!(
        "INSERT INTO litemesh_origin (local_version, site, version)
         SELECT DISTINCT db_version, ?1, {VERSION} FROM {clock} WHERE site_id = 0 AND {VERSION} <= ?2
         ON CONFLICT DO NOTHING"
    );
    db.prepare(&origins)?.run(&[ordinal.into(), version.into()])?;
    let clocks = format!("UPDATE {clock} SET site_id = ?1 WHERE site_id = 0 AND {VERSION} <= ?2");
    db.prepare(&clocks)?.run(&[ordinal.into(), version.into()])
}

/// What stays ours was written under the former id, and others may have taken it under that. There it hides: whoever holds the
/// same numbers of that id from somewhere else is never sent it, and what we send under the new id changes nothing where the
/// same value is held already. So it counts as written once more: a cell by its version; a row that is no more than a row, or
/// deleted, by its causal length.
fn write_again(db: Handle, clock: &str, version: i64) -> rusqlite::Result<()> {
    let again = format!(
        "UPDATE {clock} AS c SET col_version = col_version + CASE
             WHEN c.col_name <> '-1' THEN 1
             WHEN EXISTS (SELECT 1 FROM {clock} WHERE key = c.key AND col_name <> '-1') THEN 0
             ELSE 2 END
         WHERE site_id = 0 AND db_version > ?1"
    );
    db.prepare(&again)?.run(&[version.into()])
}
