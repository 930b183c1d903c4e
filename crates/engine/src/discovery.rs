//! Finds the replicated tables, also those that DDL went past the alter functions with (ALT-7).
//!
//! A table replicates if it has the trigger `<t>__crsql_itrig` and there are shadow tables of the same `<t>` (DSK-9, with its
//! FIX: the suffix is taken literally). After ALTER TABLE … RENAME the triggers are on a table of another name: it goes on to
//! replicate with the shadow tables that it had. What should be mended is told, for [`crate::heal`].

use std::collections::HashMap;

use crate::schema::{CLOCK_SUFFIX, KEY_COLUMN, KEYS_SUFFIX, Table, load_table};
use crate::sql_text::{Kind, tokens};
use crate::statement::Handle;

const INSERT_TRIGGER: &str = "__crsql_itrig";
const UPDATE_TRIGGER: &str = "__crsql_utrig";

/// What is there.
pub(crate) struct Discovery {
    /// In the order of `sqlite_master` (DSK-9).
    pub(crate) tables: Vec<Table>,
    /// Names of shadow tables that no table replicates with. Their clocks still say which versions were given out.
    pub(crate) orphans: Vec<String>,
    pub(crate) repairs: Vec<Repair>,
}

/// What should be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// The table was dropped, its shadow tables were not (BUG-1).
    Forget { shadow: String },
    /// The table was renamed, its shadow tables were not.
    Rename { shadow: String, table: String },
    /// Columns of the primary key were renamed, those of the keys table were not: old and new names.
    RenameKeys { shadow: String, table: String, columns: Vec<(String, String)> },
    /// Columns were added, of which the update trigger knows nothing.
    Triggers { shadow: String, table: String },
}

/// The schema as far as it matters here. SQLite finds names in any case, so they are kept in lower case.
#[derive(Default)]
struct Master {
    tables: HashMap<String, String>,
    /// Prefixes of clock tables, in their order.
    clocks: Vec<String>,
    /// The table that each insert trigger is on, by prefix.
    insert_triggers: HashMap<String, String>,
    /// The text of each update trigger, by prefix.
    update_triggers: HashMap<String, String>,
}

impl Master {
    fn read(db: Handle) -> rusqlite::Result<Self> {
        // The texts of other triggers can be large.
        let list = db.prepare(&format!(
            "SELECT type, name, tbl_name, CASE WHEN substr(name, -13) = '{UPDATE_TRIGGER}' THEN sql END FROM sqlite_master
             WHERE type IN ('table', 'trigger') ORDER BY rowid"
        ))?;
        let rows = list.query(&[])?;
        let mut master = Self::default();
        while rows.next()? {
            let name = rows.text(1);
            if rows.bytes(0) == b"table" {
                master.tables.insert(name.to_ascii_lowercase(), name.to_string());
                master.clocks.extend(name.strip_suffix(CLOCK_SUFFIX).map(str::to_owned));
            } else if let Some(prefix) = name.strip_suffix(INSERT_TRIGGER) {
                master.insert_triggers.insert(prefix.to_ascii_lowercase(), rows.text(2).into_owned());
            } else if let Some(prefix) = name.strip_suffix(UPDATE_TRIGGER) {
                master.update_triggers.insert(prefix.to_ascii_lowercase(), rows.text(3).into_owned());
            }
        }
        Ok(master)
    }

    fn table(&self, name: &str) -> Option<&String> {
        self.tables.get(&name.to_ascii_lowercase())
    }
}

/// Reads the schema.
pub(crate) fn discover(db: Handle) -> rusqlite::Result<Discovery> {
    let master = Master::read(db)?;
    let mut found = Discovery { tables: Vec::new(), orphans: Vec::new(), repairs: Vec::new() };
    for shadow in &master.clocks {
        let base = master.insert_triggers.get(&shadow.to_ascii_lowercase()).and_then(|on| master.table(on));
        let Some(base) = base.filter(|_| master.table(&format!("{shadow}{KEYS_SUFFIX}")).is_some()) else {
            // A table of the name without triggers is being altered, or was made anew: that is for its owner to say.
            if master.table(shadow).is_none() && base.is_none() {
                found.repairs.push(Repair::Forget { shadow: shadow.clone() });
            }
            found.orphans.push(shadow.clone());
            continue;
        };
        let mut table = load_table(db, base)?;
        let renamed_keys = renamed_keys(db, shadow, &table)?;
        if table.keys.is_empty() || renamed_keys.as_ref().is_none_or(|renamed| !renamed.is_empty()) {
            let (shadow, table) = (shadow.clone(), base.clone());
            found.orphans.push(shadow.clone());
            let repair = renamed_keys.map(|columns| Repair::RenameKeys { shadow, table, columns });
            found.repairs.extend(repair);
            continue;
        }
        if found.tables.iter().any(|other| *other.name == **base) {
            found.orphans.push(shadow.clone());
            continue;
        }
        if !shadow.eq_ignore_ascii_case(base) {
            found.repairs.push(Repair::Rename { shadow: shadow.clone(), table: base.clone() });
        }
        table.shadow = shadow.as_str().into();
        if let Some(trigger) = master.update_triggers.get(&shadow.to_ascii_lowercase()) {
            table.passed = passed_cells(trigger, &table);
        }
        if table.passed.is_some() {
            found.repairs.push(Repair::Triggers { shadow: shadow.clone(), table: base.clone() });
        }
        found.tables.push(table);
    }
    Ok(found)
}

/// Key columns whose names differ between the table and its keys table: the old name, the new one. Empty where none does;
/// `None` where they do not match up one by one.
fn renamed_keys(db: Handle, shadow: &str, table: &Table) -> rusqlite::Result<Option<Vec<(String, String)>>> {
    let columns = db.prepare("SELECT name FROM pragma_table_info(?1 || ?2, 'main') WHERE name <> ?3 ORDER BY cid")?;
    let rows = columns.query(&[shadow.into(), KEYS_SUFFIX.into(), KEY_COLUMN.into()])?;
    let mut held = Vec::new();
    while rows.next()? {
        held.push(rows.text(0).into_owned());
    }
    let is_held = |name: &str| held.iter().any(|held| held.eq_ignore_ascii_case(name));
    let is_key = |name: &str| table.keys.iter().any(|key| key.name.eq_ignore_ascii_case(name));
    if held.len() != table.keys.len() {
        return Ok(None);
    }
    // The order of the keys table can be an older one, as long as the names are the same.
    let mut renamed = Vec::new();
    for (old, new) in held.iter().zip(&table.keys) {
        match (is_key(old), is_held(&new.name)) {
            (true, true) => {}
            (false, false) => renamed.push((old.clone(), new.name.to_string())),
            _ => return Ok(None),
        }
    }
    Ok(Some(renamed))
}

/// The cells that an update trigger passes, in its order. `None` where they are those that the table has, or where the
/// trigger is not one of ours.
fn passed_cells(trigger: &str, table: &Table) -> Option<Vec<usize>> {
    let tokens: Vec<_> = tokens(trigger).collect();
    let mut names = tokens.windows(3).filter_map(|window| match window {
        [row, dot, name] if row.is("new") && dot.is_sign('.') && matches!(name.kind, Kind::Word | Kind::Quoted) => {
            Some(name.unquoted())
        }
        _ => None,
    });
    for key in &table.keys {
        names.next().filter(|name| key.name.eq_ignore_ascii_case(name))?;
    }
    let cell = |name: String| table.cells.iter().position(|cell| cell.name.eq_ignore_ascii_case(&name));
    let passed: Vec<usize> = names.map(cell).collect::<Option<_>>()?;
    (passed.len() != table.cells.len()).then_some(passed)
}
