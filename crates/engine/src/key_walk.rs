//! Keys of rows that follow each other, found by stepping from one to the next instead of searching for each.
//!
//! Rows that come one after another mostly have keys that were given out one after another. One statement steps over the keys table, and
//! asks a function about each: it compares the primary key with the one that is wanted, and ends the walk at a row that is another one.
//! Nothing is handed out in between, which takes as long as the comparison.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int};

use rusqlite::ffi;

use crate::batch_table::add_function;
use crate::core::Core;
use crate::schema::Table;
use crate::statement::{Bind, Handle, Passed, passed, value_of};

/// The rows that are wanted, and how far the running statement has come.
struct Walk<'w> {
    count: usize,
    is_row: &'w IsRow<'w>,
    passed_max: usize,
    /// How many others were passed since the row before.
    passed: Cell<usize>,
    keys: RefCell<Vec<i64>>,
}

/// Whether a row, by its number, has this primary key.
type IsRow<'w> = dyn Fn(usize, PrimaryKey<'_>) -> bool + 'w;

/// The values of a primary key.
#[derive(Clone, Copy)]
pub(crate) struct PrimaryKey<'a>(&'a [*mut ffi::sqlite3_value]);

// SAFETY: nothing else of ours has this name, whatever a walk borrows.
unsafe impl Passed for Walk<'_> {
    const NAME: &'static CStr = c"litemesh_key_walk";
}

impl PrimaryKey<'_> {
    /// Whether it is made of these values.
    pub(crate) fn is<'v>(self, mut wanted: impl Iterator<Item = Bind<'v>>) -> bool {
        // SAFETY: SQLite's values live as long as the call, for which this was made.
        self.0.iter().all(|value| wanted.next().is_some_and(|wanted| wanted.is(unsafe { value_of(*value) })))
    }
}

impl Walk<'_> {
    /// Whether the walk ends at this key.
    fn meet(&self, key: i64, primary_key: PrimaryKey<'_>) -> bool {
        let mut keys = self.keys.borrow_mut();
        if keys.len() < self.count && (self.is_row)(keys.len(), primary_key) {
            keys.push(key);
            self.passed.set(0);
            return keys.len() == self.count;
        }
        self.passed.set(self.passed.get() + 1);
        self.passed.get() > self.passed_max
    }
}

pub(crate) fn register(db: Handle) -> rusqlite::Result<()> {
    add_function(db, c"litemesh_ends_walk", ends_walk)
}

/// `litemesh_ends_walk(walk, key, primary key…)`.
///
/// # Safety
///
/// SQLite calls it with its context and as many values as it says.
unsafe extern "C" fn ends_walk(context: *mut ffi::sqlite3_context, argc: c_int, argv: *mut *mut ffi::sqlite3_value) {
    let Some(count) = usize::try_from(argc).ok().filter(|count| *count >= 2) else { return };
    // SAFETY: as many values as SQLite says, which live as long as the call; the walk does as long as the statement runs.
    unsafe {
        let values = std::slice::from_raw_parts(argv, count);
        let Some(walk) = passed::<Walk<'static>>(values[0]) else { return };
        let key = ffi::sqlite3_value_int64(values[1]);
        ffi::sqlite3_result_int(context, c_int::from(walk.meet(key, PrimaryKey(&values[2..]))));
    }
}

/// The keys of the first of so many rows, from key `first` on, as far as they follow each other as the rows do, with up to
/// `passed_max` others between two of them.
pub(crate) fn walk_keys(
    core: &Core,
    table: &Table,
    first: i64,
    (count, passed_max): (usize, usize),
    is_row: &IsRow<'_>,
) -> rusqlite::Result<Vec<i64>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let (passed, keys) = (Cell::new(0), RefCell::new(Vec::with_capacity(count)));
    let walk = Walk { count, is_row, passed_max, passed, keys };
    let statement = table.statement(core.db, |s| &s.walk_keys, Table::sql_walk_keys)?;
    let binds = [first.into()];
    statement.query_passing(&walk, &binds)?.next()?;
    Ok(walk.keys.into_inner())
}
