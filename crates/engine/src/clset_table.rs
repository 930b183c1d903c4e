//! The virtual table module `clset` (`crsqlite-compat.md` 11.2): `CREATE VIRTUAL TABLE t_schema USING clset(…)` makes the
//! replicated table `t` of these columns, and dropping the one drops the other.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

use rusqlite::vtab::{
    Context, CreateVTab, Filters, IndexInfo, Module, VTab, VTabConnection, VTabCursor, VTabKind, sqlite3_vtab,
    sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Result, ffi};

use crate::core::{Shared, module_error};
use crate::error::to_sql;
use crate::replicate;
use crate::sql::quote;
use crate::statement::Handle;
use crate::virtual_table::guard;

/// UV-4: nothing to be selected, and nothing to be written. The columns are reserved.
const NAME: &CStr = c"clset";

const SCHEMA: &CStr = c"CREATE TABLE clset (alteration TEXT HIDDEN, schema TEXT HIDDEN)";

const NAME_SUFFIX: &str = "_schema";

/// Without the state of an engine the tables are ordinary ones: a scratch database.
pub(crate) fn register(connection: &Connection, shared: Option<&Arc<Shared>>) -> Result<()> {
    const MODULE: Module<'static, ClsetTable> = module();
    connection.create_module(NAME, &MODULE, shared.cloned())
}

/// Renamed, the definition would stand for a table that it did not make, and dropping it would drop that. SQLite renames
/// whatever has nothing to say to it.
const fn module() -> Module<'static, ClsetTable> {
    // SAFETY: a `Module` is a `sqlite3_module` and nothing else (`repr(transparent)`).
    unsafe {
        let mut module: ffi::sqlite3_module = std::mem::transmute(Module::<ClsetTable>::read_only_module());
        module.xRename = Some(refuse_rename);
        std::mem::transmute::<ffi::sqlite3_module, Module<'static, ClsetTable>>(module)
    }
}

unsafe extern "C" fn refuse_rename(table: *mut sqlite3_vtab, _: *const c_char) -> c_int {
    const MESSAGE: &CStr = c"a clset table cannot be renamed: drop it, or change the table that it made";
    let bytes = MESSAGE.to_bytes_with_nul();
    // SAFETY: SQLite passes a table, and frees the text in it, with its own allocator; as many bytes are written as were asked
    // for.
    unsafe {
        let copy = ffi::sqlite3_malloc64(bytes.len() as u64).cast::<c_char>();
        if !copy.is_null() {
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), copy, bytes.len());
            ffi::sqlite3_free((*table).zErrMsg.cast());
            (*table).zErrMsg = copy;
        }
    }
    ffi::SQLITE_ERROR
}

#[repr(C)]
struct ClsetTable {
    base: sqlite3_vtab,
    db: Handle,
    shared: Option<Arc<Shared>>,
    /// The table that this one stands for.
    table: String,
}

impl ClsetTable {
    fn new(db: &mut VTabConnection, shared: Option<&Arc<Shared>>, name: &[u8]) -> Result<Self> {
        let name = std::str::from_utf8(name).map_err(to_sql)?;
        let table = name.len().checked_sub(NAME_SUFFIX.len()).and_then(|at| name.split_at_checked(at));
        let Some((table, _)) = table.filter(|(t, end)| !t.is_empty() && end.eq_ignore_ascii_case(NAME_SUFFIX)) else {
            return Err(module_error(format!(
                "clset: the name must end with `{NAME_SUFFIX}`: CREATE VIRTUAL TABLE foo{NAME_SUFFIX} USING clset (…) \
                 makes the table foo, which holds the rows, and foo{NAME_SUFFIX}, which holds its definition. The name given is \
                 {name}"
            )));
        };
        // SAFETY: SQLite ends the table before it closes the connection.
        let db = unsafe { Handle::new(db.handle()) };
        Ok(Self { base: sqlite3_vtab::default(), db, shared: shared.cloned(), table: table.to_owned() })
    }

    /// What is half made goes with the statement that fails.
    fn make(&self, arguments: &[&[u8]]) -> Result<()> {
        let definition: Vec<_> = arguments.iter().map(|argument| String::from_utf8_lossy(argument)).collect();
        self.db.execute(&format!("CREATE TABLE main.{} ({})", quote(&self.table), definition.join(", ")))?;
        self.shared
            .as_ref()
            .map_or(Ok(()), |shared| replicate::replicate_without_savepoint(shared, &self.table).map_err(to_sql))
    }

    fn unmake(&self) -> Result<()> {
        if let Some(shared) = &self.shared {
            replicate::unreplicate_without_savepoint(shared, &self.table).map_err(to_sql)?;
        }
        self.db.execute(&format!("DROP TABLE IF EXISTS main.{}", quote(&self.table)))
    }
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTab<'_> for ClsetTable {
    type Aux = Arc<Shared>;
    type Cursor = ClsetCursor;

    fn connect(
        db: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        table: &[u8],
        _arguments: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        guard(NAME, || Ok((Cow::Borrowed(SCHEMA), Self::new(db, aux, table)?)))
    }

    fn best_index(&self, _: &mut IndexInfo) -> Result<bool> {
        Ok(true)
    }

    fn open(&mut self) -> Result<Self::Cursor> {
        Ok(ClsetCursor { base: sqlite3_vtab_cursor::default() })
    }
}

impl CreateVTab<'_> for ClsetTable {
    const KIND: VTabKind = VTabKind::Default;

    /// UV-3.
    fn create(
        db: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        database: &[u8],
        table: &[u8],
        arguments: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        guard(NAME, || {
            let made = Self::new(db, aux, table)?;
            if !database.eq_ignore_ascii_case(b"main") {
                return Err(module_error("clset: only tables of the main database can replicate"));
            }
            made.make(arguments)?;
            Ok((Cow::Borrowed(SCHEMA), made))
        })
    }

    /// UV-5.
    fn destroy(&self) -> Result<()> {
        guard(NAME, || self.unmake())
    }
}

/// A cursor over nothing.
#[repr(C)]
struct ClsetCursor {
    base: sqlite3_vtab_cursor,
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTabCursor for ClsetCursor {
    fn filter(&mut self, _: c_int, _: Option<&str>, _: &Filters<'_>) -> Result<()> {
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        Ok(())
    }

    fn eof(&self) -> bool {
        true
    }

    fn column(&self, _: &mut Context, _: c_int) -> Result<()> {
        Ok(())
    }

    fn rowid(&self) -> Result<i64> {
        Ok(0)
    }
}
