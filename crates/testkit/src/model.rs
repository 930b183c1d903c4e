//! [`Model`]: what replicated tables must hold, written down as plainly as it can be said.
//!
//! Source: `crsqlite-compat.md` sections 3 to 5, not the engine's code: where the two disagree, one of them has misread the
//! specification. Nothing here is meant to be fast, and authorship is left out: it never decides what rows hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use litemesh_proto::{Change, Column, PackedKey, SiteId, Value};

use crate::history::{Conflict, Schema, Statement};

/// One replica as maps.
#[derive(Clone, Debug)]
pub struct Model {
    site: SiteId,
    recursive_triggers: bool,
    tables: BTreeMap<Arc<str>, Table>,
}

#[derive(Clone, Debug)]
struct Table {
    schema: Schema,
    rows: BTreeMap<Vec<u8>, Row>,
}

/// What is known of one primary key. It is there from the first write on and for ever.
#[derive(Clone, Debug, Default)]
struct Row {
    /// The clock row of the row itself, where one was recorded: its causal length.
    sentinel: Option<i64>,
    /// Clocks of cells: their column versions.
    clocks: BTreeMap<Arc<str>, i64>,
    /// The base row, cells in table order. Alive means that it is there.
    base: Option<Vec<Value>>,
}

impl Row {
    /// VER-13.
    fn causal_length(&self) -> i64 {
        self.sentinel.unwrap_or_else(|| i64::from(!self.clocks.is_empty()))
    }

    /// 4.5, *insert* and *new side of PK update*, where there is a sentinel already.
    fn sentinel_reborn(held: i64) -> i64 {
        if held % 2 == 0 { held + 1 } else { held + 2 }
    }

    /// 4.5, *delete* and *old side of PK update*: the next even number.
    fn bury(&mut self) {
        let held = self.sentinel.unwrap_or(1);
        self.sentinel = Some(if held % 2 == 0 { held + 2 } else { held + 1 });
        self.clocks.clear();
        self.base = None;
    }

    fn count(&mut self, cell: &Arc<str>) {
        *self.clocks.entry(cell.clone()).or_default() += 1;
    }

    /// MRG-7 to MRG-9.
    fn revive(&mut self, length: i64, defaults: Vec<Value>) {
        self.sentinel = Some(length);
        for version in self.clocks.values_mut() {
            *version = 0;
        }
        self.base.get_or_insert(defaults);
    }
}

impl Model {
    /// An empty replica with these tables.
    pub fn new(site: SiteId, schemas: &[Schema]) -> Self {
        let table = |schema: &Schema| (schema.name.clone(), Table { schema: schema.clone(), rows: BTreeMap::new() });
        Self { site, recursive_triggers: false, tables: schemas.iter().map(table).collect() }
    }

    /// The replica with `PRAGMA recursive_triggers` on: REPLACE is then a delete and an insert.
    #[must_use]
    pub fn with_recursive_triggers(mut self, on: bool) -> Self {
        self.recursive_triggers = on;
        self
    }

    /// Whose replica this is.
    pub fn site(&self) -> SiteId {
        self.site
    }

    /// Runs a statement of the application. `false` where SQLite must refuse it; nothing changed then.
    ///
    /// # Panics
    ///
    /// The statement is about a table that the model does not have.
    pub fn execute(&mut self, statement: &Statement) -> bool {
        let recursive = self.recursive_triggers;
        let table = self.tables.get_mut(statement.table()).expect("a statement on a table of the model");
        match statement {
            Statement::Insert { key, cells, conflict, .. } => table.insert_or(recursive, key, cells, conflict),
            Statement::Update { key, set, .. } => {
                table.update(&packed(key), set);
                true
            }
            Statement::UpdateAll { set, .. } => {
                for key in table.live_keys() {
                    table.update(&key, set);
                }
                true
            }
            Statement::Move { from, to, set, replace, .. } => table.move_row(recursive, from, to, set, *replace),
            Statement::Delete { key, .. } => {
                table.delete(&packed(key));
                true
            }
            Statement::DeleteAll { .. } => {
                for key in table.live_keys() {
                    table.delete(&key);
                }
                true
            }
        }
    }

    /// Merges one change. `false` where it changed nothing.
    ///
    /// # Panics
    ///
    /// The change is about a table or a column that the model does not have.
    pub fn merge(&mut self, change: &Change) -> bool {
        self.tables.get_mut(&change.table).expect("a change of a table of the model").merge(change)
    }

    /// Everything that replicas must agree on.
    pub fn state(&self) -> State {
        let mut state = State::default();
        for (name, table) in &self.tables {
            for (key, row) in &table.rows {
                let length = row.causal_length().max(1);
                if let Some(base) = &row.base {
                    state.put_row(name, key, base.clone());
                }
                if let Some(sentinel) = row.sentinel {
                    state.put_clock(name, key, Column::ROW_NAME, (Value::Null, sentinel, length));
                }
                for (cell, version) in &row.clocks {
                    let base = row.base.as_ref().expect("a clock of a cell without its row");
                    let value = base[table.schema.cell_index(cell)].clone();
                    state.put_clock(name, key, cell, (value, *version, length));
                }
            }
        }
        state
    }
}

fn packed(key: &[Value]) -> Vec<u8> {
    PackedKey::pack(key).expect("few enough key columns").as_bytes().to_vec()
}

impl Table {
    fn live_keys(&self) -> Vec<Vec<u8>> {
        self.rows.iter().filter(|(_, row)| row.base.is_some()).map(|(key, _)| key.clone()).collect()
    }

    fn is_live(&self, key: &[u8]) -> bool {
        self.rows.get(key).is_some_and(|row| row.base.is_some())
    }

    fn insert_or(
        &mut self,
        recursive_triggers: bool,
        key: &[Value],
        cells: &[Option<Value>],
        conflict: &Conflict,
    ) -> bool {
        let key = packed(key);
        let given = cells.iter().zip(&self.schema.cells);
        let values = given.map(|(value, cell)| value.clone().unwrap_or_else(|| cell.default.clone())).collect();
        if !self.is_live(&key) {
            self.insert(&key, values);
            return true;
        }
        match conflict {
            Conflict::Abort => return false,
            Conflict::Ignore => {}
            Conflict::Replace => {
                if recursive_triggers {
                    self.delete(&key);
                }
                self.insert(&key, values);
            }
            Conflict::Update(set) => self.update(&key, set),
        }
        true
    }

    /// LW-1 to LW-4.
    fn insert(&mut self, key: &[u8], values: Vec<Value>) {
        let cells = &self.schema.cells;
        let row = self.rows.entry(key.to_vec()).or_default();
        row.sentinel = match row.sentinel {
            None if cells.is_empty() => Some(1),
            held => held.map(Row::sentinel_reborn),
        };
        for cell in cells {
            row.count(&cell.name);
        }
        row.base = Some(values);
    }

    /// LW-7.
    fn update(&mut self, key: &[u8], set: &[(usize, Value)]) {
        let Some(row) = self.rows.get_mut(key) else { return };
        let Some(mut base) = row.base.take() else { return };
        for (cell, value) in set {
            if base[*cell] != *value {
                base[*cell] = value.clone();
                row.count(&self.schema.cells[*cell].name);
            }
        }
        row.base = Some(base);
    }

    /// LW-6 and LW-7.
    fn move_row(
        &mut self,
        recursive_triggers: bool,
        from: &[Value],
        to: &[Value],
        set: &[(usize, Value)],
        replace: bool,
    ) -> bool {
        let (from, to) = (packed(from), packed(to));
        if !self.is_live(&from) {
            return true;
        }
        if from == to {
            self.update(&from, set);
            return true;
        }
        if self.is_live(&to) {
            if !replace {
                return false;
            }
            if recursive_triggers {
                self.delete(&to);
            }
        }
        let old = self.rows.get_mut(&from).expect("a live row");
        let (base, moved) = (old.base.take(), std::mem::take(&mut old.clocks));
        old.bury();
        let new = self.rows.entry(to.clone()).or_default();
        // Every cell of the row was written by this statement, also one that had no clock yet.
        for cell in &self.schema.cells {
            let highest = new.clocks.get(&cell.name).copied().max(moved.get(&cell.name).copied());
            new.clocks.insert(cell.name.clone(), highest.unwrap_or_default() + 1);
        }
        new.sentinel = Some(new.sentinel.map_or(1, Row::sentinel_reborn));
        new.base = base;
        self.update(&to, set);
        true
    }

    /// LW-8.
    fn delete(&mut self, key: &[u8]) {
        if let Some(row) = self.rows.get_mut(key).filter(|row| row.base.is_some()) {
            row.bury();
        }
    }

    /// 5.2, rule by rule.
    fn merge(&mut self, change: &Change) -> bool {
        let key = change.key.as_bytes();
        let defaults: Vec<Value> = self.schema.cells.iter().map(|cell| cell.default.clone()).collect();
        let (incoming, held) = (change.causal_length.get(), self.rows.get(key).map_or(0, Row::causal_length));
        let is_alive = incoming % 2 != 0;
        if incoming < held || (incoming == held && !is_alive) {
            return false;
        }
        if incoming == held && change.column == Column::Row {
            return false;
        }
        if !is_alive {
            let row = self.rows.entry(key.to_vec()).or_default();
            row.bury();
            row.sentinel = Some(incoming);
            return true;
        }
        let Column::Cell(name) = &change.column else {
            self.rows.entry(key.to_vec()).or_default().revive(incoming, defaults);
            return true;
        };
        let cell = self.schema.cell_index(name);
        if incoming == held && !self.wins(key, cell, name, change) {
            return false;
        }
        let row = self.rows.entry(key.to_vec()).or_default();
        if incoming > held && (held != 0 || incoming > 1) {
            row.revive(incoming, defaults.clone());
        }
        row.base.get_or_insert(defaults)[cell] = change.value.clone();
        row.clocks.insert(name.clone(), change.col_version.get());
        true
    }

    /// 5.3.
    fn wins(&self, key: &[u8], cell: usize, name: &str, change: &Change) -> bool {
        let row = &self.rows[key];
        let Some(held) = row.clocks.get(name) else { return true };
        let incoming = change.col_version.get();
        if incoming != *held {
            return incoming > *held;
        }
        rank(&change.value, row.base.as_ref().map(|base| &base[cell]))
    }
}

/// CMP-1 and CMP-2: whether `incoming` is the larger one.
fn rank(incoming: &Value, held: Option<&Value>) -> bool {
    let code = |value: &Value| match value {
        Value::Integer(_) => 1,
        Value::Real(_) => 2,
        Value::Text(_) => 3,
        Value::Blob(_) => 4,
        Value::Null => 5,
    };
    let Some(held) = held else { return true };
    match (incoming, held) {
        (Value::Integer(a), Value::Integer(b)) => a > b,
        (Value::Real(a), Value::Real(b)) => a > b,
        (Value::Text(a), Value::Text(b)) | (Value::Blob(a), Value::Blob(b)) => a > b,
        _ => code(incoming) < code(held),
    }
}

/// Value, column version and causal length of one clock row.
pub type Clock = (Value, i64, i64);

/// Table and packed primary key.
type RowName = (Arc<str>, Vec<u8>);

/// What replicas that saw the same changes must agree on: base rows, and the clocks without their authors.
///
/// A sentinel of causal length 1 beside cells is left out. It says what the cells say as well, a row that is inserted at one
/// replica and becomes the new side of a primary key update at another has it at the second only, and merging it changes
/// nothing (5.2, rule 4).
#[derive(Clone, Debug, Default)]
pub struct State {
    rows: BTreeMap<RowName, Vec<Value>>,
    clocks: BTreeMap<RowName, BTreeMap<Arc<str>, Clock>>,
}

impl State {
    /// Adds a base row, its cells in table order.
    pub fn put_row(&mut self, table: &Arc<str>, key: &[u8], cells: Vec<Value>) {
        self.rows.insert((table.clone(), key.to_vec()), cells);
    }

    /// Adds a clock.
    pub fn put_clock(&mut self, table: &Arc<str>, key: &[u8], column: &str, clock: Clock) {
        self.clocks.entry((table.clone(), key.to_vec())).or_default().insert(column.into(), clock);
    }

    /// Removes all that there is of a row.
    pub fn remove_row(&mut self, table: &Arc<str>, key: &[u8]) {
        let name = (table.clone(), key.to_vec());
        self.rows.remove(&name);
        self.clocks.remove(&name);
    }

    /// The clocks of a row, without a sentinel that says nothing.
    fn telling(clocks: &BTreeMap<Arc<str>, Clock>) -> impl Iterator<Item = (&Arc<str>, &Clock)> {
        clocks
            .iter()
            .filter(move |(column, clock)| !(&***column == Column::ROW_NAME && clock.1 == 1 && clocks.len() > 1))
    }

    /// The clock of one cell, or of a row itself.
    pub fn clock(&self, table: &Arc<str>, key: &[u8], column: &str) -> Option<&Clock> {
        self.clocks.get(&(table.clone(), key.to_vec()))?.get(column)
    }

    /// The causal length of a row, zero where it is not known.
    pub fn causal_length(&self, table: &Arc<str>, key: &[u8]) -> i64 {
        let clocks = self.clocks.get(&(table.clone(), key.to_vec()));
        clocks.and_then(|clocks| clocks.values().next()).map_or(0, |clock| clock.2)
    }

    /// One line for each row and each clock.
    fn lines(&self) -> BTreeMap<String, String> {
        let name = |table: &str, key: &[u8]| {
            let mut hex = String::new();
            for byte in key {
                write!(hex, "{byte:02x}").expect("a String takes everything");
            }
            format!("{table} {hex}")
        };
        let rows = self.rows.iter().map(|((table, key), cells)| (name(table, key), format!("{cells:?}")));
        let clocks = self.clocks.iter().flat_map(|((table, key), clocks)| {
            let name = name(table, key);
            Self::telling(clocks).map(move |(column, clock)| (format!("{name} {column}"), format!("{clock:?}")))
        });
        rows.chain(clocks).collect()
    }

    /// What differs, line by line; empty where nothing does.
    pub fn diff(&self, other: &Self) -> String {
        let (left, right) = (self.lines(), other.lines());
        let mut out = String::new();
        for name in left.keys().chain(right.keys().filter(|name| !left.contains_key(*name))) {
            let (left, right) = (left.get(name), right.get(name));
            if left != right {
                writeln!(out, "{name}: {left:?} against {right:?}").expect("a String takes everything");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use litemesh_proto::{CausalLength, ColVersion, DbVersion, Seq};

    use super::*;
    use crate::history::schemas;

    fn change(column: &str, value: i64, col_version: i64, length: i64) -> Change {
        Change {
            table: "items".into(),
            key: PackedKey::pack(&[Value::Integer(1)]).unwrap(),
            column: column.into(),
            value: if column == Column::ROW_NAME { Value::Null } else { Value::Integer(value) },
            col_version: ColVersion::new(col_version),
            db_version: DbVersion::new(1),
            site: SiteId::from_bytes([9; 16]),
            causal_length: CausalLength::new(length),
            seq: Seq::new(0),
        }
    }

    /// Golden vectors of 5.7, for the cell `a` of the row 1.
    fn check(changes: &[Change], expected: &[(&str, i64, i64)], value: Option<i64>) {
        let mut model = Model::new(SiteId::from_bytes([1; 16]), &schemas());
        for change in changes {
            model.merge(change);
        }
        let row = &model.tables["items"].rows[changes[0].key.as_bytes()];
        let mut clocks: Vec<_> = row.clocks.iter().map(|(name, version)| (&**name, *version)).collect();
        clocks.extend(row.sentinel.map(|length| (Column::ROW_NAME, length)));
        clocks.sort_unstable();
        let length = row.causal_length();
        assert_eq!(clocks.iter().map(|(name, version)| (*name, *version, length)).collect::<Vec<_>>(), expected);
        assert_eq!(row.base.as_ref().map(|base| base[0].clone()), value.map(Value::Integer));
    }

    #[test]
    fn merge_follows_the_golden_vectors() {
        check(&[change("a", 7, 1, 1)], &[("a", 1, 1)], Some(7));
        check(&[change("a", 7, 4, 3)], &[("-1", 3, 3), ("a", 4, 3)], Some(7));
        let resurrected = [change("a", 2, 1, 1), change("-1", 0, 3, 3)];
        check(&resurrected, &[("-1", 3, 3), ("a", 0, 3)], Some(2));
        check(&[change("a", 2, 1, 1), change("-1", 0, 2, 2), change("a", 9, 9, 1)], &[("-1", 2, 2)], None);
        check(&[change("a", 2, 1, 1), change("a", 1, 1, 1)], &[("a", 1, 1)], Some(2));
        check(&[change("a", 2, 1, 1), change("a", 3, 1, 1)], &[("a", 1, 1)], Some(3));
        check(&[change("a", 2, 1, 1), change("a", 0, 2, 1)], &[("a", 2, 1)], Some(0));
    }
}
