//! Notes that are alike -> clock rows of many rows at once, in the order of the B-trees that they lie in.
//!
//! Whatever comes here is written as [`crate::record`] would write it row by row: sequence numbers follow the order of the notes,
//! also where rows are written in another one. Rows of which more than one note comes are written one by one.

use std::ops::Range;
use std::sync::Arc;

use crate::batch_table::{Batch, WIDTH_MAX};
use crate::core::Core;
use crate::key_walk::{PrimaryKey, walk_keys};
use crate::notes::{Note, Notes, Write};
use crate::record::{CLOCKS_MAX, NewRows, count_cell, find_key, find_or_add_key, is_beside, record_known_insert};
use crate::schema::Table;
use crate::statement::{Bind, Binds};

/// Most rows that are looked up or written by one statement.
pub(crate) const ROWS_MAX: usize = 256;

/// The notes that come first, as far as they are of rows of one table to which the same happened.
pub(crate) fn alike(notes: &[Note]) -> &[Note] {
    let Some(first) = notes.first().filter(|note| note.table.keys.len() <= WIDTH_MAX) else { return &[] };
    let is_like = |note: &&Note| {
        let is_like = match (&first.write, &note.write) {
            (Write::Insert, Write::Insert) => !note.table.is_keys_only(),
            (Write::Update { .. }, Write::Update { old_keys, .. }) => old_keys.is_none(),
            _ => false,
        };
        is_like && Arc::ptr_eq(&note.table, &first.table)
    };
    &notes[..notes.iter().take(ROWS_MAX).take_while(is_like).count()]
}

fn keys_of<'n>(notes: &'n Notes, alike: &[Note]) -> Batch<'n> {
    let mut batch = Batch::new(alike[0].table.keys.len(), alike.len());
    for note in alike {
        batch.push(notes.keys_of(note));
    }
    batch
}

/// LW-1 to LW-4, of notes that are [`alike`].
pub(crate) fn record_inserts(
    core: &mut Core,
    notes: &Notes,
    alike: &[Note],
    new_rows: &mut NewRows,
) -> rusqlite::Result<()> {
    let table = &alike[0].table;
    let batch = keys_of(notes, alike);
    table.statement(core.db, |s| &s.add_keys, Table::sql_add_keys)?.run_batch(&batch, &[])?;
    let added = usize::try_from(core.db.changes()).unwrap_or_default();
    // SQLite counts on from the largest.
    let first = core.db.last_insert_rowid() - core.db.changes() + 1;
    if added == alike.len() {
        return (first..).take(added).try_for_each(|key| new_rows.add(core, table, key));
    }
    // Some were known, or come twice.
    let mut is_recorded = vec![false; added];
    for note in alike {
        let keys: Binds<'_> = notes.keys_of(note).collect();
        let key = find_key(core, table, &keys)?.unwrap_or_default();
        let place = key.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        match place.and_then(|place| is_recorded.get_mut(place)) {
            Some(is_recorded) if !*is_recorded => {
                *is_recorded = true;
                new_rows.add(core, table, key)?;
            }
            _ => {
                new_rows.write(core)?;
                record_known_insert(core, table, key)?;
            }
        }
    }
    Ok(())
}

/// A row of which cells changed.
struct Updated {
    key: i64,
    cells: Range<usize>,
    first_seq: i64,
}

/// LW-5 and LW-7, of rows whose keys did not change.
pub(crate) fn record_updates(core: &mut Core, notes: &Notes, alike: &[Note]) -> rusqlite::Result<()> {
    let table = &*alike[0].table;
    let version = core.version_to_write()?;
    let mut rows = Vec::with_capacity(alike.len());
    for (note, key) in alike.iter().zip(find_keys(core, notes, alike)?) {
        let Write::Update { cells, .. } = &note.write else { continue };
        let first_seq = core.take_seqs(cells.len());
        rows.push(Updated { key, cells: cells.clone(), first_seq });
    }
    rows.sort_by_key(|row| row.key);
    // Rows that follow each other, of which the same cells were written, one after another.
    let is_next = |a: &Updated, b: &Updated| {
        let (a_cells, b_cells) = (notes.cells(&a.cells), notes.cells(&b.cells));
        a.key.checked_add(1) == Some(b.key) && a_cells == b_cells && b.first_seq == a.first_seq + stride(a)
    };
    let mut clocks = Clocks::default();
    for run in rows.chunk_by(is_next) {
        if run.len() >= RUN_MIN {
            clocks.write(core, table, version)?;
            count_run(core, table, notes, run, version)?;
            continue;
        }
        for row in run {
            if !clocks.can_have(row.key) {
                clocks.write(core, table, version)?;
            }
            let seqs = row.first_seq..;
            clocks.of.extend(notes.cells(&row.cells).iter().zip(seqs).map(|(cell, seq)| (row.key, *cell, seq)));
        }
    }
    clocks.write(core, table, version)
}

/// Shorter runs are written by other statements.
pub(crate) const RUN_MIN: usize = 3;

/// How many sequence numbers a row took.
fn stride(row: &Updated) -> i64 {
    i64::try_from(row.cells.len()).unwrap_or_default()
}

/// Counts on the clocks of rows beside each other, a statement for each cell: SQLite steps from one to the next, and each number
/// follows from the key.
fn count_run(core: &Core, table: &Table, notes: &Notes, run: &[Updated], version: i64) -> rusqlite::Result<()> {
    let [first, .., last] = run else { return Ok(()) };
    let (first_key, last_key) = (Bind::Integer(first.key), Bind::Integer(last.key));
    for (cell, seq) in notes.cells(&first.cells).iter().zip(first.first_seq..) {
        let name = Bind::from(&*table.cells[*cell].name);
        let count = table.statement(core.db, |s| &s.count_cell_of_run, Table::sql_count_cell_of_run)?;
        count.run(&[first_key, last_key, name, version.into(), stride(first).into(), seq.into()])?;
        if usize::try_from(core.db.changes()) == Ok(run.len()) {
            continue;
        }
        // Some rows had no clock of this cell.
        let mut batch = Batch::new(3, run.len());
        for (row, seq) in run.iter().zip((seq..).step_by(first.cells.len())) {
            batch.push([row.key.into(), name, seq.into()]);
        }
        let add = table.statement(core.db, |s| &s.add_clocks_alike, Table::sql_add_clocks_alike)?;
        add.run_batch(&batch, &[version.into(), 0.into(), 1.into()])?;
    }
    Ok(())
}

/// The keys of rows, added where they are not known.
pub(crate) fn find_keys(core: &Core, notes: &Notes, alike: &[Note]) -> rusqlite::Result<Vec<i64>> {
    let mut keys = keys_beside(core, notes, alike)?;
    if keys.len() < alike.len() {
        search_keys(core, notes, &alike[keys.len()..], &mut keys)?;
    }
    Ok(keys)
}

/// How many rows in between the walk passes over. Each costs a third of what a search does.
const PASSED_MAX: usize = 3;

/// The keys of the first rows, as far as they follow each other as the rows do.
fn keys_beside(core: &Core, notes: &Notes, alike: &[Note]) -> rusqlite::Result<Vec<i64>> {
    let [first, rest @ ..] = alike else { return Ok(Vec::new()) };
    let table = &*first.table;
    let binds: Binds<'_> = notes.keys_of(first).collect();
    let key = find_or_add_key(core, table, &binds)?;
    let is_row = |row: usize, held: PrimaryKey<'_>| held.is(notes.keys_of(&rest[row]));
    let mut keys = walk_keys(core, table, key.saturating_add(1), (rest.len(), PASSED_MAX), &is_row)?;
    keys.insert(0, key);
    Ok(keys)
}

/// The keys of rows that lie anywhere, in one statement.
fn search_keys(core: &Core, notes: &Notes, alike: &[Note], keys: &mut Vec<i64>) -> rusqlite::Result<()> {
    let table = &*alike[0].table;
    let batch = keys_of(notes, alike);
    let found = table.statement(core.db, |s| &s.find_keys, Table::sql_find_keys)?.query_batch(&batch, &[])?;
    let first = keys.len();
    let mut unknown = Vec::new();
    while found.next()? {
        let key = (!found.is_null(0)).then(|| found.integer(0));
        batch.guess(key.and_then(|key| key.checked_add(1)));
        if key.is_none() {
            unknown.push(keys.len());
        }
        keys.push(key.unwrap_or_default());
    }
    drop(found);
    for place in unknown {
        let binds: Binds<'_> = notes.keys_of(&alike[place - first]).collect();
        keys[place] = find_or_add_key(core, table, &binds)?;
    }
    Ok(())
}

/// Cells that were written, in rows beside each other: key, cell, seq.
#[derive(Default)]
struct Clocks {
    of: Vec<(i64, usize, i64)>,
}

impl Clocks {
    /// Whether the clocks of one more row may be written with the others.
    fn can_have(&self, key: i64) -> bool {
        self.of.last().is_none_or(|(last, ..)| self.of.len() < CLOCKS_MAX && is_beside(*last, key))
    }

    fn write(&mut self, core: &Core, table: &Table, version: i64) -> rusqlite::Result<()> {
        if let [(key, cell, seq)] = *self.of {
            count_cell(core, table, key, cell, version, seq)?;
        } else if !self.of.is_empty() {
            let mut batch = Batch::new(3, self.of.len());
            for (key, cell, seq) in &self.of {
                batch.push([Bind::Integer(*key), Bind::from(&*table.cells[*cell].name), Bind::Integer(*seq)]);
            }
            let statement = table.statement(core.db, |s| &s.count_cells, Table::sql_count_cells)?;
            statement.run_batch(&batch, &[version.into()])?;
        }
        self.of.clear();
        Ok(())
    }
}
