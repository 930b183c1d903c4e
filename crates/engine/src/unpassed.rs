//! Cells that an update trigger does not pass, because their columns were added since it was made (FN-8).
//!
//! Whether the statement wrote them is read from the row itself. Their old values are not to be had, so a write that changes
//! nothing can count as one that does; until the triggers are mended, at the end of the same transaction ([`crate::heal`]).

use crate::backfill::Default;
use crate::schema::{ColumnInfo, KEY_COLUMN, Table};
use crate::sql::{literal, quote};
use crate::statement::{Bind, Handle, Statement};

/// How to look at them, kept with the table: the update after an ADD COLUMN often is one of all rows.
pub(crate) struct Unpassed {
    cells: Vec<usize>,
    defaults: Vec<Default>,
    statement: Statement,
}

impl Unpassed {
    pub(crate) fn new(db: Handle, table: &Table, passed: &[usize]) -> rusqlite::Result<Self> {
        let cells: Vec<usize> = (0..table.cells.len()).filter(|cell| !passed.contains(cell)).collect();
        let defaults: Vec<Default> =
            cells.iter().map(|cell| Default::of(db, table, &table.cells[*cell])).collect::<rusqlite::Result<_>>()?;
        let statement = db.prepare(&sql_is_written(table, &cells, &defaults))?;
        Ok(Self { cells, defaults, statement })
    }

    /// Those of a row that were written, as far as can be told: with a value other than the default, or with a clock.
    pub(crate) fn written(&self, keys: &[Bind<'_>]) -> rusqlite::Result<Vec<usize>> {
        let binds: Vec<_> = keys.iter().copied().chain(self.defaults.iter().flat_map(Default::binds)).collect();
        let row = self.statement.query(&binds)?;
        if !row.next()? {
            return Ok(Vec::new());
        }
        let is_written = |(column, _): &(i32, &usize)| row.integer(*column) != 0;
        Ok((0..).zip(&self.cells).filter(is_written).map(|(_, cell)| *cell).collect())
    }
}

/// One flag for each of the cells. Parameters: the primary key, then the defaults that are values.
fn sql_is_written(table: &Table, cells: &[usize], defaults: &[Default]) -> String {
    let matches = |row: &str| {
        let column = |(column, n): (&ColumnInfo, usize)| format!("{row}.{} = ?{n}", quote(&column.name));
        table.keys.iter().zip(1..).map(column).collect::<Vec<_>>().join(" AND ")
    };
    let mut parameter = table.keys.len();
    let mut flags = Vec::new();
    for (cell, default) in cells.iter().zip(defaults) {
        let cell = &table.cells[*cell];
        parameter += default.binds().len();
        flags.push(format!(
            "{} OR EXISTS (SELECT 1 FROM {} c WHERE c.key = p.{KEY_COLUMN} AND c.col_name = {})",
            default.differs(cell, parameter),
            table.clock(),
            literal(&cell.name)
        ));
    }
    format!(
        "SELECT {} FROM {} b LEFT JOIN {} p ON {} WHERE {}",
        flags.join(", "),
        table.base(),
        table.keys_table(),
        matches("p"),
        matches("b")
    )
}
