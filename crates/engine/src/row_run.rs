//! [`RowRun`]: rows that lie beside each other, read in the order of their keys: all of one version, or each of a later one.
//!
//! A bulk insert, a first merge, a backfill: thousands of rows, key after key. The version index would lead to each clock for
//! itself, and every row would be looked up in three more B-trees. Here two cursors step forward side by side: one over the
//! clocks, one over keys and base rows. They are not joined: a clock must be known to be sent before the value behind it is
//! read, or a flag beside a large BLOB would cost as much as the BLOB.
//!
//! Where small transactions wrote one row after another, a third cursor steps over the version index, and tells which row of
//! which version is next.

use std::sync::Arc;

use crate::base_rows::{BaseRow, BaseRows, key_of_next};
use crate::core::Core;
use crate::schema::{ClockOf, Table};
use crate::statement::{Statement, running};

/// How many rows must have lain beside each other before the index is left: what a run costs that ends at once is small
/// beside them.
pub(crate) const ROWS_BEFORE_A_RUN: u32 = 8;

/// How many clocks of other versions may be passed for a row of the version: about what the index would cost for it.
const PASSED_FOR_A_ROW: usize = 6;

/// How many may be passed in all, beyond those and the ones of one row: then the run has ended.
const PASSED_MAX: usize = 32;

/// Whether a run over rows like this one is cheaper than the index.
pub(crate) fn is_worth_a_run(table: &Table, clocks: usize) -> bool {
    clocks + PASSED_FOR_A_ROW >= table.cells.len()
}

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
    /// There are no more such rows.
    End,
    /// The next row lies elsewhere, or may do so. Up to this key nothing of the version was left out.
    Lost(i64),
}

/// The run, standing at a row.
pub(crate) struct RowRun {
    table: Arc<Table>,
    version: i64,
    /// Up to here nothing was left out.
    key: i64,
    /// What tells the next version and key, where they are of several versions, and the last of these.
    order: Option<(Arc<Statement>, i64)>,
    clocks: Arc<Statement>,
    /// The key of the clock at which `clocks` stands: of the row after this one.
    next: Option<i64>,
    /// The row's clocks of the version, in the order of names.
    row: Vec<RunClock>,
    causal_length: i64,
    /// Clocks looked at for the row.
    looked_at: usize,
    passed: usize,
    base: BaseRows,
}

impl RowRun {
    /// The rows of one version after `key`.
    pub(crate) fn open(core: &Core, table: &Arc<Table>, version: i64, key: i64) -> rusqlite::Result<Self> {
        let clocks = table.statement(core.db, |s| &s.run_clocks, Table::sql_run_clocks)?.clone();
        drop(clocks.start());
        clocks.bind(1, key.into())?;
        let mut run = Self {
            table: table.clone(),
            version,
            key,
            order: None,
            clocks,
            next: None,
            row: Vec::new(),
            causal_length: 1,
            looked_at: 0,
            passed: 0,
            base: BaseRows::kept(core.db, table),
        };
        run.next = key_of_next(&running(&run.clocks))?;
        Ok(run)
    }

    /// The rows from `version` up to `until`, of which the first is the one after `key`.
    pub(crate) fn open_versions(
        core: &Core,
        table: &Arc<Table>,
        version: i64,
        until: i64,
        key: i64,
    ) -> rusqlite::Result<Self> {
        let order = table.statement(core.db, |s| &s.run_order, Table::sql_run_order)?.clone();
        drop(order.start());
        order.bind(1, version.into())?;
        order.bind(2, until.into())?;
        let mut run = Self::open(core, table, version, key)?;
        run.order = Some((order, until));
        Ok(run)
    }

    /// Moves to the next row that has clocks of its version.
    pub(crate) fn advance(&mut self) -> rusqlite::Result<Reached> {
        self.looked_at = 0;
        let Some((order, until)) = &self.order else {
            return Ok(match self.go_on(i64::MAX)? {
                Some(key) => Reached::Row(key),
                None if self.next.is_some() => Reached::Lost(self.key),
                None => Reached::End,
            });
        };
        let next = running(order);
        if !next.next()? {
            self.version = *until;
            return Ok(Reached::End);
        }
        let (version, key) = (next.integer(0), next.integer(1));
        self.version = version;
        let is_ahead = self.next.is_some_and(|next| next <= key);
        // Rows before it may be of the version only if they came before: they are passed.
        while is_ahead && self.next.is_some_and(|next| next < key) && !self.is_lost() {
            self.read_row()?;
            self.passed += self.row.len();
        }
        Ok(if is_ahead && self.next == Some(key) && self.go_on(key)? == Some(key) {
            Reached::Row(key)
        } else {
            Reached::Lost(key.saturating_sub(1))
        })
    }

    /// Goes on to the next row that has clocks of the version, at most up to `until`.
    fn go_on(&mut self, until: i64) -> rusqlite::Result<Option<i64>> {
        while let Some(key) = self.next.filter(|key| *key <= until && !self.is_lost()) {
            self.read_row()?;
            if !self.row.is_empty() {
                self.passed = self.passed.saturating_sub(PASSED_FOR_A_ROW);
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn is_lost(&self) -> bool {
        self.passed > PASSED_MAX + self.table.cells.len()
    }

    /// Reads the clocks of the next row, if there is one.
    fn read_row(&mut self) -> rusqlite::Result<()> {
        let Some(key) = self.next else { return Ok(()) };
        let clocks = running(&self.clocks);
        (self.key, self.next, self.causal_length) = (key, None, 1);
        self.row.clear();
        let mut last = None;
        loop {
            self.looked_at += 1;
            let of = self.table.clock_after(last, clocks.bytes(1));
            if let ClockOf::Cell(cell) = of {
                last = Some(cell);
            }
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
                    return Ok(());
                }
            }
        }
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

    /// The base row of `key` with the values of `cells`, and no others. `None` where it has no primary key.
    pub(crate) fn base_row(
        &mut self,
        key: i64,
        cells: impl Iterator<Item = usize>,
    ) -> rusqlite::Result<Option<BaseRow<'_>>> {
        self.base.go_to(key, cells)
    }
}

impl Drop for RowRun {
    fn drop(&mut self) {
        drop(self.clocks.start());
        if let Some((order, _)) = &self.order {
            drop(order.start());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Engine;
    use crate::schema::{Table, load_table};
    use crate::statement::Handle;

    /// Nothing of it may be sorted or walked from its beginning, also where SQLite knows how many rows there are: a run must
    /// cost what it gives.
    #[test]
    fn the_cursors_of_a_run_start_where_they_are_told() {
        let check = |create: &str, name: &str, is_analysed: bool| {
            let engine = Engine::open_in_memory().unwrap();
            engine.connection().execute_batch(create).unwrap();
            engine.replicate(name).unwrap();
            let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)";
            engine.connection().execute_batch(&format!("INSERT INTO {name} (id) {rows} SELECT i FROM n")).unwrap();
            if is_analysed {
                engine.connection().execute_batch("ANALYZE").unwrap();
            }
            // SAFETY: the connection is open until the end.
            let db = unsafe { Handle::new(engine.connection().handle()) };
            let table = load_table(db, name).unwrap();
            let is_near = table.rowid(db).is_some();
            let plan_of = |sql: String| {
                let plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
                let rows = plan.query(&[]).unwrap();
                let mut steps = Vec::new();
                while rows.next().unwrap() {
                    steps.push(rows.text(3).into_owned());
                }
                steps.join("; ")
            };
            for sql in [Table::sql_run_order, Table::sql_run_clocks, Table::sql_run_rows]
                .into_iter()
                .chain(is_near.then_some(Table::sql_run_rows_near as fn(&Table) -> String))
            {
                let plan = plan_of(sql(&table));
                assert!(plan.starts_with("SEARCH") && !plan.contains("SCAN") && !plan.contains("TEMP"), "{plan}");
            }
            if is_near {
                let plan = plan_of(table.sql_run_rows_near());
                assert!(plan.contains("b USING INTEGER PRIMARY KEY (rowid=?)"), "{plan}");
            }
            is_near
        };
        for is_analysed in [false, true] {
            assert!(check("CREATE TABLE a (id TEXT PRIMARY KEY NOT NULL, x)", "a", is_analysed));
            assert!(check("CREATE TABLE b (id TEXT PRIMARY KEY NOT NULL, rowid, oid)", "b", is_analysed));
            assert!(check("CREATE TABLE c (id NOT NULL, x DEFAULT 1 NOT NULL, PRIMARY KEY (x, id))", "c", is_analysed));
            assert!(check("CREATE TABLE g (id TEXT PRIMARY KEY NOT NULL, x, rowid AS (x))", "g", is_analysed));
            assert!(!check("CREATE TABLE d (id INTEGER PRIMARY KEY NOT NULL, x)", "d", is_analysed));
            assert!(!check("CREATE TABLE e (id TEXT PRIMARY KEY NOT NULL, x) WITHOUT ROWID", "e", is_analysed));
            assert!(!check("CREATE TABLE f (id TEXT PRIMARY KEY NOT NULL, rowid, oid, _ROWID_)", "f", is_analysed));
        }
    }
}
