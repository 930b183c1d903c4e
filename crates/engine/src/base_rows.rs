//! [`BaseRows`]: base rows by the numbers of their keys, and of each only the cells that are asked for.
//!
//! Whoever reads changes asks for one row after another, mostly in the order of keys. The statement goes on running, so that
//! its cursors stay where they are, and steps to the next key where that is the one.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use litemesh_proto::KeyValue;
use rusqlite::types::ValueRef;

use crate::schema::{Borrowed, Slot, Statements, Table};
use crate::statement::{Handle, Rows, Statement, running, to_key_value};

/// Cells that are asked for by one parameter.
pub(crate) const MASK_BITS: usize = 32;

/// How many wrong guesses show that keys and base rows are numbered apart.
const WRONG_MAX: u32 = 16;

/// Running statements over one table.
pub(crate) struct BaseRows {
    db: Handle,
    table: Arc<Table>,
    is_kept: bool,
    /// Made where a row is first looked for by its primary key.
    by_key: Option<Cursor>,
    by_rowid: Guess,
    /// From key to rowid, of the row that was found last.
    offset: i64,
    place: Place,
    /// The key that was asked for last.
    last: Option<i64>,
    /// The cells that both give.
    masks: Vec<u32>,
    /// Those of the next row.
    wanted: Vec<u32>,
}

/// Keys and base rows that come together are numbered together: a base row's rowid is the key's number, plus something that
/// seldom changes. To look there first saves a search among primary keys for nearly every row. What is found there is
/// compared with the primary key, so that a wrong guess costs time and nothing else.
enum Guess {
    NotMade,
    Made {
        cursor: Cursor,
        /// How many in a row were wrong.
        wrong: u32,
    },
    /// There is no rowid, or no guess is right.
    Impossible,
}

/// Which cursor stands at the row.
#[derive(Clone, Copy)]
enum Place {
    Nowhere,
    ByKey,
    ByRowid,
}

/// A running statement over keys, with their base rows.
struct Cursor {
    statement: Source,
    /// Where it stands.
    key: Option<i64>,
}

/// Whose the statement is.
enum Source {
    /// Of whoever holds the engine's lock.
    Kept(Arc<Statement>),
    /// Of this cursor alone.
    Own(Borrowed),
}

impl std::ops::Deref for Source {
    type Target = Statement;

    fn deref(&self) -> &Statement {
        match self {
            Self::Kept(statement) => statement,
            Self::Own(statement) => statement,
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        drop(self.statement.start());
    }
}

impl Cursor {
    fn new(statement: Source) -> Self {
        Self { statement, key: None }
    }

    /// Moves to `key`; `false` where there is no such key.
    fn go_to(&mut self, key: i64, offset: Option<i64>, masks: &[u32]) -> rusqlite::Result<bool> {
        // Only to the very next key: what lies in between would be read for nothing. And never again the row at which it
        // stands: whoever reads with statements of its own may have written there since.
        if self.key.is_none_or(|at| at.checked_add(1) != Some(key)) {
            drop(self.statement.start());
            self.statement.bind(1, key.into())?;
            let masks = masks.iter().map(|mask| i64::from(*mask));
            for (parameter, value) in (2..).zip(offset.into_iter().chain(masks)) {
                self.statement.bind(parameter, value.into())?;
            }
        }
        self.key = None;
        self.key = key_of_next(&running(&self.statement))?;
        Ok(self.key == Some(key))
    }

    fn row(&self, keys: usize) -> BaseRow<'_> {
        BaseRow { rows: running(&self.statement), keys }
    }
}

impl BaseRows {
    /// By the table's kept statements: for one reader at a time, which holds the engine's lock until this is dropped.
    pub(crate) fn kept(db: Handle, table: &Arc<Table>) -> Self {
        Self::new(db, table, true)
    }

    /// By statements of its own.
    pub(crate) fn own(db: Handle, table: &Arc<Table>) -> Self {
        Self::new(db, table, false)
    }

    fn new(db: Handle, table: &Arc<Table>, is_kept: bool) -> Self {
        let words = vec![0; table.cells.len().div_ceil(MASK_BITS)];
        Self {
            db,
            table: table.clone(),
            is_kept,
            by_key: None,
            by_rowid: Guess::NotMade,
            offset: 0,
            place: Place::Nowhere,
            last: None,
            masks: words.clone(),
            wanted: words,
        }
    }

    /// The row `key` with the values of `cells`, and no others. `None` where it has no primary key.
    pub(crate) fn go_to(
        &mut self,
        key: i64,
        cells: impl Iterator<Item = usize>,
    ) -> rusqlite::Result<Option<BaseRow<'_>>> {
        self.wanted.fill(0);
        for cell in cells {
            self.wanted[cell / MASK_BITS] |= 1 << (cell % MASK_BITS);
        }
        if self.wanted != self.masks {
            std::mem::swap(&mut self.wanted, &mut self.masks);
            self.forget_places();
        }
        // A row for itself is found by its primary key: that tells where those beside it may be.
        let is_beside = self.last.is_some_and(|last| last.checked_add(1) == Some(key));
        (self.place, self.last) = (Place::Nowhere, Some(key));
        self.place = if is_beside { self.guess(key)? } else { self.find(key)? };
        Ok(self.row())
    }

    /// The row that [`go_to`](Self::go_to) gave last, if it gave one.
    pub(crate) fn row(&self) -> Option<BaseRow<'_>> {
        let keys = self.table.keys.len();
        match (self.place, &self.by_rowid) {
            (Place::ByRowid, Guess::Made { cursor, .. }) => Some(cursor.row(keys)),
            (Place::ByKey, _) => self.by_key.as_ref().map(|cursor| cursor.row(keys)),
            _ => None,
        }
    }

    /// Both begin anew at the next row.
    fn forget_places(&mut self) {
        if let Some(cursor) = &mut self.by_key {
            cursor.key = None;
        }
        if let Guess::Made { cursor, .. } = &mut self.by_rowid {
            cursor.key = None;
        }
    }

    /// Looks where the base row is guessed to be, then by its primary key.
    fn guess(&mut self, key: i64) -> rusqlite::Result<Place> {
        if matches!(self.by_rowid, Guess::NotMade) {
            self.by_rowid = if self.table.rowid(self.db).is_some() {
                let statement = self.statement(|s| &s.run_rows_near, Table::sql_run_rows_near)?;
                Guess::Made { cursor: Cursor::new(statement), wrong: 0 }
            } else {
                Guess::Impossible
            };
        }
        let Guess::Made { cursor, wrong } = &mut self.by_rowid else { return self.find(key) };
        if !cursor.go_to(key, Some(self.offset), &self.masks)? {
            return Ok(Place::Nowhere);
        }
        if cursor.row(self.table.keys.len()).is_there() {
            *wrong = 0;
            return Ok(Place::ByRowid);
        }
        *wrong += 1;
        if *wrong > WRONG_MAX {
            self.by_rowid = Guess::Impossible;
        }
        self.find(key)
    }

    /// Finds the base row by its primary key, and with it where the next ones may be.
    fn find(&mut self, key: i64) -> rusqlite::Result<Place> {
        if self.by_key.is_none() {
            // Asked for before the statement is made, which tells it.
            self.table.rowid(self.db);
            self.by_key = Some(Cursor::new(self.statement(|s| &s.run_rows, Table::sql_run_rows)?));
        }
        let Some(by_key) = &mut self.by_key else { return Ok(Place::Nowhere) };
        if !by_key.go_to(key, None, &self.masks)? {
            return Ok(Place::Nowhere);
        }
        let (keys, cells) = (self.table.keys.len(), self.table.cells.len());
        let row = by_key.row(keys);
        if row.is_there() && self.table.known_rowid().is_some() {
            let offset = row.rows.integer(as_column(2 + keys + cells)).wrapping_sub(key);
            if self.offset != offset {
                self.offset = offset;
                if let Guess::Made { cursor, .. } = &mut self.by_rowid {
                    cursor.key = None;
                }
            }
        }
        Ok(Place::ByKey)
    }

    fn statement(
        &self,
        slot: impl for<'a> Fn(&'a Statements) -> &'a Slot,
        sql: impl Fn(&Table) -> String,
    ) -> rusqlite::Result<Source> {
        Ok(if self.is_kept {
            Source::Kept(self.table.statement(self.db, slot, sql)?.clone())
        } else {
            Source::Own(Borrowed::take(&self.table, self.db, sql(&self.table))?)
        })
    }
}

/// What the keys table and the base table have of one row.
pub(crate) struct BaseRow<'a> {
    rows: ManuallyDrop<Rows<'a>>,
    keys: usize,
}

impl BaseRow<'_> {
    /// Whether there is a base row.
    pub(crate) fn is_there(&self) -> bool {
        !self.rows.is_null(1)
    }

    /// The primary key.
    pub(crate) fn key_values(&self) -> impl Iterator<Item = KeyValue<'_>> {
        (0..self.keys).map(|n| to_key_value(self.rows.value_ref(as_column(2 + n))))
    }

    /// The value of a cell that was asked for.
    pub(crate) fn cell(&self, cell: usize) -> ValueRef<'_> {
        self.rows.value_ref(as_column(2 + self.keys + cell))
    }
}

/// SQLite has at most 32,767 columns.
pub(crate) fn as_column(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

pub(crate) fn key_of_next(rows: &Rows<'_>) -> rusqlite::Result<Option<i64>> {
    Ok(if rows.next()? { Some(rows.integer(0)) } else { None })
}
