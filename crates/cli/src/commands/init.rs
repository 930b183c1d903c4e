//! `litemesh init`: makes tables of a file replicated, or says why one cannot be.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use litemesh::engine::{Engine, ReplicateError, StorageError};
use litemesh::rusqlite::{self, Connection};
use serde::Serialize;

use crate::args::InitArgs;
use crate::database_file;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, message};
use crate::output::Output;

/// What was done; printed with `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Initialised {
    file: String,
    site_id: String,
    schema_version: i64,
    tables: Vec<InitialisedTable>,
}

#[derive(Debug, Serialize)]
struct InitialisedTable {
    table: String,
    was_replicated: bool,
}

pub(crate) fn run(args: &InitArgs) -> Result<ExitCode, Failure> {
    let schema = args.schema.as_deref().map(read_schema).transpose()?;
    if schema.is_none() {
        database_file::require(&args.file)?;
    }
    let done = init(&args.file, schema.as_deref(), &args.tables)?;
    let mut output = Output::new();
    if args.json {
        output.json(&done)?;
        return Ok(ExitCode::Ok);
    }
    for table in &done.tables {
        let was = if table.was_replicated { "was replicated already" } else { "is replicated" };
        output.line(format_args!("table {} {was}", table.table))?;
    }
    output.line(format_args!("{}: site {}, schema version {}", done.file, done.site_id, done.schema_version))?;
    output.line(format_args!("share it with:   litemesh serve {}", done.file))?;
    output.line(format_args!("or join a hub:   litemesh sync {} URL", done.file))?;
    Ok(ExitCode::Ok)
}

fn read_schema(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        Failure::database(format!("cannot read the schema {}: {error}", path.display()), "check the path of --schema")
    })
}

/// Runs `schema` and makes `tables` replicated, all tables where none are named; everything or nothing.
pub(crate) fn init(file: &Path, schema: Option<&str>, tables: &[String]) -> Result<Initialised, Failure> {
    let is_new = !file.exists();
    let done = change(file, schema, tables);
    if done.is_err() && is_new {
        // SQLite has made an empty file, which nobody asked for. Whether it can be removed changes nothing.
        let _ = fs::remove_file(file);
    }
    done
}

fn change(file: &Path, schema: Option<&str>, tables: &[String]) -> Result<Initialised, Failure> {
    let sqlite = |error: rusqlite::Error| Failure::sqlite(file, &error);
    let connection = Connection::open(file).map_err(sqlite)?;
    // Before the engine comes in, since that writes as well: its tables, if they are not there yet.
    connection.execute_batch("BEGIN IMMEDIATE").map_err(sqlite)?;
    let engine = Engine::attach(connection).map_err(|error| Failure::open(file, &error))?;
    if let Some(schema) = schema {
        run_schema(&engine, schema)?;
    }
    let before = database_file::replicated_tables(file, &engine)?;
    let names = if tables.is_empty() { ordinary_tables(engine.connection()).map_err(sqlite)? } else { tables.to_vec() };
    if names.is_empty() {
        return Err(Failure::cannot_replicate(
            format!("{} has no table", file.display()),
            "make one with --schema SQL_FILE, or with `litemesh sql`",
        ));
    }
    replicate(file, &engine, &names)?;
    engine.connection().execute_batch("COMMIT").map_err(sqlite)?;
    // What sync wants; outside of a transaction, and no reason to fail where the file system cannot do it.
    let _ = engine.connection().pragma_update(None, "journal_mode", "WAL");

    let storage = |StorageError(error): StorageError| Failure::sqlite(file, &error);
    let was_replicated = |name: &Arc<str>| before.contains(name);
    let is_named = |name: &Arc<str>| names.iter().any(|named| named.eq_ignore_ascii_case(name));
    let tables = database_file::replicated_tables(file, &engine)?
        .into_iter()
        .filter(is_named)
        .map(|name| InitialisedTable { was_replicated: was_replicated(&name), table: name.to_string() })
        .collect();
    Ok(Initialised {
        file: file.display().to_string(),
        site_id: engine.site().map_err(storage)?.to_string(),
        schema_version: engine.schema_version().map_err(storage)?,
        tables,
    })
}

fn run_schema(engine: &Engine, schema: &str) -> Result<(), Failure> {
    let connection = engine.connection();
    connection.execute_batch(schema).map_err(|error| {
        Failure::database(
            format!("the schema failed: {}", message(&error)),
            "correct it; it runs in one transaction of its own, without BEGIN and COMMIT",
        )
    })?;
    if connection.is_autocommit() {
        return Err(Failure::database(
            "the schema ended the transaction that it runs in",
            "take BEGIN, COMMIT and ROLLBACK out of it; what it committed is in the file",
        ));
    }
    Ok(())
}

/// The tables that a user made, without those of the engine.
fn ordinary_tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(
        "SELECT name FROM pragma_table_list
         WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
           AND name NOT IN ('crsql_master', 'crsql_site_id', 'crsql_tracked_peers', 'crsql_change_history', 'all_peers')
           AND name NOT LIKE 'litemesh\\_%' ESCAPE '\\'
           AND name NOT LIKE '%\\_\\_crsql\\_clock' ESCAPE '\\' AND name NOT LIKE '%\\_\\_crsql\\_pks' ESCAPE '\\'
         ORDER BY name",
    )?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

/// Tries all, so that all reasons come at once.
fn replicate(file: &Path, engine: &Engine, names: &[String]) -> Result<(), Failure> {
    let mut refused: Vec<ReplicateError> = Vec::new();
    let mut possible = Vec::new();
    for name in names {
        match engine.replicate(name) {
            Ok(()) => possible.push(name.as_str()),
            Err(ReplicateError::Storage(StorageError(error))) => return Err(Failure::sqlite(file, &error)),
            Err(error) => refused.push(error),
        }
    }
    match refused.as_slice() {
        [] => Ok(()),
        [one] if names.len() == 1 => Err(Failure::replicate(file, one)),
        all => {
            let mut said: Vec<String> = all.iter().map(reason).collect();
            if !possible.is_empty() {
                let tables: String = possible.iter().map(|name| format!(" --table {name}")).collect();
                said.push(format!("the others can:{tables}"));
            }
            let what = format!("{}: {} of {} tables cannot replicate", file.display(), all.len(), names.len());
            Err(Failure::cannot_replicate(format!("{what}, nothing was changed"), said.join("; ")))
        }
    }
}

fn reason(error: &ReplicateError) -> String {
    match error.advice() {
        "" => error.to_string(),
        advice => format!("{error}: {advice}"),
    }
}
