//! Clocks of merged changes that are alike, written by fewer values than they have.
//!
//! A transaction numbers its changes one after another, and its rows mostly come together: then the sequence numbers of their clocks
//! follow from the first one, and the rest is the same for all of them. Everything else is handed over value by value.

use crate::batch_table::Batch;
use crate::core::Core;
use crate::merge::Stamp;
use crate::merge_row::NewClock;
use crate::notes::MergedClock;
use crate::schema::{ClockOf, Table};
use crate::statement::{Bind, Binds};

/// Clocks of one row and stamp, in the order of names.
pub(crate) struct RowClocks<'c> {
    pub(crate) key: i64,
    pub(crate) stamp: Stamp,
    pub(crate) clocks: &'c [NewClock],
}

/// Fewer rows than this are not worth a statement with their clocks as text.
const NEW_ROWS_MIN: usize = 4;

/// What the clocks of a row follow from that has all cells, in the order of the table.
#[derive(Clone, Copy, PartialEq)]
struct Whole {
    first_seq: i64,
    col_version: i64,
    stamp: Stamp,
}

impl RowClocks<'_> {
    fn whole(&self, table: &Table) -> Option<Whole> {
        let NewClock { of: ClockOf::Cell(cell), col_version, seq } = *self.clocks.first()? else { return None };
        let first_seq = seq.checked_sub(i64::try_from(cell).ok()?)?;
        let is_even = |(place, clock): (usize, &NewClock)| match clock.of {
            ClockOf::Cell(cell) => {
                table.by_name[cell] == place
                    && clock.col_version == col_version
                    && i64::try_from(cell) == Ok(clock.seq.wrapping_sub(first_seq))
            }
            ClockOf::Row | ClockOf::Gone => false,
        };
        let is_whole = self.clocks.len() == table.cells.len() && self.clocks.iter().enumerate().all(is_even);
        is_whole.then_some(Whole { first_seq, col_version, stamp: self.stamp })
    }
}

/// Writes clocks where probably none are. Tells how many were written: others lay there all the same.
pub(crate) fn add_clocks(core: &Core, table: &Table, rows: &[RowClocks<'_>]) -> rusqlite::Result<usize> {
    let at_once = table.new_rows();
    if at_once < NEW_ROWS_MIN {
        return add_batch(core, table, rows);
    }
    let wholes: Vec<_> = rows.iter().map(|row| row.whole(table)).collect();
    let seqs = i64::try_from(table.cells.len()).unwrap_or_default();
    let follows = |before: &Option<Whole>, after: &Option<Whole>| match (before, after) {
        (Some(before), Some(after)) => *after == Whole { first_seq: before.first_seq.wrapping_add(seqs), ..*before },
        _ => false,
    };
    let (mut rest, mut start, mut written) = (0, 0, 0);
    for wholes in wholes.chunk_by(follows).flat_map(|run| run.chunks(at_once)) {
        let end = start + wholes.len();
        if let (Some(whole), true) = (wholes[0], wholes.len() == at_once) {
            written += add_batch(core, table, &rows[rest..start])?;
            written += add_whole(core, table, whole, &rows[start..end])?;
            rest = end;
        }
        start = end;
    }
    Ok(written + add_batch(core, table, &rows[rest..])?)
}

/// The clocks of so many rows as one statement has.
fn add_whole(core: &Core, table: &Table, whole: Whole, rows: &[RowClocks<'_>]) -> rusqlite::Result<usize> {
    let Whole { first_seq, col_version, stamp } = whole;
    let mut binds: Binds<'_> =
        [stamp.local, first_seq, stamp.ordinal, col_version].map(Bind::Integer).into_iter().collect();
    binds.extend(rows.iter().map(|row| Bind::Integer(row.key)));
    table.statement(core.db, |s| &s.add_clocks_whole, Table::sql_add_clocks_whole)?.run(&binds)?;
    Ok(usize::try_from(core.db.changes()).unwrap_or_default())
}

fn add_batch(core: &Core, table: &Table, rows: &[RowClocks<'_>]) -> rusqlite::Result<usize> {
    let mut clocks = rows.iter().flat_map(|row| row.clocks.iter().map(|clock| (row.stamp, clock.col_version)));
    let Some((stamp, col_version)) = clocks.next() else { return Ok(0) };
    let is_alike = clocks.all(|other| other == (stamp, col_version));
    let width = if is_alike { 3 } else { CLOCK_WIDTH };
    let mut batch = Batch::new(width, rows.len() * table.cells.len().min(8));
    for RowClocks { key, stamp, clocks } in rows {
        for values in clocks.iter().filter_map(|clock| values_of(table, clock, *key, *stamp)) {
            batch.push(values.into_iter().take(width));
        }
    }
    if is_alike {
        let statement = table.statement(core.db, |s| &s.add_clocks_alike, Table::sql_add_clocks_alike)?;
        statement.run_batch(&batch, &[stamp.local.into(), stamp.ordinal.into(), col_version.into()])?;
    } else {
        table.statement(core.db, |s| &s.add_clocks, Table::sql_add_clocks)?.run_batch(&batch, &[])?;
    }
    Ok(usize::try_from(core.db.changes()).unwrap_or_default())
}

/// Values of a clock in a batch.
pub(crate) const CLOCK_WIDTH: usize = 6;

/// Key, name, seq, col_version, local version, ordinal; `None` of what is no cell's.
pub(crate) fn values_of<'t>(
    table: &'t Table,
    clock: &NewClock,
    key: i64,
    stamp: Stamp,
) -> Option<[Bind<'t>; CLOCK_WIDTH]> {
    let ClockOf::Cell(cell) = clock.of else { return None };
    Some([
        Bind::Integer(key),
        Bind::from(&*table.cells[cell].name),
        Bind::Integer(clock.seq),
        Bind::Integer(clock.col_version),
        Bind::Integer(stamp.local),
        Bind::Integer(stamp.ordinal),
    ])
}

/// Fewer clocks than this are written by other statements.
const RUN_MIN: usize = 3;

/// Writes the clocks that come first by one statement, where they are of one cell, stamp and version, of rows whose keys follow each
/// other, and their sequence numbers rise evenly. SQLite steps from one to the next. Tells how many it wrote; of none, where one of
/// them was not there.
pub(crate) fn move_even_run(
    core: &Core,
    table: &Table,
    mut clocks: impl Iterator<Item = MergedClock>,
) -> rusqlite::Result<usize> {
    let Some(first) = clocks.next() else { return Ok(0) };
    let ClockOf::Cell(cell) = first.clock.of else { return Ok(0) };
    let (mut last, mut rise, mut count) = (first, None, 1);
    for next in clocks {
        let rises = next.clock.seq.wrapping_sub(last.clock.seq);
        let is_like = last.key.checked_add(1) == Some(next.key)
            && (next.stamp, next.clock.of) == (first.stamp, first.clock.of)
            && next.clock.col_version == first.clock.col_version;
        if !is_like || *rise.get_or_insert(rises) != rises {
            break;
        }
        (last, count) = (next, count + 1);
    }
    if count < RUN_MIN {
        return Ok(0);
    }
    let MergedClock { key, clock: NewClock { col_version, seq, .. }, stamp, .. } = first;
    let name = Bind::from(&*table.cells[cell].name);
    let [col_version, local, ordinal, seq, rise] =
        [col_version, stamp.local, stamp.ordinal, seq, rise.unwrap_or_default()].map(Bind::Integer);
    let statement = table.statement(core.db, |s| &s.move_clocks_of_run, Table::sql_move_clocks_of_run)?;
    statement.run(&[key.into(), last.key.into(), name, col_version, local, ordinal, seq, rise])?;
    Ok(if usize::try_from(core.db.changes()) == Ok(count) { count } else { 0 })
}
