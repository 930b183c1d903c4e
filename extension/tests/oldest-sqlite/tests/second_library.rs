//! Two copies of SQLite in one process. A program of its own: who comes first is served.
#![cfg(target_os = "linux")]

use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_int, c_void};
use std::ptr::null_mut;

use litemesh_extension_oldest_sqlite::{extension, memory, text};

type Open = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
type EnableLoad = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type Load = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *mut *mut c_char) -> c_int;

/// Calls of the one would go to the other, with the other's connections: that must be refused, not tried.
#[test]
fn a_second_sqlite_is_refused_and_takes_a_copy() {
    let db = memory();
    // SAFETY: the system's SQLite, and functions of its C interface with their signatures. Names are bound within this
    // library, or its calls would end in the SQLite that this program contains.
    unsafe {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        let library = Library::open(Some("libsqlite3.so.0"), RTLD_NOW | RTLD_LOCAL).unwrap();
        let open = *library.get::<Open>(b"sqlite3_open\0").unwrap();
        let enable = *library.get::<EnableLoad>(b"sqlite3_enable_load_extension\0").unwrap();
        let load = *library.get::<Load>(b"sqlite3_load_extension\0").unwrap();
        let mut other = null_mut();
        assert_eq!(open(c":memory:".as_ptr(), &mut other), 0);
        assert_eq!(enable(other, 1), 0);

        let load = |file: &std::path::Path| {
            let mut message = null_mut();
            let file = CString::new(file.to_str().unwrap()).unwrap();
            let code = load(other, file.as_ptr(), std::ptr::null(), &mut message);
            let text =
                if message.is_null() { String::new() } else { CStr::from_ptr(message).to_str().unwrap().to_owned() };
            (code, text)
        };
        let (code, message) = load(&extension());
        assert_ne!(code, 0);
        assert!(message.contains("another copy of SQLite"), "{message}");

        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("litemesh.so");
        std::fs::copy(extension(), &copy).unwrap();
        assert_eq!(load(&copy), (0, String::new()));
        std::mem::forget(library);
    }
    db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
    assert_eq!(text(&db, "SELECT crsql_db_version()"), "1");
}
