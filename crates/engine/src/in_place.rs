//! Base rows of living rows updated where they lie. An upsert searches for each by its primary key, and an UPDATE of one row is a
//! statement for each; one UPDATE that walks over rows which lie beside each other takes half of either.
//!
//! Where rows lie is guessed ([`Near`]), and each is compared with the primary key before it is written. Rows that are elsewhere,
//! or alone, are left to the caller.

use crate::batch_table::{Batch, MET_MAX, WIDTH_MAX};
use crate::core::{Core, Shared};
use crate::error::MergeError;
use crate::merge_row::RowMerge;
use crate::merge_rows::Gathered;
use crate::row_key::RowKey;
use crate::schema::{RowWrite, Table};
use crate::statement::Bind;

/// Where the base rows of keys are. Rows that came together are numbered together: a row's rowid is mostly the number of its
/// key and something that seldom changes. To look there saves a search among primary keys; what is found is compared with the
/// primary key, so that a wrong guess costs time and nothing else.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Near {
    Unknown,
    /// So much above the key.
    By(i64),
    /// There is no rowid, or too many guesses were wrong.
    Nowhere,
}

impl Near {
    /// Whether so many wrong guesses are too many.
    pub(crate) fn is_wrong(missed: usize, asked: usize) -> bool {
        missed > asked / 4
    }
}

/// How many rows in between one statement passes over. Each costs a tenth of what a statement does.
const PASSED_MAX: i64 = 3;

/// Writes those of the rows that lie beside others of them, and gives the rest. `rows` are indexes of gathered rows that live, in
/// which all of `cells` are written, and nothing else reacts.
pub(crate) fn update_in_place(
    shared: &Shared,
    core: &Core,
    table: &Table,
    near: &mut Near,
    cells: &[usize],
    rows: Vec<usize>,
    (gathered, states): (&[Gathered<'_>], &[RowMerge<'_>]),
) -> Result<Vec<usize>, MergeError> {
    let keys = if table.integer_key().is_some() { 0 } else { table.keys.len() };
    if rows.len() < 2 || 1 + keys + cells.len() > WIDTH_MAX {
        return Ok(rows);
    }
    let (mut rest, mut places) = (Vec::new(), Vec::with_capacity(rows.len()));
    for row in rows {
        match place_of(core, table, near, &gathered[row].key, states[row].key())? {
            Some(place) => places.push((place, row)),
            None => rest.push(row),
        }
    }
    places.sort_unstable();
    let (mut asked, mut missed) = (0, 0);
    let is_beside = |before: &(i64, usize), after: &(i64, usize)| after.0.saturating_sub(before.0) <= 1 + PASSED_MAX;
    for run in places.chunk_by(is_beside).flat_map(|run| run.chunks(MET_MAX)) {
        let ([(first, _), .., (last, _)], false) = (run, *near == Near::Nowhere && keys > 0) else {
            rest.extend(run.iter().map(|(_, row)| *row));
            continue;
        };
        let mut batch = Batch::new(1 + keys + cells.len(), run.len());
        for (place, row) in run {
            let values = states[*row].cells().cells.iter().map(|(_, value)| Bind::from(*value));
            batch.push([Bind::Integer(*place)].into_iter().chain(gathered[*row].key.values().take(keys)).chain(values));
        }
        let statement = table.write_row(core.db, RowWrite::UpdateMany, cells)?;
        let _sync = shared.sync_guard();
        if let Err(error) = statement.run_batch(&batch, &[(*first).into(), (*last).into()]) {
            // Interrupted, say: SQLite rolled back the transaction, and each further write would be one of its own.
            if !core.db.is_in_transaction() {
                return Err(error.into());
            }
            // Nothing of it stayed. Which of them was it?
            rest.extend(run.iter().map(|(_, row)| *row));
            continue;
        }
        let elsewhere = run.iter().enumerate().filter(|(index, _)| !batch.has_met(*index)).map(|(_, (_, row))| *row);
        let rest_before = rest.len();
        rest.extend(elsewhere);
        (asked, missed) = (asked + run.len(), missed + rest.len() - rest_before);
        if keys > 0 && Near::is_wrong(missed, asked) {
            *near = Near::Nowhere;
        }
    }
    // The order in which they came is the one in which the caller would have written them.
    rest.sort_unstable();
    Ok(rest)
}

fn place_of(
    core: &Core,
    table: &Table,
    near: &mut Near,
    key: &RowKey<'_>,
    number: Option<i64>,
) -> rusqlite::Result<Option<i64>> {
    if table.integer_key().is_some() {
        return Ok(match key.values().next() {
            Some(Bind::Integer(place)) => Some(place),
            _ => None,
        });
    }
    let Some(number) = number else { return Ok(None) };
    if *near == Near::Unknown {
        let rowid = table.statement(core.db, |s| &s.base_rowid, Table::sql_base_rowid)?.query_integer(&key.binds())?;
        *near = rowid.map_or(Near::Nowhere, |rowid| Near::By(rowid.wrapping_sub(number)));
    }
    Ok(match near {
        Near::By(offset) => number.checked_add(*offset),
        _ => None,
    })
}
