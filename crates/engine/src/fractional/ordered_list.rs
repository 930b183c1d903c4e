//! [`OrderedList`]: a table as a set of ordered lists, and the triggers and the view that keep its keys (FR-6 to FR-9).

use rusqlite::functions::Context;

use crate::core::{Shared, module_error};
use crate::replicate::in_savepoint;
use crate::sql::quote;
use crate::statement::Handle;

/// `crsql_fract_as_ordered(table, order_column [, list_column…])` (FR-6). An error undoes what this call did, and nothing of
/// the caller's (BUG-19).
pub(crate) fn as_ordered(shared: &Shared, context: &Context<'_>) -> rusqlite::Result<Option<i64>> {
    if context.len() < 2 {
        return Err(module_error(
            "too few arguments: give the table, its order column, and the columns that name a list",
        ));
    }
    let mut names = Vec::with_capacity(context.len());
    for index in 0..context.len() {
        let name = context.get_raw(index).as_str();
        names.push(name.map_err(|_| module_error("the table and its columns must be given as text"))?);
    }
    let core = shared.lock()?;
    in_savepoint(core.db, "as_ordered", || {
        let list = OrderedList::load(core.db, names[0], names[1], &names[2..])?;
        list.create(core.db)
    })?;
    Ok(None)
}

fn trigger_name(table: &str, suffix: &str) -> String {
    format!("__crsql_{table}_fractindex_{suffix}")
}

/// Drops the triggers that give keys, where they name a column: SQLite would not let that go otherwise.
pub(crate) fn drop_list_triggers(db: Handle, table: &str, column: &str) -> rusqlite::Result<()> {
    for name in ["pend_trig", "ezmove"].map(|suffix| trigger_name(table, suffix)) {
        let names_it = "SELECT count(*) FROM sqlite_master
                        WHERE type = 'trigger' AND name = ?1 COLLATE NOCASE AND instr(lower(sql), lower(?2))";
        if db.query_integer(names_it, &[name.as_str().into(), quote(column).as_str().into()])? > Some(0) {
            db.execute(&format!("DROP TRIGGER {}", quote(&name)))?;
        }
    }
    Ok(())
}

/// A table whose rows are ordered by a column, in one list for each combination of other columns.
pub(super) struct OrderedList {
    table: String,
    order: String,
    lists: Vec<String>,
    /// Primary key columns, in PRIMARY KEY order.
    keys: Vec<String>,
    /// Columns that can be written, in table order.
    columns: Vec<String>,
    /// Those, and generated ones.
    visible: Vec<String>,
    /// What names a row in its own triggers: the rowid, or the primary key where there is none.
    row: Vec<String>,
}

/// A value that asks for a place instead of being a key: -1 the first, 1 the last (FR-7). Keys begin with a letter, which
/// counts as 0.
fn asks(value: &str) -> String {
    format!("CAST({value} AS INTEGER) IN (-1, 1)")
}

/// Neither such a request nor NULL.
fn is_key(value: &str) -> String {
    format!("CAST({value} AS INTEGER) NOT IN (-1, 1)")
}

fn each(columns: &[String], text: impl Fn(&str) -> String) -> Vec<String> {
    columns.iter().map(|column| text(&quote(column))).collect()
}

fn find<'a>(columns: &'a [String], name: &str) -> Option<&'a String> {
    columns.iter().find(|column| column.eq_ignore_ascii_case(name))
}

impl OrderedList {
    /// Looks the names up as SQLite does, in any case, and keeps them as the schema spells them.
    pub(super) fn load(db: Handle, table: &str, order: &str, lists: &[&str]) -> rusqlite::Result<Self> {
        let found = db.prepare(
            "SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE",
        )?;
        let rows = found.query(&[table.into()])?;
        if !rows.next()? {
            return Err(module_error(format!("Table {table} does not exist in the main database")));
        }
        if rows.text(1) != "table" {
            return Err(module_error(format!("{table} is a {}; only ordinary tables can be ordered", rows.text(1))));
        }
        let (table, has_rowid) = (rows.text(0).into_owned(), rows.integer(2) == 0);
        let (mut keys, mut columns, mut visible) = (Vec::new(), Vec::new(), Vec::new());
        let info = db.prepare("SELECT name, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid")?;
        let rows = info.query(&[table.as_str().into()])?;
        while rows.next()? {
            let (name, key, is_generated) = (rows.text(0).into_owned(), rows.integer(1), rows.integer(2) != 0);
            visible.push(name.clone());
            if key > 0 {
                keys.push((key, name.clone()));
            }
            if !is_generated {
                columns.push(name);
            }
        }
        drop(rows);
        keys.sort_unstable();
        let keys: Vec<String> = keys.into_iter().map(|(_, name)| name).collect();
        let named = |name: &str| {
            find(&columns, name).cloned().ok_or_else(|| {
                module_error(format!("all columns are not present: table {table} has no writable column {name}"))
            })
        };
        let order = named(order)?;
        let lists = lists.iter().map(|name| named(name)).collect::<rusqlite::Result<_>>()?;
        if keys.is_empty() {
            return Err(module_error(format!(
                "Table {table} has no primary key, by which a row could be told to follow it"
            )));
        }
        let rowid = ["_rowid_", "rowid", "oid"].into_iter().find(|name| has_rowid && find(&visible, name).is_none());
        let row = rowid.map_or_else(|| keys.clone(), |rowid| vec![rowid.to_owned()]);
        Ok(Self { table, order, lists, keys, columns, visible, row })
    }

    /// The primary key columns named by somebody else's trigger, as the schema spells them.
    pub(super) fn key_columns(&self, names: &[&str]) -> rusqlite::Result<Vec<String>> {
        let named = |name: &&str| {
            let unknown = || module_error(format!("all columns are not present: table {} has no {name}", self.table));
            find(&self.columns, name).cloned().ok_or_else(unknown)
        };
        names.iter().map(named).collect()
    }

    pub(super) fn table(&self) -> String {
        quote(&self.table)
    }

    pub(super) fn order(&self) -> String {
        quote(&self.order)
    }

    /// A second name for the table in subqueries, which cannot be the table's own.
    fn other(&self) -> String {
        quote(&format!("{}__other", self.table))
    }

    fn view_name(&self) -> String {
        format!("{}_fractindex", self.table)
    }

    /// The order of the row that comes first among those that `condition` picks from one list, itself a key; `direction` is
    /// `ASC` or `DESC`. `list` gives the values of the list columns, as in `NEW."list"`.
    ///
    /// Compared by bytes, whatever the collation of the column: only so do keys sort.
    pub(super) fn first_key(&self, list: impl Fn(&str) -> String, condition: &str, direction: &str) -> String {
        let (table, order, other) = (self.table(), self.order(), self.other());
        let mut conditions = each(&self.lists, |column| format!("{other}.{column} IS {}", list(column)));
        conditions.push(is_key(&format!("{other}.{order}")));
        conditions.extend((!condition.is_empty()).then(|| condition.to_owned()));
        format!(
            "(SELECT {other}.{order} FROM {table} AS {other} WHERE {} ORDER BY {other}.{order} COLLATE BINARY {direction} LIMIT 1)",
            conditions.join(" AND ")
        )
    }

    /// The key before `key` in a list.
    pub(super) fn key_before(&self, list: impl Fn(&str) -> String, key: &str) -> String {
        let (order, other) = (self.order(), self.other());
        self.first_key(list, &format!("{other}.{order} < {key} COLLATE BINARY"), "DESC")
    }

    fn key_after(&self, list: impl Fn(&str) -> String, key: &str) -> String {
        let (order, other) = (self.order(), self.other());
        self.first_key(list, &format!("{other}.{order} > {key} COLLATE BINARY"), "ASC")
    }

    fn create(&self, db: Handle) -> rusqlite::Result<()> {
        let clash = self.keys.iter().find_map(|key| find(&self.visible, &format!("after_{key}")));
        if let Some(column) = clash {
            return Err(module_error(format!(
                "Table {} has a column {column}, a name that its view {} needs: rename it",
                self.table,
                self.view_name()
            )));
        }
        let view = self.view_name();
        for (kind, name) in [
            ("TRIGGER", trigger_name(&self.table, "pend_trig")),
            ("TRIGGER", trigger_name(&self.table, "ezmove")),
            ("VIEW", view),
        ] {
            db.execute(&format!("DROP {kind} IF EXISTS {}", quote(&name)))?;
        }
        for sql in [
            self.sql_place_trigger("pend_trig", "INSERT"),
            self.sql_place_trigger("ezmove", &format!("UPDATE OF {}", self.order())),
            self.sql_view(),
            self.sql_insert_trigger(),
            self.sql_update_trigger(),
        ] {
            db.execute(&sql)?;
        }
        Ok(())
    }

    /// FR-7 and FR-8: a row that asks for a place gets its key.
    ///
    /// Not while a merge writes: what a peer sent must stay as it was sent, or the two would differ.
    fn sql_place_trigger(&self, suffix: &str, event: &str) -> String {
        let (table, order) = (self.table(), self.order());
        let of_row = |column: &str| format!("NEW.{column}");
        let asked = format!("NEW.{order}");
        format!(
            "CREATE TRIGGER {name} AFTER {event} ON {table} WHEN {asks} AND crsql_internal_sync_bit() = 0 BEGIN
             UPDATE {table} SET {order} = CASE CAST({asked} AS INTEGER)
             WHEN -1 THEN crsql_fract_key_between(NULL, {first})
             ELSE crsql_fract_key_between({last}, NULL) END
             WHERE {this}; END",
            name = quote(&trigger_name(&self.table, suffix)),
            asks = asks(&asked),
            first = self.first_key(of_row, "", "ASC"),
            last = self.first_key(of_row, "", "DESC"),
            this = each(&self.row, |column| format!("{column} IS NEW.{column}")).join(" AND "),
        )
    }

    /// FR-9: the table with a column `after_…` for each key column, to be written only.
    fn sql_view(&self) -> String {
        let columns = each(&self.visible, str::to_owned).into_iter();
        let after = self.keys.iter().map(|key| format!("NULL AS {}", quote(&format!("after_{key}"))));
        format!(
            "CREATE VIEW {} AS SELECT {} FROM {}",
            quote(&self.view_name()),
            columns.chain(after).collect::<Vec<_>>().join(", "),
            self.table()
        )
    }

    /// Picks the row that a write to the view names, if it is in that list. `row` is the name of the table in the query.
    fn named_row(&self, row: &str) -> String {
        // `=`, so that NULL names no row.
        let named =
            self.keys.iter().map(|key| format!("{row}.{} = NEW.{}", quote(key), quote(&format!("after_{key}"))));
        let listed = each(&self.lists, |column| format!("{row}.{column} IS NEW.{column}"));
        let has_key = is_key(&format!("{row}.{}", self.order()));
        named.chain(listed).chain([has_key]).collect::<Vec<_>>().join(" AND ")
    }

    /// Where several rows hold the key of the named one, moves that one just below: then there is room above it (FR-9).
    /// Equal keys are usual: two peers that append at the same time make one each.
    fn sql_make_room(&self) -> String {
        let (table, order, other) = (self.table(), self.order(), self.other());
        let of_row = |column: &str| format!("NEW.{column}");
        let same_row = each(&self.keys, |key| format!("{other}.{key} IS {table}.{key}"));
        let same_list = each(&self.lists, |column| format!("{other}.{column} IS NEW.{column} AND "));
        format!(
            "UPDATE {table} SET {order} = crsql_fract_key_between({before}, {table}.{order}) WHERE {named} AND EXISTS
             (SELECT 1 FROM {table} AS {other} WHERE {lists}{other}.{order} = {table}.{order} COLLATE BINARY AND NOT ({same}))",
            before = self.key_before(of_row, &format!("{table}.{order}")),
            named = self.named_row(&table),
            lists = same_list.concat(),
            same = same_row.join(" AND "),
        )
    }

    /// The order of a row that is written through the view: after the named row, or a request for the first place.
    fn place(&self) -> String {
        let (table, order, other) = (self.table(), self.order(), self.other());
        let of_row = |column: &str| format!("NEW.{column}");
        let named_row = self.named_row(&other);
        let named = format!("(SELECT {other}.{order} FROM {table} AS {other} WHERE {named_row})");
        format!(
            "CASE WHEN EXISTS (SELECT 1 FROM {table} AS {other} WHERE {named_row})
             THEN crsql_fract_key_between({named}, {}) ELSE -1 END",
            self.key_after(of_row, &named)
        )
    }

    /// The value that each column gets from a write to the view.
    fn values(&self) -> Vec<String> {
        let value = |column: &String| {
            if *column == self.order { self.place() } else { format!("NEW.{}", quote(column)) }
        };
        self.columns.iter().map(value).collect()
    }

    fn sql_insert_trigger(&self) -> String {
        format!(
            "CREATE TRIGGER {name} INSTEAD OF INSERT ON {view} BEGIN {room}; INSERT INTO {table} ({columns}) VALUES ({values}); END",
            name = quote(&format!("{}_insert_trig", self.view_name())),
            view = quote(&self.view_name()),
            room = self.sql_make_room(),
            table = self.table(),
            columns = each(&self.columns, str::to_owned).join(", "),
            values = self.values().join(", "),
        )
    }

    fn sql_update_trigger(&self) -> String {
        let sets = self.columns.iter().zip(self.values()).map(|(column, value)| format!("{} = {value}", quote(column)));
        format!(
            "CREATE TRIGGER {name} INSTEAD OF UPDATE ON {view} BEGIN {room}; UPDATE {table} SET {sets} WHERE {this}; END",
            name = quote(&format!("{}_update_trig", self.view_name())),
            view = quote(&self.view_name()),
            room = self.sql_make_room(),
            table = self.table(),
            sets = sets.collect::<Vec<_>>().join(", "),
            this = each(&self.keys, |key| format!("{key} IS OLD.{key}")).join(" AND "),
        )
    }
}
