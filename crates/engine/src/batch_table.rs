//! `litemesh_batch`: values that lie in our memory, as a table that a statement can read from.
//!
//! A statement for each row costs as much for beginning and ending as for its work. So what is to be looked up or written for
//! many rows is put into a [`Batch`], and one statement goes through it: `SELECT … FROM litemesh_batch(?1)`. The batch is
//! bound as a pointer (<https://sqlite.org/bindptr.html>), which plain SQL cannot make: for everybody else the table is empty.
//!
//! An UPDATE that walks over rows which lie beside each other cannot join with a batch without SQLite's making a copy of it
//! first. It asks two functions instead: `litemesh_batch_at` whether the row is one of the batch, `litemesh_batch_value` for its
//! values.
//!
//! Nothing is copied. SQLite gets the addresses of the bytes, and the batch outlives the statement's run
//! ([`Statement::query_batch`](crate::statement::Statement::query_batch) borrows it).

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use crate::statement::{Bind, Handle, Passed, passed, value_of};

/// Most values in a row of a batch. Wider rows are written one by one.
pub(crate) const WIDTH_MAX: usize = 64;

/// The column after the pointer.
const GUESS: usize = WIDTH_MAX + 1;

/// The table, and pointers to batches: SQLite hands a pointer only to who knows its name.
const NAME: &CStr = c"litemesh_batch";

// SAFETY: nothing else of ours has this name, whatever a batch borrows.
unsafe impl Passed for Batch<'_> {
    const NAME: &'static CStr = NAME;
}

/// Rows of equal width.
pub(crate) struct Batch<'a> {
    width: usize,
    values: Vec<Bind<'a>>,
    /// The row at which the running statement stands. Here, where asking for it costs nothing.
    row: Cell<usize>,
    /// See [`guess`](Self::guess).
    guessed: Cell<Option<i64>>,
    /// See [`has_met`](Self::has_met): a bit for each row.
    met: Cell<u64>,
}

/// Most rows of a batch that is asked with [`has_met`](Batch::has_met).
pub(crate) const MET_MAX: usize = 64;

impl<'a> Batch<'a> {
    /// For rows of this many values, at most [`WIDTH_MAX`].
    pub(crate) fn new(width: usize, rows: usize) -> Self {
        debug_assert!((1..=WIDTH_MAX).contains(&width), "a batch of width {width}");
        let (row, guessed, met) = (Cell::new(0), Cell::new(None), Cell::new(0));
        Self { width, values: Vec::with_capacity(width * rows), row, guessed, met }
    }

    /// Adds a row, which must have the width.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = Bind<'a>>) {
        self.values.extend(row);
        debug_assert!(self.values.len().is_multiple_of(self.width), "a row of another width");
    }

    /// Which row the statement made its last row from. It must go through the batch in the outermost loop, and sort nothing.
    pub(crate) fn row(&self) -> usize {
        self.row.get()
    }

    /// What `guess` is in the rows that follow, until something else is told. Who steps through the result can say there what
    /// it learnt from the row before.
    pub(crate) fn guess(&self, value: Option<i64>) {
        self.guessed.set(value);
    }

    /// Whether the statement came to this row, of the first [`MET_MAX`], where it asked for it with `litemesh_batch_at`.
    pub(crate) fn has_met(&self, row: usize) -> bool {
        row < MET_MAX && self.met.get() & 1 << row != 0
    }

    fn len(&self) -> usize {
        self.values.len() / self.width
    }

    fn row_values(&self, row: usize) -> &[Bind<'a>] {
        self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default()
    }

    /// Moves to the row that begins with this number. The rows must be in the order of these.
    fn move_to(&self, place: i64) -> bool {
        let place_of = |row: usize| match self.values.get(row * self.width) {
            Some(Bind::Integer(place)) => *place,
            _ => i64::MAX,
        };
        let is_there = |row: usize| row < self.len() && place_of(row) == place;
        let at = self.row.get();
        // Mostly it is the next one, or for its values the same.
        let found = [at, at + 1].into_iter().find(|row| is_there(*row)).or_else(|| {
            let (mut low, mut high) = (0, self.len());
            while low < high {
                let middle = low.midpoint(high);
                if place_of(middle) < place { low = middle + 1 } else { high = middle }
            }
            Some(low).filter(|row| is_there(*row))
        });
        if let Some(row) = found {
            self.row.set(row);
        }
        found.is_some()
    }
}

#[repr(C)]
struct Cursor {
    base: ffi::sqlite3_vtab_cursor,
    batch: *const Batch<'static>,
}

pub(crate) fn register(db: Handle) -> rusqlite::Result<()> {
    // SAFETY: the connection is open, the name terminated and the module static; there is nothing to drop.
    let code = unsafe {
        ffi::sqlite3_create_module_v2(db.as_ptr(), NAME.as_ptr(), &raw const MODULE, std::ptr::null_mut(), None)
    };
    if code != ffi::SQLITE_OK {
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
    }
    add_function(db, c"litemesh_batch_at", at)?;
    add_function(db, c"litemesh_batch_value", value)
}

pub(crate) type Called = unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int, *mut *mut ffi::sqlite3_value);

/// Adds a function that is not for triggers and views: nobody else has what it is to be called with.
pub(crate) fn add_function(db: Handle, name: &CStr, function: Called) -> rusqlite::Result<()> {
    let flags = ffi::SQLITE_UTF8 | ffi::SQLITE_DIRECTONLY;
    let state = std::ptr::null_mut();
    // SAFETY: the connection is open and the name terminated; there is no state.
    let code = unsafe {
        ffi::sqlite3_create_function_v2(db.as_ptr(), name.as_ptr(), -1, flags, state, Some(function), None, None, None)
    };
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)) }
}

/// The batch that is the first argument, the number that is the second one, and the other arguments.
///
/// # Safety
///
/// The arguments are those of a call of SQLite's.
unsafe fn asked<'a>(
    argc: c_int,
    argv: *mut *mut ffi::sqlite3_value,
) -> Option<(&'a Batch<'static>, i64, &'a [*mut ffi::sqlite3_value])> {
    let count = usize::try_from(argc).ok().filter(|count| *count >= 2)?;
    // SAFETY: as many values as SQLite says. Pointers of this name are batches that live until the statement is reset.
    unsafe {
        let values = std::slice::from_raw_parts(argv, count);
        let batch = passed::<Batch<'static>>(values[0])?;
        match value_of(values[1]) {
            ValueRef::Integer(place) => Some((batch, place, &values[2..])),
            _ => None,
        }
    }
}

/// `litemesh_batch_at(batch, place, values…)`: whether there is a row of this place whose next values are these.
///
/// # Safety
///
/// SQLite calls it with its context and as many values as it says.
unsafe extern "C" fn at(context: *mut ffi::sqlite3_context, argc: c_int, argv: *mut *mut ffi::sqlite3_value) {
    // SAFETY: the caller's.
    let Some((batch, place, values)) = (unsafe { asked(argc, argv) }) else { return };
    let is_there = batch.move_to(place) && {
        let held = &batch.row_values(batch.row())[1..];
        // SAFETY: the values live as long as the call.
        held.len() >= values.len() && values.iter().zip(held).all(|(value, held)| held.is(unsafe { value_of(*value) }))
    };
    if is_there && batch.row() < MET_MAX {
        batch.met.set(batch.met.get() | 1 << batch.row());
    }
    // SAFETY: SQLite's context.
    unsafe { ffi::sqlite3_result_int(context, c_int::from(is_there)) };
}

/// `litemesh_batch_value(batch, place, n)`: the value `n` of the row of this place.
///
/// # Safety
///
/// SQLite calls it with its context and as many values as it says.
unsafe extern "C" fn value(context: *mut ffi::sqlite3_context, argc: c_int, argv: *mut *mut ffi::sqlite3_value) {
    // SAFETY: the caller's; the values live as long as the call, and the bytes that are given as long as the batch.
    unsafe {
        let Some((batch, place, [n])) = asked(argc, argv) else { return };
        let ValueRef::Integer(n) = value_of(*n) else { return };
        if batch.move_to(place) {
            let value = usize::try_from(n).ok().and_then(|n| batch.row_values(batch.row()).get(n).copied());
            give(context, value);
        }
    }
}

/// # Safety
///
/// `context` is that of a running call, and the bytes live until the statement is reset.
unsafe fn give(context: *mut ffi::sqlite3_context, value: Option<Bind<'_>>) {
    // SAFETY: the caller's.
    unsafe {
        match value {
            None | Some(Bind::Null) => {}
            Some(Bind::Integer(value)) => ffi::sqlite3_result_int64(context, value),
            Some(Bind::Real(value)) => ffi::sqlite3_result_double(context, value),
            Some(Bind::Text(bytes)) => ffi::sqlite3_result_text64(
                context,
                crate::statement::non_null(bytes).cast(),
                bytes.len() as u64,
                ffi::SQLITE_STATIC(),
                // The constant's type differs between bindings; it is 1.
                ffi::SQLITE_UTF8 as u8,
            ),
            Some(Bind::Blob(bytes)) => ffi::sqlite3_result_blob64(
                context,
                crate::statement::non_null(bytes).cast(),
                bytes.len() as u64,
                ffi::SQLITE_STATIC(),
            ),
        }
    }
}

// No `xCreate`: the table exists by its name alone.
static MODULE: ffi::sqlite3_module = ffi::sqlite3_module {
    iVersion: 1,
    xCreate: None,
    xConnect: Some(connect),
    xBestIndex: Some(best_index),
    xDisconnect: Some(disconnect),
    xDestroy: None,
    xOpen: Some(open),
    xClose: Some(close),
    xFilter: Some(filter),
    xNext: Some(next),
    xEof: Some(eof),
    xColumn: Some(column),
    xRowid: Some(rowid),
    xUpdate: None,
    xBegin: None,
    xSync: None,
    xCommit: None,
    xRollback: None,
    xFindFunction: None,
    xRename: None,
    xSavepoint: None,
    xRelease: None,
    xRollbackTo: None,
    xShadowName: None,
    xIntegrity: None,
};

/// Declares `c0`, `c1`, …, the hidden column that takes the pointer, and `guess`.
///
/// # Safety
///
/// SQLite calls it with an open connection and a place for the result.
unsafe extern "C" fn connect(
    db: *mut ffi::sqlite3,
    _aux: *mut c_void,
    _argc: c_int,
    _argv: *const *const c_char,
    out: *mut *mut ffi::sqlite3_vtab,
    _error: *mut *mut c_char,
) -> c_int {
    let columns: String = (0..WIDTH_MAX).map(|n| format!("c{n}, ")).collect();
    let Ok(declaration) = CString::new(format!("CREATE TABLE x({columns}batch HIDDEN, guess HIDDEN)")) else {
        return ffi::SQLITE_INTERNAL;
    };
    // SAFETY: SQLite passes its connection and a place for the result; the text is terminated.
    unsafe {
        let code = ffi::sqlite3_declare_vtab(db, declaration.as_ptr());
        if code != ffi::SQLITE_OK {
            return code;
        }
        let table = ffi::sqlite3_vtab { pModule: std::ptr::null(), nRef: 0, zErrMsg: std::ptr::null_mut() };
        *out = Box::into_raw(Box::new(table));
    }
    ffi::SQLITE_OK
}

/// # Safety
///
/// SQLite calls it with a table that [`connect`] made, as the last call on it.
unsafe extern "C" fn disconnect(table: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: made by `connect`, ended here, once.
    drop(unsafe { Box::from_raw(table) });
    ffi::SQLITE_OK
}

/// There is one plan: through the whole batch that is given.
///
/// # Safety
///
/// SQLite calls it with its description of the query: as many constraints, and places for answers, as it says.
unsafe extern "C" fn best_index(_: *mut ffi::sqlite3_vtab, info: *mut ffi::sqlite3_index_info) -> c_int {
    // SAFETY: the caller's.
    unsafe {
        let info = &mut *info;
        for index in 0..usize::try_from(info.nConstraint).unwrap_or_default() {
            let constraint = &*info.aConstraint.add(index);
            let is_batch = usize::try_from(constraint.iColumn) == Ok(WIDTH_MAX)
                && c_int::from(constraint.op) == ffi::SQLITE_INDEX_CONSTRAINT_EQ as c_int;
            if is_batch && constraint.usable != 0 {
                let usage = &mut *info.aConstraintUsage.add(index);
                (usage.argvIndex, usage.omit) = (1, 1);
            }
        }
        (info.estimatedCost, info.estimatedRows) = (100.0, 100);
    }
    ffi::SQLITE_OK
}

/// # Safety
///
/// SQLite calls it with a place for the result.
unsafe extern "C" fn open(_: *mut ffi::sqlite3_vtab, out: *mut *mut ffi::sqlite3_vtab_cursor) -> c_int {
    let base = ffi::sqlite3_vtab_cursor { pVtab: std::ptr::null_mut() };
    let cursor = Box::new(Cursor { base, batch: std::ptr::null() });
    // SAFETY: SQLite passes a place for the result; the base is the first field of a `repr(C)` struct.
    unsafe { *out = Box::into_raw(cursor).cast() };
    ffi::SQLITE_OK
}

/// # Safety
///
/// SQLite calls it with a cursor that [`open`] made, as the last call on it.
unsafe extern "C" fn close(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: made by `open`, ended here, once.
    drop(unsafe { Box::from_raw(cursor.cast::<Cursor>()) });
    ffi::SQLITE_OK
}

/// # Safety
///
/// SQLite calls it with a cursor of ours and as many values as it says.
unsafe extern "C" fn filter(
    cursor: *mut ffi::sqlite3_vtab_cursor,
    _: c_int,
    _: *const c_char,
    argc: c_int,
    argv: *mut *mut ffi::sqlite3_value,
) -> c_int {
    // SAFETY: the caller's. The batch lives until the statement is reset.
    unsafe {
        let cursor = &mut *cursor.cast::<Cursor>();
        let batch = if argc == 1 { passed::<Batch<'static>>(*argv) } else { None };
        cursor.batch = batch.map_or(std::ptr::null(), std::ptr::from_ref);
        if let Some(batch) = cursor.batch.as_ref() {
            batch.row.set(0);
        }
    }
    ffi::SQLITE_OK
}

/// # Safety
///
/// `cursor` is one of ours, and its batch, if it has one, is alive.
unsafe fn batch_of<'a>(cursor: *mut ffi::sqlite3_vtab_cursor) -> Option<&'a Batch<'static>> {
    // SAFETY: the caller's; the base is the first field of a `repr(C)` struct.
    unsafe { (*cursor.cast::<Cursor>()).batch.as_ref() }
}

/// # Safety
///
/// SQLite calls it with a cursor of ours, after [`filter`].
unsafe extern "C" fn next(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: the statement runs, so its batch is alive.
    if let Some(batch) = unsafe { batch_of(cursor) } {
        batch.row.set(batch.row.get() + 1);
    }
    ffi::SQLITE_OK
}

/// # Safety
///
/// As for [`next`].
unsafe extern "C" fn eof(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: as for `next`.
    let batch = unsafe { batch_of(cursor) };
    c_int::from(batch.is_none_or(|batch| batch.row() >= batch.len()))
}

/// # Safety
///
/// As for [`next`], with a place for the result.
unsafe extern "C" fn column(
    cursor: *mut ffi::sqlite3_vtab_cursor,
    context: *mut ffi::sqlite3_context,
    column: c_int,
) -> c_int {
    // SAFETY: as for `next`.
    let batch = unsafe { batch_of(cursor) };
    let column = usize::try_from(column).unwrap_or(WIDTH_MAX);
    // Columns past the width are NULL, as is the pointer.
    let value = batch.and_then(|batch| match column {
        GUESS => batch.guessed.get().map(Bind::Integer),
        _ if column < batch.width => batch.values.get(batch.row() * batch.width + column).copied(),
        _ => None,
    });
    // SAFETY: SQLite passes its context, and the bytes live as long as the batch.
    unsafe { give(context, value) };
    ffi::SQLITE_OK
}

/// # Safety
///
/// As for [`next`], with a place for the result.
unsafe extern "C" fn rowid(cursor: *mut ffi::sqlite3_vtab_cursor, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: as for `next`; SQLite passes a place for the result.
    unsafe { *out = batch_of(cursor).map_or(0, |batch| i64::try_from(batch.row()).unwrap_or(i64::MAX)) };
    ffi::SQLITE_OK
}
