//! Mends what can be mended without a decision, in one transaction of the caller.
//!
//! Why each step is safe. *Removing clocks* that stand for nothing (no key, no column, a dead row's cells): no read tells them,
//! no merge looks at them; the version floor is raised first, so that no version is given out twice (VER-7). *New clocks* for
//! what has none: the row is as it is here and nowhere else; it is sent like a row that is inserted now, and loses against
//! whatever others have under later versions. *Another author* for clocks whose author is gone: value, column version and
//! causal length decide every merge, and they stay. *Triggers and indexes* follow from the table.
//!
//! Nothing here writes to a base table. What takes a decision is left: a living row that is gone could be a delete that
//! nobody was told of, or a loss ([`bury_missing_rows`]).

use std::sync::Arc;

use super::finding::{Finding, FindingKind};
use super::layout;
use super::rows::{
    BaseScan, FIRST_KEY, Missing, sql_base_of_key, sql_columns, sql_has_no_author, sql_has_no_clocks, sql_has_no_origin,
};
use crate::bootstrap;
use crate::core::Core;
use crate::discovery;
use crate::heal::mend_all;
use crate::replicate::{create_indexes, create_triggers, drop_triggers};
use crate::schema::{KEY_COLUMN, Table};
use crate::sql::quote;
use crate::statement::{Bind, Handle};

/// What [`Engine::repair`](crate::Engine::repair) did about one kind of finding in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// What it was.
    pub kind: FindingKind,
    /// The replicated table, `None` where it concerned the whole database.
    pub table: Option<Arc<str>>,
    /// How many clocks, rows, keys or objects were mended.
    pub count: u64,
}

/// Repairs in the transaction that is running.
pub(crate) fn repair(core: &mut Core) -> rusqlite::Result<Vec<Repaired>> {
    // What was done to the shadow tables by hand, on this connection, went past us.
    core.forget_everything();
    core.enlist()?;
    let mut work = Work { db: core.db, core, repaired: Vec::new() };
    for mended in mend_all(work.core)? {
        let (kind, table) = match mended {
            discovery::Repair::Forget { shadow } => (FindingKind::OrphanShadowTable, shadow),
            discovery::Repair::Rename { table, .. } | discovery::Repair::RenameKeys { table, .. } => {
                (FindingKind::RenamedTable, table)
            }
            discovery::Repair::Triggers { table, .. } => (FindingKind::AlteredTrigger, table),
        };
        work.note(kind, Some(&table.into()), 1);
    }
    let layout = layout::check(work.core)?;
    for finding in &layout.findings {
        work.repair_layout(finding)?;
    }
    for table in &layout.readable {
        work.repair_rows(table)?;
    }
    work.repair_origins(&layout.readable)?;
    work.core.refresh()?;
    Ok(work.repaired)
}

struct Work<'a> {
    db: Handle,
    core: &'a mut Core,
    repaired: Vec<Repaired>,
}

impl Work<'_> {
    fn note(&mut self, kind: FindingKind, table: Option<&Arc<str>>, count: i64) {
        let count = count.unsigned_abs();
        if count == 0 {
            return;
        }
        match self.repaired.iter_mut().find(|done| done.kind == kind && done.table.as_ref() == table) {
            Some(done) => done.count += count,
            None => self.repaired.push(Repaired { kind, table: table.cloned(), count }),
        }
    }

    fn repair_layout(&mut self, finding: &Finding) -> rusqlite::Result<()> {
        let (kind, table) = (finding.kind, finding.table.as_ref());
        match (kind, table) {
            (FindingKind::OrphanShadowTable, Some(_)) => {
                let Some(shadow) = &finding.name else { return Ok(()) };
                self.core.raise_floor()?;
                self.db.execute(&format!("DROP TABLE main.{}", quote(shadow)))?;
            }
            (
                FindingKind::MissingTrigger | FindingKind::AlteredTrigger | FindingKind::TriggerOfOtherTable,
                Some(name),
            ) => {
                let Some(table) = self.core.table(name) else { return Ok(()) };
                drop_triggers(self.db, &table.shadow)?;
                create_triggers(self.db, &table)?;
            }
            (FindingKind::MissingIndex, Some(name)) => {
                let Some(table) = self.core.table(name) else { return Ok(()) };
                if let Some(index) = &finding.name {
                    self.db.execute(&format!("DROP INDEX IF EXISTS main.{}", quote(index)))?;
                }
                create_indexes(self.db, &table)?;
            }
            (FindingKind::MissingIndex, None) => bootstrap::create_tables(self.db)?,
            _ => return Ok(()),
        }
        self.note(kind, table, 1);
        Ok(())
    }

    /// Runs a statement that changes shadow tables, and notes how many rows it changed.
    fn change(&mut self, kind: FindingKind, table: &Table, sql: &str, binds: &[Bind<'_>]) -> rusqlite::Result<i64> {
        let before = self.db.total_changes();
        self.db.prepare(sql)?.run(binds)?;
        let count = self.db.total_changes() - before;
        self.note(kind, Some(&table.name), count);
        Ok(count)
    }

    fn repair_rows(&mut self, table: &Arc<Table>) -> rusqlite::Result<()> {
        let (clock, keys) = (table.clock(), table.keys_table());
        let mut removed = self.change(
            FindingKind::ClockOfMissingColumn,
            table,
            &format!("DELETE FROM {clock} WHERE col_name NOT IN ({})", sql_columns(table)),
            &[],
        )?;
        removed += self.change(
            FindingKind::ClockWithoutKey,
            table,
            &format!("DELETE FROM {clock} WHERE key NOT IN (SELECT {KEY_COLUMN} FROM {keys})"),
            &[],
        )?;
        removed += self.change(
            FindingKind::DeadRowWithClocks,
            table,
            &format!(
                "DELETE FROM {clock} WHERE col_name <> '-1' AND key IN
                 (SELECT key FROM {clock} WHERE col_name = '-1' AND col_version > 0 AND col_version % 2 = 0)"
            ),
            &[],
        )?;
        if removed > 0 {
            self.core.raise_floor()?;
        }
        let has_no_author = sql_has_no_author();
        let stray = format!("SELECT EXISTS (SELECT 1 FROM {clock} WHERE {has_no_author})");
        if self.db.query_integer(&stray, &[])? == Some(1) {
            let version = self.core.version_to_write()?;
            let adopt = format!("UPDATE {clock} SET site_id = 0, db_version = ?1 WHERE {has_no_author}");
            self.change(FindingKind::UnknownAuthor, table, &adopt, &[version.into()])?;
        }
        self.revive_present_rows(table)?;
        self.fill_in_clocks(table)?;
        let unused = format!("DELETE FROM {keys} AS p WHERE {}", sql_has_no_clocks(table));
        self.change(FindingKind::KeyWithoutClocks, table, &unused, &[])?;
        Ok(())
    }

    /// Rows that are there although they are dead: as LW-3 and LW-4.
    fn revive_present_rows(&mut self, table: &Arc<Table>) -> rusqlite::Result<()> {
        let sql = format!("{} LIMIT {BATCH}", sql_dead_rows_present(table));
        let dead = self.db.prepare(&sql)?;
        let sentinel = self.db.prepare(&table.sql_reinsert_sentinel())?;
        let mut after = i64::MIN;
        loop {
            // A batch is read to its end before anything is written: the statement reads what is written here.
            let keys = read_keys(&dead, after)?;
            for key in &keys {
                let version = self.core.version_to_write()?;
                sentinel.run(&[(*key).into(), version.into(), self.core.take_seqs(1).into()])?;
                self.add_clocks(table, *key, None)?;
                self.note(FindingKind::DeadRowPresent, Some(&table.name), 1);
                after = *key;
            }
            if keys.len() < BATCH {
                return Ok(());
            }
        }
    }

    /// Rows and cells that no clock knows: as LW-1, LW-2 and LW-4, but for what has clocks already.
    fn fill_in_clocks(&mut self, table: &Arc<Table>) -> rusqlite::Result<()> {
        // The base table is walked, and not written to; the shadow tables are looked up for each row.
        let scan = BaseScan::new(self.db, table)?;
        let add_key = self.db.prepare(&table.sql_add_key())?;
        let sentinel = self.db.prepare(&table.sql_insert_sentinel())?;
        while let Some((key, missing)) = scan.next(table)? {
            let version = self.core.version_to_write()?;
            let key = match key {
                Some(key) => key,
                None => {
                    let row = scan.row();
                    let columns = (FIRST_KEY..FIRST_KEY + table.keys.len()).filter_map(|n| i32::try_from(n).ok());
                    add_key.run(&columns.map(|column| row.value_ref(column).into()).collect::<Vec<_>>())?;
                    self.db.last_insert_rowid()
                }
            };
            match missing {
                Missing::Row if table.is_keys_only() => {
                    sentinel.run(&[key.into(), version.into(), self.core.take_seqs(1).into()])?;
                    self.note(FindingKind::RowWithoutClocks, Some(&table.name), 1);
                }
                Missing::Row => {
                    self.add_clocks(table, key, None)?;
                    self.note(FindingKind::RowWithoutClocks, Some(&table.name), 1);
                }
                Missing::Cells(cells) => {
                    self.add_clocks(table, key, Some(&cells))?;
                    let count = i64::try_from(cells.len()).unwrap_or_default();
                    self.note(FindingKind::CellWithoutClock, Some(&table.name), count);
                }
            }
        }
        Ok(())
    }

    /// First clocks for these cells, or for all.
    fn add_clocks(&mut self, table: &Arc<Table>, key: i64, cells: Option<&[usize]>) -> rusqlite::Result<()> {
        let all: Vec<usize> = (0..table.cells.len()).collect();
        let cells = cells.unwrap_or(&all);
        if cells.is_empty() {
            return Ok(());
        }
        let version = self.core.version_to_write()?;
        let put = self.db.prepare(&format!(
            "INSERT INTO {} (key, col_name, col_version, db_version, site_id, seq) VALUES (?1, ?2, 1, ?3, 0, ?4)",
            table.clock()
        ))?;
        for cell in cells {
            let (name, seq) = (&*table.cells[*cell].name, self.core.take_seqs(1));
            put.run(&[key.into(), name.into(), version.into(), seq.into()])?;
        }
        Ok(())
    }

    fn repair_origins(&mut self, tables: &[Arc<Table>]) -> rusqlite::Result<()> {
        if !self.core.has_litemesh_tables {
            return Ok(());
        }
        for table in tables {
            let fill = format!(
                "INSERT INTO litemesh_origin (local_version, site, version)
                 SELECT DISTINCT c.db_version, c.site_id, 0 FROM {} c WHERE {}",
                table.clock(),
                sql_has_no_origin()
            );
            self.change(FindingKind::MissingOrigin, table, &fill, &[])?;
        }
        // Clocks of such a site have another author by now.
        let before = self.db.total_changes();
        self.db.execute("DELETE FROM litemesh_origin WHERE site NOT IN (SELECT ordinal FROM crsql_site_id)")?;
        self.note(FindingKind::OriginOfUnknownSite, None, self.db.total_changes() - before);
        Ok(())
    }
}

/// Rows that are changed between two looks at the table.
const BATCH: usize = 10_000;

fn read_keys(statement: &crate::statement::Statement, after: i64) -> rusqlite::Result<Vec<i64>> {
    let rows = statement.query(&[after.into()])?;
    let mut keys = Vec::new();
    while rows.next()? {
        keys.push(rows.integer(0));
    }
    Ok(keys)
}

fn sql_dead_rows_present(table: &Table) -> String {
    format!(
        "SELECT s.key FROM {} s JOIN {} p ON p.{KEY_COLUMN} = s.key WHERE s.key > ?1 AND s.col_name = '-1'
         AND s.col_version > 0 AND s.col_version % 2 = 0 AND EXISTS (SELECT 1 FROM {}) ORDER BY s.key",
        table.clock(),
        table.keys_table(),
        sql_base_of_key(table)
    )
}

fn sql_living_rows_missing(table: &Table) -> String {
    format!(
        "SELECT DISTINCT c.key FROM {clock} c JOIN {} p ON p.{KEY_COLUMN} = c.key WHERE c.key > ?1
         AND NOT EXISTS (SELECT 1 FROM {})
         AND NOT EXISTS (SELECT 1 FROM {clock} s WHERE s.key = c.key AND s.col_name = '-1' AND s.col_version % 2 = 0)
         ORDER BY c.key",
        table.keys_table(),
        sql_base_of_key(table),
        clock = table.clock(),
    )
}

/// Gives living rows that are gone a tombstone, as if they were deleted now. Gives how many there were, by table.
pub(crate) fn bury_missing_rows(core: &mut Core) -> rusqlite::Result<Vec<Repaired>> {
    core.forget_everything();
    core.enlist()?;
    let layout = layout::check(core)?;
    let mut work = Work { db: core.db, core, repaired: Vec::new() };
    for table in &layout.readable {
        let missing = work.db.prepare(&format!("{} LIMIT {BATCH}", sql_living_rows_missing(table)))?;
        let sentinel = work.db.prepare(&table.sql_delete_sentinel())?;
        let drop_cells = work.db.prepare(&table.sql_drop_cells())?;
        let mut after = i64::MIN;
        loop {
            let keys = read_keys(&missing, after)?;
            for key in &keys {
                let version = work.core.version_to_write()?;
                sentinel.run(&[(*key).into(), version.into(), work.core.take_seqs(1).into()])?;
                drop_cells.run(&[(*key).into()])?;
                work.note(FindingKind::ClockWithoutRow, Some(&table.name), 1);
                after = *key;
            }
            if keys.len() < BATCH {
                break;
            }
        }
    }
    Ok(work.repaired)
}
