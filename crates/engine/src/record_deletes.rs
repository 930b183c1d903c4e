//! Notes of deletes -> sentinels in place of clocks, of runs of rows whose keys follow each other.
//!
//! A run takes a few bytes of memory, however many rows it has. So deletes are not recorded where notes become too many, but held
//! as runs ([`hold_deletes`]) until the transaction is committed or the engine is asked. Then a table is noticed of which most rows
//! are gone: SQLite drops all of its clocks page by page, instead of one by one from two B-trees, and those that stay are written
//! again.

use std::sync::Arc;

use crate::batch_table::{Batch, WIDTH_MAX};
use crate::core::Core;
use crate::notes::{Note, Notes, Write};
use crate::record::{bury, delete_row};
use crate::record_alike::{ROWS_MAX, RUN_MIN, find_keys};
use crate::schema::Table;
use crate::statement::{Bind, Rows};

/// Deleted rows whose keys follow each other, and in the same order their sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Run {
    first_key: i64,
    first_seq: i64,
    rows: i64,
}

impl Run {
    fn last_key(&self) -> i64 {
        self.first_key.saturating_add(self.rows - 1)
    }

    /// Whether the other one goes on where this one ends.
    fn is_before(&self, next: &Self) -> bool {
        self.first_key.checked_add(self.rows) == Some(next.first_key)
    }

    fn seq_of(&self, key: i64) -> i64 {
        self.first_seq + (key - self.first_key)
    }

    /// Key and sequence number of each row.
    fn each(&self) -> impl Iterator<Item = (i64, i64)> {
        (self.first_key..=self.last_key()).zip(self.first_seq..)
    }

    fn has(&self, key: i64) -> bool {
        (self.first_key..=self.last_key()).contains(&key)
    }
}

/// Adds a run, to the last one where it goes on from there.
fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.is_before(&run) && last.first_seq + last.rows == run.first_seq => last.rows += run.rows,
        _ => runs.push(run),
    }
}

/// Most runs that are held, and how many rows they have in the mean at least.
const HELD_MAX: usize = 256;
const HELD_ROWS_MIN: i64 = 16;

/// The deletes among the first notes, all of one table.
pub(crate) fn deletes(notes: &[Note]) -> &[Note] {
    let Some(first) = notes.first().filter(|note| note.table.keys.len() <= WIDTH_MAX) else { return &[] };
    let is_like = |note: &&Note| {
        matches!(note.write, Write::Delete | Write::DeleteRun(_)) && Arc::ptr_eq(&note.table, &first.table)
    };
    &notes[..notes.iter().take_while(is_like).count()]
}

/// Finds the keys of rows that were deleted. Takes their sequence numbers.
fn runs_of(core: &mut Core, notes: &Notes, deletes: &[Note]) -> rusqlite::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let is_single = |note: &Note| !matches!(note.write, Write::DeleteRun(_));
    for part in deletes.chunk_by(|a, b| is_single(a) && is_single(b)).flat_map(|part| part.chunks(ROWS_MAX)) {
        if let [Note { write: Write::DeleteRun(run), .. }] = part {
            push(&mut runs, *run);
            continue;
        }
        let keys = find_keys(core, notes, part)?;
        let first_seq = core.take_seqs(keys.len());
        for (first_key, first_seq) in keys.into_iter().zip(first_seq..) {
            push(&mut runs, Run { first_key, first_seq, rows: 1 });
        }
    }
    Ok(runs)
}

/// What became of notes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Nothing,
    /// They are fewer, and not recorded.
    Held,
    Recorded,
}

/// Holds the notes after the first ones as runs, where they are of rows of one table that were deleted, and lie beside each other.
/// What does not is recorded. No savepoint may be open that began after one of these notes.
pub(crate) fn hold_deletes(core: &mut Core, notes: &mut Notes, recorded: usize) -> rusqlite::Result<Done> {
    let rest = notes.notes().get(recorded..).unwrap_or_default();
    let held = deletes(rest);
    let Some(table) = held.first().map(|note| note.table.clone()).filter(|_| held.len() == rest.len()) else {
        return Ok(Done::Nothing);
    };
    let runs = runs_of(core, notes, held)?;
    let rows: i64 = runs.iter().map(|run| run.rows).sum();
    let is_short = runs.len() <= HELD_MAX && runs.len() as i64 * HELD_ROWS_MIN <= rows;
    if !is_short {
        return record_runs(core, &table, runs).map(|()| Done::Recorded);
    }
    notes.truncate(recorded);
    for run in runs {
        notes.add(&table, Write::DeleteRun(run), std::iter::empty());
    }
    Ok(Done::Held)
}

/// LW-8, of rows of one table.
pub(crate) fn record_deletes(core: &mut Core, notes: &Notes, deletes: &[Note]) -> rusqlite::Result<()> {
    let runs = runs_of(core, notes, deletes)?;
    record_runs(core, &deletes[0].table, runs)
}

fn record_runs(core: &mut Core, table: &Table, mut runs: Vec<Run>) -> rusqlite::Result<()> {
    let version = core.version_to_write()?;
    runs.sort_unstable();
    if empty_table(core, table, &runs, version)? {
        return Ok(());
    }
    for beside in runs.chunk_by(Run::is_before) {
        let rows: i64 = beside.iter().map(|run| run.rows).sum();
        if rows >= RUN_MIN as i64 {
            delete_beside(core, table, beside, version)?;
            continue;
        }
        for (key, seq) in beside.iter().flat_map(Run::each) {
            delete_row(core, table, key, version, seq)?;
        }
    }
    Ok(())
}

/// Deletes rows of which all keys follow each other.
fn delete_beside(core: &Core, table: &Table, runs: &[Run], version: i64) -> rusqlite::Result<()> {
    let ([first, ..], [.., last]) = (runs, runs) else { return Ok(()) };
    let range = [Bind::Integer(first.first_key), Bind::Integer(last.last_key())];
    table.statement(core.db, |s| &s.drop_cells_of_run, Table::sql_drop_cells_of_run)?.run(&range)?;
    // Nothing but sentinels is left: of rows that were deleted before.
    let left = table.statement(core.db, |s| &s.any_clock_of_run, Table::sql_any_clock_of_run)?;
    if left.query_integer(&range)?.is_none() {
        return bury_runs(core, table, runs, version);
    }
    for (key, seq) in runs.iter().flat_map(Run::each) {
        bury(core, table, key, version, seq)?;
    }
    Ok(())
}

/// Gives rows that have no clock the sentinel of a dead one; others are left alone.
fn bury_runs(core: &Core, table: &Table, runs: &[Run], version: i64) -> rusqlite::Result<()> {
    let is_short = |run: &Run| run.rows < RUN_MIN as i64;
    for part in runs.chunk_by(|a, b| is_short(a) && is_short(b)) {
        if let [run] = part {
            let bury = table.statement(core.db, |s| &s.bury_run, Table::sql_bury_run)?;
            bury.run(&[run.first_key.into(), run.last_key().into(), version.into(), run.first_seq.into()])?;
            // Else some have one, or the application took a key away since it was found.
            if core.db.changes() == run.rows {
                continue;
            }
        }
        let mut rows = part.iter().flat_map(Run::each).peekable();
        while rows.peek().is_some() {
            let mut batch = Batch::new(3, ROWS_MAX);
            for (key, seq) in rows.by_ref().take(ROWS_MAX) {
                batch.push([Bind::Integer(key), "-1".into(), Bind::Integer(seq)]);
            }
            let add = table.statement(core.db, |s| &s.add_clocks_alike, Table::sql_add_clocks_alike)?;
            add.run_batch(&batch, &[version.into(), 0.into(), 2.into()])?;
        }
    }
    Ok(())
}

/// To look whether a table was emptied takes some statements.
const EMPTIED_ROWS_MIN: i64 = 64;
const EMPTIED_RUNS_MAX: usize = 16;

/// A clock that stays: its key, its name among the names of all that stay; seq, col_version, local version, ordinal.
struct Kept {
    key: i64,
    name: usize,
    rest: [i64; 4],
}

/// The clocks that stay where all are dropped.
#[derive(Default)]
struct AllKept {
    names: Vec<Vec<u8>>,
    clocks: Vec<Kept>,
}

impl AllKept {
    fn add(&mut self, held: &Rows<'_>) {
        let name = held.bytes(1);
        let known = self.names.iter().position(|known| known == name);
        let name = known.unwrap_or_else(|| {
            self.names.push(name.to_vec());
            self.names.len() - 1
        });
        self.clocks.push(Kept { key: held.integer(0), name, rest: [2, 3, 4, 5].map(|column| held.integer(column)) });
    }

    fn write(&self, core: &Core, table: &Table) -> rusqlite::Result<()> {
        for part in self.clocks.chunks(ROWS_MAX) {
            let mut batch = Batch::new(6, part.len());
            for Kept { key, name, rest } in part {
                let first = [Bind::Integer(*key), Bind::Text(&self.names[*name])];
                batch.push(first.into_iter().chain(rest.map(Bind::Integer)));
            }
            table.statement(core.db, |s| &s.put_clocks, Table::sql_put_clocks)?.run_batch(&batch, &[])?;
        }
        Ok(())
    }
}

/// Deletes the rows where the table has few others: drops all of its clocks, and writes those of the others again. Gives whether
/// it was so.
///
/// What is read to find that out is less than what is deleted.
fn empty_table(core: &Core, table: &Table, runs: &[Run], version: i64) -> rusqlite::Result<bool> {
    let rows: i64 = runs.iter().map(|run| run.rows).sum();
    let is_in_order = runs.windows(2).all(|pair| pair[0].last_key() < pair[1].first_key);
    if rows < EMPTIED_ROWS_MIN || runs.len() > EMPTIED_RUNS_MAX || !is_in_order {
        return Ok(false);
    }
    // A clock that is written again takes about a third of what deleting a row does otherwise.
    let most = rows / 2;
    // Keys are given out without gaps. So this mostly tells how many rows there are elsewhere, without reading them.
    let span = table.statement(core.db, |s| &s.key_span, Table::sql_key_span)?.query_integer(&[])?;
    if span.unwrap_or_default().saturating_sub(rows) > most {
        return Ok(false);
    }
    let Some(mut kept) = clocks_elsewhere(core, table, runs, most)? else { return Ok(false) };
    // Of rows that had been deleted before: the next sentinel counts on.
    let mut dead = Vec::new();
    let sentinels = table.statement(core.db, |s| &s.sentinels, Table::sql_sentinels)?;
    let held = sentinels.query(&[])?;
    while held.next()? {
        if let Some(run) = runs.iter().find(|run| run.has(held.integer(0))) {
            dead.push((held.integer(0), run.seq_of(held.integer(0))));
            kept.add(&held);
        }
    }
    drop(held);
    kept.clocks.sort_by_key(|clock| clock.key);
    table.statement(core.db, |s| &s.drop_clocks, Table::sql_drop_clocks)?.run(&[])?;
    kept.write(core, table)?;
    bury_runs(core, table, runs, version)?;
    for (key, seq) in dead {
        bury(core, table, key, version, seq)?;
    }
    Ok(true)
}

/// The clocks of rows that are not in these runs, unless there are more than so many.
fn clocks_elsewhere(core: &Core, table: &Table, runs: &[Run], most: i64) -> rusqlite::Result<Option<AllKept>> {
    let clocks = table.statement(core.db, |s| &s.whole_clocks, Table::sql_whole_clocks)?;
    let mut kept = AllKept::default();
    let mut first = Some(i64::MIN);
    let gaps = runs.iter().map(|run| (run.first_key.checked_sub(1), run.last_key().checked_add(1)));
    for (last, next) in gaps.chain([(Some(i64::MAX), None)]) {
        if let (Some(first), Some(last)) = (first, last)
            && first <= last
        {
            let held = clocks.query(&[first.into(), last.into()])?;
            while held.next()? {
                if kept.clocks.len() as i64 >= most {
                    return Ok(None);
                }
                kept.add(&held);
            }
        }
        first = next;
    }
    Ok(Some(kept))
}
