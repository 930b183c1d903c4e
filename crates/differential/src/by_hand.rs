//! Entries of the register that a script alone cannot show: how files are opened, and the native interface.

use litemesh_engine::MergeProgress;
use litemesh_engine::rusqlite::{Connection, OpenFlags};

use crate::Result;
use crate::engine::{Engine, Outcome};
use crate::mixed::to_change;
use crate::original::Originals;
use crate::ours::Ours;
use crate::scenario::SITE;

/// Rule, what differs, and what shows it.
pub(crate) type Entry = (&'static str, &'static str, fn(&mut Originals) -> Result<()>);

pub(crate) const ALL: &[Entry] = &[
    (
        "VER-4",
        "each version of an author gets a version of its own, also in one transaction",
        versions_in_one_transaction,
    ),
    ("TX-2", "an empty file opens for reading", empty_file_for_reading),
    ("TX-4", "a file of CRSqlite 0.15 is refused, whatever number it carries", file_of_another_layout),
];

fn expect(what: &str, found: &str, expected: &str) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{what}: expected {expected}, found {found}").into()) }
}

fn versions_in_one_transaction(originals: &mut Originals) -> Result<()> {
    let (mut ours, mut original) = (Ours::open(SITE)?, originals.open(SITE)?);
    let create =
        ["CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)", "SELECT crsql_as_crr('foo')"].map(str::to_owned);
    ours.must(&create)?;
    original.must(&create)?;
    let row = |key: u8, version: &str| {
        let site = "x'00112233445566778899aabbccddeeff'";
        ["'foo'", &*format!("x'0109{key:02x}'"), "'b'", "7", "1", version, site, "1", "0"].map(str::to_owned)
    };
    let rows = [row(1, "1"), row(2, "7"), row(3, "3"), row(4, "50"), row(5, "8")];
    let changes: Vec<_> = rows.iter().map(|row| to_change(row)).collect::<Result<_>>()?;
    ours.engine.merge(&changes, &MergeProgress::default())?;
    let values: Vec<_> = rows.iter().map(|row| format!("({})", row.join(", "))).collect();
    original.must(&[format!("INSERT INTO crsql_changes VALUES {}", values.join(", "))])?;
    const VERSIONS: &str = "SELECT db_version FROM foo__crsql_clock ORDER BY key";
    expect("ours", &ours.run_one(VERSIONS)?.to_string(), "1; 7; 8; 50; 51")?;
    expect("original", &original.run_one(VERSIONS)?.to_string(), "1; 7; 7; 50; 50")
}

fn empty_file_for_reading(originals: &mut Originals) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("empty.db");
    std::fs::write(&path, [])?;
    let mut ours = Ours::attach(Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?)?;
    expect("ours", &ours.run_one("SELECT count(*), crsql_db_version() FROM crsql_changes")?.to_string(), "0, 0")?;
    match originals.open_file(&[], true) {
        Ok(_) => Err("CRSqlite opens it, too".into()),
        Err(_) => Ok(()),
    }
}

fn file_of_another_layout(originals: &mut Originals) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("old.db");
    let old = Connection::open(&path)?;
    old.execute_batch(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b);
         CREATE TABLE __crsql_siteid (site_id);
         CREATE TABLE crsql_master (key TEXT PRIMARY KEY, value ANY);
         INSERT INTO crsql_master VALUES ('crsqlite_version', 150000);
         CREATE TABLE foo__crsql_clock (a NOT NULL, __crsql_col_version NOT NULL, __crsql_db_version NOT NULL,
             __crsql_site_id, __crsql_col_name NOT NULL, __crsql_seq NOT NULL, PRIMARY KEY (a, __crsql_col_name));",
    )?;
    drop(old);
    if Ours::attach(Connection::open(&path)?).is_ok() {
        return Err("we open it".into());
    }
    // Opened, and of no use any more.
    match originals.open_file(&std::fs::read(&path)?, false)?.run_one("SELECT * FROM crsql_changes")? {
        Outcome::Error { .. } => Ok(()),
        Outcome::Rows(_) => Err("CRSqlite can read it".into()),
    }
}
