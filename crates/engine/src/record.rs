//! Notes of local writes -> clock rows, in the transaction that wrote (`crsqlite-compat.md` section 4).

use smallvec::{SmallVec, smallvec};

use crate::core::Core;
use crate::notes::{Note, Notes, Write};
use crate::schema::Table;
use crate::statement::{Bind, Binds};

/// Writes the clocks of everything that was noted, in order.
pub(crate) fn record_notes(core: &mut Core) -> rusqlite::Result<()> {
    let mut notes = core.take_notes();
    // The user's, not that of a key row.
    let rowid = core.db.last_insert_rowid();
    let recorded = record_all(core, &notes);
    core.db.set_last_insert_rowid(rowid);
    notes.clear();
    core.notes = notes;
    recorded
}

fn record_all(core: &mut Core, notes: &Notes) -> rusqlite::Result<()> {
    let mut new_rows = NewRows::default();
    let mut keys = Binds::new();
    for note in notes.notes() {
        keys.clear();
        keys.extend(notes.keys_of(note));
        let is_like_last = matches!(note.write, Write::Insert) && new_rows.is_of(&note.table);
        if !is_like_last {
            new_rows.write(core)?;
        }
        match &note.write {
            Write::Insert => record_insert(core, note, &keys, &mut new_rows)?,
            Write::Update { cells, old_keys } => {
                let old_keys: Option<Binds<'_>> = old_keys.as_ref().map(|range| notes.binds(range).collect());
                record_update(core, &note.table, &keys, old_keys.as_deref(), notes.cells(cells))?;
            }
            Write::Delete => record_delete(core, &note.table, &keys)?,
        }
    }
    new_rows.write(core)
}

/// Keys of rows of one table that were not known before. Their clocks are written together.
#[derive(Default)]
struct NewRows {
    table: Option<std::sync::Arc<Table>>,
    keys: SmallVec<[i64; 8]>,
}

impl NewRows {
    fn is_of(&self, table: &std::sync::Arc<Table>) -> bool {
        self.table.as_ref().is_some_and(|held| std::sync::Arc::ptr_eq(held, table))
    }

    fn add(&mut self, core: &mut Core, note: &Note, key: i64) -> rusqlite::Result<()> {
        if !self.is_of(&note.table) {
            self.table = Some(note.table.clone());
        }
        self.keys.push(key);
        if self.keys.len() >= note.table.new_rows() { self.write(core) } else { Ok(()) }
    }

    fn write(&mut self, core: &mut Core) -> rusqlite::Result<()> {
        let Some(table) = self.table.as_ref().filter(|_| !self.keys.is_empty()) else { return Ok(()) };
        let version = core.next_version(0);
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
fn record_insert(core: &mut Core, note: &Note, keys: &[Bind<'_>], new_rows: &mut NewRows) -> rusqlite::Result<()> {
    let (table, db) = (&note.table, core.db);
    table.statement(db, |s| &s.add_key, Table::sql_add_key)?.run(keys)?;
    let existed = db.changes() == 0;
    if !existed && !table.is_keys_only() {
        return new_rows.add(core, note, db.last_insert_rowid());
    }
    new_rows.write(core)?;
    let key = if existed { find_key(core, table, keys)?.unwrap_or_default() } else { db.last_insert_rowid() };
    let version = Bind::Integer(core.next_version(0));
    if table.is_keys_only() {
        let seq = core.take_seqs(1);
        let sentinel = table.statement(db, |s| &s.insert_sentinel, Table::sql_insert_sentinel)?;
        return sentinel.run(&[key.into(), version, seq.into()]);
    }
    // LW-3: the number is used up also where there is no sentinel to move.
    let seq = core.take_seqs(1);
    let sentinel = table.statement(db, |s| &s.reinsert_sentinel, Table::sql_reinsert_sentinel)?;
    sentinel.run(&[key.into(), version, seq.into()])?;
    let first_seq = core.take_seqs(table.cells.len());
    let clocks = table.statement(db, |s| &s.clocks_of_known_row, Table::sql_clocks_of_known_row)?;
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
        let version = core.next_version(0);
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
    let version = core.next_version(0);
    if old_key != new_key {
        move_row(core, table, old_key, new_key, version)?;
    }
    for cell in cells {
        let seq = core.take_seqs(1);
        count_cell(core, table, new_key, *cell, version, seq)?;
    }
    Ok(())
}

/// LW-8.
fn record_delete(core: &mut Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<()> {
    let key = find_or_add_key(core, table, keys)?;
    let version = core.next_version(0);
    bury(core, table, key, version)?;
    table.statement(core.db, |s| &s.drop_cells, Table::sql_drop_cells)?.run(&[key.into()])
}

/// Gives a row the sentinel of a dead one.
fn bury(core: &mut Core, table: &Table, key: i64, version: i64) -> rusqlite::Result<()> {
    let seq = core.take_seqs(1);
    let sentinel = table.statement(core.db, |s| &s.delete_sentinel, Table::sql_delete_sentinel)?;
    sentinel.run(&[key.into(), version.into(), seq.into()])
}

fn count_cell(core: &Core, table: &Table, key: i64, cell: usize, version: i64, seq: i64) -> rusqlite::Result<()> {
    let count = table.statement(core.db, |s| &s.count_cell, Table::sql_count_cell)?;
    count.run(&[key.into(), (&*table.cells[cell].name).into(), version.into(), seq.into()])
}

/// LW-6, with its FIX: the cells that move are stamped anew, with versions above both what moved and what was overwritten.
/// Left as they were, a peer that asks with a cursor would get the new row without its values.
fn move_row(core: &mut Core, table: &Table, old_key: i64, new_key: i64, version: i64) -> rusqlite::Result<()> {
    bury(core, table, old_key, version)?;
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

/// The same where the key is probably not there.
pub(crate) fn add_or_find_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<i64> {
    let added = add_key(core, table, keys)?;
    if core.db.changes() > 0 { Ok(added) } else { Ok(find_key(core, table, keys)?.unwrap_or_default()) }
}

fn add_key(core: &Core, table: &Table, keys: &[Bind<'_>]) -> rusqlite::Result<i64> {
    table.statement(core.db, |s| &s.add_key, Table::sql_add_key)?.run(keys)?;
    Ok(core.db.last_insert_rowid())
}
