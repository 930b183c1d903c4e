//! Local write -> note, from the triggers of a replicated table (`crsqlite-compat.md` section 4). Nothing else notices local
//! writes: SQLite's update hook would not do, for it is silent for WITHOUT ROWID tables, REPLACE and truncating deletes.
//!
//! [`crate::record`] turns the notes into clocks when the statement is over.

use std::sync::Arc;

use rusqlite::functions::Context;
use rusqlite::types::ValueRef;

use crate::core::{Core, Shared, module_error};
use crate::notes::Write;
use crate::record::record_notes;
use crate::schema::Table;

/// LW-0, common to all three: the table named by the first argument.
fn begin(core: &mut Core, context: &Context<'_>) -> rusqlite::Result<Arc<Table>> {
    if context.is_empty() {
        return Err(module_error("expected at least 1 argument: the name of the table"));
    }
    core.begin_note()?;
    let name = context.get_raw(0).as_str()?;
    core.table(name).ok_or_else(|| module_error(format!("table {name} not found among the replicated tables")))
}

fn expect_arguments(context: &Context<'_>, table: &Table, expected: usize) -> rusqlite::Result<()> {
    let got = context.len() - 1;
    if got == expected {
        return Ok(());
    }
    Err(module_error(format!(
        "expected {expected} values, got {got}: the columns of table {} changed since its triggers were made. Wrap ALTER \
         TABLE in crsql_begin_alter('{0}') and crsql_commit_alter('{0}')",
        table.name
    )))
}

fn arguments<'a>(context: &'a Context<'_>, from: usize, count: usize) -> impl Iterator<Item = ValueRef<'a>> {
    (from..from + count).map(|index| context.get_raw(index))
}

/// A statement over very many rows is recorded in parts.
fn end(core: &mut Core) -> rusqlite::Result<i64> {
    core.end_note();
    if core.notes.is_full() {
        record_notes(core)?;
    }
    Ok(0)
}

/// `crsql_after_insert(table, keys…)`.
pub(crate) fn after_insert(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock_for_note()?;
    let table = begin(&mut core, context)?;
    expect_arguments(context, &table, table.keys.len())?;
    core.join_transaction()?;
    core.notes.add(&table, Write::Insert, arguments(context, 1, table.keys.len()));
    end(&mut core)
}

/// `crsql_after_update(table, new keys…, old keys…, new cells…, old cells…)`.
pub(crate) fn after_update(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock_for_note()?;
    let table = begin(&mut core, context)?;
    let (keys, cells) = (table.keys.len(), table.cells.len());
    expect_arguments(context, &table, 2 * (keys + cells))?;

    let differs = |new: usize, old: usize| !same(context.get_raw(new), context.get_raw(old));
    let key_changed = (0..keys).any(|i| differs(1 + i, 1 + keys + i));
    let (new_cells, old_cells) = (1 + 2 * keys, 1 + 2 * keys + cells);
    let changed = core.notes.keep_cells((0..cells).filter(|i| differs(new_cells + i, old_cells + i)));
    // VER-6, the FIX: nothing changed, so no version is used up and nobody is woken.
    if changed.is_empty() && !key_changed {
        return Ok(0);
    }
    core.join_transaction()?;
    let old_keys = key_changed.then(|| core.notes.keep(arguments(context, 1 + keys, keys)));
    core.notes.add(&table, Write::Update { cells: changed, old_keys }, arguments(context, 1, keys));
    end(&mut core)
}

/// `crsql_after_delete(table, keys…)`.
pub(crate) fn after_delete(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock_for_note()?;
    let table = begin(&mut core, context)?;
    expect_arguments(context, &table, table.keys.len())?;
    core.join_transaction()?;
    core.notes.add(&table, Write::Delete, arguments(context, 1, table.keys.len()));
    end(&mut core)
}

/// The typed comparison of 5.4: types must be the same, reals compare as numbers.
#[allow(clippy::float_cmp)] // equality of stored numbers is what is asked
fn same(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a, b) {
        (ValueRef::Real(a), ValueRef::Real(b)) => a == b,
        _ => a == b,
    }
}
