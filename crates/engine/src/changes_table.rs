//! The virtual table `crsql_changes`: reading it gives one row for each clock, writing to it merges
//! (`crsqlite-compat.md` section 6).

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use litemesh_proto::{Column, PackedKey, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::vtab::{
    Context, CreateVTab, Filters, IndexConstraintOp, IndexInfo, Inserts, Module, UpdateVTab, Updates, VTab,
    VTabConnection, VTabCursor, VTabKind, sqlite3_vtab, sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Error, Result};

use crate::core::{Shared, module_error};
use crate::error::to_sql;
use crate::merge_row::binds as row_binds;
use crate::merge_step::merge_step;
use crate::record::find_key;
use crate::schema::{KEY_COLUMN, Table};
use crate::statement::{Handle, Statement};

const SCHEMA: &CStr = c"CREATE TABLE crsql_changes (
    \"table\" TEXT NOT NULL, pk BLOB NOT NULL, cid TEXT NOT NULL, val ANY, col_version INTEGER NOT NULL,
    db_version INTEGER NOT NULL, site_id BLOB NOT NULL, cl INTEGER NOT NULL, seq INTEGER NOT NULL)";

const TABLE: c_int = 0;
const PK: c_int = 1;
const CID: c_int = 2;
const VAL: c_int = 3;
const COL_VERSION: c_int = 4;
const DB_VERSION: c_int = 5;
const SITE_ID: c_int = 6;
const CL: c_int = 7;
const SEQ: c_int = 8;
const COLUMNS: usize = 9;

/// Rowids of one table lie this far apart (VT-12).
const ROWID_SLAB: i64 = 10_000_000_000_000;

pub(crate) fn register(connection: &Connection, shared: &Arc<Shared>) -> Result<()> {
    const MODULE: Module<'static, ChangesTable> = Module::update_module();
    connection.create_module(c"crsql_changes", &MODULE, Some(shared.clone()))
}

/// Keeps panics from unwinding into SQLite.
fn guard<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(module_error("litemesh: internal error in crsql_changes, please report it")))
}

#[repr(C)]
struct ChangesTable {
    base: sqlite3_vtab,
    shared: Arc<Shared>,
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTab<'_> for ChangesTable {
    type Aux = Arc<Shared>;
    type Cursor = ChangesCursor;

    fn connect(
        _: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        _table: &[u8],
        _arguments: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        let shared = aux.cloned().ok_or_else(|| module_error("crsql_changes was registered without its state"))?;
        Ok((Cow::Borrowed(SCHEMA), Self { base: sqlite3_vtab::default(), shared }))
    }

    /// Pushes down equality and ranges of `db_version`, and equality of `table`, `pk` and `site_id`. Nothing is omitted:
    /// SQLite checks again, so every constraint gives the right rows (VT-8).
    fn best_index(&self, info: &mut IndexInfo) -> Result<bool> {
        let mut plan = String::new();
        let (mut has_version, mut has_site) = (false, false);
        let is_in: Vec<bool> =
            (0..info.constraints().count()).map(|index| info.is_in_constraint(index).unwrap_or_default()).collect();
        for ((constraint, mut usage), is_in) in info.constraints_and_usages().zip(is_in) {
            let letter = match (constraint.column(), constraint.operator()) {
                (DB_VERSION, IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ) => '=',
                (DB_VERSION, IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GT) => '>',
                (DB_VERSION, IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GE) => 'g',
                (DB_VERSION, IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_LT) => '<',
                (DB_VERSION, IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_LE) => 'l',
                (
                    SITE_ID,
                    IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ | IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_IS,
                ) => 's',
                (TABLE, IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ) => 't',
                (PK, IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ) => 'p',
                _ => continue,
            };
            // SQLite scans once for each value of an IN list: only by version does that keep the order (VT-9).
            if !constraint.is_usable() || (is_in && constraint.column() != DB_VERSION) {
                continue;
            }
            has_version |= constraint.column() == DB_VERSION;
            has_site |= constraint.column() == SITE_ID;
            plan.push(letter);
            usage.set_argv_index(i32::try_from(plan.len()).unwrap_or(i32::MAX));
        }
        let ascending: Vec<_> = info.order_bys().map(|by| (by.column(), by.is_order_by_desc())).collect();
        // VT-10: only what is really produced.
        let is_ours = matches!(ascending.as_slice(), [(DB_VERSION, false)] | [(DB_VERSION, false), (SEQ, false)]);
        info.set_order_by_consumed(is_ours);
        // For an OR, SQLite may scan once for each side and leave out what it has seen, by rowid. Ours are those of rows, not
        // of changes (VT-12): it would lose changes. So two scans must always look worse, in time and in rows that are then
        // sorted, than the one that reads everything.
        let (cost, rows) = match (has_version, has_site) {
            (true, true) => (9.0, 9),
            (true, false) => (10.0, 10),
            _ => (15.0, 15),
        };
        info.set_estimated_cost(cost);
        info.set_estimated_rows(rows);
        info.set_idx_str(&plan);
        Ok(true)
    }

    fn open(&mut self) -> Result<Self::Cursor> {
        Ok(ChangesCursor {
            base: sqlite3_vtab_cursor::default(),
            shared: self.shared.clone(),
            scans: Vec::new(),
            current: None,
            db: self.shared.lock()?.db,
        })
    }
}

impl CreateVTab<'_> for ChangesTable {
    const KIND: VTabKind = VTabKind::EponymousOnly;
}

impl UpdateVTab<'_> for ChangesTable {
    /// VT-13.
    fn delete(&mut self, _: ValueRef<'_>) -> Result<()> {
        Err(read_only())
    }

    /// The rowid is 0 where nothing changed (VT-12).
    fn insert(&mut self, arguments: &Inserts<'_>) -> Result<i64> {
        let mut values = [ValueRef::Null; COLUMNS];
        for (slot, value) in values.iter_mut().zip(arguments.iter().skip(2)) {
            *slot = value;
        }
        let merged = guard(|| merge_step(&self.shared, &values))?;
        Ok(merged.map_or(0, |row| rowid(row.table, row.key)))
    }

    fn update(&mut self, _: &Updates<'_>) -> Result<()> {
        Err(read_only())
    }
}

fn read_only() -> Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISUSE);
    Error::SqliteFailure(code, Some("crsql_changes: only INSERT and SELECT are allowed".to_owned()))
}

/// The bytes of TEXT or BLOB, none of anything else (MRG-4).
pub(crate) fn bytes_of<'a>(value: &ValueRef<'a>) -> Option<&'a [u8]> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
        _ => None,
    }
}

fn rowid(table_index: usize, key: i64) -> i64 {
    i64::try_from(table_index).unwrap_or_default().saturating_mul(ROWID_SLAB).saturating_add(key % ROWID_SLAB)
}

/// A statement that one cursor uses; the table keeps it for the next one.
struct Borrowed {
    table: Arc<Table>,
    sql: String,
    statement: Option<Statement>,
}

impl Borrowed {
    fn take(table: &Arc<Table>, db: Handle, sql: String) -> Result<Self> {
        let statement = Some(table.take_idle(db, &sql)?);
        Ok(Self { table: table.clone(), sql, statement })
    }
}

impl std::ops::Deref for Borrowed {
    type Target = Statement;

    fn deref(&self) -> &Statement {
        #[allow(clippy::expect_used)] // taken only by `drop`
        self.statement.as_ref().expect("the statement is there until it is dropped")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(statement) = self.statement.take() {
            self.table.give_back(&self.sql, statement);
        }
    }
}

/// One clock table being read in the order `(db_version, seq)`.
struct Scan {
    table: Arc<Table>,
    index: usize,
    statement: Borrowed,
    /// Read a cell of a row each, by column.
    cells: HashMap<usize, Borrowed>,
    head: Option<Head>,
}

/// A clock row and what goes with it.
struct Head {
    db_version: i64,
    seq: i64,
    key: i64,
    name: Box<str>,
    col_version: i64,
    ordinal: i64,
    causal_length: i64,
    keys: Vec<Value>,
}

impl Scan {
    fn advance(&mut self) -> Result<()> {
        let rows = std::mem::ManuallyDrop::new(self.statement.start());
        self.head = if rows.next()? {
            let keys = (0..self.table.keys.len()).filter_map(|i| i32::try_from(7 + i).ok());
            Some(Head {
                db_version: rows.integer(0),
                seq: rows.integer(1),
                key: rows.integer(2),
                name: rows.text(3).into(),
                col_version: rows.integer(4),
                ordinal: rows.integer(5),
                causal_length: if rows.is_null(6) { 1 } else { rows.integer(6) },
                keys: keys.map(|column| rows.value(column)).collect(),
            })
        } else {
            None
        };
        Ok(())
    }
}

impl Scan {
    /// Finds the value of a clock. `None` where its column is gone (VT-5).
    fn load(&mut self, db: Handle, head: Head) -> Result<Option<Current>> {
        let (table, index) = (self.table.clone(), self.index);
        if &*head.name == Column::ROW_NAME {
            return Ok(Some(Current { table, index, head, cid: Column::ROW_NAME.into(), value: Value::Null }));
        }
        let Some(cell) = table.cell_index(&head.name) else { return Ok(None) };
        let statement = match self.cells.entry(cell) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Borrowed::take(&table, db, table.sql_read_cell(cell))?),
        };
        let row = statement.query(&[head.key.into()])?;
        let has_base = row.next()? && row.integer(0) != 0;
        let value = if has_base { row.value(1) } else { Value::Null };
        drop(row);
        let cid = if has_base { head.name.clone() } else { Column::ROW_NAME.into() };
        Ok(Some(Current { table, index, head, cid, value }))
    }
}

/// The row under the cursor.
struct Current {
    table: Arc<Table>,
    index: usize,
    head: Head,
    /// `-1` also where the base row is gone (VT-2).
    cid: Box<str>,
    value: Value,
}

#[repr(C)]
struct ChangesCursor {
    base: sqlite3_vtab_cursor,
    shared: Arc<Shared>,
    scans: Vec<Scan>,
    current: Option<Current>,
    db: Handle,
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTabCursor for ChangesCursor {
    fn filter(&mut self, _: c_int, plan: Option<&str>, arguments: &Filters<'_>) -> Result<()> {
        guard(|| {
            self.start(plan.unwrap_or_default(), arguments)?;
            self.step()
        })
    }

    fn next(&mut self) -> Result<()> {
        guard(|| self.step())
    }

    fn eof(&self) -> bool {
        self.current.is_none()
    }

    fn column(&self, context: &mut Context, column: c_int) -> Result<()> {
        guard(|| self.result(context, column))
    }

    fn rowid(&self) -> Result<i64> {
        Ok(self.current.as_ref().map_or(0, |row| rowid(row.index, row.head.key)))
    }
}

impl ChangesCursor {
    fn start(&mut self, plan: &str, arguments: &Filters<'_>) -> Result<()> {
        (self.scans, self.current) = (Vec::new(), None);
        let mut core = self.shared.lock()?;
        // Also whose the database is: another connection may have forked it.
        core.current_site()?;
        let (mut conditions, mut binds) = (String::new(), Vec::new());
        let (mut only_table, mut only_row, mut lowest) = (None, None, i64::MIN);
        for (letter, value) in plan.chars().zip(arguments.iter()) {
            let condition = match letter {
                '=' => "c.db_version = ?",
                '>' => "c.db_version > ?",
                'g' => "c.db_version >= ?",
                '<' => "c.db_version < ?",
                'l' => "c.db_version <= ?",
                's' => {
                    let ordinal = bytes_of(&value).map(|site| core.find_ordinal(site)).transpose()?.flatten();
                    binds.push(Value::Integer(ordinal.unwrap_or(-1)));
                    conditions.push_str(" AND c.site_id = ?");
                    continue;
                }
                'p' => {
                    // What is no packed key is the key of no row.
                    let ValueRef::Blob(packed) = value else { return Ok(()) };
                    let Ok(keys) = PackedKey::from_bytes(packed).unpack() else { return Ok(()) };
                    only_row = Some(keys);
                    continue;
                }
                _ => {
                    only_table = Some(bytes_of(&value).unwrap_or_default().to_vec());
                    continue;
                }
            };
            if let (ValueRef::Integer(bound), '=' | '>' | 'g') = (value, letter) {
                lowest = lowest.max(if letter == '>' { bound.saturating_add(1) } else { bound });
            }
            conditions.push_str(" AND ");
            conditions.push_str(condition);
            binds.push(crate::statement::to_value(value));
        }
        if only_row.is_some() {
            conditions.push_str(" AND c.key = ?");
        }
        for (index, table) in core.tables().iter().enumerate() {
            if only_table.as_ref().is_some_and(|only| only != table.name.as_bytes()) {
                continue;
            }
            let mut binds = binds.clone();
            if let Some(keys) = &only_row {
                let is_of_table = keys.len() == table.keys.len();
                let key = if is_of_table { find_key(&core, table, &row_binds(keys))? } else { None };
                let Some(key) = key else { continue };
                binds.push(Value::Integer(key));
            }
            // One look at the end of the index tells that most tables have nothing new.
            if lowest > i64::MIN {
                let newest = table.statement(self.db, |s| &s.newest, Table::sql_newest)?;
                if newest.query_integer(&[])?.unwrap_or_default() < lowest {
                    continue;
                }
            }
            let statement = Borrowed::take(table, self.db, sql_scan(table, &conditions))?;
            for (parameter, value) in (1..).zip(&binds) {
                statement.bind(parameter, value.into())?;
            }
            let mut scan = Scan { table: table.clone(), index, statement, cells: HashMap::new(), head: None };
            scan.advance()?;
            self.scans.push(scan);
        }
        Ok(())
    }

    /// Moves to the next row in the order `(db_version, seq)` (VT-9).
    fn step(&mut self) -> Result<()> {
        self.current = None;
        while self.current.is_none() {
            let heads = self.scans.iter_mut().filter(|scan| scan.head.is_some());
            let Some(scan) = heads.min_by_key(|scan| scan.head.as_ref().map(|head| (head.db_version, head.seq))) else {
                return Ok(());
            };
            let Some(head) = scan.head.take() else { return Ok(()) };
            self.current = scan.load(self.db, head)?;
            scan.advance()?;
        }
        Ok(())
    }

    fn result(&self, context: &mut Context, column: c_int) -> Result<()> {
        let Some(row) = &self.current else { return Ok(()) };
        match column {
            TABLE => context.set_result(&*row.table.name),
            PK => context.set_result(PackedKey::pack(&row.head.keys).map_err(to_sql)?.as_bytes()),
            CID => context.set_result(&*row.cid),
            VAL => context.set_result(ToSqlOutput::Borrowed(value_ref(&row.value))),
            COL_VERSION => context.set_result(row.head.col_version),
            DB_VERSION => context.set_result(row.head.db_version),
            SITE_ID => match self.shared.lock()?.site_bytes(row.head.ordinal)? {
                Some(bytes) => context.set_result(bytes),
                None => Ok(()),
            },
            CL => context.set_result(row.head.causal_length),
            SEQ => context.set_result(row.head.seq),
            _ => Ok(()),
        }
    }
}

pub(crate) fn value_ref(value: &Value) -> ValueRef<'_> {
    match value {
        Value::Null => ValueRef::Null,
        Value::Integer(value) => ValueRef::Integer(*value),
        Value::Real(value) => ValueRef::Real(*value),
        Value::Text(bytes) => ValueRef::Text(bytes),
        Value::Blob(bytes) => ValueRef::Blob(bytes),
    }
}

/// Clocks with their keys and causal lengths.
fn sql_scan(table: &Table, conditions: &str) -> String {
    let keys: Vec<_> = table.keys.iter().map(|column| format!("p.{}", crate::sql::quote(&column.name))).collect();
    format!(
        "SELECT c.db_version, c.seq, c.key, c.col_name, c.col_version, c.site_id,
         (SELECT s.col_version FROM {clock} s WHERE s.key = c.key AND s.col_name = '-1'), {keys}
         FROM {clock} c JOIN {pks} p ON p.{KEY_COLUMN} = c.key WHERE 1{conditions} ORDER BY c.db_version, c.seq",
        clock = table.clock(),
        keys = keys.join(", "),
        pks = table.keys_table()
    )
}
