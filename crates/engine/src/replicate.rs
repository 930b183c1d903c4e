//! Makes a table replicated, and ordinary again (`crsqlite-compat.md` section 8).

use crate::core::{Core, Shared};
use crate::error::ReplicateError;
use crate::schema::{CLOCK_SUFFIX, KEY_COLUMN, KEYS_SUFFIX, Table, check_replicable, load_table};
use crate::sql::{literal, quote};
use crate::statement::{Bind, Handle, Rows};

/// Runs `body` inside a savepoint of its own: an error rolls back that and nothing of the caller's (CRR-4, BUG-19).
pub(crate) fn in_savepoint<T, E: From<rusqlite::Error>>(
    db: Handle,
    name: &'static str,
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    db.execute(&format!("SAVEPOINT {name}"))?;
    let result = body();
    if result.is_err() {
        db.execute(&format!("ROLLBACK TO {name}"))?;
    }
    db.execute(&format!("RELEASE {name}"))?;
    result
}

/// Makes `table` replicated (CRR-1 to CRR-8). Does nothing where it is already.
pub(crate) fn replicate(shared: &Shared, table: &str) -> Result<(), ReplicateError> {
    let mut core = shared.lock()?;
    // Enlisted inside of the savepoint: outside, without a transaction of the caller, that would be one of its own.
    in_savepoint(core.db, "as_crr", || {
        core.enlist()?;
        let table = canonical_name(core.db, table)?;
        if core.table(&table).is_some() && has_trigger(core.db, &table)? {
            return Ok(());
        }
        check_replicable(core.db, &table)?;
        create(&mut core, &table)
    })?;
    core.refresh()?;
    Ok(())
}

/// Makes `table` an ordinary one (CRR-9). Its history goes; the version floor stays (VER-7).
pub(crate) fn unreplicate(shared: &Shared, table: &str) -> Result<(), ReplicateError> {
    let mut core = shared.lock()?;
    in_savepoint(core.db, "as_table", || {
        core.enlist()?;
        let table = match canonical_name(core.db, table) {
            Ok(table) => table,
            Err(ReplicateError::NoSuchTable { table }) => table,
            Err(error) => return Err(error),
        };
        core.raise_floor()?;
        drop_triggers(core.db, &table)?;
        for suffix in [CLOCK_SUFFIX, KEYS_SUFFIX] {
            core.db.execute(&format!("DROP TABLE IF EXISTS {}", quote(&format!("{table}{suffix}"))))?;
        }
        Ok::<_, ReplicateError>(())
    })?;
    core.refresh()?;
    Ok(())
}

/// The name as `sqlite_master` spells it (CRR-8).
fn canonical_name(db: Handle, table: &str) -> Result<String, ReplicateError> {
    let statement = db.prepare(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name = ?1 COLLATE NOCASE
         ORDER BY name = ?1 DESC",
    )?;
    let rows = statement.query(&[table.into()])?;
    if rows.next()? {
        return Ok(rows.text(0).into_owned());
    }
    let temporary = "SELECT count(*) FROM sqlite_temp_master WHERE name = ?1 COLLATE NOCASE";
    if db.query_integer(temporary, &[table.into()])? > Some(0) {
        return Err(ReplicateError::Temporary { table: table.to_owned() });
    }
    Err(ReplicateError::NoSuchTable { table: table.to_owned() })
}

fn has_trigger(db: Handle, table: &str) -> rusqlite::Result<bool> {
    let name = format!("{table}__crsql_itrig");
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name = ?1";
    Ok(db.query_integer(sql, &[name.as_str().into()])? > Some(0))
}

fn create(core: &mut Core, name: &str) -> Result<(), ReplicateError> {
    let db = core.db;
    let table = load_table(db, name)?;
    let (clock, keys) = (table.clock(), table.keys_table());
    db.execute(&format!(
        "CREATE TABLE IF NOT EXISTS {clock} (key INTEGER NOT NULL, col_name TEXT NOT NULL, col_version INTEGER NOT NULL,
         db_version INTEGER NOT NULL, site_id INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL, PRIMARY KEY (key, col_name))
         WITHOUT ROWID, STRICT"
    ))?;
    let index = quote(&format!("{name}{CLOCK_SUFFIX}_dbv_idx"));
    db.execute(&format!("CREATE INDEX IF NOT EXISTS {index} ON {clock} (db_version)"))?;
    let names = table.key_names();
    db.execute(&format!("CREATE TABLE IF NOT EXISTS {keys} ({KEY_COLUMN} INTEGER PRIMARY KEY, {names})"))?;
    let index = quote(&format!("{name}{KEYS_SUFFIX}_pks"));
    db.execute(&format!("CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {keys} ({names})"))?;
    drop_triggers(db, name)?;
    create_triggers(db, &table)?;
    core.refresh()?;
    backfill(core, &table)?;
    Ok(())
}

pub(crate) fn drop_triggers(db: Handle, table: &str) -> rusqlite::Result<()> {
    for suffix in ["__crsql_itrig", "__crsql_utrig", "__crsql_dtrig"] {
        db.execute(&format!("DROP TRIGGER IF EXISTS {}", quote(&format!("{table}{suffix}"))))?;
    }
    Ok(())
}

/// DSK-8.
pub(crate) fn create_triggers(db: Handle, table: &Table) -> rusqlite::Result<()> {
    let columns = |row: &str, columns: &[crate::schema::ColumnInfo]| {
        columns.iter().map(|column| format!("{row}.{}", quote(&column.name))).collect::<Vec<_>>()
    };
    let first = literal(&table.name);
    let call = |function: &str, arguments: Vec<Vec<String>>| {
        let all: Vec<String> = std::iter::once(first.clone()).chain(arguments.into_iter().flatten()).collect();
        format!("{function}({})", all.join(", "))
    };
    let (keys, cells) = (&table.keys, &table.cells);
    for (suffix, event, body) in [
        ("__crsql_itrig", "INSERT", call("crsql_after_insert", vec![columns("NEW", keys)])),
        (
            "__crsql_utrig",
            "UPDATE",
            call(
                "crsql_after_update",
                vec![columns("NEW", keys), columns("OLD", keys), columns("NEW", cells), columns("OLD", cells)],
            ),
        ),
        ("__crsql_dtrig", "DELETE", call("crsql_after_delete", vec![columns("OLD", keys)])),
    ] {
        db.execute(&format!(
            "CREATE TRIGGER {} AFTER {event} ON {} WHEN crsql_internal_sync_bit() = 0 BEGIN VALUES ({body}); END",
            quote(&format!("{}{suffix}", table.name)),
            table.base()
        ))?;
    }
    Ok(())
}

/// CRR-5: rows that were there before get clocks, all of one new version; an empty table takes no version.
fn backfill(core: &mut Core, table: &Table) -> rusqlite::Result<()> {
    let db = core.db;
    let (names, keys, base) = (table.key_names(), table.keys_table(), table.base());
    let rows = db.prepare(&format!("SELECT {names} FROM {base} EXCEPT SELECT {names} FROM {keys}"))?;
    let add_key = db.prepare(&table.sql_add_key())?;
    let sentinel = db.prepare(&table.sql_insert_sentinel())?;
    let clocks = (!table.is_keys_only()).then(|| db.prepare(&table.sql_clocks_of_new_row())).transpose()?;
    let row = rows.query(&[])?;
    while row.next()? {
        add_key.run(&key_binds(&row, table.keys.len()))?;
        let key = Bind::Integer(db.last_insert_rowid());
        let version = Bind::Integer(core.next_version(0));
        let Some(clocks) = &clocks else {
            sentinel.run(&[key, version, core.take_seq().into()])?;
            continue;
        };
        let first = core.take_seq();
        core.skip_seqs(table.cells.len() - 1);
        clocks.run(&[key, version, first.into()])?;
    }
    Ok(())
}

fn key_binds<'a>(row: &'a Rows<'_>, count: usize) -> Vec<Bind<'a>> {
    (0..count).filter_map(|column| i32::try_from(column).ok()).map(|column| row.value_ref(column).into()).collect()
}
