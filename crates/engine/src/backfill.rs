//! Clocks for what was written while nobody recorded it: before a table was replicated, and while it was altered.

use crate::core::Core;
use crate::schema::{ColumnInfo, KEY_COLUMN, Table};
use crate::sql::{literal, quote};
use crate::sql_text::{Kind, tokens};
use crate::statement::{Bind, Handle, Rows, Statement};

/// Under which version the new clocks are.
#[derive(Clone, Copy)]
pub(crate) enum Stamp {
    /// The transaction's own: peers take the rows as they take a write (CRR-5).
    Next,
    /// The newest that is known already: every node runs the same migration, so nothing has to be sent to those who are up
    /// to date (ALT-5).
    Current,
}

impl Stamp {
    /// Call it only when a clock row is about to be written (VER-6).
    fn version(self, core: &mut Core) -> rusqlite::Result<i64> {
        match self {
            Self::Next => core.version_to_write(),
            Self::Current => core.db_version(),
        }
    }
}

/// Rows without a key get one, and first clocks for all of their cells, defaults and NULLs included.
pub(crate) fn backfill_rows(core: &mut Core, table: &Table, stamp: Stamp) -> rusqlite::Result<()> {
    let db = core.db;
    let rows = db.prepare(&table.sql_rows_without_key())?;
    let row = rows.query(&[])?;
    if !row.next()? {
        return Ok(());
    }
    let version = stamp.version(core)?;
    let add_key = db.prepare(&table.sql_add_key())?;
    let first_clocks = db.prepare(&sql_first_clocks(table))?;
    loop {
        add_key.run(&key_binds(&row, table.keys.len()))?;
        write_first_clocks(core, table, &first_clocks, db.last_insert_rowid(), version)?;
        if !row.next()? {
            return Ok(());
        }
    }
}

/// Rows that were written back over their tombstones are alive again, as after any insert (LW-3, LW-4).
pub(crate) fn revive_rows(core: &mut Core, table: &Table, stamp: Stamp) -> rusqlite::Result<()> {
    let db = core.db;
    let mut buried = Vec::new();
    {
        let rows = db.prepare(&table.sql_rows_with_tombstone())?;
        let row = rows.query(&[])?;
        while row.next()? {
            buried.push(row.integer(0));
        }
    }
    if buried.is_empty() {
        return Ok(());
    }
    let version = stamp.version(core)?;
    let revive = db.prepare(&table.sql_reinsert_sentinel())?;
    let first_clocks = db.prepare(&sql_first_clocks(table))?;
    for key in buried {
        if !table.is_keys_only() {
            revive.run(&[key.into(), version.into(), core.take_seqs(1).into()])?;
        }
        write_first_clocks(core, table, &first_clocks, key, version)?;
    }
    Ok(())
}

/// The sentinel of a table of keys alone also counts a tombstone on to the next life.
fn sql_first_clocks(table: &Table) -> String {
    if table.is_keys_only() { table.sql_insert_sentinel() } else { table.sql_clocks_of_known_row() }
}

fn write_first_clocks(
    core: &mut Core,
    table: &Table,
    first_clocks: &Statement,
    key: i64,
    version: i64,
) -> rusqlite::Result<()> {
    let (key, version) = (key.into(), version.into());
    let seq = core.take_seqs(table.cells.len().max(1)).into();
    first_clocks.run(&if table.is_keys_only() { [key, version, seq] } else { [version, seq, key] })
}

/// Of these columns, cells without a clock get one, unless their value is the default: that is what every node has (ALT-5).
pub(crate) fn backfill_cells(core: &mut Core, table: &Table, cells: &[usize], stamp: Stamp) -> rusqlite::Result<()> {
    let db = core.db;
    for cell in cells.iter().map(|cell| &table.cells[*cell]) {
        let default = Default::of(db, table, cell)?;
        let is_needed = db.prepare(&format!("SELECT 1 {} LIMIT 1", table.sql_cells_without_clock(cell, &default)))?;
        if !is_needed.query(&default.binds())?.next()? {
            continue;
        }
        drop(is_needed);
        let (version, seq) = (stamp.version(core)?, core.seq());
        let fill = format!(
            "INSERT INTO {} (key, col_name, col_version, db_version, site_id, seq)
             SELECT p.{KEY_COLUMN}, {}, 1, {version}, 0, {seq} + row_number() OVER () - 1 {}",
            table.clock(),
            literal(&cell.name),
            table.sql_cells_without_clock(cell, &default)
        );
        db.prepare(&fill)?.run(&default.binds())?;
        core.take_seqs(usize::try_from(db.changes()).unwrap_or_default());
    }
    Ok(())
}

/// What a column holds where nobody wrote to it.
pub(crate) enum Default {
    Null,
    Value(litemesh_proto::Value),
    /// Something else each time, such as `CURRENT_TIMESTAMP`, or unknown.
    Varies,
}

impl Default {
    pub(crate) fn of(db: Handle, table: &Table, cell: &ColumnInfo) -> rusqlite::Result<Self> {
        let declared = db.prepare("SELECT dflt_value FROM pragma_table_info(?1, 'main') WHERE name = ?2")?;
        let row = declared.query(&[(&*table.name).into(), (&*cell.name).into()])?;
        if !row.next()? || row.is_null(0) {
            return Ok(Self::Null);
        }
        Ok(Self::evaluate(db, &row.text(0)))
    }

    /// SQLite gives the text of the clause. A name in it stands for itself as a text, which it would not in a SELECT.
    fn evaluate(db: Handle, clause: &str) -> Self {
        let words: Vec<_> = tokens(clause).take(2).collect();
        let [first, rest @ ..] = words.as_slice() else { return Self::Varies };
        if clause.contains('(') || first.text.to_ascii_uppercase().starts_with("CURRENT_") {
            return Self::Varies;
        }
        let is_name = match first.kind {
            Kind::Quoted => true,
            Kind::Word => {
                !first.text.starts_with(|c: char| c.is_ascii_digit())
                    && !["null", "true", "false"].iter().any(|keyword| first.is(keyword))
            }
            _ => false,
        };
        if is_name && rest.is_empty() {
            return Self::Value(litemesh_proto::Value::Text(first.unquoted().into_bytes().into()));
        }
        let value = || -> rusqlite::Result<litemesh_proto::Value> {
            let statement = db.prepare(&format!("SELECT {clause}"))?;
            let row = statement.query(&[])?;
            row.next()?;
            Ok(row.value(0))
        };
        match value() {
            Ok(litemesh_proto::Value::Null) => Self::Null,
            Ok(value) => Self::Value(value),
            Err(_) => Self::Varies,
        }
    }

    /// Whether the cell of row `b` is something else. The value is parameter `n`.
    pub(crate) fn differs(&self, cell: &ColumnInfo, n: usize) -> String {
        let name = quote(&cell.name);
        match self {
            Self::Null => format!("b.{name} IS NOT NULL"),
            // The collation could take another text for the default.
            Self::Value(_) => format!("b.{name} COLLATE BINARY IS NOT ?{n}"),
            Self::Varies => "1".to_owned(),
        }
    }

    pub(crate) fn binds(&self) -> Vec<Bind<'_>> {
        match self {
            Self::Value(value) => vec![value.into()],
            _ => Vec::new(),
        }
    }
}

impl Table {
    /// Primary keys of base rows that have no key. The `+` takes the column's affinity off, so that the index on the keys,
    /// which has none, can be used.
    fn sql_rows_without_key(&self) -> String {
        let names: Vec<_> = self.keys.iter().map(|column| format!("b.{}", quote(&column.name))).collect();
        format!(
            "SELECT {} FROM {} b WHERE NOT EXISTS (SELECT 1 FROM {} p WHERE {})",
            names.join(", "),
            self.base(),
            self.keys_table(),
            self.key_is_of_base()
        )
    }

    fn key_is_of_base(&self) -> String {
        let same: Vec<_> =
            self.keys.iter().map(|column| quote(&column.name)).map(|n| format!("p.{n} = +b.{n}")).collect();
        same.join(" AND ")
    }

    /// Keys of base rows that count as dead.
    fn sql_rows_with_tombstone(&self) -> String {
        format!(
            "SELECT p.{KEY_COLUMN} FROM {} c CROSS JOIN {} p CROSS JOIN {}
             WHERE c.col_name = '-1' AND c.col_version % 2 = 0 AND p.{KEY_COLUMN} = c.key ORDER BY p.{KEY_COLUMN}",
            self.clock(),
            self.keys_table(),
            self.base_of_key()
        )
    }

    /// `FROM …`: keys `p` and their rows `b` whose value of this column is not the default `?1`, and has no clock. In the order
    /// of keys, in which CRSqlite numbers them, too.
    fn sql_cells_without_clock(&self, cell: &ColumnInfo, default: &Default) -> String {
        format!(
            "FROM {} p CROSS JOIN {} WHERE {} AND NOT EXISTS
             (SELECT 1 FROM {} c WHERE c.key = p.{KEY_COLUMN} AND c.col_name = {})",
            self.keys_table(),
            self.base_of_key(),
            default.differs(cell, 1),
            self.clock(),
            literal(&cell.name)
        )
    }
}

fn key_binds<'a>(row: &'a Rows<'_>, count: usize) -> Vec<Bind<'a>> {
    (0..count).filter_map(|column| i32::try_from(column).ok()).map(|column| row.value_ref(column).into()).collect()
}
