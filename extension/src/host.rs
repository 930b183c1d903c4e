//! The SQLite of the host, as a table of routines.
//!
//! The bindings refuse every host that is older than the headers they were made from. We need much less, and they offer no
//! way to say so. They are therefore given a table of our own: the routines that 3.38 had, and nothing newer, under a
//! version number that they accept. What is missing cannot be called by accident on any host: it would fail on all of them.

use std::ffi::{c_char, c_int};
use std::mem::{MaybeUninit, offset_of};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use litemesh_engine::rusqlite::ffi;

/// 3.38.0. STRICT tables need 3.37, telling `IN` apart in a virtual table needs 3.38.
const VERSION_MIN: c_int = 3_038_000;

/// Where the routines that came after 3.38 begin. The table only ever grows at its end, so an older host's stops here.
const ROUTINES_BYTES: usize = offset_of!(ffi::sqlite3_api_routines, deserialize);

/// Why this SQLite cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The version, as SQLite numbers it.
    TooOld(c_int),
    /// A process can hold several copies of SQLite, but the routines that we call are the same for all of them.
    SecondLibrary,
    /// The table says nothing that we understand.
    NoVersion,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooOld(version) => write!(
                f,
                "SQLite {}.{}.{} is too old: 3.38 or later is needed",
                version / 1_000_000,
                version / 1000 % 1000,
                version % 1000
            ),
            Self::SecondLibrary => f.write_str(
                "another copy of SQLite in this process uses this file already: load a copy of it in another folder",
            ),
            Self::NoVersion => f.write_str("this SQLite does not tell its version"),
        }
    }
}

/// The address of the table that was adopted.
static ADOPTED: Mutex<Option<usize>> = Mutex::new(None);

/// What [`version`] answers; zero while the bindings ask.
static VERSION: AtomicI32 = AtomicI32::new(0);

/// Makes every call of the bindings go to this SQLite. Does nothing where that is so already.
///
/// # Safety
///
/// `routines` is the table that SQLite passed to the entry point.
pub(crate) unsafe fn adopt(routines: *const ffi::sqlite3_api_routines) -> Result<(), Refusal> {
    let mut adopted = ADOPTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(address) = *adopted {
        return if address == routines.addr() { Ok(()) } else { Err(Refusal::SecondLibrary) };
    }
    // SAFETY: every SQLite that knows extensions has this routine, and passes a table that is valid as long as its library.
    let host_version = unsafe { (&raw const (*routines).libversion_number).read().map(|tell| tell()) };
    match host_version {
        None => return Err(Refusal::NoVersion),
        Some(version) if version < VERSION_MIN => return Err(Refusal::TooOld(version)),
        Some(version) => {
            // SAFETY: the host's table is at least this long, as its version says; the rest stays null, which is `None`.
            let mut ours = unsafe {
                let mut ours = MaybeUninit::<ffi::sqlite3_api_routines>::zeroed();
                std::ptr::copy_nonoverlapping(routines.cast::<u8>(), ours.as_mut_ptr().cast(), ROUTINES_BYTES);
                ours.assume_init()
            };
            ours.libversion_number = Some(self::version);
            VERSION.store(0, Ordering::Release);
            // SAFETY: the table is valid; the bindings copy the routines out of it.
            unsafe { ffi::rusqlite_extension_init2(&raw mut ours) }.map_err(|_| Refusal::TooOld(version))?;
            VERSION.store(version, Ordering::Release);
        }
    }
    *adopted = Some(routines.addr());
    Ok(())
}

/// The host's version, except while the bindings decide whether they like it.
unsafe extern "C" fn version() -> c_int {
    match VERSION.load(Ordering::Acquire) {
        0 => ffi::SQLITE_VERSION_NUMBER,
        version => version,
    }
}

/// Hands a text to SQLite, in memory that SQLite will free. Works with any host, adopted or not.
///
/// # Safety
///
/// `routines` is the table that SQLite passed to the entry point, `message` the place it passed for a text, or null.
pub(crate) unsafe fn set_message(routines: *const ffi::sqlite3_api_routines, message: *mut *mut c_char, text: &str) {
    let Ok(length) = c_int::try_from(text.len() + 1) else { return };
    if message.is_null() {
        return;
    }
    // SAFETY: the first routines of the table are the same since there are extensions; the memory is as long as the text
    // with its end, or null.
    unsafe {
        let Some(malloc) = (&raw const (*routines).malloc).read() else { return };
        let copy = malloc(length).cast::<u8>();
        if !copy.is_null() {
            std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
            copy.add(text.len()).write(0);
            *message = copy.cast();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::{CStr, CString, c_void};

    unsafe extern "C" fn version_of_3_37() -> c_int {
        3_037_002
    }

    unsafe extern "C" fn allocate(bytes: c_int) -> *mut c_void {
        let bytes = usize::try_from(bytes).unwrap();
        CString::new(vec![b'?'; bytes - 1]).unwrap().into_raw().cast()
    }

    fn table() -> ffi::sqlite3_api_routines {
        // SAFETY: all fields are optional functions.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    #[test]
    fn an_older_sqlite_is_refused_with_its_version() {
        let mut routines = table();
        // SAFETY: the table is valid.
        assert_eq!(unsafe { adopt(&raw const routines) }, Err(Refusal::NoVersion));
        routines.libversion_number = Some(version_of_3_37);
        // SAFETY: the table is valid.
        let refusal = unsafe { adopt(&raw const routines) }.unwrap_err();
        assert_eq!(refusal.to_string(), "SQLite 3.37.2 is too old: 3.38 or later is needed");
    }

    #[test]
    fn messages_are_allocated_by_the_host() {
        let mut routines = table();
        let mut message = std::ptr::null_mut();
        // SAFETY: the table and the place are valid.
        unsafe { set_message(&raw const routines, &raw mut message, "no memory, no message") };
        assert!(message.is_null());
        routines.malloc = Some(allocate);
        // SAFETY: as above; the message was allocated by `CString`, and has the length that it had.
        unsafe {
            set_message(&raw const routines, &raw mut message, "what happened");
            assert_eq!(CStr::from_ptr(message).to_bytes(), b"what happened");
            drop(CString::from_raw(message));
        }
    }

    /// The last routine of 3.38, and the first after it.
    #[test]
    fn the_routines_that_are_taken_over_end_with_those_of_3_38() {
        let last = offset_of!(ffi::sqlite3_api_routines, vtab_in_next);
        assert_eq!(ROUTINES_BYTES, last + size_of::<Option<unsafe extern "C" fn()>>());
    }
}
