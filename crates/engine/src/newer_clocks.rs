//! Clocks of newer values, moved by the statement that finds out that they are older.
//!
//! Who decides a change must know the clock that is held, and who writes its new one comes to the same place once more. Where changes
//! are of one cell, and come in rows whose keys follow each other, one UPDATE walks over the clocks of these rows and asks a function
//! about each: whether the row lives as long as the change says, and the clock is of an earlier version. That decides the change, and
//! the clock is written where SQLite stands. All others are read and decided as ever.
//!
//! How long a row has lived its sentinel tells, which comes before the clocks of cells whose names come after `-1`.

use std::cell::Cell;
use std::ffi::c_int;
use std::ops::Range;

use litemesh_proto::Column;
use rusqlite::ffi;

use crate::batch_table::add_function;
use crate::core::{Core, module_error};
use crate::merge::Author;
use crate::merge_row::{RowMerge, check_counts};
use crate::merge_rows::{Gathered, ROWS_MAX};
use crate::schema::{ClockOf as Of, Table};
use crate::statement::{Bind, Handle, Passed, passed};

/// Fewer rows are not worth it: the first of them is looked at before.
const RUN_MIN: usize = 8;

/// About how many bytes of clocks one statement walks over. As it calls functions, SQLite keeps a copy of each page that it changes,
/// and above 64 KiB puts those of the whole transaction into a file.
const BYTES_MAX: usize = 40 << 10;

/// About how much a clock takes beside its name.
const CLOCK_BYTES: usize = 20;

/// Changes of one cell, in rows whose keys follow each other, as the running statement knows them.
struct Run {
    first_key: i64,
    /// How long the rows live according to the changes, which are all of one version.
    length: i64,
    col_version: i64,
    /// The row whose sentinel was met last, and how long that one lives.
    life: Cell<Option<(i64, i64)>>,
    /// A bit for each row whose clock is older.
    older: [Cell<u64>; ROWS_MAX / 64],
    /// Whether a sentinel came too late.
    is_backward: Cell<bool>,
}

// SAFETY: nothing else of ours has this name.
unsafe impl Passed for Run {
    const NAME: &'static std::ffi::CStr = c"litemesh_newer";
}

impl Run {
    fn place(&self, key: i64) -> Option<usize> {
        usize::try_from(key.wrapping_sub(self.first_key)).ok().filter(|place| *place < ROWS_MAX)
    }

    fn is_older(&self, place: usize) -> bool {
        self.older[place / 64].get() & 1 << (place % 64) != 0
    }

    /// Whether the clock of this version loses, by [`resolve`](crate::resolve::resolve): without a sentinel, the life is the first.
    fn meet_clock(&self, key: i64, col_version: i64) -> bool {
        let length = self.life.get().filter(|(of, _)| *of == key).map_or(1, |(_, length)| length);
        let Some(place) = self.place(key).filter(|_| length == self.length && col_version < self.col_version) else {
            return false;
        };
        let word = &self.older[place / 64];
        word.set(word.get() | 1 << (place % 64));
        true
    }

    fn meet_sentinel(&self, key: i64, length: i64) {
        if self.place(key).is_some_and(|place| self.is_older(place)) {
            self.is_backward.set(true);
        }
        self.life.set(Some((key, length)));
    }
}

pub(crate) fn register(db: Handle) -> rusqlite::Result<()> {
    add_function(db, c"litemesh_is_older", is_older)?;
    add_function(db, c"litemesh_has_life", has_life)
}

/// The run that is the first argument, and the two numbers after it.
///
/// # Safety
///
/// The arguments are those of a call of SQLite's.
unsafe fn asked<'a>(argc: c_int, argv: *mut *mut ffi::sqlite3_value) -> Option<(&'a Run, i64, i64)> {
    if argc != 3 {
        return None;
    }
    // SAFETY: as many values as SQLite says, which live as long as the call; the run does as long as the statement runs.
    unsafe {
        let run = passed::<Run>(*argv)?;
        Some((run, ffi::sqlite3_value_int64(*argv.add(1)), ffi::sqlite3_value_int64(*argv.add(2))))
    }
}

/// `litemesh_is_older(run, key, col_version)`: whether the clock of the cell that the changes are of is older than they are.
///
/// # Safety
///
/// SQLite calls it with its context and as many values as it says.
unsafe extern "C" fn is_older(context: *mut ffi::sqlite3_context, argc: c_int, argv: *mut *mut ffi::sqlite3_value) {
    // SAFETY: the caller's.
    unsafe {
        if let Some((run, key, col_version)) = asked(argc, argv) {
            ffi::sqlite3_result_int(context, c_int::from(run.meet_clock(key, col_version)));
        }
    }
}

/// `litemesh_has_life(run, key, length)`: hears of a sentinel. NULL, as nothing is written there.
///
/// # Safety
///
/// SQLite calls it with its context and as many values as it says.
unsafe extern "C" fn has_life(_: *mut ffi::sqlite3_context, argc: c_int, argv: *mut *mut ffi::sqlite3_value) {
    // SAFETY: the caller's.
    if let Some((run, key, length)) = unsafe { asked(argc, argv) } {
        run.meet_sentinel(key, length);
    }
}

/// Decides changes whose clocks it can write at once, of rows that have the keys from `next` on. Gives the rest of the rows, as ranges
/// of `rows`.
pub(crate) fn move_newer<'a>(
    core: &mut Core,
    table: &Table,
    next: i64,
    rows: &[usize],
    (gathered, about): (&[Gathered<'a>], &[Of]),
    authors: &mut [Author<'a>],
    states: &mut [RowMerge<'a>],
) -> rusqlite::Result<Vec<Range<usize>>> {
    let row_bytes: usize = table.cells.iter().map(|cell| cell.name.len() + CLOCK_BYTES).sum();
    let rows_max = BYTES_MAX / row_bytes.max(1);
    let (mut rest, mut start) = (Vec::<Range<usize>>::new(), 0);
    while start < rows.len() {
        let run = &rows[start..rows.len().min(start + rows_max.max(1))];
        let (length, even) = even_run(table, run, gathered, about);
        let end = start + length;
        if let Some(even) = even.filter(|_| length >= RUN_MIN) {
            let first_key = next.saturating_add_unsigned(start as u64);
            move_run(core, table, (&rows[start..end], first_key, even), gathered, authors, states)?;
        }
        for place in (start..end).filter(|place| !states[rows[*place]].is_decided()) {
            match rest.last_mut() {
                Some(range) if range.end == place => range.end += 1,
                _ => rest.push(place..place + 1),
            }
        }
        start = end;
    }
    Ok(rest)
}

/// What changes have in common.
#[derive(Clone, Copy)]
struct Even {
    author: usize,
    cell: usize,
    /// By how much the sequence number rises from row to row.
    rise: i64,
}

/// How many of the first rows have one change each that is like the others; what these have in common, where they may be written at
/// once.
fn even_run(table: &Table, rows: &[usize], gathered: &[Gathered<'_>], about: &[Of]) -> (usize, Option<Even>) {
    let of = |row: &usize| match (&gathered[*row], about[gathered[*row].about]) {
        (Gathered { author, changes: [change], .. }, Of::Cell(cell)) => Some((*author, cell, change)),
        _ => None,
    };
    let Some((author, cell, first)) = rows.first().and_then(of) else { return (1, None) };
    let (mut last, mut rise, mut count) = (first, None, 1);
    for row in &rows[1..] {
        let Some((_, _, next)) = of(row).filter(|(author_of, cell_of, next)| {
            (*author_of, *cell_of) == (author, cell)
                && (next.causal_length, next.col_version) == (first.causal_length, first.col_version)
        }) else {
            break;
        };
        let rises = next.seq.get().wrapping_sub(last.seq.get());
        if *rise.get_or_insert(rises) != rises {
            break;
        }
        (last, count) = (next, count + 1);
    }
    let is_possible = first.causal_length.is_alive()
        && table.cells[cell].name.as_bytes() > Column::ROW_NAME.as_bytes()
        // Those in between are, too.
        && [first, last].into_iter().all(|change| check_counts(change, 0).is_ok());
    (count, is_possible.then(|| Even { author, cell, rise: rise.unwrap_or_default() }))
}

/// Writes those clocks of a run that are older.
fn move_run<'a>(
    core: &mut Core,
    table: &Table,
    (rows, first_key, Even { author, cell, rise }): (&[usize], i64, Even),
    gathered: &[Gathered<'a>],
    authors: &mut [Author<'a>],
    states: &mut [RowMerge<'a>],
) -> rusqlite::Result<()> {
    let Some(Gathered { changes: [change], key, .. }) = rows.first().map(|row| &gathered[*row]) else { return Ok(()) };
    if !may_stamp(core, authors, author) || !walks_forward(core)? {
        return Ok(());
    }
    // Where the first change is not newer, the others mostly are not. And no version is used up before something wins.
    if !RowMerge::load(core, table, key)?.is_older(change, cell) {
        return Ok(());
    }
    let stamp = authors[author].stamp(core)?;
    let run = Run {
        first_key,
        length: change.causal_length.get(),
        col_version: change.col_version.get(),
        life: Cell::default(),
        older: Default::default(),
        is_backward: Cell::default(),
    };
    let last_key = first_key.saturating_add_unsigned(rows.len() as u64 - 1);
    let name = Bind::from(&*table.cells[cell].name);
    let [first_key_bind, last_key, col_version, local, ordinal, seq, rise] =
        [first_key, last_key, run.col_version, stamp.local, stamp.ordinal, change.seq.get(), rise].map(Bind::Integer);
    let statement = table.statement(core.db, |s| &s.move_older_clocks, Table::sql_move_older_clocks)?;
    let walk =
        statement.query_passing(&run, &[first_key_bind, last_key, name, col_version, local, ordinal, seq, rise])?;
    while walk.next()? {}
    drop(walk);
    if run.is_backward.get() {
        return Err(module_error("litemesh: SQLite walked over clocks backward. Please report this"));
    }
    let older = run.older.iter().map(|word| i64::from(word.get().count_ones())).sum::<i64>();
    // Fewer are written where somebody's trigger has ignored one.
    let is_moved = core.db.changes() == older;
    for ((place, row), key) in rows.iter().enumerate().zip(first_key..).filter(|((place, _), _)| run.is_older(*place)) {
        debug_assert!(place < ROWS_MAX, "more rows than are gathered");
        if let [change] = gathered[*row].changes {
            states[*row].decide_older(key, cell, change, is_moved);
        }
    }
    Ok(())
}

/// Whether the author's changes may get their local version now: local versions are given out in the order of changesets.
fn may_stamp(core: &Core, authors: &[Author<'_>], author: usize) -> bool {
    let is_next = authors[..author].iter().all(|before| before.stamped().is_some());
    is_next && authors[author].check(core, 0).is_ok()
}

/// Whether SQLite walks over clocks in their order, as it does unless the application wants to see where it counts on that itself.
fn walks_forward(core: &mut Core) -> rusqlite::Result<bool> {
    Ok(core.statement("PRAGMA reverse_unordered_selects")?.query_integer(&[])? == Some(0))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::Run;

    #[test]
    fn a_sentinel_that_comes_after_its_clock_is_noticed() {
        let run = Run {
            first_key: 10,
            length: 1,
            col_version: 3,
            life: Cell::default(),
            older: Default::default(),
            is_backward: Cell::default(),
        };
        assert!(run.meet_clock(11, 2));
        run.meet_sentinel(10, 3);
        assert!(!run.is_backward.get() && !run.meet_clock(10, 2));
        run.meet_sentinel(11, 3);
        assert!(run.is_backward.get());
    }
}
