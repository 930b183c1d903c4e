//! `litemesh status`: what a file holds.

use std::path::Path;
use std::sync::Arc;

use litemesh::engine::{Engine, StorageError};
use litemesh::rusqlite::{self, Connection};
use serde::Serialize;

use crate::args::StatusArgs;
use crate::database_file::{self, quote};
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{self, Output, bytes, thousands};

#[derive(Debug, Serialize)]
struct Status {
    file: String,
    /// `None` where the engine was never loaded for writing.
    site_id: Option<String>,
    schema_version: i64,
    db_version: i64,
    file_bytes: u64,
    tables: Vec<TableStatus>,
    cursor: Vec<Position>,
}

#[derive(Debug, Serialize)]
struct TableStatus {
    table: String,
    rows: u64,
    tombstones: u64,
    /// One for each cell that was ever written, and one for each tombstone.
    clocks: u64,
    /// Pages of the table and its indexes.
    row_bytes: u64,
    /// Pages of clocks, keys and their indexes.
    metadata_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Position {
    site_id: String,
    version: i64,
    is_local: bool,
}

pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let engine = database_file::open_read_only(&args.file)?;
    // One state of the database for all the numbers, whatever is written meanwhile.
    engine.connection().execute_batch("BEGIN").map_err(|error| Failure::sqlite(&args.file, &error))?;
    let status = read(&args.file, &engine)?;
    let mut output = Output::new();
    if args.json {
        output.json(&status)?;
    } else {
        print(&status, &mut output)?;
    }
    Ok(ExitCode::Ok)
}

fn read(file: &Path, engine: &Engine) -> Result<Status, Failure> {
    let storage = |StorageError(error): StorageError| Failure::sqlite(file, &error);
    let sqlite = |error: rusqlite::Error| Failure::sqlite(file, &error);
    let site = database_file::site(file, engine)?;
    let tables = database_file::replicated_tables(file, engine)?;
    let connection = engine.connection();
    let cursor = engine.cursor().map_err(storage)?;
    Ok(Status {
        file: file.display().to_string(),
        site_id: site.map(|site| site.to_string()),
        schema_version: engine.schema_version().map_err(storage)?,
        db_version: engine.db_version().map_err(storage)?.get(),
        file_bytes: file_bytes(connection).map_err(sqlite)?,
        tables: tables.iter().map(|table| read_table(connection, table)).collect::<Result<_, _>>().map_err(sqlite)?,
        cursor: cursor
            .iter()
            .map(|(held, version)| Position {
                site_id: held.to_string(),
                version: version.get(),
                is_local: Some(*held) == site,
            })
            .collect(),
    })
}

fn file_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    database_file::number(connection, sql, [])
}

fn read_table(connection: &Connection, table: &Arc<str>) -> rusqlite::Result<TableStatus> {
    // A table that was renamed goes on with the shadow tables that it had, until somebody writes.
    let shadow: String = connection.query_row(
        "SELECT substr(name, 1, length(name) - 13) FROM sqlite_master WHERE type = 'trigger'
         AND tbl_name = ?1 COLLATE NOCASE AND substr(name, -13) = '__crsql_itrig'",
        [table],
        |row| row.get(0),
    )?;
    let clock = quote(&format!("{shadow}__crsql_clock"));
    let count = |sql: &str| database_file::number(connection, sql, []);
    Ok(TableStatus {
        table: table.to_string(),
        rows: count(&format!("SELECT count(*) FROM main.{}", quote(table)))?,
        tombstones: count(&format!("SELECT count(*) FROM {clock} WHERE col_name = '-1' AND col_version % 2 = 0"))?,
        clocks: count(&format!("SELECT count(*) FROM {clock}"))?,
        row_bytes: pages(connection, &[table])?,
        metadata_bytes: pages(connection, &[&format!("{shadow}__crsql_clock"), &format!("{shadow}__crsql_pks")])?,
    })
}

/// Bytes of the pages of these tables and all their indexes.
fn pages(connection: &Connection, tables: &[&str]) -> rusqlite::Result<u64> {
    let mut sum = 0;
    for table in tables {
        let mut trees = connection.prepare(
            "SELECT name FROM sqlite_master WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('table', 'index') AND rootpage > 0",
        )?;
        let mut names = trees.query([table])?;
        while let Some(row) = names.next()? {
            let name: String = row.get(0)?;
            let sql = "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name = ?1 AND aggregate = TRUE";
            sum += database_file::number(connection, sql, [name])?;
        }
    }
    Ok(sum)
}

fn print(status: &Status, output: &mut Output) -> Result<(), Failure> {
    let site = status.site_id.as_deref().unwrap_or("none yet: `litemesh init` gives one");
    output.line(format_args!("file            {} ({})", status.file, bytes(status.file_bytes)))?;
    output.line(format_args!("site id         {site}"))?;
    output.line(format_args!("schema version  {}", status.schema_version))?;
    output.line(format_args!("db version      {}", status.db_version))?;
    if status.tables.is_empty() {
        output.line("no table is replicated: `litemesh init FILE` makes them so")?;
    } else {
        let mut drawn = output::table(["table", "rows", "tombstones", "clocks", "rows take", "metadata takes"]);
        for table in &status.tables {
            drawn.add_row([
                output::printable(&table.table),
                thousands(table.rows),
                thousands(table.tombstones),
                thousands(table.clocks),
                bytes(table.row_bytes),
                bytes(table.metadata_bytes),
            ]);
        }
        right_aligned(&mut drawn, 1..6);
        output.line(drawn)?;
    }
    if !status.cursor.is_empty() {
        let mut drawn = output::table(["holds all changes of site", "up to version", ""]);
        for position in &status.cursor {
            let note = if position.is_local { "this file" } else { "" };
            drawn.add_row([position.site_id.clone(), thousands(position.version.unsigned_abs()), note.to_owned()]);
        }
        right_aligned(&mut drawn, 1..2);
        output.line(drawn)?;
    }
    Ok(())
}

fn right_aligned(table: &mut comfy_table::Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
}
