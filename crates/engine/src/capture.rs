//! Local write -> note, from the triggers of a replicated table (`crsqlite-compat.md` section 4). Nothing else notices local
//! writes: SQLite's update hook would not do, for it is silent for WITHOUT ROWID tables, REPLACE and truncating deletes.
//!
//! [`crate::record`] turns the notes into clocks, at the latest when the transaction is committed.

use std::sync::Arc;

use litemesh_proto::{PackedKey, Value};
use rusqlite::types::ValueRef;

use crate::changes_table::value_ref;
use crate::core::{Core, Shared, module_error};
use crate::discovery::Repair;
use crate::error::to_sql;
use crate::notes::Write;
use crate::record::{make_room, record_notes};
use crate::schema::Table;
use crate::statement::Bind;
use crate::trigger_functions::Arguments;

/// LW-0, common to all three: the table named by the first argument.
fn begin(core: &mut Core, passed: Arguments<'_>) -> rusqlite::Result<Arc<Table>> {
    if passed.len() == 0 {
        return Err(module_error("expected at least 1 argument: the name of the table"));
    }
    let is_first = core.begin_note()?;
    let table = match core.table_of_last_trigger(passed.get(0)) {
        Some(table) => table,
        None => {
            let name = passed.get(0).as_str()?;
            core.table_of_trigger(name).ok_or_else(|| unknown_table(core, name))?
        }
    };
    // What is not passed is found out by the clocks: also by those of the statements before.
    if is_first && table.passed.is_some() && core.flags.has_notes() {
        record_notes(core)?;
    }
    Ok(table)
}

fn unknown_table(core: &Core, name: &str) -> rusqlite::Error {
    let is_renamed = |repair: &Repair| matches!(repair, Repair::RenameKeys { shadow, .. } if shadow == name);
    let advice = if core.repairs.iter().any(is_renamed) {
        format!(": columns of its primary key were renamed. SELECT crsql_as_crr('{name}') goes on with the new names")
    } else {
        String::new()
    };
    module_error(format!("table {name} not found among the replicated tables{advice}"))
}

fn expect_arguments(passed: Arguments<'_>, table: &Table, expected: usize) -> rusqlite::Result<()> {
    let got = passed.len() - 1;
    if got == expected { Ok(()) } else { Err(wrong_count(table, expected, got)) }
}

fn wrong_count(table: &Table, expected: usize, got: usize) -> rusqlite::Error {
    module_error(format!(
        "expected {expected} values, got {got}: the columns of table {} changed since its triggers were made. Wrap ALTER \
         TABLE in crsql_begin_alter('{0}') and crsql_commit_alter('{0}')",
        table.name
    ))
}

fn arguments<'a>(passed: Arguments<'a>, from: usize, count: usize) -> impl Iterator<Item = ValueRef<'a>> {
    (from..from + count).map(move |index| passed.get(index))
}

/// A statement over very many rows is recorded in parts.
fn end(core: &mut Core) -> rusqlite::Result<i64> {
    core.end_note();
    if core.notes.are_full() {
        make_room(core)?;
    }
    Ok(0)
}

/// `crsql_after_insert(table, keys…)`.
pub(crate) fn after_insert(shared: &Shared, passed: Arguments<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock_for_note()?;
    let table = begin(&mut core, passed)?;
    expect_arguments(passed, &table, table.keys.len())?;
    core.join_transaction()?;
    core.notes.add(&table, Write::Insert, arguments(passed, 1, table.keys.len()));
    end(&mut core)
}

/// `crsql_after_update(table, new keys…, old keys…, new cells…, old cells…)`.
pub(crate) fn after_update(shared: &Shared, passed: Arguments<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock_for_note()?;
    let table = begin(&mut core, passed)?;
    let (keys, cells) = (table.keys.len(), table.passed_cells());
    expect_arguments(passed, &table, 2 * (keys + cells))?;
    let differ = |new: usize, apart: usize| !passed.are_same(new, new + apart);
    let key_differs = |i: usize| differ(1 + i, keys);
    let cell_differs = |i: usize| differ(1 + 2 * keys + i, cells);
    note_update(&mut core, &table, (key_differs, cell_differs), |i| passed.get(1 + i), |i| passed.get(1 + keys + i))
}

/// `litemesh_after_update(table, packed…)`, of tables too wide for an argument for each value (CRR-7): all new values, keys
/// first, packed in chunks; then all old ones.
pub(crate) fn after_update_packed(shared: &Shared, passed: Arguments<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock_for_note()?;
    let table = begin(&mut core, passed)?;
    let half = (passed.len() - 1) / 2;
    let unpack = |from: usize| -> rusqlite::Result<Vec<Value>> {
        let mut values = Vec::new();
        for index in from..from + half {
            let packed = passed.get(index).as_bytes()?;
            values.extend(PackedKey::from_bytes(packed).unpack().map_err(to_sql)?);
        }
        Ok(values)
    };
    let (new, old) = (unpack(1)?, unpack(1 + half)?);
    let expected = table.keys.len() + table.passed_cells();
    if new.len() != expected || old.len() != expected {
        return Err(wrong_count(&table, 2 * expected, new.len() + old.len()));
    }
    let differs = |i: usize| !same(value_ref(&new[i]), value_ref(&old[i]));
    let cell_differs = |i: usize| differs(table.keys.len() + i);
    note_update(&mut core, &table, (differs, cell_differs), |i| value_ref(&new[i]), |i| value_ref(&old[i]))
}

/// Which of the keys and cells that the trigger passed changed is told by the first two; `new` and `old` give the values of the keys.
fn note_update<'a>(
    core: &mut Core,
    table: &Arc<Table>,
    (key_differs, cell_differs): (impl Fn(usize) -> bool, impl Fn(usize) -> bool),
    new: impl Fn(usize) -> ValueRef<'a>,
    old: impl Fn(usize) -> ValueRef<'a>,
) -> rusqlite::Result<i64> {
    let keys = table.keys.len();
    let key_changed = (0..keys).any(key_differs);
    let passed = (0..table.passed_cells()).filter(|cell| cell_differs(*cell)).map(|cell| table.passed_cell(cell));
    let mut changed = core.notes.keep_cells(passed);
    // FN-8, the FIX: the trigger may know fewer columns than there are by now.
    if let Some(unpassed) = table.unpassed(core.db)? {
        let binds: Vec<Bind<'_>> = (0..keys).map(|i| new(i).into()).collect();
        let written = unpassed.written(&binds)?;
        changed.end = core.notes.keep_cells(written.into_iter()).end;
    }
    // VER-6, the FIX: nothing changed, so no version is used up and nobody is woken.
    if changed.is_empty() && !key_changed {
        return Ok(0);
    }
    core.join_transaction()?;
    let old_keys = key_changed.then(|| core.notes.keep((0..keys).map(old)));
    core.notes.add(table, Write::Update { cells: changed, old_keys }, (0..keys).map(new));
    end(core)
}

/// `crsql_after_delete(table, keys…)`.
pub(crate) fn after_delete(shared: &Shared, passed: Arguments<'_>) -> rusqlite::Result<i64> {
    let mut core = shared.lock_for_note()?;
    let table = begin(&mut core, passed)?;
    expect_arguments(passed, &table, table.keys.len())?;
    core.join_transaction()?;
    core.notes.add(&table, Write::Delete, arguments(passed, 1, table.keys.len()));
    end(&mut core)
}

/// The typed comparison of 5.4: types must be the same, reals compare as numbers.
#[allow(clippy::float_cmp)] // equality of stored numbers is what is asked
pub(crate) fn same(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a, b) {
        (ValueRef::Real(a), ValueRef::Real(b)) => a == b,
        _ => a == b,
    }
}
