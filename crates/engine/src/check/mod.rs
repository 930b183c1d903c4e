//! What is inconsistent in a database, as a list of findings: `crsql_check()` and [`Engine::check`](crate::Engine::check).
//!
//! CRSqlite fails a whole read for one bad clock row (VT-5); this engine skips it, and says so here (BUG-1, BUG-2, BUG-18).
//!
//! [`layout`] looks at tables, indexes and triggers, once; [`rows`] reads each replicated table and its clocks twice, by
//! statements whose rows become findings one by one. Nothing is collected, so that a million findings need no memory.
//! [`repair`] mends what can be mended without a decision.

mod finding;
mod layout;
pub(crate) mod repair;
mod rows;
pub(crate) mod table;
mod trigger;

use std::sync::Arc;

use crate::core::Core;
use crate::schema::Table;
use crate::statement::Handle;

pub use finding::{Finding, FindingKind, Repair, Severity};
pub use repair::Repaired;
pub(crate) use rows::RowCheck;

/// Finds one thing after the other. Holds no lock: its statements are its own.
pub(crate) struct Checker {
    db: Handle,
    has_litemesh_tables: bool,
    /// Tables that are still to be read, the next one last.
    tables: Vec<Arc<Table>>,
    running: Option<RowCheck>,
    /// Found already, the next one last. Bounded: what one table's schema, or one of its rows, can have.
    found: Vec<Finding>,
}

impl Checker {
    /// Looks at the layout, and gets ready to read the tables; at this one only, if it is named.
    pub(crate) fn new(core: &mut Core, only_table: Option<&str>) -> rusqlite::Result<Self> {
        core.refresh()?;
        let mut checker = Self {
            db: core.db,
            has_litemesh_tables: core.has_litemesh_tables,
            tables: Vec::new(),
            running: None,
            found: Vec::new(),
        };
        if !core.has_crsql_tables {
            return Ok(checker);
        }
        let layout = layout::check(core)?;
        let is_wanted = |table: &str| only_table.is_none_or(|only| only == table);
        checker.found = layout.findings;
        checker.found.retain(|finding| finding.table.as_ref().is_none_or(|table| is_wanted(table)));
        if only_table.is_some() {
            checker.found.retain(|finding| finding.table.is_some());
        }
        checker.found.reverse();
        checker.tables = layout.readable;
        checker.tables.retain(|table| is_wanted(&table.name));
        checker.tables.reverse();
        Ok(checker)
    }

    pub(crate) fn next(&mut self) -> rusqlite::Result<Option<Finding>> {
        loop {
            if let Some(finding) = self.found.pop() {
                return Ok(Some(finding));
            }
            if let Some(running) = &mut self.running {
                if running.step(&mut self.found)? {
                    self.found.reverse();
                    continue;
                }
                self.running = None;
            }
            let Some(table) = self.tables.pop() else { return Ok(None) };
            self.running = Some(RowCheck::new(self.db, table, self.has_litemesh_tables));
        }
    }
}
