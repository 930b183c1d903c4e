//! `crsql_fract_fix_conflict_return_old_key`: equal keys told apart (FR-10).
//!
//! Our own triggers do without it ([`super::ordered_list`]); those that CRSqlite left in a file call it.

use rusqlite::functions::Context;
use rusqlite::types::ValueRef;

use super::key::key_between;
use super::order_key;
use super::ordered_list::OrderedList;
use crate::core::{Shared, module_error};
use crate::error::to_sql;
use crate::statement::Bind;

/// `(table, order_column, list_column…, -1, key_column…, key_value…)`: moves the named row between its predecessor and the
/// key that it shares with others, and gives the key between its new place and the shared one.
pub(crate) fn fix_conflict(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<String> {
    // Only for the handle: the update below runs triggers, which take the lock themselves.
    let db = shared.lock()?.db;
    let all: Vec<ValueRef<'_>> = (0..context.len()).map(|index| context.get_raw(index)).collect();
    let usage = || {
        module_error(
            "expected (table, order column, list columns, -1, key columns, their values), as many values as key columns",
        )
    };
    let separator = all.iter().position(|value| *value == ValueRef::Integer(-1)).ok_or_else(usage)?;
    let (names, row) = (&all[..separator], &all[separator + 1..]);
    let (key_names, key_values) = row.split_at(row.len() / 2);
    let (names, key_names) = (texts(names).ok_or_else(usage)?, texts(key_names).ok_or_else(usage)?);
    let [table, order, lists @ ..] = names.as_slice() else { return Err(usage()) };
    if key_names.is_empty() || key_names.len() != key_values.len() {
        return Err(usage());
    }
    let list = OrderedList::load(db, table, order, lists)?;
    let key_names = list.key_columns(&key_names)?;
    let (table, order) = (list.table(), list.order());

    let this: Vec<_> =
        key_names.iter().zip(1..).map(|(name, n)| format!("{} IS ?{n}", crate::sql::quote(name))).collect();
    let this = this.join(" AND ");
    let of_target = |column: &str| format!("{table}.{column}");
    let before = list.key_before(of_target, &format!("{table}.{order}"));
    let binds: Vec<Bind<'_>> = key_values.iter().map(|value| Bind::from(*value)).collect();
    let find = db.prepare(&format!("SELECT {order}, {before} FROM {table} WHERE {this}"))?;
    let rows = find.query(&binds)?;
    if !rows.next()? {
        return Err(module_error(format!("no row of table {table} has this key")));
    }
    let shared_key = order_key(rows.value_ref(0))?.ok_or_else(|| module_error("the row has no order key"))?.to_owned();
    let below = key_between(order_key(rows.value_ref(1))?, Some(&shared_key)).map_err(to_sql)?;
    drop(rows);
    let place = format!("UPDATE {table} SET {order} = ?{} WHERE {this}", binds.len() + 1);
    let mut binds = binds;
    binds.push(below.as_str().into());
    db.prepare(&place)?.run(&binds)?;
    key_between(Some(&below), Some(&shared_key)).map_err(to_sql)
}

fn texts<'a>(values: &[ValueRef<'a>]) -> Option<Vec<&'a str>> {
    values.iter().map(|value| value.as_str().ok()).collect()
}
