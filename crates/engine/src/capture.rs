//! Local write -> clock rows, inside the transaction that writes (`crsqlite-compat.md` section 4).
//!
//! Called by the triggers of a replicated table; nothing else records local writes. SQLite's update hook would not do: it is
//! silent for WITHOUT ROWID tables, REPLACE and truncating deletes.

use std::sync::Arc;

use rusqlite::functions::Context;
use rusqlite::types::ValueRef;

use crate::core::{Core, Shared, module_error};
use crate::schema::Table;
use crate::statement::Bind;

/// LW-0, common to all three: the table named by the first argument.
fn begin(core: &mut Core, context: &Context<'_>) -> rusqlite::Result<Arc<Table>> {
    if context.is_empty() {
        return Err(module_error("expected at least 1 argument: the name of the table"));
    }
    core.refresh()?;
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

fn arguments<'a>(context: &'a Context<'_>, from: usize, count: usize) -> Vec<Bind<'a>> {
    (from..from + count).map(|index| context.get_raw(index).into()).collect()
}

/// `crsql_after_insert(table, keys…)`: LW-1 to LW-4.
pub(crate) fn after_insert(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock()?;
    let table = begin(&mut core, context)?;
    expect_arguments(context, &table, table.keys.len())?;
    core.join_transaction()?;
    let db = core.db;
    let keys = arguments(context, 1, table.keys.len());

    table.statement(db, |s| &s.add_key, Table::sql_add_key)?.run(&keys)?;
    let existed = db.changes() == 0;
    let key = if existed { find_key(&core, &table, &keys)?.unwrap_or_default() } else { db.last_insert_rowid() };
    let version = Bind::Integer(core.next_version(0));

    if table.is_keys_only() {
        let seq = core.take_seq();
        table.statement(db, |s| &s.insert_sentinel, Table::sql_insert_sentinel)?.run(&[
            key.into(),
            version,
            seq.into(),
        ])?;
        return Ok(0);
    }
    if existed {
        // LW-3: the number is used up also where there is no sentinel to move.
        let seq = core.take_seq();
        table.statement(db, |s| &s.reinsert_sentinel, Table::sql_reinsert_sentinel)?.run(&[
            key.into(),
            version,
            seq.into(),
        ])?;
    }
    let first_seq = core.take_seq();
    core.skip_seqs(table.cells.len() - 1);
    let clocks = if existed {
        table.statement(db, |s| &s.clocks_of_known_row, Table::sql_clocks_of_known_row)?
    } else {
        table.statement(db, |s| &s.clocks_of_new_row, Table::sql_clocks_of_new_row)?
    };
    clocks.run(&[key.into(), version, first_seq.into()])?;
    Ok(0)
}

/// `crsql_after_update(table, new keys…, old keys…, new cells…, old cells…)`: LW-5 to LW-7.
pub(crate) fn after_update(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock()?;
    let table = begin(&mut core, context)?;
    let (keys, cells) = (table.keys.len(), table.cells.len());
    expect_arguments(context, &table, 2 * (keys + cells))?;

    let differs = |new: usize, old: usize| !same(context.get_raw(new), context.get_raw(old));
    let changed_cells: Vec<usize> =
        (0..cells).filter(|i| differs(1 + 2 * keys + i, 1 + 2 * keys + cells + i)).collect();
    let key_changed = (0..keys).any(|i| differs(1 + i, 1 + keys + i));
    // VER-6, the FIX: nothing changed, so no version is used up and nobody is woken.
    if changed_cells.is_empty() && !key_changed {
        return Ok(0);
    }
    core.join_transaction()?;
    let new_key = find_or_add_key(&core, &table, &arguments(context, 1, keys))?;
    let old_key =
        if key_changed { find_or_add_key(&core, &table, &arguments(context, 1 + keys, keys))? } else { new_key };
    // 1 and 1.0 are one key (DSK-7): no row has moved, and there is nothing that could be told.
    if old_key == new_key && changed_cells.is_empty() {
        return Ok(0);
    }
    let version = core.next_version(0);
    if old_key != new_key {
        move_row(&mut core, &table, old_key, new_key, version)?;
    }
    for cell in changed_cells {
        count_cell(&mut core, &table, new_key, &table.cells[cell].name, version)?;
    }
    Ok(0)
}

/// `crsql_after_delete(table, keys…)`: LW-8.
pub(crate) fn after_delete(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock()?;
    let table = begin(&mut core, context)?;
    expect_arguments(context, &table, table.keys.len())?;
    core.join_transaction()?;
    let key = find_or_add_key(&core, &table, &arguments(context, 1, table.keys.len()))?;
    let version = core.next_version(0);
    bury(&mut core, &table, key, version)?;
    table.statement(core.db, |s| &s.drop_cells, Table::sql_drop_cells)?.run(&[key.into()])?;
    Ok(0)
}

/// Gives a row the sentinel of a dead one.
fn bury(core: &mut Core, table: &Table, key: i64, version: i64) -> rusqlite::Result<()> {
    let seq = core.take_seq();
    let sentinel = table.statement(core.db, |s| &s.delete_sentinel, Table::sql_delete_sentinel)?;
    sentinel.run(&[key.into(), version.into(), seq.into()])
}

fn count_cell(core: &mut Core, table: &Table, key: i64, column: &str, version: i64) -> rusqlite::Result<()> {
    let seq = core.take_seq();
    let count = table.statement(core.db, |s| &s.count_cell, Table::sql_count_cell)?;
    count.run(&[key.into(), column.into(), version.into(), seq.into()])
}

/// LW-6, with its FIX: the cells that move are stamped anew, with versions above both what moved and what was overwritten.
/// Left as they were, a peer that asks with a cursor would get the new row without its values.
fn move_row(core: &mut Core, table: &Table, old_key: i64, new_key: i64, version: i64) -> rusqlite::Result<()> {
    bury(core, table, old_key, version)?;
    let held = cell_versions(core, table, new_key)?;
    let mut moved = cell_versions(core, table, old_key)?;
    // Also cells without a clock: the statement wrote the whole row, and peers may hold another value under the new key.
    for cell in &table.cells {
        if moved.iter().all(|(name, _)| **name != *cell.name) {
            moved.push((cell.name.to_string(), 0));
        }
    }
    for (name, col_version) in held {
        match moved.iter_mut().find(|(moved, _)| *moved == name) {
            Some((_, highest)) => *highest = (*highest).max(col_version),
            // The overwritten row had a clock for a cell of which the moving row has none: its value changed, too.
            None => moved.push((name, col_version)),
        }
    }
    for (name, col_version) in moved {
        let seq = core.take_seq();
        let put = table.put_clocks(core.db, 1)?;
        let col_version = col_version.saturating_add(1);
        put.run(&[new_key.into(), version.into(), 0.into(), name.as_str().into(), col_version.into(), seq.into()])?;
    }
    table.statement(core.db, |s| &s.drop_cells, Table::sql_drop_cells)?.run(&[old_key.into()])?;
    let seq = core.take_seq();
    let sentinel = table.statement(core.db, |s| &s.insert_sentinel, Table::sql_insert_sentinel)?;
    sentinel.run(&[new_key.into(), version.into(), seq.into()])
}

fn cell_versions(core: &Core, table: &Table, key: i64) -> rusqlite::Result<Vec<(String, i64)>> {
    let statement = table.statement(core.db, |s| &s.row_clocks, Table::sql_row_clocks)?;
    let rows = statement.query(&[key.into()])?;
    let mut cells = Vec::new();
    while rows.next()? {
        if rows.bytes(0) != b"-1" {
            cells.push((rows.text(0).into_owned(), rows.integer(1)));
        }
    }
    Ok(cells)
}

pub(crate) fn find_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<Option<i64>> {
    table.statement(core.db, |s| &s.find_key, Table::sql_find_key)?.query_integer(keys)
}

fn find_or_add_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<i64> {
    match find_key(core, table, keys)? {
        Some(key) => Ok(key),
        None => add_key(core, table, keys),
    }
}

pub(crate) fn add_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<i64> {
    table.statement(core.db, |s| &s.add_key, Table::sql_add_key)?.run(keys)?;
    Ok(core.db.last_insert_rowid())
}

/// The typed comparison of 5.4: types must be the same, reals compare as numbers.
#[allow(clippy::float_cmp)] // equality of stored numbers is what is asked
fn same(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a, b) {
        (ValueRef::Real(a), ValueRef::Real(b)) => a == b,
        _ => a == b,
    }
}
