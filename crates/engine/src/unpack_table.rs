//! The table-valued function `crsql_unpack_columns(package)`: the values of a packed key, one row each
//! (`crsqlite-compat.md` 11.1).

use std::borrow::Cow;
use std::ffi::{CStr, c_int};

use litemesh_proto::{PackedKey, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::vtab::{
    Context, CreateVTab, Filters, IndexConstraintOp, IndexInfo, Module, VTab, VTabConnection, VTabCursor, VTabKind,
    sqlite3_vtab, sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Error, Result};

use crate::changes_table::value_ref;
use crate::core::module_error;

const SCHEMA: &CStr = c"CREATE TABLE crsql_unpack_columns (cell ANY, package BLOB HIDDEN)";

const CELL: c_int = 0;
const PACKAGE: c_int = 1;

pub(crate) fn register(connection: &Connection) -> Result<()> {
    const MODULE: Module<'static, UnpackTable> = Module::read_only_module();
    connection.create_module(c"crsql_unpack_columns", &MODULE, None::<()>)
}

#[repr(C)]
struct UnpackTable {
    base: sqlite3_vtab,
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTab<'_> for UnpackTable {
    type Aux = ();
    type Cursor = UnpackCursor;

    fn connect(
        _: &mut VTabConnection,
        _aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        _table: &[u8],
        _arguments: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        Ok((Cow::Borrowed(SCHEMA), Self { base: sqlite3_vtab::default() }))
    }

    /// Takes one equality of `package` and leaves everything else to SQLite (UV-2, the FIX).
    fn best_index(&self, info: &mut IndexInfo) -> Result<bool> {
        let (mut has_package, mut is_named) = (false, false);
        for (constraint, mut usage) in info.constraints_and_usages() {
            let is_equality = constraint.operator() == IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ;
            if constraint.column() != PACKAGE || !is_equality {
                continue;
            }
            is_named = true;
            if constraint.is_usable() && !has_package {
                has_package = true;
                usage.set_argv_index(1);
            }
        }
        // Named, but not known yet in this order of a join: another order must be taken.
        if is_named && !has_package {
            return Ok(false);
        }
        info.set_estimated_cost(1.0);
        info.set_estimated_rows(4);
        Ok(true)
    }

    fn open(&mut self) -> Result<Self::Cursor> {
        Ok(UnpackCursor { base: sqlite3_vtab_cursor::default(), package: Value::Null, cells: Vec::new(), place: 0 })
    }
}

impl CreateVTab<'_> for UnpackTable {
    const KIND: VTabKind = VTabKind::EponymousOnly;
}

#[repr(C)]
struct UnpackCursor {
    base: sqlite3_vtab_cursor,
    package: Value,
    cells: Vec<Value>,
    place: usize,
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTabCursor for UnpackCursor {
    fn filter(&mut self, _: c_int, _: Option<&str>, arguments: &Filters<'_>) -> Result<()> {
        (self.cells, self.place) = (Vec::new(), 0);
        let Some(package) = arguments.iter().next() else {
            return Err(misuse("Zero args passed to filter: give the package, as in crsql_unpack_columns(x'010901')"));
        };
        self.package = crate::statement::to_value(package);
        let bytes = match package {
            // Nothing equals NULL.
            ValueRef::Null => return Ok(()),
            ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes,
            other => return Err(module_error(format!("the package must be a blob, not {}", other.data_type()))),
        };
        self.cells = PackedKey::from_bytes(bytes)
            .unpack()
            .map_err(|error| module_error(format!("failed to unpack columns: {error}")))?;
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.place += 1;
        Ok(())
    }

    fn eof(&self) -> bool {
        self.place >= self.cells.len()
    }

    fn column(&self, context: &mut Context, column: c_int) -> Result<()> {
        let value = match column {
            CELL => self.cells.get(self.place),
            PACKAGE => Some(&self.package),
            _ => None,
        };
        context.set_result(ToSqlOutput::Borrowed(value.map_or(ValueRef::Null, value_ref)))
    }

    fn rowid(&self) -> Result<i64> {
        Ok(i64::try_from(self.place).unwrap_or(i64::MAX))
    }
}

fn misuse(message: &str) -> Error {
    Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISUSE), Some(message.to_owned()))
}
