//! Mends what DDL past the alter functions left behind (ALT-7): columns that the update trigger does not pass, shadow tables
//! of a table that was renamed or dropped.
//!
//! Nothing has to be mended for reads, merges and local writes to be right: [`crate::discovery`] sees through it. So it is done
//! where somebody writes anyway and DDL is allowed: in native merges, when a file is opened, in the functions that change
//! schemas; triggers also at the end of a transaction of plain SQL. It can be turned off:
//! `crsql_config_set('self-heal', 0)`; then only a function that names the table mends it.

use crate::alter::take_write_lock;
use crate::bootstrap::is_read_only;
use crate::core::{Core, Shared};
use crate::discovery::Repair;
use crate::replicate::{create_indexes, create_triggers, drop_shadows, drop_triggers, in_savepoint};
use crate::schema::{CLOCK_SUFFIX, KEYS_SUFFIX, load_table};
use crate::sql::quote;
use crate::statement::Handle;

/// Mends everything, if that is not turned off. Call it when the schema has just been looked at. Errors are logged, not told:
/// what could not be mended goes on to work.
pub(crate) fn heal(core: &mut Core) -> rusqlite::Result<()> {
    // Inside of a window everything can be on its way to something else.
    if core.repairs.is_empty() || !core.windows.is_empty() || is_read_only(core.db) || !is_allowed(core)? {
        return Ok(());
    }
    let mended = in_savepoint(core.db, "litemesh_heal", || {
        take_write_lock(core.db)?;
        core.refresh()?;
        let repairs = core.repairs.clone();
        mend(core, &repairs)
    });
    if let Err(error) = mended {
        tracing::warn!(%error, "could not mend what a schema change left behind; it is left as it is");
        // Not again before the schema changes.
        core.repairs.clear();
    }
    core.refresh()
}

/// Mends everything, whatever is set. Inside of the caller's transaction. Gives what it was.
pub(crate) fn mend_all(core: &mut Core) -> rusqlite::Result<Vec<Repair>> {
    core.refresh()?;
    let repairs = core.repairs.clone();
    mend(core, &repairs)?;
    core.refresh()?;
    Ok(repairs)
}

/// Mends what has to do with one table, which somebody names. Inside of the caller's savepoint.
pub(crate) fn heal_table(core: &mut Core, name: &str) -> rusqlite::Result<()> {
    core.refresh()?;
    if !core.windows.is_empty() {
        return Ok(());
    }
    let is_wanted = |repair: &Repair| match repair {
        // A table that was made anew takes its history up, or begins another: not decided here.
        Repair::Forget { .. } => false,
        Repair::Rename { shadow, table } => [shadow, table].iter().any(|found| found.eq_ignore_ascii_case(name)),
        Repair::RenameKeys { table, .. } | Repair::Triggers { table, .. } => table.eq_ignore_ascii_case(name),
    };
    let repairs: Vec<Repair> = core.repairs.iter().filter(|repair| is_wanted(repair)).cloned().collect();
    mend(core, &repairs)?;
    core.refresh()
}

/// At the end of a transaction. There is no savepoint to be had: an error fails the commit.
pub(crate) fn heal_triggers(shared: &Shared) -> rusqlite::Result<()> {
    // Somebody who holds the lock while a transaction ends has mended what was to be mended.
    let Ok(mut core) = shared.lock() else { return Ok(()) };
    core.refresh()?;
    if !core.windows.is_empty() || !is_allowed(&mut core)? {
        return Ok(());
    }
    for repair in &core.repairs {
        if let Repair::Triggers { shadow, table } = repair {
            remake_triggers(core.db, shadow, table)?;
        }
    }
    Ok(())
}

fn is_allowed(core: &mut Core) -> rusqlite::Result<bool> {
    Ok(core.has_litemesh_tables && self_heal(core)? != 0)
}

/// The setting: 1 unless it was turned off.
pub(crate) fn self_heal(core: &mut Core) -> rusqlite::Result<i64> {
    if !core.has_litemesh_tables {
        return Ok(1);
    }
    const GET: &str = "SELECT value FROM litemesh_meta WHERE key = 'config.self-heal'";
    Ok(core.statement(GET)?.query_integer(&[])?.unwrap_or(1))
}

/// Kept beside CRSqlite's settings and not among them: what is among them it reads when it opens the file.
pub(crate) fn set_self_heal(core: &mut Core, value: i64) -> rusqlite::Result<()> {
    const SET: &str = "INSERT INTO litemesh_meta (key, value) VALUES ('config.self-heal', ?1)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    core.statement(SET)?.run(&[value.into()])
}

fn mend(core: &mut Core, repairs: &[Repair]) -> rusqlite::Result<()> {
    let db = core.db;
    // What is dropped first can have the name that another is to get.
    for repair in repairs {
        if let Repair::Forget { shadow } = repair {
            core.raise_floor()?;
            drop_shadows(db, shadow)?;
        }
    }
    // Tables can have swapped their names: first all are moved away, then to where they belong.
    let renames = || {
        repairs.iter().filter_map(|repair| match repair {
            Repair::Rename { shadow, table } => Some((shadow, table)),
            _ => None,
        })
    };
    for (index, (shadow, _)) in renames().enumerate() {
        drop_triggers(db, shadow)?;
        move_shadows(db, shadow, &on_the_way(index))?;
    }
    for (index, (_, table)) in renames().enumerate() {
        move_shadows(db, &on_the_way(index), table)?;
        let table = load_table(db, table)?;
        create_indexes(db, &table)?;
        create_triggers(db, &table)?;
    }
    for repair in repairs {
        match repair {
            Repair::RenameKeys { shadow, columns, .. } => {
                let keys = quote(&format!("{shadow}{KEYS_SUFFIX}"));
                for (old, new) in columns {
                    db.execute(&format!("ALTER TABLE main.{keys} RENAME COLUMN {} TO {}", quote(old), quote(new)))?;
                }
            }
            // A table that was renamed as well got its triggers above.
            Repair::Triggers { shadow, table } if !renames().any(|(renamed, _)| renamed == shadow) => {
                remake_triggers(db, shadow, table)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn on_the_way(index: usize) -> String {
    format!("litemesh_renamed_{index}")
}

/// Renames shadow tables. Indexes cannot be renamed: those are dropped, to be made again.
pub(crate) fn move_shadows(db: Handle, from: &str, to: &str) -> rusqlite::Result<()> {
    let name = |prefix: &str, suffix: &str| quote(&format!("{prefix}{suffix}"));
    for (suffix, index) in [(CLOCK_SUFFIX, "_dbv_idx"), (KEYS_SUFFIX, "_pks")] {
        db.execute(&format!("DROP INDEX IF EXISTS main.{}", name(from, &format!("{suffix}{index}"))))?;
        db.execute(&format!("ALTER TABLE main.{} RENAME TO {}", name(from, suffix), name(to, suffix)))?;
    }
    Ok(())
}

fn remake_triggers(db: Handle, shadow: &str, table: &str) -> rusqlite::Result<()> {
    let mut table = load_table(db, table)?;
    table.shadow = shadow.into();
    drop_triggers(db, shadow)?;
    create_triggers(db, &table)
}
