//! Which tables replicate, what they look like, and why a table cannot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use litemesh_proto::{Change, Column};

use crate::affinity::Affinity;
use crate::error::ReplicateError;
use crate::sql_text::tokens;
use crate::statement::{Handle, Statement};
use crate::unpassed::Unpassed;

pub(crate) const CLOCK_SUFFIX: &str = "__crsql_clock";
pub(crate) const KEYS_SUFFIX: &str = "__crsql_pks";
/// Key column of the keys table.
pub(crate) const KEY_COLUMN: &str = "__crsql_key";

/// One column of a replicated table.
#[derive(Debug, Clone)]
pub(crate) struct ColumnInfo {
    pub(crate) name: Arc<str>,
    pub(crate) affinity: Affinity,
}

/// What a clock is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ClockOf {
    /// The sentinel.
    Row,
    Cell(usize),
    /// A column that the table no longer has.
    Gone,
}

/// A replicated table: its columns, and the statements on it that are worth keeping.
pub(crate) struct Table {
    pub(crate) name: Arc<str>,
    /// What its shadow tables and triggers are named after: its name, unless it was renamed since (ALT-7).
    pub(crate) shadow: Arc<str>,
    /// Cells that the update trigger passes, in its order, where columns were added since it was made (FN-8). `None`: all.
    pub(crate) passed: Option<Vec<usize>>,
    /// Primary key columns, in PRIMARY KEY order.
    pub(crate) keys: Vec<ColumnInfo>,
    /// The other columns, in table order. Generated and hidden ones are not replicated (DSK-8).
    pub(crate) cells: Vec<ColumnInfo>,
    /// Cells in the order of names, and the place of each in it.
    in_order: Vec<usize>,
    pub(crate) by_name: Vec<usize>,
    unpassed: OnceLock<Unpassed>,
    cell_index: HashMap<Arc<str>, usize>,
    rowid: OnceLock<Option<&'static str>>,
    statements: Statements,
    writers: Mutex<Vec<RowWriter>>,
    reactions: OnceLock<Reactions>,
    /// Statements of `crsql_changes` that no cursor uses at the moment, by their text.
    idle: Mutex<HashMap<Box<str>, Vec<Statement>>>,
}

/// A statement that is prepared when it is first needed.
pub(crate) type Slot = OnceLock<Arc<Statement>>;

/// Statements on one table. Each field is named after what it does; its text is the `sql_…` method of the same name.
#[derive(Default)]
pub(crate) struct Statements {
    pub(crate) newest: Slot,
    pub(crate) find_key: Slot,
    pub(crate) find_keys: Slot,
    pub(crate) add_key: Slot,
    pub(crate) drop_key: Slot,
    pub(crate) row_clocks: Slot,
    pub(crate) row_state: Slot,
    pub(crate) clock_stamp: Slot,
    pub(crate) base_row: Slot,
    pub(crate) row_states: Slot,
    pub(crate) row_states_near: Slot,
    pub(crate) walk_keys: Slot,
    pub(crate) beside_clocks: Slot,
    pub(crate) beside_clocks_of_cell: Slot,
    pub(crate) base_rowid: Slot,
    pub(crate) base_rows: Slot,
    pub(crate) base_rows_near: Slot,
    pub(crate) add_keys: Slot,
    pub(crate) add_clocks: Slot,
    pub(crate) add_clocks_alike: Slot,
    pub(crate) add_clocks_whole: Slot,
    pub(crate) move_clocks_of_run: Slot,
    pub(crate) move_older_clocks: Slot,
    pub(crate) clocks_of_new_row: Slot,
    pub(crate) clocks_of_new_rows: Slot,
    pub(crate) clocks_of_known_row: Slot,
    pub(crate) count_cell: Slot,
    pub(crate) count_cell_of: Slot,
    pub(crate) count_cells: Slot,
    pub(crate) count_cell_of_run: Slot,
    pub(crate) put_clock: Slot,
    pub(crate) put_clocks: Slot,
    pub(crate) put_clocks_of_cell: Slot,
    pub(crate) add_clock: Slot,
    pub(crate) move_clock: Slot,
    pub(crate) insert_sentinel: Slot,
    pub(crate) reinsert_sentinel: Slot,
    pub(crate) delete_sentinel: Slot,
    pub(crate) drop_cells: Slot,
    pub(crate) drop_cells_of_run: Slot,
    pub(crate) any_clock_of_run: Slot,
    pub(crate) bury_run: Slot,
    pub(crate) drop_clocks: Slot,
    pub(crate) key_span: Slot,
    pub(crate) sentinels: Slot,
    pub(crate) whole_clocks: Slot,
    pub(crate) delete_row: Slot,
    pub(crate) zero_cells: Slot,
    pub(crate) scan: Slot,
    pub(crate) scan_version: Slot,
    pub(crate) run_order: Slot,
    pub(crate) run_clocks: Slot,
    pub(crate) run_rows: Slot,
    pub(crate) run_rows_near: Slot,
    pub(crate) causal_length: Slot,
    pub(crate) stamped: Slot,
}

/// What else happens where a base row is written.
#[derive(Clone, Copy)]
pub(crate) struct Reactions {
    /// Triggers of the user's can change other rows, what a unique index says depends on the order of the writes, and a conflict
    /// clause decides what becomes of those before.
    pub(crate) by_order: bool,
    /// A CHECK judges the row of defaults that an upsert begins with.
    pub(crate) by_check: bool,
}

/// A statement that writes base rows: how, and which cells.
struct RowWriter {
    kind: RowWrite,
    cells: Box<[usize]>,
    statement: Arc<Statement>,
}

/// How base rows are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowWrite {
    Insert,
    Update,
    /// Of the row at a rowid, which follows the keys.
    UpdateNear,
    /// All rows of a batch.
    InsertMany,
    /// The rows of a batch that lie between two places, by these.
    UpdateMany,
}

/// Most statements of one table that wait for a cursor.
const IDLE_MAX: usize = 16;

/// Most column sets of one table whose statements are kept. A table of n columns has 2^n sets; a few are in use.
const COLUMN_SETS_MAX: usize = 64;

impl Table {
    pub(crate) fn cell_index(&self, name: &str) -> Option<usize> {
        // Hashing costs more than looking at a few.
        if self.cells.len() <= 8 {
            return self.cells.iter().position(|cell| *cell.name == *name);
        }
        self.cell_index.get(name).copied()
    }

    /// What the clock of this `col_name` is about.
    pub(crate) fn clock_of(&self, name: &[u8]) -> ClockOf {
        if name == b"-1" {
            return ClockOf::Row;
        }
        let cell = std::str::from_utf8(name).ok().and_then(|name| self.cell_index(name));
        cell.map_or(ClockOf::Gone, ClockOf::Cell)
    }

    /// The same, for who knows which cell it probably is.
    pub(crate) fn clock_of_expected(&self, name: &[u8], expected: usize) -> ClockOf {
        match self.cells.get(expected) {
            Some(cell) if cell.name.as_bytes() == name => ClockOf::Cell(expected),
            _ => self.clock_of(name),
        }
    }

    /// The same, for who goes through the clocks of a row, which lie in the order of names: `last` is the cell of the one before.
    pub(crate) fn clock_after(&self, last: Option<usize>, name: &[u8]) -> ClockOf {
        let place = last.map_or(0, |last| self.by_name[last] + 1);
        match self.in_order.get(place) {
            Some(cell) if self.cells[*cell].name.as_bytes() == name => ClockOf::Cell(*cell),
            _ => self.clock_of(name),
        }
    }

    /// What a change is about. The changes of a row mostly come in the order of names, too.
    pub(crate) fn clock_of_change(&self, last: Option<ClockOf>, change: &Change) -> ClockOf {
        let last = match last {
            Some(ClockOf::Cell(cell)) => Some(cell),
            _ => None,
        };
        match &change.column {
            Column::Row => ClockOf::Row,
            Column::Cell(name) => self.clock_after(last, name.as_bytes()),
        }
    }

    /// How many cells the update trigger passes.
    pub(crate) fn passed_cells(&self) -> usize {
        self.passed.as_ref().map_or(self.cells.len(), Vec::len)
    }

    /// Which cell it passes at this place.
    pub(crate) fn passed_cell(&self, place: usize) -> usize {
        self.passed.as_ref().map_or(place, |passed| passed[place])
    }

    /// The cells that it does not pass, if there are such.
    pub(crate) fn unpassed(&self, db: Handle) -> rusqlite::Result<Option<&Unpassed>> {
        let Some(passed) = &self.passed else { return Ok(None) };
        if let Some(unpassed) = self.unpassed.get() {
            return Ok(Some(unpassed));
        }
        let unpassed = Unpassed::new(db, self, passed)?;
        Ok(Some(self.unpassed.get_or_init(|| unpassed)))
    }

    /// What writing a base row sets off. Triggers in the temporary schema are not looked at.
    pub(crate) fn reactions(&self, db: Handle) -> rusqlite::Result<Reactions> {
        if let Some(reactions) = self.reactions.get() {
            return Ok(*reactions);
        }
        let reactions = read_reactions(db, self)?;
        Ok(*self.reactions.get_or_init(|| reactions))
    }

    /// The same table, which has prepared nothing yet.
    pub(crate) fn without_statements(&self) -> Self {
        Self {
            name: self.name.clone(),
            shadow: self.shadow.clone(),
            passed: self.passed.clone(),
            keys: self.keys.clone(),
            cells: self.cells.clone(),
            in_order: self.in_order.clone(),
            by_name: self.by_name.clone(),
            unpassed: OnceLock::default(),
            cell_index: self.cell_index.clone(),
            rowid: self.rowid.clone(),
            statements: Statements::default(),
            writers: Mutex::default(),
            reactions: OnceLock::default(),
            idle: Mutex::default(),
        }
    }

    pub(crate) fn is_keys_only(&self) -> bool {
        self.cells.is_empty()
    }

    /// The primary key, where it is one number.
    pub(crate) fn integer_key(&self) -> Option<&ColumnInfo> {
        match &*self.keys {
            [key] if key.affinity == Affinity::Integer => Some(key),
            _ => None,
        }
    }

    /// The name of the rowid, where there is one that is not the primary key itself.
    pub(crate) fn rowid(&self, db: Handle) -> Option<&'static str> {
        *self.rowid.get_or_init(|| {
            let is_key = self.integer_key().is_some();
            let columns = i64::try_from(self.keys.len() + self.cells.len()).unwrap_or(i64::MAX);
            if is_key || columns > db.columns_max() - 3 {
                return None;
            }
            let is_free = |name: &&str| self.keys.iter().chain(&self.cells).all(|c| !c.name.eq_ignore_ascii_case(name));
            ["rowid", "_rowid_", "oid"].into_iter().filter(is_free).find(|name| db.is_rowid(&self.name, name))
        })
    }

    /// The same, where it was asked before.
    pub(crate) fn known_rowid(&self) -> Option<&'static str> {
        self.rowid.get().copied().flatten()
    }

    /// A kept statement of this table.
    pub(crate) fn statement(
        &self,
        db: Handle,
        slot: impl for<'a> Fn(&'a Statements) -> &'a Slot,
        sql: impl Fn(&Self) -> String,
    ) -> rusqlite::Result<&Arc<Statement>> {
        fill(slot(&self.statements), || db.prepare(&sql(self)))
    }

    /// A statement for one cursor alone, kept for the next one when it is given back.
    fn take_idle(&self, db: Handle, sql: &str) -> rusqlite::Result<Statement> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.get_mut(sql).and_then(Vec::pop) {
            Some(statement) => Ok(statement),
            None => db.prepare(sql),
        }
    }

    fn give_back(&self, sql: &str, statement: Statement) {
        drop(statement.start());
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = idle.values().map(Vec::len).sum();
        if kept < IDLE_MAX {
            match idle.get_mut(sql) {
                Some(statements) => statements.push(statement),
                None => drop(idle.insert(sql.into(), vec![statement])),
            }
        }
    }

    /// The statement that writes these cells of a base row; the keys are its first parameters, the cells follow.
    pub(crate) fn write_row(&self, db: Handle, kind: RowWrite, cells: &[usize]) -> rusqlite::Result<Arc<Statement>> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_wanted = |held: &&RowWriter| held.kind == kind && *held.cells == *cells;
        if let Some(found) = writers.iter().find(is_wanted) {
            return Ok(found.statement.clone());
        }
        if writers.len() >= COLUMN_SETS_MAX {
            writers.clear();
        }
        let sql = match kind {
            RowWrite::Insert => self.sql_insert_row(cells),
            RowWrite::Update => self.sql_update_row(cells),
            RowWrite::UpdateNear => self.sql_update_row_near(cells),
            RowWrite::InsertMany => self.sql_insert_rows(cells),
            RowWrite::UpdateMany => self.sql_update_rows(cells),
        };
        let statement = Arc::new(db.prepare(&sql)?);
        writers.push(RowWriter { kind, cells: cells.into(), statement: statement.clone() });
        Ok(statement)
    }
}

/// A statement that one cursor uses; the table keeps it for the next one.
pub(crate) struct Borrowed {
    table: Arc<Table>,
    sql: String,
    statement: Option<Statement>,
}

impl Borrowed {
    pub(crate) fn take(table: &Arc<Table>, db: Handle, sql: String) -> rusqlite::Result<Self> {
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

fn fill(slot: &Slot, prepare: impl FnOnce() -> rusqlite::Result<Statement>) -> rusqlite::Result<&Arc<Statement>> {
    if let Some(statement) = slot.get() {
        return Ok(statement);
    }
    let statement = Arc::new(prepare()?);
    Ok(slot.get_or_init(|| statement))
}

/// A table by its name, with shadow tables of the same name.
pub(crate) fn load_table(db: Handle, name: &str) -> rusqlite::Result<Table> {
    let columns = db.prepare("SELECT name, type, pk FROM pragma_table_info(?1, 'main') ORDER BY cid")?;
    let rows = columns.query(&[name.into()])?;
    let (mut keys, mut cells) = (Vec::new(), Vec::new());
    while rows.next()? {
        let declared = rows.text(1);
        let keeps_all = declared.eq_ignore_ascii_case("any") && is_strict(db, name)?;
        let affinity = if keeps_all { Affinity::Blob } else { Affinity::of_type(&declared) };
        let column = ColumnInfo { name: rows.text(0).into(), affinity };
        match rows.integer(2) {
            0 => cells.push(column),
            position => keys.push((position, column)),
        }
    }
    keys.sort_by_key(|(position, _)| *position);
    let cell_index = cells.iter().enumerate().map(|(index, column)| (column.name.clone(), index)).collect();
    let mut in_order: Vec<usize> = (0..cells.len()).collect();
    in_order.sort_unstable_by_key(|cell| cells[*cell].name.as_bytes());
    let mut by_name = vec![0; cells.len()];
    for (place, cell) in in_order.iter().enumerate() {
        by_name[*cell] = place;
    }
    Ok(Table {
        name: name.into(),
        shadow: name.into(),
        passed: None,
        unpassed: OnceLock::new(),
        keys: keys.into_iter().map(|(_, column)| column).collect(),
        cells,
        in_order,
        by_name,
        cell_index,
        rowid: OnceLock::new(),
        statements: Statements::default(),
        writers: Mutex::default(),
        reactions: OnceLock::new(),
        idle: Mutex::default(),
    })
}

/// Whether STRICT stands behind the columns in the text of a table.
fn is_strict(db: Handle, table: &str) -> rusqlite::Result<bool> {
    let text = db.prepare("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE")?;
    let rows = text.query(&[table.into()])?;
    if !rows.next()? {
        return Ok(false);
    }
    let sql = rows.text(0);
    let tokens: Vec<_> = tokens(&sql).collect();
    Ok(tokens.iter().rev().take_while(|token| !token.is_sign(')')).any(|token| token.is("strict")))
}

/// Why a table cannot replicate, if it cannot: CRR-2, in its order, with its FIXes.
pub(crate) fn check_replicable(db: Handle, table: &str) -> Result<(), ReplicateError> {
    let find = |sql: &str| -> rusqlite::Result<Option<String>> {
        let statement = db.prepare(sql)?;
        let rows = statement.query(&[table.into()])?;
        Ok(if rows.next()? { Some(rows.text(0).into_owned()) } else { None })
    };
    let name = || table.to_owned();
    match find("SELECT type FROM sqlite_master WHERE name = ?1 AND type IN ('table', 'view')")?.as_deref() {
        Some("table") => {}
        Some(_) => return Err(ReplicateError::NotATable { table: name() }),
        None if find("SELECT name FROM sqlite_temp_master WHERE name = ?1")?.is_some() => {
            return Err(ReplicateError::Temporary { table: name() });
        }
        None => return Err(ReplicateError::NoSuchTable { table: name() }),
    }
    if let Some(index) = find("SELECT name FROM pragma_index_list(?1, 'main') WHERE \"unique\" = 1 AND origin <> 'pk'")?
    {
        return Err(ReplicateError::UniqueIndex { table: name(), index });
    }
    // AUTOINCREMENT is real where SQLite keeps a sequence for the table; the word may also stand in a comment.
    let create = find("SELECT sql FROM sqlite_master WHERE name = ?1 AND type = 'table'")?.unwrap_or_default();
    let is_autoincrement = has_autoincrement(&create);
    if find("SELECT name FROM pragma_table_info(?1, 'main') WHERE pk > 0 AND \"notnull\" > 0")?.is_none() {
        return Err(ReplicateError::NoPrimaryKey { table: name(), is_autoincrement });
    }
    if let Some(column) = find("SELECT name FROM pragma_table_info(?1, 'main') WHERE pk > 0 AND \"notnull\" = 0")? {
        return Err(ReplicateError::NullablePrimaryKey { table: name(), column });
    }
    if is_autoincrement {
        return Err(ReplicateError::Autoincrement { table: name() });
    }
    if let Some(other) = find("SELECT \"table\" FROM pragma_foreign_key_list(?1, 'main')")? {
        return Err(ReplicateError::ForeignKey { table: name(), other });
    }
    let no_default = "SELECT name FROM pragma_table_xinfo(?1, 'main')
                      WHERE pk = 0 AND \"notnull\" = 1 AND dflt_value IS NULL AND hidden = 0";
    if let Some(column) = find(no_default)? {
        return Err(ReplicateError::NotNullWithoutDefault { table: name(), column });
    }
    if let Some(column) =
        find("SELECT name FROM pragma_table_info(?1, 'main') WHERE name = '-1' OR (pk > 0 AND name = '__crsql_key')")?
    {
        return Err(ReplicateError::ReservedColumn { table: name(), column });
    }
    let collation = "SELECT c.name FROM pragma_index_list(?1, 'main') l JOIN pragma_index_xinfo(l.name, 'main') c
                     WHERE l.origin = 'pk' AND c.key = 1 AND c.coll <> 'BINARY' COLLATE NOCASE";
    if let Some(column) = find(collation)? {
        return Err(ReplicateError::KeyCollation { table: name(), column });
    }
    check_width(db, table)
}

/// CRR-7, what is left of it: the statements that read a row ask for two values more than it has columns, and a key has
/// its number of values in one byte.
fn check_width(db: Handle, table: &str) -> Result<(), ReplicateError> {
    let count = |what: &str| -> rusqlite::Result<i64> {
        let sql = format!("SELECT count(*) FROM pragma_table_info(?1, 'main') WHERE {what}");
        Ok(db.query_integer(&sql, &[table.into()])?.unwrap_or_default())
    };
    let (columns, columns_max) = (count("1")?, db.columns_max() - 2);
    if columns > columns_max {
        return Err(ReplicateError::TooWide { table: table.to_owned(), columns, columns_max });
    }
    let keys = count("pk > 0")?;
    if keys > i64::from(u8::MAX) {
        return Err(ReplicateError::TooManyKeys { table: table.to_owned(), keys });
    }
    Ok(())
}

fn read_reactions(db: Handle, table: &Table) -> rusqlite::Result<Reactions> {
    const TRIGGERS: &str = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE
         AND lower(name) NOT IN (lower(?2) || '__crsql_itrig', lower(?2) || '__crsql_utrig', lower(?2) || '__crsql_dtrig')";
    const INDEXES: &str = "SELECT count(*) FROM pragma_index_list(?1, 'main') WHERE \"unique\" = 1 AND origin <> 'pk'";
    const TEXT: &str = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    let triggers = db.query_integer(TRIGGERS, &[(&*table.name).into(), (&*table.shadow).into()])?.unwrap_or_default();
    let indexes = db.query_integer(INDEXES, &[(&*table.name).into()])?.unwrap_or_default();
    let text = db.prepare(TEXT)?;
    let rows = text.query(&[(&*table.name).into()])?;
    let (mut by_check, mut has_clause) = (true, false);
    if rows.next()? {
        let text = rows.text(0);
        let has = |words: &[&str]| tokens(&text).any(|token| words.iter().any(|word| token.is(word)));
        // STRICT judges defaults, too, and so does a generated column that must not be NULL.
        (by_check, has_clause) = (has(&["check", "strict", "generated", "as"]), has(&["conflict"]));
    }
    Ok(Reactions { by_order: triggers + indexes > 0 || has_clause, by_check })
}

/// Whether the keyword stands in a CREATE TABLE text, outside of strings, quoted names and comments.
fn has_autoincrement(sql: &str) -> bool {
    tokens(sql).any(|token| token.is("autoincrement"))
}

#[cfg(test)]
mod tests {
    use super::has_autoincrement;

    #[test]
    fn autoincrement_counts_only_as_a_keyword() {
        assert!(has_autoincrement("CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT)"));
        assert!(has_autoincrement("CREATE TABLE t (a INTEGER PRIMARY KEY /* x */ autoincrement NOT NULL)"));
        assert!(!has_autoincrement("CREATE TABLE t (a INTEGER PRIMARY KEY NOT NULL, \"autoincrement\" TEXT)"));
        assert!(!has_autoincrement("CREATE TABLE t (a PRIMARY KEY NOT NULL -- no autoincrement\n)"));
        assert!(!has_autoincrement(
            "CREATE TABLE t (a PRIMARY KEY NOT NULL, b DEFAULT 'autoincrement', autoincrements)"
        ));
    }
}
