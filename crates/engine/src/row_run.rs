//! [`RowRun`]: rows that one transaction wrote whole, read in the order of their keys.
//!
//! A bulk insert, a first merge, a backfill: thousands of rows of one version, key after key. The version index would lead to
//! each clock for itself, and every row would be looked up in two more B-trees. Here two cursors step forward side by side:
//! one over the clocks, one over keys and base rows. Neither is a join: a clock must be known to be sent before the value
//! behind it is read, or a flag beside a large BLOB would cost as much as the BLOB.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use litemesh_proto::Value;

use crate::core::Core;
use crate::schema::{ClockOf, Table};
use crate::statement::{Rows, Statement};

/// How many rows in a row must be whole before the index is left: what a run costs that ends at once is small beside them.
pub(crate) const ROWS_BEFORE_A_RUN: u32 = 8;

/// How many clocks of other versions may be passed, beyond those that were worth it and one row's: then the index is better.
const PASSED_MAX: usize = 32;

/// Cells whose values are asked for by one parameter.
pub(crate) const MASK_BITS: usize = 32;

/// A clock of the run's version.
#[derive(Clone, Copy)]
pub(crate) struct RunClock {
    pub(crate) of: ClockOf,
    pub(crate) col_version: i64,
    pub(crate) ordinal: i64,
    pub(crate) seq: i64,
}

/// Where a step brought the run.
#[derive(Debug, PartialEq)]
pub(crate) enum Reached {
    /// A row with clocks of the version.
    Row(i64),
    /// The end of the table: there are no more such rows.
    End,
    /// Too many clocks of other versions. Up to this key nothing was left out.
    Lost(i64),
}

/// The run, standing at a row.
pub(crate) struct RowRun {
    table: Arc<Table>,
    version: i64,
    /// Up to here nothing was left out.
    key: i64,
    clocks: Arc<Statement>,
    /// The key of the clock at which `clocks` stands: of the row after this one.
    next: Option<i64>,
    /// The row's clocks of the version, in the order of names.
    row: Vec<RunClock>,
    causal_length: i64,
    /// Clocks looked at for the row.
    looked_at: usize,
    passed: usize,
    base: Arc<Statement>,
    /// The key at which `base` stands, and the cells that it gives.
    base_key: Option<i64>,
    masks: Vec<u32>,
    /// Those of the next row.
    wanted: Vec<u32>,
}

impl RowRun {
    /// The rows of one version after `key`.
    pub(crate) fn open(core: &Core, table: &Arc<Table>, version: i64, key: i64) -> rusqlite::Result<Self> {
        let clocks = table.statement(core.db, |s| &s.run_clocks, Table::sql_run_clocks)?.clone();
        let base = table.statement(core.db, |s| &s.run_rows, Table::sql_run_rows)?.clone();
        drop(clocks.start());
        clocks.bind(1, key.into())?;
        let words = table.cells.len().div_ceil(MASK_BITS);
        let mut run = Self {
            table: table.clone(),
            version,
            key,
            clocks,
            next: None,
            row: Vec::new(),
            causal_length: 1,
            looked_at: 0,
            passed: 0,
            base,
            base_key: None,
            masks: vec![0; words],
            wanted: vec![0; words],
        };
        run.next = key_of_next(&running(&run.clocks))?;
        Ok(run)
    }

    /// Moves to the next row that has clocks of the version.
    pub(crate) fn advance(&mut self) -> rusqlite::Result<Reached> {
        self.looked_at = 0;
        let clocks = running(&self.clocks);
        while let Some(key) = self.next {
            if self.passed > PASSED_MAX + self.table.cells.len() {
                return Ok(Reached::Lost(self.key));
            }
            (self.key, self.next, self.causal_length) = (key, None, 1);
            self.row.clear();
            let mut place = 0;
            loop {
                self.looked_at += 1;
                let of = self.table.clock_of_next(clocks.bytes(1), &mut place);
                let col_version = clocks.integer(2);
                if of == ClockOf::Row {
                    self.causal_length = col_version;
                }
                if clocks.integer(5) == self.version {
                    let (ordinal, seq) = (clocks.integer(3), clocks.integer(4));
                    self.row.push(RunClock { of, col_version, ordinal, seq });
                } else {
                    self.passed += 1;
                }
                match key_of_next(&clocks)? {
                    Some(next) if next == key => {}
                    next => {
                        self.next = next;
                        break;
                    }
                }
            }
            if !self.row.is_empty() {
                self.passed = self.passed.saturating_sub(self.row.len());
                return Ok(Reached::Row(key));
            }
        }
        Ok(Reached::End)
    }

    pub(crate) fn version(&self) -> i64 {
        self.version
    }

    pub(crate) fn clocks(&self) -> &[RunClock] {
        &self.row
    }

    pub(crate) fn causal_length(&self) -> i64 {
        self.causal_length
    }

    /// How many clocks were looked at for the row, of whatever version.
    pub(crate) fn looked_at(&self) -> usize {
        self.looked_at
    }

    /// The row `key` with the values of `cells`, and no others. `None` where it has no primary key.
    pub(crate) fn base_row(
        &mut self,
        key: i64,
        cells: impl Iterator<Item = usize>,
    ) -> rusqlite::Result<Option<BaseRow<'_>>> {
        self.wanted.fill(0);
        for cell in cells {
            self.wanted[cell / MASK_BITS] |= 1 << (cell % MASK_BITS);
        }
        // Only to the very next key: what lies in between would be read for nothing.
        let is_near = self.base_key.is_some_and(|at| at == key || at.checked_add(1) == Some(key));
        if !is_near || self.wanted != self.masks {
            std::mem::swap(&mut self.wanted, &mut self.masks);
            self.base_key = None;
            drop(self.base.start());
            self.base.bind(1, key.into())?;
            for (parameter, mask) in (2..).zip(&self.masks) {
                self.base.bind(parameter, i64::from(*mask).into())?;
            }
        }
        let rows = running(&self.base);
        if self.base_key != Some(key) {
            self.base_key = key_of_next(&rows)?;
        }
        Ok((self.base_key == Some(key)).then_some(BaseRow { rows, keys: self.table.keys.len() }))
    }
}

/// What the keys table and the base table have of one row.
pub(crate) struct BaseRow<'a> {
    rows: ManuallyDrop<Rows<'a>>,
    keys: usize,
}

impl BaseRow<'_> {
    /// Whether there is a base row.
    pub(crate) fn is_there(&self) -> bool {
        self.rows.integer(1) != 0
    }

    /// The primary key.
    pub(crate) fn key_values(&self) -> impl Iterator<Item = Value> {
        (0..self.keys).map(|n| self.rows.value(as_column(2 + n)))
    }

    /// The value of a cell that was asked for.
    pub(crate) fn cell(&self, cell: usize) -> Value {
        self.rows.value(as_column(2 + self.keys + cell))
    }
}

impl Drop for RowRun {
    fn drop(&mut self) {
        drop(self.clocks.start());
        drop(self.base.start());
    }
}

/// A statement at its row. Not reset when dropped: whoever runs it does that.
pub(crate) fn running(statement: &Statement) -> ManuallyDrop<Rows<'_>> {
    ManuallyDrop::new(statement.start())
}

/// SQLite has at most 32,767 columns.
pub(crate) fn as_column(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn key_of_next(rows: &Rows<'_>) -> rusqlite::Result<Option<i64>> {
    Ok(if rows.next()? { Some(rows.integer(0)) } else { None })
}
