//! `litemesh fork`: makes a copied file a database of its own.

use std::path::Path;
use std::time::Duration;

use litemesh::DbVersion;
use litemesh::engine::{Engine, StorageError};
use litemesh::rusqlite::{self, Connection, ErrorCode};
use serde::Serialize;

use crate::args::ForkArgs;
use crate::database_file;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{Output, printable, thousands};

/// What was done; printed with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    site_id_before: String,
    site_id: String,
    /// Up to here the original's versions are held.
    version: i64,
}

/// How long another program may go on holding the file.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &ForkArgs) -> Result<ExitCode, Failure> {
    database_file::require(&args.file)?;
    let sqlite = |error: rusqlite::Error| Failure::sqlite(&args.file, &error);
    let connection = Connection::open(&args.file).map_err(sqlite)?;
    refuse_ordinary(&args.file, &connection)?;
    let was_wal = become_only_user(&args.file, &connection)?;
    let mut engine = Engine::attach(connection).map_err(|error| Failure::open(&args.file, &error))?;
    let forked = engine.fork(args.copied_at.map(DbVersion::new));
    if was_wal {
        // Where it fails, the next program that opens the file for sync does it.
        let _ = engine.connection().pragma_update(None, "journal_mode", "WAL");
    }
    let forked = forked.map_err(|StorageError(error)| sqlite(error))?;
    let report = Report {
        file: args.file.display().to_string(),
        site_id_before: forked.before.to_string(),
        site_id: forked.after.to_string(),
        version: forked.version.get(),
    };
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        let version = thousands(report.version.unsigned_abs());
        output.line(format_args!("{} is a site of its own: {}", printable(&report.file), report.site_id))?;
        output.line(format_args!("it holds the changes of {} up to version {version}", report.site_id_before))?;
    }
    Ok(ExitCode::Ok)
}

/// A file without a site id is nobody's copy.
fn refuse_ordinary(file: &Path, connection: &Connection) -> Result<(), Failure> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'crsql_site_id'";
    match database_file::number(connection, sql, []) {
        Ok(0) => Err(Failure::database(
            format!("{} has no site id yet", file.display()),
            "there is nothing to fork: `litemesh init` gives it one",
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::sqlite(file, &error)),
    }
}

/// Makes sure that nobody else has the file open. Only who is alone can end WAL mode; `true` where that was done.
///
/// A program that goes on with the old site id in its memory would write under it to its remotes.
fn become_only_user(file: &Path, connection: &Connection) -> Result<bool, Failure> {
    let mode = || -> rusqlite::Result<bool> {
        connection.busy_timeout(PATIENCE)?;
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            return Ok(false);
        }
        connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        Ok(true)
    };
    mode().map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Failure::database(
            format!("{} is in use by another program", file.display()),
            "stop what serves, syncs or writes it, then fork it",
        ),
        _ => Failure::sqlite(file, &error),
    })
}
