//! What is held of gathered rows: their clocks, read together.
//!
//! Rows that came together come again together, mostly, and the numbers of their keys follow each other. Then two statements walk
//! over keys and clocks from one number on, and the primary keys are compared; from the first row on that is another one, rows are
//! looked for one by one. Of newer values the second statement can be the one that writes their clocks ([`crate::newer_clocks`]).

use crate::batch_table::{Batch, WIDTH_MAX};
use crate::core::Core;
use crate::key_walk::{PrimaryKey, walk_keys};
use crate::merge::Author;
use crate::merge_row::RowMerge;
use crate::merge_rows::Gathered;
use crate::newer_clocks::move_newer;
use crate::schema::{ClockOf as Of, Table};
use crate::statement::Bind;

/// Whether the keys of the gathered rows follow each other.
#[derive(Clone, Copy, Default)]
pub(crate) struct Follow {
    /// Whether to guess.
    is_likely: bool,
    /// The key after that of the row before.
    next: Option<i64>,
}

/// Fewer rows are looked for one by one.
const BESIDE_MIN: usize = 4;

/// Reads the clocks of one table's rows, which are indexes of the gathered ones, into `states`.
pub(crate) fn load_rows<'a>(
    core: &mut Core,
    table: &Table,
    follow: &mut Follow,
    rows: &[usize],
    (gathered, about): (&[Gathered<'a>], &[Of]),
    authors: &mut [Author<'a>],
    states: &mut [RowMerge<'a>],
) -> rusqlite::Result<()> {
    if table.keys.len() > WIDTH_MAX {
        for row in rows {
            states[*row] = RowMerge::load(core, table, &gathered[*row].key)?;
        }
        return Ok(());
    }
    let mut right = 0;
    if let (true, Some(next)) = (follow.is_likely && rows.len() >= BESIDE_MIN, follow.next) {
        right = count_beside(core, table, next, rows, gathered)?;
        for rest in move_newer(core, table, next, &rows[..right], (gathered, about), authors, states)? {
            let first = next.saturating_add_unsigned(rest.start as u64);
            load_beside(core, table, first, &rows[rest], (gathered, about), states)?;
        }
        follow.next = i64::try_from(right).ok().and_then(|right| next.checked_add(right));
    }
    right += load_apart(core, table, follow, &rows[right..], gathered, states)?;
    // A wrong guess costs about what a right one saves.
    follow.is_likely = right > rows.len() / 2;
    Ok(())
}

/// How many of the rows have the keys from `next` on.
fn count_beside(
    core: &Core,
    table: &Table,
    next: i64,
    rows: &[usize],
    gathered: &[Gathered<'_>],
) -> rusqlite::Result<usize> {
    let is_row = |row: usize, held: PrimaryKey<'_>| held.is(gathered[rows[row]].key.values());
    let keys = walk_keys(core, table, next, (rows.len(), 0), &is_row)?;
    Ok(keys.iter().zip(next..).take_while(|(held, key)| *held == key).count())
}

fn last_of(first: i64, count: usize) -> i64 {
    first.saturating_add(i64::try_from(count).unwrap_or(i64::MAX) - 1)
}

/// Rows of the keys from `next` on. Where all changes are of one cell, the clocks of others are not read.
fn load_beside(
    core: &Core,
    table: &Table,
    next: i64,
    rows: &[usize],
    (gathered, about): (&[Gathered<'_>], &[Of]),
    states: &mut [RowMerge<'_>],
) -> rusqlite::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let cell = the_cell(rows, gathered, about);
    let (first, last) = (Bind::from(next), Bind::from(last_of(next, rows.len())));
    let held = if let Some(cell) = cell {
        let clocks = table.statement(core.db, |s| &s.beside_clocks_of_cell, Table::sql_beside_clocks_of_cell)?;
        clocks.query(&[first, last, Bind::from(&*table.cells[cell].name)])?
    } else {
        table.statement(core.db, |s| &s.beside_clocks, Table::sql_beside_clocks)?.query(&[first])?
    };
    while held.next()? {
        let index = held.integer(0).checked_sub(next).and_then(|index| usize::try_from(index).ok());
        let Some(row) = index.and_then(|index| rows.get(index)) else { break };
        states[*row].add_held(table, &held);
    }
    drop(held);
    for row in rows {
        let state = &mut states[*row];
        state.end_load();
        // Other cells tell whether there was a first life, and are to be forgotten where one ends.
        if let Some(cell) = cell
            && !state.is_alive_with(cell, gathered[*row].changes[0].causal_length)
        {
            *state = RowMerge::load(core, table, &gathered[*row].key)?;
        }
    }
    Ok(())
}

/// The cell of which all changes are, if there is one for each row.
fn the_cell(rows: &[usize], gathered: &[Gathered<'_>], about: &[Of]) -> Option<usize> {
    let of = |row: &usize| match (&gathered[*row], about[gathered[*row].about]) {
        (Gathered { changes: [_], .. }, Of::Cell(cell)) => Some(cell),
        _ => None,
    };
    let first = rows.first().and_then(of)?;
    rows.iter().all(|row| of(row) == Some(first)).then_some(first)
}

/// Rows that are anywhere. Gives of how many the key was guessed.
fn load_apart(
    core: &Core,
    table: &Table,
    follow: &mut Follow,
    rows: &[usize],
    gathered: &[Gathered<'_>],
    states: &mut [RowMerge<'_>],
) -> rusqlite::Result<usize> {
    if rows.is_empty() {
        return Ok(0);
    }
    let batch = keys_of(table, gathered, rows.iter().copied());
    let statement = if follow.is_likely {
        table.statement(core.db, |s| &s.row_states_near, Table::sql_row_states_near)?
    } else {
        table.statement(core.db, |s| &s.row_states, Table::sql_row_states)?
    };
    batch.guess(follow.next);
    let held = statement.query_batch(&batch, &[])?;
    let mut right = 0;
    while held.next()? {
        let state = &mut states[rows[batch.row()]];
        let is_first = state.key().is_none();
        state.add_held(table, &held);
        if let (true, Some(key)) = (is_first, state.key()) {
            right += usize::from(follow.next == Some(key));
            follow.next = key.checked_add(1);
            batch.guess(follow.next);
        }
    }
    drop(held);
    rows.iter().for_each(|row| states[*row].end_load());
    Ok(right)
}

/// Of each row its primary key.
pub(crate) fn keys_of<'s>(
    table: &Table,
    gathered: &'s [Gathered<'_>],
    rows: impl ExactSizeIterator<Item = usize>,
) -> Batch<'s> {
    let mut batch = Batch::new(table.keys.len(), rows.len());
    for row in rows {
        batch.push(gathered[row].key.values());
    }
    batch
}
