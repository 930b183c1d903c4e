//! Ordered lists in replicated tables: fractional indexes, whose keys leave room between any two
//! (`crsqlite-compat.md` section 14).
//!
//! [`key_between`] is the arithmetic. `ordered_list` makes a table a set of lists: triggers and a view, which write keys when
//! rows are added and moved. Everything they need is SQL and that one function, so that one write of a user stays one
//! statement of SQLite, atomic and seen by the triggers that record it.

mod conflict;
mod key;
mod ordered_list;

pub use key::{OrderKeyError, key_between};

pub(crate) use conflict::fix_conflict;
pub(crate) use ordered_list::{as_ordered, drop_list_triggers};

use rusqlite::functions::Context;
use rusqlite::types::ValueRef;

use crate::core::{Shared, module_error};
use crate::error::to_sql;

/// `crsql_fract_key_between(lo, hi)` (FR-3). Takes no lock: triggers call it while a merge holds it.
pub(crate) fn sql_key_between(_: &Shared, context: &Context<'_>) -> rusqlite::Result<String> {
    key_between(order_key(context.get_raw(0))?, order_key(context.get_raw(1))?).map_err(to_sql)
}

/// An order key as SQLite holds it. NULL is an open end.
fn order_key(value: ValueRef<'_>) -> rusqlite::Result<Option<&str>> {
    match value {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) => {
            std::str::from_utf8(bytes).map(Some).map_err(|_| module_error("an order key must be printable ASCII text"))
        }
        other => Err(module_error(format!("an order key must be text, not {}", other.data_type()))),
    }
}
