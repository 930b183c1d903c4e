//! The virtual table `crsql_changes`: reading it gives one row for each clock, writing to it merges
//! (`crsqlite-compat.md` section 6).

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::ffi::{CStr, c_int};
use std::sync::Arc;

use litemesh_proto::{CausalLength, Column, PackedKey, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::vtab::{
    Context, CreateVTab, Filters, IndexConstraintOp, IndexInfo, Inserts, Module, UpdateVTab, Updates, VTab,
    VTabConnection, VTabCursor, VTabKind, sqlite3_vtab, sqlite3_vtab_cursor,
};
use rusqlite::{Connection, Error, Result};

use crate::base_rows::BaseRows;
use crate::core::{Shared, module_error};
use crate::error::to_sql;
use crate::merge_step::merge_step;
use crate::record::find_key;
use crate::schema::{Borrowed, ClockOf, Table};
use crate::statement::{Bind, Binds, Handle, running};
use crate::virtual_table::guard;

const NAME: &CStr = c"crsql_changes";

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
    connection.create_module(NAME, &MODULE, Some(shared.clone()))
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
        // May record what waits.
        let db = guard(NAME, || Ok(self.shared.lock()?.db))?;
        Ok(ChangesCursor {
            base: sqlite3_vtab_cursor::default(),
            shared: self.shared.clone(),
            scans: Vec::new(),
            current: None,
            site: RefCell::new(None),
            db,
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
        let merged = guard(NAME, || merge_step(&self.shared, &values))?;
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

/// One clock table being read in the order `(db_version, seq)`.
///
/// The clocks come from one statement. Those of one row mostly follow each other there, as they were written: so they are
/// taken together, and the row is looked up once.
struct Scan {
    table: Arc<Table>,
    index: usize,
    clocks: Borrowed,
    /// The first clock after the group.
    next: Option<Clock>,
    /// Clocks of one row that follow each other. What is no change is not among them.
    group: Vec<Clock>,
    /// The place in the group.
    at: usize,
    rows: BaseRows,
    has_base: bool,
    /// Of the row, when somebody has asked for them.
    packed: OnceCell<PackedKey>,
    causal_length: OnceCell<i64>,
}

#[derive(Clone, Copy)]
struct Clock {
    db_version: i64,
    seq: i64,
    key: i64,
    of: ClockOf,
    col_version: i64,
    ordinal: i64,
}

impl Scan {
    fn open(table: &Arc<Table>, index: usize, db: Handle, conditions: &str, binds: &[Value]) -> Result<Self> {
        let clocks = Borrowed::take(table, db, sql_scan(table, conditions))?;
        for (parameter, value) in (1..).zip(binds) {
            clocks.bind(parameter, value.into())?;
        }
        let mut scan = Self {
            table: table.clone(),
            index,
            clocks,
            next: None,
            group: Vec::new(),
            at: 0,
            rows: BaseRows::own(db, table),
            has_base: false,
            packed: OnceCell::new(),
            causal_length: OnceCell::new(),
        };
        scan.next = scan.next_clock(0)?;
        scan.take_group()?;
        Ok(scan)
    }

    /// `expected` is the cell that probably follows.
    fn next_clock(&self, expected: usize) -> Result<Option<Clock>> {
        let rows = running(&self.clocks);
        if !rows.next()? {
            return Ok(None);
        }
        Ok(Some(Clock {
            db_version: rows.integer(0),
            seq: rows.integer(1),
            key: rows.integer(2),
            of: self.table.clock_of_expected(rows.bytes(3), expected),
            col_version: rows.integer(4),
            ordinal: rows.integer(5),
        }))
    }

    fn current(&self) -> Option<&Clock> {
        self.group.get(self.at)
    }

    fn advance(&mut self) -> Result<()> {
        self.at += 1;
        if self.at < self.group.len() { Ok(()) } else { self.take_group() }
    }

    /// Goes on to the next group that has changes.
    fn take_group(&mut self) -> Result<()> {
        loop {
            (self.at, self.packed, self.causal_length) = (0, OnceCell::new(), OnceCell::new());
            self.group.clear();
            let Some(first) = self.next else { return Ok(()) };
            while let Some(clock) = self.next.filter(|clock| clock.key == first.key) {
                let expected = match clock.of {
                    ClockOf::Cell(cell) => cell + 1,
                    ClockOf::Row | ClockOf::Gone => 0,
                };
                // VT-5: a column that is gone keeps nothing else from being read.
                if clock.of != ClockOf::Gone {
                    self.group.push(clock);
                }
                self.next = self.next_clock(expected)?;
            }
            let cells = self.group.iter().filter_map(|clock| match clock.of {
                ClockOf::Cell(cell) => Some(cell),
                ClockOf::Row | ClockOf::Gone => None,
            });
            if !self.group.is_empty()
                && let Some(row) = self.rows.go_to(first.key, cells)?
            {
                self.has_base = row.is_there();
                return Ok(());
            }
        }
    }

    /// The primary key of the row, packed.
    fn packed(&self) -> Result<&PackedKey> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let packed = match self.rows.row() {
            Some(row) => PackedKey::pack_from(row.key_values(), &mut Vec::new()).map_err(to_sql)?,
            None => PackedKey::default(),
        };
        Ok(self.packed.get_or_init(|| packed))
    }

    fn causal_length(&self, db: Handle, key: i64) -> Result<i64> {
        if let Some(length) = self.causal_length.get() {
            return Ok(*length);
        }
        let sentinel = self.table.statement(db, |s| &s.causal_length, Table::sql_causal_length)?;
        let length = sentinel.query_integer(&[key.into()])?.unwrap_or(CausalLength::FIRST.get());
        Ok(*self.causal_length.get_or_init(|| length))
    }
}

#[repr(C)]
struct ChangesCursor {
    base: sqlite3_vtab_cursor,
    shared: Arc<Shared>,
    scans: Vec<Scan>,
    /// The scan at whose change the cursor stands.
    current: Option<usize>,
    /// The site that was asked for last, by its ordinal.
    site: RefCell<Option<(i64, Option<Vec<u8>>)>>,
    db: Handle,
}

// SAFETY: `repr(C)`, and the base comes first.
unsafe impl VTabCursor for ChangesCursor {
    fn filter(&mut self, _: c_int, plan: Option<&str>, arguments: &Filters<'_>) -> Result<()> {
        guard(NAME, || {
            self.start(plan.unwrap_or_default(), arguments)?;
            self.choose();
            Ok(())
        })
    }

    fn next(&mut self) -> Result<()> {
        guard(NAME, || self.step())
    }

    fn eof(&self) -> bool {
        self.current.is_none()
    }

    fn column(&self, context: &mut Context, column: c_int) -> Result<()> {
        guard(NAME, || self.result(context, column))
    }

    fn rowid(&self) -> Result<i64> {
        Ok(self.row().map_or(0, |(scan, clock)| rowid(scan.index, clock.key)))
    }
}

impl ChangesCursor {
    fn start(&mut self, plan: &str, arguments: &Filters<'_>) -> Result<()> {
        (self.scans, self.current, self.site) = (Vec::new(), None, RefCell::new(None));
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
                let key = if is_of_table {
                    find_key(&core, table, &keys.iter().map(Bind::from).collect::<Binds<'_>>())?
                } else {
                    None
                };
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
            self.scans.push(Scan::open(table, index, self.db, &conditions, &binds)?);
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        if let Some(current) = self.current.take() {
            self.scans[current].advance()?;
        }
        self.choose();
        Ok(())
    }

    /// Chooses the next change in the order `(db_version, seq)` (VT-9).
    fn choose(&mut self) {
        let place = |scan: &Scan| scan.current().map(|clock| (clock.db_version, clock.seq));
        let places = self.scans.iter().enumerate().filter_map(|(index, scan)| Some((place(scan)?, index)));
        self.current = places.min().map(|(_, index)| index);
    }

    fn row(&self) -> Option<(&Scan, &Clock)> {
        let scan = &self.scans[self.current?];
        Some((scan, scan.current()?))
    }

    fn result(&self, context: &mut Context, column: c_int) -> Result<()> {
        let Some((scan, clock)) = self.row() else { return Ok(()) };
        match column {
            TABLE => context.set_result(&*scan.table.name),
            PK => context.set_result(scan.packed()?.as_bytes()),
            CID => context.set_result(match clock.of {
                ClockOf::Cell(cell) if scan.has_base => &*scan.table.cells[cell].name,
                // Also where the base row is gone (VT-2).
                _ => Column::ROW_NAME,
            }),
            VAL => match (clock.of, scan.rows.row()) {
                (ClockOf::Cell(cell), Some(row)) => context.set_result(ToSqlOutput::Borrowed(row.cell(cell))),
                _ => Ok(()),
            },
            COL_VERSION => context.set_result(clock.col_version),
            DB_VERSION => context.set_result(clock.db_version),
            SITE_ID => self.result_site(context, clock.ordinal),
            CL => context.set_result(scan.causal_length(self.db, clock.key)?),
            SEQ => context.set_result(clock.seq),
            _ => Ok(()),
        }
    }

    fn result_site(&self, context: &mut Context, ordinal: i64) -> Result<()> {
        let mut last = self.site.borrow_mut();
        if last.as_ref().is_none_or(|(of, _)| *of != ordinal) {
            *last = Some((ordinal, self.shared.lock()?.site_bytes(ordinal)?));
        }
        match last.as_ref() {
            Some((_, Some(bytes))) => context.set_result(bytes.as_slice()),
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

/// Clocks: db_version, seq, key, name, col_version, ordinal.
fn sql_scan(table: &Table, conditions: &str) -> String {
    format!(
        "SELECT c.db_version, c.seq, c.key, c.col_name, c.col_version, c.site_id FROM {} c WHERE 1{conditions}
         ORDER BY c.db_version, c.seq",
        table.clock()
    )
}
