//! Verified changes -> one transaction of rows, clocks and cursor.
//!
//! The batch is cut into changesets (one author, one version) and those into rows. A row's clocks are read once, all its
//! changes are decided in memory ([`crate::resolve`]), then the row is written once and its clocks once. A row that is not
//! known here needs no look-up but the one of its key.
//!
//! Each changeset is merged under a local version of its own, and `litemesh_origin` remembers whose version that was: the
//! clock tables alone could not say (`crsqlite-compat.md` 5.6; docs/storage.md).

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use litemesh_proto::limits::{VERSION_JUMP_MAX, VERSION_MAX};
use litemesh_proto::{CausalLength, Change, ColVersion, Column, Cursor, DbVersion, SiteId, Value};

use crate::record::{add_key, find_key};
use crate::core::{Core, Shared};
use crate::error::MergeError;
use crate::resolve::{Decision, Incoming, resolve, resolve_values};
use crate::schema::{RowWrite, Table};
use crate::statement::Bind;

/// How far a batch brings this database; stored in the transaction that merges it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MergeProgress {
    /// Joined into our cursor.
    pub cursor: Cursor,
    /// The sender, and its local version up to which we now hold everything that it has.
    pub position: Option<(SiteId, DbVersion)>,
}

impl MergeProgress {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.cursor.is_empty() && self.position.is_none()
    }
}

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// How many changes won and were written. The others were known, or lost.
    pub won: usize,
    /// Tables in which something changed.
    pub tables: BTreeSet<Arc<str>>,
    /// The local versions under which the winners were stored: first and last.
    pub local_versions: Option<(DbVersion, DbVersion)>,
}

/// Merges a batch inside the caller's transaction.
pub(crate) fn merge_batch(shared: &Shared, core: &mut Core, changes: &[Change]) -> Result<Merged, MergeError> {
    let mut merged = Merged::default();
    let mut start = 0;
    while start < changes.len() {
        let first = &changes[start];
        let length = run_length(&changes[start..], |c| c.site == first.site && c.db_version == first.db_version);
        merge_changeset(shared, core, &changes[start..start + length], start, &mut merged)?;
        start += length;
    }
    Ok(merged)
}

fn run_length(changes: &[Change], same: impl Fn(&Change) -> bool) -> usize {
    changes.iter().take_while(|change| same(change)).count()
}

fn merge_changeset(
    shared: &Shared,
    core: &mut Core,
    changes: &[Change],
    offset: usize,
    merged: &mut Merged,
) -> Result<(), MergeError> {
    let first = &changes[0];
    let mut author = Author::new(Some(first.site.as_bytes()), first.db_version.get(), true);
    author.check(core, offset)?;
    let mut start = 0;
    while start < changes.len() {
        let first = &changes[start];
        let length = run_length(&changes[start..], |c| c.key == first.key && c.table == first.table);
        let index = offset + start;
        let table = core
            .table(&first.table)
            .ok_or_else(|| MergeError::UnknownTable { index, table: first.table.to_string() })?;
        let keys = row_keys(core, &table, first, index)?;
        let won = merge_row(shared, core, &table, &keys, &changes[start..start + length], &mut author, index)?;
        if won > 0 {
            merged.won += won;
            merged.tables.insert(table.name.clone());
        }
        start += length;
    }
    if let Some((local, _)) = author.stamp {
        let local = DbVersion::new(local);
        let first = merged.local_versions.map_or(local, |(first, _)| first);
        merged.local_versions = Some((first, local));
    }
    Ok(())
}

/// The primary key of a change as the base table stores it (BUG-8, BUG-16).
pub(crate) fn row_keys(core: &Core, table: &Table, change: &Change, index: usize) -> Result<Vec<Value>, MergeError> {
    let name = || table.name.to_string();
    let mut keys = change.key.unpack().map_err(|source| MergeError::Key { index, table: name(), source })?;
    if keys.len() != table.keys.len() {
        let (expected, found) = (table.keys.len(), keys.len());
        return Err(MergeError::KeyArity { index, table: name(), expected, found });
    }
    for (key, column) in keys.iter_mut().zip(&table.keys) {
        match column.affinity.apply(key) {
            Some(stored) => *key = stored,
            // Only a REAL in a TEXT column comes here; SQLite itself writes the digits.
            None => {
                let print = core.db.prepare("SELECT ?1 || ''")?;
                let rows = print.query(&[(&*key).into()])?;
                rows.next()?;
                let text = rows.value(0);
                drop(rows);
                *key = text;
            }
        }
        if *key == Value::Null {
            return Err(MergeError::NullKey { index, table: name() });
        }
    }
    Ok(keys)
}

/// Who wrote the changes that are being merged, and what local version they get once one of them wins.
pub(crate) struct Author<'a> {
    /// `None` stands for this database itself (MRG-8).
    site: Option<&'a [u8]>,
    version: i64,
    /// Whether the changeset gets a version of its own, rather than the transaction's.
    is_fresh: bool,
    /// `(local version, ordinal)`, once something won.
    stamp: Option<(i64, i64)>,
}

impl<'a> Author<'a> {
    pub(crate) fn new(site: Option<&'a [u8]>, version: i64, is_fresh: bool) -> Self {
        Self { site, version, is_fresh, stamp: None }
    }

    /// BUG-29: no remote may push our clock to its end.
    pub(crate) fn check(&self, core: &Core, index: usize) -> Result<(), MergeError> {
        let max = core.newest_version().saturating_add(VERSION_JUMP_MAX).min(VERSION_MAX);
        if self.version > max {
            return Err(MergeError::AbsurdVersion { index, version: self.version, max });
        }
        Ok(())
    }

    fn stamp(&mut self, core: &mut Core) -> rusqlite::Result<(i64, i64)> {
        if let Some(stamp) = self.stamp {
            return Ok(stamp);
        }
        let ordinal = self.site.map_or(Ok(0), |site| core.ordinal_of(site))?;
        let local = if self.is_fresh { core.fresh_version(self.version) } else { core.next_version(self.version) };
        record_origin(core, local, ordinal, self.version)?;
        self.stamp = Some((local, ordinal));
        Ok((local, ordinal))
    }
}

/// Remembers whose version a local one is. Where several author versions share a stamp the highest is kept: a label that is
/// too low could be taken as covered by a cursor that does not hold the change, one that is too high only sends it again.
fn record_origin(core: &mut Core, local: i64, ordinal: i64, version: i64) -> rusqlite::Result<()> {
    if ordinal == 0 || !core.has_litemesh_tables {
        return Ok(());
    }
    if let Some((last_local, last_ordinal, last_version)) = core.last_origin
        && (last_local, last_ordinal) == (local, ordinal)
        && last_version >= version
    {
        return Ok(());
    }
    const RECORD: &str = "INSERT INTO litemesh_origin (local_version, site, version) VALUES (?1, ?2, ?3)
         ON CONFLICT (local_version, site) DO UPDATE SET version = max(version, excluded.version)";
    core.statement(RECORD)?.run(&[local.into(), ordinal.into(), version.into()])?;
    core.last_origin = Some((local, ordinal, version));
    Ok(())
}

/// A clock that is held.
struct HeldClock {
    name: Box<str>,
    col_version: i64,
    ordinal: i64,
    local_version: i64,
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
    clocks: Vec<(&'a str, i64, i64)>,
}

impl<'a> RowPlan<'a> {
    fn put_clock(&mut self, name: &'a str, col_version: i64, seq: i64) {
        match self.clocks.iter_mut().find(|clock| clock.0 == name) {
            Some(clock) => *clock = (name, col_version, seq),
            None => self.clocks.push((name, col_version, seq)),
        }
    }

    fn put_cell(&mut self, cell: usize, value: &'a Value) {
        match self.cells.iter_mut().find(|held| held.0 == cell) {
            Some(held) => held.1 = value,
            None => self.cells.push((cell, value)),
        }
    }
}

/// The state of one row while its changes are decided.
struct RowMerge<'a> {
    table: &'a Table,
    key: Option<i64>,
    causal_length: CausalLength,
    clocks: Vec<HeldClock>,
    plan: RowPlan<'a>,
    won: usize,
}

/// Merges changes of one row by one author. Gives the number that won.
pub(crate) fn merge_row(
    shared: &Shared,
    core: &mut Core,
    table: &Table,
    keys: &[Value],
    changes: &[Change],
    author: &mut Author<'_>,
    index: usize,
) -> Result<usize, MergeError> {
    let binds: Vec<Bind<'_>> = keys.iter().map(Bind::from).collect();
    let mut row = RowMerge {
        table,
        key: find_key(core, table, &binds)?,
        causal_length: CausalLength::ZERO,
        clocks: Vec::new(),
        plan: RowPlan::default(),
        won: 0,
    };
    if let Some(key) = row.key {
        row.load(core, key)?;
    }
    let was_alive = row.causal_length.is_alive();
    for (position, change) in changes.iter().enumerate() {
        row.decide(core, change, author, index + position)?;
    }
    if row.won > 0 {
        row.write(shared, core, &binds, was_alive, author, index)?;
    }
    Ok(row.won)
}

impl<'a> RowMerge<'a> {
    fn load(&mut self, core: &Core, key: i64) -> rusqlite::Result<()> {
        let statement = self.table.statement(core.db, |s| &s.row_clocks, Table::sql_row_clocks)?;
        let rows = statement.query(&[key.into()])?;
        while rows.next()? {
            let (name, col_version) = (rows.text(0), rows.integer(1));
            // VER-13: the sentinel tells; without one, any clock means a first life.
            if name == Column::ROW_NAME {
                self.causal_length = CausalLength::new(col_version);
            } else if self.causal_length == CausalLength::ZERO {
                self.causal_length = CausalLength::FIRST;
            }
            self.clocks.push(HeldClock {
                name: name.into(),
                col_version,
                ordinal: rows.integer(2),
                local_version: rows.integer(3),
            });
        }
        if let Some(sentinel) = self.clocks.iter().find(|clock| &*clock.name == Column::ROW_NAME) {
            self.causal_length = CausalLength::new(sentinel.col_version);
        }
        Ok(())
    }

    fn decide(
        &mut self,
        core: &mut Core,
        change: &'a Change,
        author: &Author<'_>,
        index: usize,
    ) -> Result<(), MergeError> {
        let cell = match &change.column {
            Column::Row => None,
            Column::Cell(name) => self.table.cell_index(name),
        };
        let (name, length) = (change.column.as_str(), change.causal_length);
        let held = self.clocks.iter().find(|clock| &*clock.name == name);
        let is_row = change.column == Column::Row;
        let incoming = Incoming { causal_length: length, is_row, col_version: change.col_version };
        let mut decision = resolve(self.causal_length, held.map(|clock| ColVersion::new(clock.col_version)), incoming);
        // MRG-11: a change that loses anyway does not need its column, nor does a deletion.
        let needs_cell = matches!(decision, Decision::Write | Decision::ReviveAndWrite | Decision::CompareValues);
        if needs_cell && cell.is_none() {
            return Err(MergeError::UnknownColumn {
                index,
                table: self.table.name.to_string(),
                column: name.to_owned(),
            });
        }
        if let (Decision::CompareValues, Some(cell), Some(held)) = (decision, cell, held) {
            decision = match self.compare_with_held(core, cell, &change.value)? {
                // 5.3 step 3, the FIX: without a base row there is nothing to lose against.
                None => Decision::Write,
                Some(values) => resolve_values(values, self.compare_sites(core, held, author)?),
            };
        }
        // MRG-12: equal sentinels agree on an author where equal values do.
        if let (Decision::Ignore, true, Some(held)) = (decision, is_row, held)
            && length == self.causal_length
            && self.compare_sites(core, held, author)? == Some(Ordering::Greater)
        {
            self.plan.put_clock(Column::ROW_NAME, length.get(), change.seq.get());
            self.won += 1;
            return Ok(());
        }
        match (decision, cell) {
            (Decision::Delete, _) => self.plan_delete(length, change.seq.get()),
            (Decision::Revive, _) => self.plan_revive(length, change.seq.get()),
            (Decision::ReviveAndWrite, Some(cell)) => {
                self.plan_revive(length, change.seq.get());
                self.plan_write(cell, change);
            }
            (Decision::Write, Some(cell)) => {
                if self.causal_length == CausalLength::ZERO {
                    self.causal_length = length;
                }
                self.plan_write(cell, change);
            }
            _ => {}
        }
        Ok(())
    }

    /// `None` where the base row is missing.
    fn compare_with_held(&self, core: &Core, cell: usize, incoming: &Value) -> rusqlite::Result<Option<Ordering>> {
        if let Some((_, planned)) = self.plan.cells.iter().find(|(planned, _)| *planned == cell) {
            return Ok(Some(incoming.merge_cmp(planned)));
        }
        let Some(key) = self.key else { return Ok(None) };
        let statement = self.table.read_cell(core.db, cell)?;
        let rows = statement.query(&[key.into()])?;
        if !rows.next()? || rows.integer(1) == 0 {
            return Ok(None);
        }
        let column = i32::try_from(2 + self.table.keys.len()).unwrap_or(i32::MAX);
        Ok(Some(incoming.merge_cmp(&rows.value(column))))
    }

    /// `None` unless the database breaks ties by site (CFG-1).
    fn compare_sites(
        &self,
        core: &mut Core,
        held: &HeldClock,
        author: &Author<'_>,
    ) -> rusqlite::Result<Option<Ordering>> {
        if core.merge_equal_values != 1 {
            return Ok(None);
        }
        let held = core.site_of(held.ordinal)?.map(|site| *site.as_bytes());
        let incoming = author.site.unwrap_or_default();
        Ok(Some(incoming.cmp(held.as_ref().map_or(&[][..], |site| &site[..]))))
    }

    /// MRG-6, with its FIX: what is stored is the causal length.
    fn plan_delete(&mut self, length: CausalLength, seq: i64) {
        self.plan = RowPlan { delete: true, ..RowPlan::default() };
        self.plan.put_clock(Column::ROW_NAME, length.get(), seq);
        self.causal_length = length;
        self.clocks.clear();
        self.won += 1;
    }

    /// MRG-7 to MRG-9.
    fn plan_revive(&mut self, length: CausalLength, seq: i64) {
        self.plan.ensure = true;
        for clock in self.clocks.iter_mut().filter(|clock| &*clock.name != Column::ROW_NAME) {
            clock.col_version = 0;
            self.plan.zero = true;
        }
        for clock in self.plan.clocks.iter_mut().filter(|clock| clock.0 != Column::ROW_NAME) {
            clock.1 = 0;
        }
        self.plan.put_clock(Column::ROW_NAME, length.get(), seq);
        self.causal_length = length;
        self.won += 1;
    }

    /// MRG-10.
    fn plan_write(&mut self, cell: usize, change: &'a Change) {
        let name = change.column.as_str();
        self.plan.put_cell(cell, &change.value);
        self.plan.put_clock(name, change.col_version.get(), change.seq.get());
        match self.clocks.iter_mut().find(|clock| &*clock.name == name) {
            Some(held) => held.col_version = change.col_version.get(),
            None => self.clocks.push(HeldClock {
                name: name.into(),
                col_version: change.col_version.get(),
                ordinal: 0,
                local_version: 0,
            }),
        }
        self.won += 1;
    }

    fn write(
        &mut self,
        shared: &Shared,
        core: &mut Core,
        keys: &[Bind<'_>],
        was_alive: bool,
        author: &mut Author<'_>,
        index: usize,
    ) -> Result<(), MergeError> {
        self.write_base_row(shared, core, keys, was_alive).map_err(|source| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::ConstraintViolation | rusqlite::ErrorCode::TypeMismatch) => {
                MergeError::Constraint { index, table: self.table.name.to_string(), source }
            }
            _ => source.into(),
        })?;
        // After what the table may refuse: inside a transaction, SQLite keeps what a failing statement of one row wrote.
        let (local, ordinal) = author.stamp(core)?;
        let key = match self.key {
            Some(key) => key,
            // MRG-5, the FIX: only a change that is written leaves a key.
            None => add_key(core, self.table, keys)?,
        };
        if self.plan.delete {
            self.table.statement(core.db, |s| &s.drop_cells, Table::sql_drop_cells)?.run(&[key.into()])?;
        }
        if self.plan.zero {
            self.zero_cells(core, key, local)?;
        }
        self.put_clocks(core, key, local, ordinal)?;
        Ok(())
    }

    fn write_base_row(
        &mut self,
        shared: &Shared,
        core: &Core,
        keys: &[Bind<'_>],
        was_alive: bool,
    ) -> rusqlite::Result<()> {
        let (table, db) = (self.table, core.db);
        let _sync = shared.sync_guard();
        if self.plan.delete {
            table.statement(db, |s| &s.delete_row, Table::sql_delete_row)?.run(keys)?;
        }
        if !self.plan.ensure && self.plan.cells.is_empty() {
            return Ok(());
        }
        self.plan.cells.sort_unstable_by_key(|(cell, _)| *cell);
        let cells: Vec<usize> = self.plan.cells.iter().map(|(cell, _)| *cell).collect();
        let mut binds = keys.to_vec();
        binds.extend(self.plan.cells.iter().map(|(_, value)| Bind::from(*value)));
        // An UPDATE of a living row checks only what changes; an upsert would check a row of defaults first.
        if was_alive && !self.plan.delete && !cells.is_empty() {
            table.write_row(db, RowWrite::Update, &cells)?.run(&binds)?;
            if db.changes() > 0 {
                return Ok(());
            }
        }
        table.write_row(db, RowWrite::Insert, &cells)?.run(&binds)
    }

    /// Peers behind us must get the cells again, so they are stamped anew; each stamp needs its origin.
    fn zero_cells(&self, core: &mut Core, key: i64, local: i64) -> rusqlite::Result<()> {
        self.table.statement(core.db, |s| &s.zero_cells, Table::sql_zero_cells)?.run(&[key.into(), local.into()])?;
        for clock in self.clocks.iter().filter(|clock| clock.ordinal != 0 && &*clock.name != Column::ROW_NAME) {
            const ORIGIN: &str = "SELECT version FROM litemesh_origin WHERE local_version = ?1 AND site = ?2";
            let binds = [clock.local_version.into(), clock.ordinal.into()];
            let version = core.statement(ORIGIN)?.query_integer(&binds)?.unwrap_or_default();
            record_origin(core, local, clock.ordinal, version)?;
        }
        Ok(())
    }

    fn put_clocks(&self, core: &Core, key: i64, local: i64, ordinal: i64) -> rusqlite::Result<()> {
        let put = self.table.statement(core.db, |s| &s.put_clock, Table::sql_put_clock)?;
        for (name, col_version, seq) in &self.plan.clocks {
            let (name, col_version, seq) = ((*name).into(), (*col_version).into(), (*seq).into());
            put.run(&[key.into(), local.into(), ordinal.into(), name, col_version, seq])?;
        }
        Ok(())
    }
}
