//! Makes a table replicated, and ordinary again (`crsqlite-compat.md` section 8).

use crate::alter::{self, Extent};
use crate::backfill::{Stamp, backfill_rows};
use crate::core::{Core, Shared};
use crate::error::ReplicateError;
use crate::heal::heal_table;
use crate::schema::{CLOCK_SUFFIX, ColumnInfo, KEY_COLUMN, KEYS_SUFFIX, Table, check_replicable, load_table};
use crate::sql::{literal, quote};
use crate::statement::Handle;

/// Runs `body` inside a savepoint of its own: an error rolls back that and nothing of the caller's (CRR-4, BUG-19).
pub(crate) fn in_savepoint<T, E: From<rusqlite::Error>>(
    db: Handle,
    name: &'static str,
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    db.execute(&format!("SAVEPOINT {name}"))?;
    let result = body().and_then(|value| {
        db.execute(&format!("RELEASE {name}"))?;
        Ok(value)
    });
    // Where even the first of these fails, SQLite has rolled back everything already; what it said before is what matters.
    if result.is_err() && db.execute(&format!("ROLLBACK TO {name}")).is_ok() {
        let _ = db.execute(&format!("RELEASE {name}"));
    }
    result
}

/// Makes `table` replicated (CRR-1 to CRR-8). Does nothing where it is already.
pub(crate) fn replicate(shared: &Shared, table: &str) -> Result<(), ReplicateError> {
    let mut core = shared.lock()?;
    // Enlisted inside of the savepoint: outside, without a transaction of the caller, that would be one of its own.
    in_savepoint(core.db, "as_crr", || make_replicated(&mut core, table))?;
    core.refresh()?;
    Ok(())
}

/// The same in the middle of a statement that writes, where SQLite opens no savepoint. An error leaves pieces behind.
pub(crate) fn replicate_without_savepoint(shared: &Shared, table: &str) -> Result<(), ReplicateError> {
    let mut core = shared.lock()?;
    make_replicated(&mut core, table)?;
    core.refresh()?;
    Ok(())
}

fn make_replicated(core: &mut Core, table: &str) -> Result<(), ReplicateError> {
    core.enlist()?;
    heal_table(core, table)?;
    let table = canonical_name(core.db, table)?;
    if core.table(&table).is_some() {
        return Ok(());
    }
    check_replicable(core.db, &table)?;
    create(core, &table)
}

/// Makes `table` an ordinary one (CRR-9). Its history goes; the version floor stays (VER-7).
pub(crate) fn unreplicate(shared: &Shared, table: &str) -> Result<(), ReplicateError> {
    let mut core = shared.lock()?;
    in_savepoint(core.db, "as_table", || make_ordinary(&mut core, table))?;
    core.refresh()?;
    Ok(())
}

/// The same in the middle of a statement that writes.
pub(crate) fn unreplicate_without_savepoint(shared: &Shared, table: &str) -> Result<(), ReplicateError> {
    let mut core = shared.lock()?;
    make_ordinary(&mut core, table)?;
    core.refresh()?;
    Ok(())
}

fn make_ordinary(core: &mut Core, table: &str) -> Result<(), ReplicateError> {
    core.enlist()?;
    heal_table(core, table)?;
    let table = match canonical_name(core.db, table) {
        Ok(table) => table,
        Err(ReplicateError::NoSuchTable { table }) => table,
        Err(error) => return Err(error),
    };
    core.raise_floor()?;
    drop_triggers(core.db, &table)?;
    drop_shadows(core.db, &table)?;
    Ok(())
}

/// The name as `sqlite_master` spells it (CRR-8).
pub(crate) fn canonical_name(db: Handle, table: &str) -> Result<String, ReplicateError> {
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

fn create(core: &mut Core, name: &str) -> Result<(), ReplicateError> {
    let db = core.db;
    let table = load_table(db, name)?;
    if has_shadows(db, name)? {
        // The triggers went with the table that had them: it was made anew past `crsql_begin_alter()`.
        alter::realign(core, &table, Extent::Everything, Stamp::Next)?;
    } else {
        create_shadows(db, &table)?;
        backfill_rows(core, &table, Stamp::Next)?;
    }
    drop_triggers(db, name)?;
    create_triggers(db, &table)?;
    core.refresh()?;
    Ok(())
}

/// Whether the shadow tables of this name are there.
pub(crate) fn has_shadows(db: Handle, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN (?1 || ?2, ?1 || ?3)";
    Ok(db.query_integer(sql, &[table.into(), CLOCK_SUFFIX.into(), KEYS_SUFFIX.into()])? == Some(2))
}

/// DSK-4 to DSK-7, where they are missing.
pub(crate) fn create_shadows(db: Handle, table: &Table) -> rusqlite::Result<()> {
    let (clock, keys, names) = (table.clock(), table.keys_table(), table.key_names());
    db.execute(&format!(
        "CREATE TABLE IF NOT EXISTS {clock} (key INTEGER NOT NULL, col_name TEXT NOT NULL, col_version INTEGER NOT NULL,
         db_version INTEGER NOT NULL, site_id INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL, PRIMARY KEY (key, col_name))
         WITHOUT ROWID, STRICT"
    ))?;
    db.execute(&format!("CREATE TABLE IF NOT EXISTS {keys} ({KEY_COLUMN} INTEGER PRIMARY KEY, {names})"))?;
    create_indexes(db, table)
}

/// DSK-5 and DSK-7, where they are missing.
pub(crate) fn create_indexes(db: Handle, table: &Table) -> rusqlite::Result<()> {
    let name = |suffix: &str| quote(&format!("{}{suffix}", table.shadow));
    let (index, clock) = (name(&format!("{CLOCK_SUFFIX}_dbv_idx")), name(CLOCK_SUFFIX));
    db.execute(&format!("CREATE INDEX IF NOT EXISTS main.{index} ON {clock} (db_version)"))?;
    let (index, keys) = (name(&format!("{KEYS_SUFFIX}_pks")), name(KEYS_SUFFIX));
    db.execute(&format!("CREATE UNIQUE INDEX IF NOT EXISTS main.{index} ON {keys} ({})", table.key_names()))
}

/// Removes clocks and keys. Raise the version floor before (VER-7).
pub(crate) fn drop_shadows(db: Handle, table: &str) -> rusqlite::Result<()> {
    [CLOCK_SUFFIX, KEYS_SUFFIX]
        .iter()
        .try_for_each(|suffix| db.execute(&format!("DROP TABLE IF EXISTS main.{}", quote(&format!("{table}{suffix}")))))
}

/// Removes the triggers of a table, also those that older versions of CRSqlite made for each key column.
pub(crate) fn drop_triggers(db: Handle, table: &str) -> rusqlite::Result<()> {
    let mut names: Vec<String> =
        ["__crsql_itrig", "__crsql_utrig", "__crsql_dtrig"].iter().map(|suffix| format!("{table}{suffix}")).collect();
    {
        let legacy = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE
                      AND substr(name, 1, length(?1) + 1) = ?1 || '_' AND substr(name, -13) = '__crsql_utrig'";
        let legacy = db.prepare(legacy)?;
        let rows = legacy.query(&[table.into()])?;
        while rows.next()? {
            names.push(rows.text(0).into_owned());
        }
    }
    names.iter().try_for_each(|name| db.execute(&format!("DROP TRIGGER IF EXISTS main.{}", quote(name))))
}

pub(crate) fn create_triggers(db: Handle, table: &Table) -> rusqlite::Result<()> {
    trigger_texts(table).iter().try_for_each(|(_, sql)| db.execute(sql))
}

/// Most arguments of a function where SQLite was compiled without saying how many; newer versions take 1000. A file must work
/// with either.
const ARGUMENTS_MAX: usize = 127;
/// How many values are packed into one argument of a wider table.
const PACKED_VALUES_MAX: usize = 100;

/// Name and text of each trigger (DSK-8). The update trigger of a table that is too wide for CRSqlite packs its values (CRR-7).
pub(crate) fn trigger_texts(table: &Table) -> Vec<(String, String)> {
    let columns = |row: &str, columns: &[ColumnInfo]| {
        columns.iter().map(|column| format!("{row}.{}", quote(&column.name))).collect::<Vec<_>>()
    };
    let first = literal(&table.shadow);
    let call = |function: &str, arguments: Vec<Vec<String>>| {
        let all: Vec<String> = std::iter::once(first.clone()).chain(arguments.into_iter().flatten()).collect();
        format!("{function}({})", all.join(", "))
    };
    let (keys, cells) = (&table.keys, &table.cells);
    let packed = |row: &str| {
        let values = [columns(row, keys), columns(row, cells)].concat();
        let chunks = values.chunks(PACKED_VALUES_MAX);
        chunks.map(|chunk| format!("litemesh_pack({})", chunk.join(", "))).collect::<Vec<_>>()
    };
    // The name of the table comes first.
    let arguments = 1 + 2 * (keys.len() + cells.len());
    let update = if arguments <= ARGUMENTS_MAX {
        call(
            "crsql_after_update",
            vec![columns("NEW", keys), columns("OLD", keys), columns("NEW", cells), columns("OLD", cells)],
        )
    } else {
        call("litemesh_after_update", vec![packed("NEW"), packed("OLD")])
    };
    let trigger = |(suffix, event, body): (&str, &str, String)| {
        let name = format!("{}{suffix}", table.shadow);
        let sql = format!(
            "CREATE TRIGGER main.{} AFTER {event} ON {} WHEN crsql_internal_sync_bit() = 0 BEGIN VALUES ({body}); END",
            quote(&name),
            quote(&table.name)
        );
        (name, sql)
    };
    [
        ("__crsql_itrig", "INSERT", call("crsql_after_insert", vec![columns("NEW", keys)])),
        ("__crsql_utrig", "UPDATE", update),
        ("__crsql_dtrig", "DELETE", call("crsql_after_delete", vec![columns("OLD", keys)])),
    ]
    .into_iter()
    .map(trigger)
    .collect()
}
