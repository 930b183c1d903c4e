//! Notes of merged changes -> clock rows of many rows at once, in the order in which they lie.

use crate::batch_table::Batch;
use crate::core::Core;
use crate::merged_clocks::{CLOCK_WIDTH, RowClocks, add_clocks, move_even_run, values_of};
use crate::notes::{MergedClock, Note, Write};
use crate::record::{CLOCKS_MAX, is_beside};
use crate::schema::{ClockOf, Table};
use crate::statement::Bind;

/// The notes that come first, as far as they are of changes merged into one table.
pub(crate) fn merged_alike(notes: &[Note]) -> &[Note] {
    let Some(first) = notes.first() else { return &[] };
    let is_like =
        |note: &&Note| matches!(note.write, Write::Merge(_)) && std::sync::Arc::ptr_eq(&note.table, &first.table);
    &notes[..notes.iter().take_while(is_like).count()]
}

/// Writes the clocks of one table that were noted, in the order in which they were.
pub(crate) fn record_merged<'n>(
    core: &Core,
    table: &Table,
    noted: impl Iterator<Item = &'n MergedClock>,
) -> rusqlite::Result<()> {
    let place = |clock: &MergedClock| match clock.clock.of {
        ClockOf::Cell(cell) => (clock.key, table.by_name[cell]),
        ClockOf::Row | ClockOf::Gone => (clock.key, usize::MAX),
    };
    let mut clocks: Vec<_> = noted.copied().collect();
    // Stable: what was merged into one cell stays in its order.
    clocks.sort_by_key(place);
    clocks.dedup_by(|later, earlier| {
        let is_same = place(later) == place(earlier);
        if is_same {
            // The later one wins, over whatever was there before both.
            *earlier = MergedClock { is_held: earlier.is_held, ..*later };
        }
        is_same
    });
    let (held, new): (Vec<_>, Vec<_>) = clocks.into_iter().partition(|clock| clock.is_held);
    add_new_clocks(core, table, &new)?;
    let mut rest = &*held;
    loop {
        let moved = move_even_run(core, table, rest.iter().copied())?;
        if moved == 0 {
            break;
        }
        rest = &rest[moved..];
    }
    for run in rest.chunk_by(|before, after| is_beside(before.key, after.key)).flat_map(|run| run.chunks(CLOCKS_MAX)) {
        put_clocks(core, table, run)?;
    }
    Ok(())
}

/// Clocks of cells that had none.
fn add_new_clocks(core: &Core, table: &Table, clocks: &[MergedClock]) -> rusqlite::Result<()> {
    if let [clock] = clocks {
        return put_one(core, table, clock);
    }
    let new: Vec<_> = clocks.iter().map(|clock| clock.clock).collect();
    let (mut rows, mut start) = (Vec::new(), 0);
    for row in clocks.chunk_by(|before, after| (before.key, before.stamp) == (after.key, after.stamp)) {
        let end = start + row.len();
        rows.push(RowClocks { key: row[0].key, stamp: row[0].stamp, clocks: &new[start..end] });
        start = end;
    }
    if add_clocks(core, table, &rows)? < clocks.len() {
        // Clocks lay there all the same.
        clocks.iter().try_for_each(|clock| put_one(core, table, clock))?;
    }
    Ok(())
}

/// Clocks of cells that had some, which lie beside each other.
fn put_clocks(core: &Core, table: &Table, clocks: &[MergedClock]) -> rusqlite::Result<()> {
    if let [clock] = clocks {
        return put_one(core, table, clock);
    }
    let MergedClock { stamp, clock: first, .. } = clocks[0];
    let is_one_cell = clocks.iter().all(|clock| clock.stamp == stamp && clock.clock.of == first.of);
    if let (ClockOf::Cell(cell), true) = (first.of, is_one_cell) {
        let mut batch = Batch::new(3, clocks.len());
        for MergedClock { key, clock, .. } in clocks {
            batch.push([*key, clock.col_version, clock.seq].map(Bind::Integer));
        }
        let stamp = [Bind::from(&*table.cells[cell].name), stamp.local.into(), stamp.ordinal.into()];
        let statement = table.statement(core.db, |s| &s.put_clocks_of_cell, Table::sql_put_clocks_of_cell)?;
        return statement.run_batch(&batch, &stamp);
    }
    let mut batch = Batch::new(CLOCK_WIDTH, clocks.len());
    for MergedClock { key, clock, stamp, .. } in clocks {
        batch.push(values_of(table, clock, *key, *stamp).into_iter().flatten());
    }
    table.statement(core.db, |s| &s.put_clocks, Table::sql_put_clocks)?.run_batch(&batch, &[])
}

fn put_one(
    core: &Core,
    table: &Table,
    MergedClock { key, clock, stamp, is_held }: &MergedClock,
) -> rusqlite::Result<()> {
    let ClockOf::Cell(cell) = clock.of else { return Ok(()) };
    let name = Bind::from(&*table.cells[cell].name);
    let (local, ordinal) = (stamp.local.into(), stamp.ordinal.into());
    let binds = [Bind::Integer(*key), local, ordinal, name, clock.col_version.into(), clock.seq.into()];
    if *is_held {
        table.statement(core.db, |s| &s.move_clock, Table::sql_move_clock)?.run(&binds)?;
    } else {
        table.statement(core.db, |s| &s.add_clock, Table::sql_add_clock)?.run(&binds)?;
    }
    if core.db.changes() > 0 {
        return Ok(());
    }
    table.statement(core.db, |s| &s.put_clock, Table::sql_put_clock)?.run(&binds)
}
