//! Many rows being merged together. One statement finds the clocks of all of them, one their values where versions are equal;
//! then each is decided by itself ([`crate::merge_row`]), and those of which only cells are written are written together.
//!
//! A row stands among the gathered ones once. One that comes again, in another changeset, waits until those before it are
//! merged.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use litemesh_proto::{Change, Value};

use crate::batch_table::{Batch, WIDTH_MAX};
use crate::core::{Core, Shared};
use crate::error::MergeError;
use crate::in_place::{Near, update_in_place};
use crate::merge::{Author, Merged, Stamp};
use crate::merge_load::{Follow, keys_of, load_rows};
use crate::merge_row::{HeldRow, HeldValues, NewClock, RowMerge, constraint_error};
use crate::merged_clocks::{CLOCK_WIDTH, RowClocks, add_clocks, move_even_run, values_of};
use crate::notes::MergedClock;
use crate::record::{CLOCKS_MAX, find_or_add_key, is_beside};
use crate::row_key::RowKey;
use crate::schema::{ClockOf as Of, RowWrite, Table};
use crate::statement::{Bind, Rows, merge_cmp};
use crate::triggers_off::TriggersOff;

/// Most rows that are gathered. What a statement costs is spread over them; much more would only take memory.
pub(crate) const ROWS_MAX: usize = 256;

/// The first rows are fewer: they tell where the others are.
const FIRST_ROWS_MAX: usize = 16;

/// Most base rows that one statement writes.
const BASE_ROWS_MAX: usize = 64;

/// A row and its changes.
pub(crate) struct Gathered<'a> {
    /// Index of its table among those of the gathered rows.
    table: usize,
    /// Index of its changeset's author.
    pub(crate) author: usize,
    pub(crate) changes: &'a [Change],
    /// Of the first change in the batch.
    index: usize,
    /// What the first change is about, among what all changes are.
    pub(crate) about: usize,
    pub(crate) key: RowKey<'a>,
}

/// A table, and which of the gathered rows are its own.
struct TableRows {
    table: Arc<Table>,
    rows: Vec<usize>,
    /// Whether a row of it is merged alone, after all rows before it and before all after it.
    by_order: bool,
    /// Whether its living rows may not be written by upserts.
    by_check: bool,
    near: Near,
    follow: Follow,
}

/// The rows that are gathered, and what came of those before.
#[derive(Default)]
pub(crate) struct MergeRows<'a> {
    tables: Vec<TableRows>,
    authors: Vec<Author<'a>>,
    rows: Vec<Gathered<'a>>,
    /// What each change is about, row by row.
    about: Vec<Of>,
    /// Hashes of the rows. Two rows of one hash are only merged one after the other, as if they were one.
    seen: HashSet<u64, BuildHasherDefault<AsItIs>>,
    /// One for each gathered row; kept, so that nothing is allocated for a row that is like the ones before.
    states: Vec<RowMerge<'a>>,
    /// Whether rows were merged that tell where others are.
    knows_places: bool,
    /// How many changes of the batch are not merged yet.
    left: usize,
    triggers: TriggersOff,
    merged: Merged,
}

impl<'a> MergeRows<'a> {
    /// For a batch of so many changes.
    pub(crate) fn new(changes: usize) -> Self {
        Self { left: changes, ..Self::default() }
    }

    pub(crate) fn into_merged(self) -> Merged {
        self.merged
    }

    /// Whose changeset was the last, once all is merged.
    pub(crate) fn last_author(&self) -> Option<&Author<'a>> {
        self.authors.last()
    }

    /// The rows that follow are of this author.
    pub(crate) fn begin_changeset(&mut self, author: Author<'a>) {
        self.authors.push(author);
    }

    /// Adds a row: changes of one changeset and key.
    pub(crate) fn add(
        &mut self,
        shared: &Shared,
        core: &mut Core,
        changes: &'a [Change],
        index: usize,
    ) -> Result<(), MergeError> {
        let first = &changes[0];
        let mut table = self.table_of(core, first, index)?;
        let key = RowKey::of(core, &self.tables[table].table, first, index)?;
        let hash = key.hash(table);
        // What a trigger did for the row before counts for this one, of whatever table.
        let by_order = self.rows.last().is_some_and(|row| self.tables[row.table].by_order);
        let is_alone = by_order || self.tables[table].by_order;
        let rows_max = if self.knows_places { ROWS_MAX } else { FIRST_ROWS_MAX };
        if self.rows.len() >= rows_max || is_alone || !self.seen.insert(hash) {
            self.merge(shared, core)?;
            table = self.table_of(core, first, index)?;
            self.seen.insert(hash);
        }
        let TableRows { table: columns, rows, .. } = &mut self.tables[table];
        rows.push(self.rows.len());
        let (mut last, about) = (None, self.about.len());
        for change in changes {
            let of = columns.clock_of_change(last, change);
            self.about.push(of);
            last = Some(of);
        }
        self.rows.push(Gathered { table, author: self.authors.len() - 1, changes, index, about, key });
        Ok(())
    }

    fn table_of(&mut self, core: &Core, change: &Change, index: usize) -> Result<usize, MergeError> {
        if let Some(found) = self.tables.iter().position(|held| held.table.name == change.table) {
            return Ok(found);
        }
        let unknown = || MergeError::UnknownTable { index, table: change.table.to_string() };
        let table = core.table(&change.table).ok_or_else(unknown)?;
        let (by_order, by_check) = (!core.is_alone(&table)?, table.reactions(core.db)?.by_check);
        let near = if table.rowid(core.db).is_some() { Near::Unknown } else { Near::Nowhere };
        self.tables.push(TableRows { table, rows: Vec::new(), by_order, by_check, near, follow: Follow::default() });
        Ok(self.tables.len() - 1)
    }

    /// Merges what was gathered.
    pub(crate) fn merge(&mut self, shared: &Shared, core: &mut Core) -> Result<(), MergeError> {
        self.load(core)?;
        self.decide(core)?;
        if self.tables.iter().any(|table| table.by_order) {
            self.triggers.turn_on();
        } else if self.states[..self.rows.len()].iter().filter(|state| state.won() > 0).count() > self.rows.len() / 2 {
            self.triggers.turn_off(core, self.left)?;
        }
        for table in 0..self.tables.len() {
            self.write(shared, core, table)?;
        }
        for stamped in self.authors.iter().filter_map(Author::stamped) {
            let first = self.merged.local_versions.map_or(stamped, |(first, _)| first);
            self.merged.local_versions = Some((first, stamped));
        }
        // The last author's changeset may go on.
        self.authors.drain(..self.authors.len().saturating_sub(1));
        for table in &mut self.tables {
            table.rows.clear();
        }
        self.left = self.left.saturating_sub(self.about.len());
        self.rows.clear();
        self.about.clear();
        self.seen.clear();
        self.knows_places = true;
        Ok(())
    }

    /// Reads the clocks of every row, and decides those that it can write on the way.
    fn load(&mut self, core: &mut Core) -> rusqlite::Result<()> {
        self.states.iter_mut().for_each(RowMerge::clear);
        if self.states.len() < self.rows.len() {
            self.states.resize_with(self.rows.len(), RowMerge::default);
        }
        for TableRows { table, rows, follow, .. } in self.tables.iter_mut().filter(|table| !table.rows.is_empty()) {
            let gathered = (&*self.rows, &*self.about);
            load_rows(core, table, follow, rows, gathered, &mut self.authors, &mut self.states)?;
        }
        Ok(())
    }

    /// Decides all changes in their order.
    fn decide(&mut self, core: &mut Core) -> Result<(), MergeError> {
        let mut states = std::mem::take(&mut self.states);
        let mut authors = std::mem::take(&mut self.authors);
        let decided = self.decide_all(core, &mut states, &mut authors);
        (self.states, self.authors) = (states, authors);
        let Decided { won, near } = decided?;
        self.merged.won += won;
        for (table, near) in self.tables.iter_mut().zip(near) {
            table.near = near;
        }
        Ok(())
    }

    fn decide_all(
        &self,
        core: &mut Core,
        states: &mut [RowMerge<'a>],
        authors: &mut [Author<'a>],
    ) -> Result<Decided, MergeError> {
        let ties = self.ties(states);
        let mut held_rows = Vec::with_capacity(self.tables.len());
        for (TableRows { table, near, .. }, ties) in self.tables.iter().zip(&ties) {
            let running = match ties {
                Some(Ties { batch, rows }) => {
                    let rows_held = if let Near::By(offset) = near {
                        let statement = table.statement(core.db, |s| &s.base_rows_near, Table::sql_base_rows_near)?;
                        statement.query_batch(batch, &[(*offset).into()])?
                    } else {
                        table.statement(core.db, |s| &s.base_rows, Table::sql_base_rows)?.query_batch(batch, &[])?
                    };
                    Some((rows_held, batch, &**rows))
                }
                None => None,
            };
            held_rows.push(HeldRows { running, at: None, near: *near, asked: 0, missed: 0 });
        }
        let (mut about, mut won, mut checked) = (0, 0, None);
        for ((number, row), state) in self.rows.iter().enumerate().zip(states) {
            let table = &*self.tables[row.table].table;
            let author = &mut authors[row.author];
            if checked != Some(row.author) {
                author.check(core, row.index)?;
                checked = Some(row.author);
            }
            let alone = HeldRow::new(table, &row.key);
            let mut held =
                HeldAmong { rows: &mut held_rows[row.table], number, key: state.key(), is_moved: false, alone };
            if state.is_decided() {
                about += row.changes.len();
            } else {
                for (change, index) in row.changes.iter().zip(row.index..) {
                    state.decide(core, table, &mut held, change, self.about[about], author, index)?;
                    about += 1;
                }
            }
            if state.won() > 0 {
                won += state.won();
                author.stamp(core)?;
            }
        }
        Ok(Decided { won, near: held_rows.iter().map(HeldRows::near).collect() })
    }

    /// By table, the rows of which values will be compared, if there are such.
    fn ties(&self, states: &[RowMerge<'a>]) -> Vec<Option<Ties<'_>>> {
        let mut about = 0;
        let mut rows = vec![Vec::new(); self.tables.len()];
        for ((number, row), state) in self.rows.iter().enumerate().zip(states) {
            // Where the first does not need them the others seldom do, and are looked up then.
            if state.needs_values(&row.changes[0], self.about[about]) {
                rows[row.table].push(number);
            }
            about += row.changes.len();
        }
        let ties = |(held, rows): (&TableRows, Vec<usize>)| {
            if rows.is_empty() || 1 + held.table.keys.len() > WIDTH_MAX {
                return None;
            }
            let mut batch = Batch::new(1 + held.table.keys.len(), rows.len());
            for row in &rows {
                let key = Bind::Integer(states[*row].key().unwrap_or_default());
                batch.push(self.rows[*row].key.values().chain([key]));
            }
            Some(Ties { batch, rows })
        };
        self.tables.iter().zip(rows).map(ties).collect()
    }

    /// Writes what was decided of one table's rows.
    fn write(&mut self, shared: &Shared, core: &mut Core, table: usize) -> Result<(), MergeError> {
        let TableRows { table, rows, by_order, by_check, near, .. } = &mut self.tables[table];
        let mut together = Together::default();
        for row in rows.iter().copied() {
            if self.states[row].won() == 0 {
                continue;
            }
            if !self.merged.tables.contains(&table.name) {
                self.merged.tables.insert(table.name.clone());
            }
            let Gathered { author, index, key, .. } = &self.rows[row];
            let author = &mut self.authors[*author];
            let state = &mut self.states[row];
            if let Some(cells) = state.prepare_cells(table)
                && (cells.key.is_none() || !*by_order)
                && 1 + key.len() + cells.cells.len() <= WIDTH_MAX
            {
                let set = together.set_of(cells.cells.iter().map(|(cell, _)| *cell));
                together.rows.push(RowTogether { row, key: cells.key, set, stamp: author.stamp(core)? });
            } else {
                state.write(shared, core, table, key, author, *index)?;
            }
        }
        if together.rows.is_empty() {
            return Ok(());
        }
        // New rows first, which mostly are all or none.
        together.rows.sort_by_key(|row| row.key.is_some());
        let new_count = together.rows.partition_point(|row| row.key.is_none());
        let (new, known) = together.rows.split_at_mut(new_count);
        for (set, cells) in together.sets.iter().enumerate() {
            let rows_of = |rows: &[RowTogether]| {
                let mut of_set = Vec::with_capacity(rows.len());
                of_set.extend(rows.iter().filter(|row| row.set == set).map(|row| row.row));
                of_set
            };
            let gathered = (&*self.rows, &*self.states);
            let living = update_in_place(shared, core, table, near, cells, rows_of(known), gathered)?;
            let rows_max = if *by_check { 1 } else { BASE_ROWS_MAX };
            write_base_rows(shared, core, table, cells, (&living, rows_max), &self.rows, &mut self.states)?;
            let new = (&*rows_of(new), BASE_ROWS_MAX);
            write_base_rows(shared, core, table, cells, new, &self.rows, &mut self.states)?;
        }
        add_keys(core, table, new, &self.rows)?;
        add_new_clocks(core, table, new, &self.states)?;
        let is_moved = |row: &RowTogether| self.states[row.row].is_moved();
        for rows in known.chunk_by(|before, after| is_moved(before) == is_moved(after)) {
            if !rows.first().is_some_and(is_moved) {
                put_clocks(core, table, rows, &self.states)?;
            }
        }
        Ok(())
    }
}

/// As the table has triggers, SQLite keeps a copy of each page that a statement changes. Rows whose keys ascend lie on few pages
/// mostly, and are written together. Others lie anywhere: above 64 KiB of copies SQLite would put those of the whole transaction
/// into a file, which costs more than a statement for each row (`SQLITE_STMTJRNL_SPILL`, <https://sqlite.org/compile.html>).
fn write_base_rows(
    shared: &Shared,
    core: &Core,
    table: &Table,
    cells: &[usize],
    (rows, rows_max): (&[usize], usize),
    gathered: &[Gathered<'_>],
    states: &mut [RowMerge<'_>],
) -> Result<(), MergeError> {
    let ascends = |pair: &[usize]| gathered[pair[1]].key.is_after(&gathered[pair[0]].key);
    let rows_max = if rows.windows(2).all(ascends) { rows_max } else { 1 };
    for rows in rows.chunks(rows_max) {
        if rows.len() > 1 {
            let mut batch = Batch::new(table.keys.len() + cells.len(), rows.len());
            for row in rows {
                let values = states[*row].cells().cells.iter().map(|(_, value)| Bind::from(*value));
                batch.push(gathered[*row].key.values().chain(values));
            }
            let _sync = shared.sync_guard();
            let written = table.write_row(core.db, RowWrite::InsertMany, cells)?.run_batch(&batch, &[]);
            let Err(error) = written else { continue };
            // Interrupted, say: SQLite rolled back the transaction, and each further write would be one of its own.
            if !core.db.is_in_transaction() {
                return Err(error.into());
            }
            // Nothing of it stayed. Which of them? Or was it the row of defaults that an upsert begins with?
        }
        for row in rows {
            let Gathered { key, index, .. } = &gathered[*row];
            let written = states[*row].write_base_row(shared, core, table, &key.binds());
            written.map_err(|source| constraint_error(source, *index, table))?;
        }
    }
    Ok(())
}

/// Gives rows that were never seen their keys.
fn add_keys(core: &Core, table: &Table, rows: &mut [RowTogether], gathered: &[Gathered<'_>]) -> rusqlite::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let batch = keys_of(table, gathered, rows.iter().map(|row| row.row));
    table.statement(core.db, |s| &s.add_keys, Table::sql_add_keys)?.run_batch(&batch, &[])?;
    let added = core.db.changes();
    if usize::try_from(added) == Ok(rows.len()) {
        // SQLite counts on from the largest.
        let first = core.db.last_insert_rowid() - added + 1;
        for (row, key) in rows.iter_mut().zip(first..) {
            row.key = Some(key);
        }
        return Ok(());
    }
    // CRSqlite leaves keys without clocks behind (MRG-5).
    for row in rows {
        row.key = Some(find_or_add_key(core, table, &gathered[row.row].key.binds())?);
    }
    Ok(())
}

/// Writes the clocks of rows that have none.
fn add_new_clocks(core: &Core, table: &Table, rows: &[RowTogether], states: &[RowMerge<'_>]) -> rusqlite::Result<()> {
    let clocks_of = |row: &RowTogether| RowClocks {
        key: row.key.unwrap_or_default(),
        stamp: row.stamp,
        clocks: states[row.row].cells().clocks,
    };
    let clocks: Vec<_> = rows.iter().map(clocks_of).collect();
    if add_clocks(core, table, &clocks)? < clocks.iter().map(|row| row.clocks.len()).sum() {
        // Clocks lay under a new key, of a row that has lost its own.
        for RowTogether { row, key, stamp, .. } in rows {
            states[*row].put_clocks(core, table, key.unwrap_or_default(), *stamp)?;
        }
    }
    Ok(())
}

/// Writes the clocks of rows that have some.
fn put_clocks(core: &Core, table: &Table, rows: &[RowTogether], states: &[RowMerge<'_>]) -> rusqlite::Result<()> {
    let key = |row: &RowTogether| row.key.unwrap_or_default();
    let clocks_max = rows.iter().map(|row| states[row.row].cells().clocks.len()).max().unwrap_or_default();
    let rows_max = (CLOCKS_MAX / clocks_max.max(1)).max(1);
    let mut rest = rows;
    while let (true, Some(_)) = (clocks_max == 1, rest.first()) {
        let of_one = |row: &RowTogether| match states[row.row].cells().clocks {
            [clock] => Some(MergedClock { key: key(row), clock: *clock, stamp: row.stamp, is_held: true }),
            _ => None,
        };
        let moved = move_even_run(core, table, rest.iter().map_while(of_one))?;
        if moved == 0 {
            break;
        }
        rest = &rest[moved..];
    }
    for run in rest.chunk_by(|before, after| is_beside(key(before), key(after))).flat_map(|run| run.chunks(rows_max)) {
        if let [row] = run {
            states[row.row].put_clocks(core, table, key(row), row.stamp)?;
            continue;
        }
        if let Some((cell, stamp)) = one_cell(run, states) {
            let mut batch = Batch::new(3, run.len());
            for row in run {
                for clock in states[row.row].cells().clocks {
                    batch.push([key(row), clock.col_version, clock.seq].map(Bind::Integer));
                }
            }
            let stamp = [Bind::from(&*table.cells[cell].name), stamp.local.into(), stamp.ordinal.into()];
            let statement = table.statement(core.db, |s| &s.put_clocks_of_cell, Table::sql_put_clocks_of_cell)?;
            statement.run_batch(&batch, &stamp)?;
            continue;
        }
        let mut batch = Batch::new(CLOCK_WIDTH, run.len());
        for row in run {
            for clock in states[row.row].cells().clocks {
                batch.push(values_of(table, clock, key(row), row.stamp).into_iter().flatten());
            }
        }
        table.statement(core.db, |s| &s.put_clocks, Table::sql_put_clocks)?.run_batch(&batch, &[])?;
    }
    Ok(())
}

/// The cell and the stamp of which all clocks of the rows are, if there are such: then a batch need not say them.
fn one_cell(rows: &[RowTogether], states: &[RowMerge<'_>]) -> Option<(usize, Stamp)> {
    let stamp = rows.first()?.stamp;
    let mut cell = None;
    for row in rows {
        let [NewClock { of: Of::Cell(of), .. }] = states[row.row].cells().clocks else { return None };
        if row.stamp != stamp || *cell.get_or_insert(*of) != *of {
            return None;
        }
    }
    Some((cell?, stamp))
}

/// What became of the changes.
struct Decided {
    won: usize,
    /// By table, where the next base rows probably are.
    near: Vec<Near>,
}

/// Rows of one table of which values will be compared.
struct Ties<'s> {
    /// Of each the primary key, and the number of the key.
    batch: Batch<'s>,
    /// Which of the gathered rows each row of the batch is.
    rows: Vec<usize>,
}

/// Base rows of one table, in the order of the gathered rows, each looked at once.
struct HeldRows<'b> {
    running: Option<(Rows<'b>, &'b Batch<'b>, &'b [usize])>,
    /// The gathered row at which it stands.
    at: Option<usize>,
    near: Near,
    /// How many rows were looked for, and how many of them were not where they were guessed to be.
    asked: usize,
    missed: usize,
}

impl HeldRows<'_> {
    /// Where the rows of the next round are.
    fn near(&self) -> Near {
        if Near::is_wrong(self.missed, self.asked) { Near::Nowhere } else { self.near }
    }
}

/// The base row of one gathered row.
struct HeldAmong<'h, 'b, 't, 'k> {
    rows: &'h mut HeldRows<'b>,
    number: usize,
    key: Option<i64>,
    is_moved: bool,
    /// For a row that was not thought to be needed, or lies elsewhere.
    alone: HeldRow<'t, 'k>,
}

impl HeldAmong<'_, '_, '_, '_> {
    /// Moves to the row, unless that was done; it may not be there.
    fn move_to(&mut self) -> rusqlite::Result<()> {
        let HeldRows { running, at, near, asked, missed } = &mut *self.rows;
        let Some((held, batch, rows)) = running.as_mut().filter(|_| !self.is_moved) else { return Ok(()) };
        self.is_moved = true;
        while at.is_none_or(|at| at < self.number) {
            *at = Some(if held.next()? { rows[batch.row()] } else { usize::MAX });
        }
        let is_there = *at == Some(self.number);
        *asked += 1;
        *missed += usize::from(!is_there);
        if let (true, Near::Unknown, Some(key)) = (is_there, *near, self.key) {
            *near = Near::By(held.integer(0).wrapping_sub(key));
        }
        Ok(())
    }
}

impl HeldValues for HeldAmong<'_, '_, '_, '_> {
    fn compare(&mut self, core: &Core, cell: usize, incoming: &Value) -> rusqlite::Result<Option<Ordering>> {
        self.move_to()?;
        match &self.rows.running {
            Some((held, ..)) if self.rows.at == Some(self.number) => {
                let column = i32::try_from(1 + cell).unwrap_or(i32::MAX);
                Ok(Some(merge_cmp(incoming, held.value_ref(column))))
            }
            _ => self.alone.compare(core, cell, incoming),
        }
    }
}

/// A row of which cells are written.
struct RowTogether {
    row: usize,
    key: Option<i64>,
    /// Index of its set of cells.
    set: usize,
    stamp: Stamp,
}

/// Rows of one table that are written together.
#[derive(Default)]
struct Together {
    rows: Vec<RowTogether>,
    /// The sets of cells that are written, in table order each. Mostly there is one.
    sets: Vec<Vec<usize>>,
}

impl Together {
    fn set_of(&mut self, cells: impl Iterator<Item = usize> + Clone) -> usize {
        if let Some(set) = self.sets.iter().position(|set| set.iter().copied().eq(cells.clone())) {
            return set;
        }
        self.sets.push(cells.collect());
        self.sets.len() - 1
    }
}

/// Gives hashes back as they are. A remote could choose keys whose hashes collide: that costs it the gathering, and nobody
/// anything else.
#[derive(Default)]
pub(crate) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
