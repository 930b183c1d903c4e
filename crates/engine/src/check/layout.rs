//! What is wrong with shadow tables, indexes and triggers, and with what concerns the whole database.

use std::sync::Arc;

use super::finding::{Finding, FindingKind};
use super::trigger::{Difference, compare};
use crate::core::Core;
use crate::discovery::{Repair, discover};
use crate::error::ReplicateError;
use crate::replicate::trigger_texts;
use crate::schema::{CLOCK_SUFFIX, KEYS_SUFFIX, Table, check_replicable};
use crate::statement::Handle;

/// What [`check`] found.
pub(super) struct Layout {
    pub(super) findings: Vec<Finding>,
    /// Tables whose shadow tables can be read.
    pub(super) readable: Vec<Arc<Table>>,
}

/// Looks at the schema alone; costs nothing worth mentioning.
pub(super) fn check(core: &mut Core) -> rusqlite::Result<Layout> {
    let db = core.db;
    let mut findings = global(core)?;
    for table in core.tables() {
        table_layout(db, table, &mut findings)?;
    }
    // While a table is being altered it has no triggers, and may have any columns.
    if !core.windows.is_empty() {
        return Ok(Layout { findings, readable: core.tables().to_vec() });
    }
    let found = discover(db)?;
    for repair in &found.repairs {
        if let Repair::Rename { shadow, table } = repair {
            let detail = format!("the shadow tables are still those of {shadow}");
            findings.push(Finding::new(FindingKind::RenamedTable, detail).of_table(&table.as_str().into()));
        }
    }
    for shadow in &found.orphans {
        let repair = found.repairs.iter().find(|repair| match repair {
            Repair::Forget { shadow: of } | Repair::RenameKeys { shadow: of, .. } => of == shadow,
            _ => false,
        });
        match repair {
            Some(Repair::RenameKeys { table, columns, .. }) => {
                let (old, new): (Vec<_>, Vec<_>) = columns.iter().cloned().unzip();
                let detail =
                    format!("the keys table still has ({}) for ({}): nothing is sent", old.join(", "), new.join(", "));
                findings.push(Finding::new(FindingKind::RenamedTable, detail).of_table(&table.as_str().into()));
            }
            Some(_) => orphan(db, shadow, &mut findings)?,
            None => unusable(db, shadow, &mut findings)?,
        }
    }
    left_behind(db, &mut findings)?;
    Ok(Layout { findings, readable: core.tables().to_vec() })
}

/// The first column of each row.
fn names(db: Handle, sql: &str, object: &str) -> rusqlite::Result<Vec<String>> {
    let statement = db.prepare(sql)?;
    let rows = statement.query(&[object.into()])?;
    let mut names = Vec::new();
    while rows.next()? {
        names.push(rows.text(0).into_owned());
    }
    Ok(names)
}

fn exists(db: Handle, kind: &str, name: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = ?1 AND name = ?2 COLLATE NOCASE";
    Ok(db.query_integer(sql, &[kind.into(), name.into()])? > Some(0))
}

fn global(core: &mut Core) -> rusqlite::Result<Vec<Finding>> {
    let db = core.db;
    let mut findings = Vec::new();
    let mut indexes = vec![("crsql_site_id_site_id", "crsql_site_id")];
    if core.has_litemesh_tables {
        indexes.push(("litemesh_origin_site", "litemesh_origin"));
    }
    for (index, table) in indexes {
        if !exists(db, "index", index)? {
            let detail = format!("index {index} of {table} is missing");
            findings.push(Finding::new(FindingKind::MissingIndex, detail).named(index));
        }
    }
    let malformed = "SELECT count(*) FROM crsql_site_id WHERE length(site_id) <> 16";
    let malformed = db.query_integer(malformed, &[])?.unwrap_or_default();
    if malformed > 0 {
        let detail = format!("{malformed} of the sites in crsql_site_id have a site id that has not 16 bytes");
        findings.push(Finding::new(FindingKind::MalformedSiteId, detail));
    }
    if core.has_litemesh_tables {
        origins(db, &mut findings)?;
        stage(db, &mut findings)?;
    }
    Ok(findings)
}

fn origins(db: Handle, findings: &mut Vec<Finding>) -> rusqlite::Result<()> {
    let stray = "SELECT count(*) FROM litemesh_origin WHERE site NOT IN (SELECT ordinal FROM crsql_site_id)";
    let stray = db.query_integer(stray, &[])?.unwrap_or_default();
    if stray > 0 {
        let detail = format!("{stray} origins name a site that is not in crsql_site_id");
        findings.push(Finding::new(FindingKind::OriginOfUnknownSite, detail));
    }
    let unknown = db.prepare(
        "SELECT lower(hex(s.site_id)), count(*) FROM litemesh_origin o CROSS JOIN crsql_site_id s ON s.ordinal = o.site
         WHERE o.version = 0 GROUP BY o.site",
    )?;
    let rows = unknown.query(&[])?;
    while rows.next()? {
        let detail = format!(
            "what was merged of site {} in {} local versions has no version of its author: it goes to everybody",
            rows.text(0),
            rows.integer(1)
        );
        findings.push(Finding::new(FindingKind::UnknownOrigin, detail));
    }
    Ok(())
}

fn stage(db: Handle, findings: &mut Vec<Finding>) -> rusqlite::Result<()> {
    let staged = db.prepare("SELECT lower(hex(site_id)), sum(count) FROM litemesh_stage GROUP BY site_id")?;
    let rows = staged.query(&[])?;
    while rows.next()? {
        let (changes, from) = (rows.integer(1), rows.text(0));
        let detail = format!("{changes} changes of a catch-up from {from} that broke off wait for the rest of it");
        findings.push(Finding::new(FindingKind::StagedChanges, detail));
    }
    Ok(())
}

/// One replicated table.
fn table_layout(db: Handle, table: &Arc<Table>, findings: &mut Vec<Finding>) -> rusqlite::Result<()> {
    let mut add = |kind, name: Option<String>, detail: String| {
        let mut finding = Finding::new(kind, detail).of_table(&table.name);
        finding.name = name.map(Into::into);
        findings.push(finding);
    };
    match check_replicable(db, &table.name) {
        Ok(()) => {}
        Err(ReplicateError::Storage(error)) => return Err(error.0),
        Err(rule) => add(FindingKind::BrokenRule, None, rule.to_string()),
    }
    check_triggers(db, table, &mut add)?;
    let clock_index = format!("{}{CLOCK_SUFFIX}_dbv_idx", table.shadow);
    if index_columns(db, &clock_index, false)? != ["db_version"] {
        add(
            FindingKind::MissingIndex,
            Some(clock_index),
            "the clock table has no index on db_version alone".to_owned(),
        );
    }
    let keys_index = format!("{}{KEYS_SUFFIX}_pks", table.shadow);
    let mut expected: Vec<_> = table.keys.iter().map(|column| column.name.to_ascii_lowercase()).collect();
    let indexed = index_columns(db, &keys_index, true)?;
    let mut indexed: Vec<_> = indexed.iter().map(|name| name.to_ascii_lowercase()).collect();
    expected.sort_unstable();
    indexed.sort_unstable();
    if indexed != expected {
        let detail = "the keys table has no unique index on the primary key".to_owned();
        add(FindingKind::MissingIndex, Some(keys_index), detail);
    }
    Ok(())
}

/// The columns of a full index, none where it is not there.
fn index_columns(db: Handle, index: &str, is_unique: bool) -> rusqlite::Result<Vec<String>> {
    let fits = "SELECT count(*) FROM sqlite_master m JOIN pragma_index_list(m.tbl_name, 'main') l ON l.name = m.name
                WHERE m.type = 'index' AND m.name = ?1 COLLATE NOCASE AND l.partial = 0 AND l.\"unique\" >= ?2";
    if db.query_integer(fits, &[index.into(), i64::from(is_unique).into()])? != Some(1) {
        return Ok(Vec::new());
    }
    names(db, "SELECT name FROM pragma_index_info(?1, 'main') ORDER BY seqno", index)
}

fn check_triggers(
    db: Handle,
    table: &Table,
    add: &mut impl FnMut(FindingKind, Option<String>, String),
) -> rusqlite::Result<()> {
    for (name, expected) in trigger_texts(table) {
        let text = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?1 COLLATE NOCASE";
        let Some(found) = names(db, text, &name)?.pop() else {
            let detail = format!("trigger {name} is missing: what it should record goes to nobody");
            add(FindingKind::MissingTrigger, Some(name), detail);
            continue;
        };
        match compare(&found, &expected) {
            None => {}
            Some(Difference::OtherTable(other)) => {
                let detail = format!("trigger {name} records for table {other}");
                add(FindingKind::TriggerOfOtherTable, Some(name), detail);
            }
            Some(Difference::Other) => {
                let detail = format!("trigger {name} is not the one that the columns of the table need");
                add(FindingKind::AlteredTrigger, Some(name), detail);
            }
        }
    }
    Ok(())
}

/// Shadow tables of a table that was dropped.
fn orphan(db: Handle, shadow: &str, findings: &mut Vec<Finding>) -> rusqlite::Result<()> {
    for suffix in [CLOCK_SUFFIX, KEYS_SUFFIX] {
        let table = format!("{shadow}{suffix}");
        if exists(db, "table", &table)? {
            let detail = format!("{table} was left behind when {shadow} was dropped");
            findings.push(Finding::new(FindingKind::OrphanShadowTable, detail).of_table(&shadow.into()).named(table));
        }
    }
    Ok(())
}

/// A clock table that no table replicates with, though one is there.
fn unusable(db: Handle, shadow: &str, findings: &mut Vec<Finding>) -> rusqlite::Result<()> {
    let keys_table = format!("{shadow}{KEYS_SUFFIX}");
    let trigger = "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger' AND name = ?1 COLLATE NOCASE";
    let Some(table) = names(db, trigger, &format!("{shadow}__crsql_itrig"))?.pop() else {
        let detail = format!(
            "{shadow} has a history and no trigger {shadow}__crsql_itrig: nothing is sent and nothing recorded"
        );
        findings.push(Finding::new(FindingKind::UntrackedTable, detail).of_table(&shadow.into()));
        return Ok(());
    };
    let finding = if !exists(db, "table", &keys_table)? {
        Finding::new(FindingKind::MissingShadowTable, "the keys table is missing: writes fail").named(keys_table)
    } else if names(db, "SELECT name FROM pragma_table_info(?1, 'main') WHERE pk > 0", &table)?.is_empty() {
        Finding::new(FindingKind::BrokenRule, "the table has no primary key any more: writes fail")
    } else {
        let detail =
            "the columns of the keys table are not the primary key: it was changed without crsql_begin_alter()";
        Finding::new(FindingKind::KeysOfOtherColumns, detail).named(keys_table)
    };
    findings.push(finding.of_table(&table.into()));
    Ok(())
}

/// Triggers and keys tables without a clock table.
fn left_behind(db: Handle, findings: &mut Vec<Finding>) -> rusqlite::Result<()> {
    let triggers = "SELECT substr(name, 1, length(name) - 13) FROM sqlite_master
        WHERE type = 'trigger' AND substr(name, -13) = ?1 ORDER BY rowid";
    for name in names(db, triggers, "__crsql_itrig")? {
        let clock = format!("{name}{CLOCK_SUFFIX}");
        if !exists(db, "table", &clock)? {
            let detail = format!("the clock table is missing: writes to {name} fail");
            let finding = Finding::new(FindingKind::MissingShadowTable, detail);
            findings.push(finding.of_table(&name.into()).named(clock));
        }
    }
    let keys = "SELECT substr(name, 1, length(name) - 11) FROM sqlite_master
        WHERE type = 'table' AND substr(name, -11) = ?1 ORDER BY rowid";
    for name in names(db, keys, KEYS_SUFFIX)? {
        let has_clock = exists(db, "table", &format!("{name}{CLOCK_SUFFIX}"))?;
        if !has_clock && !exists(db, "trigger", &format!("{name}__crsql_itrig"))? {
            let keys_table = format!("{name}{KEYS_SUFFIX}");
            let detail = format!("{keys_table} has no clock table beside it: its keys mean nothing");
            let finding = Finding::new(FindingKind::OrphanShadowTable, detail);
            findings.push(finding.of_table(&name.into()).named(keys_table));
        }
    }
    Ok(())
}
