//! SQLite's pre-update hook in place of triggers: what it costs to notice each written row and to note its key. For an UPDATE all
//! columns are compared, before and after. Not built by default: SQLite must be compiled with `SQLITE_ENABLE_PREUPDATE_HOOK`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use rusqlite::{Connection, ffi};

/// The bytes of the keys.
type Notes = Vec<u8>;

/// Keys are the first columns.
pub fn install(connection: &Connection, keys: c_int) {
    let notes: Box<(c_int, Notes)> = Box::new((keys, Vec::new()));
    // SAFETY: the connection is open; the notes live until `remove`.
    unsafe { ffi::sqlite3_preupdate_hook(connection.handle(), Some(note), Box::into_raw(notes).cast()) };
}

/// Reads all values and notes nothing.
pub fn install_idle(connection: &Connection) {
    // SAFETY: the connection is open; there are no notes.
    unsafe { ffi::sqlite3_preupdate_hook(connection.handle(), Some(read), ptr::null_mut()) };
}

pub fn remove(connection: &Connection) {
    // SAFETY: the connection is open, and what it gives back is what `install` gave it, or nothing.
    unsafe {
        let notes = ffi::sqlite3_preupdate_hook(connection.handle(), None, ptr::null_mut());
        if !notes.is_null() {
            drop(Box::from_raw(notes.cast::<(c_int, Notes)>()));
        }
    }
}

/// # Safety
///
/// SQLite calls it with the notes of `install`, for a row that is about to change.
unsafe extern "C" fn note(
    notes: *mut c_void,
    db: *mut ffi::sqlite3,
    kind: c_int,
    _: *const c_char,
    table: *const c_char,
    _: ffi::sqlite3_int64,
    _: ffi::sqlite3_int64,
) {
    // SAFETY: the caller's; values live until the hook returns.
    unsafe {
        if CStr::from_ptr(table) != c"todo" {
            return;
        }
        let (keys, notes) = &mut *notes.cast::<(c_int, Notes)>();
        let (mut old, mut new) = (ptr::null_mut(), ptr::null_mut());
        let mut is_changed = kind != ffi::SQLITE_UPDATE;
        if !is_changed {
            for column in 0..ffi::sqlite3_preupdate_count(db) {
                ffi::sqlite3_preupdate_old(db, column, &raw mut old);
                ffi::sqlite3_preupdate_new(db, column, &raw mut new);
                is_changed |= bytes(old) != bytes(new);
            }
        }
        if is_changed {
            for column in 0..*keys {
                if kind == ffi::SQLITE_DELETE {
                    ffi::sqlite3_preupdate_old(db, column, &raw mut new);
                } else {
                    ffi::sqlite3_preupdate_new(db, column, &raw mut new);
                }
                let (kind, integer, text) = bytes(new);
                notes.push(kind as u8);
                notes.extend_from_slice(&integer.to_ne_bytes());
                notes.extend_from_slice(text);
            }
        }
    }
}

/// # Safety
///
/// SQLite calls it for a row that is about to change.
unsafe extern "C" fn read(
    _: *mut c_void,
    db: *mut ffi::sqlite3,
    kind: c_int,
    _: *const c_char,
    _: *const c_char,
    _: ffi::sqlite3_int64,
    _: ffi::sqlite3_int64,
) {
    let mut value = ptr::null_mut();
    // SAFETY: the caller's; values live until the hook returns.
    unsafe {
        for column in 0..ffi::sqlite3_preupdate_count(db) {
            if kind != ffi::SQLITE_INSERT {
                ffi::sqlite3_preupdate_old(db, column, &raw mut value);
                std::hint::black_box(bytes(value));
            }
            if kind != ffi::SQLITE_DELETE {
                ffi::sqlite3_preupdate_new(db, column, &raw mut value);
                std::hint::black_box(bytes(value));
            }
        }
    }
}

/// Type, integer, text.
///
/// # Safety
///
/// A value that lives as long as its bytes are looked at.
unsafe fn bytes<'a>(value: *mut ffi::sqlite3_value) -> (c_int, i64, &'a [u8]) {
    // SAFETY: the caller's.
    unsafe {
        match ffi::sqlite3_value_type(value) {
            ffi::SQLITE_TEXT => {
                let length = usize::try_from(ffi::sqlite3_value_bytes(value)).unwrap_or_default();
                (ffi::SQLITE_TEXT, 0, std::slice::from_raw_parts(ffi::sqlite3_value_text(value), length))
            }
            kind => (kind, ffi::sqlite3_value_int64(value), &[]),
        }
    }
}
