//! The functions that triggers call, registered with SQLite directly: they run once or twice for every row that is written, and
//! what a closure in a box costs, with values that are looked at twice, can be seen there.

use std::ffi::{CStr, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use crate::capture;
use crate::core::Shared;
use crate::statement::{Handle, bytes_of, value_of};

/// What a function was called with.
#[derive(Clone, Copy)]
pub(crate) struct Arguments<'a>(&'a [*mut ffi::sqlite3_value]);

impl<'a> Arguments<'a> {
    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    /// The value at this place. NULL past the end.
    pub(crate) fn get(self, index: usize) -> ValueRef<'a> {
        let Some(value) = self.0.get(index).copied() else { return ValueRef::Null };
        // SAFETY: SQLite's values live as long as the call, and nothing converts them meanwhile.
        unsafe { value_of(value) }
    }
}

impl Arguments<'_> {
    /// Whether two values are the same, as [`capture::same`] has it. Most are numbers, or of different types.
    pub(crate) fn are_same(self, a: usize, b: usize) -> bool {
        let (Some(a), Some(b)) = (self.0.get(a).copied(), self.0.get(b).copied()) else { return false };
        // SAFETY: as for `get`.
        unsafe {
            let kind = ffi::sqlite3_value_type(a);
            kind == ffi::sqlite3_value_type(b)
                && match kind {
                    ffi::SQLITE_INTEGER => ffi::sqlite3_value_int64(a) == ffi::sqlite3_value_int64(b),
                    ffi::SQLITE_TEXT | ffi::SQLITE_BLOB => bytes_of(a) == bytes_of(b),
                    _ => capture::same(value_of(a), value_of(b)),
                }
        }
    }
}

type Body = fn(&Shared, Arguments<'_>) -> rusqlite::Result<i64>;

/// Registers them. Innocuous, as what CRSqlite's triggers call: they run where schemas are not trusted.
pub(crate) fn register(db: Handle, shared: &Arc<Shared>) -> rusqlite::Result<()> {
    add(db, shared, c"crsql_internal_sync_bit", call::<SyncBit>)?;
    add(db, shared, c"crsql_after_insert", call::<AfterInsert>)?;
    add(db, shared, c"crsql_after_update", call::<AfterUpdate>)?;
    // That of wide tables' triggers.
    add(db, shared, c"litemesh_after_update", call::<AfterUpdatePacked>)?;
    add(db, shared, c"crsql_after_delete", call::<AfterDelete>)
}

/// One function. A type, so that each has an address of its own to be called at.
trait Function {
    const BODY: Body;
}

struct SyncBit;
struct AfterInsert;
struct AfterUpdate;
struct AfterUpdatePacked;
struct AfterDelete;

impl Function for SyncBit {
    const BODY: Body = sync_bit;
}

impl Function for AfterInsert {
    const BODY: Body = capture::after_insert;
}

impl Function for AfterUpdate {
    const BODY: Body = capture::after_update;
}

impl Function for AfterUpdatePacked {
    const BODY: Body = capture::after_update_packed;
}

impl Function for AfterDelete {
    const BODY: Body = capture::after_delete;
}

/// FN-7. Takes no lock: triggers call it while a merge holds it.
fn sync_bit(shared: &Shared, arguments: Arguments<'_>) -> rusqlite::Result<i64> {
    if arguments.len() == 1 {
        let bit = arguments.get(0).as_i64().unwrap_or_default();
        shared.sync_bit.store(bit, Ordering::Relaxed);
    }
    Ok(shared.sync_bit.load(Ordering::Relaxed))
}

type Called = unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int, *mut *mut ffi::sqlite3_value);

fn add(db: Handle, shared: &Arc<Shared>, name: &CStr, function: Called) -> rusqlite::Result<()> {
    // SAFETY: the connection is open and the name terminated; SQLite owns the state from here on, and gives it back to
    // `drop_shared`, also where this fails.
    let code = unsafe {
        ffi::sqlite3_create_function_v2(
            db.as_ptr(),
            name.as_ptr(),
            -1,
            ffi::SQLITE_UTF8 | ffi::SQLITE_INNOCUOUS,
            Arc::into_raw(shared.clone()).cast_mut().cast(),
            Some(function),
            None,
            None,
            Some(drop_shared),
        )
    };
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)) }
}

/// # Safety
///
/// SQLite calls it with the pointer that [`add`] gave it, once.
unsafe extern "C" fn drop_shared(shared: *mut c_void) {
    // SAFETY: made by `Arc::into_raw` in `add`.
    drop(unsafe { Arc::from_raw(shared.cast::<Shared>().cast_const()) });
}

/// Calls one of them.
///
/// # Safety
///
/// SQLite calls it with a context of a function that [`add`] registered, and as many values as it says.
unsafe extern "C" fn call<F: Function>(
    context: *mut ffi::sqlite3_context,
    argc: c_int,
    argv: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: SQLite passes what `add` gave it, which lives as long as the function.
    let shared = unsafe { &*ffi::sqlite3_user_data(context).cast::<Shared>().cast_const() };
    let arguments = match usize::try_from(argc) {
        // SAFETY: as many values as SQLite says.
        Ok(count) if count > 0 => unsafe { std::slice::from_raw_parts(argv, count) },
        _ => &[],
    };
    let result = catch_unwind(AssertUnwindSafe(|| (F::BODY)(shared, Arguments(arguments))));
    let message = match result {
        Ok(Ok(value)) => {
            // SAFETY: SQLite's context.
            unsafe { ffi::sqlite3_result_int64(context, value) };
            return;
        }
        Ok(Err(rusqlite::Error::SqliteFailure(error, message))) => {
            // SAFETY: SQLite's context. The code comes after the message, which would reset it.
            unsafe {
                let message = message.unwrap_or_else(|| error.to_string());
                fail(context, &message);
                ffi::sqlite3_result_error_code(context, error.extended_code);
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "litemesh: internal error in a trigger, please report it".to_owned(),
    };
    // SAFETY: SQLite's context.
    unsafe { fail(context, &message) };
}

/// # Safety
///
/// `context` is that of a running call.
unsafe fn fail(context: *mut ffi::sqlite3_context, message: &str) {
    let length = c_int::try_from(message.len()).unwrap_or(c_int::MAX);
    // SAFETY: the caller's; SQLite copies as many bytes as it is told.
    unsafe { ffi::sqlite3_result_error(context, message.as_ptr().cast(), length) };
}
