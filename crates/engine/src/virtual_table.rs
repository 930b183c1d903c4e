//! What our virtual tables share.

use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::Result;

use crate::core::module_error;

/// Keeps panics from unwinding into SQLite, which calls what is in `body` for the table of this name.
pub(crate) fn guard<T>(table: &CStr, body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        Err(module_error(format!("litemesh: internal error in {}, please report it", table.to_string_lossy())))
    })
}
