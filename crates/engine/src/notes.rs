//! What the clocks do not tell yet of the running transaction: local writes, as the triggers reported them, and what was merged
//! through `crsql_changes`.
//!
//! Writing clocks from inside a trigger makes SQLite keep a copy of every page that they touch, in case the statement fails
//! later, and makes each clock a statement of its own. So a trigger only notes what happened, and [`crate::record`] writes the
//! clocks of many rows at once: in `xSync` of the transaction, before anything else of the engine runs, or when there are many.
//!
//! A savepoint that is rolled back takes back its notes. What was noted before it and recorded inside of it is kept until then,
//! to be recorded again: SQLite rolled back its clocks, too.

use std::ops::Range;
use std::sync::Arc;

use rusqlite::types::ValueRef;

use crate::merge::Stamp;
use crate::merge_row::NewClock;
use crate::record_deletes::Run;
use crate::schema::Table;
use crate::statement::Bind;

/// Notes are recorded at the latest when they take this many bytes, inside of the statement that makes them.
const NOTES_BYTES_MAX: usize = 256 << 10;

/// Between statements, where less has to be kept of pages that change, so many bytes suffice. The others are for the notes of the
/// next statement.
const MANY_BYTES: usize = NOTES_BYTES_MAX / 2;

/// One write of one row.
#[derive(Clone)]
pub(crate) struct Note {
    pub(crate) table: Arc<Table>,
    pub(crate) write: Write,
    /// The primary key: of the row as it is now, except for a delete. Not of what was merged.
    keys: Range<usize>,
}

/// What happened to the row.
#[derive(Clone)]
pub(crate) enum Write {
    Insert,
    /// The columns that changed; and the old primary key, where that changed.
    Update {
        cells: Range<usize>,
        old_keys: Option<Range<usize>>,
    },
    Delete,
    /// Many rows: deletes that were held back when notes became too many. No primary keys are kept of them.
    DeleteRun(Run),
    /// A change was merged. Which clock that makes is told by its place among those.
    Merge(usize),
}

/// The clock of a change that was merged into the base row.
#[derive(Clone, Copy)]
pub(crate) struct MergedClock {
    /// The number of the row's key, which is there already.
    pub(crate) key: i64,
    pub(crate) clock: NewClock,
    pub(crate) stamp: Stamp,
    /// Whether the row had a clock of this cell, stored or noted.
    pub(crate) is_held: bool,
}

/// The notes of a transaction, in the order of its writes.
#[derive(Default)]
pub(crate) struct Notes {
    notes: Vec<Note>,
    values: Vec<NotedValue>,
    bytes: Vec<u8>,
    cells: Vec<usize>,
    merged: Vec<MergedClock>,
}

/// A value of a primary key; long ones lie in `bytes`.
enum NotedValue {
    Null,
    Integer(i64),
    Real(f64),
    Text(Range<usize>),
    Blob(Range<usize>),
}

impl Notes {
    pub(crate) fn len(&self) -> usize {
        self.notes.len()
    }

    /// Forgets all but the first ones.
    pub(crate) fn truncate(&mut self, count: usize) {
        if count >= self.notes.len() {
            return;
        }
        self.notes.truncate(count);
        self.values.truncate(self.notes.last().map_or(0, |note| note.keys.end));
        let bytes = self.values.iter().rev().find_map(|value| match value {
            NotedValue::Text(range) | NotedValue::Blob(range) => Some(range.end),
            _ => None,
        });
        self.bytes.truncate(bytes.unwrap_or_default());
        let cells = self.notes.iter().rev().find_map(|note| match &note.write {
            Write::Update { cells, .. } => Some(cells.end),
            _ => None,
        });
        self.cells.truncate(cells.unwrap_or_default());
        let merged = self.notes.iter().rev().find_map(|note| match note.write {
            Write::Merge(place) => Some(place + 1),
            _ => None,
        });
        self.merged.truncate(merged.unwrap_or_default());
    }

    fn byte_count(&self) -> usize {
        self.bytes.len()
            + self.values.len() * size_of::<NotedValue>()
            + self.notes.len() * size_of::<Note>()
            + self.merged.len() * size_of::<MergedClock>()
    }

    pub(crate) fn are_full(&self) -> bool {
        self.byte_count() > NOTES_BYTES_MAX
    }

    pub(crate) fn are_many(&self) -> bool {
        self.byte_count() > MANY_BYTES
    }

    /// Lets go of the statements of their tables.
    pub(crate) fn finalize_statements(&mut self) {
        let mut last: Option<(Arc<Table>, Arc<Table>)> = None;
        for note in &mut self.notes {
            let (_, renewed) = match last.take() {
                Some(held) if Arc::ptr_eq(&held.0, &note.table) => last.insert(held),
                _ => last.insert((note.table.clone(), Arc::new(note.table.without_statements()))),
            };
            note.table = renewed.clone();
        }
    }

    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }

    pub(crate) fn add<'a>(&mut self, table: &Arc<Table>, write: Write, keys: impl Iterator<Item = ValueRef<'a>>) {
        let keys = self.keep(keys);
        self.notes.push(Note { table: table.clone(), write, keys });
    }

    pub(crate) fn add_merged(&mut self, table: &Arc<Table>, clock: MergedClock) {
        let (write, end) = (Write::Merge(self.merged.len()), self.values.len());
        self.merged.push(clock);
        self.notes.push(Note { table: table.clone(), write, keys: end..end });
    }

    /// The clocks of those of the notes that are of changes that were merged.
    pub(crate) fn merged_of<'n>(&'n self, notes: &'n [Note]) -> impl Iterator<Item = &'n MergedClock> {
        notes.iter().filter_map(|note| match note.write {
            Write::Merge(place) => self.merged.get(place),
            _ => None,
        })
    }

    /// Keeps values for a note that is made with them.
    pub(crate) fn keep<'a>(&mut self, values: impl Iterator<Item = ValueRef<'a>>) -> Range<usize> {
        let start = self.values.len();
        for value in values {
            let mut keep = |bytes: &[u8]| {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                start..self.bytes.len()
            };
            let value = match value {
                ValueRef::Null => NotedValue::Null,
                ValueRef::Integer(value) => NotedValue::Integer(value),
                ValueRef::Real(value) => NotedValue::Real(value),
                ValueRef::Text(bytes) => NotedValue::Text(keep(bytes)),
                ValueRef::Blob(bytes) => NotedValue::Blob(keep(bytes)),
            };
            self.values.push(value);
        }
        start..self.values.len()
    }

    /// Keeps columns for a note that is made with them.
    pub(crate) fn keep_cells(&mut self, cells: impl Iterator<Item = usize>) -> Range<usize> {
        let start = self.cells.len();
        self.cells.extend(cells);
        start..self.cells.len()
    }

    pub(crate) fn cells(&self, range: &Range<usize>) -> &[usize] {
        &self.cells[range.clone()]
    }

    pub(crate) fn keys_of(&self, note: &Note) -> impl Iterator<Item = Bind<'_>> {
        self.binds(&note.keys)
    }

    pub(crate) fn binds(&self, range: &Range<usize>) -> impl Iterator<Item = Bind<'_>> {
        self.values[range.clone()].iter().map(|value| match value {
            NotedValue::Null => Bind::Null,
            NotedValue::Integer(value) => Bind::Integer(*value),
            NotedValue::Real(value) => Bind::Real(*value),
            NotedValue::Text(range) => Bind::Text(&self.bytes[range.clone()]),
            NotedValue::Blob(range) => Bind::Blob(&self.bytes[range.clone()]),
        })
    }
}
