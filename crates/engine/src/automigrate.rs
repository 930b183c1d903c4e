//! `crsql_automigrate(schema)`: makes a database have the tables, columns and indexes of a schema
//! (`crsqlite-compat.md` section 10).
//!
//! The schema is made in a scratch database, and what SQLite says of the two is compared. Then the schema itself is run: it
//! makes what is new, and says what replicates.

use rusqlite::Connection;

use crate::alter::{Compaction, begin_alter, commit_alter, take_write_lock};
use crate::core::Shared;
use crate::error::MigrateError;
use crate::fractional::drop_list_triggers;
use crate::heal::heal;
use crate::replicate::{has_shadows, in_savepoint, unreplicate};
use crate::schema::check_replicable;
use crate::scratch;
use crate::sql::quote;
use crate::sql_text::{column_definition, is_same, statements};
use crate::statement::Handle;

/// A table, as SQLite describes it.
struct Shape {
    name: String,
    /// Its rows are somewhere else: it can be made and dropped, but not altered.
    is_virtual: bool,
    create: String,
}

/// A column, likewise.
struct ColumnShape {
    name: String,
    key: i64,
}

/// Brings the database to `schema`. `cleanup` is run on the scratch database before it closes (AM-3).
///
/// Takes the engine's lock only in between: the statements of a schema call functions that take it themselves.
pub(crate) fn automigrate(shared: &Shared, schema: &str, cleanup: Option<&str>) -> Result<(), MigrateError> {
    refuse_transactions(schema)?;
    let scratch = scratch::open()?;
    scratch.execute_batch("PRAGMA foreign_keys = OFF")?;
    // SAFETY: used below only, while the connection lives.
    let wanted = unsafe { Handle::new(scratch.handle()) };
    wanted.run_script(schema).map_err(MigrateError::Schema)?;
    let db = shared.lock()?.db;
    let migrate = || {
        take_write_lock(db)?;
        let mut core = shared.lock()?;
        core.refresh()?;
        heal(&mut core)?;
        drop(core);
        migrate(shared, db, wanted, schema)
    };
    in_savepoint(db, "automigrate_tables", || {
        let migrated = migrate();
        // In the savepoint as well: a migration that is reported as failed must not have happened.
        let cleaned = cleanup.map_or(Ok(()), |cleanup| wanted.run_script(cleanup).map_err(MigrateError::Cleanup));
        let closed = close(scratch);
        migrated.and(cleaned).and(closed)
    })
}

fn close(scratch: Connection) -> Result<(), MigrateError> {
    scratch.close().map_err(|(_, error)| MigrateError::Cleanup(error))
}

/// AM-4, the FIX: a COMMIT in the schema would end the caller's transaction.
fn refuse_transactions(schema: &str) -> Result<(), MigrateError> {
    const KEYWORDS: [&str; 9] =
        ["begin", "commit", "end", "rollback", "savepoint", "release", "attach", "detach", "vacuum"];
    let first = statements(schema).into_iter().map(|statement| statement[0]);
    match { first }.find(|first| KEYWORDS.iter().any(|keyword| first.is(keyword))) {
        Some(first) => Err(MigrateError::Transaction { keyword: first.text.to_ascii_uppercase() }),
        None => Ok(()),
    }
}

fn migrate(shared: &Shared, db: Handle, wanted: Handle, schema: &str) -> Result<(), MigrateError> {
    let replicable = replicable_tables(shared)?;
    let new = shapes(wanted)?;
    let old = shapes(db)?;
    let in_new = |shape: &Shape| new.iter().find(|new| new.name.eq_ignore_ascii_case(&shape.name));
    // Virtual tables first: they take tables along.
    let (gone, kept): (Vec<_>, Vec<_>) = old.iter().partition(|shape| in_new(shape).is_none());
    let (gone_virtual, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|shape| shape.is_virtual);
    for shape in gone_virtual.into_iter().chain(gone) {
        drop_table(shared, db, &shape.name)?;
    }
    for shape in kept {
        if let Some(new) = in_new(shape)
            && !shape.is_virtual
            && !new.is_virtual
        {
            drop_indexes(db, wanted, &shape.name)?;
            migrate_columns(shared, db, wanted, &shape.name, new)?;
        }
    }
    db.run_script(schema).map_err(MigrateError::Run)?;
    // A unique index is made without anybody asking the engine.
    for table in replicable {
        if has_shadows(db, &table)? {
            check_replicable(db, &table).map_err(|source| MigrateError::Refused { table, source })?;
        }
    }
    Ok(())
}

/// Replicated tables that keep every rule. CRSqlite lets some replicate that we would refuse; those stay as they are.
fn replicable_tables(shared: &Shared) -> Result<Vec<String>, MigrateError> {
    let mut core = shared.lock()?;
    core.refresh()?;
    let names: Vec<String> = core.tables().iter().map(|table| table.name.to_string()).collect();
    Ok(names.into_iter().filter(|name| check_replicable(core.db, name).is_ok()).collect())
}

/// The application's tables (AM-2, step 1): neither SQLite's, nor the engine's, nor those that a virtual table keeps its rows
/// in.
fn shapes(db: Handle) -> Result<Vec<Shape>, MigrateError> {
    let list = db.prepare(
        "SELECT m.name, l.type = 'virtual', m.sql FROM sqlite_master m JOIN pragma_table_list l
         ON l.schema = 'main' AND l.name = m.name WHERE m.type = 'table' AND l.type IN ('table', 'virtual') ORDER BY m.rowid",
    )?;
    let rows = list.query(&[])?;
    let mut shapes = Vec::new();
    while rows.next()? {
        let (name, create) = (rows.text(0).into_owned(), rows.text(2).into_owned());
        let is_internal = ["sqlite_", "crsql_", "__crsql_", "litemesh_"]
            .iter()
            .any(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)));
        if !is_internal && !name.contains("__crsql_") {
            shapes.push(Shape { name, is_virtual: rows.integer(1) != 0, create });
        }
    }
    Ok(shapes)
}

fn step(step: impl Into<String>) -> impl FnOnce(rusqlite::Error) -> MigrateError {
    |source| MigrateError::Step { step: step.into(), source }
}

fn drop_table(shared: &Shared, db: Handle, name: &str) -> Result<(), MigrateError> {
    let refused = |source| MigrateError::Refused { table: name.to_owned(), source };
    drop_list_view(db, name)?;
    if has_shadows(db, name)? {
        unreplicate(shared, name).map_err(refused)?;
    }
    db.execute(&format!("DROP TABLE IF EXISTS main.{}", quote(name))).map_err(step(format!("drop table {name}")))
}

/// The view of an ordered list names the columns of its table. The schema makes it again.
fn drop_list_view(db: Handle, table: &str) -> Result<(), MigrateError> {
    let view = format!("{table}_fractindex");
    db.execute(&format!("DROP VIEW IF EXISTS main.{}", quote(&view))).map_err(step(format!("drop view {view}")))
}

/// Indexes that are not in the schema, or are others there (AM-4, the FIX: before columns, which they may be on). The schema
/// makes the new ones.
fn drop_indexes(db: Handle, wanted: Handle, table: &str) -> Result<(), MigrateError> {
    let (old, new) = (indexes(db, table)?, indexes(wanted, table)?);
    for (name, create) in &old {
        let is_kept = new.iter().any(|(new, text)| new.eq_ignore_ascii_case(name) && is_same(text, create));
        if !is_kept {
            db.execute(&format!("DROP INDEX main.{}", quote(name))).map_err(step(format!("drop index {name}")))?;
        }
    }
    Ok(())
}

/// Names and texts. Those that a constraint brings along have no text.
fn indexes(db: Handle, table: &str) -> Result<Vec<(String, String)>, MigrateError> {
    let list = db.prepare(
        "SELECT name, sql FROM sqlite_master
         WHERE type = 'index' AND tbl_name = ?1 COLLATE NOCASE AND sql IS NOT NULL",
    )?;
    let rows = list.query(&[table.into()])?;
    let mut indexes = Vec::new();
    while rows.next()? {
        indexes.push((rows.text(0).into_owned(), rows.text(1).into_owned()));
    }
    Ok(indexes)
}

fn columns(db: Handle, table: &str) -> Result<Vec<ColumnShape>, MigrateError> {
    let list = db.prepare("SELECT name, pk FROM pragma_table_xinfo(?1, 'main')")?;
    let rows = list.query(&[table.into()])?;
    let mut columns = Vec::new();
    while rows.next()? {
        columns.push(ColumnShape { name: rows.text(0).into_owned(), key: rows.integer(1) });
    }
    Ok(columns)
}

/// Types and constraints of columns that stay are not looked at (AM-2).
fn migrate_columns(shared: &Shared, db: Handle, wanted: Handle, table: &str, new: &Shape) -> Result<(), MigrateError> {
    let (have, want) = (columns(db, table)?, columns(wanted, &new.name)?);
    let find = |columns: &[ColumnShape], name: &str| -> Option<i64> {
        columns.iter().find(|column| column.name.eq_ignore_ascii_case(name)).map(|column| column.key)
    };
    let gone: Vec<_> = have.iter().filter(|column| find(&want, &column.name).is_none()).collect();
    let added: Vec<_> = want.iter().filter(|column| find(&have, &column.name).is_none()).collect();
    let changes_key = |column: &&ColumnShape| {
        let (old, new) = (find(&have, &column.name).unwrap_or_default(), find(&want, &column.name).unwrap_or_default());
        (old > 0) != (new > 0)
    };
    if let Some(column) = have.iter().chain(&want).find(changes_key) {
        return Err(MigrateError::PrimaryKey { table: table.to_owned(), column: column.name.clone() });
    }
    if gone.is_empty() && added.is_empty() {
        return Ok(());
    }
    let is_replicated = has_shadows(db, table)?;
    if is_replicated {
        begin_alter(shared, table)?;
    }
    drop_list_view(db, table)?;
    let alter = format!("ALTER TABLE main.{}", quote(table));
    for ColumnShape { name, .. } in gone {
        drop_list_triggers(db, table, name).map_err(step(format!("drop the order of table {table}")))?;
        db.execute(&format!("{alter} DROP COLUMN {}", quote(name)))
            .map_err(step(format!("drop column {name} of table {table}")))?;
    }
    for ColumnShape { name, .. } in added {
        let definition = column_definition(&new.create, name).unwrap_or(name);
        db.execute(&format!("{alter} ADD COLUMN {definition}"))
            .map_err(step(format!("add column {name} to table {table}")))?;
    }
    if is_replicated {
        commit_alter(shared, table, Compaction::Needed)?;
    }
    Ok(())
}
