//! Schema changes of replicated tables (`crsqlite-compat.md` section 9).
//!
//! Between `crsql_begin_alter` and `crsql_commit_alter` the table has no triggers, so that any DDL works, and what is written
//! is not recorded: it is a part of the migration, which every node runs for itself. Afterwards clocks and keys are brought in
//! line with what the table has become, looking at no more rows than the change made necessary (ALT-6).

use std::sync::Arc;

use crate::backfill::{Stamp, backfill_cells, backfill_rows, revive_rows};
use crate::core::{Core, Shared};
use crate::error::{AlterError, ReplicateError};
use crate::heal::{heal_table, move_shadows};
use crate::replicate::{canonical_name, create_shadows, create_triggers, drop_shadows, drop_triggers, has_shadows};
use crate::schema::{KEY_COLUMN, KEYS_SUFFIX, Table, check_replicable, load_table};
use crate::sql::literal;
use crate::statement::Handle;

/// The savepoint that is open in between (TX-8).
const SAVEPOINT: &str = "alter_crr";

/// A table that is being altered.
pub(crate) struct Window {
    table: String,
    /// What it was, if it was replicated.
    before: Option<Before>,
}

/// What a table was when its window opened.
struct Before {
    /// Its row in `sqlite_master`: DDL changes the row, only DROP TABLE removes it.
    entry: i64,
    cells: Vec<Arc<str>>,
    /// How many rows were ever written on this connection.
    writes: i64,
}

/// How much of a table a change can have touched.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// Columns were added, and no row was written: every new cell holds the default of its column, which needs no clock.
    Added,
    /// Columns went, and no row was written. These are new; where a column was renamed, they have values.
    Columns { new: Vec<usize> },
    /// Anything.
    Everything,
}

/// What `crsql_commit_alter` does about rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compaction {
    /// What the change made necessary.
    Needed,
    /// Nothing: the caller knows that only columns were added, and that their values need no clocks.
    Skipped,
}

/// Opens a window (ALT-1). Any name will do: a table that is not there yet can be made inside.
pub(crate) fn begin_alter(shared: &Shared, table: &str) -> Result<(), AlterError> {
    let mut core = shared.lock()?;
    let db = core.db;
    db.execute(&format!("SAVEPOINT {SAVEPOINT}"))?;
    match begin(&mut core, table) {
        Ok(window) => {
            core.windows.push(window);
            Ok(())
        }
        Err(error) => {
            roll_back(db, SAVEPOINT);
            Err(AlterError::Begin(error))
        }
    }
}

fn begin(core: &mut Core, table: &str) -> Result<Window, ReplicateError> {
    let db = core.db;
    take_write_lock(db)?;
    core.enlist()?;
    heal_table(core, table)?;
    let table = match canonical_name(db, table) {
        Err(ReplicateError::NoSuchTable { table }) => table,
        name => name?,
    };
    drop_triggers(db, &table)?;
    let before = if let (Some(held), Some(entry)) = (core.table(&table), entry_of(db, &table)?) {
        let cells = held.cells.iter().map(|column| column.name.clone()).collect();
        Some(Before { entry, cells, writes: db.total_changes() })
    } else {
        None
    };
    Ok(Window { table, before })
}

/// A reader that becomes a writer fails at once if somebody else wrote in between. So become a writer first; then SQLite
/// waits.
pub(crate) fn take_write_lock(db: Handle) -> rusqlite::Result<()> {
    db.execute("DELETE FROM crsql_master WHERE 0")
}

fn entry_of(db: Handle, table: &str) -> rusqlite::Result<Option<i64>> {
    db.query_integer("SELECT rowid FROM sqlite_master WHERE type = 'table' AND name = ?1", &[table.into()])
}

/// Closes a window (ALT-3). An error rolls back to where it was opened, and nothing before that.
pub(crate) fn commit_alter(shared: &Shared, table: &str, compaction: Compaction) -> Result<(), AlterError> {
    let mut core = shared.lock()?;
    core.refresh()?;
    let not_begun = || AlterError::NotBegun { table: table.to_owned() };
    let index = find_window(&core, table)?.ok_or_else(not_begun)?;
    let db = core.db;
    // A ROLLBACK TO of the caller may have closed the window. Then the RELEASE fails, and what was done here is undone by a
    // savepoint of its own.
    db.execute("SAVEPOINT litemesh_alter")?;
    let result = commit(&mut core, index, table, compaction).and_then(|()| {
        db.execute(&format!("RELEASE {SAVEPOINT}")).map_err(|error| match error.to_string() {
            message if message.contains("no such savepoint") => not_begun(),
            _ => AlterError::failed(table, error),
        })
    });
    if result.is_ok() {
        core.windows.remove(index);
    } else {
        roll_back(db, "litemesh_alter");
        close_windows(&mut core, index);
    }
    core.refresh()?;
    result
}

/// Closes a window as if it had never been opened.
pub(crate) fn cancel_alter(shared: &Shared, table: &str) -> Result<(), AlterError> {
    let mut core = shared.lock()?;
    core.refresh()?;
    if let Some(index) = find_window(&core, table)? {
        close_windows(&mut core, index);
    }
    core.refresh()?;
    Ok(())
}

/// Undoes a window, and those that were opened inside of it.
fn close_windows(core: &mut Core, index: usize) {
    for _ in core.windows.drain(index..) {
        roll_back(core.db, SAVEPOINT);
    }
}

/// Fails only where SQLite has rolled back more already.
fn roll_back(db: Handle, savepoint: &str) {
    if db.execute(&format!("ROLLBACK TO {savepoint}")).is_ok() {
        let _ = db.execute(&format!("RELEASE {savepoint}"));
    }
}

/// The window of a table: by the name that it had, or by the one that it was given inside.
fn find_window(core: &Core, table: &str) -> rusqlite::Result<Option<usize>> {
    if let Some(index) = core.windows.iter().rposition(|window| window.table.eq_ignore_ascii_case(table)) {
        return Ok(Some(index));
    }
    let Some(entry) = entry_of(core.db, table)? else { return Ok(None) };
    Ok(core.windows.iter().rposition(|window| window.before.as_ref().is_some_and(|before| before.entry == entry)))
}

fn commit(core: &mut Core, index: usize, table: &str, compaction: Compaction) -> Result<(), AlterError> {
    let failed = |error| AlterError::failed(table, error);
    let db = core.db;
    core.enlist().map_err(failed)?;
    let refused = |source| AlterError::Refused { table: table.to_owned(), source };
    let name = canonical_name(db, table).map_err(refused)?;
    take_shadows_along(db, &core.windows[index].table, &name).map_err(failed)?;
    let had_history = has_shadows(db, &name).map_err(failed)?;
    match check_replicable(db, &name) {
        // CRSqlite lets such tables replicate. Those that do must not be stuck with their columns.
        Err(ReplicateError::KeyCollation { .. }) if had_history => {}
        checked => checked.map_err(refused)?,
    }
    let table = load_table(db, &name).map_err(failed)?;
    match compaction {
        Compaction::Needed => {
            let extent = match &core.windows[index].before {
                Some(before) => extent_of(db, before, &table).map_err(failed)?,
                None => Extent::Everything,
            };
            realign(core, &table, extent, Stamp::Current).map_err(failed)?;
        }
        Compaction::Skipped if has_same_keys(db, &table).map_err(failed)? => {
            create_shadows(db, &table).map_err(failed)?;
        }
        Compaction::Skipped => return Err(AlterError::KeysChanged { table: name }),
    }
    drop_triggers(db, &name).and_then(|()| create_triggers(db, &table)).map_err(failed)
}

/// The table can have been renamed inside.
fn take_shadows_along(db: Handle, old: &str, new: &str) -> rusqlite::Result<()> {
    if old.eq_ignore_ascii_case(new) || entry_of(db, old)?.is_some() || !has_shadows(db, old)? || has_shadows(db, new)?
    {
        return Ok(());
    }
    move_shadows(db, old, new)
}

/// What can have happened inside of the window (ALT-6).
///
/// A table whose entry is still there was not dropped. If it was, its successor may have the same entry, but no rows other
/// than those written inside: so a table that has rows, none of them written inside, is the one that it was, and its rows are
/// those that it had.
fn extent_of(db: Handle, before: &Before, table: &Table) -> rusqlite::Result<Extent> {
    let is_same = entry_of(db, &table.name)? == Some(before.entry)
        && db.total_changes() == before.writes
        && db.prepare(&format!("SELECT 1 FROM {} LIMIT 1", table.base()))?.query(&[])?.next()?;
    if !is_same {
        return Ok(Extent::Everything);
    }
    let is_held = |name: &Arc<str>| before.cells.contains(name);
    let new: Vec<usize> = (0..table.cells.len()).filter(|cell| !is_held(&table.cells[*cell].name)).collect();
    Ok(match (before.cells.iter().all(|name| table.cell_index(name).is_some()), new.is_empty()) {
        (true, false) => Extent::Added,
        (false, _) => Extent::Columns { new },
        // Nothing changed at all: that is how somebody asks for clocks to be put right.
        (true, true) => Extent::Everything,
    })
}

/// Brings clocks and keys in line with the table, making them where they are missing (ALT-4, ALT-5).
pub(crate) fn realign(core: &mut Core, table: &Table, extent: Extent, stamp: Stamp) -> rusqlite::Result<()> {
    let db = core.db;
    core.raise_floor()?;
    if !has_same_keys(db, table)? {
        drop_shadows(db, &table.name)?;
        create_shadows(db, table)?;
        return backfill_rows(core, table, stamp);
    }
    create_shadows(db, table)?;
    let (all_rows, cells) = match extent {
        Extent::Added => return Ok(()),
        Extent::Columns { new } => (false, new),
        Extent::Everything => (true, (0..table.cells.len()).collect()),
    };
    db.execute(&table.sql_drop_lost_columns())?;
    if all_rows {
        db.execute(&table.sql_drop_lost_rows())?;
    }
    db.execute(&table.sql_drop_unused_keys())?;
    if all_rows {
        revive_rows(core, table, stamp)?;
    }
    backfill_rows(core, table, stamp)?;
    backfill_cells(core, table, &cells, stamp)
}

/// Whether the keys table is there and has the table's key columns, in whatever order.
fn has_same_keys(db: Handle, table: &Table) -> rusqlite::Result<bool> {
    if !has_shadows(db, &table.name)? {
        return Ok(false);
    }
    let columns = db.prepare("SELECT name FROM pragma_table_info(?1 || ?2, 'main') WHERE name <> ?3")?;
    let rows = columns.query(&[(&*table.name).into(), KEYS_SUFFIX.into(), KEY_COLUMN.into()])?;
    let mut count = 0;
    while rows.next()? {
        let name = rows.text(0);
        if !table.keys.iter().any(|key| key.name.eq_ignore_ascii_case(&name)) {
            return Ok(false);
        }
        count += 1;
    }
    Ok(count == table.keys.len())
}

impl Table {
    fn sql_drop_lost_columns(&self) -> String {
        let names: Vec<_> =
            std::iter::once("'-1'".to_owned()).chain(self.cells.iter().map(|column| literal(&column.name))).collect();
        format!("DELETE FROM {} WHERE col_name NOT IN ({})", self.clock(), names.join(", "))
    }

    /// Clocks of rows that are gone, but not the tombstones of those that were deleted.
    fn sql_drop_lost_rows(&self) -> String {
        format!(
            "DELETE FROM {} WHERE (col_name <> '-1' OR col_version % 2 <> 0) AND key IN
             (SELECT p.{KEY_COLUMN} FROM {} p LEFT JOIN {} WHERE b.{} IS NULL)",
            self.clock(),
            self.keys_table(),
            self.base_of_key(),
            crate::sql::quote(&self.keys[0].name)
        )
    }

    fn sql_drop_unused_keys(&self) -> String {
        let (keys, clock) = (self.keys_table(), self.clock());
        format!("DELETE FROM {keys} WHERE NOT EXISTS (SELECT 1 FROM {clock} c WHERE c.key = {KEY_COLUMN})")
    }
}
