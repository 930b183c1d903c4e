//! The engine of Litemesh as a loadable extension of SQLite: the SQL surface of CRSqlite in any program that can load one.
//!
//! SQLite finds the entry point by the name of the file. The library answers to two names, so that a copy called
//! `crsqlite.so` stands in for CRSqlite.
//!
//! Nothing unwinds into C: entry points and SQL functions catch panics, and a panic in any other callback ends the process.

mod host;

use std::ffi::{c_char, c_int};
use std::panic::catch_unwind;

use litemesh_engine::rusqlite::{Connection, ffi};
use litemesh_engine::{OpenError, StorageError, load};

/// The entry point of `litemesh.so`, `liblitemesh.so`, `litemesh.dll` and so on.
///
/// # Safety
///
/// To be called by SQLite alone: with an open connection, a place for an error message, and its table of routines.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_litemesh_init(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    routines: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: what SQLite passed.
    unsafe { enter(db, message, routines) }
}

/// The entry point of a copy that is called `crsqlite.so`.
///
/// # Safety
///
/// As [`sqlite3_litemesh_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_crsqlite_init(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    routines: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: what SQLite passed.
    unsafe { enter(db, message, routines) }
}

/// # Safety
///
/// As [`sqlite3_litemesh_init`].
unsafe fn enter(db: *mut ffi::sqlite3, message: *mut *mut c_char, routines: *const ffi::sqlite3_api_routines) -> c_int {
    // A host without loadable extensions passes none when the entry point is registered by hand. Nothing can be said then.
    if db.is_null() || routines.is_null() {
        return ffi::SQLITE_ERROR;
    }
    // SAFETY: SQLite passes its own table and connection; both are valid for the time of this call, and longer.
    let loaded = catch_unwind(|| unsafe { load_into(db, routines) });
    let (code, text) = match loaded {
        Ok(Ok(())) => return ffi::SQLITE_OK,
        Ok(Err(failure)) => failure,
        Err(_) => (ffi::SQLITE_INTERNAL, "internal error while loading, please report it".to_owned()),
    };
    // SAFETY: as above.
    unsafe { host::set_message(routines, message, &format!("litemesh: {text}")) };
    code
}

/// Gives a result code and a text where it fails.
///
/// # Safety
///
/// As [`sqlite3_litemesh_init`], and neither pointer is null.
unsafe fn load_into(db: *mut ffi::sqlite3, routines: *const ffi::sqlite3_api_routines) -> Result<(), (c_int, String)> {
    // SAFETY: the caller's.
    unsafe { host::adopt(routines) }.map_err(|refusal| (ffi::SQLITE_ERROR, refusal.to_string()))?;
    // SAFETY: the connection is open; dropping ours does not close it.
    let connection = unsafe { Connection::from_handle(db) };
    connection.map_err(OpenError::from).and_then(|connection| load(&connection)).map_err(|error| {
        let code = match &error {
            OpenError::Storage(StorageError(error)) => error.sqlite_error().map(|error| error.extended_code),
            _ => None,
        };
        (code.unwrap_or(ffi::SQLITE_ERROR), error.to_string())
    })
}
