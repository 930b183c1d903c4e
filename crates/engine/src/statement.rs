//! [`Statement`]: a prepared statement that outlives the call that made it.
//!
//! The engine runs inside SQL functions and virtual tables, where there is no `rusqlite::Connection` to borrow from, and it
//! must not prepare anything twice: so it owns its statements. This is the one place that calls SQLite's statement API.
//!
//! Safety of the whole file rests on two rules. A statement is finalized before its connection closes (`transaction.rs` sees
//! to that), and it is used by one thread at a time (it lives behind the mutex of [`crate::core::Shared`], or in a cursor that
//! SQLite itself never shares).

use std::cmp::Ordering;
use std::ffi::{CStr, CString, c_int};
use std::ptr;

use litemesh_proto::{KeyValue, Value};
use rusqlite::ffi;
use rusqlite::types::ValueRef;
use smallvec::SmallVec;

use crate::batch_table::Batch;

/// A connection as SQLite knows it. Copied freely; valid as long as the engine's state, which SQLite drops on close.
#[derive(Clone, Copy)]
pub(crate) struct Handle(*mut ffi::sqlite3);

// SAFETY: SQLite is built in serialized mode, and the handle moves between threads only together with its connection.
unsafe impl Send for Handle {}

impl Handle {
    /// # Safety
    ///
    /// `db` must be an open connection that outlives every use of the handle.
    pub(crate) unsafe fn new(db: *mut ffi::sqlite3) -> Self {
        Self(db)
    }

    pub(crate) fn as_ptr(self) -> *mut ffi::sqlite3 {
        self.0
    }

    pub(crate) fn prepare(self, sql: &str) -> rusqlite::Result<Statement> {
        let mut raw = ptr::null_mut();
        let bytes = c_int::try_from(sql.len()).map_err(|_| self.error(ffi::SQLITE_TOOBIG))?;
        // SAFETY: the connection is open, and the text is passed with its length.
        let code = unsafe {
            ffi::sqlite3_prepare_v3(
                self.0,
                sql.as_ptr().cast(),
                bytes,
                ffi::SQLITE_PREPARE_PERSISTENT,
                &raw mut raw,
                ptr::null_mut(),
            )
        };
        if code != ffi::SQLITE_OK || raw.is_null() {
            return Err(self.error(code));
        }
        Ok(Statement { raw, db: self })
    }

    /// Prepares, runs and forgets.
    pub(crate) fn execute(self, sql: &str) -> rusqlite::Result<()> {
        self.prepare(sql)?.run(&[])
    }

    /// Runs all statements of a text, ignoring rows.
    pub(crate) fn run_script(self, sql: &str) -> rusqlite::Result<()> {
        let sql = CString::new(sql)?;
        // SAFETY: the connection is open and the text terminated; nothing is called back.
        let code = unsafe { ffi::sqlite3_exec(self.0, sql.as_ptr(), None, ptr::null_mut(), ptr::null_mut()) };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.error(code)) }
    }

    /// Runs a query of one row and one integer and forgets it. No row, or NULL, is `None`.
    pub(crate) fn query_integer(self, sql: &str, binds: &[Bind<'_>]) -> rusqlite::Result<Option<i64>> {
        self.prepare(sql)?.query_integer(binds)
    }

    /// How many rows the last statement changed.
    pub(crate) fn changes(self) -> i64 {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_changes64(self.0) }
    }

    /// How many rows all statements so far changed, those inside of triggers included.
    pub(crate) fn total_changes(self) -> i64 {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_total_changes64(self.0) }
    }

    /// Whether a transaction was begun that is not ended, also not by SQLite itself.
    pub(crate) fn is_in_transaction(self) -> bool {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_get_autocommit(self.0) == 0 }
    }

    /// Whether a statement of the connection has begun and is not over.
    pub(crate) fn is_running_anything(self) -> bool {
        let mut statement = ptr::null_mut();
        loop {
            // SAFETY: the connection is open, and the statement null or the one that came before.
            statement = unsafe { ffi::sqlite3_next_stmt(self.0, statement) };
            if statement.is_null() {
                return false;
            }
            // SAFETY: SQLite just gave it.
            if unsafe { ffi::sqlite3_stmt_busy(statement) } != 0 {
                return true;
            }
        }
    }

    /// Whether triggers fire, as far as the connection's configuration says.
    pub(crate) fn has_triggers_on(self) -> bool {
        self.configure_triggers(-1) != 0
    }

    /// Turns all triggers but temporary ones on or off; `false` where that failed.
    pub(crate) fn turn_triggers(self, on: bool) -> bool {
        self.configure_triggers(c_int::from(on)) == c_int::from(on)
    }

    fn configure_triggers(self, set: c_int) -> c_int {
        let mut now = -1;
        let option = ffi::SQLITE_DBCONFIG_ENABLE_TRIGGER as c_int;
        // SAFETY: the connection is open, and these are the arguments that the option takes.
        unsafe { ffi::sqlite3_db_config(self.0, option, set, &raw mut now) };
        now
    }

    /// Most columns of a table, and of a result.
    pub(crate) fn columns_max(self) -> i64 {
        // SAFETY: the connection is open; -1 leaves the limit as it is.
        i64::from(unsafe { ffi::sqlite3_limit(self.0, ffi::SQLITE_LIMIT_COLUMN, -1) })
    }

    /// Whether this is a name of the rowid of a table of the main database. For the name of a column, it has to be one that is
    /// not of the primary key.
    pub(crate) fn is_rowid(self, table: &str, name: &str) -> bool {
        let (Ok(table), Ok(name)) = (CString::new(table), CString::new(name)) else { return false };
        let text = ptr::null_mut();
        let flag = ptr::null_mut();
        let mut is_key = 0;
        // SAFETY: the connection is open and the names terminated; null asks for nothing.
        let code = unsafe {
            ffi::sqlite3_table_column_metadata(
                self.0,
                c"main".as_ptr(),
                table.as_ptr(),
                name.as_ptr(),
                text,
                text,
                flag,
                &raw mut is_key,
                flag,
            )
        };
        // SQLite tells of a rowid that it is the primary key; a generated column of that name is not.
        code == ffi::SQLITE_OK && is_key != 0
    }

    pub(crate) fn last_insert_rowid(self) -> i64 {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_last_insert_rowid(self.0) }
    }

    pub(crate) fn set_last_insert_rowid(self, rowid: i64) {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_set_last_insert_rowid(self.0, rowid) };
    }

    fn error(self, code: c_int) -> rusqlite::Error {
        // SAFETY: the connection is open; SQLite returns a terminated string that stays valid until its next call.
        let (code, message) = unsafe {
            let extended = ffi::sqlite3_extended_errcode(self.0);
            let code = if extended & 0xff == code & 0xff { extended } else { code };
            (code, CStr::from_ptr(ffi::sqlite3_errmsg(self.0)).to_string_lossy().into_owned())
        };
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message))
    }
}

/// A value to bind, borrowed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bind<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'a [u8]),
    Blob(&'a [u8]),
}

/// Parameters of one statement, on the stack where they are few.
pub(crate) type Binds<'a> = SmallVec<[Bind<'a>; 8]>;

impl<'a> From<&'a Value> for Bind<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Integer(value) => Self::Integer(*value),
            Value::Real(value) => Self::Real(*value),
            Value::Text(bytes) => Self::Text(bytes),
            Value::Blob(bytes) => Self::Blob(bytes),
        }
    }
}

impl<'a> From<KeyValue<'a>> for Bind<'a> {
    fn from(value: KeyValue<'a>) -> Self {
        match value {
            KeyValue::Null => Self::Null,
            KeyValue::Integer(value) => Self::Integer(value),
            KeyValue::Real(value) => Self::Real(value),
            KeyValue::Text(bytes) => Self::Text(bytes),
            KeyValue::Blob(bytes) => Self::Blob(bytes),
        }
    }
}

impl<'a> From<ValueRef<'a>> for Bind<'a> {
    fn from(value: ValueRef<'a>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(value) => Self::Integer(value),
            ValueRef::Real(value) => Self::Real(value),
            ValueRef::Text(bytes) => Self::Text(bytes),
            ValueRef::Blob(bytes) => Self::Blob(bytes),
        }
    }
}

impl Bind<'_> {
    /// Whether it is this value, of the same type and bit by bit.
    pub(crate) fn is(&self, value: ValueRef<'_>) -> bool {
        match (self, value) {
            (Self::Null, ValueRef::Null) => true,
            (Self::Integer(a), ValueRef::Integer(b)) => *a == b,
            (Self::Real(a), ValueRef::Real(b)) => a.to_bits() == b.to_bits(),
            (Self::Text(a), ValueRef::Text(b)) | (Self::Blob(a), ValueRef::Blob(b)) => **a == *b,
            _ => false,
        }
    }
}

impl From<i64> for Bind<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl<'a> From<&'a str> for Bind<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.as_bytes())
    }
}

/// What a statement can pass to functions and tables of ours as a pointer (<https://sqlite.org/bindptr.html>), which plain SQL cannot
/// make.
///
/// # Safety
///
/// No other type has this name.
pub(crate) unsafe trait Passed {
    const NAME: &'static CStr;
}

/// What is passed, to who is called with it; `None` of anything else.
///
/// # Safety
///
/// `value` is an argument of a running call, or of a table's `xFilter`. What it gives lives until the statement is reset.
pub(crate) unsafe fn passed<'a, P: Passed>(value: *mut ffi::sqlite3_value) -> Option<&'a P> {
    // SAFETY: the caller's. Only `Statement::query_passing` binds pointers of this name, and to nothing else.
    unsafe { ffi::sqlite3_value_pointer(value, P::NAME.as_ptr()).cast::<P>().as_ref() }
}

/// One prepared statement.
pub(crate) struct Statement {
    raw: *mut ffi::sqlite3_stmt,
    db: Handle,
}

// SAFETY: as for `Handle`.
unsafe impl Send for Statement {}
// SAFETY: shared references are used by one thread at a time, the one that holds the engine's mutex or runs the cursor.
unsafe impl Sync for Statement {}

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: the statement was prepared here, is finalized once, and its connection is still open.
        unsafe { ffi::sqlite3_finalize(self.raw) };
    }
}

impl Statement {
    /// Runs to the end, ignoring rows.
    pub(crate) fn run(&self, binds: &[Bind<'_>]) -> rusqlite::Result<()> {
        let rows = self.query(binds)?;
        while rows.next()? {}
        Ok(())
    }

    /// The first column of the first row.
    pub(crate) fn query_integer(&self, binds: &[Bind<'_>]) -> rusqlite::Result<Option<i64>> {
        let rows = self.query(binds)?;
        Ok(if rows.next()? && !rows.is_null(0) { Some(rows.integer(0)) } else { None })
    }

    /// Starts the statement; it is reset when the rows are dropped.
    pub(crate) fn query<'a>(&'a self, binds: &[Bind<'a>]) -> rusqlite::Result<Rows<'a>> {
        let mut rows = self.start();
        for (index, bind) in (1..).zip(binds) {
            // SAFETY: the rows borrow the bytes, and forget them when they are dropped.
            let code = unsafe { self.bind_with(index, *bind, ffi::SQLITE_STATIC()) };
            rows.has_borrowed |= matches!(bind, Bind::Text(_) | Bind::Blob(_));
            if code != ffi::SQLITE_OK {
                return Err(self.db.error(code));
            }
        }
        Ok(rows)
    }

    /// Starts a statement that goes through a batch, which is its first parameter; the others follow.
    pub(crate) fn query_batch<'a>(&'a self, batch: &'a Batch<'a>, binds: &[Bind<'a>]) -> rusqlite::Result<Rows<'a>> {
        self.query_passing(batch, binds)
    }

    /// Starts a statement whose functions and tables get something of ours, which is its first parameter; the others follow.
    pub(crate) fn query_passing<'a, P: Passed>(
        &'a self,
        passed: &'a P,
        binds: &[Bind<'a>],
    ) -> rusqlite::Result<Rows<'a>> {
        // SAFETY: the rows borrow what is passed, and forget it when they are dropped: until then SQLite may hand it out.
        let code = unsafe {
            ffi::sqlite3_bind_pointer(self.raw, 1, ptr::from_ref(passed).cast_mut().cast(), P::NAME.as_ptr(), None)
        };
        let rows = Rows { statement: self, has_borrowed: true };
        if code != ffi::SQLITE_OK {
            return Err(self.db.error(code));
        }
        for (index, bind) in (2..).zip(binds) {
            // SAFETY: as for `query`.
            let code = unsafe { self.bind_with(index, *bind, ffi::SQLITE_STATIC()) };
            if code != ffi::SQLITE_OK {
                return Err(self.db.error(code));
            }
        }
        Ok(rows)
    }

    /// The same, to the end, ignoring rows.
    pub(crate) fn run_batch<'a>(&'a self, batch: &'a Batch<'a>, binds: &[Bind<'a>]) -> rusqlite::Result<()> {
        let rows = self.query_batch(batch, binds)?;
        while rows.next()? {}
        Ok(())
    }

    /// Whether it has given a row and was not reset since.
    pub(crate) fn is_running(&self) -> bool {
        // SAFETY: the statement is not finalized.
        unsafe { ffi::sqlite3_stmt_busy(self.raw) != 0 }
    }

    /// Starts the statement with whatever is bound by [`bind`](Self::bind).
    pub(crate) fn start(&self) -> Rows<'_> {
        Rows { statement: self, has_borrowed: false }
    }

    /// Binds one parameter, counted from 1. The bytes are copied.
    pub(crate) fn bind(&self, index: c_int, value: Bind<'_>) -> rusqlite::Result<()> {
        // SAFETY: SQLITE_TRANSIENT makes SQLite copy the bytes.
        let code = unsafe { self.bind_with(index, value, ffi::SQLITE_TRANSIENT()) };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.db.error(code)) }
    }

    /// # Safety
    ///
    /// With `SQLITE_STATIC` the bytes must live until the parameter is bound again or cleared.
    unsafe fn bind_with(&self, index: c_int, value: Bind<'_>, keep: ffi::sqlite3_destructor_type) -> c_int {
        // SAFETY: the statement is valid, the length is that of the bytes, and how long these live is the caller's.
        unsafe {
            match value {
                Bind::Null => ffi::sqlite3_bind_null(self.raw, index),
                Bind::Integer(value) => ffi::sqlite3_bind_int64(self.raw, index, value),
                Bind::Real(value) => ffi::sqlite3_bind_double(self.raw, index, value),
                Bind::Text(bytes) => ffi::sqlite3_bind_text64(
                    self.raw,
                    index,
                    non_null(bytes).cast(),
                    bytes.len() as u64,
                    keep,
                    // The constant's type differs between bindings; it is 1.
                    ffi::SQLITE_UTF8 as u8,
                ),
                Bind::Blob(bytes) => {
                    ffi::sqlite3_bind_blob64(self.raw, index, non_null(bytes).cast(), bytes.len() as u64, keep)
                }
            }
        }
    }
}

/// An empty slice may be dangling, and a null pointer would bind NULL: SQLite gets the address of a byte instead.
pub(crate) fn non_null(bytes: &[u8]) -> *const u8 {
    if bytes.is_empty() { c"".as_ptr().cast() } else { bytes.as_ptr() }
}

/// A running statement. The current row is read through it; dropping it resets the statement.
pub(crate) struct Rows<'a> {
    statement: &'a Statement,
    /// Whether bytes are bound that live no longer than this.
    has_borrowed: bool,
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        // SAFETY: the statement is valid. The code repeats the error of the last step, which was reported then.
        unsafe { ffi::sqlite3_reset(self.statement.raw) };
        if self.has_borrowed {
            // SAFETY: as above.
            unsafe { ffi::sqlite3_clear_bindings(self.statement.raw) };
        }
    }
}

impl Rows<'_> {
    /// Steps to the next row; `false` at the end.
    pub(crate) fn next(&self) -> rusqlite::Result<bool> {
        #[cfg(test)]
        crate::panics::step();
        // SAFETY: the statement is valid.
        match unsafe { ffi::sqlite3_step(self.statement.raw) } {
            ffi::SQLITE_ROW => Ok(true),
            ffi::SQLITE_DONE => Ok(false),
            code => Err(self.statement.db.error(code)),
        }
    }

    pub(crate) fn integer(&self, column: c_int) -> i64 {
        // SAFETY: a column out of range reads as NULL.
        unsafe { ffi::sqlite3_column_int64(self.statement.raw, column) }
    }

    pub(crate) fn is_null(&self, column: c_int) -> bool {
        // SAFETY: a column out of range reads as NULL.
        unsafe { ffi::sqlite3_column_type(self.statement.raw, column) == ffi::SQLITE_NULL }
    }

    /// The bytes of TEXT or BLOB, valid until the next step.
    pub(crate) fn bytes(&self, column: c_int) -> &[u8] {
        // SAFETY: as for `value_ref`.
        unsafe { bytes_of(ffi::sqlite3_column_value(self.statement.raw, column)) }
    }

    /// TEXT as a string; other bytes are replaced.
    pub(crate) fn text(&self, column: c_int) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.bytes(column))
    }

    /// The value, borrowed until the next step.
    pub(crate) fn value_ref(&self, column: c_int) -> ValueRef<'_> {
        // SAFETY: a column out of range reads as NULL. The value is of this row, and the functions that ask it take no lock:
        // the connection is used by one thread at a time. The bytes live until the next step or reset, and both need `self`,
        // which the result borrows.
        unsafe { value_of(ffi::sqlite3_column_value(self.statement.raw, column)) }
    }

    /// The value, copied.
    pub(crate) fn value(&self, column: c_int) -> Value {
        to_value(self.value_ref(column))
    }
}

/// What a value of SQLite's is.
///
/// # Safety
///
/// As for [`bytes_of`].
pub(crate) unsafe fn value_of<'a>(value: *mut ffi::sqlite3_value) -> ValueRef<'a> {
    // SAFETY: the caller's; nothing is converted, as what is asked for is what the type says.
    unsafe {
        match ffi::sqlite3_value_type(value) {
            ffi::SQLITE_INTEGER => ValueRef::Integer(ffi::sqlite3_value_int64(value)),
            ffi::SQLITE_FLOAT => ValueRef::Real(ffi::sqlite3_value_double(value)),
            ffi::SQLITE_TEXT => ValueRef::Text(bytes_of(value)),
            ffi::SQLITE_BLOB => ValueRef::Blob(bytes_of(value)),
            _ => ValueRef::Null,
        }
    }
}

/// The bytes of TEXT or BLOB, none of anything else.
///
/// # Safety
///
/// `value` must be valid, and neither stepped away nor converted while the bytes are used.
pub(crate) unsafe fn bytes_of<'a>(value: *mut ffi::sqlite3_value) -> &'a [u8] {
    // SAFETY: `_blob` converts no text, so the length fits the address.
    unsafe {
        let start = ffi::sqlite3_value_blob(value);
        let length = ffi::sqlite3_value_bytes(value);
        match usize::try_from(length) {
            Ok(length) if !start.is_null() => std::slice::from_raw_parts(start.cast(), length),
            _ => &[],
        }
    }
}

/// A statement at its row. Not reset when dropped: whoever runs it does that.
pub(crate) fn running(statement: &Statement) -> std::mem::ManuallyDrop<Rows<'_>> {
    std::mem::ManuallyDrop::new(statement.start())
}

/// How an incoming value compares with one that is held: as [`Value::merge_cmp`], without copying.
pub(crate) fn merge_cmp(incoming: &Value, held: ValueRef<'_>) -> Ordering {
    match (incoming, held) {
        (Value::Text(incoming), ValueRef::Text(held)) | (Value::Blob(incoming), ValueRef::Blob(held)) => {
            (**incoming).cmp(held)
        }
        // Of different types: what the held bytes are does not matter.
        (_, ValueRef::Text(_)) => incoming.merge_cmp(&Value::text("")),
        (_, ValueRef::Blob(_)) => incoming.merge_cmp(&Value::blob([])),
        _ => incoming.merge_cmp(&to_value(held)),
    }
}

/// A value of a primary key, to be packed.
pub(crate) fn to_key_value(value: ValueRef<'_>) -> KeyValue<'_> {
    match value {
        ValueRef::Null => KeyValue::Null,
        ValueRef::Integer(value) => KeyValue::Integer(value),
        ValueRef::Real(value) => KeyValue::Real(value),
        ValueRef::Text(bytes) => KeyValue::Text(bytes),
        ValueRef::Blob(bytes) => KeyValue::Blob(bytes),
    }
}

/// The only mapping from SQLite's values to ours.
pub(crate) fn to_value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer(value),
        ValueRef::Real(value) => Value::from(value),
        ValueRef::Text(bytes) => Value::Text(bytes.into()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.into()),
    }
}
