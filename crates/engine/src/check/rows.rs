//! What is wrong with the rows of one replicated table and their clocks.
//!
//! Two statements walk the table, each in the order of a B-tree that is there anyway, and give a row only where something
//! may be wrong. What can only be wrong for a whole group of clocks (a column, an author) is counted.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use litemesh_proto::PackedKey;
use litemesh_proto::limits::VERSION_MAX;

use super::finding::{Finding, FindingKind};
use crate::affinity::Affinity;
use crate::backfill::Default;
use crate::schema::{ColumnInfo, KEY_COLUMN, Table};
use crate::sql::{literal, quote};
use crate::statement::{Handle, Rows, Statement};

/// The check of one table, step by step.
pub(crate) struct RowCheck {
    db: Handle,
    table: Arc<Table>,
    has_litemesh_tables: bool,
    stage: Stage,
}

enum Stage {
    Counts,
    Clocks(Statement),
    Base(BaseScan),
    Done,
}

impl RowCheck {
    pub(crate) fn new(db: Handle, table: Arc<Table>, has_litemesh_tables: bool) -> Self {
        Self { db, table, has_litemesh_tables, stage: Stage::Counts }
    }

    /// Goes on until something is found or the table is done; `false` then.
    pub(super) fn step(&mut self, found: &mut Vec<Finding>) -> rusqlite::Result<bool> {
        while found.is_empty() {
            match &mut self.stage {
                Stage::Counts => {
                    self.count(found)?;
                    self.stage = Stage::Clocks(self.db.prepare(&sql_clock_rows(&self.table))?);
                }
                Stage::Clocks(statement) => {
                    // Not reset between steps: the statement runs for as long as the stage lasts.
                    let rows = ManuallyDrop::new(statement.start());
                    if rows.next()? {
                        found.push(finding_of_clocks(&self.table, &rows));
                    } else {
                        self.stage = Stage::Base(BaseScan::new(self.db, &self.table)?);
                    }
                }
                Stage::Base(scan) => {
                    if !scan.step(&self.table, found)? {
                        self.stage = Stage::Done;
                    }
                }
                Stage::Done => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Findings about groups of clocks and keys.
    fn count(&self, found: &mut Vec<Finding>) -> rusqlite::Result<()> {
        let (table, clock) = (&*self.table, self.table.clock());
        let mut groups = |sql: &str, finding: &dyn Fn(&Rows<'_>) -> Finding| -> rusqlite::Result<()> {
            let statement = self.db.prepare(sql)?;
            let rows = statement.query(&[])?;
            while rows.next()? {
                found.push(finding(&rows).of_table(&table.name));
            }
            Ok(())
        };
        let columns = sql_columns(table);
        groups(
            &format!("SELECT col_name, count(*) FROM {clock} WHERE col_name NOT IN ({columns}) GROUP BY col_name"),
            &|rows| {
                let name = rows.text(0);
                let detail = format!("{} for column {name}, which is not there", clocks(rows.integer(1)));
                Finding::new(FindingKind::ClockOfMissingColumn, detail).named(&*name)
            },
        )?;
        groups(
            &format!("SELECT site_id, count(*) FROM {clock} WHERE {} GROUP BY site_id", sql_has_no_author()),
            &|rows| {
                let (ordinal, count) = (rows.integer(0), rows.integer(1));
                let detail = format!("{} of author {ordinal}, which is not in crsql_site_id", clocks(count));
                Finding::new(FindingKind::UnknownAuthor, detail)
            },
        )?;
        groups(
            &format!(
                "SELECT count(*), max(db_version) FROM {clock} WHERE db_version > {VERSION_MAX} OR col_version > {VERSION_MAX}
                 HAVING count(*) > 0"
            ),
            &|rows| {
                let (count, version) = (clocks(rows.integer(0)), rows.integer(1));
                let detail = format!("{count} beyond the versions that are accepted, up to db_version {version}");
                Finding::new(FindingKind::AbsurdVersion, detail)
            },
        )?;
        if self.has_litemesh_tables {
            groups(
                &format!(
                    "SELECT (SELECT lower(hex(site_id)) FROM crsql_site_id WHERE ordinal = c.site_id), count(*),
                     min(c.db_version), max(c.db_version) FROM {clock} c
                     WHERE {} AND c.site_id IN (SELECT ordinal FROM crsql_site_id) GROUP BY c.site_id",
                    sql_has_no_origin()
                ),
                &|rows| {
                    let (site, count) = (rows.text(0), clocks(rows.integer(1)));
                    let (first, last) = (rows.integer(2), rows.integer(3));
                    let detail = format!("{count} of site {site} without origin, at local versions {first} to {last}");
                    Finding::new(FindingKind::MissingOrigin, detail)
                },
            )?;
        }
        groups(
            &format!(
                "SELECT count(*) FROM {} p WHERE {} AND NOT EXISTS (SELECT 1 FROM {}) HAVING count(*) > 0",
                table.keys_table(),
                sql_has_no_clocks(table),
                sql_base_of_key(table)
            ),
            &|rows| {
                let detail =
                    format!("{} keys without clocks: of changes that lost, merged by CRSqlite", rows.integer(0));
                Finding::new(FindingKind::KeyWithoutClocks, detail)
            },
        )
    }
}

fn clocks(count: i64) -> String {
    if count == 1 { "1 clock".to_owned() } else { format!("{count} clocks") }
}

/// The column names that clocks may have, as literals.
pub(super) fn sql_columns(table: &Table) -> String {
    let names = table.cells.iter().map(|column| literal(&column.name));
    std::iter::once("'-1'".to_owned()).chain(names).collect::<Vec<_>>().join(", ")
}

/// Of a clock row: its author is not there.
pub(super) fn sql_has_no_author() -> &'static str {
    "site_id <> 0 AND site_id NOT IN (SELECT ordinal FROM crsql_site_id)"
}

/// Of a clock row `c`: nobody recorded its author's version.
pub(super) fn sql_has_no_origin() -> &'static str {
    "c.site_id <> 0 AND NOT EXISTS
     (SELECT 1 FROM litemesh_origin o WHERE o.local_version = c.db_version AND o.site = c.site_id)"
}

/// Of a key row `p`: no clock has it.
pub(super) fn sql_has_no_clocks(table: &Table) -> String {
    format!("NOT EXISTS (SELECT 1 FROM {} WHERE key = p.{KEY_COLUMN})", table.clock())
}

fn matching(table: &Table, same: impl Fn(&str) -> String) -> String {
    table.keys.iter().map(|column| same(&quote(&column.name))).collect::<Vec<_>>().join(" AND ")
}

/// A base row `b` is that of the key `p`. The plus takes the affinity of the key away, so that it is converted to that of
/// the base column: a key of another type is found as such, and by the index of the primary key.
fn sql_is_base_of_key(table: &Table) -> String {
    matching(table, |name| format!("b.{name} = +p.{name}"))
}

/// `FROM` and `WHERE` of the base row of a key `p`.
pub(super) fn sql_base_of_key(table: &Table) -> String {
    format!("{} b WHERE {}", table.base(), sql_is_base_of_key(table))
}

/// A list of columns of one row.
fn sql_keys(table: &Table, of: &str) -> String {
    table.keys.iter().map(|column| format!("{of}.{}", quote(&column.name))).collect::<Vec<_>>().join(", ")
}

/// Rows of the clock table that contradict the keys table or the base table: has key, has row, sentinel, clocks besides it,
/// whether the key has another type, key, primary key.
fn sql_clock_rows(table: &Table) -> String {
    let first = quote(&table.keys[0].name);
    let other_type = table
        .keys
        .iter()
        .map(|column| quote(&column.name))
        .map(|name| format!("(typeof(p.{name}) = 'text') <> (typeof(b.{name}) = 'text')"))
        .collect::<Vec<_>>()
        .join(" OR ");
    format!(
        "SELECT p.{KEY_COLUMN} IS NOT NULL AS has_key, b.{first} IS NOT NULL AS has_row, sentinel, cells,
         b.{first} IS NOT NULL AND ({other_type}) AS is_other_type, g.key, {}
         FROM (SELECT key, max(CASE WHEN col_name = '-1' THEN col_version END) AS sentinel, sum(col_name <> '-1') AS cells
               FROM {} GROUP BY key) g
         LEFT JOIN {} p ON p.{KEY_COLUMN} = g.key
         LEFT JOIN {} b ON {}
         WHERE NOT has_key OR is_other_type OR sentinel < 1
         OR CASE WHEN sentinel % 2 = 0 THEN has_row OR cells > 0 ELSE NOT has_row END",
        sql_keys(table, "p"),
        table.clock(),
        table.keys_table(),
        table.base(),
        sql_is_base_of_key(table),
    )
}

fn finding_of_clocks(table: &Table, rows: &Rows<'_>) -> Finding {
    let (has_key, has_row, sentinel, cells) =
        (rows.integer(0) != 0, rows.integer(1) != 0, rows.integer(2), rows.integer(3));
    let count = clocks(cells + i64::from(!rows.is_null(2)));
    let is_dead = !rows.is_null(2) && sentinel % 2 == 0;
    let finding = if !has_key {
        let detail = format!("{count} under key {}, which is not in the keys table", rows.integer(5));
        Finding::new(FindingKind::ClockWithoutKey, detail)
    } else if !rows.is_null(2) && sentinel < 1 {
        Finding::new(FindingKind::InvalidSentinel, format!("the sentinel is {sentinel}, which is no causal length"))
    } else if rows.integer(4) != 0 {
        Finding::new(FindingKind::KeyOfOtherType, "the key is text and the row's is not, or the other way round")
    } else if is_dead && has_row {
        Finding::new(
            FindingKind::DeadRowPresent,
            format!("the row is there, its causal length {sentinel} says deleted"),
        )
    } else if is_dead {
        let detail = format!("deleted (causal length {sentinel}), and {} are still there", clocks(cells));
        Finding::new(FindingKind::DeadRowWithClocks, detail)
    } else {
        Finding::new(FindingKind::ClockWithoutRow, format!("{count} of a living row that is not there"))
    };
    finding.of_table(&table.name).of_row(if has_key { packed(rows, 6, table.keys.len()) } else { None })
}

fn packed(rows: &Rows<'_>, first: usize, count: usize) -> Option<PackedKey> {
    let columns = (first..first + count).filter_map(|column| i32::try_from(column).ok());
    PackedKey::pack(&columns.map(|column| rows.value(column)).collect::<Vec<_>>()).ok()
}

/// The base rows, of which each cell must have a clock or its default value.
pub(super) struct BaseScan {
    rows: Statement,
    clocks: Statement,
}

/// What is missing of one base row.
pub(super) enum Missing {
    /// All of it.
    Row,
    /// The clocks of these cells.
    Cells(Vec<usize>),
}

impl BaseScan {
    pub(super) fn new(db: Handle, table: &Table) -> rusqlite::Result<Self> {
        let stray =
            format!("SELECT EXISTS (SELECT 1 FROM {} WHERE col_name NOT IN ({}))", table.clock(), sql_columns(table));
        let has_stray = db.query_integer(&stray, &[])? == Some(1);
        let defaults: Vec<Default> =
            table.cells.iter().map(|cell| Default::of(db, table, cell)).collect::<rusqlite::Result<_>>()?;
        let rows = db.prepare(&sql_base_rows(table, &defaults, has_stray))?;
        for (cell, default) in (1..).zip(&defaults) {
            for value in default.binds() {
                rows.bind(cell, value)?;
            }
        }
        Ok(Self { rows, clocks: db.prepare(&format!("SELECT col_name FROM {} WHERE key = ?1", table.clock()))? })
    }

    /// Goes to the next row that lacks something: its key, `None` where it has none yet, and what it lacks.
    pub(super) fn next(&self, table: &Table) -> rusqlite::Result<Option<(Option<i64>, Missing)>> {
        let rows = self.row();
        while rows.next()? {
            if let Some(missing) = self.missing(table, &rows)? {
                return Ok(Some(((!rows.is_null(0)).then(|| rows.integer(0)), missing)));
            }
        }
        Ok(None)
    }

    /// The current row. Not reset when it is dropped: the statement runs for as long as the scan lives.
    pub(super) fn row(&self) -> ManuallyDrop<Rows<'_>> {
        ManuallyDrop::new(self.rows.start())
    }

    fn missing(&self, table: &Table, rows: &Rows<'_>) -> rusqlite::Result<Option<Missing>> {
        let (count, is_dead, is_other_type) = (rows.integer(1), rows.integer(2) != 0, rows.integer(3) != 0);
        if count == 0 {
            return Ok((!is_other_type).then_some(Missing::Row));
        }
        if is_dead {
            return Ok(None);
        }
        let names = self.clocks.query(&[rows.integer(0).into()])?;
        let mut has_clock = vec![false; table.cells.len()];
        while names.next()? {
            if let Some(cell) = table.cell_index(&names.text(0)) {
                has_clock[cell] = true;
            }
        }
        let first = FIRST_KEY + table.keys.len();
        let differs = |cell: usize| i32::try_from(first + cell).is_ok_and(|column| rows.integer(column) != 0);
        let cells: Vec<usize> = (0..table.cells.len()).filter(|cell| !has_clock[*cell] && differs(*cell)).collect();
        Ok((!cells.is_empty()).then_some(Missing::Cells(cells)))
    }

    fn step(&self, table: &Table, found: &mut Vec<Finding>) -> rusqlite::Result<bool> {
        let Some((_, missing)) = self.next(table)? else { return Ok(false) };
        let key = packed(&self.row(), FIRST_KEY, table.keys.len());
        match missing {
            Missing::Row => {
                let detail = "no clock knows the row: it was written past the triggers, and goes to nobody";
                found.push(Finding::new(FindingKind::RowWithoutClocks, detail).of_table(&table.name).of_row(key));
            }
            Missing::Cells(cells) => found.extend(cells.into_iter().map(|cell| {
                let detail = "the value is not the default, and no clock knows it: it goes to nobody";
                let finding = Finding::new(FindingKind::CellWithoutClock, detail).of_table(&table.name);
                finding.of_row(key.clone()).named(table.cells[cell].name.clone())
            })),
        }
        Ok(true)
    }
}

/// Column of the first key value in [`sql_base_rows`].
pub(super) const FIRST_KEY: usize = 4;

/// Base rows with fewer clocks than cells: key, clocks, whether the sentinel says dead, whether another key of another type
/// stands for it, primary key, and of each cell whether it differs from its default, `?n` for cell n. It is not said to where
/// that cannot be told, as of `CURRENT_TIMESTAMP`.
fn sql_base_rows(table: &Table, defaults: &[Default], has_stray: bool) -> String {
    let clock = table.clock();
    let of_key = format!("SELECT count(*) FROM {clock} WHERE key = p.{KEY_COLUMN}");
    // Clocks of columns that are not there must not make up for missing ones.
    let condition = if table.is_keys_only() {
        format!("({of_key}) = 0")
    } else if has_stray {
        let columns = sql_columns(table);
        format!("({of_key} AND col_name <> '-1' AND col_name IN ({columns})) < {}", table.cells.len())
    } else {
        format!("({of_key} AND col_name <> '-1') < {}", table.cells.len())
    };
    let other_type = table.keys.iter().map(sql_other_type).collect::<Vec<_>>().join(" AND ");
    let differs = |((column, default), n): ((&ColumnInfo, &Default), usize)| match default {
        Default::Varies => ", 0".to_owned(),
        _ => format!(", {}", default.differs(column, n)),
    };
    let cells = table.cells.iter().zip(defaults).zip(1..).map(differs).collect::<String>();
    // The plus takes the affinity of the base column away, with which the index on the keys could not be used.
    format!(
        "SELECT p.{KEY_COLUMN}, ({of_key}),
         (SELECT col_version % 2 = 0 FROM {clock} WHERE key = p.{KEY_COLUMN} AND col_name = '-1'),
         p.{KEY_COLUMN} IS NULL AND EXISTS (SELECT 1 FROM {keys} q WHERE {other_type}), {names}{cells}
         FROM {base} b LEFT JOIN {keys} p ON {same} WHERE {condition}",
        keys = table.keys_table(),
        names = sql_keys(table, "b"),
        base = table.base(),
        same = matching(table, |name| format!("p.{name} = +b.{name}")),
    )
}

/// The key column `q` equals that of the base row `b` after conversion (BUG-16).
fn sql_other_type(column: &ColumnInfo) -> String {
    let name = quote(&column.name);
    match column.affinity {
        Affinity::Text => format!(
            "q.{name} IN (+b.{name}, CASE WHEN CAST(CAST(b.{name} AS NUMERIC) AS TEXT) = b.{name}
             THEN CAST(b.{name} AS NUMERIC) END)"
        ),
        Affinity::Blob => format!("q.{name} = +b.{name}"),
        Affinity::Integer | Affinity::Real | Affinity::Numeric => {
            format!("q.{name} IN (+b.{name}, CAST(b.{name} AS TEXT))")
        }
    }
}
