//! One change merged through `crsql_changes`: at once, for whoever inserts it may ask what it did (VT-12, FN-5).
//!
//! Peers insert the changes of a row one after another. So the row is kept as the last change left it, for the next one. The clock of
//! a change is only noted ([`crate::notes`]), and written together with those of others. Who comes to a row of which clocks are
//! noted, and which is not the last one, has them recorded before.

use std::sync::Arc;

use litemesh_proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId};
use rusqlite::types::ValueRef;
use rusqlite::{Error, Result};

use crate::changes_table::bytes_of;
use crate::core::{Core, Shared, module_error};
use crate::error::{MergeError, to_sql};
use crate::merge::{Author, Stamp};
use crate::merge_row::{HeldRow, RowMerge};
use crate::record::{add_new_key, record_notes};
use crate::row_key::RowKey;
use crate::schema::{ClockOf, Table};
use crate::statement::to_value;

/// Longest name and site id that a merge takes (MRG-2).
const NAME_BYTES_MAX: usize = 2048;
const SITE_BYTES_MAX: usize = 16;

/// A row in which something changed.
pub(crate) struct ChangedRow {
    /// Position of its table in discovery order.
    pub(crate) table: usize,
    pub(crate) key: i64,
}

/// The row that was merged last.
pub(crate) struct LastRow {
    table: Arc<Table>,
    /// Its position in discovery order.
    index: usize,
    packed: PackedKey,
    key: RowKey<'static>,
    hash: u64,
    state: RowMerge<'static>,
    /// How many rows all statements of the connection had changed by then.
    total_changes: i64,
}

/// Merges one change (MRG-1 to MRG-16). The values are those of the columns of `crsql_changes`.
pub(crate) fn merge_step(shared: &Shared, values: &[ValueRef<'_>; 9]) -> Result<Option<ChangedRow>> {
    let [table, pk, cid, val, col_version, db_version, site_id, cl, seq] = values;
    for (value, max, gist) in [
        (table, NAME_BYTES_MAX, "table name exceeded max length"),
        (cid, NAME_BYTES_MAX, "column name exceeded max length"),
        (site_id, SITE_BYTES_MAX, "site id exceeded max length"),
    ] {
        if bytes_of(value).is_some_and(|bytes| bytes.len() > max) {
            return Err(module_error(format!("{gist} ({max} bytes)")));
        }
    }
    let mut core = shared.lock_for_step()?;
    let last = core.last_row.take().filter(|last| is_as_left(&core, last));
    core.enlist_for_step()?;
    let name = String::from_utf8_lossy(bytes_of(table).unwrap_or_default());
    let (table, index) = match &last {
        Some(last) if *last.table.name == *name => (last.table.clone(), last.index),
        _ => core
            .table_index(&name)
            .and_then(|index| Some((core.tables().get(index)?.clone(), index)))
            .ok_or_else(|| module_error(format!("could not find the schema information for table {name}")))?,
    };
    let of = table.clock_of(bytes_of(cid).unwrap_or_default());
    let site = bytes_of(site_id);
    let change = Change {
        table: table.name.clone(),
        key: PackedKey::from_bytes(bytes_of(pk).unwrap_or_default()),
        column: match of {
            ClockOf::Row => Column::Row,
            ClockOf::Cell(cell) => Column::Cell(table.cells[cell].name.clone()),
            ClockOf::Gone => Column::from(&*String::from_utf8_lossy(bytes_of(cid).unwrap_or_default())),
        },
        value: to_value(*val),
        col_version: ColVersion::new(integer_of(col_version)),
        db_version: DbVersion::new(integer_of(db_version)),
        site: site.and_then(SiteId::from_slice).unwrap_or_default(),
        causal_length: CausalLength::new(integer_of(cl)),
        seq: Seq::new(integer_of(seq)),
    };
    let author = Author::new(site.filter(|site| !site.is_empty()), change.db_version.get(), false);
    author.check(&core, 0).map_err(vtab_error)?;
    let used_before = core.used_version();
    let merged = merge_change(shared, &mut core, last, (&table, index), &change, of, author);
    core.end_step();
    match merged {
        Ok((0, _)) => Ok(None),
        Ok((won, key)) => {
            core.add_rows_impacted(won);
            Ok(Some(ChangedRow { table: index, key }))
        }
        Err(error) => {
            // Inside a transaction SQLite undoes a statement of one row only as far as itself wrote.
            core.give_back(used_before);
            Err(vtab_error(error))
        }
    }
}

/// Whether nothing can have changed the row since: no statement of a replicated table, which opens a savepoint; and no other
/// that changed a row, but the one that merged it and counts as one.
fn is_as_left(core: &Core, last: &LastRow) -> bool {
    let since = core.db.total_changes() - last.total_changes;
    core.is_same_step() && (0..=1).contains(&since)
}

/// How many of its operations won, and the key of the row.
fn merge_change(
    shared: &Shared,
    core: &mut Core,
    last: Option<LastRow>,
    (table, index): (&Arc<Table>, usize),
    change: &Change,
    of: ClockOf,
    mut author: Author<'_>,
) -> Result<(usize, i64), MergeError> {
    let last = last.filter(|last| Arc::ptr_eq(&last.table, table) && last.packed == change.key);
    let (row, hash, mut state) = match last {
        Some(LastRow { key, hash, state, .. }) => (key, hash, state),
        None => {
            let row = RowKey::of(core, table, change, 0)?.into_owned();
            let hash = row.hash(index);
            let state = load(core, table, (&row, hash), change, of)?;
            (row, hash, state)
        }
    };
    let written = write(shared, core, table, (&row, hash), &mut state, change, of, &mut author);
    if let (Some(key), Ok(None) | Err(_)) = (state.new_key(), &written) {
        // MRG-5, the FIX: only a change that is written leaves a key. Where SQLite ended the transaction, there is none.
        if core.flags.is_enlisted() {
            table.statement(core.db, |s| &s.drop_key, Table::sql_drop_key)?.run(&[key.into()])?;
        }
    }
    let (written, won) = (written?, state.won());
    if let Some(state) = state.settle(core, written) {
        let (table, packed, total_changes) = (table.clone(), change.key.clone(), core.db.total_changes());
        core.last_row = Some(LastRow { table, index, packed, key: row, hash, state, total_changes });
    }
    Ok((won, written.map_or(0, |(key, _)| key)))
}

/// What is held of a row. Where the one before was unseen, and this is the first change of a row's first life, a key is made to see
/// whether there was none: that saves looking for its clocks, and the key is needed mostly.
fn load(
    core: &mut Core,
    table: &Table,
    (row, hash): (&RowKey<'_>, u64),
    change: &Change,
    of: ClockOf,
) -> Result<RowMerge<'static>, MergeError> {
    let is_noted = record_noted(core, hash)?;
    let is_first = change.causal_length == CausalLength::FIRST && matches!(of, ClockOf::Cell(_));
    if core.is_unseen_likely
        && !is_noted
        && is_first
        && let Some(key) = add_new_key(core, table, &row.binds())?
    {
        return Ok(RowMerge::of_new_key(key));
    }
    let state = RowMerge::load(core, table, row)?;
    core.is_unseen_likely = state.key().is_none();
    Ok(state)
}

/// Decides one change, and writes what comes of it: under which key and stamp.
#[allow(clippy::too_many_arguments)] // a change, what it is about, and what decides
fn write<'a>(
    shared: &Shared,
    core: &mut Core,
    table: &Arc<Table>,
    (row, hash): (&RowKey<'_>, u64),
    state: &mut RowMerge<'a>,
    change: &'a Change,
    of: ClockOf,
    author: &mut Author<'_>,
) -> Result<Option<(i64, Stamp)>, MergeError> {
    let mut held_values = HeldRow::new(table, row);
    state.decide(core, table, &mut held_values, change, of, author, 0)?;
    drop(held_values);
    if state.won() == 0 {
        return Ok(None);
    }
    if let Some(clock) = state.lone_cell() {
        core.merged_rows.insert(hash);
        return state.write_noting(shared, core, table, row, clock, author, 0).map(Some);
    }
    record_noted(core, hash)?;
    state.write(shared, core, table, row, author, 0).map(Some)
}

/// Records what is noted, if there may be clocks of this row among it; tells whether.
fn record_noted(core: &mut Core, hash: u64) -> rusqlite::Result<bool> {
    let is_noted = core.merged_rows.contains(&hash);
    if is_noted {
        record_notes(core)?;
    }
    Ok(is_noted)
}

/// SQLite's integer conversion (MRG-4).
fn integer_of(value: &ValueRef<'_>) -> i64 {
    match value {
        ValueRef::Integer(value) => *value,
        ValueRef::Real(value) => *value as i64,
        ValueRef::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let text = text.trim();
            let digits = text.find(|c: char| !c.is_ascii_digit() && c != '-' && c != '+').unwrap_or(text.len());
            text[..digits].parse().unwrap_or_default()
        }
        _ => 0,
    }
}

fn vtab_error(error: MergeError) -> Error {
    match error {
        MergeError::Storage(error) => error.0,
        MergeError::Constraint { source, .. } => source,
        error => to_sql(error),
    }
}
