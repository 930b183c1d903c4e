//! One row being merged: its clocks are read once, all its changes are decided in memory ([`crate::resolve`]), then the row is
//! written once and its clocks once.

use std::cmp::Ordering;
use std::sync::Arc;

use litemesh_proto::limits::VERSION_MAX;
use litemesh_proto::{CausalLength, Change, ColVersion, Column, Value};
use smallvec::SmallVec;

use crate::core::{Core, Shared};
use crate::cursor::provisional_until;
use crate::error::MergeError;
use crate::merge::{Author, Stamp, forget_own_origins, record_origin};
use crate::notes::MergedClock;
use crate::read::origin;
use crate::record::add_or_find_key;
use crate::resolve::{Decision, Incoming, resolve, resolve_values};
use crate::row_key::RowKey;
use crate::schema::{ClockOf as Of, RowWrite, Table};
use crate::statement::{Bind, Binds, Rows, merge_cmp};

/// BUG-29, of rows: what came over the wire was checked there, what came by SQL was not.
pub(crate) fn check_counts(change: &Change, index: usize) -> Result<(), MergeError> {
    let (col_version, cl, seq) = (change.col_version.get(), change.causal_length.get(), change.seq.get());
    if col_version.max(cl).max(seq) <= VERSION_MAX {
        return Ok(());
    }
    let counts = [("col_version", col_version), ("cl", cl), ("seq", seq)];
    match counts.into_iter().find(|(_, value)| *value > VERSION_MAX) {
        Some((field, value)) => Err(MergeError::AbsurdCount { index, field, value, max: VERSION_MAX }),
        None => Ok(()),
    }
}

/// A clock that is held.
struct HeldClock {
    of: Of,
    col_version: i64,
    /// Whether it lies in the clock table, or is noted; otherwise it is only planned.
    is_stored: bool,
}

/// A clock to be written.
#[derive(Clone, Copy)]
pub(crate) struct NewClock {
    pub(crate) of: Of,
    pub(crate) col_version: i64,
    pub(crate) seq: i64,
}

/// What is to be written for one row.
#[derive(Default)]
struct RowPlan<'a> {
    delete: bool,
    /// The row must exist, whatever its cells.
    ensure: bool,
    /// The cells that are held count as never written in this life (MRG-9).
    zero: bool,
    cells: Vec<(usize, &'a Value)>,
    clocks: Vec<NewClock>,
}

impl<'a> RowPlan<'a> {
    fn clear(&mut self) {
        (self.delete, self.ensure, self.zero) = (false, false, false);
        self.cells.clear();
        self.clocks.clear();
    }

    /// Whether it is nothing but cells and their clocks.
    fn is_cells(&self) -> bool {
        !(self.delete || self.ensure || self.zero) && self.cells.len() == self.clocks.len()
    }

    fn put_clock(&mut self, of: Of, col_version: i64, seq: i64) {
        let new = NewClock { of, col_version, seq };
        match self.clocks.iter_mut().find(|clock| clock.of == of) {
            Some(clock) => *clock = new,
            None => self.clocks.push(new),
        }
    }

    fn put_cell(&mut self, cell: usize, value: &'a Value) {
        match self.cells.iter_mut().find(|held| held.0 == cell) {
            Some(held) => held.1 = value,
            None => self.cells.push((cell, value)),
        }
    }
}

/// The values of a base row that is held, looked at when versions are equal.
pub(crate) trait HeldValues {
    /// How `incoming` compares with the value of a cell; `None` where there is no base row.
    fn compare(&mut self, core: &Core, cell: usize, incoming: &Value) -> rusqlite::Result<Option<Ordering>>;
}

/// Of one row, read when the first of them is asked for.
pub(crate) struct HeldRow<'t, 'k> {
    table: &'t Table,
    key: &'t RowKey<'k>,
    /// `Some(None)`: there is no base row.
    rows: Option<Option<Rows<'t>>>,
}

impl<'t, 'k> HeldRow<'t, 'k> {
    pub(crate) fn new(table: &'t Table, key: &'t RowKey<'k>) -> Self {
        Self { table, key, rows: None }
    }
}

impl HeldValues for HeldRow<'_, '_> {
    fn compare(&mut self, core: &Core, cell: usize, incoming: &Value) -> rusqlite::Result<Option<Ordering>> {
        let base = match &self.rows {
            Some(base) => base,
            None => {
                let statement = self.table.statement(core.db, |s| &s.base_row, Table::sql_base_row)?;
                let rows = statement.query(&self.key.binds())?;
                self.rows.insert(if rows.next()? { Some(rows) } else { None })
            }
        };
        let column = i32::try_from(cell).unwrap_or(i32::MAX);
        Ok(base.as_ref().map(|row| merge_cmp(incoming, row.value_ref(column))))
    }
}

/// The state of one row while its changes are decided.
#[derive(Default)]
pub(crate) struct RowMerge<'a> {
    /// Known once a clock of the row was seen.
    key: Option<i64>,
    /// Of a row without clocks, where it was just made.
    new_key: Option<i64>,
    causal_length: CausalLength,
    was_alive: bool,
    /// Where its base row was inserted, if that was done here and there is a rowid.
    rowid: Option<i64>,
    clocks: Vec<HeldClock>,
    /// Stamps of clocks, as far as they are known; those may not be stored yet.
    stamps: Vec<(Of, Stamp)>,
    /// Versions of cells whose columns the table no longer has.
    gone: Vec<(Box<str>, i64)>,
    plan: RowPlan<'a>,
    won: usize,
    /// Whether its changes were decided before it was loaded, and whether what is planned for its clocks is written.
    is_decided: bool,
    is_moved: bool,
}

impl<'a> RowMerge<'a> {
    /// Reads the clocks of a row.
    pub(crate) fn load(core: &Core, table: &Table, key: &RowKey<'_>) -> rusqlite::Result<Self> {
        let mut row = Self::default();
        let rows = table.statement(core.db, |s| &s.row_state, Table::sql_row_state)?.query(&key.binds())?;
        while rows.next()? {
            row.add_held(table, &rows);
        }
        row.end_load();
        Ok(row)
    }

    /// A row of which nothing is held but this key, which was just made.
    pub(crate) fn of_new_key(key: i64) -> Self {
        Self { new_key: Some(key), ..Self::default() }
    }

    /// Forgets the row, for another one.
    pub(crate) fn clear(&mut self) {
        (self.key, self.new_key, self.rowid) = (None, None, None);
        self.clocks.clear();
        self.stamps.clear();
        self.gone.clear();
        self.plan.clear();
        self.won = 0;
        (self.is_decided, self.is_moved) = (false, false);
    }

    /// Adds the clock at which `rows` stand: key, name, col_version.
    pub(crate) fn add_held(&mut self, table: &Table, rows: &Rows<'_>) {
        if self.key.is_none() {
            self.key = Some(rows.integer(0));
        }
        let name = rows.bytes(1);
        // The clocks of a row lie in the order of names: after that of a cell, mostly, that of the next one.
        let last = match self.clocks.last() {
            Some(HeldClock { of: Of::Cell(cell), .. }) => Some(*cell),
            _ => None,
        };
        let of = table.clock_after(last, name);
        let col_version = rows.integer(2);
        if of == Of::Gone {
            self.gone.push((String::from_utf8_lossy(name).into(), col_version));
        }
        self.clocks.push(HeldClock { of, col_version, is_stored: true });
    }

    /// VER-13: the sentinel tells; without one, any clock means a first life.
    pub(crate) fn end_load(&mut self) {
        let sentinel = self.clocks.iter().find(|clock| clock.of == Of::Row);
        self.causal_length = match sentinel {
            Some(clock) => CausalLength::new(clock.col_version),
            None if self.clocks.is_empty() => CausalLength::ZERO,
            None => CausalLength::FIRST,
        };
        self.was_alive = self.causal_length.is_alive();
    }

    /// The key that was made for it, before anything is known to be written.
    pub(crate) fn new_key(&self) -> Option<i64> {
        self.new_key
    }

    /// Whether it lives for so long, and has a clock of this cell.
    pub(crate) fn is_alive_with(&self, cell: usize, length: CausalLength) -> bool {
        self.was_alive && self.causal_length == length && self.clocks.iter().any(|clock| clock.of == Of::Cell(cell))
    }

    /// Whether it lives as long as a change says, and has an older clock of its cell.
    pub(crate) fn is_older(&self, change: &Change, cell: usize) -> bool {
        matches!(self.resolve(change, Of::Cell(cell)), (Decision::Write, Some(_)))
    }

    /// Decides its only change, of which it is known that the row [is older](Self::is_older); `is_moved` where its clock is written.
    pub(crate) fn decide_older(&mut self, key: i64, cell: usize, change: &'a Change, is_moved: bool) {
        let (of, col_version, seq) = (Of::Cell(cell), change.col_version.get(), change.seq.get());
        self.key = Some(key);
        (self.causal_length, self.was_alive) = (change.causal_length, true);
        self.clocks.push(HeldClock { of, col_version, is_stored: true });
        self.plan.cells.push((cell, &change.value));
        self.plan.clocks.push(NewClock { of, col_version, seq });
        self.won = 1;
        (self.is_decided, self.is_moved) = (true, is_moved);
    }

    /// Whether its changes are decided.
    pub(crate) fn is_decided(&self) -> bool {
        self.is_decided
    }

    /// Whether its clocks are written.
    pub(crate) fn is_moved(&self) -> bool {
        self.is_moved
    }

    /// The number of its key, where there is one.
    pub(crate) fn key(&self) -> Option<i64> {
        self.key
    }

    /// How many changes won.
    pub(crate) fn won(&self) -> usize {
        self.won
    }

    /// What the versions say of a change, as things are.
    fn resolve(&self, change: &Change, of: Of) -> (Decision, Option<&HeldClock>) {
        let held = self.clocks.iter().find(|clock| clock.of == of && of != Of::Gone);
        let held_version = match of {
            Of::Gone => {
                let name = change.column.as_str();
                self.gone.iter().find(|(gone, _)| **gone == *name).map(|(_, version)| *version)
            }
            _ => held.map(|clock| clock.col_version),
        };
        let incoming =
            Incoming { causal_length: change.causal_length, is_row: of == Of::Row, col_version: change.col_version };
        (resolve(self.causal_length, held_version.map(ColVersion::new), incoming), held)
    }

    /// Whether a change is one that only the values can decide.
    pub(crate) fn needs_values(&self, change: &Change, of: Of) -> bool {
        !self.is_decided && self.resolve(change, of).0 == Decision::CompareValues
    }

    /// Decides one change, and plans what it does.
    #[allow(clippy::too_many_arguments)] // a change, what it is about, and what decides
    pub(crate) fn decide(
        &mut self,
        core: &mut Core,
        table: &Table,
        held_values: &mut impl HeldValues,
        change: &'a Change,
        of: Of,
        author: &Author<'_>,
        index: usize,
    ) -> Result<(), MergeError> {
        check_counts(change, index)?;
        let length = change.causal_length;
        let (mut decision, held) = self.resolve(change, of);
        // MRG-11: a change that loses anyway does not need its column, nor does a deletion.
        let needs_cell = matches!(decision, Decision::Write | Decision::ReviveAndWrite | Decision::CompareValues);
        if needs_cell && of == Of::Gone {
            let (table, column) = (table.name.to_string(), change.column.as_str().to_owned());
            return Err(MergeError::UnknownColumn { index, table, column });
        }
        if let (Decision::CompareValues, Of::Cell(cell), Some(held)) = (decision, of, held) {
            let planned = self.plan.cells.iter().find(|(planned, _)| *planned == cell);
            let values = match planned {
                Some((_, planned)) => Some(change.value.merge_cmp(planned)),
                None => held_values.compare(core, cell, &change.value)?,
            };
            decision = match values {
                // 5.3 step 3, the FIX: without a base row there is nothing to lose against.
                None => Decision::Write,
                Some(Ordering::Equal) if self.is_renumbered(core, table, held, author)? => {
                    self.plan_stamp(of, change);
                    return Ok(());
                }
                Some(Ordering::Equal) => {
                    resolve_values(Ordering::Equal, self.compare_sites(core, table, held, author)?)
                }
                Some(values) => resolve_values(values, None),
            };
        } else if let (Decision::Ignore, Of::Row, Some(held)) = (decision, of, held)
            && length == self.causal_length
            && (self.is_renumbered(core, table, held, author)?
                // MRG-12: equal sentinels agree on an author where equal values do.
                || self.compare_sites(core, table, held, author)? == Some(Ordering::Greater))
        {
            self.plan_stamp(of, change);
            return Ok(());
        }
        match (decision, of) {
            (Decision::Delete, _) => self.plan_delete(length, change.seq.get()),
            (Decision::Revive, _) => self.plan_revive(length, change.seq.get()),
            (Decision::ReviveAndWrite, Of::Cell(cell)) => {
                self.plan_revive(length, change.seq.get());
                self.plan_write(cell, change);
            }
            (Decision::Write, Of::Cell(cell)) => {
                if self.causal_length == CausalLength::ZERO {
                    self.causal_length = length;
                }
                self.plan_write(cell, change);
            }
            _ => {}
        }
        Ok(())
    }

    /// What is held stays, under another stamp.
    fn plan_stamp(&mut self, of: Of, change: &Change) {
        let col_version = if of == Of::Row { change.causal_length.get() } else { change.col_version.get() };
        self.plan.put_clock(of, col_version, change.seq.get());
        self.won += 1;
    }

    /// MRG-6, with its FIX: what is stored is the causal length.
    fn plan_delete(&mut self, length: CausalLength, seq: i64) {
        self.plan.clear();
        self.plan.delete = true;
        self.plan.put_clock(Of::Row, length.get(), seq);
        self.causal_length = length;
        self.clocks.clear();
        self.won += 1;
    }

    /// MRG-7 to MRG-9.
    fn plan_revive(&mut self, length: CausalLength, seq: i64) {
        self.plan.ensure = true;
        for clock in self.clocks.iter_mut().filter(|clock| clock.of != Of::Row) {
            clock.col_version = 0;
            self.plan.zero = true;
        }
        for clock in self.plan.clocks.iter_mut().filter(|clock| clock.of != Of::Row) {
            clock.col_version = 0;
        }
        self.plan.put_clock(Of::Row, length.get(), seq);
        self.causal_length = length;
        self.won += 1;
    }

    /// MRG-10.
    fn plan_write(&mut self, cell: usize, change: &'a Change) {
        let (of, col_version, seq) = (Of::Cell(cell), change.col_version.get(), change.seq.get());
        if let Some(held) = self.clocks.iter_mut().find(|clock| clock.of == of) {
            held.col_version = col_version;
            self.plan.put_cell(cell, &change.value);
            self.plan.put_clock(of, col_version, seq);
        } else {
            // Nothing is planned for it, either.
            self.clocks.push(HeldClock { of, col_version, is_stored: false });
            self.plan.cells.push((cell, &change.value));
            self.plan.clocks.push(NewClock { of, col_version, seq });
        }
        self.won += 1;
    }

    /// What is written where that is nothing but cells of a row that was never seen, or that lives. Puts them in order.
    pub(crate) fn prepare_cells(&mut self, table: &Table) -> Option<RowCells<'_, 'a>> {
        let plan = &mut self.plan;
        if !plan.is_cells() || !(self.key.is_none() || self.was_alive) {
            return None;
        }
        plan.cells.sort_unstable_by_key(|(cell, _)| *cell);
        plan.clocks.sort_unstable_by_key(|clock| match clock.of {
            Of::Cell(cell) => table.by_name[cell],
            Of::Row | Of::Gone => usize::MAX,
        });
        Some(self.cells())
    }

    /// See [`prepare_cells`](Self::prepare_cells).
    pub(crate) fn cells(&self) -> RowCells<'_, 'a> {
        RowCells { key: self.key, cells: &self.plan.cells, clocks: &self.plan.clocks }
    }

    /// What is planned, where that is nothing but a cell of a row that was never seen, or that lives.
    pub(crate) fn lone_cell(&self) -> Option<NewClock> {
        match &*self.plan.clocks {
            [clock] if self.plan.is_cells() && (self.key.is_none() || self.was_alive) => Some(*clock),
            _ => None,
        }
    }

    /// Writes a [lone cell](Self::lone_cell), and notes its clock.
    #[allow(clippy::too_many_arguments)] // a clock, whose it is, and where it goes
    pub(crate) fn write_noting(
        &mut self,
        shared: &Shared,
        core: &mut Core,
        table: &Arc<Table>,
        key: &RowKey<'_>,
        clock: NewClock,
        author: &mut Author<'_>,
        index: usize,
    ) -> Result<(i64, Stamp), MergeError> {
        let (key, stamp) = self.write_row(shared, core, table, key, author, index)?;
        let is_held = self.clocks.iter().any(|held| held.of == clock.of && held.is_stored);
        core.note_merged(table, MergedClock { key, clock, stamp, is_held })?;
        Ok((key, stamp))
    }

    /// Writes what was planned. `held_values` must not be running any more.
    pub(crate) fn write(
        &mut self,
        shared: &Shared,
        core: &mut Core,
        table: &Table,
        key: &RowKey<'_>,
        author: &mut Author<'_>,
        index: usize,
    ) -> Result<(i64, Stamp), MergeError> {
        let (key, stamp) = self.write_row(shared, core, table, key, author, index)?;
        if self.plan.delete {
            table.statement(core.db, |s| &s.drop_cells, Table::sql_drop_cells)?.run(&[key.into()])?;
        }
        if self.plan.zero {
            self.zero_cells(core, table, key, stamp)?;
        }
        self.put_clocks(core, table, key, stamp)?;
        Ok((key, stamp))
    }

    /// Writes the base row. Gives the key and the stamp of its clocks.
    fn write_row(
        &mut self,
        shared: &Shared,
        core: &mut Core,
        table: &Table,
        key: &RowKey<'_>,
        author: &mut Author<'_>,
        index: usize,
    ) -> Result<(i64, Stamp), MergeError> {
        let keys = key.binds();
        self.write_base_row(shared, core, table, &keys).map_err(|source| constraint_error(source, index, table))?;
        // After what the table may refuse: inside a transaction, SQLite keeps what a failing statement of one row wrote.
        let stamp = author.stamp(core)?;
        let key = match self.key.or(self.new_key) {
            Some(key) => key,
            // MRG-5, the FIX: only a change that is written leaves a key.
            None => add_or_find_key(core, table, &keys)?,
        };
        Ok((key, stamp))
    }

    pub(crate) fn write_base_row(
        &mut self,
        shared: &Shared,
        core: &Core,
        table: &Table,
        keys: &[Bind<'_>],
    ) -> rusqlite::Result<()> {
        let db = core.db;
        let _sync = shared.sync_guard();
        if self.plan.delete {
            table.statement(db, |s| &s.delete_row, Table::sql_delete_row)?.run(keys)?;
        }
        if !self.plan.ensure && self.plan.cells.is_empty() {
            return Ok(());
        }
        self.plan.cells.sort_unstable_by_key(|(cell, _)| *cell);
        let cells: SmallVec<[usize; 8]> = self.plan.cells.iter().map(|(cell, _)| *cell).collect();
        let values = self.plan.cells.iter().map(|(_, value)| Bind::from(*value));
        let mut binds = Binds::from_slice(keys);
        // An UPDATE of a living row checks only what changes; an upsert would check a row of defaults first.
        let is_update = self.was_alive && !self.plan.delete && !cells.is_empty();
        if let (true, Some(rowid)) = (is_update, self.rowid) {
            binds.push(rowid.into());
            binds.extend(values.clone());
            table.write_row(db, RowWrite::UpdateNear, &cells)?.run(&binds)?;
            if db.changes() > 0 {
                return Ok(());
            }
            self.rowid = None;
            binds.truncate(keys.len());
        }
        binds.extend(values);
        if is_update {
            table.write_row(db, RowWrite::Update, &cells)?.run(&binds)?;
            if db.changes() > 0 {
                return Ok(());
            }
        }
        table.write_row(db, RowWrite::Insert, &cells)?.run(&binds)?;
        // A guess: it may also be where another row was inserted before.
        self.rowid = table.rowid(db).map(|_| db.last_insert_rowid());
        Ok(())
    }

    /// Peers behind us must get the cells again, so they are stamped anew; each stamp needs its origin.
    fn zero_cells(&self, core: &mut Core, table: &Table, key: i64, stamp: Stamp) -> rusqlite::Result<()> {
        let clocks = table.statement(core.db, |s| &s.row_clocks, Table::sql_row_clocks)?;
        let binds = [key.into()];
        let rows = clocks.query(&binds)?;
        while rows.next()? {
            let (ordinal, local) = (rows.integer(2), rows.integer(3));
            if rows.bytes(0) == Column::ROW_NAME.as_bytes() {
                continue;
            }
            if ordinal == 0 {
                forget_own_origins(core, stamp.local, stamp.local)?;
                continue;
            }
            let version = origin(core, local, ordinal)?;
            record_origin(core, stamp.local, ordinal, version)?;
        }
        drop(rows);
        let zero = table.statement(core.db, |s| &s.zero_cells, Table::sql_zero_cells)?;
        zero.run(&[key.into(), stamp.local.into()])
    }

    /// How the author's site compares with that of a clock that is held. `None` unless the database breaks ties by site
    /// (CFG-1).
    #[inline]
    fn compare_sites(
        &self,
        core: &mut Core,
        table: &Table,
        held: &HeldClock,
        author: &Author<'_>,
    ) -> rusqlite::Result<Option<Ordering>> {
        if core.merge_equal_values == 1 { self.compare_sites_of(core, table, held, author) } else { Ok(None) }
    }

    fn compare_sites_of(
        &self,
        core: &mut Core,
        table: &Table,
        held: &HeldClock,
        author: &Author<'_>,
    ) -> rusqlite::Result<Option<Ordering>> {
        if !held.is_stored {
            return Ok(Some(Ordering::Equal));
        }
        let Some(Stamp { ordinal, .. }) = self.stamp_of(core, table, held)? else { return Ok(None) };
        let held = core.site_of(ordinal)?.map(|site| *site.as_bytes());
        let incoming = author.site.unwrap_or_default();
        Ok(Some(incoming.cmp(held.as_ref().map_or(&[][..], |site| &site[..]))))
    }

    /// The stamp of a clock that is stored, if it is of something that the table has.
    fn stamp_of(&self, core: &Core, table: &Table, held: &HeldClock) -> rusqlite::Result<Option<Stamp>> {
        if let Some((_, stamp)) = self.stamps.iter().find(|(of, _)| *of == held.of) {
            return Ok(Some(*stamp));
        }
        let name = match held.of {
            Of::Row => Column::ROW_NAME,
            Of::Cell(cell) => &table.cells[cell].name,
            Of::Gone => return Ok(None),
        };
        let clock = table.statement(core.db, |s| &s.clock_stamp, Table::sql_clock_stamp)?;
        let binds = [self.key.unwrap_or_default().into(), name.into()];
        let rows = clock.query(&binds)?;
        Ok(Some(if rows.next()? {
            Stamp { ordinal: rows.integer(0), local: rows.integer(1) }
        } else {
            Stamp { ordinal: 0, local: 0 }
        }))
    }

    /// Whether a change that is held has come under a later version of its author than before. A wire v1 peer had sent it under
    /// one that it held completely, and whoever holds that much is not sent it by us: so it is stamped anew, with the version
    /// that it has.
    #[inline]
    fn is_renumbered(
        &self,
        core: &mut Core,
        table: &Table,
        held: &HeldClock,
        author: &Author<'_>,
    ) -> rusqlite::Result<bool> {
        match author.own_version() {
            Some(version) if provisional_until(core)? > 0 => self.is_numbered_below(core, table, held, author, version),
            _ => Ok(false),
        }
    }

    fn is_numbered_below(
        &self,
        core: &mut Core,
        table: &Table,
        held: &HeldClock,
        author: &Author<'_>,
        version: i64,
    ) -> rusqlite::Result<bool> {
        if !held.is_stored {
            return Ok(false);
        }
        let Some(stamp) = self.stamp_of(core, table, held)? else { return Ok(false) };
        if stamp.ordinal == 0 {
            return Ok(false);
        }
        let site = core.site_of(stamp.ordinal)?;
        if site.map(|site| *site.as_bytes()).as_ref().map(|site| &site[..]) != author.site {
            return Ok(false);
        }
        // What is of no known version is sent to everybody as it is.
        let known = origin(core, stamp.local, stamp.ordinal)?;
        Ok(0 < known && known < version)
    }

    /// Writes the clocks that were planned.
    pub(crate) fn put_clocks(&self, core: &Core, table: &Table, key: i64, stamp: Stamp) -> rusqlite::Result<()> {
        let rest: &[NewClock] = if self.is_moved { &[] } else { &self.plan.clocks };
        for clock in rest {
            let name = match clock.of {
                Of::Row => Column::ROW_NAME,
                Of::Cell(cell) => &table.cells[cell].name,
                Of::Gone => continue,
            };
            let (col_version, seq) = (clock.col_version.into(), clock.seq.into());
            let binds = [key.into(), stamp.local.into(), stamp.ordinal.into(), name.into(), col_version, seq];
            let was_held = !self.plan.delete && self.clocks.iter().any(|held| held.of == clock.of && held.is_stored);
            if was_held {
                table.statement(core.db, |s| &s.move_clock, Table::sql_move_clock)?.run(&binds)?;
            } else {
                table.statement(core.db, |s| &s.add_clock, Table::sql_add_clock)?.run(&binds)?;
            }
            if core.db.changes() > 0 {
                continue;
            }
            table.statement(core.db, |s| &s.put_clock, Table::sql_put_clock)?.run(&binds)?;
        }
        Ok(())
    }
}

impl RowMerge<'_> {
    /// The row as it is once what was planned is written or noted, under this key and stamp, for the next change of it. `None`
    /// where it has to be read again. Stamps are kept where sites break ties: they may not be stored yet.
    pub(crate) fn settle(self, core: &Core, written: Option<(i64, Stamp)>) -> Option<RowMerge<'static>> {
        let Self { key, causal_length, rowid, mut clocks, mut stamps, gone, plan, .. } = self;
        if plan.delete || plan.ensure || plan.zero {
            return None;
        }
        clocks.iter_mut().for_each(|clock| clock.is_stored = true);
        if let (Some((_, stamp)), 1) = (written, core.merge_equal_values) {
            for NewClock { of, .. } in plan.clocks {
                stamps.retain(|(known, _)| *known != of);
                stamps.push((of, stamp));
            }
        }
        let key = written.map_or(key, |(key, _)| Some(key));
        let was_alive = causal_length.is_alive();
        Some(RowMerge { key, causal_length, was_alive, rowid, clocks, stamps, gone, ..RowMerge::default() })
    }
}

/// Cells to be written.
pub(crate) struct RowCells<'r, 'a> {
    pub(crate) key: Option<i64>,
    /// In table order.
    pub(crate) cells: &'r [(usize, &'a Value)],
    /// In the order of names, in which they lie in the clock table.
    pub(crate) clocks: &'r [NewClock],
}

/// A constraint of the user's is the fault of the change; everything else is the database's.
pub(crate) fn constraint_error(source: rusqlite::Error, index: usize, table: &Table) -> MergeError {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation | rusqlite::ErrorCode::TypeMismatch) => {
            MergeError::Constraint { index, table: table.name.to_string(), source }
        }
        _ => source.into(),
    }
}
