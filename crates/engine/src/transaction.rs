//! How the engine follows SQLite's transactions without taking the connection's only commit and rollback hooks.
//!
//! Two internal virtual tables, made for their callbacks alone (`crsqlite-compat.md` TX-6; SQLite's own FTS5 does the same):
//!
//! - `litemesh_transaction` is written to once in each transaction that changes a replicated table. SQLite then tells it when
//!   that transaction, or a savepoint inside it, ends. The callbacks only set flags: they run in the middle of SQLite's commit,
//!   while the engine's mutex may be held. The engine reads the flags when it is next used.
//! - `litemesh_statements` is disconnected when the connection closes, before SQLite looks for statements that are still
//!   open. It finalizes ours, so that nobody has to call `crsql_finalize()` (FN-9).

use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rusqlite::ffi;

use crate::core::Shared;
use crate::heal::heal_triggers;
use crate::statement::Handle;

pub(crate) const TRANSACTION_TABLE: &str = "litemesh_transaction";
pub(crate) const STATEMENTS_TABLE: &str = "litemesh_statements";

/// How the last enlisted transaction ended, as far as the engine has not noticed yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Ended {
    No = 0,
    Committed = 1,
    RolledBack = 2,
}

/// Called after each commit that changed a replicated table. Must be quick and must not use the connection.
pub(crate) type Wake = Box<dyn Fn() + Send + Sync>;

/// Stands in the count of savepoints from the end of a step to the next savepoint.
const STEP_ENDED: u32 = 1 << 16;

/// Flags that SQLite's callbacks set.
#[derive(Default)]
pub(crate) struct TransactionFlags {
    is_enlisted: AtomicBool,
    ended: AtomicU8,
    savepoint_rolled_back: AtomicBool,
    /// Whether the running statement noted writes that are not recorded yet.
    has_notes: AtomicBool,
    /// How many savepoints SQLite opened since the schema was looked at or notes were recorded. One that is rolled back counts
    /// twice more: as more than a statement's own.
    savepoints: AtomicU32,
    /// Whether there is an update trigger that knows too few columns (ALT-7).
    wants_triggers: AtomicBool,
    /// `crsql_rows_impacted()` (FN-5). Here, because a failed statement takes back what it counted.
    rows_impacted: AtomicI64,
    /// What it was when each savepoint began, by the savepoint's number.
    rows_impacted_before: Mutex<Vec<i64>>,
    wake: Mutex<Option<Wake>>,
}

impl TransactionFlags {
    pub(crate) fn is_enlisted(&self) -> bool {
        self.is_enlisted.load(Ordering::Acquire)
    }

    pub(crate) fn take_ended(&self) -> Ended {
        match self.ended.swap(Ended::No as u8, Ordering::AcqRel) {
            1 => Ended::Committed,
            2 => Ended::RolledBack,
            _ => Ended::No,
        }
    }

    pub(crate) fn take_savepoint_rolled_back(&self) -> bool {
        self.savepoint_rolled_back.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn has_notes(&self) -> bool {
        self.has_notes.load(Ordering::Acquire)
    }

    pub(crate) fn set_has_notes(&self) {
        self.has_notes.store(true, Ordering::Release);
    }

    pub(crate) fn forget_notes(&self) {
        self.has_notes.store(false, Ordering::Release);
    }

    /// Whether no statement can have changed the schema since the last one that was recorded. One that writes a replicated
    /// table opens one savepoint, and so does every one that changes the schema.
    pub(crate) fn is_same_schema(&self) -> bool {
        self.is_enlisted() && self.savepoints.load(Ordering::Acquire) <= 1
    }

    /// Whether the transaction is the one of the last step, and SQLite opened no savepoint since. Statements that change the
    /// schema, and those that write a replicated table, open one; a lone INSERT into `crsql_changes` does not.
    pub(crate) fn has_no_savepoint_since(&self) -> bool {
        self.is_enlisted() && self.savepoints.load(Ordering::Acquire) == STEP_ENDED
    }

    pub(crate) fn end_step(&self) {
        self.savepoints.store(STEP_ENDED, Ordering::Release);
    }

    pub(crate) fn forget_savepoints(&self) {
        self.savepoints.store(0, Ordering::Release);
    }

    /// Whether there is an update trigger that knows too few columns.
    pub(crate) fn wants_triggers(&self) -> bool {
        self.wants_triggers.load(Ordering::Acquire)
    }

    pub(crate) fn set_wants_triggers(&self, wants: bool) {
        self.wants_triggers.store(wants, Ordering::Release);
    }

    pub(crate) fn set_wake(&self, wake: Option<Wake>) {
        if let Ok(mut slot) = self.wake.lock() {
            *slot = wake;
        }
    }

    pub(crate) fn rows_impacted(&self) -> i64 {
        self.rows_impacted.load(Ordering::Acquire)
    }

    pub(crate) fn add_rows_impacted(&self, count: usize) {
        self.rows_impacted.fetch_add(i64::try_from(count).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    fn forget_rows_impacted(&self) {
        self.rows_impacted.store(0, Ordering::Release);
        if let Ok(mut before) = self.rows_impacted_before.lock() {
            before.clear();
        }
    }

    fn begin_savepoint(&self, number: c_int) {
        self.savepoints.fetch_add(1, Ordering::AcqRel);
        if let (Ok(mut before), Ok(number)) = (self.rows_impacted_before.lock(), usize::try_from(number)) {
            // Savepoints that are older than our part in the transaction: nothing was counted before them.
            before.resize(number, 0);
            before.push(self.rows_impacted());
        }
    }

    fn roll_back_to_savepoint(&self, number: c_int) {
        self.savepoint_rolled_back.store(true, Ordering::Release);
        self.forget_notes();
        // Neither the schema nor the rows need be what the last statement left.
        self.savepoints.fetch_add(2, Ordering::AcqRel);
        if let (Ok(before), Ok(number)) = (self.rows_impacted_before.lock(), usize::try_from(number)) {
            self.rows_impacted.store(before.get(number).copied().unwrap_or_default(), Ordering::Release);
        }
    }

    fn end(&self, how: Ended) {
        self.is_enlisted.store(false, Ordering::Release);
        self.forget_notes();
        self.forget_rows_impacted();
        self.ended.store(how as u8, Ordering::Release);
        if how == Ended::Committed
            && let Ok(wake) = self.wake.lock()
            && let Some(wake) = &*wake
        {
            wake();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transaction,
    Statements,
}

struct Aux {
    kind: Kind,
    flags: Arc<TransactionFlags>,
    shared: Weak<Shared>,
}

#[repr(C)]
struct Table {
    base: ffi::sqlite3_vtab,
    kind: Kind,
    flags: Arc<TransactionFlags>,
    shared: Weak<Shared>,
}

/// Registers both tables.
pub(crate) fn register(db: Handle, shared: &Arc<Shared>) -> rusqlite::Result<()> {
    for (name, kind) in [(TRANSACTION_TABLE, Kind::Transaction), (STATEMENTS_TABLE, Kind::Statements)] {
        let aux = Box::new(Aux { kind, flags: shared.flags.clone(), shared: Arc::downgrade(shared) });
        let name = CString::new(name)?;
        // SAFETY: the module is static; SQLite owns `aux` from here on and gives it back to `drop_aux`, also on failure.
        let code = unsafe {
            ffi::sqlite3_create_module_v2(
                db.as_ptr(),
                name.as_ptr(),
                &raw const MODULE,
                Box::into_raw(aux).cast(),
                Some(drop_aux),
            )
        };
        if code != ffi::SQLITE_OK {
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        }
    }
    Ok(())
}

// No `xCreate`: the tables exist by their names alone, in every connection that loaded the engine.
static MODULE: ffi::sqlite3_module = ffi::sqlite3_module {
    iVersion: 2,
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
    xUpdate: Some(update),
    xBegin: Some(begin),
    xSync: Some(sync),
    xCommit: Some(commit),
    xRollback: Some(rollback),
    xFindFunction: None,
    xRename: None,
    xSavepoint: Some(savepoint),
    xRelease: Some(release),
    xRollbackTo: Some(rollback_to),
    xShadowName: None,
    xIntegrity: None,
};

/// # Safety
///
/// Called by SQLite with the pointer that [`register`] gave it, once.
unsafe extern "C" fn drop_aux(aux: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `register`.
    drop(unsafe { Box::from_raw(aux.cast::<Aux>()) });
}

/// # Safety
///
/// `table` is one that `connect` made; SQLite calls nothing on it after `disconnect`.
unsafe fn table<'a>(table: *mut ffi::sqlite3_vtab) -> &'a Table {
    // SAFETY: the caller's; `base` is the first field of a `repr(C)` struct.
    unsafe { &*table.cast::<Table>() }
}

/// Makes the table of one connection.
///
/// # Safety
///
/// SQLite calls it with an open connection, the `aux` that [`register`] gave it and has not dropped, and a place for
/// the result.
unsafe extern "C" fn connect(
    db: *mut ffi::sqlite3,
    aux: *mut c_void,
    _argc: c_int,
    _argv: *const *const c_char,
    out: *mut *mut ffi::sqlite3_vtab,
    _error: *mut *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes its connection, our `aux` and a place for the result; the text is terminated.
    unsafe {
        let code = ffi::sqlite3_declare_vtab(db, c"CREATE TABLE x(enlisted)".as_ptr());
        if code != ffi::SQLITE_OK {
            return code;
        }
        let aux = &*aux.cast::<Aux>();
        let base = ffi::sqlite3_vtab { pModule: std::ptr::null(), nRef: 0, zErrMsg: std::ptr::null_mut() };
        let table = Table { base, kind: aux.kind, flags: aux.flags.clone(), shared: aux.shared.clone() };
        *out = Box::into_raw(Box::new(table)).cast();
    }
    ffi::SQLITE_OK
}

/// Ends a table, and with that of statements the statements, while they can still be finalized.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended, as the last call on that table.
unsafe extern "C" fn disconnect(raw: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: made by `connect`, ended here, once.
    let table = unsafe { Box::from_raw(raw.cast::<Table>()) };
    if table.kind == Kind::Statements
        && let Some(shared) = table.shared.upgrade()
    {
        shared.finalize_statements();
    }
    ffi::SQLITE_OK
}

/// There is nothing to plan.
///
/// # Safety
///
/// SQLite calls it; nothing that it passes is used.
unsafe extern "C" fn best_index(_: *mut ffi::sqlite3_vtab, _: *mut ffi::sqlite3_index_info) -> c_int {
    ffi::SQLITE_OK
}

/// Opens a cursor, which has no state of its own.
///
/// # Safety
///
/// SQLite calls it with a place for the result.
unsafe extern "C" fn open(_: *mut ffi::sqlite3_vtab, out: *mut *mut ffi::sqlite3_vtab_cursor) -> c_int {
    let cursor = Box::new(ffi::sqlite3_vtab_cursor { pVtab: std::ptr::null_mut() });
    // SAFETY: SQLite passes a place for the result.
    unsafe { *out = Box::into_raw(cursor) };
    ffi::SQLITE_OK
}

/// Ends a cursor.
///
/// # Safety
///
/// SQLite calls it with a cursor that [`open`] made and [`close`] has not ended, as the last call on that cursor.
unsafe extern "C" fn close(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: made by `open`, ended here, once.
    drop(unsafe { Box::from_raw(cursor) });
    ffi::SQLITE_OK
}

/// Starts a scan, which is at its end at once.
///
/// # Safety
///
/// SQLite calls it; nothing that it passes is used.
unsafe extern "C" fn filter(
    _: *mut ffi::sqlite3_vtab_cursor,
    _: c_int,
    _: *const c_char,
    _: c_int,
    _: *mut *mut ffi::sqlite3_value,
) -> c_int {
    ffi::SQLITE_OK
}

/// Never reached: a scan is at its end at once.
///
/// # Safety
///
/// SQLite calls it; nothing that it passes is used.
unsafe extern "C" fn next(_: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    ffi::SQLITE_OK
}

/// Both tables are always empty.
///
/// # Safety
///
/// SQLite calls it; nothing that it passes is used.
unsafe extern "C" fn eof(_: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    1
}

/// Never reached, likewise.
///
/// # Safety
///
/// SQLite calls it; nothing that it passes is used.
unsafe extern "C" fn column(_: *mut ffi::sqlite3_vtab_cursor, _: *mut ffi::sqlite3_context, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

/// Never reached, likewise.
///
/// # Safety
///
/// SQLite calls it with a place for the result.
unsafe extern "C" fn rowid(_: *mut ffi::sqlite3_vtab_cursor, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite passes a place for the result.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

/// A write stores nothing: that it happened is what counts.
///
/// # Safety
///
/// SQLite calls it with a place for the rowid; the values are not looked at.
unsafe extern "C" fn update(
    _: *mut ffi::sqlite3_vtab,
    _: c_int,
    _: *mut *mut ffi::sqlite3_value,
    out: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes a place for the rowid.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

/// The first write of a transaction.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn begin(raw: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    let flags = &unsafe { table(raw) }.flags;
    flags.forget_rows_impacted();
    flags.is_enlisted.store(true, Ordering::Release);
    ffi::SQLITE_OK
}

/// The end of a statement that is a transaction of its own. Writing is allowed here, not in `xCommit`.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn sync(raw: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    let (mut code, mut message) = unsafe { end_statement(raw) };
    if code == ffi::SQLITE_OK {
        // SAFETY: as above.
        (code, message) = unsafe { mend_triggers(raw) };
    }
    if let Some(message) = message {
        // SAFETY: SQLite frees the text of the table that it passed, with its own allocator.
        unsafe { (*raw).zErrMsg = sqlite_text(&message) };
    }
    code
}

/// Records what was noted. The message is for who can pass it on.
///
/// # Safety
///
/// `raw` is a table that [`connect`] made.
unsafe fn end_statement(raw: *mut ffi::sqlite3_vtab) -> (c_int, Option<String>) {
    // SAFETY: the caller's.
    let table = unsafe { table(raw) };
    if !table.flags.has_notes() {
        return (ffi::SQLITE_OK, None);
    }
    call(table, "recording a write", Shared::end_statement)
}

/// Makes triggers anew that know too few columns (ALT-7).
///
/// # Safety
///
/// `raw` is a table that [`connect`] made.
unsafe fn mend_triggers(raw: *mut ffi::sqlite3_vtab) -> (c_int, Option<String>) {
    // SAFETY: the caller's.
    let table = unsafe { table(raw) };
    if !table.flags.wants_triggers() {
        return (ffi::SQLITE_OK, None);
    }
    call(table, "making triggers anew", heal_triggers)
}

/// Calls the engine from inside of SQLite.
fn call(table: &Table, what: &str, body: impl FnOnce(&Shared) -> rusqlite::Result<()>) -> (c_int, Option<String>) {
    let Some(shared) = table.shared.upgrade() else { return (ffi::SQLITE_OK, None) };
    match catch_unwind(AssertUnwindSafe(|| body(&shared))) {
        Ok(Ok(())) => (ffi::SQLITE_OK, None),
        Ok(Err(rusqlite::Error::SqliteFailure(error, message))) => (error.extended_code, message),
        Ok(Err(error)) => (ffi::SQLITE_ERROR, Some(error.to_string())),
        Err(_) => (ffi::SQLITE_INTERNAL, Some(format!("litemesh: internal error while {what}"))),
    }
}

/// A text that SQLite owns and frees; null where memory is out.
fn sqlite_text(text: &str) -> *mut c_char {
    // SAFETY: as many bytes are written as were asked for: the text, and its end.
    unsafe {
        let copy = ffi::sqlite3_malloc64(text.len() as u64 + 1).cast::<c_char>();
        if !copy.is_null() {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), copy, text.len());
            *copy.add(text.len()) = 0;
        }
        copy
    }
}

/// The transaction is committed.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn commit(raw: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    unsafe { table(raw) }.flags.end(Ended::Committed);
    ffi::SQLITE_OK
}

/// The transaction is rolled back.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn rollback(raw: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    unsafe { table(raw) }.flags.end(Ended::RolledBack);
    ffi::SQLITE_OK
}

/// What was noted before the savepoint must be written before it, too.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn savepoint(raw: *mut ffi::sqlite3_vtab, number: c_int) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    let (code, _) = unsafe { end_statement(raw) };
    // SAFETY: as above.
    unsafe { table(raw) }.flags.begin_savepoint(number);
    code
}

/// The end of a statement inside of a transaction. FTS5 writes here, too.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn release(raw: *mut ffi::sqlite3_vtab, _: c_int) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    unsafe { end_statement(raw) }.0
}

/// A part of the transaction is rolled back.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn rollback_to(raw: *mut ffi::sqlite3_vtab, number: c_int) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    unsafe { table(raw) }.flags.roll_back_to_savepoint(number);
    ffi::SQLITE_OK
}
