//! Notes -> clock rows, in the transaction that wrote (`crsqlite-compat.md` section 4).

use std::sync::Arc;

use rusqlite::ffi;
use smallvec::{SmallVec, smallvec};

use crate::core::{Core, module_error};
use crate::notes::{Note, Notes, Write};
use crate::record_alike::{alike, record_inserts, record_updates};
use crate::record_deletes::{Done, deletes, hold_deletes, record_deletes};
use crate::record_merged::{merged_alike, record_merged};
use crate::schema::{CLOCK_SUFFIX, KEYS_SUFFIX, Table};
use crate::statement::{Bind, Binds};

/// Fewer are recorded one by one.
const ALIKE_MIN: usize = 4;

/// Most clocks that are there already and that one statement writes.
pub(crate) const CLOCKS_MAX: usize = 64;

/// How far apart the keys of rows may be whose clocks are written together.
const APART_MAX: i64 = 4;

/// Writes the clocks of everything that was noted and is not recorded, in order.
///
/// Where that fails half-way, everything that asks the engine fails, and the commit, until the transaction is rolled back to
/// before it.
pub(crate) fn record_notes(core: &mut Core) -> rusqlite::Result<()> {
    take_notes(core, |core, notes, recorded| record_all(core, notes, recorded).map(|()| false))
}

/// Makes room for more notes: records them, or [holds](hold_deletes) what takes little room.
pub(crate) fn make_room(core: &mut Core) -> rusqlite::Result<()> {
    take_notes(core, |core, notes, recorded| {
        let rest = notes.notes().get(recorded..).unwrap_or_default();
        let may_hold = core.flags.noted_before_savepoint() <= recorded && gone_tables(core, rest)?.is_empty();
        let done = if may_hold { hold_deletes(core, notes, recorded)? } else { Done::Nothing };
        match done {
            Done::Held => Ok(true),
            Done::Recorded => Ok(false),
            Done::Nothing => record_all(core, notes, recorded).map(|()| false),
        }
    })
}

/// Lets a body record the notes after the first ones, or change these and keep them. It tells whether it keeps any.
fn take_notes(
    core: &mut Core,
    mut body: impl FnMut(&mut Core, &mut Notes, usize) -> rusqlite::Result<bool>,
) -> rusqlite::Result<()> {
    core.follow_transaction();
    let (recorded, noted) = (core.flags.recorded(), core.flags.noted());
    let mut notes = std::mem::take(&mut core.notes);
    notes.truncate(noted);
    if core.flags.has_failed() || notes.len() != noted {
        core.notes = notes;
        return Err(module_error(NOT_RECORDED));
    }
    // The user's, not that of a key row.
    let rowid = core.db.last_insert_rowid();
    let savepoints = core.flags.savepoints();
    // What runs meanwhile has nothing to record.
    core.flags.set_recorded(noted);
    core.is_recording = true;
    let result = as_writer(core, |core| body(core, &mut notes, recorded));
    core.is_recording = false;
    core.merged_rows.clear();
    core.db.set_last_insert_rowid(rowid);
    match result {
        Ok(true) => {
            core.flags.set_savepoints(savepoints);
            core.flags.set_recorded(recorded);
            core.flags.set_noted(notes.len(), false);
        }
        Ok(false) => {
            core.flags.set_savepoints(savepoints);
            core.is_schema_newer_than_notes = false;
            notes.truncate(core.flags.forget_recorded_notes());
        }
        // Some errors end the transaction at once.
        Err(_) if core.flags.is_enlisted() => {
            core.flags.set_recorded(recorded);
            core.flags.set_failed();
        }
        Err(_) => {}
    }
    core.notes = notes;
    result.map(drop)
}

/// Does this also where the application has forbidden itself to write since it wrote (`PRAGMA query_only`): the clocks belong to
/// what it wrote before.
fn as_writer<T>(core: &mut Core, mut write: impl FnMut(&mut Core) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let result = write(core);
    // Nothing is written then: SQLite refuses the first statement that would.
    let is_refused =
        matches!(&result, Err(rusqlite::Error::SqliteFailure(error, _)) if error.extended_code == ffi::SQLITE_READONLY);
    if !is_refused || core.db.query_integer("PRAGMA query_only", &[])? != Some(1) {
        return result;
    }
    core.db.execute("PRAGMA query_only = OFF")?;
    let result = write(core);
    core.db.execute("PRAGMA query_only = ON")?;
    result
}

const NOT_RECORDED: &str = "litemesh: the clocks of what this transaction wrote could not be recorded: roll it back";

/// The tables of notes whose shadow tables are gone: the schema was changed since, and the application dropped them, and with them
/// the clocks.
fn gone_tables(core: &mut Core, notes: &[Note]) -> rusqlite::Result<Vec<Arc<Table>>> {
    const FIND: &str = "SELECT count(*) FROM main.sqlite_master WHERE type = 'table' AND name IN (?1, ?2)";
    if (core.flags.is_same_statement() || core.is_same_step()) && !core.is_schema_newer_than_notes {
        return Ok(Vec::new());
    }
    let (mut gone, mut last) = (Vec::new(), None);
    for Note { table, .. } in notes {
        if last.is_some_and(|last| Arc::ptr_eq(last, table)) {
            continue;
        }
        last = Some(table);
        let [clock, keys] = [CLOCK_SUFFIX, KEYS_SUFFIX].map(|suffix| format!("{}{suffix}", table.shadow));
        if core.statement(FIND)?.query_integer(&[(&*clock).into(), (&*keys).into()])? != Some(2) {
            gone.push(table.clone());
        }
    }
    Ok(gone)
}

fn record_all(core: &mut Core, notes: &Notes, recorded: usize) -> rusqlite::Result<()> {
    let mut new_rows = NewRows::default();
    let mut rest = notes.notes().get(recorded..).unwrap_or_default();
    let gone = gone_tables(core, rest)?;
    while let Some((note, after)) = rest.split_first() {
        if gone.iter().any(|gone| Arc::ptr_eq(gone, &note.table)) {
            rest = after;
            continue;
        }
        let is_like_last = matches!(note.write, Write::Insert) && new_rows.is_of(&note.table);
        if !is_like_last {
            new_rows.write(core)?;
        }
        let count = record_first(core, notes, rest, &mut new_rows)?;
        rest = &rest[count..];
    }
    new_rows.write(core)
}

/// Records the first note, and with it those after it that are written together with it. Tells how many these are.
fn record_first(core: &mut Core, notes: &Notes, rest: &[Note], new_rows: &mut NewRows) -> rusqlite::Result<usize> {
    let note = &rest[0];
    let keys = || notes.keys_of(note).collect::<Binds<'_>>();
    match &note.write {
        Write::Insert => {
            let alike = alike(rest);
            if alike.len() >= ALIKE_MIN {
                record_inserts(core, notes, alike, new_rows)?;
                return Ok(alike.len());
            }
            record_insert(core, &note.table, &keys(), new_rows)?;
        }
        Write::Update { cells, old_keys } => {
            let alike = alike(rest);
            if alike.len() >= ALIKE_MIN {
                record_updates(core, notes, alike)?;
                return Ok(alike.len());
            }
            let old_keys: Option<Binds<'_>> = old_keys.as_ref().map(|range| notes.binds(range).collect());
            record_update(core, &note.table, &keys(), old_keys.as_deref(), notes.cells(cells))?;
        }
        Write::Delete | Write::DeleteRun(_) => {
            let deletes = deletes(rest);
            if deletes.len() >= ALIKE_MIN || matches!(note.write, Write::DeleteRun(_)) {
                record_deletes(core, notes, deletes)?;
                return Ok(deletes.len());
            }
            record_delete(core, &note.table, &keys())?;
        }
        Write::Merge(_) => {
            let merged = merged_alike(rest);
            record_merged(core, &note.table, notes.merged_of(merged))?;
            return Ok(merged.len());
        }
    }
    Ok(1)
}

/// Keys of rows of one table that were not known before. Their clocks are written together.
#[derive(Default)]
pub(crate) struct NewRows {
    table: Option<Arc<Table>>,
    keys: SmallVec<[i64; 8]>,
}

impl NewRows {
    fn is_of(&self, table: &Arc<Table>) -> bool {
        self.table.as_ref().is_some_and(|held| Arc::ptr_eq(held, table))
    }

    pub(crate) fn add(&mut self, core: &mut Core, table: &Arc<Table>, key: i64) -> rusqlite::Result<()> {
        if !self.is_of(table) {
            self.table = Some(table.clone());
        }
        self.keys.push(key);
        if self.keys.len() >= table.new_rows() { self.write(core) } else { Ok(()) }
    }

    pub(crate) fn write(&mut self, core: &mut Core) -> rusqlite::Result<()> {
        let Some(table) = self.table.as_ref().filter(|_| !self.keys.is_empty()) else { return Ok(()) };
        let version = core.version_to_write()?;
        let mut binds = Binds::new();
        let whole = self.keys.len() == table.new_rows();
        for keys in self.keys.chunks(if whole { self.keys.len() } else { 1 }) {
            let first_seq = core.take_seqs(keys.len() * table.cells.len());
            binds.clear();
            binds.extend([Bind::Integer(version), Bind::Integer(first_seq)]);
            binds.extend(keys.iter().map(|key| Bind::Integer(*key)));
            let statement = if whole {
                table.statement(core.db, |s| &s.clocks_of_new_rows, Table::sql_clocks_of_new_rows)?
            } else {
                table.statement(core.db, |s| &s.clocks_of_new_row, Table::sql_clocks_of_new_row)?
            };
            statement.run(&binds)?;
        }
        self.keys.clear();
        Ok(())
    }
}

/// LW-1 to LW-4.
fn record_insert(
    core: &mut Core,
    table: &Arc<Table>,
    keys: &[Bind<'_>],
    new_rows: &mut NewRows,
) -> rusqlite::Result<()> {
    let db = core.db;
    table.statement(db, |s| &s.add_key, Table::sql_add_key)?.run(keys)?;
    let existed = db.changes() == 0;
    if !existed && !table.is_keys_only() {
        return new_rows.add(core, table, db.last_insert_rowid());
    }
    new_rows.write(core)?;
    let key = if existed { find_key(core, table, keys)?.unwrap_or_default() } else { db.last_insert_rowid() };
    if !table.is_keys_only() {
        return record_known_insert(core, table, key);
    }
    let version = core.version_to_write()?;
    let seq = core.take_seqs(1);
    let sentinel = table.statement(db, |s| &s.insert_sentinel, Table::sql_insert_sentinel)?;
    sentinel.run(&[key.into(), version.into(), seq.into()])
}

/// LW-3, and LW-4 over clocks that may be there.
pub(crate) fn record_known_insert(core: &mut Core, table: &Table, key: i64) -> rusqlite::Result<()> {
    let version = Bind::Integer(core.version_to_write()?);
    // The number is used up also where there is no sentinel to move.
    let seq = core.take_seqs(1);
    let sentinel = table.statement(core.db, |s| &s.reinsert_sentinel, Table::sql_reinsert_sentinel)?;
    sentinel.run(&[key.into(), version, seq.into()])?;
    let first_seq = core.take_seqs(table.cells.len());
    let clocks = table.statement(core.db, |s| &s.clocks_of_known_row, Table::sql_clocks_of_known_row)?;
    clocks.run(&[version, first_seq.into(), key.into()])
}

/// LW-5 to LW-7.
fn record_update(
    core: &mut Core,
    table: &Table,
    keys: &[Bind<'_>],
    old_keys: Option<&[Bind<'_>]>,
    cells: &[usize],
) -> rusqlite::Result<()> {
    if let ([cell], None) = (cells, old_keys) {
        let version = core.version_to_write()?;
        let seq = core.take_seqs(1);
        let mut binds: Binds<'_> = smallvec![Bind::from(&*table.cells[*cell].name), version.into(), seq.into()];
        binds.extend_from_slice(keys);
        table.statement(core.db, |s| &s.count_cell_of, Table::sql_count_cell_of)?.run(&binds)?;
        if core.db.changes() > 0 {
            return Ok(());
        }
        let key = find_or_add_key(core, table, keys)?;
        return count_cell(core, table, key, *cell, version, seq);
    }
    let new_key = find_or_add_key(core, table, keys)?;
    let old_key = old_keys.map_or(Ok(new_key), |keys| find_or_add_key(core, table, keys))?;
    // 1 and 1.0 are one key (DSK-7): no row has moved, and there is nothing that could be told.
    if old_key == new_key && cells.is_empty() {
        return Ok(());
    }
    let version = core.version_to_write()?;
    if old_key != new_key {
        move_row(core, table, old_key, new_key, version)?;
    }
    for cell in cells {
        let seq = core.take_seqs(1);
        count_cell(core, table, new_key, *cell, version, seq)?;
    }
    Ok(())
}

/// Whether clocks of these rows probably lie on the same page.
///
/// SQLite keeps a copy of each page that a statement over many rows changes, and above 64 KiB puts those of the whole
/// transaction into a file (`SQLITE_STMTJRNL_SPILL`). So rows that lie anywhere are not written by one statement.
pub(crate) fn is_beside(last: i64, key: i64) -> bool {
    (0..=APART_MAX).contains(&key.saturating_sub(last))
}

/// LW-8.
fn record_delete(core: &mut Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<()> {
    let key = find_or_add_key(core, table, keys)?;
    let version = core.version_to_write()?;
    let seq = core.take_seqs(1);
    delete_row(core, table, key, version, seq)
}

pub(crate) fn delete_row(core: &Core, table: &Table, key: i64, version: i64, seq: i64) -> rusqlite::Result<()> {
    // Before the sentinel comes, so that the pages of the clock table need not make room for it.
    table.statement(core.db, |s| &s.drop_cells, Table::sql_drop_cells)?.run(&[key.into()])?;
    bury(core, table, key, version, seq)
}

/// Gives a row the sentinel of a dead one.
pub(crate) fn bury(core: &Core, table: &Table, key: i64, version: i64, seq: i64) -> rusqlite::Result<()> {
    let sentinel = table.statement(core.db, |s| &s.delete_sentinel, Table::sql_delete_sentinel)?;
    sentinel.run(&[key.into(), version.into(), seq.into()])
}

pub(crate) fn count_cell(
    core: &Core,
    table: &Table,
    key: i64,
    cell: usize,
    version: i64,
    seq: i64,
) -> rusqlite::Result<()> {
    let count = table.statement(core.db, |s| &s.count_cell, Table::sql_count_cell)?;
    count.run(&[key.into(), (&*table.cells[cell].name).into(), version.into(), seq.into()])
}

/// LW-6, with its FIX: the cells that move are stamped anew, with versions above both what moved and what was overwritten.
/// Left as they were, a peer that asks with a cursor would get the new row without its values.
fn move_row(core: &mut Core, table: &Table, old_key: i64, new_key: i64, version: i64) -> rusqlite::Result<()> {
    let seq = core.take_seqs(1);
    bury(core, table, old_key, version, seq)?;
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
        let seq = core.take_seqs(1);
        let put = table.statement(core.db, |s| &s.put_clock, Table::sql_put_clock)?;
        let col_version = col_version.saturating_add(1);
        put.run(&[new_key.into(), version.into(), 0.into(), name.as_str().into(), col_version.into(), seq.into()])?;
    }
    table.statement(core.db, |s| &s.drop_cells, Table::sql_drop_cells)?.run(&[old_key.into()])?;
    let seq = core.take_seqs(1);
    let sentinel = table.statement(core.db, |s| &s.insert_sentinel, Table::sql_insert_sentinel)?;
    sentinel.run(&[new_key.into(), version.into(), seq.into()])
}

fn cell_versions(core: &Core, table: &Table, key: i64) -> rusqlite::Result<Vec<(String, i64)>> {
    let statement = table.statement(core.db, |s| &s.row_clocks, Table::sql_row_clocks)?;
    let binds = [key.into()];
    let rows = statement.query(&binds)?;
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

pub(crate) fn find_or_add_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<i64> {
    match find_key(core, table, keys)? {
        Some(key) => Ok(key),
        None => add_key(core, table, keys),
    }
}

/// The key of a row, where it was not there before.
pub(crate) fn add_new_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<Option<i64>> {
    let added = add_key(core, table, keys)?;
    Ok(if core.db.changes() > 0 { Some(added) } else { None })
}

/// The same where the key is probably not there.
pub(crate) fn add_or_find_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<i64> {
    let added = add_key(core, table, keys)?;
    if core.db.changes() > 0 { Ok(added) } else { Ok(find_key(core, table, keys)?.unwrap_or_default()) }
}

fn add_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<i64> {
    table.statement(core.db, |s| &s.add_key, Table::sql_add_key)?.run(keys)?;
    Ok(core.db.last_insert_rowid())
}
