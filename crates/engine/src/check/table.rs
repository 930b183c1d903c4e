//! `crsql_check()`: the findings as a table-valued function, one row each.

use std::borrow::Cow;
use std::ffi::{CStr, c_int};
use std::sync::Arc;

use litemesh_proto::PackedKey;
use rusqlite::types::ValueRef;
use rusqlite::vtab::{
    Context, Filters, IndexConstraintOp, IndexInfo, Module, VTab, VTabConnection, VTabCursor, sqlite3_vtab,
    sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Result};

use super::{Checker, Finding};
use crate::core::{Shared, module_error};
use crate::virtual_table::guard;

const NAME: &CStr = c"crsql_check";

const SCHEMA: &CStr = c"CREATE TABLE crsql_check (severity TEXT NOT NULL, \"table\" TEXT, kind TEXT NOT NULL,
    rule TEXT NOT NULL, pk BLOB, name TEXT, detail TEXT NOT NULL, repair TEXT NOT NULL)";

/// The column `table`, by which the check can be narrowed down.
const TABLE: c_int = 1;

pub(crate) fn register(connection: &Connection, shared: &Arc<Shared>) -> Result<()> {
    const MODULE: Module<'static, CheckTable> = Module::eponymous_only_module();
    connection.create_module(NAME, &MODULE, Some(shared.clone()))
}

#[repr(C)]
struct CheckTable {
    base: sqlite3_vtab,
    shared: Arc<Shared>,
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTab<'_> for CheckTable {
    type Aux = Arc<Shared>;
    type Cursor = CheckCursor;

    fn connect(
        _: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        _table: &[u8],
        _arguments: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        let shared = aux.cloned().ok_or_else(|| module_error("crsql_check was registered without its state"))?;
        Ok((Cow::Borrowed(SCHEMA), Self { base: sqlite3_vtab::default(), shared }))
    }

    /// Pushes down equality of `table`; SQLite checks it again.
    fn best_index(&self, info: &mut IndexInfo) -> Result<bool> {
        let mut has_table = false;
        for (constraint, mut usage) in info.constraints_and_usages() {
            let is_equal = constraint.operator() == IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ;
            if is_equal && constraint.column() == TABLE && constraint.is_usable() && !has_table {
                has_table = true;
                usage.set_argv_index(1);
            }
        }
        info.set_idx_num(c_int::from(has_table));
        info.set_estimated_cost(if has_table { 1e6 } else { 1e8 });
        Ok(true)
    }

    fn open(&mut self) -> Result<Self::Cursor> {
        Ok(CheckCursor {
            base: sqlite3_vtab_cursor::default(),
            shared: self.shared.clone(),
            checker: None,
            current: None,
            rowid: 0,
        })
    }
}

#[repr(C)]
struct CheckCursor {
    base: sqlite3_vtab_cursor,
    shared: Arc<Shared>,
    checker: Option<Checker>,
    current: Option<Finding>,
    rowid: i64,
}

impl CheckCursor {
    fn step(&mut self) -> Result<()> {
        self.current = self.checker.as_mut().map(Checker::next).transpose()?.flatten();
        self.rowid += 1;
        Ok(())
    }
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTabCursor for CheckCursor {
    fn filter(&mut self, has_table: c_int, _: Option<&str>, arguments: &Filters<'_>) -> Result<()> {
        guard(NAME, || {
            let only = arguments.iter().next().filter(|_| has_table != 0);
            let only = only.map(|value| match value {
                ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                _ => String::new(),
            });
            self.rowid = 0;
            // The lock is given back before the first step: the statements of the check are its own.
            self.checker = Some(Checker::new(&mut *self.shared.lock()?, only.as_deref())?);
            self.step()
        })
    }

    fn next(&mut self) -> Result<()> {
        guard(NAME, || self.step())
    }

    fn eof(&self) -> bool {
        self.current.is_none()
    }

    fn column(&self, context: &mut Context, column: c_int) -> Result<()> {
        let Some(Finding { kind, table, key, name, detail }) = &self.current else { return Ok(()) };
        match column {
            0 => context.set_result(kind.severity().as_str()),
            TABLE => context.set_result(table.as_deref()),
            2 => context.set_result(kind.as_str()),
            3 => context.set_result(kind.rule()),
            4 => context.set_result(key.as_ref().map(PackedKey::as_bytes)),
            5 => context.set_result(name.as_deref()),
            6 => context.set_result(detail.as_str()),
            _ => context.set_result(kind.repair().text()),
        }
    }

    fn rowid(&self) -> Result<i64> {
        Ok(self.rowid)
    }
}
