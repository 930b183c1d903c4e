//! How the engine follows SQLite's transactions without taking the connection's only commit and rollback hooks.
//!
//! Two internal virtual tables, made for their callbacks alone (`crsqlite-compat.md` TX-6; SQLite's own FTS5 does the same):
//!
//! - `litemesh_transaction` is written to once in each transaction that changes a replicated table. SQLite then tells it when
//!   that transaction, or a savepoint inside it, ends. The callbacks only set flags: they run in the middle of SQLite's commit,
//!   while the engine's mutex may be held. The engine reads the flags when it is next used. Only where notes
//!   wait ([`crate::notes`]), and many of them where a savepoint begins, which they never do while the mutex is held, do they call the
//!   engine to record them.
//! - `litemesh_statements` is disconnected when the connection closes, before SQLite looks for statements that are still
//!   open. It finalizes ours, so that nobody has to call `crsql_finalize()` (FN-9).

use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicUsize, Ordering};
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

/// What a savepoint that is rolled back takes back.
#[derive(Clone, Copy, Default)]
struct Mark {
    noted: usize,
    recorded: usize,
    seq: i64,
    pending: i64,
    rows_impacted: i64,
}

/// Stands for "nothing failed" where the number of savepoints is asked for.
const NO_FAILURE: usize = usize::MAX;

/// Flags and counters of the running transaction. SQLite's callbacks set them, and take back what a savepoint takes back.
pub(crate) struct TransactionFlags {
    is_enlisted: AtomicBool,
    ended: AtomicU8,
    savepoint_rolled_back: AtomicBool,
    /// How many notes there are of local writes ([`crate::notes`]). The notes themselves are cut when they are next used.
    noted: AtomicUsize,
    /// How many of them are recorded: kept in case a savepoint is rolled back that began before that.
    recorded: AtomicUsize,
    /// Whether so much is noted that it is to be recorded before the next statement.
    has_many_notes: AtomicBool,
    /// How many savepoints were open when recording failed half-way, since which nothing of the transaction may be committed.
    failed_under: AtomicUsize,
    /// How many savepoints SQLite opened since the schema was looked at. One that is rolled back counts twice more: as more
    /// than a statement's own.
    savepoints: AtomicU32,
    /// Whether there is an update trigger that knows too few columns (ALT-7).
    wants_triggers: AtomicBool,
    /// The next sequence number (VER-9).
    seq: AtomicI64,
    /// What the running transaction will commit as (VER-3); 0 before it has written a clock (VER-6).
    pending: AtomicI64,
    /// `crsql_rows_impacted()` (FN-5).
    rows_impacted: AtomicI64,
    /// What was when each open savepoint began, by the savepoint's number.
    marks: Mutex<Vec<Mark>>,
    wake: Mutex<Option<Wake>>,
}

impl Default for TransactionFlags {
    fn default() -> Self {
        Self {
            is_enlisted: AtomicBool::default(),
            ended: AtomicU8::default(),
            savepoint_rolled_back: AtomicBool::default(),
            noted: AtomicUsize::default(),
            recorded: AtomicUsize::default(),
            has_many_notes: AtomicBool::default(),
            failed_under: AtomicUsize::new(NO_FAILURE),
            savepoints: AtomicU32::default(),
            wants_triggers: AtomicBool::default(),
            seq: AtomicI64::default(),
            pending: AtomicI64::default(),
            rows_impacted: AtomicI64::default(),
            marks: Mutex::default(),
            wake: Mutex::default(),
        }
    }
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

    /// Whether there are notes that are not recorded, or could not be.
    pub(crate) fn has_notes(&self) -> bool {
        self.noted() > self.recorded() || self.has_failed()
    }

    pub(crate) fn noted(&self) -> usize {
        self.noted.load(Ordering::Acquire)
    }

    pub(crate) fn recorded(&self) -> usize {
        self.recorded.load(Ordering::Acquire)
    }

    pub(crate) fn set_noted(&self, noted: usize, is_many: bool) {
        self.noted.store(noted, Ordering::Release);
        self.has_many_notes.store(is_many, Ordering::Release);
    }

    pub(crate) fn set_recorded(&self, recorded: usize) {
        self.recorded.store(recorded, Ordering::Release);
    }

    /// How many notes there were when the savepoint began that was opened last.
    pub(crate) fn noted_before_savepoint(&self) -> usize {
        self.marks.lock().map_or(0, |marks| marks.last().map_or(0, |mark| mark.noted))
    }

    /// When all notes are recorded: forgets those that no open savepoint can make us record again. Gives how many stay.
    pub(crate) fn forget_recorded_notes(&self) -> usize {
        let kept = self.noted_before_savepoint().min(self.noted());
        self.set_noted(kept, false);
        self.set_recorded(kept);
        kept
    }

    pub(crate) fn forget_notes(&self) {
        self.set_noted(0, false);
        self.set_recorded(0);
    }

    /// Recording failed half-way: until what it wrote is rolled back, [`has_failed`](Self::has_failed).
    pub(crate) fn set_failed(&self) {
        let open = self.marks.lock().map_or(0, |marks| marks.len());
        self.failed_under.store(open, Ordering::Release);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed_under.load(Ordering::Acquire) != NO_FAILURE
    }

    /// Whether SQLite opened no savepoint since the last note.
    pub(crate) fn is_same_statement(&self) -> bool {
        self.savepoints() == 0
    }

    /// Whether no statement can have changed the schema since the last note. One that writes a replicated table opens one
    /// savepoint, and so does every one that changes the schema.
    pub(crate) fn is_same_schema(&self) -> bool {
        self.is_enlisted() && self.savepoints() <= 1
    }

    pub(crate) fn savepoints(&self) -> u32 {
        self.savepoints.load(Ordering::Acquire)
    }

    /// For who opened some that no statement of the application's did.
    pub(crate) fn set_savepoints(&self, count: u32) {
        self.savepoints.store(count, Ordering::Release);
    }

    /// Takes the next sequence numbers (VER-9), and gives the first.
    pub(crate) fn take_seqs(&self, count: i64) -> i64 {
        let seq = self.seq();
        self.seq.store(seq.saturating_add(count), Ordering::Release);
        seq
    }

    pub(crate) fn seq(&self) -> i64 {
        self.seq.load(Ordering::Acquire)
    }

    pub(crate) fn forget_seqs(&self) {
        self.seq.store(0, Ordering::Release);
    }

    pub(crate) fn pending(&self) -> Option<i64> {
        Some(self.pending.load(Ordering::Acquire)).filter(|pending| *pending != 0)
    }

    pub(crate) fn set_pending(&self, pending: Option<i64>) {
        self.pending.store(pending.unwrap_or_default(), Ordering::Release);
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

    fn begin_transaction(&self) {
        self.forget_notes();
        self.forget_marks();
        self.forget_seqs();
        self.set_pending(None);
        self.is_enlisted.store(true, Ordering::Release);
    }

    fn forget_marks(&self) {
        self.failed_under.store(NO_FAILURE, Ordering::Release);
        self.rows_impacted.store(0, Ordering::Release);
        if let Ok(mut marks) = self.marks.lock() {
            marks.clear();
        }
    }

    fn begin_savepoint(&self, number: c_int) {
        self.savepoints.fetch_add(1, Ordering::AcqRel);
        if let (Ok(mut marks), Ok(number)) = (self.marks.lock(), usize::try_from(number)) {
            // Savepoints that are older than our part in the transaction: there was nothing before them.
            marks.resize(number, Mark::default());
            marks.push(Mark {
                noted: self.noted(),
                recorded: self.recorded(),
                seq: self.seq(),
                pending: self.pending.load(Ordering::Acquire),
                rows_impacted: self.rows_impacted(),
            });
        }
    }

    fn release_savepoint(&self, number: c_int) {
        let number = usize::try_from(number).unwrap_or_default();
        if let Ok(mut marks) = self.marks.lock() {
            marks.truncate(number);
        }
        // What was half recorded inside of it belongs to the savepoint around it now.
        if self.has_failed() {
            self.failed_under.fetch_min(number, Ordering::AcqRel);
        }
    }

    /// A savepoint that is the transaction itself has the number -1.
    fn roll_back_to_savepoint(&self, number: c_int) {
        self.savepoint_rolled_back.store(true, Ordering::Release);
        // Neither the schema nor the rows need be what the last statement left.
        self.savepoints.fetch_add(2, Ordering::AcqRel);
        let Ok(mut marks) = self.marks.lock() else { return };
        let number = usize::try_from(number).ok();
        let mark = number.and_then(|number| marks.get(number).copied()).unwrap_or_default();
        let open = number.map_or(0, |number| number + 1);
        marks.truncate(open);
        drop(marks);
        if open <= self.failed_under.load(Ordering::Acquire) {
            self.failed_under.store(NO_FAILURE, Ordering::Release);
        }
        self.set_noted(mark.noted, false);
        self.set_recorded(mark.recorded);
        self.seq.store(mark.seq, Ordering::Release);
        self.pending.store(mark.pending, Ordering::Release);
        self.rows_impacted.store(mark.rows_impacted, Ordering::Release);
    }

    fn end(&self, how: Ended) {
        self.is_enlisted.store(false, Ordering::Release);
        self.forget_notes();
        self.forget_marks();
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
    flags.begin_transaction();
    ffi::SQLITE_OK
}

/// The end of a transaction, before anything of it is committed. Writing is allowed here, not in `xCommit`.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn sync(raw: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    let (mut code, mut message) = unsafe { record(raw, Shared::record) };
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

/// Records what was noted, or makes room for more. The message is for who can pass it on.
///
/// # Safety
///
/// `raw` is a table that [`connect`] made.
unsafe fn record(raw: *mut ffi::sqlite3_vtab, body: fn(&Shared) -> rusqlite::Result<()>) -> (c_int, Option<String>) {
    // SAFETY: the caller's.
    let table = unsafe { table(raw) };
    if !table.flags.has_notes() {
        return (ffi::SQLITE_OK, None);
    }
    call(table, "recording a write", body)
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

/// The application or a statement opens a savepoint. Where much is noted, it is recorded before: what is noted when a savepoint
/// begins has to be kept while the savepoint is open.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn savepoint(raw: *mut ffi::sqlite3_vtab, number: c_int) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    let flags = &unsafe { table(raw) }.flags;
    let mut code = ffi::SQLITE_OK;
    if flags.has_many_notes.load(Ordering::Acquire) {
        // SAFETY: as above.
        (code, _) = unsafe { record(raw, Shared::make_room) };
    }
    flags.begin_savepoint(number);
    code
}

/// A savepoint ends, mostly that of a statement.
///
/// # Safety
///
/// SQLite calls it with a table that [`connect`] made and [`disconnect`] has not ended.
unsafe extern "C" fn release(raw: *mut ffi::sqlite3_vtab, number: c_int) -> c_int {
    // SAFETY: SQLite passes a table of ours.
    unsafe { table(raw) }.flags.release_savepoint(number);
    ffi::SQLITE_OK
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
