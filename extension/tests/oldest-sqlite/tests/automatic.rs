//! The extension as an automatic one. A program of its own: it applies to every connection that the process opens.

use std::os::raw::{c_char, c_int};

use litemesh_extension_oldest_sqlite::{create_item, extension, load, rows, text};
use rusqlite::{Connection, ffi};

type EntryPoint = unsafe extern "C" fn(*mut ffi::sqlite3, *mut *mut c_char, *const ffi::sqlite3_api_routines) -> c_int;

#[test]
fn every_connection_has_it() {
    // SAFETY: the library is the extension, and its entry point has this signature.
    let library = unsafe { libloading::Library::new(extension()) }.unwrap();
    // SAFETY: as above.
    let entry: EntryPoint = *unsafe { library.get(b"sqlite3_litemesh_init\0") }.unwrap();
    // SAFETY: SQLite declares the parameter as a function without parameters, and calls it as an entry point.
    let code =
        unsafe { ffi::sqlite3_auto_extension(Some(std::mem::transmute::<EntryPoint, unsafe extern "C" fn()>(entry))) };
    assert_eq!(code, ffi::SQLITE_OK);
    for _ in 0..3 {
        let db = Connection::open_in_memory().unwrap();
        create_item(&db);
        db.execute_batch("INSERT INTO item VALUES ('a', 1, 1)").unwrap();
        assert_eq!(text(&db, "SELECT crsql_db_version()"), "1");
        load(&db, &extension()).unwrap();
        assert_eq!(text(&db, "SELECT crsql_db_version()"), "1");
        // Opens a connection of its own, which gets the extension, too.
        text(
            &db,
            "SELECT crsql_automigrate('CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY NOT NULL, a, c);
             SELECT crsql_as_crr(''item'')')",
        );
        db.execute_batch("INSERT INTO item VALUES ('b', 1, 1)").unwrap();
        assert_eq!(rows(&db, "SELECT DISTINCT cid FROM crsql_changes ORDER BY 1"), ["a", "c"]);
        assert_eq!(rows(&db, "SELECT id FROM item ORDER BY 1"), ["a", "b"]);
        db.close().unwrap();
    }
    // A file that cannot be loaded into cannot be opened, and says why.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fork.db");
    // SAFETY: no other thread of this program opens connections.
    unsafe { ffi::sqlite3_reset_auto_extension() };
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE crsql_db_versions (a)").unwrap();
    // SAFETY: as above.
    unsafe { ffi::sqlite3_auto_extension(Some(std::mem::transmute::<EntryPoint, unsafe extern "C" fn()>(entry))) };
    let error = Connection::open(&path).unwrap_err().to_string();
    assert!(error.contains("layout of another CRSqlite version"), "{error}");
    // SAFETY: as above. The library stays until the end: connections call into it.
    unsafe { ffi::sqlite3_reset_auto_extension() };
    std::mem::forget(library);
}
