//! Rows that a merge brings and that were never seen here. They are most of a first catch-up, and nothing has to be compared
//! for them: so they are gathered, and a statement writes many.

use std::collections::HashSet;
use std::sync::Arc;

use litemesh_proto::{PackedKey, Value};

use crate::core::{Core, Shared};
use crate::error::MergeError;
use crate::merge::Stamp;
use crate::merge_row::{NewCell, constraint_error};
use crate::record::find_or_add_key;
use crate::schema::{RowWrite, Table};
use crate::statement::Bind;

/// Rows of one table with the same cells, under one stamp.
#[derive(Default)]
pub(crate) struct NewRows<'a> {
    group: Option<Group>,
    rows: Vec<NewRow<'a>>,
    packed: HashSet<PackedKey>,
}

struct Group {
    table: Arc<Table>,
    cells: Vec<usize>,
    stamp: Stamp,
}

struct NewRow<'a> {
    keys: Vec<Value>,
    cells: Vec<NewCell<'a>>,
    /// Of its first change in the batch.
    index: usize,
}

impl<'a> NewRows<'a> {
    pub(crate) fn has(&self, table: &Arc<Table>, key: &PackedKey) -> bool {
        self.group.as_ref().is_some_and(|group| Arc::ptr_eq(&group.table, table)) && self.packed.contains(key)
    }

    #[allow(clippy::too_many_arguments)] // a row, where it goes, and what goes with it
    pub(crate) fn add(
        &mut self,
        shared: &Shared,
        core: &mut Core,
        table: &Arc<Table>,
        key: &PackedKey,
        keys: Vec<Value>,
        cells: Vec<NewCell<'a>>,
        stamp: Stamp,
        index: usize,
    ) -> Result<(), MergeError> {
        let is_like = |group: &Group| {
            Arc::ptr_eq(&group.table, table)
                && group.stamp == stamp
                && group.cells.iter().copied().eq(cells.iter().map(|cell| cell.cell))
        };
        if !self.group.as_ref().is_some_and(is_like) {
            self.write(shared, core)?;
            let cells = cells.iter().map(|cell| cell.cell).collect();
            self.group = Some(Group { table: table.clone(), cells, stamp });
        }
        self.packed.insert(key.clone());
        self.rows.push(NewRow { keys, cells, index });
        if self.rows.len() >= table.new_rows() { self.write(shared, core) } else { Ok(()) }
    }

    /// Writes what was gathered.
    pub(crate) fn write(&mut self, shared: &Shared, core: &mut Core) -> Result<(), MergeError> {
        let Some(group) = self.group.take() else { return Ok(()) };
        let rows = std::mem::take(&mut self.rows);
        self.packed.clear();
        let highest = group.table.statement(core.db, |s| &s.highest_key, Table::sql_highest_key)?;
        let first_key = highest.query_integer(&[])?.unwrap_or_default().max(0).saturating_add(1);
        let chunk = if rows.len() == group.table.new_rows() { rows.len() } else { 1 };
        for (rows, first) in rows.chunks(chunk).zip((first_key..).step_by(chunk)) {
            group.write_base_rows(shared, core, rows)?;
            if group.write_keys(core, rows, first)? {
                group.write_clocks(core, rows, first)?;
                continue;
            }
            // CRSqlite leaves keys without clocks behind (MRG-5).
            for row in rows {
                let keys: Vec<_> = row.keys.iter().map(Bind::from).collect();
                let key = find_or_add_key(core, &group.table, &keys)?;
                group.write_clocks(core, std::slice::from_ref(row), key)?;
            }
        }
        Ok(())
    }
}

impl Group {
    fn write_base_rows(&self, shared: &Shared, core: &Core, rows: &[NewRow<'_>]) -> Result<(), MergeError> {
        let _sync = shared.sync_guard();
        let kind = if rows.len() == 1 { RowWrite::Insert } else { RowWrite::InsertMany };
        let write = |kind, rows: &[NewRow<'_>]| {
            let values = rows.iter().flat_map(|row| row.keys.iter().chain(row.cells.iter().map(|cell| cell.value)));
            let binds: Vec<Bind<'_>> = values.map(Bind::from).collect();
            self.table.write_row(core.db, kind, &self.cells)?.run(&binds)
        };
        let Err(error) = write(kind, rows) else { return Ok(()) };
        // Which of them? Nothing of it stays: the merge fails.
        for row in rows {
            write(RowWrite::Insert, std::slice::from_ref(row))
                .map_err(|source| constraint_error(source, row.index, &self.table))?;
        }
        Err(error.into())
    }

    /// Whether none of the keys was there.
    fn write_keys(&self, core: &Core, rows: &[NewRow<'_>], first: i64) -> rusqlite::Result<bool> {
        let mut binds = Vec::with_capacity(rows.len() * (1 + self.table.keys.len()));
        for (row, key) in rows.iter().zip(first..) {
            binds.push(Bind::Integer(key));
            binds.extend(row.keys.iter().map(Bind::from));
        }
        if rows.len() == 1 {
            self.table.statement(core.db, |s| &s.add_key_as, Table::sql_add_key_as)?.run(&binds)?;
        } else {
            self.table.statement(core.db, |s| &s.add_keys, Table::sql_add_keys)?.run(&binds)?;
        }
        Ok(usize::try_from(core.db.changes()) == Ok(rows.len()))
    }

    fn write_clocks(&self, core: &Core, rows: &[NewRow<'_>], first: i64) -> rusqlite::Result<()> {
        let Stamp { local, ordinal } = self.stamp;
        if let [row] = rows {
            let put = self.table.statement(core.db, |s| &s.put_clock, Table::sql_put_clock)?;
            for NewCell { cell, col_version, seq, .. } in &row.cells {
                let name = (&*self.table.cells[*cell].name).into();
                put.run(&[first.into(), local.into(), ordinal.into(), name, (*col_version).into(), (*seq).into()])?;
            }
            return Ok(());
        }
        let mut binds = vec![Bind::Integer(local), Bind::Integer(ordinal)];
        for (row, key) in rows.iter().zip(first..) {
            binds.push(Bind::Integer(key));
            binds.extend(row.cells.iter().flat_map(|cell| [cell.col_version, cell.seq]).map(Bind::Integer));
        }
        self.table.write_row(core.db, RowWrite::ClocksOfMany, &self.cells)?.run(&binds)
    }
}
