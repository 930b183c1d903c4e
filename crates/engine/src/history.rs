//! The tables of `@app/sync` in a file that it shares with us: `crsql_change_history`, its log of changes, and `all_peers`,
//! its cursor (`wire-protocol.md` 2).
//!
//! The original answers its remotes from that log alone, under the versions that stand there. So what we merge has to be in
//! it, or the file would be mute about it as soon as the original serves it again; and where the original merged, the log
//! alone knows whose version a change belongs to. We do without both tables, and make neither. While they are there:
//!
//! - *Import.* Opening gives origins to what the original merged, as far as the log tells them.
//! - *Upkeep.* A native merge writes its changes into the log and the cursor that it reached into `all_peers`, in its own
//!   transaction. A write through `crsql_changes` does not: that is how the original merges, and it keeps the log itself. Own
//!   writes are not there either: the original looks for them in `crsql_changes`, above `all_peers` of its own site.
//!
//! `all_peers` is written and never read. The original moves its cursor with every message, before the rest of a transaction
//! has come, also over what failed or was filtered (`known-failures.md` A2 to A4): ours would claim what is not held, and no
//! peer would ever send it.

use std::collections::HashMap;
use std::sync::Arc;

use litemesh_proto::{CausalLength, Change};

use crate::alter::take_write_lock;
use crate::core::Core;
use crate::cursor::store_provisional;
use crate::merge::{MergeProgress, Merged};
use crate::replicate::in_savepoint;
use crate::schema::{KEY_COLUMN, Table};
use crate::sql::{literal, quote};
use crate::statement::{Bind, Handle};

/// Which of the original's tables are there, in a shape that we know how to keep.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OriginalTables {
    history: Presence,
    peers: Presence,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Absent,
    Kept,
    /// A table of the name with other columns is somebody else's: an insert could fail, and every merge with it.
    Unexpected,
}

impl OriginalTables {
    /// Looks at the schema; `before` is what was found last time, so that a strange table is told of once.
    pub(crate) fn find(db: Handle, before: Self) -> rusqlite::Result<Self> {
        let found = Self {
            history: presence(db, "crsql_change_history", HISTORY_SHAPE)?,
            peers: presence(db, "all_peers", PEERS_SHAPE)?,
        };
        for (table, found, before) in
            [("crsql_change_history", found.history, before.history), ("all_peers", found.peers, before.peers)]
        {
            if found == Presence::Unexpected && before != found {
                tracing::warn!(table, "not the table that `@app/sync` makes; it is left alone, neither read nor kept");
            }
        }
        Ok(found)
    }

    fn has_history(self) -> bool {
        self.history == Presence::Kept
    }

    fn has_peers(self) -> bool {
        self.peers == Presence::Kept
    }
}

/// All that we write, an `id` that numbers itself (it is the rowid, so there is no index of it), nothing else that must be
/// given; and the index without which each merge would read the whole log.
const HISTORY_SHAPE: &str = "
    SELECT sum(name IN ('table', 'pk', 'cid', 'val', 'col_version', 'db_version', 'site_id', 'cl', 'seq')) = 9
     AND sum(name = 'id' AND pk = 1 AND upper(type) = 'INTEGER') = 1
     AND NOT EXISTS (SELECT 1 FROM pragma_index_list('crsql_change_history', 'main') WHERE origin = 'pk')
     AND sum(\"notnull\" AND dflt_value IS NULL AND pk = 0 AND name NOT IN ('table', 'pk', 'cid', 'val', 'col_version',
         'db_version', 'site_id', 'cl', 'seq')) = 0
     AND EXISTS (SELECT 1 FROM pragma_index_list('crsql_change_history', 'main') l WHERE NOT l.partial
         AND EXISTS (SELECT 1 FROM pragma_index_info(l.name, 'main') WHERE seqno = 0 AND name = 'site_id')
         AND EXISTS (SELECT 1 FROM pragma_index_info(l.name, 'main') WHERE seqno = 1 AND name = 'db_version'))
    FROM pragma_table_info('crsql_change_history', 'main')";

const PEERS_SHAPE: &str = "
    SELECT sum(name = 'site_id' AND pk = 1) = 1 AND max(pk) = 1 AND sum(name = 'db_version') = 1
     AND sum(\"notnull\" AND dflt_value IS NULL AND name NOT IN ('site_id', 'db_version')) = 0
    FROM pragma_table_info('all_peers', 'main')";

fn presence(db: Handle, table: &str, shape: &str) -> rusqlite::Result<Presence> {
    // Neither a view nor a virtual table, which has no page.
    const EXISTS: &str = "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND rootpage > 0 AND name = ?1";
    if db.query_integer(EXISTS, &[table.into()])?.is_none() {
        return Ok(Presence::Absent);
    }
    Ok(if db.query_integer(shape, &[])? == Some(1) { Presence::Kept } else { Presence::Unexpected })
}

/// Gives origins to what the original merged since the last call, as far as its log tells them. What is left is for
/// [`crate::cursor::record_unknown_origins`].
///
/// An error is logged, not told: without origins all is sent that could be lacking, so nothing depends on this.
pub(crate) fn import_origins(core: &mut Core) {
    if let Err(error) = import_since_last(core) {
        tracing::warn!(%error, "could not read the history that `@app/sync` keeps; whose versions it merged stays unknown");
    }
}

const IMPORTED_UNTIL: &str = "history_imported_until";
const IMPORTED_ROWS: &str = "history_imported_rows";

fn import_since_last(core: &mut Core) -> rusqlite::Result<()> {
    let until = core.db_version()?;
    if !core.original.has_history() || until <= remembered(core, IMPORTED_UNTIL)? {
        return Ok(());
    }
    in_savepoint(core.db, "litemesh_history", || {
        // With the write lock both what was imported and the list of tables stay true.
        take_write_lock(core.db)?;
        let (since, until) = (remembered(core, IMPORTED_UNTIL)?, core.db_version()?);
        if core.original.has_history() && since < until { import(core, since, until) } else { Ok(()) }
    })
}

/// Most tables that one statement joins with the log. SQLite takes up to 500 parts.
const TABLES_MAX: usize = 100;

/// Gives origins to clocks of local versions above `since`.
fn import(core: &mut Core, since: i64, until: i64) -> rusqlite::Result<()> {
    let newest = core.statement("SELECT max(id) FROM main.crsql_change_history")?.query_integer(&[])?;
    let newest = newest.unwrap_or_default();
    // A clock and its row in the log come in one transaction, so rows that were read are not read again. Where the numbers
    // are lower than they were, this is another log.
    let read = Some(remembered(core, IMPORTED_ROWS)?).filter(|read| *read <= newest).unwrap_or_default();
    let mut lacking = Vec::new();
    for table in core.tables() {
        let lacks = format!("SELECT 1 FROM {} c WHERE {LACKS_ORIGIN} LIMIT 1", table.clock());
        if core.db.query_integer(&lacks, &[since.into()])?.is_some() {
            lacking.push(table.clone());
        }
    }
    for tables in lacking.chunks(TABLES_MAX) {
        let binds = [since.into(), read.into(), newest.into(), PENDING_UNKNOWN.into()];
        core.db.prepare(&sql_import(tables))?.run(&binds)?;
    }
    if !lacking.is_empty() {
        const SETTLE: &str =
            "UPDATE litemesh_origin SET version = iif(version = ?1, 0, -1 - version) WHERE version < 0";
        core.statement(SETTLE)?.run(&[PENDING_UNKNOWN.into()])?;
    }
    // Peers of wire v1 wrote the log.
    store_provisional(core, until)?;
    remember(core, IMPORTED_ROWS, newest)?;
    remember(core, IMPORTED_UNTIL, until)
}

/// A merged clock of the range whose origin is not known.
const LACKS_ORIGIN: &str = "c.db_version > ?1 AND c.site_id <> 0 AND NOT EXISTS (SELECT 1 FROM main.litemesh_origin o
     WHERE o.local_version = c.db_version AND o.site = c.site_id AND o.version > 0)";

/// While tables are gone through, an origin that is not settled is negative: `-1 - version`, or this, where a clock is not
/// in the log. The lesser of two is then what counts for both: the higher version, and unknown before any.
const PENDING_UNKNOWN: i64 = i64::MIN;

/// Clocks since local version ?1 and the log's rows after id ?2 and up to ?3, side by side: sorted and grouped by what makes
/// a change the same, then by local version and site.
///
/// A group instead of a join, because the log's only index is of no use here: SQLite sorts within its cache and in temporary
/// files, so memory stays the same and the log is read once, whatever its size.
///
/// - Where some clock of a local version is not in the log, its origin stays unknown: what it is about has no number that a
///   cursor could be compared with.
/// - So it does where a change is there under several versions, of which one is not what is held: an author that was restored
///   from a backup counts again, and a hub can send under a lower number what it does not hold completely. A label above the
///   author's would make cursors jump over what has not come.
/// - A local version is never below its author's (VER-4): what the log says above that is not true.
fn sql_import(tables: &[Arc<Table>]) -> String {
    let clocks: Vec<_> = tables.iter().map(|table| sql_clocks(table)).collect();
    let names: Vec<_> = tables.iter().map(|table| literal(&table.name)).collect();
    format!(
        "INSERT INTO litemesh_origin (local_version, site, version)
         SELECT local, site, iif(count(version) = count(*), -1 - max(version), ?4)
         FROM (SELECT max(local) AS local, site,
                      iif(min(version) = max(version) AND max(version) <= max(local), max(version), NULL) AS version
               FROM ({clocks}
                     UNION ALL
                     SELECT h.\"table\", h.pk, h.cid, h.col_version, h.cl, s.ordinal, NULL, CAST(h.db_version AS INTEGER)
                     FROM main.crsql_change_history h CROSS JOIN main.crsql_site_id s ON s.site_id = h.site_id
                     WHERE h.id > ?2 AND h.id <= ?3 AND s.ordinal <> 0 AND h.\"table\" IN ({names})
                     AND CAST(h.db_version AS INTEGER) = h.db_version AND h.db_version > 0)
               GROUP BY tbl, pk, cid, col_version, cl, site
               HAVING max(local) IS NOT NULL)
         GROUP BY local, site
         ON CONFLICT (local_version, site) DO UPDATE SET version = min(version, excluded.version) WHERE version <= 0",
        clocks = clocks.join(" UNION ALL "),
        names = names.join(", "),
    )
}

/// Clocks as the log would have them.
fn sql_clocks(table: &Table) -> String {
    let keys: Vec<_> = table.keys.iter().map(|column| format!("p.{}", quote(&column.name))).collect();
    format!(
        "SELECT {name} AS tbl, litemesh_pack({keys}) AS pk, c.col_name AS cid, c.col_version AS col_version,
         coalesce(r.col_version, 1) AS cl, c.site_id AS site, c.db_version AS local, NULL AS version
         FROM {clock} c LEFT JOIN {pks} p ON p.{KEY_COLUMN} = c.key
         LEFT JOIN {clock} r ON r.key = c.key AND r.col_name = '-1'
         WHERE {LACKS_ORIGIN}",
        name = literal(&table.name),
        keys = keys.join(", "),
        clock = table.clock(),
        pks = table.keys_table(),
    )
}

fn remembered(core: &mut Core, key: &str) -> rusqlite::Result<i64> {
    let get = core.statement("SELECT value FROM litemesh_meta WHERE key = ?1")?;
    Ok(get.query_integer(&[key.into()])?.unwrap_or_default())
}

fn remember(core: &mut Core, key: &str, value: i64) -> rusqlite::Result<()> {
    const SET: &str = "INSERT INTO litemesh_meta (key, value) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    core.statement(SET)?.run(&[key.into(), value.into()])
}

/// Upkeep of the history: to be called in the transaction that merged `changes`.
pub(crate) fn keep(core: &mut Core, changes: &[Change], merged: &Merged) -> rusqlite::Result<()> {
    if core.original.has_history() { keep_history(core, changes, merged) } else { Ok(()) }
}

/// Upkeep of the original's cursor: to be called in the transaction that stored `progress`.
pub(crate) fn keep_progress(core: &mut Core, progress: &MergeProgress) -> rusqlite::Result<()> {
    if core.original.has_peers() { keep_peers(core, progress) } else { Ok(()) }
}

/// Also what lost is written, as the original does: that it lost here says nothing about who asks.
fn keep_history(core: &mut Core, changes: &[Change], merged: &Merged) -> rusqlite::Result<()> {
    // What won was not held, so it is not in the log: a large transaction that comes in many batches is not looked for again
    // with each. Only a change that brings a row back counts twice as won.
    let is_all_new =
        merged.won >= changes.len() && changes.iter().all(|change| change.causal_length <= CausalLength::FIRST);
    for run in changes.chunk_by(|a, b| a.site == b.site && a.db_version == b.db_version) {
        if run[0].site == core.site {
            continue;
        }
        let held = if is_all_new { vec![false; run.len()] } else { find_held(core, run)? };
        for (change, _) in run.iter().zip(held).filter(|(_, is_held)| !is_held) {
            write(core, change)?;
        }
    }
    Ok(())
}

/// Places in a batch by table, packed key and column.
type ByCell<'a> = HashMap<(&'a [u8], &'a [u8], &'a [u8]), Vec<usize>>;

/// Which changes of one author's version are in the log already, or stand here twice. Memory: that of the batch.
fn find_held(core: &mut Core, run: &[Change]) -> rusqlite::Result<Vec<bool>> {
    let mut held = vec![false; run.len()];
    let mut by_cell: ByCell<'_> = HashMap::new();
    for (index, change) in run.iter().enumerate() {
        let cell = (change.table.as_bytes(), change.key.as_bytes(), change.column.as_str().as_bytes());
        let same_cell = by_cell.entry(cell).or_default();
        held[index] = same_cell.iter().any(|other| run[*other] == *change);
        same_cell.push(index);
    }
    let mut missing = held.iter().filter(|is_held| !**is_held).count();
    const OF_VERSION: &str = "SELECT \"table\", pk, cid, col_version, cl, seq, val FROM main.crsql_change_history
         WHERE site_id = ?1 AND db_version = ?2";
    let statement = core.statement(OF_VERSION)?;
    let rows = statement.query(&[Bind::Blob(run[0].site.as_bytes()), run[0].db_version.get().into()])?;
    while missing > 0 && rows.next()? {
        // The lookup borrows from the row, and so shortens what the map is of: a shared view of it may.
        let by_cell: &ByCell<'_> = &by_cell;
        let Some(same_cell) = by_cell.get(&(rows.bytes(0), rows.bytes(1), rows.bytes(2))) else { continue };
        for index in same_cell {
            let change = &run[*index];
            let counts = (change.col_version.get(), change.causal_length.get(), change.seq.get());
            let is_same =
                counts == (rows.integer(3), rows.integer(4), rows.integer(5)) && rows.value(6) == change.value;
            if is_same && !held[*index] {
                held[*index] = true;
                missing -= 1;
            }
        }
    }
    Ok(held)
}

fn write(core: &mut Core, change: &Change) -> rusqlite::Result<()> {
    const WRITE: &str = "INSERT INTO main.crsql_change_history
         (\"table\", pk, cid, val, col_version, db_version, site_id, cl, seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    core.statement(WRITE)?.run(&[
        (&*change.table).into(),
        Bind::Blob(change.key.as_bytes()),
        change.column.as_str().into(),
        (&change.value).into(),
        change.col_version.get().into(),
        change.db_version.get().into(),
        Bind::Blob(change.site.as_bytes()),
        change.causal_length.get().into(),
        change.seq.get().into(),
    ])
}

/// The original goes on to ask from there. Joined, never set: it may have come further by itself.
fn keep_peers(core: &mut Core, progress: &MergeProgress) -> rusqlite::Result<()> {
    const JOIN: &str = "INSERT INTO main.all_peers (site_id, db_version) VALUES (?1, ?2)
         ON CONFLICT (site_id) DO UPDATE SET db_version = max(db_version, excluded.db_version)";
    for (site, version) in progress.cursor.iter() {
        if *site != core.site {
            core.statement(JOIN)?.run(&[Bind::Blob(site.as_bytes()), version.get().into()])?;
        }
    }
    Ok(())
}
